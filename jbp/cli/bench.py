"""`jbp bench`: time jbp beside what one would use instead; the suite is in a checkout, not in a package."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jbp.arguments import check_choice
from jbp.cli.parser import Command, Failed, argument, option

SECTIONS = (
    *("step", "first_step", "memory", "per_example", "training", "limit", "growth", "profile_step"),
    *("conv", "conv_training", "conv_layers", "conv_per_example", "sequences"),
)


@dataclass(frozen=True)
class Bench(Command):
    """Run the benchmark of a checkout; raises Failed if a counted figure became worse."""

    section: str | None = argument(f"one of {', '.join(SECTIONS)} (default: all of them)", "SECTION", default=None)
    quick: bool = option(False, "small cases, few rounds, in two minutes; writes nothing", "what to run")
    full: bool = option(False, "the full grid of training runs too, about an hour", "what to run")
    compare: str | None = option(None, "print what changed against this result", "what to run", metavar="OLD.json")

    summary: ClassVar[str] = "time jbp beside what one would use instead (from a checkout)"
    epilog: ClassVar[str] = (
        "examples:\n  jbp bench --quick\n  jbp bench step --compare experiments/results/bench_step.json\n"
    )

    def __call__(self) -> None:
        """Run it.

        Raises: ValueError where there is no checkout; Failed on a loss of more than 10 % in a counted figure.
        """
        if self.section is not None:
            check_choice("section", self.section, SECTIONS)
        if self.quick and self.full:
            raise ValueError("expected one of quick and full")
        script = Path(__file__).parents[2] / "experiments" / "bench" / "suite.py"
        if not script.exists():
            raise ValueError("jbp bench runs from a checkout of jbp, where experiments/bench is, and this is none")
        if self.compare is not None and not Path(self.compare).is_file():
            raise ValueError(f"{self.compare}: there is no such result to compare with")
        words = [self.section] if self.section else []
        words += [f"--{name}" for name in ("quick", "full") if getattr(self, name)]
        words += ["--compare", self.compare] if self.compare else []
        before = list(sys.path)
        try:
            lost = runpy.run_path(str(script))["main"](words)
        finally:
            sys.path[:] = before
        if lost:
            raise Failed("a counted figure became worse by more than 10 %")
