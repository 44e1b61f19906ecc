"""Where the batches of a step come from: sources, and readers, which take a batch out of a chunk inside the program.

A *source* lives on the host. It knows how many steps an epoch has and how many examples each draws, and yields
*chunks*: what a compiled program needs for some steps of an epoch. A *reader* is the static half of that: it says
inside the program which `Batch` step t has, given the chunk. Resident data are one source, whose chunk is the data and
the epoch's order; batches stacked on the way from a disk would be another, and `fit` could not tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Bool, Int
from jbp.arguments import as_count, check_batch_size, check_one_of, check_weights
from jbp.inputs import one_array
from jbp.masks import tokens
from jbp.step import Batch, epoch_keys

_USUAL = 32
"""Examples in a batch where nobody says."""
Sampling = Literal["shuffle", "replacement", "poisson"]


class Reader(Protocol):
    """How a step's batch is taken out of a chunk. Hashable: programs are cached under it."""

    @property
    def every(self) -> int | None:
        """Of a run that is counted in steps, how many lie between two evaluations: its *rounds*, which the loop goes
        through as it does through epochs. None: of one that is counted in epochs."""
        ...

    def prepared(self, chunk: Any, key: Array, epoch: Array) -> Any:
        """The chunk with what is made once, before the loop over its steps; `key` is the run's."""
        ...

    def batch(self, chunk: Any, order_key: Array, step: Array) -> Batch:
        """The batch of step `step` of the epoch, with weights 0 or 1 (or the examples' own, of mean 1), not divided.

        Keys and step are those of `place`."""
        ...


class Draws(NamedTuple):
    """From what the steps of an epoch draw: the keys of order and noise, and how many steps are counted before."""

    order_key: Array
    noise_key: Array
    before: Any


def place(reader: Reader, key: Array, epoch: Any) -> Draws:
    """Of an epoch of the run of this key. What a run that is counted in steps draws follows from the steps it has
    taken, so that evaluating more often changes nothing: its rounds are one epoch."""
    if reader.every is None:
        return Draws(*epoch_keys(key, epoch), 0)
    return Draws(*epoch_keys(key, 1), (epoch - 1) * reader.every)


class Source(Protocol):
    """What `fit` reads its batches from."""

    @property
    def reader(self) -> Reader:
        """How a batch is taken out of a chunk."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """How many examples each step of an epoch draws (on average, by chance); as many as there are steps."""
        ...

    @property
    def weighs(self) -> bool:
        """Whether a step counts by the sum of its batch's weights, and not by `sizes`."""
        ...

    @property
    def block(self) -> int:
        """How many steps lie in one chunk, whose first is a multiple of it."""
        ...

    @property
    def position(self) -> Any:
        """Where it stands after the steps of the last chunk, as JSON; None if that follows from epoch and step."""
        ...

    def go_on(self, position: Any) -> None:
        """Begin where a run was that is taken up again, as `position` said."""
        ...

    def chunk(self, key: Array, epoch: int, first: int, last: int) -> Any:
        """What the reader needs for the steps first…last−1 of an epoch of the run of this key."""
        ...

    def ahead(self, key: Array, epoch: int) -> None:
        """Called while the last steps of an epoch run: whatever can be prepared for the next."""
        ...

    def rows(self, key: Array, epoch: int, step: int) -> np.ndarray | None:
        """Which row of the training data each row of the batch of step `step` is, from 0; None where they have no
        numbers. Asked of a batch in which something went wrong."""
        ...

    def close(self) -> None:
        """When the run is over."""
        ...


class OnDevice(NamedTuple):
    """The chunk of resident data: the data themselves, and the epoch's order (None where each step draws anew)."""

    x: Array
    y: Array
    weights: Array | None
    order: Any
    mask: Array | None = None
    """[n, t]: which positions are real."""


@dataclass(frozen=True)
class Resident:
    """The reader of data that lie on the device: step t has the examples that the order, or a draw of its own, names.

    "shuffle" fills the last batch of an epoch up with rows of weight 0. "poisson" draws every example independently,
    `batch_size` of them on average, into a batch of `capacity` rows; the first ones, if it is too small.

    With weights of the examples' own, a step is divided by the rows it draws: over an epoch that makes the
    weighted mean of all. Divided by the weights that happened to be drawn, they would cancel in a batch of 1, and count
    too little in any other. `per_token`, of data with a mask: an example weighs as many as it has real positions, and a
    step is divided by those it draws, which makes the mean over the batch's tokens.
    """

    sampling: Sampling
    batch_size: int
    n: int
    capacity: int | None = None
    every: int | None = None
    per_token: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", as_count(self.batch_size, "batch_size"))

    @property
    def passes(self) -> int:
        """Steps in which "shuffle" goes once through the data."""
        return -(-self.n // self.batch_size)

    def prepared(self, chunk: OnDevice, key: Array, epoch: Array) -> OnDevice:
        """The chunk with its order, if it came without."""
        return chunk if chunk.order is not None else chunk._replace(order=draw_round(key, epoch, self))

    def chosen(self, chunk: OnDevice, order_key: Array, step: Array) -> tuple[Array, Array | None]:
        """Which rows of the data step `step` has; of those drawn by chance, which are real and do not only fill up."""
        if self.sampling == "poisson":
            assert self.capacity is not None
            return draw_poisson(jax.random.fold_in(order_key, step), self.batch_size, self.n, self.capacity)
        if self.sampling == "replacement":
            return self.drawn(order_key, step), None
        at = step if self.every is None else step % self.every
        return lax.dynamic_slice_in_dim(chunk.order, at * self.batch_size, self.batch_size), None

    def batch(self, chunk: OnDevice, order_key: Array, step: Array) -> Batch:
        """The rows that were chosen, with weight 0 for those that only fill up."""
        chosen, real = self.chosen(chunk, order_key, step)
        weights, divisor = self.counted(step, None if chunk.weights is None else chunk.weights[chosen], real)
        mask = None if chunk.mask is None else chunk.mask[chosen]
        if self.per_token and mask is not None:
            weights = tokens(mask) if weights is None else weights * tokens(mask)
        return Batch(chunk.x[chosen], chunk.y[chosen], weights, mask, divisor=divisor)

    def drawn(self, order_key: Array, step: Array) -> Array:
        """The numbers [B] of the examples that a step draws with replacement."""
        return jax.random.randint(jax.random.fold_in(order_key, step), (self.batch_size,), 0, self.n)

    def counted(self, step: Array, own: Array | None, real: Array | None = None) -> tuple[Array | None, Any]:
        """Weights of a step's rows and what to divide them by, from the examples' own; `real` are no fillers."""
        if self.every is not None:
            step = step % self.passes
        if self.sampling == "shuffle" and self.n % self.batch_size:  # the last is short: what is missing weighs nothing
            real = step * self.batch_size + jnp.arange(self.batch_size) < self.n
        weights = None if real is None else real.astype(jnp.zeros(()).dtype)
        if own is None:
            return weights, None
        weights = own if weights is None else jnp.where(weights == 0, jnp.zeros_like(own), own)
        short = self.n - step * self.batch_size if self.sampling == "shuffle" else self.batch_size
        return weights, jnp.minimum(short, self.batch_size)


class ResidentSource:
    """Data on the device, the order of an epoch made ahead while the steps of the one before run."""

    position = None

    def __init__(
        self, data: tuple[Array, Array], weights: Array | None, reader: Resident, epochs: int, mask: Array | None = None
    ):
        self.data, self.weights, self.reader, self.epochs, self.mask = data, weights, reader, epochs, mask
        self.sizes = sizes_of(reader)
        self.block = len(self.sizes)
        self.weighs = weights is not None or reader.sampling == "poisson" or wanders(reader) or reader.per_token
        self._order: tuple[int, Any] = (0, None)
        self._begun: dict[int, Callable[[], Any]] = {}

    def go_on(self, position: Any) -> None:
        """Nothing: epoch and step say it all."""

    def close(self) -> None:
        """Nothing is open."""

    def chunk(self, key: Array, epoch: int, first: int, last: int) -> OnDevice:
        """The data, and the order of the whole epoch."""
        if self._order[0] != epoch:
            self._order = epoch, self._begin(key, epoch)()
            self._begin_next(key, epoch + 1)
        return OnDevice(*self.data, self.weights, self._order[1], self.mask)

    def ahead(self, key: Array, epoch: int) -> None:
        """Sort the next epoch's order, and begin that of the one after."""
        if epoch < self.epochs:
            self._order = epoch + 1, self._begin(key, epoch + 1)()
            self._begin_next(key, epoch + 2)

    def rows(self, key: Array, epoch: int, step: int) -> np.ndarray:
        """Those that the reader chooses."""
        order_key, _, before = place(self.reader, key, epoch)
        chunk = self.reader.prepared(self.chunk(key, epoch, step, step + 1), key, jnp.asarray(epoch))
        return np.asarray(self.reader.chosen(chunk, order_key, jnp.asarray(before + step))[0])

    def _begin_next(self, key: Array, epoch: int) -> None:
        if epoch <= self.epochs:
            self._begun[epoch] = order_of(key, epoch, self.reader)

    def _begin(self, key: Array, epoch: int) -> Callable[[], Any]:
        return self._begun.pop(epoch, None) or order_of(key, epoch, self.reader)


def of_mean_one(weights: Any, n: int) -> Array | None:
    """Example weights [n] over their mean, so that only their proportions count; None if there are none.

    Raises:
        ValueError: if they are not a finite number ≥ 0 for each example, or all 0.
    """
    if weights is None:
        return None
    wide: Any = weights if isinstance(weights, str) else np.asarray(one_array("weights", weights))
    check_weights(wide, n, least=0.0)
    if not wide.any():
        raise ValueError(f"weights must not all be 0, but the {n} given are: there would be nothing to train on")
    wide = wide / float(wide.max())  # or the sum might overflow
    return jnp.asarray(wide / wide.mean(), jnp.zeros(()).dtype)


def batch_size_of(given: Any, n: int) -> int:
    """The batch size that was given; where None was, 32, or all n examples if there are fewer."""
    return min(_USUAL, n) if given is None else as_count(given, "batch_size")


def batch_sizes(n: int, batch_size: int, sampling: str) -> np.ndarray:
    """How many of the n examples each step of an epoch draws."""
    batch_size = as_count(batch_size, "batch_size")
    check_batch_size(batch_size, n)
    check_one_of(sampling, "sampling", ("shuffle", "replacement"))
    sizes = np.full(-(-n // batch_size), batch_size)
    if sampling == "shuffle":
        sizes[-1] = n - batch_size * (len(sizes) - 1)
    return sizes


def sizes_of(reader: Resident) -> np.ndarray:
    """How many examples each step of an epoch draws, or of a round; of one in which a pass ends, as if it did not."""
    sampling = "shuffle" if reader.sampling == "shuffle" else "replacement"
    sizes = batch_sizes(reader.n, reader.batch_size, sampling)
    return sizes if reader.every is None else np.full(reader.every, reader.batch_size)


def wanders(reader: Resident) -> bool:
    """Whether the short batch of a pass lies at another step in each round, so that what a step counts must be noted
    as it is taken."""
    return reader.every is not None and reader.sampling == "shuffle" and reader.n % reader.batch_size > 0


def order_of(key: Array, epoch: int, reader: Resident) -> Callable[[], Any]:
    """Begin the order of an epoch, or of a round; what it answers with ends it: bit for bit the order that the program
    makes itself, None where each step draws anew.

    On a CPU it is NumPy that sorts, ten times as fast as XLA there. Programs run one after the other: an order that was
    begun before some steps can be ended while they run.
    """
    if reader.sampling != "shuffle":
        return lambda: None
    if reader.every is None:
        return _pass_of(key, epoch, reader)
    size, (skipped, passes) = reader.batch_size, _passes((epoch - 1) * reader.every, reader)
    begun, rows = [_pass_of(key, number, reader) for number in passes], reader.every * size

    def ended() -> Any:
        orders: list[Any] = [order() for order in begun]
        together = np.concatenate if isinstance(orders[0], np.ndarray) else jnp.concatenate
        return together(orders)[skipped * size : skipped * size + rows]

    return ended


def _passes(before: int, reader: Resident) -> tuple[int, range]:
    """Of the round after so many steps: how many of its first pass are over, and which passes it has a part of."""
    assert reader.every is not None
    first, skipped = divmod(before, reader.passes)
    return skipped, range(first + 1, (before + reader.every - 1) // reader.passes + 2)


def _pass_of(key: Array, epoch: int, reader: Resident) -> Callable[[], Any]:
    """The order of a pass through the data, which is begun."""
    n = reader.n
    if jax.default_backend() != "cpu" or not n < 1 << 32:
        order = _order_program(reader)(key, epoch)
        return lambda: order
    bits = _sort_bits(n, _rounds(n))(key, epoch)
    return lambda: _sorted_by(bits, reader.batch_size)


def _sorted_by(rounds: Array, batch_size: int) -> Any:
    """As `jax.random.permutation` shuffles: sort by random bits, ties in the order they were in, some times over.

    In place, for the order may be of more rows than memory holds of anything else.
    """
    n = rounds.shape[1]
    order: Any = np.zeros(n + -n % batch_size, jnp.result_type(int))
    order[:n] = np.arange(n)
    for bits in np.asarray(rounds):
        places = bits.astype(np.uint64)
        places <<= np.uint64(32)
        places |= np.arange(n, dtype=np.uint64)
        places.sort()
        places &= np.uint64(0xFFFFFFFF)
        order[:n] = order[places.view(np.int64)]
    return order


def _rounds(n: int) -> int:
    """How often `jax.random.permutation` sorts, for ties to leave no trace in the result."""
    return math.ceil(3 * math.log(max(1, n)) / math.log(2**32 - 1))


@lru_cache(maxsize=64)
def _sort_bits(n: int, rounds: int) -> Callable[[Array, int], Array]:
    @jax.jit
    def bits(key: Array, epoch: Array) -> Array:
        key, found = epoch_keys(key, epoch)[0], []
        for _ in range(rounds):
            key, subkey = jax.random.split(key)
            found.append(jax.random.bits(subkey, (n,), jnp.uint32))
        return jnp.stack(found) if found else jnp.zeros((0, n), jnp.uint32)

    return bits


@lru_cache(maxsize=64)
def _order_program(reader: Resident) -> Callable[[Array, int], Array]:
    return jax.jit(lambda key, epoch: draw_order(epoch_keys(key, epoch)[0], reader))


def draw_round(key: Array, epoch: Array, reader: Resident) -> Array | None:
    """What `order_of` begins, all of it in the program."""
    if reader.every is None or reader.sampling != "shuffle":
        return draw_order(epoch_keys(key, epoch)[0], reader)
    before, size = (epoch - 1) * reader.every, reader.batch_size
    most = (reader.every + 2 * (reader.passes - 1)) // reader.passes  # passes that a round may have a part of
    first, skipped = before // reader.passes + 1, before % reader.passes
    orders: list[Any] = [draw_order(epoch_keys(key, first + i)[0], reader) for i in range(most)]
    return lax.dynamic_slice_in_dim(jnp.concatenate(orders), skipped * size, reader.every * size)


def draw_order(key: Array, reader: Resident) -> Array | None:
    """A permutation of the examples, filled up with example 0 to whole batches; None where each step draws anew."""
    if reader.sampling != "shuffle":
        return None
    order = jax.random.permutation(key, reader.n)
    return jnp.concatenate([order, jnp.zeros(-reader.n % reader.batch_size, order.dtype)])


def draw_poisson(key: Array, batch_size: int, n: int, capacity: int) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
    """Which examples were drawn, filled up with example 0, and which rows are real.

    Each with probability batch_size / n, rounded down to a multiple of 2⁻³²: never more often than accounted for.
    """
    drawn = jnp.ones(n, bool)
    if batch_size < n:
        drawn = jax.random.bits(key, (n,), jnp.uint32) < jnp.uint32((batch_size << 32) // n)
    (chosen,) = jnp.nonzero(drawn, size=capacity, fill_value=0)
    return chosen, jnp.arange(capacity) < drawn.sum()
