"""Training on padded sequences: as on each cut to its length, means over examples or over tokens."""

from typing import Any

import jax
import numpy as np
import pytest
from oracles import compiled
from test_masks import LOSS

import jbp
from jbp.layer import Layer

N, T, WIDTH, K = 5, 7, 3, 4
LENGTHS = np.asarray([7, 1, 3, 2, 6])
MASK = np.arange(T) < LENGTHS[:, None]
NET = jbp.serial(jbp.Dense(6), jbp.tanh, jbp.Attention(2), jbp.Dense(K))
POOLED = jbp.serial(jbp.Dense(6), jbp.tanh, jbp.GlobalPool(), jbp.Dense(K))
RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(N, T, WIDTH)), RNG.integers(K, size=(N, T))
BAD = np.where(MASK[..., None], X, np.nan), np.where(MASK, Y, 99)
PARAMS = NET.init(jax.random.key(2), (T, WIDTH))[0]
HALF = jbp.optim.sgd(0.5)


def loose(value: Any) -> Any:
    """Where a type checker would notice the mistake."""
    return value


def fitted(data: Any = (*BAD, MASK), **options: Any) -> jbp.Fit:
    given = {"epochs": 2, "batch_size": N, "params": PARAMS, "optimizer": HALF} | options
    net: Layer = given.pop("net", NET)
    return jbp.fit(net, LOSS, given.pop("optimizer"), data, **given)


def means(params: Any, shares: np.ndarray) -> Any:
    """Loss and gradient of the examples, each cut to its length."""
    value_and_grad = jbp.value_and_grad(NET, LOSS)
    each = [value_and_grad(params, X[i : i + 1, :t], Y[i : i + 1, :t]) for i, t in enumerate(LENGTHS)]
    return jax.tree.map(lambda *a: sum(s * b for s, b in zip(shares, a, strict=True)), *each)


SHARES = {"example": np.full(N, 1 / N), "token": LENGTHS / LENGTHS.sum()}


@pytest.mark.parametrize("per", SHARES)
def test_steps_and_figures_are_those_of_examples_cut_to_their_length(per: Any):
    params, losses, shares = PARAMS, [], SHARES[per]
    metrics = {"bits": jbp.bits_per_token, "accuracy": jbp.accuracy}
    held: Any = {"validation_data": (*BAD, MASK), "metrics": metrics, "per": per}
    runs = [fitted(**held, **o) for o in ({}, {"accumulate": 2}, {"in_place": True})]
    for _ in range(2):
        value, grads = means(params, shares)
        losses.append(float(value))
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    for run in runs:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14), run.params, params)
        np.testing.assert_allclose([row["train_loss"] for row in run.history], losses, rtol=1e-12)
        np.testing.assert_allclose(run.history[-1]["validation_loss"], float(means(params, shares)[0]), rtol=1e-12)
        np.testing.assert_allclose(run.history[-1]["validation_bits"], run.history[-1]["validation_loss"] / np.log(2))
    output = np.asarray(jbp.forward(NET, params, BAD[0], mask=MASK)[0]).argmax(-1) == Y
    right = sum(s * output[i, :t].mean() for s, (i, t) in zip(shares, enumerate(LENGTHS), strict=True))
    assert runs[0].history[-1]["validation_accuracy"] == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize("per", SHARES)
def test_an_epoch_of_small_batches_counts_each_as_it_should_and_padding_for_nothing(per: Any, tmp_path: Any):
    """Where nothing moves, the figures of training are those of evaluation, whatever the batches."""
    told: Any = {"batch_size": 2, "per": per, "optimizer": jbp.optim.sgd(0.0)}
    still = fitted(**told, validation_data=(*BAD, MASK))
    assert still.history[0]["train_loss"] == pytest.approx(still.history[0]["validation_loss"], rel=1e-12)
    assert still.history[0]["validation_loss"] == pytest.approx(float(means(PARAMS, SHARES[per])[0]), rel=1e-12)
    told = told | {"optimizer": HALF, "watch": jbp.Watch(2)}
    clean, bad = fitted((X, Y, MASK), **told), fitted(**told)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (clean.params, bad.params)), strict=True))
    assert repr(clean.watched) == repr(bad.watched) and np.isfinite(bad.watched[0]["layers"]["0"]["h"])
    pytest.importorskip("orbax.checkpoint")
    told = told | {"save_to": tmp_path / "run"}
    fitted(**told | {"epochs": 1})
    again = fitted(**told, resume=True)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (again.params, bad.params)), strict=True))
    with pytest.raises(ValueError, match="data"):
        fitted((*BAD, MASK | (np.arange(T) < 2)), **told, resume=True)


def test_what_is_watched_is_of_the_real_positions():
    one = fitted((X[:1], Y[:1], MASK[:1] & (np.arange(T) < 3)), batch_size=1, watch=jbp.Watch(9)).watched
    cut = fitted((X[:1, :3], Y[:1, :3]), batch_size=1, watch=jbp.Watch(9)).watched
    for path, layer in cut[0]["layers"].items():
        for name, value in layer.items():
            assert one[0]["layers"][path][name] == pytest.approx(value, rel=1e-10), (path, name)


def test_pooled_and_private_and_rules_see_the_mask():
    labels, bad = Y[:, 0], BAD[0]
    params = POOLED.init(jax.random.key(0), (T, WIDTH))[0]
    told: Any = {"net": POOLED, "params": params, "epochs": 1}
    by_hand = [
        jbp.value_and_grad(POOLED, LOSS)(params, X[i : i + 1, :t], labels[i : i + 1]) for i, t in enumerate(LENGTHS)
    ]
    grads = jax.tree.map(lambda *g: sum(g) / N, *(g for _, g in by_hand))
    wanted = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    for run in (fitted((bad, labels, MASK), **told), fitted((bad, labels, MASK), rule=jbp.Backpropagation(), **told)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), run.params, wanted)
    one, other = (fitted((x, labels, MASK), rule="feedback_alignment", **told) for x in (bad, X))
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    with pytest.raises(ValueError, match=r"DirectFeedbackAlignment.* sends the error to padding too"):
        fitted((bad, labels, MASK), rule="direct_feedback_alignment", **told)


def test_where_a_run_breaks_is_not_in_the_padding():
    with pytest.raises(jbp.train.Diverged) as caught:
        fitted(params=jax.tree.map(lambda p: 1e308 * p, PARAMS))
    assert caught.value.place is not None and caught.value.place.direction not in (None, "input")


@pytest.mark.parametrize("lean", [False, True])
def test_private_sums_are_those_of_examples_cut_to_their_length(lean: bool):
    problem = jbp.Problem(NET, LOSS, HALF, method=jbp.Private(1.0, 0.3, 1e-3, lean=lean).bind(N))
    state = jbp.init_state(problem, (T, WIDTH), params=PARAMS, seed=0)
    found = problem.method.sums(problem, state, jbp.Batch(*BAD, mask=MASK), jax.random.key(0))
    clipped = compiled(lambda x, y: jbp.clipped_sum(NET, LOSS, PARAMS, x, y, 0.3)[2])
    each = [clipped(X[i : i + 1, :t], Y[i : i + 1, :t]) for i, t in enumerate(LENGTHS)]
    wanted = jax.tree.map(lambda *g: sum(g), *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14), found.grads, wanted)


REFUSED = {
    "no mask": ({"data": (X, Y), "per": "token"}, "train_data has none"),
    "another per": ({"per": "tokens"}, "per must be one of|per must be"),
    "numbers": ({"data": (X, Y, MASK.astype(float))}, r"the third of train_data is a mask, bools \[5, 7\]"),
    "of other positions": ({"data": (X, Y, MASK[:, :4])}, r"bool of shape \(5, 4\)"),
    "of other examples": ({"data": (X, Y, MASK[:4])}, r"bool of shape \(4, 7\)"),
    "one axis": ({"data": (X, Y, MASK[:, 0])}, r"bool of shape \(5,\)"),
    "nothing real": ({"data": (X, Y, MASK & (LENGTHS != 3)[:, None])}, "train_data: mask has no real .* in row 2"),
    "nothing real, held": (
        {"validation_data": (X, Y, MASK & (LENGTHS != 1)[:, None])}, "validation_data: mask has no real .* row 1",
    ),
    "NaN at a real one": ({"data": (np.where(X[2, 1, 0] == X, np.nan, X), Y, MASK)}, "x of train_data must be finite"),
    "a target at a real one": ({"data": (X, np.where(LENGTHS[:, None] == 3, 9, Y), MASK)}, "y of train_data"),
    "weights per token": ({"weights": np.ones(N), "per": "token"}, 'per="token" weighs each example by its tokens'),
    "moments per token": (
        {"net": jbp.serial(jbp.Dense(5), jbp.BatchNorm(), jbp.Dense(3)), "params": None, "per": "token"},
        r"BatchNorm\(\).* would count once more",
    ),
    "a transform": ({"transform": lambda x, key: x}, "do not go with transform"),
    "windows": ({"data": (*jbp.data.windows(np.arange(30), 7), np.ones((23, 7), bool))}, "a mask is for arrays"),
    "a metric": ({"metrics": {"blind": lambda o, t: o.sum()}}, "metric 'blind' takes none"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_mask_does_not_go_with_is_refused(name: str):
    options, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        fitted(**options)


def test_a_mask_is_refused_by_name_where_nothing_is_told_of_it():
    with pytest.raises(ValueError, match=r"train_data has a mask, which jbp\.fit alone takes"):
        jbp.fit_many(NET, LOSS, HALF, loose((X, Y, MASK)), seeds=[0], epochs=1)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="do not go with sharding"):
        fitted(sharding=mesh)
