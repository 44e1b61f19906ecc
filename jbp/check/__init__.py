"""Proof: whether a derivative written by hand is right, of jbp's own layers or of yours."""

from jbp.check.gradient import gradient as gradient
from jbp.check.layer import layer as layer
from jbp.check.loss import loss as loss
from jbp.check.optimizer import optimizer as optimizer
from jbp.check.report import CheckFailed as CheckFailed
from jbp.check.report import Entry as Entry
from jbp.check.report import Report as Report
from jbp.check.report import joined as joined
from jbp.check.vjp import custom_vjp as custom_vjp
from jbp.check.vjp import vjp as vjp
