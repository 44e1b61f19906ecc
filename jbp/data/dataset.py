"""`Dataset`, and the checks every table passes on its way to become one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from jbp.arguments import as_float32, did_you_mean, listed
from jbp.data.preparing import split

Task = Literal["classification", "regression"]
TASKS: tuple[Task, ...] = ("classification", "regression")

# The test part of a table that comes without one, by `split` with this seed. Part of a run's meaning: not to
# change.
TEST_FRACTION, TEST_SEED = 0.2, 0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples of one task.

    x_train, x_test: float32 [n, ...], as stored or in [0, 1] for built-in images, never standardised here.
    y_train, y_test: for classification int32 [n], an index into `classes`; for regression float32 [n, m].
    classes: what the labels mean, in their order; () for regression. features: column names, () if they have
    none.
    """

    name: str
    task: Task
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Part:
    """Raw x and y of one part, and how its source names places: `place("x", row, column…)`, `place("y")`."""

    x: np.ndarray
    y: np.ndarray
    place: Callable[..., str]


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


def from_parts(name: str, train: Part, test: Part | None, task: Task | None, features: tuple[str, ...] = ()) -> Dataset:
    """A Dataset from raw arrays, each value checked; without a test part, a fifth of the rows becomes it.

    That fifth is chosen by `split` with seed 0, stratified in classification. Without a task, text and whole
    numbers are labels and other numbers are values to predict.

    Raises: ValueError naming the place of the first thing that is wrong.
    """
    if task is None:
        task = "regression" if train.y.dtype.kind == "f" else "classification"
        rows = train.y.shape[0] if train.y.ndim == 1 and train.y.dtype.kind in "iu" else 0
        # Counts, prices and ages are whole numbers too; labels repeat.
        if rows and (distinct := len(np.unique(train.y))) > max(2, rows / 2):
            raise ValueError(
                f"expected whole-number labels that repeat, found {distinct} different ones in {rows} rows; "
                "say which it is by task='classification' or task='regression'"
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
    names = ()
    if task == "classification":
        known, y_train = np.unique(y_train, return_inverse=True)
        if len(known) < 2:
            raise ValueError(f"expected labels of two classes or more, found only {known[0]}; give examples of another")
        names, y_train = tuple(str(label) for label in known), y_train.astype(np.int32)
        if test is not None and y_test is not None:
            y_test = _known_labels(known, y_test, test)
    if x_test is None:
        try:
            x_train, y_train, x_test, y_test = split(x_train, y_train, TEST_FRACTION, TEST_SEED)
        except ValueError as error:
            raise ValueError(
                f"expected enough rows to hold out a fifth as the test part, found only {len(x_train)}"
                f"{f' of {len(names)} classes' if names else ''}; give more"
            ) from error
    return Dataset(name, task, x_train, y_train, x_test, y_test, names, features)


def _inputs(part: Part) -> np.ndarray:
    """x as float32 [n, ...], finite, with a row for each of y."""
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
    if x.size == 0:
        raise ValueError(f"expected {part.place('x')} to have rows and columns, found shape {x.shape}; give examples")
    return as_float32(x, partial(part.place, "x"))


def _values(part: Part) -> np.ndarray:
    """What regression predicts, as float32 [n, m]."""
    y = part.y
    if y.dtype.kind not in "biuf" or y.ndim > 2:
        raise ValueError(
            f"expected {part.place('y')} to be numbers [rows] or [rows, outputs] for regression, "
            f"found {_kind(y)} of shape {y.shape}; pass task='classification' for labels"
        )
    return as_float32(y, partial(part.place, "y")).reshape(len(y), -1)


def _labels(part: Part) -> np.ndarray:
    """What classification predicts, [n]: whole numbers from 0, or text."""
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
    if y.dtype.kind == "U":
        bad = np.equal(y, "")
    else:
        bad = ~(np.equal(y, np.floor(y)) & np.greater_equal(y, 0) & np.less(y, 2.0**63))
    if bad.any():
        row = int(np.argmax(bad))
        found = "an empty one" if y.dtype.kind == "U" else y[row]
        raise ValueError(
            f"expected labels to be text or whole numbers from 0, found {found} at {part.place('y', row)}; "
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
    new = ~np.isin(y, known)
    if new.any():
        raise ValueError(
            f"expected {part.place('y')} to have only labels of the training part, "
            f"found also {listed(np.unique(y[new]))}; add training examples of them, or remove those rows"
        )
    return np.searchsorted(known, y).astype(np.int32)


def _kind(array: np.ndarray) -> str:
    return "text" if array.dtype.kind == "U" else str(array.dtype)
