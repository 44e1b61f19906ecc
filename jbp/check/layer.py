"""`jbp.check.layer`: every law of `jbp.Layer`, for one layer, a combinator, a whole net, or a layer of your own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jbp.arguments import (
    as_count,
    as_dtype,
    as_key,
    as_shape,
    check_finite,
    is_float,
    is_key,
    leaf_shapes,
    refuse_complex,
)
from jbp.backprop import forward
from jbp.check.compare import PRECISION, called, explain, largest, problem
from jbp.check.compiled import apart, compiled
from jbp.check.complex_step import complex_step
from jbp.check.eager import eager, keyless
from jbp.check.finite_differences import finite_differences
from jbp.check.kinks import after_moving, at_kink, moved, no_excuse, outside, spans
from jbp.check.laws import SCALES, laws, weighted
from jbp.check.protocol import protocol
from jbp.check.report import Entry, Report
from jbp.check.sides import by_hand, constants, couples, gradients_of, output_of
from jbp.check.statistics import statistics
from jbp.check.tolerance import DEEP, MATMUL, Level, check_level
from jbp.check.trees import as_array, cast, entropy, normal, split
from jbp.combine import Combinator
from jbp.inputs import as_arrays, check_net, check_params
from jbp.layer import Layer
from jbp.paths import paths


@apart
def layer(
    layer: Layer,
    shape: tuple[int, ...] | None = None,
    *,
    key: int | Array = 0,
    dtype: Any = None,
    params: Any = None,
    x: Any = None,
    level: Level | None = None,
    batch: int = 5,
    differences: bool = True,
) -> Report:
    """Check every law of `jbp.Layer` on random parameters, inputs and δ: of a layer, a combinator, a whole net.

        ⟨J v, δ⟩ = ⟨v, backward(δ)⟩ · backward = jax.vjp, leaf by leaf · linear in δ · announced = produced shape ·
        dtypes · pairs have the tree of params · jit = eager · vmap = loop · Σ examples = total · pure · keys ·
        slope of ⟨forward, δ⟩ by finite differences and the complex step

    Run without a key (evaluation) and, unless `uses_key` is False and the mode changes nothing, with one (training).
    Against jax.vjp also at inputs 8 and 1000 times as large, unless `x` is given, and with weights where the layer
    couples the examples. Parameters whose pairs say that they are constants, as running moments are, must get a
    gradient of 0 and are held fixed for the rest. In evaluation also what statistics make of the pairs, against the
    gradients of the examples:

        h free of δ · per_example · norms · second_moment · gauss_newton · kronecker

    Args:
        layer: what to check.
        shape: of one example; may be left out where `x` is given.
        key: a seed or a key: the same one gives the same check.
        dtype: of parameters and inputs; float64 where JAX has it enabled, else float32.
        params: instead of those that `init` draws.
        x: inputs [n, ...] instead of normal ones: needed for integer input, or to check at a point of your choice.
        level: the tolerance (`jbp.check.tolerance`); MATMUL for a layer, DEEP for a combinator.
        batch: how many examples.
        differences: whether to run finite differences and the complex step, in float64 whatever `dtype` is.

    Raises:
        ValueError: if what is asked for is no check: not a layer, an empty batch, NaN, shapes that do not fit.
            A layer that breaks its laws raises nothing here: the report fails.
    """
    check_net(layer, Layer)
    x = None if x is None else as_arrays("x", x)
    init_key, run_key = jax.random.split(as_key(key))
    seed = entropy(as_key(key))
    dtype, level = as_dtype(dtype), level or (DEEP if isinstance(layer, Combinator) else MATMUL)
    check_level(level)
    shape = _shape(layer, shape, x)
    subject = f"{called(layer)} on {list(shape)}, {dtype}"

    try:
        drawn, out_shape = _init(layer, init_key, shape)
    except Exception as error:
        return Report(subject, (problem("runs", "init", explain(error)),))
    if params is not None:
        check_params(params)
        if leaf_shapes(params) != leaf_shapes(drawn):  # the layer itself says what does not fit
            like = jax.ShapeDtypeStruct((1, *shape), dtype) if x is None else x
            jax.eval_shape(lambda p, x: forward(layer, p, x)[0], params, like)
    params = _params(drawn, params, dtype, seed)
    scales = SCALES if x is None and jnp.finfo(dtype).bits >= 32 else ()
    if x is None:
        x = normal(entropy(seed, 1), jax.ShapeDtypeStruct((as_count(batch, "the batch"), *shape), dtype))
    else:
        x = cast(as_array(x), dtype)
    refuse_complex("params", params)
    refuse_complex("x", x)
    check_finite("params", params)
    check_finite("x", x)

    plan = _Plan(subject, out_shape, run_key, seed, level, scales, differences)
    report = _run(layer, params, x, plan)
    failed = any(entry.law.startswith(("= vjp", "adjoint")) for entry in report.failures)
    if failed and at_kink(*_output_slope(layer, params, x, None, seed), seed):
        kept = [*no_excuse(report.entries), *_outside(layer, params, x, seed)]
        leaves, rebuild = split((params, x))
        params, x = rebuild(moved(leaves, seed))
        report = _run(layer, params, x, plan)
        return after_moving(report, "(params, x)", kept)
    return report


class _Plan(NamedTuple):
    """What is checked at a point, and how strictly."""

    subject: str
    out_shape: Any
    key: Any
    seed: Any
    level: Level
    scales: tuple[float, ...]
    differences: bool


def _run(layer: Layer, params: Any, x: Any, plan: _Plan) -> Report:
    """All laws at one point, without a key and with one."""
    subject, out_shape, key, seed, level, scales, differences = plan
    entries: list[Entry] = []
    broken: set[str] = set()
    alone, everything = not isinstance(layer, Combinator) and not layer.couples_batch, _everything.get()
    modes = {"": None, " (key)": key}
    if layer.uses_key is False and layer.couples_batch != "training":
        del modes[" (key)"]
    for mode, k in modes.items():
        structure = protocol(layer, params, x, out_shape, k, mode)
        entries += structure
        if any(entry.verdict == "fail" and entry.law != "dtypes" for entry in structure):
            broken.add(mode)
            continue
        if layer.uses_key is False and alone:
            entries += keyless(layer, params, x, key)
        entries += laws(layer, params, x, k, seed, level, mode, scales)
        if couples(layer, k):
            entries += weighted(layer, params, x, k, seed, level, mode)
        if alone and everything:
            entries += eager(layer, params, x, k, seed, level, mode)
        if differences:
            entries += _slopes(layer, params, x, k, seed, mode)
    if everything and "" not in broken:
        entries += statistics(layer, params, x, seed, level)
    return Report(subject, tuple(entries))


_everything: ContextVar[bool] = ContextVar("everything", default=True)


@contextmanager
def derivative_alone() -> Iterator[None]:
    """Where `layer` leaves out the eager laws and those of the statistics: for many mutants of one layer.

    Run op by op a layer costs as many compilations as it has operations, and its statistics are a program of their
    own: together more than the rest of a check, and nothing in them depends on which derivative is wrong.
    """
    token = _everything.set(False)
    try:
        yield
    finally:
        _everything.reset(token)


def _output_slope(layer: Layer, params: Any, x: Any, key: Any, seed: Any) -> tuple[Any, Any, Any]:
    """⟨forward, δ⟩ as a function of the differentiable leaves of (params, x) less constants; these; δ and the key."""
    leaves, rebuild = split((params, x), constants(layer, params, x, key))
    y = jax.eval_shape(lambda p, x, k: forward(layer, p, x, k)[0], params, x, key)
    delta = normal(entropy(seed, 3), jax.ShapeDtypeStruct(y.shape, jnp.float32))

    def function(leaves: Any, extra: Any) -> tuple[Any, Any]:
        delta, key = extra
        params, x = rebuild(leaves)
        y = forward(layer, params, x, key)[0]
        terms = y * delta.astype(y.dtype)
        return terms.sum(), terms

    return function, leaves, (delta, key)


def _outside(layer: Layer, params: Any, x: Any, seed: Any) -> list[Entry]:
    """The gradients in evaluation, each example's, that lie outside the span of the slopes around a kink."""
    _, leaves, extra = _output_slope(layer, params, x, None, seed)
    fixed = constants(layer, params, x, None)
    _, rebuild = split((params, x), fixed)

    def found(params: Any, x: Any, delta: Any) -> Any:
        _, saved = forward(layer, params, x)
        return by_hand(layer, params, x, None, saved, delta)

    def slopes(leaves: Any, extra: Any) -> Any:
        delta, (params, x) = extra[0], rebuild(leaves)
        _, output = output_of(layer, params, x, None, fixed=fixed)
        pull = jax.vjp(output, leaves)[1]
        totals = pull(delta)[0]
        if couples(layer, None):
            return totals
        rows = jax.vmap(lambda w: delta * w.reshape(-1, *(1,) * (delta.ndim - 1)))(jnp.eye(len(x), dtype=delta.dtype))
        each = jax.lax.map(lambda row: pull(row)[0], rows)
        return [*each[:-1], totals[-1]] if is_float(x) else each

    kind = jax.eval_shape(lambda p, x: forward(layer, p, x)[0], params, x).dtype
    delta = extra[0].astype(kind)
    with jax.default_matmul_precision(PRECISION):
        r = compiled(found)(params, x, delta)
    gradients = r["total" if couples(layer, None) else "each"]
    gradients = [g for i, g in enumerate(gradients) if i not in fixed] + ([r["delta_x"]] if is_float(x) else [])
    allowed = spans(slopes, leaves, (delta, None), seed)
    return outside(_names(params, x, fixed), gradients, allowed, source=largest(delta))


def _slopes(layer: Layer, params: Any, x: Any, key: Any, seed: Any, mode: str) -> list[Entry]:
    """Finite differences and the complex step of ⟨forward, δ⟩, in float64."""
    function, leaves, extra = _output_slope(layer, params, x, key, seed)
    fixed = constants(layer, params, x, key)
    _, rebuild = split((params, x), fixed)

    def gradient(leaves: Any, extra: Any) -> Any:
        delta, key = extra
        params, x = rebuild(leaves)
        found = gradients_of(layer, params, x, key, delta)
        return [g for i, g in enumerate(found) if i not in fixed]

    names = [name + mode for name in _names(params, x, fixed)]
    entries = finite_differences(function, gradient, leaves, extra, names, seed)
    if mode == "" or layer.uses_key is False:  # where there is a key to draw with, its masks are no analytic functions
        entries += complex_step(function, gradient, leaves, extra, names, seed, largest(extra[0]))
    return entries


def _names(params: Any, x: Any, fixed: set[int]) -> list[str]:
    """What is varied: the paths of the differentiable leaves of params less constants, and delta_x if there is one."""
    names = [p for p, a in zip(paths(params, "params"), jax.tree.leaves(params), strict=True) if is_float(a)]
    return [name for i, name in enumerate(names) if i not in fixed] + (["delta_x"] if is_float(x) else [])


def _init(layer: Layer, key: Any, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    answer = layer.init(key, shape)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError(f"init must return (params, out_shape), but returned {type(answer).__name__}")
    params, out_shape = answer
    return params, as_shape(out_shape)


def _params(drawn: Any, given: Any, dtype: Any, seed: Any) -> Any:
    """Parameters in `dtype`: those given, or those drawn, where leaves that start at one value are made to differ."""
    if given is not None:
        return cast(given, dtype)
    # A bias of zeros or a gain of ones hides what multiplies it.
    leaves, rebuild = split(drawn)
    noise = normal(entropy(seed, 2), [jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in leaves])
    moved = []
    for leaf, a in zip(map(np.asarray, leaves), map(np.asarray, noise), strict=True):
        constant = bool((leaf == leaf.reshape(-1)[0]).all()) if leaf.size else False
        values = leaf.astype(dtype) + (0.1 * a).astype(dtype) if constant else leaf.astype(dtype)
        moved.append(as_array(values))
    return rebuild(moved)


def _shape(layer: Layer, shape: Any, x: Any) -> tuple[int, ...]:
    if x is None:
        if shape is None:
            raise ValueError(f"check.layer of {called(layer)} needs the shape of one example, or inputs x")
        return as_shape(shape)
    if is_key(x):
        raise ValueError(f"x must hold numbers, but holds keys {x.dtype}")
    found = jnp.shape(x)
    if not found or found[0] == 0:
        raise ValueError(f"x must hold at least one example, [n, ...], but has shape {found}")
    if shape is not None and as_shape(shape) != found[1:]:
        raise ValueError(f"x holds examples of shape {found[1:]}, but shape says {shape}")
    return as_shape(found[1:])
