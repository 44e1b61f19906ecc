"""The ways of a convolution on a CPU: whichever is taken, the numbers are the same, and other platforms take none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import product_flops
from jax import lax

from jbp.pairs import Geometry, routes

NUMBERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
CASES = {  # space, i, o, and the geometry
    "one channel": ((9, 8), 1, 6, Geometry((3, 3), (1, 1), ((1, 1), (1, 2)), (1, 1))),
    "few channels, strided": ((9, 8), 3, 6, Geometry((3, 2), (2, 2), ((1, 1), (0, 1)), (1, 1))),
    "depthwise, dilated": ((9, 8), 4, 4, Geometry((3, 3), (1, 1), ((2, 2), (2, 1)), (2, 2), 4)),
    "depthwise, two kernels a channel": ((9, 8), 4, 8, Geometry((3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), 4)),
    "one place": ((9, 8), 5, 3, Geometry((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))),
    "one place, strided": ((9, 8), 5, 3, Geometry((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1))),
    "one dimension": ((11,), 9, 5, Geometry((3,), (2,), ((1, 0),), (2,))),
    "three dimensions": ((5, 4, 3), 9, 3, Geometry((2, 2, 3), (2, 1, 1), ((1, 0), (2, 1), (1, 1)), (1, 1, 1))),
    "kernel larger than its image": ((4, 3), 9, 6, Geometry((5, 3), (1, 1), ((2, 2), (1, 2)), (1, 1))),
    "more sites than pixels": ((6, 6), 9, 2, Geometry((4, 4), (1, 1), ((3, 2), (2, 3)), (1, 1))),
    "kernel larger, dilated and strided": ((5,), 9, 2, Geometry((4,), (3,), ((3, 4),), (2,))),
    "groups": ((8, 8), 4, 6, Geometry((3, 3), (2, 2), ((1, 1), (0, 1)), (1, 1), 2)),
}


def operands(name: str, dtype=float):
    """h [n, *s, i], weight [*k, i/g, o], δ [n, *u, o] of a case."""
    space, i, o, geometry = CASES[name]
    rng = np.random.default_rng(len(name))
    shapes = (4, *space, i), (*geometry.kernel, i // geometry.groups, o), (4, *geometry.sites(space), o)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def ways(geometry: Geometry, h, weight, delta):
    """The three convolutions."""
    space = h.shape[1:-1]
    return geometry.forward(h, weight), geometry.back(delta, weight, space), geometry.contract(h, delta)


def over_offsets(geometry: Geometry, h, weight, delta):
    """The three by way of the offsets, whether it pays or not."""
    return (
        routes.forward_over_offsets(geometry, h, weight),
        routes.back_over_offsets(geometry, h.shape[1:-1], delta, weight),
        routes.contract_over_offsets(geometry, h, delta),
    )


@pytest.mark.parametrize("name", CASES)
def test_each_way_is_autodiffs_convolution(name):
    geometry, (h, weight, delta) = CASES[name][-1], operands(name)
    d = geometry.dims

    def convolve(h, weight):
        return lax.conv_general_dilated(
            h, weight, geometry.stride, geometry.padding, (1,) * d, geometry.dilation, NUMBERS[d],
            feature_group_count=geometry.groups,
        )  # fmt: skip

    def three(h, weight, delta):
        y, back = jax.vjp(convolve, h, weight)
        return y, *back(delta)

    def ours(h, weight, delta):
        answers = [ways(geometry, h, weight, delta)]
        example = jax.vmap(lambda h, delta: ways(geometry, h[None], weight, delta[None])[:2])(h, delta)
        answers.append(tuple(a[:, 0] for a in example))
        if geometry.groups in (1, h.shape[-1]):
            answers.append(over_offsets(geometry, h, weight, delta))
        return answers

    expected = jax.jit(three)(h, weight, delta)
    for found in jax.jit(ours)(h, weight, delta):
        for a, b in zip(found, expected, strict=False):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["few channels, strided", "depthwise, two kernels a channel", "one place, strided"])
def test_complex_numbers_and_tangents_go_each_way(name):
    """`jbp.check` steps into the complex plane, and takes derivatives of the forward and of the backward pass."""
    geometry, real = CASES[name][-1], operands(name)
    tiny = tuple(lax.complex(a, 1e-20 * a) for a in real)
    values, tangents = jax.jit(lambda *a: jax.jvp(lambda *b: ways(geometry, *b), a, a))(*real)
    stepped = jax.jit(lambda *a: ways(geometry, *a))(*tiny)
    for value, tangent, step in zip(values, tangents, stepped, strict=True):
        np.testing.assert_allclose(tangent, 2 * value, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(step.imag * 1e20, tangent, rtol=1e-12, atol=1e-12)


def products(text: str) -> dict[str, int]:
    """How many convolutions and products a lowered program has."""
    return {name: text.count(f"stablehlo.{name}") for name in ("convolution", "dot_general", "slice ")}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["few channels, strided", "depthwise, dilated"])
def test_an_accelerator_gets_three_convolutions_and_nothing_else(name, platform):
    geometry, arrays = CASES[name][-1], operands(name, jnp.float32)
    run = jax.jit(lambda *a: ways(geometry, *a))
    text = jax.export.export(run, platforms=[platform])(*arrays).mlir_module()
    assert products(text) == {"convolution": 3, "dot_general": 0, "slice ": 0}
    here = products(jax.export.export(run, platforms=["cpu"])(*arrays).mlir_module())
    assert here["convolution"] < 3
    assert here["slice "] > 0


def test_routes_are_switched_off_for_counting_and_on_again():
    """A program compiled before is not used inside, nor the one from inside afterwards."""
    geometry, arrays = CASES["few channels, strided"][-1], operands("few channels, strided")
    run = jax.jit(lambda *a: ways(geometry, *a))

    def count():
        return products(run.lower(*arrays).as_text())["convolution"]

    assert count() == 1
    with routes.plain():
        assert count() == 3
        with routes.plain():
            assert count() == 3
        assert count() == 3
    assert count() == 1


@pytest.mark.parametrize("name", ["few channels, strided", "one dimension", "three dimensions"])
def test_a_route_takes_the_multiply_adds_of_the_convolution(name):
    geometry, (h, weight, delta) = CASES[name][-1], operands(name)
    counted = product_flops(partial(over_offsets, geometry), h, weight, delta)
    assert counted == 3 * 2 * delta.size * h.shape[-1] * np.prod(geometry.kernel)


@pytest.mark.parametrize(
    ("way", "kernel", "stride", "groups", "i", "o", "pays"),
    [
        ("forward", 3, 1, 1, 16, 16, False),
        ("forward", 5, 1, 1, 1, 6, True),
        ("forward", 5, 1, 1, 1, 32, False),
        ("forward", 3, 1, 16, 16, 16, True),
        ("forward", 3, 1, 4, 16, 16, False),
        ("forward", 1, 2, 1, 16, 32, True),
        ("back", 3, 1, 1, 16, 16, False),
        ("back", 3, 2, 1, 16, 32, True),
        ("back", 5, 1, 1, 6, 16, True),
        ("contract", 3, 1, 1, 16, 16, False),
        ("contract", 3, 2, 1, 16, 32, True),
        ("contract", 8, 2, 1, 1, 16, False),
    ],
)
def test_the_rule(way, kernel, stride, groups, i, o, pays):
    geometry = Geometry((kernel,) * 2, (stride,) * 2, ((0, 0),) * 2, (1, 1), groups)
    assert routes.pays(way, geometry, i, o) is pays
