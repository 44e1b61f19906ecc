"""One gradient step: jbp beside `jax.jit(jax.value_and_grad)` of the fastest plain forward pass we can write.

Targets: FLOPs and bytes of temporaries at most 1.005 of autodiff's (under `repeat` XLA counts a loop's body once, for
both sides alike); the 5 to 95 % range of the time ratio reaches 1.00 or lower; trace and lower at most 0.9 of
autodiff's (0.6 at 256 layers), and the whole time to the first step at most 1.0.

    python experiments/bench/step.py [--quick] [--compare OLD.json]     `make bench`; about 6 minutes on two free cores
    writes experiments/results/bench_step.json

The same parameters and data for both; their values are compared before anything is timed. A round runs both once, in
turn, 30 rounds after warming up; tracing, lowering and compiling are repeated 5 times in turn, with JAX's caches
cleared.
`--compare` prints what changed against an older file, and ends with 1 if a deterministic figure grew by over 10 %.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import claim
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jbp
from jbp.losses import cross_entropy, softmax_cross_entropy

RESULT = Path(__file__).parents[1] / "results" / "bench_step.json"
PLAIN = {jbp.relu: jax.nn.relu, jbp.tanh: jnp.tanh, jbp.sigmoid: jax.nn.sigmoid}
KEY = jax.random.key(0)


class Case(NamedTuple):
    """A net, the plain loss (params, x, y) on the same parameters, the width of the input and the batch."""

    name: str
    net: Any
    plain: Callable[..., Any]
    width: int
    batch: int
    loss: Any = softmax_cross_entropy
    key: Any = None


def dense(h: Any, p: Any) -> Any:
    """h W + b."""
    return h @ p["weight"] + p["bias"]


def plain_loss(logits: Any, y: Any) -> Any:
    """Mean softmax cross-entropy."""
    return (jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, y[:, None], 1)[:, 0]).mean()


def unfused(logits: Any, y: Any) -> Any:
    """The same through probabilities."""
    return -jnp.log(jnp.take_along_axis(jax.nn.softmax(logits), y[:, None], 1)).mean()


def mlp(widths: tuple[int, ...], batch: int, activation: Any = jbp.relu, softmax: bool = False) -> Case:
    """A multi-layer perceptron."""
    layers = [layer for width in widths[1:] for layer in (jbp.Dense(width), activation)][:-1]

    def plain(params: Any, x: Any, y: Any) -> Any:
        *hidden, last = (p for p in params if p != ())
        for p in hidden:
            x = PLAIN[activation](dense(x, p))
        return (unfused if softmax else plain_loss)(dense(x, last), y)

    shown = "-".join(map(str, widths)) if len(widths) < 6 else f"{len(widths) - 2} layers of {widths[1]}"
    net = jbp.serial(*layers, *([jbp.softmax] if softmax else []))
    name = f"{shown} {activation!r}{', unfused softmax' if softmax else ''}, batch {batch}"
    return Case(name, net, plain, widths[0], batch, cross_entropy if softmax else softmax_cross_entropy)  # type: ignore[arg-type]


def residual_stack(depth: int, width: int, batch: int) -> Case:
    """`repeat` of residual blocks against `lax.scan`."""
    net = jbp.serial(jbp.repeat(jbp.residual(jbp.serial(jbp.Dense(width), jbp.relu)), depth), jbp.Dense(10))

    def plain(params: Any, x: Any, y: Any) -> Any:
        x, _ = jax.lax.scan(lambda h, p: (h + jax.nn.relu(dense(h, p[0])), None), x, params[0])
        return plain_loss(dense(x, params[1]), y)

    return Case(f"repeat of {depth} residual {width}, batch {batch}", net, plain, width, batch)


def dropout(batch: int) -> Case:
    """784-512-512-10 with dropout; the plain one draws a whole batch at once, the cheapest way."""
    net = jbp.serial(*[jbp.Dense(512), jbp.relu, jbp.Dropout(0.2)] * 2, jbp.Dense(10))

    def plain(params: Any, x: Any, y: Any) -> Any:
        *hidden, last = (p for p in params if p != ())
        for p, k in zip(hidden, jax.random.split(KEY), strict=True):
            x = jax.nn.relu(dense(x, p))
            x = jnp.where(jax.random.bernoulli(k, 0.8, x.shape), x / 0.8, 0)
        return plain_loss(dense(x, last), y)

    return Case(f"dropout 784-512-512-10, batch {batch}", net, plain, 784, batch, key=KEY)


CASES = (
    lambda: mlp((64, 32, 10), 32),
    lambda: mlp((784, 128, 10), 64),
    lambda: mlp((784, 512, 512, 10), 128),
    lambda: mlp((784, 2048, 2048, 10), 512),
    lambda: mlp((256,) * 21 + (10,), 128),
    lambda: mlp((64,) * 257 + (10,), 32),
    lambda: residual_stack(64, 512, 64),
    lambda: mlp((256,) * 9 + (10,), 128, jbp.sigmoid),
    lambda: mlp((256,) * 9 + (10,), 128, jbp.tanh),
    lambda: dropout(128),
    lambda: mlp((784, 512, 512, 10), 128, softmax=True),
)


def measure(case: Case, rounds: int, compiles: int) -> dict[str, Any]:
    """Every figure of one net."""
    params, _ = case.net.init(KEY, (case.width,))
    x = jax.random.normal(jax.random.key(1), (case.batch, case.width))
    args = params, x, jnp.arange(case.batch) % 10

    def programs() -> dict[str, Any]:
        ours = jbp.value_and_grad(case.net, case.loss).__wrapped__  # type: ignore[attr-defined]
        return {
            "jbp": jax.jit(lambda *a: ours(*a, key=case.key)),
            "autodiff": jax.jit(lambda *a: jax.value_and_grad(case.plain)(*a)),
        }

    stages: dict[str, dict[str, list[float]]] = {way: {"trace_lower": [], "compile": []} for way in programs()}
    built = {}
    for _ in range(compiles):
        jax.clear_caches()
        for way, program in programs().items():
            began = time.perf_counter()
            lowered = program.lower(*args)
            middle = time.perf_counter()
            built[way] = lowered.compile()
            stages[way]["trace_lower"].append(middle - began)
            stages[way]["compile"].append(time.perf_counter() - middle)
    (value, grads), (their_value, theirs) = (built[way](*args) for way in ("jbp", "autodiff"))
    if case.key is None:  # dropout draws otherwise
        np.testing.assert_allclose(value, their_value, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(float(jnp.abs(b).max()), 1e-6))
    times: dict[str, list[float]] = {way: [] for way in built}
    for i in range(rounds + 3):
        for way in list(built)[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            jax.block_until_ready(built[way](*args))
            if i >= 3:
                times[way].append(time.perf_counter() - began)
    figures = {way: program.cost_analysis()["flops"] for way, program in built.items()}
    bytes_ = {way: program.memory_analysis().temp_size_in_bytes for way, program in built.items()}
    ratio = np.asarray(times["jbp"]) / np.asarray(times["autodiff"])
    first = {way: np.add(stages[way]["trace_lower"], stages[way]["compile"]) for way in stages}
    return {
        "net": case.name,
        "flops": figures["jbp"] / figures["autodiff"],
        "temporary_bytes": bytes_["jbp"] / max(bytes_["autodiff"], 1),
        "temporary_bytes_jbp": bytes_["jbp"],
        "milliseconds_jbp": 1e3 * float(np.median(times["jbp"])),
        "milliseconds_autodiff": 1e3 * float(np.median(times["autodiff"])),
        "time": float(np.median(ratio)),
        "time_range": [float(q) for q in np.quantile(ratio, [0.05, 0.95])],
        "trace_lower": _ratio(stages["jbp"]["trace_lower"], stages["autodiff"]["trace_lower"]),
        "first_step": _ratio(first["jbp"], first["autodiff"]),
        "trace_lower_jbp_ms": 1e3 * float(np.median(stages["jbp"]["trace_lower"])),
        "compile_jbp_ms": 1e3 * float(np.median(stages["jbp"]["compile"])),
    }


def _ratio(ours: Any, theirs: Any) -> float:
    """The median of the rounds' ratios."""
    return float(np.median(np.asarray(ours) / np.asarray(theirs)))


DETERMINISTIC = ("flops", "temporary_bytes", "temporary_bytes_jbp")


def show(rows: list[dict[str, Any]]) -> None:
    """The table; ! marks a target that is missed."""
    table = Table(title="one gradient step, jbp over autodiff: medians, time with its 5 to 95 % range")
    for name in ("net", "FLOPs", "bytes", "time", "trace + lower", "first step", "jbp, ms"):
        table.add_column(name, justify="left" if name == "net" else "right")

    def cell(value: float, limit: float, text: str = "") -> str:
        return f"{text or f'{value:.3f}'}{' !' if value > limit else ''}"

    for r in rows:
        low, high = r["time_range"]
        table.add_row(
            r["net"],
            cell(r["flops"], 1.005),
            cell(r["temporary_bytes"], 1.005),
            cell(low, 1.0, f"{r['time']:.2f} ({low:.2f} to {high:.2f})"),
            cell(r["trace_lower"], 0.6 if "255 layers" in r["net"] or "256 layers" in r["net"] else 0.9),
            cell(r["first_step"], 1.0),
            f"{r['milliseconds_jbp']:.2f}",
        )
    Console(width=140).print(table)


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed beyond noise; deterministic losses of over 10 % are marked."""
    before = {row["net"]: row for row in old["rows"]}
    lines = []
    for row in new["rows"]:
        was = before.get(row["net"])
        if was is None:
            lines.append(f"{row['net']}: new")
            continue
        for name in DETERMINISTIC:
            if row[name] > 1.1 * was[name]:
                lines.append(f"LOSS {row['net']}: {name} {was[name]:.4g} -> {row[name]:.4g}")
            elif row[name] != was[name]:
                lines.append(f"{row['net']}: {name} {was[name]:.4g} -> {row[name]:.4g}")
        (low, high), (was_low, was_high) = row["time_range"], was["time_range"]
        if low > was_high or high < was_low:
            lines.append(f"{row['net']}: time {was['time']:.2f} -> {row['time']:.2f}")
    return lines


def main(words: list[str] | None = None) -> int:
    """Run it; answers with the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the three smallest nets, 5 rounds, nothing written")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="print what changed against an older result")
    options = parser.parse_args(words)
    cases = [CASES[i]() for i in ((0, 1, 2) if options.quick else range(len(CASES)))]
    rows = [measure(case, *((5, 1) if options.quick else (30, 5))) for case in claim.progress(cases, "nets")]
    result = {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "rows": rows,
    }
    show(rows)
    lost = False
    if options.compare is not None:
        lines = compare(json.loads(options.compare.read_text()), result)
        print("\n".join(lines) or "nothing changed beyond noise")
        lost = any(line.startswith("LOSS") for line in lines)
    if not options.quick:
        claim.save(RESULT, json.dumps(result, indent=1) + "\n")
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
