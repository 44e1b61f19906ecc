"""`jbp.check.layer`: right layers pass, a planted mistake is caught and named, bad input is refused."""

import contextlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Centre

import jbp
import jbp.check
from jbp import stats
from jbp.check import CheckFailed
from jbp.check import statistics as laws_of_statistics
from jbp.check.compiled import hurried
from jbp.check.layer import derivative_alone
from jbp.layer import Layer, Static
from jbp.pairs import Outer, Scale, Shift

OF_THE_DERIVATIVE = (
    "test_a_planted_mistake_is_caught_and_named",
    "test_a_kink_is_moved_away_from_or_reported_never_passed_over",
    "test_a_kink_is_no_excuse_for_nan_or_for_what_no_side_of_it_has",
    "test_a_gradient_small_beside_its_delta_is_held_to_its_own_size",
    "test_a_gradient_of_rounding_alone_is_not",
    "test_inputs_are_large_too",
)
"""They ask what a check finds of a derivative; its other laws are asked for elsewhere."""


@pytest.fixture(autouse=True)
def hurry(request):
    """The compiler's haste: the mistakes show all the same. Not where the default is what is looked at."""
    alone = request.function.__name__ in OF_THE_DERIVATIVE
    with (
        contextlib.nullcontext() if "unhurried" in request.node.name else hurried(),
        derivative_alone() if alone else contextlib.nullcontext(),
    ):
        yield


LAYERS = {
    "Dense": (jbp.Dense(3), (7, 5)),
    "Dense, width 1": (jbp.Dense(1), (7,)),
    "Dropout": (jbp.Dropout(0.3), (7,)),
    "Flatten": (jbp.Flatten(), (3, 5)),
    "identity": (jbp.identity, (7,)),
    "relu": (jbp.relu, (7,)),
    "leaky_relu": (jbp.leaky_relu, (7,)),
    "tanh": (jbp.tanh, (7,)),
    "sigmoid": (jbp.sigmoid, (7,)),
    "softmax": (jbp.softmax, (3, 5)),
    "softmax of one": (jbp.softmax, (1,)),
    "softplus": (jbp.softplus, (7,)),
    "elu": (jbp.elu, (7,)),
    "silu": (jbp.silu, (7,)),
    "gelu": (jbp.gelu, (7,)),
    "serial": (jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dropout(0.3)), (7,)),
    "residual": (jbp.residual(jbp.Dense(7)), (7,)),
    "branch": (jbp.branch(jbp.Dense(3), jbp.Dense(5), join="concat"), (7,)),
    "repeat": (jbp.repeat(jbp.residual(jbp.serial(jbp.Dense(7), jbp.relu)), 3), (7,)),
}


WITH_DIFFERENCES = {"Dense", "Dropout", "relu", "softmax", "gelu", "repeat"}


def test_stacks_of_other_sizes_in_one_another_pass():
    """Each level of a `Stack` has its own number of layers."""
    nested = jbp.repeat(jbp.repeat(jbp.Dense(3), 2), 3)
    jbp.check.layer(nested, (3,), batch=3, differences=False).raise_if_failed()
    params, _ = nested.init(jax.random.key(0), (3,))
    output, saved = jbp.forward(nested, params, jnp.ones((5, 3)))
    pair = jbp.backward(nested, params, saved, output)[1]["weight"]
    pair.check((3, 2, 3, 3), 1)
    with pytest.raises(ValueError, match=r"Stack of 2 layers cannot be of a parameter of shape \(4, 3, 3\)"):
        pair.check((3, 4, 3, 3), 1)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_passes_in_float64(name):
    layer, shape = LAYERS[name]
    report = jbp.check.layer(layer, shape, differences=name in WITH_DIFFERENCES).raise_if_failed()
    assert report.compared > 20 and {"= vjp", "adjoint", "linear in δ"} <= {e.law for e in report.entries}


@pytest.mark.parametrize("name", ["Dense", "Dropout", "softmax", "gelu", "repeat"])
def test_layers_pass_in_float32(name):
    layer, shape = LAYERS[name]
    report = jbp.check.layer(layer, shape, dtype="float32", differences=False).raise_if_failed()
    assert {e.dtype for e in report.entries if e.compared} == {"float32"}


def test_bfloat16():
    report = jbp.check.layer(jbp.Dense(3), (7,), dtype=jnp.bfloat16, differences=False).raise_if_failed()
    assert {e.level for e in report.entries if e.compared} <= {"LOW_PRECISION", "EXACT"}


# -- planted mistakes in a layer of the user's own --------------------------------------------------------------------


@dataclass(frozen=True)
class MyDense(Layer):
    """A dense layer with a choice of mistakes."""

    width: int
    mistake: str = ""
    uses_key = False

    def init(self, key, shape):
        return {
            "b": jnp.zeros((self.width,)),
            "W": jax.random.normal(key, (shape[-1], self.width)),
        }, (*shape[:-1], self.width)

    def forward(self, params, x, key):
        y = x @ params["W"] + jnp.broadcast_to(params["b"], (*x.shape[:-1], self.width))
        if self.mistake == "wrong shape announced":
            return y.T, x
        if self.mistake == "forward is no pair":
            return y
        return y, x

    def backward(self, params, saved, delta) -> Any:
        mistake, W = self.mistake, params["W"]
        delta_x = delta @ (W if mistake == "transposed" else W.T)
        rows, h = delta.reshape(-1, self.width), saved.reshape(-1, saved.shape[-1])
        bias, weight = rows, rows
        if mistake == "sign":
            weight = -rows
        if mistake == "factor":
            weight = 2 * rows
        if mistake == "bias dropped":
            bias = jnp.zeros_like(rows)
        if mistake == "bias counts":
            bias = jnp.ones_like(rows)
        if mistake == "positions reversed":
            weight = rows[::-1]
        if mistake == "position dropped":
            weight = rows.at[0].set(0)
        if mistake == "mean over positions":
            weight = rows / len(rows)
        if mistake == "zero":
            delta_x = jnp.zeros_like(delta_x)
        if mistake == "NaN":
            delta_x = delta_x * jnp.nan
        if mistake == "wrong dtype":
            delta_x = delta_x.astype(jnp.float16)
        if mistake == "delta_x None":
            delta_x = None
        if mistake == "weight transposed":
            weight, h = h, rows
        if mistake == "backward is no pair":
            return delta_x
        if mistake == "raw arrays":
            return delta_x, {"W": h.T @ rows, "b": rows.sum(0)}
        if mistake == "raises":
            raise RuntimeError("not written yet")
        pairs = {"W": Outer(h, weight, W.shape), "b": Shift(bias, (self.width,))}
        if mistake == "pair missing":
            del pairs["b"]
        return delta_x, pairs


@dataclass(frozen=True)
class MyTanh(Layer):
    """An activation with a choice of mistakes."""

    mistake: str = ""
    uses_key = False

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return jnp.tanh(x), (x if self.mistake == "at the input" else jnp.tanh(x))

    def backward(self, params, saved, delta):
        y = jnp.tanh(saved) if self.mistake == "at the output" else saved
        delta_x = delta * (1 - y * y)
        if self.mistake == "missing":
            delta_x = delta
        if self.mistake == "reversed":
            delta_x = delta_x[::-1]
        if self.mistake == "rolled":
            delta_x = jnp.roll(delta_x, 1, 0)
        if self.mistake == "not linear":
            delta_x = delta_x * jnp.abs(delta)
        return delta_x, ()


@dataclass(frozen=True)
class MySoftmax(Layer):
    """A softmax without its second term, or with a backward that returns zero."""

    mistake: str
    uses_key = False

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        y = jax.nn.softmax(x)
        return y, y

    def backward(self, params, saved, delta):
        if self.mistake == "zero":
            return jnp.zeros_like(delta), ()
        if self.mistake == "diagonal":
            return saved * (1 - saved) * delta, ()
        return saved * delta, ()


@dataclass(frozen=True)
class MyMean(Layer):
    """The mean over positions, whose backward forgets to divide."""

    uses_key = False

    def init(self, key, shape):
        return (), shape[1:]

    def forward(self, params, x, key):
        return x.mean(0), Static(x.shape)

    def backward(self, params, saved, delta):
        return jnp.broadcast_to(delta, saved.value), ()


MISTAKES = [
    # the layer, the shape of its input, the law that fails, words of the diagnosis
    (MyDense(3, "factor"), (7, 5), "= vjp", "constant factor 2"),
    (MyDense(3, "sign"), (7, 5), "= vjp", "sign"),
    (
        MyDense(3, "transposed"),
        (7, 5),
        "runs",
        "transposed: backward runs, with the right shape, on the transpose of params['W']",
    ),
    (MyDense(5, "transposed"), (7, 5), "= vjp", "transposed: params['W'] is used where its transpose belongs"),
    (MyDense(3, "weight transposed"), (7, 5), "tree", None),
    (MyDense(5, "weight transposed"), (7, 5), "= vjp", "transposed: axes"),
    (MyDense(3, "bias dropped"), (7, 5), "= vjp", "zero"),
    (MyDense(3, "bias counts"), (5,), "= vjp", "δ left out"),
    (MyDense(3, "positions reversed"), (7, 5), "= vjp", "δ reversed"),
    (MyDense(3, "mean over positions"), (7, 5), "= vjp", "1/7, and 7 is the size of axis 0 of one input"),
    (MyDense(3, "zero"), (7, 5), "= vjp", "zero"),
    (MyDense(3, "NaN"), (7, 5), "= vjp", "only NaN"),
    (MyDense(3, "wrong dtype"), (7, 5), "dtypes", None),
    (MyDense(3, "pair missing"), (7, 5), "tree", "no pair for params['b']"),
    (MyDense(3, "raw arrays"), (7, 5), "tree", None),
    (MyDense(3, "delta_x None"), (7, 5), "protocol", None),
    (MyDense(3, "wrong shape announced"), (7, 5), "shapes", None),
    (MyDense(3, "forward is no pair"), (7, 5), "protocol", None),
    (MyDense(3, "backward is no pair"), (7, 5), "protocol", None),
    (MyDense(3, "raises"), (7, 5), "runs", None),
    (MyTanh("missing"), (7,), "= vjp", "θ′ is missing"),
    (MyTanh("at the output"), (7,), "= vjp", "θ′ at the wrong argument: at the output y"),
    (MyTanh("at the input"), (7,), "= vjp", "θ′ at the wrong argument: backward is right if it is given y"),
    (MyTanh("reversed"), (7, 5), "= vjp", "reverse order"),
    (MyTanh("rolled"), (7, 5), "= vjp", "rolled by 1"),
    (MyTanh("not linear"), (7,), "linear in δ", None),
    (MySoftmax("zero"), (7,), "= vjp", "zero"),
    (MySoftmax("second term"), (7,), "= vjp", "a dropped term: found = y∘δ"),
    (MySoftmax("diagonal"), (7,), "= vjp", "only the diagonal"),
    (MyMean(), (7, 3), "= vjp", "factor 7, which is the size of axis 0 of one input"),
]


@pytest.mark.parametrize(
    ("layer", "shape", "law", "words"), MISTAKES, ids=lambda v: repr(v) if isinstance(v, Layer) else ""
)
def test_a_planted_mistake_is_caught_and_named(layer, shape, law, words):
    report = jbp.check.layer(layer, shape, differences=False)
    failed = {entry.law for entry in report.failures}
    assert not report.passed and law in failed, str(report)
    if words is not None:
        assert any(words in (entry.diagnosis or "") for entry in report.failures), str(report)
    with pytest.raises(CheckFailed):
        report.raise_if_failed()


@pytest.mark.parametrize("layer", [MyDense(3), MyTanh()])
def test_the_same_layers_without_a_mistake_pass(layer):
    jbp.check.layer(layer, (7, 5)).raise_if_failed()


def test_finite_differences_catch_a_mistake_alone():
    report = jbp.check.layer(MyDense(3, "factor"), (7, 5))
    caught = [e for e in report.failures if e.oracle == "finite differences"]
    assert [e.path for e in caught] == ["params['W']"] and "factor 2" in (caught[0].diagnosis or "")


@dataclass(frozen=True)
class Exchanged(MyDense):
    """A dense layer of width 1 with h for δ and δ for h: h ⊗ δ of a weight [i, 1] is the same both ways."""

    def backward(self, params, saved, delta):
        delta_x, pairs = super().backward(params, saved, delta)
        pair = pairs["W"]
        return delta_x, pairs | {"W": Outer(pair.delta, pair.h, pair.shape)}


@dataclass(frozen=True)
class ExchangedGain(Layer):
    """A gain with h for δ and δ for h: h∘δ = δ∘h."""

    uses_key = False

    def init(self, key, shape):
        return {"g": jnp.ones(shape[-1:])}, shape

    def forward(self, params, x, key):
        return jnp.broadcast_to(params["g"], x.shape) * x, x

    def backward(self, params, saved, delta):
        gain = params["g"]
        return jnp.broadcast_to(gain, delta.shape) * delta, {"g": Scale.of(delta, saved, gain.shape)}


@pytest.mark.parametrize("layer", [Exchanged(1), ExchangedGain()], ids=["Outer", "Scale"])
@pytest.mark.parametrize("shape", [(7,), (2, 7)])
def test_a_pair_with_h_and_delta_exchanged_is_caught_though_its_gradient_is_right(layer, shape):
    report = jbp.check.layer(layer, shape, differences=False)
    assert report.failures[0].law == "h free of δ" and "exchanged: h follows δ" in (report.failures[0].diagnosis or "")
    assert {entry.law for entry in report.failures} <= {"h free of δ", "gauss_newton", "kronecker"}


def _a_bit_more(function):
    """A statistic that is wrong in the ninth digit."""
    return lambda *args: jax.tree.map(lambda a: a * (1 + 1e-9), function(*args))


@pytest.mark.parametrize(
    ("law", "where", "name"),
    [
        ("per_example", stats, "per_example"),
        ("norms", stats, "squared_norms"),
        ("second_moment", stats, "second_moment"),
        ("gauss_newton", laws_of_statistics, "diagonal_over"),
        ("kronecker", laws_of_statistics, "factors_over"),
    ],
)
def test_each_law_of_the_statistics_catches_a_wrong_statistic(law, where, name, monkeypatch):
    net = jbp.serial(jbp.Dense(3), jbp.repeat(jbp.Dense(3), 2))
    monkeypatch.setattr(where, name, _a_bit_more(getattr(where, name)))
    assert {entry.law for entry in jbp.check.layer(net, (5,), differences=False).failures} == {law}


def test_the_statistics_take_one_program(monkeypatch):
    programs = []
    right = laws_of_statistics.compiled
    monkeypatch.setattr(laws_of_statistics, "compiled", lambda f: programs.append(f) or right(f))
    report = jbp.check.layer(jbp.serial(jbp.Dense(3), jbp.Dropout(0.3), jbp.Dense(2)), (2, 5), differences=False)
    assert len(programs) == 1 and {e.verdict for e in report.entries if e.law == "kronecker"} == {"skip"}
    jbp.check.layer(jbp.tanh, (5,), differences=False)
    assert len(programs) == 1  # without parameters, none


# -- state, keys, kinks -----------------------------------------------------------------------------------------------

_LEAK = {}


@dataclass(frozen=True)
class Impure(Layer):
    """Keeps its last input outside; or changes its parameters; or draws from numpy."""

    how: str
    uses_key = False

    def init(self, key, shape):
        return {"g": jnp.ones(shape)}, shape

    def forward(self, params, x, key):
        _LEAK["x"] = x
        if self.how == "draws":
            x = x * float(np.random.default_rng().normal())
        return params["g"] * x, {"x": x}

    def backward(self, params, saved, delta):
        x = _LEAK["x"] if self.how == "leaks" else saved.pop("x") if self.how == "takes apart" else saved["x"]
        pair = Scale(x[None], delta[None], x.shape)
        if self.how == "replaces":
            params["g"] = params["g"] + 0
        return params["g"] * delta, {"g": pair}


@pytest.mark.parametrize("how", ["leaks", "takes apart", "draws", "replaces"])
def test_state_is_caught(how):
    report = jbp.check.layer(Impure(how), (7,), differences=False)
    assert report.failures and {e.law for e in report.failures} & {"pure", "runs", "jit = eager"}, str(report)


@dataclass(frozen=True)
class Noise(Layer):
    """Adds noise, and says that it uses no key."""

    uses_key = False

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return x if key is None else x + jax.random.normal(key, x.shape, x.dtype), ()

    def backward(self, params, saved, delta):
        return delta, ()


@dataclass(frozen=True)
class DrawnTwice(Layer):
    """y = sin(x + noise): draws its noise again on the way back, in float32 whatever x is."""

    uses_key = True

    def init(self, key, shape):
        return (), shape

    def noisy(self, x, key):
        return x if key is None else x + jax.random.normal(key, x.shape, jnp.float32).astype(x.dtype)

    def forward(self, params, x, key):
        return jnp.sin(self.noisy(x, key)), (x, key)

    def backward(self, params, saved, delta):
        return delta * jnp.cos(self.noisy(*saved)), ()


def test_noise_in_float32_inside_float64_is_no_mistake_unhurried():
    """It would be, if the layers of others were compiled in the haste that serves jbp's own."""
    jbp.check.layer(DrawnTwice(), (3, 5), differences=False).raise_if_failed()


def test_a_layer_that_looks_at_its_key_must_say_so():
    report = jbp.check.layer(Noise(), (7,), differences=False)
    assert report.diagnosis == "uses_key must be True"


def test_a_kink_is_moved_away_from_or_reported_never_passed_over():
    # Autodiff of max(0, s) gives 1/2 there, jbp 0: the point decides nothing.
    report = jbp.check.layer(jbp.relu, x=jnp.zeros((2, 3)), differences=False).raise_if_failed()
    assert "kink" in report.entries[0].note

    def bwd(x, delta):
        return (jnp.where(x > 0, delta, jnp.zeros_like(delta)),)

    def ramp(x):
        return jnp.maximum(x, jnp.zeros_like(x))

    x = jnp.arange(5.0) - 2
    jbp.check.vjp(ramp, lambda x: (ramp(x), x), bwd, x).raise_if_failed()
    assert not jbp.check.vjp(ramp, lambda x: (ramp(x), x), lambda x, d: (2 * bwd(x, d)[0],), x).passed

    @dataclass(frozen=True)
    class Saw(Layer):
        """Kinks everywhere: no point is away from one."""

        uses_key = False

        def init(self, key, shape):
            return (), shape

        def forward(self, params, x, key):
            return jnp.abs(x * 1e6 - jnp.round(x * 1e6)) / 1e6, jnp.sign(x * 1e6 - jnp.round(x * 1e6))

        def backward(self, params, saved, delta):
            return saved * delta, ()

    report = jbp.check.layer(Saw(), (5,))
    assert [e.diagnosis for e in report.failures if e.oracle == "finite differences"] == ["kink"]


@dataclass(frozen=True)
class MyRelu(Layer):
    """A rectifier that is right away from 0, with a choice of mistakes at it."""

    mistake: str = ""
    uses_key = False

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return jnp.maximum(x, jnp.zeros_like(x)), x

    def backward(self, params, saved, delta):
        x, right = saved, jnp.where(saved > 0, delta, jnp.zeros_like(delta))
        return {
            "": right,
            "0/0": delta * jnp.maximum(x, jnp.zeros_like(x)) / x,
            "huge slope": jnp.where(x == 0, 1e6 * delta, right),
            "all wrong": jnp.where((x == 0).any(), 3 * delta, right),
        }[self.mistake], ()


@pytest.mark.parametrize("mistake", ["0/0", "huge slope", "all wrong"])
def test_a_kink_is_no_excuse_for_nan_or_for_what_no_side_of_it_has(mistake):
    x = jax.random.normal(jax.random.key(0), (3, 5)).at[:2, 0].set(0.0)
    jbp.check.layer(MyRelu(), x=x, differences=False).raise_if_failed()
    report = jbp.check.layer(MyRelu(mistake), x=x, differences=False)
    assert report.failures and all(e.law != "point" for e in report.failures), str(report)
    assert jbp.check.layer(MyRelu(mistake), (5,), differences=False).passed  # nothing shows elsewhere


# -- what normals alone do not reach: small gradients, large inputs, weights ------------------------------------------


@dataclass(frozen=True)
class Small(Layer):
    """c tanh(x), whose backward has the other sign in one dtype."""

    factor: float
    wrong: str = ""
    uses_key = False

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return self.factor * jnp.tanh(x), x

    def backward(self, params, saved, delta):
        factor = -self.factor if saved.dtype == self.wrong else self.factor
        return factor * delta * (1 - jnp.tanh(saved) ** 2), ()


@pytest.mark.parametrize(("factor", "dtype"), [(1e-7, "float32"), (0.05, "bfloat16")])
def test_a_gradient_small_beside_its_delta_is_held_to_its_own_size(factor, dtype):
    for wrong in ("", dtype):
        report = jbp.check.layer(Small(factor, wrong), (3, 5), dtype=dtype, differences=False)
        assert report.passed == (wrong == ""), str(report)


@dataclass(frozen=True)
class IntoSoftmax(MyDense):
    """Dense and softmax in one, without keeping anything apart: the bias's gradient adds up to 0 but for rounding."""

    def forward(self, params, x, key):
        y = jax.nn.softmax(x @ params["W"] + params["b"].sum(keepdims=True))
        return y, (x, y)

    def backward(self, params, saved, delta):
        x, y = saved
        delta_s = y * (delta - (y * delta).sum(-1, keepdims=True))
        pairs = {"W": Outer(x[None], delta_s[None], params["W"].shape)}
        total = jnp.broadcast_to(delta_s.sum(), (1, self.width))
        return delta_s @ params["W"].T, pairs | {"b": Shift(total, (self.width,))}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_of_rounding_alone_is_not(dtype):
    jbp.check.layer(IntoSoftmax(3), (7,), dtype=dtype, differences=False).raise_if_failed()


@dataclass(frozen=True)
class Far(Layer):
    """Right at normal inputs only: exp overflows in its backward, or it gives nothing beyond 4."""

    how: str
    uses_key = False

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return jax.nn.sigmoid(x), x

    def backward(self, params, saved, delta):
        e = jnp.exp(-saved if self.how == "overflows" else -jnp.abs(saved))
        right = delta * e / (1 + e) ** 2
        return jnp.where(jnp.abs(saved) > 4, jnp.zeros_like(delta), right) if self.how == "cut" else right, ()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_inputs_are_large_too(dtype):
    for how in ("", "overflows", "cut"):
        report = jbp.check.layer(Far(how), (3, 5), dtype=dtype, differences=False)
        assert report.passed == (how == ""), str(report)


@dataclass(frozen=True)
class WrongCentre(Centre):
    """Right without weights only."""

    def backward(self, params, saved, delta):
        return delta - jnp.broadcast_to(delta.mean(0), delta.shape), ()


def test_a_layer_that_couples_the_batch_is_given_weights():
    jbp.check.layer(Centre(), (5,), differences=False).raise_if_failed()
    report = jbp.check.layer(WrongCentre(), (5,), differences=False)
    assert {e.law for e in report.failures} == {"= vjp, with weights"}, str(report)
