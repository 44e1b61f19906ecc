"""One name for every source of data: a built-in set, an .npz file or a table of text."""

from collections.abc import Sequence
from pathlib import Path

from jbp.arguments import unknown_data
from jbp.data.builtin import NAMES, classes, load
from jbp.data.cells import Dialect
from jbp.data.columns import Missing
from jbp.data.dataset import Dataset, checked_task
from jbp.data.folders import load_folder
from jbp.data.npz import load_npz
from jbp.data.tables import SUFFIXES, Reading, load_table


def load_dataset(
    source: str | Path,
    *,
    target: str | None = None,
    task: str | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
    missing: Missing | None = None,
    categorical: Sequence[str] = (),
) -> Dataset:
    """A Dataset from a built-in name ("digits", "mnist", "fashion-mnist"), a path ending .npz, .csv or .tsv, a folder.

    .npz: arrays x_train [n, ...], y_train [n] or [n, m], and optionally x_test, y_test. A folder, for data larger than
    memory: the same arrays as .npy files, x_train.npy and so on, or as shards, x_train-000.npy, x_train-001.npy, …; x
    is read when it is asked for, and y now, which takes up to 8 bytes a value. A table: a line of column
    names, then rows; `target` names the column to predict, all others are the input. Values are taken as they are, not
    scaled.

    A column of numbers is one feature; of dates (2024-03-01, 2024-03-01T14:30, 1.3.2024) the days since 1970-01-01; of
    words, of whole numbers with leading zeros, and any that `categorical` names, a column of 0 and 1 for each word.
    Where a value is missing (empty, ?, NA, N/A, null, nan) `missing` says what to do: None refuses, with the count of
    each column; "mean" takes the mean over the training part; "indicator" also adds a column of 0 and 1 that says so.
    `delimiter` (a character, "comma", "semicolon", "tab" or "bar") and `decimal` ("." or ",") are found where the file
    leaves no doubt. Spaces around a cell are no part of it.

    Text and whole numbers are labels (classification), other numbers values to predict (regression); `task`
    overrides that, and is asked for where whole numbers may be either. Labels may be any whole numbers, or text, which
    a whole number with a leading zero is; they become 0 to k−1 in sorted order, and `classes` has them as they are
    written. Where the file has no test part, a fifth of its rows becomes it: seed 0, the same share of every class;
    of fewer than seven rows none.

    Raises: ValueError saying what was expected, what came, where, and what to do.
    Warns: UserWarning of labels or categories that differ only in case, in spaces, or in how they are written.
    """
    checked = checked_task(task)
    name = str(source)
    suffix = "" if name in NAMES else Path(source).suffix.lower()
    if suffix in SUFFIXES:
        if isinstance(categorical, str):
            raise ValueError(f"categorical must be a sequence of column names, but is {categorical!r}")
        reading = Reading(Dialect(delimiter, decimal), missing, tuple(categorical))
        return load_table(source, target, checked, reading)
    given = {
        "target": target,
        "delimiter": delimiter,
        "decimal": decimal,
        "missing": missing,
        "categorical": categorical,
    }
    for option, value in given.items():
        if value:
            raise ValueError(
                f"expected a {option} only with a .csv or .tsv file, got {value!r} with {name!r}; leave it out"
            )
    if suffix == ".npz":
        return load_npz(source, checked)
    if name not in NAMES and Path(source).is_dir():
        return load_folder(source, checked)
    if name not in NAMES:
        raise unknown_data(name, NAMES, ", or a folder with x_train.npy")
    if checked == "regression":
        raise ValueError(f"expected task='classification' for {name!r}, whose targets are labels, got 'regression'")
    return Dataset(name, "classification", *load(name, "train"), *load(name, "test"), classes(name))
