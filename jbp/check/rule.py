"""The laws of a rule: what a backward pass written by hand must give, whoever calls it, against each oracle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbp.arguments import as_key, dtype_of, is_float, refuse_complex, refuse_empty
from jbp.check.arguments import Arguments, cotangent_like, find_cotangent_problems
from jbp.check.compare import PRECISION, compare, explain, fact, largest, problem, skipped
from jbp.check.compiled import compiled, wide
from jbp.check.complex_step import complex_step
from jbp.check.finite_differences import finite_differences
from jbp.check.kinks import after_moving, at_kink, moved, no_excuse, outside, spans
from jbp.check.linear import linear_in_delta, mixed
from jbp.check.report import Entry, Report
from jbp.check.tolerance import EXACT, Level
from jbp.check.trees import Leaves, as_array, cast, entropy, nudged
from jbp.paths import paths


@dataclass(frozen=True, eq=False)
class Claim:
    """What is checked: that `by_hand` answers with the output and the cotangents of `primal`."""

    subject: str
    primal: Any
    by_hand: Any
    reference: Any
    """A plain function that autodiff can differentiate, or None."""
    autodiff: bool = True
    """Whether autodiff of the primal function is an oracle."""


def check_rule(
    claim: Claim, arguments: Arguments, key: Any, level: Level, differences: bool, is_moved: bool = False
) -> Report:
    """All laws: structure first, then numbers against each oracle that applies."""
    subject, primal, by_hand, reference = claim.subject, claim.primal, claim.by_hand, claim.reference
    seed = entropy(as_key(key))
    floats = arguments.floats
    try:
        out = jax.eval_shape(lambda p: primal(*arguments.rebuilt(p)), floats)
    except Exception as error:
        return Report(subject, (problem("runs", "f", f"does not trace: {explain(error)}"),))
    refuse_complex("f's output", out)
    deltas = [arguments.random_delta(entropy(seed, i), out) for i in (0, 1)]
    if not any(delta.size for delta in deltas[0]):
        refuse_empty("f's output", out)
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
        _, mix = by_hand(floats, [mixed(a, b) for a, b in zip(delta, other, strict=True)])
        keep = arguments.of_floats
        return out, keep(cotangents), keep(more), keep(mix), arguments.of_others(cotangents)

    with jax.default_matmul_precision(PRECISION):
        try:
            out_found, found, more, mix, rest = compiled(program)(floats, *deltas)
            out_value = compiled(lambda p: primal(*arguments.rebuilt(p)))(floats)
        except Exception as error:
            return Report(subject, (*entries, problem("runs", "under jit", explain(error))))
        entries += _outputs(out_found, out_value, "f", level)
        for (name, leaf), value in zip(arguments.others.items(), rest, strict=True):
            law, zero = "no cotangent for integers and keys", np.zeros(value.shape)
            note = "" if type(leaf) is not int else f"it is {leaf!r}: for a number to differentiate give {leaf:.1f}"
            entries.append(compare(law, name, "definition", value, zero, EXACT, dtype=np.float32, note=note))
        for name, m, a, b in zip(arguments.names, mix, found, more, strict=True):
            entries.append(linear_in_delta(name, m, a, b, level))
        derivative = _autodiff(
            primal if claim.autodiff else None, reference, arguments, deltas[0], found, out_found, level
        )
    entries += derivative
    entries += [
        skipped(
            "point", name, "itself", "its cotangent is zero here, so no factor in it was tried: check elsewhere too"
        )
        for name, a in zip(arguments.names, found, strict=True)
        if a.size and not np.asarray(a).astype(np.float64).any()
    ]
    plain = reference or primal
    if not differences:
        entries += _trusted(plain, arguments)
    failed = any(entry.law == "= vjp" and entry.verdict == "fail" for entry in derivative)
    if failed and not is_moved and at_kink(_slope_of(plain, arguments), arguments.floats, deltas[0], seed):
        beside = replace(arguments, floats=moved(arguments.floats, seed))
        kept = [*no_excuse(entries), *_outside(plain, arguments, found, deltas[0], seed)]
        report = check_rule(claim, beside, key, level, differences, is_moved=True)
        return after_moving(report, "args", kept)
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
        floats = [cast(leaf, jnp.float32) if leaf.dtype.itemsize < 4 else leaf for leaf in floats]
    names, candidates = _candidates(wide)
    try:
        kinds = jax.eval_shape(lambda p: plain(*arguments.rebuilt(p)), floats)
        kinds = [leaf.dtype for leaf in jax.tree.leaves(kinds) if _is_float_struct(leaf)]
        stacked = [
            as_array(np.stack(list(c)).astype(kind))
            for c, kind in zip(zip(*candidates, strict=True), kinds, strict=True)
        ]
        run = compiled(program)
        value, gradients = run(floats, stacked)
        gradients = [np.asarray(g) for g in gradients]
    except Exception as error:
        why = f"autodiff cannot differentiate it: {explain(error)}"
        if reference is not None:
            return [problem("= vjp", "reference", why)]
        return [skipped("= vjp", name, oracle, why) for name in arguments.names]
    entries = _outputs(out, value, "the reference", level) if reference is not None else []
    source = max(largest(d) for d in delta)
    twins = _twins(run, arguments.floats, floats, delta, stacked)
    for i, (name, mine, leaf) in enumerate(zip(arguments.names, found, arguments.floats, strict=True)):
        right = gradients[i][0]
        clues = _clues(
            names, gradients[i], delta, leaf, out, lambda i=i: _forgotten(run, i, arguments, floats, stacked)
        )
        sizes = {
            f"the size of axis {axis} of {n}": s
            for n, a in zip(arguments.names, arguments.floats, strict=True)
            for axis, s in enumerate(a.shape)
        }
        entries.append(
            compare(
                "= vjp",
                name,
                oracle,
                mine,
                right,
                level,
                dtype=leaf.dtype,
                source=source,
                twins=lambda i=i: [np.asarray(gradients[i])[0] for gradients in twins()],
                sizes=sizes,
                clues=clues,
                factors=lambda: dict(zip(arguments.names, arguments.floats, strict=True)),
            )
        )
    return entries


def _trusted(plain: Any, arguments: Arguments) -> list[Entry]:
    """An entry that says whose rules autodiff took on trust, where there are no differences that would not."""
    try:
        traced = jax.make_jaxpr(lambda p: plain(*arguments.rebuilt(p)))(arguments.floats)
    except Exception:  # what does not trace has been told so
        return []
    names = sorted(set(_custom(traced.jaxpr)))
    if not names:
        return []
    why = f"autodiff takes the custom rules of {', '.join(names)} on trust: differences=True does not"
    return [skipped("= vjp", "f", "finite differences", why)]


def _custom(jaxpr: Any) -> Iterator[str]:
    """The names of the functions with a rule of their own, in sub-programs too."""
    for eqn in jaxpr.eqns:
        inside = [getattr(p, "jaxpr", p) for p in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)]
        inside = [inner for inner in inside if hasattr(inner, "eqns")]
        if eqn.primitive.name.startswith(("custom_vjp_call", "custom_jvp_call")):
            yield next((getattr(inner.debug_info, "func_name", "f") for inner in inside), "f").split(" at ")[0]
        for inner in inside:
            yield from _custom(inner)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")


def _twins(run: Any, given: Leaves, floats: Leaves, delta: Leaves, deltas: Leaves) -> Any:
    """What the oracle gives at a point a rounding of the given arguments away, and in float64 where it can be run."""

    @cache
    def twins() -> list[Any]:
        point, near = nudged((given, delta), (0,))
        near = [as_array(np.broadcast_to(d, a.shape).astype(a.dtype)) for d, a in zip(near, deltas, strict=True)]
        found = [run([cast(p, f.dtype) for p, f in zip(point, floats, strict=True)], near)[1]]
        with contextlib.suppress(Exception), wide():
            found.append(run(cast(floats, jnp.float64), cast(deltas, jnp.float64))[1])
        return found

    return twins


def _candidates(delta: Any) -> tuple[list[str], list[Any]]:
    """δ, and the δ of the usual mistakes."""
    delta = [np.asarray(d) for d in delta]
    rows: dict[str, Any] = {"": lambda d: d, "δ left out: it is the cotangent for a δ of ones": np.ones_like}
    rows["one example's δ given to another: δ reversed along its first axis"] = lambda d: d[::-1] if d.ndim else d
    rows["one example's δ given to another: δ rolled by 1 along its first axis"] = lambda d: (
        np.roll(d, 1, 0) if d.ndim else d
    )
    rows["one example's δ given to another: δ rolled by −1 along its first axis"] = lambda d: (
        np.roll(d, -1, 0) if d.ndim else d
    )
    if len(delta) > 1:
        for i in range(len(delta)):
            rows[f"a dropped term: output {i} is not differentiated"] = i
    made = []
    for change in rows.values():
        if isinstance(change, int):
            made.append([np.zeros_like(d) if i == change else d for i, d in enumerate(delta)])
        else:
            made.append([change(d) for d in delta])
    return list(rows), made


def _forgotten(run: Any, i: int, arguments: Arguments, floats: Leaves, deltas: Leaves) -> dict[str, Any]:
    """What the oracle gives for argument i where another is all ones: what comes of forgetting to multiply by it."""
    found = {}
    for j, (name, leaf) in enumerate(zip(arguments.names, floats, strict=True)):
        if j != i:
            ones = [as_array(np.ones(leaf.shape, leaf.dtype)) if k == j else a for k, a in enumerate(floats)]
            with contextlib.suppress(Exception):  # where that is outside the function's domain it is no clue
                found[f"a factor forgotten: found is right where {name} is all ones"] = run(ones, deltas)[1][i][0]
    return found


def _clues(names: list[str], gradients: Any, delta: Any, leaf: Any, out: Any, forgotten: Any) -> Any:
    def clues() -> dict[str, Any]:
        found = forgotten() | dict(zip(names[1:], gradients[1:], strict=True))
        outs = [o for o in jax.tree.leaves(out) if is_float(o)]
        for d, o in zip(delta, outs, strict=True):
            if d.shape == leaf.shape:
                found["the derivative is missing: found = δ, passed through as it came"] = d
                found["a dropped term: found = y∘δ"] = np.asarray(o).astype(np.float64) * np.asarray(d).astype(
                    np.float64
                )
        return found

    return clues


def _slope_of(plain: Any, arguments: Arguments) -> Any:
    """⟨f, δ⟩ as a function of the differentiable leaves."""

    def function(floats: Any, delta: Any) -> tuple[Any, Any]:
        out = map(jnp.asarray, jax.tree.leaves(plain(*arguments.rebuilt(floats))))
        out = [o for o in out if jnp.issubdtype(o.dtype, jnp.inexact)]
        terms = jnp.concatenate([(o * d.astype(o.dtype)).reshape(-1) for o, d in zip(out, delta, strict=True)])
        return terms.sum(), terms

    return function


def _slopes(plain: Any, by_hand: Any, arguments: Arguments, delta: Any, seed: Any) -> list[Entry]:
    """Finite differences and the complex step of ⟨f, δ⟩."""
    function = _slope_of(plain, arguments)

    def gradient(floats: Any, delta: Any) -> Any:
        out, _ = jax.eval_shape(by_hand, floats, delta)
        kinds = [leaf.dtype for leaf in jax.tree.leaves(out) if _is_float_struct(leaf)]
        cotangents = by_hand(floats, [d.astype(kind) for d, kind in zip(delta, kinds, strict=True)])[1]
        return arguments.of_floats(cotangents)

    entries = finite_differences(function, gradient, arguments.floats, delta, arguments.names, seed)
    source = max(largest(d) for d in delta)
    return entries + complex_step(function, gradient, arguments.floats, delta, arguments.names, seed, source)


def _outside(plain: Any, arguments: Arguments, found: Any, delta: Any, seed: Any) -> list[Entry]:
    """The cotangents that lie outside the span of the slopes around a kink."""
    function = _slope_of(plain, arguments)

    def slopes(floats: Any, delta: Any) -> Any:
        return jax.grad(lambda p: function(p, delta)[0])(floats)

    allowed = spans(slopes, arguments.floats, delta, seed)
    return outside(arguments.names, found, allowed, source=max(largest(d) for d in delta))


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


def _is_float_struct(leaf: Any) -> bool:
    """Whether an abstract or concrete output is real floating point."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)
