"""What the functions of a layer, a loss or a metric must answer, looked at while they are traced.

Whoever writes one is told by the spine itself, in one line and with the layer's path (`combine.located`), when an
answer has not the form that everything behind it takes for granted: a wrong one would often broadcast. Only shapes,
dtypes and trees are read, so none of it is left in a compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float, PRNGKeyArray
from jbp.arguments import as_shape, is_number
from jbp.pairs import Weights, is_pair
from jbp.paths import paths, shown

P = TypeVar("P")
"""A tree of parameters."""
Form = tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]
"""The tree, shapes and dtypes of an array or of a tree of arrays, without the axis n."""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Kept:
    """What one layer saved, and what form its input and its output had: so have δ_x and δ on the way back."""

    saved: Any
    came: Form = field(metadata={"static": True})
    went: Form = field(metadata={"static": True})

    @staticmethod
    def of(saved: Any, x: Any, y: Any) -> Kept:
        """Of what a layer saved when it made y of x, both with n in front."""
        return Kept(saved, _form(x), _form(y))


def init_answer(layer: Any, answer: Any) -> tuple[Any, Any]:
    """(params, out_shape), if a layer's init answered so.

    Raises:
        ValueError: saying what it answered instead.
    """
    if not isinstance(answer, tuple | list) or len(answer) != 2 or not isinstance(answer[1], tuple | list | int):
        raise ValueError(f"{layer!r}.init must return (params, out_shape), but returned {described(answer)}")
    return answer[0], as_shape(answer[1])


def forward_answer(layer: Any, answer: Any, batch: int | None = None) -> tuple[Any, Any]:
    """(y, saved), if a layer's forward answered so; with `batch`, one that has taken the whole batch.

    Raises:
        ValueError: saying what it answered instead.
    """
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise ValueError(f"{layer!r}.forward must return (y, saved), but returned {described(answer)}")
    y, saved = answer
    if not _is_array(y):
        raise ValueError(f"the y of {layer!r}.forward must be one array, but is {described(y)}")
    if batch is not None and jnp.shape(y)[:1] != (batch,):
        raise ValueError(
            f"{layer!r} couples the examples, so the y of its forward must be [n, ...] for the {batch} examples, but "
            f"is {described(y)}"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(saved):
        if not is_number(leaf):
            raise ValueError(
                f"what {layer!r}.forward saves must be a tree of arrays, but saved{shown(path)} is {described(leaf)}: "
                "a static fact rides in it as jbp.layer.Static(value)"
            )
    return y, saved


def backward_answer(layer: Any, params: Any, answer: Any, axes: int) -> tuple[Any, Any]:
    """(delta_x, pairs), if a layer's backward answered so, with a pair for each parameter; `axes` as in `Pair.check`.

    Raises:
        ValueError: saying what it answered instead.
    """
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise ValueError(f"{layer!r}.backward must return (delta_x, pairs), but returned {described(answer)}")
    delta_x, pairs = answer
    leaves, tree = jax.tree.flatten(pairs, is_leaf=is_pair)
    names = [name.removeprefix("pairs") for name in paths(pairs, "pairs", is_pair)]
    for name, leaf in zip(names, leaves, strict=True):
        if not is_pair(leaf):
            raise ValueError(f"{layer!r}.backward made {no_pair(leaf)}{name and f' at {name}'}")
    if tree != (wanted := jax.tree.structure(params)):
        raise ValueError(
            f"{layer!r}.backward must make a pair for each parameter, {_names(wanted)}, but made {_names(tree)}"
        )
    for name, pair, leaf in zip(names, leaves, jax.tree.leaves(params), strict=True):
        try:
            pair.check(jnp.shape(leaf), axes)
        except ValueError as error:
            raise ValueError(f"{layer!r}.backward{name and f', at {name}'}: {error}") from None
    return delta_x, pairs


def no_pair(leaf: Any) -> str:
    """What is said of what stands where a pair belongs."""
    return f"{described(leaf)} where a pair such as jbp.Outer.of(h, delta, shape) belongs"


def check_delta(layer: Any, kept: Kept, delta: Any) -> None:
    """Refuse a δ that does not fit the output it belongs to; None is one of whole numbers."""
    if delta is None and any(jnp.issubdtype(dtype, jnp.inexact) for _, dtype in kept.went[1]):
        raise ValueError(
            f"no δ reaches {layer!r}: a layer above it answers None for delta_x, as for whole-number input only"
        )
    if delta is not None:
        _check_form(delta, kept.went, f"{layer!r} got a δ", "for an output")


def check_delta_x(layer: Any, kept: Kept, delta_x: Any) -> None:
    """Refuse a δ_x that has not the form of the input; None is left to whoever would need it."""
    if delta_x is not None:
        _check_form(delta_x, kept.came, f"{layer!r}.backward made a delta_x", "for an input")


def error_of(loss: Any) -> Callable[..., Any]:
    """`loss.value`, for one example, held to one number."""
    return one_number(loss.value, f"the value of {loss!r}")


def delta_of(loss: Any) -> Callable[..., Any]:
    """`loss.delta`, for one example, held to the shape and dtype of the output."""

    def delta(output: Any, *rest: Any) -> Any:
        found = loss.delta(output, *rest)
        if not _is_array(found) or jnp.shape(found) != output.shape or jnp.result_type(found) != output.dtype:
            raise ValueError(
                f"the delta of {loss!r} must be as the output, {described(output)}, but is {described(found)}"
            )
        return found

    return delta


def columns_of(loss: Any) -> Callable[..., Any]:
    """`loss.sqrt_hessian`, for one example, held to columns [v, ...] of the output's shape."""

    def columns(output: Any, *rest: Any) -> Any:
        found = loss.sqrt_hessian(output, *rest)
        if not _is_array(found) or jnp.ndim(found) != output.ndim + 1 or jnp.shape(found)[1:] != output.shape:
            raise ValueError(
                f"the sqrt_hessian of {loss!r} must be columns [v, *shape] of an output of shape {output.shape}, "
                f"but is {described(found)}"
            )
        return found

    return columns


def one_number(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """`function` of one example, held to one number: a mean over anything else would pass in silence."""

    def number(*arguments: Any, **named: Any) -> Any:
        found = function(*arguments, **named)
        if not _is_array(found) or jnp.shape(found) != ():
            raise ValueError(f"{what} must be one number for each example, but is {described(found)}")
        return found

    return number


def described(value: Any) -> str:
    """What a value is, for messages: "an array float32[2, 3]"."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: ({', '.join(map(described, value))})"
    return "None" if value is None else f"a {type(value).__name__}"


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") or isinstance(value, bool | int | float)


def _form(tree: Any) -> Form:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf)[1:], jnp.result_type(leaf)) for leaf in leaves)


def _check_form(delta: Any, form: Form, what: str, of: str) -> None:
    leaves, structure = jax.tree.flatten(delta)
    if structure != form[0] or not all(map(_is_array, leaves)):
        raise ValueError(f"{what} that is {described(delta)} {of} that is {_described_form(form)}")
    for leaf, (shape, _) in zip(leaves, form[1], strict=True):
        if jnp.shape(leaf)[1:] != shape:
            raise ValueError(f"{what} of shape {jnp.shape(leaf)[1:]} {of} of shape {shape}")
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(f"{what} of {jnp.result_type(leaf)}: it must be of floats")


def _described_form(form: Form) -> str:
    return described(jax.tree.unflatten(form[0], [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in form[1]]))


def _names(tree: Any) -> str:
    """The places of a tree's leaves, for messages."""
    return ", ".join(paths(jax.tree.unflatten(tree, [0] * tree.num_leaves))) or str(tree)


class ValueAndGrad(Protocol):
    """What `value_and_grad` answers with."""

    def __call__(
        self,
        params: P,
        x: Any,
        y: Any,
        key: PRNGKeyArray | None = None,
        weights: Weights = None,
        mask: Any = None,
        rows: Any = None,
        training: bool | None = None,
    ) -> tuple[Float[Array, ""], P]:
        """The value, and the gradient in the tree of the parameters."""
        raise NotImplementedError


class ObservedAndGrad(Protocol):
    """What `value_and_grad(..., has_observed=True)` answers with."""

    def __call__(
        self,
        params: P,
        x: Any,
        y: Any,
        key: PRNGKeyArray | None = None,
        weights: Weights = None,
        mask: Any = None,
        rows: Any = None,
    ) -> tuple[tuple[Float[Array, ""], Any], P]:
        """The value and what the pass observed; and the gradient."""
        raise NotImplementedError
