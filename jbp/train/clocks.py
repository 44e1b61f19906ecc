"""The clocks of training: how long a chunk of steps is, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jbp.arguments import as_count


@dataclass(frozen=True)
class Length:
    """How long a run is: so many epochs; or, with `every`, as many rounds of so many steps, evaluated after each."""

    epochs: int
    every: int | None = None

    @staticmethod
    def of(epochs: Any, steps: Any, evaluate_every: Any, usual: int = 10) -> Length:
        """What `fit` is told.

        Raises: ValueError if it is told both, or rounds that do not fill the steps.
        """
        if steps is None:
            if evaluate_every is not None:
                raise ValueError("evaluate_every is for a run that is counted in steps: give steps too")
            return Length(as_count(usual if epochs is None else epochs, "epochs"))
        if epochs is not None:
            raise ValueError(f"expected one of epochs and steps, got epochs {epochs} and steps {steps}")
        steps = as_count(steps, "steps")
        every = steps if evaluate_every is None else as_count(evaluate_every, "evaluate_every")
        if steps % every:
            whole = max(1, steps // every) * every
            raise ValueError(
                f"steps must be a whole number of times evaluate_every, {every}, but are {steps}: take {whole}"
            )
        return Length(steps // every, every)


class Chunks:
    """Cuts an epoch's steps into chunks (first, last): of a fixed length, or of about a second as measured.

    Each step of a run whose number, from 0, is a multiple of `every` begins a chunk. None goes beyond a multiple of
    `block`, the steps that lie in one chunk of the source.
    """

    def __init__(self, steps: int, fixed: int | None, every: int | None = None, block: int | None = None):
        self.steps, self.fixed = steps, None if fixed is None else as_count(fixed, "chunk_steps")
        self._length, self._timed, self._every, self._block = self.fixed or 1, 0, every, block or steps

    def after(self, first: int, before: int = 0) -> Iterator[tuple[int, int]]:
        """The chunks of an epoch of which `first` steps are taken, with `before` steps of the run before the epoch."""
        while first < self.steps:
            last = min(first + self._length, first - first % self._block + self._block, self.steps)
            if self._every is not None:
                last = min(last, first + self._every - (before + first) % self._every)
            yield first, last
            first = last

    def took(self, steps: int, seconds: float) -> None:
        """Learn from a chunk how many steps make a second. The first one compiles, so the second is the probe."""
        self._timed += 1
        if self.fixed is None:
            self._length = 32 if self._timed == 1 else max(1, int(steps / seconds))


class Stopwatch:
    """Seconds since it was made, beside those of before, and since the last lap, which may be of before too."""

    def __init__(self, seconds: float = 0.0, lap_at: float = 0.0) -> None:
        self._began = time.perf_counter() - seconds
        self._lap = self._began + lap_at

    @property
    def seconds(self) -> float:
        """Since it was made, and before."""
        return time.perf_counter() - self._began

    def lap(self) -> float:
        """Since the last lap, or the start."""
        now = time.perf_counter()
        last, self._lap = self._lap, now
        return now - last
