"""Private training of 16-bit parameters: what bounds and noise rest on is wider, at both ends of each type's range."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random
from jax.extend.core import jaxprs_in_params
from oracles import assert_same

import jbp
from jbp import losses
from jbp.layer import Layer
from jbp.pairs import Outer
from jbp.private import _box_muller, _noise, clipped_sum, gaussian

LOSS = losses.l2_loss
WEIGHT = jbp.serial(jbp.Dense(1, use_bias=False))
SURE = 4.4
"""Standard errors: chance alone goes further once in 100,000 times."""
HALF = pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])


def zeros(dtype: Any, width: int = 2) -> Any:
    return ({"weight": jnp.zeros((width, 1), dtype)},)


# The noise


@HALF
def test_noise_of_16_bit_parameters_has_tails_and_more_than_a_few_hundred_values(dtype):
    method = jbp.Private(2.0, 1.0, 1e-5).bind(8)
    problem = jbp.Problem(WEIGHT, LOSS, jbp.optim.sgd(0.1), method=method)
    sums = jbp.Sums(jnp.float32(0), zeros(dtype, 200_000), ())
    found = method.finish(problem, sums, jax.random.key(int(random("tails").integers(2**31)))).grads[0]["weight"]
    assert found.dtype == jnp.float32
    z = np.asarray(found, np.float64).ravel() * 8 / 2
    assert len(np.unique(z)) > 190_000
    for far, share in ((1.0, 0.317311), (2.0, 0.0455003), (3.0, 0.0026998), (4.0, 6.33425e-5)):
        error = np.sqrt(share / len(z))
        assert abs(np.mean(np.abs(z) > far) - share) <= SURE * error


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_reaches_where_the_uniform_numbers_of_a_type_do_not(dtype):
    words = jnp.array([[0, 0, 2**32 - 1], [0, 2**32 - 1, 2**32 - 1], [0, 0, 0]], jnp.uint32)
    far = np.asarray(_box_muller(words, jnp.dtype(dtype)), np.float64)
    # √(−2 ln u) for u = 2⁻⁶⁵, for u just below 2⁻³² and for u = 1, along v = 0.
    assert far[0] == pytest.approx([np.sqrt(130 * np.log(2)), np.sqrt(64 * np.log(2)), 0.0], rel=1e-6, abs=1e-4)
    assert (far[1] == 0).all()
    assert far.dtype == np.float64 and gaussian(jax.random.key(0), (3, 5), jnp.dtype(dtype)).shape == (3, 5)


def test_noise_in_float64_is_drawn_in_float64():
    (drawn,) = _noise(jax.random.key(0), (jnp.zeros(101),), 3.0)
    assert drawn.dtype == jnp.float64
    assert (np.asarray(drawn) != np.asarray(drawn, np.float32)).all()


# The sum


def sums_of(dtype: Any, x: float, y: float, bound: float, n: int = 1, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """The norms, and the sum [2], of n examples of gradient −y·(x, −x): the net says 0."""
    xs = jnp.tile(jnp.array([[x, -x]]), (n, 1)).astype(dtype)
    _, norms, total = clipped_sum(WEIGHT, LOSS, zeros(dtype), xs, jnp.full((n, 1), y).astype(dtype), bound, **how)
    assert norms.dtype == total[0]["weight"].dtype == jnp.float32
    return np.asarray(norms, np.float64), np.asarray(total[0]["weight"], np.float64).ravel()


@pytest.mark.parametrize(
    ("dtype", "x", "y"),
    [
        (jnp.float16, 6e4, 6e4),  # the largest numbers: the gradient is far beyond them
        (jnp.float16, 300.0, 1.0),  # the gradient is among them, its square is not
        (jnp.float16, 6e-8, 6e-8),  # the smallest
        (jnp.float16, 1e-4, 1.0),
        (jnp.bfloat16, 1e9, 1e9),  # the ends of float32, in which squares of norms are
        (jnp.bfloat16, 1e-9, 1e-9),
        (jnp.bfloat16, 3.0, 1.0),
    ],
)
@pytest.mark.parametrize("lean", [False, True])
def test_an_example_of_16_bits_is_clipped_to_the_bound_at_both_ends_of_the_range(dtype, x, y, lean):
    x, y = (float(jnp.asarray(a).astype(dtype).astype(jnp.float64)) for a in (x, y))
    gradient = -y * np.array([x, -x])
    norm = np.linalg.norm(gradient)
    for bound in (norm / 3, 3 * norm):
        if bound < 1e-38:
            continue
        norms, total = sums_of(dtype, x, y, float(bound), lean=lean)
        assert norms == pytest.approx([norm], rel=1e-6)
        assert total == pytest.approx(gradient * min(1.0, bound / norm), rel=1e-6)
        assert np.linalg.norm(total) <= bound * (1 + 1e-6)


@HALF
@pytest.mark.parametrize("lean", [False, True])
def test_a_sum_of_many_examples_of_16_bits_neither_overflows_nor_stands_still(dtype, lean):
    for bound in (1.0, 100.0):
        _, total = sums_of(dtype, 1000.0, 1.0, bound, 3000, lean=lean)
        assert np.linalg.norm(total) == pytest.approx(3000 * bound, rel=1e-4)
        _, less = sums_of(dtype, 1000.0, 1.0, bound, 2999, lean=lean)
        assert np.linalg.norm(total - less) <= bound * (1 + 1e-3)


@dataclass(frozen=True)
class Narrow(Layer):
    """y = xW, computed in bfloat16 whatever W is in."""

    width: int

    def init(self, key: Any, shape: Any) -> Any:
        return jax.random.normal(key, (*shape, self.width), jnp.float32), (self.width,)

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        x = x.astype(jnp.bfloat16)
        return (x @ params.astype(jnp.bfloat16)).astype(jnp.float32), x

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        delta = delta.astype(jnp.bfloat16)
        return (delta @ params.astype(jnp.bfloat16).T).astype(jnp.float32), Outer.of(saved, delta, params.shape)


@pytest.mark.parametrize("lean", [False, True])
def test_layers_that_compute_in_16_bits_by_themselves_are_clipped_to_the_bound_too(lean):
    net, rng = jbp.serial(Narrow(31), Narrow(7)), random("narrow")
    params = (
        jnp.asarray(rng.normal(size=(37, 31)), jnp.float32),
        jnp.asarray(rng.normal(size=(31, 7)), jnp.float32),
    )

    @jax.jit
    def contribution(x: Any, y: Any) -> Any:
        total = clipped_sum(net, LOSS, params, x[None], y[None], 1.0, lean=lean)[2]
        return jnp.sqrt(sum(jnp.square(a.astype(jnp.float64)).sum() for a in jax.tree.leaves(total)))

    x, y = (jnp.asarray(30 * rng.normal(size=(300, width)), jnp.float32) for width in (37, 7))
    norms = np.asarray(jax.lax.map(lambda pair: contribution(*pair), (x, y)))
    assert norms.max() <= 1 + 1e-5
    assert norms.min() >= 1 - 1e-5


@pytest.mark.parametrize("lean", [False, True])
def test_what_was_clipped_is_not_rounded_in_the_products_of_accelerators(lean):
    net = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(3))
    params, _ = net.init(jax.random.key(0), (5,))
    args = params, jnp.zeros((11, 5)), jnp.zeros((11, 3))
    program = jax.make_jaxpr(lambda p, x, y: clipped_sum(net, LOSS, p, x, y, 1.0, lean=lean))(*args)
    sums = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name == "dot_general"
            and eqn.outvars[0].aval.shape in ((5, 7), (7, 3))]  # fmt: skip
    assert len(sums) == 2
    assert all(set(eqn.params["precision"]) == {jax.lax.Precision.HIGHEST} for eqn in sums)


def equations(jaxpr: Any) -> Any:
    """Those of a program, and of all inside them."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


# The step


@HALF
def test_a_step_rounds_only_what_is_noised_and_divided(dtype):
    how = jbp.Private(1.5, 0.5, 1e-5)
    problem = jbp.Problem(WEIGHT, LOSS, jbp.optim.sgd(1.0), method=how.bind(4))
    params = zeros(dtype, 300)
    x, y = jnp.asarray(random("x").normal(size=(9, 300))).astype(dtype), jnp.ones((9, 1), dtype)
    state = jbp.init_state(problem, jax.ShapeDtypeStruct((300,), dtype), seed=0, params=params)
    key = jax.random.split(jax.random.key(1))[0]
    sums = problem.method.sums(problem, state, jbp.Batch(x, y), key)
    found = problem.method.finish(problem, sums, key)
    (wide,) = jax.tree.leaves(found.grads)
    assert wide.dtype == jnp.float32 and (wide != wide.astype(dtype).astype(jnp.float32)).any()
    after = problem.method.update(problem, state, found, None)
    assert_same(after.params[0]["weight"], -wide.astype(dtype))
    assert after.params[0]["weight"].dtype == dtype


def test_parameters_of_16_bits_are_said_to_train_badly_once_and_frozen_ones_not():
    x, y = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
    net = jbp.serial(jbp.Dense(3), jbp.Dense(1))
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), net.init(jax.random.key(0), (2,))[0])
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), wide)
    mixed = (wide[0], {"weight": narrow[1]["weight"], "bias": wide[1]["bias"]})
    options: Any = {"epochs": 1, "batch_size": 4}
    with jax.numpy_dtype_promotion("standard"):
        words = r"params\[0\]\['bias'\] and 3 more are bfloat16: a step below 0.004 of"
        with pytest.warns(UserWarning, match=words) as said:
            jbp.fit(net, LOSS, jbp.optim.sgd(0.1), (x, y), params=narrow, **options)
        assert len(said) == 1 and said[0].filename == __file__
        with pytest.warns(UserWarning, match=r"params\[1\]\['weight'\] is bfloat16.*train in float32") as said:
            jbp.fit_many(net, LOSS, jbp.optim.sgd(0.1), (x, y), seeds=[0, 1], params=mixed, **options)
        assert len(said) == 1 and said[0].filename == __file__
        jbp.fit(net, LOSS, jbp.optim.sgd(0.1), (x, y), params=mixed, trainable=(True, False), **options)


def test_a_bound_that_float32_cannot_square_is_refused():
    with pytest.raises(ValueError, match="max_norm must be at least 1e-12"):
        jbp.Private(1.0, 1e-13, 1e-5)
