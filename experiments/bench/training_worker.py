"""One contender of training.py: reads the cell, trains once to warm up, then once for every line on its input.

    python training_worker.py NAME cell.npz

A contender is a function (cell) -> train, and train() -> (mean loss of the last epoch, [(W [i, o], b), …]).
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Train = Callable[[], tuple[float, list[tuple[Any, Any]]]]


class Cell(NamedTuple):
    """What there is to do."""

    x: Any
    y: Any
    x_test: Any
    y_test: Any
    orders: Any
    params: list[tuple[Any, Any]]
    batch: int
    rate: float
    momentum: float

    def batches(self, order: Any) -> Any:
        """The indices of each step of an epoch; the time it takes to draw some is spent, and the common ones taken."""
        np.random.default_rng().permutation(len(order))
        return order.reshape(-1, self.batch)


def read(path: Path) -> Cell:
    """The cell of a file."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    facts = json.loads(str(arrays["facts"]))
    layers = range(len(facts["widths"]) - 1)
    params = [(arrays[f"weight{i}"], arrays[f"bias{i}"]) for i in layers]
    names = ("x", "y", "x_test", "y_test", "orders")
    return Cell(*(arrays[name] for name in names), params, facts["batch"], facts["rate"], facts["momentum"])  # type: ignore[arg-type]


def with_jbp(cell: Cell) -> Train:
    """`jbp.fit`, as its README writes it."""
    import jax

    import jbp

    widths = [w.shape[1] for w, _ in cell.params]
    net = jbp.serial(*[part for width in widths for part in (jbp.Dense(width), jbp.relu)][:-1])
    layers: list[Any] = [()] * (2 * len(widths) - 1)
    layers[::2] = [{"weight": w, "bias": b} for w, b in cell.params]
    params = jax.tree.map(jax.numpy.asarray, tuple(layers))
    loss, optimizer = jbp.losses.softmax_cross_entropy, jbp.optim.sgd(cell.rate, momentum=cell.momentum)
    data = jax.numpy.asarray(cell.x), jax.numpy.asarray(cell.y)

    def train() -> Any:
        fitted = jbp.fit(net, loss, optimizer, data, epochs=len(cell.orders), batch_size=cell.batch,
                         params=params, seed=0)  # fmt: skip
        return fitted.history[-1]["train_loss"], [(p["weight"], p["bias"]) for p in fitted.params if p != ()]

    return train


def jax_loss(params: Any, x: Any, y: Any) -> Any:
    """Mean cross-entropy of the plain net."""
    import jax
    import optax

    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    logits = x @ params[-1][0] + params[-1][1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def plain_epoch(x: Any, y: Any, batch: int, optimizer: Any) -> Callable[..., Any]:
    """(params, state, key, i) -> (params, state, mean loss): the epoch in one scan, donated."""
    from functools import partial

    import jax
    import optax

    @partial(jax.jit, donate_argnums=(0, 1))
    def epoch(params: Any, state: Any, key: Any, i: Any) -> Any:
        order = jax.random.permutation(jax.random.split(jax.random.fold_in(key, i))[0], len(x))
        chosen = order.reshape(-1, batch)

        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(jax_loss)(params, x[rows], y[rows])
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, state), values = jax.lax.scan(step, (params, state), chosen)
        return params, state, values.mean()

    return epoch


def with_plain_jax(cell: Cell) -> Train:
    """The epoch in one scan, donated; optax's SGD."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.sgd(cell.rate, momentum=cell.momentum)
    epoch = plain_epoch(jnp.asarray(cell.x), jnp.asarray(cell.y), cell.batch, optimizer)
    _, run_key = jax.random.split(jax.random.key(0))  # which makes the common order

    def train() -> Any:
        params = [(jnp.array(w), jnp.array(b)) for w, b in cell.params]
        state, value = optimizer.init(params), np.nan
        for i in range(len(cell.orders)):
            params, state, value = epoch(params, state, run_key, i + 1)
        return float(value), params

    return train


def with_equinox(cell: Cell) -> Train:
    """The step of Equinox's tutorials, from Python."""
    import equinox as eqx  # type: ignore[import-not-found]
    import jax
    import jax.numpy as jnp
    import optax

    class Net(eqx.Module):
        layers: list[Any]

        def __call__(self, x: Any) -> Any:
            for layer in self.layers[:-1]:
                x = jax.nn.relu(layer(x))
            return self.layers[-1](x)

    optimizer = optax.sgd(cell.rate, momentum=cell.momentum)

    def linear(w: Any, b: Any) -> Any:
        empty = eqx.nn.Linear(*w.shape, key=jax.random.key(0))
        return eqx.tree_at(lambda m: (m.weight, m.bias), empty, (jnp.array(w.T), jnp.array(b)))

    start = Net([linear(w, b) for w, b in cell.params])

    def loss(net: Any, x: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(net)(x), y).mean()

    @eqx.filter_jit
    def step(net: Any, state: Any, x: Any, y: Any) -> Any:
        value, grads = eqx.filter_value_and_grad(loss)(net, x, y)
        updates, state = optimizer.update(grads, state, eqx.filter(net, eqx.is_array))
        return eqx.apply_updates(net, updates), state, value

    def train() -> Any:
        net = start
        state, values = optimizer.init(eqx.filter(net, eqx.is_array)), []
        for order in cell.orders:
            values = []
            for rows in cell.batches(order):
                net, state, value = step(net, state, cell.x[rows], cell.y[rows])
                values.append(value)
        return float(np.mean(values)), [(layer.weight.T, layer.bias) for layer in net.layers]

    return train


def with_flax(cell: Cell) -> Train:
    """The step of Flax NNX's tutorials, from Python."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx  # type: ignore[import-not-found]

    class Net(nnx.Module):
        def __init__(self, params: Any):
            self.layers = nnx.List([nnx.Linear(*w.shape, rngs=nnx.Rngs(0)) for w, _ in params])

        def __call__(self, x: Any) -> Any:
            for layer in self.layers[:-1]:
                x = jax.nn.relu(layer(x))
            return self.layers[-1](x)

    def loss(net: Any, x: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()

    @nnx.jit
    def step(net: Any, optimizer: Any, x: Any, y: Any) -> Any:
        value, grads = nnx.value_and_grad(loss)(net, x, y)
        optimizer.update(net, grads)
        return value

    net, rule = Net(cell.params), optax.sgd(cell.rate, momentum=cell.momentum)

    def train() -> Any:
        for layer, (w, b) in zip(net.layers, cell.params, strict=True):
            layer.kernel[...] = jnp.array(w)
            layer.bias[...] = jnp.array(b)  # type: ignore[index]
        optimizer = nnx.Optimizer(net, rule, wrt=nnx.Param)
        values: list[Any] = []
        for order in cell.orders:
            values = [step(net, optimizer, cell.x[rows], cell.y[rows]) for rows in cell.batches(order)]
        return float(np.mean(values)), [(layer.kernel[...], layer.bias[...]) for layer in net.layers]  # type: ignore[index]

    return train


def with_torch(cell: Cell, compile: bool = False) -> Train:
    """Tensors in memory, torch.optim.SGD, the loss kept without waiting for it."""
    import torch  # type: ignore[import-not-found]

    x, y = torch.from_numpy(cell.x), torch.from_numpy(cell.y.astype(np.int64))
    loss = torch.nn.CrossEntropyLoss()
    layers: list[Any] = [part for w, _ in cell.params for part in (torch.nn.Linear(*w.shape), torch.nn.ReLU())][:-1]
    net = torch.nn.Sequential(*layers)
    model: Any = torch.compile(net) if compile else net

    def train() -> Any:
        with torch.no_grad():
            for layer, (w, b) in zip(layers[::2], cell.params, strict=True):
                layer.weight.copy_(torch.from_numpy(w.T.copy()))
                layer.bias.copy_(torch.from_numpy(b))
        optimizer = torch.optim.SGD(net.parameters(), lr=cell.rate, momentum=cell.momentum)
        values: list[Any] = []
        for order in cell.orders:
            values = []
            for rows in torch.from_numpy(cell.batches(order)):
                optimizer.zero_grad()
                value = loss(model(x[rows]), y[rows])
                value.backward()
                optimizer.step()
                values.append(value.detach())
        mean = float(torch.stack(values).mean())
        return mean, [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in layers[::2]]

    return train


def with_sklearn(cell: Cell) -> Train:
    """MLPClassifier, an epoch at a time by `partial_fit`, given the order; the same momentum, no penalty."""
    from sklearn.neural_network import MLPClassifier as Classifier  # type: ignore[import-not-found]

    MLPClassifier: Any = Classifier  # its own annotations are behind what it takes

    classes = np.arange(cell.params[-1][0].shape[1])
    hidden = tuple(w.shape[1] for w, _ in cell.params[:-1])
    ordered = [(cell.x[order], cell.y[order]) for order in cell.orders[:1]]

    net = MLPClassifier(hidden, solver="sgd", alpha=0.0, batch_size=cell.batch, learning_rate_init=cell.rate,
                        momentum=cell.momentum, nesterovs_momentum=False, shuffle=False)  # fmt: skip
    net.partial_fit(cell.x[: cell.batch], cell.y[: cell.batch], classes=classes)  # allocates

    def train() -> Any:
        for i, (w, b) in enumerate(cell.params):
            net.coefs_[i][:], net.intercepts_[i][:] = w, b
        for velocity in net._optimizer.velocities:
            velocity[:] = 0
        for order in cell.orders:
            x, y = ordered[0] if len(cell.orders) == 1 else (cell.x[order], cell.y[order])
            net.partial_fit(x, y)
        return float(net.loss_), list(zip(net.coefs_, net.intercepts_, strict=True))

    return train


CONTENDERS: dict[str, Callable[[Cell], Train]] = {
    "jbp": with_jbp,
    "plain JAX": with_plain_jax,
    "PyTorch": with_torch,
    "PyTorch compiled": lambda cell: with_torch(cell, compile=True),
    "Flax NNX": with_flax,
    "Equinox": with_equinox,
    "scikit-learn": with_sklearn,
}


def accuracy(cell: Cell, params: Any) -> float:
    """On the test part."""
    h = cell.x_test
    for w, b in params[:-1]:
        h = np.maximum(h @ np.asarray(w) + np.asarray(b), 0)
    output = h @ np.asarray(params[-1][0]) + np.asarray(params[-1][1])
    return float((output.argmax(1) == cell.y_test).mean())


def best_threads(name: str, train: Train) -> int | None:
    """The number of threads with which PyTorch or scikit-learn is fastest, and sets it."""
    limit: Callable[[int], Any]
    if name.startswith("PyTorch"):
        import torch  # type: ignore[import-not-found]

        most, limit = torch.get_num_threads(), torch.set_num_threads
    elif name == "scikit-learn":
        from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-not-found]

        most = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
        limit = threadpool_limits
    else:
        return None
    took = {}
    for count in range(1, most + 1):
        limit(count)
        train()
        began = time.perf_counter()
        train()
        took[count] = time.perf_counter() - began
    best = min(took, key=lambda count: took[count])
    limit(best)
    return best


def main(name: str, path: Path) -> None:
    """Warm up, report, then train for each line."""
    warnings.simplefilter("ignore")
    cell = read(path)
    train = CONTENDERS[name](cell)
    value, params = train()
    threads = best_threads(name, train)
    report = {"loss": value, "accuracy": accuracy(cell, params)} | ({} if threads is None else {"threads": threads})
    print(json.dumps(report), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        value, params = train()
        [np.asarray(w) for w, _ in params]
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": value}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
