"""The public checks that tests/mutation/mutate.py runs, by short names, and how it puts a changed function in place.

Those of `jbp.check.catalogue`, without finite differences, and beside them what the catalogue does not reach: example
weights, positions, targets that do not add up to 1, schedules, and the pair Scale.
"""

import __future__

import ast
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

os.environ["JAX_ENABLE_X64"] = "1"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import jax
import jax.numpy as jnp
import optax
import pytest
from mutant_tools import Centred, Folded, Gain, Lookup
from mutants import DROPPING, NET, falling

import jbp
import jbp.check
from jbp import backprop, layers, losses, optim
from jbp.check.cases import LAYERS, CaseRow
from jbp.check.catalogue import catalogue
from jbp.check.layer import derivative_alone
from jbp.combine import tied

laws: Any = sys.modules["jbp.check.laws"]
laws.clues_for = lambda run, leaf: None  # the diagnosis is half of the time, and decides nothing


@contextmanager
def planted(file: str, qualname: str, source: str) -> Iterator[None]:
    """With this source in place of a function, wherever jbp holds it, and nothing compiled kept over.

    The checks compile closures that are new at each call, so what could go stale is only the spine's cache of whole
    programs, its two compiled leaf functions, and a layer's `forward` that calls a changed helper.
    """
    module: Any = sys.modules["jbp." + file.removesuffix(".py").replace("/", ".")]
    owner, _, name = qualname.rpartition(".")
    _forget(name)
    right = vars(vars(module)[owner] if owner else module)[name]
    code = compile(ast.parse(source), file, "exec", __future__.annotations.compiler_flag, True)
    if owner:
        made: dict[str, Any] = {}
        exec(code, module.__dict__, made)
        setattr(vars(module)[owner], name, made[name])
    else:
        made = {}
        exec(code, module.__dict__, made)
        made[name].__dict__.update(vars(right))
        _replace(right, made[name])
    try:
        yield
    finally:
        if owner:
            setattr(vars(module)[owner], name, right)
        else:
            _replace(made[name], right)
        _forget(name)


def failures(check: str) -> tuple[jbp.check.Entry, ...]:
    """What the public check finds. The laws of the derivative come first, the others are seldom needed."""
    with derivative_alone():
        found = CHECKS[check]().failures
    return found or (CHECKS[check]().failures if check in EAGER else ())


@cache
def passes_right_code(test: str) -> bool:
    """Whether a test of the suite passes with nothing planted."""
    return passes(test)


def passes(test: str) -> bool:
    """Whether a test of the suite passes, in this process, with what is planted here and nothing kept from before."""
    for name in [n for n in sys.modules if n.startswith("test_")]:
        del sys.modules[name]  # some keep what they measured
    jax.clear_caches()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        status = pytest.main(["-x", "--assert=plain", "-p", "no:cacheprovider", f"{HERE.parents[1] / test}"])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"{test} did not run: {status!r}")
    return status == pytest.ExitCode.OK


def _replace(old: Any, new: Any) -> None:
    modules = [m for n, m in list(sys.modules.items()) if n.split(".")[0] in ("jbp", "mutants", __name__)]
    for module in modules:
        for key, value in list(vars(module).items()):
            if value is old:
                setattr(module, key, new)


def _forget(name: str) -> None:
    backprop._compiled.cache_clear()
    for build in (optim.sgd, optim.heavy_ball, optim.nesterov):
        build.cache_clear()  # type: ignore[attr-defined]
    if name in IN_FORWARD:
        jax.clear_caches()
    for leaf in LEAVES:
        made: dict[str, Any] = {}
        exec(
            compile(LEAVES[leaf], "backprop.py", "exec", __future__.annotations.compiler_flag, True),
            backprop.__dict__,
            made,
        )
        setattr(backprop, leaf, made[leaf])


HERE = Path(__file__).resolve().parent
IN_FORWARD = {"_masked", "_product", "keep", "value", "positive", "shape", "_compact"}
"""What a layer's `forward` calls: JAX keeps what it traced of a method of the same layer."""
LEAVES = {
    name: "@partial(jax.jit, static_argnums=0, inline=_INLINE)\n"
    + inspect.getsource(getattr(backprop, name).__wrapped__).split("\n", 1)[1]
    for name in ("forward_leaf", "_backward_examples")
}


def _layer(layer: Any, *shape: int, **options: Any) -> Callable[[], jbp.check.Report]:
    return lambda: jbp.check.layer(layer, shape, batch=3, differences=False, **options)


def _loss(loss: Any, *shape: int, **options: Any) -> Callable[[], jbp.check.Report]:
    return lambda: jbp.check.loss(loss, shape, batch=3, differences=False, **options)


def _steps(ours: Callable[[], Any], theirs: Any) -> Callable[[], jbp.check.Report]:
    return lambda: jbp.check.optimizer(ours(), theirs, steps=5)


def _net(net: Any, n: int = 5, rows: bool = False, weighted: bool = False, blank: bool = False, key: Any = None) -> Any:
    """A net's gradient; `blank`: the last row has weight 0 and holds NaN, in the target too."""

    def check() -> jbp.check.Report:
        shape = (2, 3) if rows else (3,)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), net.init(jax.random.key(1), shape)[0])
        draw = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(draw[0], (n, *shape), jnp.float64)
        y = jax.random.normal(draw[1], (n, *shape[:-1], 2), jnp.float64)
        y = jax.nn.softmax(y)
        weights = jax.random.uniform(draw[2], (n,), jnp.float64, 0.2, 1.0).at[-1].set(0) if weighted else None
        x, y = (a.at[-1].set(jnp.nan) if blank else a for a in (x, y))
        options: Any = {"key": key, "weights": weights, "differences": False}
        return jbp.check.gradient(net, losses.softmax_cross_entropy, params, x, y, **options)

    return check


BLOCK = jbp.serial(layers.Dense(5), layers.tanh, layers.Dense(3))
COUPLED = jbp.serial(jbp.serial(layers.Dense(4), layers.tanh), Centred(), layers.Dense(2))
TWICE = tied(jbp.serial(layers.Dense(3), layers.tanh, layers.Dense(3)), {2: 0})
MOMENTUM, AHEAD = optax.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9, nesterov=True)
LOSSES = "squared_error l2_loss mean_squared_error softmax_cross_entropy sigmoid_binary_cross_entropy cross_entropy"
ACTIVATIONS = ["identity", "relu", "leaky_relu", "tanh", "sigmoid", "softmax", "softplus", "elu", "silu", "gelu"]
EAGER = {*ACTIVATIONS, "slope", "alpha", "erf", "dense", "dense3", "unbiased", "dropout", "flatten", "gain", "vector"}
SOME = [[True, False, True], [False, True, True]]
"""Which of 2 × 3 positions are real."""
CHECKS: dict[str, Callable[[], jbp.check.Report]] = {
    **{n: _layer(getattr(layers, n), 3, 5) for n in ACTIVATIONS}, "vector": _layer(layers.softmax, 7),
    "slope": _layer(layers.LeakyRelu(0.2), 7), "alpha": _layer(layers.Elu(0.7), 7),
    "erf": _layer(layers.Gelu(approximate=False), 7),
    "dense": _layer(layers.Dense(5), 2, 3), "dense3": _layer(layers.Dense(5), 3),
    "unbiased": _layer(layers.Dense(5, use_bias=False), 3),
    "dropout": _layer(layers.Dropout(0.3), 3, 5), "flatten": _layer(layers.Flatten(), 2, 3),
    "solid": _layer(layers.Conv(4, (2, 1, 2), groups=2), 3, 2, 3, 4),
    "pools": _layer(layers.MaxPool((3, 2), stride=(1, 3)), 7, 8, 2),
    "averages": _layer(layers.AvgPool((3, 2), stride=(1, 3), padding="same"), 7, 8, 2),
    "long": _layer(layers.Attention(1, causal=True, rotary=True), 131, 6),
    "words": _layer(layers.Unembedding(5), 3), "texts": _layer(layers.Unembedding(5), 2, 4, 3),
    "gain": _layer(Gain(), 2, 3), "folded": _layer(Folded(), 6),
    "serial": _layer(jbp.serial(layers.Dense(5), layers.sigmoid, layers.Dense(2)), 3),
    "residual": _layer(jbp.residual(BLOCK), 3),
    "branch": _layer(jbp.branch(layers.Dense(5), jbp.serial(layers.Dense(5), layers.tanh)), 3),
    "concat": _layer(jbp.branch(layers.Dense(5), layers.tanh, layers.Dense(2), join="concat"), 3),
    "concat@positions": _layer(jbp.branch(layers.Dense(5), layers.tanh, join="concat"), 2, 3),
    "indices": lambda: jbp.check.layer(
        jbp.branch(Lookup(), Lookup()), x=jnp.asarray([3, 0, 4]), differences=False),
    "repeat": _layer(jbp.repeat(BLOCK, 2), 3),
    "repeat2": _layer(jbp.repeat(jbp.serial(BLOCK, layers.sigmoid), 3), 3),
    "repeat@output": _layer(jbp.repeat(layers.tanh, 3), 3),
    "repeat@signs": _layer(jbp.repeat(jbp.residual(jbp.serial(layers.Dense(3), layers.relu)), 2), 3),
    "repeat@leaky": _layer(jbp.repeat(jbp.serial(layers.leaky_relu, layers.Dense(3), layers.relu), 2), 3),
    "repeat@nothing": _layer(jbp.repeat(layers.identity, 2), 3),
    "tied@stacks": _layer(tied(jbp.serial(
        jbp.repeat(layers.Dense(3), 2), layers.tanh, jbp.repeat(layers.Dense(3), 2)), {2: 0}), 3),
    "tied@stacks_of_kinds": _layer(tied(jbp.serial(
        jbp.repeat(Gain(), 2), layers.tanh, jbp.repeat(layers.Dense(3), 2)), {(2, "bias"): (0, "gain")}), 3),
    "tied@stacks_in_stacks": _layer(
        tied(
            jbp.serial(
                jbp.repeat(jbp.repeat(Gain(), 2), 3), layers.tanh, jbp.repeat(jbp.repeat(layers.Dense(3), 2), 3)
            ),
            {(2, "bias"): (0, "gain")},
        ),
        3,
    ),
    "observed": _net(jbp.serial(layers.Dense(4), jbp.BatchNorm(), layers.tanh, layers.Dense(2)), key=3),
    "tied": _layer(TWICE, 3), "coupled": _layer(COUPLED, 3),
    "tied@coupled": _layer(tied(jbp.serial(layers.Dense(3), Centred(), layers.Dense(3)), {2: 0}), 3),
    "tied@kinds": _layer(tied(jbp.serial(Gain(), layers.tanh, layers.Dense(3)), {(2, "bias"): (0, "gain")}), 3),
    **{n: _loss(getattr(losses, n), 7) for n in LOSSES.split()},
    **{f"{n}@positions": _loss(getattr(losses, n), 3, 5) for n in LOSSES.split()},
    **{f"{n}@masked": _loss(getattr(losses, n), 2, 3, 5, mask=SOME) for n in LOSSES.split()},
    "sums": lambda: jbp.check.loss(losses.softmax_cross_entropy, (3,), batch=3, differences=False, target=jnp.asarray(
        [[0.5, 1.0, 0.25], [0.0, 2.0, 1.0], [0.3, 0.1, 0.2]])),
    "certain": lambda: jbp.check.loss(losses.cross_entropy, (3,), batch=3, differences=False, target=jnp.eye(3)),
    "l2_loss@two": _loss(losses.l2_loss, 2, 5), "scalar": _loss(losses.mean_squared_error, target="values"),
    "class": _loss(losses.softmax_cross_entropy, 7, target="classes"),
    "cross_entropy@class": _loss(losses.cross_entropy, 7, target="classes"),
    "cross_entropy@classes": _loss(losses.cross_entropy, 3, 5, target="classes"),
    "class2": _loss(losses.softmax_cross_entropy, 2, 3, 5, target="classes"),
    "classes": _loss(losses.softmax_cross_entropy, 3, 5, target="classes"),
    "classes@two": _loss(losses.softmax_cross_entropy, 2, 5, target="classes"),
    "classes@masked": _loss(losses.softmax_cross_entropy, 2, 3, 5, target="classes", mask=SOME),
    "distribution": _loss(losses.softmax_cross_entropy, 3, 5, target="distribution"),
    "onemask": _loss(losses.softmax_cross_entropy, 3, 5, mask=SOME[0]),
    "narrow": lambda: jbp.check.loss(losses.softmax_cross_entropy, (200,), batch=3, differences=False,
        target=jnp.asarray([3, 0, 127], jnp.int8)),
    "zero": lambda: next(i for i in catalogue() if i.name == "relu, leaky_relu and elu at 0").run("float64", 0, False),
    "gradient": _net(NET), "repeated": _net(jbp.serial(jbp.repeat(BLOCK, 2), layers.Dense(2))),
    "training": _net(DROPPING, weighted=True, key=2), "shared": _net(jbp.serial(TWICE, layers.Dense(2))),
    "weights": _net(NET, weighted=True), "blank": _net(NET, weighted=True, blank=True),
    "rows": _net(NET, rows=True, weighted=True), "blankrows": _net(NET, rows=True, weighted=True, blank=True),
    "evaluation": _net(DROPPING, weighted=True), "evaluation1": _net(DROPPING),
    "sgd": _steps(lambda: optim.sgd(0.1), optax.sgd(0.1)),
    "sgd@none": _steps(lambda: optim.sgd(0.1, momentum=None), optax.sgd(0.1)),
    "schedule": _steps(lambda: optim.sgd(falling), optax.sgd(falling)),
    "sgdmomentum": _steps(lambda: optim.sgd(0.1, momentum=0.9), MOMENTUM),
    "sgdnesterov": _steps(lambda: optim.sgd(0.1, momentum=0.9, nesterov=True), AHEAD),
    "heavy_ball": _steps(lambda: optim.heavy_ball(0.1), MOMENTUM),
    "nesterov": _steps(lambda: optim.nesterov(0.1), AHEAD),
    "heavyschedule": _steps(lambda: optim.heavy_ball(falling), optax.sgd(falling, momentum=0.9)),
}  # fmt: skip


def _row(row: CaseRow) -> Callable[[], jbp.check.Report]:
    """What `jbp check` runs of a row of the case table."""
    names = {case.name for case in row.in_check}
    items = [item for item in catalogue() if item.name in names]
    return lambda: jbp.check.joined(row.kind.__name__, [item.run("float64", 0, False) for item in items])


CHECKS |= {f"row:{row.kind.__name__}": _row(row) for row in LAYERS if not row.no_gradient}
