"""Programs of every kind, lowered for machines that are not here: CPUs, NVIDIA's and AMD's GPUs, TPUs.

Lowering sees what a compiler for the machine would be handed: operations that JAX has no rule for there are refused. It
does not run anything.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jbp
from jbp import curvature, losses, private, rules, stats
from jbp.step import step_function
from jbp.train.batches import Resident, ResidentSource
from jbp.train.in_place import InPlace
from jbp.train.program import evaluation_program, ledger, steps_function

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LOSS = losses.softmax_cross_entropy
X: Any = np.zeros((5, 7), np.float32)
Y = np.zeros(5, np.int32)
IMAGES: Any = np.zeros((5, 6, 7, 2), np.float32)
KEY = jax.random.key(0)
STACK = jbp.repeat(jbp.serial(jbp.Dense(11), jbp.tanh), 2)
DENSE = jbp.serial(jbp.Dense(11), jbp.relu, jbp.Dropout(0.2), STACK, jbp.Dense(3))
TIED = jbp.tied(jbp.serial(jbp.Dense(7), jbp.gelu, jbp.Dense(7), jbp.LayerNorm(), jbp.Dense(3)), {2: 0})
KERNELS = jbp.serial(
    jbp.Conv(4, 3), jbp.relu, jbp.MaxPool(2), jbp.Conv(4, 3, groups=4), jbp.silu, jbp.GlobalPool(), jbp.Dense(3)
)
COUPLED = jbp.serial(jbp.Conv(3, 3), jbp.BatchNorm(), jbp.relu, jbp.AvgPool(2), jbp.Flatten(), jbp.Dense(3))


def of_pairs(statistic, net=DENSE, x=X):
    """A statistic of the pairs of one backward pass."""

    def program(params, x, y):
        return statistic(jbp.value_and_pairs(net, LOSS, params, x, y)[1])

    return program, (net.init(KEY, x.shape[1:])[0], x, Y)


def of_curvature(function, net=DENSE, x=X, **more):
    params = net.init(KEY, x.shape[1:])[0]

    def program(params, x, y):
        found = function(net, LOSS, params, x, y, **more)
        return found(params) if callable(found) else found

    return program, (params, x, Y)


def of_fit(net=DENSE, x=X, optimizer=None, method=None, accumulate=1):
    """The program that `fit` runs: the steps of a chunk, in a loop."""
    optimizer, metrics = optimizer or jbp.optim.sgd(0.1, momentum=0.9), {"accuracy": jbp.accuracy}
    problem = jbp.Problem(net, LOSS, optimizer, method=method, metrics=metrics)
    state = jbp.init_state(problem, x.shape[1:], seed=0)
    poisson = isinstance(method, private.PrivateMethod)
    reader = Resident("poisson" if poisson else "shuffle", 2, len(x), 4 if poisson else None)
    source = ResidentSource((jnp.asarray(x), jnp.asarray(Y)), None, reader, 1)
    chunk = source.chunk(state.key, 1, 0, len(source.sizes))
    book = ledger(len(source.sizes), 1, source.weighs)
    steps = steps_function(problem, reader, accumulate)
    return steps, (state, book, chunk, np.int32(1), np.int32(0), np.int32(len(source.sizes)))


def of_step(net, x):
    problem = jbp.Problem(net, LOSS, jbp.optim.sgd(0.1))
    state = jbp.init_state(problem, x.shape[1:], seed=0)
    return step_function(problem), (state, jbp.Batch(jnp.asarray(x), jnp.asarray(Y)), KEY)


def of_gradient(net, x=X):
    return jbp.value_and_grad(net, LOSS), (net.init(KEY, x.shape[1:])[0], x, Y, KEY)


def of_evaluation(net, x):
    return evaluation_program(net, LOSS, (), None, 4), (net.init(KEY, x.shape[1:])[0], x, Y)


STATISTICS = {
    "per_example": stats.per_example,
    "norms": stats.norms,
    "squared_norms": stats.squared_norms,
    "gram": stats.gram,
    "project": lambda pairs: stats.project(pairs, jbp.contract(pairs)),
    "second_moment": stats.second_moment,
    "variance": stats.variance,
    "noise_scale": stats.noise_scale,
    "noise_and_signal": stats.noise_and_signal,
    "snr": stats.snr,
    "kronecker": stats.kronecker,
    "clip_weights": partial(stats.clip_weights, max_norm=1.0),
    "clipped": partial(stats.clipped, max_norm=1.0),
    "records": stats.records,
}
CURVATURE = {
    "gauss_newton_diagonal": curvature.gauss_newton_diagonal,
    "kronecker_factors": curvature.kronecker_factors,
    "gauss_newton_product": curvature.gauss_newton_product,
    "fisher_product": curvature.fisher_product,
    "hessian_product": curvature.hessian_product,
    "hessian_diagonal": partial(curvature.hessian_diagonal, key=KEY, samples=2),
}
RULES = tuple(rules.NAMES)
PROGRAMS = {
    "gradient": lambda: of_gradient(DENSE),
    "gradient, tied": lambda: of_gradient(TIED),
    "gradient, convolution": lambda: of_gradient(KERNELS, IMAGES),
    "gradient, batch normalisation": lambda: of_step(COUPLED, IMAGES),
    **{f"stats.{name}": partial(of_pairs, f) for name, f in STATISTICS.items()},
    **{f"stats.{name}, kernels": partial(of_pairs, STATISTICS[name], KERNELS, IMAGES)
       for name in ("norms", "second_moment", "clipped", "kronecker")},
    **{f"curvature.{name}": partial(of_curvature, f) for name, f in CURVATURE.items()},
    "clipped_sum": lambda: of_curvature(partial(private.clipped_sum, max_norm=1.0)),
    "evaluation": lambda: of_evaluation(DENSE, X),
    "evaluation, kernels": lambda: of_evaluation(COUPLED, IMAGES),
    "fit": lambda: of_fit(),
    "fit, in parts": lambda: of_fit(accumulate=2),
    "fit, kernels": lambda: of_fit(KERNELS, IMAGES),
    "fit, batch normalisation": lambda: of_fit(COUPLED, IMAGES),
    "fit, private": lambda: of_fit(method=jbp.Private(1.0, 1.0, 1e-3).bind(2)),
    "fit, in place": lambda: of_fit(method=InPlace()),
    **{f"fit, {name}": partial(of_fit, method=rules.method_of(name)) for name in RULES},
}  # fmt: skip


def lowered(name):
    """The platforms for which a program is lowered, in float32, as users have it."""
    with jax.enable_x64(False):
        program, arguments = PROGRAMS[name]()
        return export.export(jax.jit(program), platforms=PLATFORMS)(*arguments)


def test_there_are_many_and_of_every_statistic():
    assert len(PROGRAMS) >= 40
    counted = {name for name in stats.__all__ if name[0].islower()} - {"explain", "sensitivity"}
    assert set(STATISTICS) == counted  # the two others are numbers and words about pairs


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_lowered_for_every_platform(name):
    assert lowered(name).platforms == PLATFORMS


def test_what_a_platform_has_no_rule_for_is_refused():
    with pytest.raises(NotImplementedError, match="tpu"):
        export.export(jax.jit(jnp.linalg.eig), platforms=["cpu", "tpu"])(np.eye(3, dtype=np.float32))
