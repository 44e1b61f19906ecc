"""The laws of the backward pass, over every net in the case table, in float64 and float32.

For each net one compiled program computes both sides of every law (compiling is what a test costs); each test then
compares one of them. δ is random, never ones; weights are random too, some of them zero, and add up to nothing.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import BATCH, NETS, NetCase, drawn, random
from oracles import assert_close, compiled, plain, plain_value

import jbp
from jbp.backprop import total
from jbp.losses import l2_loss

KEY = jax.random.key(0)
STEPS, RATE = 3, 0.01
FLOAT32 = ("output", "delta_x", "sum", "mean", "weighted", "one example", "mean loss", "weighted loss")


def both_sides(case: NetCase, dtype: Any) -> dict[str, tuple[Any, Any]]:
    """(jbp's, expected) for each law."""
    net = case.net
    weights = random(f"weights {case.name}").uniform(-0.5, 2, size=BATCH)
    weights[[1, 4]] = 0

    def sides(params, x, delta, y, weights, key):
        floats = (x,) if jnp.issubdtype(x.dtype, jnp.floating) else ()  # whole numbers have no δ
        output, saved = jbp.forward(net, params, x, key)
        delta_x, pairs = jbp.backward(net, params, saved, delta)
        expected, pull = jax.vjp(lambda p, *floats: plain(net, p, floats[0] if floats else x, key), params, *floats)

        def each(scale):
            return jnp.einsum("n,n...->n...", scale, delta)

        def grads(scale):
            return pull(each(scale))[0]

        ones, rows = jnp.ones(BATCH, dtype), jnp.eye(BATCH, dtype=dtype)
        per_example = jax.vmap(lambda row: jbp.contract(pairs, row))(rows)
        ours = jbp.value_and_grad(net, l2_loss)

        def theirs(params, x, y, key=None, weights=None):
            return jax.value_and_grad(lambda p: plain_value(net, l2_loss, p, x, y, key, weights))(params)

        def trained(step):
            def body(params, key):
                value, grads = step(params, x, y, key, weights)
                return jax.tree.map(lambda p, g: p - RATE * g, params, grads), value

            return jax.lax.scan(body, params, jax.random.split(key, STEPS))

        def linear():
            (delta_y, of_y), (delta_sum, of_sum) = (
                jbp.backward(net, params, saved, d) for d in (y, 0.3 * delta - 1.7 * y)
            )
            parts = ((delta_x, jbp.contract(pairs)), (delta_y, jbp.contract(of_y)))
            return (delta_sum, jbp.contract(of_sum)), jax.tree.map(lambda a, b: 0.3 * a - 1.7 * b, *parts)

        laws = {
            "output": lambda: (output, expected),
            "delta_x": lambda: (delta_x, pull(delta)[1] if floats else None),
            "sum": lambda: (jbp.contract(pairs, ones), grads(ones)),
            "mean": lambda: (jbp.contract(pairs), grads(ones / BATCH)),
            "weighted": lambda: (jbp.contract(pairs, weights), grads(weights)),
            "folded weights": lambda: (
                jbp.contract(jbp.backward(net, params, saved, each(weights))[1], ones),
                jbp.contract(pairs, weights),
            ),
            "one example": lambda: (per_example, jax.vmap(grads)(rows)),
            "add up": lambda: (jax.tree.map(lambda g: g.sum(0), per_example), jbp.contract(pairs, ones)),
            "linear": linear,
            "contracted on the way": lambda: (
                jbp.backward(net, params, saved, delta, total),
                (delta_x, jbp.contract(pairs, ones)),
            ),
            "mean loss": lambda: (ours(params, x, y, key), theirs(params, x, y, key)),
            "weighted loss": lambda: (ours(params, x, y, key, weights), theirs(params, x, y, key, weights)),
            "scan": lambda: (trained(ours), trained(theirs)),
            "adjoint": lambda: adjoint(net, params, x, key, saved, delta),
        }
        return {law: laws[law]() for law in (FLOAT32 if dtype == jnp.float32 else laws)}

    params, x, delta, y = drawn(case, dtype)
    with jax.default_matmul_precision("highest"):
        return compiled(sides)(params, x, delta, y, jnp.asarray(weights, dtype), KEY)


def adjoint(net, params, x, key, saved, delta):
    """⟨J v, δ⟩ and ⟨v, backward(δ)⟩ with J v from forward mode, divided by |J v||δ| so that one unit means eps."""
    point = (params, x) if jnp.issubdtype(x.dtype, jnp.floating) else (params,)
    v = jax.tree.map(jnp.sin, point)
    _, tangent = jax.jvp(lambda p, *floats: jbp.forward(net, p, floats[0] if floats else x, key)[0], point, v)
    delta_x, pairs = jbp.backward(net, params, saved, delta)
    back = (jbp.contract(pairs, jnp.ones(BATCH, delta.dtype)), delta_x)
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


def test_backward_is_linear_in_delta(case):
    check(case, "linear")


def test_backward_is_the_adjoint_of_forward(case):
    check(case, "adjoint")


def test_contracting_on_the_way_equals_contracting_kept_pairs(case):
    check(case, "contracted on the way")


def test_value_and_grad_equals_autodiff(case):
    check(case, "mean loss", "weighted loss")


def test_training_inside_scan_equals_autodiff(case):
    check(case, "scan", level="steps")


def test_all_of_it_in_float32_within_the_same_units(case):
    check(case, *FLOAT32, dtype=jnp.float32)
