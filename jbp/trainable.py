"""Which parameters are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jbp.arguments import leaf_shapes


@dataclass(frozen=True)
class Trainable:
    """Which parameters are trained: a tree of bools in hashable form, or nothing, which means all of them."""

    leaves: tuple[bool, ...]
    structure: Any

    @staticmethod
    def of(tree: Any) -> Trainable:
        """From a tree of bools, or None."""
        leaves, structure = jax.tree.flatten(tree)
        if not all(isinstance(leaf, bool) for leaf in leaves):
            raise ValueError(f"trainable must be a tree of bools that starts like params, but is {tree!r}")
        return Trainable(tuple(leaves), structure)

    def __call__(self, tree: Any) -> Any:
        """`tree`, with zeros where nothing is trained; XLA then drops what only those needed."""
        if not self.leaves:
            return tree
        parts = zip(self.leaves, self._parts(tree), strict=True)
        return self.structure.unflatten(part if on else jax.tree.map(jnp.zeros_like, part) for on, part in parts)

    def only(self, tree: Any) -> Any:
        """`tree`, with None where nothing is trained."""
        if not self.leaves:
            return tree
        parts = zip(self.leaves, self._parts(tree), strict=True)
        return self.structure.unflatten(part if on else jax.tree.map(lambda _: None, part) for on, part in parts)

    def flags(self, params: Any) -> tuple[bool, ...]:
        """Of each parameter, in leaf order, whether it is trained."""
        if not self.leaves:
            return (True,) * len(jax.tree.leaves(params))
        parts = zip(self.leaves, self._parts(params), strict=True)
        return tuple(on for on, part in parts for _ in jax.tree.leaves(part))

    def _parts(self, tree: Any) -> list[Any]:
        """What of a tree like the parameters each bool is of."""
        try:
            return self.structure.flatten_up_to(tree)
        except ValueError:
            given = self.structure.unflatten(self.leaves)
            raise ValueError(
                f"trainable must start like params, {leaf_shapes(tree)}, but is {given!r}: one bool may stand for a "
                "whole subtree"
            ) from None
