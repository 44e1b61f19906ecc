"""Wrong versions of jbp's own layers, pairs, combinators, spine, losses and optimisers: each must be caught.

Every mutant is a subject with one mistake beside the right one, and the public check that is given both. A wrong layer
or loss is an instance of a fresh subclass, because compiled programs are cached under the layer itself: so nothing of
the right layer's is reused and no cache has to be emptied. A wrong spine is a patched function, for which the one
cache of whole programs is cleared (`planted`). A wrong optimiser is a wrapper round the right one.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import register_dataclass

import jbp
import jbp.check
from jbp import backprop, losses, optim
from jbp.combine import Branch, Combinator
from jbp.layer import Layer
from jbp.pairs import Outer, Pair, Scale, Shift, Stack

GRADIENT: Any = sys.modules["jbp.check.gradient"]
"""The module; `jbp.check.gradient` is the function in it."""


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

    def run(self, subject: Any) -> jbp.check.Report:
        """The public check on this subject."""
        return CHECKS[self.check](subject)


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
    new = object.__new__(type(f"Wrong{type(subject).__name__}", (type(subject),), methods))
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
        uses = (a.reshape(-1, gain.size) for a in (saved, delta))
        return delta * gain.reshape((1,) * (delta.ndim - 1) + (-1,)), {"gain": Scale(*uses, gain.shape)}


class Wrapped(Combinator):
    """A combinator whose way back is changed by `change(delta, delta_x, found)`."""


def _through(net: Any, change: Any) -> Any:
    def walk_backward(self: Any, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
        return change(delta, *type(net).walk_backward(self, visit, params, saved, delta))

    return wrong(net, walk_backward=walk_backward)


def _layer(shape: tuple[int, ...]) -> Any:
    return lambda subject: jbp.check.layer(subject, shape, batch=3, differences=False)


def _loss(shape: tuple[int, ...], **options: Any) -> Any:
    return lambda subject: jbp.check.loss(subject, shape, batch=3, differences=False, **options)


def _data() -> tuple[Any, Any, Any]:
    draw = jax.random.split(jax.random.key(0), 3)
    weights = jax.random.uniform(draw[2], (5,), jnp.float64, 0.2, 1.0).at[2].set(0)
    return jax.random.normal(draw[0], (5, 3), jnp.float64), jax.random.normal(draw[1], (5, 2), jnp.float64), weights


NET = jbp.serial(jbp.Dense(4), jbp.tanh, jbp.Dense(2))
DROPPING = jbp.serial(jbp.Dense(4), jbp.Dropout(0.5), jbp.Dense(2))


def _gradient(net: Any, weighted: bool = False, blank: bool = False) -> Any:
    params = jax.tree.map(lambda p: p.astype(jnp.float64), net.init(jax.random.key(1), (3,))[0])
    x, y, weights = _data()
    x = x.at[2].set(jnp.nan) if blank else x
    return jbp.check.gradient(
        net, losses.l2_loss, params, x, y, weights=weights if weighted else None, differences=False
    )


def _optimizer(theirs: Any) -> Any:
    return lambda ours: jbp.check.optimizer(ours, theirs, steps=5)


def _falling(t: Any) -> Any:
    return 0.1 / (1.0 + t)


UNEQUAL = [[0.5, 1.0, 0.25], [0.0, 2.0, 1.0], [0.3, 0.1, 0.2]]
"""Targets whose rows do not add up to 1."""
CHECKS: dict[str, Callable[[Any], jbp.check.Report]] = {
    "layer (5,)": _layer((5,)),
    "layer (3,)": _layer((3,)),
    "layer (2, 3)": _layer((2, 3)),
    "layer (3, 5)": _layer((3, 5)),
    "loss (7,)": _loss((7,)),
    "loss (3, 5)": _loss((3, 5)),
    "loss, given targets": lambda subject: _loss((3,), target=jnp.asarray(UNEQUAL))(subject),
    "gradient": _gradient,
    "gradient, weights": lambda net: _gradient(net, weighted=True),
    "gradient, blank row": lambda net: _gradient(net, weighted=True, blank=True),
    "sgd": _optimizer(optax.sgd(0.1)),
    "sgd, schedule": _optimizer(optax.sgd(_falling)),
    "heavy_ball": _optimizer(optax.sgd(0.1, momentum=0.9)),
    "nesterov": _optimizer(optax.sgd(0.1, momentum=0.9, nesterov=True)),
}


def _erf_slope(self: Any, s: Any, y: Any) -> Any:
    return jbp.layers.Gelu(approximate=False).keep(s, y)


def _redrawn(self: Any, params: Any, x: Any, key: Any) -> Any:
    y, kept = jbp.layers.Dropout.forward(self, params, x, key)
    return y, kept if key is None else jax.random.bernoulli(jax.random.fold_in(key, 1), 1 - self.drop_rate, x.shape)


def _column_major(self: Any, params: Any, saved: Any, delta: Any) -> Any:
    return delta.reshape(saved.value[::-1]).T, ()


def _where(on: Any, off: Any) -> Any:
    return lambda self, p, saved, d: (on(self, saved, d) if hasattr(saved, "dtype") else d, ()) if off is None else off


def _masked(kept: Any, values: Any) -> Any:
    return jnp.where(kept, values, jnp.zeros((), values.dtype))


def _concat_backward(order: Callable[[tuple[int, ...]], list[int]]) -> Any:
    """Branch.walk_backward whose part i of δ starts at order(widths)[i]."""

    def walk_backward(self: Any, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
        saved, widths = saved
        deltas, found = [], []
        for i, (layer, start) in enumerate(zip(self.layers, order(widths.value), strict=True)):
            part = lax.slice_in_dim(delta, start, start + widths.value[i], axis=-1)
            d, f = visit((i,), layer, params[i], saved[i], part)
            deltas, found = [*deltas, d], [*found, f]
        return sum(deltas[1:], deltas[0]), tuple(found)

    return walk_backward


def _last_path(self: Any, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
    kept: list[Any] = []

    def seen(*args: Any) -> Any:
        kept.append(visit(*args))
        return kept[-1]

    return kept[-1][0], Branch.walk_backward(self, seen, params, saved, delta)[1]


def _last_of_branch(self: Any, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
    out = [visit((i,), layer, params[i], saved[0][i], delta) for i, layer in enumerate(self.layers)]
    return out[-1][0], tuple(found for _, found in out)


def _flipped_scan(self: Any, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
    stacks, last, plan = saved

    def body(delta: Any, p_s: Any) -> Any:
        return visit((), self.layer, p_s[0], plan.whole(p_s[1], last), delta)

    delta, found = lax.scan(body, delta, (params, stacks), length=self.n)
    return delta, jax.tree.map(Stack, found, is_leaf=lambda f: isinstance(f, Pair))


def _rolled(self: Any, weights: Any = None) -> Any:
    return Outer(jnp.roll(self.h, 1, 0), self.delta, self.shape).total(weights)


def _spine(change: Any) -> tuple[Any, str, Any]:
    """The spine with `change(right, arguments)` around its one function; arguments: net, loss, params, x, y, key, w."""
    right = backprop.value_grad_output
    return backprop, "value_grad_output", lambda *args: change(right, args)


def _grads(change: Any) -> tuple[Any, str, Any]:
    def changed(right: Any, args: Any) -> Any:
        value, grads, output = right(*args)
        return value, jax.tree.map(lambda g: change(g, len(args[3])), grads), output

    return _spine(changed)


def _with_weights(change: Any) -> tuple[Any, str, Any]:
    return _spine(lambda right, args: right(*args[:6], change(args[6]), *args[7:]))


def _optimised(right: Any, gradient: Any = None, update: Any = None, state: Any = None) -> Any:
    """An optimiser fed, read or remembered wrongly."""

    def step(g: Any, old: Any, params: Any = None) -> Any:
        u, new = right.update(jax.tree.map(gradient, g) if gradient else g, old, params)
        return jax.tree.map(update, u) if update else u, state(old, new) if state else new

    return optax.GradientTransformation(right.init, step)


def _velocity(change: Any) -> Any:
    return lambda old, new: new._replace(velocity=jax.tree.map(change, old.velocity, new.velocity))
