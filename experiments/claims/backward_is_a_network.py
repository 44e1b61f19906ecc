"""The backward pass is a network: transposed weights and fixed gains, fed with δ.

Claim: δ⁽ˡ⁻¹⁾ = θ′(s⁽ˡ⁻¹⁾)∘(W⁽ˡ⁾ δ⁽ˡ⁾) is the forward pass of another network, which is linear: its weights are the
transposed ones, and in the place of each activation stands a gain, θ′(s) from the forward pass. Built from jbp's own
layers (and a layer `Gain` of the user's, for jbp has none that multiplies and nothing more; it passes
`jbp.check.layer`), with the δ at the output as its input, its layers put out the δ of backpropagation, each to
rounding. And the way back through this network is the way forward again: given a tangent v as its δ, it returns J v.

Source: lecture B ("forward and backward are alike: a network run the other way"), lecture C (backward pass);
Rumelhart, Hinton, Williams 1986, Learning representations by back-propagating errors, eq. 4-7.

    python experiments/claims/backward_is_a_network.py [--quick]       15 seconds (--quick: 4 s)

Expect: the δ of all layers equal to the last bit on a CPU (the products are the same, in the same order), J v to 2 eps
of the largest entry. With the gains of another example (the control) nothing is left of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import claim
import drawing
import jax
import jax.numpy as jnp
import numpy as np

import jbp

EPS = 2.0**-52
SLOPES = {
    jbp.tanh: lambda h: (1 - h) * (1 + h),
    jbp.sigmoid: lambda h: h * (1 - h),
    jbp.relu: lambda h: (h > 0).astype(h.dtype),
}


@dataclass(frozen=True)
class Gain(jbp.Layer):
    """y = g∘x, δ_x = g∘δ, ∂e/∂g = x∘δ."""

    uses_key = False
    piecewise_linear = True

    def init(self, key: Any, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
        return {"gain": jnp.ones(shape)}, shape

    def forward(self, params: Any, x: jax.Array, key: Any) -> tuple[jax.Array, jax.Array]:
        return params["gain"] * x, x

    def backward(self, params: Any, saved: jax.Array, delta: jax.Array) -> tuple[jax.Array, Any]:
        pair = jbp.Scale.of(saved, delta, params["gain"].shape)
        return params["gain"] * delta, {"gain": pair}


@dataclass(frozen=True)
class Config:
    """A network on digits, and the sizes of a small one to draw; `shift` gives each example the gains of the one
    that many rows on."""

    widths: tuple[int, ...] = (40, 23, 31, 17, 29, 13)
    examples: int = 64
    drawn: tuple[int, ...] = (2, 3, 2, 2)
    shift: int = 0
    seed: int = 0


FULL = Config()
QUICK = Config(widths=(23, 17, 13), examples=8)
CONTROL = Config(widths=(23, 17, 13), examples=8, shift=1)


def both_ways(key: Any, widths: tuple[int, ...], outputs: int, x: jax.Array, y: jax.Array, shift: int) -> Any:
    """Backpropagation through a network of these widths, and the way forward through the network run the other way."""
    thetas = [list(SLOPES)[i % 3] for i in range(len(widths))]
    hidden = [layer for width, theta in zip(widths, thetas, strict=True) for layer in (jbp.Dense(width), theta)]
    net = jbp.serial(*hidden, jbp.Dense(outputs))
    keys = jax.random.split(key)
    params = net.init(keys[0], x.shape[1:])[0]

    # Backpropagation: the δ of every layer below the last, and at the input.
    output, saved = jbp.forward(net, params, x)
    at_output = jax.vmap(jbp.losses.softmax_cross_entropy.delta)(output, y)
    at_input, pairs = jbp.backward(net, params, saved, at_output)
    deltas = [pair["weight"].delta[:, 0] for pair in reversed(pairs[:-1:2])] + [at_input]

    # The network run the other way. Its gains are those of one example, so each example has a network of its own.
    weights = [params[2 * i]["weight"].T for i in reversed(range(len(thetas) + 1))]
    stored = [pairs[2 * i + 2]["weight"].h[:, 0] for i in reversed(range(len(thetas)))]  # θ(s)
    gains = [SLOPES[theta](h) for theta, h in zip(reversed(thetas), stored, strict=True)]
    gains = [jnp.roll(gain, -shift, 0) for gain in gains]
    layers: list[jbp.Layer] = [jbp.Dense(weights[0].shape[1], use_bias=False)]
    for weight in weights[1:]:
        layers += [Gain(), jbp.Dense(weight.shape[1], use_bias=False)]
    other = jbp.serial(*layers)
    tangent = jax.random.normal(keys[1], x.shape)

    def of_example(delta: jax.Array, gains: list[jax.Array], tangent: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        """The outputs of its layers, dense with gain; and what its own way back makes of the tangent."""
        params: list[Any] = [{"weight": weights[0]}]
        for gain, weight in zip(gains, weights[1:], strict=True):
            params += [{"gain": gain}, {"weight": weight}]
        out, saved = jbp.forward(other, tuple(params), jnp.expand_dims(delta, 0))
        back, pairs = jbp.backward(other, tuple(params), saved, jnp.expand_dims(tangent, 0))
        return [pair["weight"].h[0, 0] for pair in pairs[2::2]] + [out[0]], back[0]

    found, forward_again = jax.jit(jax.vmap(of_example))(at_output, gains, tangent)
    pushed = jax.jvp(lambda x: jbp.apply(net, params, x), (x,), (tangent,))[1]
    return {
        "weights": weights[::-1], "h": [x, *stored[::-1], output], "gains": gains[::-1], "at output": at_output,
        "delta": deltas, "found": found, "J v": pushed, "J v found": forward_again,
    }  # fmt: skip


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        pixels, y = jbp.data.load("digits", "train")
        x, y = jnp.asarray(pixels[: config.examples], jnp.float64).reshape(-1, 64), jnp.asarray(y[: config.examples])
        seen = both_ways(jax.random.key(config.seed), config.widths, 10, x, y, config.shift)
        return {
            "delta": [np.asarray(delta).ravel()[:200].tolist() for delta in seen["delta"]],
            "output": [np.asarray(delta).ravel()[:200].tolist() for delta in seen["found"]],
            "error in eps": [distance(a, b) for a, b in zip(seen["found"], seen["delta"], strict=True)],
            "tangent error in eps": distance(seen["J v found"], seen["J v"]),
            "gain passes check.layer": jbp.check.layer(Gain(), (5,), key=config.seed).passed,
            "drawn": small(config),
        }


def small(config: Config) -> dict[str, Any]:
    """Every number of a network of few units, for one example: what the picture shows."""
    first, *widths, outputs = config.drawn
    keys = jax.random.split(jax.random.key(config.seed + 1))
    x = jax.random.normal(keys[0], (1, first))
    seen = both_ways(keys[1], tuple(widths), outputs, x, jnp.zeros(1, int), config.shift)
    return {
        "weights": [weight.T.tolist() for weight in seen["weights"]],
        "h": [h[0].tolist() for h in seen["h"]],
        "gains": [gain[0].tolist() for gain in seen["gains"]],
        "delta": [delta[0].tolist() for delta in [seen["at output"], *seen["delta"]]][::-1],
        "output": [delta[0].tolist() for delta in [seen["at output"], *seen["found"]]][::-1],
        "error in eps": [distance(a, b) for a, b in zip(seen["found"], seen["delta"], strict=True)],
    }


def distance(a: jax.Array, b: jax.Array) -> float:
    """The largest difference in units of eps times the largest entry."""
    return float(jnp.abs(a - b).max() / (EPS * jnp.abs(b).max()))


def check(result: dict[str, Any]) -> None:
    """The number that decides: the largest difference between an output of this network and δ, at most 128 eps."""
    worst = max(*result["error in eps"], *result["drawn"]["error in eps"])
    claim.require(worst <= 128, f"an output of the backward network is {worst:.3g} eps away from δ")
    claim.require(result["gain passes check.layer"], "jbp.check.layer found the layer Gain wrong")
    again = result["tangent error in eps"]
    claim.require(again <= 128, f"the way back through the backward network is {again:.3g} eps away from J v")


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(2.2, 1))
    forward, backward = (figure.add_subplot(grid[row, 0]) for row in (0, 1))
    above, below = (figure.add_subplot(grid[row, 1]) for row in (0, 1))

    net = result["drawn"]
    rows = [
        [(drawing.number(h), f"δ {drawing.number(delta, 3)}") for h, delta in zip(*layer, strict=True)]
        for layer in zip(net["h"], net["delta"], strict=True)
    ]
    drawing.layered(forward, rows, net["weights"])
    forward.set_title("forward →  h in the circles; below them δ, from the backward pass", fontsize=11)
    gains = [[""] * len(net["h"][0]), *([f"× {drawing.number(g)}" for g in gain] for gain in net["gains"])]
    gains.append([""] * len(net["h"][-1]))
    rows = [
        [(drawing.number(delta, 3), gain) for delta, gain in zip(*layer, strict=True)]
        for layer in zip(net["output"], gains, strict=True)
    ]
    drawing.layered(backward, rows, net["weights"], colours=(drawing.BACKWARD, "0.2"))
    backward.set_title("←  another network, fed with δ from the right: the same weights,\n"
                       "and at each hidden unit a fixed gain × θ′(s)", fontsize=11)  # fmt: skip

    last = len(result["delta"])
    for i in sorted({1, (last + 1) // 2, last}):
        delta, output = (
            np.array(result[key][i - 1]) / np.abs(result["delta"][i - 1]).max() for key in ("delta", "output")
        )
        above.plot(delta, output, "o", ms=4, alpha=0.5, label=f"layer {i}", zorder=2)
    above.set_title("a larger one, on digits", fontsize=11)
    above.set_xlabel("δ (share of the largest)")
    above.set_ylabel("output of the other network")
    above.legend(fontsize=10)
    below.axhline(128, color="k", lw=1, ls="--", label="allowed")
    below.plot(range(1, last + 1), result["error in eps"], "o", label="measured")
    below.set_yscale("symlog", linthresh=1)
    below.set_ylim(-0.1, 300)
    below.set_xlabel("layer of the other network")
    below.set_ylabel("difference (eps of the largest δ)")
    below.legend(fontsize=10)
    return figure


def summary(result: dict[str, Any]) -> tuple[str, str]:
    return (
        "the outputs of the transposed network are the δ; its way back is J v",
        f"in every layer to {max(result['error in eps']):.2g} eps; J v to {result['tangent error in eps']:.2g} eps",
    )


if __name__ == "__main__":
    claim.main()
