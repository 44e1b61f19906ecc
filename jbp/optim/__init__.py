"""Gradient descent by hand, in optax's interface: for any optax chain, and wherever `optax.sgd` does."""

from jbp.optim.momentum import MomentumState, heavy_ball, nesterov
from jbp.optim.sgd import SgdState, sgd

__all__ = ["MomentumState", "SgdState", "heavy_ball", "nesterov", "sgd"]


def __dir__() -> list[str]:
    return __all__
