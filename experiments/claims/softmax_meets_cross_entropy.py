"""Softmax and cross-entropy meet in y − t.

Claim: behind softmax, ∂L/∂yⱼ = −tⱼ/yⱼ goes back through the k × k Jacobian ∂yⱼ/∂zᵢ = yⱼ([i=j] − yᵢ), and the sum over
j collapses to yᵢ − tᵢ. The two forms of δ are equal to rounding; the sum costs O(k²), y − t costs O(k). And they part
where the logits are large: y − t is right at logits of ±10⁴, while t/y overflows, or is 0/0, as soon as the distance
of the logits passes the log of the largest number, 709.8 in float64 and 88.7 in float32 (or, on machines that round
the smallest numbers to 0, 1.4 before).

Source: lecture E (∂L/∂yᵢ = −tᵢ/yᵢ, ∂yᵢ/∂zᵢ, ∂yⱼ/∂zᵢ); Bishop 2006, Pattern Recognition, eq. 4.106-4.109.

    python experiments/claims/softmax_meets_cross_entropy.py [--quick]     15 seconds (--quick: 4 s)

Expect: differences of at most 15 eps · max(y, t), slopes 1.997 and 1.001, and breaks at 708.4 and 87.3: XLA rounds the
smallest numbers to 0 on a CPU. Beyond, the full form and the library's two layers give NaN, and y − t is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np

import jbp

EPS = 2.0**-52


@dataclass(frozen=True)
class Config:
    """Numbers of classes k; `off_diagonal` False leaves out ∂yⱼ/∂zᵢ for i ≠ j, a mistake often made."""

    compared: tuple[int, ...] = (2, 3, 10, 30, 100, 300, 1000)
    counted: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    examples: int = 8
    distances: tuple[float, ...] = (1, 3, 10, 30, 60, 80, 100, 300, 600, 700, 720, 1000, 3000, 10000, 20000)
    off_diagonal: bool = True
    seed: int = 0


FULL = Config()
QUICK = Config(compared=(3, 30), counted=(64, 256), distances=(10, 100, 1000, 20000))
CONTROL = Config(compared=(3, 30), counted=(64, 256), distances=(10, 20000), off_diagonal=False)

Delta = Callable[[jax.Array, jax.Array], jax.Array]


def full(z: jax.Array, t: jax.Array, off_diagonal: bool = True) -> jax.Array:
    """Σⱼ −tⱼ/yⱼ · ∂yⱼ/∂zᵢ, with the Jacobian as a matrix."""
    y = jbp.softmax.value(z)
    of_y = -t / y
    outer = jnp.expand_dims(y, 1) * jnp.expand_dims(y, 0)
    jacobian = jnp.diag(y) - (outer if off_diagonal else jnp.diag(y * y))
    return of_y @ jacobian


def layered(z: jax.Array, t: jax.Array) -> jax.Array:
    """The library's softmax as a layer, behind it its cross-entropy: −t/y, then y∘(δ − ⟨y, δ⟩)."""
    y, saved = jbp.softmax.forward((), z, None)
    return jbp.softmax.backward((), saved, jbp.losses.cross_entropy.delta(y, t))[0]


def fused(z: jax.Array, t: jax.Array) -> jax.Array:
    """y − t."""
    return jbp.losses.softmax_cross_entropy.delta(z, t)


FORMS: dict[str, Delta] = {"full Jacobian": full, "two layers": layered, "fused": fused}


def compare(config: Config, k: int) -> dict[str, float]:
    """The largest difference of the other forms from y − t, one-hot targets and distributions, in units of
    eps · max(y, t): where y is near t, what is subtracted sets the rounding, and not the small δ that is left."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    z = 3 * jax.random.normal(keys[0], (2 * config.examples, k))
    hot = jax.nn.one_hot(jax.random.randint(keys[1], (config.examples,), 0, k), k, dtype=z.dtype)
    t = jnp.concatenate([hot, jax.nn.softmax(jax.random.normal(keys[2], hot.shape))])
    right = jax.vmap(fused)(z, t)

    size = EPS * jnp.maximum(jax.vmap(jbp.softmax.value)(z), t).max(1)

    def error(form: Delta) -> float:
        found = jax.jit(lambda z, t: jax.lax.map(lambda one: form(*one), (z, t)))(z, t)
        return float((jnp.abs(found - right).max(1) / size).max())

    with_jacobian = error(lambda z, t: full(z, t, config.off_diagonal))
    return {"k": k, "full Jacobian": with_jacobian, "two layers": error(layered)}


def count(k: int) -> dict[str, float]:
    """FLOPs of each form for one example."""
    z = jnp.zeros(k)
    costs: dict[str, Any] = {name: jax.jit(form).lower(z, z).cost_analysis() for name, form in FORMS.items()}
    return {"k": k} | {name: float(cost["flops"]) for name, cost in costs.items()}


def apart(config: Config, dtype: Any) -> dict[str, Any]:
    """Two classes, the wrong one ahead by a distance: |δ − exact| of each form (None: not finite), and the distance at
    which the full form breaks, by bisection."""
    forms = {name: jax.jit(form) for name, form in FORMS.items()}

    def error(name: str, distance: float) -> float:
        z, t = jnp.array([distance / 2, -distance / 2], dtype), jnp.array([0, 1], dtype)
        exact = 1 / (1 + np.exp(-distance)) * np.array([1, -1])
        return float(np.abs(np.asarray(forms[name](z, t), np.float64) - exact).max())

    low, high = 1.0, 10000.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if np.isfinite(error("full Jacobian", middle)) else (low, middle)
    errors = {name: [error(name, distance) for distance in config.distances] for name in FORMS}
    return {
        "eps": float(jnp.finfo(dtype).eps),
        "breaks at": low,
        "log of the largest": float(np.log(float(jnp.finfo(dtype).max))),
        "log of the smallest": float(-np.log(float(jnp.finfo(dtype).tiny))),
        "errors": {name: [e if np.isfinite(e) else None for e in row] for name, row in errors.items()},
    }


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        counted = [count(k) for k in config.counted]
        ks = np.log([row["k"] for row in counted])
        return {
            "compared": [compare(config, k) for k in claim.progress(config.compared, "comparing")],
            "counted": counted,
            "slopes": {name: float(np.polyfit(ks, np.log([row[name] for row in counted]), 1)[0]) for name in FORMS},
            "apart": {np.dtype(dtype).name: apart(config, dtype) for dtype in (jnp.float64, jnp.float32)},
        }


def check(result: dict[str, Any]) -> None:
    """The number that decides: the largest difference between the full form and y − t, at most 128 eps."""
    for row in result["compared"]:
        claim.require(row["full Jacobian"] <= 128, f"the full form is {row['full Jacobian']:.3g} eps off y − t: {row}")
        claim.require(row["two layers"] <= 128, f"the two layers are {row['two layers']:.3g} eps off y − t: {row}")
    square, line = result["slopes"]["full Jacobian"], result["slopes"]["fused"]
    claim.require(abs(square - 2) < 0.05 and abs(line - 1) < 0.05, f"FLOPs grow as k^{square:.3f} and k^{line:.3f}")
    for name, row in result["apart"].items():
        worst = max(row["errors"]["fused"], key=lambda e: np.inf if e is None else e)
        claim.require(worst is not None and worst <= 4 * row["eps"], f"y − t is off by {worst} in {name}")
        low, at, high = row["log of the smallest"], row["breaks at"], row["log of the largest"]
        claim.require(low - 0.1 < at < high + 0.1, f"the full form breaks at {at}, not from {low} to {high}, in {name}")


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    k = np.array([row["k"] for row in result["counted"]])
    for i, (name, power) in enumerate((("full Jacobian", 2), ("fused", 1))):
        flops = np.array([row[name] for row in result["counted"]])
        left.loglog(k, flops[-1] * (k / k[-1]) ** power, f"C{i}", lw=1, label="k²" if power == 2 else "k")
        left.loglog(k, flops, f"C{i}o", label=name)
    left.set_xlabel("k, number of classes")
    left.set_ylabel("cost of δ (FLOPs)")
    left.legend(fontsize=10)
    distances = np.array(result["config"]["distances"])
    for j, (dtype, row) in enumerate(result["apart"].items()):
        for i, name in enumerate(("full Jacobian", "fused")):
            errors = np.array([np.nan if e is None else e / row["eps"] for e in row["errors"][name]])
            marker = "os"[j]
            right.plot(distances, errors, f"C{i}{marker}", mfc="none" if j else None, label=f"{name}, {dtype}")
            broken = np.isnan(errors)
            right.plot(distances[broken], np.full(broken.sum(), 8.0 + j), f"C{i}{marker}", mfc="none" if j else None)
        right.axvline(row["log of the largest"], color="k", lw=1, ls=":" if j else "-")
    right.set_xscale("log")
    right.set_yticks([0, 1, 2, 3, 4, 8.5], ["0", "1", "2", "3", "4", "NaN"])
    right.set_ylim(-0.4, 10.5)
    right.set_xlabel("distance of two logits (lines: ln of the largest)")
    right.set_ylabel("error of δ (eps)")
    right.legend(
        fontsize=10, loc="upper center", bbox_to_anchor=(0.4, -0.17), ncols=2, columnspacing=0.8, frameon=False
    )
    return figure


def summary(result: dict[str, Any]) -> tuple[str, str]:
    worst = max(row["full Jacobian"] for row in result["compared"])
    slopes, apart = result["slopes"], result["apart"]
    breaks = ", ".join(f"{row['breaks at']:.1f} ({name})" for name, row in apart.items())
    return (
        "equal to rounding, O(k²) against O(k); −t/y breaks from 708.4 (float64) and 87.3 (float32) on, y − t never",
        f"equal to {worst:.2g} eps, k^{slopes['full Jacobian']:.3f} against k^{slopes['fused']:.3f}; "
        f"breaks at {breaks}; y − t right at ±10⁴",
    )


if __name__ == "__main__":
    claim.main()
