"""The benchmark: jbp beside what people would use instead, measured in one run.

    python experiments/bench/suite.py [SECTION …] [--quick | --full] [--compare OLD.json]      `make bench`

Each section writes experiments/results/bench_<section>.json and a picture, all of them experiments/bench/README.md;
with --full, sections that measure more then write bench_<section>_full.json. `--compare` prints what changed against an
older result (a section's file), and ends with 1 if a counted figure lost more than 10 %. Peers come from the extra
`bench`; one that is not installed is reported as missing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Some machines force an old BLAS kernel on NumPy, which would make a straw man of it.
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    if os.environ.pop(name, None) and "numpy" in sys.modules:
        print(f"bench: NumPy was loaded with {name} and keeps it; python {__file__} runs without", file=sys.stderr)
sys.path[:0] = [str(path) for path in Path(__file__).resolve().parents[:2]]

import common  # noqa: E402
import harness  # noqa: E402
import matplotlib as mpl  # noqa: E402
import numpy as np  # noqa: E402
from harness import Row  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markdown import Markdown  # noqa: E402

mpl.use("agg")
SECTIONS = (
    *("step", "first_step", "memory", "per_example", "training", "limit", "growth", "profile_step"),
    *("conv", "conv_training", "conv_layers", "conv_per_example", "sequences"),
)
MORE_IN_FULL = ("per_example", "training")
"""Sections that measure more with --full, into a file of their own: a later run without it leaves that alone."""
PAGE = harness.HERE / "README.md"
README = harness.ROOT / "README.md"
LANGUAGE = harness.ROOT / "docs" / "language.md"
MISSED = harness.HERE / "missed.md"  # in words, by hand


def saved(section: str, full: bool = False) -> Path:
    """Where a section's result is, or that of its full form."""
    return common.RESULTS / f"bench_{section}{'_full' * full}.json"


def kept() -> list[Path]:
    """The results there are, in the order of the page."""
    paths = [saved(section, full) for section in SECTIONS for full in (False, True)]
    return [path for path in paths if path.exists()]


def measure(section: str, size: harness.Size) -> dict[str, Any]:
    """Run a section."""
    began = time.perf_counter()
    rows = importlib.import_module(section).run(size)
    return {
        "section": section,
        "size": size,
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": harness.machine(),
        "rows": harness.to_json(rows),
    }


def draw(path: Path) -> None:
    """The picture of a saved result, as PNG beside it, if anything was measured."""
    import matplotlib.pyplot as plt

    result = json.loads(path.read_text())
    section, rows = result["section"], harness.from_json(result["rows"])
    if all(figure.value is None for row in rows for figure in row.figures):
        return  # nothing was measured yet

    mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure = importlib.import_module(section).plot(rows)
    if figure is None:
        return
    part = path.with_name(f".{path.stem}.part.png")
    figure.savefig(part, dpi=150, bbox_inches="tight", metadata={"Software": None})
    part.replace(path.with_suffix(".png"))
    plt.close(figure)


def words(path: Path) -> str:
    """A section of the page: its table and targets."""
    result = json.loads(path.read_text())
    section, full = result["section"], " --full" if path.stem.endswith("_full") else ""
    module = importlib.import_module(section)
    rows = harness.from_json(result["rows"])
    text = [f"## {module.TITLE}", "", (module.__doc__ or "").split("\n\n    python")[0].split("\n\n", 1)[-1], ""]
    if full:
        text = [f"### {module.TITLE}: in full", ""]
    if path.with_suffix(".png").exists():
        text += [f"![{module.TITLE}](../results/{path.stem}.png)", ""]
    made = f"{result['date']}, {result['seconds']:.0f} s, `python experiments/bench/suite.py {section}{full}`"
    notes = module.notes(rows) if hasattr(module, "notes") else []
    return "\n".join([*text, harness.markdown(rows), "", *harness.targets(rows), *notes, "", made, ""])


def page() -> str:
    """The page of all sections, from what is saved."""
    paths = kept()
    where = json.loads(paths[0].read_text())["machine"] if paths else harness.machine()
    text = (
        "# Benchmark\n\n<!-- Made by `make bench`; do not edit. -->\n\n"
        "jbp beside what people would use instead, contenders in turn in one run, equal losses asserted first. Given "
        "are medians with their 5 to 95 % range; ! marks a target that is missed, and below each table every target is "
        f"listed with the cases that miss it. On {where['processor']}, {where['cores']} cores, "
        f"Python {where['python']}, "
        + ", ".join(f"{name} {version}" for name, version in where["versions"].items())
        + ".\n\n"
    )
    return text + "\n".join([*map(words, paths), missed()])


def missed() -> str:
    """What is missed, in words, with the figures of the saved results."""
    text = MISSED.read_text()
    if not (saved("training").exists() and saved("profile_step").exists()):
        return text
    epochs, steps = (
        harness.from_json(json.loads(saved(name).read_text())["rows"]) for name in ("training", "profile_step")
    )
    for i, (epoch, step) in enumerate(zip(epochs, steps, strict=True)):
        whole, found = step["jbp, µs a step"].value or np.nan, epoch["PyTorch"].value or np.nan
        share = (step["jbp: products, µs"].value or np.nan) / whole
        for what, value in (("share", share), ("ratio", found), ("bound", found / share)):
            text = text.replace(f"{{{what} {i}}}", f"{value:.2f}")
    return text


def summary() -> str:
    """What the project's README says of the saved results."""
    rows = {section: harness.from_json(json.loads(saved(section).read_text())["rows"]) for section in SECTIONS}

    def span(section: str, name: str, of: Callable[[Row], bool] = lambda _: True) -> str:
        values = [row[name].value or 0.0 for row in rows[section] if of(row) and name in {f.name for f in row.figures}]
        low, high = (harness.short(value) for value in (min(values), max(values)))
        return low if low == high else f"{low} to {high}"

    def named(section: str, name: str) -> Row:
        return next(row for row in rows[section] if row.name == name)

    judged = {row.name for row in rows["first_step"] if row["trace + lower"].target is not None}
    deep = named("memory", "repeat of 48 layers of 512, batch 64, SGD")
    norms, clipped = named("per_example", "norms, batch 128"), named("per_example", "clipped, batch 128")
    epochs = [named("training", cell.name) for cell in importlib.import_module("training").CELLS]
    names = [f.name for f in epochs[0].figures[1:]]
    texts = [
        f"- One gradient of {len(rows['step'])} nets takes {span('step', 'FLOPs')} times the FLOPs of "
        f"`jax.value_and_grad`, {span('step', 'temporary bytes')} times its temporary bytes, "
        f"{span('step', 'time over autodiff')} times its time, and before the first one "
        f"{span('first_step', 'trace + lower', lambda row: row.name in judged)} times its tracing and lowering.",
        "- A training step of 48 repeated layers updated in place: "
        f"{deep['in place, temporary MB'].value:.1f} MB of temporaries, where autodiff with optax needs "
        f"{deep['autodiff + optax, temporary MB'].value:.1f}.",
        f"- Norms of 128 examples' gradients: {norms['vmap(grad) over jbp, time']} times faster and "
        f"{norms['vmap(grad) over jbp, bytes']} times leaner than `vmap(grad)`; clipping takes "
        f"{clipped['jbp, in plain steps']} plain steps.",
        "- How long the others take for an epoch of training, as a multiple of jbp's time: above 1, jbp is faster; "
        "! marks a missed target. On MNIST the epoch is one of 25,600 examples, in the largest net of 10,240:",
    ]
    lines = [textwrap.fill(text, 118, subsequent_indent="  ") for text in texts]
    lines += ["", "| net | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for row in epochs:
        shown = (harness.short(row[n].value or np.nan) + " !" * (row[n].met is False) for n in names)
        lines.append(f"| {row.name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def write() -> None:
    """The page, and the README's part of it, from what is saved."""
    common.save(PAGE, page())
    if saved("sequences").exists():
        fill(LANGUAGE, "jbp bench sequences", talked())
    if all(saved(section).exists() for section in SECTIONS):
        fill(README, "jbp bench", summary())


def fill(path: Path, name: str, text: str) -> None:
    """Put a text between the comments of this name on a page."""
    page = path.read_text()
    found = re.sub(rf"(<!-- {name} -->\n).*?(\n<!-- end of {name} -->)", lambda m: m[1] + text + m[2], page, flags=re.S)
    common.save(path, found)


def talked() -> str:
    """What the page about language models says of the saved results."""
    rows = harness.from_json(json.loads(saved("sequences").read_text())["rows"])
    table, said = importlib.import_module("sequences").table(rows).rsplit("\n", 1)
    return f"{table}\n{textwrap.fill(said, 132)}"


class WrongFile(ValueError):
    """What is to be compared with is no result of what is measured."""


def older(path: Path, sections: list[str]) -> dict[str, Any]:
    """A saved result to compare with."""
    try:
        result = json.loads(path.read_text())
        section, _ = result["section"], harness.from_json(result["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongFile(f"{path} is no result of the benchmark ({type(error).__name__}: {error})") from error
    if section not in (sections or SECTIONS):
        raise WrongFile(f"{path} is a result of {section}: compare it with that section")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run it; answers with the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all if none is named"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small cases and few rounds, in two minutes, nothing written"
    )
    parser.add_argument("--full", action="store_true", help="the full grid of training runs too, about an hour")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="print what changed against an older result")
    parser.add_argument("--page", action="store_true", help="write pictures and page from the saved results, and stop")
    options = parser.parse_args(arguments)
    unknown = [section for section in options.sections if section not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}: expected some of {', '.join(SECTIONS)}")
    old = older(options.compare, options.sections) if options.compare else None
    chosen = options.sections or ([old["section"]] if old else list(SECTIONS))
    size: harness.Size = "quick" if options.quick else "full" if options.full else "bench"
    lost = False
    for section in [] if options.page else chosen:
        print(f"bench: {section}", file=sys.stderr, flush=True)
        result = measure(section, size)
        rows = harness.from_json(result["rows"])
        Console(width=200).print(Markdown(f"## {importlib.import_module(section).TITLE}\n\n{harness.markdown(rows)}"))
        print("\n".join(harness.targets(rows)), flush=True)
        if old is not None and old["section"] == section:
            lines = harness.changes(harness.from_json(old["rows"]), rows)
            print("\n".join(lines) or "nothing changed beyond noise")
            lost |= any(line.startswith("LOSS") for line in lines)
        if size != "quick":
            path = saved(section, size == "full" and section in MORE_IN_FULL)
            common.write(path, result)
            draw(path)
            write()
    if options.page:
        for path in kept():
            draw(path)
        write()
    return int(lost)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WrongFile as error:
        print(f"bench: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("bench: interrupted; the sections that were finished are saved", file=sys.stderr)
        sys.exit(130)
