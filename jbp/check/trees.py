"""Trees of arguments: which leaves can be differentiated, and random numbers in their shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path

Leaves = list[Any]


def as_key(key: int | Array) -> Array:
    """A PRNG key, from one or from a seed.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return jax.random.key(key)
    given: Any = key
    shape = jnp.shape(given) if hasattr(given, "dtype") else None
    raw = shape is not None and not is_key(given) and jnp.issubdtype(given.dtype, jnp.unsignedinteger)
    if shape is None or not ((is_key(given) and shape == ()) or (raw and len(shape) == 1)):
        raise ValueError(f"key must be a seed or one key from jax.random.key(seed), but is {key!r}")
    return given


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


def refuse_complex(name: str, tree: Any) -> None:
    """Refuse complex numbers, whose derivative has more than one convention.

    Raises:
        ValueError: naming the leaf.
    """
    for path, leaf in zip(paths(tree, name), jax.tree.leaves(tree), strict=True):
        if (hasattr(leaf, "dtype") or is_number(leaf)) and jnp.issubdtype(dtype_of(leaf), jnp.complexfloating):
            raise ValueError(f"{path} is {dtype_of(leaf)}, but complex is not supported: check its real parts")


def dtype_of(leaf: Any) -> Any:
    """The dtype of a leaf: an array's own, or the one JAX would give a number."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def is_number(leaf: Any) -> bool:
    """Whether a leaf is something JAX computes with: an array (keys included) or a Python number."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))


def is_float(leaf: Any) -> bool:
    """Whether a leaf can be differentiated here: real floating point."""
    return is_number(leaf) and jnp.issubdtype(dtype_of(leaf), jnp.floating)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def paths(tree: Any, name: str = "", is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """The path of each leaf, after `name`."""
    return [name + keystr(path) or "()" for path, _ in tree_flatten_with_path(tree, is_leaf)[0]]


def split(tree: Any) -> tuple[Leaves, Callable[[Iterable[Any]], Any]]:
    """The leaves that can be differentiated, and the function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    at = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def rebuild(floats: Iterable[Any]) -> Any:
        new = list(leaves)
        for i, leaf in zip(at, floats, strict=True):
            new[i] = leaf
        return jax.tree.unflatten(structure, new)

    return [as_array(leaves[i]) for i in at], rebuild


def floats_of(tree: Any, like: Any, is_leaf: Callable[[Any], bool] | None = None) -> Leaves:
    """The leaves of `tree` that stand where `like`, a tree of the same structure, has differentiable ones."""
    leaves = jax.tree.leaves(tree, is_leaf=is_leaf)
    return [leaf for leaf, other in zip(leaves, jax.tree.leaves(like), strict=True) if is_float(other)]


def entropy(key: Any, *path: int) -> tuple[int, ...]:
    """Seeds from a key or from other seeds, one for each `path`."""
    if isinstance(key, tuple):
        return (*key, *path)
    data = jax.random.key_data(key) if is_key(key) else key
    return (*(int(word) for word in np.asarray(data).ravel()), *path)


def normal(seed: Any, tree: Any) -> Any:
    """Independent normals in the shapes and dtypes of `tree`, whose leaves are floats.

    Drawn by numpy: JAX would compile a program for every shape, and compiling is what a check spends its time on.
    """
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(entropy(seed))
    return jax.tree.unflatten(structure, [as_array(rng.normal(size=a.shape).astype(a.dtype)) for a in leaves])


def as_array(values: Any) -> Array:
    """Numbers as an array of JAX. `jnp.asarray` compiles a program for every shape of numpy's."""
    return values if isinstance(values, Array) else jax.device_put(values)


def cast(tree: Any, dtype: Any) -> Any:
    """Every floating-point leaf in `dtype`; the others as they are."""

    def one(leaf: Any) -> Any:
        if not is_float(leaf):
            return leaf
        if isinstance(leaf, Tracer):
            return leaf.astype(dtype)
        return as_array(np.asarray(leaf).astype(dtype))

    return jax.tree.map(one, tree)


def times(scale: float, x: Any) -> Array:
    """scale · x, by numpy, which compiles nothing."""
    a = np.asarray(x)
    return as_array((a * np.asarray(scale, a.dtype)).astype(a.dtype))


def nudged(tree: Any, seed: Any) -> Any:
    """Every floating-point entry moved by a rounding or two: times 1 ± eps, at random."""

    def one(a: Any, sign: Any) -> Any:
        step = 1 + jnp.finfo(a.dtype).eps * np.sign(np.asarray(sign).astype(np.float64))
        return as_array((np.asarray(a).astype(np.float64) * step).astype(a.dtype))

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure, [one(a, normal(entropy(seed, i), a)) if is_float(a) else a for i, a in enumerate(leaves)]
    )


def refuse_classes(name: str, classes: Any, k: int) -> None:
    """Refuse integers that are no classes 0…k−1.

    Raises:
        ValueError: naming the first.
    """
    wrong = [int(c) for c in np.asarray(classes).ravel() if not 0 <= c < k]
    if wrong:
        raise ValueError(f"{name} must hold classes 0…{k - 1} of {k} outputs, but holds {wrong[0]}: correct the labels")


def check_finite(name: str, tree: Any) -> None:
    """Refuse NaN and infinities.

    Raises:
        ValueError: naming the leaf and the place in it.
    """
    for path, leaf in zip(paths(tree, name), jax.tree.leaves(tree), strict=True):
        if is_float(leaf) and not isinstance(leaf, Tracer):
            values = np.asarray(leaf).astype(np.float64)
            if not np.isfinite(values).all():
                at = tuple(map(int, np.argwhere(~np.isfinite(values))[0]))
                raise ValueError(f"{path} must be finite to be checked, but is {values[at]} at {list(at)}")
