"""What jbp accepts from whoever calls it, and how it says what is wrong: every refusal that several places make.

Nothing of jbp is imported here, so that everything may import it; classes to look for are handed in. Each function
either answers with the value in the form that jbp works with (`as_…`), or refuses what is wrong (`check_…`,
`refuse_…`) by a ValueError that says what was expected, what came and, where that is not plain, what to do.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

Shape = tuple[int, ...]


# ── Numbers and choices ─────────────────────────────────────────────────────────────────────────────────────────────


def as_count(value: Any, what: str, low: int = 1) -> int:
    """`value` as an int of at least `low`.

    Raises:
        ValueError: naming `what`, if it is not one.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = low - 1
    if count < low or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number of at least {low}, but is {came(value)}")
    return count


def as_seed(value: Any, what: str = "seed") -> int:
    """`value` as an int that JAX makes a key of its own from: one of 0 to 2**32 − 1.

    Of a larger one JAX takes the low 32 bits, without x64: the runs of 3 and of 3 + 2**32 would be one.

    Raises:
        ValueError: naming `what`, if it is not one.
    """
    try:
        seed = -1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError as error:
        advice = ": take the number that the key was made from" if is_key(value) else ""
        raise ValueError(f"{what} must be a whole number from 0 to 2**32 - 1, but is {came(value)}{advice}") from error
    if not 0 <= seed < 2**32:
        raise ValueError(
            f"{what} must be a whole number from 0 to 2**32 - 1, but is {value!r}: of others only the low 32 bits "
            "count, so that two of them could be the same run"
        )
    return seed


def as_number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a finite float in [low, high).

    Raises:
        ValueError: naming `what`, if it is not one.
    """
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and low <= number < high):
        span = f" in [{low:g}, {high:g})" if (low, high) != (-math.inf, math.inf) else ""
        raise ValueError(f"{what} must be a finite number{span}, but is {came(value)}")
    return number


def check_scalar(what: str, value: Any, allowed: Callable[[float], bool], wanted: str, advice: str) -> None:
    """Refuse what is no real scalar, or one that is not `allowed`; the value of a jax array is not read."""
    # Of a jax array only shape and dtype count: it may be traced, and reading it would wait for the device.
    known = not isinstance(value, jax.Array)
    array = np.asarray(value) if known else value
    real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    if array.shape == () and real and (not known or allowed(float(array))):
        return
    raise ValueError(f"{what} must be {wanted}, but is {came(value)}: {advice}")


def check_max_norm(max_norm: Any, automatic: bool = False, name: str = "max_norm") -> None:
    """Refuse a bound that is not a positive number, and finite if `automatic`; a traced one is not read."""
    if isinstance(max_norm, Tracer):
        return
    try:
        value = math.nan if isinstance(max_norm, bool | str) else float(max_norm)
    except (TypeError, ValueError):
        value = math.nan
    if not value > 0 or (automatic and math.isinf(value)):
        limit = "finite " if automatic else ""
        raise ValueError(f"{name} must be a positive {limit}number, but is {came(max_norm)}")


def as_bool(value: Any, what: str, advice: str = "") -> bool:
    """`value` as a bool, if it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{what} must be True or False, but is {value!r}{advice and f': {advice}'}")
    return bool(value)


def check_one_of(value: Any, what: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of a few."""
    if value not in choices:
        *first, last = map(repr, choices)
        raise ValueError(f"{what} must be {', '.join(first)} or {last}, but is {value!r}")


def check_choice(what: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse a name that is none of those known, if there are any; names the nearest."""
    choices = tuple(choices)
    if choices and value not in choices:
        hint = did_you_mean(str(value), choices)
        raise ValueError(f"unknown {what} {value!r}: expected one of {', '.join(choices)}{hint}")


def came(value: Any) -> str:
    """What was given, for the end of an error: in a few words, on one line."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if is_key(value):
        return "a key" if jnp.shape(value) == () else f"keys of shape {jnp.shape(value)}"
    is_one = isinstance(value, np.ndarray | np.generic) and value.shape == ()
    if hasattr(value, "shape") and hasattr(value, "dtype") and not is_one:
        return f"an array {value.dtype}{list(value.shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"a {type(value).__name__}"


def check_function(value: Any, what: str) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise ValueError(f"{what} must be a function, but is {value!r}")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of the known names, or nothing if none is near."""
    near = nearest(given, known)
    return "" if near is None else f"; did you mean {near!r}?"


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The nearest of the known names, or None if none is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[near[0]] if near else None


def listed(names: Iterable[object], limit: int = 20) -> str:
    """The names with commas between; of a long list the first ones and how many there are."""
    names = [str(name) for name in names]
    return ", ".join(names) if len(names) <= limit else f"{', '.join(names[:limit])}, … ({len(names)} in all)"


# ── Layers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_shape(shape: Any) -> Shape:
    """`shape` as a tuple of ints: the shape of one example, without the batch axis."""
    try:
        entries = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        result = tuple(operator.index(entry) for entry in entries)
    except TypeError:
        result = (-1,)
    if any(entry < 1 for entry in result):
        raise ValueError(f"the shape of one example must be a tuple of positive whole numbers, but is {shape!r}")
    return result


def same_shape(layer: Any, delta: Any, shape: Shape) -> None:
    """Refuse a δ that has not the shape of the output it belongs to."""
    if delta.shape != shape:
        raise ValueError(f"{layer!r} got a δ of shape {delta.shape} for an output of shape {shape}")


def needs_floats(layer: Any, x: Any) -> None:
    """Refuse input of integers; complex passes, for the complex-step check."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ValueError(f"{layer!r} needs floating-point input, but got {x.dtype}: convert it first")


def no_params(layer: Any, params: Any) -> None:
    """Refuse parameters for a layer that has none."""
    if params != ():
        raise ValueError(f"{layer!r} has no parameters and takes (), but got {leaf_shapes(params)}")


def leaf_shapes(tree: Any) -> Any:
    """The shapes in a tree of arrays, for messages."""
    return jax.tree.map(lambda leaf: tuple(getattr(leaf, "shape", ())), tree)


def check_direction(v: Any, params: Any, dtypes: bool = False) -> None:
    """Refuse a v that is no tree of real numbers like the parameters, of which only shapes are looked at; with `dtypes`
    also another dtype than theirs, or than float32 where theirs has 16 bits. The leaf is named."""
    told = "v must be a tree like the parameters, but "
    wanted, found = ({keystr(path): leaf for path, leaf in tree_leaves_with_path(tree)} for tree in (params, v))
    for path, leaf in wanted.items():
        if path not in found:
            raise ValueError(f"{told}has nothing at v{path}, where they have an array of shape {jnp.shape(leaf)}")
        given = found[path]
        if not is_number(given) or is_key(given) or jnp.iscomplexobj(given):
            raise ValueError(f"{told}v{path} is {came(given)}, where they have real numbers")
        if jnp.shape(given) != jnp.shape(leaf):
            raise ValueError(f"{told}v{path} has shape {jnp.shape(given)} in place of {jnp.shape(leaf)}")
        own = jax.dtypes.canonicalize_dtype(dtype_of(given))
        if dtypes and own not in (leaf.dtype, at_least_float32(leaf.dtype)):
            raise ValueError(f"{told}v{path} is of {own} in place of {leaf.dtype}: take v{path}.astype({leaf.dtype})")
    if more := [path for path in found if path not in wanted]:
        raise ValueError(f"{told}has v{more[0]} besides")
    if jax.tree.structure(v) != jax.tree.structure(params):
        raise ValueError(f"{told}is {jax.tree.structure(v)} in place of {jax.tree.structure(params)}")


# ── Batches of examples ─────────────────────────────────────────────────────────────────────────────────────────────


def batch_size(x: Any, y: Any, weights: Any = None) -> int:
    """N, if the inputs, the targets and the weights, where there are any, agree on it."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves((x, y, weights))]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        what = "x and y" if weights is None else "x, y and weights"
        raise ValueError(f"{what} must hold the same number of examples, at least one, but have shapes {shapes}")
    return sizes.pop()[0]


def check_batch_size(size: int, n: int) -> None:
    """Refuse a batch of more examples than there are."""
    if size > n:
        raise ValueError(f"batch_size must be at most the number of training examples, {n}, but is {size}")


def check_weights(weights: Any, n: int, least: float = -math.inf) -> None:
    """Refuse example weights that are not one finite number ≥ `least` for each of the n examples; traced ones are not
    read."""
    is_array = isinstance(weights, jax.Array | np.ndarray)
    if weights is not None and (not is_array or weights.shape != (n,)):
        found = f"shape {weights.shape}" if is_array else f"type {type(weights).__name__}"
        raise ValueError(f"weights must be an array of one number for each of the {n} examples, but have {found}")
    if weights is None or isinstance(weights, Tracer):
        return
    sound = np.isfinite(weights) & (np.asarray(weights) >= least)
    if not sound.all():
        bad = np.flatnonzero(~sound)
        wanted = "finite" if least == -math.inf else f"finite and at least {least:g}"
        raise ValueError(
            f"weights must be {wanted}, but are {weights[bad[0]]} at {bad.tolist()}: take 0 for a row to leave out"
        )


# ── Trees that are looked into: a check compares every number in them ───────────────────────────────────────────────


def dtype_of(leaf: Any) -> Any:
    """The dtype of a leaf: an array's own, or the one JAX would give a number."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def is_narrow(dtype: Any) -> bool:
    """Whether a floating-point type has fewer than 32 bits."""
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.finfo(dtype).bits < 32


def is_number(leaf: Any) -> bool:
    """Whether a leaf is something JAX computes with: an array (keys included) or a Python number."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))


def is_float(leaf: Any) -> bool:
    """Whether a leaf can be differentiated here: real floating point."""
    return is_number(leaf) and jnp.issubdtype(dtype_of(leaf), jnp.floating)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key."""
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_one_key(key: Any) -> TypeGuard[jax.Array]:
    """Whether it is one typed key, or a raw one of the older kind."""
    if not isinstance(key, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return False
    shape = jnp.shape(key)
    return shape == () if is_key(key) else len(shape) == 1 and jnp.issubdtype(key.dtype, jnp.unsignedinteger)


def as_key(key: int | jax.Array) -> jax.Array:
    """A PRNG key, from one or from a seed.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return jax.random.key(as_seed(key))
    if not is_one_key(key):
        raise ValueError(f"key must be a seed or one key from jax.random.key(seed), but is {came(key)}")
    return key


def as_dtype(dtype: Any) -> Any:
    """The floating-point type that is named; float64 where JAX has it enabled, else float32, if none is.

    Raises:
        ValueError: if it is no real floating-point type.
    """
    try:
        kind = jnp.dtype(dtype or (jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32))
    except TypeError as error:
        raise ValueError(f"dtype must be a floating-point type such as 'float32', but is {dtype!r}") from error
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"dtype must be a floating-point type, but is {kind}: integer input goes in as x")
    return kind


def at_least_float32(dtype: Any) -> Any:
    """In which numbers of this type are squared, summed and compared: in its own, or float32 for floats of 16 bits.

    float16 ends at 65504 and, downwards, at 6e-8, so that a norm of 300 has no square in it; bfloat16 has 8 bits, and a
    sum of ones in it ends at 256.
    """
    return jnp.dtype(jnp.float32 if is_narrow(dtype) else dtype)


def promoted(*arrays: Any) -> list[Any]:
    """Arrays in one dtype, as `@` promotes, or refuses to where JAX is told to."""
    if len({a.dtype for a in arrays}) == 1:
        return list(arrays)
    dtype = jnp.promote_types(*(a.dtype for a in arrays))
    return [a.astype(dtype) for a in arrays]


def refuse_complex(name: str, tree: Any) -> None:
    """Refuse complex numbers, whose derivative has more than one convention, naming the leaf."""
    for path, leaf in tree_leaves_with_path(tree):
        if (hasattr(leaf, "dtype") or is_number(leaf)) and jnp.issubdtype(dtype_of(leaf), jnp.complexfloating):
            raise ValueError(
                f"{name}{keystr(path)} is {dtype_of(leaf)}, but complex is not supported: check its real parts"
            )


def refuse_empty(name: str, tree: Any, advice: str = "there would be nothing to check") -> None:
    """Refuse a leaf of no numbers, naming it."""
    for path, leaf in tree_leaves_with_path(tree):
        shape = getattr(leaf, "shape", ())
        if 0 in shape:
            raise ValueError(f"{name}{keystr(path)} is empty, of shape {shape}: {advice}")


def refuse_classes(name: str, classes: Any, k: int) -> None:
    """Refuse integers that are no classes 0…k−1, naming the first."""
    wrong = [int(c) for c in np.asarray(classes).ravel() if not 0 <= c < k]
    if wrong:
        raise ValueError(f"{name} must hold classes 0…{k - 1} of {k} outputs, but holds {wrong[0]}: correct the labels")


LABELS = "number the labels 0…k−1, as classes, labels = numpy.unique(y, return_inverse=True) does"


def refuse_text(name: str, values: np.ndarray, advice: str) -> None:
    """Refuse text and objects, which no net computes with."""
    kinds = (jnp.bool_, jnp.integer, jnp.inexact)
    if values.dtype.kind in "USO" or not any(jnp.issubdtype(values.dtype, kind) for kind in kinds):
        kind = "text" if values.dtype.kind in "US" else f"of {values.dtype}"
        raise ValueError(f"{name} must be numbers, but is {kind}: {advice}")


def as_target_values(name: str, targets: Any) -> np.ndarray:
    """Targets as NumPy has them, not narrowed.

    Raises:
        ValueError: if they are no real numbers.
    """
    values = np.asarray(targets)
    refuse_text(name, values, LABELS)
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(f"{name} must be real numbers, but is {values.dtype}: take the real part")
    return values


def refuse_targets(name: str, values: Any, sound: Any, wanted: str, counts: Any = None, advice: str = "") -> None:
    """Refuse targets of which one is not `sound`, naming its row; of those that do not count none is looked at."""
    if counts is not None:
        counts = np.asarray(counts)
        sound = sound | ~counts.reshape(counts.shape + (1,) * (np.ndim(sound) - counts.ndim))
    if not np.all(sound):
        row, *at = map(int, np.argwhere(~sound)[0])
        place = f", at {at}" if at else ""
        raise ValueError(
            f"{name} must hold {wanted}, but row {row} has {values[(row, *at)]}{place}{advice and f': {advice}'}"
        )


def check_narrowing(name: str, values: Any, spread: bool = False) -> None:
    """Refuse numbers that JAX, as it is set, would not keep when it takes them over: integers that would wrap, numbers
    that would overflow and, if `spread`, columns of floats whose differences would be lost in rounding.

    JAX has 32-bit types unless `jax_enable_x64` is set. Its own arrays, which are narrowed already, are not looked at.
    """
    if (
        isinstance(values, jax.Array)
        or not hasattr(values, "dtype")
        or values.dtype.kind not in "iuf"
        or not values.size
    ):
        return
    narrow = jax.dtypes.canonicalize_dtype(values.dtype)
    if narrow == values.dtype:
        return
    least, most = values.min(), values.max()
    info = jnp.finfo(narrow) if values.dtype.kind == "f" else jnp.iinfo(narrow)
    if least < info.min or most > info.max:
        worst = most if most > info.max else least
        if values.dtype.kind != "f" or np.isfinite(worst):
            raise ValueError(f"{name} holds {worst}, which {narrow} cannot: scale it, or set jax_enable_x64")
    if spread and values.dtype.kind == "f":
        _check_spread(name, values.reshape(len(values), -1), narrow)


def too_few_left(many: int, left: int) -> bool:
    """Whether too few of so many different values are left different in a narrower type.

    Of at most twenty none may be lost; of more at most half, because among many numbers some lie closer than any type
    tells apart.
    """
    return many > left and (many <= 20 or many - left > many / 2)


STEPS = 256
"""A column that is spread over fewer steps of the type that it is rounded to is looked at number by number."""


def _check_spread(name: str, columns: np.ndarray, narrow: Any) -> None:
    """Refuse columns [n, m] whose different values rounding to `narrow` would make one."""
    low, high = columns.min(0), columns.max(0)
    step = np.spacing(np.maximum(abs(low), abs(high)).astype(narrow)).astype(np.float64)
    # Nearer than a few roundings of their own they are one number, 0.3 and 3 · 0.1, and nothing is swallowed.
    differ = high - low > 8 * np.spacing(np.maximum(abs(low), abs(high)))
    for j in np.flatnonzero(differ & ~(high - low >= STEPS * step)):
        column = columns[:, j]
        if np.isfinite(column).all() and too_few_left(*(len(np.unique(a)) for a in (column, column.astype(narrow)))):
            which = f"column {j} of {name}" if columns.shape[1] > 1 else name
            raise ValueError(
                f"{which} lies between {low[j]!s} and {high[j]!s}, where {narrow} has steps of {step[j]:g}: take the "
                "offset away first, as (x - x.mean(0)) / x.std(0) in float64"
            )


def check_finite(name: str, tree: Any) -> None:
    """Refuse NaN and infinities, naming the leaf and the place in it; traced leaves are not read."""
    for path, leaf in tree_leaves_with_path(tree):
        if is_float(leaf) and not isinstance(leaf, Tracer):
            values = np.asarray(leaf).astype(np.float64)
            if not np.isfinite(values).all():
                at, what = tuple(map(int, np.argwhere(~np.isfinite(values))[0])), f"{name}{keystr(path)}"
                raise ValueError(f"{what} must be finite to be checked, but is {values[at]} at {list(at)}")


# ── Files and folders ───────────────────────────────────────────────────────────────────────────────────────────────


def existing_file(path: str | Path) -> Path:
    """The path, if there is a file with something in it.

    Raises: ValueError if there is none, or it is a folder, empty, or cannot be looked at.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(f"{path}: expected a file, found a folder; give the path of the file in it")
        if not path.exists():
            raise ValueError(f"{path}: expected a file, found nothing there; check the path")
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: expected data, found an empty file; make or fetch it again")
    except OSError as error:
        raise cannot_read(path, error) from error
    return path


def cannot_read(path: str | Path, error: OSError) -> ValueError:
    """The ValueError for a file the operating system does not let us read."""
    return ValueError(f"{path}: expected a readable file, but {error.strerror or error}; check its permissions")


@contextmanager
def about(path: object) -> Iterator[None]:
    """Whatever is found wrong with a file, inside, is said after its path."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8 text, found other bytes ({error.reason}); save it as UTF-8"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_new(path: Path, overwrite: bool, what: str = "it") -> None:
    """Refuse to write where something is, unless it is to be replaced."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: exists already; choose another name for out, or pass overwrite to replace {what}")


def no_run(path: Path, hint: str = "") -> ValueError:
    """The ValueError for what is not the folder of a run; `hint` names a nearer one."""
    found = "another folder" if path.is_dir() else "a file" if path.exists() else "nothing there"
    return ValueError(f"{path}: expected the folder of a run, found {found}{hint or '; `jbp train` makes one'}")


def no_npz(path: Path) -> ValueError:
    """The ValueError for what is no archive of arrays."""
    return ValueError(
        f"{path}: expected an .npz file, found a damaged one or something else; write it again with numpy.savez"
    )


# ── What a file of data holds ───────────────────────────────────────────────────────────────────────────────────────


def unknown_data(data: str, names: Iterable[str], also: str = "") -> ValueError:
    """The ValueError for what is neither the name of a data set nor a file of data, nor what `also` says."""
    names = tuple(names)
    return ValueError(
        f"unknown data {data!r}: expected one of {', '.join(names)}, or a path ending .npz, .csv or .tsv{also}"
        f"{did_you_mean(data, names)}"
    )


def check_columns(columns: list[str]) -> None:
    """Refuse names that more than one column of a table has."""
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ValueError(f"expected a different name for every column, found {listed(twice)} more than once; rename")


def check_cells(row: list[str], columns: list[str], where: str) -> None:
    """Refuse a row that has not a cell for every column."""
    if len(row) != len(columns):
        raise ValueError(
            f"expected {len(columns)} cells, as in the header, found {len(row)} in {where}; "
            "complete the row, and quote text in which the delimiter stands"
        )


def is_numeric(cell: str) -> bool:
    """Whether a cell of a table holds a number."""
    try:
        float(cell)
    except ValueError:
        return False
    # Python's float also reads 1_000, which in a table is more likely a slip than a thousand.
    return "_" not in cell


def no_number(cell: str, where: str) -> ValueError:
    """The ValueError for a cell that should hold a number."""
    advice = "write a number (0.5, without leading zeros), or leave out the row or column"
    return ValueError(f"expected a number, found {shown_cell(cell)} at {where}; {advice}")


def shown_cell(cell: str) -> str:
    """A cell's text, for messages."""
    return repr(cell.strip()) if cell.strip() else "an empty cell"


# ── Warnings ──────────────────────────────────────────────────────────────────────────────────────────────


def renamed(old: str, new: str) -> None:
    """Warn that a name has changed; the caller then answers under the old one, for this version."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)


def warn_user(message: str) -> None:
    """Warn at the line of the user's own that led here: the nearest one that is neither jbp's nor of what it calls."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


_LIBRARIES = tuple(str(Path(file).parent) + os.sep for file in (__file__, jax.__file__))
