"""Mini-batches are Monte Carlo: the mini-batch gradient is unbiased, and its variance falls as 1/n.

Claim. With ḡ and tr Σ the mean and the total variance of the N examples' gradients, all from the pairs of ONE backward
pass, a mini-batch of n drawn with replacement has E ĝ = ḡ and E‖ĝ − ḡ‖² = tr Σ/n, for n from 1 to 512 on a network
trained for an epoch; so log variance against log n has slope −1. The gradient noise scale tr Σ/‖ḡ‖² from the same pairs
is what two sizes of mini-batches measure, and `jbp.stats.noise_scale` is it corrected for N being finite. After equally
many gradients n = 1 and 32 are far ahead of full batches.

Source: lecture E, "the training set, and the mini-batch, are Monte Carlo estimates: unbiased; n = 32, n = 1"; noise
scale: McCandlish, Kaplan, Amodei 2018, arXiv:1812.06162, equations 2.8, 2.9 and appendix A.1.

    python experiments/claims/minibatch_is_monte_carlo.py [--quick]

Expect a slope of −1.001 ± 0.001, every variance within 1 % of the prediction, and a noise scale of 34, 83, 190 after 0,
1 and 5 epochs (35, 88, 217 corrected); accuracies after 4 N gradients of 0.95 ± 0.02 (n = 1 and 32) and 0.5 ± 0.1 (full
batch, which needs 50 times the gradients, and 10 times the seconds, for 0.97). Rates are chosen on a held-out fifth of
the training data. Control: a batch of n neighbours in the order of the labels: slope −0.1. Wall time: full a minute on
two idle cores, quick 5 s.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.stats import norm

import jbp


@dataclass(frozen=True)
class Config:
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    draws: int = 4000
    directions: int = 5
    stages: tuple[int, ...] = (0, 1, 5)
    """Epochs after which the noise scale is measured; the laws are tested at the second."""
    epochs: tuple[int, int, int] = (20, 60, 600)
    """Of training with n = 1, 32 and N."""
    rates: tuple[tuple[float, ...], ...] = ((0.03, 0.1, 0.3, 1.0), (0.3, 1.0, 3.0), (0.6, 1.2, 2.4))
    seeds: int = 3
    neighbours: bool = False
    """A batch is n neighbours in the order of the labels instead of n independent draws."""
    seed: int = 0


FULL = Config()
QUICK = Config(sizes=(1, 8, 64), draws=1000, stages=(0, 1), epochs=(4, 4, 4), rates=((0.01,), (0.1,), (0.6,)), seeds=1)
CONTROL = dataclasses.replace(QUICK, neighbours=True)
NET = jbp.serial(jbp.Flatten(), jbp.Dense(32), jbp.relu, jbp.Dense(10))
LOSS = jbp.losses.softmax_cross_entropy
SMALL, LARGE = 8, 64  # of the noise scale from two sizes


@jax.jit
def from_pairs(params: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
    """ḡ, tr Σ over these N examples, and `jbp.stats.noise_scale`: of one backward pass."""
    _, pairs = jbp.value_and_pairs(NET, LOSS, params, x, y)
    variance = ravel_pytree(jbp.stats.variance(pairs))[0].sum() * ((len(x) - 1) / len(x))
    return ravel_pytree(jbp.contract(pairs))[0], variance, jbp.stats.noise_scale(pairs)


@partial(jax.jit, static_argnums=(0, 1, 2))
def draws(n: int, times: int, neighbours: bool, key: Any, params: Any, x: Any, y: Any, center: Any, along: Any) -> Any:
    """Of `times` mini-batches of n: ‖ĝ − ḡ‖², ‖ĝ‖², and the components of ĝ along the given directions."""

    def one(key: Any) -> tuple[Any, Any, Any]:
        if neighbours:
            chosen = (jax.random.randint(key, (), 0, len(x)) + jnp.arange(n)) % len(x)
        else:
            chosen = jax.random.randint(key, (n,), 0, len(x))
        g = ravel_pytree(jbp.value_and_grad(NET, LOSS)(params, x[chosen], y[chosen])[1])[0]
        return jnp.square(g - center).sum(), jnp.square(g).sum(), along @ g

    return jax.lax.map(one, jax.random.split(key, times))


def mean_and_error(values: Any) -> tuple[Any, Any]:
    """Mean over the draws and its standard error."""
    values = np.asarray(values, float)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def run(config: Config) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    train, test = jbp.data.load("digits", "train"), jbp.data.load("digits", "test")
    (x, y), test = as_arrays(*train), as_arrays(*test)
    order = np.argsort(np.asarray(y), kind="stable")
    x, y = x[order], y[order]

    reached = {0: NET.init(jax.random.split(key)[0], x.shape[1:])[0]}

    def keep(event: jbp.Event) -> None:
        if event.row is not None and event.epoch in config.stages:
            reached[event.epoch] = jax.tree.map(jnp.copy, event.params)

    jbp.fit(
        NET,
        LOSS,
        jbp.optim.sgd(0.1),
        (x, y),
        params=reached[0],
        epochs=max(config.stages),
        seed=config.seed,
        callbacks=(keep,),
    )
    return laws(config, reached[config.stages[1]], x, y) | {
        "noise_scale": [noise_scale(config, epoch, reached[epoch], x, y) for epoch in config.stages],
        "training": [training(config, i, (x, y), test) for i in claim.progress(range(3), "training")],
    }


def as_arrays(x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
    """In JAX's default float type."""
    return jnp.asarray(x, jnp.zeros(()).dtype), jnp.asarray(y)


def laws(config: Config, params: Any, x: Any, y: Any) -> dict[str, Any]:
    """Bias and variance of mini-batch gradients, predicted from the pairs and measured."""
    center, trace, _ = from_pairs(params, x, y)
    random = jax.random.normal(jax.random.key(config.seed + 1), (config.directions, len(center)))
    along = jnp.concatenate([center[None], random])
    along = along / jnp.linalg.norm(along, axis=1, keepdims=True)
    rows = []
    for n in claim.progress(config.sizes, "mini-batches"):
        key = jax.random.fold_in(jax.random.key(config.seed + 2), n)
        spread, _, parts = draws(n, config.draws, config.neighbours, key, params, x, y, center, along)
        variance, error = mean_and_error(spread)
        part, part_error = mean_and_error(parts)
        z = (part - np.asarray(along @ center)) / part_error
        rows.append({"n": n, "predicted": float(trace) / n, "variance": variance, "error": error, "bias_z": z.tolist()})
    log_n, log_v = (np.log([row[name] for row in rows]) for name in ("n", "variance"))
    weight = np.array([row["variance"] / row["error"] for row in rows]) ** 2
    deviation = log_n - np.average(log_n, weights=weight)
    slope = float((weight * deviation * log_v).sum() / (weight * deviation**2).sum())
    return {"rows": rows, "slope": slope, "slope_error": float((weight * deviation**2).sum() ** -0.5)}


def noise_scale(config: Config, epoch: int, params: Any, x: Any, y: Any) -> dict[str, float]:
    """tr Σ/‖ḡ‖² from the pairs, and from the mean ‖ĝ‖² of mini-batches of two sizes (source, appendix A.1)."""
    center, trace, scale = from_pairs(params, x, y)
    key, found = jax.random.fold_in(jax.random.key(config.seed + 3), epoch), []
    for n in (SMALL, LARGE):
        along = jnp.zeros((config.directions + 1, len(center)), center.dtype)  # unread; of this shape compiled already
        squares = draws(n, config.draws, config.neighbours, key, params, x, y, center, along)[1]
        found.append(mean_and_error(squares))
    (small, e_small), (large, e_large) = found
    noise = (small - large) / (1 / SMALL - 1 / LARGE)
    signal = (LARGE * large - SMALL * small) / (LARGE - SMALL)
    ratio = noise / signal  # its error to first order, from those of the two means
    by_small = ratio * (1 / (small - large) + SMALL / (LARGE * large - SMALL * small))
    by_large = -ratio * (1 / (small - large) + LARGE / (LARGE * large - SMALL * small))
    return {
        "epoch": epoch,
        "pairs": float(trace / jnp.square(center).sum()),
        "stats": float(scale),
        "measured": float(ratio),
        "error": float(np.hypot(by_small * e_small, by_large * e_large)),
    }


def training(config: Config, i: int, train: Any, test: Any) -> dict[str, Any]:
    """Test accuracy against gradients and seconds, at the rate with the lowest loss on a held-out fifth."""
    n, epochs = (1, 32, len(train[0]))[i], config.epochs[i]
    rate, seeds = config.rates[i][0], range(config.seed, config.seed + config.seeds)
    if len(config.rates[i]) > 1:
        x, y = np.asarray(train[0]), np.asarray(train[1])
        x_part, y_part, x_held, y_held = jbp.data.split(x, y, 0.2, seed=config.seed)
        found = jbp.fit_many(
            NET, LOSS, jbp.optim.sgd, (x_part, y_part), validation_data=(x_held, y_held), epochs=epochs,
            learning_rates=config.rates[i], seeds=seeds, batch_size=min(n, len(x_part)),
        )  # fmt: skip
        rate = config.rates[i][int(np.nanargmin(found.mean("validation_loss")))]
    optimizer, curves, seconds = jbp.optim.sgd(rate), [], []
    for seed in (
        config.seed,
        *range(config.seed, config.seed + config.seeds),
    ):  # the first compiles, and is not counted
        history = jbp.fit(
            NET, LOSS, optimizer, train, validation_data=test, metrics={"accuracy": jbp.accuracy}, batch_size=n,
            epochs=epochs, seed=seed,
        ).history  # fmt: skip
        curves.append([row["validation_accuracy"] for row in history])
        seconds.append([row["seconds"] for row in history])
    curves, seconds = curves[-config.seeds :], seconds[-config.seeds :]
    accuracy, error = mean_and_error(curves) if config.seeds > 1 else (np.array(curves[0]), np.zeros(epochs))
    return {"n": n, "rate": rate, "gradients": (np.arange(1, epochs + 1) * len(train[0])).tolist()} | {
        "accuracy": accuracy.tolist(), "error": error.tolist(), "seconds": np.median(seconds, 0).tolist(),
    }  # fmt: skip


def corrected(row: dict[str, float], n: int) -> float:
    """The noise scale as `jbp.stats.noise_scale` has it: with the unbiased tr Σ, and less of it over N in ‖ḡ‖²."""
    return row["pairs"] * n / (n - 1) / (1 - row["pairs"] / (n - 1))


def check(result: dict[str, Any]) -> None:
    """The number that decides: the slope of log variance against log n, −1 to its sampling error."""
    rows, scales = result["rows"], result["noise_scale"]
    m = sum(1 + len(row["bias_z"]) for row in rows) + len(scales) + 1
    bound = norm.isf(0.01 / 2 / m)
    z = (result["slope"] + 1) / result["slope_error"]
    claim.require(
        abs(z) <= bound, f"slope {result['slope']:.4f} ± {result['slope_error']:.4f} is not −1 ({z:.1f} errors)"
    )
    for row in rows:
        z = (row["variance"] - row["predicted"]) / row["error"]
        claim.require(
            abs(z) <= bound, f"n = {row['n']}: variance {row['variance']:.4g}, predicted {row['predicted']:.4g}"
        )
        claim.require(max(map(abs, row["bias_z"])) <= bound, f"n = {row['n']}: mean off by {row['bias_z']} errors")
    for row in scales:
        z = (row["measured"] - row["pairs"]) / row["error"]
        claim.require(abs(z) <= bound, f"noise scale {row['measured']:.3g} measured, {row['pairs']:.3g} from the pairs")
        expected = corrected(row, result["training"][2]["n"])
        off = abs(row["stats"] / expected - 1)
        claim.require(off <= 1e-3, f"jbp.stats.noise_scale is {row['stats']:.4g}, not {expected:.4g}")
    one, some, full = (row["accuracy"][3] for row in result["training"])
    claim.require(min(one, some) > full, f"after 4 N gradients: n = 1 {one:.3f}, 32 {some:.3f}, N {full:.3f}")


def summary(result: dict[str, Any]) -> tuple[str, str]:
    worst = max(abs(row["variance"] / row["predicted"] - 1) for row in result["rows"])
    one, some, full = (row["accuracy"][3] for row in result["training"])
    return (
        "unbiased, log variance against log n has slope −1",
        f"slope {result['slope']:.4f} ± {result['slope_error']:.4f}, variance within {100 * worst:.1f} % of predicted; "
        f"accuracy after 4 N gradients {one:.3f}, {some:.3f}, {full:.3f} (n = 1, 32, N)",
    )


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure, ((left, scale), (middle, right)) = plt.subplots(2, 2, figsize=(8, 6), layout="constrained")
    rows, scales = result["rows"], result["noise_scale"]
    epochs, measured, error, pairs = ([row[key] for row in scales] for key in ("epoch", "measured", "error", "pairs"))
    scale.plot(epochs, pairs, "k_", ms=18, label="tr Σ/‖ḡ‖², from one pass")
    scale.errorbar(epochs, measured, error, fmt="o", ms=4, capsize=2, label="from two batch sizes")
    scale.set(xlabel="epochs trained", ylabel="gradient noise scale / examples", xlim=(-0.7, None), ylim=(0, None))
    scale.legend(fontsize=10)
    n = np.array([row["n"] for row in rows])
    left.plot(n, [row["predicted"] for row in rows], "k-", lw=1, label="tr Σ/n, from\none pass")
    left.errorbar(n, [row["variance"] for row in rows], [row["error"] for row in rows], fmt="o", ms=4, label="measured")
    left.set(xscale="log", yscale="log", xlabel="mini-batch size n", ylabel="variance E‖ĝ − ḡ‖²")
    left.legend(fontsize=10)
    for i, row in enumerate(result["training"]):
        label = f"n = {row['n']}"
        for axes, name in ((middle, "gradients"), (right, "seconds")):
            low, high = (np.array(row["accuracy"]) + s * np.array(row["error"]) for s in (-1, 1))
            axes.plot(row[name], row["accuracy"], color=f"C{i}", label=label)
            axes.fill_between(row[name], low, high, color=f"C{i}", alpha=0.3, lw=0)
    middle.set(xscale="log", xlabel="gradients of examples", ylabel="test accuracy", ylim=(0, 1))
    right.set(xscale="log", xlabel="seconds", ylabel="test accuracy", ylim=(0, 1))
    right.legend(fontsize=10, loc="lower right")
    return figure


if __name__ == "__main__":
    claim.main()
