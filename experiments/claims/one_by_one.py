"""One by one is not efficient: the gradient by perturbing each weight in turn, against backpropagation.

Claim: for W weights, perturbing each of them takes 2W forward passes of O(W) each, so O(W²); backpropagation takes
O(W), about three forward passes. The slopes of log cost against log W, counted in FLOPs (which is deterministic), are
2 and 1. Both find the same gradient: central differences to the rounding of the value, n·eps·e/h, and the complex step
Im e(w + ih)/h, which subtracts nothing, to the rounding of the gradient itself. And the pass back through one layer,
Wᵀδ, counts exactly what the pass forward counts.

Source: lecture B ("the gradient could be had one weight at a time: not efficient"), lecture E ("back through a layer
costs what forward does, O(k²)"). Complex step: Squire, Trapp 1998, Using complex variables to estimate derivatives.

    python experiments/claims/one_by_one.py [--quick]      15 seconds (--quick: 4 s)

Expect: slopes 2.003 and 0.999; at half a million weights one by one takes 420,000 times the FLOPs. Central differences
are off by 1.4 eps·e/h, the complex step by 2 eps of the largest entry. In seconds the slopes of the three largest
sizes are near 1.7 and 0.8; they are reported, not checked: a program of a few weights costs its start, weights that no
longer fit the cache (beyond 512 wide) cost their way to memory, and whatever else the machine does is timed as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jbp

EPS = 2.0**-52


@dataclass(frozen=True)
class Config:
    """Networks with two hidden layers, k wide as their input. `perturbed` weights, if it is not None, are all there are
    perturbed, however large the network."""

    counted: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    timed: tuple[int, ...] = (8, 16, 32, 64, 128)
    timed_back: tuple[int, ...] = (8, 32, 128, 256, 512)
    compared: int = 24
    perturbed: int | None = None
    examples: int = 4
    step: float = 1e-6
    layer: tuple[int, int] = (300, 200)
    seed: int = 0


FULL = Config()
QUICK = Config(counted=(32, 128), timed=(8,), timed_back=(8,), compared=8)
CONTROL = Config(counted=(32, 128), timed=(), timed_back=(), compared=8, perturbed=10)  # a fixed number of passes

Point = tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array], jax.Array]


def problem(config: Config, k: int) -> Point:
    """The mean error and its gradient by backpropagation, as functions of all weights in a row; and such a row."""
    net = jbp.serial(jbp.Dense(k), jbp.tanh, jbp.Dense(k), jbp.tanh, jbp.Dense(1))
    keys = jax.random.split(jax.random.key(config.seed), 3)
    weights, unravel = ravel_pytree(net.init(keys[0], (k,))[0])
    x, y = jax.random.normal(keys[1], (config.examples, k)), jax.random.normal(keys[2], (config.examples, 1))

    def error(weights: jax.Array) -> jax.Array:
        tree = unravel(weights) if weights.dtype == x.dtype else as_complex(weights)
        output = jbp.apply(net, tree, x.astype(weights.dtype))
        return jax.vmap(jbp.losses.squared_error.value)(output, y).mean()

    def as_complex(weights: jax.Array) -> Any:
        real, imaginary = unravel(weights.real), unravel(weights.imag)
        return jax.tree.map(jax.lax.complex, real, imaginary)

    def gradient(weights: jax.Array) -> jax.Array:
        return ravel_pytree(jbp.value_and_grad(net, jbp.losses.squared_error)(unravel(weights), x, y)[1])[0]

    return error, gradient, weights


def perturb(error: Any, h: float, weights: jax.Array, i: Any) -> jax.Array:
    """∂e/∂wᵢ by a central difference: two forward passes."""
    return (error(weights.at[i].add(h)) - error(weights.at[i].add(-h))) / (2 * h)


def complex_step(error: Any, weights: jax.Array, i: Any) -> jax.Array:
    """∂e/∂wᵢ = Im e(w + ih eᵢ)/h, with h so small that nothing but the first order is left."""
    return error(weights.astype(jnp.complex128).at[i].add(1e-20j)).imag / 1e-20


def flops(function: Any, *arguments: Any) -> float:
    """As XLA counts the compiled program; of a loop it would count one round only, so there is none in it."""
    return float(jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"])  # type: ignore[index]


def seconds(function: Any, *arguments: Any) -> float:
    """The least of three calls, after one that compiles."""
    compiled, least = jax.jit(function), np.inf
    jax.block_until_ready(compiled(*arguments))
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        least = min(least, time.perf_counter() - began)
        if least > 3:
            break
    return float(least)


def slope(rows: list[dict[str, float]], of: str) -> float:
    """Of log cost against log W, by least squares."""
    return float(np.polyfit(np.log([row["weights"] for row in rows]), np.log([row[of] for row in rows]), 1)[0])


def count(config: Config, k: int) -> dict[str, float]:
    error, gradient, weights = problem(config, k)
    passes = config.perturbed or weights.size
    one = flops(lambda weights, i: perturb(error, config.step, weights, i), weights, 0)
    return {"weights": weights.size, "one by one": passes * one, "backpropagation": flops(gradient, weights)}


def clock(config: Config, k: int, of: str) -> dict[str, float]:
    error, gradient, weights = problem(config, k)
    which = jnp.arange(weights.size)

    def each(weights: jax.Array) -> jax.Array:
        return jax.lax.map(lambda i: perturb(error, config.step, weights, i), which)

    return {"weights": weights.size, of: seconds(each if of == "one by one" else gradient, weights)}


def compare(config: Config) -> dict[str, float]:
    """The largest difference of each from backpropagation, in units of eps·e/h and of eps·max|∂e/∂w|."""
    error, gradient, weights = problem(config, config.compared)
    which = jnp.arange(weights.size)
    exact = gradient(weights)
    differences = jax.jit(lambda w: jax.lax.map(lambda i: perturb(error, config.step, w, i), which))(weights)
    complexly = jax.jit(lambda w: jax.lax.map(lambda i: complex_step(error, w, i), which))(weights)
    unit = EPS * error(weights) / config.step
    return {
        "central difference": float(jnp.abs(differences - exact).max() / unit),
        "complex step": float(jnp.abs(complexly - exact).max() / (EPS * jnp.abs(exact).max())),
        "additions": float(3 * config.compared + config.examples),
    }


def through_one_layer(config: Config) -> dict[str, float]:
    """FLOPs of W h and of Wᵀδ."""
    i, o = config.layer
    net = jbp.Dense(o, use_bias=False)
    params = net.init(jax.random.key(config.seed), (i,))[0]
    x, delta = jnp.ones((config.examples, i)), jnp.ones((config.examples, o))
    saved = jbp.forward(net, params, x)[1]
    return {
        "forward": flops(lambda params, x: jbp.apply(net, params, x), params, x),
        "backward": flops(
            lambda params, saved, delta: jbp.backward(net, params, saved, delta)[0], params, saved, delta
        ),
    }


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        counted = [count(config, k) for k in claim.progress(config.counted, "counting")]
        sizes = {"one by one": config.timed, "backpropagation": config.timed_back}
        timed = {of: [clock(config, k, of) for k in claim.progress(sizes[of], f"timing {of}")] for of in sizes}
        return {
            "counted": counted,
            "timed": timed,
            "slopes in FLOPs": [slope(counted, "one by one"), slope(counted, "backpropagation")],
            "slopes in seconds": [slope(rows[-3:], of) for of, rows in timed.items() if len(rows) > 2],
            "error": compare(config),
            "one layer": through_one_layer(config),
        }


def check(result: dict[str, Any]) -> None:
    """The number that decides: the two slopes of FLOPs against W, 2 and 1 to 0.05."""
    one, back = result["slopes in FLOPs"]
    claim.require(abs(one - 2) < 0.05, f"the cost of perturbing each weight grows as W^{one:.3f}, not W²")
    claim.require(abs(back - 1) < 0.05, f"the cost of backpropagation grows as W^{back:.3f}, not W")
    layer, error = result["one layer"], result["error"]
    claim.require(layer["forward"] == layer["backward"], f"through one layer forward and back differ: {layer}")
    worst = error["central difference"]
    claim.require(worst < error["additions"], f"central differences are off by {worst:.3g} eps·e/h")
    claim.require(error["complex step"] < 128, f"the complex step is off by {error['complex step']:.3g} eps")


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    counted: dict[str, Any] = dict.fromkeys(result["timed"], result["counted"])
    for axis, found, unit in zip(axes, (counted, result["timed"]), ("FLOPs, counted", "seconds"), strict=True):
        for i, ((of, rows), power) in enumerate(zip(found.items(), (2, 1), strict=True)):
            size, cost = (np.array([row[key] for row in rows]) for key in ("weights", of))
            fitted = size if found is counted else size[-3:]
            line = cost[-1:] * (fitted / size[-1:]) ** power
            axis.loglog(fitted, line, f"C{i}", lw=1, label="W²" if power == 2 else "W")
            axis.loglog(size, cost, f"C{i}o", label=of)
        axis.set_xlabel("W, number of weights")
        axis.set_ylabel(f"cost of the gradient ({unit})")
    axes[0].legend(fontsize=10)
    return figure


def summary(result: dict[str, Any]) -> tuple[str, str]:
    (one, back), last = result["slopes in FLOPs"], result["counted"][-1]
    ratio = last["one by one"] / last["backpropagation"]
    seconds = " and ".join(f"{power:.2f}" for power in result["slopes in seconds"])
    timed = f" (powers of the seconds, unchecked: {seconds})" if seconds else ""
    return (
        "FLOPs grow as W² one by one and as W by backpropagation; Wᵀδ costs what W h does",
        f"W^{one:.3f} and W^{back:.3f}{timed}; at {last['weights']:.0f} weights {ratio:.3g} times as much; "
        f"{result['one layer']['backward']:.0f} and {result['one layer']['forward']:.0f} FLOPs",
    )


if __name__ == "__main__":
    claim.main()
