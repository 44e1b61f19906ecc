"""Momentum: it raises SGD's stationary variance, and brings the cost of a condition number κ down from κ to √κ.

Claim: on the quadratic of `gd_and_sgd.py`, v ← βv + g, θ ← θ − εv with the gradient of one random example settles at
E θ² = ε(1+β)/((1−β)(2(1+β)−ε)). It is stable for ε < 2(1+β), with Nesterov's look-ahead for ε < 2(1+β)/(1+2β): where
the eigenvalues of a step, z² − (1+β−ε)z + β = 0 and z² − (1+β)(1−ε)z + β(1−ε) = 0, are inside the unit circle. On
½Σ λθ², λ from 1 to κ, the best error after k steps goes as
    gradient descent   ρᵏ,    ρ = (κ−1)/(κ+1)           at ε = 2/(κ+1)
    heavy ball         k·ρᵏ,  ρ = (√κ−1)/(√κ+1)         at ε = (1+ρ)²/κ, β = ρ², where the eigenvalue is double
    Nesterov           k·ρᵏ,  ρ = 1 − 2/√(3κ+1)         at ε = 4/(3κ+1), β = ρ/(2−ρ), double at λ = 1
A network on digits, trained on the full batch with the best of the learning rates each, shows the same order.

Source: lecture A (momentum). Polyak 1964, Some methods of speeding up the convergence; the choices of ε and β: Lessard,
Recht and Packard 2016, Analysis and design of optimization algorithms, proposition 1. The variance is that of the
second-order autoregression θₖ₊₁ = (1+β−ε)θₖ − βθₖ₋₁ + εθᵢ.

    python experiments/claims/momentum.py [--quick]     45 s on two idle cores

Expect: 15 variances of 100,000 chains each, none more than 3.4 standard errors off; ρ to 1.2·10⁻⁵ for κ = 10 to 10⁴
(0.99980, 0.98020, 0.98845 at 10⁴), times k to the power 0 for descent and 0.98 to 1 for the others; no cell of two maps
of 48 × 48 against the eigenvalues; on digits after 150 full-batch steps a training loss of 0.054 to 0.073 by seed with
descent, 0.0015 to 0.0043 with the heavy ball, 0.0045 to 0.014 with Nesterov.
Control: a wrong β, nine tenths of the one the theory is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

import jbp

METHODS = ("gradient descent", "heavy ball", "Nesterov")


@dataclass(frozen=True)
class Config:
    """`noise` holds β with its values of ε; `wrong` is what every β is multiplied with before it is used."""

    noise: tuple[tuple[float, tuple[float, ...]], ...] = (
        (0.0, (0.1, 0.3, 0.6, 1.5, 1.9)),
        (0.5, (0.1, 0.3, 1.0, 2.0, 2.8)),
        (0.9, (0.1, 0.3, 1.0, 2.0, 3.6)),
    )
    chains: int = 100_000
    steps: int = 200
    wrong: float = 1.0
    conditions: tuple[int, ...] = (10, 100, 1000, 10_000)
    cells: int = 48
    map_steps: int = 2000
    trained: tuple[str, ...] = METHODS
    seeds: int = 5
    rates: tuple[float, ...] = (0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0)
    examples: int = 1437
    epochs: int = 150
    seed: int = 0


FULL = Config()
QUICK = Config(
    ((0.0, (0.6, 1.9)), (0.9, (0.1, 2.0))), 10_000, conditions=(10, 100), cells=24, map_steps=500,
    trained=METHODS[:2], seeds=1, rates=(0.1, 0.3), examples=200, epochs=40,
)  # fmt: skip
CONTROL = Config(((0.9, (0.1, 2.0)),), 10_000, wrong=0.9, conditions=(10,), cells=8, map_steps=200, trained=())


def optimizer(method: str, rate: Any, beta: Any) -> Any:
    if method == "gradient descent":
        return jbp.optim.sgd(rate)
    return jbp.optim.sgd(rate, momentum=beta, nesterov=method == "Nesterov")


def variance(rate: Any, beta: float) -> Any:
    return rate * (1 + beta) / ((1 - beta) * (2 * (1 + beta) - rate))


def radius(method: str, rate: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """The largest |z| of the step's two eigenvalues at curvature 1."""
    ahead = method == "Nesterov"
    half = ((1 + beta) * (1 - rate) if ahead else 1 + beta - rate) / 2
    root = np.sqrt((half**2 - (beta * (1 - rate) if ahead else beta)).astype(complex))
    return np.maximum(abs(half + root), abs(half - root))


@partial(jax.jit, static_argnums=(2, 3))
def noisy(rates: jax.Array, betas: jax.Array, chains: int, steps: int, key: Any) -> jax.Array:
    """Mean and deviation over the chains of θ² after SGD from 0 on ½(θ − θᵢ)², θᵢ = ±1."""

    def of_one(rate: jax.Array, beta: jax.Array) -> jax.Array:
        sgd, theta = jbp.optim.sgd(rate, momentum=beta), jnp.zeros((chains,), rate.dtype)

        def step(carry: Any, key: Any) -> Any:
            theta, state = carry
            gradient = jbp.losses.l2_loss.delta(theta, jax.random.rademacher(key, (chains,), rate.dtype))
            update, state = sgd.update(gradient, state)
            return (theta + update, state), None

        theta = jax.lax.scan(step, (theta, sgd.init(theta)), jax.random.split(key, steps))[0][0]
        return jnp.stack([jnp.square(theta).mean(), jnp.square(theta).std()])

    return jax.vmap(of_one)(rates, betas)


@partial(jax.jit, static_argnums=(0, 4))
def errors(method: str, rates: jax.Array, betas: jax.Array, curvatures: jax.Array, steps: int) -> jax.Array:
    """log ‖θₖ‖ of every run's ε, β and λ, [runs, steps], from θ = (1, …, 1), where R = ½Σ λθ²."""

    def of_one(rate: jax.Array, beta: jax.Array, curvatures: jax.Array) -> jax.Array:
        chosen, theta = optimizer(method, rate, beta), jnp.ones_like(curvatures)

        def step(carry: Any, _: None) -> Any:
            theta, state, log = carry
            update, state = chosen.update(curvatures * theta, state)
            theta = theta + update
            size = jnp.linalg.norm(theta) + 1e-300  # a linear step: θ and velocity may be scaled, and stay finite
            down = jax.tree.map(lambda a: a / size if a.dtype == size.dtype else a, (theta, state))
            return (*down, log + jnp.log(size)), log + jnp.log(size)

        begin = (theta, chosen.init(theta), jnp.zeros((), rate.dtype))
        return jax.lax.scan(step, begin, None, steps)[1]

    return jax.vmap(of_one)(rates, betas, curvatures)


def best(method: str, kappa: float) -> tuple[float, float, float]:
    """ε, β and ρ."""
    if method == "gradient descent":
        return 2 / (kappa + 1), 0.0, (kappa - 1) / (kappa + 1)
    if method == "heavy ball":
        rho = (kappa**0.5 - 1) / (kappa**0.5 + 1)
        return (1 + rho) ** 2 / kappa, rho**2, rho
    rho = 1 - 2 / (3 * kappa + 1) ** 0.5
    return 4 / (3 * kappa + 1), rho / (2 - rho), rho


def decays(method: str, conditions: tuple[int, ...], wrong: float) -> list[dict[str, Any]]:
    """log ‖θₖ‖ fitted by a + p log k + k log ρ, so late that the slowest eigenvalue alone is left."""
    rates, betas, radii = np.array([best(method, kappa) for kappa in conditions]).T
    begins = [10 * kappa if method == METHODS[0] else int(100 * kappa**0.5) for kappa in conditions]
    curvatures = jnp.asarray(np.geomspace(np.ones(len(conditions)), np.array(conditions), 5, axis=1))
    logs = errors(method, jnp.asarray(rates), jnp.asarray(betas * wrong), curvatures, 2 * max(begins))
    rows = []
    for i, log in enumerate(np.asarray(logs)):
        k = np.arange(begins[i], 2 * begins[i]) + 1.0
        powers = np.stack([np.ones_like(k), np.log(k), k], 1)
        fit = np.linalg.lstsq(powers, log[begins[i] : 2 * begins[i]], rcond=None)[0]
        row = {"method": method, "condition": conditions[i], "rate": rates[i], "momentum": betas[i]}
        row |= {"predicted": radii[i], "measured": np.exp(fit[2]), "power of k": fit[1]}
        rows.append({name: value if isinstance(value, (str, int)) else float(value) for name, value in row.items()})
    return rows


def stability(method: str, cells: int, steps: int, wrong: float) -> dict[str, Any]:
    """The measured growth a step on a grid of (ε, β)."""
    rate, beta = (np.arange(cells) + 0.5) / cells * 4.2, (np.arange(cells) + 0.5) / cells
    rates, betas = (a.ravel() for a in np.meshgrid(rate, beta, indexing="ij"))
    log = np.asarray(errors(method, jnp.asarray(rates), jnp.asarray(betas * wrong), jnp.ones((rates.size, 1)), steps))
    growth = np.exp(log[:, -1] / steps).reshape(cells, cells)
    return {"method": method, "rates": rate.tolist(), "betas": beta.tolist(), "growth": growth.round(4).tolist()}


NET = jbp.serial(jbp.Flatten(), jbp.Dense(32), jbp.relu, jbp.Dense(10))
FAMILY = {method: partial(optimizer, method, beta=0.9) for method in METHODS}


def on_digits(config: Config, method: str) -> dict[str, Any]:
    """The training loss of full-batch steps, for every seed at its best learning rate."""
    x, y = (part[: config.examples] for part in jbp.data.load("digits", "train"))
    seeds = range(config.seed, config.seed + config.seeds)
    many = jbp.fit_many(
        NET, jbp.losses.softmax_cross_entropy, FAMILY[method], (x, y), seeds=seeds,
        learning_rates=config.rates, epochs=config.epochs, batch_size=len(x),
    )  # fmt: skip
    losses = many.step_losses.reshape(len(seeds), len(config.rates), -1)
    chosen = np.where(np.isfinite(losses[:, :, -1]), losses[:, :, -1], np.inf).argmin(1)
    curves = losses[np.arange(len(seeds)), chosen]
    return {"method": method, "rates": [config.rates[i] for i in chosen], "losses": curves.round(6).tolist()}


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        pairs = [(rate, beta) for beta, rates in config.noise for rate in rates]
        rates, betas = (jnp.asarray(column, jnp.float64) for column in zip(*pairs, strict=True))
        key = jax.random.key(config.seed)
        found = np.asarray(noisy(rates, betas * config.wrong, config.chains, config.steps, key))
        level = [
            {"rate": rate, "momentum": beta, "predicted": variance(rate, beta), "measured": float(mean),
             "standard error": float(deviation) / config.chains**0.5}
            for (rate, beta), (mean, deviation) in zip(pairs, found, strict=True)
        ]  # fmt: skip
        todo = claim.progress(METHODS, "condition numbers")
        rows = [row for method in todo for row in decays(method, config.conditions, config.wrong)]
        maps = [stability(method, config.cells, config.map_steps, config.wrong) for method in METHODS[1:]]
    with jax.enable_x64(False):
        digits = [on_digits(config, method) for method in claim.progress(config.trained, "digits")]
    return {"variance": level, "decay": rows, "stability": maps, "digits": digits}


def deviation(result: dict[str, Any]) -> tuple[float, float]:
    """The largest deviation of a variance in standard errors, and what it stays below with 99 % probability."""
    rows = result["variance"]
    z = [abs(row["measured"] - row["predicted"]) / row["standard error"] for row in rows]
    return max(z), float(norm.isf(0.01 / 2 / len(rows)))


def differing(row: dict[str, Any], steps: int) -> int:
    """In how many cells of a map that are not too near the edge growth and the eigenvalues do not agree."""
    rates, betas = np.meshgrid(row["rates"], row["betas"], indexing="ij")
    predicted = radius(row["method"], rates, betas)
    clear = np.abs(predicted - 1) > 10 / steps
    return int((clear & ((np.array(row["growth"]) < 1) != (predicted < 1))).sum())


def check(result: dict[str, Any]) -> None:
    """The largest deviation of a stationary variance, in standard errors, decides."""
    worst, allowed = deviation(result)
    claim.require(worst <= allowed, f"a variance is {worst:.1f} standard errors off, allowed {allowed:.1f}")
    for row in result["decay"]:
        what = f"{row['method']} at κ = {row['condition']}"
        ratio = np.log(row["measured"]) / np.log(row["predicted"])
        claim.require(abs(ratio - 1) < 0.001, f"{what}: ρ is {row['measured']}, not {row['predicted']}")
        power = 0 if row["method"] == METHODS[0] else 1
        claim.require(abs(row["power of k"] - power) < 0.02, f"{what}: k to the power {row['power of k']:.3f}")
    for row in result["stability"]:
        cells = differing(row, result["config"]["map_steps"])
        claim.require(cells == 0, f"{row['method']}: {cells} cells are not what the eigenvalues say")
    if result["digits"]:
        ends = np.array([[curve[-1] for curve in row["losses"]] for row in result["digits"]])
        claim.require((ends[1:] < ends[0]).all(), f"on digits momentum is not ahead with every seed: {ends.tolist()}")


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure, ((noise, speed), (stable, digits)) = plt.subplots(2, 2, figsize=(8, 7.2), layout="constrained")
    for i, beta in enumerate(sorted({row["momentum"] for row in result["variance"]})):
        rows = [row for row in result["variance"] if row["momentum"] == beta]
        rate = np.geomspace(0.08, 2 * (1 + beta) * 0.96, 300)
        noise.plot(rate, variance(rate, beta), color=f"C{i}", lw=1)
        x, y, error = ([row[name] for row in rows] for name in ("rate", "measured", "standard error"))
        noise.errorbar(x, y, error, fmt="o", ms=4, color=f"C{i}", label=f"β = {beta:g}")
    noise.set(xscale="log", yscale="log", xlabel="step size ε", ylabel="stationary E θ²")
    noise.legend(fontsize=10, frameon=False)
    kappa = np.geomspace(8, 1.3 * max(result["config"]["conditions"]), 200)
    for i, method in enumerate(METHODS):
        rows = [row for row in result["decay"] if row["method"] == method]
        speed.plot(kappa, [1 / -np.log(best(method, k)[2]) for k in kappa], color=f"C{i}", lw=1)
        measured = [1 / -np.log(row["measured"]) for row in rows]
        speed.plot([row["condition"] for row in rows], measured, "o", ms=4, color=f"C{i}", label=method)
    speed.set(xscale="log", yscale="log", xlabel="condition number κ", ylabel="steps to shrink by e, −1/log ρ")
    speed.legend(fontsize=10, frameon=False)
    found = result["stability"][0]
    growth = np.log10(np.array(found["growth"]))
    image = stable.pcolormesh(
        found["rates"], found["betas"], growth.T, cmap="RdBu_r", vmin=-0.2, vmax=0.2, rasterized=True
    )
    figure.colorbar(image, ax=stable, location="top", label="heavy ball: growth, decades a step", extend="both")
    beta = np.linspace(0, 1, 100)
    stable.plot(2 * (1 + beta), beta, "k", lw=1.5, label="heavy ball")
    stable.plot(2 * (1 + beta) / (1 + 2 * beta), beta, "k--", lw=1.5, label="Nesterov")
    stable.set(xlabel="step size ε", ylabel="momentum β", xlim=(0, 4.2))
    stable.legend(fontsize=10, loc="lower right", framealpha=1, title="stable left of")
    for i, row in enumerate(result["digits"]):
        curves = np.array(row["losses"])
        k = np.arange(1, curves.shape[1] + 1)
        digits.plot(k, np.median(curves, 0), color=f"C{i}", lw=1.5, label=row["method"])
        digits.fill_between(k, curves.min(0), curves.max(0), color=f"C{i}", alpha=0.25, lw=0)
    digits.set(yscale="log", xlabel="full-batch steps on digits", ylabel="training loss, nats")
    digits.legend(fontsize=10, frameon=False, title="median and range of the seeds", title_fontsize=10)
    return figure


def summary(result: dict[str, Any]) -> tuple[str, str]:
    worst, allowed = deviation(result)
    level, kappa = result["variance"][-1], max(row["condition"] for row in result["decay"])
    rows = [row for row in result["decay"] if row["condition"] == kappa]
    rates = [", ".join(f"{row[name]:.6f}" for row in rows) for name in ("predicted", "measured")]
    at = f"ε = {level['rate']}, β = {level['momentum']}"
    return (
        f"E θ² = {level['predicted']:.4g} at {at}; ρ at κ = {kappa} by descent, heavy ball, Nesterov: {rates[0]}",
        f"{level['measured']:.4g} ± {level['standard error']:.2g}, the worst of {len(result['variance'])} variances "
        f"{worst:.1f} standard errors off, {allowed:.1f} allowed; ρ {rates[1]}",
    )


if __name__ == "__main__":
    claim.main()
