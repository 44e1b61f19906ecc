"""The forward passes of layers in plain JAX, over a batch: (layer, params, x, key) -> y.

Nothing of jbp's own forward is used, for these are what it is compared with.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def dense(layer: Any, params: Any, x: Any, key: Any) -> Any:
    """s = h W + b."""
    s = jnp.einsum("...i,io->...o", x, params["weight"])
    return s + jnp.broadcast_to(params["bias"], s.shape) if layer.use_bias else s


def conv(layer: Any, params: Any, x: Any, key: Any) -> Any:
    """XLA's convolution."""
    weight = params["weight"]
    d, g = weight.ndim - 2, layer.groups
    many = [(a,) * d if isinstance(a, int) else a for a in (layer.stride, layer.dilation)]
    flat = x.reshape(-1, *x.shape[-d - 1 :])
    padding = layer.padding.upper() if isinstance(layer.padding, str) else layer.padding
    space = "XYZ"[:d]
    y = jax.lax.conv_general_dilated(
        flat, weight, many[0], padding, rhs_dilation=many[1], feature_group_count=g,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )  # fmt: skip
    y = y.reshape(*x.shape[: -d - 1], *y.shape[1:])
    return y + jnp.broadcast_to(params["bias"], y.shape) if layer.use_bias else y


def _windowed(layer: Any, x: Any, start: float, fold: Any) -> Any:
    given = [v for v in (layer.window, layer.padding) if isinstance(v, tuple)]
    d = len(given[0]) if given else x.ndim - 2
    window = (layer.window,) * d if isinstance(layer.window, int) else layer.window
    stride = layer.stride or window
    stride = (stride,) * d if isinstance(stride, int) else stride
    padding = layer.padding.upper() if isinstance(layer.padding, str) else ((0, 0), *layer.padding, (0, 0))
    flat = x.reshape(-1, *x.shape[-d - 1 :])
    y = jax.lax.reduce_window(flat, np.asarray(start, x.dtype), fold, (1, *window, 1), (1, *stride, 1), padding)
    return y.reshape(*x.shape[: -d - 1], *y.shape[1:])


def max_pool(layer: Any, params: Any, x: Any, key: Any) -> Any:
    """The largest of each window."""
    return _windowed(layer, x, -jnp.inf, jax.lax.max)


def avg_pool(layer: Any, params: Any, x: Any, key: Any) -> Any:
    """The sum over each window by the number of its places."""
    count = jnp.full_like(x, 1.0)
    size = layer.window if isinstance(layer.window, int) else layer.window[0] * layer.window[1]
    sums = _windowed(layer, x, 0.0, jax.lax.add)
    return sums / (size if layer.count_padding else _windowed(layer, count, 0.0, jax.lax.add))


def norm(layer: Any, params: Any, x: Any, key: Any) -> Any:
    """Layer, RMS and group normalisation."""
    groups = getattr(layer, "groups", 0)
    h = x.reshape(*x.shape[:-1], groups, -1) if groups else x
    axes = (*range(1, x.ndim - 1), x.ndim) if groups else (x.ndim - 1,)
    if layer.centred:
        h = h - h.mean(axes, keepdims=True)
    y = (h / jnp.sqrt(jnp.square(h).mean(axes, keepdims=True) + layer.epsilon)).reshape(x.shape)
    y = y * jnp.broadcast_to(params["scale"], x.shape) if layer.use_scale else y
    return y + jnp.broadcast_to(params["bias"], x.shape) if layer.use_bias else y


def batch_norm(layer: Any, params: Any, x: Any, key: Any) -> Any:
    """In training with a key. Nothing is differentiated by the running moments."""
    axes = tuple(range(x.ndim - 1))
    mean, var = (jax.lax.stop_gradient(params[name]) for name in ("mean", "var"))
    if key is not None:
        mean, var = x.mean(axes), x.var(axes)
    scale = params["scale"] / jnp.sqrt(var + layer.epsilon)
    return (x - jnp.broadcast_to(mean, x.shape)) * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(
        params["bias"], x.shape
    )


def dropout(layer: Any, params: Any, x: Any, key: Any) -> Any:
    """By the bits that the key of each example draws."""
    if key is None:
        return x
    keys = jax.random.split(key, len(x))
    bits = jax.vmap(lambda k: jax.random.bits(k, x.shape[1:], jnp.uint32))(keys)
    kept = bits >= jnp.uint32(int(layer.drop_rate * 2**32))
    return jnp.where(kept, x / (1 - layer.drop_rate), 0)


def table(layer: Any, params: Any, x: Any, key: Any) -> Any:
    """A one-hot row times the table."""
    one_hot = (jnp.expand_dims(x, -1) == jnp.arange(layer.vocabulary).reshape((1,) * x.ndim + (-1,))).astype(
        params["weight"].dtype
    )
    return jnp.einsum("...v,vo->...o", one_hot, params["weight"])


def positions(layer: Any, params: Any, x: Any, key: Any) -> Any:
    """x + W, as far as the sequence goes."""
    return x + jnp.broadcast_to(params["weight"][: x.shape[1]], x.shape)


def attention(layer: Any, params: Any, x: Any, key: Any) -> Any:
    """One head of one group after another, with whole tables of scores."""
    (_, t, w), heads, groups = x.shape, layer.heads, layer.groups or layer.heads
    e, found = w // (heads + 2 * groups), []
    angle = np.arange(t)[:, None] / 10000.0 ** (np.arange(e // 2) * 2 / e)
    cos, sin = (jnp.broadcast_to(f(angle).astype(x.dtype), (len(x), t, e // 2)) for f in (np.cos, np.sin))

    def head(number: int) -> Any:
        part = x[..., number * e : (number + 1) * e]
        if not layer.rotary or number >= heads + groups:
            return part
        a, b = part[..., : e // 2], part[..., e // 2 :]
        return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), -1)

    for number in range(heads):
        group = number * groups // heads
        q, k, v = head(number), head(heads + group), head(heads + groups + group)
        scores = jnp.einsum("nte,nse->nts", q, k) / e**0.5
        if layer.causal:
            scores = jnp.where(jnp.tril(jnp.ones((1, t, t), bool)), scores, -jnp.inf)
        found.append(jnp.einsum("nts,nse->nte", jax.nn.softmax(scores, axis=-1), v))
    return jnp.concatenate(found, -1)
