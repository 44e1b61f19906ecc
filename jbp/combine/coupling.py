"""Where in a net the examples are coupled, and in which mode: read from the net alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from jbp.combine.base import Combinator, Place
from jbp.layer import Layer
from jbp.paths import shown


def has_modes(net: Layer) -> bool:
    """Whether a layer inside couples the examples in training only."""
    if isinstance(net, Combinator):
        return bool(net.couples_batch) and any(map(has_modes, net.children))
    return net.couples_batch == "training"


@lru_cache(maxsize=256)
def coupling_layers(net: Layer, training: bool) -> dict[Place, str]:
    """The layers that couple the examples, by place, each as errors name it."""
    found: dict[Place, str] = {}

    def couples(place: Place, layer: Layer) -> bool:
        if layer.couples_batch is True or (training and layer.couples_batch == "training"):
            found[place] = f"{shown(place) or 'of the net'} ({layer!r})"
        return place in found

    _below(net, couples)
    return dict(sorted(found.items()))


def words_of_coupling(net: Layer, training: bool) -> str:
    """What errors say of the layers that couple the examples, "the layer [1] (BatchNorm()) couples"; "" without any."""
    if not (coupling := coupling_layers(net, training)):
        return ""
    *rest, last = coupling.values()
    return f"the layers {', '.join(rest)} and {last} couple" if rest else f"the layer {last} couples"


@lru_cache(maxsize=256)
def coupled_places(net: Layer, training: bool) -> dict[Place, str]:
    """The places of the leaf layers below a layer that couples the examples, each with all such layers above it."""
    above: dict[Place, list[str]] = {}
    for coupling, name in coupling_layers(net, training).items():
        for place in _below(net, lambda place, _: place == coupling):  # noqa: B023
            above.setdefault(place, []).append(name)
    return {place: " and ".join(names) for place, names in above.items()}


def _below(net: Layer, couples: Callable[[Place, Layer], bool]) -> list[Place]:
    """The places of the leaf layers below those that couple."""
    found: dict[Place, None] = {}

    def at(above: Place) -> Callable[[Place, Layer, bool], bool]:
        def visit(place: Place, layer: Layer, coupled: bool) -> bool:
            here = above + place
            if isinstance(layer, Combinator):
                return layer.walk_coupling(at(here), coupled)
            if coupled:
                found[here] = None
            return couples(here, layer) or coupled

        return visit

    at(())((), net, False)
    return list(found)
