"""One gradient step: jbp beside `jax.jit(jax.value_and_grad)` of the fastest plain JAX we can write, and of Equinox's.

Targets: FLOPs and bytes of temporaries at most 1.005 of autodiff's (under `repeat` FLOPs of matrix products, counted in
the program times the length of the scan, because XLA counts a loop's body once); the 5 to 95 % range of the time ratio
reaches 1.00 or lower, against both.

    python experiments/bench/suite.py step         writes experiments/results/bench_step.json
"""

from __future__ import annotations

from typing import Any

import harness
import jax
import matplotlib.pyplot as plt
from counting import product_flops
from harness import Figure, Row, Size, counted, timed
from models import STEPS, Case, dropout, in_equinox

TITLE = "One gradient step, jbp over the others"
LIMIT = 1.005


def contenders(case: Case) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Name -> (value and gradient, its arguments)."""
    params, x, y = case.arguments()
    found: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "jbp": (case.ours(), (params, x, y)),
        "autodiff": (jax.value_and_grad(case.plain), (params, x, y)),
    }
    if harness.has("equinox"):
        module, loss = in_equinox(case, params)
        found["Equinox"] = (jax.value_and_grad(loss), (module, x, y))
    return found


def check_same(case: Case) -> None:
    """The losses of all contenders are equal; where they draw at random, with a drop rate of 0."""
    plain = dropout(case.batch, 0.0) if case.drop else case
    values = {name: float(jax.jit(run)(*args)[0]) for name, (run, args) in contenders(plain).items()}
    for name, value in values.items():
        harness.same(values["jbp"], value, f"{case.name}, {name}")


def measure(case: Case, rounds: int) -> Row:
    """The figures of one net."""
    check_same(case)
    every = contenders(case)
    built = {name: harness.compiled(run, *args) for name, (run, args) in every.items()}
    times = harness.in_turn({name: (lambda n=name: built[n](*every[n][1])) for name in built}, rounds)
    if case.depth:
        work = {name: float(product_flops(*(every[name][0], *every[name][1]))) for name in ("jbp", "autodiff")}
    else:
        work = {name: harness.flops(built[name]) for name in ("jbp", "autodiff")}

    def over(measure: Any) -> float:
        return measure(built["jbp"]) / max(measure(built["autodiff"]), 1)

    figures = [
        counted("FLOPs", work["jbp"] / work["autodiff"], LIMIT),
        counted("temporary bytes", over(harness.temporaries), LIMIT),
        counted("bytes accessed", over(harness.bytes_accessed)),
        counted("instructions", over(harness.program_size)),
        timed("time over autodiff", times["jbp"] / times["autodiff"], 1.0),
        timed("time over Equinox", times["jbp"] / times["Equinox"], 1.0)
        if "Equinox" in times
        else harness.missing("time over Equinox"),
        timed("jbp, ms", 1e3 * times["jbp"]),
        counted("jbp, temporary bytes", harness.temporaries(built["jbp"])),
    ]
    return Row(case.name, tuple(figures), {"rounds": rounds, "widths": list(case.widths), "batch": case.batch})


def run(size: Size) -> list[Row]:
    """Every net; in the quick form the three smallest."""
    cases = [make() for make in (STEPS[:3] if size == "quick" else STEPS)]
    return [measure(case, 5 if size == "quick" else 30) for case in harness.progress(cases, TITLE)]


def plot(rows: list[Row]) -> Any:
    """The time ratios with their ranges."""
    return ratios(rows, ("time over autodiff", "time over Equinox"), "other")


def ratios(rows: list[Row], names: tuple[str, str], other: str) -> Any:
    """Two ratios of time with their ranges, for each row."""
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.3))
    for name, colour, shift in zip(names, ("C0", "C1"), (0.12, -0.12), strict=True):
        for i, row in enumerate(rows):
            ratio: Figure = row[name]
            if ratio.value is not None and ratio.low is not None and ratio.high is not None:
                span = [[ratio.value - ratio.low], [ratio.high - ratio.value]]
                axes.errorbar(ratio.value, i + shift, xerr=span, fmt="o", color=colour, label=name if not i else None)
    axes.axvline(1, color="0.5", lw=1)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"time of one gradient step, jbp / {other} (median, 5 to 95 %)")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
