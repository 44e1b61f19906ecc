"""Data of `fit` that have a mask: sequences of different lengths, padded, as (x, y, mask)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jbp.annotations import Array
from jbp.arguments import check_one_of
from jbp.combine.coupling import coupling_layers
from jbp.inputs import check_mask
from jbp.rows import is_streamed
from jbp.windows import Windows

Per = Literal["example", "token"]


class Masked(NamedTuple):
    """The masks of a run's data, and over what its means are."""

    train: Array | None = None
    validation: Array | None = None
    per_token: bool = False

    @property
    def marks(self) -> tuple[Any, ...]:
        """What tells these masks from others; nothing without one."""
        if self.train is None and self.validation is None:
            return ()
        return (*(np.zeros(0) if m is None else m for m in (self.train, self.validation)), np.asarray(self.per_token))


def without_mask(name: str, data: Any) -> tuple[Any, Array | None]:
    """(x, y) of data (x, y, mask), and the mask on the device; other data as they are, and None.

    Raises:
        ValueError: if the mask is not of bools [n, t] with the positions of x, has an example in which nothing is real,
            or the data are read while they are trained on, or are windows, which are full.
    """
    if not has_mask(data):
        return data, None
    x, y, mask = data
    if is_streamed((x, y)) or any(isinstance(a, Windows) for a in (x, y)):
        raise ValueError(
            f"{name} has a mask, but x or y are windows, which have no padding, or are read while they are trained on: "
            "a mask is for arrays"
        )
    shape = np.shape(x)
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.ndim < 2 or mask.shape != shape[: mask.ndim]:
        raise ValueError(
            f"the third of {name} is a mask, bools {list(shape[:2]) if len(shape) > 1 else '[n, t]'} that are True "
            f"where a position of x is real, but is {mask.dtype} of shape {mask.shape}; example weights are weights="
        )
    try:
        check_mask(mask, len(mask))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return (x, y), jnp.asarray(mask)


def has_mask(data: Any) -> bool:
    """Whether the third of data is one, or was meant to be, and not weights."""
    if not isinstance(data, tuple | list) or len(data) != 3:
        return False
    return np.ndim(data[2]) > 1 or getattr(data[2], "dtype", None) == np.bool_


def refuse_mask(**given: Any) -> None:
    """Refuse data with a mask where nothing is told of it.

    Raises: ValueError, naming the data.
    """
    for name, data in given.items():
        if has_mask(data):
            raise ValueError(f"{name} has a mask, which jbp.fit alone takes: train the seeds one after another with it")


def masked(per: Any, net: Any, train: Any, validation: Any, **others: Any) -> Masked:
    """The masks, if they go with the other arguments, by name; and whether means are over tokens.

    Raises:
        ValueError: for another `per`, one over tokens without a mask, with weights, private training or a layer that
            couples the batch, or a mask with what is not told of it.
    """
    check_one_of(per, "per", ("example", "token"))
    if train is None and per == "token":
        raise ValueError(
            'per="token" counts the real positions of a mask, but train_data has none: give (x, y, mask); without '
            "padding every example has as many tokens, and the mean over examples is the one over tokens"
        )
    if train is not None or validation is not None:
        for name in ("sharding", "transform"):
            if others[name] is not None:
                raise ValueError(
                    f"data with a mask do not go with {name}, which is not told of it: leave one of them out"
                )
    if per == "token":
        for name in ("weights", "private"):
            if others[name] is not None:
                raise ValueError(f'per="token" weighs each example by its tokens, and does not go with {name}')
        if getattr(net, "couples_batch", False):
            layers = " and ".join(coupling_layers(net, True).values())
            raise ValueError(
                f'per="token" weighs each example by its tokens, which {layers} would count once more in the moments '
                'of the batch: take per="example", or a norm of one example, such as jbp.LayerNorm()'
            )
    return Masked(train, validation, per == "token")
