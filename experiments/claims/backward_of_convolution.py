"""The backward pass of a convolution is a convolution: δ under the kernel turned round, and h under δ.

Claim. With y[u] = Σₖ h[u + k] W[k] (padding, stride, dilation, channels and groups left out), δ_x[s] = Σₖ δ[s − k] W[k]:
the correlation of δ, with zeros all around, with the kernel turned round; and ∂e/∂W[k] = Σᵤ h[u + k] δ[u]: the
correlation of h with δ. So δ slides over the image as a kernel does, and the kernel over δ. For kernels in one, two and
three dimensions, strided (zeros between the sites of δ), dilated, padded, in groups and depthwise, what `jbp.Conv`
finds is what scipy's `correlate` makes of them, channel by channel, and what `jax.grad` finds of XLA's convolution. A
layer `jbp.Conv` with the turned kernel, fed with δ, puts out δ_x.

Two things beside it. The kernels of the first layer, before and after training: neighbouring weights, drawn
independently, come to be alike (their correlation is above 0.2 in the mean). And what batch normalisation does to ‖δ‖
over depth. Without it a layer of ReLU units multiplies ‖δ‖ by √(g/2), with g = fan-in · var(w): δ vanishes or explodes
as the weights are drawn. With it the scale of the weights has no effect at all, but each layer multiplies ‖δ‖ by
√(π/(π − 1)) = 1.21, whatever they are: δ explodes, slowly. In a residual network (x + a layer behind normalisation and
ReLU) the factor falls with depth, √(1 + g/(2V)) with the variance V of x so far, and ‖δ‖ grows as a power.

Source: LeCun et al. 1989, Backpropagation applied to handwritten zip code recognition; Dumoulin, Visin 2016,
arXiv:1603.07285 (the transposed convolution). g/2: He et al. 2015. π/(π − 1): Yang et al. 2019, A mean field theory of
batch normalization, arXiv:1902.08129, for wide layers and large batches: the half of the units that pass δ on, over the
variance ½ − 1/(2π) of a ReLU's output by which the next layer's sum is divided.

    python experiments/claims/backward_of_convolution.py [--quick]
    needs MNIST, in $JBP_DATA_DIR for example; --quick does not

Expect: all equal to 4 eps of the largest entry; the factors of wide dense layers to 2 %. Quick: digits. Control: the
kernel is not turned. Wall time: full 1 minute on two cores, quick 15 s.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import product
from typing import Any

import claim
import drawing
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.signal import correlate

import jbp

EPS = 2.0**-52
ALLOWED = 64  # eps × the largest entry; the sums have up to 300 terms
CASES: dict[str, tuple[jbp.Conv, tuple[int, ...]]] = {
    "3×3, same": (jbp.Conv(4, 3), (9, 8, 3)),
    "5×5, valid": (jbp.Conv(4, 5, padding="valid"), (9, 8, 3)),
    "3×4, unequal padding": (jbp.Conv(4, (3, 4), padding=((2, 0), (1, 3))), (6, 7, 2)),
    "stride 2": (jbp.Conv(4, 3, stride=2), (9, 8, 3)),
    "stride 3, valid": (jbp.Conv(4, (3, 2), stride=(3, 2), padding="valid"), (10, 9, 3)),
    "dilation 2": (jbp.Conv(4, 3, dilation=2), (9, 8, 3)),
    "two groups": (jbp.Conv(6, 3, groups=2), (9, 8, 4)),
    "depthwise": (jbp.Conv(6, 3, stride=2, groups=3), (9, 8, 3)),
    "one dimension": (jbp.Conv(5, (7,), stride=2), (31, 3)),
    "three dimensions": (jbp.Conv(3, (2, 3, 2), stride=(1, 2, 1)), (5, 6, 4, 2)),
}
SCALES = {"0.5": 0.5, "1 (LeCun)": 1.0, "2 (He)": 2.0, "4": 4.0}  # fan-in · var(w)
KINDS = ("plain", "normalised", "residual")


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    maps: tuple[int, int] = (16, 32)
    kernel: int = 5
    examples: int = 20000
    epochs: int = 5
    depth: int = 24
    width: int = 512
    channels: int = 64
    batch: int = 256
    turned: bool = True
    """Whether the kernel is turned round, as it must be."""
    seed: int = 0


FULL = Config()
QUICK = Config(data="digits", maps=(8, 8), examples=1437, epochs=8, width=256, channels=0)
CONTROL = dataclasses.replace(QUICK, turned=False, epochs=1, depth=2)


def spread(a: np.ndarray, by: tuple[int, ...]) -> np.ndarray:
    """With by − 1 zeros between neighbours, along each of the first axes."""
    sizes = [(n - 1) * step + 1 for n, step in zip(a.shape, by, strict=False)]
    out = np.zeros((*sizes, *a.shape[len(by) :]))
    out[tuple(slice(None, None, step) for step in by)] = a
    return out


def written_out(conv: jbp.Conv, x: Any, weight: Any, delta: Any, turned: bool) -> tuple[np.ndarray, np.ndarray]:
    """δ_x and ∂e/∂W of one example, by scipy's `correlate` of one channel with another."""
    g = conv.geometry(x.shape[:-1])
    d, i, o = g.dims, x.shape[-1], weight.shape[-1]
    axes = tuple(range(d))
    padded = np.pad(x, (*g.padding, (0, 0)))
    sparse, kernel = spread(delta, g.stride), spread(weight, g.dilation)
    back, gradient = np.zeros(padded.shape), np.zeros(weight.shape)
    each = tuple(slice(None, k * step, step) for k, step in zip(g.kernel, g.dilation, strict=True))
    for (a, b), group in ((ab, ab[1] // (o // g.groups)) for ab in product(range(i // g.groups), range(o))):
        channel = group * (i // g.groups) + a
        seen = kernel[..., a, b]
        full = correlate(sparse[..., b], np.flip(seen, axes) if turned else seen, "full")
        back[(*map(slice, full.shape), channel)] += full
        gradient[..., a, b] = correlate(padded[..., channel], sparse[..., b], "valid")[each]
    inside = tuple(slice(low, low + s) for (low, _), s in zip(g.padding, x.shape, strict=False))
    return back[inside], gradient


def by_autodiff(conv: jbp.Conv, x: Any, weight: Any, delta: Any) -> Any:
    """δ_x and ∂e/∂W of a batch, by `jax.grad` of XLA's convolution."""
    g = conv.geometry(x.shape[1:-1])
    letters = "DHW"[-g.dims :]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

    def error(x: Any, weight: Any) -> Any:
        y = lax.conv_general_dilated(
            x, weight, g.stride, g.padding, None, g.dilation, numbers, feature_group_count=g.groups
        )
        return (y * delta).sum()

    return jax.grad(error, (0, 1))(x, weight)


def as_layer(conv: jbp.Conv, x: Any, weight: Any, delta: Any, turned: bool) -> Any:
    """What another layer, whose kernel is the turned one, puts out when it is fed with δ."""
    g = conv.geometry(x.shape[1:-1])
    axes = tuple(range(g.dims))
    kernel = jnp.swapaxes(jnp.flip(weight, axes) if turned else weight, -1, -2)
    sparse = np.stack([spread(one, g.stride) for one in np.asarray(delta)])
    around = []
    for s, (low, _), r, n in zip(x.shape[1:], g.padding, g.span, sparse.shape[1:], strict=False):
        around.append((r - 1 - low, s - n + low))
    other = jbp.Conv(x.shape[-1], g.kernel, padding=tuple(around), dilation=g.dilation, use_bias=False)
    return jbp.apply(other, {"weight": kernel}, jnp.asarray(sparse))


def distance(a: Any, b: Any) -> float:
    """The largest difference in units of eps times the largest entry."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / (EPS * np.abs(b).max()))


def of_case(conv: jbp.Conv, shape: tuple[int, ...], key: Any, turned: bool) -> dict[str, float]:
    """How far jbp's δ_x and gradient are from those of the others."""
    keys = jax.random.split(key, 3)
    params, out = conv.init(keys[0], shape)
    x, delta = jax.random.normal(keys[1], (2, *shape)), jax.random.normal(keys[2], (2, *out))
    _, saved = jbp.forward(conv, params, x)
    delta_x, pairs = jbp.backward(conv, params, saved, delta)
    gradient, weight = pairs["weight"].total(), params["weight"]
    ours = [written_out(conv, *map(np.asarray, (one, weight, d)), turned) for one, d in zip(x, delta, strict=True)]
    auto = by_autodiff(conv, x, weight, delta)
    found = {
        "δ_x, written out": distance(np.stack([one[0] for one in ours]), delta_x),
        "gradient, written out": distance(sum(one[1] for one in ours), gradient),
        "δ_x, jax.grad": distance(auto[0], delta_x),
        "gradient, jax.grad": distance(auto[1], gradient),
    }
    if conv.groups == 1:
        found["δ_x, another layer"] = distance(as_layer(conv, x, weight, delta, turned), delta_x)
    return found


def trained(config: Config) -> dict[str, Any]:
    """Kernels before and after training; and of one image that the net hesitates over, what goes forward and back."""
    (x, y), (x_test, y_test) = (jbp.data.load(config.data, part) for part in ("train", "test"))
    conv = jbp.Conv(config.maps[0], config.kernel)
    deeper = (jbp.relu, jbp.MaxPool(2), jbp.Conv(config.maps[1], config.kernel), jbp.relu, jbp.MaxPool(2))
    net = jbp.serial(jbp.Channel(), conv, *deeper, jbp.Flatten(), jbp.Dense(10))
    loss = jbp.losses.softmax_cross_entropy
    start, _ = net.init(jax.random.key(config.seed), x.shape[1:])
    fitted = jbp.fit(
        net, loss, jbp.optim.sgd(0.05, momentum=0.9), (x[: config.examples], y[: config.examples]),
        epochs=config.epochs, batch_size=64, params=start, seed=config.seed,
    )  # fmt: skip
    output = jbp.apply(net, fitted.params, jnp.asarray(x_test[:1000]))
    errors = jax.vmap(loss)(output, jnp.asarray(y_test[:1000]))
    n = int(np.argsort(-np.asarray(errors))[len(errors) // 100])  # a hard one, not the hardest
    image, target = jnp.asarray(x_test[n : n + 1]), jnp.asarray(y_test[n : n + 1])
    out, saved = jbp.forward(net, fitted.params, image)
    delta_x, pairs = jbp.backward(net, fitted.params, saved, jax.vmap(loss.delta)(out, target))
    delta = np.asarray(pairs[1]["weight"].delta[0, 0], np.float64)
    weight = np.asarray(fitted.params[1]["weight"], np.float64)[:, :, 0]
    chosen = int(np.square(delta).sum((0, 1)).argmax())
    kernel, padding = weight[:, :, chosen], (config.kernel - 1) // 2
    full = correlate(delta[:, :, chosen], kernel[::-1, ::-1], "full")
    inside = tuple(slice(padding, padding + s) for s in image.shape[1:])
    before, after = (np.asarray(p[1]["weight"], np.float64)[:, :, 0] for p in (start, fitted.params))
    maps = np.asarray(jbp.apply(jbp.serial(jbp.Channel(), conv), fitted.params[:2], image))[0]
    pictures = {
        "image": image[0], "kernel": kernel, "map": maps[..., chosen], "delta": delta[..., chosen],
        "turned": kernel[::-1, ::-1], "part": full[inside], "delta_x": delta_x[0],
    }  # fmt: skip
    return {
        "test accuracy": float((output.argmax(1) == y_test[:1000]).mean()),
        "class": int(target[0]),
        "read as": int(out[0].argmax()),
        "picture": {name: np.asarray(values, float).round(5).tolist() for name, values in pictures.items()},
        "kernels": [np.moveaxis(kernels, -1, 0).round(4).tolist() for kernels in (before, after)],
        "alike": [alike(kernels) for kernels in (before, after)],
    }


def alike(kernels: np.ndarray) -> list[float]:
    """Of each kernel, the correlation of neighbouring weights (about a mean of 0)."""
    pairs = ((kernels[1:], kernels[:-1]), (kernels[:, 1:], kernels[:, :-1]))
    shared = sum((a * b).sum((0, 1)) for a, b in pairs)
    return (shared / sum((a**2 + b**2).sum((0, 1)) / 2 for a, b in pairs)).tolist()


def over_depth(config: Config, of: str, kind: str, scale: float, x: Any, y: Any) -> dict[str, Any]:
    """‖δ‖ at every layer of a network at its start, in training, beside what is predicted."""
    spatial = of == "conv"
    units = config.channels if spatial else config.width

    def layer(width: int) -> jbp.Layer:
        how = {"weight_init": jbp.initializers.lecun_normal, "use_bias": False}
        return jbp.Conv(width, 3, **how) if spatial else jbp.Dense(width, **how)

    block = {
        "plain": (jbp.relu, layer(units)),
        "normalised": (jbp.BatchNorm(), jbp.relu, layer(units)),
        "residual": (jbp.residual(jbp.serial(jbp.BatchNorm(), jbp.relu, layer(units))),),
    }[kind]
    parts = [layer(units), *block * (config.depth - 1)]
    marked = [0, *range(len(block), len(parts), len(block))]  # where a layer's sum comes out
    top = (*((jbp.BatchNorm(),) if kind != "plain" else ()), jbp.relu, *((jbp.GlobalPool("mean"),) if spatial else ()))
    layers = [*parts, *top, layer(units) if not spatial else jbp.Dense(10), *(() if spatial else ())]
    layers[-1] = jbp.Dense(10, weight_init=jbp.initializers.lecun_normal)

    @jax.jit
    def norms(key: Any, x: Any, y: Any) -> Any:
        h, walked = x, []
        for part, one in zip(layers, jax.random.split(key, len(layers)), strict=True):
            params = jax.tree.map(lambda p: p if p.ndim < 2 else scale**0.5 * p, part.init(one, h.shape[1:])[0])
            h, saved = jbp.forward(part, params, h, training=True)
            walked.append((part, params, saved, h))
        delta, found = jax.vmap(jbp.losses.softmax_cross_entropy.delta)(h, y), []
        for i in reversed(range(len(layers))):
            if i in marked:
                found.append(jnp.sqrt(jnp.square(delta).sum() / len(x)))
            delta = jbp.backward(*walked[i][:3], delta)[0]
        variance = walked[0][3].reshape(-1, units).var(0).mean()
        return jnp.stack(found[::-1]), variance

    found, variance = norms(jax.random.key(config.seed), x, y)
    predicted = [1.0]
    for l in reversed(range(config.depth - 1)):  # noqa: E741
        square = {
            "plain": scale / 2,
            "normalised": np.pi / (np.pi - 1),
            "residual": 1 + scale / 2 / (float(variance) + l * scale * (np.pi - 1) / (2 * np.pi)),
        }[kind]
        predicted.insert(0, predicted[0] * float(np.sqrt(square)))
    found = np.asarray(found, float)
    return {
        "of": of, "kind": kind, "scale": scale,
        "delta": (found / found[-1]).tolist(), "predicted": predicted,
        "factor per layer": float((found[0] / found[-1]) ** (1 / (config.depth - 1))),
        "predicted factor": float(predicted[0] ** (1 / (config.depth - 1))),
    }  # fmt: skip


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(config.seed), len(CASES))
        errors = {
            name: of_case(*case, key, config.turned)
            for (name, case), key in zip(claim.progress(CASES.items(), "cases"), keys, strict=True)
        }
        x, y = (jnp.asarray(part[: config.batch]) for part in jbp.data.load("digits", "train"))
        sets = {"dense": x.reshape(len(x), -1).astype(jnp.float64)}
        sets |= {"conv": jnp.expand_dims(x, -1).astype(jnp.float64)} if config.channels else {}
        depths = [
            over_depth(config, of, kind, scale, sets[of], y)
            for of, kind, scale in claim.progress(list(product(sets, KINDS, SCALES.values())), "depth")
        ]
    with jax.enable_x64(False):
        return {"errors in eps": errors, "trained": trained(config), "depth": depths}


def worst(result: dict[str, Any]) -> float:
    return max(max(case.values()) for case in result["errors in eps"].values())


def check(result: dict[str, Any]) -> None:
    """The number that decides: the largest difference from what is written out, in eps × the largest entry.

    And trained kernels are smoother than drawn ones, and wide dense layers have the predicted factors, to 3 %.
    """
    for name, case in result["errors in eps"].items():
        for what, error in case.items():
            claim.require(error <= ALLOWED, f"{name}: {what} is {error:.3g} eps away from jbp's, allowed {ALLOWED}")
    after = np.mean(result["trained"]["alike"][1])
    claim.require(after > 0.2, f"neighbouring weights of trained kernels have a correlation of {after:.2f}")
    for row in result["depth"]:
        found, predicted = row["factor per layer"], row["predicted factor"]
        what = f"{row['of']}, {row['kind']}, scale {row['scale']}: a layer's factor is {found:.3f}, not {predicted:.3f}"
        claim.require(row["of"] != "dense" or abs(found / predicted - 1) <= 0.03, what)


if __name__ == "__main__":
    claim.main()
