"""docs/mutants.md, from the saved results of mutate.py here and experiments/measurements/check_grads_blindness.py.

python tests/mutation/mutate_page.py
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "experiments"))

from common import RESULTS, save

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mutants.md"
STRUCTURE = ("tree", "shapes", "dtypes", "protocol", "key")
"""The laws that compare no numbers."""


def write() -> None:
    """Write the page."""
    save(PAGE, page())


def page() -> str:
    """The text of the page."""
    mutants, others = (json.loads((RESULTS / f"{n}.json").read_text()) for n in ("mutants", "check_grads"))
    return "\n\n".join([*_one_at_a_time(mutants), *_beside_others(others), *_traps(others)]) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def kind(law: str) -> str:
    """What a mutant shows that fails this law first."""
    if law == "runs" or law.startswith("raises"):
        return "does not run"
    return "wrong structure" if law in STRUCTURE else "wrong number"


def counted(laws: dict[str, int]) -> dict[str, int]:
    """How many mutants were caught by a wrong number, by a wrong structure, or because they do not run at all."""
    kinds = ("wrong number", "wrong structure", "does not run")
    return {k: sum(n for law, n in laws.items() if kind(law) == k) for k in kinds}


def _one_at_a_time(saved: dict[str, Any]) -> list[str]:
    summary, rows = saved["summary"], saved["mutants"]
    laws, kinds = summary["caught_by"], summary["caught_as"]
    same = summary["survived"] - summary["unexplained"]
    files: dict[str, list[str]] = {}
    for m in rows:
        files.setdefault(m["file"], []).append(m["verdict"])
    return [
        "# Mutants",
        "A check that has never failed proves nothing. So jbp's code is made wrong on purpose, and the public checks "
        "of `jbp.check` must say so.",
        "## One change at a time",
        "`make mutants` changes one operator, sign, index or term at a time in everything that computes a derivative, "
        "contracts a pair or takes a step, and runs the public checks that reach the line, until one fails. Finite "
        f"differences are off. Numbers from `experiments/results/mutants.json`, jax {summary['versions']['jax']}.",
        _table(
            ("made", "caught", *(f"… as: {k}" for k in kinds), "held by another test", "equivalent", "unexplained"),
            [(summary["made"], summary["caught"], *kinds.values(), summary["held"], same, summary["unexplained"])],
        ),
        "A mutant that does not run is no test of a check that compares numbers, so it is counted apart.",
        _table(("first law to fail", "caught as", "mutants"), [(f"`{law}`", kind(law), n) for law, n in laws.items()]),
        "`runs`: the mutant does not trace; `raises …`: it cannot be built.",
        _table(
            ("file", "mutants", "held by another test", "equivalent"),
            [(f"`jbp/{f}`", len(all_), all_.count("held"), all_.count("survived")) for f, all_ in files.items()],
        ),
        "### Not equivalent, held by another test",
        "Another function, rightly differentiated (or another refusal, another structure): no check of derivatives "
        "can tell. The test named here can: it passes on the right code and was run on each of these, and failed.",
        _table(
            ("where", "change", "what it is", "failing test"),
            [(*_change(m), m["reason"], f"`{m['test']}`") for m in rows if m["verdict"] == "held"],
        ),
        "### Equivalent",
        "The same numbers from other code, and why:",
        _table(
            ("where", "change", "reason"),
            [(*_change(m), m["reason"]) for m in rows if m["verdict"] == "survived"],
        ),
    ]


def _change(mutant: dict[str, Any]) -> tuple[str, str]:
    return f"`{mutant['file']}`, {mutant['function']}", f"`{mutant['from']}` → `{mutant['to']}`"


def _beside_others(saved: dict[str, Any]) -> list[str]:
    columns, of, versions = saved["counts"], len(saved["mutants"]), saved["versions"]
    short = {"jbp.check": "jbp.check"} | {c: c.replace("assert_numerical_grads", "chex") for c in columns}

    def count(column: str, verdict: str) -> int:
        return sum(n for v, n in columns[column].items() if v.startswith(verdict))

    verdicts = ("caught", "missed", "rejects the right code", "no")
    cells = {"missed": "**missed**", "no": "—"}
    return [
        "## Beside other checkers",
        f"The {of} named mutants in `tests/mutation/`, as a `jax.custom_vjp` given to `jax.test_util.check_grads` and "
        "`chex.assert_numerical_grads` with default tolerances in reverse mode: "
        f"`python experiments/measurements/check_grads_blindness.py`, jax {versions['jax']}, chex {versions['chex']}, "
        "saved in `experiments/results/check_grads.json`. A dash: not a derivative of a function, so not given to "
        "them.",
        _table(("checker", *verdicts[:-1], "—"), [(c, *(count(c, v) for v in verdicts)) for c in columns]),
        _table(
            ("where", "mutant", "caught by jbp's law", *(short[c] for c in columns if c != "jbp.check")),
            [
                (
                    m["where"],
                    m["mutant"],
                    f"`{m['law']}`" if "law" in m else "**missed**",
                    *(cells.get(m[c], m[c]) for c in columns if c != "jbp.check"),
                )
                for m in saved["mutants"]
            ],
        ),
    ]


def _traps(saved: dict[str, Any]) -> list[str]:
    says = {True: "accepted", False: "rejected"}
    sees = {True: "seen", False: "not seen"}
    checkers = ("check_jvp", "jbp.check.custom_vjp")
    return [
        "## Two traps",
        "A tangent wrong by a factor, and whether it is accepted:",
        _table(
            ("dtype", "elements", "wrong by", *(f"`{c}`" for c in checkers)),
            [
                (r["dtype"], r["elements"], f"{r['wrong by']:g}", *(says[r[f"{c} accepts"]] for c in checkers))
                for r in saved["wrong tangents"]
            ],
        ),
        "Five mistakes, seen by a cotangent of ones and by a random one:",
        _table(
            ("mistake", "ones", "random"),
            [(r["mistake"], sees[r["ones"]], sees[r["random"]]) for r in saved["cotangents"]],
        ),
    ]


if __name__ == "__main__":
    write()
