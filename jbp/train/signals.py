"""Ctrl-C, taken at the end of a chunk of steps, or of what is compiled before the first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Interrupt:
    """What has become of Ctrl-C."""

    asked: bool = False
    """It was pressed."""
    begun: bool = False
    """The program is compiled and steps are taken: there is something to keep."""
    early: bool = False
    """It was pressed before that."""

    def check_begun(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C came before there was anything to keep."""
        if self.early:
            raise KeyboardInterrupt


@contextmanager
def ctrl_c() -> Iterator[Interrupt]:
    """Ctrl-C is noted in what this yields, and a second one raises at once.

    Noted while the program is compiled too: an exception in the midst of that makes JAX crash when the process ends.
    Outside the main thread signals are not ours to take.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handle(number: int, frame: Any) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked, interrupt.early = True, not interrupt.begun

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
