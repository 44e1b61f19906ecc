"""Gradient descent by hand, in optax's interface: for any optax chain, and wherever `optax.sgd` does."""

from jbp.optim.momentum import MomentumState as MomentumState
from jbp.optim.momentum import heavy_ball as heavy_ball
from jbp.optim.momentum import nesterov as nesterov
from jbp.optim.sgd import SgdState as SgdState
from jbp.optim.sgd import sgd as sgd
