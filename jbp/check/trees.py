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
    """A PRNG key, from one or from a seed."""
    return jax.random.key(key) if isinstance(key, (int, np.integer)) else key


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

    return [jnp.asarray(leaves[i]) for i in at], rebuild


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
    return jax.tree.unflatten(structure, [jnp.asarray(rng.normal(size=a.shape).astype(a.dtype)) for a in leaves])


def cast(tree: Any, dtype: Any) -> Any:
    """Every floating-point leaf in `dtype`; the others as they are."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype) if is_float(leaf) else leaf, tree)


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
