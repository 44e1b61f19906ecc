"""Private training: clipping against each example's gradient, noise and sampling by their statistics, the account."""

import json
import sys
from fractions import Fraction
from functools import partial
from math import comb, exp, inf, sqrt
from typing import Any

import chex
import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import BATCH, NETS, Centre, drawn, random
from counting import product_flops
from dp_accounting import pld
from oracles import assert_close, assert_same, compiled, plain, plain_errors

import jbp
from jbp import cli, losses, runs
from jbp import private as privacy
from jbp.durable.saver import CHECKPOINTS
from jbp.private import MOST, OVERFLOW, SHARE, clipped_sum
from jbp.train.batches import draw_poisson

NAMES = ("classifier", "positions", "repeat in repeat", "a table of positions",
         "tied uses of several kinds", "tied stacks")  # fmt: skip
CASES = [case for case in NETS if case.name in NAMES]
BOUND = 0.7
LOSS = losses.l2_loss

N, WIDTH, K = 40, 5, 3
X = random("private x").normal(size=(N, WIDTH))
Y = random("private y").integers(0, K, N)
NET = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(K))
CROSS = losses.softmax_cross_entropy
PARAMS = NET.init(jax.random.key(3), (WIDTH,))[0]
SGD = jbp.optim.sgd(0.1, momentum=0.9)
HOW = jbp.Private(1.3, BOUND, 1e-4)
SURE = 4.4
"""Standard errors: chance alone goes further once in 100,000 times."""


def of_each(net: Any, params: Any, x: Any, y: Any, loss: Any = LOSS) -> Any:
    """The gradient of every example, formed."""

    def error(params: Any, x: Any, y: Any) -> Any:
        return plain_errors(loss, plain(net, params, x[None]), y[None])[0]

    return jax.vmap(jax.grad(error), (None, 0, 0))(params, x, y)


def clipped_one_by_one(grads: Any, weights: Any, automatic: bool = False) -> tuple[Any, Any]:
    """‖gₙ‖ and Σ wₙ cₙ gₙ, by definition."""
    leaves, structure = jax.tree.flatten(grads)
    norms = jnp.sqrt(sum(jnp.square(g).reshape(len(g), -1).sum(1) for g in leaves))
    c = BOUND / (norms + 0.01) if automatic else jnp.where(norms > BOUND, BOUND / norms, 1.0)
    return norms, structure.unflatten([jnp.einsum("n,n...->...", weights * c, g) for g in leaves])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kept_and_lean_are_the_clipped_sum_of_the_examples_gradients(case):
    assert len(CASES) == len(NAMES)
    params, x, y, _ = drawn(case)
    weights = jnp.asarray(random(case.name).uniform(0, 2, BATCH))

    def every(params: Any, x: Any, y: Any, weights: Any) -> Any:
        arguments = case.net, LOSS, params, x, y, BOUND
        found = [clipped_sum(*arguments, weights=weights, lean=lean) for lean in (False, True)]
        found += [clipped_sum(*arguments, weights=weights, automatic=True)]
        grads = of_each(case.net, params, x, y)
        return found, [clipped_one_by_one(grads, weights, how) for how in (False, False, True)]

    found, expected = compiled(every)(params, x, y, weights)
    for (errors, norms, total), (own_norms, own_total) in zip(found, expected, strict=True):
        assert_close(errors, plain_errors(LOSS, plain(case.net, params, x), y), "net")
        assert_close(norms, own_norms, "net")
        assert_close(total, own_total, "net")
    assert (found[0][1] > BOUND).any(), "some are clipped"


@pytest.mark.parametrize("lean", [False, True])
def test_rows_of_weight_0_and_gradients_that_are_not_finite_add_nothing(lean):
    net = jbp.serial(jbp.Dense(7), jbp.silu, jbp.repeat(jbp.serial(jbp.Dense(7), jbp.relu), 2), jbp.Dense(K))
    params, _ = net.init(jax.random.key(1), (WIDTH,))
    # JAX's arrays and not NumPy's: a program that is still running reads a NumPy array in place, changed or not.
    x, y = jnp.asarray(X[:BATCH]), jnp.asarray(random("targets").normal(size=(BATCH, K)))
    weights = jnp.ones(BATCH).at[jnp.array([2, 5])].set(0.0)

    @jax.jit
    def total(x: Any, y: Any, weights: Any) -> Any:
        return clipped_sum(net, LOSS, params, x, y, BOUND, weights=weights, lean=lean)[2]

    clean = total(x, y, weights)
    x, y = x.at[2].set(jnp.nan).at[5, 0].set(-jnp.inf), y.at[5].set(jnp.inf)
    assert_same(total(x, y, weights), clean)
    without = total(x, y, weights.at[7].set(0.0))
    # An example of the batch whose gradient overflows, and with it what it multiplies.
    assert_same(total(x.at[7].set(1e200), y, weights), without)
    assert_same(total(x.at[7].set(jnp.inf), y, weights), without)


@pytest.mark.parametrize("automatic", [False, True])
def test_one_example_moves_the_sum_by_at_most_the_bound(automatic):
    def total(weights: Any) -> Any:
        return clipped_sum(NET, CROSS, PARAMS, 9 * X, Y, BOUND, weights=weights, automatic=automatic)[2]

    sums = jax.jit(jax.vmap(total))(np.concatenate([np.ones((1, N)), 1 - np.eye(N)]))
    moved = np.sqrt(sum(np.square(s[0] - s[1:]).reshape(N, -1).sum(1) for s in map(np.asarray, jax.tree.leaves(sums))))
    assert (moved <= BOUND * (1 + 1e-12)).all()
    assert moved.max() > 0.95 * BOUND, "and somebody does"


@pytest.mark.parametrize("lean", [False, True])
def test_the_bound_holds_in_float32_for_an_example_whose_positions_cancel(lean):
    net, rng = jbp.serial(jbp.Dense(31)), random("cancelling")
    params = jax.tree.map(lambda a: a.astype(jnp.float32), net.init(jax.random.key(0), (4, 37))[0])
    x = jnp.full((1, 4, 37), 1e3 / 37**0.5, jnp.float32)

    @jax.jit
    def contribution(y: Any) -> Any:
        total = clipped_sum(net, LOSS, params, x, y, 1.0, lean=lean)[2]
        return jnp.sqrt(sum(jnp.square(a).sum() for a in jax.tree.leaves(total)))

    delta = rng.normal(size=(200, 1, 4, 31)) * 120
    delta[:, :, 3] = 0.01 - delta[:, :, :3].sum(2)
    targets = jbp.apply(net, params, x)[None] - jnp.asarray(delta, jnp.float32)
    assert jax.lax.map(contribution, targets).max() <= 1 + 1 / 64 + 1e-5


def test_a_net_that_couples_examples_is_refused_even_if_nothing_lies_below_the_coupling():
    net = jbp.serial(Centre(), jbp.Dense(K))
    params, _ = net.init(jax.random.key(0), (WIDTH,))
    with pytest.raises(NotImplementedError, match="couples the examples"):
        clipped_sum(net, CROSS, params, X, Y, BOUND)
    with pytest.raises(NotImplementedError, match="couples the examples"):
        jbp.fit(net, CROSS, SGD, (X, Y), private=HOW)


@pytest.mark.parametrize("bound", [0.0, -1.0, np.nan, "1"])
def test_a_bound_that_is_none_is_refused(bound):
    with pytest.raises(ValueError, match="max_norm must be a positive"):
        clipped_sum(NET, CROSS, PARAMS, X, Y, bound)


def test_keeping_costs_what_the_gradient_costs_and_lean_a_third_more():
    net = jbp.serial(jbp.Dense(512), jbp.relu, jbp.Dense(512), jbp.relu, jbp.Dense(10))
    params, _ = net.init(jax.random.key(0), (784,))
    x, y = jnp.zeros((128, 784)), jnp.arange(128) % 10
    gradient = product_flops(jbp.value_and_grad(net, CROSS), params, x, y)
    for lean, limit in ((False, 1.01), (True, 1.4)):
        own = product_flops(lambda p, x, y, lean=lean: clipped_sum(net, CROSS, p, x, y, 1.0, lean=lean), params, x, y)
        assert own <= limit * gradient


def gradients(key: Any, weights: Any, trainable: Any = None) -> Any:
    """What a step of training with batches of 8 hands to the optimiser."""
    return _gradients(jbp.Problem(NET, CROSS, SGD, trainable=trainable, method=HOW.bind(8)), key, weights)


@partial(jax.jit, static_argnums=0)
def _gradients(problem: jbp.Problem, key: Any, weights: Any) -> Any:
    state = jbp.State(PARAMS, (), (), key, jnp.int32(1), jnp.int32(0))
    sums = problem.method.sums(problem, state, jbp.Batch(X, Y, weights), key)
    return problem.method.finish(problem, sums, key).grads


@pytest.fixture(scope="module")
def own() -> Any:
    """The gradient of every example at PARAMS."""
    return compiled(lambda params: of_each(NET, params, X, Y, CROSS))(PARAMS)


def test_a_step_is_the_clipped_sum_and_noise_over_the_expected_size_whatever_was_drawn(own):
    key = jax.random.key(5)
    noise = gradients(key, np.zeros(N))
    for count in (1, 8, 31):
        drawn = (np.arange(N) < count).astype(float)
        expected = jax.tree.map(lambda s, z: s / 8 + z, clipped_one_by_one(own, drawn)[1], noise)
        assert_close(gradients(key, drawn / count), expected, "net")


def test_the_noise_has_the_stated_deviation_and_no_two_numbers_share_it():
    keys = jax.random.split(jax.random.key(int(random("noise").integers(2**31))), 2000)
    noise = jax.jit(jax.vmap(lambda key: gradients(key, np.zeros(N))))(keys)
    z = np.concatenate([8 * np.asarray(a).reshape(len(keys), -1) for a in jax.tree.leaves(noise)], 1)
    sigma, (n, coordinates) = HOW.noise_multiplier * HOW.max_norm, z.shape
    assert coordinates == sum(a.size for a in jax.tree.leaves(PARAMS))
    assert np.abs(z.mean(0)).max() <= SURE * sigma / sqrt(n)
    assert np.abs(z.std(0) / sigma - 1).max() <= SURE / sqrt(2 * n)
    assert abs(z.std() / sigma - 1) <= SURE / sqrt(2 * z.size)
    correlation = np.corrcoef(z.T)[np.triu_indices(coordinates, 1)]
    assert np.abs(correlation).max() <= 5.2 / sqrt(n)  # of 2,000 pairs, so with as little chance as one at SURE
    assert abs(np.mean(z[:-1] * z[1:])) <= SURE * sigma**2 / sqrt(z.size)


def test_frozen_parameters_get_no_noise_and_count_in_no_norm(own):
    trainable = (False, True, {"weight": True, "bias": False})
    found = gradients(jax.random.key(1), np.ones(N), trainable=trainable)
    assert not any(np.asarray(a).any() for a in jax.tree.leaves((found[0], found[2]["bias"])))
    expected = clipped_one_by_one(own[2]["weight"], np.ones(N))[1] / 8
    noise = gradients(jax.random.key(1), np.zeros(N), trainable=trainable)
    assert_close(found[2]["weight"] - noise[2]["weight"], expected, "net")
    fitted = run(trainable=trainable)
    start = NET.init(jax.random.split(jax.random.key(0))[0], (WIDTH,))[0]
    assert_same((fitted.params[0], fitted.params[2]["bias"]), (start[0], start[2]["bias"]))
    assert not np.array_equal(fitted.params[2]["weight"], start[2]["weight"])


def draws(batch_size: int, n: int, capacity: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(drawn [count, n], rows used [count]) of that many draws."""

    def draw(key: Any) -> Any:
        chosen, real = draw_poisson(key, batch_size, n, capacity)
        return jnp.zeros(n, int).at[chosen].add(real.astype(int)), real.sum()

    key = jax.random.key(int(random(f"draws {batch_size} of {n}").integers(2**31)))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(key, count)))


def test_each_example_is_drawn_independently_with_the_stated_probability():
    count, n, q = 20_000, 30, 7 / 30
    drawn, used = draws(7, n, n, count)
    assert set(np.unique(drawn)) == {0, 1}
    assert (drawn.sum(1) == used).all()
    assert np.abs(drawn.mean(0) - q).max() <= SURE * sqrt(q * (1 - q) / count)
    pairs = (drawn.T @ drawn / count)[np.triu_indices(n, 1)]
    assert np.abs(pairs - q**2).max() <= SURE * sqrt(q**2 * (1 - q**2) / count)
    spread = n * q * (1 - q)
    assert abs(used.var() / spread - 1) <= SURE * sqrt(2 / count)


def test_what_does_not_fit_is_dropped_and_all_of_them_are_all():
    drawn, used = draws(20, 30, 5, 100)
    assert (used == 5).all()
    assert (drawn.sum(1) == 5).all()
    drawn, used = draws(30, 30, 30, 3)
    assert (drawn == 1).all()


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(200, 20, 100), (50, 1, 10), (30, 29, 1000), (400, 3, 7)])
def test_the_capacity_is_the_smallest_that_leaves_the_tail(n, batch_size, steps):
    def beyond(m: int) -> Fraction:
        q = Fraction(batch_size / n)
        return sum((comb(n + 1, k) * q**k * (1 - q) ** (n + 1 - k) for k in range(m + 1, n + 2)), Fraction(0))

    m, tail = HOW.capacity(steps, batch_size, n), Fraction(OVERFLOW * HOW.delta / steps)
    assert batch_size <= m <= n
    assert m == n or beyond(m) <= tail < beyond(m - 1)


def test_epsilon_is_what_the_library_says_of_the_event_and_the_rest_of_delta_pays_for_the_overflow():
    how, (steps, batch_size, n) = jbp.Private(1.1, 0.3, 1e-5), (90, 64, 1437)
    account = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    account.compose(dp_accounting.PoissonSampledDpEvent(64 / 1437, dp_accounting.GaussianDpEvent(1.1)), steps)
    exact = account.get_epsilon(1e-5 * SHARE)
    assert how.epsilon(steps, batch_size, n) == pytest.approx(exact, rel=1e-9)
    assert account.get_epsilon(1e-5) < exact * (1 - 1e-6), "the share shows"
    assert (1 + exp(MOST)) * OVERFLOW <= 1 - SHARE
    spent = [how.epsilon(steps, batch_size, n) for steps in (0, 1, 10, 100)]
    assert spent[0] == 0 < spent[1] < spent[2] < spent[3]
    assert jbp.Private(0.3, 1.0, 1e-5).epsilon(1000, 200, 1000) == inf
    with pytest.raises(ValueError, match="batch_size ≤ n"):
        how.epsilon(3, 5, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0, 1.0, 1e-5), "noise_multiplier must be positive"),
        ((inf, 1.0, 1e-5), "noise_multiplier must be a finite"),
        ((1.0, -1.0, 1e-5), "max_norm must be a finite number in"),
        ((1.0, 1.0, 0.0), "delta must be between 0 and 1"),
        ((1.0, 1.0, 1.0), "delta must be between 0 and 1"),
        ((1.0, 1.0, 1e-5, 1), "automatic must be True or False"),
    ],
)
def test_privacy_that_is_none_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        jbp.Private(*arguments)


def run(**options: Any) -> jbp.Fit:
    options = {"epochs": 2, "batch_size": 8, "private": HOW, "seed": 0} | options
    return jbp.fit(NET, CROSS, options.pop("optimizer", SGD), options.pop("data", (X, Y)), **options)


def test_fit_takes_the_steps_it_says():
    fitted = run(epochs=1, optimizer=jbp.optim.sgd(0.5))
    init_key, run_key = jax.random.split(jax.random.key(0))
    params = NET.init(init_key, (WIDTH,))[0]
    order_key, noise_key = jax.random.split(jax.random.fold_in(run_key, 1))
    each = compiled(lambda params: of_each(NET, params, X, Y, CROSS))
    for t in range(5):
        who = np.asarray(jax.random.bits(jax.random.fold_in(order_key, t), (N,), np.uint32)) < 2**32 * 8 // N
        key = jax.random.split(jax.random.fold_in(noise_key, t))[0]
        _, total = clipped_one_by_one(each(params), who.astype(float))
        noise = privacy._noise(key, total, HOW.noise_multiplier * HOW.max_norm)
        errors = np.asarray(plain_errors(CROSS, plain(NET, params, X), Y))
        assert fitted.step_losses[t] == pytest.approx(errors[who].mean(), rel=1e-12)
        params = jax.tree.map(lambda p, s, z: p - 0.5 * (s + z) / 8, params, total, noise)
    assert_close(fitted.params, params, "steps")


def test_equal_seeds_give_equal_bits_chunks_change_none_and_without_a_seed_no_two_runs_are_alike():
    first, again, cut = run(), run(), run(chunk_steps=2)
    assert_same(again.params, first.params)
    assert_same(cut.params, first.params)
    secret, other = run(seed=None), run(seed=None)
    for a, b in ((secret, other), (secret, first)):
        assert not np.array_equal(a.params[0]["weight"], b.params[0]["weight"])


def test_history_has_the_epsilon_of_the_steps_so_far():
    fitted = run(epochs=3, metrics={"accuracy": jbp.accuracy}, validation_data=(X[:5], Y[:5]))
    assert [row["epsilon"] for row in fitted.history] == [HOW.epsilon(5 * epoch, 8, N) for epoch in (1, 2, 3)]
    assert fitted.epsilon == fitted.history[-1]["epsilon"]
    assert "validation_accuracy" in fitted.history[0]
    stopped = run(chunk_steps=2, callbacks=(lambda event: event.step >= 7,))
    assert (len(stopped.step_losses), stopped.epsilon) == (7, HOW.epsilon(7, 8, N))
    assert run(private=None).epsilon is None


def test_a_step_that_draws_nobody_is_noise_alone():
    """It has no loss, and counts in no mean: of one example a step, a mean of figures that are all 1 is 1."""
    fitted = run(batch_size=1, epochs=1, metrics={"one": lambda output, target: jnp.ones(())})
    nobody = np.isnan(fitted.step_losses)
    assert 0.2 < nobody.mean() < 0.6
    assert (fitted.step_losses[~nobody] > 0).all()
    (row,) = fitted.history
    assert row["train_one"] == pytest.approx(1, abs=1e-12)
    assert fitted.step_losses[~nobody].min() <= row["train_loss"] <= fitted.step_losses[~nobody].max()


def test_an_examples_error_does_not_end_the_run_but_lost_parameters_do():
    x = X.copy()
    x[3] = 1e200
    fitted = jbp.fit(NET, losses.squared_error, SGD, (x @ np.eye(WIDTH), np.where(x[:, :3] > 9, 1e200, 0.0)),
                     epochs=2, batch_size=20, private=HOW, seed=0)  # fmt: skip
    assert np.isinf(fitted.step_losses).any()
    assert len(fitted.step_losses) == 4
    chex.assert_tree_all_finite(fitted.params)
    with pytest.raises(jbp.Diverged):
        run(optimizer=optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * jnp.inf, updates)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patience": 3}, "cannot use patience"),
        ({"target": 0.1, "monitor": "train_loss"}, "cannot use monitor, target"),
        ({"restore_best": True}, "cannot use restore_best"),
        ({"rule": "feedback_alignment"}, "one of rule and private"),
        ({"sampling": "replacement"}, "samples by 'poisson'"),
        ({"private": 1.0}, "private must be a jbp.Private"),
        ({"private": None, "sampling": "poisson"}, "'shuffle' or 'replacement'"),
    ],
)
def test_what_the_account_does_not_know_of_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        run(**options)


def test_a_delta_as_large_as_one_example_in_n_warns():
    with pytest.warns(UserWarning, match="not below 1/n"):
        run(private=jbp.Private(1.3, 0.7, 1 / N), epochs=1)


def test_without_the_library_the_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    privacy._epsilon.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"jbp\[private\]"):
        run(private=jbp.Private(1.234, 1.0, 1e-4))
    assert cli.main(["train", "--private", "--out", str(tmp_path / "run")]) == 1
    assert "pip install 'jbp[private]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_line_shows_epsilon_as_it_goes(tmp_path, capsys):
    folder = tmp_path / "run"
    words = "train --private --noise 1.1 --clip 1.0 --delta 1e-5 --epochs 2 --batch-size 64 --out"
    words = [*words.split(), str(folder), "--net", "16 tanh"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    expected = [jbp.Private(1.1, 1.0, 1e-5).epsilon(23 * epoch, 64, 1437) for epoch in (1, 2)]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epsilon"] for row in rows] == expected
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epsilon"] == expected[-1]
    assert summary["examples"] == {"train": 1437, "test": 360}
    assert (summary["delta"], summary["noise"], summary["clip"], summary["standardized"]) == (1e-5, 1.1, 1.0, False)
    for epsilon in expected:
        assert f"ε {epsilon:.4g}" in err
    assert "warning" not in err
    assert "δ = 1e-05" in out
    assert json.loads((folder / "config.json").read_text())["seed"] is summary["seed"] is None
    assert {path.name for path in folder.iterdir()} == set(runs.FILES) - {runs.WATCHED} | {CHECKPOINTS}
    assert cli.main([*words, "--overwrite", "--seed", "3", "--delta", "0.01"]) == 0
    err = capsys.readouterr().err
    assert "with seed 3 given, the noise can be drawn again" in err
    assert "delta = 0.01 is not below 1/n" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--noise 1", "noise is for private training"),
        ("--delta 1e-5", "delta is for private training"),
        ("--private --noise 0", "noise must be a finite number above 0"),
        ("--private --clip -1", "clip must be a finite number above 0"),
        ("--private --delta 1", "delta must be a number in (0, 1)"),
        ("--private --patience 3", "cannot use patience"),
        ("--private --standardize", "cannot use standardize"),
        ("--private --seeds 0:2", "cannot use seeds"),
        ("--private --rule sign_symmetry", "cannot use rule"),
        ("--private --sampling replacement", "cannot use sampling"),
    ],
)
def test_wrong_use_of_the_command_line(words, expected, capsys):
    assert cli.main(["train", *words.split()]) == 2
    assert expected in capsys.readouterr().err
