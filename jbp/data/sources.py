"""One name for every source of data: a built-in set, an .npz file or a .csv file."""

from pathlib import Path

from jbp.arguments import unknown_data
from jbp.data.builtin import NAMES, classes, load
from jbp.data.dataset import Dataset, checked_task
from jbp.data.npz import load_npz
from jbp.data.tables import load_csv


def load_dataset(source: str | Path, *, target: str | None = None, task: str | None = None) -> Dataset:
    """A Dataset from a built-in name ("digits", "mnist", "fashion-mnist") or a path ending .npz or .csv.

    .npz: arrays x_train [n, ...], y_train [n] or [n, m], and optionally x_test, y_test. .csv: a line of
    column names, then rows; `target` names the column to predict, all others are numbers. Values are taken as
    they are, not scaled.

    Text and whole numbers are labels (classification), other numbers values to predict (regression); `task`
    overrides that, and then labels may be written 1.0. Labels may be any whole numbers from 0, or text, and
    become 0 to k−1 in sorted order. Where the file has no test part, a fifth of its rows becomes it: seed 0,
    the same share of every class.

    Raises: ValueError saying what was expected, what came, where, and what to do.
    """
    checked = checked_task(task)
    name = str(source)
    suffix = "" if name in NAMES else Path(source).suffix.lower()
    if target is not None and suffix != ".csv":
        raise ValueError(f"expected a target only with a .csv file, got {target!r} with {name!r}; leave it out")
    if suffix == ".csv":
        return load_csv(source, target, checked)
    if suffix == ".npz":
        return load_npz(source, checked)
    if name not in NAMES:
        raise unknown_data(name, NAMES)
    if checked == "regression":
        raise ValueError(f"expected task='classification' for {name!r}, whose targets are labels, got 'regression'")
    return Dataset(name, "classification", *load(name, "train"), *load(name, "test"), classes(name))
