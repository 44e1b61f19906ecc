"""`jbp.check.gradient`: a whole net and its loss, at your parameters and your data."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jbp.arguments import as_key, batch_size, check_finite, check_weights, is_float, refuse_classes, refuse_complex
from jbp.backprop import Batch, Trainable, as_batch, backward, example_output, forward, value_and_grad
from jbp.check.compare import PRECISION, called, compare, explain, fact, largest, problem
from jbp.check.compiled import apart, compiled
from jbp.check.finite_differences import finite_differences
from jbp.check.kinks import after_moving, at_kink, moved, no_excuse, outside, spans
from jbp.check.report import Report
from jbp.check.sides import constants
from jbp.check.tolerance import DEEP, EXACT, Level, check_level
from jbp.check.trees import cast, floats_of, nudged, split
from jbp.inputs import check_loss, check_net, check_params
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.pairs import contract, weigh
from jbp.paths import paths
from jbp.sinks import total


@apart
def gradient(
    net: Layer,
    loss: Loss,
    params: Any,
    x: Any,
    y: Any,
    *,
    key: Array | int | None = None,
    weights: Any = None,
    trainable: Any = None,
    level: Level = DEEP,
    differences: bool = True,
) -> Report:
    """Check the gradient of Σₙ wₙ eₙ (the mean, without weights) in every parameter, and its value.

        jbp.value_and_grad(net, loss, trainable) = jax.value_and_grad of Σₙ wₙ loss.value(jbp.forward(x)ₙ, yₙ)
        and exactly zero in what is not trainable, or is held fixed as running moments are
        ⟨gradient, v⟩ = slope along v, by central finite differences in float64

    With key None the net is checked in evaluation, dropout included. Finite differences run with float64 parameters
    and inputs, whatever dtype they have here.

    Args:
        net: the net.
        loss: the loss.
        params: its parameters, as net.init makes them.
        x: inputs [n, ...].
        y: targets [n, ...].
        key: for a net that draws at random in training.
        weights: wₙ [n]; a row of weight 0 may hold anything, in x and in y.
        trainable: a tree of bools that starts like params, as in `jbp.value_and_grad`.
        level: the tolerance.
        differences: whether to run finite differences.

    Raises:
        ValueError: an empty batch, NaN, no parameters to differentiate or to train, shapes that do not fit.
    """
    check_net(net, Layer)
    check_loss(loss, Loss)
    x, y, weights, *_ = as_batch(Batch(x, y, weights))
    key = None if key is None else as_key(key)
    check_level(level)
    refuse_complex("params", params)
    refuse_complex("x", x)
    check_params(params)
    n = _check_data(params, x, y, weights)
    example_output(net, loss, params, x, y)  # what does not fit together is no gradient that fails
    only = Trainable.of(trainable)
    trained = _trained(only, params)
    by_hand = _by_hand(net, loss, key, trainable, only)
    case = _Case(net, loss, key, by_hand, trained, n, level, differences)
    try:
        fixed = constants(net, params, x, key)
    except Exception as error:
        return Report(_subject(case), (problem("runs", "jbp.backward", explain(error)),))
    case = case._replace(trained=[on and i not in fixed for i, on in enumerate(trained)])
    return _run(case, params, x, y, weights)


class _Case(NamedTuple):
    """What is checked, and how strictly."""

    net: Layer
    loss: Loss
    key: Any
    by_hand: Any
    """(params, x, y, weights) -> value and gradient."""
    trained: list[bool]
    n: int
    level: Level
    differences: bool


def _subject(case: _Case) -> str:
    return f"the gradient of {called(case.net)} with {called(case.loss)}, batch {case.n}"


def _run(case: _Case, params: Any, x: Any, y: Any, weights: Any, may_move: bool = True) -> Report:
    """The comparison at one point, or beside it if it lies on a kink."""
    net, loss, key, by_hand, trained, n, level, differences = case
    subject = _subject(case)
    floats, refill = split(params)
    leaves = _those(trained, floats)

    def rebuild(leaves: Any) -> Any:
        given = iter(leaves)
        return refill([next(given) if on else frozen for on, frozen in zip(trained, floats, strict=True)])

    def scalar(leaves: Any, x: Any, y: Any, weights: Any) -> Any:
        # The oracle never sees what a row of weight 0 holds: 0·NaN would be NaN.
        x, y = _silent(weights, (x, y))
        errors = jax.vmap(loss.value)(forward(net, rebuild(leaves), x, key, weights)[0], y)
        w = jnp.full((n,), 1 / n, errors.dtype) if weights is None else jnp.asarray(weights, errors.dtype)
        terms = jnp.where(w == 0, jnp.zeros_like(errors), w * errors)
        return terms.sum(), terms

    def source(leaves: Any, x: Any, y: Any, weights: Any) -> Any:
        """The δ at the output, from which all gradients come: what a leaf may be rounding of, as that of a bias is
        which a normalisation above takes away."""
        x, y = _silent(weights, (x, y))
        delta = jax.vmap(loss.delta)(forward(net, rebuild(leaves), x, key, weights)[0], y)
        return delta / n if weights is None else weigh(jnp.asarray(weights, delta.dtype), delta)

    @cache
    def twins() -> Any:
        with jax.default_matmul_precision(PRECISION):
            return run(*nudged((leaves, x), (0,)), y, weights)[1][1]

    def program(leaves: Any, x: Any, y: Any, weights: Any) -> Any:
        found = by_hand(rebuild(leaves), x, y, weights)
        expected = jax.value_and_grad(lambda p: scalar(p, x, y, weights)[0])(leaves)
        one = lambda i: jax.grad(lambda p: scalar(p, x, y, weights)[1][i])(leaves)  # noqa: E731
        return found, expected, lax.map(one, jnp.arange(n)), source(leaves, x, y, weights)

    try:
        with jax.default_matmul_precision(PRECISION):
            run = compiled(program)
            (value, grads), (expected_value, expected), each, delta = run(leaves, x, y, weights)
    except Exception as error:
        return Report(subject, (problem("runs", "value_and_grad", explain(error)),))
    if not np.isfinite(np.asarray(value).astype(np.float64)).all():
        _check_classes(y, jax.eval_shape(lambda p, x: forward(net, p, x, key)[0], params, x), weights)
    names = [p for p, leaf in zip(paths(params, "params"), jax.tree.leaves(params), strict=True) if is_float(leaf)]
    same = jax.tree.structure(grads) == jax.tree.structure(params)
    entries = [fact("tree", "gradient", "protocol", same, "the gradient has another tree than params")]
    if not same:
        return Report(subject, tuple(entries))
    entries.append(compare("= value", "value", "autodiff", value, expected_value, level))
    made = floats_of(grads, params)
    for name, on, found, leaf in zip(names, trained, made, floats, strict=True):
        entries.append(fact("dtypes", name, "protocol", found.dtype == leaf.dtype, f"{found.dtype}, not {leaf.dtype}"))
        if not on:
            entries.append(compare("not trained", name, "definition", found, np.zeros(leaf.shape, leaf.dtype), EXACT))
    names = _those(trained, names)
    for i, (name, found, want, parts) in enumerate(zip(names, _those(trained, made), expected, each, strict=True)):
        options: dict[str, Any] = {"terms": largest(parts), "sizes": {"the batch size": n}, "source": largest(delta)}
        options["twins"] = lambda i=i: [twins()[i]]
        entries.append(
            compare("= jax.grad", name, "autodiff", found, want, level, clues=_clues(want, parts), **options)
        )
    failed = any(entry.law == "= jax.grad" and entry.verdict == "fail" for entry in entries)
    if failed and may_move and at_kink(lambda p, data: scalar(p, *data), leaves, (x, y, weights), (0,)):
        kept = no_excuse(entries)

        def slopes(leaves: Any, data: Any) -> Any:
            one = lambda i: jax.grad(lambda p: scalar(p, *data)[1][i])(leaves)  # noqa: E731
            return lax.map(one, jnp.arange(n))

        allowed = [span.summed() for span in spans(slopes, leaves, (x, y, weights), (0,))]
        kept += outside(names, _those(trained, made), allowed)
        beside = rebuild(moved(leaves, (0,)))
        report = _run(case, beside, x, y, weights, may_move=False)
        return after_moving(report, "params", kept)
    if differences:

        def gradient_at(leaves: Any, data: Any) -> Any:
            grads = by_hand(cast(rebuild(leaves), jnp.float64), *data)[1]
            return _those(trained, floats_of(grads, params))

        x = _silent(weights, x)
        entries += finite_differences(
            lambda p, data: scalar(p, *data), gradient_at, leaves, (x, y, weights), names, as_key(0)
        )
    return Report(subject, tuple(entries))


def _by_hand(net: Layer, loss: Loss, key: Any, trainable: Any, only: Trainable) -> Any:
    """(params, x, y, weights) -> value and gradient, by jbp; in evaluation where there is no key."""
    if key is not None or net.uses_key is not True:
        return lambda params, x, y, weights: value_and_grad(net, loss, trainable)(
            params, x, y, key=key, weights=weights
        )

    def evaluation(params: Any, x: Any, y: Any, weights: Any) -> Any:
        output, saved = forward(net, params, _silent(weights, x), weights=weights)
        errors = jax.vmap(loss.value)(output, y)
        delta = jax.vmap(loss.delta)(output, y)
        if weights is None:
            return errors.mean(), only(contract(backward(net, params, saved, delta)[1]))
        w = jnp.asarray(weights, errors.dtype)
        if net.couples_batch:  # there the weights belong into δ
            sums = backward(net, params, saved, weigh(w, delta).astype(delta.dtype), total)[1]
            return weigh(w, errors).sum(), only(jax.tree.map(lambda g, p: g.astype(p.dtype), sums, params))
        return weigh(w, errors).sum(), only(contract(backward(net, params, saved, delta)[1], w))

    return evaluation


def _trained(only: Trainable, params: Any) -> list[bool]:
    """For each differentiable leaf of params, whether it is trained."""
    try:
        marked = only(jax.tree.map(lambda _: np.ones(()), params))
    except ValueError as error:
        raise ValueError(f"trainable must be a tree of bools that starts like params: {explain(error)}") from error
    trained = [bool(mark) for mark in floats_of(marked, params)]
    if not any(trained):
        raise ValueError("trainable is False for every parameter: there would be nothing to check")
    return trained


def _those(chosen: list[bool], leaves: Any) -> Any:
    """The leaves that are chosen."""
    return [leaf for on, leaf in zip(chosen, leaves, strict=True) if on]


def _clues(expected: Any, each: Any) -> Any:
    """The totals of which some example is left out or doubled."""

    def clues() -> dict[str, Any]:
        whole, parts = np.asarray(expected).astype(np.float64), np.asarray(each).astype(np.float64)
        left = {f"a dropped term: example {i} is left out": whole - g for i, g in enumerate(parts)}
        return left | {f"example {i} is counted twice": whole + g for i, g in enumerate(parts)}

    return clues


def _silent(weights: Any, tree: Any) -> Any:
    """Rows of weight 0, which may hold anything, as zeros."""
    if weights is None:
        return tree

    def one(a: Any) -> Any:
        w = jnp.asarray(weights).reshape((-1,) + (1,) * (jnp.ndim(a) - 1))
        return jnp.where(w == 0, jnp.zeros_like(a), a)

    return jax.tree.map(one, tree)


def _check_classes(y: Any, output: Any, weights: Any) -> None:
    """Refuse classes that there are not, in rows whose weight is not 0."""
    if jnp.issubdtype(jnp.result_type(y), jnp.integer) and jnp.shape(y) == output.shape[:-1]:
        rows = slice(None) if weights is None else np.flatnonzero(np.asarray(weights))
        refuse_classes("y", np.asarray(y)[rows], output.shape[-1])


def _check_data(params: Any, x: Any, y: Any, weights: Any) -> int:
    """N, if there is something to check."""
    n = batch_size(x, y)
    check_weights(weights, n)
    if not any(is_float(leaf) for leaf in jax.tree.leaves(params)):
        raise ValueError("params hold nothing to differentiate: there would be nothing to check")
    check_finite("params", params)
    rows = np.arange(n) if weights is None else np.flatnonzero(np.asarray(weights))
    if not rows.size:
        raise ValueError("all weights are 0: there would be nothing to check")
    check_finite("x", jax.tree.map(lambda a: a[rows], x))
    check_finite("y", jax.tree.map(lambda a: a[rows], y))
    return n
