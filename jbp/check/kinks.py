"""Points where a function has no derivative: a given point that lies on a kink is left for one beside it.

At a kink (a rectifier at 0, which padding and zero biases reach) autodiff gives one number between the two slopes and
a backward pass by hand may give another: jnp.maximum 1/2, `jax.nn.relu` and jbp 0. Neither is wrong, so such a point
decides nothing between them. The report says that the point was moved. What no convention allows fails all the same:
NaN, and entries outside the span of the slopes on all sides, which is one number where the kink is not felt. At the
kink itself a layer of jbp is held to its own convention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.backprop import backward, forward
from jbp.check.compare import PRECISION, compare, largest, skipped
from jbp.check.compiled import compiled, wide
from jbp.check.finite_differences import Function, beside, kinks_along
from jbp.check.report import Entry, Report
from jbp.check.tolerance import EXACT, FINITE_DIFFERENCE, NATIVE_DIFFERENCE
from jbp.check.trees import Leaves, as_array, cast, entropy, normal
from jbp.layer import Layer

SHIFT = 1e-5
"""How far beside a kink, h, its sides are looked at; what is linear in h is taken off by looking at 2h too."""
_DECIDED_BESIDE = {
    "= vjp",
    "= vjp, each example",
    "= jax.grad",
    "= derivative",
    "squares to the Hessian",
    "adjoint",
    "derivative",
    "jit = eager",
    "vmap = loop",
    "jax.vjp(f) = the rule",
    "per_example",
    "norms",
    "second_moment",
    "gauss_newton",
    "kronecker",
}
"""The laws in which the two sides of a kink may differ, for another convention or another rounding picks the side."""


class Span(NamedTuple):
    """The least and the largest slope on any side, entry by entry; room for sums of several kinks included."""

    low: np.ndarray
    high: np.ndarray

    def summed(self) -> Span:
        """Of the sum over the first axis, whose parts take their sides one by one."""
        return Span(self.low.sum(0), self.high.sum(0))


def at_kink(function: Function, point: Leaves, extra: Any, seed: Any) -> bool:
    """Whether the one-sided slopes of `function` at this point disagree along a random direction of some leaf."""
    try:
        with wide(), jax.default_matmul_precision(PRECISION):
            point, extra = [cast(leaf, jnp.float64) for leaf in point], cast(extra, jnp.float64)
            return kinks_along(function, point, extra, entropy(seed, 6))
    except Exception:  # what cannot be run in float64 is known for no kink, and its failure stands
        return False


def moved(point: Leaves, seed: Any) -> Leaves:
    """The point beside this one, in the same dtypes: 1 % of normals away in every entry."""
    return [
        as_array(np.asarray(leaf).astype(p.dtype))
        for leaf, p in zip(beside(point, entropy(seed, 7)), point, strict=True)
    ]


def after_moving(report: Report, path: str, kept: Iterable[Entry] = ()) -> Report:
    """The report of the moved point, which says so, with what no kink excuses at the given one."""
    return Report(report.subject, (at_point(path), *kept, *report.entries))


def at_point(path: str) -> Entry:
    """The entry that says that the given point was left."""
    why = "the given point lies on a kink, where the one-sided slopes disagree: checked 1 % beside it"
    return skipped("point", path, "finite differences", why)


def no_excuse(entries: Iterable[Entry]) -> list[Entry]:
    """The failures at a kink that no convention explains: of other laws, and NaN where the oracle has a number."""

    def stands(entry: Entry) -> bool:
        has_number = entry.expected is not None and np.isfinite(entry.expected)
        return entry.law not in _DECIDED_BESIDE or (has_number and not np.isfinite(entry.found or 0.0))

    return [entry for entry in entries if entry.verdict == "fail" and stands(entry)]


def spans(slopes: Callable[[Leaves, Any], Leaves], point: Leaves, extra: Any, seed: Any) -> list[Span]:
    """The span of each array of `slopes`, by autodiff, at the point and on many sides; none if it cannot be run."""
    with wide(), jax.default_matmul_precision(PRECISION):
        point, extra = [cast(leaf, jnp.float64) for leaf in point], cast(extra, jnp.float64)

        def program(point: Leaves, extra: Any, sides: Leaves) -> Any:
            def at(v: Leaves) -> Leaves:
                def near(h: Any) -> Leaves:
                    return slopes([p + h * a * (1 + jnp.abs(p)) for p, a in zip(point, v, strict=True)], extra)

                return [2 * g[0] - g[1] for g in lax.map(near, jnp.asarray([SHIFT, 2 * SHIFT]))]

            return lax.map(at, sides), slopes(point, extra)

        try:
            beside, here = compiled(program)(point, extra, _sides(point, seed))
        except Exception:  # what cannot be run in float64 has no span to be held to
            return []
        return [_span(np.asarray(a), np.asarray(b)) for a, b in zip(beside, here, strict=True)]


def outside(
    names: list[str], found: Leaves, allowed: list[Span], oracle: str = "one-sided slopes", source: float = 0.0
) -> list[Entry]:
    """An entry for each array with numbers outside its span; of 16 bits, too coarse to know the side, none."""
    entries = []
    for name, array, (low, high) in zip(names, found, allowed, strict=False):
        kind, value = array.dtype, np.asarray(array).astype(np.float64)
        if jnp.finfo(kind).bits < 32 or not np.isfinite(value).all():
            continue
        level = FINITE_DIFFERENCE if jnp.finfo(kind).bits == 64 else NATIVE_DIFFERENCE
        nearest, terms = np.clip(value, low, high), max(largest(low), largest(high))
        terms = terms if np.isfinite(terms) else 0.0
        entries.append(
            compare("at the kink", name, oracle, array, nearest, level, dtype=kind, terms=terms, source=source)
        )
    return [entry for entry in entries if entry.verdict == "fail"]


def _sides(point: Leaves, seed: Any) -> Leaves:
    """Directions to look in, [s, ...]: all leaves at random, one alone at random, all alike; each with its opposite."""
    alone = [[i] for i in range(len(point))]
    leaves = [list(range(len(point)))] * 24 + alone * 2
    drawn = [[np.asarray(a) for a in normal(entropy(seed, 9, s), point)] for s in range(len(leaves))]
    v = [
        [a if i in which else np.zeros_like(a) for i, a in enumerate(one)]
        for which, one in zip(leaves, drawn, strict=True)
    ]
    v.append([np.ones_like(a) for a in drawn[0]])
    v += [[-a for a in one] for one in v]
    return [as_array(np.stack(list(a))) for a in zip(*v, strict=True)]


def _span(beside: np.ndarray, here: np.ndarray) -> Span:
    """From the slopes on the sides [s, ...] and at the point itself, where autodiff has a convention of its own.

    With one kink an entry has two slopes, and any convention lies between them. With several it is a sum of which some
    sides were seen only, so there the width of the leaf's widest span is allowed besides.
    """
    every = np.concatenate([beside, here[None]])
    finite = np.isfinite(every)
    low, high = np.where(finite, every, np.inf).min(0), np.where(finite, every, -np.inf).max(0)
    low, high = np.where(low > high, -np.inf, low), np.where(low > high, np.inf, high)
    with np.errstate(invalid="ignore"):
        width = high - low
        room = 1e-6 * max(largest(every[finite]), 1e-300)
        at_low, at_high = np.abs(beside - low) <= room, np.abs(beside - high) <= room
    one_kink = (at_low | at_high).all(0) & at_low.any(0) & at_high.any(0)
    more = np.where(one_kink, 0.0, width.max(initial=0.0))
    return Span(low - more, high + more)


def convention(layer: Layer, slopes: tuple[float, float, float], dtype: Any, seed: Any) -> list[Entry]:
    """θ(0) = 0, and delta_x = θ′∘δ with these θ′ just below 0, at 0 (also at −0) and just above: exactly."""
    tiny = float(jnp.finfo(dtype).eps) / 16  # of no account beside 1, yet far from underflow
    points = {"just below 0": (-tiny, slopes[0]), "−0": (-0.0, slopes[1]), "0": (0.0, slopes[1])}
    points["just above 0"] = (tiny, slopes[2])
    x = as_array(np.asarray([[s] for s, _ in points.values()], dtype))
    delta = normal(entropy(seed, 8), jax.ShapeDtypeStruct(x.shape, x.dtype))
    y, saved = forward(layer, (), x)
    delta_x, _ = backward(layer, (), saved, delta)
    entries = []
    for n, (name, (s, slope)) in enumerate(points.items()):
        law, oracle, note = "at the kink", "definition", f"θ′ = {slope:g}"
        if s == 0:
            zero = np.zeros(y[n].shape, y.dtype)
            entries.append(compare(law, f"{layer!r} at {name}: y", oracle, y[n], zero, EXACT))
        expected = np.asarray(slope, dtype) * np.asarray(delta)[n]
        entries.append(compare(law, f"{layer!r} at {name}: delta_x", oracle, delta_x[n], expected, EXACT, note=note))
    return entries
