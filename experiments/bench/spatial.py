"""The convolutional nets of the benchmark: jbp's, and the fastest plain JAX we can write, on the same parameters.

In plain JAX a convolution is `lax.conv_general_dilated` on channels last, a pool `lax.reduce_window`, and where windows
do not overlap also the other usual way, a reshape and a max (or mean) over the new axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import harness  # noqa: F401  which puts the checkout on the path
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from models import KEY, PLAIN, dense, fused

import jbp
from jbp.losses import softmax_cross_entropy

Pooling = Literal["window", "reshape"]
Norm = Literal["none", "group", "batch"]
Plain = Callable[[Any, Any], Any]
"""(params, x [n, *s, c]) -> logits [n, o], in plain JAX."""


class Spatial(NamedTuple):
    """A net, the same forward pass in plain JAX on the same parameters, the shape of one example, and the batch."""

    name: str
    net: Any
    logits: Plain
    shape: tuple[int, ...]
    batch: int
    classes: int = 10
    depth: int = 0
    """Of a `repeat`; 0: there is none."""
    loss: Any = softmax_cross_entropy
    training: bool | None = None
    """True: normalised by the moments of the batch."""

    def plain(self, params: Any, x: Any, y: Any) -> Any:
        """The mean loss in plain JAX."""
        return fused(self.logits(params, x), y)

    def arguments(self) -> tuple[Any, Any, Any]:
        """Parameters, inputs and labels."""
        params, _ = self.net.init(KEY, self.shape)
        x = jax.random.normal(jax.random.key(1), (self.batch, *self.shape))
        return params, x, jnp.arange(self.batch) % self.classes

    def ours(self) -> Callable[..., Any]:
        """jbp's value and gradient, not compiled yet and not memoised."""
        step = jbp.value_and_grad(self.net, self.loss).__wrapped__  # type: ignore[attr-defined]
        return lambda params, x, y: step(params, x, y, training=self.training)


def convolved(x: Any, p: Any, stride: int = 1, padding: Any = "SAME", groups: int = 1) -> Any:
    """x ∗ W + b, channels last."""
    d = x.ndim - 2
    space = "DHW"[3 - d :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    y = lax.conv_general_dilated(
        x, p["weight"], (stride,) * d, padding, dimension_numbers=numbers, feature_group_count=groups
    )
    return y + p["bias"] if "bias" in p else y


def pooled(x: Any, size: int, kind: str, how: Pooling = "window", stride: int | None = None) -> Any:
    """The largest or the mean of windows, without padding."""
    n, *space, c = x.shape
    if how == "reshape" and stride is None:
        kept = [s // size for s in space]
        parts = x.reshape(n, *(a for s in kept for a in (s, size)), c)
        return getattr(parts, kind)(tuple(range(2, 2 + 2 * len(space), 2)))
    window, step = ((1, *(a,) * len(space), 1) for a in (size, stride or size))
    if kind == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, step, "VALID")
    return lax.reduce_window(x, 0.0, lax.add, window, step, "VALID") / size ** len(space)


def group_normed(x: Any, p: Any, groups: int, epsilon: float = 1e-5) -> Any:
    """scale∘x̂ + bias, over space and each group of channels."""
    parts = x.reshape(*x.shape[:-1], groups, -1)
    axes = (*range(1, x.ndim - 1), x.ndim)
    centred = parts - parts.mean(axes, keepdims=True)
    hat = centred * lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + epsilon)
    return hat.reshape(x.shape) * p["scale"] + p["bias"]


def batch_normed(x: Any, p: Any, epsilon: float = 1e-5) -> Any:
    """scale∘x̂ + bias in training, over the batch and space."""
    axes = tuple(range(x.ndim - 1))
    centred = x - x.mean(axes)
    return centred * lax.rsqrt(jnp.square(centred).mean(axes) + epsilon) * p["scale"] + p["bias"]


def rms_normed(x: Any, p: Any, epsilon: float = 1e-5) -> Any:
    """scale∘x̂, over channels."""
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon) * p["scale"]


def named(name: str, batch: int) -> str:
    """The name of a case."""
    return f"{name}, batch {batch}"


def lenet(batch: int = 128, activation: Any = jbp.relu, kind: str = "max", how: Pooling = "window") -> Spatial:
    """LeNet-5 on 28 × 28: 5 × 5 to 6, pool, 5 × 5 to 16, pool, 120, 84, 10."""
    pool = (jbp.MaxPool if kind == "max" else jbp.AvgPool)((2, 2))
    act = PLAIN[activation]
    net = jbp.serial(
        *(jbp.Conv(6, (5, 5)), activation, pool, jbp.Conv(16, (5, 5), padding="valid"), activation, pool),
        *(jbp.layers.Flatten(), jbp.Dense(120), activation, jbp.Dense(84), activation, jbp.Dense(10)),
    )

    def logits(params: Any, x: Any) -> Any:
        first, second, third, fourth, last = (p for p in params if p != ())
        h = pooled(act(convolved(x, first)), 2, kind, how)
        h = pooled(act(convolved(h, second, padding="VALID")), 2, kind, how)
        h = act(dense(h.reshape(len(x), -1), third))
        return dense(act(dense(h, fourth)), last)

    pools = {"window": "reduce_window", "reshape": f"reshape-{kind}"}[how]
    name = named(f"LeNet-5 {activation!r}, {kind} pool against {pools}", batch)
    return Spatial(name, net, logits, (28, 28, 1), batch)


def normed(norm: Norm, width: int) -> tuple[tuple[Any, ...], Callable[[Any, Any], Any]]:
    """The layers of a normalisation, none or one, and the same in plain JAX."""
    if norm == "none":
        return (), lambda x, p: x
    if norm == "group":
        return (jbp.GroupNorm(width // 8),), lambda x, p: group_normed(x, p, width // 8)
    return (jbp.BatchNorm(),), batch_normed


def resnet20(batch: int = 64, norm: Norm = "group", widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3,
             side: int = 32) -> Spatial:  # fmt: skip
    """ResNet-20 for images of 32 × 32: three stages of three blocks, the strided ones beside a 1 × 1 convolution."""
    bias = norm == "none"
    scale: Any = {"weight_init": jbp.initializers.Normal(0.02)} if norm == "none" else {}

    def around(size: int) -> tuple[tuple[int, int], ...]:
        return ((size // 2, size // 2),) * 2  # as PyTorch's ResNets; "same" has (0, 1) where the stride is 2

    def conv(width: int, size: int = 3, stride: int = 1, **more: Any) -> tuple[Any, ...]:
        return jbp.Conv(width, (size, size), stride, around(size), use_bias=bias, **more), *normed(norm, width)[0]

    def block(width: int, stride: int) -> Any:
        inner = jbp.serial(*conv(width, stride=stride), jbp.relu, *conv(width, **scale))
        return jbp.residual(inner) if stride == 1 else jbp.branch(inner, jbp.serial(*conv(width, 1, stride)))

    stages = [(width, 2 if i and not j else 1) for i, width in enumerate(widths) for j in range(blocks)]
    layers = [part for stage in stages for part in (block(*stage), jbp.relu)]
    net = jbp.serial(*conv(widths[0]), jbp.relu, *layers, jbp.GlobalPool(), jbp.Dense(10))
    each = 1 + bool(normed(norm, widths[0])[0])

    def apply(x: Any, params: Any, width: int, stride: int = 1) -> Any:
        x = convolved(x, params[0], stride, around(len(params[0]["weight"])))
        return normed(norm, width)[1](x, params[1]) if each == 2 else x

    def logits(params: Any, x: Any) -> Any:
        h = jax.nn.relu(apply(x, params[:each], widths[0]))
        for (width, stride), p in zip(stages, params[each + 1 :: 2], strict=False):
            inner, short = (p, None) if stride == 1 else p
            y = apply(jax.nn.relu(apply(h, inner[:each], width, stride)), inner[each + 1 :], width)
            h = jax.nn.relu(y + (h if short is None else apply(h, short, width, stride)))
        return dense(h.mean((1, 2)), params[-1])

    words = {"none": "without normalisation", "group": "group norm", "batch": "batch norm"}[norm]
    name = f"ResNet-{2 * blocks * len(widths) + 2}, {words}"
    training = True if norm == "batch" else None
    return Spatial(named(name, batch), net, logits, (side, side, 3), batch, training=training)


def repeated(batch: int = 64, depth: int = 8, width: int = 32, side: int = 16) -> Spatial:
    """`repeat` of residual blocks of a convolution and relu, against `lax.scan`."""
    small = jbp.initializers.Normal(0.01)
    block = jbp.serial(jbp.Conv(width, (3, 3), weight_init=small), jbp.relu)
    net = jbp.serial(jbp.Conv(width, (3, 3)), jbp.relu, jbp.repeat(jbp.residual(block), depth), jbp.GlobalPool(),
                     jbp.Dense(10))  # fmt: skip

    def logits(params: Any, x: Any) -> Any:
        first, _, stacked, _, last = params
        h = jax.nn.relu(convolved(x, first))
        h, _ = lax.scan(lambda h, p: (h + jax.nn.relu(convolved(h, p[0])), None), h, stacked)
        return dense(h.mean((1, 2)), last)

    name = f"repeat of {depth} residual convolutions of {width} on {side} × {side}"
    return Spatial(named(name, batch), net, logits, (side, side, 3), batch, depth=depth)


def separable(batch: int = 64, width: int = 32, blocks: int = 3, side: int = 32) -> Spatial:
    """Depthwise 3 × 3 and 1 × 1 convolutions in turn, the width doubled each time."""
    widths = [width * 2**i for i in range(blocks + 1)]
    layers: list[Any] = [jbp.Conv(width, (3, 3), 2), jbp.relu]
    for i, o in pairwise(widths):
        layers += [jbp.Conv(i, (3, 3), groups=i), jbp.relu, jbp.Conv(o, (1, 1)), jbp.relu]
    net = jbp.serial(*layers, jbp.GlobalPool(), jbp.Dense(10))

    def logits(params: Any, x: Any) -> Any:
        first, *pairs, last = (p for p in params if p != ())
        h = jax.nn.relu(convolved(x, first, 2))
        for deep, flat in zip(pairs[::2], pairs[1::2], strict=True):
            h = jax.nn.relu(convolved(h, deep, groups=h.shape[-1]))
            h = jax.nn.relu(convolved(h, flat))
        return dense(h.mean((1, 2)), last)

    return Spatial(named(f"depthwise separable {width} to {widths[-1]}", batch), net, logits, (side, side, 3), batch)


def one_dimensional(batch: int = 64, length: int = 512, how: Pooling = "window") -> Spatial:
    """A net for series: convolutions of 9 and 5, max pools, RMS normalisation."""
    net = jbp.serial(
        *(jbp.Conv(16, (9,), 2), jbp.relu, jbp.MaxPool((2,)), jbp.Conv(32, (5,)), jbp.RMSNorm(), jbp.relu),
        *(jbp.MaxPool((2,)), jbp.Conv(64, (5,)), jbp.RMSNorm(), jbp.relu, jbp.GlobalPool(), jbp.Dense(10)),
    )

    def logits(params: Any, x: Any) -> Any:
        first, second, scale, third, other, last = (p for p in params if p != ())
        h = pooled(jax.nn.relu(convolved(x, first, 2)), 2, "max", how)
        h = pooled(jax.nn.relu(rms_normed(convolved(h, second), scale)), 2, "max", how)
        return dense(jax.nn.relu(rms_normed(convolved(h, third), other)).mean(1), last)

    return Spatial(named("one dimension, RMS norm", batch), net, logits, (length, 1), batch)


def private(batch: int = 64) -> Spatial:
    """The net of the DP-SGD tutorials on MNIST: 8 × 8 to 16, pool, 4 × 4 to 32, pool, 32, 10."""
    pool = jbp.MaxPool((2, 2), 1)
    net = jbp.serial(
        *(jbp.Conv(16, (8, 8), 2), jbp.relu, pool, jbp.Conv(32, (4, 4), 2, "valid"), jbp.relu, pool),
        *(jbp.layers.Flatten(), jbp.Dense(32), jbp.relu, jbp.Dense(10)),
    )

    def logits(params: Any, x: Any) -> Any:
        first, second, third, last = (p for p in params if p != ())
        h = pooled(jax.nn.relu(convolved(x, first, 2)), 2, "max", stride=1)
        h = pooled(jax.nn.relu(convolved(h, second, 2, "VALID")), 2, "max", stride=1)
        return dense(jax.nn.relu(dense(h.reshape(len(x), -1), third)), last)

    return Spatial(named("DP-CNN of MNIST", batch), net, logits, (28, 28, 1), batch)


def wide(batch: int = 64) -> Spatial:
    """Wide late layers: 3 × 3 to 256 twice, on 4 × 4 of 64 channels."""
    net = jbp.serial(
        *(jbp.Conv(256, (3, 3)), jbp.relu, jbp.Conv(256, (3, 3)), jbp.relu, jbp.GlobalPool(), jbp.Dense(10))
    )

    def logits(params: Any, x: Any) -> Any:
        first, second, last = (p for p in params if p != ())
        h = jax.nn.relu(convolved(jax.nn.relu(convolved(x, first)), second))
        return dense(h.mean((1, 2)), last)

    return Spatial(named("wide late layers, 64-256-256 on 4 × 4", batch), net, logits, (4, 4, 64), batch)


def multiply_adds(case: Spatial) -> int:
    """Of the forward pass of one example's convolutions and dense layers."""
    from counting import product_flops

    params, x, _ = case.arguments()
    return product_flops(case.logits, params, x[:1]) // 2


def leaves(params: Any) -> list[dict[str, np.ndarray]]:
    """The dicts of parameters, in the order of the layers."""
    if isinstance(params, dict):
        return [{name: np.asarray(value) for name, value in params.items()}]
    return [found for part in params for found in leaves(part)]


def parameters(case: Spatial) -> int:
    """How many numbers are learned."""
    params = jax.eval_shape(lambda key: case.net.init(key, case.shape)[0], KEY)
    return sum(math.prod(a.shape) for a in jax.tree.leaves(params))


NETS: tuple[Callable[[], Spatial], ...] = (
    lambda: lenet(),
    lambda: lenet(how="reshape"),
    lambda: lenet(activation=jbp.tanh, kind="mean"),
    lambda: lenet(activation=jbp.tanh, kind="mean", how="reshape"),
    lambda: resnet20(),
    lambda: resnet20(norm="batch"),
    lambda: resnet20(norm="none"),
    lambda: repeated(),
    lambda: separable(),
    lambda: one_dimensional(),
)
"""The nets on which one gradient step and the time to it are compared."""
