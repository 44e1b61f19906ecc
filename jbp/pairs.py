"""Pairs: the gradient, not contracted yet.

A backward pass that stops before its last step holds, for every parameter, what came in (`h`) and the δ of what
went out (`delta`). That is a *pair*. Contracted over the batch it is the gradient; contracted otherwise it is
per-example gradients, their norms, their second moments. A pair's class says how `h` and `delta` make the gradient
of one example, so each of those readings is written once per class and not once per layer.

Axis letters: n example, t use of the parameter inside one example, i in, o out, l layer of a stack.
Inside a layer there is no n; the spine's `vmap` puts it first. `Stack` puts l before it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import register_dataclass
from jaxtyping import Array, Float

from jbp.arguments import check_weights

Weights = Float[Array, " n"] | None


class Pair:
    """What a backward pass keeps for one parameter."""

    @abstractmethod
    def total(self, weights: Weights = None) -> Array:
        """Σₙ wₙ gₙ, in the parameter's own shape. None means wₙ = 1: the plain sum over the batch."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """N, the number of examples."""


def is_pair(node: Any) -> TypeGuard[Pair]:
    """Whether `node` is a pair: the `is_leaf` that walks a tree of pairs."""
    return isinstance(node, Pair)


def weigh(weights: Weights, delta: Array) -> Array:
    """wₙ δₙ, where a row of weight 0 becomes exactly 0 whatever it holds: 0·NaN would be NaN."""
    if weights is None:
        return delta
    w = jnp.asarray(weights, delta.dtype).reshape(delta.shape[:1] + (1,) * (delta.ndim - 1))
    return jnp.where(w == 0, jnp.zeros_like(delta), w * delta)


def _weighed_rows(weights: Weights, delta: Float[Array, "n t o"]) -> Float[Array, "n*t o"]:
    """wₙ δ[n,t,o] with n and t as one axis; in the same words for a weight and its bias, so that XLA does it once."""
    rows = delta.reshape(-1, delta.shape[-1])
    return weigh(None if weights is None else jnp.repeat(weights, delta.shape[1]), rows)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Outer(Pair):
    """g = Σₜ h ⊗ δ: the pair of a weight that multiplies. `shape` is the weight's own, of size i·o."""

    h: Float[Array, "*n t i"]
    delta: Float[Array, "*n t o"]
    shape: tuple[int, ...] = field(metadata={"static": True})

    def total(self, weights: Weights = None) -> Array:
        """Σₙₜ wₙ h[n,t,i] δ[n,t,o]: one matrix product."""
        # n and t as one axis: with two contracted axes XLA's CPU compiler copies h transposed.
        h = self.h.reshape(-1, self.h.shape[-1])
        return lax.dot_general(h, _weighed_rows(weights, self.delta), (((0,), (0,)), ((), ()))).reshape(self.shape)

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.delta.shape[0]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Shift(Pair):
    """g = Σₜ δ: the pair of a parameter that is added, such as a bias. `shape` is its own, of size o."""

    delta: Float[Array, "*n t o"]
    shape: tuple[int, ...] = field(metadata={"static": True})

    def total(self, weights: Weights = None) -> Array:
        """Σₙₜ wₙ δ[n,t,o]."""
        return _weighed_rows(weights, self.delta).sum(0).reshape(self.shape)

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.delta.shape[0]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Scale(Pair):
    """g = Σₜ h∘δ: the pair of a gain, a parameter that multiplies element by element. `shape` is its own."""

    h: Float[Array, "*n t o"]
    delta: Float[Array, "*n t o"]
    shape: tuple[int, ...] = field(metadata={"static": True})

    def total(self, weights: Weights = None) -> Array:
        """Σₙₜ wₙ h[n,t,o] δ[n,t,o]."""
        return jnp.einsum("nto,nto->o", self.h, weigh(weights, self.delta)).reshape(self.shape)

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.delta.shape[0]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Stack(Pair):
    """One pair per layer of a scanned stack: every array of `pair` has an axis l in front. Stacks nest."""

    pair: Pair

    def total(self, weights: Weights = None) -> Array:
        """Σₙ wₙ gₙ for each layer of the stack: [l, *shape]."""
        return jax.vmap(lambda pair: pair.total(weights))(self.pair)

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        # Every array below has this stack's l in front; without it the inner pair's own rule applies.
        return jax.eval_shape(lambda pair: jax.tree.map(lambda a: a[0], pair), self.pair).batch


@register_dataclass
@dataclass(frozen=True, eq=False)
class Sum(Pair):
    """Σ of its members' gradients: a parameter used in several places by pairs of different kinds.

    `merge` makes it; pairs of one kind it joins along t instead, which is exact and needs no cross terms.
    """

    pairs: tuple[Pair, ...]

    def total(self, weights: Weights = None) -> Array:
        """Σₙ wₙ gₙ, the members' totals added up."""
        return reduce(jnp.add, [pair.total(weights) for pair in self.pairs])

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.pairs[0].batch


@register_dataclass
@dataclass(frozen=True, eq=False)
class Coupled(Pair):
    """The pair of a parameter below a layer that couples examples, at `path`: it has a total and nothing else.

    There δₙ is not the derivative of example n's error alone, so that anything read from single rows would be wrong.
    """

    pair: Pair
    path: str = field(metadata={"static": True})

    def total(self, weights: Weights = None) -> Array:
        """Σₙ gₙ; the weights went into the δ at the output, where alone they are right."""
        if weights is not None:
            raise NotImplementedError(
                f"below the batch-coupled layer {self.path} examples can be weighted at the loss only: "
                "pass the weights to value_and_grad, or multiply the δ at the output by them"
            )
        return self.pair.total()

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.pair.batch


def merge(*pairs: Pair) -> Pair:
    """One pair for a parameter used in several places: those of a kind joined along t, the rest as a `Sum`.

    Raises:
        ValueError: if the uses do not have one shape.
    """
    if any(isinstance(pair, Coupled) for pair in pairs):
        path = next(pair.path for pair in pairs if isinstance(pair, Coupled))
        return Coupled(merge(*(pair.pair if isinstance(pair, Coupled) else pair for pair in pairs)), path)
    if all(isinstance(pair, Stack) for pair in pairs):
        return Stack(merge(*(pair.pair for pair in pairs)))  # type: ignore[attr-defined]
    kinds: dict[Any, list[Pair]] = {}
    for pair in pairs:
        for member in pair.pairs if isinstance(pair, Sum) else (pair,):
            kinds.setdefault((type(member), tuple(a.shape[-1] for a in jax.tree.leaves(member))), []).append(member)
    shapes = {getattr(member, "shape", None) for members in kinds.values() for member in members}
    if len(shapes) != 1 or None in shapes:
        raise ValueError(f"the uses of one parameter must have one shape, but have {sorted(map(str, shapes))}")
    joined = [
        jax.tree.map(lambda *arrays: jnp.concatenate(arrays, -2), *members) for members in kinds.values()
    ]  # t is the axis before the last, whatever comes in front
    return joined[0] if len(joined) == 1 else Sum(tuple(joined))


def contract(pairs: Any, weights: Weights = None) -> Any:
    """Step 3: contract every pair over the batch, which makes the gradient.

    `pairs` is the tree that `jbp.backward` returns; the result is the tree of the parameters.
    With `weights` [n] it is Σₙ wₙ gₙ, not renormalised; without, the mean 1/N Σₙ gₙ.
    A row of weight 0 takes no part, whatever its δ holds; its h must be finite, as 0·NaN is NaN: give the weights to
    `jbp.value_and_pairs` too, which sees to it.

    Raises:
        ValueError: if `weights` has not one finite entry per example.
    """
    leaves = jax.tree.leaves(pairs, is_leaf=is_pair)
    strangers = [leaf for leaf in leaves if not is_pair(leaf)]
    if strangers:
        raise ValueError(
            f"contract takes the pairs that jbp.backward returns, but found a {type(strangers[0]).__name__} among them"
        )
    for n in {leaf.batch for leaf in leaves}:
        check_weights(weights, n)
    if weights is None:
        return jax.tree.map(lambda pair: pair.total() / pair.batch, pairs, is_leaf=is_pair)
    return jax.tree.map(lambda pair: pair.total(weights), pairs, is_leaf=is_pair)
