"""`fit`: the order of the data, the steps, stopping, and what it leaves behind."""

import signal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbp
from jbp.step import epoch_keys
from jbp.train.batches import Resident, draw_order, order_of
from jbp.train.program import evaluation_program

N, WIDTH, K = 23, 5, 3  # examples, inputs, classes
X = np.random.default_rng(0).normal(size=(N, WIDTH))
Y = np.random.default_rng(1).integers(0, K, N)
VALID = X[:7] + 0.1, Y[:7]
NET = jbp.serial(jbp.Dense(11), jbp.tanh, jbp.Dense(K))
LOSS = jbp.losses.softmax_cross_entropy
SGD = jbp.optim.sgd(0.1, momentum=0.9)  # one object, so that runs share compiled programs
ACCURACY = {"accuracy": jbp.accuracy}


def run(**options: Any) -> jbp.Fit:
    options = {"epochs": 2, "batch_size": 4, "metrics": ACCURACY} | options
    return jbp.fit(NET, LOSS, options.pop("optimizer", SGD), options.pop("data", (X, Y)), **options)


def same(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda p, q: bool((p == q).all()), a, b))


def test_equal_seeds_give_equal_bits_and_others_do_not():
    first, again, other = run(seed=3), run(seed=3), run(seed=4)
    assert same(first.params, again.params)
    assert (first.step_losses == again.step_losses).all()
    assert not (first.step_losses == other.step_losses).any()


@pytest.mark.parametrize("chunk_steps", [1, 2, 5, 6, 100])
@pytest.mark.parametrize("sampling", ["shuffle", "replacement"])
def test_the_length_of_a_chunk_changes_no_bit(chunk_steps: int, sampling: Any):
    whole, cut = run(sampling=sampling), run(sampling=sampling, chunk_steps=chunk_steps)
    assert same(whole.params, cut.params)
    assert (whole.step_losses == cut.step_losses).all()
    figures = [[{k: v for k, v in row.items() if "second" not in k} for row in r.history] for r in (whole, cut)]
    assert figures[0] == figures[1]


def test_nothing_is_compiled_after_the_first_chunk():
    compiled, chunks = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **kwargs: (
            compiled.append(event) if event.endswith("backend_compile_duration") else None
        )
    )
    # A net of its own, so that the first chunk does compile.
    jbp.fit(
        jbp.serial(jbp.Dense(13), jbp.relu, jbp.Dropout(0.1), jbp.Dense(K)),
        LOSS,
        jbp.optim.sgd(0.1),
        (X, Y),
        epochs=4,
        batch_size=4,
        validation_data=VALID,
        patience=3,
        chunk_steps=2,
        callbacks=(lambda event: chunks.append(len(compiled)),),
    )
    assert len(chunks) == 4 * 3
    assert chunks[0] > 0, "the listener hears compilations"
    assert set(chunks) == {chunks[0]}


class _Seen(NamedTuple):
    total: Any


def recorder() -> optax.GradientTransformation:
    """An optimiser that moves nothing and adds up the gradients that it is given."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(jnp.zeros_like, updates), _Seen(jax.tree.map(jnp.add, state.total, updates))

    return optax.GradientTransformation(lambda params: _Seen(jax.tree.map(jnp.zeros_like, params)), update)


def coverage(batch_size: int, sampling: Any, epochs: int = 1) -> np.ndarray:
    """How often each example was used, times 1 / the size of its batch: row n of the target is the unit vector n."""
    net = jbp.Dense(N)
    params = {"weight": jnp.zeros((1, N)), "bias": jnp.zeros(N)}
    fitted = jbp.fit(
        net, jbp.losses.l2_loss, recorder(), (np.ones((N, 1)), np.eye(N)),
        params=params, batch_size=batch_size, epochs=epochs, sampling=sampling,
    )  # fmt: skip
    return -np.asarray(fitted.state.opt_state.total["bias"])


@pytest.mark.parametrize("batch_size", [1, 4, 7, N])
def test_shuffling_uses_every_example_once_an_epoch(batch_size: int):
    rest = N % batch_size or batch_size
    expected = np.full(N, 1 / batch_size)
    expected[:rest] = 1 / rest
    np.testing.assert_allclose(np.sort(coverage(batch_size, "shuffle")), np.sort(expected), rtol=1e-14)


def test_each_epoch_has_an_order_of_its_own():
    losses = run(epochs=2, optimizer=recorder()).step_losses
    assert not np.isin(losses[:6], losses[6:]).any()


def test_replacement_draws_uniformly_and_with_repeats():
    epochs = 200
    counts = coverage(N, "replacement", epochs) * N
    assert counts.sum() == pytest.approx(epochs * N)
    # Binomial(200·23, 1/23): 23 counts, each within five standard deviations (chance of failing 1e-5).
    np.testing.assert_allclose(counts, epochs, atol=5 * np.sqrt(epochs * (1 - 1 / N)))
    once = coverage(N, "replacement") * N
    assert once.max() > 1.5
    assert (once == 0).any()


def test_the_full_batch_is_gradient_descent():
    params, _ = NET.init(jax.random.key(5), (WIDTH,))
    fitted = run(params=params, batch_size=N, epochs=5, optimizer=jbp.optim.sgd(0.3))
    gradient = jbp.value_and_grad(NET, LOSS)
    for expected in fitted.step_losses:
        value, grads = gradient(params, X, Y)
        np.testing.assert_allclose(value, expected, rtol=1e-13)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-11, atol=1e-13), params, fitted.params)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_step_is_the_lectures_update_on_the_examples_picked(batch_size: int):
    params, _ = NET.init(jax.random.key(5), (WIDTH,))
    fitted = run(params=params, batch_size=batch_size, epochs=1, optimizer=jbp.optim.sgd(0.3), seed=9)
    _, key = jax.random.split(jax.random.key(9))
    order = draw_order(jax.random.split(jax.random.fold_in(key, 1))[0], Resident("shuffle", batch_size, N))
    assert order is not None
    gradient = jbp.value_and_grad(NET, LOSS)
    for t, expected in enumerate(fitted.step_losses):
        picked = order[t * batch_size : (t + 1) * batch_size][: N - t * batch_size]
        value, grads = gradient(params, X[picked], Y[picked])
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-11, atol=1e-13), params, fitted.params)


def test_rows_hold_the_means_over_the_epochs_examples():
    fitted = run(epochs=3, validation_data=VALID, optimizer=recorder())
    output = jbp.apply(NET, fitted.params, X)
    losses, hits = jax.vmap(LOSS.value)(output, Y), np.asarray(output.argmax(-1)) == Y
    held_out = jbp.apply(NET, fitted.params, VALID[0])
    for row in fitted.history:
        assert row["train_loss"] == pytest.approx(float(losses.mean()), rel=1e-12)
        assert row["train_accuracy"] == pytest.approx(hits.mean(), rel=1e-12)
        assert row["validation_accuracy"] == pytest.approx(
            (np.asarray(held_out.argmax(-1)) == VALID[1]).mean(), rel=1e-12
        )
    assert [row["step"] for row in fitted.history] == [6, 12, 18]
    assert len(fitted.step_losses) == 18
    assert fitted.stop_reason == "epochs"
    assert fitted.best_epoch is None


@pytest.mark.parametrize("block", [1, 5, 23, 100])
def test_evaluation_in_blocks_is_the_mean_over_all(block: int):
    params, _ = NET.init(jax.random.key(5), (WIDTH,))
    loss, hit = evaluation_program(NET, LOSS, (jbp.accuracy.of(LOSS),), None, block)(
        params, jnp.asarray(X), jnp.asarray(Y)
    )
    output = jbp.apply(NET, params, X)
    np.testing.assert_allclose(loss, jax.vmap(LOSS.value)(output, Y).mean(), rtol=1e-13)
    np.testing.assert_allclose(hit, (np.asarray(output.argmax(-1)) == Y).mean(), rtol=1e-13)


def test_dropout_draws_anew_each_step_and_not_in_evaluation():
    net = jbp.serial(jbp.Dropout(0.5), jbp.Dense(K))
    fitted = jbp.fit(net, LOSS, recorder(), (X, Y), batch_size=N, epochs=4, validation_data=(X, Y))
    assert len(set(fitted.step_losses)) == 4
    assert len({row["validation_loss"] for row in fitted.history}) == 1


def test_the_arguments_survive():
    params, _ = NET.init(jax.random.key(5), (WIDTH,))
    before = jax.tree.map(np.asarray, params)
    run(params=params)
    assert same(params, before)


def test_frozen_parameters_do_not_move_not_even_by_weight_decay():
    params, _ = NET.init(jax.random.key(5), (WIDTH,))
    optimizer = optax.chain(optax.add_decayed_weights(0.1), jbp.optim.sgd(0.1))
    fitted = run(params=params, optimizer=optimizer, trainable=(False, True, {"weight": True, "bias": False}))
    assert same(fitted.params[0], params[0])
    assert same(fitted.params[2]["bias"], params[2]["bias"])
    assert not same(fitted.params[2]["weight"], params[2]["weight"])


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.01),
        optax.chain(optax.clip_by_global_norm(1.0), jbp.optim.sgd(optax.cosine_decay_schedule(0.1, 12))),
        optax.inject_hyperparams(jbp.optim.sgd)(learning_rate=0.1, momentum=0.9),
        optax.MultiSteps(jbp.optim.sgd(0.1), 2).gradient_transformation(),
    ],
    ids=["adam", "clip and schedule", "inject_hyperparams", "MultiSteps"],
)
def test_any_optax_optimiser_trains(optimizer: Any, optax_promotion: None):
    losses = run(epochs=8, optimizer=optimizer).history
    assert losses[-1]["train_loss"] < losses[0]["train_loss"]


def worsening(epochs_good: int) -> Any:
    """An optimiser that descends for some epochs of six steps, and then climbs."""
    return jbp.optim.sgd(0.05), optax.scale_by_schedule(
        lambda step: jnp.where(jnp.asarray(step) < 6 * epochs_good, 1.0, -1.0)
    )


def test_patience_stops_and_the_best_is_restored():
    sgd, turn = worsening(3)
    seen = {}
    fitted = run(
        epochs=50, optimizer=optax.chain(sgd, turn), validation_data=(X, Y), patience=4,
        callbacks=(lambda event: seen.update({event.epoch: jax.tree.map(np.asarray, event.params)}),),
    )  # fmt: skip
    losses = [row["validation_loss"] for row in fitted.history]
    assert fitted.stop_reason == "patience"
    assert fitted.best_epoch == 1 + int(np.argmin(losses)) == 3
    assert len(losses) == 3 + 4
    assert same(fitted.params, seen[3])


def test_patience_without_restoring_returns_the_last():
    sgd, turn = worsening(3)
    seen = {}
    fitted = run(
        epochs=50, optimizer=optax.chain(sgd, turn), validation_data=(X, Y), patience=4, restore_best=False,
        callbacks=(lambda event: seen.update({event.epoch: jax.tree.map(np.asarray, event.params)}),),
    )  # fmt: skip
    assert fitted.best_epoch is None
    assert same(fitted.params, seen[7])


def test_a_run_that_ends_before_any_epoch_has_its_last_parameters():
    fitted = run(epochs=5, data=(X, Y), restore_best=True, chunk_steps=1, callbacks=(lambda event: True,))
    assert (fitted.stop_reason, fitted.best_epoch) == ("callback", None)
    assert jax.tree.leaves(fitted.params)


def test_min_delta_is_what_counts_as_better():
    full = run(epochs=30, validation_data=(X, Y))
    gains = -np.diff([row["validation_loss"] for row in full.history])
    assert gains.max() < 10.0
    fitted = run(epochs=30, validation_data=(X, Y), patience=2, min_delta=10.0)
    assert (fitted.best_epoch, len(fitted.history)) == (0, 2)


def test_a_target_ends_the_run():
    fitted = run(epochs=200, data=(X, Y), monitor="train_accuracy", target=0.8)
    assert fitted.stop_reason == "target"
    assert fitted.history[-1]["train_accuracy"] >= 0.8
    assert all(row["train_accuracy"] < 0.8 for row in fitted.history[:-1])
    fitted = run(epochs=200, monitor="train_loss", target=0.9)
    assert fitted.history[-1]["train_loss"] <= 0.9 < fitted.history[-2]["train_loss"]


def test_a_callback_sees_every_chunk_and_can_stop():
    events = []

    def callback(event: jbp.Event) -> bool:
        events.append(event)
        return event.step == 8

    fitted = run(epochs=5, chunk_steps=2, callbacks=(callback,))
    assert [event.step for event in events] == [2, 4, 6, 8]
    assert [event.row is None for event in events] == [True, True, False, True]
    assert events[0].steps == 30
    assert events[1].loss == pytest.approx(fitted.step_losses[:4].mean())
    assert fitted.stop_reason == "callback"
    assert len(fitted.history) == 1
    assert len(fitted.step_losses) == 8


def test_ctrl_c_ends_the_chunk_and_keeps_what_was_reached():
    def press(event: jbp.Event) -> None:
        if event.step == 8:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(jbp.Interrupted, match="interrupted after 8 steps") as caught:
        run(epochs=5, chunk_steps=2, callbacks=(press,))
    assert isinstance(caught.value, KeyboardInterrupt)
    assert len(caught.value.result.history) == 1
    assert same(caught.value.result.params, run(epochs=5, chunk_steps=2, callbacks=(lambda e: e.step == 8,)).params)
    assert signal.getsignal(signal.SIGINT) is before


def test_divergence_names_the_step_and_keeps_the_rows():
    optimizer = jbp.optim.sgd(lambda step: jnp.where(jnp.asarray(step) < 8, 0.01, 1e100))
    with pytest.raises(jbp.Diverged, match=r"non-finite at step \d+: lower the learning rate") as caught:
        jbp.fit(jbp.Dense(1), jbp.losses.l2_loss, optimizer, (X, X[:, :1]), epochs=5, batch_size=4)
    result, step = caught.value.result, caught.value.step
    assert step > 8
    assert len(result.step_losses) == step
    assert np.isfinite(result.step_losses[:-1]).all()
    assert not np.isfinite(result.step_losses[-1])
    assert len(result.history) == (step - 1) // 6


BROKEN = X.copy()
BROKEN[4, 3] = np.nan

BAD = {
    "epochs 0": ({"epochs": 0}, "epochs must be a whole number of at least 1, but is 0"),
    "batch size 0": ({"batch_size": 0}, "batch_size must be a whole number of at least 1, but is 0"),
    "batch size above the data": ({"batch_size": 24}, "at most the number of training examples, 23, but is 24"),
    "sampling": ({"sampling": "random"}, "'shuffle' or 'replacement', but is 'random'"),
    "optimiser": ({"optimizer": "sgd"}, "must come from jbp.optim or optax, but is 'sgd'"),
    "monitor": ({"monitor": "accuracy"}, "monitor must be one of train_loss, train_accuracy"),
    "monitor without data": ({"monitor": "validation_loss"}, "without validation_data there are no"),
    "patience 0": ({"patience": 0}, "patience must be a whole number of at least 1"),
    "min_delta": ({"patience": 1, "min_delta": -1.0}, "min_delta must be a finite number"),
    "target NaN": ({"target": float("nan")}, "target must be a finite number"),
    "chunk": ({"chunk_steps": 0}, "chunk_steps must be"),
    "trainable": ({"trainable": (1, True, True)}, "trainable must be a tree of bools"),
    "no pair": ({"data": X}, r"must be a pair \(x, y\)"),
    "lengths": (
        {"data": (X, Y[:-1])},
        r"as many targets as inputs, at least one, but has shapes \(23, 5\) and \(22,\)",
    ),
    "empty": ({"data": (X[:0], Y[:0])}, "at least one"),
    "NaN": ({"data": (BROKEN, Y)}, r"x of train_data must be finite, .* row 4, at \[3\]"),
    "label too large": (
        {"data": (X, Y + 1)},
        r"y of train_data must hold classes 0…2, for the net has 3 outputs, but row \d+ has",
    ),
    "label negative": (
        {"data": (X, Y - 1)},
        r"y of train_data must hold classes 0…2, for the net has 3 outputs, but row \d+ has",
    ),
    "float labels": ({"data": (X, Y + 0.5)}, "integer classes of shape"),
    "validation shape": ({"validation_data": (X[:, :2], Y)}, r"layer \[0\]: Dense\(11\) .* input of shape \(2,\)"),
    "validation labels": ({"validation_data": (X, Y + 1)}, "y of validation_data must hold classes"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_with_what_to_do(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_an_epochs_order_is_that_of_jax_however_it_is_made():
    for n, batch_size in ((1, 1), (2, 3), (23, 5), (1626, 7), (70_001, 128)):  # sorted no times, once, twice
        for epoch in (1, 7):
            key = jax.random.key(epoch)
            reader = Resident("shuffle", batch_size, n)
            order = order_of(key, epoch, reader)()
            inside = draw_order(epoch_keys(key, epoch)[0], reader)
            assert order is not None and inside is not None and order.dtype == inside.dtype
            np.testing.assert_array_equal(order, inside)
    assert order_of(jax.random.key(0), 1, Resident("replacement", 2, 5))() is None


def test_an_optimiser_made_again_finds_the_compiled_program():
    assert jbp.optim.sgd(0.1, momentum=0.9) is jbp.optim.sgd(0.1, momentum=0.9)
    assert jbp.optim.sgd(0.1) is not jbp.optim.sgd(0.2)
