"""Examples to train on: built-in sets, own tables, and what is done to them first. Nothing is unpickled."""

from jbp.data.augment import Augment
from jbp.data.bounds import Bounds
from jbp.data.builtin import load
from jbp.data.columns import Columns
from jbp.data.dataset import Dataset
from jbp.data.folders import from_folder
from jbp.data.preparing import Standardizer, split
from jbp.data.sources import load_dataset
from jbp.data.vocabulary import Vocabulary
from jbp.data.weights import balanced_weights
from jbp.rows import Rows, Stream
from jbp.windows import Windows, windows

__all__ = [
    "Augment",
    "Bounds",
    "Columns",
    "Dataset",
    "Rows",
    "Standardizer",
    "Stream",
    "Vocabulary",
    "Windows",
    "balanced_weights",
    "from_folder",
    "load",
    "load_dataset",
    "split",
    "windows",
]


def __dir__() -> list[str]:
    return __all__
