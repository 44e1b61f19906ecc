"""Points where a function has no derivative: a given point that lies on a kink is left for one beside it.

At a kink (a rectifier at 0, which padding and zero biases reach) autodiff gives one number between the two slopes and
a backward pass by hand may give another: jnp.maximum 1/2, `jax.nn.relu` and jbp 0. Neither is wrong, so such a point
decides nothing. The report says that the point was moved. At the kink itself a layer is held to its own convention.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jbp.backprop import backward, forward
from jbp.check.compare import PRECISION, compare, skipped
from jbp.check.finite_differences import Function, beside, kinks_along
from jbp.check.report import Entry, Report
from jbp.check.tolerance import EXACT
from jbp.check.trees import Leaves, cast, entropy, normal
from jbp.layer import Layer


def at_kink(function: Function, point: Leaves, extra: Any, seed: Any) -> bool:
    """Whether the one-sided slopes of `function` at this point disagree along a random direction of some leaf."""
    try:
        with jax.enable_x64(True), jax.default_matmul_precision(PRECISION):
            point, extra = [cast(leaf, jnp.float64) for leaf in point], cast(extra, jnp.float64)
            return kinks_along(function, point, extra, entropy(seed, 6))
    except Exception:  # what cannot be run in float64 is known for no kink, and its failure stands
        return False


def moved(point: Leaves, seed: Any) -> Leaves:
    """The point beside this one, in the same dtypes: 1 % of normals away in every entry."""
    return [leaf.astype(p.dtype) for leaf, p in zip(beside(point, entropy(seed, 7)), point, strict=True)]


def after_moving(report: Report, path: str) -> Report:
    """The report of the moved point, which says so."""
    why = "the given point lies on a kink, where the one-sided slopes disagree: checked 1 % beside it"
    return Report(report.subject, (skipped("point", path, "finite differences", why), *report.entries))


def convention(layer: Layer, slopes: tuple[float, float, float], dtype: Any, seed: Any) -> list[Entry]:
    """θ(0) = 0, and delta_x = θ′∘δ with these θ′ just below 0, at 0 (also at −0) and just above: exactly."""
    tiny = float(jnp.finfo(dtype).eps) / 16  # of no account beside 1, yet far from underflow
    points = {"just below 0": (-tiny, slopes[0]), "−0": (-0.0, slopes[1]), "0": (0.0, slopes[1])}
    points["just above 0"] = (tiny, slopes[2])
    x = jnp.asarray([[s] for s, _ in points.values()], dtype)
    delta = normal(entropy(seed, 8), jax.ShapeDtypeStruct(x.shape, x.dtype))
    y, saved = forward(layer, (), x)
    delta_x, _ = backward(layer, (), saved, delta)
    entries = []
    for n, (name, (s, slope)) in enumerate(points.items()):
        law, oracle, note = "at the kink", "definition", f"θ′ = {slope:g}"
        if s == 0:
            entries.append(compare(law, f"{layer!r} at {name}: y", oracle, y[n], x[n] * 0, EXACT))
        expected = jnp.asarray(slope, dtype) * delta[n]
        entries.append(compare(law, f"{layer!r} at {name}: delta_x", oracle, delta_x[n], expected, EXACT, note=note))
    return entries
