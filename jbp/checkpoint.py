"""What is kept of a run: trees of arrays in safetensors files, nets in JSON. Nothing is pickled.

A file holds the leaves under their paths ("0.weight"), and in its metadata the tree around them, so that a file is
whole by itself, and a digest of all that, so that one in which a bit has changed is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from jbp import own
from jbp.arguments import about as said_of
from jbp.arguments import as_seed, existing_file, no_run
from jbp.backprop import apply
from jbp.data.bounds import Bounds
from jbp.data.columns import Columns
from jbp.data.preparing import Standardizer
from jbp.data.vocabulary import Vocabulary
from jbp.description import KINDS, has_own, refuse_missing
from jbp.description import MissingLayers as MissingLayers
from jbp.description import describe as describe
from jbp.description import net_from as net_from
from jbp.files import Damaged, write_atomically
from jbp.language import generate
from jbp.layer import Layer, Shape
from jbp.layers.images import made_for
from jbp.losses import Loss
from jbp.paths import shown
from jbp.texts import (
    CONFIG,
    METRICS,
    PARAMS,
    SEALS,
    SUMMARY,
    check_form,
    check_seal,
    read_config,
    read_rows,
    read_summary,
    seals_of,
)

__all__ = ["MissingLayers", "Postprocessing", "Run", "describe", "load", "load_run", "net_from", "save"]


def __dir__() -> list[str]:
    return __all__


FORMAT, WITHOUT_DIGEST = "jbp-2", "jbp-1"
"""The key of what `save` says of a file in its metadata, and what it was when files had no digest."""
TOKENS = "int32"
"""The type of whole numbers that a net takes."""
_BLOCK = 1000  # examples predicted at once
_FACTS = {
    "net": {}, "loss?": ({}, None), "input_shape": [int],
    "task": frozenset({"classification", "regression", "language"}),
    "classes": [str], "features": [str], "columns?": ({}, None), "targets": [str],
    "output_kind": frozenset({"probability", "score", "value"}),
    "activation": (frozenset({"softmax", "sigmoid"}), None), "transform?": (str, None),
    "vocabulary?": ([str], None), "input_dtype?": (str, None),
}  # fmt: skip
"""What a run's params.safetensors says beside the arrays."""


def save(path: str | Path, tree: Any, metadata: Any = None) -> None:
    """Write a tree of dicts, tuples, lists, None and arrays, and JSON-able `metadata`; whole or not at all.

    Raises: ValueError for a node or leaf of another kind, naming its path; OSError if it cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    structure = _encode(tree, "", arrays)
    about = json.loads(json.dumps({"tree": structure, "metadata": metadata}))
    about |= {SEALS: _digest(about, arrays)}
    # Under one key, for the writer puts several in an order that changes: equal trees make equal files.
    write_atomically(path, safetensors.numpy.save(arrays, {FORMAT: json.dumps(about)}))


def check_kept(net: Layer, params: Any) -> None:
    """Refuse a net that `describe` cannot describe, or parameters that `save` cannot write; their values are not read.

    Raises: ValueError, naming the layer or the path.
    """
    describe(net)
    _encode(jax.tree.map(lambda leaf: np.zeros((), leaf.dtype), params), "", {})


def load(path: str | Path, like: Any = None) -> tuple[Any, Any]:
    """The tree (with numpy arrays) and the metadata of a file; with `like`, a tree of just these shapes and dtypes.

    A file of an older jbp, which has no digest, is read too; what has changed in the numbers of such a one is not seen.

    Raises: ValueError if the file is missing, damaged, not one of `save`, or not like `like`, saying where.
    """
    path = existing_file(path)
    about, arrays = _read(path)
    if about is None:
        raise ValueError(
            f"{path}: expected a file of jbp.checkpoint.save, with {FORMAT!r} in its metadata, found one of another "
            "program or version; read it with safetensors itself"
        )
    try:
        tree, metadata = _decode(about["tree"], arrays), about["metadata"]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a tree of arrays, found a damaged one ({error!r}); save it again"
        ) from error
    return (tree if like is None else _as(like, tree, path)), metadata


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by their names there, whichever program wrote it.

    Raises: ValueError if it is damaged.
    """
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """What `save` says of a file, None if another program wrote it, and its arrays, of the digest they had."""
    try:
        with safe_open(path, framework="numpy") as file:
            words = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, found a damaged one or something else ({error}); save it again"
        ) from error
    text = words.get(FORMAT, words.get(WITHOUT_DIGEST))
    if text is None:
        return None, arrays
    try:
        about = json.loads(text)
        digest = about.pop(SEALS) if FORMAT in words or SEALS in about else None
        sound = digest is None or (FORMAT in words and digest == _digest(about, arrays))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a tree of arrays, found a damaged one ({error!r}); save it again"
        ) from error
    if not sound:
        raise Damaged(
            path, "expected the numbers that were saved, found others, for their SHA-256 is not the one beside them"
        )
    return about, arrays


def _digest(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over the tree, the metadata, and each array's name, dtype, shape and bytes."""
    found = hashlib.sha256(json.dumps([about["tree"], about["metadata"]]).encode())
    for name in sorted(arrays):
        array = arrays[name]
        found.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


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
    vocabulary: Vocabulary | None = None
    """Of a text, its characters; None of all else."""
    input_dtype: str | None = None
    """Of a net that takes whole numbers, their type; None where it takes what its parameters are."""

    def predict(self, x: Any) -> np.ndarray:
        """Probabilities or scores [n, k] of the classes, or values [n, m], for examples as they are in the data.

        Of rows of a table `columns.encode` makes examples. Values are float64, in the units of the data. Of a text,
        what comes next at each place [n, t, k], for tokens [n, t] of up to as many as the net was trained on.

        Raises: ValueError if the examples do not have the run's shape, or hold what is no number or too large.
        """
        if self.transform is not None:
            raise ValueError(
                f"{self.folder}: the net was trained behind the transform {self.transform}, which a run folder "
                "does not hold: apply it yourself, and then jbp.apply(run.net, run.params, x)"
            )
        x = np.asarray(x)
        if self.input_dtype is not None:
            return self.postprocessing(outputs(self.net, self.params, self._whole(x)))
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

    def _whole(self, x: np.ndarray) -> np.ndarray:
        """Examples of whole numbers, as the net takes them.

        Raises: ValueError if they are none, of another shape, or no tokens of the vocabulary.
        """
        shorter = self.vocabulary is not None and x.ndim == 2 and 0 < x.shape[1] <= self.input_shape[0]
        if x.dtype.kind not in "iu" or not (x.shape[1:] == self.input_shape or shorter) or not len(x):
            least = "up to " if self.vocabulary is not None else ""
            raise ValueError(
                f"expected whole numbers [n, {least}{', '.join(map(str, self.input_shape))}], as the run was trained "
                f"on, got {x.dtype} of shape {x.shape}"
            )
        if self.vocabulary is not None and not (x.min() >= 0 and x.max() < len(self.vocabulary)):
            raise ValueError(f"expected tokens 0…{len(self.vocabulary) - 1}, got {x.min()}…{x.max()}")
        return x.astype(self.input_dtype)

    def generate(
        self,
        prompt: str,
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> str:
        """A text that begins with the prompt, with so many characters more, as `jbp.generate` draws them.

        Raises: ValueError for an empty prompt, characters that the text of training had not, or a run of no text.
        """
        if self.vocabulary is None:
            raise ValueError(f"{self.folder}: the run is of no text, and writes none: jbp predict is for it")
        if prompt == "":
            raise ValueError("the prompt is empty: give at least one character, such as a line's end")
        with said_of("prompt"):
            tokens = self.vocabulary.encode(prompt)
        how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "key": jax.random.key(as_seed(seed))}
        return self.vocabulary.decode(generate(self.net, self.params, tokens, length, **how))


def load_run(run: str | Path, layers: Any = None) -> Run:
    """The trained net of a run folder, with params, preprocessing, classes, task and config.

    `layers` is where the layers of the net are that are not jbp's: a Python file, which is then run, a module, or the
    classes themselves. Of the folder only params.safetensors is needed; a config that is damaged is warned of, and {}.

    Raises: ValueError if the folder is none, has no params yet, has damaged ones (saying what of it is whole), or has
    layers that have changed, or are not there (then it is a `jbp.checkpoint.MissingLayers`).
    """
    folder = Path(run)
    if not folder.is_dir():
        raise no_run(folder)
    if not (folder / PARAMS).exists():
        raise _bare(folder)
    return run_with(folder, _config(folder), layers)


def run_with(folder: Path, config: dict[str, Any], layers: Any) -> Run:
    """What `load_run` gives, of a folder that has params, with a config that was read.

    Raises: ValueError as `load_run`.
    """
    with rest_told(folder):
        tree, about = _trained(folder)
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
            vocabulary=None if about.get("vocabulary") is None else Vocabulary(tuple(about["vocabulary"])),
            input_dtype=about.get("input_dtype"),
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
    if x.dtype.kind not in "iu":
        x = x.astype(params_dtype(params), copy=False)
    blocks = []
    for begin in range(0, len(x), size):
        block = x[begin : begin + size]
        filled = np.concatenate([block, np.zeros((size - len(block), *x.shape[1:]), x.dtype)])
        blocks.append(np.asarray(_apply(net, params, filled))[: len(block)])
    return np.concatenate(blocks)


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
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
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


def _bare(folder: Path) -> ValueError:
    """What is wrong with a run folder without parameters."""
    if (folder / SUMMARY).exists() and (found := damaged(folder)):
        return in_words(folder, found)
    seeds = read_config(folder, {}).get("seeds")
    if seeds:
        return ValueError(
            f"{folder}: expected a run of one seed, found one of the seeds {seeds}: a run of many seeds keeps no "
            "parameters; train one with --seed"
        )
    return ValueError(
        f"{folder}: expected a run with {PARAMS}, found one that was cut short before it was written; train again"
    )


def _config(folder: Path) -> dict[str, Any]:
    """The options of a run whose parameters do without; warns where they, or what vouches for them, are damaged."""
    known: dict[str, str] = {}
    try:
        known = seals_of(folder)
    except ValueError as error:
        warnings.warn(f"{error}; nothing else shows whether {CONFIG} is as it was; {PARAMS} is whole", stacklevel=3)
    try:
        return read_config(folder, known)
    except ValueError as error:
        warnings.warn(f"{error}; the options of the run are not known; {PARAMS} is used without them", stacklevel=3)
        return {}


# ── What of a run's folder is whole ──────────────────────────────────────────────────────────────────────────────────


def _trained(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The tree and the facts in a run's params.safetensors.

    Raises: ValueError if it is damaged.
    """
    tree, about = load(folder / PARAMS)
    check_form(folder / PARAMS, about, _FACTS)
    return tree, about


def _read_params(folder: Path, seals: Mapping[str, str]) -> None:
    _trained(folder)
    check_seal(folder / PARAMS, seals)


_READERS: dict[str, Callable[[Path, Mapping[str, str]], Any]] = {
    CONFIG: read_config,
    METRICS: read_rows,
    PARAMS: _read_params,
    SUMMARY: lambda folder, _: read_summary(folder),
}
_SERVES = {
    CONFIG: "the options, for jbp train --config",
    METRICS: "the figures of every epoch",
    PARAMS: "the net, for jbp predict and jbp.load",
    SUMMARY: "what came out, for jbp show and compare",
}


def damaged(folder: Path) -> dict[str, ValueError]:
    """The files of a run that cannot be read, are not what its summary says, or are gone, each with what is wrong.

    Options that were edited are none: whoever reads them is warned.
    """
    found: dict[str, ValueError] = {}
    known: dict[str, str] = {}
    with suppress(ValueError):  # what is wrong with the summary is found below
        known = seals_of(folder)
    for name, read in _READERS.items():
        is_there = (folder / name).exists()
        if not is_there and name in known:
            found[name] = Damaged(folder / name, f"is gone, though {SUMMARY} names it")
        elif is_there or name == CONFIG:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read(folder, known)
            except ValueError as error:
                found[name] = error
    return found


def in_words(folder: Path, damages: Mapping[str, ValueError]) -> ValueError:
    """One error for all that is damaged in a run's folder, and what of it is whole."""
    whole = [f"{name} ({what})" for name, what in _SERVES.items() if name not in damages and (folder / name).exists()]
    return ValueError("; ".join([*map(str, damages.values()), *(["whole: " + ", ".join(whole)] if whole else [])]))


@contextmanager
def rest_told(folder: Path) -> Iterator[None]:
    """What is found damaged inside is told with what else of the run is, and what is whole."""
    try:
        yield
    except ValueError as error:
        found = damaged(folder)
        if not found:
            raise
        raise in_words(folder, found) from error


def input_dtype_of(net: Layer, params: Any, shape: Shape) -> str | None:
    """The type of what a net takes, if it takes whole numbers and no others; nothing is computed."""

    def takes(dtype: Any) -> bool:
        try:
            jax.eval_shape(lambda p, x: apply(net, p, x), params, jax.ShapeDtypeStruct((1, *shape), dtype))
        except ValueError:
            return False
        return True

    return TOKENS if not takes(params_dtype(params)) and takes(TOKENS) else None


def params_dtype(params: Any) -> np.dtype:
    """The type of the arrays in a tree of parameters, which a net's input must have too."""
    return next((leaf.dtype for leaf in jax.tree.leaves(params)), np.dtype(np.float32))


def count(params: Any) -> int:
    """How many numbers a tree of arrays holds."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params))
