"""Per-example statistics: norms, clipping and variance, jbp beside what else computes the same.

The others: `jax.vmap(jax.grad)`; the same in blocks of 32 examples (`jax.lax.map`), which is how its memory is bounded;
and ghost norms in two passes of plain JAX, a `custom_vjp` for a dense layer whose cotangent of a dummy is the layer's
squared norm. All in one run and in turn, results compared first. Then, as multiples of each framework's own plain
gradient step, BackPACK's and Opacus's own implementations in PyTorch, at its best number of threads; those in a process
of their own after jbp's, in turn among themselves. Last, twenty lines of user code on JAX's own `with_logs`, which JAX
has since 0.12 (an interpreter that has it is named by $NEWER_PYTHON, if it is not this one): they cost what jbp costs,
and are the honest measure of what these quantities alone are worth.

Targets at batch 128 on 784-512-512-10, by the median: norms at least 30 times faster and 100 times leaner than
vmap(grad); clipping at most 1.15 plain steps. Where vmap(grad) would need more than 3 GB it is not run, and the cell
says so: that is no win. At 4096 the blocks take up to ten seconds a call and are run with --full alone.

    python experiments/bench/suite.py per_example   writes experiments/results/bench_per_example.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from harness import HERE, Figure, Row, Size, counted, timed
from models import dense, mlp, with_parameters

import jbp
from jbp import stats

TITLE = "Per-example statistics"
WIDTHS = (784, 512, 512, 10)
BLOCK, CLIP = 32, 1.0
QUANTITIES = ("norms", "clipped", "variance")
Read = dict[str, Callable[..., Any]]


def of_jbp(net: Any, loss: Any) -> Read:
    """From the pairs of one backward pass."""

    def pairs(*args: Any) -> Any:
        return jbp.value_and_pairs(net, loss, *args)[1]

    return {
        "norms": lambda *args: stats.norms(pairs(*args)),
        "clipped": lambda *args: stats.clipped(pairs(*args), CLIP),
        "variance": lambda *args: stats.variance(pairs(*args)),
    }


def error(params: Any, x: Any, y: Any) -> Any:
    """Of one example, in plain JAX."""
    *hidden, last = with_parameters(params)
    for p in hidden:
        x = jax.nn.relu(dense(x, p))
    out = dense(x, last)
    return jax.nn.logsumexp(out) - out[y]


def squares(grads: Any) -> Any:
    """‖gₙ‖² of per-example gradients."""
    return sum(jnp.square(g).reshape(len(g), -1).sum(1) for g in jax.tree.leaves(grads))


def of_vmap() -> Read:
    """All per-example gradients at once."""
    each = jax.vmap(jax.grad(error), (None, 0, 0))

    def clipped(*args: Any) -> Any:
        g = each(*args)
        c = jnp.minimum(1, CLIP / jnp.sqrt(squares(g))) / len(args[1])
        return jax.tree.map(lambda a: jnp.tensordot(c, a, 1), g)

    return {
        "norms": lambda *args: jnp.sqrt(squares(each(*args))),
        "clipped": clipped,
        "variance": lambda *args: jax.tree.map(lambda a: a.var(0, ddof=1), each(*args)),
    }


def in_blocks() -> Read:
    """Per-example gradients of 32 examples at a time."""
    whole = of_vmap()

    def over(read: Callable[..., Any], params: Any, x: Any, y: Any) -> Any:
        n = len(x) // BLOCK
        blocks = x.reshape(n, BLOCK, *x.shape[1:]), y.reshape(n, BLOCK)
        return jax.lax.map(lambda block: read(params, *block), blocks)

    def clipped(params: Any, x: Any, y: Any) -> Any:
        return jax.tree.map(lambda a: a.mean(0), over(whole["clipped"], params, x, y))

    def moments(params: Any, x: Any, y: Any) -> Any:
        g = jax.vmap(jax.grad(error), (None, 0, 0))(params, x, y)
        return jax.tree.map(lambda a: (a.sum(0), jnp.square(a).sum(0)), g)

    def variance(params: Any, x: Any, y: Any) -> Any:
        n = len(x)
        summed = over(moments, params, x, y)

        def one(pair: Any) -> Any:
            first, second = pair[0].sum(0) / n, pair[1].sum(0) / n
            return (second - first * first) * n / (n - 1)

        return jax.tree.map(one, summed, is_leaf=lambda node: isinstance(node, tuple) and len(node) == 2
                            and all(isinstance(a, jax.Array) for a in node))  # fmt: skip

    return {
        "norms": lambda *args: over(whole["norms"], *args).reshape(-1),
        "clipped": clipped,
        "variance": variance,
    }


@jax.custom_vjp
def ghost(h: Any, weight: Any, bias: Any, dummy: Any) -> Any:
    """h W + b; the cotangent of `dummy` [n] is the squared norm of each example's gradient of W and b."""
    return h @ weight + bias


def _ghost_forward(h: Any, weight: Any, bias: Any, dummy: Any) -> Any:
    return h @ weight + bias, (h, weight)


def _ghost_backward(saved: Any, delta: Any) -> Any:
    h, weight = saved
    square = jnp.square(delta).sum(1) * (1 + jnp.square(h).sum(1))
    return delta @ weight.T, jnp.zeros_like(weight), jnp.zeros(weight.shape[1]), square


ghost.defvjp(_ghost_forward, _ghost_backward)


def two_passes() -> Read:
    """Ghost norms: the norms by one backward pass through `ghost`, the clipped sum by a second one."""

    def norms(params: Any, x: Any, y: Any) -> Any:
        def summed(dummies: Any) -> Any:
            h = x
            *hidden, last = with_parameters(params)
            for p, dummy in zip(hidden, dummies, strict=False):
                h = jax.nn.relu(ghost(h, p["weight"], p["bias"], dummy))
            out = ghost(h, last["weight"], last["bias"], dummies[-1])
            return (jax.nn.logsumexp(out, 1) - jnp.take_along_axis(out, y[:, None], 1)[:, 0]).sum()

        dummies = [jnp.zeros(len(x)) for _ in with_parameters(params)]
        return jnp.sqrt(sum(jax.grad(summed)(dummies)))

    def clipped(params: Any, x: Any, y: Any) -> Any:
        c = jnp.minimum(1, CLIP / norms(params, x, y)) / len(x)
        return jax.grad(lambda p: (c * jax.vmap(error, (None, 0, 0))(p, x, y)).sum())(params)

    return {"norms": norms, "clipped": clipped}


def measure(batch: int, rounds: int, widths: tuple[int, ...] = WIDTHS, blocks: bool = True) -> list[Row]:
    """The figures of one batch size, a row for each quantity."""
    case = mlp(widths, batch)
    args = case.arguments()
    parameters = sum(a.size for a in jax.tree.leaves(args[0]))
    ways = {
        "jbp": of_jbp(case.net, case.loss),
        "vmap(grad)": of_vmap(),
        "in blocks": in_blocks(),
        "ghost": two_passes(),
    }
    too_much = 4 * parameters * batch > 3e9
    plain = harness.compiled(case.ours(), *args)
    rows = []
    for quantity in QUANTITIES:
        chosen = {way: reads[quantity] for way, reads in ways.items() if quantity in reads}
        left_out = ({"vmap(grad)"} if too_much else set()) | (set() if blocks else {"in blocks"})
        chosen = {way: read for way, read in chosen.items() if way not in left_out}
        built = {way: harness.compiled(read, *args) for way, read in chosen.items()}
        found = {way: built[way](*args) for way in built}
        scale = 1.0 if quantity != "clipped" else float(batch)  # the others' clipped sums are means
        for way, theirs in found.items():
            for a, b in zip(jax.tree.leaves(found["jbp"]), jax.tree.leaves(theirs), strict=True):
                b = b * (scale if way != "jbp" else 1)
                np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * max(float(jnp.abs(b).max()), 1e-9), err_msg=way)
        runs = {way: (lambda p=program: p(*args)) for way, program in built.items()}
        times = harness.in_turn({"plain": lambda: plain(*args)} | runs, rounds)
        figures = [timed("jbp, in plain steps", times["jbp"] / times["plain"],
                         1.15 if quantity == "clipped" and batch == 128 else None, reaches=False)]  # fmt: skip
        for way in list(ways)[1:]:
            judged = quantity == "norms" and way == "vmap(grad)" and batch == 128
            if way in built:
                figures.append(timed(f"{way} over jbp, time", times[way] / times["jbp"], 30.0 if judged else None,
                                     "higher", reaches=False))  # fmt: skip
                lean = harness.temporaries(built[way]) / harness.temporaries(built["jbp"])
                figures.append(counted(f"{way} over jbp, bytes", lean, 100.0 if judged else None, "higher"))
            elif quantity in ways[way]:
                why = f"not run: {4e-9 * parameters * batch:.1f} GB" if way == "vmap(grad)" else "with --full"
                figures += [harness.missing(f"{way} over jbp, {what}", why) for what in ("time", "bytes")]
        figures.append(counted("jbp, temporary bytes", harness.temporaries(built["jbp"])))
        rows.append(Row(f"{quantity}, batch {batch}", tuple(figures), {"rounds": rounds, "batch": batch}))
    return rows


def peers(batch: int, rounds: int) -> list[Row]:
    """BackPACK's and Opacus's quantities in multiples of PyTorch's own plain step, beside jbp's in its own."""
    case = mlp(WIDTHS, batch)
    args = case.arguments()
    reads = of_jbp(case.net, case.loss)
    built = {name: harness.compiled(read, *args) for name, read in reads.items()}
    built["plain"] = harness.compiled(case.ours(), *args)
    times = harness.in_turn({name: (lambda p=program: p(*args)) for name, program in built.items()}, rounds)
    theirs = said_by("per_example_torch.py", batch, rounds)
    rows = []
    for quantity in QUANTITIES:
        figures = [timed("jbp, in plain steps", times[quantity] / times["plain"])]
        for library in ("BackPACK", "Opacus"):
            key, name = f"{library} {quantity}", f"{library}, in PyTorch's plain steps"
            values = theirs.get(key)
            figures.append(
                timed(name, values) if values else harness.missing(name, theirs.get(f"{key} why", "missing"))
            )
        facts = {"rounds": rounds, "threads": theirs.get("threads")}
        rows.append(Row(f"{quantity}, batch {batch}, each in its own framework's plain steps", tuple(figures), facts))
    return rows


def said_by(script: str, *words: Any, python: str = sys.executable) -> dict[str, Any]:
    """What a script of this folder prints, in a process of its own; nothing, where it fails."""
    found = subprocess.run(
        [python, str(HERE / script), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    if found.returncode:
        print(found.stderr[-2000:], file=sys.stderr)
    return json.loads(found.stdout) if found.returncode == 0 else {}


def said_by_newer(script: str, *words: Any) -> dict[str, Any]:
    """The same by an interpreter with JAX 0.12: this one, or the one named by $NEWER_PYTHON."""
    return said_by(script, *words, python=os.environ.get("NEWER_PYTHON", sys.executable))


def figures_of_logs(found: dict[str, Any], quantity: str, count: str) -> list[Figure]:
    """The twenty lines beside jbp on the same JAX, in plain gradients; missing on an older one.

    `count` is "flops", of products, loops times their rounds, or "xla flops", as XLA counts them.
    """
    figures = []
    for way, name in (("with_logs", "with_logs"), ("jbp", "jbp on the same JAX")):
        if quantity not in found:
            why = found.get("why", "missing")
            figures += [harness.missing(f"{name}, {what}", why) for what in ("FLOPs", "bytes", "time")]
            continue
        one = found[quantity][way]
        figures.append(counted(f"{name}, FLOPs", one[count], better=None if way == "with_logs" else "lower"))
        figures.append(counted(f"{name}, bytes", one["bytes"], better=None if way == "with_logs" else "lower"))
        figures.append(timed(f"{name}, time", one["time"]))
    return figures


def logs(batch: int, rounds: int) -> list[Row]:
    """Twenty lines of user code on JAX's `with_logs`: norms, norms with the gradient, and clipping."""
    found = said_by_newer("per_example_logs.py", "-".join(map(str, WIDTHS)), batch, rounds)
    facts = {"rounds": rounds, "jax": found.get("jax")}
    words = {"norms": "norms", "both": "norms and gradient", "clipped": "clipped"}
    rows = []
    for quantity, name in words.items():
        name = f"{name}, batch {batch}, twenty lines on with_logs, in plain gradients"
        rows.append(Row(name, tuple(figures_of_logs(found, quantity, "xla flops")), facts))
    return rows


def run(size: Size) -> list[Row]:
    """Batch 32 to 4096, then the peers."""
    if size == "quick":
        return measure(32, 3, (64, 32, 10))
    rows = [row for batch in harness.progress((32, 128, 512, 4096), TITLE)
            for row in measure(batch, 30, blocks=batch < 4096 or size == "full")]  # fmt: skip
    return rows + peers(128, 30) + logs(128, 30)


def plot(rows: list[Row]) -> Any:
    """How many times longer the others take, against the batch."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True)
    for ax, quantity in zip(axes, QUANTITIES, strict=True):
        chosen = [r for r in rows if r.name.startswith(f"{quantity}, batch") and "in" not in r.name.split()]
        for way, style in (("vmap(grad)", "o-"), ("in blocks", "s--"), ("ghost", "^:")):
            name = f"{way} over jbp, time"
            known = [(r.facts["batch"], r[name]) for r in chosen if name in {f.name for f in r.figures}]
            known = [(b, f) for b, f in known if f.value is not None]
            if known:
                span = np.array([[f.value - f.low, f.high - f.value] for _, f in known]).T  # type: ignore[operator]
                ax.errorbar([b for b, _ in known], [f.value for _, f in known], span, fmt=style, label=way)
        ax.axhline(1, color="0.5", lw=1)
        ax.set(xscale="log", yscale="log", xlabel="batch size", title=quantity)
        harness.plain_ticks(ax, (r.facts["batch"] for r in chosen))
    axes[0].set_ylabel("time, other / jbp")
    axes[0].legend(frameon=False, fontsize=9)
    return figure
