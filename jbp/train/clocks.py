"""The clocks of training: how long a chunk of steps is, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator

from jbp.arguments import as_count


class Chunks:
    """Cuts an epoch's steps into chunks (first, last): of a fixed length, or of about a second as measured."""

    def __init__(self, steps: int, fixed: int | None):
        self.steps, self.fixed = steps, None if fixed is None else as_count(fixed, "chunk_steps")
        self._length, self._timed = self.fixed or 1, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = 0
        while first < self.steps:
            last = min(first + self._length, self.steps)
            yield first, last
            first = last

    def took(self, steps: int, seconds: float) -> None:
        """Learn from a chunk how many steps make a second. The first one compiles, so the second is the probe."""
        self._timed += 1
        if self.fixed is None:
            self._length = 32 if self._timed == 1 else max(1, int(steps / seconds))


class Stopwatch:
    """Seconds since it was made, and since the last lap."""

    def __init__(self) -> None:
        self._began = self._lap = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._began

    def lap(self) -> float:
        """Since the last lap, or the start."""
        now = time.perf_counter()
        last, self._lap = self._lap, now
        return now - last
