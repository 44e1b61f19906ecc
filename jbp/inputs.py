"""What jbp's public functions are handed: nets, losses, optimisers, metrics, callbacks, keys, seeds, examples.

Whichever function gets it, a mistake is told here, so that it is told in the same words. As `jbp.arguments`, which
holds the refusals of plain numbers, shapes, values and files, it knows no class of jbp: they are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

from jbp.arguments import LABELS, came, is_number, is_one_key, nearest, refuse_text

# ── Nets, losses, optimisers, what a run reports ─────────────────────────────────────────────────────────────────────


def check_net(net: Any, layer_class: type, what: str = "the net") -> None:
    """Refuse a net, or `what` is to be a layer, that is none, or that no compiled program could be cached for."""
    if not isinstance(net, layer_class):
        advice = ""
        if isinstance(net, type) and issubclass(net, layer_class):
            advice = f": call it, as in {net.__name__}(...)"
        elif isinstance(net, tuple | list) and net and all(isinstance(layer, layer_class) for layer in net):
            advice = ": several, one after another, are jbp.serial(*layers)"
        elif isinstance(net, str):
            advice = ": a line of text is for jbp train --net"
        raise ValueError(
            f"{what} must be a layer, such as jbp.Dense(10) or jbp.serial(...) of some, but is {came(net)}{advice}"
        )
    check_hashable(net)


def check_loss(loss: Any, loss_class: type) -> None:
    """Refuse a loss that is none; names the one that may be meant."""
    if isinstance(loss, loss_class):
        return
    names = {repr(kind()): kind for kind in _subclasses(loss_class) if kind.__module__ == loss_class.__module__}
    names = sorted(name for name, kind in names.items() if not kind.__name__.startswith("_"))
    said = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
    near = next((name for name in names if said and name.startswith(said)), None) or nearest(said, names)
    if isinstance(loss, type) and issubclass(loss, loss_class):
        advice = f"call it, as in {loss.__name__}()"
    else:
        advice = f"did you mean jbp.losses.{near}?" if near else f"take one of {', '.join(names)}"
        advice = f"{advice} A function has no δ" if callable(loss) and near else advice
    raise ValueError(
        f"the loss must come from jbp.losses, or be an instance of a jbp.losses.Loss, but is {came(loss)}: {advice}"
    )


def check_hashable(layer: Any) -> None:
    """Refuse a layer under which no compiled program could be cached."""
    try:
        hash(layer)
    except TypeError as error:
        name = type(layer).__name__
        raise ValueError(f"{name} cannot be hashed: make it a frozen dataclass without array or list fields") from error


def _subclasses(kind: type) -> Iterator[type]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)


def is_optimizer(value: Any) -> bool:
    """Whether it has what an optax transformation has."""
    return hasattr(value, "init") and hasattr(value, "update") and not isinstance(value, type)


def check_optimizer(optimizer: Any, what: str = "optimizer") -> None:
    """Refuse what is no optax transformation."""
    if is_optimizer(optimizer):
        return
    advice = "take jbp.optim.sgd(0.1), or one such as optax.adam(0.001)"
    if callable(optimizer) and not isinstance(optimizer, type):
        name = getattr(optimizer, "__name__", "function")
        advice = f"call it, as in {name}(0.1), or sweep it by jbp.fit_many(..., learning_rates=[...])"
    raise ValueError(f"{what} must come from jbp.optim or optax, but is {came(optimizer)}: {advice}")


def as_metrics(metrics: Any) -> tuple[tuple[str, Any], ...]:
    """Metrics {name: function} as pairs.

    Raises:
        ValueError: if they are none, or have no names of their own.
    """
    pairs = metrics.items() if isinstance(metrics, Mapping) else () if metrics is None else metrics
    try:
        found = tuple((name, metric) for name, metric in pairs)
        sound = all(isinstance(n, str) and callable(m) and not isinstance(m, type) for n, m in found)
    except (TypeError, ValueError):
        found, sound = (), False
    if not sound:
        raise ValueError(f"metrics must be functions by name, as {{'accuracy': jbp.accuracy}}, but are {came(metrics)}")
    names = [name for name, _ in found]
    if "loss" in names or len(set(names)) < len(names):
        raise ValueError(f"metrics must have names of their own, and 'loss' is taken, but are named {', '.join(names)}")
    return found


def as_callbacks(callbacks: Any) -> tuple[Callable[[Any], Any], ...]:
    """Callbacks, in whatever they came, as a tuple.

    Raises:
        ValueError: if they are no functions, or one that stands alone.
    """
    several = isinstance(callbacks, Iterable) and not isinstance(callbacks, str | Mapping)
    found: tuple[Any, ...] = tuple(callbacks) if several else (None,)
    if not all(map(callable, found)):
        advice = ": one alone is callbacks=[function]" if callable(callbacks) else ""
        raise ValueError(f"callbacks must be functions of an event, as [function], but are {came(callbacks)}{advice}")
    return found


def check_params(params: Any) -> None:
    """Refuse parameters that are no tree of arrays; whether they are this net's, its layers say."""
    if isinstance(params, tuple) and len(params) == 2 and _is_shape(params[1]):
        raise ValueError(
            "params must be the first of the two that net.init returns, but are both: params, out_shape = net.init(...)"
        )
    for path, leaf in tree_leaves_with_path(params):
        if not is_number(leaf) and not isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                f"params must be a tree of arrays, as net.init makes it, but params{keystr(path)} is {came(leaf)}"
            )


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and value != () and all(isinstance(size, int) for size in value)


# ── Keys, seeds, examples ───────────────────────────────────────────────────────────────────────────────────────────


def check_key(key: Any, needed: bool = False) -> None:
    """Refuse what is no single key; None, where there is no need for one, passes."""
    if is_one_key(key) or (key is None and not needed):
        return
    advice = f": write jax.random.key({key})" if isinstance(key, int | np.integer) and not isinstance(key, bool) else ""
    raise ValueError(f"key must come from jax.random.key(seed), but is {came(key)}{advice}")


def as_pair(name: str, data: Any) -> tuple[Any, Any]:
    """Data (x, y), as they are.

    Raises:
        ValueError: if they are no pair.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        size = f" of {len(data)}" if isinstance(data, tuple | list) else ""
        advice = "; example weights are given as weights=" if size == " of 3" else ""
        by_number = hasattr(data, "__getitem__") and not isinstance(data, Mapping) and not hasattr(data, "__array__")
        if hasattr(data, "__next__") or (by_number and not size):
            advice = "; batches are given as jbp.data.Stream(batches, steps=)"
        raise ValueError(f"{name} must be a pair (x, y) of arrays, but is a {type(data).__name__}{size}{advice}")
    return data[0], data[1]


def one_array(name: str, values: Any) -> Any:
    """One array of numbers: `values`, which may be numbers in lists too, or a data frame or tensor (`as_arrays`).

    Raises:
        ValueError: if they are none.
    """
    if values is None:
        raise ValueError(f"{name} must be an array [n, ...], but is None")
    if isinstance(values, int | float | complex | list | tuple):
        try:
            values = np.asarray(values)
        except ValueError as error:
            raise ValueError(f"{name} must be an array [n, ...], but its lists are of several lengths") from error
    return as_arrays(name, values)


def refuse_source(name: str, values: Any) -> None:
    """Refuse rows that can only be asked for one at a time, as those of a torch data set: NumPy would go through them
    all, however many there are."""
    if not (hasattr(values, "__getitem__") and hasattr(values, "__len__")) or hasattr(values, "__array__"):
        return
    if isinstance(values, Sequence | Mapping | memoryview | bytearray) or hasattr(values, "__jax_array__"):
        return
    raise ValueError(
        f"{name} must be an array [n, ...], but is a {type(values).__name__}, rows that are read one at a time: make "
        "jbp.data.Rows of them, if it has shape, dtype and rows by their numbers, or a jbp.data.Stream of batches"
    )


def as_arrays(name: str, tree: Any) -> Any:
    """`tree` with arrays of numbers for leaves; a data frame or a tensor of another library is asked for its array.

    Raises:
        ValueError: if a leaf is none; if x has no leaf.
    """
    if name[0] == "x" and not jax.tree.leaves(tree):
        raise ValueError(f"{name} must be an array [n, ...], but is {came(tree)}")
    return jax.tree.map(lambda leaf: _as_array(name, leaf, tree), tree)


def _as_array(name: str, leaf: Any, tree: Any) -> Any:
    is_numpy = isinstance(leaf, np.ndarray | np.generic)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) or (is_numpy and leaf.dtype.kind not in "USO"):
        return leaf
    if hasattr(leaf, "__jax_array__"):
        return jnp.asarray(leaf)
    advice = LABELS if name[0] == "y" else "make numbers of it, or leave it out"
    if isinstance(leaf, str):
        raise ValueError(f"{name} must be numbers, but is text: {advice}")
    refuse_source(name, leaf)
    if not hasattr(leaf, "__array__"):
        raise ValueError(f"{name} must be an array [n, ...], but is a {type(tree).__name__}: wrap it in jnp.asarray")
    try:
        values = np.asarray(leaf)
    except (RuntimeError, TypeError, ValueError) as error:  # a tensor on a device, or one that wants a gradient
        raise ValueError(f"{name} must be an array [n, ...], but {type(leaf).__name__} gives none: {error}") from error
    refuse_text(name, values, advice)
    return values


def check_mask(mask: Any, n: int, weights: Any = None) -> None:
    """Refuse a mask that is not of bools [n, t], and, where values are known, an example in which no position is real.

    An example of weight 0 may have none. Raises ValueError.
    """
    if mask is None:
        return
    shape = jnp.shape(mask)
    if not jnp.issubdtype(jnp.result_type(mask), jnp.bool_) or shape[:1] != (n,) or len(shape) < 2:
        raise ValueError(
            f"mask must be bools [{n}, t], True where a position is real, but is {jnp.result_type(mask)} of shape "
            f"{shape}"
        )
    if isinstance(mask, Tracer) or isinstance(weights, Tracer):
        return
    empty = ~np.asarray(mask).reshape(n, -1).any(1)
    if weights is not None and np.shape(weights) == (n,):
        empty &= np.asarray(weights) != 0
    if empty.any():
        raise ValueError(
            f"mask has no real position in row {int(np.argmax(empty))}: give that example the weight 0, or leave it out"
        )
