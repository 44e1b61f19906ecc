"""`jbp.check.vjp` and `jbp.check.custom_vjp`: any backward pass written by hand, not only jbp's.

    backward(saved, δ) = Jᵀδ,  J the derivative of the primal function beneath the custom rule

against autodiff of the primal function, or of a plain reference, or finite differences where neither can be
differentiated. Source: the conventions are those of `jax.custom_vjp`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jbp.check.arguments import Arguments, cotangent_like, find_cotangent_problems
from jbp.check.compare import PRECISION, compare, explain, fact, largest, problem, skipped
from jbp.check.complex_step import complex_step
from jbp.check.finite_differences import finite_differences
from jbp.check.report import Entry, Report
from jbp.check.tolerance import EXACT, MATMUL, Level
from jbp.check.trees import as_key, dtype_of, entropy, is_float, paths

A, B = 0.75, -1.5


def vjp(
    f: Callable[..., Any],
    f_fwd: Callable[..., Any],
    f_bwd: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    nondiff_argnums: tuple[int, ...] = (),
    static_argnums: tuple[int, ...] = (),
    key: int | Array = 0,
    level: Level = MATMUL,
    differences: bool = True,
) -> Report:
    """Check f_fwd(*args) -> (out, saved) and f_bwd(*nondiff, saved, δ) -> one cotangent for each other argument.

        f_fwd's out = f · f = reference · cotangents = jax.vjp of the reference, or of f · linear in δ ·
        structure, shapes and dtypes of the arguments · nothing but None, float0 or zeros for integers and keys ·
        slope of ⟨f, δ⟩ by finite differences and the complex step

    Args:
        f: the primal function, without a custom rule.
        f_fwd: forward, as for `jax.custom_vjp.defvjp`.
        f_bwd: backward.
        args: where to check; pytrees of arrays, integers and keys among them.
        reference: a plain function that autodiff can differentiate, for an `f` that it cannot, or to check `f` itself.
        nondiff_argnums: as for `jax.custom_vjp`: these come first in f_bwd and get no cotangent.
        static_argnums: arguments that are Python values (a string, a size): passed as they are, never traced; their
            cotangent is None.
        key: a seed or a key, for δ and the directions.
        level: the tolerance; at 16 bits always LOW_PRECISION, against autodiff in float32.
        differences: whether to run finite differences; they always run where autodiff cannot.

    Raises:
        ValueError: nothing to differentiate, an empty argument, NaN, argument numbers out of range.
    """
    for name, function in (("f", f), ("f_fwd", f_fwd), ("f_bwd", f_bwd)):
        if not callable(function):
            raise ValueError(f"{name} must be a function, but is {function!r}")
    arguments = Arguments.of(args, nondiff_argnums, static_argnums)
    primal = _beneath(f)

    def by_hand(floats: Any, delta: Any) -> tuple[Any, Any]:
        full = arguments.rebuilt(floats)
        answer = f_fwd(*full)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ValueError(f"f_fwd must return (out, saved), but returned {type(answer).__name__}")
        out, saved = answer
        return out, f_bwd(*(full[i] for i in arguments.nondiff), saved, cotangent_like(out, delta))

    name = f"the VJP of {getattr(f, '__name__', repr(f))}"
    return _check(name, primal, by_hand, arguments, reference, key, level, differences)


def custom_vjp(
    f: Any,
    *args: Any,
    reference: Callable[..., Any] | None = None,
    nondiff_argnums: tuple[int, ...] = (),
    static_argnums: tuple[int, ...] = (),
    key: int | Array = 0,
    level: Level = MATMUL,
    differences: bool = True,
) -> Report:
    """Check a function with a custom rule: a `jax.custom_vjp` object, or any function that holds one.

    For a `jax.custom_vjp` object everything is as in `vjp`, with the function beneath the rule, its rule, and its
    nondiff_argnums taken from it, and besides `jax.vjp(f)` gives what the rule gives. Any other function is checked
    as `jax.vjp` sees it: against `reference`, which it needs then unless finite differences are to decide alone.

    Raises:
        ValueError: as in `vjp`; a `jax.custom_vjp` without its defvjp.
    """
    if not callable(f):
        raise ValueError(f"f must be a function, but is {f!r}")
    subject = f"the custom VJP of {getattr(f, '__name__', repr(f))}"
    if isinstance(f, jax.custom_vjp):
        if f.fwd is None or f.bwd is None:
            raise ValueError(f"{f.__name__} has no rule to check: call {f.__name__}.defvjp(fwd, bwd) first")
        nondiff = tuple(f.nondiff_argnums)
        if nondiff_argnums and tuple(nondiff_argnums) != nondiff:
            raise ValueError(f"nondiff_argnums are {nondiff} in the jax.custom_vjp, but {nondiff_argnums} were given")
        if not f.symbolic_zeros:
            report = vjp(
                f,
                f.fwd,
                f.bwd,
                *args,
                reference=reference,
                nondiff_argnums=nondiff,
                static_argnums=static_argnums,
                key=key,
                level=level,
                differences=differences,
            )
            arguments = Arguments.of(args, nondiff, static_argnums)
            return Report(subject, (*report.entries, *_through_jax(f, arguments, key, level)))
        nondiff_argnums, primal = nondiff, _beneath(f)
    else:
        primal = None
    # Where jax.vjp drives the rule, an argument held fixed is one that is closed over.
    arguments = Arguments.of(args, (), (*nondiff_argnums, *static_argnums))

    def by_hand(floats: Any, delta: Any) -> tuple[Any, Any]:
        out, pull = jax.vjp(lambda floats: f(*arguments.rebuilt(floats)), floats)
        return out, arguments.as_cotangents(pull(cotangent_like(out, delta))[0])

    return _check(
        subject, primal or f, by_hand, arguments, reference, key, level, differences, autodiff=primal is not None
    )


def _check(
    subject: str,
    primal: Any,
    by_hand: Any,
    arguments: Arguments,
    reference: Any,
    key: Any,
    level: Level,
    differences: bool,
    autodiff: bool = True,
) -> Report:
    """All laws: structure first, then numbers against each oracle that applies."""
    seed = entropy(as_key(key))
    floats = arguments.floats
    try:
        out = jax.eval_shape(lambda p: primal(*arguments.rebuilt(p)), floats)
    except Exception as error:
        return Report(subject, (problem("runs", "f", f"does not trace: {explain(error)}"),))
    deltas = [arguments.random_delta(entropy(seed, i), out) for i in (0, 1)]
    if not deltas[0]:
        raise ValueError("f returns nothing that can be differentiated: there would be nothing to check")
    try:
        hand_out, cotangents = jax.eval_shape(by_hand, floats, deltas[0])
    except Exception as error:
        return Report(subject, (problem("runs", "f_fwd, f_bwd", explain(error)),))
    entries = _same_shapes("= f", "f_fwd's out", hand_out, out)
    found_problems = find_cotangent_problems(cotangents, arguments)
    entries += found_problems
    if any(entry.verdict == "fail" and entry.law != "dtypes" for entry in entries):
        return Report(subject, tuple(entries))

    def program(floats: Any, delta: Any, other: Any) -> Any:
        out, cotangents = by_hand(floats, delta)
        _, more = by_hand(floats, other)
        _, mixed = by_hand(floats, [A * a + B * b for a, b in zip(delta, other, strict=True)])
        keep = arguments.of_floats
        return out, keep(cotangents), keep(more), keep(mixed), arguments.of_others(cotangents)

    with jax.default_matmul_precision(PRECISION):
        try:
            out_found, found, more, mixed, rest = jax.jit(program)(floats, *deltas)
            out_value = jax.jit(lambda p: primal(*arguments.rebuilt(p)))(floats)
        except Exception as error:
            return Report(subject, (*entries, problem("runs", "under jit", explain(error))))
        entries += _outputs(out_found, out_value, "f", level)
        for name, value in zip(arguments.other_names, rest, strict=True):
            entries.append(
                compare(
                    "no cotangent for integers and keys",
                    name,
                    "definition",
                    value,
                    np.zeros(value.shape),
                    EXACT,
                    dtype=np.float32,
                )
            )
        for name, m, a, b in zip(arguments.names, mixed, found, more, strict=True):
            a, b = (np.asarray(v).astype(np.float64) for v in (a, b))
            terms = max(abs(A) * largest(a), abs(B) * largest(b))
            entries.append(compare("linear in δ", name, "itself", m, A * a + B * b, level, dtype=m.dtype, terms=terms))
        derivative = _autodiff(primal if autodiff else None, reference, arguments, deltas[0], found, out_found, level)
    entries += derivative
    plain = reference or primal
    if differences or not any(e.compared for e in derivative):
        entries += _slopes(plain, by_hand, arguments, deltas[0], seed)
    return Report(subject, tuple(entries))


def _autodiff(
    primal: Any, reference: Any, arguments: Arguments, delta: Any, found: Any, out: Any, level: Level
) -> list[Entry]:
    """Against jax.vjp of the reference, or else of the primal function, in float32 at least."""
    oracle = "autodiff of the reference" if reference is not None else "autodiff of the primal"
    plain = reference if reference is not None else primal
    if plain is None:
        return [skipped("= vjp", name, "autodiff", "no reference and no primal function") for name in arguments.names]

    def program(floats: Any, deltas: Any) -> Any:
        value, pull = jax.vjp(lambda p: plain(*arguments.rebuilt(p)), floats)
        return value, jax.lax.map(lambda delta: pull(cotangent_like(value, delta))[0], deltas)

    floats, wide = arguments.floats, delta
    if any(leaf.dtype.itemsize < 4 for leaf in floats):
        floats = [leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf for leaf in floats]
    names, candidates = _candidates(wide)
    try:
        kinds = jax.eval_shape(lambda p: plain(*arguments.rebuilt(p)), floats)
        kinds = [leaf.dtype for leaf in jax.tree.leaves(kinds) if is_float_struct(leaf)]
        stacked = [
            jnp.stack(list(c)).astype(kind) for c, kind in zip(zip(*candidates, strict=True), kinds, strict=True)
        ]
        value, gradients = jax.jit(program)(floats, stacked)
    except Exception as error:
        why = f"autodiff cannot differentiate it: {explain(error)}"
        if reference is not None:
            return [problem("= vjp", "reference", why)]
        return [skipped("= vjp", name, oracle, why) for name in arguments.names]
    entries = _outputs(out, value, "the reference", level) if reference is not None else []
    source = max(largest(d) for d in delta)
    for i, (name, mine, leaf) in enumerate(zip(arguments.names, found, arguments.floats, strict=True)):
        right = gradients[i][0]
        clues = _clues(names, gradients[i], delta, leaf, out)
        sizes = {
            f"the size of axis {axis} of {n}": s
            for n, a in zip(arguments.names, arguments.floats, strict=True)
            for axis, s in enumerate(a.shape)
        }
        entries.append(
            compare(
                "= vjp", name, oracle, mine, right, level, dtype=leaf.dtype, source=source, sizes=sizes, clues=clues
            )
        )
    return entries


def _candidates(delta: Any) -> tuple[list[str], list[Any]]:
    """δ, and the δ of the usual mistakes."""
    rows: dict[str, Any] = {"": lambda d: d, "δ left out: it is the cotangent for a δ of ones": jnp.ones_like}
    rows["one example's δ given to another: δ reversed along its first axis"] = lambda d: d[::-1] if d.ndim else d
    rows["one example's δ given to another: δ rolled by 1 along its first axis"] = lambda d: (
        jnp.roll(d, 1, 0) if d.ndim else d
    )
    rows["one example's δ given to another: δ rolled by −1 along its first axis"] = lambda d: (
        jnp.roll(d, -1, 0) if d.ndim else d
    )
    if len(delta) > 1:
        for i in range(len(delta)):
            rows[f"a dropped term: output {i} is not differentiated"] = i
    made = []
    for change in rows.values():
        if isinstance(change, int):
            made.append([jnp.zeros_like(d) if i == change else d for i, d in enumerate(delta)])
        else:
            made.append([change(d) for d in delta])
    return list(rows), made


def _clues(names: list[str], gradients: Any, delta: Any, leaf: Any, out: Any) -> Any:
    def clues() -> dict[str, Any]:
        found = dict(zip(names[1:], gradients[1:], strict=True))
        outs = [o for o in jax.tree.leaves(out) if is_float(o)]
        for d, o in zip(delta, outs, strict=True):
            if d.shape == leaf.shape:
                found["the derivative is missing: found = δ, passed through as it came"] = d
                found["a dropped term: found = y∘δ"] = np.asarray(o).astype(np.float64) * np.asarray(d).astype(
                    np.float64
                )
        return found

    return clues


def _slopes(plain: Any, by_hand: Any, arguments: Arguments, delta: Any, seed: Any) -> list[Entry]:
    """Finite differences and the complex step of ⟨f, δ⟩."""

    def function(floats: Any, delta: Any) -> tuple[Any, Any]:
        out = [o for o in jax.tree.leaves(plain(*arguments.rebuilt(floats))) if jnp.issubdtype(o.dtype, jnp.inexact)]
        terms = jnp.concatenate([(o * d.astype(o.dtype)).reshape(-1) for o, d in zip(out, delta, strict=True)])
        return terms.sum(), terms

    def gradient(floats: Any, delta: Any) -> Any:
        out, _ = jax.eval_shape(by_hand, floats, delta)
        kinds = [leaf.dtype for leaf in jax.tree.leaves(out) if is_float_struct(leaf)]
        cotangents = by_hand(floats, [d.astype(kind) for d, kind in zip(delta, kinds, strict=True)])[1]
        return arguments.of_floats(cotangents)

    entries = finite_differences(function, gradient, arguments.floats, delta, arguments.names, seed)
    return entries + complex_step(function, gradient, arguments.floats, delta, arguments.names, seed)


def _through_jax(f: Any, arguments: Arguments, key: Any, level: Level) -> list[Entry]:
    """`jax.vjp` of the decorated function against its rule, called by hand."""
    law, names = "jax.vjp(f) = the rule", arguments.names

    def program(floats: Any, delta: Any) -> Any:
        full = arguments.rebuilt(floats)
        out, saved = f.fwd(*full)
        direct = f.bwd(*(full[i] for i in arguments.nondiff), saved, cotangent_like(out, delta))
        _, pull = jax.vjp(lambda floats: f(*arguments.rebuilt(floats)), floats)
        return arguments.of_floats(direct), pull(cotangent_like(out, delta))[0]

    try:
        out = jax.eval_shape(lambda p: f(*arguments.rebuilt(p)), arguments.floats)
        delta = arguments.random_delta(as_key(key), out)
        with jax.default_matmul_precision(PRECISION):
            direct, pulled = jax.jit(program)(arguments.floats, delta)
    except Exception as error:
        return [problem(law, "f", explain(error))]
    source = max(largest(d) for d in delta)
    return [
        compare(law, name, "itself", a, b, level, dtype=leaf.dtype, source=source)
        for name, a, b, leaf in zip(names, direct, pulled, arguments.floats, strict=True)
    ]


def _outputs(found: Any, expected: Any, whose: str, level: Level) -> list[Entry]:
    """Outputs leaf by leaf: floats to the level, integers exactly."""
    bad = _same_shapes(f"= {whose}", "out", found, expected, kinds=False)
    if any(entry.verdict == "fail" for entry in bad):
        return bad
    entries = []
    for path, a, b in zip(paths(expected, "out"), jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if is_float(b):
            entries.append(compare(f"= {whose}", path, whose, a, b, level, dtype=dtype_of(a)))
        elif not jnp.issubdtype(dtype_of(b), jax.dtypes.prng_key):
            entries.append(compare(f"= {whose}", path, whose, a, b, EXACT, dtype=np.float32))
    return entries


def _same_shapes(law: str, path: str, found: Any, expected: Any, kinds: bool = True) -> list[Entry]:
    have, want = jax.tree.structure(found), jax.tree.structure(expected)
    if have != want:
        return [problem(law, path, f"its tree is {have}, where {want} is expected")]
    for where, a, b in zip(paths(expected, path), jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if a.shape != b.shape or (kinds and a.dtype != b.dtype):
            return [problem(law, where, f"it is {a.dtype}{list(a.shape)}, where {b.dtype}{list(b.shape)} is expected")]
    return [fact(law, path, "protocol", True, "")]


def _beneath(f: Any) -> Any:
    """The function beneath a custom rule."""
    return f.fun if isinstance(f, (jax.custom_vjp, jax.custom_jvp)) else f


def is_float_struct(leaf: Any) -> bool:
    """Whether an abstract or concrete output is real floating point."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)
