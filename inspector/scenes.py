"""Write the scenes that the documentation shows, and those that only hold the engine to jbp.

docs/scenes/NAME.json.gz and inspector/tests/scenes/NAME.json.gz; those named only with `scenes.py NAME …`. A scene is
what `jbp.inspect.scene` makes, in JSON, compressed without a time, so that the same numbers make the same file.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jbp
from jbp.inspect import Update, scene
from jbp.inspect.page import embedded
from jbp.inspect.scene import errors_of

ROOT = Path(__file__).resolve().parents[1]
SHOWN, TESTED = ROOT / "docs" / "scenes", ROOT / "inspector" / "tests" / "scenes"
Scenes = list[dict[str, Any]]


def drawn(shape: tuple[int, ...], seed: int, digits: int = 2) -> np.ndarray:
    """Numbers that a hand can write down."""
    return np.round(np.random.default_rng(seed).normal(size=shape), digits)


def dense(weight: Any, bias: Any = None) -> dict[str, np.ndarray]:
    """The parameters of a dense layer."""
    return {"weight": np.array(weight, float)} | ({} if bias is None else {"bias": np.array(bias, float)})


def by_hand() -> Scenes:
    """2-2-1 with tanh."""
    net = jbp.serial(jbp.Dense(2), jbp.tanh, jbp.Dense(1))
    params = (dense([[0.5, -0.4], [0.3, 0.8]], [0.1, -0.2]), (), dense([[0.7], [-0.6]], [0.2]))
    x = np.array([[0.5, -1.0], [1.5, 0.4], [-0.8, 0.6], [0.2, 1.1], [-1.2, -0.9]])
    y = np.array([[1.0], [0.0], [-0.5], [0.3], [0.8]])
    found = scene(net, jbp.losses.squared_error, params, x, y, update=Update(0.1), title="2-2-1 by hand")
    found["about"] = (
        "Two inputs, two hidden units with tanh, one output: a calculator is enough. Step on, and open any number."
    )
    return [found]


def textbook() -> Scenes:
    """M. Mazur's example."""
    net = jbp.serial(jbp.Dense(2), jbp.sigmoid, jbp.Dense(2), jbp.sigmoid)
    params = (dense([[0.15, 0.25], [0.2, 0.3]], [0.35, 0.35]), (), dense([[0.4, 0.5], [0.45, 0.55]], [0.6, 0.6]), ())
    x, y = np.array([[0.05, 0.1]]), np.array([[0.01, 0.99]])
    found = scene(net, jbp.losses.l2_loss, params, x, y, update=Update(0.5), title="a textbook's 2-2-2")
    found["about"] = (
        "M. Mazur, A step by step backpropagation example, 2015: sigmoids and half the squared error. The error is "
        "0.298371; the first weight of layer 2 becomes 0.358916, that of layer 1 0.149781."
    )
    return [found]


def chain() -> Scenes:
    """σ(ReLU(ReLU))."""
    net = jbp.serial(
        *(layer for theta in (jbp.relu, jbp.relu, jbp.sigmoid) for layer in (jbp.Dense(1, use_bias=False), theta))
    )
    params = (dense([[0.8]]), (), dense([[1.5]]), (), dense([[-0.9]]), ())
    x, y = np.array([[2.0], [-1.0], [0.5]]), np.array([[1.0], [0.0], [1.0]])
    found = scene(net, jbp.losses.squared_error, params, x, y, update=Update(0.5), title="a chain, σ(ReLU(ReLU))")
    found["about"] = (
        "y = σ(ReLU(ReLU(x·w₁)·w₂)·w₃): every δ is one product more. The second example is below 0 from the first "
        "ReLU on, and no weight behind it learns from it."
    )
    return [found]


def residual() -> Scenes:
    """y = x + f(x)."""
    block = jbp.residual(jbp.serial(jbp.Dense(2), jbp.gelu))
    net = jbp.serial(jbp.Dense(2), block, jbp.Dense(3))
    params = (dense([[0.6, -0.5], [0.4, 0.9]], [0.0, 0.1]), (dense([[0.3, 0.7], [-0.8, 0.2]], [0.1, -0.1]), ()),
              dense([[0.5, -0.6, 0.2], [-0.3, 0.4, 0.9]], [0.0, 0.0, 0.1]))  # fmt: skip
    x, y = drawn((5, 2), 3), np.array([0, 1, 2, 1, 0], np.int32)
    found = scene(
        net, jbp.losses.softmax_cross_entropy, params, x, y, update=Update(0.2, 0.9), title="a residual block"
    )
    found["about"] = (
        "δ comes back by two ways, through f and past it, and the two add up: the sum over paths of the chain rule. "
        "Softmax cross-entropy, δ = softmax − target, and a step with momentum."
    )
    return [found]


def branch() -> Scenes:
    """Fan-out, and an explicit softmax."""
    arms = jbp.branch(jbp.Dense(2, use_bias=False), jbp.serial(jbp.Dense(2, use_bias=False), jbp.sigmoid))
    net = jbp.serial(jbp.Dense(2), jbp.tanh, arms, jbp.softmax)
    params = (dense([[0.9, -0.3], [0.2, 0.7]], [0.1, 0.0]), (),
              (dense([[0.5, -0.4], [0.6, 0.8]]), (dense([[-0.7, 0.9], [0.3, 0.4]]), ())), ())  # fmt: skip
    x, y = drawn((5, 2), 5), np.array([1, 0, 0, 1, 1], np.int32)
    found = scene(net, jbp.losses.cross_entropy, params, x, y, update=Update(0.2), title="two branches and a softmax")
    found["about"] = (
        "One value goes into two layers, so its δ is the sum of what both send back. The softmax is a layer here, and "
        "its δ goes through the whole Jacobian: every output's δ reaches every input."
    )
    return [found]


def repeat() -> Scenes:
    """The same kind of layer n times."""
    net = jbp.serial(jbp.repeat(jbp.residual(jbp.serial(jbp.Dense(2), jbp.silu)), 2), jbp.Dense(1))
    stack = {
        "weight": np.array([[[0.5, -0.6], [0.3, 0.8]], [[-0.4, 0.7], [0.9, 0.2]]]),
        "bias": np.array([[0.1, 0.0], [0.0, -0.1]]),
    }
    x, y = (
        np.array([[0.5, -1.0], [1.2, 0.3], [-0.7, 0.9], [0.1, -0.4], [-1.1, -0.6]]),
        np.array([[1.0], [0.0], [1.0], [0.0], [1.0]]),
    )
    found = scene(net, jbp.losses.sigmoid_binary_cross_entropy, (( stack, ()), dense([[0.8], [-0.5]], [0.0])), x, y,
                  update=Update(0.2), title="a block, repeated")  # fmt: skip
    found["about"] = "Two residual blocks of one kind, each with weights of its own, as deep networks stack them."
    return [found]


def tied() -> Scenes:
    """One weight used twice."""
    net = jbp.tied(jbp.serial(jbp.Dense(2), jbp.tanh, jbp.Dense(2), jbp.tanh), {(2, "weight"): (0, "weight")})
    params = (dense([[0.6, -0.9], [0.4, 0.5]], [0.1, 0.0]), (), {"weight": (), "bias": np.array([0.0, 0.2])}, ())
    x, y = drawn((5, 2), 11), drawn((5, 2), 13, 1)
    found = scene(net, jbp.losses.mean_squared_error, params, x, y, update=Update(0.2), title="a tied weight")
    found["about"] = "Both layers use one weight. Its gradient is the sum over its two uses: open one, and see both."
    return [found]


def _digits(net: Any, epochs: int) -> tuple[Any, Any, Any, Any]:
    x, y = jbp.data.load("digits", "train")
    fit = jbp.fit(net, jbp.losses.softmax_cross_entropy, jbp.optim.sgd(0.05, momentum=0.9), (x, y), epochs=epochs)
    return fit.params, *jbp.data.load("digits", "test"), net


def _of_digits(net: Any, epochs: int, size: int, title: str, about: str) -> Scenes:
    """The test digit that a trained net gets most wrong, and others."""
    params, x, y, net = _digits(net, epochs)
    loss = jbp.losses.softmax_cross_entropy
    worst = int(np.argmax(errors_of(net, loss, params, x, y)))
    rows = [worst, *[i for i in range(len(x)) if i != worst][: size - 1]]
    found = scene(net, loss, params, x[np.array(rows)], y[np.array(rows)], update=Update(0.05, 0.9), title=title,
                  labels=range(10), rows=[f"test {i}" for i in rows])  # fmt: skip
    found["about"] = about.format(worst=worst, label=int(y[worst]))
    return [found]


def digits_mlp() -> Scenes:
    """64-16-10."""
    return _of_digits(
        jbp.serial(jbp.Flatten(), jbp.Dense(16), jbp.relu, jbp.Dense(10)), 8, 16, "a digit, 64-16-10",
        "A net that was trained on handwritten digits, on the test digit that it gets most wrong: number {worst}, a "
        "{label}. Its gradient is far longer than those of the others. The first layer's weights are images.",
    )  # fmt: skip


def convolution() -> Scenes:
    """A small convolutional net on one digit."""
    return _of_digits(
        jbp.serial(jbp.Channel(), jbp.Conv(4, 3), jbp.relu, jbp.MaxPool(2), jbp.Flatten(), jbp.Dense(10)), 6, 8,
        "a convolution on a digit",
        "Four kernels of 3 × 3, the largest of each 2 × 2, and a dense layer. On the way back the pool sends δ to the "
        "place that won, and a kernel's gradient is h correlated with δ: digit {worst}, a {label}.",
    )  # fmt: skip


def attention() -> Scenes:
    """One head on eight characters."""
    text, letters = "to be or not to be that is the question ", " abehinoqrstu"
    numbers = np.array([letters.index(c) for c in text], np.int32)
    starts = np.arange(len(numbers) - 8)
    x, y = (np.stack([numbers[i + k : i + k + 8] for i in starts]) for k in (0, 1))
    block = jbp.residual(jbp.serial(jbp.Dense(18, use_bias=False), jbp.Attention(1), jbp.Dense(6, use_bias=False)))
    net = jbp.serial(jbp.Embedding(len(letters), 6), jbp.Positions(8), block, jbp.Unembedding(len(letters)))
    loss, rows = jbp.losses.softmax_cross_entropy, [3, 0, 9, 16, 24]
    fit = jbp.fit(net, loss, jbp.optim.sgd(0.05, momentum=0.9), (x, y), epochs=60)
    words = [text[i : i + 8].replace(" ", "␣") for i in rows]
    found = scene(net, loss, fit.params, x[rows], y[rows], update=Update(0.05, 0.9),
                  title="attention on eight characters", labels=["␣", *letters[1:]], rows=words)  # fmt: skip
    found["words"] = ["␣", *letters[1:]]
    found["about"] = (
        "Eight characters, one head: each place reads those before it, by the weights P, and says which character "
        "comes next. On the way back δ of P says which weight should have been larger: where it is below 0, the error "
        "falls as the weight grows. Saved numbers of a net that was trained on one line of Hamlet."
    )
    return [found]


def activations() -> Scenes:
    """Every activation and loss, repeats, joins and positions: what the engine is held to beside what is shown."""
    random, found = np.random.default_rng(17), []
    thetas: list[Any] = [
        jbp.identity, jbp.relu, jbp.leaky_relu, jbp.tanh, jbp.sigmoid, jbp.softmax, jbp.softplus, jbp.elu, jbp.silu,
        jbp.gelu, jbp.layers.Gelu(approximate=False), jbp.layers.LeakyRelu(0.2), jbp.layers.Elu(1.7),
    ]  # fmt: skip
    for i, theta in enumerate(thetas):
        net = jbp.serial(jbp.Dense(3), theta, jbp.Dropout(0.5), jbp.Dense(2))
        params, _ = net.init(jax.random.key(i), (5,))
        found.append(scene(net, jbp.losses.l2_loss, params, 3 * random.normal(size=(3, 5)), random.normal(size=(3, 2)),
                           title=repr(theta)))  # fmt: skip
    classes, shares = np.array([2, 0, 1], np.int32), random.dirichlet(np.ones(3), 3)
    for name, y in (("softmax_cross_entropy", classes), ("softmax_cross_entropy", shares), ("cross_entropy", classes),
                    ("cross_entropy", shares), ("sigmoid_binary_cross_entropy", random.uniform(size=(3, 3))),
                    ("squared_error", shares), ("mean_squared_error", shares)):  # fmt: skip
        layers = (jbp.Dense(3), jbp.softmax) if name == "cross_entropy" else (jbp.Dense(3),)
        net = jbp.serial(jbp.Dense(5), jbp.tanh, *layers)
        params, _ = net.init(jax.random.key(5), (2,))
        found.append(
            scene(net, getattr(jbp.losses, name), params, random.normal(size=(3, 2)), y, title=f"{name} {y.ndim}")
        )
    arms = jbp.branch(jbp.Dense(2), jbp.serial(jbp.Dense(5), jbp.elu), jbp.residual(jbp.Dense(3)), join="concat")
    deep = jbp.repeat(jbp.residual(jbp.serial(jbp.Dense(3), jbp.gelu)), 3)
    for shape in ((3,), (7, 3)):  # with positions too
        net = jbp.serial(deep, arms, jbp.tied(jbp.serial(jbp.Dense(10), jbp.tanh, jbp.Dense(10)), {2: 0}), jbp.Dense(2))
        params, _ = net.init(jax.random.key(7), shape)
        y = random.integers(2, size=(3, *shape[:-1])).astype(np.int32)
        found.append(scene(net, jbp.losses.softmax_cross_entropy, params, random.normal(size=(3, *shape)), y,
                           update=Update(0.1, 0.9, nesterov=True), title=f"every combinator {shape}"))  # fmt: skip
    return found


def not_finite() -> Scenes:
    """A weight that is infinite, and an input that is NaN."""
    net = jbp.serial(jbp.Dense(2), jbp.relu, jbp.Dense(1))
    params = (dense([[0.5, np.inf], [0.3, 0.8]], [0.1, -0.2]), (), dense([[0.7], [-0.6]], [0.2]))
    x = np.array([[0.5, -1.0], [np.nan, 0.4]])
    return [scene(net, jbp.losses.squared_error, params, x, np.array([[1.0], [0.0]]), title="not finite")]


DOCS: dict[str, Callable[[], Scenes]] = {
    f.__name__: f
    for f in (by_hand, textbook, chain, residual, branch, repeat, tied, digits_mlp, convolution, attention)
}  # fmt: skip
TESTS: dict[str, Callable[[], Scenes]] = {f.__name__: f for f in (activations, not_finite)}


def packed(scenes: Scenes) -> bytes:
    """The bytes of a file."""
    return gzip.compress(embedded(scenes).encode(), 9, mtime=0)


def main(names: list[str]) -> None:
    """Write the files of these names, or all."""
    for folder, makers in ((SHOWN, DOCS), (TESTED, TESTS)):
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in makers.items():
            if not names or name in names:
                data = packed(make())
                (folder / f"{name}.json.gz").write_bytes(data)
                print(f"{name}: {len(data):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
