"""Small convolutional nets through everything that jbp makes of a net: each against `jax.grad` of a plain forward pass, or
against the road that goes one by one."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, NetCase, drawn, every_layer
from oracles import assert_close, compiled, plain, plain_errors, plain_value
from test_curvature import compare, expected, ours, problem
from test_in_place import OPTIMISERS, same, step
from test_private import BOUND, clipped_one_by_one, of_each
from test_rules import Same, bound, by_rule
from test_trace import assert_every_formula_is_true, assert_gradients_are_there

import jbp
from jbp import checkpoint, losses, stats
from jbp.pairs import Outer, Window, is_pair
from jbp.private import clipped_sum
from jbp.rules import DirectFeedbackAlignment, FeedbackAlignment, KolenPollack, SignSymmetry

LOSS = losses.l2_loss
KEY = jax.random.key(3)
END = (jbp.GlobalPool(), jbp.Dense(3))
DEPTHWISE = jbp.residual(jbp.serial(jbp.Conv(4, 3, groups=4), jbp.RMSNorm(), jbp.relu, jbp.Conv(4, 1)))
NETS = {
    case.name: case
    for case in (
        NetCase(
            "like LeNet",
            jbp.serial(
                *(jbp.Conv(3, 3), jbp.tanh, jbp.MaxPool(2), jbp.Conv(4, (2, 3), padding="valid"), jbp.relu),
                *(jbp.AvgPool(2, 1), jbp.Flatten(), jbp.Dense(5), jbp.tanh, jbp.Dense(3)),
            ),
            (6, 9, 2),
            True,
        ),
        NetCase(
            "a signal with norms",
            jbp.serial(
                *(jbp.Conv(4, 3, 2), jbp.LayerNorm(0.1), jbp.gelu, jbp.Conv(6, 2, dilation=2, groups=2)),
                *(jbp.GroupNorm(2, 0.1), jbp.tanh, jbp.Reshape((3, 10)), *END),
            ),
            (9, 2),
            True,
        ),
        NetCase(
            "depthwise residual in repeat",
            jbp.serial(jbp.Conv(4, 2, 2), jbp.repeat(DEPTHWISE, 2), *END),
            (5, 7, 2),
            True,
        ),
        NetCase("tied, images of one size", jbp.tied(jbp.serial(*2 * (jbp.Conv(2, 3), jbp.tanh), *END), {2: 0}), (5, 3, 2), True),
        NetCase(
            "tied, images of two sizes",
            jbp.tied(jbp.serial(jbp.Conv(2, 3), jbp.tanh, jbp.AvgPool(2), jbp.Conv(2, 3), *END), {3: 0}),
            (5, 3, 2),
            True,
        ),
        NetCase(
            "branches",
            jbp.serial(
                jbp.branch(jbp.Conv(2, 3), jbp.MaxPool(3, 1, "same"), jbp.Conv(3, 1), join="concat"),
                jbp.branch(jbp.Conv(4, 3, 2), jbp.serial(jbp.AvgPool(2, 2, "same"), jbp.Conv(4, 1))),
                jbp.tanh,
                *END,
            ),
            (5, 3, 2),
            True,
        ),
        NetCase(
            "a kernel tied in a stack",
            jbp.serial(jbp.repeat(jbp.tied(jbp.serial(jbp.Conv(2, 3), jbp.tanh, jbp.Conv(2, 3)), {(2, "weight"): (0, "weight")}), 2), *END),
            (5, 2),
            True,
        ),
    )
}
EVERY = pytest.mark.parametrize("name", NETS)


@EVERY
def test_gradients_norms_clipping_and_moments_are_those_of_the_examples(name: str):
    """One program, for they share the examples' gradients: by the plain forward pass, one by one."""
    case = NETS[name]
    params, x, y, _ = drawn(case)
    weights = jnp.asarray(np.random.default_rng(7).uniform(0.1, 2, BATCH))

    def both(params: Any, x: Any, y: Any, weights: Any) -> Any:
        value, pairs = jbp.value_and_pairs(case.net, LOSS, params, x, y)
        each = of_each(case.net, params, x, y)
        flat = jnp.concatenate([g.reshape(BATCH, -1) for g in jax.tree.leaves(each)], 1)
        norms, clipped = clipped_one_by_one(each, weights)
        found = {
            "value and gradient": jbp.value_and_grad(case.net, LOSS)(params, x, y, weights=weights),
            "contract": jbp.contract(pairs),
            "per example": stats.per_example(pairs),
            "norms": stats.norms(pairs),
            "gram": stats.gram(pairs),
            "second moment": stats.second_moment(pairs),
            "variance": stats.variance(pairs),
            **{f"clipped, lean {lean}": clipped_sum(case.net, LOSS, params, x, y, BOUND, weights=weights, lean=lean)[1:]
               for lean in (False, True)},
        }  # fmt: skip
        known = {
            "value and gradient": jax.value_and_grad(lambda p: plain_value(case.net, LOSS, p, x, y, None, weights))(params),
            "contract": jax.tree.map(lambda g: g.mean(0), each),
            "per example": each,
            "norms": norms,
            "gram": flat @ flat.T,
            "second moment": jax.tree.map(lambda g: jnp.square(g).mean(0), each),
            "variance": jax.tree.map(lambda g: g.var(0, ddof=1), each),
            "clipped, lean False": (norms, clipped),
            "clipped, lean True": (norms, clipped),
        }
        return found, known

    found, known = compiled(both)(params, x, y, weights)
    for what, tree in found.items():
        try:
            assert_close(tree, known[what], "net")
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from None


@EVERY
def test_curvature_is_that_of_explicit_jacobians_and_hessians(name: str):
    case = NETS[name]
    args = problem(case, LOSS)
    wanted = compiled(partial(expected, case.net, LOSS))(*args, KEY)
    compare(compiled(partial(ours, case.net, LOSS, False))(*args, KEY), wanted, jnp.float64, "net")


@EVERY
def test_every_number_of_a_trace_is_true_and_its_gradients_are_those_of_the_net(name: str):
    case = NETS[name]
    params, x, y, _ = drawn(case)
    found = jbp.trace(case.net, LOSS, params, x[0], y[0])
    assert_every_formula_is_true(found)
    if "tied" not in name:
        assert_gradients_are_there(found, compiled(jbp.value_and_grad(case.net, LOSS))(params, x[:1], y[:1])[1])


def one_step(case: NetCase, optimizer: Any) -> Any:
    """(params, state) after one step, the usual way and in place, in one program."""
    params, x, y, _ = drawn(case)

    def run(params: Any, x: Any, y: Any) -> Any:
        return [step(case.net, optimizer, in_place)(params, optimizer.init(params), x, y) for in_place in (False, True)]

    return compiled(run)(params, x, y)


@EVERY
def test_a_step_in_place_is_the_usual_one(name: str):
    usual, found = one_step(NETS[name], OPTIMISERS["heavy ball"])
    error = same(found, usual)
    if "repeat" not in repr(NETS[name].net):
        assert error == 0  # to the bit


@pytest.mark.parametrize("rule", [FeedbackAlignment(), DirectFeedbackAlignment(), SignSymmetry(), KolenPollack()], ids=repr)
def test_every_rule_runs_through_every_net_and_leaves_the_last_layers_gradient(rule: Any):
    for name, case in NETS.items():
        params, x, y, _ = drawn(case)

        def found(params: Any, x: Any, y: Any, case: Any = case) -> Any:
            own, state = bound(rule, case.net, params, x)
            return by_rule(own, state, case.net, params, x, y)

        assert jax.eval_shape(found, params, x, y) == jax.eval_shape(lambda p: p, params), name
