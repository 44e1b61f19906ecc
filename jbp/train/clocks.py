"""The clocks of training: how long a chunk of steps is, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator

from jbp.arguments import as_count


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
