"""Convolution, pooling and norms at their edges: odd geometries, mixed and narrow types, offsets, ties, constants."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NetCase, drawn
from oracles import assert_close, compiled, plain

import jbp
from jbp import stats

KEY = jax.random.key(0)
ODD = [
    NetCase("one pixel", jbp.Conv(3, 3), (1, 2)),
    NetCase("a kernel larger than the image", jbp.Conv(3, 5, padding=((3, 2),)), (2, 2)),
    NetCase("pixels never seen", jbp.Conv(3, 2, 5, "valid"), (13, 2)),
    NetCase("pixels never seen, the last ones too", jbp.Conv(3, (1, 1), (3, 4)), (8, 9, 2)),
    NetCase("more padding than kernel", jbp.Conv(4, 2, 3, ((7, 5),), 2, groups=2), (4, 2)),
    NetCase("images of their own", jbp.Conv(3, (3,), 2), (2, 3, 5, 2)),
    NetCase("windows that skip", jbp.MaxPool(2, 3, ((1, 1),)), (6, 2)),
    NetCase("windows that skip, of means", jbp.AvgPool((1, 2), (2, 5)), (5, 8, 2)),
]


@pytest.mark.parametrize("case", ODD, ids=lambda case: case.name)
def test_odd_geometries_have_the_gradients_of_their_plain_form(case: NetCase):
    params, x, delta, _ = drawn(case)

    def both(params: Any, x: Any, delta: Any) -> Any:
        y, saved = jbp.forward(case.net, params, x)
        delta_x, pairs = jbp.backward(case.net, params, saved, delta)
        expected, pull = jax.vjp(partial(plain, case.net), params, x)
        each = jax.vmap(lambda x, d: jax.vjp(lambda p: plain(case.net, p, x[None])[0], params)[1](d)[0])(x, delta)
        sums = jax.tree.map(lambda g: g.sum(0), each)
        if not jax.tree.leaves(params):
            return (y, delta_x), (expected, pull(delta)[1])
        ones = jnp.ones(len(x))
        squares = jax.tree.map(lambda g: jnp.square(g).reshape(len(x), -1).sum(1), each)
        found = (y, delta_x, jbp.contract(pairs, ones), stats.per_example(pairs), stats.squared_norms(pairs))
        return found, (expected, pull(delta)[1], sums, each, squares)

    found, expected = compiled(both)(params, x, delta)
    assert_close(found, expected, "layer")


def test_a_convolution_promotes_as_a_dense_layer_does_and_refuses_where_it_refuses():
    for layer, shape in ((jbp.Conv(3, 3), (5, 2)), (jbp.Dense(3), (2,))):
        params = layer.init(KEY, shape)[0]
        for of_x, of_params, wide in (
            (jnp.float32, jnp.float64, jnp.float64),
            (jnp.float16, jnp.float32, jnp.float32),
            (jnp.float32, jnp.bfloat16, jnp.float32),
        ):
            x, p = jnp.ones((2, *shape), of_x), jax.tree.map(lambda a, t=of_params: a.astype(t), params)
            with jax.numpy_dtype_promotion("standard"):
                y, saved = jbp.forward(layer, p, x)
                _, pairs = jbp.backward(layer, p, saved, jnp.ones_like(y))
                sums = jbp.contract(pairs)
            assert {y.dtype, *(a.dtype for a in jax.tree.leaves(sums))} == {jnp.dtype(wide)}
            with pytest.raises(ValueError, match="implicit"):  # strict, as this suite is
                jbp.forward(layer, p, x)


CENTRED = [jbp.LayerNorm(), jbp.GroupNorm(2), jbp.BatchNorm()]
NORMS = [*CENTRED, jbp.RMSNorm()]


@pytest.mark.parametrize("layer", NORMS, ids=repr)
def test_a_norm_squares_nothing_in_16_bits(layer: Any):
    """Activations beyond 255 have no square in float16: the variance was infinite and the output 0."""
    x = 400 * np.random.default_rng(0).normal(size=(3, 8, 4))
    params = layer.init(KEY, (8, 4))[0]
    delta = 2e4 * np.random.default_rng(1).uniform(-1, 1, size=x.shape)  # δ∘x̂ is no number of float16

    def run(dtype: Any) -> Any:
        p = jax.tree.map(lambda a: a.astype(dtype), params)
        y, saved = jbp.forward(layer, p, jnp.asarray(x, jnp.float16).astype(dtype), training=True)
        delta_x, pairs = jbp.backward(layer, p, saved, jnp.asarray(delta, jnp.float16).astype(dtype))
        assert {a.dtype for a in jax.tree.leaves(jbp.contract(pairs))} == {jnp.dtype(dtype)}
        return y, 0.02 * delta_x

    for narrow, wide in zip(run(jnp.float16), run(jnp.float32), strict=True):
        assert narrow.dtype == jnp.float16
        np.testing.assert_allclose(np.float64(narrow), np.float64(wide), atol=8e-3)


def test_a_mean_of_many_is_no_sum_in_16_bits():
    """In bfloat16 a sum of ones ends at 256: the mean of 400 was 0.64, and so was what came back."""
    x = jnp.ones((1, 20, 20, 1), jnp.bfloat16)
    for pool in (jbp.AvgPool(20), jbp.AvgPool(20, 1), jbp.GlobalPool()):
        y, saved = jbp.forward(pool, (), x)
        assert y.dtype == x.dtype and float(y.squeeze()) == 1.0
        delta_x = jbp.backward(pool, (), saved, jnp.ones_like(y))[0]
        assert delta_x.dtype == x.dtype and abs(float(delta_x.astype(jnp.float32).sum()) - 1) < 0.01
    overlapping = jbp.AvgPool(20, 1, ((19, 19),) * 2, True)  # each pixel is in 400 windows
    y, saved = jbp.forward(overlapping, (), x)
    assert (jbp.backward(overlapping, (), saved, jnp.ones_like(y))[0] == 1).all()


@pytest.mark.parametrize("layer", CENTRED, ids=repr)
def test_an_offset_costs_no_more_than_its_own_rounding(layer: Any):
    """The mean is taken away before anything is squared: 10⁴ of it in float32 costs 10⁴ eps and not its square."""
    offset = 1e4
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 4)) + offset, jnp.float32)
    params = layer.init(KEY, (8, 4))[0]

    def run(dtype: Any) -> Any:
        p = jax.tree.map(lambda a: a.astype(dtype), params)
        return np.asarray(jbp.forward(layer, p, x.astype(dtype), training=True)[0])

    deviation = 0.1  # below that of any group of these numbers
    assert np.abs(run(jnp.float32) - run(jnp.float64)).max() <= 4 * offset * 2.0**-23 / deviation


@pytest.mark.parametrize("layer", CENTRED, ids=repr)
def test_what_is_constant_is_normalised_to_the_bias_and_carries_finite_numbers_back(layer: Any):
    x = jnp.full((3, 8, 4), 3.7)
    params = layer.init(KEY, (8, 4))[0] | {"bias": jnp.asarray([1.0, 2.0, 3.0, 4.0])}
    y, saved = jbp.forward(layer, params, x, training=True)
    np.testing.assert_allclose(y, np.broadcast_to(params["bias"], x.shape), atol=1e-10)
    delta_x, pairs = jbp.backward(layer, params, saved, jnp.asarray(np.random.default_rng(0).normal(size=x.shape)))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((delta_x, jbp.contract(pairs))))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16], ids=lambda d: d.__name__)
def test_of_equals_in_a_window_autodiff_of_the_forward_pass_takes_the_first_too(dtype: Any):
    pool = jbp.MaxPool(3, 1, ((2, 1),))
    x = jnp.asarray(np.random.default_rng(0).integers(3, size=(4, 9, 2)), dtype)
    y, saved = jbp.forward(pool, (), x)
    delta = jnp.asarray(np.random.default_rng(1).integers(9, size=y.shape), dtype)
    expected = jax.vjp(lambda x: jbp.forward(pool, (), x)[0], x)[1](delta)[0]
    np.testing.assert_array_equal(jbp.backward(pool, (), saved, delta)[0], expected)


def test_no_window_lies_wholly_in_the_padding():
    """So that a maximum is never −∞, nor a mean of nothing: pools refuse padding that a window fits into."""
    for kind in (jbp.MaxPool, jbp.AvgPool):
        with pytest.raises(ValueError, match=r"padding of .*Pool must be less than its window"):
            kind(2, 1, ((2, 0),))
        for stride in (1, 2, 3, 5):
            y = jbp.apply(kind(3, stride, ((2, 2),)), (), jnp.full((1, 4, 1), -7.0))
            assert (y == -7).all()
