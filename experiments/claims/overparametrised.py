"""Wide networks fit anything, and in many ways: zero training loss, different minima, barriers, and matched units.

Claim. (1) Training loss reaches zero as the width passes the number of examples, with random labels too. (2) Different
seeds end in different minima: on the straight line between two of them the loss has a barrier. (3) Much of the barrier
is a renaming: matching the hidden units of the second network to those of the first (the permutation that maximises the
inner product of their weights) at least halves it, median of five pairs. (4) A slice of the loss surface.

Source: lecture E, "nonlinear, so non-convex; over-parameterised"; Zhang et al. 2017, arXiv:1611.03530 (random labels);
Goodfellow, Vinyals, Saxe 2015, arXiv:1412.6544 (lines between minima); Ainsworth, Hayase, Srinivasa 2023,
arXiv:2209.04836, section 3.2 (matching weights); Li et al. 2018, arXiv:1712.09913 (slices).

    python experiments/claims/overparametrised.py [--quick]

Expect training losses of 0.0005 (true labels) and 0.003 (random ones) for 128 digits from width 128 on, and 2 for
random labels at width 4; a barrier of 0.10 ± 0.01 nats between networks that end at 0.0015, of which matching leaves
0.07 ± 0.02. Control: units left as they are, so that all of it is left. Wall time: full 100 s, quick 5 s.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

import jbp


@dataclass(frozen=True)
class Config:
    examples: int = 128
    widths: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
    epochs: int = 1500
    """Of full-batch gradient descent, to fit the examples."""
    seeds: int = 3
    pair_width: int = 512
    pair_epochs: int = 40
    pairs: int = 5
    matched: bool = True
    points: int = 25
    slice: int = 31
    seed: int = 0


FULL = Config()
QUICK = Config(examples=32, widths=(2, 64), epochs=300, seeds=1, pair_width=256, pair_epochs=15, points=11, slice=7)
CONTROL = dataclasses.replace(QUICK, matched=False)
LOSS = jbp.losses.softmax_cross_entropy
ZERO = 0.01  # nats: with such a mean over n examples none is worse than 0.01 n, and accuracy is 1
"""What counts as zero training loss; softmax reaches it only at infinite weights."""


def net_of(width: int) -> jbp.Layer:
    return jbp.serial(jbp.Flatten(), jbp.Dense(width), jbp.relu, jbp.Dense(10))


def run(config: Config) -> dict[str, Any]:
    x, y = jbp.data.load("digits")
    data = jnp.asarray(x, jnp.zeros(()).dtype), jnp.asarray(y)
    return fits(config, *data) | minima(config, *data)


def fits(config: Config, x: Any, y: Any) -> dict[str, Any]:
    """Training loss and accuracy against width, with the true labels and with random ones."""
    random = np.random.default_rng(config.seed)
    chosen = random.permutation(len(x))[: config.examples]
    labels = {"true": y[chosen], "random": jnp.asarray(random.integers(10, size=config.examples), y.dtype)}
    rows = []
    for width in claim.progress(config.widths, "widths"):
        row: dict[str, Any] = {"width": width}
        for name, target in labels.items():
            many = jbp.fit_many(
                net_of(width), LOSS, OPTIMIZER, (x[chosen], target), batch_size=config.examples, epochs=config.epochs,
                seeds=range(10 * config.seed, 10 * config.seed + config.seeds), metrics={"accuracy": jbp.accuracy},
            )  # fmt: skip
            row[name] = many.figures("train_loss").tolist()
            row[f"{name}_accuracy"] = many.figures("train_accuracy").tolist()
        rows.append(row)
    return {"fits": rows}


OPTIMIZER = jbp.optim.sgd(0.1, momentum=0.9)


def minima(config: Config, x: Any, y: Any) -> dict[str, Any]:
    """Training loss on the straight line between pairs of trained networks, before and after matching their units."""
    net = net_of(config.pair_width)
    many = jbp.fit_many(
        net,
        LOSS,
        OPTIMIZER,
        (x, y),
        epochs=config.pair_epochs,
        seeds=range(100 * config.seed, 100 * config.seed + 2 * config.pairs),
    )

    @jax.jit
    def loss_at(params: Any) -> Any:
        return jax.vmap(LOSS.value)(jbp.apply(net, params, x), y).mean()

    shares = jnp.linspace(0, 1, config.points)

    @jax.jit
    def line(a: Any, b: Any) -> Any:
        along = lambda u: jax.tree.map(lambda p, q: (1 - u) * p + u * q, a, b)  # noqa: E731
        return jax.lax.map(lambda u: loss_at(along(u)), shares)

    rows = []
    for i in range(config.pairs):
        a, b = many.params_of(2 * i), many.params_of(2 * i + 1)
        turned = permuted(b, matching(a, b) if config.matched else np.arange(config.pair_width))
        rows.append({"straight": line(a, b).tolist(), "matched": line(a, turned).tolist()})
    a, b = many.params_of(0), many.params_of(1)
    turned = permuted(b, matching(a, b))
    grid = jnp.linspace(-0.25, 1.25, config.slice)

    @jax.jit
    def surface(a: Any, b: Any, c: Any) -> Any:
        at = lambda u, v: jax.tree.map(lambda p, q, r: p + u * (q - p) + v * (r - p), a, b, c)  # noqa: E731
        return jax.lax.map(lambda v: jax.lax.map(lambda u: loss_at(at(u, v)), grid), grid)

    return {
        "lines": rows,
        "slice": {"shares": grid.tolist(), "loss": surface(a, b, turned).tolist()},
    }


def matching(a: Any, b: Any) -> np.ndarray:
    """For each hidden unit of a the unit of b that is most like it: largest inner product of weights in and out."""

    def of(params: Any) -> np.ndarray:
        _, first, _, last = params
        return np.concatenate([first["weight"].T, first["bias"][:, None], last["weight"]], axis=1)

    return linear_sum_assignment(of(a) @ of(b).T, maximize=True)[1]


def permuted(params: Any, order: np.ndarray) -> Any:
    """The same function, with its hidden units in this order."""
    empty, first, none, last = params
    first = {"weight": first["weight"][:, order], "bias": first["bias"][order]}
    return empty, first, none, last | {"weight": last["weight"][order]}


def barriers(result: dict[str, Any]) -> dict[str, list[float]]:
    """How far each line rises above the straight connection of its ends."""
    found = {}
    for name in ("straight", "matched"):
        lines = np.array([row[name] for row in result["lines"]])
        chord = lines[:, :1] + (lines[:, -1:] - lines[:, :1]) * np.linspace(0, 1, lines.shape[1])
        found[name] = (lines - chord).max(1).tolist()
    return found


def ratio(result: dict[str, Any]) -> float:
    """Barrier after matching over barrier before: median of the pairs."""
    found = barriers(result)
    return float(np.median(np.divide(found["matched"], found["straight"])))


def check(result: dict[str, Any]) -> None:
    """The number that decides: the share of the barrier that matching leaves, median of the pairs, at most a half."""
    examples = result["config"]["examples"]
    for row in result["fits"]:
        for labels in ("true", "random"):
            if row["width"] >= examples:
                worst = max(row[labels])
                claim.require(
                    worst <= ZERO, f"width {row['width']}, {labels} labels: training loss {worst:.3g} is not zero"
                )
                accuracy = min(row[f"{labels}_accuracy"])
                claim.require(accuracy == 1, f"width {row['width']}, {labels} labels: accuracy {accuracy} is not 1")
    claim.require(min(result["fits"][0]["random"]) > 10 * ZERO, "the narrowest network fits random labels too")
    found = barriers(result)
    claim.require(min(found["straight"]) > ZERO, f"no barrier between two minima: {min(found['straight']):.3g}")
    claim.require(ratio(result) <= 0.5, f"matching leaves {ratio(result):.2f} of the barrier, over a half")


def summary(result: dict[str, Any]) -> tuple[str, str]:
    found = barriers(result)
    last = result["fits"][-1]
    return (
        "zero training loss, random labels included; matching leaves at most half of the barrier",
        f"loss {max(last['true']):.1g} (true), {max(last['random']):.1g} (random labels); barrier "
        f"{np.median(found['straight']):.2f} nats, {ratio(result):.2f} of it left (median of {len(result['lines'])})",
    )


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(8, 3.2), layout="constrained")
    widths = [row["width"] for row in result["fits"]]
    for labels, marker in (("true", "o"), ("random", "^")):
        values = np.array([row[labels] for row in result["fits"]])
        mean = values.mean(1)
        spread = mean - values.min(1), values.max(1) - mean  # all seeds
        left.errorbar(widths, mean, spread, fmt=marker, ms=4, capsize=2, label=f"{labels} labels")
    left.axvline(result["config"]["examples"], color="k", lw=1, ls=":")
    left.set(
        xscale="log", yscale="log", xlabel="width (dotted: examples)", ylabel="training loss / nats", ylim=(None, 60)
    )
    left.legend(fontsize=10, loc="upper right", borderpad=0.3)
    for i, (name, label) in enumerate((("straight", "as trained"), ("matched", "units matched"))):
        lines = np.array([row[name] for row in result["lines"]])
        shares = np.linspace(0, 1, lines.shape[1])
        middle.plot(shares, lines.T, color=f"C{i}", lw=1, label=[label, *[None] * (len(lines) - 1)])
    middle.set(xlabel="share of network 2", ylabel="training loss / nats")
    middle.set_ylim(top=1.35 * max(max(row["straight"]) for row in result["lines"]))
    middle.legend(fontsize=10, loc="upper right", borderpad=0.3)
    part = result["slice"]
    filled = right.contourf(part["shares"], part["shares"], np.log10(part["loss"]), levels=12, cmap="viridis")
    for place, name in (((0, 0), "1"), ((1, 0), "2"), ((0, 1), "2, matched")):
        right.plot(*place, "wo", ms=5)
        right.annotate(name, place, (4, 4), textcoords="offset points", color="w")
    right.set(xlabel="towards network 2", ylabel="towards 2, matched")
    figure.colorbar(filled, ax=right, label="log₁₀ of training loss")
    return figure


if __name__ == "__main__":
    claim.main()
