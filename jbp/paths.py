"""Places as text: of layers in a net, of leaves in a tree. Nothing of jbp is imported here: everything may import it.

    shown    [0]['weight']    what one types after `params` to get there: in errors, traces and reports of checks
    dotted   0.weight         a name: the keys of dicts of statistics and rules, and what patterns of groups match

A path is a tuple of indices and names, or of the keys that `jax.tree_util` gives for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.tree_util import DictKey, GetAttrKey, SequenceKey, tree_flatten_with_path

Path = tuple[Any, ...]


def shown(path: Path, repetition: tuple[int, ...] = ()) -> str:
    """(0, 'weight') as "[0]['weight']"; under `repeat` with the repetition, counted from 1, as in "[0][1] #2"."""
    place = "".join(f"[{step!r}]" if isinstance(step, int | str) else str(step) for step in path)
    times = "".join(f"#{i + 1}" for i in repetition)
    return f"{place} {times}".strip()


def paths(tree: Any, name: str = "", is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """Where each leaf of a tree is, after the tree's `name`; a bare leaf without one is "()"."""
    return [name + shown(path) or "()" for path, _ in tree_flatten_with_path(tree, is_leaf)[0]]


def dotted(path: Path) -> str:
    """(0, 'weight') as "0.weight"; the one parameter of a bare layer, and a net that is one layer, are "." """
    return ".".join(map(_step, path)) or "."


def layer_of(path: Path) -> str:
    """The path's leading indices, which lead to a layer: "0" of "0.weight", "." if there are none."""
    lead = []
    for key in path:
        if not isinstance(key, SequenceKey):
            break
        lead.append(key)
    return dotted(tuple(lead))


def _step(key: Any) -> str:
    match key:
        case SequenceKey():
            return str(key.idx)
        case DictKey():
            return str(key.key)
        case GetAttrKey():
            return str(key.name)
    return str(key)
