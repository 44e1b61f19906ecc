"""What a layer's wrong gradient may turn out to be: the gradient that autodiff gives for each of the usual mistakes.

Computed only when something failed. Each clue is an array under the words that describe the mistake; `diagnose`
names the one that the found gradient is equal to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.arguments import is_float
from jbp.check.compiled import compiled
from jbp.check.sides import output_of
from jbp.check.trees import as_array
from jbp.combine import Combinator
from jbp.layer import Layer
from jbp.paths import paths

SMALL = 512
"""The most inputs for which a layer's Jacobian is formed to look for its diagonal."""


@dataclass
class LawRun:
    """What was run of a layer, and on what."""

    layer: Layer
    params: Any
    x: Any
    key: Any
    delta: Any
    found: dict[str, Any]
    """The results of the program in `laws`, by name."""
    others: dict[str, Any] | None = None
    """The gradients of every leaf for the δ of the usual mistakes, once they are known."""

    @property
    def n(self) -> int:
        """How many examples."""
        return len(self.x)


def clues_for(run: LawRun, leaf: int | None) -> Callable[[], Mapping[str, Any]]:
    """The clues for parameter `leaf`, each example's and the total, or for delta_x (None)."""

    def clues() -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        makers = (_forgotten, _wrong_input, _wrong_delta) if leaf is None else (_forgotten, _wrong_delta, _left_out)
        for maker in makers:
            try:
                found |= maker(run, leaf)
            except Exception:  # a hypothesis that cannot be computed for this layer is no clue
                continue
        return found

    return clues


def _forgotten(run: LawRun, leaf: int | None) -> dict[str, Any]:
    """The gradients where x, or a parameter, is all ones, which is what forgetting to multiply by it does."""
    if isinstance(run.layer, Combinator):
        return {}
    leaves, structure = jax.tree.flatten(run.params)
    ones = lambda a: as_array(np.ones(a.shape, a.dtype))  # noqa: E731
    tried = {} if leaf is None or not is_float(run.x) else {"x": (run.params, ones(run.x))}
    for i, name in enumerate(paths(run.params, "params")):
        if i != leaf and is_float(leaves[i]):
            others = [ones(a) if j == i else a for j, a in enumerate(leaves)]
            tried[name] = (jax.tree.unflatten(structure, others), run.x)
    at = -1 if leaf is None else leaf
    program = compiled(lambda params, x: _of_examples(run, params, x, run.delta[None])[at][0])
    found = {
        f"a factor forgotten: found is right where {name} is all ones": np.asarray(program(*there))
        for name, there in tried.items()
    }
    return {words: each.sum(0) for words, each in found.items()} if leaf is None else _both(found)


def _wrong_delta(run: LawRun, leaf: int | None) -> dict[str, Any]:
    """The gradients for another δ: ones, reversed, rolled, transposed."""
    if run.others is None:
        others = _other_deltas(np.asarray(run.delta))
        each = _gradients(run, run.params, run.x, as_array(np.stack(list(others.values()))))
        run.others = dict(zip(others, zip(*map(np.asarray, each), strict=True), strict=True))
    mine = {words: each[-1 if leaf is None else leaf] for words, each in run.others.items()}
    if leaf is None:
        return {words: e.sum(0) for words, e in mine.items()}
    return _both(mine)


def _other_deltas(delta: Any) -> dict[str, Any]:
    """δ as the usual mistakes have it, by what they are called."""
    others = {"δ left out: it is the gradient for a δ of ones (a bias's is then the batch size)": np.ones_like(delta)}
    for axis in range(delta.ndim):
        if delta.shape[axis] < 2:
            continue
        whose = "one example's δ given to another" if axis == 0 else f"δ out of order along axis {axis}"
        others[f"{whose}: δ reversed"] = np.flip(delta, axis)
        others[f"{whose}: δ rolled by 1"] = np.roll(delta, 1, axis)
        others[f"{whose}: δ rolled by −1"] = np.roll(delta, -1, axis)
    for i in range(1, delta.ndim):
        for j in range(i + 1, delta.ndim):
            if delta.shape[i] == delta.shape[j] > 1:
                others[f"transposed: axes {i} and {j} of δ are swapped"] = delta.swapaxes(i, j)
    return others


def _left_out(run: LawRun, leaf: int | None) -> dict[str, Any]:
    """The total without one of its examples."""
    each = np.asarray(run.found["autodiff_each"][leaf]).astype(np.float64)
    return {f"a dropped term: example {i} is left out": each.sum(0) - each[i] for i in range(run.n)}


def _wrong_input(run: LawRun, leaf: int | None) -> dict[str, Any]:
    """What delta_x becomes with θ′ missing or elsewhere, a matrix transposed, part of the Jacobian."""
    delta, y, x, found = np.asarray(run.delta), run.found["y"], run.x, {}
    if delta.shape == x.shape:
        expected = np.asarray(run.found["autodiff"][-1]).astype(np.float64)
        found["θ′ is missing: found = δ, passed through as it came"] = delta
        found["a dropped term: the δ that goes around (a skip connection's) is not added"] = expected - delta
        found["a dropped term: found = y∘δ, the first of the softmax's y∘(δ − ⟨y, δ⟩)"] = np.asarray(y) * delta
        found["θ′ at the wrong argument: at the output y, not the input"] = _pull(run, run.params, y, delta)
        for words, saved in {"y, the output": y, "x, the input": x}.items():
            repaired = _with_saved(run, saved)
            if repaired is not None and np.allclose(repaired, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max()):
                found[f"θ′ at the wrong argument: backward is right if it is given {words}, for what was saved"] = (
                    run.found["delta_x"]
                )
    leaves, structure = jax.tree.flatten(run.params)
    for i, name in enumerate(paths(run.params, "params")):
        if getattr(leaves[i], "ndim", 0) == 2 and leaves[i].shape[0] == leaves[i].shape[1]:
            other = jax.tree.unflatten(structure, [a.T if j == i else a for j, a in enumerate(leaves)])
            found[f"transposed: {name} is used where its transpose belongs"] = _pull(run, other, x, delta)
    if delta.shape == x.shape and x.size // run.n <= SMALL and not isinstance(run.layer, Combinator):
        found["a dropped term: only the diagonal of the Jacobian is there"] = _diagonal(run) * delta
    return found


def _output(run: LawRun, params: Any, x: Any) -> tuple[Any, Any]:
    return output_of(run.layer, params, x, run.key)


def _pull(run: LawRun, params: Any, x: Any, delta: Any) -> Any:
    leaves, output = _output(run, params, x)
    return compiled(lambda d: jax.vjp(output, leaves)[1](d)[0][-1])(delta)


def _gradients(run: LawRun, params: Any, x: Any, deltas: Any) -> Any:
    """The gradient of each leaf for each δ of [c, n, ...], one example at a time: [c, n, *leaf]."""
    return compiled(lambda deltas: _of_examples(run, params, x, deltas))(deltas)


def _of_examples(run: LawRun, params: Any, x: Any, deltas: Any) -> Any:
    """The same, in a program of somebody else's."""
    leaves, output = _output(run, params, x)
    mask = jnp.eye(run.n, dtype=deltas.dtype).reshape(run.n, run.n, *(1,) * (deltas.ndim - 2))

    def each(delta: Any) -> Any:
        _, pull = jax.vjp(output, leaves)
        return lax.map(lambda row: pull(row * delta)[0], mask)

    return lax.map(each, deltas)


def _both(each: dict[str, Any]) -> dict[str, Any]:
    """A clue for the examples' gradients and one, in the same words, for their total."""
    return {**each, **{words + " ": e.sum(0) for words, e in each.items()}}


def _with_saved(run: LawRun, saved: Any) -> Any:
    """What the layer's backward makes of another `saved`, if that is one array for it."""
    if isinstance(run.layer, Combinator) or not is_float(run.x):
        return None
    one = jax.ShapeDtypeStruct(run.x.shape[1:], run.x.dtype)
    kept = jax.eval_shape(run.layer.forward, run.params, one, run.key)[1]
    if not isinstance(kept, jax.ShapeDtypeStruct) or kept.shape != saved.shape[1:]:
        return None
    delta_x = compiled(jax.vmap(lambda *args: run.layer.backward(*args)[0], (None, 0, 0)))(run.params, saved, run.delta)
    return np.asarray(delta_x).astype(np.float64)


def _diagonal(run: LawRun) -> Any:
    """∂yᵢ/∂xᵢ for every entry of every example."""
    jacobian = compiled(jax.vmap(jax.jacfwd(lambda x: run.layer.forward(run.params, x, run.key)[0])))(run.x)
    size = run.x.size // run.n
    return np.asarray(jacobian).reshape(-1, size, size).diagonal(axis1=1, axis2=2).reshape(run.x.shape)
