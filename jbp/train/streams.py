"""Data that are read while they are trained on: rows by their numbers, batches one after the other.

What is read lies in *blocks*: the batches of a fixed number of steps of an epoch, about 16 MB, stacked, so that one
program serves all of them. A thread reads blocks and puts them on the device, two ahead of the steps. Where the stream
stands after each step travels with the block, for by the time of the step the thread is elsewhere.

Rows (`jbp.data.Rows`) are read in the order that data in memory would have, so training on them has the same bits. That
order is a permutation, made anew each epoch: 8 bytes a row (4 without `jax_enable_x64`), two of them while the next is
made, which takes 24 to 36 bytes a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array
from jbp.inputs import as_pair, one_array
from jbp.rows import Batches, Rows, Stream, Unreadable, is_streamed
from jbp.sharding import Sharding
from jbp.step import Batch, Problem
from jbp.train.ahead import Ahead
from jbp.train.batches import (
    OnDevice,
    Resident,
    Sampling,
    batch_size_of,
    of_mean_one,
    order_of,
    place,
    sizes_of,
    wanders,
)  # fmt: skip
from jbp.train.clocks import Length
from jbp.train.program import block_program, mean_of
from jbp.train.windowed import at_once

BLOCK_BYTES = 16 << 20

RowCheck = Callable[[np.ndarray, np.ndarray, Any], None]
"""Refuses rows (x, y, weights) that cannot be trained on, naming the row."""


class Block(NamedTuple):
    """The batches of some steps of an epoch."""

    x: Array
    """[c, B, ...]."""
    y: Array
    weights: Array | None
    """[c, B]: of the examples' own, or of a stream 0 where a row fills up."""
    first: Array
    """The step of the first of them, as it is counted."""


class Read(NamedTuple):
    """A block, and what the host knows of it."""

    epoch: int
    first: int
    last: int
    block: Block
    positions: tuple[Any, ...]
    """Where the stream stands after each of its steps; () where that follows from epoch and step."""


@dataclass(frozen=True)
class Stacked:
    """The reader of a block: step t has its batch t − first, weighed as data in memory are."""

    resident: Resident | None
    """How data in memory would be read; None of a stream, whose weights are with it."""
    every: int | None = None

    def prepared(self, chunk: Block, key: Array, epoch: Array) -> Block:
        """The block as it is."""
        return chunk

    def batch(self, chunk: Block, order_key: Array, step: Array) -> Batch:
        """The rows of the step."""
        x, y, own = jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(a, step - chunk.first.astype(step.dtype), keepdims=False),
            (chunk.x, chunk.y, chunk.weights),
        )
        weights, divisor = (own, None) if self.resident is None else self.resident.counted(step, own)
        return Batch(x, y, weights, divisor=divisor)


class Streamed:
    """A source that is read ahead."""

    data: Opened
    reader: Stacked
    sizes: np.ndarray
    weighs: bool
    epochs: int
    position: Any = None

    def __init__(self, batch_bytes: int, batch_size: int, sharding: Sharding | None = None):
        self.batch_size, self.sharding = batch_size, sharding
        self.own = slice(0, batch_size) if sharding is None else sharding.own_rows(batch_size)
        """Which rows of a batch this process reads: all, unless others have devices of the mesh."""
        self.block = max(1, min(len(self.sizes), BLOCK_BYTES // max(1, batch_bytes)))
        """Steps in a block: those of a chunk lie in one."""
        self._reading: Ahead[Read] | None = None
        self._now: Read | None = None
        self._from: Any = None

    def go_on(self, position: Any) -> None:
        """Begin where a run was that is taken up again, as `position` said."""
        self._from = self.position = position

    def chunk(self, key: Array, epoch: int, first: int, last: int) -> Block:
        """The block with these steps, which all lie in one.

        Raises: Unreadable for one that cannot be read, or not be trained on.
        """
        now = self._now
        if now is not None and (epoch, first) == self.after(now.epoch, now.last):
            now = self._next()
        elif now is None or now.epoch != epoch or not now.first <= first < now.last:
            self.close(wait=True)
            # The key is copied, for the state that it is in is given away with every chunk.
            self._reading = Ahead(Blocks(self, self._copied(key), epoch, first, self._from))
            self._from = None
            now = self._next()
        if now.positions:
            self.position = now.positions[last - now.first - 1]
        return now.block

    def ahead(self, key: Array, epoch: int) -> None:
        """Nothing: the thread is ahead already."""

    def rows(self, key: Array, epoch: int, step: int) -> np.ndarray | None:
        """Which rows of the data a step has; None of a stream, whose rows have no numbers."""
        return None

    def close(self, wait: bool = False) -> None:
        """Let the thread go."""
        if self._reading is not None:
            self._reading.close(wait)
        self._reading = self._now = None

    def _next(self) -> Read:
        assert self._reading is not None
        self._now = None  # its memory is wanted
        self._now = next(self._reading)
        return self._now

    def after(self, epoch: int, last: int) -> tuple[int, int]:
        """Epoch and step after so many steps of an epoch."""
        return (epoch + 1, 0) if last == len(self.sizes) else (epoch, last)

    def seek(self, epoch: int, first: int, position: Any) -> None:
        """Before the block with this step is read; `position` is where the stream stood, if that is known."""

    def where(self) -> Any:
        """Where the stream stands; None where that follows from epoch and step."""
        return None

    def read(self, key: Array, epoch: int, first: int, last: int) -> Read:
        """The block of these steps.

        Raises: Unreadable.
        """
        raise NotImplementedError

    def _copied(self, key: Array) -> Array:
        """The key in a buffer of its own, on one device."""
        if self.sharding is None:
            return jnp.copy(key)
        bits = np.asarray(jax.random.key_data(key))
        return jax.random.wrap_key_data(jnp.asarray(bits), impl=jax.random.key_impl(key))

    def counted(self, epoch: int, step: int) -> Array:
        """A step of an epoch as the reader counts it."""
        return jnp.int32(step if self.reader.every is None else (epoch - 1) * self.reader.every + step)

    def _put(self, a: np.ndarray) -> Array:
        """[k, B, ...] on the device, or its rows over a mesh, filled up to a whole block."""
        a = a.astype(jax.dtypes.canonicalize_dtype(a.dtype), copy=False)
        if len(a) < self.block:
            a = np.concatenate([a, np.zeros((self.block - len(a), *a.shape[1:]), a.dtype)])
        return jax.device_put(a) if self.sharding is None else self.sharding.rows(a, 1)


class Blocks:
    """The blocks of a source from a step on, read one after the other; an iterator with a state."""

    def __init__(self, source: Streamed, key: Array, epoch: int = 1, first: int = 0, position: Any = None):
        self.source, self.key, self.epoch, self.first = source, key, epoch, first
        self._position, self._sought = position, False

    def __iter__(self) -> Blocks:
        return self

    def __next__(self) -> Read:
        source = self.source
        if self.epoch > source.epochs:
            raise StopIteration
        if not self._sought:
            source.seek(self.epoch, self.first, self._position)
            self._sought = True
        last = min(self.first - self.first % source.block + source.block, len(source.sizes))
        found = source.read(self.key, self.epoch, self.first, last)
        self.epoch, self.first = source.after(self.epoch, last)
        return found

    def get_state(self) -> dict[str, Any]:
        """Epoch and step of the next block, and where the stream stands: JSON."""
        return {"epoch": self.epoch, "first": self.first, "position": self.source.where()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to where `get_state` was called."""
        self.epoch, self.first = state["epoch"], state["first"]
        self.source.seek(self.epoch, self.first, state["position"])
        self._sought = True


class RowSource(Streamed):
    """Rows by their numbers, as `Resident` would draw them from data in memory."""

    def __init__(
        self,
        data: OpenedRows,
        weights: Array | None,
        resident: Resident,
        epochs: int,
        sharding: Sharding | None = None,
    ):
        self.data, self.epochs, self.resident = data, epochs, resident
        self.x, self.y = x, y = data.x, data.y
        self.weights = None if weights is None else np.asarray(weights)
        chance = resident.sampling == "poisson"
        self.sizes = sizes_of(resident)
        self.reader = Stacked(None if chance else resident, resident.every)
        self.weighs = chance or weights is not None or wanders(resident)
        self._order: tuple[int, Any] = (0, None)
        size = resident.capacity or resident.batch_size
        super().__init__(size * sum(np.asarray(a[:1]).nbytes for a in (x, y)), size, sharding)

    def _numbers(self, key: Array, epoch: int, first: int, last: int) -> np.ndarray:
        size = self.batch_size
        if self.resident.sampling == "shuffle":
            order = self._order  # of this thread: another may ask too, where a run is gone through once more
            if order[0] != epoch:
                self._order = order = epoch, np.asarray(order_of(key, epoch, self.resident)())
            return order[1][first * size : last * size]
        steps = np.minimum(np.arange(first, first + self.block), last - 1)
        numbers, real = _drawn(self.resident)(key, epoch, steps)
        if real is not None:
            self._real = np.asarray(real)[: last - first].astype(jax.dtypes.canonicalize_dtype(float))
        return np.asarray(numbers)[: last - first].reshape(-1)

    def rows(self, key: Array, epoch: int, step: int) -> np.ndarray:
        """Those of the order, or drawn."""
        return self._numbers(key, epoch, step, step + 1)

    def read(self, key: Array, epoch: int, first: int, last: int) -> Read:
        """The rows of the order, or drawn."""
        numbers = self._own(self._numbers(key, epoch, first, last))
        number = (epoch - 1) * len(self.sizes) + first + 1
        try:
            x, y = self.x[numbers], self.y[numbers]
        except Exception as error:
            raise self._blamed(numbers, number, error) from error
        weights = None if self.weights is None else self.weights[numbers]
        if self.resident.sampling == "poisson":
            weights = self._own(self._real)
        self._check(x, y, weights, numbers, number)
        x, y, weights = jax.tree.map(lambda a: self._put(a.reshape(last - first, -1, *a.shape[1:])), (x, y, weights))
        return Read(epoch, first, last, Block(x, y, weights, self.counted(epoch, first)), ())

    def _own(self, of_rows: np.ndarray) -> np.ndarray:
        """Of what there is for each row of some batches that of the rows that this process reads, flat."""
        return of_rows.reshape(-1, self.batch_size)[:, self.own].reshape(-1)

    def _blamed(self, numbers: np.ndarray, number: int, error: Exception) -> Unreadable:
        """Which of the batches cannot be read."""
        for k, rows in enumerate(numbers.reshape(-1, self.own.stop - self.own.start)):
            try:
                _ = self.x[rows], self.y[rows]
            except Exception as found:
                return Unreadable(number + k, self.data.name, f"could not be read: {type(found).__name__}: {found}")
        return Unreadable(number, self.data.name, f"could not be read: {type(error).__name__}: {error}")

    def _check(self, x: np.ndarray, y: np.ndarray, weights: Any, numbers: np.ndarray, number: int) -> None:
        """Refuse the rows of these numbers, in batches of which the first has this one."""

        def wrong(part: Any) -> ValueError | None:
            try:
                self.data.check(x[part], y[part], None if weights is None else weights[part])
            except ValueError as error:
                return error
            return None

        size = self.own.stop - self.own.start
        whole = wrong(slice(None))
        if whole is None:
            return
        for k in range(len(numbers) // size):
            if (error := wrong(slice(k * size, (k + 1) * size))) is not None:
                row = next((i for i in range(k * size, (k + 1) * size) if wrong(slice(i, i + 1))), None)
                where = "" if row is None else f"; that is row {numbers[row]} of the data"
                raise Unreadable(number + k, self.data.name, f"{error}{where}") from error
        raise Unreadable(number, self.data.name, str(whole)) from whole


class BatchSource(Streamed):
    """The batches of a stream. A short one is filled up with its first row, at weight 0."""

    weighs = True

    def __init__(self, data: OpenedStream, batches: Batches, length: Length, sharding: Sharding | None = None):
        self.data, self.batches, self.epochs = data, batches, length.epochs
        self.reader = Stacked(None, length.every)
        self.sizes = np.full(length.every or batches.stream.steps, data.usual)
        super().__init__(sum(a.size * a.dtype.itemsize for a in data.shapes), data.usual, sharding)

    def where(self) -> Any:
        """As the stream says."""
        return self.batches.get_state()

    def seek(self, epoch: int, first: int, position: Any) -> None:
        """By the position, if it is of this step; else through all that comes before."""
        taken = (epoch - 1) * len(self.sizes) + first
        if position is None or position["taken"] != taken:
            position = {"taken": taken, "own": None}
        if taken != self.batches.taken:
            self.batches.set_state(position)

    def read(self, key: Array, epoch: int, first: int, last: int) -> Read:
        """The next batches."""
        size, number = self.batch_size, (epoch - 1) * len(self.sizes) + first + 1
        found, positions = [], []
        for k in range(last - first):
            x, y = next(self.batches)
            try:
                self.data.check(x, y, None)
            except ValueError as error:
                raise Unreadable(number + k, self.data.name, str(error)) from error
            positions.append(self.batches.get_state())
            real = np.arange(size) < len(x)
            rows = np.where(real, np.arange(size), 0)
            batch = (x[rows], y[rows], real) if len(x) < size else (x, y, real)
            found.append(tuple(a[self.own] for a in batch))
        x, y, real = (np.stack(a) for a in zip(*found, strict=True))
        weights = real.astype(jax.dtypes.canonicalize_dtype(float))
        block = Block(self._put(x), self._put(y), self._put(weights), self.counted(epoch, first))
        return Read(epoch, first, last, block, tuple(positions))


@lru_cache(maxsize=64)
def _drawn(resident: Resident) -> Callable[[Array, int, np.ndarray], tuple[Array, Array | None]]:
    """(key, epoch, steps) -> the numbers [c, B] that each step draws, and of those drawn by chance which are real."""

    @jax.jit
    def numbers(key: Array, epoch: Array, steps: Array) -> tuple[Array, Array | None]:
        order_key, _, before = place(resident, key, epoch)
        chunk: Any = OnDevice(None, None, None, None)  # type: ignore[arg-type]  (nothing is ordered here)
        return lax.map(lambda step: resident.chosen(chunk, order_key, before + step), steps)

    return numbers


# ── What fit is handed ──────────────────────────────────────────────────────────────────────────────────────────────


class Opened:
    """Streamed data that `fit` was handed: their shapes before they are read, then a source, or an evaluation."""

    name: str
    shapes: tuple[Any, Any]
    """Of x and y [n, ...], as they will be on the device; n may be that of a batch."""
    usual = 0
    """Rows in a batch, where one may come with fewer."""
    check: RowCheck
    """Set before anything is read."""

    def marks(self) -> Any:
        """Arrays by which the data are known again."""
        raise NotImplementedError

    def batch_size(self, given: Any) -> int:
        """Examples in a batch."""
        raise NotImplementedError

    def source(
        self, batch_size: int, sampling: Sampling, weights: Any, length: Length, sharding: Sharding | None = None
    ) -> Streamed:
        """To train on."""
        raise NotImplementedError

    def evaluation(self, problem: Problem, block: int, sharding: Sharding | None = None) -> Callable[[Any], Array]:
        """Parameters -> means of the loss and of each metric."""
        raise NotImplementedError


class OpenedRows(Opened):
    """A pair with Rows."""

    def __init__(self, name: str, data: Any):
        self.name = name
        self.x, self.y = (_rows(f"{what} of {name}", a) for what, a in zip("xy", as_pair(name, data), strict=True))
        if self.y.ndim == 0 or len(self.x) != len(self.y):
            raise ValueError(
                f"{name} must hold as many targets as inputs, but has shapes {self.x.shape} and {self.y.shape}"
            )
        if len(self.x) >= 1 << 31 and not jax.config.read("jax_enable_x64"):
            raise ValueError(f"{name} has {len(self.x)} rows, which int32 cannot number: set jax_enable_x64")
        self.shapes = _struct(self.x), _struct(self.y)

    def marks(self) -> Any:
        """Up to 1024 rows of each, evenly spread, and how many there are."""
        return np.asarray(len(self.x)), *(a.sample() if isinstance(a, Rows) else a for a in (self.x, self.y))

    def batch_size(self, given: Any) -> int:
        """As of data in memory."""
        return batch_size_of(given, len(self.x))

    def source(
        self, batch_size: int, sampling: Sampling, weights: Any, length: Length, sharding: Sharding | None = None
    ) -> Streamed:
        """In the order of data in memory."""
        n = len(self.x)
        resident = Resident(sampling, batch_size, n, every=length.every)
        return RowSource(self, of_mean_one(weights, n), resident, length.epochs, sharding)

    def evaluation(self, problem: Problem, block: int, sharding: Sharding | None = None) -> Callable[[Any], Array]:
        """Of blocks as `evaluation_program` cuts data in memory, to the same bits."""
        n, size = len(self.x), min(at_once(self.x, block), len(self.x))
        add, put = _adding(problem, sharding), _putting(sharding)

        def read() -> Iterator[Any]:
            for i in range(-(-n // size)):
                # The last block starts early enough to be whole; what it shares with the one before is left out.
                begin = min(i * size, n - size)
                try:
                    x, y = (a[begin : begin + size] for a in (self.x, self.y))
                except Exception as error:
                    raise Unreadable(i + 1, self.name, f"could not be read: {type(error).__name__}: {error}") from error
                try:
                    self.check(x, y, None)
                except ValueError as error:
                    raise Unreadable(i + 1, self.name, f"{error} (its first row is {begin} of the data)") from error
                yield put((x, y, begin + np.arange(size) >= i * size))

        def means(params: Any) -> Array:
            total = jnp.zeros(1 + len(problem.metrics))
            for block in _ahead(read()):
                total = add(params, total, *block)
            return mean_of(total, n)

        return means


class OpenedStream(Opened):
    """A `Stream`, of which the first batch is read."""

    def __init__(self, name: str, stream: Stream):
        self.name, self.stream = name, stream
        self._first = Batches(stream, 1, name)
        self._batch = self._first.first()
        self.shapes = _struct(self._batch[0]), _struct(self._batch[1])
        self.usual = len(self.shapes[0])

    def marks(self) -> Any:
        """The first batch, and how many there are."""
        return np.asarray(self.stream.steps), *self._batch

    def batch_size(self, given: Any) -> int:
        """What the stream has.

        Raises: ValueError if another was asked for.
        """
        size = self.usual
        if given is not None and given != size:
            raise ValueError(f"the batches of a stream come with {size} rows, but batch_size is {given}: leave it out")
        return size

    def source(
        self, batch_size: int, sampling: Sampling, weights: Any, length: Length, sharding: Sharding | None = None
    ) -> Streamed:
        """As it comes."""
        if sampling != "shuffle":
            raise ValueError("a stream is trained on as it comes, and cannot be sampled: leave sampling out")
        if weights is not None:
            raise ValueError("the rows of a stream have no numbers that weights could go by: leave weights out")
        self._first.epochs = -(-length.epochs * (length.every or self.stream.steps) // self.stream.steps)
        return BatchSource(self, self._first, length, sharding)

    def evaluation(self, problem: Problem, block: int, sharding: Sharding | None = None) -> Callable[[Any], Array]:
        """Of one epoch of it, gone through anew each time."""
        add, put, size = _adding(problem, sharding), _putting(sharding), self.usual

        def read() -> Iterator[Any]:
            batches = Batches(self.stream, 1, self.name) if self._first.taken else self._first
            for k, (x, y) in enumerate(batches):
                try:
                    self.check(x, y, None)
                except ValueError as error:
                    raise Unreadable(k + 1, self.name, str(error)) from error
                real = np.arange(size) < len(x)
                rows = np.where(real, np.arange(size), 0)
                yield len(x), put((x[rows], y[rows], real))

        def means(params: Any) -> Array:
            total, n = jnp.zeros(1 + len(problem.metrics)), 0
            for rows, batch in _ahead(read()):
                total, n = add(params, total, *batch), n + rows
            return total / n

        return means


def opened(name: str, data: Any) -> Opened | None:
    """What is streamed of it; None of data in memory.

    Raises: ValueError for data of no or wrong shape; Unreadable for a first batch that is none.
    """
    if not is_streamed(data):
        return None
    return OpenedStream(name, data) if isinstance(data, Stream) else OpenedRows(name, data)


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    reading = Ahead(items)
    try:
        yield from reading
    finally:
        reading.close()


def _adding(problem: Problem, sharding: Sharding | None) -> Callable[..., Array]:
    """`block_program`, called on the mesh."""
    metrics = tuple(f for _, f in problem.metrics)
    add = block_program(problem.net, problem.loss, metrics, problem.transform, sharding)
    if sharding is None:
        return add

    def added(*arguments: Any) -> Array:
        with sharding.set():
            return add(*arguments)

    return added


def _putting(sharding: Sharding | None) -> Callable[[tuple[np.ndarray, ...]], tuple[Array, ...]]:
    """Puts the rows (x, y, fresh) of a block on the device, or over a mesh, where they are filled up to a multiple."""
    if sharding is None:
        return lambda rows: tuple(map(jnp.asarray, rows))

    def put(rows: tuple[np.ndarray, ...]) -> tuple[Array, ...]:
        n = len(rows[0])
        chosen = np.arange(n + -n % sharding.d)[sharding.own_rows(n + -n % sharding.d)]
        x, y = (a[np.minimum(chosen, n - 1)] for a in rows[:2])
        x, y = (a.astype(jax.dtypes.canonicalize_dtype(a.dtype), copy=False) for a in (x, y))
        return sharding.rows((x, y, rows[2][np.minimum(chosen, n - 1)] & (chosen < n)))

    return put


def _rows(name: str, a: Any) -> Any:
    """Rows as they are, anything else as NumPy has it."""
    return a if isinstance(a, Rows) else np.asarray(one_array(name, a))


def _struct(a: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, jax.dtypes.canonicalize_dtype(a.dtype))
