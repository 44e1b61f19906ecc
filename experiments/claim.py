"""What the scripts of one claim each share: options, saving, the picture, and the table of all claims.

A script `experiments/<claim>.py` has

    Config                 a frozen dataclass of numbers and names, with a field `seed`
    FULL, QUICK            the configuration of the claim, and one that takes a few seconds
    CONTROL                a configuration (quick) under which the claim is false, so that `check` must fail
    run(config) -> dict    computes; numbers, strings and lists only
    check(result)          raises ClaimFailed, naming the number that decides, unless the claim holds
    plot(result)           a matplotlib figure from the saved result alone
    summary(result)        (what was predicted, what was measured), a phrase each, for the table

and ends with `if __name__ == "__main__": claim.main()`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import platform
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

HERE = Path(__file__).parent
RESULTS = HERE / "results"


class ClaimFailed(AssertionError):
    """The claim does not hold."""


def require(holds: Any, message: str) -> None:
    """Raise ClaimFailed with the message unless `holds`."""
    if not bool(holds):
        raise ClaimFailed(message)


def run(script: ModuleType, config: Any) -> dict[str, Any]:
    """The script's result, with what is needed to make it again."""
    began = time.perf_counter()
    found = script.run(config)
    return {
        "config": dataclasses.asdict(config),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        },
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - began, 1),
    } | json.loads(json.dumps(found))


def save(path: Path, text: str) -> None:
    """Write the whole file or leave the old one: what is interrupted leaves nothing half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def draw(script: ModuleType, result: dict[str, Any], folder: Path, name: str) -> None:
    """The picture as PNG and SVG."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": name})
    figure = script.plot(result)
    for kind in ("png", "svg"):
        part = folder / f".{name}.part.{kind}"
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(part, dpi=150, bbox_inches="tight", metadata=metadata)
        part.replace(folder / f"{name}.{kind}")


def main() -> None:
    """The command line of a script: run, save, draw, check; exit 1 if the claim does not hold, 2 on bad use."""
    script = sys.modules["__main__"]
    name = Path(script.__file__ or "").stem
    parser = argparse.ArgumentParser(
        description=(script.__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="in a few seconds; writes nothing without --out")
    parser.add_argument("--control", action="store_true", help="the negative control, for which the check must fail")
    parser.add_argument("--plot", action="store_true", help="draw the saved result again, without running")
    parser.add_argument("--seed", type=int, help=f"another seed than {script.FULL.seed}")  # type: ignore[attr-defined]
    parser.add_argument("--out", type=Path, help="folder of the result and the picture (experiments/results)")
    options = parser.parse_args()
    folder = options.out or RESULTS
    saved = folder / f"{name}.json"
    try:
        if options.plot:
            draw(script, json.loads(saved.read_text()), folder, name)
            return
        config = script.CONTROL if options.control else script.QUICK if options.quick else script.FULL  # type: ignore[attr-defined]
        if options.seed is not None:
            config = dataclasses.replace(config, seed=options.seed)
        keeps = options.out is not None or not (options.quick or options.control)
        if keeps:  # before the work, not after it
            folder.mkdir(parents=True, exist_ok=True)
            save(folder / f".{name}.writable", "")
            (folder / f".{name}.writable").unlink()
        result = run(script, config)
        if keeps:
            save(saved, json.dumps(result, indent=1) + "\n")
            draw(script, result, folder, name)
        script.check(result)  # type: ignore[attr-defined]
        predicted, measured = script.summary(result)  # type: ignore[attr-defined]
        print(f"{name}: holds ({result['seconds']} s)\n  predicted: {predicted}\n  measured:  {measured}")
    except ClaimFailed as failure:
        print(f"{name}: does not hold: {failure}", file=sys.stderr)
        sys.exit(1)
    except (OSError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted, nothing was written", file=sys.stderr)
        sys.exit(130)


def load(name: str) -> ModuleType:
    """A script as a module."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    return importlib.import_module(name)


def progress(rows: Any, what: str) -> Any:
    """`rows`, with a live line on a terminal saying how many are done."""
    rows = list(rows)
    if not sys.stderr.isatty():
        yield from rows
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(rows, what, console=Console(stderr=True), transient=True)
