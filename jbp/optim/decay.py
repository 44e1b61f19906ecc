"""Which parameters weight decay is for: an `optax` mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

NAMES = ("bias", "scale", "mean", "var")
"""Of parameters that weight decay leaves alone: biases, gains and what normalisation observes."""


def decay_mask(tree: Any, spared: Sequence[str] | None = None, *, kinds: tuple[type, ...] | None = None) -> Any:
    """True for the parameters that weight decay is for, False for the others, in their tree: an optax `mask`.

    By name: all but those called "bias", "scale", "mean" or "var" (or as `spared` says). How many axes a parameter has
    does not tell: under `jbp.repeat` gains and biases have two. As it stands it is a mask:
    `optax.adamw(0.001, weight_decay=0.1, mask=jbp.optim.decay_mask)`.

    By class: of a tree of pairs, as `jbp.backward` answers with, those whose pair is of `kinds`, such as
    `(jbp.Outer, jbp.Window)`: weights that multiply, and no tables. What comes out is a mask as well.

    Raises: ValueError for classes and a tree without pairs.
    """
    if kinds is not None:
        return _of_classes(tree, tuple(kinds))
    names = set(NAMES if spared is None else spared)
    return jax.tree.map_with_path(lambda path, _: _name(path) not in names, tree)


def _of_classes(tree: Any, classes: tuple[type, ...]) -> Any:
    def is_pair(node: Any) -> bool:
        return hasattr(node, "over_stack")

    leaves = jax.tree.leaves(tree, is_leaf=is_pair)
    if not all(map(is_pair, leaves)):
        raise ValueError("by class, decay_mask takes a tree of pairs, as jbp.backward answers with, but got another")

    def decays(pair: Any) -> bool:
        while hasattr(pair, "pair"):  # of a stack, or below a layer that couples
            pair = pair.pair
        members = getattr(pair, "pairs", (pair,))
        return all(isinstance(member, classes) for member in members)

    return jax.tree.map(decays, tree, is_leaf=is_pair)


def _name(path: Any) -> Any:
    """What a parameter is called: the last key of its path that is text."""
    return next((part.key for part in reversed(path) if isinstance(getattr(part, "key", None), str)), None)
