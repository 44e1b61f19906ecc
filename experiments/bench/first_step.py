"""Time to the first step: tracing, lowering and compiling one gradient step, jbp beside autodiff of plain JAX.

Targets: trace + lower at most 0.6 of autodiff's at 256 layers and 0.9 elsewhere; all three together at most 1.0, the
range reaching it. Then how each grows with depth, unrolled and under `repeat`, and that the batch size changes nothing.

    python experiments/bench/suite.py first_step    writes experiments/results/bench_first_step.json

JAX's caches are cleared before each, so that each is traced as in a fresh process.
"""

from __future__ import annotations

import time
from typing import Any

import harness
import jax
import matplotlib.pyplot as plt
import numpy as np
from harness import Row, Size, timed
from models import STEPS, Case, mlp, stack
from spatial import Spatial

TITLE = "Time to the first step, jbp over autodiff"
STAGES = ("trace", "lower", "compile")


def stages(case: Case | Spatial, rounds: int, compiles: bool = True) -> dict[str, dict[str, np.ndarray]]:
    """Seconds of each stage in each round, in turn; without the last one, which takes the longest, if not asked for."""
    args = case.arguments()
    ways: dict[str, Any] = {"jbp": case.ours(), "autodiff": jax.value_and_grad(case.plain)}
    seconds: dict[str, dict[str, list[float]]] = {way: {stage: [] for stage in STAGES} for way in ways}
    for i in range(rounds + 1):  # the first round loads what JAX imports lazily
        for way in list(ways)[:: 1 if i % 2 else -1]:
            jax.clear_caches()
            program = jax.jit(lambda *a, f=ways[way]: f(*a))
            began = time.perf_counter()
            traced = program.trace(*args)
            middle = time.perf_counter()
            lowered = traced.lower()
            later = time.perf_counter()
            if compiles:
                lowered.compile()
            for stage, took in zip(STAGES, (middle - began, later - middle, time.perf_counter() - later), strict=True):
                if i:
                    seconds[way][stage].append(took)
    return {way: {stage: np.asarray(values) for stage, values in found.items()} for way, found in seconds.items()}


def measure(case: Case, rounds: int, judged: bool = True) -> Row:
    """The figures of one net."""
    found = stages(case, rounds)
    early = {way: s["trace"] + s["lower"] for way, s in found.items()}
    whole = {way: early[way] + s["compile"] for way, s in found.items()}
    deep = len(case.widths) > 200
    figures = [
        timed("trace", found["jbp"]["trace"] / found["autodiff"]["trace"]),
        timed("lower", found["jbp"]["lower"] / found["autodiff"]["lower"]),
        timed("compile", found["jbp"]["compile"] / found["autodiff"]["compile"]),
        timed(
            "trace + lower", early["jbp"] / early["autodiff"], (0.6 if deep else 0.9) if judged else None, reaches=False
        ),
        timed("first step", whole["jbp"] / whole["autodiff"], 1.0 if judged else None),
        timed("jbp, trace + lower, ms", 1e3 * early["jbp"]),
        timed("jbp, compile, ms", 1e3 * found["jbp"]["compile"]),
        timed("autodiff, trace + lower, ms", 1e3 * early["autodiff"]),
        timed("autodiff, compile, ms", 1e3 * found["autodiff"]["compile"]),
    ]
    return Row(case.name, tuple(figures), {"rounds": rounds, "depth": case.depth or len(case.widths) - 2})


def run(size: Size) -> list[Row]:
    """The nets of the gradient step, then depths and batch sizes."""
    if size == "quick":
        return [measure(make(), 1) for make in harness.progress(STEPS[:1], TITLE)]
    rows = [measure(make(), 11) for make in harness.progress(STEPS, TITLE)]
    depths = (2, 32, 128)
    growth = [(lambda d=d: mlp((64,) * (d + 1) + (10,), 32)) for d in depths]
    growth += [(lambda d=d: stack(d, 64, 32)) for d in (*depths, 256)]
    growth += [(lambda b=b: mlp((784, 512, 512, 10), b)) for b in (1, 4096)]
    return rows + [measure(make(), 5, judged=False) for make in harness.progress(growth, "growth")]


def plot(rows: list[Row]) -> Any:
    """Trace + lower and compile against depth."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for ax, start, title in (
        (axes[0], "of 64 relu", "layers of 64, one by one"),
        (axes[1], "repeat of", "under repeat"),
    ):
        chosen = [r for r in rows if start in r.name and " residual" not in r.name]
        chosen += [r for r in rows if start != "repeat of" and r.name.startswith("64-64-64-10")]
        chosen.sort(key=lambda row: row.facts["depth"])
        for way, colour in (("jbp", "C0"), ("autodiff", "C1")):
            for stage, style in (("trace + lower", "o-"), ("compile", "s--")):
                pairs = [(r.facts["depth"], r[f"{way}, {stage}, ms"].value) for r in chosen]
                ax.plot(*zip(*pairs, strict=True), style, color=colour, label=f"{way}, {stage}") if pairs else None
        ax.set(xscale="log", yscale="log", xlabel="layers", title=title)
        harness.plain_ticks(ax, (2, 8, 32, 128, 256))
    axes[0].set_ylabel("milliseconds")
    axes[1].legend(frameon=False, fontsize=9)
    return figure
