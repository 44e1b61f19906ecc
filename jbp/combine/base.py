"""Combinators: nets made of layers. Plumbing, with no mathematics of its own beyond adding up δ.

A combinator never calls a layer and never sees a batch axis. It is handed `visit(place, layer, ...)`, which takes one
layer's step and answers with what that layer answered; so one walk serves the forward pass, the backward pass and
every statistic. Parameters: `serial` and `branch` hold a tuple, one entry a layer; `residual` holds its layer's own;
`repeat` its layer's own with an axis l in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax

from jbp.annotations import PRNGKeyArray
from jbp.inputs import check_net
from jbp.layer import Layer
from jbp.paths import shown

Visit = Callable[..., tuple[Any, Any]]
Place = tuple[int, ...]
"""Where a layer is: the indices that lead to its parameters, which `residual` and `repeat` do not lengthen."""


class LayerError(ValueError):
    """A mistake found at one layer of a net; says at which."""

    def __init__(self, place: Place, problem: str):
        self.place, self.problem = place, problem
        super().__init__(problem)

    def __str__(self) -> str:
        """The problem, after the layer's path."""
        return f"layer {shown(self.place)}: {self.problem}" if self.place else self.problem


@contextmanager
def located(place: Place, layer: Layer) -> Iterator[None]:
    """Add the layer's place to whatever goes wrong inside."""
    try:
        yield
    except LayerError as error:
        error.place = place + error.place
        raise
    except ValueError as error:
        raise LayerError(place, str(error)) from error
    except Exception as error:
        if place and not isinstance(layer, Combinator):
            error.add_note(f"jbp: in {layer!r}, layer {shown(place)} of its combinator")
        raise


class Combinator(Layer):
    """A net made of layers. Subclasses give `children`, `init`, and the two walks."""

    @property
    def children(self) -> tuple[Layer, ...]:
        """The layers inside, in order."""
        raise NotImplementedError

    @classmethod
    def around(cls, argument: str, inside: tuple[Layer, ...]) -> Layer:
        """The net that a line of text means by `word:argument( … )` around these layers.

        Raises: ValueError if the argument cannot be read; it begins with what the word takes.
        """
        raise NotImplementedError(f"{cls.__name__} has no word")

    @classmethod
    def from_word(cls, word: str) -> Layer | None:
        """None: a word alone is no net made of layers."""
        if cls.word and word.partition(":")[0] == cls.word:
            raise ValueError(f"net: {word!r} needs layers in brackets right behind it, as in {word}( 8 relu 8 )")
        return None

    def walk_forward(self, visit: Visit, params: Any, x: Any, key: PRNGKeyArray | None) -> tuple[Any, Any]:
        """Step 1: `visit(place, layer, params, x, key)` for each child; answers with output and saved."""
        raise NotImplementedError

    def walk_backward(self, visit: Visit, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """Step 2: `visit(place, layer, params, saved, delta)` in reverse; answers with delta_x and the tree of
        what the visits found, shaped like `params`."""
        raise NotImplementedError

    def walk_coupling(self, visit: Callable[[Place, Layer, bool], bool], coupled: bool) -> bool:
        """Whether a layer that couples examples stands between a place and the output: `coupled` says so of this
        net's output, `visit(place, layer, coupled)` answers for a layer's input, this for the net's.

        By default any coupling inside counts for every layer inside, which errs on the safe side.
        """

        def among(coupled: bool) -> bool:
            said = [visit((i,), layer, coupled) for i, layer in enumerate(self.children)]
            return any(said)

        return among(coupled) and (coupled or among(True))

    def check_input(self, x: Any, counts: Any = None) -> None:
        """As the layers see to it that are given the net's own input: by default, the first."""
        self.children[0].check_input(x, counts)

    @property
    def couples_batch(self) -> bool | Literal["training"]:  # type: ignore[override]
        """Whether a layer inside couples the examples; "training" if in training only."""
        said = [child.couples_batch for child in self.children if child.couples_batch]
        return True if True in said else ("training" if said else False)

    @property
    def uses_mask(self) -> bool:  # type: ignore[override]
        """Whether a layer inside is told which positions are real."""
        return any(child.uses_mask for child in self.children)

    @property
    def observes(self) -> bool:  # type: ignore[override]
        """Whether a layer inside has running moments."""
        return any(child.observes for child in self.children)

    @property
    def piecewise_linear(self) -> bool:  # type: ignore[override]
        """Whether every layer inside is piecewise linear."""
        return all(child.piecewise_linear for child in self.children)

    @property
    def uses_key(self) -> bool | None:  # type: ignore[override]
        """True if any child needs a key, False if all never do."""
        said = [child.uses_key for child in self.children]
        return True if True in said else (None if None in said else False)

    def __repr__(self) -> str:
        """The call that makes this net."""
        return f"{type(self).__name__.lower()}({', '.join(map(repr, self.children))})"


def check_layers(name: str, layers: Any) -> tuple[Layer, ...]:
    """`layers` as a tuple, if each is a layer."""
    layers = tuple(layers)
    if not layers:
        raise ValueError(f"{name} needs at least one layer")
    for layer in layers:
        check_net(layer, Layer, f"what {name} takes")
    return layers


def split_key(key: PRNGKeyArray | None, layers: tuple[Layer, ...]) -> list[Any]:
    """A key for each layer that may look at one."""
    if key is None or all(layer.uses_key is False for layer in layers):
        return [None] * len(layers)
    keys = jax.random.split(key, len(layers))
    return [None if layer.uses_key is False else keys[i] for i, layer in enumerate(layers)]


def sum_of(arrays: list[Any]) -> Any:
    """The arrays, added up from the first to the last."""
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


def expect_tuple(net: Any, params: Any) -> None:
    """Refuse parameters that are not one tree for each of the net's layers."""
    if not isinstance(params, tuple) or len(params) != len(net.layers):
        found = f"a tuple of {len(params)}" if isinstance(params, tuple) else f"a {type(params).__name__}"
        raise ValueError(
            f"{type(net).__name__.lower()} of {len(net.layers)} layers expects a tuple of {len(net.layers)} "
            f"parameter trees, as net.init makes it, but got {found}"
        )
