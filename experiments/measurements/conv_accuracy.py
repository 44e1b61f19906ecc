"""Accuracy of convolutional nets: a small one trained as well as it goes, and LeNet under four ways back for the error.

Claims, each a mean over three seeds on the 10,000 test images, which are read once, at the end of each of these runs:
  mnist    a LeNet-class net (two convolutions of 5×5, batch normalisation, max pooling, one hidden dense layer) with
           shifted images and dropout: at least 99.3 %
  fashion  the same net with twice the maps on Fashion-MNIST, with shifted and mirrored images: at least 92 %
  rules    LeNet (6, 16 and 120 maps, 84 units, ReLU) by backpropagation, feedback alignment, direct feedback alignment
           and sign symmetry, on both sets: every rule trains it, its mean error is at most 5 % and 20 %; the published
           errors of the same rules, 0.91 to 1.70 % and 9.20 to 13.06 %, stand beside ours

Of the 60,000 training images 6,000 are held out. A learning rate is chosen on them, among three and with a seed of its
own; everything else was fixed beforehand. The runs that choose take three epochs, but for the two rules of feedback
alignment as many as the runs themselves, and from lower rates: with those that looked best after three epochs some of
their seeds broke down later. The seeds then train on the other 54,000, and their last epoch counts. A rate at which a
seed breaks down, with fewer than half of the images held out read right, is given up for the next best: its rows stay
in the file, and those of the last rate count.

Published: BioTorch, https://github.com/jsalbert/biotorch, Benchmarks.md: one run each, the model of the best epoch,
where the 10,000 images that choose the epoch are those that the error is given for: selected on the test set. Its
LeNet sees images of 32×32; ours pads 28×28 to that in the first convolution.

    python experiments/measurements/conv_accuracy.py                  as many epochs as planned; a GPU takes minutes
    python experiments/measurements/conv_accuracy.py --minutes 120    two hours on two cores: fewer epochs, as they fit
    python experiments/measurements/conv_accuracy.py --only rules     one part; the rows of the others stay as they are
    python experiments/measurements/conv_accuracy.py --plot           draws the saved result again and checks it
    python experiments/measurements/conv_accuracy.py --quick          on enlarged digits, half a minute, nothing written
    needs both sets, in $JBP_DATA_DIR for example; writes experiments/results/conv_accuracy.json (--out: elsewhere),
    after every run, and the picture beside it: a run that is stopped leaves what it reached, the next one goes on
    from there, and with --again everything is trained once more

Each row says on which device it was run and for how many epochs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp
from jbp.cli.training import versions
from jbp.rules import DirectFeedbackAlignment, FeedbackAlignment, Rule, SignSymmetry

RESULT = common.RESULTS / "conv_accuracy.json"
SECTIONS = ("mnist", "fashion", "rules")
RULES: dict[str, Rule | None] = {
    "backpropagation": None,
    "feedback alignment": FeedbackAlignment(),
    "direct feedback alignment": DirectFeedbackAlignment(),
    "sign symmetry": SignSymmetry(),
}
PUBLISHED = {
    "mnist": {"backpropagation": 0.91, "feedback alignment": 1.70, "direct feedback alignment": 1.61,
              "sign symmetry": 0.94},
    "fashion-mnist": {"backpropagation": 9.20, "feedback alignment": 13.06, "direct feedback alignment": 12.81,
                      "sign symmetry": 9.69},
}  # fmt: skip
"""Errors in %; sign symmetry is their uSF, uniform magnitudes, as `SignSymmetry()`."""
NEED = {"mnist": 0.993, "fashion": 0.92}
MOST = {"mnist": 0.05, "fashion-mnist": 0.20}
"""The largest mean error of a rule."""
BROKEN = 0.5
"""A validation accuracy below which a rate is given up."""
LOSS = jbp.losses.softmax_cross_entropy


@dataclass(frozen=True)
class Config:
    """What the runs are made of."""

    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    widths: tuple[tuple[str, tuple[int, int, int]], ...] = (("mnist", (16, 32, 128)), ("fashion", (32, 64, 128)))
    drop_rate: float = 0.3
    shift: int = 2
    epochs: tuple[tuple[str, int], ...] = (("mnist", 12), ("fashion", 16), ("rules", 10))
    choice_epochs: int = 3
    """Of the runs that choose a learning rate."""
    rates: tuple[float, ...] = (0.02, 0.05, 0.1)
    rule_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    alignment_rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    """Of the rules that learn by aligning: chosen in whole runs."""
    held_out: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2)
    rate_seed: int = 100
    rules: tuple[str, ...] = tuple(RULES)
    digits: bool = False
    """Enlarged digits in the place of every data set."""


QUICK = Config(
    batch_size=32, widths=(("mnist", (4, 8, 16)),), epochs=(("mnist", 4), ("rules", 4)), rates=(0.05,),
    rule_rates=(0.01,), alignment_rates=(0.01,), seeds=(0,), rules=("direct feedback alignment",), digits=True,
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A data set, a net and a way back, to be trained with every rate and then with every seed."""

    section: str
    data: str
    rule: str = "backpropagation"

    def net(self, config: Config) -> jbp.Layer:
        """LeNet for the rules; for accuracy one that is wider and normalised."""
        if self.section == "rules":
            maps = [
                layer
                for width, padding in ((6, "same"), (16, "valid"))
                for layer in (jbp.Conv(width, 5, padding=padding), jbp.relu, jbp.MaxPool(2))
            ]
            deep = (jbp.Conv(120, 5, padding="valid"), jbp.relu, jbp.Flatten(), jbp.Dense(84), jbp.relu)
            return jbp.serial(jbp.Channel(), *maps, *deep, jbp.Dense(10))
        *maps, hidden = dict(config.widths)[self.section]
        layers = [
            layer for width in maps for layer in (jbp.Conv(width, 5), jbp.BatchNorm(), jbp.relu, jbp.MaxPool(2))
        ]  # fmt: skip
        dense = (jbp.Flatten(), jbp.Dense(hidden), jbp.BatchNorm(), jbp.relu, jbp.Dropout(config.drop_rate))
        return jbp.serial(jbp.Channel(), *layers, *dense, jbp.Dense(10))

    def options(self, config: Config) -> dict[str, Any]:
        """What else `fit_many` is told."""
        if self.section == "rules":
            return {"rule": RULES[self.rule]}
        return {"transform": jbp.data.Augment(config.shift, flip=self.section == "fashion")}

    def rates(self, config: Config) -> tuple[float, ...]:
        """Among which one is chosen."""
        if self.rule.endswith("alignment"):
            return config.alignment_rates
        return config.rule_rates if self.section == "rules" else config.rates

    def choice_epochs(self, config: Config, epochs: int) -> int:
        """Of the runs by which it is chosen."""
        return epochs if self.rule.endswith("alignment") else min(config.choice_epochs, epochs)


def tasks(config: Config, sections: tuple[str, ...]) -> list[Task]:
    """In the order in which they are run."""
    found = [Task("mnist", "mnist"), Task("fashion", "fashion-mnist")]
    found += [Task("rules", data, rule) for rule in config.rules for data in PUBLISHED][: 1 if config.digits else None]
    return [task for task in found if task.section in sections]


@lru_cache
def optimizer(momentum: float, weight_decay: float, steps: int) -> Callable[[Any], optax.GradientTransformation]:
    """Of a learning rate, which falls to 0 as a cosine; one function for one program."""

    def of(rate: Any) -> optax.GradientTransformation:
        descent = jbp.optim.sgd(lambda step: rate * (1 + jnp.cos(jnp.pi * step / steps)) / 2, momentum, nesterov=True)
        return optax.chain(optax.add_decayed_weights(weight_decay), descent)

    return of


def load(config: Config, data: str) -> tuple[Any, Any, Any]:
    """To train, to choose by, to test: images [28, 28] and their classes."""
    parts = {}
    for part in ("train", "test"):
        x, y = jbp.data.load("digits" if config.digits else data, part)
        if config.digits:
            x = np.pad(np.repeat(np.repeat(x, 3, 1), 3, 2), ((0, 0), (2, 2), (2, 2)))
        parts[part] = x, y
    x, y = parts["train"]
    x, y, x_held, y_held = jbp.data.split(x, y, config.held_out, seed=1)
    return (x, y), (x_held, y_held), parts["test"]


@partial(jax.jit, static_argnums=0)
def right(net: jbp.Layer, params: Any, x: Any, y: Any) -> Any:
    """How many of a few images are read right."""
    return (jbp.apply(net, params, x).argmax(1) == y).sum()


def accuracy(net: jbp.Layer, params: Any, data: Any) -> float:
    """The share of right answers, a thousand images at a time."""
    x, y = data
    blocks = [slice(i, i + 1000) for i in range(0, len(x), 1000)]
    return sum(int(right(net, params, jnp.asarray(x[b]), jnp.asarray(y[b]))) for b in blocks) / len(x)


def train(
    config: Config, task: Task, data: Any, rate: float, seed: int, epochs: int, until: int | None = None
) -> tuple[dict[str, Any], Any]:
    """One run, as compiled epochs; a row about it, and its parameters. `until` ends it after so many epochs."""
    began, seconds = time.perf_counter(), []
    training, held, _ = data
    steps = epochs * -(-len(training[0]) // config.batch_size)

    def watch(event: jbp.Event) -> bool:
        seconds.append(time.perf_counter() - began)
        return event.epoch == until

    net = task.net(config)
    many = jbp.fit_many(
        net, LOSS, optimizer(config.momentum, config.weight_decay, steps), training, seeds=[seed],
        learning_rates=[rate], epochs=epochs, batch_size=config.batch_size, chunk_steps=10**6, callbacks=(watch,),
        **task.options(config),
    )  # fmt: skip
    params = many.params_of(0)
    row = asdict(task) | {"learning_rate": rate, "seed": seed, "epochs": len(seconds)}
    diverged = bool(many.diverged[0])
    row |= {"validation_accuracy": 0.0 if diverged else accuracy(net, params, held)}
    pace = float(np.median(np.diff(seconds))) if len(seconds) > 1 else seconds[0]  # not the first, which compiles
    row |= {"seconds_per_epoch": round(pace, 2), "device": jax.devices()[0].device_kind}
    return row, params


def fitting(config: Config, task: Task, data: Any, seconds: float | None) -> int:
    """How many epochs of each run fit into so many seconds: as many as planned, or fewer. One run of two is timed."""
    planned = dict(config.epochs)[task.section]
    if seconds is None:
        return planned
    began = time.perf_counter()
    rates = task.rates(config)
    row, _ = train(config, task, data, rates[0], config.rate_seed, planned, until=2)
    left, runs = seconds - (time.perf_counter() - began), len(rates) + len(config.seeds)
    return max(1, min(planned, int(left / (runs * row["seconds_per_epoch"] + 1e-9))))


def ran(
    config: Config,
    task: Task,
    data: Any,
    have: Sequence[dict[str, Any]],
    kind: str,
    rate: float,
    seed: int,
    epochs: int,
) -> dict[str, Any]:  # fmt: skip
    """The row of a run: one of those there are, or a new one; only a result looks at the test images."""
    wanted = {"kind": kind} | asdict(task) | {"learning_rate": rate, "seed": seed, "epochs": epochs}
    for row in have:
        if row.items() >= wanted.items():
            return row
    row, params = train(config, task, data, rate, seed, epochs)
    tested = {"test_accuracy": accuracy(task.net(config), params, data[2])} if kind == "result" else {}
    return {"kind": kind} | row | tested


def run(
    config: Config,
    sections: tuple[str, ...],
    minutes: float | None,
    keep: Callable[[dict[str, Any]], None],
    have: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Every task: a rate chosen on the images held out, then every seed; `keep` gets each row as it is found.

    Each task may take its share of the time that is left. What is among the rows `have` is not trained again.
    """
    began, rows = time.perf_counter(), []
    todo = tasks(config, sections)
    weights = [6.0 if task.section != "rules" else 1.0 for task in todo]
    sets = lru_cache(partial(load, config))
    for i, task in enumerate(todo):
        data = sets(task.data)
        share = None
        if minutes is not None:
            share = (60 * minutes - (time.perf_counter() - began)) * weights[i] / sum(weights[i:])
        epochs, choices = fitting(config, task, data, share), {}

        def told(row: dict[str, Any]) -> dict[str, Any]:
            rows.append(row)
            keep(row)
            print(line(row), f"({time.perf_counter() - began:.0f} s)", flush=True)
            return row

        one = partial(ran, config, task, data, have)
        rates = task.rates(config)
        for rate in rates if len(rates) > 1 else ():
            row = told(one("choice", rate, config.rate_seed, task.choice_epochs(config, epochs)))
            choices[rate] = row["validation_accuracy"]
        for rate in sorted(rates, key=lambda rate: -choices.get(rate, 0.0)):
            found = [told(one("result", rate, seed, epochs)) for seed in config.seeds]
            if min(row["validation_accuracy"] for row in found) >= BROKEN:
                break
    return rows


def line(row: dict[str, Any]) -> str:
    """A row, to read."""
    what = f"{row['data']:13s} {row['rule']:26s} rate {row['learning_rate']:<6g} seed {row['seed']:<3d}"
    test = f", test {row['test_accuracy']:.2%}" if "test_accuracy" in row else ""
    return f"{what} {row['epochs']:2d} epochs, validation {row['validation_accuracy']:.2%}{test}"


def results(rows: list[dict[str, Any]], section: str, data: str, rule: str = "backpropagation") -> np.ndarray:
    """The test accuracies of a task's seeds, at the last rate that was tried."""
    task = (section, data, rule)
    found = [r for r in rows if r["kind"] == "result" and (r["section"], r["data"], r["rule"]) == task]
    return np.array([r["test_accuracy"] for r in found if r["learning_rate"] == found[-1]["learning_rate"]])


def check(result: dict[str, Any]) -> None:
    """Raise unless the claims hold, for what was run in full."""
    rows, seeds = result["rows"], len(result["config"]["seeds"])
    for task in tasks(Config(), SECTIONS):
        found = results(rows, task.section, task.data, task.rule)
        name = f"{task.section}, {task.data}, {task.rule}"
        common.require(len(found) == seeds, f"{name}: {len(found)} of {seeds} seeds were run")
        need = NEED.get(task.section, 1 - MOST[task.data])
        common.require(found.mean() >= need, f"{name}: a mean accuracy of {found.mean():.2%} is below {need:.1%}")


def worded(rows: list[dict[str, Any]], section: str, data: str, rule: str = "backpropagation") -> str:
    """Mean and range, in words."""
    found = 100 * results(rows, section, data, rule)
    if not len(found):
        return "not run"
    return f"{found.mean():.2f} % ({found.min():.2f} to {found.max():.2f})"


def plot(result: dict[str, Any], path: Path) -> None:
    """The errors of the rules beside the published ones, and the accurate nets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    names = [name for name in RULES if any(row["rule"] == name for row in result["rows"])]
    panels = figure.subplots(1, 2)
    for axes, data in zip(panels, PUBLISHED, strict=True):
        section = "mnist" if data == "mnist" else "fashion"
        shown = [(f"LeNet, {name}", ("rules", data, name)) for name in names]
        shown.append(("with batch normalisation,\nshifted images", (section, data, "backpropagation")))
        for height, (_, key) in enumerate(reversed(shown)):
            found = 100 - 100 * results(result["rows"], *key)
            axes.plot(found, np.full(len(found), height), "o", color="#0072B2", alpha=0.6, ms=6, label="a seed")
            if len(found):
                axes.plot(found.mean(), height, "|", color="#0072B2", ms=18, mew=2, label="their mean")
            if key[0] == "rules":
                published = PUBLISHED[data][key[2]]
                axes.plot(published, height, "D", color="#D55E00", mfc="none", ms=8, label="published, BioTorch")
        axes.set_yticks(range(len(shown)), [label for label, _ in reversed(shown)])
        axes.set(xlabel="test error, %", title=data, xlim=(0, None), ylim=(-0.6, len(shown) - 0.4))
        axes.grid(axis="x", alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run, write, draw, check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="enlarged digits, one seed, nothing written")
    parser.add_argument("--plot", action="store_true", help="draw and check the saved result again")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="these parts only")
    parser.add_argument("--minutes", type=float, help="take fewer epochs than planned, so that it ends in time")
    parser.add_argument("--again", action="store_true", help="train what is saved already once more")
    parser.add_argument("--out", type=Path, default=RESULT, help="the file for the result, the picture beside it")
    options = parser.parse_args()
    if options.quick:
        rows = run(QUICK, ("mnist", "rules"), None, lambda row: None)
        for row in rows:
            common.require(row["test_accuracy"] >= 0.8, f"{row['section']}: {row['test_accuracy']:.2%}, not 80 %")
        return
    if not options.plot:
        try:
            for data in PUBLISHED:
                jbp.data.load(data, "test")
        except (ValueError, OSError) as problem:
            print(f"MNIST or Fashion-MNIST is not here, so nothing was run: {problem}", file=sys.stderr)
            sys.exit(2)
        began, kept, have = time.perf_counter(), [], []
        if options.out.exists():
            saved = json.loads(options.out.read_text())
            kept = [row for row in saved["rows"] if row["section"] not in options.only]
            if not options.again and saved["config"] == json.loads(json.dumps(asdict(Config()))):
                have = [row for row in saved["rows"] if row["section"] in options.only]

        def keep(row: dict[str, Any]) -> None:
            kept.append(row)
            order = sorted(kept, key=lambda row: SECTIONS.index(row["section"]))
            facts = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "versions": versions()}
            facts |= {"seconds": round(time.perf_counter() - began, 1), "config": asdict(Config())}
            nets = {section: repr(Task(section, "").net(Config())) for section in SECTIONS}
            common.write(options.out, facts | {"nets": nets, "published_errors": PUBLISHED, "rows": order})

        run(Config(), tuple(options.only), options.minutes, keep, have)
    result = json.loads(options.out.read_text())
    plot(result, options.out.with_suffix(".png"))
    for task in tasks(Config(), SECTIONS):
        print(f"{task.section:8s} {task.data:13s} {task.rule:26s}", worded(result["rows"], *asdict(task).values()))
    check(result)


if __name__ == "__main__":
    try:
        main()
    except common.ClaimFailed as failure:
        print(f"conv_accuracy: does not hold: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("conv_accuracy: interrupted; what was reached is saved", file=sys.stderr)
        sys.exit(130)
