"""A trace: its rows, as text, Markdown and plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jbp import paths

Step = Literal["forward", "loss", "backward", "gradient"]
TITLES: dict[str, str] = {
    "forward": "step 1  forward",
    "loss": "the loss",
    "backward": "step 2  backward, δ = ∂e/∂y of each layer",
    "gradient": "step 3  gradients",
}
HEADS = ("layer", "", "formula", "numbers")
_SHOWN = 20  # entries of an array, above which only its corners are printed


@dataclass(frozen=True, eq=False)
class TraceRow:
    """One quantity of one layer."""

    step: Step
    path: tuple[int, ...]
    """Where the layer is: the indices that lead to its parameters, as errors show them."""
    repetition: tuple[int, ...]
    """Which repetition this is, counted from 0, of each `repeat` around the layer; the outermost first."""
    layer: str
    symbol: str
    """x and y for input and output, δ = ∂e/∂y, δ_x = ∂e/∂x, h for what a pair keeps; or a parameter's name."""
    formula: str
    """How the value follows from other rows of the same layer, or where it comes from; or nothing."""
    value: np.ndarray
    """Of one example, without the batch axis."""

    @property
    def where(self) -> str:
        """The layer with its path, such as `[0][1] tanh`, under `repeat` with the repetition, counted from 1."""
        place = paths.shown(self.path, self.repetition)
        return f"{place} {self.layer}" if place else self.layer


@dataclass(frozen=True, eq=False)
class Trace:
    """The rows of a trace in the order in which they are computed; `print` shows them as a table."""

    rows: tuple[TraceRow, ...]

    def cells(self, digits: int = 6) -> Iterator[tuple[str, str, str, str, str]]:
        """For each row: its step, layer, symbol, formula, numbers. Step and layer only where they change."""
        before: tuple[str, str] | None = None
        for row in self.rows:
            step = "" if before is not None and before[0] == row.step else row.step
            where = "" if before == (row.step, row.where) else row.where
            before = row.step, row.where
            yield step, where, row.symbol, row.formula, in_digits(row.value, digits)

    def to_dict(self) -> dict[str, Any]:
        """Everything, with all digits, as JSON takes it."""
        names = ("step", "path", "repetition", "layer", "symbol", "formula")
        rows = [{name: getattr(row, name) for name in names} | {"value": row.value.tolist()} for row in self.rows]
        return {"rows": [row | {"path": list(row["path"]), "repetition": list(row["repetition"])} for row in rows]}

    def markdown(self, digits: int = 6) -> str:
        """A Markdown table for each step."""
        lines: list[str] = []
        for step, where, symbol, formula, numbers in self.cells(digits):
            if step:
                lines += ["", f"**{TITLES[step]}**", "", _md(HEADS), _md(("---",) * 4)]
            lines.append(_md((where, symbol, formula, " ".join(numbers.split()))))
        return "\n".join(lines).strip()

    def __str__(self) -> str:
        """A table in columns."""
        cells = list(self.cells())
        widths = [max((len(cell[i]) for cell in cells), default=0) for i in (1, 2, 3)]
        lines: list[str] = []
        for step, *words, numbers in cells:
            if step:
                lines += ["", TITLES[step]]
            start = "  " + "  ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)) + "  "
            first, *others = numbers.splitlines()
            lines += [start + first, *(" " * len(start) + line for line in others)]
        return "\n".join(lines).strip("\n")


def in_digits(value: np.ndarray, digits: int) -> str:
    """Numbers in so many significant digits, a line for each row; of large arrays the shape and the corners."""
    large = value.size > _SHOWN
    text = np.array2string(
        value,
        separator=", ",
        threshold=_SHOWN,
        edgeitems=2 if value.ndim > 1 else 3,
        max_line_width=math.inf,  # type: ignore[arg-type]
        formatter={"float_kind": lambda number: f"{number + 0.0:.{digits}g}"},  # type: ignore[arg-type]
    )
    return f"{' × '.join(map(str, value.shape))}:\n{text}" if large else text


def _md(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
