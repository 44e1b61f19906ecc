"""Memory of a training step: the whole step with its update, arguments donated, jbp beside autodiff with optax.

Unrolled, XLA itself overlaps the update with the backward pass, for both alike: the whole gradient never exists. Under
`repeat` autodiff holds the gradient of the whole stack; `jbp.fit(in_place=True)` updates each layer inside the backward
scan. Targets there: temporaries at most activations + two layers + 10 %, and faster than autodiff with optax by the
median; elsewhere bytes at most 1.005 of autodiff's, and time whose range reaches 1.00. A layer counts with its velocity
if there is one, and the activations of a residual block with one byte for the sign of each relu. Three steps give the
same parameters both ways: for SGD to the bit against jbp's own gradient with the same optimiser.

    python experiments/bench/suite.py memory        writes experiments/results/bench_memory.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from harness import Row, Size, counted, timed
from models import Case, mlp, residual_stack, stack

import jbp
from jbp.train.in_place import backward_update

TITLE = "Memory and time of a training step"
RATE = 0.01


def in_place(case: Case, optimizer: Any) -> Callable[..., Any]:
    """Update inside the backward pass, as `jbp.fit(in_place=True)` does."""

    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        output, saved = jbp.forward(case.net, params, x)
        delta = jax.vmap(case.loss.delta)(output, y) / len(x)
        _, params, state = backward_update(case.net, params, state, saved, delta, optimizer)
        return jax.vmap(case.loss.value)(output, y).mean(), params, state

    return step


def usual(gradient: Callable[..., Any], optimizer: Any) -> Callable[..., Any]:
    """The gradient, then the optimiser."""

    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        value, grads = gradient(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return value, optax.apply_updates(params, updates), state

    return step


def three_steps(program: Any, params: Any, state: Any, x: Any, y: Any) -> tuple[float, Any]:
    """The loss of the third step and the parameters after it."""
    params, state = jax.tree.map(np.array, (params, state))
    value = np.nan
    for _ in range(3):
        value, params, state = program(params, state, x, y)
    return float(value), params


def runner(program: Any, params: Any, state: Any, x: Any, y: Any) -> Callable[[], Any]:
    """One step from where the last one ended: donated arguments cannot be given twice."""
    held = [*jax.tree.map(lambda a: jax.numpy.array(a), (params, state))]

    def once() -> Any:
        value, *held[:] = program(*held, x, y)
        return value

    return once


def measure(case: Case, momentum: float, rounds: int) -> Row:
    """The figures of one net and optimiser."""
    ours = jbp.optim.sgd(RATE, momentum=momentum)
    theirs = optax.sgd(RATE, momentum=momentum or None)
    params, x, y = case.arguments()
    ways = {
        "in place": (in_place(case, ours), ours.init(params)),
        "jbp": (usual(case.ours(), ours), ours.init(params)),
        "autodiff": (usual(jax.value_and_grad(case.plain), theirs), theirs.init(params)),
    }
    built = {way: harness.compiled(step, params, state, x, y, donate=(0, 1)) for way, (step, state) in ways.items()}
    ends = {way: three_steps(built[way], params, ways[way][1], x, y) for way in ways}
    harness.same(ends["in place"][0], ends["autodiff"][0], case.name)
    apart = [float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in
             zip(*(jax.tree.leaves(ends[way][1]) for way in ("in place", "jbp")), strict=True)]  # fmt: skip
    times = harness.in_turn({way: runner(built[way], params, ways[way][1], x, y) for way in ways}, rounds)
    size = {way: harness.temporaries(built[way]) for way in ways}
    width, kinds = case.widths[0], 2 if momentum else 1
    layer = 4 * kinds * (width * width + width)
    depth = case.depth or len(case.widths) - 2
    activations = 4 * depth * case.batch * width
    if "residual" in case.name:
        activations += depth * case.batch * width  # one byte for the sign of each relu
    allowed = 1.1 * (activations + 2 * layer)
    figures = [
        counted("in place, temporary MB", size["in place"] / 1e6, allowed / 1e6 if case.depth else None),
        counted("jbp, temporary MB", size["jbp"] / 1e6),
        counted("autodiff + optax, temporary MB", size["autodiff"] / 1e6, better=None),
        counted("jbp over autodiff, bytes", size["jbp"] / size["autodiff"], 1.005),
        counted("activations + two layers, MB", (activations + 2 * layer) / 1e6, better=None),
        timed(
            "time in place over autodiff + optax",
            times["in place"] / times["autodiff"],
            1.0 if case.depth else None,
            reaches=False,
        ),
        timed("time of jbp over autodiff + optax", times["jbp"] / times["autodiff"], 1.0),
        counted("largest difference of a parameter, in place − jbp", max(apart), None if momentum else 0.0),
    ]
    return Row(f"{case.name}, {f'momentum {momentum:g}' if momentum else 'SGD'}", tuple(figures), {"rounds": rounds})


def run(size: Size) -> list[Row]:
    """Unrolled, `repeat` and residual `repeat`, with and without momentum."""
    if size == "quick":
        return [measure(stack(4, 64, 16), 0.0, 3)]
    cases = [
        (mlp((1024,) * 25 + (10,), 64), 0.0),
        (stack(48, 512, 64), 0.0),
        (stack(48, 512, 64), 0.9),
        (residual_stack(48, 512, 64), 0.0),
    ]
    return [measure(case, momentum, 30) for case, momentum in harness.progress(cases, TITLE)]


def plot(rows: list[Row]) -> Any:
    """Temporaries, side by side."""
    figure, axes = plt.subplots(figsize=(8, 0.7 * len(rows) + 1.2))
    names = ("in place, temporary MB", "jbp, temporary MB", "autodiff + optax, temporary MB")
    for j, name in enumerate(names):
        axes.barh([i + 0.25 * (j - 1) for i in range(len(rows))], [row[name].value or 0 for row in rows], 0.22,
                  label=name.removesuffix(", temporary MB"))  # fmt: skip
    for i, row in enumerate(rows):
        at = row["activations + two layers, MB"].value or 0.0
        axes.plot([at, at], [i - 0.4, i + 0.4], "k:", lw=1.5, label=None if i else "activations + two layers")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("temporaries of one training step, MB")
    axes.legend(frameon=False, fontsize=9)
    return figure
