"""`jbp.check.optimizer`: the same trajectory from the same random gradients, step by step.

Converging proves nothing: Adam without its bias correction and a damped momentum converge too. Thirty random gradients
of very different sizes do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from jbp.arguments import as_count, as_dtype, as_key, check_finite, dtype_of, is_float, refuse_empty
from jbp.check.compare import compare, explain, fact, problem, skipped
from jbp.check.compiled import compiled
from jbp.check.report import Entry, Report
from jbp.check.tolerance import ELEMENTWISE, Level, check_level
from jbp.check.trees import as_array, cast, entropy, normal, times
from jbp.inputs import check_optimizer
from jbp.paths import paths


def optimizer(
    ours: optax.GradientTransformation,
    theirs: optax.GradientTransformation,
    *,
    params: Any = None,
    steps: int = 30,
    key: int | Array = 0,
    dtype: Any = None,
    level: Level = ELEMENTWISE,
    nones: bool = False,
) -> Report:
    """Check that `ours` takes the steps of `theirs`, the reference, from the same random gradients.

        uₜ = u′ₜ and pₜ = p′ₜ for t = 1 … steps, leaf by leaf, each step on its own scale

    The gradients are normal, of size 10⁻³, 1 and 10³ in turn, the one in the middle 10⁴, and the last but one is zero.
    Each side follows its own parameters. Strict dtype and rank promotion are relaxed around `theirs` alone, because
    optax needs it. With `nones` one leaf's gradient then stays None from the second step on, as frozen parameters have
    it in optax: if `theirs` takes that, so must `ours`, with None for its update and the others as ever.

    Args:
        ours: a `GradientTransformation`.
        theirs: the one it should equal.
        params: where to start; otherwise a matrix, a vector and a scalar of normals, and two empty subtrees.
        steps: how many, at least 3: most mistakes show in the second, a trace that is cut or reset later.
        key: a seed or a key.
        dtype: of the default params; float64 where JAX has it enabled, else float32.
        level: the tolerance.
        nones: whether to try a gradient None, which `jax.tree.map` over two trees does not take.

    Raises:
        ValueError: not optimisers, too few steps, no or non-finite params.
    """
    for name, side in (("ours", ours), ("theirs", theirs)):
        check_optimizer(side, name)
    if as_count(steps, "steps") < 3:
        raise ValueError(f"steps must be at least 3, for momentum to show, but is {steps}")
    check_level(level)
    seed = entropy(as_key(key))
    if params is None:
        dtype = as_dtype(dtype)
        shapes = {"bias": (5,), "gain": (), "weight": (7, 5)}
        params = normal(entropy(seed, 0), {k: jax.ShapeDtypeStruct(s, dtype) for k, s in shapes.items()})
        params |= {"empty": (), "nothing": None}
    elif dtype is not None:
        params = cast(params, as_dtype(dtype))
    if not jax.tree.leaves(params) or not all(is_float(leaf) for leaf in jax.tree.leaves(params)):
        raise ValueError("params must hold arrays of floats, and at least one")
    refuse_empty("params", params, "leave it out, there is nothing to move")
    check_finite("params", params)
    params = jax.tree.map(as_array, params)
    sizes = [10.0 ** (3 * (t % 3) - 3) for t in range(steps)]
    sizes[steps // 2] = 1e4
    sizes[steps - 2] = 0.0
    drawn = [normal(entropy(seed, 1, t), params) for t in range(steps)]
    gradients = [jax.tree.map(lambda g, c=c: times(c, g), tree) for c, tree in zip(sizes, drawn, strict=True)]

    subject = f"an optimizer against its reference, {steps} steps"
    try:
        mine = _trajectory(ours, params, gradients)
        again = _trajectory(ours, params, gradients[:2], jitted=False)
    except Exception as error:
        return Report(subject, (problem("runs", "ours", explain(error)),))
    try:
        reference = _relaxed(theirs, params, gradients)
    except Exception as error:
        return Report(subject, (problem("runs", "theirs", explain(error)),))

    entries: list[Entry] = []
    if jax.tree.structure(mine[0][0]) != jax.tree.structure(params):
        what = f"updates must have the tree of params, but have {jax.tree.structure(mine[0][0])}"
        return Report(subject, (problem("tree", "updates", what),))
    for i, (leaf, path) in enumerate(zip(jax.tree.leaves(params), paths(params), strict=True)):
        kind = dtype_of(jax.tree.leaves(mine[0][0])[i])
        entries.append(
            fact("dtypes", f"updates{path}", "protocol", kind == leaf.dtype, f"update {kind}, parameter {leaf.dtype}")
        )
        for what, part in (("updates", 0), ("params", 1)):
            found, expected = ([np.asarray(jax.tree.leaves(s[part])[i]) for s in side] for side in (mine, reference))
            entries.append(_worst(f"{what}{path}", found, expected, level))
        found, expected = ([np.asarray(jax.tree.leaves(s[0])[i]) for s in side] for side in (again, mine))
        entries.append(compare("jit = eager", f"updates{path}", "eager", expected[1], found[1], level))
    if nones:
        entries += _with_none(ours, theirs, params, gradients[:3], level)
    return Report(subject, tuple(entries))


def _with_none(ours: Any, theirs: Any, params: Any, gradients: list[Any], level: Level) -> list[Entry]:
    """The first leaf's gradient is None after the first step: the same updates, None among them."""
    law, frozen = "gradient None", paths(params)[0]
    for t in range(1, len(gradients)):
        leaves, structure = jax.tree.flatten(gradients[t])
        gradients[t] = jax.tree.unflatten(structure, [None, *leaves[1:]])
    try:
        reference = _relaxed(theirs, params, gradients)
    except Exception as error:
        return [skipped(law, f"updates{frozen}", "reference", f"theirs does not take it: {explain(error)}")]
    try:
        mine = _trajectory(ours, params, gradients)
    except Exception as error:
        return [problem(law, f"updates{frozen}", explain(error))]
    entries = []
    for t, ((found, _), (expected, _)) in enumerate(zip(mine, reference, strict=True)):
        have, want = jax.tree.structure(found), jax.tree.structure(expected)
        if have != want:
            return [problem(law, f"updates{frozen}", f"in step {t + 1} updates have the tree {have}, not {want}")]
        note = f"step {t + 1} of {len(mine)}"
        for path, f, e in zip(paths(found), jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            entries.append(compare(law, f"updates{path}", "reference", f, e, level, note=note))
    return entries


def _relaxed(optimizer: Any, params: Any, gradients: list[Any]) -> list[tuple[Any, Any]]:
    """The trajectory of a reference, which may promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return _trajectory(optimizer, params, gradients)


def _trajectory(optimizer: Any, params: Any, gradients: list[Any], jitted: bool = True) -> list[tuple[Any, Any]]:
    """(updates, params) after each step."""

    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = optimizer.update(gradient, state, params)
        return updates, jax.tree.map(move, updates, params, is_leaf=lambda u: u is None), state

    def move(update: Any, param: Any) -> Any:
        return param if update is None else param + update.astype(param.dtype)

    step = compiled(step) if jitted else step
    state, taken = optimizer.init(params), []
    for gradient in gradients:
        updates, params, state = step(params, state, gradient)
        taken.append((updates, params))
    return taken


def _worst(path: str, found: list[np.ndarray], expected: list[np.ndarray], level: Level) -> Entry:
    """The entry of the worst step; where some are wrong, of the first wrong one, in which the mistake is plainest."""
    law = "same trajectory"
    if not any(e.any() for e in expected):
        return problem(law, path, "the reference does not move this parameter: there would be nothing to check")
    floor = max(float(np.abs(e.astype(np.float64)).max()) for e in expected[:1])
    entries = []
    for t, (f, e) in enumerate(zip(found, expected, strict=True)):
        before = expected[t - 1] if t else e
        clues = {
            "it is the step before: the old state is used": before,
            "the trace before this step: one step late": before,
        }
        terms = floor if not e.any() else 0.0
        entry = compare(law, path, "reference", f, e, level, terms=terms, clues=(lambda c=clues: c) if t else None)
        entries.append((t, entry))
    wrong = [(t, entry) for t, entry in entries if entry.verdict == "fail"]
    t, entry = wrong[0] if wrong else max(entries, key=lambda te: te[1].error)
    note = f"{'first wrong' if wrong else 'worst'} in step {t + 1} of {len(found)}"
    compared, index = sum(e.compared for _, e in entries), (t, *(entry.index or ()))
    return replace(entry, note=note, compared=compared, index=index)
