"""A net, layer by layer, by shapes alone: what each multiplies, keeps for the way back, reads and writes.

Every leaf is traced once, forward and back, as the spine calls it. Arrays that two layers keep are counted once, as XLA
holds them once: what a layer saves of its input is the output of the layer before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jbp.backprop import backward, forward
from jbp.combine import Branch, Combinator, Place, Repeat, Residual, Serial, Tied
from jbp.layer import Layer, Shape, Sign
from jbp.pairs import Constant, is_pair
from jbp.paths import dotted
from jbp.planning.counting import flops_of
from jbp.sinks import total

Item = tuple[int, str]
"""Where an array that is kept comes from: the number of a row, and "x", "y" or "own"."""


@dataclass(frozen=True)
class Cost:
    """One layer. Figures are of the whole batch on one device, of all repetitions together."""

    path: str
    layer: Layer
    times: int
    params: int
    """Bytes."""
    forward: int
    """FLOPs of products."""
    back: int
    """FLOPs of products, δ at the input left out where no parameter lies below."""
    x: int
    """Bytes of the input."""
    y: int
    """Bytes of the output."""
    saved: int
    """Bytes that the way back reads."""
    needs_delta: bool
    """Whether δ at the input is made."""
    shape: Shape
    """Of one example's output."""
    constant: int
    """Bytes of the parameters that no gradient changes: running moments."""


@dataclass(frozen=True)
class Counted:
    """The rows of a net, and the bytes of each array that is kept, by where it comes from."""

    rows: tuple[Cost, ...]
    kept: dict[Item, int]
    output: Any
    """Its shape, n in front."""


@dataclass
class _Held:
    """An array that is kept: its bytes in all, and whether only its sign is."""

    bytes: int
    numbers: int
    sign: bool


def walked(net: Layer, params: Any, x: Any) -> Counted:
    """Walk the net on a batch; `params` and `x` are trees of shapes, x with n in front.

    Raises:
        NotImplementedError: for a net or layer without formulas, naming it.
    """
    walker = _Walker()
    output, _ = walker.visit(net, params, x, (), 1, False, (-1, "x"))
    kept = {item: held.bytes for item, held in walker.kept.items() if item != (-1, "x")}
    return Counted(tuple(walker.rows), kept, output)


class _Walker:
    def __init__(self) -> None:
        self.rows: list[Cost] = []
        self.kept: dict[Item, _Held] = {}
        self.leaves: dict[Any, _Leaf] = {}

    def visit(
        self, layer: Layer, params: Any, x: Any, place: Place, times: int, below: bool, came: Item
    ) -> tuple[Any, Item]:
        """Go through a layer; `below`: parameters lie below it. Answers with its output, and whose that is."""
        match layer:
            case Serial():
                for i, inner in enumerate(layer.layers):
                    x, came = self.visit(inner, params[i], x, (*place, i), times, below, came)
                    below = below or bool(jax.tree.leaves(params[i]))
                return x, came
            case Residual():
                y, _ = self.visit(layer.layer, params, x, place, times, below, came)
                return y, self._joined()
            case Branch():
                arms = layer.layers
                ys = [self.visit(a, params[i], x, (*place, i), times, below, came)[0] for i, a in enumerate(arms)]
                width = sum(y.shape[-1] for y in ys) if layer.join == "concat" else ys[0].shape[-1]
                return jax.ShapeDtypeStruct((*ys[0].shape[:-1], width), ys[0].dtype), self._joined()
            case Repeat():
                return self._repeated(layer, params, x, place, times, came)
            case Tied():
                return self.visit(layer.layer, layer.whole(params), x, place, times, below, came)
            case Combinator():
                raise NotImplementedError(
                    f"there are no formulas for {type(layer).__name__} at {dotted(place) or 'net'}"
                )
        return self._leaf(layer, params, x, place, times, below, came)

    def _joined(self) -> Item:
        """A sum or a join: an array of its own, behind the last row."""
        return len(self.rows) - 1, "joined"

    def _repeated(self, layer: Repeat, params: Any, x: Any, place: Place, times: int, came: Item) -> tuple[Any, Item]:
        """n layers alike: each keeps what one does, and each but the first takes what the one before it made."""
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), params)
        outside, self.kept = self.kept, {}
        entry: Item = len(self.rows), "in"
        y, left = self.visit(layer.layer, one, x, place, times * layer.n, True, entry)
        numbers, size = y.size, y.size * y.dtype.itemsize
        inside, self.kept = self.kept, outside
        whole = {item for item, held in inside.items() if not held.sign}
        chained = entry in whole and left in inside
        for item, held in inside.items():
            if item == left and entry in whole:
                continue  # the next repetition's input, which it keeps
            shrunk = held.sign and item not in whole
            one_bytes = held.numbers if shrunk else held.bytes
            self._keep(item, _Held(layer.n * one_bytes, layer.n * held.numbers, False))
        gone: Item = len(self.rows) - 1, "out"
        if chained:
            self._keep(gone, _Held(size, numbers, False))
        return y, gone

    def _leaf(
        self, layer: Layer, params: Any, x: Any, place: Place, times: int, below: bool, came: Item
    ) -> tuple[Any, Item]:
        key = layer, *_forms(params), *_forms(x)
        if key not in self.leaves:
            try:
                self.leaves[key] = _Leaf.of(layer, params, x)
            except NotImplementedError as error:
                raise NotImplementedError(f"{layer!r} at {dotted(place) or 'net'}: {error}") from None
        leaf, number = self.leaves[key], len(self.rows)
        row = Cost(
            path=dotted(place), layer=layer, times=times, params=times * _bytes(params),
            forward=times * leaf.forward, back=times * (leaf.whole if below else leaf.grads) - times * leaf.forward,
            x=times * _bytes(x), y=times * _bytes(leaf.y), saved=0, needs_delta=below,
            shape=leaf.y.shape[1:], constant=times * leaf.constant,
        )  # fmt: skip
        made: Item = came if leaf.passes else (number, "y")
        saved = 0
        if below or jax.tree.leaves(params):  # else nothing goes back through it
            for i, (what, held) in enumerate(leaf.saved):
                item = {"x": came, "y": made}.get(what, (number, f"own {i}"))
                self._keep(item, held)
                saved += held.bytes
        self.rows.append(replace(row, saved=times * saved))
        return leaf.y, made

    def _keep(self, item: Item, held: _Held) -> None:
        """Once, and whole if anybody needs it whole."""
        before = self.kept.get(item)
        if before is None or (before.sign and not held.sign):
            self.kept[item] = held


@dataclass(frozen=True)
class _Leaf:
    """What one layer does with one batch."""

    y: Any
    forward: int
    grads: int
    """FLOPs of forward and gradients, δ at the input left out."""
    whole: int
    saved: tuple[tuple[str, _Held], ...]
    """What it keeps: its input "x", its output "y", or something of its "own"."""
    passes: bool
    """Whether its output is its input in another shape."""
    constant: int

    @staticmethod
    def of(layer: Layer, params: Any, x: Any) -> _Leaf:
        """Trace it, forward and back."""

        key = jax.eval_shape(lambda: jax.random.key(0))
        y = jax.eval_shape(lambda p, x, k: forward(layer, p, x, k, training=True)[0], params, x, key)
        signs: list[bool] = []
        kinds: list[type] = []
        sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)]

        def flat(params: Any, x: Any, key: Any, delta: Any) -> Any:
            y, saved = forward(layer, params, x, key, training=True)
            delta_x, pairs = backward(layer, params, saved, delta)
            kinds[:] = [type(pair) for pair in jax.tree.leaves(pairs, is_leaf=is_pair)]
            signs[:] = [sign for sign, _ in _signed(saved)]
            return y, [a for _, a in _signed(saved)], total(pairs), delta_x

        traced, shapes = jax.make_jaxpr(flat, return_shape=True)(params, x, key, y)
        jaxpr = traced.jaxpr
        counts = [len(jax.tree.leaves(shapes[i])) for i in range(4)]

        def needing(*parts: int) -> int:
            wanted = [i in parts for i, count in enumerate(counts) for _ in range(count)]
            return flops_of(partial_eval.dce_jaxpr(jaxpr, wanted)[0])

        source = _sources(jaxpr)
        x_var = jaxpr.invars[len(jax.tree.leaves(params))]
        y_var = source(jaxpr.outvars[0])
        saved: list[tuple[str, _Held]] = []
        for var, sign in zip(jaxpr.outvars[1 : 1 + counts[1]], signs, strict=True):
            origin = source(var)
            if any(origin is p for p in jaxpr.invars[: len(jax.tree.leaves(params))]):
                continue  # a parameter is there anyway
            what = "x" if origin is x_var else "y" if origin is y_var else "own"
            size = var.aval.size * var.aval.dtype.itemsize
            saved.append((what, _Held(size, var.aval.size, sign)))
        constant = sum(size for pair, size in zip(kinds, sizes, strict=True) if pair is Constant)
        flops = needing(0), needing(0, 2), needing(0, 2, 3)
        return _Leaf(y, *flops, tuple(saved), y_var is x_var, constant)


def _signed(saved: Any) -> list[tuple[bool, Any]]:
    """The arrays in what a layer saved, each with whether only its sign is needed."""
    found = []
    for node in jax.tree.leaves(saved, is_leaf=lambda node: isinstance(node, Sign)):
        found.append((True, node.array) if isinstance(node, Sign) else (False, node))
    return found


def _sources(jaxpr: Any) -> Any:
    """The function from a variable to the one of which it is the numbers in another shape."""
    made = {eqn.outvars[0]: eqn.invars[0] for eqn in jaxpr.eqns if eqn.primitive.name in ("reshape", "squeeze")}

    def source(var: Any) -> Any:
        while not hasattr(var, "val") and var in made:
            var = made[var]
        return var

    return source


def _forms(tree: Any) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(tree)
    return (structure, *((leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
