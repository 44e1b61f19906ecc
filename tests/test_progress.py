"""What is known of a run, where its batches come from, and what it leaves behind."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import LOSS, NET, PROBLEM, SGD, N, X, Y, same, state_of

import jbp
from jbp.train import Progress
from jbp.train.batches import Resident, ResidentSource
from jbp.train.clocks import Chunks, Length
from jbp.train.loop import Loop
from jbp.train.progress import Aim, EpochEnd, Steps, see

AIM = Aim.over([("accuracy", None)], False, monitor=None, patience=2, min_delta=0.0, target=None, restore_best=None)


def test_progress_is_a_value_that_grows_by_a_pure_function_and_goes_through_json():
    start = Progress(AIM, ("accuracy",), (4, 4, 3))
    after = see(start, Steps(1, np.asarray([3.0, 2.0]), np.asarray([[0.1], [0.2]])))
    again = see(start, Steps(1, np.asarray([3.0, 2.0]), np.asarray([[0.1], [0.2]])))
    assert start.taken == 0 and after.taken == 2 and after.loss == again.loss == 2.5
    whole = see(after, Steps(1, np.asarray([3.0, 2.0, 1.0]), np.asarray([[0.1], [0.2], [0.5]])))
    ended = see(whole, EpochEnd(1, {}, 7.0, 2.0))
    assert ended.rows == (
        {
            "epoch": 1, "step": 3, "train_loss": 23 / 11, "train_accuracy": pytest.approx(2.7 / 11), "seconds": 7.0,
            "examples_per_second": 5.5,
        },
    )  # fmt: skip
    assert (ended.best_epoch, ended.epoch, ended.step, ended.stop_reason) == (1, 2, 0, None)
    broken = see(ended, Steps(2, np.asarray([1.0, np.nan, 1.0]), np.zeros((3, 1))))
    assert (broken.stop_reason, broken.diverged_at, broken.taken) == ("diverged", 5, 5)
    assert see(broken, EpochEnd(2, {}, 8.0, 1.0)) is broken
    for progress in (start, after, ended, broken):
        back = Progress.from_json(json.loads(json.dumps(progress.to_json())))
        np.testing.assert_array_equal(back.all_losses(), progress.all_losses())
        assert back.metrics.tolist() == progress.metrics.tolist() and repr(back) == repr(progress)
        assert (back.aim, back.rows, back.best, back.stop_reason) == (
            progress.aim, progress.rows, progress.best, progress.stop_reason,
        )  # fmt: skip


@dataclass(frozen=True)
class Stacked:
    """The reader of batches that were stacked on the host: step t is entry t − first of the chunk."""

    every = None

    def prepared(self, chunk: Any, key: Any, epoch: Any) -> Any:
        return chunk

    def batch(self, chunk: Any, order_key: Any, step: Any) -> jbp.Batch:
        first, batches = chunk
        return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, step - first, keepdims=False), batches)


class Streamed:
    """A source that hands over the rows of some steps, in the order of resident data."""

    reader = Stacked()
    position = None

    def __init__(self, source: ResidentSource):
        self.source, self.sizes, self.weighs = source, source.sizes, source.weighs
        self.block = len(self.sizes)

    def chunk(self, key: Any, epoch: int, first: int, last: int) -> Any:
        order = np.asarray(self.source.chunk(key, epoch, first, last).order).reshape(len(self.sizes), -1)[first:last]
        real = (np.arange(order.size).reshape(order.shape) + first * order.shape[1] < N).astype(float)
        return jnp.int32(first), jax.tree.map(jnp.asarray, jbp.Batch(X[order], Y[order], real))

    def ahead(self, key: Any, epoch: int) -> None:
        self.source.ahead(key, epoch)

    def rows(self, key: Any, epoch: int, step: int) -> Any:
        return self.source.rows(key, epoch, step)

    def go_on(self, position: Any) -> None: ...

    def close(self) -> None: ...


def test_a_source_of_stacked_batches_trains_to_the_bits_of_resident_data():
    fitted = jbp.fit(NET, LOSS, SGD, (X, Y), seed=3, epochs=2, batch_size=4, metrics={"accuracy": jbp.accuracy})
    resident = ResidentSource((jnp.asarray(X), jnp.asarray(Y)), None, Resident("shuffle", 4, N), 2)
    progress = Progress(dataclasses.replace(AIM, patience=None, restores=False), ("accuracy",), (4, 4, 4, 4, 4, 3))
    run = Loop(Length(2), N, 4, None)
    streamed = run(PROBLEM, state_of(), Streamed(resident), progress, Chunks(6, 3), None, ())
    assert same(streamed.params, fitted.params)
    assert (streamed.step_losses == fitted.step_losses).all()


def test_what_is_left_behind_holds_the_state_and_prints_in_short():
    events: list[jbp.Event] = []
    fitted = jbp.fit(NET, LOSS, SGD, (X, Y), epochs=1, batch_size=4, callbacks=(events.append,))
    assert len(repr(fitted)) < 400 and len(repr(fitted.state)) < 200 and len(repr(events[0])) < 600
    assert same(fitted.state.params, fitted.params)
    with pytest.deprecated_call(match=r"Fit.opt_state is now Fit.state.opt_state"):
        assert fitted.opt_state is fitted.state.opt_state
    with pytest.deprecated_call(match=r"Fit.rule_state is now Fit.state.method_state"):
        assert fitted.rule_state == ()
    with pytest.deprecated_call(match=r"Event.rule_state is now Event.state.method_state"):
        assert events[0].rule_state == ()


def test_modules_that_moved_answer_and_say_where_to():
    from jbp import many, ties

    with pytest.deprecated_call(match=r"jbp.many.fit_many is now jbp.train.fit_many"):
        assert many.fit_many is jbp.fit_many
    with pytest.deprecated_call(match=r"jbp.ties.tied is now jbp.combine.tied"):
        assert ties.tied is jbp.tied
    with pytest.raises(AttributeError):
        many.nothing  # noqa: B018


def test_weights_of_examples_count_in_the_figures_too_and_a_batch_of_none_has_no_loss():
    weights = np.linspace(0, 2, N)
    weights[-3:] = 0
    net, still, one = jbp.serial(jbp.Dense(3)), jbp.optim.sgd(0.0), {"one": lambda output, target: jnp.ones(())}
    fitted = jbp.fit(net, LOSS, still, (X, Y), epochs=1, batch_size=1, weights=weights, metrics=one)
    assert np.isnan(fitted.step_losses).sum() == (weights == 0).sum() > 0
    errors = jax.vmap(LOSS.value)(jbp.apply(net, fitted.params, X), Y)
    (row,) = fitted.history
    assert row["train_loss"] == pytest.approx(float(np.average(errors, weights=weights)), rel=1e-12)
    assert row["train_one"] == pytest.approx(1, rel=1e-12)


def test_where_the_start_was_best_the_figures_are_those_of_the_start():
    """And not the last epoch's beside the parameters of the start."""
    options = {"epochs": 2, "batch_size": 4, "validation_data": (X, Y), "patience": 5}
    net, worse = jbp.serial(jbp.Dense(3)), jbp.optim.sgd(50.0)
    fitted = jbp.fit(net, LOSS, worse, (X, Y), seed=1, **options)
    loss = float(jax.vmap(LOSS.value)(jbp.apply(net, fitted.params, X), Y).mean())
    assert fitted.best_epoch == 0 and fitted.kept["validation_loss"] == pytest.approx(loss, rel=1e-12)
    assert fitted.kept["validation_loss"] < fitted.history[-1]["validation_loss"]
    many = jbp.fit_many(net, LOSS, worse, (X, Y), seeds=[1], **options)
    assert many.figures("validation_loss") == pytest.approx([loss], rel=1e-9)
    assert Progress.from_json(Progress(AIM, (), (), start={"a": 1.0}).to_json()).start == {"a": 1.0}
