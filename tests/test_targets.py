"""Targets are looked at as their owner has them, before anything narrows them, and each loss says which it takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random

import jbp
from jbp import losses
from jbp.arguments import check_narrowing

N, WIDTH = 7, 5
X = random("targets").normal(size=(N, WIDTH))
CLASSES = np.arange(N) % 3
SHARES = np.eye(3)[CLASSES]
NET = jbp.serial(jbp.Dense(3))
SGD = jbp.optim.sgd(0.1)
PARAMS, _ = NET.init(jax.random.key(0), (WIDTH,))


def spoiled(values: np.ndarray, row: int, value: Any) -> np.ndarray:
    """A copy with `value` in one row, in a type that holds it."""
    result = values.copy() if isinstance(value, float) else values.astype(np.asarray(value).dtype)
    result[row] = value
    return result


def steps(loss: losses.Loss, y: Any) -> Any:
    problem = jbp.Problem(NET, loss, SGD)
    return jbp.make_step(problem)(jbp.init_state(problem, (WIDTH,)), jbp.Batch(X, y))


DOORS = {
    "fit": lambda loss, y: jbp.fit(NET, loss, SGD, (X, y), epochs=1, batch_size=3),
    "validation": lambda loss, y: jbp.fit(
        NET, loss, SGD, (X, SHARES if np.ndim(y) > 1 else CLASSES), validation_data=(X, y), epochs=1, batch_size=3
    ),
    "fit_many": lambda loss, y: jbp.fit_many(NET, loss, SGD, (X, y), seeds=[0], epochs=1, batch_size=3),
    "value_and_grad": lambda loss, y: jbp.value_and_grad(NET, loss)(PARAMS, X, y),
    "make_step": steps,
    "value_and_pairs": lambda loss, y: jbp.value_and_pairs(NET, loss, PARAMS, X, y),
    "clipped_sum": lambda loss, y: jbp.clipped_sum(NET, loss, PARAMS, X, y, 1.0),
    "fisher_product": lambda loss, y: jbp.curvature.fisher_product(NET, loss, PARAMS, X, y, key=jax.random.key(0)),
    "gauss_newton_diagonal": lambda loss, y: jbp.curvature.gauss_newton_diagonal(NET, loss, PARAMS, X, y),
}
"""Whoever takes targets outside compiled code."""

SOFTMAX, SIGMOID, SQUARES = losses.softmax_cross_entropy, losses.sigmoid_binary_cross_entropy, losses.squared_error
WRONG = {
    "a label + 2³²": (SOFTMAX, spoiled(CLASSES, 4, np.int64(2**32 + 1)), r"row 4 has 4294967297"),
    "a uint64 label": (SOFTMAX, spoiled(CLASSES, 2, np.uint64(2**63 + 1)), r"row 2 has 9223372036854775809"),
    "a label of −1": (SOFTMAX, spoiled(CLASSES, 6, np.int64(-1)), r"0…2, for the net has 3 outputs, but row 6 has -1"),
    "a negative share": (SOFTMAX, SHARES * 2 - SHARES.sum(-1, keepdims=True) / 3, r"no entry below 0"),
    "shares of 2": (SOFTMAX, SHARES * 2, r"add up to 1, but row 0 has 2\.0: divide by the sum"),
    "no share at all": (SOFTMAX, spoiled(SHARES, 5, 0.0), r"add up to 1, but row 5 has 0\.0"),
    "targets −1/1": (SIGMOID, SHARES * 2 - 1, r"in \[0, 1\].* row 0 has -1\.0, at \[1\]: write −1/1 as \(y \+ 1\) / 2"),
    "targets 0/2": (SIGMOID, SHARES * 2, r"in \[0, 1\].* row 0 has 2\.0"),
    "NaN": (SQUARES, spoiled(SHARES, 3, np.nan), r"must hold finite numbers, but row 3 has nan"),
    "text": (SOFTMAX, np.array(["cat", "dog"])[CLASSES % 2], r"y.* must be numbers, but is text: number the labels"),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", WRONG)
def test_a_target_outside_the_domain_is_refused_at_every_door(case: str, door: str):
    loss, y, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        DOORS[door](loss, y)


def test_cross_entropy_on_probabilities_takes_the_targets_of_softmax_cross_entropy():
    for case in ("a label + 2³²", "a negative share", "shares of 2"):
        _, y, words = WRONG[case]
        with pytest.raises(ValueError, match=words):
            losses.cross_entropy.check_targets(y, (3,))


def test_what_is_in_the_domain_passes():
    rounded = np.full((N, 3), 0.333)  # as a table has it
    for loss, y in (
        (SOFTMAX, CLASSES.astype(np.uint8)), (SOFTMAX, SHARES.astype(int)), (SOFTMAX, SHARES > 0), (SOFTMAX, rounded),
        (SOFTMAX, (SHARES * 0.9 + 0.1 / 3).astype(jnp.bfloat16)), (SIGMOID, SHARES * 0.25 + 0.5), (SIGMOID, SHARES > 0),
        (SQUARES, SHARES * -1e6), (SIGMOID, SHARES * (1 + 2e-16) - 1e-17), (SOFTMAX, SHARES - 1e-9),
    ):  # fmt: skip
        loss.check_targets(y, (3,))


def test_rows_of_weight_0_and_masked_positions_may_hold_anything():
    y = spoiled(CLASSES, 4, np.int64(99))
    weights = np.ones(N)
    weights[4] = 0
    run = jbp.value_and_grad(NET, SOFTMAX)
    np.testing.assert_array_equal(run(PARAMS, X, y, weights=weights)[0], run(PARAMS, X, CLASSES, weights=weights)[0])
    with pytest.raises(ValueError, match="row 4 has 99"):
        run(PARAMS, X, y)
    fits = [jbp.fit(NET, SOFTMAX, SGD, (X, labels), epochs=1, weights=weights).params for labels in (y, CLASSES)]
    jax.tree.map(np.testing.assert_array_equal, *fits)
    mask = np.ones((2, 3), bool)
    mask[1, 2] = False
    positions = spoiled(np.array([[0, 1, 2], [2, 1, 0]]), (1, 2), np.int64(-5))  # type: ignore[arg-type]
    SOFTMAX.check_targets(positions, (3, 3), counts=mask)
    with pytest.raises(ValueError, match=r"row 1 has -5, at \[2\]"):
        SOFTMAX.check_targets(positions, (3, 3))


def test_a_loss_of_ones_own_states_a_domain_or_refuses_what_is_not_finite():
    class Poisson(losses.L2Loss):
        def check_targets(self, targets: Any, output: tuple[int, ...], name: str = "y", counts: Any = None) -> None:
            if (np.asarray(targets) < 0).any():
                raise ValueError(f"{name} must hold counts")

    class Silent(losses.Loss):
        value, delta = losses.L2Loss.value, losses.L2Loss.delta

    for door in DOORS.values():
        with pytest.raises(ValueError, match="must hold counts"):
            door(Poisson(), SHARES - 1)
        with pytest.raises(ValueError, match="finite numbers, but row 3 has nan"):
            door(Silent(), spoiled(SHARES, 3, np.nan))


def test_numbers_that_jax_would_not_keep_are_refused():
    """With 32-bit types, as users have them."""
    big, huge = np.array([[2**40], [3]]), np.array([[1e39], [1.0]])
    with jax.enable_x64(False):
        for door in ("fit", "value_and_grad"):
            for x, words in ((big, "holds 1099511627776, which int32 cannot"), (huge, r"holds 1e\+39, which float32")):
                with pytest.raises(ValueError, match=f"^x.* {words}"):
                    _run_on(door, x, np.zeros((2, 1)))
                with pytest.raises(ValueError, match=f"^y.* {words}"):
                    _run_on(door, np.zeros((2, 1), np.float32), x)


def _run_on(door: str, x: Any, y: Any) -> Any:
    net = jbp.serial(jbp.Dense(1))
    if door == "fit":
        return jbp.fit(net, SQUARES, SGD, (x, y), epochs=1, batch_size=2)
    params, _ = net.init(jax.random.key(0), (1,))
    return jbp.value_and_grad(net, SQUARES)(params, x, y)


def test_columns_whose_differences_rounding_would_swallow_are_refused():
    rng = random("columns")
    column = rng.normal(size=(50, 2))
    with jax.enable_x64(False):
        for far in (column + np.array([0, 1.7e9]), column * [1, 0.005] + np.array([0, 1e6])):
            with pytest.raises(ValueError, match=r"column 1 of x lies between .* float32 has steps of"):
                check_narrowing("x", far, spread=True)
        check_narrowing("x", np.round(column) + 1e6, spread=True)  # whole numbers, each kept
        check_narrowing("x", column + 1e3, spread=True)
        check_narrowing("x", np.array([[0.3], [3 * 0.1]]), spread=True)  # one number, written in two ways
        check_narrowing("x", np.full((9, 1), 1.7e9 + 0.1), spread=True)  # a constant has no differences
        with pytest.raises(ValueError, match=r"^y of train_data lies between"):
            jbp.fit(jbp.serial(jbp.Dense(1)), SQUARES, SGD, (column[:, :1], column[:, 1:] + 1.7e9), epochs=1)
    check_narrowing("x", column + 1.7e9, spread=True)  # in 64 bits all is kept


def test_one_class_is_refused():
    one = jbp.serial(jbp.Dense(1))
    params, _ = one.init(jax.random.key(0), (WIDTH,))
    for loss in (SOFTMAX, losses.cross_entropy):
        with pytest.raises(ValueError, match="over one output has nothing to choose from"):
            jbp.value_and_grad(one, loss)(params, X, np.zeros(N, int))


def test_weights_in_float64_count_by_their_proportions_however_small_or_large():
    """With 32-bit types 1e-300 became 0, and 1e300 infinite."""
    with jax.enable_x64(False):
        problem = jbp.Problem(NET, SOFTMAX, SGD)
        taken = []
        for size in (1.0, 1e-300, 1e300):
            weights = size * np.arange(1.0, N + 1)
            state, figures = jbp.make_step(problem)(
                jbp.init_state(problem, (WIDTH,), seed=1), jbp.Batch(X.astype(np.float32), CLASSES, weights)
            )
            _, pairs = jbp.value_and_pairs(NET, SOFTMAX, state.params, X.astype(np.float32), CLASSES)
            taken.append((figures.loss, state.params, jbp.stats.variance(pairs, weights)))
        for other in taken[1:]:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), other, taken[0])
