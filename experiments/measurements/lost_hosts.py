"""Does nobody hang? Runs of several processes, of which one is killed, frozen, fails or is told to stop.

    python experiments/measurements/lost_hosts.py          some minutes; writes experiments/results/lost_hosts.json and
                                                           its table into docs/several_hosts.md
    python experiments/measurements/lost_hosts.py --only killed   faults with that in their name; the other rows stay
    python experiments/measurements/lost_hosts.py --quick         two of them, nothing written

Two processes of `jbp train` (of each the parent that it keeps, and its child, which does the work) train one net on the
digits, on this machine, and save now and then. Once there is a checkpoint something is done to one of them. A row says
what, how many seconds it took until all had ended (of a frozen process: all others), with which status each ended, what
each said last, and what was lost: the run goes on in one process from the last checkpoint, and its parameters are to be
those of a run that nothing happened to, but for rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import jax
import numpy as np

import jbp
from jbp import hosts
from jbp.cli.training import versions
from jbp.durable.checkpoints import Checkpoints
from jbp.durable.saver import CHECKPOINTS

RESULT = common.RESULTS / "lost_hosts.json"
PAGE = Path(__file__).parents[2] / "docs" / "several_hosts.md"
BEGIN, END = "<!-- what became of them -->\n", "<!-- end of what became of them -->"
EPOCHS, EVERY, LIMIT = 120, 100, 60.0
"""Of a run; steps between its checkpoints; seconds within which all others are to have ended."""
ALIKE = 1e-4
"""Between parameters of a run that went on in one process, and of one that was never stopped: rounding of float32."""
NET = """
import os, signal
import jbp

def raises(number, frame):
    raise RuntimeError("the disk of this machine is gone")

signal.signal(signal.SIGUSR1, raises)
net = jbp.serial(jbp.Flatten(), jbp.Dense(16), jbp.tanh, jbp.Dense(10))
"""
"""A file with a net, and in it what a signal of ours does to the process that reads it."""


@dataclass
class Run:
    """A process of the run, with all it says."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    ended: float = 0.0

    @classmethod
    def start(cls, words: list[str]) -> Run:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        pipe = subprocess.PIPE
        run = cls(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=pipe, text=True, env=environment))
        run.listens = threading.Thread(target=run.listen, daemon=True)
        run.listens.start()
        return run

    listens: threading.Thread = field(default_factory=threading.Thread)

    def listen(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as said:
            self.lines += said.read().splitlines()

    @property
    def child(self) -> int:
        """The process that does the work."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(path.read_text().split()[0])

    @property
    def said(self) -> str:
        """Its last line."""
        self.listens.join(5)
        return next((line for line in reversed(self.lines) if line.strip()), "")


@dataclass
class Fault:
    """What is done, to which process, and how it must end."""

    do: Callable[[Run], None]
    process: int
    statuses: tuple[int | None, int | None]
    """Of process 0 and 1; None of one that is frozen."""
    words: tuple[str, str]
    """Which each says at the end."""


def kill(number: int) -> Callable[[Run], None]:
    return lambda run: os.kill(run.child, number)


def kill_parent(run: Run) -> None:
    run.process.kill()


def tell(run: Run) -> None:
    run.process.terminate()


GONE = "another process is gone|process [01], .*does not answer|has not been heard of"
RAISED = "RuntimeError: the disk of this machine is gone"
STOPPED = r"interrupted after \d+ steps, saved"
FAULTS = {
    "process 1 killed": Fault(kill(signal.SIGKILL), 1, (1, 1), (GONE, "was ended by SIGKILL")),
    "process 0 killed": Fault(kill(signal.SIGKILL), 0, (1, 1), ("was ended by SIGKILL", GONE)),
    "process 1 frozen": Fault(kill(signal.SIGSTOP), 1, (1, None), (GONE, "")),
    "process 0 frozen": Fault(kill(signal.SIGSTOP), 0, (None, 1), ("", GONE)),
    "process 1 raises": Fault(
        kill(signal.SIGUSR1), 1, (1, 1), (GONE, "RuntimeError: the disk of this machine is gone")
    ),
    "process 0 raises": Fault(
        kill(signal.SIGUSR1), 0, (1, 1), ("RuntimeError: the disk of this machine is gone", GONE)
    ),
    "the parent of process 1 killed": Fault(kill_parent, 1, (1, -9), (GONE, "")),
    "the parent of process 0 killed": Fault(kill_parent, 0, (-9, 1), ("", GONE)),
    "process 1 told to stop (SIGTERM)": Fault(tell, 1, (143, 143), (STOPPED, STOPPED)),
    "process 0 told to stop (SIGTERM)": Fault(tell, 0, (143, 143), (STOPPED, STOPPED)),
}
EARLY = "the data of process 1 end early"
QUICK = ("process 1 killed", "process 1 told to stop (SIGTERM)")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(*words: str) -> list[str]:
    return [sys.executable, "-m", "jbp", "train", "--quiet", *words]


def run_words(at: Path, folder: Path) -> list[str]:
    return train(
        *("--net", f"{at / 'net.py'}:net", "--epochs", str(EPOCHS), "--patience", "0", "--optimizer", "sgd"),
        *("--save-every", f"{EVERY}steps", "--out", str(folder)),
    )


def started(words: Callable[[int], list[str]], count: int = 2) -> list[Run]:
    """The processes of a run."""
    port = free_port()
    place = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count)]
    return [Run.start([*words(i), *place, "--process", str(i)]) for i in range(count)]


def wait_for_checkpoint(folder: Path, runs: list[Run]) -> None:
    until = time.monotonic() + 400
    while not Checkpoints.finished(folder / CHECKPOINTS):
        common.require(time.monotonic() < until, "no checkpoint within seven minutes")
        common.require(all(run.process.poll() is None for run in runs), f"ended early: {[run.said for run in runs]}")
        time.sleep(0.05)
    time.sleep(0.2)


def wait_for_all(runs: list[Run], began: float) -> float:
    """Seconds until all have ended."""
    for run in runs:
        try:
            run.process.wait(max(0.1, began + 2 * LIMIT - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise common.ClaimFailed(f"{run.process.args} hangs") from error
    return time.monotonic() - began


def fault(name: str, at: Path, whole: dict[str, np.ndarray]) -> dict[str, Any]:
    """Do it, and see what comes of it."""
    case, folder = FAULTS[name], at / "run"
    shutil.rmtree(folder, ignore_errors=True)
    runs = started(lambda i: run_words(at, folder))
    try:
        wait_for_checkpoint(folder, runs)
        victim = runs[case.process]
        pid = victim.child
        case.do(victim)
        began = time.monotonic()
        frozen = None in case.statuses
        seconds = wait_for_all([run for run in runs if not (frozen and run is victim)], began)
        common.require(seconds < LIMIT, f"{name}: {seconds:.0f} s until all had ended")
        if frozen:
            with suppress(ProcessLookupError):  # its parent may have given it up
                os.kill(pid, signal.SIGCONT)
            wait_for_all(runs, time.monotonic())
        return report(name, runs, seconds, folder, whole)
    finally:
        end(runs)


def report(name: str, runs: list[Run], seconds: float, folder: Path, whole: dict[str, np.ndarray]) -> dict[str, Any]:
    """The row: how they ended, as they must; and what was lost."""
    case = FAULTS[name]
    for i, (run, status, words) in enumerate(zip(runs, case.statuses, case.words, strict=True)):
        found = run.process.returncode
        common.require(status in (None, found), f"{name}: process {i} ended with {found}: {run.lines[-5:]}")
        common.require(re.search(words, run.said), f"{name}: process {i} said {run.said!r}")
        common.require(len(run.said) == 0 or not run.said.startswith(" "), f"{name}: process {i} said {run.said!r}")
    kept = Checkpoints.finished(folder / CHECKPOINTS)[0]
    return {
        "what": name, "seconds": round(seconds, 1), "status": [run.process.returncode for run in runs],
        "said": [plain(run.said, folder) for run in runs], "lost": lost(folder, whole), "went on from step": kept,
    }  # fmt: skip


def plain(said: str, folder: Path) -> str:
    """Without what differs from machine to machine."""
    said = re.sub(r"\(UNKNOWN.*?\)$|\(.*Gloo.*\)", "(…)", said.replace(str(folder), "RUN"))
    return re.sub(r"127\.0\.0\.1:\d+", "HOST:PORT", said)


def lost(folder: Path, whole: dict[str, np.ndarray]) -> str:
    """What a run has lost, once it has gone on in one process: nothing, or what differs."""
    words = train("--resume", str(folder), "--net", f"{folder.parent / 'net.py'}:net")
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    common.require(done.returncode == 0, f"it does not go on: {done.stderr}")
    found = params(folder)
    error = max(float(np.abs(found[name] - a).max() / np.abs(a).max()) for name, a in whole.items())
    return "nothing" if error < ALIKE else f"parameters, by {error:.1g}"


def params(folder: Path) -> dict[str, np.ndarray]:
    loaded = jbp.load(folder)
    leaves = jax.tree_util.tree_leaves_with_path(loaded.params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def end(runs: list[Run]) -> None:
    """Whatever is left of them."""
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
        run.process.wait()
        run.listens.join(5)


# Data that end early, which `jbp train` has none of: a script, and a stream in it


def child(folder: Path, coordinator: str, count: int, process: int) -> None:
    """Train on a stream; that of process 1 ends in the third epoch."""
    x, y = np.random.default_rng(0).normal(size=(320, 8)).astype(np.float32), np.arange(320, dtype=np.int32) % 3

    class Batches:
        taken = 0

        def __iter__(self) -> Any:
            for i in range(10):
                if process == 1 and self.taken == 25:
                    return
                self.taken += 1
                yield x[32 * i : 32 * i + 32], y[32 * i : 32 * i + 32]

    net = jbp.serial(jbp.Dense(16), jbp.tanh, jbp.Dense(3))
    with hosts.as_one(coordinator, count, process):
        mesh = jax.make_mesh((jax.device_count(),), ("data",))
        jbp.fit(
            net, jbp.losses.softmax_cross_entropy, jbp.optim.sgd(0.1), jbp.data.Stream(Batches(), 10), epochs=5,
            sharding=mesh, save_to=folder, save_every="1000steps", chunk_steps=5,
        )  # fmt: skip


def early(at: Path) -> dict[str, Any]:
    """All stop at the batch that is missing, and keep what was reached."""
    folder, coordinator = at / "early", f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    runs = [Run.start([sys.executable, __file__, "--child", str(folder), coordinator, "2", str(i)]) for i in range(2)]
    try:
        wait_for_all(runs, began)
    finally:
        end(runs)
    for i, run in enumerate(runs):
        common.require(run.process.returncode == 1, f"process {i} ended with {run.process.returncode}: {run.lines}")
        common.require(re.search("BadBatch: batch 2[1-6] of", run.said), f"process {i} said {run.said!r}")
    kept = Checkpoints.finished(folder / CHECKPOINTS)
    common.require(kept == [20], f"kept {kept}")
    return {
        "what": EARLY, "seconds": None, "status": [1, 1], "said": [plain(run.said, folder) for run in runs],
        "lost": "nothing", "went on from step": kept[0],
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """What was done, how long it took, and what was lost, in Markdown."""
    lines = [
        "| what was done | seconds until all had ended | status of 0, of 1 | process 0 said | process 1 said | lost |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seconds = "at once" if row["seconds"] is None else f"{row['seconds']:.1f}"
        status, said = ", ".join(map(str, row["status"])), [line.replace("|", "\\|") for line in row["said"]]
        lines.append(f"| {row['what']} | {seconds} | {status} | {said[0]} | {said[1]} | {row['lost']} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with that table between its comments."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    common.require(rest and after, f"{PAGE.name} has no {BEGIN.strip()} … {END.strip()}")
    return before + BEGIN + table(rows) + END + after


def run_of(at: Path) -> dict[str, np.ndarray]:
    """The parameters of a run that nothing happens to, in one process."""
    with (at / "net.py").open("w") as file:
        file.write(NET)
    done = subprocess.run(run_words(at, at / "whole"), capture_output=True, text=True, timeout=170)
    common.require(done.returncode == 0, done.stderr)
    return params(at / "whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", metavar="WORDS", help="faults with this in their name")
    parser.add_argument("--child", nargs=4, metavar=("FOLDER", "COORDINATOR", "N", "I"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, coordinator, count, process = options.child
        child(Path(folder), coordinator, int(count), int(process))
        return
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    names = [n for n in (*FAULTS, EARLY) if options.only is None or options.only in n]
    common.require(names, f"nothing is called {options.only!r}: {', '.join((*FAULTS, EARLY))}")
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch)
        whole = run_of(at)
        for name in [n for n in names if n in QUICK] if options.quick else names:
            row = early(at) if name == EARLY else fault(name, at, whole)
            print(json.dumps(row, ensure_ascii=False), flush=True)
            if not options.quick:
                keep(row)


def keep(row: dict[str, Any]) -> None:
    """The row among those that are there, in the result and in the page."""
    saved = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = {one["what"]: one for one in [*saved, row]}
    kept = [rows[name] for name in (*FAULTS, EARLY) if name in rows]
    common.write(RESULT, {"versions": versions(), "rows": kept})
    common.save(PAGE, with_table(PAGE.read_text(), kept))


if __name__ == "__main__":
    main()
