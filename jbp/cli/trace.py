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
from jbp.checkpoint import CONFIG, PARAMS, load_run, params_dtype, read_json
from jbp.cli import console, netspec
from jbp.cli.options import LOSSES, TrainOptions
from jbp.cli.parser import Command, argument, option
from jbp.cli.training import make_plan, output_activation

_OF_CLASSES = ("softmax_cross_entropy", "cross_entropy")
_RUN, _NET, _OUT = "example of a run", "a net without a run", "output"


@dataclass(frozen=True)
class Trace(Command):
    """Trace one example through a net; calling it gives the `jbp.Trace`."""

    run: str | Path | None = argument("folder of a run, as jbp train left it", "RUN", default=None)

    example: int = option(0, "which example of the test part, counted from 0", _RUN, metavar="I")

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
    seed: int = option(0, "of parameters, and of x and y where they are drawn", _NET, metavar="N")

    json: bool = option(False, "print every number in full as JSON", _OUT)
    markdown: bool = option(False, "print the tables as Markdown", _OUT)

    summary: ClassVar[str] = "show one example's numbers forward, back and in the gradients"
    epilog: ClassVar[str] = """examples:
  jbp trace --net "2 tanh" --x 0.5,-1 --y 1         (a 2-2-1 net, to check by hand)
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
        found = tracing.trace(*(self._of_run() if self.run is not None else self._of_net()))
        console.print_trace(found, form)
        return found

    def _of_run(self) -> tuple[Any, ...]:
        """Net, parameters, example, target and loss of a run."""
        assert self.run is not None
        for f in dataclasses.fields(self):
            if f.metadata["group"] == _NET and getattr(self, f.name) != f.default:
                raise ValueError(f"{f.name} is for a net without a run: leave it out, or give --net instead of RUN")
        self._of_one_seed(self.run)
        run = load_run(self.run)
        plan = make_plan(TrainOptions.from_config(self.run))
        x, y = plan.data.test()
        if not 0 <= self.example < len(x):
            raise ValueError(f"example must be from 0 to {len(x) - 1}, for the test part has {len(x)} examples, "
                             f"but is {self.example}")  # fmt: skip
        dtype, one = params_dtype(run.params), (x[self.example], y[self.example])
        x_one, y_one = (a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a for a in one)
        return run.net, run.params, x_one, y_one, plan.loss

    def _of_one_seed(self, run: str | Path) -> None:
        """Raise if `jbp train --seeds` left this run: what it trained is not kept."""
        folder = Path(run)
        if not (folder / CONFIG).is_file() or (folder / PARAMS).exists():
            return
        seeds = read_json(folder / CONFIG).get("seeds")
        if seeds is not None:
            raise ValueError(
                f"{folder}: expected a run of one seed, found one of the seeds {seeds}: a run of many seeds keeps no "
                "parameters; train one with --seed"
            )

    def _of_net(self) -> tuple[Any, ...]:
        """Net, parameters, example, target and loss of the options."""
        assert self.net is not None
        if self.example:
            raise ValueError("example is for a run; with --net give the example itself as --x and --y")
        if self.outputs < 1 or self.seed < 0:
            raise ValueError(f"outputs must be at least 1 and seed at least 0, but are {self.outputs} and {self.seed}")
        dtype, random = jax.dtypes.canonicalize_dtype(float), np.random.default_rng(self.seed)
        given = None if self.x is None else _numbers("x", self.x)
        shape = _shape(self.shape) if self.shape is not None else (2,) if given is None else (len(given),)
        if given is not None and len(given) != np.prod(shape):
            raise ValueError(f"x must be {np.prod(shape)} numbers for an example of shape {shape}, but is {self.x!r}")
        x = (random.normal(size=shape) if given is None else np.array(given).reshape(shape)).astype(dtype)
        net = netspec.build(self.net, shape, self.outputs, output_activation(self.output_activation, self.loss))
        params, _ = net.init(jax.random.key(self.seed), shape)
        return net, params, x, self._target(random, dtype), getattr(losses, self.loss)

    def _target(self, random: Any, dtype: Any) -> Any:
        given = None if self.y is None else _numbers("y", self.y)
        if self.loss in _OF_CLASSES and (given is None or len(given) < self.outputs):
            label = int(random.integers(self.outputs)) if given is None else given[0]
            if given is not None and (len(given) > 1 or label not in range(self.outputs)):
                raise ValueError(f"y must be a class from 0 to {self.outputs - 1}, or a number for each, "
                                 f"but is {self.y!r}")  # fmt: skip
            return np.asarray(int(label), np.int32)
        if given is not None and len(given) != self.outputs:
            raise ValueError(f"y must be {self.outputs} numbers, one for each output, but is {self.y!r}")
        if given is None:
            given = random.uniform(size=self.outputs)
        return np.asarray(given, dtype)


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
