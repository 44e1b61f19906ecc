"""The folder of a run: config.json, metrics.jsonl, summary.json, curves.png, params.safetensors; never clobbered."""

from __future__ import annotations

import datetime
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jbp import checkpoint
from jbp._version import __version__
from jbp.arguments import as_shape, came, check_new, did_you_mean, listed, no_run
from jbp.backprop import apply
from jbp.checkpoint import TOKENS, count, describe, input_dtype_of, params_dtype, rest_told
from jbp.combine import Serial
from jbp.data.bounds import Bounds
from jbp.data.columns import Columns
from jbp.data.preparing import Standardizer
from jbp.data.vocabulary import Vocabulary
from jbp.durable.checkpoints import Checkpoints
from jbp.durable.lock import LOCK, Lock
from jbp.durable.saver import CHECKPOINTS
from jbp.files import cannot_write, umask, write_atomically
from jbp.inputs import check_loss, check_net, check_params
from jbp.layer import Layer, Shape
from jbp.losses import Loss
from jbp.texts import (
    CONFIG,
    METRICS,
    PARAMS,
    SAVED,
    SUMMARY,
    WATCH,
    read_config,
    read_json,
    read_rows,
    read_summary,
    sealed,
    seals_of,
)
from jbp.train import Event, Fit
from jbp.train.replay import BATCH
from jbp.train.restore import RESTORED

CURVES = "curves.png"
WATCHED = "watched.png"
"""Of a run that was watched, what `jbp show` draws."""
FILES = (CONFIG, METRICS, SUMMARY, CURVES, WATCHED, PARAMS)
_HOLDS = {
    CONFIG: "the options",
    METRICS: "the figures of {epochs}",
    PARAMS: "the parameters",
    SUMMARY: "what came out",
    CURVES: "a picture",
}
INSIDE = {"softmax_cross_entropy": "softmax", "sigmoid_binary_cross_entropy": "sigmoid"}
"""The activation that a loss on logits has inside."""
_OF_CLASSES = ("softmax_cross_entropy", "cross_entropy")


def save(
    folder: str | Path,
    net: Layer,
    params: Any,
    *,
    loss: Loss,
    input_shape: Shape,
    fit: Fit | None = None,
    classes: Sequence[str] = (),
    features: Sequence[str] | Columns = (),
    targets: Sequence[str] = (),
    vocabulary: Vocabulary | None = None,
    x_scale: Standardizer | Bounds | None = None,
    y_scale: Standardizer | Bounds | None = None,
    figures: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a run folder, which `jbp.load`, `jbp show`, `predict`, `trace` and `compare` read; answers with its path.

    The net may have layers of your own: their classes' names and fields are kept, and whoever loads the run names the
    file that has the classes. `input_shape` is that of one example. `fit`, as `jbp.fit` returned it, brings the
    figures of every epoch. `classes` are the names of what the net tells apart (by default numbers, where the loss is
    one of classes); without, its outputs are values, called `targets`. `features` name the columns of a table for
    `jbp predict`, or are the `columns` of a `jbp.data.Dataset`, which say how its cells are read. `x_scale` is applied
    to examples before the net, and the outputs are in units of `y_scale`. With a `vocabulary` the net is of a text: of
    tokens [t] it makes scores [t, k] of those that come next, and `jbp generate` writes with it. `figures` are results
    of yours, such as {"test_accuracy": 0.97}; `settings` what the run was told, as text and numbers: `jbp compare`
    shows both.

    Raises: ValueError for what does not fit together or cannot be kept; OSError if it cannot be written.
    """
    check_net(net, Layer)
    check_loss(loss, Loss)
    check_params(params)
    shape = as_shape(input_shape) if input_shape != () else ()
    numbers = None if vocabulary is None else TOKENS
    numbers = numbers or input_dtype_of(net, params, shape)
    example = jax.ShapeDtypeStruct((1, *shape), numbers or params_dtype(params))
    output = jax.eval_shape(lambda p, x: apply(net, p, x), params, example)
    if vocabulary is not None:
        check_of_text(vocabulary, shape, output.shape[1:], bool(classes or features or targets))
    elif len(output.shape) != 2:
        raise ValueError(
            f"expected a net with outputs of shape [k] for one example, got {output.shape[1:]}: save the params with "
            "jbp.checkpoint.save"
        )
    numbered = repr(loss) in _OF_CLASSES and vocabulary is None
    names = tuple(map(str, classes)) or (tuple(map(str, range(output.shape[1]))) if numbered else ())
    targets = tuple(map(str, targets)) or (default_targets(output.shape[1]) if vocabulary is None else ())
    for what, given in (("classes", names), ("targets", () if names else targets)):
        if given and len(given) != output.shape[1]:
            raise ValueError(f"{what} must be {output.shape[1]} names, one for each output, but are {listed(given)}")
    facts = facts_of(
        net, loss, input_shape=shape, classes=names, targets=() if names else targets,
        features=features if isinstance(features, Columns) else tuple(features), tokens=vocabulary or numbers,
    )  # fmt: skip
    shown = {"net": repr(net), "loss": repr(loss), "task": facts["task"], "classes": list(names)}
    summary = dict(figures or {}) | {"figures": list(figures or {}), "parameters": count(params)} | shown
    config = {"jbp": __version__, SAVED: "jbp.save", "net": shown["net"], "loss": shown["loss"], **(settings or {})}
    try:
        json.dumps(_finite([summary, config]), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"figures and settings must be numbers, text, lists and dicts of them, but {error}") from error
    check_out(folder, overwrite)
    run = create(folder, overwrite, "", config)
    with run.told():
        for row in sorted((*fit.history, *fit.watched), key=lambda row: row["step"]) if fit is not None else ():
            run.row(row)
        run.params({"params": params} | scales(x_scale, y_scale), facts)
        run.summary((fit_figures(fit) if fit is not None else {}) | summary)
    return run.path


def scales(x_scale: Standardizer | Bounds | None, y_scale: Standardizer | Bounds | None) -> dict[str, Any]:
    """The arrays, beside the parameters, that a run keeps."""
    both = {"x": x_scale, "y": y_scale}
    fields = {name: ("low", "high") if isinstance(s, Bounds) else ("mean", "scale") for name, s in both.items()}
    return {
        name: None if s is None else {field: getattr(s, field) for field in fields[name]} for name, s in both.items()
    }


def facts_of(
    net: Layer,
    loss: Loss,
    *,
    input_shape: Shape,
    classes: tuple[str, ...],
    features: tuple[str, ...] | Columns,
    targets: tuple[str, ...],
    transform: str | None = None,
    tokens: Vocabulary | str | None = None,
) -> dict[str, Any]:
    """What, beside the arrays, the use of a trained net needs; it is kept in params.safetensors.

    `tokens`: the vocabulary of a text; of another net that takes whole numbers, their type.
    """
    vocabulary = tokens if isinstance(tokens, Vocabulary) else None
    inside = INSIDE.get(repr(loss))
    last = repr(net.layers[-1] if isinstance(net, Serial) else net)
    probable = inside is not None or last == "softmax" or repr(loss) == "cross_entropy"
    scores = bool(classes) or vocabulary is not None
    return {
        "net": describe(net),
        "loss": describe(loss),
        "input_shape": input_shape,
        "task": "classification" if classes else "regression" if vocabulary is None else "language",
        "classes": classes,
        "features": features.features if isinstance(features, Columns) else features,
        "columns": features.as_json() if isinstance(features, Columns) else None,
        "targets": targets,
        "output_kind": "value" if not scores else "probability" if probable else "score",
        "activation": inside,
        "transform": transform,
        "vocabulary": None if vocabulary is None else vocabulary.symbols,
        "input_dtype": tokens if vocabulary is None else TOKENS,
    }


def check_of_text(vocabulary: Any, shape: Shape, output: tuple[int, ...], others: bool) -> None:
    """Refuse what is no net of a text over this vocabulary."""
    if not isinstance(vocabulary, Vocabulary):
        raise ValueError(f"vocabulary must be a jbp.data.Vocabulary, but is {came(vocabulary)}")
    if len(shape) != 1 or output != (*shape, len(vocabulary)):
        raise ValueError(
            f"expected a net that makes scores [t, {len(vocabulary)}] of tokens [t], got {list(output)} of "
            f"{list(shape)}"
        )
    if others:
        raise ValueError("classes, features and targets are not of a text: leave them out, for vocabulary says it all")


def default_targets(outputs: int) -> tuple[str, ...]:
    """Names of what a regression predicts, where it has no others."""
    return ("y",) if outputs == 1 else tuple(f"y_{i}" for i in range(outputs))


def fit_figures(fit: Fit) -> dict[str, Any]:
    """What a summary says of training: the validation figures of the epoch whose parameters these are, and more."""
    rows = fit.history
    best = fit.kept
    speeds = [row["examples_per_second"] for row in rows]
    return (
        {name: best[name] for name in best if name.startswith("validation_")}
        | {
            "seconds": rows[-1]["seconds"] if rows else None,
            "examples_per_second": float(np.median(speeds)) if speeds else None,
            "epochs": len(rows),
            "best_epoch": fit.best_epoch,
            "stop_reason": fit.stop_reason,
        }
        | ({} if fit.skipped_steps is None else {"skipped_steps": fit.skipped_steps})
    )


class RunFolder:
    """A run's folder while it is written, which nobody else writes to until `close`. What a run before has left in it
    goes when this one has something to keep."""

    def __init__(self, path: Path, options: dict[str, Any], lock: Lock, replaces: bool = False):
        self.path = path
        self._options, self._lock, self._replaces = options, lock, replaces

    @classmethod
    def again(cls, path: Path) -> RunFolder:
        """That of a run to go on with.

        Raises: ValueError if it is none, or another process writes there.
        """
        return cls(path, read(path)[1], Lock(path))

    def close(self) -> None:
        """Let others write there."""
        self._lock.close()

    def cut_back(self, rows: Sequence[dict[str, Any]] | None, step: int) -> None:
        """Make metrics.jsonl what it was after so many steps, when the run had these rows; None: those it has.

        What an interrupted run left of where it was goes: its summary vouches for files that change now.
        """
        for name in (SUMMARY, PARAMS, CURVES):
            (self.path / name).unlink(missing_ok=True)
        path = self.path / METRICS
        lines = path.read_bytes().splitlines() if path.exists() else []
        kept = [line for line in map(_parsed, lines) if line.get("step", step + 1) <= step - ("kind" in line)]
        if rows is not None:  # a step that is watched is looked at before it is taken: that of `step` comes again
            kept = [*rows, *(line for line in kept if "kind" in line)]
        found = sorted(kept, key=lambda line: line["step"])
        write_atomically(path, b"".join(to_json(line).encode() + b"\n" for line in found))

    def params(self, tree: Any, about: Any) -> None:
        """Write params.safetensors."""
        self.replace()
        checkpoint.save(self.path / PARAMS, tree, about)

    def summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, the last of the files, with the digests of all."""
        self.replace()
        self._json(SUMMARY, sealed(self.path, json.loads(to_json(summary))))

    def row(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, on the disk when this returns; a full disk leaves no half line."""
        self.replace()
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

    def after_chunk(self, event: Event) -> None:
        """What `fit` calls: a line for each step that is watched, and for each epoch."""
        if event.watched is not None:
            self.row(event.watched)
        if event.row is not None:
            self.row(event.row)

    def rest(self, watched: Sequence[dict[str, Any]]) -> None:
        """Lines for the steps that were looked at in a chunk which ended the run before it was told of."""
        _, written = metrics(self.path)
        for row in watched:
            if not written or row["step"] > written[-1]["step"]:
                self.row(row)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Whatever ends the run inside says which files are kept; the folder of one that has none yet goes."""
        try:
            yield
        except BaseException as error:
            self.discard_if_bare()
            if self.kept() or isinstance(error, KeyboardInterrupt):
                error.add_note(self.kept() or f"nothing is kept{self._before()}")
            if self.can_go_on() and isinstance(error, KeyboardInterrupt | OSError):
                error.add_note(f"to go on: jbp train --resume {self.path}")
            raise
        finally:
            self.close()

    def kept(self) -> str:
        """Which files of this run exist, and what each holds; "" if there is none."""
        if self._replaces:
            return ""
        path = self.path / METRICS
        lines = path.read_bytes().splitlines() if path.exists() else ()
        rows = sum(not line.startswith(b'{"kind"') for line in lines)
        epochs = f"{rows} finished epoch{'s' * (rows != 1)}"
        files = [
            f"{name} ({holds.format(epochs=epochs)})" for name, holds in _HOLDS.items() if (self.path / name).exists()
        ]
        return f"kept in {self.path}: {', '.join(files)}" if files else ""

    def discard_if_bare(self) -> None:
        """Remove the folder of a run that ended before it had anything to keep."""
        others = any((self.path / name).exists() for name in FILES if name != CONFIG)
        if self._replaces or others or self.can_go_on():
            return
        for name in (CONFIG, LOCK):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        with suppress(OSError):  # it holds files of the user's
            self.path.rmdir()

    def can_go_on(self) -> bool:
        """Whether this run has a checkpoint."""
        return not self._replaces and bool(Checkpoints.finished(self.path / CHECKPOINTS))

    def _before(self) -> str:
        return f"; the run that was in {self.path} is as it was" if self._replaces else ""

    def replace(self) -> None:
        """Now that there is something to keep, the files of the run before go."""
        if not self._replaces:
            return
        for name in (*FILES, BATCH, RESTORED):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        self._replaces = False
        self._json(CONFIG, self._options)

    def _json(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.path / name, (to_json(content, indent=2) + "\n").encode())


def metrics(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of metrics.jsonl: of the epochs, and of the steps that were watched, which say their "kind".

    Raises: ValueError naming the line that is none.
    """
    rows = read_rows(folder, {})
    return [row for row in rows if "kind" not in row], [row for row in rows if row.get("kind") == WATCH]


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


def create(out: str | Path | None, overwrite: bool, name: str, options: dict[str, Any]) -> RunFolder:
    """The folder `out`, or a fresh one under runs/, such as runs/digits-2026-11-23-1, with its config.json.

    It is made under another name and then renamed: a run that is killed meanwhile leaves nothing that looks like one.
    Of a run that is replaced, the files of jbp go once this one has an epoch to keep, and any others stay.

    Raises: ValueError as `check_out`, or if the folder cannot be made, or another run writes there; OSError if its
        config.json cannot be written.
    """
    check_out(out, overwrite)
    if out is not None and Path(out).exists():
        path = Path(out)
        return RunFolder(path, options, Lock(path), replaces=True)
    try:
        parent = Path("runs") if out is None else Path(out).parent
        parent.mkdir(parents=True, exist_ok=True)
        begun = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        begun.chmod(0o777 & ~umask())
    except OSError as error:
        raise ValueError(
            f"{out or 'runs'}: expected a folder to write to, but {error.strerror or error}; choose another with out"
        ) from error
    lock = None
    try:
        lock = Lock(begun)
        write_atomically(begun / CONFIG, (to_json(options, indent=2) + "\n").encode())
        lock.folder = _renamed(begun, parent, None if out is None else Path(out).name, name)
        return RunFolder(lock.folder, options, lock)
    except BaseException:
        if lock is not None:
            lock.close()
        shutil.rmtree(begun, ignore_errors=True)
        raise


def _renamed(begun: Path, parent: Path, name: str | None, stem: str) -> Path:
    """Give a folder its name, or the first that is free."""
    number, today = 1, datetime.date.today().isoformat()
    while True:
        path = parent / (name or f"{stem}-{today}-{number}")
        try:
            if path.exists():  # an empty folder too, which renaming would replace
                raise FileExistsError
            return begun.rename(path)
        except OSError as error:
            if not path.exists():
                raise
            if name is not None:
                raise ValueError(f"{path}: was made meanwhile; choose another name for out") from error
            number += 1


def is_run(path: Path) -> bool:
    """Whether a folder is a run of jbp."""
    try:
        return "jbp" in read_json(path / CONFIG)
    except ValueError:
        return False


def folder_of(run: str | Path) -> Path:
    """The path of a run's folder, whatever is damaged in it.

    Raises: ValueError if it is no run, with the nearest one.
    """
    path = Path(run)
    if path.is_dir() and (is_run(path) or any((path / name).exists() for name in (METRICS, PARAMS, SUMMARY))):
        return path
    folder = path.parent
    found = folder.iterdir() if folder.is_dir() else ()
    others = [p.name for p in found if is_run(p) and not p.name.startswith(".")]
    raise no_run(path, did_you_mean(path.name, others))


def read(run: str | Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder of a run, its config and its summary (empty if the run was killed).

    Raises: ValueError if it is no run, with the nearest one, or one of the two is damaged, with what is whole.
    """
    path = folder_of(run)
    with rest_told(path):
        summary = read_summary(path)
        return path, read_config(path, seals_of(path)), summary


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of metrics.jsonl; {} of one that a kill has cut short."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
