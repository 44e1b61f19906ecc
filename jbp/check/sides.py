"""The two sides that the laws of a layer compare: what jbp finds by hand, and the function that autodiff looks at."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jbp.arguments import is_float
from jbp.backprop import backward, forward, total
from jbp.check.trees import Leaves, floats_of, split
from jbp.combine import Combinator
from jbp.layer import Layer
from jbp.pairs import is_pair


def couples(layer: Layer) -> bool:
    """Whether examples of a batch move each other in this layer or net."""
    inside = layer.children if isinstance(layer, Combinator) else ()
    return bool(getattr(layer, "couples_batch", False)) or any(couples(child) for child in inside)


def output_of(layer: Layer, params: Any, x: Any, key: Any, weights: Any = None) -> Any:
    """The function of the differentiable leaves of (params, x) that autodiff and differences look at."""
    leaves, rebuild = split((params, x))

    def output(floats: Leaves) -> Any:
        p, x = rebuild(floats)
        return forward(layer, p, x, key, weights)[0]

    return leaves, output


def gradients_of(layer: Layer, params: Any, x: Any, key: Any, delta: Any) -> Leaves:
    """Σₙ gₙ for each differentiable leaf of params, then delta_x if there is one: by hand, through the spine."""
    _, saved = forward(layer, params, x, key)
    delta_x, sums = backward(layer, params, saved, delta, total)
    return [*floats_of(sums, params), *([delta_x] if is_float(x) else [])]


def by_hand(layer: Layer, params: Any, x: Any, saved: Any, delta: Any) -> dict[str, Any]:
    """delta_x, the total, and the gradient of each example: the pairs contracted with the weights of one row."""
    n = delta.shape[0]
    delta_x, pairs = backward(layer, params, saved, delta)
    leaves = floats_of(pairs, params, is_pair)
    found: dict[str, Any] = {"total": [pair.total() for pair in leaves], "delta_x": delta_x}
    if not couples(layer):
        found["each"] = jax.vmap(lambda w: [pair.total(w) for pair in leaves])(jnp.eye(n, dtype=delta.dtype))
    return found
