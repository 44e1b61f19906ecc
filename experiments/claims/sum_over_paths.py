"""The chain rule sums over paths: branches and shared weights, against the sum written out.

Claim: ∂f/∂t = ∂f/∂x · dx/dt + ∂f/∂y · dy/dt, and so in any network ∂e/∂w is a sum over all paths from w to the error,
of the product of the derivatives on the way. L stages, each a `jbp.branch` of three layers that are added up, have 3^L
paths; backpropagation does not visit them: it adds δ where paths meet, at a cost that grows as L. Both agree to
rounding. So does `jbp.tied`: one weight used at every stage gets the sum over its L places, each of which has its own
paths.

Source: lecture C (chain rule, case 2) and lecture E (fan-out). That the sum can be done stage by stage is the
distributive law: Bauer 1974, Computational graphs and rounding error; Goodfellow et al. 2016, section 6.5.2.

    python experiments/claims/sum_over_paths.py [--quick]      15 seconds (--quick: 2 s)

Expect: differences of at most 5 eps · Σ |paths|, over 59,049 paths a weight at L = 11, which take two million
multiplications; each stage adds exactly 28 FLOPs to backpropagation, at any depth. They are counted in the program
handed to XLA: when it fuses scalars, XLA prefers computing some again to storing them, and its own count gets a term
in L².
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import claim
import drawing
import jax
import jax.numpy as jnp
import numpy as np

import jbp

STAGE = jbp.branch(jbp.Dense(1, use_bias=False), jbp.sigmoid, jbp.serial(jbp.Dense(1, use_bias=False), jbp.sigmoid))
EPS = 2.0**-52


@dataclass(frozen=True)
class Config:
    """Depths at which the paths are summed, at which FLOPs are counted, and of the network in the picture; `left_out`
    forgets one branch on the way."""

    depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    counted: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    drawn: int = 3
    left_out: int | None = None
    seed: int = 0


FULL = Config()
QUICK = Config(depths=(1, 2, 3, 4, 5), counted=(1, 2, 4))
CONTROL = Config(depths=(3,), counted=(1, 2, 4), left_out=1)


def derivatives(weights: np.ndarray, x: float) -> tuple[float, list[Any], list[Any]]:
    """The output; and of each stage's output the derivatives by its input, along each branch, and by its weights."""
    h, passed, local = x, [], []
    for direct, inner in weights:
        s, t = 1 / (1 + np.exp(-h)), 1 / (1 + np.exp(-inner * h))
        passed.append((direct, s * (1 - s), inner * t * (1 - t)))
        local.append((h, h * t * (1 - t)))
        h = direct * h + s + t
    return h, passed, local


def by_paths(weights: np.ndarray, x: float, y: float, left_out: int | None) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Of e = (p − y)²: ∂e/∂w of both weights of every stage [l, 2] as a sum over paths, the same sum of absolute
    values, the number of paths from a weight of the first stage, and the multiplications it all took."""
    h, passed, local = derivatives(weights, x)
    found, sizes, paths, products = np.zeros_like(weights), np.zeros_like(weights), 0, 0
    for place, _ in np.ndenumerate(weights):
        above = passed[place[0] + 1 :]
        terms = []
        for path in itertools.product(range(3), repeat=len(above)):
            if left_out not in path:
                ways = [stage[way] for stage, way in zip(above, path, strict=True)]
                terms.append(local[place[0]][place[1]] * math.prod(ways) * 2 * (h - y))
                products += len(ways) + 2
        found[place], sizes[place] = math.fsum(terms), math.fsum(map(abs, terms))
        paths = max(paths, len(terms))
    return found, sizes, paths, products


def stages(depth: int, shared: bool) -> jbp.Layer:
    """`depth` stages; with `shared`, each borrows the weights of the first."""
    net = jbp.serial(*[STAGE] * depth)
    borrowed = {(stage, i): (0, i) for stage in range(1, depth) for i in (0, 2)}
    return jbp.tied(net, borrowed) if shared and borrowed else net  # type: ignore[arg-type]


def tree(weights: np.ndarray, shared: bool) -> Any:
    """The weights [l, 2] as the network holds them."""
    full = [({"weight": jnp.full((1, 1), w)}, (), ({"weight": jnp.full((1, 1), v)}, ())) for w, v in weights]
    return tuple(full[:1] + [((), (), ())] * (len(full) - 1)) if shared else tuple(full)


def compare(config: Config, depth: int) -> dict[str, float]:
    """The largest difference of `value_and_grad` from the sum over paths, in units of eps · Σ |paths|."""
    rng = np.random.default_rng(config.seed)
    # All terms are positive and no unit saturates, so that nothing cancels and the units are those of the rounding.
    x, y, weights = rng.uniform(), -1.0, rng.uniform(0.05, 0.3, size=(depth, 2))
    worst, row = 0.0, {}
    for shared in (False, True):
        used = np.tile(weights[:1], (depth, 1)) if shared else weights
        found, sizes, paths, products = by_paths(used, x, y, config.left_out)
        if shared:
            found, sizes = found.sum(0), sizes.sum(0)
        gradient = jbp.value_and_grad(stages(depth, shared), jbp.losses.squared_error)
        grads = gradient(tree(used, shared), jnp.full((1, 1), x), jnp.full((1, 1), y))[1]
        exact = np.array(jax.tree.leaves(grads)).reshape(found.shape)
        worst = max(worst, float((np.abs(exact - found) / (EPS * sizes)).max()))
        row = {"depth": depth, "paths": paths, "multiplications": products, "error": worst}
    return row


def count(config: Config, depth: int) -> dict[str, float]:
    """FLOPs of `value_and_grad` as it is handed to XLA, whose fusions may then compute a scalar more than once."""
    gradient = jbp.value_and_grad(stages(depth, False), jbp.losses.squared_error)
    params, one = tree(np.ones((depth, 2)), False), jnp.ones((1, 1))
    cost: Any = jax.jit(gradient).lower(params, one, one).cost_analysis()
    return {"depth": depth, "flops": float(cost["flops"])}


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        return {
            "compared": [compare(config, depth) for depth in claim.progress(config.depths, "summing over paths")],
            "counted": [count(config, depth) for depth in claim.progress(config.counted, "counting")],
            "drawn": small(config),
        }


def small(config: Config) -> dict[str, Any]:
    """Every number of a network of few stages: h and δ where the branches meet, by jbp; the derivative along each
    branch and the product along each path from the first weight, by hand."""
    rng = np.random.default_rng(config.seed)
    x, y, weights = rng.uniform(), -1.0, rng.uniform(0.5, 1.5, size=(config.drawn, 2))
    net, params = stages(config.drawn, False), tree(weights, False)
    output, saved = jbp.forward(net, params, jnp.full((1, 1), x))
    delta = jbp.losses.squared_error.delta(output, jnp.full((1, 1), y))
    at_input, pairs = jbp.backward(net, params, saved, delta)
    met = [pair[0]["weight"] for pair in pairs]
    _, passed, _ = derivatives(weights, x)
    ways = list(itertools.product(range(3), repeat=config.drawn - 1))
    products = [math.prod(stage[way] for stage, way in zip(passed[1:], path, strict=True)) for path in ways]
    return {
        "h": [float(pair.h.squeeze()) for pair in met] + [float(output.squeeze())],
        "δ": [float(at_input.squeeze())] + [float(pair.delta.squeeze()) for pair in met],
        "along": [[float(one) for one in stage] for stage in passed],
        "paths": [{"ways": path, "product": float(product)} for path, product in zip(ways, products, strict=True)],
        "first weight": float(weights[0, 0]),
        "by paths": float(by_paths(weights, x, y, config.left_out)[0][0, 0]),
        "by jbp": float(jbp.contract(pairs)[0][0]["weight"].squeeze()),
    }  # fmt: skip


def per_stage(result: dict[str, Any]) -> list[float]:
    """FLOPs that each further stage adds, from one counted depth to the next."""
    rows = result["counted"]
    return [(b["flops"] - a["flops"]) / (b["depth"] - a["depth"]) for a, b in itertools.pairwise(rows)]


def check(result: dict[str, Any]) -> None:
    """The number that decides: the largest error in units of eps · Σ |paths|, 4 for each of the L + 2 factors."""
    for row in result["compared"]:
        claim.require(
            row["error"] <= 4 * (row["depth"] + 2), f"the sum over paths differs by {row['error']:.3g} eps: {row}"
        )
        claim.require(row["paths"] == 3 ** (row["depth"] - 1), f"there are {row['paths']} paths: {row}")
    drawn = result["drawn"]
    off = abs(drawn["by paths"] - drawn["by jbp"]) / (EPS * abs(drawn["by jbp"]))
    claim.require(off <= 4 * (result["config"]["drawn"] + 2), f"in the drawn network the sum differs by {off:.3g} eps")
    steps = per_stage(result)
    claim.require(max(steps) < 1.05 * min(steps), f"a further stage does not always cost the same: {steps} FLOPs")


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
    draw_paths(figure.add_subplot(grid[0, :]), result["drawn"])
    left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    summed, counted = result["compared"], result["counted"]
    depths, back = (np.array([row[key] for row in counted]) for key in ("depth", "flops"))
    below, paths, error = (np.array([row[key] for row in summed]) for key in ("depth", "multiplications", "error"))
    left.loglog(below, paths[-1] * below / below[-1] * 3.0 ** (below - below[-1]), "C0", lw=1, label="∝ L·3^L")
    left.loglog(below, paths, "C0o", label="sum over paths")
    left.loglog(depths, back[-1] * depths / depths[-1], "C1", lw=1, label="∝ L")
    left.loglog(depths, back, "C1o", label="backpropagation")
    left.set_ylabel("cost of all gradients (FLOPs)")
    left.legend(fontsize=10)
    right.plot(below, 4 * (below + 2), "k--", lw=1, label="allowed")
    right.plot(below, error, "C1o", label="measured")
    right.set_ylabel("difference (eps · Σ |paths|)")
    right.set_ylim(0)
    right.legend(fontsize=10)
    for axis in (left, right):
        axis.set_xlabel("L, number of stages")
    return figure


def draw_paths(axis: Any, one: dict[str, Any]) -> None:
    """The small network: three branches from circle to circle, h in them and δ below; beside it the products."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    apart, names = 2.0, ("w", "θ′", "vθ′")
    for i, (h, delta) in enumerate(zip(one["h"], one["δ"], strict=True)):
        drawing.unit(axis, (apart * i, 0), drawing.number(h), f"δ {drawing.number(delta)}")
    for i, stage in enumerate(one["along"]):
        for up, name, slope in zip((1, 0, -1), names, stage, strict=True):
            ends, colour = (apart * i, apart * (i + 1)), "C1" if i == 0 and up == 1 else "0.7"
            curve = Path([(ends[0], 0), (ends[0] + 0.7, 1.6 * up), (ends[1] - 0.7, 1.6 * up), (ends[1], 0)],
                         [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])  # fmt: skip
            axis.add_patch(PathPatch(curve, fc="none", ec=colour, lw=0.5 + 2 * slope, zorder=1))
            axis.text(sum(ends) / 2, 1.2 * up, f"{name} = {drawing.number(slope)}", ha="center", va="center",
                      fontsize=9, zorder=2, bbox=drawing.PAPER)  # fmt: skip
    products = [" · ".join(names[way] for way in path["ways"]) for path in one["paths"]]
    lines = [
        f"{text} = {drawing.number(path['product'], 3)}" for text, path in zip(products, one["paths"], strict=True)
    ]
    total = sum(path["product"] for path in one["paths"])
    last = one["δ"][-1]
    text = "\n".join([
        "The 9 paths from the first w (orange) on:", *lines, f"sum = {total:.3f}",
        f"h · sum · δ = {one['h'][0]:.2f} · {total:.3f} · {last:.2f} = {one['by paths']:.3f}",
        f"jbp's gradient: {one['by jbp']:.3f}",
    ])  # fmt: skip
    right = apart * (len(one["h"]) - 1) + 0.7
    axis.text(right, 0, text, ha="left", va="center", fontsize=9.5, linespacing=1.35)
    axis.set(xlim=(-0.5, right + 2.6), ylim=(-1.7, 1.7))
    axis.set_title("h in the circles, δ below them; on each branch the derivative along it", fontsize=11)
    axis.axis("off")


def summary(result: dict[str, Any]) -> tuple[str, str]:
    last, steps = result["compared"][-1], per_stage(result)
    worst = max(row["error"] for row in result["compared"])
    return (
        "the gradient is the sum over 3^L paths, at a cost that grows as L",
        f"equal to {worst:.2g} eps over up to {last['paths']:.0f} paths a weight; "
        f"a further stage adds {max(steps):.0f} FLOPs, at any depth",
    )


if __name__ == "__main__":
    claim.main()
