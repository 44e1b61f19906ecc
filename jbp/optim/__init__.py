"""Gradient descent by hand, in optax's interface: for any optax chain, and wherever `optax.sgd` does."""

from jbp.optim.decay import decay_mask
from jbp.optim.momentum import MomentumState, heavy_ball, nesterov
from jbp.optim.sgd import SgdState, sgd

__all__ = ["MomentumState", "SgdState", "decay_mask", "heavy_ball", "nesterov", "sgd"]


def __dir__() -> list[str]:
    return __all__
