"""The spine: compiled once, frozen parameters cost nothing, and no reverse-mode autodiff under it."""

import importlib
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import product_flops, xla_cost
from oracles import assert_close, assert_same

import jbp
from jbp import losses
from jbp.losses import softmax_cross_entropy

KEY = jax.random.key(4)


def mlp():
    return jbp.serial(jbp.Dense(11), jbp.relu, jbp.Dense(13), jbp.tanh, jbp.Dense(5))


def data(net, shape=(7,), n=3, classes=5):
    params, _ = net.init(KEY, shape)
    return params, jax.random.normal(KEY, (n, *shape)), jnp.arange(n) % classes


@dataclass(frozen=True, repr=False)
class Counted(losses.L2Loss):
    """l2_loss whose value may be traced once; `tag` tells two losses apart."""

    tag: str
    value = chex.assert_max_traces(losses.L2Loss.value, n=2)  # once for the shape of the output


def test_value_and_grad_is_the_same_function_for_an_equal_net_and_loss_and_traces_once():
    params, x, _ = data(mlp())
    y = jnp.ones((3, 5))
    first = jbp.value_and_grad(mlp(), Counted("memo"))
    for _ in range(3):
        again = jbp.value_and_grad(mlp(), Counted("memo"))
        assert again is first
        again(params, x, y)
    with pytest.raises(AssertionError, match="traced > 2 times"):  # for another shape it has to be
        first(params, x[:2], y[:2])
    assert jbp.value_and_grad(mlp(), Counted("other")) is not first
    assert jbp.value_and_grad(jbp.serial(*mlp().layers[:-1], jbp.Dense(6)), Counted("memo")) is not first
    assert jbp.value_and_grad(mlp(), Counted("memo"), False) is not first


MASKS = [
    True, False, (False, True, True, True, True), ({"weight": False, "bias": True}, True, True, True, True),
    (True, False, {"weight": True, "bias": False}, (), False), (True, True, True, True, False),
]  # fmt: skip


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_frozen_leaf_has_gradient_zero_and_the_others_do_not_notice(mask):
    net = mlp()
    params, x, y = data(net)
    value, grads = jbp.value_and_grad(net, softmax_cross_entropy)(params, x, y)
    masked_value, masked = jbp.value_and_grad(net, softmax_cross_entropy, mask)(params, x, y)
    expected = jax.tree.map(lambda on, g: jax.tree.map(lambda a: a if on else 0 * a, g), mask, grads)
    assert_close((masked_value, masked), (value, expected), "layer")


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_freezing_costs_no_contraction_and_the_lowest_layers_no_delta(frozen):
    """Per example and weight i·o: forward always, contraction if trained, δ if something below is trained."""
    net, n = mlp(), 3
    params, x, y = data(net, n=n)
    sizes = [7 * 11, 11 * 13, 13 * 5]
    mask = tuple(i // 2 >= frozen for i in range(5))
    run = jbp.value_and_grad(net, softmax_cross_entropy, mask)
    products = sum(sizes) + sum(sizes[frozen:]) + sum(sizes[frozen + 1 :])
    assert product_flops(run, params, x, y) == 2 * n * products


def test_freezing_one_leaf_in_the_middle_saves_its_contraction_and_nothing_else():
    net, n = mlp(), 3
    params, x, y = data(net, n=n)

    def flops(mask):
        run = jbp.value_and_grad(net, softmax_cross_entropy, mask)
        return product_flops(run, params, x, y), xla_cost(run, params, x, y)[0]

    (counted, by_xla), (counted_frozen, by_xla_frozen) = (
        flops(True),
        flops((True, True, {"weight": False, "bias": True}, True, True)),
    )
    assert counted - counted_frozen == 2 * n * 11 * 13
    assert by_xla - by_xla_frozen >= 2 * n * 11 * 13 * 0.95


def test_freezing_under_repeat_saves_the_contraction_in_every_round():
    net = jbp.serial(jbp.Dense(11), jbp.repeat(jbp.serial(jbp.Dense(11), jbp.relu), 4), jbp.Dense(5))
    params, x, y = data(net)

    def flops(mask):
        return product_flops(jbp.value_and_grad(net, softmax_cross_entropy, mask), params, x, y)

    assert flops(True) - flops((True, False, True)) == 2 * 3 * 4 * 11 * 11
    assert (
        flops(True) - flops((False, False, True))
        == 2 * 3 * (2 * 4 * 11 * 11 + 7 * 11 + 11 * 11 - 11 * 11) + 2 * 3 * 11 * 5
    )


def test_apply_is_forward_in_evaluation_and_eager_is_compiled():
    net = jbp.serial(jbp.Dense(11), jbp.Dropout(0.5), jbp.silu)
    params, x, _ = data(net)
    output = jbp.apply(net, params, x)
    assert_same(output, jbp.forward(net, params, x)[0])
    assert_close(output, jax.jit(lambda p, x: jbp.apply(net, p, x))(params, x), "layer")


def test_numpy_arrays_serve_as_data():
    net = mlp()
    params, x, y = data(net)
    run = jbp.value_and_grad(net, softmax_cross_entropy)
    assert_same(run(jax.tree.map(np.asarray, params), np.asarray(x), np.asarray(y)), run(params, x, y))


def test_a_batch_of_one_is_the_lectures_sgd():
    net = mlp()
    params, x, y = data(net)
    run = jbp.value_and_grad(net, softmax_cross_entropy)
    each = [run(params, x[i : i + 1], y[i : i + 1]) for i in range(3)]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *each)
    assert_close(mean, run(params, x, y), "net")


_DOORS = "grad value_and_grad vjp linearize jacrev hessian linear_transpose custom_vjp"
_INNER = "vjp linearize direct_linearize linearize_jaxpr linearize_subtrace backward_pass backward_pass3"
AUTODIFF = [
    *(f"jax.{name}" for name in _DOORS.split()),
    *(f"jax._src.api.{name}" for name in f"{_DOORS} _vjp".split()),
    *(f"jax._src.interpreters.ad.{name}" for name in _INNER.split()),
]


@pytest.fixture
def no_autodiff(monkeypatch):
    """JAX's reverse mode raises, whichever door one takes."""
    grad, vjp, linearize = jax.grad, jax.vjp, jax.linearize

    def forbidden(*args, **kwargs):
        raise RuntimeError("reverse-mode autodiff was called")

    for name in AUTODIFF:
        module, _, attribute = name.rpartition(".")
        place = importlib.import_module(module)
        if hasattr(place, attribute):  # the inner ones come and go with JAX's versions
            monkeypatch.setattr(place, attribute, forbidden)

    def square(x):
        return (x * x).sum()

    for door in (
        lambda: jax.grad(square),
        lambda: grad(square)(1.5),
        lambda: vjp(square, 1.5),
        lambda: linearize(square, 1.5),
    ):
        with pytest.raises(RuntimeError, match="reverse-mode"):
            door()


def everything(width):
    """A net of every combinator that no other test has compiled: the width is this test's own."""
    block = jbp.residual(jbp.serial(jbp.Dense(width), jbp.relu, jbp.Dropout(0.1), jbp.Dense(6)))
    arms = jbp.branch(jbp.Dense(4), jbp.serial(jbp.Dense(3), jbp.tanh), join="concat")
    return jbp.serial(jbp.Flatten(), jbp.Dense(6), jbp.gelu, jbp.Dropout(0.1), jbp.repeat(block, 2), arms, jbp.Dense(3))


def separable(n=48):
    """Three well separated clouds of points."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    return jnp.asarray(rng.normal(size=(n, 2, 4)) + 3 * np.eye(3)[y][:, [0, 1], None]), jnp.asarray(y)


def test_a_net_trains_while_reverse_mode_autodiff_raises(no_autodiff):
    net = everything(17)
    x, y = separable()
    params, _ = net.init(KEY, (2, 4))
    optimizer = jbp.optim.sgd(0.05, momentum=0.9)
    state, run, losses_seen = optimizer.init(params), jbp.value_and_grad(net, softmax_cross_entropy), []
    for key in jax.random.split(KEY, 20):
        value, grads = run(params, x, y, key)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        losses_seen.append(float(value))
    assert losses_seen[-1] < 0.5 * losses_seen[0], losses_seen


def test_fit_trains_while_reverse_mode_autodiff_raises(no_autodiff):
    x, y = separable()
    optimizer = jbp.optim.sgd(0.01, momentum=0.9)
    result = jbp.fit(everything(19), softmax_cross_entropy, optimizer, (x, y), epochs=15, batch_size=16, seed=0)
    assert result.history[-1]["train_loss"] < 0.5 * result.history[0]["train_loss"]


def test_contract_without_weights_is_the_mean_and_refuses_what_is_no_tree_of_pairs():
    net = mlp()
    params, x, _ = data(net)
    output, saved = jbp.forward(net, params, x)
    _, pairs = jbp.backward(net, params, saved, jnp.cos(output))
    mean, total = jbp.contract(pairs), jbp.contract(pairs, jnp.ones(3))
    assert_close(mean, jax.tree.map(lambda g: g / 3, total), "layer")
    delta_x, _ = jbp.backward(net, params, saved, jnp.cos(output))
    assert delta_x.shape == x.shape
    with pytest.raises(ValueError, match=r"takes the pairs that jbp\.backward returns"):
        jbp.contract(((), "no pair"))
