"""The laws of the backward pass, over every net in the case table, in float64 and float32.

For each net one compiled program computes both sides of every law (compiling is what a test costs); each test then
compares one of them. δ is random, never ones; weights are random too, some of them zero, and add up to nothing.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, COMBINED, NETS, SINGLE, NetCase, drawn, random
from oracles import assert_close, compiled, plain, plain_value

import jbp
from jbp.backprop import total
from jbp.losses import l2_loss
from jbp.pairs import is_pair

KEY = jax.random.key(0)
STEPS, RATE = 3, 0.01
FLOAT32 = ("output", "delta_x", "sum", "mean", "weighted", "one example", "mean loss", "weighted loss")
ONE_OF_EACH = list({type(case.net): case for case in COMBINED}.values())
"""A net for each combinator: what follows from its layers' laws and its own way of joining them needs no more."""
IN_FLOAT32 = [*SINGLE, *COMBINED[:: len(COMBINED) // 10 or 1][:10]]


def both_sides(case: NetCase, dtype: Any) -> dict[str, tuple[Any, Any]]:
    """(jbp's, expected) for each law; with a key, but in evaluation where the examples would be coupled."""
    net, key = case.net, None if case.net.couples_batch else KEY
    weights = random(f"weights {case.name}").uniform(-0.5, 2, size=BATCH)
    weights[[1, 4]] = 0

    def sides(params, x, delta, y, weights, key):
        def each(scale):
            return jnp.einsum("n,n...->n...", scale, delta)

        def part(tree, i):
            return jax.tree.map(lambda a: a[i], tree)

        floats = (x,) if jnp.issubdtype(x.dtype, jnp.floating) else ()  # whole numbers have no δ
        output, saved = jbp.forward(net, params, x, key)
        delta_x, pairs = jbp.backward(net, params, saved, delta)
        expected, pull = jax.vjp(lambda p, *floats: plain(net, p, floats[0] if floats else x, key), params, *floats)
        ones = jnp.ones(BATCH, dtype)
        scales = jnp.concatenate([jnp.stack([ones, ones / BATCH, weights]), jnp.eye(BATCH, dtype=dtype)])
        # Everything that autodiff is asked for at once: each call would be traced again.
        pulled, *pulled_x = jax.vmap(lambda scale: pull(each(scale)))(scales)
        per_example = jax.vmap(lambda row: jbp.contract(pairs, row))(scales[3:])
        summed = jbp.contract(pairs, ones)
        ours = jbp.value_and_grad(net, l2_loss)

        def theirs(params, x, y, key, weights):
            return jax.value_and_grad(lambda p: plain_value(net, l2_loss, p, x, y, key, weights))(params)

        @cache
        def losses():
            return jax.vmap(lambda w: theirs(params, x, y, key, w))(scales[1:3])

        def trained(step):
            def body(params, key):
                value, grads = step(params, x, y, key, weights)
                return jax.tree.map(lambda p, g: p - RATE * g, params, grads), value

            keys = None if key is None else jax.random.split(key, STEPS)
            return jax.lax.scan(body, params, keys, STEPS)

        def linear():
            deltas = jnp.stack([y, 0.3 * delta - 1.7 * y])
            found = jax.vmap(lambda d: jbp.backward(net, params, saved, d, total))(deltas)
            expected = jax.tree.map(lambda a, b: 0.3 * a - 1.7 * b, (delta_x, summed), part(found, 0))
            return part(found, 1), expected

        laws = {
            "output": lambda: (output, expected),
            "delta_x": lambda: (delta_x, part(pulled_x[0], 0) if floats else None),
            "sum": lambda: (summed, part(pulled, 0)),
            "mean": lambda: (jbp.contract(pairs), part(pulled, 1)),
            "weighted": lambda: (jbp.contract(pairs, weights), part(pulled, 2)),
            "folded weights": lambda: (
                jbp.contract(jbp.backward(net, params, saved, each(weights))[1], ones),
                jbp.contract(pairs, weights),
            ),
            "one example": lambda: (per_example, part(pulled, slice(3, None))),
            "add up": lambda: (jax.tree.map(lambda g: g.sum(0), per_example), summed),
            "contracted on the way": lambda: (jbp.backward(net, params, saved, delta, total), (delta_x, summed)),
            "mean loss": lambda: (ours(params, x, y, key), part(losses(), 0)),
            "weighted loss": lambda: (ours(params, x, y, key, weights), part(losses(), 1)),
            "adjoint": lambda: adjoint(net, params, x, key, delta, (pairs, summed, delta_x)),
        }
        if case in ONE_OF_EACH:
            laws |= {"scan": lambda: (trained(ours), trained(theirs)), "linear": linear}
        return {law: laws[law]() for law in (FLOAT32 if dtype == jnp.float32 else laws)}

    params, x, delta, y = drawn(case, dtype)
    with jax.default_matmul_precision("highest"):
        return compiled(sides)(params, x, delta, y, np.asarray(weights, dtype), key)


def adjoint(net, params, x, key, delta, back):
    """⟨J v, δ⟩ and ⟨v, backward(δ)⟩ with J v from forward mode, divided by |J v||δ| so that one unit means eps; along
    what nothing trains v is 0."""
    pairs, *back = back
    point = (params, x) if jnp.issubdtype(x.dtype, jnp.floating) else (params,)
    v = jax.tree.map(jnp.sin, point)
    flags = jax.tree.map(lambda pair: pair.constant, pairs, is_leaf=is_pair)
    v = (jax.tree.map(lambda a, constant: jnp.zeros_like(a) if constant else a, v[0], flags), *v[1:])
    _, tangent = jax.jvp(lambda p, *floats: jbp.forward(net, p, floats[0] if floats else x, key)[0], point, v)
    inner = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(back), strict=True))
    size = jnp.linalg.norm(tangent.ravel()) * jnp.linalg.norm(delta.ravel())
    return 1 + inner / size, 1 + jnp.vdot(tangent, delta) / size


measured = cache(both_sides)


@pytest.fixture(scope="module", params=NETS, ids=lambda case: case.name)
def case(request):
    return request.param


def check(case: NetCase, *laws: str, level: str | None = None, dtype: Any = jnp.float64) -> None:
    for law in laws:
        assert_close(*measured(case, dtype)[law], level or ("net" if case.deep else "layer"))


def test_output_equals_the_plain_forward_pass(case):
    check(case, "output")


def test_delta_x_equals_vjp(case):
    check(case, "delta_x")


def test_contracted_pairs_equal_vjp_leaf_by_leaf(case):
    check(case, "sum", "mean", "weighted")


def test_weights_may_be_folded_into_delta(case):
    check(case, "folded weights")


def test_gradient_of_one_example_equals_vjp(case):
    check(case, "one example")


def test_gradients_of_the_examples_add_up(case):
    check(case, "add up")


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_backward_is_linear_in_delta(case):
    check(case, "linear")


def test_backward_is_the_adjoint_of_forward(case):
    check(case, "adjoint")


def test_contracting_on_the_way_equals_contracting_kept_pairs(case):
    check(case, "contracted on the way")


def test_value_and_grad_equals_autodiff(case):
    check(case, "mean loss", "weighted loss")


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_training_inside_scan_equals_autodiff(case):
    check(case, "scan", level="steps")


@pytest.mark.parametrize("case", IN_FLOAT32, ids=lambda case: case.name)
def test_all_of_it_in_float32_within_the_same_units(case):
    check(case, *FLOAT32, dtype=jnp.float32)
