"""How a mutant is made: a fresh subclass with one method changed, or a patched function."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp import backprop
from jbp.layer import Layer
from jbp.pairs import Pair, Scale


@dataclass(frozen=True)
class Mutant:
    """One mistake: what is wrong, where, the law that is the first to catch it, and what to give to the check."""

    name: str
    where: str
    law: str
    check: str
    right: Any
    wrong: Any
    patches: tuple[tuple[Any, str, Any], ...] = ()


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """With the mutant's patches in place, and no whole program kept from before or for afterwards."""
    before = [getattr(where, name) for where, name, _ in mutant.patches]
    if mutant.patches:
        backprop._compiled.cache_clear()
    for where, name, new in mutant.patches:
        setattr(where, name, new)
    try:
        yield
    finally:
        for (where, name, _), old in zip(mutant.patches, before, strict=True):
            setattr(where, name, old)
        if mutant.patches:
            backprop._compiled.cache_clear()


def wrong(subject: Any, **methods: Any) -> Any:
    """The same layer or loss, with these methods instead."""
    kind: Any = type(f"Wrong{type(subject).__name__}", (type(subject),), methods)
    new = object.__new__(kind)
    new.__dict__.update(subject.__dict__)
    return new


def with_pair(subject: Layer, which: str, make: Callable[[Any], Pair]) -> Any:
    """A layer whose pair for one parameter is another."""

    def backward(self: Any, params: Any, saved: Any, delta: Any) -> Any:
        delta_x, pairs = type(subject).backward(self, params, saved, delta)
        return delta_x, pairs | {which: make(pairs[which])}

    return wrong(subject, backward=backward)


def with_total(subject: Layer, which: str, kind: type[Pair], total: Any) -> Any:
    """A layer whose pair for one parameter is contracted in another way."""
    other = register_dataclass(type(f"Wrong{kind.__name__}", (kind,), {"total": total}))
    return with_pair(subject, which, lambda pair: other(**vars(pair)))


@dataclass(frozen=True, repr=False)
class Gain(Layer):
    """y = g∘x: the layer of the pair Scale, which no layer of jbp's uses yet."""

    uses_key = False

    def init(self, key, shape):
        return {"gain": jnp.ones(shape[-1:])}, shape

    def forward(self, params, x, key):
        return x * params["gain"].reshape((1,) * (x.ndim - 1) + (-1,)), x

    def backward(self, params, saved, delta):
        gain = params["gain"]
        h, uses = (a.reshape(-1, gain.size) for a in (saved, delta))
        return delta * gain.reshape((1,) * (delta.ndim - 1) + (-1,)), {"gain": Scale(h, uses, gain.shape)}
