"""Wrong versions of jbp's own layers, pairs, combinators, spine, losses and optimisers: each must be caught.

Every mutant is a subject with one mistake beside the right one, and the public check that is given both. A wrong layer
or loss is an instance of a fresh subclass, because compiled programs are cached under the layer itself: so nothing of
the right layer's is reused and no cache has to be emptied. A wrong spine is a patched function, for which the one
cache of whole programs is cleared (`mutant_tools.planted`). A wrong optimiser is a wrapper round the right one.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from mutant_tools import Gain, Mutant, with_pair, with_total, wrong
from mutants_sequences import CHECKS as OF_SEQUENCES
from mutants_sequences import MUTANTS as SEQUENCES
from mutants_space import CHECKS as IN_SPACE
from mutants_space import MUTANTS as SPACE

import jbp
import jbp.check
from jbp import backprop, losses, optim
from jbp.combine.tied import _join
from jbp.optim.momentum import _descend
from jbp.pairs import Outer, Pair, Scale, Shift, Stack, is_pair

GRADIENT: Any = sys.modules["jbp.check.gradient"]
"""The module; `jbp.check.gradient` is the function in it."""


def _through(net: Any, change: Any) -> Any:
    def walk_backward(self: Any, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
        return change(delta, *type(net).walk_backward(self, visit, params, saved, delta))

    return wrong(net, walk_backward=walk_backward)


def _layer(shape: tuple[int, ...]) -> Any:
    return lambda subject: jbp.check.layer(subject, shape, batch=3, differences=False)


def _loss(shape: tuple[int, ...], **options: Any) -> Any:
    return lambda subject: jbp.check.loss(subject, shape, batch=3, differences=False, **options)


def _data() -> tuple[Any, Any, Any]:
    draw = jax.random.split(jax.random.key(0), 3)
    weights = jax.random.uniform(draw[2], (5,), jnp.float64, 0.2, 1.0).at[2].set(0)
    return jax.random.normal(draw[0], (5, 3), jnp.float64), jax.random.normal(draw[1], (5, 2), jnp.float64), weights


NET = jbp.serial(jbp.Dense(4), jbp.tanh, jbp.Dense(2))
DROPPING = jbp.serial(jbp.Dense(4), jbp.Dropout(0.5), jbp.Dense(2))


def _gradient(net: Any, weighted: bool = False, blank: bool = False) -> Any:
    params = jax.tree.map(lambda p: p.astype(jnp.float64), net.init(jax.random.key(1), (3,))[0])
    x, y, weights = _data()
    x = x.at[2].set(jnp.nan) if blank else x
    return jbp.check.gradient(
        net, losses.l2_loss, params, x, y, weights=weights if weighted else None, differences=False
    )


def _optimizer(theirs: Any) -> Any:
    return lambda ours: jbp.check.optimizer(ours, theirs, steps=5)


def falling(t: Any) -> Any:
    return 0.1 / (1.0 + jnp.asarray(t, jnp.float32))


UNEQUAL = [[0.5, 1.0, 0.25], [0.0, 2.0, 1.0], [0.3, 0.1, 0.2]]
"""Targets whose rows do not add up to 1."""
CHECKS: dict[str, Callable[[Any], jbp.check.Report]] = {
    **IN_SPACE,
    **OF_SEQUENCES,
    "layer (5,)": _layer((5,)),
    "layer (3,)": _layer((3,)),
    "layer (2, 3)": _layer((2, 3)),
    "layer (3, 5)": _layer((3, 5)),
    "loss (7,)": _loss((7,)),
    "loss (3, 5)": _loss((3, 5)),
    "loss, given targets": lambda subject: _loss((3,), target=jnp.asarray(UNEQUAL))(subject),
    "gradient": _gradient,
    "gradient, weights": lambda net: _gradient(net, weighted=True),
    "gradient, blank row": lambda net: _gradient(net, weighted=True, blank=True),
    "sgd": _optimizer(optax.sgd(0.1)),
    "sgd, schedule": _optimizer(optax.sgd(falling)),
    "heavy_ball": _optimizer(optax.sgd(0.1, momentum=0.9)),
    "nesterov": _optimizer(optax.sgd(0.1, momentum=0.9, nesterov=True)),
}


def _erf_slope(self: Any, s: Any, y: Any) -> Any:
    return jbp.layers.Gelu(approximate=False).keep(s, y)


def _redrawn(self: Any, params: Any, x: Any, key: Any) -> Any:
    y, kept = jbp.layers.Dropout.forward(self, params, x, key)
    return y, kept if key is None else jax.random.bernoulli(jax.random.fold_in(key, 1), 1 - self.drop_rate, x.shape)


def _column_major(self: Any, params: Any, saved: Any, delta: Any) -> Any:
    return delta.reshape(saved.value[::-1]).T, ()


def _drop(change: Any) -> Any:
    """Dropout.backward with its training branch changed."""
    return lambda self, params, kept, delta: (change(kept, delta) if hasattr(kept, "dtype") else delta, ())


def _concat_backward(order: Callable[[tuple[int, ...]], list[int]]) -> Any:
    """Branch.walk_backward whose part i of δ starts at order(widths)[i]."""

    def walk_backward(self: Any, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
        saved, widths = saved
        deltas, found = [], []
        for i, (layer, start) in enumerate(zip(self.layers, order(widths.value), strict=True)):
            part = lax.slice_in_dim(delta, start, start + widths.value[i], axis=-1)
            d, f = visit((i,), layer, params[i], saved[i], part)
            deltas, found = [*deltas, d], [*found, f]
        return sum(deltas[1:], deltas[0]), tuple(found)

    return walk_backward


def _last_of_branch(self: Any, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
    out = [visit((i,), layer, params[i], saved[0][i], delta) for i, layer in enumerate(self.layers)]
    return out[-1][0], tuple(found for _, found in out)


def _flipped_scan(self: Any, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
    stacks, last, plan = saved

    def body(delta: Any, p_s: Any) -> Any:
        return visit((), self.layer, p_s[0], plan.whole(p_s[1], last), delta)

    delta, found = lax.scan(body, delta, (params, stacks), length=self.n)
    return delta, jax.tree.map(Stack, found, is_leaf=lambda f: isinstance(f, Pair))


def _both(own: Any, lent: Any) -> Any:
    return _join((0,), (own, lent))


def _reunited(join: Callable[[Any, Any], Any] = _both, lend: Callable[[Any], Any] = lambda p: p) -> Any:
    """Tied.walk_backward of TWICE: join(what is found at the owner, at the borrower); lend(the owner's parameters)."""

    def walk_backward(self: Any, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
        first, between, last = self.whole(params)
        delta_x, (own, _, lent) = visit((), self.layer, (first, between, lend(last)), saved, delta)
        return delta_x, (jax.tree.map(join, own, lent, is_leaf=is_pair), (), ())

    return walk_backward


def _rolled(self: Any, weights: Any = None) -> Any:
    return Outer(jnp.roll(self.h, 1, 0), self.delta, self.shape).total(weights)


def _spine(change: Any) -> tuple[Any, str, Any]:
    """The spine with `change(right, arguments)` around its one function; arguments: net, loss, params, batch, …"""
    right = backprop.value_grad_output
    return backprop, "value_grad_output", lambda *args: change(right, args)


def _grads(change: Any) -> tuple[Any, str, Any]:
    def changed(right: Any, args: Any) -> Any:
        found = right(*args)
        return found._replace(grads=jax.tree.map(lambda g: change(g, len(args[3].x)), found.grads))

    return _spine(changed)


def _with_weights(change: Any) -> tuple[Any, str, Any]:
    def changed(right: Any, args: Any) -> Any:
        net, loss, params, batch, *rest = args
        return right(net, loss, params, batch._replace(weights=change(batch.weights)), *rest)

    return _spine(changed)


def _optimised(right: Any, gradient: Any = None, update: Any = None, remember: Any = None) -> Any:
    """An optimiser fed, read or remembered wrongly."""

    def step(updates: Any, state: Any, params: Any = None) -> Any:
        u, new = right.update(jax.tree.map(gradient, updates) if gradient else updates, state, params)
        return jax.tree.map(update, u) if update else u, remember(state, new) if remember else new

    return optax.GradientTransformation(right.init, step)


def _velocity(change: Any) -> Any:
    return lambda old, new: new._replace(velocity=jax.tree.map(change, old.velocity, new.velocity))


def _m(name: str, where: str, law: str, check: str, right: Any, wrong: Any = None, *patches: Any) -> Mutant:
    return Mutant(name, where, law, check, right, right if wrong is None else wrong, patches)


def _dense_backward(change: Any) -> Any:
    def backward(self: Any, params: Any, saved: Any, delta: Any) -> Any:
        return change(params["weight"], delta), jbp.Dense.backward(self, params, saved, delta)[1]

    return backward


VJP, EACH = "= vjp", "= vjp, each example"
D, D1 = jbp.Dense(5), jbp.Dense(1)
# fmt: off
LAYERS = (
    _m("bias gradient dropped", "Dense", EACH, "layer (3,)", D,
       with_pair(D, "bias", lambda p: Shift(0 * p.delta, p.shape))),
    _m("weight gradient × 2", "Dense", EACH, "layer (3,)", D,
       with_pair(D, "weight", lambda p: Outer(2 * p.h, p.delta, p.shape))),
    _m("bias gradient's sign", "Dense", EACH, "layer (3,)", D,
       with_pair(D, "bias", lambda p: Shift(-p.delta, p.shape))),
    _m("W not transposed, square", "Dense", VJP, "layer (5,)", D,
       wrong(D, backward=_dense_backward(lambda weight, delta: delta @ weight))),
    _m("weight gradient transposed, square", "Dense", EACH, "layer (5,)", D,
       with_pair(D, "weight", lambda p: Outer(p.delta, p.h, p.shape))),
    _m("δ passed on without W's first column", "Dense", VJP, "layer (3,)", D,
       wrong(D, backward=_dense_backward(lambda weight, delta: delta @ weight.at[:, 0].set(0).T))),
    _m("θ′ at s instead of θ(s)", "tanh", VJP, "layer (3,)", jbp.tanh, wrong(jbp.tanh, keep=lambda self, s, y: s)),
    _m("θ′ missing", "tanh", VJP, "layer (3,)", jbp.tanh, wrong(jbp.tanh, pull=lambda self, y, d: d)),
    _m("1 − y for 1 − y²", "tanh", VJP, "layer (3,)", jbp.tanh, wrong(jbp.tanh, pull=lambda self, y, d: d * (1 - y))),
    _m("θ′ at s instead of θ(s)", "sigmoid", VJP, "layer (3,)", jbp.sigmoid,
       wrong(jbp.sigmoid, keep=lambda self, s, y: s)),
    _m("y(1 + y) for y(1 − y)", "sigmoid", VJP, "layer (3,)", jbp.sigmoid,
       wrong(jbp.sigmoid, pull=lambda self, y, d: d * y * (1 + y))),
    _m("Jacobian without its second term", "softmax", VJP, "layer (3,)", jbp.softmax,
       wrong(jbp.softmax, pull=lambda self, y, d: y * d)),
    _m("backward is zero", "softmax", VJP, "layer (3,)", jbp.softmax,
       wrong(jbp.softmax, pull=lambda self, y, d: 0 * d)),
    _m("summed over another axis", "softmax", VJP, "layer (3, 5)", jbp.softmax,
       wrong(jbp.softmax, pull=lambda self, y, d: y * (d - (y * d).sum(0, keepdims=True)))),
    _m("σ(y) for σ(s)", "softplus", VJP, "layer (3,)", jbp.softplus,
       wrong(jbp.softplus, pull=lambda self, y, d: d * lax.logistic(y))),
    _m("slope on the wrong side", "leaky_relu", VJP, "layer (3, 5)", jbp.leaky_relu,
       wrong(jbp.leaky_relu, pull=lambda self, y, d: jnp.where(y.positive, 0.01 * d, d))),
    _m("θ′ missing", "relu", VJP, "layer (3, 5)", jbp.relu, wrong(jbp.relu, pull=lambda self, y, d: d)),
    _m("slope y + 1 at α = 0.7", "elu", VJP, "layer (3, 5)", jbp.layers.Elu(0.7),
       wrong(jbp.layers.Elu(0.7), pull=lambda self, y, d: jnp.where(y > 0, d, d * (y + 1)))),
    _m("second term of θ′ missing", "silu", VJP, "layer (3,)", jbp.silu,
       wrong(jbp.silu, keep=lambda self, s, y: lax.logistic(s))),
    _m("θ′ of the other form", "gelu", VJP, "layer (3,)", jbp.gelu, wrong(jbp.gelu, keep=_erf_slope)),
    _m("mask not applied to δ", "Dropout", VJP, "layer (3, 5)", jbp.Dropout(0.3),
       wrong(jbp.Dropout(0.3), backward=_drop(lambda kept, d: d / 0.7))),
    _m("mask redrawn", "Dropout", VJP, "layer (3, 5)", jbp.Dropout(0.3), wrong(jbp.Dropout(0.3), forward=_redrawn)),
    _m("δ not scaled by 1/(1 − p)", "Dropout", VJP, "layer (3, 5)", jbp.Dropout(0.3),
       wrong(jbp.Dropout(0.3), backward=_drop(lambda kept, d: jnp.where(kept, d, 0 * d)))),
    _m("δ put back column by column", "Flatten", VJP, "layer (2, 3)", jbp.layers.Flatten(),
       wrong(jbp.layers.Flatten(), backward=_column_major)),
)
PAIRS = (
    _m("h of another example", "Outer", EACH, "layer (3,)", D, with_total(D, "weight", Outer, _rolled)),
    _m("weights ignored", "Outer", EACH, "layer (3,)", D,
       with_total(D, "weight", Outer, lambda self, weights=None: Outer.total(self))),
    _m("weights normalised", "Outer", "= jax.grad", "gradient, weights", DROPPING, None,
       (Outer, "total", lambda self, weights=None, right=Outer.total:
        right(self, None if weights is None else weights / weights.sum()))),
    _m("mean over the examples for the sum", "Shift", EACH, "layer (3,)", D,
       with_total(D, "bias", Shift, lambda self, weights=None: Shift.total(self, weights) / self.batch)),
    _m("mean over the uses for the sum", "Shift", EACH, "layer (2, 3)", D,
       with_total(D, "bias", Shift, lambda self, weights=None: Shift.total(self, weights) / self.delta.shape[1])),
    _m("only the first use", "Outer", EACH, "layer (2, 3)", D,
       with_pair(D, "weight", lambda p: Outer(p.h[:1], p.delta[:1], p.shape))),
    _m("h left out", "Scale", EACH, "layer (3,)", Gain(), with_pair(Gain(), "gain", lambda p: Shift(p.delta, p.shape))),
    _m("h and δ exchanged, their product the same", "Outer", "h free of δ", "layer (2, 3)", D1,
       with_pair(D1, "weight", lambda p: Outer(p.delta, p.h, p.shape))),
    _m("h and δ exchanged, their product the same", "Scale", "h free of δ", "layer (3,)", Gain(),
       with_pair(Gain(), "gain", lambda p: Scale(p.delta, p.h, p.shape))),
    _m("1/N missing", "contract", "= jax.grad", "gradient, weights", DROPPING, None,
       (GRADIENT, "contract", lambda pairs, weights=None, right=jbp.contract:
        jax.tree.map(lambda g: 5 * g, right(pairs, weights)))),
)
S2 = jbp.serial(jbp.Dense(3), jbp.Dense(3))
R, B = jbp.residual(jbp.Dense(3)), jbp.branch(jbp.Dense(3), jbp.tanh)
C, L = jbp.branch(jbp.Dense(3), jbp.tanh, join="concat"), jbp.repeat(jbp.serial(jbp.Dense(3), jbp.tanh), 2)
TWICE = jbp.tied(jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(3)), {2: 0})
COMBINATORS = (
    _m("gradients in the order of the way back", "serial", EACH, "layer (3,)", S2,
       _through(S2, lambda d, dx, found: (dx, found[::-1]))),
    _m("δ of the output passed on as δ of the input", "serial", VJP, "layer (3,)", S2,
       _through(S2, lambda d, dx, found: (d, found))),
    _m("no δ along the skip", "residual", VJP, "layer (3,)", R, _through(R, lambda d, dx, found: (dx - d, found))),
    _m("δ along the skip doubled", "residual", VJP, "layer (3,)", R,
       _through(R, lambda d, dx, found: (dx + d, found))),
    _m("δ of the fan-out overwritten", "branch", VJP, "layer (3,)", B, wrong(B, walk_backward=_last_of_branch)),
    _m("parts of the join swapped", "branch", EACH, "layer (3,)", C,
       wrong(C, walk_backward=_concat_backward(lambda widths: [widths[1], 0]))),
    _m("every part is the first", "branch", VJP, "layer (3,)", C,
       wrong(C, walk_backward=_concat_backward(lambda widths: [0 for _ in widths]))),
    _m("scan in the wrong order", "repeat", EACH, "layer (3,)", L, wrong(L, walk_backward=_flipped_scan)),
    _m("another layer's slice of the stack", "repeat", EACH, "layer (3,)", L,
       _through(L, lambda d, dx, found: (dx, jax.tree.map(lambda a: jnp.roll(a, 1, 0), found)))),
    _m("a borrower's gradient dropped", "tied", EACH, "layer (3,)", TWICE,
       wrong(TWICE, walk_backward=_reunited(lambda own, lent: own))),
    _m("the owner's gradient overwritten by a borrower's", "tied", EACH, "layer (3,)", TWICE,
       wrong(TWICE, walk_backward=_reunited(lambda own, lent: lent))),
    _m("the owner's gradient counted twice", "tied", EACH, "layer (3,)", TWICE,
       wrong(TWICE, walk_backward=_reunited(lambda own, lent: _join((0,), (own, own, lent))))),
    _m("the borrower carries δ back by another weight", "tied", EACH, "layer (3,)", TWICE,
       wrong(TWICE, walk_backward=_reunited(lend=lambda p: p | {"weight": p["weight"].T}))),
)
SPINE = (
    _m("1/N missing", "value_and_grad", "= jax.grad", "gradient", NET, None, _grads(lambda g, n: g * n)),
    _m("δ divided by N twice", "value_and_grad", "= jax.grad", "gradient", NET, None, _grads(lambda g, n: g / n)),
    _m("weights ignored", "value_and_grad", "= value", "gradient, weights", NET, None, _with_weights(lambda w: None)),
    _m("weights normalised", "value_and_grad", "= value", "gradient, weights", NET, None,
       _with_weights(lambda w: w / w.sum())),
    _m("weights squared", "value_and_grad", "= value", "gradient, weights", NET, None, _with_weights(lambda w: w * w)),
    _m("a row of weight 0 leaks its NaN", "value_and_grad", "= jax.grad", "gradient, blank row", NET, None,
       (backprop, "silence", lambda weights, a: a)),
    _m("0 · NaN in the δ of a row of weight 0", "weigh", "= value", "gradient, blank row", NET, None,
       (backprop, "silence", lambda weights, a: a),
       (backprop, "weigh", lambda w, d: d * w.reshape((-1,) + (1,) * (d.ndim - 1)))),
    _m("one example's δ given to another", "value_and_grad", "= jax.grad", "gradient", NET, None,
       (backprop, "_backward_examples", lambda layer, params, saved, delta, right=backprop._backward_examples:
        right(layer, params, saved, jnp.roll(delta, 1, 0)))),
)
SQUARED, L2, MEAN = losses.squared_error, losses.l2_loss, losses.mean_squared_error
SOFTMAX, SIGMOID, CROSS = losses.softmax_cross_entropy, losses.sigmoid_binary_cross_entropy, losses.cross_entropy

# fmt: on


def _delta(of: Any, change: Any, where: str = "delta") -> Any:
    return wrong(of, **{where: lambda self, p, t: change(getattr(of, where)(p, t), p, t)})


def _one_hot(p: Any, t: Any) -> Any:
    return t if t.shape == p.shape else jax.nn.one_hot(t, p.shape[-1], dtype=p.dtype)


def _no_shift(self: Any, p: Any, t: Any) -> Any:
    e = jnp.exp(p)
    return e / e.sum(-1, keepdims=True) - _one_hot(p, t)


# fmt: off
LOSSES = (
    _m("factor 2 missing", "squared_error", "= derivative", "loss (7,)", SQUARED,
       _delta(SQUARED, lambda d, p, t: d / 2)),
    _m("sign", "squared_error", "= derivative", "loss (7,)", SQUARED, _delta(SQUARED, lambda d, p, t: -d)),
    _m("target missing", "l2_loss", "= derivative", "loss (7,)", L2, _delta(L2, lambda d, p, t: p)),
    _m("1/k missing", "mean_squared_error", "= derivative", "loss (7,)", MEAN, _delta(MEAN, lambda d, p, t: d * 7)),
    _m("1/k twice", "mean_squared_error", "= derivative", "loss (7,)", MEAN, _delta(MEAN, lambda d, p, t: d / 7)),
    _m("softmax without its largest logit", "softmax_cross_entropy", "= derivative", "loss (7,)", SOFTMAX,
       wrong(SOFTMAX, delta=_no_shift)),
    _m("target of the next class", "softmax_cross_entropy", "= derivative", "loss (7,)", SOFTMAX,
       wrong(SOFTMAX, delta=lambda self, p, t: SOFTMAX.delta(p, jnp.roll(t, 1, -1) if t.ndim else (t + 1) % 7))),
    _m("Σt missing", "softmax_cross_entropy", "= derivative", "loss, given targets", SOFTMAX,
       wrong(SOFTMAX, delta=lambda self, p, t: jax.nn.softmax(p) - t)),
    _m("root of the Hessian without ppᵀ", "softmax_cross_entropy", "squares to the Hessian", "loss (7,)", SOFTMAX,
       wrong(SOFTMAX, sqrt_hessian=lambda self, p, t: losses._diagonal_columns(jnp.sqrt(jax.nn.softmax(p))))),
    _m("mean over the positions missing in δ", "softmax_cross_entropy", "= derivative", "loss (3, 5)", SOFTMAX,
       _delta(SOFTMAX, lambda d, p, t: d * 3)),
    _m("mean over the positions missing in the root", "sigmoid_binary_cross_entropy", "squares to the Hessian",
       "loss (3, 5)", SIGMOID, _delta(SIGMOID, lambda d, p, t: d * jnp.sqrt(3.0), "sqrt_hessian")),
    _m("θ′ once too often", "sigmoid_binary_cross_entropy", "= derivative", "loss (7,)", SIGMOID,
       _delta(SIGMOID, lambda d, p, t: d * lax.logistic(p) * lax.logistic(-p))),
    _m("1/y missing", "cross_entropy", "= derivative", "loss (7,)", CROSS, _delta(CROSS, lambda d, p, t: d * p)),
    _m("0 · log 0", "cross_entropy", "no NaN at probability 0", "loss (7,)", CROSS,
       wrong(CROSS, value=lambda self, p, t: -(_one_hot(p, t) * jnp.log(p)).sum())),
)
SGD, FALLING, HEAVY, AHEAD = optim.sgd(0.1), optim.sgd(falling), optim.heavy_ball(0.1), optim.nesterov(0.1)
_PLACES = {"sgd": SGD, "sgd, schedule": FALLING, "heavy_ball": HEAVY, "nesterov": AHEAD}
OPTIMISERS = tuple(
    _m(name, where.split(",")[0], "same trajectory", where, _PLACES[where], mutant)
    for name, where, mutant in (
        ("uphill", "sgd", _optimised(SGD, update=lambda u: -u)),
        ("η twice", "sgd", _optimised(SGD, update=lambda u: 0.1 * u)),
        ("steps not counted", "sgd, schedule", _optimised(FALLING, remember=lambda old, new: old)),
        ("η of the next step", "sgd, schedule", _optimised(optim.sgd(lambda t: falling(t + 1)))),
        ("momentum damped by 1 − β", "heavy_ball", _optimised(HEAVY, gradient=lambda g: (1 - 0.9) * g)),
        ("sign of β", "heavy_ball", _optimised(HEAVY, remember=_velocity(lambda old, new: -new))),
        ("velocity reset", "heavy_ball", _optimised(HEAVY, remember=_velocity(lambda old, new: 0 * new))),
        ("velocity not kept", "heavy_ball", _optimised(HEAVY, remember=_velocity(lambda old, new: old))),
        ("from the old trace", "nesterov", _descend(0.1, 0.9, lambda beta, g, v: g + (v - g))),
        ("β missing before the new trace", "nesterov", _descend(0.1, 0.9, lambda beta, g, v: g + v)),
        ("gradient missing beside the trace", "nesterov", _descend(0.1, 0.9, lambda b, g, v: b * v)),
    )
)
# fmt: on
MUTANTS = (*LAYERS, *SPACE, *SEQUENCES, *PAIRS, *COMBINATORS, *SPINE, *LOSSES, *OPTIMISERS)
