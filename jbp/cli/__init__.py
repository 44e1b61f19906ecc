"""`jbp train`, `predict`, `generate`, `show`, `compare`, `trace`, `inspect`, `check`, `plan` and `bench`.

Each command is also a frozen dataclass.

Exit status: 0; 1 where the work failed (diverged, a full disk); 2 where it was asked for wrongly; 130 after Ctrl-C, 143
after SIGTERM. An error is one line on standard error.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from jbp import _starting, hosts
from jbp._version import __version__
from jbp.arguments import check_choice
from jbp.cli import guard
from jbp.cli import parser as parsing
from jbp.cli.bench import Bench as Bench
from jbp.cli.check import Check as Check
from jbp.cli.compare import Compare as Compare
from jbp.cli.generate import Generate as Generate
from jbp.cli.inspect import Inspect as Inspect
from jbp.cli.parser import Command
from jbp.cli.parser import Failed as Failed
from jbp.cli.plan import Plan as Plan
from jbp.cli.predict import Predict as Predict
from jbp.cli.show import Show as Show
from jbp.cli.trace import Trace as Trace
from jbp.cli.train import Train as Train
from jbp.train import Diverged

COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "predict": Predict,
    "generate": Generate,
    "show": Show,
    "compare": Compare,
    "trace": Trace,
    "inspect": Inspect,
    "check": Check,
    "plan": Plan,
    "bench": Bench,
}
_ABOUT = "Train neural networks whose backward pass is written by hand."


def program() -> NoReturn:
    """What the shell runs: `main` on the words of the command line, then the end of the process."""
    try:
        status = main()
    except BaseException as error:
        if not hosts.is_joined():
            raise
        traceback.print_exc()
        worded = Failed(f"{type(error).__name__}: {error}")
        worded.__notes__ = getattr(error, "__notes__", [])
        status = _failed(worded, 1)
    # A process that leaves others behind goes at once too: on Python's own way out it would wait for them.
    if hosts.is_joined() or status in _starting.BY_SIGNAL:
        # At once: JAX crashes in Python's own way out when a signal has cut a compilation short.
        with suppress(OSError, ValueError):  # nobody may be listening any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line; answers with the exit status."""
    try:
        _starting.over()
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            status = _run(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read us, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, NotImplementedError) as error:  # the second where the net's examples are coupled
        return _failed(error, 2)
    except KeyboardInterrupt as error:
        return _failed(error, 128 + getattr(error, "signal", signal.SIGINT))
    except (Failed, OSError, MemoryError) as error:
        return _failed(error, 1)
    except ArithmeticError as error:
        if not isinstance(error, Diverged):
            raise
        return _failed(error, 1)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # how XLA says it
            raise
        worded = MemoryError("not enough memory: make the net or the batch smaller")
        worded.__notes__ = getattr(error, "__notes__", [])
        return _failed(worded, 1)
    return status


def _run(words: list[str]) -> int:
    top = parsing.build(COMMANDS, _ABOUT, __version__)
    if not words:
        top.print_help()
        return 0
    if words[0] not in COMMANDS:
        if words[0].startswith("-"):
            parsing.parse(top, words[:1])  # --help and --version end here
        check_choice("command", words[0], COMMANDS)
    kind = COMMANDS[words[0]]
    parser = parsing.command_parser(words[0], kind)
    given = parsing.parse(parser, words[1:])
    config = given.pop("config", None)
    if config is not None and "resume" in given:
        raise ValueError("expected one of config, which repeats a run, and resume, which goes on with one")
    if "resume" in given:
        command: Command = Train.of_run(**given)
    else:
        command = kind(**given) if config is None else Train.from_config(config, **given)
    if guard.is_guarded():
        guard.under_guard()
    elif isinstance(command, Train) and (place := command.place) is not None:
        return guard.guarded([sys.executable, "-m", "jbp", *words], place)
    command()
    return 0


def _warn(message: Warning | str, *where: Any) -> None:
    """Show a warning in one line, without the place in the code."""
    print(f"jbp: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _failed(error: BaseException, status: int) -> int:
    """Report an error in one line."""
    words, notes = str(error) or type(error).__name__, getattr(error, "__notes__", [])
    if isinstance(error, KeyboardInterrupt):
        words, notes = str(error) or "interrupted", notes or ["nothing is kept"]
    line = "; ".join([f"{hosts.who()}: {words}" if hosts.who() else words, *notes])
    print(f"jbp: error: {' '.join(line.split())}", file=sys.stderr)
    return status
