"""How a net lies on a mesh by number of devices alone: no device is needed, as `jbp.Sharding` needs them.

The rules are those of `jbp.sharding.derived`; what is added is how far each layer's input and output are split, from
which follow its share of the work, of what it keeps, and what the devices send each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from jbp.arguments import as_bool, as_count
from jbp.combine import Branch, Place, Repeat, Residual, Serial, Tied
from jbp.layer import Layer
from jbp.layers import Conv, Dense
from jbp.layers.activations import Softmax
from jbp.paths import dotted
from jbp.sharding.derived import AS_THEY_COME, over_model

Splits = tuple[bool, bool]
"""Whether input and output of a layer are split along the model axis."""


@dataclass(frozen=True)
class Layout:
    """A mesh of data × model devices, and whether parameters are spread over its data axis too.

    Devices along the model axis are neighbours. Raises: ValueError for an axis of less than 1.
    """

    data: int = 1
    model: int = 1
    shard_params: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "model"):
            object.__setattr__(self, name, as_count(getattr(self, name), f"the mesh's axis {name}"))
        object.__setattr__(self, "shard_params", as_bool(self.shard_params, "shard_params"))

    @property
    def devices(self) -> int:
        """In all."""
        return self.data * self.model

    def __str__(self) -> str:
        """As `--mesh` takes it."""
        return f"data={self.data},model={self.model}" if self.model > 1 else f"data={self.data}"


@dataclass(frozen=True)
class Laid:
    """A net on a mesh: a spec for each parameter, and for each leaf, in order, its way and its splits."""

    specs: Any
    ways: tuple[str | None, ...]
    splits: tuple[Splits, ...]


def laid(net: Layer, params: Any, model: int) -> Laid:
    """The net along a model axis of so many devices; of `params` only shapes are looked at.

    Raises:
        ValueError: if the axis divides the width of no layer.
        NotImplementedError: where something split would have to be put together, which has no formula.
    """
    specs, ways = over_model(net, params, model, "model", {})
    if model == 1:
        specs, ways = jax.tree.map(lambda a: jax.sharding.PartitionSpec(), params), dict.fromkeys(ways, "whole")
    elif set(ways.values()) <= {"whole"}:
        widths = ", ".join(ways) or "there are none"
        raise ValueError(
            f"the axis model has {model} devices, which divide the width of no layer of the net that "
            f"multiplies ({widths}): take another mesh, or widths that {model} divides"
        )
    found = list(_splits(net, (), ways, False))
    return Laid(specs, tuple(way for way, _ in found), tuple(splits for _, splits in found))


def _splits(net: Layer, place: Place, ways: dict[str, str], split: bool) -> Iterator[tuple[str | None, Splits]]:
    """For each leaf in order: its way, if it has a choice, and whether its input and its output are split."""
    match net:
        case Serial():
            for i, inner in enumerate(net.layers):
                for way, splits in _splits(inner, (*place, i), ways, split):
                    yield way, splits
                    split = splits[1]
                if isinstance(inner, Branch | Residual | Repeat | Tied):
                    split = _left(inner, (*place, i), split)
        case Branch():
            for i, arm in enumerate(net.layers):
                yield from _inside(arm, (*place, i), ways, split)
        case Residual() | Repeat():
            yield from _inside(net.layer, place, ways, split)
        case Tied():
            yield from _splits(net.layer, place, ways, split)
        case _:
            way = ways.get(dotted(place))
            if way not in (None, "whole") and not isinstance(net, Dense | Conv):
                raise NotImplementedError(
                    f"there are no formulas for {net!r} at {dotted(place)}, whose table is split by {way} over the "
                    "axis model: take a mesh without the axis"
                )
            if way is not None and isinstance(net, Dense | Conv):
                if split and way != "row":
                    _refuse(net, place)
                yield way, (split, way == "column")
            elif split and (not isinstance(net, AS_THEY_COME) or isinstance(net, Softmax)):
                _refuse(net, place)
            else:
                yield None, (split, split)


def _left(net: Layer, place: Place, split: bool) -> bool:
    """Whether what a net of layers hands on is split: only `tied` hands on what its net does."""
    return split if isinstance(net, Tied) else False


def _inside(net: Layer, place: Place, ways: dict[str, str], split: bool) -> Iterator[tuple[str | None, Splits]]:
    """The leaves of a net of layers that takes its input whole and hands on its output whole."""
    if split:
        _refuse(net, place)
    last = False
    for way, splits in _splits(net, place, ways, False):
        yield way, splits
        last = splits[1]
    if last:
        raise NotImplementedError(
            f"there are no formulas for what leaves {net!r} at {dotted(place)} split over the axis model: let its last "
            "dense or convolutional layer be every second one, or take a mesh without the axis"
        )


def _refuse(net: Layer, place: Place) -> None:
    raise NotImplementedError(
        f"there are no formulas for {net!r} at {dotted(place)} where its input is split over the axis model: take a "
        "mesh without the axis"
    )


def share(spec: Any, layout: Layout) -> int:
    """Into how many parts a spec cuts an array."""
    sizes = {"model": layout.model, "data": layout.data}
    parts = 1
    for entry in spec:
        parts *= sizes.get(entry, 1)
    return parts


def specs_in(specs: Any) -> list[Any]:
    """The specs in order."""
    return jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, jax.sharding.PartitionSpec))
