# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
"""Variance, signal-to-noise ratio and noise scale where the mean is much larger than the spread.

What is compared with is float64 of the very numbers that float32 pairs hold: gradients formed, then the definition.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import compiled
from samples import Pick
from test_statistics_laws import formed

import jbp
from jbp import losses, stats
from jbp.stats.norms import by_gram

N = 24
FAR = [(0.0, 0.0), (1e3, 0.0), (0.0, 1e3), (1e3, 1e3), (1e6, 0.0), (0.0, 1e6), (1e6, 1e6)]
"""How far h and δ lie from 0, in their spreads."""


def draw(seed: int, offset: float, *shape: int) -> Any:
    """Numbers of spread 1 around an offset of either sign, another for each unit and use."""
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.normal(size=(N, *shape)) + offset * rng.choice([-1.0, 1.0], shape), jnp.float32)


def outer(t: int, i: int, o: int, h: float, delta: float) -> Any:
    return jbp.Outer(draw(0, h, t, i), draw(1, delta, t, o), (i, o))


def picked(h: float, delta: float) -> Any:
    """A class that `jbp.stats` does not know: rows of a table, here the same in every example but for the last."""
    index = np.tile(np.arange(3), (N, 1))
    index[:, 2] = np.arange(N) % 3
    return Pick(jnp.asarray(index)[..., None], draw(1, delta, 3, 4), (3, 4))


PAIRS = {
    "Outer": lambda h, delta: outer(1, 5, 4, h, delta),
    "Outer, Gram matrices": lambda h, delta: outer(2, 37, 31, h, delta),
    "Outer, one at a time": lambda h, delta: outer(3, 5, 4, h, delta),
    "Shift": lambda h, delta: jbp.Shift(draw(1, delta, 3, 4), (4,)),
    "Scale": lambda h, delta: jbp.Scale(draw(0, h, 3, 4), draw(1, delta, 3, 4), (4,)),
    "Sum": lambda h, delta: jbp.Sum((outer(1, 5, 4, h, delta), jbp.Shift(draw(2, h * delta, 1, 20), (5, 4)))),
    "Stack": lambda h, delta: jbp.Stack(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), outer(1, 5, 4, h, delta))),
    "Pick": picked,
}


def read(pair: Any, weights: Any) -> dict[str, Any]:
    return {
        "variance": stats.variance(pair, weights),
        "snr": stats.snr(pair, weights),
        "noise_and_signal": stats.noise_and_signal(pair, weights),
        "noise_scale": stats.noise_scale(pair, weights),
    }


def defined(g: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    rest = 1 - np.square(p).sum()
    variance = p @ np.square(g - p @ g) / rest
    trace, signal = variance.sum(), np.square(p @ g).sum() - (1 - rest) * variance.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.square(p @ g) / variance
    scale = trace / signal if signal > 0 else np.inf
    return {"variance": variance, "snr": snr, "noise_and_signal": (trace, signal), "noise_scale": scale}


def formed_or_picked(pair: Any) -> np.ndarray:
    return formed(pair.rows()[0] if isinstance(pair, Pick) else pair)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_mean_of_many_spreads_is_taken_away_first(kind):
    """An offset of 1,000 spreads in h, in δ or in both to 1 %, of a million finite and of the right sign; with weights,
    of which those that are 0 are of rows that are NaN, in h too."""
    program = compiled(read)
    w = np.random.default_rng(5).uniform(0.1, 2, N) * (np.arange(N) % 5 != 1)
    gone = jnp.asarray(w == 0)
    if kind == "Outer, Gram matrices":
        assert by_gram(PAIRS[kind](0, 0))
    for h, delta in FAR:
        pair = PAIRS[kind](h, delta)
        expected = defined(formed_or_picked(pair), w / w.sum())

        def spoilt(a: Any) -> Any:
            rows = gone.reshape((-1,) + (1,) * (a.ndim - 1)) if a.shape[0] == N else gone[None, :, None, None]
            return jnp.where(rows, jnp.nan, a) if jnp.issubdtype(a.dtype, jnp.floating) else a

        found = program(jax.tree.map(spoilt, pair), jnp.asarray(w, jnp.float32))
        for name, wanted in expected.items():
            for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(wanted), strict=True):
                a = np.asarray(a, np.float64).reshape(np.shape(b))
                assert np.isfinite(a[np.isfinite(b)]).all(), (name, h, delta)
                if max(h, delta) < 1e6:
                    np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-7, err_msg=f"{name}, {h:g} and {delta:g}")
                elif name != "noise_and_signal":
                    assert ((a > 0) | (b == 0)).all(), (name, h, delta)


def test_without_weights_a_parameter_used_once_keeps_its_digits_however_far_the_features_lie():
    program = compiled(lambda pair: read(pair, None))
    for h, delta in FAR:
        pair = PAIRS["Outer"](h, delta)
        found, expected = program(pair), defined(formed(pair), np.full(N, 1 / N))
        np.testing.assert_allclose(np.ravel(found["variance"]), expected["variance"], rtol=1e-5)
        np.testing.assert_allclose(np.ravel(found["snr"]), expected["snr"], rtol=1e-3)
        np.testing.assert_allclose(found["noise_and_signal"], expected["noise_and_signal"], rtol=1e-4)


def test_what_is_alike_in_every_example_has_no_variance_and_nothing_comes_out_below_0():
    """h and δ of each example the same, then gradients alike though h and δ are not: h doubled where δ is halved."""
    pair = jax.tree.map(lambda a: jnp.tile(a[:1], (N, 1, 1)), PAIRS["Outer"](1e3, 1e3))
    twice = 2.0 ** (jnp.arange(N) % 2)[:, None, None].astype(jnp.float32)
    program = compiled(lambda pair: (stats.variance(pair), stats.snr(pair), stats.noise_and_signal(pair)))
    for one in (pair, jbp.Outer(pair.h * twice, pair.delta / twice, pair.shape)):
        variance, snr, (trace, _) = jax.tree.map(np.asarray, program(one))
        size = np.square(formed(one)).mean(0).reshape(variance.shape)
        assert (variance >= 0).all() and (variance <= 1e-5 * size).all()
        assert (snr > 1e4).all() and 0 <= trace <= 1e-5 * size.sum()


@pytest.mark.parametrize("n", [2, 24])
def test_where_h_and_delta_follow_one_another_the_error_is_that_of_their_own_spreads(n):
    """The stated bound, eps·(h̄² var δ + δ̄² var h + Σ pₙ h̃² δ̃²) times about √N: δ falls as h grows, and both change
    sign together."""
    program = compiled(stats.variance)
    rng = np.random.default_rng(n)
    h = rng.normal(size=(n, 1, 5)) + rng.choice([-3.0, 0.0, 3.0, 1e3], (1, 5))
    signs = rng.choice([-1.0, 1.0], (n, 1, 1))
    h = np.concatenate([h, signs * np.ones((1, 1, 3))], 2)
    delta = np.concatenate([1 / h[..., :1], 10 - h[..., 1:2], signs * (1 + 1e-3 * rng.normal(size=(n, 1, 1)))], 2)
    pair = jbp.Outer(jnp.asarray(h, jnp.float32), jnp.asarray(delta, jnp.float32), (8, 3))
    h, delta = (np.asarray(a, np.float64)[:, 0] for a in (pair.h, pair.delta))
    moved, turned = h - h.mean(0), delta - delta.mean(0)
    size = (
        np.outer(np.square(h.mean(0)), np.square(turned).mean(0))
        + np.outer(np.square(moved).mean(0), np.square(delta.mean(0)))
        + np.square(moved).T @ np.square(turned) / n
    )
    true = formed(pair).reshape(n, 8, 3).var(0, ddof=1)
    assert (
        np.abs(np.asarray(program(pair), np.float64) - true)
        <= 4 * n**0.5 * np.finfo(np.float32).eps * size * n / (n - 1)
    ).all()


def test_the_cheap_form_is_off_by_no_more_than_it_says_and_goes_below_0_where_the_other_does_not():
    cheap, centred = (compiled(lambda p, c=c: stats.variance(p, centred=c)) for c in (False, True))
    below = False
    for h, delta in FAR:
        pair = PAIRS["Outer"](h, delta)
        g = formed(pair)
        bound = (2 * N + 8) * np.finfo(np.float32).eps * np.square(g).mean(0) * N / (N - 1)
        found = np.ravel(cheap(pair))
        assert (np.abs(found - g.var(0, ddof=1)) <= bound).all(), (h, delta)
        below = below or found.min() < 0
        assert np.min(centred(pair)) > 0
    assert below
    assert (
        np.abs(np.ravel(cheap(PAIRS["Outer"](0, 0))) / formed(PAIRS["Outer"](0, 0)).var(0, ddof=1) - 1) < 1e-5
    ).all()


def test_a_net_on_features_with_an_offset():
    """Years and temperatures in kelvin: features of spread 1 around 2000 and 300, targets around 1000."""
    net = jbp.serial(jbp.Dense(3))
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(64, 2)) + np.array([2000, 300]), jnp.float32)
    y = jnp.asarray(1000 + rng.normal(size=(64, 3)), jnp.float32)
    params = jax.tree.map(lambda a: 1e-3 * a.astype(jnp.float32), net.init(jax.random.key(0), (2,))[0])
    run = compiled(lambda p, x, y: [f(jbp.value_and_pairs(net, losses.l2_loss, p, x, y)[1]) for f in
                                    (lambda pairs: pairs, stats.variance, stats.snr, stats.noise_scale)])  # fmt: skip
    pairs, variance, snr, scale = run(params, x, y)
    flat = np.concatenate([formed(pair) for pair in jax.tree.leaves(pairs, is_leaf=jbp.pairs.is_pair)], 1)
    expected = defined(flat, np.full(64, 1 / 64))
    for found, name in ((variance, "variance"), (snr, "snr")):
        found = np.concatenate([np.ravel(a) for a in jax.tree.leaves(found)])
        np.testing.assert_allclose(found, expected[name], rtol=1e-2)
    np.testing.assert_allclose(scale, expected["noise_scale"], rtol=1e-2)


def test_one_weight_that_is_nearly_all():
    """1 − Σ p² next to 0 is no difference either."""
    pair = PAIRS["Shift"](0, 0)
    w = np.ones(N).astype(np.float32)
    w[7] = 1e7
    p = w.astype(np.float64) / w.astype(np.float64).sum()
    g = formed(pair)
    rest = sum(p[a] * p[b] for a in range(N) for b in range(N) if a != b)
    expected = p @ np.square(g - p @ g) / rest
    np.testing.assert_allclose(compiled(stats.variance)(pair, jnp.asarray(w)), expected, rtol=1e-4)
