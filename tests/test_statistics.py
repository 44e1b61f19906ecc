"""Every statistic of every net of the case table, and of random nets, against brute force.

The reference is autodiff of the plain forward pass, in float64: the gradient of each example, formed, and then the
definition in numpy. What jbp computes in float32 is held to the same numbers. All statistics of a net are one compiled
function, as a user would ask for them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, NETS, NetCase, drawn, random
from nets import numbers, seeded
from oracles import UNITS, compiled, plain, plain_errors

import jbp
from jbp import losses, stats
from jbp.pairs import is_pair

CASES = [
    case for case in NETS if jax.tree.leaves(jax.eval_shape(lambda c=case: c.net.init(jax.random.key(0), c.shape)[0]))
]
IN_FLOAT32 = CASES[::7] + [case for case in CASES if "kinds" in case.name or "user" in case.name]
"""Among them every class of pair: Outer used once and often, Shift, Scale, Sum, and stacks of them."""
GROUPS = {"weights": "*weight", "rest": ("*bias", "*gain", "*table")}
RANDOM = [n if n < 5 else pytest.param(n, marks=pytest.mark.soak) for n in range(16)]
BOUND = 0.7


def asked(pairs: Any, weights: Any) -> dict[str, Any]:
    """Everything that reads pairs."""
    return {
        "per_example": stats.per_example(pairs),
        "norms": stats.norms(pairs),
        "norms per layer": stats.norms(pairs, "layer"),
        "norms per parameter": stats.norms(pairs, "parameter"),
        "squared_norms": stats.squared_norms(pairs),
        "gram": stats.gram(pairs),
        "gram per parameter": stats.gram(pairs, per="parameter"),
        "project": stats.project(pairs, jbp.contract(pairs, weights)),
        "project per parameter": stats.project(pairs, jbp.contract(pairs, weights), "parameter"),
        "second_moment": stats.second_moment(pairs),
        "second_moment, weighted": stats.second_moment(pairs, weights),
        "variance": stats.variance(pairs),
        "variance, weighted": stats.variance(pairs, weights),
        "noise_and_signal": stats.noise_and_signal(pairs),
        "noise_and_signal, weighted": stats.noise_and_signal(pairs, weights),
        "clip_weights": stats.clip_weights(pairs, BOUND),
        "clipped": stats.clipped(pairs, BOUND, weights=weights),
        "clipped per layer": stats.clipped(pairs, BOUND, per="layer"),
        "clipped, automatic": stats.clipped(pairs, BOUND, automatic=True),
    }


def defined(grads: Any, weights: np.ndarray, layers: dict[str, list[int]], depths: list[int]) -> dict[str, Any]:
    """The same from the gradients of the examples [n, *shape], by definition."""
    leaves, structure = jax.tree.flatten(grads)
    n = len(leaves[0])
    rows = [leaf.reshape(n, -1) for leaf in leaves]
    flat = np.concatenate(rows, 1)
    square = [np.square(row).sum(1) for row in rows]
    norm = np.sqrt(sum(square))
    p = weights / weights.sum()

    def tree(function: Any) -> Any:
        return structure.unflatten([function(leaf) for leaf in leaves])

    def weighted(w: np.ndarray, leaf: np.ndarray) -> np.ndarray:
        return np.tensordot(w, leaf, 1)

    def variance(w: np.ndarray, leaf: np.ndarray) -> np.ndarray:
        spread = weighted(w, np.square(leaf - weighted(w, leaf)))
        return spread / (1 - np.square(w).sum())

    def noise(w: np.ndarray) -> tuple[Any, Any]:
        trace = variance(w, flat).sum()
        return trace, np.square(w @ flat).sum() - np.square(w).sum() * trace

    def by_depth(leaf: np.ndarray, depth: int) -> np.ndarray:
        squares = np.square(leaf).sum(tuple(range(1 + depth, leaf.ndim)))
        return np.moveaxis(squares, 0, -1)

    def clipped_per_layer() -> Any:
        found: list[Any] = [None] * len(leaves)
        for members in layers.values():
            norms = np.sqrt(sum(square[i] for i in members))
            bound = BOUND / np.sqrt(len(layers))
            c = bound / np.maximum(norms, bound)
            for i in members:
                found[i] = weighted(c, leaves[i])
        return structure.unflatten(found)

    even = np.full(n, 1 / n)
    c = BOUND / np.maximum(norm, BOUND)
    return {
        "per_example": grads,
        "norms": norm,
        "norms per layer": {name: np.sqrt(sum(square[i] for i in members)) for name, members in layers.items()},
        "norms per parameter": structure.unflatten([np.sqrt(s) for s in square]),
        "squared_norms": structure.unflatten([by_depth(g, d) for g, d in zip(leaves, depths, strict=True)]),
        "gram": flat @ flat.T,
        "gram per parameter": [row @ row.T for row in rows],
        "project": flat @ (weights @ flat),
        "project per parameter": [row @ (weights @ row) for row in rows],
        "second_moment": tree(lambda leaf: np.square(leaf).mean(0)),
        "second_moment, weighted": tree(lambda leaf: weighted(weights, np.square(leaf))),
        "variance": tree(lambda leaf: variance(even, leaf)),
        "variance, weighted": tree(lambda leaf: variance(p, leaf)),
        "noise_and_signal": noise(even),
        "noise_and_signal, weighted": noise(p),
        "clip_weights": c,
        "clipped": tree(lambda leaf: weighted(weights * c, leaf)),
        "clipped per layer": clipped_per_layer(),
        "clipped, automatic": tree(lambda leaf: weighted(BOUND / (norm + 0.01), leaf)),
    }


def compare(ours: dict[str, Any], expected: dict[str, Any], level: str, dtype: Any) -> None:
    """In units of eps × the largest entry; of differences (variances) × the largest entry of what is subtracted, of
    inner products × that of the norms. A leaf whose gradient is nothing but rounding, as that of a bias below a
    normalisation, is measured by the largest entry of them all."""
    eps, wrong = float(jnp.finfo(dtype).eps), {}
    for name, found in ours.items():
        wanted = expected[name]
        kind = name.split(",")[0]
        minuends = jax.tree.leaves(expected["second_moment"]) if kind == "variance" else None
        if kind == "noise_and_signal":
            minuends = [np.asarray(sum(a.sum() for a in jax.tree.leaves(expected["second_moment"])))] * 2
        if kind in ("project", "project per parameter"):
            grams = jax.tree.leaves(expected[kind.replace("project", "gram")])
            minuends = [np.diag(gram) for gram in grams]
        whole = max(np.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(wanted))
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        for i, (a, b) in enumerate(pairs):
            assert a.shape == np.shape(b), f"{name}: {a.shape} instead of {np.shape(b)}"
            assert a.dtype == dtype, f"{name}: {a.dtype}"
            size = max(np.abs(b).max(), np.abs(minuends[i]).max() if minuends else 0)
            size = whole if size < 1e3 * eps * whole else size
            error = np.abs(np.asarray(a, np.float64) - b).max()
            units = 0.0 if error == 0 else error / (eps * size)
            # Norms and moments are products of two gradients' roundings, hence twice the level.
            if not units <= 2 * UNITS[level]:
                wrong[f"{name} {i}"] = units
    assert not wrong, wrong


def layers_and_depths(pairs: Any) -> tuple[dict[str, list[int]], list[int]]:
    """Which leaves belong to which layer, and in how many stacks each is."""
    layers: dict[str, list[int]] = {}
    depths = []
    for i, (keys, pair) in enumerate(jax.tree_util.tree_flatten_with_path(pairs, is_leaf=is_pair)[0]):
        name = ".".join(str(k.idx) for k in keys if hasattr(k, "idx")) or "."
        layers.setdefault(name, []).append(i)
        depths.append(str(jax.tree.structure(pair)).count("Stack"))
    return layers, depths


def check(net: Any, loss: Any, params: Any, x: Any, y: Any, weights: Any, level: str, dtypes: Any) -> None:
    """All statistics of a net, in each dtype."""
    grads = compiled(jax.jacrev(lambda p: plain_errors(loss, plain(net, p, x), y)))(params)
    grads = jax.tree.map(np.asarray, grads)
    layers, depths = layers_and_depths(jax.eval_shape(lambda p: jbp.value_and_pairs(net, loss, p, x, y)[1], params))
    expected = defined(grads, np.asarray(weights), layers, depths)
    for dtype in dtypes:

        def cast(tree: Any, dtype: Any = dtype) -> Any:
            return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)

        def run(p: Any, x: Any, y: Any, w: Any) -> Any:
            return asked(jbp.value_and_pairs(net, loss, p, x, y)[1], w)

        compare(compiled(run)(*cast((params, x, y, weights))), expected, level, dtype)


LEAN = [case for i, case in enumerate(CASES) if i % 2 == 0 or case in IN_FLOAT32]
"""The nets that are not left to `make soak`."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in LEAN else [pytest.mark.soak], id=case.name) for case in CASES]
)
def test_statistics_of_the_case_table(case: NetCase):
    params, x, target, _ = drawn(case)
    target = target.reshape(BATCH, -1) if target.ndim < 2 else target
    weights = jnp.asarray(random(case.name).uniform(0.1, 2, BATCH))
    dtypes = [jnp.float64, jnp.float32] if case in IN_FLOAT32 else [jnp.float64]
    check(case.net, losses.l2_loss, params, x, target, weights, "net" if case.deep else "layer", dtypes)


@pytest.mark.parametrize("seed", RANDOM)
def test_statistics_of_random_nets(seed: int):
    problem = seeded(seed, 2026, dtype="float64")
    drawn = numbers(problem)
    if not jax.tree.leaves(drawn.params) or problem.batch < 2:
        with pytest.raises(ValueError, match=r"no parameters|at least two"):
            stats.variance(jbp.value_and_pairs(problem.net, problem.loss, drawn.params, drawn.x, drawn.y)[1])
        return
    weights = jnp.asarray(np.random.default_rng(seed).uniform(0.1, 2, problem.batch))
    check(problem.net, problem.loss, drawn.params, drawn.x, drawn.y, weights, "net", [jnp.float64])
