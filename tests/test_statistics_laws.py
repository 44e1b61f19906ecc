# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
"""What statistics have to do with one another, with weights, with a user's layers; and what they refuse."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, Centre, Gain
from oracles import assert_close, assert_same, compiled, initialised, whole

import jbp
from jbp import losses, sinks, stats
from jbp.layer import Layer
from jbp.pairs import is_pair

KEY = jax.random.key(11)
BLOCK = jbp.repeat(jbp.serial(jbp.Dense(5), jbp.tanh), 3)
NET = jbp.serial(jbp.Dense(5), jbp.relu, BLOCK, Gain(), jbp.Dense(2))
LOSS = losses.softmax_cross_entropy


def drawn(n: int = BATCH, net: Layer = NET, shape: tuple[int, ...] = (3,)) -> tuple[Any, Any, Any]:
    params, out = initialised(net, KEY, shape)
    x = jax.random.normal(jax.random.fold_in(KEY, 1), (n, *shape))
    return params, x, jax.random.randint(jax.random.fold_in(KEY, 2), (n, *out[:-1]), 0, out[-1])


@whole
def errors_and_pairs(params: Any, x: Any, y: Any, net: Layer = NET) -> Any:
    return jbp.value_and_pairs(net, LOSS, params, x, y)


def pairs_of(*args: Any, **options: Any) -> Any:
    return errors_and_pairs(*args, **options)[1]


QUANTITIES = (stats.norms, stats.squared_norms, stats.gram, stats.per_example, stats.second_moment, stats.variance,
              stats.noise_scale, stats.noise_and_signal, stats.snr, stats.clip_weights, stats.clipped, stats.kronecker,
              jbp.contract)  # fmt: skip
quick = SimpleNamespace(**{function.__name__: whole(function) for function in QUANTITIES})
"""The statistics, each as one program. Refusals are asked of the functions themselves."""


@pytest.fixture(scope="module")
def pairs() -> Any:
    return pairs_of(*drawn())


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_contract_is_the_mean_of_per_example(pairs):
    assert_close(quick.contract(pairs), jax.tree.map(lambda g: g.mean(0), quick.per_example(pairs)), "net")


def test_squared_norms_are_the_diagonal_of_the_gram_matrix(pairs):
    np.testing.assert_allclose(jnp.square(quick.norms(pairs)), jnp.diag(quick.gram(pairs)), rtol=1e-13)
    parts = quick.gram(pairs, per="layer")
    np.testing.assert_allclose(sum(parts.values()), quick.gram(pairs), rtol=1e-12, atol=1e-14)


def test_the_norm_over_groups_is_the_norm_of_the_groups(pairs):
    groups = quick.norms(pairs, {"weights": "*.weight", "others": ("*.bias", "*.gain")})
    np.testing.assert_allclose(jnp.hypot(*groups.values()), quick.norms(pairs), rtol=1e-13)
    assert set(quick.norms(pairs, "layer")) == {"0", "2.0", "3", "4"}


def test_gram_with_another_pass_is_a_block_of_the_gram_of_both(pairs):
    params, x, y = drawn()
    some = pairs_of(params, x[:4], y[:4])
    np.testing.assert_allclose(quick.gram(some, pairs), quick.gram(pairs)[:4], rtol=1e-12, atol=1e-14)


def test_variance_is_made_of_second_moment_and_mean(pairs):
    expected = jax.tree.map(
        lambda m, g: BATCH / (BATCH - 1) * (m - g**2), quick.second_moment(pairs), quick.contract(pairs)
    )
    for a, b in zip(leaves(quick.variance(pairs)), leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15)


def test_noise_scale_is_the_trace_of_the_variance_over_the_signal(pairs):
    trace = sum(v.sum() for v in leaves(quick.variance(pairs)))
    signal = sum(np.square(g).sum() for g in leaves(quick.contract(pairs))) - trace / BATCH
    expected = trace / signal if signal > 0 else np.inf
    np.testing.assert_allclose(quick.noise_scale(pairs), expected, rtol=1e-12)
    for a, g, v in zip(*map(leaves, (quick.snr(pairs), quick.contract(pairs), quick.variance(pairs))), strict=True):
        np.testing.assert_allclose(a, g**2 / v, rtol=1e-12)


def test_noise_scale_without_noise_without_signal_and_of_one_example():
    delta = jnp.ones((4, 1, 3))
    assert abs(quick.noise_scale({"b": jbp.Shift(delta, (3,))})) < 1e-15
    signs = jnp.asarray([1.0, -1.0, 1.0, -1.0])[:, None, None]
    assert quick.noise_scale({"b": jbp.Shift(signs * delta, (3,))}) == jnp.inf
    assert jnp.isnan(quick.noise_scale({"b": jbp.Shift(delta[:1], (3,))}))


def test_the_noise_scales_two_parts_are_unbiased():
    """Over many small batches their means are tr Σ and ‖G‖², to 4.4 standard errors."""
    mean, deviation = jnp.asarray([0.5, -0.2, 0.1]), jnp.asarray([1.0, 0.3, 2.0])
    noise = jax.random.normal(KEY, (20000, 5, 1, 3))
    rows = mean.reshape(1, 1, 1, 3) + deviation.reshape(1, 1, 1, 3) * noise
    trace, signal = jax.vmap(lambda d: quick.noise_and_signal({"b": jbp.Shift(d, (3,))}))(rows)
    for found, expected in ((trace, jnp.square(deviation).sum()), (signal, jnp.square(mean).sum())):
        assert abs(found.mean() - expected) < 4.4 * found.std() / len(rows) ** 0.5


def test_doubling_the_batch_changes_no_mean(pairs):
    params, x, y = drawn()
    twice = pairs_of(params, jnp.concatenate([x, x]), jnp.concatenate([y, y]))
    same = (quick.contract, quick.second_moment)
    for statistic in same:
        assert_close(statistic(twice), statistic(pairs), "net")
    factors = zip(leaves(quick.kronecker(twice)), leaves(quick.kronecker(pairs)), strict=True)
    assert all(np.allclose(a, b, rtol=1e-12, atol=1e-15) for a, b in factors)
    np.testing.assert_allclose(quick.norms(twice), jnp.tile(quick.norms(pairs), 2), rtol=1e-12)
    assert_close(quick.clipped(twice, 0.3), jax.tree.map(lambda g: 2 * g, quick.clipped(pairs, 0.3)), "net")


@pytest.mark.parametrize("scale", [0.01, 1.0, 70.0])
def test_weights_of_any_sum(pairs, scale):
    w = scale * jax.random.uniform(KEY, (BATCH,), minval=0.1)
    once = scale * jnp.ones(BATCH)
    assert_close(quick.second_moment(pairs, once / BATCH / scale), quick.second_moment(pairs), "net")
    for a, b in zip(leaves(quick.variance(pairs, w)), leaves(quick.variance(pairs, w / scale)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)
    for a, b in zip(leaves(quick.variance(pairs, once)), leaves(quick.variance(pairs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)


def test_a_padding_row_takes_no_part_even_if_it_is_nan(pairs):
    """Weights of 0 and 1 give the statistics of those chosen."""
    params, x, y = drawn()
    chosen = jnp.arange(BATCH) % 3 != 1
    some, w = pairs_of(params, x[chosen], y[chosen]), chosen.astype(float)

    def spoil(pair):
        bad = jnp.where(chosen[:, None, None], 1.0, jnp.nan)
        if isinstance(pair, jbp.Stack):
            return jbp.Stack(replace(pair.pair, delta=pair.pair.delta * bad[None]))
        return replace(pair, delta=pair.delta * bad)

    spoiled = jax.tree.map(spoil, pairs, is_leaf=is_pair)
    assert_close(quick.contract(spoiled, w / w.sum()), quick.contract(some), "net")
    assert_close(quick.second_moment(spoiled, w / w.sum()), quick.second_moment(some), "net")
    assert_close(quick.clipped(spoiled, 0.3, weights=w), quick.clipped(some, 0.3), "net")
    for a, b in zip(leaves(quick.variance(spoiled, w)), leaves(quick.variance(some)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(quick.noise_scale(spoiled, w), quick.noise_scale(some), rtol=1e-9)


@pytest.mark.parametrize("per", ["network", "layer", "parameter", {"a": ("0.*", "2.*"), "b": ("3.*", "4.*")}])
@pytest.mark.parametrize("automatic", [False, True])
def test_no_clipped_gradient_exceeds_the_bound(pairs, per, automatic):
    """One example more or less changes the sum by at most C, and by nearly C where it was clipped."""
    whole, changes = quick.clipped(pairs, 0.05, per, automatic), []
    for n in range(BATCH):
        rest = quick.clipped(pairs, 0.05, per, automatic, weights=(jnp.arange(BATCH) != n).astype(float))
        changes.append(np.sqrt(sum(np.square(a - b).sum() for a, b in zip(leaves(whole), leaves(rest), strict=True))))
    assert max(changes) <= 0.05 * (1 + 1e-12)
    assert max(changes) > 0.03


def formed(pair: Any) -> np.ndarray:
    """[n, size]: each example's gradient, in float64 whatever the pair is in."""
    match jax.tree.map(lambda a: np.asarray(a, np.float64), pair):
        case jbp.Outer(h, delta, transposed=True):
            g = np.einsum("nti,nto->noi", h, delta)
        case jbp.Outer(h, delta):
            g = np.einsum("nti,nto->nio", h, delta)
        case jbp.Lookup(index, delta, shape):
            g = np.zeros((len(delta), *shape))
            for rows, at, d in zip(g, index[..., 0].astype(int), delta, strict=True):
                np.add.at(rows, at, d)
        case jbp.Shift(delta):
            g = delta.sum(1)
        case jbp.Scale(h, delta):
            g = (h * delta).sum(1)
        case jbp.Window(h, delta, shape, geometry):
            g = np.zeros((len(h), *shape))
            for at in np.ndindex(*delta.shape[1:-1], *geometry.kernel):  # use, site, place in the kernel
                t, site, k = at[0], at[1 : 1 + geometry.dims], at[1 + geometry.dims :]
                pixel = [
                    u * stride + j * dilation - low
                    for u, stride, j, dilation, (low, _) in zip(
                        site, geometry.stride, k, geometry.dilation, geometry.padding, strict=True
                    )
                ]
                if all(0 <= p < s for p, s in zip(pixel, h.shape[2:], strict=False)):
                    seen = h[:, t, *pixel].reshape(len(h), geometry.groups, -1)
                    out = delta[:, t, *site].reshape(len(h), geometry.groups, -1)
                    g[:, *k] += np.einsum("ngi,ngo->nigo", seen, out).reshape(len(h), *shape[-2:])
        case jbp.pairs.Constant(value):
            g = np.zeros_like(value)
        case jbp.Stack(inner):
            depth = len(jax.tree.leaves(inner)[0])
            g = np.concatenate([formed(jax.tree.map(lambda a: a[k], inner)) for k in range(depth)], 1)  # noqa: B023
        case jbp.Sum(members):
            g = sum(map(formed, members[1:]), formed(members[0]))
        case _:
            raise AssertionError("a pair of another class")
    return np.asarray(g).reshape(len(g), -1)


def cancelling(t: int, i: int, o: int, size: float, rest: float) -> tuple[Any, Any]:
    """h and δ in float32 with Σₜ hₜ ⊗ δₜ nearly 0: h the same at each use, of length `size`, and Σₜ δₜ about `rest`."""
    rng = np.random.default_rng(t * i)
    h = np.repeat(rng.normal(size=(500, 1, i)), t, 1) * size / i**0.5
    delta = rng.normal(size=(500, t, o))
    delta[:, -1] = rest * delta[:, -1] - delta[:, :-1].sum(1)
    return jnp.asarray(h, jnp.float32), jnp.asarray(delta, jnp.float32)


def outer(t: int, i: int, o: int, *how: float) -> Any:
    return jbp.Outer(*cancelling(t, i, o, *how), (i, o))


def several_kinds(size: float, rest: float) -> Any:
    """h ⊗ δ with a table that takes nearly all of it away."""
    h, delta = cancelling(1, 5, 7, size, 1.0)
    table = jnp.einsum("nti,nto->ntio", h, delta).reshape(500, 1, 35)
    return jbp.Sum((jbp.Outer(h, delta, (5, 7)), jbp.Shift((rest - 1) * table, (5, 7))))


CANCELLING = {
    "Gram matrices": lambda *how: outer(4, 37, 31, *how),
    "one at a time": lambda *how: outer(31, 3, 5, *how),
    "Shift": lambda size, rest: jbp.Shift(size * cancelling(7, 1, 5, 1.0, rest)[1], (5,)),
    "Scale": lambda *how: jbp.Scale(*cancelling(7, 5, 5, *how), (5,)),
    "Sum": several_kinds,
    "Stack": lambda *how: jbp.Stack(jax.tree.map(lambda a: jnp.stack([a, -a]), outer(4, 37, 31, *how))),
}


@pytest.mark.parametrize("kind", CANCELLING)
def test_in_float32_the_bound_holds_where_the_uses_of_an_example_cancel(kind):
    """Of the true gradient of the same numbers, and of the clipped one as it is computed, one example at a time."""
    rows = jnp.arange(500)
    one = compiled(
        lambda pair: jax.lax.map(
            lambda n: quick.clipped(pair, 1.0, weights=(rows == n).astype(jnp.float32)), rows[::10]
        )
    )
    both = compiled(lambda pair: (quick.clip_weights(pair, 1.0), quick.norms(pair)))
    for size in (1.0, 1e3, 1e7):
        for rest in (0.0, 1e-7, 1e-4, 1e-2, 1.0):
            pair = CANCELLING[kind](size, rest)
            c, norms = map(np.asarray, both(pair))
            assert np.isfinite(norms).all()
            true = np.linalg.norm(formed(pair), axis=1)
            assert (c * true).max() <= 1 + 2e-4, (size, rest)
            found = np.linalg.norm(np.asarray(one(pair), np.float64).reshape(50, -1), axis=1)
            assert found.max() <= 1 + 1 / 64 + 1e-5, (size, rest)
            if rest == 1.0:
                np.testing.assert_allclose(c, np.minimum(1, 1 / true), rtol=2e-3)


def test_norms_of_a_net_whose_errors_cancel_over_positions():
    """Inputs alike and errors that add up to 0: the gradient is 0, in float32 the norms are next to it and not NaN."""
    net = jbp.serial(jbp.Dense(31))
    h, delta = cancelling(4, 37, 31, 6.0, 0.0)
    params = jax.tree.map(lambda a: a.astype(jnp.float32), net.init(KEY, (4, 37))[0])
    pairs = jbp.value_and_pairs(net, losses.l2_loss, params, h, jbp.apply(net, params, h) - delta)[1]
    scale = np.linalg.norm(h, axis=2).sum(1).max() * np.linalg.norm(delta, axis=2).max()
    assert quick.norms(pairs).max() < 4e-3 * scale
    assert quick.noise_scale(pairs) >= 0


def test_clipping_with_a_bound_for_each_group(pairs):
    groups, bounds = {"head": "4.*", "body": ("0.*", "2.*", "3.*")}, {"head": 0.3, "body": 0.4}
    c = quick.clip_weights(pairs, bounds, groups)
    for name, norm in quick.norms(pairs, groups).items():
        np.testing.assert_allclose(c[name], np.minimum(1, bounds[name] / norm), rtol=1e-13)
    assert stats.sensitivity(bounds) == pytest.approx(0.5)
    assert stats.sensitivity(0.3) == 0.3


def test_an_infinite_bound_clips_nothing_and_a_gradient_not_finite_takes_no_part(pairs):
    assert_close(quick.clipped(pairs, jnp.inf), jax.tree.map(lambda g: BATCH * g, quick.contract(pairs)), "net")
    delta = jnp.asarray([1.0, jnp.nan, jnp.inf, 3.0])[:, None, None]
    np.testing.assert_array_equal(quick.clipped(jbp.Shift(delta, (1,)), 2.0), [3.0])
    np.testing.assert_array_equal(quick.clip_weights(jbp.Shift(0 * delta[:1], (1,)), 2.0), [1.0])


@pytest.mark.parametrize("weighted", [False, True])
def test_kronecker_factors_by_naive_loops(weighted):
    net = jbp.serial(jbp.Dense(5), jbp.tanh, jbp.repeat(jbp.serial(jbp.Dense(5), jbp.relu), 2), Gain(), jbp.Dense(2))
    pairs = pairs_of(*drawn(net=net, shape=(7, 3)), net=net)
    n, t = BATCH, 7
    weights = jnp.asarray(np.random.default_rng(3).uniform(-0.5, 2, n)) if weighted else None
    w = np.asarray(weights) if weighted else np.full(n, 1 / n)
    for sharing in ("expand", "reduce"):
        found = quick.kronecker(pairs, sharing, weights)
        for path in ((0,), (4,)):
            pair = pairs[path[0]]["weight"]
            a, g = np.zeros((pair.h.shape[-1],) * 2), np.zeros((pair.delta.shape[-1],) * 2)
            for c, h, d in zip(w, np.asarray(pair.h), np.asarray(pair.delta), strict=True):
                if sharing == "expand":
                    for u in range(t):
                        a += c * np.outer(h[u], h[u]) / t
                        g += c * np.outer(d[u], d[u])
                else:
                    a += c * np.outer(h.mean(0), h.mean(0))
                    g += c * np.outer(d.sum(0), d.sum(0))
            np.testing.assert_allclose(found[path[0]]["weight"].a, a, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(found[path[0]]["weight"].g, g, rtol=1e-12, atol=1e-15)
            bias = found[path[0]]["bias"]
            np.testing.assert_allclose(bias.g, g, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(bias.a, [[w.sum()]], rtol=1e-14)
        gain = np.asarray(quick.per_example(pairs)[3]["gain"]).reshape(n, -1)  # one use in an example
        np.testing.assert_allclose(found[3]["gain"].g, gain.T * w @ gain, rtol=1e-12, atol=1e-15)
        stack, first = found[2][0]["weight"], jax.tree.map(lambda a: a[0], pairs[2][0]["weight"].pair)
        np.testing.assert_allclose(stack.a[0], quick.kronecker(first, sharing, weights).a, rtol=1e-12)


def test_of_one_example_and_one_use_the_factors_are_the_gradient_squared():
    """A ⊗ G = vec(g) vec(g)ᵀ, where nothing is averaged."""
    pairs = pairs_of(*drawn(n=1))
    g, f = quick.per_example(pairs)[0]["weight"].reshape(-1), quick.kronecker(pairs)[0]["weight"]
    np.testing.assert_allclose(jnp.kron(f.a, f.g), jnp.outer(g, g), rtol=1e-12, atol=1e-16)


def test_sinks_in_one_walk_are_the_walks_one_by_one():
    """`together` inside `repeat` and under `tied`, where only linear sinks may be taken early."""
    tied = jbp.tied(jbp.serial(jbp.Dense(5), jbp.tanh, BLOCK, jbp.Dense(5)), {(3, "bias"): (0, "bias")})
    net = jbp.serial(jbp.Dense(3), tied, jbp.Dense(2))
    params, x, _ = drawn(net=net, shape=(7, 3))
    output, saved = jbp.forward(net, params, x)
    delta = jax.random.normal(KEY, output.shape)
    backward = whole(jbp.backward)
    pairs = backward(net, params, saved, delta)[1]
    both = sinks.together(sinks.total, stats.squared_norms)
    total, squares = both.split(backward(net, params, saved, delta, both)[1])
    assert_close(total, jax.tree.map(lambda pair: pair.total(), pairs, is_leaf=is_pair), "net")
    assert_close(squares, quick.squared_norms(pairs), "net")
    with pytest.raises(ValueError, match="at least one sink"):
        sinks.together()


def test_a_sink_that_does_not_say_it_is_linear_sees_the_completed_pair():
    net = jbp.tied(jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(3)), {2: 0})
    params, x, _ = drawn(net=net, shape=(3,))
    output, saved = jbp.forward(net, params, x)
    pairs = jbp.backward(net, params, saved, output)[1]
    squares = jbp.backward(net, params, saved, output, stats.squared_norms)[1]
    assert_close(squares, quick.squared_norms(pairs), "net")


def test_the_weights_of_a_user_are_explained(pairs):
    rules = {rule.path: rule for rule in stats.explain(pairs)}
    assert rules["0.weight"].pair == "Outer t=1 i=3 o=5"
    assert rules["2.0.weight"].pair == "Stack[3](Outer t=1 i=5 o=5)"
    assert rules["3.gain"].norms == "‖Σh∘δ‖²"
    few = jbp.Outer(jnp.ones((2, 3, 31)), jnp.ones((2, 3, 37)), (31, 37))
    many = jbp.Outer(jnp.ones((2, 31, 3)), jnp.ones((2, 31, 5)), (3, 5))
    assert stats.explain(few)[0].norms == "T × T Gram matrices"
    assert stats.explain(many)[0].norms == "one example at a time"
    for pair in (few, many):
        np.testing.assert_allclose(quick.norms(pair), jnp.sqrt(jnp.square(quick.per_example(pair)).sum((1, 2))))


def test_records(pairs):
    found = whole(stats.records)(pairs)
    h = pairs[4]["weight"].h
    np.testing.assert_allclose(found["4.weight"].h, jnp.sqrt(jnp.square(h).mean()))
    np.testing.assert_allclose(found["4.weight"].delta, jnp.sqrt(jnp.square(pairs[4]["weight"].delta).mean()))
    assert found["2.0.weight"].h.shape == (3,)
    units = jnp.asarray([[0.0, 0.0, 1.0, -1.0], [0.0, 0.5, 0.2, 1.0]])[:, None]
    record = stats.records(jbp.Outer(units, jnp.ones((2, 1, 3)), (4, 3)))["."]
    assert (record.dead, record.saturated) == (0.25, 0.375)
    assert jnp.isnan(found["0.bias"].dead)


def test_records_of_a_parameter_whose_uses_differ_in_kind_and_with_weights():
    h, gain, delta = (
        jax.random.normal(jax.random.fold_in(KEY, k), (4, t, o)) for k, t, o in ((1, 3, 2), (2, 1, 6), (3, 1, 6))
    )
    h, gain = h.at[:, :, 0].set(0.0), gain.at[0].set(0.0)
    used = jnp.concatenate((h, h[..., :1]), 2)
    outer, scale, shift = jbp.Outer(h, used, (2, 3)), jbp.Scale(gain, delta, (2, 3)), jbp.Shift(delta, (2, 3))
    w = jnp.asarray([2.0, 0.0, 0.0, 0.0])
    for weights, p in ((None, np.full(4, 0.25)), (w, np.asarray(w) / 2), (jnp.arange(4.0), np.arange(4) / 6)):
        found = stats.records(jbp.Sum((outer, scale, shift)), weights)["."]
        inputs = np.concatenate([np.reshape(a, (4, -1)) for a in (h, gain)], 1)
        deltas = np.concatenate([np.reshape(a, (4, -1)) for a in (used, delta, delta)], 1)
        np.testing.assert_allclose(found.h, np.sqrt(p @ np.square(inputs).mean(1)), rtol=1e-13)
        np.testing.assert_allclose(found.delta, np.sqrt(p @ np.square(deltas).mean(1)), rtol=1e-13)
        np.testing.assert_allclose(found.saturated, p @ (np.abs(inputs) >= 0.99).mean(1), rtol=1e-13)
        assert found.dead == pytest.approx(7 / 8 if weights is w else 1 / 8)
    assert jnp.isnan(stats.records(shift)["."].h)


def test_kronecker_factors_of_a_parameter_whose_uses_differ_in_kind_are_those_of_each_kind():
    scale = jbp.Scale(2 * B.delta, B.delta, (3,))
    for found, pair in zip(quick.kronecker({"b": jbp.Sum((B, scale))})["b"], (B, scale), strict=True):
        assert_same((found.a, found.g), tuple(jax.tree.leaves(quick.kronecker(pair))))


COUPLED = jbp.serial(
    jbp.repeat(jbp.serial(jbp.Dense(3), jbp.tanh), 2),
    jbp.branch(jbp.serial(jbp.Dense(5, use_bias=False), Centre(), jbp.Dense(5)), jbp.Dense(5)),
    jbp.Dense(2),
)


def test_below_a_coupling_layer_there_is_a_total_and_nothing_else():
    params, x, y = drawn(net=COUPLED)

    def plain(params, w):
        h = x
        for k in range(2):
            h = jnp.tanh(h @ params[0][0]["weight"][k] + params[0][0]["bias"][k][None])
        first, second = params[1]
        a = h @ first[0]["weight"]
        a = a - (w @ a / w.sum())[None]
        a = a @ first[2]["weight"] + first[2]["bias"][None] + h @ second["weight"] + second["bias"][None]
        logits = a @ params[2]["weight"] + params[2]["bias"][None]
        return (w * (jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, y[:, None], 1)[:, 0])).sum()

    w = jax.random.uniform(KEY, (BATCH,))
    for weights, theirs in ((None, jnp.full(BATCH, 1 / BATCH)), (w, w)):
        value, grads = jbp.value_and_grad(COUPLED, LOSS)(params, x, y, weights=weights)
        expected = compiled(jax.value_and_grad(plain))(params, theirs)
        assert_close((value, grads), expected, "net")
    pairs = pairs_of(params, x, y, COUPLED)
    assert_close(quick.contract(pairs), compiled(jax.grad(plain))(params, jnp.full(BATCH, 1 / BATCH)), "net")
    coupled = [isinstance(p, jbp.Coupled | jbp.Stack) for p in jax.tree.leaves(pairs, is_leaf=is_pair)]
    assert coupled == [True, True, True, False, False, False, False, False, False]
    both = r"params\[0\]\[0\]\['bias'\] lies below .*\[1\]\[0\]\[1\] \(Centre\(\)\)"
    with pytest.raises(NotImplementedError, match=both):
        stats.norms(pairs)
    tied = jbp.tied(jbp.serial(jbp.Dense(3), Centre(), jbp.Dense(3)), {2: 0})
    for net in (tied, jbp.serial(jbp.serial(tied, jbp.tanh))):  # by itself, and two places down
        with pytest.raises(NotImplementedError, match="lies below"):
            stats.norms(pairs_of(net.init(KEY, (3,))[0], x, y, net))
    for statistic in (stats.per_example, stats.second_moment, stats.gram, stats.records, stats.kronecker):
        with pytest.raises(NotImplementedError, match="lies below the batch-coupled layer"):
            statistic(pairs)
    with pytest.raises(NotImplementedError, match="at the loss only"):
        jbp.contract(pairs, jnp.ones(BATCH))
    assert quick.norms(pairs[2]).shape == (BATCH,)  # above it, all is defined


def bad(call: Any, words: str, error: type[Exception] = ValueError) -> Any:
    return pytest.param(call, words, error, id=words)


B = jbp.Shift(jnp.ones((4, 1, 3)), (3,))


def stacked(pair: Any, depth: int) -> Any:
    return jbp.Stack(jax.tree.map(lambda a: jnp.stack([a] * depth), pair))


@pytest.mark.parametrize(
    ("call", "words", "error"),
    [
        bad(lambda p: stats.norms(jbp.contract(p)), "takes the pairs that jbp.backward returns"),
        bad(lambda p: stats.norms((p, B)), "pairs of one backward pass"),
        bad(lambda p: stats.norms(()), "no parameters at all"),
        bad(lambda p: stats.norms(jbp.Shift(jnp.ones((0, 1, 3)), (3,))), "the batch is empty"),
        bad(lambda p: stats.norms(p, "layers"), "per must be 'network', 'layer', 'parameter' or groups"),
        bad(lambda p: stats.norms(p, {"head": "9.*"}), "matches none of 0.bias, 0.weight"),
        *(
            bad(
                lambda p, g=g: stats.norms(p, {"a": g}),  # type: ignore[arg-type]
                f"'a' must be a pattern of paths .* but is {re.escape(repr(g))}",
            )
            for g in (3, (), None, ("*.bias", 3))
        ),
        bad(lambda p: stats.clip_weights(p, 1.0, {"a": "*.bias"}), "0.weight is in none"),
        bad(lambda p: stats.clip_weights(p, 1.0, {"a": "*", "b": "*.bias"}), r"0.bias is in \['a', 'b'\]"),
        bad(lambda p: stats.clip_weights(p, {"a": 1.0}, "layer"), "must have a bound for each of 0, 2.0, 3, 4"),
        *(
            bad(lambda p, c=c: stats.clip_weights(p, c), f"must be a positive number, but is {c!r}")
            for c in (0, -1.0, float("nan"), "1", True)
        ),
        bad(lambda p: stats.clipped(p, float("inf"), automatic=True), "positive finite number"),
        bad(lambda p: stats.clipped(p, 1.0, automatic=True, gamma=0), "gamma must be a positive number"),
        bad(lambda p: stats.clipped(p, 1.0, weights=jnp.ones(3)), "one number for each of the 11 examples"),
        bad(lambda p: stats.second_moment(p, jnp.ones(3)), "one number for each of the 11 examples"),
        bad(lambda p: stats.variance(p, jnp.ones(12)), "one number for each of the 11 examples"),
        bad(lambda p: stats.variance(jbp.Shift(jnp.ones((1, 1, 3)), (3,))), "at least two examples"),
        bad(lambda p: stats.gram(p, pairs_of(*drawn(net=COUPLED), net=COUPLED)[2]), "different networks"),
        bad(lambda p: stats.gram(B, jbp.Shift(jnp.ones((4, 1, 5)), (5,))), "different networks"),
        bad(lambda p: stats.gram(outer(1, 4, 6, 1, 1), outer(1, 6, 4, 1, 1)), r"has shape \(4, 6\) and \(6, 4\)"),
        bad(lambda p: stats.gram(outer(1, 4, 6, 1, 1), outer(1, 4, 6, 1, 1).delta), "takes the pairs"),
        bad(lambda p: stats.gram(stacked(B, 3), stacked(B, 2)), r"has shape \(3, 3\) and \(2, 3\)"),
        bad(lambda p: stats.gram(stacked(B, 3), jbp.Shift(jnp.ones((4, 1, 9)), (9,))), r"\(3, 3\) and \(9,\)"),
        bad(lambda p: stats.kronecker(p, "both"), "sharing must be 'expand' or 'reduce'"),
        bad(lambda p: stats.kronecker(p, weights=jnp.ones(3)), "one number for each of the 11 examples"),
        bad(lambda p: stats.records(p, jnp.ones(3)), "one number for each of the 11 examples"),
    ],
)
def test_bad_input_is_refused(pairs, call, words, error):
    with pytest.raises(error, match=words):
        call(pairs)


WEIGHTED = {
    "contract": jbp.contract,
    "second_moment": stats.second_moment,
    "variance": stats.variance,
    "snr": stats.snr,
    "noise_scale": stats.noise_scale,
    "clipped": lambda pairs, w: stats.clipped(pairs, 0.3, weights=w),
    "kronecker": lambda pairs, w: stats.kronecker(pairs, weights=w),
    "kronecker, reduce": lambda pairs, w: stats.kronecker(pairs, "reduce", w),
    "records": lambda pairs, w: {path: record._replace(dead=()) for path, record in stats.records(pairs, w).items()},
}
"""Every statistic that takes weights; of records what is an average."""


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_and_in_compiled_code_they_show(pairs, name, bad):
    w = jnp.ones(BATCH).at[2].set(bad)
    with pytest.raises(ValueError, match=rf"weights must be finite, but are {bad} at \[2\]: take 0"):
        WEIGHTED[name](pairs, w)
    shown = leaves(compiled(WEIGHTED[name])(pairs, w))
    assert not any(np.isfinite(leaf).any() for leaf in shown)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_row_of_weight_0_takes_no_part_whatever_x_and_y_hold(name):
    """The weights go to the pass as well, so that h is finite: 0 times NaN is NaN."""
    params, x, _ = drawn(shape=(7, 3))
    y = jax.random.uniform(KEY, (BATCH, 7, 2))
    w = jnp.ones(BATCH).at[jnp.array([2, 5])].set(0.0)

    def read(x, y, w):
        errors, pairs = jbp.value_and_pairs(NET, LOSS, params, x, y, weights=w)
        return errors, WEIGHTED[name](pairs, w)

    errors, clean = compiled(read)(x, y, w)
    assert errors[2] == errors[5] == 0
    bad = x.at[2].set(jnp.nan).at[5, 0].set(jnp.inf), y.at[5].set(jnp.nan)
    assert_same(compiled(read)(*bad, w), (errors, clean))
    some = np.asarray(w) != 0
    chosen, pairs = errors_and_pairs(params, x[some], y[some])
    assert_close(errors[some], chosen, "net")
    for a, b in zip(leaves(clean), leaves(whole(WEIGHTED[name])(pairs, jnp.ones(BATCH - 2))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)


def test_value_and_pairs_takes_weights_of_the_batch_only():
    with pytest.raises(ValueError, match="each of the 11 examples"):
        jbp.value_and_pairs(NET, LOSS, *drawn(), weights=jnp.ones(3))


def test_too_few_examples_of_a_weight_that_is_not_0(pairs):
    none, one = jnp.zeros(BATCH), jnp.zeros(BATCH).at[3].set(2.0)
    for w in (none, one):
        for statistic in (stats.variance, stats.snr):
            with pytest.raises(ValueError, match=r"at least two examples|add up to 0"):
                statistic(pairs, w)
        assert np.isnan(leaves(compiled(stats.variance)(pairs, w))[0]).all()
        assert jnp.isnan(compiled(stats.noise_scale)(pairs, w))
    for w in (none, jnp.ones(BATCH).at[0].set(1.0 - BATCH)):
        for statistic in (stats.noise_scale, stats.noise_and_signal):
            with pytest.raises(ValueError, match="add up to 0"):
                statistic(pairs, w)
    assert jnp.isnan(stats.noise_scale(pairs, one))


@pytest.mark.parametrize(
    ("ties", "words"),
    [
        ({}, "at least one"),
        ({2: 0, 0: 2}, "overlaps"),
        ({2: 0, (2, "weight"): (0, "weight")}, "overlaps"),
        ({(): 0}, "a path is a tuple"),
        ({9: 0}, r"no parameters at \[9\]"),
        ({(2, "wieght"): (0, "weight")}, "'wieght'. is missing"),
        ({4: 0}, r"needs .*, but its owner \[0\] holds"),
    ],
)
def test_ties_that_do_not_fit_are_refused(ties, words):
    net = jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(3), jbp.tanh, jbp.Dense(5))
    with pytest.raises(ValueError, match=words):
        jbp.tied(net, ties).init(KEY, (3,))


def test_uses_of_different_shapes_do_not_merge():
    with pytest.raises(ValueError, match="one shape"):
        jbp.pairs.merge(B, jbp.Shift(B.delta, (1, 3)))
