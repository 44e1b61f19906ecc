"""What can be known of a layer without computing a number: tuples, trees, shapes, dtypes, kinds of input.

Everything here is traced abstractly, so a layer that breaks the protocol is told so in its own words, before a
numerical law fails on it in JAX's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jbp.answers import described, no_pair
from jbp.arguments import dtype_of, is_float
from jbp.backprop import backward, forward
from jbp.check.compare import explain, fact, problem
from jbp.check.report import Entry
from jbp.combine import Combinator
from jbp.layer import Layer
from jbp.pairs import is_pair
from jbp.paths import paths


def protocol(layer: Layer, params: Any, x: Any, out_shape: Any, key: Any, mode: str) -> list[Entry]:
    """The laws on structure, for one example and then for the batch. Stops where the rest loses its meaning."""
    if not isinstance(layer, Combinator) and not layer.couples_batch:
        entries = _one_example(layer, params, x, out_shape, key, mode)
        if any(entry.verdict == "fail" for entry in entries):
            return entries
    else:
        entries = []
    return entries + _batch(layer, params, x, out_shape, key, mode)


def _one_example(layer: Layer, params: Any, x: Any, out_shape: Any, key: Any, mode: str) -> list[Entry]:
    one = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    try:
        answer = jax.eval_shape(layer.forward, params, one, key)
    except Exception as error:
        return [problem("runs", f"forward{mode}", explain(error))]
    if not isinstance(answer, tuple) or len(answer) != 2:
        return [problem("protocol", f"forward{mode}", f"must return (y, saved), but returned {described(answer)}")]
    y, saved = answer
    if not isinstance(y, jax.ShapeDtypeStruct):
        return [problem("protocol", f"forward{mode}", f"y must be one array, but is {described(y)}")]
    if not jnp.issubdtype(y.dtype, jnp.floating):
        return [problem("protocol", f"forward{mode}", f"y must be of real floats, but is {described(y)}")]
    entries = [_announced(y.shape, out_shape, f"y{mode}")]
    try:
        answer = jax.eval_shape(layer.backward, params, saved, y)
    except Exception as error:
        guess = _runs_transposed(layer, params, saved, y, one)
        return [*entries, problem("runs", f"backward{mode}", explain(error), guess)]
    if not isinstance(answer, tuple) or len(answer) != 2:
        what = f"must return (delta_x, pairs), but returned {described(answer)}"
        return [*entries, problem("protocol", f"backward{mode}", what)]
    delta_x, pairs = answer
    entries.append(_input(delta_x, x, one.shape, mode))
    entries += _tree(pairs, params, mode, 0)
    return entries


def _batch(layer: Layer, params: Any, x: Any, out_shape: Any, key: Any, mode: str) -> list[Entry]:
    """The same through the spine, and what the pairs contract to."""
    try:
        y, saved = jax.eval_shape(lambda p, x, k: forward(layer, p, x, k), params, x, key)
    except Exception as error:
        return [problem("runs", f"jbp.forward{mode}", explain(error))]
    if not isinstance(y, jax.ShapeDtypeStruct) or not jnp.issubdtype(y.dtype, jnp.floating):
        return [problem("protocol", f"jbp.forward{mode}", f"y must be one array of real floats, but is {described(y)}")]
    entries = [_announced(y.shape, (x.shape[0], *out_shape), f"y{mode}")]
    try:
        delta_x, pairs = jax.eval_shape(lambda p, s, d: backward(layer, p, s, d), params, saved, y)
    except Exception as error:
        return [*entries, problem("runs", f"jbp.backward{mode}", explain(error))]
    entries.append(_input(delta_x, x, x.shape, mode))
    entries += (tree := _tree(pairs, params, mode, 1))
    if any(entry.verdict == "fail" for entry in tree):
        return entries
    floats = [leaf.dtype for leaf in jax.tree.leaves((params, x)) if is_float(leaf)]
    want = jnp.result_type(*floats) if len(set(floats)) == 1 else None
    if want is not None:
        entries.append(
            fact("dtypes", f"y{mode}", "protocol", y.dtype == want, f"y is {y.dtype}, its arguments are {want}")
        )
    if delta_x is not None:
        right = delta_x.dtype == x.dtype
        entries.append(
            fact("dtypes", f"delta_x{mode}", "protocol", right, f"delta_x is {delta_x.dtype}, x is {x.dtype}")
        )
    names = paths(params, "params")
    for name, pair, leaf in zip(names, jax.tree.leaves(pairs, is_leaf=is_pair), jax.tree.leaves(params), strict=True):
        try:
            g = jax.eval_shape(lambda pair: pair.total(), pair)
        except Exception as error:
            entries.append(problem("tree", f"{name}{mode}", f"its pair does not contract: {explain(error)}"))
            continue
        guess = "transposed" if g.shape != leaf.shape and g.shape == leaf.shape[::-1] else None
        what = f"the pair contracts to {g.shape}, the parameter is {leaf.shape}"
        entries.append(fact("shapes", f"{name}{mode}", "protocol", g.shape == leaf.shape, what))
        if guess:
            entries[-1] = problem("shapes", f"{name}{mode}", what, guess)
        what = f"the pair contracts to {g.dtype}, the parameter is {dtype_of(leaf)}"
        entries.append(fact("dtypes", f"{name}{mode}", "protocol", g.dtype == dtype_of(leaf), what))
    return entries


def _announced(shape: Any, announced: Any, path: str) -> Entry:
    what = f"forward makes {shape} where init announced {announced}"
    return fact("shapes", path, "protocol", tuple(shape) == tuple(announced), what)


def _input(delta_x: Any, x: Any, shape: Any, mode: str) -> Entry:
    path = f"delta_x{mode}"
    if not is_float(x):
        return fact("protocol", path, "protocol", delta_x is None, f"delta_x must be None for {x.dtype} input")
    if not isinstance(delta_x, jax.ShapeDtypeStruct):
        return problem("protocol", path, f"delta_x must be one array for {x.dtype} input, but is {described(delta_x)}")
    if delta_x.shape != shape:
        guess = "transposed" if delta_x.shape == shape[::-1] and len(shape) > 1 else None
        return problem("shapes", path, f"delta_x has shape {delta_x.shape}, x has {shape}", guess)
    return fact("shapes", path, "protocol", True, "")


def _tree(pairs: Any, params: Any, mode: str, axes: int) -> list[Entry]:
    """Pairs have the tree of params, with a pair for every leaf that looks like one; `axes` as in `Pair.check`."""
    leaves = jax.tree.leaves(pairs, is_leaf=is_pair)
    names = paths(pairs, "pairs", is_pair)
    raw = [
        problem("tree", f"{name}{mode}", no_pair(leaf))
        for name, leaf in zip(names, leaves, strict=True)
        if not is_pair(leaf)
    ]
    if raw:
        return raw
    have, want = jax.tree.structure(pairs, is_leaf=is_pair), jax.tree.structure(params)
    if have == want:
        entries = [fact("tree", f"pairs{mode}", "protocol", True, "")]
        for name, pair, leaf in zip(paths(params, "params"), leaves, jax.tree.leaves(params), strict=True):
            try:
                pair.check(jnp.shape(leaf), axes)
            except ValueError as error:
                turned = getattr(pair, "shape", None) == jnp.shape(leaf)[::-1] != jnp.shape(leaf)
                entries.append(problem("tree", f"{name}{mode}", str(error), "transposed" if turned else None))
        return entries
    known = {name.removeprefix("pairs") for name in names}
    wanted = set(paths(params))
    guess = f"no pair for params{sorted(wanted - known)[0]}" if wanted - known else None
    return [problem("tree", f"pairs{mode}", f"pairs must have the tree of params, {want}, but have {have}", guess)]


def _runs_transposed(layer: Layer, params: Any, saved: Any, y: Any, x: Any) -> str | None:
    """Whether backward would run if it were given one of its matrices transposed."""
    leaves, structure = jax.tree.flatten(params)
    for i, name in enumerate(paths(params, "params")):
        if getattr(leaves[i], "ndim", 0) != 2:
            continue
        try:
            other = jax.tree.unflatten(structure, [a.T if i == j else a for j, a in enumerate(leaves)])
            delta_x, _ = jax.eval_shape(layer.backward, other, saved, y)
        except Exception:
            continue
        if delta_x is not None and delta_x.shape == x.shape:
            return f"transposed: backward runs, with the right shape, on the transpose of {name}"
    return None
