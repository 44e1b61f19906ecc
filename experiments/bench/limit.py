"""The limit: how much of a step is its matrix products, and how fast any library here multiplies matrices.

The bare products of a step (h W forward, δ Wᵀ back, hᵀ δ for the gradient; no δ Wᵀ for the first layer), same shapes,
in one compiled program that stores the same arrays, beside jbp's step and autodiff's; and the best single-precision
product that XLA, PyTorch or NumPy's BLAS reaches at 2048 × 2048 in the same run. Targets: jbp's step reaches 0.95 of
the bare products at 784-2048-2048-10, batch 512, and at 784-512-512-10, batch 128; and 0.85 of the best product at
2048.

    python experiments/bench/suite.py limit         writes experiments/results/bench_limit.json

The rest of the step is also measured by taking it away: the same net without loss and activations, and without biases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from harness import Row, Size, timed
from models import Case, mlp, with_parameters

import jbp
from jbp.losses import l2_loss

TITLE = "The limit: a step's share of its bare matrix products and of the best product here"


def products(weights: Any, x: Any, delta: Any) -> Any:
    """A step's matrix products and nothing else, each fed by the one before; what a step stores stays inside."""
    hs, gradient = [x], []
    for w in weights:
        hs.append(hs[-1] @ w)
    for h, w in zip(hs[-2::-1], weights[::-1], strict=True):
        gradient.append(h.T @ delta)
        delta = delta if h is x else delta @ w.T
    return hs[-1], gradient


def bare(case: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """`products` of the case, and what it takes."""
    params, x, _ = case.arguments()
    delta = jax.random.normal(jax.random.key(2), (case.batch, case.widths[-1]))
    return products, ([p["weight"] for p in with_parameters(params)], x, delta)


def without(case: Case) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The step with parts taken away."""
    args = case.arguments()
    target = jnp.zeros((case.batch, case.widths[-1]))
    linear = jbp.serial(*[jbp.Dense(width) for width in case.widths[1:]])
    unbiased = jbp.serial(*[jbp.Dense(width, use_bias=False) for width in case.widths[1:]])
    params = tuple(with_parameters(args[0]))
    weights = tuple({"weight": p["weight"]} for p in params)
    return {
        "without loss and activations": (jbp.value_and_grad(linear, l2_loss), (params, args[1], target)),
        "and without biases": (jbp.value_and_grad(unbiased, l2_loss), (weights, args[1], target)),
    }


def work(case: Case) -> float:
    """FLOPs of the products."""
    pairs = list(zip(case.widths, case.widths[1:], strict=False))
    return 2.0 * case.batch * (3 * sum(i * o for i, o in pairs) - pairs[0][0] * pairs[0][1])


def best_product(size: int) -> dict[str, Callable[[], Any]]:
    """The libraries' square products."""
    a, b = (np.random.default_rng(i).standard_normal((size, size), np.float32) for i in (1, 2))
    x, y = jnp.asarray(a), jnp.asarray(b)
    multiply = jax.jit(jnp.matmul)
    found: dict[str, Callable[[], Any]] = {"XLA": lambda: multiply(x, y), "NumPy": lambda: a @ b}
    if harness.has("torch"):
        import torch  # type: ignore[import-not-found]

        s, t = torch.from_numpy(a), torch.from_numpy(b)
        found["PyTorch"] = lambda: (s @ t).numpy()
    return found


def measure(case: Case, rounds: int, size: int, of_bare: float, of_best: float | None) -> Row:
    """The figures of one net."""
    args = case.arguments()
    programs = {
        "jbp": (case.ours(), args),
        "autodiff": (jax.value_and_grad(case.plain), args),
        "bare": bare(case),
    } | without(case)
    built = {name: harness.compiled(run, *inputs) for name, (run, inputs) in programs.items()}
    runs = {name: (lambda n=name: built[n](*programs[n][1])) for name in built}
    square = best_product(size)
    times = harness.in_turn(runs | square, rounds)
    speeds = {name: 2.0 * size**3 / times[name] for name in square}
    fastest = max(speeds, key=lambda name: float(np.median(speeds[name])))
    reached = work(case) / times["jbp"]
    figures = [
        timed("share of its bare products", times["bare"] / times["jbp"], of_bare, "higher", reaches=False),
        timed("autodiff's share of them", times["bare"] / times["autodiff"]),
        timed("share of the best product", reached / speeds[fastest], of_best, "higher", reaches=False),
        timed("bare products' share of it", work(case) / times["bare"] / speeds[fastest]),
        timed("jbp, GFLOP/s", reached / 1e9),
        *(timed(f"{name}, GFLOP/s at {size}", speed / 1e9) for name, speed in speeds.items()),
        *(timed(f"step {name}, of its time", times[name] / times["jbp"]) for name in without(case)),
    ]
    return Row(case.name, tuple(figures), {"rounds": rounds, "best": fastest})


def run(size: Size) -> list[Row]:
    """The two nets of the targets."""
    if size == "quick":
        return [measure(mlp((784, 128, 10), 64), 3, 256, 0.95, None)]
    cases = ((mlp((784, 2048, 2048, 10), 512), 0.95, 0.85), (mlp((784, 512, 512, 10), 128), 0.95, None))
    return [measure(case, 30, 2048, *shares) for case, *shares in harness.progress(cases, TITLE)]


def plot(rows: list[Row]) -> Any:
    """What each reaches, in GFLOP/s."""
    figure, axes = plt.subplots(figsize=(7, 1.1 * len(rows) + 1.2))
    labels: list[str] = []
    for row in rows:
        for f in row.figures:
            if "GFLOP/s" in f.name and f.value is not None and f.low is not None and f.high is not None:
                bar = [[f.value - f.low], [f.high - f.value]]
                axes.barh(len(labels), f.value, xerr=bar, color="C0" if f.name.startswith("jbp") else "0.7")
                labels.append(
                    f"{row.name}: {f.name.split(',')[0]}" if f.name.startswith("jbp") else f.name.split(",")[0]
                )
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("GFLOP/s in single precision (median, 5 to 95 %); grey: one product of 2048 × 2048")
    return figure
