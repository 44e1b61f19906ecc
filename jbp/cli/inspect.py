# ruff: noqa: RUF009 (option and argument declare fields)
"""`jbp inspect`: the δ page of a run, or of a net in one line, as one HTML file that opens from the disk."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jbp.arguments import as_count, check_new, check_scalar
from jbp.checkpoint import load_run, params_dtype
from jbp.cli.options import LOSSES, OPTIMIZERS, TrainOptions
from jbp.cli.parser import Command, argument, layers_option, option
from jbp.cli.trace import Trace
from jbp.cli.training import Plan, make_plan
from jbp.files import write_atomically
from jbp.inspect import Update, page, scene
from jbp.inspect.scene import errors_of, refuse_large
from jbp.texts import SAVED

_RUN, _NET, _BATCH, _OUT = "example of a run", "a net without a run", "batch and step", "output"
_SUBJECT = ("net", "outputs", "output_activation", "loss", "shape", "x", "y", "params", "seed")


@dataclass(frozen=True)
class Inspect(Command):
    """Write the δ page; calling it gives the path of the file."""

    run: str | Path | None = argument("folder of a run, as jbp train left it", "RUN", default=None)

    example: int | None = option(None, "which example of the test part, counted from 0", _RUN, metavar="I",
                                 shown="the one that the run gets most wrong")  # fmt: skip
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
    params: str | Path | None = option(None, "its parameters, as in jbp trace", _NET, metavar="FILE",
                                       shown="drawn at random")  # fmt: skip
    seed: int = option(0, "of parameters, x and y where they are drawn", _NET, metavar="N")

    batch: int | None = option(None, "examples on the page: this one, and others of the test part, or drawn", _BATCH,
                               metavar="N", shown="16 of a run, 1 of a net")  # fmt: skip
    clip: float | None = option(None, "C of the clipping that the page begins with", _BATCH, metavar="X",
                                shown="the median of the norms")  # fmt: skip
    learning_rate: float | None = option(None, "η of the step", _BATCH, metavar="X", shown="the run's, or 0.1")
    momentum: float | None = option(None, "β of v ← β·v + ∂e/∂w", _BATCH, metavar="X", shown="the run's, or 0")

    out: str | Path | None = option(None, "file to write; nothing is opened", _OUT, metavar="FILE",
                                    shown="a new one, which a browser opens")  # fmt: skip
    overwrite: bool = option(False, "replace FILE", _OUT)

    summary: ClassVar[str] = "see backpropagation: a page with every h, every δ and every gradient"
    epilog: ClassVar[str] = """The page is one file. It opens from the disk, without a network.

examples:
  jbp inspect --net "2 tanh" --x 0.5,-1 --y 1
  jbp inspect --net "2 tanh" --x 0.5,-1 --y 1 --params weights.json --out lesson.html
  jbp inspect runs/digits-2026-11-23-1                (the test example that it gets most wrong)
  jbp inspect runs/digits-2026-11-23-1 --example 3 --batch 32
"""

    def __call__(self) -> Path:
        """Write the page, and open it where there is a browser and no --out.

        Raises: ValueError for what is wrong with the run, the net, the numbers or the file.
        """
        if (self.run is None) == (self.net is None):
            found = "neither" if self.run is None else "both"
            raise ValueError(f"expected the folder of a run or --net with hidden layers, got {found}")
        for name in ("clip", "learning_rate"):
            self._positive(name, getattr(self, name), name == "clip")
        if self.momentum is not None:
            self._share(self.momentum)
        if self.batch is not None:
            as_count(self.batch, "batch")
        out = None if self.out is None else Path(self.out)
        if out is not None:
            if out.is_dir():
                raise ValueError(f"{out}: expected a file to write, found a folder; name a file in it")
            check_new(out, self.overwrite)
        text = page([self._of_run() if self.run is not None else self._of_net()])
        return self._write(text.encode(), out)

    def _write(self, text: bytes, out: Path | None) -> Path:
        """The file, and what is said of it."""
        if out is not None:
            write_atomically(out, text)
            print(out)
            return out
        handle, name = tempfile.mkstemp(prefix="jbp-inspect-", suffix=".html")
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        print(name)
        if not shown_in_browser(Path(name)):
            print("no browser was found here: open the file in one", file=sys.stderr)
        return Path(name)

    def _of_net(self) -> dict[str, Any]:
        """The scene of a net in one line: the example that was given, and others drawn at random."""
        if self.example is not None:
            raise ValueError("example is for a run; with --net give the example itself as --x and --y")
        given = {name: getattr(self, name) for name in _SUBJECT}
        net, loss, params, x, y = Trace(**given).subject(wide=True)
        xs, ys, random = [x], [y], np.random.default_rng((self.seed, 1))
        for _ in range((self.batch or 1) - 1):
            xs.append(random.normal(size=x.shape).astype(x.dtype))
            whole = y.dtype.kind in "iu"
            drawn = random.integers(self.outputs, size=y.shape) if whole else random.uniform(size=y.shape)
            ys.append(drawn.astype(y.dtype))
        rate = 0.1 if self.learning_rate is None else self.learning_rate
        update = Update(rate=rate, momentum=self.momentum or 0.0)
        rows = ["your example" if self.x is not None else "drawn", *(f"drawn {i}" for i in range(1, len(xs)))]
        return scene(net, loss, params, np.stack(xs), np.stack(ys), update=update, max_norm=self.clip, seed=self.seed,
                     title=f"{self.net} → {self.outputs}", rows=rows)  # fmt: skip

    def _of_run(self) -> dict[str, Any]:
        """The scene of a run: an example of the test part among others."""
        assert self.run is not None
        run = load_run(self.run, self.layers)
        for name in _SUBJECT:
            default = next(f.default for f in self.__dataclass_fields__.values() if f.name == name)
            if getattr(self, name) != default:
                raise ValueError(f"{name} is for a net without a run: leave it out, or give --net instead of RUN")
        if SAVED in run.config:
            raise ValueError(
                f"{run.folder}: expected a run of jbp train, but {run.config[SAVED]} wrote this one, which knows of no "
                "data: in Python, jbp.inspect.page([jbp.inspect.scene(run.net, run.loss, run.params, x, y)])"
            )
        refuse_large(sum(np.size(leaf) for leaf in _leaves(run.params)))
        plan = make_plan(TrainOptions.from_config(self.run, net=""))
        x, y = plan.data.test()
        if self.example is not None and not 0 <= self.example < len(x):
            raise ValueError(f"example must be from 0 to {len(x) - 1}, for the test part has {len(x)} examples, "
                             f"but is {self.example}")  # fmt: skip
        x, y = (np.asarray(a[np.arange(len(a))] if not isinstance(a, np.ndarray) else a) for a in (x, y))
        dtype = params_dtype(run.params)
        x, y = (a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a for a in (x, y))
        chosen, why = self.example, ""
        if chosen is None:
            errors = errors_of(run.net, plan.loss, run.params, x, y)
            chosen, why = int(np.argmax(np.where(np.isnan(errors), np.inf, errors))), ", the one it gets most wrong"
        size = min(self.batch or 16, len(x))
        others = [i for i in range(len(x)) if i != chosen][: size - 1]
        rows = [chosen, *others]
        title = f"{run.folder.name}, test example {chosen}{why}"
        return scene(run.net, plan.loss, run.params, x[rows], y[rows], update=self._update(plan), max_norm=self.clip,
                     title=title, labels=run.classes or None, rows=[f"test {i}" for i in rows])  # fmt: skip

    def _update(self, plan: Plan) -> Update:
        """The step, as the run's optimiser has it, where the options say no other."""
        options = plan.options
        kind = options.optimizer or "momentum"
        usual = OPTIMIZERS[kind]
        rate = usual.learning_rate if options.learning_rate is None else options.learning_rate
        beta = (usual.momentum if options.momentum is None else options.momentum) or 0.0
        decay = (usual.weight_decay if options.weight_decay is None else options.weight_decay) or 0.0
        if self.learning_rate is not None or self.momentum is not None:
            rate = rate if self.learning_rate is None else self.learning_rate
            return Update(
                rate, beta if self.momentum is None and kind in ("momentum", "heavy_ball") else self.momentum or 0.0
            )
        if kind in ("sgd", "momentum", "heavy_ball", "nesterov") and not decay:
            return Update(rate, beta, options.nesterov or kind == "nesterov", words=kind)
        return Update(rate, beta, optimizer=plan.optimizer, words=f"{kind}, learning rate {rate:g}")

    def _positive(self, name: str, value: float | None, strictly: bool) -> None:
        if value is not None:
            wanted = "a finite number above 0" if strictly else "a finite number ≥ 0"
            check_scalar(name, value, lambda v: (v > 0 if strictly else v >= 0) and np.isfinite(v), wanted,
                         "leave it out for the usual one")  # fmt: skip

    def _share(self, value: float) -> None:
        check_scalar("momentum", value, lambda v: 0 <= v < 1, "a number in [0, 1)", "leave it out for the usual one")


def shown_in_browser(path: Path) -> bool:
    """Whether a browser with a window could be asked to open the file; one in the terminal is not."""
    has_window = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    try:
        return has_window and webbrowser.open(path.resolve().as_uri())
    except (webbrowser.Error, OSError):
        return False


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)
