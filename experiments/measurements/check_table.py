"""Run `jbp check` whole, save its rows, and put its table into docs/check.md.

python experiments/measurements/check_table.py               about a minute on two free cores
writes experiments/results/check.json and, in docs/check.md, what stands between the comments «jbp check»
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import jax

from jbp.cli.check import Check

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "check.md", ROOT / "README.md"


def main() -> int:
    """Answers with the exit status: 1 if something failed, and then nothing is written."""
    began, used = time.perf_counter(), time.process_time()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        rows = Check(markdown=True)()
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    if not all(row.passed for row in rows):
        print(printed.getvalue())
        return 1
    kept = [
        {
            "kind": row.kind,
            "name": row.name,
            "dtype": row.dtype,
            "against": list(row.oracles),
            "worst": row.detail,
            "compared": row.report["compared"],
            "passed": row.passed,
        }
        for row in rows
    ]
    result = {
        "command": "python experiments/measurements/check_table.py (jbp check, without its single comparisons)",
        "jax": jax.__version__,
        "seed": 0,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "units": "worst: error of what is allowed, in eps × the magnitude of the leaf; that of the largest share",
        "rows": kept,
    }
    common.write(common.RESULTS / "check.json", result)
    table = "\n".join(line for line in printed.getvalue().splitlines() if line.startswith("|"))
    page = PAGE.read_text()
    page = re.sub(
        r"(<!-- jbp check -->\n).*?(<!-- end of jbp check -->)", lambda m: f"{m[1]}{table}\n{m[2]}", page, flags=re.S
    )
    page = re.sub(r"in \d+ s of processor time", f"in {cpu:.0f} s of processor time", page)
    count = f"{len({row['name'] for row in kept})} items, {sum(row['compared'] for row in kept):,} numbers"
    for path, words in ((PAGE, page), (README, README.read_text())):
        common.save(path, re.sub(r"\d+ items, [\d,]+ numbers", count, words))
    print(f"{len(rows)} checks passed in {seconds:.0f} s, {cpu:.0f} s of processor time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
