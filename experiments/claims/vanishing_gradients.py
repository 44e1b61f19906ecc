"""Gradients vanish: ‖δ‖ layer by layer, for four kinds of network and five initialisations.

Claim: δ⁽ˡ⁻¹⁾ = θ′(s)∘(W δ⁽ˡ⁾), so a layer passes on at most max θ′ times the spectral norm of W: a quarter of it for
the sigmoid, all of it for tanh and ReLU, and 1 + all of it for a residual block x + W relu(x). No example at any layer
of any network is above. A chain of sigmoids at s = 0 is at the bound: ∂y/∂x is exactly (w/4)^L.

How fast δ shrinks or grows is set by the initialisation: in wide networks ‖δ⁽ˡ⁻¹⁾‖² = χ ‖δ⁽ˡ⁾‖² on average, with χ =
width · var(w) · E θ′(√q z)² and q the variance of s (1 + χ for the residual block). It is drawn as a line, and networks
of width 64 follow it to 5 % a layer, which is checked. Where it is far from 1 on either side, networks no longer train,
which for the deepest is a matter of the budget too (15 epochs, the best of three rates, chosen on a held-out fifth of
the training data; the test part is read once).

Source: lecture B ("the scaling is below 1: gradients vanish"; Sig′(0) = ¼; ReLU). χ: Poole et al. 2016, Exponential
expressivity in deep neural networks, eq. 3-5; Schoenholz et al. 2017, Deep information propagation; He et al. 2015.

    python experiments/claims/vanishing_gradients.py [--quick]     3 minutes on two idle cores (--quick: 4 s)

Expect: of its bound a layer passes on at most 0.84 to 0.96, and the chain agrees to rounding. Over 32 layers δ shrinks
by 10³⁶ (sigmoid, too small), 10²⁰ (LeCun, Glorot), 10¹⁶ (He); with ReLU by 10⁵ under LeCun and by nothing under He;
with residual blocks it grows instead, 10⁵ under He. The deepest that reach 95 %: sigmoid 4 (under too large weights;
else 2 or none), ReLU 8 (He), tanh 16 (He), residual 16 (under too small weights and Glorot's; at 32 the median is
0.93). So ReLU is the remedy for δ (lecture B) only with the initialisation that goes with it, and within this budget
tanh trains deeper, and as deep as residual blocks.
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
    """Test accuracy of three draws, each after its last epoch at the learning rate that held-out examples choose."""
    x, y = jbp.data.load("digits", "train")
    x_part, y_part, x_held, y_held = jbp.data.split(x, y, 0.2, seed=config.seed)
    x_test, y_test = (jnp.asarray(part) for part in jbp.data.load("digits", "test"))
    net, starts, found, rates = network(kind, depth, 32), drawn(init, depth, 32, config.seed, 3), [], []
    for i in range(3):
        many = jbp.fit_many(
            net, jbp.losses.softmax_cross_entropy, momentum, (x_part, y_part), validation_data=(x_held, y_held),
            seeds=[config.seed + i], learning_rates=config.learning_rates, epochs=config.epochs, batch_size=64,
            params=jax.tree.map(lambda leaf: leaf[i], starts), metrics={"accuracy": jbp.accuracy},  # noqa: B023
        )  # fmt: skip
        chosen = int(np.nan_to_num(many.figures("validation_accuracy")).ravel().argmax())
        output = jbp.apply(net, many.params_of(chosen), x_test.astype(jnp.zeros(()).dtype))
        found.append(float(jax.vmap(jbp.accuracy.of(jbp.losses.softmax_cross_entropy))(output, y_test).mean()))
        rates.append(config.learning_rates[chosen])
    return {"kind": kind, "init": init, "depth": depth, "accuracy": found, "learning rates": rates}


def momentum(rate: Any) -> Any:
    return jbp.optim.sgd(rate, momentum=0.9)


def train(config: Config) -> list[dict[str, Any]]:
    """Deeper and deeper, until none of the initialisations trains."""
    rows: list[dict[str, Any]] = []
    todo = [(kind, depth) for kind, _ in config.largest_slope for depth in config.trained_depths]
    ended = set()
    for kind, depth, init in claim.progress(
        ((*one, init) for one in todo for init in config.trained_inits), "training"
    ):
        if kind not in ended:
            rows.append(trains(config, kind, init, depth))
            last = [row for row in rows if (row["kind"], row["depth"]) == (kind, depth)]
            if len(last) == len(config.trained_inits) and not any(map(reaches, last)):
                ended.add(kind)
    return rows


def reaches(row: dict[str, Any]) -> bool:
    """Whether the median of the draws is at 95 %."""
    return bool(np.median(row["accuracy"]) >= 0.95)


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
    """The number that decides: the largest ‖δ⁽ˡ⁻¹⁾‖ as a share of its bound, over all networks; at most 1.

    The chains are (w/4)^L to rounding, a layer's factor is the mean field's to 5 %, and residual networks train deeper
    than those of sigmoids.
    """
    share = max(row["share of the bound"] for row in result["networks"])
    claim.require(share <= 1, f"a layer passes on {share:.3g} times the most that θ′ and its weights allow")
    for row in result["chains"]:
        length, error = result["config"]["depth"], abs(row["measured"] / row["predicted"] - 1)
        claim.require(error <= 2 * length * 2**-52, f"a chain of sigmoids misses (w/4)^L by {error:.1e}: {row}")
    for row in result["networks"]:
        found, predicted = row["factor per layer"], row["predicted factor"]
        what = f"{row['kind']}, {row['init']}: a layer's factor is {found:.3f}, not {predicted:.3f}"
        claim.require(abs(found / predicted - 1) <= 0.05, what)
    deepest = reach(result)
    if deepest:
        most = max(depth for (kind, _), depth in deepest.items() if kind == "sigmoid")
        best = max(depth for (kind, _), depth in deepest.items() if kind == "residual")
        claim.require(most < best, f"sigmoid networks train up to depth {most}, residual ones to {best}")


def reach(result: dict[str, Any]) -> dict[tuple[str, str], int]:
    """The largest depth at which each kind and initialisation trains: the median of the draws is at 95 %."""
    found: dict[tuple[str, str], int] = {}
    for row in result["trained"]:
        here = found.setdefault((row["kind"], row["init"]), 0)
        if reaches(row):
            found[row["kind"], row["init"]] = max(here, row["depth"])
    return found


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    config, deepest = result["config"], reach(result)
    kinds = [kind for kind, _ in config["largest_slope"]]
    figure, axes = plt.subplots(3, 2, figsize=(8, 10.5), layout="constrained", squeeze=False)
    for axis, kind in zip(axes[:2].flat, kinds, strict=False):
        rows = [row for row in result["networks"] if row["kind"] == kind and row["init"] != "Glorot"]
        plot_kind(axis, rows)
        depths = [f"{init} {shown_depth(config, depth)}" for (k, init), depth in deepest.items() if k == kind]
        axis.set_title(f"{kind}: reaches 95 % to depth\n{', '.join(depths)}" if depths else kind, fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=10, loc="outside upper center", ncols=3)
    plot_chains(axes[2, 0], result["chains"], config["depth"])
    plot_trained(axes[2, 1], result["trained"], kinds)
    return figure


def plot_kind(axis: Any, rows: list[dict[str, Any]]) -> None:
    """‖δ‖ layer by layer of one kind of network: measured, mean field and bound."""
    for i, row in enumerate(rows):
        layers = np.arange(1, len(row["mean field"]) + 1)
        measured, error = np.array(row["delta"])[:-1], np.array(row["standard error in decades"])[:-1]
        bars = np.abs(measured * 10 ** (np.array([[-1], [1]]) * error) - measured)
        label = row["init"].replace("LeCun", "LeCun, Glorot")
        axis.plot(layers, row["mean field"], f"C{i}", lw=1, label="mean field" if i == 0 else None)
        axis.errorbar(layers[::2], measured[::2], bars[:, ::2], fmt=f"C{i}o", ms=4, label=label)
        axis.plot(layers, row["bound"], f"C{i}:", lw=1.2, label="bound, Π of each layer's" if i == 0 else None)
    found = np.array([row["delta"][:-1] for row in rows])
    axis.set(yscale="log", ylim=(found.min() / 100, found.max() * 1000))
    axis.set(xlabel="layer (1: next to the input)", ylabel="‖δ‖ (root mean square)")


def plot_chains(axis: Any, rows: list[dict[str, float]], length: int) -> None:
    """The chains of sigmoids at s = 0, and (w/4)^L."""
    weights = np.array([row["weight"] for row in rows])
    line = np.linspace(weights.min(), weights.max(), 200)
    axis.plot(line, (line / 4) ** length, "k", lw=1, label="(w/4)^L")
    axis.plot(weights, [row["measured"] for row in rows], "o", ms=5, label="measured")
    axis.set(yscale="log", xlabel=f"weight w of a chain of L = {length} sigmoids", ylabel="∂y/∂x at s = 0")
    axis.legend(fontsize=10)


def plot_trained(axis: Any, rows: list[dict[str, Any]], kinds: list[str]) -> None:
    """Test accuracy against depth, of the best initialisation of each kind."""
    for i, kind in enumerate(kinds):
        here = [row for row in rows if row["kind"] == kind]
        depths = sorted({row["depth"] for row in here})
        tops = [max((r["accuracy"] for r in here if r["depth"] == depth), key=np.median) for depth in depths]
        middle = np.array([100 * np.median(top) for top in tops])
        low, high = (np.array([100 * end(top) for top in tops]) for end in (min, max))
        if depths:
            at = np.array(depths) * 1.05 ** (i - 1.5)  # side by side
            axis.errorbar(at, middle, (middle - low, high - middle), fmt="os^D"[i], ms=5, capsize=2, label=kind)
    axis.axhline(95, color="k", lw=1, ls="--")
    axis.set(xscale="log", xlabel="hidden layers", ylabel="test accuracy / %, best initialisation", ylim=(0, 103))
    if rows:
        axis.set_xticks(ticks := sorted({row["depth"] for row in rows}), [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.legend(fontsize=10, loc="lower left")


def shown_depth(config: dict[str, Any], depth: int) -> str:
    """The depth that is reached; the deepest that was tried may not be the deepest that trains."""
    return f"≥ {depth}" if depth == max(config["trained_depths"], default=0) else str(depth)


def summary(result: dict[str, Any]) -> tuple[str, str]:
    share = max(row["share of the bound"] for row in result["networks"])
    deepest = reach(result)
    most = {kind: max(depth for (k, _), depth in deepest.items() if k == kind) for kind, _ in deepest}
    trained = ", ".join(f"{kind} {shown_depth(result['config'], depth)}" for kind, depth in most.items())
    off = max(abs(row["factor per layer"] / row["predicted factor"] - 1) for row in result["networks"])
    return (
        "‖δ⁽ˡ⁻¹⁾‖ at most max θ′ · ‖W‖ · ‖δ⁽ˡ⁾‖, and sigmoids at s = 0 exactly (w/4)^L",
        f"at most {share:.3f} of it; (w/4)^L to rounding; the mean field's factor to {100 * off:.1f} %; 95 % on digits "
        f"up to depth: {trained or 'not asked'}",
    )


if __name__ == "__main__":
    claim.main()
