"""The step as users drive it: problem, state, batch, method, and what `fit` makes of them."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import assert_close

import jbp
from jbp.step import Figures, epoch_keys, name_of_transform, shares, step_key
from jbp.train import InPlace
from jbp.train.batches import Resident, order_of

N, WIDTH, K = 23, 5, 3
X = np.random.default_rng(0).normal(size=(N, WIDTH))
Y = np.random.default_rng(1).integers(0, K, N)
NET = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dropout(0.3), jbp.Dense(K))
LOSS = jbp.losses.softmax_cross_entropy
SGD = jbp.optim.sgd(0.1, momentum=0.9)
PROBLEM = jbp.Problem(NET, LOSS, SGD, metrics={"accuracy": jbp.accuracy})
EXAMPLE = jax.ShapeDtypeStruct((WIDTH,), X.dtype)


def same(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda p, q: bool((p == q).all()), a, b))


def state_of(problem: jbp.Problem = PROBLEM, seed: int | None = 3, **options: Any) -> jbp.State:
    return jbp.init_state(problem, EXAMPLE, seed=seed, **options)


# The step


def test_steps_by_hand_are_those_of_fit_to_the_bit():
    fitted = jbp.fit(NET, LOSS, SGD, (X, Y), seed=3, epochs=2, batch_size=4, metrics={"accuracy": jbp.accuracy})
    state, step, losses, figures = state_of(), jbp.make_step(PROBLEM), [], None
    for epoch in (1, 2):
        order = order_of(state.key, epoch, Resident("shuffle", 4, N))()
        state = dataclasses.replace(state, epoch=jnp.int32(epoch), step=jnp.int32(0))
        for t in range(6):
            rows = order[4 * t : 4 * t + 4]
            real = np.arange(4 * t, 4 * t + 4) < N
            state, figures = step(state, jbp.Batch(X[rows], Y[rows], real.astype(float)))
            losses.append(float(figures.loss))
    assert losses == fitted.step_losses.tolist()
    assert same(state.params, fitted.params) and same(state.opt_state, fitted.state.opt_state)
    assert (int(fitted.state.epoch), int(fitted.state.step)) == (int(state.epoch), int(state.step)) == (2, 6)
    assert isinstance(figures, Figures) and set(figures.metrics) == {"accuracy"}


def test_equal_problems_are_one_key_and_a_step_is_traced_once():
    @dataclass(frozen=True)
    class Counting(jbp.Backpropagation):
        sums = chex.assert_max_traces(jbp.Backpropagation.sums, n=1)

    first, again = (
        jbp.Problem(NET, LOSS, SGD, method=Counting(), metrics={"accuracy": jbp.accuracy}, trainable=(True,) * 4)
        for _ in range(2)
    )
    assert first == again and hash(first) == hash(again)
    assert first.metrics == (("accuracy", jbp.accuracy.of(LOSS)),)
    assert jbp.make_step(first) is jbp.make_step(again)
    state = state_of(first)
    for _ in range(3):
        state, _ = jbp.make_step(again)(state, jbp.Batch(X, Y))
    assert int(state.step) == 3
    with pytest.raises(AssertionError, match="traced > 1 times"):  # another size is another program
        jbp.make_step(again)(state, jbp.Batch(X[:1], Y[:1]))


def test_the_state_is_taken_over_and_the_parameters_that_were_given_are_not():
    params, _ = NET.init(jax.random.key(5), (WIDTH,))
    before = jax.tree.map(np.asarray, params)
    state = state_of(params=params)
    jbp.make_step(PROBLEM)(state, jbp.Batch(X, Y))
    assert same(params, before)
    assert state.params[0]["weight"].is_deleted()


def test_an_example_is_a_shape_or_a_struct_and_the_seed_is_0_unless_said():
    one, two = jbp.init_state(PROBLEM, (WIDTH,)), state_of(seed=0)
    assert same(jax.tree.leaves(one.params), jax.tree.leaves(two.params))
    assert (one.key == two.key).all() and one.key != state_of(seed=1).key
    assert (int(one.epoch), int(one.step)) == (1, 0)


def test_the_keys_of_a_batch_are_those_of_its_places():
    key = jax.random.key(2)
    folded = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(9))
    assert (jax.random.key_data(folded) == jax.random.key_data(jax.random.split(key, 9))).all()


@pytest.mark.parametrize("rule", [None, "feedback_alignment"])
def test_the_sums_of_the_parts_of_a_batch_add_up_and_draw_alike(rule: Any):
    problem = dataclasses.replace(PROBLEM, method=jbp.rules.method_of(rule))
    state, key, weights = state_of(problem), jax.random.key(8), np.arange(1.0, N + 1)
    whole = shares(weights)
    assert whole is not None

    @jax.jit
    def sums(state: Any, batch: jbp.Batch) -> Any:
        return problem.method.sums(problem, state, batch, key)

    total = sums(state, jbp.Batch(X, Y, whole))
    parts = [
        sums(state, jbp.Batch(X[a:b], Y[a:b], whole[a:b], rows=jnp.arange(a, b))) for a, b in ((0, 6), (6, 19), (19, N))
    ]
    added = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)
    assert_close(added.grads, total.grads, "net")
    assert_close((added.value, added.metrics), (total.value, total.metrics), "net")
    wrong = sums(state, jbp.Batch(X[6:], Y[6:], whole[6:]))  # without its places it draws otherwise
    assert not np.allclose(wrong.value + parts[0].value, total.value, rtol=1e-6)


# Weights


def test_weights_are_divided_once_by_their_sum():
    step, weights = jbp.make_step(dataclasses.replace(PROBLEM, net=(net := jbp.Dense(K)))), np.arange(N) % 4.0
    problem = dataclasses.replace(PROBLEM, net=net)
    start = state_of(problem)
    params = jax.tree.map(np.asarray, start.params)
    value, grads = jbp.value_and_grad(net, LOSS)(params, X, Y, None, jnp.asarray(weights / weights.sum()))
    state, figures = step(start, jbp.Batch(X, Y, weights))
    assert figures.loss == pytest.approx(float(value), rel=1e-13)
    assert_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), "net")


def test_weights_are_repeated_rows_and_a_batch_of_weight_0_moves_nothing():
    net, counts = jbp.Dense(K), np.arange(N) % 3
    problem = jbp.Problem(net, LOSS, jbp.optim.sgd(0.1))
    weighted, _ = jbp.make_step(problem)(state_of(problem), jbp.Batch(X, Y, counts.astype(float)))
    rows = np.repeat(np.arange(N), counts)
    repeated, _ = jbp.make_step(problem)(state_of(problem), jbp.Batch(X[rows], Y[rows]))
    assert_close(weighted.params, repeated.params, "net")
    broken = np.full_like(X, np.nan)
    still, figures = jbp.make_step(problem)(state_of(problem), jbp.Batch(broken, Y, np.zeros(N)))
    assert same(still.params, state_of(problem).params) and float(figures.loss) == 0


def test_fit_takes_a_weight_for_each_example():
    net, counts = jbp.Dense(K), np.arange(N) % 3
    rows = np.repeat(np.arange(N), counts)
    options: Any = {"epochs": 3, "seed": 1}
    weighted = jbp.fit(net, LOSS, SGD, (X, Y), weights=counts.astype(float), batch_size=N, **options)
    repeated = jbp.fit(net, LOSS, SGD, (X[rows], Y[rows]), batch_size=len(rows), **options)
    assert_close(weighted.params, repeated.params, "net")
    ones = jbp.fit(NET, LOSS, SGD, (X, Y), weights=np.ones(N), batch_size=4, **options)
    assert_close(ones.params, jbp.fit(NET, LOSS, SGD, (X, Y), batch_size=4, **options).params, "net")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_weights_count_alike_in_batches_of_any_size(batch_size: int):
    """Over an epoch of steps that move nothing, the gradients are those of Σ wₙeₙ/Σ wₙ over all examples."""
    net, weights = jbp.Dense(K), np.arange(1.0, N + 1)
    params = net.init(jax.random.key(0), (WIDTH,))[0]
    gathered = optax.GradientTransformation(  # keeps the sum of the gradients it saw, and moves nothing
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (
            jax.tree.map(jnp.zeros_like, updates),
            jax.tree.map(jnp.add, state, updates),
        ),
    )
    rows = N - N % batch_size  # a short last batch is a step like the others
    data, options = (X[:rows], Y[:rows]), {"epochs": 1, "batch_size": batch_size, "weights": weights[:rows]}
    fitted = jbp.fit(net, LOSS, gathered, data, params=params, **options)
    share = jnp.asarray(weights[:rows] / weights[:rows].sum())
    value, grads = jbp.value_and_grad(net, LOSS)(params, *data, None, share)
    assert_close(fitted.state.opt_state, jax.tree.map(lambda g: g * (rows // batch_size), grads), "net")
    assert fitted.history[0]["train_loss"] == pytest.approx(float(value), rel=1e-12)
    many = jbp.fit_many(net, LOSS, gathered, data, params=params, seeds=[0, 5], **options)
    for r in range(2):
        assert_close(jax.tree.map(lambda a, r=r: a[r], many.state.opt_state), fitted.state.opt_state, "net")
        assert many.runs[r].history[0]["train_loss"] == pytest.approx(float(value), rel=1e-12)


def test_only_the_proportions_of_weights_count_however_large_or_small():
    weights = np.arange(N) % 4.0
    options: Any = {"epochs": 2, "seed": 1, "batch_size": 4}
    plain = jbp.fit(NET, LOSS, SGD, (X, Y), weights=weights, **options)
    for factor in (1e-308, 5e307):
        scaled = jbp.fit(NET, LOSS, SGD, (X, Y), weights=weights * factor, **options)
        assert_close(scaled.params, plain.params, "net")


def test_the_last_batch_divides_by_its_own_rows_and_figures_are_means_all_the_same():
    net, weights = jbp.Dense(K), np.where(np.arange(N) % 3, 1.0 + np.arange(N), 0.0)
    options: Any = {"weights": weights, "batch_size": 4, "epochs": 1, "metrics": {"one": lambda o, t: jnp.ones(())}}
    fitted = jbp.fit(net, LOSS, jbp.optim.sgd(0.0), (X, Y), seed=2, **options)
    params, order = fitted.params, order_of(fitted.state.key, 1, Resident("shuffle", 4, N))()[:N]
    errors = np.asarray(jax.vmap(LOSS.value)(jbp.apply(net, params, X), jnp.asarray(Y)))
    batches = np.split(order, range(4, N, 4))
    expected = [np.average(errors[rows], weights=weights[rows]) for rows in batches]
    assert fitted.step_losses == pytest.approx(expected, rel=1e-12)
    assert fitted.history[0]["train_loss"] == pytest.approx(np.average(errors, weights=weights), rel=1e-12)
    assert fitted.history[0]["train_one"] == pytest.approx(1, rel=1e-12)
    # The last step: three rows, of an epoch in which the others moved nothing.
    rate = optax.scale_by_schedule(lambda step: jnp.where(jnp.asarray(step) == len(batches) - 1, -0.1, 0.0))
    last = jbp.fit(net, LOSS, rate, (X, Y), params=params, seed=2, **options)
    rows = batches[-1]
    share = jnp.asarray(weights[rows] / weights.mean() / len(rows))
    grads = jbp.value_and_grad(net, LOSS)(params, X[rows], jnp.asarray(Y[rows]), None, share)[1]
    assert len(rows) == 3
    assert_close(last.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), "net")


def test_fit_many_takes_the_weights_of_fit():
    options: Any = {"epochs": 2, "batch_size": 4, "weights": np.arange(N) % 3}
    many = jbp.fit_many(NET, LOSS, SGD, (X, Y), seeds=[3, 4], **options)
    assert_close(many.params_of(1), jbp.fit(NET, LOSS, SGD, (X, Y), seed=4, **options).params, "net")
    with pytest.raises(ValueError, match="one number for each of the 23 examples"):
        jbp.fit_many(NET, LOSS, SGD, (X, Y), seeds=[3], batch_size=4, weights=np.ones(N - 1))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(N - 1), "one number for each of the 23 examples"),
        (-np.ones(N), "finite and at least 0, but are -1.0"),
        (np.full(N, np.nan), "finite and at least 0, but are nan"),
        (np.zeros(N), "must not all be 0"),
    ],
)
def test_weights_that_are_none_are_refused(weights: Any, words: str):
    with pytest.raises(ValueError, match=words):
        jbp.fit(NET, LOSS, SGD, (X, Y), batch_size=4, weights=weights)
    if len(weights) == N and weights.any():
        with pytest.raises(ValueError, match=words):
            jbp.make_step(PROBLEM)(state_of(), jbp.Batch(X, Y, weights))


# Methods


@dataclass(frozen=True)
class SPSA(jbp.Method):
    """Simultaneous perturbation: g ≈ (e(θ + cΔ) − e(θ − cΔ))/2c · Δ, one random direction of signs for all examples.

    Source: Spall 1992, "Multivariate stochastic approximation using a simultaneous perturbation gradient
    approximation".
    """

    size: float = 1e-3

    def sums(self, problem: jbp.Problem, state: jbp.State, batch: jbp.Batch, key: Any) -> jbp.Sums:
        leaves, structure = jax.tree.flatten(state.params)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        signs = [jax.random.rademacher(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
        direction = structure.unflatten(signs)

        def error(size: float) -> Any:
            moved = jax.tree.map(lambda p, d: p + size * d, state.params, direction)
            return jbp.value_and_grad(problem.net, problem.loss)(moved, batch.x, batch.y, key, batch.weights)[0]

        slope = (error(self.size) - error(-self.size)) / (2 * self.size)
        return jbp.Sums(error(0.0), jax.tree.map(lambda d: slope * d, direction), ())


def test_a_method_of_ones_own_in_twenty_lines():
    net, problem = jbp.Dense(K), jbp.Problem(jbp.Dense(K), LOSS, jbp.optim.sgd(1.0), method=SPSA())
    state = state_of(problem)

    def estimate(key: Any) -> Any:
        return problem.method.sums(problem, state, jbp.Batch(jnp.asarray(X), jnp.asarray(Y)), key).grads

    draws = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 4000))
    true = jbp.value_and_grad(net, LOSS)(state.params, X, Y)[1]
    for mean, spread, g in zip(
        *(jax.tree.leaves(jax.tree.map(f, draws)) for f in (lambda a: a.mean(0), lambda a: a.std(0))),
        jax.tree.leaves(true),
        strict=True,
    ):
        assert (np.abs(mean - g) <= 5 * spread / np.sqrt(4000) + 1e-5).all()  # 18 numbers: fails once in 10⁵
    fitted = jbp.fit(net, LOSS, jbp.optim.sgd(0.05), (X, Y), rule=SPSA(), epochs=60, batch_size=N)
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]


def test_who_adds_up_and_who_does_not():
    assert jbp.Backpropagation().additive and SPSA().additive and jbp.rules.method_of("kolen_pollack").additive
    assert not InPlace().additive


def test_two_ways_at_once_are_refused_in_one_place():
    for options in ({"rule": SPSA()}, {"private": jbp.Private(1.0, 1.0, 1e-4)}):
        with pytest.raises(ValueError, match=r"expected one of .* and in_place: a learning rule"):
            jbp.fit(NET, LOSS, SGD, (X, Y), in_place=True, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected one of rule and private"):
        jbp.fit(NET, LOSS, SGD, (X, Y), rule="kolen_pollack", private=jbp.Private(1.0, 1.0, 1e-4))


# Optimisers that ask for more than a gradient


ASKING = {
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)),
    "polyak": optax.polyak_sgd(0.5),
    "lbfgs": optax.lbfgs(memory_size=3),
}


@pytest.mark.parametrize("name", ASKING)
def test_optimisers_that_ask_for_the_value_get_it(name: str, optax_promotion: None):
    fitted = jbp.fit(NET, LOSS, ASKING[name], (X, Y), epochs=12, batch_size=N)
    assert fitted.history[-1]["train_loss"] < 0.95 * fitted.history[0]["train_loss"]
    with pytest.raises(ValueError, match=r"asks for the value of the loss .* not noised"):
        jbp.fit(NET, LOSS, ASKING[name], (X, Y), private=jbp.Private(1.0, 1.0, 1e-4), epochs=1, batch_size=4)


def test_the_value_that_they_get_is_that_of_the_steps_batch_at_any_parameters():
    def init(params: Any) -> Any:
        return jnp.zeros(3)

    def update(updates: Any, state: Any, params: Any = None, *, value: Any, value_fn: Any, grad: Any) -> Any:
        elsewhere = jax.tree.map(lambda p: 2 * p, params)
        return jax.tree.map(jnp.zeros_like, updates), jnp.stack([value, value_fn(params), value_fn(elsewhere)])

    problem = jbp.Problem(NET, LOSS, optax.GradientTransformationExtraArgs(init, update))  # type: ignore[arg-type]
    start = state_of(problem)
    params, key = jax.tree.map(np.asarray, start.params), step_key(epoch_keys(start.key, 1)[1], 0)
    state, figures = jbp.make_step(problem)(start, jbp.Batch(X, Y))
    value_and_grad = jbp.value_and_grad(NET, LOSS)
    expected = [value_and_grad(jax.tree.map(lambda p, c=c: c * p, params), X, Y, key)[0] for c in (1.0, 1.0, 2.0)]
    np.testing.assert_allclose(state.opt_state, np.stack(expected), rtol=1e-12)
    assert float(figures.loss) == float(state.opt_state[0])


def test_an_optimiser_with_parameters_of_its_own_is_refused_in_words():
    lookahead = optax.lookahead(optax.sgd(0.1), 5, 0.5)
    with pytest.raises(ValueError, match=r"these parameters.*lookahead"):
        jbp.fit(NET, LOSS, lookahead, (X, Y), batch_size=4)


# What is done to an example first


def picture(x: Any, key: Any) -> Any:
    """uint8 → [0, 1], and in training a shift of its own."""
    x = x.astype(jnp.float64) / 255
    return x if key is None else jnp.roll(x, jax.random.randint(key, (), 0, WIDTH), -1)


BYTES = np.random.default_rng(4).integers(0, 256, (N, WIDTH)).astype(np.uint8)


def test_a_transform_runs_in_the_step_and_in_evaluation_without_drawing():
    problem = jbp.Problem(jbp.Dense(K), LOSS, jbp.optim.sgd(0.1), transform=picture)
    start = jbp.init_state(problem, jax.ShapeDtypeStruct((WIDTH,), jnp.uint8), seed=2)
    params, noise = jax.tree.map(np.asarray, start.params), step_key(epoch_keys(start.key, 1)[1], 0)
    _, figures = jbp.make_step(problem)(start, jbp.Batch(BYTES, Y))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(noise, 2**32 - 1), jnp.arange(N))
    shifted = jax.vmap(picture)(BYTES, keys)
    value_and_grad = jbp.value_and_grad(jbp.Dense(K), LOSS)
    assert float(figures.loss) == pytest.approx(float(value_and_grad(params, shifted, Y)[0]), rel=1e-13)
    fitted = jbp.fit(
        jbp.Dense(K),
        LOSS,
        jbp.optim.sgd(0.1),
        (BYTES, Y),
        transform=picture,
        epochs=2,
        batch_size=4,
        validation_data=(BYTES, Y),
    )
    plain = value_and_grad(fitted.params, BYTES / 255, Y)[0]
    assert fitted.history[-1]["validation_loss"] == pytest.approx(float(plain), rel=1e-12)
    assert name_of_transform(picture) == f"{__name__}.picture"


def test_a_transform_draws_by_place_and_apart_from_the_net():
    drawn = []

    def watched(x: Any, key: Any) -> Any:
        if key is not None:
            drawn.append(key)
        return x

    problem = dataclasses.replace(PROBLEM, transform=watched)
    state, figures = jbp.make_step(problem)(state_of(problem), jbp.Batch(X, Y))
    plain, others = jbp.make_step(PROBLEM)(state_of(), jbp.Batch(X, Y))
    assert len(drawn) == 1
    assert float(figures.loss) == float(others.loss) and same(state.params, plain.params)  # dropout as without it


def test_the_net_is_made_for_what_the_transform_gives():
    def halved(x: Any, key: Any) -> Any:
        return x[:2]

    fitted = jbp.fit(jbp.Dense(K), LOSS, SGD, (X, Y), transform=halved, epochs=1, batch_size=4)
    assert fitted.params["weight"].shape == (2, K)
    with pytest.raises(ValueError, match=r"input of shape \(5,\)|shape"):
        jbp.fit(jbp.Dense(K), LOSS, SGD, (X, Y), params=fitted.params, epochs=1, batch_size=4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"net": "512 relu"}, "the net must be a layer"),
        ({"loss": "l2"}, "the loss must come from jbp.losses"),
        ({"optimizer": "adam"}, "optimizer must come from jbp.optim or optax"),
        ({"method": jbp.Private(1.0, 1.0, 1e-4)}, r"method must be a jbp.Method .*\.bind\(batch_size\)"),
        ({"metrics": {"accuracy": 3}}, "metrics must be functions by name"),
        ({"transform": 3}, "transform must be a function"),
        ({"trainable": (1, 2)}, "trainable must be a tree of bools"),
    ],
)
def test_a_problem_says_what_does_not_fit(change: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(PROBLEM, **change)


# What a first user gets wrong


def test_a_batch_size_of_another_kind_of_integer_is_that_number():
    options: Any = {"private": jbp.Private(1.0, 1.0, 1e-3), "seed": 0, "epochs": 1}
    narrow = jbp.fit(NET, LOSS, SGD, (X, Y), batch_size=np.int8(8), **options)  # type: ignore[arg-type]
    assert narrow.step_losses.any()
    assert (narrow.step_losses == jbp.fit(NET, LOSS, SGD, (X, Y), batch_size=8, **options).step_losses).all()
    for size in (0, "a", 2.5):
        with pytest.raises(ValueError, match="batch_size must be a whole number"):
            options["private"].bind(size)


def test_a_private_method_comes_in_by_its_own_door_only():
    method = jbp.Private(1.0, 1.0, 1e-4).bind(4)
    for train, more in ((jbp.fit, {}), (jbp.fit_many, {"seeds": (0, 1)})):
        with pytest.raises(ValueError, match="give it as private, not as rule"):
            train(NET, LOSS, SGD, (X, Y), rule=method, batch_size=4, **more)  # type: ignore[operator]


def test_the_loss_of_a_private_step_is_the_mean_with_weights_of_1_and_without():
    problem = jbp.Problem(jbp.Dense(K), LOSS, SGD, method=jbp.Private(1.0, 1.0, 1e-4).bind(N))
    losses = [
        float(jbp.make_step(problem)(state_of(problem), jbp.Batch(X, Y, weights))[1].loss)
        for weights in (None, np.ones(N))
    ]
    params = state_of(problem).params
    assert losses == pytest.approx([float(jbp.value_and_grad(jbp.Dense(K), LOSS)(params, X, Y)[0])] * 2)


def test_a_method_is_made_for_the_optimiser_of_each_rate():
    many = jbp.fit_many(
        jbp.Dense(K), LOSS, lambda rate: jbp.optim.sgd(rate), (X, Y), seeds=(0,), learning_rates=(0.1,), batch_size=4,
        rule=InPlace(), epochs=1,
    )  # fmt: skip
    single = jbp.fit(jbp.Dense(K), LOSS, jbp.optim.sgd(0.1), (X, Y), batch_size=4, in_place=True, epochs=1)
    np.testing.assert_allclose(many.step_losses[0], single.step_losses, rtol=1e-9)


def test_an_optimiser_that_may_be_told_the_value_is_told():
    def update(updates: Any, state: Any, params: Any = None, *, value: Any = None, **more: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, updates), jnp.zeros(()) if value is None else value + 1

    curious = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
    state, figures = jbp.make_step(dataclasses.replace(PROBLEM, optimizer=curious))(
        state_of(dataclasses.replace(PROBLEM, optimizer=curious)), jbp.Batch(X, Y)
    )
    assert float(state.opt_state) == float(figures.loss) + 1
    kept = jbp.fit(NET, LOSS, curious, (X, Y), batch_size=4, epochs=1, private=jbp.Private(1.0, 1.0, 1e-4), seed=0)
    assert float(kept.state.opt_state) == 0


def test_data_are_looked_through_as_the_net_will_see_them():
    broken = X.copy()
    broken[4, 3] = np.nan
    jbp.fit(NET, LOSS, SGD, (broken, Y), transform=lambda x, key: jnp.nan_to_num(x), epochs=1, batch_size=4)
    with pytest.raises(ValueError, match="x of train_data must be finite once it is transformed, but is not in row 0"):
        jbp.fit(NET, LOSS, SGD, (0 * X, Y), transform=lambda x, key: jnp.log(x), epochs=1, batch_size=4)


FIRST_MISTAKES: dict[str, tuple[Any, str]] = {
    "a net for a problem": (lambda: jbp.make_step(NET), r"expected a jbp.Problem\(net, loss, optimizer\)"),  # type: ignore[arg-type]
    "a net to start": (lambda: jbp.init_state(NET, (WIDTH,)), "expected a jbp.Problem"),  # type: ignore[arg-type]
    "parameters for a state": (lambda: jbp.make_step(PROBLEM)({}, jbp.Batch(X, Y)), "a step takes a jbp.State"),  # type: ignore[arg-type]
    "an array for a batch": (lambda: jbp.make_step(PROBLEM)(state_of(), X), r"a step takes a jbp.Batch\(x, y"),  # type: ignore[arg-type]
    "a number for weights": (lambda: jbp.make_step(PROBLEM)(state_of(), jbp.Batch(X, Y, 1.0)), "one number for each"),
    "a fraction for a seed": (lambda: jbp.init_state(PROBLEM, (WIDTH,), seed=0.5), "seed must be a whole number"),  # type: ignore[arg-type]
    "other parameters": (lambda: state_of(params=(1, 2)), "expects a tuple of 4 parameter trees"),
    "a metric alone": (lambda: dataclasses.replace(PROBLEM, metrics=jbp.accuracy), "metrics must be functions by name"),
    "metrics as a list": (lambda: dataclasses.replace(PROBLEM, metrics=[jbp.accuracy]), "metrics must be functions"),
    "names of metrics": (lambda: dataclasses.replace(PROBLEM, metrics=["accuracy"]), "metrics must be functions"),
    "a metric named loss": (lambda: dataclasses.replace(PROBLEM, metrics={"loss": jbp.accuracy}), "'loss' is taken"),
    "a rule's class": (
        lambda: dataclasses.replace(PROBLEM, method=jbp.rules.FeedbackAlignment), "method must be a jbp.Method",
    ),
    "a transform that always draws": (
        lambda: jbp.init_state(
            dataclasses.replace(PROBLEM, transform=lambda x, key: x + jax.random.normal(key)), (WIDTH,)
        ),
        "with key None, which is evaluation",
    ),
    "rows of another kind": (
        lambda: jbp.forward(NET, state_of().params, X, rows=np.zeros(N)), "rows must be a whole number for each",
    ),
    "a mask of numbers": (
        lambda: jbp.forward(NET, state_of().params, X, mask=np.ones((N, 4))), "mask must be bools",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST_MISTAKES)
def test_a_first_mistake_is_told_in_a_line(name: str):
    call, words = FIRST_MISTAKES[name]
    with pytest.raises(ValueError, match=words):
        call()


def test_a_state_is_used_once():
    state = state_of()
    jbp.make_step(PROBLEM)(state, jbp.Batch(X, Y))
    with pytest.raises(ValueError, match="this state was handed to a step before"):
        jbp.make_step(PROBLEM)(state, jbp.Batch(X, Y))
