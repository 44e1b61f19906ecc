"""Nets made of layers: `serial`, `residual`, `branch`, `repeat`, `tied`."""

from jbp.combine.base import Combinator, LayerError, Place, Visit, located
from jbp.combine.branch import Branch, branch
from jbp.combine.repeat import Repeat, repeat
from jbp.combine.residual import Residual, residual
from jbp.combine.serial import Serial, serial
from jbp.combine.tied import Tied, tied

__all__ = [
    "Branch",
    "Combinator",
    "LayerError",
    "Place",
    "Repeat",
    "Residual",
    "Serial",
    "Tied",
    "Visit",
    "branch",
    "located",
    "repeat",
    "residual",
    "serial",
    "tied",
]


def __dir__() -> list[str]:
    return __all__
