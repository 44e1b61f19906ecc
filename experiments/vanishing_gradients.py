"""Gradients vanish: ‖δ‖ layer by layer, for four kinds of network and five initialisations.

Claim: δ⁽ˡ⁻¹⁾ = θ′(s)∘(W δ⁽ˡ⁾), so a layer passes on at most max θ′ times the spectral norm of W: a quarter of it for
the sigmoid, all of it for tanh and ReLU, and 1 + all of it for a residual block x + W relu(x). No example at any layer
of any network is above. A chain of sigmoids at s = 0 is at the bound: ∂y/∂x is exactly (w/4)^L.

How fast δ shrinks or grows is set by the initialisation: in wide networks ‖δ⁽ˡ⁻¹⁾‖² = χ ‖δ⁽ˡ⁾‖² on average, with χ =
width · var(w) · E θ′(√q z)² and q the variance of s (1 + χ for the residual block). It is drawn as a line, and no part
of the check: networks of width 64 follow it to a few per cent a layer. Where it is far from 1 on either side, networks
no longer train, which for the deepest is a matter of the budget too (15 epochs, the best of three rates).

Source: lecture B ("the scaling is below 1: gradients vanish"; Sig′(0) = ¼; ReLU). χ: Poole et al. 2016, Exponential
expressivity in deep neural networks, eq. 3-5; Schoenholz et al. 2017, Deep information propagation; He et al. 2015.

    python experiments/vanishing_gradients.py [--quick]     2 minutes (--quick: 4 s)

Expect: of its bound a layer passes on at most 0.84 to 0.96, and the chain agrees to rounding. Over 32 layers δ shrinks
by 10³⁶ (sigmoid, too small), 10²⁰ (LeCun, Glorot), 10¹⁶ (He); with ReLU by 10⁵ under LeCun and by nothing under He;
with residual blocks it grows instead, 10⁵ under He. Trained to 95 % up to depth: sigmoid 4 (under too large weights;
else 2 or none), ReLU 8 (He), tanh 16 (He), residual 32 (under too small weights, which He's are not). So ReLU is the
remedy for δ (lecture B) only with the initialisation that goes with it, and within this budget tanh trains deeper.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np

import jbp

THETA = {"sigmoid": jbp.sigmoid, "tanh": jbp.tanh, "ReLU": jbp.relu, "residual": jbp.relu}
SCALE = {"too small": 0.1, "LeCun": 1.0, "Glorot": 1.0, "He": 2.0, "too large": 10.0}  # width · var(w)
Z = np.linspace(-8, 8, 2001)
NORMAL = np.exp(-(Z**2) / 2) / np.exp(-(Z**2) / 2).sum()


@dataclass(frozen=True)
class Config:
    """`largest_slope` holds the kinds of network, each with max θ′; the chains are as long as the networks are deep."""

    largest_slope: tuple[tuple[str, float], ...] = (("sigmoid", 0.25), ("tanh", 1.0), ("ReLU", 1.0), ("residual", 1.0))
    inits: tuple[str, ...] = tuple(SCALE)
    depth: int = 32
    width: int = 64
    draws: int = 10
    examples: int = 32
    chain_weights: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 8.0)
    trained_depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    trained_inits: tuple[str, ...] = ("too small", "Glorot", "He", "too large")
    learning_rates: tuple[float, ...] = (0.01, 0.05, 0.25)
    epochs: int = 15
    seed: int = 0


FULL = Config()
QUICK = Config((("sigmoid", 0.25), ("residual", 1.0)), depth=8, draws=3, trained_depths=())
CONTROL = Config((("tanh", 0.25),), inits=("LeCun",), depth=8, draws=3, trained_depths=())  # tanh′ is up to 1, not ¼


def network(kind: str, depth: int, width: int) -> jbp.Layer:
    """`depth` hidden layers between digits and ten classes."""
    layer = jbp.serial(THETA[kind], jbp.Dense(width, weight_init=jbp.initializers.lecun_normal))
    block = jbp.residual(layer) if kind == "residual" else layer
    first, last = (jbp.Dense(n, weight_init=jbp.initializers.lecun_normal) for n in (width, 10))
    return jbp.serial(jbp.Flatten(), first, jbp.repeat(block, depth - 1), THETA[kind], last)


@partial(jax.jit, static_argnums=(0, 1, 3))
def lecun(depth: int, width: int, seed: int, draws: int) -> Any:
    """Parameters drawn several times, the same for every kind of network; the biases are 0."""
    keys = jax.random.split(jax.random.key(seed), draws)
    return jax.vmap(lambda key: network("tanh", depth, width).init(key, (8, 8))[0])(keys)


def drawn(init: str, depth: int, width: int, seed: int, draws: int) -> Any:
    """The same under another initialisation, which is LeCun's times a number."""
    params = jax.tree.map(lambda leaf: SCALE[init] ** 0.5 * np.asarray(leaf), lecun(depth, width, seed, draws))
    last = jax.tree.map(lambda leaf: (last_scale(init, width) / SCALE[init]) ** 0.5 * leaf, params[4])
    return (*params[:4], last)


def last_scale(init: str, width: int) -> float:
    """width · var(w) of the last layer, the only one that is not square."""
    return 2 * width / (width + 10) if init == "Glorot" else SCALE[init]


@partial(jax.jit, static_argnums=0)
def norms(net: jbp.Layer, params: Any, x: Any, y: Any) -> jax.Array:
    """‖δ‖ of every draw, layer (the output last) and example, read from the pairs."""

    def of_one(params: Any) -> jax.Array:
        _, pairs = jbp.value_and_pairs(net, jbp.losses.softmax_cross_entropy, params, x, y)
        layers = (jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), pairs[i]["bias"].delta) for i in (1, 4))
        first, last = (jnp.linalg.norm(delta, axis=(2, 3)) for delta in layers)
        return jnp.concatenate([first, jnp.linalg.norm(pairs[2][1]["bias"].pair.delta, axis=(2, 3)), last])

    return jax.vmap(of_one)(params)


def mean_field(kind: str, init: str, depth: int, width: int, x: np.ndarray) -> list[float]:
    """‖δ‖ of every hidden layer of an infinitely wide network, for ‖δ‖ = 1 at its output."""
    q = SCALE[init] * np.square(x).mean(-1)  # of every example
    passed = []  # width · var(w) · E θ′(√q z)² of every layer
    for _ in range(depth):
        s = np.sqrt(q)[:, None] * Z
        e = np.exp(-np.abs(s))
        theta, slope = {
            "sigmoid": (np.where(s > 0, 1, e) / (1 + e), e / (1 + e) ** 2),
            "tanh": (np.tanh(s), (2 * e / (1 + e**2)) ** 2),
        }.get(kind, (np.maximum(s, 0), np.heaviside(s, 0.5)))
        passed.append(SCALE[init] * slope**2 @ NORMAL)
        q = SCALE[init] * theta**2 @ NORMAL + (q if kind == "residual" else 0)
    squares = [last_scale(init, width) / SCALE[init] * passed[-1]]
    for chi in reversed(passed[:-1]):
        squares.append(squares[-1] * (chi + (kind == "residual")))
    return np.sqrt(np.mean(squares, 1))[::-1].tolist()


def of_network(config: Config, kind: str, slope: float, init: str, x: Any, y: Any) -> dict[str, Any]:
    """‖δ‖ layer by layer, against the bound of every layer and the line of the mean field."""
    params = drawn(init, config.depth, config.width, config.seed, config.draws)
    delta = np.asarray(norms(network(kind, config.depth, config.width), params, x, y))
    hidden, last = np.asarray(params[2][1]["weight"]), np.asarray(params[4]["weight"])
    spectral = np.concatenate([np.linalg.norm(hidden, 2, (2, 3)), np.linalg.norm(last, 2, (1, 2))[:, None]], 1)
    bound = slope * spectral
    bound[:, :-1] += kind == "residual"
    root = np.sqrt(np.square(delta).mean(-1))  # over the examples
    decades = np.log10(root)
    line = mean_field(kind, init, config.depth, config.width, np.asarray(x).reshape(len(x), -1))
    theory = root[:, -1].mean() * np.array(line)
    seen = delta[:, 1:] > 1e-100  # not where softmax has reached 0 and 1, up to underflow
    return {
        "share of the bound": float((delta[:, :-1][seen] / (bound[:, :, None] * delta[:, 1:])[seen]).max()),
        "delta": (10 ** decades.mean(0)).tolist(),
        "standard error in decades": (decades.std(0, ddof=1) / np.sqrt(config.draws)).tolist(),
        "mean field": theory.tolist(),
        "bound": (root[:, -1:] * np.cumprod(bound[:, ::-1], 1)[:, ::-1]).mean(0).tolist(),
        "factor per layer": float(np.exp(np.log(root[:, 0] / root[:, -2]).mean() / (config.depth - 1))),
        "predicted factor": float((theory[0] / theory[-1]) ** (1 / (config.depth - 1))),
    }


def chains(weights: tuple[float, ...], length: int) -> list[dict[str, float]]:
    """∂y/∂x of sigmoid(w·… − w/2) `length` times over, from x = ½, where every s is 0; against (w/4)^length."""
    net = jbp.repeat(jbp.serial(jbp.Dense(1), jbp.sigmoid), length)

    @jax.jit
    @jax.vmap
    def slope(weight: jax.Array) -> jax.Array:
        params = {"weight": jnp.full((length, 1, 1), weight), "bias": jnp.full((length, 1), -weight / 2)}
        saved = jbp.forward(net, (params, ()), jnp.full((1, 1), 0.5))[1]
        return jbp.backward(net, (params, ()), saved, jnp.ones((1, 1)))[0][0, 0]

    rows = zip(weights, np.asarray(slope(jnp.asarray(weights))).tolist(), strict=True)
    return [{"weight": weight, "measured": found, "predicted": (weight / 4) ** length} for weight, found in rows]


def trains(config: Config, kind: str, init: str, depth: int) -> dict[str, Any]:
    """Test accuracy of three draws, each the best of its epochs and learning rates."""
    data, held = jbp.data.load("digits", "train"), jbp.data.load("digits", "test")
    starts, best = drawn(init, depth, 32, config.seed, 3), []
    for i in range(3):
        many = jbp.fit_many(
            network(kind, depth, 32), jbp.losses.softmax_cross_entropy, momentum, data, validation_data=held,
            seeds=[config.seed + i], learning_rates=config.learning_rates, epochs=config.epochs, batch_size=64,
            params=jax.tree.map(lambda leaf: leaf[i], starts), metrics={"accuracy": jbp.accuracy},  # noqa: B023
        )  # fmt: skip
        curves = many.curves("validation_accuracy")
        best.append(float(np.nanmax(curves, initial=0.1)))
    return {"kind": kind, "init": init, "depth": depth, "accuracy": best}


def momentum(rate: Any) -> Any:
    return jbp.optim.sgd(rate, momentum=0.9)


def train(config: Config) -> list[dict[str, Any]]:
    """Deeper and deeper, until none of the initialisations trains."""
    rows = []
    for kind, _ in claim.progress(config.largest_slope if config.trained_depths else (), "training"):
        for depth in config.trained_depths:
            rows += [trains(config, kind, init, depth) for init in config.trained_inits]
            if all(np.median(row["accuracy"]) < 0.95 for row in rows[-len(config.trained_inits) :]):
                break
    return rows


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        x, y = (np.asarray(part)[: config.examples] for part in jbp.data.load("digits", "train"))
        networks = [
            {"kind": kind, "init": init} | of_network(config, kind, slope, init, jnp.asarray(x, jnp.float64), y)
            for kind, slope in config.largest_slope
            for init in config.inits
        ]
        exact = chains(config.chain_weights, config.depth)
    with jax.enable_x64(False):
        return {"networks": networks, "chains": exact, "trained": train(config)}


def check(result: dict[str, Any]) -> None:
    """The number that decides: the largest ‖δ⁽ˡ⁻¹⁾‖ as a share of its bound, over all networks; at most 1."""
    share = max(row["share of the bound"] for row in result["networks"])
    claim.require(share <= 1, f"a layer passes on {share:.3g} times the most that θ′ and its weights allow")
    for row in result["chains"]:
        length, error = result["config"]["depth"], abs(row["measured"] / row["predicted"] - 1)
        claim.require(error <= 2 * length * 2**-52, f"a chain of sigmoids misses (w/4)^L by {error:.1e}: {row}")
    deepest = reach(result)
    if deepest:
        most = max(depth for (kind, _), depth in deepest.items() if kind == "sigmoid")
        best = max(depth for (kind, _), depth in deepest.items() if kind == "residual")
        claim.require(most < best, f"sigmoid networks train up to depth {most}, residual ones to {best}")


def reach(result: dict[str, Any]) -> dict[tuple[str, str], int]:
    """The depth up to which each kind and initialisation trains: the median of the draws is at 95 %."""
    found: dict[tuple[str, str], int] = {}
    for row in result["trained"]:
        here = found.setdefault((row["kind"], row["init"]), 0)
        if np.median(row["accuracy"]) >= 0.95:
            found[row["kind"], row["init"]] = max(here, row["depth"])
    return found


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    config, deepest = result["config"], reach(result)
    kinds = [kind for kind, _ in config["largest_slope"]]
    figure, axes = plt.subplots(2, 2, figsize=(8, 7.5), sharex=True, layout="constrained", squeeze=False)
    for axis, kind in zip(axes.flat, kinds, strict=False):
        for i, row in enumerate(row for row in result["networks"] if row["kind"] == kind and row["init"] != "Glorot"):
            layers = np.arange(1, len(row["mean field"]) + 1)
            measured, error = np.array(row["delta"])[:-1], np.array(row["standard error in decades"])[:-1]
            bars = np.abs(measured * 10 ** (np.array([[-1], [1]]) * error) - measured)
            label = row["init"].replace("LeCun", "LeCun, Glorot")
            axis.plot(layers, row["mean field"], f"C{i}", lw=1)
            axis.errorbar(layers[::2], measured[::2], bars[:, ::2], fmt=f"C{i}o", ms=4, label=label)
            if kind == "sigmoid":
                bound = "bound, Π ¼‖W‖" if i == 0 else None
                axis.plot(layers, row["bound"], f"C{i}:", lw=1.2, label=bound)
        depths = [f"{init} {depth}" for (k, init), depth in deepest.items() if k == kind]
        axis.set_title(f"{kind}: reaches 95 % to depth\n{', '.join(depths)}" if depths else kind, fontsize=10)
        axis.set_yscale("log")
        axis.set_ylabel("‖δ‖ (root mean square)")
    for axis in axes[1]:
        axis.set_xlabel("layer (1: next to the input)")
    axes[0, 0].legend(fontsize=10)
    return figure


def summary(result: dict[str, Any]) -> tuple[str, str]:
    share = max(row["share of the bound"] for row in result["networks"])
    deepest = reach(result)
    trained = ", ".join(
        f"{kind} {max(depth for (k, _), depth in deepest.items() if k == kind)}" for kind in dict(deepest.keys())
    )
    return (
        "‖δ⁽ˡ⁻¹⁾‖ at most max θ′ · ‖W‖ · ‖δ⁽ˡ⁾‖, and sigmoids at s = 0 exactly (w/4)^L",
        f"at most {share:.3f} of it; (w/4)^L to rounding; 95 % on digits up to depth: {trained or 'not asked'}",
    )


if __name__ == "__main__":
    claim.main()
