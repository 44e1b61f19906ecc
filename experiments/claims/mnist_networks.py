"""Published networks on MNIST and Fashion-MNIST: accuracy, spread over seeds and seconds beside the published figures.

Claim. Nielsen's networks (784-30-10 and 784-100-10, sigmoid units, ½Σ(p−y)² or cross-entropy, his hyper-parameters
and his 50,000 images) reach his accuracies: he quotes the best test accuracy of any epoch of one run, so the mean over
seeds of that differs from his figure by no more than one run of the same spread would. And a ReLU network of 128 units
with dropout, momentum and a cosine schedule is above the Fashion-MNIST paper's MLP with 100 ReLU units.

One figure is not reproduced: 784-100-10 with the quadratic cost. Of three seeds one ends at 96.5 %, as published, and
two at 77 and 80 %, because outputs that begin saturated never learn their digit. Nielsen's footnote says that readers
report such runs; his 96.59 % is a good run and not a typical one, and takes no part in the verdict. With 30 units both
costs end slightly below his figures, by 0.4 and 0.3 points; a spread of one run of 0.1 allows 0.5 with three seeds.

Source: M. Nielsen, "Neural networks and deep learning", 2015, chapter 1 (η = 3: 95.42 %, 96.59 %) and chapter 3
(η = 0.5: 95.49 %, 96.82 %); Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747, table 3 (MLPClassifier, relu, [100]: 97.2 %
on MNIST, 87.1 % on Fashion-MNIST).

    python experiments/claims/mnist_networks.py [--quick]
    needs both sets, in $JBP_DATA_DIR for example; --quick does not

Expect, best epoch and standard deviation over seeds, in %: 95.0 ± 0.1 and 95.2 ± 0.1 (30 units, quadratic and
cross-entropy), 96.8 ± 0.1 (100, cross-entropy), 98.1 ± 0.1 (ReLU 128); on Fashion-MNIST, where Nielsen has no figures,
86.5 ± 0.3 (100, cross-entropy) and 88.0 ± 0.2 (ReLU 128). The ReLU network's rate is chosen on the last sixth of the
training images. Quick: digits. Control: training labels in random order. Wall time: full 3 minutes on two idle cores,
quick 8 s.
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
from scipy.stats import t

import jbp


@dataclass(frozen=True)
class Config:
    networks: tuple[str, ...] = (
        "mnist quadratic 30", "mnist quadratic 100", "mnist cross-entropy 30", "mnist cross-entropy 100",
        "mnist ReLU 128",
        "fashion-mnist quadratic 30", "fashion-mnist quadratic 100",
        "fashion-mnist cross-entropy 30", "fashion-mnist cross-entropy 100", "fashion-mnist ReLU 128",
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
RIGHT = jbp.accuracy.of(LOSSES["ReLU"])  # every one of the nets says the class of its largest output
RATES = {"quadratic": 3.0, "cross-entropy": 0.5}  # Nielsen's
UNSTABLE = "mnist quadratic 100"
STUCK = 0.05  # below the published accuracy: a digit that is never learned costs a tenth
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
    began = time.perf_counter()
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
        net, LOSSES[kind], optimizer, train, validation_data=test, metrics={"accuracy": RIGHT}, epochs=epochs,
        batch_size=batch, seeds=seeds,
    )  # fmt: skip
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


def figures(row: dict[str, Any]) -> tuple[float, float]:
    """Mean and standard deviation, over the seeds, of the best epoch's test accuracy."""
    best = np.array(row["accuracy"]).max(1)
    return float(best.mean()), float(best.std(ddof=1))


def of_nielsen(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks that the verdict compares with his figures."""
    return [row for row in result["rows"] if row["published"] and "ReLU" not in row["name"] and row["name"] != UNSTABLE]


def bound(result: dict[str, Any]) -> float:
    """What the mean of the seeds and one further run may differ by: at most a 1 % chance of more, in any network."""
    rows, seeds = of_nielsen(result), result["config"]["seeds"]
    pooled = np.sqrt(np.mean([figures(row)[1] ** 2 for row in rows]))
    return float(t.isf(0.01 / 2 / len(rows), len(rows) * (seeds - 1)) * pooled * np.sqrt(1 + 1 / seeds))


def unstable(result: dict[str, Any]) -> str:
    """What became of the figure that takes no part in the verdict."""
    best = [np.max(row["accuracy"], 1) for row in result["rows"] if row["name"] == UNSTABLE]
    if not best:
        return ""
    low = int((best[0] < PUBLISHED[UNSTABLE] - STUCK).sum())
    return f"; {UNSTABLE} is not reproduced: {low} of {len(best[0])} seeds stuck" if low else ""


def check(result: dict[str, Any]) -> None:
    """The number that decides: how far the seeds' mean is from Nielsen's figure, at most `bound`, in any network.

    And every network learns, in its best seed, and the ReLU networks are above what is published for them.
    """
    for row in result["rows"]:
        best = np.max(row["accuracy"])
        claim.require(best > 0.8, f"{row['name']}: the best seed has a test accuracy of {best:.3f} only")
        if row["published"] and "ReLU" in row["name"]:
            mean, published = figures(row)[0], row["published"]
            claim.require(mean >= published, f"{row['name']}: {mean:.4f}, below the published {published}")
    for row in of_nielsen(result):
        difference = figures(row)[0] - row["published"]
        claim.require(
            abs(difference) <= bound(result),
            f"{row['name']}: {difference:+.4f} from the published accuracy, over {bound(result):.4f}",
        )


def summary(result: dict[str, Any]) -> tuple[str, str]:
    shown = [row for row in result["rows"] if row["published"]] or result["rows"]
    figure = [f"{row['name']} {100 * figures(row)[0]:.1f} ± {100 * figures(row)[1]:.1f}" for row in shown]
    published = ", ".join(f"{row['name']} {100 * row['published']:.1f}" for row in shown if row["published"])
    off = [f"{100 * (figures(row)[0] - row['published']):+.1f}" for row in of_nielsen(result) if " 30" in row["name"]]
    allowed = f"{100 * bound(result):.1f} allowed" if off else ""
    notes = f"{unstable(result)}; 30 units are {' and '.join(off)} off, {allowed}" if off else ""
    return f"published, in %: {published or 'none for digits'}", f"in %: {', '.join(figure)}{notes}"


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    rows = result["rows"][::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.6), layout="constrained", sharey=True, width_ratios=(2, 1))
    for i, row in enumerate(rows):
        best = 100 * np.array(row["accuracy"]).max(1)
        first = i == len(rows) - 1
        left.plot(best, np.full(len(best), i), "o", color="C0", ms=4, label="each seed" if first else None)
        bar: dict[str, Any] = {"fmt": "D", "color": "C1", "ms": 5, "mfc": "none", "capsize": 3}
        mean, deviation = (100 * number for number in figures(row))
        left.errorbar(mean, i + 0.25, xerr=deviation, label="mean ± deviation" if first else None, **bar)
        if row["published"]:
            line = [100 * row["published"]] * 2
            left.plot(line, [i - 0.3, i + 0.3], "k-", lw=2, label="published" if first else None)
    left.set_yticks(range(len(rows)), [f"{row['name']}" for row in rows])
    left.set(xlabel="test accuracy of the best epoch / %")
    left.legend(fontsize=10, loc="upper left")
    right.barh(range(len(rows)), [row["seconds"] for row in rows], color="C7")
    right.set(xlabel="seconds, all seeds")
    return figure


if __name__ == "__main__":
    claim.main()
