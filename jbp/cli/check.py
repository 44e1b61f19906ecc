"""`jbp check`: every derivative that jbp holds, or a layer of yours, against every oracle."""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from jbp import own
from jbp.arguments import as_seed, did_you_mean
from jbp.check import Report
from jbp.check.catalogue import Item, catalogue, of_layer
from jbp.check.compiled import hurried
from jbp.cli import console
from jbp.cli.parser import Command, Failed, argument, option
from jbp.layer import Layer

_WHAT, _OUT = "what to check", "output"
DTYPES = ("both", "float64", "float32")


@dataclass(frozen=True)
class Row:
    """The verdict on one thing in one dtype."""

    kind: str
    name: str
    dtype: str
    oracles: tuple[str, ...]
    worst: float
    """The largest error against any oracle, as a share of what is allowed."""
    detail: str
    """That error in units of eps × magnitude, and what is allowed."""
    passed: bool
    report: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Check(Command):
    """Check derivatives written by hand; calling it gives the rows, or raises `Failed` if one did not pass."""

    file: str | None = argument(
        "a layer of yours, path/to/file.py:NAME, instead of jbp's own; NAME is a layer, or a class without arguments",
        "FILE:NAME", default=None,
    )  # fmt: skip
    shape: str | None = option(None, "shape of one example for a layer of yours, such as 7,5", _WHAT, metavar="SHAPE")
    layer: str | None = option(None, "only what has this in its name: a layer, combinator, loss or optimiser", _WHAT,
                               metavar="NAME")  # fmt: skip
    dtype: str = option("both", "float64, float32 or both", _WHAT, choices=DTYPES, metavar="NAME")
    seed: int = option(0, "of parameters, inputs and δ", _WHAT, metavar="N")
    json: bool = option(False, "print every comparison as JSON", _OUT)
    markdown: bool = option(False, "print the table as Markdown", _OUT)

    summary: ClassVar[str] = "check every derivative against autodiff, differences and its laws"
    epilog: ClassVar[str] = """examples:
  jbp check                                   (all that jbp holds, in float64 and float32)
  jbp check --layer softmax
  jbp check my_layers.py:Gain --shape 7,5     (a layer of yours)
"""

    def __call__(self) -> tuple[Row, ...]:
        """Check, print the table.

        Raises: ValueError if there is nothing of that name; Failed if something did not pass.
        """
        form = console.form(self.json, self.markdown)
        as_seed(self.seed)
        names = self._names()
        dtypes = ("float64", "float32") if self.dtype == "both" else (self.dtype,)
        # Differences run in float64 whatever the dtype: once a thing is enough.
        jobs = [
            (self.file, self.shape, name, dtype, self.seed, i == 0) for name in names for i, dtype in enumerate(dtypes)
        ]
        rows: list[Row] = []
        began = time.perf_counter()
        with console.JobsLine("checking", len(jobs)) as steps:
            for row in _run(jobs):
                rows.append(row)
                steps.see(f"{row.name}, {row.dtype}")
        seconds = time.perf_counter() - began
        console.print_checks(rows, seconds, form)
        failed = [f"{row.name} in {row.dtype}" for row in rows if not row.passed]
        if failed:
            raise Failed(f"{len(failed)} of {len(rows)} checks failed: {', '.join(failed)}")
        return tuple(rows)

    def _names(self) -> list[str]:
        if self.file is not None:
            if self.layer is not None:
                raise ValueError("--layer picks among jbp's own; with FILE:NAME leave it out")
            _own(self.file, self.shape)  # what is wrong with it shows here, once
            return [self.file]
        if self.shape is not None:
            raise ValueError("--shape is for a layer of yours: give FILE:NAME, or leave it out")
        known = [item.name for item in catalogue()]
        names = [name for name in known if self.layer is None or self.layer in name]
        if not names:
            raise ValueError(f"nothing to check is called {self.layer!r}{did_you_mean(str(self.layer), known)}")
        return names


def _run(jobs: list[tuple[Any, ...]]) -> Iterator[Row]:
    """The rows in order; two at a time, because compiling, which is most of the work, runs beside Python."""
    # None of it needs an optimised program. XLA reads this when JAX starts.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    pool = concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1))
    try:
        yield from pool.map(_one, jobs)
    finally:  # after Ctrl-C nobody waits for the checks that still run
        pool.shutdown(wait=False, cancel_futures=True)


def _one(job: tuple[Any, ...]) -> Row:
    file, shape, name, dtype, seed, differences = job
    with jax.enable_x64(True):
        if file is not None:
            item = of_layer(*_own(file, shape))
            return _row(item, dtype, item.run(dtype, seed, differences))
        item = next(item for item in catalogue() if item.name == name)
        with hurried():
            return _row(item, dtype, item.run(dtype, seed, differences))


# Comparisons of a function with itself; the others are independent references.
_LAWS = ("itself", "called again", "eager", "loop", "without key", "protocol", "definition")


def _row(item: Item, dtype: str, report: Report) -> Row:
    worst, detail = -1.0, ""
    for entry in report.entries:
        share = entry.error / entry.allowed if entry.allowed else float(entry.error > 0)
        if entry.compared and not share <= worst:
            worst, detail = share, f"{entry.error:.2g} of {entry.allowed:.4g}"
    compared = dict.fromkeys(entry.oracle for entry in report.entries if entry.compared)
    oracles = (*(oracle for oracle in compared if oracle not in _LAWS), "laws")
    return Row(item.kind, item.name, dtype, oracles, worst, detail, report.passed, report.to_dict(), str(report))


def _own(file: str, shape: str | None) -> tuple[Layer, tuple[int, ...]]:
    """The user's layer and the shape to check it on.

    Raises: ValueError saying which part of FILE:NAME or the shape is wrong.
    """
    path, _, name = file.rpartition(":")
    if not path or not name.isidentifier():
        raise ValueError(f"expected path/to/file.py:NAME, got {file!r}")
    module = own.imported(path)
    if not hasattr(module, name):
        layers = [n for n, v in vars(module).items() if isinstance(v, Layer) or _is_layer_class(v)]
        raise ValueError(f"{path}: there is no {name!r} in it; its layers are {', '.join(layers) or 'none'}")
    found = getattr(module, name)
    if _is_layer_class(found):
        try:
            found = found()
        except TypeError as error:
            raise ValueError(f"{file}: the class needs arguments; name an instance of it instead ({error})") from error
    if not isinstance(found, Layer):
        raise ValueError(f"{file}: expected a layer (a subclass of jbp.Layer), found a {type(found).__name__}")
    if shape is None:
        raise ValueError("a layer of yours needs --shape, the shape of one example, such as --shape 7,5")
    try:
        return found, tuple(int(size) for size in shape.split(","))
    except ValueError:
        raise ValueError(f"--shape must be whole numbers with commas between, such as 7,5, but is {shape!r}") from None


def _is_layer_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Layer) and value is not Layer
