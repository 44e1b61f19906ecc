"""Combinators: nets made of layers. Plumbing, with no mathematics of its own beyond adding up δ.

A combinator never calls a layer and never sees a batch axis. It is handed `visit(place, layer, ...)`, which takes one
layer's step and answers with what that layer answered; so one walk serves the forward pass, the backward pass and
every statistic. Parameters: `serial` and `branch` hold a tuple, one entry a layer; `residual` holds its layer's own;
`repeat` its layer's own with an axis l in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import register_static
from jaxtyping import Array, PRNGKeyArray

from jbp.layer import Layer, Shape, Sign, Static, as_count, as_shape, check_hashable, leaf_shapes
from jbp.pairs import Stack, is_pair

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
        return f"layer {''.join(f'[{i}]' for i in self.place)}: {self.problem}" if self.place else self.problem


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
            error.add_note(f"jbp: in {layer!r}, layer {''.join(f'[{i}]' for i in place)} of its combinator")
        raise


class Combinator(Layer):
    """A net made of layers. Subclasses give `children`, `init`, and the two walks."""

    @property
    def children(self) -> tuple[Layer, ...]:
        """The layers inside, in order."""
        raise NotImplementedError

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
        coupled |= self.couples_batch
        for i, layer in enumerate(self.children):
            visit((i,), layer, coupled)
        return coupled

    @property
    def couples_batch(self) -> bool:  # type: ignore[override]
        """Whether a layer inside couples the examples."""
        return any(child.couples_batch for child in self.children)

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


@dataclass(frozen=True, repr=False)
class Serial(Combinator):
    """Layers one after another."""

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _layers("serial", self.layers))

    @property
    def children(self) -> tuple[Layer, ...]:
        """The layers, first to last."""
        return self.layers

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[Any, ...], Shape]:
        """A tuple of the layers' parameters, in layer order."""
        shape, params = as_shape(shape), []
        for i, (layer, k) in enumerate(
            zip(self.before(None).children, jax.random.split(key, len(self.layers)), strict=True)
        ):
            with located((i,), layer):
                p, shape = layer.init(k, shape)
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
        _expect_tuple(self, params)
        saved = []
        for i, (layer, k) in enumerate(zip(self.layers, _split(key, self.layers), strict=True)):
            x, s = visit((i,), layer, params[i], x, k)
            saved.append(s)
        return x, tuple(saved)

    def walk_backward(self, visit: Visit, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """δ through every layer, last to first."""
        _expect_tuple(self, params)
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


@dataclass(frozen=True, repr=False)
class Residual(Combinator):
    """y = x + f(x), so δ_x = δ + (δ through f)."""

    layer: Layer

    def __post_init__(self) -> None:
        _layers("residual", (self.layer,))

    @property
    def children(self) -> tuple[Layer, ...]:
        """The one layer f."""
        return (self.layer,)

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[Any, Shape]:
        """The parameters of f, whose output must have its input's shape."""
        shape = as_shape(shape)
        params, out_shape = self.layer.before(None).init(key, shape)
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
        return delta if delta_x is None else delta + delta_x, found

    def walk_coupling(self, visit: Callable[[Place, Layer, bool], bool], coupled: bool) -> bool:
        """What f couples is coupled below."""
        return visit((), self.layer, coupled)


@dataclass(frozen=True, repr=False)
class Branch(Combinator):
    """The same x into every layer (fan-out); the outputs summed, or joined along the last axis.

    The δ of the copies of x add up: the chain rule's sum over paths.
    """

    layers: tuple[Layer, ...]
    join: Literal["sum", "concat"] = "sum"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _layers("branch", self.layers))
        if self.join not in ("sum", "concat"):
            raise ValueError(f"join of branch must be 'sum' or 'concat', but is {self.join!r}")

    @property
    def children(self) -> tuple[Layer, ...]:
        """The layers, each of which gets x."""
        return self.layers

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[Any, ...], Shape]:
        """A tuple of the layers' parameters; their outputs must fit together."""
        shape, params, outs = as_shape(shape), [], []
        for i, (layer, k) in enumerate(
            zip(self.before(None).children, jax.random.split(key, len(self.layers)), strict=True)
        ):
            with located((i,), layer):
                p, out = layer.init(k, shape)
            params.append(p)
            outs.append(out)
        return tuple(params), self._joined_shape(outs)

    def before(self, following: Layer | None) -> Branch:
        """Joined outputs go on to the next activation as they are; summed ones do not."""
        following = following if self.join == "concat" else None
        return Branch(tuple(layer.before(following) for layer in self.layers), self.join)

    def walk_forward(self, visit: Visit, params: Any, x: Any, key: PRNGKeyArray | None) -> tuple[Any, Any]:
        """The sum or the join of what the layers make of x."""
        _expect_tuple(self, params)
        ys, saved = [], []
        for i, (layer, k) in enumerate(zip(self.layers, _split(key, self.layers), strict=True)):
            y, s = visit((i,), layer, params[i], x, k)
            ys.append(y)
            saved.append(s)
        self._joined_shape([y.shape for y in ys])
        widths = Static(tuple(y.shape[-1] for y in ys) if self.join == "concat" else ())
        joined = jnp.concatenate(ys, -1) if self.join == "concat" else _sum(ys)
        return joined, (tuple(saved), widths)

    def walk_backward(self, visit: Visit, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """Each layer's own part of δ back through it, and the sum of what comes out."""
        _expect_tuple(self, params)
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
        known = [d for d in deltas if d is not None]
        return _sum(known) if known else None, tuple(found)

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


@dataclass(frozen=True, repr=False)
class Repeat(Combinator):
    """n layers alike, one after another, each with parameters of its own, by `lax.scan`: compiled once, not n times."""

    layer: Layer
    n: int

    def __post_init__(self) -> None:
        _layers("repeat", (self.layer,))
        object.__setattr__(self, "n", as_count(self.n, "the n of repeat"))

    @property
    def children(self) -> tuple[Layer, ...]:
        """The one layer that is repeated."""
        return (self.layer,)

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[Any, Shape]:
        """The parameters of the n layers, stacked: an axis l in front of each. The shape must stay."""
        shape = as_shape(shape)
        layer, outs = self.before(None).layer, []

        def one(k: PRNGKeyArray) -> Any:
            params, out_shape = layer.init(k, shape)
            outs.append(out_shape)
            return params

        params = jax.vmap(one)(jax.random.split(key, self.n))
        if outs[0] != shape:
            raise ValueError(
                f"repeat needs a layer whose output has its input's shape, but {self.layer!r} "
                f"makes {outs[0]} of {shape}"
            )
        return params, shape

    def before(self, following: Layer | None) -> Repeat:
        """Each repetition but the last comes in front of the next one."""
        return Repeat(self.layer.before(self.layer.opening(following)), self.n)

    def opening(self, following: Layer | None) -> Layer | None:
        """The opening of the first repetition."""
        return self.layer.opening(following)

    def walk_forward(self, visit: Visit, params: Any, x: Any, key: PRNGKeyArray | None) -> tuple[Any, Any]:
        """x through the n layers; what each saved, stacked."""
        self._expect_stack(params)
        keys = None if key is None or self.uses_key is False else jax.random.split(key, self.n)
        plan: list[_Sharing] = []

        def body(x: Array, p_k: tuple[Any, Any]) -> tuple[Any, Any]:
            y, saved = visit((), self.layer, p_k[0], x, p_k[1])
            if y.shape != x.shape or y.dtype != x.dtype:
                raise ValueError(
                    f"repeat: {self.layer!r} made {y.dtype}{list(y.shape)} of {x.dtype}{list(x.shape)}, "
                    "but must keep shape and dtype"
                )
            saved = _compact(x, y, saved)
            plan[:] = [_Sharing.among(x, y, saved)]
            return y, plan[0].distinct(saved)

        y, stacks = lax.scan(body, x, (params, keys), length=self.n)
        return y, (stacks, y if plan[0].shares_output else None, plan[0])

    def walk_backward(self, visit: Visit, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """δ through the n layers, last to first; what the visits found, stacked."""
        self._expect_stack(params)
        stacks, last, plan = saved

        def body(carry: tuple[Any, Any], p_s: tuple[Any, Any]) -> tuple[Any, Any]:
            delta, y = carry
            p, distinct = p_s
            delta_x, found = visit((), self.layer, p, plan.whole(distinct, y), delta)
            answers[:] = [_Sharing.among(None, None, found)]  # a weight's δ is its bias's too
            return (delta_x, distinct[plan.input] if plan.shares_output else None), answers[0].distinct(found)

        answers: list[_Sharing] = []
        (delta_x, _), found = lax.scan(body, (delta, last), (params, stacks), length=self.n, reverse=True)
        found = answers[0].whole(found, None)
        return delta_x, jax.tree.map(lambda f: Stack(f) if is_pair(f) else f, found, is_leaf=is_pair)

    def walk_coupling(self, visit: Callable[[Place, Layer, bool], bool], coupled: bool) -> bool:
        """Below a coupling repetition are all the others, and the pairs of all are one stack."""
        return visit((), self.layer, coupled or self.layer.couples_batch)

    def _expect_stack(self, params: Any) -> None:
        if any(jnp.shape(leaf)[:1] != (self.n,) for leaf in jax.tree.leaves(params)):
            raise ValueError(
                f"repeat of {self.n} layers expects parameters with a first axis of {self.n}, got {leaf_shapes(params)}"
            )

    def __repr__(self) -> str:
        """The call that makes this net."""
        return f"repeat({self.layer!r}, {self.n})"


@register_static
@dataclass(frozen=True)
class _Sharing:
    """Which of the arrays that one repetition saves are the same array, so that `repeat` stacks each only once.

    `source[i]` says which of the distinct arrays leaf i of `saved` is; −1 stands for the repetition's output, which
    the next repetition saves as its input. Arrays count as the same when they are the same object, so a duplicate
    that is not recognised costs memory and nothing else.
    """

    source: tuple[int, ...]
    input: int
    structure: Any

    @staticmethod
    def among(x: Any, y: Any, saved: Any) -> _Sharing:
        """What is shared in `saved`, given the repetition's input and output."""
        leaves, structure = jax.tree.flatten(saved)
        ids, source = [], []
        takes_input = any(leaf is x for leaf in leaves)
        for leaf in leaves:
            if leaf is y and takes_input and y is not x:
                source.append(-1)
                continue
            if id(leaf) not in ids:
                ids.append(id(leaf))
            source.append(ids.index(id(leaf)))
        return _Sharing(tuple(source), ids.index(id(x)) if takes_input else -1, structure)

    @property
    def shares_output(self) -> bool:
        """Whether an output is left to the next repetition to keep."""
        return -1 in self.source

    def distinct(self, saved: Any) -> tuple[Any, ...]:
        """The arrays to stack."""
        leaves = jax.tree.leaves(saved)
        return tuple(leaves[self.source.index(j)] for j in range(max(self.source, default=-1) + 1))

    def whole(self, distinct: tuple[Any, ...], y: Any) -> Any:
        """`saved` as it was, from the distinct arrays and the repetition's output."""
        return jax.tree.unflatten(self.structure, [y if j < 0 else distinct[j] for j in self.source])


def _compact(x: Any, y: Any, saved: Any) -> Any:
    """`saved`, with one byte a number for each `Sign` whose array nothing else in it needs, nor the next repetition."""

    def is_sign(node: Any) -> bool:
        return isinstance(node, Sign)

    others = [leaf for leaf in jax.tree.leaves(saved, is_leaf=is_sign) if not is_sign(leaf)]
    kept = {id(leaf) for leaf in others} | ({id(y)} if any(leaf is x for leaf in others) else set())

    def smaller(node: Any) -> Any:
        return Sign(node.positive) if is_sign(node) and id(node.array) not in kept else node

    return jax.tree.map(smaller, saved, is_leaf=is_sign)


def serial(*layers: Layer) -> Serial:
    """Layers one after another. Parameters: a tuple in layer order."""
    return Serial(layers)


def residual(layer: Layer) -> Residual:
    """y = x + layer(x). Parameters: the layer's own."""
    return Residual(layer)


def branch(*layers: Layer, join: Literal["sum", "concat"] = "sum") -> Branch:
    """The same x into every layer; outputs summed, or joined along the last axis. Parameters: a tuple."""
    return Branch(layers, join)


def repeat(layer: Layer, n: int) -> Repeat:
    """n layers alike, one after another, by `lax.scan`. Parameters: the layer's own, with an axis l of n in front."""
    return Repeat(layer, n)


def _layers(name: str, layers: Any) -> tuple[Layer, ...]:
    """`layers` as a tuple, if each is a layer."""
    layers = tuple(layers)
    if not layers:
        raise ValueError(f"{name} needs at least one layer")
    for layer in layers:
        if isinstance(layer, type) and issubclass(layer, Layer):
            raise ValueError(f"{name} got the class {layer.__name__}: call it, as in {layer.__name__}(...)")
        if not isinstance(layer, Layer):
            raise ValueError(f"{name} takes layers (subclasses of jbp.Layer), but got {layer!r}")
        check_hashable(layer)
    return layers


def _split(key: PRNGKeyArray | None, layers: tuple[Layer, ...]) -> list[Any]:
    """A key for each layer that may look at one."""
    if key is None or all(layer.uses_key is False for layer in layers):
        return [None] * len(layers)
    keys = jax.random.split(key, len(layers))
    return [None if layer.uses_key is False else keys[i] for i, layer in enumerate(layers)]


def _sum(arrays: list[Any]) -> Any:
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


def _expect_tuple(net: Serial | Branch, params: Any) -> None:
    if not isinstance(params, tuple) or len(params) != len(net.layers):
        found = f"a tuple of {len(params)}" if isinstance(params, tuple) else f"a {type(params).__name__}"
        raise ValueError(
            f"{type(net).__name__.lower()} of {len(net.layers)} layers expects a tuple of {len(net.layers)} "
            f"parameter trees, as net.init makes it, but got {found}"
        )
