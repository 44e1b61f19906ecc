"""What a kernel sees, place after place: sums over its windows without unfolding them."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Float
from jbp.pairs import Weights, Window, as_floats, silence, weigh


def seen_moment(pair: Window, weights: Weights) -> Float[Array, "g ki ki"]:
    """1/T Σₙₜ wₙ h hᵀ of what the kernel sees at its T sites, a matrix for each group; None means wₙ = 1/N.

    By blocks of about √K of its K places: a product for each two blocks, of which the second is not before the first.
    Two blocks are all that is ever unfolded, and about half of the products of all with all are made.
    """
    geometry, i = pair.geometry, pair.shape[-2]
    images = _images(pair)
    k, g, u = math.prod(geometry.kernel), geometry.groups, geometry.sites(images.shape[1:-1])
    b = math.isqrt(k)
    count = -(-k // b)
    places = np.array(list(np.ndindex(*geometry.kernel))) * np.array(geometry.dilation)
    places = np.concatenate((places, places[-1:].repeat(count * b - k, 0))).reshape(count, b, -1)
    rows, columns = np.triu_indices(count)

    padded = jnp.pad(images, ((0, 0), *geometry.padding, (0, 0)))
    w = None if weights is None else jnp.repeat(as_floats(weights), pair.h.shape[1])
    left, right = (padded, padded) if w is None else (weigh(w, padded), silence(w, padded))
    sizes = (len(padded), *((s - 1) * stride + 1 for s, stride in zip(u, geometry.stride, strict=True)), g * i)

    def unfolded(a: Array, block: Array) -> Float[Array, "g nu bi"]:
        parts = []
        for place in block:
            zero = jnp.zeros((), place.dtype)
            at = lax.dynamic_slice(a, (zero, *place, zero), sizes)
            parts.append(lax.slice(at, (0,) * at.ndim, at.shape, (1, *geometry.stride, 1)).reshape(-1, g, i))
        return jnp.moveaxis(jnp.stack(parts, 2), 1, 0).reshape(g, -1, b * i)

    def product(two: tuple[Array, Array]) -> Float[Array, "g bi bi"]:
        return jnp.einsum("gux,guy->gxy", unfolded(left, two[0]), unfolded(right, two[1]))

    products = lax.map(product, (jnp.asarray(places[rows]), jnp.asarray(places[columns])))
    which = np.zeros((count, count), int)
    which[rows, columns] = which[columns, rows] = np.arange(len(rows))
    later = np.tri(count, k=-1, dtype=bool).reshape(count, count, 1, 1, 1)  # these are others turned
    blocks = jnp.where(later, jnp.swapaxes(products, 2, 3)[which], products[which])
    whole = jnp.transpose(blocks, (2, 0, 3, 1, 4)).reshape(g, count * b * i, -1)[:, : k * i, : k * i]
    return whole / (pair.uses if weights is not None else pair.uses * pair.batch)


def mean_seen(pair: Window) -> Float[Array, "g n 1 ki"]:
    """The mean over its T sites of what the kernel sees in each example, for each group."""
    geometry = pair.geometry
    images = _images(pair)
    zero, u = jnp.zeros((), images.dtype), geometry.sites(images.shape[1:-1])
    # A window as large as the sites, which the kernel's places move: the same sums in another order.
    found = lax.reduce_window(
        images,
        zero,
        lax.add,
        (1, *u, 1),
        (1, *geometry.dilation, 1),
        ((0, 0), *geometry.padding, (0, 0)),
        None,
        (1, *geometry.stride, 1),
    )
    found = found[:, *(slice(k) for k in geometry.kernel)]
    found = found.reshape(pair.batch, pair.h.shape[1], -1, geometry.groups, pair.shape[-2]).sum(1) / pair.uses
    return jnp.moveaxis(found, 2, 0).reshape(geometry.groups, pair.batch, 1, -1)


def _images(pair: Window) -> Float[Array, "n*t *s i"]:
    return pair.h.reshape(-1, *pair.h.shape[2:])
