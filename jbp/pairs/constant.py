"""`Constant`: the pair of a parameter that nothing trains, such as a running moment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float
from jbp.pairs.outer import Outer
from jbp.pairs.pair import Pair, Weights


@register_dataclass
@dataclass(frozen=True, eq=False)
class Constant(Pair):
    """g = 0: the pair of a parameter that is no function's argument to descend in, such as the running moments of batch
    normalisation. `value` is what the parameter is after this pass: another one where the pass observed something, else
    what it was. The sink `jbp.sinks.observed` collects it, and it is written after the optimiser's step.
    """

    value: Float[Array, "*n *shape"]
    """The same for every example."""
    shape: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, value: Float[Array, "*shape"]) -> Constant:
        """Of one example: from what the parameter is after the pass."""
        return cls(value, tuple(value.shape))

    @classmethod
    def of_batch(cls, value: Float[Array, "*shape"], n: int) -> Constant:
        """Of n examples, for a layer that is given the whole batch."""
        return cls(jnp.broadcast_to(value[None], (n, *value.shape)), tuple(value.shape))

    def check(self, shape: tuple[int, ...] | None, axes: int) -> None:
        """Refuse a value that is not [*axes, *shape], of floats, or another parameter's shape."""
        named, shape = self.shape, self.shape if shape is None else shape
        found = tuple(self.value.shape) if hasattr(self.value, "dtype") else None
        sound = found is not None and jnp.issubdtype(self.value.dtype, jnp.inexact)
        if sound and found is not None and len(found) == axes + len(shape) and found[axes:] == shape == named:
            return
        came = f"{self.value.dtype}{list(found)}" if found is not None else f"a {type(self.value).__name__}"
        front = "".join(f"{letter}, " for letter in ("l" * (axes - 1) + "n" * (axes > 0)))
        raise ValueError(
            f"Constant of a parameter of shape {shape} holds value [{front}*shape], of floats, but got value {came} "
            f"and shape {named!r}"
        )

    def total(self, weights: Weights = None) -> Array:
        """0."""
        return jnp.zeros(self.shape, self.value.dtype)

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.value.shape[0]

    @property
    def uses(self) -> int:
        """1: there is nothing that another use could cancel."""
        return 1

    def reach(self) -> Float[Array, " n"]:
        """0."""
        return jnp.zeros(self.batch, self.value.dtype)

    def rows(self) -> tuple[Outer, ...]:
        """One block of zeros."""
        h = jnp.zeros((self.batch, 1, 1), self.value.dtype)
        return (Outer(h, jnp.zeros((self.batch, 1, math.prod(self.shape)), h.dtype), self.shape),)

    def join(self, other: Pair) -> Pair | None:
        """None: of two uses each would be another value after the pass."""
        return None

    @property
    def transports(self) -> bool:
        """No."""
        return False

    @property
    def constant(self) -> bool:
        """Yes."""
        return True

    @property
    def observed(self) -> Array:
        """The value."""
        return self.value[0]

    def over_stack(self, function: Callable[..., Any], *others: Any, axis: int | None = 0) -> Any:
        """`function` of this pair."""
        return function(self, *others)
