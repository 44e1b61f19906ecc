"""`fit_many`: many runs of `fit` as one program: every seed with every learning rate, side by side.

The program is `jbp.program.steps_function` under `jax.vmap`, with what varies (parameters, optimiser state, key,
learning rate) on a first axis r and the data shared. What each run makes of its figures (best epoch, patience, when it
stops, divergence) is decided by `fit`'s own code, one copy a run. A run that has stopped or diverged is carried along,
unread, until the last one is done.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jbp import program, rules
from jbp.arguments import as_count, as_number
from jbp.backprop import Mask
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.many.programs import Optimizer, is_optimizer, programs
from jbp.many.result import InterruptedMany, Many, One
from jbp.method import Method
from jbp.program import Metric, Sampling
from jbp.train import (
    _BLOCK,
    Callback,
    Data,
    Event,
    Row,
    StopReason,
    _batch_sizes,
    _check_data,
    _Chunks,
    _ctrl_c,
    _on_device,
    _Record,
    _Watch,
)


def fit_many(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    train_data: Data,
    *,
    seeds: Iterable[int],
    learning_rates: Sequence[float] | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    validation_data: Data | None = None,
    params: Any = None,
    sampling: Sampling = "shuffle",
    metrics: Mapping[str, Metric] | None = None,
    trainable: Any = None,
    rule: rules.Rule | Method | str | None = None,
    monitor: str | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool | None = None,
    target: float | None = None,
    chunk_steps: int | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> Many:
    """Train one net many times at once: with every seed, and with every learning rate if there are several.

    Each run equals `jbp.fit(..., seed=seed)` to rounding: the same initial parameters, order and dropout, and the same
    end by patience or target. Without `learning_rates`, `optimizer` is as in `fit`; with, it is a function from a
    learning rate (a traced 0-d array) to one, such as `lambda rate: jbp.optim.sgd(rate, momentum=0.9)`. Keep hold of
    one function: compiled programs are cached under it.

    All else is as in `fit`, and the same for every run; `params` [...] is one start for all. A run whose loss is no
    longer finite does not stop the others: it has its `diverged_at`, and NaN for its parameters and figures. A callback
    gets the `Event` of `fit` with the means over the runs still going, their examples per second added up, and the
    parameters stacked; the step is that of each run.

    Raises:
        ValueError: for arguments that do not fit together, saying what to do.
        InterruptedMany: on Ctrl-C, when the chunk ends; a second Ctrl-C does not wait.
    """
    every_seed, rates = _seeds(seeds), _learning_rates(learning_rates)
    x, y = _on_device("train_data", train_data)
    validation = None if validation_data is None else _on_device("validation_data", validation_data)
    n, epochs = len(x), as_count(epochs, "epochs")
    sizes = _batch_sizes(n, batch_size, sampling)
    steps = len(sizes)
    _check_optimizer(optimizer, learning_rates is not None)
    metrics = dict(metrics or {})
    watch = _Watch.over(monitor, validation is not None, metrics, patience, min_delta, target, restore_best)
    chunks = _Chunks(steps, None if chunk_steps is None else as_count(chunk_steps, "chunk_steps"))
    shapes = jax.eval_shape(lambda key: net.init(key, x.shape[1:])[0], jax.random.key(0)) if params is None else params
    for name, data in (("train_data", (x, y)), ("validation_data", validation)):
        _check_data(name, net, loss, shapes, data)

    runs = [_Going(*which, _Record(tuple(metrics), sizes), watch) for which in itertools.product(every_seed, rates)]
    keys = jnp.stack([jax.random.key(run.seed) for run in runs])
    etas = jnp.asarray([run.rate or 0.0 for run in runs])
    mask = Mask.of(trainable)
    method = rules.method_of(rule, net, shapes, x, mask)
    compiled = programs(
        net, loss, optimizer, tuple(metrics.values()), mask, sampling, int(sizes[0]), n, method,
        learning_rates is not None, None if params is not None else x.shape[1:], max(100, _BLOCK // len(runs)),
    )  # fmt: skip
    run_keys, state = compiled.start(keys, etas, params)
    kept = program.copy(state.params)

    def end_epoch(epoch: int) -> Row | None:
        """Let every run see its figures; answers with their means."""
        nonlocal kept
        going = [run for run in runs if run.goes]
        means = [None] * len(runs)
        if validation is not None:
            means = list(np.asarray(compiled.evaluate(state.params, *validation)))
        for run, figures in zip(runs, means, strict=True):
            run.end_epoch(epoch, figures)
        kept = _choose([run.keeps for run in runs], state.params, kept)
        return _mean_row([run.record.rows[-1] for run in going]) if epoch and going else None

    def result(reason: StopReason) -> Many:
        latest = [run.goes and (not watch.restores or reason == "interrupted") for run in runs]
        found = _choose(latest, state.params, kept)
        found = _choose([run.diverged_at is not None for run in runs], jax.tree.map(_nan_like, found), found)
        losses = [run.record.losses() for run in runs]
        table = np.full((len(runs), max(map(len, losses))), math.nan)
        for line, values in zip(table, losses, strict=True):
            line[: len(values)] = values
        rates = None if learning_rates is None else tuple(run.rate for run in runs[: len(learning_rates)])
        return Many(found, tuple(run.ended(reason) for run in runs), table, every_seed, rates)  # type: ignore[arg-type]

    if validation is not None:
        end_epoch(0)
    with _ctrl_c() as interrupted:
        for epoch in range(1, epochs + 1):
            for first, last in chunks:
                began = time.perf_counter()
                state = jax.block_until_ready(compiled.take(state, etas, x, y, run_keys, epoch, first, last))
                chunks.took(last - first, time.perf_counter() - began)
                for run, *figures in zip(runs, *map(np.asarray, (state.losses, state.metrics)), strict=True):
                    run.take(*figures, last)
                loss_now = _mean([run.record.loss for run in runs if run.goes])
                row = end_epoch(epoch) if last == steps else None
                step, seconds = (epoch - 1) * steps + last, runs[0].record.seconds
                event = Event(epoch, step, epochs * steps, loss_now, seconds, row, state.params)
                wanted = [callback(event) for callback in callbacks]
                if interrupted.is_set():
                    raise InterruptedMany(result("interrupted"))
                if any(wanted):
                    return result("callback")
                if not any(run.goes for run in runs):
                    return result("epochs")
    return result("epochs")


class _Going:
    """One of the runs while it goes: what `fit` knows of its own."""

    def __init__(self, seed: int, rate: float | None, record: _Record, watch: _Watch):
        self.seed, self.rate, self.record, self.restores = seed, rate, record, watch.restores
        self.watch = dataclasses.replace(watch, restores=False)  # the parameters of all runs are kept together
        self.stop_reason: StopReason | None = None
        self.diverged_at: int | None = None
        self.keeps = False

    @property
    def goes(self) -> bool:
        """Whether it has neither stopped nor diverged."""
        return self.stop_reason is None

    def take(self, losses: np.ndarray, metrics: np.ndarray, last: int) -> None:
        """Take in the epoch's first `last` steps."""
        if self.goes:
            self.diverged_at = self.record.see(program.State((), (), losses, metrics), last)  # type: ignore[arg-type]
            self.stop_reason = None if self.diverged_at is None else "diverged"

    def end_epoch(self, epoch: int, means: Any) -> None:
        """Take in an epoch's figures; `keeps` says whether its parameters are the ones to keep, as far as known."""
        self.keeps = False
        if self.goes:
            figures = {} if means is None else self.record.validation(means)
            self.watch.see(epoch, self.record.end_epoch(epoch, figures) if epoch else figures, None)
            self.stop_reason = self.watch.stop_reason
            self.keeps = self.watch.best_epoch == epoch if self.restores else not self.goes

    def ended(self, reason: StopReason) -> One:
        """What it left, if all runs end for this reason."""
        reason = self.stop_reason or reason
        best = self.watch.best_epoch if self.restores and reason not in ("interrupted", "diverged") else None
        return One(self.seed, self.rate, tuple(self.record.rows), best, reason, self.diverged_at)


def _check_optimizer(optimizer: Any, swept: bool) -> None:
    if not swept and not is_optimizer(optimizer):
        hint = "; a function of the learning rate needs learning_rates=[...]" if callable(optimizer) else ""
        raise ValueError(f"optimizer must come from jbp.optim or optax, but is {optimizer!r}{hint}")
    if swept and not (callable(optimizer) and not is_optimizer(optimizer)):
        raise ValueError(
            "with learning_rates, optimizer must be a function from a learning rate to an optimiser, such as "
            f"lambda rate: jbp.optim.sgd(rate, momentum=0.9), but is {optimizer!r}"
        )


def _seeds(seeds: Any) -> tuple[int, ...]:
    try:
        given = tuple(seeds)
        found = tuple(operator.index(seed) for seed in given)
        wrong = not given or any(isinstance(seed, bool) for seed in given)
    except TypeError:
        found, wrong = (), True
    if wrong:
        raise ValueError(f"seeds must be whole numbers, at least one, such as range(10), but are {seeds!r}")
    _check_distinct("seeds", found)
    return found


def _learning_rates(rates: Any) -> tuple[float, ...] | tuple[None]:
    if rates is None:
        return (None,)
    if isinstance(rates, str) or not np.iterable(rates) or not len(tuple(rates)):
        raise ValueError(f"learning_rates must be numbers, at least one, such as [0.01, 0.1], but are {rates!r}")
    found = tuple(as_number(rate, "a learning rate", 0.0) for rate in rates)
    _check_distinct("learning_rates", found)
    return found


def _check_distinct(what: str, values: tuple[Any, ...]) -> None:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{what} must differ from one another, but {twice[0]} is there {values.count(twice[0])} times")


@jax.jit
def _where(mask: Bool[Array, " r"], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)


def _choose(mask: list[bool], new: Any, old: Any) -> Any:
    """`new` for the runs of the mask, `old` for the others; never the buffers of `new`, which may be taken over."""
    return _where(jnp.asarray(mask), new, old) if any(mask) else old


def _nan_like(leaf: Array) -> Array:
    return jnp.full_like(leaf, math.nan) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _mean_row(rows: list[Row]) -> Row:
    """The mean of the runs' rows, but what they do each second added up."""
    speed = math.fsum(row["examples_per_second"] for row in rows)
    return {name: _mean([row[name] for row in rows]) for name in rows[0]} | {"examples_per_second": speed}
