"""Small convolutional nets through everything that jbp makes of a net: each against `jax.grad` of a plain forward pass,
or against the road that goes one by one."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, NetCase, drawn, every_layer
from oracles import assert_close, assert_same, compiled, plain, plain_value
from test_curvature import compare, expected, ours, problem
from test_in_place import OPTIMISERS, same, step
from test_private import BOUND, clipped_one_by_one, of_each
from test_rules import Same, bound, by_rule
from test_trace import assert_every_formula_is_true, assert_gradients_are_there

import jbp
from jbp import checkpoint, losses, stats
from jbp.pairs import Window, is_pair
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
        NetCase(
            "tied, images of one size",
            jbp.tied(jbp.serial(*2 * (jbp.Conv(2, 3), jbp.tanh), *END), {2: 0}),
            (5, 3, 2),
            True,
        ),
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
            jbp.serial(
                jbp.repeat(
                    jbp.tied(jbp.serial(jbp.Conv(2, 3), jbp.tanh, jbp.Conv(2, 3)), {(2, "weight"): (0, "weight")}), 2
                ),
                *END,
            ),
            (5, 2),
            True,
        ),
    )
}
EVERY = pytest.mark.parametrize("name", NETS)
DEEPEST = "depthwise residual in repeat"


def lean(*names: str) -> Any:
    """Every net, all but these in `make soak`: a net's program takes seconds to compile."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in names else [pytest.mark.soak]) for name in NETS]
    )


@EVERY
def test_gradients_norms_clipping_and_moments_are_those_of_the_examples(name: str):
    """One program, for they share the examples' gradients: by the plain forward pass, one by one."""
    case = NETS[name]
    params, x, y, _ = drawn(case)
    weights = jnp.asarray(np.random.default_rng(7).uniform(0.1, 2, BATCH))

    def both(params: Any, x: Any, y: Any, weights: Any) -> Any:
        _, pairs = jbp.value_and_pairs(case.net, LOSS, params, x, y)
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
            "value and gradient": jax.value_and_grad(lambda p: plain_value(case.net, LOSS, p, x, y, None, weights))(
                params
            ),
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


@lean(DEEPEST, "tied, images of two sizes")
def test_curvature_is_that_of_explicit_jacobians_and_hessians(name: str):
    case = NETS[name]
    args = problem(case, LOSS)
    wanted = compiled(partial(expected, case.net, LOSS))(*args, KEY)
    compare(compiled(partial(ours, case.net, LOSS, False))(*args, KEY), wanted, jnp.float64, "net")


@lean("like LeNet")
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


RULES = [FeedbackAlignment(), DirectFeedbackAlignment(), SignSymmetry(), KolenPollack()]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_rule_runs_through_every_net(rule: Any):
    for name, case in NETS.items():
        params, x, y, _ = drawn(case)

        def found(params: Any, x: Any, y: Any, case: Any = case) -> Any:
            own, state = bound(rule, case.net, params, x)
            return by_rule(own, state, case.net, params, x, y)

        assert jax.eval_shape(found, params, x, y) == jax.eval_shape(lambda p: p, params), name


def test_the_kernels_themselves_as_a_rule_give_backpropagation_to_the_bit():
    case = NETS[DEEPEST]
    params, x, y, _ = drawn(case)
    own, _ = bound(Same(), case.net, params, x)
    found = compiled(lambda params: by_rule(own, (), case.net, params, x, y))(params)
    assert_same(found, compiled(lambda params: jbp.value_and_grad(case.net, LOSS)(params, x, y)[1])(params))


def test_direct_feedback_alignment_gives_norms_no_road_of_their_own():
    """Between two convolutions δ comes from the output once, and goes through activation and norm as ever."""
    above = jbp.serial(jbp.GroupNorm(2, 0.1), jbp.tanh)
    net = jbp.serial(jbp.Conv(4, 3), above, jbp.Conv(2, 3), jbp.LayerNorm(0.1), jbp.GlobalPool(), jbp.Dense(3))
    case = NetCase("direct", net, (5, 2))
    params, x, y, _ = drawn(case)

    def both(params: Any, x: Any, y: Any) -> Any:
        own, state = bound(DirectFeedbackAlignment(), net, params, x)
        error = (plain(net, params, x) - y) / BATCH
        s = plain(net.layers[0], params[0], x)
        delta = jax.vjp(lambda s: plain(above, params[1], s), s)[1]((error @ state["2"]).reshape(s.shape))[0]
        gradient = jax.vjp(lambda p: plain(net.layers[0], p, x), params[0])[1](delta)[0]
        return state, by_rule(own, state, net, params, x, y)[0], gradient

    state, found, expected = compiled(both)(params, x, y)
    assert list(state) == ["0", "2", "5"]
    assert_close(found, expected, "net")


def test_factors_of_a_kernel_are_those_of_its_windows_one_by_one():
    """Of every use of every kernel: `rows` unfolds what the kernel sees into a weight used at each site."""
    for name in ("like LeNet", "tied, images of two sizes"):
        case = NETS[name]
        params, x, y, _ = drawn(case)
        pairs = compiled(lambda p, case=case, x=x, y=y: jbp.value_and_pairs(case.net, LOSS, p, x, y)[1])(params)
        windows = [pair for pair in jax.tree.leaves(pairs, is_leaf=lambda a: isinstance(a, Window)) if is_pair(pair)]
        assert windows
        for window in windows:
            (rows,) = window.rows()
            for sharing in ("expand", "reduce"):
                found, expected = (stats.kronecker(pair, sharing=sharing) for pair in (window, rows))
                assert_close((found.a, found.g), (expected.a, expected.g), "net")


def test_runs_of_many_seeds_are_their_single_runs():
    case = NETS[DEEPEST]
    _, x, y, _ = drawn(case)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4}
    many = jbp.fit_many(case.net, LOSS, jbp.optim.sgd(0.01), (x, y), seeds=(3, 5), **options)
    for r, seed in enumerate((3, 5)):
        single = jbp.fit(case.net, LOSS, jbp.optim.sgd(0.01), (x, y), seed=seed, **options)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), many.params_of(r), single.params)


def test_training_in_place_is_the_usual_one():
    case = NETS["like LeNet"]
    _, x, y, _ = drawn(case)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4}
    runs = [jbp.fit(case.net, LOSS, OPTIMISERS["heavy ball"], (x, y), in_place=i, **options) for i in (False, True)]
    assert_same(runs[0].params, runs[1].params)


def test_private_training_takes_a_net_of_kernels_and_norms():
    pytest.importorskip("dp_accounting")
    case = NETS["a signal with norms"]
    _, x, y, _ = drawn(case)
    found = jbp.fit(
        case.net, LOSS, jbp.optim.sgd(0.1), (x, y), epochs=1, batch_size=4, private=jbp.Private(1.0, 1.0, 1e-3)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))


def test_every_net_comes_back_from_its_file(tmp_path):
    for name, case in NETS.items():
        params, *_ = drawn(case)
        path = tmp_path / f"{name}.safetensors"
        checkpoint.save(path, params, checkpoint.describe(case.net))
        tree, description = checkpoint.load(path)
        net = checkpoint.net_from(json.loads(json.dumps(description)))
        assert net == case.net and hash(net) == hash(case.net)
        assert {type(layer) for layer in every_layer(net)} == {type(layer) for layer in every_layer(case.net)}
        assert_same(tree, params)
