"""Convolution inside loops: XLA's CPU compiler takes 30 to 120 times as long there for any dimension numbers but the
canonical ones, and every step of training is a loop. Read from the compiled programs."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jbp
from jbp.pairs import routes

CANONICAL = {1: "b0f_0io->b0f", 2: "b01f_01io->b01f", 3: "b012f_012io->b012f"}
KEY = jax.random.key(5)


@pytest.fixture(autouse=True)
def as_users_run_it():
    """float32 and JAX's own promotion, outside the suite's strict conditions; on the CPU."""
    cpu = jax.default_device(jax.devices("cpu")[0])
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), cpu:
        yield


def numbers_in_loops(text: str) -> list[str]:
    """The dimension numbers of the convolutions that a compiled program computes inside a loop, one for each."""
    bodies: dict[str, str] = dict(re.findall(r"^(?:ENTRY )?%(\S+) \(.*?\n(.*?)^}", text, re.MULTILINE | re.DOTALL))
    assert bodies, "no computation was found in the program's text"
    waiting = re.findall(r" while\(.*?body=%([^\s,}]+)", text)
    inside: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in inside:
            inside.add(name)
            called = re.findall(r"(?:calls|to_apply|body|condition|branch_computations)=(%\S+|\{.*?\})", bodies[name])
            waiting += [found for part in called for found in re.findall(r"%([^\s,}]+)", part)]
    return [found for name in inside for found in re.findall(r" convolution\(.*?dim_labels=([^\s,]+)", bodies[name])]


def text_of(function, *args) -> str:
    """The compiled program."""
    return jax.jit(function).lower(*args).compile().as_text() or ""


def training(net: jbp.Layer, shape: tuple[int, ...], batch: int = 4) -> str:
    """Steps of training in a loop, compiled."""
    params, _ = net.init(KEY, shape)
    run = jbp.value_and_grad(net, jbp.losses.softmax_cross_entropy)

    def steps(params, xs, ys):
        def step(params, batch):
            value, grads = run(params, *batch)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

        return lax.scan(step, params, (xs, ys))

    return text_of(steps, params, jnp.ones((2, batch, *shape)), jnp.zeros((2, batch), int))


def conv_net(kernel: int = 3) -> jbp.Layer:
    """Every kind of convolution: plain, strided, dilated, grouped, depthwise, 1×1; some of them in a `repeat`."""
    block = jbp.serial(jbp.Conv(4, kernel), jbp.relu, jbp.Conv(4, kernel, groups=2))
    return jbp.serial(
        jbp.Conv(4, kernel, padding="valid"),
        jbp.relu,
        jbp.Conv(4, kernel, stride=2),
        jbp.relu,
        jbp.Conv(4, kernel, dilation=2),
        jbp.relu,
        jbp.Conv(8, kernel, groups=2, stride=2),
        jbp.Conv(8, kernel, groups=8, stride=2),
        jbp.Conv(4, 1, stride=2),
        jbp.repeat(jbp.residual(block), 2),
        jbp.GlobalPool(),
        jbp.Dense(3),
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_convolution_in_a_loop_has_canonical_dimension_numbers(dims):
    """Those of the forward pass, of δ and of the contraction; of the first layer no δ is needed."""
    with routes.plain():
        found = numbers_in_loops(training(conv_net(), (11,) * dims + (3,)))
    assert set(found) == {CANONICAL[dims]}
    assert len(found) >= 20


def test_the_reader_sees_autodiffs_convolutions_in_a_loop():
    """Otherwise the test above could not fail."""
    labels = ("NHWC", "HWIO", "NHWC")

    def loss(w, x):
        return jnp.square(lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=labels)).sum()

    def steps(w, xs):
        return lax.scan(lambda w, x: (w - jax.grad(loss)(w, x), None), w, xs)[0]

    weight = jnp.ones((3, 3, 2, 4))
    assert set(numbers_in_loops(text_of(steps, weight, jnp.ones((2, 4, 8, 8, 2))))) > {CANONICAL[2]}
    assert not numbers_in_loops(text_of(jax.grad(loss), weight, jnp.ones((4, 8, 8, 2))))
