# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
"""What statistics have to do with one another, with weights, with a user's layers; and what they refuse."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, Centre, Gain
from oracles import assert_close, compiled

import jbp
from jbp import losses, sinks, stats
from jbp.layer import Layer
from jbp.pairs import is_pair

KEY = jax.random.key(11)
BLOCK = jbp.repeat(jbp.serial(jbp.Dense(5), jbp.tanh), 3)
NET = jbp.serial(jbp.Dense(5), jbp.relu, BLOCK, Gain(), jbp.Dense(2))
LOSS = losses.softmax_cross_entropy


def drawn(n: int = BATCH, net: Layer = NET, shape: tuple[int, ...] = (3,)) -> tuple[Any, Any, Any]:
    params, out = net.init(KEY, shape)
    x = jax.random.normal(jax.random.fold_in(KEY, 1), (n, *shape))
    return params, x, jax.random.randint(jax.random.fold_in(KEY, 2), (n, *out[:-1]), 0, out[-1])


def pairs_of(params: Any, x: Any, y: Any, net: Layer = NET) -> Any:
    return jbp.value_and_pairs(net, LOSS, params, x, y)[1]


@pytest.fixture(scope="module")
def pairs() -> Any:
    return compiled(pairs_of)(*drawn())


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_contract_is_the_mean_of_per_example(pairs):
    assert_close(jbp.contract(pairs), jax.tree.map(lambda g: g.mean(0), stats.per_example(pairs)), "net")


def test_squared_norms_are_the_diagonal_of_the_gram_matrix(pairs):
    np.testing.assert_allclose(jnp.square(stats.norms(pairs)), jnp.diag(stats.gram(pairs)), rtol=1e-13)
    parts = stats.gram(pairs, per="layer")
    np.testing.assert_allclose(sum(parts.values()), stats.gram(pairs), rtol=1e-12, atol=1e-14)


def test_the_norm_over_groups_is_the_norm_of_the_groups(pairs):
    groups = stats.norms(pairs, {"weights": "*.weight", "others": ("*.bias", "*.gain")})
    np.testing.assert_allclose(jnp.hypot(*groups.values()), stats.norms(pairs), rtol=1e-13)
    assert set(stats.norms(pairs, "layer")) == {"0", "2.0", "3", "4"}


def test_gram_with_another_pass_is_a_block_of_the_gram_of_both(pairs):
    params, x, y = drawn()
    some = pairs_of(params, x[:4], y[:4])
    np.testing.assert_allclose(stats.gram(some, pairs), stats.gram(pairs)[:4], rtol=1e-12, atol=1e-14)


def test_variance_is_made_of_second_moment_and_mean(pairs):
    expected = jax.tree.map(
        lambda m, g: BATCH / (BATCH - 1) * (m - g**2), stats.second_moment(pairs), jbp.contract(pairs)
    )
    for a, b in zip(leaves(stats.variance(pairs)), leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15)


def test_noise_scale_is_the_trace_of_the_variance_over_the_signal(pairs):
    trace = sum(v.sum() for v in leaves(stats.variance(pairs)))
    signal = sum(np.square(g).sum() for g in leaves(jbp.contract(pairs))) - trace / BATCH
    expected = trace / signal if signal > 0 else np.inf
    np.testing.assert_allclose(stats.noise_scale(pairs), expected, rtol=1e-12)
    for a, g, v in zip(*map(leaves, (stats.snr(pairs), jbp.contract(pairs), stats.variance(pairs))), strict=True):
        np.testing.assert_allclose(a, g**2 / v, rtol=1e-12)


def test_noise_scale_without_noise_without_signal_and_of_one_example():
    delta = jnp.ones((4, 1, 3))
    assert abs(stats.noise_scale({"b": jbp.Shift(delta, (3,))})) < 1e-15
    signs = jnp.asarray([1.0, -1.0, 1.0, -1.0])[:, None, None]
    assert stats.noise_scale({"b": jbp.Shift(signs * delta, (3,))}) == jnp.inf
    assert jnp.isnan(stats.noise_scale({"b": jbp.Shift(delta[:1], (3,))}))


def test_the_noise_scales_two_parts_are_unbiased():
    """Over many small batches their means are tr Σ and ‖G‖², to 4.4 standard errors."""
    mean, deviation = jnp.asarray([0.5, -0.2, 0.1]), jnp.asarray([1.0, 0.3, 2.0])
    noise = jax.random.normal(KEY, (20000, 5, 1, 3))
    rows = mean.reshape(1, 1, 1, 3) + deviation.reshape(1, 1, 1, 3) * noise
    trace, signal = jax.vmap(lambda d: stats.noise_and_signal({"b": jbp.Shift(d, (3,))}))(rows)
    for found, expected in ((trace, jnp.square(deviation).sum()), (signal, jnp.square(mean).sum())):
        assert abs(found.mean() - expected) < 4.4 * found.std() / len(rows) ** 0.5


def test_doubling_the_batch_changes_no_mean(pairs):
    params, x, y = drawn()
    twice = pairs_of(params, jnp.concatenate([x, x]), jnp.concatenate([y, y]))
    same = (jbp.contract, stats.second_moment)
    for statistic in same:
        assert_close(statistic(twice), statistic(pairs), "net")
    factors = zip(leaves(stats.kronecker(twice)), leaves(stats.kronecker(pairs)), strict=True)
    assert all(np.allclose(a, b, rtol=1e-12, atol=1e-15) for a, b in factors)
    np.testing.assert_allclose(stats.norms(twice), jnp.tile(stats.norms(pairs), 2), rtol=1e-12)
    assert_close(stats.clipped(twice, 0.3), jax.tree.map(lambda g: 2 * g, stats.clipped(pairs, 0.3)), "net")


@pytest.mark.parametrize("scale", [0.01, 1.0, 70.0])
def test_weights_of_any_sum(pairs, scale):
    w = scale * jax.random.uniform(KEY, (BATCH,), minval=0.1)
    once = scale * jnp.ones(BATCH)
    assert_close(stats.second_moment(pairs, once / BATCH / scale), stats.second_moment(pairs), "net")
    for a, b in zip(leaves(stats.variance(pairs, w)), leaves(stats.variance(pairs, w / scale)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)
    for a, b in zip(leaves(stats.variance(pairs, once)), leaves(stats.variance(pairs)), strict=True):
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
    assert_close(jbp.contract(spoiled, w / w.sum()), jbp.contract(some), "net")
    assert_close(stats.second_moment(spoiled, w / w.sum()), stats.second_moment(some), "net")
    assert_close(stats.clipped(spoiled, 0.3, weights=w), stats.clipped(some, 0.3), "net")
    for a, b in zip(leaves(stats.variance(spoiled, w)), leaves(stats.variance(some)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(stats.noise_scale(spoiled, w), stats.noise_scale(some), rtol=1e-9)


@pytest.mark.parametrize("per", ["network", "layer", "parameter", {"a": ("0.*", "2.*"), "b": ("3.*", "4.*")}])
@pytest.mark.parametrize("automatic", [False, True])
def test_no_clipped_gradient_exceeds_the_bound(pairs, per, automatic):
    """One example more or less changes the sum by at most C, and by nearly C where it was clipped."""
    whole, changes = stats.clipped(pairs, 0.05, per, automatic), []
    for n in range(BATCH):
        rest = stats.clipped(pairs, 0.05, per, automatic, weights=(jnp.arange(BATCH) != n).astype(float))
        changes.append(np.sqrt(sum(np.square(a - b).sum() for a, b in zip(leaves(whole), leaves(rest), strict=True))))
    assert max(changes) <= 0.05 * (1 + 1e-12)
    assert max(changes) > 0.03


def test_clipping_with_a_bound_for_each_group(pairs):
    groups, bounds = {"head": "4.*", "body": ("0.*", "2.*", "3.*")}, {"head": 0.3, "body": 0.4}
    c = stats.clip_weights(pairs, bounds, groups)
    for name, norm in stats.norms(pairs, groups).items():
        np.testing.assert_allclose(c[name], np.minimum(1, bounds[name] / norm), rtol=1e-13)
    assert stats.sensitivity(bounds) == pytest.approx(0.5)
    assert stats.sensitivity(0.3) == 0.3


def test_an_infinite_bound_clips_nothing_and_a_gradient_not_finite_takes_no_part(pairs):
    assert_close(stats.clipped(pairs, jnp.inf), jax.tree.map(lambda g: BATCH * g, jbp.contract(pairs)), "net")
    delta = jnp.asarray([1.0, jnp.nan, jnp.inf, 3.0])[:, None, None]
    np.testing.assert_array_equal(stats.clipped(jbp.Shift(delta, (1,)), 2.0), [3.0])
    np.testing.assert_array_equal(stats.clip_weights(jbp.Shift(0 * delta[:1], (1,)), 2.0), [1.0])


def test_kronecker_factors_by_naive_loops():
    net = jbp.serial(jbp.Dense(5), jbp.tanh, jbp.repeat(jbp.serial(jbp.Dense(5), jbp.relu), 2), Gain(), jbp.Dense(2))
    pairs = pairs_of(*drawn(net=net, shape=(7, 3)), net=net)
    n, t = BATCH, 7
    for sharing in ("expand", "reduce"):
        found = stats.kronecker(pairs, sharing)
        for path in ((0,), (4,)):
            pair = pairs[path[0]]["weight"]
            a, g = np.zeros((pair.h.shape[-1],) * 2), np.zeros((pair.delta.shape[-1],) * 2)
            for h, d in zip(np.asarray(pair.h), np.asarray(pair.delta), strict=True):
                if sharing == "expand":
                    for u in range(t):
                        a += np.outer(h[u], h[u]) / (n * t)
                        g += np.outer(d[u], d[u]) / n
                else:
                    a += np.outer(h.mean(0), h.mean(0)) / n
                    g += np.outer(d.sum(0), d.sum(0)) / n
            np.testing.assert_allclose(found[path[0]]["weight"].a, a, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(found[path[0]]["weight"].g, g, rtol=1e-12, atol=1e-15)
            bias = found[path[0]]["bias"]
            np.testing.assert_allclose(bias.g, g, rtol=1e-12, atol=1e-15)
            np.testing.assert_array_equal(bias.a, [[1]])
        gain = np.asarray(stats.per_example(pairs)[3]["gain"]).reshape(n, -1)  # one use in an example
        np.testing.assert_allclose(found[3]["gain"].g, gain.T @ gain / n, rtol=1e-12, atol=1e-15)
        stack, first = found[2][0]["weight"], jax.tree.map(lambda a: a[0], pairs[2][0]["weight"].pair)
        np.testing.assert_allclose(stack.a[0], stats.kronecker(first, sharing).a, rtol=1e-12)


def test_of_one_example_and_one_use_the_factors_are_the_gradient_squared():
    """A ⊗ G = vec(g) vec(g)ᵀ, where nothing is averaged."""
    pairs = pairs_of(*drawn(n=1))
    g, f = stats.per_example(pairs)[0]["weight"].reshape(-1), stats.kronecker(pairs)[0]["weight"]
    np.testing.assert_allclose(jnp.kron(f.a, f.g), jnp.outer(g, g), rtol=1e-12, atol=1e-16)


def test_sinks_in_one_walk_are_the_walks_one_by_one():
    """`together` inside `repeat` and under `tied`, where only linear sinks may be taken early."""
    tied = jbp.tied(jbp.serial(jbp.Dense(5), jbp.tanh, BLOCK, jbp.Dense(5)), {(3, "bias"): (0, "bias")})
    net = jbp.serial(jbp.Dense(3), tied, jbp.Dense(2))
    params, x, _ = drawn(net=net, shape=(7, 3))
    output, saved = jbp.forward(net, params, x)
    delta = jax.random.normal(KEY, output.shape)
    pairs = jbp.backward(net, params, saved, delta)[1]
    both = sinks.together(sinks.total, stats.squared_norms)
    total, squares = both.split(jbp.backward(net, params, saved, delta, both)[1])
    assert_close(total, jax.tree.map(lambda pair: pair.total(), pairs, is_leaf=is_pair), "net")
    assert_close(squares, stats.squared_norms(pairs), "net")
    with pytest.raises(ValueError, match="at least one sink"):
        sinks.together()


def test_a_sink_that_does_not_say_it_is_linear_sees_the_completed_pair():
    net = jbp.tied(jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(3)), {2: 0})
    params, x, _ = drawn(net=net, shape=(3,))
    output, saved = jbp.forward(net, params, x)
    pairs = jbp.backward(net, params, saved, output)[1]
    squares = jbp.backward(net, params, saved, output, stats.squared_norms)[1]
    assert_close(squares, stats.squared_norms(pairs), "net")


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
        np.testing.assert_allclose(stats.norms(pair), jnp.sqrt(jnp.square(stats.per_example(pair)).sum((1, 2))))


def test_records(pairs):
    found = stats.records(pairs)
    h = pairs[4]["weight"].h
    np.testing.assert_allclose(found["4.weight"].h, jnp.sqrt(jnp.square(h).mean()))
    np.testing.assert_allclose(found["4.weight"].delta, jnp.sqrt(jnp.square(pairs[4]["weight"].delta).mean()))
    assert found["2.0.weight"].h.shape == (3,)
    units = jnp.asarray([[0.0, 0.0, 1.0, -1.0], [0.0, 0.5, 0.2, 1.0]])[:, None]
    record = stats.records(jbp.Outer(units, jnp.ones((2, 1, 3)), (4, 3)))["."]
    assert (record.dead, record.saturated) == (0.25, 0.375)
    assert jnp.isnan(found["0.bias"].dead)


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
        expected = jax.value_and_grad(plain)(params, theirs)
        assert_close((value, grads), expected, "net")
    pairs = pairs_of(params, x, y, COUPLED)
    assert_close(jbp.contract(pairs), jax.grad(plain)(params, jnp.full(BATCH, 1 / BATCH)), "net")
    coupled = [isinstance(p, jbp.Coupled | jbp.Stack) for p in jax.tree.leaves(pairs, is_leaf=is_pair)]
    assert coupled == [True, True, True, False, False, False, False, False, False]
    with pytest.raises(NotImplementedError, match=r"0\.0\.bias lies below .*\[1\]\[0\]\[1\] \(Centre\(\)\)"):
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
    assert stats.norms(pairs[2]).shape == (BATCH,)  # above it, all is defined


def bad(call: Any, words: str, error: type[Exception] = ValueError) -> Any:
    return pytest.param(call, words, error, id=words)


B = jbp.Shift(jnp.ones((4, 1, 3)), (3,))


@pytest.mark.parametrize(
    ("call", "words", "error"),
    [
        bad(lambda p: stats.norms(jbp.contract(p)), "takes the pairs that jbp.backward returns"),
        bad(lambda p: stats.norms((p, B)), "pairs of one backward pass"),
        bad(lambda p: stats.norms(()), "no parameters at all"),
        bad(lambda p: stats.norms(jbp.Shift(jnp.ones((0, 1, 3)), (3,))), "the batch is empty"),
        bad(lambda p: stats.norms(p, "layers"), "per must be 'network', 'layer', 'parameter' or groups"),
        bad(lambda p: stats.norms(p, {"head": "9.*"}), "matches none of 0.bias, 0.weight"),
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
        bad(lambda p: stats.kronecker(p, "both"), "sharing must be 'expand' or 'reduce'"),
        bad(lambda p: stats.kronecker(jbp.Sum((B, jbp.Scale(B.delta, B.delta, (3,))))), "Sum", NotImplementedError),
    ],
)
def test_bad_input_is_refused(pairs, call, words, error):
    with pytest.raises(error, match=words):
        call(pairs)


def test_nan_weights_show_as_nan_and_are_not_hidden(pairs):
    """A weight that is NaN is a value, which compiled code cannot refuse; it makes every entry NaN."""
    w = jnp.ones(BATCH).at[2].set(jnp.nan)
    assert all(np.isnan(leaf).all() for leaf in leaves(stats.second_moment(pairs, w)))


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
