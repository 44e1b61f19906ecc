"""Wrong versions of convolution, pooling and normalisation, and the checks that must catch them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from mutant_tools import Mutant, with_pair, wrong

import jbp
import jbp.check
from jbp.layers.norm import _Norm
from jbp.pairs import Scale, Shift, Window

VJP, EACH, WEIGHED = "= vjp", "= vjp, each example", "= vjp, with weights"
CHECKS: Any = {
    f"layer {shape}": lambda subject, shape=shape: jbp.check.layer(subject, shape, batch=3, differences=False)
    for shape in ((7, 3), (7, 4))
}
PLAIN, STRIDED, SPREAD = jbp.Conv(3, 3), jbp.Conv(3, 3, 2), jbp.Conv(3, 2, padding=((0, 3),), dilation=3)
GROUPED = jbp.Conv(4, 2, groups=2)
MAX, MEAN, COUNTED = jbp.MaxPool(3, 2), jbp.AvgPool(3, 2, "same"), jbp.AvgPool(3, 2, "same", True)
LAYER, RMS, GROUP, BATCH = jbp.LayerNorm(0.3), jbp.RMSNorm(0.3), jbp.GroupNorm(2, 0.3), jbp.BatchNorm(epsilon=0.3)


def _back(conv: jbp.Conv, weight: Any = lambda w: w, **changes: Any) -> Any:
    """A convolution whose δ_x is made with another kernel or another geometry."""

    def backward(self: Any, params: Any, saved: Any, delta: Any) -> Any:
        _, pairs = jbp.Conv.backward(self, params, saved, delta)
        geometry = self.geometry(saved.shape[:-1])
        geometry = dataclasses.replace(geometry, **{name: change(geometry) for name, change in changes.items()})
        return geometry.back(delta[None], weight(params["weight"]), saved.shape[:-1])[0], pairs

    return wrong(conv, backward=backward)


def _window(conv: jbp.Conv, h: Any = lambda h: h, delta: Any = lambda d: d, **changes: Any) -> Any:
    """A convolution whose kernel's pair is another."""

    def make(pair: Window) -> Window:
        new = {name: change(pair.geometry) for name, change in changes.items()}
        return Window(h(pair.h), delta(pair.delta), pair.shape, dataclasses.replace(pair.geometry, **new))

    return with_pair(conv, "weight", make)


def _other_side(geometry: Any) -> Any:
    return tuple((high, low) for low, high in geometry.padding)


def _one_pixel_on(geometry: Any) -> Any:
    return tuple((low + 1, high - 1) for low, high in geometry.padding)


def _undilated(geometry: Any) -> dict[str, Any]:
    """As many sites without dilation: what the kernel spans less is padding less."""
    less = [(k - 1) * (d - 1) for k, d in zip(geometry.kernel, geometry.dilation, strict=True)]
    return {"padding": tuple((low, high - n) for (low, high), n in zip(geometry.padding, less, strict=True))}


def _pooled(pool: Any, change: Any) -> Any:
    """A pool that is given another δ, or hands on another δ_x: `change(pool, saved, δ, its own backward)`."""

    def backward(self: Any, params: Any, saved: Any, delta: Any) -> Any:
        return change(self, saved, delta, lambda saved, delta: type(pool).backward(self, params, saved, delta)[0]), ()

    return wrong(pool, backward=backward)


def _normed(norm: Any, back: Any) -> Any:
    """A norm with another δ_x: `back(norm, x̂, 1/σ, d, mean)`, d = scale∘δ, in its grouped form."""

    def backward(self: Any, params: Any, saved: Any, delta: Any) -> Any:
        _, pairs = _Norm.backward(self, params, saved, delta)
        seen, inverse = saved
        shape, axes = self.grouped(seen.shape)
        d = delta * params["scale"].reshape((1,) * (delta.ndim - 1) + (-1,)) if self.use_scale else delta
        found = back(self, seen.reshape(shape), inverse, d.reshape(shape), lambda a: a.mean(axes, keepdims=True))
        return found.reshape(seen.shape), pairs

    return wrong(norm, backward=backward)


def _outside(norm: Any, hat: Any, inverse: Any, d: Any, mean: Any) -> Any:
    """1/(σ + ε) for 1/√(σ² + ε)."""
    sigma = jnp.sqrt(1 / inverse**2 - norm.epsilon)
    return (d - mean(d) - hat * mean(d * hat)) / (sigma + norm.epsilon)


def _unbiased(norm: Any, hat: Any, inverse: Any, d: Any, mean: Any) -> Any:
    """The term of the variance over one number less."""
    n = hat.size / mean(hat).size
    return (d - mean(d) - hat * mean(d * hat) * n / (n - 1)) * inverse


def _batch(back: Any) -> Any:
    """Batch normalisation with another δ_x in training: `back(x̂, 1/σ, d, p)`, p what each example counts."""

    def backward(self: Any, params: Any, saved: Any, delta: Any) -> Any:
        delta_x, pairs = jbp.BatchNorm.backward(self, params, saved, delta)
        if saved.p is None:
            return delta_x, pairs
        p = 1 / (delta.size // delta.shape[-1]) if isinstance(saved.p, tuple) else saved.p
        d = delta * params["scale"].reshape((1,) * (delta.ndim - 1) + (-1,))
        inverse = saved.inverse.reshape((1,) * (delta.ndim - 1) + (-1,))
        return back(saved.h * inverse, inverse, d, p), pairs

    return wrong(BATCH, backward=backward)


def _sum(a: Any) -> Any:
    return a.sum(tuple(range(a.ndim - 1)), keepdims=True)


def _n(a: Any) -> Any:
    return a.size // a.shape[-1]


def _m(name: str, where: str, law: str, check: str, right: Any, wrong: Any) -> Mutant:
    return Mutant(name, where, law, check, right, wrong)


def _moving(self: Any, params: Any, saved: Any, delta: Any) -> Any:
    """Batch normalisation whose running mean is trained."""
    delta_x, pairs = jbp.BatchNorm.backward(self, params, saved, delta)
    c = delta.shape[-1]
    return delta_x, pairs | {"mean": Shift(-delta.reshape(len(delta), -1, c), (c,))}


# fmt: off
MUTANTS = (
    _m("kernel not turned round", "Conv", VJP, "layer (7, 3)", PLAIN, _back(PLAIN, lambda w: jnp.flip(w, 0))),
    _m("i and o not exchanged, square", "Conv", VJP, "layer (7, 3)", PLAIN, _back(PLAIN, lambda w: w.swapaxes(1, 2))),
    _m("another group's kernel", "Conv", VJP, "layer (7, 4)", GROUPED, _back(GROUPED, lambda w: jnp.roll(w, 2, 2))),
    _m("padding on the other side for δ_x", "Conv", VJP, "layer (7, 4)", SPREAD, _back(SPREAD, padding=_other_side)),
    _m("one pixel on for δ_x, with a stride", "Conv", VJP, "layer (7, 3)", STRIDED,
       _back(STRIDED, padding=_one_pixel_on)),
    _m("no stride for δ_x", "Conv", VJP, "layer (7, 3)", STRIDED, _back(STRIDED, stride=lambda g: (1,))),
    _m("no dilation for δ_x", "Conv", VJP, "layer (7, 4)", SPREAD, _back(SPREAD, dilation=lambda g: (1,))),
    _m("padding on the other side for the kernel", "Conv", EACH, "layer (7, 4)", SPREAD,
       _window(SPREAD, padding=_other_side)),
    _m("one pixel on for the kernel, with a stride", "Conv", EACH, "layer (7, 3)", STRIDED,
       _window(STRIDED, padding=_one_pixel_on)),
    _m("no dilation for the kernel", "Conv", EACH, "layer (7, 4)", SPREAD,
       _window(SPREAD, dilation=lambda g: (1,), padding=lambda g: _undilated(g)["padding"])),
    _m("another group's h", "Conv", EACH, "layer (7, 4)", GROUPED, _window(GROUPED, h=lambda h: jnp.roll(h, 2, -1))),
    _m("space turned round", "Conv", EACH, "layer (7, 3)", PLAIN,
       _window(PLAIN, h=lambda h: jnp.flip(h, 1), delta=lambda d: jnp.flip(d, 1))),
    _m("δ to the place before the largest", "MaxPool", VJP, "layer (7, 3)", MAX,
       _pooled(MAX, lambda pool, saved, d, own: own((jnp.maximum(saved[0], 1) - 1, saved[1]), d))),
    _m("δ to every place of the window", "MaxPool", VJP, "layer (7, 3)", MAX,
       _pooled(MAX, lambda pool, saved, d, own: sum(own((0 * saved[0] + k, saved[1]), d) for k in range(3)))),
    _m("overlapping windows not added up", "MaxPool", VJP, "layer (7, 3)", MAX,
       _pooled(MAX, lambda pool, saved, d, own: own(saved, d.at[1:].set(0 * d[1:])))),
    _m("divided by the window at the edge too", "AvgPool", VJP, "layer (7, 3)", MEAN,
       _pooled(MEAN, lambda pool, saved, d, own: jbp.AvgPool.backward(COUNTED, (), saved, d)[0])),
    _m("divided by the pixels alone where padding counts", "AvgPool", VJP, "layer (7, 3)", COUNTED,
       _pooled(COUNTED, lambda pool, saved, d, own: jbp.AvgPool.backward(MEAN, (), saved, d)[0])),
    _m("δ not divided", "AvgPool", VJP, "layer (7, 3)", COUNTED,
       _pooled(COUNTED, lambda pool, saved, d, own: 3 * own(saved, d))),
    *(_m(name, where, VJP, "layer (7, 4)", right, _normed(right, back)) for where, right, both in (
        ("LayerNorm", LAYER, True), ("GroupNorm", GROUP, True), ("RMSNorm", RMS, False)) for name, back in (
        ("the term of the mean missing", lambda s, hat, i, d, mean: (d - hat * mean(d * hat)) * i),
        ("the term of the variance missing", lambda s, hat, i, d, mean: (d - mean(d)) * i),
        ("1/σ missing", lambda s, hat, i, d, mean: d - mean(d) - hat * mean(d * hat)),
        ("ε outside the root", _outside), ("the variance unbiased on the way back", _unbiased))[0 if both else 1:]),
    _m("x for x̂", "LayerNorm", EACH, "layer (7, 4)", LAYER,
       with_pair(LAYER, "scale", lambda p: Scale(p.h + 1, p.delta, p.shape))),
    _m("the term of the mean missing", "BatchNorm", VJP, "layer (7, 3)", BATCH,
       _batch(lambda hat, i, d, p: (d - p * hat * _sum(hat * d)) * i)),
    _m("the term of the variance missing", "BatchNorm", VJP, "layer (7, 3)", BATCH,
       _batch(lambda hat, i, d, p: (d - p * _sum(d)) * i)),
    _m("the variance unbiased on the way back", "BatchNorm", VJP, "layer (7, 3)", BATCH,
       _batch(lambda hat, i, d, p: (d - p * (_sum(d) + hat * _sum(hat * d) * _n(d) / (_n(d) - 1))) * i)),
    _m("ε outside the root", "BatchNorm", VJP, "layer (7, 3)", BATCH,
       _batch(lambda hat, i, d, p: (d - p * (_sum(d) + hat * _sum(hat * d))) / (jnp.sqrt(1 / i**2 - 0.3) + 0.3))),
    _m("all examples count alike", "BatchNorm", WEIGHED, "layer (7, 3)", BATCH,
       _batch(lambda hat, i, d, p: (d - (_sum(d) + hat * _sum(hat * d)) / _n(d)) * i)),
    _m("a running moment that is trained", "BatchNorm", EACH, "layer (7, 3)", BATCH, wrong(BATCH, backward=_moving)),
)
# fmt: on
