"""Dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array, Bool, Float, PRNGKeyArray
from jbp.arguments import as_number, as_shape, no_params, same_shape
from jbp.inputs import check_key
from jbp.layer import EXAMPLE, Layer, Shape, Static


@dataclass(frozen=True, repr=False)
class Dropout(Layer):
    """Each unit is dropped with probability `drop_rate`; the others are scaled so that the mean stays.

    forward   y = m∘h / (1 − p), m Bernoulli(1 − p), drawn anew for every example; in evaluation (no key) y = h
    backward  δ_h = m∘δ / (1 − p), with the same m

    Source: Srivastava et al. 2014, section 4, in the "inverted" scaling.
    """

    drop_rate: float
    piecewise_linear = True
    word = "dropout"

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop_rate", as_number(self.drop_rate, "the drop_rate of Dropout", 0.0, 1.0))

    @property
    def uses_key(self) -> bool:  # type: ignore[override]
        """Whether anything is drawn: not at rate 0."""
        return self.drop_rate > 0

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[()], Shape]:
        """No parameters; the shape stays."""
        check_key(key)
        return (), as_shape(shape)

    def opening(self, following: Layer | None) -> Layer | None:
        """What comes after: this layer has no activation of its own."""
        return following

    def forward(
        self, params: Any, x: Float[Array, "..."], key: PRNGKeyArray | None
    ) -> tuple[Array, Bool[Array, "..."] | Static]:
        """m∘h / (1 − p); saves m, or only the shape in evaluation."""
        no_params(self, params)
        if key is None or not self.uses_key:
            return x, Static(x.shape)
        # Random bits against a bound, exact to 2⁻³²; uniform numbers would cost more to trace, compile and draw.
        kept = jax.random.bits(key, x.shape, jnp.uint32) >= jnp.uint32(int(self.drop_rate * 2**32))
        return self._masked(kept, x), kept

    def backward(self, params: Any, saved: Bool[Array, "..."] | Static, delta: Array) -> tuple[Array, tuple[()]]:
        """m∘δ / (1 − p)."""
        if isinstance(saved, Static):
            same_shape(self, delta, saved.value)
            return delta, ()
        same_shape(self, delta, saved.shape)
        return self._masked(saved, delta), ()

    def formulas(self) -> tuple[str, str]:
        """In evaluation nothing is dropped."""
        return "y = x", "δ_x = δ"

    @classmethod
    def from_word(cls, word: str) -> Layer | None:
        """ "dropout:RATE"."""
        if word == cls.word:
            raise ValueError(f"net: dropout needs the rate to drop at, in [0, 1), {EXAMPLE}")
        return super().from_word(word)

    def _masked(self, kept: Array, values: Array) -> Array:
        return lax.select(kept, values * (1 / (1 - self.drop_rate)), lax.full_like(values, 0))
