"""Windows over a stream of tokens: examples of a fixed length that overlap or not, cut when they are asked for.

Known here without JAX; what training makes of them on a device is in `jbp.train.windowed`.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from jbp.arguments import as_count, came
from jbp.inputs import refuse_source

__all__ = ["Windows", "windows"]

MOST = 1 << 31
"""Windows that an order of int32 can number."""


def windows(tokens: Any, length: int, stride: int = 1) -> tuple[Windows, Windows]:
    """(x, y) of a stream of tokens: row i of x is the `length` tokens from place i·stride on, of y those one later.

    For `jbp.fit`: a net is asked at every position for the token that comes next. With `stride` 1, every place begins
    a window, and `sampling="replacement"` draws crops at random; with `stride=length` the windows are disjoint, and
    each token is asked for once, which is what a validation loss should be of. What is left over at the end, shorter
    than a window, takes no part.

    `tokens` is an array [m] of whole numbers, 0 and above. It lies on the device once, however the windows overlap. One
    that is larger than memory, such as `numpy.load(path, mmap_mode="r")`, stays on the disk:
    `tuple(map(jbp.data.Rows, windows(…)))` is read window by window, to the same bits.

    Raises: ValueError for tokens that are none, or fewer than a window and the token after it.
    """
    refuse_source("tokens", tokens)
    stored = tokens if isinstance(tokens, np.memmap) else np.asarray(tokens)
    if stored.ndim != 1 or stored.dtype.kind not in "iu":
        advice = ": make numbers of it with jbp.data.Vocabulary" if isinstance(tokens, str) else ""
        raise ValueError(f"tokens must be whole numbers in an array [m], but are {came(tokens)}{advice}")
    length, stride = as_count(length, "the length of windows"), as_count(stride, "the stride of windows")
    if len(stored) < length + 1:
        raise ValueError(
            f"windows of {length} tokens and the one after need {length + 1}, but there are {len(stored)}: take "
            "shorter windows, or more text"
        )
    n = (len(stored) - length - 1) // stride + 1
    if n >= MOST:
        raise ValueError(f"{n} windows are more than can be numbered: take a larger stride, or a part of the tokens")
    return Windows(stored, length, stride, 0, n), Windows(stored, length, stride, 1, n)


class Windows:
    """Rows [n, t]: row i is `tokens[i·stride + offset : … + length]`. Made by `windows`; `windows[numbers]` reads some.

    `numpy.asarray(windows)` cuts them all, which is `length / stride` times the tokens.
    """

    def __init__(self, tokens: np.ndarray, length: int, stride: int, offset: int, n: int):
        self.tokens, self.length, self.stride, self.offset = tokens, length, stride, offset
        self.shape, self.dtype = (n, length), tokens.dtype

    @property
    def ndim(self) -> int:
        """2: the windows, and the places in one."""
        return 2

    @property
    def overlaps(self) -> bool:
        """Whether a place of the stream lies in several of them."""
        return self.stride < self.length and len(self) > 1

    @property
    def geometry(self) -> tuple[int, int, int, int]:
        """Length, stride, offset and number: all but the tokens."""
        return self.length, self.stride, self.offset, len(self)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Windows({self.dtype}{list(self.shape)}, stride={self.stride}, offset={self.offset})"

    def __getitem__(self, index: Any) -> np.ndarray:
        """The windows of a slice, of numbers or of a mask, or one window, cut now."""
        if isinstance(index, slice):
            rows = np.arange(*index.indices(len(self)))
        elif np.ndim(index) == 0:
            return self[[range(len(self))[operator.index(index)]]][0]
        else:
            rows = np.asarray(index)
            rows = np.flatnonzero(rows) if rows.dtype.kind == "b" else rows
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"windows have the numbers 0…{len(self) - 1}, but {rows.min()}…{rows.max()} are asked")
        first = rows.astype(np.int64)[:, None] * self.stride + self.offset
        return np.asarray(self.tokens[first + np.arange(self.length)])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    @property
    def seen(self) -> np.ndarray:
        """The tokens that lie in any window, or between two [m]."""
        return self.tokens[self.offset : self.offset + (len(self) - 1) * self.stride + self.length]

    def place(self, at: int) -> int:
        """Where in the stream the token `seen[at]` stands, from 0."""
        return self.offset + at
