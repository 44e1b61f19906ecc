"""Clipping each example's gradient, in the same backward pass: norms, a weight for each example, a weighted total."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array, Float
from jbp.arguments import check_max_norm
from jbp.meshes import placed, rows_of_pairs, whole
from jbp.pairs import Pair, Pairs, Weights, is_pair, weigh
from jbp.stats.norms import group_norms, most
from jbp.stats.per_example import for_clipping
from jbp.stats.trees import Per, checked_leaves, groups_of, leaves

MaxNorm = float | Array | Mapping[str, float]


@overload
def clip_weights(
    pairs: Pairs | Pair,
    max_norm: MaxNorm,
    per: Literal["network"] = "network",
    automatic: bool = False,
    gamma: float = 0.01,
) -> Float[Array, " n"]: ...
@overload
def clip_weights(
    pairs: Pairs | Pair, max_norm: MaxNorm, per: Per, automatic: bool = False, gamma: float = 0.01
) -> dict[str, Float[Array, " n"]]: ...
@placed(rows_of_pairs)
def clip_weights(
    pairs: Pairs | Pair, max_norm: MaxNorm, per: Per = "network", automatic: bool = False, gamma: float = 0.01
) -> Any:
    """cₙ = min(1, C/‖gₙ‖), with which ‖cₙgₙ‖ ≤ C for every example; `automatic`: cₙ = C/(‖gₙ‖ + γ), for every norm.

    Over the "network" it is [n]. Per "layer", "parameter" or group (each parameter in exactly one) it is a dict of
    [n] by name, each with the bound C/√(number of groups), so that the whole is bounded by C again; or with bounds of
    your own, `max_norm={name: C}`, and the whole by √(Σ C²).

    Of a parameter used several times in an example, whose uses cancel, ‖gₙ‖ as it is computed may fall short of the
    true norm by what rounding hides; here it is taken as large as it can be (`jbp.stats.norms.most`), so that the bound
    holds in float32 too. Where they do not cancel, and for a parameter used once, that changes nothing to speak of.

    An infinite C clips nothing. An example whose gradient is not finite gets 0, so that its δ takes no part; where its
    h is not finite either, `clipped` is NaN (`jbp.private.clipped_sum` looks for that too).

    Raises:
        ValueError: if C is 0, negative or NaN, or infinite with `automatic`; γ not positive; groups that do not fit.

    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1; automatic: Bu et al. 2023, arXiv:2206.07136, equation 1.1
    (AUTO-S); per group: McMahan et al. 2018, arXiv:1710.06963.
    """
    groups = groups_of(pairs, per, disjoint=True)
    bounds = _bounds(max_norm, groups, automatic)
    if automatic and not (isinstance(gamma, float | int) and gamma > 0 and math.isfinite(gamma)):
        raise ValueError(f"gamma must be a positive number, but is {gamma!r}")
    found = {}
    for name, norm in group_norms(pairs, groups, most).items():
        found[name] = clip_factor(norm, bounds[name], automatic, gamma)
    return found["network"] if per == "network" else found


@placed(whole)
def clipped(
    pairs: Pairs | Pair,
    max_norm: MaxNorm,
    per: Per = "network",
    automatic: bool = False,
    gamma: float = 0.01,
    weights: Weights = None,
) -> Any:
    """Σₙ wₙ cₙ gₙ with the cₙ of `clip_weights`, in the tree of the parameters: a sum over the batch, not a mean. Of
    pairs of 16 bits in float32, in which alone the bound holds: round it when noise has been added, not before.

    Sensitivity: adding or taking away one example changes it by at most C in norm (times its wₙ, by default 1); with
    bounds Cᵢ per group by √(Σ Cᵢ²). Up to rounding: a factor 1 + (i + o)·eps, i and o the widths of the largest layer,
    and 1 + 1/64 at the very worst where the uses of a parameter cancel in an example (1.00001 at most in the tests).
    A row of weight 0 contributes exactly 0, whatever its δ holds; give `jbp.value_and_pairs` the weights too, so that
    its h is finite.

    Raises:
        ValueError, NotImplementedError: as `clip_weights`.
    """
    checked_leaves(pairs, weights)
    read = for_clipping(for_clipping(pairs, late=False), late=True)
    c: Any = clip_weights(read, max_norm, per, automatic, gamma)
    factors = {"network": c} if per == "network" else c
    owner = {path: name for name, members in groups_of(pairs, per).items() for path in members}
    totals = []
    for (path, pair), came in zip(leaves(read).items(), leaves(pairs).values(), strict=True):
        scale = weigh(weights, factors[owner[path]])
        own = pair if type(pair) is type(came) else silenced(pair, scale != 0)
        totals.append(own.total(scale))
    return jax.tree.unflatten(jax.tree.structure(pairs, is_leaf=is_pair), totals)


def clip_factor(
    norm: Float[Array, " n"], max_norm: float | Array, automatic: bool = False, gamma: float = 0.01
) -> Float[Array, " n"]:
    """cₙ from ‖gₙ‖ and a bound C that were checked before; 0 where the norm is not finite."""
    bound = jnp.asarray(max_norm, norm.dtype)
    if automatic:
        c = bound / (norm + jnp.asarray(gamma, norm.dtype))
    else:
        c = jnp.where(norm > bound, bound / norm, jnp.ones_like(norm))
    return jnp.where(jnp.isfinite(norm), c, jnp.zeros_like(c))


def sensitivity(max_norm: MaxNorm) -> Float[Array, ""] | float:
    """By how much `clipped` changes at most, in norm, when one example of weight 1 comes or goes.

    Raises:
        ValueError: if a bound is not positive.
    """
    for name, bound in max_norm.items() if isinstance(max_norm, Mapping) else [("", max_norm)]:
        check_max_norm(bound, name=f"the max_norm of {name}" if name else "max_norm")
    return math.hypot(*max_norm.values()) if isinstance(max_norm, Mapping) else max_norm


def _bounds(max_norm: MaxNorm, groups: dict[str, list[str]], automatic: bool) -> dict[str, Any]:
    if not isinstance(max_norm, Mapping):
        check_max_norm(max_norm, automatic)
        return dict.fromkeys(groups, max_norm / math.sqrt(len(groups)))
    if set(max_norm) != set(groups):
        raise ValueError(f"max_norm must have a bound for each of {', '.join(groups)}, but has {', '.join(max_norm)}")
    for name, bound in max_norm.items():
        check_max_norm(bound, automatic, f"the max_norm of {name}")
    return dict(max_norm)


def silenced(pair: Pair, sound: Array) -> Pair:
    """A layer's pair with zeros for what came in of the examples that are not sound: their δ weighs 0, but 0·∞ is NaN.

    There are hardly ever any, so they are visited in a loop, in place; a `where` would copy every h.
    """
    (rows,) = jnp.nonzero(~sound, size=len(sound), fill_value=0)

    def cleared(path: Any, a: Array) -> Array:
        if path[-1].name == "delta" or not jnp.issubdtype(a.dtype, jnp.inexact):
            return a
        zero = jnp.zeros((), a.dtype)
        return lax.fori_loop(0, (~sound).sum(), lambda i, a: a.at[rows[i]].set(zero), a)

    return jax.tree_util.tree_map_with_path(cleared, pair)
