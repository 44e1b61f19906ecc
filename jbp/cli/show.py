# ruff: noqa: RUF009 (option and argument declare fields)
"""`jbp show`: the result of a run, where it was wrong, and its network layer by layer."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jbp import runs
from jbp.backprop import backward, forward
from jbp.checkpoint import MissingLayers, Run, count, damaged, in_words, params_dtype, run_with
from jbp.cli import console
from jbp.cli.curves import draw_watched
from jbp.cli.parser import Command, argument, layers_option
from jbp.combine import Combinator, Repeat, Serial
from jbp.layer import Layer, Shape
from jbp.pairs import Sum, is_pair
from jbp.texts import CONFIG, METRICS, PARAMS, SUMMARY, read_config, read_summary, seals_of


@dataclass(frozen=True)
class Show(Command):
    """Print a run; calling it gives the run's summary."""

    run: str | Path = argument("folder of a run, as jbp train left it", "RUN")
    layers: str | Path | None = layers_option()

    summary: ClassVar[str] = "show a run's result, its confusion matrix or R², and its network"
    epilog: ClassVar[str] = "example:\n  jbp show runs/digits-2026-11-23-1\n"

    def __call__(self) -> dict[str, Any]:
        """Print result, confusion matrix (classification) and layers, and draw what was watched; no data is read.

        Raises: ValueError if the folder is no run, or files of it are damaged, once what is whole is printed.
        """
        folder = runs.folder_of(self.run)
        broken = damaged(folder)
        summary = {} if SUMMARY in broken else read_summary(folder)
        if CONFIG not in broken:
            read_config(folder, {} if SUMMARY in broken else seals_of(folder))  # warns of one that was edited
        if SUMMARY not in broken:
            self._print(folder, summary)
        if METRICS not in broken and "spread" not in summary:
            _draw_watched(folder)
        if PARAMS not in broken and (folder / PARAMS).exists() and "spread" not in summary:
            self._print_layers(folder, broken)
        if broken:
            raise in_words(folder, broken)
        return summary

    def _print(self, folder: Path, summary: dict[str, Any]) -> None:
        if "spread" in summary:
            console.print_spread(folder, summary)
            return
        console.print_result(folder, summary)
        if "confusion" in summary:
            console.print_confusion(
                summary["confusion"], summary["classes"], "test" if "test_loss" in summary else "train"
            )

    def _print_layers(self, folder: Path, broken: dict[str, ValueError]) -> None:
        try:
            console.print_layers(layer_rows(run_with(folder, {}, self.layers)))
        except MissingLayers as error:
            if self.layers is not None:
                raise
            if not broken:  # an error is one line
                print(f"the layers are not shown: {error}", file=sys.stderr)


def _draw_watched(folder: Path) -> None:
    """Draw what was seen of a run that was watched, and say where."""
    _, watched = runs.metrics(folder)
    if not watched:
        return
    try:
        print(draw_watched(folder / runs.WATCHED, watched) or f"watched: {folder / runs.WATCHED}")
    except OSError as error:
        print(f"what was watched is not drawn: {error}", file=sys.stderr)


class LayerRow(NamedTuple):
    """A line of the table: a layer, or a net of layers, whose figures stand at the layers inside."""

    path: tuple[int, ...]
    depth: int
    name: str
    shape: Shape
    """Of one example's output."""
    parameters: int | None
    multiply_adds: int | None
    """Of one example on the way forward."""


def layer_rows(run: Run) -> list[LayerRow]:
    """Every layer of the net in order, and the nets of layers that it is made of; nothing is computed.

    A weight is multiplied once with every number that it carries forward, as often as its pair says that it is used:
    the sum over those whose pair transports δ, T·i·o of a dense layer, T·K·i/g·o of a kernel at T sites, padding
    included. Under `repeat` the figures are of all repetitions, under `tied` of every use.
    """
    rows: dict[Any, LayerRow] = {}

    def inside(path: tuple[int, ...], depth: int, times: int) -> Any:
        def visit(place: tuple[int, ...], layer: Layer, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
            here, at = path + place, depth
            if not isinstance(layer, Combinator):
                y, saved = forward(layer, params, x)
                found = backward(layer, params, saved, jnp.zeros_like(y))[1]
                figures = count(_own(run.params, here)), times * _multiply_adds(found)
                rows[here, at, repr(layer)] = LayerRow(here, at, repr(layer), y.shape[1:], *figures)
                return y, saved
            n = layer.n if isinstance(layer, Repeat) else 1
            if not isinstance(layer, Serial) or place:  # what residual and its like hold is of their line
                name = type(layer).__name__.lower() + (f", {n} times" if isinstance(layer, Repeat) else "")
                line = here, at, name
                rows[line] = LayerRow(*line, (), None, None)
                at += 1
                y, saved = layer.walk_forward(inside(here, at, times * n), params, x, key)
                rows[line] = rows[line]._replace(shape=y.shape[1:])
                return y, saved
            return layer.walk_forward(inside(here, at, times), params, x, key)

        return visit

    x = jax.ShapeDtypeStruct((1, *run.input_shape), run.input_dtype or params_dtype(run.params))
    jax.eval_shape(lambda p, x: inside((), 0, 1)((), run.net, p, x, None)[0], run.params, x)
    return list(rows.values())


def _own(params: Any, path: tuple[int, ...]) -> Any:
    """The parameters that a layer holds itself; () in the place of those it borrows."""
    for step in path:
        params = params[step]
    return params


def _multiply_adds(pairs: Any) -> int:
    members = []
    for pair in jax.tree.leaves(pairs, is_leaf=is_pair):
        members += pair.pairs if isinstance(pair, Sum) else (pair,)
    return sum(pair.uses * math.prod(pair.total().shape) for pair in members if pair.transports)
