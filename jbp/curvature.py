"""Second order with the same recursion: Gauss-Newton, Fisher, Hessian. All of the mean error 1/N Σₙ eₙ.

With `weights` [n] they are of Σₙ wₙ eₙ, with the weights as given, not renormalised: wₙ stands for 1/N. A row of
weight 0 takes no part, whatever its x and y hold. With a `mask` [n, t], True where a position is real, each example is
as if it were cut to its length, whatever x and y hold behind. Of nets of 16 bits everything here is float32: what goes
back is of 16 bits, what is made of it is squared, added up and divided in 32.

The backward pass is linear in δ. Run over the columns s of a square root of the loss's Hessian instead of the loss's
δ, it gives Gauss-Newton quantities: Jᵀ(Σᵥ sᵥsᵥᵀ)J = Σᵥ (Jᵀsᵥ)(Jᵀsᵥ)ᵀ. Products take forward tangents through the
hand-written passes (`jax.jvp`); no reverse-mode autodiff is used.

Source: Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent"; Martens, Grosse
2015, arXiv:1503.05671; Dangel, Kunstner, Hennig 2020, arXiv:1912.10985.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Bool, Float
from jbp.answers import columns_of, delta_of
from jbp.arguments import as_count, check_direction, check_function, check_one_of
from jbp.backprop import Batch, backward, check_call, fold, forward, scaled
from jbp.inputs import check_key, check_params
from jbp.layer import ArrayLike, Layer
from jbp.losses import Loss
from jbp.masks import mask_at
from jbp.meshes import added_up, as_is, placed, rows, whole
from jbp.pairs import Pair, Weights, as_shares, is_pair, silence, weigh, widened
from jbp.sinks import total
from jbp.stats.kronecker import Factors, Sharing, kronecker
from jbp.stats.moments import squared, squares
from jbp.stats.per_example import each
from jbp.stats.trees import map_pairs

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = [
    "Delta",
    "Diagonal",
    "Product",
    "fisher_product",
    "gauss_newton_diagonal",
    "gauss_newton_product",
    "hessian_diagonal",
    "hessian_product",
    "kronecker_factors",
    "operator",
]


def __dir__() -> list[str]:
    return __all__


Delta = Literal["exact", "sampled", "true"]
Product = Callable[[Any], Any]
Mask = Bool[ArrayLike, "n t"] | None


def _as_params(answer: Any, net: Layer, loss: Loss, params: Any, x: Any, *_: Any, **named: Any) -> Any:
    """Spread as the parameters; with `per_example` as the examples."""
    return rows(answer, x) if named.get("per_example") else as_is(params)


@placed(_as_params)
def gauss_newton_diagonal(
    net: Layer,
    loss: Loss,
    params: Any,
    x: Any,
    y: Any,
    delta: Delta = "exact",
    *,
    key: Array | None = None,
    samples: int = 1,
    per_example: bool = False,
    weights: Weights = None,
    mask: Mask = None,
) -> Any:
    """The diagonal of 1/N Σₙ Jₙᵀ Hₙ Jₙ, in the tree of the parameters, where Hₙ = ∂²eₙ/∂output².

    With `weights` [n] it is of Σₙ wₙ Jₙᵀ Hₙ Jₙ, not renormalised.

    `delta` says what goes back. "exact": every column of `sqrt_hessian`. "sampled": `samples` sums of them with
    random signs, drawn from `key`; right on average, and for the loss of a likelihood an estimate of the Fisher
    information, which is the same matrix. "true": the loss's own δ, which gives the empirical Fisher, 1/N Σₙ gₙ².
    With `per_example`, each example's own term [n, *shape], not divided by N, but times wₙ if there are weights. The
    net is taken in evaluation.

    Raises:
        ValueError: for another `delta`, a missing key, an empty batch, or shapes or weights that do not fit.
        NotImplementedError: if the loss has no `sqrt_hessian`, or below a layer that couples examples.
    """
    columns, back, weights = _columns(net, loss, params, Batch(x, y, weights, mask), _Sent.of(delta, key, samples))
    found = diagonal_over(columns, back, weights, per_example)
    if per_example:
        return jax.tree.map(lambda leaf: weigh(weights, leaf), found)
    return found if weights is not None else jax.tree.map(lambda leaf: leaf / columns.shape[1], found)


def diagonal_over(columns: Array, back: Callable[[Array], Any], weights: Weights, per_example: bool) -> Any:
    """Σᵥ Σₙ wₙ gᵥₙ² over the pairs `back(column)` of every column v, or of each example Σᵥ gᵥₙ² [n, *shape]."""

    def summed(column: Array) -> Any:
        one = partial(_squared, weights=weights, per_example=per_example)
        return map_pairs(lambda pair: pair.over_stack(one), back(column))

    sums = added_up(summed, columns)
    # What came in, h, is the same for every column. Of this pass only h is used, so no more of it is computed.
    pairs, structure = jax.tree.flatten(widened(back(columns[0])), is_leaf=is_pair)
    finished = partial(_finished, weights=weights, per_example=per_example)
    parts = zip(pairs, structure.flatten_up_to(sums), strict=True)
    return structure.unflatten([pair.over_stack(finished, s, axis=int(per_example)) for pair, s in parts])


@placed(whole)
def kronecker_factors(
    net: Layer,
    loss: Loss,
    params: Any,
    x: Any,
    y: Any,
    delta: Delta = "exact",
    *,
    key: Array | None = None,
    samples: int = 1,
    sharing: Sharing = "expand",
    weights: Weights = None,
    mask: Mask = None,
) -> Any:
    """K-FAC: the `jbp.stats.Factors` A = E[hhᵀ], G = E[δδᵀ] of every parameter; A ⊗ G approximates its Gauss-Newton
    block (of the mean error), or with `delta="true"` its empirical Fisher. Arguments as in `gauss_newton_diagonal`;
    for `sharing` see `jbp.stats.kronecker`, which reads the same from pairs that you have.

    With `weights` [n] A = Σ pₙ hhᵀ with the proportions pₙ = wₙ/Σw and G = Σ wₙ δδᵀ: so A ⊗ G approximates the block
    of Σ wₙ eₙ. Were both weighted by wₙ, it would be Σw times that. NaN if the weights add up to 0.

    Raises:
        ValueError, NotImplementedError: as `gauss_newton_diagonal`, and for a parameter with uses of several kinds.
    """
    columns, back, weights = _columns(net, loss, params, Batch(x, y, weights, mask), _Sent.of(delta, key, samples))
    return factors_over(columns, back, sharing, weights, mask)


def factors_over(
    columns: Array, back: Callable[[Array], Any], sharing: Sharing, weights: Weights, mask: Mask = None
) -> Any:
    """The factors of the pairs `back(column)`: G summed over the columns, A of any one, as h is the same for all."""

    def g(column: Array) -> Any:
        return jax.tree.map(lambda f: f.g, kronecker(back(column), sharing, weights, mask), is_leaf=_is_factors)

    sums = added_up(g, columns)
    once = kronecker(back(columns[0]), sharing, None if weights is None else as_shares(weights), mask)
    return jax.tree.map(lambda f, g: replace(f, g=g), once, sums, is_leaf=_is_factors)


def gauss_newton_product(
    net: Layer, loss: Loss, params: Any, x: Any, y: Any, *, weights: Weights = None, mask: Mask = None
) -> Product:
    """The function v ↦ (1/N Σₙ Jₙᵀ Hₙ Jₙ) v on trees like `params`: forward tangent Jv, then Hₙ from a tangent of
    the loss's δ, then the backward pass. Compiled once for a net, a loss and shapes. In evaluation.

    With `weights` [n] it is (Σₙ wₙ Jₙᵀ Hₙ Jₙ) v, not renormalised.

    Raises:
        ValueError: for an empty batch, or shapes or weights that do not fit; at the call, if v is not a tree like the
            parameters.
    """
    batch = _silenced(net, loss, params, Batch(x, y, weights, mask))
    return lambda v: _gauss_newton_product(net, loss, params, batch, _like_params(params, v))


def fisher_product(
    net: Layer,
    loss: Loss,
    params: Any,
    x: Any,
    y: Any,
    delta: Delta = "exact",
    *,
    key: Array | None = None,
    samples: int = 1,
    weights: Weights = None,
    mask: Mask = None,
) -> Product:
    """The function v ↦ 1/N Σₙ Σₛ (Jₙᵀs)⟨Jₙᵀs, v⟩ with the columns s of `gauss_newton_diagonal`: of the loss of a
    likelihood the Fisher information, exact or sampled, or with `delta="true"` the empirical Fisher 1/N Σₙ gₙ⟨gₙ, v⟩.

    With `weights` [n], wₙ stands in the place of 1/N, not renormalised.

    Raises:
        ValueError: for another `delta`, a missing key, an empty batch, or shapes or weights that do not fit; at the
            call, if v is not a tree like the parameters.
    """
    sent = _Sent.of(delta, key, samples)
    batch = _silenced(net, loss, params, Batch(x, y, weights, mask))
    return lambda v: _fisher_product(net, loss, params, batch, _like_params(params, v), sent)


def hessian_product(
    net: Layer, loss: Loss, params: Any, x: Any, y: Any, *, weights: Weights = None, mask: Mask = None
) -> Product:
    """The function v ↦ (∂²/∂θ² 1/N Σₙ eₙ) v on trees like `params`: a forward tangent of the hand-written gradient.

    With `weights` [n] it is (∂²/∂θ² Σₙ wₙ eₙ) v, not renormalised. At kinks (relu at 0) it has the convention of the
    activation's θ′. In evaluation.

    Raises:
        ValueError: for an empty batch, or shapes or weights that do not fit; at the call, if v is not a tree like the
            parameters.
    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """
    batch = _silenced(net, loss, params, Batch(x, y, weights, mask))
    return lambda v: _hessian_product(net, loss, params, batch, _like_params(params, v))


class Diagonal(NamedTuple):
    """A Hessian diagonal, in the tree of the parameters."""

    value: Any
    standard_error: Any
    """0 where it is exact; else of the mean over the random directions (NaN for a single one)."""
    exact: bool


@placed(lambda answer, net, loss, params, *_, **__: Diagonal(as_is(params), as_is(params), exact=False))
def hessian_diagonal(
    net: Layer,
    loss: Loss,
    params: Any,
    x: Any,
    y: Any,
    *,
    key: Array | None = None,
    samples: int = 32,
    weights: Weights = None,
    mask: Mask = None,
) -> Diagonal:
    """The diagonal of the Hessian of the mean error; with `weights` [n] of Σₙ wₙ eₙ, not renormalised.

    Exact where every layer is piecewise linear, no parameter is used in two places and the loss has a `sqrt_hessian`:
    then the output is piecewise linear in each single parameter, and the diagonal is Gauss-Newton's. Otherwise
    Hutchinson's estimate, the mean of z∘Hz over `samples` random signs z, drawn from `key`, with its standard error;
    the variance of one draw is Σ_{j≠i} H²ᵢⱼ for these z, and for Gaussian ones it would be 2H²ᵢᵢ + Σ_{j≠i} H²ᵢⱼ.

    Raises:
        ValueError: if a key is needed and missing, for an empty batch, or shapes or weights that do not fit.
    Source: Bekas, Kokiopoulou, Saad 2007, "An estimator for the diagonal of a matrix".
    """
    check_key(key)
    samples = as_count(samples, "samples")
    batch = _silenced(net, loss, params, Batch(x, y, weights, mask))
    if net.piecewise_linear and not net.couples_batch and _has_root(loss):
        value = gauss_newton_diagonal(net, loss, params, batch.x, batch.y, weights=weights, mask=mask)
        return Diagonal(value, jax.tree.map(jnp.zeros_like, value), True)
    if key is None:
        raise ValueError(
            f"the Hessian's diagonal needs no key only where the net is piecewise linear, couples no examples and the "
            f"loss has a sqrt_hessian, but {net!r} with {loss!r} is not so: pass key=jax.random.key(...)"
        )
    flat, unravel = ravel_pytree(params)

    unravel_wide = ravel_pytree(widened(params))[1]

    def draw(k: Array) -> Array:
        z = jax.random.rademacher(k, flat.shape, flat.dtype)
        return widened(z) * ravel_pytree(_hessian_product(net, loss, params, batch, unravel(z)))[0]

    draws = lax.map(draw, jax.random.split(key, samples))
    spread = draws.std(0, ddof=1) if samples > 1 else jnp.full_like(draws[0], jnp.nan)
    return Diagonal(unravel_wide(draws.mean(0)), unravel_wide(spread / samples**0.5), False)


def operator(product: Product, params: Any) -> LinearOperator:
    """A product as a symmetric `scipy.sparse.linalg.LinearOperator` on flat vectors, in the order of
    `jax.flatten_util.ravel_pytree(params)`: for SciPy's `cg` (Newton steps), `eigsh` (Lanczos) and others.
    """
    from scipy.sparse.linalg import LinearOperator  # here, for nothing else needs it and it is slow to load

    check_function(product, "product")
    check_params(params)
    flat, unravel = ravel_pytree(params)

    def matvec(v: Any) -> Any:
        return np.asarray(ravel_pytree(product(unravel(jnp.asarray(v, flat.dtype).reshape(-1))))[0])

    shape = (flat.size, flat.size)
    return LinearOperator(shape, matvec=matvec, rmatvec=matvec, dtype=flat.dtype)  # type: ignore[call-arg]


@register_dataclass
@dataclass(frozen=True)
class _Sent:
    """What goes back: the loss's own δ, the columns of its Hessian's root, or so many random sums of them."""

    delta: Delta = field(metadata={"static": True})
    key: Any
    samples: int = field(metadata={"static": True})

    @staticmethod
    def of(delta: Any, key: Any, samples: Any) -> _Sent:
        """What was asked for, if it is one of these."""
        check_one_of(delta, "delta", ("exact", "sampled", "true"))
        samples = as_count(samples, "samples")
        check_key(key)
        if delta == "sampled" and key is None:
            raise ValueError("delta='sampled' draws at random: pass key=jax.random.key(...)")
        return _Sent(delta, key, samples)


@partial(jax.jit, static_argnums=(0, 1))
@placed(_as_params)
def _gauss_newton_product(net: Layer, loss: Loss, params: Any, batch: Batch, v: Any) -> Any:
    output, tangent, saved = _tangent(net, params, batch, v)
    told = mask_at(net, output, batch.mask)
    _, delta = jax.jvp(lambda o: jax.vmap(delta_of(loss))(o, batch.y, *told), (output,), (tangent,))
    return _total_back(net, params, saved, delta, batch.weights)


@partial(jax.jit, static_argnums=(0, 1))
@placed(_as_params)
def _fisher_product(net: Layer, loss: Loss, params: Any, batch: Batch, v: Any, sent: _Sent) -> Any:
    output, tangent, saved = _tangent(net, params, batch, v)
    columns = _columns_at(loss, (output, batch.y, *mask_at(net, output, batch.mask)), sent)
    columns, tangent = widened((columns, tangent))
    along = jnp.einsum("vn...,n...->vn", columns, tangent)
    back = jnp.einsum("vn,vn...->n...", along, columns).astype(output.dtype)
    return _total_back(net, params, saved, back, batch.weights)


@partial(jax.jit, static_argnums=(0, 1))
@placed(_as_params)
def _hessian_product(net: Layer, loss: Loss, params: Any, batch: Batch, v: Any) -> Any:
    def gradient(p: Any) -> Any:
        output, saved = forward(net, p, batch.x, None, batch.weights, mask=batch.mask)
        delta = jax.vmap(delta_of(loss))(output, batch.y, *mask_at(net, output, batch.mask))
        return _total_back(net, p, saved, delta, batch.weights)

    return jax.jvp(gradient, (params,), (_trained(net, params, batch.x, v),))[1]


def _tangent(net: Layer, params: Any, batch: Batch, v: Any) -> tuple[Any, Any, Any]:
    """The outputs, their forward tangent Jv, and what was saved."""
    v = _trained(net, params, batch.x, v)

    def output(p: Any) -> tuple[Any, Any]:
        return forward(net, p, batch.x, None, batch.weights, mask=batch.mask)

    return jax.jvp(output, (params,), (v,), has_aux=True)


def _trained(net: Layer, params: Any, x: Any, v: Any) -> Any:
    """`v` with zeros along running moments, which are held fixed: the gradient in them is 0 by definition."""
    if not net.observes:
        return v

    def pairs(params: Any, x: Any) -> Any:
        output, saved = forward(net, params, x)
        return backward(net, params, saved, output)[1]

    found, structure = jax.tree.flatten(jax.eval_shape(pairs, params, x), is_leaf=is_pair)
    parts = zip(found, structure.flatten_up_to(v), strict=True)
    return structure.unflatten([jnp.zeros_like(a) if pair.constant else a for pair, a in parts])


def _total_back(net: Layer, params: Any, saved: Any, delta: Any, weights: Weights) -> Any:
    """Σₙ wₙ gₙ of these δ, without weights 1/N Σₙ gₙ; in at least float32."""
    delta, scale = fold(weights, delta, params)
    return scaled(backward(net, params, saved, delta, total)[1], scale)


def _columns(
    net: Layer, loss: Loss, params: Any, batch: Batch, sent: _Sent
) -> tuple[Float[Array, "v n ..."], Callable[[Array], Any], Weights]:
    """What goes back, unweighted; the function that takes a column back and answers with its pairs; the weights."""
    x, y, weights, mask, *_ = _silenced(net, loss, params, batch)
    output, saved = forward(net, params, x, None, weights, mask=mask)
    columns = lax.optimization_barrier(_columns_at(loss, (output, y, *mask_at(net, output, mask)), sent))
    return columns, lambda column: backward(net, params, saved, column)[1], weights


def _columns_at(loss: Loss, targets: tuple[Any, ...], sent: _Sent) -> Float[Array, "v n ..."]:
    """Of (output, y), and the mask if the loss is told of one."""
    if sent.delta == "true":
        return jax.vmap(delta_of(loss))(*targets)[None]
    columns = jnp.moveaxis(jax.vmap(columns_of(loss))(*targets), 1, 0)
    if sent.delta == "exact":
        return columns
    wide = widened(columns)
    signs = jax.random.rademacher(sent.key, (sent.samples, *columns.shape[:2]), wide.dtype)
    return (jnp.einsum("svn,vn...->sn...", signs, wide) / sent.samples**0.5).astype(columns.dtype)


def _silenced(net: Layer, loss: Loss, params: Any, batch: Batch) -> Batch:
    """The batch with x = 0 in the rows of weight 0, which may hold anything. The whole call has been looked at."""
    batch = check_call(net, loss, params, batch)
    if batch.weights is None:
        return batch
    return batch._replace(x=jax.tree.map(partial(silence, batch.weights), batch.x))


def _has_root(loss: Loss) -> bool:
    return type(loss).sqrt_hessian is not Loss.sqrt_hessian


def _like_params(params: Any, v: Any) -> Any:
    check_direction(v, params)
    return jax.tree.map(lambda p, a: jnp.asarray(a, p.dtype), params, v)


def _squared(pair: Pair, weights: Weights, per_example: bool) -> Array:
    """What is summed over the columns: δ² where that is all, as h is the same for every column."""
    once = squared(pair)
    if once is not None:
        return once.delta
    return jnp.square(each(pair)) if per_example else squares(pair, weights)


def _finished(pair: Pair, sums: Array, weights: Weights, per_example: bool) -> Array:
    """Σᵥ Σₙ wₙ gᵥₙ², or of each example Σᵥ gᵥₙ², from h and what was summed."""
    once = squared(pair)
    if once is None:
        return sums
    whole = replace(once, delta=sums)
    return each(whole) if per_example else whole.total(weights)


def _is_factors(node: Any) -> bool:
    return isinstance(node, Factors)
