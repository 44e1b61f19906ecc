"""Convolutional nets: one gradient step, the time to it and a step inside `fit`'s loop, jbp over autodiff.

The other is `jax.jit(jax.value_and_grad)` of the fastest plain JAX forward pass we can write on the same parameters;
where pools do not overlap, of both usual forms, `lax.reduce_window` and a reshape. Losses are compared first. Inside
the loop: the epoch that `jbp.fit` compiles beside an epoch of plain JAX in one `lax.scan`, with optax's momentum SGD
and the same order. There XLA's CPU compiler makes convolutions whose dimension numbers are as autodiff writes them 30
to 120 times slower, under `repeat` in every program; the row of the repeated residual convolutions is that trap. With
batch normalisation jbp keeps the running moments in the loop, which the plain epoch leaves out.

Targets: FLOPs and bytes of temporaries at most 1.005 of autodiff's with the plain convolutions, as on an accelerator
(under `repeat` FLOPs of products, counted in the program times the length of the scan); on this machine's CPU some
convolutions go another route, whose figures stand beside them; the 5 to 95 % range of the time ratio reaches 1.00 or
lower, alone and in the loop; trace + lower at most autodiff's.

    python experiments/bench/suite.py conv         writes experiments/results/bench_conv.json
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import spatial
from counting import product_flops
from first_step import stages
from harness import Row, Size, counted, timed
from jax import lax
from spatial import NETS, Spatial
from step import ratios

import jbp
from jbp.pairs.routes import plain
from jbp.step import started
from jbp.train.batches import OnDevice, Resident, order_of
from jbp.train.program import ledger, steps_function

TITLE = "Convolutional nets, jbp over autodiff"
LIMIT = 1.005
RATE, MOMENTUM = 0.01, 0.9
IN_LOOP = 2
"""Steps of the loop."""
PATIENCE = 60.0
"""Seconds that the rounds of one comparison may take: in the loop autodiff may need as long for one step."""

Epoch = Callable[[], Any]
"""Runs an epoch from the start; the mean loss."""


def epoch_of_jbp(case: Spatial, steps: int) -> Epoch:
    """As `jbp.fit` runs it, with momentum SGD."""
    params, x, y = data(case, steps)
    optimizer, reader = jbp.optim.sgd(RATE, momentum=MOMENTUM), Resident("shuffle", case.batch, len(x))
    run = jax.jit(steps_function(jbp.Problem(case.net, case.loss, optimizer), reader))
    state, book, key = started(optimizer, params, (), jax.random.key(0)), ledger(steps, 0), jax.random.key(0)
    rows = OnDevice(x, y, None, order_of(key, 1, reader)())
    return lambda: run(state, book, rows, 1, 0, steps)[1].losses.mean()


def epoch_of_plain_jax(case: Spatial, steps: int) -> Epoch:
    """In one scan, with optax."""
    params, x, y = data(case, steps)
    optimizer, reader = optax.sgd(RATE, momentum=MOMENTUM), Resident("shuffle", case.batch, len(x))
    order = jnp.asarray(order_of(jax.random.key(0), 1, reader)()).reshape(steps, case.batch)

    @jax.jit
    def epoch(params: Any, state: Any, x: Any, y: Any, order: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(case.plain)(params, x[rows], y[rows])
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return lax.scan(step, (params, state), order)[1].mean()

    state = optimizer.init(params)
    return lambda: epoch(params, state, x, y, order)


def data(case: Spatial, steps: int) -> tuple[Any, Any, Any]:
    """Parameters, and the examples of so many steps."""
    params, _, _ = case.arguments()
    n = steps * case.batch
    return params, jax.random.normal(jax.random.key(2), (n, *case.shape)), jnp.arange(n) % case.classes


def patient(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """`harness.in_turn` with as many of these rounds as there is patience for; one, if a round takes all of it."""
    took = {}
    for way, run in contenders.items():
        jax.block_until_ready(run())
        began = time.perf_counter()
        jax.block_until_ready(run())
        took[way] = time.perf_counter() - began
    affordable = int(PATIENCE / sum(took.values()))
    if not affordable:
        return {way: np.asarray([seconds]) for way, seconds in took.items()}
    return harness.in_turn(contenders, min(rounds, affordable), warm=1)


def work(case: Spatial, program: Any, autodiff: bool = False) -> float:
    """FLOPs as XLA counts them; under `repeat`, where it counts a loop's body once, those of the products."""
    if not case.depth:
        return harness.flops(program)
    return float(product_flops(jax.value_and_grad(case.plain) if autodiff else case.ours(), *case.arguments()))


def measure(case: Spatial, rounds: int, lowerings: int) -> Row:
    """The figures of one net."""
    args = case.arguments()
    ways: dict[str, Any] = {"jbp": case.ours(), "autodiff": jax.value_and_grad(case.plain)}
    built = {way: harness.compiled(run, *args) for way, run in ways.items()}
    values = {way: float(program(*args)[0]) for way, program in built.items()}
    harness.same(values["jbp"], values["autodiff"], case.name)
    times = patient({way: (lambda p=program: p(*args)) for way, program in built.items()}, rounds)
    loops = {"jbp": epoch_of_jbp(case, IN_LOOP), "autodiff": epoch_of_plain_jax(case, IN_LOOP)}
    harness.same(float(loops["jbp"]()), float(loops["autodiff"]()), f"{case.name}, in a loop", 1e-3)
    inside = patient(loops, rounds)
    early = {way: found["trace"] + found["lower"] for way, found in stages(case, lowerings, compiles=False).items()}
    routed, their = work(case, built["jbp"]), work(case, built["autodiff"], autodiff=True)
    with plain():
        bare = harness.compiled(case.ours(), *args)
        ours = work(case, bare)
    fat = max(harness.temporaries(built["autodiff"]), 1)
    figures = [
        counted("FLOPs", ours / their, LIMIT),
        counted("FLOPs with CPU routes", routed / their, better=None),
        counted("temporary bytes", harness.temporaries(bare) / fat, LIMIT),
        counted("temporary bytes with CPU routes", harness.temporaries(built["jbp"]) / fat, better=None),
        counted("instructions", harness.program_size(built["jbp"]) / harness.program_size(built["autodiff"])),
        timed("time", times["jbp"] / times["autodiff"], 1.0),
        timed("time in the loop", inside["jbp"] / inside["autodiff"], 1.0),
        timed("trace + lower", early["jbp"] / early["autodiff"], 1.0, reaches=False),
        timed("jbp, ms", 1e3 * times["jbp"]),
        timed("autodiff, ms", 1e3 * times["autodiff"]),
        timed("jbp, ms a step in the loop", 1e3 * inside["jbp"] / IN_LOOP),
        timed("autodiff, ms a step in the loop", 1e3 * inside["autodiff"] / IN_LOOP),
        counted("jbp, temporary bytes", harness.temporaries(built["jbp"])),
    ]
    facts = {
        "rounds": len(times["jbp"]), "rounds in the loop": len(inside["jbp"]), "batch": case.batch,
        "parameters": spatial.parameters(case), "multiply-adds": spatial.multiply_adds(case),
    }  # fmt: skip
    return Row(case.name, tuple(figures), facts)


def run(size: Size) -> list[Row]:
    """Every net; in the quick form LeNet-5, a short `repeat` and a small net with batch normalisation."""
    if size == "quick":
        small = spatial.lenet(8), spatial.repeated(4, 2, 8, 8), spatial.resnet20(4, "batch", (8,), 1, 8)
        return [measure(case, 3, 1) for case in small]
    return [measure(make(), 30, 11) for make in harness.progress(NETS, TITLE)]


def notes(rows: list[Row]) -> list[str]:
    """How many rounds there were, where patience ended them."""
    short = {name: [f"{row.name}: {row.facts[name]}" for row in rows if row.facts[name] < 30]
             for name in ("rounds", "rounds in the loop")}  # fmt: skip
    return [f"- {name}, where fewer than 30: {'; '.join(found)}" for name, found in short.items() if found]


def plot(rows: list[Row]) -> Any:
    """The time ratios with their ranges."""
    figure = ratios(rows, ("time", "time in the loop"), "autodiff")
    figure.axes[0].set_xscale("log")
    return figure
