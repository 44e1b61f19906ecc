"""Norms of per-example gradients, without forming the gradients.

Of a weight used once in an example, ‖h ⊗ δ‖² = ‖h‖²‖δ‖² (Goodfellow 2015, arXiv:1510.01799). Used T times,
‖Σₜ hₜ ⊗ δₜ‖² = Σₜₛ ⟨hₜ, hₛ⟩⟨δₜ, δₛ⟩: either those two T × T Gram matrices, T²(i + o) products, or one example's
gradient at a time, T·i·o; the cheaper by shape.

Where uses cancel, rounding shows. Let S = Σₜ ‖hₜ‖‖δₜ‖, the norm if none did. A gradient formed is off by at most T·u·S
in norm (u = eps/2), as any sum of T terms is; what the Gram matrices give is a difference of squares, off by
(i + o + 2T)·u·S². `most` adds what rounding may hide, for clipping. Used once, nothing can cancel: each entry is one
product, and the squares are only added.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array, Float
from jbp.meshes import placed, rows_of_pairs, rows_somewhere
from jbp.pairs import Lookup, Outer, Pair, Pairs, Scale, Shift, Sum, Window, is_pair
from jbp.stats import windows
from jbp.stats._rows import in_rows
from jbp.stats.per_example import each
from jbp.stats.trees import Groups, Per, groups_of, leaves, map_pairs, over_stacks


@overload
def norms(pairs: Pairs | Pair, per: Literal["network"] = "network") -> Float[Array, " n"]: ...
@overload
def norms(pairs: Pairs | Pair, per: Literal["layer"] | Groups) -> dict[str, Float[Array, " n"]]: ...
@overload
def norms(pairs: Pairs | Pair, per: str) -> Any: ...
@placed(rows_of_pairs)
def norms(pairs: Pairs | Pair, per: Per = "network") -> Any:
    """‖gₙ‖ of every example, the gradient of eₙ alone, not divided by N; gₙ is never formed.

    `per` says over what: the "network" [n]; each "layer", a dict from its path to [n]; each "parameter", the tree of
    the parameters with [n] in each place; or groups that you name, {"head": "2.*", "biases": ("*.bias",)}, patterns
    (as a shell's) of dotted paths, a dict likewise. All layers of a `repeat` count as one layer; for the norm of each
    repetition take `squared_norms`.

    Range, in float32: h and δ are squared, each by itself, so a norm above 1.8e19 is inf and one below 1e-19 is 0.
    Where an example's h or δ alone is longer than 1.8e19 its norm is inf or NaN, and clipping leaves it out; where one
    is shorter than 1e-19 the norm is 0, and it is not clipped: scale such features, or the loss. Pairs of 16 bits are
    made float32 first.

    Of a parameter used T times whose uses cancel, the norm is right to about eps·T·S, or √((i + o + 2T)·eps/2)·S by
    Gram matrices, where S is the norm without cancelling; `stats.explain` says which.

    Raises:
        ValueError: if these are not the pairs of one backward pass, the batch is empty, or a group matches nothing.
        NotImplementedError: below a layer that couples examples.
    """
    found = group_norms(pairs, groups_of(pairs, per), square)
    if per == "parameter":
        return jax.tree.unflatten(jax.tree.structure(pairs, is_leaf=is_pair), list(found.values()))
    return found["network"] if per == "network" else found


def group_norms(pairs: Any, groups: dict[str, list[str]], of: Callable[[Pair], Array]) -> dict[str, Float[Array, " n"]]:
    """‖gₙ‖ over the parameters of each group, from the `square` of each pair, or no less than that from `most`."""
    squares = {path: over_stacks(of(pair)) for path, pair in leaves(pairs).items()}
    return {name: jnp.sqrt(sum(squares[path] for path in members)) for name, members in groups.items()}


@placed(lambda answer, pairs: rows_somewhere(answer, pairs))
def squared_norms(pairs: Pairs | Pair) -> Any:
    """‖gₙ‖² for each parameter: [n], and [l, n] for each repetition of a `repeat`. Also a sink for `jbp.backward`."""
    return map_pairs(square, pairs) if jax.tree.leaves(pairs) else pairs


@placed(lambda answer, pairs: rows_somewhere(answer, pairs))
def squared_bounds(pairs: Any) -> Any:
    """`most` for each parameter: where clipping reads `squared_norms`. Also a sink."""
    return map_pairs(most, pairs) if jax.tree.leaves(pairs) else pairs


def network_norms(squares: Any) -> Float[Array, " n"]:
    """‖gₙ‖ over the network, from what `squared_norms` or `squared_bounds` answered."""
    return jnp.sqrt(sum(over_stacks(square) for square in jax.tree.leaves(squares)))


def by_gram(pair: Outer) -> bool:
    """Whether T × T Gram matrices cost less than the gradient of one example."""
    t, i, o = *pair.h.shape[-2:], pair.delta.shape[-1]
    return t * (i + o) <= i * o


def square(pair: Pair) -> Array:
    """[n]: ‖gₙ‖², for a stack [l, n]."""
    return pair.over_stack(lambda pair: normed(pair)[0])


def most(pair: Pair) -> Array:
    """[n], or [l, n]: no less than ‖gₙ‖², whatever rounding hid: `square` + (32·T·eps·S)² + [Gram] (i + o + 2T)·u·S².

    The second term bounds the error of a gradient that is formed, and more: scaled to a norm of C by this, an example's
    terms are so small that adding them up is off by C/64 at most. Far below eps where the uses do not cancel.
    """
    return pair.over_stack(_most)


def _most(pair: Pair) -> Float[Array, " n"]:
    found, hidden = normed(pair)
    t = pair.uses
    if t == 1 and not hidden:
        return found
    share = (32 * t * float(jnp.finfo(pair.dtype).eps)) ** 2 + hidden
    return found + jnp.square(share**0.5 * pair.reach())


@singledispatch
def normed(pair: Pair) -> tuple[Float[Array, " n"], float]:
    """‖gₙ‖² of a pair that is no stack, and the share of S² that this way to it may hide beyond a gradient formed.

    In one answer, so that no class of pair can be clipped by a norm whose rounding it does not tell.
    """
    return normed(in_rows(pair))


@normed.register
def _(pair: Outer) -> tuple[Array, float]:
    t, i, o = *pair.h.shape[1:], pair.delta.shape[-1]
    if t == 1:
        return jnp.square(pair.h).sum((1, 2)) * jnp.square(pair.delta).sum((1, 2)), 0.0
    with jax.default_matmul_precision("highest"):  # accelerators otherwise take fewer bits than `most` counts on
        if not by_gram(pair):
            return lax.map(lambda row: sum_of_squares(row[0].T @ row[1]), (pair.h, pair.delta)), 0.0
        hs, deltas = (jnp.einsum("nti,nsi->nts", a, a) for a in (pair.h, pair.delta))
        # Over s and then over t, which XLA would make one sum of T² terms and round as such. Never below 0: a
        # difference of squares may come out so. `maximum` keeps NaN.
        found = jnp.maximum(lax.optimization_barrier((hs * deltas).sum(2)).sum(1), 0)
    return found, (i + o + 2 * t) * float(jnp.finfo(pair.dtype).eps) / 2


@normed.register
def _(pair: Shift) -> tuple[Array, float]:
    return jnp.square(pair.delta.sum(1)).sum(1), 0.0


@normed.register
def _(pair: Scale) -> tuple[Array, float]:
    return jnp.square((pair.h * pair.delta).sum(1)).sum(1), 0.0


@normed.register
def _(pair: Lookup) -> tuple[Array, float]:
    return jnp.square(pair.distinct().delta).sum(2).sum(1), 0.0


@normed.register
def _(pair: Window) -> tuple[Array, float]:
    with jax.default_matmul_precision("highest"):
        return windows.square_and_hidden(pair)


@normed.register
def _(pair: Sum) -> tuple[Array, float]:
    # Not ‖a‖² + ‖b‖² + 2⟨a, b⟩, a difference of squares where members cancel.
    def one(row: Sum) -> Array:
        g = each(jax.tree.map(lambda a: a[None], row))
        return sum_of_squares(g.reshape(-1, g.shape[-1]))

    with jax.default_matmul_precision("highest"):
        return lax.map(one, pair), 0.0


def sum_of_squares(g: Float[Array, "i o"]) -> Float[Array, ""]:
    """‖g‖², by rows and then over them: i + o roundings and not i·o."""
    return lax.optimization_barrier(jnp.square(g).sum(1)).sum()
