"""Per-example quantities in twenty lines of user code on JAX's own `with_logs`, beside jbp; prints JSON.

JAX 0.12 has `custom_vjp.defvjp_with_logs`: a backward rule may hand out what it has, and `jax.vjp(...)[1].with_logs`
collects it. `logged` below hands out (h, δ) of each layer, and from these the norms and the clipped sum follow as they
do in jbp; this is what somebody who needs only them can write without it. A dense layer's norm is the product of two; a
convolution's is read from its per-example gradients, one layer at a time, the shortest way to write it.

A process of its own, since the rest of the benchmark runs on older JAX too:

    python per_example_logs.py NET BATCH ROUNDS
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(path) for path in Path(__file__).resolve().parents[:3]]

import harness  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import models  # noqa: E402
import numpy as np  # noqa: E402
import spatial  # noqa: E402
from counting import product_flops  # noqa: E402

import jbp  # noqa: E402
from jbp import stats  # noqa: E402
from jbp.pairs import routes  # noqa: E402

CLIP = 1.0
QUANTITIES = ("norms", "both", "clipped")


# The twenty lines.
def logged(name: Any, apply: Any) -> Any:
    """The layer `apply` (h, p), which hands out its h and δ under this name."""
    layer: Any = jax.custom_vjp(apply)

    def backward(saved: Any, delta: Any) -> Any:
        return jax.vjp(apply, *saved)[1](delta), {name: (saved[0], delta)}

    layer.defvjp_with_logs(lambda h, p: (apply(h, p), (h, p)), backward)
    return layer


def one(apply: Any, p: Any, h: Any, delta: Any) -> Any:
    """‖gₙ‖² of a layer."""
    if apply is models.dense:
        return jnp.square(delta).sum(1) * (1 + jnp.square(h).sum(1))
    each = jax.vmap(lambda h, d: jax.vjp(lambda q: apply(h[None], q), p)[1](d[None])[0])(h, delta)
    return sum(jnp.square(g).reshape(len(h), -1).sum(1) for g in jax.tree.leaves(each))


def total(apply: Any, p: Any, h: Any, delta: Any) -> Any:
    """Σₙ gₙ of a layer."""
    return jax.vjp(lambda q: apply(h, q), p)[1](delta)[0]


def with_logs(applies: list[Any], forward: Any, params: list[Any], x: Any, y: Any) -> Any:
    """‖gₙ‖, the gradient and the clipped sum; under `jit` what is not used is not computed."""
    layers, names = [logged(i, f) for i, f in enumerate(applies)], range(len(applies))
    back: Any
    value, back = jax.vjp(lambda params: len(x) * models.fused(forward(layers, params, x), y), params)
    (grads,), logs = back.with_logs(jnp.ones_like(value))
    norms = jnp.sqrt(sum(one(applies[i], params[i], *logs[i]) for i in names))
    c = jnp.minimum(1, CLIP / norms)
    clipped = [total(applies[i], params[i], logs[i][0], jax.vmap(jnp.multiply)(c, logs[i][1])) for i in names]
    return {"norms": norms, "both": (norms, grads), "clipped": clipped}


# The nets, as functions of their layers.
def dense_net_forward(layers: Any, params: Any, x: Any) -> Any:
    """Dense layers with relu between them."""
    for layer, p in zip(layers[:-1], params[:-1], strict=True):
        x = jax.nn.relu(layer(x, p))
    return layers[-1](x, params[-1])


def conv_net(strides: tuple[int, int], paddings: tuple[str, str], pool: int | None, dense: int) -> Any:
    """Two convolutions with relu and a max pool, then dense layers."""

    def convolution(stride: int, padding: str) -> Any:
        return lambda h, p: spatial.convolved(h, p, stride, padding)

    def forward(layers: Any, params: Any, x: Any) -> Any:
        for layer, p in zip(layers[:2], params[:2], strict=True):
            x = spatial.pooled(jax.nn.relu(layer(x, p)), 2, "max", stride=pool)
        return dense_net_forward(layers[2:], params[2:], x.reshape(len(x), -1))

    return [*map(convolution, strides, paddings), *[models.dense] * dense], forward


def net(name: str, batch: int) -> tuple[Any, list[Any], Any]:
    """The case, its layers with parameters, and the forward pass through them."""
    if name == "LeNet-5":
        return spatial.lenet(batch), *conv_net((1, 1), ("SAME", "VALID"), None, 3)
    if name == "DP-CNN":
        return spatial.private(batch), *conv_net((2, 2), ("SAME", "VALID"), 1, 2)
    case = models.mlp(tuple(map(int, name.split("-"))), batch)
    return case, [models.dense] * (len(case.widths) - 1), dense_net_forward


def numbers_of(params: Any) -> list[Any]:
    """The parameters of each layer that has some."""
    return [p for p in params if p != ()]


def of_jbp(case: Any) -> Callable[..., Any]:
    """The same three from one backward pass."""

    def read(*args: Any) -> Any:
        pairs = jbp.value_and_pairs(case.net, case.loss, *args)[1]
        norms = stats.norms(pairs)
        grads = jax.tree.map(lambda pair: pair.total(), pairs, is_leaf=jbp.pairs.is_pair)
        return {"norms": norms, "both": (norms, grads), "clipped": stats.clipped(pairs, CLIP)}

    return read


def main(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """FLOPs and bytes over a plain gradient's, and times; jbp's and the twenty lines'."""
    if not hasattr(jax.custom_vjp, "defvjp_with_logs"):
        return {"why": f"needs JAX 0.12, here is {jax.__version__}"}
    case, layers, forward = net(name, batch)
    args = case.arguments()
    out: dict[str, Any] = {"jax": jax.__version__}
    plain = case.ours()
    base = harness.compiled(plain, *args)
    with routes.plain():  # what is counted, not what is timed
        work, bare = product_flops(plain, *args), harness.compiled(plain, *args)
    ours = of_jbp(case)
    for what in QUANTITIES:
        reads: dict[str, Any] = {
            "jbp": lambda p, x, y, w=what: ours(p, x, y)[w],
            "with_logs": lambda p, x, y, w=what: with_logs(layers, forward, numbers_of(p), x, y)[w],
        }
        built = {way: harness.compiled(read, *args) for way, read in reads.items()}
        found = [np.concatenate([np.ravel(a) for a in jax.tree.leaves(program(*args))]) for program in built.values()]
        assert np.linalg.norm(found[0] - found[1]) <= 1e-3 * np.linalg.norm(found[1]), (name, what)
        runs = {way: (lambda p=program: p(*args)) for way, program in built.items()}
        times = harness.in_turn({"plain": lambda: base(*args)} | runs, rounds)
        out[what] = {}
        with routes.plain():
            for way, read in reads.items():
                program = harness.compiled(read, *args)
                out[what][way] = {
                    "flops": product_flops(read, *args) / work,
                    "xla flops": harness.flops(program) / harness.flops(bare),
                    "bytes": harness.temporaries(program) / harness.temporaries(bare),
                    "time": list(times[way] / times["plain"]),
                }
    return out


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:4]))))
