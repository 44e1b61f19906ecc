"""How a long job goes, on standard error: a line written anew in a terminal or notebook, elsewhere one now and then.

In a log the first line comes after two seconds, the next ones at least ten seconds apart.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Self, TextIO

from jbp.arguments import as_bool
from jbp.train.clocks import Length

_FIRST, _APART, _ANEW = 2.0, 10.0, 0.1
"""Seconds: before the first line of a log, between its lines, and between two writings of the line."""


class Line:
    """The line. What is shown last is there when it ends, if it `stays`."""

    def __init__(self, stays: bool = True):
        self._stream: TextIO = sys.stderr
        self.stays = stays
        self._anew = self._stream.isatty() or type(self._stream).__module__.startswith("ipykernel")
        self._due = time.monotonic() + (0.0 if self._anew else _FIRST)
        self._waiting: tuple[str, ...] = ()
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._waiting and self.stays:
            self._write(self._waiting)
        if self._anew and self._width:
            self._stream.write("\n" if self.stays else f"\r{' ' * self._width}\r")
            self._stream.flush()

    def show(self, *parts: str) -> None:
        """What there is to say now, the most important first: what the line has no room for is left out."""
        self._waiting = tuple(part for part in parts if part)
        if time.monotonic() >= self._due:
            self._write(self._waiting)

    def leave(self, *parts: str) -> None:
        """A line that stays, above what is shown next."""
        self._write(tuple(part for part in parts if part))
        if self._anew:
            self._stream.write("\n")
            self._width = 0

    def _write(self, parts: tuple[str, ...]) -> None:
        self._due = time.monotonic() + (_ANEW if self._anew else _APART)
        self._waiting = ()
        if not self._anew:
            print("  ".join(parts), file=self._stream, flush=True)
            return
        room, text = self._room(), parts[0]
        for part in parts[1:]:
            if len(text) + 2 + len(part) > room:
                break
            text += f"  {part}"
        self._stream.write(f"\r{text[:room]}{' ' * (self._width - len(text))}")
        self._stream.flush()
        self._width = min(len(text), room)

    def _room(self) -> int:
        """Columns, less the one in which terminals break the line."""
        try:
            return max(20, os.get_terminal_size(self._stream.fileno()).columns - 1)
        except (OSError, ValueError, AttributeError):  # a notebook has none
            return 119


class TrainingLine:
    """Tells how training goes: a callback, which gets `Event`s. Of a private run every epoch leaves a line, with ε."""

    def __init__(self, length: Length, runs: int = 1):
        self._length, self._of = length, "" if runs == 1 else f"means of {runs} runs:"
        self._line = Line()
        self._first: Any = None
        self._after_epoch: tuple[str, ...] = ()

    def __enter__(self) -> TrainingLine:
        self._line.show(self._at(1, 0), "compiling")
        return self

    def __exit__(self, *error: Any) -> None:
        self._line.stays = self._first is not None
        self._line.__exit__(*error)

    def __call__(self, event: Any) -> None:
        """Take in a chunk of steps."""
        left = self._left(event)
        now = (self._at(event.epoch, event.step), self._of, f"training loss {event.loss:.4g}")
        if event.row is not None:
            self._after_epoch = _figures(event.row)
            if "epsilon" in event.row:
                self._line.leave(*now, *self._after_epoch)
        figures, speed = self._after_epoch[:-1], self._after_epoch[-1:]
        self._line.show(*now, *figures, left, *speed)

    def say(self, text: str) -> None:
        """Leave a line."""
        self._line.leave(text)

    def _at(self, epoch: int, step: int) -> str:
        """Where the run is, as it is counted."""
        epochs, every = self._length.epochs, self._length.every
        return f"epoch {epoch}/{epochs}" if every is None else f"step {step:,}/{epochs * every:,}"

    def _left(self, event: Any) -> str:
        """The time that the steps still take if all are needed, from those after the first chunk, which compiles."""
        first = self._first = self._first or event
        if event.step in (first.step, event.steps):
            return ""
        pace = (event.seconds - first.seconds) / (event.step - first.step)
        minutes, seconds = divmod(round(pace * (event.steps - event.step)), 60)
        return f"{minutes}:{seconds:02d} left"


def training_line(progress: Any, length: Length, runs: int = 1) -> TrainingLine | None:
    """What `fit(progress=)` asks for.

    Raises: ValueError if `progress` is neither True nor False.
    """
    return TrainingLine(length, runs) if as_bool(progress, "progress") else None


def _figures(row: dict[str, float]) -> tuple[str, ...]:
    """The figures after an epoch, each kind with its name: of the validation part, else the metrics of training."""
    part = "validation" if "validation_loss" in row else "training"
    prefix = "validation_" if part == "validation" else "train_"
    found = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
    if part == "training":
        del found["loss"]  # it is shown for every chunk
    words = [f"{name} {value:.4f}" if name == "accuracy" else f"{name} {value:.4g}" for name, value in found.items()]
    epsilon = row.get("epsilon")
    return (
        f"{part} {', '.join(words)}" if words else "",
        "" if epsilon is None else f"ε {epsilon:.4g}",
        f"{row['examples_per_second']:,.0f} examples/s",
    )
