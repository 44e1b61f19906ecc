# ruff: noqa: RUF009 (option and argument declare fields)
"""`jbp trace`: the numbers of one example, step by step, each with its formula."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jbp import losses, tracing
from jbp.arguments import as_count, as_seed
from jbp.checkpoint import Run, load_run, params_dtype
from jbp.cli import console, netspec, written
from jbp.cli.options import LOSSES, TrainOptions
from jbp.cli.parser import Command, argument, layers_option, option
from jbp.cli.text import NET
from jbp.cli.training import make_plan, output_activation
from jbp.texts import SAVED

_OF_CLASSES = ("softmax_cross_entropy", "cross_entropy")
_RUN, _NET, _STEP, _OUT = "example of a run", "a net without a run", "the step that follows", "output"


@dataclass(frozen=True)
class Trace(Command):
    """Trace one example through a net; calling it gives the `jbp.Trace`."""

    run: str | Path | None = argument("folder of a run, as jbp train left it", "RUN", default=None)

    example: int = option(0, "which example of the test part, counted from 0", _RUN, metavar="I")
    layers: str | Path | None = layers_option(_RUN)

    net: str | None = option(None, 'hidden layers, as in jbp train, such as "2 tanh"', _NET, metavar="LAYERS")
    outputs: int = option(1, "width of the output layer", _NET, metavar="N")
    output_activation: str | None = option(None, "activation of the output layer", _NET, metavar="NAME", shown="none")
    loss: str = option("squared_error", ", ".join(LOSSES), _NET, choices=LOSSES, metavar="NAME")
    shape: str | None = option(None, "shape of the example, such as 2 or 3,5", _NET, metavar="SHAPE",
                               shown="as many as x has, or 2")  # fmt: skip
    x: str | None = option(None, "the example, such as 0.5,-1; one that begins with a minus is given as --x=-1,2", _NET,
                           metavar="NUMBERS", shown="drawn at random")  # fmt: skip
    y: str | None = option(None, "its target: as many numbers as outputs, or the number of a class", _NET,
                           metavar="NUMBERS", shown="drawn at random")  # fmt: skip
    params: str | Path | None = option(
        None, 'its parameters: JSON such as {"1.weight": [[1, 2], [3, 4]], "1.bias": [0, 0]}, or lines of text such as '
        "1.weight,1,2, a line for each row; layers count from 1; or a .safetensors file", _NET, metavar="FILE",
        shown="drawn at random")  # fmt: skip
    seed: int = option(0, "of parameters, x and y where they are drawn", _NET, metavar="N")

    learning_rate: float | None = option(None, "η: show the parameters after w ← w − η·∂e/∂w too", _STEP, metavar="X")
    momentum: float = option(0.0, "β of v ← β·v + ∂e/∂w, w ← w − η·v, from v = 0", _STEP, metavar="X")

    full: bool = option(False, "every number of large arrays", _OUT)
    json: bool = option(False, "print every number in full as JSON", _OUT)
    markdown: bool = option(False, "print the tables as Markdown", _OUT)

    summary: ClassVar[str] = "show one example's numbers forward, back and in the gradients"
    epilog: ClassVar[str] = """examples:
  jbp trace --net "2 tanh" --x 0.5,-1 --y 1         (a 2-2-1 net, to check by hand)
  jbp trace --net "2 tanh" --x 0.5,-1 --y 1 --params weights.json --learning-rate 0.1
  jbp trace runs/digits-2026-11-23-1 --example 3
  jbp trace --net "3 relu" --outputs 4 --loss softmax_cross_entropy --y 2 --markdown
"""

    def __call__(self) -> tracing.Trace:
        """Print the trace.

        Raises: ValueError for what is wrong with the run, the net or the numbers.
        """
        form = console.form(self.json, self.markdown)
        if (self.run is None) == (self.net is None):
            found = "neither" if self.run is None else "both"
            raise ValueError(f"expected the folder of a run or --net with hidden layers, got {found}")
        subject = self.subject()
        found = tracing.trace(*subject, learning_rate=self.learning_rate, momentum=self.momentum)
        console.print_trace(found, form, self.full)
        return found

    def subject(self, wide: bool = False) -> tuple[Any, ...]:
        """Net, loss, parameters, example and target: of the run, or of the options, `wide` with the digits that were
        written, and not rounded to float32.

        Raises: ValueError as the call.
        """
        return self._of_run() if self.run is not None else self._of_net(wide)

    def _of_run(self) -> tuple[Any, ...]:
        """Net, loss, parameters, example and target of a run."""
        assert self.run is not None
        run = load_run(self.run, self.layers)
        without_data = SAVED in run.config
        for f in dataclasses.fields(self):
            may = without_data and f.name in ("x", "y", "seed")
            if f.metadata["group"] == _NET and getattr(self, f.name) != f.default and not may:
                raise ValueError(f"{f.name} is for a net without a run: leave it out, or give --net instead of RUN")
        if without_data:
            return self._of_saved(run)
        # The net is the run's own; that of its options may be in a file, which nobody has named here.
        plan = make_plan(TrainOptions.from_config(self.run, net="" if run.vocabulary is None else NET))
        x, y = plan.data.test()
        if not 0 <= self.example < len(x):
            raise ValueError(f"example must be from 0 to {len(x) - 1}, for the test part has {len(x)} examples, "
                             f"but is {self.example}")  # fmt: skip
        dtype, one = params_dtype(run.params), (x[self.example], y[self.example])
        x_one, y_one = (a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a for a in one)
        return run.net, plan.loss, run.params, x_one, y_one

    def _of_saved(self, run: Run) -> tuple[Any, ...]:
        """The same of a run of `jbp.save`, which knows of no data: the example is given, in their units, or drawn."""
        if run.input_dtype is not None:
            raise ValueError(
                f"{run.folder}: its net reads whole numbers, and {run.config[SAVED]} wrote it, which knows of no data: "
                "trace an example of your own with jbp.trace(net, loss, params, x, y)"
            )
        if self.example:
            raise ValueError(
                f"{run.folder}: example is for a run of jbp train, but {run.config[SAVED]} wrote this one, which knows "
                "of no data: give the example itself as --x and --y"
            )
        random, dtype = np.random.default_rng(self.seed), params_dtype(run.params)
        x = _example(self.x, run.input_shape, random)
        y = _target(self.y, len(run.classes) or len(run.targets), repr(run.loss), random, dtype)
        if self.x is not None:
            x = run.preprocessing(x[None])[0]
        if self.y is not None and run.y_scale is not None:
            y = run.y_scale(y[None])[0]
        return run.net, run.loss, run.params, *(a if a.dtype.kind == "i" else a.astype(dtype) for a in (x, y))

    def _of_net(self, wide: bool) -> tuple[Any, ...]:
        """Net, loss, parameters, example and target of the options."""
        assert self.net is not None
        if self.example:
            raise ValueError("example is for a run; with --net give the example itself as --x and --y")
        as_count(self.outputs, "outputs")
        dtype = np.dtype(float) if wide else jax.dtypes.canonicalize_dtype(float)
        random = np.random.default_rng(as_seed(self.seed))
        given = None if self.x is None else _numbers("x", self.x)
        shape = _shape(self.shape) if self.shape is not None else (2,) if given is None else (len(given),)
        x = _example(self.x, shape, random).astype(dtype)
        net = netspec.build(self.net, shape, self.outputs, output_activation(self.output_activation, self.loss))
        params, _ = net.init(jax.random.key(self.seed), shape)
        if wide:
            params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)
        params = params if self.params is None else written.params(self.params, params)
        y = _target(self.y, self.outputs, self.loss, random, dtype)
        return net, getattr(losses, self.loss), params, x, y


def _example(text: str | None, shape: tuple[int, ...], random: Any) -> np.ndarray:
    """The numbers of a text, or random ones, in the shape of an example."""
    given = None if text is None else _numbers("x", text)
    if given is not None and len(given) != np.prod(shape):
        raise ValueError(f"x must be {np.prod(shape)} numbers for an example of shape {shape}, but is {text!r}")
    return random.normal(size=shape) if given is None else np.array(given).reshape(shape)


def _target(text: str | None, outputs: int, loss: str, random: Any, dtype: Any) -> np.ndarray:
    """The target in a text, or a random one, in the form of the loss's targets; a loss of the user's own takes both."""
    given = None if text is None else _numbers("y", text)
    is_label = loss in _OF_CLASSES and (given is None or len(given) < outputs)
    if is_label or (loss not in LOSSES and given is not None and len(given) == 1 < outputs):
        label = int(random.integers(outputs)) if given is None else given[0]
        if given is not None and (len(given) > 1 or label not in range(outputs)):
            raise ValueError(f"y must be a class from 0 to {outputs - 1}, or a number for each, but is {text!r}")
        return np.asarray(int(label), np.int32)
    if given is not None and len(given) != outputs:
        raise ValueError(f"y must be {outputs} numbers, one for each output, but is {text!r}")
    return np.asarray(random.uniform(size=outputs) if given is None else given, dtype)


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be finite numbers with commas between them, such as 0.5,-1, but is {text!r}")
    return numbers


def _shape(text: str) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"shape must be whole numbers of at least 1, such as 2 or 3,5, but is {text!r}")
    return tuple(map(int, words))
