"""What is done to examples before training: holding a part out, and standardising."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from jbp.inputs import refuse_source
from jbp.rows import Rows

_BLOCK = 4096  # rows converted to float64 at a time, so that standardising MNIST needs megabytes, not another copy


def held_out(groups: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Which `count` rows to hold out, as a mask [n]: the same share of every group, at random.

    All rows get a random order: that of n 64-bit words of PCG64(seed), which NumPy promises never to change.
    Each group gives its first rows in that order: its share count·nᵍ/n rounded down, and the rows still
    missing come from the groups with none so far, then by the largest remainder. A group never gives its last
    row, so what is kept has every group. groups: [n], whole numbers 0 to k−1 that all occur.

    Raises: ValueError if that many rows cannot be held out while each group keeps one.
    """
    sizes = np.bincount(groups)
    n, possible = len(groups), len(groups) - len(sizes)
    if count > possible:
        raise ValueError(
            f"expected to hold out {count} of {n} rows, but with {len(sizes)} classes that each keep a row "
            f"at most {possible} can go; give more rows per class, or hold out fewer"
        )
    quota, remainder = np.divmod(sizes * count, n)
    turn = np.lexsort((-remainder, quota > 0))
    missing = count - int(quota.sum())
    while missing:
        able = turn[quota[turn] < sizes[turn] - 1][:missing]
        quota[able] += 1
        missing -= len(able)
    order = np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")
    mask = np.zeros(n, bool)
    for group, size in enumerate(quota):
        mask[order[groups[order] == group][:size]] = True
    return mask


def split(
    x: Any, y: Any, fraction: float = 0.1, seed: int = 0, stratify: bool | None = None
) -> tuple[Any, Any, Any, Any]:
    """(x_a, y_a, x_b, y_b), where b is held out: round(fraction·n) rows; both parts keep the rows' order.

    x: [n, ...], y: [n] or [n, m]; of `Rows` the parts are Rows, and only labels are read. With `stratify`, for labels
    [n], each class gives the same share of its rows and keeps at least one (see `held_out`); None stratifies whole
    numbers and text in one dimension, and nothing else.

    Raises: ValueError if the lengths differ, the fraction is not between 0 and 1, a part would be empty, or
    there are no labels to stratify by.
    """
    for name, a in (("x", x), ("y", y)):
        refuse_source(name, None if isinstance(a, Rows) else a)
    x, y = (a if isinstance(a, Rows) else np.asarray(a) for a in (x, y))
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise ValueError(
            f"expected x and y with one row per example each, got shapes {x.shape} and {y.shape}; "
            "make them equally long"
        )
    if not 0 < fraction < 1:
        raise ValueError(f"expected a fraction between 0 and 1 to hold out, got {fraction}; 0.1 holds out a tenth")
    if seed < 0:
        raise ValueError(f"expected a seed of 0 or above, got {seed}; any such whole number does")
    count = round(fraction * len(x))
    if not 0 < count < len(x):
        raise ValueError(
            f"expected both parts to get a row, but a fraction of {fraction} of {len(x)} rows is {count}; "
            "give more rows, or another fraction"
        )
    labels = y.ndim == 1 and y.dtype.kind in "iubU"
    if stratify and not labels:
        raise ValueError(
            f"expected whole-number or text labels [n] to stratify by, got {y.dtype} of shape {y.shape}; "
            "pass stratify=False"
        )
    # Not stratified is stratified by one group of all.
    groups = np.unique(np.asarray(y) if labels and stratify is not False else np.zeros(len(y)), return_inverse=True)[1]
    b = held_out(groups, count, seed)
    return taken(x, ~b), taken(y, ~b), taken(x, b), taken(y, b)


def taken(a: Any, chosen: np.ndarray) -> Any:
    """The chosen rows, by a mask or numbers; of Rows such as are not read yet."""
    return a.take(chosen) if isinstance(a, Rows) else a[chosen]


@dataclass(frozen=True, eq=False)
class Standardizer:
    """x ↦ (x − mean) / scale, in float64 and returned as float32.

    mean, scale: float64, of one example's shape, or of shape () for one number each for everything.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray | Rows, per_feature: bool = True) -> "Standardizer":
        """Mean and standard deviation (over n) of each feature of x [n, ...], or of all values together.

        Rows are gone through once, block by block, as `of_blocks` does.

        A feature that is constant gets scale 1, and so becomes 0.

        Raises: ValueError if x has no rows, is no array of numbers, or has a mean or deviation that is not
        finite.
        """
        if isinstance(x, Rows):
            return cls.of_blocks(x.blocks(), per_feature)
        refuse_source("x", x)
        x = np.asarray(x)
        if x.size == 0 or x.ndim == 0 or x.dtype.kind not in "biuf":
            raise ValueError(f"expected numbers [n, ...] with n ≥ 1 to fit to, got {x.dtype} of shape {x.shape}")
        axis = 0 if per_feature else None
        count = len(x) if per_feature else x.size
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf get their error below
            least, most = x.min(axis), x.max(axis)
            mean = np.mean(x, axis, np.float64)
            far = np.maximum(np.abs(most - mean), np.abs(least - mean))
            # A sum of many numbers with a large offset is rounded so coarsely that the mean may lie beside them all.
            beside = sum(((x[rows] - mean).sum(axis) for rows in _blocks(x)), np.zeros_like(mean)) / count
            mean = np.where(np.abs(beside) > 1e-9 * far, mean + beside, mean)
            # Squares of what is below 1e-150 or above 1e150 would be 0 or Inf.
            unit = np.where((far > 1e-140) & (far < 1e140) | (far == 0), 1.0, far)
            squares = sum((np.square((x[rows] - mean) / unit).sum(axis) for rows in _blocks(x)), np.zeros_like(mean))
            # Rounding in the mean leaves a constant feature a tiny deviation; dividing by it would make noise
            # large.
            scale = np.where(least == most, 1.0, np.sqrt(squares / count) * unit)
        if not np.isfinite(mean).all() or not np.isfinite(scale).all():
            raise ValueError("expected finite values to standardise, got NaN or Inf; remove the rows that have them")
        _refuse_collapsed(scale, least, most)
        return cls(np.asarray(mean), np.asarray(scale))

    @classmethod
    def of_blocks(cls, blocks: Iterable[np.ndarray], per_feature: bool = True) -> "Standardizer":
        """The same of the rows of all blocks [m, ...], in one pass; to rounding what `fit` finds of them together.

        Each block adds its count, mean and sum of squared distances from it to those of the blocks before (Chan, Golub
        and LeVeque 1983), in float64, as differences from the first row, so that an offset costs no digits.

        Raises: ValueError as `fit`, naming the row.
        """
        found = _Moments(per_feature)
        for block in blocks:
            found.add(block)
        return cls(*found.mean_and_scale())

    @overload
    def __call__(self, x: Rows) -> Rows: ...
    @overload
    def __call__(self, x: np.ndarray) -> np.ndarray: ...
    def __call__(self, x: np.ndarray | Rows) -> np.ndarray | Rows:
        """Standardise x: [n, ...] → float32 [n, ...]; Rows when they are read.

        Raises: ValueError if the examples have another shape than those of the fit.
        """
        if isinstance(x, Rows):
            return x.mapped(self)
        refuse_source("x", x)
        x = np.asarray(x)
        if x.ndim == 0 or (self.mean.ndim and x.shape[1:] != self.mean.shape):
            raise ValueError(f"expected examples of shape {self.mean.shape} to standardise, got x of shape {x.shape}")
        out = np.empty(x.shape, np.float32)
        for rows in _blocks(x):
            out[rows] = (x[rows] - self.mean) / self.scale
        return out


def _blocks(x: np.ndarray) -> list[slice]:
    return [slice(i * _BLOCK, (i + 1) * _BLOCK) for i in range(math.ceil(len(x) / _BLOCK))]


def blocks_of(x: Any) -> Iterable[np.ndarray]:
    """An array, or Rows, a block of rows at a time."""
    return x.blocks() if isinstance(x, Rows) else [np.asarray(x)]


class _Moments:
    """Count, mean, squared distances, least and most of what was added so far; all as differences from the first row.

    Squares are taken in units of a power of two, which grows with the differences, so that none is 0 or infinite, and
    nothing is rounded for it.
    """

    def __init__(self, per_feature: bool):
        self.axis = 0 if per_feature else None
        self.rows = self.count = 0
        self.first: Any = None

    def add(self, block: Any) -> None:
        """Take in rows [m, ...].

        Raises: ValueError if they are no finite numbers, or of another shape than the ones before.
        """
        x = np.asarray(block)
        if x.ndim == 0 or x.dtype.kind not in "biuf":
            raise ValueError(f"expected blocks of numbers [m, ...] to fit to, got {x.dtype} of shape {x.shape}")
        if self.first is not None and x.shape[1:] != self.shape:
            raise ValueError(f"expected rows of one shape to fit to, got {self.shape}, and then {x.shape[1:]}")
        if x.size == 0:
            return
        wrong = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
        if len(wrong):
            raise ValueError(
                f"expected finite values to standardise, got NaN or Inf in row {self.rows + wrong[0]}; remove the rows "
                "that have them"
            )
        if self.first is None:
            self.shape = x.shape[1:]
            self.first = np.asarray(x[0], np.float64) if self.axis == 0 else np.float64(x.flat[0])
            self.mean = self.least = self.most = self.squares = np.zeros_like(self.first)
            self.unit = np.zeros_like(self.first)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is told when all are added
            self._merge(x.astype(np.float64) - self.first)
        self.rows += len(x)

    def _merge(self, beyond: np.ndarray) -> None:
        """Add differences from the first row [m, ...]."""
        count, mean = len(beyond) if self.axis == 0 else beyond.size, beyond.mean(self.axis)
        least, most = beyond.min(self.axis), beyond.max(self.axis)
        self.least, self.most = np.minimum(self.least, least), np.maximum(self.most, most)
        unit = np.maximum(self.unit, _power_above(np.maximum(np.abs(least), np.abs(most))))
        safe = np.where(unit == 0, 1.0, unit)
        self.squares = self.squares * np.square(self.unit / safe) + np.square((beyond - mean) / safe).sum(self.axis)
        apart, total = mean - self.mean, self.count + count
        self.squares = self.squares + np.square(apart / safe) * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.unit, self.count = unit, total

    def mean_and_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all that was added; where all values are one, a scale of 1.

        Raises: ValueError if there was nothing, or values that differ have no deviation in float64.
        """
        if self.first is None:
            raise ValueError("expected numbers [n, ...] with n ≥ 1 to fit to, got none")
        with np.errstate(over="ignore", invalid="ignore"):
            scale = np.where(self.least == self.most, 1.0, np.sqrt(self.squares / self.count) * self.unit)
            mean = self.first + self.mean
        if not (np.isfinite(mean).all() and np.isfinite(scale).all()):
            raise ValueError("expected values that float64 can hold the differences of, got larger ones; scale them")
        _refuse_collapsed(scale, self.first + self.least, self.first + self.most)
        return np.asarray(mean), np.asarray(scale)


def _power_above(values: np.ndarray) -> np.ndarray:
    """The power of two above each, but for 0, and the largest there is for the largest."""
    return np.where(values == 0, 0.0, np.ldexp(1.0, np.minimum(np.frexp(values)[1], 1023)))


def _refuse_collapsed(scale: np.ndarray, least: np.ndarray, most: np.ndarray) -> None:
    if (scale == 0).any():
        where = tuple(map(int, np.argwhere(scale == 0)[0]))
        raise ValueError(
            f"expected different values to stay different in float64, got one for all in feature {list(where)}, "
            f"from {least[where]} to {most[where]}; subtract an offset first"
        )
