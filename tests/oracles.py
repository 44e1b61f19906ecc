"""What the tests compare with: a plain forward pass, plain losses, and how an error is measured.

Nothing of jbp's forward, backward or value is used here: its classes are read for structure and hyper-parameters,
the mathematics is `jax.numpy` and `jax.nn`, and the batch is written directly.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import PLAIN
from jax.core import Tracer

from jbp import losses
from jbp.combine import Combinator

UNITS = {"layer": 32, "net": 64, "steps": 64}
"""Allowed error in eps(dtype) × the largest entry of the leaf. Never scaled by the number of elements.

One rounding of the largest entry is half a unit. `layer`: one layer, a few roundings. `net`: rounding errors of
several weights in a row add up and are amplified by them. `steps`: three steps of training, each starting from the
parameters of the one before. Each is about 8 times the worst case observed.
"""

_QUICK = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}


def compiled(function: Any) -> Any:
    """`jax.jit` with XLA's older code generator where there is a choice: it compiles three times as fast."""
    return jax.jit(function, compiler_options=_QUICK)


def whole(function: Any) -> Any:
    """A function as one program for each kind of arguments: op by op it would be dozens.

    Arrays are traced; everything else (names, bounds, nets) is static and decides, with the structure, which program.
    """

    @cache
    def program(structure: Any, rest: tuple[Any, ...]) -> Any:
        def run(arrays: Any) -> Any:
            given = iter(arrays)
            args, options = structure.unflatten([next(given) if a is _ARRAY else a for a in rest])
            return function(*args, **options)

        return compiled(run)

    def call(*args: Any, **options: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, options))
        arrays = [a for a in leaves if isinstance(a, jax.Array | np.ndarray)]
        if any(isinstance(a, Tracer) for a in arrays):  # inside another program already
            return function(*args, **options)
        return program(structure, tuple(_ARRAY if isinstance(a, jax.Array | np.ndarray) else a for a in leaves))(arrays)

    return call


_ARRAY = object()
"""Where an array stands among the arguments."""


def initialised(net: Any, key: Any, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """`net.init(key, shape)`, drawn by one program."""
    announced = []

    def draw(key: Any) -> Any:
        params, out = net.init(key, shape)
        announced.append(out)
        return params

    return compiled(draw)(key), announced[0]


def plain(net: Any, params: Any, x: Any, key: Any = None) -> Any:
    """The outputs [n, ...] of any net, by the plain forms of the case table, which reach the layers inside by this."""
    within = (plain,) if isinstance(net, Combinator) else ()
    return PLAIN[type(net)](net, params, x, key, *within)


def plain_errors(loss: losses.Loss, output: Any, target: Any) -> Any:
    """eₙ of every example: summed over outputs k, averaged over positions."""
    k = output.shape[-1]
    if jnp.issubdtype(target.dtype, jnp.integer):
        target = jax.nn.one_hot(target, k, dtype=output.dtype)
    match loss:
        case losses.SquaredError():
            e = (output - target) ** 2
        case losses.L2Loss():
            e = (output - target) ** 2 / 2
        case losses.MeanSquaredError():
            e = (output - target) ** 2 / k
        case losses.SoftmaxCrossEntropy():
            e = -target * jax.nn.log_softmax(output, axis=-1)
        case losses.SigmoidBinaryCrossEntropy():
            e = -target * jax.nn.log_sigmoid(output) - (1 - target) * jax.nn.log_sigmoid(-output)
        case losses.CrossEntropy():
            e = -jnp.where(target == 0, 0, target * jnp.log(output))
        case _:
            raise AssertionError(f"no oracle for {loss!r}")
    e = e.sum(-1)
    return e.reshape(len(e), -1).mean(1)


def plain_value(net: Any, loss: losses.Loss, params: Any, x: Any, y: Any, key: Any = None, weights: Any = None) -> Any:
    """Σ wₙeₙ, by default the mean: what autodiff is applied to."""
    errors = plain_errors(loss, plain(net, params, x, key), y)
    return errors.mean() if weights is None else (weights * errors).sum()


def error_in_units(ours: Any, expected: Any) -> dict[str, float]:
    """Each leaf's largest error, in eps(dtype) × its largest entry. Refuses another tree, shape or dtype."""
    (found, structure), (wanted, wanted_structure) = (jax.tree_util.tree_flatten_with_path(t) for t in (ours, expected))
    assert structure == wanted_structure, f"tree {structure} instead of {wanted_structure}"
    errors = {}
    for (path, a), (_, b) in zip(found, wanted, strict=True):
        name = jax.tree_util.keystr(path) or "leaf"
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{name}: {a.dtype}{a.shape} instead of {b.dtype}{b.shape}"
        eps = float(jnp.finfo(b.dtype).eps)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        finite = np.isfinite(b)
        assert np.array_equal(a[~finite], b[~finite], equal_nan=True), f"{name}: {a} instead of {b}"
        a, b = a[finite], b[finite]
        assert np.isfinite(a).all(), f"{name}: not finite: {a}"
        worst, size = np.abs(a - b).max(initial=0.0), np.abs(b).max(initial=0.0)
        errors[name] = 0.0 if worst == 0 else np.inf if size == 0 else float(worst / (eps * size))
    return errors


def assert_close(ours: Any, expected: Any, level: str) -> None:
    """Every leaf within its level of `UNITS`."""
    errors = error_in_units(ours, expected)
    wrong = {name: round(error, 1) for name, error in errors.items() if not error <= UNITS[level]}
    assert not wrong, f"more than {UNITS[level]} units of eps × magnitude: {wrong}"


def assert_same(ours: Any, expected: Any) -> None:
    """Equal to the last bit."""
    wrong = {name: error for name, error in error_in_units(ours, expected).items() if error != 0}
    assert not wrong, f"not equal: {wrong}"
