"""What `jbp train` does: data, net, loss and optimiser from the options, the run, and what is kept of it."""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jbp import checkpoint, layers, losses, optim, own, runs
from jbp._version import __version__
from jbp.arguments import about, check_batch_size, listed
from jbp.cli import console, examples, netspec
from jbp.cli.curves import draw_curves
from jbp.cli.declared import declared
from jbp.cli.examples import Examples
from jbp.cli.logs import check_log, writers_of
from jbp.cli.options import BATCH, CLIP, DELTA, DESCENTS, NOISE, OPTIMIZERS, VALUES_RATE, TrainOptions
from jbp.cli.parser import Failed
from jbp.data import Augment, Bounds, Standardizer, load_dataset
from jbp.data.builtin import NAMES
from jbp.data.preparing import blocks_of
from jbp.durable.checkpoints import NEEDS, has_orbax
from jbp.durable.saver import Saving, Taken
from jbp.layer import Layer
from jbp.layers import initializers
from jbp.losses import Loss
from jbp.metrics import accuracy
from jbp.private import Private, weak_delta
from jbp.step import Transform, name_of_transform, transformed
from jbp.train import BadBatch, Diverged, Fit, Interrupted, Watch, fit
from jbp.train.restore import restored, restoring

_ONE_HOT = ("sigmoid_binary_cross_entropy", "squared_error", "l2_loss", "mean_squared_error")
_FOR_VALUES = ("mean_squared_error", "squared_error", "l2_loss")
CLASSES_RIGHT = accuracy.of(losses.softmax_cross_entropy)
"""Whatever the loss, `jbp predict` says the class of the largest output."""


@dataclass(frozen=True)
class Result:
    """What a run of `jbp train` left: its folder, its summary.json, and what `jbp.fit` returned."""

    folder: Path
    summary: dict[str, Any]
    fit: Fit | None = field(repr=False)
    """None of a run that was to go on, and had ended."""


@dataclass(frozen=True)
class Plan:
    """Everything that the options and the data decide, checked, before the first step."""

    options: TrainOptions
    data: Examples
    net: Layer
    loss: Loss
    optimizer: optax.GradientTransformation
    transform: Transform | None = None
    """What is done to an example inside the compiled step."""

    @property
    def classification(self) -> bool:
        """Else regression."""
        return self.data.dataset.task == "classification"

    @property
    def private(self) -> Private | None:
        """The privacy asked for."""
        o = self.options
        if not o.private:
            return None
        noise, clip, delta = ((d if v is None else v) for v, d in ((o.noise, NOISE), (o.clip, CLIP), (o.delta, DELTA)))
        if o.epsilon is None:
            return Private(noise, clip, delta)
        n = len(self.data.train[0])
        steps = o.epochs * -(-n // self.batch_size)
        return Private.for_epsilon(o.epsilon, delta, clip, steps=steps, batch_size=self.batch_size, n=n)

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        assert self.options.batch_size is not None  # `make_plan` has set it
        return self.options.batch_size

    def slower(self, share: float) -> optax.GradientTransformation:
        """The optimiser, at this share of its learning rate."""
        o, steps = self.options, self.options.epochs * -(-len(self.data.train[0]) // self.batch_size)
        rate = OPTIMIZERS[o.optimizer or "momentum"].learning_rate if o.learning_rate is None else o.learning_rate
        return make_optimizer(dataclasses.replace(o, learning_rate=share * rate), steps)

    @property
    def loss_name(self) -> str:
        """As `--loss` names it."""
        return repr(self.loss)


def train(options: TrainOptions) -> Result:
    """Train as the options say, and leave a run folder; or go on with a run, to which the options belong.

    Raises: ValueError for what is wrong with options, data or folder; Diverged, Interrupted and OSError with a note
        of what was kept.
    """
    began = time.perf_counter()
    check_log(options)
    folder, ended = resumed(options)
    if folder is not None and ended is not None:
        return Result(folder.path, ended, None)
    plan = make_plan(options)
    announce(plan)
    folder = folder or new_folder(options)
    with folder.told():
        try:
            fit = _fit(plan, folder)
        except (BadBatch, Diverged, Interrupted) as error:
            folder.rest(error.result.watched)
            _keep(plan, folder, error.result, _summary(plan, error.result) | _broken(error))
            raise
        figures, test_examples = tested(plan, fit)
        summary = figures | _summary(plan, fit)
        if options.on_bad == "restore" and (gone_back := restored(folder.path)):
            summary["restored"] = gone_back
        summary["examples"][plan.data.tested] = test_examples
        summary["seconds"] = time.perf_counter() - began
        note = _keep(plan, folder, fit, summary)
        if note and not options.quiet:
            print(note, file=sys.stderr)
        say(options, folder.path, summary)
    return Result(folder.path, summary, fit)


def new_folder(options: TrainOptions) -> runs.RunFolder:
    """The folder of a new run."""
    config = {"jbp": __version__} | options.config
    return runs.create(options.out, options.overwrite, Path(options.data).stem, config)


def resumed(options: TrainOptions) -> tuple[runs.RunFolder | None, dict[str, Any] | None]:
    """The folder of a run that is to go on, None for a new one; and its summary, if it has ended, which is said.

    Raises: ValueError if it is no run, is in use, or has diverged.
    """
    if options.resume is None:
        runs.check_out(options.out, options.overwrite)
        return None, None
    folder = runs.RunFolder.again(Path(options.resume))
    summary = runs.read(folder.path)[2]
    every = summary.get("runs") or ([summary] if summary else [])
    diverged = [run["diverged_at_step"] for run in every if "diverged_at_step" in run]
    if diverged and len(diverged) == len(every):
        folder.close()
        raise ValueError(
            f"{folder.path}: the run diverged at step {min(diverged)}, and would do so again: begin a new one with a "
            "lower learning rate"
        )
    reasons = [run["stop_reason"] for run in every]
    if not reasons or {"interrupted", "bad batch"} & set(reasons):
        return folder, None
    folder.close()
    if not options.quiet:
        how = ", ".join(dict.fromkeys(reasons))
        print(f"{folder.path}: the run has ended ({how}), and nothing is left to do", file=sys.stderr)
    say(options, folder.path, summary)
    return folder, summary


def say(options: TrainOptions, folder: Path, summary: dict[str, Any]) -> None:
    """What came out, in the form that was asked for."""
    if options.json:
        print(runs.to_json(summary, indent=2))
    elif not options.quiet:
        (console.print_spread if "spread" in summary else console.print_result)(folder, summary)


def _fit(plan: Plan, folder: runs.RunFolder) -> Fit:
    """Train, with a line of metrics for each epoch and a sign of life for each chunk of steps."""
    options, where = plan.options, saving(plan.options, folder)

    def once(share: float, where: Saving | None) -> Fit:
        return fit(
            plan.net,
            plan.loss,
            plan.optimizer if share == 1 else plan.slower(share),
            plan.data.train,
            seed=options.seed,
            rule=options.rule,
            private=plan.private,
            watch=None if options.watch is None else Watch(options.watch),
            on_bad="skip" if options.on_bad == "skip" else "stop",
            callbacks=(folder.after_chunk, *logs),
            save_to=where,
            **fit_options(plan),
        )

    with warnings.catch_warnings(), writers_of(options, folder.path) as logs:
        warnings.filterwarnings("ignore", "delta = ")  # said already
        if options.on_bad != "restore":
            return once(1.0, where)
        if where is None:
            raise Failed(f"on_bad restore goes back to a checkpoint: {NEEDS}")
        return restoring(where, once)


def saving(options: TrainOptions, folder: runs.RunFolder) -> Saving | None:
    """How the run is saved on the way; None where the package for it is missing.

    Raises: Failed if the run is to go on, which needs it.
    """
    if not has_orbax():
        if options.resume is not None:
            raise Failed(NEEDS)
        if not options.quiet:
            print(f"note: the run is not saved on the way, and cannot go on after a kill: {NEEDS}", file=sys.stderr)
        return None

    def taken_up(taken: Taken | None) -> None:
        # Of runs side by side the rows are means, which no single one has: those in the file stay.
        rows = [] if taken is None else taken.progress.get("rows")
        folder.cut_back(rows, 0 if taken is None else taken.steps)
        if not options.quiet:
            where = "the start, for no checkpoint was finished" if taken is None else f"step {taken.steps:,}"
            print(f"{folder.path}: going on from {where}", file=sys.stderr)

    resumes = options.resume is not None
    return Saving(
        folder.path, options.save_every, options.keep, resumes, None if resumes else folder.replace, taken_up, held=True
    )


def announce(plan: Plan) -> None:
    """What to know of a run before it starts: how its data were understood, of its bounds, of its privacy.

    Raises: Failed if there is nothing to do the account with.
    """
    options, n, dataset = plan.options, len(plan.data.train[0]), plan.data.dataset
    if not options.quiet:
        for note in dataset.notes:
            print(f"{options.data}: {note}", file=sys.stderr)
    if not options.quiet and isinstance(plan.data.x_scale, Bounds):
        print(_clipped(plan), file=sys.stderr)
    if not options.quiet and not own.is_named(options.net):
        for note in netspec.added(options.net, plan.net):
            print(f"net: {note}", file=sys.stderr)
    try:
        private = plan.private
        if private is None:
            return
        epsilon = private.epsilon(options.epochs * -(-n // plan.batch_size), plan.batch_size, n)
    except ModuleNotFoundError as error:
        raise Failed(str(error)) from error
    lines = [
        f"private: ε = {epsilon:.3g} at δ = {private.delta:g} after all {options.epochs} epochs, for adding or "
        f"removing one of {n:,} examples; it covers the parameters, not the training figures shown or in the folder"
    ]
    if options.epsilon is not None:
        lines.append(f"noise: {private.noise_multiplier:.4g}, the least for ε = {options.epsilon:g}")
    if options.bounds is None and str(options.data) not in NAMES:
        lines.append(
            "note: the data are not scaled, for their mean and deviation are private; with bounds that are known "
            "beforehand (--bounds FILE) training is usually much better"
        )
    worded = () if dataset.columns is None else dataset.columns.worded
    if worded:
        lines.append(f"note: the words of {listed(worded)} are read off the data, and the run keeps them as they are")
    if private.delta >= 1 / n:
        lines.append(f"warning: {weak_delta(private.delta, n)}")
    if options.seed is not None:
        lines.append(
            f"warning: with seed {options.seed} given, the noise can be drawn again and taken away: "
            "for experiments only, not for data that are private"
        )
    if not options.quiet:
        print("\n".join(lines), file=sys.stderr)


def _clipped(plan: Plan) -> str:
    """What the bounds do to the data; of private data not to how many, which would tell about them."""
    done = "bounds: values outside are clipped"
    if plan.data.clipped is None:
        return f"{done}; how many there are is a figure of private data, and not told"
    outside, of = plan.data.clipped
    return f"{done}, {outside:,} of {of:,} in the training part"


def fit_options(plan: Plan) -> dict[str, Any]:
    """What `fit` and `fit_many` are told alike."""
    options = plan.options
    return {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "validation_data": plan.data.validation,
        "sampling": options.sampling,
        "accumulate": options.accumulate,
        "weights": plan.data.weights,
        "metrics": {"accuracy": CLASSES_RIGHT} if plan.classification else None,
        "transform": plan.transform,
        "progress": not options.quiet,
        "monitor": None if plan.data.validation is None else "validation_loss",
        "patience": None if plan.data.validation is None else options.patience or None,
    }


def make_plan(options: TrainOptions) -> Plan:
    """Load the data and build net, loss and optimiser.

    Raises: ValueError if they are wrong or do not fit together.
    """
    mine = own.net(options.net) if own.is_named(options.net) else None
    if mine is None:
        netspec.parse(options.net)  # before data that may have to be downloaded
    with warnings.catch_warnings():
        if options.quiet:
            warnings.simplefilter("ignore")
        dataset = load_dataset(options.data, target=options.target, task=options.task, **options.reading)
    name = options.loss or ("softmax_cross_entropy" if dataset.task == "classification" else "mean_squared_error")
    if dataset.task == "regression" and name not in _FOR_VALUES:
        raise ValueError(
            f"expected a loss for values, one of {', '.join(_FOR_VALUES)}, got {name!r} for a regression; "
            "pass task='classification' if the targets are labels"
        )
    # Built-in images are scaled by fixed numbers; what would be computed from private data is left undone.
    standardize = str(options.data) not in NAMES if options.standardize is None else options.standardize
    dataset, given = declared(dataset, options)
    standardize = standardize and not options.private and given.x_bounds is None
    data = examples.prepare(dataset, name in _ONE_HOT, standardize, not options.private, given)
    n = len(data.train[0])
    options, size = _sized(options, n, dataset.task)
    net = mine and netspec.fitting(mine, options.net, data.shape, data.outputs)
    net = net or netspec.build(
        options.net,
        data.shape,
        data.outputs,
        output_activation(options.output_activation, name),
        None if options.init is None else getattr(initializers, options.init),
        getattr(initializers, options.bias_init),
    )
    if options.augmentation is not None:
        with about(f"augment on {dataset.name}"):
            options.augmentation.check(data.shape)
    steps = options.epochs * -(-n // size)
    return Plan(options, data, net, getattr(losses, name), make_optimizer(options, steps), options.augmentation)


def _sized(options: TrainOptions, n: int, task: str) -> tuple[TrainOptions, int]:
    """The options with a batch size for n training examples, which are one batch where they are few; and that size.

    A step of plain descent or momentum is then shorter by as much: with the usual one four rows diverge. A regression,
    whose δ has no bound, diverges with them more often than not, at any rate that is usual: unless it is told, it takes
    Adam, which diverged on none of six tables of 60 to 2,000 rows, at the rate with the lowest validation losses.
    """
    size, rate, optimizer = options.batch_size or min(BATCH, n), options.learning_rate, options.optimizer
    check_batch_size(size, n)
    if optimizer is None:
        momentum = task != "regression" or options.momentum is not None or options.nesterov
        optimizer = "momentum" if momentum else "adam"
        rate = VALUES_RATE if rate is None and not momentum else rate
    if options.batch_size is None and rate is None and optimizer in DESCENTS:
        rate = OPTIMIZERS[optimizer].learning_rate * size / BATCH
    return dataclasses.replace(options, batch_size=size, learning_rate=rate, optimizer=optimizer), size


def make_optimizer(options: TrainOptions, steps: int) -> optax.GradientTransformation:
    """The optimiser of the options, for a run of so many steps; the same object for the same options."""
    optimizer = options.optimizer or "momentum"
    usual = OPTIMIZERS[optimizer]
    rate = usual.learning_rate if options.learning_rate is None else options.learning_rate
    beta = usual.momentum if options.momentum is None else options.momentum
    decay = usual.weight_decay if options.weight_decay is None else options.weight_decay
    steps = 0 if options.schedule == "constant" else steps
    return _optimizer(optimizer, rate, options.schedule, steps, beta or 0.0, options.nesterov, decay)


@lru_cache(maxsize=64)  # the compiled program of training is kept for each optimiser object
def _optimizer(
    name: str, rate: float, schedule: str, steps: int, beta: float, looks_ahead: bool, decay: float
) -> optax.GradientTransformation:
    rates: dict[str, Callable[[], Any]] = {
        "constant": lambda: rate,
        "cosine": lambda: optax.cosine_decay_schedule(rate, steps),
        "linear": lambda: optax.linear_schedule(rate, 0.0, steps),
        "exponential": lambda: optax.exponential_decay(rate, steps, 0.01),
        "step": lambda: optax.piecewise_constant_schedule(rate, {steps // 2: 0.1, steps * 3 // 4: 0.1}),
    }
    eta = rates[schedule]()
    match name:
        case "sgd" | "momentum" | "heavy_ball":
            chosen = optim.sgd(eta, beta, looks_ahead)
        case "nesterov":
            chosen = optim.nesterov(eta, beta)
        case "adam":
            chosen = _mixing(optax.adam(eta, nesterov=looks_ahead))
        case "adamw":
            return _mixing(optax.adamw(eta, weight_decay=decay, mask=_weights, nesterov=looks_ahead))
        case _:
            chosen = _mixing(optax.rmsprop(eta, momentum=beta or None, nesterov=looks_ahead))
    return optax.chain(optax.add_decayed_weights(decay, _weights), chosen) if decay else chosen


def _mixing(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser that mixes types, as Adam does, where JAX is told to be strict about them."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def _weights(params: Any) -> Any:
    """True for weights; False for biases and what normalisation holds, under `repeat` too, where they have two axes."""
    names = {"bias", "scale", "mean", "var"}

    def is_weight(path: Any, leaf: Any) -> bool:
        return leaf.ndim > 1 and getattr(path[-1] if path else None, "key", None) not in names

    return jax.tree.map_with_path(is_weight, params)


def output_activation(word: str | None, loss: str) -> Layer | None:
    """The activation of the output layer, if the loss can do with it."""
    chosen = None if word is None else netspec.activation(word, "output_activation")
    if loss == "cross_entropy":
        if chosen not in (None, layers.softmax):
            raise ValueError(
                f"cross_entropy needs probabilities, so output_activation must be softmax, but is {word!r}"
            )
        return layers.softmax
    if chosen is not None and repr(chosen) == runs.INSIDE.get(loss):
        raise ValueError(f"{loss} has its {word} inside: leave output_activation out")
    return chosen


def _about(plan: Plan) -> dict[str, Any]:
    """What, beside the arrays, the use of a trained net needs."""
    dataset = plan.data.dataset
    return runs.facts_of(
        plan.net,
        plan.loss,
        input_shape=plan.data.shape,
        classes=dataset.classes,
        features=dataset.columns or dataset.features,
        targets=_targets(plan),
        # Augmentation leaves evaluation alone: whoever predicts has nothing to do for it.
        transform=None if isinstance(plan.transform, Augment) else name_of_transform(plan.transform),
    )


def _broken(error: BaseException) -> dict[str, Any]:
    """What a summary says of a run that diverged: the step, and where it began, if that was looked for."""
    if not isinstance(error, Diverged):
        return {}
    place = {} if error.place is None else {"first_bad_number": str(error.place)}
    return {"diverged_at_step": error.step} | place


def _targets(plan: Plan) -> tuple[str, ...]:
    """Names of what a regression predicts."""
    if plan.classification:
        return ()
    return runs.default_targets(plan.data.outputs) if plan.options.target is None else (plan.options.target,)


def _summary(plan: Plan, fit: Fit) -> dict[str, Any]:
    """What is known of a run without its test part."""
    dataset, private = plan.data.dataset, plan.private
    parts = {"train": plan.data.train, "validation": plan.data.validation}
    return runs.fit_figures(fit) | {
        "seed": plan.options.seed,
        "parameters": checkpoint.count(fit.params),
        "task": dataset.task,
        "data": dataset.name,
        "net": plan.options.net if own.is_named(plan.options.net) else netspec.spec(plan.net),
        "loss": plan.loss_name,
        "standardized": isinstance(plan.data.x_scale, Standardizer),
        "bounds": None if plan.options.bounds is None else str(plan.options.bounds),
        "examples": {name: len(part[0]) for name, part in parts.items() if part is not None},
        "classes": list(dataset.classes),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
    } | ({} if not fit.resumed_at else {"resumed_at": list(fit.resumed_at)}) | ({} if private is None else {
        "epsilon": fit.epsilon, "delta": private.delta, "noise": private.noise_multiplier, "clip": private.max_norm,
    })  # fmt: skip


def tested(plan: Plan, fit: Fit) -> tuple[dict[str, Any], int]:
    """The figures of the test part and how many examples it has; it is read here, once, and nowhere else.

    Where no rows are held out they are those of the training part, by that name.
    """
    x, y = plan.data.test()
    part = plan.data.tested
    blocks = (transformed(plan.transform, block, None) for block in blocks_of(x))
    output, y = np.concatenate([checkpoint.outputs(plan.net, fit.params, block) for block in blocks]), np.asarray(y)
    errors = jax.jit(jax.vmap(plan.loss.value))(output, y)
    found: dict[str, Any] = {f"{part}_loss": float(np.mean(np.asarray(errors), dtype=np.float64))}
    if plan.classification:
        k = plan.data.outputs
        truth, said = (y.argmax(-1) if y.ndim == 2 else y), output.argmax(-1)
        known = ~np.isnan(output).any(-1)  # an output that is NaN says no class
        confusion = np.bincount((truth * k + said)[known], minlength=k * k).reshape(k, k)
        return {f"{part}_accuracy": float(np.mean((truth == said) & known))} | found | {
            "confusion": confusion.tolist()
        }, len(x)
    truth, said = plan.data.truth, checkpoint.Postprocessing(None, plan.data.y_scale)(output)
    squares, spread = np.square(truth - said).sum(0), np.square(truth - truth.mean(0)).sum(0)
    r2 = float(np.mean(1 - squares / spread)) if (spread > 0).all() else None
    return {f"{part}_r2": r2, f"{part}_rmse": float(np.sqrt(squares.sum() / truth.size))} | found, len(x)


def _keep(plan: Plan, folder: runs.RunFolder, fit: Fit, summary: dict[str, Any]) -> str | None:
    """Write parameters (if they are sound), summary and curves; answers with a remark if there is one."""
    if all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(fit.params)):
        scales = runs.scales(plan.data.x_scale, plan.data.y_scale)
        folder.params({"params": fit.params} | scales, _about(plan))
    folder.summary(summary)
    return draw_curves(folder.path / runs.CURVES, fit.history, fit.best_epoch) if fit.history else None


def versions() -> dict[str, str]:
    """Of everything that the figures of a run may hang on."""
    found = {name: version(name) for name in ("jax", "jaxlib", "numpy", "optax")}
    return {"jbp": __version__} | found | {"python": sys.version.split()[0]}
