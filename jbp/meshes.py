"""Data that are spread over several devices. Nothing of jbp is imported here: everything may import it.

Under `jax.shard_map` each device sees its own examples, and a value varies from device to device or does not: `alike`
gives the start of a scan the type of what is added to it. Under a mesh with explicit axes, JAX's default, every array's
type says how it is spread, and many operations refuse to guess how their answer is; `placed` hands such axes to the
compiler while a function of jbp runs, so that layers and losses, which are written for one example, need not know of
them, and says at the end how the answer is spread. Either is looked at while tracing only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec, reshard, use_abstract_mesh

P = ParamSpec("P")
R = TypeVar("R")


def alike(start: Any, *sources: Any) -> Any:
    """`start`, varying over the devices of a `shard_map` wherever an array of `sources` or of itself does."""
    return _varied(start, frozenset().union(*map(_varying, jax.tree.leaves((start, sources)))))


def added_up(function: Callable[[Any], Any], rows: Any) -> Any:
    """Σ function(row) over the first axis of the arrays in `rows`, one row after another, so that only one is there."""
    axes: list[frozenset[str]] = []  # what `function` closes over may vary where no row does

    def first(rows: Any) -> Any:
        found = function(jax.tree.map(lambda a: a[0], rows))
        axes.extend(map(_varying, jax.tree.leaves(found)))
        return found

    start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(first, rows))
    start = _varied(start, frozenset().union(*axes, *map(_varying, jax.tree.leaves(rows))))

    def add(sums: Any, row: Any) -> tuple[Any, None]:
        return alike(jax.tree.map(jnp.add, sums, function(row)), start), None

    return lax.scan(add, start, rows)[0]


def _varying(a: Any) -> frozenset[str]:
    return jax.typeof(a).manual_axis_type.varying if isinstance(a, jax.Array) else frozenset()


def _varied(tree: Any, axes: frozenset[str]) -> Any:
    def one(a: Any) -> Any:
        missing = tuple(sorted(axes - _varying(a)))
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(one, tree) if axes else tree


def compiler_divides() -> bool:
    """Whether the compiler spreads arrays over several devices, along an axis of the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and any(mesh.shape[name] > 1 for name in mesh.auto_axes)


def on_every_device(tree: Any) -> Any:
    """A tree whose arrays the compiler is to make whole on every device, where it would spread them."""
    if not compiler_divides():
        return tree
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, PartitionSpec()), tree)


def placed(spread: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function whose explicit mesh axes are the compiler's while it runs; elsewhere it is as it was.

    `spread(answer, *arguments)` says with which `PartitionSpec` each array of its answer comes out.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        call: Callable[..., Any] = function

        @wraps(function)
        def run(*arguments: Any, **named: Any) -> R:
            mesh = _explicit_mesh((arguments, named))
            if mesh is None:
                return call(*arguments, **named)
            with use_abstract_mesh(mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))):
                within: Any = _over_arrays(lambda a: reshard(a, PartitionSpec()), (arguments, named))
                answer = call(*within[0], **within[1])
            with use_abstract_mesh(mesh):
                return _over_arrays(reshard, answer, spread(answer, *arguments, **named))

        return run

    return decorate


def whole(answer: Any, *_: Any, **__: Any) -> Any:
    """Everything on every device."""
    return jax.tree.map(lambda a: PartitionSpec(), answer)


def rows(answer: Any, x: Any) -> Any:
    """The first axis n of each array spread as the examples of x are, data [n, ...] or pairs."""
    entry = examples(x)[1]
    return jax.tree.map(lambda a: PartitionSpec(*(entry,)[: jnp.ndim(a)]), answer)


def rows_of_pairs(answer: Any, pairs: Any, *_: Any, **__: Any) -> Any:
    """The first axis n of each array spread as the examples of pairs are."""
    return rows(answer, pairs)


def rows_somewhere(answer: Any, x: Any) -> Any:
    """In each array the first axis that is as long as there are examples, spread as those of x, data or pairs."""
    n, entry = examples(x)

    def one(a: Any) -> PartitionSpec:
        shape = jnp.shape(a)
        return PartitionSpec(*[None] * shape.index(n), entry) if n in shape else PartitionSpec()

    return jax.tree.map(one, answer)


def as_is(tree: Any) -> Any:
    """Each array as it is spread."""
    return jax.tree.map(_spec, tree)


def examples(source: Any) -> tuple[int, Any]:
    """How many examples there are, and over which mesh axes they are spread: from the first array of data or of pairs.

    Of data n stands first; of a pair, whose other axes its class knows, behind an axis l for each stack around it.
    """
    for first in jax.tree.leaves(source, is_leaf=_is_pair)[:1]:
        axis, array = (_stacks(first), jax.tree.leaves(first)[0]) if _is_pair(first) else (0, first)
        spec = _spec(array)
        return array.shape[axis], spec[axis] if len(spec) else None
    return 0, None


def _is_pair(node: Any) -> bool:
    return hasattr(node, "over_stack")


def _stacks(pair: Any) -> int:
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), pair)
    return jax.eval_shape(lambda pair: pair.over_stack(lambda _: jnp.zeros(())), shapes).ndim


def _spec(a: Any) -> PartitionSpec:
    return jax.typeof(a).sharding.spec if isinstance(a, jax.Array) else PartitionSpec()


def _explicit_mesh(tree: Any) -> Any:
    """The mesh with explicit axes that is set, or over which an array is spread; None if there is none."""
    current = jax.sharding.get_abstract_mesh()
    if not current.empty:
        return current if current.explicit_axes else None
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and (mesh := jax.typeof(leaf).sharding.mesh).explicit_axes:
            return mesh
    return None


def _over_arrays(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    return jax.tree.map(lambda a, *rest: function(a, *rest) if isinstance(a, jax.Array) else a, tree, *others)
