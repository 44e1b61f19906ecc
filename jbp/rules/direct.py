"""Direct feedback alignment: the error at the output goes to every layer by a road of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.tree_util import register_dataclass

from jbp.annotations import Array
from jbp.arguments import as_number
from jbp.backprop import Trainable, backward, forward
from jbp.combine import Combinator, Place, Repeat, Visit
from jbp.layer import Layer
from jbp.pairs import is_pair
from jbp.paths import dotted
from jbp.rules.rule import Bound, Rule, Way, depths_of


@dataclass(frozen=True)
class DirectFeedbackAlignment(Rule):
    """e = δ at the net's output goes to each layer through a fixed random matrix, and not through the layers above.

        δ_h[i] = Σₖ e[k] B[k,i]   below each layer that has a weight, in place of δ Wᵀ; B its own, N(0, σ²), fixed

    h is the layer's input, which is the output of the activation below; from there δ goes on as ever, through that
    activation's slope: δ = (e B)∘θ′(s), as published. Combinators are untouched: below `residual` it is δ + e B, below
    `branch` the sum over its layers, and each repetition of `repeat` has a B of its own, as has each layer of `tied`
    that uses a weight, borrowed or not. Gains, biases and normalisation alone are passed as ever: there is no weight to
    be spared. The layer at the output gets the true gradient. Where output and h have the
    same positions, e[t,:] goes to position t, through one B; else B goes from all outputs to all of h. σ is `stddev`,
    by default 1/√i: the size of a LeCun weight [i, k]. The state holds each B by its layer's dotted path, "1.0".

    Source: Nøkland 2016, "Direct feedback alignment provides learning in deep neural networks", arXiv:1609.01596.
    """

    stddev: float | None = None
    takes_mask = False

    def __post_init__(self) -> None:
        if self.stddev is not None:
            object.__setattr__(self, "stddev", as_number(self.stddev, "the stddev of DirectFeedbackAlignment", 0.0))

    def bind(self, net: Layer, params: Any, x: Any, trainable: Trainable) -> BoundDirect:
        """This rule for this net."""
        depths = depths_of(net, params, x)
        found: dict[str, _Shape] = {}

        def walk(params: Any, x: Any) -> Any:
            output, saved = forward(net, params, x)
            return backward(Way(net, _Shapes(depths, found)), (params, ()), saved, output)[0]

        jax.eval_shape(walk, params, x)
        return BoundDirect(depths, self.stddev, tuple(sorted(found.items())))


class _Shape(NamedTuple):
    """Of one B: [*l, k, i], with an axis l for each `repeat` around it."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class BoundDirect(Bound):
    """Direct feedback alignment bound to a net: the shape of each layer's B, by the layer's dotted path."""

    stddev: float | None
    shapes: tuple[tuple[str, _Shape], ...]

    def init(self, key: Array, params: Any) -> Any:
        """B of each layer that uses a weight; under `repeat` with an axis l in front."""

        def one(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
            size = shape[-1] ** -0.5 if self.stddev is None else self.stddev
            return size * jax.random.normal(key, shape, dtype)

        keys = jax.random.split(key, len(self.shapes))
        return {name: one(k, *shape) for k, (name, shape) in zip(keys, self.shapes, strict=True)}

    def walk_back(self, net: Layer, visit: Visit, params: Any, state: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """The net's way back, with e B below every layer that uses a weight."""
        error = delta

        def leaf(
            place: Place, layer: Layer, params: Any, saved: Any, delta: Any, own: Any, repeats: Any
        ) -> tuple[Any, Any]:
            delta_x, found = visit(place, layer, params, saved, delta)
            feedback = own.get(dotted(place))
            if delta_x is None or feedback is None:  # None: at the uses of a shared parameter, which are no layer
                return delta_x, found
            return _feed(error, feedback, delta_x), found

        return _walk(leaf, state)((), net, params, saved, delta)


@dataclass(frozen=True, eq=False)
class _Shapes(Bound):
    """A way back that notes the shape of the B of each layer that uses a weight that multiplies."""

    found: dict[str, _Shape]

    def walk_back(self, net: Layer, visit: Visit, params: Any, state: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """The net's own way back."""
        error = delta

        def leaf(
            place: Place, layer: Layer, params: Any, saved: Any, delta: Any, own: Any, repeats: Any
        ) -> tuple[Any, Any]:
            delta_x, found = visit(place, layer, params, saved, delta)
            pairs = jax.tree.leaves(found, is_leaf=is_pair)
            if delta_x is not None and any(pair.transports for pair in pairs):
                shapes = error.shape[1:], delta_x.shape[1:]
                rows, columns = (s[-1:] if _same_positions(*shapes) else s for s in shapes)
                shape = (*repeats, math.prod(rows), math.prod(columns))
                self.found[dotted(place)] = _Shape(shape, str(delta_x.dtype))
            return delta_x, found

        return _walk(leaf, {})((), net, params, saved, delta)


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Fed:
    """The parameters of a repetition, and the B's of its layers."""

    params: Any
    own: dict[str, Array]


def _walk(leaf: Callable[..., tuple[Any, Any]], own: dict[str, Array]) -> Visit:
    """A visit that goes down through every combinator and calls, at each layer, `leaf(place, layer, params, saved,
    delta, own, repeats)`: with its whole place, the B's by path, and how often each `repeat` around it repeats.

    The B's go down beside the parameters and not among them, where `tied` would hand the owner's to the borrower;
    only `repeat`, which hands each repetition its own part of what it holds, holds both.
    """

    def at(above: Place, own: dict[str, Array], repeats: tuple[int, ...]) -> Visit:
        def visit(place: Place, layer: Layer, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
            here = above + place
            if isinstance(layer, Repeat):
                inside, n = {path: b for path, b in own.items() if _within(path, here)}, layer.n

                def one(place: Place, layer: Layer, fed: _Fed, saved: Any, delta: Any) -> tuple[Any, Any]:
                    return at(here, fed.own, (*repeats, n))(place, layer, fed.params, saved, delta)

                return layer.walk_backward(one, _Fed(params, inside), saved, delta)
            if isinstance(layer, Combinator):
                return layer.walk_backward(at(here, own, repeats), params, saved, delta)
            return leaf(here, layer, params, saved, delta, own, repeats)

        return visit

    return at((), own, ())


def _within(path: str, place: Place) -> bool:
    """Whether the layer at the dotted path is inside the one at `place`, or at it."""
    return not place or f"{path}.".startswith(f"{dotted(place)}.")


def _same_positions(output: tuple[int, ...], h: tuple[int, ...]) -> bool:
    return bool(output) and bool(h) and output[:-1] == h[:-1]


def _feed(error: Array, feedback: Array, delta_x: Array) -> Array:
    """e B, in the shape of `delta_x`."""
    if _same_positions(error.shape[1:], delta_x.shape[1:]):
        return error @ feedback
    return (error.reshape(len(error), -1) @ feedback).reshape(delta_x.shape)
