"""Do two checkouts of jbp train to the same bits? Every kind of run, digested, in one and in the other.

python experiments/measurements/same_bits.py --against FOLDER   another checkout of jbp, such as one before a change
python experiments/measurements/same_bits.py --quick            this checkout twice, in processes of its own: a few runs
writes experiments/results/same_bits.json

A digest is of every byte that a run leaves: parameters, the optimiser's and the method's state, the loss of every step,
and the history but for its clocks. Both run on one machine, with the same interpreter and JAX.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

HERE = Path(__file__).resolve().parents[2]
QUICK = ("short last batch", "dropout", "private", "in place", "many seeds")


def runs() -> dict[str, Callable[[], Any]]:
    """Every kind of run, small: what it leaves."""
    import numpy as np
    import optax

    import jbp

    rng = np.random.default_rng(7)
    n, width, classes = 83, 13, 5
    x, y = rng.normal(size=(n, width)).astype(np.float32), rng.integers(0, classes, n).astype(np.int32)
    held_out = x[:17] + np.float32(0.1), y[:17]
    dense, repeat, sgd = jbp.Dense, jbp.repeat, jbp.optim.sgd
    net = jbp.serial(dense(11), jbp.tanh, dense(7), jbp.relu, dense(classes))
    drop = jbp.serial(dense(11), jbp.relu, jbp.Dropout(0.3), dense(7), jbp.relu, jbp.Dropout(0.2), dense(classes))
    deep = jbp.serial(dense(11), repeat(jbp.residual(jbp.serial(dense(11), jbp.relu)), 4), dense(classes))
    shared = jbp.serial(dense(width), jbp.tanh, dense(width), jbp.tanh, dense(classes))
    tied = jbp.tied(shared, {(2, "weight"): (0, "weight")})
    loss, metrics = jbp.losses.softmax_cross_entropy, {"accuracy": jbp.accuracy}
    common: dict[str, Any] = {"epochs": 3, "batch_size": 8, "metrics": metrics, "validation_data": held_out}
    plain, momentum, stopping = sgd(0.1), sgd(0.1, momentum=0.9), {"epochs": 40, "patience": 2}
    part = (True, True, {"weight": False, "bias": True}, True, True)

    def by_rate(rate: Any) -> Any:
        return sgd(rate, momentum=0.9)

    def fit(net: Any = net, optimizer: Any = plain, rows: int = n, **options: Any) -> Any:
        found = jbp.fit(net, loss, optimizer, (x[:rows], y[:rows]), **common | options)
        # Before the step was a function of its own, a result held the two states themselves.
        states = vars(getattr(found, "state", found))
        kept = [states[name] for name in ("opt_state", "method_state", "rule_state") if name in states]
        figures = history(found.history), found.stop_reason, found.best_epoch, found.epsilon
        return (found.params, kept, found.step_losses), figures

    def many(net: Any = net, optimizer: Any = plain, **options: Any) -> Any:
        found = jbp.fit_many(net, loss, optimizer, (x, y), seeds=range(3), **common | options)
        figures = [(history(run.history), run.stop_reason, run.best_epoch) for run in found.runs]
        return (found.params, found.step_losses), figures

    def private(**how: Any) -> Any:
        return {"private": jbp.Private(1.1, 1.0, 1e-4, **how), "seed": 3}

    return {
        "one batch": lambda: fit(batch_size=n),
        "short last batch": fit,
        "batches that divide": lambda: fit(rows=80),
        "no metrics, no validation": lambda: fit(metrics=None, validation_data=None),
        "replacement": lambda: fit(sampling="replacement"),
        "one example a step": lambda: fit(batch_size=1, epochs=1),
        "dropout": lambda: fit(drop),
        "dropout, chunks of 3, seed 5": lambda: fit(drop, chunk_steps=3, seed=5),
        "momentum": lambda: fit(optimizer=momentum),
        "nesterov, a schedule": lambda: fit(optimizer=jbp.optim.nesterov(optax.cosine_decay_schedule(0.1, 30), 0.9)),
        "adam, clipped": lambda: fit(optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))),
        "adamw": lambda: fit(optimizer=optax.adamw(0.01)),
        "repeat": lambda: fit(deep),
        "tied": lambda: fit(tied),
        "frozen": lambda: fit(trainable=(False, True, True, True, {"weight": True, "bias": False})),
        "patience": lambda: fit(optimizer=sgd(0.5), **stopping),
        "patience, the last kept": lambda: fit(optimizer=sgd(0.5), restore_best=False, **stopping),
        "a target": lambda: fit(epochs=40, monitor="train_accuracy", target=0.5),
        "in place": lambda: fit(in_place=True),
        "in place, momentum, repeat": lambda: fit(deep, sgd(0.01, momentum=0.9), in_place=True),
        "private": lambda: fit(**private()),
        "private, lean, dropout": lambda: fit(drop, **private(lean=True)),
        "private, automatic, adam": lambda: fit(optimizer=optax.adam(0.01), **private(automatic=True)),
        **{f"rule {name}": lambda name=name: fit(drop, momentum, rule=name) for name in jbp.rules.NAMES},
        "a rule, repeat": lambda: fit(deep, rule="direct_feedback_alignment"),
        "a rule, frozen": lambda: fit(rule="kolen_pollack", trainable=part),
        "many seeds": many,
        "many seeds, dropout": lambda: many(drop),
        "many seeds and rates": lambda: many(optimizer=by_rate, learning_rates=[0.1, 0.01]),
        "many seeds, patience": lambda: many(optimizer=sgd(0.5), **stopping),
        "many seeds, a rule": lambda: many(rule="feedback_alignment"),
    }  # fmt: skip


def history(rows: Any) -> list[dict[str, str]]:
    """The rows without their clocks, each float by all its bits."""
    return [{name: float(value).hex() for name, value in row.items() if "second" not in name} for row in rows]


def digest(left: Any) -> str:
    """Of every byte of the arrays, and of the figures as text."""
    import jax
    import numpy as np

    arrays, figures = left
    found = hashlib.sha256(repr(figures).encode())
    for leaf in jax.tree.leaves(arrays):
        array = np.asarray(leaf)
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


def of_checkout(folder: Path, quick: bool) -> dict[str, Any]:
    """The digests of a checkout's runs, from a process of its own."""
    words = [sys.executable, __file__, "--inside", *(["--quick"] if quick else [])]
    with tempfile.TemporaryDirectory() as elsewhere:
        environment = os.environ | {"PYTHONPATH": str(folder)}
        done = subprocess.run(words, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{folder}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def inside(quick: bool) -> dict[str, Any]:
    """The digests of this process's jbp."""
    import jax

    import jbp

    found = {}
    for name, run in runs().items():
        if not quick or name in QUICK:
            print(name, file=sys.stderr)
            found[name] = digest(run())
    return {"jax": jax.__version__, "at": str(Path(jbp.__file__).parents[1]), "digests": found}


def commit_of(folder: Path) -> str:
    """The commit that the checkout stands at, if it says so."""
    said = subprocess.run(
        ["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "not a git checkout"


def main() -> int:
    """Answers with the exit status: 1 if any run differs."""
    parser = argparse.ArgumentParser(description="Do two checkouts of jbp train to the same bits?")
    parser.add_argument(
        "--against", type=Path, default=HERE, metavar="FOLDER", help="the other checkout (default: this)"
    )
    parser.add_argument("--quick", action="store_true", help="a few runs, nothing saved")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(json.dumps(inside(given.quick)))
        return 0
    other, own = (of_checkout(folder.resolve(), given.quick) for folder in (given.against, HERE))
    for folder, found in ((given.against, other), (HERE, own)):
        if Path(found["at"]) != folder.resolve():
            raise SystemExit(f"{folder}: no checkout of jbp: what was imported lies in {found['at']}")
    rows = [
        {"run": name, "before": other["digests"].get(name), "after": found, "same": other["digests"].get(name) == found}
        for name, found in own["digests"].items()
    ]
    differ = [row["run"] for row in rows if not row["same"]]
    print(
        f"{len(rows) - len(differ)} of {len(rows)} runs leave the same bits"
        + (f"; not: {', '.join(differ)}" if differ else "")
    )
    if not given.quick:
        import common

        common.write(common.RESULTS / "same_bits.json", {
            "command": "python experiments/measurements/same_bits.py --against FOLDER", "jax": own["jax"],
            "python": sys.version.split()[0], "before": commit_of(given.against), "after": commit_of(HERE),
            "same": len(rows) - len(differ), "of": len(rows), "rows": rows,
        })  # fmt: skip
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main())
