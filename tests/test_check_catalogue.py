"""What `jbp check` runs: the conventions at kinks, held exactly, and mistakes that only its newer items can see."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import SINGLE, Centre

import jbp
from jbp import combine, pairs
from jbp.check.catalogue import AT_ZERO, catalogue
from jbp.check.compiled import HASTE, accepted, compiled, hurried
from jbp.check.kinks import convention
from jbp.layers import Activation, LeakyRelu, Relu

ACTIVATIONS = [c.net for c in SINGLE if isinstance(c.net, Activation) and c.net != jbp.softmax]


@pytest.fixture(autouse=True)
def hurry():
    with hurried():
        yield


def run(name: str, dtype: str = "float64", differences: bool = False) -> jbp.check.Report:
    (item,) = (item for item in catalogue() if item.name == name)
    return item.run(dtype, 0, differences)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_each_activation_keeps_its_convention_at_its_kink(dtype):
    report = run("relu, leaky_relu and elu at 0", dtype).raise_if_failed()
    assert report.compared == 6 * len(AT_ZERO) and {e.level for e in report.entries} == {"EXACT"}


def test_what_has_a_kink_at_0_has_its_convention_in_the_table():
    x = jnp.array([[-1e-9], [1e-9]])
    for activation in ACTIVATIONS:
        below, above = jax.jvp(lambda x, a=activation: jbp.apply(a, (), x), (x,), (jnp.ones_like(x),))[1][:, 0]
        assert abs(below - above) < 1e-6 or activation in AT_ZERO, activation


class Half(Relu):
    """θ′(0) = ½."""

    def pull(self, saved, delta):
        return jnp.where(saved.array == 0, 0.5 * delta, super().pull(saved, delta))


class Above(LeakyRelu):
    """θ′(0) is the slope below."""

    def pull(self, saved, delta):
        return jnp.where(saved.array > 0, delta, self.negative_slope * delta)


@pytest.mark.parametrize(("layer", "right"), [(Half(), jbp.relu), (Above(0.2), LeakyRelu(0.2))])
def test_another_convention_at_the_kink_fails(layer, right):
    failed = [e.path for e in convention(layer, AT_ZERO[right], "float64", 0) if e.verdict == "fail"]
    # relu saves its output, 0 at every s below 0 too.
    assert failed and all("delta_x" in path for path in failed) and any("at 0:" in path for path in failed)


MOMENTUM: Any = sys.modules["jbp.optim.momentum"]


def late(schedule: Any) -> Any:
    return lambda steps: schedule(jnp.maximum(steps - 1, 0))


def test_items_beyond_the_plain_case_see_what_they_are_there_for(monkeypatch):
    wrong: list[tuple[str, Any, str, Any]] = [
        # the item, and the mistake planted
        ("a gain of one's own (pair Scale)", pairs.Scale, "total", lambda self, w=None: 2 * scale(self, w)),
        ("heavy_ball(schedule)", MOMENTUM, "rate_at", lambda rate, steps: rate_at(late(rate), steps)),
        ("value_and_grad: weights, NaN at weight 0, positions, frozen", sys.modules["jbp.backprop"], "weigh",
         lambda w, a: w.reshape((-1,) + (1,) * (a.ndim - 1)) * a),
    ]  # fmt: skip
    scale, rate_at = pairs.Scale.total, MOMENTUM.rate_at
    for name, owner, attribute, mistake in wrong:
        run(name).raise_if_failed()
        with monkeypatch.context() as patch:
            patch.setattr(owner, attribute, mistake)
            sys.modules["jbp.backprop"]._compiled.cache_clear()
            assert not run(name).passed, name
        sys.modules["jbp.backprop"]._compiled.cache_clear()


def test_repetitions_that_share_what_they_save_are_there():
    block = jbp.serial(jbp.Dense(5), jbp.tanh, jbp.Dense(3))
    net = combine.repeat(combine.serial(combine.residual(block), jbp.sigmoid), 3)
    assert repr(net) in {item.name for item in catalogue()}


def test_haste_is_for_where_it_was_asked_for_and_falls_back(monkeypatch):
    assert accepted("gpu") is None
    accepted.cache_clear()
    monkeypatch.setitem(HASTE, "xla_no_such_option", 1)
    assert "xla_no_such_option" not in (accepted("cpu") or {})
    assert compiled(lambda x: 2 * x)(jnp.ones(3)).sum() == 6
    accepted.cache_clear()


@pytest.mark.parametrize("name", ["squared_error", "l2_loss", "mean_squared_error", "sigmoid_binary_cross_entropy"])
def test_a_loss_of_a_scalar_output(name):
    report = jbp.check.loss(getattr(jbp.losses, name), ())
    assert report.passed, str(report)


def test_a_batch_coupled_net_is_checked_with_weights():
    net = jbp.serial(jbp.Dense(3), jbp.tanh, Centre(), jbp.Dense(2))
    params, _ = net.init(jax.random.key(0), (5,))
    x, y = jax.random.normal(jax.random.key(1), (7, 5)), jnp.ones((7, 2))
    report = jbp.check.gradient(net, jbp.losses.l2_loss, params, x, y, weights=jnp.arange(7.0) / 7)
    assert report.passed, str(report)
