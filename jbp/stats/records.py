"""What to watch in training: how large h and δ are, layer by layer, and which units are dead or saturated."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbp.pairs import Outer, Pair, Scale, Shift, Stack
from jbp.stats._paths import leaves


class Record(NamedTuple):
    """Of one parameter; [l] instead of [] under a `repeat`. NaN where the parameter has no h (a bias)."""

    h: Float[Array, "*l"]
    """Root mean square over examples, uses and units of what came in."""
    delta: Float[Array, "*l"]
    """Root mean square of δ, of one example's error."""
    dead: Float[Array, "*l"]
    """The share of units of h that are 0 for every example of the batch."""
    saturated: Float[Array, "*l"]
    """The share of entries of h with |h| ≥ 0.99, where tanh and (at its upper end) sigmoid hardly respond."""


def records(pairs: Any) -> dict[str, Record]:
    """A `Record` for each parameter, by dotted path. A weight's h is the output of the layer below, where units live.

    Raises:
        ValueError: if these are not the pairs of one backward pass, or the batch is empty.
        NotImplementedError: below a layer that couples examples.
    """
    return {path: _record(pair) for path, pair in leaves(pairs).items()}


def _record(pair: Pair) -> Record:
    match pair:
        case Stack():
            return jax.vmap(_record)(pair.pair)
        case Outer() | Scale():
            h = pair.h
            dead = (h == 0).all((0, 1)).mean(dtype=h.dtype)
            return Record(_rms(h), _rms(pair.delta), dead, (jnp.abs(h) >= 0.99).mean(dtype=h.dtype))
        case Shift():
            nothing = jnp.full((), jnp.nan, pair.delta.dtype)
            return Record(nothing, _rms(pair.delta), nothing, nothing)
    raise NotImplementedError(f"there is no record of a {type(pair).__name__}")


def _rms(a: Array) -> Array:
    return jnp.sqrt(jnp.square(a).mean())
