# ruff: noqa: RUF009 (option and argument declare fields)
"""`jbp predict`: what a trained network says about new examples, as comma-separated text."""

from __future__ import annotations

import csv
import io
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jbp.arguments import about, check_new, existing_file, listed, no_npz, unknown_data
from jbp.checkpoint import Run, load_run
from jbp.cli.parser import Command, argument, layers_option, option
from jbp.data.bounds import Bounds
from jbp.data.builtin import NAMES, load
from jbp.data.cells import DECIMALS, Dialect
from jbp.data.columns import UNKNOWN
from jbp.data.precision import as_numbers, in_full
from jbp.data.tables import SUFFIXES, load_rows
from jbp.files import write_atomically

_ARRAYS = ("x", "x_test", "x_train")


@dataclass(frozen=True)
class Predict(Command):
    """Predict with a trained network; calling it gives an array [n, k]: probabilities or scores, or values."""

    run: str | Path = argument("folder of a run, as jbp train left it", "RUN")
    data: str | Path = argument(
        "a .csv or .tsv file with the run's columns by name (others are ignored), a .npz file with an array x (else "
        "x_test, else x_train), or digits, mnist, fashion-mnist, of which the test part is taken", "DATA",
    )  # fmt: skip
    layers: str | Path | None = layers_option()
    unknown: str = option("refuse", "a category that training has not seen: refuse it, or ignore (none of those seen)",
                          "data", choices=UNKNOWN, metavar="NAME")  # fmt: skip
    delimiter: str | None = option(None, "between columns: a character, or comma, semicolon, tab, bar", "data",
                                   metavar="CHAR", shown="found from the first line")  # fmt: skip
    decimal: str | None = option(None, "decimal sign: . or ,", "data", choices=DECIMALS, metavar="CHAR",
                                 shown="found from the numbers")  # fmt: skip
    out: str | Path | None = option(None, "file to write, which must not exist", "output", metavar="FILE",
                                    shown="standard output")  # fmt: skip
    overwrite: bool = option(False, "replace FILE", "output")
    quiet: bool = option(False, "print nothing but predictions and errors", "output")

    summary: ClassVar[str] = "write what a trained network predicts, as comma-separated text"
    epilog: ClassVar[str] = """A line of column names comes first. Classification: the class, then each
class's probability (or score, where the loss makes no probabilities).
Regression: the values, in the units of the training data.

example:
  jbp predict runs/houses new-houses.csv --out predictions.csv
"""

    def __call__(self) -> np.ndarray:
        """Write the predictions.

        Raises: ValueError if the run or the data are not as expected, or the file exists; OSError if it cannot be
            written.
        """
        out = None if self.out is None else Path(self.out)
        if out is not None and out.is_dir():
            raise ValueError(f"{out}: expected a file to write, found a folder; name a file in it")
        if out is not None:
            check_new(out, self.overwrite)
        run = load_run(self.run, self.layers)
        if run.vocabulary is not None:
            raise ValueError(
                f"{self.run}: the run is of a text, which jbp generate goes on with: jbp generate {self.run}"
            )
        x = load_features(self.data, run, Dialect(self.delimiter, self.decimal), self.unknown)
        with about(self.data):
            predicted = run.predict(x)
        bounds = run.preprocessing
        if isinstance(bounds, Bounds) and (outside := bounds.outside(x)) and not self.quiet:
            words = f"{outside:,} of {x.size:,} values lie outside the bounds of training, and are clipped"
            print(words, file=sys.stderr)
        text = as_csv(run, predicted)
        if out is None:
            sys.stdout.write(text)
        else:
            write_atomically(out, text.encode())
            if not self.quiet:
                print(f"{len(predicted)} predictions in {out}", file=sys.stderr)
        return predicted


def as_csv(run: Run, predicted: np.ndarray) -> str:
    """Predictions as comma-separated text, a line of names first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    unknown = np.flatnonzero(np.isnan(predicted).any(tuple(range(1, predicted.ndim))))
    if len(unknown):
        raise ValueError(
            f"the net says nothing of {len(unknown)} of {len(predicted)} rows, for its outputs are NaN, first in row "
            f"{unknown[0] + 1}: leave out rows far beyond the data of training"
        )
    if run.task == "classification":
        writer.writerow(["class", *(f"{run.output_kind}_{name}" for name in run.classes)])
        for best, row in zip(predicted.argmax(1), predicted, strict=True):
            writer.writerow([run.classes[best], *(f"{p:.6g}" for p in row)])
    else:
        writer.writerow(run.targets)
        writer.writerows([in_full(value) for value in row] for row in predicted)
    return buffer.getvalue()


def load_features(data: str | Path, run: Run, dialect: Dialect, unknown: str) -> np.ndarray:
    """Examples to predict, as they are in the data: [n, ...].

    Raises: ValueError saying what was expected, what came, where, and what to do.
    """
    if str(data) in NAMES:
        return load(str(data), "test")[0]
    suffix = Path(data).suffix.lower()
    if suffix in SUFFIXES and run.columns is None:
        raise ValueError(
            f"{data}: expected an .npz file with an array x, for the run was trained on data without column names, "
            f"got a {suffix} file; store its numbers with numpy.savez(file, x=...)"
        )
    if suffix in SUFFIXES and run.columns is not None:
        return load_rows(data, run.columns, dialect, unknown)
    if suffix != ".npz":
        raise unknown_data(str(data), NAMES)
    path = existing_file(data)
    try:
        return _from_npz(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path}: expected a whole .npz file, found a damaged one ({error})") from error


def _from_npz(path: Path) -> np.ndarray:
    if not zipfile.is_zipfile(path):
        raise no_npz(path)
    with about(path), np.load(path, allow_pickle=False) as stored:
        name = next((name for name in _ARRAYS if name in stored.files), None)
        if name is None:
            raise ValueError(
                f"expected an array named {', '.join(_ARRAYS[:-1])} or {_ARRAYS[-1]}, "
                f"found {listed(stored.files) or 'none'}; rename it x"
            )
        with about(name):
            return _checked(np.asarray(stored[name]))


def _checked(x: Any) -> np.ndarray:
    """x as float32 or float64, if it is numbers, all finite."""
    if x.dtype.kind not in "biuf" or x.ndim < 2 or not len(x):
        raise ValueError(f"expected numbers [rows, columns…], at least a row, found {x.dtype} of shape {x.shape}")

    def place(*index: int) -> str:
        return f"row {index[0] + 1}, column {', '.join(str(i + 1) for i in index[1:])}" if index else "x"

    return as_numbers(x, place)
