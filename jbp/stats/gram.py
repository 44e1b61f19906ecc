"""Inner products of per-example gradients."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, Literal, overload

import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array, Float
from jbp.meshes import placed, rows_of_pairs
from jbp.pairs import Lookup, Outer, Pair, Pairs, Window
from jbp.stats._rows import in_rows
from jbp.stats.per_example import each
from jbp.stats.trees import Per, groups_of, leaves, shape_of


@overload
def gram(
    pairs: Pairs | Pair, others: Pairs | Pair | None = None, per: Literal["network"] = "network"
) -> Float[Array, "n m"]: ...
@overload
def gram(pairs: Pairs | Pair, others: Pairs | Pair | None = None, *, per: Per) -> dict[str, Float[Array, "n m"]]: ...
@overload
def gram(pairs: Pairs | Pair, others: Pairs | Pair | None, per: Per) -> dict[str, Float[Array, "n m"]]: ...
@placed(rows_of_pairs)
def gram(pairs: Pairs | Pair, others: Pairs | Pair | None = None, per: Per = "network") -> Any:
    """⟨gₙ, gₘ⟩ [n, m]: of the examples with one another, or with the examples of `others`, another backward pass
    of the same net.

    Over the "network", or a dict per "layer", "parameter" (by path) or group, as for `norms`. With δ = one column of
    the output instead of the loss's it is the empirical neural tangent kernel; with `others` from training examples it
    is the influence of a step on each of them; its normalised entries are gradient alignment.

    Raises:
        ValueError: if these are not the pairs of one backward pass, or `others` are of another network.
        NotImplementedError: below a layer that couples examples.
    """
    groups, ours = groups_of(pairs, per), leaves(pairs)
    theirs = ours if others is None else leaves(others)
    if list(ours) != list(theirs):
        raise ValueError(f"the two passes are of different networks: {', '.join(ours)} and {', '.join(theirs)}")
    for path, pair in ours.items():
        shape, other = shape_of(pair), shape_of(theirs[path])
        if shape != other:
            raise ValueError(f"the two passes are of different networks: {path} has shape {shape} and {other}")
    products = {}
    for path, pair in ours.items():
        if others is None:  # of one pair, whose gradients are formed once
            products[path] = pair.over_stack(lambda pair: product(pair, pair), axis=None)
        else:
            products[path] = pair.over_stack(product, theirs[path], axis=None)
    found = {name: sum(products[path] for path in members) for name, members in groups.items()}
    return found["network"] if per == "network" else found


@singledispatch
def product(a: Pair, b: Pair) -> Float[Array, "n m"]:
    """⟨aₙ, bₘ⟩ of a pair that is no stack and another; by forming the gradients."""
    x = each(a).reshape(a.batch, -1)
    return x @ (x if a is b else each(b).reshape(b.batch, -1)).T


@product.register
def _(a: Window, b: Pair) -> Array:
    if a.uses == b.uses == 1 and isinstance(b, Window):
        return product(in_rows(a), in_rows(b))
    return product.dispatch(Pair)(a, b)


@product.register
def _(a: Outer, b: Pair) -> Array:
    if not isinstance(b, Outer) or _form(a) != _form(b):
        return product.dispatch(Pair)(a, b)
    n, m, t, s, i, o = a.batch, b.batch, a.h.shape[1], b.h.shape[1], a.h.shape[-1], a.delta.shape[-1]
    if n * m * t * s * (i + o) > n * m * i * o + (n * t + m * s) * i * o:
        return product.dispatch(Pair)(a, b)
    hs, deltas = (
        jnp.einsum("nti,msi->ntms", x, y) for x, y in ((a.h, b.h), (a.delta, b.delta))
    )  # T = 1: two [n, m] matrices
    return (hs * deltas).sum((1, 3))


def _form(pair: Outer) -> tuple[int, int, bool]:
    """How wide its arrays are, and which way round it makes its gradient."""
    return pair.h.shape[-1], pair.delta.shape[-1], pair.transposed


@product.register
def _(a: Lookup, b: Pair) -> Array:
    if not isinstance(b, Lookup):
        return product.dispatch(Pair)(a, b)
    ours, theirs = a.known, b.distinct()

    def with_one(row: tuple[Array, Array]) -> Float[Array, " n"]:
        """Every example of a with one of b, whose rows are sorted."""
        rows, delta = row[0][:, 0], row[1]
        place = jnp.minimum(jnp.searchsorted(rows, ours.index[..., 0]), len(rows) - 1)
        met = (rows[place] == ours.index[..., 0])[..., None]
        return jnp.where(met, ours.delta * delta[place], jnp.zeros_like(ours.delta)).sum((1, 2))

    return lax.map(with_one, (theirs.index, theirs.delta)).T
