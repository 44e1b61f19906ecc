"""What the sections of the benchmark share: timing in turn, counted figures, targets, tables, and comparing results.

A section is a script `experiments/bench/<section>.py` with

    TITLE                             what it measures, a phrase
    run(size: Size) -> list[Row]      measures; asserts that all contenders compute the same before it times them
    plot(rows) -> figure or None      a picture from the saved rows alone
    notes(rows) -> list[str]          if there, lines below the table

A `Row` is one case (a net, a batch) with its `Figure`s: a counted figure (`counted`: FLOPs, bytes) is the same in every
run; a timed one is a median with its 5 to 95 % range. A figure may have a target. Nothing here decides what is timed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(path) for path in (HERE, HERE.parent) if str(path) not in sys.path]
sys.path += [str(ROOT / "tests")]  # for `counting`

import common  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

PEERS = ("torch", "equinox", "flax", "scikit-learn", "backpack-for-pytorch", "opacus")
Size = Literal["quick", "bench", "full"]
Program = Callable[..., Any]


@dataclass(frozen=True)
class Figure:
    """One number: counted, or the median of rounds with its 5 and 95 % quantiles.

    `target` is a bound on the median (on `value`, if counted); with `reaches` it is enough that the range reaches it.
    `better` says on which side of the target it should lie, and which change of a counted figure is a loss; None: the
    figure is there to be read, not judged, as what another library costs.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    counted: bool = False
    target: float | None = None
    better: Literal["lower", "higher"] | None = None
    reaches: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one, or without a value."""
        if self.target is None or self.value is None or self.better is None:
            return None
        best = self.value
        if self.reaches and self.low is not None and self.high is not None:
            best = self.low if self.better == "lower" else self.high
        return best <= self.target if self.better == "lower" else best >= self.target

    def __str__(self) -> str:
        """The value, its range, and ! where the target is missed."""
        if self.value is None:
            return self.note or "missing"
        text = short(self.value)
        if self.low is not None and self.high is not None:
            text += f" ({short(self.low)} to {short(self.high)})"
        return f"{text} !" if self.met is False else text


@dataclass(frozen=True)
class Row:
    """One case and its figures."""

    name: str
    figures: tuple[Figure, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)


def counted(name: str, value: float, target: float | None = None, better: Any = "lower") -> Figure:
    """A figure that is the same in every run."""
    return Figure(name, float(value), counted=True, target=target, better=better)


def timed(name: str, values: Any, target: float | None = None, better: Any = "lower", reaches: bool = True) -> Figure:
    """The median of the rounds and its range."""
    values = np.asarray(values, float)
    low, high = (float(q) for q in np.quantile(values, [0.05, 0.95]))
    side = better if target is not None else None
    return Figure(name, float(np.median(values)), low, high, target=target, better=side, reaches=reaches)


def missing(name: str, why: str = "missing") -> Figure:
    """A figure that could not be measured: never a win."""
    return Figure(name, None, note=why)


def in_turn(contenders: dict[str, Callable[[], Any]], rounds: int, warm: int = 3) -> dict[str, np.ndarray]:
    """Seconds of each contender in each round; every other round runs them in the opposite order.

    What is faster than 2 ms is called so often that a sample lasts that long. What is faster than 50 ms, or than twice
    the fastest if that is, is called once more before each sample, so that it is not timed with the caches as the one
    before left them.
    """
    out, best = None, dict.fromkeys(contenders, np.inf)
    for name, run in contenders.items():
        for _ in range(max(1, warm)):
            began = time.perf_counter()
            jax.block_until_ready(run())
            best[name] = min(best[name], time.perf_counter() - began)
    calls = {name: max(1, min(100, int(2e-3 / max(took, 1e-9)))) for name, took in best.items()}
    fastest = min(best.values())
    short_ones = {name for name, took in best.items() if fastest < 0.05 and took < max(0.05, 2 * fastest)}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds):
        for name in list(contenders)[:: 1 if i % 2 else -1]:
            if name in short_ones:
                jax.block_until_ready(contenders[name]())
            began = time.perf_counter()
            for _ in range(calls[name]):
                out = contenders[name]()
            jax.block_until_ready(out)
            times[name].append((time.perf_counter() - began) / calls[name])
    return {name: np.asarray(values) for name, values in times.items()}


def compiled(function: Program, *args: Any, donate: Any = ()) -> Any:
    """The program for these arguments."""
    return jax.jit(function, donate_argnums=donate).lower(*args).compile()


def flops(program: Any) -> float:
    """FLOPs as XLA counts them (a loop's body once)."""
    return float(program.cost_analysis()["flops"])


def bytes_accessed(program: Any) -> float:
    """Bytes read and written, as XLA counts them."""
    return float(program.cost_analysis()["bytes accessed"])


def temporaries(program: Any) -> int:
    """Bytes of temporaries as XLA plans them: all that a step needs besides its arguments and results."""
    return int(program.memory_analysis().temp_size_in_bytes)


def program_size(program: Any) -> int:
    """Instructions of the optimised program; of the machine code's bytes XLA says nothing on the CPU."""
    return program.as_text().count(" = ")


def same(ours: Any, theirs: Any, what: str, rtol: float = 1e-5) -> None:
    """Refuse to compare what does not compute the same."""
    assert np.isfinite(ours).all(), f"{what}: the loss is not finite"
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=rtol, err_msg=f"{what}: not the same loss")


def has(*packages: str) -> bool:
    """Whether these packages are installed."""
    try:
        for package in packages:
            importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def machine() -> dict[str, Any]:
    """Where and with what a result was made."""
    packages = ("jax", "jaxlib", "numpy", "optax", *PEERS)
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
        if cpu.exists()
        else []
    )
    return {
        "python": platform.python_version(),
        "versions": {
            package: importlib.metadata.version(package) if has(package) else "missing" for package in packages
        },
        "device": jax.devices()[0].device_kind,
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def to_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows as plain data."""
    return [dataclasses.asdict(row) for row in rows]


def from_json(rows: list[dict[str, Any]]) -> list[Row]:
    """Rows from plain data."""
    return [Row(row["name"], tuple(Figure(**figure) for figure in row["figures"]), row["facts"]) for row in rows]


def markdown(rows: list[Row]) -> str:
    """The rows as a table; ! marks a target that is missed."""
    names = list(dict.fromkeys(figure.name for row in rows for figure in row.figures))
    lines = ["| case | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for row in rows:
        of = {figure.name: str(figure) for figure in row.figures}
        lines.append(f"| {row.name} | " + " | ".join(of.get(name, "") for name in names) + " |")
    return "\n".join(lines)


def targets(rows: list[Row]) -> list[str]:
    """One line for each target: how many cases meet it, and which miss it."""
    lines = []
    named = {(f.name, f.reaches) for row in rows for f in row.figures if f.target is not None}
    order = list(dict.fromkeys(f.name for row in rows for f in row.figures))
    for name, reaches in sorted(named, key=lambda pair: (order.index(pair[0]), pair[1])):
        found = [(row, f) for row in rows for f in row.figures if f.name == name]
        judged = [(row, f) for row, f in found if f.met is not None and f.reaches == reaches]
        if not judged:
            continue
        bounds = sorted({f"{'≤' if f.better == 'lower' else '≥'} {f.target:g}" for _, f in judged})
        by = "the range reaches " if reaches and any(f.low is not None for _, f in judged) else ""
        lost = [f"{row.name}: {f}".removesuffix(" !") for row, f in judged if not f.met]
        absent = sum(f.value is None for _, f in found)
        line = f"- {name}, {by}{' or '.join(bounds)}: {len(judged) - len(lost)} of {len(judged)}"
        line += f"; missed: {'; '.join(lost)}" if lost else ""
        lines.append(line + (f"; {absent} not measured" if absent else ""))
    return lines


def changes(old: list[Row], new: list[Row]) -> list[str]:
    """What changed beyond noise; a counted figure that lost more than 10 % is a LOSS.

    So is one that vanished from its case. Of counted figures less is better, unless they say otherwise.
    """
    before = {(row.name, f.name): f for row in old for f in row.figures}
    lines = []
    for row in new:
        for f in row.figures:
            was = before.get((row.name, f.name))
            if was is None or f.value is None or was.value is None:
                if (was is None) != (f.value is None):
                    lines.append(f"{row.name}, {f.name}: {was} -> {f}")
                continue
            words = f"{row.name}, {f.name}: {short(was.value)} -> {short(f.value)}"
            if f.counted:
                worse = f.value < was.value / 1.1 if f.better == "higher" else f.value > was.value * 1.1
                worse = worse and f.better is not None
                if worse or f.value != was.value:
                    lines.append(("LOSS " if worse else "") + words)
            elif None not in (f.low, f.high, was.low, was.high) and (f.low > was.high or f.high < was.low):  # type: ignore[operator]
                lines.append(words)
    there = {(row.name, f.name) for row in new for f in row.figures}
    rows = {row.name for row in new}
    lines += [f"{row.name}: not measured now" for row in old if row.name not in rows]
    lines += [f"LOSS {row.name}, {f.name}: not measured now" for row in old for f in row.figures
              if row.name in rows and f.counted and (row.name, f.name) not in there]  # fmt: skip
    return lines


def progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    """Items with a live line on a terminal."""
    return common.progress(items, what)


def plain_ticks(ax: Any, values: Iterable[Any]) -> None:
    """Ticks of a logarithmic axis at these values, as numbers."""
    values = sorted(set(values))
    ax.set_xticks(values, [str(value) for value in values])
    ax.set_xticks([], minor=True)


def short(value: float) -> str:
    """Three digits."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:.2e}"
