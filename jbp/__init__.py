"""jbp: backpropagation you can open up. A backward pass written by hand, in JAX.

Every name is loaded from its own module when it is first asked for: `import jbp` loads nothing, not even JAX.
"""

from jbp import _starting as _starting  # isort: split

import typing as _typing

from jbp._version import __version__ as __version__

if _typing.TYPE_CHECKING:
    from jbp import check as check
    from jbp import checkpoint as checkpoint
    from jbp import combine as combine
    from jbp import curvature as curvature
    from jbp import data as data
    from jbp import hosts as hosts
    from jbp import inspect as inspect
    from jbp import layers as layers
    from jbp import losses as losses
    from jbp import optim as optim
    from jbp import pairs as pairs
    from jbp import rules as rules
    from jbp import sinks as sinks
    from jbp import stats as stats
    from jbp import train as train
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
    from jbp.language import generate as generate
    from jbp.language import gpt as gpt
    from jbp.layer import Layer as Layer
    from jbp.layers import Attention as Attention
    from jbp.layers import AvgPool as AvgPool
    from jbp.layers import BatchNorm as BatchNorm
    from jbp.layers import Channel as Channel
    from jbp.layers import Conv as Conv
    from jbp.layers import Dense as Dense
    from jbp.layers import Dropout as Dropout
    from jbp.layers import Embedding as Embedding
    from jbp.layers import Flatten as Flatten
    from jbp.layers import GlobalPool as GlobalPool
    from jbp.layers import GroupNorm as GroupNorm
    from jbp.layers import LayerNorm as LayerNorm
    from jbp.layers import MaxPool as MaxPool
    from jbp.layers import Positions as Positions
    from jbp.layers import Reshape as Reshape
    from jbp.layers import RMSNorm as RMSNorm
    from jbp.layers import Unembedding as Unembedding
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
    from jbp.metrics import bits_per_token as bits_per_token
    from jbp.metrics import perplexity as perplexity
    from jbp.pairs import Constant as Constant
    from jbp.pairs import Coupled as Coupled
    from jbp.pairs import Geometry as Geometry
    from jbp.pairs import Lookup as Lookup
    from jbp.pairs import Outer as Outer
    from jbp.pairs import Pair as Pair
    from jbp.pairs import Scale as Scale
    from jbp.pairs import Shift as Shift
    from jbp.pairs import Stack as Stack
    from jbp.pairs import Sum as Sum
    from jbp.pairs import Window as Window
    from jbp.pairs import contract as contract
    from jbp.private import Private as Private
    from jbp.private import clipped_sum as clipped_sum
    from jbp.runs import save as save
    from jbp.sharding import Sharding as Sharding
    from jbp.sinks import observe as observe
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
    from jbp.train import Watch as Watch
    from jbp.train import fit as fit
    from jbp.train import fit_many as fit_many

    load = checkpoint.load_run
else:  # what a type checker reads above, for whoever runs it
    from importlib import import_module as _import_module

    _HOMES = {
        "jbp.backprop": "apply backward forward value_and_grad value_and_pairs",
        "jbp.checkpoint": "Run load",
        "jbp.combine": "branch repeat residual serial tied",
        "jbp.language": "generate gpt",
        "jbp.layer": "Layer",
        "jbp.layers": (
            "Attention AvgPool BatchNorm Channel Conv Dense Dropout Embedding Flatten GlobalPool GroupNorm LayerNorm "
            "MaxPool Positions RMSNorm Reshape Unembedding elu gelu identity initializers leaky_relu relu sigmoid silu "
            "softmax softplus tanh"
        ),
        "jbp.metrics": "accuracy bits_per_token perplexity",
        "jbp.pairs": "Constant Coupled Geometry Lookup Outer Pair Scale Shift Stack Sum Window contract",
        "jbp.private": "Private clipped_sum",
        "jbp.runs": "save",
        "jbp.sharding": "Sharding",
        "jbp.sinks": "observe",
        "jbp.step": "Backpropagation Batch Method Problem State Sums init_state make_step",
        "jbp.tracing": "Trace TraceRow trace",
        "jbp.train": "Diverged Event Fit Interrupted InterruptedMany Many Progress Watch fit fit_many",
    }
    _HOME = {name: home for home, names in _HOMES.items() for name in names.split()}
    _THERE = {"load": "load_run"}
    """What a name is called at home, if not so."""
    _MODULES = (
        "check", "checkpoint", "combine", "curvature", "data", "hosts", "inspect", "layers", "losses", "optim", "pairs",
        "rules", "sinks", "stats", "train",
    )  # fmt: skip
    __all__ = sorted((*_HOME, *_MODULES))

    def __getattr__(name):
        if name in _HOME:
            value = getattr(_import_module(_HOME[name]), _THERE.get(name, name))
        elif name.startswith("_"):
            raise AttributeError(f"module 'jbp' has no attribute {name!r}")
        else:  # a module; those that are not in `_MODULES` too, such as jbp.step
            try:
                value = _import_module(f"jbp.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"jbp.{name}":
                    raise
                raise AttributeError(f"module 'jbp' has no attribute {name!r}") from None
        globals()[name] = value
        return value

    def __dir__():
        return __all__
