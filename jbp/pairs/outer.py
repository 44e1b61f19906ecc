"""`Outer`: the pair of a weight that multiplies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jax import lax
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float
from jbp.pairs.pair import PerUse, Weights, last_axis, lengths, weighed_rows, widened


@register_dataclass
@dataclass(frozen=True, eq=False)
class Outer(PerUse):
    """g = Σₜ h ⊗ δ: the pair of a weight that multiplies. `shape` is the weight's own, of size i·o.

    `transposed`: g = Σₜ δ ⊗ h, of a weight [o, i] whose rows belong to the outputs, as an unembedding's [V, d] that is
    shared with a table. h is what came in, then too: curvature takes it from one backward pass for every δ.
    """

    h: Float[Array, "*n t i"]
    delta: Float[Array, "*n t o"]
    shape: tuple[int, ...] = field(metadata={"static": True})
    transposed: bool = field(default=False, metadata={"static": True})

    @classmethod
    def of(
        cls, h: Float[Array, "*t i"], delta: Float[Array, "*t o"], shape: tuple[int, ...], transposed: bool = False
    ) -> Outer:
        """From h [*t, i] and δ [*t, o] of one example: the last axes multiply, those in front are uses.

        Raises:
            ValueError: if their uses differ in number, or `shape` has not i·o entries.
        """
        uses_agree = h.ndim > 0 < delta.ndim and math.prod(h.shape[:-1]) == math.prod(delta.shape[:-1])
        if not uses_agree or h.shape[-1] * delta.shape[-1] != math.prod(shape):
            raise ValueError(
                f"a weight of shape {tuple(shape)} takes h [*t, i] and δ [*t, o], as often used, with i·o = "
                f"{math.prod(shape)}, but got {h.shape} and {delta.shape}"
            )
        return cls(last_axis(h), last_axis(delta), tuple(shape), transposed)

    def widths(self, shape: tuple[int, ...]) -> dict[str, int]:
        """i and o with i·o = the size of `shape`: the axes in front are h's and the rest δ's, where that can be."""
        if self.transposed:
            return {"h": math.prod(shape[1:]), "delta": shape[0] if shape else 1}
        size, fronts = math.prod(shape), {math.prod(shape[:k]) for k in range(len(shape) + 1)}
        found = self.h.shape[-1:] if hasattr(self.h, "dtype") else ()
        i = found[0] if found else 0
        if not i or size % i or (i not in fronts and size // i in fronts):  # in the last case h and δ are exchanged
            i = math.prod(shape[:-1])
        return {"h": i, "delta": size // i if i else 0}

    def total(self, weights: Weights = None) -> Array:
        """Σₙₜ wₙ h[n,t,i] δ[n,t,o]: one matrix product."""
        # n and t as one axis: with two contracted axes XLA's CPU compiler copies h transposed.
        h = widened(self.h).reshape(-1, self.h.shape[-1])
        delta = weighed_rows(weights, widened(self.delta))
        left, right = (delta, h) if self.transposed else (h, delta)
        return lax.dot_general(left, right, (((0,), (0,)), ((), ()))).reshape(self.shape).astype(self.dtype)

    def matrix(self, v: Array) -> Float[Array, "i o"]:
        """An array of the weight's shape, as the matrix by which h multiplies."""
        i, o = self.h.shape[-1], self.delta.shape[-1]
        return v.reshape(o, i).T if self.transposed else v.reshape(i, o)

    def reach(self) -> Float[Array, " n"]:
        """Σₜ ‖hₜ‖‖δₜ‖."""
        return (lengths(self.h) * lengths(self.delta)).sum(1)

    def rows(self) -> tuple[Outer, ...]:
        """Itself: it is the one block."""
        return (self,)

    @property
    def transports(self) -> bool:
        """Yes: δ goes back through it, δ Wᵀ."""
        return True
