"""Laws of a leaf layer that need it to be called as Python: pure, jit = eager, and what it does with its key.

Called one example at a time without `jit`: forward(A), forward(B), forward(A) again; then backward of each. A layer
that keeps a number from the last call, draws from numpy, or takes apart the `saved` it was given, answers differently
the second time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jbp.arguments import is_float
from jbp.check.compare import PRECISION, compare, explain, fact, problem, skipped
from jbp.check.report import Entry
from jbp.check.tolerance import EXACT, Level
from jbp.check.trees import as_array, normal
from jbp.layer import Layer
from jbp.pairs import is_pair
from jbp.paths import paths


def eager(layer: Layer, params: Any, x: Any, key: Any, seed: Any, level: Level, mode: str) -> list[Entry]:
    """The entries of these laws in one mode, on the first two examples (or the first twice)."""
    a, b = (as_array(np.asarray(x)[i]) for i in (0, -1))
    law = "pure"
    before = jax.tree.flatten(params)
    state = _state(layer)
    try:
        with jax.default_matmul_precision(PRECISION):
            y, saved = layer.forward(params, a, key)
            delta = normal(seed, y)
            _, saved_b = layer.forward(params, b, key)
            first = _step_back(layer, params, saved, delta)
            layer.backward(params, saved_b, delta)
            again_y, saved_again = layer.forward(params, a, key)
            again = _step_back(layer, params, saved, delta)
            compiled_y, compiled = jax.jit(partial(_both_ways, layer))(params, a, key, delta)
    except Exception as error:
        return [problem("runs", f"without jit{mode}", explain(error))]
    after = jax.tree.flatten(params)
    entries = [
        fact(law, f"params{mode}", "itself", _same_objects(before, after), "params were changed by a call"),
        fact(law, f"layer{mode}", "itself", state == _state(layer), "the layer's own fields were changed by a call"),
        compare(law, f"y{mode}", "called again", again_y, y, EXACT),
    ]
    structure = jax.tree.structure(saved) == jax.tree.structure(saved_again)
    entries.append(fact(law, f"saved{mode}", "called again", structure, "saved has another structure the second time"))
    names = (["delta_x"] if is_float(x) else []) + paths(params, "params")
    for name, one, two, three in zip(names, first, again, compiled, strict=True):
        entries.append(compare(law, f"{name}{mode}", "called again", two, one, EXACT))
        source = float(np.abs(np.asarray(delta).astype(np.float64)).max())
        entries.append(compare("jit = eager", f"{name}{mode}", "eager", three, one, level, source=source))
    entries.append(compare("jit = eager", f"y{mode}", "eager", compiled_y, y, level))
    return entries


def keyless(layer: Layer, params: Any, x: Any, key: Any) -> list[Entry]:
    """A layer that declares uses_key=False answers the same with any key and with none."""
    try:
        plain, with_key = (layer.forward(params, as_array(np.asarray(x)[0]), k)[0] for k in (None, key))
    except Exception as error:
        return [problem("key", "y", explain(error))]
    if not np.isfinite(np.asarray(plain).astype(np.float64)).all():
        return [skipped("key", "y", "without key", "forward makes NaN or inf, which can be compared with nothing")]
    entry = compare("key", "y", "without key", with_key, plain, EXACT)
    if entry.verdict == "fail":
        return [problem("key", "y", "uses_key is False, but the output depends on the key", "uses_key must be True")]
    return [entry]


def _both_ways(layer: Layer, params: Any, x: Any, key: Any, delta: Any) -> tuple[Any, list[Any]]:
    """The output and what `_step_back` gives: in one program, as in training."""
    y, saved = layer.forward(params, x, key)
    return y, _step_back(layer, params, saved, delta)


def _step_back(layer: Layer, params: Any, saved: Any, delta: Any) -> list[Any]:
    """delta_x if there is one, and each parameter's gradient, of one example."""
    delta_x, pairs = layer.backward(params, saved, delta)
    batch = jax.tree.map(lambda a: a[None] if isinstance(a, Tracer) else as_array(np.asarray(a)[None]), pairs)
    totals = [pair.total() for pair in jax.tree.leaves(batch, is_leaf=is_pair)]
    return totals if delta_x is None else [delta_x, *totals]


def _same_objects(before: Any, after: Any) -> bool:
    return before[1] == after[1] and all(a is b for a, b in zip(before[0], after[0], strict=True))


def _state(layer: Layer) -> Any:
    """The layer's fields, and its class's, by identity and by what they print."""
    own = getattr(layer, "__dict__", {})
    shared = {k: v for k, v in vars(type(layer)).items() if not k.startswith("__") and not callable(v)}
    return {k: (id(v), repr(v)) for k, v in (own | shared).items()}
