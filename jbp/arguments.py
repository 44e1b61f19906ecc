"""What jbp accepts from whoever calls it, and how it says what is wrong: every refusal that several places make.

Nothing of jbp is imported here, so that everything may import it; classes to look for are handed in.
"""

from __future__ import annotations

import difflib
import math
import operator
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

Shape = tuple[int, ...]


def as_count(value: Any, what: str) -> int:
    """`value` as an int of at least 1.

    Raises:
        ValueError: naming `what`, if it is not one.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number of at least 1, but is {value!r}")
    return count


def as_number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a finite float in [low, high).

    Raises:
        ValueError: naming `what`, if it is not one.
    """
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and low <= number < high):
        span = f" in [{low:g}, {high:g})" if (low, high) != (-math.inf, math.inf) else ""
        raise ValueError(f"{what} must be a finite number{span}, but is {value!r}")
    return number


def as_shape(shape: Any) -> Shape:
    """`shape` as a tuple of ints: the shape of one example, without the batch axis."""
    try:
        entries = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        result = tuple(operator.index(entry) for entry in entries)
    except TypeError:
        result = (-1,)
    if any(entry < 1 for entry in result):
        raise ValueError(f"the shape of one example must be a tuple of positive whole numbers, but is {shape!r}")
    return result


def same_shape(layer: Any, delta: Any, shape: Shape) -> None:
    """Refuse a δ that has not the shape of the output it belongs to."""
    if delta.shape != shape:
        raise ValueError(f"{layer!r} got a δ of shape {delta.shape} for an output of shape {shape}")


def check_hashable(layer: Any) -> None:
    """Refuse a layer under which no compiled program could be cached."""
    try:
        hash(layer)
    except TypeError as error:
        name = type(layer).__name__
        raise ValueError(f"{name} cannot be hashed: make it a frozen dataclass without array or list fields") from error


def no_params(layer: Any, params: Any) -> None:
    """Refuse parameters for a layer that has none."""
    if params != ():
        raise ValueError(f"{layer!r} has no parameters and takes (), but got {leaf_shapes(params)}")


def leaf_shapes(tree: Any) -> Any:
    """The shapes in a tree of arrays, for messages."""
    return jax.tree.map(lambda leaf: tuple(getattr(leaf, "shape", ())), tree)


def check_weights(weights: Any, n: int, least: float = -math.inf) -> None:
    """Refuse example weights that are not one finite number ≥ `least` for each of the n examples; traced ones are not
    read."""
    if weights is not None and (not hasattr(weights, "shape") or weights.shape != (n,)):
        found = f"shape {weights.shape}" if hasattr(weights, "shape") else f"type {type(weights).__name__}"
        raise ValueError(f"weights must be an array of one number for each of the {n} examples, but have {found}")
    if weights is None or isinstance(weights, Tracer):
        return
    sound = np.isfinite(weights) & (np.asarray(weights) >= least)
    if not sound.all():
        bad = np.flatnonzero(~sound)
        wanted = "finite" if least == -math.inf else f"finite and at least {least:g}"
        raise ValueError(
            f"weights must be {wanted}, but are {weights[bad[0]]} at {bad.tolist()}: take 0 for a row to leave out"
        )


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of the known names, or nothing if none is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def listed(names: Iterable[object], limit: int = 20) -> str:
    """The names with commas between; of a long list the first ones and how many there are."""
    names = [str(name) for name in names]
    return ", ".join(names) if len(names) <= limit else f"{', '.join(names[:limit])}, … ({len(names)} in all)"


def existing_file(path: str | Path) -> Path:
    """The path, if there is a file with something in it.

    Raises: ValueError if there is none, or it is a folder, empty, or cannot be looked at.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(f"{path}: expected a file, found a folder; give the path of the file in it")
        if not path.exists():
            raise ValueError(f"{path}: expected a file, found nothing there; check the path")
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: expected data, found an empty file; make or fetch it again")
    except OSError as error:
        raise cannot_read(path, error) from error
    return path


def cannot_read(path: Path, error: OSError) -> ValueError:
    """The ValueError for a file the operating system does not let us read."""
    return ValueError(f"{path}: expected a readable file, but {error.strerror or error}; check its permissions")


def renamed(old: str, new: str) -> None:
    """Warn that a name has changed; the caller then answers under the old one, for this version."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)
