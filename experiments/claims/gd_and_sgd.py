"""Gradient descent converges, SGD levels off: the risk R = mean of ½(θ − θᵢ)², with every moment known.

Claim: with mean θᵢ = 0 and mean θᵢ² = 1, R = ½θ² + ½, and gradient descent contracts θ by exactly 1 − ε a step. SGD
that picks K examples uniformly with replacement does not converge: E θₖ = (1−ε)ᵏ θ₀ and
E θₖ² = (1−ε)²ᵏ θ₀² + ε/((2−ε)K) · (1 − (1−ε)²ᵏ), which levels off at ε/((2−ε)K) for ε < 2 and diverges beyond. Over all
2ᵏ sequences of θᵢ = ±1 this is an equality. Decaying steps do converge: with ε = 1/k, θₖ is a mean of k draws, so
E θₖ² = 1/k. An epoch's shuffle beats the law, but for ε < 1 only: sampling without replacement leaves at an epoch's end
ε² (N Σc² − (Σc)²)/((N−1)(1 − (1−ε)²ᴺ)), c = 1, 1−ε, …, (1−ε)ᴺ⁻¹, which equals the law at ε = 1 and is above it beyond.

Source: lecture A (θₖ squared and averaged, "only equal indices survive"). 1/k: Robbins and Monro, 1951. The shuffle is
the same sum with E θᵢθⱼ = −1/(N−1) for i ≠ j.

    python experiments/claims/gd_and_sgd.py [--quick]     15 s

Expect: 100,000 chains for each of 21 pairs (ε, K), ε from 0.01 to 2.1: 512 moments, none of them more than 4.3 standard
errors off (2.8 is usual); descent and the 2ᵏ sequences to rounding; the shuffle leaves 0.0376 at ε = 0.1, not 0.0526.
Control: the shuffle in place of sampling with replacement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

import jbp

SHOWN = (1, 2, 3, 5, 8, 13, 20, 32, 50, 80, 128, 200, 320, 500)  # the k at which moments are compared


@dataclass(frozen=True)
class Config:
    """`batches` holds K with its values of ε and its number of steps; shuffles run for `epochs` of N steps."""

    batches: tuple[tuple[int, tuple[float, ...], int], ...] = (
        (1, (0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 1.5, 1.9, 2.1), 500),
        (4, (0.1, 0.3, 0.6, 1.0, 1.5, 1.9), 50),
        (16, (0.1, 0.3, 0.6, 1.0, 1.5, 1.9), 50),
    )
    replace: bool = True
    chains: int = 100_000
    shuffled: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 1.5, 1.9)
    shuffled_chains: int = 50_000
    epochs: int = 4
    examples: int = 64
    start: float = 3.0
    longest_sequence: int = 10
    seed: int = 0


FULL = Config()
QUICK = Config(batches=((1, (0.1, 0.6, 1.9, 2.1), 50), (4, (0.1, 1.0), 32)), chains=20_000, shuffled_chains=4000)
CONTROL = Config(batches=((1, (0.1, 0.6), 50),), replace=False, chains=4000, shuffled_chains=1000)


def targets(n: int) -> np.ndarray:
    """θ₁ … θₙ, skewed, with mean 0 and mean square 1."""
    raw = np.square(np.arange(1.0, n + 1))
    return (raw - raw.mean()) / raw.std()


def drawing(theta: np.ndarray, batch: int, chains: int, replace: bool) -> Callable[[Any], jax.Array]:
    """key -> the targets [steps, K, chains] of the next step, or without replacement of an epoch."""
    if replace:
        return lambda key: jnp.asarray(theta)[jax.random.randint(key, (1, batch, chains), 0, theta.size)]
    rows = jnp.broadcast_to(jnp.asarray(theta)[:, None], (theta.size, chains))
    shuffle = partial(jax.random.permutation, x=rows, axis=0, independent=True)
    return lambda key: shuffle(key).reshape(-1, batch, chains)


def steps_of(optimizer: Any, start: jax.Array, drawn: jax.Array, state: Any) -> Any:
    """SGD on ½(θ − θᵢ)² with the targets [steps, K, chains]; θ and its moments over the chains after every step."""

    def step(carry: Any, batch: jax.Array) -> Any:
        theta, state = carry
        gradient = jax.vmap(jbp.losses.l2_loss.delta, (None, 0))(theta, batch).mean(0)
        update, state = optimizer.update(gradient, state)
        theta = theta + update
        square = jnp.square(theta)
        return (theta, state), jnp.stack([theta.mean(), theta.std(), square.mean(), square.std()])

    return jax.lax.scan(step, (start, state), drawn)


@partial(jax.jit, static_argnums=(0, 2, 4))
def moments(draw: Any, key: Any, calls: int, rates: jax.Array, decays: bool, start: jax.Array) -> jax.Array:
    """Mean and deviation of θₖ and of θₖ² over the chains, [rates, steps, 4]; all rates see the same examples."""

    def of_rate(rate: jax.Array) -> jax.Array:
        optimizer = jbp.optim.sgd((lambda k: rate / jnp.asarray(k + 1, rate.dtype)) if decays else rate)

        def body(carry: Any, key: Any) -> Any:
            return steps_of(optimizer, carry[0], draw(key), carry[1])

        return jax.lax.scan(body, (start, optimizer.init(start)), jax.random.split(key, calls))[1].reshape(-1, 4)

    return jax.vmap(of_rate)(rates)


def law(rate: Any, batch: int, k: np.ndarray, start: float) -> tuple[np.ndarray, np.ndarray]:
    """E θₖ and E θₖ²."""
    kept = (1 - rate) ** (2.0 * k)
    return (1 - rate) ** k * start, kept * start**2 + rate / ((2 - rate) * batch) * (1 - kept)


def shuffled_law(rate: float, n: int, epochs: int) -> float:
    """E θ² after some epochs of n steps from θ = 0, each epoch's sum independent of the others."""
    c = (1 - rate) ** np.arange(n)
    one = rate**2 * (n * np.square(c).sum() - c.sum() ** 2) / (n - 1)
    return one * sum((1 - rate) ** (2 * n * j) for j in range(epochs))


def compare(found: np.ndarray, predicted: Any, chains: int) -> list[dict[str, Any]]:
    """Mean of θ and of θ², each with its standard error."""
    names, error = ("mean", "mean square"), found[[1, 3]] / np.sqrt(chains)
    return [
        {"of": name, "predicted": float(p), "measured": float(m), "standard error": float(e)}
        for name, p, m, e in zip(names, predicted, found[[0, 2]], error, strict=True)
    ]


def descents(theta: np.ndarray, rates: tuple[float, ...], start: float, steps: int) -> list[dict[str, Any]]:
    """Full-batch descent through the library's gradient of θ·1; the worst errors of θ and R in a step, in eps."""
    net = jbp.serial(jbp.Dense(1, use_bias=False))
    gradient, x, y = jbp.value_and_grad(net, jbp.losses.l2_loss), jnp.ones((theta.size, 1)), jnp.asarray(theta[:, None])

    def of_rate(rate: jax.Array) -> Any:
        optimizer, begin = jbp.optim.sgd(rate), ({"weight": jnp.full((1, 1), start, jnp.float64)},)

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            value, grads = gradient(params, x, y)
            update, state = optimizer.update(grads, state)
            params = jax.tree.map(jnp.add, params, update)
            return (params, state), jnp.stack([value, params[0]["weight"][0, 0]])

        return jax.lax.scan(step, (begin, optimizer.init(begin)), None, steps)[1]

    risks, paths = np.moveaxis(np.asarray(jax.jit(jax.vmap(of_rate))(jnp.asarray(rates))), 2, 0)
    before = np.concatenate([np.full((len(rates), 1), start), paths[:, :-1]], 1)
    factor = (1 - np.array(rates))[:, None]
    errors = np.abs(paths - factor * before) / ((1 + np.abs(factor)) * (1 + np.abs(before)))
    errors = np.maximum(errors, np.abs(risks / (before**2 / 2 + 0.5) - 1)).max(1) / np.finfo(np.float64).eps
    return [
        {"rate": r, "path": p, "worst error in eps": e}
        for r, p, e in zip(rates, paths.tolist(), errors.tolist(), strict=True)
    ]


def all_sequences(rates: tuple[float, ...], longest: int, start: float) -> float:
    """Worst error of E θₖ and E θₖ² over all 2ᵏ sequences of ±1, k = 1 … longest, relative, in eps."""
    bits = (np.arange(2**longest)[None, :] >> np.arange(longest)[:, None]) & 1  # the first k see each of the 2ᵏ alike
    drawn, begin = jnp.asarray(2.0 * bits - 1)[:, None, :], jnp.full((2**longest,), start, jnp.float64)
    found = np.asarray(moments(lambda _: drawn, jax.random.key(0), 1, jnp.asarray(rates), False, begin))
    k, worst = np.arange(1, longest + 1), 0.0
    for rate, rows in zip(rates, found, strict=True):
        first, second = law(rate, 1, k, start)
        errors = np.abs(rows[:, 0] - first) / (1 + np.abs(first)), np.abs(rows[:, 2] / second - 1)
        worst = max(worst, float(np.max(errors)))
    return worst / float(np.finfo(np.float64).eps)


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        theta, key = targets(config.examples), jax.random.key(config.seed)
        begin, curves = jnp.full((config.chains,), config.start, jnp.float64), []
        for batch, rates, steps in claim.progress(config.batches, "mini-batches"):
            draw = drawing(theta, batch, config.chains, config.replace)
            calls = steps if config.replace else -(-steps * batch // config.examples)
            found = np.asarray(moments(draw, jax.random.fold_in(key, batch), calls, jnp.asarray(rates), False, begin))
            for rate, rows in zip(rates, found, strict=True):
                k = np.array([k for k in SHOWN if k <= steps])
                both = np.stack(law(rate, batch, k, config.start), 1)
                pairs = [compare(rows[i - 1], p, config.chains) for i, p in zip(k, both, strict=True)]
                curves.append({"rate": rate, "K": batch, "k": k.tolist(), "rows": pairs})
        draw = drawing(theta, 1, config.chains, True)
        steps = max(steps for _, _, steps in config.batches)
        found = np.asarray(moments(draw, jax.random.fold_in(key, 1000), steps, jnp.ones(1), True, begin))[0]
        shown = [k for k in SHOWN if k <= steps]
        decay = {"k": shown, "rows": [compare(found[k - 1], (0, 1 / k), config.chains) for k in shown]}
        draw = drawing(theta, 1, config.shuffled_chains, False)
        rates, begin = jnp.asarray(config.shuffled), jnp.zeros((config.shuffled_chains,), jnp.float64)
        found = np.asarray(moments(draw, jax.random.fold_in(key, 1001), config.epochs, rates, False, begin))[:, -1]
        left = [(0, shuffled_law(rate, config.examples, config.epochs)) for rate in config.shuffled]
        pairs = [compare(rows, p, config.shuffled_chains) for rows, p in zip(found, left, strict=True)]
        shuffled = [{"rate": rate, "rows": pair} for rate, pair in zip(config.shuffled, pairs, strict=True)]
        sequences = all_sequences((0.1, 0.7, 1.9), config.longest_sequence, config.start)
        descent = descents(theta, (0.01, 0.1, 0.5, 1.0, 1.9, 2.1), config.start, 20)
    return {
        "gradient descent": descent,
        "all sequences: worst error in eps": sequences,
        "sgd": curves,
        "decaying": decay,
        "shuffled": shuffled,
    }


def deviations(result: dict[str, Any]) -> list[float]:
    """How far each moment is from its law, in standard errors."""
    rows = [row for part in (*result["sgd"], result["decaying"]) for pair in part["rows"] for row in pair]
    rows += [row for part in result["shuffled"] for row in part["rows"]]
    return [deviation(row) for row in rows]


def deviation(row: dict[str, float]) -> float:
    """One moment's; one without spread over the chains must be its law to rounding, or is infinitely far."""
    off = abs(row["measured"] - row["predicted"])
    if row["standard error"] > 1e-12:
        return off / row["standard error"]
    return 0.0 if off <= 1e-12 * (1 + abs(row["predicted"])) else np.inf


def contraction(row: dict[str, Any], start: float) -> float:
    """How far the steps of a saved path are from θ ← (1 − ε)θ at most, in eps."""
    path, factor = np.array([start, *row["path"]]), 1 - row["rate"]
    errors = np.abs(path[1:] - factor * path[:-1]) / ((1 + abs(factor)) * (1 + np.abs(path[:-1])))
    return float(errors.max() / np.finfo(np.float64).eps)


def allowed(result: dict[str, Any]) -> float:
    """What the largest of as many deviations stays below with 99 % probability."""
    return float(norm.isf(0.01 / 2 / len(deviations(result))))


def check(result: dict[str, Any]) -> None:
    """The largest deviation of a moment from its law, in standard errors, decides."""
    worst, most = max(deviations(result)), allowed(result)
    claim.require(worst <= most, f"a moment is {worst:.1f} standard errors off its law, allowed {most:.1f}")
    start = result["config"]["start"]
    errors = [max(row["worst error in eps"], contraction(row, start)) for row in result["gradient descent"]]
    claim.require(max(errors) <= 8, f"gradient descent is {max(errors):.1f} eps off its factor 1 − ε")
    exact = result["all sequences: worst error in eps"]
    claim.require(exact <= 64, f"over all sequences the moments are {exact:.1f} eps off")
    for rate, (_, square) in ((row["rate"], row["rows"]) for row in result["shuffled"] if row["rate"] <= 0.1):
        below = (rate / (2 - rate) - square["measured"]) / square["standard error"]
        claim.require(below > most, f"at ε = {rate} an epoch's shuffle is {below:.1f} standard errors below the law")


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.6), layout="constrained")
    start, longest = result["config"]["start"], max(max(c["k"]) for c in result["sgd"])
    k = np.arange(1, longest + 1)
    shown = [c for c in result["sgd"] if c["K"] == 1 and c["rate"] in (0.01, 0.1, 0.6, 1.9, 2.1)]
    for i, curve in enumerate(shown):
        left.plot(k, law(curve["rate"], 1, k, start)[1], color=f"C{i}", lw=1)
        square = [pair[1] for pair in curve["rows"]]
        y, error = ([row[name] for row in square] for name in ("measured", "standard error"))
        left.errorbar(curve["k"], y, error, fmt="o", ms=4, color=f"C{i}", label=f"SGD, ε = {curve['rate']}")
    square = [pair[1]["measured"] for pair in result["decaying"]["rows"]]
    left.plot(k, 1 / k, color="k", lw=1)
    left.plot(result["decaying"]["k"], square, "ks", ms=4, label="SGD, ε = 1/k")
    left.plot(k, 0.9 ** (2.0 * k) * start**2, color="C1", ls="--", lw=1, label="descent, ε = 0.1")
    left.set(xscale="log", yscale="log", ylim=(1e-3, 1e4), xlabel="steps k", ylabel="mean of θₖ²")
    left.legend(fontsize=10, loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=2, frameon=False)
    rate = np.linspace(0.008, 1.95, 400)
    for i, batch in enumerate(sorted({c["K"] for c in result["sgd"]})):
        rows = [(c["rate"], c["rows"][-1][1]) for c in result["sgd"] if c["K"] == batch and c["rate"] < 2]
        last = max(c["k"][-1] for c in result["sgd"] if c["K"] == batch)
        measured = np.geomspace(rows[0][0], rows[-1][0], 200)
        right.plot(measured, law(measured, batch, np.array(last), start)[1], color=f"C{i}", lw=1)
        right.plot(rate, rate / ((2 - rate) * batch), color=f"C{i}", lw=1, ls=":")
        y, error = ([row[name] for _, row in rows] for name in ("measured", "standard error"))
        right.errorbar([r for r, _ in rows], y, error, fmt="o", ms=4, color=f"C{i}", label=f"K = {batch}")
    n, epochs = result["config"]["examples"], result["config"]["epochs"]
    right.plot(rate, [shuffled_law(r, n, epochs) for r in rate], color="k", lw=1)
    y = [row["rows"][1]["measured"] for row in result["shuffled"]]
    right.plot([row["rate"] for row in result["shuffled"]], y, "ks", ms=4, label="K = 1, shuffled")
    right.set(xscale="log", yscale="log", xlabel="step size ε", ylabel="mean of θₖ², last k (dotted: k → ∞)")
    right.legend(fontsize=10, loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=2, frameon=False)
    return figure


def summary(result: dict[str, Any]) -> tuple[str, str]:
    worst, m = max(deviations(result)), len(deviations(result))
    gd = max(row["worst error in eps"] for row in result["gradient descent"])
    one = min((c for c in result["sgd"] if c["K"] == 1), key=lambda c: abs(c["rate"] - 0.6))
    level, rate = one["rows"][-1][1], one["rate"]
    law_of = "E θ² levels off at ε/((2−ε)K)"
    return (
        f"{law_of}: {level['predicted']:.4f} at ε = {rate}, K = 1; descent contracts by 1 − ε",
        f"{level['measured']:.4f} ± {level['standard error']:.4f}; the worst of {m} moments is {worst:.1f} standard "
        f"errors off, {allowed(result):.1f} allowed; descent to {gd:.1f} eps",
    )


if __name__ == "__main__":
    claim.main()
