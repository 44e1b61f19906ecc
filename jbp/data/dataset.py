"""`Dataset`, and the checks every table passes on its way to become one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from jbp.arguments import did_you_mean, listed
from jbp.data import labels
from jbp.data.columns import Columns
from jbp.data.precision import as_numbers
from jbp.data.preparing import split
from jbp.rows import Rows

Task = Literal["classification", "regression"]
TASKS: tuple[Task, ...] = ("classification", "regression")

# The test part of a table that comes without one, by `split` with this seed. Part of a run's meaning: not to
# change.
TEST_FRACTION, TEST_SEED = 0.2, 0
FEWEST = 7
"""Rows of which a fifth, and then a tenth of the rest, can be held out; fewer all train."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples of one task.

    x_train, x_test: [n, ...], as stored or in [0, 1] for built-in images, never standardised here: float32 where that
    holds every value of what is stored (float16, float32, whole numbers of 8 or 16 bits), else float64, because an
    offset must be taken away before anything is rounded.
    y_train, y_test: for classification int32 [n], an index into `classes`; for regression float64 [n, m].
    classes: what the labels mean, as they are written, in their order; () for regression. features: names of the
    columns of x, () if they have none. columns: how rows of a table become x. notes: what was understood of the source.
    The test part is None where there are too few rows to hold any out. Of a folder x_train and x_test are `Rows`, which
    are read when they are asked for.
    """

    name: str
    task: Task
    x_train: Any
    y_train: np.ndarray
    x_test: Any = None
    y_test: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    columns: Columns | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Part:
    """Raw x and y of one part, and how its source names places: `place("x", row, column…)`, `place("y")`."""

    x: np.ndarray | Rows
    y: np.ndarray
    place: Callable[..., str]
    may_miss: bool = False
    """Whether x may hold NaN, for values that are missing."""


def checked_task(task: str | None) -> Task | None:
    """The task, if it is one or None.

    Raises: ValueError for another word, with the nearest one.
    """
    if task is None:
        return None
    for known in TASKS:
        if task == known:
            return known
    hint = did_you_mean(str(task), TASKS)
    raise ValueError(f"unknown task {task!r}: expected 'classification' or 'regression'{hint}")


def from_parts(name: str, train: Part, test: Part | None, task: Task | None) -> Dataset:
    """A Dataset from raw arrays, each value checked; without a test part, a fifth of the rows becomes it.

    That fifth is chosen by `split` with seed 0, stratified in classification; fewer than seven rows have none. Without
    a task, text and whole numbers are labels and other numbers are values to predict.

    Raises: ValueError naming the place of the first thing that is wrong.
    """
    read: tuple[str, ...] = ()
    if task is None:
        task = "regression" if train.y.dtype.kind == "f" else "classification"
        labels.check_task_is_plain(train.y, train.place)
        if labels.might_be_labels(train.y):
            read = (
                f"{train.place('y')} is taken for values to predict, for its whole numbers are written with a point: "
                "pass task='classification' (--task classification) if they are labels",
            )
    prepare = _labels if task == "classification" else _values
    x_train, y_train = _inputs(train), prepare(train)
    x_test = y_test = None
    if test is not None:
        x_test, y_test = _inputs(test), prepare(test)
        for ours, theirs, what in ((x_train, x_test, "x"), (y_train, y_test, "y")):
            if ours.shape[1:] != theirs.shape[1:]:
                raise ValueError(
                    f"expected {what}_test's rows to have the shape of {what}_train's, {ours.shape[1:]}, "
                    f"found {theirs.shape[1:]}; give both the same columns"
                )
    names, notes = (), ()
    if task == "classification":
        known, y_train = np.unique(y_train, return_inverse=True)
        if len(known) < 2:
            raise ValueError(f"expected labels of two classes or more, found only {known[0]}; give examples of another")
        names, y_train = tuple(str(label) for label in known), y_train.astype(np.int32)
        labels.warn_of_near_equal(names, train.place("y"))
        if test is not None and y_test is not None:
            y_test = _known_labels(known, y_test, test)
    n = len(x_train)
    if x_test is None and 2 <= n < FEWEST:
        notes = (f"{n} rows are too few to hold any out: all of them train, and the figures are theirs",)
    elif x_test is None:
        try:
            x_train, y_train, x_test, y_test = split(x_train, y_train, TEST_FRACTION, TEST_SEED)
        except ValueError as error:
            raise ValueError(
                f"expected enough rows to hold out a fifth as the test part, found only {n}"
                f"{f' of {len(names)} classes' if names else ''}; give more"
            ) from error
    return Dataset(name, task, x_train, y_train, x_test, y_test, names, notes=(*read, *notes))


def _inputs(part: Part) -> np.ndarray | Rows:
    """x [n, ...] as float32 or float64, finite, with a row for each of y; Rows are gone through, and stay Rows."""
    x = part.x
    if x.dtype.kind not in "biuf" or x.ndim < 2:
        raise ValueError(
            f"expected {part.place('x')} to be numbers [rows, columns…], found {x.dtype} of shape {x.shape}; "
            "store text as numbers, and a single column as [rows, 1]"
        )
    if part.y.ndim == 0 or len(x) != len(part.y):
        raise ValueError(
            f"expected {part.place('x')} and {part.place('y')} to have equally many rows, "
            f"found shapes {x.shape} and {part.y.shape}; give each row of x its y"
        )
    if 0 in x.shape:
        raise ValueError(f"expected {part.place('x')} to have rows and columns, found shape {x.shape}; give examples")
    if isinstance(x, Rows):
        first = 0
        for block in x.blocks():
            as_numbers(block, partial(_place_beyond, part.place, first))
            first += len(block)
        return x.mapped(partial(as_numbers, place=partial(part.place, "x")))
    return as_numbers(x, partial(part.place, "x"), part.may_miss)


def _place_beyond(place: Callable[..., str], first: int, *index: int) -> str:
    """A place in a block of x that begins with row `first`."""
    return place("x", first + index[0], *index[1:]) if index else place("x")


def _values(part: Part) -> np.ndarray:
    """What regression predicts, as float64 [n, m]."""
    y = part.y
    if y.dtype.kind not in "biuf" or y.ndim > 2:
        raise ValueError(
            f"expected {part.place('y')} to be numbers [rows] or [rows, outputs] for regression, "
            f"found {_kind(y)} of shape {y.shape}; pass task='classification' for labels"
        )
    return as_numbers(y, partial(part.place, "y")).astype(np.float64).reshape(len(y), -1)


def _labels(part: Part) -> np.ndarray:
    """What classification predicts, [n]: whole numbers, or text."""
    y = part.y
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "backslashreplace")
    if y.dtype.kind == "b":
        y = y.astype(str)
    if y.dtype.kind not in "iufU" or y.ndim != 1:
        raise ValueError(
            f"expected {part.place('y')} to be one label per row, [rows], whole numbers or text, "
            f"found {_kind(y)} of shape {y.shape}; take argmax(axis=1) of one-hot rows, "
            "or pass task='regression'"
        )
    bad = np.equal(y, "") if y.dtype.kind == "U" else np.zeros(len(y), bool)
    if y.dtype.kind == "f":  # from 2**53 on float64 does not hold every whole number
        bad = ~(np.equal(y, np.floor(y)) & np.less(np.abs(y), 2.0**53))
    if bad.any():
        row = int(np.argmax(bad))
        found = "an empty one" if y.dtype.kind == "U" else y[row]
        raise ValueError(
            f"expected labels to be text or whole numbers, found {found} at {part.place('y', row)}; "
            "renumber the labels, or pass task='regression' if they are values"
        )
    return y.astype(np.int64) if y.dtype.kind == "f" else y


def _known_labels(known: np.ndarray, y: np.ndarray, part: Part) -> np.ndarray:
    """Test labels as indices into those of the training part."""
    if (known.dtype.kind == "U") != (y.dtype.kind == "U"):
        raise ValueError(
            f"expected {part.place('y')} to have labels like those of training, found {_kind(y)} "
            f"where they are {_kind(known)}; store both alike"
        )
    # As Python's own: NumPy compares int64 with uint64 as float64.
    places = {label: i for i, label in enumerate(known.tolist())}
    theirs, codes = np.unique(y, return_inverse=True)
    new = [label for label in theirs.tolist() if label not in places]
    if new:
        raise ValueError(
            f"expected {part.place('y')} to have only labels of the training part, "
            f"found also {listed(new)}; add training examples of them, or remove those rows"
        )
    return np.array([places[label] for label in theirs.tolist()], np.int32)[codes]


def _kind(array: np.ndarray) -> str:
    return "text" if array.dtype.kind == "U" else str(array.dtype)
