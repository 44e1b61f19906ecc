"""Masks [n, t], True where a position of an example is real: who is told of one, and what padding may hold."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbp.annotations import Array
from jbp.layer import Layer

__all__ = ["check_positions", "counted", "mask_at", "real_alone", "tokens"]


def __dir__() -> list[str]:
    return __all__


def tokens(mask: Array) -> Array:
    """How many positions of each example are real [n], as floats."""
    return mask.reshape(len(mask), -1).sum(1, dtype=jnp.zeros(()).dtype)


def real_alone(mask: Any, x: Any) -> Any:
    """x with zeros at the positions that are not real, by selection: they may hold anything, NaN or a token that is
    none. Leaves of x without such positions stay."""
    return x if mask is None else jax.tree.map(partial(_real_alone, jnp.asarray(mask)), x)


def _real_alone(mask: Array, a: Any) -> Any:
    if jnp.shape(a)[: mask.ndim] != mask.shape:
        return a
    a = jnp.asarray(a)
    return jnp.where(mask.reshape(*mask.shape, *(1,) * (a.ndim - mask.ndim)), a, jnp.zeros_like(a))


def check_positions(layer: Layer, mask: Any, x: Any, y: Any) -> None:
    """Refuse a layer that is not told of the mask and makes of the positions of x [n, t, ...] others, or mixes them.

    Raises:
        ValueError: naming the layer.
    """
    if mask is None or layer.uses_mask or not hasattr(x, "ndim"):
        return
    shape = jnp.shape(mask)
    if x.ndim <= len(shape) or x.shape[: len(shape)] != shape:
        return
    if layer.mixes_positions or y.shape[: len(shape)] != shape:
        raise ValueError(
            f"{layer!r} is not told which positions of its input {x.shape[1:]} are real, and mixes them with others: "
            "pool over time with a layer that takes the mask, such as jbp.GlobalPool(), or cut each example to its "
            "length"
        )


def mask_at(net: Layer, output: Array, mask: Any) -> tuple[Any, ...]:
    """What the loss and the metrics are told of a mask [n, t]: the mask, if the outputs have its positions; nothing
    without one, or where the net has pooled over the positions.

    Raises:
        ValueError: if nothing would ever read the mask, or the outputs have other positions.
    """
    if mask is None:
        return ()
    if output.ndim == 2 and net.uses_mask:
        return ()
    if jnp.shape(mask) != output.shape[:-1]:
        raise ValueError(
            f"the mask has shape {jnp.shape(mask)}, but the outputs have positions {output.shape[:-1]}"
            + ("" if net.uses_mask else ", and no layer of the net reads it: pool over time with one that does")
        )
    return (mask,)


def counted(output: tuple[int, ...], weights: Any, mask: Any) -> Any:
    """Of a batch, which rows [n] or positions [n, *t] of the targets count; None: all of them."""
    counts = None if weights is None else np.asarray(weights) != 0
    if mask is None or np.shape(mask)[1:] != output[:-1]:
        return counts
    real = np.asarray(mask)
    return real if counts is None else real & np.expand_dims(counts, tuple(range(1, real.ndim)))
