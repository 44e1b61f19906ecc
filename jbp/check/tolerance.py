"""How far apart two results may lie: one table of named levels, in units of eps(dtype) × magnitude of the leaf.

    error = max |found − expected| / (eps(dtype) · magnitude),    magnitude = max |expected|

Never multiplied by the number of elements: a leaf of a million entries is held to the same level as one of ten.
Where the expected value is a sum that may cancel (a total over the batch, an inner product) the magnitude is that of
the largest term that enters, because rounding is; so a leaf that must be zero is compared with what it was summed from.

The levels come from the errors of correct code over thousands of random cases, which
`experiments/measurements/calibrate_tolerance.py` makes again and whose distribution it saves in
`experiments/results/tolerance.json`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Level:
    """The largest error that passes, in units of eps × magnitude, and what it is for."""

    name: str
    units: float
    reason: str


EXACT = Level("EXACT", 0.0, "the same operations on the same numbers: purity, a zero that must be one")
ELEMENTWISE = Level("ELEMENTWISE", 32.0, "a few roundings in a row for each entry: losses, optimisers")
MATMUL = Level("MATMUL", 128.0, "sums of products, in an order the compiler chooses: every layer")
# Two draws of 1,440 cases had a worst of 274, which stood alone, and of 37: rounding that a net amplifies has a long
# tail. The level is about 4 times the worst of both; at twice it, a right net would be rejected in some thousands.
DEEP = Level("DEEP", 1024.0, "layers one behind the other, each passing on the last one's roundings: nets")
LOW_PRECISION = Level("LOW_PRECISION", 8.0, "bfloat16 and float16 against float32: 8 units are already 6 % in bfloat16")
FINITE_DIFFERENCE = Level(
    "FINITE_DIFFERENCE", 1e7, "float64, extrapolated from steps h, h/2, h/4: rounding of the function divided by h"
)
# Two draws of 360 cases in float32 (x, w and b of θ(xw + b), two in three with a second layer behind it, 4 seeds each
# of 30 shapes with 6 activations) had a worst of 990 and of 520, a median near 75; the level is 4 times the first. By
# reckoning: D extrapolated from h, h/2, h/4 at h = 0.02 weighs one rounding of the function by 330, and a sum has some.
NATIVE_DIFFERENCE = Level(
    "NATIVE_DIFFERENCE", 4e3, "finite differences in float32, where the function cannot be run in float64"
)
COMPLEX_STEP = Level("COMPLEX_STEP", 128.0, "float64 without subtraction, hence nearly as exact as autodiff")

LEVELS = (
    EXACT,
    ELEMENTWISE,
    MATMUL,
    DEEP,
    LOW_PRECISION,
    FINITE_DIFFERENCE,
    NATIVE_DIFFERENCE,
    COMPLEX_STEP,
)


def check_level(level: Level) -> None:
    """Refuse a tolerance that is no level of the table.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(level, Level):
        raise ValueError(f"level must be one of jbp.check.tolerance, such as MATMUL, but is {level!r}")


def eps(dtype: np.dtype | type) -> float:
    """The distance from 1 to the next number of `dtype`."""
    return float(jnp.finfo(dtype).eps)


def for_dtype(level: Level, dtype: np.dtype | type) -> Level:
    """`level`, or LOW_PRECISION for a type of 16 bits or fewer: 128 units of bfloat16 would pass anything."""
    if level.units > LOW_PRECISION.units and jnp.finfo(dtype).bits <= 16:
        return LOW_PRECISION
    return level
