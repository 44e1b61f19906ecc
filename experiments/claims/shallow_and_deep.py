"""Shallow and deep: every factor of the chain rule by hand, and one hidden layer against three.

Claim: of C = (ŷ − y)² with ŷ = a₃ = σ(ReLU(ReLU(x w₁) w₂) w₃), without biases, the gradients are products of factors,

    ∂C/∂w₃ = ∂a₃/∂w₃ · ∂C/∂a₃                              shallow: the weight next to the output
    ∂C/∂w₂ = ∂a₂/∂w₂ · ∂a₃/∂a₂ · ∂C/∂a₃
    ∂C/∂w₁ = ∂a₁/∂w₁ · ∂a₂/∂a₁ · ∂a₃/∂a₂ · ∂C/∂a₃          deep: one factor more for each layer on the way

and multiplied out they are what the library finds, to rounding, on 1,000 random networks, ReLUs that are off included.
Beside it, as a measurement without a theory and no part of the check: networks with one hidden layer and with three,
of exactly the same number of parameters (942 on two spirals, 3,010 on digits), ten seeds each. The learning rate is
the one of three that does best on held-out examples; then the test part is read once.

Source: lecture D (the nested function, ∂C/∂a₃ = 2(a₃ − y), shallow and deep learning). Two spirals: Lang, Witbrock
1988, Learning to tell two spirals apart.

    python experiments/claims/shallow_and_deep.py [--quick]        1 minute (--quick: 5 s)

Expect: products equal to 2 eps. Test accuracy, mean ± standard deviation over the seeds: two spirals of three turns
after 200 epochs 0.85 ± 0.03 with one hidden layer and 0.91 ± 0.09 with three; digits 0.982 ± 0.004 and 0.981 ± 0.006.
Three layers less one, seed by seed: +0.06 ± 0.03 (standard error) and −0.001 ± 0.002. So on spirals three layers are
ahead by two standard errors, no more, and vary more; on digits depth changes nothing but the first epochs. (With 1¾
turns, tried first, both end above 0.99 after 100 epochs: 0.995 and 0.999.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np

import jbp

EPS = 2.0**-52
LOSS = jbp.losses.softmax_cross_entropy
CHAIN = jbp.serial(*(layer for theta in (jbp.relu, jbp.relu, jbp.sigmoid) for layer in (jbp.Dense(1, False), theta)))
PRODUCTS = {"w₃": ("∂a₃/∂w₃", "∂C/∂a₃"), "w₂": ("∂a₂/∂w₂", "∂a₃/∂a₂", "∂C/∂a₃"),
            "w₁": ("∂a₁/∂w₁", "∂a₂/∂a₁", "∂a₃/∂a₂", "∂C/∂a₃")}  # fmt: skip
WIDTHS = {"spirals": {"one hidden layer": (188,), "three": (20, 20, 20)},
          "digits": {"one hidden layer": (40,), "three": (24, 24, 24)}}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Random networks for the factors, of which `left_out` is not multiplied in; and what is trained how often."""

    networks: int = 1000
    left_out: str = ""
    tasks: tuple[str, ...] = tuple(WIDTHS)
    seeds: int = 10
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    epochs: int = 200
    seed: int = 0


FULL = Config()
QUICK = Config(networks=100, tasks=("spirals",), seeds=2, learning_rates=(0.03,), epochs=5)
CONTROL = Config(networks=100, left_out="∂a₂/∂a₁", tasks=())  # the shallow rule for a deep weight


def factors(x: float, w: np.ndarray, y: float) -> dict[str, float]:
    """Every factor, by hand."""
    a1 = max(0.0, x * w[0])
    a2 = max(0.0, a1 * w[1])
    a3 = 1 / (1 + math.exp(-a2 * w[2]))
    return {
        "∂a₁/∂w₁": x if a1 > 0 else 0.0,
        "∂a₂/∂w₂": a1 if a2 > 0 else 0.0,
        "∂a₂/∂a₁": w[1] if a2 > 0 else 0.0,
        "∂a₃/∂w₃": a3 * (1 - a3) * a2,
        "∂a₃/∂a₂": a3 * (1 - a3) * w[2],
        "∂C/∂a₃": 2 * (a3 - y),
    }


def multiplied(by_hand: dict[str, float], weight: str, left_out: str) -> float:
    return math.prod(by_hand[factor] for factor in PRODUCTS[weight] if factor != left_out)


def chain_params(w: Any) -> Any:
    return tuple({"weight": w[i // 2].reshape(1, 1)} if i % 2 == 0 else () for i in range(6))


def multiply(config: Config) -> dict[str, Any]:
    """The products against `value_and_grad`, in eps of the gradient; and one example with all its numbers."""
    rng = np.random.default_rng(config.seed)
    # ŷ stays between 0.27 and 0.73 and away from y, so that neither 1 − ŷ nor ŷ − y loses digits.
    x, y = rng.uniform(0.5, 1, config.networks), rng.uniform(-2, -1, config.networks)
    w = rng.uniform(-1, 1, (config.networks, 3))
    gradient = jbp.value_and_grad(CHAIN, jbp.losses.squared_error)
    of_one = jax.jit(jax.vmap(lambda w, x, y: gradient(chain_params(w), x.reshape(1, 1), y.reshape(1, 1))[1]))
    library = np.stack([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(of_one(*map(jnp.asarray, (w, x, y))))], 1)
    worst, off = 0.0, 0
    for n in range(config.networks):
        by_hand = factors(x[n], w[n], y[n])
        off += bool(by_hand["∂a₂/∂a₁"] * by_hand["∂a₁/∂w₁"] == 0)
        for name, found in zip(sorted(PRODUCTS), library[n], strict=True):
            product = multiplied(by_hand, name, config.left_out)
            worst = max(worst, abs(product - found) / (EPS * max(abs(found), abs(product), 1e-300)))
    example = (2.0, np.array([0.8, 1.5, -0.7]), 1.0)
    trace = jbp.trace(
        CHAIN,
        jbp.losses.squared_error,
        chain_params(jnp.asarray(example[1])),
        jnp.array([example[0]]),
        jnp.array([1.0]),
    )
    grads = [row.value.item() for row in trace.rows if row.step == "gradient" and row.symbol.startswith("∂e/∂")]
    by_hand = factors(*example)
    shown = [
        {"weight": name, "factors": {f: by_hand[f] for f in PRODUCTS[name]},
         "product": multiplied(by_hand, name, config.left_out), "library": grad}
        for name, grad in zip(PRODUCTS, grads, strict=True)
    ]  # fmt: skip
    return {"error in eps": worst, "off": off, "example": shown}


def spirals(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two spirals of three turns, one the other turned by half a turn, with noise."""
    y = np.arange(n) % 2
    radius = np.sqrt(rng.uniform(0.02, 1, n))
    angle = 6 * np.pi * radius + np.pi * y
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + rng.normal(0, 0.02, (n, 2))
    return points.astype(np.float32), y.astype(np.int32)


def momentum(rate: Any) -> Any:
    return jbp.optim.sgd(rate, momentum=0.9)


def train(config: Config, task: str, kind: str) -> dict[str, Any]:
    """Test accuracy of every seed at the rate that is best, in the mean, on held-out examples."""
    rng = np.random.default_rng(config.seed)
    if task == "spirals":
        data, held, test = spirals(rng, 500), spirals(rng, 500), spirals(rng, 2000)
    else:
        x, y = jbp.data.load("digits", "train")
        x, y, x_held, y_held = jbp.data.split(x, y, 0.2, seed=config.seed)
        data, held, test = (x, y), (x_held, y_held), jbp.data.load("digits", "test")
    dense = [layer for width in WIDTHS[task][kind] for layer in (jbp.Dense(width), jbp.relu)]
    net = jbp.serial(jbp.Flatten(), *dense, jbp.Dense(int(data[1].max()) + 1))
    many = jbp.fit_many(
        net, LOSS, momentum, data, validation_data=held, seeds=range(config.seed, config.seed + config.seeds),
        learning_rates=config.learning_rates, epochs=config.epochs, metrics={"accuracy": jbp.accuracy},
    )  # fmt: skip
    best = int(np.nanargmax(np.where(np.isnan(many.mean("validation_accuracy")), 0, many.mean("validation_accuracy"))))
    rows = slice(best, None, len(config.learning_rates))
    params = jax.tree.map(lambda leaf: leaf[rows], many.params)
    outputs = jax.jit(jax.vmap(lambda params: jbp.apply(net, params, test[0])))(params)
    curve = many.curves("validation_accuracy")[rows]
    return {
        "task": task,
        "kind": kind,
        "parameters": sum(leaf[0].size for leaf in jax.tree.leaves(params)),
        "learning rate": config.learning_rates[best],
        "test": (np.asarray(outputs).argmax(-1) == test[1]).mean(-1).tolist(),
        "mean": curve.mean(0).tolist(),
        "standard deviation": curve.std(0, ddof=1).tolist(),
    }


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        found = multiply(config)
    for row in found["example"]:
        terms = " · ".join(f"({name} = {value:.6g})" for name, value in row["factors"].items())
        print(f"∂C/∂{row['weight']} = {terms} = {row['product']:.6g}; the library: {row['library']:.6g}")
    which = [(task, kind) for task in config.tasks for kind in WIDTHS[task]]
    with jax.enable_x64(False):
        return found | {"trained": [train(config, task, kind) for task, kind in claim.progress(which, "training")]}


def check(result: dict[str, Any]) -> None:
    """The number that decides: the largest difference of a product from the library's gradient, at most 16 eps."""
    worst = result["error in eps"]
    claim.require(worst <= 16, f"a product of factors is {worst:.3g} eps away from the library's gradient")
    for row in result["example"]:
        claim.require(abs(row["product"] / row["library"] - 1) <= 16 * EPS, f"the trace says otherwise: {row}")
    sizes = {task: {row["parameters"] for row in result["trained"] if row["task"] == task} for task in WIDTHS}
    claim.require(all(len(size) <= 1 for size in sizes.values()), f"the numbers of parameters differ: {sizes}")


def paired(result: dict[str, Any], task: str) -> tuple[float, float]:
    """Test accuracy of three hidden layers minus that of one: the mean over the seeds and its standard error."""
    one, three = (np.array(row["test"]) for row in result["trained"] if row["task"] == task)
    gain = three - one
    return float(gain.mean()), float(gain.std(ddof=1) / math.sqrt(len(gain)))


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in result["trained"]))
    figure, axes = plt.subplots(1, max(1, len(tasks)), figsize=(8, 3.8), layout="constrained", squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=False):
        for i, row in enumerate(row for row in result["trained"] if row["task"] == task):
            mean, deviation = np.array(row["mean"]), np.array(row["standard deviation"])
            shown = np.unique(np.geomspace(1, len(mean), 14).astype(int))
            test = f"test {np.mean(row['test']):.3f} ± {np.std(row['test'], ddof=1):.3f}"
            place = shown * (1.03 if i else 1)
            label = f"{row['kind']}: {test}"
            axis.errorbar(
                place, mean[shown - 1], deviation[shown - 1], fmt="o" if i else "s", ms=4, capsize=2, label=label
            )
        axis.set_xscale("log")
        axis.set_title(f"{task}, {row['parameters']:,} parameters", fontsize=11)  # type: ignore[possibly-unbound]
        axis.set_xlabel("epochs")
        axis.set_ylim(0.3, 1.03)
        axis.legend(fontsize=10, loc="lower right")
    axes[0, 0].set_ylabel("accuracy on held-out examples")
    return figure


def summary(result: dict[str, Any]) -> tuple[str, str]:
    tasks = dict.fromkeys(row["task"] for row in result["trained"])
    gains = "; ".join("{}: {:+.3f} ± {:.3f}".format(task, *paired(result, task)) for task in tasks)
    return (
        "the factors multiply out to the gradient",
        f"to {result['error in eps']:.2g} eps. Three hidden layers less one (test accuracy, standard error): {gains}",
    )


if __name__ == "__main__":
    claim.main()
