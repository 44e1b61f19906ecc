"""Weights of examples: a column of a table, and those that give every class the same say."""

import dataclasses

import numpy as np

from jbp.arguments import did_you_mean, listed
from jbp.data.dataset import Dataset


def balanced_weights(y: np.ndarray) -> np.ndarray:
    """[n]: n/(k·n_c) for an example of class c, of which there are n_c: every class counts alike, and the mean is 1.

    y: labels [n]. For `jbp.fit(weights=)`.

    Raises: ValueError if y are no labels.
    """
    y = np.asarray(y)
    if y.ndim != 1 or not len(y) or y.dtype.kind not in "biuU":
        raise ValueError(f"expected labels [n], whole numbers or text, got {y.dtype} of shape {y.shape}")
    _, classes, counts = np.unique(y, return_inverse=True, return_counts=True)
    return len(y) / (len(counts) * counts[classes])


def with_weights(dataset: Dataset, column: str) -> tuple[Dataset, np.ndarray]:
    """The data without a feature, and that feature of the training examples: their weights.

    Raises: ValueError if there is no such feature, or no other, or a value is no weight.
    """
    names = dataset.features
    if column not in names:
        hint = did_you_mean(column, names)
        found = f"no {column!r} among {listed(names)}{hint}" if names else "data without column names"
        raise ValueError(f"expected weights to be a column beside the target, found {found}")
    if len(names) == 1:
        raise ValueError(f"expected columns beside the target and the weights {column!r}, found no other; add some")
    columns = dataset.columns
    if columns is not None and column not in [own.name for own in columns.columns if own.kind == "number"]:
        raise ValueError(f"expected weights to be a column of numbers, but {column!r} is none")
    if columns is not None and any(own.name == column and own.lacks for own in columns.columns):
        raise ValueError(
            f"expected a weight in every row, found column {column!r} without some; give 0 to leave a row out"
        )
    at = names.index(column)
    weights = dataset.x_train[:, at].astype(np.float64)
    for what, values in (("the training part", weights), ("the test part", _column(dataset.x_test, at))):
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if len(wrong):
            raise ValueError(
                f"expected weights of at least 0 in column {column!r}, found {values[wrong[0]]:g} in {what}; correct "
                "the value, or remove the row"
            )
    if not weights.any():
        raise ValueError(f"expected weights in column {column!r}, found only 0 in the training part")
    without = {
        "x_train": np.delete(dataset.x_train, at, 1),
        "x_test": None if dataset.x_test is None else np.delete(dataset.x_test, at, 1),
        "features": (*names[:at], *names[at + 1 :]),
        "columns": None if columns is None else columns.without(column),
    }
    return dataclasses.replace(dataset, **without), weights


def _column(x: np.ndarray | None, at: int) -> np.ndarray:
    return np.zeros(0) if x is None else x[:, at]
