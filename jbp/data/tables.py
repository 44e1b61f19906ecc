"""Own data from .csv files: a line of column names, then rows; the target is one column, features the others."""

import csv
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jbp.arguments import (
    about,
    cannot_read,
    cell_number,
    check_cells,
    check_columns,
    did_you_mean,
    existing_file,
    is_numeric,
    listed,
    no_number,
    shown_cell,
)
from jbp.data.dataset import Dataset, Part, Task, from_parts

_WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, eq=False)
class _Table:
    """What a file holds. x: float64 [n, features]; cells: the target's text; lines: where each row ends."""

    features: list[str]
    target: str
    x: np.ndarray
    cells: list[str]
    lines: list[int]

    def place(self, which: str, *index: int) -> str:
        if not index:
            return "the features" if which == "x" else f"column {self.target!r}"
        column = self.features[index[1]] if which == "x" else self.target
        return f"row {index[0] + 1} (line {self.lines[index[0]]}), column {column!r}"


def load_csv(path: str | Path, target: str | None, task: Task | None = None) -> Dataset:
    """The columns of a .csv file: `target` is y, and all others, numbers, are x; see `load_dataset`.

    Raises: ValueError if the file, its columns or its cells are not as expected.
    """
    path = existing_file(path)
    try:
        with about(path), path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            # line_num is read before the next row is; an empty line is no row.
            table = _table(((reader.line_num, row) for row in reader if row), target)
            y = _target(table.cells, task, lambda row: table.place("y", row))
            return from_parts(path.stem, Part(table.x, y, table.place), None, task, tuple(table.features))
    except csv.Error as error:
        raise ValueError(
            f"{path}: expected comma-separated text, found what is not ({error}); check quotes and encoding"
        ) from error
    except OSError as error:
        raise cannot_read(path, error) from error


def _table(rows: Iterator[tuple[int, list[str]]], target: str | None) -> _Table:
    """The numbered rows of a file, each turned into numbers at once: as text they take ten times the memory."""
    columns = _header(next(rows, (0, []))[1])
    features, target, at = _features(columns, target)
    values, cells, lines = array("d"), [], []
    for line, row in rows:
        lines.append(line)
        where = f"row {len(lines)} (line {line})"
        check_cells(row, columns, where)
        cells.append(row.pop(at).strip())
        try:
            values.extend([cell_number(cell) for cell in row])
        except ValueError:
            bad = next(i for i, cell in enumerate(row) if not is_numeric(cell))
            raise no_number(row[bad], f"{where}, column {features[bad]!r}") from None
    if not lines:
        raise ValueError("expected rows of examples below the column names, found none; add them")
    x = np.frombuffer(values, np.float64).reshape(len(lines), len(features))
    return _Table(features, target, x, cells, lines)


def _header(row: list[str]) -> list[str]:
    columns = [name.strip() for name in row]
    if not columns:
        raise ValueError("expected a line of column names first, found only empty lines; add it and the data")
    if "" in columns:
        raise ValueError(
            f"expected a name for every column, found none for column {columns.index('') + 1}; "
            "name it, or leave it out if it only counts the rows (pandas: index=False)"
        )
    check_columns(columns)
    return columns


def _features(columns: list[str], target: str | None) -> tuple[list[str], str, int]:
    """The columns that are not the target, that one, and where it is."""
    if target is None:
        raise ValueError(
            f"expected a target, the column to predict, and none was given; name one of the columns {listed(columns)}"
        )
    if target not in columns:
        hint = did_you_mean(target, columns)
        if all(map(is_numeric, columns)):
            hint = "; the first line must name the columns"
        elif len(columns) == 1:
            hint = "; separate columns by commas"
        raise ValueError(f"expected the target to be a column, found no {target!r} among {listed(columns)}{hint}")
    if len(columns) == 1:
        raise ValueError(
            f"expected columns beside the target {target!r}, found no other; add some, separated by commas"
        )
    at = columns.index(target)
    return columns[:at] + columns[at + 1 :], target, at


def _target(cells: list[str], task: Task | None, place: Callable[[int], str]) -> np.ndarray:
    """The target's cells as whole numbers if all are, else as numbers if all are, else as text."""
    text = np.array([not is_numeric(cell) for cell in cells])
    if text.all() or (text.any() and task == "classification"):
        return np.array(cells)
    if text.any():
        # One typing error among numbers must not turn every number into a class.
        row = int(np.argmax(text))
        advice = "correct it, or pass task='classification'" if task is None else "correct it, or remove the row"
        raise ValueError(
            f"expected a number, as in other rows, found {shown_cell(cells[row])} at {place(row)}; {advice}"
        )
    if all(map(_WHOLE.fullmatch, cells)):
        whole = [int(cell) for cell in cells]
        if max(map(abs, whole)) < 2**63:
            return np.array(whole, np.int64)
    return np.array([float(cell) for cell in cells])
