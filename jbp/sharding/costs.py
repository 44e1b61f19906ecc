"""What a step costs on a mesh, by formula: FLOPs of the products, bytes that one device hands over, collectives.

Of a dense stack whose layers lie by column and by row in turn, on D × M devices, with B examples, widths w₀ … w_L and s
bytes a number:

    gradient, D > 1      s · [1 + Σ wᵢwᵢ₊₁/M + Σ biases (÷ M by column)]          one all-reduce, with the loss's value
    activations, M > 1   s · B/D · [Σ over row layers wᵢ₊₁ + Σ over column layers but the first wᵢ]    one each
    loss, M > 1          s · 5 · B/D if the last layer is split by column and the loss is softmax cross entropy

A test holds formulas and compiled programs together. Nothing is compiled here, and no device is asked for: D and M may
be of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jbp.arguments import as_count
from jbp.backprop import forward_leaf, forward_whole
from jbp.combine import Combinator, Place, Repeat
from jbp.layer import Layer
from jbp.layers import Conv, Dense
from jbp.layers.activations import Activation, Softmax
from jbp.losses import Loss, SoftmaxCrossEntropy
from jbp.paths import dotted
from jbp.sharding.derived import over_data, over_model, over_specs

__all__ = ["Devices", "StepCosts", "step_costs"]


@dataclass(frozen=True)
class Devices:
    """d × m devices, over data and over layers, as a `jbp.Sharding` would use them; they need not be there."""

    d: int = 1
    m: int = 1
    shard_params: bool = False
    layouts: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("d", "m"):
            object.__setattr__(self, name, as_count(getattr(self, name), name))


@dataclass(frozen=True)
class StepCosts:
    """Of one step on one device: value and gradient, without the optimiser's elementwise part."""

    flops: int
    """Of the products of dense layers and convolutions, multiply and add apart."""
    gradient_bytes: int
    """Over the data axis: the gradient, and the loss's value."""
    activation_bytes: int
    """Over the model axis: what layers by row make, and the δ of layers by column."""
    loss_bytes: int
    """Over the model axis: what the loss adds up over classes that lie apart."""
    gather_bytes: int
    """Over the data axis, with `shard_params`: the parameters, gathered."""
    collectives: int
    """How often devices wait for one another, at least; with `shard_params` one more for each parameter gathered."""
    parameters: int
    """Numbers that a device holds of the parameters, and as many for each of an optimiser's copies."""
    exact: bool
    """Whether the compiled program was seen to hand over just these bytes in nets of this kind: dense layers in turn by
    column and row. Of others it is a lower bound, for the compiler adds what it takes to bring parts together."""

    @property
    def bytes(self) -> int:
        """All bytes that a device is handed by collectives."""
        return self.gradient_bytes + self.activation_bytes + self.loss_bytes + self.gather_bytes


@dataclass(frozen=True)
class _Product:
    """A layer that multiplies, as one example meets it."""

    path: str
    repeats: int
    multiplies: int
    """Multiply-adds of one example, forward."""
    into: int
    """Numbers of its input, and of its output."""
    out: int
    first: bool
    """Whether nothing below it has parameters, so that its input needs no δ; of a repetition all are alike."""


def step_costs(
    net: Layer,
    params: Any,
    example: Any,
    batch_size: int,
    devices: Devices,
    *,
    loss: Loss | None = None,
    itemsize: int = 4,
) -> StepCosts:
    """What a step costs each of the devices; `example` is shape and dtype of one x, and of `params` only shapes count.

    Raises:
        ValueError: if d does not divide the batch, or a layout cannot be.
    """
    d, m, batch_size = devices.d, devices.m, as_count(batch_size, "batch_size")
    if batch_size % d:
        raise ValueError(f"batch_size is {batch_size}, which {d} devices do not divide")
    specs, ways = over_model(net, params, m, "model", dict(devices.layouts))
    if m == 1:
        ways, specs = dict.fromkeys(ways, "whole"), jax.tree.map(lambda a: PartitionSpec(), params)
    held = over_specs(lambda spec, a: math.prod(jnp.shape(a)) // (m if "model" in spec else 1), specs, params)
    numbers, rows = sum(jax.tree.leaves(held)), batch_size // d
    products = _products(net, params, example)
    flops = activations = waits = 0
    exact, split = True, False
    for one in products:
        way, part = ways[one.path], m if ways[one.path] != "whole" else 1
        flops += one.repeats * 2 * rows * one.multiplies * (2 if one.first else 3) // part
        if way == "row":
            activations, waits = activations + one.repeats * rows * one.out, waits + one.repeats
        if way == "column" and not one.first:
            activations, waits = activations + one.repeats * rows * one.into, waits + one.repeats
        # By row what comes in must be split, by column and whole it must not, or the compiler gathers it.
        exact = exact and (way == "row") == split and one.repeats == 1
        split = way == "column"
    apart = bool(products) and split
    if apart and m > 1:
        exact = exact and isinstance(loss, SoftmaxCrossEntropy)
    lost = 5 * rows if apart and isinstance(loss, SoftmaxCrossEntropy) else 0
    gathered, parameters = 0, numbers
    if devices.shard_params and d > 1:
        whole = over_specs(lambda spec, a: over_data(spec, jnp.shape(a), d, "data"), specs, params)
        over = [n for spec, n in zip(jax.tree.leaves(whole), jax.tree.leaves(held), strict=True) if "data" in spec]
        gathered, parameters = sum(over), numbers - sum(over) + sum(over) // d
        waits += len(over)
        # Along with a model axis the whole gradient is added up, and each device takes its part.
        reduced = 1 + numbers - (sum(over) - sum(over) // d if m == 1 else 0)
    else:
        reduced = 1 + numbers
    return StepCosts(
        flops=flops,
        gradient_bytes=itemsize * reduced if d > 1 else 0,
        activation_bytes=itemsize * activations,
        loss_bytes=itemsize * lost,
        gather_bytes=itemsize * gathered,
        collectives=waits + (d > 1) + (2 if lost else 0),
        parameters=parameters,
        exact=exact and all(_is_plain(layer) for layer in _leaves(net)),
    )


def _products(net: Layer, params: Any, example: Any) -> list[_Product]:
    """The dense layers and convolutions, in the order in which an example meets them; nothing is computed."""
    found: list[_Product] = []
    seen = [False]

    def at(above: Place, repeats: int) -> Callable[..., tuple[Any, Any]]:
        def visit(place: Place, layer: Layer, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
            here = above + place
            if isinstance(layer, Repeat):
                return layer.walk_forward(at(here, repeats * layer.n), params, x, key)
            if isinstance(layer, Combinator):
                return layer.walk_forward(at(here, repeats), params, x, key)
            if layer.couples_batch:
                return forward_whole(layer, params, x, key)[0], ()
            y, _ = forward_leaf(layer, params, x, None)
            if isinstance(layer, Dense | Conv):
                first = not seen[0] and repeats == 1
                sizes = math.prod(x.shape[1:]), math.prod(y.shape[1:])
                found.append(_Product(dotted(here), repeats, _multiplies(layer, params, x, y), *sizes, first))
            seen[0] = seen[0] or bool(jax.tree.leaves(params))
            return y, ()

        return visit

    one = jax.ShapeDtypeStruct((1, *example.shape), example.dtype)
    jax.eval_shape(lambda params, x: at((), 1)((), net, params, x, None)[0], params, one)
    return found


def _multiplies(layer: Layer, params: Any, x: Any, y: Any) -> int:
    weight = math.prod(params["weight"].shape)
    if isinstance(layer, Dense):
        return weight * math.prod(x.shape[1:-1])
    space = len(params["weight"].shape) - 2
    sites, images = y.shape[-1 - space : -1], math.prod(y.shape[1 : -1 - space])
    assert isinstance(layer, Conv)
    geometry = layer.geometry(x.shape[-1 - space : -1])
    taps = math.prod(
        sum(0 <= u * stride + k * dilation - low < size for u in range(n) for k in range(kernel))
        for n, kernel, stride, dilation, (low, _), size in zip(
            sites, geometry.kernel, geometry.stride, geometry.dilation, geometry.padding,
            x.shape[-1 - space : -1], strict=True,
        )
    )  # fmt: skip
    return images * taps * math.prod(params["weight"].shape[-2:])


def _leaves(net: Layer) -> list[Layer]:
    if isinstance(net, Combinator):
        return [leaf for child in net.children for leaf in _leaves(child)]
    return [net]


def _is_plain(layer: Layer) -> bool:
    """Whether a layer hands over nothing where its input is split."""
    return isinstance(layer, Dense) or (isinstance(layer, Activation) and not isinstance(layer, Softmax))
