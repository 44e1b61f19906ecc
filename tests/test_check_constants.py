"""What `jbp.check` makes of parameters that are held fixed, and of layers that couple the examples in training only."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import register_dataclass

import jbp
from jbp import losses
from jbp.layer import Layer
from jbp.pairs import Coupled, Scale, Shift, Stack, Sum
from jbp.paths import paths


@register_dataclass
@dataclass(frozen=True, eq=False)
class Held(Shift):
    """The pair of a parameter that is held fixed."""

    def total(self, weights: Any = None) -> Any:
        """0."""
        return jnp.zeros(self.shape, self.dtype)

    @property
    def constant(self) -> bool:
        """Yes."""
        return True


@register_dataclass
@dataclass(frozen=True, eq=False)
class Moved(Held):
    """One that has a gradient all the same."""

    def total(self, weights: Any = None) -> Any:
        """Σ δ."""
        return Shift.total(self, weights)


@dataclass(frozen=True, repr=False)
class Running(Layer):
    """y = gain∘(x − m): m the mean of the batch in training, and in evaluation a parameter that is held fixed."""

    pair: Any = Held
    through_mean: bool = True
    uses_key: ClassVar[bool | None] = False
    couples_batch: ClassVar[Any] = "training"

    def init(self, key: Any, shape: Any) -> Any:
        return {"gain": jnp.ones(shape), "mean": jnp.zeros(shape)}, shape

    def forward(self, params: Any, x: Any, key: Any, weights: Any = None, training: bool = False) -> Any:
        p = jnp.ones(len(x), x.dtype) if weights is None else weights
        p = p / p.sum()
        mean = jnp.einsum("n,nc->c", p.astype(x.dtype), x) if training else params["mean"]
        seen = x - mean[None]
        return params["gain"][None] * seen, (seen, p if training else None)

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        seen, p = saved
        d = params["gain"][None] * delta
        delta_x = d if p is None or not self.through_mean else d - p[:, None] * d.sum(0, keepdims=True)
        shape, uses = seen.shape[1:], delta[:, None]
        return delta_x, {"gain": Scale(seen[:, None], uses, shape), "mean": self.pair(uses, shape)}


NETS = {
    "alone": Running(),
    "under repeat": jbp.repeat(jbp.serial(Running(), jbp.tanh), 2),
    "above a layer": jbp.serial(jbp.Dense(3), Running(), jbp.tanh, jbp.Dense(2)),
}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_constants_are_held_fixed_in_every_law_in_both_modes(net):
    report = jbp.check.layer(net, (3,), batch=3).raise_if_failed()
    laws = {(e.law, e.path) for e in report.entries if e.verdict == "pass"}
    held = [path for law, path in laws if law == "constant"]
    assert held and {path.endswith("(key)") for path in held} == {False, True}
    for mode in ("", " (key)"):
        assert ("adjoint", f"(params, x){mode}") in laws
        steps = [e for e in report.entries if e.law == "derivative" and e.path.endswith(f"delta_x{mode}")]
        assert {(e.oracle, e.verdict) for e in steps} == {("finite differences", "pass"), ("complex step", "pass")}
    assert ("= vjp, with weights", "delta_x (key)") in laws and ("= vjp, with weights", "delta_x") not in laws
    # In evaluation nothing is coupled: every example by itself, and the statistics of what is no constant.
    assert {("vmap = loop", "delta_x"), ("= vjp, each example", _gain(net))} <= laws
    assert {path for law, path in laws if law == "norms"} == set(_gains(net))


def _gains(net: Any) -> list[str]:
    names = paths(net.init(jax.random.key(0), (3,))[0], "params")
    return [name for name in names if "mean" not in name]


def _gain(net: Any) -> str:
    return next(name for name in _gains(net) if "gain" in name)


@pytest.mark.parametrize("net", [jbp.repeat(Running(pair=Moved), 2), Running(pair=Moved)], ids=["stack", "alone"])
def test_a_constant_with_a_gradient_fails(net):
    failed = {e.law for e in jbp.check.layer(net, (3,), batch=3, differences=False).failures}
    assert failed == {"constant"}


def test_a_wrong_way_back_in_training_fails_though_no_key_is_needed():
    report = jbp.check.layer(Running(through_mean=False), (3,), batch=3)
    failed = {(e.law, e.path) for e in report.failures}
    assert failed and all("(key)" in path for _, path in failed)
    assert {law for law, _ in failed} >= {"= vjp", "= vjp, with weights", "adjoint", "derivative"}


def test_the_gradient_of_a_net_with_constants_is_that_of_the_rest():
    net, rng = NETS["above a layer"], np.random.default_rng(0)
    params, _ = net.init(jax.random.key(0), (3,))
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    for key in (None, 1):  # in evaluation and in training
        report = jbp.check.gradient(net, losses.l2_loss, params, x, y, key=key).raise_if_failed()
        assert [e.path for e in report.entries if e.law == "not trained"] == ["params[1]['mean']"]
        assert "params[1]['mean']" not in [e.path for e in report.entries if e.law == "derivative"]
    moved = dataclasses.replace(net, layers=(net.layers[0], Running(pair=Moved), *net.layers[2:]))
    report = jbp.check.gradient(moved, losses.l2_loss, params, x, y, differences=False)
    assert [(e.law, e.path) for e in report.failures] == [("not trained", "params[1]['mean']")]


def test_what_holds_a_constant_is_one():
    delta = jnp.ones((2, 1, 3))
    held, plain = Held(delta, (3,)), Shift(delta, (3,))
    stacked = [Stack(jax.tree.map(lambda a: jnp.stack([a, a]), pair)) for pair in (held, plain)]
    for yes, no in [
        (held, plain),
        stacked,
        (Coupled(held, "[1]"), Coupled(plain, "[1]")),
        (Sum.of(held), Sum.of(held, plain)),
    ]:
        assert yes.constant and not no.constant
