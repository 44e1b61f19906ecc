"""What `jbp train --seeds` does: one run for each seed, side by side, and the spread of what they reach."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jbp import checkpoint, runs
from jbp.cli.options import TrainOptions
from jbp.cli.parser import Failed
from jbp.cli.training import (
    BITS,
    Plan,
    announce,
    fit_options,
    make_plan,
    net_words,
    new_folder,
    resumed,
    saving,
    say,
    tested,
    versions,
)
from jbp.train import Fit, InterruptedMany, Many, fit_many

FIGURES = ("accuracy", "r2", "rmse", BITS, "perplexity", "loss")


@dataclass(frozen=True)
class Spread:
    """What a run of `jbp train --seeds` left: its folder, its summary.json, and what `jbp.fit_many` returned."""

    folder: Path
    summary: dict[str, Any]
    many: Many | None = field(repr=False)
    """None of runs that were to go on, and had ended."""


def train_seeds(options: TrainOptions) -> Spread:
    """Train with every seed, and leave a folder with config, mean metrics and summary; no parameters.

    Raises: ValueError for what is wrong with options, data or folder; Failed if every run diverged; Interrupted and
        OSError with a note of what was kept.
    """
    began = time.perf_counter()
    folder, ended = resumed(options)
    if folder is not None and ended is not None:
        return Spread(folder.path, ended, None)
    plan = make_plan(options)
    announce(plan)
    folder = folder or new_folder(options)
    with folder.told():
        try:
            many = _fit(plan, folder)
        except InterruptedMany as error:
            folder.summary(_summary(plan, error.result, {}))
            raise
        whole = [r for r, run in enumerate(many.runs) if run.diverged_at is None]
        summary = _summary(plan, many, {r: tested(plan, _single(many, r))[0] for r in whole})
        summary["seconds"] = time.perf_counter() - began
        folder.summary(summary)
    if many.diverged.all():
        raise Failed(
            f"all {len(many.runs)} runs diverged, the first at step {min(run.diverged_at or 0 for run in many.runs)}: "
            f"lower the learning rate, or check the scale of the data; the summary is in {folder.path}"
        )
    say(options, folder.path, summary)
    if many.diverged.any() and not options.quiet:
        print(f"{many.diverged.sum()} of {len(many.runs)} runs diverged and are left out", file=sys.stderr)
    return Spread(folder.path, summary, many)


def _fit(plan: Plan, folder: runs.RunFolder) -> Many:
    return fit_many(
        plan.net, plan.loss, plan.optimizer, plan.data.train, seeds=plan.options.seed_range, rule=plan.options.rule,
        callbacks=(folder.after_chunk,), save_to=saving(plan.options, folder), **fit_options(plan),
    )  # fmt: skip


def _single(many: Many, r: int) -> Fit:
    """Run r as `fit` would have returned it."""
    run = many.runs[r]
    state = jax.tree.map(lambda leaf: leaf[r], many.state)
    return Fit(
        many.params_of(r), state, run.history, run.best_epoch, run.stop_reason, many.step_losses[r], start=run.start
    )


def _summary(plan: Plan, many: Many, test: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Each run's figures, and their mean and (unbiased) standard deviation over those that did not diverge."""
    rows = []
    for r, run in enumerate(many.runs):
        values = {name: run.figure(name) for name in (f"validation_{figure}" for figure in FIGURES)}
        values |= {name: value for name, value in test.get(r, {}).items() if name.partition("_")[2] in FIGURES}
        rows.append(
            {"seed": run.seed}
            | {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
            | {"epochs": len(run.history), "best_epoch": run.best_epoch, "stop_reason": run.stop_reason}
            | ({} if run.diverged_at is None else {"diverged_at_step": run.diverged_at})
        )
    spread = {}
    for name in (f"{part}_{name}" for name in FIGURES for part in ("test", "train", "validation")):
        found = [row[name] for row in rows if name in row]
        if found:
            deviation = float(np.std(found, ddof=1)) if len(found) > 1 else None
            spread[name] = {"mean": float(np.mean(found)), "std": deviation, "runs": len(found)}
    return {
        "spread": spread,
        "runs": rows,
        "seeds": plan.options.seeds,
        "diverged": int(many.diverged.sum()),
        "parameters": checkpoint.count(many.params) // len(many.runs),
        "task": plan.data.dataset.task,
        "data": plan.data.dataset.name,
        "net": net_words(plan),
        "loss": plan.loss_name,
        "versions": versions(),
    } | ({} if not many.resumed_at else {"resumed_at": list(many.resumed_at)})
