"""Central finite differences in float64, with the order of convergence checked, away from kinks.

    D(h) = (φ(h) − φ(−h)) / 2h,  φ(t) = ⟨f(p + t v), δ⟩,  for a random direction v of norm 1 in one leaf of p
    and D(h), D(h/2), D(h/4) extrapolated, which leaves an error of order h⁶

Where φ is smooth D(h) = φ′(0) + c h² + …, and the two one-sided differences disagree by c h + d h³. So both
extrapolations must agree, to within the tolerance, and nothing of the disagreement may be left at h = 0. Where that
fails there is a kink, or the step is too long: the step is made shorter, then the point is moved, and if that does
not help the leaf fails as undecided. Where equals are chosen from (a median of ties) φ is straight along every line
through the point, and yet its slopes do not add up: before a leaf fails this is looked at, and the point is moved.
Source: L. F. Richardson, "The approximate arithmetical solution by finite differences", 1911.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.check.compare import PRECISION, compare, explain, problem, skipped
from jbp.check.compiled import compiled, wide
from jbp.check.report import Entry
from jbp.check.tolerance import FINITE_DIFFERENCE, NATIVE_DIFFERENCE, Level
from jbp.check.trees import Leaves, as_array, cast, entropy, normal

STEPS = (1e-2, 1e-3, 1e-4, 3e-5)
"""h, and what it shrinks to near a kink."""
NATIVE_STEPS = (6e-2, 2e-2)
"""The same, for a function that computes in float32 whatever it is given."""
_GRID = (0.0, 1.0, -1.0, 1 / 2, -1 / 2, 1 / 4, -1 / 4)
"""Where φ is evaluated, in units of h."""
EMPTY = "the leaf is empty"
MOVES = 4
"""How often the point is moved, by 1 % of normals, to get away from a kink."""

Function = Callable[[Leaves, Any], tuple[Any, Any]]
"""(leaves, extra) -> ⟨f(leaves), δ⟩ and the terms of that sum."""
Gradient = Callable[[Leaves, Any], Leaves]


class Slopes(NamedTuple):
    """What was measured along one direction."""

    measured: float
    found: float
    scale: float
    smooth: bool
    order: float
    kink: bool
    """Whether the one-sided differences disagree by more than rounding, in the limit of h = 0."""
    moved: bool = False
    """Whether this was measured beside the given point."""


def finite_differences(
    function: Function,
    gradient: Gradient,
    point: Leaves,
    extra: Any,
    names: list[str],
    key: Any,
    directions: int = 2,
) -> list[Entry]:
    """Compare ⟨gradient, v⟩ with the slope of `function` along random v, leaf by leaf.

    Both are traced with float64 leaves; `extra` (δ, targets, weights) is cast to float64 too.
    """
    law, oracle = "derivative", "finite differences"
    with wide(), jax.default_matmul_precision(PRECISION):
        point, extra = [cast(leaf, jnp.float64) for leaf in point], cast(extra, jnp.float64)
        try:
            kind = jax.eval_shape(lambda p, e: function(p, e)[0], point, extra).dtype
            native = jnp.finfo(kind).bits < 64
            if jnp.finfo(kind).bits < 32:
                coarse = f"the function computes in {kind}: too coarse"
                return [skipped(law, name, oracle, coarse) for name in names]
            run = compiled(_program(function, gradient))
            entries = []
            for i, name in enumerate(names):
                if not point[i].size:
                    entries.append(skipped(law, name, oracle, EMPTY))
                    continue
                seed = entropy(key, i)
                entry = _entry(law, oracle, name, _along(run, point, extra, seed, i, directions, native), native)
                if entry.verdict == "fail" and _has_kink(run, point, extra, seed, i, native):
                    slopes = _along(run, point, extra, seed, i, directions, native, first_move=1)
                    entry = _entry(law, oracle, name, slopes, native)
                entries.append(entry)
            return entries
        except Exception as error:
            return [problem(law, name, f"cannot be run in float64: {explain(error)}", oracle=oracle) for name in names]


def _program(function: Function, gradient: Gradient) -> Callable[..., Any]:
    """(point, extra, directions[d], steps[t]) -> φ[d, t], its largest term, ⟨gradient, v⟩[d]."""

    def along(point: Leaves, extra: Any, directions: Leaves, steps: Any) -> Any:
        gradients = gradient(point, extra)

        def one(v: Leaves) -> Any:
            def at(t: Any) -> Any:
                value, terms = function([p + t * a for p, a in zip(point, v, strict=True)], extra)
                return value.astype(jnp.float64), jnp.abs(terms).max().astype(jnp.float64)

            values, terms = lax.map(at, steps)
            found = sum(jnp.sum(g.astype(jnp.float64) * a) for g, a in zip(gradients, v, strict=True))
            return values, terms.max(), found

        return lax.map(one, directions)

    return along


def directions_in(leaf: int, point: Leaves, seed: Any, count: int) -> Leaves:
    """Random directions of norm 1 in one leaf, [count, *shape]; zeros in the others."""
    rng = np.random.default_rng(entropy(seed))
    v = [np.zeros((count, *p.shape)) for p in point]
    drawn = rng.normal(size=(count, point[leaf].size))
    v[leaf] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).reshape(v[leaf].shape)
    return [as_array(a) for a in v]


def _along(
    run: Any, point: Leaves, extra: Any, seed: Any, leaf: int, directions: int, native: bool, first_move: int = 0
) -> list[Slopes]:
    """The slopes along some directions in one leaf; those away from kinks first tried, if there are any."""
    slopes: list[Slopes] = []
    for move in range(first_move, MOVES):
        here = point
        if move:
            here = beside(point, entropy(seed, move, 0))
        v = directions_in(leaf, point, entropy(seed, move, 1), directions)
        for h in NATIVE_STEPS if native else STEPS:
            steps = as_array(h * np.array(_GRID))
            values, terms, found = (np.asarray(a) for a in run(here, extra, v, steps))
            slopes = [_slope(v, h, float(t), float(f), native) for v, t, f in zip(values, terms, found, strict=True)]
            if any(s.smooth for s in slopes):
                return [s._replace(moved=move > 0) for s in slopes]
    return slopes


def beside(point: Leaves, seed: Any) -> Leaves:
    """The point, moved by 1 % of normals in every entry."""
    drawn = [np.asarray(a) for a in normal(seed, point)]
    return [as_array(p + 0.01 * a * (1 + abs(p))) for p, a in zip(map(np.asarray, point), drawn, strict=True)]


def kinks_along(function: Function, point: Leaves, extra: Any, seed: Any) -> bool:
    """Whether there is a kink at the point itself, along a random direction in some leaf or between two of them."""
    run = compiled(_program(function, lambda point, _: [jnp.zeros_like(p) for p in point]))
    return any(_has_kink(run, point, extra, entropy(seed, leaf), leaf, False) for leaf, p in enumerate(point) if p.size)


def _has_kink(run: Any, point: Leaves, extra: Any, seed: Any, leaf: int, native: bool) -> bool:
    """Whether along random v, w and v + w one-sided slopes disagree, or the slopes of v and w do not add up."""
    pairs = 4
    v = directions_in(leaf, point, entropy(seed, 2), 2 * pairs)
    v[leaf] = jnp.concatenate([v[leaf], v[leaf][:pairs] + v[leaf][pairs:]])
    v = [as_array(np.broadcast_to(0.0, (3 * pairs, *p.shape))) if i != leaf else v[i] for i, p in enumerate(point)]

    def seen(h: float) -> bool:
        values, terms, _ = (np.asarray(a) for a in run(point, extra, v, as_array(h * np.array(_GRID))))
        slopes = [_slope(row, h, float(term), 0.0, native) for row, term in zip(values, terms, strict=True)]
        one, two, both = (np.array([s.measured for s in slopes[i * pairs :][:pairs]]) for i in range(3))
        room = _room(max(s.scale for s in slopes), native)
        return any(s.kink for s in slopes) or bool((np.abs(one + two - both) > 4 * room).any())

    # A kink at the point is there from farther off too, where the rounding of a large sum, divided by h, is not.
    return all(seen(h) for h in (NATIVE_STEPS if native else STEPS)[-2:])


def _room(scale: float, native: bool) -> float:
    """How far apart two slopes may lie by rounding."""
    eps = float(np.finfo(np.float32 if native else np.float64).eps)
    return (NATIVE_DIFFERENCE if native else FINITE_DIFFERENCE).units * eps * scale / 4


def _slope(values: np.ndarray, h: float, term: float, found: float, native: bool) -> Slopes:
    eps = float(np.finfo(np.float32 if native else np.float64).eps)
    if not np.isfinite(values).all():
        return Slopes(np.nan, found, np.nan, False, np.nan, False)
    zero, *sides = values
    d1, d2, d4 = ((sides[2 * i] - sides[2 * i + 1]) / (2 * h / 2**i) for i in range(3))
    b1, b2, b4 = ((sides[2 * i] - 2 * zero + sides[2 * i + 1]) / (h / 2**i) for i in range(3))
    scale = max(abs(zero), term)
    room = _room(scale, native)
    # D(h) = φ′ + c h² + …, extrapolated twice: where the order is not 2, the two extrapolations disagree.
    r1, r2 = d2 + (d2 - d1) / 3, d4 + (d4 - d2) / 3
    # The one-sided differences disagree by a + c h + d h³: a is what a kink at the point itself leaves.
    kink = (8 * (b2 - 2 * b4) - (b1 - 2 * b2)) / 7
    smooth = bool(abs(r2 - r1) / 15 <= room and abs(kink) <= room)
    e1, e2 = abs(d1 - d2), abs(d2 - d4)
    order = float(np.log2(e1 / e2)) if e2 > 64 * eps * scale / (h / 4) and e1 > 0 else np.inf
    return Slopes(r2 + (r2 - r1) / 15, found, scale, smooth, order, bool(abs(kink) > room))


def _entry(law: str, oracle: str, name: str, slopes: list[Slopes], native: bool) -> Entry:
    usable = [s for s in slopes if s.smooth]
    if not usable:
        why = (
            "a kink: the one-sided differences disagree or D(h) does not converge, at every step size and after moving"
        )
        if any(not np.isfinite(s.measured) for s in slopes):
            why = "the function is NaN or inf near this point"
        return problem(law, name, f"undecided: {why}", "kink" if "kink" in why else "only NaN", oracle)
    level: Level = NATIVE_DIFFERENCE if native else FINITE_DIFFERENCE
    orders = [s.order for s in usable if np.isfinite(s.order)]
    note = f"order of convergence {min(orders):.2f}" if orders else "differences at rounding"
    if usable[0].moved:
        note += "; moved 1 % away from a kink"
    if len(usable) < len(slopes):
        note += f"; {len(slopes) - len(usable)} of {len(slopes)} directions crossed a kink"
    found, measured = (np.array([getattr(s, field) for s in usable]) for field in ("found", "measured"))
    entry = compare(
        law,
        name,
        oracle,
        found,
        measured,
        level,
        dtype=np.float32 if native else np.float64,
        terms=max(s.scale for s in usable),
        note=note,
    )
    # Slopes along directions are not the leaf's entries: rows that look permuted mean nothing here.
    if entry.diagnosis and not entry.diagnosis.startswith(("off by a constant", "sign", "zero", "only NaN")):
        entry = Entry(**{**entry.__dict__, "diagnosis": None})
    return entry
