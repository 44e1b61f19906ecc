"""From a data set to what training sees: a validation part, standardised inputs, targets in the loss's form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jbp.data import Dataset, Standardizer, split

# Part of a run's meaning, and so not an option: which examples decide when to stop and what is best.
VALIDATION_FRACTION, VALIDATION_SEED = 0.1, 1

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Examples:
    """The parts of a data set, as training sees them. The test part is only made when it is asked for."""

    dataset: Dataset
    one_hot: bool
    """Whether the targets of a classification are rows of 0 and 1 instead of class numbers."""
    x_scale: Standardizer | None
    y_scale: Standardizer | None
    train: Arrays
    validation: Arrays | None
    """None where nothing is chosen by it: private training takes every example."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train[0].shape[1:]

    @property
    def outputs(self) -> int:
        """How many outputs a net for this task has."""
        return len(self.dataset.classes) or self.dataset.y_train.shape[1]

    def test(self) -> Arrays:
        """The test part: x and targets."""
        x, y = self.dataset.x_test, self.dataset.y_test
        assert x is not None and y is not None
        return self._inputs(x), self._targets(y)

    def _inputs(self, x: np.ndarray) -> np.ndarray:
        return _floats(x if self.x_scale is None else self.x_scale(x))

    def _targets(self, y: np.ndarray) -> np.ndarray:
        if self.one_hot:
            return _floats(np.eye(len(self.dataset.classes))[y])
        if self.dataset.task == "classification":
            return y.astype(jax.dtypes.canonicalize_dtype(int), copy=False)
        return _floats(y if self.y_scale is None else self.y_scale(y))


def _floats(a: np.ndarray) -> np.ndarray:
    """In the type that parameters have: float32, or float64 where JAX is told so."""
    return a.astype(jax.dtypes.canonicalize_dtype(float), copy=False)


def prepare(dataset: Dataset, one_hot: bool, standardize: bool, holds_out: bool = True) -> Examples:
    """Hold the validation part out, if wanted, then fit what standardises to the rest.

    Raises: ValueError if there are too few examples.
    """
    one_hot = one_hot and dataset.task == "classification"
    blank: Any = None
    if not holds_out:
        raw = Examples(dataset, one_hot, None, None, blank, None)
        train = raw._inputs(dataset.x_train), raw._targets(dataset.y_train)
        return Examples(dataset, one_hot, None, None, train, None)
    try:
        x, y, x_val, y_val = split(dataset.x_train, dataset.y_train, VALIDATION_FRACTION, VALIDATION_SEED)
    except ValueError as error:
        raise ValueError(
            f"{dataset.name}: expected enough training examples to hold out a tenth for validation, "
            f"found only {len(dataset.x_train)}; give more"
        ) from error
    x_scale = Standardizer.fit(x, per_feature=x.ndim == 2) if standardize else None
    y_scale = Standardizer.fit(y) if standardize and dataset.task == "regression" else None
    raw = Examples(dataset, one_hot, x_scale, y_scale, blank, blank)
    parts = [(raw._inputs(a), raw._targets(b)) for a, b in ((x, y), (x_val, y_val))]
    return Examples(dataset, one_hot, x_scale, y_scale, *parts)
