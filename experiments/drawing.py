"""A network as a picture, for the scripts of `claims/`: numbers at its units, weights on the lines between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

FORWARD, BACKWARD = "#1f5fa8", "#b3361e"
"""The colours of what goes forward, h, and of what comes back, δ."""

Place = tuple[float, float]


def number(value: float, digits: int = 2) -> str:
    """So many digits after the point, with a minus sign as long as a plus."""
    return f"{value:.{digits}f}".replace("-", "−")


def unit(axis: Any, at: Place, inside: str, below: str = "", colour: str = FORWARD, second: str = BACKWARD) -> None:
    """A circle with one number in it, and another below it."""
    axis.plot(*at, "o", ms=41, mfc="white", mec=colour, mew=1.4, zorder=3)
    axis.text(*at, inside, color=colour, ha="center", va="center", fontsize=9.5, zorder=4)
    if below:
        axis.annotate(below, at, xytext=(0, -23), textcoords="offset points", color=second, ha="center", va="top",
                      fontsize=9.5, zorder=4, bbox=PAPER)  # fmt: skip


PAPER = {"boxstyle": "square,pad=0.08", "fc": "white", "ec": "none"}


def line(axis: Any, start: Place, end: Place, weight: float, label: str, taken: list[Place]) -> None:
    """A line, broader for a larger weight and dashed for a negative one, with a label where none is `taken` yet."""
    broad = 0.5 + min(abs(weight), 2.0)
    axis.plot(*zip(start, end, strict=True), color="0.75", lw=broad, ls="-" if weight >= 0 else (0, (4, 2)), zorder=1)
    at = max((_along(start, end, share) for share in SHARES), key=lambda at: min(_room(at, taken), 1.0))
    taken.append(at)
    axis.text(*at, label, color="0.2", ha="center", va="center", fontsize=8, zorder=2, bbox=PAPER)


SHARES = (0.3, 0.36, 0.42, 0.24, 0.48, 0.54, 0.6, 0.66)
"""How far along its line a label may stand; the first of the best is taken."""


def _along(start: Place, end: Place, share: float) -> Place:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _room(at: Place, taken: list[Place]) -> float:
    """The distance to the nearest label, in sizes of a label."""
    return min((max(abs(at[0] - x) / 0.25, abs(at[1] - y) / 0.16) for x, y in taken), default=1.0)


def column(count: int, x: float) -> list[Place]:
    """Places of units, one above the other."""
    return [(x, (count - 1) / 2 - i) for i in range(count)]


def layered(
    axis: Any,
    units: Sequence[Sequence[tuple[str, str]]],
    weights: Sequence[Sequence[Sequence[float]]],
    label: Callable[[int, int, int], str] | None = None,
    colours: tuple[str, str] = (FORWARD, BACKWARD),
) -> list[list[Place]]:
    """Layers side by side: `units` are the numbers in and below each circle, weights[l][i][o] of the line from unit i
    of layer l to unit o of the next (which may have a first unit more that nothing leads to: the constant). Answers
    with the places."""
    places = [column(len(layer), 1.0 * i) for i, layer in enumerate(units)]
    for layer, numbers in zip(places, units, strict=True):
        for at, (inside, below) in zip(layer, numbers, strict=True):
            unit(axis, at, inside, below, *colours)
    taken: list[Place] = []
    for i, matrix in enumerate(weights):
        reached = places[i + 1][len(places[i + 1]) - len(matrix[0]) :]
        for j, row in enumerate(matrix):
            for k, weight in enumerate(row):
                text = label(i, j, k) if label else number(weight)
                line(axis, places[i][j], reached[k], weight, text, taken)
    axis.margins(0.12, 0.2)
    axis.axis("off")
    return places
