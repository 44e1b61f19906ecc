"""`tied`: one parameter used in several places of a net.

The owner holds the parameter, each borrower holds (). On the way out a borrower is handed the owner's array, on the way
back its pair is merged into the owner's: the gradient of a shared parameter is the sum over its uses.

So whoever walks back may read what is found at one use only when all are found, and everything else at once. `Tied`
says which is which: it hands its parameters down with the shared ones marked (`Shared`), and when their uses are joined
it visits them once more, as a layer of their own (`Uses`). Ties in ties need nothing else: for an inner `Tied` a
parameter is still marked if one further out waits for more uses of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp.annotations import PRNGKeyArray
from jbp.answers import init_answer
from jbp.arguments import leaf_shapes
from jbp.combine.base import Combinator, Place, Visit
from jbp.inputs import check_key, check_net
from jbp.layer import Layer, Shape
from jbp.pairs import is_pair, merge
from jbp.paths import shown

Path = tuple[int | str, ...]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Shared:
    """On the way back, in place of a parameter for whose other uses a `Tied` further out waits."""

    param: Any


@dataclass(frozen=True, repr=False)
class Uses(Layer):
    """What a `Tied` visits on the way back, in place of a layer, when all uses of a shared parameter are found: its
    `saved` is what the visits found at them, joined, its `params` are the owner's; there is no δ."""

    owner: Path

    def __repr__(self) -> str:
        """What it stands for."""
        return f"the uses of {shown(self.owner)}"


@dataclass(frozen=True, repr=False)
class Tied(Combinator):
    """A net in which some parameters are others: `ties` holds (borrower, owner) paths into the net's parameters."""

    layer: Layer
    ties: tuple[tuple[Path, Path], ...]

    def __post_init__(self) -> None:
        check_net(self.layer, Layer, "what tied takes")
        object.__setattr__(self, "ties", _ties(self.ties))
        owners = {owner for _, owner in self.ties}
        for borrower, owner in self.ties:
            for other in {*owners, *(b for b, _ in self.ties if b != borrower)}:
                if _overlap(borrower, other):
                    raise ValueError(
                        f"the borrower {shown(borrower)} of {shown(owner)} overlaps {shown(other)}: "
                        "an owner must hold its own parameter, and a parameter can be borrowed in a place only once"
                    )

    @property
    def children(self) -> tuple[Layer, ...]:
        """The one net."""
        return (self.layer,)

    @property
    def piecewise_linear(self) -> bool:  # type: ignore[override]
        """False: in a parameter used twice the net is not linear."""
        return False

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[Any, Shape]:
        """The net's parameters, with () in the place of each borrower."""
        check_key(key)
        params, out_shape = init_answer(self.layer, self.layer.init(key, shape))
        for borrower, owner in self.ties:
            lent, wanted = leaf_shapes(_get(params, owner)), leaf_shapes(_get(params, borrower))
            if lent != wanted:
                raise ValueError(f"{shown(borrower)} needs {wanted}, but its owner {shown(owner)} holds {lent}")
        for borrower, _ in self.ties:
            params = _put(params, borrower, ())
        return params, out_shape

    def before(self, following: Layer | None) -> Tied:
        """The net, as it is initialised in front of the next activation."""
        return Tied(self.layer.before(following), self.ties)

    def opening(self, following: Layer | None) -> Layer | None:
        """The net's own."""
        return self.layer.opening(following)

    def whole(self, params: Any) -> Any:
        """The net's parameters with each owner's array where it is borrowed."""
        full = params
        for borrower, owner in self.ties:
            if jax.tree.leaves(_get(params, borrower)):
                raise ValueError(f"the borrower {shown(borrower)} holds (), as net.init makes it, but got parameters")
            full = _put(full, borrower, _get(params, owner))
        return full

    def walk_forward(self, visit: Visit, params: Any, x: Any, key: PRNGKeyArray | None) -> tuple[Any, Any]:
        """The net, on its whole parameters."""
        return visit((), self.layer, self.whole(params), x, key)

    def walk_backward(self, visit: Visit, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """The net's way back. What was found at a borrower goes to its owner, pairs merged, totals added; then the
        owner's is complete, and `visit` says what becomes of it."""
        whole = self.whole(params)
        for path in (path for tie in self.ties for path in tie):
            whole = _put(whole, path, jax.tree.map(_mark, _get(whole, path), is_leaf=is_shared))
        delta_x, found = visit((), self.layer, whole, saved, delta)
        owners = list(dict.fromkeys(owner for _, owner in self.ties))
        for owner in owners:
            uses = [_get(found, path) for path in (owner, *(b for b, lender in self.ties if lender == owner))]
            joined = jax.tree.map(lambda *parts: _join(owner, parts), *uses, is_leaf=is_pair)  # noqa: B023
            found = _put(found, owner, joined)
        for borrower, _ in self.ties:
            found = _put(found, borrower, ())
        for owner in owners:
            if not any(_overlap(owner, other) and len(other) < len(owner) for other in owners):
                _, complete = visit(_place(owner), Uses(owner), _get(params, owner), _get(found, owner), None)
                found = _put(found, owner, complete)
        return delta_x, found

    def walk_coupling(self, visit: Callable[[Place, Layer, bool], bool], coupled: bool) -> bool:
        """What the net couples is coupled below."""
        return visit((), self.layer, coupled)

    def __repr__(self) -> str:
        """The call that makes this net."""
        return f"tied({self.layer!r}, {dict(self.ties)})"


def tied(net: Layer, ties: Mapping[Path | int | str, Path | int | str]) -> Tied:
    """`net` with parameters shared: `ties` maps each borrower's path to its owner's.

    A path leads through the net's parameters, to one array or to all those of a layer: `tied(net, {(2, "weight"):
    (0, "weight")})`, or `tied(net, {2: 0})` for the layers at those places. The owner holds the parameter, the
    borrower (). Statistics of a shared parameter are exact: its uses are one pair, or a `Sum` where their kinds differ.

    Raises:
        ValueError: if an owner is a borrower too, or (at init) if a path leads nowhere or the shapes differ.
    """
    if not isinstance(ties, Mapping):
        raise ValueError(f"tied needs a mapping of paths {{borrower: owner}}, but got {ties!r}")
    return Tied(net, tuple(ties.items()))  # type: ignore[arg-type] (Tied makes paths of them)


def is_shared(node: Any) -> TypeGuard[Shared]:
    """Whether `node` is a marked parameter."""
    return isinstance(node, Shared)


def unmarked(params: Any) -> Any:
    """The parameters themselves, as a layer takes them."""
    return jax.tree.map(lambda node: node.param if is_shared(node) else node, params, is_leaf=is_shared)


def unless_shared(function: Callable[[Any], Any], params: Any, found: Any) -> Any:
    """`function` of what was found at a layer; where some of its parameters are marked, of each that is not, and what
    was found at the others as it is."""
    nodes, structure = jax.tree.flatten(params, is_leaf=is_shared)
    if not any(map(is_shared, nodes)):
        return function(found)
    parts = zip(nodes, structure.flatten_up_to(found), strict=True)
    return structure.unflatten([part if is_shared(node) else function(part) for node, part in parts])


def check_observed(layer: Layer, params: Any, pairs: Any) -> None:
    """Refuse running moments that are shared, and such of a layer that does not say that it has them."""
    nodes, structure = jax.tree.flatten(params, is_leaf=is_shared)
    for node, pair in zip(nodes, structure.flatten_up_to(pairs), strict=True):
        if pair.constant and is_shared(node):
            raise ValueError(
                f"the running moments of {layer!r} cannot be tied: each place of it observes others; tie its scale and "
                "bias alone, or normalise by GroupNorm or LayerNorm, which have none"
            )
        if pair.observed is not None and not layer.observes:
            raise ValueError(f"{layer!r} makes a pair Constant, so its class must say observes = True")


def _mark(node: Any) -> Shared:
    return node if is_shared(node) else Shared(node)


def _ties(ties: Any) -> tuple[tuple[Path, Path], ...]:
    """Pairs of paths, at least one."""
    if not isinstance(ties, tuple) or not ties or not all(isinstance(tie, tuple) and len(tie) == 2 for tie in ties):
        raise ValueError(f"tied needs a path of an owner for each borrower, at least one, but got {ties!r}")
    return tuple((_path(borrower), _path(owner)) for borrower, owner in ties)


def _path(path: Any) -> Path:
    path = path if isinstance(path, tuple) else (path,)
    if not path or not all(type(step) is str or (type(step) is int and step >= 0) for step in path):
        raise ValueError(f"a path is a tuple of indices and names such as (2, 'weight'), but got {path!r}")
    return path


def _overlap(a: Path, b: Path) -> bool:
    """Whether one leads to a part of what the other leads to."""
    n = min(len(a), len(b))
    return a[:n] == b[:n]


def _place(path: Path) -> Place:
    """The leading indices."""
    return tuple(takewhile(lambda step: isinstance(step, int), path))  # type: ignore[arg-type]


def _join(owner: Path, parts: tuple[Any, ...]) -> Any:
    try:
        return merge(*parts) if is_pair(parts[0]) else reduce(jnp.add, parts)
    except ValueError as error:
        raise ValueError(f"the uses of {shown(owner)} do not fit together: {error}") from error


def _get(tree: Any, path: Path) -> Any:
    for i, step in enumerate(path):
        steps = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, tuple | list) else ()
        if step not in steps:  # an array has entries too, but they are no parameters
            raise ValueError(f"there are no parameters at {shown(path)}: {shown(path[: i + 1])} is missing")
        tree = tree[step]  # type: ignore[index]
    return tree


def _put(tree: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    step, *rest = path
    new = _put(tree[step], tuple(rest), value)
    if isinstance(tree, dict):
        return tree | {step: new}
    children = [new if i == step else child for i, child in enumerate(tree)]
    return children if isinstance(tree, list) else tuple(children)
