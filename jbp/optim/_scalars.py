"""The scalars of every optimiser, learning rate η and momentum β: checked when given, cast where used."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jbp.arguments import check_scalar

Rate = ArrayLike | optax.Schedule
P = ParamSpec("P")
Optimizer = optax.GradientTransformationExtraArgs


def memoised(build: Callable[P, Optimizer]) -> Callable[P, Optimizer]:
    """`build`, giving the same object for the same numbers, so that `fit` finds the program it has compiled.

    Arrays, whose values may change or not be known, are no key: with them it builds anew.
    """
    known = lru_cache(maxsize=256, typed=True)(build)

    @wraps(build)
    def built(*args: P.args, **kwargs: P.kwargs) -> Optimizer:
        try:
            hash((*args, *kwargs.values()))
        except TypeError:
            return build(*args, **kwargs)
        return known(*args, **kwargs)

    built.cache_clear = known.cache_clear  # type: ignore[attr-defined]
    return built


def check_learning_rate(learning_rate: Any) -> None:
    """Raise ValueError unless it is a schedule or a finite number ≥ 0."""
    if callable(learning_rate):
        return  # what it returns is checked by `rate_at`
    wanted = "a finite number ≥ 0, a 0-d array, or a schedule from steps taken to either"
    check_scalar("learning_rate", learning_rate, lambda rate: 0 <= rate < np.inf, wanted, "try 0.01")


def check_momentum(momentum: Any) -> None:
    """Raise ValueError unless it is a number in [0, 1)."""
    advice = "0.9 is usual, 0 is plain sgd"
    if callable(momentum):
        advice = "optax.inject_hyperparams(jbp.optim.sgd) takes a schedule for it"
    wanted = "a number in [0, 1) or a 0-d array"
    check_scalar("momentum", momentum, lambda beta: 0 <= beta < 1, wanted, advice)


def rate_at(learning_rate: Rate, steps: Array) -> ArrayLike:
    """The learning rate of the step taken after `steps` others."""
    if not callable(learning_rate):
        return learning_rate
    rate = learning_rate(steps)
    wanted = "a finite number ≥ 0 or a 0-d array"
    check_scalar("a schedule's rate", rate, lambda rate: 0 <= rate < np.inf, wanted, "correct the schedule")
    return rate


def following(steps: Array) -> Array:
    """steps + 1, but never above the largest integer: a negative count is none that schedules know."""
    return jnp.minimum(steps, jnp.iinfo(steps.dtype).max - 1) + 1


def like(value: ArrayLike, leaf: ArrayLike) -> Array:
    """`value` in the dtype of `leaf`: a float32 rate must not widen the update of a bfloat16 leaf."""
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):  # a rate of 0.1, cast to an integer, would be 0
        raise ValueError(f"every gradient must be an array of floats, but one is of {dtype}: cast it or mask it")
    return jnp.asarray(value, dtype)
