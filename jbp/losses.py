"""Losses: of one example, the value, its δ, and a square root of its Hessian.

The last axis of an output holds the outputs k (classes, or targets of a regression); axes before it are positions t
of a sequence. Every loss is *summed* over k and averaged over t; `mean_squared_error` alone divides by k. Nothing
here divides by the number of examples: that is a weight (`jbp.value_and_grad`).

Names follow optax, but for the reduction, which is stated above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Bool, Float
from jbp.arguments import as_target_values, refuse_targets
from jbp.layers.activations import softmax

__all__ = [
    "CrossEntropy",
    "L2Loss",
    "Loss",
    "Mask",
    "MeanSquaredError",
    "SigmoidBinaryCrossEntropy",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "Target",
    "cross_entropy",
    "l2_loss",
    "mean_squared_error",
    "sigmoid_binary_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
]


def __dir__() -> list[str]:
    return __all__


Target = Any
ROUNDING = 1e-6
"""By how much a share may lie outside [0, 1]: scaled columns end at 1 + 2e-16, and in float32 that is 1."""
Mask = Bool[Array, "*t"] | None


class Loss:
    """A loss of one example, as three pure functions of its output and target.

    Laws: `delta` is ∂value/∂output; the columns v of `sqrt_hessian` satisfy Σᵥ sᵥ sᵥᵀ = ∂²value/∂output².
    A subclass is a frozen dataclass; `sqrt_hessian` may be left out, and then only what needs it refuses.

    `mask` [*t], True where a position is real, makes the mean over positions one over the real ones (0 if there is
    none); what stands at the others changes nothing. It is the third argument of each function, None if there is
    none; a loss of your own may leave it out, and then a batch with a mask is refused.

    Which targets a loss takes is its *domain*: `check_targets` looks at them before they reach compiled code, which
    cannot refuse a value.
    """

    def value(self, output: Float[Array, "*t k"], target: Target, *mask: Any, **named: Any) -> Float[Array, ""]:
        """e(output, target), a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no value")

    def delta(self, output: Float[Array, "*t k"], target: Target, *mask: Any, **named: Any) -> Float[Array, "*t k"]:
        """∂e/∂output."""
        raise NotImplementedError(f"{type(self).__name__} has no delta")

    def sqrt_hessian(
        self, output: Float[Array, "*t k"], target: Target, *mask: Any, **named: Any
    ) -> Float[Array, "v *t k"]:
        """Columns v, first axis, with Σᵥ sᵥ sᵥᵀ = ∂²e/∂output²."""
        raise NotImplementedError(f"{type(self).__name__} has no sqrt_hessian, which this quantity needs")

    def predict(self, output: Float[Array, "*t k"]) -> Array:
        """What an output says: classes [*t] (integers), answers [*t, k] (bools) or values [*t, k] (floats)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what an output predicts: give it a predict")

    def check_targets(
        self, targets: Any, output: tuple[int, ...], name: str = "y", counts: Bool[Any, "n *t"] | None = None
    ) -> None:
        """Refuse targets [n, ...] outside the loss's domain; here NaN and infinities, for a loss that states none.

        `targets` are the values as their owner has them, before anything narrows them: arrays that are not traced,
        NumPy's or JAX's. `output` is the shape of one output. Where `counts` is False, of rows or of positions,
        anything may stand.

        Raises:
            ValueError: naming the first row that is outside.
        """
        for leaf in jax.tree.leaves(targets):
            values = as_target_values(name, leaf)
            refuse_targets(name, values, np.isfinite(values), "finite numbers", counts)

    def __repr__(self) -> str:
        """The name under which jbp offers the loss."""
        return _name(type(self).__name__)


class _OfValues(Loss):
    """A loss whose outputs are values."""

    def predict(self, output: Array) -> Array:
        """The output itself."""
        return output

    def check_targets(self, targets: Any, output: tuple[int, ...], name: str = "y", counts: Any = None) -> None:
        """Finite numbers, of the output's shape."""
        values = _shaped(self, targets, output, name)
        refuse_targets(name, values, np.isfinite(values), "finite numbers", counts)


class _OfClasses(Loss):
    """A loss whose outputs are the scores of k ≥ 2 classes."""

    def predict(self, output: Array) -> Array:
        """The class of the largest output."""
        return output.argmax(-1)

    def check_targets(self, targets: Any, output: tuple[int, ...], name: str = "y", counts: Any = None) -> None:
        """Integers 0…k−1, one a position, or distributions over the k classes: no entry below 0, and a sum of 1.

        The sum may be off by a hundredth, as tables are rounded.
        """
        values, k = np.asarray(targets), output[-1]
        plain = values.dtype.kind in "iu" and k > 1 and values.shape[1:] == output[:-1] and values.size > 0
        if plain and counts is None and values.min() >= 0 and values.max() < k:  # as nearly always, at once
            return
        values = as_target_values(name, values)
        if _is_index(
            self, jax.ShapeDtypeStruct(output, np.float32), jax.ShapeDtypeStruct(values.shape[1:], values.dtype)
        ):
            sound = (values >= 0) & (values < k)
            refuse_targets(
                name, values, sound, f"classes 0…{k - 1}, for the net has {k} outputs", counts, "correct the labels"
            )
            return
        wide = values.astype(np.float64)
        refuse_targets(name, values, wide >= -ROUNDING, "distributions, with no entry below 0", counts)
        sums = wide.sum(-1)
        slack = max(0.01, k * float(jnp.finfo(values.dtype).eps) if jnp.issubdtype(values.dtype, jnp.floating) else 0.0)
        advice = "divide by the sum, and give rows that are not to count the weight 0"
        refuse_targets(name, sums, abs(sums - 1) <= slack, "distributions, which add up to 1", counts, advice)


@dataclass(frozen=True, repr=False)
class SquaredError(_OfValues):
    """e = Σ (p − y)², δ = 2(p − y), Hessian 2I (lectures B and D)."""

    def value(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """Σₖ (p − y)²."""
        return _mean_over_positions(_over_outputs(jnp.square(_error(self, output, target))), mask)

    def delta(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """2(p − y)."""
        return _per_position(2 * _error(self, output, target), mask)

    def sqrt_hessian(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """√2 I."""
        return _diagonal_columns(jnp.full_like(output, math.sqrt(2)), mask)


@dataclass(frozen=True, repr=False)
class L2Loss(_OfValues):
    """e = ½ Σ (p − y)², δ = p − y, Hessian I (lecture A)."""

    def value(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """½ Σₖ (p − y)²."""
        return 0.5 * _mean_over_positions(_over_outputs(jnp.square(_error(self, output, target))), mask)

    def delta(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """p − y."""
        return _per_position(_error(self, output, target), mask)

    def sqrt_hessian(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """I."""
        return _diagonal_columns(jnp.ones_like(output), mask)


@dataclass(frozen=True, repr=False)
class MeanSquaredError(_OfValues):
    """e = 1/k Σ (p − y)² over the k outputs, δ = 2(p − y)/k, Hessian 2I/k (lecture E)."""

    def value(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """1/k Σₖ (p − y)²."""
        squares = jnp.square(_error(self, output, target))
        return squares.mean() if mask is None else _mean_over_positions(squares.mean(-1), mask)

    def delta(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """2(p − y)/k."""
        error = _error(self, output, target)
        return error * (2 / output.size) if mask is None else _per_position(error * (2 / output.shape[-1]), mask)

    def sqrt_hessian(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """√(2/k) I."""
        return _diagonal_columns(jnp.full_like(output, math.sqrt(2 / _classes(output))), mask)


@dataclass(frozen=True, repr=False)
class SoftmaxCrossEntropy(_OfClasses):
    """e = −Σ tᵢ log softmax(s)ᵢ on logits s; for Σt = 1, δ = softmax(s) − t, Hessian diag(p) − ppᵀ (lecture E).

    The target is a class index 0…k−1 (integer, one per position) or a distribution t over the k classes. For t that
    does not add up to 1 the softmax is weighted by Σt, so that δ is the derivative all the same. Finite for all
    finite logits. A class index outside 0…k−1 cannot be refused in compiled code: there the value is NaN (of
    an index of more than 32 bits, JAX reads the lowest 32). `check_targets` refuses both. One class is refused.
    """

    def value(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """Σt · logsumexp(s − m) + ⟨t, m − s⟩, m the largest of s: nothing large is added that is then taken away."""
        axis = output.ndim - 1
        largest = lax.stop_gradient(lax.reduce_max(output, (axis,)))  # whatever it is, the value is the same
        below = output - jnp.expand_dims(largest, axis)
        lse = lax.log(lax.reduce_sum(lax.exp(below), (axis,)))
        if _is_index(self, output, target):
            return _mean_over_positions(lse - _picked(below, target), mask)
        t = jnp.asarray(target, output.dtype)
        # A class with t = 0 takes no part, not even if its logit is −inf.
        return _mean_over_positions(t.sum(-1) * lse - jnp.where(t == 0, jnp.zeros_like(t), t * below).sum(-1), mask)

    def delta(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """softmax(s) Σt − t."""
        p = softmax.value(output)
        if _is_index(self, output, target):
            # Added in place at the class, which XLA counts (and computes) as less than subtracting a one-hot t.
            # And divided before it, or XLA divides anew for each that reads δ, and keeps as many copies.
            t = _positions(output) if mask is None else 1
            p = p / t if t > 1 else p
            once = _added(p, target, lax.full(jnp.shape(target), -1 / t, p.dtype))
            return once if mask is None else _per_position(once, mask)
        t = jnp.asarray(target, output.dtype)
        return _per_position(p * t.sum(-1, keepdims=True) - t, mask)

    def sqrt_hessian(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """Column v at each position: √(pᵥ Σt)(eᵥ − p), for which Σᵥ sᵥsᵥᵀ = Σt (diag(p) − ppᵀ)."""
        is_index = _is_index(self, output, target)
        p = softmax.value(output)
        eye = jnp.eye(p.shape[-1], dtype=p.dtype).reshape((1,) * (p.ndim - 1) + (p.shape[-1],) * 2)
        weight = jnp.sqrt(p if is_index else p * jnp.asarray(target, p.dtype).sum(-1, keepdims=True))
        return _block_columns(jnp.expand_dims(weight, -1) * (eye - jnp.expand_dims(p, -2)), mask)


@dataclass(frozen=True, repr=False)
class SigmoidBinaryCrossEntropy(Loss):
    """e = Σ −t log σ(s) − (1−t) log(1−σ(s)) on logits s, one yes-or-no question per output; δ = σ(s) − t.

    Hessian diag(σ(1−σ)). Targets have the output's shape, with entries in [0, 1]. Finite for all finite logits.
    """

    def value(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """Σₖ max(s, 0) − s t + log(1 + e^−|s|)."""
        t = _like(self, output, target)
        positive = jnp.maximum(output, jnp.zeros((), output.dtype))
        return _mean_over_positions(_over_outputs(positive - output * t + jnp.log1p(jnp.exp(-jnp.abs(output)))), mask)

    def delta(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """σ(s) − t."""
        return _per_position(lax.logistic(output) - _like(self, output, target), mask)

    def sqrt_hessian(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """√(σ(s) σ(−s)) on the diagonal."""
        _like(self, output, target)
        return _diagonal_columns(jnp.sqrt(lax.logistic(output) * lax.logistic(-output)), mask)

    def predict(self, output: Array) -> Array:
        """Yes where σ(s) > ½."""
        return output > 0

    def check_targets(self, targets: Any, output: tuple[int, ...], name: str = "y", counts: Any = None) -> None:
        """Numbers in [0, 1], of the output's shape."""
        values = _shaped(self, targets, output, name)
        sound = (values >= -ROUNDING) & (values <= 1 + ROUNDING)
        advice = "write −1/1 as (y + 1) / 2, and counts as shares"
        refuse_targets(name, values, sound, "in [0, 1]: 0 is no and 1 is yes", counts, advice)


@dataclass(frozen=True, repr=False)
class CrossEntropy(_OfClasses):
    """e = −Σ tᵢ log yᵢ on *probabilities* y, such as an explicit softmax layer gives; δ = −t/y, Hessian diag(t/y²).

    Targets as for `softmax_cross_entropy`. Where tᵢ = 0 the class takes no part; where tᵢ > 0 and yᵢ = 0 the value is
    inf and δ is −inf, never NaN. Behind softmax, `softmax_cross_entropy` on the logits is cheaper and always finite.
    Source: lecture B (−log h_y), lecture E (∂L/∂yᵢ = −tᵢ/yᵢ).
    """

    def value(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """−Σₖ t log y."""
        if _is_index(self, output, target):
            return _mean_over_positions(-lax.log(_picked(output, target)), mask)
        t = jnp.asarray(target, output.dtype)
        return _mean_over_positions(-jnp.where(t == 0, jnp.zeros_like(t), t * jnp.log(output)).sum(-1), mask)

    def delta(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """−t/y."""
        if _is_index(self, output, target):
            return _per_position(_added(lax.full_like(output, 0), target, -1 / _picked(output, target)), mask)
        t = jnp.asarray(target, output.dtype)
        return _per_position(-jnp.where(t == 0, jnp.zeros_like(t), t / output), mask)

    def sqrt_hessian(self, output: Array, target: Target, mask: Mask = None) -> Array:
        """√t / y on the diagonal."""
        if _is_index(self, output, target):
            return _diagonal_columns(_added(lax.full_like(output, 0), target, 1 / _picked(output, target)), mask)
        t = jnp.asarray(target, output.dtype)
        return _diagonal_columns(jnp.where(t == 0, jnp.zeros_like(t), jnp.sqrt(t) / output), mask)


squared_error = SquaredError()
l2_loss = L2Loss()
mean_squared_error = MeanSquaredError()
softmax_cross_entropy = SoftmaxCrossEntropy()
sigmoid_binary_cross_entropy = SigmoidBinaryCrossEntropy()
cross_entropy = CrossEntropy()


def _like(loss: Loss, output: Array, target: Target) -> Array:
    """The target in the output's dtype, if it has the output's shape."""
    target = jnp.asarray(_given(target))
    _same_shape(loss, target.shape, output.shape)
    return target.astype(output.dtype)


def _given(target: Any) -> Any:
    if target is None:
        raise ValueError("y must be an array [n, ...], but is None")
    return target


def _same_shape(loss: Loss, target: tuple[int, ...], output: tuple[int, ...]) -> None:
    if target != output:
        raise ValueError(
            f"{loss!r} needs a target of the output's shape {output} for each example, "
            f"but got {target}: reshape the targets (one number per example is [n, 1]) or widen the last layer"
        )


def _shaped(loss: Loss, targets: Any, output: tuple[int, ...], name: str) -> np.ndarray:
    """The values of targets [n, ...] that must have the output's shape."""
    values = as_target_values(name, targets)
    _same_shape(loss, values.shape[1:], output)
    return values


def _error(loss: Loss, output: Array, target: Target) -> Array:
    return output - _like(loss, output, target)


def _is_index(loss: Loss, output: Any, target: Target) -> bool:
    """Whether the target of one example names classes; otherwise it is a distribution over them."""
    shape, dtype = jnp.shape(_given(target)), jnp.result_type(target)
    if output.ndim == 0:
        raise ValueError(f"{loss!r} needs an output with an axis of classes, but got a scalar")
    if output.shape[-1] == 1:
        raise ValueError(
            f"{loss!r} over one output has nothing to choose from, and is 0 whatever it is: for two classes take two "
            "outputs, or one with sigmoid_binary_cross_entropy"
        )
    if shape == output.shape:
        return False
    if shape == output.shape[:-1] and jnp.issubdtype(dtype, jnp.integer):
        return True
    raise ValueError(
        f"{loss!r} on an output of shape {output.shape} needs for each example integer classes of shape "
        f"{output.shape[:-1]} or a distribution of shape {output.shape}, but got {dtype} of {shape}"
    )


# In `lax`'s words: the indexing of jax.numpy takes as long to trace as a small net. A class that there is not reads NaN
# and adds to nothing.


def _picked(output: Float[Array, "*t k"], target: Any) -> Float[Array, "*t"]:
    """output[t, target[t]]."""
    how = lax.GatherDimensionNumbers((), (1,), (1,), operand_batching_dims=(0,), start_indices_batching_dims=(0,))
    rows = output.reshape(-1, output.shape[-1])
    picked = lax.gather(rows, _places(target), how, (1, 1), mode=lax.GatherScatterMode.FILL_OR_DROP)
    return picked.reshape(output.shape[:-1])


def _added(output: Float[Array, "*t k"], target: Any, values: Float[Array, "*t"]) -> Float[Array, "*t k"]:
    """`output` with values[t] added at output[t, target[t]]."""
    how = lax.ScatterDimensionNumbers((), (1,), (1,), operand_batching_dims=(0,), scatter_indices_batching_dims=(0,))
    rows = output.reshape(-1, output.shape[-1])
    rows = lax.scatter_add(rows, _places(target), values.reshape(-1), how, mode=lax.GatherScatterMode.FILL_OR_DROP)
    return rows.reshape(output.shape)


def _places(target: Any) -> Array:
    """Class indices as the column [t, 1] that gather and scatter take; narrow ones widened, for k might not fit."""
    target = jnp.asarray(target)
    return (target.astype(jnp.int32) if jnp.iinfo(target.dtype).bits < 32 else target).reshape(-1, 1)


def _classes(output: Array) -> int:
    return output.shape[-1] if output.ndim else 1


def _positions(output: Array) -> int:
    return math.prod(output.shape[:-1])


def _over_outputs(errors: Array) -> Array:
    """Summed over the outputs k; a scalar output is its own sum."""
    return errors.sum(-1) if errors.ndim else errors


def _mean_over_positions(values: Array, mask: Mask = None) -> Array:
    if mask is None:
        return values.mean() if values.ndim else values
    real = _real(mask, values.shape, values.dtype)
    return jnp.where(mask, values, jnp.zeros_like(values)).sum() / real


def _per_position(delta: Array, mask: Mask = None) -> Array:
    """δ of a mean over positions, from the δ of each."""
    if mask is None:
        return delta / _positions(delta) if _positions(delta) > 1 else delta
    real = _real(mask, delta.shape[:-1], delta.dtype)
    return jnp.where(jnp.expand_dims(mask, -1), delta, jnp.zeros_like(delta)) / real


def _real(mask: Mask, positions: tuple[int, ...], dtype: Any) -> Array:
    """How many positions are real, but at least 1."""
    real = jnp.asarray(mask)
    if not jnp.issubdtype(real.dtype, jnp.bool_):
        raise ValueError(f"a mask must be of bools, True where a position is real, but is of {real.dtype}")
    if real.shape != positions:
        raise ValueError(f"the mask must have the positions {positions} of an output, but has {real.shape}")
    return jnp.maximum(real.sum(dtype=dtype), jnp.ones((), dtype))


def _diagonal_columns(root: Float[Array, "*t k"], mask: Mask = None) -> Float[Array, "v *t k"]:
    """The columns of a diagonal root, v = t·k, scaled by 1/√T for the mean over positions."""
    if mask is not None:
        root = jnp.where(jnp.expand_dims(mask, -1), root, jnp.zeros_like(root))
        flat = root.reshape(-1) / jnp.sqrt(_real(mask, root.shape[:-1], root.dtype))
    else:
        flat = root.reshape(-1) / math.sqrt(_positions(root))
    return jnp.diag(flat).reshape(flat.size, *root.shape)


def _block_columns(roots: Float[Array, "*t k k"], mask: Mask = None) -> Float[Array, "v *t k"]:
    """The columns of a block-diagonal root, one block [v, k] a position, v = t·k, scaled likewise."""
    *lead, k, _ = roots.shape
    positions = math.prod(lead)
    if mask is not None:
        roots = jnp.where(jnp.expand_dims(mask, (-1, -2)), roots, jnp.zeros_like(roots))
        blocks = roots.reshape(positions, k, k) / jnp.sqrt(_real(mask, tuple(lead), roots.dtype))
    else:
        blocks = roots.reshape(positions, k, k) / math.sqrt(positions)
    eye = jnp.eye(positions, dtype=roots.dtype)
    columns = jnp.expand_dims(eye, (1, 3)) * jnp.expand_dims(blocks, 2)
    return columns.reshape(positions * k, *lead, k)


def _name(class_name: str) -> str:
    """SoftmaxCrossEntropy → softmax_cross_entropy."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in class_name).lstrip("_")
