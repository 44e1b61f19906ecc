"""Second order with the same recursion: Gauss-Newton, Fisher, Hessian. All of the mean error 1/N Σₙ eₙ.

The backward pass is linear in δ. Run over the columns s of a square root of the loss's Hessian instead of the loss's
δ, it gives Gauss-Newton quantities: Jᵀ(Σᵥ sᵥsᵥᵀ)J = Σᵥ (Jᵀsᵥ)(Jᵀsᵥ)ᵀ. Products take forward tangents through the
hand-written passes (`jax.jvp`); no reverse-mode autodiff is used.

Source: Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent"; Martens, Grosse
2015, arXiv:1503.05671; Dangel, Kunstner, Hennig 2020, arXiv:1912.10985.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from scipy.sparse.linalg import LinearOperator

from jbp.backprop import backward, forward
from jbp.layer import Layer, as_count, leaf_shapes
from jbp.losses import Loss
from jbp.pairs import Outer, Pair, Scale, Shift, Stack, is_pair
from jbp.sinks import total
from jbp.stats._paths import map_pairs
from jbp.stats.kronecker import Factors, Sharing, kronecker
from jbp.stats.moments import squares
from jbp.stats.per_example import each

Delta = Literal["exact", "sampled", "true"]
Product = Callable[[Any], Any]


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
) -> Any:
    """The diagonal of 1/N Σₙ Jₙᵀ Hₙ Jₙ, in the tree of the parameters, where Hₙ = ∂²eₙ/∂output².

    `delta` says what goes back. "exact": every column of `sqrt_hessian`. "sampled": `samples` sums of them with
    random signs, drawn from `key`; right on average, and for the loss of a likelihood an estimate of the Fisher
    information, which is the same matrix. "true": the loss's own δ, which gives the empirical Fisher, 1/N Σₙ gₙ².
    With `per_example`, each example's own [n, *shape], not divided by N. The net is taken in evaluation.

    Raises:
        ValueError: for another `delta`, a missing key, or shapes that do not fit.
        NotImplementedError: if the loss has no `sqrt_hessian`, or below a layer that couples examples.
    """
    columns, back = _columns(net, loss, params, x, y, delta, key, samples)
    squared = partial(_squared, per_example=per_example)

    def add(sums: Any, column: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, map_pairs(squared, back(column))), None

    first = jax.eval_shape(lambda: map_pairs(squared, back(columns[0])))
    sums, _ = lax.scan(add, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first), columns)
    # What came in, h, is the same for every column. Of this pass only h is used, so no more of it is computed.
    pairs = back(columns[0])
    leaves, structure = jax.tree.flatten(pairs, is_leaf=is_pair)
    found = [_finished(pair, s, per_example) for pair, s in zip(leaves, structure.flatten_up_to(sums), strict=True)]
    return structure.unflatten(found if per_example else [leaf / columns.shape[1] for leaf in found])


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
) -> Any:
    """K-FAC: the `jbp.stats.Factors` A = E[hhᵀ], G = E[δδᵀ] of every parameter; A ⊗ G approximates its Gauss-Newton
    block (of the mean error), or with `delta="true"` its empirical Fisher. Arguments as in `gauss_newton_diagonal`;
    for `sharing` see `jbp.stats.kronecker`, which reads the same from pairs that you have.

    Raises:
        ValueError, NotImplementedError: as `gauss_newton_diagonal`, and for a parameter with uses of several kinds.
    """
    columns, back = _columns(net, loss, params, x, y, delta, key, samples)

    def g(column: Array) -> Any:
        return jax.tree.map(lambda f: f.g, kronecker(back(column), sharing), is_leaf=_is_factors)

    def add(sums: Any, column: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, g(column)), None

    start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(g, columns[0]))
    sums, _ = lax.scan(add, start, columns)
    once = kronecker(back(columns[0]), sharing)  # for A, which is the same for every column
    return jax.tree.map(lambda f, g: Factors(f.a, g), once, sums, is_leaf=_is_factors)


def gauss_newton_product(net: Layer, loss: Loss, params: Any, x: Any, y: Any) -> Product:
    """The function v ↦ (1/N Σₙ Jₙᵀ Hₙ Jₙ) v on trees like `params`: forward tangent Jv, then Hₙ from a tangent of
    the loss's δ, then the backward pass. Compiled once for a net, a loss and shapes. In evaluation.

    Raises:
        ValueError: at the call, if v is not a tree like the parameters.
    """
    return lambda v: _gauss_newton_product(net, loss, params, x, y, _like_params(params, v))


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
) -> Product:
    """The function v ↦ 1/N Σₙ Σₛ (Jₙᵀs)⟨Jₙᵀs, v⟩ with the columns s of `gauss_newton_diagonal`: of the loss of a
    likelihood the Fisher information, exact or sampled, or with `delta="true"` the empirical Fisher 1/N Σₙ gₙ⟨gₙ, v⟩.

    Raises:
        ValueError: for another `delta` or a missing key; at the call, if v is not a tree like the parameters.
    """
    _check_delta(delta, key, samples)
    return lambda v: _fisher_product(net, loss, params, x, y, _like_params(params, v), delta, key, samples)


def hessian_product(net: Layer, loss: Loss, params: Any, x: Any, y: Any) -> Product:
    """The function v ↦ (∂²/∂θ² 1/N Σₙ eₙ) v on trees like `params`: a forward tangent of the hand-written gradient.

    At kinks (relu at 0) it has the convention of the activation's θ′. In evaluation.

    Raises:
        ValueError: at the call, if v is not a tree like the parameters.
    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """
    return lambda v: _hessian_product(net, loss, params, x, y, _like_params(params, v))


class Diagonal(NamedTuple):
    """A Hessian diagonal, in the tree of the parameters."""

    value: Any
    standard_error: Any
    """0 where it is exact; else of the mean over the random directions (NaN for a single one)."""
    exact: bool


def hessian_diagonal(
    net: Layer, loss: Loss, params: Any, x: Any, y: Any, *, key: Array | None = None, samples: int = 32
) -> Diagonal:
    """The diagonal of the Hessian of the mean error.

    Exact where every layer is piecewise linear and no parameter is used in two places: then the output is piecewise
    linear in each single parameter, and the diagonal is Gauss-Newton's. Otherwise Hutchinson's estimate, the mean of
    z∘Hz over `samples` random signs z, drawn from `key`, with its standard error; the variance of one draw is
    Σ_{j≠i} 2H²ᵢⱼ for Gaussian and Σ_{j≠i} H²ᵢⱼ for these z.

    Raises:
        ValueError: if a key is needed and missing.
    Source: Bekas, Kokiopoulou, Saad 2007, "An estimator for the diagonal of a matrix".
    """
    if net.piecewise_linear:
        value = gauss_newton_diagonal(net, loss, params, x, y)
        return Diagonal(value, jax.tree.map(jnp.zeros_like, value), True)
    if key is None:
        raise ValueError(f"{net!r} is not piecewise linear, so its Hessian's diagonal is sampled: pass key=...")
    samples = as_count(samples, "samples")
    flat, unravel = ravel_pytree(params)

    def draw(k: Array) -> Array:
        z = jax.random.rademacher(k, flat.shape, flat.dtype)
        return z * ravel_pytree(_hessian_product(net, loss, params, x, y, unravel(z)))[0]

    draws = lax.map(draw, jax.random.split(key, samples))
    spread = draws.std(0, ddof=1) if samples > 1 else jnp.full_like(flat, jnp.nan)
    return Diagonal(unravel(draws.mean(0)), unravel(spread / samples**0.5), False)


def operator(product: Product, params: Any) -> LinearOperator:
    """A product as a symmetric `scipy.sparse.linalg.LinearOperator` on flat vectors, in the order of
    `jax.flatten_util.ravel_pytree(params)`: for SciPy's `cg` (Newton steps), `eigsh` (Lanczos) and others.
    """
    flat, unravel = ravel_pytree(params)

    def matvec(v: Any) -> Any:
        return np.asarray(ravel_pytree(product(unravel(jnp.asarray(v, flat.dtype).reshape(-1))))[0])

    shape = (flat.size, flat.size)
    return LinearOperator(shape, matvec=matvec, rmatvec=matvec, dtype=flat.dtype)  # type: ignore[call-arg]


@partial(jax.jit, static_argnums=(0, 1))
def _gauss_newton_product(net: Layer, loss: Loss, params: Any, x: Any, y: Any, v: Any) -> Any:
    output, tangent, saved = jax.jvp(lambda p: forward(net, p, x), (params,), (v,), has_aux=True)
    _, delta = jax.jvp(lambda o: jax.vmap(loss.delta)(o, y), (output,), (tangent,))
    return backward(net, params, saved, delta / len(delta), total)[1]


@partial(jax.jit, static_argnums=(0, 1, 6, 8))
def _fisher_product(
    net: Layer, loss: Loss, params: Any, x: Any, y: Any, v: Any, delta: Delta, key: Any, samples: int
) -> Any:
    output, tangent, saved = jax.jvp(lambda p: forward(net, p, x), (params,), (v,), has_aux=True)
    columns = _columns_at(loss, output, y, delta, key, samples)
    along = jnp.einsum("vn...,n...->vn", columns, tangent)
    back = jnp.einsum("vn,vn...->n...", along, columns) / columns.shape[1]
    return backward(net, params, saved, back, total)[1]


@partial(jax.jit, static_argnums=(0, 1))
def _hessian_product(net: Layer, loss: Loss, params: Any, x: Any, y: Any, v: Any) -> Any:
    def gradient(p: Any) -> Any:
        output, saved = forward(net, p, x)
        delta = jax.vmap(loss.delta)(output, y)
        return backward(net, p, saved, delta / len(delta), total)[1]

    return jax.jvp(gradient, (params,), (v,))[1]


def _columns(
    net: Layer, loss: Loss, params: Any, x: Any, y: Any, delta: Delta, key: Any, samples: int
) -> tuple[Float[Array, "v n ..."], Callable[[Array], Any]]:
    """What goes back, and the function that takes a column back and answers with its pairs."""
    _check_delta(delta, key, samples)
    output, saved = forward(net, params, x)
    columns = lax.optimization_barrier(_columns_at(loss, output, y, delta, key, samples))
    return columns, lambda column: backward(net, params, saved, column)[1]


def _columns_at(loss: Loss, output: Array, y: Any, delta: Delta, key: Any, samples: int) -> Float[Array, "v n ..."]:
    if delta == "true":
        return jax.vmap(loss.delta)(output, y)[None]
    columns = jnp.moveaxis(jax.vmap(loss.sqrt_hessian)(output, y), 1, 0)
    if delta == "exact":
        return columns
    signs = jax.random.rademacher(key, (samples, *columns.shape[:2]), columns.dtype)
    return jnp.einsum("svn,vn...->sn...", signs, columns) / samples**0.5


def _check_delta(delta: Any, key: Any, samples: Any) -> None:
    if delta not in ("exact", "sampled", "true"):
        raise ValueError(f"delta must be 'exact', 'sampled' or 'true', but is {delta!r}")
    as_count(samples, "samples")
    if delta == "sampled" and key is None:
        raise ValueError("delta='sampled' draws at random: pass key=jax.random.key(...)")


def _like_params(params: Any, v: Any) -> Any:
    wanted, found = leaf_shapes(params), leaf_shapes(v)
    if wanted != found:
        raise ValueError(f"v must be a tree like the parameters, {wanted}, but is {found}")
    return jax.tree.map(lambda p, a: jnp.asarray(a, p.dtype), params, v)


def _once(pair: Pair) -> bool:
    """Whether each example uses the parameter once: then Σᵥ (h ⊗ δᵥ)² = h² ⊗ Σᵥ δᵥ², and δ² is all there is to sum."""
    return isinstance(pair, Outer | Shift | Scale) and pair.delta.shape[-2] == 1


def _squared(pair: Pair, per_example: bool) -> Array:
    """What is summed over the columns."""
    if isinstance(pair, Stack):
        return jax.vmap(partial(_squared, per_example=per_example))(pair.pair)
    if _once(pair):
        return jnp.square(pair.delta)  # type: ignore[attr-defined]
    return jnp.square(each(pair)) if per_example else squares(pair, None)


def _finished(pair: Pair, sums: Array, per_example: bool) -> Array:
    """Σᵥ gᵥ², from h and what was summed."""
    if isinstance(pair, Stack):
        return jax.vmap(partial(_finished, per_example=per_example), out_axes=int(per_example))(pair.pair, sums)
    if not _once(pair):
        return sums
    h = {} if isinstance(pair, Shift) else {"h": jnp.square(pair.h)}  # type: ignore[attr-defined]
    squared = type(pair)(**h, delta=sums, shape=pair.shape)  # type: ignore[attr-defined,call-arg]
    return each(squared) if per_example else squared.total()


def _is_factors(node: Any) -> bool:
    return isinstance(node, Factors)
