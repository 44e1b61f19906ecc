"""What a step costs on meshes of 1 to 8 devices, and how far its numbers are from one device's, beside autodiff.

Claim: FLOPs per device fall as 1 / devices; a step waits for other devices no more often than autodiff's of the same
loss on the same mesh; of dense stacks FLOPs, bytes and collectives are those of the formulas of
`jbp.sharding.costs`. Counted in the compiled programs, with the loops' trip counts, on virtual devices of a CPU: no
times, so the table is the same on every machine with one version of JAX, but for the last digit of the errors.

    python experiments/measurements/meshes.py                about 5 min
    python experiments/measurements/meshes.py --only GPT     what has this in its name; the rows of others stay
    python experiments/measurements/meshes.py --quick        under a minute, and writes nothing
    writes experiments/results/meshes.json, and the table in docs/several_devices.md

`error`: the parameters after two steps in float32, the largest difference from one device's, over the largest number of
its leaf. `share`: FLOPs of a device times their number, over those of one device alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One after another: where XLA runs at once what can be, devices on few cores wait for one another for ever.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
sys.path += [str(Path(__file__).resolve().parents[2] / folder) for folder in ("experiments", "tests")]

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
from compiled import counted
from on_meshes import DEEP, FOUR, IMAGES, SHAPES, TALKS, WIDE, Counts, mesh_of

import jbp
from jbp.cli.training import versions

RESULT = common.RESULTS / "meshes.json"
PAGE = Path(__file__).parents[2] / "docs" / "several_devices.md"
BEGIN, END = "<!-- meshes -->\n", "<!-- end of meshes -->"
NORMED = Counts(jbp.serial(jbp.Dense(64, use_bias=False), jbp.BatchNorm(), jbp.relu, jbp.Dense(16)), (24,), 64)
CLIPPED = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
METHODS: dict[str, tuple[Any, dict[str, Any], tuple[tuple[int, int], ...]]] = {
    "784-512-512-10, batch 512": (WIDE, {}, SHAPES),
    "the same, parameters spread": (WIDE, {"shard_params": True}, ((4, 1), (8, 1), (4, 2))),
    "24-64-32-48-16, batch 64": (FOUR, {}, SHAPES),
    "in 4 parts (accumulate)": (FOUR, {"accumulate": 4}, ((4, 1), (2, 2))),
    "private": (FOUR, {"method": jbp.Private(1.0, 1.0, 1e-3).bind(64)}, ((4, 1), (2, 2))),
    "clipped by the global norm": (FOUR, {"optimizer": CLIPPED}, ((4, 1), (2, 2))),
    "direct feedback alignment": (FOUR, {"method": jbp.rules.DirectFeedbackAlignment()}, ((4, 1), (2, 2))),
    "in place": (FOUR, {"method": jbp.train.InPlace()}, ((4, 1), (2, 2))),
    "batch normalisation": (NORMED, {}, ((4, 1), (2, 2))),
    "repeat of 4 dense layers": (DEEP, {}, ((4, 1), (8, 1), (2, 2), (1, 4))),
    "two convolutions": (IMAGES, {}, ((4, 1), (8, 1), (2, 2), (1, 4))),
    "a GPT of 2 layers, 4 heads": (TALKS, {}, ((4, 1), (8, 1), (2, 2), (1, 4))),
}
"""What is counted: a net and its batch, how a step is made, and on which meshes."""
QUICK = ("24-64-32-48-16, batch 64", "private")
BESIDE = ("784-512-512-10, batch 512", "the same, parameters spread", "24-64-32-48-16, batch 64",
          "in 4 parts (accumulate)", "private", "repeat of 4 dense layers", "two convolutions",
          "a GPT of 2 layers, 4 heads")  # fmt: skip
"""With autodiff's step, of the same loss on the same mesh."""


def autodiff(name: str, one: Counts, on: jbp.Sharding) -> Any:
    """The same step, by `jax.grad`, arrays laid out alike and all else left to the compiler."""
    if name not in ("private", "in 4 parts (accumulate)"):
        return one.autodiff(on)
    params = one.net.init(jax.random.key(0), one.shape)[0]
    specs = on.params(one.net, params)

    def error(params: Any, x: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(one.plain(params, x), y).mean()

    def clipped(params: Any, x: Any, y: Any) -> Any:
        each = jax.vmap(jax.grad(lambda p, x, y: error(p, x[None], y[None])), (None, 0, 0))(params, x, y)
        squares = sum(jnp.square(g).reshape(len(x), -1).sum(1) for g in jax.tree.leaves(each))
        scale = jnp.minimum(1.0, 1 / jnp.sqrt(squares)) / len(x)
        return error(params, x, y), jax.tree.map(lambda g: jnp.einsum("n,n...->...", scale, g), each)

    def in_parts(params: Any, x: Any, y: Any) -> Any:
        def add(sums: Any, part: Any) -> Any:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(error)(params, *part)), None

        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, zero, jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), (x, y)))[0]

    def step(params: Any, x: Any, y: Any) -> Any:
        value, grads = (clipped if name == "private" else in_parts)(params, x, y)
        return value, on.constrain(jax.tree.map(lambda a, g: a - 0.1 * g, params, grads), specs)

    with on.set():
        return jax.jit(step).lower(on.put(params, specs), *on.rows((one.x, one.y))).compile()


def after_two(one: Counts, how: dict[str, Any], sharding: jbp.Sharding | None) -> Any:
    """The parameters after two steps."""
    problem = one.problem(how.get("method"), how.get("optimizer"))
    step = jbp.make_step(problem, accumulate=how.get("accumulate", 1), sharding=sharding)
    rng, state = np.random.default_rng(0), jbp.init_state(problem, one.shape, seed=1)
    for _ in range(2):
        state, _ = step(state, jbp.Batch(*one.drawn(rng)))
    return jax.tree.map(np.asarray, state.params)


@cache
def alone(name: str) -> tuple[Any, float]:
    """Of one device: the parameters, and the FLOPs of its step."""
    one, how, _ = METHODS[name]
    return after_two(one, how, None), compiled(name, mesh_of(1, 1)).flops


def compiled(name: str, on: jbp.Sharding) -> Any:
    one, how, _ = METHODS[name]
    return counted(one.step(on, **{word: value for word, value in how.items() if word != "shard_params"}))


def row(name: str, d: int, m: int) -> dict[str, Any]:
    """One line of the table."""
    one, how, _ = METHODS[name]
    on = mesh_of(d, m, shard_params=how.get("shard_params", False))
    found, (params, flops) = compiled(name, on), alone(name)
    errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()), after_two(one, how, on), params)
    said: dict[str, Any] = {
        "what": name, "mesh": f"{d} × {m}", "error": max(jax.tree.leaves(errors)), "flops": found.flops,
        "share": found.flops * d * m / flops, "collectives": dict(sorted(found.collectives.items())),
        "total": found.total, "bytes": found.bytes,
    }  # fmt: skip
    if name in BESIDE:
        theirs = counted(autodiff(name, one, on))
        said |= {"autodiff": {"flops": theirs.flops, "total": theirs.total, "bytes": theirs.bytes}}
    if not {"method", "accumulate", "optimizer"} & how.keys() and one not in (NORMED, TALKS):
        costs = one.costs(d, m, shard_params=how.get("shard_params", False))
        said |= {"formula": {"flops": costs.flops, "total": costs.collectives, "bytes": costs.bytes,
                             "exact": costs.exact}}  # fmt: skip
    print(json.dumps(said, ensure_ascii=False), flush=True)
    return said


def check(rows: list[dict[str, Any]]) -> None:
    """The claim."""
    for one in rows:
        where = f"{one['what']}, {one['mesh']}"
        common.require(one["error"] < 1e-5, f"{where}: the numbers are not those of one device: {one['error']}")
        common.require("formula" not in one or not one["formula"]["exact"] or all(
            one[name] == one["formula"][name] for name in ("flops", "total", "bytes")
        ), f"{where}: formula and program differ")  # fmt: skip
        if "784" in one["what"]:
            common.require(one["share"] <= 1.0671, f"{where}: a device does {one['share']} of its part")
            common.require(one["total"] <= one["autodiff"]["total"], f"{where}: waits more often than autodiff")


def table(rows: list[dict[str, Any]]) -> str:
    """As the page has it."""
    lines = ["| | data × model | error | FLOPs, share | collectives | bytes | autodiff: FLOPs, share | collectives "
             "| bytes |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    last = None
    for one in rows:
        theirs = one.get("autodiff")
        beside = "| |"
        if theirs:
            share = one["share"] * theirs["flops"] / one["flops"]
            beside = f"{share:.3f} | {theirs['total']} | {theirs['bytes']:,}"
        shown = one["what"] if one["what"] != last else ""
        exact = "" if not one.get("formula", {}).get("exact") else " ="
        lines.append(
            f"| {shown} | {one['mesh']} | {one['error']:.0e} | {one['share']:.3f} | {one['total']} | "
            f"{one['bytes']:,}{exact} | {beside} |"
        )
        last = one["what"]
    return "\n".join(lines) + "\n"


def with_table(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with that table between its comments."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    common.require(rest and after, f"{PAGE} has no {BEGIN.strip()} … {END.strip()}")
    return before + BEGIN + table(rows) + END + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two of them on four meshes, nothing written")
    parser.add_argument("--only", metavar="TEXT", default="", help="what has this in its name")
    options = parser.parse_args()
    names = [name for name in (QUICK if options.quick else METHODS) if options.only in name]
    if not names:
        parser.error(f"--only {options.only!r} is in none of: {'; '.join(METHODS)}")
    rows = [row(name, d, m) for name in names for d, m in (METHODS[name][2][:4] if options.quick else METHODS[name][2])]
    if options.only and not options.quick:
        kept = [one for one in json.loads(RESULT.read_text())["rows"] if one["what"] not in names]
        rows = sorted(kept + rows, key=lambda one: list(METHODS).index(one["what"]))
    check(rows)
    if options.quick:
        return
    found = {name: value for name, value in versions().items() if name in ("jbp", "jax", "jaxlib")}
    common.write(RESULT, {"versions": found, "rows": rows})
    common.save(PAGE, with_table(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
