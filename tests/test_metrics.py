"""`jbp.accuracy` is that of what the loss says an output predicts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random

import jbp
from jbp import losses

SOFTMAX, SIGMOID = losses.softmax_cross_entropy, losses.sigmoid_binary_cross_entropy


def share(loss: losses.Loss, output: Any, target: Any) -> float:
    """Of a batch, by the metric of its loss."""
    return float(jax.jit(jax.vmap(jbp.accuracy.of(loss)))(jnp.asarray(output), jnp.asarray(target)).mean())


def test_one_binary_output_has_a_threshold():
    assert share(SIGMOID, [[1.0], [-1.0], [2.0], [-3.0]], [[1], [1], [0], [0]]) == 0.5


def test_several_labels_count_each_for_itself():
    output = [[1.0, 2.0, -1.0], [-1.0, -2.0, 3.0]]
    assert share(SIGMOID, output, [[1, 0, 0], [0, 0, 1]]) == pytest.approx(5 / 6)


def test_classes_of_a_narrow_type_are_not_wrapped_to_others():
    """Of 512 outputs, half of them say a class 256 above the target's."""
    target = np.arange(256, dtype=np.uint8)
    said = np.where(np.arange(256) % 2, target.astype(int), target.astype(int) + 256)
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64):
        assert share(SOFTMAX, np.eye(512)[said], target.astype(dtype)) == 0.5
    above = np.full(256, 2**32, np.int64)  # not a class at all
    assert share(SOFTMAX, np.eye(512)[np.zeros(256, int)], above) == 0


def test_classes_and_distributions_agree_with_numpy():
    rng = random("accuracy")
    output, target = rng.normal(size=(40, 3, 5)), rng.integers(5, size=(40, 3))
    expected = (output.argmax(-1) == target).mean()
    assert share(SOFTMAX, output, target) == pytest.approx(expected)
    assert share(losses.cross_entropy, output, np.eye(5)[target]) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16], ids=lambda d: d.__name__)
def test_nan_is_never_right(dtype: Any):
    output = jnp.array([[jnp.nan] * 3, [1.0, jnp.nan, 0.0], [2.0, 1.0, 0.0]], dtype)
    assert share(SOFTMAX, output, np.array([0, 0, 0])) == pytest.approx(1 / 3)
    assert share(SOFTMAX, output, np.array([1, 1, 0])) == pytest.approx(1 / 3)
    assert share(SIGMOID, output, np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0]])) == pytest.approx(5 / 9)


def test_the_mean_of_many_is_not_taken_in_16_bits():
    """bfloat16 counts to 256."""
    output, target = jnp.ones((1, 1001, 1), jnp.bfloat16), np.ones((1, 1001, 1))
    target[0, 0] = 0
    assert share(SIGMOID, output, target) == pytest.approx(1000 / 1001, rel=1e-6)


def test_fit_binds_it_to_its_loss():
    x = random("binary").normal(size=(23, 4))
    y = (x[:, :1] > 0).astype(float)
    net = jbp.serial(jbp.Dense(1))
    fitted = jbp.fit(
        net, SIGMOID, jbp.optim.sgd(0.0), (x, y), validation_data=(x, y), epochs=1, batch_size=23,
        metrics={"accuracy": jbp.accuracy},
    )  # fmt: skip
    expected = ((np.asarray(jbp.apply(net, fitted.params, x)) > 0) == (y > 0)).mean()
    assert expected < 1
    for part in ("train", "validation"):
        assert fitted.history[0][f"{part}_accuracy"] == pytest.approx(expected)


def test_values_are_refused_but_classes_of_one_hot_rows_can_be_asked_for():
    x = random("values").normal(size=(23, 4))
    y = np.eye(3)[np.arange(23) % 3]
    net, sgd = jbp.serial(jbp.Dense(3)), jbp.optim.sgd(0.0)

    def fitted(metric: Any) -> jbp.Fit:
        return jbp.fit(net, losses.squared_error, sgd, (x, y), epochs=1, batch_size=23, metrics={"accuracy": metric})

    with pytest.raises(ValueError, match="squared_error predicts values, which are right by no threshold"):
        fitted(jbp.accuracy)
    found = fitted(jbp.accuracy.of(SOFTMAX))
    expected = (np.asarray(jbp.apply(net, found.params, x)).argmax(-1) == y.argmax(-1)).mean()
    assert found.history[0]["train_accuracy"] == pytest.approx(expected)


def test_it_says_what_it_needs():
    for call, words in (
        (lambda: jbp.accuracy(jnp.ones(3), jnp.int32(0)), r"say jbp.accuracy.of\(loss\)"),
        (lambda: share(SOFTMAX, np.ones((2, 1)), np.zeros(2, int)), "over one output is always 1"),
        (lambda: share(SOFTMAX, np.ones((2, 3)), np.zeros((2, 4))), r"needs classes \(\) or distributions \(3,\)"),
        (lambda: share(SIGMOID, np.ones((2, 3)), np.zeros(2)), r"needs targets \(3,\), but got \(\)"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert "softmax_cross_entropy" in repr(jbp.accuracy.of(SOFTMAX))


def test_targets_that_are_none_are_never_right():
    """A class that 32 bits cut to another, and a NaN."""
    with jax.enable_x64(False), pytest.raises(ValueError, match="holds 4294967296, which int32 cannot"):
        jbp.accuracy.of(SOFTMAX)(jnp.ones(3), np.int64(2**32))  # type: ignore[arg-type]
    assert share(SOFTMAX, np.eye(3), np.full((3, 3), np.nan)) == 0
    assert share(SIGMOID, -np.ones((3, 2)), np.full((3, 2), np.nan)) == 0
    with pytest.raises(ValueError, match="needs classes as whole numbers, but got float"):
        share(SOFTMAX, np.eye(3), np.zeros(3))
