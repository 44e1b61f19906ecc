"""What every pair answers, and what the classes of pairs share: weighing δ, silencing rows, joining uses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Float
from jbp.arguments import at_least_float32, dtype_of

Weights = Float[Array | np.ndarray, " n"] | None


class Pairs(Protocol):
    """A tree of pairs in the tree of the parameters, as `jbp.backward` returns it: a name for type checkers.

    At a place, which indices and names lead to as in the parameters, stands a pair or a part of the tree.
    """

    def __getitem__(self, place: Any, /) -> Any:
        """What stands at an index or a name."""
        ...


class Pair(ABC):
    """What a backward pass keeps for one parameter: h, what came in, and δ, of what went out.

    A class is a registered, frozen dataclass. δ is its field `delta`, in which its gradient is linear; whatever else
    it holds (h, an index) is the same for every δ. Arrays are `[*n, t, width]`, read from the back: inside a layer
    there is no n, inside a `Stack` there is an l in front.

    What a statistic must know has no default: a class that leaves one of the answers below open cannot be made, and
    Python's error names what is missing. With them every statistic works, by way of `rows`; a class that knows better
    registers a rule of its own with that statistic (`jbp.stats`).
    """

    @classmethod
    @abstractmethod
    def of(cls, *parts: Any, **options: Any) -> Any:
        """The pair of one example, for the author of a layer: from arrays as the layer has them, without an axis t.

        Axes in front of the parameter's own are uses t; where there are none, there is one use.
        """

    @abstractmethod
    def total(self, weights: Weights = None) -> Array:
        """Σₙ wₙ gₙ, in the parameter's own shape. None means wₙ = 1: the plain sum over the batch."""

    @abstractmethod
    def check(self, shape: tuple[int, ...] | None, axes: int) -> None:
        """Refuse arrays that are not those of a parameter of this `shape` (None: of the shape that the pair names),
        with so many `axes` in front of t: none inside a layer, one (n) in a batch, two (l, n) in a `Stack`.

        The spine asks it of every pair that a layer makes, while it is traced; `check_arrays` serves most classes.

        Raises:
            ValueError: saying what was expected and what came.
        """

    @property
    @abstractmethod
    def batch(self) -> int:
        """N, the number of examples."""

    @property
    @abstractmethod
    def uses(self) -> int:
        """T, of how many terms the gradient of one example is the sum; with 1, none can cancel another."""

    @abstractmethod
    def reach(self) -> Float[Array, " n"]:
        """S = Σₜ ‖hₜ‖‖δₜ‖ [n]: what ‖gₙ‖ would be if no use cancelled another. Never below ‖gₙ‖."""

    @abstractmethod
    def rows(self) -> tuple[Any, ...]:
        """The same gradient in blocks `Outer`, whose Σₜ h ⊗ δ add up to it: what statistics without a rule read.

        Raises:
            NotImplementedError: if there is no gradient of one example.
        """

    @abstractmethod
    def join(self, other: Pair) -> Pair | None:
        """One pair for two uses of the parameter, this one first; None if they are no one pair and must be a `Sum`."""

    @property
    @abstractmethod
    def transports(self) -> bool:
        """Whether its parameter carries δ back as a matrix does, so that a learning rule replaces it there."""

    @abstractmethod
    def over_stack(self, function: Callable[..., Any], *others: Any, axis: int | None = 0) -> Any:
        """`function(pair, *others)` of this pair; of a `Stack` that of every layer's pair, however deep stacks nest.

        The l of the answer stands at `axis`; with None the layers' answers are added up, one layer after another. Of
        `others`, each layer is handed its own part: arrays have l in front, pairs are stacks as this one.
        """

    @property
    def observed(self) -> Array | None:
        """What its parameter is after this pass, whatever the optimiser does: of a `Constant`; of others None."""
        return None

    @property
    def coupled(self) -> str | None:
        """The path of a layer above that couples examples, below which there is no gradient of one example; or None."""
        return None

    @property
    def constant(self) -> bool:
        """Whether its parameter is held fixed, as running moments are: the gradient is 0 whatever the error makes of
        it."""
        return False

    @property
    def in_turn(self) -> bool:
        """Whether the layers of a stack are contracted one after another: side by side, convolutions would be one of as
        many groups, which takes 3 to 100 times as long."""
        return False

    @property
    def dtype(self) -> Any:
        """In what the gradient is: the dtype of its floating-point arrays (an index has another)."""
        return jnp.result_type(*(a.dtype for a in jax.tree.leaves(self) if jnp.issubdtype(a.dtype, jnp.inexact)))


class PerUse(Pair):
    """A pair of arrays [n, t, width], `delta` among them, with a row for each use: what such pairs answer alike."""

    delta: Float[Array, "*n t o"]
    shape: tuple[int, ...]

    @abstractmethod
    def widths(self, shape: tuple[int, ...]) -> dict[str, int]:
        """How wide each array is for a parameter of this shape."""

    def check(self, shape: tuple[int, ...] | None, axes: int) -> None:
        """Refuse arrays that are not [*axes, t, width], with one t, or another parameter's shape."""
        check_arrays(self, shape, axes, self.widths(self.shape if shape is None else shape))

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.delta.shape[0]

    @property
    def uses(self) -> int:
        """T, the rows of an example."""
        return self.delta.shape[1]

    def join(self, other: Pair) -> Any:
        """The uses of two pairs one after another, or None if their class, shape or widths differ.

        t is the axis before the last, whatever comes in front: exact, and no statistic needs cross terms.
        """
        kinds = [(jax.tree.structure(pair), [a.shape[-1] for a in jax.tree.leaves(pair)]) for pair in (self, other)]
        if kinds[0] != kinds[1]:
            return None
        return jax.tree.map(lambda a, b: jnp.concatenate((a, b), -2), self, other)

    def over_stack(self, function: Callable[..., Any], *others: Any, axis: int | None = 0) -> Any:
        """`function` of this pair."""
        return function(self, *others)


def is_pair(node: Any) -> TypeGuard[Pair]:
    """Whether `node` is a pair: the `is_leaf` that walks a tree of pairs."""
    return isinstance(node, Pair)


def check_arrays(pair: Any, shape: tuple[int, ...] | None, axes: int, widths: dict[str, int]) -> None:
    """Refuse a pair whose arrays are not [*axes, t, width] with one t, by the names of its fields; whose h or δ is not
    of floats; or whose `shape` is not the parameter's. `shape` and `axes` as in `Pair.check`.

    Raises:
        ValueError: saying so.
    """
    named, shape = pair.shape, pair.shape if shape is None else shape
    arrays = {name: getattr(pair, name) for name in widths}
    shapes = {name: tuple(a.shape) if hasattr(a, "dtype") else None for name, a in arrays.items()}
    missing = [name for name, found in shapes.items() if found is not None and len(found) < axes + 2]
    sound = all(
        found is not None
        and len(found) == axes + 2
        and found[-1] == widths[name]
        and (name not in ("h", "delta") or jnp.issubdtype(arrays[name].dtype, jnp.inexact))
        for name, found in shapes.items()
    )
    if sound and len({found[:-1] for found in shapes.values() if found}) == 1 and named == shape:
        return
    kind, front = type(pair).__name__, "".join(f"{letter}, " for letter in ("l" * (axes - 1) + "n" * (axes > 0)))
    wanted = " and ".join(f"{name} [{front}t, {width}]" for name, width in widths.items())
    came = " and ".join(
        f"{name} {arrays[name].dtype}{list(found)}" if found is not None else f"{name} a {type(arrays[name]).__name__}"
        for name, found in shapes.items()
    )
    raise ValueError(
        f"{kind} of a parameter of shape {shape} holds {wanted}, of floats, but got {came}"
        + (f" and shape {named!r}" if named != shape else "")
        + (f": {kind}.of(...) takes arrays without an axis t" if missing else "")
    )


def silence(weights: Array | np.ndarray, a: Array) -> Array:
    """`a` [n, ...] with zeros in the rows of weight 0 (or False), by selection: they may hold anything, even NaN."""
    kept = weights.astype(bool).reshape((-1,) + (1,) * (a.ndim - 1))
    return jnp.where(kept, a, jnp.zeros_like(a))


def weigh(weights: Weights, delta: Array) -> Array:
    """wₙ δₙ, where a row of weight 0 becomes exactly 0 whatever it holds: 0·NaN would be NaN. In at least float32, in
    which a weight of 1/100,000 is not 0 and one of 100,000 not infinite."""
    if weights is None:
        return delta
    delta = widened(delta)
    w = as_floats(weights).astype(delta.dtype)
    return silence(w, w.reshape((-1,) + (1,) * (delta.ndim - 1)) * delta)


def as_shares(weights: Array | np.ndarray) -> Array:
    """wₙ/Σw of weights of any size and type, in at least float32; NaN if they add up to 0."""
    w = as_floats(of_size_one(weights))
    # By a power of 2, which changes no bit, so that their sum neither overflows nor is 0.
    w = w * (1 / power_of_2(jnp.abs(w).max(initial=0)))
    return w / w.sum()


def of_size_one(weights: Any) -> Any:
    """NumPy's weights, of which only the proportions count, over a power of 2 near the largest: in float64, before JAX
    makes float32 of them, where 1e-300 would be 0."""
    if not isinstance(weights, np.ndarray) or weights.dtype != np.float64 or not weights.size:
        return weights
    return np.ldexp(weights, -int(np.frexp(np.abs(weights).max())[1]))


def as_floats(weights: Array | np.ndarray) -> Array:
    """Weights in at least float32, whole numbers too."""
    if isinstance(weights, np.ndarray) and not jnp.issubdtype(weights.dtype, jnp.inexact):
        weights = weights.astype(np.float64)  # JAX would cut integers of 64 bits to their lowest 32
    w = jnp.asarray(weights)
    return widened(w) if jnp.issubdtype(w.dtype, jnp.inexact) else w.astype(jnp.zeros(()).dtype)


def power_of_2(a: Array) -> Array:
    """The power of 2 next to each number, so that to multiply or to divide by it rounds nothing; 1 for 0, inf, NaN."""
    dtype = jnp.finfo(a.dtype)
    near = lax.reduce_precision(jnp.minimum(a, 2.0 ** (dtype.maxexp - 2)), dtype.nexp, 0)
    return jnp.where((a > 0) & (a < jnp.inf), near, jnp.ones_like(near))


def widened(tree: Any) -> Any:
    """A tree of arrays, such as a pair, with all that is floating-point in at least float32."""

    def wide(a: Any) -> Any:
        dtype = at_least_float32(dtype_of(a))
        # Behind a barrier: XLA may otherwise leave out that a number was rounded, in one place and not in another.
        return a if dtype == dtype_of(a) else lax.optimization_barrier(jnp.asarray(a)).astype(dtype)

    return jax.tree.map(wide, tree)


def weighed_rows(weights: Weights, delta: Float[Array, "n t o"]) -> Float[Array, "n*t o"]:
    """wₙ δ[n,t,o] with n and t as one axis; in the same words for a weight and its bias, so that XLA does it once."""
    rows = delta.reshape(-1, delta.shape[-1])
    return weigh(None if weights is None else jnp.repeat(as_floats(weights), delta.shape[1]), rows)


def lengths(a: Float[Array, "n t i"]) -> Float[Array, "n t"]:
    """The norm of each use's row, in at least float32."""
    return jnp.sqrt(jnp.square(widened(a)).sum(2))


def last_axis(a: Array) -> Float[Array, "t i"]:
    """[*t, i] as [t, i]. JAX hands the array back if it has that form: a weight's δ and its bias's stay one."""
    return a.reshape(-1, a.shape[-1])


def own_axes(name: str, a: Array, shape: tuple[int, ...]) -> Float[Array, "t o"]:
    """[*t, *shape] as [t, o], where o is the size of a parameter of this shape.

    Raises:
        ValueError: if the last axes are not the parameter's.
    """
    if a.shape[max(a.ndim - len(shape), 0) :] != tuple(shape):
        raise ValueError(f"{name} must be [*t, *shape] of a parameter of shape {tuple(shape)}, but is {a.shape}")
    return a.reshape(-1, math.prod(shape))
