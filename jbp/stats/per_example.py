"""Per-example gradients: the pairs contracted over t alone."""

from __future__ import annotations

from functools import reduce, singledispatch
from typing import Any

import jax.numpy as jnp

from jbp.annotations import Array
from jbp.meshes import placed, rows_of_pairs
from jbp.pairs import Outer, Pair, Pairs, Scale, Shift, Sum
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
    return jnp.einsum("nti,nto->nio", pair.h, pair.delta).reshape(-1, *pair.shape)


@each.register
def _(pair: Shift) -> Array:
    return pair.delta.sum(1).reshape(-1, *pair.shape)


@each.register
def _(pair: Scale) -> Array:
    return (pair.h * pair.delta).sum(1).reshape(-1, *pair.shape)


@each.register
def _(pair: Sum) -> Array:
    return reduce(jnp.add, map(each, pair.pairs))
