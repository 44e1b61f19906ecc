"""What one backward pass gives, beside what autodiff needs for the same: times and bytes, interleaved in one run.

Claim: at batch 128 on 784-512-512-10 per-example norms from pairs take at most a thirtieth of the time and a hundredth
of the memory of the norms by `jax.vmap(jax.grad)`, and clipping costs at most 1.15 plain gradients.

    python experiments/measurements/one_backward_pass.py             3.5 minutes on two free cores
    python experiments/measurements/one_backward_pass.py --quick     a small net, 3 rounds, 20 s, nothing written
    writes experiments/results/one_backward_pass.json and docs/images/one_backward_pass.png

Each quantity is one compiled program of `jbp.value_and_pairs` and `jbp.stats` (or `jbp.curvature`), and another of
`jax.vmap(jax.grad)` of the plain forward pass. Where autodiff has a better way it takes that: for the Gauss-Newton
diagonal `jax.jacrev` one example after another (all at once it would hold N·k·P numbers), for the products `jax.jvp`
with `jax.vjp` or `jax.grad`, for Kronecker factors `jax.grad` with respect to zeros that are added to every s. After
warming up every round runs all programs once, in turn; given are medians, their ratio to the plain gradient of the same
round with its 5 to 95 % range, and bytes as XLA plans them: of temporaries, and of the output, which is what it is
whichever way it is computed. The results of the two ways are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jbp
from jbp import curvature, stats
from jbp.losses import softmax_cross_entropy as LOSS

RESULT = common.RESULTS / "one_backward_pass.json"
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "one_backward_pass.png"
CLIP = 1.0
Program = Callable[[Any, Any, Any], Any]


def by_pairs(net: jbp.Layer) -> dict[str, Program]:
    """Each quantity from the pairs of one backward pass."""

    def of(read: Callable[[Any], Any]) -> Program:
        return lambda p, x, y: read(jbp.value_and_pairs(net, LOSS, p, x, y)[1])

    return {
        "norms": of(stats.norms),
        "gradient and norms": of(lambda pairs: (jbp.contract(pairs), stats.norms(pairs))),
        "clipped sum": of(lambda pairs: stats.clipped(pairs, CLIP)),
        "second moment": of(stats.second_moment),
        "gradient and second moment": of(lambda pairs: (jbp.contract(pairs), stats.second_moment(pairs))),
        "variance": of(stats.variance),
        "noise scale": of(stats.noise_scale),
        "Gram matrix": of(stats.gram),
        "per-example gradients": of(stats.per_example),
        "gradient and Kronecker factors": of(lambda pairs: (jbp.contract(pairs), stats.kronecker(pairs))),
        "Gauss-Newton diagonal": lambda p, x, y: curvature.gauss_newton_diagonal(net, LOSS, p, x, y),
        "Gauss-Newton product": lambda p, x, y: curvature.gauss_newton_product(net, LOSS, p, x, y)(p),
        "Hessian product": lambda p, x, y: curvature.hessian_product(net, LOSS, p, x, y)(p),
    }


def logits(p: Any, x: Any, add: Any = None) -> Any:
    """The plain forward pass, of one example or of many; `add` [..., o] of each layer is added to its s = xW + b."""
    *hidden, last = (layer for layer in p if layer != ())
    *adds, add_last = [0.0] * (len(hidden) + 1) if add is None else add
    for layer, a in zip(hidden, adds, strict=True):
        x = jax.nn.relu(x @ layer["weight"] + layer["bias"] + a)
    return x @ last["weight"] + last["bias"] + add_last


def error(p: Any, x: Any, y: Any, add: Any = None) -> Any:
    """Softmax cross-entropy of one example."""
    out = logits(p, x, add)
    return jax.nn.logsumexp(out) - out[y]


def mean_error(p: Any, x: Any, y: Any) -> Any:
    """Of the batch."""
    return jax.vmap(error, (None, 0, 0))(p, x, y).mean()


def kronecker_factors(p: Any, x: Any, y: Any) -> Any:
    """The gradient, and 1/N Σ hhᵀ and 1/N Σ δδᵀ of every weight and bias, with δ as the derivative by what is added."""
    n, layers = len(x), [layer for layer in p if layer != ()]
    zeros = [jnp.zeros((n, len(layer["bias"])), x.dtype) for layer in layers]

    def total(p: Any, add: Any) -> Any:
        return jax.vmap(error, (None, 0, 0, 0))(p, x, y, add).sum()

    grads, deltas = jax.grad(total, (0, 1))(p, zeros)
    factors, h = [], x
    for layer, delta in zip(layers, deltas, strict=True):
        g = delta.T @ delta / n
        factors.append({"bias": (jnp.ones((1, 1), g.dtype), g), "weight": (h.T @ h / n, g)})
        h = jax.nn.relu(h @ layer["weight"] + layer["bias"])
    return jax.tree.map(lambda a: a / n, grads), factors


def gauss_newton_product(p: Any, x: Any, y: Any) -> Any:
    """(1/N Σ Jᵀ H J) p, H = diag(q) − qqᵀ with the probabilities q."""
    out, back = jax.vjp(lambda p: logits(p, x), p)
    tangent = jax.jvp(lambda p: logits(p, x), (p,), (p,))[1]
    q = jax.nn.softmax(out)
    return back(q * (tangent - (q * tangent).sum(1, keepdims=True)) / len(x))[0]


def hessian_product(p: Any, x: Any, y: Any) -> Any:
    """(∂²/∂p² of the mean error) p."""
    return jax.jvp(lambda p: jax.grad(mean_error)(p, x, y), (p,), (p,))[1]


def by_autodiff() -> dict[str, Program]:
    """The same by autodiff of a plain forward pass: from `jax.vmap(jax.grad)` where nothing else is better."""
    each = jax.vmap(jax.grad(error), (None, 0, 0))

    def squares(g: Any) -> Any:
        return sum(jnp.square(a).reshape(len(a), -1).sum(1) for a in jax.tree.leaves(g))

    def clipped(g: Any) -> Any:
        c = jnp.minimum(1, CLIP / jnp.sqrt(squares(g)))
        return jax.tree.map(lambda a: jnp.tensordot(c, a, 1), g)

    def gram(g: Any) -> Any:
        return sum(a.reshape(len(a), -1) @ a.reshape(len(a), -1).T for a in jax.tree.leaves(g))

    def gauss_newton(p: Any, x: Any, y: Any) -> Any:
        def one(x: Any) -> Any:
            prob = jax.nn.softmax(logits(p, x))
            root = jnp.sqrt(prob)[:, None] * (jnp.eye(len(prob)) - prob[None])
            return jax.tree.map(lambda a: jnp.square(jnp.tensordot(root, a, 1)).sum(0), jax.jacrev(logits)(p, x))

        def add(total: Any, x: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(x)), None

        return jax.tree.map(lambda a: a / len(x), jax.lax.scan(add, jax.tree.map(jnp.zeros_like, p), x)[0])

    def noise_scale(g: Any) -> Any:
        leaves = jax.tree.leaves(g)
        trace = sum(a.var(0, ddof=1).sum() for a in leaves)
        signal = sum(jnp.square(a.mean(0)).sum() for a in leaves) - trace / len(leaves[0])
        return jnp.where(signal > 0, trace / signal, jnp.inf)

    def moments(g: Any) -> Any:
        return jax.tree.map(lambda a: a.mean(0), g), jax.tree.map(lambda a: jnp.square(a).mean(0), g)

    def of(read: Callable[[Any], Any]) -> Program:
        return lambda p, x, y: read(each(p, x, y))

    return {
        "norms": of(lambda g: jnp.sqrt(squares(g))),
        "gradient and norms": of(lambda g: (jax.tree.map(lambda a: a.mean(0), g), jnp.sqrt(squares(g)))),
        "clipped sum": of(clipped),
        "second moment": of(lambda g: jax.tree.map(lambda a: jnp.square(a).mean(0), g)),
        "gradient and second moment": of(moments),
        "variance": of(lambda g: jax.tree.map(lambda a: a.var(0, ddof=1), g)),
        "noise scale": of(noise_scale),
        "Gram matrix": of(gram),
        "per-example gradients": of(lambda g: g),
        "gradient and Kronecker factors": kronecker_factors,
        "Gauss-Newton diagonal": gauss_newton,
        "Gauss-Newton product": gauss_newton_product,
        "Hessian product": hessian_product,
    }


def run(widths: tuple[int, ...], batch: int, rounds: int) -> dict[str, Any]:
    """Times and bytes of every quantity, both ways."""
    net = jbp.serial(
        *[layer for width in widths[1:-1] for layer in (jbp.Dense(width), jbp.relu)], jbp.Dense(widths[-1])
    )
    params, _ = net.init(jax.random.key(0), widths[:1])
    x = jax.random.normal(jax.random.key(1), (batch, widths[0]))
    args = params, x, jnp.arange(batch) % widths[-1]
    programs: dict[tuple[str, str], Any] = {("plain gradient", "jbp"): jbp.value_and_grad(net, LOSS)}
    programs |= {(name, "jbp"): jax.jit(program) for name, program in by_pairs(net).items()}
    programs |= {(name, "autodiff"): jax.jit(program) for name, program in by_autodiff().items()}
    built: dict[Any, Any] = {key: jax.jit(program).lower(*args).compile() for key, program in programs.items()}
    for name in by_autodiff():
        ours, theirs = (jax.tree.leaves(built[name, way](*args)) for way in ("jbp", "autodiff"))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * float(jnp.abs(b).max()), err_msg=name)
    times: dict[Any, list[float]] = {key: [] for key in built}
    for _ in common.progress(range(rounds), f"{rounds} rounds"):
        for key, program in built.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*args))
            times[key].append(time.perf_counter() - began)
    plain = np.asarray(times["plain gradient", "jbp"])
    rows = []
    for (name, way), seconds in times.items():
        ratio = np.asarray(seconds) / plain
        low, high = np.quantile(ratio, [0.05, 0.95])
        memory = built[name, way].memory_analysis()
        rows.append(
            {
                "quantity": name,
                "by": way,
                "milliseconds": 1e3 * float(np.median(seconds)),
                "gradients": float(np.median(ratio)),
                "range": [float(low), float(high)],
                "temporary_bytes": memory.temp_size_in_bytes,
                "output_bytes": memory.output_size_in_bytes,
            }
        )
    return {
        "net": "-".join(map(str, widths)),
        "batch": batch,
        "rounds": rounds,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "rows": rows,
    }


def find(result: dict[str, Any], quantity: str, way: str) -> dict[str, Any]:
    """One row."""
    return next(row for row in result["rows"] if (row["quantity"], row["by"]) == (quantity, way))


def check(result: dict[str, Any]) -> None:
    """Raise unless the claim holds."""
    ours, theirs = find(result, "norms", "jbp"), find(result, "norms", "autodiff")
    faster = theirs["milliseconds"] / ours["milliseconds"]
    leaner = theirs["temporary_bytes"] / ours["temporary_bytes"]
    common.require(faster >= 30, f"norms are {faster:.1f} times faster than by vmap(grad), not 30")
    common.require(leaner >= 100, f"norms are {leaner:.0f} times leaner than by vmap(grad), not 100")
    clipped = find(result, "clipped sum", "jbp")["gradients"]
    common.require(clipped <= 1.15, f"clipping costs {clipped:.2f} gradients, not 1.15")


def show(result: dict[str, Any]) -> None:
    """The table."""
    table = Table(title=f"{result['net']}, batch {result['batch']}: in plain gradients, median (5 to 95 %)")
    for column in ("quantity", "jbp", "autodiff", "times faster", "temporaries: jbp, MB", "autodiff, MB", "output, MB"):
        table.add_column(column, justify="left" if column == "quantity" else "right")
    for quantity in by_autodiff():
        ours, theirs = find(result, quantity, "jbp"), find(result, quantity, "autodiff")
        table.add_row(
            quantity,
            *(f"{r['gradients']:.2f} ({r['range'][0]:.2f} to {r['range'][1]:.2f})" for r in (ours, theirs)),
            f"{theirs['milliseconds'] / ours['milliseconds']:.1f}",
            *(f"{r['temporary_bytes'] / 1e6:.2f}" for r in (ours, theirs)),
            f"{ours['output_bytes'] / 1e6:.2f}",
        )
    Console(width=150).print(table)


def plot(result: dict[str, Any]) -> Any:
    """Time and memory of each quantity, both ways, on logarithmic axes; the output's bytes as a mark."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.5, 5), sharey=True, layout="constrained")
    names = list(by_autodiff())[::-1]
    for axis, figure_of, label in (
        (axes[0], "gradients", "time, in plain gradients"),
        (axes[1], "temporary_bytes", "temporaries, and the output, MB"),
    ):
        for offset, way, shown, colour in (
            (-0.2, "autodiff", "autodiff", "tab:gray"),
            (0.2, "jbp", "jbp", "tab:blue"),
        ):
            values = [find(result, name, way)[figure_of] / (1e6 if "bytes" in figure_of else 1) for name in names]
            axis.barh(np.arange(len(names)) + offset, values, 0.38, label=shown, color=colour)
        axis.set(xscale="log", xlabel=label)
    outputs = [find(result, name, "jbp")["output_bytes"] / 1e6 for name in names]
    axes[1].plot(outputs, np.arange(len(names)), "|", color="black", markersize=12, label="the output")
    axes[0].set_yticks(np.arange(len(names)), names)
    axes[0].axvline(1, color="black", linewidth=0.8)
    axes[1].legend(loc="upper left", bbox_to_anchor=(0.0, 1.12), ncols=3, frameon=False)
    figure.suptitle(f"{result['net']}, batch {result['batch']}", x=0.02, ha="left", fontsize=10)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small net and few rounds, nothing written or checked")
    quick = parser.parse_args().quick
    found = run((64, 32, 10), 32, 3) if quick else run((784, 512, 512, 10), 128, 30)
    show(found)
    if not quick:
        common.write(RESULT, found)
        plot(found).savefig(PICTURE, dpi=150)
        check(found)
