"""What the devices of a mesh send each other in one step, by formula.

    gradient     if D > 1    one all-reduce over the data axis of the loss and of each device's part of the gradient
    moments      if D > 1    of batch normalisation: two sums of each channel forward, and two back
    activations  if M > 1    of each layer by row its output, on the way back of each by column but the first its input
    loss         if M > 1 and the last layer is by column, softmax cross entropy: 5 numbers of each example
    parameters   if they are spread over the data axis: gathered once, and the gradient left scattered

With R bytes of the result on each of K devices a ring sends 2(K−1)/K·R from each to all-reduce, (K−1)/K·R to gather,
and (K−1)·R to reduce and scatter. Its first number would be there after as many hops as it has devices; libraries reach
the same bytes by trees, after 2·log₂K hops, or log₂K, and so the latency is counted.
Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jbp.layers import BatchNorm
from jbp.losses import Loss, SoftmaxCrossEntropy
from jbp.planning.accelerators import Machine
from jbp.planning.layout import Laid, Layout, share, specs_in
from jbp.planning.walk import Cost
from jbp.sharding.derived import over_data

KINDS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}
"""How often a ring goes round. `tests/test_plan_meshes.py` holds the bytes to those of compiled programs."""


@dataclass(frozen=True)
class Collective:
    """What is sent in one step under one heading: `count` times, results of `bytes` in all on each device."""

    what: str
    kind: str
    axis: str
    devices: int
    count: int
    bytes: int

    def seconds(self, layout: Layout, machine: Machine) -> float:
        """Bytes as a ring sends them, latency as a tree has it; nothing is taken to go on beside it."""
        turns, k = KINDS[self.kind], self.devices
        stride = layout.model if self.axis == "data" else 1
        part = self.bytes if self.kind == "reduce-scatter" else self.bytes / k
        hops = self.count * math.ceil(math.log2(k))
        return turns * ((k - 1) * part / machine.reach(k, stride) + hops * machine.latency)


def specs_of(laid: Laid, params: Any, layout: Layout) -> Any:
    """A spec for each parameter, as `jbp.Sharding` makes them."""
    if not layout.shard_params or layout.data == 1:
        return laid.specs
    flat, structure = jax.tree.flatten(params)
    pairs = zip(specs_in(laid.specs), flat, strict=True)
    return structure.unflatten([over_data(spec, np.shape(a), layout.data, "data") for spec, a in pairs])


def collectives(
    rows: tuple[Cost, ...], laid: Laid, params: Any, layout: Layout, n: int, loss: Loss
) -> tuple[Collective, ...]:
    """Of one step of n examples; `rows` are of the n/D that each device has.

    Raises:
        NotImplementedError: for a layer that on this mesh has no formula, naming it.
    """
    found = []
    if layout.shard_params and layout.devices > layout.data > 1:
        raise NotImplementedError(
            f"there are no formulas for shard_params over {layout}: the compiler gathers more than the parts; take one "
            "of the two axes, or leave shard_params out"
        )
    if layout.data > 1:
        constant = sum(row.constant for row in rows)
        found += _gradient(laid, params, layout, constant)
        coupled = [row for row in rows if row.layer.couples_batch]
        for row in coupled:
            plain = isinstance(row.layer, BatchNorm) and row.times == 1 and layout == Layout(layout.data)
            if not plain:
                raise NotImplementedError(
                    f"there are no formulas for {row.layer!r} at {row.path}, whose examples are coupled, over {layout}"
                    f"{', with shard_params' if layout.shard_params else ''}"
                    f"{', inside repeat' if row.times > 1 else ''}"
                )
        if coupled:
            found.append(Collective("moments", "all-reduce", "data", layout.data, 4 * len(coupled), 2 * constant))
    if layout.model > 1:
        found += _activations(rows, laid, layout)
        if laid.splits[-1][1]:
            if not isinstance(loss, SoftmaxCrossEntropy):
                raise NotImplementedError(
                    f"there are no formulas for {loss!r} of outputs that are split over the axis model: take "
                    "softmax_cross_entropy, or a mesh without the axis"
                )
            rows_of_loss = n // layout.data * math.prod(rows[-1].shape[:-1])
            found.append(Collective("loss", "all-reduce", "model", layout.model, 2, 5 * _number() * rows_of_loss))
    return tuple(found)


def _gradient(laid: Laid, params: Any, layout: Layout, constant: int) -> list[Collective]:
    """The sum over the data axis; of running moments, `constant` bytes, there is none."""
    summed, gathered, count, d = _number() - constant, 0, 0, layout.data
    for spec, leaf in zip(specs_in(specs_of(laid, params, layout)), jax.tree.leaves(params), strict=True):
        size = leaf.size * leaf.dtype.itemsize
        if "data" in tuple(spec):
            gathered, count = gathered + size * d // share(spec, layout), count + 1
        else:
            summed += size // share(spec, layout)
    if not count:
        return [Collective("gradient and loss", "all-reduce", "data", d, 1, summed)]
    # As `jbp.sharding.scatter` does it: what stays whole goes along, while it is little.
    along = d * summed <= gathered
    found = [] if along else [Collective("the rest, and loss", "all-reduce", "data", d, 1, summed)]
    part = gathered // d + (summed if along else 0)
    found.append(Collective("gradient, in parts", "reduce-scatter", "data", d, 1, part))
    return [*found, Collective("parameters", "all-gather", "data", d, count, gathered)]


def _number() -> int:
    """Bytes of the loss, and of each number that it is made of."""
    return jax.dtypes.canonicalize_dtype(float).itemsize


def _activations(rows: tuple[Cost, ...], laid: Laid, layout: Layout) -> list[Collective]:
    """The sums over the model axis."""
    count = size = 0
    for row, way in zip(rows, laid.ways, strict=True):
        if way == "row":
            count, size = count + row.times, size + row.y
        elif way == "column" and row.needs_delta:
            count, size = count + row.times, size + row.x
    return [Collective("activations", "all-reduce", "model", layout.model, count, size)] if count else []
