"""The backward pass of a convolution is a convolution: δ under the kernel turned round, and h under δ.

Claim. With y[u] = Σₖ h[u + k] W[k] (padding, stride, dilation, channels and groups left out) δ_x[s] = Σₖ δ[s − k] W[k],
the correlation of δ, with zeros all around, with the kernel turned round; and ∂e/∂W[k] = Σᵤ h[u + k] δ[u], the
correlation of h with δ. So δ slides over the image as a kernel does, and the kernel over δ. For kernels in one, two and
three dimensions, strided (zeros between the sites of δ), dilated, padded, in groups and depthwise, what `jbp.Conv`
finds is what scipy's `correlate` makes of them, channel by channel, and what `jax.grad` finds of XLA's convolution. A
layer `jbp.Conv` with the turned kernel, fed with δ, puts out δ_x.

Two things beside it. The kernels of the first layer, before and after training: neighbouring weights, drawn
independently, come to be alike. And what batch normalisation does to ‖δ‖
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

Expect: all equal to 4 eps of the largest entry; the factors of wide dense layers to 1 %, those of
convolutions, which see zeros at the edge, to 6 %. Quick: digits. Control: the
kernel is not turned. Wall time: full 1 minute on two idle cores, quick 15 s.
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
    maps: tuple[int, int] = (16, 16)
    kernel: int = 5
    examples: int = 10000
    epochs: int = 4
    depth: int = 24
    width: int = 512
    channels: int = 32
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
    inner = [(0, 0, step - 1) for step in g.stride]
    sparse = lax.pad(delta, jnp.zeros((), delta.dtype), ((0, 0, 0), *inner, (0, 0, 0)))
    around = []
    for s, (low, _), r, n in zip(x.shape[1:], g.padding, g.span, sparse.shape[1:], strict=False):
        around.append((r - 1 - low, s - n + low))
    other = jbp.Conv(x.shape[-1], g.kernel, padding=tuple(around), dilation=g.dilation, use_bias=False)
    return jbp.apply(other, {"weight": kernel}, sparse)


def distance(a: Any, b: Any) -> float:
    """The largest difference in units of eps times the largest entry."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / (EPS * np.abs(b).max()))


def of_case(conv: jbp.Conv, shape: tuple[int, ...], key: Any, turned: bool) -> dict[str, float]:
    """How far jbp's δ_x and gradient are from those of the others."""
    draw = np.random.default_rng(key)
    out = jax.eval_shape(lambda: conv.init(jax.random.key(0), shape)[0])["weight"].shape[-1:]
    out = (*conv.geometry(shape[:-1]).sites(shape[:-1]), *out)
    x, delta = draw.normal(size=(2, *shape)), draw.normal(size=(2, *out))

    @jax.jit
    def found(x: Any, delta: Any) -> Any:
        params = conv.init(jax.random.key(key), shape)[0]
        _, saved = jbp.forward(conv, params, x)
        delta_x, pairs = jbp.backward(conv, params, saved, delta)
        weight = params["weight"]
        other = as_layer(conv, x, weight, delta, turned) if conv.groups == 1 else delta_x
        return weight, delta_x, pairs["weight"].total(), by_autodiff(conv, x, weight, delta), other

    weight, delta_x, gradient, auto, other = found(x, delta)
    ours = [written_out(conv, one, np.asarray(weight), d, turned) for one, d in zip(x, delta, strict=True)]
    return {
        "δ_x, written out": distance(np.stack([one[0] for one in ours]), delta_x),
        "gradient, written out": distance(sum(one[1] for one in ours), gradient),
        "δ_x, jax.grad": distance(auto[0], delta_x),
        "gradient, jax.grad": distance(auto[1], gradient),
    } | ({"δ_x, another layer": distance(other, delta_x)} if conv.groups == 1 else {})


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
    errors = jax.vmap(loss.value)(output, jnp.asarray(y_test[:1000]))
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
    shared, size = (np.sum([found.sum((0, 1)) for found in each], 0) for each in (
        [a * b for a, b in pairs], [(a**2 + b**2) / 2 for a, b in pairs],
    ))  # fmt: skip
    return (shared / size).tolist()


def over_depth(config: Config, of: str, kind: str, x: Any, y: Any) -> list[dict[str, Any]]:
    """‖δ‖ at every layer of a network at its start, in training, beside what is predicted; a row for each scale."""
    spatial = of == "conv"
    units, repeats = config.channels if spatial else config.width, config.depth - 1

    def layer(width: int) -> jbp.Layer:
        how = {"weight_init": jbp.initializers.lecun_normal, "use_bias": False}
        return jbp.Conv(width, 3, **how) if spatial else jbp.Dense(width, **how)

    block = {
        "plain": jbp.serial(jbp.relu, layer(units)),
        "normalised": jbp.serial(jbp.BatchNorm(), jbp.relu, layer(units)),
        "residual": jbp.residual(jbp.serial(jbp.BatchNorm(), jbp.relu, layer(units))),
    }[kind]
    first = layer(units)
    pool = (jbp.GlobalPool("mean"),) if spatial else ()
    last = jbp.serial(*((jbp.BatchNorm(),) if kind != "plain" else ()), jbp.relu, *pool, jbp.Dense(10))

    @jax.jit
    def norms(scale: Any, key: Any, x: Any, y: Any) -> Any:
        keys = jax.random.split(key, 3)

        def drawn(part: jbp.Layer, key: Any, shape: tuple[int, ...]) -> Any:
            params = part.init(key, shape)[0]
            return jax.tree.map(lambda p: p if p.ndim < 2 else jnp.sqrt(scale).astype(p.dtype) * p, params)

        def down(h: Any, params: Any) -> Any:
            return jbp.forward(block, params, h, training=True)

        def up(delta: Any, walked: Any) -> Any:
            params, saved = walked
            return jbp.backward(block, params, saved, delta)[0], size(delta)

        def size(delta: Any) -> Any:
            return jnp.sqrt(jnp.square(delta).sum() / len(x))

        h = jbp.forward(first, drawn(first, keys[0], x.shape[1:]), x)[0]
        variance, shape = h.reshape(-1, units).var(0), h.shape[1:]
        stacked = jax.vmap(lambda key: drawn(block, key, shape))(jax.random.split(keys[1], repeats))
        h, saved = lax.scan(down, h, stacked)
        top = drawn(last, keys[2], shape)
        out, kept = jbp.forward(last, top, h, training=True)
        delta = jbp.backward(last, top, kept, jax.vmap(jbp.losses.softmax_cross_entropy.delta)(out, y))[0]
        delta, found = lax.scan(up, delta, (stacked, saved), reverse=True)
        return jnp.append(size(delta), found), variance

    rows = []
    for scale in SCALES.values():
        found, variance = norms(scale, jax.random.key(config.seed), x, y)
        predicted = theory(kind, scale, np.asarray(variance, float), repeats)
        found = np.asarray(found, float)
        rows.append({
            "of": of, "kind": kind, "scale": scale, "delta": (found / found[-1]).tolist(), "predicted": predicted,
            "factor per layer": float((found[0] / found[-1]) ** (1 / repeats)),
            "predicted factor": float(predicted[0] ** (1 / repeats)),
        })  # fmt: skip
    return rows


def theory(kind: str, scale: float, variance: np.ndarray, repeats: int) -> list[float]:
    """‖δ‖ at every layer, as a share of the last one's, of wide layers and large batches.

    `variance` is that of each sum of the first layer, over the batch: the input's doing, not the theory's.
    """
    added = scale * (np.pi - 1) / (2 * np.pi)  # the variance of a sum over the outputs of ReLU units
    predicted = [1.0]
    for below in reversed(range(repeats)):
        passed = {
            "plain": scale / 2,
            "normalised": scale / 2 * np.mean(1 / (added if below else variance)),
            "residual": 1 + scale / 2 * np.mean(1 / (variance + below * added)),
        }[kind]
        predicted.insert(0, predicted[0] * float(np.sqrt(passed)))
    return predicted


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        errors = {
            name: of_case(conv, shape, 100 * config.seed + i, config.turned)
            for i, (name, (conv, shape)) in enumerate(claim.progress(CASES.items(), "cases"))
        }
    with jax.enable_x64(False):
        x, y = (jnp.asarray(part[: config.batch]) for part in jbp.data.load("digits", "train"))
        sets = {"dense": x.reshape(len(x), -1)} | ({"conv": jnp.expand_dims(x, -1)} if config.channels else {})
        each = claim.progress(list(product(sets, KINDS)), "depth")
        depth = [row for of, kind in each for row in over_depth(config, of, kind, sets[of], y)]
        return {"errors in eps": errors, "trained": trained(config), "depth": depth}


def worst(result: dict[str, Any]) -> float:
    return max(max(case.values()) for case in result["errors in eps"].values())


def check(result: dict[str, Any]) -> None:
    """The number that decides: the largest difference from what is written out, in eps × the largest entry.

    And trained kernels are smoother than drawn ones, and wide dense layers have the predicted factors, to 3 %.
    """
    for name, case in result["errors in eps"].items():
        for what, error in case.items():
            claim.require(error <= ALLOWED, f"{name}: {what} is {error:.3g} eps away from jbp's, allowed {ALLOWED}")
    before, after = (np.mean(part) for part in result["trained"]["alike"])
    what = f"neighbouring weights of trained kernels have a correlation of {after:.2f}, drawn ones of {before:.2f}"
    claim.require(after > before, what)
    for row in result["depth"]:
        found, predicted = row["factor per layer"], row["predicted factor"]
        what = f"{row['of']}, {row['kind']}, scale {row['scale']}: a layer's factor is {found:.3f}, not {predicted:.3f}"
        claim.require(row["of"] != "dense" or abs(found / predicted - 1) <= 0.03, what)


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure: Any = plt.figure(figsize=(10, 11.5), layout="constrained")
    passes, below = figure.subfigures(2, 1, height_ratios=(1.12, 1))
    draw_passes(passes, result["trained"])
    left, right = below.subfigures(1, 2, width_ratios=(1, 2.3))
    draw_kernels(left, result["trained"])
    draw_depth(right, result)
    return figure


def draw_passes(figure: Any, one: dict[str, Any]) -> None:
    """One image: forward above, backward below, from right to left."""
    pictures = {name: np.array(values) for name, values in one["picture"].items()}
    panels = figure.subplots(2, 3, width_ratios=(1, 0.62, 1))
    figure.get_layout_engine().set(hspace=0.06)
    top = f"the image: {'an' if one['class'] == 8 else 'a'} {one['class']}, read as {one['read as']}"
    shown = (
        ("image", top, "gray_r"),
        ("kernel", "a kernel of the first layer", "RdBu_r"),
        ("map", "forward →  the sum s at every place", "PuOr_r"),
        ("part", "←  backward: this map's part of δ at the image", "RdBu_r"),
        ("turned", "the kernel turned round", "RdBu_r"),
        ("delta", "δ at this map, from the layers above", "RdBu_r"),
    )
    for axis, (name, title, colours) in zip(panels.flat, shown, strict=True):
        image = pictures[name]
        most = np.abs(image).max()
        axis.imshow(image, cmap=colours, vmin=0 if name == "image" else -most, vmax=most)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=10.5, color=drawing.BACKWARD if name in ("part", "delta") else drawing.FORWARD)
        for spine in axis.spines.values():
            spine.set(visible=True, color="0.7")
    for row, (first, second) in enumerate((("∗", "="), ("=", "∗"))):
        for column, sign in enumerate((first, second)):
            panels[row, column].annotate(
                sign, (1.0, 0.5), xycoords="axes fraction", xytext=(14, 0), textcoords="offset points", fontsize=20,
                ha="center", va="center", annotation_clip=False,
            )  # fmt: skip


def draw_kernels(figure: Any, one: dict[str, Any]) -> None:
    """The kernels of the first layer, as drawn and as learned."""
    for axis, kernels, alike, title in zip(
        figure.subplots(2, 1), one["kernels"], one["alike"], ("drawn", "learned"), strict=True
    ):
        tiles = np.pad(np.array(kernels), ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
        rows = [np.concatenate(list(tiles[i : i + 4]), 1) for i in range(0, len(tiles), 4)]
        montage = np.concatenate(rows)[:-1, :-1]
        most = np.nanmax(np.abs(montage))
        axis.imshow(montage, cmap="RdBu_r", vmin=-most, vmax=most)
        axis.set_title(
            f"kernels of the first layer, {title};\nneighbours' correlation {np.mean(alike):.2f}", fontsize=10
        )
        axis.axis("off")


def draw_depth(figure: Any, result: dict[str, Any]) -> None:
    """‖δ‖ over depth, of dense and of convolutional nets."""
    kinds = {row["of"]: None for row in result["depth"]}
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, of in zip(panels, kinds, strict=True):
        for row in result["depth"]:
            if row["of"] == of:
                draw_row(axis, row)
        axis.set(yscale="log", xlabel="layer (1: next to the image)")
        axis.set_title("dense" if of == "dense" else "convolutional, zeros around", fontsize=10)
    panels[0].set_ylabel("‖δ‖, as a share of the last layer's")
    figure.suptitle(f"{result['config']['depth']} layers before training; points: measured, lines: theory", fontsize=11)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False
    )


def draw_row(axis: Any, row: dict[str, Any]) -> None:
    """One network: with normalisation black, for all scales on one place, smaller in larger."""
    dash, marker = {"plain": ("-", "o"), "normalised": ("--", "s"), "residual": (":", "^")}[row["kind"]]
    at, plain = list(SCALES.values()).index(row["scale"]), row["kind"] == "plain"
    colour = ("#0072B2", "#009E73", "#D55E00", "#CC79A7")[at] if plain else "black"
    label, last = f"no normalisation, g = {row['scale']:g}", at == len(SCALES) - 1
    if not plain:
        label = {"normalised": "batch normalisation, every g", "residual": "the same, residual"}[row["kind"]]
    layers = np.arange(1, len(row["delta"]) + 1)
    if plain or last:
        axis.plot(layers, row["predicted"], dash, color=colour, lw=1)
    size, face = (3.5, colour) if plain else (3 + 1.2 * at, "none")
    axis.plot(layers[::2], row["delta"][::2], marker, color=colour, ms=size, mfc=face, mew=0.9,
              label=label if plain or last else None)  # fmt: skip


def summary(result: dict[str, Any]) -> tuple[str, str]:
    rows = [row for row in result["depth"] if row["of"] == "dense"]
    off = max(abs(row["factor per layer"] / row["predicted factor"] - 1) for row in rows)
    normalised = [row["delta"] for row in rows if row["kind"] == "normalised"]
    factors = [(delta[1] / delta[-1]) ** (1 / (len(delta) - 2)) for delta in normalised]
    before, after = (np.mean(part) for part in result["trained"]["alike"])
    return (
        f"δ_x is the correlation of δ with the turned kernel, the gradient that of h with δ, to {ALLOWED} eps; "
        "‖δ‖ per layer √(g/2) plain and √(π/(π − 1)) = 1.21 normalised",
        f"at most {worst(result):.1f} eps apart in {len(result['errors in eps'])} geometries; learned kernels' "
        f"neighbours correlate {after:.2f} (drawn {before:.2f}), accuracy {result['trained']['test accuracy']:.3f}; "
        f"factors within {100 * off:.1f} % of theory, normalised {min(factors):.3f} to {max(factors):.3f} for every g",
    )


if __name__ == "__main__":
    claim.main()
