"""`jbp check`: every derivative that jbp holds, or a layer of yours, against every oracle."""

from __future__ import annotations

import ast
import concurrent.futures
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from jbp import own
from jbp.arguments import as_seed, did_you_mean, listed
from jbp.check import Report
from jbp.check.catalogue import Item, catalogue, of_layer
from jbp.check.compiled import forget, hurried
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

    file: tuple[str, ...] | str = argument(
        "layers of yours instead of jbp's own: path/to/file.py:NAME, where NAME is a layer, or a class or a function "
        "that makes one; with its arguments, which are numbers, texts, lists and the like: \"layers.py:Gain(5)\"",
        "FILE:NAME", default=(),
    )  # fmt: skip
    shape: str | None = option(None, "shape of one example for layers of yours, such as 7,5", _WHAT, metavar="SHAPE")
    layer: str | None = option(None, "only what has this in its name: a layer, combinator, loss or optimiser", _WHAT,
                               metavar="NAME")  # fmt: skip
    dtype: str = option("both", "float64, float32 or both", _WHAT, choices=DTYPES, metavar="NAME")
    seed: int = option(0, "of parameters, inputs and δ", _WHAT, metavar="N")
    full: bool = option(False, "a line for every thing and, of your layers, for every comparison", _OUT)
    json: bool = option(False, "print every comparison as JSON", _OUT)
    markdown: bool = option(False, "print the table as Markdown", _OUT)

    summary: ClassVar[str] = "check every derivative against autodiff, differences and its laws"
    epilog: ClassVar[str] = """examples:
  jbp check                                   (all that jbp holds, in float64 and float32)
  jbp check --layer softmax
  jbp check my_layers.py:Gain --shape 7,5     (a layer of yours)
  jbp check "my_layers.py:Gain(5)" my_layers.py:Norm --shape 7,5
"""

    def __call__(self) -> tuple[Row, ...]:
        """Check, print the table.

        Raises: ValueError if there is nothing of that name; Failed if something did not pass.
        """
        form = console.form(self.json, self.markdown)
        as_seed(self.seed)
        dtypes = ("float64", "float32") if self.dtype == "both" else (self.dtype,)
        # Differences run in float64 whatever the dtype: once a thing is enough.
        jobs = [_Job(item, dtype, self.seed, i == 0, bool(self.file), self.full)
                for item in self._items() for i, dtype in enumerate(dtypes)]  # fmt: skip
        rows: list[Row] = []
        began = time.perf_counter()
        with console.JobsLine("checking", len(jobs)) as steps:
            for row in _run(jobs):
                rows.append(row)
                steps.see(f"{row.name}, {row.dtype}")
        seconds = time.perf_counter() - began
        console.print_checks(rows, seconds, form, self.full, bool(self.file))
        failed = [f"{row.name} in {row.dtype}" for row in rows if not row.passed]
        if failed:
            raise Failed(f"{len(failed)} of {len(rows)} checks failed: {', '.join(failed)}")
        return tuple(rows)

    def _items(self) -> list[Item]:
        if self.file:
            if self.layer is not None:
                raise ValueError("--layer picks among jbp's own; with FILE:NAME leave it out")
            files = (self.file,) if isinstance(self.file, str) else self.file
            return [of_layer(_own(file), _shape(self.shape)) for file in files]
        if self.shape is not None:
            raise ValueError("--shape is for a layer of yours: give FILE:NAME, or leave it out")
        items = [item for item in catalogue() if self.layer is None or self.layer in item.name]
        if not items:
            known = [item.name for item in catalogue()]
            raise ValueError(f"nothing to check is called {self.layer!r}{did_you_mean(str(self.layer), known)}")
        return items


@dataclass(frozen=True)
class _Job:
    item: Item
    dtype: str
    seed: int
    differences: bool
    is_own: bool
    """Whether it is the user's."""
    full: bool


def _run(jobs: list[_Job]) -> Iterator[Row]:
    """The rows in order; jbp's own two at a time, because compiling, which is most of the work, runs beside Python."""
    # None of it needs an optimised program. XLA reads this when JAX starts.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    pool = concurrent.futures.ThreadPoolExecutor(1 if jobs[0].is_own else min(2, os.cpu_count() or 1))
    try:
        yield from pool.map(_one, jobs)
    finally:  # after Ctrl-C nobody waits for the checks that still run
        pool.shutdown(wait=False, cancel_futures=True)


def _one(job: _Job) -> Row:
    if job.is_own:
        # An array of numpy's in the file is float64; in float32 it is met as in training, where x64 is not enabled,
        # and JAX must have forgotten in which of both it met it before.
        forget()
        with jax.enable_x64(job.dtype == "float64"):
            return _row(job, job.item.run(job.dtype, job.seed, job.differences))
    with jax.enable_x64(True), hurried():
        return _row(job, job.item.run(job.dtype, job.seed, job.differences))


# Comparisons of a function with itself; the others are independent references.
_LAWS = ("itself", "called again", "eager", "loop", "without key", "protocol", "definition")


def _row(job: _Job, report: Report) -> Row:
    worst, detail = -1.0, ""
    for entry in report.entries:
        share = entry.error / entry.allowed if entry.allowed else float(entry.error > 0)
        if entry.compared and not share <= worst:
            worst, detail = share, f"{entry.error:.2g} of {entry.allowed:.4g}"
    compared = dict.fromkeys(entry.oracle for entry in report.entries if entry.compared)
    oracles = (*(oracle for oracle in compared if oracle not in _LAWS), "laws")
    return Row(job.item.kind, job.item.name, job.dtype, oracles, worst, detail, report.passed, report.to_dict(),
               report.text(job.full))  # fmt: skip


def _own(text: str) -> Layer:
    """The user's layer that FILE:NAME names, or FILE:NAME(ARGUMENTS) makes.

    Raises: ValueError saying which part of it is wrong.
    """
    path, call = _parts(text)
    name, args, options = _call(text, call)
    module = own.imported(path)
    if not hasattr(module, name):
        layers = [n for n, v in vars(module).items() if isinstance(v, Layer) or _is_layer_class(v)]
        raise ValueError(f"{path}: there is no {name!r} in it; its layers are {', '.join(layers) or 'none'}")
    found = getattr(module, name)
    if args is not None or (not isinstance(found, Layer) and callable(found)):
        if not callable(found):
            raise ValueError(f"{text}: {name} is a {type(found).__name__}, which takes no arguments: leave them out")
        needed = own.needed(found)
        if args is None and needed:
            raise ValueError(f'{text}: {name} needs {listed(needed)}: give them, as in "{path}:{name}(5)"')
        with own.running(path, f"{call} failed"):
            found = found(*(args or ()), **options)
    if not isinstance(found, Layer):
        raise ValueError(f"{text}: expected a layer (a subclass of jbp.Layer), found a {type(found).__name__}")
    return found


def _parts(text: str) -> tuple[str, str]:
    """File and name in FILE.py:NAME, the name with its arguments, if it has some."""
    path, ending, call = text.strip().partition(".py:")
    if not ending:
        path, _, call = text.strip().rpartition(":")
    if not path or not call:
        raise ValueError(f"expected path/to/file.py:NAME or path/to/file.py:NAME(ARGUMENTS), got {text!r}")
    return path + ending.rstrip(":"), call


def _call(text: str, call: str) -> tuple[str, list[Any] | None, dict[str, Any]]:
    """The name, its arguments (None without brackets) and its arguments by name. Literals only: nothing is run."""
    advice = f"{text}: expected a name, or a name with numbers, texts, lists and the like in brackets, such as Gain(5)"
    try:
        node = ast.parse(call, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, None, {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        options = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg is not None}
        if len(options) != len(node.keywords):
            raise ValueError
        return node.func.id, [ast.literal_eval(arg) for arg in node.args], options
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(advice) from None


def _shape(text: str | None) -> tuple[int, ...]:
    if text is None:
        raise ValueError("a layer of yours needs --shape, the shape of one example, such as --shape 7,5")
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise ValueError(f"--shape must be whole numbers with commas between, such as 7,5, but is {text!r}") from None


def _is_layer_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Layer) and value is not Layer
