"""Training: `fit`, and `fit_many` for many seeds and learning rates as one program."""

from jbp.train.fit import Callback, Diverged, Event, Fit, Interrupted, fit
from jbp.train.in_place import InPlace
from jbp.train.many import fit_many
from jbp.train.many_result import InterruptedMany, Many, One
from jbp.train.progress import Progress, Row, StopReason

__all__ = [
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
    "fit",
    "fit_many",
]


def __dir__() -> list[str]:
    return __all__
