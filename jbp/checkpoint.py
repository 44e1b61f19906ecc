"""What is kept of a run: trees of arrays in safetensors files, nets in JSON. Nothing is pickled.

A file holds the leaves under their paths ("0.weight"), and in its metadata the tree around them, so that a file is
whole by itself.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from jbp import own
from jbp.arguments import about as said_of
from jbp.arguments import existing_file, no_run
from jbp.backprop import apply
from jbp.data.bounds import Bounds
from jbp.data.columns import Columns
from jbp.data.preparing import Standardizer
from jbp.description import KINDS, has_own, refuse_missing
from jbp.description import MissingLayers as MissingLayers
from jbp.description import describe as describe
from jbp.description import net_from as net_from
from jbp.layer import Layer, Shape
from jbp.layers.images import made_for
from jbp.losses import Loss
from jbp.paths import shown

__all__ = ["MissingLayers", "Postprocessing", "Run", "describe", "load", "load_run", "net_from", "save"]


def __dir__() -> list[str]:
    return __all__


FORMAT = "jbp-1"
PARAMS, CONFIG = "params.safetensors", "config.json"
_BLOCK = 1000  # examples predicted at once


def save(path: str | Path, tree: Any, metadata: Any = None) -> None:
    """Write a tree of dicts, tuples, lists, None and arrays, and JSON-able `metadata`; whole or not at all.

    Raises: ValueError for a node or leaf of another kind, naming its path; OSError if it cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    structure = _encode(tree, "", arrays)
    about = json.dumps({"tree": structure, "metadata": metadata})
    # Under one key, for the writer puts several in an order that changes: equal trees make equal files.
    write_atomically(path, safetensors.numpy.save(arrays, {FORMAT: about}))


def check_kept(net: Layer, params: Any) -> None:
    """Refuse a net that `describe` cannot describe, or parameters that `save` cannot write; their values are not read.

    Raises: ValueError, naming the layer or the path.
    """
    describe(net)
    _encode(jax.tree.map(lambda leaf: np.zeros((), leaf.dtype), params), "", {})


def load(path: str | Path, like: Any = None) -> tuple[Any, Any]:
    """The tree (with numpy arrays) and the metadata of a file; with `like`, a tree of just these shapes and dtypes.

    Raises: ValueError if the file is missing, damaged, not one of `save`, or not like `like`, saying where.
    """
    path = existing_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            words = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, found a damaged one or something else ({error}); save it again"
        ) from error
    if FORMAT not in words:
        raise ValueError(
            f"{path}: expected a file of jbp.checkpoint.save, with {FORMAT!r} in its metadata, found one of another "
            "program or version; read it with safetensors itself"
        )
    try:
        about = json.loads(words[FORMAT])
        tree, metadata = _decode(about["tree"], arrays), about["metadata"]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a tree of arrays, found a damaged one ({error!r}); save it again"
        ) from error
    return (tree if like is None else _as(like, tree, path)), metadata


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: under another name in the same folder, then renamed.

    Raises: OSError in words, with its errno.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error of writing, saying which file and what to do."""
    worded = OSError(f"{path}: could not be written: {error.strerror or error}; free space, or write elsewhere")
    worded.errno = error.errno
    return worded


@dataclass(frozen=True)
class Run:
    """A trained net with all that its use needs; `jbp.load(folder)` makes it."""

    folder: Path
    net: Layer
    params: Any = field(repr=False)
    preprocessing: Callable[[Any], np.ndarray] = field(repr=False)
    """From examples as they are in the data to what the net takes."""
    postprocessing: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    """From the net's outputs to probabilities or scores of the classes, or to values in the data's units."""
    task: str
    input_shape: Shape
    classes: tuple[str, ...]
    features: tuple[str, ...]
    targets: tuple[str, ...]
    output_kind: str
    """What predictions are: "probability", "score" or "value"."""
    config: dict[str, Any] = field(repr=False)
    loss: Loss | None = None
    """None in a run of an older jbp."""
    y_scale: Standardizer | Bounds | None = field(default=None, repr=False)
    """What brought the targets of a regression to the units in which the net gives them."""
    columns: Columns | None = field(default=None, repr=False)
    """How the rows of a table become examples; None where the run was trained on arrays."""
    transform: str | None = None
    """The name of what was done to each example in training before the net saw it; a run folder holds no functions."""

    def predict(self, x: Any) -> np.ndarray:
        """Probabilities or scores [n, k] of the classes, or values [n, m], for examples as they are in the data.

        Of rows of a table `columns.encode` makes examples. Values are float64, in the units of the data.

        Raises: ValueError if the examples do not have the run's shape, or hold what is no number or too large.
        """
        if self.transform is not None:
            raise ValueError(
                f"{self.folder}: the net was trained behind the transform {self.transform}, which a run folder "
                "does not hold: apply it yourself, and then jbp.apply(run.net, run.params, x)"
            )
        x = np.asarray(x)
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"expected examples of shape {self.input_shape}, as the run was trained on, got x of shape {x.shape}"
            )
        with np.errstate(over="ignore"):
            prepared = self.preprocessing(x)
        if not np.isfinite(prepared).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(prepared))[0])
            place = f"row {index[0] + 1}, column {', '.join(str(i + 1) for i in index[1:])}"
            raise ValueError(
                f"expected finite numbers that float32 holds once they are standardised, found {x[index]} at {place}; "
                "correct the value, or remove the row"
            )
        return self.postprocessing(outputs(self.net, self.params, prepared))


def load_run(run: str | Path, layers: Any = None) -> Run:
    """The trained net of a run folder, with params, preprocessing, classes, task and config.

    `layers` is where the layers of the net are that are not jbp's: a Python file, which is then run, a module, or the
    classes themselves.

    Raises: ValueError if the folder is none, has no params yet, holds a damaged file, or has layers that have changed,
    or are not there (then it is a `jbp.checkpoint.MissingLayers`).
    """
    folder = Path(run)
    if not folder.is_dir():
        raise no_run(folder)
    config = read_json(folder / CONFIG)
    if not (folder / PARAMS).exists():
        raise ValueError(f"{folder}: {_why_bare(config)}")
    tree, about = load(folder / PARAMS)
    mine = own.classes_in(layers, KINDS)
    try:
        described = [about["net"], about.get("loss")]
        refuse_missing(described, mine)
        with said_of(folder):
            net, loss = net_from(described, mine)
            if has_own(about["net"]):
                _check_params(net, tree["params"], tuple(about["input_shape"]))
        inputs, values = _standardizer(tree["x"]), _standardizer(tree["y"])
        return Run(
            folder=folder,
            net=net,
            params=tree["params"],
            preprocessing=inputs or _as_float32,
            postprocessing=Postprocessing(about["activation"], values),
            task=about["task"],
            input_shape=tuple(about["input_shape"]),
            classes=tuple(about["classes"]),
            features=tuple(about["features"]),
            columns=_columns(about),
            targets=tuple(about["targets"]),
            output_kind=about["output_kind"],
            transform=about.get("transform"),
            config=config,
            loss=loss,
            y_scale=values,
        )
    except MissingLayers as error:
        raise MissingLayers(f"{folder}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / PARAMS}: expected a file of `jbp train`, found one without {error}; train again"
        ) from error


@dataclass(frozen=True)
class Postprocessing:
    """Outputs of a net ↦ probabilities (an activation that the loss had inside), or values in the data's units."""

    activation: str | None
    values: Standardizer | Bounds | None

    def __call__(self, output: np.ndarray) -> np.ndarray:
        """outputs [n, k] ↦ [n, k]."""
        output = np.asarray(output, np.float64)
        if self.activation == "softmax":
            e = np.exp(output - output.max(-1, keepdims=True))
            return e / e.sum(-1, keepdims=True)
        if self.activation == "sigmoid":
            return 0.5 * (1 + np.tanh(0.5 * output))
        return output if self.values is None else output * self.values.scale + self.values.mean


def outputs(net: Layer, params: Any, x: np.ndarray) -> np.ndarray:
    """The net's outputs [n, ...] in evaluation, a block of examples at a time, each compiled once."""
    size = min(_BLOCK, max(1, len(x)))
    x = x.astype(params_dtype(params), copy=False)
    blocks = []
    for begin in range(0, len(x), size):
        block = x[begin : begin + size]
        filled = np.concatenate([block, np.zeros((size - len(block), *x.shape[1:]), x.dtype)])
        blocks.append(np.asarray(_apply(net, params, filled))[: len(block)])
    return np.concatenate(blocks)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises: ValueError if the file is missing, empty or something else.
    """
    try:
        content = json.loads(existing_file(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a JSON file, found something else ({error}); correct it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}; correct it")
    return content


_apply = jax.jit(apply, static_argnums=0)


def _as_float32(x: Any) -> np.ndarray:
    return np.asarray(x, np.float32)


def _columns(about: dict[str, Any]) -> Columns | None:
    """The columns of a run's table; a run of before they were kept has numbers only."""
    if about.get("columns") is not None:
        return Columns.from_json(about["columns"])
    return Columns.plain(about["features"]) if about["features"] else None


def _standardizer(arrays: Any) -> Standardizer | Bounds | None:
    if arrays is None:
        return None
    return Bounds(arrays["low"], arrays["high"]) if "low" in arrays else Standardizer(arrays["mean"], arrays["scale"])


def _encode(node: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """The structure of a tree as JSON; its leaves go into `arrays`, by path."""

    def inner(items: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        return [(key, _encode(value, f"{path}.{key}" if path else str(key), arrays)) for key, value in items]

    if node is None:
        return None
    if type(node) is dict:
        bad = [key for key in node if not isinstance(key, str) or "." in key or not key]
        if bad:
            raise ValueError(f"expected the keys of a dict to be text without dots, got {bad[0]!r} at {path!r}; rename")
        return {"dict": dict(inner(node.items()))}
    if type(node) in (tuple, list):
        return {type(node).__name__: [value for _, value in inner(enumerate(node))]}
    array = np.asarray(node) if hasattr(node, "dtype") or isinstance(node, bool | int | float) else None
    if array is None or array.dtype.kind not in "biufcV" or array.dtype.names:
        raise ValueError(f"expected dicts, tuples, lists and arrays of numbers, got {type(node).__name__} at {path!r}")
    arrays[path] = np.array(array, order="C")  # the writer takes a strided array's bytes as they lie
    return path


def _decode(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    if node is None:
        return None
    if isinstance(node, str):
        return arrays[node]
    ((kind, inner),) = node.items()
    if kind == "dict":
        return {key: _decode(value, arrays) for key, value in inner.items()}
    return {"tuple": tuple, "list": list}[kind](_decode(value, arrays) for value in inner)


def _as(like: Any, tree: Any, path: Path) -> Any:
    """`tree` in the structure of `like`, if paths, shapes and dtypes are the same."""
    want, structure = jax.tree_util.tree_flatten_with_path(like)
    have = dict(jax.tree_util.tree_flatten_with_path(tree)[0])
    for place, leaf in want:
        name = shown(place)
        if place not in have:
            raise ValueError(f"{path}: expected an array at {name}, found none; load it without like to see its tree")
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        wanted, found = (leaf.shape, leaf.dtype), (have[place].shape, have[place].dtype)
        if wanted != found:
            raise ValueError(
                f"{path}: expected {wanted[1]} of shape {wanted[0]} at {name}, found {found[1]} {found[0]}"
            )
    extra = [shown(place) for place in have if place not in dict(want)]
    if extra:
        raise ValueError(f"{path}: expected the arrays of like, found also {extra[0]}")
    return jax.tree.unflatten(structure, [have[place] for place, _ in want])


def _check_params(net: Layer, params: Any, shape: Shape) -> None:
    """Refuse parameters that are not those of the net, whose classes may have changed since."""
    with made_for(shape, again=True):
        wanted = jax.eval_shape(lambda key: net.init(key, shape)[0], jax.random.key(0))
    places = [
        {shown(place): np.shape(leaf) for place, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (wanted, params)
    ]
    for place in dict.fromkeys(place for tree in places for place in tree):
        expected, found = (f"shape {tree[place]}" if place in tree else "none" for tree in places)
        if expected != found:
            raise ValueError(
                f"a layer of the net has changed: expected a parameter of {expected} at params{place}, found "
                f"{found} in {PARAMS}; give the file as it was, or train again"
            )


def _why_bare(config: dict[str, Any]) -> str:
    """What is wrong with a run folder without parameters."""
    seeds = config.get("seeds")
    if seeds:
        return (
            f"expected a run of one seed, found one of the seeds {seeds}: a run of many seeds keeps no parameters; "
            "train one with --seed"
        )
    return f"expected a run with {PARAMS}, found one that was cut short before it was written; train again"


@lru_cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def params_dtype(params: Any) -> np.dtype:
    """The type of the arrays in a tree of parameters, which a net's input must have too."""
    return next((leaf.dtype for leaf in jax.tree.leaves(params)), np.dtype(np.float32))


def count(params: Any) -> int:
    """How many numbers a tree of arrays holds."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params))
