"""The update inside the backward pass: each layer's parameters change as soon as its pairs exist.

No gradient of the whole net is ever alive. In a flat net XLA arranges that by itself; under `repeat` autodiff, and a
backward pass that answers with gradients, hold the gradients of the whole stack. Here the scan carries the stack and
writes into it, layer by layer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import register_dataclass

from jbp.annotations import Array
from jbp.backprop import backward_leaf, coupling_of, scaled, value_output_delta
from jbp.combine import Combinator, Repeat, located
from jbp.combine.tied import Uses, is_shared
from jbp.layer import Layer
from jbp.meshes import alike
from jbp.optim.momentum import MomentumState
from jbp.optim.sgd import SgdState
from jbp.sinks import observe, observed, total
from jbp.step import Batch, Method, Problem, State, Sums, measured


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Held:
    """A parameter and its velocity (None without momentum), which travel together."""

    param: Any
    velocity: Any


def backward_update(
    net: Layer,
    params: Any,
    state: Any,
    saved: Any,
    delta: Any,
    optimizer: optax.GradientTransformation,
    scale: Any = None,
) -> tuple[Any, Any, Any]:
    """Step 2 and the optimiser's step in one walk: δ at the input, the new parameters, the new state.

    `delta` [n, ...] carries the weights of the examples, 1/N for a mean, but for a `scale` (`jbp.backprop.fold`).
    The δ that goes on is made with the parameters as they were. For `jbp.optim.sgd`, `heavy_ball` and `nesterov`, which
    look at each parameter by itself; what looks at all gradients first, such as clipping by their global norm, cannot
    work this way. A parameter shared by `tied` changes when the gradients of all its uses are added up, every other one
    at once.

    Raises:
        ValueError: for another optimiser.
    """
    check_updatable(state)
    _, saved = coupling_of(net, saved)
    has_velocity = isinstance(state, MomentumState)
    velocity = state.velocity if has_velocity else jax.tree.map(lambda _: None, params)
    held = jax.tree.map(_Held, params, velocity)

    def updated(held: Any, totals: Any, seen: Any = None) -> Any:
        """The parameters after their step, or what was observed; of those marked as shared their gradient so far."""
        nodes, structure = jax.tree.flatten(held, is_leaf=_is_held)
        answers = structure.flatten_up_to(totals)
        own = [i for i, node in enumerate(nodes) if not is_shared(node.param)]
        params, velocity = ([getattr(nodes[i], part) for i in own] for part in ("param", "velocity"))
        at = MomentumState(state.steps, velocity) if has_velocity else state
        grads = [a.astype(p.dtype) for a, p in zip(scaled([answers[i] for i in own], scale), params, strict=True)]
        updates, after = optimizer.update(grads, at, params)
        new: Any = optax.apply_updates(params, updates)
        after: Any = after.velocity if has_velocity else velocity  # type: ignore[attr-defined]
        if seen is not None:
            new = observe(new, [structure.flatten_up_to(seen)[i] for i in own])
        for i, *node in zip(own, new, after, strict=True):
            answers[i] = _Held(*node)
        return structure.unflatten(answers)

    def visit(place: Any, layer: Layer, held: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        with located(place, layer):
            if isinstance(layer, Repeat):
                return _through_repeat(visit, layer, held, saved, delta)
            if isinstance(layer, Combinator):
                return layer.walk_backward(visit, held, saved, delta)
            if isinstance(layer, Uses):
                return None, updated(held, saved)
            delta_x, pairs = backward_leaf(layer, _param(held), saved, delta)
            return delta_x, updated(held, total(pairs), observed(pairs) if layer.observes else None)

    delta_x, held = visit((), net, held, saved, delta)
    steps = optimizer.update((), MomentumState(state.steps, ()) if has_velocity else state, ())[1].steps  # type: ignore[attr-defined]
    return delta_x, _param(held), MomentumState(steps, _velocity(held)) if has_velocity else SgdState(steps)


@dataclass(frozen=True)
class InPlace(Method):
    """Backpropagation with the update inside the backward pass: what `jbp.fit(..., in_place=True)` takes."""

    additive: ClassVar[bool] = False

    def init(self, key: Array, problem: Problem, params: Any, example: Any) -> Any:
        """Nothing is carried."""
        if problem.trainable.leaves:
            raise ValueError("in_place updates every parameter by plain backpropagation: leave out trainable")
        check_updatable(jax.eval_shape(problem.optimizer.init, params))
        return ()

    def way(self, problem: Problem, state: State, x: Any) -> tuple[Layer, Any] | None:
        """The net itself: every δ is made with the parameters as they were."""
        return problem.net, state.params

    def sums(self, problem: Problem, state: State, batch: Batch, key: Array) -> Sums:
        """Σₙ wₙ eₙ, and what one walk back made of the parameters and the optimiser's state."""
        value, output, saved, delta, scale = value_output_delta(problem.net, problem.loss, state.params, batch, key)
        _, *new = backward_update(problem.net, state.params, state.opt_state, saved, delta, problem.optimizer, scale)
        return Sums(value, (), measured(problem, output, batch), tuple(new))

    def update(self, problem: Problem, state: State, found: Sums, value_fn: Any) -> State:
        """The state that the walk has made."""
        params, opt_state = found.extra
        return dataclasses.replace(state, params=params, opt_state=opt_state)


def check_updatable(state: Any) -> None:
    """Refuse what cannot be updated layer by layer."""
    if not isinstance(state, SgdState | MomentumState):
        raise ValueError(
            "updating inside the backward pass is for jbp.optim.sgd, heavy_ball and nesterov, "
            f"but the optimiser's state is {type(state).__name__}: leave in_place out"
        )


def _through_repeat(visit: Any, net: Repeat, held: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
    """δ through the repetitions, last to first, each written back into the stack.

    The next repetition is read from the stack *after* the write and carried: read from the old stack, XLA would have to
    keep that beside the new one, and copies it twice in every round. Parameters for which a `tied` further out waits
    stay as they are, and their gradients come out stacked in their places.
    """
    stacks, last, plan = saved

    def at(stack: Any, i: Any) -> Any:
        return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), stack)

    def written(stack: Any, one: Any, i: Any) -> Any:
        return jax.tree.map(lambda a, part: lax.dynamic_update_index_in_dim(a, part, i, 0), stack, one)

    def body(carry: Any, i_s: Any) -> tuple[Any, Any]:
        delta, y, stack, own = carry
        i, distinct = i_s
        delta_x, new = visit((), net.layer, own, plan.whole(distinct, y), delta)
        stack = _by_held(lambda held, one: held if is_shared(held.param) else written(held, one, i), stack, new)
        totals = _by_held(lambda held, one: one if is_shared(held.param) else None, stack, new)
        own = at(stack, jnp.maximum(i - 1, 0))
        return alike((delta_x, distinct[plan.input] if plan.shares_output else None, stack, own), start), totals

    start = alike((delta, last, held, at(held, net.n - 1)), stacks)
    (delta_x, _, held, _), totals = lax.scan(body, start, (jnp.arange(net.n), stacks), reverse=True)
    return delta_x, _by_held(lambda held, total: held if total is None else total, held, totals)


def _by_held(function: Any, held: Any, other: Any) -> Any:
    """`function` of each parameter with its velocity, and of what stands in its place in the other tree."""
    return jax.tree.map(function, held, other, is_leaf=_is_held)


def _is_held(node: Any) -> bool:
    return isinstance(node, _Held)


def _param(held: Any) -> Any:
    return jax.tree.map(lambda node: node.param, held, is_leaf=_is_held)


def _velocity(held: Any) -> Any:
    return jax.tree.map(lambda node: node.velocity, held, is_leaf=_is_held)
