"""Which rule serves which parameter."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jbp.pairs import Outer, Pair, Scale, Shift, Stack, Sum
from jbp.stats._paths import leaves
from jbp.stats.norms import by_gram


class Explanation(NamedTuple):
    """How the statistics of one parameter are computed."""

    path: str
    pair: str
    """The pair's class and sizes, such as Stack[16](Outer t=1 i=512 o=512)."""
    norms: str
    second_moment: str


def explain(pairs: Any) -> tuple[Explanation, ...]:
    """For each parameter, by dotted path, its pair and the rule that serves it; a user's own layer included.

    Raises:
        ValueError: if these are not the pairs of one backward pass.
        NotImplementedError: below a layer that couples examples, where there is none.
    """
    return tuple(Explanation(path, *_rule(pair)) for path, pair in leaves(pairs).items())


def _rule(pair: Pair) -> tuple[str, str, str]:
    match pair:
        case Stack():
            inner, *rules = _rule(jax.eval_shape(lambda stack: jax.tree.map(lambda a: a[0], stack.pair), pair))
            return f"Stack[{len(jax.tree.leaves(pair)[0])}]({inner})", rules[0], rules[1]
        case Outer():
            t, i, o = *pair.h.shape[1:], pair.delta.shape[-1]
            shown = f"Outer t={t} i={i} o={o}"
            if t == 1:
                return shown, "‖h‖²‖δ‖²", "h² ⊗ δ²"
            return shown, "T × T Gram matrices" if by_gram(pair) else "one example at a time", "one example at a time"
        case Shift() | Scale():
            product = "Σδ" if isinstance(pair, Shift) else "Σh∘δ"
            shown = f"{type(pair).__name__} t={pair.delta.shape[1]} o={pair.delta.shape[-1]}"
            return shown, f"‖{product}‖²", f"({product})²"
        case Sum():
            inner = " + ".join(_rule(member)[0] for member in pair.pairs)
            return f"Sum({inner})", "one example at a time", "gradients formed, then squared"
    return type(pair).__name__, "registered by its author", "registered by its author"
