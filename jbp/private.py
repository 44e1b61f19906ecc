"""Private training: each example's gradient clipped to a norm C, summed, noised; the account is `dp-accounting`'s.

    g = (Σₙ cₙ gₙ + z) / B,    ‖cₙ gₙ‖ ≤ C,    z ~ N(0, σ²C² I)

over a batch into which every example comes independently with probability B / N (Poisson sampling). B is the expected
size of a batch, fixed in advance: the size that was drawn is a fact about the data, and nothing is divided by it.

Two data sets are neighbours if one has one example more (add or remove one). Then the sum moves by at most C, and
what is protected is one example, not all that came from one person. N is taken to be public: B / N is computed from it.

Covered are the parameters, after every step, and so whatever the optimiser makes of them. Not covered are the
training figures (losses and metrics are means over private examples, without noise), and a seed that others know or
can try out: noise that can be drawn again is none. The account is of real numbers; the noise is of floating-point
ones, from JAX's counter-based generator (Mironov 2012, "On significance of the least significant bits").

Whatever the type of the parameters, all that the bound and the noise rest on is of 32 bits or more: parameters and
inputs of 16 bits are widened first, gradients are clipped, summed and noised so, the products on accelerators in full,
and only what is divided by B is rounded to the parameters' type. Rounding what is private already gives nothing away.

Source: Abadi et al. 2016, "Deep learning with differential privacy", arXiv:1607.00133, algorithm 1.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Float
from jbp.answers import P, delta_of, error_of
from jbp.arguments import as_bool, as_count, as_number, at_least_float32, check_max_norm
from jbp.backprop import Trainable, backward, check_call, forward
from jbp.combine.coupling import words_of_coupling
from jbp.inputs import check_key
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.masks import mask_at
from jbp.meshes import as_is, on_every_device, placed, rows
from jbp.pairs import Weights, is_pair, silence, weigh, widened
from jbp.stats.clip import clip_factor, silenced
from jbp.stats.norms import network_norms, squared_bounds
from jbp.stats.per_example import for_clipping
from jbp.step import Batch, Method, Problem, State, Sums, measured, moved, optimised

SHARE = 0.999
"""Of δ, what goes into the account; the rest pays for batches that did not fit (`Private.epsilon`)."""

OVERFLOW = 1e-9
"""Times δ: the probability that in a whole run any batch does not fit."""

LEAST_NOISE, MOST_NOISE = 1e-3, 1e6
"""Between these `Private.for_epsilon` looks for its σ."""

MOST = 13.0
"""Up to this ε the rest of δ suffices."""

LEAST_NORM = 1e-12
"""Of C: squares below 1e-38 are 0 in float32, and a norm that is all such squares would be taken for 0, not clipped."""

_BUCKETS = 2e6
"""Of a step's privacy loss, at most: the cells of the account's grid."""


@placed(lambda answer, net, loss, params, x, *_, **__: (*rows(answer[:2], x), as_is(params)))
def clipped_sum(
    net: Layer,
    loss: Loss,
    params: P,
    x: Any,
    y: Any,
    max_norm: float | Array,
    *,
    key: Array | None = None,
    weights: Weights = None,
    automatic: bool = False,
    lean: bool = False,
) -> tuple[Float[Array, " n"], Float[Array, " n"], P]:
    """The errors eₙ [n], the norms ‖gₙ‖ [n] and Σₙ wₙ cₙ gₙ, with cₙ = min(1, C/‖gₙ‖) or, `automatic`, C/(‖gₙ‖ + 0.01).

    A sum, not a mean: `weights` [n] are by default 1. Norms and sum come from one backward pass that keeps its pairs;
    `lean` walks back twice instead, first for the norms and then with cₙ δₙ for the sum, and keeps nothing: for a deep
    `repeat`, a third more work and much less memory. Both are equal to rounding.

    A row of weight 0 contributes exactly 0 whatever it holds, and so does an example whose gradient is not finite. One
    more or one less example of weight 1 moves the sum by at most C, up to rounding as in `jbp.stats.clipped`; where the
    uses of a parameter cancel in an example, the norms are those that clip, not below the true ones. Parameters and
    inputs of 16 bits are widened first, and norms and sum are float32. Without a key it is the pass in evaluation.

    Raises:
        ValueError: if shapes do not fit, the batch is empty, or C is 0, negative or NaN.
        NotImplementedError: for a net that couples the examples of a batch.

    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1; `automatic`: Bu et al. 2023, arXiv:2206.07136.
    """
    how = Clip(max_norm, automatic, lean)
    return _clipped(net, loss, params, Batch(x, y, weights), key, how, Trainable.of(None))[1:]


class Clip(NamedTuple):
    """How an example's gradient is clipped: the arguments of `clipped_sum`."""

    max_norm: float | Array
    automatic: bool
    lean: bool


def _clipped(
    net: Layer, loss: Loss, params: Any, batch: Batch, key: Array | None, how: Clip, trainable: Trainable
) -> tuple[Array, Array, Array, Any]:
    """The outputs, errors and norms, and the sum; norms and sum over the parameters that are trained."""
    check_max_norm(how.max_norm, how.automatic)
    check_key(key)
    x, y, weights, mask, rows = check_call(net, loss, params, batch)[:5]
    _check_uncoupled(net, key is not None)
    params, x, y = widened((params, x, y))
    if weights is not None:
        x = jax.tree.map(partial(silence, weights), x)
    output, saved = forward(net, params, x, key, mask=mask, rows=rows)
    targets = (output, y, *mask_at(net, output, mask))
    delta = lax.optimization_barrier(jax.vmap(delta_of(loss))(*targets))
    _, found = backward(net, params, saved, delta, squared_bounds if how.lean else partial(for_clipping, late=False))
    found = found if how.lean else for_clipping(found, late=True)
    norms = network_norms(trainable(found if how.lean else squared_bounds(found)))
    scale = weigh(weights, clip_factor(norms, how.max_norm, how.automatic))
    sound = jnp.isfinite(norms)

    def total(pairs: Any) -> Any:
        """Σₙ wₙ cₙ gₙ of each pair, without the examples that are not sound."""
        with jax.default_matmul_precision("highest"):  # accelerators otherwise round what was clipped to 8 or 11 bits
            return jax.tree.map(
                lambda pair: pair.over_stack(lambda one: silenced(one, sound).total(scale)), widened(pairs),
                is_leaf=is_pair,
            )  # fmt: skip

    total.linear = True  # type: ignore[attr-defined]
    if how.lean:
        # The same δ again and not cₙδₙ, so that all it meets on the way is rounded as it was for the norms.
        delta, scale = lax.optimization_barrier((delta, scale))
        _, found = backward(net, params, saved, delta, total)
    else:
        found = total(found)
    return output, jax.vmap(error_of(loss))(*targets), norms, trainable(found)


@dataclass(frozen=True)
class Private:
    """How private a training is: what `jbp.fit(..., private=Private(...))` takes.

    `noise_multiplier` is σ: the noise has standard deviation σC in every coordinate of the sum. `max_norm` is C,
    `delta` the δ of the account. `automatic` and `lean` as in `clipped_sum`. For the least noise that an ε allows there
    is `for_epsilon`.

    Raises:
        ValueError: if σ or C is not positive and finite, C below 1e-12, or δ not between 0 and 1.
    """

    noise_multiplier: float
    max_norm: float
    delta: float
    automatic: bool = False
    lean: bool = False

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "max_norm", "delta"):
            value = as_number(getattr(self, name), name, 0.0)
            if not 0 < value < (1 if name == "delta" else math.inf):
                wanted = "between 0 and 1" if name == "delta" else "positive and finite"
                raise ValueError(f"{name} must be {wanted}, but is {value!r}")
            object.__setattr__(self, name, value)
        if self.max_norm < LEAST_NORM:
            raise ValueError(
                f"max_norm must be at least {LEAST_NORM:g}, but is {self.max_norm:g}: smaller norms are lost in the "
                "squares of float32, and would not be clipped; scale the loss up"
            )
        for name in ("automatic", "lean"):
            object.__setattr__(self, name, as_bool(getattr(self, name), name))

    @classmethod
    def for_epsilon(
        cls, epsilon: float, delta: float, max_norm: float, *, steps: int, batch_size: int, n: int
    ) -> Private:
        """The privacy with the least noise for which `epsilon(steps, batch_size, n)` is at most this, to 1 in 1,000.

        Raises:
            ValueError: if ε is not above 0 and at most 13, no noise is enough, or the other arguments do not fit.
            ModuleNotFoundError: without dp-accounting, which `pip install 'jbp[private]'` brings.
        """
        epsilon = as_number(epsilon, "epsilon", 0.0)
        if not 0 < epsilon <= MOST:
            raise ValueError(f"epsilon must be above 0 and at most {MOST:g}, but is {epsilon:g}: 1 to 8 is usual")
        as_count(steps, "steps")

        def at(noise: float) -> Private | None:
            found = cls(noise, max_norm, delta)
            return found if found.epsilon(steps, batch_size, n) <= epsilon else None

        low, high = 0.0, 1.0  # too little, or not known to be enough; enough in the end
        while (best := at(high)) is None:
            low, high = high, 2 * high
            if high > MOST_NOISE:
                raise ValueError(
                    f"found no noise up to {MOST_NOISE:g} for epsilon {epsilon:g}: take a larger one, fewer steps, or "
                    "a smaller batch_size"
                )
        while high > (1 + 1e-3) * low and high > LEAST_NOISE:
            middle = math.sqrt(low * high) if low else high / 2
            found = at(middle)
            low, high, best = (middle, high, best) if found is None else (low, middle, found)
        return best

    def epsilon(self, steps: int, batch_size: int, n: int) -> float:
        """ε such that `steps` steps with batches of expected size `batch_size` out of n examples are (ε, δ)-private.

        An upper bound, from the privacy loss distributions of `dp-accounting`, at 0.999 δ. The rest of δ pays for
        this: a batch is padded to a fixed capacity, and what is drawn beyond it dropped. Let p ≤ 1e-9 δ be the
        probability that this ever happens in the run. Without dropping, P(S) ≤ e^ε P′(S) + 0.999 δ for neighbours;
        dropping changes either side by at most p, so P(S) ≤ e^ε P′(S) + 0.999 δ + (1 + e^ε) p, and that is at most
        e^ε P′(S) + δ as long as (1 + e^ε) 1e-9 ≤ 0.001, for ε ≤ 13. Beyond 13 the answer is infinity: such an account
        would promise nothing that is worth having. Where that is plain by arithmetic alone no account is made.

        Raises:
            ValueError: if the counts do not fit together.
            ModuleNotFoundError: without dp-accounting, which `pip install 'jbp[private]'` brings.
        """
        steps, batch_size, n = as_count(steps, "steps", 0), as_count(batch_size, "batch_size"), as_count(n, "n")
        if batch_size > n:
            raise ValueError(f"expected batch_size ≤ n, but got batch_size {batch_size}, n {n}")
        return _epsilon(self.noise_multiplier, self.delta, steps, batch_size, n)

    def bind(self, batch_size: int) -> PrivateMethod:
        """The method of training for batches of this expected size.

        `jbp.fit(private=)` draws the batches and keeps the account; who steps by `jbp.make_step` does both himself.
        """
        return PrivateMethod(self, batch_size)

    def capacity(self, steps: int, batch_size: int, n: int) -> int:
        """The rows of a batch: the smallest m with P(Binomial(n + 1, batch_size / n) > m) ≤ 1e-9 δ / steps, at most n.

        n + 1, so that it holds for the neighbour with one example more too.
        """
        from scipy.stats import binom  # its `isf` gives up below 1e-16, its `sf` does not

        low, high, tail = batch_size - 1, n, OVERFLOW * self.delta / steps  # too small; large enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if binom.sf(middle, n + 1, batch_size / n) <= tail else (middle, high)
        return high

    def warn_of(self, n: int) -> None:
        """Warn if δ is no smaller than 1/n: giving away one example outright would satisfy the account."""
        if self.delta >= 1 / n:
            warnings.warn(weak_delta(self.delta, n), stacklevel=3)


def weak_delta(delta: float, n: int) -> str:
    """What to say of a δ that is no smaller than 1/n."""
    return (
        f"delta = {delta:g} is not below 1/n = {1 / n:.2g}: publishing an example picked at random would satisfy "
        f"the account too; take {0.1 / n:.0e} or less"
    )


@dataclass(frozen=True)
class PrivateMethod(Method):
    """Clip, sum, noise, divide by the expected batch size: a step's gradient. Made by `Private.bind`."""

    accounted: ClassVar[bool] = True

    private: Private
    batch_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", as_count(self.batch_size, "batch_size"))

    def init(self, key: Array, problem: Problem, params: Any, example: Any) -> Any:
        """Nothing is carried."""
        _check_uncoupled(problem.net, True)
        return ()

    def root_key(self, seed: int | None) -> Array:
        """A secret one, unless a seed was given: noise that others can draw again protects nothing."""
        return secret_key() if seed is None else jax.random.key(seed)

    def sums(self, problem: Problem, state: State, batch: Batch, key: Array) -> Sums:
        """Σₙ wₙ eₙ and Σ cₙ gₙ over the rows whose weight is not 0.

        Parameters that are not trained take no part: not in the norms, and they get no noise.
        """
        _, key = jax.random.split(key)
        weights = jnp.ones(len(jax.tree.leaves(batch.y)[0])) if batch.weights is None else batch.weights
        drawn, how = (weights != 0).astype(weights.dtype), self.private
        output, errors, _, total = _clipped(
            problem.net, problem.loss, state.params, batch._replace(weights=drawn), key,
            Clip(how.max_norm, how.automatic, how.lean), problem.trainable,
        )  # fmt: skip
        value = errors.mean() if batch.weights is None else weigh(batch.weights, errors).sum()
        return Sums(value, total, measured(problem, output, batch))

    def finish(self, problem: Problem, sums: Sums, key: Array) -> Sums:
        """(Σ cₙ gₙ + z) / B."""
        noise_key, _ = jax.random.split(key)
        grads = widened(sums.grads)
        noise = problem.trainable(_noise(noise_key, grads, self.private.noise_multiplier * self.private.max_norm))
        return sums._replace(grads=jax.tree.map(lambda g, z: (g + z) / self.batch_size, grads, noise))

    def update(self, problem: Problem, state: State, found: Sums, value_fn: Any) -> State:
        """The optimiser's step; it is not told the value of the loss, which is not noised."""
        return moved(problem, state, *optimised(problem, state, found, None))


def check_fit(private: Any, net: Any, *, sampling: str, weights: Any, **chosen: Any) -> None:
    """Refuse what `fit` cannot do with `private`.

    Raises:
        ValueError: saying why.
        NotImplementedError: for a net that couples the examples of a batch.
    """
    if not isinstance(private, Private):
        raise ValueError(f"private must be a jbp.Private(noise_multiplier, max_norm, delta), but is {private!r}")
    if isinstance(net, Layer):
        _check_uncoupled(net, True)
    if sampling == "replacement":
        raise ValueError("private training samples by 'poisson', which the account is of: leave sampling out")
    if weights is not None:
        raise ValueError("private training bounds what one example adds, whatever it weighs: leave weights out")
    given = [name for name, value in chosen.items() if value is not None and value is not False]
    if given:
        raise ValueError(
            f"private training cannot use {', '.join(given)}: what stops a run or picks its parameters by a figure "
            "of private data tells about those data, and the account does not know; fix the number of epochs instead"
        )


def refuse_own_statistics(name: str, values: Any) -> None:
    """Refuse private values [n, ...] that were standardised by themselves: mean and deviation came from every example.

    Seen by their mean 0 and deviation 1, of a column or of all together, closer than a thousandth of what chance
    leaves. Two values, such as a table of −1 and 1 has, may be balanced by themselves.
    """
    values = np.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating) or len(values) < 3:
        return
    table = values.reshape(len(values), -1)
    means = table.mean(0, dtype=np.float64)

    def too_near(figure: float, count: int) -> bool:
        return bool(abs(figure) <= 1e-3 / math.sqrt(count))

    parts = [(f"column {i + 1}", table[:, i]) for i, mean in enumerate(means) if too_near(mean, len(table))]
    if too_near(means.mean(), table.size):
        parts.append(("the whole", table.reshape(-1)))
    for where, part in parts:
        deviations = [part.std(dtype=np.float64, ddof=ddof) for ddof in (0, 1)]
        if any(too_near(d - 1, len(part)) for d in deviations) and len(np.unique(part[:1000])) > 2:
            raise ValueError(
                f"{name} was standardised by its own mean and deviation ({where} has 0 and 1), which tell about every "
                "example and which the account does not know of: scale private data by bounds that are known "
                "beforehand (jbp.data.Bounds), or by the figures of public data"
            )


def secret_key() -> Array:
    """A key from the operating system's randomness, which nobody can draw again."""
    like = jax.random.key_data(jax.random.key(0))
    return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(os.urandom(like.nbytes), like.dtype).reshape(like.shape)))


@lru_cache(maxsize=4096)
def _epsilon(sigma: float, delta: float, steps: int, batch_size: int, n: int) -> float:
    try:
        import dp_accounting as dp
        from dp_accounting import pld
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"private training needs dp-accounting for the account of (ε, δ): pip install 'jbp[private]' ({error})"
        ) from error
    rate = batch_size / n
    if steps * rate <= SHARE * delta:  # so seldom is an example drawn at all
        return 0.0
    if beyond_most(sigma, delta, steps, rate):
        return math.inf
    # Rounded up to multiples of this, so any value gives a bound; much below the loss of a step, and it is tight.
    span = 0.5 / sigma**2 + 10 / sigma  # how far the loss of a step reaches: below σ = 0.1 the grid must be coarser
    interval = max(min(1e-3, max(1e-5, rate / (10 * sigma))), span / _BUCKETS)
    account = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    account.compose(dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma)), steps))
    found = float(account.get_epsilon(SHARE * delta))
    return found if found <= MOST else math.inf


def beyond_most(sigma: float, delta: float, steps: int, rate: float) -> bool:
    """Whether some test shows, with arithmetic alone, that ε is beyond 13: True is proof, False says nothing.

    The test: let a step speak if the sum, along the gradient of the example in question, lies beyond t·σC. With the
    example that has probability p = (1 − q)Q(t) + q·Q(t − 1/σ), without it r = Q(t), independently in every step. If
    for a number k P(Binomial(steps, p) ≥ k) > e¹³ P(Binomial(steps, r) ≥ k) + δ, the event refutes (13, δ).
    """
    from scipy.stats import binom, norm

    shift = 1 / sigma
    t = np.linspace(0.0, shift + 8.0, 64)
    p, r = (1 - rate) * norm.sf(t) + rate * norm.sf(t - shift), norm.sf(t)
    likely = np.array([1 - 1e-9, 0.999, 0.9, 0.5, 0.1, 1e-2, 1e-3, *(delta * np.array([1e4, 1e2, 10.0, 2.0]))])
    k = np.maximum(binom.isf(np.minimum(likely, 1 - 1e-9)[:, None], steps, p), 1.0)
    with_it, without = binom.sf(k - 1, steps, p), binom.sf(k - 1, steps, r)
    return bool((with_it > 1.001 * (math.exp(MOST) * without + delta)).any())


def _noise(key: Array, like: Any, deviation: float) -> Any:
    """Independent N(0, deviation²) for every coordinate of a tree, in at least float32 whatever the tree is in."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    drawn = [deviation * gaussian(k, a.shape, at_least_float32(a.dtype)) for k, a in zip(keys, leaves, strict=True)]
    return on_every_device(structure.unflatten(drawn))


def gaussian(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Independent N(0, 1), up to 9.4 deviations out: what the noise is drawn by.

    Not by `jax.random.normal`, which inverts a uniform number of as many bits as the type's fraction has: in float32
    it makes 8 million different values and none beyond 5.4 deviations, in bfloat16 128 and none beyond 2.9. What lies
    there has more than δ's probability in a long run, and would give away who was in it.
    """
    half = -(-math.prod(shape) // 2)
    return (
        _box_muller(jax.random.bits(key, (3, half), jnp.uint32), dtype).reshape(-1)[: math.prod(shape)].reshape(shape)
    )


def _box_muller(bits: Array, dtype: Any) -> Float[Array, "2 m"]:
    """Of words [3, m], √(−2 ln u)·(cos 2πv, sin 2πv): u of two of them, so down to 2⁻⁶⁵, v of the third.

    Source: Box and Muller 1958, "A note on the generation of random normal deviates".
    """
    high, low, turn = bits.astype(dtype)
    u = high * 2.0**-32 + (low + 0.5) * 2.0**-64
    angle = turn * (2 * math.pi * 2.0**-32)
    radius = jnp.sqrt(-2 * jnp.log(u))
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)])


def _check_uncoupled(net: Layer, training: bool) -> None:
    if coupling := words_of_coupling(net, training):
        raise NotImplementedError(
            f"{coupling} the examples of a batch, so one example moves the gradients of "
            "the others and clipping bounds nothing: normalise each by itself, with GroupNorm or LayerNorm"
        )
