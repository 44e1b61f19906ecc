"""The laws of the losses, over every row of the case table: in float64, in float32, with weights, and at the edges."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, LOSSES, LossCase, random
from oracles import assert_close, assert_same, compiled, error_in_units, initialised, plain_errors, plain_value

import jbp
from jbp import losses

ON_LOGITS = (losses.softmax_cross_entropy, losses.sigmoid_binary_cross_entropy)


@pytest.fixture(scope="module", params=LOSSES, ids=lambda case: case.name)
def case(request):
    return request.param


def _soak(case: LossCase) -> list[Any]:
    """A row of one output says nothing more in float32 or under weights: it is left to `make soak`."""
    return [pytest.mark.soak] if ", one output" in case.name else []


WEIGHED = [pytest.param(case, marks=_soak(case), id=case.name) for case in LOSSES]
IN_EACH_DTYPE = [
    pytest.param(case, dtype, marks=_soak(case) if dtype == jnp.float32 else [], id=f"{case.name}-{dtype.__name__}")
    for case in LOSSES
    for dtype in (jnp.float64, jnp.float32)
]


def arrays(case: LossCase, dtype):
    target = case.target.astype(dtype) if case.target.dtype == np.float64 else case.target
    return jax.device_put(case.output.astype(dtype)), jax.device_put(target)


@cache
def measured(name: str, dtype):
    """(ours, expected) for each law of one row, in one compiled program."""
    case = next(case for case in LOSSES if case.name == name)
    loss = case.loss
    weights = random(f"weights {name}").uniform(-0.5, 2, size=BATCH).astype(dtype)
    weights[3] = 0

    def sides(output, target, weights):
        errors, pull = jax.vjp(lambda output: plain_errors(loss, output, target), output)
        columns = jax.vmap(loss.sqrt_hessian)(output, target)
        flat = columns.reshape(*columns.shape[:2], -1)

        def of_one(output, target):
            hessian = jax.hessian(lambda o: plain_errors(loss, o[None], target[None])[0])(output)
            return hessian.reshape(output.size, output.size)

        def theirs(output, weights=None):
            return jax.value_and_grad(lambda o: plain_value(jbp.identity, loss, (), o, target, None, weights))(output)

        def ours(output, weights=None):  # a gain of 1 for each example is a parameter whose gradient is the δ
            total = jax.vmap(loss.value)(output, target)
            delta = jax.vmap(loss.delta)(output, target)
            scale = jnp.full(BATCH, 1 / BATCH, dtype) if weights is None else weights
            return (scale * total).sum(), jnp.einsum("n,n...->n...", scale, delta)

        return {
            "value": (jax.vmap(loss.value)(output, target), errors),
            "delta": (jax.vmap(loss.delta)(output, target), pull(jnp.ones(BATCH, dtype))[0]),
            "mean": (ours(output), theirs(output)),
            "weighted": (ours(output, weights), theirs(output, weights)),
            "hessian": (jnp.einsum("nvi,nvj->nij", flat, flat), jax.vmap(of_one)(output, target)),
        }

    with jax.default_matmul_precision("highest"):
        return compiled(sides)(*arrays(case, dtype), weights)


@pytest.mark.parametrize(("case", "dtype"), IN_EACH_DTYPE)
def test_value_and_delta_equal_autodiff(case, dtype):
    for law in ("value", "delta", "mean", "weighted"):
        ours, expected = measured(case.name, dtype)[law]
        if np.any(np.asarray(expected if law == "delta" else 1)):
            assert_close(ours, expected, "layer")
        else:  # one class: δ is 0, up to roundings of the 1s it is the difference of
            assert float(jnp.abs(ours).max()) <= 4 * jnp.finfo(dtype).eps


def test_sqrt_hessian_squares_to_the_hessian(case):
    ours, expected = measured(case.name, jnp.float64)["hessian"]
    # A softmax's Hessian is a difference of entries up to Σt/4; at one class it is 0.
    scale = jnp.maximum(1.0, jnp.abs(expected).max())
    assert_close(ours / scale + 1, expected / scale + 1, "layer")


def problem(case: LossCase):
    """A net whose output fits the row's targets, with positive outputs for a loss on probabilities."""
    output, target = arrays(case, jnp.float64)
    rng = random(f"net for {case.name}")
    layers = [jbp.Dense(output.shape[-1])] + [jbp.softmax] * isinstance(case.loss, losses.CrossEntropy)
    net = jbp.serial(*layers)
    params, _ = initialised(net, jax.random.key(0), (*output.shape[1:-1], 7))
    x = jax.device_put(rng.normal(size=(*output.shape[:-1], 7)))
    return net, params, x, target, jax.device_put(rng.uniform(-0.5, 2, size=BATCH))


def spoiled(array, rows, value):
    """`array` with rows that must not matter."""
    return array.at[rows].set(value if jnp.issubdtype(array.dtype, jnp.floating) else 0)


@cache
def weighed(name: str):
    """What value_and_grad makes of one row's batch under several weights, in one compiled program."""
    case = next(case for case in LOSSES if case.name == name)
    loss, (net, params, x, y, weights) = case.loss, problem(case)
    even, run = jnp.full(BATCH, 1 / BATCH), jbp.value_and_grad(net, loss)

    def expected(params, x, y, weights):
        return jax.value_and_grad(lambda p: plain_value(net, loss, p, x, y, None, weights))(params)

    def padded(array):
        return jnp.concatenate([array, spoiled(array[:2], jnp.arange(2), jnp.nan)])

    def results(params, x, y, weights):
        return {
            "mean": run(params, x, y),
            "weighted": run(params, x, y, weights=weights),
            "even": run(params, x, y, weights=even),
            "expected weighted": expected(params, x, y, weights),
            "expected mean": expected(params, x, y, even),
            "padded": run(params, padded(x), padded(y), weights=jnp.concatenate([even, jnp.zeros(2)])),
            "doubled": run(params, jnp.concatenate([x, x]), jnp.concatenate([y, y])),
        }

    return compiled(results)(params, x, y, weights)


def assert_close_from_above(ours, expected):
    """Close where a sum may cancel (at one class, down to 0): a unit is that of 1, the size of what is summed."""
    above, wanted = jax.tree.map(lambda leaf: 1 + leaf, (ours, expected))
    assert_close(above, wanted, "net")


@pytest.mark.parametrize("case", WEIGHED)
def test_without_weights_it_is_the_mean_and_weights_are_not_renormalised(case):
    result = weighed(case.name)
    for ours, expected in (("weighted", "expected weighted"), ("mean", "expected mean"), ("even", "mean")):
        assert_close_from_above(result[ours], result[expected])


@pytest.mark.parametrize("case", WEIGHED)
def test_a_row_of_weight_0_takes_no_part_whatever_it_holds(case):
    """To the bit: NaN and inf in x and y leave no trace. One compiled program, so nothing is rounded otherwise."""
    net, params, x, y, weights = problem(case)
    # In a program of one's own, where targets are not looked at: some of the table's do not add up to 1.
    run, rows = jax.jit(jbp.value_and_grad(net, case.loss)), jnp.array([0, 4])
    weights = weights.at[rows].set(0.0)
    clean = run(params, x, y, weights=weights)
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        assert_same(run(params, spoiled(x, rows, value), spoiled(y, rows, value), weights=weights), clean)


@pytest.mark.parametrize("case", WEIGHED)
def test_a_padded_batch_equals_the_shorter_one_and_a_doubled_batch_its_half(case):
    result = weighed(case.name)
    for other in ("padded", "doubled"):
        assert_close_from_above(result[other], result["mean"])


def test_softmax_cross_entropy_equals_cross_entropy_behind_softmax():
    """The fused route on logits, and the full Jacobian of an explicit softmax layer."""
    for case in LOSSES:
        if not isinstance(case.loss, losses.SoftmaxCrossEntropy):
            continue
        logits, target = arrays(case, jnp.float64)
        fused = jbp.value_and_grad(jbp.serial(jbp.Dense(5)), losses.softmax_cross_entropy)
        unfused = jbp.value_and_grad(jbp.serial(jbp.Dense(5), jbp.softmax), losses.cross_entropy)
        dense, _ = jbp.Dense(5).init(jax.random.key(1), logits.shape[1:])
        value, (grads,) = jax.jit(fused)((dense,), logits, target)
        other_value, (other, _) = jax.jit(unfused)((dense, ()), logits, target)
        assert_close((other_value, other), (value, grads), "net")


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("loss", ON_LOGITS, ids=repr)
def test_losses_on_logits_are_finite_at_huge_logits(loss, dtype):
    logits = jnp.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype)
    target = jnp.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype)
    functions = loss.value, loss.delta, loss.sqrt_hessian
    value, *others = compiled(lambda *rows: [jax.vmap(f)(*rows) for f in functions])(logits, target)
    for result in (value, *others):
        assert result.dtype == dtype
        assert bool(jnp.isfinite(result).all()), result
    # The gap between the logits there, or the two logits themselves; e^-1e4 is 0 in every format.
    assert float(value[0]) == pytest.approx(2e4, rel=0.01)


@pytest.mark.parametrize("target", [1, [0.0, 1.0, 0.0]], ids=["class", "distribution"])
def test_cross_entropy_at_zero_probability_is_infinite_and_never_nan(target):
    output, target = jnp.array([1.0, 0.0, 0.0]), jnp.asarray(target)
    assert losses.cross_entropy.value(output, target) == jnp.inf
    assert losses.cross_entropy.delta(output, target).tolist() == [0, -jnp.inf, 0]
    assert losses.cross_entropy.sqrt_hessian(output, target).diagonal().tolist() == [0, jnp.inf, 0]


@pytest.mark.parametrize("target", [3, 7, -1])
def test_a_class_that_there_is_not_reads_nan_and_adds_to_nothing(target):
    """Compiled code cannot refuse it. At a position beside a right one too: it must not read its neighbour's row."""
    output = jax.nn.softmax(jnp.array([[0.3, -1.0, 2.0], [1.0, 0.5, 0.0]]))
    classes = jnp.array([target, 1])
    assert jnp.isnan(losses.softmax_cross_entropy.value(output, classes))
    assert jnp.isnan(losses.cross_entropy.value(output, classes))
    assert_close(2 * losses.softmax_cross_entropy.delta(output, classes)[0], jax.nn.softmax(output[0]), "layer")
    assert not losses.cross_entropy.delta(output, classes)[0].any()
    right = jnp.array([0, 1])
    for loss in (losses.softmax_cross_entropy, losses.cross_entropy):
        assert_same(loss.delta(output, classes)[1], loss.delta(output, right)[1])


def test_a_loss_states_its_reduction():
    """Summed over outputs, averaged over positions; mean_squared_error alone divides by the outputs."""
    p, y = jnp.array([[1.0, 2.0], [3.0, 5.0], [0.0, 0.0]]), jnp.zeros((3, 2))
    assert float(losses.squared_error.value(p, y)) == pytest.approx(39 / 3)
    assert float(losses.l2_loss.value(p, y)) == pytest.approx(39 / 6)
    assert float(losses.mean_squared_error.value(p, y)) == pytest.approx(39 / 6)
    assert float(losses.mean_squared_error.value(p[0], y[0])) == pytest.approx(2.5)


def test_every_loss_is_in_the_table():
    public = {loss for loss in vars(losses).values() if isinstance(loss, losses.Loss)}
    classes = {
        c for name, c in vars(losses).items() if isinstance(c, type) and name[0] != "_" and issubclass(c, losses.Loss)
    }
    enrolled = {case.loss for case in LOSSES}
    assert public == enrolled
    assert classes - {losses.Loss} == {type(loss) for loss in enrolled}


def test_the_measure_of_error_counts_the_worst_entry_and_does_not_grow_with_size():
    expected = jnp.ones(10_000).at[0].set(8.0)
    eps = float(jnp.finfo(expected.dtype).eps)
    assert error_in_units(expected.at[-1].add(80 * eps), expected) == {"leaf": 10.0}
    with pytest.raises(AssertionError, match="units"):
        assert_close(expected.at[-1].add(1e-12), expected, "net")
    with pytest.raises(AssertionError, match="float32"):
        assert_close(expected.astype(jnp.float32), expected, "net")
    with pytest.raises(AssertionError, match="tree"):
        assert_close((expected,), expected, "net")
    with pytest.raises(AssertionError, match="not finite"):
        assert_close(expected.at[3].set(jnp.nan), expected, "net")


@pytest.mark.parametrize("logits", [(100.0, 95.0), (1e4, 1e4 - 3), (-50.0, -53.0, -60.0)])
def test_a_small_error_at_large_logits_keeps_its_digits(logits):
    """Adding the largest logit and taking one away would leave half of float32's digits, or fewer."""
    s = jnp.asarray(logits, jnp.float32)
    expected = np.log(np.exp(np.asarray(logits) - max(logits)).sum())
    for target in (0, jax.nn.one_hot(0, len(logits), dtype=s.dtype)):
        found = float(jax.jit(losses.softmax_cross_entropy.value)(s, target))
        assert abs(found - expected) <= 8 * np.finfo(np.float32).eps * expected
