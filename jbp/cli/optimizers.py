"""The optimiser that the options of `jbp train` say, with its schedule, warm-up, decay and clipping."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import optax

from jbp import optim
from jbp.cli.options import OPTIMIZERS, TrainOptions
from jbp.optim import decay_mask


def make_optimizer(options: TrainOptions, steps: int) -> optax.GradientTransformation:
    """The optimiser of the options, for a run of so many steps; the same object for the same options."""
    optimizer = options.optimizer or "momentum"
    usual = OPTIMIZERS[optimizer]
    rate = usual.learning_rate if options.learning_rate is None else options.learning_rate
    beta = usual.momentum if options.momentum is None else options.momentum
    decay = usual.weight_decay if options.weight_decay is None else options.weight_decay
    steps = 0 if options.schedule == "constant" else steps
    eta = _rate(rate, options.schedule, steps, options.warmup)
    return _optimizer(optimizer, eta, beta or 0.0, options.nesterov, decay, options.clip_gradient)


@lru_cache(maxsize=64)
def _rate(rate: float, schedule: str, steps: int, warmup: int) -> Any:
    """The learning rate, or what makes it of a step; after a warm-up the schedule begins."""
    steps = steps - warmup if steps else 0
    if steps < 0:
        raise ValueError(f"warmup must be fewer than the run's {steps + warmup} steps, but is {warmup}")
    rates: dict[str, Callable[[], Any]] = {
        "constant": lambda: rate,
        "cosine": lambda: optax.cosine_decay_schedule(rate, steps),
        "linear": lambda: optax.linear_schedule(rate, 0.0, steps),
        "exponential": lambda: optax.exponential_decay(rate, steps, 0.01),
        "step": lambda: optax.piecewise_constant_schedule(rate, {steps // 2: 0.1, steps * 3 // 4: 0.1}),
    }
    eta = rates[schedule]()
    if not warmup:
        return eta
    after: Any = eta if callable(eta) else optax.constant_schedule(eta)
    # The first step is one, and none at a rate of 0.
    return optax.join_schedules([optax.linear_schedule(rate / warmup, rate, warmup - 1 or 1), after], [warmup])


@lru_cache(maxsize=64)  # the compiled program of training is kept for each optimiser object
def _optimizer(
    name: str, eta: Any, beta: float, looks_ahead: bool, decay: float, clip: float | None
) -> optax.GradientTransformation:
    clipping = () if clip is None else (_mixing(optax.clip_by_global_norm(clip)),)
    match name:
        case "sgd" | "momentum" | "heavy_ball":
            chosen = optim.sgd(eta, beta, looks_ahead)
        case "nesterov":
            chosen = optim.nesterov(eta, beta)
        case "adam":
            chosen = _mixing(optax.adam(eta, nesterov=looks_ahead))
        case "adamw":
            chosen, decay = _mixing(optax.adamw(eta, weight_decay=decay, mask=decay_mask, nesterov=looks_ahead)), 0.0
        case _:
            chosen = _mixing(optax.rmsprop(eta, momentum=beta or None, nesterov=looks_ahead))
    decays = (optax.add_decayed_weights(decay, decay_mask),) if decay else ()
    return optax.chain(*clipping, *decays, chosen) if clipping or decays else chosen


def _mixing(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser that mixes types, as Adam does, where JAX is told to be strict about them."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)
