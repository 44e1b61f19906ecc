"""Training: `fit`, and `fit_many` for many seeds and learning rates as one program."""

from jbp.train.fit import Callback as Callback
from jbp.train.fit import Diverged as Diverged
from jbp.train.fit import Event as Event
from jbp.train.fit import Fit as Fit
from jbp.train.fit import Interrupted as Interrupted
from jbp.train.fit import fit as fit
from jbp.train.in_place import InPlace as InPlace
from jbp.train.many import fit_many as fit_many
from jbp.train.many_result import InterruptedMany as InterruptedMany
from jbp.train.many_result import Many as Many
from jbp.train.many_result import One as One
from jbp.train.progress import Progress as Progress
from jbp.train.progress import Row as Row
from jbp.train.progress import StopReason as StopReason
