"""On a CPU, the three convolutions as products or multiplications, where that takes less time than XLA's convolution.

A kernel of a single place is one product of the channels. A depthwise kernel has nothing to multiply matrices for: its
convolution is Σₖ of multiplications, one for each offset k, the same multiply-adds in a tenth of the time. Where few
channels come in, whole rows of pixels go into one product with a banded matrix, the kernel at every site of a row: more
multiply-adds, by at most `MOST_MORE`, and still less time. Accelerators keep the convolution: which of the two is
computed is decided when a program is lowered for a platform (`lax.platform_dependent`), so a program lowered for a GPU
holds convolutions only.

`way_of` is the rule; `experiments/measurements/conv_routes.py` measures it, `experiments/results/conv_routes.json` has
the figures. `plain()` switches it off.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Float
from jbp.meshes import added_up, compiler_divides

Shape = tuple[int, ...]
Geometry = Any
"""Of `jbp.pairs.geometry`, which imports this module."""

FEW, MANY = 8, 32
"""Channels: from `FEW` on a single place is a product; to fewer than `MANY` XLA is slow with an image of one."""
MOST_MORE = 10
"""Rows take at most so many times the convolution's multiply-adds."""
LONG_IN, LONG_OUT = 96, 256
"""On the way back, the numbers in a row of pixels and in a row of sites, up to which rows are worth it."""

_on = [True]


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Inside, the convolutions are XLA's on every platform: for counting, and to tell one from the other. What JAX
    compiled and traced before is forgotten at both ends, since a program made under one rule does not know the other.
    """
    before = _on[0]
    jax.clear_caches()
    _on[0] = False
    try:
        yield
    finally:
        _on[0] = before
        jax.clear_caches()


def way_of(which: str, geometry: Geometry, space: Shape, i: int, o: int) -> str | None:
    """How "forward", "back" or "contract" goes on a CPU: "place", "depthwise" or "rows"; None is XLA's convolution."""
    if geometry.groups > 1:
        return "depthwise" if geometry.groups == i else None
    if math.prod(geometry.kernel) == 1:
        return "place" if i >= FEW else None
    pixels, sites = space[-1], geometry.sites(space)[-1]
    short = {
        "forward": i == 1 and o < MANY,
        "back": max(geometry.stride) == 1 and i * pixels <= LONG_IN and o * sites <= LONG_OUT,
        "contract": False,
    }
    return "rows" if short[which] and pixels <= MOST_MORE * geometry.kernel[-1] else None


def route_forward(geometry: Geometry, convolution: Callable[..., Array], h: Array, weight: Array) -> Array:
    """The `convolution` of h and weight, or on a CPU what it is faster as."""
    way = way_of("forward", geometry, h.shape[1:-1], h.shape[-1], weight.shape[-1])
    return _either(_FORWARD.get(way), (geometry,), convolution, h, weight)


def route_back(
    geometry: Geometry, space: Shape, convolution: Callable[..., Array], delta: Array, weight: Array
) -> Array:
    """The `convolution` of δ and weight, likewise."""
    way = way_of("back", geometry, space, weight.shape[-2] * geometry.groups, delta.shape[-1])
    return _either(_BACK.get(way), (geometry, space), convolution, delta, weight)


def route_contract(geometry: Geometry, convolution: Callable[..., Array], h: Array, delta: Array) -> Array:
    """The `convolution` of h and δ, likewise."""
    way = way_of("contract", geometry, h.shape[1:-1], h.shape[-1], delta.shape[-1])
    return _either(_CONTRACT.get(way), (geometry,), convolution, h, delta)


def _either(faster: Any, given: tuple[Any, ...], convolution: Callable[..., Array], *operands: Array) -> Array:
    # Over devices XLA divides its convolutions along every axis, and of rows that are one axis with channels, few.
    if faster is None or not _on[0] or compiler_divides() or any(map(jnp.iscomplexobj, operands)):
        return convolution(*operands)
    return lax.platform_dependent(*operands, cpu=partial(faster, *given), default=convolution)


def place_forward(geometry: Geometry, h: Float[Array, "n *s i"], weight: Float[Array, "*k i o"]) -> Array:
    """One product of the channels."""
    (seen,) = geometry.slices(_padded(h, geometry.padding))
    return _product(seen, weight.reshape(weight.shape[-2:]), seen.ndim - 1, 0)


def place_back(
    geometry: Geometry, space: Shape, delta: Float[Array, "n *u o"], weight: Float[Array, "*k i o"]
) -> Array:
    """One product, and zeros where the kernel did not stand."""
    return geometry.spread([_product(delta, weight.reshape(weight.shape[-2:]), delta.ndim - 1, 1)], space)


def place_contract(geometry: Geometry, h: Float[Array, "n *s i"], delta: Float[Array, "n *u o"]) -> Array:
    """One product over n and u."""
    (seen,) = geometry.slices(_padded(h, geometry.padding))
    i, o = h.shape[-1], delta.shape[-1]
    return _product(seen.reshape(-1, i), delta.reshape(-1, o), 0, 0).reshape(*geometry.kernel, i, o)


def depthwise_forward(geometry: Geometry, h: Float[Array, "n *s i"], weight: Float[Array, "*k 1 o"]) -> Array:
    """Σₖ of what offset k sees, times its weights."""
    return _summed(geometry.slices(_padded(_repeated(geometry, h, weight.shape[-1]), geometry.padding)), weight)


def depthwise_back(
    geometry: Geometry, space: Shape, delta: Float[Array, "n *u o"], weight: Float[Array, "*k 1 o"]
) -> Array:
    """The same of δ with zeros between its sites, under the kernel turned round."""
    seen = geometry.turned.slices(_padded(delta, geometry.around(space, delta.shape[1:-1]), geometry.stride))
    found = _summed(seen, lax.rev(weight, tuple(range(geometry.dims))))
    more = found.shape[-1] // geometry.groups
    return found.reshape(*found.shape[:-1], -1, more).sum(-1) if more > 1 else found


def depthwise_contract(geometry: Geometry, h: Float[Array, "n *s i"], delta: Float[Array, "n *u o"]) -> Array:
    """Of each offset Σₙᵤ of what it sees times δ. XLA would add that up one number after another: so one example after
    another, all of u at once, and over u at the end."""
    o = delta.shape[-1]

    def example(row: tuple[Array, Array]) -> list[Array]:
        h, delta = row[0][None], row[1][None]
        return [seen * delta for seen in geometry.slices(_padded(h, geometry.padding))]

    sums = added_up(example, (_repeated(geometry, h, o), delta))
    return jnp.stack([a.reshape(-1, o).sum(0) for a in sums]).reshape(*geometry.kernel, 1, o)


def rows_forward(geometry: Geometry, h: Float[Array, "n *s i"], weight: Float[Array, "*k i o"]) -> Array:
    """The rows of pixels that a site's kernel reaches, one after another, times the band of them all."""
    n, *space, _ = h.shape
    sites, o = geometry.sites(tuple(space)), weight.shape[-1]
    lines = geometry.lines
    seen = lines.slices(_padded(h.reshape(n, *space[:-1], 1, -1), lines.padding))
    band = _band(geometry, weight, space[-1], sites[-1]).reshape(-1, sites[-1] * o)
    return _product(lax.concatenate(seen, seen[0].ndim - 1), band, seen[0].ndim - 1, 0).reshape(n, *sites, o)


def rows_back(geometry: Geometry, space: Shape, delta: Float[Array, "n *u o"], weight: Float[Array, "*k i o"]) -> Array:
    """The same, by the band's transpose."""
    n, *sites, o = delta.shape
    i, lines = weight.shape[-2], geometry.lines
    around = lines.around((*space[:-1], 1), (*sites[:-1], 1))
    seen = lines.turned.slices(_padded(delta.reshape(n, *sites[:-1], 1, -1), around, lines.stride))
    band = lax.rev(_band(geometry, weight, space[-1], sites[-1]), (0,))
    band = jnp.swapaxes(band.reshape(len(seen), -1, sites[-1] * o), 1, 2).reshape(-1, space[-1] * i)
    return _product(lax.concatenate(seen, seen[0].ndim - 1), band, seen[0].ndim - 1, 0).reshape(n, *space, i)


_FORWARD: dict[Any, Any] = {"place": place_forward, "depthwise": depthwise_forward, "rows": rows_forward}
_BACK: dict[Any, Any] = {"place": place_back, "depthwise": depthwise_back, "rows": rows_back}
_CONTRACT: dict[Any, Any] = {"place": place_contract, "depthwise": depthwise_contract}


def _band(geometry: Geometry, weight: Float[Array, "*k i o"], width: int, sites: int) -> Float[Array, "k wi vo"]:
    """Of each row of the kernel, what it makes of pixel w of a row at site v: weight[…, w − v·stride + low, :, :]."""
    *_, k, i, o = weight.shape
    (stride, dilation), (low, _) = (geometry.stride[-1], geometry.dilation[-1]), geometry.padding[-1]
    w, a, v = np.ogrid[:width, :k, :sites]
    where = jnp.asarray(w == v * stride + a * dilation - low, weight.dtype)
    found = jnp.einsum("rkio,wkv->rwivo", weight.reshape(-1, k, i, o), where)
    return found.reshape(-1, width * i, sites * o)


def _product(left: Array, right: Array, over: int, along: int) -> Array:
    return lax.dot_general(left, right, (((over,), (along,)), ((), ())))


def _summed(seen: list[Array], weight: Float[Array, "*k 1 o"]) -> Array:
    kernels = weight.reshape(-1, *(1,) * (seen[0].ndim - 1), weight.shape[-1])
    found = seen[0] * kernels[0]
    for at, part in enumerate(seen[1:], 1):
        found = found + part * lax.index_in_dim(kernels, at, keepdims=False)
    return found


def _repeated(geometry: Geometry, h: Float[Array, "n *s i"], o: int) -> Array:
    """Each channel as often as there are kernels for it."""
    return jnp.repeat(h, o // geometry.groups, -1) if o > geometry.groups else h


def _padded(a: Float[Array, "n *s c"], padding: Any, stride: Shape | None = None) -> Array:
    """Zeros around space, fewer than none taken off; and stride − 1 of them between."""
    inside = stride or (1,) * (a.ndim - 2)
    config = ((low, high, step - 1) for (low, high), step in zip(padding, inside, strict=True))
    return lax.pad(a, jnp.zeros((), a.dtype), ((0, 0, 0), *config, (0, 0, 0)))
