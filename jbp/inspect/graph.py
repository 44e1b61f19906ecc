"""A net as a list of nodes in the order in which they are computed: what the page draws and its engine computes.

`serial` and `tied` leave no node, `residual` and `branch` one where their paths meet, `repeat` one for each repetition
of each layer. Value 0 is the input x, value k what node k makes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jbp.combine import Branch, Combinator, Repeat, Residual, Serial
from jbp.combine.tied import Tied
from jbp.layer import Layer, Shape
from jbp.layers import Channel, Dense, Dropout, Flatten, Reshape
from jbp.layers import activations as act
from jbp.paths import dotted

_ACTIVATIONS = {
    act.Identity: "identity", act.Relu: "relu", act.LeakyRelu: "leaky_relu", act.Tanh: "tanh", act.Sigmoid: "sigmoid",
    act.Softmax: "softmax", act.Softplus: "softplus", act.Elu: "elu", act.Silu: "silu", act.Gelu: "gelu",
}  # fmt: skip
_SAME = (Channel, Flatten, Reshape, Dropout)
Path = tuple[Any, ...]


@dataclass(frozen=True)
class Node:
    """One step of the forward pass: its output is the value of its number."""

    id: int
    op: str
    """dense, act, same (a value in another shape), add, concat; or other, of which only saved numbers are shown."""
    name: str
    """As in a trace: 2, 2.tanh."""
    layer: str
    """As it is written."""
    inputs: tuple[int, ...]
    """The numbers of the values that come in."""
    params: dict[str, int]
    """The parameters that it uses, by their names in the layer."""
    path: tuple[int, ...]
    repetition: tuple[int, ...]
    formulas: tuple[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    """What an activation is called, and its numbers."""

    def as_json(self, shape: Shape) -> dict[str, Any]:
        """For the page."""
        names = ("id", "op", "name", "layer", "inputs", "params", "path", "repetition", "formulas", "facts")
        return {name: getattr(self, name) for name in names} | {"shape": list(shape)}


@dataclass(frozen=True)
class Param:
    """One array of parameters, of one repetition."""

    id: int
    path: Path
    """Where it is in the tree; the owner's, of a shared one."""
    repetition: tuple[int, ...]
    name: str
    """2.weight: by the layer that uses it first."""

    def of(self, tree: Any) -> np.ndarray | None:
        """The array in a tree like that of the parameters; None where the tree has none."""
        for step in self.path:
            tree = tree[step]
        return None if tree is None else np.asarray(tree)[self.repetition]


class Graph:
    """The nodes and parameters of a net."""

    def __init__(self, net: Layer, params: Any):
        self.nodes: list[Node] = []
        self.params: list[Param] = []
        self._ids: dict[tuple[Path, tuple[int, ...]], int] = {}
        self._owners: dict[Path, Path] = {}
        self._params, self._count, self._names = params, 0, set[str]()
        self.output = self._walk(net, (), (), 0)

    def order(self) -> dict[tuple[tuple[int, ...], int], Node]:
        """The node of the k-th visit to the layer at a path, forward."""
        visits: dict[tuple[int, ...], Iterator[int]] = {}
        leaves = (node for node in self.nodes if node.op not in ("add", "concat"))
        return {(node.path, next(visits.setdefault(node.path, itertools.count()))): node for node in leaves}

    def _walk(self, layer: Layer, path: tuple[int, ...], repetition: tuple[int, ...], x: int) -> int:
        """Add the nodes of a layer whose input is value x; answers with the number of its output."""
        match layer:
            case Serial():
                for i, inner in enumerate(layer.layers):
                    x = self._walk(inner, (*path, i), repetition, x)
                return x
            case Residual():
                y = self._walk(layer.layer, path, repetition, x)
                name = self._named("residual", False)
                words = ("y = x + f(x)", "δ_x = δ + δ_f")
                return self._add("add", name, "residual", (x, y), {}, (path, repetition), words)
            case Branch():
                ends = [self._walk(inner, (*path, i), repetition, x) for i, inner in enumerate(layer.layers)]
                name = self._named("branch", False)
                words = ("y = Σ yᵢ", "δ_x = Σ δᵢ") if layer.join == "sum" else ("y = the yᵢ side by side", "δ_x = Σ δᵢ")
                op = "add" if layer.join == "sum" else "concat"
                return self._add(op, name, "branch", tuple(ends), {}, (path, repetition), words)
            case Repeat():
                for i in range(layer.n):
                    x = self._walk(layer.layer, path, (*repetition, i), x)
                return x
            case Tied():
                self._owners |= {(*path, *borrower): (*path, *owner) for borrower, owner in layer.ties}
                return self._walk(layer.layer, path, repetition, x)
            case Combinator():
                raise ValueError(f"the page knows serial, residual, branch, repeat and tied, but not {layer!r}")
        return self._leaf(layer, path, repetition, x)

    def _leaf(self, layer: Layer, path: tuple[int, ...], repetition: tuple[int, ...], x: int) -> int:
        used = self._used(path, repetition)
        name = self._named(repr(layer).partition("(")[0].lower(), bool(used))
        ids = {}
        for local, key in used.items():
            if key not in self._ids:
                self._ids[key] = len(self.params)
                self.params.append(Param(self._ids[key], key[0], key[1], f"{name}.{local}"))
            ids[local] = self._ids[key]
        op, facts = _kind(layer)
        return self._add(op, name, repr(layer), (x,), ids, (path, repetition), tuple(layer.formulas()), facts)  # type: ignore[arg-type]

    def _used(self, path: tuple[int, ...], repetition: tuple[int, ...]) -> dict[str, tuple[Path, tuple[int, ...]]]:
        """The parameters of the layer at a path: where each is held, by its name in the layer."""
        found = {}
        for borrower, owner in self._owners.items():
            if borrower[: len(path)] == path:
                for below, _ in jax.tree.leaves_with_path(_at(self._params, owner)):
                    rest = tuple(map(_step, below))
                    found[dotted((*borrower[len(path) :], *rest)).strip(".")] = ((*owner, *rest), repetition)
        for borrower, owner in self._owners.items():  # the layer itself is lent
            if len(borrower) < len(path) and path[: len(borrower)] == borrower:
                path = (*owner, *path[len(borrower) :])  # type: ignore[assignment]
        for below, _ in jax.tree.leaves_with_path(_at(self._params, path)):
            rest = tuple(map(_step, below))
            found.setdefault(dotted(rest).strip(".") or "parameter", ((*path, *rest), repetition))
        return found

    def _named(self, word: str, has_params: bool) -> str:
        self._count += has_params
        name = first = str(self._count) if has_params else f"{self._count}.{word}"
        i = 2
        while name in self._names:
            name, i = f"{first}{i}", i + 1
        self._names.add(name)
        return name

    def _add(self, op: str, name: str, layer: str, inputs: Any, params: Any, place: Any, formulas: Any,
             facts: Any = None) -> int:  # fmt: skip
        (path, repetition), number = place, len(self.nodes) + 1
        self.nodes.append(Node(number, op, name, layer, inputs, params, path, repetition, formulas, facts or {}))
        return len(self.nodes)


def _kind(layer: Layer) -> tuple[str, dict[str, Any]]:
    """What the engine calls a layer, and what it has to know of it; a subclass of the user's is another layer."""
    if type(layer) is Dense:
        return "dense", {}
    if type(layer) in _SAME:
        return "same", {}
    name = _ACTIVATIONS.get(type(layer))
    if name is None:
        return "other", {}
    numbers = {n: getattr(layer, n) for n in ("negative_slope", "alpha", "approximate") if hasattr(layer, n)}
    return "act", {"function": name} | numbers


def _at(tree: Any, path: Path) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _step(key: Any) -> Any:
    return getattr(key, "idx", getattr(key, "key", getattr(key, "name", None)))


__all__ = ["Graph", "Node", "Param"]
