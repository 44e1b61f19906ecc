"""Costs that are counted, not timed.

XLA's cost analysis counts the body of a loop once, however often it runs. So where a program has loops, the matrix
products (nearly all of the work) are counted in its jaxpr, after dead code is removed, times the scans' lengths.
"""

import math
from typing import Any

import jax
import numpy as np
from jax._src.interpreters.partial_eval import dce_jaxpr


def product_flops(function: Any, *args: Any) -> int:
    """FLOPs of all dot_general and convolutions that `function(*args)` needs for its results."""
    closed = jax.make_jaxpr(function)(*args)
    jaxpr, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), False)
    return _count(jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for eqn in _distinct(jaxpr):
        name, inner = eqn.primitive.name, _inner(eqn)
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            size = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * size * math.prod(eqn.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            total += 2 * _convolved(eqn)
        elif name == "scan":
            total += eqn.params["length"] * sum(map(_count, inner))
        elif name == "while" and any(map(_count, inner)):
            raise NotImplementedError("a while loop whose number of rounds is not known holds matrix products")
        else:
            total += max(map(_count, inner), default=0) if name == "cond" else sum(map(_count, inner))
    return total


def _convolved(eqn: Any) -> int:
    """Multiply-adds of a convolution, as XLA counts them: where a kernel meets padding, or a hole between numbers that
    are spread, there is none."""
    spec, p = eqn.params["dimension_numbers"], eqn.params
    image, kernel = (v.aval.shape for v in eqn.invars)
    out = eqn.outvars[0].aval.shape
    total = out[spec.out_spec[0]] * out[spec.out_spec[1]] * kernel[spec.rhs_spec[1]]
    for j, axes in enumerate(zip(spec.lhs_spec[2:], spec.rhs_spec[2:], spec.out_spec[2:], strict=True)):
        s, k, u = (shape[axis] for shape, axis in zip((image, kernel, out), axes, strict=True))
        spread = p["lhs_dilation"][j]
        at = np.arange(u)[:, None] * p["window_strides"][j] + np.arange(k) * p["rhs_dilation"][j] - p["padding"][j][0]
        total *= int(((at >= 0) & (at <= (s - 1) * spread) & (at % spread == 0)).sum())
    return total


def _distinct(jaxpr: Any) -> list[Any]:
    """The equations that compute something new: XLA computes what two of them say in the same words only once."""
    same: dict[Any, Any] = {}
    seen: dict[Any, list[Any]] = {}
    kept = []
    for eqn in jaxpr.eqns:
        inputs = tuple(str(v) if hasattr(v, "val") else id(same.get(v, v)) for v in eqn.invars)
        words = (eqn.primitive.name, inputs, str(sorted((k, str(p)) for k, p in eqn.params.items())))
        if words in seen and not eqn.effects:
            same.update(zip(eqn.outvars, seen[words], strict=True))
            continue
        seen[words] = eqn.outvars
        kept.append(eqn)
    return kept


def _inner(eqn: Any) -> list[Any]:
    """The jaxprs inside an equation."""
    values = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple | list) else (p,))]
    return [getattr(v, "jaxpr", v) for v in values if hasattr(v, "eqns") or hasattr(v, "jaxpr")]


def xla_cost(function: Any, *args: Any) -> tuple[float, int, Any]:
    """(FLOPs as XLA counts them, bytes of temporaries, the compiled program)."""
    options: Any = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
    compiled: Any = jax.jit(function).lower(*args).compile(compiler_options=options)
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes, compiled
