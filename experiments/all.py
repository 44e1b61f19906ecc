"""Every claim of the lectures, one script after another, and the table of all of them: experiments/README.md.

    python experiments/all.py             in full, under 25 minutes on two cores; writes results, pictures and the table
    python experiments/all.py --quick     every script in a few seconds, nothing written
    python experiments/all.py --table     only the table, from the saved results

A script that fails does not stop the others; the exit status is 1 if any did.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import claim

CLAIMS = (
    "from_scratch",
    "lecture_algorithm",
    "gd_and_sgd",
    "momentum",
    "one_by_one",
    "sum_over_paths",
    "backward_is_a_network",
    "vanishing_gradients",
    "minibatch_is_monte_carlo",
    "shallow_and_deep",
    "softmax_meets_cross_entropy",
    "overparametrised",
    "dropout_regularises",
    "learned_features",
    "forward_backward",
    "sgd_samples",
    "mnist_networks",
)
"""The scripts of one claim each, in the order of the lectures."""

MORE = ("digits", "mnist", "what_to_save", "one_backward_pass", "learning_rules", "private_mnist")
"""Measurements with results of their own, linked below the table."""


def table() -> str:
    """The table, from the saved results."""
    lines = [
        "# The claims of the lectures, run",
        "",
        "One row a claim: what theory predicts, what was measured, and the picture. Each script says in its first",
        "lines what it claims, where the claim comes from, and how long it takes; `make experiments` runs them all and",
        "writes this page from `results/`. A number here is a number of the saved file beside its picture.",
        "",
        "| | claim | predicted | measured | picture |",
        "| ---: | --- | --- | --- | --- |",
    ]
    for number, name in enumerate(CLAIMS, 1):
        script = claim.load(name)
        title = _title(script)
        saved = claim.RESULTS / f"{name}.json"
        if not saved.exists():
            lines.append(f"| {number} | [{title}]({name}.py) | | not run yet | |")
            continue
        result: dict[str, Any] = json.loads(saved.read_text())
        predicted, measured = (text.replace("|", "\\|") for text in script.summary(result))
        picture = f"results/{name}.png"
        shown = f'<img src="{picture}" width="320">' if (claim.HERE / picture).exists() else ""
        lines.append(f"| {number} | [{title}]({name}.py) | {predicted} | {measured} | {shown} |")
    lines += ["", "Besides the lectures' claims:", ""]
    for name in MORE:
        if (claim.HERE / f"{name}.py").exists():
            lines.append(f"- [{name}.py]({name}.py): {_title(claim.load(name))}")
    return "\n".join(lines) + "\n"


def _title(script: Any) -> str:
    return (script.__doc__ or "").strip().split("\n")[0].rstrip(".")


def main() -> int:
    """Run what is asked for; answers with the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="every script in a few seconds, nothing written")
    parser.add_argument("--table", action="store_true", help="only the table, from the saved results")
    options = parser.parse_args()
    failed = []
    if not options.table:
        for name in CLAIMS:
            began = time.perf_counter()
            command = [sys.executable, str(claim.HERE / f"{name}.py"), *(["--quick"] if options.quick else [])]
            status = subprocess.run(command, check=False).returncode
            if status:
                failed.append(name)
            print(f"  {name}: {'failed' if status else 'done'} in {time.perf_counter() - began:.0f} s", flush=True)
    if not options.quick:
        claim.save(claim.HERE / "README.md", table())
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
