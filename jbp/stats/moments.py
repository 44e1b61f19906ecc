"""Second moments of the gradients of the examples.

Of a weight used once in an example, (h ⊗ δ)² = h² ⊗ δ², so Σₙ wₙ gₙ² is one matrix product, as dear as the gradient.
Used T times, the examples' gradients are formed and squared one at a time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jbp.annotations import Array
from jbp.arguments import at_least_float32
from jbp.meshes import added_up, placed, whole
from jbp.pairs import (
    Lookup,
    Outer,
    Pair,
    Pairs,
    Scale,
    Shift,
    Sum,
    Weights,
    Window,
    as_floats,
    as_shares,
    of_size_one,
    weigh,
)
from jbp.stats._rows import in_rows
from jbp.stats.per_example import each
from jbp.stats.trees import batch, checked_leaves, map_pairs


@placed(whole)
def second_moment(pairs: Pairs | Pair, weights: Weights = None) -> Any:
    """1/N Σₙ gₙ², entry by entry, in the tree of the parameters; with `weights` [n] Σₙ wₙ gₙ², not renormalised.

    gₙ is the gradient of eₙ alone. A row of weight 0 takes no part, whatever its δ holds; for its h to be finite, give
    `jbp.value_and_pairs` the weights too.

    Raises:
        ValueError: if these are not the pairs of one backward pass, the batch is empty, or weights do not fit.
        NotImplementedError: below a layer that couples examples.
    """
    if weights is None:  # 1/N goes into δ², of which there is less than of the result
        weights = proportions(pairs, None)[0]
    return map_pairs(lambda pair: pair.over_stack(partial(squares, weights=weights)), pairs, weights)


def proportions(pairs: Any, weights: Weights) -> tuple[Array, Array]:
    """pₙ = wₙ/Σw, and 1 − Σ pₙ²."""
    n = batch(pairs)
    dtype = jnp.result_type(*(at_least_float32(pair.dtype) for pair in checked_leaves(pairs, weights).values()))
    if weights is None:
        return jnp.full(n, 1 / n, dtype), jnp.asarray(1 - 1 / n, dtype)
    if not isinstance(weights, Tracer) and as_floats(of_size_one(weights)).sum() == 0:
        raise ValueError("only the weights' proportions count here, so they must not add up to 0, but they do")
    p = as_shares(weights).astype(dtype)
    # Σₙ pₙ (1 − pₙ); next to 1 the largest leaves less than its rounding, so there it is what the others add up to.
    largest = jnp.arange(n) == jnp.abs(p).argmax()
    others = jnp.where(largest, jnp.zeros_like(p), p).sum()
    return p, (p * jnp.where(largest, others, 1 - p)).sum()


@singledispatch
def squares(pair: Pair, weights: Weights) -> Array:
    """Σₙ wₙ gₙ² of a pair that is no stack, in the parameter's shape; None means wₙ = 1."""
    return squares(in_rows(pair), weights)


@squares.register(Lookup)
@squares.register(Outer)
@squares.register(Window)
def _(pair: Any, weights: Weights) -> Array:
    once = squared(pair)
    return squared_one_by_one(pair, weights) if once is None else once.total(weights)


@squares.register(Sum)
def _(pair: Sum, weights: Weights) -> Array:
    return squared_one_by_one(pair, weights)


def squared_one_by_one(pair: Pair, weights: Weights) -> Array:
    """Σₙ wₙ gₙ², with each example's gradient formed in turn."""
    w = jnp.ones(pair.batch, pair.dtype) if weights is None else as_floats(weights).astype(pair.dtype)

    def one(row: tuple[Pair, Array]) -> Array:
        return weigh(row[1][None], jnp.square(alone(row[0]))[None])[0]

    return added_up(one, (pair, w))


def alone(row: Pair) -> Array:
    """The gradient of one example, of a pair whose arrays have no n."""
    return each(jax.tree.map(lambda a: a[None], row))[0]


@squares.register(Shift)
@squares.register(Scale)
def _(pair: Pair, weights: Weights) -> Array:
    return weigh(weights, jnp.square(each(pair))).sum(0)


@singledispatch
def squared(pair: Pair) -> Lookup | Outer | Shift | Scale | None:
    """The pair of which gₙ² is the gradient, with δ² in its `delta`; None where gₙ is a sum of several terms.

    Where each example uses the parameter once, (h ⊗ δ)² = h² ⊗ δ². h is the same for every δ, so of many backward
    passes only δ² need be added up: Σᵥ (h ⊗ δᵥ)² = h² ⊗ Σᵥ δᵥ².
    """
    blocks = in_rows(pair)
    return squared(blocks) if isinstance(blocks, Outer) else None


@squared.register
def _(pair: Outer) -> Outer | None:
    return replace(pair, h=jnp.square(pair.h), delta=jnp.square(pair.delta)) if pair.uses == 1 else None


@squared.register
def _(pair: Lookup) -> Lookup:
    once = pair.distinct()
    return replace(once, delta=jnp.square(once.delta))


@squared.register
def _(pair: Shift) -> Shift | None:
    return Shift(jnp.square(pair.delta), pair.shape) if pair.uses == 1 else None


@squared.register
def _(pair: Scale) -> Scale | None:
    return Scale(jnp.square(pair.h), jnp.square(pair.delta), pair.shape) if pair.uses == 1 else None


@squared.register
def _(pair: Window) -> Any:
    return squared(in_rows(pair)) if pair.uses == 1 else None


@squared.register
def _(pair: Sum) -> None:
    return None
