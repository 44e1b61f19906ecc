"""Ctrl-C and SIGTERM while the program `jbp` starts, most of which is the import of JAX: one line, and nothing else to
tidy up; and what they do from then on.

`jbp/__init__.py` imports this first, because `python -m jbp` and the script `jbp` import the package before any code of
theirs runs. In a process that was started for something else nothing is done.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from itertools import pairwise
from typing import Any

BY_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""The exit status after Ctrl-C and after SIGTERM, as shells count it: 128 and the number of the signal."""


class Stopped(KeyboardInterrupt):
    """A run was told to stop. `signal` is the number of the signal: Ctrl-C's, or SIGTERM."""

    def __init__(self, number: int = signal.SIGINT, *words: str):
        self.signal = int(number)
        super().__init__(*words)


def is_program() -> bool:
    """Whether this process was started as `jbp …` or `python -m jbp …`."""
    name = sys.argv[0] if sys.argv else ""
    if name == "-m":  # while Python still looks for the module
        return "-mjbp" in sys.orig_argv or ("-m", "jbp") in pairwise(sys.orig_argv)
    return os.path.basename(name).lower() in ("jbp", "jbp.exe", "jbp-script.py")  # noqa: PTH119 (before pathlib)


def _leave(number: int, frame: Any) -> None:
    os.write(2, b"jbp: error: interrupted while it was starting; nothing was written\n")
    os._exit(128 + number)


def stop(number: int, frame: Any) -> None:
    """Raise Stopped: the program's answer to SIGTERM while no run is there to take it, as while results are written."""
    raise Stopped(number)


def _once_more(unraisable: Any) -> None:
    """Send a signal again whose exception fell where Python cannot raise it, as in what JAX does at garbage
    collection: it would be shown as ignored, and be."""
    error = unraisable.exc_value
    if not isinstance(error, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    to, number = threading.main_thread().ident, getattr(error, "signal", signal.SIGINT)
    later = threading.Timer(0.01, signal.pthread_kill, (to, number))
    later.daemon = True
    later.start()


_AT_FIRST = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_LATER = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: stop}


def over() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, as everywhere else, and SIGTERM raises Stopped."""
    for number, handler in _LATER.items():
        if signal.getsignal(number) is _leave:
            signal.signal(number, handler)


if is_program():
    if hasattr(signal, "pthread_kill"):  # not on Windows
        sys.unraisablehook = _once_more
    for _number, _handler in _AT_FIRST.items():
        if signal.getsignal(_number) is _handler:  # else it is ignored, as Ctrl-C is by nohup
            signal.signal(_number, _leave)
