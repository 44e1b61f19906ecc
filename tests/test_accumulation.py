"""A step whose batch is gone through in parts is the step of the whole batch, and holds the activations of one part."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import assert_close

import jbp
from jbp.accumulation import check_parts, in_parts
from jbp.layer import Layer
from jbp.step import State, step_function
from jbp.train import InPlace
from jbp.train.batches import OnDevice, Resident
from jbp.train.program import ledger, steps_program

N, WIDTH, K = 23, 5, 3
RNG = np.random.default_rng(0)
X, IMAGES, SERIES = RNG.normal(size=(N, WIDTH)), RNG.normal(size=(N, 6, 6, 1)), RNG.normal(size=(N, 4, WIDTH))
Y = RNG.integers(0, K, N)
WEIGHTS = np.arange(N) % 4.0
LOSS = jbp.losses.softmax_cross_entropy
SGD = jbp.optim.sgd(0.1, momentum=0.9)
DENSE = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dropout(0.3), jbp.Dense(K))
PROBLEM = jbp.Problem(DENSE, LOSS, SGD, metrics={"accuracy": jbp.accuracy})
BLOCK = jbp.serial(jbp.Dense(WIDTH), jbp.relu, jbp.Dropout(0.2), jbp.LayerNorm(epsilon=0.1))

NETS = {
    "dense": (DENSE, X),
    "conv": (
        jbp.serial(jbp.Conv(4, 3), jbp.relu, jbp.MaxPool(2), jbp.Flatten(), jbp.Dropout(0.2), jbp.Dense(K)), IMAGES,
    ),
    "residual and branch": (
        jbp.serial(jbp.residual(BLOCK), jbp.branch(jbp.Dense(2), BLOCK, join="concat"), jbp.tanh, jbp.Dense(K)), X,
    ),
    "repeat and tied": (
        jbp.tied(
            jbp.serial(jbp.Dense(WIDTH), jbp.repeat(jbp.residual(BLOCK), 3), jbp.Dense(WIDTH), jbp.relu, jbp.Dense(K)),
            {2: 0},
        ), X,
    ),
}  # fmt: skip


def state_of(problem: jbp.Problem, x: Any = X) -> State:
    return jbp.init_state(problem, jax.ShapeDtypeStruct(x.shape[1:], x.dtype), seed=3)


def both(problem: jbp.Problem, batch: jbp.Batch, accumulate: int) -> tuple[Any, Any]:
    """(parameters, optimiser's state, method's state, figures) after two steps of the whole batch, and in parts."""
    found = []
    for parts in (1, accumulate):
        state, step, figures = state_of(problem, batch.x), jbp.make_step(problem, accumulate=parts), []
        for _ in range(2):
            state, said = step(state, batch)
            figures.append((said.loss, said.metrics))
        counts = jax.tree.map(lambda a: jnp.asarray(a, float), (state.opt_state, state.method_state))
        found.append((state.params, *counts, figures))
    return found[1], found[0]


# Equal to the whole


@pytest.mark.parametrize("name", NETS)
def test_a_step_in_parts_is_the_step_of_the_whole_batch(name: str):
    """With dropout, whose keys are those of the places in the whole batch, and weights; rows of weight 0 hold NaN."""
    net, x = NETS[name]
    x = np.where((WEIGHTS == 0).reshape(-1, *(1,) * (x.ndim - 1)), np.nan, x)
    problem = dataclasses.replace(PROBLEM, net=net)
    assert_close(*both(problem, jbp.Batch(x, Y, WEIGHTS), 4), "steps")


@pytest.mark.parametrize("accumulate", [2, 9, 23, 100])
def test_parts_may_be_any_number_and_no_batch_has_more_than_its_examples(accumulate: int):
    assert_close(*both(PROBLEM, jbp.Batch(X, Y), accumulate), "steps")


def test_parts_are_of_equal_size_and_none_is_empty():
    sizes = []

    def sums(part: jbp.Batch) -> Any:
        sizes.append(len(part.y))
        return jnp.ones((), int), (part.weights != 0).sum()

    for parts, size, rounds in ((4, 6, 4), (9, 3, 8), (10, 3, 8), (100, 1, 23)):
        found, counted = in_parts(sums, jbp.Batch(X, Y), parts)
        assert (int(found), int(counted), set(sizes)) == (rounds, N, {size})
        sizes.clear()


def test_a_transform_draws_by_the_place_in_the_whole_batch():
    def noisy(x: Any, key: Any) -> Any:
        return x if key is None else x + jax.random.normal(key, x.shape)

    problem = dataclasses.replace(PROBLEM, transform=noisy)
    assert_close(*both(problem, jbp.Batch(X, Y), 4), "steps")


def test_a_batch_that_is_itself_a_part_keeps_its_places():
    places = np.arange(N)[::-1] + 40
    there, whole = both(PROBLEM, jbp.Batch(X, Y, rows=places), 4)
    assert_close(there, whole, "steps")
    elsewhere, _ = both(PROBLEM, jbp.Batch(X, Y), 4)
    assert not np.allclose(elsewhere[3][0][0], whole[3][0][0], rtol=1e-6)


def test_masks_are_cut_with_the_examples():
    mask = np.arange(4) < (1 + np.arange(N) % 4)[:, None]
    labels = RNG.integers(0, K, (N, 4))

    def right(output: Any, target: Any, mask: Any) -> Any:
        return (mask * (output.argmax(-1) == target)).sum() / mask.sum()

    problem = dataclasses.replace(PROBLEM, metrics={"right": right})
    assert_close(*both(problem, jbp.Batch(SERIES, labels, WEIGHTS, mask), 5), "steps")


def test_another_divisor_divides_the_whole():
    assert_close(*both(PROBLEM, jbp.Batch(X, Y, WEIGHTS, divisor=7.0), 4), "steps")


@pytest.mark.parametrize("rule", ["kolen_pollack", "direct_feedback_alignment"])
def test_a_learning_rule_adds_up(rule: str):
    problem = dataclasses.replace(PROBLEM, method=jbp.rules.method_of(rule))
    assert_close(*both(problem, jbp.Batch(X, Y, WEIGHTS), 4), "steps")


@pytest.mark.parametrize("lean", [False, True])
def test_a_private_step_clips_each_example_and_draws_its_noise_once(lean: bool):
    """The same noise as that of the whole batch, on a sum to which every example adds its own clipped gradient."""
    private = jbp.Private(1.0, 0.5, 1e-4, lean=lean).bind(12)
    problem = dataclasses.replace(PROBLEM, method=private)
    drawn = (np.arange(N) % 3 > 0).astype(float)
    drawn[-6:] = 0  # a part of which no row was drawn
    cut, whole = both(problem, jbp.Batch(X, Y, drawn), 4)
    assert_close(cut, whole, "steps")
    quiet = dataclasses.replace(problem, method=jbp.Private(1e-9, 0.5, 1e-4, lean=lean).bind(12))
    moved = both(quiet, jbp.Batch(X, Y, drawn), 4)[0]
    assert not np.allclose(moved[0][0]["weight"], cut[0][0]["weight"], rtol=1e-3)  # there was noise


def test_an_optimiser_may_look_at_the_value_of_the_whole_batch(optax_promotion: None):
    problem = dataclasses.replace(PROBLEM, optimizer=optax.polyak_sgd(0.5))
    assert_close(*both(problem, jbp.Batch(X, Y, WEIGHTS), 4), "steps")


def test_parameters_of_16_bits_are_added_up_in_float32():
    net = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(K))
    problem = jbp.Problem(net, LOSS, jbp.optim.sgd(0.1))
    narrow = jax.tree.map(lambda p: p.astype(jnp.float16), state_of(problem).params)
    x = jnp.asarray(X, jnp.float16)
    weights = np.where(np.arange(N) < 12, 0.0, 1.0)  # two parts of weight 0
    state = jbp.init_state(problem, jax.ShapeDtypeStruct((WIDTH,), jnp.float16), params=narrow)
    batch = jbp.Batch(x, jnp.asarray(Y), jnp.asarray(weights / weights.sum()))
    whole = problem.method.sums(problem, state, batch, state.key)
    parts = in_parts(lambda part: problem.method.sums(problem, state, part, state.key), batch, 4)
    for one, other in zip(jax.tree.leaves(parts.grads), jax.tree.leaves(whole.grads), strict=True):
        assert one.dtype == other.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=2e-6 * float(jnp.abs(other).max() + 1))


# In fit


def test_fit_in_parts_is_fit():
    """With short last batches, weights, dropout and metrics."""
    options: Any = {
        "seed": 1, "epochs": 2, "batch_size": 4, "weights": WEIGHTS, "metrics": {"accuracy": jbp.accuracy},
        "validation_data": (X, Y),
    }  # fmt: skip
    whole = jbp.fit(DENSE, LOSS, SGD, (X, Y), **options)
    parts = jbp.fit(DENSE, LOSS, SGD, (X, Y), accumulate=3, **options)
    assert_close(parts.params, whole.params, "steps")
    np.testing.assert_allclose(parts.step_losses, whole.step_losses, rtol=1e-12)
    times = ("seconds", "examples_per_second")
    for one, other in zip(parts.history, whole.history, strict=True):
        assert {k: v for k, v in one.items() if k not in times} == pytest.approx(
            {k: v for k, v in other.items() if k not in times}, rel=1e-12
        )


def test_private_fit_in_parts_is_private_fit():
    options: Any = {"seed": 1, "epochs": 2, "batch_size": 6, "private": jbp.Private(1.0, 0.5, 1e-3)}
    whole = jbp.fit(DENSE, LOSS, SGD, (X, Y), **options)
    parts = jbp.fit(DENSE, LOSS, SGD, (X, Y), accumulate=4, **options)
    assert_close(parts.params, whole.params, "steps")
    assert parts.epsilon == whole.epsilon


def test_fit_many_in_parts_is_fit_in_parts():
    options: Any = {"epochs": 2, "batch_size": 4, "accumulate": 3}
    many = jbp.fit_many(DENSE, LOSS, SGD, (X, Y), seeds=[3, 4], **options)
    assert_close(many.params_of(1), jbp.fit(DENSE, LOSS, SGD, (X, Y), seed=4, **options).params, "steps")


# Refused


@dataclass(frozen=True)
class Counter(Layer):
    """A layer of a user's own that counts its passes and couples nothing."""

    observes = True

    def init(self, key, shape):
        return {"passes": jnp.zeros(())}, shape

    def forward(self, params, x, key):
        return x, params["passes"]

    def backward(self, params, saved, delta):
        return delta, {"passes": jbp.Constant.of(saved + 1)}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "in place": ({"method": InPlace()}, r"sums add up over the parts of a batch, but InPlace\(\) updates on the way"),
    "batch normalisation": (
        {"net": jbp.serial(jbp.Dense(4), jbp.residual(jbp.BatchNorm()), jbp.Dense(K))},
        r"but the layer \[1\] \(BatchNorm\(\)\) couples the examples .* a part is not the whole: .* GroupNorm",
    ),
    "what observes": ({"net": jbp.serial(Counter(), jbp.Dense(K))}, r"but .*Counter\(\).* observes the examples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_add_up_is_refused_and_why(name: str):
    change, words = REFUSED[name]
    problem = dataclasses.replace(PROBLEM, **change)
    assert not problem.additive
    with pytest.raises(ValueError, match=words):
        jbp.make_step(problem, accumulate=2)
    with pytest.raises(ValueError, match=words):
        step_function(problem, 2)
    told: Any = {"in_place": True} if name == "in place" else {}
    for train, more in ((jbp.fit, told), (jbp.fit_many, {"seeds": [0]})):
        if name != "in place" or train is jbp.fit:
            with pytest.raises(ValueError, match=words):
                train(problem.net, LOSS, SGD, (X, Y), accumulate=2, batch_size=4, **more)  # type: ignore[operator]
    jbp.make_step(problem, accumulate=1)


def test_an_optimiser_that_asks_for_the_loss_elsewhere_is_refused_and_why(optax_promotion: None):
    problem = dataclasses.replace(PROBLEM, optimizer=optax.lbfgs(memory_size=3))
    words = (
        "the optimiser asks for the loss at other parameters, which takes the whole batch at once: leave accumulate out"
    )
    with pytest.raises(ValueError, match=words):
        jbp.make_step(problem, accumulate=2)(state_of(problem), jbp.Batch(X, Y))
    with pytest.raises(ValueError, match=words):
        jbp.fit(DENSE, LOSS, problem.optimizer, (X, Y), accumulate=2, batch_size=N)


def test_random_numbers_that_would_be_others_in_parts_are_refused():
    step, batch = jbp.make_step(PROBLEM, accumulate=2), jbp.Batch(X, Y)
    with pytest.raises(ValueError, match=r"by the random numbers of unsafe_rbg would draw otherwise"):
        step(dataclasses.replace(state_of(PROBLEM), key=jax.random.key(0, impl="unsafe_rbg")), batch)
    still = dataclasses.replace(PROBLEM, net=jbp.Dense(K))  # draws nothing
    jbp.make_step(still, accumulate=2)(dataclasses.replace(state_of(still), key=jax.random.key(0, impl="rbg")), batch)
    with jax.threefry_partitionable(False), pytest.raises(ValueError, match="with jax_threefry_partitionable"):
        jbp.make_step(dataclasses.replace(PROBLEM, metrics=None), accumulate=2)(state_of(PROBLEM), batch)


@pytest.mark.parametrize("accumulate", [0, -1, 1.5, True, "2", None])
def test_what_is_no_number_of_parts_is_refused(accumulate: Any):
    words = "accumulate must be a whole number of at least 1, but is"
    with pytest.raises(ValueError, match=words):
        jbp.make_step(PROBLEM, accumulate=accumulate)
    for train, more in ((jbp.fit, {}), (jbp.fit_many, {"seeds": [0]})):
        with pytest.raises(ValueError, match=words):
            train(DENSE, LOSS, SGD, (X, Y), batch_size=4, accumulate=accumulate, **more)  # type: ignore[operator]


def test_more_parts_than_a_batch_has_examples_are_refused_where_the_batch_size_is_known():
    for train, more in ((jbp.fit, {}), (jbp.fit_many, {"seeds": [0]})):
        with pytest.raises(ValueError, match="accumulate must be at most batch_size, 4, but is 5"):
            train(DENSE, LOSS, SGD, (X, Y), batch_size=4, accumulate=5, **more)  # type: ignore[operator]
    assert check_parts(PROBLEM, np.int64(4), 4) == 4


# Memory


def temporaries(program: Any, *arguments: Any) -> int:
    options: Any = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
    return program.lower(*arguments).compile(compiler_options=options).memory_analysis().temp_size_in_bytes


DEEP, BATCH, PARTS = 256, 1024, 8
MEMORY = {
    "flat": jbp.serial(*[layer for _ in range(16) for layer in (jbp.Dense(DEEP), jbp.relu)], jbp.Dense(10)),
    "residual": jbp.serial(*[jbp.residual(jbp.serial(jbp.Dense(DEEP), jbp.tanh)) for _ in range(16)], jbp.Dense(10)),
    "repeat": jbp.serial(jbp.repeat(jbp.serial(jbp.Dense(DEEP), jbp.relu), 16), jbp.Dense(10)),
}


@pytest.mark.parametrize("name", MEMORY)
@pytest.mark.parametrize("where", ["make_step", "fit"])
def test_the_temporaries_are_those_of_one_part_and_one_gradient(name: str, where: str):
    """At most 1.2 × (activations/a + one gradient), where a step of the whole batch has activations + one gradient.

    Under `repeat` two gradients: the scan on the way back makes that of the stack whole, and then it is added.
    """
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        problem = jbp.Problem(MEMORY[name], LOSS, SGD)
        state = jbp.init_state(problem, jax.ShapeDtypeStruct((DEEP,), jnp.float32))
        gradient = sum(p.nbytes for p in jax.tree.leaves(state.params))

        def counted(parts: int) -> int:
            if where == "make_step":
                x, y = jnp.zeros((BATCH, DEEP)), jnp.zeros(BATCH, int)
                step = jax.jit(step_function(problem, parts), donate_argnums=0)
                return temporaries(step, state, jbp.Batch(x, y), state.key)
            reader = Resident("shuffle", BATCH, 2 * BATCH)
            rows = OnDevice(jnp.zeros((2 * BATCH, DEEP)), jnp.zeros(2 * BATCH, int), None, jnp.arange(2 * BATCH))
            return temporaries(steps_program(problem, reader, parts), state, ledger(2, 0), rows, 1, 0, 2)

        activations = counted(1) - gradient
        assert activations > 2 * gradient  # it matters here
        found = counted(PARTS)
        allowed = activations / PARTS + (2 if name == "repeat" else 1) * gradient
        print(f"{where}, {name}: {found / 1e6:.2f} MB of {allowed / 1e6:.2f}")
        assert found <= 1.2 * allowed
