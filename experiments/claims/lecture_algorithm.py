"""The lectures' algorithm, line by line: every x, every δ and every update are the library's.

Claim: the eight lines of lecture B, written out in numpy as they stand there, train a network on digits, and at every
step their numbers are jbp's: with one tanh output, y = ±1, e = (x − y)², δ = 2(x − y)(1 − x²) (a 3 against an 8), and
with four classes and e = −log h_y(x) (0 to 3), where jbp goes back through cross-entropy and softmax one after the
other and the lines below have their product h − t. The bias is the weight of a constant x₀ = 1 there and a parameter of
its own here: equal gradients. The lecture sums over the mini-batch; jbp's mean is that sum over K, to the last bit if K
is a power of two.

    1 all w at random                     5 backward: all δ, δᵢ = θ′(sᵢ) Σⱼ wᵢⱼ δⱼ
    2 for t = 0, 1, 2, …                  6 w ← w − η Σ x δ
    3 pick n, K times, with replacement   7 until it is time to stop: the mean error over all examples, looked at every
    4 forward: all x, xⱼ = θ(Σ wᵢⱼ xᵢ)      50 steps, is below 0.02, or 5,000 steps are over
                                          8 return w

Source: lecture B (the algorithm; x₀ = 1 also in lecture E).

    python experiments/claims/lecture_algorithm.py [--quick]     8 s

Expect: by seed at most 4 to 8 eps between the lecture's numbers and jbp's, in units of the largest entry of the array;
a sum of 65 products may be 64 off, which is allowed. 250 to 1,600 steps; test accuracy 0.986 to 1, of 72 and of 145
examples.
Control: half the squared error in jbp, and the squared error in the lines below.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import claim
import drawing
import jax
import jax.numpy as jnp
import numpy as np

import jbp

DIGITS = {"±1": (3, 8), "four classes": (0, 1, 2, 3)}
EPS = float(np.finfo(np.float64).eps)
ALLOWED = 64  # eps, of a sum of 65 products


@dataclass(frozen=True)
class Config:
    """`runs` holds the task, the K of a mini-batch and η; `drawn` the sizes of a small network, and the η of its one
    step; `loss` is jbp's for y = ±1."""

    runs: tuple[tuple[str, int, float], ...] = (
        ("±1", 1, 0.02), ("±1", 8, 0.005), ("four classes", 1, 0.05), ("four classes", 12, 0.01),
    )  # fmt: skip
    hidden: tuple[int, ...] = (16, 8)
    drawn: tuple[tuple[int, ...], float] = ((2, 2, 1), 0.5)
    loss: str = "squared_error"
    stop_below: float = 0.02
    look_every: int = 50
    longest: int = 5000
    seed: int = 0


FULL = Config()
QUICK = Config(runs=(("±1", 8, 0.005), ("four classes", 12, 0.01)), stop_below=0.1, longest=500)
CONTROL = Config(runs=(("±1", 8, 0.005),), loss="l2_loss", longest=50)


def forward(w: list[np.ndarray], x: np.ndarray, last: Any) -> list[np.ndarray]:
    """Line 4: every x⁽ˡ⁾, each but the last with the constant x₀ = 1 in front."""
    xs = [np.append(1.0, x)]
    for weights in w[:-1]:
        s = weights.T @ xs[-1]
        xs.append(np.append(1.0, np.tanh(s)))
    return [*xs, last(w[-1].T @ xs[-1])]


def backward(w: list[np.ndarray], xs: list[np.ndarray], delta: np.ndarray) -> list[np.ndarray]:
    """Line 5: every δ⁽ˡ⁾, from that of the last layer; nothing goes back into x₀, which is constant."""
    deltas = [delta]
    for weights, x in zip(w[:0:-1], xs[-2:0:-1], strict=True):
        deltas.insert(0, (1 - x[1:] ** 2) * (weights[1:] @ deltas[0]))
    return deltas


def softmax(s: np.ndarray) -> np.ndarray:
    return np.exp(s - s.max()) / np.exp(s - s.max()).sum()


def one_tanh(w: list[np.ndarray], x: np.ndarray, y: Any) -> Any:
    """All x, all δ and the error of an example with y = ±1."""
    xs = forward(w, x, np.tanh)
    return xs, backward(w, xs, 2 * (xs[-1] - y) * (1 - xs[-1] ** 2)), float(((xs[-1] - y) ** 2).sum())


def classes(w: list[np.ndarray], x: np.ndarray, y: Any) -> Any:
    """All x, all δ and the error of an example of class y."""
    xs = forward(w, x, softmax)
    return xs, backward(w, xs, xs[-1] - np.eye(len(xs[-1]))[y]), float(-np.log(xs[-1][y]))


def data(task: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = jbp.data.load("digits", part)
    kept = np.isin(y, DIGITS[task])
    y = np.searchsorted(DIGITS[task], y[kept])
    return x[kept].reshape(-1, 64).astype(np.float64), 2 * y - 1 if task == "±1" else y


def network(task: str, hidden: tuple[int, ...]) -> jbp.Layer:
    layers = [layer for width in hidden for layer in (jbp.Dense(width), jbp.tanh)]
    return jbp.serial(*layers, *((jbp.Dense(1), jbp.tanh) if task == "±1" else (jbp.Dense(4), jbp.softmax)))


@partial(jax.jit, static_argnums=(0, 1))
def library(net: jbp.Layer, loss: Any, params: Any, x: jax.Array, y: jax.Array) -> Any:
    """jbp's x and δ of every dense layer, its gradient of the sum, and of the mean."""
    _, pairs = jbp.value_and_pairs(net, loss, params, x, y)
    outer = [pair["weight"] for pair in pairs[::2]]
    gradient = jbp.value_and_grad(net, loss)
    summed = gradient(params, x, y, None, jnp.ones(x.shape[0], x.dtype))[1]
    return [pair.h for pair in outer], [pair.delta for pair in outer], summed, gradient(params, x, y)[1]


def as_parameters(w: list[np.ndarray]) -> Any:
    """The lecture's weights as jbp holds them: those of x₀ are biases, and () stands for each activation."""
    layers = [{"weight": jnp.asarray(weights[1:]), "bias": jnp.asarray(weights[0])} for weights in w]
    return tuple(part for layer in layers for part in (layer, ()))


class Errors:
    """The largest differences of named arrays, in eps × the largest entry that array had in the whole run."""

    def __init__(self) -> None:
        self.difference: dict[tuple[str, int], float] = {}
        self.size: dict[tuple[str, int], float] = {}

    def see(self, what: str, ours: Any, theirs: Any) -> None:
        for layer, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a, b, at = np.asarray(a), np.asarray(b).reshape(np.shape(a)), (what, layer)
            self.difference[at] = max(self.difference.get(at, 0.0), float(abs(a - b).max()))
            self.size[at] = max(self.size.get(at, 0.0), float(abs(a).max()))

    def worst(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for (what, layer), difference in self.difference.items():
            found[what] = max(found.get(what, 0.0), difference / (EPS * self.size[what, layer]))
        return found


def train(config: Config, task: str, batch: int, eta: float) -> dict[str, Any]:
    """The algorithm; beside every step, jbp's numbers at the same weights."""
    (x, y), (x_test, y_test), draw = data(task, "train"), data(task, "test"), np.random.default_rng(config.seed)
    example, outputs = (one_tanh, 1) if task == "±1" else (classes, 4)
    net, sgd, t = network(task, config.hidden), jbp.optim.sgd(eta), 0
    loss = getattr(jbp.losses, config.loss) if task == "±1" else jbp.losses.cross_entropy
    sizes, errors, curve = [64, *config.hidden, outputs], Errors(), []
    w = [draw.uniform(-1, 1, (i + 1, j)) / i**0.5 for i, j in pairwise(sizes)]  # line 1
    for t in claim.progress(range(config.longest + 1), f"{task}, K = {batch}"):  # line 2
        if t % config.look_every == 0:
            curve.append(float(np.mean([example(w, *one)[2] for one in zip(x, y, strict=True)])))
            if curve[-1] < config.stop_below:  # line 7
                break
        n = draw.integers(0, len(x), batch)  # line 3
        found = [example(w, x[i], y[i]) for i in n]  # lines 4 and 5
        xs, deltas = ([np.stack(layer) for layer in zip(*(f[k] for f in found), strict=True)] for k in (0, 1))
        gradients: Any = [sum(np.outer(f[0][k], f[1][k]) for f in found) for k in range(len(w))]

        params = as_parameters(w)
        target = y[n][:, None].astype(np.float64) if task == "±1" else y[n]
        h, delta, summed, mean = library(net, loss, params, jnp.asarray(x[n]), jnp.asarray(target))
        updates: Any = sgd.update(summed, sgd.init(params))[0]
        errors.see("x", [layer[:, 1:] for layer in xs[:-1]], h)
        errors.see("δ", deltas, delta)
        errors.see("update of weights", [-eta * g[1:] for g in gradients], [u["weight"] for u in updates[::2]])
        errors.see("update of biases", [-eta * g[0] for g in gradients], [u["bias"] for u in updates[::2]])
        mean = [batch * np.asarray(g) for g in jax.tree.leaves(mean)]
        errors.see("K times the mean", jax.tree.leaves(summed), mean)

        w = [weights - eta * gradient for weights, gradient in zip(w, gradients, strict=True)]  # line 6
    outs = np.stack([forward(w, one, np.tanh if task == "±1" else softmax)[-1] for one in x_test])  # line 8
    right = np.sign(outs[:, 0]) == y_test if task == "±1" else outs.argmax(1) == y_test
    found = {"test accuracy": float(right.mean()), "tested": len(right), "errors in eps": errors.worst()}
    return {
        "task": task, "K": batch, "learning rate": eta, "steps": t, "mean error": curve,
    } | found  # fmt: skip


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        runs = [train(config, *one) for one in config.runs]
        return {"runs": runs, "drawn": one_step(config)}


def one_step(config: Config) -> dict[str, Any]:
    """Lines 4 to 6 for one example and a network of few units: every number of it, beside jbp's."""
    (sizes, eta), draw = config.drawn, np.random.default_rng(config.seed)
    w = [draw.uniform(-1, 1, (i + 1, j)) for i, j in pairwise(sizes)]
    x, y = draw.uniform(-1, 1, sizes[0]), np.ones(sizes[-1])
    xs, deltas, error = one_tanh(w, x, y)
    updates = [-eta * np.outer(*both) for both in zip(xs, deltas, strict=False)]
    layers = [layer for width in sizes[1:] for layer in (jbp.Dense(width), jbp.tanh)]
    loss = getattr(jbp.losses, config.loss)
    h, delta, gradient, _ = library(jbp.serial(*layers), loss, as_parameters(w), jnp.asarray([x]), jnp.asarray([y]))
    errors = Errors()
    errors.see("x", [one[1:] for one in xs[:-1]], h)
    errors.see("δ", deltas, delta)
    errors.see("update of weights", [u[1:] for u in updates], [-eta * g["weight"] for g in gradient[::2]])
    errors.see("update of biases", [u[0] for u in updates], [-eta * g["bias"] for g in gradient[::2]])
    after = one_tanh([a + b for a, b in zip(w, updates, strict=True)], x, y)[2]
    numbers = {"x": xs, "δ": deltas, "w": w, "update": updates}
    return {name: [array.tolist() for array in arrays] for name, arrays in numbers.items()} | {
        "error": error, "error after the step": after, "errors in eps": errors.worst(),
    }  # fmt: skip


def worst(result: dict[str, Any]) -> float:
    return max(max(one["errors in eps"].values()) for one in [*result["runs"], result["drawn"]])


def check(result: dict[str, Any]) -> None:
    """The largest difference between the lecture's numbers and jbp's, in eps × the largest entry, decides."""
    claim.require(
        worst(result) <= ALLOWED, f"a number of jbp's is {worst(result):.3g} eps from the lecture's, allowed {ALLOWED}"
    )
    claim.require(result["drawn"]["error after the step"] < result["drawn"]["error"], "the drawn step goes uphill")
    for one in result["runs"]:
        what = f"{one['task']}, K = {one['K']}"
        stopped = one["mean error"][-1] < result["config"]["stop_below"]
        claim.require(stopped, f"{what}: after {one['steps']} steps the error is {one['mean error'][-1]:.3g}")
        apart = one["errors in eps"]["K times the mean"]
        claim.require(apart == 0 or one["K"] & (one["K"] - 1), f"{what}: sum and K × mean are {apart:.3g} eps apart")


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 8.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1))
    draw_step(figure.add_subplot(grid[0, :]), result["drawn"])
    left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    every, below = result["config"]["look_every"], result["config"]["stop_below"]
    quantities = list(result["runs"][0]["errors in eps"])
    for i, one in enumerate(result["runs"]):
        steps, label = every * np.arange(len(one["mean error"])), f"{one['task']}, K = {one['K']}"
        left.plot(steps, one["mean error"], "o", ms=3, color=f"C{i}", label=label)
        right.plot([one["errors in eps"][q] for q in quantities], np.arange(len(quantities)), "o", color=f"C{i}")
    left.axhline(below, color="k", lw=1, ls="--")
    left.set(yscale="log", xlabel="steps t", ylabel="mean error of all examples")
    left.legend(fontsize=10, frameon=False)
    right.axvline(ALLOWED, color="k", lw=1, ls="--")
    right.set(xlabel="jbp's distance, in eps", xlim=(-2, None), yticks=np.arange(len(quantities)))
    right.set_yticklabels(quantities)
    right.invert_yaxis()
    return figure


def draw_step(axis: Any, one: dict[str, Any]) -> None:
    """The small network: x in the circles, δ below them, and on each line w and what the step adds to it."""
    deltas = [[""] * len(one["x"][0])] + [[f"δ {drawing.number(d, 3)}" for d in layer] for layer in one["δ"]]
    deltas = [[""] * (len(x) - len(delta)) + delta for x, delta in zip(one["x"], deltas, strict=True)]
    units = [
        [(drawing.number(value), delta) for value, delta in zip(*both, strict=True)]
        for both in zip(one["x"], deltas, strict=True)
    ]

    def label(layer: int, i: int, j: int) -> str:
        w, update = one["w"][layer][i][j], one["update"][layer][i][j]
        return f"{drawing.number(w)} {'+' if update >= 0 else '−'} {drawing.number(abs(update), 3)}"

    places = drawing.layered(axis, units, one["w"], label)
    for layer in places[:-1]:
        axis.annotate("x₀", layer[0], xytext=(0, 25), textcoords="offset points", ha="center", fontsize=9, color="0.4")
    axis.annotate("y = 1", places[-1][0], xytext=(0, 25), textcoords="offset points", ha="center", fontsize=9)
    axis.set_title(
        "one step: x in the circles, δ below them; on each line w − η x δ\n"
        f"the error (x − y)² goes from {one['error']:.3f} to {one['error after the step']:.3f}", fontsize=11,
    )  # fmt: skip


def summary(result: dict[str, Any]) -> tuple[str, str]:
    accuracies = ", ".join(f"{one['test accuracy']:.3f}" for one in result["runs"])
    steps = sum(one["steps"] for one in result["runs"])
    return (
        f"every x, δ and update of the algorithm is jbp's, to {ALLOWED} eps",
        f"at most {worst(result):.1f} eps apart in {steps} steps; test accuracy {accuracies}",
    )


if __name__ == "__main__":
    claim.main()
