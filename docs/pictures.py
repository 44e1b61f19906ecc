"""For the site: the pictures in experiments/results, which pages name by their path in the checkout."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = "experiments/results"


def on_files(files: Files, config: Any) -> Files:
    """Add them to the site, under results/."""
    for path in sorted((Path(config.config_file_path).parent / RESULTS).glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **others: Any) -> str:
    """Name them as the site does."""
    return markdown.replace(f"](../{RESULTS}/", "](results/")
