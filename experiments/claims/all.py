"""Every claim of the lectures, one script after another, and the table of all of them: experiments/README.md.

    python experiments/claims/all.py              in full, 25 minutes on two cores; writes results, pictures, table
    python experiments/claims/all.py --quick      every script in a few seconds, nothing written
    python experiments/claims/all.py --seeds 1:4  in full with the seeds 1, 2, 3: does each claim hold with those too?
                                                  Into results/further_seeds.json and the table; --only NAME … for some
    python experiments/claims/all.py --table      only the table, from the saved results

A script that fails does not stop the others; the exit status is 1 if any did. A claim that its saved result contradicts
stays in the table, marked.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import claim
from common import RESULTS, save, write

CLAIMS = (
    "from_scratch",
    "lecture_algorithm",
    "gd_and_sgd",
    "momentum",
    "one_by_one",
    "sum_over_paths",
    "backward_is_a_network",
    "backward_of_convolution",
    "backward_of_attention",
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

EXPERIMENTS = claim.HERE.parent
PAGE = EXPERIMENTS / "README.md"
FURTHER = RESULTS / "further_seeds.json"


def table() -> str:
    """The table, from the saved results."""
    lines = [
        "# The claims of the lectures, run",
        "",
        "One row a claim: what theory predicts, what was measured, and the picture. Each script says in its first",
        "lines what it claims, where the claim comes from, and how long it takes; `make experiments` runs them all and",
        "writes this page from `results/`. A number here is a number of the saved file beside its picture. The further",
        "seeds were run in full, by `all.py --seeds`; what was measured with each is in `results/further_seeds.json`.",
        "",
        "| | claim | predicted | measured | further seeds | picture |",
        "| ---: | --- | --- | --- | --- | --- |",
    ]
    seeds = further()
    for number, name in enumerate(CLAIMS, 1):
        script = claim.load(name)
        title = f"[{_title(script.__doc__)}](claims/{name}.py)"
        saved = RESULTS / f"{name}.json"
        if not saved.exists():
            lines.append(f"| {number} | {title} | | not run yet | | |")
            continue
        result: dict[str, Any] = json.loads(saved.read_text())
        predicted, measured = (text.replace("|", "\\|") for text in script.summary(result))
        failure = claim.verdict(script, result).replace("|", "\\|")
        measured = f"**does not hold**: {failure}; {measured}" if failure else measured
        picture = f"results/{name}.png"
        shown = f'<img src="{picture}" width="320">' if (EXPERIMENTS / picture).exists() else ""
        held = _of_seeds(seeds.get(name, {}))
        lines.append(f"| {number} | {title} | {predicted} | {measured} | {held} | {shown} |")
    lines += ["", "Besides the lectures' claims:", ""]
    for path in sorted((EXPERIMENTS / "measurements").glob("*.py")):
        title = _title(ast.get_docstring(ast.parse(path.read_text())))
        lines.append(f"- [{path.name}](measurements/{path.name}): {title}")
    return "\n".join(lines) + "\n"


def further() -> dict[str, dict[str, dict[str, Any]]]:
    """What further seeds gave: by script and seed, whether the claim holds, and what was measured."""
    return json.loads(FURTHER.read_text()) if FURTHER.exists() else {}


def _of_seeds(rows: dict[str, dict[str, Any]]) -> str:
    """A cell of the table: with which seeds the claim holds, and with which it does not."""
    holds = [seed for seed, row in rows.items() if not row["failure"]]
    fails = [f"**{seed} does not hold**: {row['failure']}" for seed, row in rows.items() if row["failure"]]
    held = [f"{', '.join(holds)} hold{'s' * (len(holds) == 1)}"] if holds else []
    return "; ".join(held + fails).replace("|", "\\|") or "not run"


def _title(doc: str | None) -> str:
    return (doc or "").strip().split("\n")[0].rstrip(".")


def once(name: str, *options: str) -> int:
    """Run one script; answers with its exit status."""
    began = time.perf_counter()
    status = subprocess.run([sys.executable, str(claim.HERE / f"{name}.py"), *options], check=False).returncode
    if status == 130:
        raise KeyboardInterrupt
    print(f"  {name}: {'failed' if status else 'done'} in {time.perf_counter() - began:.0f} s", flush=True)
    return status


def with_seed(name: str, seed: int, options: list[str]) -> int:
    """Run one script with another seed, and keep whether its claim holds, and what was measured, if it ran in full."""
    with tempfile.TemporaryDirectory() as folder:
        status = once(name, *options, "--seed", str(seed), "--out", folder)
        saved = Path(folder) / f"{name}.json"
        if not options and saved.exists():
            keep(name, seed, json.loads(saved.read_text()))
    return status


def keep(name: str, seed: int, result: dict[str, Any]) -> None:
    """Add a row to further_seeds.json, in the order of the claims and of the seeds."""
    script, found = claim.load(name), further()
    row = {"failure": claim.verdict(script, result), "measured": script.summary(result)[1]}
    row |= {key: result[key] for key in ("date", "seconds", "versions")}
    found[name] = dict(sorted((found.get(name, {}) | {str(seed): row}).items(), key=lambda item: int(item[0])))
    write(FURTHER, {name: found[name] for name in CLAIMS if name in found})


def seeds_of(text: str) -> range:
    """The seeds A to B − 1 of "A:B"."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"expected two whole numbers A:B with A below B, such as 1:4, got {text!r}")
    return range(int(first), int(last))


def main() -> int:
    """Run what is asked for; answers with the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="every script in a few seconds, nothing written")
    parser.add_argument("--seeds", type=seeds_of, metavar="A:B", help="with the seeds from A to B − 1 instead")
    parser.add_argument("--only", nargs="+", choices=CLAIMS, metavar="NAME", default=CLAIMS, help="these scripts only")
    parser.add_argument("--table", action="store_true", help="only the table, from the saved results")
    chosen = parser.parse_args()
    options, failed = ["--quick"] if chosen.quick else [], []
    for name in () if chosen.table else chosen.only:
        if chosen.seeds:
            failed += [f"{name} with seed {seed}" for seed in chosen.seeds if with_seed(name, seed, options)]
        elif once(name, *options):
            failed.append(name)
    if not chosen.quick:
        save(PAGE, table())
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
