"""Random networks: structures, and the numbers that go into them.

A structure is grown from a function `pick` that chooses one of several options, so the same code serves hypothesis
(`problems`), which can then shrink a failing network, and a seeded generator (`seeded`), which `tests/fuzz.py` uses.
Whatever must fit (the inside of a residual, the arms of a sum, a loss behind softmax) fits by construction: a net is
grown towards a given output shape, and nothing is thrown away.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from cases import SINGLE, Gain, NetCase, announced
from hypothesis import strategies as st

import jbp
from jbp import layers, losses
from jbp.layer import Layer

Shape = tuple[int, ...]
Pick = Callable[[Sequence[Any]], Any]

DEPTH, LEAVES = 4, 9
"""How deep combinators nest, and after how many layers only the ones still needed are added."""

WIDTHS = (1, 2, 3, 5, 7)
SHAPES = ((3,), (5,), (7,), (1,), (2, 3), (3, 5), (5, 1), (2, 3, 5))
ACTIVATIONS = tuple(case.net for case in SINGLE if isinstance(case.net, layers.Activation))
DROPOUTS = (jbp.Dropout(0.2), jbp.Dropout(0.5), jbp.Dropout(0.9), jbp.Dropout(0.0))
GAINS = (Gain(), Gain(0.5))
OTHERS: tuple[Any, ...] = tuple(
    replace(net, epsilon=0.1) if hasattr(net := cast(Any, case.net), "epsilon") else net
    for case in SINGLE
    if not isinstance(case.net, jbp.Dense | layers.Activation | jbp.Dropout | jbp.Flatten | Gain)
    and not (case.inputs or case.net.couples_batch)
)
"""The layers of the table that no rule below knows: they are put where their `init` takes the shape. Normalisations
have an ε that counts: of one channel the usual one makes a sign, whose slope is nothing but rounding."""
NAMES = vars(layers) | vars(jbp) | vars(losses) | {"Gain": Gain}
"""What the repr of a net and of a loss is written in."""

_ON_VALUES = (losses.squared_error, losses.l2_loss, losses.mean_squared_error)
_TARGETS = {
    **dict.fromkeys(_ON_VALUES, ("values",)),
    losses.sigmoid_binary_cross_entropy: ("yes or no",),
    losses.softmax_cross_entropy: ("classes", "distribution"),
    losses.cross_entropy: ("classes", "distribution"),
}


@dataclass(frozen=True)
class Problem:
    """A network and everything that decides what goes into it; its repr is code."""

    net: Layer
    shape: Shape
    batch: int
    dtype: str
    loss: losses.Loss
    target: str
    weights: str
    training: bool
    seed: int

    @property
    def structure(self) -> tuple[Any, ...]:
        """What a compiled program depends on: everything but the numbers."""
        return self.net, self.shape, self.batch, self.dtype, self.loss, self.target, self.weights, self.training


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Numbers:
    """One draw of everything a problem needs. `delta` and `factors` are a second, random objective beside the loss."""

    params: Any
    x: Any
    y: Any
    key: Any
    weights: Any
    delta: Any
    factors: Any


def problem(pick: Pick, dtypes: Sequence[str] = ("float64", "float32")) -> Problem:
    """A random problem, from a function that chooses."""
    shape = pick(SHAPES)
    net, _ = _Growth(pick).net(shape, pick((1, 2, 3, *(2 * (DEPTH,)))), None, kinds=_COMBINATORS)
    classes = _announced(net, shape)[1][-1] > 1  # one class is refused
    loss = pick(tuple(loss for loss, kinds in _TARGETS.items() if classes or "classes" not in kinds))
    if loss == losses.cross_entropy:  # probabilities; squashed logits, so that none of them underflows to 0
        net = jbp.serial(net, pick((jbp.tanh, jbp.sigmoid)), jbp.softmax)
    return Problem(
        net=net,
        shape=shape,
        batch=pick(range(1, 18)),
        dtype=pick(dtypes),
        loss=loss,
        target=pick(_TARGETS[loss]),
        weights=pick(("none", "some zero", "any sum")),
        training=pick((True, True, True, False)),
        seed=pick(range(2**16)),
    )


@st.composite
def problems(draw: Any, dtype: str) -> Problem:
    """The hypothesis strategy."""
    return problem(lambda options: draw(st.sampled_from(options)), (dtype,))


def seeded(*seed: int, dtype: str) -> Problem:
    """The problem that follows from a seed."""
    rng = np.random.default_rng(seed)
    return problem(lambda options: options[int(rng.integers(len(options)))], (dtype,))


_COMBINATORS = ("serial", "serial", "residual", "sum", "concat", "repeat", "tied")
_LEAVES = ("dense", "dense", "dense", "activation", "activation", "dropout", "gain")


class _Growth:
    """Grows a net from the inside of the choices; counts its layers."""

    def __init__(self, pick: Pick):
        self.pick, self.leaves = pick, 0

    def net(self, shape: Shape, depth: int, goal: Shape | None, kinds: Any = None) -> tuple[Layer, Shape]:
        """A net on `shape` and its output's shape, which is `goal` where one is given: `shape` but for the width."""
        if kinds is None:
            kinds = _LEAVES if depth == 0 or self.leaves >= LEAVES else _LEAVES + 2 * _COMBINATORS
        if goal is not None and goal != shape:
            kinds = [k for k in kinds if k in ("dense", "serial", "sum", "concat")]
        elif goal is None and len(shape) > 1 and "dense" in kinds:
            kinds = (*kinds, "flatten")
        if "dense" in kinds and self._fitting(shape, goal):
            kinds = (*kinds, "other", "other")
        return getattr(self, f"_{self.pick(kinds)}")(shape, depth - 1, goal)

    def _dense(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        width = goal[-1] if goal else self.pick(WIDTHS)
        return self._leaf(jbp.Dense(width, use_bias=self.pick((True, True, False))), (*shape[:-1], width))

    def _activation(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        return self._leaf(self.pick(ACTIVATIONS), shape)

    def _dropout(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        return self._leaf(self.pick(DROPOUTS), shape)

    def _gain(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        return self._leaf(self.pick(GAINS), shape)

    def _other(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        fitting = self._fitting(shape, goal)
        kind = self.pick(list(dict.fromkeys(type(layer) for layer, _ in fitting)))  # however many cases it has
        return self._leaf(*self.pick([(layer, out) for layer, out in fitting if type(layer) is kind]))

    def _fitting(self, shape: Shape, goal: Shape | None) -> list[tuple[Layer, Shape]]:
        """The other layers that take this shape, with what they make of it: the goal, where there is one."""
        made = [(layer, _made(layer, shape)) for layer in OTHERS]
        return [(layer, out) for layer, out in made if out is not None and goal in (None, out)]

    def _flatten(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        return self._leaf(jbp.Flatten(), (int(np.prod(shape)),))

    def _leaf(self, layer: Layer, shape: Shape) -> tuple[Layer, Shape]:
        self.leaves += 1
        return layer, shape

    def _serial(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        parts, n = [], self.pick((2, 2, 3, 3, 1))
        for i in range(n):
            # On the way to a goal only the width may change: a flattened example could not come back.
            aim = goal if goal is None or i == n - 1 else (*shape[:-1], self.pick((shape[-1], *WIDTHS)))
            part, shape = self.net(shape, depth, aim)
            parts.append(part)
        return jbp.serial(*parts), shape

    def _residual(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        return jbp.residual(self.net(shape, depth, shape)[0]), shape

    def _repeat(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        return jbp.repeat(self.net(shape, depth, shape)[0], self.pick((1, 2, 3))), shape

    def _sum(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        goal = goal or (*shape[:-1], self.pick((shape[-1], *WIDTHS)))
        return jbp.branch(*(self.net(shape, depth, goal)[0] for _ in range(self.pick((1, 2, 2, 3))))), goal

    def _tied(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        if self.pick(("parts", "parts", "arrays")) == "arrays":
            return self._tied_arrays(shape), shape
        # Never deep: a part stands there several times, and parts of parts would multiply.
        part, n = self.net(shape, min(depth, 1), shape)[0], self.pick((2, 2, 3))
        owner, together = self.pick(range(n)), self.pick((jbp.serial, jbp.branch))
        return jbp.tied(together(*n * (part,)), {i: owner for i in range(n) if i != owner}), shape

    def _tied_arrays(self, shape: Shape) -> Layer:
        """Two layers that share one array: a weight but not its bias; a gain; or a gain that is a bias too."""
        dense, gain, between = jbp.Dense(shape[-1]), self.pick(GAINS), self.pick(ACTIVATIONS)
        self.leaves += 3
        what = self.pick(("weight", "gain", "both kinds") if len(shape) == 1 else ("weight", "gain"))
        first, last = {"weight": (dense, dense), "gain": (gain, gain), "both kinds": (gain, dense)}[what]
        lent, borrowed = {"both kinds": ("gain", "bias")}.get(what, (what, what))
        return jbp.tied(jbp.serial(first, between, last), {(2, borrowed): (0, lent)})

    def _concat(self, shape: Shape, depth: int, goal: Shape | None) -> tuple[Layer, Shape]:
        if goal is None:
            widths = [self.pick((shape[-1], *WIDTHS)) for _ in range(self.pick((1, 2, 2, 3)))]
        else:
            cut = self.pick(range(goal[-1]))
            widths = [w for w in (cut, goal[-1] - cut) if w]
        arms = [self.net(shape, depth, (*shape[:-1], width))[0] for width in widths]
        return jbp.branch(*arms, join="concat"), (*shape[:-1], sum(widths))


def numbers(p: Problem) -> Numbers:
    """Random parameters (no bias zero, no gain one), inputs, targets, weights, key and δ; they follow from the seed."""
    rng, n, dtype = np.random.default_rng(p.seed), p.batch, np.dtype(p.dtype)
    shapes, out = _announced(p.net, p.shape)

    def draw(path: Any, leaf: Any) -> Any:
        kind = path[-1].key
        size = 0.9 / np.sqrt(leaf.shape[-2]) if kind == "weight" else 0.6
        return jnp.asarray((kind == "gain") * 0.5 + size * rng.normal(size=leaf.shape), dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    weights = None if p.weights == "none" else rng.uniform(-0.5, 2, size=n)
    if weights is not None and p.weights == "some zero":
        weights[rng.permutation(n)[: (n + 2) // 3]] = 0

    def array(values: Any) -> Any:
        return jnp.asarray(values, dtype)

    return Numbers(
        params=params,
        x=array(rng.normal(size=(n, *p.shape))),
        y=_target(p, rng, (n, *out), array),
        key=jax.random.key(p.seed) if p.training else None,
        weights=None if weights is None else array(weights),
        delta=array(rng.normal(size=(n, *out))),
        factors=None if weights is None else array(rng.choice([-1, 1], size=n) * rng.uniform(0.5, 2, size=n)),
    )


@cache
def _made(layer: Layer, shape: Shape) -> Shape | None:
    """The shape that a layer makes of another; None if it does not take it."""
    with contextlib.suppress(ValueError, NotImplementedError):
        return _announced(layer, shape)[1]
    return None


def _announced(net: Layer, shape: Shape) -> tuple[Any, Shape]:
    """What `init` says: the parameters' shapes, and the output's."""
    return announced(NetCase("", net, shape))


def _target(p: Problem, rng: np.random.Generator, shape: Shape, array: Callable[[Any], Any]) -> Any:
    if p.target == "values":
        return array(rng.normal(size=shape))
    if p.target == "classes":
        return jnp.asarray(rng.integers(shape[-1], size=shape[:-1]), jnp.int32)
    unit = rng.uniform(size=shape)
    unit[0] = np.arange(shape[-1]) % 2  # certain answers, among them t = 0, where a class takes no part
    return array(unit / unit.sum(-1, keepdims=True) if p.target == "distribution" else unit)
