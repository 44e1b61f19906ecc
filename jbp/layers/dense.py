"""The dense (fully connected) layer."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax

from jbp.annotations import Array, Float, PRNGKeyArray
from jbp.arguments import as_bool, as_count, as_shape, leaf_shapes, needs_floats, promoted
from jbp.inputs import check_key
from jbp.layer import EXAMPLE, Layer, Shape
from jbp.layers.activations import Activation
from jbp.layers.initializers import Initializer, lecun_normal, zeros
from jbp.pairs import Outer, Shift


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    """s = h W + b, on the last axis of its input; axes before it are uses t of the same weight.

    forward   s[t,o] = Σᵢ h[t,i] W[i,o] + b[o]
    backward  δ_h[t,i] = Σₒ δ[t,o] W[i,o]
    gradient  ∂e/∂W[i,o] = Σₜ h[t,i] δ[t,o],  ∂e/∂b[o] = Σₜ δ[t,o]

    Parameters: {"weight": [i, o], "bias": [o]}. With `weight_init` None the initial weight follows the activation
    that comes next (`jbp.initializers`); the bias starts at zero.

    Source: lecture B, "the trick": ∂e/∂wᵢⱼ = xᵢ δⱼ and δᵢ = θ′(sᵢ) Σⱼ wᵢⱼ δⱼ (the factor θ′ is the activation's).
    """

    width: int
    use_bias: bool = True
    weight_init: Initializer | None = None
    bias_init: Initializer = zeros

    uses_key = False
    piecewise_linear = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", as_count(self.width, "the width of Dense"))
        object.__setattr__(self, "use_bias", as_bool(self.use_bias, "use_bias of Dense"))
        for name, value in (("weight_init", self.weight_init), ("bias_init", self.bias_init)):
            if not isinstance(value, Initializer) and not (name == "weight_init" and value is None):
                raise ValueError(f"{name} of Dense must come from jbp.initializers, but is {value!r}")

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[dict[str, Array], Shape]:
        """A weight [i, o] and, if asked, a bias [o]."""
        check_key(key, needed=True)
        shape = as_shape(shape)
        if not shape:
            raise ValueError(f"{self!r} needs an input with at least one axis, but one example has shape ()")
        weight_key, bias_key = jax.random.split(key)
        weight_init = self.weight_init or lecun_normal
        params = {"weight": weight_init(weight_key, (shape[-1], self.width))}
        if self.use_bias:
            params["bias"] = self.bias_init(bias_key, (self.width,))
        return params, (*shape[:-1], self.width)

    def before(self, following: Layer | None) -> Layer:
        """With the initialiser that suits the next activation, where the user named none."""
        if self.weight_init is not None or not isinstance(following, Activation):
            return self
        return dataclasses.replace(self, weight_init=following.suits)

    def forward(
        self, params: dict[str, Array], x: Float[Array, "*t i"], key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "*t o"], Array]:
        """s = h W + b; saves h."""
        names = {"weight", "bias"} if self.use_bias else {"weight"}
        if not isinstance(params, dict) or params.keys() != names:
            found = list(params) if isinstance(params, dict) else type(params).__name__
            raise ValueError(f"{self!r} takes parameters {sorted(names)} in a dict, but got {found}")
        weight = params["weight"]
        if x.ndim == 0 or x.shape[-1] != weight.shape[0]:
            raise ValueError(f"{self!r} with a weight of shape {weight.shape} got an input of shape {x.shape}")
        if weight.shape[1:] != (self.width,) or (self.use_bias and params["bias"].shape != (self.width,)):
            raise ValueError(
                f"{self!r} takes a weight [i, {self.width}] and a bias [{self.width}], got {leaf_shapes(params)}"
            )
        needs_floats(self, x)
        y = _product(x, weight, 0)
        return (y + params["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if self.use_bias else y), x

    def backward(
        self, params: dict[str, Array], saved: Float[Array, "*t i"], delta: Float[Array, "*t o"]
    ) -> tuple[Float[Array, "*t i"], Any]:
        """δ_h = δ Wᵀ; the pairs (h, δ) and (δ)."""
        weight = params["weight"]
        o = weight.shape[1]
        if delta.shape != (*saved.shape[:-1], o):
            raise ValueError(f"{self!r} with a weight of shape {weight.shape} got a δ of shape {delta.shape}")
        uses = delta.reshape(-1, o)  # one array for both pairs, which `repeat` then stacks once
        pairs: dict[str, Any] = {"weight": Outer.of(saved, uses, weight.shape)}
        if self.use_bias:
            pairs["bias"] = Shift.of(uses, (o,))
        return _product(delta, weight, 1), pairs

    def formulas(self) -> tuple[str, str]:
        """With or without bias."""
        return "y = x·weight + bias" if self.use_bias else "y = x·weight", "δ_x = δ·weightᵀ"

    @classmethod
    def from_word(cls, word: str) -> Layer | None:
        """A number is a dense layer of that width."""
        if not re.fullmatch("[+-]?[0-9]+", word):
            return None
        if int(word) < 1:
            raise ValueError(f"net: expected the width of a dense layer to be at least 1, got {word!r}, {EXAMPLE}")
        return cls(int(word))

    def as_word(self) -> str:
        """The width."""
        self.refuse_unworded("width")
        return str(self.width)


def _product(a: Float[Array, "*t k"], weight: Array, axis: int) -> Array:
    """a W (axis 0) or a Wᵀ (axis 1). Not `@`, which takes five times as long to trace under `vmap`."""
    a, weight = promoted(a, weight)
    return lax.dot_general(a, weight, (((a.ndim - 1,), (axis,)), ((), ())))
