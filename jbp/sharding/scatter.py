"""Sums over devices of which each gets its part: many arrays by one collective.

XLA's CPU compiler does not combine reduce-scatters as it does all-reduces, so arrays go as the columns of one buffer,
whose row d is what device d gets. What every device is to have whole stands in all rows, while that is little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array


def summed_in_parts(arrays: Sequence[Array], over: Sequence[int | None], axis: str, d: int) -> list[Array]:
    """Inside `jax.shard_map`: Σ over the d devices of an axis of each array; of one with an axis in `over` each device
    gets its d-th part along it, the others whole."""
    found: list[Any] = [None] * len(arrays)
    for dtype in dict.fromkeys(a.dtype for a in arrays):
        own = [i for i, a in enumerate(arrays) if a.dtype == dtype]
        cut = [i for i in own if over[i] is not None]
        rest = [i for i in own if over[i] is None]
        if d * sum(arrays[i].size for i in rest) > sum(arrays[i].size for i in cut):
            for i, a in zip(rest, lax.psum([arrays[i] for i in rest], axis), strict=True):
                found[i] = a
            rest = []
        order = [*cut, *rest]
        if order:
            columns = [_columns(arrays[i], over[i], d) for i in order]
            row = lax.psum_scatter(jnp.concatenate(columns, 1), axis, scatter_dimension=0)
            start = 0
            for i, part in zip(order, columns, strict=True):
                found[i] = _part(row[start : start + part.shape[1]], arrays[i].shape, over[i], d)
                start += part.shape[1]
    return found


def _columns(a: Array, over: int | None, d: int) -> Array:
    """[d, size of a part], or with the whole array in every row."""
    if over is None:
        return jnp.broadcast_to(a.reshape(1, -1), (d, a.size))
    return jnp.moveaxis(a, over, 0).reshape(d, -1)


def _part(row: Array, shape: tuple[int, ...], over: int | None, d: int) -> Array:
    """What stands in a row, in the form of an array of this shape, or of a d-th of it."""
    if over is None:
        return row.reshape(shape)
    rest = [n for i, n in enumerate(shape) if i != over]
    assert math.prod(rest) * (shape[over] // d) == row.size
    return jnp.moveaxis(row.reshape(shape[over] // d, *rest), 0, over)
