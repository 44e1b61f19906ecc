"""Pictures of a run: curves.png, loss and accuracy over the epochs; watched.png, the net from inside over the steps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jbp.files import write_atomically
from jbp.train.watch import scalars

_PARTS = (("train", "training", "tab:blue", "-"), ("validation", "validation", "tab:orange", "--"))
_WATCHED = {
    "delta": "δ, root mean square",
    "h": "h, root mean square",
    "update": "update ‖Δw‖/‖w‖",
    "saturated": "saturated (share of units)",
    "noise_scale": "noise scale (examples)",
}
"""The panels of watched.png, each with what is plotted."""
_NAMED = 12
"""Up to so many layers have their names beside the picture; of more, the first and the last."""


def draw_curves(path: Path, rows: Sequence[dict[str, Any]], best_epoch: int | None) -> str | None:
    """Draw the history of a run; answers with a remark where matplotlib is missing, and then draws nothing.

    Raises: OSError if the file cannot be written.
    """
    panels = [("loss", "loss (mean per example)")]
    if "train_accuracy" in rows[0]:
        panels.append(("accuracy", "accuracy (share of examples)"))
    made = _figure(len(panels), "epoch")
    if made is None:
        return _left_out(path)
    figure, axes = made
    epochs = [row["epoch"] for row in rows]
    for ax, (name, label) in zip(axes, panels, strict=True):
        drawn = []
        for part, words, colour, line in _PARTS:
            if f"{part}_{name}" not in rows[0]:
                continue
            values = [row[f"{part}_{name}"] for row in rows]
            drawn += values
            ax.plot(epochs, values, line, color=colour, label=words, marker="o", markersize=3 if len(rows) < 60 else 0)
        if best_epoch:
            ax.axvline(best_epoch, color="0.6", linewidth=1, linestyle=":", label=f"kept: epoch {best_epoch}")
        if name == "loss" and min(drawn) > 0 and max(drawn) > 10 * min(drawn):
            ax.set_yscale("log")
        ax.set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    _write(path, figure)
    return None


def draw_watched(path: Path, rows: Sequence[dict[str, Any]]) -> str | None:
    """Draw what was seen of the watched steps, a line for each layer; answers as `draw_curves`.

    Raises: OSError if the file cannot be written.
    """
    series: dict[str, dict[str, list[tuple[int, float]]]] = {name: {} for name in _WATCHED}
    for row in rows:
        for name, value in scalars(row).items():
            panel, _, layer = name.partition("/")
            if panel in series:
                series[panel].setdefault(layer, []).append((row["step"], value))
    panels = [name for name in _WATCHED if series[name]]
    if not panels:
        return None
    made = _figure(len(panels), "step")
    if made is None:
        return _left_out(path)
    figure, axes = made
    from matplotlib import colormaps

    layers = list(dict.fromkeys(layer for row in rows for layer in row.get("layers", {})))
    handles = {}
    for ax, panel in zip(axes, panels, strict=True):
        values = []
        for layer, points in series[panel].items():
            at = layers.index(layer) / max(1, len(layers) - 1) if layer else 0.0
            steps, found = zip(*points, strict=True)
            marker = "o" if len(points) < 60 else None
            colour = colormaps["viridis"](0.92 * at) if layer else "tab:blue"
            (line,) = ax.plot(steps, found, color=colour, linewidth=1.2, marker=marker, markersize=3)
            values += found
            if layer:
                handles.setdefault(layer, line)
        if panel == "saturated":
            ax.set_ylim(-0.02, 1.02)
        elif min(values) > 0 and max(values) > 10 * min(values):
            ax.set_yscale("log")
        ax.set_ylabel(_WATCHED[panel])
    named = [layer for layer in layers if layer in handles]
    named = named if len(named) <= _NAMED else [named[0], named[-1]]
    if named:
        lines = [handles[layer] for layer in named]
        figure.legend(lines, named, title="layer", loc="outside right center", frameon=False)
    _write(path, figure)
    return None


def draw_efficiency(path: Path, points: Sequence[tuple[int, float, bool]], name: str) -> str | None:
    """Draw predicted efficiency against the number of devices, hollow where memory is too small; answers as
    `draw_curves`.

    Raises: OSError if the file cannot be written.
    """
    made = _figure(1, f"{name} accelerators")
    if made is None:
        return _left_out(path)
    figure, (ax,) = made
    counts, shares, fits = zip(*points, strict=True)
    ax.plot(counts, shares, "-", color="tab:blue", linewidth=1.2)
    for fitting, fill, label in ((True, "tab:blue", "fits into memory"), (False, "white", "does not fit")):
        chosen = [(n, share) for n, share, fit in zip(counts, shares, fits, strict=True) if fit is fitting]
        if chosen:
            ax.plot(*zip(*chosen, strict=True), "o", color="tab:blue", markerfacecolor=fill, markersize=5, label=label)
    ax.set_xscale("log", base=2)
    ax.set_xticks(counts, [f"{n:,}" for n in counts], rotation=45)
    ax.set_ylim(0, max(1.05, 1.05 * max(shares)))
    ax.set_ylabel("efficiency, predicted (1: as on one)")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    _write(path, figure)
    return None


def _figure(panels: int, across: str) -> tuple[Any, Any] | None:
    """A figure with so many panels, at most three in a row; None where matplotlib is missing."""
    try:  # here, for matplotlib is optional and slow to load
        from matplotlib.figure import Figure  # without pyplot: no window system, no global state
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return None
    columns = min(panels, 3)
    lines = math.ceil(panels / columns)
    figure = Figure(figsize=(4.8 * columns, 3.6 * lines), dpi=110, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[panels:]:
        ax.remove()
    for ax in axes[:panels]:
        ax.set_xlabel(across)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes[:panels]


def _left_out(path: Path) -> str:
    return f"{path.name} left out, for matplotlib is not installed: pip install 'jbp[plots]' brings it"


def _write(path: Path, figure: Any) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
