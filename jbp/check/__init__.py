"""Proof: whether a derivative written by hand is right, of jbp's own layers or of yours."""

from jbp.check.gradient import gradient
from jbp.check.layer import layer
from jbp.check.loss import loss
from jbp.check.optimizer import optimizer
from jbp.check.report import CheckFailed, Entry, Report, joined
from jbp.check.vjp import custom_vjp, vjp

__all__ = ["CheckFailed", "Entry", "Report", "custom_vjp", "gradient", "joined", "layer", "loss", "optimizer", "vjp"]


def __dir__() -> list[str]:
    return __all__
