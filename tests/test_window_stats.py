# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
"""Statistics of kernels against brute force: second moments, spread, Gram matrices, records, Kronecker factors and
Gauss-Newton diagonals of nets whose kernels are strided, dilated, grouped, tied and repeated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, NetCase, drawn, random
from counting import product_flops, xla_cost
from oracles import assert_close, compiled, plain, whole
from test_statistics import check

import jbp
from jbp import curvature, losses, stats

LOSS = losses.l2_loss
HEAD = (jbp.Flatten(), jbp.Dense(2))


def net(*layers: Any, ties: Any = None) -> Any:
    inside = jbp.serial(*layers, *HEAD)
    return inside if ties is None else jbp.tied(inside, ties)


NETS = {
    case.name: case
    for case in (
        NetCase(
            "one dimension, then one site",
            net(jbp.Conv(3, 3, dilation=2), jbp.tanh, jbp.Conv(2, 7, padding="valid")),
            (7, 2),
            True,
        ),
        NetCase(
            "strided, grouped, depthwise",
            net(
                jbp.Conv(4, (3, 2), stride=(2, 1), padding=((1, 0), (2, 1)), dilation=(1, 2), groups=2),
                jbp.tanh,
                jbp.Conv(4, 2, stride=2, groups=4),
            ),
            (7, 5, 4),
            True,
        ),
        NetCase(
            "a kernel used twice", net(jbp.Conv(2, 3), jbp.tanh, jbp.Conv(2, 3), jbp.tanh, ties={2: 0}), (5, 4, 2), True
        ),
        NetCase(
            "a kernel on images of two sizes",
            net(jbp.Conv(2, 3), jbp.tanh, jbp.MaxPool(2), jbp.Conv(2, 3), jbp.tanh, ties={3: 0}),
            (6, 4, 2),
            True,
        ),
        NetCase("repeated", net(jbp.repeat(jbp.residual(jbp.serial(jbp.Conv(2, 2), jbp.tanh)), 3)), (4, 3, 2), True),
    )
}


@pytest.mark.parametrize("name", NETS)
def test_all_statistics_are_those_of_the_gradients_formed(name: str):
    case = NETS[name]
    params, x, target, _ = drawn(case)
    weights = jnp.asarray(random(name).uniform(0.1, 2, BATCH))
    check(case.net, LOSS, params, x, target, weights, "net", [jnp.float64])


@pytest.mark.parametrize("name", NETS)
def test_the_gauss_newton_diagonal_is_that_of_the_jacobians(name: str):
    """Of ½‖output − y‖² it is Σₖ (∂outputₖ/∂θ)²."""
    case = NETS[name]
    params, x, target, _ = drawn(case)
    weights = jnp.asarray(random(name).uniform(0.1, 2, BATCH)).at[2].set(0.0)

    def ours(p: Any, x: Any, y: Any, w: Any) -> Any:
        at = (case.net, LOSS, p, x, y)
        return (
            curvature.gauss_newton_diagonal(*at),
            curvature.gauss_newton_diagonal(*at, weights=w),
            curvature.gauss_newton_diagonal(*at, per_example=True),
        )

    columns = compiled(jax.jacrev(lambda p: plain(case.net, p, x)))(params)
    each = jax.tree.map(lambda j: jnp.square(j).sum(1), columns)
    wanted = (
        jax.tree.map(lambda d: d.mean(0), each),
        jax.tree.map(lambda d: jnp.tensordot(weights, d, 1), each),
        each,
    )
    assert_close(compiled(ours)(params, x, target, weights), wanted, "net")


def window(kernel: Any, space: Any, i: int, o: int, t: int = 1, groups: int = 1, **how: Any) -> jbp.Window:
    """A pair of random numbers."""
    d = len(kernel)
    stride, dilation, padding = (
        how.get(name, default) for name, default in (("stride", 1), ("dilation", 1), ("padding", 1))
    )
    geometry = jbp.Geometry(kernel, (stride,) * d, ((padding, padding - 1),) * d, (dilation,) * d, groups)
    rng = np.random.default_rng(i + 10 * o)
    h, delta = rng.normal(size=(5, t, *space, i)), rng.normal(size=(5, t, *geometry.sites(space), o))
    return jbp.Window(jnp.asarray(h), jnp.asarray(delta), (*kernel, i // groups, o), geometry)


WINDOWS = {
    "1-D": window((3,), (7,), 2, 3),
    "2-D, strided": window((3, 2), (7, 6), 2, 3, stride=2),
    "2-D, dilated, two images": window((2, 3), (6, 8), 3, 2, t=2, dilation=2),
    "grouped": window((3, 3), (5, 4), 4, 6, groups=2, stride=2),
    "depthwise": window((2, 2), (4, 5), 3, 3, groups=3),
    "3-D": window((2, 1, 3), (3, 4, 5), 2, 2),
    "one site": window((4, 4), (3, 3), 2, 3),
}


def seen(pair: jbp.Window) -> np.ndarray:
    """[n, t, g, k·i]: what the kernel sees, read pixel by pixel."""
    geometry, h = pair.geometry, np.asarray(pair.h)
    n, t, *sites, _ = pair.delta.shape
    found = np.zeros((n, t, *sites, *geometry.kernel, h.shape[-1]))
    for at in np.ndindex(*sites, *geometry.kernel):
        u, k = at[: geometry.dims], at[geometry.dims :]
        pixel = [
            a * stride + b * dilation - low
            for a, stride, b, dilation, (low, _) in zip(
                u, geometry.stride, k, geometry.dilation, geometry.padding, strict=True
            )
        ]
        if all(0 <= p < s for p, s in zip(pixel, h.shape[2:], strict=False)):
            found[:, :, *at] = h[:, :, *pixel]
    rows = found.reshape(n, t * np.prod(sites), np.prod(geometry.kernel), geometry.groups, -1)
    return np.moveaxis(rows, 3, 2).reshape(*rows.shape[:2], geometry.groups, -1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_kronecker_factors_of_a_kernel_are_sums_over_what_it_sees(name: str, weighted: bool):
    """In expand and reduce form; of groups one of each, and none of theirs together."""
    pair = WINDOWS[name]
    g = pair.geometry.groups
    weights = jnp.asarray([0.3, 0.0, 1.7, 0.4, 0.2]) if weighted else None
    w = np.full(5, 1 / 5) if weights is None else np.asarray(weights)
    h, delta = seen(pair), np.asarray(pair.delta).reshape(5, pair.uses, g, -1)
    wanted = {
        "expand": (np.einsum("n,ntgx,ntgy->gxy", w, h, h) / pair.uses, np.einsum("n,ntgo,ntgp->gop", w, delta, delta)),
        "reduce": (
            np.einsum("n,ngx,ngy->gxy", w, h.mean(1), h.mean(1)),
            np.einsum("n,ngo,ngp->gop", w, delta.sum(1), delta.sum(1)),
        ),
    }
    found = whole(lambda pair, w: {sharing: stats.kronecker(pair, sharing, w) for sharing in wanted})(pair, weights)
    for sharing, (a, b) in wanted.items():
        factors = found[sharing]
        assert_close((factors.a, factors.g), (a, b) if g > 1 else (a[0], b[0]), "net")


def test_of_one_example_at_one_site_a_kernels_factors_are_its_gradient_squared():
    pair = jax.tree.map(lambda a: a[:1], WINDOWS["one site"])
    gradient, factors = pair.total().reshape(-1), stats.kronecker(pair)
    assert_close(jnp.kron(factors.a, factors.g), jnp.outer(gradient, gradient), "net")


def test_factors_of_a_stack_and_of_two_sizes():
    one, other = WINDOWS["grouped"], jax.tree.map(lambda a: 2 * a, WINDOWS["grouped"])
    stack = jbp.Stack(jax.tree.map(lambda a, b: jnp.stack((a, b)), one, other))
    found = whole(stats.kronecker)(stack, "expand")
    for at, pair in enumerate((one, other)):
        assert_close(jax.tree.map(lambda a: a[at], found), whole(stats.kronecker)(pair, "expand"), "layer")  # noqa: B023
    small = window((3, 2), (4, 5), 2, 3)
    both = stats.kronecker(jbp.pairs.merge(WINDOWS["2-D, strided"], small))
    assert [factors.a.shape for factors in both] == [(12, 12), (12, 12)]
    assert_close(both[1], stats.kronecker(small), "layer")


def test_records_of_a_kernel_count_each_pixel_once_and_no_padding():
    """A channel is a unit: dead if it is 0 at every pixel of every example."""
    pair = WINDOWS["2-D, strided"]
    h = np.array(pair.h).clip(-1, 1)
    h[..., 1] = 0
    weights = np.array([1.0, 0.0, 2.0, 1.0, 0.0])
    for w in (None, weights):
        p = np.full(5, 1 / 5) if w is None else w / w.sum()
        found = stats.records(jbp.Window(jnp.asarray(h), pair.delta, pair.shape, pair.geometry), w)["."]
        wanted = [np.sqrt(p @ np.square(np.reshape(a, (5, -1))).mean(1)) for a in (h, pair.delta)]
        np.testing.assert_allclose((found.h, found.delta), wanted, rtol=1e-13)
        assert found.dead == 0.5
        np.testing.assert_allclose(found.saturated, p @ (abs(h) >= 0.99).reshape(5, -1).mean(1), rtol=1e-13)


# Inner products with a direction

_H, _D = jnp.ones((2, 1, 3)), jnp.ones((2, 1, 2))
PAIRS = ({"w": jbp.Outer(_H, _D, (3, 2)), "b": jbp.Shift(_D, (2,))}, jbp.Scale(_D, _D, (2,)))
V = ({"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.ones(2))


@pytest.mark.parametrize(
    ("v", "words"),
    [
        (V[:1], r"has nothing at v\[1\], where they have an array of shape \(2,\)"),
        ((*V, V[1]), r"has v\[2\] besides"),
        (list(V), "is PyTreeDef"),
        (({**V[0], "w": jnp.ones((2, 3))}, V[1]), r"v\[0\]\['w'\] has shape \(2, 3\) in place of \(3, 2\)"),
        (({**V[0], "b": jnp.ones(2, jnp.float32)}, V[1]), r"v\[0\]\['b'\] is of float32 in place of float64: take"),
        (({**V[0], "b": jnp.ones(2, int)}, V[1]), r"v\[0\]\['b'\] is of int64 in place of float64"),
        (
            ({**V[0], "b": jnp.ones(2, complex)}, V[1]),
            r"v\[0\]\['b'\] is an array complex128\[2\], where .* real numbers",
        ),
        (({**V[0], "b": "b"}, V[1]), r"v\[0\]\['b'\] is 'b', where they have real numbers"),
    ],
)
def test_a_direction_that_is_not_as_the_parameters_is_refused_by_the_leafs_name(v: Any, words: str):
    with pytest.raises(ValueError, match=f"v must be a tree like the parameters, but {words}"):
        stats.project(PAIRS, v)


def test_below_a_coupling_layer_there_is_no_inner_product():
    with pytest.raises(NotImplementedError, match="lies below the batch-coupled layer"):
        stats.project(jbp.Coupled(PAIRS[1], "[3]"), V[1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_of_16_bits_the_inner_products_are_float32(dtype: Any):
    """400 sites of δ = 1 and v = 1/4: their sum is 1000 to the unit, which bfloat16 rounds to 8 bits."""
    pair = jbp.Shift(jnp.ones((2, 4000, 1), dtype), (1,))
    wide = jnp.full(1, 0.3, jnp.float32)
    for v in (wide, wide.astype(dtype)):
        found = stats.project(pair, v)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, 4000 * float(v[0]), rtol=1e-5)
    kernel = jax.tree.map(lambda a: a.astype(dtype), WINDOWS["2-D, strided"])
    along = stats.project(kernel, kernel.total())
    np.testing.assert_allclose(along, project_wide(kernel), rtol=1e-5)


def project_wide(pair: Any) -> np.ndarray:
    g = np.asarray(stats.per_example(jax.tree.map(lambda a: a.astype(jnp.float64), pair))).reshape(pair.batch, -1)
    return g @ np.asarray(pair.total().astype(jnp.float64)).reshape(-1)


# What they cost

LENET = jbp.serial(
    jbp.Conv(6, 5, padding="valid"), jbp.tanh, jbp.AvgPool(2), jbp.Conv(16, 5, padding="valid"), jbp.tanh,
    jbp.AvgPool(2), jbp.Flatten(), jbp.Dense(84), jbp.tanh, jbp.Dense(10),
)  # fmt: skip
WIDE = jbp.serial(jbp.Conv(32, 3), jbp.relu, jbp.Conv(32, 3), jbp.relu, jbp.GlobalPool(), jbp.Dense(10))


@pytest.fixture
def as_users_run_it():
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def arguments(net: Any, shape: tuple[int, ...], n: int) -> tuple[Any, Any, Any]:
    params = jax.eval_shape(lambda key: net.init(key, shape)[0], jax.random.key(0))
    return params, jax.ShapeDtypeStruct((n, *shape), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)


NETWORKS = {"LeNet": (LENET, (28, 28, 1)), "wide": (WIDE, (8, 8, 32))}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_inner_product_costs_one_forward_product(name: str, as_users_run_it: None):
    net, shape = NETWORKS[name]
    args = arguments(net, shape, 64)
    cross = losses.softmax_cross_entropy

    def pairs(p: Any, x: Any, y: Any) -> Any:
        return jbp.value_and_pairs(net, cross, p, x, y)[1]

    forward = product_flops(lambda p, x, y: jbp.apply(net, p, x), *args)
    back = product_flops(lambda p, x, y: jax.tree.leaves(pairs(p, x, y)), *args)
    both = product_flops(
        lambda p, x, y, v: (jax.tree.leaves(pairs(p, x, y)), stats.project(pairs(p, x, y), v)), *args, args[0]
    )
    print(f"inner products, {name}: {(both - back) / forward:.3f} of a forward pass")
    assert forward <= both - back <= 1.002 * forward


COSTS = {
    "project": (stats.project, 1.001, 1.0),
    "second moment": (stats.second_moment, 1.08, 1.3),
    "variance": (stats.variance, 1.48, 1.6),
    "signal to noise": (stats.snr, 1.48, 1.6),
    "noise scale": (stats.noise_scale, 1.48, 1.6),
    "records": (stats.records, 0.601, 1.0),
    "Gram matrix": (stats.gram, 1.56, 3.2),
    "Kronecker factors": (stats.kronecker, 5.0, 1.4),
    "Kronecker factors, reduced": (lambda pairs: stats.kronecker(pairs, "reduce"), 0.67, 0.8),
}
"""In plain gradients: products, and bytes of temporaries. Of the Gram matrix all gradients are there at once."""


@pytest.mark.parametrize("name", COSTS)
def test_no_statistic_unfolds_the_windows_of_a_batch(name: str, as_users_run_it: None):
    """Unfolded they are nine times h; then each of these took 5.18 times the gradient's
    temporaries."""
    statistic, flops, most = COSTS[name]
    args = (*arguments(WIDE, (8, 8, 32), 64),)
    plain_gradient = jbp.value_and_grad(WIDE, losses.softmax_cross_entropy)

    def run(p: Any, x: Any, y: Any, *v: Any) -> Any:
        return statistic(jbp.value_and_pairs(WIDE, losses.softmax_cross_entropy, p, x, y)[1], *v)

    given = (*args, args[0]) if name == "project" else args
    products = product_flops(run, *given) / product_flops(plain_gradient, *args)
    more = xla_cost(run, *given)[1] / xla_cost(plain_gradient, *args)[1]
    print(f"{name}: products {products:.3f}, bytes {more:.3f}")
    assert products <= flops
    assert more <= most
