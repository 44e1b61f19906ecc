"""The update inside the backward pass: the same parameters, without the gradients of a whole stack."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from cases import BATCH, NETS, TIES, Centre, Gain, announced, drawn
from oracles import compiled, error_in_units

import jbp
from jbp.losses import l2_loss, softmax_cross_entropy
from jbp.train.in_place import backward_update

CASES = [case for case in NETS if jax.tree.leaves(announced(case)[0]) and case not in TIES]
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
    chex.assert_trees_all_equal_structs(usual, ours)
    assert usual[1].steps == ours[1].steps
    errors = error_in_units((ours[0], ours[1]._replace(steps=())), (usual[0], usual[1]._replace(steps=())))
    assert max(errors.values()) <= 1, errors
    return max(errors.values())


def three_steps(case, optimizer):
    """(params, state) after three steps, the usual way and in place."""
    params, x, y, _ = drawn(case)

    def by(in_place):
        def run(params, x, y):
            state = optimizer.init(params)
            for _ in range(3):
                params, state = step(case.net, optimizer, in_place)(params, state, x, y)
            return params, state

        return compiled(run)(params, x, y)

    return by(False), by(True)


@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case.name)
def test_three_steps_are_the_usual_ones(case, optax_promotion):
    name = list(OPTIMISERS)[CASES.index(case) // 2 % 3]
    usual, ours = three_steps(case, OPTIMISERS[name])
    error = same(ours, usual)
    if "repeat" not in repr(case.net):
        assert error == 0  # to the bit


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("case", TIES, ids=lambda case: case.name)
def test_a_shared_parameter_takes_one_step_with_the_sum_over_its_uses(case, momentum, optax_promotion):
    """To the bit: every δ was made with the parameters as they were, and the uses are added up in the same order."""
    name = list(OPTIMISERS)[1 + TIES.index(case) % 2 if momentum else 0]
    usual, ours = three_steps(case, OPTIMISERS[name])
    error = same(ours, usual)
    if not momentum or "repeat" not in repr(case.net):
        assert error == 0


def stack(layer, depth=48):
    return jbp.serial(jbp.repeat(layer, depth), jbp.Dense(10))


def memory_of(net, optimizer, in_place) -> Any:
    """What XLA plans for a step on a batch of 64, which it may write into its arguments."""
    params = jax.eval_shape(lambda key: net.init(key, (512,))[0], jax.random.key(0))
    x, y = jnp.ones((64, 512)), jnp.arange(64) % 10

    def ours(params, state, x, y):
        output, saved = jbp.forward(net, params, x)
        delta = jax.vmap(softmax_cross_entropy.delta)(output, y) / 64
        return backward_update(net, params, state, saved, delta, optimizer)[1:]

    def usual(params, state, x, y):
        _, grads = jbp.value_and_grad(net, softmax_cross_entropy)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(ours if in_place else usual, donate_argnums=(0, 1))
    return run.lower(params, jax.eval_shape(optimizer.init, params), x, y).compile().memory_analysis()


def bytes_of(net):
    params = jax.eval_shape(lambda key: net.init(key, (512,))[0], jax.random.key(0))
    return sum(4 * a.size for a in jax.tree.leaves(params))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("residual", [False, True])
def test_temporaries_are_activations_and_two_layers(momentum, residual):
    """48 layers of 512, batch 64, in place: within 10 %. A plain layer keeps its output, a residual one input and
    output; a layer is its weight and bias, and its velocity where there is one."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        block = jbp.serial(jbp.Dense(512), jbp.relu)
        net = stack(jbp.residual(block) if residual else block)
        optimizer = jbp.optim.sgd(1e-3, momentum=momentum)
        memory, whole = (memory_of(net, optimizer, in_place) for in_place in (True, False))
        weights = bytes_of(net)
        activations = 48 * 64 * 512 * 4 * (2 if residual else 1)
        layer = 4 * (512 * 512 + 512) * (2 if momentum else 1)
        print(
            f"momentum {momentum}, residual {residual}: {memory.temp_size_in_bytes / 1e6:.1f} MB, "
            f"the usual way {whole.temp_size_in_bytes / 1e6:.1f} MB"
        )
        assert memory.temp_size_in_bytes <= 1.1 * (activations + 2 * layer)
        assert whole.temp_size_in_bytes > weights  # it holds the gradient of the whole stack
        assert memory.alias_size_in_bytes >= weights * (2 if momentum else 1)


def test_a_tie_around_a_stack_costs_one_gradient_and_the_stack_is_updated_inside_the_walk_all_the_same():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        block = jbp.serial(jbp.Dense(512), jbp.relu)
        net = jbp.serial(jbp.repeat(block, 48), *[jbp.Dense(512), jbp.relu] * 2, jbp.Dense(10))
        tied = jbp.tied(net, {(3, "weight"): (1, "weight")})
        optimizer = jbp.optim.sgd(1e-3)
        untied, ours, usual = (
            memory_of(n, optimizer, in_place).temp_size_in_bytes
            for n, in_place in ((net, True), (tied, True), (tied, False))
        )
        print(f"untied {untied / 1e6:.1f} MB, tied {ours / 1e6:.1f} MB, the usual way {usual / 1e6:.1f} MB")
        assert ours <= 1.01 * (untied + 4 * 512 * 512)
        assert usual > bytes_of(jbp.repeat(block, 48))


def test_a_batch_coupled_net_and_a_users_layer():
    net = jbp.serial(Gain(), jbp.Dense(5), Centre(), jbp.Dense(2))
    params, _ = net.init(jax.random.key(0), (3,))
    x, y = jax.random.normal(jax.random.key(1), (BATCH, 3)), jnp.ones((BATCH, 2))
    optimizer = OPTIMISERS["heavy ball"]
    both = [compiled(step(net, optimizer, on))(params, optimizer.init(params), x, y) for on in (False, True)]
    same(both[1], both[0])


def test_what_it_is_not_for_is_refused():
    net, adam = jbp.Dense(3), optax.adam(0.1)
    params, _ = net.init(jax.random.key(0), (3,))
    output, saved = jbp.forward(net, params, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"sgd, heavy_ball and nesterov.*state is tuple"):
        backward_update(net, params, adam.init(params), saved, output, adam)


@pytest.mark.parametrize("ties", [{}, {3: 0}], ids=["untied", "tied"])
def test_fit_in_place_trains_the_same_parameters(ties):
    stack = jbp.repeat(jbp.serial(jbp.Dense(3), jbp.relu, jbp.Dropout(0.2)), 3)
    net = jbp.serial(jbp.Dense(3), stack, jbp.Dense(3), jbp.Dense(3), jbp.Dense(2))
    net = jbp.tied(net, ties) if ties else net
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
