"""What a learning rule is: another way back for δ, over the same forward pass, loss and optimiser.

The gradient of a weight is h ⊗ δ, whatever way δ came. A rule changes that way. It is a frozen dataclass of static
hyper-parameters; `as_method` makes it a `jbp.Method`, whose state (such as random weights) training carries; bound to a
net it knows which parameters are weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jbp.annotations import Array
from jbp.backprop import Batch, Trainable, backward, forward, value_grad_output
from jbp.combine import Combinator, Visit
from jbp.layer import Layer, Static
from jbp.pairs import Pair, is_pair
from jbp.step import Method, Problem, State, Sums, measured, moved, optimised

Depths = tuple[int | None, ...]
"""Of each parameter, in leaf order: how many `repeat` it stands in if it is a weight that multiplies, else None."""


class Rule:
    """A way back for δ. A subclass gives `bind`."""

    takes_mask: ClassVar[bool] = True
    """Whether a δ that is 0 at padding is 0 there on the rule's way too."""

    @abstractmethod
    def bind(self, net: Layer, params: Any, x: Any, trainable: Trainable) -> Bound:
        """This rule for this net, with the static facts that it needs: which parameters are weights, which of them are
        trained, what shapes they have. Of `params` and `x` [n, ...] only shapes and dtypes are looked at.

        Raises:
            ValueError: if the net has no weight.
        """

    def as_method(self) -> RuleMethod:
        """The rule as what makes a training step."""
        return RuleMethod(self)


@dataclass(frozen=True)
class Bound:
    """A rule bound to a net. A subclass gives `walk_back`."""

    depths: Depths

    def init(self, key: Array, params: Any) -> Any:
        """What the rule carries from step to step, a pytree; `()` if nothing."""
        return ()

    @abstractmethod
    def walk_back(self, net: Layer, visit: Visit, params: Any, state: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """The rule's step 2: as `Combinator.walk_backward` of a combinator that holds `net` alone."""

    def after(self, state: Any, params: Any, updates: Any) -> tuple[Any, Any]:
        """The updates to apply to `params`, and the state for the next step."""
        return updates, state


@dataclass(frozen=True)
class RuleMethod(Method):
    """A learning rule as a method: the same forward pass, loss and optimiser, another way back."""

    rule: Rule

    def init(self, key: Array, problem: Problem, params: Any, example: Any) -> Any:
        """The rule's state, sized by the initial weights."""
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), example)
        return self._bound(problem, params, one).init(key, params)

    def way(self, problem: Problem, state: State, x: Any) -> tuple[Way, Any]:
        """The net with the rule's way back."""
        return Way(problem.net, self._bound(problem, state.params, x)), (state.params, state.method_state)

    def sums(self, problem: Problem, state: State, batch: Batch, key: Array) -> Sums:
        """Σₙ wₙ h ⊗ δ with the rule's δ."""
        if batch.mask is not None and not self.rule.takes_mask:
            raise ValueError(
                f"{self.rule!r} sends the error to padding too, so it does not go with a mask: cut each example to its "
                "length"
            )
        way, params = self.way(problem, state, batch.x)
        found = value_grad_output(way, problem.loss, params, batch, key, problem.trainable)
        metrics = measured(problem, found.output, batch)
        return Sums(found.value, found.grads, metrics, Static(way.bound), found.observed)

    def update(self, problem: Problem, state: State, found: Sums, value_fn: Callable[[Any], Array]) -> State:
        """The optimiser's step, and the rule's own part in it."""
        updates, opt_state = optimised(problem, state, found, value_fn)
        updates, method_state = found.extra.value.after(state.method_state, state.params, updates)
        return moved(problem, state, updates, opt_state, found.observed, method_state=method_state)

    def _bound(self, problem: Problem, params: Any, x: Any) -> Bound:
        x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), x)
        leaves, structure = jax.tree.flatten((params, x))
        facts = tuple((jnp.shape(a), jnp.result_type(a)) for a in leaves)
        return _bind(self.rule, problem.net, problem.trainable, structure, facts)


@lru_cache(maxsize=256)
def _bind(rule: Rule, net: Layer, trainable: Trainable, structure: Any, facts: Any) -> Bound:
    params, x = structure.unflatten([jax.ShapeDtypeStruct(*fact) for fact in facts])
    return rule.bind(net, params, x, trainable)


@dataclass(frozen=True, repr=False)
class Way(Combinator):
    """A net with a rule's way back. Parameters: (the net's, the rule's state).

    What is found on the way back has the tree of the net's parameters; with `compare`, it is the pair of what
    backpropagation finds and what the rule finds, from one forward pass.
    """

    net: Layer
    bound: Bound
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
        delta_x, found = self.bound.walk_back(self.net, visit, params, state, saved, delta)
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

    pairs = jax.eval_shape(walk, params, x)
    depths = tuple(_depth(pair) for pair in jax.tree.leaves(pairs, is_leaf=is_pair))
    if all(depth is None for depth in depths):
        raise ValueError(f"a learning rule changes how weights carry δ back, but {net!r} has no weight that multiplies")
    return depths


def _depth(pair: Pair) -> int | None:
    """In how many stacks a weight that multiplies is, None for another parameter."""
    if not pair.transports:
        return None
    return jax.eval_shape(lambda pair: pair.over_stack(lambda _: jnp.zeros(())), pair).ndim


def chosen(flags: Iterable[Any], tree: Any) -> Any:
    """`tree` with None, which JAX's tree functions pass over, in place of every leaf whose flag is False."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([leaf if flag else None for flag, leaf in zip(flags, leaves, strict=True)])


def replaced(tree: Any, new: Any) -> Any:
    """`tree`, with the leaves of `new` where it has some."""
    return jax.tree.map(lambda leaf, other: leaf if other is None else other, tree, new)
