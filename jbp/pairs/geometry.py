"""How a kernel slides over space: the three convolutions of a convolutional layer, and its windows one by one.

Arrays are channels last: h [n, *s, i], weight [*k, i/g, o], output and δ [n, *u, o], g groups. Each of the three is one
convolution with the canonical dimension numbers [n, *s, i]·[*k, i, o] → [n, *u, o], transposed to that form where it is
another: inside a loop XLA's CPU compiler takes 30 to 120 times as long for any other, and every step of training is a
loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Float
from jbp.pairs.routes import route_back, route_contract, route_forward

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """Of one convolution, d numbers each: kernel, stride, padding (low, high), dilation; and its groups."""

    kernel: Shape
    stride: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape
    groups: int = 1

    @property
    def dims(self) -> int:
        """d."""
        return len(self.kernel)

    @property
    def span(self) -> Shape:
        """How many pixels the dilated kernel spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def sites(self, space: Shape) -> Shape:
        """*u: where the kernel stands, in a space *s; not positive where it is larger than the padded space."""
        return tuple(
            (s + low + high - r) // stride + 1
            for s, (low, high), r, stride in zip(space, self.padding, self.span, self.stride, strict=True)
        )

    @property
    def turned(self) -> Geometry:
        """On the way back: at every place that δ, spread and padded, leaves it."""
        return Geometry(self.kernel, (1,) * self.dims, ((0, 0),) * self.dims, self.dilation, self.groups)

    @property
    def lines(self) -> Geometry:
        """Of all axes but the last, at every place of which it is: how the kernel's rows slide over rows of pixels."""
        last: Any = ((1,), (1,), ((0, 0),), (1,))
        sizes = (self.kernel, self.stride, self.padding, self.dilation)
        return Geometry(*(given[:-1] + one for given, one in zip(sizes, last, strict=True)))

    def around(self, space: Shape, sites: Shape) -> tuple[tuple[int, int], ...]:
        """On the way back: the zeros that δ, spread by the stride, needs around it, so that the answer fills *s."""
        found = []
        for s, u, stride, (low, _), r in zip(space, sites, self.stride, self.padding, self.span, strict=True):
            before = r - 1 - low
            found.append((before, s - ((u - 1) * stride + 1) - before + r - 1))
        return tuple(found)

    def forward(self, h: Float[Array, "n *s i"], weight: Float[Array, "*k i/g o"]) -> Float[Array, "n *u o"]:
        """y[n,u,o] = Σₖᵢ h[n, u·stride + k·dilation − low, i] weight[k,i,o]."""

        def convolution(h: Array, weight: Array) -> Array:
            return _convolved(h, weight, self.stride, self.padding, (1,) * self.dims, self.dilation, self.groups)

        return route_forward(self, convolution, h, weight)

    def back(
        self, delta: Float[Array, "n *u o"], weight: Float[Array, "*k i/g o"], space: Shape
    ) -> Float[Array, "n *s i"]:
        """δ_h: δ with stride − 1 zeros between its sites, under the kernel turned round, with i and o exchanged."""
        around = self.around(space, delta.shape[1:-1])

        def convolution(delta: Array, weight: Array) -> Array:
            d, g = self.dims, self.groups
            *k, i, o = weight.shape
            turned = jnp.flip(weight, tuple(range(d))).reshape(*k, i, g, o // g)
            turned = jnp.moveaxis(turned, (d + 2, d + 1, d), (d, d + 1, d + 2)).reshape(*k, o // g, g * i)
            return _convolved(delta, turned, (1,) * d, around, self.stride, self.dilation, g)

        return route_back(self, space, convolution, delta, weight)

    def contract(self, h: Float[Array, "n *s i"], delta: Float[Array, "n *u o"]) -> Float[Array, "*k i/g o"]:
        """Σₙᵤ h[n, u·stride + k·dilation − low, i] δ[n,u,o]: h convolved with δ, in which n is the channels."""

        def convolution(h: Array, delta: Array) -> Array:
            d, g = self.dims, self.groups
            n, *space, i = h.shape
            parts = h.reshape(n, *space, g, i // g)
            left = jnp.moveaxis(parts, (d + 2, d + 1, 0), (0, d + 1, d + 2)).reshape(i // g, *space, g * n)
            right = jnp.moveaxis(delta, 0, d)
            padding = []
            for s, u, stride, (low, _), k, dilation in zip(
                space, delta.shape[1:-1], self.stride, self.padding, self.kernel, self.dilation, strict=True
            ):
                padding.append((low, (k - 1) * dilation + (u - 1) * stride + 1 - s - low))
            found = _convolved(left, right, self.dilation, tuple(padding), (1,) * d, self.stride, g)
            return jnp.moveaxis(found, 0, d)

        return route_contract(self, convolution, h, delta)

    def windows(self, h: Float[Array, "n *s i"]) -> Float[Array, "n *u k i"]:
        """What the kernel sees at each of its sites, k the product of its sizes: slices, nothing is multiplied."""
        return jnp.stack(self.slices(jnp.pad(h, ((0, 0), *self.padding, (0, 0)))), -2)

    def slices(self, padded: Float[Array, "n *p i"]) -> list[Float[Array, "n *u i"]]:
        """Of a space padded already, what each place of the kernel sees, place after place."""
        found = []
        n, *space, i = padded.shape
        for at in np.ndindex(*self.kernel):
            begin = [k * d for k, d in zip(at, self.dilation, strict=True)]
            end = [b + s - r + 1 for b, s, r in zip(begin, space, self.span, strict=True)]
            found.append(lax.slice(padded, (0, *begin, 0), (n, *end, i), (1, *self.stride, 1)))
        return found

    def spread(self, parts: list[Float[Array, "n *u i"]], space: Shape) -> Float[Array, "n *s i"]:
        """The transpose of `slices`, cut to the space *s: what each place gives back, added up where places overlap."""
        sums = None
        for at, part in zip(np.ndindex(*self.kernel), parts, strict=True):
            config = [(0, 0, 0)]
            for k, d, u, s, stride, (low, _) in zip(
                at, self.dilation, part.shape[1:-1], space, self.stride, self.padding, strict=True
            ):
                before = k * d - low
                config.append((before, s - ((u - 1) * stride + 1) - before, stride - 1))
            placed = lax.pad(part, jnp.zeros((), part.dtype), (*config, (0, 0, 0)))
            sums = placed if sums is None else sums + placed
        assert sums is not None
        return sums

    @property
    def tiles(self) -> bool:
        """Whether the windows stand side by side: none sees a pixel of another, and there is no padding."""
        return self.stride == self.kernel and set(self.padding) == {(0, 0)} and set(self.dilation) == {1}

    def tiled(self, values: Float[Array, "n *u c"], space: Shape) -> Float[Array, "n *s c"]:
        """Of windows side by side, the value of its window at each pixel of a space *s; 0 where no window is."""
        n, *sites, c = values.shape
        d = self.dims
        form = [size for pair in zip(sites, self.kernel, strict=True) for size in pair]
        found = lax.broadcast_in_dim(values, (n, *form, c), (0, *range(1, 2 * d, 2), 2 * d + 1))
        covered = [u * k for u, k in zip(sites, self.kernel, strict=True)]
        found = found.reshape(n, *covered, c)
        beyond = ((0, s - t, 0) for s, t in zip(space, covered, strict=True))
        return lax.pad(found, jnp.zeros((), values.dtype), ((0, 0, 0), *beyond, (0, 0, 0)))

    def summed(self, values: Float[Array, "n *s g"]) -> Float[Array, "n *u g"]:
        """The sum over what the kernel sees at each of its sites."""
        ones = (1,) * (self.dims + 2)
        return lax.reduce_window(
            values,
            np.zeros((), values.dtype),  # JAX must see that it is 0, or it knows no derivative of the sum
            lax.add,
            (1, *self.kernel, 1),
            (1, *self.stride, 1),
            ((0, 0), *self.padding, (0, 0)),
            ones,
            (1, *self.dilation, 1),
        )

    def largest(self, values: Float[Array, "n *s c"]) -> Float[Array, "n *u c"]:
        """The largest of what the kernel sees at each of its sites."""
        ones = (1,) * (self.dims + 2)
        sides = ((0, 0), *self.padding, (0, 0))
        window, stride, dilation = ((1, *sizes, 1) for sizes in (self.kernel, self.stride, self.dilation))
        return lax.reduce_window(values, -np.inf, lax.max, window, stride, sides, ones, dilation)

    def unsummed(self, values: Float[Array, "n *u g"], space: Shape) -> Float[Array, "n *s g"]:
        """The transpose of `summed`, on a space *s: at each pixel the sum over the sites that see it."""
        if self.tiles:
            return self.tiled(values, space)
        padding = self.around(space, values.shape[1:-1])
        config = (
            (0, 0, 0),
            *((low, high, stride - 1) for (low, high), stride in zip(padding, self.stride, strict=True)),
        )
        spread = lax.pad(values, jnp.zeros((), values.dtype), (*config, (0, 0, 0)))
        return self.turned.summed(spread)


def _convolved(
    left: Array, right: Array, stride: Shape, padding: Any, spread: Shape, dilation: Shape, groups: int
) -> Array:
    """[n, *s, i]·[*k, i/g, o] → [n, *u, o], `left` spread by zeros."""
    d, space, kernel = len(stride), left.shape[1:-1], right.shape[:-2]
    rest = (tuple(stride), tuple(padding), tuple(spread), tuple(dilation), groups)
    if jnp.iscomplexobj(left) or jnp.iscomplexobj(right):
        return _in_real_parts(left, right, rest)
    numbers = lax.ConvDimensionNumbers(
        (0, d + 1, *range(1, d + 1)), (d + 1, d, *range(d)), (0, d + 1, *range(1, d + 1))
    )
    exchanged = groups == 1 and math.prod(kernel) > math.prod(space)
    if exchanged:
        # XLA makes the smaller of the two the kernel, with dimension numbers that are not canonical: so do it here.
        sizes = zip(space, spread, kernel, dilation, padding, strict=True)
        padding = tuple(
            ((s - 1) * by - (k - 1) * apart + low, (s - 1) * by - (k - 1) * apart + high)
            for s, by, k, apart, (low, high) in sizes
        )
        # y[u] = Σₖ left[u + k] right[k] has u on the side of left alone: both turned round, it is on the side of right.
        right, left = (jnp.flip(a, tuple(range(at, at + d))) for a, at in ((left, 1), (right, 0)))
        left, right = jnp.moveaxis(left, -1, 0), jnp.moveaxis(right, 0, -1)
        spread, dilation = dilation, spread
    found = lax.conv_general_dilated(
        left, right, stride, padding, spread, dilation, numbers, feature_group_count=groups
    )
    return jnp.swapaxes(found, 0, -1) if exchanged else found


def convolved_in_real_parts(left: Array, right: Array, rest: tuple[Any, ...]) -> Array:
    """The convolution of complex numbers, their parts apart: XLA's own loses an imaginary part of 1e-20, which
    is what a complex step is made of. A program under this name, by which the complex step knows it as analytic."""
    (a, b), (c, d) = ((jnp.real(part), jnp.imag(part)) for part in (left, right))
    real = _convolved(a, c, *rest) - _convolved(b, d, *rest)
    return lax.complex(real, _convolved(a, d, *rest) + _convolved(b, c, *rest))


_in_real_parts = jax.jit(convolved_in_real_parts, static_argnums=2)
