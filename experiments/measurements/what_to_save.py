"""What should an activation save for its way back: its output, its input, or a derivative worked out in advance?

Claim: what jbp saves makes the whole step cheapest: no alternative here takes fewer temporary bytes, nor fewer FLOPs
plus transcendental functions at equal bytes. Measured on a flat net, 256-256-256-256-256-10, and on a `repeat` of 16
such layers, at batch 128 in float32, by XLA's own memory and cost analysis; deterministic, so `check` is exact. In the
flat net XLA finds most savings by itself; in the loop of `repeat` what is saved is what is stored.

    python experiments/measurements/what_to_save.py [--quick]        about 20 s; --quick: three activations, 5 s
    writes experiments/results/what_to_save.json
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import jax
import jax.numpy as jnp

import jbp
from jbp.layers import Activation

RESULT = common.RESULTS / "what_to_save.json"


@dataclass(frozen=True)
class Saves(Activation):
    """The activation `of`, saving its input, or θ′ of it, or (relu) where it is positive."""

    of: Any
    what: str

    def value(self, s: jax.Array) -> jax.Array:
        return self.of.value(s)

    def slope(self, s: jax.Array) -> jax.Array:
        return self.of.pull(self.of.keep(s, self.of.value(s)), jnp.ones_like(s))

    def keep(self, s: jax.Array, y: jax.Array) -> jax.Array:
        return s if self.what == "input" else s > 0 if self.what == "mask" else self.slope(s)

    def pull(self, saved: jax.Array, delta: jax.Array) -> jax.Array:
        if self.what == "mask":
            return jnp.where(saved, delta, jnp.zeros_like(delta))
        return delta * (self.slope(saved) if self.what == "input" else saved)


ALTERNATIVES = {
    "relu": ["input", "mask", "slope"],
    "tanh": ["input", "slope"],
    "sigmoid": ["input", "slope"],
    "softplus": ["input", "slope"],
    "elu": ["input", "slope"],
    "silu": ["input"],
    "gelu": ["input"],
}


def nets(activation: Any) -> dict[str, jbp.Layer]:
    flat = [part for _ in range(4) for part in (jbp.Dense(256), activation)]
    deep = jbp.repeat(jbp.serial(jbp.Dense(256), activation), 16)
    return {"flat": jbp.serial(*flat, jbp.Dense(10)), "repeat": jbp.serial(deep, jbp.Dense(10))}


def cost(net: jbp.Layer) -> dict[str, float]:
    params, _ = net.init(jax.random.key(0), (256,))
    x, y = jnp.zeros((128, 256)), jnp.zeros(128, int)
    loss = jbp.losses.softmax_cross_entropy
    compiled = jax.jit(jbp.value_and_grad(net, loss)).lower(params, x, y).compile()
    analysis: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return {
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops": analysis["flops"] + analysis.get("transcendentals", 0.0),
    }


def run(quick: bool) -> dict[str, Any]:
    rows = []
    for name in list(ALTERNATIVES)[: 3 if quick else None]:
        ours: Any = getattr(jbp, name)
        saved = "slope" if name in ("silu", "gelu") else "output"
        for what in [saved, *ALTERNATIVES[name]]:
            activation = ours if what == saved else Saves(ours, what)
            for kind, net in nets(activation).items():
                row = {"activation": name, "saves": what, "ours": what == saved, "net": kind}
                rows.append(row | cost(net))
    return {"jax": jax.__version__, "device": jax.devices()[0].platform, "rows": rows}


def check(result: dict[str, Any]) -> None:
    """Raise unless ours is the cheapest exact way for every activation."""
    for row in result["rows"]:
        ours = next(r for r in result["rows"] if r["ours"] and all(r[k] == row[k] for k in ("activation", "net")))
        if (row["temporary_bytes"], row["flops"]) < (ours["temporary_bytes"], ours["flops"]):
            raise AssertionError(f"{row['activation']} is cheaper when it saves {row['saves']}: {row} against {ours}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three activations, nothing written")
    quick = parser.parse_args().quick
    result = run(quick)
    for row in result["rows"]:
        mark = "*" if row["ours"] else " "
        print(
            f"{mark} {row['activation']:9s} {row['saves']:7s} {row['net']:7s} {row['temporary_bytes']:9d} bytes "
            f"{row['flops'] / 1e6:8.2f} M operations"
        )
    if not quick:
        common.write(RESULT, result)
    check(result)
