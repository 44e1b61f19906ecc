"""The case table of the package, `jbp.check.cases`, as the tests use it; with layers of a user's own, and losses."""

import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jbp
from jbp import losses
from jbp.arguments import as_number
from jbp.check.cases import BATCH, COMBINATORS, LAYERS, CaseRow, NetCase
from jbp.layer import Layer, Static


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


class LossCase(NamedTuple):
    name: str
    loss: losses.Loss
    output: Any
    target: Any


def random(name: str) -> np.random.Generator:
    """The random numbers of a row: they follow from its name, so nobody picked them."""
    return np.random.default_rng(zlib.crc32(name.encode()))


OWN = CaseRow(
    lambda layer, params, x, key: layer.factor * jnp.einsum("n...,...->n...", x, params["gain"]),
    (NetCase("a user's own layer", Gain(0.5), (3, 5)),),
)
PLAIN = {row.kind: row.plain for row in (*LAYERS, *COMBINATORS, OWN)}
PLAIN[Table] = lambda layer, params, x, key: x + params["table"][None]
NO_GRADIENT = {row.kind: row.no_gradient for row in LAYERS if row.no_gradient}

SINGLE = [case for row in (*LAYERS, OWN) if not row.no_gradient for case in row.cases]

COMBINED = [
    *(case for row in COMBINATORS for case in row.cases),
    NetCase("repeat of a user's layer", jbp.repeat(jbp.residual(jbp.serial(Gain(0.3), jbp.tanh)), 3), (2, 5), True),
    NetCase("user's layers everywhere", jbp.branch(jbp.serial(Gain(), jbp.relu, Gain(2.0)), Gain(0.7)), (2, 3), True),
    NetCase("a table of positions", jbp.serial(Table(), jbp.Dense(5)), (2, 3)),
    NetCase(
        "tied uses of several kinds",
        jbp.tied(
            jbp.serial(Table(), Gain(0.5), jbp.Dense(2), jbp.Dense(3)),
            {(3, "weight"): (0, "table"), (1, "gain"): (0, "table")},
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
        if shape == (1,):
            continue  # one class is refused
        for t, kind in ((classes, "classes"), (share, "distribution"), (unit, "unnormalised")):
            cases.append(LossCase(f"softmax on {kind}{where}", losses.softmax_cross_entropy, output, t))
            cases.append(LossCase(f"cross entropy on {kind}{where}", losses.cross_entropy, probabilities, t))
    return cases


LOSSES = _loss_cases()


def drawn(case: NetCase, dtype: Any = jnp.float64) -> tuple[Any, Any, Any, Any]:
    """Parameters (biases and gains too away from their initial values), inputs, and two random δ."""
    rng = random(case.name)
    leaves, out_shape = announced(case)
    size = {"weight": 0.4, "gain": 1.0}

    def draw(path, leaf):
        values = size.get(path[-1].key, 0.5) * rng.normal(size=leaf.shape)
        return jnp.asarray(np.exp(values) if path[-1].key == "var" else values, dtype)

    params = jax.tree_util.tree_map_with_path(draw, leaves)
    whole = None if case.inputs is None else jnp.asarray(rng.integers(case.inputs, size=(BATCH, *case.shape)))
    shapes = (case.shape,) * (whole is None) + (out_shape, out_shape)
    *x, delta, other = (jnp.asarray(rng.normal(size=(BATCH, *shape)), dtype) for shape in shapes)
    return params, x[0] if whole is None else whole, delta, other


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
