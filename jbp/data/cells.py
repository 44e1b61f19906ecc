"""Tables of text, column by column as they stand in the file: how a line is cut, and what a cell holds."""

import csv
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jbp.arguments import about, cannot_read, check_cells, check_columns, existing_file, listed, too_few_left
from jbp.data.labels import LEADING_ZERO
from jbp.data.precision import LOOKED_AT

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
DECIMALS = (".", ",")
_MISSING = {"", "?", "NA", "N/A", "n/a", "#N/A", "null", "NULL"}
_COMMA_NUMBER = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+")
_LEADING_ZERO_LINE = re.compile(r"^\s*[+-]?0[0-9]+\s*$", re.MULTILINE)
_BLOCK = 1024  # rows whose text is held at once
_EXACT = 15  # decimal digits that float64 always tells apart


def is_missing(word: str) -> bool:
    """Whether a cell's text says that there is no value: empty, ?, NA, N/A, null, nan."""
    return word in _MISSING or word.lstrip("+-").lower() == "nan"


@dataclass(frozen=True)
class Dialect:
    """How numbers and columns are written. None: as the file shows, which must leave no doubt.

    Raises: ValueError for what cannot be one.
    """

    delimiter: str | None = None
    decimal: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", DELIMITERS.get(self.delimiter, self.delimiter).replace("\\t", "\t"))
        if self.delimiter is not None and (
            len(self.delimiter) != 1 or self.delimiter in '"\r\n.' or self.delimiter.isalnum()
        ):
            raise ValueError(
                f"delimiter must be one character, or one of {', '.join(DELIMITERS)}, but is {self.delimiter!r}"
            )
        if self.decimal not in (None, *DECIMALS):
            raise ValueError(f"decimal must be '.' or ',', but is {self.decimal!r}")


@dataclass
class Cells:
    """One column, cell by cell: a number, or a word. With `textual` every cell is a word."""

    decimal: str = "."
    textual: bool = False
    numbers: array = field(default_factory=lambda: array("d"))
    """NaN where the cell is a word."""
    codes: array = field(default_factory=lambda: array("q"))
    """The word of a cell, −1 where it is a number."""
    words: dict[str, int] = field(default_factory=dict)
    spellings: dict[str, set[str]] = field(default_factory=dict)
    """Of words with spaces around them, as they are written."""
    pointed: int | None = None
    """The first row with a number that has a decimal point."""
    long: dict[float, set[str]] = field(default_factory=dict)
    """Numbers of more digits than float64 always tells apart, as they are written."""

    def extend(self, block: Sequence[str]) -> None:
        """More rows."""
        if not self.textual and not self._plain_numbers(block):
            for cell in block:
                self._add(cell)
        elif self.textual:
            for cell in block:
                self._add_word(cell)

    def _plain_numbers(self, block: Sequence[str]) -> bool:
        """Take in a block of nothing but short plain numbers at once, ten times as fast as one by one."""
        text = "\n".join(block)
        if self.decimal != "." or "_" in text or _LEADING_ZERO_LINE.search(text) or max(map(len, block)) > _EXACT:
            return False
        try:
            values = array("d", map(float, block))
        except ValueError:
            return False
        if np.isnan(values).any():
            return False
        if self.pointed is None and "." in text:
            self.pointed = len(self.codes) + next(i for i, cell in enumerate(block) if "." in cell)
        self.numbers.extend(values)
        self.codes.extend([-1] * len(block))
        return True

    def _add(self, cell: str) -> None:
        try:
            value = self._number(cell)
        except ValueError:
            self._add_word(cell)
            return
        self.numbers.append(value)
        self.codes.append(-1)

    def _add_word(self, cell: str) -> None:
        word = cell.strip()
        if word != cell or word in self.spellings:
            self.spellings.setdefault(word, {word} if word in self.words else set()).add(cell)
        self.numbers.append(np.nan)
        self.codes.append(self.words.setdefault(word, len(self.words)))

    def _number(self, cell: str) -> float:
        """The number in a cell; a bare ValueError if it is a word, nothing, or a whole number with a leading zero."""
        if self.decimal == ",":
            if "." in cell:
                raise ValueError
            cell = cell.replace(",", ".")
        value = float(cell)
        # Python's float also reads 1_000, which in a table is more likely a slip than a thousand.
        if "_" in cell or value != value or LEADING_ZERO.fullmatch(cell.strip()):
            raise ValueError
        if self.pointed is None and "." in cell:
            self.pointed = len(self.codes)
        if len(cell) > _EXACT and len(self.long) < LOOKED_AT:
            self.long.setdefault(value, set()).add(cell.strip())
        return value

    @property
    def missing(self) -> np.ndarray:
        """Where there is no value, [n]."""
        return self.where(is_missing)

    def where(self, test: Callable[[str], bool]) -> np.ndarray:
        """Where the cell is a word for which the test holds, [n]."""
        holds = np.array([*map(test, self.words), False])
        return holds[np.frombuffer(self.codes, np.int64)]  # −1 is the last

    def text(self, row: int) -> str:
        """The word of a row; a number as Python writes it."""
        code = self.codes[row]
        return next(word for word, i in self.words.items() if i == code) if code >= 0 else f"{self.numbers[row]:.17g}"

    def present(self) -> list[str]:
        """The words that are values, in the order of their first rows."""
        return [word for word in self.words if not is_missing(word)]

    @classmethod
    def of(cls, values: Iterable[Any], textual: bool) -> "Cells":
        """Cells in Python: numbers, text, None for a missing one."""
        cells = cls(textual=textual)
        cells.extend(["" if value is None else str(value) for value in values])
        return cells


def check_digits(name: str, long: Mapping[float, set[str]]) -> None:
    """Refuse a column whose numbers, `long` as they are written, are one in float64.

    Raises: ValueError naming the column.
    """
    many, left = sum(len(set(map(Decimal, texts))) for texts in long.values()), len(long)
    if too_few_left(many, left):
        raise ValueError(
            f"column {name!r}: expected different numbers to stay different, but {many} different ones are {left} as "
            "float64, which holds 15 to 17 digits; subtract an offset, or leave the column out"
        )


@dataclass
class Table:
    """The columns that were read, and the line that each row ends on."""

    dialect: Dialect
    columns: tuple[str, ...]
    cells: dict[str, Cells]
    lines: Sequence[int]

    def place(self, row: int, name: str) -> str:
        """Where a cell is, counted as an editor does."""
        return f"row {row + 1} (line {self.lines[row]}), column {name!r}"


def read_table(
    path: str | Path, dialect: Dialect, wanted: Callable[[list[str]], Iterable[str]], textual: Collection[str],
    beside: Collection[str],
) -> Table:  # fmt: skip
    """The columns that `wanted` picks from the names of all (which may refuse them); those in `textual` as words.

    Where the dialect is open, the delimiter is the one under which the names in `beside` are columns, and the decimal
    sign is found from the numbers.

    Raises: ValueError if the file, its shape, or how it is written is not as expected.
    """
    path = existing_file(path)
    with _reading(path):
        delimiter = dialect.delimiter or _delimiter(path, beside)
        table = _read(path, Dialect(delimiter, dialect.decimal or "."), wanted, textual)
        if dialect.decimal is None and _has_decimal_commas(table):
            table = _read(path, Dialect(delimiter, ","), wanted, textual)
        return table


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        with about(path):
            yield
    except csv.Error as error:
        raise ValueError(
            f"{path}: expected a table of text, found what is not ({error}); check quotes and encoding"
        ) from error
    except OSError as error:
        raise cannot_read(path, error) from error


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file, the line of names first, each with the line it ends on; an empty line is no row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        for row in reader:
            if row:
                yield reader.line_num, row


def _read(
    path: Path, dialect: Dialect, wanted: Callable[[list[str]], Iterable[str]], textual: Collection[str]
) -> Table:
    assert dialect.delimiter and dialect.decimal
    rows = _rows(path, dialect.delimiter)
    columns = [name.strip() for name in next(rows, (0, []))[1]]
    if not columns:
        raise ValueError("expected a line of column names first, found only empty lines; add it and the data")
    names = list(wanted(columns))
    check_columns([name for name in columns if name in names])
    cells = {name: Cells(dialect.decimal, name in textual) for name in names}
    takers, lines = [(columns.index(name), cells[name]) for name in names], array("q")
    while block := list(islice(rows, _BLOCK)):
        for line, row in block:
            lines.append(line)
            if len(row) != len(columns):
                check_cells(row, columns, f"row {len(lines)} (line {line})")
        for at, column in takers:
            column.extend([row[at] for _, row in block])
    if not lines:
        raise ValueError("expected rows of examples below the column names, at least a row, found none; add them")
    return Table(dialect, tuple(columns), cells, lines)


def _delimiter(path: Path, beside: Collection[str]) -> str:
    """The delimiter under which the first line has the names; where none has, the one that cuts it most."""
    names = {d: [name.strip() for name in next(_rows(path, d), (0, []))[1]] for d in DELIMITERS.values()}
    fits = [d for d in names if len(names[d]) > 1 and beside and all(name in names[d] for name in beside)]
    return fits[0] if fits else max(names, key=lambda d: len(names[d]))


def _has_decimal_commas(table: Table) -> bool:
    """Whether the numbers of a table are written 1,5.

    Raises: ValueError where that cannot be told: 1,500 alone may be either, and 1,5 beside 1.5 both.
    """
    found: list[tuple[str, int]] = []  # of each column of such numbers, the row of the first that is no thousand
    for name, cells in table.cells.items():
        commas = cells.where(lambda word: _COMMA_NUMBER.fullmatch(word) is not None)
        numbers = np.frombuffer(cells.codes, np.int64) == -1
        if cells.textual:
            numbers = cells.where(lambda word: word.isdecimal())
        if commas.any() and (commas | numbers).sum() * 2 > (~cells.missing).sum():
            plain = commas & ~cells.where(lambda word: _THOUSANDS.fullmatch(word) is not None)
            found.append((name, int(np.argmax(plain if plain.any() else commas))))
    if not found:
        return False
    advice = "say which by decimal=',' or decimal='.'"
    sure = [at for at in found if not _THOUSANDS.fullmatch(table.cells[at[0]].text(at[1]))]
    name, row = (sure or found)[0]
    comma = f"{table.cells[name].text(row)!r} at {table.place(row, name)}"
    if not sure:
        raise ValueError(
            f"expected numbers that can be read in one way, found {comma}, which may have a decimal comma or mark "
            f"thousands; {advice}, and remove marks of thousands"
        )
    pointed = next(((n, c.pointed) for n, c in table.cells.items() if c.pointed is not None), None)
    if pointed:
        other = f"{table.cells[pointed[0]].text(pointed[1])!r} at {table.place(pointed[1], pointed[0])}"
        raise ValueError(
            f"expected numbers with one decimal sign, found {comma} and {other}; {advice}, or correct them"
        )
    return True


def counted_missing(missing: Mapping[str, np.ndarray], table: Table) -> str:
    """How many values each column lacks, and where the first is."""
    name = next(iter(missing))
    row = int(np.argmax(missing[name]))
    word = table.cells[name].text(row)
    counts = listed(f"{column} {int(rows.sum())}" for column, rows in missing.items())
    return f"{counts} (the first, {repr(word) if word else 'an empty cell'}, at {table.place(row, name)})"
