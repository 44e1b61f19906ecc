"""Everything public that computes a derivative or a step: what `jbp check` runs. Layers and combinators come from the
case table. A test fails when a public name is missing here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jbp import layers, losses, optim
from jbp.arguments import as_key
from jbp.check.cases import COMBINATORS, LAYERS, SQUARE, TWICE, NetCase
from jbp.check.gradient import gradient
from jbp.check.kinks import convention
from jbp.check.layer import layer
from jbp.check.loss import loss
from jbp.check.optimizer import optimizer
from jbp.check.report import Report
from jbp.check.trees import entropy, normal
from jbp.combine import repeat, residual, serial, tied
from jbp.layer import Layer

Kind = Literal["layer", "combinator", "net", "loss", "optimiser"]


@dataclass(frozen=True)
class Item:
    """One thing to check: `run(dtype, seed, differences)` gives its report."""

    kind: Kind
    name: str
    run: Callable[[Any, int, bool], Report]
    """`differences`: whether to run finite differences and the complex step, which are in float64 for every dtype."""


def catalogue() -> tuple[Item, ...]:
    """All items: layers, combinators, whole nets, losses, optimisers."""
    return (*_LAYERS, _KINKS, *_COMBINATORS, *_NETS, *_LOSSES, *_OPTIMISERS)


def of_layer(subject: Layer, shape: tuple[int, ...], kind: Kind = "layer", name: str | None = None) -> Item:
    """The item of one layer or combinator."""

    def run(dtype: Any, seed: int, differences: bool) -> Report:
        return layer(subject, shape, dtype=dtype, key=seed, differences=differences)

    return Item(kind, name or repr(subject), run)


def _of_case(case: NetCase, kind: Kind) -> Item:
    if case.inputs is None:
        return of_layer(case.net, case.shape, kind, case.name)
    most = case.inputs

    def run(dtype: Any, seed: int, differences: bool) -> Report:
        x = jax.random.randint(as_key(seed), (5, *case.shape), 0, most)
        return layer(case.net, x=x, dtype=dtype, key=seed, differences=differences)

    return Item(kind, case.name, run)


_LAYERS = tuple(_of_case(case, "layer") for row in LAYERS if not row.no_gradient for case in row.in_check)
AT_ZERO = {case.net: case.at_zero for row in LAYERS for case in row.cases if case.at_zero is not None}
"""θ′ just below 0, at 0 and just above, of what is not written with one formula on both sides; as documented."""


def _at_zero(dtype: Any, seed: int, differences: bool) -> Report:
    entries = [
        entry for subject, slopes in AT_ZERO.items() for entry in convention(subject, slopes, dtype, as_key(seed))
    ]
    return Report(f"the convention at 0, {dtype}", tuple(entries))


_KINKS = Item("layer", "relu, leaky_relu and elu at 0", _at_zero)
_COMBINATORS = tuple(_of_case(case, "combinator") for row in COMBINATORS for case in row.in_check)


def _whole_net(dtype: Any, seed: int, differences: bool) -> Report:
    """Classes of one output each, the mean over the batch."""
    net = serial(
        layers.Dense(7), layers.gelu, repeat(residual(serial(layers.tanh, layers.Dense(7))), 2), layers.Dense(3)
    )
    y = jax.random.randint(as_key(seed), (11,), 0, 3)
    params, x = _drawn(net, (11, 5), dtype, seed)
    return gradient(net, losses.softmax_cross_entropy, params, x, y, differences=differences)


def _weighted_net(dtype: Any, seed: int, differences: bool) -> Report:
    """A distribution at each of 2 positions; example weights, two of them 0, one over a row of NaN; one part frozen."""
    net = serial(layers.Dense(7), layers.tanh, layers.Dense(3))
    params, x = _drawn(net, (5, 2, 11), dtype, seed)
    y = jax.nn.softmax(normal(entropy(as_key(seed), 2), jax.ShapeDtypeStruct((5, 2, 3), dtype)))
    weights = jnp.asarray([0.5, 0.0, 2.0, 0.0, 0.125], dtype)
    x, y = (jnp.asarray(a).at[3].set(jnp.nan) for a in (x, y))
    trainable = ({"weight": True, "bias": False}, (), True)
    loss = losses.softmax_cross_entropy
    return gradient(net, loss, params, x, y, weights=weights, trainable=trainable, differences=differences)


def _shared_net(dtype: Any, seed: int, differences: bool) -> Report:
    """A layer used twice in each of two repetitions, and a weight that its neighbour borrows without the bias."""
    net = serial(repeat(TWICE, 2), tied(SQUARE, {(2, "weight"): (0, "weight")}))
    params, x = _drawn(net, (5, 3), dtype, seed)
    y = normal(entropy(as_key(seed), 2), x)
    return gradient(net, losses.l2_loss, params, x, y, differences=differences)


def _drawn(net: Layer, shape: tuple[int, ...], dtype: Any, seed: int) -> tuple[Any, Any]:
    params, _ = net.init(as_key(seed), shape[1:])
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    return params, normal(entropy(as_key(seed), 1), jax.ShapeDtypeStruct(shape, dtype))


_NETS = (
    Item("net", "value_and_grad", _whole_net),
    Item("net", "value_and_grad: weights, NaN at weight 0, positions, frozen", _weighted_net),
    Item("net", "value_and_grad: shared parameters", _shared_net),
)
_CLASSES, _VALUES = ("classes", "masses", "distribution"), ("values",)


def _of_loss(subject: losses.Loss, kinds: tuple[str, ...], shape: tuple[int, ...], name: str) -> Item:
    def run(dtype: Any, seed: int, differences: bool) -> Report:
        return loss(subject, shape, target=kinds, dtype=dtype, key=seed, differences=differences)

    return Item("loss", name, run)


_LOSSES = tuple(
    _of_loss(subject, kinds[:most], shape, f"{subject!r}{where}")
    for subject, kinds in (
        (losses.squared_error, _VALUES),
        (losses.l2_loss, _VALUES),
        (losses.mean_squared_error, _VALUES),
        (losses.softmax_cross_entropy, _CLASSES),
        (losses.sigmoid_binary_cross_entropy, _VALUES),
        (losses.cross_entropy, _CLASSES),
    )
    for shape, where, most in (((7,), "", 3), ((2, 3), " at positions", 2))
)


def _fading(steps: Any) -> Any:
    """A learning rate that falls from step to step."""
    return 0.1 / (1 + 0.5 * steps.astype(jnp.float32))


def _of_optimizer(name: str, ours: Any, theirs: Any) -> Item:
    return Item("optimiser", name, lambda dtype, seed, _: optimizer(ours, theirs, dtype=dtype, key=seed, nones=True))


_OPTIMISERS = tuple(
    _of_optimizer(*row)
    for row in (
        ("sgd(0.1)", optim.sgd(0.1), optax.sgd(0.1)),
        ("sgd(0.1, momentum=0.9)", optim.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
        ("heavy_ball(0.1)", optim.heavy_ball(0.1), optax.sgd(0.1, momentum=0.9)),
        ("nesterov(0.1)", optim.nesterov(0.1), optax.sgd(0.1, momentum=0.9, nesterov=True)),
        ("sgd(schedule)", optim.sgd(_fading), optax.sgd(_fading)),
        ("heavy_ball(schedule)", optim.heavy_ball(_fading), optax.sgd(_fading, momentum=0.9)),
        ("nesterov(schedule)", optim.nesterov(_fading), optax.sgd(_fading, momentum=0.9, nesterov=True)),
    )
)
