"""Second moments: how the gradients of the examples spread around their mean.

Of a weight used once in an example, (h ⊗ δ)² = h² ⊗ δ², so Σₙ wₙ gₙ² is one matrix product, as dear as the gradient.
Used T times, the examples' gradients are formed and squared one at a time.
"""

from __future__ import annotations

from functools import partial, reduce, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from jbp.pairs import Outer, Pair, Scale, Shift, Sum, Weights, contract, weigh
from jbp.stats._rows import in_rows
from jbp.stats.norms import square
from jbp.stats.per_example import each
from jbp.stats.trees import batch, leaves, map_pairs, over_stacks


def second_moment(pairs: Any, weights: Weights = None) -> Any:
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


def variance(pairs: Any, weights: Weights = None) -> Any:
    """Unbiased: N/(N−1)·(1/N Σₙ gₙ² − ḡ²) = 1/(N−1) Σₙ (gₙ − ḡ)², entry by entry.

    With `weights` [n] of any sum, only their proportions pₙ = wₙ/Σw count: (Σ pₙ gₙ² − ḡ²)/(1 − Σ pₙ²), ḡ = Σ pₙ gₙ,
    which is unbiased too, and for weights of 0 and 1 the variance of those chosen. It is the difference of two rounded
    numbers: where the gradients hardly differ it may come out a little below 0.

    Raises:
        ValueError: with fewer than two examples (of weight not 0); as for `second_moment`. In compiled code weights
            cannot be read: there fewer than two that are not 0 make NaN.
    """
    n = batch(pairs) if weights is None or isinstance(weights, Tracer) else _taking_part(pairs, weights)
    if n < 2:
        raise ValueError(f"the variance of the gradient needs at least two examples, but {n or 'none'} takes part")
    p, concentration = proportions(pairs, weights)
    mean, moment = contract(pairs, p), second_moment(pairs, p)
    return jax.tree.map(lambda m, g: (m - jnp.square(g)) / (1 - concentration).astype(m.dtype), moment, mean)


def snr(pairs: Any, weights: Weights = None) -> Any:
    """The signal-to-noise ratio ḡ²/variance of one example's gradient, entry by entry; NaN where both are 0.

    Weights as for `variance`.

    Raises:
        ValueError: as for `variance`, with one example too (where `noise_scale`, a single number, is NaN).
    """
    p, _ = proportions(pairs, weights)
    return jax.tree.map(lambda g, v: jnp.square(g) / v, contract(pairs, p), variance(pairs, weights))


def noise_scale(pairs: Any, weights: Weights = None) -> Float[Array, ""]:
    """tr Σ/‖G‖²: the batch size at which the noise of the mean gradient is as large as the gradient itself.

    Both parts are corrected for the batch being small: tr Σ = N/(N−1)·(1/N Σ ‖gₙ‖² − ‖ḡ‖²) and ‖G‖² = ‖ḡ‖² − tr Σ/N,
    each unbiased (their ratio is not). NaN where one example alone takes part (`variance` and `snr` raise); inf where
    ‖G‖² comes out at 0 or below, that is, where the batch cannot tell the gradient from noise. Weights as for
    `variance`.

    Raises:
        ValueError: if the weights add up to 0 (in compiled code NaN); as for `second_moment`.

    Source: McCandlish, Kaplan, Amodei 2018, arXiv:1812.06162, equation 2.9 and appendix A.1 (with batches of 1 and N).
    """
    trace, signal = noise_and_signal(pairs, weights)
    return jnp.where(signal > 0, trace / jnp.where(signal > 0, signal, jnp.ones_like(signal)), jnp.inf).astype(
        trace.dtype
    ) + (trace - trace)  # NaN for one example


def noise_and_signal(pairs: Any, weights: Weights = None) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(tr Σ, ‖G‖²), the two unbiased parts of `noise_scale`: average them over several batches before dividing.

    Raises:
        ValueError: as `noise_scale`.
    """
    p, concentration = proportions(pairs, weights)
    squared = reduce(jnp.add, [over_stacks(square(pair)) for pair in leaves(pairs).values()])
    mean = reduce(jnp.add, [jnp.square(leaf).sum() for leaf in jax.tree.leaves(contract(pairs, p))])
    concentration = concentration.astype(squared.dtype)
    trace = (weigh(p, squared).sum() - mean) / (1 - concentration)
    return trace, mean - concentration * trace


def _taking_part(pairs: Any, weights: Array) -> int:
    leaves(pairs, weights)
    return int(jnp.count_nonzero(weights))


def proportions(pairs: Any, weights: Weights) -> tuple[Array, Array]:
    """pₙ = wₙ/Σw, and Σ pₙ²."""
    n = batch(pairs)
    map_pairs(lambda pair: None, pairs, weights)
    dtype = jnp.result_type(*(pair.dtype for pair in leaves(pairs).values()))
    if weights is not None and not isinstance(weights, Tracer) and weights.sum() == 0:
        raise ValueError("only the weights' proportions count here, so they must not add up to 0, but they do")
    p = jnp.full(n, 1 / n, dtype) if weights is None else (weights / weights.sum()).astype(dtype)
    return p, jnp.square(p).sum()


@singledispatch
def squares(pair: Pair, weights: Weights) -> Array:
    """Σₙ wₙ gₙ² of a pair that is no stack, in the parameter's shape; None means wₙ = 1."""
    return squares(in_rows(pair), weights)


@squares.register
def _(pair: Outer, weights: Weights) -> Array:
    once = squared(pair)
    if once is not None:
        return once.total(weights)

    def add(total: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        h, delta, w = row
        return total + weigh(w[None], jnp.square(h.T @ delta)[None])[0], None

    w = jnp.ones(pair.batch, pair.delta.dtype) if weights is None else jnp.asarray(weights, pair.delta.dtype)
    start = jnp.zeros((pair.h.shape[-1], pair.delta.shape[-1]), pair.delta.dtype)
    return lax.scan(add, start, (pair.h, pair.delta, w))[0].reshape(pair.shape)


@squares.register(Shift)
@squares.register(Scale)
@squares.register(Sum)
def _(pair: Pair, weights: Weights) -> Array:
    return weigh(weights, jnp.square(each(pair))).sum(0)


@singledispatch
def squared(pair: Pair) -> Outer | Shift | Scale | None:
    """The pair of which gₙ² is the gradient, with δ² in its `delta`; None where gₙ is a sum of several terms.

    Where each example uses the parameter once, (h ⊗ δ)² = h² ⊗ δ². h is the same for every δ, so of many backward
    passes only δ² need be added up: Σᵥ (h ⊗ δᵥ)² = h² ⊗ Σᵥ δᵥ².
    """
    blocks = in_rows(pair)
    return squared(blocks) if isinstance(blocks, Outer) else None


@squared.register
def _(pair: Outer) -> Outer | None:
    return Outer(jnp.square(pair.h), jnp.square(pair.delta), pair.shape) if pair.uses == 1 else None


@squared.register
def _(pair: Shift) -> Shift | None:
    return Shift(jnp.square(pair.delta), pair.shape) if pair.uses == 1 else None


@squared.register
def _(pair: Scale) -> Scale | None:
    return Scale(jnp.square(pair.h), jnp.square(pair.delta), pair.shape) if pair.uses == 1 else None


@squared.register
def _(pair: Sum) -> None:
    return None
