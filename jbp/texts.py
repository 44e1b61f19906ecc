"""The texts of a run's folder, config.json, metrics.jsonl and summary.json, as jbp itself reads them.

summary.json is written last. It holds the SHA-256 of the run's other files, and its own, as its seals: what has changed
since is not taken for what the run wrote. The fields that jbp reads are checked for their types, and no others.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jbp.arguments import cannot_read, existing_file, listed
from jbp.files import Damaged, content_digest, file_digest

CONFIG, METRICS, SUMMARY, PARAMS = "config.json", "metrics.jsonl", "summary.json", "params.safetensors"
SAVED = "saved_by"
"""The word in config.json of a run that `jbp train` cannot repeat, for `save` wrote it."""
WATCH = "watch"
"""The kind of a row that is of a step that was watched; those of epochs have none."""
SEALS = "sha256"
"""The field of a summary with the SHA-256 of each file of its run."""

_NAMES = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list", dict: "an object",
    None: "null", type(None): "null",
}  # fmt: skip
_MAYBE = (float, None)
_PARTS, _OF_EACH = ("test", "train", "validation"), (
    "accuracy", "r2", "rmse", "bits_per_character", "perplexity", "loss",
)  # fmt: skip
_FIGURES = {f"{part}_{name}?": _MAYBE for part in _PARTS for name in _OF_EACH}
_CONFIG = {"jbp?": str, f"{SAVED}?": str, "seeds?": (str, None)}
_ROW = {"epoch?": float, "step?": float, "seconds?": _MAYBE, "examples_per_second?": _MAYBE, **_FIGURES}
_WATCHED = {"kind": str, "step": int, "layers?": {"*": {"*": _MAYBE}}, "*": _MAYBE}
_SUMMARY = {
    "epochs?": int, "best_epoch?": (int, None), "stop_reason?": (str, None), "examples?": {"*": int},
    "net?": str, "loss?": str, "parameters?": int, "versions?": {"*": str}, "figures?": [str],
    "classes?": [str], "confusion?": [[int]], "epsilon?": _MAYBE, "delta?": float,
    "spread?": {"*": {"mean": float, "std": _MAYBE, "runs": int}}, "seeds?": str, "diverged?": int,
    "runs?": [{"epochs": int, "stop_reason": (str, None), "diverged_at_step?": int}], "diverged_at_step?": int,
    "resumed_at?": [int],
}  # fmt: skip
_BESIDE = {
    "epochs": ("stop_reason", "best_epoch", "examples_per_second", "seconds"), "net": ("parameters", "loss"),
    "confusion": ("classes",), "epsilon": ("delta",), "spread": ("runs", "seeds", "diverged", "net"),
}  # fmt: skip
"""Where the first field of a summary is, the others are."""


def sealed(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """The summary of a run, as JSON can hold it, with the seals of what is in its folder.

    Raises: OSError if a file cannot be read.
    """
    files = {name: file_digest(folder / name) for name in (CONFIG, METRICS, PARAMS) if (folder / name).exists()}
    return summary | {SEALS: files | {SUMMARY: content_digest(summary | {SEALS: files})}}


def seals_of(folder: Path) -> dict[str, str]:
    """What the summary of a run says its other files are; {} if it has none, or is of a jbp that did not say.

    Raises: ValueError if the summary is damaged.
    """
    return _summary(folder)[1]


def check_seal(path: Path, seals: Mapping[str, str]) -> None:
    """Refuse a file that is not the one of which its run's summary speaks.

    Raises: Damaged.
    """
    try:
        if path.name in seals and file_digest(path) != seals[path.name]:
            raise Damaged(path, f"holds something else than the run wrote, as its {SUMMARY} says")
    except OSError as error:
        raise cannot_read(path, error) from error


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run, {} if it has none; warns where the parameters are there without, or it has no seals.

    Raises: ValueError if it is damaged.
    """
    path = folder / SUMMARY
    summary, found = _summary(folder)
    if not path.exists() and (folder / PARAMS).exists():
        warnings.warn(f"{path}: is not there, though {PARAMS} is: it was removed, or never written", stacklevel=2)
    if path.exists() and not found:
        warnings.warn(f"{path}: has no {SEALS}, as of an older jbp: what is damaged in it would not show", stacklevel=2)
    return summary


def read_config(folder: Path, seals: Mapping[str, str]) -> dict[str, Any]:
    """The options of a run; warns if they are not those it was written with, for they may be edited.

    Raises: ValueError if there are none, or they are damaged.
    """
    path = folder / CONFIG
    config = read_json(path)
    check_form(path, config, _CONFIG)
    try:
        check_seal(path, seals)
    except Damaged as error:
        warnings.warn(f"{error}: it was edited, or is damaged; what it says may not be of this run", stacklevel=2)
    return config


def read_rows(folder: Path, seals: Mapping[str, str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without a last one that a kill has cut short; [] if there is none.

    Raises: ValueError if the file is damaged, with the number of the line.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    check_seal(path, seals)
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise cannot_read(path, error) from error
    rows = [_parsed(path, line, f"row as JSON in line {n}") for n, line in enumerate(lines, 1)]
    for n, row in enumerate(rows, 1):
        check_form(path, row, _WATCHED if row.get("kind") == WATCH else _ROW, f" in line {n}")
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises: ValueError if the file is missing, empty or something else.
    """
    try:
        return _parsed(path, existing_file(path).read_bytes())
    except OSError as error:
        raise cannot_read(path, error) from error


def _summary(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The summary of a run, {} if it has none, and its seals of other files."""
    path = folder / SUMMARY
    if not path.exists():
        return {}, {}
    summary = read_json(path)
    check_form(path, summary, {f"{SEALS}?": {"*": str}})
    seals = summary.pop(SEALS, {})
    if seals and seals.pop(SUMMARY, None) != content_digest(summary | {SEALS: seals}):
        raise Damaged(path, f"expected what the run wrote, found something else; if you changed it, remove its {SEALS}")
    own = summary.get("figures", ())
    standard = {name: inner for name, inner in _FIGURES.items() if not isinstance(own, list) or name[:-1] not in own}
    check_form(path, summary, _SUMMARY | standard)
    wrong = _unlike(summary)
    if wrong is not None:
        raise Damaged(path, wrong)
    return summary, seals


def check_form(path: Path, content: Any, form: Any, where: str = "") -> None:
    """Refuse what was read from a file and is not of a form.

    A form is a type, None, a set of words, [form] for a list, a tuple of forms of which one will do, or a dict from
    field to form: "name?" may be missing, and "*" is every field.

    Raises: Damaged, naming the field.
    """
    wrong = _misfit(content, form, "")
    if wrong is not None:
        raise Damaged(path, wrong + where)


def _parsed(path: Path, data: bytes, wanted: str = "JSON file") -> dict[str, Any]:
    """The object in some text."""
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(path, f"expected a {wanted}, found something else ({error}); correct it") from error
    if not isinstance(content, dict):
        wanted = wanted.replace("JSON file", "JSON object")
        raise Damaged(path, f"expected a {wanted}, found {type(content).__name__}; correct it")
    return content


def _misfit(value: Any, form: Any, place: str) -> str | None:
    """In words how a value is not of a form; None if it is."""
    if isinstance(form, tuple):
        fits = any(_misfit(value, one, place) is None for one in form)
        return None if fits else _unexpected(value, " or ".join(map(_named, form)), place)
    kind = {list: list, dict: dict, frozenset: str}.get(type(form), form)
    found = type(value)
    is_kind = value is None if kind is None else found is kind or (kind is float and found is int)
    if not is_kind or (isinstance(form, frozenset) and value not in form):
        return _unexpected(value, _named(form), place)
    if isinstance(form, list):
        inside: Iterable[tuple[Any, Any, str]] = ((one, form[0], f"{place}[{i}]") for i, one in enumerate(value))
    elif isinstance(form, dict):
        lacking = [name for name in form if name != "*" and not name.endswith("?") and name not in value]
        if lacking:
            return f"expected {listed(lacking)} in {place or 'it'}, found none"
        known = {name.removesuffix("?"): inner for name, inner in form.items()}
        forms = ((name, known.get(name, known.get("*"))) for name in value)
        inside = ((value[name], inner, f"{place}.{name}".lstrip(".")) for name, inner in forms if inner is not None)
    else:
        inside = ()
    return next((wrong for one in inside if (wrong := _misfit(*one)) is not None), None)


def _named(form: Any) -> str:
    if isinstance(form, frozenset):
        return f"one of {listed(sorted(form))}"
    return _NAMES[type(form) if isinstance(form, list | dict) else form]


def _unexpected(value: Any, wanted: str, place: str) -> str:
    found = repr(value)
    place = place and f" as {place}"
    return f"expected {wanted}{place}, found {found if len(found) < 40 else _NAMES[type(value)]}"


def _unlike(summary: dict[str, Any]) -> str | None:
    """What in a summary does not go with the rest of it; None if all does."""
    for first, others in _BESIDE.items():
        lacking = [name for name in others if first in summary and name not in summary]
        if lacking:
            return f"expected {listed(lacking)} beside {first}, found none"
    nameless = [name for name in summary.get("figures", ()) if name not in summary]
    if nameless:
        return f"expected {nameless[0]}, one of its figures, found none"
    if "spread" in summary and not summary["runs"]:
        return "expected a run or more as runs, found none"
    counts = summary.get("confusion")
    k = len(summary.get("classes", ()))
    if counts is not None and (not k or [len(row) for row in counts] != [k] * k):
        return f"expected a row and a column for each of the {k} classes as confusion, found others"
    return None
