"""Where the time of a convolutional step goes, layer by layer: jbp beside PyTorch.

Every layer of LeNet-5, and every different one of ResNet-20, apart: its forward pass, its δ_x, and the gradient of its
parameters, on inputs of its own shapes. jbp's run inside a loop over four batches, as every step of training does;
PyTorch's are `torch.autograd.grad` of one module, with respect to the input or the parameters. What XLA fuses across
layers in a whole step (a bias and a relu into what comes before) counts twice here, and what the loop copies in counts
too: the parts show where the difference is, not what the whole takes, which is in the section on training.

    python experiments/bench/suite.py conv_layers     writes experiments/results/bench_conv_layers.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import harness
import jax
import matplotlib.pyplot as plt
from harness import Figure, Row, Size, timed

import jbp
from jbp.pairs import is_pair

TITLE = "Where a convolutional step's time goes, layer by layer"
LOOP = 4
PARTS = ("forward", "δ_x", "gradient")


class Part(NamedTuple):
    """A layer, the same in PyTorch, the shape of its input, and how often the net has it."""

    net: str
    layer: Any
    module: Callable[[Any], Any]
    """(torch) -> the module."""
    shape: tuple[int, ...]
    times: int = 1


def conv(
    net: str, side: int, i: int, o: int, size: int = 3, stride: int = 1, same: bool = True, times: int = 1
) -> Part:
    """A square convolution."""
    pad = size // 2 if same else 0
    layer = jbp.Conv(o, (size, size), stride, ((pad, pad), (pad, pad)))
    return Part(net, layer, lambda torch: torch.nn.Conv2d(i, o, size, stride, pad), (side, side, i), times)


def parts() -> list[Part]:
    """Of both nets, in their order."""
    five, twenty = "LeNet-5", "ResNet-20"

    def relu(net: str, *shape: int, times: int = 1) -> Part:
        return Part(net, jbp.relu, lambda torch: torch.nn.ReLU(), shape, times)

    def pool(*shape: int) -> Part:
        return Part(five, jbp.MaxPool((2, 2)), lambda torch: torch.nn.MaxPool2d(2), shape)

    def dense(net: str, i: int, o: int) -> Part:
        return Part(net, jbp.Dense(o), lambda torch: torch.nn.Linear(i, o), (i,))

    def norm(side: int, width: int, times: int) -> Part:
        return Part(twenty, jbp.GroupNorm(width // 8), lambda torch: torch.nn.GroupNorm(width // 8, width),
                    (side, side, width), times)  # fmt: skip

    found = [
        *(conv(five, 28, 1, 6, 5), relu(five, 28, 28, 6), pool(28, 28, 6)),
        *(conv(five, 14, 6, 16, 5, same=False), relu(five, 10, 10, 16), pool(10, 10, 16)),
        *(dense(five, 400, 120), relu(five, 120), dense(five, 120, 84), relu(five, 84), dense(five, 84, 10)),
        conv(twenty, 32, 3, 16),
    ]
    for side, width, before in ((32, 16, 16), (16, 32, 16), (8, 64, 32)):
        strided = width != before
        if strided:
            found += [conv(twenty, 2 * side, before, width, stride=2), conv(twenty, 2 * side, before, width, 1, 2)]
        found += [conv(twenty, side, width, width, times=6 - strided), norm(side, width, 7),
                  relu(twenty, side, side, width, times=6 + (not strided))]  # fmt: skip
    return found


def of_jbp(part: Part, batch: int) -> dict[str, Callable[[], Any]]:
    """Each part of the work, in a loop over `LOOP` batches."""
    params, shape = part.layer.init(jax.random.key(0), part.shape)
    xs = jax.random.normal(jax.random.key(1), (LOOP, batch, *part.shape))
    deltas = jax.random.normal(jax.random.key(2), (LOOP, batch, *shape))

    def one(x: Any) -> Any:
        return part.layer.forward(params, x, None)

    def back(saved: Any, delta: Any) -> Any:
        return jax.vmap(lambda saved, delta: part.layer.backward(params, saved, delta))(saved, delta)

    def gradient(saved: Any, delta: Any) -> Any:
        return jax.tree.map(lambda pair: pair.total(), back(saved, delta)[1], is_leaf=is_pair)

    saved = jax.jit(jax.vmap(jax.vmap(lambda x: one(x)[1])))(xs)
    of = {
        "forward": (lambda x: jax.vmap(one)(x)[0], (xs,)),
        "δ_x": (lambda saved, delta: back(saved, delta)[0], (saved, deltas)),
        "gradient": (gradient, (saved, deltas)),
    }
    runs = {}
    for name in of if jax.tree.leaves(params) else ("forward", "δ_x"):
        function, args = of[name]
        program = jax.jit(lambda args, f=function: jax.lax.scan(lambda _, now: (None, f(*now)), None, args)[1])
        runs[name] = lambda p=program, a=args: p(a)
    return runs


def of_torch(part: Part, batch: int) -> dict[str, Callable[[], Any]]:
    """The same, one batch after another."""
    import torch  # type: ignore[import-not-found]

    module = part.module(torch)
    shape = (part.shape[-1], *part.shape[:-1])
    xs = [torch.randn(batch, *shape, requires_grad=True) for _ in range(LOOP)]
    outs = [module(x) for x in xs]
    deltas = [torch.randn_like(y) for y in outs]
    weights = list(module.parameters())

    def forward() -> None:
        with torch.no_grad():
            for x in xs:
                module(x)

    def backward(of: Callable[[Any], Any]) -> Callable[[], None]:
        def run() -> None:
            for x, y, delta in zip(xs, outs, deltas, strict=True):
                torch.autograd.grad(y, of(x), delta, retain_graph=True)

        return run

    runs = {"forward": forward, "δ_x": backward(lambda x: x)}
    return runs | ({"gradient": backward(lambda x: weights)} if weights else {})


def measure(part: Part, batch: int, rounds: int) -> Row:
    """The figures of one layer, in milliseconds a batch."""
    runs = {("jbp", name): run for name, run in of_jbp(part, batch).items()}
    if harness.has("torch"):
        runs |= {("PyTorch", name): run for name, run in of_torch(part, batch).items()}
    times = harness.in_turn({f"{way} {name}": run for (way, name), run in runs.items()}, rounds)
    figures: list[Figure] = []
    for name in PARTS:
        for way in ("jbp", "PyTorch"):
            label = f"{way}, {name}, ms"
            found = times.get(f"{way} {name}")
            lacks = "none" if (("jbp", name) not in runs) else "missing"
            figures.append(timed(label, 1e3 * found / LOOP) if found is not None else harness.missing(label, lacks))
    shape = " × ".join(map(str, part.shape))
    often = f", {part.times} times" if part.times > 1 else ""
    facts = {"rounds": rounds, "batch": batch, "times": part.times, "net": part.net}
    return Row(f"{part.net}: {part.layer!r} on {shape}{often}", tuple(figures), facts)


def run(size: Size) -> list[Row]:
    """Every layer at batch 64, as the nets are trained."""
    if size == "quick":
        return [measure(part, 4, 3) for part in parts()[:3]]
    return [measure(part, 64, 15) for part in harness.progress(parts(), TITLE)]


def notes(rows: list[Row]) -> list[str]:
    """The sums of the parts, by net."""
    lines = []
    for net in dict.fromkeys(row.facts["net"] for row in rows):
        chosen = [row for row in rows if row.facts["net"] == net]
        sums = {way: {name: sum((row[f"{way}, {name}, ms"].value or 0.0) * row.facts["times"] for row in chosen)
                      for name in PARTS} for way in ("jbp", "PyTorch")}  # fmt: skip
        if not all(of["forward"] for of in sums.values()):
            continue
        words = ", ".join(f"{name} {sums['jbp'][name]:.2f} against {sums['PyTorch'][name]:.2f}" for name in PARTS)
        share = sum(sums["jbp"].values()) / sum(sums["PyTorch"].values())
        lines.append(f"- {net}, the sum of its parts, ms, jbp against PyTorch: {words}; all {share:.2f} of PyTorch's")
    return lines


def plot(rows: list[Row]) -> Any:
    """The parts of each layer, stacked."""
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.2))
    for i, row in enumerate(rows):
        for j, way in enumerate(("jbp", "PyTorch")):
            left = 0.0
            for k, name in enumerate(PARTS):
                width = (row[f"{way}, {name}, ms"].value or 0.0) * row.facts["times"]
                axes.barh(i + 0.4 * j - 0.2, width, 0.38, left=left, color=f"C{k}", alpha=1 - 0.5 * j,
                          label=f"{way}, {name}" if not i else None)  # fmt: skip
                left += width
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a batch of 64, upper bar jbp, lower bar PyTorch")
    axes.legend(frameon=False, fontsize=9)
    return figure
