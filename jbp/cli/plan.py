# ruff: noqa: RUF009 (option and argument declare fields)
"""`jbp plan`: what training would take on a mesh of accelerators, predicted; no device and no memory is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jbp import losses, own, planning
from jbp.arguments import as_count, listed
from jbp.cli import console, netspec
from jbp.cli.axes import read_mesh
from jbp.cli.curves import draw_efficiency
from jbp.cli.options import LOSSES, OPTIMIZERS, TrainOptions
from jbp.cli.parser import Command, option
from jbp.cli.training import make_optimizer
from jbp.planning import ACCELERATORS, Layout, Machine, Prediction, Work
from jbp.planning.accelerators import PRECISIONS
from jbp.planning.plan import COUNTS
from jbp.runs import to_json

_NET, _MESH, _ON, _OUT = "network and loss", "mesh and batch", "accelerator", "output"
SWEEPS = ("data", "best")
CLASSES = 10


@dataclass(frozen=True)
class Plan(Command):
    """Predict a step of training; calling it gives the predictions, one or a sweep of them.

    Raises: ValueError for options that are wrong by themselves.
    """

    net: str | None = option(
        None, "hidden layers as in jbp train, or a whole net of yours, FILE.py:NAME", _NET, metavar="LAYERS"
    )
    shape: str | None = option(None, "shape of one example, such as 784 or 224x224x3", _NET, metavar="SHAPE")
    outputs: int | None = option(None, "width of the output layer; a net of yours has its own", _NET, metavar="N",
                                 shown=f"{CLASSES}")  # fmt: skip
    tokens: bool = option(False, "the inputs are whole numbers, as an embedding takes them", _NET)
    loss: str = option("softmax_cross_entropy", ", ".join(LOSSES), _NET, choices=LOSSES, metavar="NAME")
    optimizer: str = option("momentum", ", ".join(OPTIMIZERS), _NET, choices=OPTIMIZERS, metavar="NAME")

    mesh: str | None = option(
        None, "how many devices along each axis: data, over which the batch is spread, and model, over which layers "
        "are", _MESH, metavar="AXES", shown="data=1",
    )  # fmt: skip
    shard_params: bool = option(False, "spread parameters and optimiser over the data axis too", _MESH)
    batch_size: int = option(1024, "examples per step", _MESH, metavar="N")
    per_device: bool = option(False, "the batch size is of each device of the data axis, and grows with them", _MESH)
    sweep: str | None = option(
        None, "1, 2, 4, … 1,024 devices: data spreads the batch over all, best takes the mesh with the shortest step "
        "that fits", _MESH, choices=SWEEPS, metavar="NAME", shown="the one mesh",
    )  # fmt: skip

    accelerator: str = option("h100", ", ".join(ACCELERATORS), _ON, choices=ACCELERATORS, metavar="NAME")
    precision: str = option(
        "default", "in which numbers float32 arrays are multiplied: float32, tf32, bfloat16, or JAX's default there",
        _ON, choices=PRECISIONS, metavar="NAME",
    )  # fmt: skip
    latency: float = option(1.0, "microseconds for one hop from device to device: an assumption", _ON, metavar="TIME")

    out: str | Path | None = option(None, "draw the efficiency of a sweep into a .png file", _OUT, metavar="FILE.png")
    json: bool = option(False, "print the predictions as JSON", _OUT)

    summary: ClassVar[str] = "predict memory, time and efficiency of training on 1 to 1,024 accelerators"
    epilog: ClassVar[
        str
    ] = """Nothing is measured and nothing of the net's size is allocated: figures come from shapes and from what the
makers publish. docs/plan.md says how.

examples:
  jbp plan --net "512 relu 512 relu" --shape 784 --mesh data=4,model=2
  jbp plan --net "8192 relu 8192 relu" --shape 4096 --batch-size 65536 --sweep best --out efficiency.png
  jbp plan --net my_net.py:net --shape 224x224x3 --batch-size 64 --per-device --sweep data --accelerator tpu-v5p
"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.net is None or self.shape is None:
            missing = "net" if self.net is None else "shape"
            raise ValueError(f"expected {missing}: --net with layers and --shape of one example say what is planned")
        as_count(self.batch_size, "batch_size")
        if self.outputs is not None:
            as_count(self.outputs, "outputs")
        if self.outputs is not None and own.is_named(self.net):
            raise ValueError(f"outputs is for a line of layers: leave it out, for {self.net} is a whole net")
        if self.mesh is not None and self.sweep is not None:
            raise ValueError("expected one of mesh and sweep, which goes through meshes of its own")
        if self.mesh is not None:
            read_mesh(self.mesh)
        if self.per_device and self.sweep == "best":
            raise ValueError(
                "per_device goes with a mesh or with --sweep data: with best the data axis is not known yet"
            )
        if self.out is not None and self.sweep is None:
            raise ValueError("out draws a sweep: add --sweep data or --sweep best")
        if self.out is not None and Path(self.out).suffix != ".png":
            raise ValueError(f"out must be a name that ends in .png, but is {str(self.out)!r}")
        self.machine  # noqa: B018 (checks it)

    @property
    def machine(self) -> Machine:
        """The accelerator, as it is used."""
        if not 0 <= self.latency < math.inf:
            raise ValueError(f"latency must be a finite time of at least 0 microseconds, but is {self.latency!r}")
        return Machine(ACCELERATORS[self.accelerator], self.precision, self.latency * 1e-6)

    def __call__(self) -> list[Prediction]:
        """Print what is predicted, and draw it.

        Raises: ValueError for what does not fit together; NotImplementedError for what has no formula, naming it.
        """
        work = Work(*self._net_and_shape(), tokens=self.tokens)
        one = self._predict(work, Layout())
        notes: list[str] = []
        if self.sweep is None:
            axes = read_mesh(self.mesh or "data=1")
            found = [self._predict(work, Layout(**axes, shard_params=self.shard_params))]
        else:
            found, notes = self._swept(work)
        if self.json:
            print(to_json(planned(self, work, one, found) | {"left_out": notes}))
        elif self.sweep is None:
            console.print_plan(self, work, one, found[0])
        else:
            console.print_sweep(self, work, one, found, notes)
        if self.out is not None:
            points = [(p.layout.devices, p.efficiency(one), p.fits) for p in found]
            note = draw_efficiency(Path(self.out), points, self.machine.accelerator.name)
            if not self.json:
                print(note or f"drawn: {self.out}")
        return found

    def _net_and_shape(self) -> tuple[Any, ...]:
        """Net, loss, optimiser and shape."""
        assert self.net is not None and self.shape is not None
        sizes = self.shape.replace(" ", "").replace(",", "x").split("x")
        if not all(size.isdecimal() and int(size) for size in sizes):
            raise ValueError(f"shape must be whole numbers such as 784 or 224x224x3, but is {self.shape!r}")
        shape = tuple(map(int, sizes))
        mine = own.net(self.net) if own.is_named(self.net) else None
        net = mine or netspec.build(self.net, shape, self.outputs or CLASSES)
        return net, getattr(losses, self.loss), make_optimizer(TrainOptions(optimizer=self.optimizer), 1), shape

    def _predict(self, work: Work, layout: Layout) -> Prediction:
        n = self.batch_size * (layout.data if self.per_device else 1)
        return work.predict(n, layout, self.machine)

    def _swept(self, work: Work) -> tuple[list[Prediction], list[str]]:
        """A prediction for each number of devices that has a mesh, and in words what has none."""
        if self.sweep == "data":
            counts = [n for n in COUNTS if self.per_device or self.batch_size % n == 0]
            found = [self._predict(work, Layout(n, shard_params=self.shard_params)) for n in counts]
            without = [f"{n:,}" for n in COUNTS if n not in counts]
            left = f"a batch of {self.batch_size:,} is not divided by {listed(without)} devices"
            return found, [left] if without else []
        tried = [planning.meshes(work, self.batch_size, n, self.machine, self.shard_params) for n in COUNTS]
        found = [one.best for one in tried if one.best is not None]
        unknown = {mesh: error for one in tried for mesh, error in one.refused.items()
                   if isinstance(error, NotImplementedError)}  # fmt: skip
        first = next(iter(unknown), None)
        notes = [] if first is None else [f"left out {len(unknown)} meshes, such as {first}: {unknown[first]}"]
        without = [f"{n:,}" for n, one in zip(COUNTS, tried, strict=True) if one.best is None]
        return found, [*notes, f"no mesh of {listed(without)} devices divides batch and widths"] if without else notes


def planned(options: Plan, work: Work, one: Prediction, found: list[Prediction]) -> dict[str, Any]:
    """The predictions as JSON has them."""
    machine = options.machine
    accelerator = machine.accelerator
    return {
        "kind": "prediction, nothing was measured",
        "net": options.net,
        "parameters": work.parameters,
        "optimizer": options.optimizer,
        "loss": options.loss,
        "accelerator": {
            "name": accelerator.name,
            "precision": machine.multiplied_in,
            "peak_flops_per_second": machine.peak,
            "memory_bytes": accelerator.memory,
            "memory_bytes_per_second": accelerator.bandwidth,
            "link_bytes_per_second": accelerator.link,
            "neighbours": accelerator.neighbours,
            "network_bytes_per_second": accelerator.network,
            "latency_seconds": machine.latency,
            "sources": list(accelerator.sources),
        },
        "predictions": [
            {
                "devices": p.layout.devices,
                "mesh": {"data": p.layout.data, "model": p.layout.model},
                "shard_params": p.layout.shard_params,
                "batch_size": p.batch_size,
                "flops_per_device": p.flops,
                "bytes_moved_per_device": p.moved,
                "memory_per_device": p.memory | {"all": p.bytes},
                "fits": p.fits,
                "collectives": [
                    {
                        "what": c.what, "kind": c.kind, "axis": c.axis, "devices": c.devices, "count": c.count,
                        "bytes": c.bytes, "seconds": c.seconds(p.layout, machine),
                    }
                    for c in p.collectives
                ],
                "seconds": {
                    "arithmetic": p.arithmetic, "memory": p.traffic, "collectives": p.sending, "step": p.seconds,
                },
                "examples_per_second": p.examples_per_second,
                "efficiency": p.efficiency(one),
            }
            for p in found
        ],
    }  # fmt: skip
