"""Metrics: of one example, a figure in which higher is better, or that says otherwise.

What an output says is its loss's to tell.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import jax.numpy as jnp

from jbp.annotations import Array, Bool, Float
from jbp.arguments import at_least_float32, check_narrowing
from jbp.losses import CrossEntropy, Loss, SoftmaxCrossEntropy


@runtime_checkable
class OfLoss(Protocol):
    """A metric that a problem binds to its loss."""

    def of(self, loss: Loss) -> Any:
        """The metric of this loss."""
        ...


@dataclass(frozen=True)
class Accuracy:
    """The share of right answers, in what the loss says that an output predicts (`Loss.predict`).

    Classes are right where they are the target's, or the largest of a distribution. Answers yes or no are right where
    the target's side of ½ is theirs, each label for itself: of several it is the share of labels. Values are right by
    no threshold, and refused. An output that is NaN is never right. Of a sequence it is the mean over the positions.

    As a metric of `jbp.fit` it is that of the problem's loss. By hand say which:
    `jbp.accuracy.of(loss)(output, target)`. For classes as one-hot rows, trained by a loss of values, take
    `jbp.accuracy.of(jbp.losses.softmax_cross_entropy)`.
    """

    loss: Loss | None = None

    def of(self, loss: Loss) -> Accuracy:
        """The accuracy in what `loss` predicts; one that is bound already stays as it is."""
        return self if self.loss is not None else dataclasses.replace(self, loss=loss)

    def __call__(
        self, output: Float[Array, "*t k"], target: Array, mask: Bool[Array, "*t"] | None = None
    ) -> Float[Array, ""]:
        """Between 0 and 1, in float32 at least.

        Raises:
            ValueError: if it has no loss, or the loss predicts values or something of another shape than the target.
        """
        right = self._right(output, target)
        dtype = at_least_float32(output.dtype)
        if mask is None:
            return right.mean(dtype=dtype)
        shares = right if right.ndim == output.ndim - 1 else right.mean(-1, dtype=dtype)
        real = jnp.maximum(mask.sum(dtype=dtype), jnp.ones((), dtype))
        return jnp.where(mask, shares.astype(dtype), jnp.zeros((), dtype)).sum() / real

    def _right(self, output: Array, target: Any) -> Bool[Array, "..."]:
        """Which positions [*t], or labels of positions [*t, k], are right."""
        check_narrowing("the target", target)
        loss, target = self.loss, jnp.asarray(target)
        if loss is None:
            raise ValueError("accuracy depends on what an output predicts: say jbp.accuracy.of(loss)(output, target)")
        said = loss.predict(output)
        known = ~jnp.isnan(output)
        if said.dtype == jnp.bool_:
            if target.shape != said.shape:
                raise ValueError(f"accuracy of {loss!r} needs targets {said.shape}, but got {target.shape}")
            known = known & (target == target)
            return (said == (target.astype(at_least_float32(output.dtype)) > 0.5)) & known
        if not jnp.issubdtype(said.dtype, jnp.integer):
            raise ValueError(
                f"{loss!r} predicts values, which are right by no threshold: leave accuracy out or, for classes as "
                "one-hot rows, take jbp.accuracy.of(jbp.losses.softmax_cross_entropy)"
            )
        if output.shape[-1] == 1:
            raise ValueError(
                f"accuracy of {loss!r} over one output is always 1: take two outputs, or one yes-or-no loss"
            )
        wanted = target
        if target.shape == output.shape:
            known, wanted = known & (target == target), target.argmax(-1)
        if wanted.shape != said.shape:
            raise ValueError(
                f"accuracy of {loss!r} on outputs {output.shape} needs classes {said.shape} or "
                f"distributions {output.shape}, but got {target.shape}"
            )
        if not jnp.issubdtype(wanted.dtype, jnp.integer):
            raise ValueError(f"accuracy of {loss!r} needs classes as whole numbers, but got {wanted.dtype}")
        # In whichever of the two types is wider: a class that a narrow one does not hold must not wrap to one it does.
        wide = wanted.dtype if jnp.iinfo(wanted.dtype).bits >= 32 else jnp.int32
        return (said.astype(wide) == wanted.astype(wide)) & known.all(-1)


accuracy = Accuracy()


@dataclass(frozen=True)
class _OfProbability:
    """A figure of −log p, the loss of a model of what comes next, in which lower is better."""

    loss: Loss | None = None
    lower: ClassVar[bool] = True
    """That lower is better, which `jbp.fit(monitor=)` looks at."""

    def of(self, loss: Loss) -> Self:
        """That of `loss`; one that is bound already stays as it is.

        Raises:
            ValueError: for a loss that is not −log p of a class.
        """
        if self.loss is not None:
            return self
        if not isinstance(loss, SoftmaxCrossEntropy | CrossEntropy):
            raise ValueError(
                f"{type(self).__name__} is of a loss −log p, softmax_cross_entropy or cross_entropy, not of {loss!r}"
            )
        return dataclasses.replace(self, loss=loss)

    def _nats(self, output: Array, target: Any, mask: Any) -> Float[Array, ""]:
        if self.loss is None:
            raise ValueError(f"say of which loss: {type(self).__name__}().of(loss)(output, target)")
        return self.loss.value(output, target, mask).astype(at_least_float32(output.dtype))


@dataclass(frozen=True)
class BitsPerToken(_OfProbability):
    """−log₂ p of an example, the mean over its positions: what its next token costs, in bits. Lower is better.

    Of a text whose tokens are characters it is bits per character.
    """

    def __call__(self, output: Float[Array, "*t k"], target: Array, mask: Any = None) -> Float[Array, ""]:
        """The loss in bits."""
        return self._nats(output, target, mask) / math.log(2)


@dataclass(frozen=True)
class Perplexity(_OfProbability):
    """e to the mean −log p over an example's positions: among how many tokens, equally likely, the net is in doubt.

    Lower is better. Each example has its own, so the mean over examples is a little above e to their mean loss, which
    is the perplexity of all as one text.
    """

    def __call__(self, output: Float[Array, "*t k"], target: Array, mask: Any = None) -> Float[Array, ""]:
        """exp of the loss."""
        return jnp.exp(self._nats(output, target, mask))


bits_per_token = BitsPerToken()
perplexity = Perplexity()
