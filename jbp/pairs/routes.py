"""On a CPU, the three convolutions over the kernel's offsets, where that takes less time than XLA's convolution.

Σₖ over the offsets of a kernel are few plain products, and for kernels that see one channel (depthwise, or an image of
one channel) multiplications without any product at all: the same multiply-adds as the convolution has, and the same
numbers to rounding. XLA's CPU convolution is slow where its kernel sees few channels, where δ is spread by a stride,
and with groups as many as channels. Accelerators keep the convolution: which of the two is computed is decided when a
program is lowered for a platform (`lax.platform_dependent`), so a program lowered for a GPU holds convolutions only.

`pays` is the rule; `experiments/measurements/conv_routes.py` measures it, `experiments/results/conv_routes.json` has
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
from jax import lax

from jbp.annotations import Array, Float
from jbp.meshes import added_up

Shape = tuple[int, ...]
Geometry = Any
"""Of `jbp.pairs.geometry`, which imports this module."""

FEW_IN, MANY_OUT = 8, 32
"""Input channels up to which δ_h goes by products; output channels from which XLA's convolution is fast forward, even
where its kernel sees one channel."""

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


def pays(way: str, geometry: Geometry, i: int, o: int) -> bool:
    """Whether "forward", "back" or "contract" goes over the offsets on a CPU, by the measurements.

    With a single offset everything does, and so do depthwise kernels; forward a kernel that sees one channel, if few
    come out; δ_h through a stride, or towards few channels; the contraction under a stride.
    """
    g, strided = geometry.groups, max(geometry.stride) > 1
    if g > 1 or math.prod(geometry.kernel) == 1:
        return g in (1, i)
    return {"forward": i == 1 and o < MANY_OUT, "back": strided or i <= FEW_IN, "contract": strided and i > 1}[way]


def route_forward(geometry: Geometry, convolution: Callable[..., Array], h: Array, weight: Array) -> Array:
    """The `convolution` of h and weight, on a CPU over the offsets where that pays."""
    return _either(
        pays("forward", geometry, h.shape[-1], weight.shape[-1]),
        partial(forward_over_offsets, geometry),
        convolution,
        h,
        weight,
    )


def route_back(
    geometry: Geometry, space: Shape, convolution: Callable[..., Array], delta: Array, weight: Array
) -> Array:
    """The `convolution` of δ and weight, likewise."""
    pay = pays("back", geometry, weight.shape[-2] * geometry.groups, delta.shape[-1])
    return _either(pay, partial(back_over_offsets, geometry, space), convolution, delta, weight)


def route_contract(geometry: Geometry, convolution: Callable[..., Array], h: Array, delta: Array) -> Array:
    """The `convolution` of h and δ, likewise."""
    return _either(
        pays("contract", geometry, h.shape[-1], delta.shape[-1]),
        partial(contract_over_offsets, geometry),
        convolution,
        h,
        delta,
    )


def _either(pay: bool, offsets: Callable[..., Array], convolution: Callable[..., Array], *operands: Array) -> Array:
    if not (pay and _on[0]) or any(map(jnp.iscomplexobj, operands)):
        return convolution(*operands)
    return lax.platform_dependent(*operands, cpu=offsets, default=convolution)


def forward_over_offsets(geometry: Geometry, h: Float[Array, "n *s i"], weight: Float[Array, "*k i/g o"]) -> Array:
    """Σₖ of what offset k sees, times its weights."""
    seen = geometry.slices(_padded(_repeated(geometry, h, weight.shape[-1]), geometry.padding))
    return _summed(seen, weight)


def back_over_offsets(
    geometry: Geometry, space: Shape, delta: Float[Array, "n *u o"], weight: Float[Array, "*k i/g o"]
) -> Array:
    """One product for all offsets, each part of which goes back to where its offset saw it; of depthwise kernels the
    sum over what they see, turned round, of δ with zeros between."""
    i, o = weight.shape[-2:]
    if geometry.groups == 1:
        kernels = weight.reshape(-1, o)
        every = lax.dot_general(delta, kernels, (((delta.ndim - 1,), (1,)), ((), ())))
        ends = range(0, len(kernels), i)
        return geometry.spread([lax.slice_in_dim(every, at, at + i, axis=-1) for at in ends], space)
    around = geometry.around(space, delta.shape[1:-1])
    seen = geometry.turned.slices(_padded(delta, around, geometry.stride))
    found = _summed(seen, lax.rev(weight, tuple(range(geometry.dims))))
    more = o // geometry.groups
    return found.reshape(*found.shape[:-1], -1, more).sum(-1) if more > 1 else found


def contract_over_offsets(geometry: Geometry, h: Float[Array, "n *s i"], delta: Float[Array, "n *u o"]) -> Array:
    """For each offset the product of what it sees and δ. Depthwise kernels have no product, and XLA adds up over n and
    u one number after another: there it goes one example after another, all of u at once, and over u at the end."""
    (*_, i), (*_, o) = h.shape, delta.shape
    if geometry.groups == 1:
        seen, flat = geometry.slices(_padded(h, geometry.padding)), delta.reshape(-1, o)
        parts = [lax.dot_general(a.reshape(-1, i), flat, (((0,), (0,)), ((), ()))) for a in seen]
        return lax.concatenate(parts, 0).reshape(*geometry.kernel, i, o)

    def example(row: tuple[Array, Array]) -> list[Array]:
        h, delta = row[0][None], row[1][None]
        return [seen * delta for seen in geometry.slices(_padded(h, geometry.padding))]

    sums = added_up(example, (_repeated(geometry, h, o), delta))
    return jnp.stack([a.reshape(-1, o).sum(0) for a in sums]).reshape(*geometry.kernel, 1, o)


def _summed(seen: list[Array], weight: Float[Array, "*k i/g o"]) -> Array:
    """Σₖ seen[k]·weight[k]: products of the channels, or of one channel each multiplications."""
    found = None
    *_, i, o = weight.shape
    for at, part in enumerate(seen):
        kernel = lax.index_in_dim(weight.reshape(-1, i, o), at, keepdims=False)
        if i == 1:
            term = part * kernel.reshape((1,) * (part.ndim - 1) + (o,))
        else:
            term = lax.dot_general(part, kernel, (((part.ndim - 1,), (0,)), ((), ())))
        found = term if found is None else found + term
    assert found is not None
    return found


def _repeated(geometry: Geometry, h: Float[Array, "n *s i"], o: int) -> Array:
    """Of depthwise kernels, each channel as often as there are kernels for it; a single channel is one already."""
    return jnp.repeat(h, o // geometry.groups, -1) if o > geometry.groups > 1 else h


def _padded(a: Float[Array, "n *s c"], padding: Any, stride: Shape | None = None) -> Array:
    """Zeros around space, fewer than none taken off; and stride − 1 of them between."""
    inside = stride or (1,) * (a.ndim - 2)
    config = ((low, high, step - 1) for (low, high), step in zip(padding, inside, strict=True))
    return lax.pad(a, jnp.zeros((), a.dtype), ((0, 0, 0), *config, (0, 0, 0)))
