"""The laws of the statistics on a layer's pairs, in one compiled program: what `jbp.stats` and `jbp.curvature` make of
them, against the gradients of the examples by autodiff, one by one.

    h free of δ      all that a pair holds besides its δ is the same for every δ
    per_example      gₙ
    norms            ‖gₙ‖²
    second_moment    1/N Σₙ gₙ²
    gauss_newton     Σₙ Σᵥ gᵥₙ², over several δ: the columns v
    kronecker        (A ⊗ G) u = Σᵥ gᵥ ⟨gᵥ, u⟩ of one example, for a random u, where the parameter is used once

The gradient alone does not tell h from δ: h ⊗ δ of a weight [i, 1] and h∘δ of a gain are the same the other way round.
But curvature takes h from one backward pass for all columns, and K-FAC's A from h, so a pair with its parts exchanged
is wrong in them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp import stats
from jbp.arguments import is_float
from jbp.backprop import backward, forward
from jbp.check.compare import PRECISION, compare, explain, fact, largest, problem, skipped
from jbp.check.compiled import compiled
from jbp.check.report import Entry
from jbp.check.sides import couples, output_of
from jbp.check.tolerance import Level, eps
from jbp.check.trees import entropy, floats_of, normal
from jbp.curvature import diagonal_over, factors_over
from jbp.layer import Layer
from jbp.pairs import Pair, is_pair
from jbp.paths import paths

COLUMNS = 2
"""How many δ go back: with one, nothing tells an h that follows δ."""
LARGEST = 2**24
"""The most numbers in a parameter's Kronecker factors for them to be formed here."""
EXCHANGED = "exchanged: h follows δ, as it does where a pair's h and δ stand in each other's place"


def statistics(layer: Layer, params: Any, x: Any, seed: Any, level: Level) -> list[Entry]:
    """The entries of these laws, in evaluation; none for a layer without parameters."""
    names = [p for p, a in zip(paths(params, "params"), jax.tree.leaves(params), strict=True) if is_float(a)]
    if not names:
        return []
    if couples(layer, None):
        return [skipped("per_example", "params", "autodiff", "the examples of a batch are coupled")]
    y, saved = jax.eval_shape(lambda p, x: forward(layer, p, x), params, x)
    columns = normal(entropy(seed, 11), jax.ShapeDtypeStruct((COLUMNS, *y.shape), y.dtype))
    shapes = floats_of(jax.eval_shape(lambda p, s, d: backward(layer, p, s, d)[1], params, saved, y), params, is_pair)
    at = [i for i, pair in enumerate(shapes) if not pair.constant]

    def program(params: Any, x: Any, columns: Any, probes: Any) -> Any:
        _, saved = forward(layer, params, x)
        found = lax.map(lambda delta: floats_of(backward(layer, params, saved, delta)[1], params, is_pair), columns)
        leaves, output = output_of(layer, params, x, None)
        pull = jax.vjp(output, leaves)[1]
        each = lax.map(lambda row: pull(row)[0], _one_by_one(columns))
        each = [g.reshape(COLUMNS, len(x), *g.shape[1:]) for g in each]
        return [
            (_ours(found[i], u), each[i], _kronecker(each[i], u, _turned(shapes[i])))
            for i, u in zip(at, probes, strict=True)
        ]

    try:
        why_not = [_not_exact(shapes[i]) for i in at]
        probes = [None if why else _probe(shapes[i], entropy(seed, 12, i)) for i, why in zip(at, why_not, strict=True)]
        with jax.default_matmul_precision(PRECISION):
            results = compiled(program)(params, x, columns, probes)
    except Exception as error:
        return [problem("runs", "the statistics of the pairs", explain(error))]
    parts = zip(at, results, why_not, strict=True)
    rows = [_verdicts(names[i], result, largest(columns), level, why) for i, result, why in parts]
    return [entry for law in zip(*rows, strict=True) for entries in law for entry in entries]


def _one_by_one(columns: Any) -> Any:
    """[v·n, n, ...]: each column's δ of one example alone."""
    n = columns.shape[1]
    rows = jnp.eye(n, dtype=columns.dtype).reshape(1, n, n, *(1,) * (columns.ndim - 2)) * jnp.expand_dims(columns, 1)
    return rows.reshape(-1, *columns.shape[1:])


def _not_exact(pair: Pair) -> str:
    """Why a parameter's A ⊗ G of one example is not compared; "" if it is."""
    if pair.uses > 1:
        return "used several times in an example, where A ⊗ G is an approximation"
    factors = jax.eval_shape(stats.kronecker, pair)
    if not isinstance(factors, stats.Factors):
        return "of several kinds of uses, each with factors of its own"
    return "A and G are too large to be formed here" if factors.a.size + factors.g.size > LARGEST else ""


def _probe(pair: Pair, seed: Any) -> Any:
    """A random u [*l, i, o] for a parameter's factors."""
    factors = jax.eval_shape(stats.kronecker, pair)
    shape = (*(factors.a.shape if factors.diagonal else factors.a.shape[:-1]), factors.g.shape[-1])
    return normal(seed, jax.ShapeDtypeStruct(shape, factors.g.dtype))


def _ours(pair: Any, u: Any) -> dict[str, Any]:
    """What jbp makes of one parameter's pairs, whose arrays have the columns v in front."""

    def back(v: Any) -> Any:
        return jax.tree.map(lambda a: a[v], pair)

    first, columns = back(0), jnp.arange(COLUMNS)
    fields = [(path[-1], a) for path, a in jax.tree_util.tree_leaves_with_path(pair)]
    found = {
        "held": [a for field, a in fields if getattr(field, "name", "") != "delta"],
        "per_example": stats.per_example(first),
        "norms": stats.squared_norms(first),
        "reach": first.reach(),
        "second_moment": stats.second_moment(first),
        "gauss_newton": diagonal_over(columns, back, None, False),
    }
    if u is not None:
        one = jnp.zeros(first.batch, u.dtype).at[0].set(1)
        factors = factors_over(columns, back, "expand", one)
        found["kronecker"] = factors.times(u)
    return found


def _turned(pair: Pair) -> bool:
    """Whether its weight is [o, i]."""
    factors = jax.eval_shape(stats.kronecker, pair)
    return isinstance(factors, stats.Factors) and factors.transposed


def _kronecker(each: Any, u: Any, turned: bool) -> Any:
    """Σᵥ gᵥ ⟨gᵥ, u⟩ of the first example, and its largest term."""
    if u is None:
        return None
    g = each[:, 0].astype(u.dtype)
    g = jnp.swapaxes(g, -1, -2) if turned else g
    g = g.reshape(-1, *u.shape)
    along = jnp.einsum("v...io,...io->v...", g, u)
    size = jnp.abs(g).max() * jnp.abs(g * u[None]).sum((-2, -1)).max()
    return jnp.einsum("v...,v...io->...io", along, g), size


def _verdicts(name: str, result: Any, source: float, level: Level, why_not: str) -> list[list[Entry]]:
    """The entries of one parameter, law by law. What is small beside its δ is rounding, and so is its square."""
    ours, each, kronecker = result
    dtype = each.dtype  # of the layer: what statistics make of 16 bits is float32, and no nearer to autodiff for that
    each = np.asarray(each).astype(np.float64)
    first = each[0]
    least = eps(dtype) * source**2
    squares = np.square(first).sum(tuple(range(1, first.ndim)))
    norms = np.asarray(ours["norms"]).astype(np.float64)
    norms = norms.sum(tuple(range(norms.ndim - 1)))
    rows: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("per_example", ours["per_example"], first, {"source": source}),
        ("norms", norms, squares, {"terms": max(largest(ours["reach"]) ** 2 * _depth(ours), least)}),
        ("second_moment", ours["second_moment"], np.square(first).mean(0), {"terms": max(largest(first) ** 2, least)}),
        ("gauss_newton", ours["gauss_newton"], np.square(each).sum((0, 1)), {"terms": max(largest(each) ** 2, least)}),
    ]
    entries = [_held(name, ours["held"], level)]
    entries += [[compare(law, name, "autodiff", a, e, level, dtype=dtype, **o)] for law, a, e, o in rows]
    if kronecker is None:
        return [*entries, [skipped("kronecker", name, "autodiff", why_not)]]
    terms = max(float(kronecker[1]), least)
    return [
        *entries,
        [compare("kronecker", name, "autodiff", ours["kronecker"], kronecker[0], level, dtype=dtype, terms=terms)],
    ]


def _depth(ours: Any) -> int:
    """Over how many layers of a stack the norms are added up."""
    return math.prod(ours["reach"].shape[:-1])


def _held(name: str, held: list[Any], level: Level) -> list[Entry]:
    """What a pair holds besides its δ, for the second δ and for the first."""
    law, entries = "h free of δ", []
    for a in held:
        if is_float(a):
            entry = compare(law, name, "itself", a[1], a[0], level)
        else:
            entry = fact(law, name, "itself", np.array_equal(a[1], a[0]), "an index is another for another δ")
        entries.append(replace(entry, diagnosis=EXCHANGED) if entry.verdict == "fail" else entry)
    return entries
