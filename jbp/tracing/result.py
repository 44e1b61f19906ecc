"""A trace: its rows by order and by name, as text, Markdown, HTML and plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np

from jbp import paths
from jbp.arguments import did_you_mean
from jbp.tracing import html, pictures

Part = Literal["forward", "loss", "backward", "gradient", "update"]
TITLES: dict[str, str] = {
    "forward": "step 1  forward",
    "loss": "the loss",
    "backward": "step 2  backward, δ = ∂e/∂y of each layer",
    "gradient": "step 3  gradients",
    "update": "the parameters after the step",
}
HEADS = ("layer", "", "formula", "numbers")
_SHOWN = 20  # entries of an array, above which it is told by its range and a picture
_LATIN = str.maketrans({"δ": "delta", "∂": "d", "′": "'"} | {"₁₂₃₄₅₆₇₈₉"[i]: str(i + 1) for i in range(9)})


@dataclass(frozen=True, eq=False)
class TraceRow:
    """One quantity of one layer."""

    step: Part
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
    name: str = ""
    """The layer's name in this trace: 2 for the second one with parameters, 2.tanh for a tanh behind it."""

    @property
    def where(self) -> str:
        """The layer with its path, such as `[0][1] tanh`, under `repeat` with the repetition, counted from 1."""
        place = paths.shown(self.path, self.repetition)
        return f"{place} {self.layer}" if place else self.layer

    @property
    def title(self) -> str:
        """The layer by name, and as it is written where the name does not say it: `2 Dense(3)`, `2.tanh`."""
        if self.name == "loss":
            return self.layer
        word = self.layer.removesuffix("()").lower()
        return self.name if self.name.partition(".")[2].startswith(word) else f"{self.name} {self.layer}".strip()


@dataclass(frozen=True, eq=False)
class Trace:
    """The rows of a trace in the order in which they are computed; `print` shows them as a table, a notebook too.

    `t["2.delta"]`, or `t["2.δ"]`, is δ of the second layer with parameters, and `t["1.tanh.y"]` what the tanh behind
    the first makes: the layer's name, a point, and the symbol. The first row of that name, if there are several.
    """

    rows: tuple[TraceRow, ...]
    params: Any = None
    """The parameters after the step, where a learning rate was given."""
    velocity: Any = None
    """The velocity after it, where there was momentum."""
    subject: Any = None
    """What was traced, for `to_html`: (net, loss, params, x, y), and the step's learning rate, momentum, velocity."""

    def __iter__(self) -> Iterator[TraceRow]:
        """Row by row."""
        return iter(self.rows)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.rows)

    def __getitem__(self, key: str) -> np.ndarray:
        """The numbers of a layer's quantity, by name.

        Raises:
            KeyError: if there is none of that name, with the nearest.
        """
        if not isinstance(key, str):
            raise KeyError(f'a trace is asked by names such as "2.delta", not by {key!r}; its rows are t.rows')
        known: dict[str, np.ndarray] = {}
        for row in self.rows:
            known.setdefault(f"{row.name}.{row.symbol}".translate(_LATIN), row.value)
        wanted = key.translate(_LATIN)
        if wanted not in known:
            hint = did_you_mean(wanted, known) or f"; there are {', '.join(known)}"
            raise KeyError(f"nothing in this trace is called {key!r}{hint}")
        return known[wanted]

    @property
    def has_pictures(self) -> bool:
        """Whether an array is so large that a picture stands for it."""
        return any(row.value.size > _SHOWN for row in self.rows)

    def cells(
        self, digits: int = 6, full: bool = False, width: int = pictures.WIDTH
    ) -> Iterator[tuple[str, str, str, str, str]]:
        """For each row: its step, layer, symbol, formula, numbers. Step and layer only where they change.

        Pictures are at most `width` characters wide.
        """
        before: tuple[str, str] | None = None
        for row in self.rows:
            step = "" if before is not None and before[0] == row.step else row.step
            where = "" if before == (row.step, row.name) else row.title
            before = row.step, row.name
            yield step, where, row.symbol, row.formula, self._numbers(row, digits, full, width)

    def to_dict(self) -> dict[str, Any]:
        """Everything, with all digits, as JSON takes it."""
        names = ("step", "name", "path", "repetition", "layer", "symbol", "formula")
        rows = [{name: getattr(row, name) for name in names} | {"value": row.value.tolist()} for row in self.rows]
        return {"rows": [row | {"path": list(row["path"]), "repetition": list(row["repetition"])} for row in rows]}

    def to_html(self) -> str:
        """The δ page of this example, one HTML file as text: every number opens its formula, and can be changed.

            Path("page.html").write_text(t.to_html())

        A notebook shows what this returns in a frame. `jbp.inspect` makes pages of whole batches.

        Raises: ValueError if this trace was not made by `jbp.trace`, or its net is too large for a page.
        """
        if self.subject is None:
            raise ValueError("expected a trace that jbp.trace made, found one without its net; trace it again")
        return import_module("jbp.inspect.page").of_trace(*self.subject)  # a later room: looked for when asked for

    def markdown(self, digits: int = 6, full: bool = False) -> str:
        """A Markdown table for each step."""
        lines: list[str] = []
        for (step, where, symbol, formula, numbers), row in zip(self.cells(digits, full), self.rows, strict=True):
            if step:
                lines += ["", f"**{TITLES[step]}**", "", _md(HEADS), _md(("---",) * 4)]
            folded = row.value.size > _SHOWN and not full
            shown = numbers.partition("\n")[0] if folded else numbers
            lines.append(_md((where, symbol, formula, " ".join(shown.split()))))
        return "\n".join(lines).strip()

    def text(self, digits: int = 6, full: bool = False) -> str:
        """A table in columns; large arrays by their range and a picture, or `full`, with every number."""
        cells = list(self.cells(digits, full))
        widths = [max((len(cell[i]) for cell in cells), default=0) for i in (1, 2, 3)]
        lines: list[str] = []
        for step, *words, numbers in cells:
            if step:
                lines += ["", TITLES[step]]
            start = "  " + "  ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)) + "  "
            first, *others = numbers.splitlines()
            lines += [(start + first).rstrip(), *((" " * len(start) + line).rstrip() for line in others)]
        if self.has_pictures and not full:
            lines += ["", pictures.LEGEND]
        return "\n".join(lines).strip("\n")

    def __str__(self) -> str:
        """The text."""
        return self.text()

    def _repr_html_(self) -> str:
        """A table for each step, as notebooks show it; large arrays as pictures."""
        tables: list[tuple[str, list[tuple[str, ...]]]] = []
        for (step, where, symbol, formula, numbers), row in zip(self.cells(), self.rows, strict=True):
            if step:
                tables.append((TITLES[step], []))
            large = row.value.size > _SHOWN and not self._is_seen(row)
            tables[-1][1].append((where, symbol, formula, html.heat_map(row.value) if large else html.numbers(numbers)))
        return html.page(HEADS, tables)

    def _numbers(self, row: TraceRow, digits: int, full: bool, width: int) -> str:
        if full or row.value.size <= _SHOWN:
            return in_digits(row.value, digits)
        if self._is_seen(row):
            return f"{pictures.shape(row.value)}, shown there"
        return "\n".join([pictures.summary(row.value), *pictures.picture(row.value, width)])

    def _is_seen(self, row: TraceRow) -> bool:
        """Whether the formula says which row above has the same numbers."""
        symbol, _, place = row.formula.partition(" of ")
        return f"{place}.{symbol}" in {f"{r.name}.{r.symbol}" for r in self.rows} or symbol in ("δ", "x")


def in_digits(value: np.ndarray, digits: int) -> str:
    """Every number in so many significant digits, a line for each row."""
    return np.array2string(
        value,
        separator=", ",
        threshold=max(1, value.size),
        max_line_width=math.inf,  # type: ignore[arg-type]
        formatter={"float_kind": lambda number: f"{number + 0.0:.{digits}g}"},  # type: ignore[arg-type]
    )


def _md(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
