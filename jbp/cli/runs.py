"""The folder of a run: config.json, metrics.jsonl, summary.json, curves.png, params.safetensors; never clobbered."""

from __future__ import annotations

import datetime
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from jbp.arguments import check_new, did_you_mean, no_run
from jbp.checkpoint import CONFIG, PARAMS, cannot_write, read_json, write_atomically

METRICS, SUMMARY, CURVES = "metrics.jsonl", "summary.json", "curves.png"
FILES = (CONFIG, METRICS, SUMMARY, CURVES, PARAMS)


class RunFolder:
    """A run's folder while it is written."""

    def __init__(self, path: Path):
        self.path = path

    def config(self, options: dict[str, Any]) -> None:
        """Write config.json, the first file; if that fails the folder goes too."""
        try:
            self._json(CONFIG, options)
        except OSError:
            self.discard_if_bare()
            raise

    def summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        self._json(SUMMARY, summary)

    def row(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, on the disk when this returns; a full disk leaves no half line."""
        path = self.path / METRICS
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(to_json(row).encode() + b"\n")
        except OSError as error:
            if path.exists():
                with path.open("r+b") as file:
                    file.truncate(before)
            raise cannot_write(path, error) from error

    def discard_if_bare(self) -> None:
        """Remove the folder of a run that failed before its first epoch was done."""
        if not (self.path / METRICS).exists():
            (self.path / CONFIG).unlink(missing_ok=True)
            with suppress(OSError):  # it holds files of the user's
                self.path.rmdir()

    def _json(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.path / name, (to_json(content, indent=2) + "\n").encode())


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON, with null for a number that is not finite: NaN is not JSON."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False, ensure_ascii=False)


def check_out(out: str | Path | None, overwrite: bool) -> None:
    """Refuse an output folder that could not be used, before anything costly is done.

    Raises: ValueError saying what is in the way.
    """
    if out is None:
        if overwrite:
            raise ValueError("expected overwrite only together with out, the folder to replace; leave it out")
        return
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: expected a folder to write to, found a file in the way; choose another name for out")
    in_the_way = next((p for p in path.parents if p.exists() and not p.is_dir()), None)
    if in_the_way is not None:
        raise ValueError(f"{path}: cannot be made, for {in_the_way} is a file; choose another name for out")
    if not path.is_dir():
        return
    check_new(path, overwrite, "the run")
    if any(path.iterdir()) and not is_run(path):
        raise ValueError(
            f"{path}: overwrite replaces only the folder of a jbp run, and this is none; choose another out"
        )


def create(out: str | Path | None, overwrite: bool, name: str) -> RunFolder:
    """The folder `out`, or a fresh one under runs/, such as runs/digits-2026-11-23-1.

    Of a run that is replaced, the files of jbp go and any others stay.

    Raises: ValueError as `check_out`, or if the folder cannot be made.
    """
    check_out(out, overwrite)
    try:
        if out is not None:
            path = Path(out)
            path.mkdir(parents=True, exist_ok=True)
            for file in FILES:
                (path / file).unlink(missing_ok=True)
            return RunFolder(path)
        stem, number = f"{name}-{datetime.date.today().isoformat()}", 1
        while True:
            path = Path("runs") / f"{stem}-{number}"
            try:
                path.mkdir(parents=True)
                return RunFolder(path)
            except FileExistsError:
                if not Path("runs").is_dir():
                    raise
                number += 1
    except OSError as error:
        raise ValueError(
            f"{out or 'runs'}: expected a folder to write to, but {error.strerror or error}; choose another with out"
        ) from error


def is_run(path: Path) -> bool:
    """Whether a folder is a run of jbp."""
    try:
        return "jbp" in read_json(path / CONFIG)
    except ValueError:
        return False


def read(run: str | Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder of a run, its config and its summary (empty if the run was killed).

    Raises: ValueError if it is no run, with the nearest one.
    """
    path = Path(run)
    if not path.is_dir() or not is_run(path):
        folder = path.parent
        others = [p.name for p in folder.iterdir() if is_run(p)] if folder.is_dir() else []
        raise no_run(path, did_you_mean(path.name, others))
    summary = read_json(path / SUMMARY) if (path / SUMMARY).exists() else {}
    return path, read_json(path / CONFIG), summary


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
