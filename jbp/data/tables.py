"""Own data from .csv and .tsv files: a line of column names, then rows; one column is the target, the others are x."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jbp.arguments import about, check_one_of, did_you_mean, is_numeric, listed, shown_cell
from jbp.data import labels
from jbp.data.cells import Dialect, Table, check_digits, is_missing, read_table
from jbp.data.columns import MISSING, Columns, Missing
from jbp.data.dataset import Dataset, Part, Task, from_parts

SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class Reading:
    """How a table is read: how it is written, what is done where a value is missing, and which numbers are categories.

    Raises: ValueError for what cannot be.
    """

    dialect: Dialect = field(default_factory=Dialect)
    missing: Missing | None = None
    categorical: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.missing is not None:
            check_one_of(self.missing, "missing", MISSING)


def load_table(
    path: str | Path, target: str | None, task: Task | None = None, reading: Reading | None = None
) -> Dataset:
    """The columns of a file: `target` is y, and all others are x; see `load_dataset`.

    Raises: ValueError if the file, its columns or its cells are not as expected.
    """
    path, reading = Path(path), reading or Reading()

    def wanted(columns: list[str]) -> list[str]:
        _check_names(columns, target, reading.categorical)
        return columns

    beside = [] if target is None else [target]
    textual = {*reading.categorical, *beside}
    table = read_table(path, reading.dialect, wanted, textual, beside)
    assert target is not None  # _check_names refuses none
    zeros = {name for name, cells in table.cells.items() if any(map(labels.LEADING_ZERO.fullmatch, cells.words))}
    if zeros - textual:  # such whole numbers are text, and then their neighbours are too
        table = read_table(path, table.dialect, wanted, textual | zeros, beside)
    with about(path):
        names = [name for name in table.columns if name != target]
        columns = Columns.of(table, names, reading.categorical, reading.missing)
        x, y = columns.numbers(table), _target(table, target, task)

        def place(which: str, *index: int) -> str:
            if not index:
                return "the features" if which == "x" else f"column {target!r}"
            return table.place(index[0], columns.features[index[1]] if which == "x" else target)

        data = from_parts(path.stem, Part(x, y, place, reading.missing is not None), None, task)
        columns = columns.learn_missing(data.x_train)
    return dataclasses.replace(
        data,
        x_train=columns.fill(data.x_train),
        x_test=None if data.x_test is None else columns.fill(data.x_test),
        features=columns.features,
        columns=columns,
        notes=(*_notes(table, columns), *data.notes),
    )


def _check_names(columns: list[str], target: str | None, categorical: Sequence[str]) -> None:
    if "" in columns:
        raise ValueError(
            f"expected a name for every column, found none for column {columns.index('') + 1}; "
            "name it, or leave it out if it only counts the rows (pandas: index=False)"
        )
    if target is None:
        raise ValueError(
            f"expected a target, the column to predict, and none was given; name one of the columns {listed(columns)}"
        )
    if target not in columns:
        hint = did_you_mean(target, columns)
        if all(map(is_numeric, columns)):
            hint = "; the first line must name the columns"
        elif len(columns) == 1:
            hint = "; separate columns by commas, or say by what with delimiter"
        raise ValueError(f"expected the target to be a column, found no {target!r} among {listed(columns)}{hint}")
    if len(columns) == 1:
        raise ValueError(
            f"expected columns beside the target {target!r}, found no other; add some, separated by commas"
        )
    for name in categorical:
        if name not in columns or name == target:
            what = "the target" if name == target else "none"
            raise ValueError(
                f"expected categorical to name columns beside the target, found {what} under {name!r}"
                f"{did_you_mean(name, columns)}"
            )


def _target(table: Table, target: str, task: Task | None) -> np.ndarray:
    """The target's cells as whole numbers if all are, else as numbers if all are, else as text."""
    cells, point = table.cells[target], table.dialect.decimal or "."

    def number(word: str) -> str:
        return word if point == "." else "" if "." in word else word.replace(",", ".")

    def place(row: int) -> str:
        return table.place(row, target)

    words = list(cells.words)
    text = np.array([not is_numeric(number(word)) for word in words])
    codes = np.frombuffer(cells.codes, np.int64)
    if text.all() or task == "classification":
        _warn_of_labels(cells.words, cells.spellings, target)
        return labels.from_cells(np.array(words)[codes], place)
    if text.any():
        # One typing error among numbers must not turn every number into a class.
        row = int(np.argmax(text[codes]))
        advice = "correct it, or pass task='classification'" if task is None else "correct it, or remove the row"
        raise ValueError(
            f"expected a number, as in other rows, found {shown_cell(words[codes[row]])} at {place(row)}; {advice}"
        )
    if task is None and all(map(labels.WHOLE.fullmatch, words)):
        _warn_of_labels(cells.words, cells.spellings, target)
        return labels.from_cells(np.array(words)[codes], place)
    long: dict[float, set[str]] = {}
    for word in words:
        if np.isfinite(float(number(word))):
            long.setdefault(float(number(word)), set()).add(number(word))
    check_digits(target, long)
    return np.array([float(number(word)) for word in words])[codes]


def _warn_of_labels(words: Iterable[str], spellings: Mapping[str, set[str]], target: str) -> None:
    """Warn of labels that the file may have meant as two, or as none."""
    what = f"column {target!r}"
    spaced = {word: found for word, found in spellings.items() if len(found) > 1}
    if spaced:
        labels.warn(f"{what}: labels that differ only in the spaces around them are taken as one: {listed(spaced, 5)}")
    if odd := [word for word in words if word and is_missing(word)]:
        labels.warn(
            f"{what}: {listed(map(repr, odd))} is taken as a class; remove the rows if a label is missing there"
        )


def _notes(table: Table, columns: Columns) -> tuple[str, ...]:
    """What was understood that a reader of the file may have meant otherwise."""
    found = []
    names = {";": "semicolons", "\t": "tabs", "|": "bars"}
    if table.dialect.delimiter in names:
        found.append(f"columns are separated by {names[table.dialect.delimiter]}")
    if table.dialect.decimal == ",":
        found.append("numbers have a decimal comma")
    dates = [column.name for column in columns.columns if column.kind == "date"]
    if dates:
        found.append(f"dates are taken as days since 1970-01-01: {listed(dates)}")
    kinds = [f"{c.name} ({len(c.categories)})" for c in columns.columns if c.kind == "category"]
    if kinds:
        found.append(f"categories become a column of 0 and 1 each: {listed(kinds)}")
    lacking = [f"{c.name} {int(table.cells[c.name].missing.sum())}" for c in columns.columns if c.lacks]
    if lacking:
        how = " and marked in a column of their own" if columns.missing == "indicator" else ""
        found.append(f"missing values are filled with the mean of the training part{how}: {listed(lacking)}")
    return tuple(found)


def load_rows(path: str | Path, columns: Columns, dialect: Dialect, unknown: str = "refuse") -> np.ndarray:
    """The rows of a file as numbers, float64 [n, features], its other columns ignored.

    Raises: ValueError if a column is missing, or a cell is not what the column holds.
    """

    def wanted(names: list[str]) -> tuple[str, ...]:
        missing = [name for name in columns.names if name not in names]
        if missing:
            hint = did_you_mean(missing[0], names)
            raise ValueError(
                f"expected the columns the run was trained on, found none named {listed(missing)}{hint}; add them"
            )
        return columns.names

    dialect = dataclasses.replace(dialect, decimal=dialect.decimal or columns.decimal)
    table = read_table(path, dialect, wanted, columns.textual, columns.names)
    with about(path):
        return columns.encode(table, unknown)
