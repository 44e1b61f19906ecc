"""The compiled programs of many runs: those of one run (`jbp.program`) under `vmap`, each with its learning rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import optax
from jax import lax
from jaxtyping import Array

from jbp import program
from jbp.backprop import Mask
from jbp.layer import Layer, Shape
from jbp.losses import Loss
from jbp.method import Method
from jbp.program import Metric, Sampling

Optimizer = optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]


class Programs(NamedTuple):
    """Of r runs: their start (keys, rates, params) -> (run keys, state), steps, and evaluation [r, m]."""

    start: Callable[..., tuple[Array, program.State]]
    take: Callable[..., program.State]
    evaluate: Callable[..., Array]


@lru_cache(maxsize=64)
def programs(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    metrics: tuple[Metric, ...],
    mask: Mask,
    sampling: Sampling,
    batch_size: int,
    n: int,
    method: Method,
    swept: bool,
    shape: Shape | None,
    block: int,
) -> Programs:
    """The compiled programs of r runs. With `shape` they make their own parameters, without they are given them."""

    def start(keys: Array, rates: Array, params: Any) -> tuple[Array, program.State]:
        init_keys, run_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        if shape is not None:  # mapped and not vmapped, which takes the compiler twice as long
            params = lax.map(lambda key, shape=shape: net.init(key, shape)[0], init_keys)

        def one(run_key: Array, rate: Array, params: Any) -> program.State:
            way = method.init(jax.random.fold_in(run_key, 0), net, params)
            return program.start(params, _at(optimizer, swept, rate), -(-n // batch_size), len(metrics), way)

        return run_keys, jax.vmap(one, (0, 0, None if shape is None else 0))(run_keys, rates, params)

    def take(state: program.State, rate: Array, *arguments: Any) -> program.State:
        chosen = _at(optimizer, swept, rate)
        return program.steps_function(net, loss, chosen, metrics, mask, sampling, batch_size, n, method)(
            state, *arguments
        )

    evaluate = program.evaluation_program(net, loss, metrics, block)
    return Programs(
        jax.jit(start),
        jax.jit(jax.vmap(take, (0, 0, None, None, 0, None, None, None)), donate_argnums=0),
        jax.jit(jax.vmap(evaluate, (0, None, None))),
    )


def _at(optimizer: Any, swept: bool, rate: Array) -> optax.GradientTransformation:
    """The optimiser of one run."""
    if not swept:
        return optimizer
    try:
        chosen = optimizer(rate)
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            "the optimizer function must build its optimiser from a learning rate whose value is known only when it "
            "runs, but it reads that value (with float, if, …): pass the rate on as it is"
        ) from error
    if not is_optimizer(chosen):
        raise ValueError(f"the optimizer function must return one of jbp.optim or optax, but returned {chosen!r}")
    return chosen


def is_optimizer(value: Any) -> bool:
    """Whether it has what an optax transformation has."""
    return hasattr(value, "init") and hasattr(value, "update")
