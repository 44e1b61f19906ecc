"""Trees of arguments: which leaves can be differentiated, and random numbers in their shapes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jbp.arguments import is_float, is_key

Leaves = list[Any]


def split(tree: Any, fixed: Collection[int] = ()) -> tuple[Leaves, Callable[[Iterable[Any]], Any]]:
    """The leaves that can be differentiated, and the function that puts others in their place; those that are `fixed`,
    by their number among them, stay."""
    leaves, structure = jax.tree.flatten(tree)
    at = [i for i, leaf in enumerate(leaves) if is_float(leaf)]
    at = [i for number, i in enumerate(at) if number not in fixed]

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
