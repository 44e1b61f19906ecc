"""Which uses of a parameter are real, of pairs that were made with a mask: for what is read from h, which has no 0
there as δ has."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jbp.annotations import Array, Bool, Float
from jbp.inputs import check_mask
from jbp.pairs import Pair, Weights, Window
from jbp.stats.trees import batch

Real = Bool[Array | np.ndarray, "n t"] | None


def check_real(pairs: Any, mask: Any, weights: Weights) -> Any:
    """The mask of these pairs' examples, as an array.

    Raises:
        ValueError: if it is not of bools [n, t], or an example of a weight that is not 0 has nothing real.
    """
    if mask is None:
        return None
    check_mask(mask, batch(pairs), weights)
    return jnp.asarray(mask)


def real_uses(pair: Pair, mask: Any) -> Float[Array, "n t"] | None:
    """What share of its example's real uses each use of a pair [n, t, …] is, 0 of padding; None without a mask, and of
    a parameter that an example uses once, behind the layer that pools over the positions.

    Raises:
        NotImplementedError: if it has other uses than there are positions, of which nobody knows which are real.
    """
    if mask is None:
        return None
    positions = mask.shape[1:]
    if isinstance(pair, Window):
        shape = pair.h.shape[1:-1]
        once = positions not in (shape[i : i + len(positions)] for i in range(len(shape)))
    else:
        if pair.uses == math.prod(positions) > 1:
            real = mask.reshape(len(mask), -1).astype(pair.dtype)
            return real / jnp.maximum(real.sum(1, keepdims=True), jnp.ones((), real.dtype))
        once = pair.uses == 1
    if not once:
        raise NotImplementedError(
            f"a parameter with a {type(pair).__name__} is used {pair.uses} times in an example: which of them are real "
            f"a mask of {list(positions)} positions does not say; cut each example to its length"
        )
    return None
