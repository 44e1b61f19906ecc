"""`tied`: one parameter used in several places of a net.

The owner holds the parameter, each borrower holds (). On the way out a borrower is handed the owner's array, on the way
back its pair is merged into the owner's: the gradient of a shared parameter is the sum over its uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jbp.arguments import check_hashable, leaf_shapes
from jbp.combine.base import Combinator, Place, Visit
from jbp.layer import Layer, Shape
from jbp.pairs import is_pair, merge

Path = tuple[int | str, ...]


@dataclass(frozen=True, repr=False)
class Tied(Combinator):
    """A net in which some parameters are others: `ties` holds (borrower, owner) paths into the net's parameters."""

    layer: Layer
    ties: tuple[tuple[Path, Path], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.layer, Layer):
            raise ValueError(f"tied takes a net, but got {self.layer!r}")
        check_hashable(self.layer)
        owners = {owner for _, owner in self.ties}
        for borrower, owner in self.ties:
            for other in {*owners, *(b for b, _ in self.ties if b != borrower)}:
                n = min(len(borrower), len(other))
                if borrower[:n] == other[:n]:
                    raise ValueError(
                        f"the borrower {_shown(borrower)} of {_shown(owner)} overlaps {_shown(other)}: "
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
        params, out_shape = self.layer.init(key, shape)
        for borrower, owner in self.ties:
            lent, wanted = leaf_shapes(_get(params, owner)), leaf_shapes(_get(params, borrower))
            if lent != wanted:
                raise ValueError(f"{_shown(borrower)} needs {wanted}, but its owner {_shown(owner)} holds {lent}")
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
                raise ValueError(f"the borrower {_shown(borrower)} holds (), as net.init makes it, but got parameters")
            full = _put(full, borrower, _get(params, owner))
        return full

    def walk_forward(self, visit: Visit, params: Any, x: Any, key: PRNGKeyArray | None) -> tuple[Any, Any]:
        """The net, on its whole parameters."""
        return visit((), self.layer, self.whole(params), x, key)

    def walk_backward(self, visit: Visit, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """The net's way back; what was found at each borrower goes to its owner: pairs merged, totals added."""
        delta_x, found = visit((), self.layer, self.whole(params), saved, delta)
        uses: dict[Path, list[Any]] = {}
        for borrower, owner in self.ties:
            uses.setdefault(owner, [_get(found, owner)]).append(_get(found, borrower))
            found = _put(found, borrower, ())
        for owner, several in uses.items():
            joined = jax.tree.map(lambda *parts: _join(owner, parts), *several, is_leaf=is_pair)  # noqa: B023
            found = _put(found, owner, joined)
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
    if not isinstance(ties, Mapping) or not ties:
        raise ValueError(f"tied needs a mapping of paths {{borrower: owner}}, at least one, but got {ties!r}")
    return Tied(net, tuple((_path(borrower), _path(owner)) for borrower, owner in ties.items()))


def _path(path: Any) -> Path:
    path = path if isinstance(path, tuple) else (path,)
    if not path or not all(isinstance(step, int | str) for step in path):
        raise ValueError(f"a path is a tuple of indices and names such as (2, 'weight'), but got {path!r}")
    return path


def _join(owner: Path, parts: tuple[Any, ...]) -> Any:
    try:
        return merge(*parts) if is_pair(parts[0]) else reduce(jnp.add, parts)
    except ValueError as error:
        raise ValueError(f"the uses of {_shown(owner)} do not fit together: {error}") from error


def _get(tree: Any, path: Path) -> Any:
    for i, step in enumerate(path):
        try:
            tree = tree[step]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"there are no parameters at {_shown(path)}: {_shown(path[: i + 1])} is missing"
            ) from error
    return tree


def _put(tree: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    step, *rest = path
    new = _put(tree[step], tuple(rest), value)
    if isinstance(tree, dict):
        return tree | {step: new}
    return tuple(new if i == step else child for i, child in enumerate(tree))


def _shown(path: Path) -> str:
    return "".join(f"[{step!r}]" for step in path)
