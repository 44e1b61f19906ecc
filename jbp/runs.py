"""The folder of a run: config.json, metrics.jsonl, summary.json, curves.png, params.safetensors; never clobbered."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jbp import checkpoint
from jbp._version import __version__
from jbp.arguments import as_shape, check_new, did_you_mean, listed, no_run
from jbp.backprop import apply
from jbp.checkpoint import (
    CONFIG,
    PARAMS,
    cannot_write,
    count,
    describe,
    params_dtype,
    read_json,
    write_atomically,
)
from jbp.combine import Serial
from jbp.data.bounds import Bounds
from jbp.data.columns import Columns
from jbp.data.preparing import Standardizer
from jbp.inputs import check_loss, check_net, check_params
from jbp.layer import Layer, Shape
from jbp.losses import Loss
from jbp.train import Event, Fit

METRICS, SUMMARY, CURVES = "metrics.jsonl", "summary.json", "curves.png"
FILES = (CONFIG, METRICS, SUMMARY, CURVES, PARAMS)
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
SAVED = "saved_by"
"""The word in config.json of a run that `jbp train` cannot repeat, for `save` wrote it."""


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
    to examples before the net, and the outputs are in units of `y_scale`. `figures` are results of yours, such as
    {"test_accuracy": 0.97}; `settings` what the run was told, as text and numbers: `jbp compare` shows both.

    Raises: ValueError for what does not fit together or cannot be kept; OSError if it cannot be written.
    """
    check_net(net, Layer)
    check_loss(loss, Loss)
    check_params(params)
    shape = as_shape(input_shape) if input_shape != () else ()
    example = jax.ShapeDtypeStruct((1, *shape), params_dtype(params))
    output = jax.eval_shape(lambda p, x: apply(net, p, x), params, example)
    if len(output.shape) != 2:
        raise ValueError(
            f"expected a net with outputs of shape [k] for one example, got {output.shape[1:]}: save the params with "
            "jbp.checkpoint.save"
        )
    names = tuple(map(str, classes)) or (tuple(map(str, range(output.shape[1]))) if repr(loss) in _OF_CLASSES else ())
    targets = tuple(map(str, targets)) or default_targets(output.shape[1])
    for what, given in (("classes", names), ("targets", () if names else targets)):
        if given and len(given) != output.shape[1]:
            raise ValueError(f"{what} must be {output.shape[1]} names, one for each output, but are {listed(given)}")
    facts = facts_of(
        net, loss, input_shape=shape, classes=names, targets=() if names else targets,
        features=features if isinstance(features, Columns) else tuple(features),
    )  # fmt: skip
    shown = {"net": repr(net), "loss": repr(loss), "task": facts["task"], "classes": list(names)}
    summary = dict(figures or {}) | {"figures": list(figures or {}), "parameters": count(params)} | shown
    config = {"jbp": __version__, SAVED: "jbp.save", "net": shown["net"], "loss": shown["loss"], **(settings or {})}
    try:
        json.dumps(_finite([summary, config]), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"figures and settings must be numbers, text, lists and dicts of them, but {error}") from error
    check_out(folder, overwrite)
    run = create(folder, overwrite, "")
    with run.told():
        run.config(config)
        for row in fit.history if fit is not None else ():
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
) -> dict[str, Any]:
    """What, beside the arrays, the use of a trained net needs; it is kept in params.safetensors."""
    inside = INSIDE.get(repr(loss))
    last = repr(net.layers[-1] if isinstance(net, Serial) else net)
    probable = inside is not None or last == "softmax" or repr(loss) == "cross_entropy"
    return {
        "net": describe(net),
        "loss": describe(loss),
        "input_shape": input_shape,
        "task": "classification" if classes else "regression",
        "classes": classes,
        "features": features.features if isinstance(features, Columns) else features,
        "columns": features.as_json() if isinstance(features, Columns) else None,
        "targets": targets,
        "output_kind": "value" if not classes else "probability" if probable else "score",
        "activation": inside,
        "transform": transform,
    }


def default_targets(outputs: int) -> tuple[str, ...]:
    """Names of what a regression predicts, where it has no others."""
    return ("y",) if outputs == 1 else tuple(f"y_{i}" for i in range(outputs))


def fit_figures(fit: Fit) -> dict[str, Any]:
    """What a summary says of training: the validation figures of the epoch whose parameters these are, and more."""
    rows = fit.history
    best = fit.kept
    speeds = [row["examples_per_second"] for row in rows]
    return {name: best[name] for name in best if name.startswith("validation_")} | {
        "seconds": rows[-1]["seconds"] if rows else None,
        "examples_per_second": float(np.median(speeds)) if speeds else None,
        "epochs": len(rows),
        "best_epoch": fit.best_epoch,
        "stop_reason": fit.stop_reason,
    }


class RunFolder:
    """A run's folder while it is written. What a run before has left in it goes when this one has something to keep."""

    def __init__(self, path: Path, replaces: bool = False):
        self.path = path
        self._options: dict[str, Any] = {}
        self._replaces = replaces

    def config(self, options: dict[str, Any]) -> None:
        """Write config.json, the first file; if that fails the folder goes too."""
        self._options = options
        if self._replaces:
            return
        try:
            self._json(CONFIG, options)
        except OSError:
            self.discard_if_bare()
            raise

    def params(self, tree: Any, about: Any) -> None:
        """Write params.safetensors."""
        self._replace()
        checkpoint.save(self.path / PARAMS, tree, about)

    def summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        self._replace()
        self._json(SUMMARY, summary)

    def row(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, on the disk when this returns; a full disk leaves no half line."""
        self._replace()
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
        """What `fit` calls: a line for each epoch."""
        if event.row is not None:
            self.row(event.row)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Whatever ends the run inside says which files are kept; the folder of one that has none yet goes."""
        try:
            yield
        except BaseException as error:
            self.discard_if_bare()
            if self.kept() or isinstance(error, KeyboardInterrupt):
                error.add_note(self.kept() or f"nothing is kept{self._before()}")
            raise

    def kept(self) -> str:
        """Which files of this run exist, and what each holds; "" if there is none."""
        if self._replaces:
            return ""
        rows = (self.path / METRICS).read_bytes().count(b"\n") if (self.path / METRICS).exists() else 0
        epochs = f"{rows} finished epoch{'s' * (rows != 1)}"
        files = [
            f"{name} ({holds.format(epochs=epochs)})" for name, holds in _HOLDS.items() if (self.path / name).exists()
        ]
        return f"kept in {self.path}: {', '.join(files)}" if files else ""

    def discard_if_bare(self) -> None:
        """Remove the folder of a run that ended before it had anything to keep."""
        if self._replaces or any((self.path / name).exists() for name in FILES if name != CONFIG):
            return
        (self.path / CONFIG).unlink(missing_ok=True)
        with suppress(OSError):  # it holds files of the user's
            self.path.rmdir()

    def _before(self) -> str:
        return f"; the run that was in {self.path} is as it was" if self._replaces else ""

    def _replace(self) -> None:
        """Now that there is something to keep, the files of the run before go."""
        if not self._replaces:
            return
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        self._replaces = False
        self._json(CONFIG, self._options)

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

    Of a run that is replaced, the files of jbp go once this one has an epoch to keep, and any others stay.

    Raises: ValueError as `check_out`, or if the folder cannot be made.
    """
    check_out(out, overwrite)
    try:
        if out is not None:
            path = Path(out)
            path.mkdir(parents=True, exist_ok=True)
            return RunFolder(path, replaces=any((path / file).exists() for file in FILES))
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
