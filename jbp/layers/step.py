"""Step units, with a slope of our choosing on the way back: straight-through and surrogate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array
from jbp.arguments import as_number
from jbp.layers.activations import Activation

Surrogate = Literal["straight_through", "boxcar", "triangle", "sigmoid", "fast_sigmoid"]
_SURROGATES = ("straight_through", "boxcar", "triangle", "sigmoid", "fast_sigmoid")


@dataclass(frozen=True, repr=False)
class Step(Activation):
    """y = [s > 0], which has no useful derivative: it is 0 wherever it exists. In its place stands a surrogate.

    forward   y = 1 where s > 0, else 0
    backward  δ_s = ψ(s)∘δ, with a = `sharpness` and z = a s

        "straight_through"   ψ = 1
        "boxcar"             ψ = a ½[|z| ≤ 1]
        "triangle"           ψ = a max(0, 1 − |z|)
        "sigmoid"            ψ = a σ(z) σ(−z), the slope of σ(a s)
        "fast_sigmoid"       ψ = a / (1 + |z|)²

    `boxcar`, `triangle` and `sigmoid` have area 1, as the derivative of a step has, and `fast_sigmoid` area 2;
    `straight_through` takes no sharpness. A net with such a unit has no gradient that autodiff could confirm:
    `jbp.check.layer` refuses the layer, as it must, and the tests compare with the formulas above.

    Source: Bengio, Léonard, Courville 2013, arXiv:1308.3432 (straight-through); Hubara et al. 2016, arXiv:1602.02830
    (boxcar, there of height 1); Bellec et al. 2018, arXiv:1803.09574 (triangle); Zenke, Ganguli 2018,
    arXiv:1705.11146 (fast sigmoid, there without the factor a).
    """

    surrogate: Surrogate = "straight_through"
    sharpness: float = 1.0
    word = "step"

    def __post_init__(self) -> None:
        if self.surrogate not in _SURROGATES:
            raise ValueError(
                f"the surrogate of Step must be one of {', '.join(_SURROGATES)}, but is {self.surrogate!r}"
            )
        sharpness = as_number(self.sharpness, "the sharpness of Step", 0.0)
        if sharpness == 0 or (self.surrogate == "straight_through" and sharpness != 1):
            raise ValueError(
                "the sharpness of Step must be above 0, and 1 for straight_through, which has none, "
                f"but is {sharpness:g}"
            )
        object.__setattr__(self, "sharpness", sharpness)

    def value(self, s: Array) -> Array:
        """[s > 0]."""
        return (s > 0).astype(s.dtype)

    def keep(self, s: Array, y: Array) -> Array:
        """ψ(s); of straight_through the output, which the next layer keeps anyway."""
        z = self.sharpness * s
        match self.surrogate:
            case "straight_through":
                return y
            case "boxcar":
                shape = 0.5 * (jnp.abs(z) <= 1).astype(s.dtype)
            case "triangle":
                shape = jnp.maximum(1 - jnp.abs(z), jnp.zeros((), s.dtype))
            case "sigmoid":
                shape = lax.logistic(z) * lax.logistic(-z)
            case _:
                shape = 1 / jnp.square(1 + jnp.abs(z))
        return self.sharpness * shape

    def pull(self, saved: Array, delta: Array) -> Array:
        """ψ(s) δ."""
        return delta if self.surrogate == "straight_through" else delta * saved

    def formulas(self) -> tuple[str, str]:
        """With the name of its ψ."""
        y = "y = 1 where x > 0, else 0"
        if self.surrogate == "straight_through":
            return y, "δ_x = δ, straight through"
        return y, f"δ_x = ψ(x)∘δ, ψ the surrogate {self.surrogate} of sharpness {self.sharpness:g}"

    def __repr__(self) -> str:
        """The call that makes this layer."""
        return super(Activation, self).__repr__()
