"""Ctrl-C and SIGTERM, taken at the end of a chunk of steps, or of what is compiled before the first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jbp.train.result import Stopped


@dataclass
class Interrupt:
    """What has become of a signal to stop."""

    asked: bool = False
    """It came."""
    begun: bool = False
    """The program is compiled and steps are taken: there is something to keep."""
    early: bool = False
    """It came before that."""
    signal: int = signal.SIGINT
    """Which it was."""

    def check_begun(self) -> None:
        """Raise Stopped, a KeyboardInterrupt, if the signal came before there was anything to keep."""
        if self.early:
            raise Stopped(self.signal)


@contextmanager
def stop_signals() -> Iterator[Interrupt]:
    """Ctrl-C and SIGTERM are noted in what this yields, and a second one raises at once.

    Noted while the program is compiled too: an exception in the midst of that makes JAX crash when the process ends.
    Outside the main thread signals are not ours to take, nor is a SIGTERM that somebody else has taken already.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handle(number: int, frame: Any) -> None:
        if interrupt.asked:
            raise Stopped(number)
        interrupt.asked, interrupt.early, interrupt.signal = True, not interrupt.begun, number

    taken = [signal.SIGINT] + [signal.SIGTERM] * (signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    before = [(number, signal.signal(number, handle)) for number in taken]
    try:
        yield interrupt
    finally:
        for number, handler in before:
            signal.signal(number, handler)
