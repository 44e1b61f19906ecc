"""`check.layer`: bad input is refused, the traps that other checkers fall into, and the report."""

import contextlib
import functools
import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_jvp
from test_check_layer import MyDense, MySoftmax

import jbp
import jbp.check
from jbp.check import CheckFailed
from jbp.check.compiled import hurried
from jbp.layer import Layer
from jbp.pairs import Outer


@pytest.fixture(autouse=True)
def hurry(request):
    """The compiler's haste: the mistakes show all the same. Not where the default is what is looked at."""
    with contextlib.nullcontext() if "unhurried" in request.node.name else hurried():
        yield


@dataclass(frozen=True)
class OneHot(Layer):
    """A weight times one-hot integers."""

    width: int = 5
    mistake: bool = False
    uses_key = False

    def init(self, key, shape):
        return jax.random.normal(key, (self.width, 3)), (*shape, 3)

    def forward(self, params, x, key):
        return jnp.take(params, x, axis=0), x

    def backward(self, params, saved, delta):
        onehot = jax.nn.one_hot(saved.reshape(-1), self.width, dtype=delta.dtype)
        return delta if self.mistake else None, Outer(onehot, delta.reshape(-1, 3), params.shape)


def test_integer_input_has_no_delta():
    x = jax.random.randint(jax.random.key(0), (4, 7), 0, 5)
    jbp.check.layer(OneHot(), x=x).raise_if_failed()
    assert not jbp.check.layer(OneHot(mistake=True), x=x).passed


class NoBackward(Layer):
    """Has no backward."""

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return x, ()


@dataclass(frozen=True)
class WithList(Layer):
    """Cannot be hashed."""

    sizes: list


@dataclass(frozen=True)
class NoTrace(Layer):
    """Looks at its numbers."""

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return (x if float(x.sum()) > 0 else -x), ()

    def backward(self, params, saved, delta):
        return delta, ()


@dataclass(frozen=True)
class Unbounded(Layer):
    """NaN forward."""

    uses_key = False

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return jnp.log(-jnp.abs(x)), x

    def backward(self, params, saved, delta):
        return delta / saved, ()


@dataclass(frozen=True)
class OutOfShape(Unbounded):
    """Its y is a pair of arrays, or of integers."""

    how: str = "pair"

    def forward(self, params, x, key):
        return {"pair": (x, x), "integers": x.astype(jnp.int32), "NaN": x * jnp.nan}[self.how], x


WRONG: Any = (jbp.Dense, "Dense", "junk", 3)
BAD = [
    (lambda: jbp.check.layer(jbp.Dense(3), (7,), x=jnp.full((2, 7), jnp.nan)), "x must be finite"),
    (lambda: jbp.check.layer(jbp.Dense(3), (7,), x=jnp.zeros((0, 7))), "at least one example"),
    (lambda: jbp.check.layer(jbp.Dense(3), (7,), batch=0), "batch"),
    (lambda: jbp.check.layer(jbp.Dense(3), (0,)), "positive"),
    (lambda: jbp.check.layer(jbp.Dense(3)), "shape of one example"),
    (lambda: jbp.check.layer(jbp.Dense(3), (5,), x=jnp.ones((2, 7))), "shape says"),
    (lambda: jbp.check.layer(WRONG[0], (7,)), "call it"),
    (lambda: jbp.check.layer(WRONG[1], (7,)), "the net must be a layer"),
    (lambda: jbp.check.layer(WithList([1]), (7,)), "hashed"),
    (lambda: jbp.check.layer(jbp.Dense(3), (7,), dtype=jnp.int32), "floating"),
    (
        lambda: jbp.check.layer(jbp.Dense(3), (7,), params={"weight": jnp.full((7, 3), jnp.inf), "bias": jnp.ones(3)}),
        "inf",
    ),
    (lambda: jbp.check.layer(NoBackward(), (7,)).raise_if_failed(), "has no backward"),
    (lambda: jbp.check.layer(NoTrace(), (7,)).raise_if_failed(), "forward"),
    (lambda: jbp.check.layer(Unbounded(), (7,)).raise_if_failed(), "NaN or inf of finite input"),
    (lambda: jbp.check.layer(jbp.Dense(3), (7,), x=jnp.ones((4, 7), jnp.int32)).raise_if_failed(), "floating"),
    (lambda: jbp.check.layer(jbp.residual(jbp.Dense(3)), (7,)).raise_if_failed(), "residual"),
    (lambda: jbp.check.layer(OutOfShape(), (7,)).raise_if_failed(), "y must be one array"),
    (lambda: jbp.check.layer(OutOfShape("integers"), (7,)).raise_if_failed(), "y must be of real floats"),
    (lambda: jbp.check.layer(jbp.Dense(3), (7,), dtype="junk"), "such as 'float32'"),
    (lambda: jbp.check.layer(jbp.Dense(3), (7,), key=WRONG[2]), "key must be a seed"),
    (lambda: jbp.check.layer(jbp.Dense(3), (7,), level=WRONG[3]), "level must be one of"),
    (lambda: jbp.check.layer(jbp.tanh, x=jnp.ones((2, 7), complex)), "complex is not supported"),
]


@pytest.mark.parametrize(("call", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_input_is_refused_with_what_and_where(call, words):
    with pytest.raises((ValueError, CheckFailed), match=words):
        call()


def test_nan_is_not_taken_for_a_key_that_is_looked_at():
    report = jbp.check.layer(OutOfShape("NaN"), (7,), differences=False)
    failed = {e.law for e in report.failures}
    assert "finite" in failed and "key" not in failed and "uses_key" not in str(report)


# -- the traps --------------------------------------------------------------------------------------------------------


def test_trap_ones_are_blind_where_random_deltas_see():
    softmax = MySoftmax("zero")
    x = jax.random.normal(jax.random.key(0), (5, 7))
    y, pull = jax.vjp(lambda x: jbp.forward(softmax, (), x)[0], x)
    ones = jnp.ones_like(y)
    np.testing.assert_allclose(jbp.backward(softmax, (), y, ones)[0], pull(ones)[0], atol=1e-15)  # passes!
    assert not jbp.check.layer(softmax, x=x, differences=False).passed


def test_trap_check_grads_loosens_with_size_where_units_do_not():
    @functools.partial(jax.custom_jvp)
    def f(x):
        return jnp.sin(x)

    @f.defjvp
    def _(primals, tangents):
        return jnp.sin(primals[0]), 2 * jnp.cos(primals[0]) * tangents[0]

    x = jax.random.normal(jax.random.key(0), (100_000,), jnp.float32)
    check_jvp(f, functools.partial(jax.jvp, f), (x,))  # passes, and is wrong by a factor 2

    def fwd(x):
        return jnp.sin(x), x

    def bwd(x, delta):
        return (2 * jnp.cos(x) * delta,)

    report = jbp.check.vjp(jnp.sin, fwd, bwd, x, differences=False)
    assert not report.passed and "factor 2" in (report.diagnosis or "")


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_report_prints_and_turns_into_json_and_markdown():
    report = jbp.check.layer(MyDense(3, "factor"), (7, 5), differences=False)
    data = json.loads(report.to_json())
    entry = next(e for e in data["entries"] if e["verdict"] == "fail")
    assert not data["passed"] and entry["path"] == "params['W']" and entry["oracle"] == "autodiff"
    assert {"index", "expected", "found", "device", "precision", "level", "error", "allowed", "dtype"} <= set(entry)
    assert entry["found"] == pytest.approx(2 * entry["expected"])
    assert "FAIL" in str(report) and "factor 2" in str(report) and "| = vjp | params['W']" in report.to_markdown()


def test_nothing_compared_is_no_pass():
    assert not jbp.check.Report("nothing", ()).passed
    assert not jbp.check.joined("none", [jbp.check.Report("nothing", ())]).passed
