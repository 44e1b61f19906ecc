"""Everything public that computes a derivative or a step, with a shape to check it on: what `jbp check` runs.

Sizes are distinct small primes, so that no transposed axis can hide. A test fails when a public name is missing here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from jbp import layers, losses, optim
from jbp.check.gradient import gradient
from jbp.check.layer import layer
from jbp.check.loss import loss
from jbp.check.optimizer import optimizer
from jbp.check.report import Report
from jbp.check.trees import as_key, entropy, normal
from jbp.combine import branch, repeat, residual, serial
from jbp.layer import Layer

Kind = Literal["layer", "combinator", "net", "loss", "optimiser"]


@dataclass(frozen=True)
class Item:
    """One thing to check: `run(dtype, seed)` gives its report."""

    kind: Kind
    name: str
    run: Callable[[Any, int], Report]


def catalogue() -> tuple[Item, ...]:
    """All items: layers, combinators, a whole net, losses, optimisers."""
    return (*_LAYERS, *_COMBINATORS, _NET, *_LOSSES, *_OPTIMISERS)


def of_layer(subject: Layer, shape: tuple[int, ...], kind: Kind = "layer") -> Item:
    """The item of one layer or combinator."""
    return Item(kind, repr(subject), lambda dtype, seed: layer(subject, shape, dtype=dtype, key=seed))


_LAYERS = tuple(
    of_layer(subject, shape)
    for subject, shape in (
        (layers.Dense(5), (2, 3)),
        (layers.Dense(5, use_bias=False), (3,)),
        (layers.identity, (3,)),
        (layers.relu, (3, 5)),
        (layers.leaky_relu, (3, 5)),
        (layers.LeakyRelu(0.2), (7,)),
        (layers.tanh, (3, 5)),
        (layers.sigmoid, (3, 5)),
        (layers.softmax, (3, 5)),
        (layers.softplus, (3, 5)),
        (layers.elu, (3, 5)),
        (layers.Elu(0.7), (7,)),
        (layers.silu, (3, 5)),
        (layers.gelu, (3, 5)),
        (layers.Gelu(approximate=False), (7,)),
        (layers.Dropout(0.3), (3, 5)),
        (layers.Flatten(), (2, 3)),
    )
)
_BLOCK = serial(layers.Dense(5), layers.tanh, layers.Dense(3))
_COMBINATORS = tuple(
    of_layer(subject, shape, "combinator")
    for subject, shape in (
        (serial(layers.Dense(5), layers.sigmoid, layers.Dense(2)), (3,)),
        (residual(_BLOCK), (3,)),
        (branch(layers.Dense(5), serial(layers.Dense(5), layers.tanh)), (3,)),
        (branch(layers.Dense(5), layers.tanh, join="concat"), (3,)),
        (repeat(_BLOCK, 2), (3,)),
    )
)


def _whole_net(dtype: Any, seed: int) -> Report:
    net = serial(
        layers.Dense(7), layers.gelu, repeat(residual(serial(layers.tanh, layers.Dense(7))), 2), layers.Dense(3)
    )
    params, _ = net.init(as_key(seed), (5,))
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    x = normal(entropy(as_key(seed), 1), jax.ShapeDtypeStruct((11, 5), dtype))
    y = jax.random.randint(as_key(seed), (11,), 0, 3)
    return gradient(net, losses.softmax_cross_entropy, params, x, y)


_NET = Item("net", "value_and_grad", _whole_net)
_LOSSES = tuple(
    Item("loss", repr(subject), lambda dtype, seed, subject=subject: loss(subject, dtype=dtype, key=seed))
    for subject in (
        losses.squared_error,
        losses.l2_loss,
        losses.mean_squared_error,
        losses.softmax_cross_entropy,
        losses.sigmoid_binary_cross_entropy,
        losses.cross_entropy,
    )
)
_OPTIMISERS = tuple(
    Item("optimiser", name, lambda dtype, seed, a=ours, b=theirs: optimizer(a, b, dtype=dtype, key=seed))
    for name, ours, theirs in (
        ("sgd(0.1)", optim.sgd(0.1), optax.sgd(0.1)),
        ("sgd(0.1, momentum=0.9)", optim.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
        ("heavy_ball(0.1)", optim.heavy_ball(0.1), optax.sgd(0.1, momentum=0.9)),
        ("nesterov(0.1)", optim.nesterov(0.1), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    )
)
