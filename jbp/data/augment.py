"""Augmentation of images: each example moved and mirrored at random, anew in every epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array, PRNGKeyArray
from jbp.arguments import as_bool, as_count


@dataclass(frozen=True)
class Augment:
    """A pure function (x, key) of ONE image [h, w] or [h, w, c], for `jbp.Problem` and `jbp.fit(transform=)`.

    shift    moved by as many as `shift` pixels down or up and right or left, each from −shift to shift alike likely;
             what comes in from outside is 0
    flip     mirrored, left for right, every second time

    With key None, which is evaluation, the image is as it is. A step draws for each example by its place in the batch,
    from (seed, epoch, step): the same in a run that is resumed, and in every part of a batch that is cut.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", as_count(self.shift, "the shift of Augment", 0))
        object.__setattr__(self, "flip", as_bool(self.flip, "the flip of Augment"))
        if not self.shift and not self.flip:
            raise ValueError("Augment must do something: give it a shift of pixels, flip=True, or both")

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse examples that are no images, or that a shift would push out of the frame.

        Raises:
            ValueError: saying so.
        """
        if len(shape) not in (2, 3):
            raise ValueError(f"{self} needs images [h, w] or [h, w, channels], but one example has shape {shape}")
        if self.shift >= min(shape[:2]):
            raise ValueError(f"{self} needs images larger than its shift, but one example has shape {shape}")

    def __call__(self, x: Any, key: PRNGKeyArray | None) -> Array:
        """The image, moved and mirrored as the key says; without one as it is."""
        x = jnp.asarray(x)
        self.check(x.shape)
        if key is None:
            return x
        shift_key, flip_key = jax.random.split(key)
        if self.flip:
            x = lax.select(jax.random.bernoulli(flip_key), lax.rev(x, (1,)), x)
        if self.shift:
            around = [(self.shift, self.shift, 0)] * 2 + [(0, 0, 0)] * (x.ndim - 2)
            at = jax.random.randint(shift_key, (2,), 0, 2 * self.shift + 1, jnp.int32)
            begin = [*at, *[jnp.int32(0)] * (x.ndim - 2)]
            x = lax.dynamic_slice(lax.pad(x, jnp.zeros((), x.dtype), around), begin, x.shape)
        return x
