"""Which rule serves which parameter."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import jax

from jbp.pairs import Lookup, Outer, Pair, Pairs, Scale, Shift, Stack, Sum, Window
from jbp.stats import windows
from jbp.stats._rows import in_rows
from jbp.stats.moments import squares
from jbp.stats.norms import by_gram, normed
from jbp.stats.trees import checked_leaves


class Explanation(NamedTuple):
    """How the statistics of one parameter are computed."""

    path: str
    pair: str
    """The pair's class and sizes, such as `Stack[16](Outer t=1 i=512 o=512)`."""
    norms: str
    second_moment: str
    clipped: str
    """What the clipped sum is made of."""


def explain(pairs: Pairs | Pair) -> tuple[Explanation, ...]:
    """For each parameter, by dotted path, its pair and the rule that serves it; a user's own layer included.

    Raises:
        ValueError: if these are not the pairs of one backward pass.
        NotImplementedError: below a layer that couples examples, where there is none.
    """
    return tuple(Explanation(path, *told(pair), summed(pair)) for path, pair in checked_leaves(pairs).items())


def summed(pair: Pair) -> str:
    """How the clipped sum is made."""
    if isinstance(pair, Stack):
        return summed(pair.one)
    return (
        f"gradients, formed {windows.forming(pair)}"
        if isinstance(pair, Window) and windows.few_numbers(pair)
        else "norms, then a total"
    )


@singledispatch
def told(pair: Pair) -> tuple[str, str, str]:
    """The words of a `Rule`: the pair, how its norms are computed, and how its second moment."""
    blocks, norms, second_moment = told(jax.eval_shape(in_rows, pair))
    own = "a rule of its own"
    return (
        f"{type(pair).__name__}({blocks})",
        norms if normed.dispatch(type(pair)) is normed.dispatch(Pair) else own,
        second_moment if squares.dispatch(type(pair)) is squares.dispatch(Pair) else own,
    )


@told.register
def _(pair: Stack) -> tuple[str, str, str]:
    inner, norms, second_moment = told(pair.one)
    return f"Stack[{pair.layers}]({inner})", norms, second_moment


@told.register
def _(pair: Outer) -> tuple[str, str, str]:
    t, i, o = *pair.h.shape[1:], pair.delta.shape[-1]
    shown = f"Outer t={t} i={i} o={o}" + " transposed" * pair.transposed
    if t == 1:
        return shown, "‖h‖²‖δ‖²", "h² ⊗ δ²"
    return shown, "T × T Gram matrices" if by_gram(pair) else "one example at a time", "one example at a time"


@told.register
def _(pair: Lookup) -> tuple[str, str, str]:
    shown = f"Lookup t={pair.uses} of {pair.shape[0]} rows o={pair.shape[1]}"
    return shown, "‖δ summed by row‖²", "(δ summed by row)²"


@told.register(Shift)
@told.register(Scale)
def _(pair: Any) -> tuple[str, str, str]:
    product = "Σδ" if isinstance(pair, Shift) else "Σh∘δ"
    shown = f"{type(pair).__name__} t={pair.uses} o={pair.delta.shape[-1]}"
    return shown, f"‖{product}‖²", f"({product})²"


@told.register
def _(pair: Window) -> tuple[str, str, str]:
    geometry = pair.geometry
    sizes = {
        "kernel": geometry.kernel, "stride": geometry.stride, "dilation": geometry.dilation,
        "on": pair.h.shape[2:-1],
    }  # fmt: skip
    shown = [f"t={pair.h.shape[1]}"] + [
        f"{name}={'×'.join(map(str, size))}" for name, size in sizes.items() if {*size} != {1}
    ]
    shown += [f"groups={geometry.groups}"] * (geometry.groups > 1) + [f"i={pair.h.shape[-1]} o={pair.shape[-1]}"]
    return f"Window {' '.join(shown)}", str(windows.route(pair)), "one example at a time"


@told.register
def _(pair: Sum) -> tuple[str, str, str]:
    inner = " + ".join(told(member)[0] for member in pair.pairs)
    return f"Sum({inner})", "one example at a time", "gradients formed, then squared"
