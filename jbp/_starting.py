"""Ctrl-C while the program `jbp` starts, most of which is the import of JAX: one line, and nothing else to tidy up.

`jbp/__init__.py` imports this first, because `python -m jbp` and the script `jbp` import the package before any code of
theirs runs. In a process that was started for something else nothing is done.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import pairwise
from typing import Any

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells count it: 128 and the number of the signal."""


def is_program() -> bool:
    """Whether this process was started as `jbp …` or `python -m jbp …`."""
    name = sys.argv[0] if sys.argv else ""
    if name == "-m":  # while Python still looks for the module
        return "-mjbp" in sys.orig_argv or ("-m", "jbp") in pairwise(sys.orig_argv)
    return os.path.basename(name).lower() in ("jbp", "jbp.exe", "jbp-script.py")  # noqa: PTH119 (before pathlib)


def _leave(number: int, frame: Any) -> None:
    os.write(2, b"jbp: error: interrupted while it was starting; nothing was written\n")
    os._exit(INTERRUPTED)


def over() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, as everywhere else."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as by nohup
    signal.signal(signal.SIGINT, _leave)
