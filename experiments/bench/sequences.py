"""Sequences: a GPT and attention alone, a gradient and what is read of single examples, jbp beside what else has them.

The GPT is nanoGPT's for a CPU (64 characters, 4 layers, 4 heads, 128 channels, the embedding's table tied), on 12
windows; attention alone is 4 heads of 32 between two dense layers, on 2 sequences of 512. Beside autodiff of plain JAX,
with and without `jax.checkpoint` around each block, results compared first; of single examples by
`jax.vmap(jax.grad)`. Kronecker factors autodiff has from the δ of zeros that are added to what every dense layer makes.
FLOPs are those of products, loops times their rounds, and bytes those of temporaries; both, and the times, taken in
turn, over those of autodiff's plain gradient.

A gradient in PyTorch, in turn with jbp's in one process; then each in its own framework's plain gradients: Opacus
(ghost clipping, and its hooks' per-sample gradients) and BackPACK in PyTorch, at its best number of threads, on the
same GPT with biases and a table of its own for what comes out, since Opacus takes no tied weights; and twenty lines of
user code on JAX's `with_logs` (JAX 0.12 or later), on the GPT with its tied table and blocks one after the other.

Targets, in plain gradients: FLOPs at most 1.005 for a gradient, 0.95 for norms, 1.25 for clipping, elsewhere what
autodiff takes; bytes and time at most autodiff's, and time of a gradient at most PyTorch's, the range reaching it.

    python experiments/bench/suite.py sequences     writes experiments/results/bench_sequences.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gpt_peers
import harness
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import per_example
from counting import product_flops
from harness import Figure, Row, Size, counted, timed

import jbp
from jbp import stats

TITLE = "Sequences"
CLIP = 1.0
WORDS = {
    "gradient": "gradient",
    "norms": "norms",
    "clipped": "clipped",
    "moments": "second moment",
    "kronecker": "Kronecker factors",
}
AUTODIFF, CHECKPOINT = "autodiff", "jax.checkpoint"
MOST = {"gradient": 1.005, "norms": 0.95, "clipped": 1.25}
"""FLOPs, in plain gradients."""
Loss = Callable[..., Any]
Reads = dict[str, Callable[..., Any]]


class Case(NamedTuple):
    """A net and its loss, and the same in plain JAX on the same parameters."""

    name: str
    net: Any
    loss: Any
    plain: Callable[[bool], Loss]
    """Whether with checkpoints -> (params, x, y) -> the mean loss."""
    seen: Loss
    """(params, x, y, added) -> the loss, and what came into the dense layers, to whose answers `added` is added."""
    made: tuple[tuple[int, ...], ...]
    """The shapes of those."""
    dense: Callable[[Any], list[Any]]
    """What belongs to the weights of these layers, of a tree like the parameters."""
    arguments: tuple[Any, Any, Any]
    """Parameters, inputs and targets."""
    torch: Callable[..., Callable[[], float]]
    """(params, x, y, fused) -> a call that makes the gradient in PyTorch."""


def gpt(batch: int, context: int = 64, layers: int = 4, heads: int = 4, width: int = 128, words: int = 65) -> Case:
    """nanoGPT's, tied and without biases."""
    net = jbp.gpt(words, context, layers, heads, width)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, words, (batch, context + 1)))

    def dense(tree: Any) -> list[Any]:
        attends, thinks = tree[2]
        return [part["weight"] for part in (attends[1], attends[3], thinks[1], thinks[3])]

    return Case(
        f"GPT, batch {batch}", net, jbp.losses.softmax_cross_entropy, lambda again: gpt_peers.loss_of(heads, again),
        gpt_peers.seen_of(heads), tuple((layers, batch, context, k * width) for k in (3, 1, 4, 1)), dense,
        (net.init(jax.random.key(0), (context,))[0], tokens[:, :-1], tokens[:, 1:]),
        lambda params, *args: gpt_peers.torch_step(params, heads, *args),
    )  # fmt: skip


def attention(batch: int, length: int = 512, heads: int = 4, width: int = 128) -> Case:
    """Dense, attention, dense."""
    net = jbp.serial(jbp.Dense(3 * width), jbp.Attention(heads), jbp.Dense(width))
    x, y = jax.random.normal(jax.random.key(1), (2, batch, length, width))

    def seen(params: Any, x: Any, y: Any, added: Any = (0.0, 0.0), attend: Any = gpt_peers.attention) -> Any:
        first, _, last = params
        mixed = attend(x @ first["weight"] + first["bias"] + added[0], heads)
        h = mixed @ last["weight"] + last["bias"] + added[1]
        return 0.5 * jnp.square(h - y).sum(-1).mean(), (x, mixed)

    def plain(again: bool) -> Loss:
        attend = jax.checkpoint(gpt_peers.attention, static_argnums=1) if again else gpt_peers.attention
        return lambda *args: seen(*args, attend=attend)[0]

    return Case(
        f"attention over {length}, batch {batch}", net, jbp.losses.l2_loss, plain, seen,
        ((batch, length, 3 * width), (batch, length, width)), lambda tree: [tree[0]["weight"], tree[2]["weight"]],
        (net.init(jax.random.key(0), (length, width))[0], x, y),
        lambda params, *args: gpt_peers.torch_attention_step(params, heads, *args),
    )  # fmt: skip


def of_jbp(case: Case) -> Reads:
    """From the pairs of one backward pass."""

    def read(statistic: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda *args: statistic(jbp.value_and_pairs(case.net, case.loss, *args)[1])

    step = jbp.value_and_grad(case.net, case.loss).__wrapped__  # type: ignore[attr-defined]
    return {
        "gradient": lambda *args: step(*args)[1],
        "norms": read(stats.norms),
        "clipped": read(lambda pairs: stats.clipped(pairs, CLIP)),
        "moments": read(stats.second_moment),
        "kronecker": read(lambda pairs: [(f.a, f.g) for f in case.dense(stats.kronecker(pairs))]),
    }


def moment(rows: Any) -> Any:
    """Σ v vᵀ over examples and positions."""
    return jnp.einsum("...nti,...ntj->...ij", rows, rows)


def of_autodiff(case: Case, again: bool) -> Reads:
    """From `grad`, and from the gradients of all examples."""
    loss = case.plain(again)
    each = jax.vmap(jax.grad(lambda params, x, y: loss(params, x[None], y[None])), (None, 0, 0))

    def norms(*args: Any) -> Any:
        return jnp.sqrt(per_example.squares(each(*args)))

    def clipped(*args: Any) -> Any:
        grads = each(*args)
        c = jnp.minimum(1, CLIP / jnp.sqrt(per_example.squares(grads)))
        return jax.tree.map(lambda g: jnp.tensordot(c, g, 1), grads)

    def moments(*args: Any) -> Any:
        return jax.tree.map(lambda g: jnp.square(g).mean(0), each(*args))

    def kronecker(params: Any, x: Any, y: Any) -> Any:
        zeros = [jnp.zeros(shape) for shape in case.made]
        deltas, inputs = jax.grad(lambda added: case.seen(params, x, y, added), has_aux=True)(zeros)
        return [(moment(h) / (len(x) * h.shape[-2]), len(x) * moment(d)) for h, d in zip(inputs, deltas, strict=True)]

    return {
        "gradient": jax.grad(loss),
        "norms": norms,
        "clipped": clipped,
        "moments": moments,
        "kronecker": kronecker,
    }


def measure(case: Case, rounds: int) -> list[Row]:
    """The figures of one case, a row for each quantity."""
    args = case.arguments
    ways = {"jbp": of_jbp(case), AUTODIFF: of_autodiff(case, False), CHECKPOINT: of_autodiff(case, True)}
    plain = ways[AUTODIFF]["gradient"]
    base = harness.compiled(plain, *args)
    work, bare = product_flops(plain, *args), harness.temporaries(base)
    rows = []
    for what, words in WORDS.items():
        reads = {way: found[what] for way, found in ways.items() if not (way == CHECKPOINT and what == "kronecker")}
        built = {way: harness.compiled(read, *args) for way, read in reads.items()}
        ours = jax.tree.leaves(built["jbp"](*args))
        for way, program in built.items():
            for a, b in zip(ours, jax.tree.leaves(program(*args)), strict=True):
                top = max(float(jnp.abs(b).max()), 1e-9)
                np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * top, err_msg=f"{case.name}: {way}, {what}")
        runs = {way: (lambda p=program: p(*args)) for way, program in built.items()}
        times = harness.in_turn({"plain": lambda: base(*args)} | runs, rounds)
        flops = {way: product_flops(read, *args) / work for way, read in reads.items()}
        fat = {way: harness.temporaries(program) / bare for way, program in built.items()}
        figures: list[Figure] = []
        for name, of, most in (("FLOPs", flops, MOST.get(what, flops[AUTODIFF])), ("bytes", fat, fat[AUTODIFF])):
            figures.append(counted(f"jbp, {name}", of["jbp"], most))
            figures += [counted(f"{way}, {name}", of[way], better=None) for way in (AUTODIFF, CHECKPOINT) if way in of]
        figures.append(timed("jbp, time", times["jbp"] / times["plain"]))
        for way in (AUTODIFF, CHECKPOINT):
            if way in times:
                target = 1.0 if way == AUTODIFF else None
                figures.append(timed(f"{way} over jbp, time", times[way] / times["jbp"], target, "higher"))
        rows.append(Row(f"{case.name}: {words}", tuple(figures), {"rounds": rounds}))
    return rows


def in_pytorch(case: Case, rounds: int) -> Row:
    """A gradient in PyTorch, its attention fused and written out, in turn with jbp's in one process."""
    args = case.arguments
    program = harness.compiled(jbp.value_and_grad(case.net, case.loss).__wrapped__, *args)  # type: ignore[attr-defined]
    names = {"PyTorch": True, "PyTorch, scores written out": False}
    name, facts = f"{case.name}: gradient, beside PyTorch", {"rounds": rounds}
    if not harness.has("torch"):
        return Row(name, tuple(harness.missing(f"{way} over jbp, time") for way in names), facts)
    runs: dict[str, Any] = {way: case.torch(*args, fused) for way, fused in names.items()}
    for way, run in runs.items():
        harness.same(program(*args)[0], run(), f"{case.name}: {way}", 1e-4)
    times = harness.in_turn({"jbp": lambda: program(*args)} | runs, rounds)
    figures = [timed(f"{way} over jbp, time", times[way] / times["jbp"], 1.0, "higher") for way in names]
    return Row(name, (*figures, timed("jbp, ms", 1e3 * times["jbp"])), facts)


def peers(batch: int, rounds: int) -> list[Row]:
    """Opacus's, BackPACK's and the twenty lines' on the GPT, in plain gradients of their own framework."""
    theirs = per_example.said_by("sequences_torch.py", batch, rounds)
    logs = per_example.said_by_newer("sequences_logs.py", batch, rounds)
    rows = []
    for what, words in WORDS.items():
        if what == "gradient":
            continue
        figures: list[Figure] = []
        for library in ("Opacus", "Opacus hooks", "BackPACK"):
            values, label = theirs.get(f"{library} {what}"), f"{library}, in PyTorch's"
            why = theirs.get(f"{library} {what} why", "missing")
            figures.append(timed(label, values) if values else harness.missing(label, why))
        figures += per_example.figures_of_logs(logs, what, "flops")
        facts = {"rounds": rounds, "threads": theirs.get("threads"), "jax": logs.get("jax")}
        rows.append(Row(f"GPT, batch {batch}: {words}, each in its own plain gradients", tuple(figures), facts))
    return rows


def run(size: Size) -> list[Row]:
    """Both cases, then the peers."""
    if size == "quick":
        return [row for case in (gpt(3, 8, 2, 2, 16, 11), attention(2, 64, 2, 16)) for row in measure(case, 3)]
    cases = [gpt(12), attention(2)]
    rows = [row for case in harness.progress(cases, TITLE) for row in measure(case, 30)]
    return rows + [in_pytorch(case, 30) for case in cases] + peers(12, 30)


def table(rows: list[Row]) -> str:
    """What the page about language models says of it: counts and times over autodiff's plain gradient."""

    def two(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    heads = ["products: jbp", AUTODIFF, "temporaries: jbp", AUTODIFF, "time: jbp"]
    heads += [f"{way} over jbp" for way in (AUTODIFF, CHECKPOINT)]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    ways = {"Opacus, in PyTorch's": "Opacus", "Opacus hooks, in PyTorch's": "its hooks"}
    ways |= {"with_logs, time": "with_logs", "jbp on the same JAX, time": "jbp"}
    beside, own = [], []
    for row in rows:
        found = {f.name: f for f in row.figures}
        if f"{AUTODIFF} over jbp, time" in found:
            names = ("jbp, FLOPs", "autodiff, FLOPs", "jbp, bytes", "autodiff, bytes", "jbp, time")
            cells = [two(found[name].value) for name in names]
            cells += [spread(found.get(f"{way} over jbp, time")) for way in (AUTODIFF, CHECKPOINT)]
            lines.append(f"| {row.name} | {' | '.join(cells)} |")
        elif "PyTorch over jbp, time" in found:
            fused, written = (spread(found[f"PyTorch{way} over jbp, time"]) for way in ("", ", scores written out"))
            what = row.name.removesuffix(": gradient, beside PyTorch")
            beside.append(f"{what}: {fused} times as long, with scores written out {written}")
        else:
            what = row.name.split(": ")[1].split(", each")[0]
            known = [f"{way} {two(found[name].value)}" for name, way in ways.items() if found[name].value is not None]
            own.append(f"{what}: {', '.join(known)}")
    said = f"PyTorch takes for a gradient of {'; of '.join(beside)}. In plain gradients of its own framework, "
    return "\n".join([*lines, "", f"{said}on the GPT: {'; '.join(own)}."])


def spread(figure: Figure | None) -> str:
    """The median with its range."""
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return ""
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def plot(rows: list[Row]) -> Any:
    """How much longer the others take, by quantity; PyTorch for a gradient."""
    shown = [row.name for row in rows if any(f.name == f"{AUTODIFF} over jbp, time" for f in row.figures)]
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(shown) + 1.3))
    for k, way in enumerate((AUTODIFF, CHECKPOINT, "PyTorch", "PyTorch, scores written out")):
        label = way
        for row in rows:
            f = next((f for f in row.figures if f.name == f"{way} over jbp, time"), None)
            if f is None or f.value is None or f.low is None or f.high is None:
                continue
            at = shown.index(row.name.removesuffix(", beside PyTorch")) + 0.16 * (k - 1.5)
            span = [[f.value - f.low], [f.high - f.value]]
            axes.errorbar(f.value, at, xerr=span, fmt="os^v"[k], ms=4, color=f"C{k}", label=label)
            label = None
    axes.axvline(1, color="0.5", lw=1)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=9, bbox_to_anchor=(1, 1))
    axes.set(xscale="log", xlabel="time, other / jbp (median, 5 to 95 %)")
    harness.plain_ticks(axes, (0.7, 1, 1.4, 2))
    return figure
