"""The spine: forward, backward, contract. Backpropagation in three steps over a whole net.

    step 1  forward    h⁰ = x, s¹ = h⁰W¹ + b¹, h¹ = θ(s¹), …                store every h
    step 2  backward   δᴸ = ∂e/∂output at the loss;  δˡ⁻¹ = δˡ through l     store every δ
    step 3  contract   ∂e/∂Wˡ = Σₙ wₙ hₙˡ⁻¹ ⊗ δₙˡ                            from the stored pairs

Layers are written for one example; `jax.vmap` brings the batch, here at the leaf and nowhere else.
Source: lecture A, the three steps; lecture B, the δ recursion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial, wraps
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.tree_util import register_dataclass

from jbp.annotations import Array, Bool, Float, Int, PRNGKeyArray
from jbp.answers import (
    Kept,
    ObservedAndGrad,
    ValueAndGrad,
    backward_answer,
    check_delta,
    check_delta_x,
    delta_of,
    error_of,
    forward_answer,
)
from jbp.arguments import as_bool, at_least_float32, batch_size, check_narrowing, check_weights, leaf_shapes
from jbp.combine import Combinator, Place, located
from jbp.combine.coupling import coupled_places, has_modes
from jbp.combine.tied import Uses, check_observed, unless_shared, unmarked
from jbp.inputs import as_arrays, check_key, check_loss, check_mask, check_net, check_params
from jbp.layer import ArrayLike, Layer
from jbp.losses import Loss
from jbp.masks import check_positions, counted, mask_at, real_alone
from jbp.meshes import as_is, placed, rows, rows_somewhere, whole
from jbp.pairs import (
    Coupled,
    Pairs,
    Weights,
    as_floats,
    is_pair,
    power_of_2,
    silence,
    weigh,
    widened,
)
from jbp.sinks import Sink, keep, observed, together, total
from jbp.trainable import Trainable as Trainable


def _forward_spread(answer: tuple[Any, Any], net: Layer, params: Any, x: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
    return rows(answer[0], x), rows_somewhere(answer[1], x)


@placed(_forward_spread)
def forward(
    net: Layer,
    params: Any,
    x: Float[ArrayLike, "n ..."],
    key: PRNGKeyArray | None = None,
    weights: Weights = None,
    *,
    training: bool | None = None,
    mask: Bool[ArrayLike, "n t"] | None = None,
    rows: Int[ArrayLike, " n"] | None = None,
) -> tuple[Array, Any]:
    """Step 1: the outputs [n, ...] and every h that the way back needs.

    `training` None means training if there is a key; in evaluation a key is not looked at. `weights` [n] only reach
    layers that couple the examples, in whose averages a row of weight 0 must not count, and `mask` [n, t], True where a
    position is real, layers that declare `uses_mask`. `rows` [n] are the places of these examples in a whole batch of
    which they are a part (None: 0…n−1): an example draws by its place, so cutting a batch changes nothing it draws.
    """
    check_net(net, Layer)
    check_params(params)
    check_key(key)
    x = as_arrays("x", x)
    if weights is not None:
        weights = as_arrays("weights", weights) if hasattr(weights, "__array__") else weights
        check_weights(weights, len(jax.tree.leaves(x)[0]))
    n = len(jax.tree.leaves(x)[0])
    check_mask(mask, n, weights)
    _check_rows(n, rows)
    x = real_alone(mask, x)
    check_input(net, x, weights)
    training = key is not None if training is None else training
    if training and key is None and net.uses_key is True:
        raise ValueError(f"{net!r} draws at random in training, so it needs a key: pass key=...")
    key = key if training else None

    def visit(place: Place, layer: Layer, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        with located(place, layer):
            if isinstance(layer, Combinator):
                return layer.walk_forward(visit, params, x, key)
            if layer.couples_batch:
                return forward_whole(layer, params, x, key, weights=weights, training=training, mask=mask)
            keys = None if key is None or layer.uses_key is False else _keys(key, x.shape[0], rows)
            answer = forward_leaf(layer, params, x, keys, mask if layer.uses_mask else None)
            check_positions(layer, mask, x, answer[0])
            return answer

    output, saved = visit((), net, params, x, key)
    return output, _Ran(saved, training) if has_modes(net) else saved


def _check_rows(n: int, rows: Any) -> None:
    """Refuse rows that are not one whole number for each example."""
    if rows is not None and (not jnp.issubdtype(jnp.result_type(rows), jnp.integer) or jnp.shape(rows) != (n,)):
        raise ValueError(
            f"rows must be a whole number for each of the {n} examples, but is {jnp.result_type(rows)} of shape "
            f"{jnp.shape(rows)}"
        )


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Ran:
    """What was saved, and in which mode, of a net with a layer that couples the examples in training only."""

    saved: Any
    training: bool = field(metadata={"static": True})


def coupling_of(net: Layer, saved: Any) -> tuple[dict[Place, str], Any]:
    """The places below a layer that coupled the examples in the pass that left `saved`, each with the path of such a
    layer; and what the layers saved."""
    training = True
    if isinstance(saved, _Ran):
        saved, training = saved.saved, saved.training
    return (coupled_places(net, training) if net.couples_batch else {}), saved


def _keys(key: PRNGKeyArray, n: int, rows: Any) -> PRNGKeyArray:
    """A key for each example, by its place: fold_in(key, i) is split(key, n)[i]."""
    return jax.random.split(key, n) if rows is None else jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def _backward_spread(
    answer: tuple[Any, Any], net: Layer, params: Any, saved: Any, delta: Any, sink: Sink = keep
) -> tuple[Any, Any]:
    """Gradients are spread as their parameters; what has an axis n as δ."""
    delta_x, found = answer
    sums = getattr(sink, "linear", False) and leaf_shapes(found) == leaf_shapes(params)
    return rows(delta_x, delta), as_is(params) if sums else rows_somewhere(found, delta)


@overload
def backward(net: Layer, params: Any, saved: Any, delta: Float[ArrayLike, "n ..."]) -> tuple[Any, Pairs]: ...
@overload
def backward(
    net: Layer, params: Any, saved: Any, delta: Float[ArrayLike, "n ..."], sink: Sink = keep
) -> tuple[Any, Any]: ...
@placed(_backward_spread)
def backward(
    net: Layer, params: Any, saved: Any, delta: Float[ArrayLike, "n ..."], sink: Sink = keep
) -> tuple[Any, Any]:
    """Step 2: δ from the output to the input, and what `sink` makes of each layer's pairs, in the tree of `params`.

    `delta` [n, ...] is ∂eₙ/∂output, one row per example. `sink` is called the moment a layer's pairs exist, inside
    the scan of `repeat` too, so with `total` the δ of a deep stack are never all alive at once. Of a parameter that is
    shared by `tied`, and of none else, the pairs are kept until all its uses are found; then the sink sees the one
    merged pair. A linear sink does not wait. Below a layer that couples the examples the pairs are `Coupled`.
    """
    check_net(net, Layer)
    check_params(params)
    delta = as_arrays("delta", delta)
    coupled, saved = coupling_of(net, saved)
    linear = getattr(sink, "linear", False)

    def at(above: Place) -> Callable[..., tuple[Any, Any]]:
        def visit(place: Place, layer: Layer, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
            with located(place, layer):
                if isinstance(layer, Combinator):
                    return layer.walk_backward(at(above + place), params, saved, delta)
                if isinstance(layer, Uses):
                    return None, saved if linear else unless_shared(sink, params, saved)
                delta_x, pairs = backward_leaf(layer, params, saved, delta)
                if above + place in coupled:
                    pairs = jax.tree.map(lambda pair: Coupled(pair, coupled[above + place]), pairs, is_leaf=is_pair)
                return delta_x, sink(pairs) if linear else unless_shared(sink, params, pairs)

        return visit

    return at(())((), net, params, saved, delta)


# Inlined, so that the compiled program is the same as without `jit`, but layers alike are traced only once.
# JAX 0.12 gave inlining while tracing a name of its own.
_INLINE: Any = getattr(getattr(jax, "Inline", None), "JAX_EARLY", True)


@partial(jax.jit, static_argnums=0, inline=_INLINE)
def forward_leaf(layer: Layer, params: Any, x: Any, keys: Any, mask: Any = None) -> tuple[Any, Any]:
    """One layer that does not couple the examples, on the batch; `keys` [n] one an example, None in evaluation."""

    def one(params: Any, x: Any, key: Any, mask: Any) -> tuple[Any, Any]:
        told = {"mask": mask} if layer.uses_mask else {}
        return forward_answer(layer, layer.forward(params, x, key, **told))

    in_axes = (None, 0, None if keys is None else 0, None if mask is None else 0)
    y, saved = jax.vmap(one, in_axes)(params, x, keys, mask)
    return y, Kept.of(saved, x, y)


def forward_whole(layer: Layer, params: Any, x: Any, key: Any, **told: Any) -> tuple[Any, Any]:
    """One layer that couples the examples, on the batch, told what it declares of weights, mode and mask."""
    told = {"weights": None, "training": False, "mask": None} | told
    if layer.couples_batch != "training":
        del told["training"]
    if not layer.uses_mask:
        del told["mask"]
    y, saved = forward_answer(layer, layer.forward(params, x, key, **told), len(jax.tree.leaves(x)[0]))
    return y, Kept.of(saved, x, y)


def backward_leaf(layer: Layer, params: Any, kept: Any, delta: Any) -> tuple[Any, Any]:
    """One layer's way back on the batch: δ at its input, and its pairs. `kept` is what `forward` answered with; of what
    a user saved by hand nothing is known, and the form of δ not checked. Of `params` some may be marked as shared."""
    params, marked = unmarked(params), params
    known = isinstance(kept, Kept)
    saved = kept.saved if known else kept
    if known:
        check_delta(layer, kept, delta)
    if layer.couples_batch:
        delta_x, pairs = backward_answer(layer, params, layer.backward(params, saved, delta), 1)
    else:
        delta_x, pairs = _backward_examples(layer, params, saved, delta)
    if known:
        check_delta_x(layer, kept, delta_x)
    check_observed(layer, marked, pairs)
    return delta_x, pairs


@partial(jax.jit, static_argnums=0, inline=_INLINE)
def _backward_examples(layer: Layer, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
    def one(params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        return backward_answer(layer, params, layer.backward(params, saved, delta), 0)

    return jax.vmap(one, (None, 0, 0))(params, saved, delta)


def apply(net: Layer, params: Any, x: Float[ArrayLike, "n ..."]) -> Array:
    """The net's outputs [n, ...] in evaluation: no dropout, nothing stored."""
    return forward(net, params, x)[0]


@overload
def value_and_grad(
    net: Layer, loss: Loss, trainable: Any = None, *, has_observed: Literal[False] = False
) -> ValueAndGrad: ...
@overload
def value_and_grad(
    net: Layer, loss: Loss, trainable: Any = None, *, has_observed: Literal[True]
) -> ObservedAndGrad: ...
def value_and_grad(net: Layer, loss: Loss, trainable: Any = None, *, has_observed: bool = False) -> Any:
    """The function (params, x, y, key=None, weights=None, mask=None, rows=None, training=None) -> (value, gradient):
    steps 1, 2 and 3, compiled.

    value = Σₙ wₙ eₙ and gradient = Σₙ wₙ gₙ with `weights` [n] as given, not renormalised; without, wₙ = 1/N, the mean.
    A row of weight 0 takes no part, whatever it holds. `key` feeds dropout: a net that draws at random must be given
    one here, or `training=False`, which makes it the gradient in evaluation. `mask` and `rows` as in `jbp.forward`; the
    mask reaches the loss too.

    `trainable` is a tree of bools that starts like `params` (a bool may stand for a whole subtree); where it is
    False the gradient is zero and neither its contraction nor a δ that only it needs is computed.

    With `has_observed` the answer is ((value, observed), gradient), and the pass is one in training, with a key or
    without: `observed` is what `jbp.observe(params, observed)` writes after the optimiser's step, the running moments
    of batch normalisation, and None for every other parameter and for what is not trainable. `jbp.make_step` and
    `jbp.fit` see to it themselves.

    Building the function again for an equal net and loss gives the same compiled function. Called outside `jax.jit`,
    it looks at the targets first; inside, there is nothing to look at yet.

    Raises:
        ValueError: if shapes do not fit (naming the layer), a key is missing, or targets are outside the loss's domain.
    """
    check_net(net, Layer)
    check_loss(loss, Loss)
    return _compiled(net, loss, Trainable.of(trainable), as_bool(has_observed, "has_observed"))


def _gradient_spread(answer: tuple[Any, Any], params: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
    return whole(answer[0]), as_is(params)


@lru_cache(maxsize=256)
def _compiled(net: Layer, loss: Loss, trainable: Trainable, has_observed: bool) -> Any:
    @partial(jax.jit, static_argnames="training")
    @placed(_gradient_spread)
    def value_and_gradient(
        params: Any,
        x: Any,
        y: Any,
        key: Any = None,
        weights: Weights = None,
        mask: Any = None,
        rows: Any = None,
        training: bool | None = None,
    ) -> Any:
        batch = Batch(x, y, weights, mask, rows)
        training = True if has_observed else training
        found = value_grad_output(net, loss, params, batch, key, trainable, training)
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), found.grads, params)
        return ((found.value, found.observed) if has_observed else found.value), grads

    check = batch_check(net, loss)

    @wraps(value_and_gradient)
    def checked(params: Any, x: Any, y: Any, key: Any = None, *others: Any, **named: Any) -> Any:
        given = dict(zip(("weights", "mask", "rows", "training"), others, strict=False)) | named
        if has_observed and given.get("training", True) is False:
            raise ValueError("has_observed is of a pass in training: leave training out, or has_observed")
        batch = as_batch(Batch(x, y, *(given.pop(name, None) for name in ("weights", "mask", "rows"))))
        check_params(params)
        check_key(key)
        check(params, batch)
        if batch.weights is not None:  # here, for `jit` would cut whole numbers to their lowest 32 bits
            batch = batch._replace(weights=as_floats(batch.weights))
        return value_and_gradient(params, *batch[:2], key, *batch[2:5], **given)

    return checked


class Batch(NamedTuple):
    """The examples of one step."""

    x: Any
    """Inputs [n, ...], an array or a tree of arrays."""
    y: Any
    """Targets [n, ...]."""
    weights: Any = None
    """[n]: how much each example counts; 0 leaves a row out whatever it holds. None: all alike."""
    mask: Any = None
    """[n, t] bools: which positions are real. None: all of them."""
    rows: Any = None
    """[n]: the places of these examples in the whole batch that they are a part of. None: 0…n−1."""
    divisor: Any = None
    """What a step divides its weighted sum by. None: by the sum of the weights."""


def as_batch(batch: Batch) -> Batch:
    """With arrays for data frames and tensors of other libraries.

    Raises:
        ValueError: if x or y is no array, nor anything that gives one.
    """
    x, y = as_arrays("x", batch.x), as_arrays("y", batch.y)
    others = zip(Batch._fields[2:], batch[2:], strict=True)
    return Batch(x, y, *(as_arrays(name, a) if hasattr(a, "__array__") else a for name, a in others))


@placed(lambda answer, net, loss, params, x, *_, **__: (rows(answer[0], x), rows_somewhere(answer[1], x)))
def value_and_pairs(
    net: Layer,
    loss: Loss,
    params: Any,
    x: Any,
    y: Any,
    key: Array | None = None,
    weights: Weights = None,
    mask: Bool[ArrayLike, "n t"] | None = None,
) -> tuple[Float[Array, " n"], Pairs]:
    """Steps 1 and 2: the error eₙ of every example, and the pairs, not contracted yet: what `jbp.stats` reads.

    The δ in the pairs belong to one example's error each and are not divided by N; `jbp.contract(pairs)` is the mean
    gradient. Call it inside `jax.jit`, with what you read from the pairs: the rest is then not computed. Without a key
    it is the pass in evaluation, no dropout.

    `weights` [n] say which rows take part: those of weight 0 come out with eₙ = 0, δ = 0 and a finite h, whatever x and
    y hold there, even NaN. Nothing is multiplied by the others; hand the same weights to the statistics too. `mask`
    [n, t] as in `jbp.forward`; it reaches the loss too, so that what is no position has a δ of 0, and no part in
    gradients, norms, moments and products of them. What is read from h alone, Kronecker's A and `records`, counts it
    unless `jbp.stats.kronecker` and `records` are handed the same mask.

    Raises:
        ValueError: if shapes do not fit (naming the layer), the batch is empty, the loss is none, or weights do not
            fit.
    """
    x, y, weights, mask, *_ = check_call(net, loss, params, Batch(x, y, weights, mask))
    check_key(key)
    if weights is not None:
        x = jax.tree.map(lambda a: silence(weights, a), x)
    output, saved = forward(net, params, x, key, weights, mask=mask)
    targets = (output, y, *mask_at(net, output, mask))
    errors, delta = jax.vmap(error_of(loss))(*targets), jax.vmap(delta_of(loss))(*targets)
    if weights is not None:
        errors, delta = silence(weights, errors), silence(weights, delta)
    # Stored here, as in `value_grad_output`.
    return errors, backward(net, params, saved, lax.optimization_barrier(delta))[1]


class Found(NamedTuple):
    """What forward, the loss's δ and backward find."""

    value: Array
    """Σₙ wₙ eₙ, in at least float32, as the gradient."""
    grads: Any
    """Σₙ wₙ gₙ."""
    output: Any
    """The net's outputs."""
    observed: Any
    """What is to be written into the parameters, in their tree; None where there is nothing."""


def value_grad_output(
    net: Layer,
    loss: Loss,
    params: Any,
    batch: Batch,
    key: Any,
    trainable: Trainable,
    training: bool | None = None,
) -> Found:
    """Steps 1, 2 and 3: forward, the loss's δ, backward."""
    value, output, saved, delta, scale = value_output_delta(net, loss, params, batch, key, training)
    both = together(total, observed)
    _, found = backward(net, params, saved, delta, both if net.observes else total)
    grads, seen = both.split(found) if net.observes else (found, jax.tree.map(lambda _: None, found))
    return Found(value, trainable(scaled(grads, scale)), output, trainable.only(seen))


def value_output_delta(
    net: Layer, loss: Loss, params: Any, batch: Batch, key: Any, training: bool | None = None
) -> tuple[Array, Any, Any, Any, Any]:
    """Step 1 and the loss: Σₙ wₙ eₙ, the outputs, what was saved, wₙ δₙ at the output as `fold` makes it, and the
    factor that is left."""
    x, y, weights, mask, rows = batch[:5]
    n = batch_size(x, y)
    check_weights(weights, n)
    if key is None and net.uses_key is True and training is not False:
        raise ValueError(f"{net!r} draws at random in training, so its gradient needs a key: pass key=...")
    if weights is not None:  # a padding row may hold anything, even NaN
        x = jax.tree.map(lambda a: silence(weights, a), x)
    output, saved = forward(net, params, x, key, weights, training=training, mask=mask, rows=rows)
    targets = (output, y, *mask_at(net, output, mask))
    errors = widened(jax.vmap(error_of(loss))(*targets))
    value = errors.mean() if weights is None else weigh(weights, errors).sum()
    delta, scale = fold(weights, jax.vmap(delta_of(loss))(*targets), params)
    # δ is stored here: without the barrier XLA computes it anew for each of its uses, and stores more.
    return value, output, saved, lax.optimization_barrier(delta), scale


def fold(weights: Weights, delta: Any, params: Any) -> tuple[Any, Any]:
    """(wₙ δₙ, None), by default wₙ = 1/N: where the weights enter, at the output.

    Where parameters or δ are of 16 bits, (wₙ/s δₙ, s) with s the largest weight, and (δₙ, 1/N): δ keeps its size on
    the way back, where 1/N of it would fall out of float16, and the sums, made in float32, are multiplied by s.
    """
    floats = [a.dtype for a in (delta, *jax.tree.leaves(params)) if jnp.issubdtype(a.dtype, jnp.floating)]
    if all(at_least_float32(dtype) == dtype for dtype in floats):
        return (delta / len(delta) if weights is None else weigh(weights, delta)), None
    if weights is None:
        return delta, 1 / len(delta)
    weights = as_floats(weights)
    scale = power_of_2(jnp.abs(weights).max())
    return weigh(weights / scale, delta).astype(delta.dtype), scale


def scaled(sums: Any, scale: Any) -> Any:
    """The sums of a walk back whose δ had the weights `fold` in, times the factor that is left."""
    return sums if scale is None else jax.tree.map(lambda a: a * jnp.asarray(scale, a.dtype), sums)


@lru_cache(maxsize=256)
def batch_check(net: Layer, loss: Loss, seen: Callable[[Any], Any] | None = None) -> Callable[[Any, Batch], None]:
    """The function (params, batch) that refuses what compiled code could not: inputs that would wrap or overflow where
    JAX takes them over, targets outside the loss's domain. Traced values are not looked at.

    `seen` says what shape and dtype the net sees of one x, if that is not x's own. Raises ValueError.
    """
    outputs: dict[Any, tuple[int, ...]] = {}  # the net alone says what shape comes of a shape: asked once for each

    def check(params: Any, batch: Batch) -> None:
        x, y, weights, mask = batch[:4]
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((x, y, weights, mask))):
            return
        for name, values in (("x", x), ("y", y)):
            for leaf in jax.tree.leaves(values):
                check_narrowing(name, leaf)
        leaves, (own, structure) = jax.tree.leaves((x, y)), jax.tree.flatten(params)
        shapes = structure, tuple(getattr(leaf, "shape", ()) for leaf in (*leaves, *own))
        if shapes not in outputs:
            batch_size(x, y)
            one = x if seen is None else seen(x)
            outputs[shapes] = example_output(net, loss, params, one, y).shape
        check_weights(weights, len(leaves[0]))
        check_mask(mask, len(leaves[0]), weights)
        loss.check_targets(y, outputs[shapes], counts=counted(outputs[shapes], weights, mask))
        if seen is None:
            check_input(net, real_alone(mask, x), weights)

    return check


def check_input(net: Layer, x: Any, weights: Any = None) -> None:
    """Refuse inputs that are none of the net's, such as a token that its table has no row for (`Layer.check_input`).
    Traced values are not looked at, nor rows of weight 0."""
    if not any(isinstance(leaf, Tracer | jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((x, weights))):
        net.check_input(x, None if weights is None else np.asarray(weights) != 0)


def example_output(net: Layer, loss: Loss, params: Any, x: Any, y: Any) -> Any:
    """Shape and dtype of one example's output in evaluation, once the loss has taken it; nothing is computed.

    Raises:
        ValueError: if the shapes do not fit together.
    """

    def output(params: Any, x: Any, y: Any) -> Any:
        output, _ = forward(net, params, x)
        jax.vmap(error_of(loss))(output, y)
        return output

    like = partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)))
    made = partial(jax.eval_shape, output, like(params))
    try:
        found = made(like(x), like(y))
    except ValueError as error:
        refuse_swapped(made, like(x), like(y), error)
        raise
    return jax.ShapeDtypeStruct(found.shape[1:], found.dtype)


def refuse_swapped(fits: Callable[[Any, Any], Any], x: Any, y: Any, error: ValueError) -> None:
    """Once `error` has said that something is wrong: say so if x and y do not fit, and do the other way round."""
    try:
        fits(x, y)
        return
    except Exception:
        pass
    try:
        fits(y, x)
    except Exception:
        return
    xs, ys = (jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], a) for a in (x, y))
    raise ValueError(
        f"x and y look swapped: net and loss take examples of shape {ys} with targets of shape {xs}, and not x of "
        f"{xs} with y of {ys}"
    ) from error


def check_call(net: Any, loss: Any, params: Any, batch: Batch) -> Batch:
    """The batch, in arrays, for whatever takes a net, a loss and a batch.

    What would end in an error that names nothing, or in none, is refused.

    Raises:
        ValueError: if the net is no layer, the loss none, x or y no array, the batch empty or of two sizes, weights do
            not fit, or targets are outside the loss's domain.
    """
    check_net(net, Layer)
    check_loss(loss, Loss)
    check_params(params)
    batch = as_batch(batch)
    check_weights(batch.weights, batch_size(batch.x, batch.y))
    batch_check(net, loss)(params, batch)
    return batch
