"""Kronecker factors: E[h hᵀ] and E[δ δᵀ], the two halves of K-FAC's approximation A ⊗ G of a weight's curvature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array, Float

from jbp.pairs import Outer, Pair, Scale, Shift, Stack
from jbp.stats._paths import map_pairs

Sharing = Literal["expand", "reduce"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Factors:
    """A [i, i] and G [o, o] of a parameter of size i·o, with an axis l in front for a stack; A ⊗ G is the curvature."""

    a: Float[Array, "*l i i"]
    g: Float[Array, "*l o o"]


def kronecker(pairs: Any, sharing: Sharing = "expand") -> Any:
    """The `Factors` of every parameter, in the tree of the parameters: A from what came in, G from the δ.

    A weight used once in an example: A = 1/N Σₙ h hᵀ, G = 1/N Σₙ δ δᵀ. Used T times: "expand" takes each use for an
    example of its own, A = 1/(NT) Σₙₜ h hᵀ, G = 1/N Σₙₜ δ δᵀ; "reduce" takes the uses together, with the mean of h over
    t and the sum of δ. A parameter that is added has A = [[1]]; a gain has it too, with h∘δ in the place of δ.

    Which curvature they approximate the δ decides: see `jbp.curvature.kronecker_factors`.

    Raises:
        ValueError: for another `sharing`, or pairs that are not of one backward pass.
        NotImplementedError: below a layer that couples examples, and for a parameter whose uses differ in kind.

    Source: Martens, Grosse 2015, arXiv:1503.05671; expand and reduce: Eschenhagen et al. 2023, arXiv:2311.00636.
    """
    if sharing not in ("expand", "reduce"):
        raise ValueError(f"sharing must be 'expand' or 'reduce', but is {sharing!r}")
    return map_pairs(lambda pair: factors(pair, sharing), pairs)


@singledispatch
def factors(pair: Pair, sharing: Sharing) -> Factors:
    """A and G of one parameter."""
    raise NotImplementedError(f"a parameter whose pair is a {type(pair).__name__} has no Kronecker factors")


@factors.register
def _(pair: Outer, sharing: Sharing) -> Factors:
    n, t = pair.h.shape[:2]
    if sharing == "reduce" and t > 1:
        return factors(Outer(pair.h.mean(1, keepdims=True), pair.delta.sum(1, keepdims=True), pair.shape), "expand")
    h, delta = (a.reshape(n * t, -1) for a in (pair.h, pair.delta))
    return Factors(h.T @ h / (n * t), delta.T @ delta / n)


@factors.register
def _(pair: Shift, sharing: Sharing) -> Factors:
    n = pair.delta.shape[0]
    delta = (pair.delta if sharing == "expand" else pair.delta.sum(1, keepdims=True)).reshape(-1, pair.delta.shape[-1])
    return Factors(jnp.ones((1, 1), delta.dtype), delta.T @ delta / n)


@factors.register
def _(pair: Scale, sharing: Sharing) -> Factors:
    return factors(Shift(pair.h * pair.delta, pair.shape), sharing)


@factors.register
def _(pair: Stack, sharing: Sharing) -> Factors:
    return jax.vmap(lambda inner: factors(inner, sharing))(pair.pair)
