"""The linear law: backward(aδ + bδ′) = a backward(δ) + b backward(δ′).

With large factors, so that a backward pass that cuts off a large δ shows: one that clips its gradient is right for
every δ that it lets through.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jbp.check.compare import compare, largest, skipped
from jbp.check.report import Entry
from jbp.check.tolerance import Level

LAW = "linear in δ"


def mixed(delta: Any, other: Any) -> Any:
    """Aδ + bδ′ with a and b of their dtype."""
    a, b = coefficients(delta.dtype)
    return a * delta + b * other


def linear_in_delta(path: str, found: Any, one: Any, two: Any, level: Level, source: float = 0.0) -> Entry:
    """The entry of this law: `found` for the mixed δ, from what came for each of the two."""
    a, b = coefficients(found.dtype)
    one, two = (np.asarray(v).astype(np.float64) for v in (one, two))
    terms = max(abs(a) * largest(one), abs(b) * largest(two))
    if terms > float(jnp.finfo(found.dtype).max) / 64:
        return skipped(LAW, path, "itself", f"the gradients are too large for {found.dtype} times {abs(b):g}")
    return compare(
        LAW, path, "itself", found, a * one + b * two, level, dtype=found.dtype, terms=terms, source=source * abs(b)
    )


def coefficients(dtype: Any) -> tuple[float, float]:
    """Of which the product with a number is exact; small in 16 bits, which have not the range."""
    return (0.75, -1.5) if jnp.finfo(dtype).bits < 32 else (768.0, -1536.0)
