"""Sinks: what becomes of a layer's pairs the moment they exist, inside the scan of `repeat` too.

A sink takes the tree of one layer's pairs and answers with a tree in which something stands for each pair. What it
answers for a pair depends on that pair alone, so that it may be called on a part of the tree too, down to one bare
pair: `backward` does so where `tied` shares some parameters of a layer, whose pairs meet the sink later, merged.
`keep`, `total` and `observed` are those that training needs; a statistic that reads each pair by itself, such as
`jbp.stats.squared_norms`, is one too. A sink with the attribute `linear` commutes with adding up the uses of a shared
parameter: it is called on every use at once, and its answers are added up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp.arguments import dtype_of, leaf_shapes
from jbp.pairs import is_pair, widened

__all__ = ["Sink", "keep", "observe", "observed", "together", "total"]


def __dir__() -> list[str]:
    return __all__


P = TypeVar("P")
"""A tree of parameters."""
Sink = Callable[[Any], Any]


def keep(pairs: Any) -> Any:
    """The sink that hands the pairs over as they are."""
    return pairs


def total(pairs: Any) -> Any:
    """The sink that contracts at once: Σₙ gₙ for each parameter, of pairs of 16 bits in float32."""
    return jax.tree.map(lambda pair: widened(pair).total(), pairs, is_leaf=is_pair)


total.linear = True  # type: ignore[attr-defined]


def observed(pairs: Any) -> Any:
    """The sink that collects what a pass observed: of each running moment what it is now, and None of every other
    parameter. `jbp.observe` writes it."""
    return jax.tree.map(lambda pair: pair.observed, pairs, is_leaf=is_pair)


observed.linear = True  # type: ignore[attr-defined]  (it waits for no other use: what is observed cannot be shared)


def observe(params: P, observed: Any) -> P:
    """`params` with what a pass observed, as `jbp.value_and_grad(..., has_observed=True)` answers: the running moments
    of batch normalisation. All else stays. After the optimiser's step, for it must not move them:

        (value, observed), grads = value_and_grad(params, x, y)
        params = jbp.observe(optax.apply_updates(params, updates), observed)

    Raises:
        ValueError: if `observed` has not the tree of `params` with None in place of what is no running moment.
    """
    leaves, structure = jax.tree.flatten(params)
    try:
        found = structure.flatten_up_to(observed)
    except (TypeError, ValueError):
        found = None
    parts = zip(leaves, found or (), strict=found is not None)
    if found is None or any(new is not None and jnp.shape(new) != jnp.shape(leaf) for leaf, new in parts):
        raise ValueError(
            f"observed must be what value_and_grad(..., has_observed=True) answers for these parameters, "
            f"{leaf_shapes(params)}, but is {leaf_shapes(observed)}"
        )
    parts = zip(leaves, found, strict=True)
    return structure.unflatten([leaf if new is None else jnp.asarray(new, dtype_of(leaf)) for leaf, new in parts])


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Several:
    """What several sinks made of one pair."""

    parts: tuple[Any, ...]


class together:
    """Several sinks in one walk: `backward(..., sink=(both := together(total, squared_norms)))`, then `both.split`."""

    def __init__(self, *sinks: Sink):
        if not sinks:
            raise ValueError("together needs at least one sink")
        self.sinks = sinks
        self.linear = all(getattr(sink, "linear", False) for sink in sinks)

    def __call__(self, pairs: Any) -> Any:
        """Each sink's answer, side by side, for each pair."""
        structure = jax.tree.structure(pairs, is_leaf=is_pair)
        answers = [structure.flatten_up_to(sink(pairs)) for sink in self.sinks]
        return structure.unflatten([_Several(parts) for parts in zip(*answers, strict=True)])

    def split(self, found: Any) -> tuple[Any, ...]:
        """One tree for each sink, from what `backward` answered."""
        leaves, structure = jax.tree.flatten(found, is_leaf=lambda node: isinstance(node, _Several))
        return tuple(structure.unflatten([leaf.parts[i] for leaf in leaves]) for i in range(len(self.sinks)))
