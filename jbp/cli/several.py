"""`jbp train` as one of several processes: they meet, see that they are to do the same, and end together.

Process 0 writes and speaks for all. Whoever fails ends at once, and the others then too (`jbp.cli.guard`); whoever is
told to stop, or is done, waits for the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax

from jbp import hosts, runs
from jbp.cli import guard
from jbp.cli.options import TrainOptions
from jbp.train import Diverged, Fit, Interrupted

R = TypeVar("R")
_FILES = ("data", "bounds", "net")
"""Options that may name a file, which may lie elsewhere on another machine: what is in it is compared later."""


def train_with_others(
    options: TrainOptions, place: hosts.Place, versions: dict[str, str], train: Callable[[TrainOptions], R]
) -> R:
    """Train as this process of several.

    Raises: hosts.Lost if another is gone; ValueError if they are not told the same; hosts.Unreachable.
    """
    hosts.join(place)
    with hosts.lost_in_words():
        hosts.check_same({f"the version of {name}": version for name, version in versions.items()})
        words = {name: _named(name, value) for name, value in options.config.items()}
        hosts.check_same(words | {"resume": options.resume is not None})
        if not hosts.is_first():
            options = dataclasses.replace(options, quiet=True, json=False, log=None, out=None, overwrite=False)
        try:
            result = train(options)
        except (Diverged, Interrupted):  # all of them
            ended()
            raise
        ended()
        return result


def ended() -> None:
    """Wait for process 0 to have written, and go, as all do."""
    hosts.everyone("the end of the run")
    hosts.leave()


def _named(name: str, value: Any) -> Any:
    return Path(value).name if name in _FILES and isinstance(value, str) else value


def folder_for_all(make: Callable[[], runs.RunFolder]) -> runs.RunFolder:
    """The run's folder, which process 0 makes; the others know its name."""
    folder = make() if hosts.is_first() else None
    path = hosts.text_from_first(None if folder is None else str(folder.path))
    if folder is not None:
        guard.tell(folder.path)
    return Elsewhere(Path(path)) if folder is None else folder


def with_whole_params(fit: Fit) -> Fit:
    """With parameters that are not spread over several processes."""
    return dataclasses.replace(fit, params=jax.tree.map(hosts.on_every_host, fit.params)) if hosts.several() else fit


class Elsewhere(runs.RunFolder):
    """The folder of a run that another process writes: nothing is done here."""

    def __init__(self, path: Path):
        self.path = path

    def close(self) -> None:
        """Nothing is held."""

    def cut_back(self, rows: Sequence[dict[str, Any]] | None, step: int) -> None:
        """Process 0 does."""

    def params(self, tree: Any, about: Any) -> None:
        """Process 0 does."""

    def summary(self, summary: dict[str, Any]) -> None:
        """Process 0 does."""

    def row(self, row: dict[str, Any]) -> None:
        """Process 0 does."""

    def rest(self, watched: Sequence[dict[str, Any]]) -> None:
        """Process 0 does."""

    def replace(self) -> None:
        """Process 0 does."""

    @contextmanager
    def told(self) -> Iterator[None]:
        """Process 0 keeps what there is."""
        try:
            yield
        except (KeyboardInterrupt, OSError) as error:
            error.add_note(f"process 0 keeps it; to go on: jbp train --resume {self.path}")
            raise
