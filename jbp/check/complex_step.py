"""The complex step: a derivative without subtraction, for functions that are analytic as they are written.

    ⟨∇φ, v⟩ = Im φ(p + i h v) / h,  h = 10⁻²⁰,  with an error of order h²: exact to rounding

Source: W. Squire, G. Trapp, "Using complex variables to estimate derivatives of real functions", 1998.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.check.compare import PRECISION, compare, explain, largest, skipped
from jbp.check.compiled import compiled, wide
from jbp.check.finite_differences import EMPTY, MOVES, Function, Gradient, beside, directions_in, kinks_along
from jbp.check.report import Entry
from jbp.check.tolerance import COMPLEX_STEP
from jbp.check.trees import Leaves, cast, entropy
from jbp.pairs.geometry import convolved_in_real_parts

STEP = 1e-20
_NOT_ANALYTIC = frozenset({"abs", "real", "imag", "conj", "sign", "complex", "pure_callback", "io_callback"})
_LOSSY = frozenset({"conv_general_dilated"})
"""What is analytic, but of complex numbers XLA's loses a part that is 1e-20 of the other."""


def complex_step(
    function: Function,
    gradient: Gradient,
    point: Leaves,
    extra: Any,
    names: list[str],
    key: Any,
    source: float,
) -> list[Entry]:
    """Compare ⟨gradient, v⟩ with the complex step of `function` along random v, leaf by leaf; or skip, saying why.

    Errors are held to the size of `source`, the δ that the gradient came from, where that is larger: a rule loses
    digits where it takes nearly equal numbers apart (1 − y² of a tanh far out), and is none the less right. At a kink
    the step takes one side; so before a leaf fails the point is looked at, and moved if it lies on one.
    """
    law, oracle = "derivative", "complex step"
    with (
        wide(),
        jax.default_matmul_precision(PRECISION),
        jax.numpy_dtype_promotion("standard"),
    ):
        point, extra = [cast(leaf, jnp.float64) for leaf in point], cast(extra, jnp.float64)

        def along(point: Leaves, extra: Any, directions: Leaves) -> Any:
            gradients = gradient(point, extra)

            def one(v: Leaves) -> Any:
                steps = [lax.complex(p, STEP * a) for p, a in zip(point, v, strict=True)]
                value, _ = function(steps, extra)
                if not jnp.iscomplexobj(value):
                    raise TypeError("the imaginary part is dropped on the way")
                terms = jnp.stack([jnp.abs(g * a).max() for g, a in zip(gradients, v, strict=True)]).max()
                return value.imag / STEP, sum(jnp.sum(g * a) for g, a in zip(gradients, v, strict=True)), terms

            return lax.map(one, directions)

        try:
            complex_point = [jax.ShapeDtypeStruct(p.shape, jnp.complex128) for p in point]
            traced = jax.make_jaxpr(lambda p, e: function(p, e)[0])(complex_point, extra)
            met = set(_complex_primitives(traced.jaxpr))
            if blocked := sorted(_NOT_ANALYTIC & met):
                raise TypeError(f"not analytic as written: {', '.join(blocked)} of a complex number")
            if lossy := sorted(_LOSSY & met):
                what = f"{', '.join(lossy)} of complex numbers loses the step"
                raise TypeError(f"{what}: jbp.pairs.Geometry convolves their parts apart")
            run = compiled(along)
            entries = []
            on_kink = cache(lambda: kinks_along(function, point, extra, entropy(key, len(names))))

            def at(here: Leaves, i: int, note: str) -> Entry:
                v = directions_in(i, point, entropy(key, i), 2)
                measured, found, terms = (np.asarray(a) for a in run(here, extra, v))
                size = max(float(terms.max()), source * largest(v[i]))
                options: dict[str, Any] = {"dtype": np.float64, "terms": size, "note": note}
                return compare(law, names[i], oracle, found, measured, COMPLEX_STEP, **options)

            for i, name in enumerate(names):
                if not point[i].size:
                    entries.append(skipped(law, name, oracle, EMPTY))
                    continue
                entry = at(point, i, "")
                for move in range(1, MOVES):
                    if entry.verdict == "pass" or not on_kink():
                        break
                    entry = at(beside(point, entropy(key, i, move, 0)), i, "moved 1 % away from a kink")
                entries.append(entry)
            return entries
        except Exception as error:
            return [skipped(law, name, oracle, explain(error)) for name in names]


def _complex_primitives(jaxpr: Any) -> Iterator[str]:
    """The names of the primitives that are given a complex number, in sub-programs too."""
    for eqn in jaxpr.eqns:
        if any(jnp.issubdtype(getattr(v.aval, "dtype", np.float32), jnp.complexfloating) for v in eqn.invars):
            yield eqn.primitive.name
        if eqn.params.get("name") == convolved_in_real_parts.__name__:
            continue  # it takes complex numbers apart, and puts them together as their product is
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _complex_primitives(inner)
