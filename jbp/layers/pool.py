"""Pooling over space: the largest or the mean of each window, and the mean of all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Bool, Float, Int, PRNGKeyArray
from jbp.arguments import as_bool, as_shape, at_least_float32, needs_floats, no_params, same_shape
from jbp.inputs import check_key
from jbp.layer import Layer, Shape, Static, made
from jbp.layers.images import warn_of_axes
from jbp.layers.sliding import (
    as_padding,
    as_sizes,
    check_dims,
    dims_of,
    fields_in,
    geometry_of,
    parts_of,
    per_axis,
    worded,
)
from jbp.pairs import Geometry


class _Pool(Layer):
    """What pools share: a window that slides as a kernel does, on every channel apart. A subclass is a dataclass."""

    window: Any
    stride: Any
    padding: Any

    uses_key = False
    mixes_positions = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        window = as_sizes(self.window, f"the window of {name}")
        object.__setattr__(self, "window", window)
        if self.stride is not None:
            stride = as_sizes(self.stride, f"the stride of {name}")
            object.__setattr__(self, "stride", None if stride == window else stride)
        padding = as_padding(self.padding, f"the padding of {name}")
        object.__setattr__(self, "padding", padding)
        check_dims(self, *self._sizes)
        windows = per_axis(window, len(padding))
        if not isinstance(padding, str) and any(max(sides) >= w for sides, w in zip(padding, windows, strict=True)):
            raise ValueError(f"the padding of {name} must be less than its window {window}, but is {padding!r}")

    @property
    def _sizes(self) -> tuple[Any, ...]:
        return self.window, self.stride, None if isinstance(self.padding, str) else self.padding

    @property
    def dims(self) -> int | None:
        """Of how many dimensions its sizes are; None if each is one number for all."""
        return dims_of(*self._sizes)

    @classmethod
    def from_word(cls, word: str) -> Layer | None:
        """ "pool:WINDOW" or "avgpool:WINDOW", then as wanted :s2 (stride) and :same."""
        if not cls.word or word.partition(":")[0] != cls.word:
            return None
        return made(word, cls, **fields_in(word, ("window",), {"s": "stride"}, ("valid", "same")))

    def as_word(self) -> str:
        """The window, and what is not usual."""
        named = isinstance(self.padding, str)
        self.refuse_unworded("window", "stride", *(("padding",) if named else ()))
        stride = [] if self.stride is None else [f"s{worded(self.stride)}"]
        return ":".join([self.word, worded(self.window), *stride, *(["same"] if self.padding == "same" else [])])

    def geometry(self, space: Shape) -> Geometry:
        """How its window slides over a space *s; ValueError if it is larger than the padded space."""
        return geometry_of(self, space, self.window, self.stride or self.window, self.padding)

    def opening(self, following: Layer | None) -> Layer | None:
        """What comes after: this layer has no activation of its own."""
        return following

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[()], Shape]:
        """No parameters; [*t, *s, c] becomes [*t, *u, c]."""
        check_key(key)
        shape = as_shape(shape)
        images, space, c = parts_of(self, shape, *self._sizes)
        warn_of_axes(self, shape, self.dims)
        return (), (*images, *self.geometry(space).sites(space), c)

    def _parts(self, x: Array) -> tuple[Shape, Geometry, Array]:
        """The images' axes, how the window slides, and the images as one axis."""
        images, space, c = parts_of(self, x.shape, *self._sizes)
        return images, self.geometry(space), x.reshape(-1, *space, c)


@dataclass(frozen=True, repr=False)
class MaxPool(_Pool):
    """The largest of each window, of every channel apart; axes before space are images of their own.

    forward   y[u] = maxₖ h[u·stride + k − low]
    backward  δ_h: each δ to the place of the largest; of several alike to the first, as autodiff has it

    A NaN in a window is its largest. `window` (2, 2) or 2 in one dimension; `stride` None is the window. `padding` as
    in `Conv`; padded places are never the largest.
    """

    window: int | tuple[int, ...]
    stride: int | tuple[int, ...] | None = None
    padding: str | tuple[tuple[int, int], ...] = "valid"
    piecewise_linear = True
    word = "pool"

    def forward(
        self, params: Any, x: Float[Array, "*t *s c"], key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "*t *u c"], tuple[Int[Array, "*t *u c"], Static]]:
        """The largest; saves which it was, in one byte or two."""
        no_params(self, params)
        needs_floats(self, x)
        images, geometry, flat = self._parts(x)
        lowest = jnp.asarray(-jnp.inf, x.dtype)
        padding = ((0, 0, 0), *((low, high, 0) for low, high in geometry.padding), (0, 0, 0))
        seen = geometry.slices(lax.pad(flat, lowest, padding))
        y, last = geometry.largest(flat), len(seen) - 1
        at = lax.full_like(y, last, jnp.uint8 if last < 256 else jnp.uint16)
        for k in range(last - 1, -1, -1):
            # The first that is the largest. NaN is, and differs from itself.
            found = (seen[k] == y) | (seen[k] != seen[k])
            at = lax.select(found, lax.full_like(at, k), at)
        shape = (*images, *y.shape[1:])
        return y.reshape(shape), (at.reshape(shape), Static(x.shape))

    def backward(self, params: Any, saved: Any, delta: Float[Array, "*t *u c"]) -> tuple[Array, tuple[()]]:
        """δ where the largest was."""
        at, shape = saved[0], saved[1].value
        same_shape(self, delta, at.shape)
        images, space, _ = parts_of(self, shape, *self._sizes)
        geometry = self.geometry(space)
        flat, at = (a.reshape(-1, *a.shape[len(images) :]) for a in (delta, at))
        if geometry.tiles:
            places = np.arange(math.prod(geometry.kernel), dtype=at.dtype).reshape(geometry.kernel)
            here = np.tile(places, [-(-s // k) for s, k in zip(space, geometry.kernel, strict=True)])
            here = here[tuple(map(slice, space))][None, ..., None]
            chosen = geometry.tiled(at, space) == here
            return jnp.where(chosen, geometry.tiled(flat, space), lax.full_like(flat, 0, shape=())).reshape(shape), ()
        zero = lax.full_like(flat, 0)
        places = range(math.prod(geometry.kernel))
        parts = [lax.select(at == lax.full_like(at, k), flat, zero) for k in places]
        return geometry.spread(parts, space).reshape(shape), ()

    def formulas(self) -> tuple[str, str]:
        """Where the largest is, δ goes."""
        return "y = max of x in each window", "δ_x = δ where x was the max, else 0"


@dataclass(frozen=True, repr=False)
class AvgPool(_Pool):
    """The mean of each window, of every channel apart; axes before space are images of their own.

    forward   y[u] = Σₖ h[u·stride + k − low] / count[u]
    backward  δ_h[s]: the sum of δ[u] / count[u] over the windows u that see s

    The count is of the places that are no padding, or with `count_padding` of all. The rest as in `MaxPool`.
    """

    window: int | tuple[int, ...]
    stride: int | tuple[int, ...] | None = None
    padding: str | tuple[tuple[int, int], ...] = "valid"
    count_padding: bool = False
    piecewise_linear = True
    word = "avgpool"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "count_padding", as_bool(self.count_padding, "count_padding of AvgPool"))

    def forward(
        self, params: Any, x: Float[Array, "*t *s c"], key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "*t *u c"], Static]:
        """The means; saves only the shape."""
        no_params(self, params)
        needs_floats(self, x)
        images, geometry, flat = self._parts(x)
        wide = at_least_float32(x.dtype)  # a sum of ones in bfloat16 ends at 256
        y = geometry.summed(flat.astype(wide)) * self._share(geometry, flat.shape[1:-1], wide)
        return y.reshape(*images, *y.shape[1:]).astype(x.dtype), Static(x.shape)

    def backward(self, params: Any, saved: Static, delta: Float[Array, "*t *u c"]) -> tuple[Array, tuple[()]]:
        """Every δ, divided among the places of its window."""
        images, space, c = parts_of(self, saved.value, *self._sizes)
        geometry = self.geometry(space)
        same_shape(self, delta, (*images, *geometry.sites(space), c))
        flat = delta.reshape(-1, *delta.shape[len(images) :])
        wide = at_least_float32(delta.dtype)
        back = geometry.unsummed(flat.astype(wide) * self._share(geometry, space, wide), space)
        return back.reshape(saved.value).astype(delta.dtype), ()

    def formulas(self) -> tuple[str, str]:
        """One part of δ to each place."""
        return "y = mean of x in each window", "δ_x = Σ of δ / count over the windows"

    def _share(self, geometry: Geometry, space: Shape, dtype: Any) -> Float[Array, "1 *u 1"]:
        """1 / count, at each site."""
        if self.count_padding or not any(map(any, geometry.padding)):
            return jnp.full((1,) * (geometry.dims + 2), 1 / math.prod(geometry.kernel), dtype)
        seen = jnp.ones((1, *space, 1), dtype)
        return 1 / geometry.summed(seen)


@dataclass(frozen=True, repr=False)
class GlobalPool(Layer):
    """The mean over all of space, of every channel apart: [*s, c] becomes [c].

    forward   y = Σₛ h[s] / S
    backward  δ_h[s] = δ / S

    Of a `mask` [*s] the mean is over the real places, and S their number; anything may stand at the others.
    """

    kind: str = "mean"
    uses_key = False
    uses_mask = True
    piecewise_linear = True
    word = "globalpool"

    def __post_init__(self) -> None:
        if self.kind != "mean":
            raise ValueError(f"the kind of GlobalPool must be 'mean', but is {self.kind!r}")

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[tuple[()], Shape]:
        """No parameters; [*s, c] becomes [c]."""
        check_key(key)
        _, _, c = parts_of(self, as_shape(shape))
        return (), (c,)

    def forward(
        self,
        params: Any,
        x: Float[Array, "*s c"],
        key: PRNGKeyArray | None,
        mask: Bool[Array, "*s"] | None = None,
    ) -> tuple[Float[Array, " c"], Any]:
        """The mean; saves the shape and, of a mask, what part of it each place is."""
        no_params(self, params)
        needs_floats(self, x)
        parts_of(self, x.shape)
        if mask is None:
            return x.mean(tuple(range(x.ndim - 1))), (Static(x.shape), None)
        if mask.shape != x.shape[:-1]:
            raise ValueError(f"the mask has shape {mask.shape}, but the input of {self!r} has places {x.shape[:-1]}")
        real = jnp.expand_dims(mask, -1)
        share = mask.astype(x.dtype) / jnp.maximum(mask.sum(dtype=x.dtype), jnp.ones((), x.dtype))
        kept = jnp.where(real, x, jnp.zeros_like(x)) * jnp.expand_dims(share, -1)
        return kept.sum(tuple(range(x.ndim - 1))), (Static(x.shape), share)

    def backward(self, params: Any, saved: Any, delta: Float[Array, " c"]) -> tuple[Array, tuple[()]]:
        """δ / S at every place."""
        (shape, share) = saved[0].value, saved[1]
        same_shape(self, delta, shape[-1:])
        if share is None:
            return jnp.broadcast_to(delta / math.prod(shape[:-1]), shape), ()
        return jnp.broadcast_to(delta, shape) * jnp.expand_dims(share, -1), ()

    def formulas(self) -> tuple[str, str]:
        """The same part of δ to each place."""
        return "y = mean of x over space", "δ_x = δ / number of places"
