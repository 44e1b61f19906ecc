"""Numbers are narrowed once, after their offset is taken away; different ones that would become one are refused."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jbp.arguments import too_few_left

LOOKED_AT = 10_000  # rows of a column: enough to see values fall together, few enough to cost nothing


def as_numbers(x: np.ndarray, place: Callable[..., str], may_miss: bool = False) -> np.ndarray:
    """`x` as float32 where that holds each value of its type, else as float64; nothing is copied without need.

    `place` says where an index is, and without one what the whole is. Missing values are NaN, if there may be any.

    Raises: ValueError if a value is not finite, or whole numbers of 64 bits are more than float64 tells apart.
    """
    narrow = np.can_cast(x.dtype, np.float32, "safe")
    with np.errstate(over="ignore"):
        numbers = x.astype(np.float32 if narrow else np.float64, copy=False)
    wrong = np.isinf(numbers) if may_miss else ~np.isfinite(numbers)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"expected finite numbers, found {x[index]} at {place(*index)}; correct the value, or remove the row"
        )
    if x.dtype.kind in "iu" and np.abs(numbers).max(initial=0) >= 2.0**53:
        refuse_collapse(x, numbers, lambda i: f"column {i + 1} of {place()}", "subtract an offset, or leave it out")
    return numbers


def narrowed(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """x [n, ...] in the type that the net computes in, uncopied if it has it.

    Raises: ValueError naming the first value that is too large for it.
    """
    with np.errstate(over="ignore"):
        numbers = x.astype(dtype, copy=False)
    if numbers is not x and not np.isfinite(numbers).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(numbers))[0])
        raise ValueError(
            f"expected finite {numbers.dtype} numbers, found {x[index]} at row {index[0] + 1}, column "
            f"{', '.join(str(i + 1) for i in index[1:])}; standardise, or correct the value"
        )
    return numbers


def refuse_collapse(wide: np.ndarray, seen: np.ndarray, name: Callable[[int], str], advice: str) -> None:
    """Refuse a column of `wide` whose values fall together in `seen`, the same [n, columns] in what the net works with.

    How many may is for `too_few_left` to say. Arrays of more axes count as one column.

    Raises: ValueError naming the first such column by `name(index)`.
    """
    if wide.ndim != 2:
        wide, seen = wide.reshape(-1, 1), seen.reshape(-1, 1)
    step = max(1, len(wide) // LOOKED_AT)
    before, after = wide[::step], seen[::step]
    for i in range(before.shape[1]):
        many, left = len(np.unique(before[:, i])), len(np.unique(after[:, i]))
        if too_few_left(many, left):
            raise ValueError(
                f"{name(i)}: expected different values to stay different, but {many} different ones are {left} as "
                f"{seen.dtype}, in which the net would see them; {advice}"
            )


def in_full(value: Any) -> str:
    """A float64 in as many digits as tell it from its neighbours: 1700000003.25, 0.1."""
    return repr(float(value))
