# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
"""Kernels that carry δ back by a learning rule, and kernels used in two places."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import PLAIN, Gain
from oracles import assert_close, assert_same, plain, whole
from test_rules import KEY, N, bound, found, random, randomised
from test_window_stats import WINDOWS, seen, window

import jbp
from jbp import stats
from jbp.pairs import Sum, Window, merge
from jbp.rules import DirectFeedbackAlignment, FeedbackAlignment, KolenPollack, SignSymmetry
from jbp.stats.norms import most

SPACE = (5, 4, 2)
NET = jbp.serial(
    jbp.Conv(4, (3, 2)), jbp.GroupNorm(2), jbp.tanh, jbp.Conv(4, 3, stride=2, groups=2), jbp.LayerNorm(), jbp.tanh,
    jbp.Flatten(), jbp.Dense(2),
)  # fmt: skip
PARAMS = randomised(jax.eval_shape(lambda: NET.init(KEY, SPACE)[0]))
X, Y = random(101, N, *SPACE), random(102, N, 2)


def one_after_another(net: Any, params: Any, x: Any, y: Any, road: Any) -> tuple[Any, ...]:
    """What a rule finds in a chain, by autodiff of each plain layer alone: its gradient at its δ, and `road(i, layer,
    e, delta)`, from which the δ at its input follows as `vjp` of the layer with the weights, or the δ, it answers."""
    hs = [x]
    for layer, p in zip(net.layers, params, strict=True):
        hs.append(PLAIN[type(layer)](layer, p, hs[-1], None))
    error = delta = (hs[-1] - y) / len(x)
    grads = []
    for i in reversed(range(len(params))):
        layer = net.layers[i]
        _, back = jax.vjp(
            partial(lambda p, h, layer: PLAIN[type(layer)](layer, p, h, None), layer=layer), params[i], hs[i]
        )
        grads.append(back(delta)[0])
        delta = road(i, layer, hs[i], error, delta)
    return tuple(reversed(grads))


@pytest.mark.parametrize("rule", [FeedbackAlignment(), KolenPollack(), SignSymmetry(), SignSymmetry("fixed")], ids=repr)
def test_a_rule_carries_delta_through_other_kernels(rule: Any):
    """Not through the forward ones, which a rule that knew dense weights alone would leave where they are."""
    state, ours = found(rule, NET, PARAMS, X, Y)
    own, _ = bound(rule, NET, PARAMS, X)
    weights = own.weights(PARAMS)
    assert [p["weight"] is not None for p in weights if p and "weight" in p] == [True] * 3
    back = rule.transport(weights, state)

    def road(i: int, layer: Any, h: Any, error: Any, delta: Any) -> Any:
        p = PARAMS[i]
        if isinstance(layer, jbp.Conv | jbp.Dense):
            assert back[i]["bias"] is None
            p = p | {"weight": back[i]["weight"]}
        return jax.vjp(lambda h: PLAIN[type(layer)](layer, p, h, None), h)[1](delta)[0]

    assert_close(ours, whole(partial(one_after_another, NET, road=road))(PARAMS, X, Y), "net")
    _, true = jbp.value_and_grad(NET, jbp.losses.l2_loss)(PARAMS, X, Y)
    for i, moved in ((0, True), (3, True), (7, False)):
        assert np.allclose(ours[i]["weight"], true[i]["weight"]) is not moved


def test_the_kernels_of_a_rule_start_at_the_size_of_the_forward_ones():
    """He's variance 2/(k·i/g), and not one of the whole space or of all groups."""
    net = jbp.serial(jbp.Conv(64, 3, groups=2), jbp.relu, jbp.GlobalPool(), jbp.Dense(2))
    params, _ = net.init(KEY, (4, 4, 32))
    for rule in (FeedbackAlignment(), KolenPollack()):
        state = bound(rule, net, params, jnp.zeros((1, 4, 4, 32)))[1]
        np.testing.assert_allclose(jnp.square(state[0]["weight"]).mean(), 2 / (9 * 16), rtol=0.05)
    weights = (params[0]["weight"],)
    v = SignSymmetry("fixed").transport(weights, SignSymmetry("fixed").init(KEY, weights))
    np.testing.assert_allclose(jnp.square(v[0]).mean(), 2 / (9 * 16), rtol=0.05)


def test_kolen_pollack_brings_two_kernels_together_at_its_rate():
    rule = KolenPollack(decay=0.1)
    own, state = bound(rule, NET, PARAMS, X)
    params, start = PARAMS, [PARAMS[i]["weight"] - state[i]["weight"] for i in (0, 3)]
    for step in range(3):
        updates, state = own.after(state, params, randomised(params, 50 + step))
        params = jax.tree.map(jnp.add, params, updates)
    assert_close([params[i]["weight"] - state[i]["weight"] for i in (0, 3)], [0.9**3 * a for a in start], "net")


def test_direct_feedback_alignment_gives_norms_no_road_of_their_own():
    """δ goes back through a norm as ever, from the road below the next layer that has a weight."""
    state, ours = found(DirectFeedbackAlignment(), NET, PARAMS, X, Y)
    assert {name: b.shape for name, b in state.items()} == {"0": (2, 40), "3": (2, 5 * 4 * 4), "7": (2, 3 * 2 * 4)}

    def road(i: int, layer: Any, h: Any, error: Any, delta: Any) -> Any:
        if isinstance(layer, jbp.Conv | jbp.Dense):
            return (error @ state[str(i)]).reshape(h.shape)
        return jax.vjp(lambda h: PLAIN[type(layer)](layer, PARAMS[i], h, None), h)[1](delta)[0]

    assert_close(ours, whole(partial(one_after_another, NET, road=road))(PARAMS, X, Y), "net")


@pytest.mark.parametrize("norm", [jbp.LayerNorm(), jbp.RMSNorm(), jbp.GroupNorm(1), jbp.BatchNorm(), Gain()], ids=repr)
def test_no_layer_without_a_weight_has_a_road(norm: Any):
    net = jbp.serial(jbp.repeat(jbp.serial(jbp.Conv(2, (3,)), norm, jbp.tanh), 2), jbp.Flatten(), jbp.Dense(2))
    params = jax.eval_shape(lambda: net.init(KEY, (5, 2))[0])
    own = DirectFeedbackAlignment().bind(
        net, params, jax.ShapeDtypeStruct((1, 5, 2), float), jbp.backprop.Trainable.of(None)
    )
    assert [name for name, _ in own.shapes] == ["0.0", "2"]


# Kernels used twice


def test_two_uses_of_a_kernel_join_as_images_and_never_as_space_or_examples():
    """With as many examples as pixels along each axis, where any other axis would fit too and answer wrongly."""
    one, two = window((3, 3), (5, 5), 2, 3), jax.tree.map(lambda a: a[::-1] ** 2, window((3, 3), (5, 5), 2, 3))
    assert one.h.shape == (5, 1, 5, 5, 2)
    both = merge(one, two)
    assert isinstance(both, Window) and both.h.shape == (5, 2, 5, 5, 2) and both.uses == one.uses + two.uses
    assert_close(both.total(), one.total() + two.total(), "layer")
    assert_close(stats.per_example(both), stats.per_example(one) + stats.per_example(two), "layer")
    assert_close(both.reach(), one.reach() + two.reach(), "layer")
    stacks = [jbp.Stack(jax.tree.map(lambda a: jnp.stack((a, a)), pair)) for pair in (one, two)]
    assert_same(merge(*stacks).pair.h[1], both.h)
    inside = jax.tree.map(lambda a: a[0], one).join(jax.tree.map(lambda a: a[0], two))
    assert_same(inside.h, both.h[0])  # in a layer there is no n


def test_uses_of_a_kernel_on_images_of_two_sizes_or_by_two_geometries_are_a_sum():
    """Their totals and gradients are the members', added up."""
    one = WINDOWS["2-D, strided"]
    others = [
        window((3, 2), (4, 5), 2, 3, stride=2),
        window((3, 2), (7, 6), 2, 3),
        window((3, 2), (7, 6), 2, 3, stride=2, dilation=2),
    ]
    for other in others:
        both = merge(one, other)
        assert isinstance(both, Sum) and both.uses == one.uses + other.uses
        assert_close(both.total(), one.total() + other.total(), "layer")
        gradients = stats.per_example(one) + stats.per_example(other)
        assert_close(stats.per_example(both), gradients, "layer")
        assert_close(stats.second_moment(both), jnp.square(gradients).mean(0), "net")
        assert_close(stats.norms(both), jnp.sqrt(jnp.square(gradients).sum((1, 2, 3, 4))), "net")
        assert_close(stats.project(both, both.total()), jnp.tensordot(gradients, both.total(), 4), "net")
        assert_close(both.reach(), one.reach() + other.reach(), "layer")
    three = merge(one, others[0], one)
    assert [pair.h.shape[1] for pair in three.pairs] == [2, 1]


@pytest.mark.parametrize("name", WINDOWS)
def test_uses_and_reach_of_a_kernel_are_those_of_what_it_sees(name: str):
    """T sites in all images; S = Σₜ ‖gₜ‖ of the gradient gₜ at each of them, which no cancelling makes smaller."""
    pair = WINDOWS[name]
    h, delta = (
        seen(pair),
        np.asarray(pair.delta).reshape(5, -1, pair.geometry.groups, pair.shape[-1] // pair.geometry.groups),
    )
    assert pair.uses == h.shape[1]
    each = np.linalg.norm(np.einsum("ntgx,ntgo->ntgxo", h, delta).reshape(5, pair.uses, -1), axis=2)
    np.testing.assert_allclose(pair.reach(), each.sum(1), rtol=1e-12)
    assert (np.asarray(stats.norms(pair)) <= each.sum(1) * (1 + 1e-12)).all()


def test_where_the_sites_of_a_kernel_cancel_clipping_takes_the_norm_as_large_as_it_can_be():
    """In float32, two uses of which the second takes away what the first gives: rounding hides what T sites' can."""
    pair = jax.tree.map(lambda a: a.astype(jnp.float32), WINDOWS["2-D, strided"])
    gone = merge(pair, Window(pair.h, -pair.delta, pair.shape, pair.geometry))
    assert_close(gone.reach(), 2 * pair.reach(), "layer")
    share = np.sqrt(most(gone)) / np.asarray(gone.reach())
    assert (share >= 32 * 2 * pair.uses * float(jnp.finfo(jnp.float32).eps) * (1 - 1e-5)).all()


def test_no_kernels_of_a_stack_are_contracted_as_the_groups_of_one_convolution():
    """Side by side, the four took 17 times as long as one after another."""
    one = window((3, 3), (5, 5), 2, 3)
    other = window((3, 3), (4, 5), 2, 3)
    for pair in (one, merge(one, other), jbp.Coupled(one, "[1]")):
        stack = jbp.Stack(jax.tree.map(lambda a: jnp.stack((a, 2 * a, -a)), pair))
        deep = jbp.Stack(jax.tree.map(lambda a: jnp.stack((a, a)), stack))
        program = str(jax.make_jaxpr(lambda pair: pair.total())(deep))
        assert "conv_general_dilated" in program and "feature_group_count=1" in program
        assert set(re.findall(r"feature_group_count=(\d+)", program)) == {"1"}
        assert_close(deep.total(), jnp.stack([jnp.stack([pair.total() * a for a in (1, 4, 1)])] * 2), "layer")


def test_a_kernel_tied_across_stacks_is_joined_layer_by_layer():
    """The uses' arrays have l and n in front, of which neither is space."""
    block = jbp.repeat(jbp.Conv(2, (3,)), 3)
    net = jbp.tied(
        jbp.serial(block, jbp.tanh, jbp.repeat(jbp.serial(jbp.tanh, jbp.Conv(2, (3,))), 3)),
        {(2, 1, "weight"): (0, "weight")},
    )
    params, x, y = randomised(jax.eval_shape(lambda: net.init(KEY, (5, 2))[0])), random(1, N, 5, 2), random(2, N, 5, 2)
    pairs = jbp.value_and_pairs(net, jbp.losses.l2_loss, params, x, y)[1]
    assert isinstance(pairs[0]["weight"].pair, Window) and pairs[0]["weight"].pair.h.shape == (3, N, 2, 5, 2)

    def mean_error(params: Any) -> Any:
        return jnp.square(plain(net, params, x) - y).sum(2).mean() / 2

    assert_close(jbp.contract(pairs), whole(jax.grad(mean_error))(params), "net")
