"""`jbp compare`: runs side by side, the settings that differ and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jbp import runs
from jbp.cli import console
from jbp.cli.parser import Command, argument
from jbp.texts import SAVED

_RESULTS = (
    "test_accuracy", "test_r2", "test_rmse", "test_bits_per_character", "test_loss",
    "validation_accuracy", "validation_loss", "epochs", "best_epoch", "stop_reason", "parameters", "seconds",
    "examples_per_second",
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
        counted = all("examples" in summary for _, _, summary in found)
        configs = [config | _told(summary, counted) for _, config, summary in found]
        settings = {
            name: [_setting(config, name) for config in configs]
            for name in dict.fromkeys(name for config in configs for name in config if name != SAVED)
            if any(_setting(config, name) != _setting(configs[0], name) for config in configs)
        }
        summaries = [_means(summary) for _, _, summary in found]
        own = dict.fromkeys(name for summary in summaries for name in summary.get("figures", ()))
        results = {
            name: [summary.get(name) for summary in summaries]
            for name in (*_RESULTS, *(name for name in own if name not in _RESULTS))
            if any(name in summary for summary in summaries)
        }
        console.print_comparison([str(folder) for folder, _, _ in found], settings, results)
        return settings, results


def _told(summary: dict[str, Any], counted: bool) -> dict[str, Any]:
    """What else a run hangs on: versions, and if all runs `counted` them how many examples, for a file may change."""
    parts = summary["examples"] if counted else {}
    versions = {f"{name} version": version for name, version in summary.get("versions", {}).items()}
    return versions | ({"examples": ", ".join(f"{n} {part}" for part, n in parts.items())} if counted else {})


def _setting(config: dict[str, Any], name: str) -> Any:
    """What a run was told; None is the default, and of a run that `jbp.save` wrote what it does not say is unknown."""
    return config.get(name, "–" if SAVED in config else None)


def _means(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary; of a run of many seeds, with the means of its figures."""
    return summary | {name: found["mean"] for name, found in summary.get("spread", {}).items()}
