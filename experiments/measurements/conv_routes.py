"""Convolution on a CPU: where a product, a sum over the kernel's offsets or whole rows of pixels beat XLA's convolution

Claim: each way that `jbp.pairs.routes.way_of` takes is faster than the convolution, in a loop, at batch 64. Rows by
shape: the time and the multiply-adds of each way that could be taken, as shares of the convolution's (medians of
interleaved rounds; "taken" is the rule's choice), and the exact share of time in whole steps of training, beside
autodiff's, whose convolutions are slow in loops.

    python experiments/measurements/conv_routes.py [--quick]        about 5 minutes, on a quiet machine; --quick: 20 s
    writes experiments/results/conv_routes.json
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jbp
from jbp.pairs import Geometry, routes

RESULT = common.RESULTS / "conv_routes.json"
BATCH = 64
LIMIT = 1.1
"""A way that is taken may take so many times the convolution's time, rounds being what they are."""

SHAPES = [  # space, i, o, kernel, stride, padding, groups
    ((28, 28), 1, 6, 5, 1, 2, 1),
    ((28, 28), 1, 16, 5, 1, 2, 1),
    ((28, 28), 1, 32, 5, 1, 2, 1),
    ((28, 28), 1, 16, 8, 2, 3, 1),
    ((28, 28), 1, 8, 3, 1, 1, 1),
    ((14, 14), 6, 16, 5, 1, 0, 1),
    ((16, 16), 3, 16, 3, 1, 1, 1),
    ((32, 32), 3, 16, 3, 1, 1, 1),
    ((16, 16), 8, 16, 3, 1, 1, 1),
    ((16, 16), 8, 32, 5, 1, 2, 1),
    ((16, 16), 16, 16, 3, 1, 1, 1),
    ((8, 8), 16, 16, 3, 1, 1, 1),
    ((32, 32), 16, 32, 1, 1, 0, 1),
    ((32, 32), 16, 32, 1, 2, 0, 1),
    ((16, 16), 64, 128, 1, 1, 0, 1),
    ((32, 32), 32, 32, 3, 1, 1, 32),
    ((16, 16), 64, 64, 3, 1, 1, 64),
    ((16, 16), 64, 64, 3, 2, 1, 64),
    ((16, 16), 32, 64, 5, 1, 2, 32),
    ((128,), 1, 16, 9, 1, 4, 1),
    ((128,), 16, 32, 1, 1, 0, 1),
    ((64,), 32, 32, 5, 1, 2, 32),
    ((8, 8, 8), 4, 8, 1, 1, 0, 1),
    ((8, 8, 8), 8, 8, 3, 1, 1, 8),
]
SHORT = 5
"""How many shapes, from both ends, --quick takes."""


def in_a_loop(function: Callable[..., Any], operands: tuple[Any, ...]) -> Callable[[int], Any]:
    """m calls in one compiled loop, each on operands that the call before did not see."""
    both = tuple(jnp.stack((a, -a)) for a in operands)
    shape = jax.eval_shape(function, *operands)

    @jax.jit
    def loop(both: Any, m: Any) -> Any:
        def body(i: Any, _: Any) -> Any:
            return function(*(lax.dynamic_index_in_dim(a, i % 2, keepdims=False) for a in both))

        return lax.fori_loop(0, m, body, jnp.zeros(shape.shape, shape.dtype))

    return lambda m: jax.block_until_ready(loop(both, m))


def interleaved(runs: dict[str, Callable[[int], Any]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds a call, round by round, each run in turn."""
    calls = {}
    for name, run in runs.items():
        run(1)
        start = time.perf_counter()
        run(1)
        calls[name] = max(1, min(200, int(seconds / (time.perf_counter() - start))))
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(calls[name])
            found[name].append((time.perf_counter() - start) * 1e3 / calls[name])
    return found


def candidates(which: str, geometry: Geometry, space: tuple[int, ...], i: int) -> dict[str, Any]:
    """The ways that could be taken."""
    depthwise = geometry.groups > 1
    ways = ["depthwise"] if depthwise else ["place"] if math.prod(geometry.kernel) == 1 else ["rows"]
    given = (geometry, space) if which == "back" else (geometry,)
    found = {way: getattr(routes, f"{way}_{which}", None) for way in ways if way != "rows" or space[-1] * i < 300}
    return {way: partial(function, *given) for way, function in found.items() if function}


def more_products(which: str, way: str, geometry: Geometry, space: tuple[int, ...]) -> float:
    """Multiply-adds, as a share of the convolution's (of which those with padding count too)."""
    if way != "rows":
        return 1.0
    sites = geometry.sites(space)
    share = space[-1] / geometry.kernel[-1]
    return share * math.prod(space[:-1]) / math.prod(sites[:-1]) if which == "back" else share


def shapes(quick: bool) -> list[dict[str, Any]]:
    """A row for each shape and convolution for which there is another way."""
    rows = []
    rng = np.random.default_rng(0)
    for space, i, o, k, stride, padding, groups in SHAPES[:SHORT] + SHAPES[-SHORT:] if quick else SHAPES:
        d = len(space)
        geometry = Geometry((k,) * d, (stride,) * d, ((padding, padding),) * d, (1,) * d, groups)
        sizes = {"h": (BATCH, *space, i), "weight": (*geometry.kernel, i // groups, o)}
        sizes["delta"] = (BATCH, *geometry.sites(space), o)
        arrays = {name: jnp.asarray(rng.standard_normal(size), jnp.float32) for name, size in sizes.items()}
        convolutions: dict[str, Any] = {
            "forward": (geometry.forward, ("h", "weight")),
            "back": (lambda delta, weight, g=geometry, s=space: g.back(delta, weight, s), ("delta", "weight")),
            "contract": (geometry.contract, ("h", "delta")),
        }
        for which, (convolution, names) in convolutions.items():
            operands = tuple(arrays[name] for name in names)
            others = candidates(which, geometry, space, i)
            if not others:
                continue
            with routes.plain():
                runs = {"convolution": in_a_loop(convolution, operands)}
                runs |= {way: in_a_loop(function, operands) for way, function in others.items()}
                times = interleaved(runs, 5 if quick else 15, 0.005 if quick else 0.02)
            for way in others:
                ratios = np.divide(times[way], times["convolution"])
                rows.append(
                    {"space": space, "i": i, "o": o, "kernel": k, "stride": stride, "groups": groups, "which": which}
                    | {"way": way, "taken": routes.way_of(which, geometry, space, i, o) == way}
                    | {"convolution_ms": round(float(np.median(times["convolution"])), 3)}
                    | {"time": round(float(np.median(ratios)), 3)}
                    | {"multiply_adds": round(more_products(which, way, geometry, space), 2)}
                )
    return rows


def lenet() -> tuple[jbp.Layer, tuple[int, ...], Any]:
    net = jbp.serial(
        jbp.Conv(6, 5), jbp.relu, jbp.MaxPool(2), jbp.Conv(16, 5, padding="valid"), jbp.relu, jbp.MaxPool(2),
        jbp.Flatten(), jbp.Dense(120), jbp.relu, jbp.Dense(84), jbp.relu, jbp.Dense(10),
    )  # fmt: skip

    def plain(p: Any, x: Any) -> Any:
        h = _max_pooled(jax.nn.relu(_convolved(x, p[0], "SAME")))
        h = _max_pooled(jax.nn.relu(_convolved(h, p[3], "VALID"))).reshape(len(x), -1)
        for q in (p[7], p[9]):
            h = jax.nn.relu(h @ q["weight"] + q["bias"])
        return h @ p[11]["weight"] + p[11]["bias"]

    return net, (28, 28, 1), plain


def separable() -> tuple[jbp.Layer, tuple[int, ...], Any]:
    parts = [layer for o in (32, 64) for layer in (jbp.Conv(o // 2, 3, groups=o // 2), jbp.relu, jbp.Conv(o, 1))]
    net = jbp.serial(jbp.Conv(16, 3), jbp.relu, *parts, jbp.GlobalPool(), jbp.Dense(10))

    def plain(p: Any, x: Any) -> Any:
        h = jax.nn.relu(_convolved(x, p[0], "SAME"))
        for k in (2, 5):
            h = _convolved(jax.nn.relu(_convolved(h, p[k], "SAME", h.shape[-1])), p[k + 2], "SAME")
        return h.mean((1, 2)) @ p[9]["weight"] + p[9]["bias"]

    return net, (32, 32, 3), plain


def _convolved(h: Any, p: Any, padding: str, groups: int = 1) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    found = lax.conv_general_dilated(
        h, p["weight"], (1, 1), padding, dimension_numbers=numbers, feature_group_count=groups
    )
    return found + p["bias"]


def _max_pooled(h: Any) -> Any:
    n, a, b, c = h.shape
    return h.reshape(n, a // 2, 2, b // 2, 2, c).max((2, 4))


def steps(quick: bool) -> list[dict[str, Any]]:
    """Whole steps of training in a loop, with the ways, without, and by autodiff."""
    rows = []
    for make in (lenet,) if quick else (lenet, separable):
        net, shape, plain = make()
        params, _ = net.init(jax.random.key(0), shape)
        x, y = jax.random.normal(jax.random.key(1), (BATCH, *shape)), jnp.arange(BATCH) % 10

        def loss(params: Any, x: Any, y: Any, plain: Any = plain) -> Any:
            z = plain(params, x)
            return (jax.nn.logsumexp(z, axis=-1) - jnp.take_along_axis(z, y[:, None], 1)[:, 0]).mean()

        def ours(net: Any = net) -> Any:
            return jbp.value_and_grad(net, jbp.losses.softmax_cross_entropy)

        def steps_of(run: Any, params: Any = params, x: Any = x, y: Any = y) -> Any:
            def loop(params: Any, m: Any) -> Any:
                def step(_: Any, params: Any) -> Any:
                    grads = run(params, x, y)[1]
                    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)

                return lax.fori_loop(0, m, step, params)

            compiled = jax.jit(loop).lower(params, 1).compile()
            return lambda m: jax.block_until_ready(compiled(params, m))

        runs = {"routes": steps_of(ours()), "autodiff": steps_of(jax.value_and_grad(loss))}
        with routes.plain():
            runs["plain"] = steps_of(ours())
        times = interleaved(runs, 3 if quick else 11, 0.05 if quick else 0.3)
        row: dict[str, Any] = {"net": make.__name__}
        for name in ("routes", "plain", "autodiff"):
            row[f"{name}_ms"] = round(float(np.median(times[name])), 2)
        row["time"] = round(float(np.median(np.divide(times["routes"], times["plain"]))), 3)
        rows.append(row)
    return rows


def run(quick: bool) -> dict[str, Any]:
    found = {"jax": jax.__version__, "device": jax.devices()[0].platform, "batch": BATCH}
    return found | {"shapes": shapes(quick), "steps": steps(quick)}


def check(result: dict[str, Any]) -> None:
    """Raise unless what the rule takes is not slower than the convolution, and whole steps are faster with it."""
    for row in result["shapes"]:
        common.require(not row["taken"] or row["time"] <= LIMIT, f"slower than the convolution: {row}")
    for row in result["steps"]:
        common.require(row["time"] < 1 and row["routes_ms"] < row["autodiff_ms"], f"no faster: {row}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few shapes and rounds, nothing written or required")
    quick = parser.parse_args().quick
    result = run(quick)
    for row in (*result["shapes"], *result["steps"]):
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if not quick:
        common.write(RESULT, result)
        check(result)
