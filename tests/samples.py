# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
"""A sample of every class of pair, with what it says in numpy; and a class that jbp has never seen."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jbp.pairs import (
    Constant,
    Coupled,
    Geometry,
    Lookup,
    Outer,
    Pair,
    Scale,
    Shift,
    Stack,
    Sum,
    Window,
    check_arrays,
)

N, T, I, O = 5, 3, 2, 7  # noqa: E741
Blocks = list[tuple[np.ndarray, np.ndarray]]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Pick(Pair):
    """g = Σₜ onehot(index) ⊗ δ: rows of a table, as somebody who knows nothing of `jbp.stats` would write it."""

    index: Any
    delta: Any
    shape: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, index: Any, delta: Any, shape: Any) -> Any:
        return cls(index.reshape(-1, 1), delta.reshape(-1, shape[1]), shape)

    def total(self, weights: Any = None) -> Any:
        (block,) = self.rows()
        return block.total(weights)

    @property
    def batch(self) -> int:
        return self.delta.shape[0]

    @property
    def uses(self) -> int:
        return self.delta.shape[1]

    def reach(self) -> Any:
        return jnp.sqrt(jnp.square(self.delta).sum(2)).sum(1)

    def check(self, shape: Any, axes: int) -> None:
        check_arrays(self, shape, axes, {"index": 1, "delta": self.shape[1]})

    def rows(self) -> Any:
        return (
            Outer(jax.nn.one_hot(self.index[..., 0], self.shape[0], dtype=self.delta.dtype), self.delta, self.shape),
        )

    def join(self, other: Pair) -> Any:
        if not isinstance(other, Pick) or other.shape != self.shape:
            return None
        return jax.tree.map(lambda a, b: jnp.concatenate((a, b), -2), self, other)

    @property
    def transports(self) -> bool:
        return False

    def over_stack(self, function: Any, *others: Any, axis: Any = 0) -> Any:
        return function(self, *others)


class Sample(NamedTuple):
    """A pair, and in numpy what it says: for each layer (one, without a stack) the blocks h, δ, and what it holds."""

    pair: Any
    layers: list[Blocks]
    shape: tuple[int, ...]
    held: list[tuple[list[np.ndarray], list[np.ndarray]]]
    stacked: bool = False
    turned: bool = False
    """Whether the parameter is the transposed of Σₜ h ⊗ δ."""

    @property
    def each(self) -> np.ndarray:
        """[n, *shape] or [n, l, *shape]: the gradient of each example, summed up one use at a time."""
        found = np.stack([np.stack([_one(blocks, n) for n in range(N)]) for blocks in self.layers], 1)
        sides = self.shape[::-1] if self.turned else self.shape
        found = found.reshape(N, len(self.layers), *sides)
        found = np.swapaxes(found, -1, -2) if self.turned else found
        return found if self.stacked else found[:, 0]


def _one(blocks: Blocks, n: int) -> np.ndarray:
    return sum(np.outer(h[n, t], d[n, t]).reshape(-1) for h, d in blocks for t in range(h.shape[1]))  # type: ignore[return-value]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def came_in(*shape: int, seed: int = 0) -> np.ndarray:
    """An h with a dead unit."""
    h = draw(*shape, seed=seed)
    h[..., 0] = 0
    return h


def outer(t: int = T, seed: int = 0) -> Sample:
    h, delta = came_in(N, t, I, seed=seed), draw(N, t, O, seed=seed + 1)
    return Sample(Outer(jnp.asarray(h), jnp.asarray(delta), (I, O)), [[(h, delta)]], (I, O), [([h], [delta])])


def turned(t: int = T, seed: int = 0) -> Sample:
    """An `Outer` whose weight is [o, i]."""
    sample = outer(t, seed)
    pair = Outer(sample.pair.h, sample.pair.delta, (O, I), transposed=True)
    return sample._replace(pair=pair, shape=(O, I), turned=True)


def lookup(t: int = T, seed: int = 0) -> Sample:
    """Of a table of 2 rows, so that examples read one twice."""
    index, delta = np.random.default_rng(seed).integers(I, size=(N, t, 1)), draw(N, t, O, seed=seed + 4)
    pair = Lookup(jnp.asarray(index), jnp.asarray(delta), (I, O))
    return Sample(pair, [[(np.eye(I)[index[..., 0]], delta)]], (I, O), [([], [delta])])


def shift(t: int = T) -> Sample:
    delta = draw(N, t, I * O)
    blocks = [(np.ones((N, t, 1)), delta)]
    return Sample(Shift(jnp.asarray(delta), (I, O)), [blocks], (I, O), [([], [delta])])


def scale(t: int = T) -> Sample:
    h, delta = came_in(N, t, I * O, seed=2), draw(N, t, I * O, seed=3)
    blocks = [(np.ones((N, t, 1)), h * delta)]
    return Sample(Scale(jnp.asarray(h), jnp.asarray(delta), (I, O)), [blocks], (I, O), [([h], [delta])])


def pick(t: int = T, seed: int = 0) -> Sample:
    index, delta = np.random.default_rng(seed).integers(I, size=(N, t, 1)), draw(N, t, O, seed=seed + 4)
    h = np.eye(I)[index[..., 0]]
    return Sample(Pick(jnp.asarray(index), jnp.asarray(delta), (I, O)), [[(h, delta)]], (I, O), [([h], [delta])])


def window(t: int = T, space: int = 5, seed: int = 0) -> Sample:
    """Of a kernel of 3 places, at every second pixel of t images whose ends are padded."""
    geometry = Geometry((3,), (2,), ((1, 0),), (1,))
    (u,) = geometry.sites((space,))
    h, delta = came_in(N, t, space, I, seed=seed), draw(N, t, u, O, seed=seed + 1)
    pair = Window(jnp.asarray(h), jnp.asarray(delta), (3, I, O), geometry)
    padded = np.pad(h, ((0, 0), (0, 0), (1, 0), (0, 0)))
    rows = [padded[:, image, 2 * at : 2 * at + 3].reshape(N, -1) for image in range(t) for at in range(u)]
    pixels, delta = h.reshape(N, -1, I), delta.reshape(N, -1, O)
    return Sample(pair, [[(np.stack(rows, 1), delta)]], (3, I, O), [([pixels], [delta])])


def constant() -> Sample:
    """Of a parameter that nothing trains: zeros."""
    h, delta = np.zeros((N, 1, 1)), np.zeros((N, 1, I * O))
    return Sample(Constant(jnp.asarray(draw(N, I, O)), (I, O)), [[(h, delta)]], (I, O), [([h], [delta])])


def added(*parts: Sample) -> Sample:
    blocks = [block for part in parts for block in part.layers[0]]
    held = tuple([a for part in parts for a in part.held[0][i]] for i in (0, 1))
    return Sample(Sum(tuple(part.pair for part in parts)), [blocks], parts[0].shape, [held])  # type: ignore[list-item]


def stacked(*layers: Sample) -> Sample:
    pair = Stack(jax.tree.map(lambda *a: jnp.stack(a), *(layer.pair for layer in layers)))
    blocks, held = [layer.layers[0] for layer in layers], [layer.held[0] for layer in layers]
    return Sample(pair, blocks, layers[0].shape, held, stacked=True, turned=layers[0].turned)


SAMPLES: dict[str, Callable[[], Sample]] = {
    "Outer": outer,
    "Outer, once": lambda: outer(1),
    "Outer, transposed": turned,
    "Outer, transposed, once": lambda: turned(1),
    "Lookup": lookup,
    "Lookup, once": lambda: lookup(1),
    "Lookup, often": lambda: lookup(11),
    "Shift": shift,
    "Shift, once": lambda: shift(1),
    "Scale": scale,
    "Scale, once": lambda: scale(1),
    "Window": window,
    "Window, once": lambda: window(1, 2),
    "Sum": lambda: added(outer(), shift(1), scale(1)),
    "Stack": lambda: stacked(outer(seed=8), outer(seed=9)),
    "Coupled": lambda: outer()._replace(pair=Coupled(outer().pair, "[1]")),
    "Constant": constant,
    "Pick": pick,
    "Pick, once": lambda: pick(1),
    "Sum of Pick": lambda: added(pick(), shift(1)),
    "Sum of Window": lambda: added(window(), window(1, 7)),
    "Stack of Window": lambda: stacked(window(seed=8), window(seed=9)),
    "Sum of Lookup": lambda: added(lookup(), shift(1), outer()),
    "Stack of Lookup": lambda: stacked(lookup(seed=8), lookup(seed=9)),
    "Stack of Outer, transposed": lambda: stacked(turned(seed=8), turned(seed=9)),
    "Stack of Pick": lambda: stacked(pick(seed=8), pick(seed=9)),
}
"""By the class, and what more is said of it."""
