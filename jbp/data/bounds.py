"""`Bounds`: what scales data by bounds that are known beforehand, and so without a look at the data."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from jbp.arguments import about, as_number, cannot_read, did_you_mean, existing_file, is_numeric, listed
from jbp.data.dates import days, looks_like_date
from jbp.data.preparing import Standardizer, blocks_of
from jbp.inputs import refuse_source
from jbp.rows import Rows

_HEADER = ["column", "low", "high"]
_SUCH = 'JSON such as {"age": [0, 120]}'


@dataclass(frozen=True, eq=False)
class Bounds:
    """x ↦ −1 at `low` to 1 at `high`, and what lies outside clipped to that.

    For private training, in which mean and deviation of the data would tell about them: bounds are what one knows of a
    quantity before any of it is measured (an age is from 0 to 120). Bounds read off the data are no better than their
    mean. low, high: of one example's shape, or of shape () for one pair for everything.

    Raises: ValueError if they are not finite, of one shape, and low below high.
    """

    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if self.low.shape != self.high.shape:
            raise ValueError(f"low and high must have one shape, but have {self.low.shape} and {self.high.shape}")
        with np.errstate(invalid="ignore", over="ignore"):
            wrong = np.argwhere(~((self.high > self.low) & np.isfinite(self.high - self.low)))
        if len(wrong):
            at = tuple(wrong[0])
            place = f" at {list(map(int, at))}" if at else ""
            pair = f"{self.low[at]} and {self.high[at]}"
            raise ValueError(f"low must be below high, both finite, but they are {pair}{place}: correct them")

    @property
    def mean(self) -> np.ndarray:
        """What becomes 0."""
        return (self.low + self.high) / 2

    @property
    def scale(self) -> np.ndarray:
        """What becomes 1, from there."""
        return (self.high - self.low) / 2

    @overload
    def __call__(self, x: Rows) -> Rows: ...
    @overload
    def __call__(self, x: np.ndarray) -> np.ndarray: ...
    def __call__(self, x: np.ndarray | Rows) -> np.ndarray | Rows:
        """Clip and scale x: [n, ...] → as `Standardizer`.

        Raises: ValueError if the examples have another shape than the bounds.
        """
        if isinstance(x, Rows):
            return x.mapped(self)
        return Standardizer(self.mean, self.scale)(np.clip(self._fitting(x), self.low, self.high))

    def outside(self, x: np.ndarray | Rows) -> int:
        """How many values of x are clipped: of private data that is a figure of theirs, not to be told."""
        return sum(int(((a < self.low) | (a > self.high)).sum()) for a in map(self._fitting, blocks_of(x)))

    def alike(self) -> "Bounds":
        """The bounds of the first value, for every value of an example."""
        return Bounds(self.low.flat[0], self.high.flat[0])

    def _fitting(self, x: np.ndarray) -> np.ndarray:
        refuse_source("x", x)
        x = np.asarray(x)
        if x.ndim == 0 or (self.low.ndim and x.shape[1:] != self.low.shape):
            raise ValueError(f"expected examples of shape {self.low.shape} to scale, got x of shape {x.shape}")
        return x


def read_bounds(path: str | Path) -> dict[str, tuple[float, float]]:
    """(low, high) by column, from JSON, {"age": [0, 120], …}, or a .csv file with the columns column, low, high.

    Raises: ValueError saying what was expected, what came, where, and what to do.
    """
    path = existing_file(path)
    with about(path):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise cannot_read(path, error) from error
        found = _from_json(text) if path.suffix.lower() == ".json" else _from_csv(text)
        if not found:
            raise ValueError("expected bounds of columns, found none; give each column its low and high")
        for name, (low, high) in found.items():
            with about(f"column {name!r}"):
                Bounds(np.asarray(low), np.asarray(high))
    return found


def bounds_of(known: Mapping[str, tuple[float, float]], names: Iterable[str]) -> Bounds:
    """The bounds of these columns, in their order.

    Raises: ValueError naming the columns without.
    """
    names = list(names)
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"expected bounds of every column, found none of {listed(missing)}{did_you_mean(missing[0], known)}; add "
            "them"
        )
    low, high = np.array([known[name] for name in names]).T
    return Bounds(low, high)


def _number(word: str) -> float:
    """A number, or a date as the number that a column of dates has; ValueError for another word."""
    if looks_like_date(word.strip()):
        return days(word.strip())
    if not is_numeric(word):
        raise ValueError(f"{word!r} is no number")
    return float(word)


def _from_json(text: str) -> dict[str, tuple[float, float]]:
    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice = next(name for i, (name, _) in enumerate(items) if name in [other for other, _ in items[:i]])
            raise ValueError(f"expected each column once, found {twice!r} more than once; keep one")
        return found

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected {_SUCH}, found something else ({error}); correct it") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected {_SUCH}, found {type(content).__name__}; correct it")
    found = {}
    for name, pair in content.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"expected [low, high] for column {name!r}, found {pair!r}; correct it")
        pair = [days(side) if isinstance(side, str) and looks_like_date(side) else side for side in pair]
        found[name] = (as_number(pair[0], f"low of {name!r}"), as_number(pair[1], f"high of {name!r}"))
    return found


def _from_csv(text: str) -> dict[str, tuple[float, float]]:
    reader = csv.reader(text.splitlines(), strict=True)
    found: dict[str, tuple[float, float]] = {}
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"expected comma-separated text, found what is not ({error}); check quotes") from error
    if not rows or rows[0][1] != _HEADER:
        found_line = ",".join(rows[0][1]) if rows else ""
        raise ValueError(f"expected a first line {','.join(_HEADER)}, found {found_line!r}; name the columns so")
    for line, row in rows[1:]:
        try:
            name, low, high = row[0], *map(_number, row[1:])
        except ValueError:
            raise ValueError(
                f"expected a column, its low and its high, found {','.join(row)!r} in line {line}; correct it"
            ) from None
        if name in found:
            raise ValueError(f"expected each column once, found {name!r} more than once, in line {line}; keep one")
        found[name] = (low, high)
    return found
