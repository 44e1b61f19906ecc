"""jbp: backpropagation you can open up. A backward pass written by hand, in JAX."""

from jbp import _starting as _starting  # isort: split

import importlib as _importlib
import types as _types
import typing as _typing

from jbp import checkpoint as checkpoint
from jbp import curvature as curvature
from jbp import data as data
from jbp import layers as layers
from jbp import losses as losses
from jbp import optim as optim
from jbp import rules as rules
from jbp import sinks as sinks
from jbp import stats as stats
from jbp._version import __version__ as __version__
from jbp.backprop import apply as apply
from jbp.backprop import backward as backward
from jbp.backprop import forward as forward
from jbp.backprop import value_and_grad as value_and_grad
from jbp.backprop import value_and_pairs as value_and_pairs
from jbp.checkpoint import Run as Run
from jbp.combine import branch as branch
from jbp.combine import repeat as repeat
from jbp.combine import residual as residual
from jbp.combine import serial as serial
from jbp.combine import tied as tied
from jbp.layer import Layer as Layer
from jbp.layers import Dense as Dense
from jbp.layers import Dropout as Dropout
from jbp.layers import Flatten as Flatten
from jbp.layers import elu as elu
from jbp.layers import gelu as gelu
from jbp.layers import identity as identity
from jbp.layers import initializers as initializers
from jbp.layers import leaky_relu as leaky_relu
from jbp.layers import relu as relu
from jbp.layers import sigmoid as sigmoid
from jbp.layers import silu as silu
from jbp.layers import softmax as softmax
from jbp.layers import softplus as softplus
from jbp.layers import tanh as tanh
from jbp.metrics import accuracy as accuracy
from jbp.pairs import Coupled as Coupled
from jbp.pairs import Outer as Outer
from jbp.pairs import Pair as Pair
from jbp.pairs import Scale as Scale
from jbp.pairs import Shift as Shift
from jbp.pairs import Stack as Stack
from jbp.pairs import Sum as Sum
from jbp.pairs import contract as contract
from jbp.private import Private as Private
from jbp.private import clipped_sum as clipped_sum
from jbp.runs import save as save
from jbp.step import Backpropagation as Backpropagation
from jbp.step import Batch as Batch
from jbp.step import Method as Method
from jbp.step import Problem as Problem
from jbp.step import State as State
from jbp.step import Sums as Sums
from jbp.step import init_state as init_state
from jbp.step import make_step as make_step
from jbp.tracing import Trace as Trace
from jbp.tracing import TraceRow as TraceRow
from jbp.tracing import trace as trace
from jbp.train import Diverged as Diverged
from jbp.train import Event as Event
from jbp.train import Fit as Fit
from jbp.train import Interrupted as Interrupted
from jbp.train import InterruptedMany as InterruptedMany
from jbp.train import Many as Many
from jbp.train import Progress as Progress
from jbp.train import fit as fit
from jbp.train import fit_many as fit_many

load = checkpoint.load_run

if _typing.TYPE_CHECKING:
    from jbp import check as check

# What users open; the other modules only hold what is imported from them above.
_MODULES = {
    "check", "checkpoint", "curvature", "data", "initializers", "layers", "losses", "optim", "rules", "sinks", "stats",
}  # fmt: skip


def __getattr__(name: str) -> _typing.Any:
    """`jbp.check` is loaded when it is first asked for: training needs none of it."""
    if name == "check":
        return _importlib.import_module("jbp.check")
    raise AttributeError(f"module 'jbp' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, `check` too while it is not loaded."""
    held = {name for name, value in globals().items() if isinstance(value, _types.ModuleType)}
    return sorted({name for name in globals() if not name.startswith("_")} - held | _MODULES)
