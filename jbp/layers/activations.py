"""Activations θ: each with its derivative beside it, both exact and finite up to |s| = 10⁴ and at 0.

    forward   y = θ(s)
    backward  δ_s = θ′(s)∘δ

What is saved decides what a step costs (experiments/measurements/what_to_save.py). Where θ′ is a function of the output
y, y is saved, and the next layer keeps that array anyway: tanh, sigmoid, softplus, elu, softmax, and, of its sign
alone, relu and leaky_relu. silu and gelu save θ′(s), identity nothing. At the kink, relu′(0) = 0, leaky_relu′(0) = 1
and elu′(0) = α, as in `jax.nn`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array, Float, PRNGKeyArray
from jbp.arguments import as_bool, as_number, as_shape, needs_floats, no_params, same_shape
from jbp.inputs import check_key
from jbp.layer import Layer, Shape, Sign, Static
from jbp.layers.initializers import Initializer, glorot_normal, he_normal, lecun_normal


class Activation(Layer):
    """A layer without parameters that keeps its input's shape. A subclass gives `value` and `pull`."""

    uses_key = False
    suits: ClassVar[Initializer] = lecun_normal
    """What a weight in front of this activation is drawn from when the user names nothing."""
    steepest: ClassVar[float | None] = 1.0
    """The largest |θ′|, or about: what `jbp.Watch` calls flat is flat beside it. None where δ of a unit comes from the
    others too, so that no slope is one unit's."""

    def value(self, s: Array) -> Array:
        """θ(s)."""
        raise NotImplementedError(f"{type(self).__name__} has no value")

    def keep(self, s: Array, y: Array) -> Any:
        """What `pull` will need; by default the output y, which the next layer keeps anyway."""
        return y

    def pull(self, saved: Any, delta: Array) -> Array:
        """δ_s, from the δ of the output and what was kept."""
        raise NotImplementedError(f"{type(self).__name__} has no pull")

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[()], Shape]:
        """No parameters; the shape stays."""
        check_key(key)
        return (), as_shape(shape)

    def forward(self, params: Any, x: Float[Array, "..."], key: PRNGKeyArray | None) -> tuple[Array, Any]:
        """y = θ(s)."""
        no_params(self, params)
        needs_floats(self, x)
        y = self.value(x)
        return y, self.keep(x, y)

    def backward(self, params: Any, saved: Any, delta: Array) -> tuple[Array, tuple[()]]:
        """δ_s = θ′(s)∘δ."""
        same_shape(self, delta, saved.shape)
        return self.pull(saved, delta), ()

    def opening(self, following: Layer | None) -> Layer:
        """Itself."""
        return self

    def __repr__(self) -> str:
        """`relu` for Relu(): the name under which jbp offers it."""
        shown = super().__repr__()
        return self.word or shown.removesuffix("()").lower() if shown.endswith("()") else shown


@dataclass(frozen=True, repr=False)
class Identity(Activation):
    """θ(s) = s, θ′ = 1."""

    piecewise_linear = True
    word = "identity"

    def forward(self, params: Any, x: Array, key: PRNGKeyArray | None) -> tuple[Array, Static]:
        """y = s; saves only its shape."""
        no_params(self, params)
        return x, Static(x.shape)

    def backward(self, params: Any, saved: Any, delta: Array) -> tuple[Array, tuple[()]]:
        """δ_s = δ."""
        same_shape(self, delta, saved.value)
        return delta, ()

    def formulas(self) -> tuple[str, str]:
        """Nothing changes."""
        return "y = x", "δ_x = δ"


@dataclass(frozen=True, repr=False)
class Relu(Activation):
    """θ(s) = max(0, s), θ′ = [s > 0]; θ′(0) = 0."""

    suits = he_normal
    piecewise_linear = True
    word = "relu"

    def value(self, s: Array) -> Array:
        """max(0, s)."""
        return lax.max(s, lax.full_like(s, 0))

    def keep(self, s: Array, y: Array) -> Sign:
        """[y > 0]."""
        return Sign(y)

    def pull(self, saved: Sign, delta: Array) -> Array:
        """[y > 0] δ."""
        return lax.select(saved.positive, delta, lax.full_like(delta, 0))

    def formulas(self) -> tuple[str, str]:
        """The sign of y is that of x."""
        return "y = max(0, x)", "δ_x = δ where y > 0, else 0"


@dataclass(frozen=True, repr=False)
class LeakyRelu(Activation):
    """θ(s) = s for s ≥ 0, a·s below, with slope a > 0; θ′(0) = 1. The sign of y is the sign of s."""

    negative_slope: float = 0.01
    suits = he_normal
    piecewise_linear = True
    word = "leaky_relu"

    def __post_init__(self) -> None:
        slope = as_number(self.negative_slope, "the negative_slope of LeakyRelu", 0.0)
        if slope == 0:
            raise ValueError("the negative_slope of LeakyRelu must be above 0; for slope 0 use jbp.relu")
        object.__setattr__(self, "negative_slope", slope)

    def value(self, s: Array) -> Array:
        """s or a·s."""
        return lax.select(s >= 0, s, self.negative_slope * s)

    def keep(self, s: Array, y: Array) -> Sign:
        """[y ≥ 0]."""
        return Sign(y, at_zero=True)

    def pull(self, saved: Sign, delta: Array) -> Array:
        """δ or a·δ."""
        return lax.select(saved.positive, delta, self.negative_slope * delta)

    def formulas(self) -> tuple[str, str]:
        """With its slope."""
        a = f"{self.negative_slope:g}"
        return f"y = x where x ≥ 0, else {a}·x", f"δ_x = δ where x ≥ 0, else {a}·δ"


@dataclass(frozen=True, repr=False)
class Tanh(Activation):
    """θ(s) = tanh s, θ′ = 1 − θ² (lecture B), computed as (1 − y)(1 + y), which keeps its digits near ±1."""

    suits = glorot_normal
    word = "tanh"

    def value(self, s: Array) -> Array:
        """tanh s."""
        return lax.tanh(s)

    def pull(self, saved: Array, delta: Array) -> Array:
        """(1 − y)(1 + y) δ."""
        return delta * ((1 - saved) * (1 + saved))

    def formulas(self) -> tuple[str, str]:
        """θ′ from y."""
        return "y = tanh(x)", "δ_x = (1 − y²)∘δ"


@dataclass(frozen=True, repr=False)
class Sigmoid(Activation):
    """θ(s) = 1/(1 + e⁻ˢ), θ′ = θ(1 − θ), at most ¼ (lecture B)."""

    suits = glorot_normal
    steepest = 0.25
    word = "sigmoid"

    def value(self, s: Array) -> Array:
        """1/(1 + e⁻ˢ)."""
        return lax.logistic(s)

    def pull(self, saved: Array, delta: Array) -> Array:
        """y(1 − y) δ."""
        return delta * (saved * (1 - saved))

    def formulas(self) -> tuple[str, str]:
        """θ′ from y."""
        return "y = 1/(1 + e^−x)", "δ_x = y∘(1 − y)∘δ"


@dataclass(frozen=True, repr=False)
class Softmax(Activation):
    """y = e^s / Σ e^s along the last axis, with its full Jacobian ∂y[j]/∂s[i] = y[j]·([i=j] − y[i]) (lecture E)."""

    suits = glorot_normal
    steepest = None
    word = "softmax"

    def value(self, s: Array) -> Array:
        """e^(s − max s) / Σ e^(s − max s)."""
        if s.ndim == 0:
            raise ValueError("softmax needs an input with at least one axis, but got a scalar")
        axis = s.ndim - 1
        # Whatever is taken away, y is the same. Its tangent would be that of where s is the largest, and NaN where s is
        # worked out twice and differs in the last bit.
        largest = lax.stop_gradient(lax.reduce_max(s, (axis,)))
        e = lax.exp(s - jnp.expand_dims(largest, axis))
        return e / jnp.expand_dims(lax.reduce_sum(e, (axis,)), axis)

    def pull(self, saved: Array, delta: Array) -> Array:
        """y∘(δ − ⟨y, δ⟩): the Jacobian, which is symmetric, times δ."""
        return saved * (delta - (saved * delta).sum(-1, keepdims=True))

    def formulas(self) -> tuple[str, str]:
        """The Jacobian times δ."""
        return "y = e^x / Σ e^x", "δ_x = y∘(δ − Σ y∘δ)"


@dataclass(frozen=True, repr=False)
class Softplus(Activation):
    """θ(s) = log(1 + eˢ), θ′ = σ(s) = 1 − e⁻ʸ."""

    suits = he_normal
    word = "softplus"

    def value(self, s: Array) -> Array:
        """max(s, 0) + log(1 + e^−|s|)."""
        return jnp.maximum(s, jnp.zeros((), s.dtype)) + jnp.log1p(jnp.exp(-jnp.abs(s)))

    def pull(self, saved: Array, delta: Array) -> Array:
        """(1 − e⁻ʸ) δ."""
        return delta * -jnp.expm1(-saved)

    def formulas(self) -> tuple[str, str]:
        """θ′ from y."""
        return "y = log(1 + e^x)", "δ_x = (1 − e^−y)∘δ"


@dataclass(frozen=True, repr=False)
class Elu(Activation):
    """θ(s) = s for s > 0, α(eˢ − 1) below; θ′ = 1 or α eˢ. Source: Clevert, Unterthiner, Hochreiter 2016, eq. 14.

    Below 0, θ′ = y + α: from the output alone, to eps α (as the derivative of expm1 in JAX itself).
    """

    alpha: float = 1.0
    suits = he_normal
    word = "elu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", as_number(self.alpha, "the alpha of Elu", 0.0))

    def value(self, s: Array) -> Array:
        """s or α(eˢ − 1)."""
        # The exponent is cut at 0 so that the branch not taken stays finite.
        return lax.select(s > 0, s, self.alpha * jnp.expm1(jnp.minimum(s, jnp.zeros((), s.dtype))))

    def pull(self, saved: Array, delta: Array) -> Array:
        """δ or (y + α) δ."""
        return lax.select(saved > 0, delta, delta * (saved + self.alpha))

    def formulas(self) -> tuple[str, str]:
        """With its α; θ′ from y."""
        a = f"{self.alpha:g}"
        return f"y = x where x > 0, else {a}·(e^x − 1)", f"δ_x = δ where x > 0, else (y + {a})∘δ"


@dataclass(frozen=True, repr=False)
class Silu(Activation):
    """θ(s) = s σ(s), θ′ = σ(s)(1 + s(1 − σ(s))). Source: Elfwing, Uchibe, Doya 2018, eq. 5-6."""

    suits = he_normal
    word = "silu"

    def value(self, s: Array) -> Array:
        """s σ(s)."""
        return s * lax.logistic(s)

    def keep(self, s: Array, y: Array) -> Array:
        """θ′(s) = σ(1 + s(1 − σ))."""
        sigma = lax.logistic(s)
        return sigma * (1 + s * (1 - sigma))

    def pull(self, saved: Array, delta: Array) -> Array:
        """θ′(s) δ."""
        return delta * saved

    def formulas(self) -> tuple[str, str]:
        """With σ."""
        sigma = "σ(x) = 1/(1 + e^−x)"
        return f"y = x∘σ(x), {sigma}", f"δ_x = σ(x)∘(1 + x∘(1 − σ(x)))∘δ, {sigma}"


@dataclass(frozen=True, repr=False)
class Gelu(Activation):
    """θ(s) = s Φ(s) with Φ the normal distribution function; θ′ = Φ(s) + s φ(s).

    `approximate` True (the default, as in `jax.nn.gelu`): θ(s) = ½ s (1 + tanh u), u = √(2/π)(s + 0.044715 s³), and
    θ′ = ½(1 + tanh u) + ½ s (1 − tanh² u) u′. Source: Hendrycks, Gimpel 2016, section 2.
    """

    approximate: bool = True
    suits = he_normal
    word = "gelu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "approximate", as_bool(self.approximate, "approximate of Gelu"))

    def value(self, s: Array) -> Array:
        """s Φ(s), or its tanh form."""
        if self.approximate:
            return s * (0.5 * (1 + lax.tanh(_C * (s + 0.044715 * (s * s * s)))))
        return s * (0.5 * lax.erfc(-s * math.sqrt(0.5)))

    def keep(self, s: Array, y: Array) -> Array:
        """θ′(s)."""
        if self.approximate:
            t = lax.tanh(_C * (s + 0.044715 * (s * s * s)))
            slope = _C * (1 + 3 * 0.044715 * (s * s))
            return 0.5 * (1 + t) + 0.5 * s * ((1 - t) * (1 + t) * slope)
        density = jnp.exp(-0.5 * (s * s)) / math.sqrt(2 * math.pi)
        return 0.5 * lax.erfc(-s * math.sqrt(0.5)) + s * density

    def pull(self, saved: Array, delta: Array) -> Array:
        """θ′(s) δ."""
        return delta * saved

    def formulas(self) -> tuple[str, str]:
        """Of the one form or the other."""
        if not self.approximate:
            return "y = x∘Φ(x), Φ normal distribution", "δ_x = (Φ(x) + x∘φ(x))∘δ, φ normal density"
        u, slope = "u = √(2/π)·(x + 0.044715·x³)", "u′ = √(2/π)·(1 + 0.134145·x²)"
        return f"y = ½·x∘(1 + tanh u), {u}", f"δ_x = ½·(1 + tanh u + x∘(1 − tanh² u)∘u′)∘δ, {u}, {slope}"

    @classmethod
    def from_word(cls, word: str) -> Layer | None:
        """ "gelu", "gelu:tanh" or "gelu:erf"."""
        name, _, form = word.partition(":")
        if name != cls.word:
            return None
        if form not in ("", "tanh", "erf"):
            raise ValueError(f"net: cannot read {word!r}; gelu takes :tanh or :erf")
        return cls(approximate=form != "erf")

    def as_word(self) -> str:
        """The word of its form."""
        return self.word if self.approximate else f"{self.word}:erf"


_C = math.sqrt(2 / math.pi)

identity = Identity()
relu = Relu()
leaky_relu = LeakyRelu()
tanh = Tanh()
sigmoid = Sigmoid()
softmax = Softmax()
softplus = Softplus()
elu = Elu()
silu = Silu()
gelu = Gelu()
