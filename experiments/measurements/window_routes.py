"""Which way to the norm of each example's kernel gradient is cheaper: the pixel Gram, or the gradient formed?

Claim: the rule of `jbp.stats.windows.route`, by multiply-adds of which a number of a shifted matrix counts for `SHIFT`,
takes at most 1.1 times as long over all layers as the faster way of each would. Measured on 40
kinds of layers (1-D to 3-D, first and late, strided, dilated, in groups), in float32, in one process, both ways in
turn; of each way the median of its rounds. Times are those of one machine and differ in every run, so `check` only
holds that the saved table and the rule agree: what the rule says today of each layer, and the claim on the saved times.

    python experiments/measurements/window_routes.py [--quick]       about 3 min; --quick: 5 s, only `check`
    writes experiments/results/window_routes.json

With --nets (5 min) four whole nets: norms and clipping by jbp and by `vmap(grad)`, in plain gradients of the same net:
time, interleaved, products and bytes of temporaries; written beside the table under "nets".
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).resolve().parents[2] / folder) for folder in ("experiments", "tests")]

import common
import jax
import jax.numpy as jnp
import numpy as np
from counting import product_flops
from test_window_norms import LOSS, NETS, by_vmap, ours

import jbp
from jbp.pairs import Geometry, Window, routes
from jbp.stats import windows

RESULT = common.RESULTS / "window_routes.json"
BATCH, ROUNDS = 64, 15
TOTAL = 1.1


def layer(space: tuple[int, ...], i: int, kernel: int, o: int, stride: int = 1, **how: Any) -> tuple[Any, ...]:
    """A layer with its padding "same", unless `valid`."""
    d, dilation = len(space), how.get("dilation", 1)
    padding = []
    for s in space:
        missing = 0 if how.get("valid") else max((-(-s // stride) - 1) * stride + (kernel - 1) * dilation + 1 - s, 0)
        padding.append((missing // 2, missing - missing // 2))
    return space, i, o, Geometry((kernel,) * d, (stride,) * d, tuple(padding), (dilation,) * d, how.get("groups", 1))


LAYERS = (
    # first layers
    layer((28, 28), 1, 5, 6), layer((28, 28), 1, 8, 16, 2), layer((32, 32), 3, 3, 16), layer((16, 16), 3, 3, 32),
    layer((28, 28), 1, 7, 32, 4), layer((24, 24), 3, 8, 64, 8, valid=True), layer((256,), 1, 9, 16),
    layer((12, 12), 2, 3, 8),
    # in the middle
    layer((14, 14), 6, 5, 16, valid=True), layer((13, 13), 16, 4, 32, 2, valid=True), layer((16, 16), 32, 3, 32),
    layer((16, 16), 16, 3, 32, 2), layer((14, 14), 32, 3, 64), layer((12, 12), 64, 3, 64, 2),
    layer((10, 10), 32, 3, 128), layer((8, 8), 32, 3, 64), layer((10, 10), 64, 1, 128), layer((16, 16), 32, 1, 64, 2),
    # late
    layer((8, 8), 64, 3, 64), layer((8, 8), 64, 3, 128, 2), layer((7, 7), 64, 3, 128), layer((8, 8), 128, 3, 128),
    layer((6, 6), 128, 3, 256), layer((4, 4), 64, 3, 256), layer((4, 4), 256, 3, 256), layer((4, 4), 128, 3, 256, 2),
    layer((2, 2), 256, 3, 256), layer((6, 6), 96, 5, 96), layer((8, 8), 256, 1, 64),
    layer((5, 5), 32, 3, 64, valid=True),
    # one dimension and three
    layer((64,), 32, 5, 32), layer((128,), 16, 9, 32, 2), layer((32,), 64, 3, 128), layer((16,), 128, 3, 256),
    layer((50,), 64, 7, 64, valid=True), layer((4, 4, 4), 32, 3, 64), layer((8, 8, 8), 4, 3, 8),
    # dilated, and in groups
    layer((12, 12), 32, 3, 64, dilation=2), layer((8, 8), 64, 3, 64, groups=4), layer((8, 8), 64, 3, 64, groups=64),
)  # fmt: skip


def pair_of(space: tuple[int, ...], i: int, o: int, geometry: Geometry) -> Window:
    rng = np.random.default_rng(0)
    h, delta = (
        jnp.asarray(rng.normal(size=(BATCH, 1, *s)), jnp.float32) for s in ((*space, i), (*geometry.sites(space), o))
    )
    return Window(h, delta, (*geometry.kernel, i // geometry.groups, o), geometry)


def words(space: tuple[int, ...], i: int, o: int, geometry: Geometry) -> str:
    """Such as "14×14×6 k5×5→16 valid"."""
    parts = [f"{'×'.join(map(str, (*space, i)))} k{'×'.join(map(str, geometry.kernel))}→{o}"]
    named = {"s": geometry.stride[0], "d": geometry.dilation[0], "g": geometry.groups}
    parts += [f"{name}{value}" for name, value in named.items() if value > 1]
    return " ".join(parts + ["valid"] * (not any(map(any, geometry.padding))))


def in_turn(programs: dict[str, Any], rounds: int) -> dict[str, float]:
    """Milliseconds of each, the median of its rounds."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for run in programs.values():
        jax.block_until_ready(run())
    for turn in range(rounds):
        for name in list(programs)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            jax.block_until_ready(programs[name]())
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: round(float(np.median(values)), 4) for name, values in times.items()}


def measured(shape: tuple[Any, ...]) -> dict[str, Any]:
    """The row of one layer: what each way costs by counting, what the rule says, and how long each takes."""
    pair = pair_of(*shape)
    costs = windows.costs(pair)
    row: dict[str, Any] = {"layer": words(*shape), "T": pair.uses, "K": math.prod(pair.geometry.kernel), **costs}
    row["rule"] = str(windows.route(pair).way)
    ways = {"formed": (windows._square_formed, "unfolded")}
    if costs["shares"] + costs["shifts"] <= 4 * costs["products"]:  # beyond that nobody would
        ways["gram"] = (windows._square_gram, "matrices")
    programs = {}
    for name, (way, numbers) in ways.items():
        together = windows._together(pair, costs[numbers])
        run = jax.jit(lambda pair, way=way, together=together: windows._in_parts(way, pair, together))
        programs[name] = lambda run=run: run(pair)
    row["ms"] = in_turn(programs, ROUNDS)
    return row


def check(result: dict[str, Any]) -> None:
    """The rule says of each layer what the table has, and loses at most a tenth by it."""
    rows = {row["layer"]: row for row in result["layers"]}
    common.require(list(rows) == [words(*shape) for shape in LAYERS], "the table is not of these layers: measure again")
    for shape in LAYERS:
        row, now = rows[words(*shape)], jax.eval_shape(lambda shape=shape: pair_of(*shape))
        common.require(row["rule"] == windows.route(now).way, f"{row['layer']}: the rule has changed: measure again")
    chosen = sum(row["ms"].get(row["rule"], row["ms"]["formed"]) for row in rows.values())
    best = sum(min(row["ms"].values()) for row in rows.values())
    common.require(len(rows) >= 30, "a rule for every layer is calibrated on 30 kinds at least")
    common.require(chosen <= TOTAL * best, f"the rule takes {chosen / best:.2f} times the best choice's time")
    print(f"{len(rows)} layers: the rule takes {chosen / best:.3f} times the best choice's time")


def nets() -> list[dict[str, Any]]:
    """Norms and clipping beside `vmap(grad)`, in plain gradients: [time, products, bytes] of each."""
    rows = []
    for name, (net, shape, n) in NETS.items():
        args = (
            net.init(jax.random.key(0), shape)[0],
            jax.random.normal(jax.random.key(1), (n, *shape)),
            np.arange(n) % 10,
        )
        made = {"plain": jbp.value_and_grad(net, LOSS)}
        for what in ("norms", "clipped"):
            made |= {what: ours(name, what), f"{what}, vmap(grad)": by_vmap(name, what)}
        with routes.plain():  # the same convolutions for all
            programs = {key: jax.jit(run).lower(*args).compile() for key, run in made.items()}
        ms = in_turn({key: partial(run, *args) for key, run in programs.items()}, 7)
        memory = {key: run.memory_analysis() for key, run in programs.items()}
        bytes_ = {key: found.temp_size_in_bytes for key, found in memory.items() if found is not None}
        products = {key: product_flops(run, *args) for key, run in made.items()}
        figures = (ms, products, bytes_)
        row = {key: [round(of[key] / of["plain"], 3) for of in figures] for key in made if key != "plain"}
        rows.append({"net": name, **row})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nets", action="store_true")
    args = parser.parse_args()
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if args.nets:
        result["nets"] = nets()
    elif not args.quick:
        rows = [measured(shape) for shape in common.progress(LAYERS, "layers")]
        result = {"batch": BATCH, "shift": windows.SHIFT, "layers": rows, "nets": result.get("nets", [])}
    if not args.quick:
        common.write(RESULT, result)
    check(result)


if __name__ == "__main__":
    main()
