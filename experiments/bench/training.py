"""A whole training run: seconds an epoch, identical work, jbp's `fit` beside the loops people write.

Every contender has a process of its own, starts from the same parameters, goes through the same examples in the same
order with momentum SGD, and must end with the same training loss and test accuracy: only then is anything timed. Rounds
run the contenders one after the other, each from the start. PyTorch: tensors in memory, no loader; Flax NNX and Equinox
with optax as their tutorials write the step; plain JAX with the epoch in one scan; scikit-learn's MLPClassifier given
the order. Each draws an order for every epoch, jbp and plain JAX the common one, the others one that they throw away;
scikit-learn draws none. PyTorch and scikit-learn run with the number of threads that is best for them, which is stated.
On MNIST an epoch is not the whole training part but its first 25,600 examples (10,240 in the largest net); in the
grid, 200 steps (60 in the largest net), a third of that at batch 512. Digits are trained for 60 epochs, as `jbp train`
does at most (20 in the rest of the grid), so that what a run costs once is spread over an ordinary run. The rate is
0.05, below a batch of 32 less in proportion: there a larger one amplifies rounding until the losses differ.

Targets: against each peer the range of the ratio reaches 1.00; by the median, against PyTorch eager 6, 3, 2 and 1.5
times on the four cells, and 4 times scikit-learn on the first.

    python experiments/bench/suite.py training      writes experiments/results/bench_training.json
    python experiments/bench/suite.py training --full    the grid of batch 10, 32, 128, 512, and Fashion-MNIST
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import jax
import matplotlib.pyplot as plt
import numpy as np
from harness import HERE, Row, Size, timed

import jbp

TITLE = "A whole training run, how many times longer the others take"
CONTENDERS = {
    "jbp": (), "plain JAX": (), "PyTorch": ("torch",), "PyTorch compiled": ("torch",), "Flax NNX": ("flax",),
    "Equinox": ("equinox",), "scikit-learn": ("scikit-learn",),
}  # fmt: skip
RATE, MOMENTUM = 0.05, 0.9


@dataclass(frozen=True)
class Cell:
    """One net, data set and batch size."""

    data: str
    widths: tuple[int, ...]
    batch: int
    examples: int
    epochs: int
    target: float = 1.0
    """How many times PyTorch's epoch should take."""

    @property
    def rate(self) -> float:
        """The learning rate; below a batch of 32 in proportion to it, because there a larger one amplifies rounding."""
        return RATE * min(1, self.batch / 32)

    @property
    def name(self) -> str:
        """784-128-10 on mnist, batch 64."""
        return f"{'-'.join(map(str, self.widths))} on {self.data}, batch {self.batch}"


CELLS = (
    Cell("digits", (64, 32, 10), 32, 1408, 60, 6.0),  # as many epochs as `jbp train` takes at most
    Cell("mnist", (784, 128, 10), 64, 25600, 2, 3.0),
    Cell("mnist", (784, 512, 512, 10), 128, 25600, 1, 2.0),
    Cell("mnist", (784, 2048, 2048, 10), 512, 10240, 1, 1.5),
)


def grid() -> list[Cell]:
    """Every batch size on every net and data set; the four cells among them."""
    named = {(cell.data, cell.widths, cell.batch): cell for cell in CELLS}
    cells = [Cell("digits", (64, 32, 10), batch, 1437 // batch * batch, 20) for batch in (10, 32, 128, 512)]
    for data in ("mnist", "fashion-mnist"):
        for widths, steps in (((784, 128, 10), 200), ((784, 512, 512, 10), 200), ((784, 2048, 2048, 10), 60)):
            for batch in (10, 32, 128, 512):
                n = batch * (steps if batch < 512 else steps // 3)
                cells.append(Cell(data, widths, batch, n, 1))
    return [named.pop((cell.data, cell.widths, cell.batch), cell) for cell in cells] + list(named.values())


def prepare(cell: Cell, folder: Path) -> Path:
    """The file that all contenders read: data, initial parameters, and the order of every epoch."""
    x, y = jbp.data.load(cell.data, "train")
    x_test, y_test = jbp.data.load(cell.data, "test")
    n = cell.examples
    net = network(cell.widths)
    params, _ = net.init(jax.random.key(1), (cell.widths[0],))
    _, run_key = jax.random.split(jax.random.key(0))  # as `fit` with seed 0 shuffles
    orders = [jax.random.permutation(jax.random.split(jax.random.fold_in(run_key, epoch))[0], n)
              for epoch in range(1, cell.epochs + 1)]  # fmt: skip
    arrays = {f"{name}{i}": p[name] for i, p in enumerate(p for p in params if p != ()) for name in ("weight", "bias")}
    facts = asdict(cell) | {"rate": cell.rate, "momentum": MOMENTUM}
    path = folder / "cell.npz"
    np.savez(path, x=np.reshape(x[:n], (n, -1)).astype(np.float32), y=np.asarray(y[:n], np.int32),
             x_test=np.reshape(x_test, (len(x_test), -1)).astype(np.float32), y_test=np.asarray(y_test, np.int32),
             orders=np.asarray(orders), facts=json.dumps(facts), **arrays)  # fmt: skip
    return path


def network(widths: tuple[int, ...]) -> jbp.Layer:
    """The net in jbp."""
    return jbp.serial(*[part for width in widths[1:] for part in (jbp.Dense(width), jbp.relu)][:-1])


class Worker:
    """A contender in a process of its own; it waits, silent, until it is told to train."""

    def __init__(self, name: str, path: Path, script: str = "training_worker.py", *more: str):
        self.name = name
        command = [sys.executable, str(HERE / script), name, str(path), *more]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=dict(os.environ) | {"PYTHONPATH": str(harness.ROOT)},
        )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        """What it says next."""
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line.startswith("{"):
            raise RuntimeError(f"{self.name}: {line}{self.process.stderr.read()[-1500:]}")
        return json.loads(line)

    def train(self) -> dict[str, Any]:
        """One run from the start."""
        assert self.process.stdin is not None
        self.process.stdin.write("train\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def measure(cell: Cell, rounds: int, skipped: tuple[str, ...] = (), strict: bool = True) -> Row:
    """The figures of one cell; a contender with another loss ends it or, if not `strict`, is left out and named so."""
    with tempfile.TemporaryDirectory() as folder:
        path = prepare(cell, Path(folder))
        workers, first, lacking = {}, {}, {}
        try:
            for name, needs in CONTENDERS.items():
                if name in skipped or not harness.has(*needs):
                    lacking[name] = "not run" if name in skipped else "missing"
                    continue
                worker = Worker(name, path)
                try:
                    first[name] = worker.answer()
                    workers[name] = worker
                except RuntimeError as error:
                    print(f"bench: {error}", file=sys.stderr)
                    worker.stop()
                    lacking[name] = "does not run here"
            for name in list(workers):
                try:
                    same(cell, first["jbp"], first[name], name, 1e-3 if strict else 1e-2)
                except AssertionError as error:
                    if strict:
                        raise
                    print(f"bench: {error}", file=sys.stderr)
                    workers.pop(name).stop()
                    lacking[name] = "not the same loss"
            seconds: dict[str, list[float]] = {name: [] for name in workers}
            for i in range(rounds):
                for name in list(workers)[:: 1 if i % 2 else -1]:
                    seconds[name].append(workers[name].train()["seconds"] / cell.epochs)
        finally:
            for worker in workers.values():
                worker.stop()
    figures = [timed("jbp, seconds an epoch", seconds["jbp"])]
    for name in list(CONTENDERS)[1:]:
        wanted = 1.0
        if name == "PyTorch":
            wanted = cell.target
        elif name == "scikit-learn" and cell.widths == (64, 32, 10) and cell.batch == 32:
            wanted = 4.0
        if name in seconds:
            ratio = np.asarray(seconds[name]) / np.asarray(seconds["jbp"])
            figures.append(timed(name, ratio, wanted, "higher", reaches=wanted == 1))
        else:
            figures.append(harness.missing(name, lacking[name]))
    facts = {
        "rounds": rounds, "epochs": cell.epochs, "examples": cell.examples,
        "accuracy": {name: found["accuracy"] for name, found in first.items()},
        "loss": {name: found["loss"] for name, found in first.items()},
        "threads": {name: found["threads"] for name, found in first.items() if "threads" in found},
    }  # fmt: skip
    return Row(cell.name, tuple(figures), facts)


def same(cell: Cell, ours: dict[str, Any], theirs: dict[str, Any], name: str, rtol: float) -> None:
    """Refuse a contender that did other work: losses agree to `rtol`, accuracies to half a point and three examples.

    The losses are those of the last epoch, after hundreds of steps, each of which can amplify rounding.
    """
    harness.same(ours["loss"], theirs["loss"], f"{cell.name}, {name}", rtol)
    assert abs(ours["accuracy"] - theirs["accuracy"]) < 0.005 + 3 / 360, (cell.name, name, ours, theirs)


def run(size: Size) -> list[Row]:
    """The four cells, or the grid."""
    if size == "quick":
        return [measure(Cell("digits", (64, 32, 10), 32, 320, 2), 1, skipped=("PyTorch compiled",))]
    cells = list(CELLS) if size == "bench" else grid()
    return [measure(cell, 5, strict=cell in CELLS) for cell in harness.progress(cells, TITLE)]


def notes(rows: list[Row]) -> list[str]:
    """Where PyTorch is not slower at all, and with how many threads it and scikit-learn were fastest."""
    higher = [row for row in rows if row["PyTorch"].target != 1 and (row["PyTorch"].high or 2) < 1]
    lines = [
        f"- PyTorch is faster by its whole range: {row.name}: {row['PyTorch']}".removesuffix(" !") for row in higher
    ]
    for name in ("PyTorch", "PyTorch compiled", "scikit-learn"):
        best = [row.facts["threads"][name] for row in rows if name in row.facts["threads"]]
        if best:
            lines.append(f"- threads with which {name} is fastest, row by row: {', '.join(map(str, best))}")
    return lines


def plot(rows: list[Row]) -> Any:
    """The ratios with their ranges."""
    figure, axes = plt.subplots(figsize=(8, 0.75 * len(rows) + 1.4))
    names = list(CONTENDERS)[1:]
    for j, name in enumerate(names):
        for i, row in enumerate(rows):
            f, at = row[name], i + 0.12 * (j - 2.5)
            if f.value is not None and f.low is not None and f.high is not None:
                axes.errorbar(f.value, at, xerr=[[f.value - f.low], [f.high - f.value]], fmt="o", ms=4, color=f"C{j}")
        axes.plot([], [], "o", color=f"C{j}", ms=4, label=name)
    axes.axvline(1, color="0.5", lw=1)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xscale="log", xlabel="time of an epoch, other / jbp (median, 5 to 95 %)")
    axes.legend(frameon=False, fontsize=9, bbox_to_anchor=(1, 1))
    return figure
