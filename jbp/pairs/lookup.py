"""`Lookup`: the pair of a table of which each use reads one row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float, Int
from jbp.pairs.outer import Outer
from jbp.pairs.pair import PerUse, Weights, last_axis, lengths, weighed_rows, widened


@register_dataclass
@dataclass(frozen=True, eq=False)
class Lookup(PerUse):
    """g = Σₜ onehot(index) ⊗ δ: the pair of a table of shape [V, o] of which use t reads the row `index`.

    `index` has an axis of its own, [t, 1], so that it is used, joined and batched as every other pair's h. An index
    that is no row of the table, −1 among them, is refused where its value is known; inside `jit` it makes NaN of all
    that is read from the pair: it is never wrapped and never dropped.
    """

    index: Int[Array, "*n t 1"]
    delta: Float[Array, "*n t o"]
    shape: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, index: Int[Array, "*t"], delta: Float[Array, "*t o"], shape: tuple[int, ...]) -> Lookup:
        """From the rows read [*t] and δ [*t, o] of one example: the axes of `index` are uses.

        Raises:
            ValueError: if there are not as many δ as rows read, or the table is not [V, o].
        """
        if len(shape) != 2 or delta.shape != (*index.shape, shape[-1]):
            raise ValueError(
                f"a table of shape {tuple(shape)}, which must be [V, o], takes an index [*t] and δ [*t, o], but got "
                f"{index.shape} and {delta.shape}"
            )
        return cls(at_least_32_bits(index).reshape(-1, 1), last_axis(delta), tuple(shape))

    def widths(self, shape: tuple[int, ...]) -> dict[str, int]:
        """One number for the row, and the table's width."""
        return {"index": 1, "delta": shape[-1]}

    def check(self, shape: tuple[int, ...] | None, axes: int) -> None:
        """Refuse other arrays, and an index that is no row, if it is known."""
        super().check(shape, axes)
        if not jnp.issubdtype(self.index.dtype, jnp.integer) or jnp.iinfo(self.index.dtype).bits < 32:
            raise ValueError(
                f"Lookup holds an index of whole numbers of 32 bits or more, but got {self.index.dtype}: "
                "Lookup.of(...) widens them"
            )
        if isinstance(self.index, jax.Array) and not isinstance(self.index, Tracer) and self.index.size:
            check_rows(self.index, self.shape[0], "the index of Lookup")

    @property
    def known(self) -> Lookup:
        """The same, with what is no row of the table made the row 0 with a δ of NaN: what every reader reads."""
        sound = is_row(self.index, self.shape[0])
        index = jnp.where(sound, self.index, jnp.zeros_like(self.index))
        return Lookup(index, jnp.where(sound, self.delta, jnp.full_like(self.delta, jnp.nan)), self.shape)

    def total(self, weights: Weights = None) -> Array:
        """Σₙₜ wₙ onehot(index) ⊗ δ: every δ added to its row."""
        pair = self.known
        rows = weighed_rows(weights, widened(pair.delta))
        return added_to_rows(pair.index.reshape(-1), rows, self.shape[0]).astype(self.dtype)

    def distinct(self) -> Lookup:
        """The same gradients, in which no two uses of an example that are not 0 read one row: δ summed by index.

        Of [n, t, …]: by sorting the uses, so that nothing is as large as the table. Which rows they are is the same
        for every δ. Uses that were joined to another's leave a δ of 0.
        """
        pair = self.known
        return pair if self.uses == 1 else Lookup(*jax.vmap(_summed_by_row)(pair.index, pair.delta), self.shape)

    def reach(self) -> Float[Array, " n"]:
        """Σₜ ‖δₜ‖."""
        return lengths(self.known.delta).sum(1)

    def rows(self) -> tuple[Outer, ...]:
        """One block, in which h is 1 at the row read and 0 at the others: [n, t, V] numbers."""
        pair = self.known
        return (Outer(jax.nn.one_hot(pair.index[..., 0], self.shape[0], dtype=self.dtype), pair.delta, self.shape),)

    def join(self, other: Any) -> Any:
        """As every pair's of uses; None too if the indices are of two types."""
        alike = isinstance(other, Lookup) and other.index.dtype == self.index.dtype
        return super().join(other) if alike else None

    @property
    def transports(self) -> bool:
        """No: what reads a table is a whole number, to which no δ goes back."""
        return False


def at_least_32_bits(index: Array) -> Array:
    """Whole numbers in 32 bits at least, in which the size of a table can be said."""
    return index.astype(jnp.int32) if jnp.iinfo(index.dtype).bits < 32 else index


def is_row(index: Array, size: int) -> Array:
    """Which indices are rows of a table of this size."""
    return (index >= jnp.zeros((), index.dtype)) & (index < jnp.asarray(size, index.dtype))


def check_rows(index: Any, size: int, what: str) -> None:
    """Refuse indices that are no rows of a table of this size.

    Raises:
        ValueError: naming the first, and where it stands.
    """
    wrong = (index < 0) | (index >= size)
    if wrong.any():
        place = jnp.unravel_index(int(wrong.reshape(-1).argmax()), wrong.shape)
        place = tuple(int(i) for i in place)
        raise ValueError(
            f"{what} must be 0…{size - 1}, a row of the table, but is {int(index[place])} at {list(place)}"
        )


def added_to_rows(index: Int[Array, " m"], rows: Float[Array, "m o"], size: int) -> Float[Array, "v o"]:
    """Σₘ onehot(index) ⊗ rows, for indices that are rows of a table of this size."""
    how = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    start = jnp.zeros((size, rows.shape[-1]), rows.dtype)
    return lax.scatter_add(start, index[:, None], rows, how, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)


def _summed_by_row(index: Int[Array, "t 1"], delta: Float[Array, "t o"]) -> tuple[Array, Array]:
    """Of one example: the rows read, sorted and each once, the last repeated to the end; and the δ of each, then 0."""
    order = jnp.argsort(index[:, 0])
    index, delta = index[order, 0], delta[order]
    place = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), index[1:] != index[:-1]]), dtype=jnp.int32)
    once = jnp.full_like(index, index[-1]).at[place].set(index)
    return once[:, None], added_to_rows(place, delta, len(index))
