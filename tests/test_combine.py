"""Combinators: what they share among the layers inside, and that `repeat` is a `serial` that is compiled once."""

import math
from functools import cache, reduce
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import BATCH, NETS, SINGLE, TIES, Gain, NetCase, Table, drawn, every_layer
from oracles import assert_close, assert_same, compiled

import jbp
from jbp import combine, sinks, stats
from jbp.backprop import Trainable
from jbp.check.cases import put_at
from jbp.combine import Tied
from jbp.pairs import is_pair
from jbp.rules.names import rule_of
from jbp.rules.rule import Way

KEY = jax.random.key(2)
REPEATS = [case for case in NETS if isinstance(case.net, combine.Repeat)]


def unstacked(params, n):
    return tuple(jax.tree.map(lambda p, i=i: p[i], params) for i in range(n))


def stack(*arrays):
    return jnp.stack(arrays)


def passes(net, params, x, delta):
    """With a key, but in evaluation where the examples would be coupled."""
    output, saved = jbp.forward(net, params, x, None if net.couples_batch else KEY)
    delta_x, pairs = jbp.backward(net, params, saved, delta)
    return output, delta_x, pairs


@pytest.mark.parametrize("case", REPEATS, ids=lambda case: case.name)
def test_repeat_equals_serial_of_the_unstacked_layers(case):
    """Outputs, δ, every pair and every gradient. Both split a key alike, so with dropout too."""
    repeat, n = case.net, case.net.n
    serial = jbp.serial(*[repeat.layer] * n)
    params, x, delta, _ = drawn(case)

    def both(params, x, delta):
        ours = passes(repeat, params, x, delta)
        theirs = passes(serial, unstacked(params, n), x, delta)
        restacked = jax.tree.map(stack, *theirs[2])
        return (
            (*ours[:2], jax.tree.map(lambda s: s.pair, ours[2], is_leaf=is_pair), jbp.contract(ours[2])),
            (*theirs[:2], restacked, jax.tree.map(stack, *jbp.contract(theirs[2]))),
        )

    ours, theirs = compiled(both)(params, x, delta)
    assert_close(ours, theirs, "net")


def saved_arrays(net, shape):
    """How many numbers a forward pass keeps for one example of a batch of one."""
    params = jax.eval_shape(lambda k: net.init(k, shape)[0], KEY)
    saved = jax.eval_shape(lambda p, x: jbp.forward(net, p, x)[1], params, jnp.zeros((1, *shape)))
    return sum(leaf.size for leaf in jax.tree.leaves(saved))


@pytest.mark.parametrize(
    ("layer", "each", "once"),
    [
        (jbp.identity, 0, 0),
        (jbp.relu, 5, 0),
        (jbp.Dense(5), 5, 0),
        (jbp.serial(jbp.Dense(5), jbp.relu), 5, 5),  # the output is the next one's input, so only the last is extra
        (jbp.serial(jbp.Dense(5), jbp.tanh), 5, 5),
        (jbp.residual(jbp.serial(jbp.Dense(7), jbp.relu, jbp.Dense(5))), 12, 0),
        (jbp.branch(jbp.Dense(5), jbp.Dense(5)), 5, 0),  # the same input, kept twice, stacked once
    ],
    ids=repr,
)
def test_repeat_stacks_a_shared_array_only_once(layer, each, once):
    n = 3
    assert saved_arrays(jbp.repeat(layer, n), (5,)) == n * each + once


@pytest.mark.parametrize("activation", [jbp.relu, jbp.leaky_relu], ids=repr)
@pytest.mark.parametrize(
    ("make", "numbers", "signs", "once"),
    [
        (lambda a: jbp.residual(jbp.serial(jbp.Dense(5), a)), 5, 5, 0),  # x for the weight, and only y's sign
        (lambda a: jbp.serial(jbp.Dense(5), a), 5, 0, 5),  # y is the next one's x
        (lambda a: jbp.residual(jbp.serial(a, jbp.Dense(5))), 5, 0, 0),  # y is the weight's h
        (lambda a: jbp.serial(jbp.tanh, a), 5, 5, 0),  # tanh keeps its own output, and not x
        (lambda a: a, 0, 5, 0),
    ],
    ids=["residual", "serial", "before a weight", "after tanh", "alone"],
)
def test_repeat_keeps_one_byte_of_what_only_the_sign_is_needed_of(activation, make, numbers, signs, once):
    """Where the array itself is kept for another, the sign is read from it and takes no room of its own."""
    n, shape, net = 3, (5,), jbp.repeat(make(activation), 3)
    params = jax.eval_shape(lambda k: net.init(k, shape)[0], KEY)
    saved = jax.eval_shape(lambda p, x: jbp.forward(net, p, x)[1], params, jnp.zeros((1, *shape)))
    kept = {dtype: sum(a.size for a in jax.tree.leaves(saved) if a.dtype == dtype) for dtype in (bool, jnp.float64)}
    assert kept == {bool: n * signs, jnp.float64: n * numbers + once}


def test_branch_adds_up_the_deltas_of_its_arms_and_residual_adds_the_straight_way():
    x, delta = jax.random.normal(KEY, (2, BATCH, 5))
    arms = [jbp.Dense(5), jbp.tanh, Gain(0.3)]
    params = tuple(arm.init(KEY, (5,))[0] for arm in arms)
    separate = [passes(arm, p, x, delta) for arm, p in zip(arms, params, strict=True)]
    output, delta_x, pairs = passes(jbp.branch(*arms), params, x, delta)
    assert_close(output, sum(s[0] for s in separate), "layer")
    assert_close(delta_x, sum(s[1] for s in separate), "layer")
    assert_same(pairs, tuple(s[2] for s in separate))

    output, delta_x, pairs = passes(jbp.residual(arms[0]), params[0], x, delta)
    assert_close((output, delta_x), (x + separate[0][0], delta + separate[0][1]), "layer")
    assert_same(pairs, separate[0][2])


def test_concat_hands_each_arm_its_own_part_of_delta():
    arms = [jbp.Dense(2), jbp.identity, jbp.Dense(7)]
    x, delta = jax.random.normal(KEY, (BATCH, 5)), jax.random.normal(KEY, (BATCH, 14))
    params = tuple(arm.init(KEY, (5,))[0] for arm in arms)
    _, delta_x, pairs = passes(jbp.branch(*arms, join="concat"), params, x, delta)
    parts = delta[:, :2], delta[:, 2:7], delta[:, 7:]
    separate = [passes(arm, p, x, d) for arm, p, d in zip(arms, params, parts, strict=True)]
    assert_close(delta_x, sum(s[1] for s in separate), "layer")
    assert_same(pairs, tuple(s[2] for s in separate))


def expected_pairs(net, params, wrap="{}") -> Any:
    """The class names of the pairs in the tree of the parameters, `Stack(...)` for each `repeat` on the way."""
    match net:
        case combine.Serial() | combine.Branch():
            return tuple(expected_pairs(layer, p, wrap) for layer, p in zip(net.layers, params, strict=True))
        case combine.Residual():
            return expected_pairs(net.layer, params, wrap)
        case combine.Repeat():
            return expected_pairs(net.layer, params, wrap.format("Stack({})"))
        case Tied():
            return expected_of_tied(net, params, wrap)
        case combine.Combinator():  # of one that is not read here, only the tree and the shapes
            return jax.tree.map(lambda _: ANY, params)
    classes = CLASSES if isinstance(net, jbp.Dense | Gain | Table) else classes_alone(type(net))
    return {name: wrap.format(classes[name]) for name in params} if params else ()


ANY = "any class"
CLASSES = {"weight": "Outer", "bias": "Shift", "gain": "Scale", "table": "Shift"}


@cache
def classes_alone(kind) -> dict[str, str]:
    """Of another layer: the pairs that it makes when it stands alone, in its row of the table."""
    found = {}
    for case in SINGLE:
        if type(case.net) is kind:
            params, x, delta, _ = drawn(case)
            pairs = jax.eval_shape(lambda *a, net=case.net: passes(net, *a)[2], params, x, delta)
            found |= jax.tree.map(class_of, pairs, is_leaf=is_pair) or {}
    return found


def expected_of_tied(net, params, wrap) -> Any:
    """Uses of one kind are one pair, of several kinds a `Sum`; a borrower has none."""

    def at(tree, path):
        return reduce(lambda tree, step: tree[step], path, tree)

    expected, uses = expected_pairs(net.layer, net.whole(params), wrap), {}
    for borrower, owner in net.ties:
        uses.setdefault(owner, [at(expected, owner)]).append(at(expected, borrower))
    for borrower, _ in net.ties:
        expected = put_at(expected, borrower, ())
    for owner, names in uses.items():
        if isinstance(names[0], str) and len(set(names)) > 1:
            expected = put_at(expected, owner, f"Sum({', '.join(dict.fromkeys(names))})")
    return expected


def class_of(pair) -> str:
    if isinstance(pair, jbp.Sum):
        return f"Sum({', '.join(map(class_of, pair.pairs))})"
    return f"Stack({class_of(pair.pair)})" if isinstance(pair, jbp.Stack) else type(pair).__name__


def members(pair) -> tuple[Any, ...]:
    """The pairs inside stacks and sums."""
    if isinstance(pair, jbp.Sum):
        return pair.pairs
    return members(pair.pair) if isinstance(pair, jbp.Stack) else (pair,)


@pytest.mark.parametrize("case", NETS, ids=lambda case: case.name)
def test_pairs_have_the_tree_of_params_and_the_announced_classes_and_shapes(case):
    params, x, delta, _ = drawn(case)
    pairs = jax.eval_shape(lambda *a: passes(case.net, *a)[2], params, x, delta)
    found, expected = jax.tree.map(class_of, pairs, is_leaf=is_pair), expected_pairs(case.net, params)
    assert jax.tree.map(lambda name, wanted: ANY if wanted == ANY else name, found, expected) == expected
    leaves = zip(jax.tree.leaves(pairs, is_leaf=is_pair), jax.tree.leaves(params), strict=True)
    for pair, param in leaves:
        depth = class_of(pair).count("Stack")
        assert pair.batch == BATCH
        for inner in members(pair):
            assert inner.shape == param.shape[depth:]
            for array in jax.tree.leaves(inner):
                assert array.shape[: depth + 1] == (*param.shape[:depth], BATCH)
            if isinstance(inner, jbp.Outer | jbp.Shift | jbp.Scale):
                assert inner.delta.ndim == depth + 3  # l…, n, t, o
                width = inner.h.shape[-1] if isinstance(inner, jbp.Outer) else 1
                assert math.prod(inner.shape) == width * inner.delta.shape[-1]


def test_a_combinator_never_holds_mathematics_of_a_batch_axis():
    """Its walk calls nothing but `visit`: handed a visit that answers at once, no layer is ever run."""
    for case in NETS:
        if not isinstance(case.net, combine.Combinator) or isinstance(case.net, combine.Repeat):
            continue
        visited = []

        def visit(place, layer, params, x, key, visited=visited):
            visited.append(layer)
            return x, ()

        params = jax.eval_shape(lambda k, case=case: case.net.init(k, case.shape)[0], KEY)
        case.net.walk_forward(visit, params, jnp.zeros((3, 5)), None)
        assert visited == list(case.net.children)
        assert set(visited) <= set(every_layer(case.net))


@pytest.mark.parametrize("case", TIES, ids=lambda case: case.name)
def test_the_gradient_of_a_shared_parameter_is_the_sum_over_its_uses(case):
    params, x, delta, _ = drawn(case)

    def both(params, x, delta):
        ours = passes(case.net, params, x, delta)[2]
        theirs = jax.grad(lambda p: (delta * jbp.forward(case.net, p, x, KEY)[0]).sum())(params)
        return jax.tree.map(lambda pair: pair.total(), ours, is_leaf=is_pair), theirs

    ours, theirs = compiled(both)(params, x, delta)
    assert_close(ours, theirs, "net")


@pytest.mark.parametrize("rule", [None, "direct_feedback_alignment"])
@pytest.mark.parametrize("case", TIES, ids=lambda case: case.name)
def test_a_sink_sees_each_pair_once_and_a_shared_one_when_it_is_complete(case, rule):
    """With any way back for δ: what it makes in the walk is what it makes of the pairs that were kept."""
    params, x, delta, _ = drawn(case)
    net = case.net
    if rule is not None:
        bound = rule_of(rule).bind(net, params, x, Trainable.of(None))
        net, params = Way(net, bound), (params, bound.init(KEY, params))

    def both(params, x, delta):
        saved = jbp.forward(net, params, x)[1]
        pairs, found = (jbp.backward(net, params, saved, delta, sink)[1] for sink in (sinks.keep, several))
        return (
            several.split(found),
            (jax.tree.map(lambda pair: pair.total(), pairs, is_leaf=is_pair), stats.squared_norms(pairs)),
        )

    several = sinks.together(sinks.total, stats.squared_norms)
    ours, theirs = compiled(both)(params, x, delta)
    assert_close(ours, theirs, "net")


def test_only_shared_pairs_wait_for_their_other_uses():
    """The order in which a sink meets the pairs: what is shared last, in one call, everything else on the way."""
    seen = []

    def sink(pairs):
        seen.append(jax.tree.map(lambda pair: pair.delta.shape[-2:], pairs, is_leaf=is_pair))
        return pairs

    layers = jbp.Dense(3), jbp.tanh, jbp.Dense(5), jbp.Dense(3), jbp.Dense(3)
    net = jbp.serial(jbp.tied(jbp.serial(*layers), {(4, "weight"): (0, "weight")}), jbp.Dense(2))
    params, x, delta, _ = drawn(NetCase("sink", net, (3,)))
    jbp.backward(net, params, jbp.forward(net, params, x)[1], delta, sink)
    assert [at for at in seen if at != ()] == [
        {"weight": (1, 2), "bias": (1, 2)},
        (1, 3),  # the last bias inside
        {"weight": (1, 3), "bias": (1, 3)},
        {"weight": (1, 5), "bias": (1, 5)},
        (1, 3),  # the first bias
        (2, 3),  # both uses of the weight
    ]


@pytest.mark.parametrize(
    ("ties", "words"),
    [
        ({}, "at least one"),
        ({(-1, "weight"): (0, "weight")}, "a path is a tuple of indices and names"),
        ({True: 0}, "a path is a tuple of indices and names"),
        ({(2, "weight", 0): (0, "weight", 0)}, r"there are no parameters at .*: \[0\]\['weight'\]\[0\] is missing"),
        ({(2, "weight"): (3, "weight")}, r"there are no parameters at .*: \[3\] is missing"),
        ({("2", "weight"): (0, "weight")}, r"there are no parameters at .*: \['2'\] is missing"),
        ({2: (0, "weight")}, "needs"),
        ({2: 0, (2, "weight"): 1}, "overlaps"),
    ],
)
def test_ties_that_lead_nowhere_are_refused(ties, words):
    with pytest.raises(ValueError, match=words):
        jbp.tied(jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(3)), ties).init(KEY, (3,))
