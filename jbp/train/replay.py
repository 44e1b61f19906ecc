"""A run's steps taken again, from its last sound checkpoint or from the start, to the first bad number.

The same compiled program takes them, so they have the same bits. A parameter may have stopped being finite some steps
before the loss showed it; that step is found by halving the chunk in which it happened.
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbp.backprop import Batch
from jbp.durable.saver import Saver
from jbp.files import write_atomically
from jbp.step import Problem, State, step_key
from jbp.train.batches import Source, place
from jbp.train.blame import BadNumber, first_bad, lost
from jbp.train.clocks import Chunks
from jbp.train.program import Ledger, copy, ledger

BATCH = "bad_batch.npz"
"""The batch of the first bad number, in the run's folder."""
_PATIENCE = 2.0
"""Seconds that a replay takes in silence."""


class _Asked(Exception):
    """The replay was to end before it had found anything."""


@dataclass(frozen=True)
class Replay:
    """What it takes to take a run's steps again."""

    problem: Problem
    source: Source
    chunks: Chunks
    take: Callable[..., tuple[State, Ledger]]
    begin: Callable[[], State]
    """Makes the state before the first step once more."""
    saver: Saver | None
    accumulate: int
    say: Callable[[str], None] | None
    """Where a replay that takes long says so; None: nowhere."""

    def find(self, step: int, like: State, stops: Callable[[], bool]) -> tuple[BadNumber, Path | None]:
        """The first bad number of a run that began as `begin` makes it, whose loss is not finite at `step`, from 1; and
        where its batch is kept, if the run has a folder. `like` is a state of the same form; `stops` says when to give
        up.

        What hinders the replay is said in the answer: that the run has diverged is what its owner must hear of.
        """
        try:
            state, before = self._last_sound(step - 1, like, stops)
            place, batch = self._place(state, before, step)
        except _Asked:
            return BadNumber(None, note="the search for the first number that is not finite was interrupted"), None
        except Exception as error:
            return BadNumber(None, note=f"the steps could not be taken again to see where ({error})"), None
        if self.saver is None or place.direction is None:
            return place, None
        path = self.saver.folder / BATCH
        try:
            self.saver.begin()
            write_atomically(path, packed(batch))
        except OSError as error:
            return dataclasses.replace(place, note=f"{place.note}{place.note and ', '}its batch is lost: {error}"), None
        return place, path

    def _last_sound(self, before: int, like: State, stops: Callable[[], bool]) -> tuple[State, int]:
        """The state before the first step, from 0, after which a parameter is no longer finite, and that step; at most
        the step `before`."""
        began, steps, said = time.monotonic(), len(self.source.sizes), False
        taken, state, position = next(self._starts(before, like))
        self.source.go_on(position)
        while taken < before:
            first = taken % steps
            last = next(last for _, last in self.chunks.after(first))
            until = min(taken + last - first, before)
            if stops():
                raise _Asked
            if self.say is not None and not said and time.monotonic() - began > _PATIENCE:
                said = True
                self.say(f"taking {before - taken:,} steps again, to find the first number that is not finite")
            kept = copy(state)
            state, _ = self._take(state, taken, until)
            if lost(_watched(kept), _watched(state)):
                return self._halved(kept, taken, until)
            taken = until
        return state, taken

    def _starts(self, before: int, like: State) -> Iterator[tuple[int, State, Any]]:
        """The steps taken, the state and the source's position at each place from where the steps can be taken again,
        the latest first."""
        for taken, state, position in () if self.saver is None else self.saver.states(like):
            if taken <= before and all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params)):
                yield taken, state, position
        yield 0, self.begin(), None

    def _halved(self, state: State, first: int, last: int) -> tuple[State, int]:
        """The same, within steps over which something is known to be lost."""
        while last - first > 1:
            middle = (first + last) // 2
            after, _ = self._take(copy(state), first, middle)
            if lost(_watched(state), _watched(after)):
                last = middle
            else:
                state, first = after, middle
        return state, first

    def _take(self, state: State, first: int, last: int) -> tuple[State, Ledger]:
        """The steps first…last−1 of the run, from 0, all of one epoch; takes over the state."""
        epochs, first_of = divmod(first, len(self.source.sizes))
        last_of = first_of + last - first
        chunk = self.source.chunk(state.key, epochs + 1, first_of, last_of)
        book = ledger(len(self.source.sizes), len(self.problem.metrics), self.source.weighs)
        return self.take(state, book, chunk, epochs + 1, first_of, last_of)

    def _place(self, state: State, before: int, step: int) -> tuple[BadNumber, dict[str, Any]]:
        """The first bad number of the step `before`, from 0, of a run that stopped at `step`, from 1; and the batch."""
        epochs, t = divmod(before, len(self.source.sizes))
        batch, key, rows = self._batch(state.key, epochs + 1, t)
        state = dataclasses.replace(state, epoch=jnp.int32(epochs + 1), step=jnp.int32(t))
        found = first_bad(self.problem, state, batch, key, rows=rows, accumulate=self.accumulate)
        kept = {"x": batch.x, "y": batch.y, "weights": batch.weights, "mask": batch.mask, "rows": rows}
        kept |= {"step": before + 1, "epoch": epochs + 1}
        if found.direction is None:
            _, book = self._take(state, before, before + 1)
            again = before + 1 < step or not np.isfinite(np.asarray(book.losses)[t])
            note = (
                f"step {before + 1} is not finite as a compiled program takes it, and is so layer by layer: a number "
                "at the edge of what its type holds"
                if again
                else "taken again, every step is finite: a fault of the machine, or of another device than now"
            )
            return BadNumber(None, note=note), kept
        return dataclasses.replace(found, step=before + 1, epoch=epochs + 1), kept

    def _batch(self, key: Any, epoch: int, t: int) -> tuple[Batch, Any, np.ndarray | None]:
        """The batch of step t of an epoch, the step's key, and the rows of the data."""
        reader = self.source.reader
        order_key, noise_key, counted = place(reader, key, epoch)
        chunk = reader.prepared(self.source.chunk(key, epoch, t, t + 1), key, jnp.asarray(epoch))
        batch = reader.batch(chunk, order_key, jnp.asarray(counted + t))
        return batch, step_key(noise_key, counted + t), self.source.rows(key, epoch, t)


def _watched(state: State) -> Any:
    """Of a state what must stay finite: an optimiser's may begin infinite."""
    return state.params, state.method_state


def packed(arrays: dict[str, Any]) -> bytes:
    """The file of a batch: what of it there is, as `numpy.load` reads it; types that NumPy has not are widened."""
    file, held = io.BytesIO(), {}
    for name, value in arrays.items():
        if value is not None:
            a = np.asarray(value)
            held[name] = a.astype(np.float32) if a.dtype.kind == "V" else a
    np.savez(file, **held)
    return file.getvalue()
