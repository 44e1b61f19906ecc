"""`check.optimizer`, and the tolerances of finite differences."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbp
import jbp.check
from jbp.check.compiled import hurried
from jbp.check.finite_differences import finite_differences


@pytest.fixture
def hurry():
    """The compiler's haste, for checks of what jbp holds: the mistakes show all the same."""
    with hurried():
        yield


def momentum(step):
    """An optimiser of one velocity v: `step(g, v)` gives the update and the new v."""

    def update(updates, state, params=None):
        pairs = [step(g, v) for g, v in zip(jax.tree.leaves(updates), jax.tree.leaves(state), strict=True)]
        tree = jax.tree.structure(updates)
        return jax.tree.unflatten(tree, [u for u, _ in pairs]), jax.tree.unflatten(tree, [v for _, v in pairs])

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def adam(corrected):
    def update(updates, state, params=None):
        t, m, v = state
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, updates)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, updates)
        a, b = ((1 - 0.9**t), (1 - 0.999**t)) if corrected else (1.0, 1.0)

        def one(m, v):
            return -0.1 * (m / jnp.asarray(a, m.dtype)) / (jnp.sqrt(v / jnp.asarray(b, v.dtype)) + 1e-8)

        return jax.tree.map(one, m, v), (t, m, v)

    def init(params):
        return jnp.zeros(()), jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

    return optax.GradientTransformation(init, update)


RIGHT = [
    (jbp.optim.sgd(0.1), optax.sgd(0.1)),
    (jbp.optim.sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
    (jbp.optim.sgd(0.1, 0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
    (jbp.optim.heavy_ball(0.1), optax.sgd(0.1, 0.9)),
    (jbp.optim.nesterov(0.1), optax.sgd(0.1, 0.9, nesterov=True)),
    (adam(True), optax.adam(0.1)),
]
WRONG = {
    "sign": (momentum(lambda g, v: (0.1 * g, v)), optax.sgd(0.1), "sign"),
    "factor": (momentum(lambda g, v: (-0.2 * g, v)), optax.sgd(0.1), "factor 2"),
    "nesterov from the old trace": (
        momentum(lambda g, v: (-0.1 * (g + 0.9 * v), 0.9 * v + g)),
        optax.sgd(0.1, 0.9, nesterov=True),
        None,
    ),
    "damped": (momentum(lambda g, v: (-0.1 * (0.9 * v + 0.1 * g), 0.9 * v + 0.1 * g)), optax.sgd(0.1, 0.9), "1/10"),
    "heavy ball for nesterov": (jbp.optim.heavy_ball(0.1), optax.sgd(0.1, 0.9, nesterov=True), None),
    "one step late": (momentum(lambda g, v: (-0.1 * v, 0.9 * v + g)), optax.sgd(0.1, 0.9), "zero"),
    "no bias correction": (adam(False), optax.adam(0.1), None),
    "does nothing": (momentum(lambda g, v: (jnp.zeros_like(g), v)), optax.sgd(0.1), "zero"),
}


# The last one is this file's own Adam, which counts its steps in float64.
@pytest.mark.parametrize(("i", "dtype"), [(i, d) for i in range(len(RIGHT)) for d in ("float64", "float32")][:-1])
@pytest.mark.usefixtures("hurry")
def test_a_right_optimizer_passes(i, dtype):
    jbp.check.optimizer(*RIGHT[i], dtype=dtype).raise_if_failed()


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("hurry")
def test_a_wrong_optimizer_is_caught(name):
    ours, theirs, words = WRONG[name]
    report = jbp.check.optimizer(ours, theirs)
    assert not report.passed and "same trajectory" in {e.law for e in report.failures}
    assert words is None or words in (report.diagnosis or ""), str(report)


@pytest.mark.usefixtures("hurry")
def test_the_first_wrong_step_is_named():
    report = jbp.check.optimizer(WRONG["nesterov from the old trace"][0], WRONG["nesterov from the old trace"][1])
    assert "first wrong in step 1" in report.failures[0].note
    right_at_first = momentum(lambda g, v: (-0.1 * (g + 0.5 * v), 0.9 * v + g))
    report = jbp.check.optimizer(right_at_first, optax.sgd(0.1, 0.9))
    assert "first wrong in step 2" in report.failures[0].note


def test_a_gradient_none_and_empty_subtrees():
    """Frozen parameters have None in optax, parameterless layers () in jbp: what the reference takes, ours must."""
    plain, reference = momentum(lambda g, v: (-0.1 * g, v)), optax.sgd(0.1)  # its tree.map fails on None
    report = jbp.check.optimizer(plain, reference, nones=True)
    assert [(e.law, e.path) for e in report.failures] == [("gradient None", "updates['bias']")]
    jbp.check.optimizer(plain, reference).raise_if_failed()

    def zero(updates, state, params=None):
        there = jax.tree.map(lambda g, p: 0 * p if g is None and p is not None else g, updates, params,
                             is_leaf=lambda g: g is None)  # fmt: skip
        there = jax.tree.map(lambda g: -0.1 * g, there)
        return there, state

    filled = jbp.check.optimizer(optax.GradientTransformation(lambda params: (), zero), reference, nones=True)
    assert {e.law for e in filled.failures} == {"gradient None"} and "have the tree" in filled.failures[0].note

    def dropping(updates, state, params=None):
        return {k: -0.1 * g for k, g in updates.items() if k not in ("empty", "nothing") and g is not None}, state

    report = jbp.check.optimizer(optax.GradientTransformation(lambda params: (), dropping), reference)
    assert not report.passed and {e.law for e in report.failures} & {"runs", "tree"}


@pytest.mark.usefixtures("hurry")
def test_finite_differences_in_float32_stay_below_half_of_their_level():
    """A part of the cases that `tolerance.NATIVE_DIFFERENCE` comes from."""
    from jbp.check.tolerance import NATIVE_DIFFERENCE

    errors = []
    for i, act in enumerate((jnp.tanh, jax.nn.softmax, jax.nn.gelu)):
        n, k, m = ((7, 5, 3), (2, 17, 11), (13, 3, 7))[i]

        def f(leaves: Any, extra: Any, act: Any = act) -> Any:
            x, w, b = (a.astype(jnp.float32) for a in leaves)
            y = act(act(x @ w + jnp.broadcast_to(b, (x.shape[0], b.shape[1]))) @ extra[1].astype(jnp.float32))
            terms = y * extra[0].astype(jnp.float32)
            return terms.sum(), terms

        def g(leaves: Any, extra: Any, f: Any = f) -> Any:
            return jax.grad(lambda p: f(p, extra)[0])([a.astype(jnp.float32) for a in leaves])

        for seed in range(2):
            rng = np.random.default_rng((i, seed))
            shapes = ((n, k), (k, m), (1, m), (n, m), (m, m))
            x, w, b, delta, v = (jnp.asarray(rng.normal(size=s).astype(np.float32)) for s in shapes)
            found = finite_differences(
                f, g, [x, w, b], (delta, v / np.sqrt(m).astype(np.float32)), list("xwb"), (i, seed)
            )
            errors += [e.error if e.compared else math.inf for e in found]
    assert len(errors) == 18 and max(errors) < NATIVE_DIFFERENCE.units / 2


def reset(when, to):
    """Momentum that is changed to `to` of itself at one update, or always."""

    def update(updates, state, params=None):
        m, t = state
        m = jax.tree.map(lambda m, g: 0.9 * m + g, m, updates)  # as one writes it: it does not take None
        m = jax.tree.map(lambda m: jnp.where(when is None or t == when, to(m), m), m)
        return jax.tree.map(lambda m: -0.1 * m, m), (m, t + 1)

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32)

    return optax.GradientTransformation(init, update)


@pytest.mark.usefixtures("hurry")
def test_a_trace_that_is_reset_late_or_cut_is_caught():
    reference = optax.sgd(0.1, 0.9)
    jbp.check.optimizer(reset(12, lambda m: m), reference).raise_if_failed()
    for wrong in (reset(12, jnp.zeros_like), reset(None, lambda m: jnp.clip(m, -60, 60))):
        assert not jbp.check.optimizer(wrong, reference).passed


def test_levels_are_ordered_and_low_precision_is_kept_low():
    from jbp.check import tolerance

    assert tolerance.for_dtype(tolerance.DEEP, jnp.bfloat16) is tolerance.LOW_PRECISION
    assert tolerance.for_dtype(tolerance.DEEP, jnp.float32) is tolerance.DEEP
    assert math.isclose(tolerance.eps(jnp.float32), 2.0**-23)
