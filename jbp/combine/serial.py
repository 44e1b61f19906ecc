"""`serial`: layers one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jbp.annotations import PRNGKeyArray
from jbp.answers import init_answer
from jbp.arguments import as_shape
from jbp.combine.base import Combinator, Place, Visit, check_layers, expect_tuple, located, split_key
from jbp.inputs import check_key
from jbp.layer import Layer, Shape
from jbp.layers.images import made_for


@dataclass(frozen=True, repr=False)
class Serial(Combinator):
    """Layers one after another."""

    layers: tuple[Layer, ...]
    word = "serial"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers("serial", self.layers))

    @property
    def children(self) -> tuple[Layer, ...]:
        """The layers, first to last."""
        return self.layers

    @classmethod
    def around(cls, argument: str, inside: tuple[Layer, ...]) -> Layer:
        """ "serial( … )"."""
        if argument:
            raise ValueError("serial takes no argument")
        return cls(inside)

    def as_word(self) -> str:
        """Its layers in brackets."""
        return f"serial( {' '.join(layer.as_word() for layer in self.layers)} )"

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[Any, ...], Shape]:
        """A tuple of the layers' parameters, in layer order."""
        check_key(key, needed=True)
        shape, params = as_shape(shape), []
        with made_for(shape):
            for i, (layer, k) in enumerate(
                zip(self.before(None).children, jax.random.split(key, len(self.layers)), strict=True)
            ):
                with located((i,), layer):
                    p, shape = init_answer(layer, layer.init(k, shape))
                params.append(p)
        return tuple(params), shape

    def before(self, following: Layer | None) -> Serial:
        """Each layer as it is initialised in front of the next activation."""
        layers = []
        for layer in reversed(self.layers):
            layers.append(layer.before(following))
            following = layer.opening(following)
        return Serial(tuple(reversed(layers)))

    def opening(self, following: Layer | None) -> Layer | None:
        """The first activation inside, if the way to it is open."""
        for layer in reversed(self.layers):
            following = layer.opening(following)
        return following

    def walk_forward(self, visit: Visit, params: Any, x: Any, key: PRNGKeyArray | None) -> tuple[Any, Any]:
        """x through every layer."""
        expect_tuple(self, params)
        saved = []
        for i, (layer, k) in enumerate(zip(self.layers, split_key(key, self.layers), strict=True)):
            x, s = visit((i,), layer, params[i], x, k)
            saved.append(s)
        return x, tuple(saved)

    def walk_backward(self, visit: Visit, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """δ through every layer, last to first."""
        expect_tuple(self, params)
        found = []
        for i in reversed(range(len(self.layers))):
            delta, f = visit((i,), self.layers[i], params[i], saved[i], delta)
            found.append(f)
        return delta, tuple(reversed(found))

    def walk_coupling(self, visit: Callable[[Place, Layer, bool], bool], coupled: bool) -> bool:
        """Whatever comes before a coupling layer is below it."""
        for i in reversed(range(len(self.layers))):
            coupled = visit((i,), self.layers[i], coupled)
        return coupled


def one_of(inside: tuple[Layer, ...]) -> Layer:
    """The layers in brackets as one: several are one after another."""
    return inside[0] if len(inside) == 1 else Serial(inside)


def words_of(layer: Layer) -> str:
    """What stands in brackets for a layer, as `one_of` reads it."""
    if isinstance(layer, Serial) and len(layer.layers) > 1:
        return " ".join(part.as_word() for part in layer.layers)
    return layer.as_word()


def serial(*layers: Layer) -> Serial:
    """Layers one after another. Parameters: a tuple in layer order."""
    return Serial(layers)
