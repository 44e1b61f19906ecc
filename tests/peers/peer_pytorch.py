"""jbp against PyTorch in float64, over random configurations. Not part of `pytest`: `make peers`.

    python -m pytest -n 2 -rs tests/peers/peer_*.py

(The name keeps it out of the collection; a file named on the command line is collected whatever its name.)
PyTorch is optional: without it the comparison is skipped, with one message (peer_installed.py).

Both sides get the same numbers. PyTorch runs its own layers, losses, backward pass and optimiser; what it has no
layer for (residual, branch, repeat) is its `+`, `cat` and a loop. Nothing is saved.
"""

import dataclasses
import functools
import importlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbp
from jbp import combine, layers, losses
from jbp.layers import Elu, Gelu, LeakyRelu

torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
__test__ = torch is not None  # pytest then collects nothing here, and peer_installed.py says why, once

UNITS = {"layer": 16, "loss": 16, "hessian": 64, "net": 1024, "training": 64, "steps": 8}
"""Allowed error in eps × the largest entry of the leaf, never scaled by the number of elements.

`layer`: one layer, forward and backward. `loss`: value and δ of one loss. `hessian`: its second derivative, where
PyTorch differentiates twice and p(1 − p) cancels in it; 32 observed. `net`: random nets, where each weight amplifies
the roundings before it; 458 observed in the worst of sixty. `training`: ten
steps of a small net. `steps`: ten steps of an optimiser. A planted error of 10⁻¹² is 4504 units.
"""


@pytest.fixture(autouse=True, scope="session")
def pytorch():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)


def assert_agree(found: Any, expected: Any, level: str, terms: float = 0.0) -> None:
    """Trees alike, shapes alike, float64, and every leaf within its level, or on the scale of `terms` if larger."""
    (ours, structure), (theirs, other) = (jax.tree_util.tree_flatten_with_path(tree) for tree in (found, expected))
    assert structure == other, f"tree {structure} instead of {other}"
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        a, b = np.asarray(a), b.detach().numpy()
        name = jax.tree_util.keystr(path) or "the value"
        assert (a.shape, a.dtype, b.dtype) == (b.shape, np.float64, np.float64), f"{name}: {a.shape} and {b.shape}"
        assert np.isfinite(b).all(), f"{name}: PyTorch's own result is not finite"
        gap, unit = np.abs(a - b).max(initial=0.0), np.finfo(np.float64).eps * np.abs(b).max(initial=terms)
        error = 0.0 if gap == 0 else gap / unit if unit else np.inf
        assert error <= UNITS[level], f"{name} is off by {error:.3g} units of eps × magnitude, {UNITS[level]} allowed"


def tensors(tree: Any) -> Any:
    """Every array as a tensor of PyTorch; those of floats are differentiated."""

    def tensor(a: Any) -> Any:
        a = np.array(a)
        return torch.tensor(a, requires_grad=a.dtype == np.float64)

    return jax.tree.map(tensor, tree)


def gradient(value: Any, tree: Any) -> Any:
    """∂value/∂leaf by PyTorch, in the tree's structure."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, torch.autograd.grad(value, leaves) if leaves else ())


def activation(layer: Any, s: Any) -> Any:
    F = torch.nn.functional
    match layer:
        case layers.Identity():
            return s
        case layers.Relu():
            return F.relu(s)
        case layers.LeakyRelu():
            return F.leaky_relu(s, layer.negative_slope)
        case layers.Tanh():
            return F.tanh(s)
        case layers.Sigmoid():
            return F.sigmoid(s)
        case layers.Softmax():
            return F.softmax(s, dim=-1)
        case layers.Softplus():  # by default PyTorch drops the exponential above 20, where it still counts 2e-9
            return F.softplus(s, threshold=40)
        case layers.Elu():
            return F.elu(s, layer.alpha)
        case layers.Silu():
            return F.silu(s)
        case layers.Gelu():
            return F.gelu(s, approximate="tanh" if layer.approximate else "none")
    raise AssertionError(f"no counterpart of {layer!r}")


def run(net: Any, params: Any, x: Any, key: Any = None) -> Any:
    """The outputs of `net` in PyTorch. Only dropout's masks come from JAX, split as jbp documents it."""

    def keys(n: int) -> Any:
        return [None] * n if key is None else jax.random.split(key, n)

    match net:
        case combine.Serial():
            for layer, p, k in zip(net.layers, params, keys(len(net.layers)), strict=True):
                x = run(layer, p, x, k)
            return x
        case combine.Residual():
            return x + run(net.layer, params, x, key)
        case combine.Branch():
            ys = [run(layer, p, x, k) for layer, p, k in zip(net.layers, params, keys(len(net.layers)), strict=True)]
            return torch.stack(ys).sum(0) if net.join == "sum" else torch.cat(ys, -1)
        case combine.Repeat():
            for i, k in enumerate(keys(net.n)):
                x = run(net.layer, jax.tree.map(lambda p, i=i: p[i], params), x, k)
            return x
        case jbp.Dense():
            return torch.nn.functional.linear(x, params["weight"].T, params.get("bias"))
        case jbp.Flatten():
            return torch.flatten(x, 1)
        case jbp.Dropout():
            return x if key is None else x * masks(net, key, tuple(x.shape)) / (1 - net.drop_rate)
        case _:
            return activation(net, x)


def masks(net: jbp.Dropout, key: Any, shape: tuple[int, ...]) -> Any:
    draw = functools.partial(jax.random.bits, shape=shape[1:], dtype=jnp.uint32)
    return torch.tensor(np.array(jax.vmap(draw)(jax.random.split(key, shape[0])) >= int(net.drop_rate * 2**32)))


def errors(loss: losses.Loss, output: Any, target: Any) -> Any:
    """eₙ in PyTorch: summed over the outputs (last axis), averaged over positions."""
    F = torch.nn.functional
    match loss:
        case losses.SquaredError():
            e = F.mse_loss(output, target, reduction="none").sum(-1)
        case losses.L2Loss():
            e = F.mse_loss(output, target, reduction="none").sum(-1) / 2
        case losses.MeanSquaredError():
            e = F.mse_loss(output, target, reduction="none").mean(-1)
        case losses.SigmoidBinaryCrossEntropy():
            e = F.binary_cross_entropy_with_logits(output, target, reduction="none").sum(-1)
        case losses.SoftmaxCrossEntropy():  # PyTorch wants the classes on axis 1
            classes = target if target.dtype == torch.int64 else target.movedim(-1, 1)
            e = F.cross_entropy(output.movedim(-1, 1), classes, reduction="none")
        case losses.CrossEntropy() if target.dtype == torch.int64:
            e = F.nll_loss(output.log().movedim(-1, 1), target, reduction="none")
        case losses.CrossEntropy():
            e = -(target * output.log()).sum(-1)
        case _:
            raise AssertionError(f"no counterpart of {loss!r}")
    return e.reshape(len(e), -1).mean(1)


# Layers ---------------------------------------------------------------------------------------------------------------

LAYERS = [
    *(jbp.identity, jbp.relu, jbp.leaky_relu, LeakyRelu(0.3), jbp.tanh, jbp.sigmoid, jbp.softmax, jbp.softplus),
    *(jbp.elu, Elu(0.7), jbp.silu, jbp.gelu, Gelu(approximate=False)),
    *(jbp.Dense(3), jbp.Dense(1), jbp.Dense(7, use_bias=False), jbp.Flatten(), jbp.Dropout(0.3), jbp.Dropout(0.9)),
]
SHAPES = [(5,), (1,), (3, 7), (2, 3, 5)]


def compare_layer(layer: Any, shape: tuple[int, ...], scale: float = 1.0, terms: float = 0.0) -> None:
    rng = np.random.default_rng(len(repr(layer)) + sum(shape))
    x, key = jnp.array(scale * rng.normal(size=(BATCH, *shape))), jax.random.key(3)
    params = noisy(layer.init(jax.random.key(4), shape)[0], rng)
    output, saved = jbp.forward(layer, params, x, key)
    delta = rng.normal(size=output.shape)
    delta_x, pairs = jbp.backward(layer, params, saved, jnp.array(delta))
    theirs = tensors({"x": x, "params": params})
    their_output = run(layer, theirs["params"], theirs["x"], key)
    grads = gradient((their_output * torch.tensor(delta)).sum(), theirs)
    assert_agree(output, their_output, "layer")
    weights = jnp.ones(BATCH)
    assert_agree({"x": delta_x, "params": jbp.contract(pairs, weights)}, grads, "layer", terms)


def noisy(params: Any, rng: np.random.Generator) -> Any:
    """The initial values, moved a little: a bias of zero would hide what is done with it."""
    return jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), params)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_layer(layer, shape):
    compare_layer(layer, shape)


@pytest.mark.parametrize("layer", LAYERS[:13], ids=repr)
def test_activation_far_out(layer):
    """Where exponentials leave their range. PyTorch's 1 − y² for a small tanh′ is right on the scale of the 1 only."""
    compare_layer(layer, (7,), scale=300.0, terms=1.0 if layer == jbp.tanh else 0.0)


# Losses ---------------------------------------------------------------------------------------------------------------

LOSSES = [
    *((losses.squared_error, "numbers"), (losses.l2_loss, "numbers"), (losses.mean_squared_error, "numbers")),
    *((losses.sigmoid_binary_cross_entropy, "fractions"), (losses.softmax_cross_entropy, "classes")),
    *((losses.softmax_cross_entropy, "distribution"), (losses.cross_entropy, "classes")),
    (losses.cross_entropy, "distribution"),
]


def targets(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    match kind:
        case "numbers":
            return jnp.array(rng.normal(size=shape))
        case "fractions":
            return jnp.array(rng.random(shape))
        case "classes":
            return jnp.array(rng.integers(shape[-1], size=shape[:-1]))
        case "distribution":
            return jnp.array(rng.dirichlet(np.ones(shape[-1]), size=shape[:-1]))
    raise AssertionError(kind)


def compare_loss(loss: Any, kind: str, shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    output = rng.normal(size=(BATCH, *shape)) * rng.choice([0.1, 1.0, 10.0])
    if isinstance(loss, losses.CrossEntropy):
        output = np.exp(output / 5) / np.exp(output / 5).sum(-1, keepdims=True)
    output, target = jnp.array(output), targets(kind, (BATCH, *shape), rng)
    weights = jnp.array(rng.random(BATCH)).at[4].set(0.0)
    theirs, their_target = tensors(output), tensors(target).detach()
    found = jax.vmap(loss.value)(output, target), jax.vmap(loss.delta)(output, target)
    each = errors(loss, theirs, their_target)
    assert_agree(found, (each, gradient(each.sum(), theirs)), "loss")
    weighted, _ = jbp.value_and_grad(jbp.identity, loss)((), output, target, weights=weights)
    assert_agree(weighted, (tensors(weights) * each).sum(), "loss")
    root = loss.sqrt_hessian(output[0], target[0]).reshape(-1, output[0].size)
    one = lambda o: errors(loss, o.reshape(1, *shape), their_target[:1])[0]  # noqa: E731
    size = output[0].size
    hessian = torch.autograd.functional.hessian(one, theirs[0].detach().reshape(-1)).reshape(size, size)
    assert_agree(root.T @ root, hessian, "hessian")


OF_CLASSES = ("classes", "distribution")
"""Kinds of target among which one output has nothing to choose: jbp refuses it."""


@pytest.mark.parametrize(
    ("loss", "kind", "shape"),
    [(*one, shape) for one in LOSSES for shape in ((7,), (1,), (3, 5)) if shape != (1,) or one[1] not in OF_CLASSES],
    ids=str,
)
def test_loss(loss, kind, shape):
    for seed in range(3):
        compare_loss(loss, kind, shape, seed)


# Networks -------------------------------------------------------------------------------------------------------------

WIDTHS = (1, 2, 3, 5, 7)
NETS = 60
BATCH = 11


class Builder:
    """A random net, part by part; `width` is that of the output so far."""

    def __init__(self, rng: np.random.Generator, width: int):
        self.rng, self.width = rng, width

    def pick(self, options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def dense(self, width: int | None = None) -> Any:
        self.width = self.pick(WIDTHS) if width is None else width
        return jbp.Dense(self.width, use_bias=bool(self.rng.random() < 0.8))

    def chain(self, depth: int, width: int | None = None) -> Any:
        """Two or three parts in a row; with `width`, that is the width at the end."""
        parts = [self.part(depth) for _ in range(self.rng.integers(2, 4))]
        return jbp.serial(*parts, *([] if width is None else [self.dense(width)]))

    def part(self, depth: int) -> Any:
        kinds = ["dense", "dense", "activation", "dropout"]
        match self.pick(kinds + (["residual", "branch sum", "branch concat", "repeat"] * 2 if depth else [])):
            case "dense":
                return self.dense()
            case "activation":
                return self.pick(LAYERS[:13])
            case "dropout":
                return jbp.Dropout(self.pick((0.2, 0.5)))
            case "residual":
                return jbp.residual(self.chain(depth - 1, self.width))
            case "repeat":
                return jbp.repeat(self.chain(depth - 1, self.width), int(self.rng.integers(2, 4)))
            case "branch sum":
                start, width = self.width, self.pick(WIDTHS)
                arms = [self.arm(depth - 1, start, width) for _ in range(2)]
                return jbp.branch(*arms)
            case _:
                start = self.width
                arms = [self.arm(depth - 1, start, self.pick(WIDTHS)) for _ in range(2)]
                self.width = sum(arm.layers[-1].width for arm in arms)
                return jbp.branch(*arms, join="concat")

    def arm(self, depth: int, start: int, width: int) -> Any:
        self.width = start
        return self.chain(depth, width)


def random_net(seed: int) -> tuple[Any, Any, str, tuple[int, ...], np.random.Generator]:
    """A net, a loss that fits, its kind of target, the input's shape, and the random numbers that follow."""
    rng = np.random.default_rng(seed)
    loss, kind = LOSSES[seed % len(LOSSES)]
    shape = (int(rng.choice(WIDTHS)),) if seed % 3 else (2, int(rng.choice(WIDTHS)))
    builder = Builder(rng, shape[-1])
    wrap = (jbp.residual, jbp.branch, jbp.serial)[seed % 3]
    parts = [wrap(builder.chain(1, shape[-1])), *[builder.dense()] * (seed % 2), jbp.tanh, builder.dense()]
    if kind in OF_CLASSES and builder.width == 1:
        parts[-1] = dataclasses.replace(parts[-1], width=2)
    if isinstance(loss, losses.CrossEntropy):
        parts.append(jbp.softmax)
    return jbp.serial(*parts), loss, kind, shape, rng


def compare_net(seed: int, tamper: Any = lambda grads: grads) -> None:
    net, loss, kind, shape, rng = random_net(seed)
    params, out_shape = net.init(jax.random.key(seed), shape)
    params = noisy(params, rng)
    x, y = jnp.array(rng.normal(size=(BATCH, *shape))), targets(kind, (BATCH, *out_shape), rng)
    weights = jnp.array(rng.random(BATCH) if seed % 2 else np.full(BATCH, 1 / BATCH))
    key = jax.random.key(seed + 1)
    # The three steps one by one: compiled layer by layer, which the nets share, instead of net by net.
    output, saved = jbp.forward(net, params, x, key)
    _, pairs = jbp.backward(net, params, saved, jax.vmap(loss.delta)(output, y))
    found = (weights * jax.vmap(loss.value)(output, y)).sum(), jbp.contract(pairs, weights)
    theirs = tensors(params)
    value = (tensors(weights) * errors(loss, run(net, theirs, tensors(x), key), tensors(y).detach())).sum()
    assert_agree(found, (value, tamper(gradient(value, theirs))), "net")


@pytest.mark.parametrize("seed", range(NETS))
def test_net(seed):
    compare_net(seed)


def test_nets_are_varied():
    """Every combinator and every activation is somewhere among the sixty."""
    seen = "\n".join(repr(random_net(seed)[0]) for seed in range(NETS))
    names = ["residual", "branch", "concat", "repeat", "Dense", "Dropout", *map(repr, LAYERS[:13])]
    assert [name for name in names if name not in seen] == []


# Optimisers -----------------------------------------------------------------------------------------------------------

METHODS = [(0.0, False), (0.9, False), (0.5, False), (0.9, True), (0.5, True)]


def compare_optimizer(momentum: float, nesterov: bool, **theirs_only: Any) -> None:
    """Ten steps along random gradients, from the same start, each step compared."""
    rng = np.random.default_rng(9)
    params = {"weight": jnp.array(rng.normal(size=(3, 5))), "bias": jnp.array(rng.normal(size=5))}
    theirs = tensors(params)
    ours = jbp.optim.sgd(0.3, momentum, nesterov)
    state = ours.init(params)
    optimizer = torch.optim.SGD(jax.tree.leaves(theirs), lr=0.3, momentum=momentum, nesterov=nesterov, **theirs_only)
    for _ in range(10):
        grads = jax.tree.map(lambda p: jnp.array(rng.normal(size=p.shape)), params)
        updates, state = ours.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for leaf, g in zip(jax.tree.leaves(theirs), jax.tree.leaves(grads), strict=True):
            leaf.grad = torch.tensor(np.array(g))
        optimizer.step()
        assert_agree(params, theirs, "steps")


@pytest.mark.parametrize(("momentum", "nesterov"), METHODS)
def test_optimizer(momentum, nesterov):
    compare_optimizer(momentum, nesterov)


@pytest.mark.parametrize(("momentum", "nesterov"), METHODS)
def test_training(momentum, nesterov):
    """Ten steps of training, each side with its own forward, backward and update: errors feed on themselves."""
    rng = np.random.default_rng(10)
    net, loss = (
        jbp.serial(jbp.Dense(7), jbp.tanh, jbp.residual(jbp.Dense(7)), jbp.Dense(3)),
        losses.softmax_cross_entropy,
    )
    params = net.init(jax.random.key(0), (5,))[0]
    x, y = jnp.array(rng.normal(size=(13, 5))), jnp.array(rng.integers(3, size=13))
    theirs, their_x, their_y = tensors(params), tensors(x), tensors(y)
    ours = jbp.optim.sgd(0.1, momentum, nesterov)
    state = ours.init(params)
    optimizer = torch.optim.SGD(jax.tree.leaves(theirs), lr=0.1, momentum=momentum, nesterov=nesterov)
    for _ in range(10):
        value, grads = jbp.value_and_grad(net, loss)(params, x, y)
        updates, state = ours.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        optimizer.zero_grad()
        their_value = errors(loss, run(net, theirs, their_x), their_y).mean()
        their_value.backward()
        optimizer.step()
        assert_agree((value, params), (their_value, theirs), "training")


# Planted differences: what is compared can fail -----------------------------------------------------------------------


def refused() -> Any:
    return pytest.raises(AssertionError, match="units of eps")


@pytest.mark.parametrize("seed", range(5))
def test_planted_gradient(seed):
    """One leaf wrong by one part in 10¹²."""

    def tamper(grads: Any) -> Any:
        leaves, structure = jax.tree.flatten(grads)
        return jax.tree.unflatten(structure, [*leaves[:-1], leaves[-1] * (1 + 1e-12)])

    with refused():
        compare_net(seed, tamper)


def test_planted_optimizers():
    """Damped momentum, and a weight decay of 10⁻¹⁰."""
    with refused():
        compare_optimizer(0.9, False, dampening=0.1)
    with refused():
        compare_optimizer(0.9, False, weight_decay=1e-10)


def test_planted_layers(monkeypatch):
    """PyTorch's own default softplus, the other GELU, and an α wrong by one part in 10¹²."""
    mine = activation
    for layer, theirs in (
        (jbp.softplus, lambda s: torch.nn.functional.softplus(s)),
        (jbp.gelu, lambda s: torch.nn.functional.gelu(s)),
        (jbp.elu, lambda s: torch.nn.functional.elu(s, 1 + 1e-12)),
    ):
        monkeypatch.setattr(
            "peer_pytorch.activation",
            lambda found, s, wrong=layer, f=theirs: f(s) if found == wrong else mine(found, s),
        )
        with refused():
            compare_layer(layer, (7,), scale=12.0)


def test_planted_loss(monkeypatch):
    """A loss averaged over the outputs where ours is summed."""
    mine = errors
    monkeypatch.setattr("peer_pytorch.errors", lambda loss, o, t: mine(losses.mean_squared_error, o, t))
    with refused():
        compare_loss(losses.squared_error, "numbers", (7,), 0)
