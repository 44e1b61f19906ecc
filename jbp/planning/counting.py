"""FLOPs of a traced program: those of its matrix products and convolutions, two for each multiply-add.

Nothing is computed and no array is made: a program is traced with shapes alone, what no answer needs is dropped, and
the products of what is left are counted, those of a loop as often as it runs. Elementwise work, a few operations for
each number that is read or written, counts as bytes and not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.interpreters import partial_eval

_OPAQUE = (
    *("pallas_call", "ffi_call", "pure_callback", "io_callback", "fft", "ragged_dot_general"),
    *("cholesky", "lu", "qr", "householder_product", "triangular_solve", "eig", "eigh", "svd", "schur"),
)
"""What multiplies, and does not say how often."""


def flops(function: Callable[..., Any], *shapes: Any) -> int:
    """Of the products that the answer of `function(*shapes)` needs; the shapes are trees of `jax.ShapeDtypeStruct`.

    A convolution counts padding in, and the holes of a dilated input out. Where an operation differs by platform it
    counts as on an accelerator.

    Raises:
        NotImplementedError: for an operation that does not say how much it multiplies, naming it.
    """
    traced = jax.make_jaxpr(function)(*shapes).jaxpr
    needed, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return flops_of(needed)


def flops_of(jaxpr: Any) -> int:
    """The FLOPs of a traced program's products, all of them."""
    platforms: dict[Any, int] = {}
    found = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "platform_index":
            platforms[equation.outvars[0]] = params["platforms"].index(None)
        elif name == "dot_general":
            found += _product(equation)
        elif name == "conv_general_dilated":
            found += _convolution(equation)
        elif name == "scan":
            found += params["length"] * flops_of(params["jaxpr"].jaxpr)
        elif name == "while":
            if any(map(flops_of, _inner(params))):
                raise NotImplementedError(
                    "there are no formulas for products in a loop that runs until something holds"
                )
        elif name == "cond":
            branches = [flops_of(branch.jaxpr) for branch in params["branches"]]
            chosen = platforms.get(equation.invars[0])
            if chosen is None and len(set(branches)) > 1:
                raise NotImplementedError("there are no formulas for products that only some batches need (lax.cond)")
            found += branches[chosen or 0]
        elif name in _OPAQUE:
            raise NotImplementedError(f"there are no formulas for {name}, which does not say how much it multiplies")
        else:
            found += sum(map(flops_of, _inner(params)))
    return found


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs inside an equation."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield inner


def _product(equation: Any) -> int:
    """2 for each entry of the answer and each index that is summed over, if both sides have an index of their own: else
    XLA multiplies entry by entry and adds up, which is no product of matrices."""
    (contracted, _), batched = equation.params["dimension_numbers"]
    left, right = (var.aval.shape for var in equation.invars)
    shared = math.prod(left[axis] for axis in batched[0])
    summed = math.prod(left[axis] for axis in contracted)
    if shared and summed and min(math.prod(left), math.prod(right)) == shared * summed:
        return 0
    return 2 * math.prod(equation.outvars[0].aval.shape) * summed


def _convolution(equation: Any) -> int:
    """2 for each entry of the answer, each place of the kernel and each channel that it sees.

    An input that is dilated, as δ is on the way back through a stride, has a number in one of so many places only.
    """
    params = equation.params
    kernel = equation.invars[1].aval.shape
    spec = params["dimension_numbers"].rhs_spec
    taps = math.prod(kernel[axis] for axis in spec[2:]) * kernel[spec[1]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * taps // math.prod(params["lhs_dilation"])
