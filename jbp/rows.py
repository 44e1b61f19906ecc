"""What data larger than memory are handed in as: rows that are read when they are asked for, and streams of batches.

Both know where they are without JAX: what training makes of them is in `jbp.train.streams`.
"""

from __future__ import annotations

import base64
import json
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jbp.arguments import as_count, came
from jbp.inputs import refuse_source
from jbp.windows import Windows

BLOCK_BYTES = 4 << 20
"""Of rows that are gone through block by block, about so much at a time."""
MOST_STEPS = 1 << 31


class Unreadable(ValueError):
    """A batch that cannot be trained on. `batch` counts from 1, over all epochs."""

    def __init__(self, batch: int, name: str, why: str):
        self.batch = batch
        super().__init__(f"batch {batch} of {name}: {' '.join(why.split())}")


class Rows:
    """Rows [n, ...] that stay where they are: `rows[numbers]` reads those, as an array.

    `stored` is whatever has shape, dtype and rows by number, such as a memory map, `numpy.load(path, mmap_mode="r")`;
    or a list of such, one part behind the other (shards). A pair (x, y) with Rows in it is trained on by `jbp.fit`
    block by block, in the order of data in memory and to the same bits; y may be an array. `jbp.data.split`,
    `Standardizer` and `Bounds` take Rows as they take arrays, and answer with Rows. `numpy.asarray(rows)` reads all.

    Raises: ValueError if there are no rows of numbers, or parts of several shapes or dtypes.
    """

    def __init__(self, stored: Any):
        if not hasattr(stored, "dtype"):
            refuse_source("stored", stored)
        parts = list(stored) if isinstance(stored, list | tuple) else [stored]
        for part in parts:
            if not (getattr(part, "shape", ()) and hasattr(part, "dtype") and hasattr(part, "__getitem__")):
                raise ValueError(f"rows must be an array [n, ...] or a list of some, but are {came(part)}")
        kinds = {(tuple(part.shape[1:]), np.dtype(part.dtype).newbyteorder("=")) for part in parts}
        if len(kinds) != 1:
            said = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in sorted(kinds, key=str))
            raise ValueError(f"the parts of rows must have one shape and dtype, but have rows of {said or 'no part'}")
        ((shape, dtype),) = kinds
        if dtype.kind not in "biuf":
            raise ValueError(f"rows must be numbers, but are {dtype}: store them as numbers")
        # Of a memory map the plain view: its subclass costs time with every block.
        self._parts = tuple(np.asarray(part) if isinstance(part, np.ndarray) else part for part in parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self._stored = shape, dtype
        self._numbers: np.ndarray | None = None
        self._functions: tuple[Callable[[np.ndarray], Any], ...] = ()
        self.shape, self.dtype = (int(self._ends[-1]), *shape), dtype
        if not len(self):
            raise ValueError("rows must be at least one, but are none")

    @property
    def ndim(self) -> int:
        """The axes, n among them."""
        return len(self.shape)

    @property
    def windowed(self) -> bool:
        """Whether they are windows over streams of tokens."""
        return all(isinstance(part, Windows) for part in self._parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Rows({self.dtype}{list(self.shape)})"

    def __getitem__(self, index: Any) -> np.ndarray:
        """The rows of a slice, of numbers 0…n−1 or of a mask, or one row, read now."""
        if isinstance(index, slice):
            return self._read(np.arange(*index.indices(len(self))))
        if np.ndim(index) == 0:
            return self._read(np.asarray([range(len(self))[operator.index(index)]]))[0]
        return self._read(self._as_numbers(index))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def take(self, numbers: Any) -> Rows:
        """The rows of these numbers, or of a mask [n], which are not read yet; it holds 8 bytes for each."""
        numbers = self._as_numbers(numbers)
        found = self._copy()
        found._numbers = numbers if self._numbers is None else self._numbers[numbers]
        found.shape = (len(numbers), *self.shape[1:])
        return found

    def mapped(self, function: Callable[[np.ndarray], Any]) -> Rows:
        """What the function makes of the rows: of any of them [m, ...] as many, each from its own alone."""
        one = np.asarray(function(self[:1]))
        found = self._copy()
        found._functions = (*self._functions, function)
        found.shape, found.dtype = (len(self), *one.shape[1:]), one.dtype
        return found

    def blocks(self, size: int | None = None) -> Iterator[np.ndarray]:
        """All rows in their order, `size` at a time, by default about 4 MB."""
        size = max(1, BLOCK_BYTES // max(1, self[:1].nbytes)) if size is None else as_count(size, "size")
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def sample(self, most: int = 1024) -> np.ndarray:
        """So many rows at the most, evenly spread, the first and the last among them: by them a run knows its data."""
        return self[np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64))]

    def _copy(self) -> Rows:
        found = object.__new__(Rows)
        found.__dict__.update(self.__dict__)
        return found

    def _as_numbers(self, index: Any) -> np.ndarray:
        numbers = np.asarray(index)
        if numbers.dtype.kind == "b" and numbers.shape == (len(self),):
            numbers = np.flatnonzero(numbers)
        if numbers.ndim != 1 or (numbers.dtype.kind not in "iu" and numbers.size):
            raise IndexError(f"rows are asked for by numbers, a slice or a mask [{len(self)}], but by {came(index)}")
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"rows have the numbers 0…{len(self) - 1}, but {numbers.min()}…{numbers.max()} are asked")
        return numbers.astype(np.int64, copy=False)

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        if self._numbers is not None:
            numbers = self._numbers[numbers]
        # Each once, and in the order of the disk, which h5py wants too.
        wanted, places = np.unique(numbers, return_inverse=True)
        shape, dtype = self._stored
        rows = np.empty((len(wanted), *shape), dtype)
        of = np.searchsorted(self._ends, wanted, side="right")
        for part in np.unique(of):
            first, last = np.searchsorted(of, (part, part + 1))
            begin = self._ends[part - 1] if part else 0
            rows[first:last] = self._parts[part][wanted[first:last] - begin]
        if not np.array_equal(wanted, numbers):
            rows = rows[places]
        for function in self._functions:
            rows = np.asarray(function(rows))
        return rows


class Stream:
    """Batches (x, y) of any iterable, for data whose rows cannot be asked for by number; for `jbp.fit(train_data=)`.

    An epoch is `steps` batches, by default `len(batches)`. The iterator goes on from epoch to epoch; one that ends with
    an epoch is begun anew by `iter(batches)`. All batches have as many rows as the first, and its shapes and dtypes;
    only the last of an epoch may have fewer rows. x and y are arrays [B, ...], or what gives such (tensors, lists).

    A run is resumed by `get_state` and `set_state` of the iterator, if it has both, as those of grain have (a
    `grain.DataLoader` or dataset that yields pairs, batched, is given as it is); of any other iterator by going once
    more through the batches that were taken, which must be the same.

    Raises: ValueError for what is not iterable, or has no length and is not told `steps`.
    """

    def __init__(self, batches: Any, steps: int | None = None):
        if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            advice = ": call it" if callable(batches) else ""
            raise ValueError(f"a stream needs an iterable of batches (x, y), but got {came(batches)}{advice}")
        if steps is None:
            try:
                steps = len(batches)
            except (TypeError, NotImplementedError) as error:
                raise ValueError(
                    f"a stream of a {type(batches).__name__}, which has no length, needs steps=, its batches in an "
                    "epoch"
                ) from error
        self.batches, self.steps = batches, as_count(steps, "steps")
        if self.steps >= MOST_STEPS:
            raise ValueError(f"steps must be the batches of an epoch, but are {steps}: give those of one")

    def __iter__(self) -> Batches:
        """Those of one epoch, from the start, with `get_state` and `set_state`."""
        return Batches(self)

    def __repr__(self) -> str:
        return f"Stream({type(self.batches).__name__}, steps={self.steps})"


_END = object()


class Batches:
    """The batches of a stream, one after the other over so many epochs, each looked at; an iterator with a state."""

    def __init__(self, stream: Stream, epochs: int = 1, name: str = "the stream"):
        self.stream, self.epochs, self.name = stream, epochs, name
        self.taken = 0
        self._iterator: Any = None
        self._waiting: Any = _END
        self._before: str | None = None
        """The state of the iterator before the batch that waits."""
        self._like: tuple[np.ndarray, np.ndarray] | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        if self.taken == self.stream.steps * self.epochs:
            raise StopIteration
        batch = self._checked(self._next())
        self.taken += 1
        return batch

    def first(self) -> tuple[np.ndarray, np.ndarray]:
        """The first batch, which the others are like; it still comes."""
        self._before = self._own()
        batch = self._next()
        self._like = self._checked(batch)
        self._waiting = batch
        return self._like

    def get_state(self) -> dict[str, Any]:
        """How many batches were taken, and the iterator's own state if it has one: JSON."""
        return {"taken": self.taken, "own": self._own() if self._waiting is _END else self._before}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to where `get_state` was called.

        Raises: Unreadable if the stream has not so many batches.
        """
        taken, own = state["taken"], state["own"]
        if self.taken:
            self._iterator, self._waiting = None, _END
        self.taken = 0
        if own is not None:
            # A new one, for the old has been read from; of a generator, which is its own, it is the same.
            self._waiting = _END
            try:
                self._iterator = iter(self.stream.batches)
                self._iterator.set_state(_decoded(json.loads(own)))
            except Exception as error:
                why = f"the stream cannot be taken up again there: {type(error).__name__}: {error}"
                raise Unreadable(taken + 1, self.name, why) from error
            self.taken = taken
        while self.taken < taken:
            self._next()
            self.taken += 1

    def _own(self) -> str | None:
        """As text, for an iterator may go on working in what it has answered with."""
        iterator = self._begun()
        if not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
            return None
        return json.dumps(_encoded(iterator.get_state()))

    def _begun(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self.stream.batches)
        return self._iterator

    def _next(self) -> Any:
        """The next batch as it comes."""
        if self._waiting is not _END:
            batch, self._waiting = self._waiting, _END
            return batch
        number, steps = self.taken + 1, self.stream.steps
        try:
            batch = next(self._begun(), _END)
            if batch is _END and self.taken and self.taken % steps == 0:
                self._iterator = iter(self.stream.batches)
                batch = next(self._iterator, _END)
        except Exception as error:
            raise Unreadable(number, self.name, f"could not be read: {type(error).__name__}: {error}") from error
        if batch is _END:
            why = f"but an epoch has {steps}: give steps= as many as come"
            if self.taken % steps == 0:
                why = "and iter() of it gives no more: it is empty, or can be gone through only once"
            raise Unreadable(number, self.name, f"there is none: the stream has ended, {why}")
        return batch

    def _checked(self, batch: Any) -> tuple[np.ndarray, np.ndarray]:
        number, steps = self.taken + 1, self.stream.steps

        def wrong(why: str) -> Unreadable:
            return Unreadable(number, self.name, why)

        if not isinstance(batch, tuple | list) or len(batch) != 2:
            size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise wrong(f"it must be a pair (x, y) of arrays, but is a {type(batch).__name__}{size}")
        try:
            x, y = map(np.asarray, batch)
        except Exception as error:
            raise wrong(f"it must be a pair (x, y) of arrays, but gives none: {error}") from error
        for what, a in (("x", x), ("y", y)):
            if a.dtype.kind in "USOmMc" or a.ndim == 0:
                raise wrong(f"{what} must be an array [n, ...] of numbers, but is {came(a)}")
        if len(x) != len(y) or not len(x):
            raise wrong(f"it must have as many targets as inputs, at least one, but has {_shown(x, y)}")
        if self._like is None:
            self._like = x, y
        firsts, last = self._like, number % steps == 0
        same = all(a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in zip((x, y), firsts, strict=True))
        if not same or len(x) > len(firsts[0]) or (len(x) < len(firsts[0]) and not last):
            fewer = "; only the last batch of an epoch may have fewer rows" if same else ""
            raise wrong(f"it is {_shown(x, y)}, where the first was {_shown(*firsts)}{fewer}")
        return x, y


def is_streamed(data: Any) -> bool:
    """Whether data are read while they are trained on: a Stream, or a pair with Rows."""
    return isinstance(data, Stream) or (
        isinstance(data, tuple | list) and len(data) == 2 and any(isinstance(a, Rows) for a in data)
    )


def _shown(x: np.ndarray, y: np.ndarray) -> str:
    return f"x {x.dtype}{list(x.shape)}, y {y.dtype}{list(y.shape)}"


_TAG = "__jbp__"


def _encoded(value: Any) -> Any:
    """An iterator's state as JSON, from which `_decoded` makes it again.

    Raises: ValueError for what is no tree of numbers, text, bytes and arrays.
    """
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {_TAG: "array", "of": data, "dtype": value.dtype.str, "shape": list(value.shape)}
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, bytes):
        return {_TAG: "bytes", "of": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return {_TAG: "tuple", "of": [_encoded(part) for part in value]}
    if isinstance(value, list):
        return [_encoded(part) for part in value]
    if isinstance(value, dict) and all(isinstance(name, str) and name != _TAG for name in value):
        return {name: _encoded(part) for name, part in value.items()}
    raise ValueError(f"the state of a stream must be numbers, text, bytes and arrays, but holds {came(value)}")


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {name: _decoded(part) for name, part in value.items()}
    of = value["of"]
    if value[_TAG] == "tuple":
        return tuple(_decoded(part) for part in of)
    data = base64.b64decode(of)
    if value[_TAG] == "bytes":
        return data
    found = np.frombuffer(data, np.dtype(value["dtype"])).reshape(value["shape"]).copy()
    return found if value["shape"] else found[()]
