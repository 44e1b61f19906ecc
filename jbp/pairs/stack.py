"""`Stack`: the pairs of a scanned stack of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float
from jbp.meshes import added_up
from jbp.pairs.outer import Outer
from jbp.pairs.pair import Pair, Weights


@register_dataclass
@dataclass(frozen=True, eq=False)
class Stack(Pair):
    """One pair per layer of a scanned stack: every array of `pair` has an axis l in front. Stacks nest."""

    pair: Pair

    @classmethod
    def of(cls, pair: Pair) -> Stack:
        """Of a pair whose arrays have l in front."""
        return cls(pair)

    def check(self, shape: tuple[int, ...] | None, axes: int) -> None:
        """Refuse what is not one pair for each layer; and that a layer, which is given one example, makes one."""
        if not isinstance(self.pair, Pair):
            raise ValueError(f"Stack holds a pair, but got a {type(self.pair).__name__}")
        if not axes:
            raise ValueError("Stack is what repeat makes of its layer's pairs: a layer makes the pair of one example")
        self.pair.check(None if shape is None else shape[1:], axes + 1)
        layers = jax.tree.leaves(self.pair)[0].shape[axes - 1]  # the axes of stacks around this one come before
        if shape is not None and shape[:1] != (layers,):
            raise ValueError(f"Stack of {layers} layers cannot be of a parameter of shape {shape}")

    @property
    def one(self) -> Pair:
        """The pair of a single layer, as shapes: without this stack's l, so that the inner pair's own rules apply."""
        return jax.eval_shape(lambda pair: jax.tree.map(lambda a: a[0], pair), self.pair)

    @property
    def layers(self) -> int:
        """How many layers the stack has."""
        return jax.tree.leaves(self.pair)[0].shape[0]

    def total(self, weights: Weights = None) -> Array:
        """Σₙ wₙ gₙ for each layer of the stack: [l, *shape]."""

        def one(pair: Pair) -> Array:
            return pair.total(weights)

        return lax.map(one, self.pair) if self.in_turn else jax.vmap(one)(self.pair)

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.one.batch

    @property
    def uses(self) -> int:
        """T, in one layer."""
        return self.one.uses

    def reach(self) -> Float[Array, "l n"]:
        """S in each layer: [l, n]."""
        return self.over_stack(lambda pair: pair.reach())

    def rows(self) -> tuple[Outer, ...]:
        """Refused: each layer has rows of its own."""
        raise NotImplementedError("each layer of a Stack has rows of its own: read them through over_stack")

    def join(self, other: Pair) -> Pair | None:
        """Two stacks, layer by layer, if the pairs in them join."""
        joined = self.pair.join(other.pair) if isinstance(other, Stack) else None
        return None if joined is None else Stack(joined)

    @property
    def transports(self) -> bool:
        """As one layer's."""
        return self.pair.transports

    @property
    def in_turn(self) -> bool:
        """As one layer's."""
        return self.pair.in_turn

    def over_stack(self, function: Callable[..., Any], *others: Any, axis: int | None = 0) -> Any:
        """`function` of each layer's pair, side by side; with `axis` None added up, so that only one is ever there."""
        if any(isinstance(o, Pair) and not (isinstance(o, Stack) and o.layers == self.layers) for o in others):
            raise ValueError(f"a stack of {self.layers} layers goes with stacks of as many only: their stacks differ")

        def one(row: tuple[Any, ...]) -> Any:
            return row[0].over_stack(function, *row[1:], axis=axis)

        rows = (self.pair, *(o.pair if isinstance(o, Stack) else o for o in others))
        if axis is not None:
            return jax.vmap(one, out_axes=axis)(rows)
        return added_up(one, rows)

    @property
    def observed(self) -> Array | None:
        """Each layer's, with l in front."""
        return self.over_stack(lambda pair: pair.observed)

    @property
    def coupled(self) -> str | None:
        """As one layer's."""
        return self.pair.coupled

    @property
    def constant(self) -> bool:
        """As one layer's."""
        return self.pair.constant
