"""`jbp.check.vjp` and `jbp.check.custom_vjp`: any backward pass written by hand, not only jbp's.

    backward(saved, δ) = Jᵀδ,  J the derivative of the primal function beneath the custom rule

against autodiff of the primal function, or of a plain reference, or finite differences where neither can be
differentiated. Source: the conventions are those of `jax.custom_vjp`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jbp.arguments import as_key, check_function
from jbp.check.arguments import Arguments, check_numbers, cotangent_like
from jbp.check.compare import PRECISION, compare, explain, largest, problem
from jbp.check.compiled import apart, compiled
from jbp.check.report import Entry, Report
from jbp.check.rule import Claim, check_rule
from jbp.check.tolerance import MATMUL, Level, check_level


@apart
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
        args: where to check; pytrees of arrays, integers and keys among them. numpy's float64 are checked in the dtype
            that JAX traces them in.
        reference: a plain function that autodiff can differentiate, for an `f` that it cannot, or to check `f` itself.
        nondiff_argnums: as for `jax.custom_vjp`: these come first in f_bwd and get no cotangent.
        static_argnums: arguments that are Python values (a string, a size): passed as they are, never traced; their
            cotangent is None.
        key: a seed or a key, for δ and the directions.
        level: the tolerance; at 16 bits always LOW_PRECISION, against autodiff in float32.
        differences: whether to run finite differences; they always run where autodiff cannot.

    Raises:
        ValueError: nothing to differentiate, no argument that holds a number, NaN, argument numbers out of range.
    """
    for name, function in (("f", f), ("f_fwd", f_fwd), ("f_bwd", f_bwd)):
        check_function(function, name)
    check_level(level)
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
    return check_rule(Claim(name, primal, by_hand, reference), arguments, key, level, differences)


@apart
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
    check_function(f, "f")
    check_level(level)
    for what, numbers in (("nondiff_argnums", nondiff_argnums), ("static_argnums", static_argnums)):
        check_numbers(what, numbers)
    subject = f"the custom VJP of {getattr(f, '__name__', repr(f))}"
    if isinstance(f, jax.custom_vjp):
        if f.fwd is None or f.bwd is None:
            raise ValueError(f"{f.__name__} has no rule to check: call {f.__name__}.defvjp(fwd, bwd) first")
        args, nondiff = _with_defaults(f.fun, args), tuple(f.nondiff_argnums)
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

    claim = Claim(subject, primal or f, by_hand, reference, autodiff=primal is not None)
    return check_rule(claim, arguments, key, level, differences)


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
            direct, pulled = compiled(program)(arguments.floats, delta)
    except Exception as error:
        return [problem(law, "f", explain(error))]
    source = max(largest(d) for d in delta)
    return [
        compare(law, name, "itself", a, b, level, dtype=leaf.dtype, source=source)
        for name, a, b, leaf in zip(names, direct, pulled, arguments.floats, strict=True)
    ]


def _with_defaults(f: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments that a `jax.custom_vjp` hands to its rule: the defaults of those not given among them."""
    try:
        bound = inspect.signature(f).bind(*args)
    except (TypeError, ValueError):  # without a signature, or called wrongly: what comes of that is told by the call
        return args
    bound.apply_defaults()
    return args if bound.kwargs else bound.args


def _beneath(f: Any) -> Any:
    """The function beneath a custom rule."""
    return f.fun if isinstance(f, (jax.custom_vjp, jax.custom_jvp)) else f
