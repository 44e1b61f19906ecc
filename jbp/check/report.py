"""What a check found: one entry a leaf and law; shown with what failed first and what passed in a line for each law."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "skip"]


class CheckFailed(AssertionError):
    """A check that did not pass; its text is the report's."""


@dataclass(frozen=True)
class Entry:
    """One law at one leaf: how far found and expected lie apart, where, and against which oracle."""

    law: str
    path: str
    """The leaf, as `jax.tree_util.keystr` writes it."""
    oracle: str
    verdict: Verdict
    error: float = 0.0
    """The largest error, in units of eps(dtype) × magnitude."""
    allowed: float = 0.0
    """The largest error that passes, in the same units."""
    level: str = ""
    magnitude: float = 0.0
    index: tuple[int, ...] | None = None
    """Where in the leaf the largest error sits."""
    expected: float | None = None
    """The expected value there; and `found`, the found one."""
    found: float | None = None
    compared: int = 0
    """How many numbers were compared. A report in which nothing was compared does not pass."""
    dtype: str = ""
    device: str = ""
    precision: str = ""
    diagnosis: str | None = None
    """A guess at the kind of mistake, where one fits."""
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The entries of one check.

    passed ⟺ no entry failed, and at least one compared something and passed.
    """

    subject: str
    entries: tuple[Entry, ...]

    @property
    def failures(self) -> tuple[Entry, ...]:
        """The entries that failed."""
        return tuple(entry for entry in self.entries if entry.verdict == "fail")

    @property
    def compared(self) -> int:
        """How many numbers were compared."""
        return sum(entry.compared for entry in self.entries)

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something was compared."""
        return not self.failures and any(e.verdict == "pass" and e.compared for e in self.entries)

    @property
    def worst(self) -> Entry | None:
        """The entry whose error is the largest part of what it may be; a failed one before any other."""
        return max(self.entries, key=_severity, default=None)

    @property
    def diagnosis(self) -> str | None:
        """The first guess at the kind of mistake."""
        return next((e.diagnosis for e in self.failures if e.diagnosis), None)

    def raise_if_failed(self) -> Report:
        """Itself if it passed.

        Raises:
            CheckFailed: with the report's text.
        """
        if not self.passed:
            raise CheckFailed(str(self))
        return self

    def __str__(self) -> str:
        """What failed, with details; what was not compared, and why; and a line for each law that held."""
        return self.text()

    def text(self, full: bool = False) -> str:
        """The same; or with `full` a line for every comparison, in place of one for each law."""
        lines = [f"{self.subject}: {self._headline()}"]
        for entry in self.failures:
            lines.append(f"FAIL {entry.law} at {entry.path} against {entry.oracle}: {_detail(entry)}")
        rows = [row for row in self._rows(full) if full or row[-2] != "fail"]
        if len(rows) == 1:
            return "\n".join(lines)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data. Numbers that JSON has no name for (NaN, inf) become their names."""
        entries = [{k: _plain(v) for k, v in asdict(entry).items()} for entry in self.entries]
        return {"subject": self.subject, "passed": self.passed, "compared": self.compared, "entries": entries}

    def to_json(self, indent: int | None = None) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def to_markdown(self, full: bool = False) -> str:
        """The report as a Markdown table, what failed first; with `full` every comparison has a row."""
        heads, *rows = self._rows(full)
        lines = [f"**{_cell(self.subject)}**: {self._headline()}", ""]
        if self.failures:
            lines += [*(f"- `{e.path}`, {_cell(e.law)}: {_cell(_detail(e))}" for e in self.failures), ""]
        lines += [
            "| " + " | ".join(_cell(cell) for cell in row) + " |" for row in (heads, ("---",) * len(heads), *rows)
        ]
        return "\n".join(lines)

    def _rows(self, full: bool) -> list[tuple[str, ...]]:
        """The heads, and a row for each comparison, failed ones first; or one for all that passed a law alike."""
        entries = sorted(self.entries, key=lambda entry: ("fail", "skip", "pass").index(entry.verdict))
        if full:
            return [_COLUMNS, *map(_row, entries)]
        groups: dict[Any, list[Entry]] = {}
        for entry in entries:
            reason = "" if entry.verdict == "pass" else _remark(entry)
            alone = entry.path if entry.verdict == "fail" else ""
            groups.setdefault((entry.verdict, entry.law, entry.oracle, reason, alone), []).append(entry)
        return [_FOLDED, *map(_fold, groups.values())]

    def _headline(self) -> str:
        if self.failures:
            laws = dict.fromkeys(entry.law for entry in self.failures)
            return f"FAILED ({', '.join(laws)})"
        if not self.passed:
            return "FAILED (nothing was compared)"
        return f"passed, {self.compared} numbers compared"


def joined(subject: str, reports: Iterable[Report]) -> Report:
    """Many reports as one; entries say whose they are. One that compared nothing fails the whole."""
    entries: list[Entry] = []
    for report in reports:
        entries += [Entry(**{**asdict(e), "path": f"{report.subject}: {e.path}"}) for e in report.entries]
        if not report.passed and not report.failures:
            entries.append(Entry("something compared", report.subject, "-", "fail", note="nothing was compared"))
    return Report(subject, tuple(entries))


_COLUMNS = ("law", "leaf", "oracle", "error", "allowed", "dtype", "device", "precision", "verdict", "remark")
_FOLDED = ("law", "leaves", "oracle", "worst error", "allowed", "verdict", "remark")


def _row(entry: Entry) -> tuple[str, ...]:
    head = (entry.law, entry.path, entry.oracle, *_numbers(entry))
    return (*head, entry.dtype, entry.device, entry.precision, entry.verdict, _remark(entry))


def _fold(entries: list[Entry]) -> tuple[str, ...]:
    """One row for entries that agree in law, oracle and verdict."""
    worst = max(entries, key=_severity)
    paths = list(dict.fromkeys(entry.path for entry in entries))
    leaves = ", ".join(paths) if len(", ".join(paths)) <= 32 else f"{len(paths)} leaves"
    remark = "" if worst.verdict == "pass" else _remark(worst)
    return (worst.law, leaves, worst.oracle, *_numbers(worst), worst.verdict, remark)


def _numbers(entry: Entry) -> tuple[str, str]:
    if not entry.compared:
        return "", ""
    return f"{entry.error:.3g}", f"{entry.allowed:.4g} {entry.level}".rstrip()


def _remark(entry: Entry) -> str:
    remark = (entry.diagnosis or entry.note).replace("\n", " ")
    return remark if len(remark) <= 100 else remark[:97] + "..."


def _detail(entry: Entry) -> str:
    parts = []
    if entry.compared:
        where = f" at {list(entry.index)}" if entry.index is not None else ""
        parts.append(
            f"error {entry.error:.3g} × eps({entry.dtype}) × {entry.magnitude:.3g}, allowed {entry.allowed:.3g}; "
            f"expected {entry.expected!r}, found {entry.found!r}{where}"
        )
    if entry.diagnosis:
        parts.append(f"looks like: {entry.diagnosis}")
    if entry.note:
        parts.append(entry.note)
    return "; ".join(parts)


def _severity(entry: Entry) -> tuple[int, float]:
    share = entry.error / entry.allowed if entry.allowed else entry.error
    return {"skip": 0, "pass": 1, "fail": 2}[entry.verdict], math.inf if math.isnan(share) else share


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
