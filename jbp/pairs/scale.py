"""`Scale`: the pair of a gain."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float
from jbp.pairs.outer import Outer
from jbp.pairs.pair import PerUse, Weights, lengths, own_axes, weigh, widened
from jbp.pairs.shift import Shift


@register_dataclass
@dataclass(frozen=True, eq=False)
class Scale(PerUse):
    """g = Σₜ h∘δ: the pair of a gain, a parameter that multiplies element by element. `shape` is its own."""

    h: Float[Array, "*n t o"]
    delta: Float[Array, "*n t o"]
    shape: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, h: Float[Array, "*t *shape"], delta: Float[Array, "*t *shape"], shape: tuple[int, ...]) -> Scale:
        """From h and δ [*t, *shape] of one example: the parameter's own axes last, those in front are uses.

        Raises:
            ValueError: if the last axes are not the parameter's, or the uses differ in number.
        """
        if h.shape != delta.shape:
            raise ValueError(f"a gain takes h and δ of one shape, but got {h.shape} and {delta.shape}")
        return cls(own_axes("h", h, shape), own_axes("δ", delta, shape), tuple(shape))

    def widths(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Both the parameter's size."""
        return {"h": math.prod(shape), "delta": math.prod(shape)}

    def total(self, weights: Weights = None) -> Array:
        """Σₙₜ wₙ h[n,t,o] δ[n,t,o]."""
        h, delta = widened((self.h, self.delta))
        return jnp.einsum("nto,nto->o", h, weigh(weights, delta)).reshape(self.shape).astype(self.dtype)

    def reach(self) -> Float[Array, " n"]:
        """Σₜ ‖hₜ∘δₜ‖."""
        h, delta = widened((self.h, self.delta))
        return lengths(h * delta).sum(1)

    def rows(self) -> tuple[Outer, ...]:
        """One block, in which h = 1 and δ = h∘δ."""
        return Shift(self.h * self.delta, self.shape).rows()

    @property
    def transports(self) -> bool:
        """No: it carries δ back element by element, and is no matrix."""
        return False
