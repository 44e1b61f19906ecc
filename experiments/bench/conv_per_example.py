"""Convolutional nets: per-example norms, norms with the gradient, and clipping, jbp beside what else has them.

Beside `jax.vmap(jax.grad)`, results compared first: FLOPs (of products, in the program, loops times their rounds) and
bytes of temporaries over those of one plain gradient, counted with XLA's own convolutions, and time, in turn, with the
routes of a CPU. Then each in its own framework's plain gradients: BackPACK and Opacus (ghost clipping, and its hooks'
per-sample gradients) in PyTorch, at its best number of threads, and twenty lines of user code on JAX's `with_logs` (JAX
0.12 or later).

Targets: FLOPs at most the smaller of 1.05 times what the multiply-adds allow and what vmap(grad) takes; bytes at most
the smaller of 1.4 times the plain gradient's (2.4 for wide late layers) and vmap(grad)'s; time at most vmap(grad)'s,
the range reaching it.

    python experiments/bench/suite.py conv_per_example   writes experiments/results/bench_conv_per_example.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import per_example
import spatial
from counting import product_flops
from harness import Figure, Row, Size, counted, timed

import jbp
from jbp import stats
from jbp.pairs import routes

TITLE = "Per-example quantities of convolutional nets"
CLIP = 1.0
QUANTITIES = ("norms", "both", "clipped")
WORDS = {"norms": "norms", "both": "norms and gradient", "clipped": "clipped"}
FLOORS = {"LeNet-5": (0.95, 1.0), "DP-CNN": (0.96, 1.0), "ResNet-20": (1.0, 1.0)}
"""What the multiply-adds allow: norms and clipping, over a plain gradient. Elsewhere vmap(grad) is the bound."""
Read = dict[str, Callable[..., Any]]


def of_jbp(case: Any) -> Read:
    """From the pairs of one backward pass."""

    def pairs(*args: Any) -> Any:
        return jbp.value_and_pairs(case.net, case.loss, *args)[1]

    def both(*args: Any) -> Any:
        found = pairs(*args)
        return stats.norms(found), jax.tree.map(lambda pair: pair.total(), found, is_leaf=jbp.pairs.is_pair)

    return {
        "norms": lambda *args: stats.norms(pairs(*args)),
        "both": both,
        "clipped": lambda *args: stats.clipped(pairs(*args), CLIP),
    }


def of_vmap(case: Any) -> Read:
    """From all per-example gradients."""
    each = jax.vmap(jax.grad(lambda p, x, y: case.plain(p, x[None], y[None])), (None, 0, 0))

    def norms(*args: Any) -> Any:
        return jnp.sqrt(per_example.squares(each(*args)))

    def both(*args: Any) -> Any:
        grads = each(*args)
        return jnp.sqrt(per_example.squares(grads)), jax.tree.map(lambda g: g.sum(0), grads)

    def clipped(*args: Any) -> Any:
        grads = each(*args)
        c = jnp.minimum(1, CLIP / jnp.sqrt(per_example.squares(grads)))
        return jax.tree.map(lambda g: jnp.tensordot(c, g, 1), grads)

    return {"norms": norms, "both": both, "clipped": clipped}


def measure(case: Any, rounds: int) -> list[Row]:
    """The figures of one net, a row for each quantity."""
    args, ours, theirs = case.arguments(), of_jbp(case), of_vmap(case)
    plain = case.ours()
    base = harness.compiled(plain, *args)
    with routes.plain():
        work, bare = product_flops(plain, *args), harness.temporaries(harness.compiled(plain, *args))
    floors = next((f for name, f in FLOORS.items() if case.name.startswith(name)), None)
    fattest = 2.4 if case.name.startswith("wide") else 1.4
    rows = []
    for what in QUANTITIES:
        reads = {"jbp": ours[what], "vmap(grad)": theirs[what]}
        built = {way: harness.compiled(read, *args) for way, read in reads.items()}
        for a, b in zip(*(jax.tree.leaves(built[way](*args)) for way in built), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * max(float(jnp.abs(b).max()), 1e-9), err_msg=what)
        runs = {way: (lambda p=program: p(*args)) for way, program in built.items()}
        times = harness.in_turn({"plain": lambda: base(*args)} | runs, rounds)
        with routes.plain():
            flops = {way: product_flops(read, *args) / work for way, read in reads.items()}
            fat = {way: harness.temporaries(harness.compiled(read, *args)) / bare for way, read in reads.items()}
        most = [flops["vmap(grad)"]]
        if floors is not None and what != "both":
            most.append(1.05 * floors[what == "clipped"])
        judged = what != "both"
        figures = [
            counted("FLOPs, in plain gradients", flops["jbp"], min(most) if judged else None),
            counted("vmap(grad), FLOPs", flops["vmap(grad)"], better=None),
            counted("bytes, in plain gradients", fat["jbp"], min(fattest, fat["vmap(grad)"]) if judged else None),
            counted("vmap(grad), bytes", fat["vmap(grad)"], better=None),
            timed("time, in plain gradients", times["jbp"] / times["plain"]),
            timed("vmap(grad) over jbp, time", times["vmap(grad)"] / times["jbp"], 1.0 if judged else None, "higher"),
            timed("jbp, ms", 1e3 * times["jbp"]),
        ]
        rows.append(Row(f"{case.name}: {WORDS[what]}", tuple(figures), {"rounds": rounds, "batch": case.batch}))
    return rows


def peers(name: str, batch: int, rounds: int) -> list[Row]:
    """BackPACK's, Opacus's and the twenty lines' in multiples of their own framework's plain gradient."""
    theirs = per_example.said_by("per_example_torch.py", batch, rounds, name, ",".join(QUANTITIES))
    logs = per_example.said_by_newer("per_example_logs.py", name, batch, rounds)
    rows = []
    for what in QUANTITIES:
        figures: list[Figure] = []
        for library in ("BackPACK", "Opacus", "Opacus hooks"):
            values, label = theirs.get(f"{library} {what}"), f"{library}, in PyTorch's"
            figures.append(timed(label, values) if values else harness.missing(label))
        figures += per_example.figures_of_logs(logs, what, "flops")
        facts = {"rounds": rounds, "threads": theirs.get("threads"), "jax": logs.get("jax")}
        rows.append(
            Row(f"{name}, batch {batch}: {WORDS[what]}, each in its own plain gradients", tuple(figures), facts)
        )
    return rows


def run(size: Size) -> list[Row]:
    """Each net, then the peers."""
    if size == "quick":
        return measure(spatial.private(8), 3)
    nets = [spatial.lenet(128), spatial.private(64), spatial.private(256), spatial.resnet20(32, "none"),
            spatial.wide(64)]  # fmt: skip
    rows = [row for case in harness.progress(nets, TITLE) for row in measure(case, 30)]
    return rows + [row for name, batch in (("LeNet-5", 128), ("DP-CNN", 64)) for row in peers(name, batch, 30)]


def plot(rows: list[Row]) -> Any:
    """Time in plain gradients, jbp's and vmap(grad)'s."""
    rows = [row for row in rows if "each in its own" not in row.name]
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.3))
    for i, row in enumerate(rows):
        f = row["vmap(grad) over jbp, time"]
        if f.value is not None and f.low is not None and f.high is not None:
            axes.errorbar(f.value, i, xerr=[[f.value - f.low], [f.high - f.value]], fmt="o", color="C0")
    axes.axvline(1, color="0.5", lw=1)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="time, vmap(grad) / jbp (median, 5 to 95 %)")
    return figure
