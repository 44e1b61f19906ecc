"""A GPT on tiny Shakespeare, by a backward pass written by hand: what it reaches, what it costs, what is seen inside.

The net and the run are those of nanoGPT's readme for a CPU: a context of 64 characters, 4 layers, 4 heads, 128
channels, no biases, tied embedding, 804,096 parameters; 2,000 steps of 12 random crops, AdamW (β 0.9 and 0.99, decay
0.1 on all weights and tables), rate 0.001 after 100 steps of warm-up and then as a cosine to 0.0001, gradients clipped
at norm 1. The first 90 % of the text train, the last 10 % validate.

Claims, by part:
  recipe       the validation loss over all non-overlapping windows, the mean of three seeds, is at most 1.93 nats a
               character. nanoGPT's readme has 1.88 for this run, estimated on few random batches (20 of 12 windows):
               that way is reported too, and is no claim. Beside them a text that each net writes.
  gradient     in float64 the gradient is that of `jax.grad` of a GPT written in plain JAX, to 16 eps of each array's
               largest number.
  temporaries  bytes of temporaries of the gradient, and its products, against autodiff of that plain GPT, of one with
               `jax.checkpoint` around each block, and with `jax.nn.dot_product_attention`, for 64, 512 and 2,048
               positions: deterministic. With 512 and more jbp takes fewer bytes than autodiff without checkpoints.
  growth       the same of attention alone, between the dense layers that make q, k and v and read the result, for 256
               to 4,096 positions: of the gradient, the norms of the examples' gradients and clipping, with the power
               of t that each grows by, fitted from 512 positions on. jbp's temporaries grow as t does (by a power of
               at most 1.15) where autodiff's grow as its square, and with 512 and more jbp takes fewer products for a
               gradient.
  inside       as it trains, at each evaluation: the gradient's noise scale, the norms of the gradients of single
               windows and of single tokens, and the spectra of the layers' Kronecker factors. No claim.

How long it takes beside others is in the benchmark's section `sequences`.

    python experiments/measurements/gpt.py               about 10 minutes on two cores
    python experiments/measurements/gpt.py --only temporaries,gradient
    python experiments/measurements/gpt.py --plot        draws the saved result again
    python experiments/measurements/gpt.py --quick       a small net for some steps, about a minute, nothing written
    needs tiny-shakespeare/input.txt in $JBP_DATA_DIR; writes experiments/results/gpt.json and .png, a part when it ends

Source: Karpathy, nanoGPT, https://github.com/karpathy/nanoGPT; the text: the same, char-rnn, 2015.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import gpt_peers
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp
from jbp.checkpoint import count
from jbp.cli.training import versions
from jbp.data import Vocabulary, windows
from jbp.data.vocabulary import read_text

RESULT = common.RESULTS / "gpt.json"
LOSS = jbp.losses.softmax_cross_entropy
PARTS = ("temporaries", "growth", "gradient", "recipe", "inside")
MOST_LOSS, MOST_EPS, PARAMETERS, MOST_POWER = 1.93, 16, 804_096, 1.15
SMALL = (
    "A spring of water ran beside the old mill, and the miller's daughter came there each morning with two pails.\n"
    "One day she found a grey heron on the wheel, and it would not fly away, and would not say what it wanted.\n"
)
"""What the quick run learns to write."""


@dataclass(frozen=True)
class Config:
    """What a run of the experiment is made of."""

    context: int = 64
    layers: int = 4
    heads: int = 4
    width: int = 128
    batch_size: int = 12
    steps: int = 2000
    every: int = 250
    rate: float = 0.001
    least_rate: float = 0.0001
    warmup: int = 100
    decay: float = 0.1
    clip: float = 1.0
    seeds: tuple[int, ...] = (0, 1, 2)
    estimates: int = 20
    """Random batches of nanoGPT's way to estimate a loss."""
    lengths: tuple[int, ...] = (64, 512, 2048)
    windows: int = 48
    """Whose gradients are looked at one by one."""
    growing: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    """Positions of attention alone."""


QUICK = Config(8, 1, 2, 8, 4, 40, 40, 0.003, 0.0003, 5, seeds=(0,), lengths=(256,), windows=3,
               growing=(32, 64))  # fmt: skip


class Text:
    """The text in tokens, its parts, and the net for it."""

    def __init__(self, config: Config, quick: bool):
        text = SMALL * 20 if quick else read_text(Path(os.environ["JBP_DATA_DIR"]) / "tiny-shakespeare" / "input.txt")
        self.config, self.words = config, Vocabulary.of(text)
        tokens = self.words.encode(text)
        bound = int(0.9 * len(tokens))
        self.train, self.held = tokens[:bound], tokens[bound:]
        self.net = self.of(config.context)

    def of(self, context: int) -> Any:
        """The net for a context."""
        c = self.config
        return jbp.gpt(len(self.words), context, c.layers, c.heads, c.width)

    def params(self, context: int, seed: int = 0) -> Any:
        """Initial ones."""
        return self.of(context).init(jax.random.key(seed), (context,))[0]

    def batch(self, context: int, size: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
        """Random crops."""
        x, y = windows(self.train, context)
        rows = np.random.default_rng(seed).integers(0, len(x), size)
        return jnp.asarray(x[rows]), jnp.asarray(y[rows])


def optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine and clipping."""
    rate = optax.warmup_cosine_decay_schedule(
        config.rate / config.warmup, config.rate, config.warmup, config.steps, config.least_rate
    )
    adam = optax.adamw(rate, b1=0.9, b2=0.99, weight_decay=config.decay, mask=jbp.optim.decay_mask)
    return optax.chain(optax.clip_by_global_norm(config.clip), adam)


# ── What it reaches ─────────────────────────────────────────────────────────────────────────────────────────────────


def recipe(config: Config, text: Text, rows: Callable[[dict[str, Any]], None], seen: Any = None) -> None:
    """Train with every seed; with `seen` only the first, looked at on the way."""
    held = windows(text.held, config.context, config.context)
    chosen = optimizer(config)
    for seed in config.seeds[: 1 if seen else None]:
        began = time.perf_counter()
        options: dict[str, Any] = {"callbacks": [seen], "watch": jbp.Watch(config.every)} if seen else {}
        fitted = jbp.fit(
            text.net, LOSS, chosen, windows(text.train, config.context), steps=config.steps, seed=seed,
            evaluate_every=config.every, batch_size=config.batch_size, sampling="replacement", validation_data=held,
            **options,
        )  # fmt: skip
        if seen:
            for row in fitted.watched:
                rows({"what": "noise scale", "step": row["step"], "noise scale": row["noise_scale"],
                      "tr Σ": row["gradient_noise"], "‖G‖²": row["gradient_square"]})  # fmt: skip
            return
        curve = [[row["step"], row["train_loss"], row["validation_loss"]] for row in fitted.history]
        start = text.words.encode("\n")
        key = jax.random.key(seed)
        wrote = jbp.generate(text.net, fitted.params, start, 400, temperature=0.8, top_k=200 % len(text.words), key=key)
        rows({
            "seed": seed, "validation_loss": curve[-1][2], "windows": len(held[0]),
            "bits_per_character": curve[-1][2] / math.log(2),
            "validation_loss, nanoGPT's way": estimated(config, text, fitted.params, seed),
            "seconds": time.perf_counter() - began, "parameters": count(fitted.params), "curve": curve,
            "text": text.words.decode(wrote),
        })  # fmt: skip


def estimated(config: Config, text: Text, params: Any, seed: int) -> float:
    """The mean loss of some batches of random windows of the validation part."""
    x, y = windows(text.held, config.context)
    loss = jax.jit(lambda params, x, y: jax.vmap(LOSS.value)(jbp.apply(text.net, params, x), y).mean())
    drawn = np.random.default_rng(seed).integers(0, len(x), (config.estimates, config.batch_size))
    return float(np.mean([loss(params, jnp.asarray(x[rows]), jnp.asarray(y[rows])) for rows in drawn]))


# ── What it costs ────────────────────────────────────────────────────────────────────────────────────────────────────


def gradient(config: Config, text: Text, rows: Callable[[dict[str, Any]], None]) -> None:
    """In float64, at parameters that are not those of the start."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda p: jnp.asarray(p + 0.1 * rng.normal(size=p.shape), float), text.params(config.context)
        )
        x, y = text.batch(config.context, config.batch_size)
        ours = jax.jit(jbp.value_and_grad(text.net, LOSS))(params, x, y)
        theirs = jax.jit(jax.value_and_grad(gpt_peers.loss_of(config.heads)))(params, x, y)
        found = [float(abs(ours[0] - theirs[0]) / theirs[0])]
        for a, b in zip(*map(jax.tree.leaves, (ours[1], theirs[1])), strict=True):
            found.append(float(jnp.abs(a - b).max() / jnp.abs(b).max()))
        rows({"what": "error in eps of each array's largest", "loss": found[0] / np.finfo(float).eps,
              "worst": max(found[1:]) / np.finfo(float).eps, "arrays": len(found) - 1})  # fmt: skip


def ways(text: Text, context: int) -> dict[str, Callable[..., Any]]:
    """Functions (params, x, y) -> value and gradient."""
    heads = text.config.heads
    plain, fused = gpt_peers.attention, gpt_peers.attention_of_jax
    return {
        "jbp": jbp.value_and_grad(text.of(context), LOSS),
        "autodiff": jax.value_and_grad(gpt_peers.loss_of(heads, attend=plain)),
        "autodiff, jax.checkpoint": jax.value_and_grad(gpt_peers.loss_of(heads, True, plain)),
        "autodiff, dot_product_attention": jax.value_and_grad(gpt_peers.loss_of(heads, attend=fused)),
    }


def temporaries(config: Config, text: Text, rows: Callable[[dict[str, Any]], None]) -> None:
    """By XLA's own analysis, and matrix products counted in the program, loops as often as they run."""
    for t in config.lengths:
        params, (x, y) = text.params(t), text.batch(min(t, len(text.train) - 2), config.batch_size)
        for name, way in ways(text, t).items():
            memory: Any = jax.jit(way).lower(params, x, y).compile().memory_analysis()
            rows({"way": name, "t": t, "temporary_bytes": memory.temp_size_in_bytes,
                  "product_flops": products(way, params, x, y)})  # fmt: skip


def growth(config: Config, text: Text, rows: Callable[[dict[str, Any]], None]) -> None:
    """Of dense, attention, dense on two sequences, by the same counts; nothing is run."""
    width, heads, found = config.width, config.heads, {}
    net, loss = jbp.serial(jbp.Dense(3 * width), jbp.Attention(heads), jbp.Dense(width)), jbp.losses.l2_loss
    for t in config.growing:
        x = jax.ShapeDtypeStruct((2, t, width), jnp.float32)
        params = jax.eval_shape(lambda t=t: net.init(jax.random.key(0), (t, width))[0])
        for (what, way), program in attention_ways(net, loss, heads).items():
            memory: Any = jax.jit(program).lower(params, x, x).compile().memory_analysis()
            counts = {"temporary_bytes": memory.temp_size_in_bytes, "product_flops": products(program, params, x, x)}
            rows({"what": what, "way": way, "t": t} | counts)
            found.setdefault((what, way), []).append((t, *counts.values()))
    for (what, way), counts in found.items():
        t, *sizes = np.log([row for row in counts if row[0] >= 512 or len(counts) < 4]).T
        bytes_, flops = (float(np.polyfit(t, size, 1)[0]) for size in sizes)
        rows({"what": what, "way": way, "power of t": {"temporary_bytes": bytes_, "product_flops": flops}})


def attention_ways(net: Any, loss: Any, heads: int) -> dict[tuple[str, str], Callable[..., Any]]:
    """Functions (params, x, y) of what is made and by whom."""

    def error(attend: Callable[..., Any]) -> Callable[..., Any]:
        def value(params: Any, x: Any, y: Any) -> Any:
            first, _, last = params
            h = attend(x @ first["weight"] + first["bias"], heads) @ last["weight"] + last["bias"]
            return 0.5 * jnp.square(h - y).sum(-1).mean()

        return value

    def each(params: Any, x: Any, y: Any) -> Any:
        one = jax.grad(error(gpt_peers.attention))
        return jax.vmap(lambda x, y: one(params, x[None], y[None]))(x, y)

    def norms(params: Any, x: Any, y: Any) -> Any:
        return jnp.sqrt(sum(jnp.square(g).reshape(len(x), -1).sum(1) for g in jax.tree.leaves(each(params, x, y))))

    def clipped(params: Any, x: Any, y: Any) -> Any:
        found = each(params, x, y)
        size = jnp.sqrt(sum(jnp.square(g).reshape(len(x), -1).sum(1) for g in jax.tree.leaves(found)))
        return jax.tree.map(lambda g: jnp.tensordot(jnp.minimum(1, 1 / size), g, 1), found)

    def of_pairs(statistic: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, x, y: statistic(jbp.value_and_pairs(net, loss, params, x, y)[1])

    return {
        ("gradient", "jbp"): jbp.value_and_grad(net, loss),
        ("gradient", "autodiff"): jax.value_and_grad(error(gpt_peers.attention)),
        ("gradient", "autodiff, dot_product_attention"): jax.value_and_grad(error(gpt_peers.attention_of_jax)),
        ("norms", "jbp"): of_pairs(jbp.stats.norms),
        ("norms", "autodiff of each example"): norms,
        ("clipped", "jbp"): of_pairs(lambda pairs: jbp.stats.clipped(pairs, 1.0)),
        ("clipped", "autodiff of each example"): clipped,
    }


def products(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of the matrix products of a program, dead code left out."""
    from jax.interpreters import partial_eval

    closed = jax.make_jaxpr(function)(*args)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _products(jaxpr)


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        values = [v for p in equation.params.values() for v in (p if isinstance(p, tuple | list) else (p,))]
        inner = [getattr(v, "jaxpr", v) for v in values if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            size = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * size * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(map(_products, inner))
    return total


# ── What is seen inside ─────────────────────────────────────────────────────────────────────────────────────────────


def inside(config: Config, text: Text, rows: Callable[[dict[str, Any]], None]) -> None:
    """The first seed once more, looked at before the first step and at every evaluation."""
    x, y = text.batch(config.context, config.windows, seed=7)

    @jax.jit
    def norms(params: Any) -> tuple[jax.Array, jax.Array]:
        """Of the gradient of each window [n]; of single tokens of the first window [t]: of the losses at each place,
        which δ at that place alone makes."""
        _, pairs = jbp.value_and_pairs(text.net, LOSS, params, x, y)
        t = config.context
        once, target = (jnp.broadcast_to(a[:1], (t, t)) for a in (x, y))
        output, saved = jbp.forward(text.net, params, once)
        delta = t * jax.vmap(LOSS.delta)(output, target) * jnp.eye(t, dtype=output.dtype)[:, :, None]
        return jbp.stats.norms(pairs), jbp.stats.norms(jbp.backward(text.net, params, saved, delta)[1])

    @jax.jit
    def factors(params: Any, key: Any) -> Any:
        found = jbp.curvature.kronecker_factors(text.net, LOSS, params, x, y, delta="sampled", key=key)
        blocks = found[2]
        return {"qkv": blocks[0][1], "out": blocks[0][3], "up": blocks[1][1], "down": blocks[1][3]}

    def look(step: int, params: Any) -> None:
        whole, single = (np.asarray(a, float) for a in norms(params))
        for what, found in (("norms of windows", whole), ("norms of tokens", single)):
            rows({"what": what, "step": step, "quantiles": np.quantile(found, (0, 0.25, 0.5, 0.75, 1)).tolist(),
                  "mean": float(found.mean()), "of": len(found)})  # fmt: skip
        for name, pair in factors(params, jax.random.key(step)).items():
            for side, matrix in (("A", pair["weight"].a), ("G", pair["weight"].g)):
                for layer, m in enumerate(np.asarray(matrix, float)):
                    values = np.maximum(np.linalg.eigvalsh(m)[::-1], 0.0)
                    share = np.cumsum(values) / values.sum()
                    rows({"what": "spectrum", "step": step, "weight": name, "factor": side, "layer": layer,
                          "size": len(values), "trace": float(values.sum()),
                          "effective rank": float(values.sum() ** 2 / (values**2).sum()),
                          "half the trace": int((share < 0.5).sum()) + 1})  # fmt: skip

    look(0, text.params(config.context))

    def seen(event: jbp.Event) -> None:
        if event.row:
            look(event.step, event.params)

    recipe(config, text, rows, seen)


# ── The run, its check and its picture ──────────────────────────────────────────────────────────────────────────────

RUN = {
    "temporaries": temporaries,
    "growth": growth,
    "gradient": gradient,
    "recipe": recipe,
    "inside": inside,
}


def run(config: Config, parts: tuple[str, ...], quick: bool, result: dict[str, Any]) -> dict[str, Any]:
    """The parts, one after the other; each row is kept as it comes."""
    text = Text(config, quick)
    for part in parts:
        found: list[dict[str, Any]] = []
        began = time.perf_counter()

        def keep(row: dict[str, Any], part: str = part, found: Any = found, began: float = began) -> None:
            found.append(row)
            shown = {name: value for name, value in row.items() if name not in ("text", "curve")}
            print(part, json.dumps(shown, ensure_ascii=False), flush=True)
            about = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "versions": versions(),
                     "seconds": time.perf_counter() - began}  # fmt: skip
            result.setdefault("parts", {})[part] = about | {"rows": found}
            if not quick:
                common.write(RESULT, result)

        RUN[part](config, text, keep)
    return result


def check(result: dict[str, Any], quick: bool = False) -> None:
    """Raise unless the claims of the parts that were run hold; `quick`: those that do not hang on the size."""
    parts = {name: part["rows"] for name, part in result["parts"].items()}
    for row in parts.get("gradient", ()):
        common.require(row["worst"] <= MOST_EPS, f"the gradient is {row['worst']:.1f} eps off")
    for t in {row["t"] for row in parts.get("temporaries", ())}:
        found = {row["way"]: row["temporary_bytes"] for row in parts["temporaries"] if row["t"] == t}
        held = t < 512 or found["jbp"] < min(found["autodiff"], found["autodiff, dot_product_attention"])
        common.require(held, f"at {t} positions jbp takes {found['jbp']:,} bytes of temporaries: {found}")
    _check_growth(parts.get("growth", ()), quick)
    runs = parts.get("recipe", ())
    if runs and not quick:
        losses = [row["validation_loss"] for row in runs]
        common.require(len(losses) == len(result["config"]["seeds"]), f"only {len(losses)} seeds were run")
        mean = statistics.mean(losses)
        common.require(mean <= MOST_LOSS, f"the mean validation loss is {mean:.3f}, above {MOST_LOSS}")
        common.require(all(row["parameters"] == PARAMETERS for row in runs), "another number of parameters")


def _check_growth(rows: Any, quick: bool) -> None:
    """That temporaries grow as t does, and products are fewer."""
    for row in rows:
        if row["way"] == "jbp" and "power of t" in row and not quick:
            power = row["power of t"]["temporary_bytes"]
            common.require(power <= MOST_POWER, f"temporaries of {row['what']} grow by t to the power {power:.2f}")
        if row["way"] == "jbp" and row["what"] == "gradient" and row.get("t", 0) >= 512:
            others = [r for r in rows if (r["what"], r.get("t")) == ("gradient", row["t"]) and r is not row]
            fewer = all(row["product_flops"] < other["product_flops"] for other in others)
            common.require(fewer, f"at {row['t']} positions attention's gradient takes {row['product_flops']:,} FLOPs")


def plot(result: dict[str, Any]) -> None:
    """Losses, noise scale, norms, spectra and temporaries, as far as they were run, as gpt.png."""
    from matplotlib.figure import Figure

    parts = {name: part["rows"] for name, part in result["parts"].items()}
    drawers = {
        "recipe": _draw_losses, "noise": _draw_noise, "norms": _draw_norms, "spectra": _draw_spectra,
        "temporaries": _draw_temporaries,
    }  # fmt: skip
    inner = parts.get("inside", [])
    rows = parts | {
        "noise": [row for row in inner if row["what"] == "noise scale"],
        "norms": [row for row in inner if row["what"].startswith("norms")],
        "spectra": [row for row in inner if row["what"] == "spectrum"],
    }
    wanted = [name for name in drawers if rows.get(name)]
    figure = Figure(figsize=(4.2 * len(wanted), 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True):
        drawers[name](axes, rows[name])
        axes.grid(alpha=0.3)
    figure.savefig(RESULT.with_suffix(".png"), dpi=120)


def _draw_losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    for i, row in enumerate(rows):
        steps, train, held = zip(*row["curve"], strict=True)
        axes.plot(steps, train, "-", color="tab:blue", alpha=0.6, label=None if i else "training")
        axes.plot(steps, held, "--", color="tab:orange", alpha=0.8, label=None if i else "validation")
    axes.axhline(MOST_LOSS, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="steps", ylabel="nats per character", title=f"loss, {len(rows)} seeds")
    axes.legend(frameon=False)


def _draw_noise(axes: Any, rows: list[dict[str, Any]]) -> None:
    axes.plot([row["step"] for row in rows], [row["noise scale"] for row in rows], "o-", color="tab:blue")
    axes.set(xlabel="steps", yscale="log", ylabel="windows", title="noise scale tr Σ/‖G‖²")


def _draw_norms(axes: Any, rows: list[dict[str, Any]]) -> None:
    for what, colour in (("norms of windows", "tab:blue"), ("norms of tokens", "tab:orange")):
        found = [row for row in rows if row["what"] == what]
        steps, q = [row["step"] for row in found], np.array([row["quantiles"] for row in found])
        axes.plot(steps, q[:, 2], "o-", color=colour, label=what)
        axes.fill_between(steps, q[:, 0], q[:, 4], color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="steps", yscale="log", title="‖g‖: median and range")
    axes.legend(frameon=False)


def _draw_spectra(axes: Any, rows: list[dict[str, Any]]) -> None:
    for name, colour in (("qkv", "tab:blue"), ("out", "tab:orange"), ("up", "tab:green"), ("down", "tab:red")):
        for side, line in (("A", "-"), ("G", "--")):
            found = [row for row in rows if (row["weight"], row["factor"]) == (name, side)]
            steps = sorted({row["step"] for row in found})
            ranks = [statistics.mean(r["effective rank"] for r in found if r["step"] == step) for step in steps]
            axes.plot(steps, ranks, line, color=colour, label=f"{name} {side}")
    axes.set(xlabel="steps", yscale="log", title="effective rank of Kronecker factors")
    axes.legend(frameon=False, ncols=2, fontsize=8)


def _draw_temporaries(axes: Any, rows: list[dict[str, Any]]) -> None:
    for way in dict.fromkeys(row["way"] for row in rows):
        found = [row for row in rows if row["way"] == way]
        style = "o-" if way == "jbp" else "o--"
        axes.plot([row["t"] for row in found], [row["temporary_bytes"] / 2**20 for row in found], style, label=way)
    axes.set(xlabel="positions", xscale="log", yscale="log", ylabel="MiB", title="temporaries of a gradient")
    axes.legend(frameon=False, fontsize=8)


def main() -> None:
    """The parts that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small net, nothing written")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--plot", action="store_true", help="check and draw the saved result again")
    options = parser.parse_args()
    parts = tuple(part.strip() for part in options.only.split(","))
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}, but got {', '.join(sorted(unknown))}")
    if options.quick:
        check(run(QUICK, parts, True, {"config": asdict(QUICK)}), quick=True)
        return
    saved: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if not options.plot:
        if not (Path(os.environ.get("JBP_DATA_DIR", "")) / "tiny-shakespeare" / "input.txt").exists():
            print("there is no tiny-shakespeare/input.txt in $JBP_DATA_DIR, so nothing was run", file=sys.stderr)
            sys.exit(2)
        saved = run(Config(), parts, False, saved | {"config": asdict(Config())})
    plot(saved)
    check(saved)


if __name__ == "__main__":
    main()
