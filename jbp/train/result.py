"""What a run of `fit` leaves, how it may end early, and what callbacks are told on the way."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jbp._starting import Stopped
from jbp.arguments import renamed
from jbp.step import State
from jbp.train.blame import BadNumber
from jbp.train.progress import Row, StopReason, kept_row


@dataclass(frozen=True)
class Fit:
    """What a run left behind."""

    params: Any = field(repr=False)
    state: State
    """All that training carried, after the last step."""
    history: tuple[Row, ...] = field(repr=False)
    """One row an epoch: epoch, step, train_loss, train_<metric>, validation_loss, validation_<metric>, seconds
    (since the start), examples_per_second (of the epoch's steps), epsilon (since the start, if private)."""
    best_epoch: int | None
    """The epoch whose parameters these are, if the best were restored (0 is the start); else None."""
    stop_reason: StopReason
    step_losses: np.ndarray = field(repr=False)
    """The loss of every step taken, in order; NaN of one whose batch was empty, or all of weight 0, and of one
    that was skipped."""
    epsilon: float | None = None
    """Of a private training, what all steps taken together cost, whichever parameters are used."""
    start: Row = field(default_factory=dict, repr=False)
    """The validation figures before the first step; none without validation data."""
    resumed_at: tuple[int, ...] = ()
    """The steps at which the run was taken up again, in order."""
    watched: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """With `watch`, a row of each step that was looked at since this call began (`jbp.Watch`)."""
    skipped_steps: int | None = None
    """How many steps `on_bad="skip"` left out; None under another."""

    @property
    def kept(self) -> Row:
        """The figures that go with `params`: the history's row of the epoch, or `start` if the start was best."""
        return kept_row(self.history, self.start, self.best_epoch)

    @property
    def opt_state(self) -> Any:
        """Deprecated: `state.opt_state`."""
        renamed("Fit.opt_state", "Fit.state.opt_state")
        return self.state.opt_state

    @property
    def rule_state(self) -> Any:
        """Deprecated: `state.method_state`."""
        renamed("Fit.rule_state", "Fit.state.method_state")
        return self.state.method_state


class Interrupted(Stopped):
    """Ctrl-C or SIGTERM during `fit`. `result` holds what was reached: the finished epochs and the last parameters."""

    def __init__(self, result: Fit, number: int = signal.SIGINT, saved: str = ""):
        self.result = result
        super().__init__(number, f"interrupted after {len(result.step_losses)} steps{saved}")


class BadBatch(ValueError):
    """A batch of streamed data could not be read, or not be trained on. `batch` counts from 1, over all epochs, or in
    the validation data; `result` holds what was reached before. A run that is saved can go on from there, if the same
    data can be read again."""

    def __init__(self, result: Fit, batch: int, words: str):
        self.result, self.batch = result, batch
        super().__init__(words)


class Diverged(ArithmeticError):
    """The loss, or of a private run a parameter, is no longer finite. `step` counts from 1; `result` holds the epochs
    before.

    `place` is the first number that was not finite: its layer, direction, example and row of the data; None where it
    was not looked for, as in a private run. `batch` is the file in which its batch is kept, of a run that is saved.
    """

    def __init__(self, result: Fit, step: int, place: BadNumber | None = None, batch: Path | None = None):
        self.result, self.step, self.place, self.batch = result, step, place, batch
        advice = "lower the learning rate, or check the scale of the data"
        words = [f"the loss became non-finite at step {step}: {advice}"]
        if result.epsilon is not None:  # nothing that tells of an example
            words = [f"the parameters are no longer finite after step {step}: {advice}"]
        words += [str(place)] if place is not None else []
        words += [f"its batch is kept in {batch}"] if batch is not None else []
        super().__init__("; ".join(words))


@dataclass(frozen=True)
class Event:
    """What a callback is told after each chunk of steps."""

    epoch: int
    step: int
    """Steps taken so far, over all epochs."""
    steps: int
    """Steps that all epochs together take."""
    loss: float
    """Mean training loss of this epoch so far."""
    seconds: float
    row: Row | None
    """The history's new row, if this chunk ended an epoch."""
    state: State
    """All that training carries, valid until the callback returns: copy what you keep."""
    watched: dict[str, Any] | None = None
    """What was seen of the chunk's first step, if it is one that `watch` asks for (`jbp.Watch`)."""

    @property
    def params(self) -> Any:
        """The current parameters, valid as long."""
        return self.state.params

    @property
    def rule_state(self) -> Any:
        """Deprecated: `state.method_state`."""
        renamed("Event.rule_state", "Event.state.method_state")
        return self.state.method_state


Callback = Callable[[Event], bool | None]
"""What `fit` tells after each chunk of steps; it ends the run by answering True."""
