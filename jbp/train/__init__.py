"""Training: `fit`, and `fit_many` for many seeds and learning rates as one program."""

from jbp.train.blame import BadNumber
from jbp.train.fit import fit
from jbp.train.in_place import InPlace
from jbp.train.many import fit_many
from jbp.train.many_result import InterruptedMany, Many, One
from jbp.train.progress import Progress, Row, StopReason
from jbp.train.result import BadBatch, Callback, Diverged, Event, Fit, Interrupted
from jbp.train.watch import Watch
from jbp.train.writers import to_tensorboard, to_wandb

__all__ = [
    "BadBatch",
    "BadNumber",
    "Callback",
    "Diverged",
    "Event",
    "Fit",
    "InPlace",
    "Interrupted",
    "InterruptedMany",
    "Many",
    "One",
    "Progress",
    "Row",
    "StopReason",
    "Watch",
    "fit",
    "fit_many",
    "to_tensorboard",
    "to_wandb",
]


def __dir__() -> list[str]:
    return __all__
