"""Learning without the transposed weights: five ways back for the error, one network, one optimiser, one `fit`.

Claims, for 784-256-256-10 with tanh units, softmax cross-entropy, momentum 0.9, mini-batches of 100 and 10 epochs on
54,000 images of MNIST, with five seeds each:
  error   every rule trains the hidden layers: its worst test error is below the best with the hidden layers frozen,
          and its mean is at most 3.0 %. Expected, mean ± standard deviation over seeds: backpropagation 2.17 ± 0.14 %,
          feedback alignment 2.58 ± 0.22 %, direct feedback alignment 2.82 ± 0.30 %, sign symmetry 2.11 ± 0.06 %,
          Kolen-Pollack 2.08 ± 0.07 %; frozen 8.57 ± 0.52 %. Which rule is best hangs on the rate that a short choice
          gives each, and is no claim.
  angle   of every rule, with every seed, the angle between its update of each hidden weight and the gradient is under
          90° after every epoch, and that of the aligning rules (feedback alignment, direct feedback alignment,
          Kolen-Pollack) falls: it is smaller after 10 epochs than after 10 steps. Expected at the end, first and second
          hidden weight: feedback alignment 65° and 46°, direct 50° and 49°, sign symmetry 34° and 37°, Kolen-Pollack
          18° and 13°.
Two controls: feedback alignment with random weights drawn anew for every step, with which nothing can align, and
hidden layers that are not trained. The check must fail with either in the place of a rule; the script ends with an
error if it does not. Each rule's learning rate is chosen among four by the error on the 6,000 images held out for
validation, with a seed of its own and 3 epochs; the 10,000 test images are read once for each run, at its end.

    python experiments/measurements/learning_rules.py          about 4 minutes on one core
    python experiments/measurements/learning_rules.py --plot   draws the saved result again
    python experiments/measurements/learning_rules.py --quick  on digits, one seed and rate, about 15 s, nothing written
    needs MNIST, in $JBP_DATA_DIR for example; writes experiments/results/learning_rules.json and .png

Published beside it, on other networks. Nøkland 2016 (arXiv:1609.01596, abstract): 1.45 % on permutation-invariant
MNIST, a network with dropout trained by direct feedback alignment. Lillicrap et al. trained 784-1000-10 with sigmoid
units on 60,000 images: backpropagation "brings the mean error on the test set to 2.4% (average of n=20 runs)", feedback
alignment "reaches 2.1% mean error (n=20)". That is quoted at second hand, from a replication's plan that quotes the
preprint, arXiv:1411.0247, which became Nature Communications 7:13276 (2016). Neither that article nor Nøkland's table
could be looked up itself when this was written, so figures of those are not given here.
"""

from __future__ import annotations

import argparse
import datetime
import json
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
from jbp.rules import DirectFeedbackAlignment, FeedbackAlignment, KolenPollack, Rule, SignSymmetry, Transport
from jbp.rules.transport import draw, root_mean_square

RESULT = common.RESULTS / "learning_rules.json"


@dataclass(frozen=True)
class Redrawn(Transport):
    """The control: feedback alignment with new random weights at every step."""

    def init(self, key: jax.Array, weights: Any) -> Any:
        return jax.random.key_data(key), jnp.zeros((), jnp.int32)

    def transport(self, weights: Any, state: Any) -> Any:
        key = jax.random.fold_in(jax.random.wrap_key_data(state[0]), state[1])
        return draw(lambda k, w: root_mean_square(w) * jax.random.normal(k, w.shape, w.dtype), key, weights)

    def update(self, weights: Any, state: Any, updates: Any) -> tuple[Any, Any]:
        return updates, (state[0], state[1] + 1)


CONTROL, FROZEN = "redrawn", "frozen"
RULES: dict[str, Rule | None] = {
    "backpropagation": None,
    "feedback_alignment": FeedbackAlignment(),
    "direct_feedback_alignment": DirectFeedbackAlignment(),
    "sign_symmetry": SignSymmetry(),
    "kolen_pollack": KolenPollack(decay=1e-4),
    CONTROL: Redrawn(),
    FROZEN: None,
}
ALIGNING = ("feedback_alignment", "direct_feedback_alignment", "kolen_pollack")
MOST = 0.03


@dataclass(frozen=True)
class Config:
    """What a run of the experiment is made of."""

    data: str = "mnist"
    width: int = 256
    batch_size: int = 100
    momentum: float = 0.9
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    rate_epochs: int = 3
    epochs: int = 10
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    rate_seed: int = 100


QUICK = Config("digits", 32, 20, 0.9, (0.03,), 1, 10, (0,))


def run(config: Config) -> dict[str, Any]:
    """Choose each rule's rate, then train with every seed; errors on the test part, angles on the way."""
    began = time.perf_counter()
    x, y = jbp.data.load(config.data, "train")
    x_train, y_train, x_held, y_held = jbp.data.split(x, y, 0.1, seed=1)
    held, test = (x_held, y_held), jbp.data.load(config.data, "test")
    hidden = (jbp.Dense(config.width), jbp.tanh) * 2
    net = jbp.serial(jbp.Flatten(), *hidden, jbp.Dense(10))
    loss = jbp.losses.softmax_cross_entropy

    def trained(rule: Rule | None, rate: float, seed: int, epochs: int, **options: Any) -> jbp.Fit:
        return jbp.fit(
            net, loss, optimizers[rate], (x_train, y_train), epochs=epochs, batch_size=config.batch_size, seed=seed,
            rule=rule, **options,
        )  # fmt: skip

    def watched(rule: Rule | None, rate: float, seed: int, **fixed: Any) -> tuple[jbp.Fit, list[Any]]:
        """A run, and (step, angle of each hidden weight) after 10, 30 and 100 steps and after every epoch."""
        angles: list[Any] = []

        def watch(event: jbp.Event) -> bool:
            early = event.step in (10, 30, 100)
            if rule is not None and (event.row or early):
                told = jbp.rules.alignment(
                    rule, event.state.method_state, net, loss, event.params, x_held[:1000], y_held[:1000]
                )
                angles.append([event.step, *(float(told[f"{i}.weight"].angle) for i in (1, 3))])
            return early and event.row is None and event.step == 100

        # The first steps twice, to the same bits: once in short chunks and stopped, once in whole epochs, for speed.
        if rule is not None:
            trained(rule, rate, seed, 2, chunk_steps=10, callbacks=(watch,))
            angles[:] = [row for row in angles if row[0] in (10, 30, 100)]
        return trained(rule, rate, seed, config.epochs, chunk_steps=10**6, callbacks=(watch,), **fixed), angles

    optimizers = {rate: jbp.optim.sgd(rate, momentum=config.momentum) for rate in config.rates}
    found = {}
    for name, rule in RULES.items():
        fixed = {"trainable": (False, False, False, False, False, True)} if name == FROZEN else {}
        choices: dict[float, float] = {}
        for rate in config.rates if len(config.rates) > 1 else ():
            try:
                fitted = trained(rule, rate, config.rate_seed, config.rate_epochs, **fixed)
                choices[rate] = error(net, fitted.params, held)
            except jbp.Diverged:
                choices[rate] = 1.0
        rate = min(config.rates, key=lambda rate: choices.get(rate, 0.0))
        rows = []
        for seed in config.seeds:
            fitted, angles = watched(rule, rate, seed, **fixed)
            rows.append({"seed": seed, "test_error": error(net, fitted.params, test), "angles": angles})
        found[name] = {"rule": repr(rule), "learning_rate": rate, "validation_errors": choices, "runs": rows}
        print(summary(name, found[name]), f"({time.perf_counter() - began:.0f} s)", flush=True)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "seconds": time.perf_counter() - began,
        "config": asdict(config),
        "net": repr(net),
        "rules": found,
    }


def error(net: jbp.Layer, params: Any, data: Any) -> float:
    """The share of wrong answers."""
    x, y = data
    return float(np.mean(np.asarray(jbp.apply(net, params, x)).argmax(1) != y))


def errors(row: dict[str, Any]) -> np.ndarray:
    """The test errors of a rule's runs."""
    return np.array([r["test_error"] for r in row["runs"]])


def angles(row: dict[str, Any]) -> np.ndarray:
    """The mean over seeds of (step, angle of the first hidden weight, of the second), in time."""
    return np.mean([r["angles"] for r in row["runs"]], axis=0)


def summary(name: str, row: dict[str, Any]) -> str:
    """A line about one rule."""
    found = errors(row)
    spread = f" ± {found.std(ddof=1):.2%}" if len(found) > 1 else ""
    line = f"{name:26s} rate {row['learning_rate']:<5g} test error {found.mean():.2%}{spread}"
    if not row["runs"][0]["angles"]:
        return line
    first, last = angles(row)[[0, -1], 1:]
    return f"{line}, angles {first[0]:.0f}°, {first[1]:.0f}° → {last[0]:.0f}°, {last[1]:.0f}°"


def check(result: dict[str, Any], quick: bool = False) -> None:
    """Raise unless the claims hold; `quick`: those on the angles only."""
    found = result["rules"]
    for name in RULES:
        if name in (CONTROL, FROZEN):
            continue
        if name != "backpropagation":
            runs = np.array([r["angles"] for r in found[name]["runs"]])
            steps = runs[0, :, 0]
            for i in range(2):
                angle = runs[:, :, 1 + i]
                ends = angle[:, steps >= steps[-1] / result["config"]["epochs"]]
                assert (ends < 90).all(), f"{name}: the angle of hidden weight {i + 1} reaches {ends.max():.1f}°"
                falls = (angle[:, -1] < angle[:, 0]).all()
                assert falls or name not in ALIGNING, f"{name}: the angle of hidden weight {i + 1} does not fall"
        if not quick:
            ours, frozen = errors(found[name]), errors(found[FROZEN])
            assert ours.max() < frozen.min(), f"{name}: {ours.max():.2%} errors, with frozen layers {frozen.min():.2%}"
            assert ours.mean() <= MOST, f"{name}: a mean error of {ours.mean():.2%} is above {MOST:.1%}"


def check_control(result: dict[str, Any]) -> None:
    """Raise if `check` lets a control pass for a rule."""
    for name, control in [*((name, CONTROL) for name in ALIGNING), ("backpropagation", FROZEN)]:
        swapped = result | {"rules": result["rules"] | {name: result["rules"][control]}}
        try:
            check(swapped)
        except AssertionError:
            continue
        raise RuntimeError(f"the check passes with {control} in the place of {name}: it shows nothing")


LABELS = {
    "backpropagation": ("backpropagation", "black"),
    "feedback_alignment": ("feedback alignment", "#0072B2"),
    "direct_feedback_alignment": ("direct feedback alignment", "#D55E00"),
    "sign_symmetry": ("sign symmetry", "#009E73"),
    "kolen_pollack": ("Kolen-Pollack", "#CC79A7"),
    CONTROL: ("control: redrawn each step", "#888888"),
    FROZEN: ("control: hidden layers frozen", "#BBBBBB"),
}


def plot(result: dict[str, Any]) -> None:
    """Angles over the steps, and the test errors, as learning_rules.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    first, second, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    for i, axes in enumerate((first, second)):
        for name, (label, colour) in LABELS.items():
            runs = np.array([r["angles"] for r in result["rules"][name]["runs"]])
            if runs.size:
                steps, each = runs[0, :, 0], runs[:, :, 1 + i]
                axes.plot(steps, each.mean(0), color=colour, label=label, marker=".")
                axes.fill_between(steps, each.min(0), each.max(0), color=colour, alpha=0.2, linewidth=0)
        axes.axhline(90, color="black", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", xlabel="steps", ylim=(0, 120), title=f"hidden weight {i + 1}")
    first.set_ylabel("angle to the gradient, degrees")
    for height, (name, (_, colour)) in enumerate(reversed(LABELS.items())):
        found = 100 * errors(result["rules"][name])
        right.plot(found, np.full(len(found), height), "o", color=colour, alpha=0.6, markersize=5)
        right.plot(found.mean(), height, "|", color=colour, markersize=18, markeredgewidth=2)
    right.set_yticks(range(len(LABELS)), [label for label, _ in reversed(LABELS.values())])
    right.set(xlabel="test error, %", title=f"{len(result['config']['seeds'])} seeds and their mean")
    right.set_xscale("log")
    right.set_xticks([2, 3, 5, 10, 20, 50], ["2", "3", "5", "10", "20", "50"])
    right.set_xticks([], minor=True)
    right.grid(axis="x", alpha=0.3)
    c = result["config"]
    figure.suptitle(f"{c['data'].upper()}, 784-{c['width']}-{c['width']}-10 tanh, {c['epochs']} epochs")
    figure.savefig(RESULT.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="digits, one seed, nothing written")
    parser.add_argument("--plot", action="store_true", help="check and draw the saved result again")
    options = parser.parse_args()
    if options.quick:
        check(run(QUICK), quick=True)
        sys.exit()
    if options.plot:
        result = json.loads(RESULT.read_text())
    else:
        try:
            jbp.data.load("mnist", "test")
        except (ValueError, OSError) as problem:
            print(f"MNIST is not here, so nothing was run: {problem}", file=sys.stderr)
            sys.exit(2)
        result = run(Config())
        common.write(RESULT, result)
    plot(result)
    check(result)
    check_control(result)
