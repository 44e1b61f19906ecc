"""curves.png: loss and accuracy over the epochs, training and validation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jbp.checkpoint import write_atomically

_PARTS = (("train", "training", "tab:blue", "-"), ("validation", "validation", "tab:orange", "--"))


def draw_curves(path: Path, rows: Sequence[dict[str, Any]], best_epoch: int | None) -> str | None:
    """Draw the history of a run; answers with a remark where matplotlib is missing, and then draws nothing.

    Raises: OSError if the file cannot be written.
    """
    try:  # here, for matplotlib is optional and slow to load
        from matplotlib.figure import Figure  # without pyplot: no window system, no global state
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return "curves.png left out, for matplotlib is not installed: pip install 'jbp[plots]' brings it"
    panels = [("loss", "loss (mean per example)")]
    if "train_accuracy" in rows[0]:
        panels.append(("accuracy", "accuracy (share of examples)"))
    figure = Figure(figsize=(4.8 * len(panels), 3.6), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
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
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    return None
