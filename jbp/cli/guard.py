"""The parent that `jbp train` keeps where it is one of several processes, and the child's side of it.

Where another process is lost, JAX ends this one from C++, at once and with a page of its own words. The parent says it
in one line, and what to do. It hands signals on, and the child ends with it, however it ends.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from jbp import hosts

LINE, TOLD = "JBP_GUARD_LINE", "JBP_GUARD_TOLD"
"""Environment variables of the child: the pipe that ends with its parent, and the one in which it tells its folder."""
ERROR = b"jbp: error: "
_LOGGED = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.+-]+:\d+\] ")
"""How a line of C++ begins."""
_NOISE = (b"[Gloo] Rank ",)
_POLL = 0.1


# ── The child ───────────────────────────────────────────────────────────────────────────────────────────────────────


def is_guarded() -> bool:
    """Whether this process has such a parent."""
    return LINE in os.environ


def under_guard() -> None:
    """From now on this process ends when its parent does."""
    line = int(os.environ.pop(LINE))

    def wait() -> None:
        while os.read(line, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="jbp-guard", daemon=True).start()


def tell(folder: object) -> None:
    """Tell the parent, if there is one, which run this is."""
    if TOLD in os.environ:
        told = int(os.environ.pop(TOLD))
        with suppress(OSError):
            os.write(told, str(folder).encode()[:4096])
            os.close(told)


# ── The parent ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Heard:
    """What a child has said: passed on, but for the words of C++, which are kept until it is known how it ends."""

    kept: list[bytes] = field(default_factory=list)
    said_error: bool = False

    def pass_on(self, source: IO[bytes], to: IO[bytes]) -> None:
        """Line by line, until the child is done."""
        for line in source:
            if line.startswith(_NOISE):
                continue
            if _LOGGED.match(line) and line[:1] in b"EF":
                self.kept.append(line)
            elif self.kept and not line.startswith(b"jbp: "):
                self.kept.append(line)  # an entry has as many lines as it likes
            else:
                self.said_error = self.said_error or line.startswith(ERROR)
                with suppress(OSError, ValueError):
                    to.write(line)
                    to.flush()


def guarded(command: Sequence[str], place: hosts.Place) -> int:
    """Run the real process, pass on what it says, and answer with its exit status; where that is a failure which it
    could not word, say it."""
    line, ours = os.pipe()
    told, theirs = os.pipe()
    environment = os.environ | {LINE: str(line), TOLD: str(theirs)}
    child = subprocess.Popen(
        command, env=environment, pass_fds=(line, theirs), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C of the terminal's would come twice
    )  # fmt: skip
    os.close(line)
    os.close(theirs)
    heard = Heard()
    streams = [(child.stdout, sys.stdout), (child.stderr, sys.stderr)]
    threads = [threading.Thread(target=heard.pass_on, args=(a, b.buffer), daemon=True) for a, b in streams]
    before = {number: signal.signal(number, _to(child)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for thread in threads:
            thread.start()
        status, frozen = _ended(child)
        for thread in threads:
            thread.join(5)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(ours)
        with os.fdopen(told, "rb") as file:
            folder = file.read().decode()
        for stream in (child.stdout, child.stderr):
            assert stream is not None
            stream.close()
    if status >= 0 and (heard.said_error or status == 0):
        return status
    words = ending(status, b"".join(heard.kept).decode(errors="replace"), place, frozen)
    hint = f"; to go on: jbp train --resume {folder}" if folder else ""
    sys.stderr.buffer.write(ERROR + f"{words}{hint}\n".encode())
    sys.stderr.flush()
    return status if status > 0 else 1


def _to(child: subprocess.Popen[bytes]) -> Any:
    def handle(number: int, frame: Any) -> None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)

    return handle


def _ended(child: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """The status with which a child ends, and whether it was frozen so long that the others have given it up."""
    since = None
    while True:
        pid, status = os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if pid and os.WIFSTOPPED(status):
            since = time.monotonic()
        elif pid and os.WIFCONTINUED(status):
            since = None
        elif pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, since is not None
        if since is not None and time.monotonic() - since > hosts.HEARTBEAT + hosts.SHUTDOWN:
            child.kill()
        time.sleep(_POLL)


def ending(status: int, kept: str, place: hosts.Place, frozen: bool = False) -> str:
    """In one line, how a process ended that could not say so itself, from its status and what C++ said."""
    after = "training ends here, what was saved stays"
    if frozen:
        return f"{place} was stopped for {hosts.HEARTBEAT + hosts.SHUTDOWN} s, and the others have given it up: {after}"
    if status == -signal.SIGABRT or hosts.is_lost(kept):
        if "RegisterTask" in kept or "ConnectTask" in kept:
            there = "" if place.coordinator is None else f" {place.coordinator}"
            return (
                f"{place} did not meet all the others within {hosts.INITIALISE} s: start every process, with the same "
                f"coordinator{there} and the same number of processes"
            )
        found = re.search(r"unhealthy[^\n]*:\s*((?:\s*[\w/:, ]*\d+\s*\n)+)", kept)
        if found:
            numbers = re.findall(r"\d+(?=\s*$)", found[1], re.MULTILINE)
            how = f"heard of for {hosts.HEARTBEAT} s (killed, frozen, or cut off)"
            if str(place.process) in numbers:
                return f"{place} was not {how}, and the others have given it up: {after}"
            lost = f"process {', '.join(numbers)} has not been {how}"
        elif "Heartbeat" in kept or "leader" in kept or "PollForError" in kept:
            lost = "process 0, the coordinator, does not answer any more (killed, frozen, or cut off)"
        elif hosts.is_lost(kept):
            lost = "another process is gone"
        else:
            return f"{place} was ended by SIGABRT: {after}"
        return f"{place}: {lost}: {after}"
    if status < 0:
        name = signal.Signals(-status).name
        why = " (out of memory?)" if name == "SIGKILL" else ""
        return f"{place} was ended by {name}{why}: {after}"
    return f"{place} ended with status {status}: {after}"
