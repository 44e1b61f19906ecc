"""Stochastic gradient descent, and the one name for it with or without momentum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jbp.arguments import as_bool
from jbp.optim._scalars import Rate, check_learning_rate, check_momentum, following, like, memoised, rate_at
from jbp.optim.momentum import heavy_ball
from jbp.optim.momentum import nesterov as nesterov_momentum


class SgdState(NamedTuple):
    """How many steps were taken; kept for a constant rate too, so that the state has one structure."""

    steps: Array  # [] int32


@memoised
def sgd(
    learning_rate: Rate, momentum: ArrayLike | None = 0.0, nesterov: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent on whatever gradient it is given: of one example, a mini-batch or the whole set.

    w ← w − η g;  the update −η g has the dtype of g. With `momentum` β > 0 it is `jbp.optim.heavy_ball`, and
    with `nesterov=True` `jbp.optim.nesterov`.

    Args:
        learning_rate: η ≥ 0: a number, a 0-d array (also traced), or a schedule, from steps taken to η.
        momentum: β in [0, 1): a number or a 0-d array (also traced). A Python or numpy 0, or None, keeps no
            velocity; a jax array keeps one whatever its value.
        nesterov: take the step from the look-ahead point.

    Raises:
        ValueError: rate or momentum not a real scalar, or out of range (a jax array's value is not read);
            `nesterov` not a bool, or True without momentum; at the update, a gradient not of floats.

    Source: H. Robbins, S. Monro, "A Stochastic Approximation Method", 1951.
    """
    check_learning_rate(learning_rate)
    if momentum is not None:
        check_momentum(momentum)
    nesterov = as_bool(nesterov, "nesterov", "β itself is given as momentum")
    # The state's structure must not hang on a jax array's value: the one inject_hyperparams gives may change.
    if isinstance(momentum, jax.Array) or (momentum is not None and momentum != 0):
        return nesterov_momentum(learning_rate, momentum) if nesterov else heavy_ball(learning_rate, momentum)
    if nesterov:
        raise ValueError(f"nesterov=True must come with momentum in (0, 1), but it is {momentum}: 0.9 is usual")

    def init(params):
        del params
        return SgdState(steps=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        rate = rate_at(learning_rate, state.steps)
        return jax.tree.map(lambda g: -like(rate, g) * g, updates), SgdState(following(state.steps))

    return optax.GradientTransformationExtraArgs(init, update)
