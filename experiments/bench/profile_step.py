"""Where a training step's time goes, kernel by kernel as XLA records it: jbp's `fit` beside plain JAX's scanned epoch.

The two programs are compared on the cells of the training section, an epoch at a time with the making of its order,
which `fit` does while the epoch before runs. Kernels are summed by kind; their sum may differ
from the step's time, for some run at once, the loop itself costs something, and recording a kernel costs about a
microsecond, which shows in the smallest net. Beside them the step's bare matrix products by XLA and by PyTorch, as
programs of their own. Then what compiler options were tried, and what each moved.

    python experiments/bench/suite.py profile_step  writes experiments/results/bench_profile_step.json

The loops of both programs as XLA compiles them, side by side: ../results/bench_profile_step_hlo.txt.
"""

from __future__ import annotations

import collections
import gzip
import itertools
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import common
import harness
import jax
import jax.numpy as jnp
import limit
import matplotlib.pyplot as plt
import numpy as np
import optax
import training
import training_worker
from harness import Figure, Row, Size, timed

import jbp
from jbp.step import started
from jbp.train.batches import OnDevice, Resident, order_of
from jbp.train.program import ledger, steps_function

TITLE = "Where a training step's time goes"
KINDS = ("products", "update", "picking the batch", "copies", "the rest")
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "products without YNNPACK": {"xla_cpu_experimental_ynn_fusion_type": ""},
    "region analysis for copies": {"xla_cpu_copy_insertion_use_region_analysis": True},
    "one thread in Eigen": {"xla_cpu_multi_thread_eigen": False},
}
HLO = common.RESULTS / "bench_profile_step_hlo.txt"


class Ready(NamedTuple):
    """A program and what makes new arguments for it, because it takes over the old ones."""

    run: Any
    arguments: Callable[[], tuple[Any, ...]]
    order: Callable[[], tuple[Any, ...]] = tuple
    """Makes the last arguments, of which the time counts: the order, where the program does not make it."""

    def text(self) -> str:
        """The program as compiled."""
        return self.run.lower(*self.arguments(), *self.order()).compile().as_text()


def jbps(cell: Any, options: dict[str, Any]) -> Ready:
    """An epoch as `jbp.fit` runs it, compiled with these options."""
    widths = [cell.params[0][0].shape[0], *(w.shape[1] for w, _ in cell.params)]
    net, optimizer = training.network(tuple(widths)), jbp.optim.sgd(cell.rate, momentum=cell.momentum)
    x, y, n = jnp.asarray(cell.x), jnp.asarray(cell.y), len(cell.x)
    layers: list[Any] = [()] * (2 * len(cell.params) - 1)
    layers[::2] = [{"weight": jnp.asarray(w), "bias": jnp.asarray(b)} for w, b in cell.params]
    problem = jbp.Problem(net, jbp.losses.softmax_cross_entropy, optimizer)
    reader, steps, key = Resident("shuffle", cell.batch, n), n // cell.batch, jax.random.key(0)
    run = steps_function(problem, reader)

    def arguments() -> tuple[Any, ...]:
        state = started(optimizer, tuple(layers), (), key)
        return state, ledger(steps, 0), x, y, 1, 0, steps

    def order() -> tuple[Any, ...]:
        return (order_of(key, 1, reader)(),)

    def take(state: Any, book: Any, x: Any, y: Any, epoch: Any, first: Any, last: Any, order: Any) -> Any:
        return run(state, book, OnDevice(x, y, None, order), epoch, first, last)

    return Ready(jax.jit(take, donate_argnums=(0, 1), compiler_options=options or None), arguments, order)


def plain(cell: Any) -> Ready:
    """The same epoch in plain JAX."""
    optimizer = optax.sgd(cell.rate, momentum=cell.momentum)
    epoch = training_worker.plain_epoch(jnp.asarray(cell.x), jnp.asarray(cell.y), cell.batch, optimizer)

    def arguments() -> tuple[Any, ...]:
        params = [(jnp.array(w), jnp.array(b)) for w, b in cell.params]
        return params, optimizer.init(params), jax.random.key(0), 1

    return Ready(epoch, arguments)


def computations(text: str) -> dict[str, str]:
    """The computations of a compiled program by name."""
    parts = (part.strip() for part in text.split("\n\n"))
    return {m[1]: part for part in parts if (m := re.match(r"(?:ENTRY )?%?([\w.\-]+) ", part))}


def loop(text: str) -> list[str]:
    """The instructions of the training loop, the longest one of the program."""
    known = computations(text)
    bodies = (known[name] for name in set(re.findall(r"body=%?([\w.\-]+)", text)))
    return [line.strip() for line in max(bodies, key=len).splitlines()[1:-1]]


def kinds(text: str, shapes: set[str]) -> dict[str, str]:
    """Each instruction of the loop and its kind; `shapes` are those of the parameters."""
    known, found = computations(text), {}
    for line in loop(text):
        name, shape, operation = re.match(r"(?:ROOT )?%?([\w.\-]+) = \(?(\w+\[[\d,]*\])?.*? ([\w\-]+)\(", line).groups()  # type: ignore[union-attr]
        called = re.search(r"calls=%?([\w.\-]+)", line)
        inside = known[called[1]] if called else ""
        if operation == "dot" or " dot(" in inside:
            kind = "products"
        elif operation == "copy":
            kind = "copies"
        elif " gather(" in inside or operation == "gather":
            kind = "picking the batch"
        else:
            kind = "update" if shape in shapes else "the rest"
        found[name] = kind
    return found


def profile(ready: Ready, steps: int, shapes: set[str]) -> dict[str, float]:
    """Microseconds a step of each kind of kernel, as XLA records them."""
    of = kinds(ready.text(), shapes)
    jax.block_until_ready(ready.run(*ready.arguments(), *ready.order()))
    args = jax.block_until_ready((*ready.arguments(), *ready.order()))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(ready.run(*args))
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spent: dict[str, float] = collections.defaultdict(float)
    for event in events:
        if event.get("ph") == "X" and event["name"] in of:
            spent[of[event["name"]]] += event["dur"] / steps
    return spent


def products(cell: Any) -> dict[str, Callable[[], Any]]:
    """A step's bare products by XLA and, if it is here, by PyTorch."""
    delta = np.random.default_rng(0).standard_normal((cell.batch, cell.params[-1][0].shape[1]), np.float32)
    operands = [w for w, _ in cell.params], cell.x[: cell.batch], delta
    arrays = jax.tree.map(jnp.asarray, operands)
    by_xla = harness.compiled(limit.products, *arrays)
    found: dict[str, Callable[[], Any]] = {"XLA": lambda: by_xla(*arrays)}
    if harness.has("torch"):
        import torch  # type: ignore[import-not-found]

        weights, x, out = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), operands)
        found["PyTorch"] = lambda: limit.products(weights, x, out) and None
    return found


def side_by_side(name: str, ours: str, theirs: str) -> str:
    """The two loops, one beside the other, without what says where a line came from."""

    def short(text: str) -> list[str]:
        lines = (re.sub(r", (metadata|backend_config|calls|to_apply)=.*", "", line) for line in loop(text))
        lines = (re.sub(r"\{[\d,:T()]*\}|/\*.*?\*/|%", "", line) for line in lines)
        return [line[:110] for line in lines if " get-tuple-element(" not in line and " parameter(" not in line]

    left, right = short(ours), short(theirs)
    rows = itertools.zip_longest([f"jbp.fit, {len(left)} instructions", "", *left],
                                 [f"plain JAX, {len(right)} instructions", "", *right], fillvalue="")  # fmt: skip
    return f"{name}\n\n" + "\n".join(f"{a:<112}| {b}".rstrip() for a, b in rows) + "\n"


def measure(cell: training.Cell, rounds: int) -> tuple[Row, str]:
    """The figures of one cell, and the loops of both programs."""
    with tempfile.TemporaryDirectory() as folder:
        data = training_worker.read(training.prepare(cell, Path(folder)))
    steps = len(data.x) // cell.batch
    shapes = {f"f32[{','.join(map(str, a.shape))}]" for layer in data.params for a in layer}
    ways = {"jbp": jbps(data, {}), "plain JAX": plain(data)}
    spent = {way: profile(ready, steps, shapes) for way, ready in ways.items()}
    tried = {name: jbps(data, options) for name, options in OPTIONS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("plain JAX", *tried)}
    for i in range(-1, rounds):  # one more, in which they compile
        for name in list(seconds)[:: 1 if i % 2 else -1]:
            ready = tried.get(name, ways["plain JAX"])
            args = jax.block_until_ready(ready.arguments())
            began = time.perf_counter()
            jax.block_until_ready(ready.run(*args, *ready.order()))
            seconds[name].append((time.perf_counter() - began) / steps)
    took = {name: np.asarray(values[1:]) for name, values in seconds.items()}
    bare = harness.in_turn(products(data), max(rounds, 5))
    figures = [timed("jbp, µs a step", 1e6 * took["as it is"]),
               timed("plain JAX, over jbp", took["plain JAX"] / took["as it is"])]  # fmt: skip
    figures += [Figure(f"{way}: {kind}, µs", spent[way].get(kind, 0.0)) for kind in KINDS for way in ways]
    for library in ("XLA", "PyTorch"):
        name = f"bare products by {library}, µs"
        figures.append(timed(name, 1e6 * bare[library]) if library in bare else harness.missing(name))
    figures += [timed(f"{name}, of jbp's time", took[name] / took["as it is"]) for name in list(OPTIONS)[1:]]
    text = side_by_side(cell.name, ways["jbp"].text(), ways["plain JAX"].text())
    return Row(cell.name, tuple(figures), {"rounds": rounds, "steps": steps}), text


def run(size: Size) -> list[Row]:
    """The four cells of the training section."""
    if size == "quick":
        return [measure(training.Cell("digits", (64, 32, 10), 32, 320, 1), 2)[0]]
    found = [measure(cell, 15) for cell in harness.progress(training.CELLS, TITLE)]
    common.save(HLO, "\n\n".join(text for _, text in found))
    return [row for row, _ in found]


def plot(rows: list[Row]) -> Any:
    """The kinds of kernels, stacked, in shares of jbp's step."""
    figure, axes = plt.subplots(figsize=(8, 0.8 * len(rows) + 1.4))
    labels = []
    for row in rows:
        for way in ("jbp", "plain JAX"):
            left, whole = 0.0, row["jbp, µs a step"].value or 1.0
            for j, kind in enumerate(KINDS):
                share = (row[f"{way}: {kind}, µs"].value or 0.0) / whole
                axes.barh(len(labels), share, left=left, color=f"C{j}", label=None if labels else kind)
                left += share
            labels.append(f"{row.name}: {way}")
    axes.axvline(1, color="0.5", lw=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("time of the kernels, in jbp's steps")
    axes.legend(frameon=False, fontsize=9, bbox_to_anchor=(1, 1))
    return figure
