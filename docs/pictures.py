"""For the site: the pictures in experiments/results, which pages name by their path in the checkout; δ pages."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from jbp.inspect import page as delta_page

RESULTS = "experiments/results"


def on_files(files: Files, config: Any) -> Files:
    """Add them to the site, under results/."""
    for path in sorted((Path(config.config_file_path).parent / RESULTS).glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    for path in sorted((Path(config.docs_dir) / "scenes").glob("*.json.gz")):
        name = path.name.removesuffix(".json.gz")
        text = delta_page(json.loads(gzip.decompress(path.read_bytes())))
        files.append(File.generated(config, f"scenes/{name}.html", content=text))
    return files


def on_page_markdown(markdown: str, **others: Any) -> str:
    """Name them as the site does; a comment `scene: NAME` becomes the page of that scene, in a frame."""
    frame = r'<iframe src="../scenes/\1.html" title="δ page: \1" width="100%" height="820" loading="lazy"></iframe>'
    return re.sub(r"<!-- scene: (\w+) -->", frame, markdown.replace(f"](../{RESULTS}/", "](results/"))
