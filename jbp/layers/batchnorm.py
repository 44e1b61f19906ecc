"""Batch normalisation: by the moments of the batch in training, by running moments in evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jbp.annotations import Array, Bool, Float, PRNGKeyArray
from jbp.arguments import as_number, as_shape, at_least_float32, leaf_shapes, needs_floats, same_shape
from jbp.inputs import check_key
from jbp.layer import Layer, Shape
from jbp.pairs import Constant, Scale, Shift, Weights, as_floats, as_shares, widened

Params = dict[str, Array]


class _Saved(NamedTuple):
    """What backward needs."""

    h: Float[Array, "n *s c"]
    """x − μ, in at least float32."""
    inverse: Float[Array, " c"]
    """1/σ."""
    p: Array | tuple[()] | None
    """What each value counts in the moments, [n, ...]; () if all count alike; None in evaluation."""
    moments: Params
    """The running ones, as they are after this pass."""


@dataclass(frozen=True, repr=False)
class BatchNorm(Layer):
    """y = scale∘(x − μ)/σ + bias, with μ and σ² = variance + `epsilon` of each channel, the last axis, over all others.

    In training (`jbp.forward(..., training=True)`, or with a key) they are those of the batch, over its examples and
    space, and the running moments move: running ← m·running + (1 − m)·new with the share m = `momentum` that is kept.
    In evaluation they are the running ones, and the examples are not coupled. Parameters: {"scale", "bias", "mean",
    "var"}, [c] each. Nothing trains the last two: their pair is `Constant`, and the step writes them after the
    optimiser's update, unless `trainable` freezes them.

        forward   x̂ = (x − μ)/σ;  y = scale∘x̂ + bias
        backward  δ_x = scale/σ∘(δ − p∘(Σδ + x̂ Σ(x̂∘δ))), sums over all values of a channel; in evaluation scale/σ∘δ
        gradient  ∂e/∂scale = Σ x̂∘δ,  ∂e/∂bias = Σ δ

    p is what a value counts: 1/N of N values, and with example weights (or a mask of positions) wₙ/Σw, so that a row
    of weight 0 moves nothing, whatever it holds. The batch is normalised by the biased variance Σ p(x − μ)²; the
    running variance takes the unbiased one, N/(N − 1) of it, as PyTorch's does. With weights N is the larger of Σw and
    (Σw)²/Σw², times the places of an example: whole numbers count as so many copies, and weights that are shares, as
    in `jbp.make_step`, count by their effective number, which of equal ones is how many there are. Where that is not
    above 1 the running moments stay.

    In training N = 1 is refused: the output would be the bias. Momentum is the share kept; PyTorch's is 1 − m.

    Source: Ioffe, Szegedy 2015, arXiv:1502.03167; with weights Kish 1965, "Survey Sampling", effective sample size.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    uses_key = False
    couples_batch: ClassVar[bool | Literal["training"]] = "training"
    uses_mask: ClassVar[bool] = True
    observes: ClassVar[bool] = True
    word = "batchnorm"

    def __post_init__(self) -> None:
        for name, high in (("momentum", 1.0), ("epsilon", math.inf)):
            value = as_number(getattr(self, name), f"the {name} of BatchNorm", 0.0, high)
            object.__setattr__(self, name, value)

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[Params, Shape]:
        """A scale of 1 and a bias of 0; running moments of a mean of 0 and a variance of 1."""
        check_key(key)
        shape = as_shape(shape)
        if not shape:
            raise ValueError(f"{self!r} needs an input with an axis of channels, but one example has shape ()")
        ones, zeros = jnp.ones(shape[-1:]), jnp.zeros(shape[-1:])
        return {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}, shape

    def opening(self, following: Layer | None) -> Layer | None:
        """What comes after: this layer has no activation of its own."""
        return following

    def forward(
        self,
        params: Any,
        x: Float[Array, "n *s c"],
        key: PRNGKeyArray | None,
        weights: Weights = None,
        training: bool = False,
        mask: Bool[Array, "n t"] | None = None,
    ) -> tuple[Float[Array, "n *s c"], _Saved]:
        """scale∘x̂ + bias; saves x̂, 1/σ and what the running moments become."""
        names = {"scale", "bias", "mean", "var"}
        sound = isinstance(params, dict) and params.keys() == names and x.ndim > 1
        if not sound or any(leaf.shape != x.shape[-1:] for leaf in jax.tree.leaves(params)):
            raise ValueError(
                f"{self!r} takes parameters {sorted(names)}, [c] each, but on an input of shape {x.shape[1:]} got "
                f"{leaf_shapes(params)}"
            )
        needs_floats(self, x)
        wide, p = at_least_float32(x.dtype), None
        moments = {name: params[name] for name in ("mean", "var")}
        h = x.astype(wide)
        if training:
            counts = self._counts(x, weights, mask)
            if counts is not None:  # what counts 0 may be anything, even NaN
                h = jnp.where(_in_front(counts != 0, h), h, jnp.zeros_like(h))
            p, number = ((), h.size // h.shape[-1]) if counts is None else _shares(counts, h)
            mean = _mean(h, p)
            h = h - _along(mean, h)
            var = _mean(h * h, p)
            moments = self._after(moments, mean, var, number)
        else:
            h, var = h - _along(moments["mean"].astype(wide), h), moments["var"].astype(wide)
        inverse = lax.rsqrt(var + jnp.asarray(self.epsilon, wide))
        y = h * _along(inverse * params["scale"].astype(wide), h) + _along(params["bias"].astype(wide), h)
        return y.astype(x.dtype), _Saved(h, inverse, p, moments)

    def backward(
        self, params: Any, saved: _Saved, delta: Float[Array, "n *s c"]
    ) -> tuple[Float[Array, "n *s c"], dict[str, Any]]:
        """δ_x; the pairs (x̂, δ) and (δ), and of the running moments what they are after the pass."""
        h, inverse, p, moments = saved
        same_shape(self, delta, h.shape)
        n, c, along = len(h), h.shape[-1], inverse * params["scale"].astype(inverse.dtype)
        rows, deltas = ((h * _along(inverse, h)).astype(delta.dtype).reshape(n, -1, c), delta.reshape(n, -1, c))
        pairs: dict[str, Any] = {"scale": Scale(rows, deltas, (c,)), "bias": Shift(deltas, (c,))}
        back = delta.astype(h.dtype) * _along(along, h)
        if p is not None:
            # ∂e/∂scale in the pair's own words, which XLA makes once; then the mean of what is left really taken
            # away, though it is known: a δ_x that is one expression is computed anew for each that reads it.
            pull = inverse * along * widened(pairs["scale"]).total()
            if isinstance(p, tuple):
                back = back - h * _along(pull / jnp.asarray(h.size // c, h.dtype), h)
                back = back - _along(_mean(back, p), h)
            else:
                back = back - p * h * _along(pull, h)
                back = back - p * _along(_sum(back), h)
        pairs |= {name: Constant.of_batch(value.astype(params[name].dtype), n) for name, value in moments.items()}
        return back.astype(delta.dtype), pairs

    def formulas(self) -> tuple[str, str]:
        """In evaluation."""
        return "y = scale∘x̂ + bias, x̂ = (x − mean)/σ, σ = √(var + ε)", "δ_x = scale∘δ/σ"

    def _counts(self, x: Array, weights: Weights, mask: Any) -> Array | None:
        """How much each example [n], or each position [n, t], counts; None where all count alike.

        Raises:
            ValueError: if there is one value a channel, or the mask has other positions than x.
        """
        if math.prod(x.shape[:-1]) < 2:
            raise ValueError(
                f"{self!r} in training normalises each channel over the batch, of which an input of shape {x.shape} "
                "holds one value: take batches of at least two examples, the last of an epoch too, or GroupNorm or "
                "LayerNorm, which look at one example"
            )
        counts = None if weights is None else as_floats(weights)
        if mask is None or x.ndim == 2:  # without positions, or pooled over them
            return counts
        if jnp.shape(mask) != x.shape[:2]:
            raise ValueError(f"the mask has shape {jnp.shape(mask)}, but the input of {self!r} has {x.shape[:2]}")
        real = as_floats(mask)
        return real if counts is None else real * counts.astype(real.dtype)[:, None]

    def _after(self, moments: Params, mean: Array, var: Array, number: Any) -> Params:
        """The running moments after a batch with these, of so many values; as they were where that is one or none."""
        more = jnp.asarray(number, jnp.finfo(mean.dtype).dtype)
        told = more > 1
        new = {"mean": mean, "var": var * (more / jnp.where(told, more - 1, jnp.ones_like(more)))}

        def moved(old: Array, new: Array) -> Array:
            old = old.astype(new.dtype)
            return jnp.where(told, self.momentum * old + (1 - self.momentum) * new, old)

        return {name: moved(old, new[name]) for name, old in moments.items()}


def _shares(counts: Array, h: Array) -> tuple[Array, Array]:
    """p of each value [n, (t), 1, …], which add up to 1 over all values of a channel or are all 0; and N."""
    nothing, places = (counts == 0).all(), math.prod(h.shape[counts.ndim : -1])
    shares = jnp.where(nothing, jnp.zeros_like(counts), as_shares(counts))
    squares = jnp.square(shares).sum()
    number = jnp.maximum(counts.sum(), 1 / jnp.where(nothing, jnp.ones_like(squares), squares))
    return _in_front(shares / places, h).astype(h.dtype), jnp.where(nothing, jnp.zeros_like(number), number * places)


def _sum(a: Float[Array, "n *s c"]) -> Float[Array, " c"]:
    """Over all axes but the last."""
    return a.sum(tuple(range(a.ndim - 1)))


def _mean(a: Float[Array, "n *s c"], p: Any) -> Float[Array, " c"]:
    """Over all axes but the last, each value counting p; with () all alike."""
    return a.mean(tuple(range(a.ndim - 1))) if isinstance(p, tuple) else _sum(p * a)


def _along(channels: Float[Array, " c"], a: Float[Array, "n *s c"]) -> Array:
    """[c] with axes in front, as many as `a` has."""
    return channels.reshape((1,) * (a.ndim - 1) + (-1,))


def _in_front(counts: Array, a: Array) -> Array:
    """[n, (t)] with axes behind, as many as `a` has."""
    return counts.reshape(*counts.shape, *(1,) * (a.ndim - counts.ndim))
