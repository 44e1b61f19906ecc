"""Nets and losses as JSON: the names of their classes, and their fields. No code, and nothing is pickled.

Classes of jbp are found by their names; those of a user's own in what the user hands in, and nowhere else (`jbp.own`).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from jbp import combine, layers, losses
from jbp.arguments import listed
from jbp.inputs import check_net
from jbp.layer import Layer
from jbp.layers import initializers
from jbp.losses import Loss
from jbp.own import Classes

KINDS = (Layer, initializers.Initializer, Loss)
"""What a net and its loss are made of."""


class MissingLayers(ValueError):
    """A saved net has layers of the user's own, and their classes were not handed in."""


def describe(net: Any) -> Any:
    """A net or a loss as JSON: {"class": name, field: value, …}, without the fields left at their defaults.

    A class of the user's own is {"own": name, "file": where it was, "fields": {…}}, with all its fields.

    Raises: ValueError for what JSON cannot hold, or a class that its fields do not make again.
    """
    if not isinstance(net, KINDS):
        check_net(net, Layer)
    description = _described(net)
    mine = _own_classes(net)
    for name, found in mine.items():
        if len(found) > 1:
            raise ValueError(
                f"expected a name for each class of the net, got {listed(c.__module__ for c in found)} each with a "
                f"class {name}: rename one"
            )
    if mine and json.dumps(_described(net_from(description, mine))) != json.dumps(description):
        raise ValueError(
            f"expected layers that their fields make again, got {listed(mine)}, of which one changes when it is made: "
            "keep what it was given, and compute the rest where it is used"
        )
    return description


def has_own(description: Any) -> bool:
    """Whether a description has classes that are not jbp's."""
    return next(_own_names(description), None) is not None


def refuse_missing(description: Any, classes: Classes) -> None:
    """Raise MissingLayers, which says what to give, if a description has classes that are neither jbp's nor given."""
    missing = {name: file for name, file in _own_names(description) if name not in classes}
    if missing:
        files = listed(dict.fromkeys(file for file in missing.values() if file)) or "a notebook or a shell"
        given = next((file for file in missing.values() if file), "FILE.py")
        got = f"; what was named has only {listed(classes)}" if classes else ""
        raise MissingLayers(
            f"the net has layers that are not jbp's, {listed(missing)} (in {files} when it was saved){got}: name the "
            f"Python file that has them, layers={given!r} or --layers {given}; a file is only run when you name it"
        )


def net_from(description: Any, classes: Classes | None = None) -> Any:
    """The net that `describe` described; `classes` are the user's own, by name, as `jbp.own.classes_in` finds them.

    Raises: MissingLayers if it has some that are not among them; ValueError if it is none, or a class has changed.
    """
    classes = classes or {}
    refuse_missing(description, classes)
    return _made(description, classes)


@lru_cache
def _known() -> dict[str, type]:
    """jbp's own classes of these kinds, by name."""
    modules = (layers, combine, initializers, losses)
    members = (value for module in modules for value in vars(module).values())
    return {
        c.__name__: c for c in members if inspect.isclass(c) and issubclass(c, KINDS) and dataclasses.is_dataclass(c)
    }


def _described(node: Any) -> Any:
    if isinstance(node, tuple):
        return [_described(inner) for inner in node]
    if isinstance(node, bool | int | float | str) or node is None:
        return node
    kind = type(node)
    if not isinstance(node, KINDS):
        raise ValueError(
            f"expected the fields of layers to be numbers, text, tuples or layers, got {node!r} of type "
            f"{kind.__name__}, which a file without code cannot hold; save the params with jbp.checkpoint.save"
        )
    fields = [f for f in dataclasses.fields(kind) if f.init] if dataclasses.is_dataclass(kind) else []
    values = {f.name: getattr(node, f.name) for f in fields}
    if _known().get(kind.__name__) is kind:
        defaults = {f.name: f.default for f in fields}
        return {"class": kind.__name__} | {
            name: _described(value) for name, value in values.items() if value != defaults[name]
        }
    if not dataclasses.is_dataclass(kind) and vars(node):
        raise ValueError(
            f"expected {kind.__name__} to be a frozen dataclass, so that its fields are known, got a class with "
            f"{listed(vars(node))}: put @dataclass(frozen=True) above it and declare them"
        )
    file = inspect.getsourcefile(kind) if _has_file(kind) else None
    described = {name: _described(value) for name, value in values.items()}
    return {"own": kind.__name__, "file": file and Path(file).name, "fields": described}


def _made(description: Any, mine: Classes) -> Any:
    if isinstance(description, list):
        return tuple(_made(inner, mine) for inner in description)
    if not isinstance(description, dict):
        return description
    if "own" in description:
        return _made_of_own(description, mine)
    fields = dict(description)
    name = fields.pop("class", None)
    if name not in _known():
        raise ValueError(f"expected a layer of jbp, found {name!r}; a newer jbp may know it")
    try:
        return _known()[name](**{key: _made(value, mine) for key, value in fields.items()})
    except TypeError as error:
        raise ValueError(f"expected the fields of {name}, found {sorted(fields)}; a newer jbp may know them") from error


def _made_of_own(description: dict[str, Any], mine: Classes) -> Any:
    """A layer of a user's class, if that has the very fields it had."""
    name, saved = description["own"], description["fields"]
    found = mine[name]
    if len(found) > 1:
        raise ValueError(
            f"expected one class {name} in what you named, found {len(found)}, of {listed(c.__module__ for c in found)}"
            ": hand in the one that is meant, layers=[...]"
        )
    (kind,) = found
    fields = [f.name for f in dataclasses.fields(kind) if f.init] if dataclasses.is_dataclass(kind) else []
    if set(fields) != set(saved):
        raise ValueError(
            f"{name} has changed: expected a class with the fields {listed(saved) or 'none'}, as the net was saved, "
            f"found {listed(fields) or 'none'}; give the file as it was, or train again"
        )
    try:
        return kind(**{key: _made(value, mine) for key, value in saved.items()})
    except TypeError as error:
        raise ValueError(f"expected {name} to be made of its fields {listed(saved)}, but {error}") from error


def _own_names(description: Any) -> Iterator[tuple[str, str | None]]:
    """The classes of a description that are not jbp's, each with the name of the file it was in."""
    if isinstance(description, list):
        for inner in description:
            yield from _own_names(inner)
    elif isinstance(description, dict):
        if "own" in description:
            yield description["own"], description.get("file")
        yield from _own_names(list(description.get("fields", description).values()))


def _own_classes(node: Any) -> Classes:
    """The classes in a net that are not jbp's, by name."""
    found: Classes = {}

    def look(node: Any) -> None:
        kind = type(node)
        if isinstance(node, KINDS) and _known().get(kind.__name__) is not kind:
            held = found.setdefault(kind.__name__, [])
            held += [kind] if kind not in held else []
        if isinstance(node, tuple):
            inner: Iterable[Any] = node
        else:
            is_made = isinstance(node, KINDS) and dataclasses.is_dataclass(node)
            inner = (getattr(node, f.name) for f in dataclasses.fields(node)) if is_made else ()  # type: ignore[arg-type]
        for one in inner:
            look(one)

    look(node)
    return found


def _has_file(kind: type) -> bool:
    """Whether a class was read from a file, and not typed into a shell or a notebook."""
    return getattr(sys.modules.get(kind.__module__), "__file__", None) is not None
