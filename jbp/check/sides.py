"""The two sides that the laws of a layer compare: what jbp finds by hand, and the function that autodiff looks at."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from jbp.arguments import is_float
from jbp.backprop import backward, forward, total
from jbp.check.trees import Leaves, floats_of, split
from jbp.layer import Layer
from jbp.pairs import is_pair


def couples(layer: Layer, key: Any) -> bool:
    """Whether examples of a batch move each other in this layer or net: with a key in training, without in
    evaluation."""
    return layer.couples_batch is True or (layer.couples_batch == "training" and key is not None)


def constants(layer: Layer, params: Any, x: Any, key: Any) -> set[int]:
    """Which of the differentiable leaves of params are held fixed, by their pairs: running moments."""

    def pairs(params: Any, x: Any, key: Any) -> Any:
        y, saved = forward(layer, params, x, key)
        return backward(layer, params, saved, y)[1]

    found = floats_of(jax.eval_shape(pairs, params, x, key), params, is_pair)
    return {i for i, pair in enumerate(found) if pair.constant}


def output_of(
    layer: Layer, params: Any, x: Any, key: Any, weights: Any = None, fixed: Collection[int] = ()
) -> tuple[Leaves, Callable[[Leaves], Any]]:
    """The differentiable leaves of (params, x), less those that are fixed, and the output as a function of them."""
    leaves, rebuild = split((params, x), fixed)

    def output(floats: Leaves) -> Any:
        p, x = rebuild(floats)
        return forward(layer, p, x, key, weights)[0]

    return leaves, output


def gradients_of(layer: Layer, params: Any, x: Any, key: Any, delta: Any) -> Leaves:
    """Σₙ gₙ for each differentiable leaf of params, then delta_x if there is one: by hand, through the spine."""
    _, saved = forward(layer, params, x, key)
    delta_x, sums = backward(layer, params, saved, delta, total)
    return [*floats_of(sums, params), *([delta_x] if is_float(x) else [])]


def by_hand(layer: Layer, params: Any, x: Any, key: Any, saved: Any, delta: Any) -> dict[str, Any]:
    """delta_x, the total, and the gradient of each example: the pairs contracted with the weights of one row."""
    n = delta.shape[0]
    delta_x, pairs = backward(layer, params, saved, delta)
    leaves = floats_of(pairs, params, is_pair)
    found: dict[str, Any] = {"total": [pair.total() for pair in leaves], "delta_x": delta_x}
    if not couples(layer, key):
        found["each"] = jax.vmap(lambda w: [pair.total(w) for pair in leaves])(jnp.eye(n, dtype=delta.dtype))
    return found
