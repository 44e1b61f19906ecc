"""Where else `jbp train --log` writes a run's figures: files for TensorBoard, or a run of Weights & Biases."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from jbp.cli.options import TENSORBOARD, WANDB, TrainOptions
from jbp.cli.parser import Failed
from jbp.train import Callback, Event, to_tensorboard, to_wandb

_PACKAGES = {TENSORBOARD: "tensorboardX", WANDB: "wandb"}


def check_log(options: TrainOptions) -> None:
    """Before anything costly is done.

    Raises: Failed if the package is missing, saying how to get it.
    """
    if options.log is not None:
        _package(options.log)


@contextmanager
def writers_of(options: TrainOptions, folder: Path) -> Iterator[tuple[Callback, ...]]:
    """The callbacks that write what `options.log` says for a run in `folder`; closed at the end, however it ends."""
    if options.log == TENSORBOARD:
        writers: list[Any] = []

        def write(event: Event) -> None:
            if event.row is None and event.watched is None:
                return
            if not writers:  # not before the run has something to keep: until then that of before stays as it is
                if options.resume is None:
                    shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
                writers.append(_package(TENSORBOARD).SummaryWriter(str(folder / TENSORBOARD)))
            to_tensorboard(writers[0])(event)

        try:
            yield (write,)
        finally:
            for writer in writers:
                writer.close()
    elif options.log == WANDB:
        wandb = _package(WANDB)
        quiet = wandb.Settings(silent=options.quiet or options.json)
        with wandb.init(project="jbp", dir=str(folder), config=options.config, settings=quiet) as run:
            yield (to_wandb(run),)
    else:
        yield ()


def _package(log: str) -> Any:
    try:
        return import_module(_PACKAGES[log])
    except ModuleNotFoundError as error:
        raise Failed(f"log {log} needs {_PACKAGES[log]}: pip install 'jbp[{log}]' ({error})") from error
