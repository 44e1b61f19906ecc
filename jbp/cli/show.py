# ruff: noqa: RUF009 (option and argument declare fields)
"""`jbp show`: the result of a run, where it was wrong, and its network layer by layer."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax

from jbp import runs
from jbp.backprop import apply
from jbp.checkpoint import PARAMS, MissingLayers, Run, count, load_run, params_dtype
from jbp.cli import console
from jbp.cli.parser import Command, argument, layers_option
from jbp.combine import Serial


@dataclass(frozen=True)
class Show(Command):
    """Print a run; calling it gives the run's summary."""

    run: str | Path = argument("folder of a run, as jbp train left it", "RUN")
    layers: str | Path | None = layers_option()

    summary: ClassVar[str] = "show a run's result, its confusion matrix or R², and its network"
    epilog: ClassVar[str] = "example:\n  jbp show runs/digits-2026-11-23-1\n"

    def __call__(self) -> dict[str, Any]:
        """Print result, confusion matrix (classification) and layers; no data is read.

        Raises: ValueError if the folder is no run, or one of its files is damaged.
        """
        folder, _, summary = runs.read(self.run)
        try:
            self._print(folder, summary)
        except (KeyError, TypeError, AttributeError) as error:  # written by hand, or by another version
            raise ValueError(
                f"{folder / runs.SUMMARY}: expected the summary of a run, found one that cannot be read ({error!r}); "
                "train again"
            ) from error
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
        if (folder / PARAMS).exists():
            try:
                console.print_layers(layer_table(load_run(folder, self.layers)))
            except MissingLayers as error:
                if self.layers is not None:
                    raise
                print(f"the layers are not shown: {error}", file=sys.stderr)


def layer_table(run: Run) -> list[tuple[str, tuple[int, ...], int]]:
    """Of each layer: its name, the shape of one example's output, and how many parameters it has."""
    layers, params = (run.net.layers, run.params) if isinstance(run.net, Serial) else ((run.net,), (run.params,))
    x, rows = jax.ShapeDtypeStruct((1, *run.input_shape), params_dtype(run.params)), []
    for layer, own in zip(layers, params, strict=True):
        x = jax.eval_shape(lambda p, x, layer=layer: apply(layer, p, x), own, x)
        rows.append((repr(layer), x.shape[1:], count(own)))
    return rows
