"""`fit`: the lectures' algorithm: pick examples, forward, backward, update, until it is time to stop.

The steps run in one compiled program (`jbp.train.program`), in chunks of an epoch or of about a second, whichever is
shorter; between chunks signals, callbacks and saving act. The same program runs every chunk, so where the chunks end
changes nothing, not a bit. Mini-batches of 1 (SGD), of K, and of everything (gradient descent) are the same code.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jbp import private as privacy
from jbp import rules
from jbp.annotations import Array
from jbp.arguments import as_count, as_target_values, check_narrowing, dtype_of, is_narrow, renamed
from jbp.backprop import example_output, forward, refuse_swapped
from jbp.inputs import as_callbacks, as_pair, one_array
from jbp.layer import Layer
from jbp.layers.images import made_for
from jbp.losses import Loss
from jbp.meshes import placed, whole
from jbp.paths import paths
from jbp.private import Private
from jbp.step import Method, Metric, Problem, State, Transform, init_state
from jbp.train.batches import Resident, ResidentSource, Sampling, Source, batch_size_of, batch_sizes, of_mean_one
from jbp.train.clocks import Chunks, Stopwatch
from jbp.train.in_place import InPlace
from jbp.train.live import training_line
from jbp.train.program import copy, evaluation_program, ledger, steps_program
from jbp.train.progress import Aim, EpochEnd, Progress, Row, Steps, StopReason, kept_row, see
from jbp.train.signals import ctrl_c

Data = tuple[Any, Any]
BLOCK = 1000
"""Examples evaluated at once."""


@dataclass(frozen=True)
class Fit:
    """What a run left behind."""

    params: Any = field(repr=False)
    state: State
    """All that training carried, after the last step."""
    history: tuple[Row, ...] = field(repr=False)
    """One row an epoch: epoch, step, train_loss, train_<metric>, validation_loss, validation_<metric>, seconds
    (since the start), examples_per_second (of the epoch's steps), epsilon (since the start, if private)."""
    best_epoch: int | None
    """The epoch whose parameters these are, if the best were restored (0 is the start); else None."""
    stop_reason: StopReason
    step_losses: np.ndarray = field(repr=False)
    """The loss of every step taken, in order; NaN of one whose batch was empty, or all of weight 0."""
    epsilon: float | None = None
    """Of a private training, what all steps taken together cost, whichever parameters are used."""
    start: Row = field(default_factory=dict, repr=False)
    """The validation figures before the first step; none without validation data."""

    @property
    def kept(self) -> Row:
        """The figures that go with `params`: the history's row of the epoch, or `start` if the start was best."""
        return kept_row(self.history, self.start, self.best_epoch)

    @property
    def opt_state(self) -> Any:
        """Deprecated: `state.opt_state`."""
        renamed("Fit.opt_state", "Fit.state.opt_state")
        return self.state.opt_state

    @property
    def rule_state(self) -> Any:
        """Deprecated: `state.method_state`."""
        renamed("Fit.rule_state", "Fit.state.method_state")
        return self.state.method_state


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


@dataclass(frozen=True)
class Event:
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
    state: State
    """All that training carries, valid until the callback returns: copy what you keep."""

    @property
    def params(self) -> Any:
        """The current parameters, valid as long."""
        return self.state.params

    @property
    def rule_state(self) -> Any:
        """Deprecated: `state.method_state`."""
        renamed("Event.rule_state", "Event.state.method_state")
        return self.state.method_state


Callback = Callable[[Event], bool | None]


def fit(
    net: Layer,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    train_data: Data,
    *,
    epochs: int = 10,
    batch_size: int | None = None,
    validation_data: Data | None = None,
    params: Any = None,
    seed: int | None = None,
    sampling: Literal["shuffle", "replacement"] = "shuffle",
    weights: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    trainable: Any = None,
    transform: Transform | None = None,
    rule: rules.Rule | Method | str | None = None,
    private: Private | None = None,
    in_place: bool = False,
    monitor: str | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool | None = None,
    target: float | None = None,
    chunk_steps: int | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = False,
) -> Fit:
    """Train `net` on `train_data` = (x [n, ...], y [n, ...]).

    One step draws `batch_size` examples (None: 32, or all of them if there are fewer) and applies `optimizer` (any
    optax transformation, or `jbp.optim`) to their mean gradient. "shuffle" goes through a new permutation each epoch,
    the last batch shorter where n does not divide;
    "replacement" picks each example uniformly anew, ⌈n / batch_size⌉ steps to an epoch. `trainable` as in
    `jbp.value_and_grad`. `rule` is another way back than backpropagation: a rule of `jbp.rules`, the name of one
    with its defaults, such as "feedback_alignment", or a `jbp.Method` of your own. The training figures of a row are
    means over the epoch's steps, taken while the parameters moved and with dropout; the validation figures are in
    evaluation, after the epoch.

    `weights` [n], one number ≥ 0 for each training example, make it minimise Σ wₙeₙ/Σ wₙ over all of them: a step's
    gradient is Σ wₙgₙ/(B·w̄), with B the examples it draws and w̄ the mean weight of all n, so that weights count alike
    in batches of any size, of 1 too. The training figures of a row are weighted means; in validation every example
    counts once. `transform(x, key)` is done to ONE example before the net sees it, inside the compiled step: to every
    example in evaluation too, then with `key` None, so that conversion is done there and augmentation, which draws, is
    not.

    `in_place` updates each layer inside the backward pass, for `jbp.optim`'s own optimisers: the same parameters, and
    under `repeat` much less memory, because the gradient of a deep stack is never whole.

    `private` clips each example's gradient and adds noise (`jbp.Private`, which says what is protected, and what is
    not: the training figures). Then every example enters each batch independently, `batch_size` of them on average and
    ⌈n / batch_size⌉ steps to an epoch, rows have "epsilon", and nothing may stop the run or choose its parameters by a
    figure; data that were standardised by their own mean and deviation are refused. The validation data are not
    protected.

    `monitor` names the figure that decides: by default "validation_loss", without validation data "train_loss"; of a
    metric higher is better. Training stops when it has not improved by more than `min_delta` for `patience` epochs,
    or has reached `target`. The parameters returned are the best epoch's if `restore_best` (by default, when
    `patience` is given), else the last.

    Data and parameters may be spread over a mesh of devices; under one with explicit axes, JAX's default, the compiler
    sees to how a step is. The numbers are those of one device. Each step draws from all the examples, wherever they
    lie, so nothing is faster for it; the parameters stay spread as `params` are.

    Everything random (initial parameters, order, dropout, noise) follows from `seed`, by default 0, for a private run
    from the operating system: same arguments, same machine, same bits. `chunk_steps` (by default an epoch, or about a
    second's work if that is shorter) changes none of them. Each of the `callbacks` gets an `Event` after every chunk,
    and ends the run by returning True. `progress` tells on standard error how it goes: in a terminal or notebook a line
    that is written anew, in a log a line now and then.

    Parameters of 16 bits train, with a warning: steps that are small beside a parameter are lost in its rounding.

    Raises:
        ValueError: for arguments that do not fit together, saying what to do.
        Diverged: when the loss is no longer finite.
        Interrupted: on Ctrl-C, when the chunk ends; a second Ctrl-C does not wait. While the program is still being
            compiled there is nothing to keep, and it is a plain KeyboardInterrupt, once that is done.
    """
    line, callbacks = training_line(progress, epochs), as_callbacks(callbacks)
    aims = {"monitor": monitor, "patience": patience, "target": target, "restore_best": restore_best}
    if private is not None:
        privacy.check_fit(private, net, sampling=sampling, weights=weights, **aims)
    data, validation = on_device("train_data", train_data), None
    if validation_data is not None:
        validation = on_device("validation_data", validation_data)
    batch_size = batch_size_of(batch_size, len(data[0]))
    method = method_of(rule, private, in_place, batch_size)
    problem = Problem(net, loss, optimizer, trainable=trainable, method=method, metrics=metrics, transform=transform)
    if private is not None:
        for name, values in zip(("x of train_data", "y of train_data"), train_data, strict=True):
            privacy.refuse_own_statistics(name, values)
    run = _Run(as_count(epochs, "epochs"), len(data[0]), batch_size, private)
    source = run.source(data, sampling, weights)
    names = [name for name, _ in problem.metrics]
    aim = Aim.over(names, validation is not None, min_delta=min_delta, **aims)
    chunks = Chunks(len(source.sizes), chunk_steps)
    with unless_swapped(problem, params, data):
        state = init_state(problem, jax.ShapeDtypeStruct(data[0].shape[1:], data[0].dtype), seed=seed, params=params)
        check_data("train_data", problem, state.params, data, train_data, weights)
    check_data("validation_data", problem, state.params, validation, validation_data)
    check_coupling(problem, state.params, data[0], source.sizes)
    warn_of_16_bits(problem, state.params)
    blank = Progress(aim, tuple(names), tuple(source.sizes.tolist()))
    with line or nullcontext():
        return run(problem, state, source, blank, chunks, validation, (*callbacks, *([line] if line else [])))


@dataclass(frozen=True)
class _Run:
    """The loop, over what was checked."""

    epochs: int
    n: int
    batch_size: int
    private: Private | None

    def source(self, data: tuple[Array, Array], sampling: Sampling, weights: Any) -> ResidentSource:
        """The training data, in batches."""
        steps, capacity = len(batch_sizes(self.n, self.batch_size, sampling)), None
        if self.private is not None:
            self.private.epsilon(self.epochs * steps, self.batch_size, self.n)  # what is missing shows at once
            self.private.warn_of(self.n)
            sampling, capacity = "poisson", self.private.capacity(self.epochs * steps, self.batch_size, self.n)
        reader = Resident(sampling, self.batch_size, self.n, capacity)
        return ResidentSource(data, of_mean_one(weights, self.n), reader, self.epochs)

    def __call__(
        self,
        problem: Problem,
        state: State,
        source: Source,
        progress: Progress,
        chunks: Chunks,
        validation: tuple[Array, Array] | None,
        callbacks: tuple[Callback, ...],
    ) -> Fit:
        """Step, see, stop."""
        steps, book = len(source.sizes), ledger(len(source.sizes), len(problem.metrics), source.weighs)
        take, evaluate = steps_program(problem, source.reader), self._evaluation(problem, validation)
        best, watch = None, Stopwatch()

        def seen(figures: Steps | EpochEnd) -> Progress:
            nonlocal best
            after = see(progress, figures)
            if after.aim.restores and after.best < progress.best:
                best = copy(state.params)
            return after

        def result(reason: StopReason) -> Fit:
            restored = best is not None and reason != "interrupted"
            kept, epoch = (best, progress.best_epoch) if restored else (state.params, None)
            return Fit(
                kept,
                state,
                progress.rows,
                epoch,
                reason,
                progress.all_losses(),
                self._spent(progress.taken),
                progress.start,
            )

        with ctrl_c() as interrupt:
            if validation is not None:  # how good the start is; also compiles the program before the first step
                progress = seen(EpochEnd(0, evaluate(state.params)))
                interrupt.check_begun()
            for epoch in range(1, self.epochs + 1):
                for first, last in chunks:
                    began = time.perf_counter()
                    state, book = take(state, book, source.chunk(state.key, epoch, first, last), epoch, first, last)
                    interrupt.begun = True
                    if last == steps:
                        source.ahead(state.key, epoch)  # while they run
                    jax.block_until_ready(book.losses)
                    interrupt.check_begun()
                    chunks.took(last - first, time.perf_counter() - began)
                    rows, figures = len(progress.rows), book.first(last)
                    progress = seen(Steps(epoch, *figures, sound=self._sound(state, figures[0])))
                    if progress.diverged_at is not None:
                        raise Diverged(result("diverged"), progress.diverged_at)
                    if last == steps:
                        spent = {} if self.private is None else {"epsilon": self._spent(progress.taken)}
                        progress = seen(
                            EpochEnd(epoch, evaluate(state.params) | spent, watch.seconds, watch.lap())  # type: ignore[arg-type]
                        )
                    row = progress.rows[-1] if len(progress.rows) > rows else None
                    event = Event(epoch, progress.taken, self.epochs * steps, progress.loss, watch.seconds, row, state)
                    wanted = [callback(event) for callback in callbacks]
                    if interrupt.asked:
                        raise Interrupted(result("interrupted"))
                    if any(wanted):
                        return result("callback")
                if progress.stop_reason is not None:
                    return result(progress.stop_reason)
        return result("epochs")

    def _evaluation(self, problem: Problem, validation: tuple[Array, Array] | None) -> Callable[[Any], Row]:
        """Parameters -> the named figures of the validation data; none without them."""
        if validation is None:
            return lambda params: {}
        names, functions = ("loss", *(name for name, _ in problem.metrics)), tuple(f for _, f in problem.metrics)
        evaluate = evaluation_program(problem.net, problem.loss, functions, problem.transform, BLOCK)
        return lambda params: validation_row(names, evaluate(params, *validation))

    def _spent(self, taken: int) -> float | None:
        return None if self.private is None else self.private.epsilon(taken, self.batch_size, self.n)

    def _sound(self, state: State, losses: np.ndarray) -> bool:
        """Whether a private run ends must not depend on an example's error, so there only on the parameters."""
        if self.private is None or np.isfinite(losses).all():
            return False
        return all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(state.params))


def validation_row(names: tuple[str, ...], means: Array) -> Row:
    """The figures of an evaluation, named."""
    return {f"validation_{name}": float(mean) for name, mean in zip(names, np.asarray(means), strict=True)}


def method_of(rule: Any, private: Private | None, in_place: bool, batch_size: int) -> Method:
    """The one method that `fit`'s keywords name.

    Raises:
        ValueError: if they name two, or no rule there is.
    """
    said = {"rule": rule is not None, "private": private is not None, "in_place": in_place}
    given = [name for name, on in said.items() if on]
    if len(given) > 1:
        raise ValueError(
            f"expected one of {' and '.join(given)}: a learning rule, private training and the update in place are "
            "each a way of its own to make a step"
        )
    if private is not None:
        return private.bind(batch_size)
    method = InPlace() if in_place else rules.method_of(rule)
    if method.accounted:
        raise ValueError(f"{method!r} rests on how the batches are drawn and counted: give it as private, not as rule")
    return method


def on_device(name: str, data: Any) -> tuple[Array, Array]:
    """(x, y) as arrays on the device, with equally many rows, at least one, and no number lost on the way."""
    values = dict(zip("xy", as_pair(name, data), strict=True))
    for what, given in values.items():
        values[what] = one_array(f"{what} of {name}", given)
        check_narrowing(f"{what} of {name}", values[what], spread=True)
    as_target_values(f"y of {name}", values["y"])
    x, y = map(jnp.asarray, values.values())
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"{name} must hold as many targets as inputs, at least one, but has shapes {x.shape} and {y.shape}"
        )
    return x, y


def check_coupling(problem: Problem, params: Any, x: Array, sizes: np.ndarray) -> None:
    """Refuse batches that a net which couples the examples cannot train on, as one of one: in the layer's own words,
    before the first step. Rows that fill up the last batch of an epoch would hide there how few examples it has."""
    if problem.net.couples_batch:
        seen = problem.seen(jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
        least = jax.ShapeDtypeStruct((int(sizes.min()), *seen.shape), seen.dtype)
        jax.eval_shape(lambda p, x, k: forward(problem.net, p, x, k)[0], params, least, jax.random.key(0))


def warn_of_16_bits(problem: Problem, params: Any) -> None:
    """Warn, once, if parameters that are trained have so few digits that the small steps of training are lost."""
    leaves = zip(paths(params, "params"), jax.tree.leaves(params), problem.trainable.flags(params), strict=True)
    narrow = [(path, dtype_of(leaf)) for path, leaf, trained in leaves if trained and is_narrow(dtype_of(leaf))]
    if narrow:
        path, dtype = narrow[0]
        share = float(jnp.finfo(dtype).eps) / 2
        others = f" and {len(narrow) - 1} more" if len(narrow) > 1 else ""
        warnings.warn(
            f"{path}{others} {'are' if others else 'is'} {dtype}: a step below {share:.1g} of a number is rounded "
            "away, and training stands still early without a sign of it; train in float32, "
            "jax.tree.map(lambda p: p.astype('float32'), params), and narrow what comes out",
            stacklevel=3,
        )


@contextmanager
def unless_swapped(problem: Problem, params: Any, data: tuple[Array, Array]) -> Iterator[None]:
    """If data turn out not to fit, inside: say so where x and y fit the other way round. Without `params` those that
    the net would make."""

    def fits(x: Any, y: Any) -> Any:
        seen = problem.seen(jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
        made = params
        if params is None:
            with made_for(seen.shape, again=True):
                made = jax.eval_shape(lambda key: problem.net.init(key, seen.shape)[0], jax.random.key(0))
        one = jax.ShapeDtypeStruct((1, *seen.shape), seen.dtype), jax.ShapeDtypeStruct((1, *y.shape[1:]), y.dtype)
        example_output(problem.net, problem.loss, made, *one)

    try:
        yield
    except ValueError as error:
        refuse_swapped(fits, *data, error)
        raise


@jax.jit
@placed(whole)
def _is_finite(values: Array) -> Array:
    return jnp.isfinite(values).all()


@partial(jax.jit, static_argnums=0)
@placed(whole)
def _finite_once_transformed(transform: Transform, x: Array) -> Array:
    """Of each example [n], a block of them at a time."""
    return lax.map(lambda one: jnp.isfinite(transform(one, None)).all(), x, batch_size=BLOCK)


def check_data(
    name: str, problem: Problem, params: Any, data: tuple[Array, Array] | None, own: Any, weights: Any = None
) -> None:
    """Refuse what would only show as a NaN or a wrong label: inputs that are not finite, targets outside the loss's
    domain, as they are in `own`, the data as their owner gave them; targets of weight 0 are not looked at."""
    if data is None:
        return
    x, y = data
    if problem.transform is not None:
        rows = np.flatnonzero(~np.asarray(_finite_once_transformed(problem.transform, x)))
        if len(rows):
            raise ValueError(f"x of {name} must be finite once it is transformed, but is not in row {rows[0]}")
    elif jnp.issubdtype(x.dtype, jnp.floating) and not bool(_is_finite(x)):
        row, *at = np.argwhere(~np.isfinite(np.asarray(x)))[0].tolist()
        raise ValueError(f"x of {name} must be finite, but is not in row {row}, at {at}")
    seen = problem.seen(jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    one = (
        jax.ShapeDtypeStruct((1, *shape), dtype) for shape, dtype in ((seen.shape, seen.dtype), (y.shape[1:], y.dtype))
    )
    output = example_output(problem.net, problem.loss, params, *one)
    # Weights of another form are refused where they are divided.
    counts = np.asarray(weights) != 0 if np.shape(weights) == (len(x),) else None
    problem.loss.check_targets(own[1], output.shape, f"y of {name}", counts)
