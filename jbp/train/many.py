"""`fit_many`: many runs of `fit` as one program: every seed with every learning rate, side by side.

The program is `jbp.train.program.steps_function` under `jax.vmap`, with what varies (the state, the learning rate) on
a first axis r and the data shared. What each run makes of its figures (best epoch, patience, when it stops, divergence)
is decided by `fit`'s own `see`, mapped over the runs. A run that has stopped or diverged is carried along, unread,
until the last one is done.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jbp import rules
from jbp.accumulation import check_parts
from jbp.annotations import Array, Bool
from jbp.arguments import as_number, as_seed, came
from jbp.durable.saver import EVERY, Saver, digest
from jbp.inputs import as_callbacks, check_optimizer, check_params, is_optimizer
from jbp.layer import Layer
from jbp.layers.images import made_for
from jbp.losses import Loss
from jbp.meshes import placed, whole
from jbp.sharding import Sharding
from jbp.step import Method, Metric, Problem, State, Transform, started
from jbp.train.batches import OnDevice, Resident, batch_size_of, batch_sizes, of_mean_one, sizes_of, wanders
from jbp.train.checks import (
    check_coupling,
    check_data,
    method_of,
    on_device,
    unless_swapped,
    warn_of_16_bits,
)
from jbp.train.clocks import Chunks, Length, Stopwatch
from jbp.train.facts import facts_about, saving_of
from jbp.train.fit import Data
from jbp.train.live import training_line
from jbp.train.loop import BLOCK, validation_row
from jbp.train.many_result import InterruptedMany, Many, One
from jbp.train.masked import refuse_mask
from jbp.train.program import Ledger, copy, evaluation_program, filled, ledger, on_meshes, steps_function
from jbp.train.progress import Aim, EpochEnd, Progress, Row, Steps, StopReason, see
from jbp.train.result import Callback, Event
from jbp.train.signals import stop_signals
from jbp.train.windowed import marks

Optimizer = optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]
_LATER = optax.identity()
"""Stands in a problem for an optimiser that is made of each run's learning rate."""


def fit_many(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    train_data: Data,
    *,
    seeds: Iterable[int],
    learning_rates: Sequence[float] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    evaluate_every: int | None = None,
    batch_size: int | None = None,
    validation_data: Data | None = None,
    params: Any = None,
    sampling: Literal["shuffle", "replacement"] = "shuffle",
    weights: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    trainable: Any = None,
    transform: Transform | None = None,
    rule: rules.Rule | Method | str | None = None,
    accumulate: int = 1,
    sharding: Any = None,
    monitor: str | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool | None = None,
    target: float | None = None,
    chunk_steps: int | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = False,
    save_to: Any = None,
    save_every: str = EVERY,
    keep: int = 2,
    resume: bool = False,
) -> Many:
    """Train one net many times at once: with every seed, and with every learning rate if there are several.

    Each run equals `jbp.fit(..., seed=seed)` to rounding: the same initial parameters, order and dropout, and the same
    end by patience or target. Without `learning_rates`, `optimizer` is as in `fit`; with, it is a function from a
    learning rate (a traced 0-d array) to one, such as `lambda rate: jbp.optim.sgd(rate, momentum=0.9)`. Keep hold of
    one function: compiled programs are cached under it.

    With `sharding`, a `jbp.Sharding` or a mesh, each device trains its part of the runs on all of the data, and the
    devices have nothing to say to one another: the number of runs must be a multiple of that of the devices.

    `save_to` and what belongs to it are as in `fit`: all runs are saved together. All else is as in `fit`, and the
    same for every run; `params` [...] is one start for all. A run whose loss is no longer finite does not stop the
    others: it has its `diverged_at`, and NaN for its parameters and figures. A callback gets the `Event` of `fit`
    with the means over the runs still going, their examples per second added up, and the parameters stacked; the
    step is that of each run.

    Raises:
        ValueError: for arguments that do not fit together, saying what to do.
        InterruptedMany: on Ctrl-C or SIGTERM, when the chunk ends; a second one does not wait.
    """
    every_seed, rates, callbacks = _seeds(seeds), _learning_rates(learning_rates), as_callbacks(callbacks)
    swept = learning_rates is not None
    _check_optimizer(optimizer, swept)
    method = method_of(rule, None, False, 1)
    problem = Problem(
        net,
        loss,
        _LATER if swept else optimizer,  # type: ignore[arg-type]
        trainable=trainable,
        method=method,
        metrics=metrics,
        transform=transform,
    )
    refuse_mask(train_data=train_data, validation_data=validation_data)
    data, validation = on_device("train_data", train_data), None
    if validation_data is not None:
        validation = on_device("validation_data", validation_data)
    x, length = data[0], Length.of(epochs, steps, evaluate_every)
    example = problem.seen(jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    sizes = batch_sizes(len(x), batch_size_of(batch_size, len(x)), sampling)
    accumulate = check_parts(problem, accumulate, int(sizes[0]))
    names = [name for name, _ in problem.metrics]
    aim = Aim.over(
        problem.metrics, validation is not None, monitor=monitor, patience=patience, min_delta=min_delta, target=target,
        restore_best=restore_best,
    )  # fmt: skip
    resident = Resident(sampling, int(sizes[0]), len(x), every=length.every)
    chunks = Chunks(len(sizes_of(resident)), chunk_steps)
    check_params(params)
    with unless_swapped(problem, params, data):
        shapes = params
        if params is None:
            shapes = jax.eval_shape(lambda key: net.init(key, example.shape)[0], jax.random.key(0))
        check_data("train_data", problem, shapes, data, train_data, weights)
    check_data("validation_data", problem, shapes, validation, validation_data)
    check_coupling(problem, shapes, x, sizes)
    warn_of_16_bits(problem, shapes)
    blank = Progress(aim, tuple(names), tuple(sizes_of(resident).tolist()))
    runs = [_Going(seed, rate, blank) for seed, rate in itertools.product(every_seed, rates)]
    mesh = _check_mesh(Sharding.of(sharding), len(runs))
    if mesh is not None:
        data, validation = mesh.everywhere((data, validation))
    compiled = _programs(
        problem, optimizer if swept else None, resident, example, params is None,
        _How(max(100, BLOCK // len(runs)), weights is not None or wanders(resident), accumulate, mesh),
    )  # fmt: skip
    saver = None
    if (saving := saving_of(save_to, save_every, keep, resume)) is not None:
        one = problem if not swept else dataclasses.replace(problem, optimizer=_made(optimizer, jnp.asarray(rates[0])))
        state = jax.eval_shape(lambda key: started(one.optimizer, _zeros(shapes), (), key), jax.random.key(0))
        saver = Saver(saving, facts_about(one, state, x) | {
            "seeds": every_seed, "learning rates": rates if swept else None, "sampling": sampling,
            "batch size": int(sizes[0]), "accumulate": accumulate, "aim": repr(aim), "data": digest(marks(data)),
            "weights": digest(weights), "validation data": digest(marks(validation)), "params": digest(params),
            "evaluate_every": length.every,
        })  # fmt: skip
    together = _Together(compiled, runs, aim.restores, every_seed, rates if swept else None, saver, mesh)
    line = training_line(progress, length, len(runs))
    own_weights = of_mean_one(weights, len(x))
    with line or nullcontext(), saver or nullcontext(), mesh.set() if mesh else nullcontext():
        return together(
            params,
            (*data, own_weights if mesh is None else mesh.everywhere(own_weights)),
            validation,
            length.epochs,
            chunks,
            (*callbacks, *([line] if line else [])),
        )


@dataclass
class _Together:
    """The loop over all runs."""

    compiled: _Programs
    runs: list[_Going]
    restores: bool
    seeds: tuple[int, ...]
    rates: tuple[Any, ...] | None
    saver: Saver | None = None
    mesh: Sharding | None = None
    state: Any = None
    kept: Any = None
    """The parameters of the runs as they are to be kept, as far as known."""

    def __call__(
        self,
        params: Any,
        data: tuple[Array, Array, Array | None],
        validation: tuple[Array, Array] | None,
        epochs: int,
        chunks: Chunks,
        callbacks: tuple[Callback, ...],
    ) -> Many:
        """Step, let every run see its figures, stop when none goes on."""
        runs, steps, seconds = self.runs, chunks.steps, 0.0
        keys = jnp.stack([jax.random.key(run.seed) for run in runs])
        etas = jnp.asarray([run.rate or 0.0 for run in runs])
        state, book = self.compiled.start(keys, etas, params)
        if self.mesh is not None:
            state, book, etas = self.mesh.rows((state, book, etas))
        self.state, self.kept = state, copy(state.params)
        at, taken = _At(1, 0), None if self.saver is None else self.saver.taken_up(state)
        if taken is not None:
            self.state, self.kept, seconds = taken.state, taken.best, taken.seconds
            state, at = self.state, _At(*taken.progress["at"])
            for run, found in zip(runs, taken.progress["runs"], strict=True):
                run.progress = Progress.from_json(found)
            book = _filled(book, runs)
            book = book if self.mesh is None else self.mesh.rows(book)
        watch = Stopwatch(
            seconds, max((run.progress.rows[-1]["seconds"] for run in runs if run.progress.rows), default=0.0)
        )
        names = ("loss", *runs[0].progress.names)

        def end_epoch(epoch: int) -> Row | None:
            """Let every run see its figures; answers with their means."""
            going, seconds = [run for run in runs if run.goes], (watch.seconds, watch.lap()) if epoch else ()
            means: list[Any] = [None] * len(runs)
            if validation is not None:
                means = list(np.asarray(self.compiled.evaluate(self.state.params, *validation)))
            for run, found in zip(runs, means, strict=True):
                row = {} if found is None else validation_row(names, found)
                run.see(EpochEnd(epoch, row, *seconds))
            self.kept = _choose([run.keeps for run in runs], self.state.params, self.kept)
            return _mean_row([run.progress.rows[-1] for run in going]) if epoch and going else None

        with stop_signals() as interrupt:
            if taken is not None and not any(run.goes for run in runs):
                return self.result("epochs")
            if validation is not None and taken is None:
                end_epoch(0)
                interrupt.check_begun()
            for epoch in range(at.epoch, epochs + 1):
                for first, last in chunks.after(at.step if epoch == at.epoch else 0):
                    began = time.perf_counter()
                    rows = OnDevice(*data, None)
                    state, book = self.compiled.take(state, book, etas, rows, epoch, first, last)
                    interrupt.begun = True
                    self.state = jax.block_until_ready(state)
                    interrupt.check_begun()
                    chunks.took(last - first, time.perf_counter() - began)
                    figures = jax.tree.map(np.asarray, book)
                    for r, run in enumerate(runs):
                        run.see(Steps(epoch, *jax.tree.map(lambda part, r=r: part[r], figures).first(last)))
                    loss_now = _mean([run.progress.loss for run in runs if run.goes])
                    row = end_epoch(epoch) if last == steps else None
                    step = (epoch - 1) * steps + last
                    event = Event(epoch, step, epochs * steps, loss_now, watch.seconds, row, state)
                    wanted = [callback(event) for callback in callbacks]
                    if self.saver is not None:
                        place = _At(epoch + 1, 0) if last == steps else _At(epoch, last)
                        over = step == epochs * steps or not any(run.goes for run in runs)
                        now = interrupt.asked or any(wanted) or over
                        self.saver.after(state, _Abreast(runs, place, step), self.kept, watch.seconds, now=now)
                    if interrupt.asked:
                        saved = "" if self.saver is None else self.saver.words()
                        raise InterruptedMany(self.result("interrupted"), interrupt.signal, saved)
                    if any(wanted):
                        return self.result("callback")
                    if not any(run.goes for run in runs):
                        return self.result("epochs")
        return self.result("epochs")

    def result(self, reason: StopReason) -> Many:
        """What the runs have left, if those that still go end for this reason."""
        runs = self.runs
        latest = [run.goes and (not self.restores or reason == "interrupted") for run in runs]
        found = _choose(latest, self.state.params, self.kept)
        found = _choose([run.progress.diverged_at is not None for run in runs], jax.tree.map(_nan_like, found), found)
        losses = [run.progress.all_losses() for run in runs]
        table = np.full((len(runs), max(map(len, losses))), math.nan)
        for line, values in zip(table, losses, strict=True):
            line[: len(values)] = values
        return Many(
            found,
            self.state,
            tuple(run.ended(reason, self.restores) for run in runs),
            table,
            self.seeds,
            self.rates,
            () if self.saver is None else tuple(self.saver.resumed_at),
        )


class _At(NamedTuple):
    """Where the runs are: the epoch, and how many of its steps are taken."""

    epoch: int
    step: int


@dataclass(frozen=True)
class _Abreast:
    """The progress of runs side by side, for who saves it."""

    runs: list[_Going]
    at: _At
    taken: int

    @property
    def rows(self) -> range:
        """As many as epochs have ended."""
        return range(self.at.epoch - 1)

    def to_json(self) -> dict[str, Any]:
        """Where they are, and each one's progress."""
        return {"at": list(self.at), "runs": [run.progress.to_json() for run in self.runs]}


def _filled(book: Ledger, runs: list[_Going]) -> Ledger:
    """The ledgers [r, ...] with what the epoch's steps have said so far to the runs that still see it."""
    each = [jax.tree.map(lambda part, r=r: part[r], book) for r in range(len(runs))]
    each = [filled(own, run.progress) if run.goes else own for own, run in zip(each, runs, strict=True)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *each)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


class _Going:
    """One of the runs while it goes."""

    def __init__(self, seed: int, rate: float | None, progress: Progress):
        self.seed, self.rate, self.progress = seed, rate, progress
        self.keeps = False
        """Whether, as far as known, its parameters of now are the ones to keep."""

    @property
    def goes(self) -> bool:
        """Whether it has neither stopped nor diverged."""
        return self.progress.stop_reason is None

    def see(self, figures: Steps | EpochEnd) -> None:
        """Take in figures, unless it has ended."""
        went, before = self.goes, self.progress.best
        self.progress = see(self.progress, figures)
        if isinstance(figures, EpochEnd):
            better = self.progress.best < before
            self.keeps = went and (better if self.progress.aim.restores else not self.goes)

    def ended(self, reason: StopReason, restores: bool) -> One:
        """What it left, if all runs end for this reason."""
        reason = self.progress.stop_reason or reason
        best = self.progress.best_epoch if restores and reason not in ("interrupted", "diverged") else None
        return One(
            self.seed, self.rate, self.progress.rows, best, reason, self.progress.diverged_at, self.progress.start
        )


class _Programs(NamedTuple):
    """Of r runs: their start (keys, rates, params) -> (state, ledger), steps, and evaluation [r, m]."""

    start: Callable[..., tuple[State, Ledger]]
    take: Callable[..., tuple[State, Ledger]]
    evaluate: Callable[..., Array]


class _How(NamedTuple):
    """How the runs are gone through: examples evaluated at once, whether batches are weighed, parts, devices."""

    block: int
    weighs: bool
    accumulate: int
    mesh: Sharding | None


@lru_cache(maxsize=64)
def _programs(
    problem: Problem, maker: Any, reader: Resident, example: jax.ShapeDtypeStruct, makes_params: bool, how: _How,
) -> _Programs:  # fmt: skip
    """The compiled programs of r runs. With `maker` each optimiser is made of its run's learning rate."""
    functions = tuple(f for _, f in problem.metrics)

    def at(rate: Array) -> Problem:
        return problem if maker is None else dataclasses.replace(problem, optimizer=_made(maker, rate))

    def start(keys: Array, rates: Array, params: Any) -> tuple[State, Ledger]:
        init_keys, run_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        if makes_params:  # mapped and not vmapped, which takes the compiler twice as long
            with made_for(example.shape, again=True):
                params = lax.map(lambda key: problem.net.init(key, example.shape)[0], init_keys)

        def one(run_key: Array, rate: Array, params: Any) -> tuple[State, Ledger]:
            own = at(rate)
            method_state = own.method.init(jax.random.fold_in(run_key, 0), own, params, example)
            state = started(own.optimizer, params, method_state, run_key)
            return state, ledger(reader.every or reader.passes, len(functions), how.weighs)

        return jax.vmap(one, (0, 0, 0 if makes_params else None))(run_keys, rates, params)

    def take(state: State, book: Ledger, rate: Array, *bounds: Any) -> tuple[State, Ledger]:
        return steps_function(at(rate), reader, how.accumulate)(state, book, *bounds)

    evaluate = evaluation_program(problem.net, problem.loss, functions, problem.transform, how.block)
    takes, evaluates = jax.vmap(take, (0, 0, 0, None, None, None, None)), jax.vmap(evaluate, (0, None, None))
    if how.mesh is not None:
        takes, evaluates = how.mesh.side_by_side(takes, 3), how.mesh.side_by_side(evaluates, 1)
    return _Programs(
        jax.jit(start),
        jax.jit(on_meshes(takes), donate_argnums=(0, 1)),
        jax.jit(placed(whole)(evaluates)),
    )


def _check_mesh(mesh: Sharding | None, runs: int) -> Sharding | None:
    """The mesh, if it can have so many runs side by side."""
    if mesh is None:
        return None
    if mesh.m > 1 or mesh.shard_params:
        raise ValueError(
            "fit_many spreads its runs over the data axis, each whole on a device: leave the model axis and "
            "shard_params out"
        )
    mesh.check_rows(runs, "the number of runs")
    return mesh


def _made(maker: Any, rate: Array) -> optax.GradientTransformation:
    """The optimiser of one run."""
    try:
        chosen = maker(rate)
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            "the optimizer function must build its optimiser from a learning rate whose value is known only when it "
            "runs, but it reads that value (with float, if, …): pass the rate on as it is"
        ) from error
    if not is_optimizer(chosen):
        raise ValueError(f"the optimizer function must return one of jbp.optim or optax, but returned {chosen!r}")
    return chosen


def _check_optimizer(optimizer: Any, swept: bool) -> None:
    if not swept:
        check_optimizer(optimizer)
    if swept and not (callable(optimizer) and not is_optimizer(optimizer)):
        raise ValueError(
            "with learning_rates, optimizer must be a function from a learning rate to an optimiser, such as "
            f"lambda rate: jbp.optim.sgd(rate, momentum=0.9), but is {came(optimizer)}"
        )


def _seeds(seeds: Any) -> tuple[int, ...]:
    given = () if isinstance(seeds, str) or not np.iterable(seeds) else tuple(seeds)
    if not given:
        raise ValueError(f"seeds must be whole numbers, at least one, such as range(10), but are {came(seeds)}")
    found = tuple(as_seed(seed) for seed in given)
    _check_distinct("seeds", found)
    return found


def _learning_rates(rates: Any) -> tuple[float, ...] | tuple[None]:
    if rates is None:
        return (None,)
    if isinstance(rates, str) or not np.iterable(rates) or not len(tuple(rates)):
        raise ValueError(f"learning_rates must be numbers, at least one, such as [0.01, 0.1], but are {came(rates)}")
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
