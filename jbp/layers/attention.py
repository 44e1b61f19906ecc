"""Attention: the core between the dense layers that make queries, keys and values and the one that reads the result.

Up to `STORED` positions the weights P are kept for the way back, as autodiff keeps them. Of longer sequences nothing is
kept but the input: rows of queries are taken in blocks, each of which sees its whole row, so no softmax is ever carried
on from part to part, and the way back makes P anew, block by block. Where attention is causal, the blocks are scanned
inside a few static segments of the sequence, each with the keys up to its own end: with S segments (S + 1)/2S of the
products are left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Bool, Float, PRNGKeyArray
from jbp.arguments import as_bool, as_count, as_shape, at_least_float32, needs_floats, no_params, same_shape
from jbp.inputs import check_key
from jbp.layer import EXAMPLE, Layer, Shape, made

STORED = 128
"""Up to so many positions the weights P are kept."""
SEGMENTS = 8
"""Parts of a causal sequence, each with the keys up to its end."""
SCORES = 2**14
"""How many scores a block has for each head, about: so many rows of queries times all keys."""
_TURN = 10000.0


@dataclass(frozen=True)
class _Piece:
    """Blocks of queries one after another that see the same keys."""

    start: int
    rows: int
    count: int
    keys: int


@dataclass(frozen=True, repr=False)
class Attention(Layer):
    """y[t] = Σₛ P[t,s] v[s], head by head, of an input [q|k|v] whose last axis is (heads + 2·groups)·e wide.

    forward   S[t,s] = ⟨q[t], k[s]⟩/√e,  P = softmax over s of S,  y[t] = Σₛ P[t,s] v[s]
    backward  δ_v[s] = Σₜ P[t,s] δ[t];  D[t,s] = ⟨δ[t], v[s]⟩,  δ_S = P∘(D − Σₛ P∘D);
              δ_q[t] = Σₛ δ_S[t,s] k[s]/√e,  δ_k[s] = Σₜ δ_S[t,s] q[t]/√e

    It has no parameters: what makes q, k and v, and what reads y, [t, heads·e], are dense layers. `groups` fewer keys
    and values than heads (None: as many) are shared by heads/groups heads each, which lie next to each other. `causal`:
    a position sees itself and what came before. `rotary`: q and k are turned by their position, the number j of the
    first half of a head with that of the second by t·10000^(−2j/e).

    Of a `mask` [t] the positions that are not real are seen by none, and have y = 0 and δ_x = 0, whatever stands there.

    Source: Vaswani et al. 2017, arXiv:1706.03762, equation 1; groups: Ainslie et al. 2023, arXiv:2305.13245; rotary:
    Su et al. 2021, arXiv:2104.09864, in the form of halves; blocks whose weights are made anew: Rabe, Staats 2021,
    arXiv:2112.05682.
    """

    heads: int
    groups: int | None = None
    causal: bool = True
    rotary: bool = False
    uses_key = False
    uses_mask = True
    word = "attention"

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", as_count(self.heads, "the heads of Attention"))
        if self.groups is not None:
            groups = as_count(self.groups, "the groups of Attention")
            object.__setattr__(self, "groups", None if groups == self.heads else groups)
        if self.heads % self.shared:
            raise ValueError(
                f"the groups of Attention must divide its heads, but {self.heads} heads in {self.shared} groups do not"
            )
        for name in ("causal", "rotary"):
            object.__setattr__(self, name, as_bool(getattr(self, name), f"{name} of Attention"))

    @property
    def shared(self) -> int:
        """How many keys and values there are: the groups."""
        return self.heads if self.groups is None else self.groups

    def _head(self, shape: Shape) -> int:
        """e, how wide one head is; ValueError if the input is no sequence of q, k and v."""
        parts = self.heads + 2 * self.shared
        if len(shape) != 2 or shape[1] % parts or not shape[1]:
            raise ValueError(
                f"{self!r} takes a sequence [t, {parts}·e] of q for {self.heads} heads beside k and v for "
                f"{self.shared}, so a width that {parts} divides, but one example has shape {shape}"
            )
        e = shape[1] // parts
        if self.rotary and e % 2:
            raise ValueError(f"{self!r} turns two halves of each head, so its width must be even, but is {e}")
        return e

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[()], Shape]:
        """No parameters; [t, (heads + 2·groups)·e] becomes [t, heads·e]."""
        check_key(key)
        shape = as_shape(shape)
        return (), (shape[0], self.heads * self._head(shape))

    def forward(
        self,
        params: Any,
        x: Float[Array, "t w"],
        key: PRNGKeyArray | None,
        mask: Bool[Array, " t"] | None = None,
    ) -> tuple[Float[Array, "t o"], Any]:
        """y; saves x with the mask, and P of a sequence of up to `STORED` positions."""
        no_params(self, params)
        needs_floats(self, x)
        self._head(x.shape)
        if mask is not None:
            if mask.shape != x.shape[:1]:
                raise ValueError(f"the mask has shape {mask.shape}, but the input of {self!r} has {x.shape[:1]}")
            x = _only(mask, x)
        t, (k, v) = len(x), self._seen(x)
        if t <= STORED:
            p = self._weights(self._asked(x, 0), k, 0, mask)
            return self._joined(_mixed(p, v), x, mask), (x, mask, p)
        y = jnp.zeros((t, k.shape[0] * self._each * k.shape[2]), x.dtype)
        for piece in self._pieces(t):

            def block(y: Any, first: Any, piece: _Piece = piece) -> tuple[Any, None]:
                own = lax.dynamic_slice_in_dim(x, first, piece.rows)
                ours, theirs, real = _cut(piece.keys, k, v, mask)
                p = self._weights(self._asked(own, first), ours, first, real)
                return lax.dynamic_update_slice_in_dim(y, self._joined(_mixed(p, theirs), own, None), first, 0), None

            y = _over(block, y, piece)
        return (y if mask is None else _only(mask, y)), (x, mask, None)

    def backward(self, params: Any, saved: Any, delta: Float[Array, "t o"]) -> tuple[Float[Array, "t w"], tuple[()]]:
        """δ_q, δ_k and δ_v side by side."""
        x, mask, p = saved
        t, (k, v) = len(x), self._seen(x)
        width = self.heads * k.shape[2]
        same_shape(self, delta, (t, width))
        if mask is not None:
            delta = _only(mask, delta)
        if p is not None:
            dq, dk, dv = _pulled(p, self._asked(x, 0), k, v, self._heads(delta))
            return self._side_by_side(self._unasked(dq, 0, x), dk, dv, x, mask), ()
        sums = jnp.zeros((t, width), x.dtype), jnp.zeros_like(k), jnp.zeros_like(v)
        for piece in self._pieces(t):

            def block(sums: Any, first: Any, piece: _Piece = piece) -> tuple[Any, None]:
                own, d = (lax.dynamic_slice_in_dim(a, first, piece.rows) for a in (x, delta))
                ours, theirs, real = _cut(piece.keys, k, v, mask)
                q = self._asked(own, first)
                p = self._weights(q, ours, first, real)
                found, *more = _pulled(p, q, ours, theirs, self._heads(d))
                dq = lax.dynamic_update_slice_in_dim(sums[0], self._unasked(found, first, x), first, 0)
                return (dq, *(a.at[:, : piece.keys].add(b) for a, b in zip(sums[1:], more, strict=True))), None

            sums = _over(block, sums, piece)
        return self._side_by_side(sums[0], sums[1], sums[2], x, mask), ()

    @property
    def _each(self) -> int:
        """How many heads share keys and values."""
        return self.heads // self.shared

    def _asked(self, x: Float[Array, "b w"], first: Any) -> Float[Array, "g r b e"]:
        """The queries of positions from `first` on, turned and divided by √e, in at least float32."""
        e = self._head(x.shape)
        q = self._heads(x[:, : self.heads * e])
        q = _turned(q, first, 1) if self.rotary else q
        return q * (1 / math.sqrt(e))

    def _unasked(self, dq: Float[Array, "g r b e"], first: Any, x: Array) -> Float[Array, "b o"]:
        """δ_q side by side, from that of what `_asked` made, in the dtype of x."""
        dq = dq * (1 / math.sqrt(dq.shape[-1]))
        return self._joined(_turned(dq, first, -1) if self.rotary else dq, x, None)

    def _seen(self, x: Float[Array, "t w"]) -> tuple[Float[Array, "g t e"], Float[Array, "g t e"]]:
        """Keys, turned, and values, in at least float32."""
        e, g = self._head(x.shape), self.shared
        x = x[:, self.heads * e :].astype(at_least_float32(x.dtype))
        k, v = (jnp.transpose(a.reshape(len(a), g, e), (1, 0, 2)) for a in jnp.split(x, 2, 1))
        return (_turned(k, 0, 1) if self.rotary else k), v

    def _heads(self, a: Float[Array, "b o"]) -> Float[Array, "g r b e"]:
        """Heads first, in at least float32."""
        a = a.astype(at_least_float32(a.dtype))
        return jnp.transpose(a.reshape(len(a), self.shared, self._each, -1), (1, 2, 0, 3))

    def _joined(self, y: Float[Array, "g r b e"], x: Array, mask: Any) -> Float[Array, "b o"]:
        """The heads side by side, in the dtype of x."""
        y = jnp.transpose(y, (2, 0, 1, 3)).reshape(y.shape[2], -1).astype(x.dtype)
        return y if mask is None else _only(mask, y)

    def _side_by_side(self, dq: Array, dk: Array, dv: Array, x: Array, mask: Any) -> Float[Array, "t w"]:
        """δ_x of the input that they are parts of."""
        dk = _turned(dk, 0, -1) if self.rotary else dk
        k, v = (jnp.transpose(a, (1, 0, 2)).reshape(len(x), -1).astype(x.dtype) for a in (dk, dv))
        found = jnp.concatenate((dq, k, v), 1)
        return found if mask is None else _only(mask, found)

    def _weights(self, q: Float[Array, "g r b e"], k: Float[Array, "g s e"], first: Any, mask: Any) -> Array:
        """P [g, r, b, s] of queries at the positions from `first` on, which see these keys; 0 of one that sees none."""
        g, r, b, e = q.shape
        s = lax.dot_general(q.reshape(g, r * b, e), k, (((2,), (2,)), ((0,), (0,)))).reshape(g, r, b, -1)
        allowed = None
        if self.causal:
            rows, keys = (lax.broadcasted_iota(jnp.int32, s.shape[2:], axis) for axis in (0, 1))
            allowed = rows + jnp.asarray(first, jnp.int32) >= keys
        if mask is not None:
            allowed = mask[None] if allowed is None else allowed & mask[None]
        if allowed is not None:
            s = jnp.where(allowed.reshape(1, 1, *allowed.shape), s, jnp.full_like(s, -jnp.inf))
        most = lax.stop_gradient(s.max(-1, keepdims=True))  # y is the same whatever it is
        if mask is not None:
            most = jnp.where(most == -jnp.inf, jnp.zeros_like(most), most)
        p = jnp.exp(s - most)
        total = p.sum(-1, keepdims=True)
        if mask is not None:
            total = jnp.where(total == 0, jnp.ones_like(total), total)
        return p / total

    def _pieces(self, t: int) -> list[_Piece]:
        """The blocks of a sequence, in segments; what is left over is a block of its own."""
        rows = max(8, min(SCORES // t, t // SEGMENTS if self.causal else t))
        whole = t // rows
        parts = min(SEGMENTS, whole) if self.causal else 1
        bounds = [whole * i // parts for i in range(parts + 1)]
        found = [
            _Piece(rows * low, rows, high - low, rows * high if self.causal else t)
            for low, high in itertools.pairwise(bounds)
        ]
        return found + [_Piece(rows * whole, t - rows * whole, 1, t)] * (t > rows * whole)

    def formulas(self) -> tuple[str, str]:
        """Head by head."""
        y = "y = P·v, P = softmax(q·kᵀ/√e)" + (", causal" if self.causal else "")
        return y, "δ_x = [δ_q|δ_k|δ_v], δ_v = Pᵀ·δ, δ_q = δ_S·k/√e, δ_k = δ_Sᵀ·q/√e, δ_S = P∘(δ·vᵀ − Σ P∘(δ·vᵀ))"

    @classmethod
    def from_word(cls, word: str) -> Layer | None:
        """ "attention:HEADS", then as wanted :GROUPS, :full (not causal) and :rotary."""
        name, *parts = word.split(":")
        if name != cls.word:
            return None
        numbers = [part for part in parts if part.isdecimal()]
        flags = parts[len(numbers) :]
        if not 1 <= len(numbers) <= 2 or parts[: len(numbers)] != numbers or not set(flags) <= {"full", "rotary"}:
            raise ValueError(
                f"net: attention needs attention:HEADS, with :GROUPS, :full and :rotary behind it as wanted, got "
                f"{word!r}, {EXAMPLE}"
            )
        return made(word, cls, *map(int, numbers), causal="full" not in flags, rotary="rotary" in flags)

    def as_word(self) -> str:
        """The heads, and what is not usual."""
        parts = [self.word, str(self.heads), *([] if self.groups is None else [str(self.groups)])]
        return ":".join([*parts, *(["full"] if not self.causal else []), *(["rotary"] if self.rotary else [])])


def _mixed(p: Float[Array, "g r b s"], v: Float[Array, "g s e"]) -> Float[Array, "g r b e"]:
    """Σₛ P v."""
    g, r, b, s = p.shape
    return lax.dot_general(p.reshape(g, r * b, s), v, (((2,), (1,)), ((0,), (0,)))).reshape(g, r, b, -1)


def _pulled(
    p: Float[Array, "g r b s"],
    q: Float[Array, "g r b e"],
    k: Float[Array, "g s e"],
    v: Float[Array, "g s e"],
    d: Float[Array, "g r b e"],
) -> tuple[Array, Array, Array]:
    """δ of the queries as they are asked [g, r, b, e], and of keys and values [g, s, e]."""
    g, r, b, _ = p.shape
    q, flat, d = (a.reshape(g, r * b, -1) for a in (q, p, d))
    back = lax.dot_general(d, v, (((2,), (2,)), ((0,), (0,))))
    back = flat * (back - (flat * back).sum(-1, keepdims=True))
    dk, dv = (lax.dot_general(a, c, (((1,), (1,)), ((0,), (0,)))) for a, c in ((back, q), (flat, d)))
    dq = lax.dot_general(back, k, (((2,), (1,)), ((0,), (0,))))
    return dq.reshape(g, r, b, -1), dk, dv


def _cut(keys: int, k: Array, v: Array, mask: Any) -> tuple[Array, Array, Any]:
    """The first keys, values and entries of a mask. Cut inside the loop: outside, every segment's would be there."""
    return k[:, :keys], v[:, :keys], None if mask is None else mask[:keys]


def _over(block: Callable[..., Any], carry: Any, piece: _Piece) -> Any:
    """What `block` makes of `carry` at each place where a block begins; of a single one without a loop."""
    if piece.count == 1:
        return block(carry, np.int32(piece.start))[0]
    return lax.scan(block, carry, piece.start + piece.rows * np.arange(piece.count, dtype=np.int32))[0]


def _turned(a: Float[Array, "... b e"], first: Any, sign: int) -> Float[Array, "... b e"]:
    """Each pair of numbers turned by the angle of its position, from `first` on, or back."""
    b, e = a.shape[-2:]
    place = jnp.asarray(first, a.dtype) + jnp.arange(b, dtype=a.dtype)
    speed = jnp.asarray(_TURN ** (-np.arange(e // 2) * 2 / e), a.dtype)
    angle = (place[:, None] * speed[None]).reshape((1,) * (a.ndim - 2) + (b, e // 2))
    cos, sin = jnp.cos(angle), sign * jnp.sin(angle)
    x, y = jnp.split(a, 2, -1)
    return jnp.concatenate((x * cos - y * sin, x * sin + y * cos), -1)


def _only(mask: Bool[Array, " t"], a: Float[Array, "t w"]) -> Array:
    """With zeros where a position is not real, by selection: anything may stand there."""
    return jnp.where(mask[:, None], a, jnp.zeros_like(a))
