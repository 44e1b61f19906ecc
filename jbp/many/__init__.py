"""Many runs of `fit` as one program: every seed with every learning rate."""

from jbp.many.result import InterruptedMany as InterruptedMany
from jbp.many.result import Many as Many
from jbp.many.result import One as One
from jbp.many.run import fit_many as fit_many
