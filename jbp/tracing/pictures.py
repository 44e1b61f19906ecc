"""Large arrays in a few characters: their range, and a picture of them."""

from __future__ import annotations

import numpy as np

LEGEND = (
    "pictures go from the least, low or light, to the largest, high or dark; a field of a large one is a mean, and of "
    "many channels the first are side by side"
)
SHADES = " ░▒▓█"
HEIGHTS = "▁▂▃▄▅▆▇█"
SIDE = 8
"""Columns of a plane, of several side by side."""
BETWEEN = "│"
WIDTH = 40
"""The most characters of a line."""


def shape(value: np.ndarray) -> str:
    """64 × 8; of a vector 64 numbers."""
    return " × ".join(map(str, value.shape)) if value.ndim > 1 else f"{value.size} numbers"


def summary(value: np.ndarray) -> str:
    """Shape, least, largest, mean, and how many are 0 where some are."""
    numbers = value[np.isfinite(value)] if value.dtype.kind == "f" else value
    bad, zeros = value.size - numbers.size, int((numbers == 0).sum())
    words = [shape(value)]
    if numbers.size:
        words.append(f"from {_short(numbers.min())} to {_short(numbers.max())}, mean {_short(numbers.mean())}")
    words += [f"{zeros} zero{'s' * (zeros != 1)}"] if zeros else []
    return ", ".join(words + ([f"{bad} are NaN or inf"] if bad else []))


def picture(value: np.ndarray, width: int = WIDTH) -> list[str]:
    """A line of heights for a vector; shades for a matrix, two characters a field so that it is square.

    At most 8 lines where it is nearly square, as images are, else 4; in a larger array a field is the mean of a block.
    Of an image with channels, or a kernel, as many planes side by side as there is room for.
    """
    size = value.squeeze().shape
    square = len(size) > 1 and max(size[:2]) < 2 * min(size[:2])
    rows, columns = 8 if square else 4, width // 2 if len(size) > 1 else width
    parts = planes(value, rows, columns, SIDE)
    finite = np.concatenate([part[np.isfinite(part)] for part in parts])
    if not finite.size:
        return []
    low, high = float(finite.min()), float(finite.max())
    steps, wide = (SHADES, 2) if len(parts[0]) > 1 else (HEIGHTS, 1)

    def drawn(fields: np.ndarray) -> list[str]:
        part = np.zeros_like(fields) if high == low else (fields - low) / (high - low)
        level = np.where(np.isfinite(part), np.rint(np.nan_to_num(part) * (len(steps) - 1)), -1).astype(int)
        return ["".join(("?" if i < 0 else steps[i]) * wide for i in row) for row in level]

    return [BETWEEN.join(lines).rstrip() for lines in zip(*map(drawn, parts), strict=True)]


def planes(value: np.ndarray, rows: int, columns: int, side: int) -> list[np.ndarray]:
    """The array as matrices of at most so many rows and columns: itself, if it has no more than two axes, else its
    planes over the first two, of `side` columns at most, as many as there is room for with a column between them."""
    plain = value.squeeze()
    if plain.ndim < 3:
        return [blocks(plain, rows, columns)]
    channels = plain.reshape(*plain.shape[:2], -1)
    first = blocks(channels[..., 0], rows, min(columns, side))
    count = min(max(1, (columns + 1) // (first.shape[1] + 1)), channels.shape[2])
    return [blocks(channels[..., i], *first.shape) for i in range(count)]


def blocks(value: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The array as a matrix of at most so many rows and columns: means of blocks."""
    plain = value.squeeze().astype(float)
    matrix = plain.reshape(-1, plain.shape[-1]) if plain.ndim > 1 else plain.reshape(1, -1)
    for axis, most in enumerate((rows, columns)):
        parts = np.array_split(matrix, min(most, matrix.shape[axis]), axis)
        matrix = np.stack([part.mean(axis) for part in parts], axis)
    return matrix


def _short(number: float) -> str:
    return f"{number + 0.0:.3g}"
