"""What all experiments share: where results lie, the one form they are written in, and how a claim fails.

Scripts find it with `sys.path.append(str(Path(__file__).resolve().parents[1]))`, those of a claim through `claim`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


class ClaimFailed(AssertionError):
    """The claim does not hold."""


def require(holds: Any, message: str) -> None:
    """Raise ClaimFailed with the message unless `holds`."""
    if not bool(holds):
        raise ClaimFailed(message)


def write(path: Path, result: dict[str, Any]) -> None:
    """Save a result as JSON, in the form of `text_of`."""
    save(path, text_of(result))


def text_of(result: dict[str, Any]) -> str:
    """A result as JSON: every key of the top level on a line of its own, and every row of a list of rows.

    A row is one line: whatever stands in a list that holds an object or a list. An object below the top level is
    spread over lines only if there are rows, or objects of objects, in it.
    """
    return _spread(json.loads(json.dumps(result)), "") + "\n"


def save(path: Path, text: str) -> None:
    """Write the whole file or leave the old one: what is interrupted leaves nothing half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def progress(rows: Any, what: str) -> Any:
    """`rows`, with a live line on a terminal saying how many are done."""
    rows = list(rows)
    if not sys.stderr.isatty():
        yield from rows
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(rows, what, console=Console(stderr=True), transient=True)


def _spread(value: Any, indent: str) -> str:
    inner = indent + " "
    if isinstance(value, list) and _depth(value) > 1:
        return "[\n" + ",\n".join(inner + _line(row) for row in value) + f"\n{indent}]"
    if isinstance(value, dict) and (not indent or _depth(value) > 2):
        lines = (f"{inner}{_line(key)}: {_spread(found, inner)}" for key, found in value.items())
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _depth(value: Any) -> int:
    """How many objects and lists lie in one another, here at the most."""
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
