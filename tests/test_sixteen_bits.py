# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
"""What is squared, added up and divided is so in at least float32, at both ends of each range of 16 bits.

float16 ends at 65504, so that a norm of 300 has no square, and at 6e-8, so that one of 1/5000 has none either; bfloat16
has 8 bits, and a sum of ones ends at 256. What is compared with is float64 of the same 16-bit pairs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples
from cases import BATCH, drawn
from oracles import compiled
from samples import SAMPLES
from test_pairs import READ, WEIGHTS, naive
from test_statistics import CASES
from test_statistics_laws import formed

import jbp
from jbp import curvature, losses, stats
from jbp.pairs import is_pair
from jbp.rules.transport import root_mean_square
from jbp.step import shares
from jbp.train.in_place import InPlace

ENDS = [("float16", 300.0), ("float16", 1 / 3000), ("bfloat16", 1e8), ("bfloat16", 1e-8)]
"""Each dtype, and the size of h and δ: squares, or sums of them, are outside float16; in bfloat16 they are not."""
SIXTEEN = ["float16", "bfloat16"]


def close(found: Any, expected: Any, name: str, units: float = 1e-5) -> None:
    """In units of the largest entry; of a ratio entry by entry."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == np.float32, f"{name} is {a.dtype}"
        size = np.abs(b[np.isfinite(b)]).max(initial=0)
        rtol, atol = (1e-3, 1e-5) if name == "snr" else (0, units * size)
        np.testing.assert_allclose(a.astype(np.float64).reshape(b.shape), b, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("name", ["Outer", "Outer, transposed", "Lookup", "Shift", "Scale", "Window", "Sum", "Stack"])
def test_a_total_has_the_type_of_its_pair(name, dtype):
    """Added up in float32, and rounded once at the end."""
    sample = SAMPLES[name]().pair
    pair = jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, sample)
    assert pair.total().dtype == pair.total(jnp.asarray(WEIGHTS, dtype)).dtype == jnp.dtype(dtype)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [pytest.param(*end, marks=[pytest.mark.soak] if end == ("bfloat16", 1e8) else []) for end in ENDS],
)
@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "Coupled"])
def test_every_statistic_of_every_class_of_pair(name, dtype, size, monkeypatch):
    whole = samples.draw
    monkeypatch.setattr(
        samples, "draw", lambda *s, seed=0: np.asarray(jnp.asarray(size * whole(*s, seed=seed), dtype), np.float64)
    )
    sample = SAMPLES[name]()
    pair = jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, sample.pair)
    w = jnp.asarray(WEIGHTS, dtype)
    found = compiled(lambda pair, w: {n: read(pair, w) for n, read in READ.items()})(pair, w)
    for statistic, expected in naive(sample).items():
        close(found[statistic], expected, statistic)
    np.testing.assert_allclose(compiled(stats.variance)(pair, 20000 * w), found["variance"][1], rtol=1e-5)
    close(compiled(lambda pair: stats.variance(pair, centred=False))(pair), naive(sample)["variance"][0], "variance")
    assert compiled(jbp.contract)(pair).dtype == pair.dtype == jnp.dtype(dtype)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_sums_over_many_examples(dtype):
    """Of 4096 numbers next to 1, of which bfloat16 holds no sum beyond 256 to the digit; and 4096 in float16."""
    rng = np.random.default_rng(0)
    h, delta = (jnp.asarray(1 + rng.normal(size=(4096, 1, k)) / 16, dtype) for k in (3, 2))
    pairs = {"w": jbp.Outer(h, delta, (3, 2)), "b": jbp.Shift(delta, (2,)), "g": jbp.Scale(delta, delta, (2,))}
    found = compiled(lambda p: {n: READ[n](p, None) for n in ("second_moment", "variance", "noise_and_signal")})(pairs)
    g = {name: formed(pair) for name, pair in pairs.items()}
    mean = compiled(jbp.contract)(pairs)
    for name, rows in g.items():
        close(np.ravel(found["second_moment"][0][name]), np.square(rows).mean(0), name)
        close(np.ravel(found["variance"][0][name]), rows.var(0, ddof=1), name, 1e-4)
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.ravel(mean[name]).astype(float), rows.mean(0), rtol=eps)
    trace = sum(rows.var(0, ddof=1).sum() for rows in g.values())
    np.testing.assert_allclose(found["noise_and_signal"][0][0], trace, rtol=1e-4)
    factors = compiled(stats.kronecker)(pairs)["w"]
    h, delta = (np.asarray(a, np.float64)[:, 0] for a in (h, delta))
    close((factors.a, factors.g), (h.T @ h / 4096, delta.T @ delta / 4096), "kronecker", 1e-4)


LEAN = [case for i, case in enumerate(CASES) if i % 6 == 0 or "kinds" in case.name]


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in LEAN else [pytest.mark.soak], id=case.name) for case in CASES]
)
def test_nets_of_the_case_table(case, dtype):
    """Norms beyond 256 and gradients below 1/5000, with the parameters in 16 bits; what a statistic reads is what the
    pairs hold, rounded, and no clipped gradient exceeds the bound as a float32 quantity."""
    params, x, y, _ = drawn(case, jnp.float64)
    y = y.reshape(BATCH, -1) if y.ndim < 2 else y

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)

    def run(p: Any, x: Any, y: Any, size: Any) -> Any:
        output, saved = jbp.forward(case.net, p, x)
        delta = size * jax.vmap(losses.l2_loss.delta)(output, y)
        pairs = jbp.backward(case.net, p, saved, delta.astype(dtype))[1]
        alone = jax.vmap(lambda w: stats.clipped(pairs, 1.0, weights=w))(jnp.eye(BATCH, dtype=jnp.float32))
        return (
            pairs,
            stats.norms(pairs),
            stats.squared_norms(pairs),
            stats.second_moment(pairs),
            stats.gram(pairs),
            alone,
        )

    program = compiled(run)
    for size in (1000.0, 1e-4) if dtype == "float16" else (1e6, 1e-6):
        pairs, norms, squares, moment, gram, alone = program(*cast((params, x, y)), jnp.asarray(size, dtype))
        leaves = jax.tree.leaves(pairs, is_leaf=is_pair)
        g = [formed(pair) for pair in leaves]
        flat = np.concatenate(g, 1)
        if not np.isfinite(flat).all():  # δ itself left the range on its way back
            assert dtype == "float16" and size > 1
            continue
        size = np.square(np.concatenate([pair.reach().reshape(-1, BATCH).astype(float) for pair in leaves])).sum(0)
        assert (np.abs(np.square(norms.astype(float)) - np.square(flat).sum(1)) <= 1e-5 * size).all()
        np.testing.assert_allclose(gram, flat @ flat.T, rtol=0, atol=1e-5 * size.max())
        for found, rows in zip(jax.tree.leaves(moment), g, strict=True):
            np.testing.assert_allclose(np.ravel(found), np.square(rows).mean(0), rtol=0, atol=1e-5 * size.max())
        each = np.concatenate([np.asarray(leaf).reshape(BATCH, -1) for leaf in jax.tree.leaves(alone)], 1)
        lengths = np.linalg.norm(each.astype(np.float64), axis=1)
        assert each.dtype == squares_dtype(squares) == np.float32
        assert lengths.max() <= 1 + 1e-5
        long = np.linalg.norm(flat, axis=1) > 2
        assert (lengths[long & (size < 4 * np.square(flat).sum(1))] > 0.99).all()


def squares_dtype(squares: Any) -> Any:
    (dtype,) = {leaf.dtype for leaf in jax.tree.leaves(squares)}
    return dtype


def test_examples_of_float16_are_clipped_and_none_is_dropped():
    """Four gradients of norm 300 under C = 1 add up to one of norm 4 where they agree; in float16 their squares are
    infinite, and they were left out; squares of 1/5000 are 0 there, and they were taken for gradients of norm 0."""
    net = jbp.serial(jbp.Dense(1))
    params = {"weight": jnp.zeros((1, 1), jnp.float16), "bias": jnp.zeros(1, jnp.float16)}
    y = jnp.full((4, 1), -300.0, jnp.float16)
    pairs = jbp.value_and_pairs(net, losses.l2_loss, (params,), jnp.ones((4, 1), jnp.float16), y)[1]
    total = stats.clipped(pairs, 1.0)
    np.testing.assert_allclose(np.linalg.norm([np.ravel(a) for a in jax.tree.leaves(total)]), 4.0, rtol=1e-6)
    small = jbp.Shift(jnp.full((4, 1, 2), 1e-4, jnp.float16), (2,))
    np.testing.assert_allclose(stats.norms(small), np.full(4, 2**0.5 * float(jnp.float16(1e-4))), rtol=1e-6)
    np.testing.assert_allclose(stats.clipped(small, 1e-6), np.full(2, 4e-6 / 2**0.5), rtol=1e-5)


@pytest.mark.parametrize(
    "weights",
    [
        np.full(8, 20000, np.float16),
        np.arange(8).astype(np.float16) * 1e-7,
        np.arange(1, 9).astype(np.float32) * 1e37,
        np.arange(1, 9) * 2**40,
        np.arange(1, 9, dtype=np.uint64) << np.uint64(59),
        np.array([True, False] * 4),
    ],
    ids=["float16, large", "float16, small", "float32, large", "int64", "uint64", "bool"],
)
def test_proportions_of_weights_of_any_size_and_type(weights):
    expected = weights.astype(np.float64) / weights.astype(np.float64).sum()
    pair = jbp.Shift(jnp.asarray(np.random.default_rng(3).normal(size=(8, 1, 5)), jnp.float32), (5,))
    with jax.enable_x64(False):
        np.testing.assert_allclose(np.asarray(shares(weights)), expected, rtol=1e-6)
        found, moment = stats.variance(pair, weights), stats.second_moment(pair, weights)
        net, y = jbp.serial(jbp.Dense(5, use_bias=False)), pair.delta[:, 0]
        params, x = ({"weight": jnp.zeros((1, 5), jnp.float32)},), jnp.ones((8, 1), jnp.float32)
        sums = [jbp.value_and_grad(net, losses.l2_loss)(params, x, y, weights=weights)[1][0]["weight"]]
        sums += [jbp.contract({"b": pair}, weights)["b"][None]]
    g = formed(pair)
    w = weights.astype(np.float64)
    size = w @ np.abs(g)
    for total, sign in zip(sums, (-1, 1), strict=True):
        np.testing.assert_allclose(np.asarray(total)[0] / size, sign * (w @ g) / size, atol=1e-6)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(moment, np.float32(w @ np.square(g)), rtol=1e-5)
    wanted = expected @ np.square(g - expected @ g) / (1 - np.square(expected).sum())
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def float16_problem(n: int) -> Any:
    """Inputs and errors of about 1/300: of so many examples 1/n of a δ is next to nothing in float16."""
    net = jbp.serial(jbp.Dense(4), jbp.tanh, jbp.Dense(2))
    params, _ = net.init(jax.random.key(0), (3,))
    x, noise = (jax.random.normal(jax.random.key(k), (n, width)) for k, width in ((1, 3), (2, 2)))
    params, x = jax.tree.map(lambda a: a.astype(jnp.float16), (params, x))
    y = jbp.apply(net, params, x) + (3e-3 * (1 + 0.1 * noise)).astype(jnp.float16)
    return net, params, x, y


def in_float64(net: Any, params: Any, x: Any, y: Any, weights: Any) -> Any:
    pairs = jbp.value_and_pairs(net, losses.l2_loss, params, x, y)[1]
    return [weights @ formed(pair) for pair in jax.tree.leaves(pairs, is_leaf=is_pair)]


@pytest.mark.parametrize("weights", ["none", "large", "small"])
def test_the_gradient_of_many_examples_in_float16(weights):
    """To a few units of float16 of the largest entry: δ is not divided by 20,000 before it goes back, and no weight
    is rounded to 0 or to infinity."""
    n = 20000
    net, params, x, y = float16_problem(n)
    w = {"none": None, "large": np.full(n, 7e4), "small": np.full(n, 1e-9)}[weights]
    w = None if w is None else jnp.asarray(w * (1 + np.arange(n) % 2), jnp.float32)
    value, grads = jbp.value_and_grad(net, losses.l2_loss)(params, x, y, weights=w)
    share = np.full(n, 1 / n) if w is None else np.asarray(w, np.float64)
    expected = in_float64(net, params, x, y, share)
    errors = np.asarray(jbp.value_and_pairs(net, losses.l2_loss, params, x, y)[0], np.float64)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, share @ errors, rtol=1e-3)
    if weights == "none":
        state = {}
        for method in (None, InPlace()):
            problem = jbp.Problem(net, losses.l2_loss, jbp.optim.sgd(1.0), method=method)
            start = jbp.init_state(problem, jax.ShapeDtypeStruct((3,), jnp.float16), params=params)
            state[method], figures = jbp.make_step(problem)(start, jbp.Batch(x, y))
            np.testing.assert_allclose(figures.loss, value, rtol=1e-6)
        after = [jax.tree.leaves(s.params) for s in state.values()]
        for a, b, before, g in zip(*after, jax.tree.leaves(params), jax.tree.leaves(grads), strict=True):
            assert a.dtype == b.dtype == jnp.float16
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, before - g)
    for g, wanted in zip(jax.tree.leaves(grads), expected, strict=True):
        assert g.dtype == jnp.float16
        largest = 65504.0 if weights == "large" else np.abs(wanted).max()
        wanted = np.where(np.abs(wanted) > 65504, np.sign(wanted) * np.inf, wanted)
        finite = np.isfinite(wanted)
        np.testing.assert_array_equal(np.ravel(g)[~finite], wanted[~finite])
        np.testing.assert_allclose(np.ravel(g)[finite].astype(float), wanted[finite], atol=max(4e-3 * largest, 1e-7))


@pytest.mark.parametrize("size", [300.0, 1e-3])
def test_curvature_in_float16(size):
    """Gauss-Newton diagonal, Kronecker factors and products, beside those of the same numbers in float64."""
    net = jbp.serial(jbp.Dense(4), jbp.relu, jbp.Dense(2))
    params, _ = net.init(jax.random.key(0), (3,))
    x = size * jax.random.normal(jax.random.key(1), (500, 3))
    params, x = jax.tree.map(lambda a: a.astype(jnp.float16), (params, x))
    y = jnp.zeros((500, 2), jnp.float16)
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (params, x, y))

    def read(p: Any, x: Any, y: Any) -> Any:
        given = net, losses.l2_loss, p, x, y
        one = jax.tree.map(jnp.ones_like, p)
        return (
            curvature.gauss_newton_diagonal(*given),
            curvature.kronecker_factors(*given),
            curvature.gauss_newton_product(*given)(one),
            curvature.fisher_product(*given)(one),
            curvature.hessian_product(*given)(one),
            curvature.gauss_newton_diagonal(*given, "sampled", key=jax.random.key(3), samples=4),
            curvature.gauss_newton_diagonal(*given, weights=jnp.full(len(x), 1e-9, x.dtype if x.dtype == jnp.float64
                                                                     else jnp.float32)),
        )  # fmt: skip

    found, expected = compiled(read)(params, x, y), compiled(read)(*wide)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-2 * np.abs(b).max())
    estimate = curvature.hessian_diagonal(net, losses.softmax_cross_entropy, params, x, y[:, 0].astype(int))
    assert estimate.exact and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(estimate.value))
    smooth = jbp.serial(jbp.Dense(4), jbp.tanh, jbp.Dense(2))
    estimate = curvature.hessian_diagonal(smooth, losses.l2_loss, params, x, y, key=jax.random.key(4), samples=3)
    assert all(leaf.dtype == jnp.float32 and jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(estimate.value))


def test_the_root_mean_square_of_weights():
    for size in (1e3, 1e-4):
        weight = jnp.full((5, 7), size, jnp.float16)
        assert root_mean_square(weight) == weight[0, 0]


@pytest.mark.parametrize(
    ("h", "delta", "norm", "factor"),
    [
        (1e15, 1e3, 1e18, 1e-18),
        (1e-15, 1e-3, 1e-18, 1.0),
        (1e18, 1e-18, 1.0, 1.0),
        (1e15, 1e5, np.inf, 0.0),
        (1e-15, 1e-5, 0.0, 1.0),
        (1e20, 1e-20, np.nan, 0.0),
        (1e20, 1.0, np.inf, 0.0),
        (1e-20, 1e5, 0.0, 1.0),
    ],
)
def test_the_range_of_norms_in_float32_is_what_the_documentation_says(h, delta, norm, factor):
    for t in (1, 2):
        pair = jbp.Outer(
            jnp.full((1, t, 4), h / 2 / t, jnp.float32), jnp.full((1, t, 4), delta / 2, jnp.float32), (4, 4)
        )
        found = stats.norms(pair)
        if t == 1 or np.isfinite(norm):
            np.testing.assert_allclose(found, [norm], rtol=1e-5)
        assert np.isfinite(found[0]) == np.isfinite(norm)
        np.testing.assert_allclose(stats.clip_weights(pair, 1.0), [factor], rtol=1e-2)
