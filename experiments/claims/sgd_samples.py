"""SGD samples: a constant step makes it an autoregressive chain, and Langevin noise a Gibbs distribution.

Claim: on ½(θ − θᵢ)², θᵢ = ±1, the step θ ← θ − ε(θ − θᵢ + √(2T/ε) ξ), ξ normal, is θ ← (1−ε)θ + εθᵢ + √(2εT) ξ. It has
    variance         s² = (ε + 2T)/(2 − ε), and mean 0
    autocorrelation  (1−ε)ʲ at lag j
    sample size      K steps are worth s²/var(mean of K) draws, Kε/(2−ε) for long K: without Langevin noise the mean
                     of K steps has variance 1/K for every ε, as if it were the mean of K examples
    shape            at T = 0 not normal: the excess kurtosis is −2ε²(2−ε)²/(1 − (1−ε)⁴), −1.2 at ε = ½, where θ is
                     uniform on [−1, 1]; it is normal in the limit ε → 0 only
    Gibbs            with the full gradient (θᵢ = 0) normal with variance T/(1 − ε/2): exp(−R/T), but for a bias of
                     1/(1 − ε/2) that the step size brings in; the examples' noise adds ε/(2 − ε) to the variance

Source: lecture A (SGD on the quadratic), lecture E (MCMC, Monte Carlo). The mean of the steps: Polyak and Juditsky
1992, Acceleration of stochastic approximation by averaging. Langevin: Welling and Teh 2011, equation 4, with one ε.

    python experiments/claims/sgd_samples.py [--quick]     half a minute

Expect: with 400,000 chains a case, 190 moments, autocovariances, variances of means and Kolmogorov-Smirnov distances,
none more than 4.0 standard errors off; s² = 0.5556 at ε = 0.2, T = 0.5; kurtosis −1.2 at ε = ½.
Control: noise √(εT) ξ in place of √(2εT) ξ, half the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kstest, norm

import jbp

LAGS = (1, 2, 3, 5, 8, 12, 20, 30)
LENGTHS = (3, 10, 30, 100, 300)
BINS = 40
KS = "Kolmogorov-Smirnov, in standard errors"


@dataclass(frozen=True)
class Config:
    """`cases` holds ε, T and whether the examples are ±1 (else 0); `power` is the 2 of √(2T/ε)."""

    cases: tuple[tuple[float, float, bool], ...] = (
        (0.05, 0.0, True), (0.2, 0.0, True), (0.5, 0.0, True), (1.2, 0.0, True), (1.8, 0.0, True),
        (0.05, 0.5, False), (0.2, 0.5, False), (0.05, 2.0, False), (0.5, 2.0, False), (1.5, 2.0, False),
        (0.2, 0.5, True), (0.5, 2.0, True),
    )  # fmt: skip
    power: float = 2.0
    chains: int = 400_000
    settle: int = 160
    steps: int = 300
    seed: int = 0


FULL = Config()
QUICK = Config(((0.2, 0.0, True), (0.5, 0.0, True), (0.2, 0.5, False), (0.5, 2.0, True)), 2.0, 20_000, 40, 100)
CONTROL = Config(((0.2, 0.5, False), (0.5, 2.0, True)), 1.0, 20_000, 40, 30)


def predicted_variance(rate: float, temperature: float, examples: bool) -> float:
    return (rate * examples + 2 * temperature) / (2 - rate)


def kurtosis(rate: float) -> float:
    """E θ⁴/s⁴ − 3 at T = 0: the fourth cumulant of ±1 is −2, and those of independent terms add up."""
    return -2 * rate**2 * (2 - rate) ** 2 / (1 - (1 - rate) ** 4)


def variance_of_mean(rate: float, square: float, k: int) -> float:
    """Of k successive θ with variance s² = `square`: s²/k² · Σᵢⱼ (1−ε)^|i−j|."""
    j = np.arange(1, k)
    return square / k**2 * (k + 2 * ((k - j) * (1 - rate) ** j).sum())


def move(case: jax.Array, theta: jax.Array, state: Any, key: Any) -> Any:
    """One step of all chains of a case."""
    rate, temperature, examples, power = case
    sgd: Any = jbp.optim.sgd(rate)
    pick, shake = jax.random.split(key)
    example = examples * jax.random.rademacher(pick, theta.shape, theta.dtype)
    noise = jnp.sqrt(power * temperature / rate) * jax.random.normal(shake, theta.shape, theta.dtype)
    update, state = sgd.update(jbp.losses.l2_loss.delta(theta, example) + noise, state)
    return theta + update, state


@partial(jax.jit, static_argnums=1)
def settled(cases: jax.Array, chains: int, keys: Any) -> Any:
    """θ of every case and chain after these steps from 0, as `measured` wants it: first θ, θ, sum, count, state."""

    def of_case(case: jax.Array) -> Any:
        theta = jnp.zeros((chains,), case.dtype)
        begin: Any = (theta, jbp.optim.sgd(case[0]).init(theta))
        theta, state = jax.lax.scan(lambda at, key: (move(case, at[0], at[1], key), None), begin, keys)[0]
        return theta, theta, theta, jnp.ones((), case.dtype), state

    return jax.vmap(of_case)(cases)


@jax.jit
def measured(cases: jax.Array, carry: Any, keys: Any) -> tuple[Any, jax.Array]:
    """The steps after settling; for each, with θ₀ the first θ and S the sum since, mean and deviation over the chains
    of θ₀θⱼ and of (S/(j+1))², [cases, steps, 4]."""

    def of_case(case: jax.Array, carry: Any) -> Any:
        def step(carry: Any, key: Any) -> Any:
            first, theta, total, count, state = carry
            theta, state = move(case, theta, state, key)
            total, count = total + theta, count + 1
            product, square = first * theta, jnp.square(total / count)
            found = jnp.stack([product.mean(), product.std(), square.mean(), square.std()])
            return (first, theta, total, count, state), found

        return jax.lax.scan(step, carry, keys)

    return jax.vmap(of_case)(cases, carry)


def chains(cases: jax.Array, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The last θ of every case and chain, and what `measured` finds of each step."""
    keys, steps = jax.random.split(jax.random.key(config.seed)), (config.settle, config.steps)
    early, late = (jax.random.split(k, n) for k, n in zip(keys, steps, strict=True))
    carry, found = settled(cases, config.chains, early), []
    for i in claim.progress(range(0, config.steps, 20), "steps of all chains"):
        carry, part = measured(cases, carry, late[i : i + 20])
        found.append(np.asarray(part))
    return np.asarray(carry[1]), np.concatenate(found, 1)


def of_case(case: tuple[float, float, bool], theta: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """What was measured against what was predicted, each with its standard error."""
    rate, temperature, examples = case
    square, root, rows = predicted_variance(*case), np.sqrt(theta.size), []

    def compare(what: str, at: int, expected: float, mean: Any, deviation: Any) -> None:
        row = {"predicted": expected, "measured": float(mean), "standard error": float(deviation) / root}
        rows.append({"of": what, "at": at} | row)

    for power, expected in ((1, 0.0), (2, square), (4, (kurtosis(rate) + 3) * square**2)):
        if power < 4 or not temperature:
            compare("moment", power, expected, (theta**power).mean(), (theta**power).std())
    for lag in (lag for lag in LAGS if lag <= len(found)):
        compare("autocovariance", lag, square * (1 - rate) ** lag, *found[lag - 1, :2])
    for k in (k for k in LENGTHS if k <= len(found)):
        compare("variance of the mean", k, variance_of_mean(rate, square, k), *found[k - 2, 2:])
    counts, edges = np.histogram(theta / square**0.5, BINS, (-4, 4))
    result = {"rate": rate, "temperature": temperature, "examples": examples, "variance": square, "rows": rows}
    result["density"] = (counts / theta.size / np.diff(edges)).round(5).tolist()
    if not examples:
        p = kstest(theta, norm(scale=square**0.5).cdf).pvalue
        result[KS] = float(norm.isf(max(p, 1e-300) / 2))
    return result


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        cases = jnp.asarray([[*map(float, case), config.power] for case in config.cases], jnp.float64)
        theta, found = chains(cases, config)
    return {"cases": [of_case(*rows) for rows in zip(config.cases, theta, found, strict=True)]}


def deviation(result: dict[str, Any]) -> tuple[float, float, int]:
    """The largest deviation from theory, in standard errors; what it stays below with 99 % probability; of how many."""
    rows = [row for case in result["cases"] for row in case["rows"]]
    z = [abs(row["measured"] - row["predicted"]) / row["standard error"] for row in rows]
    z += [case[KS] for case in result["cases"] if KS in case]
    return max(z), float(norm.isf(0.01 / 2 / len(z))), len(z)


def check(result: dict[str, Any]) -> None:
    """The largest deviation from theory, in standard errors, decides."""
    worst, allowed, _ = deviation(result)
    claim.require(worst <= allowed, f"a figure is {worst:.1f} standard errors off, allowed {allowed:.1f}")


def _points(case: dict[str, Any], what: str) -> np.ndarray:
    return np.array(
        [[row[n] for n in ("at", "measured", "standard error")] for row in case["rows"] if row["of"] == what]
    ).T


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure, ((shape, lags), (means, gibbs)) = plt.subplots(2, 2, figsize=(8, 6.4), layout="constrained")
    cases = result["cases"]
    middle, line = (np.arange(BINS) + 0.5) / BINS * 8 - 4, np.linspace(-4, 4, 300)
    noisy = [case for case in cases if not case["temperature"]]
    for i, case in enumerate(noisy):
        color, rate, square = f"C{i}", case["rate"], case["variance"]
        if rate <= 0.5:
            shape.step(middle, case["density"], where="mid", color=color, lw=1.2, label=f"ε = {rate}")
        if rate <= 1.2:
            x, y, error = _points(case, "autocovariance")
            lags.errorbar(x, y / square, error / square, fmt="o", ms=4, color=color, label=f"ε = {rate}")
            j = np.arange(31)
            lags.plot(j, (1 - rate) ** j, color=color, lw=1)
        x, y, error = _points(case, "variance of the mean")
        means.errorbar(x, square / y, square * error / y**2, fmt="o", ms=4, color=color, label=f"ε = {rate}")
        k = np.unique(np.geomspace(1, x.max(), 60).astype(int))
        means.plot(k, [square / variance_of_mean(rate, square, n) for n in k], color=color, lw=1)
    shape.plot(line, norm.pdf(line), "k--", lw=1, label="normal")
    shape.set(xlabel="θ, in its standard deviation s", ylabel="density at T = 0", xlim=(-4, 4))
    lags.set(xlabel="lag j, in steps", ylabel="autocorrelation at T = 0")
    means.set(xscale="log", yscale="log", xlabel="steps K", ylabel="effective sample size")
    wide, full = np.linspace(-6, 6, 400), [case for case in cases if not case["examples"]]
    ends = [full[0], full[-1]]  # little bias and much
    ends[1:1] = [case for case in full if case["temperature"] == full[-1]["temperature"]][:1]
    for i, case in enumerate(ends):
        s, label = case["variance"] ** 0.5, f"T = {case['temperature']}, ε = {case['rate']}"
        gibbs.plot(middle * s, np.array(case["density"]) / s, "o", ms=4, color=f"C{i}", label=label)
        gibbs.plot(wide, norm.pdf(wide, scale=s), color=f"C{i}", lw=1)
        gibbs.plot(wide, norm.pdf(wide, scale=case["temperature"] ** 0.5), "k--", lw=1)
    gibbs.plot([], [], "k--", lw=1, label="exp(−R/T)")
    gibbs.set(xlabel="θ", ylabel="density", xlim=(-6, 6), ylim=(0, 0.9))
    for axes in (shape, lags, means, gibbs):
        axes.legend(fontsize=10, frameon=False, handlelength=1.2)
    return figure


def summary(result: dict[str, Any]) -> tuple[str, str]:
    worst, allowed, comparisons = deviation(result)
    case = next(case for case in result["cases"] if not case["examples"])
    row = next(row for row in case["rows"] if row["of"] == "moment" and row["at"] == 2)
    at = f"T = {case['temperature']}, ε = {case['rate']}"
    return (
        f"autocorrelation (1−ε)ʲ; a Gibbs variance of T/(1 − ε/2) = {row['predicted']:.4f} at {at}",
        f"{row['measured']:.4f} ± {row['standard error']:.4f}; the worst of {comparisons} figures is "
        f"{worst:.1f} standard errors off, {allowed:.1f} allowed",
    )


if __name__ == "__main__":
    claim.main()
