"""`jbp.check.loss`: δ is the derivative of the value, the Hessian's root squares to it, and nothing overflows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jbp.arguments import as_count, as_dtype, as_key, as_shape, check_finite, is_float, refuse_classes
from jbp.check.compare import PRECISION, called, compare, explain, fact, largest, problem, skipped
from jbp.check.compiled import apart, compiled
from jbp.check.complex_step import complex_step
from jbp.check.finite_differences import finite_differences
from jbp.check.kinks import at_kink, at_point, moved, no_excuse, outside, spans
from jbp.check.report import Entry, Report
from jbp.check.tolerance import ELEMENTWISE, MATMUL, Level, check_level
from jbp.check.trees import as_array, cast, entropy, normal, times
from jbp.inputs import as_arrays, check_loss
from jbp.losses import Loss

KINDS = ("classes", "distribution", "values", "masses")
EXTREME = 1e4
SCALES = (10.0, 100.0, EXTREME)
"""What logits are multiplied by besides, to see δ where the probabilities are all but 0 and 1."""


@apart
def loss(
    loss: Loss,
    shape: tuple[int, ...] = (7,),
    *,
    target: str | tuple[str, ...] | Array | np.ndarray | None = None,
    output: str | Array | np.ndarray | None = None,
    key: int | Array = 0,
    dtype: Any = None,
    level: Level = ELEMENTWISE,
    batch: int = 5,
    differences: bool = True,
    mask: Any = None,
) -> Report:
    """Check the laws of `jbp.losses.Loss`, for every kind of target named, or else for every kind it takes.

        δ = ∂value/∂output · Σᵥ sᵥ sᵥᵀ = ∂²value/∂output² (if there is a `sqrt_hessian`) · jit = eager · vmap = loop ·
        on logits: δ at 10, 100 and 10⁴ times as large, finite at ±10⁴ · on probabilities: at probability 0 the value is
        inf, or finite where the target is 0 too, never NaN

    Args:
        loss: what to check.
        shape: of one output [*t, k].
        target: a kind, several, or targets [n, ...] themselves. Kinds: "classes" (integers, one a position),
            "distribution" (adds up to 1), "masses" (adds up to something else), "values" (in (0, 1), the output's
            shape). A kind that is named must work. Left out: classes, and a distribution or else values, each unless
            the loss refuses it by a ValueError or NotImplementedError, which the report shows as skipped. Any other
            exception is a crash, and fails.
        output: "logits" or "probabilities", or outputs [n, ...]. Left out: found out by whether it takes log of them.
        key: a seed or a key.
        dtype: float64 where JAX has it enabled, else float32.
        level: the tolerance; the Hessian gets MATMUL.
        batch: how many examples.
        differences: whether to run finite differences and the complex step, in float64 whatever `dtype` is.
        mask: [*t] bools: all laws of the loss as it is with this mask of real positions, and one more: its value is
            that of the output cut to them.

    Raises:
        ValueError: not a loss, an unknown kind, NaN, shapes that do not fit.
    """
    check_loss(loss, Loss)
    output = as_arrays("output", output) if hasattr(output, "__array__") else output
    target = as_arrays("y", target) if hasattr(target, "__array__") else target
    dtype = as_dtype(dtype)
    check_level(level)
    shape, n = as_shape(shape), as_count(batch, "the batch")
    if output is not None and not isinstance(output, str):
        shape, n = as_shape(jnp.shape(output)[1:]), as_count(jnp.shape(output)[0], "the batch")
        if not jnp.issubdtype(jnp.result_type(output), jnp.floating):
            raise ValueError(f"output must be of floats, but is {jnp.result_type(output)}: convert it")
        check_finite("output", output)
    subject = f"{called(loss)} on {list(shape)}, {dtype}"
    if mask is not None:
        real = np.asarray(mask)
        if real.dtype != bool or real.shape != shape[:-1] or not real.any():
            raise ValueError(f"mask must be bools of shape {shape[:-1]}, at least one of them True, but is {mask!r}")
        subject, loss = f"{subject}, {real.sum()} of {real.size} positions real", _Masked(loss, _tuples(real))
    kinds, entries = _kinds(loss, target, shape, dtype)
    run = _Programs(loss)
    with jax.default_matmul_precision(PRECISION):
        for kind in kinds:
            seed = entropy(as_key(key), KINDS.index(kind) if kind in KINDS else len(KINDS))
            y = _targets(kind, target, entropy(seed, 0), n, shape, dtype)
            domain = output if isinstance(output, str) else _domain(run, y, shape, dtype)
            if domain not in ("logits", "probabilities"):
                raise ValueError(f"output must be 'logits', 'probabilities' or an array, but is {output!r}")
            p = normal(entropy(seed, 1), jax.ShapeDtypeStruct((n, *shape), dtype))
            p = jax.nn.softmax(p) if domain == "probabilities" else p
            p = cast(as_array(output), dtype) if output is not None and not isinstance(output, str) else p
            mode = f" ({kind})"
            found = _laws(run, p, y, level, mode)
            if _failed_at_kink(loss, found, p, y, entropy(seed, 2)):
                allowed = spans(lambda leaves, y: [jax.vmap(jax.grad(loss.value))(leaves[0], y)], [p], y, seed)
                kept = [*no_excuse(found), *outside([f"delta{mode}"], [run.batch["delta"](p, y)], allowed, source=1.0)]
                p = moved([p], seed)[0]
                found = [at_point(f"output{mode}"), *kept, *_laws(run, p, y, level, mode)]
            entries += found
            if isinstance(loss, _Masked):
                entries += loss.cut(p, y, level, mode)
            if any(entry.verdict == "fail" and entry.law in ("runs", "shapes") for entry in found):
                continue
            if differences:
                entries += _slopes(loss, p, y, mode, entropy(seed, 2))
            if domain == "logits" and (output is None or isinstance(output, str)):
                entries += _far(run, p, y, level, mode)
            entries += _extremes(run, p, y, domain, mode)
    return Report(subject, tuple(entries))


@dataclass(frozen=True)
class _Masked(Loss):
    """A loss given its mask."""

    loss: Loss
    mask: Any

    def value(self, output: Any, target: Any) -> Any:
        """With the mask."""
        return self.loss.value(output, target, np.asarray(self.mask))

    def delta(self, output: Any, target: Any) -> Any:
        """With the mask."""
        return self.loss.delta(output, target, np.asarray(self.mask))

    def sqrt_hessian(self, output: Any, target: Any) -> Any:
        """With the mask."""
        return self.loss.sqrt_hessian(output, target, np.asarray(self.mask))

    def cut(self, p: Any, y: Any, level: Level, mode: str) -> list[Entry]:
        """That the value is the one of the real positions alone."""
        real = np.asarray(self.mask)
        try:
            cut = compiled(jax.vmap(self.loss.value))(p[:, real], y[:, real])
            masked = compiled(jax.vmap(self.value))(p, y)
        except Exception as error:
            return [problem("runs", f"value, masked{mode}", explain(error))]
        return [compare("mask", f"value{mode}", "the real positions alone", masked, cut, level, terms=largest(cut))]


def _tuples(mask: Any) -> Any:
    """As nested tuples, which can be hashed."""
    return tuple(map(_tuples, mask)) if np.ndim(mask) else bool(mask)


class _Programs:
    """What is run of a loss, compiled once for targets of the same shape."""

    def __init__(self, loss: Loss):
        def laws(p: Any, y: Any) -> Any:
            values = jax.vmap(loss.value)(p, y)
            grads = jax.vmap(jax.grad(loss.value))(p, y)
            return values, jax.vmap(loss.delta)(p, y), grads, jax.lax.map(lambda row: loss.value(*row), (p, y))

        def hessian(p: Any, y: Any) -> Any:
            size = p[0].size
            root = jax.vmap(loss.sqrt_hessian)(p, y).reshape(p.shape[0], -1, size)
            squared = jnp.einsum("nvi,nvj->nij", root, root)
            return squared, jax.vmap(jax.jacfwd(jax.grad(loss.value)))(p, y).reshape(-1, size, size)

        self.loss, self.laws, self.hessian = loss, compiled(laws), compiled(hessian)
        # Not compiled: XLA turns a product with a one-hot vector into a selection, which hides a 0 · log 0.
        self.batch = {name: jax.vmap(getattr(loss, name)) for name in ("value", "delta", "sqrt_hessian")}


def _laws(run: _Programs, p: Any, y: Any, level: Level, mode: str) -> list[Entry]:
    """δ, the Hessian's root, and that compiling and batching change nothing."""
    loss = run.loss
    try:
        one = jax.eval_shape(loss.value, p[0], y[0])
        delta = jax.eval_shape(loss.delta, p[0], y[0])
        if getattr(one, "shape", None) != () or getattr(delta, "shape", None) != p.shape[1:]:
            what = f"value must be a scalar and delta of the output's shape {p.shape[1:]}, but they are {one}, {delta}"
            return [problem("shapes", f"value, delta{mode}", what)]
        values, delta, grads, looped = run.laws(p, y)
        alone_value, alone_delta = loss.value(p[0], y[0]), loss.delta(p[0], y[0])
    except Exception as error:
        return [problem("runs", f"value, delta{mode}", explain(error))]
    n, k = p.shape[0], p.shape[-1] if p.ndim > 1 else 1
    sizes = {"the number of outputs k": k, "the number of positions": p[0].size // k, "the batch size": n}
    _check_classes(y, values, p.shape[-1] if p.ndim > 1 else 0)
    found = np.asarray(p).astype(np.float64)

    def clues() -> Mapping[str, Any]:
        target = np.asarray(y).astype(np.float64)
        same = target.shape == found.shape
        e = np.asarray(grads).astype(np.float64)
        words = {
            "a dropped term: δ = the output, its target is not subtracted": found if same else e + 1,
            "a dropped term: the target's part of δ is missing": e + target if same else e + 1,
        }
        for how, other in {"reversed": y[::-1], "rolled by 1": jnp.roll(y, 1, 0)}.items():
            if not np.array_equal(y, other):
                words[f"one example's target given to another: targets {how}"] = run.batch["delta"](p, other)
        return words

    return [
        fact(
            "dtypes", f"value{mode}", "protocol", values.dtype == p.dtype, f"value is {values.dtype}, output {p.dtype}"
        ),
        fact("dtypes", f"delta{mode}", "protocol", delta.dtype == p.dtype, f"delta is {delta.dtype}, output {p.dtype}"),
        compare("= derivative", f"delta{mode}", "autodiff", delta, grads, level, source=1.0, sizes=sizes, clues=clues),
        compare("vmap = loop", f"value{mode}", "loop", values, looped, level),
        compare("jit = eager", f"value{mode}", "eager", values[0], alone_value, level, terms=largest(values)),
        compare("jit = eager", f"delta{mode}", "eager", delta[0], alone_delta, level, terms=largest(delta), source=1.0),
        _hessian(run, p, y, mode, sizes),
    ]


def _far(run: _Programs, p: Any, y: Any, level: Level, mode: str) -> list[Entry]:
    """δ at large logits, where autodiff of the value is finite; one rounding of an output o is eps · |o| there."""
    if jnp.finfo(p.dtype).bits < 32:
        return []
    entries = []
    for scale in SCALES:
        path = f"delta{mode} (output·{scale:g})"
        values, delta, grads, _ = (np.asarray(a) for a in run.laws(times(scale, p), y))
        known = np.isfinite(grads) & np.isfinite(values).reshape(-1, *(1,) * (grads.ndim - 1))
        if not known.any():
            why = "autodiff of the value is not finite at outputs this large"
            entries.append(skipped("= derivative", path, "autodiff", why))
            continue
        delta, grads = (np.where(known, a, np.zeros_like(a)) for a in (delta, grads))
        terms = max(1.0, largest(grads)) * max(1.0, scale * largest(p))
        entries.append(compare("= derivative", path, "autodiff", delta, grads, level, terms=terms))
    return entries


def _check_classes(y: Any, values: Any, k: int) -> None:
    """Refuse classes that there are not, where the value has no number for them."""
    wrong = ~np.isfinite(np.asarray(values).astype(np.float64))
    if wrong.any() and k and jnp.issubdtype(jnp.result_type(y), jnp.integer):
        refuse_classes("target", np.asarray(y)[wrong], k)


def _sum_of(loss: Loss) -> Any:
    """Σₙ value, as a function of the outputs."""

    def function(leaves: Any, y: Any) -> tuple[Any, Any]:
        values = jax.vmap(loss.value)(leaves[0], y)
        return values.sum(), values

    return function


def _failed_at_kink(loss: Loss, entries: list[Entry], p: Any, y: Any, seed: Any) -> bool:
    """Whether δ failed and the outputs lie on a kink, as those of an absolute error do where they are the target."""
    failed = any(entry.law == "= derivative" and entry.verdict == "fail" for entry in entries)
    return failed and at_kink(_sum_of(loss), [p], y, seed)


def _slopes(loss: Loss, p: Any, y: Any, mode: str, seed: Any) -> list[Entry]:
    """Finite differences and the complex step of Σₙ value."""
    function = _sum_of(loss)

    def gradient(leaves: Any, y: Any) -> Any:
        return [jax.vmap(loss.delta)(leaves[0], y)]

    entries = finite_differences(function, gradient, [p], y, [f"delta{mode}"], seed)
    return entries + complex_step(function, gradient, [p], y, [f"delta{mode}"], seed, source=1.0)


def _hessian(run: _Programs, p: Any, y: Any, mode: str, sizes: Any) -> Entry:
    """Σᵥ sᵥ sᵥᵀ against the derivative of the gradient, on the first two examples."""
    law, path = "squares to the Hessian", f"sqrt_hessian{mode}"
    try:
        shape = jax.eval_shape(run.loss.sqrt_hessian, p[0], y[0]).shape
        if shape[1:] != p.shape[1:]:
            return problem(law, path, f"its columns must have the output's shape {p.shape[1:]}, but it is {shape}")
        squared, hessian = run.hessian(p[:2], y[:2])
    except NotImplementedError as error:
        return skipped(law, path, "autodiff", f"not implemented: {error}")
    except Exception as error:
        return problem("runs", path, explain(error))
    return compare(law, path, "autodiff, twice", squared, hessian, MATMUL, sizes=sizes)


def _extremes(run: _Programs, p: Any, y: Any, domain: str, mode: str) -> list[Entry]:
    """Logits of ±10⁴, or a probability of 0: never NaN."""
    law = f"finite at ±{EXTREME:g}" if domain == "logits" else "no NaN at probability 0"
    if jnp.finfo(p.dtype).bits < 32:
        return [skipped(law, f"value{mode}", "definition", f"{p.dtype} has not the range")]
    # A chessboard of ±1, turned over from one example to the next.
    signs = (-1.0) ** (np.arange(p.size).reshape(p.shape) + np.arange(len(p)).reshape(-1, *(1,) * (p.ndim - 1)))
    if domain == "logits":
        edge = (EXTREME * signs).astype(p.dtype)
    else:
        edge = np.where(signs > 0, np.asarray(p), np.zeros((), p.dtype))
    # Constant outputs too, where a softmax has nothing to tell the classes apart by.
    same = [np.full(p.shape, value, p.dtype) for value in ((EXTREME, -EXTREME) if domain == "logits" else (0,))]
    pairs = [(as_array(e), y) for e in (edge, *same)]
    if domain == "probabilities" and y.shape == p.shape:  # 0 · log 0 is 0: such a class takes no part
        pairs.insert(0, (as_array(edge), as_array(np.where(edge == 0, np.zeros((), y.dtype), np.asarray(y)))))
    entries = []
    for name, batch in run.batch.items():
        try:
            got = [np.asarray(batch(e, t)) for e, t in pairs]
        except NotImplementedError:
            continue
        except Exception as error:
            entries.append(problem("runs", name + mode, explain(error)))
            continue
        bad = np.isnan if domain == "probabilities" else lambda a: ~np.isfinite(a)
        wrong = sum(int(bad(a).sum()) for a in got)
        size = sum(a.size for a in got)
        guess = "only NaN" if wrong and all(np.isnan(a).all() for a in got) else "NaN or inf at extreme outputs"
        if wrong:
            what = f"{wrong} of {size} numbers are {'NaN' if domain == 'probabilities' else 'NaN or inf'}"
            entries.append(problem(law, name + mode, what, guess, "definition"))
        else:
            entries.append(fact(law, name + mode, "definition", True, ""))
        if name == "value" and domain == "probabilities":
            values = got[-1]
            what = f"value is {values[0]} where all probabilities are 0"
            entries.append(
                fact("inf at probability 0", f"value{mode}", "definition", bool(np.isposinf(values).all()), what)
            )
    return entries


def _kinds(loss: Loss, target: Any, shape: Any, dtype: Any) -> tuple[list[str], list[Entry]]:
    """The kinds of target to check, and an entry for each that the loss does not take: refused, or crashed on."""
    named = (target,) if isinstance(target, str) else target if isinstance(target, tuple) else None
    if named is not None:
        if not named or any(kind not in KINDS for kind in named):
            raise ValueError(f"target must be one or more of {', '.join(KINDS)}, or an array, but is {target!r}")
        return list(named), []
    if target is not None:
        check_finite("target", target)
        return ["given"], []
    errors = {kind: _error(loss, kind, shape, dtype) for kind in ("classes", "distribution") if shape}
    # Who takes classes takes distributions over them; others take any values. A scalar has no axis of classes.
    if errors.get("classes") is not None or not shape:
        errors["values"] = errors.pop("distribution", None) if shape else _error(loss, "values", shape, dtype)
    kinds, entries = [kind for kind, error in errors.items() if error is None], []
    for kind, error in errors.items():
        path = f"value ({kind})"
        if isinstance(error, _REFUSALS) and kinds:
            entries.append(skipped("runs", path, "protocol", f"refused: {explain(error)}"))
        elif error is not None:
            advice = "" if not kinds else "; to refuse this kind raise a ValueError, or name the kinds that it takes"
            entries.append(problem("runs", path, f"{explain(error)}{advice}"))
    return kinds, entries


_REFUSALS = (ValueError, NotImplementedError)
"""How a loss says that a kind of target is not for it."""


def _error(loss: Loss, kind: str, shape: Any, dtype: Any) -> Exception | None:
    """What comes of tracing the value on targets of a kind."""
    y = jax.ShapeDtypeStruct(shape[:-1] if kind == "classes" else shape, jnp.int32 if kind == "classes" else dtype)
    try:
        jax.eval_shape(loss.value, jax.ShapeDtypeStruct(shape, dtype), y)
    except Exception as error:
        return error
    return None


def _targets(kind: str, target: Any, seed: Any, n: int, shape: Any, dtype: Any) -> Any:
    rng = np.random.default_rng(seed)
    if kind == "classes":
        return as_array(rng.integers(0, shape[-1], (n, *shape[:-1])).astype(np.int32))
    if kind == "distribution":
        weights = np.exp(2 * rng.normal(size=(n, *shape)))
        return as_array((weights / weights.sum(-1, keepdims=True)).astype(dtype))
    if kind == "masses":
        return as_array(rng.uniform(0.05, 0.95, (n, *shape)).astype(dtype))
    if kind == "values":
        return as_array(rng.uniform(0.05, 0.95, (n, *shape)).astype(dtype))
    given = as_array(target)
    if given.shape[:1] != (n,):
        raise ValueError(f"target must hold {n} examples, as the outputs do, but has shape {given.shape}")
    return cast(given, dtype) if is_float(given) else given


def _domain(run: _Programs, y: Any, shape: Any, dtype: Any) -> str:
    """Probabilities, if the loss is NaN for outputs below 0."""
    try:
        value = run.batch["value"](jnp.full((y.shape[0], *shape), -0.5, dtype), y)
    except Exception:  # the laws come to the same end, and say so
        return "logits"
    return "probabilities" if bool(jnp.isnan(value).any()) else "logits"
