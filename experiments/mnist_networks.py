"""Published networks on MNIST and Fashion-MNIST: accuracy, spread over seeds and seconds beside the published figures.

Claim. Nielsen's four networks (784-30-10 and 784-100-10, sigmoid units, ½Σ(p−y)² or cross-entropy, his hyper-parameters
and his 50,000 images) reach his accuracies, and a ReLU network of 128 units with dropout, momentum and a cosine schedule
those of the Fashion-MNIST paper's MLP with 100 ReLU units. Nielsen quotes the best test accuracy of any epoch of one
run, so that is compared; what a network is worth is the accuracy after the last epoch, also given.

Source: M. Nielsen, "Neural networks and deep learning", 2015, chapter 1 (η = 3: 95.42 %, 96.59 %) and chapter 3 (η = 0.5:
95.49 %, 96.82 %); Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747, table 3 (MLPClassifier, relu, [100]: 97.2 %, 87.1 %).

    python experiments/mnist_networks.py [--quick]     needs both sets, in $JBP_DATA_DIR for example; --quick does not

EXPECT
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import claim
import jax.numpy as jnp
import numpy as np
import optax

import jbp


@dataclass(frozen=True)
class Config:
    networks: tuple[str, ...] = (
        "mnist quadratic 30", "mnist quadratic 100", "mnist cross-entropy 30", "mnist cross-entropy 100", "mnist ReLU 128",
        "fashion-mnist cross-entropy 100", "fashion-mnist ReLU 128",
    )  # fmt: skip
    epochs: int = 30
    modern_epochs: int = 10
    trial_epochs: int = 2
    seeds: int = 3
    shuffled: bool = False
    """Training labels in random order: nothing to learn."""
    seed: int = 0


FULL = Config()
QUICK = Config(
    networks=("digits quadratic 30", "digits cross-entropy 30", "digits ReLU 128"), epochs=10, modern_epochs=5, seeds=2
)
CONTROL = dataclasses.replace(QUICK, shuffled=True)
PUBLISHED = {
    "mnist quadratic 30": 0.9542, "mnist quadratic 100": 0.9659,
    "mnist cross-entropy 30": 0.9549, "mnist cross-entropy 100": 0.9682,
    "mnist ReLU 128": 0.972, "fashion-mnist ReLU 128": 0.871,
}  # fmt: skip
LOSSES = {
    "quadratic": jbp.losses.l2_loss,
    "cross-entropy": jbp.losses.sigmoid_binary_cross_entropy,
    "ReLU": jbp.losses.softmax_cross_entropy,
}
RATES = {"quadratic": 3.0, "cross-entropy": 0.5}  # Nielsen's
TRIALS = (0.02, 0.05, 0.1)  # of the ReLU network; the validation part decides


def run(config: Config) -> dict[str, Any]:
    return {"rows": [row(config, name) for name in claim.progress(config.networks, "networks")]}


def row(config: Config, name: str) -> dict[str, Any]:
    """Test accuracy of every seed and epoch."""
    data, kind, width = name.split()
    dtype = jnp.zeros(()).dtype
    (x, y), (x_test, y_test) = jbp.data.load(data), jbp.data.load(data, "test")
    if config.shuffled:
        y = np.random.default_rng(config.seed).permutation(y)
    x, x_test, n = jnp.asarray(x, dtype), jnp.asarray(x_test, dtype), len(x) * 5 // 6
    net = network(kind, int(width))
    seeds = range(10 * config.seed, 10 * config.seed + config.seeds)
    metrics, began = {"accuracy": jbp.accuracy}, time.perf_counter()
    if kind == "ReLU":
        rate, epochs, batch = modern_rate(config, net, x, y, n), config.modern_epochs, 64
        steps = epochs * -(-len(x) // batch)
        optimizer = jbp.optim.sgd(cosine(rate, steps), momentum=0.9)
        train, test = (x, jnp.asarray(y)), (x_test, jnp.asarray(y_test))
    else:
        rate, epochs, batch = RATES[kind], config.epochs, 10
        optimizer, one_hot = jbp.optim.sgd(rate), np.eye(10, dtype=dtype)
        train, test = (x[:n], one_hot[y[:n]]), (x_test, one_hot[y_test])
    runs = jbp.fit_many(
        net,
        LOSSES[kind],
        optimizer,
        train,
        validation_data=test,
        metrics=metrics,
        epochs=epochs,
        batch_size=batch,
        seeds=seeds,
    )
    return {
        "name": name,
        "published": PUBLISHED.get(name),
        "rate": rate,
        "accuracy": runs.curves("validation_accuracy").tolist(),
        "seconds": time.perf_counter() - began,
    }


def network(kind: str, width: int) -> jbp.Layer:
    if kind == "ReLU":
        return jbp.serial(jbp.Flatten(), jbp.Dense(width), jbp.relu, jbp.Dropout(0.2), jbp.Dense(10))
    normal = jbp.initializers.standard_normal
    last = (jbp.sigmoid,) if kind == "quadratic" else ()  # the cross-entropy takes what goes into the sigmoid
    dense = (jbp.Dense(units, weight_init=normal, bias_init=normal) for units in (width, 10))
    return jbp.serial(jbp.Flatten(), next(dense), jbp.sigmoid, next(dense), *last)


def modern_rate(config: Config, net: jbp.Layer, x: Any, y: Any, n: int) -> float:
    """The rate with the lowest loss on the last sixth of the training data."""
    y = jnp.asarray(y)
    runs = jbp.fit_many(
        net, LOSSES["ReLU"], momentum, (x[:n], y[:n]), validation_data=(x[n:], y[n:]), learning_rates=TRIALS,
        epochs=config.trial_epochs, batch_size=64, seeds=(10 * config.seed,),
    )  # fmt: skip
    return TRIALS[int(np.nanargmin(runs.figures("validation_loss")))]


def momentum(rate: Any) -> optax.GradientTransformation:
    return jbp.optim.sgd(rate, momentum=0.9)


def cosine(rate: float, steps: int) -> Any:
    """From `rate` to 0 along half a cosine."""
    return lambda step: rate * 0.5 * (1 + jnp.cos(jnp.pi * step.astype(jnp.zeros(()).dtype) / steps))


def figures(row: dict[str, Any]) -> tuple[float, float, float, float]:
    """Mean and standard deviation over the seeds: of the best epoch's accuracy, and of the last one's."""
    curves = np.array(row["accuracy"])
    best, last = curves.max(1), curves[:, -1]
    return float(best.mean()), float(best.std(ddof=1)), float(last.mean()), float(last.std(ddof=1))


if __name__ == "__main__":
    claim.main()
