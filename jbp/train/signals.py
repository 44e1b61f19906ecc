"""Ctrl-C, taken at the end of a chunk of steps."""

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
    waits: bool = False
    """There is something to keep: the first Ctrl-C from now on is taken at the end of the chunk."""


@contextmanager
def ctrl_c() -> Iterator[Interrupt]:
    """Ctrl-C is noted in what this yields, if that `waits`; before, and when pressed a second time, it raises at once.

    Outside the main thread signals are not ours to take.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handle(number: int, frame: Any) -> None:
        if interrupt.asked or not interrupt.waits:
            raise KeyboardInterrupt
        interrupt.asked = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
