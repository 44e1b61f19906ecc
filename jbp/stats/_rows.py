"""What a statistic makes of a class of pair that it has no rule for."""

from __future__ import annotations

from jbp.pairs import Outer, Pair, Sum


def in_rows(pair: Pair) -> Outer | Sum:
    """The same gradients as an `Outer`, or as a `Sum` of some: of `pair.rows()`.

    Raises:
        TypeError: if its rows are no such blocks.
    """
    blocks = pair.rows()
    if not blocks or not all(isinstance(block, Outer) for block in blocks):
        raise TypeError(
            f"{type(pair).__name__}.rows() must give blocks jbp.Outer(h, delta, shape), but gives {blocks!r}"
        )
    return blocks[0] if len(blocks) == 1 else Sum(blocks)
