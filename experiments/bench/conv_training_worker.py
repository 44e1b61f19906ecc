"""One contender of conv_training.py: reads the cell, trains once to warm up, then once for every line on its input.

    python conv_training_worker.py NAME cell.npz CORE,…

A contender is a function (facts, arrays) -> train, and train() -> mean loss of the epoch.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(path) for path in Path(__file__).resolve().parents[:3]]
Train = Callable[[], float]


def _net(name: str, **options: Any) -> Callable[[int], Any]:
    def make(batch: int) -> Any:
        import spatial  # here, because PyTorch's process is without JAX

        return getattr(spatial, name)(batch, **options)

    return make


NETS: dict[str, Callable[[int], Any]] = {
    "LeNet-5": _net("lenet"),
    "ResNet-20": _net("resnet20"),
    "ResNet-20, batch norm": _net("resnet20", norm="batch"),
}
"""Name -> (batch) -> `spatial.Spatial`."""


def with_jbp(facts: Any, arrays: Any) -> Train:
    """`jbp.fit`."""
    import jax.numpy as jnp

    import jbp

    case = NETS[facts["net"]](facts["batch"])
    params, _, _ = case.arguments()
    optimizer = jbp.optim.sgd(facts["rate"], momentum=facts["momentum"])
    data = jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"])

    def train() -> float:
        fitted = jbp.fit(case.net, case.loss, optimizer, data, epochs=1, batch_size=case.batch, params=params, seed=0)
        return float(fitted.history[-1]["train_loss"])

    return train


def with_plain_jax(facts: Any, arrays: Any) -> Train:
    """The epoch in one scan, donated; optax's SGD."""
    from functools import partial

    import jax
    import jax.numpy as jnp
    import optax

    case = NETS[facts["net"]](facts["batch"])
    start, _, _ = case.arguments()
    optimizer = optax.sgd(facts["rate"], momentum=facts["momentum"])
    x, y = jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"])
    key = jax.random.fold_in(jax.random.split(jax.random.key(0))[1], 1)

    @partial(jax.jit, donate_argnums=(0, 1))
    def epoch(params: Any, state: Any, key: Any) -> Any:
        order = jax.random.permutation(jax.random.split(key)[0], len(x)).reshape(-1, case.batch)

        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(case.plain)(params, x[rows], y[rows])
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, state), values = jax.lax.scan(step, (params, state), order)
        return params, state, values.mean()

    def train() -> float:
        params = jax.tree.map(jnp.copy, start)
        return float(epoch(params, optimizer.init(params), key)[2])

    return train


def with_torch(facts: Any, arrays: Any, compiled: bool = False) -> Train:
    """Tensors in memory, torch.optim.SGD; channels first or last, whichever is faster."""
    import spatial_torch
    import torch  # type: ignore[import-not-found]

    torch.set_num_threads(facts["cores"])
    found = spatial_torch.images(arrays["x"])
    y, loss = torch.from_numpy(arrays["y"].astype(np.int64)), torch.nn.CrossEntropyLoss()
    numbers: list[dict[str, Any]] = []
    while names := [name for name in arrays if name.startswith(f"{len(numbers)}.")]:
        numbers.append({name.split(".")[1]: arrays[name] for name in names})
    orders = torch.from_numpy(arrays["order"].astype(np.int64)).reshape(-1, facts["batch"])
    chosen = {"last": torch.channels_last, "first": torch.contiguous_format}

    def trained(layout: str) -> Train:
        form = chosen[layout]
        x, net = found.to(memory_format=form), spatial_torch.NETS[facts["net"]]().to(memory_format=form)
        model: Any = torch.compile(net) if compiled else net

        def train() -> float:
            spatial_torch.filled(net, numbers)
            optimizer = torch.optim.SGD(net.parameters(), lr=facts["rate"], momentum=facts["momentum"])
            values: list[Any] = []
            torch.randperm(len(x))  # spent, and the common order taken
            for rows in orders:
                optimizer.zero_grad()
                value = loss(model(x[rows]), y[rows])
                value.backward()
                optimizer.step()
                values.append(value.detach())
            return float(torch.stack(values).mean())

        return train

    took, ways = {}, {layout: trained(layout) for layout in chosen}
    for layout, train in ways.items():
        train()
        began = time.perf_counter()
        train()
        took[layout] = time.perf_counter() - began
    facts["layout"] = min(took, key=lambda layout: took[layout])
    return ways[facts["layout"]]


CONTENDERS: dict[str, Callable[[Any, Any], Train]] = {
    "jbp": with_jbp,
    "plain JAX": with_plain_jax,
    "PyTorch": with_torch,
    "PyTorch compiled": lambda facts, arrays: with_torch(facts, arrays, compiled=True),
}


def main(name: str, path: Path, cores: str) -> None:
    """Take these cores, warm up, report, then train for each line."""
    os.sched_setaffinity(0, [int(core) for core in cores.split(",")])  # before any library makes its threads
    warnings.simplefilter("ignore")
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    facts = json.loads(str(arrays["facts"]))
    train = CONTENDERS[name](facts, arrays)
    report = {"loss": train()} | {key: facts[key] for key in ("layout",) if key in facts}
    print(json.dumps(report), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        train()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
