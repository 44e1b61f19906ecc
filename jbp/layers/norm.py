"""Normalisation of one example: over its channels, or over space and groups of channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array, Float, PRNGKeyArray
from jbp.arguments import (
    as_bool,
    as_count,
    as_number,
    as_shape,
    at_least_float32,
    leaf_shapes,
    needs_floats,
    no_params,
    same_shape,
)
from jbp.inputs import check_key
from jbp.layer import Layer, Shape
from jbp.pairs import Scale, Shift


class _Norm(Layer):
    """What these layers share: y = scale∘x̂ + bias, with x̂ of mean 0 (if it is `centred`) and mean square 1.

    forward   x̂ = (h − μ)/σ, σ² = mean (h − μ)² + ε;  y = scale∘x̂ + bias
    backward  δ_h = (d − mean d − x̂ mean(d∘x̂))/σ with d = scale∘δ
    gradient  ∂e/∂scale = Σₜ x̂∘δ,  ∂e/∂bias = Σₜ δ

    A subclass says over which axes of the grouped form the means are, and what that form is.
    """

    epsilon: Any
    use_scale: Any
    use_bias: Any
    uses_key = False
    centred = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        epsilon = as_number(self.epsilon, f"the epsilon of {name}", 0.0)
        object.__setattr__(self, "epsilon", epsilon)
        for part in ("use_scale", "use_bias"):
            object.__setattr__(self, part, as_bool(getattr(self, part), f"{part} of {name}"))

    def grouped(self, shape: Shape) -> tuple[Shape, tuple[int, ...]]:
        """The shape in which an input of this shape is normalised, and over which axes of it the means are."""
        return shape, (len(shape) - 1,)

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[dict[str, Array] | tuple[()], Shape]:
        """A scale of 1 and a bias of 0, [c] each, as far as they are used."""
        check_key(key)
        shape = as_shape(shape)
        if not shape:
            raise ValueError(f"{self!r} needs an input with an axis of channels, but one example has shape ()")
        self.grouped(shape)
        params = {}
        if self.use_scale:
            params["scale"] = jnp.ones(shape[-1:])
        if self.use_bias:
            params["bias"] = jnp.zeros(shape[-1:])
        return params or (), shape

    def opening(self, following: Layer | None) -> Layer | None:
        """What comes after: this layer has no activation of its own."""
        return following

    def forward(
        self, params: Any, x: Float[Array, "*t c"], key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "*t c"], tuple[Array, Array]]:
        """scale∘x̂ + bias; saves x̂ and 1/σ."""
        names = {name for name, used in (("scale", self.use_scale), ("bias", self.use_bias)) if used}
        if not names:
            no_params(self, params)
        sound = not names or (isinstance(params, dict) and params.keys() == names)
        if not sound or x.ndim == 0 or any(leaf.shape != x.shape[-1:] for leaf in jax.tree.leaves(params)):
            raise ValueError(
                f"{self!r} takes parameters {sorted(names)}, [c] each, but on an input of shape {x.shape} got "
                f"{leaf_shapes(params)}"
            )
        needs_floats(self, x)
        shape, axes = self.grouped(x.shape)
        wide = at_least_float32(x.dtype)  # in float16 300 has no square
        h = x.reshape(shape).astype(wide)
        if self.centred:
            h = h - _mean(h, axes)
        inverse = lax.rsqrt(_mean(h * h, axes) + jnp.asarray(self.epsilon, wide))
        seen = (h * inverse).reshape(x.shape).astype(x.dtype)
        y = seen * _along(params["scale"], seen) if self.use_scale else seen
        return (y + _along(params["bias"], y) if self.use_bias else y), (seen, inverse)

    def backward(
        self, params: Any, saved: tuple[Array, Array], delta: Float[Array, "*t c"]
    ) -> tuple[Float[Array, "*t c"], Any]:
        """δ_h; the pairs (x̂, δ) and (δ)."""
        seen, inverse = saved
        same_shape(self, delta, seen.shape)
        pairs: dict[str, Any] = {}
        if self.use_scale:
            pairs["scale"] = Scale.of(seen, delta, seen.shape[-1:])
        if self.use_bias:
            pairs["bias"] = Shift.of(delta, seen.shape[-1:])
        d = delta * _along(params["scale"], delta) if self.use_scale else delta
        shape, axes = self.grouped(seen.shape)
        d, hat = (a.reshape(shape).astype(inverse.dtype) for a in (d, seen))
        back = d - hat * _mean(d * hat, axes)
        if self.centred:
            back = back - _mean(d, axes)
        # Behind a barrier: XLA may otherwise compute it anew for each of its readers, kernel and bias among them.
        return lax.optimization_barrier((back * inverse).reshape(seen.shape).astype(delta.dtype)), pairs or ()

    def formulas(self) -> tuple[str, str]:
        """Of the form that it has."""
        y = "y = scale∘x̂" if self.use_scale else "y = x̂"
        centred = "x − mean x" if self.centred else "x"
        less = "d − mean d − x̂∘mean(d∘x̂)" if self.centred else "d − x̂∘mean(d∘x̂)"
        d = "scale∘δ" if self.use_scale else "δ"
        return f"{y}{' + bias' if self.use_bias else ''}, x̂ = ({centred})/σ", f"δ_x = ({less})/σ, d = {d}"


@dataclass(frozen=True, repr=False)
class LayerNorm(_Norm):
    """y = scale∘(h − μ)/σ + bias, with μ and σ over the last axis; axes before it are uses of the same parameters.

    Parameters: {"scale": [c], "bias": [c]}, as far as they are used. σ² is the biased variance plus `epsilon`.

    Source: Ba, Kiros, Hinton 2016, arXiv:1607.06450.
    """

    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    word = "layernorm"


@dataclass(frozen=True, repr=False)
class RMSNorm(_Norm):
    """y = scale∘h/σ, with σ² the mean square over the last axis plus `epsilon`: layer normalisation without a mean.

    Parameters: {"scale": [c]}, and {"bias": [c]} if asked for.

    Source: Zhang, Sennrich 2019, arXiv:1910.07467.
    """

    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = False
    centred = False
    word = "rmsnorm"


@dataclass(frozen=True, repr=False)
class GroupNorm(_Norm):
    """y = scale∘(h − μ)/σ + bias, with μ and σ over space and over each of `groups` equal parts of the channels.

    Of an input [*s, c]. Parameters: {"scale": [c], "bias": [c]}, as far as they are used; each place is a use of them.

    Source: Wu, He 2018, arXiv:1803.08494.
    """

    groups: int
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    mixes_positions = True
    word = "groupnorm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", as_count(self.groups, "the groups of GroupNorm"))
        super().__post_init__()

    def grouped(self, shape: Shape) -> tuple[Shape, tuple[int, ...]]:
        """[*s, g, c/g], over all but g."""
        if shape[-1] % self.groups:
            raise ValueError(f"the groups of {self!r} must divide its input's {shape[-1]} channels")
        form = (*shape[:-1], self.groups, shape[-1] // self.groups)
        return form, (*range(len(shape) - 1), len(shape))


def _mean(a: Array, axes: tuple[int, ...]) -> Array:
    """The mean over some axes, which stay with size 1."""
    return a.mean(axes, keepdims=True)


def _along(channels: Float[Array, " c"], a: Float[Array, "*t c"]) -> Array:
    """[c] with axes in front, as many as `a` has."""
    return channels.reshape((1,) * (a.ndim - 1) + (-1,))
