"""Trees of pairs: their parameters by dotted path, and what no statistic accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
from jax.custom_batching import sequential_vmap

from jbp.annotations import Array, Float
from jbp.arguments import check_weights
from jbp.pairs import Pair, Weights, check_tree, is_pair, widened
from jbp.paths import dotted, layer_of, shown

Groups = Mapping[str, str | tuple[str, ...] | list[str]]
Per = str | Groups


def leaves(pairs: Any, weights: Weights = None) -> dict[str, Pair]:
    """Each parameter's dotted path ("1.0.weight") and pair, in at least float32: so is all that is made of it.

    Raises: as `checked_leaves`.
    """
    return {path: widened(pair) for path, pair in checked_leaves(pairs, weights).items()}


def checked_leaves(pairs: Any, weights: Weights = None) -> dict[str, Pair]:
    """Each parameter's dotted path and pair, as they came.

    Raises:
        ValueError: if something is no pair, the batch is empty, batches differ, or weights do not fit.
        NotImplementedError: if a pair lies below a layer that couples examples, naming both.
    """
    found: dict[str, Pair] = {}
    for keys, leaf in check_tree(pairs, "a statistic"):
        if leaf.coupled is not None:
            raise NotImplementedError(
                f"params{shown(keys)} lies below the batch-coupled layer {leaf.coupled}: its gradient of one example "
                "is not defined, only its total is"
            )
        found[dotted(keys)] = leaf
    sizes = {pair.batch for pair in found.values()}
    if len(sizes) != 1:
        what = f"batches of {sorted(sizes)} examples" if sizes else "no parameters at all"
        raise ValueError(f"a statistic takes the pairs of one backward pass, but these have {what}")
    if sizes == {0}:
        raise ValueError("a statistic needs at least one example, but the batch is empty")
    check_weights(weights, *sizes)
    return found


def batch(pairs: Any) -> int:
    """N, the number of examples."""
    return next(iter(checked_leaves(pairs).values())).batch


def shape_of(pair: Pair) -> tuple[int, ...]:
    """The parameter's own shape, with the l of its stacks in front."""
    return jax.eval_shape(lambda pair: pair.total(), pair).shape


def map_pairs(function: Callable[[Pair], Any], pairs: Any, weights: Weights = None) -> Any:
    """`function` of each pair, in at least float32, in the tree of the parameters, after `checked_leaves`."""
    checked_leaves(pairs, weights)
    return jax.tree.map(lambda pair: function(widened(pair)), pairs, is_leaf=is_pair)


def layer_by_layer(function: Callable[[Pair, Array], Any], pair: Pair, p: Array) -> Any:
    """`function(pair, p)`; of a stack, of each layer's in turn, so that what one of them takes is there only once."""
    in_turn = sequential_vmap(function)
    return pair.over_stack(lambda layer: in_turn(layer, p))


def groups_of(pairs: Any, per: Per, disjoint: bool = False) -> dict[str, list[str]]:
    """The dotted paths of each group: of the "network", of each "layer", or as the user's patterns choose.

    Raises:
        ValueError: for an unknown `per`, a group that matches no parameter, or, if they must be `disjoint` and cover
            all, a parameter in two groups or in none.
    """
    paths = list(checked_leaves(pairs))
    if per == "network":
        return {"network": paths}
    if per == "layer":
        found: dict[str, list[str]] = {}
        for keys, _ in jax.tree_util.tree_flatten_with_path(pairs, is_leaf=is_pair)[0]:
            found.setdefault(layer_of(keys), []).append(dotted(keys))
        return found
    if per == "parameter":
        return {path: [path] for path in paths}
    if not isinstance(per, Mapping) or not per:
        raise ValueError(
            f"per must be 'network', 'layer', 'parameter' or groups {{name: patterns of paths}}, but is {per!r}"
        )
    chosen = {}
    for name, patterns in per.items():
        patterns = _patterns(name, patterns)
        chosen[name] = [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]
        if not chosen[name]:
            raise ValueError(f"the group {name!r} ({', '.join(patterns)}) matches none of {', '.join(paths)}")
    if disjoint:
        for path in paths:
            owners = [name for name, members in chosen.items() if path in members]
            if len(owners) != 1:
                raise ValueError(f"each parameter must be in one group, but {path} is in {owners or 'none'}")
    return chosen


def _patterns(name: Any, patterns: Any) -> tuple[str, ...]:
    found = (patterns,) if isinstance(patterns, str) else patterns
    if not isinstance(found, tuple | list) or not found or not all(isinstance(pattern, str) for pattern in found):
        raise ValueError(
            f"the group {name!r} must be a pattern of paths such as '2.*', or several, but is {patterns!r}"
        )
    return tuple(found)


def over_stacks(values: Array) -> Float[Array, " n"]:
    """[..., n] summed over the axes l of stacks in front."""
    return values.sum(tuple(range(values.ndim - 1)))
