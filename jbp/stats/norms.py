"""Norms of per-example gradients, without forming the gradients.

Of a weight used once in an example, ‖h ⊗ δ‖² = ‖h‖²‖δ‖² (Goodfellow 2015, arXiv:1510.01799). Used T times,
‖Σₜ hₜ ⊗ δₜ‖² = Σₜₛ ⟨hₜ, hₛ⟩⟨δₜ, δₛ⟩: either those two T × T Gram matrices, T²(i + o) products, or one example's
gradient at a time, T·i·o; the cheaper by shape.
"""

from __future__ import annotations

from functools import reduce, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jbp.pairs import Outer, Pair, Scale, Shift, Stack, Sum, is_pair
from jbp.stats._paths import Per, groups_of, leaves, map_pairs, over_stacks
from jbp.stats.per_example import each


def norms(pairs: Any, per: Per = "network") -> Any:
    """‖gₙ‖ of every example, the gradient of eₙ alone, not divided by N; gₙ is never formed.

    `per` says over what: the "network" [n]; each "layer", a dict from its path to [n]; each "parameter", the tree of
    the parameters with [n] in each place; or groups that you name, {"head": "2.*", "biases": ("*.bias",)}, patterns
    (as a shell's) of dotted paths, a dict likewise. All layers of a `repeat` count as one layer; for the norm of each
    repetition take `squared_norms`.

    Raises:
        ValueError: if these are not the pairs of one backward pass, the batch is empty, or a group matches nothing.
        NotImplementedError: below a layer that couples examples.
    """
    found = group_norms(pairs, groups_of(pairs, per))
    if per == "parameter":
        return jax.tree.unflatten(jax.tree.structure(pairs, is_leaf=is_pair), list(found.values()))
    return found["network"] if per == "network" else found


def group_norms(pairs: Any, groups: dict[str, list[str]]) -> dict[str, Float[Array, " n"]]:
    """‖gₙ‖ over the parameters of each group."""
    squares = {path: over_stacks(square(pair)) for path, pair in leaves(pairs).items()}
    return {name: jnp.sqrt(sum(squares[path] for path in members)) for name, members in groups.items()}


def squared_norms(pairs: Any) -> Any:
    """‖gₙ‖² for each parameter: [n], and [l, n] for each repetition of a `repeat`. Also a sink for `jbp.backward`."""
    return map_pairs(square, pairs) if jax.tree.leaves(pairs) else pairs


def network_norms(squares: Any) -> Float[Array, " n"]:
    """‖gₙ‖ over the network, from what `squared_norms` answered."""
    return jnp.sqrt(sum(over_stacks(square) for square in jax.tree.leaves(squares)))


def by_gram(pair: Outer) -> bool:
    """Whether T × T Gram matrices cost less than the gradient of one example."""
    t, i, o = *pair.h.shape[-2:], pair.delta.shape[-1]
    return t * (i + o) <= i * o


@singledispatch
def square(pair: Pair) -> Array:
    """[n]: ‖gₙ‖², for a stack [l, n]."""
    return jnp.square(each(pair)).sum(tuple(range(1, each(pair).ndim)))


@square.register
def _(pair: Outer) -> Array:
    if pair.h.shape[1] == 1:
        return jnp.square(pair.h).sum((1, 2)) * jnp.square(pair.delta).sum((1, 2))
    if by_gram(pair):
        hs, deltas = (jnp.einsum("nti,nsi->nts", a, a) for a in (pair.h, pair.delta))
        return (hs * deltas).sum((1, 2))
    return lax.map(lambda row: jnp.square(row[0].T @ row[1]).sum(), (pair.h, pair.delta))


@square.register
def _(pair: Shift) -> Array:
    return jnp.square(pair.delta.sum(1)).sum(1)


@square.register
def _(pair: Scale) -> Array:
    return jnp.square((pair.h * pair.delta).sum(1)).sum(1)


@square.register
def _(pair: Sum) -> Array:
    # ‖a + b‖² = ‖a‖² + ‖b‖² + 2⟨a, b⟩
    own = [square(member) for member in pair.pairs]
    cross = [2 * inner(a, b) for k, a in enumerate(pair.pairs) for b in pair.pairs[k + 1 :]]
    return reduce(jnp.add, own + cross)


@square.register
def _(pair: Stack) -> Array:
    return jax.vmap(square)(pair.pair)


def inner(a: Pair, b: Pair) -> Float[Array, " n"]:
    """⟨aₙ, bₙ⟩ for two pairs of different kinds and one shape."""
    if isinstance(b, Outer):
        a, b = b, a
    other = each(b).reshape(b.batch, -1)
    if not isinstance(a, Outer):
        return (each(a).reshape(a.batch, -1) * other).sum(1)
    weight = other.reshape(-1, a.h.shape[-1], a.delta.shape[-1])
    return jnp.einsum("nto,nto->n", jnp.einsum("nti,nio->nto", a.h, weight), a.delta)
