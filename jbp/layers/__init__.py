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
from jbp.layers.attention import Attention
from jbp.layers.batchnorm import BatchNorm
from jbp.layers.conv import Conv
from jbp.layers.dense import Dense
from jbp.layers.dropout import Dropout
from jbp.layers.embedding import Embedding, Positions, Unembedding
from jbp.layers.flatten import Flatten
from jbp.layers.norm import GroupNorm, LayerNorm, RMSNorm
from jbp.layers.pool import AvgPool, GlobalPool, MaxPool
from jbp.layers.reshape import Channel, Reshape
from jbp.layers.step import Step

__all__ = [
    "Activation",
    "Attention",
    "AvgPool",
    "BatchNorm",
    "Channel",
    "Conv",
    "Dense",
    "Dropout",
    "Elu",
    "Embedding",
    "Flatten",
    "Gelu",
    "GlobalPool",
    "GroupNorm",
    "Identity",
    "LayerNorm",
    "LeakyRelu",
    "MaxPool",
    "Positions",
    "RMSNorm",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Silu",
    "Softmax",
    "Softplus",
    "Step",
    "Tanh",
    "Unembedding",
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
