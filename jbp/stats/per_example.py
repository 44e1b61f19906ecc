"""Per-example gradients: the pairs contracted over t alone."""

from __future__ import annotations

from functools import reduce, singledispatch
from typing import Any

import jax
import jax.numpy as jnp

from jbp.annotations import Array
from jbp.meshes import placed, rows_of_pairs
from jbp.pairs import Lookup, Outer, Pair, Pairs, Scale, Shift, Sum, Window, added_to_rows, is_pair, widened
from jbp.stats import windows
from jbp.stats._rows import in_rows
from jbp.stats.trees import map_pairs


@placed(rows_of_pairs)
def per_example(pairs: Pairs | Pair) -> Any:
    """gₙ for every example, in the tree of the parameters: [n, *shape] for each. Each is of eₙ alone, not divided by N.

    This is the one statistic that fills N × P numbers; ask it last.

    Raises:
        ValueError: if these are not the pairs of one backward pass, or the batch is empty.
        NotImplementedError: below a layer that couples examples.
    """
    return map_pairs(lambda pair: pair.over_stack(each, axis=1), pairs)


@singledispatch
def each(pair: Pair) -> Array:
    """[n, *shape]: the gradient of each example, of a pair that is no stack."""
    return each(in_rows(pair))


@each.register
def _(pair: Outer) -> Array:
    how = "nti,nto->noi" if pair.transposed else "nti,nto->nio"
    return jnp.einsum(how, pair.h, pair.delta).reshape(-1, *pair.shape)


@each.register
def _(pair: Lookup) -> Array:
    def one(index: Array, delta: Array) -> Array:
        return added_to_rows(index[:, 0], delta, pair.shape[0])

    known = pair.known
    return jax.vmap(one)(known.index, known.delta)


@each.register
def _(pair: Shift) -> Array:
    return pair.delta.sum(1).reshape(-1, *pair.shape)


@each.register
def _(pair: Scale) -> Array:
    return (pair.h * pair.delta).sum(1).reshape(-1, *pair.shape)


@each.register
def _(pair: Window) -> Array:
    return windows.formed(pair)


@each.register
def _(pair: Sum) -> Array:
    return reduce(jnp.add, map(each, pair.pairs))


@singledispatch
def for_sum(pair: Pair, after: Array | None) -> Array | None:
    """[n, *shape] of a pair that is no stack, where the clipped sum forms the gradients of the examples and keeps them,
    because norms without them would take nearly as much. With `after` those that are better formed late, when that
    array is there and most of the backward pass's own are gone; without it the others. Else None."""
    return None


@for_sum.register
def _(pair: Window, after: Array | None) -> Array | None:
    if not windows.few_numbers(pair) or windows.fewer_numbers(pair) != (after is None):
        return None
    return windows.formed(pair, after)


def for_clipping(pairs: Any, late: bool) -> Any:
    """What norms and the clipped sum both read, in a tree: pairs, or the gradients of the examples as h with 1 for δ.
    What is scaled to a norm of C is then the very number that was measured, and scaling makes no copy of it.

    First those that are formed early, for which it is a sink; and then, of all that it left as they are, the `late`.
    """
    after = next(iter(jax.tree.leaves(pairs)), None) if late else None

    def one(pair: Pair) -> Pair:
        pair = widened(pair)
        with jax.default_matmul_precision("highest"):
            g = pair.over_stack(lambda one: for_sum(one, after), axis=1)
        if g is None:
            return pair
        return Outer(g.reshape(pair.batch, 1, -1), jnp.ones_like(g, shape=(pair.batch, 1, 1)), g.shape[1:])

    return jax.tree.map(one, pairs, is_leaf=is_pair)
