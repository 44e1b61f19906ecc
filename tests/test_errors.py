"""Bad input to the API: a ValueError that says what was expected, what came, and in which layer."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jbp
from jbp import losses
from jbp.layer import Layer

KEY = jax.random.key(0)
NET = jbp.serial(
    jbp.Dense(5), jbp.relu, jbp.serial(jbp.Dense(3), jbp.residual(jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(3))))
)
X, Y = jnp.ones((4, 2)), jnp.ones((4, 3))
NAN = float("nan")
loose: Any = jbp
"""jbp, where a type checker would notice the mistake."""


def params(net: Any = NET, shape: Any = (2,)) -> Any:
    return net.init(KEY, shape)[0]


def run(p=None, x: Any = X, y: Any = Y, net: Any = NET, loss=losses.l2_loss, trainable=None, **more):
    return jbp.value_and_grad(net, loss, trainable)(params(net) if p is None else p, x, y, **more)


def backward(delta, net: Any = NET):
    p = params(net)
    return jbp.backward(net, p, jbp.forward(net, p, X)[1], delta)


def one(layer: Any, p: Any) -> Any:
    return jbp.forward(layer, p, X)


def back(layer: Any, delta: Any) -> Any:
    return backward(delta, layer)


def pairs():
    return backward(jnp.ones((4, 3)))[1]


@dataclass(frozen=True)
class Unhashable(Layer):
    sizes: list = field(default_factory=list)


NESTED = (*params()[:2], (params()[2][0], (params()[2][1][0], (), {"weight": jnp.ones((6, 3)), "bias": jnp.ones(3)})))
DEEP = jbp.serial(jbp.repeat(jbp.serial(jbp.Dense(2)), 3))
DROPS = jbp.serial(jbp.Dense(3), jbp.Dropout(0.5))
BY_HAND: dict[str, Any] = {
    "value_and_pairs": loose.value_and_pairs,
    "clipped_sum": lambda *arguments: loose.private.clipped_sum(*arguments, 1.0),
}

WRONG: dict[str, tuple[Any, str]] = {
    # shapes that do not fit a layer, with its path
    "width of x": (lambda: jbp.forward(NET, params(), jnp.ones((4, 3))), r"layer \[0\]: Dense\(5\).*\(2, 5\).*\(3,\)"),
    "width of x, compiled": (lambda: run(x=jnp.ones((4, 3))), r"layer \[0\]: Dense\(5\).*\(2, 5\).*\(3,\)"),
    "x without batch": (lambda: jbp.apply(NET, params(), X[0]), r"layer \[0\]: Dense\(5\).*shape \(\)"),
    "nested weight": (lambda: jbp.forward(NET, NESTED, X), r"layer \[2\]\[1\]\[2\]: Dense\(3\).*\(6, 3\).*\(7,\)"),
    "weight below repeat": (
        lambda: jbp.forward(DEEP, params(DEEP), jnp.ones((4, 7))),
        r"layer \[0\]\[0\]: Dense\(2\)",
    ),
    "integer x": (lambda: jbp.apply(NET, params(), X.astype(int)), "floating-point input.*int"),
    "integers into an activation": (lambda: jbp.apply(jbp.relu, (), X.astype(int)), "relu needs floating-point"),
    "scalar into softmax": (lambda: jbp.apply(jbp.softmax, (), jnp.ones(4)), "softmax needs.*at least one axis"),
    "init of a scalar": (lambda: jbp.serial(jbp.Dense(3)).init(KEY, ()), r"layer \[0\]: Dense\(3.*at least one axis"),
    "init with 0": (lambda: NET.init(KEY, (0,)), r"shape of one example must be.*\(0,\)"),
    "init with fractions": (lambda: params(shape=(2.5,)), r"positive whole numbers.*2\.5"),
    "init with text": (lambda: params(shape="2"), "positive whole numbers.*'2'"),
    # parameters of another net
    "a list of parameters": (
        lambda: jbp.forward(NET, list(params()), X),
        "serial of 3 layers expects a tuple of 3.*list",
    ),
    "too few parameters": (lambda: jbp.forward(NET, params()[:2], X), "serial of 3 layers.*tuple of 2"),
    "too few, nested": (lambda: jbp.forward(NET, (*params()[:2], ()), X), r"layer \[2\]: serial of 2.*tuple of 0"),
    "branch parameters": (lambda: jbp.forward(jbp.branch(jbp.tanh), (), X), "branch of 1 layers.*tuple of 0"),
    "a stack too short": (
        lambda: jbp.forward(jbp.repeat(jbp.Dense(2), 3), params(jbp.repeat(jbp.Dense(2), 2)), X),
        r"repeat of 3 layers.*first axis of 3.*\(2, 2, 2\)",
    ),
    # δ
    "width of delta": (lambda: backward(jnp.ones((4, 2))), r"layer \[2\]\[1\]\[2\]: Dense\(3\).*δ of shape \(2,\)"),
    "delta for an activation": (lambda: backward(jnp.ones((4, 1)), jbp.tanh), r"tanh got a δ of shape \(1,\).*\(2,\)"),
    "delta of fewer examples": (lambda: backward(jnp.ones((3, 3))), "4.*3"),
    # keys
    "dropout without key": (lambda: run(net=DROPS), r"serial\(Dense\(3\), Dropout\(0\.5\)\).*key=\.\.\."),
    # hyper-parameters
    **{
        f"drop_rate {v!r}": (lambda v=v: loose.Dropout(v), r"drop_rate of Dropout.*\[0, 1\)")
        for v in (-0.1, 1.0, 1.5, NAN, "0.5", True)
    },
    **{
        f"width {v!r}": (lambda v=v: loose.Dense(v), f"width of Dense must be a whole number of at least 1.*{v!r}")
        for v in (0, -1, 1.5, 3.0, True, "3", None)
    },
    **{
        f"repeat {v!r}": (lambda v=v: loose.repeat(jbp.tanh, v), f"n of repeat must be a whole number.*{v!r}")
        for v in (0, -2, 1.5, True, "2")
    },
    "use_bias": (lambda: loose.Dense(3, use_bias=1), "use_bias of Dense must be True or False"),
    "weight_init": (lambda: loose.Dense(3, weight_init="he"), "weight_init.*initializers.*'he'"),
    "bias_init": (lambda: loose.Dense(3, bias_init=None), "bias_init.*initializers.*None"),
    "slope 0": (lambda: loose.layers.LeakyRelu(0), "negative_slope.*above 0.*jbp.relu"),
    "slope nan": (lambda: loose.layers.LeakyRelu(NAN), "negative_slope.*finite.*nan"),
    "alpha": (lambda: loose.layers.Elu(-1), "alpha of Elu.*-1"),
    "approximate": (lambda: loose.layers.Gelu("tanh"), "approximate of Gelu.*'tanh'"),
    "stddev": (lambda: loose.initializers.Normal(-1), "stddev of Normal.*-1"),
    "fan": (lambda: loose.initializers.VarianceScaling(1.0, "fan_out", "normal"), "fan_in.*fan_avg"),
    # nets
    "a function": (
        lambda: loose.serial(jbp.Dense(3), jnp.tanh),
        "what serial takes must be a layer.*the function tanh",
    ),
    "a class": (lambda: loose.serial(jbp.Dense(3), jbp.Dropout), r"class Dropout: call it.*Dropout\(\.\.\.\)"),
    "a class in residual": (
        lambda: loose.residual(jbp.Dense),
        "residual takes must be a layer.*the class Dense: call it",
    ),
    "a list of layers": (
        lambda: loose.serial([jbp.Dense(3)]),
        r"what serial takes must be a layer.*\[Dense\(3\)\]: several.*serial\(\*layers\)",
    ),
    "no layers": (jbp.serial, "serial needs at least one layer"),
    "no branches": (jbp.branch, "branch needs at least one layer"),
    "unhashable": (lambda: jbp.serial(Unhashable([1])), "cannot be hashed: make it a frozen dataclass"),
    "join": (lambda: loose.branch(jbp.tanh, join="mean"), "'sum' or 'concat'.*'mean'"),
    "repeat that changes shape": (
        lambda: jbp.serial(jbp.Dense(5), jbp.repeat(jbp.Dense(3), 2)).init(KEY, (2,)),
        r"layer \[1\]: repeat.*\(3,\) of \(5,\)",
    ),
    "residual that changes shape": (
        lambda: jbp.serial(jbp.tanh, jbp.serial(jbp.residual(jbp.Dense(3)))).init(KEY, (5,)),
        r"layer \[1\]\[0\]: residual.*\(3,\) of \(5,\)",
    ),
    "residual that would broadcast": (
        lambda: jbp.forward(jbp.residual(jbp.Dense(1)), params(jbp.Dense(1)), X),
        r"residual: Dense\(1\) made \(4, 1\) of \(4, 2\)",
    ),
    "repeat that changes shape, forward": (
        lambda: jbp.forward(jbp.repeat(jbp.Dense(3), 2), {"weight": jnp.ones((2, 2, 3)), "bias": jnp.ones((2, 3))}, X),
        "repeat: .*must keep shape and dtype",
    ),
    "branches of two widths": (
        lambda: jbp.branch(jbp.Dense(3), jbp.Dense(5)).init(KEY, (2,)),
        r"branch with join='sum'.*\[\(3,\), \(5,\)\]",
    ),
    "branches that cannot be joined": (
        lambda: jbp.branch(jbp.Dense(3), jbp.Flatten(), join="concat").init(KEY, (2, 5)),
        r"last axis only.*\(2, 3\).*\(10,\)",
    ),
    # data and weights
    "lengths": (lambda: run(y=Y[:3]), r"same number of examples.*\(4, 2\).*\(3, 3\)"),
    "no examples": (lambda: run(x=X[:0], y=Y[:0]), r"at least one.*\(0, 2\)"),
    "scalar x": (lambda: run(x=1.0), "x must be an array .* but is a float"),
    **{
        f"{what}, {name}": (lambda call=call, x=x, y=y, loss=loss: call(NET, loss, params(), x, y), words)
        for name, call in BY_HAND.items()
        for what, x, y, loss, words in (
            ("lengths", X, Y[:3], losses.l2_loss, r"same number of examples.*\(4, 2\).*\(3, 3\)"),
            ("no examples", X[:0], Y[:0], losses.l2_loss, r"at least one.*\(0, 2\)"),
            ("a loss by name", X, Y, "l2_loss", "loss must come from jbp.losses.*'l2_loss'"),
            ("x as a list", [[1.0, 2.0]], Y[:1], losses.l2_loss, "x must be an array"),
        )
    },
    "too few weights": (lambda: run(weights=jnp.ones(3)), r"one number for each of the 4 examples.*\(3,\)"),
    "weights as a column": (lambda: run(weights=jnp.ones((4, 1))), r"each of the 4 examples.*\(4, 1\)"),
    "one weight": (lambda: run(weights=1.0), r"each of the 4 examples, but have type float"),
    "weights of contract": (lambda: jbp.contract(pairs(), jnp.ones(3)), r"each of the 4 examples.*\(3,\)"),
    # trainable
    **{
        f"trainable {v!r}": (lambda v=v: run(trainable=v), "trainable must be a tree of bools")
        for v in (1, "all", [1], (True, None, 0.0))
    },
    "trainable of another net": (
        lambda: run(trainable=(True,)),
        r"trainable must start like params, .*but is \(True,\): one bool may stand",
    ),
    # parameters that a layer does not have, or not so
    "no bias": (
        lambda: one(jbp.Dense(3), {"weight": jnp.ones((2, 3))}),
        r"parameters \['bias', 'weight'\].*\['weight'\]",
    ),
    "a bias too many": (
        lambda: one(jbp.Dense(3, use_bias=False), {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3)}),
        r"takes parameters \['weight'\]",
    ),
    "a bias to broadcast": (
        lambda: one(jbp.Dense(3), {"weight": jnp.ones((2, 3)), "bias": jnp.ones(1)}),
        r"takes a weight \[i, 3\] and a bias \[3\], got .*\(1,\)",
    ),
    "another width": (
        lambda: one(jbp.Dense(3), {"weight": jnp.ones((2, 5)), "bias": jnp.ones(5)}),
        r"takes a weight \[i, 3\]",
    ),
    "no parameters at all": (lambda: one(jbp.Dense(3), None), "got NoneType"),
    "parameters for relu": (lambda: one(jbp.relu, {"weight": X}), "relu has no parameters and takes"),
    "parameters for flatten": (lambda: one(jbp.Flatten(), (X,)), "has no parameters and takes"),
    "parameters for dropout": (lambda: one(jbp.Dropout(0.5), {}), "has no parameters and takes"),
    # a δ that is not the output's
    "δ through identity": (
        lambda: back(jbp.identity, jnp.ones((4, 3))),
        r"δ of shape \(3,\) for an output of shape \(2,\)",
    ),
    "δ through dropout in evaluation": (lambda: back(jbp.Dropout(0.5), jnp.ones((4, 3))), r"δ of shape \(3,\)"),
    "δ through flatten": (
        lambda: back(jbp.Flatten(), jnp.ones((4, 3))),
        r"δ of shape \(3,\) for an output of shape \(2,\)",
    ),
    "δ through concat": (
        lambda: back(jbp.branch(jbp.relu, jbp.tanh, join="concat"), jnp.ones((4, 3))),
        r"outputs of widths \(2, 2\).* δ of shape",
    ),
    # things of another kind
    "a net that is none": (lambda: jbp.value_and_grad(loose.Dense, losses.l2_loss), "the net must be a layer"),
    "a loss that is none": (lambda: jbp.value_and_grad(NET, loose.losses.L2Loss), "loss must come from jbp.losses"),
    "a loss by name": (lambda: loose.value_and_grad(NET, "l2_loss"), "loss must come from jbp.losses"),
    "an unhashable net": (lambda: loose.apply(Unhashable(), (), X), "Unhashable cannot be hashed"),
    "x as a list": (lambda: loose.apply(NET, params(), [[1.0, 2.0]]), "x must be an array"),
    "an int as key": (lambda: loose.forward(DROPS, params(DROPS), X, 3), r"key must come from jax.random.key"),
    "contract of arrays": (lambda: jbp.contract((X, X)), "takes the pairs that jbp.backward returns"),
    "weights as a list": (lambda: loose.contract(pairs(), [1.0] * 4), "weights must be an array .* type list"),
    "drop rate None": (lambda: loose.Dropout(None), "drop_rate of Dropout must be a finite number"),
    "leaf init with 0": (lambda: jbp.Dense(3).init(KEY, (0,)), "shape of one example must be"),
    "leaf init with text": (lambda: jbp.tanh.init(KEY, loose.tanh), "shape of one example must be"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_a_value_error_that_says_what_and_where(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


LIKE_OUTPUT = [losses.squared_error, losses.l2_loss, losses.mean_squared_error, losses.sigmoid_binary_cross_entropy]
CLASSES = [losses.softmax_cross_entropy, losses.cross_entropy]
WRONG_TARGETS = [
    (loss, y, r"needs a target of the output's shape \(3,\)")
    for loss in LIKE_OUTPUT
    for y in (
        jnp.ones((4, 2)),
        jnp.ones(4),
        jnp.ones(4, int),
        jnp.ones((4, 1)),
        jnp.ones((4, 3, 1)),
    )
] + [
    (loss, y, r"integer classes of shape \(\) or a distribution of shape \(3,\)")
    for loss in CLASSES
    for y in (
        jnp.ones((4, 2)),
        jnp.ones(4),
        jnp.ones(4, bool),
        jnp.ones((4, 1), int),
        jnp.ones((4, 3, 1)),
    )
]


@pytest.mark.parametrize(
    ("loss", "y", "message"), WRONG_TARGETS, ids=lambda v: f"{v.dtype}{v.shape}" if hasattr(v, "shape") else ""
)
def test_targets_that_do_not_fit_are_refused(loss, y, message):
    with pytest.raises(ValueError, match=f"{loss!r}.*{message}"):
        run(y=y, loss=loss)


def test_other_errors_name_the_layer_in_a_note():
    """A user's layer may raise what it likes: the type stays, and a note says which layer it was."""

    @dataclass(frozen=True, repr=False)
    class Broken(Layer):
        def forward(self, params, x, key):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        jbp.forward(jbp.serial(jbp.tanh, Broken()), ((), ()), X)
    assert any("Broken()" in note and "[1]" in note for note in caught.value.__notes__)


def test_a_layer_that_lacks_a_method_says_so():
    with pytest.raises(NotImplementedError, match="Unhashable has no init"):
        Unhashable().init(KEY, (2,))
    with pytest.raises(NotImplementedError, match="no sqrt_hessian"):
        losses.Loss().sqrt_hessian(X[0], X[0])


SEEDED = {
    "fit": lambda seed: jbp.fit(
        jbp.Dense(1), losses.l2_loss, jbp.optim.sgd(0.1), (X, Y[:, :1]), batch_size=4, seed=seed
    ),
    "fit_many": lambda seed: jbp.fit_many(
        jbp.Dense(1), losses.l2_loss, jbp.optim.sgd(0.1), (X, Y[:, :1]), batch_size=4, seeds=[0, seed]
    ),
    "init_state": lambda seed: jbp.init_state(
        jbp.Problem(jbp.Dense(1), losses.l2_loss, jbp.optim.sgd(0.1)), (2,), seed=seed
    ),
    "check": lambda seed: loose.check.layer(jbp.tanh, (2,), key=seed),
}


@pytest.mark.parametrize("door", SEEDED)
@pytest.mark.parametrize("seed", [3 + 2**32, -1, 2**64])
def test_a_seed_whose_high_bits_would_be_dropped_is_refused(door, seed):
    with pytest.raises(ValueError, match="whole number from 0 to") as error:
        SEEDED[door](seed)
    assert "\n" not in str(error.value)
