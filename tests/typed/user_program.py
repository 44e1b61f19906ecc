# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
# Of other packages: optax says nothing of its types, and jax.numpy not of all.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
"""A program as a user writes it, which `make types` checks in pyright's strict mode, and a test runs.

`assert_type` says what a type checker knows of an answer; a line that must not pass is marked by an ignore, which is an
error where nothing is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp
from jbp import losses, stats
from jbp.step import Figures

Gradient = dict[str, jax.Array]


@dataclass(frozen=True)
class Gain(jbp.Layer):
    """y = g∘x: a layer of one's own."""

    def init(self, key: jax.Array, shape: tuple[int, ...]) -> tuple[Gradient, tuple[int, ...]]:
        """One gain for each feature."""
        return {"gain": jnp.ones(shape[-1])}, shape

    def forward(self, params: Gradient, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """g∘x; saves x."""
        return params["gain"] * x, x

    def backward(self, params: Gradient, saved: jax.Array, delta: jax.Array) -> tuple[jax.Array, dict[str, jbp.Pair]]:
        """g∘δ, and the pair (x, δ)."""
        return params["gain"] * delta, {"gain": jbp.Scale.of(saved, delta, params["gain"].shape)}


def stop(event: jbp.Event) -> bool:
    """A callback that ends the run."""
    return event.loss < 1e-9


def three_steps(net: jbp.Layer, loss: losses.Loss, params: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Forward, backward, contract, and all in one."""
    output, saved = jbp.forward(net, params, x)
    assert_type(output, jax.Array)
    assert_type(jbp.apply(net, params, x), jax.Array)
    _, pairs = jbp.backward(net, params, saved, jnp.ones_like(output))
    assert_type(pairs, jbp.pairs.Pairs)
    jbp.contract(pairs, np.ones(len(x)))
    jbp.backward(net, params, saved, jnp.ones_like(output), jbp.sinks.total)


def gradients(net: jbp.Layer, loss: losses.Loss, params: tuple[Gradient, ...], x: np.ndarray, y: np.ndarray) -> None:
    """The gradient has the type of the parameters."""
    value, gradient = jbp.value_and_grad(net, loss)(params, x, y, weights=np.ones(len(x)))
    assert_type(value, jax.Array)
    assert_type(gradient, tuple[Gradient, ...])
    errors, lengths, total = jbp.clipped_sum(net, loss, params, x, y, 1.0)
    assert_type((errors, lengths), tuple[jax.Array, jax.Array])
    assert_type(total, tuple[Gradient, ...])


def statistics(net: jbp.Layer, loss: losses.Loss, params: Any, x: np.ndarray, y: np.ndarray) -> None:
    """What a statistic answers follows from what is asked."""
    errors, pairs = jbp.value_and_pairs(net, loss, params, x, y)
    assert_type(errors, jax.Array)
    assert_type(pairs, jbp.pairs.Pairs)
    assert_type(stats.norms(pairs), jax.Array)
    assert_type(stats.norms(pairs, "layer"), dict[str, jax.Array])
    assert_type(stats.norms(pairs, {"biases": "*.bias"}), dict[str, jax.Array])
    assert_type(stats.gram(pairs), jax.Array)
    assert_type(stats.gram(pairs, pairs, "layer"), dict[str, jax.Array])
    assert_type(stats.clip_weights(pairs, 1.0), jax.Array)
    assert_type(stats.clip_weights(pairs, 1.0, "layer"), dict[str, jax.Array])
    assert_type(stats.noise_scale(pairs), jax.Array)
    assert_type(stats.records(pairs), dict[str, stats.Record])
    assert_type(stats.explain(pairs), tuple[stats.Explanation, ...])


def training(net: jbp.Layer, loss: losses.Loss, x: np.ndarray, y: np.ndarray) -> None:
    """`fit`, `fit_many`, and a loop of one's own."""
    metrics = {"accuracy": jbp.accuracy}
    result = jbp.fit(net, loss, optax.adam(1e-3), (x, y), epochs=1, metrics=metrics, callbacks=[stop])
    assert_type(result, jbp.Fit)
    assert_type(result.history, tuple[dict[str, float], ...])
    assert_type(result.epsilon, float | None)
    many = jbp.fit_many(net, loss, jbp.optim.sgd(0.1), (x, y), seeds=range(2), epochs=1, callbacks=(stop,))
    assert_type(many.runs[0].history, tuple[dict[str, float], ...])
    problem = jbp.Problem(net, loss, jbp.optim.sgd(0.1), metrics=metrics)
    step = jbp.make_step(problem)
    assert_type(step, Callable[[jbp.State, jbp.Batch], tuple[jbp.State, Figures]])
    state = jbp.init_state(problem, x.shape[1:], seed=0)
    state, figures = step(state, jbp.Batch(x, y))
    assert_type(figures.loss, jax.Array)
    assert_type(jbp.accuracy.of(loss)(jbp.apply(net, state.params, x)[0], y[0]), jax.Array)


def proof(x: np.ndarray) -> None:
    """A layer of one's own, proved."""
    report = jbp.check.layer(Gain(), x.shape[1:], differences=False)
    assert_type(report, jbp.check.Report)
    assert_type(report.passed, bool)
    assert report.passed, report


def mistakes(net: jbp.Layer, x: np.ndarray, y: np.ndarray) -> None:
    """What a type checker must see; never run."""
    stats.norms(1.0)  # pyright: ignore[reportArgumentType]
    jbp.fit(net, "l2_loss", jbp.optim.sgd(0.1), (x, y))  # pyright: ignore[reportArgumentType]
    jbp.fit(net, losses.l2_loss, jbp.optim.sgd(0.1), (x, y), callbacks=stop)  # pyright: ignore[reportArgumentType]
    print(jbp.nothing, stats.nothing)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType]


def main() -> None:
    """All of it."""
    net = jbp.serial(jbp.Dense(5), jbp.relu, Gain(), jbp.Dense(3))
    assert_type(net, jbp.combine.Serial)
    params, shape = net.init(jax.random.key(0), (2,))
    assert_type(shape, tuple[int, ...])
    x, y = np.ones((4, 2)), np.zeros(4, int)
    loss = losses.softmax_cross_entropy
    three_steps(net, loss, params, x, y)
    gradients(net, loss, params, x, y)
    statistics(net, loss, params, x, y)
    training(net, loss, x, y)
    proof(x)
    assert_type(jbp.__version__, str)


if __name__ == "__main__":
    main()
