"""A step of a convolutional net costs no more than autodiff's: FLOPs and bytes of temporaries, counted, not timed.

Counted with the convolutions as an accelerator has them (`routes.plain()`). The reference is the plain forward pass one
would write for speed, under `jax.jit(jax.value_and_grad(...))`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import product_flops, xla_cost
from jax import lax

import jbp
from jbp.losses import softmax_cross_entropy
from jbp.pairs import routes

LIMIT = 1.005
KEY = jax.random.key(3)
MORE_FLOPS_ON_OLD_JAX = {"GroupNorm": 1.02}
"""XLA of JAX 0.10 takes the barrier away before it fuses: of 134 million operations here, 2.5 million are those of the
normalisation's δ_x, eleven a number, computed again for a second reader. JAX 0.12 computes them once (0.997)."""
MORE_FLOPS = MORE_FLOPS_ON_OLD_JAX if jax.__version_info__ < (0, 11) else {}
NUMBERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


class Cost(NamedTuple):
    name: str
    net: Any
    plain: Callable[..., Any]
    """The outputs, of the parameters that are not empty and x."""
    shape: tuple[int, ...]
    batch: int
    loops: bool = False


def conv(h, p, padding="SAME", stride=1, groups=1):
    d = h.ndim - 2
    y = lax.conv_general_dilated(
        h, p["weight"], (stride,) * d, padding, dimension_numbers=NUMBERS[d], feature_group_count=groups
    )
    return y + p["bias"]


def dense(h, p):
    return h @ p["weight"] + p["bias"]


def reshape_max(h):
    n, a, b, c = h.shape
    return h.reshape(n, a // 2, 2, b // 2, 2, c).max((2, 4))


def window_max(h):
    return lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def reshape_mean(h):
    n, a, b, c = h.shape
    return h.reshape(n, a // 2, 2, b // 2, 2, c).mean((2, 4))


def lenet(activation, pool, plain_activation, plain_pool):
    net = jbp.serial(
        jbp.Conv(6, 5), activation, pool, jbp.Conv(16, 5, padding="valid"), activation, pool, jbp.Flatten(),
        jbp.Dense(120), activation, jbp.Dense(84), activation, jbp.Dense(10),
    )  # fmt: skip

    def plain(p, x):
        h = plain_pool(plain_activation(conv(x, p[0])))
        h = plain_pool(plain_activation(conv(h, p[1], "VALID"))).reshape(len(x), -1)
        for q in p[2:4]:
            h = plain_activation(dense(h, q))
        return dense(h, p[4])

    return Cost(f"LeNet-5 {activation!r} {plain_pool.__name__}", net, plain, (28, 28, 1), 64)


def basic(width, stride=1):
    body = jbp.serial(jbp.Conv(width, 3, stride=stride), jbp.relu, jbp.Conv(width, 3))
    return jbp.residual(body) if stride == 1 else jbp.branch(body, jbp.Conv(width, 1, stride=stride), join="sum")


def plain_basic(h, body, shortcut=None):
    stride = 1 if shortcut is None else 2
    s = conv(jax.nn.relu(conv(h, body[0], stride=stride)), body[2])
    return s + (h if shortcut is None else conv(h, shortcut, stride=2))


def resnet20():
    parts = [jbp.Conv(16, 3), jbp.relu]
    for width in (16, 32, 64):
        for k in range(3):
            parts += [basic(width, 2 if k == 0 and width > 16 else 1), jbp.relu]
    net = jbp.serial(*parts, jbp.GlobalPool(), jbp.Dense(10))

    def plain(p, x):
        first, *blocks, last = p
        h = jax.nn.relu(conv(x, first))
        for k, block in enumerate(blocks):
            h = jax.nn.relu(plain_basic(h, *block) if k in (3, 6) else plain_basic(h, block))
        return dense(h.mean((1, 2)), last)

    return Cost("ResNet-20", net, plain, (32, 32, 3), 16)


def repeated():
    block = jbp.residual(jbp.serial(jbp.Conv(16, 3), jbp.relu, jbp.Conv(16, 3)))
    net = jbp.serial(jbp.Conv(16, 3), jbp.repeat(block, 6), jbp.GlobalPool(), jbp.Dense(10))

    def plain(p, x):
        h, _ = lax.scan(lambda h, q: (plain_basic(h, q), None), conv(x, p[0]), p[1])
        return dense(h.mean((1, 2)), p[2])

    return Cost("repeat of residual blocks", net, plain, (16, 16, 3), 32, loops=True)


def separable():
    parts = [jbp.Conv(16, 3), jbp.relu]
    for i, o, stride in ((16, 32, 1), (32, 64, 2), (64, 64, 1)):
        parts += [jbp.Conv(i, 3, groups=i, stride=stride), jbp.relu, jbp.Conv(o, 1), jbp.relu]
    net = jbp.serial(*parts, jbp.GlobalPool(), jbp.Dense(10))

    def plain(p, x):
        h = jax.nn.relu(conv(x, p[0]))
        for k, stride in ((1, 1), (3, 2), (5, 1)):
            h = jax.nn.relu(conv(h, p[k], stride=stride, groups=h.shape[-1]))
            h = jax.nn.relu(conv(h, p[k + 1]))
        return dense(h.mean((1, 2)), p[7])

    return Cost("depthwise-separable", net, plain, (16, 16, 3), 32)


def one_dimension():
    net = jbp.serial(
        jbp.Conv(16, 9), jbp.relu, jbp.Conv(32, 5, stride=2), jbp.relu, jbp.Conv(32, 5, stride=2), jbp.relu,
        jbp.GlobalPool(), jbp.Dense(10),
    )  # fmt: skip

    def plain(p, x):
        h = jax.nn.relu(conv(x, p[0]))
        for q in p[1:3]:
            h = jax.nn.relu(conv(h, q, stride=2))
        return dense(h.mean(1), p[3])

    return Cost("one dimension", net, plain, (128, 1), 32)


def with_norms(name, norm, plain_norm):
    net = jbp.serial(jbp.Conv(16, 3), norm, jbp.relu, jbp.Conv(16, 3), norm, jbp.relu, jbp.GlobalPool(), jbp.Dense(10))

    def plain(p, x):
        h = jax.nn.relu(plain_norm(conv(x, p[0]), p[1]))
        h = jax.nn.relu(plain_norm(conv(h, p[2]), p[3]))
        return dense(h.mean((1, 2)), p[4])

    return Cost(name, net, plain, (16, 16, 3), 32)


def layer_norm(h, p):
    h = h - h.mean(-1, keepdims=True)
    return h * lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def rms_norm(h, p):
    return h * lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-5) * p["scale"]


def group_norm(h, p):
    n, a, b, c = h.shape
    parts = h.reshape(n, a, b, 4, c // 4)
    parts = parts - parts.mean((1, 2, 4), keepdims=True)
    parts = parts * lax.rsqrt(jnp.square(parts).mean((1, 2, 4), keepdims=True) + 1e-5)
    return parts.reshape(h.shape) * p["scale"] + p["bias"]


def tokens(name, norm, plain_norm):
    net = jbp.serial(jbp.Dense(128), norm, jbp.relu, jbp.Dense(128), norm, jbp.relu, jbp.Dense(10))

    def plain(p, x):
        h = jax.nn.relu(plain_norm(dense(x, p[0]), p[1]))
        h = jax.nn.relu(plain_norm(dense(h, p[2]), p[3]))
        return dense(h, p[4])

    return Cost(name, net, plain, (64,), 256)


COSTS = [
    lenet(jbp.relu, jbp.MaxPool(2), jax.nn.relu, reshape_max),
    lenet(jbp.relu, jbp.MaxPool(2), jax.nn.relu, window_max),
    lenet(jbp.tanh, jbp.AvgPool(2), jnp.tanh, reshape_mean),
    resnet20(),
    repeated(),
    separable(),
    one_dimension(),
    with_norms("LayerNorm on images", jbp.LayerNorm(), layer_norm),
    with_norms("RMSNorm on images", jbp.RMSNorm(), rms_norm),
    with_norms("GroupNorm", jbp.GroupNorm(4), group_norm),
    tokens("LayerNorm", jbp.LayerNorm(), layer_norm),
    tokens("RMSNorm", jbp.RMSNorm(), rms_norm),
]


@pytest.fixture(autouse=True)
def as_users_run_it():
    """float32 and JAX's own promotion, outside the suite's strict conditions."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module", autouse=True)
def plain_convolutions():
    with routes.plain():
        yield


def used(params):
    """The parameters that are arrays, in order."""
    return [p for p in params if p != ()]


@pytest.mark.parametrize("case", COSTS, ids=lambda case: case.name)
def test_a_step_costs_no_more_than_autodiffs(case):
    params, _ = case.net.init(KEY, case.shape)
    args = params, jax.random.normal(KEY, (case.batch, *case.shape)), jnp.arange(case.batch) % 10

    def plain(params, x, y):
        z = case.plain(used(params), x)
        return (jax.nn.logsumexp(z, axis=-1) - jnp.take_along_axis(z, y[:, None], 1)[:, 0]).mean()

    run, reference = jbp.value_and_grad(case.net, softmax_cross_entropy), jax.value_and_grad(plain)
    flops, temporaries, program = xla_cost(run, *args)
    their_flops, their_temporaries, their_program = xla_cost(reference, *args)
    if case.loops:  # where XLA counts a loop's body once
        flops, their_flops = product_flops(run, *args), product_flops(reference, *args)
    more = temporaries - their_temporaries
    print(f"{case.name}: FLOPs {flops / their_flops:.4f}, bytes {temporaries / their_temporaries:.4f} ({more:+d})")
    np.testing.assert_allclose(program(*args)[0], their_program(*args)[0], rtol=2e-6)
    assert flops <= MORE_FLOPS.get(case.name, LIMIT) * their_flops
    assert temporaries <= LIMIT * their_temporaries
