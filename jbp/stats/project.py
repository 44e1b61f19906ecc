"""Inner products of the per-example gradients with one direction."""

from __future__ import annotations

from functools import reduce, singledispatch
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from jbp.annotations import Array, Float
from jbp.arguments import check_direction
from jbp.meshes import placed, rows_of_pairs
from jbp.pairs import Lookup, Outer, Pair, Pairs, Scale, Shift, Sum, Window, is_pair, widened
from jbp.stats._rows import in_rows
from jbp.stats.trees import Per, checked_leaves, groups_of, leaves, shape_of


@overload
def project(pairs: Pairs | Pair, v: Any, per: Literal["network"] = "network") -> Float[Array, " n"]: ...
@overload
def project(pairs: Pairs | Pair, v: Any, per: Per) -> dict[str, Float[Array, " n"]]: ...
@placed(rows_of_pairs)
def project(pairs: Pairs | Pair, v: Any, per: Per = "network") -> Any:
    """⟨gₙ, v⟩ of every example, v a tree as the parameters: gₙ of eₙ alone, not divided by N, and never formed.

    Over the "network" [n], or a dict per "layer", "parameter" (by path) or group, as for `gram`. With v an update it is
    by how much that update changes each example's error, to first order; with v the mean gradient, how far each example
    agrees with it; with random v, a sketch of gₙ. It takes one product of each layer, as the forward pass does: of a
    weight Σₜ ⟨hₜV, δₜ⟩, of a kernel h convolved with V, times δ.

    Of 16 bits, pairs and v are made float32 first: v may be of the parameters' dtype or of float32.

    Raises:
        ValueError: if these are not the pairs of one backward pass, or v is not as the parameters, naming the leaf.
        NotImplementedError: below a layer that couples examples.
    """
    groups = groups_of(pairs, per)
    like = jax.tree.map(lambda pair: jax.ShapeDtypeStruct(shape_of(pair), pair.dtype), pairs, is_leaf=is_pair)
    check_direction(v, like, dtypes=True)
    directions = dict(zip(checked_leaves(pairs), jax.tree.leaves(widened(jax.tree.map(jnp.asarray, v))), strict=True))
    products = {path: pair.over_stack(along, directions[path], axis=None) for path, pair in leaves(pairs).items()}
    found = {name: reduce(jnp.add, [products[path] for path in members]) for name, members in groups.items()}
    return found["network"] if per == "network" else found


@singledispatch
def along(pair: Pair, v: Array) -> Float[Array, " n"]:
    """⟨gₙ, v⟩ of a pair that is no stack, v in the parameter's shape."""
    return along(in_rows(pair), v)


@along.register
def _(pair: Outer, v: Array) -> Array:
    h, delta = pair.h, pair.delta
    matrix = pair.matrix(v)
    if h.shape[-1] < delta.shape[-1]:  # either side costs as much; the product is of the narrower one's width
        return (h * (delta @ matrix.T)).sum((1, 2))
    return ((h @ matrix) * delta).sum((1, 2))


@along.register
def _(pair: Lookup, v: Array) -> Array:
    known = pair.known
    return (jnp.take(v, known.index[..., 0], axis=0, mode="clip") * known.delta).sum((1, 2))


@along.register
def _(pair: Shift, v: Array) -> Array:
    return jnp.einsum("nto,o->n", pair.delta, v.reshape(-1))


@along.register
def _(pair: Scale, v: Array) -> Array:
    return jnp.einsum("nto,nto,o->n", pair.h, pair.delta, v.reshape(-1))


@along.register
def _(pair: Window, v: Array) -> Array:
    h, delta = pair.h, pair.delta
    out = pair.geometry.forward(h.reshape(-1, *h.shape[2:]), v)
    return (out.reshape(delta.shape) * delta).reshape(pair.batch, -1).sum(1)


@along.register
def _(pair: Sum, v: Array) -> Array:
    return reduce(jnp.add, [along(member, v) for member in pair.pairs])
