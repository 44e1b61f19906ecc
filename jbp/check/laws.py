"""The numerical laws of a layer, in one compiled program for a mode (with a key, or without), and their verdicts.

    adjoint     ⟨J v, δₙ⟩ = ⟨v, backward(δₙ)⟩             J v from forward mode, v random in (params, x) but constants
    autodiff    backward(δ) = jax.vjp of forward at δ      leaf by leaf, example by example
    linear      backward(aδ + bδ′) = a backward(δ) + b backward(δ′)
    sum         Σₙ gₙ = the contraction over the batch
    vmap        the batch at once = one example after another

Everything is read off `jbp.forward` and `jbp.backward`, so a leaf and a whole net are checked by the same code.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.arguments import is_float
from jbp.backprop import backward, forward
from jbp.check.clues import LawRun, clues_for
from jbp.check.compare import PRECISION, compare, explain, largest, problem, skipped
from jbp.check.compiled import compiled, wide
from jbp.check.linear import linear_in_delta, mixed
from jbp.check.report import Entry
from jbp.check.sides import by_hand, constants, couples, output_of
from jbp.check.tolerance import EXACT, Level
from jbp.check.trees import as_array, cast, entropy, floats_of, normal, nudged, split, times
from jbp.combine import Combinator
from jbp.layer import Layer
from jbp.pairs import is_pair, weigh
from jbp.paths import paths

DIRECTIONS = 3
SCALES = (8.0, 1000.0)
"""What the inputs are multiplied by besides: normals alone never reach where a function saturates or overflows."""


def laws(
    layer: Layer, params: Any, x: Any, key: Any, seed: Any, level: Level, mode: str, scales: tuple[float, ...] = ()
) -> list[Entry]:
    """The entries of every numerical law in one mode; against autodiff also at x times each of the scales."""
    n = x.shape[0]
    y = jax.eval_shape(lambda p, x, k: forward(layer, p, x, k)[0], params, x, key)
    delta, other = (normal(entropy(seed, 4, i), jax.ShapeDtypeStruct(y.shape, y.dtype)) for i in (0, 1))
    loops = not (
        couples(layer, key) or (isinstance(layer, Combinator) and key is not None and layer.uses_key is not False)
    )

    fixed = constants(layer, params, x, key)
    v = [normal(entropy(seed, 5, d), split((params, x))[0]) for d in range(DIRECTIONS)]
    v = [[jnp.zeros_like(a) if i in fixed else a for i, a in enumerate(one)] for one in v]
    v = jax.tree.map(lambda *a: as_array(np.stack(a)), *v)

    def program(params: Any, x: Any, key: Any, deltas: Any, v: Any) -> dict[str, Any]:
        y, saved = forward(layer, params, x, key)
        answers = lax.map(lambda delta: by_hand(layer, params, x, key, saved, delta), deltas)
        found, more, mix = (jax.tree.map(lambda a, i=i: a[i], answers) for i in range(3))
        delta = deltas[0]
        leaves, output = output_of(layer, params, x, key)
        _, pull = jax.vjp(output, leaves)
        rows = jnp.eye(n, dtype=y.dtype).reshape(n, n, *(1,) * (y.ndim - 1)) * jnp.expand_dims(delta, 0)
        return {
            "y": y,
            **found,
            "autodiff": pull(delta)[0],
            "autodiff_each": lax.map(lambda row: pull(row)[0], rows),
            "tangent": lax.map(lambda v: jax.jvp(output, (leaves,), (v,))[1], v),
            "other": more,
            "mixed": mix,
            **({"loop": _loop(layer, params, x, key, delta)} if loops else {}),
        }

    a, b = np.asarray(delta), np.asarray(other)
    deltas = as_array(np.stack([a, b, mixed(a, b).astype(a.dtype)]))
    try:
        with jax.default_matmul_precision(PRECISION):
            run = compiled(program)
            r = run(params, x, key, deltas, v) | {"v": v}
            far = [(scale, run(params, times(scale, x), key, deltas, v)) for scale in scales]
    except Exception as error:
        return [problem("runs", f"under jit{mode}", explain(error))]
    if not np.isfinite(np.asarray(r["y"]).astype(np.float64)).all():
        return [problem("finite", f"y{mode}", "forward makes NaN or inf of finite input", "only NaN or inf in y")]
    verdicts = _Verdicts(LawRun(layer, params, x, key, delta, r), fixed, level, mode)
    entries = verdicts.entries(loops)
    for scale, there in far:
        entries += verdicts.far(scale, there)
    return entries


def weighted(layer: Layer, params: Any, x: Any, key: Any, seed: Any, level: Level, mode: str) -> list[Entry]:
    """A layer or net that couples the examples, by hand against jax.vjp, with weights of which one is 0."""
    law, n = "= vjp, with weights", len(x)
    y = jax.eval_shape(lambda p, x, k: forward(layer, p, x, k)[0], params, x, key)
    delta = normal(entropy(seed, 4, 0), jax.ShapeDtypeStruct(y.shape, y.dtype))
    w = np.random.default_rng(entropy(seed, 10)).uniform(0.5, 2.0, n)
    w[n // 2] = 0.0 if n > 1 else w[0]
    w = as_array(w.astype(y.dtype))

    def program(params: Any, x: Any, key: Any, delta: Any, w: Any) -> Any:
        delta = weigh(w, delta)
        _, saved = forward(layer, params, x, key, w)
        leaves, output = output_of(layer, params, x, key, w)
        return by_hand(layer, params, x, key, saved, delta), jax.vjp(output, leaves)[1](delta)[0]

    try:
        with jax.default_matmul_precision(PRECISION):
            found, expected = compiled(program)(params, x, key, delta, w)
    except Exception as error:
        return [problem("runs", f"with weights{mode}", explain(error))]
    names = [p for p, a in zip(paths(params, "params"), jax.tree.leaves(params), strict=True) if is_float(a)]
    fixed = constants(layer, params, x, key)
    rows = [row for i, row in enumerate(zip(names, found["total"], expected, strict=False)) if i not in fixed]
    rows += [("delta_x", found["delta_x"], expected[-1])] if is_float(x) else []
    return [
        compare(law, name + mode, "autodiff", a, e, level, source=largest(delta) * float(w.max()))
        for name, a, e in rows
    ]


def _autodiff(layer: Layer, params: Any, x: Any, delta: Any, key: Any) -> Any:
    """The gradients in each differentiable leaf of (params, x), and each example's."""
    n = len(x)
    mask = jnp.eye(n, dtype=delta.dtype).reshape(n, n, *(1,) * (delta.ndim - 1))

    def program(params: Any, x: Any, delta: Any) -> Any:
        leaves, output = output_of(layer, params, x, key)
        pull = jax.vjp(output, leaves)[1]
        return pull(delta)[0], lax.map(lambda row: pull(row * delta)[0], mask)

    with jax.default_matmul_precision(PRECISION):
        return compiled(program)(params, x, delta)


def _loop(layer: Layer, params: Any, x: Any, key: Any, delta: Any) -> dict[str, Any]:
    """One example after another, each a batch of one, by `lax.map`."""
    # The spine gives example n the n-th part of a leaf's key.
    keys = None if key is None or layer.uses_key is False else jax.random.split(key, x.shape[0])

    def one(row: Any) -> Any:
        x, delta, key = row
        if isinstance(layer, Combinator) or layer.couples_batch:
            y, saved = forward(layer, params, x[None], None)
            y = y[0]
            delta_x, pairs = backward(layer, params, saved, delta[None])
            delta_x = None if delta_x is None else delta_x[0]
        else:
            y, saved = layer.forward(params, x, key)
            delta_x, pairs = layer.backward(params, saved, delta)
            pairs = jax.tree.map(lambda a: a[None], pairs)
        return y, delta_x, [pair.total() for pair in floats_of(pairs, params, is_pair)]

    y, delta_x, each = lax.map(one, (x, delta, keys))
    return {"y": y, "delta_x": delta_x, "each": each}


class _Verdicts:
    """The results of the program, compared law by law."""

    def __init__(self, run: LawRun, fixed: set[int], level: Level, mode: str):
        self.run, self.level, self.mode, self.r = run, level, mode, run.found
        self.layer, self.params, self.x, self.key, self.delta = run.layer, run.params, run.x, run.key, run.delta
        params, x, delta = run.params, run.x, run.delta
        self.names = [p for p, a in zip(paths(params, "params"), jax.tree.leaves(params), strict=True) if is_float(a)]
        self.n = run.n
        self.sizes = {"the batch size": self.n}
        self.sizes |= {f"the size of axis {i} of one input": s for i, s in enumerate(x.shape[1:])}
        self.sizes |= {f"the size of axis {i} of one output": s for i, s in enumerate(delta.shape[1:])}
        self.sizes |= {"the number of outputs": delta.size // self.n, "batch size × outputs": delta.size}
        self.source = largest(delta)
        self._known: list[Any] | None = None
        self.constant = fixed

    def entries(self, loops: bool) -> list[Entry]:
        """All of them."""
        entries = [*self.autodiff(), *self.adjoint(), *self.linear(), *self.sums()]
        if loops:
            entries += self.loop()
        else:
            why = (
                "the examples of a batch are coupled"
                if couples(self.layer, self.key)
                else "each batch draws keys of its own"
            )
            entries.append(skipped("vmap = loop", f"y{self.mode}", "loop", why))
        return entries

    def compare(self, law: str, name: str, oracle: str, found: Any, expected: Any, **options: Any) -> Entry:
        return compare(
            law, name + self.mode, oracle, found, expected, self.level, source=self.source, sizes=self.sizes, **options
        )

    def autodiff(self) -> list[Entry]:
        """By hand against jax.vjp: each example's gradient, the total, and delta_x."""
        r, entries = self.r, []
        coupled = "each" not in r
        for i, name in enumerate(self.names):
            if i in self.constant:
                zeros = np.zeros_like(np.asarray(r["total"][i]))
                entries.append(compare("constant", name + self.mode, "definition", r["total"][i], zeros, EXACT))
                continue
            each = r["autodiff_each"][i]
            clues = clues_for(self.run, i)
            options: dict[str, Any] = {"clues": clues, "twins": lambda i=i: [each[i] for _, each in self._twins()]}
            if not coupled:
                entries.append(self.compare("= vjp, each example", name, "autodiff", r["each"][i], each, **options))
            options |= {"terms": largest(each), "twins": lambda i=i: [total[i] for total, _ in self._twins()]}
            entries.append(self.compare("= vjp", name, "autodiff", r["total"][i], r["autodiff"][i], **options))
        if is_float(self.x):
            options = {"clues": clues_for(self.run, None), "twins": lambda: [total[-1] for total, _ in self._twins()]}
            expected = r["autodiff"][len(self.names)]
            entries.append(self.compare("= vjp", "delta_x", "autodiff", r["delta_x"], expected, **options))
        return entries

    def far(self, scale: float, r: Any) -> list[Entry]:
        """By hand against jax.vjp at large inputs, where autodiff has a number.

        One rounding of x moves everything there by eps · |x|, so that is the scale.
        """
        law, mode, x = "= vjp", f"{self.mode} (x·{scale:g})", scale * largest(self.x)
        if not np.isfinite(np.asarray(r["y"]).astype(np.float64)).all():
            return [skipped(law, f"y{mode}", "autodiff", "forward makes NaN or inf of inputs this large")]
        rows = list(zip(self.names, r["total"], r["autodiff"], r["autodiff_each"], strict=False))
        rows = [row for i, row in enumerate(rows) if i not in self.constant]
        rows += [("delta_x", r["delta_x"], r["autodiff"][-1], r["autodiff"][-1])] if is_float(self.x) else []
        entries = []
        for name, found, want, parts in rows:
            known = np.isfinite(np.asarray(want).astype(np.float64))
            if not known.any():
                entries.append(skipped(law, name + mode, "autodiff", "autodiff gives NaN or inf at inputs this large"))
                continue
            found, want = (np.where(known, np.asarray(a), 0).astype(want.dtype) for a in (found, want))
            parts = np.where(np.isfinite(np.asarray(parts)), np.asarray(parts), 0)
            terms = max(largest(want), largest(parts), self.source) * max(1.0, x)
            entries.append(compare(law, name + mode, "autodiff", found, want, self.level, terms=terms))
        return entries

    def _twins(self) -> list[Any]:
        """What autodiff gives at a point a rounding away, and in float64 where it can be run there."""
        if self._known is None:
            near = nudged((self.params, self.x, self.delta), (0,))
            self._known = [_autodiff(self.layer, *near, self.key)]  # type: ignore[call-arg]
            if self.key is None:  # in float64 a key may draw other numbers
                with contextlib.suppress(Exception), wide():
                    there = cast((self.params, self.x, self.delta), jnp.float64)
                    self._known.append(_autodiff(self.layer, *there, None))  # type: ignore[call-arg]
        return self._known

    def adjoint(self) -> list[Entry]:
        """⟨J v, δₙ⟩ = ⟨v, backward(δₙ)⟩ for each example n, or for the batch where examples are coupled."""
        r = self.r
        products = np.asarray(r["tangent"]).astype(np.float64) * np.asarray(self.delta).astype(np.float64)
        lhs = products.reshape(DIRECTIONS, self.n, -1).sum(-1)
        parts = [
            np.asarray(v).astype(np.float64)[:, None] * np.asarray(g).astype(np.float64)[None]
            for v, g in zip(r["v"][: len(self.names)], r.get("each", ()), strict=False)
        ]
        if "each" not in r:
            lhs = lhs.sum(1, keepdims=True)
            parts = [np.asarray(v) * np.asarray(g) for v, g in zip(r["v"], r["total"], strict=False)]
            parts = [a.reshape(DIRECTIONS, 1, -1) for a in parts]
        rhs = np.zeros_like(lhs) + sum(a.reshape(*lhs.shape, -1).sum(-1) for a in parts)
        if is_float(self.x):
            part = np.asarray(r["v"][-1]).astype(np.float64) * np.asarray(r["delta_x"]).astype(np.float64)
            rhs = rhs + part.reshape(*lhs.shape, -1).sum(-1)
        dtype = self.delta.dtype
        terms = largest(products) if products.size else 0.0
        return [self.compare("adjoint", "(params, x)", "forward mode", rhs, lhs, dtype=dtype, terms=terms)]

    def linear(self) -> list[Entry]:
        """The backward pass of aδ + bδ′ against that of δ and δ′."""
        r, entries = self.r, []
        kind = "each" if "each" in r else "total"
        rows = [(n, r["mixed"][kind][i], r[kind][i], r["other"][kind][i]) for i, n in enumerate(self.names)]
        if is_float(self.x):
            rows.append(("delta_x", r["mixed"]["delta_x"], r["delta_x"], r["other"]["delta_x"]))
        for name, mix, one, two in rows:
            entries.append(linear_in_delta(name + self.mode, mix, one, two, self.level, self.source))
        return entries

    def sums(self) -> list[Entry]:
        """The gradients of the examples add up to the gradient of the batch."""
        if "each" not in self.r:
            return []
        return [
            self.compare(
                "Σ examples = total", name, "itself", whole, each64.sum(0), dtype=whole.dtype, terms=largest(each64)
            )
            for name, whole, each in zip(self.names, self.r["total"], self.r["each"], strict=True)
            for each64 in [np.asarray(each).astype(np.float64)]
        ]

    def loop(self) -> list[Entry]:
        """The batch at once against one example after another."""
        r, law = self.r, "vmap = loop"
        entries = [self.compare(law, "y", "loop", r["y"], r["loop"]["y"])]
        if is_float(self.x):
            entries.append(self.compare(law, "delta_x", "loop", r["delta_x"], r["loop"]["delta_x"]))
        for name, found, each in zip(self.names, r["each"], r["loop"]["each"], strict=True):
            entries.append(self.compare(law, name, "loop", found, each))
        return entries
