"""The compiled programs of training: many steps in one loop, and evaluation in blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jbp.backprop import forward
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.step import Metric, Problem, State, Transform, epoch_keys, step_function, step_key, transformed
from jbp.train.batches import Reader


class Ledger(NamedTuple):
    """What the steps of an epoch say of themselves; donated, like the state, so that it is updated in place."""

    losses: Float[Array, " steps"]
    """The loss of each step of the current epoch."""
    metrics: Float[Array, "steps m"]
    """Each metric's mean over each step's examples, as they were during training."""


def ledger(steps: int, metrics: int) -> Ledger:
    """A blank one."""
    return Ledger(jnp.zeros(steps), jnp.zeros((steps, metrics)))


def copy(tree: Any) -> Any:
    """The same tree in buffers of its own."""
    return jax.tree.map(jnp.copy, tree)


@lru_cache(maxsize=64)
def steps_program(problem: Problem, reader: Reader) -> Callable[..., tuple[State, Ledger]]:
    """`steps_function` of these arguments, compiled, with state and ledger updated in place."""
    return jax.jit(steps_function(problem, reader), donate_argnums=(0, 1))


def steps_function(problem: Problem, reader: Reader) -> Callable[..., tuple[State, Ledger]]:
    """The function (state, ledger, chunk, epoch, first, last) that takes the steps first…last−1 of an epoch.

    The bounds are arguments, so one compilation serves every chunk; hence a loop with a bound known only when it
    runs, where `lax.scan` would need its length when compiled. The order of an epoch follows from (key, epoch) and
    the draw of a step from (key, epoch, step): where a chunk begins changes nothing.
    """
    take = step_function(problem)

    def run(state: State, ledger: Ledger, chunk: Any, epoch: Array, first: Array, last: Array) -> tuple[State, Ledger]:
        order_key, noise_key = epoch_keys(state.key, epoch)
        chunk = reader.prepared(chunk, order_key)

        def step(t: Array, carried: tuple[Any, ...]) -> tuple[Any, ...]:
            params, opt_state, losses, metrics, method_state = carried
            before = State(params, opt_state, method_state, state.key, epoch, t)
            after, (loss, values) = take(before, reader.batch(chunk, order_key, t), step_key(noise_key, t))
            return (
                after.params,
                after.opt_state,
                losses.at[t].set(loss.astype(losses.dtype)),
                metrics.at[t].set(jnp.stack(values)) if values else metrics,
                after.method_state,
            )

        carried = (state.params, state.opt_state, *ledger, state.method_state)
        params, opt_state, losses, metrics, method_state = lax.fori_loop(first, last, step, carried)
        now = {"epoch": jnp.asarray(epoch, jnp.int32), "step": jnp.asarray(last, jnp.int32)}
        after = dataclasses.replace(state, params=params, opt_state=opt_state, method_state=method_state, **now)
        return after, Ledger(losses, metrics)

    return run


def output_of(problem: Problem, params: Any, x: Array, y: Array) -> Any:
    """Shape and dtype of the output of one example, once the loss has taken it; refuses what does not fit."""
    leaves, structure = jax.tree.flatten(params)
    seen = problem.seen(jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    one = ((1, *seen.shape), seen.dtype), ((1, *y.shape[1:]), y.dtype)
    key = (*((jnp.shape(a), jnp.result_type(a)) for a in leaves), *one)
    return _output_of(problem.net, problem.loss, structure, key)


@lru_cache(maxsize=256)
def _output_of(net: Layer, loss: Loss, structure: Any, key: Any) -> Any:
    *leaves, x, y = (jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in key)
    output = jax.eval_shape(lambda p, x: forward(net, p, x)[0], structure.unflatten(leaves), x)
    jax.eval_shape(lambda o, y: jax.vmap(loss.value)(o, y), output, y)
    return output


@lru_cache(maxsize=64)
def evaluation_program(
    net: Layer, loss: Loss, metrics: tuple[Metric, ...], transform: Transform | None, block: int
) -> Callable[[Any, Array, Array], Float[Array, " m"]]:
    """The program (params, x, y) -> means of the loss and of each metric, in evaluation, `block` examples at a time."""

    @jax.jit
    def evaluate(params: Any, x: Array, y: Array) -> Array:
        n, size = len(x), min(block, len(x))

        def step(i: Array, total: Array) -> Array:
            # The last block starts early enough to be whole; what it shares with the one before is left out.
            begin = jnp.minimum(i * size, n - size)
            xs, ys = (lax.dynamic_slice_in_dim(a, begin, size) for a in (x, y))
            output, _ = forward(net, params, transformed(transform, xs, None))
            fresh = begin + jnp.arange(size) >= i * size
            values = [jax.vmap(f)(output, ys).astype(total.dtype) for f in (loss.value, *metrics)]
            return total + jnp.where(fresh, jnp.stack(values), 0.0).sum(1)

        return lax.fori_loop(0, -(-n // size), step, jnp.zeros(1 + len(metrics))) / n

    return evaluate
