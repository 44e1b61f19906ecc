"""What a training step would take on a mesh of accelerators: predicted, by formulas, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jbp.arguments import as_count, as_shape
from jbp.backprop import Batch, value_grad_output
from jbp.inputs import check_loss, check_net
from jbp.layer import Layer, Shape
from jbp.layers import Dropout, Flatten
from jbp.layers.activations import Activation
from jbp.losses import CrossEntropy, Loss, SoftmaxCrossEntropy
from jbp.planning.accelerators import Machine
from jbp.planning.costs import Collective, collectives, specs_of
from jbp.planning.counting import flops
from jbp.planning.layout import Laid, Layout, laid, share, specs_in
from jbp.planning.walk import Cost, Counted, walked
from jbp.sharding.derived import alongside
from jbp.trainable import Trainable

_FEW, _MORE = 2, 3
"""Batches that are traced: every figure is a constant plus a multiple of the number of examples."""
_FUSED = (Activation, Dropout, Flatten)
"""Layers that XLA makes part of their neighbours: they read and write nothing of their own."""
COUNTS = tuple(2**k for k in range(11))
"""1, 2, 4, … 1,024 devices."""


@dataclass(frozen=True)
class Prediction:
    """One step on one mesh. Bytes and FLOPs are of one device. Every figure is computed, none was measured."""

    layout: Layout
    machine: Machine
    batch_size: int
    parameters: int
    """Of the whole net, in numbers."""
    flops: int
    """Of matrix products and convolutions."""
    moved: int
    """Bytes between the device and its memory."""
    memory: dict[str, int]
    """Bytes. Exact: parameters, optimiser, batch. Estimated, by formula: activations, gradients, working, and summed
    or gathered."""
    collectives: tuple[Collective, ...]

    @property
    def bytes(self) -> int:
        """That must be there at once."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether that is at most what the device has."""
        return self.bytes <= self.machine.accelerator.memory

    @property
    def arithmetic(self) -> float:
        """Seconds, at the peak."""
        return self.flops / self.machine.peak

    @property
    def traffic(self) -> float:
        """Seconds, at the memory's full bandwidth."""
        return self.moved / self.machine.accelerator.bandwidth

    @property
    def sending(self) -> float:
        """Seconds for all collectives, one after another."""
        return sum(one.seconds(self.layout, self.machine) for one in self.collectives)

    @property
    def seconds(self) -> float:
        """Of one step: the longer of arithmetic and traffic, then what is sent."""
        return max(self.arithmetic, self.traffic) + self.sending

    @property
    def examples_per_second(self) -> float:
        """On the whole mesh."""
        return self.batch_size / self.seconds

    def efficiency(self, one: Prediction) -> float:
        """Examples a second and device, as a share of those of one device."""
        return self.examples_per_second / self.layout.devices / one.examples_per_second


@dataclass(frozen=True)
class Work:
    """What one step of training has to do, whatever it is done on.

    `shape` is of one example, of whole numbers if `tokens`. Nothing of the net's size is ever allocated.

    Raises:
        ValueError: if net, loss and shape do not fit together.
        NotImplementedError: for a layer, or a net of layers, that has no formulas, naming it.
    """

    net: Layer
    loss: Loss
    optimizer: optax.GradientTransformation
    shape: Shape
    tokens: bool = False

    def __post_init__(self) -> None:
        check_net(self.net, Layer)
        check_loss(self.loss, Loss)
        object.__setattr__(self, "shape", as_shape(self.shape))
        self._counted  # noqa: B018 (what does not fit is refused here)

    @cached_property
    def params(self) -> Any:
        """The shapes of the parameters."""
        return jax.eval_shape(lambda key: self.net.init(key, self.shape)[0], _key())

    @cached_property
    def state(self) -> Any:
        """The shapes of what the optimiser keeps."""
        return jax.eval_shape(self.optimizer.init, self.params)

    @property
    def parameters(self) -> int:
        """How many numbers."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def x(self, n: int) -> Any:
        """The shape of n inputs."""
        dtype = jnp.int32 if self.tokens else jax.dtypes.canonicalize_dtype(float)
        return jax.ShapeDtypeStruct((n, *self.shape), dtype)

    def y(self, n: int) -> Any:
        """The shape of n targets: classes where the loss takes them, else numbers."""
        return _targets(self.loss, jax.ShapeDtypeStruct((n, *self._counted[0].output.shape[1:]), self.x(1).dtype))

    @cached_property
    def _counted(self) -> tuple[Counted, Counted]:
        few, more = (walked(self.net, self.params, self.x(n)) for n in (_FEW, _MORE))
        by_layer, whole = sum(row.forward + row.back for row in few.rows), self._flops(_FEW, few.output)
        if by_layer != whole:
            raise NotImplementedError(
                f"the net's products do not add up layer by layer: {whole:,} FLOPs for {_FEW} examples, of which the "
                f"layers account for {by_layer:,}; there are no formulas for it"
            )
        return few, more

    def _flops(self, n: int, output: Any) -> int:
        """Of value and gradient of n examples, the program as a whole."""

        def step(params: Any, x: Any, y: Any, key: Any) -> Any:
            found = value_grad_output(self.net, self.loss, params, Batch(x, y), key, Trainable.of(None), True)
            return found.value, found.grads, found.observed

        return flops(step, self.params, self.x(n), _targets(self.loss, output), _key())

    def counted(self, n: int) -> Counted:
        """Of n examples on one device."""
        few, more = self._counted
        rows = tuple(_extrapolated(a, b, n) for a, b in zip(few.rows, more.rows, strict=True))
        return Counted(rows, {item: _line(few.kept[item], more.kept[item], n) for item in few.kept}, few.output)

    def predict(self, batch_size: int, layout: Layout, machine: Machine) -> Prediction:
        """One step on the mesh, of so many examples in all.

        Raises:
            ValueError: for a batch, or widths, that the mesh does not divide.
            NotImplementedError: for a layer without formulas on this mesh, naming it.
        """
        n = as_count(batch_size, "batch_size")
        if n % layout.data:
            low = n - n % layout.data
            raise ValueError(
                f"batch_size is {n}, which the {layout.data} devices of the axis data do not divide: take "
                f"{f'{low} or ' if low else ''}{low + layout.data}, or another mesh"
            )
        own, place = self.counted(n // layout.data), laid(self.net, self.params, layout.model)
        specs = specs_of(place, self.params, layout)
        sizes = {
            "parameters": _spread(self.params, specs, layout),
            "optimiser": _spread(self.state, alongside(self.state, self.params, specs), layout),
            "batch": _size(self.x(n)) // layout.data + _size(self.y(n)) // layout.data,
            "activations": _kept(own, place, layout.model),
            "gradients": _spread(self.params, place.specs, layout),
            "working": _working(own.rows, place, layout.model),
        }
        if layout.data > 1:  # beside the gradient there is its sum over the devices, or what was gathered for it
            sizes["gathered" if layout.shard_params else "summed"] = sizes["gradients"]
        return Prediction(
            layout, machine, n, self.parameters,
            flops=sum(_part(row, way, layout.model) for row, way in zip(own.rows, place.ways, strict=True)),
            moved=_moved(own.rows, place, layout.model) + 3 * sizes["parameters"] + 2 * sizes["optimiser"],
            memory=sizes, collectives=collectives(own.rows, place, self.params, layout, n, self.loss),
        )  # fmt: skip


def meshes(work: Work, batch_size: int, devices: int, machine: Machine, shard_params: bool = False) -> Meshes:
    """A prediction for every mesh of so many devices; what cannot be predicted is told with its reason."""
    found, refused = [], {}
    for model in _divisors(devices):
        layout = Layout(devices // model, model, shard_params)
        try:
            found.append(work.predict(batch_size, layout, machine))
        except (ValueError, NotImplementedError) as error:
            refused[layout] = error
    return Meshes(tuple(found), refused)


@dataclass(frozen=True)
class Meshes:
    """What all meshes of some number of devices are predicted to do."""

    found: tuple[Prediction, ...]
    refused: dict[Layout, Exception]
    """The others, each with why: it divides batch or widths not, or there is no formula."""

    @property
    def best(self) -> Prediction | None:
        """The shortest step among those that fit, or the one that needs the least memory if none does."""
        fitting = [one for one in self.found if one.fits]
        if fitting:
            return min(fitting, key=lambda one: one.seconds)
        return min(self.found, key=lambda one: one.bytes, default=None)


def _divisors(n: int) -> Iterator[int]:
    return (k for k in range(1, n + 1) if n % k == 0)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _targets(loss: Loss, output: Any) -> Any:
    """The shape of the targets of outputs [n, ...]."""
    if isinstance(loss, SoftmaxCrossEntropy | CrossEntropy):
        return jax.ShapeDtypeStruct(output.shape[:-1], jnp.int32)
    return output


def _line(few: int, more: int, n: int) -> int:
    """The figure for n examples, from those for `_FEW` and `_MORE`."""
    return few + (n - _FEW) * (more - few)


def _extrapolated(few: Cost, more: Cost, n: int) -> Cost:
    names = ("forward", "back", "x", "y", "saved")
    return replace(few, **{name: _line(getattr(few, name), getattr(more, name), n) for name in names})


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _spread(tree: Any, specs: Any, layout: Layout) -> int:
    """Bytes of one device's part."""
    pairs = zip(specs_in(specs), jax.tree.leaves(tree), strict=True)
    return sum(_size(leaf) // share(spec, layout) for spec, leaf in pairs)


def _part(row: Cost, way: str | None, model: int) -> int:
    """FLOPs of one device: a layer by column or by row has its share, any other all."""
    return (row.forward + row.back) // (model if way in ("column", "row") else 1)


def _kept(found: Counted, place: Laid, model: int) -> int:
    """Bytes that the way back reads, each array once."""
    total = 0
    for (number, side), size in found.kept.items():
        inside = place.splits[number] if 0 <= number < len(place.splits) else (False, False)
        split = inside[1] if side == "y" else inside[0] and side.startswith("own")
        total += size // (model if split else 1)
    return total


def _sides(row: Cost, place: Laid, i: int, model: int) -> tuple[int, int]:
    """Bytes of a layer's input and output on one device, one repetition."""
    came, went = place.splits[i]
    return row.x // row.times // (model if came else 1), row.y // row.times // (model if went else 1)


def _working(rows: tuple[Cost, ...], place: Laid, model: int) -> int:
    """The most δ that are there at once: at the output of a layer and at its input."""
    return max((sum(_sides(row, place, i, model)) for i, row in enumerate(rows)), default=0)


def _moved(rows: tuple[Cost, ...], place: Laid, model: int) -> int:
    """Bytes read and written on the way forward and back, every array once for each layer that uses it."""
    found = 0
    for i, row in enumerate(rows):
        if isinstance(row.layer, _FUSED):
            continue
        x, y = (row.times * side for side in _sides(row, place, i, model))
        params = row.params // (model if place.ways[i] in ("column", "row") else 1)
        saved = row.saved // (model if place.splits[i][0] else 1)
        forward = x + params + y
        back = y + saved + params + ((x + params) if row.needs_delta else 0)
        found += forward + back
    return found
