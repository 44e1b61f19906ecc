"""How a mutant is made: a fresh subclass with one method changed, or a patched function."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp import backprop
from jbp.layer import Layer
from jbp.pairs import Outer, Pair, Scale, Shift


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
        return delta * gain.reshape((1,) * (delta.ndim - 1) + (-1,)), {"gain": Scale.of(saved, delta, gain.shape)}


@dataclass(frozen=True, repr=False)
class Folded(Layer):
    """y = g∘(xW + b) with an axis more in each parameter than its pair has: totals must take the parameter's shape."""

    uses_key = False

    def init(self, key, shape):
        weight = jax.random.normal(key, (shape[0] // 2, 2, 5))
        return {"bias": jnp.ones((1, 5)), "gain": jnp.ones((5, 1)), "weight": weight}, (5,)

    def forward(self, params, x, key):
        s = x @ params["weight"].reshape(-1, 5) + params["bias"].reshape(5)
        return params["gain"].reshape(5) * s, (x, s)

    def backward(self, params, saved, delta):
        (x, s), weight = saved, params["weight"]
        delta_s = params["gain"].reshape(5) * delta
        pairs = {
            "bias": Shift(delta_s[None], (1, 5)),
            "gain": Scale(s[None], delta[None], (5, 1)),
            "weight": Outer(x[None], delta_s[None], weight.shape),
        }
        return weight.reshape(-1, 5) @ delta_s, pairs


@dataclass(frozen=True, repr=False)
class Lookup(Layer):
    """Row x of a table, for an integer x: a layer that passes no δ on."""

    uses_key = False

    def init(self, key, shape):
        return {"table": jax.random.normal(key, (5, 3))}, (3,)

    def forward(self, params, x, key):
        return params["table"][x], x

    def backward(self, params, saved, delta):
        row = jax.nn.one_hot(saved, 5, dtype=delta.dtype)
        return None, {"table": Outer(row[None], delta[None], (5, 3))}


@dataclass(frozen=True, repr=False)
class Centred(Layer):
    """y = x − the (weighted) mean of the batch: a layer that couples the examples."""

    uses_key = False
    couples_batch = True

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key, weights=None):
        w = jnp.full(x.shape[0], 1 / x.shape[0], x.dtype) if weights is None else weights / weights.sum()
        return x - jnp.einsum("n,n...->...", w, x)[None], w

    def backward(self, params, saved, delta):
        return delta - jnp.einsum("n,...->n...", saved, delta.sum(0)), ()
