"""What the options say of the data that the data do not say themselves: bounds of the columns, weights of the rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jbp.arguments import about
from jbp.cli.options import TrainOptions
from jbp.data import Bounds, Dataset, balanced_weights
from jbp.data.bounds import bounds_of, read_bounds
from jbp.data.weights import with_weights


class Declared(NamedTuple):
    """What is used in place of what would be computed."""

    x_bounds: Bounds | None = None
    y_bounds: Bounds | None = None
    weights: np.ndarray | None = None
    """[n], of all examples that are not test."""
    balanced: bool = False
    """Whether every class is to count alike in training."""

    def weights_of(self, rows: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        """Of the rows of training, whose targets are y."""
        own = None if self.weights is None else self.weights[rows]
        if not self.balanced:
            return own
        return balanced_weights(y) if own is None else balanced_weights(y) * own

    def clipped(self, x: np.ndarray, y: np.ndarray) -> tuple[int, int] | None:
        """How many values of x and y lie outside the bounds, and of how many; None without bounds."""
        pairs = [(b, a) for b, a in ((self.x_bounds, x), (self.y_bounds, y)) if b is not None]
        return (sum(b.outside(a) for b, a in pairs), sum(a.size for _, a in pairs)) if pairs else None


NOTHING = Declared()


def declared(dataset: Dataset, options: TrainOptions) -> tuple[Dataset, Declared]:
    """The data without the column of weights, and what the options say of them.

    Raises: ValueError if that does not fit the data.
    """
    weights, regression = None, dataset.task == "regression"
    if options.class_weights is not None and regression:
        raise ValueError("class_weights are for a classification, but this is a regression: leave them out")
    if options.weights is not None:
        with about(options.data):
            dataset, weights = with_weights(dataset, options.weights)
    balanced = options.class_weights is not None
    if options.bounds is None:
        return dataset, Declared(None, None, weights, balanced)
    known = read_bounds(options.bounds)
    if dataset.columns is not None:  # of 0 and 1
        known = dict.fromkeys(dataset.columns.marks, (0.0, 1.0)) | known
    with about(options.bounds):
        x = bounds_of(known, dataset.features) if dataset.features else bounds_of(known, ["x"]).alike()
        y = None
        if regression:
            y = bounds_of(known, ["y"]).alike() if options.target is None else bounds_of(known, [options.target])
    return dataset, Declared(x, y, weights, balanced)
