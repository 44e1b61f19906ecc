"""Ctrl-C and SIGTERM, taken at the end of a chunk of steps, or of what is compiled before the first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jbp import _starting, hosts
from jbp._starting import Stopped

_SAME = 1.0
"""Seconds within which two signals are one, where there are several processes."""


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
    at: float = 0.0
    """When it came."""

    @property
    def asked_by(self) -> int:
        """Its number; 0 if none came."""
        return self.signal if self.asked else 0

    def check_begun(self) -> None:
        """Raise Stopped, a KeyboardInterrupt, if the signal came before there was anything to keep."""
        if self.early:
            raise Stopped(self.signal)


@contextmanager
def stop_signals() -> Iterator[Interrupt]:
    """Ctrl-C and SIGTERM are noted in what this yields, and a second one raises at once.

    Noted while the program is compiled too: an exception in the midst of that makes JAX crash when the process ends.
    Outside the main thread signals are not ours to take, nor is a SIGTERM that somebody else has taken already; the
    program `jbp` is ours.

    Of several processes none may end by itself: a signal is taken at the end of a chunk, however early it came, and
    what comes within a second is the same one, which a cluster may send to a process and to its parent.
    """
    interrupt = Interrupt()
    several = hosts.is_joined()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handle(number: int, frame: Any) -> None:
        if interrupt.asked:
            if several and time.monotonic() - interrupt.at < _SAME:
                return
            raise Stopped(number)
        early = not interrupt.begun and not several
        interrupt.asked, interrupt.early, interrupt.signal, interrupt.at = True, early, number, time.monotonic()

    taken = [signal.SIGINT] + [signal.SIGTERM] * (signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _starting.stop))
    before = [(number, signal.signal(number, handle)) for number in taken]
    try:
        yield interrupt
    finally:
        for number, handler in before:
            signal.signal(number, handler)
