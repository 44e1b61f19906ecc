"""A step's sums in parts: as many examples as fit, one part after another, then one update.

The sums of a `Method` add up over the examples. So a batch is cut into parts, each with its rows' places in the whole
batch, from which everything drawn follows, and weights that were divided by the whole batch's; the parts are summed in
a loop, and `finish`, with a private run's noise, comes once after it. The result is that of the whole batch, to the
rounding of another order of summation, and of the activations only one part's are alive. Beside
them there is one gradient, the sum; under `repeat` two, for there a part's is made whole before it is added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from jbp.annotations import Array
from jbp.arguments import as_count
from jbp.backprop import Batch
from jbp.combine.coupling import words_of_coupling
from jbp.meshes import added_up


def check_parts(problem: Any, accumulate: Any, batch_size: int | None = None) -> int:
    """`accumulate` as an int, if batches (of so many examples) may be cut into so many parts.

    Raises:
        ValueError: if it is no number of parts, or what the parts make does not add up: saying what, and why.
    """
    parts = as_count(accumulate, "accumulate")
    if batch_size is not None and parts > batch_size:
        raise ValueError(f"accumulate must be at most batch_size, {batch_size}, but is {parts}: a part has an example")
    if parts == 1 or problem.additive:
        return parts
    if not problem.method.additive:
        raise ValueError(
            f"accumulate needs a method whose sums add up over the parts of a batch, but {problem.method!r} updates on "
            "the way: leave accumulate out"
        )
    coupling = words_of_coupling(problem.net, True) or f"{problem.net!r} observes"
    raise ValueError(
        f"accumulate cuts the batch into parts, but {coupling} the examples of a batch in training, and a part is not "
        "the whole: leave accumulate out, or normalise each example by itself, with GroupNorm or LayerNorm"
    )


def check_draws(problem: Any, key: Array, who: str = "accumulate") -> None:
    """Refuse random numbers that would be others in parts: whether an example draws by its place alone, whoever stands
    beside it, is up to JAX's generator.

    Raises:
        ValueError: saying which one to take.
    """
    draws = problem.net.uses_key is not False or problem.transform is not None
    name = str(jax.random.key_impl(key))
    by_place = name == "threefry2x32" and jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if draws and not by_place:
        raise ValueError(
            f"{who} cuts the batch into parts, which by the random numbers of {name} would draw otherwise than "
            f"the whole: take JAX's default, threefry2x32 with jax_threefry_partitionable, or leave {who} out"
        )


def numbered(batch: Batch) -> Batch:
    """The batch with the weights and the places in it of its rows, so that it may be cut."""
    n = len(jax.tree.leaves(batch.y)[0])
    weights = jnp.full(n, 1 / n, jnp.zeros(()).dtype) if batch.weights is None else batch.weights
    return batch._replace(weights=weights, rows=jnp.arange(n) if batch.rows is None else batch.rows)


def in_parts(sums: Callable[[Batch], Any], batch: Batch, parts: int) -> Any:
    """`sums(batch)`, as the sum over so many parts of equal size, or as many as there are examples. The weights of the
    batch are final; a last part that is short is filled up with rows of weight 0."""
    n = len(jax.tree.leaves(batch.y)[0])
    size = -(-n // parts)
    parts = -(-n // size)
    short = parts * size - n
    batch = numbered(batch)
    weights, rows = batch.weights, batch.rows

    def cut(a: Any) -> Any:
        """[n, ...] as [parts, size, ...]; what fills the last part up are copies of the first rows."""
        a = jnp.asarray(a)
        return (jnp.concatenate([a, a[:short]]) if short else a).reshape(parts, size, *a.shape[1:])

    counted = jnp.concatenate([weights, jnp.zeros(short, weights.dtype)]).reshape(parts, size)
    x, y, mask = (jax.tree.map(cut, tree) for tree in (batch.x, batch.y, batch.mask))
    return added_up(sums, Batch(x, y, counted, mask, cut(rows)))


def no_value_fn(params: Any) -> NoReturn:
    """What an optimiser is handed in the place of the step's loss, where the batch is in parts.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "the optimiser asks for the loss at other parameters, which takes the whole batch at once: leave "
        "accumulate out, or take an optimiser that looks at gradients only"
    )
