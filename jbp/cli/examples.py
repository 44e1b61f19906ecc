"""From a data set to what training sees: a validation part, standardised inputs, targets in the loss's form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jbp.arguments import about
from jbp.cli.declared import NOTHING, Declared
from jbp.data import Bounds, Dataset, Standardizer, split
from jbp.data.precision import LOOKED_AT, narrowed, refuse_collapse
from jbp.data.preparing import taken
from jbp.rows import Rows

# Part of a run's meaning, and so not an option: which examples decide when to stop and what is best.
VALIDATION_FRACTION, VALIDATION_SEED = 0.1, 1

Arrays = tuple[Any, Any]
"""x and targets: arrays, or of a folder Rows, of which everything is done when they are read."""


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

    @property
    def tested(self) -> str:
        """The part that is looked at when training is over: "test", or "train" where no rows are held out."""
        return "train" if self.dataset.x_test is None else "test"

    def test(self) -> Arrays:
        """That part: x and targets."""
        x, y = self.dataset.x_test, self.dataset.y_test
        if x is None or y is None:
            return self.train
        scale = self.y_scale
        if isinstance(scale, Bounds):  # what is off beyond the bounds is an error, and not clipped
            return replace(self, y_scale=Standardizer(scale.mean, scale.scale))._pair(x, y)
        return self._pair(x, y)

    @property
    def truth(self) -> np.ndarray:
        """What that part of a regression has, in the units of the data and every digit of them."""
        return self.dataset.y_train if self.dataset.y_test is None else self.dataset.y_test

    def _pair(self, x: Any, y: np.ndarray) -> Arrays:
        if isinstance(x, Rows):
            return x.mapped(self._inputs), Rows(y).mapped(self._targets)
        return self._inputs(x), self._targets(y)

    def _inputs(self, x: np.ndarray) -> np.ndarray:
        return narrowed(x if self.x_scale is None else self.x_scale(x), _floating())

    def _targets(self, y: np.ndarray) -> np.ndarray:
        if self.one_hot:
            return np.eye(len(self.dataset.classes), dtype=_floating())[y]
        if self.dataset.task == "classification":
            return y.astype(jax.dtypes.canonicalize_dtype(int), copy=False)
        return narrowed(y if self.y_scale is None else self.y_scale(y), _floating())

    def _check_kept(self, train: Arrays, x: Any, y: np.ndarray) -> None:
        """Refuse a column of x or y whose values fall together on their way to the net."""
        if isinstance(x, Rows):
            x, y, *both = (a.sample(LOOKED_AT) for a in (x, Rows(y), *train))
            train = both[0], both[1]
        names, advice = self.dataset.features, "take its logarithm or leave far values out"
        if self.x_scale is None:
            advice = "standardise, declare its bounds (--bounds), or subtract an offset from it"
        if isinstance(self.x_scale, Bounds):
            advice, x = "give it narrower bounds", np.clip(x, self.x_scale.low, self.x_scale.high)
        if isinstance(self.y_scale, Bounds):
            y = np.clip(y, self.y_scale.low, self.y_scale.high)

        def feature(i: int) -> str:
            return f"column {names[i]!r}" if names else f"column {i + 1} of x" if x.ndim == 2 else "x"

        if self.x_scale is not None or train[0].dtype != x.dtype:
            refuse_collapse(x, train[0], feature, advice)
        if self.dataset.task == "regression":
            refuse_collapse(y, train[1], lambda i: "the target" if y.shape[1] == 1 else f"target {i + 1}", advice)


def _floating() -> np.dtype:
    """The type that parameters have: float32, or float64 where JAX is told so."""
    return jax.dtypes.canonicalize_dtype(float)


def prepare(
    dataset: Dataset, one_hot: bool, standardize: bool, holds_out: bool = True, given: Declared = NOTHING
) -> Examples:
    """Hold the validation part out, if wanted, then fit what standardises to the rest; bounds that are given scale it.

    Of too few rows none are held out: fewer than five, or those of a data set that has no test part either.

    Raises: ValueError if there are too few examples of a class, or values that differ would not for the net.
    """
    one_hot = one_hot and dataset.task == "classification"
    blank: Any = None
    x, y, held = dataset.x_train, dataset.y_train, None
    rows = np.arange(len(x))
    if holds_out and dataset.x_test is not None and round(VALIDATION_FRACTION * len(x)):
        try:
            rows, y, held, _ = split(rows, y, VALIDATION_FRACTION, VALIDATION_SEED)
        except ValueError as error:
            raise ValueError(
                f"{dataset.name}: expected enough training examples to hold out a tenth for validation, "
                f"found only {len(x)}; give more"
            ) from error
        x = taken(x, rows)
    x_scale, y_scale = given.x_bounds, given.y_bounds
    if standardize:
        x_scale = Standardizer.fit(x, per_feature=x.ndim == 2)
        y_scale = Standardizer.fit(y) if dataset.task == "regression" else None
    raw = Examples(
        dataset, one_hot, x_scale, y_scale, blank, None, given.weights_of(rows, y),
        given.clipped(x, y) if holds_out else None,
    )  # fmt: skip
    train, validation = raw._pair(x, y), None
    with about(dataset.name):
        raw._check_kept(train, x, y)
    if held is not None:
        validation = raw._pair(taken(dataset.x_train, held), dataset.y_train[held])
    return replace(raw, train=train, validation=validation)
