"""Convolution, pooling and normalisation against PyTorch in float64, in one to three dimensions: `make peers`.

Forward pass, δ of the input, gradients of the parameters and the norm of each example's gradient. PyTorch has the
channels in front of space, and no "same" padding with a stride, nor other padding on one side than on the other: there
its `pad` comes first.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_pytorch import __test__ as __test__
from peer_pytorch import assert_agree, gradient, noisy, tensors, torch
from peer_pytorch import pytorch as pytorch

import jbp
from jbp import losses, stats

BATCH = 5
SPACES = {1: (11,), 2: (7, 6), 3: (5, 6, 5)}


def per_axis(value: Any, dims: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * dims


def alike(padding: Any) -> tuple[int, ...] | None:
    """The padding of each dimension, where both sides are known to have as much."""
    sides = () if isinstance(padding, str) else padding
    same = padding != "same" and all(low == high for low, high in sides)
    return tuple(low for low, _ in sides) if same else None


def run(layer: Any, params: Any, x: Any, training: bool = False, moments: Any = None) -> Any:
    """The layer in PyTorch, on x [n, *s, c]."""
    F, d = torch.nn.functional, x.ndim - 2
    front = x.movedim(-1, 1).contiguous()  # a view of it makes PyTorch 2.13's group norm crash on its way back
    params = params or {}

    def padded(fill: float) -> Any:
        sides = layer.geometry(tuple(x.shape[1:-1])).padding
        return F.pad(front, [side for low_high in reversed(sides) for side in low_high], value=fill)

    match layer:
        case jbp.Conv():
            function, both = getattr(F, f"conv{d}d"), alike(layer.padding)
            stride, dilation = (per_axis(v, d) for v in (layer.stride, layer.dilation))
            weight = params["weight"].movedim((-1, -2), (0, 1))
            given = padded(0.0) if both is None else front
            y = function(given, weight, params.get("bias"), stride, both or 0, dilation, layer.groups)
        case jbp.MaxPool() | jbp.AvgPool():
            function = getattr(F, f"{'max' if isinstance(layer, jbp.MaxPool) else 'avg'}_pool{d}d")
            window = per_axis(layer.window, d)
            both = alike(layer.padding)
            given = padded(-torch.inf) if both is None else front
            options = {"count_include_pad": layer.count_padding} if isinstance(layer, jbp.AvgPool) else {}
            stride = per_axis(layer.stride or window, d)
            y = function(given, window, stride, both or 0, ceil_mode=False, **options)
        case jbp.GlobalPool():
            return front.flatten(2).mean(2)
        case jbp.LayerNorm():
            return F.layer_norm(x, x.shape[-1:], params.get("scale"), params.get("bias"), layer.epsilon)
        case jbp.RMSNorm():
            y = F.rms_norm(x, x.shape[-1:], params["scale"], layer.epsilon)
            return y + params["bias"] if layer.use_bias else y
        case jbp.GroupNorm():
            y = F.group_norm(front, layer.groups, params.get("scale"), params.get("bias"), layer.epsilon)
        case jbp.BatchNorm():
            kept = (params["mean"], params["var"]) if moments is None else moments
            y = F.batch_norm(front, *kept, params["scale"], params["bias"], training, 1 - layer.momentum, layer.epsilon)
        case _:
            raise AssertionError(f"no counterpart of {layer!r}")
    return y.movedim(1, -1)


def compare(layer: Any, shape: tuple[int, ...]) -> None:
    """Forward, backward, and the norms of the examples' gradients, one by one."""
    rng = np.random.default_rng(len(repr(layer)) + sum(shape))
    x = jnp.array(rng.normal(size=(BATCH, *shape)))
    params = noisy(layer.init(jax.random.key(4), shape)[0], rng)
    output, saved = jax.jit(lambda p, x: jbp.forward(layer, p, x))(params, x)
    delta = jnp.array(rng.normal(size=output.shape))

    @jax.jit
    def back(params: Any, saved: Any, delta: Any) -> Any:
        delta_x, pairs = jbp.backward(layer, params, saved, delta)
        sums = jbp.contract(pairs, jnp.ones(BATCH)) if jax.tree.leaves(params) else params
        return {"x": delta_x, "params": sums}, stats.squared_norms(pairs) if jax.tree.leaves(params) else None

    found, norms = back(params, saved, delta)
    theirs = tensors({"x": x, "params": params})
    their_output = run(layer, theirs["params"], theirs["x"])
    assert_agree(output, their_output, "layer")
    each = (their_output * tensors(delta).detach()).reshape(BATCH, -1).sum(1)
    assert_agree(found, gradient(each.sum(), theirs), "layer")
    if norms is not None:
        own = run(layer, theirs["params"], theirs["x"])
        each = (own * tensors(delta).detach()).reshape(BATCH, -1).sum(1)
        leaves, structure = jax.tree.flatten(theirs["params"])
        grads = [torch.autograd.grad(e, leaves, retain_graph=True) for e in each]
        squares = [torch.stack([g.square().sum() for g in leaf]) for leaf in zip(*grads, strict=True)]
        assert_agree(norms, structure.unflatten(squares), "layer")


CONVS = [
    {}, {"stride": 2}, {"padding": "valid"}, {"dilation": 2}, {"groups": 2}, {"groups": 4, "width": 8},
    {"stride": 2, "dilation": 2, "padding": "valid", "use_bias": False}, {"stride": 3, "groups": 2},
    {"padding": 2, "stride": 2}, {"padding": (0, 3), "dilation": 2}, {"kernel": 1, "stride": 2},
    {"kernel": 2, "stride": 3, "padding": "valid"}, {"padding": 4},
]  # fmt: skip
"""Of channels 4 → 6; a number as padding is on both sides of every axis, (low, high) on its two."""


@pytest.mark.parametrize("options", CONVS, ids=str)
@pytest.mark.parametrize("dims", SPACES)
def test_convolution(dims, options):
    options = {"width": 6, "kernel": 3, "padding": "same"} | options
    if not isinstance(options["padding"], str):
        sides = options["padding"] if isinstance(options["padding"], tuple) else (options["padding"],) * 2
        options["padding"] = (sides,) * dims
    options["kernel"] = (*(options["kernel"],) * (dims - 1), 2) if dims > 1 else options["kernel"]
    compare(jbp.Conv(**options), (*SPACES[dims], 4))


POOLS = [
    {"window": 2}, {"window": 2, "stride": 1}, {"window": 3, "stride": 2}, {"window": 2, "stride": 3},
    {"window": 3, "stride": 2, "padding": 1}, {"window": 2, "stride": 1, "padding": 1}, {"window": 1, "stride": 2},
]  # fmt: skip


@pytest.mark.parametrize("kind", [jbp.MaxPool, jbp.AvgPool, "counted", "same"], ids=str)
@pytest.mark.parametrize("options", POOLS, ids=str)
@pytest.mark.parametrize("dims", SPACES)
def test_pooling(dims, options, kind):
    """Overlapping, with gaps, padded; PyTorch's ceil_mode, which jbp has not, is off."""
    options = dict(options)
    if "padding" in options:
        options["padding"] = ((options["padding"],) * 2,) * dims
    if kind == "same":
        options["padding"], kind = "same", jbp.MaxPool
    compare(jbp.AvgPool(**options, count_padding=True) if kind == "counted" else kind(**options), (*SPACES[dims], 3))


NORMS = [
    jbp.LayerNorm(), jbp.LayerNorm(0.3, use_scale=False, use_bias=False), jbp.LayerNorm(use_bias=False),
    jbp.RMSNorm(), jbp.RMSNorm(0.3, use_bias=True), jbp.GroupNorm(1), jbp.GroupNorm(3, 0.3), jbp.GroupNorm(6),
    jbp.GlobalPool(),
]  # fmt: skip


@pytest.mark.parametrize("layer", NORMS, ids=repr)
@pytest.mark.parametrize("dims", SPACES)
def test_normalisation(dims, layer):
    compare(layer, (*SPACES[dims], 6))


@pytest.mark.parametrize("layer", [jbp.BatchNorm(), jbp.BatchNorm(0.7, 0.3)], ids=repr)
@pytest.mark.parametrize("dims", [0, *SPACES])
def test_batch_normalisation(dims, layer):
    """In evaluation by the running moments; in training by the batch's, and the running ones move as PyTorch's."""
    rng = np.random.default_rng(dims)
    shape = (*SPACES.get(dims, ()), 3)
    x, delta = (jnp.array(rng.normal(size=(BATCH, *shape))) for _ in range(2))
    params = layer.init(jax.random.key(4), shape)[0]
    params = {name: p + jnp.array(rng.uniform(0.1, 0.6, p.shape)) for name, p in params.items()}
    for training in (False, True):
        output, saved = jbp.forward(layer, params, x, training=training)
        delta_x, pairs = jbp.backward(layer, params, saved, delta)
        sums = jbp.contract({name: pairs[name] for name in ("scale", "bias")}, jnp.ones(BATCH))
        theirs = tensors({"x": x, "scale": params["scale"], "bias": params["bias"]})
        moments = tuple(tensors(params[name]).detach() for name in ("mean", "var"))
        their_output = run(layer, theirs, theirs["x"], training, moments)
        assert_agree(output, their_output, "layer")
        grads = gradient((their_output * tensors(delta).detach()).sum(), theirs)
        assert_agree({"x": delta_x} | sums, grads, "layer")
    value_and_grad = jbp.value_and_grad(layer, losses.l2_loss, has_observed=True)
    (_, observed), _ = value_and_grad(params, x, jnp.zeros_like(x))
    after = jbp.observe(params, observed)
    assert_agree((after["mean"], after["var"]), moments, "layer")


def test_a_planted_error_is_seen():
    """An odd pixel of padding on the other side, and another ε."""

    class Turned(jbp.Conv):
        """With "same" padding whose odd pixel is at the start."""

        def geometry(self, space):
            geometry = super().geometry(space)
            sides = tuple((high, low) for low, high in geometry.padding)
            return dataclasses.replace(geometry, padding=sides)

    for layer in (Turned(6, 2), jbp.LayerNorm(1.00001e-5)):
        shape = (11, 4)
        right = jbp.Conv(6, 2) if isinstance(layer, jbp.Conv) else jbp.LayerNorm()
        params = right.init(jax.random.key(0), shape)[0]
        x = jax.random.normal(jax.random.key(1), (BATCH, *shape))
        theirs = run(right, tensors(params), tensors(x))
        assert_agree(jbp.apply(right, params, x), theirs, "layer")
        with pytest.raises(AssertionError, match="units of eps"):
            assert_agree(jbp.apply(layer, params, x), theirs, "layer")
