# pyright: reportCallIssue=false
"""Second-order quantities against explicit Jacobians and Hessians of the plain forward pass."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, NETS, Centre, NetCase, announced, drawn, random
from jax.flatten_util import ravel_pytree
from oracles import UNITS, compiled, initialised, plain, plain_errors, whole
from scipy.sparse.linalg import cg, eigsh

import jbp
from jbp import curvature, losses, stats
from jbp.pairs import is_pair

KEY = jax.random.key(13)
CASES = [case for case in NETS if jax.tree.leaves(announced(case)[0])]
NAMED = ("repeat in repeat", "repeat of repeat", "residual", "a table of positions", "all together")
DEEP = [case for case in CASES if "tied" in case.name or case.name in NAMED]
CASES = [case for i, case in enumerate(CASES) if i % 3 == 0 or case in DEEP]  # every pair class, stacked and not
IN_FLOAT32 = [case for case in CASES if "tied" in case.name or case.name in NAMED[::2]]
"""Among them every pair class: parameters used once and often, tied within a kind and across kinds, nested stacks."""
LOSSES = (losses.softmax_cross_entropy, losses.squared_error, losses.sigmoid_binary_cross_entropy)


def problem(case: NetCase, loss: Any, dtype: Any = jnp.float64) -> tuple[Any, Any, Any, Any, Any]:
    """(params, x, y, v, weights) of a row of the case table: v a random direction, the weights of any sum, one of them
    below 0 and one of them 0."""
    params, x, target, _ = drawn(case, dtype)
    target = target if loss == losses.squared_error else jax.nn.sigmoid(target)
    flat, unravel = ravel_pytree(params)
    weights = random(f"weights of {case.name}").uniform(0.1, 2, BATCH)
    weights[:2] = -0.3, 0
    v = unravel(jnp.asarray(random(case.name).normal(size=flat.shape), dtype))
    return params, x, target, v, jnp.asarray(weights, dtype)


def ours(net: Any, loss: Any, weighted: bool, params: Any, x: Any, y: Any, v: Any, w: Any, key: Any) -> dict[str, Any]:
    """Everything of jbp.curvature that has a number for an oracle."""
    at = (net, loss, params, x, y)
    found = {
        "diagonal": curvature.gauss_newton_diagonal(*at),
        "diagonal, per example": curvature.gauss_newton_diagonal(*at, per_example=True),
        "diagonal, true": curvature.gauss_newton_diagonal(*at, "true"),
        "diagonal, sampled": curvature.gauss_newton_diagonal(*at, "sampled", key=key, samples=2),
        "product": curvature.gauss_newton_product(*at)(v),
        "fisher": curvature.fisher_product(*at)(v),
        "fisher, true": curvature.fisher_product(*at, "true")(v),
        "fisher, sampled": curvature.fisher_product(*at, "sampled", key=key, samples=2)(v),
        "hessian": curvature.hessian_product(*at)(v),
    }
    if not weighted:
        return found
    return found | {
        "diagonal, weighted": curvature.gauss_newton_diagonal(*at, weights=w),
        "diagonal, per example, weighted": curvature.gauss_newton_diagonal(*at, per_example=True, weights=w),
        "product, weighted": curvature.gauss_newton_product(*at, weights=w)(v),
        "fisher, true, weighted": curvature.fisher_product(*at, "true", weights=w)(v),
        "hessian, weighted": curvature.hessian_product(*at, weights=w)(v),
    }


def expected(net: Any, loss: Any, params: Any, x: Any, y: Any, v: Any, w: Any, key: Any) -> dict[str, Any]:
    """The same from J [n, k, P] and H [n, k, k], written out."""
    flat, unravel = ravel_pytree(params)
    direction, _ = ravel_pytree(v)
    output = plain(net, params, x)
    shape, n = output.shape[1:], len(output)

    def error(o: Any, y: Any) -> Any:
        return plain_errors(loss, o.reshape(1, *shape), y[None])[0]

    j = jax.jacrev(lambda f: plain(net, unravel(f), x).reshape(n, -1))(flat)
    rows = output.reshape(n, -1)
    h, delta = jax.vmap(jax.hessian(error))(rows, y), jax.vmap(jax.grad(error))(rows, y)
    g = jnp.einsum("nk,nkp->np", delta, j)
    gauss_newton = jnp.einsum("nkp,nkl,nlq->npq", j, h, j)
    columns = jnp.moveaxis(jax.vmap(loss.sqrt_hessian)(output, y), 1, 0).reshape(-1, n, rows.shape[1])
    signs = jax.random.rademacher(key, (2, *columns.shape[:2]), columns.dtype)
    drawn = jnp.einsum("svn,vnk,nkp->snp", signs, columns, j) / 2**0.5
    mean = gauss_newton.mean(0)
    diagonals = jnp.einsum("npp->np", gauss_newton)

    def hessian(w: Any) -> Any:
        gradient = jax.grad(lambda f: w @ plain_errors(loss, plain(net, unravel(f), x), y))
        return unravel(jax.jvp(gradient, (flat,), (direction,))[1])

    return {
        "diagonal": unravel(jnp.diag(mean)),
        "diagonal, per example": jax.vmap(unravel)(diagonals),
        "diagonal, true": unravel(jnp.square(g).mean(0)),
        "diagonal, sampled": unravel(jnp.square(drawn).sum(0).mean(0)),
        "product": unravel(mean @ direction),
        "fisher": unravel(mean @ direction),
        "fisher, true": unravel(jnp.einsum("np,nq,q->p", g, g, direction) / n),
        "fisher, sampled": unravel(jnp.einsum("snp,snq,q->p", drawn, drawn, direction) / n),
        "hessian": hessian(jnp.full(n, 1 / n, flat.dtype)),
        "diagonal, weighted": unravel(w @ diagonals),
        "diagonal, per example, weighted": jax.vmap(unravel)(w[:, None] * diagonals),
        "product, weighted": unravel(jnp.einsum("n,npq,q->p", w, gauss_newton, direction)),
        "fisher, true, weighted": unravel(jnp.einsum("n,np,nq,q->p", w, g, g, direction)),
        "hessian, weighted": hessian(w),
    }


def compare(found: dict[str, Any], wanted: dict[str, Any], dtype: Any, level: str) -> None:
    """In units of eps × the largest entry of the quantity; twice the level, for two passes' roundings."""
    eps, wrong = float(jnp.finfo(dtype).eps), {}
    for name, tree in found.items():
        a, b = (np.asarray(ravel_pytree(t)[0], np.float64) for t in (tree, wanted[name]))
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, wanted[name])
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}
        units = np.abs(a - b).max() / (eps * max(np.abs(b).max(), 1e-300))
        if not units <= 2 * UNITS[level]:
            wrong[name] = units
    assert not wrong, wrong


LEAN = [case for i, case in enumerate(CASES) if i % 3 == 0 or case in DEEP]
"""The nets that are not left to `make soak`."""


def _marked(i: int, case: NetCase) -> Any:
    return pytest.param(i, case, marks=[] if case in LEAN else [pytest.mark.soak], id=case.name)


@pytest.mark.parametrize(("i", "case"), [_marked(i, case) for i, case in enumerate(CASES)])
def test_against_explicit_matrices(i: int, case: NetCase):
    loss = LOSSES[i % 3]
    if announced(case)[1] == (1,):  # of one output there is nothing to choose
        loss = LOSSES[1]
    args, run = problem(case, loss), partial(ours, case.net, loss)
    wanted = compiled(partial(expected, case.net, loss))(*args, KEY)
    weighted = case in DEEP or i % 4 == 0
    compare(compiled(partial(run, weighted))(*args, KEY), wanted, jnp.float64, "net")
    if case in IN_FLOAT32:
        single = problem(case, loss, jnp.float32)
        found = compiled(partial(run, False))(*single, KEY)
        smooth = {name: value for name, value in found.items() if "sampled" not in name}  # other signs in float32
        compare(smooth, wanted, jnp.float32, "net")


def small(*layers: Any, shape: tuple[int, ...] = (3,)) -> tuple[Any, Any, Any]:
    net = jbp.serial(*layers)
    params, out = initialised(net, KEY, shape)
    x = jax.random.normal(KEY, (BATCH, *shape))
    return net, params, (x, jax.random.normal(jax.random.fold_in(KEY, 1), (BATCH, *out)))


def hessian_of(net: Any, params: Any, x: Any, y: Any) -> Any:
    """[P, P], by autodiff of the plain forward pass, of the mean l2_loss."""
    flat, unravel = ravel_pytree(params)
    return compiled(jax.hessian(lambda f: plain_errors(losses.l2_loss, plain(net, unravel(f), x), y).mean()))(flat)


def test_of_a_piecewise_linear_net_the_hessian_diagonal_is_gauss_newtons():
    net, params, data = small(
        jbp.Dense(5), jbp.relu, jbp.repeat(jbp.serial(jbp.Dense(5), jbp.leaky_relu), 2), jbp.Dense(2)
    )
    found = whole(curvature.hessian_diagonal)(net, losses.l2_loss, params, *data)
    hessian = hessian_of(net, params, *data)
    assert found.exact
    np.testing.assert_allclose(ravel_pytree(found.value)[0], jnp.diag(hessian), rtol=1e-12, atol=1e-14)
    assert not np.any(ravel_pytree(found.standard_error)[0])


@pytest.mark.parametrize(
    "net",
    [
        jbp.serial(jbp.Dense(5), jbp.tanh, jbp.Dense(2)),
        jbp.tied(jbp.serial(jbp.Dense(3), jbp.relu, jbp.Dense(3)), {2: 0}),
    ],
    ids=["curved", "tied"],
)
def test_otherwise_it_is_estimated_and_says_how_well(net):
    """Within 4.8 standard errors for every parameter (about 40 comparisons, hence more than 4.4), which have the size
    that the theory gives: the variance of one draw is the sum of the squares off the diagonal."""
    params, out = initialised(net, KEY, (3,))
    x, y = jax.random.normal(KEY, (BATCH, 3)), jax.random.normal(KEY, (BATCH, *out))
    found = whole(curvature.hessian_diagonal)(net, losses.l2_loss, params, x, y, key=KEY, samples=400)
    hessian = hessian_of(net, params, x, y)
    error, estimate = (ravel_pytree(tree)[0] for tree in (found.standard_error, found.value))
    assert not found.exact
    assert np.all(np.abs(estimate - jnp.diag(hessian)) <= 4.8 * error + 1e-12)
    theory = np.sqrt((np.square(hessian).sum(0) - np.square(np.diag(hessian))) / 400)
    np.testing.assert_allclose(error, theory, rtol=0.3, atol=1e-12)
    one = whole(curvature.hessian_diagonal)(net, losses.l2_loss, params, x, y, key=KEY, samples=1)
    assert np.isnan(ravel_pytree(one.standard_error)[0]).all()


def test_of_a_deep_linear_net_with_squared_error_k_fac_is_the_gauss_newton_block():
    net, params, (x, y) = small(
        jbp.Dense(5, use_bias=False), jbp.Dense(7, use_bias=False), jbp.Dense(2, use_bias=False)
    )
    factors = whole(curvature.kronecker_factors)(net, losses.squared_error, params, x, y)
    flat, unravel = ravel_pytree(params)
    j = compiled(jax.jacrev(lambda f: plain(net, unravel(f), x).reshape(BATCH, -1)))(flat)
    block = 2 * jnp.einsum("nkp,nkq->pq", j, j) / BATCH
    weights = jnp.linspace(0, 2, BATCH)
    weighted = whole(curvature.kronecker_factors)(net, losses.squared_error, params, x, y, weights=weights)
    block_weighted = 2 * jnp.einsum("n,nkp,nkq->pq", weights, j, j)
    start = 0
    for layer in range(3):
        size = params[layer]["weight"].size
        for found, matrix in ((factors, block), (weighted, block_weighted)):
            f, part = found[layer]["weight"], matrix[start : start + size, start : start + size]
            np.testing.assert_allclose(jnp.kron(f.a, f.g), part, rtol=1e-11, atol=1e-13)
        start += size


def test_kronecker_factors_of_sampled_and_true_delta():
    net, params, (x, y) = small(jbp.Dense(5), jbp.tanh, jbp.repeat(jbp.serial(jbp.Dense(5), jbp.tanh), 2), jbp.Dense(2))
    loss, y = losses.softmax_cross_entropy, jax.nn.softmax(y)
    true = whole(curvature.kronecker_factors)(net, loss, params, x, y, "true")
    pairs = whole(jbp.value_and_pairs)(net, loss, params, x, y)[1]
    for a, b in zip(*map(jax.tree.leaves, (true, whole(stats.kronecker)(pairs))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    exact = whole(curvature.kronecker_factors)(net, loss, params, x, y)
    n = 4000
    several = whole(curvature.kronecker_factors)(net, loss, params, x, y, "sampled", key=KEY, samples=n)
    rtol = 4.4 * (2 / (n * BATCH)) ** 0.5 * 3  # a variance's relative error, with room for the heavier tails of δ
    for f, g in zip(
        *(jax.tree.leaves(t, is_leaf=lambda a: isinstance(a, stats.Factors)) for t in (exact, several)), strict=True
    ):
        np.testing.assert_array_equal(f.a, g.a)
        np.testing.assert_allclose(f.g, g.g, atol=rtol * float(jnp.abs(f.g).max()))


def test_scipys_conjugate_gradient_and_lanczos_take_the_products():
    net, params, (x, y) = small(jbp.Dense(5), jbp.tanh, jbp.Dense(2))
    at = (net, losses.l2_loss, params, x, y)
    flat, _ = ravel_pytree(params)
    operator = curvature.operator(compiled(curvature.gauss_newton_product(*at)), params)
    matrix = np.stack([operator.matvec(row) for row in np.eye(flat.size)])
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-13)
    np.testing.assert_allclose(eigsh(operator, 3)[0], np.linalg.eigvalsh(matrix)[-3:], rtol=1e-9)
    damped = curvature.operator(
        lambda v: jax.tree.map(lambda a, b: a + 0.1 * b, curvature.gauss_newton_product(*at)(v), v), params
    )
    gradient, _ = ravel_pytree(jbp.value_and_grad(net, losses.l2_loss)(params, x, y)[1])
    step, info = cg(damped, np.asarray(gradient), rtol=1e-10)
    assert info == 0
    np.testing.assert_allclose(step, np.linalg.solve(matrix + 0.1 * np.eye(flat.size), gradient), rtol=1e-6, atol=1e-9)
    top = eigsh(curvature.operator(curvature.hessian_product(*at), params), 1)[0]
    hessian = hessian_of(net, params, x, y)
    largest = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(top, largest[np.abs(largest).argmax()], rtol=1e-9)


@dataclass(frozen=True, repr=False)
class Quartic(losses.Loss):
    """A user's loss without a root of its Hessian: ¼ Σ (p − y)⁴."""

    def value(self, output, target):
        return ((output - target) ** 4).sum() / 4

    def delta(self, output, target):
        return (output - target) ** 3


def test_without_a_root_of_the_losss_hessian_the_diagonal_of_a_piecewise_linear_net_is_estimated_too():
    net, params, (x, y) = small(jbp.Dense(5), jbp.relu, jbp.Dense(2))
    with pytest.raises(ValueError, match="the loss has a sqrt_hessian"):
        curvature.hessian_diagonal(net, Quartic(), params, x, y)
    found = whole(curvature.hessian_diagonal)(net, Quartic(), params, x, y, key=KEY, samples=400)
    flat, unravel = ravel_pytree(params)
    hessian = compiled(jax.hessian(lambda f: ((plain(net, unravel(f), x) - y) ** 4 / 4).sum(-1).mean()))(flat)
    error, estimate = (ravel_pytree(tree)[0] for tree in (found.standard_error, found.value))
    assert not found.exact
    assert np.all(np.abs(estimate - jnp.diag(hessian)) <= 4.8 * error + 1e-12)


# Weights


@whole
def everything(net: Any, params: Any, x: Any, y: Any, weights: Any) -> Any:
    """All that takes weights; below a layer that couples the examples, the products."""
    at, loss = (params, x, y), losses.softmax_cross_entropy
    key, v = jax.random.key(3), jax.tree.map(jnp.ones_like, params)
    products = [
        curvature.gauss_newton_product(net, loss, *at, weights=weights)(v),
        curvature.hessian_product(net, loss, *at, weights=weights)(v),
        curvature.hessian_diagonal(net, loss, *at, key=key, samples=3, weights=weights)[:2],
        curvature.fisher_product(net, loss, *at, weights=weights)(v),
        curvature.fisher_product(net, loss, *at, "true", weights=weights)(v),
    ]
    if net.couples_batch:
        return products
    return [
        *products,
        curvature.gauss_newton_diagonal(net, loss, *at, weights=weights),
        curvature.gauss_newton_diagonal(net, loss, *at, "true", weights=weights),
        *([] if "tied" in repr(net) else [curvature.kronecker_factors(net, loss, *at, weights=weights)]),
    ]


@pytest.mark.parametrize(
    "net",
    [
        jbp.serial(jbp.Dense(5), jbp.relu, jbp.Dense(3)),
        jbp.serial(jbp.Dense(5), jbp.repeat(jbp.serial(jbp.Dense(5), jbp.tanh), 2), jbp.Dense(3)),
        jbp.tied(jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(3)), {2: 0}),
        jbp.serial(jbp.Dense(5), Centre(), jbp.tanh, jbp.Dense(3)),
    ],
    ids=["once", "stack", "tied", "coupled"],
)
def test_a_row_of_weight_0_takes_no_part_whatever_it_holds(net: Any):
    params, _ = initialised(net, KEY, (3,))
    x = jax.random.normal(KEY, (BATCH, 3))
    y = jax.nn.softmax(jax.random.normal(jax.random.fold_in(KEY, 1), (BATCH, 3)))
    weights = jnp.linspace(0.5, 2, BATCH).at[jnp.array([2, 5])].set(0)
    kept = np.flatnonzero(weights)
    wanted = everything(net, params, x[kept], y[kept], weights[kept])
    spoilt = everything(net, params, x.at[2].set(jnp.nan), y.at[jnp.array([2, 5])].set(jnp.nan), weights)
    for a, b in zip(jax.tree.leaves(spoilt), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def test_weights_of_1_over_n_are_the_mean():
    net, params, (x, y) = small(jbp.Dense(5), jbp.tanh, jbp.Dense(3))
    y = jax.nn.softmax(y)
    even = everything(net, params, x, y, jnp.full(BATCH, 1 / BATCH))
    for a, b in zip(jax.tree.leaves(even), jax.tree.leaves(everything(net, params, x, y, None)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("call", "words", "error"),
    [
        (lambda *a: curvature.gauss_newton_diagonal(*a, "exakt"), "'exact', 'sampled' or 'true'", ValueError),
        (lambda *a: curvature.gauss_newton_diagonal(*a, "sampled"), "pass key=", ValueError),
        (lambda *a: curvature.fisher_product(*a, "sampled"), "pass key=", ValueError),
        (lambda *a: curvature.kronecker_factors(*a, "sampled", key=KEY, samples=0), "at least 1", ValueError),
        (lambda *a: curvature.hessian_diagonal(*a), "where the net is piecewise linear", ValueError),
        (lambda *a: curvature.hessian_product(*a)(()), "a tree like the parameters", ValueError),
        (lambda *a: curvature.gauss_newton_product(*a)(a[2][:1]), "a tree like the parameters", ValueError),
        (lambda n, _, *a: curvature.gauss_newton_diagonal(n, Quartic(), *a), "no sqrt_hessian", NotImplementedError),
    ],
)
def test_bad_input_is_refused(call, words, error):
    net, params, data = small(jbp.Dense(5), jbp.tanh, jbp.Dense(2))
    with pytest.raises(error, match=words):
        call(net, losses.l2_loss, params, *data)


CALLS = {
    "diagonal": curvature.gauss_newton_diagonal,
    "factors": curvature.kronecker_factors,
    "product": curvature.gauss_newton_product,
    "fisher": curvature.fisher_product,
    "hessian": curvature.hessian_product,
    "hessian diagonal": partial(curvature.hessian_diagonal, key=KEY),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_every_function_refuses(call: Any):
    net, params, (x, y) = small(jbp.Dense(5), jbp.tanh, jbp.Dense(2))
    loss = losses.l2_loss
    for words, wrong in {
        "at least one, but have shapes": (net, loss, params, x[:0], y[:0]),
        "the same number of examples": (net, loss, params, x, y[:-1]),
        "the loss must come from jbp.losses": (net, "l2", params, x, y),
        "the net must be a layer": (None, loss, params, x, y),
    }.items():
        with pytest.raises(ValueError, match=words):
            call(*wrong)
    with pytest.raises(ValueError, match="one number for each of the 11 examples"):
        call(net, loss, params, x, y, weights=jnp.ones(BATCH - 1))


def test_the_gram_matrix_of_an_outputs_columns_is_the_neural_tangent_kernel():
    net, params, (x, _) = small(jbp.Dense(5), jbp.tanh, jbp.repeat(jbp.serial(jbp.Dense(5), jbp.tanh), 2), jbp.Dense(2))
    flat, unravel = ravel_pytree(params)
    j = compiled(jax.jacrev(lambda f: plain(net, unravel(f), x)))(flat)
    output, saved = jbp.forward(net, params, x)
    backward, gram = whole(jbp.backward), whole(stats.gram)
    columns = [backward(net, params, saved, jnp.zeros_like(output).at[:, k].set(1))[1] for k in range(2)]
    for k in range(2):
        for m in range(2):
            kernel = gram(columns[k], columns[m])
            np.testing.assert_allclose(kernel, j[:, k] @ j[:, m].T, rtol=1e-11, atol=1e-13)


def test_no_pair_is_left_in_what_is_returned():
    net, params, data = small(jbp.Dense(5), jbp.tanh, jbp.Dense(2))
    found = whole(curvature.gauss_newton_diagonal)(net, losses.l2_loss, params, *data)
    assert jax.tree.structure(found, is_leaf=is_pair) == jax.tree.structure(params)
