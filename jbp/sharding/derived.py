"""How the parameters of a net lie on a mesh, read off the net.

Along the model axis dense layers alternate, as in Megatron. By *column* a device has some of the outputs, and what it
makes of them is split like them; by *row* the next layer takes that as it is, and what the devices make is added up.

    column   W[i, o/M], b[o/M]      forward: nothing to do;   backward: Σ over devices of δ_h[i]
    row      W[i/M, o], b[o]        forward: Σ over devices of s[o];   backward: nothing to do

Convolutions do the same with channels, attention with heads, which the dense layer before it makes by column and the
one behind it takes by row. An embedding's table lies by row, which is by vocabulary, and an unembedding's by column,
which is by vocabulary too. A layer whose width M does not divide is whole on every device.
Source: Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.tree_util import tree_flatten_with_path

from jbp.combine import Branch, Combinator, Repeat, Residual, Serial, Tied
from jbp.layer import Layer
from jbp.layers import (
    Attention,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Embedding,
    GlobalPool,
    GroupNorm,
    LayerNorm,
    MaxPool,
    Positions,
    RMSNorm,
    Unembedding,
)
from jbp.layers.activations import Activation
from jbp.paths import dotted

WAYS = ("column", "row", "whole")
"""How a layer may lie along the model axis."""
AS_THEY_COME = (Activation, Dropout, MaxPool, AvgPool, GlobalPool)
"""What has no parameters and leaves the last axis as it is split."""
_BY_CHANNEL = (BatchNorm, LayerNorm, RMSNorm, GroupNorm, Positions)
"""What has a number for each entry of the last axis."""
_MULTIPLY = (Dense, Conv, Embedding, Unembedding)
"""What has a weight that can lie by column or by row; what else a class of them does is not known."""


def over_model(net: Layer, params: Any, m: int, axis: str, asked: dict[str, str]) -> tuple[Any, dict[str, str]]:
    """A `PartitionSpec` for each parameter, and of each layer that has a choice by its dotted path what became of it.

    `asked` {path: "column", "row" or "whole"} goes before what would be derived. Of `params` only shapes are looked at.

    Raises:
        ValueError: for a path at which there is no such layer, or a way that m does not divide.
    """
    ways: dict[str, str] = {}
    walk = _Walk(m, axis, dict(asked), ways)
    specs, _ = walk(net, params, (), False)
    if walk.asked:
        path = next(iter(walk.asked))
        raise ValueError(f"the layout of {path!r} is of no layer that multiplies: there are {', '.join(ways)}")
    return specs, ways


class _Walk:
    """One walk over a net: how far the activations are split is handed from layer to layer."""

    def __init__(self, m: int, axis: str, asked: dict[str, str], ways: dict[str, str]):
        self.m, self.axis, self.asked, self.ways = m, axis, asked, ways

    def __call__(self, layer: Layer, params: Any, place: tuple[int, ...], split: bool) -> tuple[Any, bool]:
        """The specs of a layer's parameters, and whether its output is split."""
        match layer:
            case Serial():
                found = []
                for i, inner in enumerate(layer.layers):
                    specs, split = self(inner, params[i], (*place, i), split)
                    found.append(specs)
                return tuple(found), split
            case Branch():
                arms = [self(a, params[i], (*place, i), split)[0] for i, a in enumerate(layer.layers)]
                return tuple(arms), False
            case Residual():
                return self(layer.layer, params, place, False)[0], False
            case Repeat():
                return self(layer.layer, params, place, False)[0], False
            case Tied():
                specs, split = self(layer.layer, layer.whole(params), place, split)
                return _without(specs, params), split
            case Combinator():
                return _whole(params), False
            case Attention():  # what it makes is split by heads, as the layer behind it takes it by row
                return _whole(params), split and layer.shared % self.m == 0
        if type(layer) in _MULTIPLY:
            return self._multiplies(layer, params, dotted(place), split)
        if isinstance(layer, _BY_CHANNEL) and split:
            return jax.tree.map(lambda a: self._spec(a, -1) if self._divides(a, -1) else PartitionSpec(), params), True
        return _whole(params), split and isinstance(layer, AS_THEY_COME + _BY_CHANNEL)

    def _multiplies(self, layer: Layer, params: Any, path: str, split: bool) -> tuple[Any, bool]:
        """The specs of a weight and its bias."""
        weight, grouped = params["weight"], getattr(layer, "groups", 1) > 1
        axes = {"column": -2, "row": -1} if isinstance(layer, Unembedding) else {"column": -1, "row": -2}
        can = {way: self._divides(weight, axis) for way, axis in axes.items()} | {"whole": True}
        can["row"] = can["row"] and not grouped
        way = self.asked.pop(path, None)
        if way is None:  # a table is read by index: nothing that comes in could be split, and its rows can lie apart
            first = ("row",) if split or isinstance(layer, Embedding) else ()
            then = () if isinstance(layer, Embedding) else ("column",)
            way = next(w for w in (*first, *then, "whole") if can[w])
        elif not can[way]:
            raise ValueError(
                f"{path} cannot lie by {way}: its weight is {tuple(weight.shape)}, which {self.m} devices of the axis "
                f"{self.axis!r} do not divide there"
            )
        self.ways[path] = way
        specs = {"weight": PartitionSpec() if way == "whole" else self._spec(weight, axes[way])}
        if "bias" in params:
            specs["bias"] = self._spec(params["bias"], -1) if way == "column" else PartitionSpec()
        return specs, way == "column"

    def _divides(self, a: Any, axis: int) -> bool:
        return jnp.ndim(a) >= -axis and a.shape[axis] % self.m == 0

    def _spec(self, a: Any, axis: int) -> PartitionSpec:
        entries: list[Any] = [None] * jnp.ndim(a)
        entries[axis] = self.axis
        return PartitionSpec(*entries)


def over_data(spec: PartitionSpec, shape: tuple[int, ...], d: int, axis: str) -> PartitionSpec:
    """The spec with its longest axis that is free, and that d divides, on the data axis as well; as it is if none."""
    entries = [*spec, *[None] * (len(shape) - len(spec))]
    free = [i for i, entry in enumerate(entries) if entry is None and shape[i] % d == 0 and shape[i] >= d]
    if not free or math.prod(shape) == 0:
        return spec
    entries[max(free, key=lambda i: shape[i])] = axis
    return PartitionSpec(*entries)


def alongside(tree: Any, params: Any, specs: Any) -> Any:
    """A spec for each array of a tree: of what stands for a parameter, such as its velocity, that parameter's.

    It is known by its path, which ends in the parameter's, and its shape; all else is whole on every device.
    """
    known = {}
    leaves = tree_flatten_with_path(params)[0]
    for (path, leaf), spec in zip(leaves, jax.tree.leaves(specs, is_leaf=is_spec), strict=True):
        known[tuple(map(str, path))] = jnp.shape(leaf), spec

    def one(path: Any, leaf: Any) -> PartitionSpec:
        names = tuple(map(str, path))
        for start in range(len(names) + 1):
            shape, spec = known.get(names[start:], (None, None))
            if spec is not None and shape == jnp.shape(leaf):
                return spec
        return PartitionSpec()

    return jax.tree.map_with_path(one, tree)


def is_spec(node: Any) -> bool:
    """Whether a node of a tree is a `PartitionSpec`, which is a tuple to some."""
    return isinstance(node, PartitionSpec)


def over_specs(function: Callable[..., Any], specs: Any, *trees: Any) -> Any:
    """`function(spec, *parts)` for each spec of a tree."""
    return jax.tree.map(function, specs, *trees, is_leaf=is_spec)


def _whole(params: Any) -> Any:
    return jax.tree.map(lambda a: PartitionSpec(), params)


def _without(specs: Any, params: Any) -> Any:
    """The specs where there are parameters, () where they are borrowed."""
    if not jax.tree.leaves(params):
        return params
    if isinstance(params, dict):
        return {name: _without(specs[name], own) for name, own in params.items()}
    if isinstance(params, tuple | list):
        return type(params)(_without(specs[i], own) for i, own in enumerate(params))
    return specs
