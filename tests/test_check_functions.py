"""`check.loss`, `check.gradient`, `check.vjp` and `check.custom_vjp`."""

import contextlib
import functools
import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jbp
import jbp.check
from jbp.check import CheckFailed
from jbp.check.compiled import hurried
from jbp.losses import Loss, MeanSquaredError, SoftmaxCrossEntropy, SquaredError

CAREFUL = (
    "test_a_net_in_float32_passes",
    "test_a_right_custom_vjp_passes",
    "test_a_function_that_computes_in_float32_alone_is_checked_in_float32",
    "test_a_function_that_holds_a_rule_is_checked_as_jax_sees_it",
)
"""Where the default is what is looked at."""


@pytest.fixture(autouse=True)
def hurry(request):
    """The compiler's haste: the mistakes show all the same."""
    with contextlib.nullcontext() if request.function.__name__ in CAREFUL else hurried():
        yield


LOSSES = [
    "cross_entropy",
    "l2_loss",
    "mean_squared_error",
    "sigmoid_binary_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_passes(name, dtype):
    report = jbp.check.loss(getattr(jbp.losses, name), (7,), dtype=dtype, differences=dtype == "float64")
    assert {"= derivative", "squares to the Hessian"} <= {e.law for e in report.raise_if_failed().entries}


@dataclass(frozen=True, repr=False)
class WrongDelta(SquaredError):
    how: str = ""

    def delta(self, output, target, mask=None):
        right = super().delta(output, target)
        return {"half": right / 2, "sign": -right, "target": 2 * output, "mean": right / output.size}[self.how]


@dataclass(frozen=True, repr=False)
class WrongRoot(SoftmaxCrossEntropy):
    def sqrt_hessian(self, output, target, mask=None):
        return jnp.diag(jnp.sqrt(jax.nn.softmax(output)))


@dataclass(frozen=True, repr=False)
class Overflows(Loss):
    def value(self, output, target):
        return jnp.log(jnp.exp(output).sum()) - (target * output).sum()

    def delta(self, output, target):
        return jnp.exp(output) / jnp.exp(output).sum() - target


@dataclass(frozen=True, repr=False)
class NaNAtZero(Loss):
    def value(self, output, target):
        return -(target * jnp.log(output)).sum() + 0 * jnp.log(output).sum()

    def delta(self, output, target):
        return -target / output


WRONG_LOSSES = [
    (WrongDelta("half"), "= derivative", "factor 1/2"),
    (WrongDelta("sign"), "= derivative", "sign"),
    (WrongDelta("target"), "= derivative", None),
    (WrongDelta("mean"), "= derivative", "7 is the number of outputs"),
    (WrongRoot(), "squares to the Hessian", None),
    (Overflows(), "finite at ±10000", None),
    (NaNAtZero(), "no NaN at probability 0", None),
]


@pytest.mark.parametrize(("loss", "law", "words"), WRONG_LOSSES)
def test_a_wrong_loss_is_caught(loss, law, words):
    output = "probabilities" if isinstance(loss, NaNAtZero) else None
    report = jbp.check.loss(loss, (7,), output=output, differences=False)
    assert law in {e.law for e in report.failures}, str(report)
    assert words is None or any(words in (e.diagnosis or "") for e in report.failures), str(report)


@dataclass(frozen=True, repr=False)
class ZeroLogZero(Loss):
    """Where the target is 0 and the probability too, its term is 0 · log 0."""

    def value(self, output, target):
        return -(target * jnp.log(output)).sum()

    def delta(self, output, target):
        return -target / output


@dataclass(frozen=True, repr=False)
class CutDelta(SoftmaxCrossEntropy):
    """No δ at large logits: finite, and wrong."""

    def delta(self, output, target, mask=None):
        right = super().delta(output, target)
        return jnp.where(jnp.abs(output) > 30, jnp.zeros_like(right), right)


def test_a_probability_of_0_meets_a_target_of_0():
    for kinds in ("distribution", ("distribution", "masses")):
        report = jbp.check.loss(ZeroLogZero(), (7,), target=kinds, differences=False)
        assert {e.law for e in report.failures} == {"no NaN at probability 0"}, str(report)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_delta_is_checked_at_large_logits(dtype):
    report = jbp.check.loss(CutDelta(), (7,), dtype=dtype, target="distribution", differences=False)
    assert {e.law for e in report.failures} == {"= derivative"} and "output·" in report.failures[0].path, str(report)


class Tiny(SquaredError):
    """10⁻⁶ of the squared error, with the other sign in float32."""

    def value(self, output, target, mask=None):
        return 1e-6 * super().value(output, target)

    def delta(self, output, target, mask=None):
        return (-1e-6 if output.dtype == jnp.float32 else 1e-6) * super().delta(output, target)

    def sqrt_hessian(self, output, target, mask=None):
        return 1e-3 * super().sqrt_hessian(output, target)


def test_a_small_loss_is_held_to_its_own_size():
    assert jbp.check.loss(Tiny(), (7,), target="values", differences=False).passed
    assert not jbp.check.loss(Tiny(), (7,), target="values", dtype="float32", differences=False).passed


def test_a_loss_without_a_root_skips_it():
    class Linear(Loss):
        def value(self, output, target):
            return (output * target).sum()

        def delta(self, output, target):
            return target

    report = jbp.check.loss(Linear()).raise_if_failed()
    assert [e.verdict for e in report.entries if e.law == "squares to the Hessian"] == ["skip"]


@dataclass(frozen=True, repr=False)
class Picky(SoftmaxCrossEntropy):
    """Raises on some kinds of target."""

    on: tuple[str, ...] = ()
    error: Any = TypeError

    def value(self, output, target, mask=None):
        kind = "classes" if jnp.issubdtype(target.dtype, jnp.integer) else "floats"
        if kind in self.on:
            raise self.error(f"no {kind} here")
        return super().value(output, target)


def found_on(loss, **options):
    report = jbp.check.loss(loss, (3,), batch=2, differences=False, **options)
    return report, {e.path: e for e in report.entries if "here" in e.note}


def test_a_loss_that_crashes_on_a_kind_of_target_fails_and_one_that_refuses_it_says_so():
    for kind, where in (("classes", "value (classes)"), ("floats", "value (distribution)")):
        report, said = found_on(Picky((kind,), IndexError))
        assert not report.passed and said[where].verdict == "fail"
        assert f"IndexError: no {kind} here" in said[where].note and "name the kinds" in said[where].note
    report, said = found_on(Picky(("classes",), ValueError))
    assert report.passed and said["value (classes)"].verdict == "skip" and "refused" in said["value (classes)"].note
    # All kinds, and a kind that is named: then a refusal fails too.
    for loss, options in ((Picky(("classes", "floats"), ValueError), {}), (Picky(("floats",), ValueError),
                          {"target": ("classes", "masses")})):  # fmt: skip
        report, said = found_on(loss, **options)
        assert not report.passed and {e.verdict for e in said.values()} == {"fail"}
    assert "trac" in str(jbp.check.loss(Reads(), (3,), target="values").failures[0].note).lower()


class Reads(SquaredError):
    """Looks at its numbers, so that it does not trace."""

    def value(self, output, target, mask=None):
        return output.sum() if float(output.sum()) > 0 else -output.sum()


class NoMass(SoftmaxCrossEntropy):
    """Its δ is right only for targets that add up to 1."""

    def delta(self, output, target, mask=None):
        return jax.nn.softmax(output) - super().delta(jnp.zeros_like(output), target) * 0 - target


def test_targets_that_do_not_add_up_to_1_tell_a_delta_that_needs_it():
    assert jbp.check.loss(NoMass(), (3,), target="distribution", differences=False).passed
    report = jbp.check.loss(NoMass(), (3,), target=("distribution", "masses"), differences=False)
    assert {e.path.split(" (output")[0] for e in report.failures if e.law == "= derivative"} == {"delta (masses)"}


# -- whole nets -------------------------------------------------------------------------------------------------------

NET = jbp.serial(jbp.Dense(5), jbp.tanh, jbp.Dropout(0.3), jbp.Dense(3))
PARAMS, _ = NET.init(jax.random.key(0), (7,))
X, Y = jax.random.normal(jax.random.key(1), (6, 7)), jnp.arange(6) % 3
CE = jbp.losses.softmax_cross_entropy


@pytest.mark.parametrize("key", [None, 3])
def test_a_right_net_passes(key):
    weights = jnp.array([0.0, 0.5, 1.0, 0.25, 0.125, 2.0])
    jbp.check.gradient(NET, CE, PARAMS, X.at[0].set(jnp.nan), Y, key=key, weights=weights).raise_if_failed()
    jbp.check.gradient(NET, CE, PARAMS, X, Y, key=key, differences=False).raise_if_failed()


@pytest.mark.parametrize("key", [None, 3])
def test_nan_in_x_and_y_at_weight_0_and_frozen_parameters_are_no_mistake(key, monkeypatch):
    weights, y = jnp.array([0.0, 0.5, 1.0, 0.25, 0.125, 2.0]), jax.random.normal(jax.random.key(2), (6, 3))
    data = X.at[0].set(jnp.nan), y.at[0].set(jnp.nan)
    trainable = (True, (), (), {"weight": False, "bias": True})
    options = {"key": key, "weights": weights, "trainable": trainable}
    report = jbp.check.gradient(NET, jbp.losses.l2_loss, PARAMS, *data, **options).raise_if_failed()
    assert [e.path for e in report.entries if e.law == "not trained"] == ["params[3]['weight']"]
    assert "params[3]['weight']" not in {e.path for e in report.entries if e.law in ("= jax.grad", "derivative")}
    if key is not None:  # a gradient that pays no heed to trainable
        module = sys.modules["jbp.check.gradient"]
        monkeypatch.setattr(module, "value_and_grad", lambda net, loss, trainable: jbp.value_and_grad(net, loss))
        report = jbp.check.gradient(NET, jbp.losses.l2_loss, PARAMS, *data, differences=False, **options)
        assert {e.law for e in report.failures} == {"not trained"}


def test_a_net_in_float32_passes():
    params = jax.tree.map(lambda a: a.astype(jnp.float32), PARAMS)
    report = jbp.check.gradient(NET, CE, params, X.astype(jnp.float32), Y).raise_if_failed()
    assert {"float32", "float64"} == {e.dtype for e in report.entries if e.compared}


def test_a_row_of_padding_on_a_kink_is_no_mistake():
    net = jbp.serial(jbp.Dense(3), jbp.relu)
    params, _ = net.init(jax.random.key(0), (7,))
    report = jbp.check.gradient(net, CE, params, X.at[0].set(0), Y, differences=False).raise_if_failed()
    assert "kink" in report.entries[0].note


class WrongAtZero(type(jbp.relu)):
    """A rectifier whose δ is 5 times too large wherever an example holds a 0."""

    def backward(self, params, saved, delta):
        right, pairs = super().backward(params, saved, delta)
        return jnp.where((saved.array == 0).all(), 5 * delta, right), pairs


def test_a_row_of_padding_on_a_kink_is_no_excuse():
    net = jbp.serial(jbp.Dense(3), WrongAtZero())
    params, _ = net.init(jax.random.key(0), (7,))
    assert jbp.check.gradient(net, CE, params, X, Y, differences=False).passed
    report = jbp.check.gradient(net, CE, params, X.at[0].set(0), Y, differences=False)
    assert {(e.law, e.path) for e in report.failures} == {("at the kink", "params[0]['bias']")}, str(report)


def test_many_rows_and_layers_of_padding_on_kinks_are_no_mistake():
    net = jbp.serial(jbp.Dense(11), jbp.relu, jbp.Dense(11), jbp.relu, jbp.Dense(3))
    params, _ = net.init(jax.random.key(0), (7,))
    x, y = jnp.concatenate([X, jnp.zeros((50, 7))]), jnp.concatenate([Y, jnp.zeros((50,), int)])
    assert "kink" in jbp.check.gradient(net, CE, params, x, y, differences=False).raise_if_failed().entries[0].note


class BatchSum(MeanSquaredError):
    """Its δ is 6 times what it should be, as if the mean over the batch were missing."""

    def delta(self, output, target, mask=None):
        return super().delta(output, target) * 6


def test_a_missing_mean_over_the_batch_is_named():
    y = jax.random.normal(jax.random.key(2), (6, 3))
    report = jbp.check.gradient(NET, BatchSum(), PARAMS, X, y)
    assert "6, which is the batch size" in (report.diagnosis or ""), str(report)
    assert {"autodiff", "finite differences"} <= {e.oracle for e in report.failures}


WRONG_KIND: Any = ("ce", SquaredError, "sgd", 3)
BAD_NETS = [
    (lambda: jbp.check.gradient(NET, CE, PARAMS, X.at[0, 0].set(jnp.inf), Y), "x must be finite"),
    (lambda: jbp.check.gradient(NET, CE, PARAMS, X[:0], Y[:0]), "at least one"),
    (lambda: jbp.check.gradient(NET, CE, PARAMS, X, Y[:3]), "same number"),
    (lambda: jbp.check.gradient(jbp.tanh, jbp.losses.l2_loss, (), X, X), "nothing to"),
    (lambda: jbp.check.gradient(NET, CE, PARAMS, X, Y, weights=jnp.zeros(6)), "all weights are 0"),
    (lambda: jbp.check.gradient(NET, CE, PARAMS, X, Y, trainable=False), "False for every parameter"),
    (lambda: jbp.check.gradient(NET, CE, PARAMS, X, Y, trainable=(True,)), "starts like params"),
    (lambda: jbp.check.gradient(NET, CE, PARAMS, X, Y, trainable="all"), "tree of bools"),
    (lambda: jbp.check.gradient(NET, WRONG_KIND[0], PARAMS, X, Y), "the loss must come from jbp.losses"),
    (lambda: jbp.check.gradient(NET, CE, PARAMS, X[:, :5], Y).raise_if_failed(), r"layer \[0\]"),
    (lambda: jbp.check.loss(WRONG_KIND[1]), "instance"),
    (lambda: jbp.check.loss(jbp.losses.l2_loss, (0,)), "positive"),
    (lambda: jbp.check.loss(jbp.losses.l2_loss, target="labels"), "one or more of"),
    (lambda: jbp.check.optimizer(optax.sgd(0.1), WRONG_KIND[2]), "theirs must come from jbp.optim or optax"),
    (lambda: jbp.check.optimizer(optax.sgd(0.1), optax.sgd(0.1), params={}), "at least one"),
    (lambda: jbp.check.optimizer(optax.sgd(0.1), optax.sgd(0.1), params={"a": jnp.ones((0, 3))}), "is empty"),
    (lambda: jbp.check.loss(CE, output=X, target=jnp.full((6,), 9)), "target must hold classes 0…6"),
    (lambda: jbp.check.loss(CE, output=jnp.ones((6, 7), int)), "output must be of floats"),
    (lambda: jbp.check.loss(CE, dtype="junk"), "such as 'float32'"),
    (lambda: jbp.check.loss(CE, level=WRONG_KIND[3]), "level must be one of"),
    (lambda: jbp.check.gradient(NET, CE, PARAMS, X, Y + 7), "y must hold classes 0…2"),
    (lambda: jbp.check.optimizer(optax.sgd(0.1), optax.sgd(0.1), steps=1), "at least 3"),
]


@pytest.mark.parametrize(("call", "words"), BAD_NETS, ids=[words for _, words in BAD_NETS])
def test_bad_input_is_refused(call, words):
    with pytest.raises((ValueError, CheckFailed), match=words):
        call()


# -- any VJP ----------------------------------------------------------------------------------------------------------


def make(mistake=""):
    """A function of a size, a tree with a matrix, a vector and integers, and a key; with a rule of its own."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def f(size, tree, key):
        noise = jax.random.normal(key, tree["a"].shape, jnp.float32).astype(tree["a"].dtype)
        y = jnp.sin(tree["a"] + noise) @ tree["w"] * size
        return {"y": y, "count": tree["i"] + 1}

    def fwd(size, tree, key):
        return f(size, tree, key), (tree, key)

    def bwd(size, saved, delta):
        tree, key = saved
        noise = jax.random.normal(key, tree["a"].shape, jnp.float32).astype(tree["a"].dtype)
        d, s = delta["y"] * size, tree["a"] + noise
        d = {"factor": 2 * d, "reversed": d[::-1], "sign": -d}.get(mistake, d)
        a, w = jnp.cos(s) * (d @ tree["w"].T), jnp.sin(s).T @ d
        w = w.T if mistake == "transposed" else w
        a = d @ tree["w"].T if mistake == "θ′" else a
        a = a.astype(jnp.float16) if mistake == "dtype" else a
        i = jnp.ones_like(tree["i"]) if mistake == "integer" else np.zeros(tree["i"].shape, jax.dtypes.float0)
        if mistake == "tree":
            return {"a": a, "w": w}, None
        if mistake == "too few":
            return ({"a": a, "w": w, "i": i},)
        return {"a": a, "w": w, "i": i}, None

    f.defvjp(fwd, bwd)
    return f


def arguments(dtype=jnp.float64):
    a, w = (jax.random.normal(jax.random.key(i), s, jnp.float32).astype(dtype) for i, s in enumerate([(7, 5), (5, 3)]))
    return 2.0, {"a": a, "w": w, "i": jnp.arange(2)}, jax.random.key(7)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_right_custom_vjp_passes(dtype):
    report = jbp.check.custom_vjp(make(), *arguments(dtype), differences=dtype != "bfloat16").raise_if_failed()
    assert {"= vjp", "= f", "linear in δ", "jax.vjp(f) = the rule"} <= {e.law for e in report.entries}


WRONG_RULES = [
    ("factor", "= vjp", "factor 2"),
    ("sign", "= vjp", "sign"),
    ("reversed", "= vjp", "δ reversed"),
    ("transposed", "shapes", "transposed"),
    ("θ′", "= vjp", None),
    ("dtype", "dtypes", None),
    ("integer", "no cotangent for integers and keys", None),
    ("tree", "cotangents", None),
    ("too few", "cotangents", None),
]


@pytest.mark.parametrize(("mistake", "law", "words"), WRONG_RULES)
def test_a_wrong_custom_vjp_is_caught(mistake, law, words):
    report = jbp.check.custom_vjp(make(mistake), *arguments(), differences=False)
    assert law in {e.law for e in report.failures}, str(report)
    assert words is None or any(words in (e.diagnosis or "") for e in report.failures), str(report)


def test_a_wrong_rule_in_bfloat16_is_caught():
    report = jbp.check.custom_vjp(make("factor"), *arguments(jnp.bfloat16), differences=False)
    assert not report.passed and "factor 2" in (report.diagnosis or "")


@pytest.mark.parametrize("how", ["right", "sign", "zero"])
def test_a_small_gradient_in_bfloat16_is_held_to_its_own_size(how):
    def f(x):
        x = x.astype(jnp.bfloat16)
        return (x * x).astype(jnp.float32).mean().astype(jnp.bfloat16)

    def bwd(x, delta):
        factor = {"right": 2.0, "sign": -2.0, "zero": 0.0}[how] / x.size
        return ((factor * x.astype(jnp.float32) * delta.astype(jnp.float32)).astype(x.dtype),)

    x = jax.random.normal(jax.random.key(0), (16, 32), jnp.bfloat16)
    report = jbp.check.vjp(f, lambda x: (f(x), x), bwd, x, differences=False)
    assert report.passed == (how == "right"), str(report)


@pytest.mark.parametrize("right", [True, False])
def test_a_softmax_of_many_classes_in_bfloat16_needs_its_sign(right):
    def bwd(y, delta):
        delta_x = y * (delta - (y * delta).sum(-1, keepdims=True))
        return (delta_x if right else -delta_x,)

    x = jax.random.normal(jax.random.key(0), (4, 64), jnp.bfloat16)
    f = jax.nn.softmax
    assert jbp.check.vjp(f, lambda x: (f(x), f(x)), bwd, x, differences=False).passed == right


def test_rules_that_autodiff_takes_on_trust_are_named():
    inner = jax.custom_vjp(jnp.sin)
    inner.defvjp(lambda x: (jnp.sin(x), x), lambda x, d: (1.5 * jnp.cos(x) * d,))
    f = lambda x: 2 * inner(x)  # noqa: E731
    rule = f, lambda x: (f(x), x), lambda x, d: (3 * jnp.cos(x) * d,)
    report = jbp.check.vjp(*rule, jnp.ones(3), differences=False)
    assert ["sin" in e.note for e in report.entries if e.verdict == "skip"] == [True], str(report)
    assert not jbp.check.vjp(*rule, jnp.ones(3)).passed
    report = jbp.check.vjp(*SINE, jnp.ones(3), differences=False)
    assert all(e.verdict == "pass" for e in report.entries)


def power(x, kind, n):
    return jnp.sum(x**n, axis=-1) if kind == "sum" else x**n


def test_static_arguments():
    def fwd(x, kind, n):
        return power(x, kind, n), x

    def bwd(x, delta):
        return n_times(x, delta), None, None

    def n_times(x, delta):
        return 3 * x**2 * delta[:, None]

    x = jax.random.normal(jax.random.key(0), (5, 3))
    jbp.check.vjp(power, fwd, bwd, x, "sum", 3, static_argnums=(1, 2)).raise_if_failed()
    report = jbp.check.vjp(power, fwd, lambda x, d: (2 * n_times(x, d), None, None), x, "sum", 3, static_argnums=(1, 2))
    assert {"autodiff of the primal", "finite differences", "complex step"} <= {e.oracle for e in report.failures}
    with pytest.raises(ValueError, match="static_argnums"):
        jbp.check.vjp(power, fwd, bwd, x, "sum", 3)


def test_a_kink_is_no_excuse_for_nan_or_for_what_no_side_of_it_has():
    def ramp(x):
        return jnp.maximum(x, jnp.zeros_like(x))

    def wrong(x, delta):
        return (jnp.where((x == 0).any(), 5 * delta, jnp.where(x > 0, delta, jnp.zeros_like(delta))),)

    x = jnp.arange(5.0) - 2
    for bwd in (lambda x, delta: (delta * ramp(x) / x,), wrong):
        assert jbp.check.vjp(ramp, lambda x: (ramp(x), x), bwd, x + 0.5, differences=False).passed
        assert not jbp.check.vjp(ramp, lambda x: (ramp(x), x), bwd, x, differences=False).passed
    # Any number between the slopes is a convention.
    for at_zero in (-1.0, 0.0, 1.0, 1.5):
        rule = lambda x, delta, c=at_zero: (delta * jnp.where(x == 0, c, jnp.sign(x)),)  # noqa: E731
        assert jbp.check.vjp(jnp.abs, lambda x: (abs(x), x), rule, x, differences=False).passed == (at_zero <= 1)


def loop(x: Any) -> Any:
    """A while loop: reverse-mode autodiff cannot differentiate it."""
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1]


def loop_bwd(factor, x, delta):
    for s in (x, jnp.sin(x), jnp.sin(jnp.sin(x))):
        delta = delta * jnp.cos(s)
    return (factor * delta,)


def test_where_autodiff_cannot_the_differences_decide_or_a_reference():
    x = jax.random.normal(jax.random.key(0), (7,))
    fwd = lambda x: (loop(x), x)  # noqa: E731
    report = jbp.check.vjp(loop, fwd, functools.partial(loop_bwd, 1), x, differences=False).raise_if_failed()
    assert {e.oracle for e in report.entries if e.law == "derivative" and e.compared} >= {"finite differences"}
    assert not jbp.check.vjp(loop, fwd, functools.partial(loop_bwd, 1.001), x).passed

    def plain(x):
        return jnp.sin(jnp.sin(jnp.sin(x)))

    jbp.check.vjp(loop, fwd, functools.partial(loop_bwd, 1), x, reference=plain).raise_if_failed()
    assert not jbp.check.vjp(loop, fwd, functools.partial(loop_bwd, 1), x, reference=jnp.sin, differences=False).passed


def test_a_function_that_computes_in_float32_alone_is_checked_in_float32():
    def host(x):
        out = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        return jax.pure_callback(lambda x: np.sin(x, dtype=np.float32), out, x.astype(jnp.float32))

    def rule(factor):
        return lambda x, d: (factor * jnp.cos(x) * d.astype(x.dtype),)

    x = jax.random.normal(jax.random.key(0), (7,), jnp.float32)
    report = jbp.check.vjp(host, lambda x: (host(x), x), rule(1), x).raise_if_failed()
    assert "NATIVE_DIFFERENCE" in {e.level for e in report.entries if e.compared}
    assert "factor 21/20" in (jbp.check.vjp(host, lambda x: (host(x), x), rule(1.05), x).diagnosis or "off")


def test_a_function_that_holds_a_rule_is_checked_as_jax_sees_it():
    rule: Any = make("factor")
    size, tree, key = arguments()

    def outer(a, w):
        return rule(size, {**tree, "a": a, "w": w}, key)["y"]

    assert not jbp.check.custom_vjp(outer, tree["a"], tree["w"]).passed


def test_a_rule_for_symbolic_zeros():
    def build(factor):
        @jax.custom_vjp
        def f(x, y):
            return x * y

        def fwd(x, y):
            return x.value * y.value, (x.value, y.value)

        f.defvjp(fwd, lambda saved, d: (factor * saved[1] * d, saved[0] * d), symbolic_zeros=True)
        return f

    x, y = jax.random.normal(jax.random.key(0), (2, 5))
    jbp.check.custom_vjp(build(1), x, y).raise_if_failed()
    assert "factor 2" in (jbp.check.custom_vjp(build(2), x, y).diagnosis or "")


BARE = jax.custom_vjp(lambda x: x)
SINE = (jnp.sin, lambda x: (jnp.sin(x), x), lambda x, d: (jnp.cos(x) * d,))
BAD_FUNCTIONS = [
    (lambda: jbp.check.vjp(*SINE, jnp.array([1.0, jnp.nan])), "finite"),
    (lambda: jbp.check.vjp(*SINE, jnp.arange(3)), "none of the arguments is of floats"),
    (lambda: jbp.check.vjp(*SINE, jnp.zeros((0, 3))), "empty"),
    (lambda: jbp.check.vjp(*SINE, jnp.ones(3), nondiff_argnums=(4,)), "numbers of the 1 arguments"),
    (lambda: jbp.check.vjp(jnp.sin, WRONG_KIND[0], SINE[2], jnp.ones(3)), "f_fwd must be a function"),
    (
        lambda: jbp.check.vjp(lambda x: x if float(x.sum()) > 0 else -x, *SINE[1:], jnp.ones(3)).raise_if_failed(),
        "trace",
    ),
    (lambda: jbp.check.vjp(SINE[0], lambda x: jnp.sin(x), SINE[2], jnp.ones(3)).raise_if_failed(), "must return"),
    (lambda: jbp.check.vjp(*SINE[:2], lambda x, d: d * jnp.cos(x), jnp.ones(3)).raise_if_failed(), "tuple of 1"),
    (lambda: jbp.check.vjp(*SINE[:2], lambda x, d: (d * jnp.nan,), jnp.ones(3)).raise_if_failed(), "only NaN"),
    (lambda: jbp.check.vjp(*SINE[:2], lambda x, d: (jnp.zeros_like(d),), jnp.ones(3)).raise_if_failed(), "zero"),
    (lambda: jbp.check.vjp(*SINE[:2], lambda x, d: (None,), jnp.ones(3)).raise_if_failed(), "zero"),
    (lambda: jbp.check.vjp(*SINE[:2], lambda x, d: (d,), jnp.ones(3)).raise_if_failed(), "passed through"),
    (lambda: jbp.check.custom_vjp(BARE, jnp.ones(3)), "defvjp"),
    (lambda: jbp.check.vjp(*SINE, jnp.ones(3, complex)), "complex is not supported"),
    (lambda: jbp.check.vjp(jnp.fft.fft, *SINE[1:], jnp.ones(3)), "complex is not supported"),
    (lambda: jbp.check.vjp(*SINE, jnp.ones(3), nondiff_argnums=WRONG_KIND[3]), "tuple of numbers"),
    (lambda: jbp.check.vjp(*SINE, jnp.ones(3), level=WRONG_KIND[3]), "level must be one of"),
    (lambda: jbp.check.vjp(lambda x: x[:0], lambda x: (x[:0], x), SINE[2], jnp.ones(3)), "is empty"),
]


@pytest.mark.parametrize(("call", "words"), BAD_FUNCTIONS, ids=[words for _, words in BAD_FUNCTIONS])
def test_a_bad_function_is_refused(call, words):
    with pytest.raises((ValueError, CheckFailed), match=words):
        call()
