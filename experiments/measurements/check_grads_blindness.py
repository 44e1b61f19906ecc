"""Which of the named mutants JAX's and chex's gradient checkers catch, beside jbp's own check; and two traps of theirs.

    python experiments/measurements/check_grads_blindness.py [--quick]

Every mutant of tests/mutation/mutants.py that is a derivative is given to `jax.test_util.check_grads` and to
`chex.assert_numerical_grads` as a user would: a `jax.custom_vjp` around the forward pass with the backward pass as its
rule, reverse mode, default tolerances, in float32 (JAX's default) and float64. A mutant is caught if the checker raises
on it and not on the right code. Optimisers and square roots of Hessians are no derivative of a function: "no".
When all have run, whatever it shows is saved to experiments/results/check_grads.json and written to docs/mutants.md
(about 3 minutes; `--quick`: a few seconds, nothing saved).
"""

import argparse
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ["JAX_ENABLE_X64"] = "1"
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path += [str(Path(__file__).resolve().parents[2] / "tests" / part) for part in ("", "mutation")]

import common
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads, check_jvp
from mutant_tools import Mutant, planted
from mutants import CHECKS, MUTANTS
from mutate_page import write

import jbp
import jbp.check
from jbp import losses
from jbp.backprop import total

CHEX: Any = importlib.import_module("chex") if importlib.util.find_spec("chex") else None
RESULT = common.RESULTS / "check_grads.json"
QUICK = (("tanh", "θ′ missing"), ("sgd", "uphill"))
SIZES = ((np.float32, 10, 10.0), (np.float32, 10_000, 10.0), (np.float64, 100_000, 2.0))
"""dtype, elements, the factor by which a tangent is wrong."""


def custom(value: Any, rule: Any) -> Any:
    """A function of arrays with a rule for its way back: what a user would give to check_grads."""
    f = jax.custom_vjp(value)
    f.defvjp(lambda *args: (value(*args), args), lambda args, delta: rule(args, delta))
    return f


def as_function(mutant: Mutant, subject: Any, dtype: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """The subject as a function with a custom rule and its arguments; None where there is no derivative to check."""
    kind, _, rest = mutant.check.partition(" ")
    draw = jax.random.split(jax.random.key(3), 3)
    if kind == "layer":
        shape = tuple(int(n) for n in rest.strip("(,)").split(",") if n.strip())
        params = jax.tree.map(lambda p: p.astype(dtype) + dtype(0.1), subject.init(draw[0], shape)[0])
        key = draw[1] if subject.uses_key else None
        x = jax.random.normal(draw[2], (3, *shape), dtype)

        def rule(args: Any, delta: Any) -> Any:
            _, saved = jbp.forward(subject, args[0], args[1], key)
            delta_x, sums = jbp.backward(subject, args[0], saved, delta, total)
            return sums, delta_x

        return custom(lambda params, x: jbp.forward(subject, params, x, key)[0], rule), (params, x)
    if kind in ("loss", "loss,") and "Hessian" not in mutant.name and "root" not in mutant.name:
        shape = (3, 5) if "(3, 5)" in rest else (7,)
        x = jax.random.normal(draw[0], (3, *shape), dtype)
        softmax = isinstance(subject, (losses.SoftmaxCrossEntropy, losses.CrossEntropy))
        t = jax.nn.softmax(jax.random.normal(draw[1], (3, *shape), dtype)) if softmax else x[::-1] + dtype(0.3)
        t = 2 * t if "given" in rest else t
        x = jax.nn.softmax(x) if isinstance(subject, losses.CrossEntropy) else x

        def loss_rule(args: Any, delta: Any) -> Any:
            return (jax.vmap(subject.delta)(args[0], t) * delta.reshape(-1, *(1,) * len(shape)),)

        return custom(lambda x: jax.vmap(subject.value)(x, t), loss_rule), (x,)
    if kind in ("gradient", "gradient,"):
        params = jax.tree.map(lambda p: p.astype(dtype), subject.init(draw[0], (3,))[0])
        x, y = jax.random.normal(draw[1], (5, 3), dtype), jax.random.normal(draw[2], (5, 2), dtype)
        weights = jnp.asarray([0.5, 0.2, 0.0, 0.7, 0.3], dtype) if rest else None
        x = x.at[2].set(jnp.nan) if "blank" in rest else x
        if mutant.where in ("Outer", "contract"):
            return None  # only the contraction of kept pairs goes this way: there is no function to differentiate

        def right(params: Any) -> Any:
            silent = x if weights is None else jnp.where(weights[:, None] == 0, 0, x)
            errors = jax.vmap(losses.l2_loss.value)(jbp.apply(subject, params, silent), y)
            return errors.mean() if weights is None else (weights * errors).sum()

        def net_rule(args: Any, delta: Any) -> Any:
            grads = jbp.value_and_grad(subject, losses.l2_loss)(args[0], x, y, weights=weights)[1]
            return (jax.tree.map(lambda g: g * delta, grads),)

        return custom(right, net_rule), (params,)
    return None


def raises(checker: Any, f: Any, args: Any) -> str | None:
    """What a checker says against a function, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checker(f, args)
    except Exception as error:
        return type(error).__name__
    return None


def verdict(checker: Any, mutant: Mutant, dtype: Any) -> str:
    """caught, missed, no (not a derivative), or: rejects the right code."""
    given = as_function(mutant, mutant.right, dtype)
    if checker is None:
        return "missing"
    if given is None:
        return "no"
    if why := raises(checker, *given):
        return f"rejects the right code: {why}"
    with planted(mutant):
        given = as_function(mutant, mutant.wrong, dtype)
        assert given is not None
        return "caught" if raises(checker, *given) else "missed"


def numerical(f: Any, args: Any) -> None:
    """`chex.assert_numerical_grads` reads the size of its first argument, so everything goes in as one vector."""
    vector, unravel = ravel_pytree(args)
    CHEX.assert_numerical_grads(lambda v: f(*unravel(v)), (vector,), order=1, modes=["rev"])


CHECKERS: dict[str, Any] = {
    "check_grads": lambda f, args: check_grads(f, args, order=1, modes=["rev"]),
    "assert_numerical_grads": numerical if CHEX else None,
}


def wrong_tangents(sizes: Any) -> list[dict[str, Any]]:
    """A tangent wrong by a factor, by the number of elements: does check_jvp accept it?"""
    rows = []
    for dtype, size, factor in sizes:
        x = jax.random.normal(jax.random.key(0), (size,), dtype)

        def wrong(primals: Any, tangents: Any, factor: float = factor) -> Any:
            (x,), (v,) = primals, tangents
            return jnp.sin(x), jnp.asarray(factor, x.dtype) * jnp.cos(x) * v

        accepted = raises(lambda f, args, rule=wrong: check_jvp(f, rule, args), jnp.sin, (x,)) is None
        f = custom(jnp.sin, lambda args, delta, c=factor: (jnp.asarray(c, delta.dtype) * jnp.cos(args[0]) * delta,))
        rows.append({"dtype": np.dtype(dtype).name, "elements": size, "wrong by": factor, "check_jvp accepts": accepted,
                     "jbp.check.custom_vjp accepts": jbp.check.custom_vjp(f, x, differences=False).passed})  # fmt: skip
    return rows


def blind_to() -> list[dict[str, Any]]:
    """Five planted mistakes, seen by a cotangent of ones and by a random one."""
    x = jax.random.normal(jax.random.key(0), (4, 3, 3))
    norm = lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)  # noqa: E731
    swap = lambda a: a.swapaxes(-1, -2)  # noqa: E731
    zero = lambda f: lambda x, d: jnp.zeros_like(x)  # noqa: E731
    bugs = {
        "softmax: backward returns zero": (jax.nn.softmax, zero),
        "layer norm: backward returns zero": (norm, zero),
        "rows of δ reversed": (lambda x: 2 * x, lambda f: lambda x, d: 2 * d[::-1]),
        "heads transposed": (lambda x: 2 * x, lambda f: lambda x, d: 2 * swap(d)),
    }
    rows = []
    random = jax.random.normal(jax.random.key(1), x.shape)
    for name, (f, bug) in bugs.items():
        sees = {}
        for which, delta in (("ones", jnp.ones_like(x)), ("random", random)):
            sees[which] = not bool(jnp.allclose(jax.vjp(f, x)[1](delta)[0], bug(f)(x, delta), atol=1e-6))
        rows.append({"mistake": name} | sees)
    batch = {w: not bool(jnp.allclose(d.sum(0), len(x) * jnp.ones(x.shape[1:]))) for w, d in (
        ("ones", jnp.ones_like(x)), ("random", random))}  # fmt: skip
    return [*rows, {"mistake": "bias gradient = the batch size"} | batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two mutants, float64, nothing saved")
    quick = parser.parse_args().quick
    chosen = [m for m in MUTANTS if (m.where, m.name) in QUICK] if quick else MUTANTS
    rows: list[dict[str, Any]] = []
    for mutant in chosen:
        with planted(mutant):
            report = CHECKS[mutant.check](mutant.wrong)
        row: dict[str, Any] = {"where": mutant.where, "mutant": mutant.name, "jbp.check": "missed"}
        if report.failures:
            row |= {"jbp.check": "caught", "law": report.failures[0].law}
        for name, checker in CHECKERS.items():
            for dtype in (np.float64,) if quick else (np.float32, np.float64):
                row[f"{name} {np.dtype(dtype).name}"] = verdict(checker, mutant, dtype)
        rows.append(row)
        print(row, flush=True)
    traps = {"wrong tangents": wrong_tangents(SIZES[:1] if quick else SIZES)}
    traps |= {} if quick else {"cotangents": blind_to()}
    print(common.text_of(traps), end="")
    if not quick:
        _save(rows, traps)


def _save(rows: list[dict[str, Any]], traps: dict[str, Any]) -> None:
    columns = [k for k in rows[0] if k not in ("where", "mutant", "law")]
    counts = {c: {v: sum(r[c] == v for r in rows) for v in sorted({r[c] for r in rows})} for c in columns}
    versions = {"jax": jax.__version__, "chex": getattr(CHEX, "__version__", "missing")}
    about = {"command": "python experiments/measurements/check_grads_blindness.py", "versions": versions}
    result = about | {"counts": counts} | traps | {"mutants": rows}
    common.write(RESULT, result)
    write()


if __name__ == "__main__":
    main()
