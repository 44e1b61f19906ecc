"""The layers: one file per family, with init, forward and backward side by side."""

from jbp.layers.activations import Activation as Activation
from jbp.layers.activations import Elu as Elu
from jbp.layers.activations import Gelu as Gelu
from jbp.layers.activations import Identity as Identity
from jbp.layers.activations import LeakyRelu as LeakyRelu
from jbp.layers.activations import Relu as Relu
from jbp.layers.activations import Sigmoid as Sigmoid
from jbp.layers.activations import Silu as Silu
from jbp.layers.activations import Softmax as Softmax
from jbp.layers.activations import Softplus as Softplus
from jbp.layers.activations import Tanh as Tanh
from jbp.layers.activations import elu as elu
from jbp.layers.activations import gelu as gelu
from jbp.layers.activations import identity as identity
from jbp.layers.activations import leaky_relu as leaky_relu
from jbp.layers.activations import relu as relu
from jbp.layers.activations import sigmoid as sigmoid
from jbp.layers.activations import silu as silu
from jbp.layers.activations import softmax as softmax
from jbp.layers.activations import softplus as softplus
from jbp.layers.activations import tanh as tanh
from jbp.layers.dense import Dense as Dense
from jbp.layers.dropout import Dropout as Dropout
from jbp.layers.flatten import Flatten as Flatten
from jbp.layers.step import Step as Step
