"""The case table. A row here enrols a net, or a loss with fitting outputs and targets, in every law of the suite.

Every axis has a prime size of its own, so that a missing transpose cannot hide; BATCH is larger than any of them.
One row has width 1, some have extra positions, and one repeats as often as there are examples.
"""

import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jbp
from jbp import losses
from jbp.arguments import as_number
from jbp.layer import Layer, Static
from jbp.layers import Elu, Gelu, LeakyRelu

BATCH = 11


@dataclass(frozen=True, repr=False)
class Gain(Layer):
    """A user's own layer, written outside the library: y = f·g∘x with a learned gain g."""

    factor: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "factor", as_number(self.factor, "the factor of Gain"))

    def init(self, key, shape):
        return {"gain": jnp.ones(shape)}, shape

    def forward(self, params, x, key):
        return self.factor * params["gain"] * x, x

    def backward(self, params, saved, delta):
        delta = self.factor * delta
        return params["gain"] * delta, {"gain": jbp.Scale.of(saved, delta, saved.shape)}


@dataclass(frozen=True, repr=False)
class Table(Layer):
    """A user's table of positions, y = x + table: one use in an example, of any shape."""

    def init(self, key, shape):
        return {"table": jnp.zeros(shape)}, shape

    def forward(self, params, x, key):
        return x + params["table"], Static(x.shape)

    def backward(self, params, saved, delta):
        return delta, {"table": jbp.Shift.of(delta, saved.value)}


@dataclass(frozen=True, repr=False)
class Centre(Layer):
    """y = x − Σ wₙ xₙ / Σ w: couples the examples."""

    couples_batch = True

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key, weights=None):
        p = jnp.full(len(x), 1 / len(x)) if weights is None else weights / weights.sum()
        p = p.astype(x.dtype)
        return x - jnp.einsum("n,n...->...", p, x)[None], (p, Static(x.shape))

    def backward(self, params, saved, delta):
        p, _ = saved
        return delta - jnp.einsum("n,m...->n...", p, delta), ()


class NetCase(NamedTuple):
    name: str
    net: Layer
    shape: tuple[int, ...]
    deep: bool = False
    """Whether several weights lie on one path, so that rounding is allowed to grow (`oracles.UNITS`)."""


class LossCase(NamedTuple):
    name: str
    loss: losses.Loss
    output: Any
    target: Any


def random(name: str) -> np.random.Generator:
    """The random numbers of a row: they follow from its name, so nobody picked them."""
    return np.random.default_rng(zlib.crc32(name.encode()))


_ACTIVATIONS = [
    jbp.identity,
    jbp.relu,
    jbp.leaky_relu,
    LeakyRelu(0.2),
    jbp.tanh,
    jbp.sigmoid,
    jbp.softmax,
    jbp.softplus,
    jbp.elu,
    Elu(0.7),
    jbp.silu,
    jbp.gelu,
    Gelu(approximate=False),
]

SINGLE = [
    NetCase("dense", jbp.Dense(5), (3,)),
    NetCase("dense without bias", jbp.Dense(5, use_bias=False), (3,)),
    NetCase("dense to width 1", jbp.Dense(1), (7,)),
    NetCase("dense from width 1", jbp.Dense(3), (1,)),
    NetCase("dense, square", jbp.Dense(5), (5,)),
    NetCase("dense at positions", jbp.Dense(5), (2, 3)),
    NetCase("dense at positions, two axes, no bias", jbp.Dense(2, use_bias=False), (3, 5, 7)),
    *(NetCase(f"{a!r}", a, (3, 5)) for a in _ACTIVATIONS),
    NetCase("dropout 0.3", jbp.Dropout(0.3), (3, 5)),
    NetCase("dropout 0.9", jbp.Dropout(0.9), (7,)),
    NetCase("dropout 0", jbp.Dropout(0.0), (7,)),
    NetCase("flatten", jbp.Flatten(), (2, 3, 5)),
    NetCase("a user's own layer", Gain(0.5), (3, 5)),
]

_BLOCK = jbp.residual(jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(3)))

COMBINED = [
    NetCase("serial of one", jbp.serial(jbp.Dense(5)), (3,)),
    NetCase("classifier", jbp.serial(jbp.Dense(7), jbp.relu, jbp.Dense(5), jbp.softmax), (3,), True),
    NetCase("image", jbp.serial(jbp.Flatten(), jbp.Dense(5), jbp.sigmoid, jbp.Dense(1)), (2, 3), True),
    NetCase("positions", jbp.serial(jbp.Dense(5), jbp.gelu, jbp.Dense(7)), (2, 3), True),
    NetCase(
        "dropout between",
        jbp.serial(jbp.Dropout(0.2), jbp.Dense(7), jbp.relu, jbp.Dropout(0.5), jbp.Dense(2)),
        (5,),
        True,
    ),
    NetCase("two dropouts in a row", jbp.serial(jbp.Dropout(0.3), jbp.Dropout(0.4)), (3, 5)),
    NetCase("serial in serial", jbp.serial(jbp.serial(jbp.Dense(5), jbp.elu), jbp.serial(jbp.Dense(2))), (3,), True),
    NetCase("residual", _BLOCK, (3,), True),
    NetCase("residual of identity", jbp.residual(jbp.identity), (3,)),
    NetCase("residual of an activation", jbp.residual(jbp.silu), (3, 5)),
    NetCase("residual of dropout", jbp.residual(jbp.serial(jbp.Dropout(0.4), jbp.Dense(3))), (3,)),
    NetCase("residual in residual", jbp.residual(jbp.serial(_BLOCK, jbp.residual(jbp.tanh))), (3,), True),
    NetCase("branch sum", jbp.branch(jbp.Dense(5), jbp.serial(jbp.Dense(5), jbp.tanh)), (3,), True),
    NetCase("branch of one", jbp.branch(jbp.Dense(5)), (3,)),
    NetCase("branch with equal arms", jbp.branch(jbp.identity, jbp.identity, jbp.relu), (3,)),
    NetCase("branch concat", jbp.branch(jbp.Dense(5), jbp.identity, jbp.Dense(1), join="concat"), (3,)),
    NetCase("branch concat at positions", jbp.branch(jbp.Dense(5), jbp.Dense(7), join="concat"), (2, 3)),
    NetCase("branch with dropouts", jbp.branch(jbp.Dropout(0.5), jbp.Dropout(0.5), jbp.identity), (7,)),
    NetCase(
        "branch in branch",
        jbp.branch(jbp.branch(jbp.Dense(2), jbp.tanh, join="concat"), jbp.serial(jbp.Dense(5), jbp.softplus)),
        (3,),
        True,
    ),
    NetCase("repeat of dense", jbp.repeat(jbp.Dense(3), 2), (3,), True),
    NetCase("repeat once", jbp.repeat(jbp.Dense(3), 1), (3,)),
    NetCase("repeat as often as examples", jbp.repeat(jbp.serial(jbp.Dense(3), jbp.tanh), BATCH), (3,), True),
    *(
        NetCase(f"repeat of {a!r}", jbp.repeat(a, 3), (5,))
        for a in (jbp.identity, jbp.relu, jbp.tanh, jbp.softmax, jbp.softplus, jbp.gelu)
    ),
    NetCase("repeat of dense, relu", jbp.repeat(jbp.serial(jbp.Dense(5), jbp.relu), 3), (5,), True),
    NetCase("repeat of relu, dense", jbp.repeat(jbp.serial(jbp.relu, jbp.Dense(5)), 3), (5,), True),
    NetCase("repeat of tanh, tanh", jbp.repeat(jbp.serial(jbp.tanh, jbp.tanh), 3), (5,)),
    NetCase("repeat of dense, silu", jbp.repeat(jbp.serial(jbp.Dense(5), jbp.silu), 3), (2, 5), True),
    NetCase("repeat of residual", jbp.repeat(_BLOCK, 2), (3,), True),
    NetCase("repeat of residual tanh", jbp.repeat(jbp.residual(jbp.tanh), 3), (5,)),
    NetCase(
        "repeat in repeat",
        jbp.repeat(jbp.serial(jbp.repeat(jbp.serial(jbp.Dense(5), jbp.tanh), 2), jbp.relu), 3),
        (5,),
        True,
    ),
    NetCase("repeat of repeat", jbp.repeat(jbp.repeat(jbp.Dense(5), 2), 3), (5,), True),
    NetCase("repeat of x, y, x saved", jbp.repeat(jbp.branch(jbp.Dense(5), jbp.tanh, jbp.Dense(5)), 3), (5,), True),
    NetCase("repeat of branch sum", jbp.repeat(jbp.branch(jbp.tanh, jbp.Dense(5), jbp.identity), 3), (5,), True),
    NetCase(
        "repeat of branch concat",
        jbp.repeat(jbp.serial(jbp.branch(jbp.Dense(2), jbp.relu, join="concat"), jbp.Dense(5)), 3),
        (5,),
        True,
    ),
    NetCase("repeat with dropout", jbp.repeat(jbp.serial(jbp.Dense(5), jbp.relu, jbp.Dropout(0.3)), 3), (5,), True),
    NetCase("repeat of dropout", jbp.repeat(jbp.Dropout(0.3), 2), (7,)),
    NetCase("repeat of a user's layer", jbp.repeat(jbp.residual(jbp.serial(Gain(0.3), jbp.tanh)), 3), (2, 5), True),
    NetCase("user's layers everywhere", jbp.branch(jbp.serial(Gain(), jbp.relu, Gain(2.0)), Gain(0.7)), (2, 3), True),
    NetCase("a table of positions", jbp.serial(Table(), jbp.Dense(5)), (2, 3)),
    NetCase("tied layers", jbp.tied(jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(3)), {2: 0}), (3,), True),
    NetCase(
        "tied weight, at positions",
        jbp.tied(jbp.serial(jbp.Dense(3), jbp.relu, jbp.Dense(3)), {(2, "weight"): (0, "weight")}),
        (2, 3),
        True,
    ),
    NetCase(
        "tied uses of several kinds",
        jbp.tied(
            jbp.serial(Table(), Gain(0.5), jbp.Dense(2), jbp.Dense(3)),
            {(3, "weight"): (0, "table"), (1, "gain"): (0, "table")},
        ),
        (2, 3),
        True,
    ),
    NetCase(
        "tied stacks",
        jbp.tied(
            jbp.serial(jbp.repeat(jbp.Dense(3), 2), jbp.tanh, jbp.repeat(jbp.serial(jbp.relu, jbp.Dense(3)), 2)),
            {(2, 1, "weight"): (0, "weight")},
        ),
        (3,),
        True,
    ),
    NetCase(
        "repeat of tied",
        jbp.repeat(jbp.tied(jbp.serial(jbp.Dense(5), jbp.tanh, jbp.Dense(5)), {(2, "weight"): (0, "weight")}), 3),
        (5,),
        True,
    ),
    NetCase(
        "all together",
        jbp.serial(
            jbp.Flatten(),
            jbp.Dense(5),
            jbp.leaky_relu,
            jbp.Dropout(0.2),
            jbp.repeat(jbp.residual(jbp.serial(jbp.Dense(7), jbp.relu, jbp.Dropout(0.3), jbp.Dense(5))), 3),
            jbp.branch(jbp.Dense(2), jbp.serial(jbp.Dense(3), jbp.sigmoid), join="concat"),
            jbp.Dense(7),
        ),
        (2, 3),
        True,
    ),
]

NETS = SINGLE + COMBINED

_SQUARE = jbp.serial(jbp.Dense(5), jbp.tanh, jbp.Dense(5))
_TWICE = jbp.tied(_SQUARE, {(2, "weight"): (0, "weight")})

TIES = [
    NetCase("ties in ties", jbp.tied(jbp.serial(_TWICE, jbp.relu, _TWICE), {(2, 0, "weight"): (0, 0, "weight")}), (5,)),
    NetCase("tied ties", jbp.tied(jbp.serial(_TWICE, jbp.relu, _TWICE), {2: 0}), (5,)),
    NetCase("tied stacks of ties", jbp.tied(jbp.serial(*[jbp.repeat(_TWICE, 3)] * 2), {(1, 0): (0, 0)}), (5,)),
    NetCase(
        "a tie around a stack", jbp.tied(jbp.serial(jbp.Dense(5), jbp.repeat(_SQUARE, 3), jbp.Dense(5)), {2: 0}), (5,)
    ),
    NetCase(
        "a layer lent, and its weight once more",
        jbp.tied(jbp.serial(_SQUARE, jbp.Dense(5), Gain()), {(0, 2, "weight"): (1, "weight"), (0, 0): 1}),
        (5,),
    ),
    *(case for case in COMBINED if "tied" in case.name),
]
"""Every way in which ties meet layers, stacks and ties; where walks may go wrong that know nothing of them."""


def _loss_cases() -> list[LossCase]:
    cases = []
    for shape, where in (((5,), ""), ((1,), ", one output"), ((2, 3, 5), " at positions")):
        rng = random(f"losses{where}")
        output, target = rng.normal(size=(2, BATCH, *shape))
        unit = 1 / (1 + np.exp(-target))
        share = unit / unit.sum(-1, keepdims=True)
        unit[0] = np.arange(shape[-1]) % 2  # certain targets, among them t = 0, where a class takes no part
        classes = rng.integers(shape[-1], size=(BATCH, *shape[:-1]))
        probabilities = np.exp(output) / np.exp(output).sum(-1, keepdims=True)
        for loss in (losses.squared_error, losses.l2_loss, losses.mean_squared_error):
            cases.append(LossCase(f"{loss!r}{where}", loss, output, target))
        cases.append(LossCase(f"sigmoid{where}", losses.sigmoid_binary_cross_entropy, output, unit))
        for t, kind in ((classes, "classes"), (share, "distribution"), (unit, "unnormalised")):
            cases.append(LossCase(f"softmax on {kind}{where}", losses.softmax_cross_entropy, output, t))
            cases.append(LossCase(f"cross entropy on {kind}{where}", losses.cross_entropy, probabilities, t))
    return cases


LOSSES = _loss_cases()


def drawn(case: NetCase, dtype: Any = jnp.float64) -> tuple[Any, Any, Any, Any]:
    """Parameters (biases and gains too away from their initial values), inputs, and two random δ."""
    rng = random(case.name)
    leaves, out_shape = announced(case)
    size = {"weight": 0.4, "bias": 0.5, "gain": 1.0, "table": 0.5}

    def draw(path, leaf):
        return jnp.asarray(size[path[-1].key] * rng.normal(size=leaf.shape), dtype)

    params = jax.tree_util.tree_map_with_path(draw, leaves)
    shapes = case.shape, out_shape, out_shape
    x, delta, other = (jnp.asarray(rng.normal(size=(BATCH, *shape)), dtype) for shape in shapes)
    return params, x, delta, other


def announced(case: NetCase) -> tuple[Any, tuple[int, ...]]:
    """What `init` says: the parameters' shapes, and the shape of one example's output."""
    out_shape = []

    def params(key):
        p, out = case.net.init(key, case.shape)
        out_shape.append(out)
        return p

    return jax.eval_shape(params, jax.random.key(0)), out_shape[0]


def every_layer(net: Layer) -> list[Layer]:
    """The net and all layers inside it."""
    return [net, *(inner for child in getattr(net, "children", ()) for inner in every_layer(child))]
