"""Tables of a sequence: a row for each token, a row for each position, and the way back from rows to tokens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Float, Int, PRNGKeyArray
from jbp.arguments import as_count, as_shape, leaf_shapes, needs_floats, promoted, refuse_targets, same_shape
from jbp.inputs import check_key
from jbp.layer import Layer, Shape
from jbp.layers.initializers import Initializer, Normal
from jbp.pairs import Lookup, Outer, Shift, at_least_32_bits, is_row

Params = dict[str, Array]
_SMALL = Normal(0.02)
"""As GPT-2 draws its tables."""


def _set_up(layer: Any, **counts: int) -> None:
    """The counts as whole numbers, and an initialiser that is one."""
    name = type(layer).__name__
    for field, value in counts.items():
        object.__setattr__(layer, field, as_count(value, f"the {field} of {name}"))
    if not isinstance(layer.weight_init, Initializer):
        raise ValueError(f"weight_init of {name} must come from jbp.initializers, but is {layer.weight_init!r}")


class _Table(Layer):
    """What these layers share: one parameter, and words that say all but how it is drawn."""

    uses_key = False

    @classmethod
    def _worded(cls) -> tuple[dataclasses.Field[Any], ...]:
        return tuple(f for f in dataclasses.fields(cls) if f.name != "weight_init")  # type: ignore[arg-type]


def _weight(layer: Layer, params: Any, shape: tuple[int, ...]) -> Array:
    """The one parameter, if it has this shape."""
    if not isinstance(params, dict) or params.keys() != {"weight"} or jnp.shape(params["weight"]) != shape:
        raise ValueError(f"{layer!r} takes parameters {{'weight': {list(shape)}}}, but got {leaf_shapes(params)}")
    return params["weight"]


@dataclass(frozen=True, repr=False)
class Embedding(_Table):
    """y[t] = W[x[t]], a row of a table for each whole number 0…V−1; every axis of the input is uses of the table.

    forward   y[t,o] = W[x[t],o]
    backward  none: δ_x is None, for what comes in is a whole number
    gradient  ∂e/∂W[v,o] = Σₜ [x[t] = v] δ[t,o]

    Parameters: {"weight": [V, o]}. A number that is no row is refused by `jbp.forward` and its kin where its value is
    known; inside `jit` its row is NaN: it is never wrapped to another.
    """

    vocabulary: int
    width: int
    weight_init: Initializer = _SMALL
    word = "embed"

    def __post_init__(self) -> None:
        _set_up(self, vocabulary=self.vocabulary, width=self.width)

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[Params, Shape]:
        """A table [V, o]; [*t] becomes [*t, o]."""
        check_key(key, needed=True)
        shape = () if shape == () else as_shape(shape)
        return {"weight": self.weight_init(key, (self.vocabulary, self.width))}, (*shape, self.width)

    def check_input(self, x: Any, counts: Any = None) -> None:
        """Refuse whole numbers that are no rows."""
        values = np.asarray(x)
        if np.issubdtype(values.dtype, np.integer) and values.size:
            sound = (values >= 0) & (values < self.vocabulary)
            refuse_targets("x", values, sound, f"whole numbers 0…{self.vocabulary - 1} for {self!r}", counts)

    def forward(self, params: Any, x: Int[Array, "*t"], key: PRNGKeyArray | None) -> tuple[Float[Array, "*t o"], Array]:
        """The rows; saves which they are."""
        weight = _weight(self, params, (self.vocabulary, self.width))
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"{self!r} needs whole numbers 0…{self.vocabulary - 1}, but got {x.dtype}")
        index = at_least_32_bits(x)
        sound = is_row(index, self.vocabulary)
        rows = jnp.take(weight, jnp.where(sound, index, jnp.zeros_like(index)), axis=0, mode="clip")
        return jnp.where(jnp.expand_dims(sound, -1), rows, jnp.full_like(rows, jnp.nan)), index

    def backward(
        self, params: Any, saved: Int[Array, "*t"], delta: Float[Array, "*t o"]
    ) -> tuple[None, dict[str, Lookup]]:
        """No δ_x; the pair (index, δ)."""
        same_shape(self, delta, (*saved.shape, self.width))
        return None, {"weight": Lookup.of(saved, delta, (self.vocabulary, self.width))}

    def formulas(self) -> tuple[str, str]:
        """Row by row."""
        return "y = row x of weight", "δ_x: none, x is a whole number"


@dataclass(frozen=True, repr=False)
class Positions(_Table):
    """y[t] = x[t] + W[t], a row of a table for each place of a sequence, which may be shorter than the table.

    forward   y[t,o] = x[t,o] + W[t,o]
    backward  δ_x = δ
    gradient  ∂e/∂W[t,o] = δ[t,o], and 0 for the places behind the sequence

    Parameters: {"weight": [length, o]}.
    """

    length: int
    weight_init: Initializer = _SMALL
    piecewise_linear = True
    word = "positions"

    def __post_init__(self) -> None:
        _set_up(self, length=self.length)

    def _fit(self, shape: Shape) -> None:
        if len(shape) != 2 or shape[0] > self.length:
            raise ValueError(f"{self!r} takes a sequence [t, o] with t up to {self.length}, but one has shape {shape}")

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[Params, Shape]:
        """A table [length, o]."""
        check_key(key, needed=True)
        shape = as_shape(shape)
        self._fit(shape)
        return {"weight": self.weight_init(key, (self.length, shape[1]))}, shape

    def opening(self, following: Layer | None) -> Layer | None:
        """What comes after: this layer has no activation of its own."""
        return following

    def forward(
        self, params: Any, x: Float[Array, "t o"], key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "t o"], tuple[()]]:
        """x + W; saves nothing."""
        self._fit(x.shape)
        weight = _weight(self, params, (self.length, x.shape[1]))
        needs_floats(self, x)
        x, weight = promoted(x, weight)
        return x + weight[: len(x)], ()

    def backward(
        self, params: Any, saved: tuple[()], delta: Float[Array, "t o"]
    ) -> tuple[Float[Array, "t o"], dict[str, Shift]]:
        """δ as it is; the pair (δ), with zeros behind."""
        self._fit(delta.shape)
        shape = (self.length, delta.shape[1])
        whole = delta
        if len(delta) < self.length:
            whole = lax.pad(delta, jnp.zeros((), delta.dtype), ((0, self.length - len(delta), 0), (0, 0, 0)))
        return delta, {"weight": Shift.of(whole, shape)}

    def formulas(self) -> tuple[str, str]:
        """Place by place."""
        return "y = x + weight, row t at place t", "δ_x = δ"


@dataclass(frozen=True, repr=False)
class Unembedding(_Table):
    """y = x Wᵀ with a table W [V, d], so that an `Embedding` may share it (`jbp.tied`): a score for each of V tokens.

    forward   y[t,v] = Σ_d x[t,d] W[v,d]
    backward  δ_x[t,d] = Σᵥ δ[t,v] W[v,d]
    gradient  ∂e/∂W[v,d] = Σₜ δ[t,v] x[t,d]

    Parameters: {"weight": [V, d]}, and no bias.
    """

    vocabulary: int
    weight_init: Initializer = _SMALL
    piecewise_linear = True
    word = "unembed"

    def __post_init__(self) -> None:
        _set_up(self, vocabulary=self.vocabulary)

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[Params, Shape]:
        """A table [V, d]; [*t, d] becomes [*t, V]."""
        check_key(key, needed=True)
        shape = as_shape(shape)
        if not shape:
            raise ValueError(f"{self!r} needs an input with at least one axis, but one example has shape ()")
        return {"weight": self.weight_init(key, (self.vocabulary, shape[-1]))}, (*shape[:-1], self.vocabulary)

    def forward(
        self, params: Any, x: Float[Array, "*t d"], key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "*t v"], Array]:
        """x Wᵀ; saves x."""
        if x.ndim == 0:
            raise ValueError(f"{self!r} needs an input with at least one axis, but got a scalar")
        weight = _weight(self, params, (self.vocabulary, x.shape[-1]))
        needs_floats(self, x)
        return _product(x, weight, 1), x

    def backward(
        self, params: Any, saved: Float[Array, "*t d"], delta: Float[Array, "*t v"]
    ) -> tuple[Float[Array, "*t d"], dict[str, Outer]]:
        """δ W; the pair (x, δ), transposed."""
        weight = _weight(self, params, (self.vocabulary, saved.shape[-1]))
        same_shape(self, delta, (*saved.shape[:-1], self.vocabulary))
        return _product(delta, weight, 0), {"weight": Outer.of(saved, delta, weight.shape, transposed=True)}

    def formulas(self) -> tuple[str, str]:
        """With the table transposed."""
        return "y = x·weightᵀ", "δ_x = δ·weight"


def _product(a: Float[Array, "*t k"], weight: Array, axis: int) -> Array:
    """a W (axis 0) or a Wᵀ (axis 1)."""
    a, weight = promoted(a, weight)
    return lax.dot_general(a, weight, (((a.ndim - 1,), (axis,)), ((), ())))
