"""Parameters that somebody wrote down: JSON, lines of text, or safetensors, for a net whose shapes are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jbp.arguments import about, did_you_mean, existing_file, listed
from jbp.checkpoint import read_arrays
from jbp.paths import dotted


def params(path: str | Path, like: Any) -> Any:
    """The parameters in a file, in the tree, shapes and dtypes of `like`.

    Each is called by its layer, counted from 1 among those with parameters, and its name there: 1.weight. In JSON
    dicts may be nested, and a list stands for the layers in order. In text each line holds a name and the numbers of
    one row. A .safetensors file has these names, or those of `jbp.save`.

    Raises: ValueError after the file's path: what cannot be read, a name that is missing or unknown, another shape.
    """
    path = existing_file(path)
    found = read_arrays(path) if path.suffix == ".safetensors" else None
    with about(path):
        return _filled((_json if path.suffix == ".json" else _text)(path) if found is None else found, like)


def _filled(found: dict[str, np.ndarray], like: Any) -> Any:
    """The arrays by name, in the tree of `like`."""
    leaves, structure = jax.tree.flatten_with_path(like)
    layers = list(dict.fromkeys(_layer(path) for path, _ in leaves))
    names = [dotted((f"{layers.index(_layer(path)) + 1}", *path[len(_layer(path)) :])) for path, _ in leaves]
    if not set(found) <= set(names) and set(found) == {dotted(path) for path, _ in leaves}:
        found = {name: found[dotted(path)] for name, (path, _) in zip(names, leaves, strict=True)}
    for name in found:
        if name not in names:
            raise ValueError(f"expected {listed(names)}, found {name!r}{did_you_mean(name, names)}")
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"expected {listed(names)}, found no {listed(missing)}; add what is missing")
    return structure.unflatten(_shaped(n, found[n], leaf) for n, (_, leaf) in zip(names, leaves, strict=True))


def _shaped(name: str, value: np.ndarray, leaf: Any) -> np.ndarray:
    """One array, in the shape and dtype of the parameter."""
    if value.shape != leaf.shape and value.size == leaf.size == max(leaf.shape, default=1):
        value = value.reshape(leaf.shape)  # one row, or one number, however it was written
    if value.shape != leaf.shape:
        hint = "; transpose it: a row for each input, a column for each output" if value.T.shape == leaf.shape else ""
        raise ValueError(f"expected {name} of shape {list(leaf.shape)}, found {list(value.shape)}{hint}")
    if not np.isfinite(value).all():
        raise ValueError(f"expected finite numbers in {name}, found {value[~np.isfinite(value)][0]}; correct it")
    return value.astype(leaf.dtype)


def _layer(path: Any) -> tuple[Any, ...]:
    """The indices in front of a path, which lead to its layer."""
    return tuple(key for i, key in enumerate(path) if all(hasattr(k, "idx") for k in path[: i + 1]))


def _json(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def walk(name: str, node: Any) -> None:
        numbers = isinstance(node, int | float) or (isinstance(node, list) and not any(map(_is_dict, node)))
        if numbers:
            try:
                found[name] = np.array(node, float)
            except (ValueError, TypeError):
                raise ValueError(f"expected numbers in rows of one length in {name or 'it'}, found others") from None
            return
        if not isinstance(node, dict | list):
            raise ValueError(f"expected numbers in {name or 'it'}, found {node!r}")
        for key, part in node.items() if isinstance(node, dict) else enumerate(node, 1):
            walk(f"{name}.{key}" if name else f"{key}", part)

    try:
        walk("", json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, found something else in line {error.lineno} ({error.msg})") from error
    return found


def _is_dict(node: Any) -> bool:
    return isinstance(node, dict)


def _text(path: Path) -> dict[str, np.ndarray]:
    rows: dict[str, list[list[float]]] = {}
    for n, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        name, *cells = (cell.strip() for cell in line.partition("#")[0].replace(";", ",").split(","))
        if not name and not any(cells):
            continue
        numbers = rows.setdefault(name, [])
        numbers.append([])
        for cell in filter(None, cells):
            try:
                numbers[-1].append(float(cell))
            except ValueError:
                raise ValueError(f"expected a number, found {cell!r} in line {n}; write one, with a point") from None
    for name, numbers in rows.items():
        if len({len(row) for row in numbers}) > 1:
            raise ValueError(f"expected rows of one length in {name}, found {[len(row) for row in numbers]} numbers")
    return {name: np.array(numbers) for name, numbers in rows.items()}
