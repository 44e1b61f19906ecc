"""`fit`: the lectures' algorithm: pick examples, forward, backward, update, until it is time to stop.

The steps run in one compiled program (`jbp.program`), in chunks of an epoch or of about a second, whichever is
shorter; between chunks signals, callbacks and saving act. The same program runs every chunk, so where the chunks end
changes nothing, not a bit. Mini-batches of 1 (SGD), of K, and of everything (gradient descent) are the same code.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jbp import private as privacy
from jbp import program, rules
from jbp.arguments import as_count, as_number
from jbp.backprop import Mask
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.method import Method
from jbp.private import Private
from jbp.program import Metric, Sampling
from jbp.updating import InPlace, check_in_place

Data = tuple[Any, Any]
Row = dict[str, float]
StopReason = Literal["epochs", "patience", "target", "callback", "interrupted", "diverged"]
_BLOCK = 1000  # examples evaluated at once


def accuracy(output: Array, target: Array) -> Array:
    """1 if the largest output is at the target (a class index, or the largest of a distribution), else 0.

    Of a sequence, the fraction of its positions. Averaged over examples it is the share of right answers.
    """
    wanted = target if target.shape == output.shape[:-1] else target.argmax(-1)
    return (output.argmax(-1).astype(wanted.dtype) == wanted).astype(output.dtype).mean()


@dataclass(frozen=True)
class Fit:
    """What a run left behind."""

    params: Any
    opt_state: Any = field(repr=False)
    history: tuple[Row, ...]
    """One row an epoch: epoch, step, train_loss, train_<metric>, validation_loss, validation_<metric>, seconds
    (since the start), examples_per_second (of the epoch's steps), epsilon (since the start, if private)."""
    best_epoch: int | None
    """The epoch whose parameters these are, if the best were restored (0 is the start); else None."""
    stop_reason: StopReason
    step_losses: np.ndarray = field(repr=False)
    """The loss of every step taken, in order."""
    rule_state: Any = field(default=(), repr=False)
    """What the learning rule carries, such as its random weights, after the last step; () without a rule."""
    epsilon: float | None = None
    """Of a private training, what all steps taken together cost, whichever parameters are used."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `fit`. `result` holds what was reached: the finished epochs and the last parameters."""

    def __init__(self, result: Fit):
        self.result = result
        super().__init__(f"interrupted after {len(result.step_losses)} steps")


class Diverged(ArithmeticError):
    """The loss is no longer finite. `step` counts from 1; `result` holds the epochs before."""

    def __init__(self, result: Fit, step: int):
        self.result, self.step = result, step
        super().__init__(
            f"the loss became non-finite at step {step}: lower the learning rate, or check the scale of the data"
        )


class Event(NamedTuple):
    """What a callback is told after each chunk of steps."""

    epoch: int
    step: int
    """Steps taken so far, over all epochs."""
    steps: int
    """Steps that all epochs together take."""
    loss: float
    """Mean training loss of this epoch so far."""
    seconds: float
    row: Row | None
    """The history's new row, if this chunk ended an epoch."""
    params: Any
    """The current parameters, valid until the callback returns: copy what you keep."""
    rule_state: Any = ()
    """What the learning rule carries now, for `jbp.rules.alignment`; valid as long."""


Callback = Callable[[Event], bool | None]


def fit(
    net: Layer,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    train_data: Data,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    validation_data: Data | None = None,
    params: Any = None,
    seed: int | None = None,
    sampling: Sampling = "shuffle",
    metrics: Mapping[str, Metric] | None = None,
    trainable: Any = None,
    rule: rules.Rule | Method | str | None = None,
    private: Private | None = None,
    in_place: bool = False,
    monitor: str | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool | None = None,
    target: float | None = None,
    chunk_steps: int | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> Fit:
    """Train `net` on `train_data` = (x [n, ...], y [n, ...]).

    One step draws `batch_size` examples and applies `optimizer` (any optax transformation, or `jbp.optim`) to their
    mean gradient. "shuffle" goes through a new permutation each epoch, the last batch shorter where n does not divide;
    "replacement" picks each example uniformly anew, ⌈n / batch_size⌉ steps to an epoch. `trainable` as in
    `jbp.value_and_grad`. `rule` is another way back than backpropagation: a rule of `jbp.rules`, or the name of one
    with its defaults, such as "feedback_alignment". The training figures of a row are means over the epoch's steps,
    taken while the parameters moved and with dropout; the validation figures are in evaluation, after the epoch.

    `in_place` updates each layer inside the backward pass, for `jbp.optim`'s own optimisers: the same parameters, and
    under `repeat` much less memory, because the gradient of a deep stack is never whole.

    `private` clips each example's gradient and adds noise (`jbp.Private`, which says what is protected, and what is
    not: the training figures). Then every example enters each batch independently, `batch_size` of them on average and
    ⌈n / batch_size⌉ steps to an epoch, rows have "epsilon", and nothing may stop the run or choose its parameters by a
    figure. The validation data are not protected.

    `monitor` names the figure that decides: by default "validation_loss", without validation data "train_loss"; of a
    metric higher is better. Training stops when it has not improved by more than `min_delta` for `patience` epochs,
    or has reached `target`. The parameters returned are the best epoch's if `restore_best` (by default, when
    `patience` is given), else the last.

    Everything random (initial parameters, order, dropout, noise) follows from `seed`, by default 0, for a private run
    from the operating system: same arguments, same machine, same bits. `chunk_steps` (by default an epoch, or about a
    second's work if that is shorter) changes none of them. Each of the `callbacks` gets an `Event` after every chunk,
    and ends the run by returning True.

    Raises:
        ValueError: for arguments that do not fit together, saying what to do.
        Diverged: when the loss is no longer finite.
        Interrupted: on Ctrl-C, when the chunk ends; a second Ctrl-C does not wait.
    """
    if private is not None:
        privacy.check_fit(private, net, rule, sampling, monitor, patience, target, restore_best)
    x, y = _on_device("train_data", train_data)
    validation = None if validation_data is None else _on_device("validation_data", validation_data)
    n, epochs = len(x), as_count(epochs, "epochs")
    sizes = _batch_sizes(n, batch_size, sampling if private is None else "replacement")
    batch_size, steps = int(sizes[0]), len(sizes)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"optimizer must come from jbp.optim or optax, but is {optimizer!r}")
    metrics = dict(metrics or {})
    watch = _Watch.over(monitor, validation is not None, metrics, patience, min_delta, target, restore_best)
    chunks = _Chunks(steps, None if chunk_steps is None else as_count(chunk_steps, "chunk_steps"))

    root = privacy.secret_key() if private is not None and seed is None else jax.random.key(seed or 0)
    init_key, run_key = jax.random.split(root)
    if params is None:
        params, _ = net.init(init_key, x.shape[1:])
    for name, data in (("train_data", (x, y)), ("validation_data", validation)):
        _check_data(name, net, loss, params, data)

    functions = tuple(metrics.values())
    mask = Mask.of(trainable)
    if in_place:
        check_in_place(net, jax.eval_shape(optimizer.init, params), rule, private, trainable)
        method, capacity = InPlace(), None
    elif private is None:
        method, capacity = rules.method_of(rule, net, params, x, mask), None
    else:
        private.epsilon(epochs * steps, batch_size, n)  # so that what is missing shows before the first step
        private.warn_of(n)
        method, capacity = private.bind(batch_size), private.capacity(epochs * steps, batch_size, n)
        sampling = "poisson"
    take = program.steps_program(net, loss, optimizer, functions, mask, sampling, batch_size, n, method, capacity)
    evaluate = program.evaluation_program(net, loss, functions, _BLOCK)
    way = method.init(jax.random.fold_in(run_key, 0), net, params)
    state = program.start_program(optimizer, steps, len(functions))(params, way)
    record, taken = _Record(tuple(metrics), sizes), 0
    if validation is not None:  # how good the start is; also compiles the program before the first step
        watch.see(0, record.validation(evaluate(state.params, *validation)), state.params)

    def result(reason: StopReason) -> Fit:
        best = watch.params is not None and reason != "interrupted"
        kept, epoch = (watch.params, watch.best_epoch) if best else (state.params, None)
        spent = None if private is None else private.epsilon(taken, batch_size, n)
        return Fit(kept, state.opt_state, tuple(record.rows), epoch, reason, record.losses(), state.method, spent)

    def order_of(epoch: int) -> Callable[[], Any]:
        if epoch > epochs:
            return lambda: None
        return program.order_of(run_key, epoch, sampling, batch_size, n)  # type: ignore[arg-type]

    with _ctrl_c() as interrupted:
        order, coming = order_of(1)(), order_of(2)
        for epoch in range(1, epochs + 1):
            for first, last in chunks:
                began = time.perf_counter()
                state = take(state, x, y, run_key, epoch, first, last, order)
                if last == steps:  # while they run
                    order, coming = coming(), order_of(epoch + 2)
                jax.block_until_ready(state.losses)
                chunks.took(last - first, time.perf_counter() - began)
                taken = (epoch - 1) * steps + last
                bad = record.see(state, last, private is not None)
                if bad is not None:
                    raise Diverged(result("diverged"), bad)
                row = None
                if last == steps:
                    figures = {} if validation is None else record.validation(evaluate(state.params, *validation))
                    if private is not None:
                        figures["epsilon"] = private.epsilon(taken, batch_size, n)
                    row = record.end_epoch(epoch, figures)
                    watch.see(epoch, row, state.params)
                event = Event(
                    epoch, taken, epochs * steps, record.loss, record.seconds, row, state.params, state.method
                )
                wanted = [callback(event) for callback in callbacks]
                if interrupted.is_set():
                    raise Interrupted(result("interrupted"))
                if any(wanted):
                    return result("callback")
            if watch.stop_reason is not None:
                return result(watch.stop_reason)
    return result("epochs")


class _Record:
    """The figures of the run so far."""

    def __init__(self, names: tuple[str, ...], sizes: np.ndarray):
        self.names, self.sizes = names, sizes
        self.rows: list[Row] = []
        self.loss = math.nan
        self._finished: list[np.ndarray] = []
        self._losses = self._metrics = np.zeros(0)
        self._began = self._epoch_began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def see(self, state: program.State, last: int, private: bool = False) -> int | None:
        """Take in the epoch's first `last` steps; answers with the first one (of the run) that is not finite.

        Whether a private run ends must not depend on an example's error, so there only on the parameters.
        """
        self._losses, self._metrics = np.asarray(state.losses, float)[:last], np.asarray(state.metrics, float)[:last]
        self.loss = self._mean(self._losses)
        broken = np.flatnonzero(~np.isfinite(self._losses))
        if not len(broken) or (private and all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(state.params))):
            return None
        self._losses = self._losses[: broken[0] + 1]
        return sum(map(len, self._finished)) + int(broken[0]) + 1

    def end_epoch(self, epoch: int, validation: Row) -> Row:
        """The epoch's row."""
        self._finished.append(self._losses)
        row = {"epoch": epoch, "step": epoch * len(self.sizes), "train_loss": self.loss}
        row |= {f"train_{name}": self._mean(self._metrics[:, i]) for i, name in enumerate(self.names)}
        row |= validation
        now = time.perf_counter()
        row |= {
            "seconds": now - self._began,
            "examples_per_second": float(self.sizes.sum() / (now - self._epoch_began)),
        }
        self._losses, self._epoch_began = np.zeros(0), now
        self.rows.append(row)
        return row

    def validation(self, means: Array) -> Row:
        """The figures of an evaluation, named."""
        names = ("loss", *self.names)
        return {f"validation_{name}": float(mean) for name, mean in zip(names, np.asarray(means), strict=True)}

    def losses(self) -> np.ndarray:
        """The loss of every step."""
        return np.concatenate([*self._finished, self._losses])

    def _mean(self, values: np.ndarray) -> float:
        weights = self.sizes[: len(values)]
        return float((values * weights).sum() / weights.sum())


@dataclass
class _Watch:
    """Decides which epoch is best and when to stop."""

    monitor: str
    sign: int
    patience: int | None
    min_delta: float
    target: float | None
    restores: bool
    best: float = math.inf
    best_epoch: int = 0
    params: Any = None
    stop_reason: Literal["patience", "target"] | None = None

    @staticmethod
    def over(
        monitor: str | None,
        validates: bool,
        metrics: dict[str, Metric],
        patience: int | None,
        min_delta: float,
        target: float | None,
        restore_best: bool | None,
    ) -> _Watch:
        parts = ("train", "validation") if validates else ("train",)
        known = [f"{part}_{name}" for part in parts for name in ("loss", *metrics)]
        monitor = f"{parts[-1]}_loss" if monitor is None else monitor
        if monitor not in known:
            hint = "" if validates else " (without validation_data there are no validation figures)"
            raise ValueError(f"monitor must be one of {', '.join(known)}{hint}, but is {monitor!r}")
        patience = None if patience is None else as_count(patience, "patience")
        return _Watch(
            monitor,
            1 if monitor.endswith("_loss") else -1,
            patience,
            as_number(min_delta, "min_delta", 0.0),
            None if target is None else as_number(target, "target"),
            patience is not None if restore_best is None else restore_best,
        )

    def see(self, epoch: int, row: Row, params: Any) -> None:
        """Take in an epoch's figures; keeps a copy of the best parameters if they are to be restored."""
        if self.monitor not in row:
            return
        value = self.sign * row[self.monitor]
        if value < self.best - (self.min_delta if math.isfinite(self.best) else 0.0):
            self.best, self.best_epoch = value, epoch
            self.params = program.copy(params) if self.restores else None
        elif self.patience is not None and epoch - self.best_epoch >= self.patience:
            self.stop_reason = "patience"
        if epoch and self.target is not None and value <= self.sign * self.target:
            self.stop_reason = "target"


class _Chunks:
    """Cuts an epoch's steps into chunks (first, last): of a fixed length, or of about a second as measured."""

    def __init__(self, steps: int, fixed: int | None):
        self.steps, self.fixed = steps, fixed
        self._length, self._timed = fixed or 1, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = 0
        while first < self.steps:
            last = min(first + self._length, self.steps)
            yield first, last
            first = last

    def took(self, steps: int, seconds: float) -> None:
        """Learn from a chunk how many steps make a second. The first one compiles, so the second is the probe."""
        self._timed += 1
        if self.fixed is None:
            self._length = 32 if self._timed == 1 else max(1, int(steps / seconds))


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """Ctrl-C sets the event; a second one raises at once. Outside the main thread signals are not ours to take."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def handle(number: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _batch_sizes(n: int, batch_size: int, sampling: Sampling) -> np.ndarray:
    """How many of the n examples each step of an epoch draws."""
    batch_size = as_count(batch_size, "batch_size")
    if batch_size > n:
        raise ValueError(f"batch_size must be at most the number of training examples, {n}, but is {batch_size}")
    if sampling not in ("shuffle", "replacement"):
        raise ValueError(f"sampling must be 'shuffle' or 'replacement', but is {sampling!r}")
    sizes = np.full(-(-n // batch_size), batch_size)
    if sampling == "shuffle":
        sizes[-1] = n - batch_size * (len(sizes) - 1)
    return sizes


def _on_device(name: str, data: Any) -> tuple[Array, Array]:
    """(x, y) as arrays on the device, with equally many rows, at least one."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"{name} must be a pair (x, y) of arrays, but is a {type(data).__name__}")
    x, y = (jnp.asarray(a) for a in data)
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"{name} must hold as many targets as inputs, at least one, but has shapes {x.shape} and {y.shape}"
        )
    return x, y


@jax.jit
def _is_finite(values: Array) -> Array:
    return jnp.isfinite(values).all()


def _check_data(name: str, net: Layer, loss: Loss, params: Any, data: tuple[Array, Array] | None) -> None:
    """Refuse what would only show as a NaN or a wrong label: not-finite values, classes that the net does not have."""
    if data is None:
        return
    x, y = data
    for what, values in (("x", x), ("y", y)):
        if jnp.issubdtype(values.dtype, jnp.floating) and not bool(_is_finite(values)):
            where = np.argwhere(~np.isfinite(np.asarray(values)))[0].tolist()
            raise ValueError(f"{what} of {name} must be finite, but is not in row {where[0]}, at {where[1:]}")
    output = program.shape_of(net, loss, params, x, y)
    if jnp.issubdtype(y.dtype, jnp.integer) and y.shape[1:] == output.shape[1:-1]:
        classes = output.shape[-1]
        outside = np.argwhere((np.asarray(y) < 0) | (np.asarray(y) >= classes))
        if len(outside):
            row = outside[0].tolist()
            raise ValueError(
                f"the labels of {name} must be from 0 to {classes - 1}, for the net has {classes} outputs, "
                f"but row {row[0]} has {np.asarray(y)[tuple(row)]}"
            )
