"""The layers: one file per family, with init, forward and backward side by side."""

from jbp.layers.activations import (
    Activation,
    Elu,
    Gelu,
    Identity,
    LeakyRelu,
    Relu,
    Sigmoid,
    Silu,
    Softmax,
    Softplus,
    Tanh,
    elu,
    gelu,
    identity,
    leaky_relu,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from jbp.layers.conv import Conv
from jbp.layers.dense import Dense
from jbp.layers.dropout import Dropout
from jbp.layers.flatten import Flatten
from jbp.layers.pool import AvgPool, GlobalPool, MaxPool
from jbp.layers.step import Step

__all__ = [
    "Activation",
    "AvgPool",
    "Conv",
    "Dense",
    "Dropout",
    "Elu",
    "Flatten",
    "Gelu",
    "GlobalPool",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "Relu",
    "Sigmoid",
    "Silu",
    "Softmax",
    "Softplus",
    "Step",
    "Tanh",
    "elu",
    "gelu",
    "identity",
    "leaky_relu",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]


def __dir__() -> list[str]:
    return __all__
