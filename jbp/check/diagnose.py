"""A guess at the kind of mistake: which simple change of the right answer gives the wrong one.

Each guess is a hypothesis `found = g(expected)`, tested entry by entry to the same tolerance as the check itself, so
that a diagnosis is an identity that was seen to hold and not a resemblance.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

Arrays = Mapping[str, np.ndarray]


def diagnose(
    found: np.ndarray,
    expected: np.ndarray,
    room: float,
    sizes: Mapping[str, int] | None = None,
    clues: Arrays | None = None,
    factors: Arrays | None = None,
) -> str | None:
    """The first hypothesis that fits, or None.

    `room` is how far two equal entries may lie apart. `sizes` names numbers that a missing or a doubled mean would
    show as a factor. `clues` are arrays that found may be instead, under the words to say so. `factors` are arrays
    that the right answer may be a product with, by name.
    """
    if found.shape != expected.shape:
        return _by_shape(found, expected)
    wrong_numbers = ~np.isfinite(found)
    if wrong_numbers.all():
        return "only NaN" if np.isnan(found).all() else "only NaN and inf"
    if wrong_numbers.any():
        return f"NaN or inf in {int(wrong_numbers.sum())} of {found.size} entries, the rest finite"
    if not found.any():
        return "zero: nothing is passed back"

    size = float(np.abs(found).max())
    room = max(room * 4 if room < 0.01 * size else room, 1e-12 * size)

    def fits(candidate: np.ndarray) -> bool:
        return candidate.shape == found.shape and bool((np.abs(found - candidate) <= room).all())

    if fits(-expected):
        return "sign: found = −expected"
    if forgotten := _product(found, expected, room, factors or {}):
        return forgotten
    named = [words for words, candidate in (clues or {}).items() if fits(candidate)]
    if named:
        return named[0]
    return (
        _factor(found, expected, room, sizes or {})
        or _transposed(found, expected, fits)
        or _moved(found, expected, room)
        or _offset(found, expected, room, sizes or {})
        or _partly(found, expected, room)
    )


def _by_shape(found: np.ndarray, expected: np.ndarray) -> str | None:
    if found.ndim == expected.ndim > 1 and sorted(found.shape) == sorted(expected.shape):
        return "transposed: the axes are in another order"
    if found.shape == expected.shape[1:]:
        return "the first axis is missing: summed or indexed away"
    if found.size == expected.size:
        return "not reshaped back"
    return None


def _factor(found: np.ndarray, expected: np.ndarray, room: float, sizes: Mapping[str, int]) -> str | None:
    """Found = c · expected."""
    if expected.size < 2 or not expected.any():
        return None
    unit = expected / np.abs(expected).max()  # whose square does not underflow
    with np.errstate(over="ignore"):
        c = float((found * unit).sum() / (unit * unit).sum() / np.abs(expected).max())
    if not np.isfinite(c):
        return None
    if not c or (np.abs(found - c * expected) > room * max(1.0, abs(c))).any():
        return None
    # The factor is known as well as it fits: to many digits in float64, to two in bfloat16.
    misfit = float(np.linalg.norm(found - c * expected) / np.linalg.norm(c * expected))
    if misfit > 0.05:
        return None
    slack = max(1e-9, 3 * misfit)
    if abs(c - 1) < slack:
        return None
    sign = "a sign and " if c < 0 else ""
    for name, n in sizes.items():
        if n > 1 and abs(abs(c) / n - 1) < slack:
            return f"{sign}a constant factor {n}, which is {name}: multiplied by it, or a mean over it is missing"
        if n > 1 and abs(abs(c) * n - 1) < slack:
            return f"{sign}a constant factor 1/{n}, and {n} is {name}: divided by it, a mean too many"
    return f"off by a constant factor {_number(c, slack)}"


def _product(found: np.ndarray, expected: np.ndarray, room: float, factors: Arrays) -> str | None:
    """One factor is forgotten, is there once too often, or stands where another belongs."""
    known: dict[str, np.ndarray] = {}
    for name, factor in factors.items():
        with contextlib.suppress(ValueError):  # one that has not the shape for it is no factor
            known[name] = np.broadcast_to(factor, found.shape)

    def same(a: np.ndarray, b: np.ndarray, *weights: np.ndarray) -> bool:
        return bool((np.abs(a - b) <= room * sum(map(np.abs, weights), 1.0)).all()) and bool(np.isfinite(a).all())

    with np.errstate(over="ignore", invalid="ignore"):
        for name, factor in known.items():
            if np.ptp(factor) and same(found * factor, expected, factor):
                return f"a factor forgotten: found times {name} is right"
            if np.ptp(factor) and same(found, expected * factor, factor):
                return f"a factor too many: found is right times {name}"
        for (one, a), (two, b) in itertools.permutations(known.items(), 2):
            if np.ptp(a) and np.ptp(b) and same(found * b, expected * a, a, b):
                return f"a factor forgotten: {one} stands where {two} belongs"
    return None


def _transposed(found: np.ndarray, expected: np.ndarray, fits) -> str | None:
    for i, j in itertools.combinations(range(expected.ndim), 2):
        if expected.shape[i] == expected.shape[j] > 1 and fits(expected.swapaxes(i, j)):
            return f"transposed: axes {i} and {j} are swapped"
    return None


def _moved(found: np.ndarray, expected: np.ndarray, room: float) -> str | None:
    """The right slices along one axis, in wrong places."""
    for axis in range(expected.ndim):
        n = expected.shape[axis]
        if not 2 <= n <= 256:
            continue
        rows, right = (np.moveaxis(a, axis, 0).reshape(n, -1) for a in (found, expected))
        same = np.array([(np.abs(right - row) <= room).all(1) for row in rows])  # [found row, expected row]
        if not same.any(1).all():
            continue
        # Where slices are equal (zeros), a slice may stay where it is.
        source = np.where(same.diagonal(), np.arange(n), same.argmax(1))
        if (source == np.arange(n)).all():
            continue
        what = "one example's δ given to another: rows" if axis == 0 else f"slices along axis {axis}"
        if (source == source[0]).all():
            return f"{what} are all those of number {source[0]}"
        if len(set(source)) < n:
            return f"{what} are repeated: found[i] is expected[{source.tolist()}[i]]"
        if (same[np.arange(n), n - 1 - np.arange(n)]).all():
            return f"{what} are in reverse order"
        for shift in range(1, n):
            if same[np.arange(n), (np.arange(n) - shift) % n].all():
                return f"{what} are rolled by {shift}"
        return f"{what} are permuted: found[i] is expected[{source.tolist()}[i]]"
    return None


def _offset(found: np.ndarray, expected: np.ndarray, room: float, sizes: Mapping[str, int]) -> str | None:
    """Found is constant, or differs by a constant, or knows nothing of the expected value."""
    if found.size > 1 and np.ptp(found) <= room:
        value = float(found.flat[0])
        name = next((name for name, n in sizes.items() if abs(value - n) <= room), None)
        return f"every entry is {value:.6g}" + (f", which is {name}: a count where δ should be" if name else "")
    if found.size > 1 and np.ptp(found - expected) <= room:
        return f"off by an added constant {float((found - expected).flat[0]):.6g}"
    return None


def _partly(found: np.ndarray, expected: np.ndarray, room: float) -> str | None:
    """Where the mistake sits, if it is not everywhere."""
    wrong = np.abs(found - expected) > room
    if not wrong.any() or wrong.mean() > 0.5 or found.ndim == 0:
        return None
    zero = "zero" if not found[wrong].any() else "wrong"
    for axis in range(found.ndim):
        others = tuple(i for i in range(found.ndim) if i != axis)
        hit = np.flatnonzero(wrong.any(others))
        if len(hit) <= max(1, found.shape[axis] // 4) and found.shape[axis] > 1:
            return (
                f"a term is dropped or wrong at index {hit.tolist()} of axis {axis} only: {zero} there, right elsewhere"
            )
    return f"{zero} in {int(wrong.sum())} of {wrong.size} entries, right in the others"


def _number(c: float, slack: float) -> str:
    """A factor by name: the simplest fraction that it can be, or the root of one, or one times π or √(2π)."""
    for unit, name in ((1.0, ""), (math.pi, "·π"), (math.sqrt(2 * math.pi), "·√(2π)")):
        if fraction := _fraction(c / unit, slack):
            return f"{fraction}{name}"
    if fraction := _fraction(c * c, 2 * slack):
        return f"{'−' if c < 0 else ''}√({fraction}) = {c:.6g}"
    return f"{c:.6g}"


def _fraction(c: float, slack: float) -> Fraction | None:
    """The fraction of smallest denominator, up to 64, that is c to within `slack`."""
    tried = (Fraction(c).limit_denominator(d) for d in range(1, 65))
    return next((f for f in tried if f and abs(float(f) / c - 1) < slack), None)
