"""Learning rules, against plain arrays: each formula written out for one small net, δ and all."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import COMBINED, NETS, Centre, Gain, announced, drawn
from counting import product_flops
from oracles import assert_close, assert_same

import jbp
from jbp import cli, rules
from jbp.backprop import Batch, Trainable, value_grad_output
from jbp.rules import DirectFeedbackAlignment, FeedbackAlignment, KolenPollack, SignSymmetry, Step, Transport
from jbp.rules.rule import Way

N = 11
NET = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(5), jbp.tanh, jbp.Dense(2))  # of inputs [3]
LOSS = jbp.losses.l2_loss  # δ = output − target
KEY = jax.random.key(5)
EVERY = [*rules.NAMES.values(), SignSymmetry("fixed", scale=0.3)]


@dataclass(frozen=True)
class Same(Transport):
    """The rule that is backpropagation."""

    def transport(self, weights, state):
        return weights


def random(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def randomised(tree: Any, seed: int = 0) -> Any:
    """The tree with normal numbers in place of every array."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([0.5 * random(seed + i, *leaf.shape) for i, leaf in enumerate(leaves)])


def setting(net: Any = NET, shape: tuple[int, ...] = (3,), outputs: int = 2) -> Any:
    """Parameters away from their initial values, and a batch whose errors are random."""
    params = randomised(jax.eval_shape(lambda: net.init(KEY, shape)[0]))
    return params, random(101, N, *shape), random(102, N, outputs)


def bound(rule: Any, net: Any, params: Any, x: Any, trainable: Any = None) -> tuple[Any, Any]:
    own = rules.rule_of(rule).bind(net, params, x, Trainable.of(trainable))
    return own, own.init(KEY, params)


def by_rule(own: Any, state: Any, net: Any, params: Any, x: Any, y: Any, key: Any = None, weights: Any = None) -> Any:
    """What a bound rule finds in place of the gradient."""
    way = Way(net, own)
    return value_grad_output(way, LOSS, (params, state), Batch(x, y, weights), key, Trainable.of(None))[1]


def found(rule: Any, net: Any, params: Any, x: Any, y: Any, loss: Any = LOSS, key: Any = None) -> tuple[Any, Any]:
    """The rule's state and what it finds in place of the gradient."""
    problem = jbp.Problem(net, loss, SGD, method=rules.method_of(rule))
    _, state = bound(rule, net, params, x)

    @jax.jit
    def sums(method_state: Any, params: Any, x: Any, y: Any, key: Any) -> Any:
        state = jbp.State(params, (), method_state, KEY, jnp.int32(1), jnp.int32(0))
        return problem.method.sums(problem, state, Batch(x, y), key).grads

    return state, sums(state, params, x, y, key)


def mlp_updates(params: Any, x: Any, y: Any, below: Any) -> Any:
    """h ⊗ δ of the three layers of `NET`; `below(l, e, delta)` is δ at the input of layer l."""
    w, b = [p["weight"] for p in params[::2]], [p["bias"] for p in params[::2]]
    h = [x]
    for i in range(2):
        h.append(jnp.tanh(jnp.einsum("ni,io->no", h[i], w[i]) + b[i][None]))
    e = delta = (jnp.einsum("ni,io->no", h[2], w[2]) + b[2][None] - y) / N
    grads: list[Any] = [()] * 5
    for i in (2, 1, 0):
        grads[2 * i] = {"weight": jnp.einsum("ni,no->io", h[i], delta), "bias": delta.sum(0)}
        delta = below(i, e, delta) * (1 - h[i] ** 2)
    return tuple(grads)


# The rules, each against its formula


def test_feedback_alignment_carries_delta_through_fixed_random_weights():
    params, x, y = setting()
    state, ours = found(FeedbackAlignment(), NET, params, x, y)
    back = [s["weight"] for s in state[::2]]
    assert [b.shape for b in back] == [(3, 7), (7, 5), (5, 2)]
    assert_close(ours, mlp_updates(params, x, y, lambda i, e, d: jnp.einsum("no,io->ni", d, back[i])), "net")


def test_direct_feedback_alignment_carries_the_output_error_to_every_layer():
    params, x, y = setting()
    state, ours = found(DirectFeedbackAlignment(), NET, params, x, y)
    assert {name: b.shape for name, b in state.items()} == {"0": (2, 3), "2": (2, 7), "4": (2, 5)}
    back = list(state.values())
    assert_close(ours, mlp_updates(params, x, y, lambda i, e, d: jnp.einsum("nk,ki->ni", e, back[i])), "net")


def test_with_one_hidden_layer_and_the_same_weights_feedback_alignment_is_the_direct_one():
    net = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(2))
    params, x, y = setting(net)
    state, ours = found(FeedbackAlignment(), net, params, x, y)
    direct, own = bound(DirectFeedbackAlignment(), net, params, x)
    shared = own | {"2": state[2]["weight"].T}
    assert_close(by_rule(direct, shared, net, params, x, y), ours, "net")


@pytest.mark.parametrize("magnitude", ["uniform", "batchwise", "fixed"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_sign_symmetry_has_the_signs_of_the_weights_and_its_own_magnitudes(magnitude: Any, scale: float | None):
    rule = SignSymmetry(magnitude, scale)
    weights = {"a": random(0, 101, 97), "b": None, "c": 3 * random(1, 89, 83)}
    state = rule.init(KEY, weights)
    first = rule.transport(weights, state)
    assert first["b"] is None
    for name, size in (("a", 1.0), ("c", 3.0)):
        v, w = np.asarray(first[name]), np.asarray(weights[name])
        assert (np.sign(v) == np.sign(w)).all()
        mean_square = np.square(w).mean()
        if magnitude == "uniform":
            np.testing.assert_allclose(np.abs(v), np.sqrt(mean_square) if scale is None else scale, rtol=1e-12)
            continue
        top = np.sqrt(3 * mean_square) if scale is None else scale
        share = np.abs(v) / top  # uniform on [0, 1)
        assert share.min() >= 0
        assert share.max() < 1
        assert abs(share.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / share.size), size
        assert abs(np.square(share).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / share.size), size
    _, later = rule.update(weights, state, weights)
    moved = rule.transport(jax.tree.map(lambda w: -2 * w, weights), later)
    assert bool((moved["a"] == -first["a"]).all()) is (magnitude != "batchwise")
    assert bool((jnp.sign(moved["a"]) == -jnp.sign(first["a"])).all())


def test_sign_symmetry_as_published_is_the_sign():
    params, x, y = setting()
    _, ours = found(SignSymmetry(scale=1.0), NET, params, x, y)
    back = [np.sign(p["weight"]) for p in params[::2]]
    assert_close(ours, mlp_updates(params, x, y, lambda i, e, d: jnp.einsum("no,io->ni", d, back[i])), "net")


def test_kolen_pollack_brings_the_two_weights_together_at_a_known_rate():
    rule, decay = KolenPollack(decay=0.1), 0.1
    params, x, _ = setting()
    method, state = bound(rule, NET, params, x)
    start = jax.tree.map(jnp.subtract, method.weights(params), state)
    naive = params[0]["weight"], state[0]["weight"]
    for t in range(7):
        updates = randomised(params, seed=1000 + 10 * t)
        changed, state = method.after(state, params, updates)
        assert_same(changed[0]["bias"], updates[0]["bias"])
        u = updates[0]["weight"]
        naive = naive[0] + u - decay * naive[0], naive[1] + u - decay * naive[1]
        params = jax.tree.map(jnp.add, params, changed)
    assert_close((params[0]["weight"], state[0]["weight"]), naive, "steps")
    apart = jax.tree.map(jnp.subtract, method.weights(params), state)
    size = float(jnp.abs(params[0]["weight"]).max())
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(start), strict=True):
        np.testing.assert_allclose(a, (1 - decay) ** 7 * b, rtol=0, atol=64 * 2.3e-16 * size)


# Every net


@pytest.mark.parametrize(
    "name", ["classifier", "dropout between", "repeat in repeat", "branch in branch", "all together"]
)
def test_the_weights_themselves_give_backpropagation_to_the_bit(name: str):
    case = next(case for case in NETS if case.name == name)
    params, x, y, _ = drawn(case)
    y = jnp.ones_like(y)
    key = jax.random.key(9)
    _, ours = found(Same(), case.net, params, x, y, key=key)
    assert_same(ours, jbp.value_and_grad(case.net, LOSS)(params, x, y, key)[1])


def test_every_rule_runs_through_every_net():
    for case in COMBINED:
        params, out_shape = announced(case)
        x, y = (jax.ShapeDtypeStruct((N, *shape), jnp.float64) for shape in (case.shape, out_shape))
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        if not any(path[-1].key == "weight" for path, _ in leaves):
            continue

        def step(rule: Any, params: Any, x: Any, y: Any, net: Any = case.net) -> Any:
            own, state = bound(rule, net, params, x)
            return by_rule(own, state, net, params, x, y, KEY)

        for rule in (FeedbackAlignment(), DirectFeedbackAlignment()):
            assert jax.eval_shape(lambda *args: step(rule, *args), params, x, y) == params, case.name  # noqa: B023


def test_below_a_layer_that_couples_the_examples_a_rule_works_too():
    net = jbp.serial(jbp.Dense(5), Centre(), jbp.tanh, jbp.Dense(2))
    params, x, y = setting(net)
    weights = jnp.arange(N) / N
    own, _ = bound(Same(), net, params, x)
    ours = by_rule(own, (), net, params, x, y, None, weights)
    _, true = jbp.value_and_grad(net, LOSS)(params, x, y, None, weights)
    assert_close((ours[0]["weight"], *ours[1:]), (true[0]["weight"], *true[1:]), "net")  # the bias cancels: rounding
    state, ours = found(FeedbackAlignment(), net, params, x, y)
    s = x @ params[0]["weight"] + params[0]["bias"][None]
    h = jnp.tanh(s - s.mean(0)[None])
    e = (h @ params[3]["weight"] + params[3]["bias"][None] - y) / N
    delta = (e @ state[3]["weight"].T) * (1 - h**2)
    assert_close(ours[0]["weight"], x.T @ (delta - delta.mean(0)[None]), "net")


def test_direct_feedback_alignment_runs_through_repeat_residual_and_branch():
    inner = jbp.residual(jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(5)))
    arms = jbp.branch(jbp.Dense(2), jbp.serial(jbp.tanh, jbp.Dense(3)), join="concat")
    net = jbp.serial(jbp.Dense(5), jbp.repeat(jbp.serial(inner, jbp.tanh), 3), arms, jbp.Dense(2))
    params, x, y = setting(net)
    state, ours = found(DirectFeedbackAlignment(), net, params, x, y)

    def dense(p: Any, h: Any) -> Any:
        return jnp.einsum("ni,io->no", h, p["weight"]) + p["bias"][None]

    def pairs(h: Any, delta: Any) -> Any:
        return {"weight": jnp.einsum("ni,no->io", h, delta), "bias": delta.sum(0)}

    def sent(b: Any) -> Any:
        return jnp.einsum("nk,ki->ni", e, b)

    first, stack, (left, right), last = params
    h = dense(first, x)
    kept = []
    for layer in range(3):
        up, _, down = jax.tree.map(lambda a: a[layer], stack[0])  # noqa: B023
        middle = jnp.tanh(dense(up, h))
        y_l = jnp.tanh(h + dense(down, middle))
        kept.append((h, middle, y_l))
        h = y_l
    joined = jnp.concatenate([dense(left, h), dense(right[1], jnp.tanh(h))], 1)
    e = (dense(last, joined) - y) / N

    grads_last = pairs(joined, e)
    delta = sent(state["3"])
    grads_left, grads_right = pairs(h, delta[:, :2]), pairs(jnp.tanh(h), delta[:, 2:])
    delta = sent(state["2.0"]) + sent(state["2.1.1"]) * (1 - jnp.tanh(h) ** 2)
    found_l = []
    for layer in (2, 1, 0):
        b_up, b_down = state["1.0.0"][layer], state["1.0.2"][layer]
        h, middle, y_l = kept[layer]
        delta = delta * (1 - y_l**2)
        inside = sent(b_down) * (1 - middle**2)
        found_l.append((pairs(h, inside), (), pairs(middle, delta)))
        delta = delta + sent(b_up)
    grads_stack = (jax.tree.map(lambda *a: jnp.stack(a), *reversed(found_l)), ())
    expected = pairs(x, delta), grads_stack, (grads_left, ((), grads_right)), grads_last
    assert_close(ours, expected, "net")


def test_direct_feedback_alignment_at_positions():
    net = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(2))
    params, x, _ = setting(net)
    x, y = random(0, N, 5, 3), random(1, N, 5, 2)
    state, ours = found(DirectFeedbackAlignment(), net, params, x, y)
    assert state["2"].shape == (2, 7)  # one for all positions
    h = jnp.tanh(jnp.einsum("nti,io->nto", x, params[0]["weight"]) + params[0]["bias"][None, None])
    e = (jnp.einsum("nti,io->nto", h, params[2]["weight"]) + params[2]["bias"][None, None] - y) / (5 * N)
    delta = jnp.einsum("ntk,ki->nti", e, state["2"]) * (1 - h**2)
    assert_close(ours[0]["weight"], jnp.einsum("nti,nto->io", x, delta), "net")

    flat = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Flatten(), jbp.Dense(2))
    params = randomised(jax.eval_shape(lambda: flat.init(KEY, (5, 3))[0]))
    state, ours = found(DirectFeedbackAlignment(), flat, params, x, y[:, 0])
    assert state["0"].shape == (2, 5 * 3)  # one for each position
    assert state["3"].shape == (2, 5 * 7)


def test_a_shared_weight_has_one_way_back():
    net = jbp.tied(jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(3)), {(2, "weight"): (0, "weight")})
    params, x, _ = setting(net)
    y = random(3, N, 3)
    for rule in EVERY:
        found(rule, net, params, x, y)
    state, ours = found(FeedbackAlignment(), net, params, x, y)
    w, b = params[0]["weight"], state[0]["weight"]
    h = jnp.tanh(x @ w + params[0]["bias"][None])
    e = (h @ w + params[2]["bias"][None] - y) / N
    assert_close(ours[0]["weight"], h.T @ e + x.T @ ((e @ b.T) * (1 - h**2)), "net")


@pytest.mark.parametrize(("ties", "width"), [({(2, "bias"): (0, "bias")}, 3), ({2: 0}, 5)], ids=["a bias", "a layer"])
def test_in_direct_feedback_alignment_a_layer_that_borrows_has_a_road_of_its_own(ties: Any, width: int):
    net = jbp.tied(jbp.serial(jbp.Dense(5), jbp.tanh, jbp.Dense(5)), ties)
    params, x, y = setting(net, (width,), 5)
    state, ours = found(DirectFeedbackAlignment(), net, params, x, y)
    assert {name: b.shape for name, b in state.items()} == {"0": (5, width), "2": (5, 5)}
    first, _, last = net.whole(params)
    h = jnp.tanh(x @ first["weight"] + first["bias"][None])
    e = (h @ last["weight"] + last["bias"][None] - y) / N
    delta = (e @ state["2"]) * (1 - h**2)
    assert_close(ours[0]["bias"], e.sum(0) + delta.sum(0), "net")
    if width == 3:
        assert_close((ours[0]["weight"], ours[2]["weight"]), (x.T @ delta, h.T @ e), "net")
    else:
        assert_close(ours[0]["weight"], x.T @ delta + h.T @ e, "net")


def test_direct_feedback_alignment_of_tied_layers_in_a_stack_is_that_of_the_layers_one_after_another():
    block = jbp.tied(jbp.serial(jbp.Dense(5), jbp.tanh, jbp.Dense(5)), {(2, "bias"): (0, "bias")})
    stack, flat = jbp.serial(jbp.repeat(block, 3), jbp.Dense(2)), jbp.serial(block, block, block, jbp.Dense(2))
    params, x, y = setting(stack, (5,))
    state, ours = found(DirectFeedbackAlignment(), stack, params, x, y)
    assert {name: b.shape for name, b in state.items()} == {"0.0": (3, 2, 5), "0.2": (3, 2, 5), "1": (2, 5)}
    layers = [jax.tree.map(lambda a: a[layer], params[0]) for layer in range(3)]  # noqa: B023
    same = {f"{layer}.{i}": state[f"0.{i}"][layer] for layer in range(3) for i in (0, 2)} | {"3": state["1"]}
    own, _ = bound(DirectFeedbackAlignment(), flat, (*layers, params[1]), x)
    *each, last = by_rule(own, same, flat, (*layers, params[1]), x, y)
    assert_close(ours, (jax.tree.map(lambda *a: jnp.stack(a), *each), last), "net")


def test_gains_and_biases_are_left_alone():
    net = jbp.serial(jbp.Dense(7), Gain(0.5), jbp.Dense(2))
    params, x, y = setting(net)
    state, ours = found(FeedbackAlignment(), net, params, x, y)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(3, 7), (7, 2)]
    s = x @ params[0]["weight"] + params[0]["bias"][None]
    e = (0.5 * params[1]["gain"][None] * s @ params[2]["weight"] + params[2]["bias"][None] - y) / N
    below = e @ state[2]["weight"].T
    assert_close(ours[1]["gain"], (0.5 * s * below).sum(0), "net")
    assert_close(ours[0]["bias"], (0.5 * params[1]["gain"][None] * below).sum(0), "net")


def test_another_way_back_costs_what_backpropagation_costs():
    net = jbp.serial(jbp.Dense(7), jbp.repeat(jbp.serial(jbp.Dense(7), jbp.tanh), 5), jbp.Dense(2))
    params, x, y = setting(net)
    true = product_flops(jbp.value_and_grad(net, LOSS), params, x, y)
    for rule in EVERY:
        own, state = bound(rule, net, params, x)
        cost = product_flops(lambda s, p: by_rule(own, s, net, p, x, y), state, params)  # noqa: B023
        assert cost <= true if isinstance(rule, DirectFeedbackAlignment) else cost == true, rule


# Alignment


def test_alignment_is_the_angle_to_the_gradient_and_the_ratio_of_norms():
    net = jbp.serial(jbp.Dense(5), jbp.repeat(jbp.serial(jbp.Dense(5), jbp.tanh), 3), jbp.Dense(2))
    params, x, y = setting(net)
    state, ours = found(FeedbackAlignment(), net, params, x, y)
    told = rules.alignment("feedback_alignment", state, net, LOSS, params, x, y)
    assert list(told) == ["0.weight", "1.0.weight", "2.weight"]
    _, true = jbp.value_and_grad(net, LOSS)(params, x, y)
    for layer in range(3):
        r, g = (np.ravel(tree[1][0]["weight"][layer]) for tree in (ours, true))
        angle = np.degrees(np.arccos(r @ g / np.linalg.norm(r) / np.linalg.norm(g)))
        np.testing.assert_allclose(told["1.0.weight"].angle[layer], angle, rtol=1e-12)
        ratio = np.linalg.norm(r) / np.linalg.norm(g)
        np.testing.assert_allclose(told["1.0.weight"].norm_ratio[layer], ratio, rtol=1e-12)
    assert (float(told["2.weight"].angle), float(told["2.weight"].norm_ratio)) == (0.0, 1.0)


def test_alignment_is_of_one_forward_pass():
    net = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dropout(0.5), jbp.Dense(2))
    params, x, y = setting(net)
    weights = jnp.arange(N) / N
    told = rules.alignment(Same(), (), net, LOSS, params, x, y, jax.random.key(0), weights=weights)
    assert {(float(a.angle), float(a.norm_ratio)) for a in told.values()} == {(0.0, 1.0)}  # one draw of the dropout
    with pytest.raises(ValueError, match="needs a key"):
        rules.alignment(Same(), (), net, LOSS, params, x, y)


@pytest.mark.parametrize("rule", ["feedback_alignment", "direct_feedback_alignment"])
def test_alignment_names_a_state_of_another_net_and_a_loss_that_is_none(rule: str):
    params, x, y = setting()
    _, state = bound(rule, NET, params, x)
    _, other = bound(rule, jbp.Dense(2), *setting(jbp.Dense(2))[:2])
    for wrong in ((), other):
        with pytest.raises(ValueError, match=r"the state of .* pass the state.method_state of a jbp.fit"):
            rules.alignment(rule, wrong, NET, LOSS, params, x, y)
    with pytest.raises(ValueError, match=r"the loss must come from jbp.losses.* but is 'l2'"):
        rules.alignment(rule, state, NET, "l2", params, x, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the same number of examples"):
        rules.alignment(rule, state, NET, LOSS, params, x, y[:-1])
    with pytest.raises(ValueError, match="at least one"):
        rules.alignment(rule, state, NET, LOSS, params, x[:0], y[:0])
    with pytest.raises(ValueError, match="the net must be a layer"):
        rules.alignment(rule, state, None, LOSS, params, x, y)  # type: ignore[arg-type]


def test_training_by_feedback_alignment_brings_the_angle_below_90_degrees():
    x = random(0, 200, 3)
    y = jnp.tanh(x @ random(1, 3, 2))
    angles = []

    def watch(event: jbp.Event) -> None:
        told = rules.alignment("feedback_alignment", event.state.method_state, NET, LOSS, event.params, x, y)
        angles.append([float(told[f"{i}.weight"].angle) for i in (0, 2)])

    sgd = jbp.optim.sgd(0.1, momentum=0.9)
    jbp.fit(NET, LOSS, sgd, (x, y), epochs=20, rule="feedback_alignment", callbacks=(watch,))
    assert max(np.mean(angles[-5:], axis=0)) < 75


# Training


def train(rule: Any, **options: Any) -> jbp.Fit:
    options = {"epochs": 2, "batch_size": 4, "seed": 3} | options
    return jbp.fit(NET, LOSS, SGD, (random(0, N, 3), random(1, N, 2)), rule=rule, **options)


SGD = jbp.optim.sgd(0.1, momentum=0.9)


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_a_rule_trains_to_the_same_bits_and_other_ones_with_another_seed(rule: Any):
    first, again, other = train(rule), train(rule, chunk_steps=1), train(rule, seed=4)
    assert_same(first.params, again.params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, first.state.method_state, again.state.method_state))
    assert not bool((first.params[0]["weight"] == other.params[0]["weight"]).all())
    assert not bool((first.params[0]["weight"] == train(None).params[0]["weight"]).all())


def test_a_step_of_fit_is_the_rule_and_then_the_optimiser():
    params, x, y = setting()
    options: Any = {"params": params, "epochs": 1, "batch_size": N}
    fitted = jbp.fit(NET, LOSS, SGD, (x, y), rule="feedback_alignment", **options)
    back = [s["weight"] for s in fitted.state.method_state[::2]]  # fixed, so it is still what it was
    updates = mlp_updates(params, x, y, lambda i, e, d: jnp.einsum("no,io->ni", d, back[i]))
    assert_close(fitted.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, updates), "steps")


def test_frozen_parameters_stay_and_so_do_their_ways_back():
    trainable = ({"weight": False, "bias": True}, True, True, True, False)
    params, _, _ = setting()
    start, end = (train(KolenPollack(decay=0.1), params=params, trainable=trainable, epochs=e) for e in (1, 3))
    for tree in (start.params, end.params):
        assert_same(tree[0]["weight"], params[0]["weight"])
        assert_same(tree[4], params[4])
    assert_same(end.state.method_state[0], start.state.method_state[0])
    assert_same(end.state.method_state[4], start.state.method_state[4])
    gap = [fit.params[2]["weight"] - fit.state.method_state[2]["weight"] for fit in (start, end)]
    np.testing.assert_allclose(gap[1], 0.9**6 * gap[0], rtol=1e-12, atol=1e-14)  # 6 steps apart
    assert not bool((end.params[0]["bias"] == start.params[0]["bias"]).all())


def test_without_a_rule_there_is_no_state():
    assert train(None).state.method_state == ()
    assert_same(train(None).params, train(Same()).params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train("feedback"), "rule must be one of feedback_alignment, .* but is 'feedback'"),
        (lambda: train(FeedbackAlignment), "rule must be one of .* or come from jbp.rules"),
        (lambda: train(lambda params: params), "rule must be one of"),
        (
            lambda: jbp.fit(
                jbp.serial(Gain(), jbp.relu), LOSS, SGD, (jnp.ones((40, 2)), jnp.ones((40, 2))), rule="kolen_pollack"
            ),
            r"but serial\(Gain\(\), relu\) has no weight that multiplies",
        ),
        (lambda: KolenPollack(decay=1.0), r"the decay of KolenPollack must be a finite number in \[0, 1\)"),
        (lambda: FeedbackAlignment(stddev=-1.0), "the stddev of FeedbackAlignment"),
        (lambda: DirectFeedbackAlignment(stddev=float("nan")), "the stddev of DirectFeedbackAlignment"),
        (lambda: SignSymmetry("random"), "the magnitude of SignSymmetry must be 'uniform'"),  # type: ignore[arg-type]
        (lambda: SignSymmetry(scale="1"), "the scale of SignSymmetry"),  # type: ignore[arg-type]
        (lambda: rules.alignment(jbp.relu, (), NET, LOSS, *setting()), "rule must be one of"),  # type: ignore[arg-type]
        (lambda: Step("relu"), "the surrogate of Step must be one of straight_through"),  # type: ignore[arg-type]
        (lambda: Step("sigmoid", 0.0), "the sharpness of Step must be above 0"),
        (lambda: Step(sharpness=2.0), "1 for straight_through"),
        (lambda: cli.Train(rule="sign_symmetry", seeds="0:3"), "rule trains one seed at a time"),
    ],
)
def test_a_mistake_is_named(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_command_line_takes_a_rule(tmp_path):
    plain, aligned = (
        cli.Train(net="8 relu", epochs=1, quiet=True, rule=rule, out=tmp_path / str(rule))()
        for rule in (None, "feedback_alignment")
    )
    assert plain.summary["validation_loss"] != aligned.summary["validation_loss"]
    assert cli.Train.from_config(tmp_path / "feedback_alignment").rule == "feedback_alignment"


@pytest.mark.parametrize("magnitude", ["batchwise", "fixed"])
def test_each_sign_symmetry_goes_by_a_name(magnitude: Any):
    named, made = train(f"sign_symmetry_{magnitude}"), train(SignSymmetry(magnitude))
    assert_same(named.params, made.params)
    assert not bool((named.params[0]["weight"] == train("sign_symmetry").params[0]["weight"]).all())


# Step units

S = np.linspace(-3, 3, 61)
SURROGATES = {
    "straight_through": lambda z: np.ones_like(z),
    "boxcar": lambda z: np.where(np.abs(z) <= 1, 0.5, 0.0),
    "triangle": lambda z: np.clip(1 - np.abs(z), 0, None),
    "sigmoid": lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2,
    "fast_sigmoid": lambda z: (1 + np.abs(z)) ** -2,
}


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("sharpness", [1.0, 2.5])
def test_a_step_unit_passes_delta_through_its_surrogate(surrogate: Any, sharpness: float):
    if surrogate == "straight_through" and sharpness != 1:
        return
    unit, delta = Step(surrogate, sharpness), np.random.default_rng(0).normal(size=S.shape)
    y, saved = unit.forward((), jnp.asarray(S), None)
    np.testing.assert_array_equal(y, np.heaviside(S, 0.0))
    delta_s, pairs = unit.backward((), saved, jnp.asarray(delta))
    np.testing.assert_allclose(delta_s, sharpness * SURROGATES[surrogate](sharpness * S) * delta, rtol=1e-14)
    assert pairs == ()
    assert eval(repr(unit), {"Step": Step}) == unit


def test_a_net_of_step_units_learns_by_its_surrogate_and_is_no_gradient():
    x = random(0, 97, 3)
    y = (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)
    net = jbp.serial(jbp.Dense(31), Step("triangle", 0.5), jbp.Dense(2))
    cross_entropy = jbp.losses.softmax_cross_entropy
    fitted = jbp.fit(net, cross_entropy, SGD, (x, y), epochs=30, metrics={"accuracy": jbp.accuracy})
    assert fitted.history[-1]["train_accuracy"] > 0.9
    report = jbp.check.layer(Step("triangle"), (7,))
    assert not report.passed


def test_the_command_line_trains_step_units_and_loads_them_again(tmp_path):
    cli.Train(net="8 step:triangle:0.5 7 step", epochs=1, quiet=True, out=tmp_path / "run")()
    net: Any = jbp.load(tmp_path / "run").net
    assert [layer for layer in net.layers if isinstance(layer, Step)] == [Step("triangle", 0.5), Step()]


def test_a_rule_of_your_own_is_two_functions():
    @dataclass(frozen=True)
    class Doubled(Transport):
        def init(self, key, weights):
            return jax.tree.map(lambda w: 2 * w, weights)

        def transport(self, weights, state):
            return state

    params, x, y = setting()
    _, ours = found(Doubled(), NET, params, x, y)
    back = [2 * p["weight"] for p in params[::2]]
    assert_close(ours, mlp_updates(params, x, y, lambda i, e, d: jnp.einsum("no,io->ni", d, back[i])), "net")


def test_a_method_of_your_own_is_taken_as_it_is():
    own = type("Own", (jbp.Method,), {})()
    assert rules.method_of(own) is own
