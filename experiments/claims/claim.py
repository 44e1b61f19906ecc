"""What the scripts of one claim each share: options, saving, the picture, and one line for whatever goes wrong.

A script `experiments/claims/<claim>.py` has

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
import importlib.metadata
import json
import platform
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from common import RESULTS, save, text_of
from common import ClaimFailed as ClaimFailed
from common import progress as progress
from common import require as require

HERE = Path(__file__).resolve().parent
PACKAGES = ("jbp", "jax", "numpy", "scipy", "optax")


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What is not caught, in the usual words; but Ctrl-C while a script still imports JAX is one line too."""
    if kind is KeyboardInterrupt:
        print("interrupted, nothing was written", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if Path(sys.argv[0]).resolve().parent == HERE:  # a script's own process, in which JAX comes after this module
    sys.excepthook = _say


def run(script: ModuleType, config: Any) -> dict[str, Any]:
    """The script's result, with what is needed to make it again."""
    import jax

    began = time.perf_counter()
    found = script.run(config)
    return {
        "config": dataclasses.asdict(config),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
            "device": jax.devices()[0].device_kind,
        },
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - began, 1),
    } | json.loads(json.dumps(found))


def draw(script: ModuleType, result: dict[str, Any], folder: Path, name: str, text: str | None = None) -> None:
    """The picture as PNG, and the result's text as JSON if there is one; both of them, or the old ones stay."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    parts = {kind: folder / f".{name}.part.{kind}" for kind in ("png", "json")[: 1 + (text is not None)]}
    try:
        figure = script.plot(result)
        figure.savefig(parts["png"], dpi=150, bbox_inches="tight", metadata={"Software": None})
        if text is not None:
            parts["json"].write_text(text)
        _rename({part: folder / f"{name}.{kind}" for kind, part in parts.items()})
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def verdict(script: ModuleType, result: dict[str, Any]) -> str:
    """Nothing if the claim holds, else the number that decides against it."""
    try:
        script.check(result)
    except AssertionError as failure:  # ClaimFailed, or that of from_scratch.py, which imports nothing of ours
        return str(failure)
    return ""


def _rename(parts: dict[Path, Path]) -> None:
    """Each to its name; Ctrl-C does not come in between."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for part, path in parts.items():
            part.replace(path)
    finally:
        signal.signal(signal.SIGINT, before)


def redraw(script: ModuleType, folder: Path, name: str) -> None:
    """The picture again, from the saved result."""
    saved = folder / f"{name}.json"
    try:
        draw(script, json.loads(saved.read_text()), folder, name)
    except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"expected {saved} to be a result of {name}.py as it is now, found another shape ({error!r}); run it again"
        ) from error
    except OSError as error:
        raise OSError(f"expected a saved result as {saved} ({error.strerror}); run without --plot first") from error


def writable(folder: Path, name: str) -> None:
    """Raise OSError, saying what to do, unless the folder can be written to: before the work, not after it."""
    try:
        save(folder / f".{name}.writable", "")
        (folder / f".{name}.writable").unlink()
    except OSError as error:
        raise OSError(f"{folder} could not be written to ({error.strerror}): give another folder as --out") from error


def options_of(script: ModuleType) -> argparse.Namespace:
    """The command line of a script."""
    parser = argparse.ArgumentParser(
        description=(script.__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="in a few seconds; writes nothing without --out")
    parser.add_argument("--control", action="store_true", help="the negative control, for which the check must fail")
    parser.add_argument("--plot", action="store_true", help="draw the saved result again, without running")
    parser.add_argument("--seed", type=int, help=f"another than {script.FULL.seed}; writes nothing without --out")
    parser.add_argument("--out", type=Path, help="folder of the result and the picture (experiments/results)")
    return parser.parse_args()


def config_of(script: ModuleType, options: argparse.Namespace) -> Any:
    """What to run."""
    config = script.CONTROL if options.control else script.QUICK if options.quick else script.FULL
    if options.seed is None:
        return config
    if not 0 <= options.seed < 2**16:  # scripts make a hundred seeds of one
        raise ValueError(f"--seed must be from 0 to {2**16 - 1}, but is {options.seed}")
    return dataclasses.replace(config, seed=options.seed)


def main() -> None:
    """The command line of a script: run, save, draw, check; exit 1 if the claim does not hold, 2 on bad use.

    A result for which the claim does not hold is saved as well: the table says so, and its numbers say by how much.
    """
    script = sys.modules["__main__"]
    name = Path(script.__file__ or "").stem
    options = options_of(script)
    folder = options.out or RESULTS
    try:
        if options.plot:
            redraw(script, folder, name)
            return
        config = config_of(script, options)
        keeps = options.out is not None or not (options.quick or options.control or options.seed is not None)
        if keeps:
            writable(folder, name)
        result = run(script, config)
        if keeps:
            draw(script, result, folder, name, text_of(result))
        failure = verdict(script, result)
        if failure:
            print(f"{name}: does not hold: {failure}", file=sys.stderr)
            sys.exit(1)
        predicted, measured = script.summary(result)  # type: ignore[attr-defined]
        print(f"{name}: holds ({result['seconds']} s)\n  predicted: {predicted}\n  measured:  {measured}")
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
