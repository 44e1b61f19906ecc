"""What BackPACK and Opacus take for per-example quantities, in multiples of PyTorch's own plain step; prints JSON.

A process of its own, so that PyTorch's threads are not in JAX's way:

    python per_example_torch.py BATCH ROUNDS [NET QUANTITY,…]

NET is 784-512-512-10 or one of spatial_torch.py; quantities are norms, both (norms and the gradient, which comes with
them), clipped and variance. Of Opacus, norms and clipping are by ghost clipping; "Opacus hooks" has them from its
per-sample gradients, and is run for the convolutional nets.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import spatial_torch
import torch  # type: ignore[import-not-found]

WIDTHS = (784, 512, 512, 10)
CLIP = 1.0
Reads = dict[str, Callable[[], Any]]


def dense() -> Any:
    """784-512-512-10."""
    layers = [part for i, o in pairwise(WIDTHS) for part in (torch.nn.Linear(i, o), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers[:-1])


def of(model: Any) -> list[Any]:
    """Its parameters, to which both libraries attach what they found."""
    return list(model.parameters())


def errors(output: Any, y: Any) -> Any:
    """The cross-entropy of each example, of a sequence the mean over its positions."""
    return torch.nn.functional.cross_entropy(output, y, reduction="none").reshape(len(y), -1).mean(1)


def total(terms: Any) -> Any:
    """Σ of tensors."""
    return torch.stack(list(terms)).sum(0)


def of_backpack(net: Any, x: Any, y: Any) -> Reads:
    """Batch ℓ²-norms, and the variance from the sum of squared gradients."""
    from backpack import backpack, extend  # type: ignore[import-not-found]
    from backpack.extensions import BatchGrad, BatchL2Grad, Variance  # type: ignore[import-not-found]

    model, loss = extend(net()), extend(torch.nn.CrossEntropyLoss())

    def with_extension(*extensions: Any) -> Any:
        model.zero_grad()
        with backpack(*extensions):
            loss(model(x), y).backward()

    def norms() -> Any:
        with_extension(BatchL2Grad())
        own = [(type(part).__name__, p) for part in model.modules() for p in part.parameters(recurse=False)]
        if lacking := {name for name, p in own if not hasattr(p, "batch_l2")}:  # it only warns
            raise NotImplementedError(f"it has no rule for {', '.join(sorted(lacking))}")
        return total(p.batch_l2 for p in of(model)).sqrt() * len(x)

    def clipped() -> Any:
        with_extension(BatchGrad())
        grads = [p.grad_batch * len(x) for p in of(model)]
        square = total(g.flatten(1).square().sum(1) for g in grads)
        c = (CLIP / square.sqrt()).clamp(max=1)
        return [torch.tensordot(c, g, 1) for g in grads]

    def variance() -> Any:
        with_extension(Variance())
        return [p.variance for p in of(model)]

    return {"norms": norms, "both": norms, "clipped": clipped, "variance": variance}


def of_opacus(net: Any, x: Any, y: Any) -> Reads:
    """Norms and clipping by ghost clipping (two passes), variance from its per-sample gradients."""
    from opacus.grad_sample import GradSampleModule  # type: ignore[import-not-found]
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping  # type: ignore[import-not-found]

    how: Any = {"max_grad_norm": CLIP, "use_ghost_clipping": True, "loss_reduction": "sum"}
    fast = GradSampleModuleFastGradientClipping(net(), **how)
    each = GradSampleModule(net(), loss_reduction="sum")

    def norms() -> Any:
        fast.zero_grad()
        fast.enable_hooks()
        errors(fast(x), y).sum().backward()
        return fast.get_norm_sample()

    def clipped() -> Any:
        fast.zero_grad()
        fast.enable_hooks()
        found = errors(fast(x), y)
        found.sum().backward(retain_graph=True)
        c = fast.get_clipping_coef()
        fast.zero_grad()
        fast.disable_hooks()
        (c * found).sum().backward()
        return [p.grad for p in fast.parameters()]

    def variance() -> Any:
        each.zero_grad()
        errors(each(x), y).sum().backward()
        return [p.grad_sample.var(0) for p in of(each)]

    return {"norms": norms, "both": norms, "clipped": clipped, "variance": variance}


def of_opacus_hooks(net: Any, x: Any, y: Any) -> Reads:
    """All from the per-sample gradients of its hooks."""
    from opacus.grad_sample import GradSampleModule  # type: ignore[import-not-found]

    each = GradSampleModule(net(), loss_reduction="sum")

    def norms() -> Any:
        each.zero_grad()
        errors(each(x), y).sum().backward()
        return total(p.grad_sample.flatten(1).square().sum(1) for p in of(each)).sqrt()

    def clipped() -> Any:
        c = (CLIP / norms()).clamp(max=1)
        return [torch.tensordot(c, p.grad_sample, 1) for p in of(each)]

    def variance() -> Any:
        norms()
        return [p.grad_sample.var(0) for p in of(each)]

    def moments() -> Any:
        each.zero_grad()
        errors(each(x), y).sum().backward()
        return [p.grad_sample.square().mean(0) for p in of(each)]

    return {"norms": norms, "both": norms, "clipped": clipped, "variance": variance, "moments": moments}


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def check(net: Any, found: dict[str, Reads], x: Any, y: Any) -> None:
    """The norms of all are those of autograd, example by example."""
    model = net()
    for i in range(3):
        model.zero_grad()
        errors(model(x[i : i + 1]), y[i : i + 1]).sum().backward()
        norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()  # type: ignore[union-attr,misc]
        for library, runs in found.items():
            torch.testing.assert_close(runs["norms"]()[i], norm, rtol=1e-3, atol=1e-5, msg=library)


def ratios(
    net: Any, x: Any, y: Any, libraries: dict[str, Any], quantities: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Of each quantity to the plain step of the same round, or why a library has none."""
    model = net()

    def plain() -> None:
        model.zero_grad()
        errors(model(x), y).mean().backward()

    out: dict[str, Any] = {}
    found: dict[str, Reads] = {}
    for library, reads in libraries.items():
        why = "no such thing"
        try:
            runs = reads(net, x, y)
            runs["norms"]()
            found[library] = runs
        except ImportError:
            why = "missing"
        except NotImplementedError as error:
            why = " ".join(str(error).split())[:120]
        out |= {f"{library} {what} why": why for what in quantities if what not in found.get(library, {})}
    check(net, found, x, y)
    speeds = {}
    for threads in range(1, (torch.get_num_threads()) + 1):
        torch.set_num_threads(threads)
        speeds[threads] = sorted(seconds(plain) for _ in range(20))[10]
    out["threads"] = min(speeds, key=lambda threads: speeds[threads])
    torch.set_num_threads(out["threads"])
    runs = {f"{name} {what}": reads[what] for name, reads in found.items() for what in quantities if what in reads}
    took: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 3):
        base = seconds(plain)
        for name, run in runs.items():
            once = seconds(run)
            if i >= 3:
                took[name].append(once / base)
    return out | took


def main(batch: int, rounds: int, name: str, quantities: Sequence[str]) -> dict[str, Any]:
    """The ratios for a net of this name."""
    generator = torch.Generator().manual_seed(1)
    shape, make, libraries = (WIDTHS[0],), dense, {"BackPACK": of_backpack, "Opacus": of_opacus}
    if name in spatial_torch.NETS:
        make, libraries = spatial_torch.NETS[name], libraries | {"Opacus hooks": of_opacus_hooks}
        shape = (3, 32, 32) if name == "ResNet-20" else (1, 28, 28)
    x, y = torch.randn(batch, *shape, generator=generator), torch.arange(batch) % WIDTHS[-1]

    def net() -> Any:
        torch.manual_seed(0)
        return make()

    return ratios(net, x, y, libraries, quantities, rounds)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    net, quantities = sys.argv[3:] or ("", "norms,clipped,variance")
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), net, quantities.split(","))))
