"""Where should `sign` stand in signSGD, and which second moment should precondition Adam? Asked of single examples.

Roulet and Agarwala ("Per-example gradients: a new frontier for understanding and improving optimizers", arXiv
2510.00236, 2025) look at two optimisers from inside the mini-batch. Usually an optimiser sees the mean of a batch's
gradients; where those of single examples cost no second backward pass, as there and here, what is not linear may stand
in front of the mean too. They find that a sign belongs as late in the chain as can be, as the ratio of signal to noise
says beforehand; and that Adam does best where its second moment is mostly the square of the mean gradient, and not the
variance. Both are asked here of a small GPT on characters, with mean and standard error over seeds:

  sign     three places for it, in the chain gradient of an example → mean over the batch → momentum (β = 0.9):
             each example    m ← β m + (1 − β) mean sign(gₙ),  step m
             the batch       m ← β m + (1 − β) sign(mean gₙ),  step m
             the momentum    m ← β m + (1 − β) mean gₙ,        step sign(m)
           The argument: how often the sign of a noisy number is that of its mean grows with |μ|/σ. Of one example that
           ratio is small in most parameters, of the batch's mean √B times as large, of the momentum's up to
           √((1 + β)/(1 − β)) times that again. It is measured, at the start and at the end.
  adam     four second moments v, each with Adam's averages (β 0.9, 0.999) of one mean gradient:
             the mean's      ḡ² − s²/B, which estimates μ² alone; but at least ḡ²/16, or steps would have no bound
             Adam's own      ḡ², of which σ²/B comes from the batch's noise
             the examples'   1/B Σ gₙ², which estimates μ² + σ²
             the variance    s², which estimates σ²

Claims: with `sign` at the momentum the loss on held out text is lower than with it at each example, by more than two
standard errors; and Adam's own is lower than that of the examples' second moment and of the variance, likewise. The
learning rate of each is chosen among a few, on a validation part and with seeds of its own; where the best lies at an
end of the few, more are tried beyond it. The losses that are compared are of another part, which chose nothing.

    python experiments/measurements/per_example_optimizers.py          about 8 minutes on two cores
    python experiments/measurements/per_example_optimizers.py --plot   draws the saved result again
    python experiments/measurements/per_example_optimizers.py --quick  a smaller net, few steps, about two minutes;
                                                                       nothing written, nothing claimed
    needs tiny-shakespeare/input.txt in $JBP_DATA_DIR; writes experiments/results/per_example_optimizers.json and .png
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import jax
import jax.numpy as jnp
import numpy as np

import jbp
from jbp.cli.training import versions
from jbp.data import Vocabulary, windows
from jbp.data.vocabulary import read_text
from jbp.step import moved, optimised

RESULT = common.RESULTS / "per_example_optimizers.json"
LOSS = jbp.losses.softmax_cross_entropy
SMALL = "the cat sat on the mat; the dog lay by the door; a bird sang in the tree, and rain fell on the roof. "
BETA, BETA2, EPSILON = 0.9, 0.999, 1e-8
SIGNS = ("each example", "the batch", "the momentum")
MOMENTS = ("the mean's", "Adam's own", "the examples'", "the variance")


@dataclass(frozen=True)
class Config:
    """What a run of the experiment is made of."""

    context: int = 32
    layers: int = 2
    heads: int = 2
    width: int = 32
    batch_size: int = 16
    steps: int = 600
    sign_rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03)
    adam_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    rate_seeds: tuple[int, ...] = (100, 101)
    held: int = 512
    """Windows of the validation part, of the part that is compared on, and of training for the signal and its noise."""


QUICK = Config(8, 1, 2, 8, 8, 30, (0.003,), (0.01,), (0, 1), (100,), 15)


@dataclass(frozen=True)
class PerExample(jbp.Method):
    """A method that looks at the gradient of each example, and hands the optimiser, plain descent, a direction."""

    kind: str
    batch_size: int

    def init(self, key: Any, problem: Any, params: Any, example: Any) -> Any:
        """The averages m and v, and how many steps they are of."""
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros, jnp.zeros((), jnp.int32)

    def sums(self, problem: Any, state: Any, batch: Any, key: Any) -> jbp.Sums:
        """Σ wₙ gₙ, and what of the examples the step is made of: Σ wₙ sign gₙ, or Σ wₙ gₙ²; all of it adds up."""
        errors, pairs = jbp.value_and_pairs(
            problem.net, problem.loss, state.params, batch.x, batch.y, key, batch.weights
        )
        n = len(batch.y)
        weights = jnp.full(n, 1 / n) if batch.weights is None else batch.weights
        grads = jbp.contract(pairs, weights)
        extra: Any = ()
        if self.kind == "each example":
            extra = jax.tree.map(lambda g: jnp.tensordot(weights, jnp.sign(g), 1), jbp.stats.per_example(pairs))
        elif self.kind in ("the mean's", "the examples'", "the variance"):
            extra = jbp.stats.second_moment(pairs)
        return jbp.Sums((weights * errors).sum(), grads, (), extra)

    def update(self, problem: Any, state: Any, found: jbp.Sums, value_fn: Any) -> Any:
        """One step of descent in the direction that the averages say."""
        m, v, count = state.method_state
        count, means = count + 1, found.grads
        if self.kind in ("each example", "the batch", "the momentum"):
            seen = {"each example": found.extra, "the batch": jax.tree.map(jnp.sign, means)}.get(self.kind, means)
            m = jax.tree.map(lambda m, g: BETA * m + (1 - BETA) * g, m, seen)
            way = jax.tree.map(jnp.sign, m) if self.kind == "the momentum" else m
        else:
            m = jax.tree.map(lambda m, g: BETA * m + (1 - BETA) * g, m, means)
            squares = found.extra if found.extra != () else means
            v = jax.tree.map(lambda v, g, s: BETA2 * v + (1 - BETA2) * self.moment(g, s), v, means, squares)
            t = count.astype(jnp.float32)
            way = jax.tree.map(
                lambda m, v: m / (1 - BETA**t) / (jnp.sqrt(jnp.maximum(v, 0.0) / (1 - BETA2**t)) + EPSILON), m, v
            )
        updates, opt_state = optimised(problem, state, found._replace(grads=way), value_fn)
        return moved(problem, state, updates, opt_state, method_state=(m, v, count))

    def moment(self, mean: Any, square: Any) -> Any:
        """What v is the average of, from the batch's ḡ and 1/B Σ gₙ²."""
        size = self.batch_size
        spread = jnp.maximum(square - mean**2, 0.0) * (size / (size - 1))
        return {
            "the mean's": jnp.maximum(mean**2 - spread / size, mean**2 / 16), "Adam's own": mean**2,
            "the examples'": square, "the variance": spread,
        }[self.kind]  # fmt: skip


def rate_of(rate: Any) -> Any:
    """Plain descent: what a rate is of is the method's."""
    return jbp.optim.sgd(rate)


class Task:
    """Text, net, and how they are trained."""

    def __init__(self, config: Config, quick: bool):
        text = SMALL * 30 if quick else read_text(Path(os.environ["JBP_DATA_DIR"]) / "tiny-shakespeare" / "input.txt")
        words = Vocabulary.of(text)
        tokens, self.config = words.encode(text), config
        bound = int(0.9 * len(tokens))
        self.train = windows(tokens[:bound], config.context)
        x, y = windows(tokens[bound:], config.context, config.context)
        parts = slice(0, config.held), slice(config.held, 2 * config.held)
        self.choosing, self.held = ((jnp.asarray(x[part]), jnp.asarray(y[part])) for part in parts)
        common.require(len(x) >= 2 * config.held, f"the text has {len(x)} windows to hold out, which is too few")
        rows = np.random.default_rng(0).integers(0, len(self.train[0]), config.held)
        self.seen = tuple(jnp.asarray(a[rows]) for a in self.train)
        self.net = jbp.gpt(len(words), config.context, config.layers, config.heads, config.width)

    def many(self, kind: str, seeds: tuple[int, ...], rates: tuple[float, ...], held: Any) -> jbp.Many:
        """All seeds with all rates, side by side, evaluated on the held out windows."""
        c = self.config
        return jbp.fit_many(
            self.net, LOSS, rate_of, self.train, seeds=seeds, learning_rates=rates, steps=c.steps,
            batch_size=c.batch_size, sampling="replacement", rule=PerExample(kind, c.batch_size),
            validation_data=held,
        )  # fmt: skip

    def signal(self, params: Any) -> dict[str, float]:
        """The median over all parameters of |μ|/σ of one example, and how often its sign is the mean's."""

        @jax.jit
        def ratios(params: Any) -> tuple[Any, Any]:
            _, pairs = jbp.value_and_pairs(self.net, LOSS, params, *self.seen)
            spread, mean = jbp.stats.variance(pairs), jbp.contract(pairs)
            ratio = jax.tree.map(lambda m, s: jnp.abs(m) / jnp.sqrt(s), mean, spread)
            return ratio, mean

        ratio, _ = ratios(params)
        flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(ratio)])
        median = float(np.nanmedian(flat))
        b = math.sqrt(self.config.batch_size)
        return {"example": median, "batch": b * median, "momentum": b * math.sqrt((1 + BETA) / (1 - BETA)) * median}


def final(many: jbp.Many) -> dict[float, list[float]]:
    """The validation losses of each rate's seeds at the end; of a run that diverged infinity."""
    found: dict[float, list[float]] = {}
    for run in many.runs:
        loss = math.inf if run.diverged_at is not None else run.history[-1]["validation_loss"]
        found.setdefault(float(run.learning_rate or 0.0), []).append(loss)
    return found


def chosen(task: Task, kind: str, rates: tuple[float, ...]) -> tuple[float, dict[float, float]]:
    """The rate whose loss on the validation part is lowest, and the mean loss of each; one of them needs no choice."""
    if len(rates) == 1:
        return rates[0], {}
    means: dict[float, float] = {}
    best = rates[0]
    for _ in range(3):
        found = final(task.many(kind, task.config.rate_seeds, rates, task.choosing))
        means |= {rate: statistics.mean(losses) for rate, losses in found.items()}
        best, tried = min(means, key=lambda rate: means[rate]), sorted(means)
        if best not in (tried[0], tried[-1]):
            break
        rates = (best / 3, best / 10) if best == tried[0] else (3 * best, 10 * best)
    return best, dict(sorted(means.items()))


def run(config: Config, quick: bool = False) -> dict[str, Any]:
    """Choose each one's rate, then train with every seed; what ends is kept at once."""
    began, task = time.perf_counter(), Task(config, quick)
    result: dict[str, Any] = {"config": asdict(config), "net": repr(task.net), "signal over noise": {}, "rows": []}
    start = task.net.init(jax.random.key(0), (config.context,))[0]
    result["signal over noise"]["at the start"] = task.signal(start)
    for kind in (*SIGNS, *MOMENTS):
        rates = config.sign_rates if kind in SIGNS else config.adam_rates
        rate, means = chosen(task, kind, rates)
        many = task.many(kind, config.seeds, (rate,), task.held)
        losses = next(iter(final(many).values()))
        row = {"kind": kind, "part": "sign" if kind in SIGNS else "adam", "learning_rate": rate, "held out": losses,
               "by rate": {f"{r:g}": mean if math.isfinite(mean) else None for r, mean in means.items()},
               "curve": _curve(many)}  # fmt: skip
        result["rows"].append(row)
        if kind == "Adam's own":
            result["signal over noise"]["at the end, with Adam"] = task.signal(many.params_of(0))
        print(worded(row), f"({time.perf_counter() - began:.0f} s)", flush=True)
        about = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "versions": versions()}
        result |= about | {"seconds": time.perf_counter() - began}
        if not quick:
            common.write(RESULT, result)
    return result


def _curve(many: jbp.Many) -> list[float]:
    """The mean training loss of all seeds, over 30 parts of the run."""
    losses = np.nanmean(many.step_losses, 0)
    return [float(part.mean()) for part in np.array_split(losses, min(30, len(losses)))]


def spread(row: dict[str, Any]) -> tuple[float, float]:
    """Mean and standard error over seeds."""
    found = row["held out"]
    if not all(map(math.isfinite, found)):
        return math.inf, math.inf
    return statistics.mean(found), statistics.stdev(found) / math.sqrt(len(found))


def worded(row: dict[str, Any]) -> str:
    """A line about one way."""
    mean, error = spread(row)
    return f"{row['part']}  {row['kind']:14s} rate {row['learning_rate']:<7g} held out loss {mean:.3f} ± {error:.3f}"


def check(result: dict[str, Any]) -> None:
    """Raise unless both claims hold."""
    rows = {row["kind"]: spread(row) for row in result["rows"]}

    def lower(better: str, worse: str) -> None:
        (a, da), (b, db) = rows[better], rows[worse]
        held = b - a > 2 * math.hypot(da, db)
        common.require(held, f"{better}: {a:.3f} ± {da:.3f} is not below {worse}: {b:.3f} ± {db:.3f}")

    lower("the momentum", "each example")
    for worse in ("the examples'", "the variance"):
        lower("Adam's own", worse)


def plot(result: dict[str, Any]) -> None:
    """Training losses over the steps, and what each seed reached."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    colours = ("tab:red", "tab:orange", "tab:blue", "tab:green")
    for (left, right), part in zip(figure.subplots(1, 4).reshape(2, 2), ("sign", "adam"), strict=True):
        rows = [row for row in result["rows"] if row["part"] == part]
        for row, colour in zip(rows, colours, strict=False):
            at = np.linspace(0, result["config"]["steps"], len(row["curve"]))
            left.plot(at, row["curve"], color=colour, label=row["kind"])
        left.set(xlabel="steps", ylabel="training loss", title="sign at" if part == "sign" else "v of Adam is")
        left.legend(frameon=False)
        for i, (row, colour) in enumerate(zip(rows, colours, strict=False)):
            mean, error = spread(row)
            right.plot([i] * len(row["held out"]), row["held out"], "o", color=colour, alpha=0.4, markersize=4)
            right.errorbar(i, mean, 2 * error, fmt="_", color=colour, markersize=14, capsize=4)
        right.set_xticks(range(len(rows)), [row["kind"] for row in rows], rotation=20)
        right.set(ylabel="held out loss", title="seeds, mean ± 2 s.e.")
        for axes in (left, right):
            axes.grid(alpha=0.3)
    figure.savefig(RESULT.with_suffix(".png"), dpi=120)


def main() -> None:
    """Run, check, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller net, few steps, nothing written or claimed")
    parser.add_argument("--plot", action="store_true", help="check and draw the saved result again")
    options = parser.parse_args()
    if options.quick:
        run(QUICK, quick=True)
        return
    if options.plot:
        result = json.loads(RESULT.read_text())
    else:
        if not (Path(os.environ.get("JBP_DATA_DIR", "")) / "tiny-shakespeare" / "input.txt").exists():
            print("there is no tiny-shakespeare/input.txt in $JBP_DATA_DIR, so nothing was run", file=sys.stderr)
            sys.exit(2)
        result = run(Config())
    plot(result)
    check(result)


if __name__ == "__main__":
    main()
