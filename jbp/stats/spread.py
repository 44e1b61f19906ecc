"""How the gradients of the examples spread around their mean; the mean is taken away before anything is squared.

Σ pₙ gₙ² − ḡ² is a difference of squares, and wrong where the mean is much larger than the spread: where features have
an offset, a signal-to-noise ratio of 5.2 came out as −112. Of a weight used once in an example, with ' for what is left
when the mean is taken away, h = h̄ + h', δ = δ̄ + δ':

    gₙ − ḡ = h̄ ⊗ δ'ₙ + h'ₙ ⊗ δₙ − c,    c = Σ pₙ h'ₙ ⊗ δₙ,    ḡ = h̄ ⊗ δ̄ + c
    Σ pₙ (gₙ − ḡ)² = h̄² ⊗ Σ pₙ δ'ₙ² + 2 h̄ ∘ Σ pₙ h'ₙ ⊗ (δ'ₙ∘δₙ) + Σ pₙ h'ₙ² ⊗ δₙ² − c²

Three matrix products, one more than the difference of squares takes, and ḡ comes with them. To centre h alone in the
last two is enough: an offset of δ makes Σ pₙ h'² δ² large, and leaves c, the covariance of h and δ, as it is. The error
is about eps·(h̄² var δ + δ̄² var h + Σ pₙ h'ₙ² δ'ₙ²): the offsets stand in it as they do in the variance. Only where h'
and δ' follow one another in every example (h grows as δ falls; or both change sign together) is that more than eps
times the variance.

Over all entries, Σ pₙ ‖gₙ − ḡ‖² needs one product, c, as ‖ḡ‖² does: all else is inner products within an example, as
⟨h̄ ⊗ δ', h' ⊗ δ⟩ = ⟨h̄, h'⟩⟨δ', δ⟩. Used T times, each use has its own h̄ₜ and δ̄ₜ, and those are T × T Gram matrices.

Elsewhere gₙ − ḡ is formed and squared: of a weight used several times (a kernel, at positions, or shared by `tied`) one
example at a time, which costs what its second moment does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce, singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jbp.annotations import Array, Float
from jbp.meshes import added_up, placed, whole
from jbp.pairs import Lookup, Outer, Pair, Pairs, Scale, Shift, Sum, Weights, Window, silence, weigh
from jbp.stats._rows import in_rows
from jbp.stats.moments import alone, proportions, squares
from jbp.stats.norms import sum_of_squares
from jbp.stats.per_example import each
from jbp.stats.trees import batch, checked_leaves, layer_by_layer, leaves, map_pairs


@placed(whole)
def variance(pairs: Pairs | Pair, weights: Weights = None, centred: bool = True) -> Any:
    """Unbiased: 1/(N−1) Σₙ (gₙ − ḡ)², entry by entry.

    With `weights` [n] of any sum, only their proportions pₙ = wₙ/Σw count: Σ pₙ (gₙ − ḡ)²/(1 − Σ pₙ²), ḡ = Σ pₙ gₙ,
    which is unbiased too, and for weights of 0 and 1 the variance of those chosen. Not below 0, unless weights are.

    The means are taken away before anything is squared, so that features, or δ, may lie far from 0 beside their spread:
    see `jbp/stats/spread.py`, also for the error. With `centred=False` it is Σ pₙ gₙ² − ḡ², one matrix product less:
    the difference of two rounded numbers, off by at most (2N + 8)·eps·Σ pₙ gₙ²/(1 − Σ pₙ²), in practice a few eps.
    In float32 that is a hundredth of the variance where ḡ is a hundred of its deviations; beyond a thousand it may be
    anything, below 0 too.

    Raises:
        ValueError: with fewer than two examples (of weight not 0); as for `second_moment`. In compiled code weights
            cannot be read: there fewer than two that are not 0 make NaN.
    """
    p, rest = _of_two(pairs, weights)
    if centred:
        return map_pairs(lambda pair: layer_by_layer(_variance, pair, p) / rest, pairs)

    def cheap(pair: Pair) -> Array:
        return (squares(pair, p) - jnp.square(pair.total(p))) / rest

    return map_pairs(lambda pair: pair.over_stack(cheap), pairs)


@placed(whole)
def snr(pairs: Pairs | Pair, weights: Weights = None) -> Any:
    """The signal-to-noise ratio ḡ²/variance of one example's gradient, entry by entry; NaN where both are 0.

    Weights as for `variance`.

    Raises:
        ValueError: as for `variance`, with one example too (where `noise_scale`, a single number, is NaN).
    """
    p, rest = _of_two(pairs, weights)
    return map_pairs(lambda pair: layer_by_layer(_ratio, pair, p) * rest, pairs)


@placed(whole)
def noise_scale(pairs: Pairs | Pair, weights: Weights = None) -> Float[Array, ""]:
    """tr Σ/‖G‖²: the batch size at which the noise of the mean gradient is as large as the gradient itself.

    Both parts are corrected for the batch being small: tr Σ = 1/(N−1) Σ ‖gₙ − ḡ‖² and ‖G‖² = ‖ḡ‖² − tr Σ/N, each
    unbiased (their ratio is not). NaN where one example alone takes part (`variance` and `snr` raise); inf where ‖G‖²
    comes out at 0 or below, that is, where the batch cannot tell the gradient from noise. Weights as for `variance`.

    Raises:
        ValueError: if the weights add up to 0 (in compiled code NaN); as for `second_moment`.

    Source: McCandlish, Kaplan, Amodei 2018, arXiv:1812.06162, equation 2.9 and appendix A.1 (with batches of 1 and N).
    """
    return noise_over_signal(*noise_and_signal(pairs, weights))


def noise_over_signal(trace: Float[Array, ""], signal: Float[Array, ""]) -> Float[Array, ""]:
    """Of the two parts of `noise_scale`, or means of them: NaN where tr Σ is, inf where ‖G‖² is 0 or below."""
    ratio = trace / jnp.where(signal > 0, signal, jnp.ones_like(signal))
    return jnp.where(signal > 0, ratio, jnp.inf).astype(trace.dtype) + (trace - trace)


@placed(whole)
def noise_and_signal(pairs: Pairs | Pair, weights: Weights = None) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(tr Σ, ‖G‖²), the two unbiased parts of `noise_scale`: average them over several batches before dividing.

    Raises:
        ValueError: as `noise_scale`.
    """
    p, rest = proportions(pairs, weights)
    found = [layer_by_layer(scatter, pair, p) for pair in leaves(pairs).values()]
    spread, mean = (reduce(jnp.add, [part.sum() for part in parts]) for parts in zip(*found, strict=True))
    trace = spread / rest
    return trace, mean - (1 - rest) * trace


def _of_two(pairs: Any, weights: Weights) -> tuple[Array, Array]:
    """`proportions` of at least two examples."""
    n = batch(pairs)
    if weights is not None and not isinstance(weights, Tracer):
        checked_leaves(pairs, weights)
        n = int(np.count_nonzero(weights))
    if n < 2:
        raise ValueError(f"the variance of the gradient needs at least two examples, but {n or 'none'} takes part")
    return proportions(pairs, weights)


class Central(NamedTuple):
    """Of one parameter, in its shape."""

    mean: Array
    """ḡ = Σ pₙ gₙ."""
    variance: Array
    """Σ pₙ (gₙ − ḡ)²."""


# What is asked for alone, so that of a stack nothing else is kept.


def _variance(pair: Pair, p: Array) -> Array:
    return central(pair, p).variance


def _ratio(pair: Pair, p: Array) -> Array:
    mean, variance = central(pair, p)
    return jnp.square(mean) / variance


@singledispatch
def central(pair: Pair, p: Float[Array, " n"]) -> Central:
    """Mean and variance of a pair that is no stack, the examples in the proportions p."""
    return central(in_rows(pair), p)


@central.register
def _(pair: Outer, p: Array) -> Central:
    with _highest():
        if pair.uses > 1:
            return _one_by_one(pair, p)
        (h_mean, h), (delta_mean, moved) = ([a[..., 0, :] for a in _centred(b, p)] for b in (pair.h, pair.delta))
        delta = silence(p, pair.delta[:, 0])
        c = h.T @ weigh(p, delta)
        cross = h.T @ weigh(p, moved * delta)
        square = jnp.square(h).T @ weigh(p, jnp.square(delta))
    h_mean, spread = h_mean[:, None], weigh(p, jnp.square(moved)).sum(0)[None]
    found = jnp.square(h_mean) * spread + (2 * h_mean * cross + (square - jnp.square(c)))
    mean = h_mean * delta_mean[None] + c
    mean, found = (a.T if pair.transposed else a for a in (mean, _not_below_0(found, p)))
    return Central(mean.reshape(pair.shape), found.reshape(pair.shape))


@central.register(Sum)
@central.register(Window)
def _(pair: Pair, p: Array) -> Central:
    if pair.uses == 1:
        return central(in_rows(pair), p)
    with _highest():
        return _one_by_one(pair, p)


def _one_by_one(pair: Pair, p: Float[Array, " n"]) -> Central:
    """With gₙ formed one example at a time. The total is a rounded mean; what it lacks is added up with squares."""
    pair = _silenced(pair, p)
    near = pair.total(p)

    def one(row: tuple[Pair, Array]) -> tuple[Array, Array]:
        moved = alone(row[0]) - near
        first, second = (weigh(row[1][None], a[None])[0] for a in (moved, jnp.square(moved)))
        return first, second

    more, found = added_up(one, (pair, p))
    return Central(near + more, _not_below_0(found - jnp.square(more), p))


@central.register(Shift)
@central.register(Scale)
def _(pair: Pair, p: Array) -> Central:
    mean, moved = _centred(each(pair), p)
    return Central(mean, weigh(p, jnp.square(moved)).sum(0))


@central.register
def _(pair: Lookup, p: Array) -> Central:
    once = pair.distinct()
    index, n = once.index[..., 0], pair.batch
    first = jnp.concatenate([jnp.ones((n, 1), bool), index[:, 1:] != index[:, :-1]], 1)[..., None]
    read = jnp.zeros((n, pair.shape[0]), p.dtype).at[jnp.arange(n)[:, None], index].set(1)
    unread = weigh(p, 1 - read).sum(0)[:, None]  # each of them has a gradient of 0 there
    near = once.total(p)
    moved = silence(p, jnp.where(first, once.delta - near[index], jnp.zeros_like(once.delta)))
    more = replace(once, delta=moved).total(p) - unread * near
    found = replace(once, delta=jnp.square(moved)).total(p) + unread * jnp.square(near)
    return Central(near + more, _not_below_0(found - jnp.square(more), p))


@singledispatch
def scatter(pair: Pair, p: Float[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Σ pₙ ‖gₙ − ḡ‖² and ‖ḡ‖² of a pair that is no stack, the examples in the proportions p."""
    return scatter(in_rows(pair), p)


@scatter.register
def _(pair: Outer, p: Array) -> tuple[Array, Array]:
    t, i, o = *pair.h.shape[1:], pair.delta.shape[-1]
    with _highest():
        if t > 1 and 4 * t * (i + o) > i * o:
            return _formed(pair, p)
        (h_mean, h), (delta_mean, moved), delta = _centred(pair.h, p), _centred(pair.delta, p), silence(p, pair.delta)
        c = Outer(h, delta, (i, o)).total(p)  # as a matrix, whichever way round the weight is
        mean = h_mean.T @ delta_mean + c
        h_mean = h_mean[None]
        found = (
            _inner(h_mean, h_mean) * _inner(moved, moved)
            + 2 * (_inner(h, h_mean) * _inner(delta, moved))
            + _inner(h, h) * _inner(delta, delta)
        ).sum((1, 2))
    return _not_below_0(weigh(p, found).sum() - sum_of_squares(c), p), sum_of_squares(mean)


@scatter.register(Sum)
@scatter.register(Window)
def _(pair: Pair, p: Array) -> tuple[Array, Array]:
    if pair.uses == 1:
        return scatter(in_rows(pair), p)
    with _highest():
        return _formed(pair, p)


@scatter.register(Lookup)
@scatter.register(Shift)
@scatter.register(Scale)
def _(pair: Pair, p: Array) -> tuple[Array, Array]:
    mean, variance = central(pair, p)
    return variance.sum(), jnp.square(mean).sum()


def _formed(pair: Pair, p: Float[Array, " n"]) -> tuple[Array, Array]:
    """The same, with gₙ − ḡ formed one example at a time."""
    pair = _silenced(pair, p)
    mean = pair.total(p)

    def one(row: Pair) -> Array:
        return sum_of_squares(_matrix(alone(row) - mean))

    return weigh(p, lax.map(one, pair)).sum(), sum_of_squares(_matrix(mean))


def _matrix(g: Array) -> Float[Array, "i o"]:
    g = jnp.atleast_1d(g)  # a parameter may be one number
    return g.reshape(-1, g.shape[-1])


def _highest() -> Any:
    """Accelerators otherwise take 8 or 11 bits of what goes into a product, and these are differences."""
    return jax.default_matmul_precision("highest")


def _centred(a: Float[Array, "n ..."], p: Float[Array, " n"]) -> tuple[Float[Array, "..."], Float[Array, "n ..."]]:
    """Σ pₙ aₙ, and aₙ less that, with zeros in the rows of proportion 0. Twice, for the first mean is a rounded one."""
    mean, moved = jnp.zeros_like(a[0]), silence(p, a)
    for _ in range(2):
        more = weigh(p, moved).sum(0)
        mean, moved = mean + more, silence(p, moved - more[None])
    return mean, moved


def _silenced(pair: Pair, p: Float[Array, " n"]) -> Any:
    """The pair with zeros in the rows of proportion 0, in h too."""
    return jax.tree.map(lambda a: silence(p, a), pair)


def _inner(a: Float[Array, "n t i"], b: Float[Array, "n s i"]) -> Float[Array, "n t s"]:
    """⟨aₜ, bₛ⟩ in each example."""
    if a.shape[1] == 1:
        return (a * b).sum(2, keepdims=True)
    return jnp.matmul(a, jnp.swapaxes(b, 1, 2))


def _not_below_0(found: Array, p: Float[Array, " n"]) -> Array:
    """No less than 0, as rounding may make it, unless a proportion is; NaN stays."""
    return jnp.where((p < 0).any(), found, jnp.maximum(found, jnp.zeros_like(found)))
