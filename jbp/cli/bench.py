"""`jbp bench`: time jbp beside what one would use instead; the suite is in a checkout, not in a package."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jbp.cli.parser import Command, Failed, option


@dataclass(frozen=True)
class Bench(Command):
    """Run the benchmark of a checkout; raises Failed if a deterministic figure became worse."""

    quick: bool = option(False, "the three smallest nets, a few rounds, nothing written", "what to run")
    compare: str | None = option(None, "print what changed against this result", "what to run", metavar="OLD.json")

    summary: ClassVar[str] = "time a gradient step beside autodiff (from a checkout)"
    epilog: ClassVar[str] = "example:\n  jbp bench --quick\n"

    def __call__(self) -> None:
        """Run it.

        Raises: ValueError where there is no checkout; Failed on a loss of more than 10 % in a deterministic figure.
        """
        script = Path(__file__).parents[2] / "experiments" / "bench" / "step.py"
        if not script.exists():
            raise ValueError("jbp bench runs from a checkout of jbp, where experiments/bench is, and this is none")
        if self.compare is not None and not Path(self.compare).is_file():
            raise ValueError(f"{self.compare}: there is no such result to compare with")
        words = [*(["--quick"] if self.quick else []), *(["--compare", self.compare] if self.compare else [])]
        before = list(sys.path)
        try:
            lost = runpy.run_path(str(script))["main"](words)
        finally:
            sys.path[:] = before
        if lost:
            raise Failed("a deterministic figure became worse by more than 10 %")
