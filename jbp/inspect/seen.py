"""The walks of the spine over a batch, with a visit that keeps every value and every δ, by the number of its node."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbp.answers import delta_of
from jbp.backprop import backward_leaf, forward_leaf, forward_whole
from jbp.combine import Combinator, located
from jbp.combine.tied import Uses
from jbp.inspect.graph import Graph, Node
from jbp.layer import Layer
from jbp.layers import Attention
from jbp.losses import Loss
from jbp.pairs import is_pair
from jbp.paths import dotted
from jbp.sinks import total

Arrays = list[np.ndarray]
Deltas = list[np.ndarray | None]


class Forward:
    """Step 1 over a batch: `values` [n, ...] by number, and what the way back needs."""

    def __init__(self, net: Layer, graph: Graph, params: Any, x: Any):
        self.net, self.graph, self.params = net, graph, params
        self._order, self._visits = graph.order(), Counter[tuple[int, ...]]()
        seen: dict[int, Any] = {0: x}

        def at(above: tuple[int, ...]) -> Any:
            def visit(place: tuple[int, ...], layer: Layer, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
                here = above + place
                with located(place, layer):
                    if isinstance(layer, Combinator):
                        return layer.walk_forward(at(here), params, x, key)
                    if layer.couples_batch is True:
                        raise NotImplementedError(
                            f"{layer!r} couples the examples of a batch: one cannot be shown alone"
                        )
                    walk = forward_whole if layer.couples_batch else forward_leaf
                    y, saved = walk(layer, params, x, None)
                node = self._order[here, self._visits[here]]
                self._visits[here] += 1
                seen[node.id] = y
                return y, saved

            return visit

        with jax.disable_jit():  # the scan of `repeat` becomes a loop, whose numbers are there to be read
            self.output, self.saved = at(())((), net, params, x, None)
        for node in graph.nodes:
            if node.op == "add":
                seen[node.id] = sum(seen[i] for i in node.inputs)
            elif node.op == "concat":
                seen[node.id] = jnp.concatenate([seen[i] for i in node.inputs], -1)
        self.values: Arrays = [np.asarray(seen[i]) for i in range(len(graph.nodes) + 1)]


class Backward:
    """Step 2 over a batch, the net's own or that of a rule bound to it: `deltas` [n, ...] by number, None of an input
    that is no number; and `grads(weights)`, what each use of a parameter contributes."""

    def __init__(self, forward: Forward, loss: Loss, y: Any, bound: Any = None, state: Any = None):
        graph, params = forward.graph, forward.params
        delta = jax.vmap(delta_of(loss))(forward.output, y)
        seen: dict[int, Any] = {}
        came: dict[int, Any] = {}
        self._pairs: dict[int, Any] = {}
        self.kept: dict[int, tuple[Attention, Any]] = {}
        """By node: layers of attention that kept their P, and what they saved [n, ...]."""
        order, visits = graph.order(), Counter[tuple[int, ...]]()
        times = Counter(path for path, _ in order)

        def at(above: tuple[int, ...]) -> Any:
            def visit(place: tuple[int, ...], layer: Layer, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
                here = above + place
                if isinstance(layer, Uses):
                    return None, saved
                with located(place, layer):
                    if isinstance(layer, Combinator):
                        return layer.walk_backward(at(here), params, saved, delta)
                    delta_x, pairs = backward_leaf(layer, params, saved, delta)
                visits[here] += 1
                node = order[here, times[here] - visits[here]]
                seen[node.id], came[node.id], self._pairs[node.id] = delta, delta_x, pairs
                if type(layer) is Attention and saved.saved[-1] is not None:
                    self.kept[node.id] = layer, saved.saved
                return delta_x, total(pairs)

            return visit

        with jax.disable_jit():
            if bound is None:
                at(())((), forward.net, params, forward.saved, delta)
            else:
                bound.walk_back(forward.net, at(()), params, state, forward.saved, delta)
        if isinstance(state, dict) and bound is not None:  # direct feedback: what the rule put in the place of δ Wᵀ
            for node in graph.nodes:
                feedback = feedback_of(node, state)
                if feedback is not None and came.get(node.id) is not None:
                    came[node.id] = fed(np.asarray(delta), feedback, came[node.id].shape)
        self.output_delta = np.asarray(delta)
        self.deltas = _everywhere(graph, seen, came, np.asarray(delta))
        self._forward = forward

    def uses(self, weights: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
        """Σₙ wₙ of what each node contributes to its parameters, by its number and the parameter's name there."""
        found = {}
        for node in self._forward.graph.nodes:
            for path, pair in jax.tree.leaves_with_path(self._pairs.get(node.id, ()), is_leaf=is_pair):
                made = pair.total(jnp.asarray(weights))
                found[node.id, dotted(path).strip(".") or "parameter"] = np.asarray(made)
        return found

    def grads(self, weights: np.ndarray) -> Arrays:
        """Σₙ wₙ gₙ by the number of the parameter."""
        graph, found = self._forward.graph, {}
        for (node, local), value in self.uses(weights).items():
            i = graph.nodes[node - 1].params[local]
            found[i] = found[i] + value if i in found else value
        return [found[p.id] for p in graph.params]


def feedback_of(node: Node, state: dict[str, Any]) -> np.ndarray | None:
    """The B of direct feedback alignment that leads to a node's input."""
    found = state.get(dotted(node.path)) if node.op not in ("add", "concat") else None
    return None if found is None else np.asarray(found)[node.repetition]


def fed(error: np.ndarray, feedback: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """e B, as direct feedback alignment puts it below a layer."""
    if error.ndim > 1 and len(shape) > 1 and error.shape[1:-1] == shape[1:-1]:
        return error @ feedback
    return (error.reshape(len(error), -1) @ feedback).reshape(shape)


def attention_maps(layer: Attention, saved: Any, delta: Any) -> tuple[np.ndarray, np.ndarray]:
    """P and δ_P[t, s] = ⟨δ[t], v[s]⟩ [heads, t, s] of what attention saved of one example; δ_P is 0 where P is,
    for what is not seen has no way back."""
    x, _, p = saved
    t, (_, v) = len(x), layer._seen(x)
    d = jnp.einsum("grte,gse->grts", layer._heads(delta), v)
    d = jnp.where(p > 0, d, jnp.zeros_like(d))
    return tuple(np.asarray(a).reshape(layer.heads, t, t) for a in (p, d))  # type: ignore[return-value]


def _everywhere(
    graph: Graph, seen: dict[int, Any], came: dict[int, Any], output: np.ndarray
) -> list[np.ndarray | None]:
    """δ of every value: as the layers were handed it, and where paths meet the sum of what comes down them."""
    sums: dict[int, Any] = {graph.output: output}
    for node in reversed(graph.nodes):
        delta = np.asarray(seen[node.id]) if node.id in seen else sums.get(node.id)
        sums[node.id], start = delta, 0
        for i in node.inputs:
            if node.op == "add":
                part: Any = delta
            elif node.op == "concat":
                width = _width(graph, i, seen, sums)
                part, start = None if delta is None else delta[..., start : start + width], start + width
            else:
                part = came.get(node.id)
            if part is not None:
                sums[i] = np.asarray(part) if sums.get(i) is None else sums[i] + np.asarray(part)
    return [sums.get(i) for i in range(len(graph.nodes) + 1)]


def _width(graph: Graph, i: int, seen: dict[int, Any], sums: dict[int, Any]) -> int:
    """The width of a value whose δ was seen; of a join inside a join, of what it joins."""
    if i in seen:
        return seen[i].shape[-1]
    node = graph.nodes[i - 1]
    widths = [_width(graph, j, seen, sums) for j in node.inputs]
    return sum(widths) if node.op == "concat" else widths[0]


__all__ = ["Arrays", "Backward", "Forward", "attention_maps", "fed", "feedback_of"]
