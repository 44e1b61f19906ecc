"""What `jbp.check` makes of convolution and pooling: the complex step above all, which XLA's convolution loses."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracles import compiled

import jbp
from jbp.check.compiled import hurried

COMPLEX_STEP: Any = sys.modules["jbp.check.complex_step"]


@pytest.fixture(autouse=True)
def hurry():
    with hurried():
        yield


def steps(net: Any, shape: tuple[int, ...]) -> list[Any]:
    """The entries of the complex step, of a check that passes but for them."""
    report = jbp.check.layer(net, shape, batch=2)
    assert all(e.oracle == "complex step" for e in report.failures), report
    return [e for e in report.entries if e.oracle == "complex step"]


@pytest.mark.parametrize(
    ("net", "shape", "leaves"),
    [
        (jbp.Conv(4, (3, 2), (2, 1), "same", (1, 2), groups=2), (5, 7, 2), 3),
        (jbp.Conv(2, (2, 1, 2), padding="valid", use_bias=False), (3, 2, 3, 2), 2),
        (jbp.MaxPool(3, 2, ((1, 1),)), (7, 2), 1),
        (jbp.AvgPool((2, 3), 1, "same"), (3, 5, 2), 1),
        (jbp.repeat(jbp.residual(jbp.serial(jbp.Conv(2, 3), jbp.MaxPool(2, 1, "same"))), 2), (5, 2), 3),
    ],
    ids=repr,
)
def test_convolution_and_pooling_have_a_complex_step_that_passes(net, shape, leaves):
    assert [e.verdict for e in steps(net, shape)] == ["pass"] * leaves


class Naive(jbp.Conv):
    """A right layer of a user's own, in two dimensions, which hands complex numbers to XLA's convolution."""

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x[None], params["weight"], (1, 1), "SAME", dimension_numbers=numbers)[0]
        return y, x


def test_a_convolution_of_complex_numbers_would_fail_falsely_and_is_skipped_with_the_way_out(monkeypatch):
    naive = Naive(3, 3, use_bias=False)
    entries = steps(naive, (5, 7, 2))
    assert {e.verdict for e in entries} == {"skip"} and all("jbp.pairs.Geometry" in e.note for e in entries)
    monkeypatch.setattr(COMPLEX_STEP, "_LOSSY", frozenset())
    assert "fail" in {e.verdict for e in steps(naive, (5, 7, 2))}


def test_a_wrong_way_back_fails_by_the_complex_step_too():
    class Wrong(jbp.Conv):
        def backward(self, params: Any, saved: Any, delta: Any) -> Any:
            delta_x, pairs = super().backward(params, saved, delta)
            return jnp.flip(delta_x, 0), pairs

    report = jbp.check.layer(Wrong(3, 3), (5, 2), batch=2)
    failed = [e.path for e in report.failures if e.oracle == "complex step"]
    assert failed == ["delta_x"]


def test_parts_taken_apart_elsewhere_are_no_analytic_function():
    class Real(jbp.Conv):
        def forward(self, params: Any, x: Any, key: Any) -> Any:
            y, saved = super().forward(params, x, key)
            return y + 0 * jnp.real(x).sum().astype(y.dtype), saved

    assert {e.verdict for e in steps(Real(3, 3), (5, 2))} == {"skip"}


def test_max_pool_takes_the_first_of_equals_and_any_nan_as_autodiff_of_reduce_window_does():
    """Values of few levels, NaN and both zeros among them: the value of the window, and where δ goes."""
    rng, nan = np.random.default_rng(0), np.nan
    x = jnp.asarray(
        rng.choice(
            [0.0, -0.0, 1.0, -1.0, -np.inf, np.inf, nan], p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.05, 0.05], size=(4, 9, 8, 2)
        )
    )
    pool, delta = jbp.MaxPool((3, 2), 2, ((1, 2), (0, 1))), rng.normal(size=(4, 5, 4, 2))

    def ours(x: Any) -> Any:
        y, saved = jbp.forward(pool, (), x)
        return y, jbp.backward(pool, (), saved, jnp.asarray(delta))[0]

    def plain(x: Any) -> Any:
        return lax.reduce_window(x, -np.inf, lax.max, (1, 3, 2, 1), (1, 2, 2, 1), ((0, 0), (1, 2), (0, 1), (0, 0)))

    y, delta_x = compiled(ours)(x)
    np.testing.assert_array_equal(y, compiled(plain)(x))
    numbers = jnp.where(jnp.isnan(x), 3.0, jnp.where(x == np.inf, 2.0, x))  # NaN is the largest of all
    expected = compiled(lambda x: jax.vjp(plain, x)[1](jnp.asarray(delta))[0])(numbers)
    np.testing.assert_allclose(delta_x, expected, rtol=1e-14)
    assert np.isnan(np.asarray(y)).any() and (np.asarray(y) == 0).any()
