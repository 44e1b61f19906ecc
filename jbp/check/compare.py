"""Comparing: two arrays become one entry of a report. Every verdict is made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jbp.check.diagnose import diagnose
from jbp.check.report import Entry
from jbp.check.tolerance import ELEMENTWISE, Level, eps, for_dtype

Clues = Callable[[], Mapping[str, Any]]
"""What a wrong result may turn out to be, name by name; called only when there is a wrong result."""

Twins = Callable[[], list[Any]]
"""The oracle's answer once more, with other roundings or finer ones; called only for a leaf small beside its source."""

PRECISION = "highest"
"""The matrix product precision under which everything is checked: an accelerator's default has 8 to 11 bits."""


def compare(
    law: str,
    path: str,
    oracle: str,
    found: Any,
    expected: Any,
    level: Level,
    *,
    dtype: Any = None,
    terms: float = 0.0,
    source: float = 0.0,
    twins: Twins | None = None,
    sizes: Mapping[str, int] | None = None,
    clues: Clues | None = None,
    factors: Clues | None = None,
    note: str = "",
) -> Entry:
    """error = max |found − expected| / (eps · max(|expected|, terms)): passes if at most `level`.

    `terms` is the largest term of the sum that `expected` is, if it is one. A leaf that is zero but for rounding,
    at most 16 eps · `source`, is held to ELEMENTWISE on the scale of `source`: the δ that it came from. Not so where
    it is small and known all the same, because its `twins` agree with it to the level. Where the magnitude is 0 all
    the same, found must be exactly 0. NaN or inf on either side fails. `sizes`, `clues` and `factors` serve the
    diagnosis.
    """
    dtype = dtype or expected.dtype
    device = _device(found)
    a, e = _float64(found), _float64(expected)
    base: dict[str, Any] = {"dtype": str(np.dtype(dtype)), "device": device, "precision": PRECISION, "note": note}
    if a.shape != e.shape:
        guess = diagnose(a, e, 0.0)
        problem = f"found has shape {a.shape} where {e.shape} is expected"
        base["note"] = f"{problem}; {note}" if note else problem
        return Entry(law, path, oracle, "fail", np.inf, level.units, level.name, diagnosis=guess, **base)
    if a.size == 0:
        return Entry(law, path, oracle, "skip", **{**base, "note": f"the leaf is empty, {a.shape}"})
    level = for_dtype(level, dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(a - e)
    gap = np.where(np.isfinite(gap), gap, np.inf)
    index = tuple(int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))
    magnitude = max(float(np.abs(e).max()), float(terms)) if np.isfinite(e).all() else np.nan
    rounding = magnitude <= 16 * eps(dtype) * source
    if rounding and not _is_known(e, magnitude, level.units * eps(dtype), twins):
        magnitude, level = source, min(level, for_dtype(ELEMENTWISE, dtype), key=lambda level: level.units)
    error = _units(float(gap[index]), eps(dtype) * magnitude)
    passed = error <= level.units
    guess = None
    if not passed:
        if not np.isfinite(e).all():
            base["note"] = f"the oracle's own value is not finite; {note}".rstrip("; ")
        else:
            words = {k.strip(): _float64(v) for k, v in (clues() if clues else {}).items() if np.shape(v) == a.shape}
            products = {k: _float64(v) for k, v in (factors() if factors else {}).items()}
            guess = diagnose(a, e, level.units * eps(dtype) * magnitude, sizes, words, products)
    return Entry(
        law,
        path,
        oracle,
        "pass" if passed else "fail",
        error,
        level.units,
        level.name,
        magnitude,
        index,
        float(e[index]),
        float(a[index]),
        a.size,
        diagnosis=guess,
        **base,
    )


def _is_known(e: np.ndarray, magnitude: float, share: float, twins: Twins | None) -> bool:
    """Whether a small leaf is no mere rounding: all its twins have the same numbers, to within a share of them."""
    if twins is None or magnitude == 0:
        return False
    others = [_float64(twin) for twin in twins()]
    return bool(others) and all(np.abs(other - e).max() <= share * magnitude for other in others)


def problem(law: str, path: str, what: str, diagnosis: str | None = None, oracle: str = "protocol") -> Entry:
    """An entry for what is wrong without any number being compared."""
    return Entry(law, path, oracle, "fail", diagnosis=diagnosis, note=what)


def skipped(law: str, path: str, oracle: str, why: str) -> Entry:
    """An entry for what could not be compared, with the reason."""
    return Entry(law, path, oracle, "skip", note=why)


def fact(law: str, path: str, oracle: str, holds: bool, what: str) -> Entry:
    """An entry for a yes-or-no law: a shape, a dtype, a structure. It compares no numbers."""
    return Entry(law, path, oracle, "pass" if holds else "fail", note="" if holds else what)


def largest(value: Any) -> float:
    """max |value|, and 0 for nothing."""
    array = _float64(value)
    return float(np.abs(array).max()) if array.size else 0.0


def called(thing: Any) -> str:
    """What a layer, loss or function is called; a class without a usable repr by its name."""
    try:
        return repr(thing)
    except Exception:
        return f"{type(thing).__name__}(…)"


def explain(error: BaseException) -> str:
    """An exception in one line: its type, the first lines of its text, and its notes."""
    text = " ".join(line.strip() for line in str(error).splitlines()[:3] if line.strip())
    notes = "; ".join(getattr(error, "__notes__", ())[:2])
    return f"{type(error).__name__}: {text[:300]}" + (f" ({notes})" if notes and "traceback" not in notes else "")


def _float64(value: Any) -> np.ndarray:
    return np.asarray(value).astype(np.float64)


def _units(gap: float, unit: float) -> float:
    if gap == 0:
        return 0.0
    return gap / unit if unit > 0 else np.inf


def _device(value: Any) -> str:
    if isinstance(value, jax.Array):
        kinds = {device.platform for device in value.devices()}
        return "+".join(sorted(kinds))
    return "host"
