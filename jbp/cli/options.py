# ruff: noqa: RUF009 (option and argument declare fields)
"""The options of `jbp train` and all their defaults; what it does with them is in `jbp.cli.training` and `.seeds`."""

from __future__ import annotations

import csv
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

from jbp import hosts, losses, own, rules, runs
from jbp.arguments import about, as_count, as_seed, check_scalar, did_you_mean
from jbp.cli import netspec, text
from jbp.cli.axes import read_mesh
from jbp.cli.parser import Command, option
from jbp.data.augment import Augment
from jbp.data.builtin import NAMES
from jbp.data.cells import DECIMALS, Dialect
from jbp.data.columns import MISSING
from jbp.data.dataset import TASKS
from jbp.data.tables import SUFFIXES
from jbp.durable.saver import EVERY, Every
from jbp.layers import initializers
from jbp.private import MOST
from jbp.texts import CONFIG, SAVED, read_json
from jbp.train.clocks import Length
from jbp.train.restore import TIMES


def _names(module: ModuleType, kind: type) -> tuple[str, ...]:
    """The names under which a module offers things of a kind."""
    return tuple(name for name, value in vars(module).items() if isinstance(value, kind))


LOSSES, INITIALIZERS = _names(losses, losses.Loss), _names(initializers, initializers.Initializer)
RULES = tuple(rules.NAMES)
SCHEDULES = ("constant", "cosine", "linear", "exponential", "step")
TENSORBOARD, WANDB = "tensorboard", "wandb"


@dataclass(frozen=True)
class Defaults:
    """What an optimiser uses where its options are not given; None where it does not have the option."""

    learning_rate: float
    momentum: float | None
    weight_decay: float = 0.0


OPTIMIZERS = {
    "momentum": Defaults(0.05, 0.9),
    "heavy_ball": Defaults(0.05, 0.9),  # another name of momentum
    "nesterov": Defaults(0.05, 0.9),
    "sgd": Defaults(0.1, 0.0),
    "adam": Defaults(0.001, None),
    "adamw": Defaults(0.001, None, 1e-4),
    "rmsprop": Defaults(0.001, 0.0),
}

MOST_SEEDS = 1000
"""Runs side by side take memory side by side."""

BATCH = 32
DESCENTS = ("momentum", "heavy_ball", "nesterov", "sgd")
VALUES_RATE = 0.01
"""Of Adam, which a regression takes unless it is told otherwise."""

ON_BAD = ("stop", "skip", "restore")
EPOCHS = 60
NOISE, CLIP, DELTA, PATIENCE = 1.1, 1.0, 1e-5, 20

_HOW_IT_GOES = ("save_every", "keep", "mesh", "shard_params")
"""Options that a run may go on with otherwise than it was begun."""

_DATA, _NET, _STEPS, _RUN, _OUT = "data", "network and loss", "optimiser", "length of the run", "output"
_PRIVATE, _SAVING = "private training", "runs that survive"
_DEVICES, _HOSTS = "several devices", "several processes"


@dataclass(frozen=True)
class TrainOptions(Command):
    """What a run of `jbp train` is told.

    Raises: ValueError for options that are wrong by themselves.
    """

    data: str | Path = option(
        "digits", "digits, mnist, fashion-mnist, a .npz file (x_train, y_train, optionally x_test, y_test), "
        "a .csv or .tsv file (a line of column names, then rows), or, for data larger than memory, a folder of "
        ".npy files: x_train.npy and y_train.npy, or shards x_train-000.npy, x_train-001.npy, …, optionally x_test, "
        "y_test; or a .txt file, a text to learn to write", _DATA, metavar="NAME|FILE|FOLDER",
    )  # fmt: skip
    target: str | None = option(None, "column of the table to predict; the others are the input", _DATA,
                                metavar="COLUMN")  # fmt: skip
    task: str | None = option(
        None, "classification, regression, or of a .txt file language: at each character, which comes next", _DATA,
        choices=(*TASKS, text.TASK), shown="text and whole numbers are classes, other numbers values",
    )  # fmt: skip
    context: int | None = option(None, "of a text, how many characters the net sees at once", _DATA, metavar="N",
                                 shown=f"{text.CONTEXT}")  # fmt: skip
    missing: str | None = option(
        None, "where a table lacks a value: mean takes the mean over the training part, indicator also adds a column "
        "of 0 and 1 that says so", _DATA, choices=MISSING, metavar="NAME", shown="refuse, and count them",
    )  # fmt: skip
    categorical: str | None = option(
        None, "columns of categories although they look like numbers or dates: names with commas between", _DATA,
        metavar="COLUMNS", shown="columns of words",
    )  # fmt: skip
    delimiter: str | None = option(None, "between columns: a character, or comma, semicolon, tab, bar", _DATA,
                                   metavar="CHAR", shown="found from the first line")  # fmt: skip
    decimal: str | None = option(None, "decimal sign: . or ,", _DATA, choices=DECIMALS, metavar="CHAR",
                                 shown="found from the numbers")  # fmt: skip
    standardize: bool | None = option(
        None, "bring inputs, and values to predict, to mean 0 and deviation 1 over the training part: each column of a "
        "table, images as a whole", _DATA, shown="on for own files, off for built-in images",
    )  # fmt: skip
    bounds: str | Path | None = option(
        None, 'scale by bounds known beforehand instead, and clip what lies outside: JSON {"age": [0, 120], …} or a '
        ".csv file of column,low,high, also for a value to predict; x and y where columns have no names", _DATA,
        metavar="FILE",
    )  # fmt: skip
    weights: str | None = option(
        None, "column of a table with what each row counts in training, at least 0; it is no input, and in validation "
        "and test all rows count alike", _DATA, metavar="COLUMN",
    )  # fmt: skip
    class_weights: str | None = option(
        None, "balanced: in training every class counts alike, however few rows it has", _DATA, choices=("balanced",),
        metavar="NAME",
    )  # fmt: skip

    augment: str | None = option(
        None, "in training, images changed at random, anew in every epoch: shift:2 moves them by up to 2 pixels (what "
        "comes in is 0), flip mirrors every second one, left for right; shift:2,flip does both", _DATA, metavar="WORDS",
        shown="as they are",
    )  # fmt: skip

    net: str = option(
        "512 relu dropout:0.4 256 relu dropout:0.4",
        f"hidden layers: widths of dense layers, and {netspec.known()}, as told below; the output layer follows from "
        f"the data. For a text gpt:LAYERS:HEADS:WIDTH, by default {text.NET}, or layers that begin with embed:WIDTH. "
        "Or a whole net of yours, FILE.py:NAME: a layer, or a function that makes one", _NET, metavar="LAYERS",
    )  # fmt: skip
    output_activation: str | None = option(None, "activation of the output layer", _NET, metavar="NAME", shown="none")
    loss: str | None = option(
        None, ", ".join(LOSSES), _NET, choices=LOSSES, metavar="NAME",
        shown="softmax_cross_entropy; mean_squared_error for regression",
    )  # fmt: skip
    init: str | None = option(None, "initial weights: " + ", ".join(INITIALIZERS), _NET, choices=INITIALIZERS,
                              metavar="NAME", shown="suits the next activation")  # fmt: skip
    bias_init: str = option("zeros", "initial biases: zeros, standard_normal", _NET,
                            choices=("zeros", "standard_normal"), metavar="NAME")  # fmt: skip

    optimizer: str | None = option(None, ", ".join(OPTIMIZERS), _STEPS, choices=OPTIMIZERS, metavar="NAME",
                                   shown="momentum; adam for a regression; adamw for a text")  # fmt: skip
    learning_rate: float | None = option(
        None, "step size: a step is RATE times the gradient (or the velocity)", _STEPS, metavar="RATE",
        shown="0.05; 0.1 for sgd; of fewer than 32 examples by as much less; 0.001 for adam, adamw, rmsprop; 0.01 for "
        "a regression that names no optimiser",
    )  # fmt: skip
    schedule: str = option(
        "constant", "learning rate over the steps of the run: constant; cosine or linear to 0; exponential to 1 %; "
        "step: a tenth from one half on, a hundredth from three quarters", _STEPS, choices=SCHEDULES, metavar="NAME",
    )  # fmt: skip
    warmup: int = option(0, "over the first N steps the learning rate grows from 0 to what it is", _STEPS,
                         metavar="N")  # fmt: skip
    clip_gradient: float | None = option(
        None, "a gradient whose norm, over all parameters, is larger is scaled down to it", _STEPS, metavar="NORM",
        shown="as it is",
    )  # fmt: skip
    momentum: float | None = option(
        None, "share of the last step's velocity that is kept, in [0, 1)", _STEPS, metavar="SHARE",
        shown="0.9 for momentum and nesterov, 0 for sgd and rmsprop",
    )  # fmt: skip
    nesterov: bool = option(False, "look one step of momentum ahead (sgd, momentum, rmsprop, adam, adamw)", _STEPS)
    weight_decay: float | None = option(
        None, "λ ≥ 0: λ·weight joins the gradient (adamw: joins the step); not for biases", _STEPS, metavar="DECAY",
        shown="0; 0.0001 for adamw",
    )  # fmt: skip
    rule: str | None = option(None, "way back for the error: " + ", ".join(RULES), _STEPS, choices=RULES,
                              metavar="NAME", shown="backpropagation")  # fmt: skip
    batch_size: int | None = option(None, "examples per step", _STEPS, metavar="N",
                                    shown=f"{BATCH}, or all where there are fewer")  # fmt: skip
    accumulate: int = option(
        1, "go through each batch in N parts, one after another: the same steps, to rounding, with the activations of "
        "one part in memory", _STEPS, metavar="N",
    )  # fmt: skip
    sampling: str = option(
        "shuffle", "shuffle: each epoch goes through all examples once; replacement: each step picks examples anew",
        _STEPS, choices=("shuffle", "replacement"), metavar="NAME",
    )  # fmt: skip

    private: bool = option(
        False, "clip each example's gradient, add noise, and account for (ε, δ): protects each training example in "
        "what the parameters tell, not in the training figures; no validation part, no early stop", _PRIVATE,
    )  # fmt: skip
    epsilon: float | None = option(None, "ε of the whole run; the least noise that keeps it is found", _PRIVATE,
                                   metavar="EPSILON", shown="what the noise makes it")  # fmt: skip
    noise: float | None = option(None, "deviation of the noise, in clipping bounds", _PRIVATE, metavar="SIGMA",
                                 shown=f"{NOISE}")  # fmt: skip
    clip: float | None = option(None, "largest norm of an example's gradient", _PRIVATE, metavar="NORM",
                                shown=f"{CLIP}")  # fmt: skip
    delta: float | None = option(None, "δ of the account, well below 1 / number of examples", _PRIVATE,
                                 metavar="DELTA", shown=f"{DELTA}")  # fmt: skip

    epochs: int | None = option(None, "at most this many times through the data", _RUN, metavar="N",
                                shown=f"{EPOCHS}; of a text see steps")  # fmt: skip
    steps: int | None = option(
        None, "at most this many steps, in place of epochs, of a text of crops at random", _RUN, metavar="N",
        shown=f"of a text {text.STEPS}",
    )  # fmt: skip
    evaluate_every: int | None = option(
        None, "steps after which the validation part is looked at, and a line of figures kept; as an epoch's end is",
        _RUN, metavar="N", shown=f"all steps; of a text {text.EVERY}",
    )  # fmt: skip
    patience: int = option(
        PATIENCE, "stop when the validation loss has not improved for this many epochs, and restore the best "
        "parameters; 0: train all epochs and keep the last", _RUN, metavar="EPOCHS",
    )  # fmt: skip
    on_bad: str = option(
        "stop", "a step that ends in a number that is not finite: stop says in which layer, example and row it began; "
        "skip leaves the step out, which costs a copy of the parameters; restore goes on from the last checkpoint at "
        f"half the learning rate, up to {TIMES} times", _RUN, choices=ON_BAD, metavar="NAME",
    )  # fmt: skip
    seed: int | None = option(
        None, "of initial parameters, order and dropout; same seed, same machine, same bits", _RUN, metavar="N",
        shown="0; for private training a secret one, kept nowhere",
    )  # fmt: skip
    seeds: str | None = option(None, "A:B trains with every seed from A to B − 1, all side by side, and reports mean ± "
                               "standard deviation; no parameters are kept", _RUN, metavar="A:B")  # fmt: skip
    watch: int | None = option(
        None, "look at every K-th step from inside: h and δ of each layer, how far it moves, saturated units, noise of "
        "the gradient; jbp show draws it", _RUN, metavar="K", shown="do not look",
    )  # fmt: skip

    save_every: str = option(
        EVERY, "how often the run is saved on the way, from where it can go on: 60s, 500steps or 1epoch; also at the "
        "end, on Ctrl-C and on SIGTERM", _SAVING, metavar="TIME",
    )  # fmt: skip
    keep: int = option(2, "how many checkpoints stay", _SAVING, metavar="K")
    resume: str | Path | None = option(
        None, "go on with the run in FOLDER from its last checkpoint, to the same bits as without the pause; its "
        "options are those it was begun with", _SAVING, metavar="FOLDER",
    )  # fmt: skip

    mesh: str | None = option(
        None, "spread the run over devices: data=4 gives each of four its part of every batch, data=4,model=2 moreover "
        "cuts the layers in two", _DEVICES, metavar="AXES", shown="one device; several processes: all of them",
    )  # fmt: skip
    shard_params: bool = option(
        False, "spread parameters, and what the optimiser keeps of them, over the data axis too", _DEVICES,
    )  # fmt: skip

    coordinator: str | None = option(
        None, "HOST:PORT where process 0 listens, the same for all; auto: JAX finds it, as on hosts of TPUs", _HOSTS,
        metavar="HOST:PORT", shown="what SLURM, Open MPI or a cloud says",
    )  # fmt: skip
    processes: int | None = option(None, "how many processes train this one net; 1: this one alone", _HOSTS,
                                   metavar="N", shown="what SLURM, Open MPI or a cloud says")  # fmt: skip
    process: int | None = option(None, "which of them this is, from 0; process 0 writes and speaks for all", _HOSTS,
                                 metavar="I", shown="what SLURM, Open MPI or a cloud says")  # fmt: skip

    out: str | Path | None = option(None, "folder to write, which must not exist", _OUT, metavar="FOLDER",
                             shown="a fresh one, runs/DATA-DATE-NUMBER")  # fmt: skip
    overwrite: bool = option(False, "replace the run that is in FOLDER", _OUT)
    log: str | None = option(
        None, "write the figures for another program too: tensorboard, into FOLDER/tensorboard, or wandb, a run of "
        "Weights & Biases (WANDB_MODE=offline keeps it here)", _OUT, choices=(TENSORBOARD, WANDB), metavar="NAME",
    )  # fmt: skip
    quiet: bool = option(False, "print nothing but errors", _OUT)
    json: bool = option(False, "print the summary as JSON on standard output, and nothing else there", _OUT)

    not_in_config: ClassVar[tuple[str, ...]] = (
        "resume", "out", "overwrite", "quiet", "json", "log", "coordinator", "processes", "process",
    )  # fmt: skip
    """Options that say where a run goes and what is printed; the others make the run what it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is None and not self.private:
            object.__setattr__(self, "seed", 0)
        self._settle_length()
        self._check_text()
        self._check_private()
        if own.is_named(self.net):
            own.parts(self.net)
            for name in ("output_activation", "init", "bias_init"):
                if getattr(self, name) != getattr(TrainOptions, name):
                    raise ValueError(f"{name} is for a line of layers: leave it out, for {self.net} is a whole net")
        Dialect(self.delimiter, self.decimal)
        self.augmentation  # noqa: B018 (checks it)
        usual = OPTIMIZERS[self.optimizer or "momentum"]
        rate, decay, beta = self.learning_rate, self.weight_decay, self.momentum
        if rate is not None:
            wanted, advice = "a finite number ≥ 0", f"try {usual.learning_rate:g}"
            check_scalar("learning_rate", rate, lambda rate: 0 <= rate < math.inf, wanted, advice)
        if decay is not None:
            wanted, advice = "a finite number ≥ 0", "try 0.0001"
            check_scalar("weight_decay", decay, lambda decay: 0 <= decay < math.inf, wanted, advice)
        if beta is not None and usual.momentum is None:
            raise ValueError(f"{self.optimizer} has no momentum to set, but got {beta}: leave it out")
        if beta is not None:
            advice = "0.9 is usual, 0 is plain sgd"
            check_scalar("momentum", beta, lambda beta: 0 <= beta < 1, "a number in [0, 1)", advice)
        if self.nesterov and (usual.momentum if beta is None else beta) == 0:
            raise ValueError("nesterov needs momentum in (0, 1), but it is 0: momentum 0.9 is usual")
        Every.of(self.save_every)
        if self.shard_params and self.mesh is None and self.place is None:
            raise ValueError("shard_params is for several devices, but there is no mesh: add mesh, such as data=4")
        self.axes  # noqa: B018 (checks it)
        counts = (("batch_size", 1), ("accumulate", 1), ("patience", 0), ("watch", 1), ("keep", 1))
        for name, low in counts:
            if getattr(self, name) is not None:
                as_count(getattr(self, name), name, low)
        if self.batch_size is not None and self.accumulate > self.batch_size:
            raise ValueError(f"accumulate must be at most batch_size, {self.batch_size}, but is {self.accumulate}")
        if self.seed is not None:
            as_seed(self.seed)
        if self.seeds is not None and self.seed:
            raise ValueError(f"expected one of seed and seeds, got seed {self.seed} and seeds {self.seeds!r}")
        if self.seeds is not None and self.rule is not None:
            raise ValueError(f"rule trains one seed at a time, but got rule {self.rule!r} and seeds {self.seeds!r}")
        for name in ("watch", "log"):
            if self.seeds is not None and getattr(self, name) is not None:
                raise ValueError(f"{name} is of one run, but seeds {self.seeds!r} are several: leave one out")
        if self.seeds is not None and self.on_bad != "stop":
            raise ValueError(
                f"on_bad is for one run, but got on_bad {self.on_bad!r} and seeds {self.seeds!r}: of several runs "
                "those that diverge are left out"
            )
        if self.seeds is not None:
            self.seed_range  # noqa: B018 (checks it)

        if (self.coordinator, self.processes, self.process) != (None, None, None):
            self.place  # noqa: B018 (checks it)
        if self.resume is not None and (self.out is not None or self.overwrite):
            raise ValueError("a run that is resumed stays in its folder: leave out and overwrite out")

    def _check_private(self) -> None:
        """What private training needs, and what it excludes."""
        if self.bounds is not None and self.standardize:
            raise ValueError("expected one of standardize and bounds, each of which scales the data; leave one out")
        for name in ("epsilon", "noise", "clip", "delta"):
            value = getattr(self, name)
            if value is not None and not self.private:
                raise ValueError(f"{name} is for private training, but private is not set: add private")
            if name in ("noise", "clip") and value is not None:
                wanted, advice = "a finite number above 0", f"{NOISE} is a start for noise"
                check_scalar(name, value, lambda value: 0 < value < math.inf, wanted, advice)
        if self.delta is not None:
            check_scalar("delta", self.delta, lambda delta: 0 < delta < 1, "a number in (0, 1)", f"{DELTA} is usual")
        if self.epsilon is not None:
            wanted = f"a number above 0 and at most {MOST:g}"
            check_scalar("epsilon", self.epsilon, lambda epsilon: 0 < epsilon <= MOST, wanted, "1 to 8 is usual")
        if self.epsilon is not None and self.noise is not None:
            raise ValueError("expected one of epsilon and noise, for each follows from the other; leave one out")
        if not self.private:
            return
        why = {
            "standardize": (self.standardize, "mean and deviation would be computed from private data (see bounds)"),
            "missing": (self.missing, "the means would be computed from private data"),
            "weights": (self.weights is not None, "what one example adds is bounded, whatever it weighs"),
            "class_weights": (self.class_weights, "they would be counted from private data"),
            "patience": (self.patience not in (0, PATIENCE), "stopping by a figure of private data tells about them"),
            "sampling": (self.sampling != "shuffle", "every example is drawn independently, for the account"),
            "rule": (self.rule, "the account is of clipped true gradients"),
            "seeds": (self.seeds, "it trains one seed at a time"),
            "watch": (self.watch, "its figures are of private examples, without noise"),
            "log": (self.log, "figures of private examples stay in the run's folder"),
            "on_bad": (self.on_bad != "stop", "what becomes of a step would tell of the examples in it"),
        }
        for name, (given, reason) in why.items():
            if given:
                raise ValueError(f"private training cannot use {name}: {reason}; leave it out")

    def _settle_length(self) -> None:
        """How long the run is, where it is not said."""
        if self.epochs is None and self.steps is None:
            if self.is_text:
                every = self.evaluate_every or text.EVERY
                object.__setattr__(self, "steps", -(-text.STEPS // every) * every)
            else:
                object.__setattr__(self, "epochs", EPOCHS)
        if self.is_text and self.steps is not None and self.evaluate_every is None:
            every = text.EVERY if self.steps % text.EVERY == 0 else self.steps
            object.__setattr__(self, "evaluate_every", every)
        length = Length.of(self.epochs, self.steps, self.evaluate_every, EPOCHS)
        if self.warmup:
            as_count(self.warmup, "warmup", 0)
        if self.steps is not None and self.warmup >= length.epochs * (length.every or 1):
            raise ValueError(f"warmup must be fewer than the {self.steps} steps, but is {self.warmup}")

    def _check_text(self) -> None:
        """What a text is trained with, and what it is not."""
        if (self.is_text and self.task not in (None, text.TASK)) or (self.task == text.TASK and not self.is_text):
            raise ValueError(
                f"task {text.TASK} is of a text, a .txt file, and no other is, but got data {str(self.data)!r} and "
                f"task {self.task!r}"
            )
        if self.clip_gradient is not None:
            wanted = "a finite number above 0"
            check_scalar("clip_gradient", self.clip_gradient, lambda c: 0 < c < math.inf, wanted, "1 is usual")
        if self.context is not None:
            as_count(self.context, "context")
        if not self.is_text:
            if self.context is not None:
                raise ValueError("context is of a text, data in a .txt file: leave it out")
            return
        if self.net == TrainOptions.net:
            object.__setattr__(self, "net", text.NET)
        if self.steps is not None and self.sampling == "shuffle":
            object.__setattr__(self, "sampling", "replacement")
        names = ("target", "missing", "categorical", "delimiter", "decimal", "standardize", "bounds", "weights",
                 "class_weights", "augment", "output_activation", "init")  # fmt: skip
        given = [name for name in names if getattr(self, name)]
        if given:
            raise ValueError(f"{given[0]} does not go with a text, data in a .txt file: leave it out")
        if self.loss not in (None, "softmax_cross_entropy"):
            raise ValueError(f"the loss of a text is softmax_cross_entropy, but got {self.loss!r}: leave it out")
        if self.private and self.steps is not None:
            raise ValueError(
                "private training of a text needs windows that do not overlap: give epochs, which go through those"
            )

    @property
    def is_text(self) -> bool:
        """Whether the data are a text."""
        return text.is_text(self.data)

    @property
    def place(self) -> hosts.Place | None:
        """Which of several processes this is; None of one.

        Raises: ValueError if it is not told rightly, or something is asked for that one process does.
        """
        found = hosts.place_of(self.coordinator, self.processes, self.process)
        alone = {"seeds": self.seeds is not None, "on_bad restore": self.on_bad == "restore", "watch": self.watch}
        for name, asked in alone.items():
            if found is not None and asked:
                raise ValueError(
                    f"{name} is for one process, but there are {found.processes or 'several'}: leave it out, or say "
                    "processes 1"
                )
        return found

    @property
    def reading(self) -> dict[str, Any]:
        """What `load_dataset` is told of how a table is read."""
        names = next(csv.reader([self.categorical or ""]), [])
        return {
            "missing": self.missing, "categorical": tuple(name.strip() for name in names), "delimiter": self.delimiter,
            "decimal": self.decimal,
        }  # fmt: skip

    @property
    def axes(self) -> dict[str, int]:
        """How many devices each axis of `mesh` has; {} without one."""
        return {} if self.mesh is None else read_mesh(self.mesh)

    @property
    def augmentation(self) -> Augment | None:
        """What `augment` says is done to images in training."""
        if self.augment is None:
            return None
        found: dict[str, Any] = {}
        for word in self.augment.split(","):
            name, colon, number = word.strip().partition(":")
            wanted = f"shift:PIXELS and flip, with a comma between, but is {self.augment!r}"
            if name not in ("shift", "flip") or name in found:
                twice = f": {name} stands in it twice" if name in found else did_you_mean(name, ("shift", "flip"))
                raise ValueError(f"augment must be of {wanted}{twice}")
            if not (number.isdecimal() if name == "shift" else not colon):
                form = "shift takes a number of pixels, as in shift:2" if name == "shift" else "flip takes no number"
                raise ValueError(f"augment must be of {wanted}: {form}")
            found[name] = int(number) if name == "shift" else True
        with about("augment"):
            return Augment(**found)

    @property
    def seed_range(self) -> range:
        """The seeds of the runs: A to B − 1 of `seeds`, or `seed` alone."""
        if self.seeds is None:
            return range(self.seed or 0, (self.seed or 0) + 1)
        first, colon, last = self.seeds.partition(":")
        if not (colon and first.strip().isdecimal() and last.strip().isdecimal()):
            raise ValueError(f"seeds must be two whole numbers A:B, such as 0:10, but is {self.seeds!r}")
        found = range(int(first), int(last))
        if len(found) < 2 or found[-1] >= 2**32:
            raise ValueError(
                f"seeds must be A:B with at least two seeds from A to B − 1, all below 2**32, but is {self.seeds!r}; "
                "one alone is given with seed"
            )
        if len(found) > MOST_SEEDS:
            raise ValueError(f"seeds must be at most {MOST_SEEDS} runs at once, but {self.seeds!r} are {len(found)}")
        return found

    @property
    def config(self) -> dict[str, Any]:
        """The options that make the run what it is, with data and a net's file as absolute paths."""
        options = dataclasses.asdict(self)
        is_file = self.is_text or Path(self.data).suffix.lower() in (".npz", *SUFFIXES)
        is_file = is_file or (str(self.data) not in NAMES and Path(self.data).is_dir())
        options["data"] = str(Path(self.data).absolute() if is_file else self.data)
        options["bounds"] = None if self.bounds is None else str(Path(self.bounds).absolute())
        if own.is_named(self.net):
            path, name = own.parts(self.net)
            options["net"] = f"{Path(path).absolute()}:{name}"
        return {name: value for name, value in options.items() if name not in self.not_in_config}

    @classmethod
    def from_config(cls, path: str | Path, **others: Any) -> Self:
        """The options in a run's config.json (or in the run's folder); `others` override them.

        Raises: ValueError if the file or an option in it is wrong.
        """
        path = Path(path) / CONFIG if Path(path).is_dir() else Path(path)
        options = read_json(path)
        options.pop("jbp", None)
        if SAVED in options:
            raise ValueError(f"{path}: expected the options of a run of jbp train, found one of {options[SAVED]}, "
                             "which does not say how it was trained")  # fmt: skip
        if "net" not in others and own.is_named(str(options.get("net"))):
            raise ValueError(f"{path}: the net is in a file, {options['net']}, which is only run when you name it "
                             "yourself: give it once more as net")  # fmt: skip
        known = [f.name for f in dataclasses.fields(cls) if f.name not in cls.not_in_config]
        for name in options:
            if name not in known:
                raise ValueError(f"{path}: unknown option {name!r}{did_you_mean(name, known) or '; remove it'}")
        if {"seed", "seeds"} & others.keys():  # the one given takes the place of either
            options = {name: value for name, value in options.items() if name not in ("seed", "seeds")}
        with about(path):
            stored = cls(**options)
        return dataclasses.replace(stored, **others)

    @classmethod
    def of_run(cls, resume: str | Path, **given: Any) -> Self:
        """The options with which a run goes on: its own. `given` may be those of saving and of what is printed, and
        others as they were.

        Raises: ValueError if the folder is no run, or was begun with other options.
        """
        folder, config, _ = runs.read(resume)
        free = {name: given.pop(name) for name in (*_HOW_IT_GOES, *cls.not_in_config) if name in given}
        stored = cls.from_config(folder, **{name: value for name, value in given.items() if name == "net"})
        wanted = dataclasses.replace(stored, **given).config
        for name, was in stored.config.items():
            if wanted[name] != was or (name == "net" and was != config.get("net", was)):
                raise ValueError(
                    f"{folder}: was begun with {name} {config.get(name, was)!r}, and cannot go on with "
                    f"{wanted[name]!r}: leave {name} out, or begin a new run"
                )
        return dataclasses.replace(stored, resume=folder, **free)
