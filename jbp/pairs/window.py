"""`Window`: the pair of a kernel that slides over space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Float
from jbp.arguments import promoted
from jbp.pairs.geometry import Geometry
from jbp.pairs.outer import Outer
from jbp.pairs.pair import Pair, Weights, weigh, widened


@register_dataclass
@dataclass(frozen=True, eq=False)
class Window(Pair):
    """g[k,i,o] = Σₜᵤ h[t, u·stride + k·dilation − low, i] δ[t,u,o]: the pair of a convolution's kernel.

    `shape` is the kernel's own, [*k, i/groups, o]. t counts the images that one example is made of, or the places where
    a tied kernel is used; the sites u of a kernel in one image are uses too.
    """

    h: Float[Array, "*n t *s i"]
    delta: Float[Array, "*n t *u o"]
    shape: tuple[int, ...] = field(metadata={"static": True})
    geometry: Geometry = field(metadata={"static": True})

    @classmethod
    def of(
        cls, h: Float[Array, "*t *s i"], delta: Float[Array, "*t *u o"], shape: tuple[int, ...], geometry: Geometry
    ) -> Window:
        """From h [*t, *s, i] and δ [*t, *u, o] of one example: space and channels last, images in front.

        Raises:
            ValueError: if the sites of δ, the channels or the images do not fit together.
        """
        d = geometry.dims
        if h.ndim > d < delta.ndim and h.shape[: -d - 1] == delta.shape[: -d - 1]:
            h, delta = (a.reshape(-1, *a.shape[-d - 1 :]) for a in (h, delta))
        pair = cls(h, delta, tuple(shape), geometry)
        pair.check(tuple(shape), 0)
        return pair

    def check(self, shape: tuple[int, ...] | None, axes: int) -> None:
        """Refuse arrays that are not [*axes, t, *s, i] and, at the sites of its geometry, [*axes, t, *u, o]."""
        shape, d = tuple(self.shape if shape is None else shape), self.geometry.dims
        arrays = (self.h, self.delta)
        sound = all(hasattr(a, "dtype") and len(a.shape) == axes + d + 2 for a in arrays)
        if sound and all(jnp.issubdtype(a.dtype, jnp.inexact) for a in arrays):
            (*images, i), (*others, o) = self.h.shape, self.delta.shape
            sites = (*images[: axes + 1], *self.geometry.sites(tuple(images[axes + 1 :])))
            kernel = (*self.geometry.kernel, i // self.geometry.groups, o)
            if sites == tuple(others) and i % self.geometry.groups == 0 and kernel == self.shape == shape:
                return
        front = "".join(f"{letter}, " for letter in ("l" * (axes - 1) + "n" * (axes > 0)))
        came = " and ".join(
            f"{name} {a.dtype}{list(a.shape)}" if hasattr(a, "dtype") else f"{name} a {type(a).__name__}"
            for name, a in zip(("h", "delta"), arrays, strict=True)
        )
        raise ValueError(
            f"Window of a kernel of shape {shape} holds h [{front}t, *s, i] and delta [{front}t, *u, o], of floats, at "
            f"the sites of {self.geometry}, but got {came}"
            + (f" and shape {self.shape}" if self.shape != shape else "")
        )

    def total(self, weights: Weights = None) -> Array:
        """Σₙ wₙ gₙ: one convolution."""
        h, delta = widened((self.h, self.delta))
        h, delta = promoted(h, weigh(weights, delta))
        return self.geometry.contract(self._flat(h), self._flat(delta)).astype(self.dtype)

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.delta.shape[0]

    @property
    def uses(self) -> int:
        """T, sites in all images of an example."""
        return math.prod(self.delta.shape[1:-1])

    def reach(self) -> Float[Array, " n"]:
        """Σₜᵤ of the norm of what the kernel sees times that of δ, over the groups."""
        g = self.geometry.groups
        h, delta = (jnp.square(a).reshape(*a.shape[:-1], g, -1).sum(-1) for a in widened((self.h, self.delta)))
        seen = self.geometry.summed(self._flat(h))
        return jnp.sqrt((seen * self._flat(delta)).sum(-1)).reshape(self.batch, -1).sum(1)

    def rows(self) -> tuple[Outer, ...]:
        """One block, the windows unfolded; with groups a row for each, whose δ is 0 outside its group."""
        g, (i, o) = self.geometry.groups, self.shape[-2:]
        n, k = self.batch, math.prod(self.geometry.kernel)
        seen = self.geometry.windows(self._flat(self.h)).reshape(n, -1, k, g, i)
        delta = self.delta.reshape(n, -1, g, o // g)
        t = seen.shape[1]
        seen = jnp.moveaxis(seen, 3, 2).reshape(n, t * g, k * i)
        apart = jnp.expand_dims(jnp.eye(g, dtype=delta.dtype), (0, 1, 4)) * jnp.expand_dims(delta, 2)
        return (Outer(seen, apart.reshape(n, t * g, o), self.shape),)

    def join(self, other: Pair) -> Any:
        """The images of two uses one after another, if they are of one size; space and examples stay as they are."""
        if jax.tree.structure(self) != jax.tree.structure(other):
            return None
        at = -self.geometry.dims - 2
        both = list(zip(jax.tree.leaves(self), jax.tree.leaves(other), strict=True))
        if any(a.shape[at + 1 :] != b.shape[at + 1 :] for a, b in both):
            return None
        return jax.tree.map(lambda a, b: jnp.concatenate((a, b), at), self, other)

    @property
    def transports(self) -> bool:
        """Yes: δ goes back through the kernel."""
        return True

    @property
    def in_turn(self) -> bool:
        """Yes: its total is a convolution."""
        return True

    def over_stack(self, function: Callable[..., Any], *others: Any, axis: int | None = 0) -> Any:
        """`function` of this pair."""
        return function(self, *others)

    def _flat(self, a: Float[Array, "n t *s i"]) -> Float[Array, "n*t *s i"]:
        return a.reshape(-1, *a.shape[2:])
