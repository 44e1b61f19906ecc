"""Examples that look otherwise than the layer that first meets them takes them: warned of, not refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from jbp.arguments import warn_user
from jbp.layer import Layer, Shape

_LEAST = 8
"""Pixels of a side, from which on an axis is rather one of space than one of channels."""


@dataclass
class _Example:
    """One example, while a net is made for it."""

    shape: Shape
    warned: bool = False


_EXAMPLE: ContextVar[_Example | None] = ContextVar("example", default=None)


@contextmanager
def made_for(shape: Shape, again: bool = False) -> Iterator[None]:
    """A net is made for examples of this shape, inside; a net in a net is made for those of the outermost. Where it is
    made once more, `again`, whoever it is made for has been told."""
    if _EXAMPLE.get() is not None:
        yield
        return
    token = _EXAMPLE.set(_Example(shape, again))
    try:
        yield
    finally:
        _EXAMPLE.reset(token)


def warn_of_axes(layer: Layer, shape: Shape, dims: int | None) -> None:
    """Warn, once for a net, at the user's own line, of an example as it comes in (not of what other layers made of it)
    that looks like [channels, h, w], or like an image [h, w] of which a layer whose sizes say no `dims` would take one
    axis for channels."""
    example = _EXAMPLE.get() or _Example(shape)
    if example.warned or example.shape != shape:
        return
    words, (short, long) = "", (min(shape[1:], default=0), max(shape[1:], default=0))
    if len(shape) == 3 and dims != 1 and shape[0] in (1, 3) and short >= _LEAST and long <= 2 * short:
        words = (
            "looks like [channels, h, w], but is taken for [h, w, channels]: move the axis, x = numpy.moveaxis(x, 1, "
            f"-1), which makes it {(*shape[1:], shape[0])}"
        )
    if len(shape) == 2 and dims is None and shape[0] == shape[1] >= _LEAST:
        words = (
            f"looks like an image [h, w], but is taken for {shape[0]} places in a row of {shape[1]} channels each: put "
            "jbp.Channel() in front, or say that one dimension is meant, with a size in a tuple such as (3,)"
        )
    if words:
        example.warned = True
        warn_user(f"{layer!r}: an example of shape {shape} {words}")
