"""Kronecker factors: E[h hᵀ] and E[δ δᵀ], the two halves of K-FAC's approximation A ⊗ G of a weight's curvature."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial, singledispatch
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float
from jbp.meshes import placed, whole
from jbp.pairs import Lookup, Outer, Pair, Pairs, Scale, Shift, Sum, Weights, Window, silence, weigh
from jbp.stats._real import Real, check_real, real_uses
from jbp.stats._rows import in_rows
from jbp.stats.seen import mean_seen, seen_moment
from jbp.stats.trees import map_pairs

Sharing = Literal["expand", "reduce"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Factors:
    """A [i, i] and G [o, o] of a parameter of size i·o, with an axis l in front for a stack; A ⊗ G is the curvature.

    Of a kernel i is its places times its input channels. With g groups there is, after l, an axis g: the groups are
    kernels side by side, A [g, i, i] and G [g, o/g, o/g], and the curvature has a block A ⊗ G for each.

    Of a table that is read by index i is its rows, of which one example's use meets one: A is diagonal, and with
    `diagonal` it is held as that, [i]. `transposed`: the weight is [o, i], and its curvature G ⊗ A.
    """

    a: Float[Array, "*l i i"] | Float[Array, "*l i"]
    g: Float[Array, "*l o o"]
    diagonal: bool = field(default=False, metadata={"static": True})
    transposed: bool = field(default=False, metadata={"static": True})

    @property
    def whole(self) -> Factors:
        """The same with A as a matrix, if it is held as its diagonal."""
        if not self.diagonal:
            return self
        rows = jnp.arange(self.a.shape[-1])
        a = jnp.zeros((*self.a.shape, len(rows)), self.a.dtype).at[..., rows, rows].set(self.a)
        return replace(self, a=a, diagonal=False)

    def times(self, u: Float[Array, "*l i o"]) -> Float[Array, "*l i o"]:
        """(A ⊗ G) u = A u G, whichever way round the weight is."""
        left = jnp.expand_dims(self.a, -1) * u if self.diagonal else jnp.matmul(self.a, u)
        return jnp.matmul(left, self.g)


@placed(whole)
def kronecker(pairs: Pairs | Pair, sharing: Sharing = "expand", weights: Weights = None, mask: Real = None) -> Any:
    """The `Factors` of every parameter, in the tree of the parameters: A from what came in, G from the δ.

    Of a table read by index A is diagonal and held as its diagonal, 1/(NT) times how often each row was read; under
    "reduce", where an example reads several rows, it is whole.

    A weight used once in an example: A = 1/N Σₙ h hᵀ, G = 1/N Σₙ δ δᵀ. Used T times: "expand" takes each use for an
    example of its own, A = 1/(NT) Σₙₜ h hᵀ, G = 1/N Σₙₜ δ δᵀ; "reduce" takes the uses together, with the mean of h
    over t and the sum of δ. A parameter that is added has A = [[1]]; a gain has it too, with h∘δ in the place of δ. One
    whose uses differ in kind (a kernel's on images of two sizes too) has a tuple, the `Factors` of each kind's uses:
    there are no cross terms between kinds, as between uses under "expand", and Σ A ⊗ G is the curvature.

    Of a kernel h is what it sees, padding too, at each of its T sites in all images of the example, and i = k·i/groups.
    With groups A and G have an axis g in front: the curvature is then block-diagonal, A[g] ⊗ G[g] for the part of each
    group's own outputs. A is added up over some images at a time, so that windows are never all unfolded.

    With `weights` [n] every 1/N Σₙ is Σₙ wₙ, not renormalised, and [[1]] is [[Σ wₙ]]: let them add up to 1, or their
    sum is in both factors. A row of weight 0 takes no part whatever it holds. Of pairs that were made with a `mask`
    [n, t] hand the same mask in: T is then the number of an example's real positions, and A, like G, is that of the
    examples cut to their lengths. Without it A counts what stands at padding.

    Which curvature they approximate the δ decides: see `jbp.curvature.kronecker_factors`.

    Raises:
        ValueError: for another `sharing`, weights or a mask that do not fit, or pairs that are not of one backward
            pass.
        NotImplementedError: below a layer that couples examples; with a mask, of a parameter whose uses may be
            positions or not.

    Source: Martens, Grosse 2015, arXiv:1503.05671; expand and reduce: Eschenhagen et al. 2023, arXiv:2311.00636.
    """
    if sharing not in ("expand", "reduce"):
        raise ValueError(f"sharing must be 'expand' or 'reduce', but is {sharing!r}")
    mask = check_real(pairs, mask, weights)
    return map_pairs(lambda pair: pair.over_stack(lambda pair: factors(pair, sharing, weights, mask)), pairs, weights)


@singledispatch
def factors(pair: Pair, sharing: Sharing, weights: Weights = None, mask: Real = None) -> Any:
    """A and G of one parameter, of a pair that is no stack; for a `Sum` of each member."""
    return factors(in_rows(pair), sharing, weights, mask)


@factors.register
def _(pair: Outer, sharing: Sharing, weights: Weights = None, mask: Real = None) -> Factors:
    h, delta, shares = pair.h, pair.delta, real_uses(pair, mask)
    if sharing == "reduce":
        h = h.mean(1, keepdims=True) if shares is None else jnp.einsum("nt,nti->ni", shares, h)[:, None]
        delta, shares = delta.sum(1, keepdims=True), None
    a = _moment(h, weights) / h.shape[1] if shares is None else _moment(*_one_by_one(h, shares, weights))
    return Factors(a, _moment(delta, weights), transposed=pair.transposed)


@factors.register
def _(pair: Lookup, sharing: Sharing, weights: Weights = None, mask: Real = None) -> Factors:
    if sharing == "reduce" and pair.uses > 1:  # the mean of h over t has as many entries as an example reads rows
        return factors(in_rows(pair), sharing, weights, mask)
    shares, index, counted = real_uses(pair, mask), pair.index, weights
    if shares is not None:
        index, counted = _one_by_one(index, shares, weights)
    once = Lookup(index, jnp.ones((*index.shape[:2], 1), pair.dtype), (pair.shape[0], 1)).total(counted)[:, 0]
    if shares is None:
        once = once / (pair.uses * (pair.batch if weights is None else 1))
    return Factors(once, _moment(pair.known.delta, weights), diagonal=True)


@factors.register
def _(pair: Shift, sharing: Sharing, weights: Weights = None, mask: Real = None) -> Factors:
    delta = pair.delta if sharing == "expand" else pair.delta.sum(1, keepdims=True)
    once = jnp.ones((pair.batch, 1, 1), delta.dtype)
    return Factors(
        jnp.ones((1, 1), delta.dtype) if weights is None else _moment(once, weights), _moment(delta, weights)
    )


@factors.register
def _(pair: Scale, sharing: Sharing, weights: Weights = None, mask: Real = None) -> Factors:
    return factors(Shift(pair.h * pair.delta, pair.shape), sharing, weights)


@factors.register
def _(pair: Sum, sharing: Sharing, weights: Weights = None, mask: Real = None) -> tuple[Factors, ...]:
    return tuple(factors(member, sharing, weights, mask) for member in pair.pairs)


@factors.register
def _(pair: Window, sharing: Sharing, weights: Weights = None, mask: Real = None) -> Factors:
    real_uses(pair, mask)
    g, n, o = pair.geometry.groups, pair.batch, pair.delta.shape[-1]
    delta = jnp.moveaxis(pair.delta.reshape(n, -1, g, o // g), 2, 0)
    if sharing == "expand":  # in turn if it is of a stack, so that windows of one layer are there at once
        a = sequential_vmap(seen_moment)(pair, weights)
    else:
        a, delta = jax.vmap(partial(_moment, weights=weights))(mean_seen(pair)), delta.sum(2, keepdims=True)
    found = Factors(a, jax.vmap(partial(_moment, weights=weights))(delta))
    return found if g > 1 else Factors(found.a[0], found.g[0])


def _one_by_one(
    h: Float[Array, "n t i"], shares: Float[Array, "n t"], weights: Weights
) -> tuple[Float[Array, "m 1 i"], Float[Array, " m"]]:
    """Each use as an example of its own, and how much it counts: wₙ times its share of its example."""
    counted = weigh(jnp.full(len(h), 1 / len(h), shares.dtype) if weights is None else weights, shares)
    return h.reshape(-1, 1, h.shape[-1]), counted.reshape(-1)


def _moment(a: Float[Array, "n t i"], weights: Weights) -> Float[Array, "i i"]:
    """Σₙₜ wₙ a[n,t] a[n,t]ᵀ; None means wₙ = 1/N. A row of weight 0 is silenced on both sides: 0·NaN is NaN."""
    rows = a.reshape(-1, a.shape[-1])
    if weights is None:
        return rows.T @ rows / len(a)
    left, right = (part.reshape(rows.shape) for part in (weigh(weights, a), silence(weights, a)))
    return left.T @ right
