"""Examples to train on: built-in sets, own tables, and what is done to them first. Nothing is unpickled."""

from jbp.data.bounds import Bounds as Bounds
from jbp.data.builtin import load as load
from jbp.data.columns import Columns as Columns
from jbp.data.dataset import Dataset as Dataset
from jbp.data.preparing import Standardizer as Standardizer
from jbp.data.preparing import split as split
from jbp.data.sources import load_dataset as load_dataset
from jbp.data.weights import balanced_weights as balanced_weights
