"""A mistake is told in the same words whichever public function gets it: a table of mistakes and functions.

The functions are found by their signatures: a new one that takes a net, a loss, data, … fails here until it has a door.
"""

import inspect
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbp
from jbp import checkpoint, combine, curvature, initializers, layers, losses, rules, stats

loose: Any = jbp
"""jbp, where a type checker would notice the mistake."""
check: Any = jbp.check
KEY = jax.random.key(0)
NET = jbp.serial(jbp.Dense(5), jbp.relu, jbp.Dense(3))
PARAMS = NET.init(KEY, (2,))[0]
OTHER = jbp.serial(jbp.Dense(7), jbp.relu, jbp.Dense(3)).init(KEY, (2,))[0]
X, Y = (np.random.default_rng(0).normal(size=(20, k)) for k in (2, 3))
SGD = jbp.optim.sgd(0.1)
PAIRS = jbp.value_and_pairs(NET, losses.l2_loss, PARAMS, X, Y)[1]
RULE = rules.SignSymmetry()
RULE_STATE = jbp.init_state(jbp.Problem(NET, losses.l2_loss, SGD, method=RULE), (2,)).method_state


class Frame:
    """As pandas has them: a shape, columns by name, and an array when asked."""

    def __init__(self, values: Any):
        self.values, self.shape = values, np.shape(values)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: Any) -> Any:
        raise KeyError(name)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.values, dtype)


class Tensor(Frame):
    """As torch has them: with rows by number, and a dtype that NumPy does not know."""

    dtype = "torch.float32"

    def __getitem__(self, at: Any) -> Any:
        return type(self)(self.values[at])


class Attached(Tensor):
    """As torch's are while they want a gradient: they give no array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise RuntimeError("use tensor.detach().numpy() instead")


def schedule(step: Any) -> float:
    """A learning rate that falls."""
    return 0.1 / (1 + step)


GOOD: dict[str, Any] = {
    "net": NET, "loss": losses.l2_loss, "params": PARAMS, "x": X, "y": Y, "key": KEY, "weights": np.ones(20),
    "optimizer": SGD, "seed": 3, "metrics": {}, "callbacks": (), "pairs": PAIRS, "number": 0.1, "count": 3,
    "problem": jbp.Problem(NET, losses.l2_loss, SGD),
}  # fmt: skip
"""What each ingredient is when nothing is wrong with it."""

INGREDIENTS: dict[str, str] = {name: name for name in GOOD if name not in ("number", "count")} | {
    "layer": "net", "layers": "net", "train_data": "x y", "validation_data": "x y", "seeds": "seed",
    "ours": "optimizer", "theirs": "optimizer", "others": "pairs",
    "max_norm": "number", "noise_multiplier": "number", "momentum": "number", "learning_rates": "number",
    "batch_size": "count", "epochs": "count", "samples": "count", "steps": "count",
}  # fmt: skip
"""Of the names of arguments, which ingredients they are made of."""


def _step(x, y, weights, problem=GOOD["problem"]):
    state = jbp.init_state(GOOD["problem"], (2,))
    return jbp.make_step(problem)(state, jbp.Batch(x, y, weights))[1].loss


def _first(values: Any) -> Any:
    """One example of several; what is not several is handed on as it is."""
    if isinstance(values, np.ndarray | list | Tensor):
        return values[0]
    return Frame(values.values[0]) if isinstance(values, Frame) else values


def _ran(report: Any) -> bool:
    """Whether a check passed. One that could not run says why in its report: here as an error, as elsewhere."""
    if not report.passed and report.failures[0].law == "runs":
        raise ValueError(report.failures[0].diagnosis)
    return report.passed


def _batch(call: Callable[..., Any]) -> Callable[..., Any]:
    """The door of a function (net, loss, params, x, y, *, weights=)."""
    return lambda net, loss, params, x, y, weights: call(net, loss, params, x, y, weights=weights)


def _drawn(call: Callable[..., Any]) -> Callable[..., Any]:
    """The door of one that draws."""
    return lambda net, loss, params, x, y, weights, key, count: call(
        net, loss, params, x, y, "sampled", key=key, samples=count, weights=weights
    )


def _initial(make: Any) -> Callable[..., Any]:
    return lambda key: make(key, (2, 3))


LAYERS = [jbp.Dense(3), jbp.relu, jbp.Dropout(0.5), jbp.Flatten(), layers.Step(), NET, jbp.residual(jbp.tanh)]
LAYERS += [jbp.branch(jbp.tanh), jbp.repeat(jbp.tanh, 2)]
LAYERS += [jbp.tied(jbp.serial(jbp.Dense(2), jbp.Dense(2)), {(1, "weight"): (0, "weight")})]
LAYERS += [jbp.BatchNorm()]
IN_SPACE = [jbp.Conv(3, 3), jbp.GlobalPool(), jbp.Positions(5), jbp.Unembedding(7)]
OTHERS = {jbp.Embedding(7, 3): (4,), jbp.Attention(1): (4, 3)}
INITIALIZERS = [initializers.he_normal, initializers.standard_normal, initializers.zeros]

DOORS: dict[str, Callable[..., Any]] = {
    "jbp.forward": lambda net, params, x, key, weights: jbp.forward(net, params, x, key, weights)[0],
    "jbp.apply": lambda net, params, x: jbp.apply(net, params, x),
    "jbp.backward": lambda net, params: jbp.backward(net, params, jbp.forward(NET, PARAMS, X)[1], jnp.ones((20, 3)))[0],
    "jbp.value_and_grad": lambda net, loss, params, x, y, key, weights: jbp.value_and_grad(net, loss)(
        params, x, y, key, weights
    ),
    "jbp.value_and_pairs": lambda net, loss, params, x, y, key, weights: jbp.value_and_pairs(
        net, loss, params, x, y, key, weights
    )[0],
    "jbp.clipped_sum": lambda net, loss, params, x, y, key, weights, number: jbp.clipped_sum(
        net, loss, params, x, y, number, key=key, weights=weights
    ),
    "jbp.contract": lambda pairs, weights: jbp.contract(pairs, weights),
    "jbp.trace": lambda net, loss, params, x, y: [
        row.value for row in loose.trace(net=net, loss=loss, params=params, x=_first(x), y=_first(y)).rows
    ],
    "jbp.trace, with a step": lambda number: [
        row.value for row in jbp.trace(NET, losses.l2_loss, PARAMS, X[0], Y[0], learning_rate=0.1, momentum=number).rows
    ],
    "jbp.Problem": lambda net, loss, optimizer, metrics: jbp.Problem(net, loss, optimizer, metrics=metrics) and None,
    "jbp.init_state": lambda problem, params, seed: jbp.init_state(problem, (2,), params=params, seed=seed).params,
    "jbp.make_step": _step,
    "jbp.fit": lambda net, loss, optimizer, x, y, params, seed, metrics, callbacks, weights, count: jbp.fit(
        net, loss, optimizer, (x, y), epochs=count, batch_size=count, params=params, seed=seed, metrics=metrics,
        callbacks=callbacks, weights=weights, validation_data=(x, y),
    ).params,
    "jbp.fit_many": lambda net, loss, optimizer, x, y, params, seed, metrics, callbacks, weights, count: jbp.fit_many(
        net, loss, optimizer, (x, y), seeds=[seed], epochs=count, batch_size=count, params=params, metrics=metrics,
        callbacks=callbacks, weights=weights, validation_data=(x, y),
    ).params,
    "jbp.fit_many, a sweep": lambda number: jbp.fit_many(
        NET, losses.l2_loss, jbp.optim.sgd, (X, Y), seeds=[0], learning_rates=[number], epochs=1
    ).params,
    "jbp.save": lambda net, params, loss: _save(net, params, loss),  # below, for it writes files
    "jbp.Private": lambda number: jbp.Private(number, 1.0, 1e-5) and None,
    "jbp.BatchNorm": lambda number: jbp.BatchNorm(number) and None,
    "jbp.serial": lambda net: jbp.serial(net) and None,
    "jbp.residual": lambda net: jbp.residual(net) and None,
    "jbp.branch": lambda net: jbp.branch(net) and None,
    "jbp.repeat": lambda net: jbp.repeat(net, 2) and None,
    "jbp.tied": lambda net: jbp.tied(net, {(1, "weight"): (0, "weight")}) and None,
    "jbp.combine.Serial": lambda net: combine.Serial((net,)) and None,
    "jbp.combine.Residual": lambda net: combine.Residual(net) and None,
    "jbp.combine.Branch": lambda net: combine.Branch((net,)) and None,
    "jbp.combine.Repeat": lambda net: combine.Repeat(net, 2) and None,
    "jbp.combine.Tied": lambda net: combine.Tied(net, (((1, "weight"), (0, "weight")),)) and None,
    "jbp.optim.sgd": lambda number: jbp.optim.sgd(0.1, number) and None,
    "jbp.optim.heavy_ball": lambda number: jbp.optim.heavy_ball(0.1, number) and None,
    "jbp.optim.nesterov": lambda number: jbp.optim.nesterov(0.1, number) and None,
    "jbp.rules.alignment": lambda net, loss, params, x, y, key, weights: rules.alignment(
        RULE, RULE_STATE, net, loss, params, x, y, key, weights=weights
    ),
    "jbp.curvature.gauss_newton_diagonal": _drawn(curvature.gauss_newton_diagonal),
    "jbp.curvature.kronecker_factors": _drawn(curvature.kronecker_factors),
    "jbp.curvature.hessian_diagonal": lambda net, loss, params, x, y, weights, key, count: curvature.hessian_diagonal(
        net, loss, params, x, y, key=key, samples=count, weights=weights
    ).value,
    "jbp.curvature.fisher_product": lambda **given: _drawn(curvature.fisher_product)(**given)(PARAMS),
    "jbp.curvature.gauss_newton_product": lambda **given: _batch(curvature.gauss_newton_product)(**given)(PARAMS),
    "jbp.curvature.hessian_product": lambda **given: _batch(curvature.hessian_product)(**given)(PARAMS),
    "jbp.curvature.operator": lambda params: curvature.operator(lambda v: v, params).shape,
    "jbp.checkpoint.describe": lambda net: checkpoint.describe(net) and None,
    "jbp.check.gradient": lambda net, loss, params, x, y, key, weights: _ran(
        check.gradient(net, loss, params, x, y, key=key, weights=weights, differences=False)
    ),
    "jbp.check.layer": lambda net, params, x, key: _ran(
        check.layer(net, params=params, x=x, key=key, differences=False)
    ),
    "jbp.check.loss": lambda loss, key: _ran(check.loss(loss, (3,), target="values", key=key, differences=False)),
    "jbp.check.optimizer": lambda optimizer, key, count: _ran(
        check.optimizer(optimizer, jbp.optim.sgd(0.1), key=key, steps=count)
    ),
    "jbp.check.vjp": lambda key: _ran(
        check.vjp(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, d: (d * jnp.cos(x),), 0.3, key=key, differences=False)
    ),
    "jbp.check.custom_vjp": lambda key: _ran(
        check.custom_vjp(jnp.sin, 0.3, reference=jnp.sin, key=key, differences=False)
    ),
    **{f"{layer!r}.init": lambda key, layer=layer: layer.init(key, (2,))[0] for layer in LAYERS},
    **{f"{layer!r}.init": lambda key, layer=layer: layer.init(key, (4, 2))[0] for layer in IN_SPACE},
    **{f"{layer!r}.init": lambda key, of=(layer, shape): of[0].init(key, of[1])[0] for layer, shape in OTHERS.items()},
    **{f"initializers.{type(make).__name__}": _initial(make) for make in INITIALIZERS},
    **{
        f"jbp.stats.{name}": lambda pairs, weights, name=name: getattr(stats, name)(pairs, weights=weights)
        for name in ("kronecker", "noise_and_signal", "noise_scale", "records", "second_moment", "snr", "variance")
    },
    **{
        f"jbp.stats.{name}": lambda pairs, name=name: getattr(stats, name)(pairs) if name != "explain" else None
        for name in ("gram", "norms", "per_example", "squared_norms")
    },
    "jbp.stats.explain": lambda pairs: stats.explain(pairs) and None,
    "jbp.stats.project": lambda pairs: stats.project(pairs, PARAMS),
    "jbp.stats.clip_weights": lambda pairs, number: stats.clip_weights(pairs, number),
    "jbp.stats.clipped": lambda pairs, number, weights: stats.clipped(pairs, number, weights=weights),
    "jbp.inspect.Update": lambda number, optimizer: jbp.inspect.Update(0.1, number, optimizer=optimizer) and None,
    "jbp.inspect.scene": lambda net, loss, params, x, y, seed: jbp.inspect.scene(
        net, loss, params, x, y, seed=seed
    )["norms"]["f64"],
    "jbp.inspect.scene, a bound": lambda number: jbp.inspect.scene(
        NET, losses.l2_loss, PARAMS, X, Y, max_norm=number
    )["max_norm"],
    "jbp.stats.sensitivity": lambda number: stats.sensitivity(number),
    "jbp.data.Stream": lambda count: repr(jbp.data.Stream([], steps=count)) and None,
}  # fmt: skip
"""Every public function that takes an ingredient, called with its ingredients by name."""


def _save(net, params, loss):
    with tempfile.TemporaryDirectory() as folder:
        jbp.save(Path(folder) / "run", net, params, loss=loss, input_shape=(2,))


def takes(name: str) -> set[str]:
    """The ingredients that a door is called with."""
    names = set(inspect.signature(DOORS[name]).parameters)
    if names != {"given"}:
        return names & set(GOOD)
    drawn = {"key", "count"} if "fisher" in name else set()
    return {"net", "loss", "params", "x", "y", "weights", *drawn}


def enter(name: str, **wrong: Any) -> Any:
    """Call a function with good ingredients but for these."""
    return DOORS[name](**{ingredient: GOOD[ingredient] for ingredient in takes(name)} | wrong)


# ── Every public function has a door ────────────────────────────────────────────────────────────────────────────────


HOLD = {
    "jbp.Batch", "jbp.Event", "jbp.Fit", "jbp.Many", "jbp.Outer", "jbp.Progress", "jbp.Run", "jbp.State",
    "jbp.train.BadNumber", "jbp.train.One", "jbp.stats.Explanation", "jbp.Sum", "jbp.Sums",
    "jbp.Trace", "jbp.TraceRow", "jbp.optim.MomentumState",
    "jbp.optim.SgdState",
}  # fmt: skip
"""Classes that hold what they are given, or what jbp answers with."""
NOT_HERE = {
    "jbp.data.split": "x and y may hold text, and are not trained on as they are",
    "jbp.data.balanced_weights": "its y may hold text",
    "jbp.data.Dataset": "holds what was read of a file",
    "jbp.load": "its layers are a file",
    "jbp.check.optimizer": "its params are any tree of floats",
    "jbp.combine.located": "says where a layer is, whatever it is",
    "jbp.pairs.merge": "takes pairs one by one, inside a walk",
    "jbp.pairs.silence": "works on arrays, inside compiled code",
    "jbp.pairs.weigh": "works on arrays, inside compiled code",
    "jbp.generate": "its net is of tokens, which these are not; tests/test_language.py has its refusals",
    "jbp.gpt": "its layers are a number",
    "jbp.observe": "its params are any tree, with what a pass observed of it",
    "jbp.sinks.keep": "takes what a walk hands it",
    "jbp.sinks.observed": "takes what a walk hands it",
    "jbp.sinks.total": "takes what a walk hands it",
}
"""Functions whose arguments have an ingredient's name and are none, with what they are."""


def public() -> Iterator[tuple[str, Any]]:
    """Every public function, and every class that is called with arguments, by its name."""
    seen = set()
    for module in (jbp, *(getattr(jbp, name) for name in dir(jbp))):
        for name in dir(module) if isinstance(module, ModuleType) else ():
            value = getattr(module, name)
            if callable(value) and not isinstance(value, jbp.Layer | losses.Loss) and id(value) not in seen:
                seen.add(id(value))
                yield f"{module.__name__}.{name}", value


def needed(function: Any) -> set[str]:
    """The ingredients in the signature of a function."""
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return set()
    return {ingredient for name in names for ingredient in INGREDIENTS.get(name, "").split()}


def without_a_door(functions: Any) -> list[str]:
    """The functions that take an ingredient by which no door enters."""
    wrong = []
    for name, function in functions:
        if isinstance(function, type) and (name in HOLD or issubclass(function, BaseException)):
            continue
        if isinstance(function, initializers.Initializer) and type(function) in map(type, INITIALIZERS):
            continue
        doors = [door for door in DOORS if door == name or door.startswith(f"{name}, ")]
        missing = needed(function).difference(*map(takes, doors))
        if missing and name not in NOT_HERE:
            wrong.append(f"{name}: {', '.join(sorted(missing))}")
    return wrong


def test_every_public_function_that_takes_an_ingredient_has_a_door():
    assert not without_a_door(public())
    names = {name for name, _ in public()}
    assert {name for name in DOORS if name.startswith("jbp.") and "," not in name} <= names
    assert HOLD | NOT_HERE.keys() <= names
    inits = {type(layer) for layer in [*LAYERS, *IN_SPACE, *OTHERS]}
    owns = {c for _, c in public() if isinstance(c, type) and issubclass(c, jbp.Layer) and "init" in vars(c)}
    assert owns - {jbp.Layer} <= inits | {layers.Activation}


def test_a_function_added_later_is_missed():
    assert without_a_door([("jbp.new", lambda net, x: None)]) == ["jbp.new: net, x"]
    assert without_a_door([("jbp.apply", lambda net, params, x, weights: None)]) == ["jbp.apply: weights"]
    assert not without_a_door([("jbp.apply", lambda net, params, x: None), ("jbp.new", lambda a: None)])


# ── The table ───────────────────────────────────────────────────────────────────────────────────────────────────────


A_LAYER = "must be a layer, such as jbp.Dense(10) or jbp.serial(...) of some, but is "
A_LOSS = "the loss must come from jbp.losses, or be an instance of a jbp.losses.Loss, but is "
AN_OPTIMIZER = "must come from jbp.optim or optax, but is "
METRICS = "metrics must be functions by name, as {'accuracy': jbp.accuracy}, but are "
CALLBACKS = "callbacks must be functions of an event, as [function], but are "
TEXT = "must be numbers, but is text: "
LABELS = "number the labels 0…k−1, as classes, labels = numpy.unique(y, return_inverse=True) does"
A_KEY = "jax.random.key(seed), but is "
A_SEED = "must be a whole number from 0 to 2**32 - 1, but is "
WEIGHTS = "weights must be an array of one number for each of the 20 examples, but have "
A_TREE = "params must be a tree of arrays, as net.init makes it, but "
SWAPPED = (
    "x and y look swapped: net and loss take examples of shape (2,) with targets of shape (3,), and not x of (3,) with "
    "y of (2,)"
)

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a net by a string": ({"net": "2 relu 3"}, A_LAYER + "'2 relu 3': a line of text is for jbp train --net"),
    "a class for a net": ({"net": jbp.Dense}, A_LAYER + "the class Dense: call it, as in Dense(...)"),
    "a list for a net": ({"net": [jbp.tanh]}, A_LAYER + "[tanh]: several, one after another, are jbp.serial(*layers)"),
    "a function for a net": ({"net": jnp.tanh}, A_LAYER + "the function tanh"),
    "no net": ({"net": None}, A_LAYER + "None"),
    "a loss by name": ({"loss": "l2"}, A_LOSS + "'l2': did you mean jbp.losses.l2_loss?"),
    "a class for a loss": (
        {"loss": losses.SquaredError}, A_LOSS + "the class SquaredError: call it, as in SquaredError()",
    ),
    "an optax loss": (
        {"loss": optax.losses.softmax_cross_entropy},
        A_LOSS
        + "the function softmax_cross_entropy: did you mean jbp.losses.softmax_cross_entropy? A function has no δ",
    ),
    "no loss": (
        {"loss": None},
        A_LOSS + "None: take one of cross_entropy, l2_loss, mean_squared_error, sigmoid_binary_cross_entropy, "
        "softmax_cross_entropy, squared_error",
    ),
    "an optimiser by name": (
        {"optimizer": "adam"}, AN_OPTIMIZER + "'adam': take jbp.optim.sgd(0.1), or one such as optax.adam(0.001)",
    ),
    "a class for an optimiser": (
        {"optimizer": optax.GradientTransformation},
        AN_OPTIMIZER + "the class GradientTransformation: take jbp.optim.sgd(0.1), or one such as optax.adam(0.001)",
    ),
    "an optimiser not called": (
        {"optimizer": optax.adam},
        AN_OPTIMIZER
        + "the function adam: call it, as in adam(0.1), or sweep it by jbp.fit_many(..., learning_rates=[...])",
    ),
    "metrics as a list": ({"metrics": [jbp.accuracy]}, METRICS + "[Accuracy(loss=None)]"),
    "a metric by name": ({"metrics": {"accuracy": "accuracy"}}, METRICS + "{'accuracy': 'accuracy'}"),
    "one callback alone": (
        {"callbacks": schedule}, CALLBACKS + "the function schedule: one alone is callbacks=[function]",
    ),
    "a callback by name": ({"callbacks": ["stop"]}, CALLBACKS + "['stop']"),
    "string labels": ({"y": np.array(["cat", "dog"] * 10)}, TEXT + LABELS),
    "a list of string labels": ({"y": ["cat", "dog"] * 10}, TEXT + LABELS),
    "labels as objects": (
        {"y": np.array([["cat"], ["dog"]] * 10, object)}, "must be numbers, but is of object: " + LABELS,
    ),
    "a data frame of text": ({"x": Frame(np.array([["a", "b"]] * 20))}, TEXT + "make numbers of it, or leave it out"),
    "a tensor that gives no array": (
        {"x": Attached(X)}, "must be an array [n, ...], but Attached gives none: use tensor.detach().numpy() instead",
    ),
    "no x": ({"x": None}, "must be an array [n, ...], but is None"),
    "no y": ({"y": None}, "must be an array [n, ...], but is None"),
    "an int for a key": ({"key": 0}, A_KEY + "0: write jax.random.key(0)"),
    "text for a key": ({"key": "0"}, A_KEY + "'0'"),
    "several keys": ({"key": jax.random.split(KEY, 4)}, A_KEY + "keys of shape (4,)"),
    "a key for a seed": ({"seed": KEY}, A_SEED + "a key: take the number that the key was made from"),
    "text for a seed": ({"seed": "3"}, A_SEED + "'3'"),
    "params of another net": (
        {"params": OTHER}, "Dense(5) takes a weight [i, 5] and a bias [5], got {'bias': (7,), 'weight': (2, 7)}",
    ),
    "what init returns for params": (
        {"params": (PARAMS, (3,))},
        "params must be the first of the two that net.init returns, but are both: params, out_shape = net.init(...)",
    ),
    "text in params": ({"params": ({"weight": "a"}, (), ())}, A_TREE + "params[0]['weight'] is 'a'"),
    "x and y swapped": ({"x": Y, "y": X}, SWAPPED),
    "y of shape [n]": (
        {"y": Y[:, 0]},
        "l2_loss needs a target of the output's shape (3,) for each example, but got (): reshape the targets (one "
        "number per example is [n, 1]) or widen the last layer",
    ),
    "weights that are too few": ({"weights": np.ones(3)}, WEIGHTS + "shape (3,)"),
    "text for weights": ({"weights": "equal"}, WEIGHTS + "type str"),
    "gradients for pairs": (
        {"pairs": PARAMS},
        "takes the pairs that jbp.backward returns, but found an array float64[5] at pairs[0]['bias']",
    ),
    "a schedule for a number": ({"number": schedule}, "the function schedule"),
    "a fraction for a count": ({"count": 2.5}, "but is 2.5"),
    "a net for a problem": (
        {"problem": NET},
        "expected a jbp.Problem(net, loss, optimizer), but got serial(Dense(5), relu, Dense(3))",
    ),
}  # fmt: skip
"""What is wrong, and the line that says so; before it stands the argument's name."""

SEEDS = {name: "takes a seed for a key" for name in DOORS if name.startswith("jbp.check.")}
TAKEN = {("an int for a key", name): why for name, why in SEEDS.items()} | {
    ("no x", "jbp.check.layer"): "x may be left out",
    (
        "params of another net",
        "jbp.backward",
    ): "what was saved is of the net itself, and pairs do not fit",
    ("params of another net", "jbp.curvature.operator"): "works on any tree",
}
"""What is no mistake, or tells of another one first, with why."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_the_same_words_everywhere(mistake):
    wrong, line = MISTAKES[mistake]
    doors = [name for name in DOORS if takes(name) >= wrong.keys() and (mistake, name) not in TAKEN]
    assert doors
    other = {}
    for name in doors:
        try:
            enter(name, **wrong)
            other[name] = "was taken"
        except Exception as error:
            said = str(error)
            if not isinstance(error, ValueError) or "\n" in said or line not in said:
                other[name] = f"{type(error).__name__}: {said}"
    assert not other


FRAMES = [name for name in DOORS if takes(name) & {"x", "y", "weights"}]


@pytest.mark.parametrize("name", FRAMES)
def test_frames_and_tensors_of_other_libraries_are_taken_as_their_arrays(name):
    """By what takes examples; statistics take the arrays that a backward pass made, and refuse others by name."""
    wanted = enter(name)
    if not takes(name) & {"x"}:
        with pytest.raises(ValueError, match=r"weights must be an array .* but have type Frame"):
            enter(name, weights=Frame(GOOD["weights"]))
        return
    for kind in (Frame, Tensor):
        given = {part: kind(GOOD[part]) for part in takes(name) & {"x", "y", "weights"}}
        jax.tree.map(np.testing.assert_array_equal, enter(name, **given), wanted)


@pytest.mark.parametrize("name", [name for name in DOORS if name not in FRAMES])
def test_what_is_right_is_taken(name):
    enter(name)


# ── Data of a training ──────────────────────────────────────────────────────────────────────────────────────────────


TRAIN: dict[str, Callable[..., Any]] = {
    "fit": lambda data, **options: jbp.fit(NET, losses.l2_loss, SGD, data, epochs=1, **options),
    "fit_many": lambda data, **options: jbp.fit_many(NET, losses.l2_loss, SGD, data, seeds=[0], epochs=1, **options),
}
NO_PAIRS = {
    "a tuple of 3; example weights are given as weights=": (X, Y, np.ones(20)),
    "a tuple of 1": (X,),
    "a ndarray": X,
    "a dict": {"x": X, "y": Y},
    "a NoneType": None,
}


@pytest.mark.parametrize("train", TRAIN.values(), ids=TRAIN)
@pytest.mark.parametrize("found", NO_PAIRS)
def test_data_that_are_no_pair_are_refused(train, found):
    line = rf"_data must be a pair \(x, y\) of arrays, but is {found}$"
    with pytest.raises(ValueError, match=f"train{line}"):
        train(NO_PAIRS[found])
    if found != "a NoneType":
        with pytest.raises(ValueError, match=f"validation{line}"):
            train((X, Y), validation_data=NO_PAIRS[found])


@pytest.mark.parametrize("train", TRAIN.values(), ids=TRAIN)
def test_fewer_rows_than_a_usual_batch_are_one_batch(train):
    small = train((X, Y), chunk_steps=1)
    assert small.step_losses.shape[-1] == 1  # all 20, and not 32
    same = train((X, Y), batch_size=20, chunk_steps=1)
    jax.tree.map(np.testing.assert_array_equal, small.params, same.params)
    with pytest.raises(ValueError, match="batch_size must be at most the number of training examples, 20, but is 32"):
        train((X, Y), batch_size=32)
    many = np.tile(X, (2, 1)), np.tile(Y, (2, 1))
    assert train(many).step_losses.shape[-1] == 2  # 32 and 8


@pytest.mark.parametrize("train", TRAIN.values(), ids=TRAIN)
def test_callbacks_come_in_whatever_holds_them(train):
    seen: list[int] = []
    for callbacks in ([lambda event: seen.append(event.step)], iter([lambda event: seen.append(event.step)])):
        train((X, Y), callbacks=callbacks, batch_size=10, chunk_steps=2)
    assert seen == [2, 2]
