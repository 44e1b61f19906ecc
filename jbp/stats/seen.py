"""Sums over what a kernel sees, of which never more than a part is unfolded."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array, Float
from jbp.meshes import added_up
from jbp.pairs import Weights, Window, as_floats, silence, weigh

SITES = 512
"""So many sites at a time, or those of one image: few enough to be no memory beside h and δ, enough for a product not
to be small beside the matrix it is added to."""


def seen_moment(pair: Window, weights: Weights) -> Float[Array, "g ki ki"]:
    """1/T Σₙₜ wₙ h hᵀ of what the kernel sees at its T sites, a matrix for each group; None means wₙ = 1/N.

    Some images at a time are unfolded: all at once, windows are K times h. To add up products of the kernel's places
    with one another instead, two or a block of them at a time over the whole batch, took up to ten times the
    temporaries of this, and on a CPU mostly more time, though half as many products do.
    """
    geometry, (i, _) = pair.geometry, pair.shape[-2:]
    h = pair.h.reshape(-1, *pair.h.shape[2:])
    sites, k = math.prod(pair.delta.shape[2:-1]), math.prod(geometry.kernel)
    m = max(d for d in range(1, len(h) + 1) if len(h) % d == 0 and (d == 1 or d * sites <= SITES))
    w = None if weights is None else jnp.repeat(as_floats(weights), pair.h.shape[1]).reshape(-1, m)

    def one(part: tuple[Array, Weights]) -> Float[Array, "g ki ki"]:
        h, w = part
        sides = (h, h) if w is None else (weigh(w, h), silence(w, h))
        left, right = (geometry.windows(a).reshape(-1, k, geometry.groups, i) for a in sides)
        return jnp.einsum("tkgi,tlgj->gkilj", left, right).reshape(-1, k * i, k * i)

    return added_up(one, (h.reshape(-1, m, *h.shape[1:]), w)) / (pair.uses * (pair.batch if w is None else 1))


def mean_seen(pair: Window) -> Float[Array, "g n 1 ki"]:
    """The mean over its T sites of what the kernel sees in each example, for each group."""
    geometry = pair.geometry
    images = pair.h.reshape(-1, *pair.h.shape[2:])
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
