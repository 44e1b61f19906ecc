"""How far a rule's update points away from the gradient."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jbp.annotations import Array, Float
from jbp.arguments import leaf_shapes
from jbp.backprop import Batch, Trainable, check_call, value_grad_output
from jbp.inputs import check_key
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.meshes import placed, whole
from jbp.pairs import Weights
from jbp.paths import dotted
from jbp.rules.names import rule_of
from jbp.rules.rule import Bound, Rule, Way
from jbp.step import Method


class Alignment(NamedTuple):
    """Of one weight: a scalar each, or one number for each layer of a stack."""

    angle: Float[Array, "*l"]
    """Between the rule's update and the gradient, in degrees: 0 is backpropagation, below 90 goes downhill."""
    norm_ratio: Float[Array, "*l"]
    """The norm of the rule's update over the gradient's."""


@placed(whole)
def alignment(
    rule: Rule | str,
    state: Any,
    net: Layer,
    loss: Loss,
    params: Any,
    x: Any,
    y: Any,
    key: Array | None = None,
    *,
    weights: Weights = None,
) -> dict[str, Alignment]:
    """Of each weight, by its dotted path ("0.weight"), how a rule's update r lies to the gradient g.

        angle = ∠(r, g),   norm_ratio = |r| / |g|

    Both are of the same (weighted) mean over x, y and from one forward pass. `state` is what the rule carries: the
    `state.method_state` of a `jbp.fit` with that rule, or of its events. Where g or r is 0 the angle is NaN.

    Raises:
        ValueError: if there is no such rule, the state or the loss is none, or shapes do not fit.
    """
    if isinstance(rule, Method):
        raise ValueError(f"alignment compares a rule of jbp.rules with the gradient, but got {rule!r}")
    x, y, weights, *_ = check_call(net, loss, params, Batch(x, y, weights))
    check_key(key)
    bound = rule_of(rule).bind(net, params, jax.tree.map(lambda a: a[:1], x), Trainable.of(None))
    wanted, carried = leaf_shapes(jax.eval_shape(partial(bound.init, jax.random.key(0)), params)), leaf_shapes(state)
    if wanted != carried:
        raise ValueError(
            f"the state of {rule!r} for this net must be {wanted}, but is {carried}: "
            "pass the state.method_state of a jbp.fit of this net with this rule, or of its events"
        )
    return _alignment(bound, net, loss, state, params, Batch(x, y, weights), key)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _alignment(
    bound: Bound, net: Layer, loss: Loss, state: Any, params: Any, batch: Batch, key: Any
) -> dict[str, Alignment]:
    way = Way(net, bound, compare=True)
    true, found = value_grad_output(way, loss, (params, state), batch, key, Trainable.of(None)).grads
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(true)[0], strict=True)
    parts = zip(bound.depths, paths, leaves, jax.tree.leaves(found), strict=True)
    return {dotted(path): _compared(g, r, depth) for depth, path, g, r in parts if depth is not None}


def _compared(g: Array, r: Array, depth: int) -> Alignment:
    g, r = (a.reshape(*a.shape[:depth], -1) for a in (g, r))
    norm_g, norm_r = (jnp.linalg.norm(a, axis=-1) for a in (g, r))
    u, v = g / norm_g[..., None], r / norm_r[..., None]
    # Kahan's form, which keeps its digits at small angles, where the arccosine of ⟨u, v⟩ loses half of them.
    half = jnp.arctan2(jnp.linalg.norm(u - v, axis=-1), jnp.linalg.norm(u + v, axis=-1))
    return Alignment(jnp.degrees(2 * half), norm_r / norm_g)
