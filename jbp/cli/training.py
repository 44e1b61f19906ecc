"""What `jbp train` does: data, net, loss and optimiser from the options, the run, and what is kept of it."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType

from jbp import checkpoint, hosts, layers, losses, own, runs
from jbp._version import __version__
from jbp.arguments import about, check_batch_size, listed
from jbp.cli import console, examples, netspec, several
from jbp.cli.curves import draw_curves
from jbp.cli.declared import declared
from jbp.cli.examples import Examples
from jbp.cli.logs import check_log, writers_of
from jbp.cli.optimizers import make_optimizer
from jbp.cli.options import BATCH, CLIP, DELTA, DESCENTS, NOISE, OPTIMIZERS, VALUES_RATE, TrainOptions
from jbp.cli.parser import Failed
from jbp.cli.text import CONTEXT, TASK, build, check_net_line
from jbp.cli.textdata import Text, load_text
from jbp.data import Augment, Bounds, Standardizer, load_dataset
from jbp.data.builtin import NAMES
from jbp.data.preparing import blocks_of
from jbp.durable.checkpoints import NEEDS, has_orbax
from jbp.durable.saver import Saving, Taken
from jbp.layer import Layer
from jbp.layers import initializers
from jbp.layers.images import made_for
from jbp.losses import Loss
from jbp.metrics import accuracy, bits_per_token
from jbp.private import Private, weak_delta
from jbp.sharding import Sharding
from jbp.step import Transform, name_of_transform, transformed
from jbp.train import BadBatch, Diverged, Fit, Interrupted, Watch, fit
from jbp.train.checks import on_device
from jbp.train.loop import BLOCK
from jbp.train.program import evaluation_program
from jbp.train.restore import restored, restoring

_ONE_HOT = ("sigmoid_binary_cross_entropy", "squared_error", "l2_loss", "mean_squared_error")
_FOR_VALUES = ("mean_squared_error", "squared_error", "l2_loss")
BITS = "bits_per_character"
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
        return Private.for_epsilon(o.epsilon, delta, clip, steps=self.steps, batch_size=self.batch_size, n=n)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return steps_of(self.options, len(self.data.train[0]), self.batch_size)

    @property
    def language(self) -> bool:
        """Whether it learns to write."""
        return isinstance(self.data, Text)

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        assert self.options.batch_size is not None  # `make_plan` has set it
        return self.options.batch_size

    def slower(self, share: float) -> optax.GradientTransformation:
        """The optimiser, at this share of its learning rate."""
        o = self.options
        rate = OPTIMIZERS[o.optimizer or "momentum"].learning_rate if o.learning_rate is None else o.learning_rate
        return make_optimizer(dataclasses.replace(o, learning_rate=share * rate), self.steps)

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
    new = folder
    folder = several.folder_for_all(lambda: new or new_folder(options))
    with folder.told():
        try:
            with hosts.lost_in_words():
                fit = several.with_whole_params(_fit(plan, folder))
        except (BadBatch, Diverged, Interrupted) as error:
            folder.rest(error.result.watched)
            if not (isinstance(error, BadBatch) and hosts.several()):  # the others may not know of it
                result = several.with_whole_params(error.result)
                _keep(plan, folder, result, _summary(plan, result) | _broken(error))
            raise
        if not hosts.is_first():
            return Result(folder.path, {}, fit)
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
    path = Path(options.resume)
    folder = runs.RunFolder.again(path) if hosts.is_first() else several.Elsewhere(path)
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
    if not (options.quiet or own.is_named(options.net) or plan.language):
        for note in netspec.added(options.net, plan.net):
            print(f"net: {note}", file=sys.stderr)
    try:
        private = plan.private
        if private is None:
            return
        epsilon = private.epsilon(plan.steps, plan.batch_size, n)
    except ModuleNotFoundError as error:
        raise Failed(str(error)) from error
    lines = [
        f"private: ε = {epsilon:.3g} at δ = {private.delta:g} after {_length(options)}, for adding or "
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
        "sharding": sharding_of(options),
        "epochs": options.epochs,
        "steps": options.steps,
        "evaluate_every": options.evaluate_every,
        "batch_size": options.batch_size,
        "validation_data": plan.data.validation,
        "sampling": options.sampling,
        "accumulate": options.accumulate,
        "weights": plan.data.weights,
        "metrics": _metrics(plan),
        "transform": plan.transform,
        "progress": not options.quiet,
        "monitor": None if plan.data.validation is None else "validation_loss",
        "patience": None if plan.data.validation is None else options.patience or None,
    }


def steps_of(options: TrainOptions, n: int, batch_size: int) -> int:
    """Of a whole run with n training examples."""
    return options.steps or (options.epochs or 0) * -(-n // batch_size)


def _length(options: TrainOptions) -> str:
    return f"all {options.steps:,} steps" if options.epochs is None else f"all {options.epochs} epochs"


def _metrics(plan: Plan) -> dict[str, Any] | None:
    if plan.language:
        return {BITS: bits_per_token}
    return {"accuracy": CLASSES_RIGHT} if plan.classification else None


def _text_plan(options: TrainOptions) -> Plan:
    """That of a text."""
    mine = own.net(options.net) if own.is_named(options.net) else None
    if mine is None:
        check_net_line(options.net)
    data = load_text(options.data, options.context or CONTEXT, options.steps is not None)
    if options.private:
        data = dataclasses.replace(data, validation=None)
    n = len(data.train[0])
    options, size = _sized(options, n, TASK)
    if mine is None:
        net = build(options.net, data.outputs, data.shape[0])
    else:
        net = netspec.fitting(mine, options.net, data.shape, data.outputs, tokens=True)
    optimizer = make_optimizer(options, steps_of(options, n, size))
    return Plan(options, data, net, losses.softmax_cross_entropy, optimizer)


def make_plan(options: TrainOptions) -> Plan:
    """Load the data and build net, loss and optimiser.

    Raises: ValueError if they are wrong or do not fit together.
    """
    sharding_of(options)  # whether there are so many devices
    if options.is_text:
        return _text_plan(options)
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
    _check_mesh(options, net, data.shape, size)
    optimizer = make_optimizer(options, steps_of(options, n, size))
    return Plan(options, data, net, getattr(losses, name), optimizer, options.augmentation)


def sharding_of(options: TrainOptions) -> Sharding | None:
    """The mesh that the options name, over the first devices there are; of several processes at least the examples are
    over the devices of all.

    Raises: ValueError if there are not so many.
    """
    axes = options.axes or ({"data": jax.device_count()} if hosts.several() else {})
    if not axes:
        return None
    wanted, there = math.prod(axes.values()), jax.device_count()
    if wanted > there:
        kind = jax.default_backend()
        advice = f"; on a CPU XLA_FLAGS=--xla_force_host_platform_device_count={wanted} makes as many of it"
        raise ValueError(
            f"mesh {options.mesh} takes {wanted} devices, but there {'is' if there == 1 else 'are'} {there} "
            f"({kind}){advice if kind == 'cpu' else ''}"
        )
    types = (AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=jax.devices()[:wanted])
    return Sharding(mesh, shard_params=options.shard_params)


def _check_mesh(options: TrainOptions, net: Layer, shape: tuple[int, ...], size: int) -> None:
    """Refuse a mesh that does not divide the batch, or of which the model axis divides no layer."""
    sharding = sharding_of(options)
    if sharding is None:
        return
    if options.seeds is None and not options.private:  # private batches are filled up
        sharding.check_rows(size, "batch_size")
    with made_for(shape, again=True):
        sharding.params(net, jax.eval_shape(lambda key: net.init(key, shape)[0], jax.random.key(0)))


def _sized(options: TrainOptions, n: int, task: str) -> tuple[TrainOptions, int]:
    """The options with a batch size for n training examples, which are one batch where they are few; and that size.

    A step of plain descent or momentum is then shorter by as much: with the usual one four rows diverge. A regression,
    whose δ has no bound, diverges with them more often than not, at any rate that is usual: unless it is told, it takes
    Adam, which diverged on none of six tables of 60 to 2,000 rows, at the rate with the lowest validation losses.
    """
    size, rate, optimizer = options.batch_size or min(BATCH, n), options.learning_rate, options.optimizer
    check_batch_size(size, n)
    if optimizer is None and task == TASK:
        optimizer = "adamw"
    if optimizer is None:
        momentum = task != "regression" or options.momentum is not None or options.nesterov
        optimizer = "momentum" if momentum else "adam"
        rate = VALUES_RATE if rate is None and not momentum else rate
    if options.batch_size is None and rate is None and optimizer in DESCENTS:
        rate = OPTIMIZERS[optimizer].learning_rate * size / BATCH
    return dataclasses.replace(options, batch_size=size, learning_rate=rate, optimizer=optimizer), size


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
        tokens=plan.data.vocabulary if isinstance(plan.data, Text) else None,
    )


def _broken(error: BaseException) -> dict[str, Any]:
    """What a summary says of a run that diverged: the step, and where it began, if that was looked for."""
    if not isinstance(error, Diverged):
        return {}
    place = {} if error.place is None else {"first_bad_number": str(error.place)}
    return {"diverged_at_step": error.step} | place


def _targets(plan: Plan) -> tuple[str, ...]:
    """Names of what a regression predicts."""
    if plan.classification or plan.language:
        return ()
    return runs.default_targets(plan.data.outputs) if plan.options.target is None else (plan.options.target,)


def _summary(plan: Plan, fit: Fit) -> dict[str, Any]:
    """What is known of a run without its test part."""
    dataset, private = plan.data.dataset, plan.private
    parts = {"train": plan.data.train, "validation": plan.data.validation}
    counted = {} if plan.options.steps is None else {"steps": fit.step_losses.size}
    return runs.fit_figures(fit) | counted | {
        "seed": plan.options.seed,
        "parameters": checkpoint.count(fit.params),
        "task": dataset.task,
        "data": dataset.name,
        "net": net_words(plan),
        "loss": plan.loss_name,
        "standardized": isinstance(plan.data.x_scale, Standardizer),
        "bounds": None if plan.options.bounds is None else str(plan.options.bounds),
        "examples": {name: len(part[0]) for name, part in parts.items() if part is not None},
        "classes": list(dataset.classes),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "mesh": plan.options.mesh,
    } | ({} if not fit.resumed_at else {"resumed_at": list(fit.resumed_at)}) | ({} if private is None else {
        "epsilon": fit.epsilon, "delta": private.delta, "noise": private.noise_multiplier, "clip": private.max_norm,
    })  # fmt: skip


def net_words(plan: Plan) -> str:
    """The net as a line, the output layer included; one for a text as it was given."""
    given = own.is_named(plan.options.net) or plan.language
    return plan.options.net if given else netspec.spec(plan.net)


def _tested_text(plan: Plan, fit: Fit) -> tuple[dict[str, Any], int]:
    x, y = on_device("the test part", plan.data.test())
    loss = float(evaluation_program(plan.net, plan.loss, (), None, BLOCK)(fit.params, x, y)[0])
    figures = {"test_loss": loss, f"test_{BITS}": loss / math.log(2), "test_perplexity": math.exp(min(loss, 700.0))}
    return figures, len(x)


def tested(plan: Plan, fit: Fit) -> tuple[dict[str, Any], int]:
    """The figures of the test part and how many examples it has; it is read here, once, and nowhere else.

    Where no rows are held out they are those of the training part, by that name.
    """
    if plan.language:
        return _tested_text(plan, fit)
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
    if not hosts.is_first():
        return None
    if all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(fit.params)):
        scales = runs.scales(plan.data.x_scale, plan.data.y_scale)
        folder.params({"params": fit.params} | scales, _about(plan))
    folder.summary(summary)
    return draw_curves(folder.path / runs.CURVES, fit.history, fit.best_epoch) if fit.history else None


def versions() -> dict[str, str]:
    """Of everything that the figures of a run may hang on."""
    found = {name: version(name) for name in ("jax", "jaxlib", "numpy", "optax")}
    return {"jbp": __version__} | found | {"python": sys.version.split()[0]}
