"""Tables, positions and a GPT: gradients by autodiff of plain JAX, statistics by those of the examples, costs."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import product_flops, xla_cost
from gpts import drawn, gpt
from jax import lax
from oracles import assert_close, compiled, plain, plain_errors, plain_value

import jbp
from jbp import curvature, stats
from jbp.backprop import Batch, Trainable, value_grad_output
from jbp.layer import Layer
from jbp.losses import softmax_cross_entropy as LOSS
from jbp.rules import DirectFeedbackAlignment, FeedbackAlignment
from jbp.rules.rule import Way
from jbp.sinks import total

N, T, V = 5, 7, 11
GPTS = {"plain": gpt(V, T, 6, 3, 2), "tied": gpt(V, T, 6, 3, 2, tied=True)}


@pytest.mark.parametrize("name", GPTS)
def test_a_gpt_is_its_plain_form_and_its_statistics_those_of_its_examples(name: str):
    net = GPTS[name]
    params, x, y = drawn(net, N, T, V)

    def program(params: Any, x: Any, y: Any) -> Any:
        def value(params: Any, x: Any, y: Any) -> Any:
            return plain_value(net, LOSS, params, x, y)

        errors, pairs = jbp.value_and_pairs(net, LOSS, params, x, y)
        each = lax.map(lambda row: jax.grad(value)(params, row[0][None], row[1][None]), (x, y))
        flat = jnp.concatenate([g.reshape(N, -1) for g in jax.tree.leaves(each)], 1)
        v = jnp.concatenate([p.reshape(-1) for p in jax.tree.leaves(params)])
        found = stats.norms(pairs), stats.gram(pairs), stats.second_moment(pairs), stats.project(pairs, params)
        second = jax.tree.map(lambda g: jnp.square(g).mean(0), each)
        expected = jnp.linalg.norm(flat, axis=1), flat @ flat.T, second, flat @ v
        return found, expected, (errors.mean(), jbp.contract(pairs)), jax.value_and_grad(value)(params, x, y)

    found, expected, ours, theirs = compiled(program)(params, x, y)
    assert_close(ours, theirs, "net")
    assert_close(found, expected, "net")


def test_second_order_of_a_gpt_and_rules_on_it():
    """Products by autodiff of the plain form; feedback through the weights themselves is the gradient."""
    net = GPTS["tied"]
    params, x, y = drawn(net, N, T, V)
    random = np.random.default_rng(7)
    v = jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape)), params)

    def by_rule(params: Any, rule: Any, x: Any, y: Any, own: bool) -> Any:
        bound = rule.bind(net, params, x, Trainable.of(None))
        state = bound.weights(params) if own else bound.init(jax.random.key(0), params)
        batch = Batch(x, y)
        return value_grad_output(Way(net, bound), LOSS, (params, state), batch, None, Trainable.of(None)).grads

    def program(params: Any, x: Any, y: Any, v: Any) -> Any:
        def value(params: Any) -> Any:
            return plain_value(net, LOSS, params, x, y)

        def errors(output: Any) -> Any:
            return plain_errors(LOSS, output, y).mean()

        output, tangent = jax.jvp(lambda p: plain(net, p, x), (params,), (v,))
        back = jax.vjp(lambda p: plain(net, p, x), params)[1]
        curved = jax.jvp(jax.grad(errors), (output,), (tangent,))[1]
        at: Any = (net, LOSS, params, x, y)
        gradient = jax.grad(value)(params)
        found = (
            curvature.gauss_newton_product(*at)(v),
            curvature.fisher_product(*at)(v),
            curvature.hessian_product(*at)(v),
        )
        expected = back(curved)[0], back(curved)[0], jax.jvp(jax.grad(value), (params,), (v,))[1]
        others = [by_rule(params, rule, x, y, False) for rule in (FeedbackAlignment(), DirectFeedbackAlignment())]
        return (*found, by_rule(params, FeedbackAlignment(), x, y, True)), (*expected, gradient), others

    found, expected, others = compiled(program)(params, x, y, v)
    assert_close(found, expected, "net")
    for rule in others:  # δ comes another way to all of them, and not as NaN
        gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(b).max()), rule, expected[-1])
        assert min(jax.tree.leaves(gaps)) > 1e-6 and max(jax.tree.leaves(gaps)) < 1e6


def test_kronecker_of_a_table_is_exact_on_its_diagonal():
    """Used once, A ⊗ G of one example is its gradient's outer product; A is how often each row was read."""
    net = jbp.serial(jbp.Embedding(V, 3), jbp.tanh, jbp.Unembedding(V))
    params, _ = net.init(jax.random.key(0), ())
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    x, y = jnp.asarray([4, 1, 4, 9]), jnp.asarray([2, 0, 5, 7])
    _, pairs = jbp.value_and_pairs(net, LOSS, params, x, y)
    table, _, back = stats.kronecker(pairs)
    factors = table["weight"]
    assert factors.diagonal and factors.a.shape == (V,) and not factors.transposed
    np.testing.assert_allclose(factors.a, np.bincount(x, minlength=V) / 4)
    assert back["weight"].transposed and back["weight"].a.shape == (3, 3) and back["weight"].g.shape == (V, V)
    one = jax.tree.map(lambda a: a[:1], pairs)
    g = np.asarray(jbp.contract(one)[2]["weight"])
    f = stats.kronecker(one)[2]["weight"]
    u = np.random.default_rng(0).normal(size=(3, V))
    np.testing.assert_allclose(f.times(u), g.T * (g.T * u).sum(), rtol=1e-12, atol=1e-18)


@dataclass(frozen=True, repr=False)
class Exchanged(jbp.Unembedding):
    """An unembedding whose pair has h and δ in each other's place: the gradient is the same."""

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        delta_x, pairs = super().backward(params, saved, delta)
        pair = pairs["weight"]
        return delta_x, {"weight": jbp.Outer(pair.delta, pair.h, pair.shape)}


def test_the_laws_of_statistics_refuse_an_unembedding_spelt_the_other_way():
    report = jbp.check.layer(Exchanged(5), (3,), differences=False)
    failed = {entry.law for entry in report.failures}
    assert {"h free of δ", "gauss_newton", "kronecker"} <= failed
    assert not failed & {"adjoint", "= vjp", "linear", "per_example", "norms"}


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [-1, V, 2**31 - 1])
def test_a_token_that_is_no_row_is_refused_and_makes_nan_in_compiled_code(token: int):
    net = GPTS["plain"]
    params, x, y = drawn(net, N, T, V)
    bad = x.at[2, 3].set(token)
    said = rf"x must hold whole numbers 0…10 for Embedding\(11, 6\), but row 2 has {token}, at \[3\]"
    state = jbp.init_state(problem := jbp.Problem(net, LOSS, optax.sgd(0.1)), jax.ShapeDtypeStruct((T,), x.dtype))
    for call in (
        lambda: jbp.forward(net, params, bad),
        lambda: jbp.value_and_grad(net, LOSS)(params, bad, y),
        lambda: jbp.value_and_pairs(net, LOSS, params, bad, y),
        lambda: curvature.gauss_newton_product(net, LOSS, params, bad, y),
        lambda: jbp.make_step(problem)(state, jbp.Batch(bad, y)),
        lambda: jbp.fit(net, LOSS, optax.sgd(0.1), (bad, y), epochs=1, batch_size=5),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    embedding = jbp.Embedding(V, 3)
    table = {"weight": jnp.ones((V, 3))}
    rows = compiled(lambda x: jbp.forward(embedding, table, x)[0])(bad)
    assert np.isnan(rows[2, 3]).all() and np.isfinite(rows).sum() == rows.size - 3
    pair = jbp.Lookup.of(bad[2], jnp.ones((T, 3)), (V, 3))
    with pytest.raises(ValueError, match=r"the index of Lookup must be 0…10"):
        jbp.contract(jax.tree.map(lambda a: a[None], pair))
    for read in (jbp.contract, stats.norms, stats.second_moment, partial(stats.project, v=jnp.ones((V, 3)))):
        found = compiled(read)(jax.tree.map(lambda a: a[None], pair))
        assert np.isnan(found).any()
    weights = jnp.ones(N).at[2].set(0)
    value, grads = jbp.value_and_grad(net, LOSS)(params, bad, y, weights=weights)
    assert_close((value, grads), jbp.value_and_grad(net, LOSS)(params, x, y, weights=weights), "net")


def test_tables_refuse_what_they_are_not_for():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"Positions\(4\) takes a sequence \[t, o\] with t up to 4"):
        jbp.Positions(4).init(key, (5, 3))
    with pytest.raises(ValueError, match=r"Positions\(4\) takes a sequence"):
        jbp.forward(jbp.Positions(4), {"weight": jnp.ones((4, 3))}, jnp.ones((2, 5, 3)))
    with pytest.raises(ValueError, match=r"Embedding\(7, 3\) needs whole numbers 0…6, but got float64"):
        jbp.forward(jbp.Embedding(7, 3), {"weight": jnp.ones((7, 3))}, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"takes parameters \{'weight': \[7, 3\]\}"):
        jbp.forward(jbp.Embedding(7, 3), {"weight": jnp.ones((3, 7))}, jnp.ones((2, 5), int))
    with pytest.raises(ValueError, match="a table of shape"):
        jbp.Lookup.of(jnp.zeros(3, int), jnp.ones((4, 2)), (7, 2))
    with pytest.raises(ValueError, match="Lookup holds an index of whole numbers of 32 bits"):
        stats.norms(jbp.Lookup(jnp.zeros((2, 3, 1), jnp.int8), jnp.ones((2, 3, 2)), (7, 2)))


def test_a_norm_without_gain_is_the_next_layers_input_and_stacked_once():
    """x̂ [l, n, t, o] is there once; with a gain also what the dense layer reads."""
    for scale, arrays in ((False, 1), (True, 2)):
        norm = jbp.LayerNorm(use_scale=scale, use_bias=False)
        net = jbp.repeat(jbp.residual(jbp.serial(norm, jbp.Dense(5, use_bias=False))), 3)
        params = net.init(jax.random.key(0), (7, 5))[0]
        _, saved = jax.eval_shape(partial(jbp.forward, net), params, jnp.zeros((2, 7, 5)))
        assert [a.shape for a in jax.tree.leaves(saved)].count((3, 2, 7, 5)) == arrays


# -- what it costs ----------------------------------------------------------------------------------------------------


def back(net: Layer, sink: Any, params: Any, x: Any, y: Any) -> Any:
    """As `value_and_grad` walks, with another sink."""
    output, saved = jbp.forward(net, params, x)
    delta = lax.optimization_barrier(jax.vmap(LOSS.delta)(output, y))
    return jbp.backward(net, params, saved, delta, sink)[1]


def of_pairs(net: Layer, statistic: Any, params: Any, x: Any, y: Any) -> Any:
    return statistic(jbp.value_and_pairs(net, LOSS, params, x, y)[1])


@pytest.mark.parametrize("tied", [False, True], ids=["plain", "tied"])
@pytest.mark.parametrize("vocabulary", [65, 2048])
def test_norms_and_clipping_of_a_gpt_in_plain_gradients(vocabulary: int, tied: bool):
    """nanoGPT's: blocks of 64, 4 layers, 4 heads, 128 wide, 12 examples."""
    net = gpt(vocabulary, 64, 128, 4, 4, tied)
    with jax.enable_x64(False):
        params = jax.eval_shape(lambda key: net.init(key, (64,))[0], jax.random.key(0))
        x = jax.ShapeDtypeStruct((12, 64), jnp.int32)
        one = product_flops(partial(back, net, total), params, x, x)
        norms = product_flops(partial(of_pairs, net, stats.norms), params, x, x)
        clipped = product_flops(partial(of_pairs, net, lambda pairs: stats.clipped(pairs, 1.0)), params, x, x)
        assert norms <= 0.95 * one and clipped <= 1.25 * one
        streamed, plain = (xla_cost(partial(back, net, s), params, x, x)[1] for s in (stats.squared_norms, total))
        assert streamed <= 1.05 * plain


def test_what_a_norm_saves_is_the_next_layers_input_where_it_has_no_scale_and_no_bias():
    """x̂ of the two norms of each block, which else lie beside what the dense layers behind them save."""
    n, t, width, layers = 12, 64, 128, 4
    with jax.enable_x64(False):
        x, found = jax.ShapeDtypeStruct((n, t), jnp.int32), []
        for norm in (jbp.LayerNorm(), jbp.LayerNorm(use_scale=False, use_bias=False)):
            net = gpt(65, t, width, 4, layers, tied=True, norm=norm)
            params = jax.eval_shape(lambda key, net=net: net.init(key, (t,))[0], jax.random.key(0))
            found.append(xla_cost(partial(back, net, total), params, x, x)[1])
    assert found[0] - found[1] >= 2 * layers * n * t * width * 4
