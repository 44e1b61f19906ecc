"""What is known of a run so far: a value, and the pure function by which it grows.

`see(progress, figures)` is all that decides which epoch is best, when to stop, and what a row of the history says; so
`fit` and `fit_many` decide alike, and a run can be taken up again from its `Progress` and its `State`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from jbp.arguments import as_count, as_number

Row = dict[str, float]
StopReason = Literal["epochs", "patience", "target", "callback", "interrupted", "diverged", "bad batch"]


@dataclass(frozen=True)
class Aim:
    """Which figure decides, and when that is enough."""

    monitor: str
    patience: int | None
    min_delta: float
    target: float | None
    restores: bool
    lower: bool = field(default=False, repr=False)
    """Whether it is a metric that is better where it is lower."""

    @property
    def sign(self) -> int:
        """1 where lower is better, of a loss; −1 of a metric, unless it says otherwise."""
        return 1 if self.lower or self.monitor.endswith("_loss") else -1

    @staticmethod
    def over(
        metrics: Iterable[tuple[str, Any]],
        validates: bool,
        *,
        monitor: str | None,
        patience: int | None,
        min_delta: float,
        target: float | None,
        restore_best: bool | None,
    ) -> Aim:
        """The aim of `fit`'s arguments.

        Raises:
            ValueError: for a figure that there will not be, or numbers out of range.
        """
        parts = ("train", "validation") if validates else ("train",)
        named = dict(metrics)
        known = [f"{part}_{name}" for part in parts for name in ("loss", *named)]
        monitor = f"{parts[-1]}_loss" if monitor is None else monitor
        if monitor not in known:
            hint = "" if validates else " (without validation_data there are no validation figures)"
            raise ValueError(f"monitor must be one of {', '.join(known)}{hint}, but is {monitor!r}")
        patience = None if patience is None else as_count(patience, "patience")
        return Aim(
            monitor,
            patience,
            as_number(min_delta, "min_delta", 0.0),
            None if target is None else as_number(target, "target"),
            patience is not None if restore_best is None else restore_best,
            getattr(named.get(monitor.partition("_")[2]), "lower", False),
        )


def kept_row(rows: Sequence[Row], start: Row, best_epoch: int | None) -> Row:
    """The figures of the epoch whose parameters are kept: the best, the start if that is epoch 0, or the last."""
    if best_epoch == 0:
        return start
    return next((row for row in rows if row["epoch"] == best_epoch), rows[-1] if rows else {})


class Steps(NamedTuple):
    """Figures of an epoch's first steps, and what a loss that is not finite means."""

    epoch: int
    losses: np.ndarray
    """[last]: from the epoch's first step on."""
    metrics: np.ndarray
    """[last, m]."""
    mass: np.ndarray | None = None
    """[last]: what each counts, where that is not its number of examples; one of 0 has no loss."""
    sound: bool | None = None
    """Of a private run, which no loss may end: whether the parameters are finite. None: the losses decide."""
    skips: bool = False
    """Whether a step that ends in a number that is not finite is left out, its loss NaN, and the run goes on."""


class EpochEnd(NamedTuple):
    """Figures of a whole epoch (0 is the start): what was evaluated after it, and its seconds."""

    epoch: int
    figures: Row
    seconds: float = math.nan
    """Since the start."""
    epoch_seconds: float = math.nan


@dataclass(frozen=True)
class Progress:
    """A run so far."""

    aim: Aim
    names: tuple[str, ...]
    """Of the metrics."""
    sizes: tuple[int, ...] = field(repr=False)
    """How many examples each step of an epoch draws, on average where it is drawn by chance."""
    rows: tuple[Row, ...] = field(default=(), repr=False)
    start: Row = field(default_factory=dict, repr=False)
    """The validation figures before the first step: those of what is kept, if no epoch is better."""
    best: float = math.inf
    """The deciding figure at its best, with the sign turned where higher is better."""
    best_epoch: int = 0
    stop_reason: StopReason | None = None
    diverged_at: int | None = None
    """The first step, counted from 1 over the whole run, whose loss was not finite and ended it. Of a private
    run, whose parameters decide, the last step before it was seen that they are not finite."""
    skipped: tuple[int, ...] = field(default=(), repr=False)
    """The steps that were left out, counted alike."""
    epoch: int = 1
    step: int = 0
    """Steps taken in the epoch."""
    finished: tuple[np.ndarray, ...] = field(default=(), repr=False)
    """The losses of each finished epoch's steps."""
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    """Those of the current epoch's."""
    metrics: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    mass: np.ndarray | None = field(default=None, repr=False)
    """What each of the current epoch's steps counts, where that is not its number of examples: its sum of weights."""

    @property
    def taken(self) -> int:
        """Steps taken over all epochs."""
        return sum(map(len, self.finished)) + len(self.losses)

    @property
    def loss(self) -> float:
        """Mean training loss of the epoch so far, or of the one that has just ended."""
        if len(self.losses) or not self.rows:
            return self.mean(self.losses) if len(self.losses) else math.nan
        return self.rows[-1]["train_loss"]

    def mean(self, values: np.ndarray) -> float:
        """Over an epoch's first steps, each counted by its examples, or by the sum of their weights, without those that
        were skipped; NaN of none."""
        weights = np.array(self.sizes if self.mass is None else self.mass)[: len(values)]
        before = sum(map(len, self.finished))
        weights[[step - before - 1 for step in self.skipped if step > before]] = 0
        total = weights.sum()
        return float(np.where(weights > 0, values * weights, 0.0).sum() / total) if total else math.nan

    def all_losses(self) -> np.ndarray:
        """The loss of every step taken, in order; NaN of one whose batch was empty, or all of weight 0, and of one
        that was skipped."""
        return np.concatenate([*self.finished, self.losses])

    def to_json(self) -> dict[str, Any]:
        """Everything in it as lists, numbers and text; floats keep all their digits, and may be NaN or infinite."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        found |= {"aim": dataclasses.asdict(self.aim), "finished": [losses.tolist() for losses in self.finished]}
        found |= {name: getattr(self, name).tolist() for name in ("losses", "metrics")}
        found |= {"mass": None if self.mass is None else self.mass.tolist()}
        return found | {name: list(getattr(self, name)) for name in ("names", "sizes", "rows", "skipped")}

    @staticmethod
    def from_json(found: dict[str, Any]) -> Progress:
        """What `to_json` gave."""
        made: dict[str, Any] = found | {name: tuple(found[name]) for name in ("names", "sizes", "rows", "skipped")}
        made |= {"aim": Aim(**found["aim"]), "finished": tuple(map(np.asarray, found["finished"]))}
        made |= {"losses": np.asarray(found["losses"], float)}
        made |= {"mass": None if found["mass"] is None else np.asarray(found["mass"], float)}
        made |= {"metrics": np.asarray(found["metrics"], float).reshape(len(found["losses"]), len(found["names"]))}
        return Progress(**made)


def see(progress: Progress, figures: Steps | EpochEnd) -> Progress:
    """The progress after these figures; a run that has ended takes in no more."""
    if progress.stop_reason is not None:
        return progress
    return _steps(progress, figures) if isinstance(figures, Steps) else _epoch_end(progress, figures)


def _steps(progress: Progress, seen: Steps) -> Progress:
    losses, metrics = np.asarray(seen.losses, float), np.asarray(seen.metrics, float)
    now: dict[str, Any] = {"epoch": seen.epoch, "step": len(losses), "mass": seen.mass}
    empty = np.zeros(len(losses), bool) if seen.mass is None else seen.mass == 0
    losses = np.where(empty, math.nan, losses)
    broken = np.flatnonzero(~np.isfinite(losses) & ~empty)
    before = sum(map(len, progress.finished))
    if seen.skips:
        earlier = [step for step in progress.skipped if step <= before]
        now["skipped"] = (*earlier, *(before + 1 + broken).tolist())
    elif seen.sound is False or (seen.sound is None and len(broken)):
        losses = losses if seen.sound is False else losses[: broken[0] + 1]
        now |= {"stop_reason": "diverged", "diverged_at": before + len(losses)}
    return dataclasses.replace(progress, losses=losses, metrics=metrics[: len(losses)], **now)


def _epoch_end(progress: Progress, seen: EpochEnd) -> Progress:
    row = seen.figures
    if not seen.epoch:
        progress = dataclasses.replace(progress, start=row)
    if seen.epoch:
        step = seen.epoch * len(progress.sizes)
        row = {"epoch": seen.epoch, "step": step, "train_loss": progress.mean(progress.losses)}
        row |= {f"train_{name}": progress.mean(progress.metrics[:, i]) for i, name in enumerate(progress.names)}
        speed = sum(progress.sizes) / seen.epoch_seconds
        row |= seen.figures | {"seconds": seen.seconds, "examples_per_second": speed}
        progress = dataclasses.replace(
            progress,
            rows=(*progress.rows, row),
            finished=(*progress.finished, progress.losses),
            losses=np.zeros(0),
            metrics=np.zeros((0, len(progress.names))),
            mass=None,
            epoch=seen.epoch + 1,
            step=0,
        )
    return _judged(progress, seen.epoch, row)


def _judged(progress: Progress, epoch: int, row: Row) -> Progress:
    """Whether the epoch is the best so far, and whether that is enough."""
    aim = progress.aim
    if aim.monitor not in row:
        return progress
    value = aim.sign * row[aim.monitor]
    if value < progress.best - (aim.min_delta if math.isfinite(progress.best) else 0.0):
        progress = dataclasses.replace(progress, best=value, best_epoch=epoch)
    elif aim.patience is not None and epoch - progress.best_epoch >= aim.patience:
        progress = dataclasses.replace(progress, stop_reason="patience")
    if epoch and aim.target is not None and value <= aim.sign * aim.target:
        progress = dataclasses.replace(progress, stop_reason="target")
    return progress
