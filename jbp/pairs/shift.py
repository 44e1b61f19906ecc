"""`Shift`: the pair of a parameter that is added."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float
from jbp.pairs.outer import Outer
from jbp.pairs.pair import PerUse, Weights, lengths, own_axes, weighed_rows, widened


@register_dataclass
@dataclass(frozen=True, eq=False)
class Shift(PerUse):
    """g = Σₜ δ: the pair of a parameter that is added, such as a bias. `shape` is its own, of size o."""

    delta: Float[Array, "*n t o"]
    shape: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, delta: Float[Array, "*t *shape"], shape: tuple[int, ...]) -> Shift:
        """From δ [*t, *shape] of one example: the parameter's own axes last, those in front are uses.

        Raises:
            ValueError: if the last axes are not the parameter's.
        """
        return cls(own_axes("δ", delta, shape), tuple(shape))

    def widths(self, shape: tuple[int, ...]) -> dict[str, int]:
        """δ's is the parameter's size."""
        return {"delta": math.prod(shape)}

    def total(self, weights: Weights = None) -> Array:
        """Σₙₜ wₙ δ[n,t,o]."""
        return weighed_rows(weights, widened(self.delta)).sum(0).reshape(self.shape).astype(self.dtype)

    def reach(self) -> Float[Array, " n"]:
        """Σₜ ‖δₜ‖."""
        return lengths(self.delta).sum(1)

    def rows(self) -> tuple[Outer, ...]:
        """One block, in which h = 1."""
        return (Outer(jnp.ones((*self.delta.shape[:-1], 1), self.delta.dtype), self.delta, self.shape),)

    @property
    def transports(self) -> bool:
        """No: δ passes it as it is."""
        return False
