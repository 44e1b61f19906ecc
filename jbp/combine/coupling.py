"""Where in a net the examples are coupled, and in which mode: read from the net alone."""

from __future__ import annotations

from collections.abc import Callable

from jbp.combine.base import Combinator, Place
from jbp.layer import Layer
from jbp.paths import shown


def has_modes(net: Layer) -> bool:
    """Whether a layer inside couples the examples in training only."""
    if isinstance(net, Combinator):
        return bool(net.couples_batch) and any(map(has_modes, net.children))
    return net.couples_batch == "training"


def coupled_places(net: Layer, training: bool) -> dict[Place, str]:
    """The places of the leaf layers below a layer that couples the examples, each with the path of such a layer."""
    found: dict[Place, str] = {}
    culprits: dict[Place, str] = {}

    def at(above: Place) -> Callable[[Place, Layer, bool], bool]:
        def visit(place: Place, layer: Layer, coupled: bool) -> bool:
            here = above + place
            if isinstance(layer, Combinator):
                return layer.walk_coupling(at(here), coupled)
            couples = layer.couples_batch is True or (training and layer.couples_batch == "training")
            if couples:
                culprits[here] = f"{shown(here) or 'of the net'} ({layer!r})"
            if coupled:
                found[here] = ""
            return coupled or couples

        return visit

    at(())((), net, False)
    return dict.fromkeys(found, " and ".join(culprits.values()))
