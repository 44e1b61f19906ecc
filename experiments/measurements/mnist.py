"""MNIST through the command line: a modern network with dropout, and the first network of Nielsen's book.

Claims, on the 10,000 test images, read once at the end of each run:
  dropout   784-512-512-10, ReLU and dropout: at least 98.3 % in at most 20 epochs (expected about 98.5 %, 2 minutes)
  nielsen   784-30-10, sigmoid units throughout, ½Σ(p−y)², learning rate 3, mini-batches of 10, normal initial weights
            and biases, 30 epochs: at least 94.5 % (expected about 95 %, 20 seconds). Source: M. Nielsen, "Neural
            networks and deep learning", 2015, chapter 1, whose network.py reports 95.42 % at its peak.

    python experiments/measurements/mnist.py [--quick]     both in full; --quick: an epoch each, nothing kept or checked
    needs MNIST, in $JBP_DATA_DIR for example; writes summary.json, metrics.jsonl, config.json and curves.png
    of each run to experiments/results/mnist_<name>/

The commands that it runs are printed, and can be typed. The drop rates, rate and batch size
were chosen among five by the loss on the validation part (6,000 of the training images).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common

import jbp

COMMANDS = {
    "dropout": (
        'train --data mnist --net "dropout:0.1 512 relu dropout:0.3 512 relu dropout:0.3" '
        "--learning-rate 0.05 --schedule cosine --batch-size 64 --epochs 20 --patience 0"
    ),
    "nielsen": (
        'train --data mnist --net "30 sigmoid" --output-activation sigmoid --loss l2_loss --optimizer sgd '
        "--learning-rate 3 --batch-size 10 --schedule constant --epochs 30 --patience 0 "
        "--init standard_normal --bias-init standard_normal"
    ),
}
NEED = {"dropout": 0.983, "nielsen": 0.945}


def run(name: str, quick: bool) -> float:
    """Run one command and keep its results, without the parameters; answers with the test accuracy."""
    command = COMMANDS[name] + (" --epochs 1" if quick else "")
    print(f"\njbp {command}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        subprocess.run([sys.executable, "-m", "jbp", *shlex.split(command), "--out", str(out)], check=True)
        accuracy = json.loads((out / "summary.json").read_text())["test_accuracy"]
        if not quick:
            kept = common.RESULTS / f"mnist_{name}"
            for file in ("summary.json", "config.json"):
                common.write(kept / file, json.loads((out / file).read_text()))
            for file in ("metrics.jsonl", "curves.png"):
                shutil.copyfile(out / file, kept / file)
    return accuracy


def check(name: str, accuracy: float) -> None:
    """Raise unless the accuracy is reached."""
    assert accuracy >= NEED[name], f"{name}: test accuracy {accuracy} is below {NEED[name]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one epoch each, nothing written or checked")
    quick = parser.parse_args().quick
    if quick and "JBP_DATA_DIR" not in os.environ:  # a quick look must not start a download
        print("MNIST is not here, so nothing was run: set JBP_DATA_DIR to the folder that its folder mnist is in")
        sys.exit(0)
    try:
        jbp.data.load("mnist", "test")
    except (ValueError, OSError) as error:
        print(f"MNIST is not here, so nothing was run: {error}", file=sys.stderr)
        sys.exit(0 if quick else 2)
    for name in COMMANDS:
        accuracy = run(name, quick)
        if not quick:
            check(name, accuracy)
