"""`residual`: y = x + f(x)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jbp.annotations import PRNGKeyArray
from jbp.answers import init_answer
from jbp.arguments import as_shape
from jbp.combine.base import Combinator, Place, Visit, check_layers
from jbp.combine.serial import one_of, words_of
from jbp.inputs import check_key
from jbp.layer import Layer, Shape


@dataclass(frozen=True, repr=False)
class Residual(Combinator):
    """y = x + f(x), so δ_x = δ + (δ through f)."""

    layer: Layer
    word = "residual"

    def __post_init__(self) -> None:
        check_layers("residual", (self.layer,))

    @property
    def children(self) -> tuple[Layer, ...]:
        """The one layer f."""
        return (self.layer,)

    @classmethod
    def around(cls, argument: str, inside: tuple[Layer, ...]) -> Layer:
        """ "residual( … )"."""
        if argument:
            raise ValueError("residual takes no argument")
        return cls(one_of(inside))

    def as_word(self) -> str:
        """Its layers in brackets."""
        return f"residual( {words_of(self.layer)} )"

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[Any, Shape]:
        """The parameters of f, whose output must have its input's shape."""
        check_key(key)
        shape = as_shape(shape)
        layer = self.layer.before(None)
        params, out_shape = init_answer(layer, layer.init(key, shape))
        if out_shape != shape:
            raise ValueError(
                f"residual needs a layer whose output has its input's shape, but {self.layer!r} "
                f"makes {out_shape} of {shape}"
            )
        return params, shape

    def before(self, following: Layer | None) -> Residual:
        """f ends in a sum, whatever comes after it."""
        return Residual(self.layer.before(None))

    def walk_forward(self, visit: Visit, params: Any, x: Any, key: PRNGKeyArray | None) -> tuple[Any, Any]:
        """x + f(x)."""
        y, saved = visit((), self.layer, params, x, key)
        if y.shape != x.shape:
            raise ValueError(f"residual: {self.layer!r} made {y.shape} of {x.shape}")
        return x + y, saved

    def walk_backward(self, visit: Visit, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """δ + (δ through f)."""
        delta_x, found = visit((), self.layer, params, saved, delta)
        # Without f's part it is not δ_x: whoever needs it is told so (None, where x is of whole numbers).
        return None if delta_x is None else delta + delta_x, found

    def walk_coupling(self, visit: Callable[[Place, Layer, bool], bool], coupled: bool) -> bool:
        """What f couples is coupled below."""
        return visit((), self.layer, coupled)


def residual(layer: Layer) -> Residual:
    """y = x + layer(x). Parameters: the layer's own."""
    return Residual(layer)
