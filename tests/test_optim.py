"""jbp.optim against optax over ten random-gradient steps, its laws, and the places where it must serve.

Converging is no test of an optimiser: damped momentum and wrong Nesterovs converge too. So trajectories are
compared, to the bit, and planted wrong versions of each method show what the comparison rejects.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import chex
import haste
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jbp import optim

STEPS = 10


def schedule(steps):
    return 0.1 / (1.0 + jnp.asarray(steps, jnp.float32))


def rising(steps):
    return 0.5 + 0.04 * jnp.asarray(steps, jnp.float32)


def random_tree(seed, leading=(), dtype: Any = jnp.float64):
    """Leaves of distinct prime sizes, one of size 1 and one of rank 0, an empty layer and a None."""
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.asarray(rng.normal(size=leading + shape), dtype)

    dense = {"weight": leaf(7, 3), "bias": leaf(3)}
    return (dense, (), {"weight": leaf(5, 1, 2), "bias": None}, leaf())


def trajectory(optimizer, params, gradients):
    """Parameters after each of the steps, stacked."""

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1]


def update(optimizer, *args, **kwargs) -> Any:
    """One update, of a type that lets pyright look inside the tree and the state."""
    return optimizer.update(*args, **kwargs)


def steps_one_by_one(optimizer, params, gradients):
    """The trajectory without compiling the step."""
    state, path = optimizer.init(params), []
    for gradient in [jax.tree.map(lambda g, t=t: g[t], gradients) for t in range(STEPS)]:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *path)


def distance(tree, reference):
    """Largest difference over all leaves, each in units of its own magnitude; a NaN counts as infinitely far."""
    chex.assert_trees_all_equal_shapes(tree, reference)

    def leaf_distance(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        far = np.max(np.abs(a - b)) / np.max(np.abs(b))
        return far if np.isfinite(far) else np.inf

    return max(jax.tree.leaves(jax.tree.map(leaf_distance, tree, reference)))


def compiled(table, params, gradients, run=trajectory):
    """The trajectories of a table {name: optimisers}, in one compiled call."""

    @jax.jit
    def run_all(params, gradients):
        return {k: [run(optimizer, params, gradients) for optimizer in v] for k, v in table.items()}

    return run_all(params, gradients)


# --- the same trajectory as optax ---

TRAJECTORIES = {
    "sgd": (optim.sgd(0.1), optax.sgd(0.1)),
    "sgd, scheduled": (optim.sgd(schedule), optax.sgd(schedule)),
    "heavy_ball": (optim.heavy_ball(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "heavy_ball, scheduled": (optim.sgd(schedule, momentum=0.8), optax.sgd(schedule, 0.8)),
    "nesterov": (optim.nesterov(0.1, 0.9), optax.sgd(0.1, 0.9, nesterov=True)),
    "nesterov, scheduled": (optim.sgd(schedule, 0.8, nesterov=True), optax.sgd(schedule, 0.8, nesterov=True)),
}


def test_compiled_trajectories_equal_optax_to_the_bit():
    def of_each_dtype(seed, leading):
        single, half = (random_tree(seed, leading, dtype)[0] for dtype in (jnp.float32, jnp.bfloat16))
        return {"double": random_tree(seed, leading), "single": single, "half": half}

    results = compiled(TRAJECTORIES, of_each_dtype(0, ()), of_each_dtype(1, (STEPS,)))
    for name, (ours, theirs) in results.items():
        assert jax.tree.map(jnp.result_type, ours) == jax.tree.map(jnp.result_type, theirs), name
        assert {size: distance(ours[size], theirs[size]) for size in ours} == dict.fromkeys(ours, 0.0), name


@pytest.mark.parametrize("name", ["sgd", "heavy_ball", "nesterov", "nesterov, scheduled"])
def test_eager_trajectories_equal_optax_to_the_bit(name):
    params, gradients = ({"weight": random_tree(seed, lead)[0]["weight"]} for seed, lead in [(0, ()), (1, (10,))])
    ours, theirs = (steps_one_by_one(optimizer, params, gradients) for optimizer in TRAJECTORIES[name])
    assert distance(ours, theirs) == 0


def test_optax_schedules_serve(optax_promotion):
    warm = optax.warmup_cosine_decay_schedule(0.0, 0.3, 4, 9)
    drop = optax.piecewise_constant_schedule(0.1, {3: 0.5, 6: 0.1})
    pairs = {
        "warm": (optim.sgd(warm), optax.sgd(warm)),
        "drop": (optim.nesterov(drop, 0.7), optax.sgd(drop, 0.7, nesterov=True)),
        "constant": (optim.heavy_ball(optax.constant_schedule(0.1)), optax.sgd(0.1, 0.9)),
    }
    results = compiled(pairs, random_tree(0), random_tree(1, (STEPS,)))
    assert {name: distance(*pair) for name, pair in results.items()} == dict.fromkeys(pairs, 0.0)


class Planted(NamedTuple):
    steps: jax.Array
    velocity: Any


def planted(rule):
    """An optimiser from rule(g, v, steps) -> (new v, update)."""

    def init(params):
        return Planted(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        pairs = jax.tree.map(lambda g, v: rule(g, v, state.steps), updates, state.velocity)
        velocity, updates = jax.tree.transpose(jax.tree.structure(updates), None, pairs)
        return updates, Planted(state.steps + 1, velocity)

    return optax.GradientTransformation(init, update)


def rate(steps):
    return jnp.asarray(schedule(steps), jnp.float64)


def ball(g, v):
    return 0.8 * v + g


def ahead(g, v):
    return g + 0.8 * ball(g, v)


def damped(g, v):
    return 0.8 * v + 0.2 * g


PLANTED = {
    "sgd, scheduled": {
        "right": lambda g, v, t: (v, -rate(t) * g),
        "ascends": lambda g, v, t: (v, rate(t) * g),
        "no learning rate": lambda g, v, t: (v, -g),
        "learning rate twice": lambda g, v, t: (v, -(rate(t) ** 2) * g),
        "schedule one step ahead": lambda g, v, t: (v, -rate(t + 1) * g),
        "schedule stands still": lambda g, v, t: (v, -rate(0) * g),
    },
    "heavy_ball, scheduled": {
        "right": lambda g, v, t: (ball(g, v), -rate(t) * ball(g, v)),
        "ascends": lambda g, v, t: (ball(g, v), rate(t) * ball(g, v)),
        "no learning rate": lambda g, v, t: (ball(g, v), -ball(g, v)),
        "damped": lambda g, v, t: (damped(g, v), -rate(t) * damped(g, v)),
        "velocity not kept": lambda g, v, t: (v, -rate(t) * ball(g, v)),
        "velocity one step old": lambda g, v, t: (ball(g, v), -rate(t) * v),
        "rate inside the velocity": lambda g, v, t: (ball(rate(t) * g, v), -ball(rate(t) * g, v)),
        "Nesterov's": lambda g, v, t: (ball(g, v), -rate(t) * ahead(g, v)),
    },
    "nesterov, scheduled": {
        "right": lambda g, v, t: (ball(g, v), -rate(t) * ahead(g, v)),
        "ascends": lambda g, v, t: (ball(g, v), rate(t) * ahead(g, v)),
        "no learning rate": lambda g, v, t: (ball(g, v), -ahead(g, v)),
        "old velocity": lambda g, v, t: (ball(g, v), -rate(t) * (g + 0.8 * v)),  # which is heavy_ball
        "gradient forgotten": lambda g, v, t: (ball(g, v), -rate(t) * 0.8 * ball(g, v)),
        "momentum forgotten": lambda g, v, t: (ball(g, v), -rate(t) * (g + ball(g, v))),
        "look-ahead kept": lambda g, v, t: (ahead(g, v), -rate(t) * ahead(g, v)),
        "damped": lambda g, v, t: (damped(g, v), -rate(t) * damped(g, damped(g, v))),
    },
}


def test_the_comparison_with_optax_rejects_every_planted_version():
    tables = {name: (TRAJECTORIES[name][1], *map(planted, rules.values())) for name, rules in PLANTED.items()}
    results = compiled(tables, random_tree(0), random_tree(1, (STEPS,)))
    for name, (theirs, *others) in results.items():
        found = {bug: distance(other, theirs) for bug, other in zip(PLANTED[name], others, strict=True)}
        assert found.pop("right") < 1e-14, name  # so the planting itself is sound
        assert min(found.values()) > 1e-2, (name, found)


# --- laws ---


def test_momentum_zero_is_sgd():
    zero = np.float64(0)
    pairs = {
        "heavy_ball": (optim.heavy_ball(schedule, 0.0), optim.sgd(schedule)),
        "nesterov": (optim.nesterov(schedule, 0.0), optim.sgd(schedule)),
        "a traced zero": (optim.sgd(schedule, jnp.zeros(())), optim.sgd(schedule)),
        "numpy's zero": (optim.sgd(schedule, zero), optim.sgd(schedule, None)),
    }
    results = compiled(pairs, random_tree(0), random_tree(1, (STEPS,)))
    assert {name: distance(*pair) for name, pair in results.items()} == dict.fromkeys(pairs, 0.0)


def test_a_known_momentum_of_zero_keeps_no_velocity():
    for momentum in (0, 0.0, None, np.float32(0), np.zeros(())):
        assert isinstance(optim.sgd(0.1, momentum).init(random_tree(0)), optim.SgdState)
    # A jax array's value may be traced: the structure of the state cannot hang on it.
    assert isinstance(optim.sgd(0.1, jnp.zeros(())).init(random_tree(0)), optim.MomentumState)


def updates_of(optimizer, gradients):
    """The updates of every step, stacked; params stay None."""
    state = optimizer.init(jax.tree.map(lambda g: g[0], gradients))
    return jax.lax.scan(lambda state, g: optimizer.update(g, state)[::-1], state, gradients)[1]


def test_heavy_ball_under_a_constant_gradient_is_a_geometric_series():
    gradient = random_tree(1)
    gradients = jax.tree.map(lambda g: np.broadcast_to(g, (STEPS, *g.shape)), gradient)
    sums = (1 - 0.9 ** np.arange(1, STEPS + 1)) / (1 - 0.9)  # 1 + β + … + β^t
    expected = jax.tree.map(lambda g: -0.1 * np.einsum("t,...->t...", sums, g), gradient)
    ours = jax.jit(updates_of, static_argnums=0)(optim.heavy_ball(0.1, 0.9), gradients)
    assert distance(ours, expected) < 1e-14


def test_nesterov_is_sgd_plus_beta_times_heavy_ball():
    gradients = random_tree(1, (STEPS,))

    @jax.jit
    def sides(gradients):
        plain = updates_of(optim.sgd(schedule), gradients)
        ball = updates_of(optim.heavy_ball(schedule, 0.7), gradients)
        return updates_of(optim.nesterov(schedule, 0.7), gradients), jax.tree.map(lambda a, b: a + 0.7 * b, plain, ball)

    assert distance(*sides(gradients)) < 1e-14


METHODS = {"sgd": optim.sgd, "heavy_ball": optim.heavy_ball, "nesterov": optim.nesterov}


def test_updates_are_linear_in_the_gradients():
    @jax.jit
    def sides(first, second):
        def combine(a, b):
            return jax.tree.map(lambda a, b: 3.0 * a - 0.3 * b, a, b)

        def both(optimizer):
            parts = updates_of(optimizer, first), updates_of(optimizer, second)
            return updates_of(optimizer, combine(first, second)), combine(*parts)

        return {name: both(method(schedule)) for name, method in METHODS.items()}

    for name, pair in sides(random_tree(1, (STEPS,)), random_tree(2, (STEPS,))).items():
        assert distance(*pair) < 1e-14, name


def test_updates_are_proportional_to_the_learning_rate():
    @jax.jit
    def sides(gradients):
        return {
            name: (
                updates_of(method(0.4), gradients),
                jax.tree.map(lambda u: 4.0 * u, updates_of(method(0.1), gradients)),
            )
            for name, method in METHODS.items()
        }

    for name, pair in sides(random_tree(1, (STEPS,))).items():
        assert distance(*pair) == 0, name  # a power of two rounds nothing


def on_a_quadratic(optimizer, hessian, start):
    """The iterates on ½ wᵀ H w, from w = start."""
    hessian, start = jnp.asarray(hessian), jnp.asarray(start)

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(hessian @ w, state)
        return (w + updates, state), w + updates

    return jax.lax.scan(step, (start, optimizer.init(start)), None, STEPS)[1]


def quadratic():
    rng = np.random.default_rng(3)
    root = rng.normal(size=(5, 5))
    return root @ root.T, rng.normal(size=5)


def test_heavy_ball_is_polyaks_two_point_iteration():
    hessian, start = quadratic()
    before, w, path = start, start, []
    for _ in range(STEPS):
        before, w = w, w - 0.02 * hessian @ w + 0.9 * (w - before)
        path.append(w)
    assert distance(on_a_quadratic(optim.heavy_ball(0.02, 0.9), hessian, start), np.stack(path)) < 1e-14


def test_nesterov_goes_through_the_look_ahead_points_of_sutskever_et_al():
    hessian, theta = quadratic()
    start, velocity, path = theta, np.zeros(5), []
    for _ in range(STEPS):
        velocity = 0.9 * velocity - 0.02 * hessian @ (theta + 0.9 * velocity)  # equation 3
        theta = theta + velocity  # equation 4
        path.append(theta + 0.9 * velocity)
    assert distance(on_a_quadratic(optim.nesterov(0.02, 0.9), hessian, start), np.stack(path)) < 1e-14


# --- wherever optax.sgd serves ---


def with_a_nan(gradients):
    return jax.tree.map(lambda g: g.at[3].set(jnp.nan), gradients)


def labels(tree):
    return (jax.tree.map(lambda _: "a", tree[0]), *jax.tree.map(lambda _: "b", tree[1:]))


WRAPPED = {
    "inject a number": lambda sgd: optax.inject_hyperparams(sgd)(learning_rate=0.1, momentum=0.9),
    "inject a scheduled rate": lambda sgd: optax.inject_hyperparams(sgd)(schedule, momentum=0.9, nesterov=True),
    "inject a scheduled momentum": lambda sgd: optax.inject_hyperparams(sgd)(0.1, rising, nesterov=True),
    "MultiSteps": lambda sgd: optax.MultiSteps(sgd(schedule, 0.9), 3).gradient_transformation(),
    "masked": lambda sgd: optax.masked(sgd(0.1, 0.9), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)),
    "chain": lambda sgd: optax.chain(optax.clip(0.5), optax.add_decayed_weights(0.1), sgd(0.1, 0.9, nesterov=True)),
    "apply_if_finite": lambda sgd: optax.apply_if_finite(sgd(schedule, 0.9), 5),
    "partition": lambda sgd: optax.partition({"a": sgd(0.1), "b": sgd(0.05, 0.9)}, labels),
    "flatten": lambda sgd: optax.flatten(sgd(0.1, 0.9)),
}


def test_wrapped_trajectories_equal_wrapped_optax(optax_promotion):
    pairs = {name: (wrap(optim.sgd), wrap(optax.sgd)) for name, wrap in WRAPPED.items()}

    def run(optimizer, params, gradients):
        skips = any(optimizer is other for other in pairs["apply_if_finite"])
        return trajectory(optimizer, params, with_a_nan(gradients) if skips else gradients)

    results = compiled(pairs, random_tree(0), random_tree(1, (STEPS,)), run)
    found = {name: distance(*pair) for name, pair in results.items()}
    # Not to the bit: when XLA optimises, it may fuse the two programs differently inside optax.flatten, by 1 ulp.
    assert max(found.values()) < 1e-14, found


def test_an_injected_learning_rate_can_be_changed_between_steps(optax_promotion):
    params = {"w": jnp.ones(3)}
    injected = optax.inject_hyperparams(optim.sgd)(learning_rate=0.5)
    first, state = update(injected, params, injected.init(params), params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25)
    second, _ = update(injected, params, state, params)
    assert distance(first, {"w": -0.5 * jnp.ones(3)}) == 0
    assert distance(second, {"w": -0.25 * jnp.ones(3)}) == 0


def test_a_traced_rate_and_momentum_are_as_good_as_numbers():
    @jax.jit
    def sides(params, gradients):
        def run(eta):
            return trajectory(optim.sgd(eta, 0.5 + eta, nesterov=True), params, gradients)

        numbers = [run(eta) for eta in (0.1, 0.03)]
        return jax.vmap(run)(jnp.asarray([0.1, 0.03])), jax.tree.map(lambda *paths: jnp.stack(paths), *numbers)

    assert distance(*sides(random_tree(0), random_tree(1, (STEPS,)))) < 1e-15


VARIANTS = [
    optim.sgd,
    optim.heavy_ball,
    lambda rate: optim.nesterov(rate, np.float64(0.9)),
    lambda rate: optim.nesterov(rate, jnp.float32(0.9)),
]
RATES = [0.1, 1, np.float64(0.1), np.asarray(0.1, np.float32), jnp.float32(0.1), jnp.float64(0.1), schedule]


@pytest.mark.parametrize("method", VARIANTS)
def test_each_leaf_keeps_its_dtype_and_the_state_its_types(method):
    params = {
        "half": jnp.ones(2, jnp.bfloat16),
        "single": jnp.ones((3, 1), jnp.float32),
        "double": jnp.ones(5),
    }
    params["weak"] = jnp.asarray(2.0)
    assert params["weak"].weak_type

    def types(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

    for eta in RATES:
        optimizer = method(eta)
        state = jax.eval_shape(optimizer.init, params)
        updates, after = jax.eval_shape(optimizer.update, params, state, params)
        assert types(after) == types(state)  # or a second step would be compiled again
        assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, params)
        if isinstance(state, optim.MomentumState):
            assert jax.tree.map(lambda v: v.dtype, state.velocity) == jax.tree.map(lambda p: p.dtype, params)


def test_gradients_of_another_dtype_join_the_parameters():
    params, gradient = {"w": jnp.zeros(3, jnp.float32)}, {"w": jnp.ones(3, jnp.bfloat16)}
    for optimizer in (optim.heavy_ball(0.1), optim.nesterov(0.1)):
        updates, state = update(optimizer, gradient, optimizer.init(params), params)
        assert updates["w"].dtype == jnp.float32
        assert state.velocity["w"].dtype == jnp.float32


def test_extra_arguments_to_update_are_ignored():
    params = random_tree(0)
    for optimizer in (optim.sgd(0.1), optim.heavy_ball(0.1), optim.nesterov(0.1)):
        plain, _ = optimizer.update(params, optimizer.init(params))
        extra, _ = optimizer.update(params, optimizer.init(params), params, value=3.0, value_fn=print)
        assert distance(extra, plain) == 0


def test_a_gradient_of_none_leaves_its_velocity_as_it_was():
    params = {"trained": jnp.ones(2), "frozen": {"w": jnp.ones(3)}}
    optimizer = optim.nesterov(0.1)
    _, state = update(optimizer, params, optimizer.init(params))
    for nothing in (None, {"w": None}):
        updates, after = update(optimizer, {"trained": jnp.ones(2), "frozen": nothing}, state)
        assert jax.tree.leaves(updates["frozen"]) == []
        assert distance(after.velocity["frozen"], state.velocity["frozen"]) == 0
        assert distance(after.velocity["trained"], 1.9 * jnp.ones(2)) < 1e-15
        chex.assert_trees_all_equal_structs(after, state)


def test_the_step_count_stays_at_the_largest_integer():
    largest = jnp.asarray(2**31 - 1, jnp.int32)
    for before, after in ((0, 1), (2**31 - 2, 2**31 - 1), (2**31 - 1, 2**31 - 1)):
        state = optim.SgdState(jnp.asarray(before, largest.dtype))
        assert int(update(optim.sgd(0.1), jnp.ones(2), state)[1].steps) == after


def test_optax_finds_what_the_state_keeps_for_each_parameter():
    params = {"w": jnp.ones(2), "b": jnp.ones(3)}
    optimizer = optim.heavy_ball(0.1)
    marked: Any = optax.tree.map_params(optimizer, lambda v: v + 1.0, optimizer.init(params))
    assert distance(marked.velocity, params) == 0
    assert int(marked.steps) == 0


SHARDED = """
import jax, jax.numpy as jnp, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jbp import optim
mesh = Mesh(jax.devices(), ("data",))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
params = {"weight": jax.device_put(jnp.ones((8, 3)), split), "bias": jax.device_put(jnp.ones(3), whole)}
shardings = jax.tree.map(lambda p: p.sharding, params)

def check(*trees):
    for tree in trees:
        same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), tree, shardings)
        assert all(jax.tree.leaves(same)), tree

for optimizer in (optim.sgd(0.1), optim.heavy_ball(0.1), optim.nesterov(lambda steps: 0.1)):
    state = optimizer.init(params)
    check(getattr(state, "velocity", params))
    for update in (optimizer.update, jax.jit(optimizer.update), jax.jit(optimizer.update)):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        check(updates, getattr(state, "velocity", updates), params)
print(len(jax.devices()), "devices")
"""


def test_updates_and_velocity_keep_the_sharding_of_the_parameters():
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "XLA_FLAGS": haste.flags(4), "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 devices\n"


# --- bad input ---

ROW = np.asarray([0.1])
BAD = [
    (lambda: optim.sgd(-0.1), "learning_rate must be a finite number ≥ 0.* but is -0.1: try"),
    (lambda: optim.sgd(float("nan")), "learning_rate .* but is nan"),
    (lambda: optim.sgd(np.float32("inf")), "learning_rate .* but is .*inf"),
    (lambda: optim.sgd(np.asarray(-1)), "learning_rate .* but is .*-1"),
    (lambda: optim.sgd("0.1"), "learning_rate .* but is '0.1'"),  # pyright: ignore[reportArgumentType]
    (lambda: optim.sgd(True), "learning_rate .* but is True"),
    (lambda: optim.sgd(1j), "learning_rate .* but is 1j"),
    (lambda: optim.sgd(None), "learning_rate .* but is None"),  # pyright: ignore[reportArgumentType]
    (lambda: optim.sgd(ROW), r"learning_rate .* but is an array float64\[1\]"),
    (lambda: optim.sgd(jnp.asarray(ROW)), r"learning_rate .* but is an array float64\[1\]"),
    (lambda: optim.sgd(jnp.asarray(True)), r"learning_rate .* but is an array bool\[\]"),
    (lambda: optim.heavy_ball(-0.1), "learning_rate .* but is -0.1"),
    (lambda: optim.nesterov(-0.1), "learning_rate .* but is -0.1"),
    (lambda: optim.sgd(0.1, 1.0), r"momentum must be a number in \[0, 1\).* but is 1.0: 0.9 is usual"),
    (lambda: optim.heavy_ball(0.1, -0.5), "momentum .* but is -0.5"),
    (lambda: optim.nesterov(0.1, float("nan")), "momentum .* but is nan"),
    (lambda: optim.sgd(0.1, "0.9"), "momentum .* but is '0.9'"),  # pyright: ignore[reportArgumentType]
    (lambda: optim.sgd(0.1, True), "momentum .* but is True"),
    (lambda: optim.sgd(0.1, schedule), "momentum .*inject_hyperparams"),  # pyright: ignore[reportArgumentType]
    (lambda: optim.heavy_ball(0.1, None), "momentum .* but is None"),  # pyright: ignore[reportArgumentType]
    (lambda: optim.sgd(0.1, 0.9, 1), "nesterov must be True or False, but is 1: β itself"),  # pyright: ignore[reportArgumentType]
    (
        lambda: optim.sgd(0.1, nesterov=True),
        r"nesterov=True must come with momentum in \(0, 1\).* 0.9 is usual",
    ),
    (
        lambda: optim.sgd(lambda steps: -0.1).update(ROW, optim.sgd(0.1).init(ROW)),
        "a schedule's rate must be a finite number .* but is -0.1: correct the schedule",
    ),
    (
        lambda: optim.sgd(0.1).update(np.ones(2, int), optim.sgd(0.1).init(ROW)),
        "every gradient must be .* int64",
    ),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_is_told_in_one_sentence_what_was_expected_and_what_came(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_ends_of_the_ranges_are_allowed():
    for eta, beta in [(0.0, 0.0), (0, 0), (1e9, 0.999), (np.float32(0.1), np.asarray(0))]:
        optim.sgd(eta, beta)
        optim.nesterov(eta, beta)
    optim.sgd(lambda steps: 0.0).update(ROW, optim.sgd(0.1).init(ROW))
    optim.sgd(jnp.asarray(-1.0))  # a jax array's value is not read
