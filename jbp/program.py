"""The compiled programs of training: many steps in one loop, and evaluation in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jbp.backprop import Mask, forward
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.method import Method

Metric = Callable[[Array, Array], Array]
"""(output, target) of one example -> a scalar; its mean is reported, and higher is better."""
Sampling = Literal["shuffle", "replacement", "poisson"]


class State(NamedTuple):
    """What training carries from step to step; donated, so that it is updated in place."""

    params: Any
    opt_state: Any
    losses: Float[Array, " steps"]
    """The loss of each step of the current epoch."""
    metrics: Float[Array, "steps m"]
    """Each metric's mean over each step's examples, as they were during training."""
    method: Any = ()
    """What the method of finding gradients carries along."""


def start(params: Any, optimizer: optax.GradientTransformation, steps: int, metrics: int, method: Any = ()) -> State:
    """The state before the first step; copies, because the programs take over what they are given."""
    params, opt_state, method = copy((params, optimizer.init(params), method))
    return State(params, opt_state, jnp.zeros(steps), jnp.zeros((steps, metrics)), method)


@lru_cache(maxsize=64)
def start_program(optimizer: optax.GradientTransformation, steps: int, metrics: int) -> Callable[[Any, Any], State]:
    """The program (params, method) -> `start`: one call, where each copy and each zero would be one."""
    return jax.jit(lambda params, method: start(params, optimizer, steps, metrics, method))


def copy(tree: Any) -> Any:
    """The same tree in buffers of its own."""
    return jax.tree.map(jnp.copy, tree)


@lru_cache(maxsize=64)
def steps_program(*arguments: Any) -> Callable[..., State]:
    """`steps_function` of these arguments, compiled, with the state updated in place."""
    return jax.jit(steps_function(*arguments), donate_argnums=0)


def steps_function(
    net: Layer,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    metrics: tuple[Metric, ...],
    mask: Mask,
    sampling: Sampling,
    batch_size: int,
    n: int,
    method: Method,
    capacity: int | None = None,
) -> Callable[..., State]:
    """The function (state, x, y, key, epoch, first, last) -> state that takes the steps first…last−1 of an epoch.

    The bounds are arguments, so one compilation serves every chunk; hence a loop with a bound known only when it
    runs, where `lax.scan` would need its length when compiled. The order of an epoch follows from (key, epoch) and
    the draw of a step from (key, epoch, step): where a chunk begins changes nothing. "poisson" draws every example
    independently, `batch_size` of them on average, into a batch of `capacity` rows; the first ones, if it is too small.

    `order` may be given, as `order_of` makes it, so that it is not made anew for every chunk.
    """

    def run(
        state: State,
        x: Array,
        y: Array,
        key: Array,
        epoch: Int[Array, ""],
        first: Array,
        last: Array,
        order: Array | None = None,
    ) -> State:
        order_key, noise_key = _epoch_keys(key, epoch)
        order = _order(order_key, sampling, batch_size, n) if order is None else order

        def step(t: Array, state: State) -> State:
            weights = None
            if sampling == "poisson":
                assert capacity is not None
                chosen, real = _poisson(jax.random.fold_in(order_key, t), batch_size, n, capacity)
                weights = jnp.where(real, 1 / jnp.maximum(real.sum(), 1), 0.0).astype(state.losses.dtype)
            elif order is None:
                chosen = jax.random.randint(jax.random.fold_in(order_key, t), (batch_size,), 0, n)
            else:
                chosen = lax.dynamic_slice_in_dim(order, t * batch_size, batch_size)
            if order is not None and n % batch_size:  # the last batch is short: what is missing weighs nothing
                real = t * batch_size + jnp.arange(batch_size) < n
                weights = jnp.where(real, 1 / real.sum(), 0.0).astype(state.losses.dtype)
            batch = x[chosen], y[chosen]
            key_t = jax.random.fold_in(noise_key, t)
            value, output, params, opt_state, method_state = method.step(
                state.method, net, loss, optimizer, state.params, state.opt_state, *batch, key_t, weights, mask
            )
            values = [_mean(metric, output, batch[1], weights) for metric in metrics]
            return State(
                params,
                opt_state,
                state.losses.at[t].set(value.astype(state.losses.dtype)),
                state.metrics.at[t].set(jnp.stack(values)) if values else state.metrics,
                method_state,
            )

        return lax.fori_loop(first, last, step, state)

    return run


def order_of(key: Array, epoch: int, sampling: Sampling, batch_size: int, n: int) -> Callable[[], Any]:
    """Begin the order of an epoch; what it answers with ends it: bit for bit the order that the program makes itself,
    None where each step draws anew.

    On a CPU it is NumPy that sorts, ten times as fast as XLA there. Programs run one after the other: an order that was
    begun before some steps can be ended while they run.
    """
    if sampling != "shuffle":
        return lambda: None
    if jax.default_backend() != "cpu" or not n < 1 << 32:
        order = _order_program(sampling, batch_size, n)(key, epoch)
        return lambda: order
    bits = _sort_bits(n, _rounds(n))(key, epoch)
    return lambda: _sorted_by(bits, batch_size)


def _sorted_by(rounds: Array, batch_size: int) -> Any:
    """As `jax.random.permutation` shuffles: sort by random bits, ties in the order they were in, some times over."""
    n = rounds.shape[1]
    order: Any = np.arange(n, dtype=np.uint64)
    for bits in np.asarray(rounds):
        order = order[np.sort((bits.astype(np.uint64) << 32) | np.arange(n, dtype=np.uint64)) & 0xFFFFFFFF]
    return np.append(order, np.zeros(-n % batch_size, order.dtype)).astype(jnp.result_type(int))


def _rounds(n: int) -> int:
    """How often `jax.random.permutation` sorts, for ties to leave no trace in the result."""
    return math.ceil(3 * math.log(max(1, n)) / math.log(2**32 - 1))


@lru_cache(maxsize=64)
def _sort_bits(n: int, rounds: int) -> Callable[[Array, int], Array]:
    @jax.jit
    def bits(key: Array, epoch: Array) -> Array:
        key, found = _epoch_keys(key, epoch)[0], []
        for _ in range(rounds):
            key, subkey = jax.random.split(key)
            found.append(jax.random.bits(subkey, (n,), jnp.uint32))
        return jnp.stack(found) if found else jnp.zeros((0, n), jnp.uint32)

    return bits


@lru_cache(maxsize=64)
def _order_program(sampling: Sampling, batch_size: int, n: int) -> Callable[[Array, int], Array]:
    return jax.jit(lambda key, epoch: _order(_epoch_keys(key, epoch)[0], sampling, batch_size, n))


def _epoch_keys(key: Array, epoch: Any) -> tuple[Array, Array]:
    """Of an epoch's order, and of what its steps draw."""
    order_key, noise_key = jax.random.split(jax.random.fold_in(key, epoch))
    return order_key, noise_key


def _order(key: Array, sampling: Sampling, batch_size: int, n: int) -> Array | None:
    """A permutation of the examples, filled up with example 0 to whole batches; None where each step draws anew."""
    if sampling != "shuffle":
        return None
    order = jax.random.permutation(key, n)
    return jnp.concatenate([order, jnp.zeros(-n % batch_size, order.dtype)])


def _poisson(key: Array, batch_size: int, n: int, capacity: int) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
    """Which examples were drawn, filled up with example 0, and which rows are real.

    Each with probability batch_size / n, rounded down to a multiple of 2⁻³²: never more often than accounted for.
    """
    drawn = jnp.ones(n, bool)
    if batch_size < n:
        drawn = jax.random.bits(key, (n,), jnp.uint32) < jnp.uint32((batch_size << 32) // n)
    (chosen,) = jnp.nonzero(drawn, size=capacity, fill_value=0)
    return chosen, jnp.arange(capacity) < drawn.sum()


def _mean(metric: Metric, output: Array, target: Array, weights: Array | None) -> Array:
    values = jax.vmap(metric)(output, target).astype(jnp.zeros(()).dtype)
    return values.mean() if weights is None else jnp.where(weights == 0, 0.0, values * weights).sum()


def shape_of(net: Layer, loss: Loss, params: Any, x: Array, y: Array) -> Any:
    """Shape and dtype of the output of one example, once the loss has taken it; refuses what does not fit."""
    leaves, structure = jax.tree.flatten(params)
    one = ((1, *x.shape[1:]), x.dtype), ((1, *y.shape[1:]), y.dtype)
    key = (*((jnp.shape(a), jnp.result_type(a)) for a in leaves), *one)
    return _shape_of(net, loss, structure, key)


@lru_cache(maxsize=256)
def _shape_of(net: Layer, loss: Loss, structure: Any, key: Any) -> Any:
    *leaves, x, y = (jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in key)
    output = jax.eval_shape(lambda p, x: forward(net, p, x)[0], structure.unflatten(leaves), x)
    jax.eval_shape(lambda o, y: jax.vmap(loss.value)(o, y), output, y)
    return output


@lru_cache(maxsize=64)
def evaluation_program(
    net: Layer, loss: Loss, metrics: tuple[Metric, ...], block: int
) -> Callable[[Any, Array, Array], Float[Array, " m"]]:
    """The program (params, x, y) -> means of the loss and of each metric, in evaluation, `block` examples at a time."""

    @jax.jit
    def evaluate(params: Any, x: Array, y: Array) -> Array:
        n, size = len(x), min(block, len(x))

        def step(i: Array, total: Array) -> Array:
            # The last block starts early enough to be whole; what it shares with the one before is left out.
            begin = jnp.minimum(i * size, n - size)
            xs, ys = (lax.dynamic_slice_in_dim(a, begin, size) for a in (x, y))
            output, _ = forward(net, params, xs)
            fresh = begin + jnp.arange(size) >= i * size
            values = [jax.vmap(f)(output, ys).astype(total.dtype) for f in (loss.value, *metrics)]
            return total + jnp.where(fresh, jnp.stack(values), 0.0).sum(1)

        return lax.fori_loop(0, -(-n // size), step, jnp.zeros(1 + len(metrics))) / n

    return evaluate
