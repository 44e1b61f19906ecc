"""Of trees of pairs: `contract`, step 3, and `merge`, the pair of a parameter used in several places."""

from __future__ import annotations

from typing import Any

import jax

from jbp.annotations import Array
from jbp.arguments import came, check_weights
from jbp.meshes import placed, whole
from jbp.pairs.coupled import Coupled
from jbp.pairs.pair import Pair, Pairs, Weights, is_pair, widened
from jbp.pairs.stack import Stack
from jbp.pairs.sum import Sum, folded
from jbp.paths import shown


def merge(*pairs: Pair) -> Pair:
    """One pair for a parameter used in several places: those of a kind joined along t, the rest as a `Sum`.

    Raises:
        ValueError: if the uses do not have one shape.
    """
    return _merged(pairs, 0)


def _merged(pairs: tuple[Pair, ...], stacks: int) -> Pair:
    """Their merge, where the pairs are inside so many stacks, whose axes l their arrays have in front."""
    coupled = [pair for pair in pairs if isinstance(pair, Coupled)]
    if coupled:
        inside = tuple(pair.pair if isinstance(pair, Coupled) else pair for pair in pairs)
        return Coupled(_merged(inside, stacks), coupled[0].path)
    inside = tuple(pair.pair for pair in pairs if isinstance(pair, Stack))
    if len(inside) == len(pairs):
        return Stack(_merged(inside, stacks + 1))
    found = folded(pairs)
    shapes = {_shape(pair, stacks) for pair in found}
    if len(shapes) != 1:
        raise ValueError(f"the uses of one parameter must have one shape, but have {sorted(shapes)}")
    return found[0] if len(found) == 1 else Sum(tuple(found))


def _shape(pair: Pair, stacks: int) -> str:
    """The shape of what a pair in so many stacks contracts to, and in words whether that is of a stack."""
    for _ in range(stacks):
        pair = Stack(pair)
    total = jax.eval_shape(lambda pair: pair.total(), pair).shape
    return f"{total} of a stack" if isinstance(pair, Stack) else str(total)


def check_tree(pairs: Any, who: str) -> list[tuple[Any, Pair]]:
    """Each pair of a tree with its path, after refusing what is none or does not look like its class (`Pair.check`).

    Raises:
        ValueError: naming the first.
    """
    found = jax.tree_util.tree_flatten_with_path(pairs, is_leaf=is_pair)[0]
    for path, leaf in found:
        if not is_pair(leaf):
            raise ValueError(
                f"{who} takes the pairs that jbp.backward returns, but found {came(leaf)} at pairs{shown(path)}"
            )
        try:
            leaf.check(None, 1)
        except ValueError as error:
            raise ValueError(f"pairs{shown(path)}: {error}") from None
    return found


@placed(whole)
def contract(pairs: Pairs | Pair, weights: Weights = None) -> Any:
    """Step 3: contract every pair over the batch, which makes the gradient.

    `pairs` is the tree that `jbp.backward` returns; the result is the tree of the parameters.
    With `weights` [n] it is Σₙ wₙ gₙ, not renormalised; without, the mean 1/N Σₙ gₙ. Pairs of 16 bits are weighed and
    added up in float32, and the result is rounded to their dtype once.
    A row of weight 0 takes no part, whatever its δ holds; its h must be finite, as 0·NaN is NaN: give the weights to
    `jbp.value_and_pairs` too, which sees to it.

    Raises:
        ValueError: if `weights` has not one finite entry per example.
    """
    for n in {leaf.batch for _, leaf in check_tree(pairs, "contract")}:
        check_weights(weights, n)

    def contracted(pair: Pair) -> Array:
        wide = widened(pair)
        return (wide.total() / pair.batch if weights is None else wide.total(weights)).astype(pair.dtype)

    return jax.tree.map(contracted, pairs, is_leaf=is_pair)
