"""Training convolutional nets, jbp's `fit` beside plain JAX and PyTorch, on one core and on two.

Whole epochs of LeNet-5 on images made up in the size of MNIST, and steps of ResNet-20 on 32 × 32. Every contender has a
process of its own, held to so many cores; all start from the same parameters, go through the same examples in the
same order with momentum SGD, and must end with the same training loss before anything is timed. Plain JAX is the epoch
in one scan with optax. PyTorch is eager and compiled, with tensors in memory and channels first or last, whichever is
faster, which is stated. Rounds run the contenders one after the other, each from the start; a contender that has
trained for 20 seconds sits the later rounds out (plain JAX, whose convolutions in a loop take seconds), and is compared
with the rounds that it ran in.

Targets, by the median: LeNet-5 at most 1.2 of PyTorch's time, with 1.0 the goal; ResNet-20 at most 1.5.

    python experiments/bench/suite.py conv_training     writes experiments/results/bench_conv_training.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import spatial
from conv_training_worker import NETS
from harness import Row, Size, timed
from training import Worker

TITLE = "Training convolutional nets, jbp over the others"
CONTENDERS = {"jbp": (), "plain JAX": (), "PyTorch": ("torch",), "PyTorch compiled": ("torch",)}
RATE, MOMENTUM = 0.01, 0.9
PATIENCE = 20.0  # seconds of training, after which a contender runs no further round


@dataclass(frozen=True)
class Cell:
    """A net, its batch, how many examples an epoch has, on how many cores, and at most what of PyTorch's time."""

    net: str
    batch: int
    examples: int
    cores: int
    target: float

    @property
    def name(self) -> str:
        """LeNet-5, batch 64, 25600 examples, 1 core."""
        cores = f"{self.cores} core{'s' * (self.cores > 1)}"
        return f"{self.net}, batch {self.batch}, {self.examples} examples, {cores}"


def cells() -> list[Cell]:
    """Both nets, on one core and on two."""
    counts = [cores for cores in (1, 2) if cores <= len(os.sched_getaffinity(0))]
    return [Cell("LeNet-5", batch, 25_600, cores, 1.2) for cores in counts for batch in (64, 128)] + [
        Cell(net, 64, 256, cores, 1.5) for net in NETS if net != "LeNet-5" for cores in counts
    ]


def prepare(cell: Cell, folder: Path) -> Path:
    """The file that all contenders read: data, initial parameters and the order, as `fit` with seed 0 draws it."""
    case = NETS[cell.net](cell.batch)
    params, _, _ = case.arguments()
    x = jax.random.normal(jax.random.key(2), (cell.examples, *case.shape))
    _, run_key = jax.random.split(jax.random.key(0))
    order = jax.random.permutation(jax.random.split(jax.random.fold_in(run_key, 1))[0], cell.examples)
    arrays: dict[str, Any] = {f"{i}.{name}": value for i, p in enumerate(spatial.leaves(params))
                              for name, value in p.items()}  # fmt: skip
    arrays |= {"x": x, "y": jnp.arange(cell.examples, dtype=jnp.int32) % case.classes, "order": order}
    arrays["facts"] = json.dumps(asdict(cell) | {"rate": RATE, "momentum": MOMENTUM})
    path = folder / "cell.npz"
    np.savez(path, **arrays)
    return path


def measure(cell: Cell, rounds: int, skipped: tuple[str, ...] = ()) -> Row:
    """The figures of one cell."""
    with tempfile.TemporaryDirectory() as folder:
        path = prepare(cell, Path(folder))
        workers: dict[str, Worker] = {}
        first, lacking = {}, {}
        chosen = ",".join(map(str, sorted(os.sched_getaffinity(0))[: cell.cores]))
        try:
            for name, needs in CONTENDERS.items():
                if name in skipped or not harness.has(*needs):
                    lacking[name] = "not run" if name in skipped else "missing"
                    continue
                worker = Worker(name, path, "conv_training_worker.py", chosen)
                try:
                    first[name] = worker.answer()
                    workers[name] = worker
                except RuntimeError as error:
                    print(f"bench: {error}", file=sys.stderr)
                    worker.stop()
                    lacking[name] = "does not run here"
            for name in workers:
                harness.same(first["jbp"]["loss"], first[name]["loss"], f"{cell.name}, {name}", 1e-3)
            seconds: dict[str, list[float]] = {name: [] for name in workers}
            for i in range(rounds):
                for name in [n for n in list(workers)[:: 1 if i % 2 else -1] if sum(seconds[n]) < PATIENCE]:
                    seconds[name].append(workers[name].train()["seconds"])
        finally:
            for worker in workers.values():
                worker.stop()
    took = {name: np.asarray(values) for name, values in seconds.items()}
    steps = cell.examples // cell.batch
    figures = [timed("jbp, ms a step", 1e3 * took["jbp"] / steps), timed("jbp, seconds an epoch", took["jbp"])]
    for name in list(CONTENDERS)[1:]:
        over, target = f"over {name}", cell.target if name == "PyTorch" else None
        if name not in took:
            figures.append(harness.missing(over, lacking[name]))
            continue
        shared = min(len(took["jbp"]), len(took[name]))
        figures.append(timed(over, took["jbp"][:shared] / took[name][:shared], target, reaches=False))
    facts = {
        "rounds": {name: len(values) for name, values in took.items()}, "examples": cell.examples, "cores": cell.cores,
        "loss": {name: found["loss"] for name, found in first.items()},
        "layout": {name: found["layout"] for name, found in first.items() if "layout" in found},
    }  # fmt: skip
    return Row(cell.name, tuple(figures), facts)


def run(size: Size) -> list[Row]:
    """Every cell."""
    if size == "quick":
        return [measure(Cell("LeNet-5", 16, 64, 1, 1.2), 1, skipped=("PyTorch compiled",))]
    return [measure(cell, 9) for cell in harness.progress(cells(), TITLE)]


def notes(rows: list[Row]) -> list[str]:
    """Where the goal of 1.0 is met, and PyTorch's layouts."""
    goal = [row for row in rows if row.name.startswith("LeNet-5") and row["over PyTorch"].value is not None]
    reached = sum((row["over PyTorch"].value or 9) <= 1 for row in goal)
    lines = [f"- LeNet-5 over PyTorch, the goal of ≤ 1: {reached} of {len(goal)}"] if goal else []
    layouts = [row.facts["layout"]["PyTorch"] for row in rows if "PyTorch" in row.facts["layout"]]
    return lines + ([f"- channels with which PyTorch is faster, row by row: {', '.join(layouts)}"] if layouts else [])


def plot(rows: list[Row]) -> Any:
    """The ratios with their ranges."""
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(rows) + 1.4))
    for j, name in enumerate(list(CONTENDERS)[1:]):
        for i, row in enumerate(rows):
            f = row[f"over {name}"]
            if f.value is not None and f.low is not None and f.high is not None:
                span = [[f.value - f.low], [f.high - f.value]]
                axes.errorbar(f.value, i + 0.15 * (j - 1), xerr=span, fmt="o", ms=4, color=f"C{j}")
        axes.plot([], [], "o", color=f"C{j}", ms=4, label=name)
    axes.axvline(1, color="0.5", lw=1)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xscale="log", xlabel="time of an epoch, jbp / other (median, 5 to 95 %)")
    axes.legend(frameon=False, fontsize=9, bbox_to_anchor=(1, 1))
    return figure
