"""`Columns`: what each column of a table is, and how its cells become numbers, the same in training and afterwards.

A run keeps them as JSON (`as_json`), so that a row of a new table goes the way that the rows of training went.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jbp.arguments import check_one_of, did_you_mean, listed, no_number, shown_cell
from jbp.data.cells import Cells, Dialect, Table, check_digits, counted_missing, is_missing
from jbp.data.dates import days, is_ambiguous, looks_like_date
from jbp.data.labels import warn_of_near_equal

Missing = Literal["mean", "indicator"]
MISSING: tuple[Missing, ...] = ("mean", "indicator")
UNKNOWN = ("refuse", "ignore")

# Digits with marks around and between them that are no sign, no point: 1,234 or 12% or $5 or 1'000.
_MARKED = re.compile(r"[+-]?\s?[$€£]?\s?\d[\d.,'\s]*[%$€£]?")
_FEW = 20  # categories that a table of any length may have
Place = Callable[[int, str], str]


@dataclass(frozen=True)
class Column:
    """One column: numbers, dates (as days since 1970-01-01), or categories (a column of 0 and 1 for each)."""

    name: str
    kind: Literal["number", "date", "category"] = "number"
    categories: tuple[str, ...] = ()
    lacks: bool = False
    """Whether a value is missing somewhere in the table of training."""
    fill: tuple[float, ...] = ()
    """What stands for a missing value: the mean of each number that the column becomes; () if none may be missing."""

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the numbers that the column becomes, without an indicator."""
        return tuple(f"{self.name}={word}" for word in self.categories) if self.kind == "category" else (self.name,)

    def encode(self, cells: Cells, place: Place, unknown: str) -> np.ndarray:
        """float64 [n, features], NaN where the value is missing.

        Raises: ValueError for a cell of another kind, naming its place.
        """
        codes = np.frombuffer(cells.codes, np.int64)
        if self.kind == "number":
            wrong = cells.where(lambda word: not is_missing(word))
            if wrong.any():
                row = int(np.argmax(wrong))
                raise no_number(cells.text(row), place(row, self.name))
            return np.frombuffer(cells.numbers, np.float64)[:, None]
        table = np.full((len(cells.words), len(self.features)), np.nan)
        for word, code in cells.words.items():
            if is_missing(word):
                continue
            if self.kind == "category":
                table[code] = [word == category for category in self.categories]
            try:
                if self.kind == "date":
                    table[code] = days(word)
                elif word not in self.categories and unknown == "refuse":
                    raise ValueError
            except ValueError:
                where = place(int(np.argmax(codes == code)), self.name)
                raise self._stranger(word, where) from None
        return table[codes]

    def _stranger(self, word: str, where: str) -> ValueError:
        """The ValueError for a word that is none of the column's."""
        if self.kind == "date":
            return ValueError(
                f"expected a date such as 2024-03-01, as in other rows, found {shown_cell(word)} at {where}; correct it"
            )
        return ValueError(
            f"expected a category that training has seen, one of {listed(self.categories)}, found {shown_cell(word)} "
            f"at {where}{did_you_mean(word, self.categories)}; correct it, or pass unknown='ignore' (--unknown "
            "ignore), which takes it for none of them"
        )


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are input, in their order; `encode` makes numbers of cells.

    missing: what is done where a value is missing: None refuses; "mean" takes the mean over the training part; of
    categories, their shares; "indicator" takes it too, and adds a column of 0 and 1 for each column that lacks some.
    decimal: "," where the table had decimal commas, as files to predict then have too unless it is said otherwise.
    """

    columns: tuple[Column, ...]
    missing: Missing | None = None
    decimal: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the columns are called in a table."""
        return tuple(column.name for column in self.columns)

    @property
    def textual(self) -> tuple[str, ...]:
        """Those whose cells are words whatever they look like."""
        return tuple(column.name for column in self.columns if column.kind != "number")

    @property
    def marks(self) -> tuple[str, ...]:
        """The features that are 0 or 1: one of each category, and those that say that a value is missing."""
        plain = [column.name for column in self.columns if column.kind != "category"]
        return tuple(name for name in self.features if name not in plain)

    @property
    def worded(self) -> tuple[str, ...]:
        """Those of categories."""
        return tuple(column.name for column in self.columns if column.kind == "category")

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the numbers that a row becomes."""
        return tuple(name for column in self.columns for name in (*column.features, *self._indicator(column)))

    def encode(self, rows: Table | Mapping[str, Iterable[Any]], unknown: str = "refuse") -> np.ndarray:
        """The numbers of each row, float64 [n, features]; what is missing is filled as training learned to.

        rows: by column name the cells, text or numbers, None or NaN where there is none; or a table that was read. With
        `unknown` "ignore" a category that training has not seen is none of those it has.

        Raises: ValueError naming the place of what is missing, or is not what the column holds.
        """
        check_one_of(unknown, "unknown", UNKNOWN)
        table = rows if isinstance(rows, Table) else self._table(rows)
        may_lack = [column.name for column in self.columns if self.missing == "mean" or self._indicator(column)]
        _check_missing(
            table, [name for name in self.names if name not in may_lack],
            "fill them in, for training saw none missing there; with missing='mean' (--missing mean) it learns to"
        )  # fmt: skip
        return self.fill(self._numbers(table, unknown))

    def numbers(self, table: Table) -> np.ndarray:
        """The same before anything is learned: NaN where a value is missing, which is refused if `missing` is None."""
        if self.missing is None:
            _check_missing(
                table,
                self.names,
                "fill them in or, unless training is private, pass missing='mean' or 'indicator' (--missing)",
            )
        return self._numbers(table, "refuse")

    def _numbers(self, table: Table, unknown: str) -> np.ndarray:
        parts = []
        for column in self.columns:
            cells = table.cells[column.name]
            parts.append(column.encode(cells, table.place, unknown))
            if self._indicator(column):
                parts.append(cells.missing[:, None].astype(np.float64))
        return np.concatenate(parts, 1)

    def learn_missing(self, x: np.ndarray) -> "Columns":
        """With the means of x [n, features], which may hold NaN, for what is missing.

        Raises: ValueError naming a column without any value.
        """
        if self.missing is None:
            return self
        columns, begin = [], 0
        for column in self.columns:
            part = x[:, begin : begin + len(column.features)]
            there = ~np.isnan(part[:, 0]) if part.shape[1] else np.zeros(0, bool)
            if not there.any():
                raise ValueError(
                    f"expected a value somewhere in column {column.name!r}, found all missing in the training part; "
                    "leave the column out"
                )
            columns.append(dataclasses.replace(column, fill=tuple(part[there].mean(0).tolist())))
            begin += len(column.features) + len(self._indicator(column))
        return dataclasses.replace(self, columns=tuple(columns))

    def fill(self, x: np.ndarray) -> np.ndarray:
        """x [n, features] with what was learned where it is NaN."""
        if self.missing is None:
            return x
        values = [v for column in self.columns for v in (*column.fill, *(0.0 for _ in self._indicator(column)))]
        return np.where(np.isnan(x), np.array(values), x)

    def without(self, name: str) -> "Columns":
        """The others."""
        return dataclasses.replace(self, columns=tuple(column for column in self.columns if column.name != name))

    def as_json(self) -> dict[str, Any]:
        """As JSON keeps it; `from_json` reads it."""
        return {
            "missing": self.missing,
            "decimal": self.decimal,
            "columns": [dataclasses.asdict(column) for column in self.columns],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Columns":
        """What `as_json` wrote.

        Raises: KeyError or TypeError if it is something else.
        """
        columns = []
        for column in stored["columns"]:
            fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in column.items()}
            columns.append(Column(**fields))
        return cls(tuple(columns), stored["missing"], stored.get("decimal"))

    @classmethod
    def plain(cls, names: Iterable[str]) -> "Columns":
        """Columns of numbers."""
        return cls(tuple(Column(name) for name in names))

    @classmethod
    def of(cls, table: Table, names: Iterable[str], categorical: Iterable[str], missing: Missing | None) -> "Columns":
        """What the columns of a table are; those in `categorical` are categories whatever they look like.

        Raises: ValueError naming the place of what fits no kind.
        """
        chosen = set(categorical)
        decimal = "," if table.dialect.decimal == "," else None
        return cls(tuple(_column(table, name, name in chosen) for name in names), missing, decimal)

    def _indicator(self, column: Column) -> tuple[str, ...]:
        return (f"{column.name} is missing",) if self.missing == "indicator" and column.lacks else ()

    def _table(self, rows: Mapping[str, Iterable[Any]]) -> Table:
        absent = [name for name in self.names if name not in rows]
        if absent:
            raise ValueError(f"expected the columns {listed(self.names)}, found none named {listed(absent)}; add them")
        cells_of: Mapping[str, Any] = rows
        lengths = {name: -1 if isinstance(cells_of[name], str) else np.size(cells_of[name]) for name in self.names}
        if min(np.ndim(cells_of[name]) for name in self.names) < 1 or len(set(lengths.values())) > 1:
            raise ValueError(
                "expected a list of cells for each column, all of one length, as {'town': ['Rome'], 'size': [20]}, "
                f"found {listed(f'{name}: {rows[name]!r}'[:40] for name in self.names)}"
            )
        cells = {name: Cells.of(rows[name], name in self.textual) for name in self.names}
        return Table(Dialect(), self.names, cells, range(len(cells[self.names[0]].codes)))


def _check_missing(table: Table, names: Iterable[str], advice: str) -> None:
    """Refuse columns that lack values, with the count of each."""
    lacking = {name: lacks for name in names if (lacks := table.cells[name].missing).any()}
    if lacking:
        raise ValueError(
            f"expected a value in every cell, found missing ones: {counted_missing(lacking, table)}; {advice}"
        )


def _column(table: Table, name: str, chosen: bool) -> Column:
    """What a column of the table of training is."""
    cells = table.cells[name]
    lacks, words = bool(cells.missing.any()), cells.present()
    if not chosen and not words:
        check_digits(name, cells.long)
        return Column(name, lacks=lacks)
    numbers = np.frombuffer(cells.codes, np.int64) == -1

    def first(test: Callable[[str], bool]) -> tuple[str, str]:
        row = int(np.argmax(cells.where(lambda word: not is_missing(word) and test(word))))
        return repr(cells.text(row)), table.place(row, name)

    advice = f"or pass categorical=[{name!r}] (--categorical) if the column holds categories"
    if not chosen and numbers.any():
        kind = "number"
        if numbers.sum() < cells.where(looks_like_date).sum():
            kind, row = "date", int(np.argmax(numbers))
            found, where = repr(cells.text(row)), table.place(row, name)
        else:
            found, where = first(lambda word: True)
        raise ValueError(f"expected a {kind}, as in other rows, found {found} at {where}; correct it, {advice}")
    dates = cells.where(looks_like_date).sum()
    if not chosen and dates * 2 >= (~cells.missing).sum():
        strangers = [word for word in words if not looks_like_date(word)]
        if strangers:
            found, where = first(lambda word: word == strangers[0])
            raise ValueError(f"expected a date, as in other rows, found {found} at {where}; correct it, {advice}")
        return Column(name, "date", lacks=lacks)
    for test, what, instead in (
        (is_ambiguous, "a date whose day and month cannot be told apart", "write it as 2024-03-01"),
        (lambda word: _MARKED.fullmatch(word) is not None, "a number with marks in it",
         "write plain numbers without thousands separators, units and leading zeros (and see decimal and delimiter)"),
    ):  # fmt: skip
        if not chosen and cells.where(test).sum() * 2 >= (~cells.missing).sum() and not _are_codes(words):
            found, where = first(test)
            raise ValueError(
                f"expected numbers, words or dates, found {what}, {found}, at {where}; {instead}, {advice}"
            )
    if not chosen and len(words) > max(_FEW, len(cells.codes) / 2):
        found, where = first(lambda word: True)
        raise ValueError(
            f"expected numbers, or categories that repeat, found {len(words)} different words in column {name!r}, the "
            f"first {found} at {where}; leave a column of names or text out, {advice}"
        )
    warn_of_near_equal(words, f"column {name!r}")
    return Column(name, "category", tuple(sorted(words)), lacks)


def _are_codes(words: list[str]) -> bool:
    """Whether all words are whole numbers, some with leading zeros: 00501."""
    return all(word.isdecimal() for word in words)
