"""How a kernel or a window is written down, in one, two and three dimensions, and what it meets in an input."""

from __future__ import annotations

import contextlib
import operator
import re
from typing import Any

from jbp.arguments import as_count
from jbp.layer import Layer, Shape
from jbp.pairs import Geometry

Sizes = int | tuple[int, ...]
"""One number for every dimension of space, or one for each."""
Padding = str | tuple[tuple[int, int], ...]
"""What is put around: "same", "valid", or (low, high) of each dimension."""


def as_sizes(value: Any, what: str) -> Sizes:
    """A positive number, or 1 to 3 of them in a tuple.

    Raises:
        ValueError: if it is neither.
    """
    if not isinstance(value, tuple | list):
        return as_count(value, what)
    if not 1 <= len(value) <= 3:
        raise ValueError(f"{what} must be one number, or 1 to 3 in a tuple, but is {value!r}")
    return tuple(as_count(part, what) for part in value)


def as_padding(value: Any, what: str) -> Padding:
    """ "same", "valid" or (low, high) for each of 1 to 3 dimensions.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(value, str) and value in ("same", "valid"):
        return value
    found = ()
    if isinstance(value, tuple | list):
        with contextlib.suppress(TypeError, ValueError):
            found = tuple((operator.index(low), operator.index(high)) for low, high in value)
    if not 1 <= len(found) <= 3 or any(side < 0 for pair in found for side in pair):
        raise ValueError(f"{what} must be 'same', 'valid' or ((low, high), …), but is {value!r}")
    return found


def check_dims(layer: Layer, *values: Any) -> None:
    """Refuse sizes that are of different numbers of dimensions.

    Raises:
        ValueError: saying which lengths came.
    """
    lengths = {len(value) for value in values if isinstance(value, tuple)}
    if len(lengths) > 1:
        raise ValueError(f"{layer!r} is given {sorted(lengths)} dimensions: all of its sizes must have as many")


def dims_of(*values: Any) -> int | None:
    """Of how many dimensions sizes are; None if each is one number for all."""
    return next((len(value) for value in values if isinstance(value, tuple)), None)


def parts_of(layer: Layer, shape: Shape, *values: Any) -> tuple[Shape, Shape, int]:
    """Images, space and channels of an input's shape: what is given for each dimension says how many are space, and
    axes in front are then images of their own; with one number for all, every axis but the last is space.

    Raises:
        ValueError: if the input has not as many axes.
    """
    given = dims_of(*values)
    dims = len(shape) - 1 if given is None else given
    if len(shape) <= dims or not 1 <= dims <= 3:
        axes = "1 to 3 axes of space" if given is None else f"{given} {'axis' if given == 1 else 'axes'} of space"
        missing = len(shape) == dims if given else len(shape) < 2
        raise ValueError(
            f"{layer!r} needs an input with {axes} and one of channels, but one example has shape {shape}"
            + (f": put jbp.Channel() in front (channel, in a line of layers), which makes it {(*shape, 1)}" * missing)
        )
    return shape[: -dims - 1], shape[-dims - 1 : -1], shape[-1]


def per_axis(value: Sizes, dims: int) -> Shape:
    """One number for each dimension."""
    return value if isinstance(value, tuple) else (value,) * dims


def geometry_of(
    layer: Layer, space: Shape, kernel: Sizes, stride: Sizes, padding: Padding, dilation: Sizes = 1, groups: int = 1
) -> Geometry:
    """How a kernel, or a window, slides over a space.

    Raises:
        ValueError: if it is larger than the padded space.
    """
    sizes, strides, dilations = (per_axis(value, len(space)) for value in (kernel, stride, dilation))
    sides = [(0, 0)] * len(space) if isinstance(padding, str) else list(padding)
    if padding == "same":
        for axis, (s, k, step, spread) in enumerate(zip(space, sizes, strides, dilations, strict=True)):
            missing = max((-(-s // step) - 1) * step + (k - 1) * spread + 1 - s, 0)
            sides[axis] = (missing // 2, missing - missing // 2)
    geometry = Geometry(sizes, strides, tuple(sides), dilations, groups)
    if min(geometry.sites(space)) < 1:
        padded = tuple(s + low + high for s, (low, high) in zip(space, sides, strict=True))
        raise ValueError(f"{layer!r} needs a space of at least {geometry.span}, but has {padded} with its padding")
    return geometry


# ── In a line of text ────────────────────────────────────────────────────────────────────────────────────────────────


def worded(value: Sizes) -> str:
    """Sizes in a word: 3, 3x5, and 3x for one in a tuple."""
    if not isinstance(value, tuple):
        return str(value)
    return f"{value[0]}x" if len(value) == 1 else "x".join(map(str, value))


def sizes_in(text: str) -> Sizes | None:
    """What `worded` wrote; None if it is no such text."""
    if not re.fullmatch(r"\d+|\d+x|\d+(x\d+){1,2}", text):
        return None
    sizes = tuple(int(part) for part in text.split("x") if part)
    return sizes if "x" in text else sizes[0]


def fields_in(word: str, needed: tuple[str, ...], letters: dict[str, str], paddings: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a layer in a word such as conv:32:5:s2:valid: after its name the sizes of those `needed`, then in
    any order sizes behind one of the `letters`, {letter: field}, and a padding.

    Raises:
        ValueError: saying which part cannot be read, and what could be.
    """
    name, *parts = word.split(":")
    found: dict[str, Any] = {}
    form, usual = ":".join((name, *map(str.upper, needed))), ("32", "5")[-len(needed) :]
    for field in needed:
        text = parts.pop(0) if parts else ""
        found[field] = sizes_in(text)
        if found[field] is None:
            raise ValueError(
                f"net: {name} needs {form}, a size being 3 or 3x5, got {word!r}, as in {name}:{':'.join(usual)}"
            )
    for part in parts:
        field = "padding" if part in paddings else letters.get(part[:1], "")
        value = part if field == "padding" else sizes_in(part[1:])
        if not field or value is None or field in found:
            known = [*(f"{letter}2 ({field})" for letter, field in letters.items()), *paddings]
            what = "is one too many" if field in found else "cannot be read"
            raise ValueError(f"net: {part!r} in {word!r} {what}: behind {form} there may be {', '.join(known)}")
        found[field] = value
    return found
