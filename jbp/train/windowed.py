"""Windows over a stream of tokens as a device has them: the tokens once, and rows that are gathered when asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Int
from jbp.arguments import check_narrowing
from jbp.rows import Rows
from jbp.windows import Windows

POSITIONS = 1 << 16
"""Positions of windows that are evaluated at once, at the most."""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Gathered:
    """Rows [n, t] of a stream [m], in a program or outside it; what `jbp.windows.Windows` is on the host."""

    tokens: Int[Array, " m"]
    length: int = field(metadata={"static": True})
    stride: int = field(metadata={"static": True})
    offset: int = field(metadata={"static": True})
    n: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """[n, t]."""
        return self.n, self.length

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> Any:
        """Of the tokens."""
        return self.tokens.dtype

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: Int[Array, " b"]) -> Int[Array, "b t"]:
        """The windows of these numbers."""
        first = jnp.asarray(rows).astype(jnp.zeros((), int).dtype) * self.stride + self.offset
        return self.tokens[first[:, None] + jnp.arange(self.length)[None]]


def put(name: str, x: Any, y: Any) -> tuple[Any, Any]:
    """The two on the device, as one stream where they are of one.

    Raises:
        ValueError: if JAX would not keep a token.
    """
    streams: dict[int, Array] = {}

    def one(a: Any) -> Any:
        if not isinstance(a, Windows):
            return a
        check_narrowing(f"the tokens of {name}", a.tokens)
        if id(a.tokens) not in streams:
            streams[id(a.tokens)] = jnp.asarray(np.asarray(a.tokens))
        return Gathered(streams[id(a.tokens)], *a.geometry)

    return one(x), one(y)


def block(rows: Any, begin: Array, size: int) -> Array:
    """The rows [size, ...] from `begin` on, of an array or of windows."""
    if isinstance(rows, Gathered):
        return rows[begin + jnp.arange(size)]
    return lax.dynamic_slice_in_dim(rows, begin, size)


def at_once(rows: Any, most: int) -> int:
    """How many rows are evaluated at once: `most` of an array, and of windows as many as make about as much work."""
    windowed = isinstance(rows, Gathered) or (isinstance(rows, Rows) and rows.windowed)
    return max(1, min(most, POSITIONS // rows.shape[1])) if windowed else most


def marks(data: Any) -> Any:
    """Data as arrays by which they are known again: of windows the tokens, and how they are cut."""
    return jax.tree.map(lambda a: (a.tokens, np.asarray([a.length, a.stride, a.offset, a.n])) if _is(a) else a, data,
                        is_leaf=_is)  # fmt: skip


def _is(value: Any) -> bool:
    return isinstance(value, Gathered)
