"""The ways of a convolution on a CPU: whichever is taken, the numbers are the same, and other platforms take none."""

from functools import partial
from typing import Any

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
    "few channels": ((9, 8), 3, 6, Geometry((3, 2), (1, 1), ((1, 1), (0, 1)), (1, 1))),
    "few channels, strided": ((9, 8), 3, 6, Geometry((3, 2), (2, 2), ((1, 1), (0, 1)), (1, 1))),
    "depthwise, dilated": ((9, 8), 4, 4, Geometry((3, 3), (1, 1), ((2, 2), (2, 1)), (2, 2), 4)),
    "depthwise, two kernels a channel": ((9, 8), 4, 8, Geometry((3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), 4)),
    "one place": ((9, 8), 9, 3, Geometry((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))),
    "one place, strided": ((9, 8), 9, 3, Geometry((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1))),
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


def every_way(geometry: Geometry, h, weight, delta) -> tuple[Any, ...]:
    """What each way makes of the three, whether the rule takes it or not; None where a way is not for it."""
    space, depthwise, place = h.shape[1:-1], geometry.groups > 1, np.prod(geometry.kernel) == 1
    if depthwise and geometry.groups < h.shape[-1]:
        return ()
    known = ["depthwise"] if depthwise else ["rows", "place"] if place else ["rows"]
    return tuple(
        (
            getattr(routes, f"{way}_forward")(geometry, h, weight),
            getattr(routes, f"{way}_back")(geometry, space, delta, weight),
            *([getattr(routes, f"{way}_contract")(geometry, h, delta)] if way != "rows" else []),
        )
        for way in known
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
        example = jax.vmap(lambda h, delta: ways(geometry, h[None], weight, delta[None])[:2])(h, delta)
        return ways(geometry, h, weight, delta), tuple(a[:, 0] for a in example), *every_way(geometry, h, weight, delta)

    expected = jax.jit(three)(h, weight, delta)
    for found in jax.jit(ours)(h, weight, delta):
        for a, b in zip(found, expected, strict=False):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["few channels", "depthwise, two kernels a channel", "one place, strided"])
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
@pytest.mark.parametrize("name", ["few channels", "depthwise, dilated"])
def test_an_accelerator_gets_three_convolutions_and_nothing_else(name, platform):
    geometry, arrays = CASES[name][-1], operands(name, jnp.float32)
    run = jax.jit(lambda *a: ways(geometry, *a))
    text = jax.export.export(run, platforms=[platform])(*arrays).mlir_module()
    assert products(text) == {"convolution": 3, "dot_general": 0, "slice ": 0}
    here = products(jax.export.export(run, platforms=["cpu"])(*arrays).mlir_module())
    assert here["convolution"] < 3


def test_routes_are_switched_off_for_counting_and_on_again():
    """A program compiled before is not used inside, nor the one from inside afterwards."""
    geometry, arrays = CASES["one place, strided"][-1], operands("one place, strided")
    run = jax.jit(lambda *a: ways(geometry, *a))

    def count():
        return products(run.lower(*arrays).as_text())["convolution"]

    assert count() == 0
    with routes.plain():
        assert count() == 3
        with routes.plain():
            assert count() == 3
        assert count() == 3
    assert count() == 0


def test_rows_take_more_multiply_adds_by_no_more_than_the_rule_says():
    """A place and its channels take the same; δ_h of LeNet's second layer by rows a third of MOST_MORE more."""
    (h, weight, delta), geometry = operands("one place, strided"), CASES["one place, strided"][-1]
    place = product_flops(lambda *a: every_way(geometry, *a)[-1], h, weight, delta)
    assert place == 3 * 2 * delta.size * int(weight.shape[-2])
    geometry = Geometry((5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1))
    delta, weight = jnp.ones((2, 10, 10, 16)), jnp.ones((5, 5, 6, 16))
    rows = product_flops(partial(routes.rows_back, geometry, (14, 14)), delta, weight)
    band = 2 * 5 * 5 * 6 * 16 * 14 * 10
    assert rows - band == 2 * (2 * 14 * 14 * 6) * 5 * 16 * 10
    plain = 2 * delta.size * 5 * 5 * 6
    assert 2 < rows / plain <= routes.MOST_MORE


@pytest.mark.parametrize(
    ("which", "kernel", "stride", "groups", "i", "o", "way"),
    [
        ("forward", 3, 1, 1, 16, 16, None),
        ("forward", 5, 1, 1, 1, 6, "rows"),
        ("forward", 5, 1, 1, 1, 32, None),
        ("forward", 2, 1, 1, 1, 6, None),  # fourteen times the multiply-adds
        ("forward", 3, 1, 16, 16, 16, "depthwise"),
        ("forward", 3, 1, 4, 16, 16, None),
        ("forward", 1, 2, 1, 16, 32, "place"),
        ("forward", 1, 2, 1, 4, 32, None),
        ("back", 3, 1, 1, 16, 16, None),
        ("back", 5, 1, 1, 3, 8, "rows"),
        ("back", 5, 2, 1, 3, 8, None),
        ("back", 5, 1, 1, 3, 16, None),  # rows of sites too long
        ("back", 5, 1, 1, 6, 8, None),  # rows of pixels too long
        ("contract", 5, 1, 1, 3, 16, None),
        ("contract", 3, 2, 16, 16, 32, "depthwise"),
    ],
)
def test_the_rule(which, kernel, stride, groups, i, o, way):
    geometry = Geometry((kernel,) * 2, (stride,) * 2, ((0, 0),) * 2, (1, 1), groups)
    assert routes.way_of(which, geometry, (28, 28), i, o) == way
