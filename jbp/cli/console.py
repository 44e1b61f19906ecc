"""What the terminal shows: tables on standard output, and on standard error how a list of jobs goes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jbp.arguments import listed
from jbp.runs import to_json
from jbp.tracing import pictures
from jbp.tracing.result import HEADS, TITLES, Trace
from jbp.train.live import Line

_STOPS = {
    "epochs": "all epochs done",
    "patience": "no better for the patience",
    "interrupted": "interrupted",
    "bad batch": "ended by a bad batch",
    "diverged": "diverged",
}
_PARTS = {"train": "training"}
"""What the parts of the data are called where it is not what figures are named by."""


class JobsLine(Line):
    """Tells how a list of jobs goes."""

    def __init__(self, what: str, count: int):
        super().__init__(stays=False)
        self._what, self._count, self._done = what, count, 0
        self.show(f"{what} 0/{count}")

    def see(self, last: str) -> None:
        """One more job is done."""
        self._done += 1
        self.show(f"{self._what} {self._done}/{self._count}", last)


def form(json: bool, markdown: bool) -> str:
    """How a table is printed: "json", "markdown", or "table" for the terminal.

    Raises: ValueError if both are asked for.
    """
    if json and markdown:
        raise ValueError("expected one of --json and --markdown, got both")
    return "json" if json else "markdown" if markdown else "table"


_FOLDED_FROM = 4  # passed things of a kind, from which on they share a line


def print_checks(rows: list[Any], seconds: float, form: str, full: bool, own: bool) -> None:
    """What was checked, against which oracle, the worst error, the verdict: as a table, Markdown or JSON.

    In the terminal what failed comes first, with its report; what passed is a line for each kind, or `full` for each
    thing. Of things of the user's `own` the full reports are shown too.
    """
    if form == "json":
        print(json.dumps([row.report | {"kind": row.kind, "name": row.name} for row in rows], ensure_ascii=False))
        return
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    heads = ("what", "against", *(f"worst error in {dtype}" for dtype in dtypes), "verdict")
    names = dict.fromkeys(row.name for row in rows)
    things = [[row for row in rows if row.name == name] for name in names]
    if form == "markdown":
        for line in (heads, ("---",) * len(heads), *(_checked(thing[0].name, thing, dtypes) for thing in things)):
            print("| " + " | ".join(line) + " |")
        return
    for row in rows:
        if not row.passed or (full and own):
            print(f"{row.text}\n")
    table = _table(*heads)
    passed: dict[str, list[list[Any]]] = {}
    for thing in things:
        if all(row.passed for row in thing):
            passed.setdefault(thing[0].kind, []).append(thing)
        else:
            table.add_row(*map(escape, _checked(thing[0].name, thing, dtypes)), style="bold red")
    for kind, alike in passed.items():
        if full or len(alike) < _FOLDED_FROM:
            for thing in alike:
                table.add_row(*map(escape, _checked(thing[0].name, thing, dtypes)))
        else:
            plural = "es" if kind.endswith("s") else "s"
            what = f"{len(alike)} {kind}{plural}: {listed([thing[0].name for thing in alike], 6)}"
            table.add_row(*map(escape, _checked(what, [row for thing in alike for row in thing], dtypes)))
    Console().print(table)
    print("found of allowed, in eps × the largest number compared with; of each, what came closest to its bound")
    compared = sum(row.report["compared"] for row in rows)
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows)} checks, {compared:,} numbers compared, {failed} failed, {seconds:.0f} s")


def _checked(what: str, rows: list[Any], dtypes: list[str]) -> tuple[str, ...]:
    """The cells of one or more things: the worst error of all in each dtype."""
    oracles = ", ".join(dict.fromkeys(oracle for row in rows for oracle in row.oracles))
    worst = (max((row for row in rows if row.dtype == dtype), key=lambda row: row.worst).detail for dtype in dtypes)
    return (what, oracles, *worst, "pass" if all(row.passed for row in rows) else "FAIL")


def print_result(folder: Path, summary: dict[str, Any]) -> None:
    """What came out of a run."""
    table = _table("result", str(folder))
    for name in ("accuracy", "r2", "rmse", "bits_per_character", "perplexity", "loss"):
        for part in ("test", "train", "validation"):
            if f"{part}_{name}" in summary:
                words = _WORDS.get(name, name)
                table.add_row(f"{_PARTS.get(part, part)} {words}", _figure(f"{part}_{name}", summary[f"{part}_{name}"]))
    for name in summary.get("figures", ()):
        if f"{name}".partition("_")[0] not in ("test", "train", "validation"):
            table.add_row(escape(name), _figure(name, summary[name]))
    if not summary:
        table.add_row("none", "the run was cut short before it could write one")
    if "epochs" in summary:
        stopped, kept = summary["stop_reason"], summary["best_epoch"]
        counted = "steps" if "steps" in summary else "epochs"
        why = _STOPS.get(stopped, str(stopped)).replace("epochs", counted)
        table.add_row(counted, escape(f"{summary[counted]:,} ({why})"))
        unit = "evaluation" if counted == "steps" else "epoch"
        table.add_row("parameters kept", "those of the last step" if kept is None else f"those of {unit} {kept}")
    if summary.get("skipped_steps"):
        table.add_row("steps skipped", f"{summary['skipped_steps']:,}, which ended in a number that is not finite")
    if "examples" in summary:
        table.add_row("examples", escape(", ".join(_parts(summary))))
    if "net" in summary:
        table.add_row("network", escape(f"{summary['net']} ({summary['parameters']:,} parameters)"))
        table.add_row("loss", escape(summary["loss"]))
    if "epsilon" in summary:
        spent = "∞" if summary["epsilon"] is None else _figure("epsilon", summary["epsilon"])
        table.add_row("privacy", f"ε = {spent}, δ = {summary['delta']:g}, for one example more or less")
    if "epochs" in summary:
        table.add_row("speed", f"{_figure('examples_per_second', summary['examples_per_second'])} examples/s")
        table.add_row("time", f"{_figure('seconds', summary['seconds'])} s")
    Console().print(table)


def print_spread(folder: Path, summary: dict[str, Any]) -> None:
    """What came out of runs that differ in their seed: mean ± standard deviation."""
    table = _table("result", str(folder))
    for name, found in summary["spread"].items():
        part, _, word = name.partition("_")
        words = _WORDS.get(word, word)
        deviation = "" if found["std"] is None else f" ± {found['std']:.2g}"
        table.add_row(
            escape(f"{_PARTS.get(part, part)} {words}"),
            f"{_figure(name, found['mean'])}{deviation} ({found['runs']} runs)",
        )
    table.add_row("seeds", escape(f"{summary['seeds']}, mean ± standard deviation"))
    if summary["diverged"]:
        table.add_row("diverged", f"{summary['diverged']} of {len(summary['runs'])} runs, left out")
    table.add_row("epochs", _range([run["epochs"] for run in summary["runs"]]))
    table.add_row("network", escape(f"{summary['net']} ({summary['parameters']:,} parameters)"))
    table.add_row("loss", escape(summary["loss"]))
    if "seconds" in summary:
        table.add_row("time", f"{_figure('seconds', summary['seconds'])} s")
    Console().print(table)


_WORDS = {"r2": "R²", "rmse": "root mean squared error", "bits_per_character": "bits per character"}


def _range(counts: list[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def print_confusion(counts: list[list[int]], classes: list[str], part: str = "test") -> None:
    """How often each class was taken for which, and each class's share of right answers."""
    console, k = Console(), len(classes)
    short = max(map(len, classes)) <= 3
    names = [escape(name if short else f"{i} {name}"[:24]) for i, name in enumerate(classes)]
    heads = names if short else [str(i) for i in range(k)]
    cell = max(len(str(max(map(max, counts)))), max(map(len, heads))) + 2
    title = f"confusion matrix of the {_PARTS.get(part, part)} part: true classes down, predicted classes across"
    right = [f"{row[i] / sum(row):.1%}" if sum(row) else "–" for i, row in enumerate(counts)]
    if max(map(len, names)) + cell * k + 14 <= console.width:
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1))
        table.add_column("true")
        for head in heads:
            table.add_column(head, justify="right")
        table.add_column("accuracy", justify="right")
        for i, row in enumerate(counts):
            cells = [f"[bold green]{n}[/]" if i == j else str(n) if n else "[dim]·[/]" for j, n in enumerate(row)]
            table.add_row(names[i], *cells, right[i])
        console.print(table)
        return
    table = _table(
        "true class", "accuracy", f"{_PARTS.get(part, part)} examples", "most often taken for"
    )  # too wide for the terminal
    for i, row in enumerate(counts):
        wrong = [(n, j) for j, n in enumerate(row) if n and j != i]
        taken = f"{names[max(wrong)[1]]} ({max(wrong)[0]})" if wrong else ""
        table.add_row(names[i], right[i], str(sum(row)), taken)
    console.print(table)


def print_trace(trace: Trace, form: str, full: bool = False) -> None:
    """The numbers of one example, a table for each step: for the terminal, as Markdown, or as JSON."""
    if form != "table":
        print(trace.markdown(full=full) if form == "markdown" else to_json(trace.to_dict()))
        return
    table, console = _table(*HEADS), Console()
    for step, *words in trace.cells(full=full, width=min(max(16, console.width - 72), pictures.WIDTH)):
        if step and table.row_count:
            console.print(table)
            table = _table(*HEADS)
        if step:
            table.title, table.title_justify, table.title_style = TITLES[step], "left", "bold"
        table.add_row(*map(escape, words))
    console.print(table)
    if trace.has_pictures and not full:
        print(f"{pictures.LEGEND}; --full prints every number")


def print_layers(rows: Iterable[Any]) -> None:
    """The network, layer by layer; what is inside a net of layers is indented."""
    table, totals = _table("", "layer", "output shape", "parameters", "multiply-adds"), [0, 0]
    for column in (3, 4):
        table.columns[column].justify = "right"
    for row in rows:
        figures = (row.parameters, row.multiply_adds)
        totals = [total + (figure or 0) for total, figure in zip(totals, figures, strict=True)]
        shown = ("" if figure is None else f"{figure:,}" for figure in figures)
        name = escape("  " * row.depth + row.name)
        table.add_row(".".join(map(str, row.path)), name, " × ".join(map(str, row.shape)), *shown)
    table.add_section()
    table.add_row("", "all", "", *(f"{total:,}" for total in totals))
    Console().print(table)
    print("multiply-adds of weights, padding included, for one example on the way forward")


def print_plan(options: Any, work: Any, one: Any, found: Any) -> None:
    """What is predicted of one mesh."""
    machine, layout = options.machine, found.layout
    accelerator = machine.accelerator
    table = _table("prediction", escape(f"{layout.devices:,} × {accelerator.name}, mesh {layout}"))
    table.add_row("network", escape(f"{shortened(options.net)} ({work.parameters:,} parameters)"))
    table.add_row("batch", f"{found.batch_size:,} examples, {found.batch_size // layout.data:,} on each device")
    table.add_row("FLOPs", f"{_amount(found.flops, 'FLOP')} a step and device, of products")
    for name, size in found.memory.items():
        table.add_row(f"memory: {name}", _amount(size, "B"))
    verdict = "fits" if found.fits else "does not fit"
    table.add_row("memory", f"{_amount(found.bytes, 'B')} of {_amount(accelerator.memory, 'B')}: {verdict}")
    for one_kind in found.collectives:
        times = f"{one_kind.count} × " if one_kind.count > 1 else ""
        what = f"{times}{one_kind.kind} over {one_kind.axis}, {_amount(one_kind.bytes, 'B')}"
        table.add_row(f"sent: {one_kind.what}", f"{what}, {_time(one_kind.seconds(layout, machine))}")
    table.add_row(
        "arithmetic", f"{_time(found.arithmetic)} at {_amount(machine.peak, 'FLOP')}/s, {machine.multiplied_in}"
    )
    table.add_row("memory traffic", f"{_time(found.traffic)} for {_amount(found.moved, 'B')}")
    table.add_row("step", f"{_time(found.seconds)}, {found.examples_per_second:,.0f} examples/s")
    table.add_row("efficiency", f"{found.efficiency(one):.1%} of one device's, times {layout.devices:,}")
    Console().print(table)
    print(PREDICTED)


def print_sweep(options: Any, work: Any, one: Any, found: list[Any], notes: list[str]) -> None:
    """What is predicted for each number of devices."""
    accelerator = options.machine.accelerator
    table = _table("devices", "data × model", "FLOPs", "memory", "sent", "step", "per second", "efficiency")
    for column in table.columns:
        column.justify = "right"
    for p in found:
        table.add_row(
            f"{p.layout.devices:,}", f"{p.layout.data:,} × {p.layout.model:,}", _amount(p.flops, ""),
            _amount(p.bytes, "B") + ("" if p.fits else "!"), _amount(sum(c.bytes for c in p.collectives), "B"),
            _time(p.seconds), _amount(p.examples_per_second, ""), f"{p.efficiency(one):.1%}",
        )  # fmt: skip
    first, last = found[0].batch_size, found[-1].batch_size
    batch = f"{first:,} examples a step" if first == last else f"{first:,} to {last:,} examples a step"
    print(f"prediction: {shortened(options.net)}, {work.parameters:,} parameters, {batch}, on {accelerator.name}")
    Console().print(table)
    if not all(p.fits for p in found):
        notes = [f"! does not fit into {_amount(accelerator.memory, 'B')}", *notes]
    for note in notes:
        print(note)
    print(PREDICTED)


PREDICTED = (
    "predicted from shapes and published figures, nothing is measured; FLOPs, memory and bytes sent are of one device"
)


def shortened(text: str) -> str:
    """The beginning of a long line."""
    text = " ".join(text.split())
    return text if len(text) <= 48 else f"{text[:45].rstrip()} …"


def _amount(value: float, unit: str) -> str:
    """1.5 GB; three digits."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            shown = value / factor
            return f"{shown:.3g} {prefix}{unit}" if shown < 999.5 else f"{shown:,.0f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def _time(seconds: float) -> str:
    """1.5 ms; three digits."""
    for factor, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def print_comparison(names: list[str], settings: dict[str, list[Any]], results: dict[str, list[Any]]) -> None:
    """Runs side by side."""
    table = _table("", *names)
    for name, values in settings.items():
        table.add_row(escape(name), *("default" if value is None else escape(str(value)) for value in values))
    if settings:
        table.add_section()
    for name, values in results.items():
        table.add_row(escape(name), *(_figure(name, value) for value in values))
    Console().print(table)
    if {"data", "target", "task", "examples"} & settings.keys():
        print("the runs have different data: their figures are not of the same examples")


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(escape(head), overflow="fold")
    return table


def _parts(summary: dict[str, Any]) -> list[str]:
    return [f"{n:,} {_PARTS.get(part, part)}" for part, n in summary["examples"].items()]


def _figure(name: str, value: Any) -> str:
    """A figure in the digits that mean something."""
    if value is None:
        return "–"
    if isinstance(value, float):
        digits = {"seconds": ".1f", "examples_per_second": ",.0f"}.get(name)
        return format(value, digits or (".4f" if "accuracy" in name or "r2" in name else ".4g"))
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
