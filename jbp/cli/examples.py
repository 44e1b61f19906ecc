"""From a data set to what training sees: a validation part, standardised inputs, targets in the loss's form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jbp.cli.declared import NOTHING, Declared
from jbp.data import Bounds, Dataset, Standardizer, split

# Part of a run's meaning, and so not an option: which examples decide when to stop and what is best.
VALIDATION_FRACTION, VALIDATION_SEED = 0.1, 1

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Examples:
    """The parts of a data set, as training sees them. The test part is only made when it is asked for."""

    dataset: Dataset
    one_hot: bool
    """Whether the targets of a classification are rows of 0 and 1 instead of class numbers."""
    x_scale: Standardizer | Bounds | None
    y_scale: Standardizer | Bounds | None
    train: Arrays
    validation: Arrays | None
    """None where nothing is chosen by it: private training takes every example."""
    weights: np.ndarray | None = None
    """What each training example counts; None if all count alike."""
    clipped: tuple[int, int] | None = None
    """How many values of the training part lie outside bounds that were declared, and of how many; None without bounds,
    and where the data are private: it would be a figure of theirs."""

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
        scale = self.y_scale
        if isinstance(scale, Bounds):  # what is off beyond the bounds is an error, and not clipped
            return self._inputs(x), replace(self, y_scale=Standardizer(scale.mean, scale.scale))._targets(y)
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


def prepare(
    dataset: Dataset, one_hot: bool, standardize: bool, holds_out: bool = True, given: Declared = NOTHING
) -> Examples:
    """Hold the validation part out, if wanted, then fit what standardises to the rest; bounds that are given scale it.

    Raises: ValueError if there are too few examples.
    """
    one_hot = one_hot and dataset.task == "classification"
    blank: Any = None
    rows, held = np.arange(len(dataset.x_train)), None
    if holds_out:
        try:
            rows, _, held, _ = split(rows, dataset.y_train, VALIDATION_FRACTION, VALIDATION_SEED)
        except ValueError as error:
            raise ValueError(
                f"{dataset.name}: expected enough training examples to hold out a tenth for validation, "
                f"found only {len(dataset.x_train)}; give more"
            ) from error
    x, y = dataset.x_train[rows], dataset.y_train[rows]
    x_scale, y_scale = given.x_bounds, given.y_bounds
    if standardize:
        x_scale = Standardizer.fit(x, per_feature=x.ndim == 2)
        y_scale = Standardizer.fit(y) if dataset.task == "regression" else None
    raw = Examples(
        dataset, one_hot, x_scale, y_scale, blank, None, given.weights_of(rows, y),
        given.clipped(x, y) if holds_out else None,
    )  # fmt: skip
    validation = None
    if held is not None:
        validation = raw._inputs(dataset.x_train[held]), raw._targets(dataset.y_train[held])
    return replace(raw, train=(raw._inputs(x), raw._targets(y)), validation=validation)
