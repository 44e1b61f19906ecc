"""Hidden layers are learned features: what a linear probe can read rises with depth.

Claim. Of networks with three hidden layers, on two spirals and on digits, a linear probe (ridge regression on one-hot
classes, fitted on the training part) reads the class from the last hidden layer better than from the raw input, by at
least two standard errors: over the test examples and over the seeds. The pictures show the first-layer weights of the
digits network as images, and both sets layer by layer on their first two principal components.

Source: lecture B, "hidden layers: a learned nonlinear transform; can it be interpreted?"; Alain, Bengio 2016,
arXiv:1610.01644 (linear probes).

    python experiments/claims/learned_features.py [--quick]

Expect, of the raw input and of the last hidden layer: digits 93 and 96 % (gain 3.3 ± 0.8 %), spirals 61 and 100 % (gain
38 ± 2 %); in between the accuracy rises layer by layer. Control: learning rate 0, so that the features are random ones,
which say less of a digit than its pixels do. Wall time: full 14 s, quick 5 s.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np

import jbp


@dataclass(frozen=True)
class Config:
    width: int = 32
    seeds: int = 10
    digits_epochs: int = 40
    spirals_epochs: int = 200
    learning_rate: float = 0.05
    shown: int = 300
    """Examples in each picture."""
    seed: int = 0


FULL = Config()
QUICK = Config(seeds=3, digits_epochs=15, spirals_epochs=100)
CONTROL = dataclasses.replace(QUICK, digits_epochs=1, spirals_epochs=1, learning_rate=0.0)  # random features
DEPTH = 3


def spirals(random: np.random.Generator, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Two spirals of one and a half turns, one half a turn ahead, with a little noise."""
    y = random.integers(2, size=examples)
    turn = 3 * np.pi * np.sqrt(random.random(examples)) + 0.5
    angle = turn + np.pi * y
    x = np.stack([turn * np.cos(angle), turn * np.sin(angle)], axis=1) / 3
    return x + 0.05 * random.normal(size=x.shape), y.astype(np.int32)


def digits(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All 1,797, in random order."""
    parts = [jbp.data.load("digits", part) for part in ("train", "test")]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = random.permutation(len(x))
    return x.reshape(len(x), -1)[order], y[order]


def run(config: Config) -> dict[str, Any]:
    random = np.random.default_rng(config.seed)
    sets = {
        "digits": (*digits(random), config.digits_epochs),
        "spirals": (*spirals(random, 1600), config.spirals_epochs),
    }
    return {name: of_set(config, *sets[name]) for name in claim.progress(sets, "data sets")}


def of_set(config: Config, x: Any, y: Any, epochs: int) -> dict[str, Any]:
    """Probe accuracies on the second half of the examples, after training on the first."""
    x, half, classes = jnp.asarray(x, jnp.zeros(()).dtype), len(x) // 2, int(y.max()) + 1
    hidden = (jbp.Dense(config.width), jbp.tanh) * DEPTH
    net = jbp.serial(*hidden, jbp.Dense(classes))
    many = jbp.fit_many(
        net, jbp.losses.softmax_cross_entropy, jbp.optim.sgd(config.learning_rate, momentum=0.9),
        (x[:half], jnp.asarray(y[:half])), epochs=epochs,
        seeds=range(100 * config.seed, 100 * config.seed + config.seeds),
    )  # fmt: skip
    layers = [np.asarray(x, float)[None]]
    for k in range(1, DEPTH + 1):
        part = jbp.serial(*hidden[: 2 * k])
        layers.append(np.asarray(jax.vmap(lambda p, part=part: jbp.apply(part, p, x))(many.params[: 2 * k]), float))
    right = [np.array([probe(features, y, half) for features in layer]) for layer in layers]  # [seed, example]
    gain = right[-1] - right[0]
    examples, seeds = gain.mean(0), gain.mean(1)
    error = np.hypot(examples.std(ddof=1) / np.sqrt(examples.size), seeds.std(ddof=1) / np.sqrt(seeds.size))
    return {
        "accuracy": [hits.mean(1).tolist() for hits in right],
        "gain": float(gain.mean()),
        "gain_error": float(error),
        "classes": y[half:][: config.shown].tolist(),
        "components": [components(layer[0][half:])[: config.shown].round(3).tolist() for layer in layers],
        "weights": np.asarray(many.params_of(0)[0]["weight"]).round(3).tolist(),
    }


def probe(features: np.ndarray, y: np.ndarray, half: int, ridge: float = 1e-3) -> np.ndarray:
    """Which of the second half's classes a linear map, fitted to the first half, reads from the features."""
    h = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    gram = h[:half].T @ h[:half] + ridge * half * np.eye(h.shape[1])
    weights = np.linalg.solve(gram, h[:half].T @ np.eye(y.max() + 1)[y[:half]])
    return ((h[half:] @ weights).argmax(1) == y[half:]).astype(float)


def components(features: np.ndarray) -> np.ndarray:
    """The first two principal components."""
    centred = features - features.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T


def check(result: dict[str, Any]) -> None:
    """The number that decides: the gain of the last layer over the raw input, at least 2 standard errors, on both sets.

    And the mean over the seeds rises with every layer, unless it was 1 already.
    """
    for name in ("digits", "spirals"):
        gain, error = result[name]["gain"], result[name]["gain_error"]
        claim.require(gain > 0 and gain >= 2 * error, f"{name}: the last layer gains {gain:.4f} ± {error:.4f} over raw")
        means = [np.mean(accuracy) for accuracy in result[name]["accuracy"]]
        for k, (below, above) in enumerate(pairwise(means), 1):
            claim.require(
                above > below or below == 1, f"{name}: hidden layer {k} has {above:.4f}, not above {below:.4f}"
            )


def summary(result: dict[str, Any]) -> tuple[str, str]:
    shown = []
    for name in ("digits", "spirals"):
        found = result[name]
        first, last = (100 * np.mean(found["accuracy"][k]) for k in (0, -1))
        gain, error = 100 * found["gain"], 100 * found["gain_error"]
        shown.append(f"{name} {first:.1f} → {last:.1f} % (gain {gain:.1f} ± {error:.1f})")
    return "a linear probe reads more from the last hidden layer than from the raw input", ", ".join(shown)


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    figure = plt.figure(figsize=(8, 6.8), layout="constrained")
    axes = figure.subplot_mosaic([["d0", "d1", "d2", "d3"], ["s0", "s1", "s2", "s3"], ["w", "w", "p", "p"]])
    for row, name in (("d", "digits"), ("s", "spirals")):
        panels = [axes[f"{row}{k}"] for k in range(DEPTH + 1)]
        panels[0].set_ylabel(f"{name}: 2nd component")
        last = max(result[name]["classes"])
        colours = ListedColormap([f"C{i}" for i in range(10)] if last == 9 else ["C0", "C3"])
        dots = [
            panel.scatter(*np.array(part).T, c=result[name]["classes"], s=5, cmap=colours, vmin=-0.5, vmax=last + 0.5)
            for panel, part in zip(panels, result[name]["components"], strict=True)
        ]
        for k, panel in enumerate(panels):
            panel.set(xticks=[], yticks=[], xlabel="1st component")
            panel.set_title("input" if k == 0 else f"hidden {k}", size=11)
        figure.colorbar(dots[0], ax=panels, label="class", aspect=12, ticks=range(last + 1))
    images = np.array(result["digits"]["weights"]).T.reshape(-1, 8, 8)
    images = np.pad(images, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    montage = np.concatenate([np.concatenate(list(images[i : i + 8]), axis=1) for i in range(0, 32, 8)])
    image = axes["w"].imshow(montage, cmap="RdBu", vmin=-np.nanmax(np.abs(montage)), vmax=np.nanmax(np.abs(montage)))
    axes["w"].set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes["w"], location="bottom", shrink=0.8, label="first-layer weight of the digits")
    for name, marker in (("digits", "o"), ("spirals", "^")):
        values = [np.array(accuracy) for accuracy in result[name]["accuracy"]]
        spread = [v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0 for v in values]
        means = [100 * v.mean() for v in values]
        axes["p"].errorbar(range(DEPTH + 1), means, 100 * np.array(spread), fmt=marker, capsize=2, label=name)
    axes["p"].set(xlabel="hidden layer (0: input)", ylabel="linear probe / %", xticks=range(DEPTH + 1))
    axes["p"].legend(fontsize=10)
    return figure


if __name__ == "__main__":
    claim.main()
