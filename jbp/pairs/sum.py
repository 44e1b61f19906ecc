"""`Sum`: a parameter used in several places by pairs of different kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float
from jbp.pairs.outer import Outer
from jbp.pairs.pair import Pair, Weights


@register_dataclass
@dataclass(frozen=True, eq=False)
class Sum(Pair):
    """Σ of its members' gradients: a parameter used in several places by pairs of different kinds.

    `merge` makes it; pairs of one kind it joins along t instead, which is exact and needs no cross terms.
    """

    pairs: tuple[Pair, ...]

    @classmethod
    def of(cls, *pairs: Pair) -> Sum:
        """Of pairs of one shape."""
        return cls(pairs)

    def check(self, shape: tuple[int, ...] | None, axes: int) -> None:
        """Refuse no members, or members that are not all of one parameter."""
        if not self.pairs or not all(isinstance(pair, Pair) for pair in self.pairs):
            raise ValueError(f"Sum holds pairs, at least one, but got {[type(pair).__name__ for pair in self.pairs]}")
        for pair in self.pairs:
            pair.check(shape, axes)
            if shape is None:  # of one layer, if it is of a stack
                one = jax.eval_shape(lambda pair: jax.tree.map(lambda a: a[(0,) * (axes - 1)], pair), pair)
                shape = jax.eval_shape(lambda pair: pair.total(), one).shape

    def total(self, weights: Weights = None) -> Array:
        """Σₙ wₙ gₙ, the members' totals added up."""
        return reduce(jnp.add, [pair.total(weights) for pair in self.pairs])

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.pairs[0].batch

    @property
    def uses(self) -> int:
        """The members' together."""
        return sum(pair.uses for pair in self.pairs)

    def reach(self) -> Float[Array, " n"]:
        """The members' together."""
        return reduce(jnp.add, [pair.reach() for pair in self.pairs])

    def rows(self) -> tuple[Outer, ...]:
        """The members' blocks, one after another."""
        return tuple(block for pair in self.pairs for block in pair.rows())

    def join(self, other: Pair) -> Pair | None:
        """Its members and another's, those of a kind as one."""
        return Sum(tuple(folded((self, other))))

    @property
    def transports(self) -> bool:
        """Whether a member does."""
        return any(pair.transports for pair in self.pairs)

    @property
    def in_turn(self) -> bool:
        """If a member's are."""
        return any(pair.in_turn for pair in self.pairs)

    def over_stack(self, function: Callable[..., Any], *others: Any, axis: int | None = 0) -> Any:
        """`function` of this pair: a stack of sums is a `Stack`, and its members are none."""
        return function(self, *others)

    @property
    def coupled(self) -> str | None:
        """A member's, if one has it."""
        return next((pair.coupled for pair in self.pairs if pair.coupled is not None), None)

    @property
    def constant(self) -> bool:
        """Whether all members are."""
        return all(pair.constant for pair in self.pairs)


def folded(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs, and the members of those that are sums, with each joined to the first that it is of a kind with."""
    found: list[Pair] = []
    for pair in pairs:
        for member in pair.pairs if isinstance(pair, Sum) else (pair,):
            for place, earlier in enumerate(found):
                if (both := earlier.join(member)) is not None:
                    found[place] = both
                    break
            else:
                found.append(member)
    return found
