"""Single layers: the values at the edges, dropout's laws, initial weights, and what a layer is as an object."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, NETS, SINGLE, Gain, Table, announced, drawn, every_layer, random
from oracles import assert_same, compiled, error_in_units, plain

import jbp
from jbp import combine, initializers, layers
from jbp.check.cases import LAYERS
from jbp.layer import Layer
from jbp.layers import Activation, Elu, Gelu, LeakyRelu

ACTIVATIONS = sorted({case.net for case in SINGLE if isinstance(case.net, Activation)}, key=repr)


def value_and_slope(activation, s):
    """θ(s) and θ′(s) by jbp, element by element."""
    y, saved = jbp.forward(activation, (), s)
    return y, jbp.backward(activation, (), saved, jnp.ones_like(s))[0]


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != jbp.softmax], ids=repr)
def test_value_and_derivative_at_zero_are_those_of_jax_nn(activation):
    for zero in (0.0, -0.0):
        s = jnp.full((1, 1), zero)
        expected = jax.vjp(lambda s: plain(activation, (), s), s)
        assert_same(value_and_slope(activation, s), (expected[0], expected[1](jnp.ones_like(s))[0]))


def test_the_kinks_are_where_the_documentation_says():
    slopes = {a: float(value_and_slope(a, jnp.zeros((1, 1)))[1][0, 0]) for a in ACTIVATIONS}
    assert slopes[jbp.relu] == 0
    assert slopes[jbp.leaky_relu] == slopes[LeakyRelu(0.2)] == slopes[jbp.elu] == 1
    assert slopes[Elu(0.7)] == 0.7
    assert slopes[jbp.gelu] == slopes[Gelu(approximate=False)] == slopes[jbp.silu] == slopes[jbp.softplus] == 0.5
    assert slopes[jbp.sigmoid] == 0.25


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_no_nan_for_huge_inputs_and_the_right_limits(activation, dtype):
    s = jnp.array([[1e4, -1e4, 1e4], [-1e4, 0.0, 1.0], [100.0, -100.0, -30.0]], dtype)
    y, slope = value_and_slope(activation, s)
    assert (y.dtype, slope.dtype) == (dtype, dtype)
    chex.assert_tree_all_finite((y, slope))
    expected, pull = jax.vjp(lambda s: plain(activation, (), s.astype(jnp.float64)), s)
    tolerance = 4 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(y), np.float64(expected), rtol=tolerance, atol=tolerance)
    expected_slope = pull(jnp.ones(s.shape, jnp.float64))[0]
    np.testing.assert_allclose(np.float64(slope), np.float64(expected_slope), rtol=tolerance, atol=tolerance)


KEY = jax.random.key(5)


def test_a_dense_layer_promotes_as_matmul_does_and_refuses_where_matmul_refuses():
    layer, x = jbp.Dense(5, use_bias=False), jax.random.normal(KEY, (BATCH, 3), jnp.float32)
    params = {"weight": jax.random.normal(KEY, (3, 5), jnp.float64)}
    with jax.numpy_dtype_promotion("standard"):
        y, expected = jbp.forward(layer, params, x)[0], x @ params["weight"]
    assert max(error_in_units(y, expected).values()) <= 4
    with pytest.raises(ValueError, match="implicit"):  # strict, as this suite is
        jbp.forward(layer, params, x)


def test_dropout_shares_its_mask_between_forward_and_backward():
    layer, x = jbp.Dropout(0.3), jnp.ones((BATCH, 7, 13))
    y, saved = jbp.forward(layer, (), x, KEY)
    delta_x, _ = jbp.backward(layer, (), saved, jnp.ones_like(x))
    assert_same(delta_x, y)
    assert set(np.unique(np.asarray(y))) == {0.0, 1 / 0.7}


def test_dropout_keeps_the_mean():
    """At 200,000 units the mean of y is 1 within five standard deviations of the binomial."""
    n = 200_000
    for rate in (0.1, 0.5, 0.9):
        y, _ = jbp.forward(jbp.Dropout(rate), (), jnp.ones((1, n)), KEY)
        assert abs(float(y.mean()) - 1) < 5 * math.sqrt(rate / (1 - rate) / n)


def test_dropout_is_the_identity_in_evaluation():
    for net in (jbp.Dropout(0.5), jbp.serial(jbp.Dropout(0.5), jbp.repeat(jbp.Dropout(0.2), 2))):
        params, _ = net.init(KEY, (7,))
        x = jax.random.normal(KEY, (BATCH, 7))
        y, saved = jbp.forward(net, params, x)
        assert_same((y, jbp.backward(net, params, saved, x)[0], jbp.apply(net, params, x)), (x, x, x))


def test_dropout_follows_its_key():
    """Same key, same mask; another key, another example, another layer or repetition, another mask."""
    layer, x = jbp.Dropout(0.5), jnp.ones((BATCH, 101))

    def mask(net, key):
        return np.asarray(jbp.forward(net, net.init(KEY, (101,))[0], x, key)[0]) > 0

    once = mask(layer, KEY)
    assert np.array_equal(once, mask(layer, KEY))
    assert not np.array_equal(once, mask(layer, jax.random.key(6)))
    assert len({row.tobytes() for row in once}) == BATCH
    for net in (jbp.serial(layer, layer), jbp.repeat(layer, 2)):
        kept = mask(net, KEY).mean()  # two equal masks would keep a half, two independent ones a quarter
        assert abs(kept - 0.25) < 5 * math.sqrt(0.25 * 0.75 / once.size)


INITIALIZERS = [
    (initializers.lecun_normal, 1 / 300), (initializers.lecun_uniform, 1 / 300),
    (initializers.glorot_normal, 2 / 500), (initializers.glorot_uniform, 2 / 500),
    (initializers.he_normal, 2 / 300), (initializers.he_uniform, 2 / 300),
    (initializers.standard_normal, 1.0), (initializers.Normal(0.1), 0.01), (initializers.zeros, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("initializer", "variance"), INITIALIZERS, ids=lambda v: repr(v) if callable(v) else "")
def test_initial_weights_have_the_announced_mean_and_variance(initializer, variance):
    params, _ = (
        jbp.Dense(200, weight_init=initializer, bias_init=initializer).init(KEY, (300,))
        if not isinstance(initializer, initializers.VarianceScaling)
        else jbp.Dense(200, weight_init=initializer).init(KEY, (300,))
    )
    weight = np.asarray(params["weight"])
    assert abs(weight.mean()) <= 5 * math.sqrt(variance / weight.size)
    assert abs(weight.var() - variance) <= 0.03 * variance  # the standard error is 0.6 % or less
    if isinstance(initializer, initializers.VarianceScaling) and initializer.distribution == "uniform":
        assert np.abs(weight).max() <= math.sqrt(3 * variance)
    else:
        assert variance == 0 or np.abs(weight).max() > math.sqrt(3 * variance)


FOLLOWING = [
    (jbp.relu, initializers.he_normal), (jbp.leaky_relu, initializers.he_normal), (jbp.elu, initializers.he_normal),
    (jbp.softplus, initializers.he_normal), (jbp.silu, initializers.he_normal), (jbp.gelu, initializers.he_normal),
    (jbp.tanh, initializers.glorot_normal), (jbp.sigmoid, initializers.glorot_normal),
    (jbp.softmax, initializers.glorot_normal), (jbp.identity, initializers.lecun_normal),
]  # fmt: skip


@pytest.mark.parametrize(("activation", "expected"), FOLLOWING, ids=repr)
def test_initial_weights_follow_the_next_activation(activation, expected):
    dense, told = jbp.Dense(7), dataclasses.replace(jbp.Dense(7), weight_init=expected)
    for net, wanted in [
        (jbp.serial(dense, activation), jbp.serial(told, activation)),
        (jbp.serial(dense, jbp.Dropout(0.1), jbp.Flatten(), activation), None),
        (jbp.serial(jbp.serial(dense), jbp.serial(activation)), None),
        (jbp.repeat(jbp.serial(dense, activation), 2), jbp.repeat(jbp.serial(told, activation), 2)),
        (jbp.repeat(jbp.serial(activation, dense), 2), jbp.repeat(jbp.serial(activation, told), 2)),
        (jbp.serial(jbp.branch(dense, dense, join="concat"), activation), None),
        (jbp.residual(jbp.serial(dense, activation)), jbp.residual(jbp.serial(told, activation))),
    ]:
        as_initialised = net.before(None)
        assert wanted is None or as_initialised == wanted
        assert all(d == told for d in every_layer(as_initialised) if isinstance(d, jbp.Dense)), as_initialised
    weight = np.asarray(jbp.serial(jbp.Dense(200), activation).init(KEY, (300,))[0][0]["weight"])
    variance = {1.0: {"fan_in": 1 / 300, "fan_avg": 2 / 500}, 2.0: {"fan_in": 2 / 300}}[expected.scale][expected.fan]
    assert abs(weight.var() - variance) <= 0.03 * variance


def test_initial_weights_before_a_sum_or_the_end_are_lecun_and_a_named_initialiser_stays():
    named = jbp.Dense(7, weight_init=initializers.he_uniform)
    for net in (jbp.serial(jbp.residual(jbp.Dense(7)), jbp.relu), jbp.serial(jbp.branch(jbp.Dense(7)), jbp.relu)):
        assert net.before(None) == net
    assert jbp.serial(named, jbp.tanh).before(None) == jbp.serial(named, jbp.tanh)
    weight = np.asarray(jbp.serial(jbp.Dense(200)).init(KEY, (300,))[0][0]["weight"])
    assert abs(weight.var() * 300 - 1) <= 0.03
    assert not np.asarray(jbp.Dense(7).init(KEY, (5,))[0]["bias"]).any()


@pytest.mark.parametrize("case", NETS, ids=lambda case: case.name)
def test_init_announces_the_shapes_that_forward_and_contract_produce(case):
    shapes, out_shape = announced(case)
    params, x, delta, _ = drawn(case)

    def run(params, x, delta):
        output, saved = jbp.forward(case.net, params, x, KEY)
        delta_x, pairs = jbp.backward(case.net, params, saved, delta)
        return output, delta_x, jbp.contract(pairs)

    output, delta_x, grads = jax.eval_shape(run, params, x, delta)
    assert output.shape == (BATCH, *out_shape)
    if case.inputs is None:
        assert (delta_x.shape, delta_x.dtype) == (x.shape, x.dtype)
    else:
        assert delta_x is None
    chex.assert_trees_all_equal_structs(grads, shapes)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, shapes)


@pytest.mark.parametrize("case", NETS, ids=lambda case: case.name)
def test_a_net_is_hashable_comparable_and_its_repr_makes_it_again(case):
    again = eval(repr(case.net), vars(jbp) | vars(layers) | vars(combine) | {"Gain": Gain, "Table": Table})
    assert again == case.net
    assert hash(again) == hash(case.net)
    assert again is not case.net or not isinstance(case.net, combine.Combinator)
    others = [other.net for other in NETS if other.name != case.name and repr(other.net) != repr(case.net)]
    assert case.net not in others


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.name)
def test_eager_equals_compiled_up_to_rounding(case):
    """One leaf is one compiled function either way; roundings may differ where XLA fuses, hence 4 units."""
    params, x, delta, _ = drawn(case)

    def run(params, x, delta):
        output, saved = jbp.forward(case.net, params, x, KEY)
        delta_x, pairs = jbp.backward(case.net, params, saved, delta)
        return output, delta_x, jbp.contract(pairs)

    errors = error_in_units(run(params, x, delta), compiled(run)(params, x, delta))
    assert max(errors.values(), default=0) <= 4, errors


def test_every_layer_and_combinator_is_in_the_table():
    found = [layer for case in (*NETS, *WITHOUT_GRADIENT) for layer in every_layer(case.net)]
    public = [v for module in (jbp, layers) for v in vars(module).values()]
    classes = {v for v in public if isinstance(v, type) and issubclass(v, Layer)} - {Layer, Activation}
    makers_of = list(vars(combine).values())
    classes |= {c for c in makers_of if isinstance(c, type) and issubclass(c, combine.Combinator)}
    classes -= {combine.Combinator}
    assert classes <= {type(layer) for layer in found}
    assert {v for v in public if isinstance(v, Layer)} <= set(found)
    makers = [
        n for n, v in vars(jbp).items() if getattr(v, "__module__", "").startswith("jbp.combine.") and callable(v)
    ]
    assert {"serial", "residual", "branch", "repeat", "tied"} <= set(makers)
    for name in makers:
        assert any(f"{name}(" in repr(layer) for layer in found), f"{name} is in no case"


WITHOUT_GRADIENT = [case for row in LAYERS if row.no_gradient for case in row.cases]


@pytest.mark.parametrize("case", WITHOUT_GRADIENT, ids=lambda case: case.name)
def test_a_layer_without_a_gradient_computes_its_plain_form(case):
    x = jnp.asarray(random(case.name).normal(size=(BATCH, *case.shape)))
    assert_same(jbp.apply(case.net, (), x), plain(case.net, (), x))
