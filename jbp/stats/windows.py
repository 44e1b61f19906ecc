"""The two ways to what a kernel's gradients say of each example, and the rule that picks one.

The gradient of one example is Σᵤ wᵤ ⊗ δᵤ over the T sites u where the kernel stands, wᵤ what its K places see there.

- The *pixel Gram*: ‖g‖² = Σᵤᵥ ⟨wᵤ, wᵥ⟩⟨δᵤ, δᵥ⟩, and what two windows share is made of what two pixels share:
  ⟨wᵤ, wᵥ⟩ = Σₖ ⟨pixel seen by k at u, pixel seen by k at v⟩. So one Gram matrix of the pixels serves, of which that of
  the windows is the sum of K shifts, and nothing is unfolded. With a stride, k meets only pixels of its own phase: as
  many smaller matrices. Padding is put around the matrices and not around the pixels.
- *Formed*: the windows of a few examples at a time are unfolded, by slices, and multiplied with their δ. Never a
  convolution with an example as its batch or its group: XLA's CPU compiler takes 3 to 100 times as long for these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Float
from jbp.meshes import alike
from jbp.pairs import Window

SHIFT = 8
"""What it takes to add one number of a shifted matrix, in multiply-adds of a product, as measured."""

KEPT = 2.5
"""A gradient is kept for the clipped sum if it has at most so many times the numbers that h and δ have."""

SHARE, LEAST, MOST = 4, 2**16, 2**20
"""Numbers that are worked on at a time: a quarter of those that the pair holds, but never fewer or more than these."""

NARROW = 8
"""Of fewer channels the windows are unfolded with the sites last: rows of 1 to 7 numbers are slow to copy."""


class Route(NamedTuple):
    """How the gradients of the examples are read, and how many examples at a time."""

    way: Literal["once", "gram", "formed"]
    together: int

    def __str__(self) -> str:
        """In words."""
        if self.way == "once":
            return "‖h‖²‖δ‖²"
        count = "one example" if self.together == 1 else f"{self.together} examples"
        return f"{'pixel Gram matrices, ' if self.way == 'gram' else ''}{count} at a time"


def route(pair: Window) -> Route:
    """The cheaper way to ‖gₙ‖², by multiply-adds of one example, of which a number of a shifted matrix takes `SHIFT`;
    of a kernel that stands in one place, as for an `Outer` used once.

    Measured on 40 kinds of layers: `experiments/results/window_routes.json`.
    """
    found = costs(pair)
    if pair.uses == 1:
        return Route("once", pair.batch)
    if found["shares"] + SHIFT * found["shifts"] <= found["products"]:
        return Route("gram", _together(pair, found["matrices"]))
    return forming(pair)


def costs(pair: Window) -> dict[str, int]:
    """Of one example: the multiply-adds of the Gram matrices ("shares") and of a gradient ("products"), the numbers
    that shifting adds up ("shifts"), and those that the one way ("matrices") and the other ("unfolded") have in memory.
    """
    g, k, t = pair.geometry.groups, math.prod(pair.geometry.kernel), pair.uses
    i, o = pair.h.shape[-1], pair.shape[-1]
    phases, size, _ = _phases(pair)
    pixels = pair.h.shape[1] * math.prod(size)
    return {
        "shares": len(phases) * pixels**2 * i + t**2 * o,
        "shifts": t**2 * k * g,
        "products": t * k * i * o // g,
        "matrices": g * (len(phases) * pixels**2 + 2 * t**2),
        "unfolded": t * k * i + math.prod(pair.shape),
    }


def forming(pair: Window) -> Route:
    """How the gradients themselves are made."""
    return Route("formed", _together(pair, costs(pair)["unfolded"]))


def few_numbers(pair: Window) -> bool:
    """Whether the clipped sum is made of gradients that are formed for the norms and kept: always less work than norms
    and then a total, but N·K·i·o numbers."""
    return pair.uses > 1 and math.prod(pair.shape) <= KEPT * _held(pair)


def fewer_numbers(pair: Window) -> bool:
    """Whether the gradients have no more than the pair, so that memory is the smaller the sooner they are formed."""
    return math.prod(pair.shape) <= _held(pair)


def square_and_hidden(pair: Window) -> tuple[Float[Array, " n"], float]:
    """‖gₙ‖² by the cheaper way, and the share of S² that rounding may hide (see `jbp.stats.norms`)."""
    way, together = route(pair)
    if way == "once":
        return jnp.square(pair.reach()), 0.0
    if way == "formed":
        return _in_parts(_square_formed, pair, together), 0.0
    # ⟨wᵤ, wᵥ⟩ is a sum of i/g·K products, and of such the norm is added up over u, v and the groups.
    k, g, (i, o) = math.prod(pair.geometry.kernel), pair.geometry.groups, pair.shape[-2:]
    hidden = (i + k + o + 2 * pair.uses + g) * float(jnp.finfo(pair.dtype).eps) / 2
    return _in_parts(_square_gram, pair, together), hidden


def formed(pair: Window, after: Array | None = None) -> Float[Array, "n *k i o"]:
    """gₙ of every example, a few at a time; with `after` not before that array is there.

    So says what the first of them is written into: XLA's CPU compiler, which drops its own barriers before it plans,
    otherwise makes them as soon as it can, and keeps them while all else of a backward pass is in memory too.
    """
    together = forming(pair).together
    if after is None or together == pair.batch:
        return _in_parts(_form, pair, together)
    one = after.reshape(-1)[0]
    never = jnp.where((one != one) & (one == 0), jnp.ones((), pair.dtype), jnp.zeros((), pair.dtype))
    parts = _parts(pair, together)

    def step(found: Array, part: tuple[Array, Window]) -> tuple[Array, None]:
        g = _form(_whole(part[1], pair, together)).reshape(-1)
        return lax.dynamic_update_index_in_dim(found, g, part[0], 0), None

    count = pair.batch // together
    start = alike(jnp.broadcast_to(never, (count, together * math.prod(pair.shape))), pair)
    return lax.scan(step, start, (jnp.arange(count), parts))[0].reshape(-1, *pair.shape)


def _form(pair: Window) -> Float[Array, "n *k i o"]:
    """gₙ of every example: windows unfolded, and one product for each example and group."""
    geometry, n, g, (i, o) = pair.geometry, pair.batch, pair.geometry.groups, pair.shape[-2:]
    space, k = pair.h.shape[2:-1], math.prod(pair.geometry.kernel)
    if g == i * g == o:  # depthwise: nothing is multiplied with more than one number
        seen = geometry.slices(_padded(pair.h.reshape(-1, *space, g), pair))
        delta = pair.delta.reshape(n, -1, g)
        return jnp.stack([(part.reshape(n, -1, g) * delta).sum(1) for part in seen], 1).reshape(n, *pair.shape)
    if i * g < NARROW:
        channels = jnp.moveaxis(pair.h, -1, 1).reshape(-1, *space, 1)
        seen = [part.reshape(n, g, i, -1) for part in geometry.slices(_padded(channels, pair))]
        seen, words = jnp.stack(seen, 1), "nkgiu,nugo->nkigo"
    else:
        seen = geometry.windows(pair.h.reshape(-1, *space, g * i)).reshape(n, -1, k, g, i)
        words = "nukgi,nugo->nkigo"
    if g > 1:
        found = jnp.einsum(words, seen, pair.delta.reshape(n, -1, g, o // g))
    else:  # without the axis of the groups: for one of size 1 XLA's CPU compiler makes copies
        seen = seen.reshape(n, -1, k * i) if words[1] == "u" else seen.reshape(n, k * i, -1)
        found = jnp.einsum("nux,nuo->nxo" if words[1] == "u" else "nxu,nuo->nxo", seen, pair.delta.reshape(n, -1, o))
    return found.reshape(n, *pair.shape)


def _square_formed(pair: Window) -> Float[Array, " n"]:
    g = _form(pair).reshape(pair.batch, -1, pair.shape[-1])
    return lax.optimization_barrier(jnp.square(g).sum(2)).sum(1)


def _square_gram(pair: Window) -> Float[Array, " n"]:
    """Σ over groups and sites u, v of ⟨wᵤ, wᵥ⟩⟨δᵤ, δᵥ⟩; never below 0, as a difference of squares may come out."""
    n, t, g = pair.batch, pair.h.shape[1], pair.geometry.groups
    sites = pair.delta.shape[2:-1]
    phases, size, front = _phases(pair)
    config = [(0, 0, 0)] * 2
    for s, m, low, stride in zip(pair.h.shape[2:-1], size, front, pair.geometry.stride, strict=True):
        config.append((low, m * stride - s - low, 0))
    h = lax.pad(pair.h, jnp.zeros((), pair.h.dtype), (*config, (0, 0, 0)))
    seen = None
    for phase, places in phases.items():
        part = h[
            (slice(None), slice(None), *(slice(r, None, s) for r, s in zip(phase, pair.geometry.stride, strict=True)))
        ]
        shared = _shared(part, g).reshape(n, g, t, *size, t, *size)
        least, most = (tuple(f(at[j] for at in places) for j in range(len(size))) for f in (min, max))
        around = [(max(-a, 0), max(b + u - m, 0), 0) for a, b, u, m in zip(least, most, sites, size, strict=True)]
        shared = lax.pad(
            shared, jnp.zeros((), shared.dtype), ((0, 0, 0), (0, 0, 0), (0, 0, 0), *around, (0, 0, 0), *around)
        )
        for at in places:
            cut = tuple(slice(a + low, a + low + u) for a, (low, _, _), u in zip(at, around, sites, strict=True))
            shifted = shared[(slice(None), slice(None), slice(None), *cut, slice(None), *cut)]
            seen = shifted if seen is None else seen + shifted
    assert seen is not None
    deltas = _shared(pair.delta, g)
    rows = lax.optimization_barrier((seen.reshape(deltas.shape) * deltas).sum(3))
    return jnp.maximum(rows.sum(2), 0).sum(1)


def _shared(a: Float[Array, "n t *u c"], groups: int) -> Float[Array, "n g u u"]:
    """⟨aᵤ, aᵥ⟩ over the channels of each group."""
    rows = a.reshape(a.shape[0], -1, groups, a.shape[-1] // groups)
    return jnp.einsum("nugc,nvgc->nguv", rows, rows)


def _phases(pair: Window) -> tuple[dict[tuple[int, ...], list[tuple[int, ...]]], tuple[int, ...], tuple[int, ...]]:
    """The phases of pixels that the kernel meets, each with the places of the kernel that meet it, as the index in the
    phase of what a place sees at the first site; the size of a phase; and the zeros in front of the space that make the
    first pixel one of phase 0."""
    geometry = pair.geometry
    front = tuple(low % stride for (low, _), stride in zip(geometry.padding, geometry.stride, strict=True))
    phases: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for at in np.ndindex(*geometry.kernel):
        seen = [k * d for k, d in zip(at, geometry.dilation, strict=True)]
        phase = tuple(x % stride for x, stride in zip(seen, geometry.stride, strict=True))
        place = tuple(
            x // stride - low // stride
            for x, stride, (low, _) in zip(seen, geometry.stride, geometry.padding, strict=True)
        )
        phases.setdefault(phase, []).append(place)
    size = []
    for j, (s, u) in enumerate(zip(pair.h.shape[2:-1], pair.delta.shape[2:-1], strict=True)):
        last = max(place[j] for places in phases.values() for place in places)
        size.append(max(min(-(-(s + front[j]) // geometry.stride[j]), last + u), 1))
    return phases, tuple(size), front


def _padded(a: Float[Array, "n *s i"], pair: Window) -> Float[Array, "n *p i"]:
    return jnp.pad(a, ((0, 0), *pair.geometry.padding, (0, 0)))


def _held(pair: Window) -> int:
    """The numbers of h and δ of one example."""
    return math.prod(pair.h.shape[1:]) + math.prod(pair.delta.shape[1:])


def _together(pair: Window, numbers: int) -> int:
    """How many examples at a time, of which each takes so many `numbers`: a divisor of N."""
    n = pair.batch
    room = min(max(n * _held(pair) // SHARE, LEAST), MOST)
    return next(c for c in range(min(max(room // max(numbers, 1), 1), n), 0, -1) if n % c == 0)


def _in_parts(function: Callable[[Window], Array], pair: Window, together: int) -> Array:
    """`function` of the pair, so many examples at a time."""
    if together >= pair.batch:
        return function(pair)
    found = lax.map(lambda part: function(_whole(part, pair, together)), _parts(pair, together))
    return found.reshape(pair.batch, *found.shape[2:])


def _parts(pair: Window, together: int) -> Window:
    """So many examples in a row: as matrices, for of more axes XLA's CPU compiler chooses an order, and copies h and δ
    into it."""
    return jax.tree.map(lambda a: a.reshape(pair.batch // together, -1), pair)


def _whole(part: Window, pair: Window, together: int) -> Window:
    return jax.tree.map(lambda a, b: a.reshape(together, *b.shape[1:]), part, pair)
