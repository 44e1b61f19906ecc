"""`repeat`: n layers alike by one scan, which stacks each saved array once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import register_static

from jbp.annotations import Array, PRNGKeyArray
from jbp.answers import init_answer
from jbp.arguments import as_count, as_shape, leaf_shapes
from jbp.combine.base import Combinator, Place, Visit, check_layers
from jbp.combine.serial import one_of, words_of
from jbp.inputs import check_key
from jbp.layer import Layer, Shape, Sign
from jbp.meshes import alike
from jbp.pairs import Stack, is_pair


@dataclass(frozen=True, repr=False)
class Repeat(Combinator):
    """n layers alike, one after another, each with parameters of its own, by `lax.scan`: compiled once, not n times."""

    layer: Layer
    n: int
    word = "repeat"

    def __post_init__(self) -> None:
        check_layers("repeat", (self.layer,))
        object.__setattr__(self, "n", as_count(self.n, "the n of repeat"))

    @property
    def children(self) -> tuple[Layer, ...]:
        """The one layer that is repeated."""
        return (self.layer,)

    @classmethod
    def around(cls, argument: str, inside: tuple[Layer, ...]) -> Layer:
        """ "repeat:3( … )"."""
        if not argument.isdecimal():
            raise ValueError("repeat takes a number of times, as in repeat:3( 8 relu )")
        return cls(one_of(inside), int(argument))

    def as_word(self) -> str:
        """How often, and its layers in brackets."""
        return f"repeat:{self.n}( {words_of(self.layer)} )"

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[Any, Shape]:
        """The parameters of the n layers, stacked: an axis l in front of each. The shape must stay."""
        check_key(key, needed=True)
        shape = as_shape(shape)
        layer, outs = self.before(None).layer, []

        def one(k: PRNGKeyArray) -> Any:
            params, out_shape = init_answer(layer, layer.init(k, shape))
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
            return alike(y, carried), plan[0].distinct(saved)

        carried = alike(x, params)
        y, stacks = lax.scan(body, carried, (params, keys), length=self.n)
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
            carry = delta_x, distinct[plan.input] if plan.shares_output else None
            return alike(carry, carried), answers[0].distinct(found)

        answers: list[_Sharing] = []
        carried = alike((delta, last), params, stacks)
        (delta_x, _), found = lax.scan(body, carried, (params, stacks), length=self.n, reverse=True)
        found = answers[0].whole(found, None)
        return delta_x, jax.tree.map(lambda f: Stack(f) if is_pair(f) else f, found, is_leaf=is_pair)

    def walk_coupling(self, visit: Callable[[Place, Layer, bool], bool], coupled: bool) -> bool:
        """Below a coupling repetition are all the others, and the pairs of all are one stack."""
        return visit((), self.layer, coupled) and (coupled or visit((), self.layer, True))

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


def repeat(layer: Layer, n: int) -> Repeat:
    """n layers alike, one after another, by `lax.scan`. Parameters: the layer's own, with an axis l of n in front."""
    return Repeat(layer, n)
