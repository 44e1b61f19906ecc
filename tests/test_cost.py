"""A training step costs no more than autodiff's: FLOPs, bytes of temporaries, same loss. Counted by XLA, not timed.

The reference is the plain forward pass one would write for speed, under `jax.jit(jax.value_and_grad(...))`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import product_flops, xla_cost

import jbp
from jbp.losses import softmax_cross_entropy

LIMIT = 1.005
KEY = jax.random.key(3)
PLAIN = {jbp.relu: jax.nn.relu, jbp.tanh: jnp.tanh, jbp.sigmoid: jax.nn.sigmoid}

# XLA of JAX 0.12, read from the compiled schedules: it puts δ·Wᵀ of the last weight before the contraction h⊗δ of that
# weight, where autodiff's program, with the same operations, has them the other way round. So the h and the δ of the
# last hidden layer live at the same time: one more buffer [n, width], float32, at most. In 784-512-512-10 that slot is
# reused by the layer below and what remains is one [n, 10], the logits. JAX 0.10 needs no exception.
MORE_BYTES_ON_NEW_JAX = {
    "64-32-10 relu, batch 32": 4 * 32 * 32,
    "784-128-10 relu, batch 64": 4 * 64 * 128,
    "784-512-512-10 relu, batch 128": 4 * 128 * 10,
    "dropout 784-512-512-10": 4 * 128 * 512,
}
MORE_BYTES = MORE_BYTES_ON_NEW_JAX if jax.__version_info__ >= (0, 11) else {}


class Cost(NamedTuple):
    name: str
    net: Any
    plain: Callable[..., Any]
    shape: tuple[int, ...]
    batch: int
    loops: bool = False
    same_draw: Callable[..., Any] | None = None
    """The reference for the loss, if the cheapest one (`plain`) draws otherwise."""
    loss: Any = softmax_cross_entropy


def dense(h, p):
    return h @ p["weight"] + p["bias"]


def plain_loss(logits, y):
    picked = jnp.take_along_axis(logits, y[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=-1) - picked).mean()


def unfused_loss(logits, y):
    return -jnp.log(jnp.take_along_axis(jax.nn.softmax(logits), y[:, None], 1)).mean()


def mlp(widths, batch, activation, unfused=False):
    layers = [layer for width in widths[1:] for layer in (jbp.Dense(width), activation)]

    def plain(params, x, y, key):
        *hidden, last = (p for p in params if p != ())
        for p in hidden:
            x = PLAIN[activation](dense(x, p))
        return (unfused_loss if unfused else plain_loss)(dense(x, last), y)

    shown = "-".join(map(str, widths)) if len(widths) < 6 else f"{len(widths) - 2} layers of {widths[1]}"
    name = f"{shown} {activation!r}{', unfused softmax' * unfused}, batch {batch}"
    net = jbp.serial(*layers[:-1], *[jbp.softmax] * unfused)
    return Cost(
        name, net, plain, widths[:1], batch, loss=jbp.losses.cross_entropy if unfused else softmax_cross_entropy
    )


def repeat(activation, residual, depth=16, width=128):
    block = [jbp.Dense(width), activation] + [jbp.Dense(width)] * residual
    layer = jbp.residual(jbp.serial(*block)) if residual else jbp.serial(*block)

    def plain_block(h, p):
        s = PLAIN[activation](dense(h, p[0]))
        return (h + dense(s, p[2]) if residual else s), None

    def plain(params, x, y, key):
        h, _ = jax.lax.scan(plain_block, dense(x, params[0]), params[1])
        return plain_loss(dense(h, params[2]), y)

    net = jbp.serial(jbp.Dense(width), jbp.repeat(layer, depth), jbp.Dense(10))
    return Cost(f"{depth}-deep repeat{' residual' * residual} {activation!r}", net, plain, (64,), 64, loops=True)


def dropout():
    net = [jbp.Dense(512), jbp.relu, jbp.Dropout(0.2)] * 2 + [jbp.Dense(10)]

    def by(kept):
        def plain(params, x, y, key):
            *hidden, last = (p for p in params if p != ())
            for p, k in zip(hidden, jax.random.split(key, len(net))[2::3], strict=True):
                x = jax.nn.relu(dense(x, p))
                x = jnp.where(kept(k, x), x / 0.8, 0)
            return plain_loss(dense(x, last), y)

        return plain

    def whole_batch(key, x):
        return jax.random.bernoulli(key, 0.8, x.shape)

    def each_example(key, x):
        bits = jax.vmap(lambda k: jax.random.bits(k, x.shape[1:], jnp.uint32))(jax.random.split(key, len(x)))
        return bits >= jnp.uint32(int(0.2 * 2**32))

    cheapest, same = by(whole_batch), by(each_example)
    return Cost("dropout 784-512-512-10", jbp.serial(*net), cheapest, (784,), 128, same_draw=same)


COSTS = [
    mlp((64, 32, 10), 32, jbp.relu),
    mlp((784, 128, 10), 64, jbp.relu),
    mlp((784, 512, 512, 10), 128, jbp.relu),
    mlp((784, 512, 512, 10), 128, jbp.tanh),
    mlp((784, 512, 512, 10), 128, jbp.sigmoid),
    mlp((784, 2048, 2048, 10), 512, jbp.relu),
    mlp((784, 512, 512, 10), 128, jbp.relu, unfused=True),
    mlp((256,) * 21 + (10,), 64, jbp.relu),
    mlp((64,) * 257 + (10,), 32, jbp.relu),
    *(repeat(activation, residual) for activation in (jbp.relu, jbp.tanh) for residual in (False, True)),
    repeat(jbp.relu, True, 64, 512),
    dropout(),
]


@pytest.fixture(autouse=True)
def as_users_run_it():
    """float32 and JAX's own promotion, outside the suite's strict conditions."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


LARGE = {"784-2048-2048-10 relu, batch 512", "256 layers of 64 relu, batch 32", "64-deep repeat residual relu"}


def _marked(case: Cost) -> Any:
    return pytest.param(case, marks=[pytest.mark.soak] if case.name in LARGE else [], id=case.name)


@pytest.mark.parametrize("case", list(map(_marked, COSTS)))
def test_a_step_costs_no_more_than_autodiffs(case):
    params, _ = case.net.init(KEY, case.shape)
    x = jax.random.normal(KEY, (case.batch, *case.shape))
    args = params, x, jnp.arange(case.batch) % 10, KEY
    run, reference = jbp.value_and_grad(case.net, case.loss), jax.value_and_grad(case.plain)
    flops, temporaries, program = xla_cost(run, *args)
    their_flops, their_temporaries, their_program = xla_cost(reference, *args)
    if case.loops:  # where XLA counts a loop's body once
        flops, their_flops = product_flops(run, *args), product_flops(reference, *args)

    more = temporaries - their_temporaries
    print(f"{case.name}: FLOPs {flops / their_flops:.4f}, bytes {temporaries / their_temporaries:.4f} ({more:+d})")
    their_value = jax.jit(case.same_draw)(*args) if case.same_draw else their_program(*args)[0]
    assert np.isfinite(their_value)
    np.testing.assert_allclose(program(*args)[0], their_value, rtol=2e-6)
    assert flops <= LIMIT * their_flops
    assert temporaries <= LIMIT * their_temporaries or more <= MORE_BYTES.get(case.name, 0)


def test_exceptions_are_small_and_name_a_case():
    assert set(MORE_BYTES_ON_NEW_JAX) <= {case.name for case in COSTS}
    assert max(MORE_BYTES_ON_NEW_JAX.values()) < 500_000
    assert {case.name for case in COSTS} > LARGE


def test_the_counter_counts_products_in_loops_and_only_live_ones():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 5))

    def looped(a, b):
        h, _ = jax.lax.scan(lambda h, _: (jax.jit(jnp.matmul)(h, b), h), a, None, length=7)
        _ = a @ b  # dead
        return h

    assert product_flops(looped, a, b) == 7 * 2 * 3 * 5 * 5
    assert product_flops(lambda a, b: jax.vmap(lambda row: row @ b)(a), a, b) == 2 * 3 * 5 * 5
    image, kernel = jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 2, 2))
    convolve = jax.jit(lambda i, k: jax.lax.conv(i, k, (1, 1), "VALID"))
    assert product_flops(convolve, image, kernel) == 2 * (2 * 5 * 7 * 7) * (3 * 2 * 2)
    with pytest.raises(NotImplementedError, match="while"):
        product_flops(lambda b: jax.lax.while_loop(lambda b: b[0, 0] < 9, lambda b: b @ b, b), b)
