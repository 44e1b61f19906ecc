"""Layers that only say how the numbers of an example are arranged."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from jbp.annotations import Array, PRNGKeyArray
from jbp.arguments import as_shape, no_params, same_shape
from jbp.inputs import check_key
from jbp.layer import Layer, Shape, Static, made


class _Rearranged(Layer):
    """Another shape for the same numbers, in the same order; backward puts δ back into the shape it came from."""

    uses_key = False
    piecewise_linear = True

    def shaped(self, shape: Shape) -> Shape:
        """The shape of the output for an input of this shape; ValueError if there is none."""
        raise NotImplementedError(f"{type(self).__name__} does not say its shape")

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[()], Shape]:
        """No parameters."""
        check_key(key)
        return (), self.shaped(as_shape(shape))

    def opening(self, following: Layer | None) -> Layer | None:
        """What comes after: this layer has no activation of its own."""
        return following

    def forward(self, params: Any, x: Array, key: PRNGKeyArray | None) -> tuple[Array, Static]:
        """x in its new shape; saves only the old one."""
        no_params(self, params)
        return x.reshape(self.shaped(x.shape)), Static(x.shape)

    def backward(self, params: Any, saved: Static, delta: Array) -> tuple[Array, tuple[()]]:
        """δ in the shape of x."""
        same_shape(self, delta, self.shaped(saved.value))
        return delta.reshape(saved.value), ()

    def formulas(self) -> tuple[str, str]:
        """The numbers stay."""
        return "y = x in another shape", "δ_x = δ in the shape of x"


@dataclass(frozen=True, repr=False)
class Reshape(_Rearranged):
    """One example in a shape of as many numbers."""

    shape: Shape
    word = "reshape"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", as_shape(self.shape))

    def shaped(self, shape: Shape) -> Shape:
        """The shape that was given."""
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"{self!r} holds {math.prod(self.shape)} numbers, but one example has shape {shape}")
        return self.shape

    @classmethod
    def from_word(cls, word: str) -> Layer | None:
        """ "reshape:28x28x1"."""
        name, _, text = word.partition(":")
        if name != cls.word:
            return None
        if not re.fullmatch(r"\d+(x\d+)*", text):
            raise ValueError(f"net: reshape needs a shape, as in reshape:28x28x1, got {word!r}")
        return made(word, cls, tuple(map(int, text.split("x"))))

    def as_word(self) -> str:
        """The shape."""
        return f"{self.word}:{'x'.join(map(str, self.shape))}"


@dataclass(frozen=True, repr=False)
class Channel(_Rearranged):
    """An axis of one channel behind the others: an image [h, w] becomes [h, w, 1], as convolution takes it."""

    word = "channel"

    def shaped(self, shape: Shape) -> Shape:
        """One axis more."""
        return (*shape, 1)
