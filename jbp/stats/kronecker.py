"""Kronecker factors: E[h hᵀ] and E[δ δᵀ], the two halves of K-FAC's approximation A ⊗ G of a weight's curvature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float
from jbp.meshes import placed, whole
from jbp.pairs import Outer, Pair, Pairs, Scale, Shift, Sum, Weights, silence, weigh
from jbp.stats._rows import in_rows
from jbp.stats.trees import map_pairs

Sharing = Literal["expand", "reduce"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Factors:
    """A [i, i] and G [o, o] of a parameter of size i·o, with an axis l in front for a stack; A ⊗ G is the curvature."""

    a: Float[Array, "*l i i"]
    g: Float[Array, "*l o o"]


@placed(whole)
def kronecker(pairs: Pairs | Pair, sharing: Sharing = "expand", weights: Weights = None) -> Any:
    """The `Factors` of every parameter, in the tree of the parameters: A from what came in, G from the δ.

    A weight used once in an example: A = 1/N Σₙ h hᵀ, G = 1/N Σₙ δ δᵀ. Used T times: "expand" takes each use for an
    example of its own, A = 1/(NT) Σₙₜ h hᵀ, G = 1/N Σₙₜ δ δᵀ; "reduce" takes the uses together, with the mean of h
    over t and the sum of δ. A parameter that is added has A = [[1]]; a gain has it too, with h∘δ in the place of δ. One
    whose uses differ in kind has a tuple, the `Factors` of each kind's uses: there are no cross terms between kinds, as
    between uses under "expand", and Σ A ⊗ G is the curvature.

    With `weights` [n] every 1/N Σₙ is Σₙ wₙ, not renormalised, and [[1]] is [[Σ wₙ]]: let them add up to 1, or their
    sum is in both factors. A row of weight 0 takes no part whatever it holds.

    Which curvature they approximate the δ decides: see `jbp.curvature.kronecker_factors`.

    Raises:
        ValueError: for another `sharing`, weights that do not fit, or pairs that are not of one backward pass.
        NotImplementedError: below a layer that couples examples.

    Source: Martens, Grosse 2015, arXiv:1503.05671; expand and reduce: Eschenhagen et al. 2023, arXiv:2311.00636.
    """
    if sharing not in ("expand", "reduce"):
        raise ValueError(f"sharing must be 'expand' or 'reduce', but is {sharing!r}")
    return map_pairs(lambda pair: pair.over_stack(lambda pair: factors(pair, sharing, weights)), pairs, weights)


@singledispatch
def factors(pair: Pair, sharing: Sharing, weights: Weights = None) -> Any:
    """A and G of one parameter, of a pair that is no stack; for a `Sum` of each member."""
    return factors(in_rows(pair), sharing, weights)


@factors.register
def _(pair: Outer, sharing: Sharing, weights: Weights = None) -> Factors:
    h, delta = pair.h, pair.delta
    if sharing == "reduce":
        h, delta = h.mean(1, keepdims=True), delta.sum(1, keepdims=True)
    return Factors(_moment(h, weights) / h.shape[1], _moment(delta, weights))


@factors.register
def _(pair: Shift, sharing: Sharing, weights: Weights = None) -> Factors:
    delta = pair.delta if sharing == "expand" else pair.delta.sum(1, keepdims=True)
    once = jnp.ones((pair.batch, 1, 1), delta.dtype)
    return Factors(
        jnp.ones((1, 1), delta.dtype) if weights is None else _moment(once, weights), _moment(delta, weights)
    )


@factors.register
def _(pair: Scale, sharing: Sharing, weights: Weights = None) -> Factors:
    return factors(Shift(pair.h * pair.delta, pair.shape), sharing, weights)


@factors.register
def _(pair: Sum, sharing: Sharing, weights: Weights = None) -> tuple[Factors, ...]:
    return tuple(factors(member, sharing, weights) for member in pair.pairs)


def _moment(a: Float[Array, "n t i"], weights: Weights) -> Float[Array, "i i"]:
    """Σₙₜ wₙ a[n,t] a[n,t]ᵀ; None means wₙ = 1/N. A row of weight 0 is silenced on both sides: 0·NaN is NaN."""
    rows = a.reshape(-1, a.shape[-1])
    if weights is None:
        return rows.T @ rows / len(a)
    left, right = (part.reshape(rows.shape) for part in (weigh(weights, a), silence(weights, a)))
    return left.T @ right
