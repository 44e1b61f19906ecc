"""What many runs leave: each one's history, their parameters stacked, means and standard deviations over the seeds."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jbp._starting import Stopped
from jbp.step import State
from jbp.train.progress import Row, StopReason, kept_row
from jbp.train.result import Interrupted


@dataclass(frozen=True)
class One:
    """What one of many runs left behind, but for its parameters."""

    seed: int
    learning_rate: float | None
    """None if the runs differ in their seeds only."""
    history: tuple[Row, ...] = field(repr=False)
    """As in `jbp.Fit`; the seconds are those of all runs together."""
    best_epoch: int | None
    stop_reason: StopReason
    diverged_at: int | None
    """The step at which the loss became non-finite, counted from 1; None if it never did."""
    start: Row = field(default_factory=dict, repr=False)
    """The validation figures before the first step."""

    def figure(self, name: str) -> float:
        """A figure of the history, at the epoch whose parameters were kept; NaN if diverged, or without such a row."""
        if self.diverged_at is not None:
            return math.nan
        return kept_row(self.history, self.start, self.best_epoch).get(name, math.nan)


@dataclass(frozen=True)
class Many:
    """What many runs left behind. The axis r of the runs comes first: seed by seed, and each with every rate in turn.

    Run r has seed `seeds[r // L]` and learning rate `learning_rates[r % L]`, with L the number of learning rates, or 1.
    """

    params: Any = field(repr=False)
    """The parameters of every run [r, ...]; NaN where a run diverged."""
    state: State = field(repr=False)
    """All that training carried, of every run [r, ...], after the last step; also of those that had ended before."""
    runs: tuple[One, ...]
    step_losses: np.ndarray = field(repr=False)
    """The loss of every step [r, steps]; NaN after a run's last."""
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...] | None
    resumed_at: tuple[int, ...] = ()
    """The steps at which the runs were taken up again, in order."""

    @property
    def diverged(self) -> np.ndarray:
        """Which runs diverged: bools [r]."""
        return np.array([run.diverged_at is not None for run in self.runs])

    def params_of(self, run: int) -> Any:
        """The parameters of one run, as `jbp.fit` returns them."""
        return jax.tree.map(lambda leaf: leaf[run], self.params)

    def figures(self, name: str) -> np.ndarray:
        """A figure of every run [r], such as "validation_accuracy", at the epoch kept; NaN where a run diverged.

        Raises:
            ValueError: if no history has a figure of this name.
        """
        self._check(name)
        return np.array([run.figure(name) for run in self.runs])

    def curves(self, name: str) -> np.ndarray:
        """A figure of every run and epoch [r, epochs]; NaN after a run's last.

        Raises:
            ValueError: if no history has a figure of this name.
        """
        self._check(name)
        curves = np.full((len(self.runs), max(len(run.history) for run in self.runs)), math.nan)
        for curve, run in zip(curves, self.runs, strict=True):
            curve[: len(run.history)] = [row[name] for row in run.history]
        return curves

    def mean(self, name: str) -> Any:
        """Mean of `figures` over the seeds that did not diverge: a float, or an array with one for each learning rate.

        NaN where no seed is left; how many are is in `diverged`.
        """
        return self._over_seeds(name, 1, lambda values: values.mean())

    def std(self, name: str) -> Any:
        """Standard deviation (the unbiased one, 1/(n−1)) that goes with `mean`; NaN where fewer than two seeds are."""
        return self._over_seeds(name, 2, lambda values: values.std(ddof=1))

    def _over_seeds(self, name: str, least: int, reading: Callable[[np.ndarray], Any]) -> Any:
        columns = self.figures(name).reshape(len(self.seeds), -1).T
        kept = [column[np.isfinite(column)] for column in columns]
        found = np.array([reading(values) if len(values) >= least else math.nan for values in kept])
        return float(found[0]) if self.learning_rates is None else found

    def _check(self, name: str) -> None:
        known = list(dict.fromkeys(key for run in self.runs for row in run.history for key in row))
        if known and name not in known:
            raise ValueError(f"the histories hold {', '.join(known)}, but no {name!r}")


class InterruptedMany(Interrupted):
    """Ctrl-C or SIGTERM during `fit_many`. `result`, a `Many`, holds what every run had reached."""

    result: Any

    def __init__(self, result: Many, number: int = signal.SIGINT, saved: str = ""):
        self.result = result
        steps, runs = result.step_losses.shape[1], len(result.runs)
        Stopped.__init__(self, number, f"interrupted after {steps} steps of each of {runs} runs{saved}")
