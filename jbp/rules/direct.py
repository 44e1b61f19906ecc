"""Direct feedback alignment: the error at the output goes to every layer by a road of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array

from jbp.backprop import Mask, backward, forward
from jbp.combine import Place, Visit
from jbp.layer import Layer, as_number
from jbp.rules.rule import Rule, RuleMethod, Way, depths_of, visit_leaves


@dataclass(frozen=True)
class DirectFeedbackAlignment(Rule):
    """e = δ at the net's output goes to each layer through a fixed random matrix, and not through the layers above.

        δ_h[i] = Σₖ e[k] B[k,i]   below each layer that has parameters, in place of δ Wᵀ; B its own, N(0, σ²), fixed

    h is the layer's input, which is the output of the activation below; from there δ goes on as ever, through that
    activation's slope: δ = (e B)∘θ′(s), as published. Combinators are untouched: below `residual` it is δ + e B, below
    `branch` the sum over its layers, and each repetition of `repeat` has a B of its own. The layer at the output gets
    the true gradient. Where output and h have the same positions, e[t,:] goes to position t, through one B; else B
    goes from all outputs to all of h. σ is `stddev`, by default 1/√i: the size of a LeCun weight [i, k].

    Source: Nøkland 2016, "Direct feedback alignment provides learning in deep neural networks", arXiv:1609.01596.
    """

    stddev: float | None = None

    def __post_init__(self) -> None:
        if self.stddev is not None:
            object.__setattr__(self, "stddev", as_number(self.stddev, "the stddev of DirectFeedbackAlignment", 0.0))

    def bind(self, net: Layer, params: Any, x: Any, mask: Mask) -> DirectMethod:
        """The method of this rule for this net."""
        depths = depths_of(net, params, x)

        def shapes(params: Any, x: Any) -> Any:
            output, saved = forward(net, params, x)
            return backward(Way(net, _Shapes(depths)), (params, ()), saved, output)[1]

        leaves, structure = jax.tree.flatten(jax.eval_shape(shapes, params, x[:1]))
        found = [((*leaf.shape[:-3], *leaf.shape[-2:]), str(leaf.dtype)) for leaf in leaves]
        here = [shape if leaf.shape[-3] == _HERE else None for shape, leaf in zip(found, leaves, strict=True)]
        return DirectMethod(depths, self.stddev, tuple(here), structure)


@dataclass(frozen=True)
class DirectMethod(RuleMethod):
    """Direct feedback alignment bound to a net: the shapes of B, each at its layer's first parameter."""

    stddev: float | None
    shapes: tuple[tuple[tuple[int, ...], str] | None, ...]
    structure: Any = field(repr=False)

    def init(self, key: Array, net: Layer, params: Any) -> Any:
        """B of each layer with parameters; under `repeat` with an axis l in front."""

        def one(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
            size = shape[-1] ** -0.5 if self.stddev is None else self.stddev
            return size * jax.random.normal(key, shape, dtype)

        keys = jax.random.split(key, len(self.shapes))
        drawn = [None if shape is None else one(k, *shape) for k, shape in zip(keys, self.shapes, strict=True)]
        return self.structure.unflatten(drawn)

    def walk_back(self, net: Layer, visit: Visit, params: Any, state: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """The net's way back, with e B below every layer that has parameters."""
        error = delta

        def leaf(place: Place, layer: Layer, fed: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
            params = jax.tree.map(lambda f: f.param, fed, is_leaf=_is_fed)
            delta_x, found = visit(place, layer, params, saved, delta)
            feedback = [f.feedback for f in jax.tree.leaves(fed, is_leaf=_is_fed) if f.feedback is not None]
            return (_feed(error, feedback[0], delta_x) if feedback else delta_x), found

        # A parameter and its layer's B go down the net together, so that `repeat` hands each repetition its own.
        fed = jax.tree.map(_Fed, params, state)
        return visit_leaves(visit, leaf)((), net, fed, saved, delta)


_HERE = 2


@dataclass(frozen=True)
class _Shapes(RuleMethod):
    """A way back that finds, at the first parameter of each layer, zeros [2, k, i] for a B [k, i], elsewhere [1, 1, 1].

    So `repeat` puts its axis in front, and where `tied` adds up what was found, a B and none make a B.
    """

    def walk_back(self, net: Layer, visit: Visit, params: Any, state: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        error = delta

        def leaf(place: Place, layer: Layer, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
            delta_x, _ = visit(place, layer, params, saved, delta)
            leaves, structure = jax.tree.flatten(params)
            found = [jnp.zeros((1, 1, 1), delta.dtype) for _ in leaves]
            if leaves and delta_x is not None:
                shape = error.shape[1:], delta_x.shape[1:]
                rows, columns = (s[-1:] if _same_positions(*shape) else s for s in shape)
                found[0] = jnp.zeros((_HERE, math.prod(rows), math.prod(columns)), delta_x.dtype)
            return delta_x, structure.unflatten(found)

        return visit_leaves(visit, leaf)((), net, params, saved, delta)


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Fed:
    """A parameter, and the B of its layer if it is the layer's first."""

    param: Any
    feedback: Any


def _is_fed(node: Any) -> bool:
    return isinstance(node, _Fed)


def _same_positions(output: tuple[int, ...], h: tuple[int, ...]) -> bool:
    return bool(output) and bool(h) and output[:-1] == h[:-1]


def _feed(error: Array, feedback: Array, delta_x: Array) -> Array:
    """e B, in the shape of `delta_x`."""
    if _same_positions(error.shape[1:], delta_x.shape[1:]):
        return error @ feedback
    return (error.reshape(len(error), -1) @ feedback).reshape(delta_x.shape)
