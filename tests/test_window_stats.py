# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
"""Statistics of kernels against brute force: second moments, spread, Gram matrices, records, Kronecker factors and
Gauss-Newton diagonals of nets whose kernels are strided, dilated, grouped, tied and repeated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCH, NetCase, drawn, random
from oracles import assert_close, compiled, plain, plain_errors, whole
from test_statistics import check

import jbp
from jbp import curvature, losses, stats

LOSS = losses.l2_loss
HEAD = (jbp.Flatten(), jbp.Dense(2))


def net(*layers: Any, ties: Any = None) -> Any:
    inside = jbp.serial(*layers, *HEAD)
    return inside if ties is None else jbp.tied(inside, ties)


NETS = {
    case.name: case
    for case in (
        NetCase("one dimension, then one site", net(jbp.Conv(3, 3, dilation=2), jbp.tanh, jbp.Conv(2, 7, padding="valid")), (7, 2), True),
        NetCase(
            "strided, grouped, depthwise",
            net(
                jbp.Conv(4, (3, 2), stride=(2, 1), padding=((1, 0), (2, 1)), dilation=(1, 2), groups=2),
                jbp.tanh,
                jbp.Conv(4, 2, stride=2, groups=4),
            ),
            (7, 5, 4),
            True,
        ),
        NetCase(
            "a kernel used twice", net(jbp.Conv(2, 3), jbp.tanh, jbp.Conv(2, 3), jbp.tanh, ties={2: 0}), (5, 4, 2), True
        ),
        NetCase(
            "a kernel on images of two sizes",
            net(jbp.Conv(2, 3), jbp.tanh, jbp.MaxPool(2), jbp.Conv(2, 3), jbp.tanh, ties={3: 0}),
            (6, 4, 2),
            True,
        ),
        NetCase("repeated", net(jbp.repeat(jbp.residual(jbp.serial(jbp.Conv(2, 2), jbp.tanh)), 3)), (4, 3, 2), True),
    )
}


@pytest.mark.parametrize("name", NETS)
def test_all_statistics_are_those_of_the_gradients_formed(name: str):
    case = NETS[name]
    params, x, target, _ = drawn(case)
    weights = jnp.asarray(random(name).uniform(0.1, 2, BATCH))
    check(case.net, LOSS, params, x, target, weights, "net", [jnp.float64])


@pytest.mark.parametrize("name", NETS)
def test_the_gauss_newton_diagonal_is_that_of_the_jacobians(name: str):
    """Of ½‖output − y‖² it is Σₖ (∂outputₖ/∂θ)²."""
    case = NETS[name]
    params, x, target, _ = drawn(case)
    weights = jnp.asarray(random(name).uniform(0.1, 2, BATCH)).at[2].set(0.0)

    def ours(p: Any, x: Any, y: Any, w: Any) -> Any:
        at = (case.net, LOSS, p, x, y)
        return (
            curvature.gauss_newton_diagonal(*at),
            curvature.gauss_newton_diagonal(*at, weights=w),
            curvature.gauss_newton_diagonal(*at, per_example=True),
        )

    columns = compiled(jax.jacrev(lambda p: plain(case.net, p, x)))(params)
    each = jax.tree.map(lambda j: jnp.square(j).sum(1), columns)
    wanted = (
        jax.tree.map(lambda d: d.mean(0), each),
        jax.tree.map(lambda d: jnp.tensordot(weights, d, 1), each),
        each,
    )
    assert_close(compiled(ours)(params, x, target, weights), wanted, "net")
