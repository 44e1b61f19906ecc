"""Heavy-ball and Nesterov momentum: one velocity, and two directions to take from it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jbp.optim._scalars import Rate, check_learning_rate, check_momentum, following, like, memoised, rate_at


class MomentumState(NamedTuple):
    """How many steps were taken, and the velocity: shapes, dtypes and shardings as the parameters have."""

    steps: Array  # [] int32
    velocity: optax.Params


@memoised
def heavy_ball(learning_rate: Rate, momentum: ArrayLike = 0.9) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with an undamped velocity, which a constant gradient drives to g / (1 − β).

    v ← β v + g;  w ← w − η v,  from v = 0. With η constant, step t is Polyak's
    w[t+1] = w[t] − η g[t] + β (w[t] − w[t−1]).

    Velocity and update have the dtype of the parameter, whatever that of its gradient. A gradient None gets
    the update None and leaves its velocity as it was.

    Args:
        learning_rate: η ≥ 0: a number, a 0-d array (also traced), or a schedule, from steps taken to η.
        momentum: β in [0, 1): a number or a 0-d array (also traced).

    Raises:
        ValueError: rate or momentum not a real scalar, or out of range (a jax array's value is not read);
            at the update, a parameter not of floats.

    Source: B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    return _descend(learning_rate, momentum, lambda beta, g, v: v)


@memoised
def nesterov(learning_rate: Rate, momentum: ArrayLike = 0.9) -> optax.GradientTransformationExtraArgs:
    """Momentum whose every step is taken from one step of velocity ahead.

    v ← β v + g;  w ← w − η (g + β v),  from v = 0, the second with the new v. With η constant, w is the
    look-ahead point θ + β u at which the paper takes its gradients:  u ← β u − η g(θ + β u);  θ ← θ + u.

    Everything else is as in `heavy_ball`: dtypes, gradients None, arguments, errors.

    Source: I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in
    deep learning", 2013, equations 3 and 4, after Y. Nesterov, 1983.
    """
    return _descend(learning_rate, momentum, lambda beta, g, v: g + beta * v)


def _descend(
    learning_rate: Rate, momentum: ArrayLike, direction: Callable[[Array, Array, Array], Array]
) -> optax.GradientTransformationExtraArgs:
    """v ← β v + g;  w ← w − η direction(β, g, v)."""
    check_learning_rate(learning_rate)
    check_momentum(momentum)

    def init(params):
        # zeros_like keeps the sharding; naming the dtype drops a weak type, as the first step would anyway.
        velocity = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.result_type(p)), params)
        return MomentumState(steps=jnp.zeros((), jnp.int32), velocity=velocity)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        rate = rate_at(learning_rate, state.steps)

        def accelerate(g, v):
            return v if g is None else like(momentum, v) * v + like(g, v)

        def step(g, v):
            return None if g is None else -like(rate, v) * direction(like(momentum, v), like(g, v), v)

        # None is a leaf here: a gradient may be None where the velocity is an array.
        velocity = jax.tree.map(accelerate, updates, state.velocity, is_leaf=lambda g: g is None)
        updates = jax.tree.map(step, updates, velocity, is_leaf=lambda g: g is None)
        return updates, MomentumState(following(state.steps), velocity)

    return optax.GradientTransformationExtraArgs(init, update)
