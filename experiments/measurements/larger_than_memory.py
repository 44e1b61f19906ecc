"""Data larger than memory: how far reading hides behind training, and how much memory it takes

Claims: overlap = (load + step − both)/min(load, step) is at least 0.6, where load is the time to read an epoch's blocks
and put them on the device, step that of its steps on data in memory, both that of training on what is read; and the
peak of anonymous memory (`RssAnon` of /proc/self/status: mapped pages are not memory in use) of training on Rows is the
same to ±20 MB for 49 to 784 MB of data. Each case runs in a process of its own, with one thread for XLA, so that the
second of two cores is there for reading; times are the least of an epoch's, of which the first, which compiles, is left
out.

    python experiments/measurements/larger_than_memory.py [--quick]   5 min, 900 MB of disk; --quick: 30 s, no file
    writes experiments/results/larger_than_memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import numpy as np

RESULT = common.RESULTS / "larger_than_memory.json"
WIDTH, CLASSES, BATCH, EPOCHS = 784, 10, 128, 8
ROW = 4 * WIDTH
MEGABYTES, QUICK_MEGABYTES = (49, 196, 784), (10, 40)
OVERLAP_ON, QUICK_OVERLAP_ON = 196, 40
KINDS = "standardised rows", "slow stream"
LEAST_OVERLAP, MOST_APART = 0.6, 20.0
WAIT = 2e-3
"""Seconds that a batch of the slow stream keeps one waiting, as a network does."""


def write_data(folder: Path, megabytes: int) -> None:
    """x_train.npy of this size, and y_train.npy."""
    n = megabytes * 1_000_000 // ROW
    rng = np.random.default_rng(0)
    x = np.lib.format.open_memmap(folder / "x_train.npy", "w+", np.float32, (n, WIDTH))
    for first in range(0, n, 4096):
        x[first : first + 4096] = rng.normal(size=(len(x[first : first + 4096]), WIDTH))
    x.flush()
    np.save(folder / "y_train.npy", rng.integers(0, CLASSES, n))


def in_a_process(case: str, folder: Path) -> dict[str, Any]:
    """What `case` answers, in a process with one thread for XLA."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    words = [sys.executable, __file__, "--inside", case, str(folder)]
    done = subprocess.run(words, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def fitted(data: Any, epochs: int = EPOCHS) -> Any:
    import jbp

    net = jbp.serial(jbp.Dense(256), jbp.relu, jbp.Dense(CLASSES))
    size = None if isinstance(data, jbp.data.Stream) else BATCH
    loss, optimizer = jbp.losses.softmax_cross_entropy, jbp.optim.sgd(0.01, momentum=0.9)
    return jbp.fit(net, loss, optimizer, data, epochs=epochs, batch_size=size, seed=0)


def epoch_seconds(data: Any) -> float:
    """Of an epoch of training, the least but for the first."""
    at = [row["seconds"] for row in fitted(data).history]
    return float(np.diff(at).min())


def slow(x: Any, y: Any) -> Iterator[Any]:
    """Batches that come over a slow line, again and again."""
    while True:
        for first in range(0, len(x) - BATCH + 1, BATCH):
            time.sleep(WAIT)
            yield x[first : first + BATCH], y[first : first + BATCH]


def overlap(folder: Path, kind: str) -> dict[str, Any]:
    """Seconds of load, step and both, of Rows or of a slow stream."""
    import jax

    import jbp
    from jbp.train.clocks import Length
    from jbp.train.streams import Blocks, opened

    x, y = jbp.data.from_folder(folder)
    if kind != "slow stream":
        x = jbp.data.Standardizer.fit(x)(x)
    steps = len(x) // BATCH

    def made() -> Any:
        return (x, y) if kind != "slow stream" else jbp.data.Stream(slow(x, y), steps=steps)

    data = opened("train_data", made())
    assert data is not None
    data.check = lambda x, y, weights: None
    source = data.source(data.batch_size(None if data.usual else BATCH), "shuffle", None, Length(EPOCHS))
    at = [time.perf_counter()]
    for block in Blocks(source, jax.random.key(0)):
        jax.block_until_ready(block.block)
        if block.last == len(source.sizes):
            at.append(time.perf_counter())
    load, step = float(np.diff(at)[1:].min()), epoch_seconds((np.asarray(x), np.asarray(y)))
    both = epoch_seconds(made())
    return {"data": kind, "load_s": load, "step_s": step, "both_s": both,
            "overlap": (load + step - both) / min(load, step)}  # fmt: skip


def anonymous() -> float:
    """RssAnon in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    raise SystemExit("/proc/self/status has no RssAnon: this is measured on Linux only")


def memory(folder: Path) -> dict[str, Any]:
    """The peak of anonymous memory while training on Rows, looked at every 5 ms."""
    import jbp

    peak, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    x, y = jbp.data.from_folder(folder)
    watching = threading.Thread(target=look)
    watching.start()
    fit = fitted((jbp.data.Standardizer.fit(x)(x), y), epochs=2)
    over.set()
    watching.join()
    return {"rows": len(x), "megabytes": len(x) * ROW / 1e6, "peak_anonymous_mb": peak[0],
            "examples_per_second": round(fit.history[-1]["examples_per_second"])}  # fmt: skip


def check(result: dict[str, Any]) -> None:
    """Both claims."""
    for row in result["overlap"]:
        common.require(row["overlap"] >= LEAST_OVERLAP, f"overlap of {row['data']} is {row['overlap']:.2f}")
    peaks = [row["peak_anonymous_mb"] for row in result["memory"]]
    common.require(max(peaks) - min(peaks) <= 2 * MOST_APART, f"peaks from {min(peaks):.0f} to {max(peaks):.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small data, nothing saved or checked")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        case, folder = args.inside[0], Path(args.inside[1])
        print(json.dumps(memory(folder) if case == "memory" else overlap(folder, case)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, QUICK_OVERLAP_ON if args.quick else OVERLAP_ON)
        overlaps = [
            in_a_process(kind, folder) for kind in common.progress(("standardised rows", "slow stream"), "overlap")
        ]
        for megabytes in common.progress(QUICK_MEGABYTES if args.quick else MEGABYTES, "memory"):
            write_data(folder, megabytes)
            rows.append(in_a_process("memory", folder))
    for row in (*overlaps, *rows):
        print(
            ", ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    if args.quick:
        return
    import jax

    result = {"jax": jax.__version__, "python": sys.version.split()[0], "cores": os.cpu_count(), "width": WIDTH,
              "batch": BATCH, "overlap": overlaps, "memory": rows}  # fmt: skip
    check(result)
    common.write(RESULT, result)


if __name__ == "__main__":
    main()
