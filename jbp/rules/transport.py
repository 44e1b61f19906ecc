"""Rules that carry δ through other weights than the forward ones: δ_h = δ Bᵀ in place of δ Wᵀ.

Only weights are replaced, that is, every parameter whose pair says that it carries δ back as a matrix does
(`Pair.transports`): of a dense layer, and a kernel, whose δ_h is δ convolved with B in the place of W. Biases, gains
and everything else are as in backpropagation. The gradient of every parameter is the contraction of its pair, as ever;
δ at the output is the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jbp.annotations import Array
from jbp.arguments import as_number, check_one_of
from jbp.backprop import Trainable
from jbp.combine import Visit
from jbp.layer import Layer
from jbp.pairs import widened
from jbp.rules.rule import Bound, Rule, chosen, depths_of, replaced


class Transport(Rule):
    """A rule given by the weights that δ goes back through. A subclass gives `init` and `transport`.

    `weights` is the tree of the parameters with None wherever something else than a weight stands, so that
    `jax.tree.map` over it meets weights only.
    """

    def init(self, key: Array, weights: Any) -> Any:
        """What the rule carries from step to step, made from the initial weights."""
        return ()

    def transport(self, weights: Any, state: Any) -> Any:
        """The weights for the way back, in the tree of `weights`."""
        raise NotImplementedError(f"{type(self).__name__} has no transport")

    def update(self, weights: Any, state: Any, updates: Any) -> tuple[Any, Any]:
        """What is added to the weights, and the state of the next step, given what the optimiser would add.

        `updates` has None for weights that are not trained too.
        """
        return updates, state

    def bind(self, net: Layer, params: Any, x: Any, trainable: Trainable) -> BoundTransport:
        """This rule for this net."""
        return BoundTransport(depths_of(net, params, x), self, trainable.flags(params))


@dataclass(frozen=True)
class BoundTransport(Bound):
    """A `Transport` bound to a net."""

    rule: Transport
    trained: tuple[bool, ...]

    def weights(self, params: Any) -> Any:
        """The weights among the parameters, the rest None."""
        return chosen((depth is not None for depth in self.depths), params)

    def init(self, key: Array, params: Any) -> Any:
        """The rule's state."""
        return self.rule.init(key, self.weights(params))

    def walk_back(self, net: Layer, visit: Visit, params: Any, state: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """The net's own way back, with other weights."""
        back = self.rule.transport(self.weights(params), state)
        return visit((), net, replaced(params, back), saved, delta)

    def after(self, state: Any, params: Any, updates: Any) -> tuple[Any, Any]:
        """The rule's `update`; what is no weight gets the optimiser's."""
        flags = [on and depth is not None for on, depth in zip(self.trained, self.depths, strict=True)]
        own, state = self.rule.update(self.weights(params), state, chosen(flags, updates))
        return replaced(updates, own), state


@dataclass(frozen=True)
class FeedbackAlignment(Transport):
    """δ_h = δ Bᵀ with B fixed and random: each entry ~ N(0, σ²) independently, drawn once; of a kernel B is one too.

    σ is `stddev`, or by default the root mean square of the weight's initial values, so that δ starts at the size
    that it has in backpropagation, whatever the layer's fan; a weight that starts at zero needs a `stddev`. The
    forward weights come to agree with B: the angle between this update and the gradient falls.

    Source: Lillicrap, Cownden, Tweed, Akerman 2016, "Random synaptic feedback weights support error backpropagation
    for deep learning", Nature Communications 7:13276.
    """

    stddev: float | None = None

    def __post_init__(self) -> None:
        if self.stddev is not None:
            object.__setattr__(self, "stddev", as_number(self.stddev, f"the stddev of {type(self).__name__}", 0.0))

    def init(self, key: Array, weights: Any) -> Any:
        """B of each weight."""

        def one(key: Array, weight: Array) -> Array:
            size = root_mean_square(weight) if self.stddev is None else self.stddev
            return size * jax.random.normal(key, weight.shape, weight.dtype)

        return draw(one, key, weights)

    def transport(self, weights: Any, state: Any) -> Any:
        """B."""
        return state


@dataclass(frozen=True)
class KolenPollack(FeedbackAlignment):
    """δ_h = δ Bᵀ where B learns as W does: both get the optimiser's update U of W, and both decay.

        W ← W + U − λW,   B ← B + U − λB,   hence   (W − B) after t steps = (1 − λ)ᵗ (W − B) at the start

    exactly, whatever the updates are, and backpropagation in the end. `decay` is λ, per step, in [0, 1): a larger one
    brings B to W sooner and holds W smaller. B starts as in `FeedbackAlignment`. The B of a weight that is not trained
    stays as it is.

    Source: Kolen, Pollack 1994, "Backpropagation without weight transport"; Akrout et al. 2019, "Deep learning
    without weight transport", arXiv:1904.05391.
    """

    decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "decay", as_number(self.decay, "the decay of KolenPollack", 0.0, 1.0))

    def update(self, weights: Any, state: Any, updates: Any) -> tuple[Any, Any]:
        """U − λW for the weights, B + U − λB for the state."""
        own = jax.tree.map(lambda w, u: None if u is None else u - self.decay * w, weights, updates)
        return own, jax.tree.map(lambda b, u: b if u is None else b + u - self.decay * b, state, updates)


@dataclass(frozen=True)
class SignSymmetry(Transport):
    """δ_h = δ Vᵀ where V has the signs of W and other magnitudes.

        "uniform"     V = s sign(W)
        "batchwise"   V = s M∘sign(W), M ~ U[0, 1) entry by entry, drawn anew for every step
        "fixed"       V = s M∘sign(W), M ~ U[0, 1) entry by entry, drawn once

    s is `scale`: with 1 it is as published, where the size of δ is left to batch normalisation or to updates by sign.
    By default s makes the root mean square of V that of the initial W.

    Source: Liao, Leibo, Poggio 2016, "How important is weight symmetry in backpropagation?", arXiv:1510.05067:
    uniform, batchwise-random-magnitude and fixed-random-magnitude sign-concordant feedback.
    """

    magnitude: Literal["uniform", "batchwise", "fixed"] = "uniform"
    scale: float | None = None

    def __post_init__(self) -> None:
        check_one_of(self.magnitude, "the magnitude of SignSymmetry", ("uniform", "batchwise", "fixed"))
        if self.scale is not None:
            object.__setattr__(self, "scale", as_number(self.scale, "the scale of SignSymmetry", 0.0))

    def init(self, key: Array, weights: Any) -> Any:
        """s of each weight, or s M; of "batchwise" also what M is drawn from: a key and the number of the step."""

        def size(weight: Array) -> Array:
            if self.scale is not None:
                return jnp.full((), self.scale, weight.dtype)
            spread = 1.0 if self.magnitude == "uniform" else 3**0.5  # E M² = 1/3
            return spread * root_mean_square(weight)

        sizes = jax.tree.map(size, weights)
        if self.magnitude == "uniform":
            return sizes
        if self.magnitude == "fixed":
            return jax.tree.map(jnp.multiply, sizes, draw(_magnitudes, key, weights))
        return sizes, jax.random.key_data(key), jnp.zeros((), jnp.int32)

    def transport(self, weights: Any, state: Any) -> Any:
        """V."""
        if self.magnitude == "batchwise":
            sizes, key_data, step = state
            key = jax.random.fold_in(jax.random.wrap_key_data(key_data), step)
            state = jax.tree.map(jnp.multiply, sizes, draw(_magnitudes, key, weights))
        return jax.tree.map(lambda s, w: s * jnp.sign(w), state, weights)

    def update(self, weights: Any, state: Any, updates: Any) -> tuple[Any, Any]:
        """The optimiser's; "batchwise" counts the step."""
        if self.magnitude == "batchwise":
            sizes, key_data, step = state
            state = sizes, key_data, step + 1
        return updates, state


def root_mean_square(weight: Array) -> Array:
    """√(mean of the squares), over the layers of a stack too."""
    square = jnp.square(widened(weight)).mean()
    return jnp.sqrt(square).astype(weight.dtype)


def draw(one: Callable[[Array, Array], Array], key: Array, weights: Any) -> Any:
    """`one(key, weight)` of every weight, each with a key of its own."""
    leaves, structure = jax.tree.flatten(weights)
    return structure.unflatten([one(k, w) for k, w in zip(jax.random.split(key, len(leaves)), leaves, strict=True)])


def _magnitudes(key: Array, weight: Array) -> Array:
    return jax.random.uniform(key, weight.shape, weight.dtype)
