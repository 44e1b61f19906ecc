"""`branch`: the same x into several layers, and the sum over paths on the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jbp.annotations import PRNGKeyArray
from jbp.answers import init_answer
from jbp.arguments import as_shape, check_one_of
from jbp.combine.base import Combinator, Place, Visit, check_layers, expect_tuple, located, split_key, sum_of
from jbp.inputs import check_key
from jbp.layer import Layer, Shape, Static
from jbp.layers.images import made_for


@dataclass(frozen=True, repr=False)
class Branch(Combinator):
    """The same x into every layer (fan-out); the outputs summed, or joined along the last axis.

    The δ of the copies of x add up: the chain rule's sum over paths.
    """

    layers: tuple[Layer, ...]
    join: Literal["sum", "concat"] = "sum"
    word = "branch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers("branch", self.layers))
        check_one_of(self.join, "join of branch", ("sum", "concat"))

    @property
    def children(self) -> tuple[Layer, ...]:
        """The layers, each of which gets x."""
        return self.layers

    @classmethod
    def around(cls, argument: str, inside: tuple[Layer, ...]) -> Layer:
        """ "branch( … )" or "branch:concat( … )": each of the layers in brackets gets x."""
        if argument not in ("", "sum", "concat"):
            raise ValueError("branch takes sum or concat, as in branch:concat( 8 serial( 8 relu ) )")
        return cls(inside, "concat" if argument == "concat" else "sum")

    def as_word(self) -> str:
        """How they are joined, and the layers in brackets."""
        head = "branch" if self.join == "sum" else "branch:concat"
        return f"{head}( {' '.join(layer.as_word() for layer in self.layers)} )"

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[Any, ...], Shape]:
        """A tuple of the layers' parameters; their outputs must fit together."""
        check_key(key, needed=True)
        shape, params, outs = as_shape(shape), [], []
        with made_for(shape):
            for i, (layer, k) in enumerate(
                zip(self.before(None).children, jax.random.split(key, len(self.layers)), strict=True)
            ):
                with located((i,), layer):
                    p, out = init_answer(layer, layer.init(k, shape))
                params.append(p)
                outs.append(out)
        return tuple(params), self._joined_shape(outs)

    def before(self, following: Layer | None) -> Branch:
        """Joined outputs go on to the next activation as they are; summed ones do not."""
        following = following if self.join == "concat" else None
        return Branch(tuple(layer.before(following) for layer in self.layers), self.join)

    def check_input(self, x: Any, counts: Any = None) -> None:
        """Every layer is given it."""
        for layer in self.layers:
            layer.check_input(x, counts)

    def walk_forward(self, visit: Visit, params: Any, x: Any, key: PRNGKeyArray | None) -> tuple[Any, Any]:
        """The sum or the join of what the layers make of x."""
        expect_tuple(self, params)
        ys, saved = [], []
        for i, (layer, k) in enumerate(zip(self.layers, split_key(key, self.layers), strict=True)):
            y, s = visit((i,), layer, params[i], x, k)
            ys.append(y)
            saved.append(s)
        self._joined_shape([y.shape for y in ys])
        widths = Static(tuple(y.shape[-1] for y in ys) if self.join == "concat" else ())
        joined = jnp.concatenate(ys, -1) if self.join == "concat" else sum_of(ys)
        return joined, (tuple(saved), widths)

    def walk_backward(self, visit: Visit, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """Each layer's own part of δ back through it, and the sum of what comes out."""
        expect_tuple(self, params)
        saved, widths = saved
        deltas, found, start = [], [], 0
        if self.join == "concat" and (not delta.ndim or delta.shape[-1] != sum(widths.value)):
            raise ValueError(f"branch joins outputs of widths {widths.value}, but got a δ of shape {delta.shape}")
        for i, layer in enumerate(self.layers):
            part = delta
            if self.join == "concat":
                part = lax.slice_in_dim(delta, start, start + widths.value[i], axis=-1)
                start += widths.value[i]
            delta_x, f = visit((i,), layer, params[i], saved[i], part)
            deltas.append(delta_x)
            found.append(f)
        # A sum without one path's part is not δ_x: whoever needs it is told so (None, where x is of whole numbers).
        return None if any(d is None for d in deltas) else sum_of(deltas), tuple(found)

    def walk_coupling(self, visit: Callable[[Place, Layer, bool], bool], coupled: bool) -> bool:
        """One arm does not couple the others, but what comes before the branch."""
        arms = [visit((i,), layer, coupled) for i, layer in enumerate(self.layers)]
        return any(arms)

    def _joined_shape(self, shapes: list[Shape]) -> Shape:
        """The shape of the joined outputs, if they fit."""
        same = [s if self.join == "sum" else s[:-1] for s in shapes]
        if len(set(same)) > 1 or (self.join == "concat" and () in shapes):
            need = "equal shapes" if self.join == "sum" else "shapes that differ in the last axis only"
            raise ValueError(f"branch with join={self.join!r} needs outputs of {need}, but got {shapes}")
        return shapes[0] if self.join == "sum" else (*same[0], sum(s[-1] for s in shapes))

    def __repr__(self) -> str:
        """The call that makes this net."""
        return super().__repr__() if self.join == "sum" else f"{super().__repr__()[:-1]}, join={self.join!r})"


def branch(*layers: Layer, join: Literal["sum", "concat"] = "sum") -> Branch:
    """The same x into every layer; outputs summed, or joined along the last axis. Parameters: a tuple."""
    return Branch(layers, join)
