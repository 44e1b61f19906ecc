"""The update inside the backward pass: the same parameters, without the gradients of a whole stack."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from cases import BATCH, NETS, Centre, Gain, announced, drawn
from oracles import compiled, error_in_units

import jbp
from jbp.combine import Tied
from jbp.losses import l2_loss, softmax_cross_entropy
from jbp.train.in_place import _has_ties, backward_update

CASES = [case for case in NETS if jax.tree.leaves(announced(case)[0]) and not _has_ties(case.net)]
OPTIMISERS = {
    "sgd": jbp.optim.sgd(0.1),
    "heavy ball": jbp.optim.sgd(0.1, momentum=0.9),
    "nesterov, decaying": jbp.optim.nesterov(optax.exponential_decay(0.1, 2, 0.5), 0.9),
}


def step(net, optimizer, in_place):
    """(params, state, x, y) -> (params, state) after one step on the mean l2_loss."""

    def usual(params, state, x, y):
        output, saved = jbp.forward(net, params, x)
        delta = jax.vmap(l2_loss.delta)(output, y) / len(x)
        if in_place:
            return backward_update(net, params, state, saved, delta, optimizer)[1:]
        grads = jbp.backward(net, params, saved, delta, jbp.sinks.total)[1]
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return usual


def same(ours, usual):
    """Parameters and velocity within one unit of rounding (the arithmetic is the same, but XLA fuses a loop's body
    differently), and as many steps."""
    assert jax.tree.structure(usual) == jax.tree.structure(ours)
    assert usual[1].steps == ours[1].steps
    errors = error_in_units((ours[0], ours[1]._replace(steps=())), (usual[0], usual[1]._replace(steps=())))
    assert max(errors.values()) <= 1, errors
    return max(errors.values())


@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case.name)
def test_three_steps_are_the_usual_ones(case, optax_promotion):
    name = list(OPTIMISERS)[CASES.index(case) // 2 % 3]
    optimizer = OPTIMISERS[name]
    params, x, y, _ = drawn(case)

    def three(in_place):
        def run(params, x, y):
            state = optimizer.init(params)
            for _ in range(3):
                params, state = step(case.net, optimizer, in_place)(params, state, x, y)
            return params, state

        return compiled(run)(params, x, y)

    usual, ours = three(False), three(True)
    error = same(ours, usual)
    if "repeat" not in repr(case.net):
        assert error == 0  # to the bit


def stack(layer, depth=48):
    return jbp.serial(jbp.repeat(layer, depth), jbp.Dense(10))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("residual", [False, True])
def test_temporaries_are_activations_and_two_layers(momentum, residual):
    """48 layers of 512, batch 64, in place: within 10 %. A plain layer keeps its output, a residual one input and
    output; a layer is its weight and bias, and its velocity where there is one."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        block = jbp.serial(jbp.Dense(512), jbp.relu)
        net = stack(jbp.residual(block) if residual else block)
        optimizer = jbp.optim.sgd(1e-3, momentum=momentum)
        params, _ = net.init(jax.random.key(0), (512,))
        x, y = jnp.ones((64, 512)), jnp.arange(64) % 10

        def run(params, state, x, y):
            output, saved = jbp.forward(net, params, x)
            delta = jax.vmap(softmax_cross_entropy.delta)(output, y) / 64
            return backward_update(net, params, state, saved, delta, optimizer)[1:]

        def usual(params, state, x, y):
            _, grads = jbp.value_and_grad(net, softmax_cross_entropy)(params, x, y)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def memory_of(step) -> Any:
            lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), x, y)
            return lowered.compile().memory_analysis()

        memory, whole = memory_of(run), memory_of(usual)
        weights = sum(a.nbytes for a in jax.tree.leaves(params))
        activations = 48 * 64 * 512 * 4 * (2 if residual else 1)
        layer = 4 * (512 * 512 + 512) * (2 if momentum else 1)
        print(
            f"momentum {momentum}, residual {residual}: {memory.temp_size_in_bytes / 1e6:.1f} MB, "
            f"the usual way {whole.temp_size_in_bytes / 1e6:.1f} MB"
        )
        assert memory.temp_size_in_bytes <= 1.1 * (activations + 2 * layer)
        assert whole.temp_size_in_bytes > weights  # it holds the gradient of the whole stack
        assert memory.alias_size_in_bytes >= weights * (2 if momentum else 1)


def test_a_batch_coupled_net_and_a_users_layer():
    net = jbp.serial(Gain(), jbp.Dense(5), Centre(), jbp.Dense(2))
    params, _ = net.init(jax.random.key(0), (3,))
    x, y = jax.random.normal(jax.random.key(1), (BATCH, 3)), jnp.ones((BATCH, 2))
    optimizer = OPTIMISERS["heavy ball"]
    both = [compiled(step(net, optimizer, on))(params, optimizer.init(params), x, y) for on in (False, True)]
    same(both[1], both[0])


def test_what_it_is_not_for_is_refused():
    net = jbp.tied(jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(3)), {2: 0})
    params, _ = net.init(jax.random.key(0), (3,))
    x = jnp.ones((2, 3))
    output, saved = jbp.forward(net, params, x)
    sgd, adam = jbp.optim.sgd(0.1), optax.adam(0.1)
    with pytest.raises(ValueError, match="tied parameter must be added up"):
        backward_update(net, params, sgd.init(params), saved, output, sgd)
    assert isinstance(net, Tied)
    with pytest.raises(ValueError, match=r"sgd, heavy_ball and nesterov.*state is tuple"):
        backward_update(net.layer, params, adam.init(params), saved, output, adam)


def test_fit_in_place_trains_the_same_parameters():
    net = jbp.serial(jbp.Dense(5), jbp.repeat(jbp.serial(jbp.Dense(5), jbp.relu, jbp.Dropout(0.2)), 3), jbp.Dense(2))
    x = jax.random.normal(jax.random.key(1), (23, 3))
    data = x, (x.sum(1) > 0).astype(jnp.int32)

    def fitted(in_place):
        optimizer = jbp.optim.sgd(0.1, momentum=0.9)
        return jbp.fit(net, softmax_cross_entropy, optimizer, data, epochs=3, batch_size=7, in_place=in_place)

    usual, ours = fitted(False), fitted(True)
    errors = error_in_units(ours.params, usual.params)
    assert max(errors.values()) <= 64, errors
    assert ours.state.opt_state.steps == usual.state.opt_state.steps == 12


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rule": "feedback_alignment"}, "expected one of rule and in_place"),
        ({"trainable": True}, "leave out trainable"),
        ({"optimizer": optax.adam(0.1)}, "sgd, heavy_ball and nesterov"),
    ],
)
def test_fit_refuses_in_place_with_what_does_not_fit(more, words):
    data = jnp.ones((4, 3)), jnp.zeros(4, jnp.int32)
    arguments = {"optimizer": jbp.optim.sgd(0.1)} | more
    optimizer = arguments.pop("optimizer")
    with pytest.raises(ValueError, match=words):
        jbp.fit(jbp.Dense(2), softmax_cross_entropy, optimizer, data, batch_size=2, in_place=True, **arguments)
