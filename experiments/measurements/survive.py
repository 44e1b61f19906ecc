"""Do runs survive? Real runs, killed at random, their checkpoints damaged, their disk filled: what was lost.

    python experiments/measurements/survive.py           about twenty minutes; writes experiments/results/survive.json
                                                         and its table into docs/surviving.md
    python experiments/measurements/survive.py --only signals  a section, or a kind of run that is killed; the rows of
                                                               the others stay as they are
    python experiments/measurements/survive.py --quick         half a minute, nothing written

kills        `jbp train --save-every 1s` is killed with SIGKILL while it starts, trains and saves, and goes on with
             --resume, again and again: 25 times in one long run, 5 times in each of several kinds of run. Parameters,
             history and summary are those of a run that was never stopped, to the bit; once a checkpoint exists every
             resume goes on from a step above 0; all steps executed together are at most 1.5 times the run's
signals      SIGTERM and Ctrl-C: what the process says and with which status it ends; a second signal
corruptions  200 files of checkpoints flipped, cut off, zeroed or deleted: each is named, and the run goes on from the
             checkpoint before, to the same bits
bad batches  streams that raise, end, or change shape or dtype at a random batch, or hold NaN or what overflows, and
             files of rows that hold such: the batch and the row are named, and a run of a stream, mended, goes on to
             the same bits
full disks   a small file system (tmpfs, which root may mount) is filled while the run saves: it says so with status
             1, and goes on once there is room

A row says what was done, how often, and what was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import jax
import numpy as np

import jbp
from jbp.cli.training import versions
from jbp.durable.checkpoints import Checkpoints
from jbp.durable.manifest import MANIFEST, Damaged, verified
from jbp.durable.saver import CHECKPOINTS

RESULT = common.RESULTS / "survive.json"
PAGE = Path(__file__).parents[2] / "docs" / "surviving.md"
BEGIN, END = "<!-- what was lost -->\n", "<!-- end of what was lost -->"
SECTIONS = ("kills", "signals", "corruptions", "bad batches", "full disks")
CLOCKS = {"seconds", "examples_per_second", "resumed_at", "sha256"}
"""What differs between two runs that are the same, sha256 because it is of files that hold the others."""
LONG = ("--patience", "0")
KINDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "one long run": (2400, LONG),
    "dropout and patience": (700, ("--patience", "5000")),
    "a learning rule": (
        900,
        ("--net", "512 relu 256 relu", "--rule", "feedback_alignment", "--learning-rate", "0.01", *LONG),
    ),
    "private, with a seed": (300, ("--net", "64 relu", "--private", "--seed", "1")),
    "many seeds": (300, ("--net", "256 relu dropout:0.2", "--seeds", "0:3", *LONG)),
    "batch normalisation": (700, ("--net", "512 batchnorm relu 256 batchnorm relu", *LONG)),
    "a streamed source": (700, ("--net", "512 relu 256 relu dropout:0.2", *LONG)),
    "in place": (1500, ()),
}
"""Epochs, and words of the command; the run in place is one of `jbp.fit`, which alone can. All train on the digits."""


@dataclass
class Row:
    """What was done, and what came of it."""

    section: str
    what: str
    done: int = 0
    lost: str = "nothing"
    more: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return {"section": self.section, "what": self.what, "done": self.done, "lost": self.lost} | self.more


# Kills


def words(kind: str, folder: Path, epochs: int, goes_on: bool) -> list[str]:
    if kind == "in place":
        return [sys.executable, __file__, "--child", str(folder), str(epochs)]
    if goes_on:
        return [sys.executable, "-m", "jbp", "train", "--resume", str(folder)]
    options = ["--epochs", str(epochs), "--save-every", "1s", "--out", str(folder), *KINDS[kind][1]]
    if kind == "a streamed source":
        options += ["--data", str(rows_on_disk(folder.parent / "rows"))]
    return [sys.executable, "-m", "jbp", "train", *options]


def rows_on_disk(folder: Path) -> Path:
    """The digits as .npy files, x in two shards, which are read while they are trained on."""
    if not folder.exists():
        folder.mkdir()
        data = jbp.data.load_dataset("digits")
        for name in ("train", "test"):
            x, y = (np.asarray(getattr(data, f"{letter}_{name}")) for letter in "xy")
            for i, part in enumerate(np.array_split(x.reshape(len(x), -1), 2)):
                np.save(folder / f"x_{name}-{i:03d}.npy", part)
            np.save(folder / f"y_{name}.npy", y)
    return folder


def child(folder: Path, epochs: int) -> None:
    """A run in place: it goes on if it was begun."""
    data = jbp.data.load_dataset("digits")
    x, y = (np.asarray(a) for a in (data.x_train, data.y_train))
    net = jbp.serial(jbp.Dense(512), jbp.relu, jbp.Dropout(0.4), jbp.Dense(256), jbp.relu, jbp.Dense(10))
    rows = folder / "metrics.jsonl"

    epoch, begun = -(-len(x) // 32), []

    def note(event: jbp.Event) -> None:
        if not begun:
            begun.append(event.step - epoch)
            if begun[0]:
                print(f"going on from step {begun[0]}", file=sys.stderr, flush=True)
        if event.row is not None:
            with rows.open("a") as file:
                file.write(json.dumps(event.row) + "\n")

    found = jbp.fit(
        net, jbp.losses.softmax_cross_entropy, jbp.optim.sgd(0.05, momentum=0.9), (x.reshape(len(x), -1), y),
        epochs=epochs, in_place=True, callbacks=(note,), chunk_steps=epoch, save_to=folder, save_every="1s",
        resume=True,
    )  # fmt: skip
    common.require((found.resumed_at or (0,))[-1] == begun[0], f"{found.resumed_at}, but the first chunk says {begun}")
    jbp.checkpoint.save(folder / "params.safetensors", found.params)
    history = [{name: value for name, value in row.items() if name not in CLOCKS} for row in found.history]
    common.write(folder / "summary.json", {"history": history, "resumed_at": list(found.resumed_at)})


def left(folder: Path) -> tuple[Any, Any, Any]:
    """Everything that a run leaves but its clocks."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    params = folder / "params.safetensors"
    if "history" in summary:  # in place: what is in metrics.jsonl was written by the callback, and not cut back
        rows = summary["history"]
    bare = [{name: value for name, value in row.items() if name not in CLOCKS} for row in (*rows, summary)]
    return bare[:-1], bare[-1], params.read_bytes() if params.exists() else None


def executed(folder: Path, begun: int, epoch: int) -> int:
    """At most how many steps a process took that went on from `begun`: to its last epoch's end, and an `epoch`."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    last = max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)
    return max(0, int(last) - begun) + epoch


def saving(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    try:
        return any(not (p / MANIFEST).exists() for p in (folder / CHECKPOINTS).iterdir() if p.name.isdecimal())
    except OSError:
        return False


def kills(kind: str, times: int, epochs: int, scratch: Path, rng: np.random.Generator) -> Row:
    """Kill one run so many times, at three kinds of moments in turn, and let it end."""
    row = Row("kills", kind)
    whole, folder = scratch / "whole", scratch / "run"
    began = time.perf_counter()
    subprocess.run(words(kind, whole, epochs, False), check=True, capture_output=True)
    alone = time.perf_counter() - began
    steps = int(left(whole)[0][-1]["step"])
    moments = {"starting": 0, "training": 0, "saving": 0}
    total, begun, zero, longest = 0, 0, 0, ""
    wanted = [list(moments)[i % 3] for i in range(times)]
    while True:
        had = bool(Checkpoints.finished(folder / CHECKPOINTS))
        process = subprocess.Popen(
            words(kind, folder, epochs, folder.exists()), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        moment = wanted[row.done] if row.done < times else None
        hit = _kill(process, folder, moment, rng) if moment else ""
        _, said = process.communicate()
        found = [line for line in said.splitlines() if "going on from step" in line]
        at = int(found[-1].rpartition("step ")[2].replace(",", "")) if found else 0
        zero += had and not at and moment != "starting"
        if found or not had:  # one that was to go on, and was killed before it said from where, has taken no step
            total += executed(folder, at, steps // epochs)
        begun = max(begun, at)
        if not hit:
            if process.returncode:
                longest = said.splitlines()[-1] if said else f"status {process.returncode}"
            break
        moments[hit] += 1
        row.done += 1
    same = not longest and left(folder) == left(whole)
    resumed = json.loads((folder / "summary.json").read_text()).get("resumed_at", []) if not longest else []
    row.more = moments | {
        "the same bits": same, "resumed at": resumed, "resumes from step 0 though a checkpoint was there": zero,
        "steps executed, of the run's": round(total / steps, 3), "seconds alone": round(alone, 1),
        "seconds in all": round(time.perf_counter() - began - alone, 1),
    }  # fmt: skip
    row.lost = longest or ("nothing" if same and not zero else "not the same bits" if not same else "a resume from 0")
    few = times < 5 or total <= 1.5 * steps  # three kills of a quick run are many
    common.require(same and not zero and few, f"kills, {kind}: {row.json()}")
    return row


def _kill(process: subprocess.Popen[str], folder: Path, moment: str, rng: np.random.Generator) -> str:
    """Kill at a moment of this kind; answers with the kind it was, "" if the run ended before."""
    before = Checkpoints.finished(folder / CHECKPOINTS)
    if moment == "starting":
        time.sleep(rng.uniform(0.0, 2.0))
    else:
        while process.poll() is None and Checkpoints.finished(folder / CHECKPOINTS)[:1] == before[:1]:
            time.sleep(0.002)  # it has saved once, so that the next attempt is further on
        if moment == "training":
            time.sleep(rng.uniform(0.0, 1.0))
        while moment == "saving" and process.poll() is None and not saving(folder):
            time.sleep(0.0005)
        if moment == "saving":
            time.sleep(rng.uniform(0.0, 0.05))
    inside = moment != "starting" and saving(folder)  # while it starts, what a kill before left may still be there
    if process.poll() is not None:
        return ""
    process.kill()
    process.wait()
    return "saving" if inside else "training" if moment == "saving" else moment


def all_kills(quick: bool, only: str | None, scratch: Path) -> list[Row]:
    rng, rows = np.random.default_rng(0), []
    for kind, (epochs, _) in KINDS.items():
        if kind != ("dropout and patience" if quick else only or kind):
            continue
        folder = scratch / kind.replace(" ", "_").replace(",", "")
        folder.mkdir()
        times, epochs = (3, 150) if quick else (25 if kind == "one long run" else 5, epochs)
        rows.append(kills(kind, times, epochs, folder, rng))
        say(rows[-1])
    return rows


# Signals

HEARING = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "jbp"
runpy.run_module("jbp", run_name="__main__", alter_sys=True)
"""
"""`python -m jbp`, which hears Ctrl-C even if this runs in a shell's background (`preexec_fn` would fork)."""


def _step(folder: Path) -> int:
    return int(folder.name) if (folder / MANIFEST).exists() else -1


def signals(scratch: Path) -> list[Row]:
    rows = []
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        for second in (False, True):
            row = Row("signals", f"{number.name}{', twice' * second}", 1)
            folder = scratch / f"{number.name}{second}"
            options = ["train", "--epochs", "5000", "--save-every", "1s", "--out", str(folder), *LONG]
            command = [sys.executable, "-c", HEARING, *options]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            while process.poll() is None and not Checkpoints.finished(folder / CHECKPOINTS):
                time.sleep(0.01)
            sent = time.perf_counter()
            process.send_signal(number)
            if second:
                time.sleep(0.01)
                process.send_signal(number)
            _, said = process.communicate()
            row.more = {"status": process.returncode, "seconds": round(time.perf_counter() - sent, 2)}
            row.more |= {"said": said.splitlines()[-1].replace(str(folder), "RUN")}
            row.more |= {"the last checkpoint": verified(max((folder / CHECKPOINTS).glob("[0-9]*"), key=_step))["step"]}
            common.require(process.returncode == status, f"signals: {row.json()}")
            rows.append(row)
            say(row)
    return rows


# Corruptions


def corrupt(path: Path, rng: np.random.Generator) -> str:
    """Flip a bit, cut off, zero a stretch or delete."""
    data, kind = bytearray(path.read_bytes()), str(rng.choice(["flipped", "cut off", "zeroed", "deleted"]))
    if kind == "deleted" or not data:
        path.unlink()
        return "deleted"
    at = int(rng.integers(len(data)))
    if kind == "flipped":
        data[at] ^= 1 << int(rng.integers(8))
    if kind == "cut off":
        del data[at:]
    if kind == "zeroed":
        if not any(data[at : at + 64]):
            data[at] ^= 255  # it was zero already
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    path.write_bytes(data)
    return kind


def corruptions(times: int, scratch: Path) -> list[Row]:
    """Damage one file, of the newest checkpoint or of both, and go on."""
    rng, rows = np.random.default_rng(1), {}
    x, y = rng.normal(size=(64, 8)).astype(jax.dtypes.canonicalize_dtype(float)), rng.integers(0, 3, 64)
    net, optimizer = jbp.serial(jbp.Dense(16), jbp.relu, jbp.Dense(3)), jbp.optim.sgd(0.1, momentum=0.9)

    def fit(folder: Path | None, **more: Any) -> jbp.Fit:
        options: dict[str, Any] = {"epochs": 6, "batch_size": 8, "chunk_steps": 4}
        options |= {"save_to": folder, "save_every": "8steps"}
        return jbp.fit(net, jbp.losses.softmax_cross_entropy, optimizer, (x, y), **options | more)

    whole = fit(None, save_every="60s")
    begun = scratch / "begun"
    fit(begun, callbacks=(lambda event: event.step >= 36,))
    newest, before = Checkpoints.finished(begun / CHECKPOINTS)
    for _ in range(times):
        folder = scratch / "damaged"
        shutil.copytree(begun, folder)
        both = rng.random() < 0.2
        hit = []
        for step in (newest, before)[: 1 + both]:
            files = sorted(p for p in (folder / CHECKPOINTS / str(step)).rglob("*") if p.is_file())
            path = files[rng.integers(len(files))]
            hit.append((path, corrupt(path, rng)))
        kind = hit[0][1] if not both else "both checkpoints"
        row = rows.setdefault(kind, Row("corruptions", kind, more={"went on from before": 0, "refused": 0}))
        row.done += 1
        gone = [path.name == MANIFEST and not path.exists() for path, _ in hit]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = fit(folder, resume=True)
            except Damaged as error:
                row.more["refused"] += 1
                common.require(both and error.file in [path for path, _ in hit], f"refused wrongly: {error}")
            else:
                row.more["went on from before"] += 1
                same = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found.params, whole.params))
                named = gone[0] or any(str(hit[0][0]) in str(w.message) for w in said)
                at = found.resumed_at[0] if found.resumed_at else 0
                common.require(
                    same and named and at == (before if not both else 0), f"{hit}, resumed at {at}, {named}, {same}"
                )
        shutil.rmtree(folder)
    found = [rows[kind] for kind in sorted(rows)]
    for row in found:
        say(row)
    return found


# Bad batches


BREAKS = ("raises", "ends early", "another shape", "another dtype", "not a number", "too large a number")


@dataclass(frozen=True)
class Breaking:
    """Batches of which one, counted from 1, is not as it should be; 0 is none."""

    batches: list[tuple[np.ndarray, np.ndarray]]
    bad: int = 0
    how: str = ""
    row: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for number, (x, y) in enumerate(self.batches, 1):
            if number != self.bad:
                yield x, y
            elif self.how == "raises":
                raise OSError("the disk is gone")
            elif self.how == "ends early":
                return
            elif self.how == "another shape":
                yield x[:, 1:], y
            elif self.how == "another dtype":
                yield x.astype(np.float16), y
            else:
                x = x.copy()
                x[self.row] = np.nan if self.how == "not a number" else np.finfo(x.dtype).max
                yield x, y


def bad_batches(times: int, scratch: Path) -> list[Row]:
    """A stream that breaks at a random batch, then mended and gone on with; NaN in a random row of a file."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(48, 8, 8)).astype(jax.dtypes.canonicalize_dtype(float)), rng.integers(0, 3, (48, 8))
    batches = list(zip(x, y, strict=True))
    net, optimizer = jbp.serial(jbp.Dense(16), jbp.relu, jbp.Dense(3)), jbp.optim.sgd(0.1, momentum=0.9)

    def fit(data: Any, folder: Path | None, **more: Any) -> jbp.Fit:
        options: dict[str, Any] = {"epochs": 6, "chunk_steps": 4, "save_to": folder, "save_every": "8steps"} | more
        return jbp.fit(net, jbp.losses.softmax_cross_entropy, optimizer, data, **options)

    def stream(*how: Any) -> jbp.data.Stream:
        return jbp.data.Stream(Breaking(batches, *how), steps=8)

    whole = fit(stream(), None, save_every="60s")
    rows = {how: Row("bad batches", f"a stream: {how}", more={"most steps taken again": 0}) for how in BREAKS}
    for i in range(times):
        how, bad, at = BREAKS[i % len(BREAKS)], int(rng.integers(2, len(batches) + 1)), int(rng.integers(8))
        bad += how == "ends early" and bad % 8 == 1  # with an epoch a stream may end: it is begun anew
        folder, row = scratch / "stream", rows[how]
        try:
            fit(stream(bad, how, at), folder)
            raise AssertionError(f"batch {bad} of a stream: {how}: went through without a word")
        except jbp.train.BadBatch as error:
            named = how != BREAKS[-1] and error.batch == bad and (how != "not a number" or f"row {at}," in str(error))
            common.require(named, f"{how} at {bad}, row {at}: {error}")
        except jbp.Diverged as error:
            at_fault = None if error.place is None else (error.place.step, error.place.example)
            common.require(how == BREAKS[-1] and at_fault == (bad, at), f"{how} at {bad}, row {at}: {error}")
            common.require(error.batch is not None and error.batch.exists(), f"{how} at {bad}: no batch was kept")
        ended = fit(stream(), folder, resume=True)
        begun = ended.resumed_at[0] if ended.resumed_at else 0
        same = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), ended.params, whole.params))
        # An epoch of 8 steps is read as one block, and saved before the next: no more than one is lost.
        common.require(same and bad - 1 - begun <= 8, f"{how} at {bad}: resumed at {begun}, the same bits: {same}")
        row.more["most steps taken again"] = max(row.more["most steps taken again"], bad - 1 - begun)
        row.done += 1
        shutil.rmtree(folder)
    row = Row("bad batches", f"a file of rows: {BREAKS[-1]}", more={"skipped": 0})
    path, flat = scratch / "x.npy", x.reshape(-1, 8)
    for _ in range(max(1, times // len(BREAKS))):
        at = int(rng.integers(len(flat)))
        np.save(path, np.where(np.arange(len(flat))[:, None] == at, np.finfo(flat.dtype).max, flat))
        data = jbp.data.Rows(np.load(path, mmap_mode="r")), y.reshape(-1)
        try:
            fit(data, None, save_every="60s", batch_size=8, epochs=1)
            raise AssertionError(f"row {at}: went through without a word")
        except jbp.Diverged as error:
            common.require(error.place is not None and error.place.row == at, f"row {at}: {error}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says how many were skipped
            ended = fit(data, None, save_every="60s", batch_size=8, epochs=1, on_bad="skip")
        finite = all(bool(np.isfinite(a).all()) for a in jax.tree.leaves(ended.params))
        common.require(finite and ended.skipped_steps == 1, f"row {at}: {ended.skipped_steps} steps were skipped")
        row.more["skipped"] += 1
        row.done += 1
    found = [*rows.values(), row]
    for row in found:
        say(row)
    return found


# Full disks


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Any:
    """A file system of that size there; None where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True
    )
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def full_disks(times: int, scratch: Path) -> list[Row]:
    """Fill the disk while the run saves; make room; go on."""
    row = Row("full disks", "filled while the run saves")
    epochs = 500
    subprocess.run(words("one long run", scratch / "whole", epochs, False), check=True, capture_output=True)
    with small_disk(scratch / "disk", 24) as disk:
        if disk is None:
            row.lost = "not tried: this user may not mount a file system"
            say(row)
            return [row]
        said = ""
        for _ in range(times):
            folder, filler = disk / "run", disk / "filler"
            process = subprocess.Popen(
                words("one long run", folder, epochs, False),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            while process.poll() is None and not Checkpoints.finished(folder / CHECKPOINTS):
                time.sleep(0.01)
            with filler.open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(1 << 16))
                    except OSError:
                        break
            _, err = process.communicate()
            said = err.splitlines()[-1]
            common.require(
                process.returncode == 1 and "could not be written" in said, f"status {process.returncode}: {said}"
            )
            filler.unlink()
            ended = subprocess.run(words("one long run", folder, epochs, True), capture_output=True, text=True)
            common.require(ended.returncode == 0, ended.stderr[-500:])
            common.require(left(folder) == left(scratch / "whole"), "not the same bits after a full disk")
            row.done += 1
            shutil.rmtree(folder)
        row.more = {"status": 1, "said": said.replace(str(disk), "DISK"), "then": "went on to the same bits"}
    say(row)
    return [row]


# The table


def table(rows: list[dict[str, Any]]) -> str:
    """What was done, how often, and what was lost, in Markdown."""
    lines = ["| what was done | how often | what was lost | |", "| --- | --- | --- | --- |"]
    for row in rows:
        more = {name: value for name, value in row.items() if name not in Row.__dataclass_fields__}
        resumed = more.pop("resumed at", None)
        told = [f"{name}: {str(value).lower() if isinstance(value, bool) else value}" for name, value in more.items()]
        told += [f"resumed {len(resumed)} times"] if resumed else []
        lines.append(f"| {row['section']}: {row['what']} | {row['done']} | {row['lost']} | {'; '.join(told)} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with that table between its comments."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    common.require(rest and after, f"{PAGE} has no {BEGIN.strip()} … {END.strip()}")
    return before + BEGIN + table(rows) + END + after


def say(row: Row) -> None:
    print(json.dumps(row.json(), ensure_ascii=False), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=[*SECTIONS, *KINDS], metavar="SECTION or KIND", help=", ".join(SECTIONS))
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "EPOCHS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), int(options.child[1]))
        return
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    began, found = time.perf_counter(), []
    section = "kills" if options.only in KINDS else options.only
    kind = options.only if options.only in KINDS else None
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        sections: dict[str, Callable[[Path], list[Row]]] = {
            "kills": lambda at: all_kills(options.quick, kind, at),
            "signals": signals,
            "corruptions": lambda at: corruptions(20 if options.quick else 200, at),
            "bad batches": lambda at: bad_batches(6 if options.quick else 240, at),
            "full disks": lambda at: full_disks(1 if options.quick else 5, at),
        }
        for one, run in sections.items():
            if section in (None, one) and not (options.quick and one in ("signals", "full disks")):
                at = scratch / one.replace(" ", "_")
                at.mkdir()
                found += [row.json() for row in run(at)]
    if options.quick:
        return
    saved = json.loads(RESULT.read_text()) if options.only and RESULT.exists() else {"rows": [], "minutes": 0.0}
    rows = {(row["section"], row["what"]): row for row in [*saved["rows"], *found]}
    order = [
        (one, kind) for one in SECTIONS for kind in (KINDS if one == "kills" else [w for s, w in rows if s == one])
    ]
    kept = [rows[place] for place in order if place in rows]
    minutes = saved["minutes"] + (time.perf_counter() - began) / 60
    common.write(RESULT, {"minutes": round(minutes, 1), "versions": versions(), "rows": kept})
    common.save(PAGE, with_table(PAGE.read_text(), kept))


if __name__ == "__main__":
    main()
