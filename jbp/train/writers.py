"""A run's figures, for programs that show them: callbacks of `jbp.fit` that hand on each row of it.

The scalars are those of the rows of epochs ("train_loss", "validation_accuracy", …), and with `jbp.fit(watch=)` those
of watched steps ("noise_scale", "delta/0", "update/1.0 #2", …), each at the number of steps taken. What is not finite
is left out.
"""

from __future__ import annotations

from typing import Any

from jbp.arguments import came
from jbp.train.result import Callback, Event
from jbp.train.watch import scalars


def to_tensorboard(writer: Any) -> Callback:
    """A callback that adds the scalars to a TensorBoard writer: whatever has `add_scalar(tag, value, step)`, such as
    `tensorboardX.SummaryWriter(folder)` or `torch.utils.tensorboard.SummaryWriter(folder)`. Close it yourself.

    Raises:
        ValueError: if it is none.
    """
    if not callable(getattr(writer, "add_scalar", None)):
        raise ValueError(
            "to_tensorboard takes a writer with add_scalar(tag, value, step), such as "
            f"tensorboardX.SummaryWriter(folder), but got {came(writer)}"
        )

    def write(event: Event) -> None:
        for step, found in _rows(event):
            for name, value in found.items():
                writer.add_scalar(name.replace(" #", "/"), value, step)  # it allows neither in a tag

    return write


def to_wandb(run: Any) -> Callback:
    """A callback that logs the scalars to a run of Weights & Biases, as `wandb.init(...)` makes one, offline or not:
    whatever has `log(figures, step=)`. Finish it yourself.

    Raises:
        ValueError: if it is none.
    """
    if not callable(getattr(run, "log", None)):
        raise ValueError(
            f"to_wandb takes a run with log(figures, step=), as wandb.init() makes it, but got {came(run)}"
        )

    def write(event: Event) -> None:
        for step, found in _rows(event):
            run.log(found, step=step)

    return write


def _rows(event: Event) -> list[tuple[int, dict[str, float]]]:
    """What an event brings, in the order of the steps."""
    return [(int(row["step"]), scalars(row)) for row in (event.watched, event.row) if row is not None]
