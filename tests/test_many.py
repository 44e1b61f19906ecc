"""`fit_many`: each of many runs equals its single run, whatever the others do."""

import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_fit import ACCURACY, LOSS, NET, SGD, VALID, WIDTH, K, X, Y

import jbp

SEEDS = (3, 0, 11)
DROPS = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dropout(0.3), jbp.Dense(K))
TIMES = {"seconds", "examples_per_second"}


def momentum(rate: Any) -> optax.GradientTransformationExtraArgs:
    return jbp.optim.sgd(rate, momentum=0.9)


def many(**options: Any) -> jbp.Many:
    options = {"seeds": SEEDS, "epochs": 2, "batch_size": 4, "metrics": ACCURACY} | options
    net, loss, data = (options.pop(name, default) for name, default in (("net", NET), ("loss", LOSS), ("data", (X, Y))))
    return jbp.fit_many(net, loss, options.pop("optimizer", SGD), data, **options)


def assert_equal_to_single_runs(found: jbp.Many, optimizer: Any, **options: Any) -> list[jbp.Fit]:
    """Parameters, history, losses and end of every run, against `fit`; to rounding."""
    options = {"epochs": 2, "batch_size": 4, "metrics": ACCURACY} | options
    net, singles = options.pop("net", NET), []
    for r, run in enumerate(found.runs):
        chosen = optimizer(run.learning_rate) if run.learning_rate is not None else optimizer
        single = jbp.fit(net, LOSS, chosen, (X, Y), seed=run.seed, **options)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), found.params_of(r), single.params
        )
        taken = len(single.step_losses)
        np.testing.assert_allclose(found.step_losses[r, :taken], single.step_losses, rtol=1e-9)
        assert np.isnan(found.step_losses[r, taken:]).all()
        assert (run.stop_reason, run.best_epoch) == (single.stop_reason, single.best_epoch)
        assert len(run.history) == len(single.history)
        for ours, theirs in zip(run.history, single.history, strict=True):
            assert list(ours) == list(theirs)
            for name in set(ours) - TIMES:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-9), name
        singles.append(single)
    return singles


@pytest.mark.parametrize("sampling", ["shuffle", "replacement"])
@pytest.mark.parametrize("net", [NET, DROPS], ids=["plain", "with dropout"])
def test_every_seed_equals_its_single_run(net: Any, sampling: Any):
    options = {"net": net, "sampling": sampling, "validation_data": VALID}
    assert_equal_to_single_runs(many(**options), SGD, **options)


def test_seeds_times_learning_rates_equal_their_single_runs():
    rates = (0.3, 0.01)
    found = many(seeds=(5, 2), learning_rates=rates, optimizer=momentum)
    assert [(run.seed, run.learning_rate) for run in found.runs] == [(5, 0.3), (5, 0.01), (2, 0.3), (2, 0.01)]
    assert (found.seeds, found.learning_rates) == ((5, 2), rates)
    assert_equal_to_single_runs(found, momentum)


@pytest.mark.parametrize("restore_best", [None, False])
def test_patience_ends_each_run_where_it_ends_alone(restore_best: Any):
    options = {"validation_data": VALID, "patience": 2, "epochs": 30, "restore_best": restore_best}
    found = many(optimizer=momentum, learning_rates=(0.5, 0.05), **options)
    singles = assert_equal_to_single_runs(found, momentum, **options)
    assert len({len(single.history) for single in singles}) > 1, "they do not all end together"


def test_a_target_ends_each_run_where_it_ends_alone():
    options = {"epochs": 60, "monitor": "train_loss", "target": 0.9}
    found = many(**options)
    assert_equal_to_single_runs(found, SGD, **options)
    assert {run.stop_reason for run in found.runs} == {"target"}


def test_given_parameters_are_every_runs_start_and_survive():
    params, _ = NET.init(jax.random.key(77), (WIDTH,))
    before = jax.tree.map(np.asarray, params)
    found = many(params=params)
    assert_equal_to_single_runs(found, SGD, params=params)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_frozen_parameters_stay():
    trainable = (False, True, True)
    assert_equal_to_single_runs(many(trainable=trainable), SGD, trainable=trainable)


def test_another_way_back_equals_its_single_runs():
    assert_equal_to_single_runs(many(rule="feedback_alignment"), SGD, rule="feedback_alignment")


@pytest.mark.parametrize("chunk_steps", [1, 4, 100])
def test_the_length_of_a_chunk_changes_no_bit(chunk_steps: int):
    whole, cut = many(net=DROPS), many(net=DROPS, chunk_steps=chunk_steps)
    assert (whole.step_losses == cut.step_losses).all()
    jax.tree.map(np.testing.assert_array_equal, whole.params, cut.params)


def climbing(rate: Any) -> optax.GradientTransformationExtraArgs:
    """Descends; with a rate above 1 it overflows in the second epoch."""
    return jbp.optim.sgd(lambda step: jnp.where((jnp.asarray(step) >= 8) & (rate > 1), 1e200, 0.1 * rate))


def test_a_run_that_diverges_is_reported_and_stops_no_other():
    options: dict[str, Any] = {"epochs": 4, "batch_size": 4, "validation_data": (X, X[:, :1])}
    net, loss, data = jbp.Dense(1), jbp.losses.l2_loss, (X, X[:, :1])
    found = jbp.fit_many(net, loss, climbing, data, seeds=(1, 2), learning_rates=(0.5, 2.0), **options)
    for r, run in enumerate(found.runs):
        optimizer = climbing(jnp.asarray(run.learning_rate))
        if run.learning_rate == 0.5:
            single = jbp.fit(net, loss, optimizer, data, seed=run.seed, **options)
            np.testing.assert_allclose(found.step_losses[r], single.step_losses, rtol=1e-9)
            assert run.diverged_at is None
            continue
        with pytest.raises(jbp.Diverged) as caught:
            jbp.fit(net, loss, optimizer, data, seed=run.seed, **options)
        assert (run.diverged_at, run.stop_reason) == (caught.value.step, "diverged")
        assert len(run.history) == len(caught.value.result.history) == 1
        assert np.isnan(found.step_losses[r, run.diverged_at :]).all()
        assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isnan(leaf).all()), found.params_of(r)))
        assert np.isnan(run.figure("validation_loss"))
    assert found.diverged.tolist() == [False, True, False, True]
    assert np.isfinite(found.mean("validation_loss")).tolist() == [True, False]
    assert np.isfinite(found.std("train_loss")).tolist() == [True, False]


def test_runs_end_when_all_have_diverged():
    found = jbp.fit_many(
        jbp.Dense(1), jbp.losses.l2_loss, jbp.optim.sgd(1e200), (X, X[:, :1]), seeds=(1, 2), epochs=9, batch_size=4
    )
    assert found.diverged.all()
    assert found.step_losses.shape[1] < 6
    assert np.isnan(found.mean("train_loss"))


def test_mean_and_deviation_are_those_over_seeds():
    found = many(optimizer=momentum, learning_rates=(0.3, 0.01), validation_data=VALID)
    table = found.figures("validation_loss").reshape(3, 2)
    assert [run.figure("validation_loss") for run in found.runs] == table.ravel().tolist()
    np.testing.assert_allclose(found.mean("validation_loss"), [np.mean(table[:, 0]), np.mean(table[:, 1])])
    np.testing.assert_allclose(found.std("validation_loss"), [np.std(table[:, i], ddof=1) for i in (0, 1)])
    assert found.curves("train_loss").shape == (6, 2)
    single = many(seeds=[4])
    assert isinstance(single.mean("train_loss"), float)
    assert np.isnan(single.std("train_loss"))
    with pytest.raises(ValueError, match=r"histories hold epoch, step, train_loss, .* but no 'validation_loss'"):
        single.mean("validation_loss")


def test_a_callback_sees_the_means_and_can_stop():
    events = []

    def callback(event: jbp.Event) -> bool:
        events.append(event)
        return event.step == 8

    found = many(epochs=5, chunk_steps=2, callbacks=(callback,))
    assert [event.step for event in events] == [2, 4, 6, 8]
    assert events[1].loss == pytest.approx(found.step_losses[:, :4].mean())
    assert events[2].row is not None
    assert events[2].row["train_loss"] == pytest.approx(found.mean("train_loss"))
    assert {run.stop_reason for run in found.runs} == {"callback"}
    assert found.step_losses.shape == (3, 8)
    assert_equal_to_single_runs(found, SGD, epochs=5, chunk_steps=2, callbacks=(lambda event: event.step == 8,))


def test_ctrl_c_ends_the_chunk_and_keeps_what_was_reached():
    def press(event: jbp.Event) -> None:
        if event.step == 8:
            signal.raise_signal(signal.SIGINT)

    options: dict[str, Any] = {"epochs": 5, "chunk_steps": 2, "validation_data": VALID, "patience": 3}
    with pytest.raises(jbp.InterruptedMany, match="interrupted after 8 steps of each of 3 runs") as caught:
        many(callbacks=(press,), **options)
    assert isinstance(caught.value, jbp.Interrupted)
    ended = many(epochs=5, chunk_steps=2, callbacks=(lambda event: event.step == 8,))
    jax.tree.map(np.testing.assert_array_equal, caught.value.result.params, ended.params)


def test_nothing_is_compiled_for_a_second_call_or_chunk():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **kwargs: (
            compiled.append(event) if event.endswith("backend_compile_duration") else None
        )
    )
    options: dict[str, Any] = {"validation_data": VALID, "patience": 2, "chunk_steps": 2}
    net = jbp.serial(jbp.Dense(13), jbp.relu, jbp.Dense(K))
    many(net=net, optimizer=momentum, learning_rates=(0.1, 0.2), **options)
    assert compiled
    compiled.clear()
    many(net=net, optimizer=momentum, learning_rates=(0.3, 0.4), epochs=3, **options)
    assert not compiled


BAD = {
    "no seeds": ({"seeds": []}, r"seeds must be whole numbers, at least one, such as range\(10\), but are \[\]"),
    "one number": ({"seeds": 10}, r"such as range\(10\), but are 10"),
    "fractions": ({"seeds": [0.5]}, "seed must be a whole number"),
    "bools": ({"seeds": [True]}, "seed must be a whole number"),
    "a seed twice": ({"seeds": [1, 2, 1]}, "seeds must differ from one another, but 1 is there 2 times"),
    "no rates": ({"learning_rates": [], "optimizer": momentum}, "learning_rates must be numbers, at least one"),
    "a rate alone": ({"learning_rates": 0.1, "optimizer": momentum}, "learning_rates must be numbers"),
    "negative": ({"learning_rates": [-0.1], "optimizer": momentum}, r"a learning rate must be .* in \[0, inf\)"),
    "NaN": ({"learning_rates": [float("nan")], "optimizer": momentum}, "a learning rate must be a finite number"),
    "a rate twice": ({"learning_rates": [0.1, 0.1], "optimizer": momentum}, "learning_rates must differ"),
    "no function": ({"learning_rates": [0.1]}, "with learning_rates, optimizer must be a function"),
    "no rates for it": ({"optimizer": momentum}, r"jbp.optim or optax, but .* learning_rates=\[...\]"),
    "not an optimiser": ({"optimizer": "sgd"}, "must come from jbp.optim or optax, but is 'sgd'"),
    "returns none": ({"learning_rates": [0.1], "optimizer": lambda rate: 3}, "must return one of jbp.optim or optax"),
    "reads the rate": (
        {"learning_rates": [0.1], "optimizer": lambda rate: jbp.optim.sgd(float(rate))},
        "from a learning rate whose value is known only when it runs",
    ),
    "batch size": ({"batch_size": 24}, "at most the number of training examples, 23, but is 24"),
    "sampling": ({"sampling": "random"}, "'shuffle' or 'replacement'"),
    "monitor": ({"monitor": "accuracy"}, "monitor must be one of train_loss, train_accuracy"),
    "labels": ({"data": (X, Y + 1)}, "y of train_data must hold classes 0…2"),
    "validation": ({"validation_data": (X[:, :2], Y)}, r"layer \[0\]: Dense\(11\) .* input of shape \(2,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_in_words(name: str):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        many(**options)
