"""The nets of the benchmark: jbp's, the fastest plain JAX we can write, and Equinox's, with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp

import jbp
from jbp.losses import cross_entropy, softmax_cross_entropy

KEY = jax.random.key(0)
PLAIN = {jbp.relu: jax.nn.relu, jbp.tanh: jnp.tanh, jbp.sigmoid: jax.nn.sigmoid}


class Case(NamedTuple):
    """A net, the plain mean loss (params, x, y) on the same parameters, the width of the input and the batch."""

    name: str
    net: Any
    plain: Callable[..., Any]
    widths: tuple[int, ...]
    batch: int
    activation: Any = jbp.relu
    loss: Any = softmax_cross_entropy
    depth: int = 0
    """Of a `repeat`; 0: there is none."""
    drop: float = 0.0

    def arguments(self) -> tuple[Any, Any, Any]:
        """Parameters, inputs and labels."""
        params, _ = self.net.init(KEY, self.widths[:1])
        x = jax.random.normal(jax.random.key(1), (self.batch, self.widths[0]))
        return params, x, jnp.arange(self.batch) % self.widths[-1]

    def ours(self) -> Callable[..., Any]:
        """jbp's value and gradient, not compiled yet and not memoised."""
        step = jbp.value_and_grad(self.net, self.loss).__wrapped__  # type: ignore[attr-defined]
        key = KEY if self.drop else None
        return lambda params, x, y: step(params, x, y, key=key)


def dense(h: Any, p: Any) -> Any:
    """h W + b."""
    return h @ p["weight"] + p["bias"]


def fused(logits: Any, y: Any) -> Any:
    """Mean softmax cross-entropy."""
    return (jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, y[:, None], 1)[:, 0]).mean()


def unfused(logits: Any, y: Any) -> Any:
    """The same through probabilities."""
    return -jnp.log(jnp.take_along_axis(jax.nn.softmax(logits), y[:, None], 1)).mean()


def with_parameters(params: Any) -> list[Any]:
    """The parameters of the dense layers, in order."""
    return [p for p in params if p != ()]


def mlp(widths: tuple[int, ...], batch: int, activation: Any = jbp.relu, softmax: bool = False) -> Case:
    """A multi-layer perceptron."""
    layers = [layer for width in widths[1:] for layer in (jbp.Dense(width), activation)][:-1]

    def plain(params: Any, x: Any, y: Any) -> Any:
        *hidden, last = with_parameters(params)
        for p in hidden:
            x = PLAIN[activation](dense(x, p))
        return (unfused if softmax else fused)(dense(x, last), y)

    shown = "-".join(map(str, widths)) if len(widths) < 6 else f"{len(widths) - 2} layers of {widths[1]}"
    net = jbp.serial(*layers, *([jbp.softmax] if softmax else []))
    name = f"{shown} {activation!r}{', unfused softmax' if softmax else ''}, batch {batch}"
    return Case(name, net, plain, widths, batch, activation, cross_entropy if softmax else softmax_cross_entropy)


def residual_stack(depth: int, width: int, batch: int) -> Case:
    """`repeat` of residual blocks, against `lax.scan`."""
    small = jbp.initializers.Normal(0.001)  # a sum of many blocks would else grow without bound
    block = jbp.serial(jbp.Dense(width, weight_init=small), jbp.relu)
    net = jbp.serial(jbp.repeat(jbp.residual(block), depth), jbp.Dense(10))

    def plain(params: Any, x: Any, y: Any) -> Any:
        x, _ = jax.lax.scan(lambda h, p: (h + jax.nn.relu(dense(h, p[0])), None), x, params[0])
        return fused(dense(x, params[1]), y)

    name = f"repeat of {depth} residual {width}, batch {batch}"
    return Case(name, net, plain, (width, 10), batch, depth=depth)


def stack(depth: int, width: int, batch: int) -> Case:
    """`repeat` of relu layers, against `lax.scan`."""
    net = jbp.serial(jbp.repeat(jbp.serial(jbp.Dense(width), jbp.relu), depth), jbp.Dense(10))

    def plain(params: Any, x: Any, y: Any) -> Any:
        x, _ = jax.lax.scan(lambda h, p: (jax.nn.relu(dense(h, p[0])), None), x, params[0])
        return fused(dense(x, params[1]), y)

    return Case(f"repeat of {depth} layers of {width}, batch {batch}", net, plain, (width, 10), batch, depth=depth)


def dropout(batch: int, rate: float = 0.2) -> Case:
    """784-512-512-10 with dropout; the plain one draws a whole batch at once, the cheapest way."""
    net = jbp.serial(*[jbp.Dense(512), jbp.relu, jbp.Dropout(rate)] * 2, jbp.Dense(10))

    def plain(params: Any, x: Any, y: Any) -> Any:
        *hidden, last = with_parameters(params)
        for p, k in zip(hidden, jax.random.split(KEY), strict=True):
            x = jax.nn.relu(dense(x, p))
            if rate:
                x = jnp.where(jax.random.bernoulli(k, 1 - rate, x.shape), x / (1 - rate), 0)
        return fused(dense(x, last), y)

    return Case(f"dropout 784-512-512-10, batch {batch}", net, plain, (784, 512, 512, 10), batch, drop=rate)


STEPS: tuple[Callable[[], Case], ...] = (
    lambda: mlp((64, 32, 10), 32),
    lambda: mlp((784, 128, 10), 64),
    lambda: mlp((784, 512, 512, 10), 128),
    lambda: mlp((784, 2048, 2048, 10), 512),
    lambda: mlp((256,) * 21 + (10,), 128),
    lambda: mlp((64,) * 257 + (10,), 32),
    lambda: residual_stack(64, 512, 64),
    lambda: mlp((256,) * 9 + (10,), 128, jbp.sigmoid),
    lambda: mlp((256,) * 9 + (10,), 128, jbp.tanh),
    lambda: dropout(128),
    lambda: mlp((784, 512, 512, 10), 128, softmax=True),
)
"""The nets on which one gradient step and the time to it are compared."""


def in_equinox(case: Case, params: Any) -> tuple[Any, Callable[..., Any]]:
    """The same net with the same numbers as an Equinox module, and its loss (module, x, y), in Equinox's own idiom."""
    assert harness.has("equinox")
    import equinox as eqx  # type: ignore[import-not-found]

    def linear(p: Any) -> Any:
        o, i = p["weight"].shape[::-1]
        empty = eqx.nn.Linear(i, o, key=KEY)
        return eqx.tree_at(lambda m: (m.weight, m.bias), empty, (p["weight"].T, p["bias"]))

    act = PLAIN[case.activation]
    if case.depth:
        residual = isinstance(case.net.layers[0].layer, type(jbp.residual(jbp.relu)))
        stacked, last = jax.vmap(linear)(params[0][0]), linear(params[1])
        arrays, static = eqx.partition(stacked, eqx.is_array)

        def forward(module: Any, x: Any, key: Any) -> Any:
            def body(h: Any, one: Any) -> Any:
                out = act(eqx.combine(one, static)(h))
                return (h + out if residual else out), None

            return module[1](jax.lax.scan(body, x, module[0])[0])

        module: Any = (arrays, last)
    else:
        module = tuple(linear(p) for p in with_parameters(params))
        drop = eqx.nn.Dropout(case.drop) if case.drop else None

        def forward(module: Any, x: Any, key: Any) -> Any:
            for i, layer in enumerate(module[:-1]):
                x = act(layer(x))
                x = drop(x, key=jax.random.fold_in(key, i)) if drop is not None else x
            return module[-1](x)

    head = unfused if case.loss is cross_entropy else fused

    def loss(module: Any, x: Any, y: Any) -> Any:
        keys = jax.random.split(KEY, len(x)) if case.drop else None
        return head(jax.vmap(forward, (None, 0, 0 if case.drop else None))(module, x, keys), y)

    return module, loss
