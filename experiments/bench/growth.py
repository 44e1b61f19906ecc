"""How cost grows: time and temporaries of a gradient step against batch, width and depth, with fitted exponents.

jbp and autodiff of plain JAX, in turn; then jbp's per-example statistics against the batch. An exponent is the slope of
log time (or bytes) over the upper half of the sizes, where the work and not the overhead decides.

    python experiments/bench/suite.py growth        writes experiments/results/bench_growth.json
"""

from __future__ import annotations

from typing import Any

import harness
import jax
import matplotlib.pyplot as plt
import numpy as np
from harness import Figure, Row, Size, counted, timed
from models import Case, mlp

import jbp
from jbp import stats

TITLE = "How cost grows"
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
WIDTHS = (32, 128, 512, 2048, 4096)
DEPTHS = (2, 4, 8, 16, 32, 64, 128)


def measure(kind: str, at: int, case: Case, rounds: int) -> Row:
    """A step of both at one size."""
    args = case.arguments()
    built = {"jbp": harness.compiled(case.ours(), *args),
             "autodiff": harness.compiled(jax.value_and_grad(case.plain), *args)}  # fmt: skip
    harness.same(built["jbp"](*args)[0], built["autodiff"](*args)[0], case.name)
    times = harness.in_turn({name: (lambda p=program: p(*args)) for name, program in built.items()}, rounds)
    figures = [
        timed("time over autodiff", times["jbp"] / times["autodiff"], 1.0),
        timed("jbp, ms", 1e3 * times["jbp"]),
        timed("autodiff, ms", 1e3 * times["autodiff"]),
        counted("jbp, bytes", harness.temporaries(built["jbp"])),
        counted("autodiff, bytes", harness.temporaries(built["autodiff"]), better=None),
    ]
    return Row(f"{kind} {at}", tuple(figures), {"kind": kind, "at": at, "rounds": rounds})


def measure_statistics(at: int, rounds: int) -> Row:
    """Norms and clipping in plain steps at one batch."""
    case = mlp((784, 512, 512, 10), at)
    args = case.arguments()

    def norms(*a: Any) -> Any:
        return stats.norms(jbp.value_and_pairs(case.net, case.loss, *a)[1])

    def clipped(*a: Any) -> Any:
        return stats.clipped(jbp.value_and_pairs(case.net, case.loss, *a)[1], 1.0)

    built = {name: harness.compiled(run, *args)
             for name, run in (("jbp", case.ours()), ("norms", norms), ("clipped", clipped))}  # fmt: skip
    times = harness.in_turn({name: (lambda p=program: p(*args)) for name, program in built.items()}, rounds)
    figures = []
    for name in ("norms", "clipped"):
        ratio = times[name] / times["jbp"]
        figures += [timed(f"{name}, in plain steps", ratio), timed(f"{name}, ms", 1e3 * times[name]),
                    counted(f"{name}, bytes", harness.temporaries(built[name]))]  # fmt: skip
    return Row(f"statistics, batch {at}", tuple(figures), {"kind": "statistics, batch", "at": at, "rounds": rounds})


def slope(rows: list[Row], name: str) -> float:
    """The exponent over the upper half of the sizes."""
    upper = [(row.facts["at"], row[name].value or 0.0) for row in rows[len(rows) // 2 :]]
    sizes, costs = np.log(np.array(upper, float)).T
    return float(np.polyfit(sizes, costs, 1)[0])


def exponents(rows: list[Row]) -> list[Row]:
    """A row of fitted exponents for each kind."""
    found = []
    for kind in dict.fromkeys(row.facts["kind"] for row in rows):
        of = [row for row in rows if row.facts["kind"] == kind]
        names = [f.name for f in of[0].figures if f.name.endswith((", ms", ", bytes"))]
        figures = tuple(Figure(f"exponent of {name}", slope(of, name), counted="bytes" in name) for name in names)
        found.append(Row(f"growth with {kind}", figures, {"kind": "exponents", "at": 0}))
    return found


def run(size: Size) -> list[Row]:
    """Batch, width and depth."""
    if size == "quick":
        rows = [measure("batch", n, mlp((64, 32, 10), n), 3) for n in (1, 4, 16, 64)]
        return rows + exponents(rows)
    cases = [("batch", n, mlp((784, 512, 512, 10), n)) for n in BATCHES]
    cases += [("width", width, mlp((width, width, width, 10), 64)) for width in WIDTHS]
    cases += [("depth", depth, mlp((128,) * (depth + 1) + (10,), 64)) for depth in DEPTHS]
    rows = [measure(kind, at, case, 30) for kind, at, case in harness.progress(cases, TITLE)]
    rows += [measure_statistics(n, 30) for n in harness.progress(BATCHES, "statistics")]
    return rows + exponents(rows)


def plot(rows: list[Row]) -> Any:
    """Time and bytes against each size."""
    figure, axes = plt.subplots(2, 4, figsize=(12, 5.6), sharex="col")
    kinds = ("batch", "width", "depth", "statistics, batch")
    for column, kind in zip(axes.T, kinds, strict=True):
        of = [row for row in rows if row.facts["kind"] == kind]
        names = ("norms", "clipped") if "statistics" in kind else ("jbp", "autodiff")
        for ax, unit in zip(column, ("ms", "bytes"), strict=True):
            for name, style in zip(names, ("o-", "s--"), strict=True):
                if of:
                    ax.plot(
                        [r.facts["at"] for r in of], [r[f"{name}, {unit}"].value for r in of], style, ms=4, label=name
                    )
            ax.set(xscale="log", yscale="log")
            ax.legend(frameon=False, fontsize=8)
        column[0].set_title(kind)
        column[1].set_xlabel(kind.split(", ")[-1])
    axes[0, 0].set_ylabel("step, ms")
    axes[1, 0].set_ylabel("temporaries, bytes")
    return figure
