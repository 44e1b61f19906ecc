"""What a learning rule is: another way back for δ, over the same forward pass, loss and optimiser.

The gradient of a weight is h ⊗ δ, whatever way δ came. A rule changes that way. It is a frozen dataclass of static
hyper-parameters; bound to a net it is a `jbp.method.Method`, whose state (such as random weights) training carries.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array

from jbp.backprop import Mask, backward, forward, value_grad_output
from jbp.combine import Combinator, Visit
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.method import Method
from jbp.pairs import Coupled, Outer, Pair, Stack, Sum, Weights, is_pair

Depths = tuple[int | None, ...]
"""Of each parameter, in leaf order: how many `repeat` it stands in if it is a weight that multiplies, else None."""


class Rule:
    """A way back for δ. A subclass gives `bind`."""

    @abstractmethod
    def bind(self, net: Layer, params: Any, x: Any, mask: Mask) -> RuleMethod:
        """The method of this rule for this net, with the static facts that it needs: which parameters are weights,
        which of them are trained, what shapes they have. Of `x` [n, ...] only shape and dtype are looked at.

        Raises:
            ValueError: if the net has no weight.
        """


@dataclass(frozen=True)
class RuleMethod(Method):
    """A rule bound to a net. A subclass gives `walk_back`."""

    depths: Depths

    @abstractmethod
    def walk_back(self, net: Layer, visit: Visit, params: Any, state: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """The rule's step 2: as `Combinator.walk_backward` of a combinator that holds `net` alone."""

    def gradient(
        self,
        state: Any,
        net: Layer,
        loss: Loss,
        params: Any,
        x: Any,
        y: Any,
        key: Array | None,
        weights: Weights,
        mask: Mask,
    ) -> tuple[Array, Any, Any]:
        """Σₙ wₙ eₙ, Σₙ wₙ h ⊗ δ with the rule's δ, and the outputs [n, ...]."""
        return value_grad_output(Way(net, self), loss, (params, state), x, y, key, weights, mask)


@dataclass(frozen=True, repr=False)
class Way(Combinator):
    """A net with a rule's way back. Parameters: (the net's, the rule's state).

    What is found on the way back has the tree of the net's parameters; with `compare`, it is the pair of what
    backpropagation finds and what the rule finds, from one forward pass.
    """

    net: Layer
    method: RuleMethod
    compare: bool = False

    @property
    def children(self) -> tuple[Layer, ...]:
        """The one net."""
        return (self.net,)

    def walk_forward(self, visit: Visit, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """The net, as it is."""
        return visit((), self.net, params[0], x, key)

    def walk_backward(self, visit: Visit, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """The rule's way back; with `compare`, backpropagation's before it."""
        params, state = params
        delta_x, found = self.method.walk_back(self.net, visit, params, state, saved, delta)
        if self.compare:
            delta_x, true = visit((), self.net, params, saved, delta)
            return delta_x, (true, found)
        return delta_x, found

    def walk_coupling(self, visit: Any, coupled: bool) -> bool:
        """What the net couples."""
        return visit((), self.net, coupled)

    def __repr__(self) -> str:
        """The net's, for messages."""
        return repr(self.net)


def depths_of(net: Layer, params: Any, x: Any) -> Depths:
    """Which parameters are weights that multiply, read from the class of their pairs; nothing is computed.

    Raises:
        ValueError: if there is none.
    """

    def walk(params: Any, x: Any) -> Any:
        output, saved = forward(net, params, x)
        return backward(net, params, saved, output)[1]  # a δ has the shape of the output

    pairs = jax.eval_shape(walk, params, x[:1])
    depths = tuple(_depth(pair) for pair in jax.tree.leaves(pairs, is_leaf=is_pair))
    if all(depth is None for depth in depths):
        raise ValueError(f"a learning rule changes how weights carry δ back, but {net!r} has no weight that multiplies")
    return depths


def _depth(pair: Pair, above: int = 0) -> int | None:
    match pair:
        case Stack():
            return _depth(pair.pair, above + 1)
        case Coupled():
            return _depth(pair.pair, above)
        case Sum():
            return next((d for d in (_depth(member, above) for member in pair.pairs) if d is not None), None)
    return above if isinstance(pair, Outer) else None


def trained(mask: Mask, params: Any) -> tuple[bool, ...]:
    """Of each parameter, in leaf order, whether it is trained."""
    if not mask.leaves:
        return (True,) * len(jax.tree.leaves(params))
    parts = mask.structure.flatten_up_to(params)
    return tuple(on for on, part in zip(mask.leaves, parts, strict=True) for _ in jax.tree.leaves(part))


def chosen(flags: Iterable[Any], tree: Any) -> Any:
    """`tree` with None, which JAX's tree functions pass over, in place of every leaf whose flag is False."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([leaf if flag else None for flag, leaf in zip(flags, leaves, strict=True)])


def replaced(tree: Any, new: Any) -> Any:
    """`tree`, with the leaves of `new` where it has some."""
    return jax.tree.map(lambda leaf, other: leaf if other is None else other, tree, new)
