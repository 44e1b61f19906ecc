"""jbp on an accelerator: right against autodiff there, and how long a step, norms, clipping and an epoch take.

Correct first: gradients against `jax.grad` and norms against `vmap(grad)`, on the same device in float32 with matrix
products and convolutions of the highest precision; the figure is the largest ‖ours − theirs‖ / ‖theirs‖ of a parameter.
Then times, at the precision that JAX takes there by default: a gradient step beside autodiff and, if it is installed,
PyTorch (eager, TF32 allowed for both, channels last) on the same device; norms and clipping beside `vmap(grad)` and in
plain gradients; and a whole epoch of `jbp.fit` beside a scanned epoch of plain JAX and PyTorch's loop, on images made
up in the size of MNIST. Contenders take turns; given are medians with their 5 to 95 % range.

    python experiments/bench/accelerator.py [--quick] [--minutes 8] [--out FILE.json]

Every row is written as soon as it is there. What no time is left for is named; so is what fails, and then the exit
status is 1. With --quick, small and on any device, to see that the script works.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory of the same device
sys.path[:0] = [str(path) for path in Path(__file__).resolve().parents[:3]]

import common  # noqa: E402
import harness  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import models  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import spatial  # noqa: E402
from harness import Row, counted, timed  # noqa: E402

import jbp  # noqa: E402
from jbp import stats  # noqa: E402

TITLE = "On an accelerator"
CLIP = 1.0
RATE, MOMENTUM = 0.05, 0.9
Part = tuple[str, Callable[[], Row]]
"""The name of a row, and what measures it."""


class Torch:
    """PyTorch on the same device; `there` is False if it is not installed or sees none."""

    def __init__(self) -> None:
        self.there = False
        try:
            import torch  # type: ignore[import-not-found]
        except ImportError:
            return
        self.torch: Any = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.there = self.device == "cuda" or jax.default_backend() == "cpu"
        if self.there:
            torch.set_float32_matmul_precision("high")  # TF32 in matrix products, as it is in convolutions already

    def block_until_ready(self) -> None:
        """Wait for the device, when it is handed to `jax.block_until_ready`."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def model(self, name: str, params: Any) -> Any:
        """The net with jbp's parameters, on the device."""
        import spatial_torch

        model = spatial_torch.filled(spatial_torch.NETS[name](), spatial.leaves(params))
        return model.to(self.device, memory_format=self.torch.channels_last)

    def data(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Images and labels, on the device."""
        import spatial_torch

        images = spatial_torch.images(x).to(self.device, memory_format=self.torch.channels_last)
        return images, self.torch.from_numpy(np.array(y)).long().to(self.device)

    def step(self, name: str, args: tuple[Any, Any, Any]) -> tuple[float, Callable[[], Any]]:
        """Its loss, and a gradient step."""
        model, loss = self.model(name, args[0]), self.torch.nn.CrossEntropyLoss()
        x, y = self.data(*args[1:])

        def run() -> Any:
            model.zero_grad(set_to_none=True)
            loss(model(x), y).backward()
            return self

        return float(loss(model(x), y).detach()), run


def built(programs: dict[str, Callable[..., Any]], args: tuple[Any, ...]) -> dict[str, Any]:
    """The programs for these arguments, compiled at the same time: most of what this script takes is that."""
    lowered = [jax.jit(program).lower(*args) for program in programs.values()]
    with ThreadPoolExecutor() as pool:
        return dict(zip(programs, pool.map(lambda one: one.compile(), lowered), strict=True))


def distance(ours: Any, theirs: Any) -> float:
    """The largest relative distance of two leaves."""

    def one(a: Any, b: Any) -> float:
        return float(np.linalg.norm(np.ravel(a - b)) / max(float(np.linalg.norm(np.ravel(b))), 1e-30))

    pairs = zip(*(jax.tree.leaves(jax.tree.map(lambda a: np.asarray(a, np.float64), t)) for t in (ours, theirs)),
                strict=True)  # fmt: skip
    found = [one(a, b) for a, b in pairs]
    assert np.isfinite(found).all(), found
    return max(found)


def by_vmap(case: Any) -> Callable[..., Any]:
    """(params, x, y) -> all per-example gradients, in plain JAX."""

    def error(params: Any, x: Any, y: Any) -> Any:
        return case.plain(params, x[None], y[None])

    return jax.vmap(jax.grad(error), (None, 0, 0))


def squares(grads: Any) -> Any:
    """‖gₙ‖² of per-example gradients."""
    return sum(jnp.square(g).reshape(len(g), -1).sum(1) for g in jax.tree.leaves(grads))


def pairs_of(case: Any) -> Callable[..., Any]:
    """(params, x, y) -> the pairs of one backward pass."""
    return lambda *args: jbp.value_and_pairs(case.net, case.loss, *args)[1]


def quantities(case: Any) -> dict[str, Callable[..., Any]]:
    """Norms and clipped sums, jbp's and those of `vmap(grad)`."""
    pairs, each = pairs_of(case), by_vmap(case)

    def clipped(*args: Any) -> Any:
        grads = each(*args)
        factors = jnp.minimum(1, CLIP / jnp.sqrt(squares(grads)))
        return jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), grads)

    def with_gradient(*args: Any) -> Any:
        found = pairs(*args)
        return stats.norms(found), jax.tree.map(lambda pair: pair.total(), found, is_leaf=jbp.pairs.is_pair)

    return {
        "jbp, norms": lambda *args: stats.norms(pairs(*args)),
        "jbp, norms and gradient": with_gradient,
        "jbp, clipped": lambda *args: stats.clipped(pairs(*args), CLIP),
        "vmap(grad), norms": lambda *args: jnp.sqrt(squares(each(*args))),
        "vmap(grad), clipped": clipped,
    }


def right(case: Any) -> Row:
    """Gradient, norms and clipped sums against autodiff at the highest precision."""
    with jax.default_matmul_precision("highest"):
        args = case.arguments()
        alone = not getattr(case, "training", None)  # else examples are coupled, and none has a gradient of its own
        programs = {"jbp": case.ours(), "autodiff": jax.value_and_grad(case.plain)}
        programs |= quantities(case) if alone else {}
        found = {name: program(*args) for name, program in built(programs, args).items()}
    figures = [
        counted("loss", distance(found["jbp"][0], found["autodiff"][0]), 1e-5),
        counted("gradient", distance(found["jbp"][1], found["autodiff"][1]), 1e-4),
    ]
    for what, target in (("norms", 1e-4), ("clipped", 1e-3)) if alone else ():
        figures.append(counted(what, distance(found[f"jbp, {what}"], found[f"vmap(grad), {what}"]), target))
    if alone:
        norms, gradient = found["jbp, norms and gradient"]
        ours = norms, jax.tree.map(lambda g: g / case.batch, gradient)
        figures.append(counted("both", distance(ours, (found["vmap(grad), norms"], found["autodiff"][1])), 1e-4))
    return Row(f"right: {case.name}", tuple(figures), {"batch": case.batch})


def step(case: Any, rounds: int, torch: Torch, name: str = "") -> Row:
    """One gradient step, jbp over autodiff and PyTorch over jbp."""
    args = case.arguments()
    ready = built({"jbp": case.ours(), "autodiff": jax.value_and_grad(case.plain)}, args)
    values = {way: float(program(*args)[0]) for way, program in ready.items()}
    harness.same(values["jbp"], values["autodiff"], case.name, 1e-2)  # both at the default precision
    runs: dict[str, Callable[[], Any]] = {way: (lambda p=program: p(*args)) for way, program in ready.items()}
    if name and torch.there:
        value, runs["PyTorch"] = torch.step(name, args)
        harness.same(values["jbp"], value, f"{case.name}, PyTorch", 1e-2)
    times = harness.in_turn(runs, rounds)
    figures = [
        timed("time over autodiff", times["jbp"] / times["autodiff"], 1.0),
        timed("PyTorch over jbp", times["PyTorch"] / times["jbp"]) if "PyTorch" in times
        else harness.missing("PyTorch over jbp", "missing" if name else "not compared"),
        timed("jbp, ms", 1e3 * times["jbp"]),
        timed("autodiff, ms", 1e3 * times["autodiff"]),
        counted("temporary bytes", harness.temporaries(ready["jbp"]) / max(harness.temporaries(ready["autodiff"]), 1)),
        counted("instructions", harness.program_size(ready["jbp"]) / harness.program_size(ready["autodiff"])),
    ]  # fmt: skip
    return Row(f"step: {case.name}", tuple(figures), {"rounds": rounds, "batch": case.batch})


def per_example(case: Any, rounds: int) -> Row:
    """Norms and clipping beside `vmap(grad)` and in plain gradients."""
    args = case.arguments()
    ready = built({"plain": case.ours()} | quantities(case), args)
    times = harness.in_turn({name: (lambda p=program: p(*args)) for name, program in ready.items()}, rounds)
    figures = []
    for what in ("norms", "norms and gradient", "clipped"):
        ours = times[f"jbp, {what}"]
        figures.append(timed(f"{what}, in plain gradients", ours / times["plain"]))
        if what != "norms and gradient":
            lean = harness.temporaries(ready[f"vmap(grad), {what}"]) / harness.temporaries(ready[f"jbp, {what}"])
            figures.append(timed(f"{what}: vmap(grad) over jbp", times[f"vmap(grad), {what}"] / ours, 1.0, "higher"))
            figures.append(counted(f"{what}: vmap(grad) over jbp, bytes", lean, better="higher"))
    figures.append(timed("jbp, norms, ms", 1e3 * times["jbp, norms"]))
    return Row(f"per example: {case.name}", tuple(figures), {"rounds": rounds, "batch": case.batch})


def epoch(case: Any, n: int, rounds: int, torch: Torch, name: str) -> Row:
    """A whole epoch of training, from Python to Python, in seconds; all in the order that `fit` draws with seed 0."""
    params, _, _ = case.arguments()
    steps = n // case.batch
    x = jax.random.normal(jax.random.key(2), (steps * case.batch, *case.shape))
    y = jnp.arange(len(x)) % case.classes
    optimizer, rule = jbp.optim.sgd(RATE, momentum=MOMENTUM), optax.sgd(RATE, momentum=MOMENTUM)
    key = jax.random.fold_in(jax.random.split(jax.random.key(0))[1], 1)

    def drawn(key: Any) -> Any:
        return jax.random.permutation(jax.random.split(key)[0], len(x)).reshape(steps, case.batch)

    def of_jbp() -> float:
        fitted = jbp.fit(case.net, case.loss, optimizer, (x, y), epochs=1, batch_size=case.batch, params=params, seed=0)
        return float(fitted.history[-1]["train_loss"])

    @jax.jit
    def scanned(params: Any, state: Any, key: Any) -> Any:
        def take(carry: Any, rows: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(case.plain)(params, x[rows], y[rows])
            updates, state = rule.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(take, (params, state), drawn(key))[1].mean()

    runs = {"jbp": of_jbp, "plain JAX": lambda: float(scanned(params, rule.init(params), key))}
    if torch.there:
        images, labels = torch.data(x, y)
        loss = torch.torch.nn.CrossEntropyLoss()
        order = torch.torch.from_numpy(np.array(drawn(key))).long().to(torch.device)

        def of_torch() -> float:
            model = torch.model(name, params)
            taken = torch.torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
            torch.torch.randperm(len(images), device=torch.device)  # spent, and the common order taken
            values = []
            for rows in order:
                taken.zero_grad(set_to_none=True)
                value = loss(model(images[rows]), labels[rows])
                value.backward()
                taken.step()
                values.append(value.detach())
            return float(torch.torch.stack(values).mean())

        runs["PyTorch"] = of_torch
    first = {way: run() for way, run in runs.items()}
    for way, value in first.items():
        harness.same(first["jbp"], value, f"an epoch of {case.name}, {way}", 2e-2)  # at the default precision
    times = harness.in_turn(runs, rounds, warm=1)
    figures = [timed("jbp, seconds", times["jbp"])]
    for way in ("plain JAX", "PyTorch"):
        found = f"{way} over jbp"
        figures.append(timed(found, times[way] / times["jbp"]) if way in times else harness.missing(found))
    facts = {"rounds": rounds, "examples": len(x), "batch": case.batch, "loss": first}
    return Row(f"epoch: {case.name}, {len(x)} images", tuple(figures), facts)


def parts(quick: bool, torch: Torch) -> Iterator[Part]:
    """Every row, the most important first."""
    small = [models.mlp((64, 32, 10), 8), spatial.lenet(8), spatial.repeated(8, 2, 8, 8)]
    more = [
        models.mlp((784, 512, 512, 10), 64), spatial.private(16), spatial.resnet20(8, blocks=1),
        spatial.separable(8), spatial.one_dimensional(8), spatial.lenet(16, jbp.tanh, "mean"), spatial.wide(8),
        models.residual_stack(8, 64, 16),
    ]  # fmt: skip
    for case in small if not quick else small[1:2]:
        yield f"right: {case.name}", lambda c=case: right(c)
    if quick:
        case = spatial.lenet(8)
        yield f"step: {case.name}", lambda: step(case, 3, torch, "LeNet-5")
        yield f"per example: {case.name}", lambda: per_example(case, 3)
        yield f"epoch: {case.name}", lambda: epoch(case, 32, 2, torch, "LeNet-5")
        return
    for case in more:
        yield f"right: {case.name}", lambda c=case: right(c)
    coupled = spatial.resnet20(8, "batch", blocks=1)
    yield f"right: {coupled.name}", lambda: right(coupled)
    steps = [
        *((models.mlp((784, 512, 512, 10), 128), ""), (spatial.lenet(128), "LeNet-5")),
        *(
            (spatial.resnet20(128), "ResNet-20"),
            (spatial.resnet20(1024), "ResNet-20"),
            (spatial.lenet(1024), "LeNet-5"),
        ),
        *((spatial.resnet20(512, "batch"), "ResNet-20, batch norm"), (models.mlp((784, 2048, 2048, 10), 512), "")),
        *((spatial.repeated(256), ""), (spatial.resnet20(512), "ResNet-20")),
    ]
    read = [models.mlp((784, 512, 512, 10), 1024), spatial.lenet(256), spatial.private(256), spatial.wide(64),
            spatial.resnet20(64, "none")]  # fmt: skip
    for case, name in steps[:3]:
        yield f"step: {case.name}", lambda c=case, n=name: step(c, 20, torch, n)
    for case in read[:3]:
        yield f"per example: {case.name}", lambda c=case: per_example(c, 20)
    yield "epoch: LeNet-5", lambda: epoch(spatial.lenet(128), 60_000, 5, torch, "LeNet-5")
    for case, name in steps[3:]:
        yield f"step: {case.name}", lambda c=case, n=name: step(c, 20, torch, n)
    for case in read[3:]:
        yield f"per example: {case.name}", lambda c=case: per_example(c, 20)


def plot(rows: list[Row]) -> None:
    """No picture."""
    return


def main(arguments: list[str] | None = None) -> int:
    """Run it; 1 if a part failed or a gradient is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small, on any device")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no part after so long (default: 8)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.json", help="where to write (default: nowhere)")
    options = parser.parse_args(arguments)
    began, torch, rows, failed = time.perf_counter(), Torch(), [], []
    if jax.default_backend() == "cpu" and not options.quick:
        parser.error("no accelerator here (with its own JAX plugin installed?); --quick runs on the CPU")

    def write() -> None:
        if options.out is not None:
            common.write(options.out, {
                "section": "accelerator", "size": "quick" if options.quick else "bench",
                "date": datetime.date.today().isoformat(), "seconds": round(time.perf_counter() - began, 1),
                "machine": harness.machine(), "failed": failed, "rows": harness.to_json(rows),
            })  # fmt: skip

    for name, measure in parts(options.quick, torch):
        spent = time.perf_counter() - began
        if spent > 60 * options.minutes:
            rows.append(Row(name, (harness.missing("jbp, ms", "no time was left"),)))
            continue
        print(f"{spent:5.0f} s  {name}", flush=True)
        try:
            rows.append(measure())
            print("         " + ", ".join(f"{f.name} {f}" for f in rows[-1].figures), flush=True)
        except Exception as error:
            traceback.print_exc()
            failed.append(name)
            rows.append(Row(name, (harness.missing("jbp, ms", f"failed: {type(error).__name__}"),)))
        write()
    write()
    wrong = [row.name for row in rows if row.name.startswith("right: ") and any(f.met is False for f in row.figures)]
    print("\n".join([f"wrong: {name}" for name in wrong] + [f"failed: {name}" for name in failed]) or "all is right")
    print(f"{time.perf_counter() - began:.0f} s on {jax.devices()[0].device_kind}", flush=True)
    return int(bool(wrong or failed))


if __name__ == "__main__":
    sys.exit(main())
