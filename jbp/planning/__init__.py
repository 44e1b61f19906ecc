"""What training would take on accelerators that are not here: predictions from shapes and published figures."""

from jbp.planning.accelerators import ACCELERATORS as ACCELERATORS
from jbp.planning.accelerators import Accelerator as Accelerator
from jbp.planning.accelerators import Machine as Machine
from jbp.planning.costs import Collective as Collective
from jbp.planning.layout import Layout as Layout
from jbp.planning.plan import Prediction as Prediction
from jbp.planning.plan import Work as Work
from jbp.planning.plan import meshes as meshes

__all__ = ["ACCELERATORS", "Accelerator", "Collective", "Layout", "Machine", "Prediction", "Work", "meshes"]


def __dir__() -> list[str]:
    return __all__
