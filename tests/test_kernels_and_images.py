"""Kernels as large as what they slide over, or larger: small images, the last layers of a net, δ of few sites."""

import jax
import jax.numpy as jnp
import pytest
from oracles import assert_close

import jbp

CASES = [
    ((5,), (3,), ((4, 4),)),
    ((4,), (3,), ((1, 0),)),
    ((5, 5), (5, 4), ((4, 4), (4, 4))),
    ((3, 4), (3, 4), ((0, 0), (0, 0))),
]


@pytest.mark.parametrize("kernel, space, padding", CASES, ids=str)
def test_a_kernel_larger_than_its_image_multiplies_what_it_sees(kernel, space, padding):
    geometry = jbp.Geometry(kernel, (1,) * len(kernel), padding, (1,) * len(kernel))
    keys = jax.random.split(jax.random.key(3), 3)
    h, weight = jax.random.normal(keys[0], (2, *space, 3)), jax.random.normal(keys[1], (*kernel, 3, 4))
    delta = jax.random.normal(keys[2], (2, *geometry.sites(space), 4))

    def seen(h, weight):
        return jnp.einsum("...ki,kio->...o", geometry.windows(h), weight.reshape(-1, 3, 4))

    y, back = jax.vjp(seen, h, weight)
    found = geometry.forward(h, weight), geometry.back(delta, weight, space), geometry.contract(h, delta)
    assert_close(found, (y, *back(delta)), "net")
