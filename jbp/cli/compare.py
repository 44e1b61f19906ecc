"""`jbp compare`: runs side by side, the settings that differ and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jbp.cli import console, runs
from jbp.cli.parser import Command, argument

_RESULTS = (
    "test_accuracy", "test_r2", "test_rmse", "test_loss", "validation_accuracy", "validation_loss",
    "epochs", "best_epoch", "stop_reason", "parameters", "seconds", "examples_per_second",
)  # fmt: skip


@dataclass(frozen=True)
class Compare(Command):
    """Print runs side by side; calling it gives (settings, results), each a dict from name to one value a run."""

    runs: tuple[str, ...] = argument("folders of runs, two or more", "RUN")

    summary: ClassVar[str] = "set runs side by side: the settings that differ, and the results"
    epilog: ClassVar[str] = "example:\n  jbp compare runs/digits-2026-11-23-1 runs/digits-2026-11-23-2\n"

    def __call__(self) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Print the table.

        Raises: ValueError if there are fewer than two runs, or one is none.
        """
        if len(self.runs) < 2:
            raise ValueError(f"expected two runs or more to compare, got {len(self.runs)}; jbp show prints one")
        found = [runs.read(run) for run in self.runs]
        configs = [config | _versions(summary) for _, config, summary in found]
        settings = {
            name: [config.get(name) for config in configs]
            for name in dict.fromkeys(name for config in configs for name in config)
            if any(config.get(name) != configs[0].get(name) for config in configs)
        }
        results = {
            name: [summary.get(name) for _, _, summary in found]
            for name in _RESULTS
            if any(name in summary for _, _, summary in found)
        }
        console.print_comparison([str(folder) for folder, _, _ in found], settings, results)
        return settings, results


def _versions(summary: dict[str, Any]) -> dict[str, Any]:
    return {f"{name} version": version for name, version in summary.get("versions", {}).items()}
