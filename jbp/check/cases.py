"""The case table: every layer and combinator, with its plain form and the nets on which it is put to the test.

A row enrols what it is about everywhere: in each law of the tests, in `jbp check`, among the words of `jbp train --net`
and in the reference. Every axis has a prime size of its own, so that a missing transpose cannot hide; one case has
width 1, some have extra positions, and one repeats as often as the tests have examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jbp import layers
from jbp.check.plain import attention, avg_pool, batch_norm, conv, dense, dropout, max_pool, norm, positions, table
from jbp.combine import branch, repeat, residual, serial, tied
from jbp.layer import Layer
from jbp.layers import (
    BatchNorm,
    Dense,
    Dropout,
    Flatten,
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
from jbp.layers.attention import STORED
from jbp.pairs import Scale

BATCH = 11
"""Examples in the tests; larger than any axis of a case."""


class NetCase(NamedTuple):
    """A net, and what goes into it."""

    name: str
    """Its random numbers follow from it."""
    net: Layer
    shape: tuple[int, ...]
    """Of one example."""
    deep: bool = False
    """Whether several weights lie on one path, so that rounding is allowed to grow."""
    inputs: int | None = None
    """None: normal numbers. Else whole numbers below this one: the size of a vocabulary."""
    at_zero: tuple[float, float, float] | None = None
    """Of an activation with a kink: θ′ just below 0, at 0 and just above, as documented."""


class CaseRow(NamedTuple):
    """A layer or combinator."""

    plain: Callable[..., Any]
    """Its forward pass over a batch in plain JAX, (layer, params, x, key) -> y; of a combinator (…, plain) -> y, which
    takes the layers inside through `plain`. Nothing of jbp's forward may be used: it is what jbp is compared with."""
    cases: tuple[NetCase, ...]
    """What the tests hold every law on."""
    checked: tuple[NetCase, ...] | None = None
    """What `jbp check` runs, where that is not `cases`."""
    no_gradient: str = ""
    """Why no check of a derivative may confirm it, and what holds it instead: neither of both is then run."""

    @property
    def kind(self) -> type[Layer]:
        """The class that the row is about."""
        return type((self.cases or self.in_check)[0].net)

    @property
    def in_check(self) -> tuple[NetCase, ...]:
        """What `jbp check` runs; the cases under the repr of their nets, with the shape where that is not enough."""
        if self.checked is not None:
            return self.checked
        names = [repr(case.net) for case in self.cases]
        names = [
            n if names.count(n) == 1 else f"{n} on {list(c.shape)}" for n, c in zip(names, self.cases, strict=True)
        ]
        return tuple(case._replace(name=name) for case, name in zip(self.cases, names, strict=True))


def _named(*nets: tuple[Layer, tuple[int, ...]]) -> tuple[NetCase, ...]:
    """Cases under their reprs."""
    return tuple(NetCase(repr(net), net, shape) for net, shape in nets)


# -- layers -----------------------------------------------------------------------------------------------------------


def _activation(
    value: Callable[..., Any], *subjects: Layer, slopes: Iterable[Any] = (), checked: tuple[NetCase, ...] | None = None
) -> CaseRow:
    """The row of an activation θ(layer, s): at positions and under its name, each with its slopes at 0 if it kinks."""
    at_zero = tuple(slopes) or (None,) * len(subjects)
    cases = (NetCase(repr(a), a, (3, 5), at_zero=s) for a, s in zip(subjects, at_zero, strict=True))
    return CaseRow(lambda layer, params, s, key: value(layer, s), tuple(cases), checked)


@dataclass(frozen=True, repr=False)
class Gain(Layer):
    """y[t,o] = g[o] x[t,o], as a user would write it: no public layer has a parameter with the pair `Scale`."""

    uses_key = False

    def init(self, key: Any, shape: Any) -> Any:
        """Gains of 1, which the check moves apart."""
        return {"gain": jnp.ones(shape[-1:])}, shape

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        """g∘x; saves x."""
        return jnp.broadcast_to(params["gain"], x.shape) * x, x

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        """g∘δ, and the pair (x, δ)."""
        gain = params["gain"]
        pair = Scale.of(saved, delta, gain.shape)
        return jnp.broadcast_to(gain, delta.shape) * delta, {"gain": pair}


LAYERS: tuple[CaseRow, ...] = (
    CaseRow(
        dense,
        (
            NetCase("dense", layers.Dense(5), (3,)),
            NetCase("dense without bias", layers.Dense(5, use_bias=False), (3,)),
            NetCase("dense to width 1", layers.Dense(1), (7,)),
            NetCase("dense from width 1", layers.Dense(3), (1,)),
            NetCase("dense, square", layers.Dense(5), (5,)),
            NetCase("dense at positions", layers.Dense(5), (2, 3)),
            NetCase("dense at positions, two axes, no bias", layers.Dense(2, use_bias=False), (3, 5, 7)),
        ),
        checked=_named((layers.Dense(5), (2, 3)), (layers.Dense(5, use_bias=False), (3,))),
    ),
    _activation(lambda a, s: s, layers.identity, checked=_named((layers.identity, (3,)))),
    _activation(lambda a, s: jax.nn.relu(s), layers.relu, slopes=[(0, 0, 1)]),
    _activation(
        lambda a, s: jax.nn.leaky_relu(s, a.negative_slope),
        layers.leaky_relu,
        layers.LeakyRelu(0.2),
        slopes=[(0.01, 1, 1), (0.2, 1, 1)],
        checked=_named((layers.leaky_relu, (3, 5)), (layers.LeakyRelu(0.2), (7,))),
    ),
    _activation(lambda a, s: jnp.tanh(s), layers.tanh),
    _activation(lambda a, s: jax.nn.sigmoid(s), layers.sigmoid),
    _activation(
        lambda a, s: jax.nn.softmax(s, axis=-1),
        layers.softmax,
        checked=(NetCase("softmax", layers.softmax, (3, 5)), NetCase("softmax on [7]", layers.softmax, (7,))),
    ),
    _activation(lambda a, s: jax.nn.softplus(s), layers.softplus),
    _activation(
        lambda a, s: jax.nn.elu(s, a.alpha),
        layers.elu,
        layers.Elu(0.7),
        slopes=[(1, 1, 1), (0.7, 0.7, 1)],
        checked=_named((layers.elu, (3, 5)), (layers.Elu(0.7), (7,))),
    ),
    _activation(lambda a, s: jax.nn.silu(s), layers.silu),
    _activation(
        lambda a, s: jax.nn.gelu(s, approximate=a.approximate),
        layers.gelu,
        layers.Gelu(approximate=False),
        checked=_named((layers.gelu, (3, 5)), (layers.Gelu(approximate=False), (7,))),
    ),
    CaseRow(
        lambda layer, params, s, key: jnp.where(s > 0, 1, 0).astype(s.dtype),
        _named((layers.Step(), (3, 5)), (layers.Step("triangle"), (3, 5))),
        no_gradient="a slope of our choosing stands where the derivative is 0; tests/test_rules.py holds its formulas",
    ),
    CaseRow(
        table,
        (
            NetCase("embedding", layers.Embedding(7, 3), (5,), inputs=7),
            NetCase("embedding of one number", layers.Embedding(5, 3), (), inputs=5),
            NetCase("embedding at positions of positions", layers.Embedding(11, 2), (3, 5), inputs=11),
        ),
        checked=(NetCase("Embedding(7, 3)", layers.Embedding(7, 3), (5,), inputs=7),),
    ),
    CaseRow(
        positions,
        (
            NetCase("table of positions", layers.Positions(5), (5, 3)),
            NetCase("positions, a shorter sequence", layers.Positions(7), (5, 3)),
        ),
        checked=_named((layers.Positions(7), (5, 3))),
    ),
    CaseRow(
        lambda layer, params, x, key: jnp.einsum("...d,vd->...v", x, params["weight"]),
        (
            NetCase("unembedding", layers.Unembedding(7), (5, 3)),
            NetCase("unembedding, square, used once", layers.Unembedding(3), (3,)),
        ),
        checked=_named((layers.Unembedding(7), (5, 3))),
    ),
    CaseRow(
        attention,
        (
            NetCase("attention", layers.Attention(2), (7, 18)),
            NetCase("attention, full, groups, rotary", layers.Attention(4, 2, causal=False, rotary=True), (5, 16)),
            NetCase("attention by blocks", layers.Attention(1, causal=False), (STORED + 3, 3)),
        ),
        checked=_named((layers.Attention(2), (7, 18)), (layers.Attention(4, 2, rotary=True), (5, 16))),
    ),
    CaseRow(
        dropout,
        (
            NetCase("dropout 0.3", layers.Dropout(0.3), (3, 5)),
            NetCase("dropout 0.9", layers.Dropout(0.9), (7,)),
            NetCase("dropout 0", layers.Dropout(0.0), (7,)),
        ),
        checked=_named((layers.Dropout(0.3), (3, 5))),
    ),
    CaseRow(
        conv,
        (
            NetCase("conv, one dimension", layers.Conv(3, 3), (7, 2)),
            NetCase("conv, a signal of one channel, no bias", layers.Conv(2, 5, use_bias=False), (11, 1)),
            NetCase("conv, stride 2, valid", layers.Conv(3, 3, stride=2, padding="valid"), (8, 2)),
            NetCase("conv, dilation 2", layers.Conv(3, 3, dilation=2, padding=((1, 3),)), (7, 2)),
            NetCase("conv, two dimensions", layers.Conv(3, (2, 3)), (5, 7, 2)),
            NetCase(
                "conv, two dimensions, everything",
                layers.Conv(6, (3, 2), stride=(2, 1), padding=((1, 0), (2, 1)), dilation=(1, 2), groups=2),
                (7, 5, 4),
            ),
            NetCase("conv, depthwise", layers.Conv(6, (3, 2), stride=2, groups=3), (5, 7, 3)),
            NetCase("conv, three dimensions", layers.Conv(2, (2, 1, 3), stride=(1, 2, 1)), (3, 5, 4, 2)),
            NetCase("conv of images of their own", layers.Conv(3, (2,), padding="valid"), (2, 5, 3)),
            NetCase("conv, one number for both dimensions", layers.Conv(2, 3, stride=2), (5, 4, 3)),
        ),
        checked=_named(
            (layers.Conv(3, (3,), padding=((3, 1),), dilation=2), (2, 7, 2)),
            (layers.Conv(12, (3, 2), stride=2, groups=3), (5, 7, 6)),
        ),
    ),
    CaseRow(
        max_pool,
        (
            NetCase("max pool", layers.MaxPool((2, 3)), (5, 7, 2)),
            NetCase("max pool, overlapping and padded", layers.MaxPool(3, stride=2, padding=((1, 2),)), (7, 2)),
            NetCase("max pool, one number for both dimensions", layers.MaxPool(2), (5, 7, 2)),
            NetCase("max pool, same, of images of their own", layers.MaxPool((2, 2), 1, "same"), (2, 3, 5, 2)),
        ),
        checked=_named((layers.MaxPool((2, 3)), (5, 7, 2)), (layers.MaxPool((3,), 2, "same"), (2, 7, 2))),
    ),
    CaseRow(
        avg_pool,
        (
            NetCase("mean pool", layers.AvgPool((2, 3)), (5, 7, 2)),
            NetCase("mean pool, overlapping and padded", layers.AvgPool(3, stride=2, padding=((1, 2),)), (7, 2)),
            NetCase("mean pool, padding counted", layers.AvgPool((2, 2), 1, "same", True), (2, 3, 5, 2)),
        ),
        checked=_named((layers.AvgPool((2, 3)), (5, 7, 2)), (layers.AvgPool((3,), 2, "same"), (2, 7, 2))),
    ),
    CaseRow(
        lambda layer, params, x, key: x.mean(tuple(range(1, x.ndim - 1))),
        (
            NetCase("global pool", layers.GlobalPool(), (3, 5, 2)),
            NetCase("global pool of a signal", layers.GlobalPool(), (7, 3)),
        ),
        checked=_named((layers.GlobalPool(), (3, 5, 2))),
    ),
    CaseRow(
        norm,
        (
            NetCase("layer norm", layers.LayerNorm(), (3, 5)),
            NetCase("layer norm without scale and bias", layers.LayerNorm(0.3, use_scale=False, use_bias=False), (7,)),
        ),
        checked=_named((layers.LayerNorm(), (3, 5))),
    ),
    CaseRow(
        norm,
        (
            NetCase("rms norm", layers.RMSNorm(0.1), (3, 5)),
            NetCase("rms norm with bias", layers.RMSNorm(use_bias=True), (7,)),
        ),
        checked=_named((layers.RMSNorm(), (3, 5)), (layers.RMSNorm(use_scale=False), (7,))),
    ),
    CaseRow(
        norm,
        (
            NetCase("group norm", layers.GroupNorm(2), (3, 5, 4)),
            NetCase("group norm of one group, no scale", layers.GroupNorm(1, 0.1, use_scale=False), (5, 3)),
        ),
        checked=_named((layers.GroupNorm(2), (3, 5, 4))),
    ),
    CaseRow(
        batch_norm,
        (
            NetCase("batch norm", layers.BatchNorm(), (3, 5)),
            NetCase("batch norm of vectors", layers.BatchNorm(0.7, 0.3), (7,)),
        ),
        checked=_named((layers.BatchNorm(), (3, 5)), (layers.BatchNorm(0.7, 0.3), (7,))),
    ),
    CaseRow(
        lambda layer, params, x, key: x.reshape(len(x), *layer.shape),
        (
            NetCase("reshape", layers.Reshape((3, 10)), (2, 3, 5)),
            NetCase("reshape, to as many axes", layers.Reshape((5, 3)), (3, 5)),
        ),
        checked=_named((layers.Reshape((6,)), (2, 3))),
    ),
    CaseRow(
        lambda layer, params, x, key: jnp.expand_dims(x, -1),
        (NetCase("channel", layers.Channel(), (3, 5)),),
        checked=_named((layers.Channel(), (2, 3))),
    ),
    CaseRow(
        lambda layer, params, x, key: x.reshape(len(x), -1),
        (NetCase("flatten", layers.Flatten(), (2, 3, 5)),),
        checked=_named((layers.Flatten(), (2, 3))),
    ),
    CaseRow(
        lambda layer, params, x, key: x * jnp.broadcast_to(params["gain"], x.shape),
        (),
        checked=(NetCase("a gain of one's own (pair Scale)", Gain(), (2, 3)),),
    ),
)


# -- combinators ------------------------------------------------------------------------------------------------------
# Keys go down as documented: split among the layers inside, then, in a leaf, among the examples.


def _keys(key: Any, n: int) -> list[Any]:
    return [None] * n if key is None else list(jax.random.split(key, n))


def _serial(net: Any, params: Any, x: Any, key: Any, plain: Any) -> Any:
    for layer, p, k in zip(net.layers, params, _keys(key, len(net.layers)), strict=True):
        x = plain(layer, p, x, k)
    return x


def _branch(net: Any, params: Any, x: Any, key: Any, plain: Any) -> Any:
    keys = _keys(key, len(net.layers))
    ys = [plain(layer, p, x, k) for layer, p, k in zip(net.layers, params, keys, strict=True)]
    return sum(ys[1:], ys[0]) if net.join == "sum" else jnp.concatenate(ys, axis=-1)


def _repeat(net: Any, params: Any, x: Any, key: Any, plain: Any) -> Any:
    keys = None if key is None else jax.random.split(key, net.n)
    return jax.lax.scan(lambda x, p_k: (plain(net.layer, p_k[0], x, p_k[1]), None), x, (params, keys), net.n)[0]


def _tied(net: Any, params: Any, x: Any, key: Any, plain: Any) -> Any:
    for borrower, owner in net.ties:
        params = put_at(params, borrower, reduce(lambda tree, step: tree[step], owner, params))
    return plain(net.layer, params, x, key)


def put_at(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A tree of dicts and tuples with another value at the path."""
    if not path:
        return value
    inside = put_at(tree[path[0]], path[1:], value)
    return tree | {path[0]: inside} if isinstance(tree, dict) else (*tree[: path[0]], inside, *tree[path[0] + 1 :])


_BLOCK = serial(Dense(5), tanh, Dense(3))
_RESIDUAL = residual(serial(Dense(7), tanh, Dense(3)))
SQUARE = serial(Dense(3), tanh, Dense(3))
TWICE = tied(SQUARE, {2: 0})
COMBINATORS: tuple[CaseRow, ...] = (
    CaseRow(
        _serial,
        (
            NetCase("serial of one", serial(Dense(5)), (3,)),
            NetCase("classifier", serial(Dense(7), relu, Dense(5), softmax), (3,), True),
            NetCase("image", serial(Flatten(), Dense(5), sigmoid, Dense(1)), (2, 3), True),
            NetCase("positions", serial(Dense(5), gelu, Dense(7)), (2, 3), True),
            NetCase("dropout between", serial(Dropout(0.2), Dense(7), relu, Dropout(0.5), Dense(2)), (5,), True),
            NetCase("two dropouts in a row", serial(Dropout(0.3), Dropout(0.4)), (3, 5)),
            NetCase("batch norms", serial(Dense(5), BatchNorm(), relu, Dense(3), BatchNorm(0.5)), (2, 3), True),
            NetCase("serial in serial", serial(serial(Dense(5), elu), serial(Dense(2))), (3,), True),
            NetCase(
                "all together",
                serial(
                    Flatten(),
                    Dense(5),
                    leaky_relu,
                    Dropout(0.2),
                    repeat(residual(serial(Dense(7), relu, Dropout(0.3), Dense(5))), 3),
                    branch(Dense(2), serial(Dense(3), sigmoid), join="concat"),
                    Dense(7),
                ),
                (2, 3),
                True,
            ),
        ),
        checked=_named((serial(Dense(5), sigmoid, Dense(2)), (3,))),
    ),
    CaseRow(
        lambda net, params, x, key, plain: x + plain(net.layer, params, x, key),
        (
            NetCase("residual", _RESIDUAL, (3,), True),
            NetCase("residual of identity", residual(identity), (3,)),
            NetCase("residual of an activation", residual(silu), (3, 5)),
            NetCase("residual of dropout", residual(serial(Dropout(0.4), Dense(3))), (3,)),
            NetCase("residual in residual", residual(serial(_RESIDUAL, residual(tanh))), (3,), True),
        ),
        checked=_named((residual(_BLOCK), (3,))),
    ),
    CaseRow(
        _branch,
        (
            NetCase("branch sum", branch(Dense(5), serial(Dense(5), tanh)), (3,), True),
            NetCase("branch of one", branch(Dense(5)), (3,)),
            NetCase("branch with equal arms", branch(identity, identity, relu), (3,)),
            NetCase("branch concat", branch(Dense(5), identity, Dense(1), join="concat"), (3,)),
            NetCase("branch concat at positions", branch(Dense(5), Dense(7), join="concat"), (2, 3)),
            NetCase("branch with dropouts", branch(Dropout(0.5), Dropout(0.5), identity), (7,)),
            NetCase(
                "branch in branch",
                branch(branch(Dense(2), tanh, join="concat"), serial(Dense(5), softplus)),
                (3,),
                True,
            ),
        ),
        checked=_named((branch(Dense(5), serial(Dense(5), tanh)), (3,)), (branch(Dense(5), tanh, join="concat"), (3,))),
    ),
    CaseRow(
        _repeat,
        (
            NetCase("repeat of dense", repeat(Dense(3), 2), (3,), True),
            NetCase("repeat once", repeat(Dense(3), 1), (3,)),
            NetCase("repeat as often as examples", repeat(serial(Dense(3), tanh), BATCH), (3,), True),
            *(NetCase(f"repeat of {a!r}", repeat(a, 3), (5,)) for a in (identity, relu, tanh, softmax, softplus, gelu)),
            NetCase("repeat of dense, relu", repeat(serial(Dense(5), relu), 3), (5,), True),
            NetCase("repeat of dense, batch norm", repeat(serial(Dense(5), BatchNorm(), tanh), 3), (5,), True),
            NetCase("repeat of relu, dense", repeat(serial(relu, Dense(5)), 3), (5,), True),
            NetCase("repeat of tanh, tanh", repeat(serial(tanh, tanh), 3), (5,)),
            NetCase("repeat of dense, silu", repeat(serial(Dense(5), silu), 3), (2, 5), True),
            NetCase("repeat of residual", repeat(_RESIDUAL, 2), (3,), True),
            NetCase("repeat of residual tanh", repeat(residual(tanh), 3), (5,)),
            NetCase("repeat in repeat", repeat(serial(repeat(serial(Dense(5), tanh), 2), relu), 3), (5,), True),
            NetCase("repeat of repeat", repeat(repeat(Dense(5), 2), 3), (5,), True),
            NetCase("repeat of x, y, x saved", repeat(branch(Dense(5), tanh, Dense(5)), 3), (5,), True),
            NetCase("repeat of branch sum", repeat(branch(tanh, Dense(5), identity), 3), (5,), True),
            NetCase(
                "repeat of branch concat",
                repeat(serial(branch(Dense(2), relu, join="concat"), Dense(5)), 3),
                (5,),
                True,
            ),
            NetCase("repeat with dropout", repeat(serial(Dense(5), relu, Dropout(0.3)), 3), (5,), True),
            NetCase("repeat of dropout", repeat(Dropout(0.3), 2), (7,)),
            NetCase(
                "repeat of tied",
                repeat(tied(serial(Dense(5), tanh, Dense(5)), {(2, "weight"): (0, "weight")}), 3),
                (5,),
                True,
            ),
        ),
        # What sigmoid saves, its output, is what the next repetition's Dense saves, its input: kept once.
        checked=_named((repeat(_BLOCK, 2), (3,)), (repeat(serial(residual(_BLOCK), sigmoid), 3), (3,))),
    ),
    CaseRow(
        _tied,
        (
            NetCase("tied layers", TWICE, (3,), True),
            NetCase(
                "tied weight, at positions",
                tied(serial(Dense(3), relu, Dense(3)), {(2, "weight"): (0, "weight")}),
                (2, 3),
                True,
            ),
            NetCase(
                "tied stacks",
                tied(
                    serial(repeat(Dense(3), 2), tanh, repeat(serial(relu, Dense(3)), 2)),
                    {(2, 1, "weight"): (0, "weight")},
                ),
                (3,),
                True,
            ),
        ),
        # The uses of the second are of two kinds, so that their pairs do not become one.
        checked=_named((TWICE, (2, 3)), (tied(serial(Gain(), tanh, Dense(3)), {(2, "bias"): (0, "gain")}), (3,))),
    ),
)
