"""The loop of `fit`: take a chunk of steps, see their figures, evaluate, save, stop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbp import hosts
from jbp.annotations import Array
from jbp.durable.saver import Saver
from jbp.private import Private
from jbp.rows import Unreadable
from jbp.sharding import Sharding
from jbp.step import Problem, State
from jbp.train.batches import Resident, ResidentSource, Sampling, Source, batch_sizes, of_mean_one
from jbp.train.clocks import Chunks, Length, Stopwatch
from jbp.train.masked import Masked
from jbp.train.program import copy, evaluation_on_mesh, evaluation_program, filled, ledger, steps_program
from jbp.train.progress import EpochEnd, Progress, Row, Steps, StopReason, see
from jbp.train.replay import Replay
from jbp.train.result import BadBatch, Callback, Diverged, Event, Fit, Interrupted
from jbp.train.signals import stop_signals
from jbp.train.streams import OpenedRows, RowSource
from jbp.train.watch import Watch, Watcher

BLOCK = 1000
"""Examples evaluated at once."""

Validation = tuple[Array, ...] | Callable[[Any], Array] | None
"""Data on the device, with a mask perhaps, or what makes of parameters the means of the loss and of each metric."""


@dataclass(frozen=True)
class Loop:
    """The loop, over what was checked."""

    length: Length
    n: int
    batch_size: int
    private: Private | None
    accumulate: int = 1
    watch: Watch | None = None
    skips: bool = False
    """Whether a step that ends in a number that is not finite is left out."""
    begin: Callable[[], State] | None = None
    """Makes the state before the first step once more; None: nothing is taken again to see where a number broke."""
    say: Callable[[str], None] | None = None
    """Where a long search says that it is one."""
    sharding: Sharding | None = None
    """The mesh; None: one device, or wherever the data lie."""
    per_token: bool = False
    """Whether figures of data with a mask are means over tokens, and not over examples."""

    @property
    def epochs(self) -> int:
        """Or rounds."""
        return self.length.epochs

    def source(self, data: tuple[Any, Any], sampling: Sampling, weights: Any, masked: Masked) -> Source:
        """The training data in memory, in batches: on the device, or each device's rows read ahead."""
        steps, capacity = self.length.every or len(batch_sizes(self.n, self.batch_size, sampling)), None
        if self.private is not None:
            self.private.epsilon(self.epochs * steps, self.batch_size, self.n)  # what is missing shows at once
            self.private.warn_of(self.n)
            sampling, capacity = "poisson", self.private.capacity(self.epochs * steps, self.batch_size, self.n)
            capacity += -capacity % (1 if self.sharding is None else self.sharding.d)
        reader = Resident(sampling, self.batch_size, self.n, capacity, self.length.every, masked.per_token)
        weights = of_mean_one(weights, self.n)
        if self.sharding is None:
            return ResidentSource(data, weights, reader, self.epochs, masked.train)
        opened = OpenedRows("train_data", data)
        opened.check = lambda x, y, weights: None  # as a whole, it was looked at before
        return RowSource(opened, weights, reader, self.epochs, self.sharding)

    def __call__(
        self,
        problem: Problem,
        state: State,
        source: Source,
        progress: Progress,
        chunks: Chunks,
        validation: Validation,
        callbacks: tuple[Callback, ...],
        saver: Saver | None = None,
    ) -> Fit:
        """Step, see, stop."""
        steps, book = len(source.sizes), ledger(len(source.sizes), len(problem.metrics), source.weighs)
        take = steps_program(problem, source.reader, self.accumulate, self.skips, self.sharding)
        if self.sharding is not None:
            book = self.sharding.everywhere(book)
        evaluate = self._evaluation(problem, validation)
        taken = None if saver is None else saver.taken_up(state)
        best, seconds = None, 0.0
        if taken is not None:
            state, progress, best, seconds = taken.state, Progress.from_json(taken.progress), taken.best, taken.seconds
            book = filled(book, progress)
            book = book if self.sharding is None else self.sharding.everywhere(book)
            source.go_on(taken.source)
        watch = Stopwatch(seconds, progress.rows[-1]["seconds"] if progress.rows else 0.0)
        look = Watcher(self.watch, problem, source.reader, self.accumulate, steps)

        def seen(figures: Steps | EpochEnd) -> Progress:
            nonlocal best
            after = see(progress, figures)
            if after.aim.restores and after.best < progress.best:
                best = copy(state.params)
            return after

        def result(reason: StopReason) -> Fit:
            if progress.skipped:
                warn_of_skipped(progress)
            restored = best is not None and reason not in ("interrupted", "bad batch")
            kept, epoch = (best, progress.best_epoch) if restored else (state.params, None)
            kept = kept if self.sharding is None else self.sharding.as_given(kept)
            return Fit(
                kept,
                state,
                progress.rows,
                epoch,
                reason,
                progress.all_losses(),
                self._spent(progress.taken),
                progress.start,
                () if saver is None else tuple(saver.resumed_at),
                tuple(look.rows),
                len(progress.skipped) if self.skips else None,
            )

        def save(now: bool, over: bool = False) -> None:
            if saver is not None:
                saver.after(state, progress, best, watch.seconds, now=now, over=over, source=source.position)

        def chunk_of(epoch: int, first: int, last: int) -> Any:
            try:
                chunk, wrong = source.chunk(state.key, epoch, first, last), None
            except Unreadable as error:
                chunk, wrong = None, error
            # Where one of several processes cannot go on, all stop here, and what was reached is kept.
            if (wrong := anywhere(wrong)) is not None:
                save(now=progress.taken > 0)
                raise wrong
            return chunk

        with stop_signals() as interrupt, bad_batches(result, saver):
            if progress.stop_reason is not None:
                return result(progress.stop_reason)
            if validation is not None and taken is None:
                # How good the start is; this also compiles the program before the first step.
                progress = seen(EpochEnd(0, evaluate(state.params)))
                interrupt.check_begun()
            for epoch in range(progress.epoch, self.epochs + 1):
                for first, last in chunks.after(progress.step, (epoch - 1) * steps):
                    chunk = chunk_of(epoch, first, last)
                    watched, began = look(state, chunk, epoch, first), time.perf_counter()
                    state, book = take(state, book, chunk, epoch, first, last)
                    interrupt.begun = True
                    if last == steps:
                        source.ahead(state.key, epoch)  # while they run
                    jax.block_until_ready(book.losses)
                    interrupt.check_begun()
                    seconds = time.perf_counter() - began
                    rows, figures = len(progress.rows), book.first(last)
                    progress = seen(Steps(epoch, *figures, self._sound(state), self.skips))
                    if (bad := progress.diverged_at) is not None:
                        replay, place, batch = self._replay(problem, source, chunks, take, saver), None, None
                        if replay is not None:
                            place, batch = replay.find(bad, state, lambda: interrupt.asked)
                        raise Diverged(result("diverged"), bad, place, batch)
                    if last == steps:
                        spent = {} if self.private is None else {"epsilon": self._spent(progress.taken)}
                        progress = seen(
                            EpochEnd(epoch, evaluate(state.params) | spent, watch.seconds, watch.lap())  # type: ignore[arg-type]
                        )
                    row = progress.rows[-1] if len(progress.rows) > rows else None
                    at = epoch, progress.taken, self.epochs * steps
                    event = Event(*at, progress.loss, watch.seconds, row, state, watched)
                    wanted = sum(bool(callback(event)) for callback in callbacks) > 0  # each is called
                    due = saver is not None and saver.is_due(progress)
                    asked, wanted, due, took = hosts.agreed([interrupt.asked_by, wanted, due, milliseconds(seconds)])
                    chunks.took(last - first, took / 1000 if hosts.several() else seconds)
                    done = progress.stop_reason is not None or (last == steps and epoch == self.epochs)
                    save(bool(asked or wanted or done or due), done)
                    if asked:
                        interrupt.signal = asked
                        saved = "" if saver is None else saver.words()
                        raise Interrupted(result("interrupted"), interrupt.signal, saved)
                    if wanted:
                        return result("callback")
                if progress.stop_reason is not None:
                    return result(progress.stop_reason)
        return result("epochs")

    def _evaluation(self, problem: Problem, validation: Validation) -> Callable[[Any], Row]:
        """Parameters -> the named figures of the validation data; none without them."""
        if validation is None:
            return lambda params: {}
        names, functions = ("loss", *(name for name, _ in problem.metrics)), tuple(f for _, f in problem.metrics)
        if callable(validation):
            return lambda params: validation_row(names, validation(params))
        if self.sharding is not None:
            means = evaluation_on_mesh(problem, (validation[0], validation[1]), BLOCK, self.sharding)
            return lambda params: validation_row(names, means(params))
        of = problem.net, problem.loss, functions, problem.transform, BLOCK
        evaluate = evaluation_program(*of, self.per_token)
        return lambda params: validation_row(names, evaluate(params, *validation))

    def _spent(self, taken: int) -> float | None:
        return None if self.private is None else self.private.epsilon(taken, self.batch_size, self.n)

    def _replay(
        self, problem: Problem, source: Source, chunks: Chunks, take: Callable[..., Any], saver: Saver | None
    ) -> Replay | None:
        """Nothing of a private run: where it broke would tell of an example; nor of one of several processes."""
        if self.private is not None or self.begin is None or hosts.several():
            return None
        return Replay(problem, source, chunks, take, self.begin, saver, self.accumulate, self.say)

    def _sound(self, state: State) -> bool | None:
        """Whether a private run ends must not depend on an example's error, so there only on the parameters."""
        if self.private is None:
            return None
        return all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(state.params))


def milliseconds(seconds: float) -> int:
    """At least one, as a number that processes can tell each other."""
    return max(1, min(round(1000 * seconds), 1 << 30))


def anywhere(wrong: Unreadable | None) -> Unreadable | None:
    """What is wrong with the batches of this process, or else of another."""
    if not hosts.several() or not any(hosts.agreed([wrong is not None])):
        return wrong
    said = hosts.texts("" if wrong is None else f"{wrong.batch}:{str(wrong).partition(': ')[2]}")
    process = next(i for i, text in enumerate(said) if text)
    batch, _, words = said[process].partition(":")
    return Unreadable(int(batch), f"process {process}", words) if wrong is None else wrong


@contextmanager
def bad_batches(result: Callable[[StopReason], Fit], saver: Saver | None) -> Iterator[None]:
    """A batch that cannot be trained on ends the run with what was reached."""
    try:
        yield
    except Unreadable as error:
        saved = "" if saver is None else saver.words()
        raise BadBatch(result("bad batch"), error.batch, f"{error}{saved}") from error


def validation_row(names: tuple[str, ...], means: Array) -> Row:
    """The figures of an evaluation, named."""
    return {f"validation_{name}": float(mean) for name, mean in zip(names, np.asarray(means), strict=True)}


def warn_of_skipped(progress: Progress) -> None:
    """Say how many steps were skipped: whoever asked for it may not look."""
    skipped = progress.skipped
    warnings.warn(
        f"{len(skipped)} of {progress.taken} steps were skipped, the first of them step {skipped[0]}: their loss, or a "
        'parameter after them, was not finite; on_bad="stop" says where',
        stacklevel=4,
    )
