"""How large is the rounding error of correct derivatives? The distribution behind `jbp.check.tolerance`.

Claim: over more than 1,000 random cases every error lies below half of its level. A case is a layer, net or loss
with fresh parameters, inputs and δ; its error the worst of its leaves, in units of eps(dtype) × magnitude, against
autodiff, finite differences or the complex step.

    python experiments/measurements/calibrate_tolerance.py            # about 5 minutes on two cores
    python experiments/measurements/calibrate_tolerance.py --quick    # a few seconds, saves nothing
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import jax
import jax.numpy as jnp
import numpy as np

import jbp
from jbp.check.compare import PRECISION, compare, largest
from jbp.check.complex_step import complex_step
from jbp.check.finite_differences import finite_differences
from jbp.check.sides import by_hand, constants, gradients_of, output_of
from jbp.check.tolerance import (
    COMPLEX_STEP,
    DEEP,
    ELEMENTWISE,
    FINITE_DIFFERENCE,
    LEVELS,
    LOW_PRECISION,
    MATMUL,
    NATIVE_DIFFERENCE,
    Level,
)
from jbp.check.trees import cast, normal, split
from jbp.combine import Combinator
from jbp.layer import Layer

RESULT = common.RESULTS / "tolerance.json"
PRIMES = (1, 2, 3, 5, 7, 11, 13, 17)
ACTIVATIONS = (
    jbp.relu, jbp.leaky_relu, jbp.tanh, jbp.sigmoid, jbp.softmax, jbp.softplus, jbp.elu, jbp.silu, jbp.gelu,
)  # fmt: skip
LOSSES = (
    "squared_error", "l2_loss", "mean_squared_error", "softmax_cross_entropy", "sigmoid_binary_cross_entropy",
)  # fmt: skip


def structures(rng: np.random.Generator, count: int) -> Iterator[tuple[Layer, tuple[int, ...], int]]:
    """Random layers and nets, with the shape of an input and a batch size."""
    for i in range(count):
        width, out, positions = (int(rng.choice(PRIMES)) for _ in range(3))
        act = ACTIVATIONS[i % len(ACTIVATIONS)]
        block = jbp.residual(jbp.serial(jbp.Dense(int(rng.choice(PRIMES))), act, jbp.Dense(width)))
        net = (
            jbp.Dense(out),
            act,
            jbp.serial(jbp.Dense(out), act, jbp.Dense(int(rng.choice(PRIMES)))),
            jbp.serial(jbp.repeat(block, int(rng.integers(2, 7))), jbp.Dense(out)),
            jbp.branch(jbp.Dense(out), jbp.serial(jbp.Dense(3), act, jbp.Dense(out)), join="concat"),
        )[i % 5]
        yield net, (positions, width) if i % 3 == 0 else (width,), int(rng.integers(1, 18))


def layer_errors(net: Layer, shape: Any, n: int, seeds: range, dtype: Any) -> Iterator[float]:
    """The worst error over the leaves of a net, for each seed; compiled once."""

    def program(params: Any, x: Any, delta: Any) -> Any:
        _, saved = jbp.forward(net, params, x)
        fixed = constants(net, params, x, None)
        leaves, output = output_of(net, params, x, None, fixed=fixed)
        _, pull = jax.vjp(output, leaves)
        mask = jnp.eye(n, dtype=delta.dtype).reshape(n, n, *(1,) * (delta.ndim - 1))
        found = by_hand(net, params, x, None, saved, delta)
        found |= {name: [g for i, g in enumerate(found[name]) if i not in fixed] for name in ("total", "each")}
        return found, jax.lax.map(lambda m: pull(m * delta)[0], mask)

    run, narrow = jax.jit(program), jnp.finfo(dtype).bits < 32
    for seed in seeds:
        params, out = net.init(jax.random.key(seed), shape)
        params = cast(params, dtype)
        x, delta = (normal((seed, i), jax.ShapeDtypeStruct((n, *s), dtype)) for i, s in enumerate((shape, out)))
        found, each = run(params, x, delta)
        if narrow:
            _, each = run(*(cast(a, jnp.float32) for a in (params, x, delta)))
        *each, each_x = (np.asarray(a).astype(np.float64) for a in each)
        source, kind = largest(delta), jnp.dtype(dtype)
        level = Level("none", float("inf"), "")
        rows = [compare("", "", "", found["delta_x"], each_x.sum(0), level, dtype=kind, source=source)]
        for total, one, want in zip(found["total"], found["each"], each, strict=True):
            rows.append(compare("", "", "", one, want, level, dtype=kind, source=source))
            rows.append(compare("", "", "", total, want.sum(0), level, dtype=kind, source=source, terms=largest(want)))
        yield max(row.error for row in rows)


def slope_errors(function: Any, gradient: Any, leaves: Any, extra: Any, seed: int) -> Iterator[tuple[Level, float]]:
    """The errors of finite differences and the complex step, leaf by leaf."""
    names = [str(i) for i in range(len(leaves))]
    step: Any = partial(complex_step, source=0.0)  # errors beside the slope itself, whatever it came from
    for level, oracle in ((FINITE_DIFFERENCE, finite_differences), (COMPLEX_STEP, step)):
        for entry in oracle(function, gradient, leaves, extra, names, (seed,)):
            if entry.verdict != "skip":
                yield level, entry.error if entry.compared else float("inf")


def net_slopes(net: Layer, shape: Any, n: int, seed: int) -> Iterator[tuple[Level, float]]:
    """The slopes of ⟨output, δ⟩ of a net."""
    params, out = net.init(jax.random.key(seed), shape)
    x, delta = (normal((seed, i), jax.ShapeDtypeStruct((n, *s), jnp.float64)) for i, s in enumerate((shape, out)))
    leaves, rebuild = split((params, x))

    def function(leaves: Any, delta: Any) -> Any:
        params, x = rebuild(leaves)
        y = jbp.forward(net, params, x)[0]
        terms = y * delta.astype(y.dtype)
        return terms.sum(), terms

    def gradient(leaves: Any, delta: Any) -> Any:
        params, x = rebuild(leaves)
        return gradients_of(net, params, x, None, delta)

    yield from slope_errors(function, gradient, leaves, delta, seed)


def loss_slopes(name: str, shape: Any, seed: int) -> Iterator[tuple[Level, float]]:
    """The slopes of Σₙ value of a loss."""
    loss = getattr(jbp.losses, name)
    p, t = (normal((seed, i), jax.ShapeDtypeStruct((5, *shape), jnp.float64)) for i in (0, 1))

    def function(leaves: Any, t: Any) -> Any:
        values = jax.vmap(loss.value)(leaves[0], t)
        return values.sum(), values

    yield from slope_errors(function, lambda p, t: [jax.vmap(loss.delta)(p[0], t)], [p], jax.nn.softmax(t), seed)


def loss_errors(name: str, shape: Any, seeds: range, dtype: Any) -> Iterator[float]:
    """The error of a loss's delta, for each seed."""
    loss = getattr(jbp.losses, name)
    run = jax.jit(lambda p, y: (jax.vmap(loss.delta)(p, y), jax.vmap(jax.grad(loss.value))(p, y)))
    for seed in seeds:
        p, t = (normal((seed, i), jax.ShapeDtypeStruct((5, *shape), dtype)) for i in (0, 1))
        found, expected = run(p, jax.nn.softmax(t))
        yield compare("", "", "", found, expected, Level("none", float("inf"), ""), source=1.0).error


def native_slopes(rng: np.random.Generator, i: int, seeds: range) -> Iterator[tuple[Level, float]]:
    """The slopes of functions that compute in float32 whatever they are given: θ(xw + b), two in three a layer more."""
    act = (jnp.tanh, jax.nn.sigmoid, jnp.sin, jax.nn.softplus, jax.nn.softmax, jax.nn.gelu)[i % 6]
    n, k, m = (int(rng.choice(PRIMES)) for _ in range(3))

    def function(leaves: Any, extra: Any) -> Any:
        (x, w, b), (factors, second) = cast((leaves, extra), jnp.float32)
        y = act(x @ w + b)
        y = act(y @ second) if i % 3 else y
        return (y * factors).sum(), y * factors

    def gradient(leaves: Any, extra: Any) -> Any:
        single = cast(leaves, jnp.float32)
        return cast(jax.grad(lambda leaves: function(leaves, extra)[0])(single), jnp.float64)

    for seed in seeds:
        shapes = (n, k), (k, m), (1, m), (n, m), (m, m)
        *leaves, factors, second = (
            normal((i, seed, j), jax.ShapeDtypeStruct(shape, jnp.float32)) for j, shape in enumerate(shapes)
        )
        extra = factors, second / m**0.5
        for entry in finite_differences(function, gradient, leaves, extra, ["x", "w", "b"], (i, seed)):
            if entry.verdict != "skip":
                yield NATIVE_DIFFERENCE, entry.error if entry.compared else float("inf")


def main() -> None:
    """Run all cases, print the table and save the distribution."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few cases, nothing saved")
    quick = parser.parse_args().quick
    jax.config.update("jax_enable_x64", True)
    count, seeds = (5, range(2)) if quick else (60, range(20))
    errors: dict[Level, list[float]] = defaultdict(list)
    with jax.default_matmul_precision(PRECISION):
        for i, (net, shape, n) in enumerate(structures(np.random.default_rng(0), count)):
            level = DEEP if isinstance(net, Combinator) else MATMUL
            for dtype in (jnp.float64, jnp.float32):
                errors[level] += layer_errors(net, shape, n, seeds, dtype)
            if level is MATMUL:
                errors[LOW_PRECISION] += layer_errors(net, shape, n, seeds, jnp.bfloat16)
            if i % 2 == 0:
                for kind, error in net_slopes(net, shape, n, i):
                    errors[kind].append(error)
        for name in LOSSES:
            for dtype in (jnp.float64, jnp.float32):
                errors[ELEMENTWISE] += loss_errors(name, (7,), seeds, dtype)
            for seed in range(2 if quick else 6):
                for kind, error in loss_slopes(name, (7,), seed):
                    errors[kind].append(error)
        rng = np.random.default_rng(1)
        for i in range(3 if quick else 30):
            for kind, error in native_slopes(rng, i, range(2 if quick else 4)):
                errors[kind].append(error)
    result = {}
    for level in LEVELS:
        if not errors[level]:
            continue
        found = np.array(errors[level])
        at = {f"{q:g} %": float(np.percentile(found, q)) for q in (50, 90, 99, 99.9, 100)}
        result[level.name] = {"allowed": level.units, "cases": len(found), "quantiles": at, "errors": sorted(found)}
        print(
            f"{level.name:18}{len(found):6} cases, median {at['50 %']:.3g}, worst {at['100 %']:.3g} of {level.units:g}"
        )
    if not quick:
        common.write(RESULT, {"jax": jax.__version__, "levels": result})


if __name__ == "__main__":
    main()
