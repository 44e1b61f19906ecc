"""The arguments of a function under check: which can be differentiated, which are integers, keys, or Python values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbp.arguments import check_finite, dtype_of, is_float, is_number, refuse_complex, refuse_empty
from jbp.check.compare import fact, problem
from jbp.check.report import Entry
from jbp.check.trees import Leaves, normal, split
from jbp.paths import paths


@dataclass(frozen=True)
class Arguments:
    """All arguments, and the differentiable leaves of those that get a cotangent."""

    args: tuple[Any, ...]
    nondiff: tuple[int, ...]
    """The arguments that f_bwd is given first and that get no cotangent."""
    static: tuple[int, ...]
    """The arguments that are Python values and whose cotangent is None."""
    floats: Leaves
    names: list[str]
    others: dict[str, Any]
    """The leaves that are integers or keys, by path."""
    _rebuild: Callable[[Any], tuple[Any, ...]]

    @staticmethod
    def of(args: Sequence[Any], nondiff: Sequence[int], static: Sequence[int]) -> Arguments:
        """The arguments sorted.

        Raises:
            ValueError: nothing to differentiate, NaN, no number at all, an argument JAX cannot trace, a wrong argnum.
        """
        args, n = list(args), len(args)
        for what, numbers in (("nondiff_argnums", nondiff), ("static_argnums", static)):
            check_numbers(what, numbers)
            if any(not -n <= i < n for i in numbers):
                raise ValueError(f"{what} must be numbers of the {n} arguments, but are {tuple(numbers)}")
        nondiff = tuple(sorted(i % n for i in nondiff))
        static = tuple(sorted(i % n for i in static))
        active = [i for i in range(n) if i not in nondiff and i not in static]
        for i in active:
            for path, leaf in zip(paths(args[i], f"args[{i}]"), jax.tree.leaves(args[i]), strict=True):
                if not is_number(leaf):
                    raise ValueError(
                        f"{path} is a {type(leaf).__name__}, which JAX does not trace: name it in static_argnums"
                    )
            refuse_complex(f"args[{i}]", args[i])
            args[i] = jax.tree.map(_as_traced, args[i])
        tree = tuple(args[i] for i in active)
        floats, rebuild = split(tree)
        if not floats:
            raise ValueError("none of the arguments is of floats: there would be nothing to check")
        if not any(leaf.size for leaf in floats):
            for i in active:
                refuse_empty(f"args[{i}]", args[i])
        for i in active:
            check_finite(f"args[{i}]", args[i])
        named = [
            (path, leaf)
            for i in active
            for path, leaf in zip(paths(args[i], f"args[{i}]"), jax.tree.leaves(args[i]), strict=True)
        ]

        def whole(new: Any) -> tuple[Any, ...]:
            full, filled = list(args), rebuild(new)
            for i, arg in zip(active, filled, strict=True):
                full[i] = arg
            return tuple(full)

        return Arguments(
            tuple(args),
            nondiff,
            static,
            floats,
            [p for p, leaf in named if is_float(leaf)],
            {p: leaf for p, leaf in named if not is_float(leaf)},
            whole,
        )

    def rebuilt(self, floats: Any) -> tuple[Any, ...]:
        """All arguments, with these in place of the differentiable leaves."""
        return self._rebuild(floats)

    @property
    def expected(self) -> list[int]:
        """The arguments that f_bwd returns a cotangent for."""
        return [i for i in range(len(self.args)) if i not in self.nondiff]

    def random_delta(self, key: Any, out: Any) -> Leaves:
        """A random δ for each output that can be differentiated."""
        return normal(key, [leaf for leaf in jax.tree.leaves(out) if jnp.issubdtype(leaf.dtype, jnp.floating)])

    def pairs(self, cotangents: Any) -> list[tuple[str, Any, Any]]:
        """(path, argument leaf, its cotangent leaf), where None stands for zeros."""
        found = []
        for i, cotangent in zip(self.expected, tuple(cotangents), strict=True):
            if i in self.static:
                continue
            leaves = jax.tree.leaves(self.args[i])
            names = paths(self.args[i], f"args[{i}]")
            found += list(zip(names, leaves, in_tree_of(self.args[i], cotangent), strict=True))
        return found

    def of_floats(self, cotangents: Any) -> Leaves:
        """The cotangents of the differentiable leaves; None means zeros."""
        return [
            jnp.zeros(jnp.shape(leaf), dtype_of(leaf)) if c is None else c
            for _, leaf, c in self.pairs(cotangents)
            if is_float(leaf)
        ]

    def of_others(self, cotangents: Any) -> Leaves:
        """The cotangents of integers and keys, as floats: each must be zero."""
        return [
            jnp.zeros((), jnp.float32) if c is None or c.dtype == jax.dtypes.float0 else jnp.abs(c).astype(jnp.float32)
            for _, leaf, c in self.pairs(cotangents)
            if not is_float(leaf)
        ]

    def as_cotangents(self, floats: Any) -> tuple[Any, ...]:
        """Cotangents of every argument, from those of the differentiable leaves: None for the rest."""
        at = iter(floats)
        whole = []
        for i in self.expected:
            leaves, structure = jax.tree.flatten(self.args[i])
            if i in self.static:
                whole.append(None)
            else:
                whole.append(jax.tree.unflatten(structure, [next(at) if is_float(leaf) else None for leaf in leaves]))
        return tuple(whole)


def _as_traced(leaf: Any) -> Any:
    """A leaf in the dtype that JAX traces it in: numpy's float64 is narrower there, unless x64 is enabled."""
    if not isinstance(leaf, np.ndarray | np.generic):
        return leaf
    return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))


def in_tree_of(argument: Any, cotangent: Any) -> Leaves:
    """A cotangent, or None for zeros, for each leaf of the argument, where None may stand for a leaf or for a subtree.

    Raises:
        ValueError: the trees do not fit.
    """
    found: Leaves = []

    def one(c: Any, a: Any) -> None:
        if c is None:
            found.extend([None] * len(jax.tree.leaves(a)))
        elif jax.tree_util.all_leaves([a]):
            found.append(c)
        else:
            raise ValueError("a leaf where the argument has none")

    jax.tree.map(one, cotangent, argument, is_leaf=lambda c: c is None)
    return found


def check_numbers(what: str, numbers: Any) -> None:
    """Refuse argument numbers that are no tuple of whole numbers.

    Raises:
        ValueError: naming `what`.
    """
    if not isinstance(numbers, tuple | list) or not all(isinstance(i, (int, np.integer)) for i in numbers):
        raise ValueError(f"{what} must be a tuple of numbers of arguments, such as (1,), but is {numbers!r}")


def cotangent_like(out: Any, delta: Leaves) -> Any:
    """δ in the tree of the output; float0 zeros at integers and keys, as JAX gives them."""
    given = iter(delta)

    def one(leaf: Any) -> Any:
        if jnp.issubdtype(dtype_of(leaf), jnp.floating):
            return next(given)
        return np.zeros(jnp.shape(leaf), jax.dtypes.float0)

    return jax.tree.map(one, out)


def find_cotangent_problems(cotangents: Any, arguments: Arguments) -> list[Entry]:
    """The structure, shapes and dtypes that f_bwd's answer must have."""
    n = len(arguments.expected)
    law = "cotangents"
    if not isinstance(cotangents, tuple | list) or len(cotangents) != n:
        came = f"{len(cotangents)}" if isinstance(cotangents, tuple | list) else f"a {type(cotangents).__name__}"
        what = f"must return a tuple of {n} cotangents, one for each argument, but returned {came}"
        return [problem(law, "f_bwd", what)]
    entries = []
    for i, cotangent in zip(arguments.expected, cotangents, strict=True):
        path = f"args[{i}]"
        if i in arguments.static:
            if jax.tree.leaves(cotangent):
                entries.append(problem(law, path, f"a static argument's cotangent must be None, but is {cotangent}"))
            continue
        if cotangent is None:
            continue
        try:
            in_tree_of(arguments.args[i], cotangent)
        except ValueError:
            have, want = jax.tree.structure(cotangent), jax.tree.structure(arguments.args[i])
            entries.append(problem(law, path, f"its tree is {have}, where the argument's is {want}"))
    if entries:
        return entries
    for path, leaf, c in arguments.pairs(cotangents):
        if c is None or (c.dtype == jax.dtypes.float0 and not is_float(leaf)):
            entries.append(fact(law, path, "protocol", True, ""))
            continue
        shape = np.shape(leaf)
        if tuple(c.shape) != shape:
            guess = "transposed" if tuple(c.shape) == shape[::-1] and len(shape) > 1 else None
            entries.append(problem("shapes", path, f"its cotangent has shape {tuple(c.shape)}, not {shape}", guess))
        elif is_float(leaf) and c.dtype != dtype_of(leaf):
            entries.append(problem("dtypes", path, f"its cotangent is {c.dtype}, the argument {dtype_of(leaf)}"))
        else:
            entries.append(fact(law, path, "protocol", True, ""))
    return entries
