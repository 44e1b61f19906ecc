"""`jbp.check` passes what is right: at kinks, in every form of argument, in 32 bits; and what is wrong still fails."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbp
from jbp import check
from jbp.check.diagnose import diagnose
from jbp.check.finite_differences import finite_differences


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Without 64 bits and without strict promotion."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def rule(fun: Any, fwd: Any, bwd: Any, **options: Any) -> Any:
    f = jax.custom_vjp(fun, **options)
    f.defvjp(fwd, bwd)
    return f


def product(bwd: Any = lambda s, d: (d * s[1], d * s[0])) -> Any:
    return rule(lambda a, b: a * b, lambda a, b: (a * b, (a, b)), bwd)


A, B = np.random.default_rng(0).normal(size=(2, 3))
TIES = np.array([1.0, 1.0, -1.0, 2.0, 1.0])
Pair = namedtuple("Pair", "w b")


def picked(index: Any) -> tuple[Any, Any, Any]:
    """Values chosen by their index, as sort and median choose."""
    value = lambda x: x[index(x)]  # noqa: E731
    return (
        value,
        lambda x: (x[index(x)], (index(x), x)),
        lambda s, d: (jnp.zeros_like(s[1]).at[s[0]].set(d),),
    )


def tree(bwd: Any) -> Any:
    f = lambda t: 2.0 * t["w"]  # noqa: E731
    return rule(f, lambda t: (f(t), t), bwd)


def relu(at_zero: float) -> Any:
    slope = lambda x, d: (jnp.where(x > 0, d, jnp.where(x == 0, at_zero * d, 0.0)),)  # noqa: E731
    return rule(jax.nn.relu, lambda x: (jax.nn.relu(x), x), slope)


def default(f: Any = lambda a, scale=2.0: a * scale) -> Any:
    return rule(f, lambda a, scale: (a * scale, (a, scale)), lambda s, d: (d * s[1], jnp.sum(d * s[0])))


def scan(w: Any, x: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = jnp.tanh(w * h + x)
        return h, h

    return jax.lax.scan(step, 0.0, x)[1]


INDEXED = rule(
    lambda x, i: x[i], lambda x, i: (x[i], (x, i)), lambda s, d: (jnp.zeros_like(s[0]).at[s[1]].add(d), None)
)
MASKED = rule(lambda x, m: jnp.where(m, x, 0), lambda x, m: (jnp.where(m, x, 0), m), lambda m, d: (m * d, None))

RIGHT: dict[str, Any] = {
    "numpy's float64": lambda: check.custom_vjp(product(), A, B),
    "numpy's float64 beside float32": lambda: check.custom_vjp(product(), A, jnp.ones(3)),
    "numpy's scalars": lambda: check.custom_vjp(product(), np.float64(2), np.float32(3)),
    "numpy's int64 and float64": lambda: check.custom_vjp(INDEXED, A, np.array([0, 2, 2])),
    "a mask of numpy": lambda: check.custom_vjp(MASKED, A, np.array([True, False, True])),
    "a named tuple of numpy": lambda: check.vjp(
        lambda p, x: p.w * x + p.b,
        lambda p, x: (p.w * x + p.b, (p, x)),
        lambda s, d: (Pair(d * s[1], d), d * s[0].w),
        Pair(A, B),
        A,
    ),
    "None in a tree": lambda: check.custom_vjp(
        tree(lambda t, d: ({"w": 2 * d, "b": None},)), {"w": jnp.ones(3), "b": None}
    ),
    "None for a subtree with None": lambda: check.custom_vjp(
        tree(lambda t, d: ({"w": 2 * d, "b": None},)), {"w": jnp.ones(3), "b": {"u": jnp.ones(3), "v": None}}
    ),
    "an empty leaf": lambda: check.custom_vjp(
        tree(lambda t, d: ({"w": 2 * d, "b": jnp.zeros_like(t["b"])},)), {"w": jnp.ones(3), "b": jnp.ones((0, 3))}
    ),
    "relu at 0": lambda: check.custom_vjp(relu(0.0), np.array([0.0, 1.0, -1.0])),
    "relu at zeros alone": lambda: check.custom_vjp(relu(0.0), jnp.zeros(3)),
    "relu at 0, by another convention": lambda: check.custom_vjp(relu(0.5), np.array([0.0, 1.0, -1.0])),
    "relu6 at both ends": lambda: check.vjp(
        jax.nn.relu6,
        lambda x: (jax.nn.relu6(x), x),
        lambda x, d: (jnp.where((x > 0) & (x < 6), d, 0),),
        np.array([0.0, 6.0, 3.0, -1.0]),
    ),
    "sort with ties": lambda: check.vjp(jnp.sort, *picked(jnp.argsort)[1:], TIES),
    "sort with ties, the other way round": lambda: check.vjp(
        jnp.sort, *picked(lambda x: jnp.argsort(x, descending=True)[::-1])[1:], TIES
    ),
    "median of ties": lambda: check.vjp(jnp.median, *picked(lambda x: jnp.argsort(x)[2])[1:], TIES),
    "median of ties, another of them": lambda: check.vjp(
        jnp.median, *picked(lambda x: jnp.argsort(x, descending=True)[2])[1:], TIES
    ),
    "numbers among the outputs": lambda: check.vjp(
        lambda a: (a * 2, 7, 7.0, None), lambda a: ((a * 2, 7, 7.0, None), None), lambda s, d: (d[0] * 2,), A
    ),
    "a default": lambda: check.custom_vjp(default(), A),
    "tanh far out, from its output": lambda: check.vjp(
        jnp.tanh, lambda x: (jnp.tanh(x),) * 2, lambda y, d: (d * (1 - y * y),), np.array([20.0, 10.0, -30.0])
    ),
    "a scan of tanh": lambda: check.vjp(
        scan, lambda w, x: jax.vjp(scan, w, x), lambda pull, d: pull(d), 0.5, np.array([1.0, 2.0, 3.0])
    ),
    "nondiff_argnums": lambda: check.custom_vjp(
        rule(
            lambda g, x, n: g(x) ** n,
            lambda g, x, n: (g(x) ** n, x),
            lambda g, n, x, d: jax.vjp(lambda x: g(x) ** n, x)[1](d),
            nondiff_argnums=(0, 2),
        ),
        jnp.sin,
        A,
        3,
    ),
    "large numbers": lambda: check.custom_vjp(product(), np.array([1e15, 2e18]), np.array([1e18, 3e18])),
    "numbers whose products with the factors of the linear law overflow": lambda: check.custom_vjp(
        product(), np.array([1e-3, 1e-4]), np.array([1e37, 2e37])
    ),
    "small numbers": lambda: check.custom_vjp(product(), np.array([1e-20, 2e-22]), np.array([1e-15, 3e-15])),
    "float16": lambda: check.custom_vjp(product(), A.astype(np.float16), B.astype(np.float16)),
    "under jit": lambda: check.custom_vjp(jax.jit(product()), A, B, reference=lambda a, b: a * b),
    "absolute error where the target is met": lambda: check.loss(
        Absolute(), output=np.zeros((2, 3)), target=np.zeros((2, 3))
    ),
    "hinge at its kink": lambda: check.loss(Hinge(), output=np.ones((2, 3)), target=np.ones((2, 3))),
    "a constant of numpy's float64 in a layer": lambda: check.layer(Scaled(), (3,)),
    "an optimiser on numpy's float64": lambda: check.optimizer(
        jbp.optim.sgd(0.1), optax.sgd(0.1), params={"w": A, "b": np.float64(1), "none": None}, steps=3
    ),
}


@dataclass(frozen=True, repr=False)
class Absolute(jbp.losses.Loss):
    factor: float = 1.0

    def value(self, output, target):
        return jnp.abs(output - target).sum()

    def delta(self, output, target):
        return self.factor * jnp.sign(output - target)


@dataclass(frozen=True, repr=False)
class Hinge(jbp.losses.Loss):
    at_kink: float = 1.0

    def value(self, output, target):
        return jax.nn.relu(1 - output * target).sum()

    def delta(self, output, target):
        margin = 1 - output * target
        return -target * jnp.where(margin > 0, 1.0, jnp.where(margin == 0, self.at_kink, 0.0))


SCALE = np.array([0.1, 0.2, 0.3])


@dataclass(frozen=True)
class Scaled(jbp.Layer):
    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return SCALE * x, ()

    def backward(self, params, saved, delta):
        return SCALE * delta, ()


@pytest.mark.parametrize("run", RIGHT.values(), ids=RIGHT)
def test_what_is_right_passes(run):
    report = run()
    assert report.passed, str(report)


FORGOTTEN = "a factor forgotten: found times args[1] is right"
WRONG: dict[str, tuple[Any, str, str]] = {
    "a factor forgotten": (lambda: check.custom_vjp(product(lambda s, d: (d, d * s[0])), A, B), "= vjp", FORGOTTEN),
    "a factor for another": (
        lambda: check.custom_vjp(product(lambda s, d: (d * s[0], d * s[1])), A, B),
        "= vjp",
        "a factor forgotten: args[0] stands where args[1] belongs",
    ),
    "a factor twice": (
        lambda: check.custom_vjp(product(lambda s, d: (d * s[1] ** 2, d * s[0])), A, B),
        "= vjp",
        "a factor too many: found is right times args[1]",
    ),
    "a factor forgotten under a sum": (
        lambda: check.custom_vjp(product(lambda s, d: (d.sum(), d * s[0])), 2.0, B),
        "= vjp",
        "a factor forgotten: found is right where args[1] is all ones",
    ),
    "a factor forgotten in a layer": (
        lambda: check.layer(Forgetful(), (3,), differences=False),
        "= vjp",
        "a factor forgotten: found is right where x is all ones",
    ),
    "a factor forgotten on the way to x": (
        lambda: check.layer(Forgetful(on_the_way=True), (3,), differences=False),
        "= vjp",
        "a factor forgotten: found is right where params['gain'] is all ones",
    ),
    "an array for None": (
        lambda: check.custom_vjp(tree(lambda t, d: ({"w": 2 * d, "b": d},)), {"w": jnp.ones(3), "b": None}),
        "cotangents",
        "",
    ),
    "one array for a subtree": (
        lambda: check.custom_vjp(tree(lambda t, d: ({"w": 2 * d, "b": d},)), {"w": jnp.ones(3), "b": {"u": A}}),
        "cotangents",
        "",
    ),
    "None for what has a cotangent": (
        lambda: check.custom_vjp(product(lambda s, d: (d * s[1], None)), A, B),
        "= vjp",
        "zero: nothing is passed back",
    ),
    "relu at 0, between no slopes": (lambda: check.custom_vjp(relu(5.0), np.array([0.0, 1.0])), "at the kink", ""),
    "a sort that permutes the wrong way": (
        lambda: check.vjp(
            jnp.sort, lambda x: (jnp.sort(x), jnp.argsort(x)), lambda i, d: (d[i],), np.array([3.0, 1.0, 2.0, 1.0])
        ),
        "= vjp",
        "",
    ),
    "tanh far out, wrong": (
        lambda: check.vjp(
            jnp.tanh, lambda x: (jnp.tanh(x),) * 2, lambda y, d: (2 * d * (1 - y * y),), np.array([5.0, -6.0])
        ),
        "derivative",
        "off by a constant factor 2",
    ),
    "a gradient that is clipped": (
        lambda: check.vjp(
            lambda x: 2 * x, lambda x: (2 * x, None), lambda s, d: (jnp.clip(2 * d, -50, 50),), A, differences=False
        ),
        "linear in δ",
        "",
    ),
    "a layer that clips its gradient": (
        lambda: check.layer(Clipping(), (3,), differences=False),
        "linear in δ",
        "",
    ),
    "an absolute error of twice the slope": (
        lambda: check.loss(Absolute(2.0), output=np.zeros((3, 3)), target=np.zeros((3, 3))),
        "= derivative",
        "off by a constant factor 2",
    ),
    "a hinge between no slopes": (
        lambda: check.loss(Hinge(3.0), output=np.ones((2, 3)), target=np.ones((2, 3))),
        "at the kink",
        "",
    ),
}


@dataclass(frozen=True)
class Forgetful(jbp.Layer):
    on_the_way: bool = False

    def init(self, key, shape):
        return {"gain": jnp.ones(shape)}, shape

    def forward(self, params, x, key):
        return params["gain"] * x, x

    def backward(self, params, saved, delta):
        if self.on_the_way:
            return delta, {"gain": jbp.pairs.Scale(saved[None], delta[None], saved.shape)}
        return params["gain"] * delta, {"gain": jbp.pairs.Shift(delta[None], saved.shape)}


class Clipping(Scaled):
    def backward(self, params, saved, delta):
        return jnp.clip(SCALE * delta, -10, 10), ()


@pytest.mark.parametrize(("run", "law", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_still_fails_and_says_why(run, law, words):
    report = run()
    assert law in {entry.law for entry in report.failures}, str(report)
    assert any(words in (entry.diagnosis or "") for entry in report.failures), str(report)
    assert not any("constant factor 1:" in str(e.diagnosis) or e.diagnosis == "off by a constant factor 1" for e in
                   report.failures)  # fmt: skip


def test_an_integer_that_was_meant_as_a_number_is_told_so():
    report = check.custom_vjp(product(lambda s, d: (d * s[1], jnp.sum(d * s[0]))), A, 2)
    (entry,) = report.failures
    assert entry.law == "no cotangent for integers and keys"
    assert entry.note == "it is 2: for a number to differentiate give 2.0"


def test_a_cotangent_that_is_zero_everywhere_tried_nothing_and_the_report_says_so():
    report = check.custom_vjp(product(lambda s, d: (7 * d * s[1], d * s[0])), A, jnp.zeros(3))
    (entry,) = [e for e in report.entries if e.law == "point"]
    assert entry.path == "args[0]" and entry.note.startswith("its cotangent is zero here, so no factor in it was tried")
    assert "its cotangent is zero here" in str(report)


def test_slopes_that_do_not_add_up_are_a_kink_though_straight_along_every_line():
    function = lambda leaves, extra: (jnp.median(leaves[0]), jnp.median(leaves[0])[None])  # noqa: E731
    first = lambda leaves, extra: [jnp.zeros_like(leaves[0]).at[0].set(1.0)]  # noqa: E731
    wrong = lambda leaves, extra: [2 * g for g in jax.grad(lambda p: [function(p, extra)[0]][0])(leaves)]  # noqa: E731
    with jax.enable_x64(True):
        point = [jnp.ones(3)]
        (entry,) = finite_differences(function, jax.grad(lambda p, e: function(p, e)[0]), point, (), ["x"], (1,))
        assert entry.verdict == "pass" and "moved 1 % away from a kink" in entry.note
        (entry,) = finite_differences(function, wrong, point, (), ["x"], (1,))
        assert entry.verdict == "fail"
        (entry,) = finite_differences(function, first, [jnp.array([3.0, 1.0, 2.0])], (), ["x"], (1,))
        assert entry.verdict == "fail" and "moved" not in entry.note


def test_a_factor_of_1_is_no_diagnosis():
    expected = np.array([1.0, 2.0, 3.0])
    assert diagnose(expected * (1 + 1e-10), expected, 1e-12) is None
    assert diagnose(expected * (1 + 1e-3), expected, 1e-12) == "off by a constant factor 1.001"


def test_the_report_folds_what_passed_and_shows_what_failed_first():
    report = check.custom_vjp(product(lambda s, d: (d * s[1], d)), A, B)
    lines = str(report).splitlines()
    failed = [i for i, line in enumerate(lines) if line.startswith("FAIL ")]
    assert lines[0] == "the custom VJP of <lambda>: FAILED (= vjp, derivative)"
    assert failed == [1, 2, 3]
    (linear,) = [line for line in lines if line.startswith("linear in δ")]
    assert "args[0], args[1]" in linear and "pass" in linear
    whole = report.text(full=True).splitlines()
    assert [line.split()[:4] for line in whole if line.startswith("linear in δ")] == [
        ["linear", "in", "δ", f"args[{i}]"] for i in (0, 1)
    ]
    rows = [line for line in report.to_markdown().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[-2] for row in rows[2:5]] == ["fail"] * 3 and "pass" in rows[5]
    assert len(rows) < len([line for line in report.to_markdown(full=True).splitlines() if line.startswith("| ")])
