"""Flatten."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jbp.annotations import Array, PRNGKeyArray
from jbp.arguments import as_shape, no_params, same_shape
from jbp.inputs import check_key
from jbp.layer import Layer, Shape, Static


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """One example becomes a vector, row by row; backward puts δ back into the shape it came from."""

    uses_key = False
    piecewise_linear = True
    word = "flatten"

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[()], Shape]:
        """No parameters; [a, b, …] becomes [a·b·…]."""
        check_key(key)
        return (), (math.prod(as_shape(shape)),)

    def opening(self, following: Layer | None) -> Layer | None:
        """What comes after: this layer has no activation of its own."""
        return following

    def forward(self, params: Any, x: Array, key: PRNGKeyArray | None) -> tuple[Array, Static]:
        """x as a vector; saves only its shape."""
        no_params(self, params)
        return x.reshape(-1), Static(x.shape)

    def backward(self, params: Any, saved: Any, delta: Array) -> tuple[Array, tuple[()]]:
        """δ in the shape of x."""
        same_shape(self, delta, (math.prod(saved.value),))
        return delta.reshape(saved.value), ()

    def formulas(self) -> tuple[str, str]:
        """The numbers stay."""
        return "y = x as a vector", "δ_x = δ in the shape of x"
