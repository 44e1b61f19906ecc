"""What a layer, a loss and a metric are told of the mode and of the mask."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_close, whole
from test_step import LOSS, NET, WIDTH, K, N, X, Y, same, state_of

import jbp
from jbp.layer import Layer, Static


@dataclass(frozen=True, repr=False)
class Centring(Layer):
    """y = x − mean of the batch in training, x − 1 in evaluation."""

    couples_batch: ClassVar[Any] = "training"

    def init(self, key: Any, shape: Any) -> Any:
        return (), shape

    def forward(self, params: Any, x: Any, key: Any, weights: Any = None, training: bool = False) -> Any:
        if not training:
            return x - 1, Static(False)
        p = jnp.full(len(x), 1 / len(x)) if weights is None else weights / weights.sum()
        return x - jnp.einsum("n,n...->...", p.astype(x.dtype), x)[None], Static(True)

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        return (delta - delta.mean(0, keepdims=True) if saved.value else delta), ()


@dataclass(frozen=True, repr=False)
class MeanOverTime(Layer):
    """y[o] = Σₜ mₜ x[t,o]/Σₜ mₜ: what pools over the real positions."""

    uses_mask: ClassVar[bool] = True

    def init(self, key: Any, shape: Any) -> Any:
        return (), shape[1:]

    def forward(self, params: Any, x: Any, key: Any, mask: Any = None) -> Any:
        m = jnp.ones(len(x), x.dtype) if mask is None else mask.astype(x.dtype)
        p = m / m.sum()
        return jnp.where(p[:, None] > 0, p[:, None] * x, jnp.zeros_like(x)).sum(0), p

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        return saved[:, None] * delta[None], ()


COUPLED = jbp.serial(jbp.Dense(7), jbp.repeat(jbp.serial(Centring(), jbp.Dense(7)), 2), jbp.Dense(K))


def test_a_layer_that_couples_in_training_is_told_the_mode_and_couples_nothing_in_evaluation():
    assert COUPLED.couples_batch == "training"
    params, _ = COUPLED.init(jax.random.key(0), (WIDTH,))
    with pytest.raises(NotImplementedError, match=r"params\[0\]\S+ lies below the batch-coupled layer \[1\]\[0\]"):
        output, saved = jbp.forward(COUPLED, params, X, training=True)
        jbp.stats.norms(jbp.backward(COUPLED, params, saved, output)[1])
    output = jnp.zeros(0)
    modes: list[dict[str, Any]] = [{}, {"training": False}, {"training": False, "key": jax.random.key(1)}]
    for told in modes:
        output, saved = jbp.forward(COUPLED, params, X, **told)
        norms = jbp.stats.norms(jbp.backward(COUPLED, params, saved, output)[1])
        alone = [jbp.forward(COUPLED, params, X[i : i + 1], **told) for i in range(3)]
        for i, (y, kept) in enumerate(alone):
            one = jbp.stats.norms(jbp.backward(COUPLED, params, kept, y)[1])
            np.testing.assert_allclose(norms[i], one[0], rtol=1e-12)
    assert_close(output - jbp.apply(COUPLED, params, X), jnp.zeros_like(output), "net")


def test_value_and_grad_takes_the_mode_and_a_key_means_training():
    params, _ = COUPLED.init(jax.random.key(0), (WIDTH,))
    value_and_grad = jbp.value_and_grad(COUPLED, LOSS)

    def value(params: Any, training: bool) -> Any:
        output, _ = jbp.forward(COUPLED, params, X, training=training)
        return jax.vmap(LOSS.value)(output, Y).mean()

    for training in (True, False):
        expected = jax.value_and_grad(value)(params, training)
        found = value_and_grad(params, X, Y, training=training)  # a bias below the centring cancels: rounding
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), found, expected)
    assert same(value_and_grad(params, X, Y, jax.random.key(0)), value_and_grad(params, X, Y, training=True))
    drops = jbp.value_and_grad(NET, LOSS)
    dropped = state_of().params
    with pytest.raises(ValueError, match="needs a key"):
        drops(dropped, X, Y)
    with pytest.raises(ValueError, match="needs a key"):
        jbp.forward(NET, dropped, X, training=True)
    still = jax.vmap(LOSS.value)(jbp.apply(NET, dropped, X), Y).mean()
    assert float(drops(dropped, X, Y, training=False)[0]) == pytest.approx(float(still), rel=1e-13)


POOLED = jbp.serial(jbp.Dense(7), jbp.tanh, MeanOverTime(), jbp.Dense(K))
TOKENS = np.random.default_rng(5).normal(size=(N, 4, WIDTH))
LENGTHS = 1 + np.arange(N) % 4
MASK = np.arange(4) < LENGTHS[:, None]


def test_a_mask_reaches_the_layers_that_declare_it_and_no_padding_counts():
    params, _ = POOLED.init(jax.random.key(0), (4, WIDTH))
    value_and_grad = jbp.value_and_grad(POOLED, LOSS)
    value, grads = value_and_grad(params, TOKENS, Y, mask=MASK)
    each = [value_and_grad(params, TOKENS[i : i + 1, :t], Y[i : i + 1]) for i, t in enumerate(LENGTHS)]
    cut = jax.tree.map(lambda *a: jnp.stack(a).mean(0), *each)
    assert_close((value, grads), cut, "net")
    other = np.where(MASK[..., None], TOKENS, 7.0)
    assert_close(value_and_grad(params, other, Y, mask=MASK), (value, grads), "net")


PER_POSITION = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(K))
LABELS = np.random.default_rng(6).integers(0, K, (N, 4))
VALUES = np.random.default_rng(7).normal(size=(N, 4, K))
SHARES = np.exp(VALUES) / np.exp(VALUES).sum(-1, keepdims=True)
MASKED = {
    "squared_error": VALUES, "l2_loss": VALUES, "mean_squared_error": VALUES, "sigmoid_binary_cross_entropy": SHARES,
    "softmax_cross_entropy": LABELS, "softmax_cross_entropy on distributions": SHARES, "cross_entropy": LABELS,
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED)
def test_a_loss_is_the_mean_over_the_real_positions(name: str):
    loss, target = getattr(jbp.losses, name.split()[0]), MASKED[name]
    output = SHARES[::-1] if loss is jbp.losses.cross_entropy else VALUES[::-1] + 0.3
    parts = ("value", "delta", "sqrt_hessian")
    value, delta, root = (jax.jit(jax.vmap(getattr(loss, part)))(output, target, MASK) for part in parts)
    alone = whole(lambda output, target: [getattr(loss, part)(output, target) for part in parts])
    root = np.asarray(root)
    for i, t in enumerate(LENGTHS):
        cut = [np.asarray(a) for a in alone(output[i, :t], target[i, :t])]
        np.testing.assert_allclose(value[i], cut[0], rtol=1e-12)
        np.testing.assert_allclose(delta[i, :t], cut[1], rtol=1e-12, atol=1e-15)
        assert not np.asarray(delta[i, t:]).any()
        hessian = np.einsum("vtk,vsj->tksj", root[i], root[i])
        expected = np.einsum("vtk,vsj->tksj", cut[2], cut[2])
        np.testing.assert_allclose(hessian[:t, :, :t], expected, rtol=1e-11, atol=1e-14)
        assert not np.asarray(hessian[t:]).any() and not np.asarray(hessian[:, :, t:]).any()
    nothing = jax.vmap(loss.value)(output, target, np.zeros_like(MASK))
    assert not np.asarray(nothing).any()
    with pytest.raises(ValueError, match=r"the mask must have the positions \(4,\)"):
        jax.vmap(loss.value)(output, target, MASK[:, :3])


def test_a_mask_that_nothing_reads_is_refused():
    flat = jbp.serial(jbp.Flatten(), jbp.Dense(K))
    params, _ = flat.init(jax.random.key(0), (4, WIDTH))
    with pytest.raises(
        ValueError, match=r"layer \[0\]: Flatten\(\) is not told which positions of its input \(4, \d+\) are real"
    ):
        jbp.value_and_grad(flat, LOSS)(params, TOKENS, Y, mask=MASK)
    with pytest.raises(ValueError, match=r"the mask has shape \(23, 3\), but the outputs have positions \(23, 4\)"):
        params, _ = PER_POSITION.init(jax.random.key(0), (4, WIDTH))
        jbp.value_and_grad(PER_POSITION, LOSS)(params, TOKENS, LABELS, mask=MASK[:, :3])


def test_metrics_see_the_mask_or_refuse_it_by_name():
    def hits(output: Any, target: Any, mask: Any = None) -> Any:
        right = (output.argmax(-1) == target).astype(jnp.float64)
        return right.mean() if mask is None else jnp.where(mask, right, 0.0).sum() / mask.sum(dtype=right.dtype)

    problem = jbp.Problem(PER_POSITION, LOSS, jbp.optim.sgd(0.0), metrics={"hits": hits})
    example = jax.ShapeDtypeStruct((4, WIDTH), TOKENS.dtype)
    state, figures = jbp.make_step(problem)(jbp.init_state(problem, example), jbp.Batch(TOKENS, LABELS, mask=MASK))
    output = np.asarray(jbp.apply(PER_POSITION, state.params, TOKENS)).argmax(-1)
    assert float(figures.metrics["hits"]) == pytest.approx(
        np.mean([(output[i, :t] == LABELS[i, :t]).mean() for i, t in enumerate(LENGTHS)])
    )
    seeing = dataclasses.replace(problem, metrics={"accuracy": jbp.accuracy})
    _, again = jbp.make_step(seeing)(jbp.init_state(problem, example), jbp.Batch(TOKENS, LABELS, mask=MASK))
    assert float(again.metrics["accuracy"]) == pytest.approx(float(figures.metrics["hits"]), rel=1e-12)
    blind = dataclasses.replace(problem, metrics={"blind": lambda output, target: hits(output, target)})
    with pytest.raises(ValueError, match=r"metric 'blind' takes none"):
        jbp.make_step(blind)(jbp.init_state(blind, example), jbp.Batch(TOKENS, LABELS, mask=MASK))


def test_what_an_output_predicts():
    output = jnp.asarray([[0.3, -1.0, 0.2], [-2.0, -0.1, -3.0]])
    assert jbp.losses.softmax_cross_entropy.predict(output).tolist() == [0, 1]
    assert jbp.losses.sigmoid_binary_cross_entropy.predict(output[0]).tolist() == [True, False, True]
    assert (jbp.losses.l2_loss.predict(output) == output).all()
