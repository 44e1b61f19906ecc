"""`trace`: the walks of `jbp.forward` and `jbp.backward`, with a visit that writes down what it sees."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from jbp.annotations import Array, Float
from jbp.answers import delta_of, error_of
from jbp.arguments import renamed
from jbp.backprop import backward_leaf, example_output, forward_leaf, forward_whole
from jbp.combine import Branch, Combinator, Repeat, Residual, located
from jbp.combine.tied import Path, Tied, Uses
from jbp.inputs import check_loss, check_net, check_params, one_array
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.pairs import is_pair
from jbp.paths import shown
from jbp.sinks import total
from jbp.tracing import formulas
from jbp.tracing.descent import Descent, named
from jbp.tracing.result import Part, Trace, TraceRow

Indices = tuple[int, ...]
P = ParamSpec("P")


def _in_either_order(trace: Callable[P, Trace]) -> Callable[P, Trace]:
    """`trace`, which also takes (net, params, x, y, loss), as it did before, and then says so."""

    @wraps(trace)
    def called(*args: Any, **named: Any) -> Trace:
        old = len(args) > 1 and not isinstance(args[1], Loss)
        if old and (isinstance(named.get("loss"), Loss) or (len(args) == 5 and isinstance(args[4], Loss))):
            renamed("jbp.trace(net, params, x, y, loss)", "jbp.trace(net, loss, params, x, y)")
            named |= dict(zip(("net", "params", "x", "y", "loss"), args, strict=False))
            args = ()
        return trace(*args, **named)  # type: ignore[call-arg]

    return called


@_in_either_order
def trace(
    net: Layer,
    loss: Loss,
    params: Any,
    x: Float[Array, "..."],
    y: Any,
    *,
    learning_rate: float | None = None,
    momentum: float = 0.0,
    velocity: Any = None,
) -> Trace:
    """The numbers of one example, in evaluation: forward, the loss, back, the gradients, and the step they make.

    `x` [...] and the target `y` [...] are one example, without a batch axis; `params` as `net.init` makes them. For
    each layer: input x, parameters and output y; then δ = ∂e/∂y and δ_x = ∂e/∂x; then for each parameter what its pair
    holds, h and δ, and the gradient they make; and with a learning rate η what the parameter becomes:

        w ← w − η ∂e/∂w,  or with momentum β  v ← β v + ∂e/∂w;  w ← w − η v  from the `velocity` v, or from 0

    Layers are named as lectures do, by numbers that count those with parameters, from 1; what follows has the number
    and its kind: in 2 tanh 1 they are 1, 1.tanh and 2, and what comes before all parameters is 0.flatten. A number of a
    layer is had by its name, in Greek or not. `residual` and `branch` have rows where paths meet. Under `repeat` each
    repetition is a layer; under `tied` each use of a shared parameter, and there is a row for their sum.

        t = jbp.trace(net, jbp.losses.squared_error, params, x, y, learning_rate=0.1)
        t, t["2.delta"], t["1.tanh.y"], t["loss.e"], t["2.de/dweight"], t["2.weight_new"], [row.value for row in t]

    Printed, large arrays are told by their range and a picture; `t.text(full=True)` has every number. The parameters
    after the step are `t.params`, and the velocity `t.velocity`, to go on from.

    Raises:
        ValueError: if net, parameters, example and loss do not fit together, naming the layer; momentum without a
            learning rate.
        NotImplementedError: for a layer that couples the examples of a batch: one alone says nothing about it. Batch
            normalisation does so in training only; here it normalises by its running moments.

    Source: lecture A, the three steps; lecture D, every factor by hand.
    """
    check_net(net, Layer)
    check_loss(loss, Loss)
    if learning_rate is None and (momentum != 0 or velocity is not None):
        raise ValueError("momentum and velocity are of a step: give its learning_rate too, such as 0.1")
    check_params(params)
    x, target = (jnp.asarray(one_array(name, values))[None] for name, values in (("x", x), ("y", y)))
    if net.couples_batch is not True:  # else the walk says which layer does
        example_output(net, loss, params, x, target)
    seen = _Seen()
    seen.comes(x, "the input")
    with jax.disable_jit():  # the scan of `repeat` becomes a loop, whose numbers are there to be read
        output, saved = _Forward(seen)((), net, params, x, None)
        errors, delta = jax.vmap(error_of(loss))(output, target), jax.vmap(delta_of(loss))(output, target)
        seen.loss(loss, output, target, errors, delta)
        _, grads = _Backward(seen)((), net, params, saved, delta)
    rows = [*seen.rows, *seen.gradients]
    subject = ((net, loss, params, x[0], target[0]), learning_rate, momentum, velocity)
    if learning_rate is None:
        return Trace(tuple(rows), subject=subject)
    descent = Descent.of(learning_rate, momentum, params, velocity, grads)
    return Trace((*rows, *descent.rows(rows)), descent.params, descent.velocity, subject)


@dataclass
class _Visit:
    """A visit to the layers inside the one at `path`."""

    seen: _Seen
    path: Indices = ()
    repetitions: Iterator[Indices] = field(default_factory=lambda: itertools.repeat(()))
    """Of each visit to come, which repetition it is."""
    part: str = ""
    """What a δ is of which nothing else is known."""
    answers: list[Any] = field(default_factory=list)
    """y, or δ_x, of each visit."""
    found: list[Any] = field(default_factory=list)
    """The gradients that each visit back found."""


class _Forward(_Visit):
    """The visit of `jbp.forward` in evaluation, seen."""

    def __call__(self, step: Indices, layer: Layer, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        place = _Place(self.path + step, next(self.repetitions), layer)
        with located(step, layer):
            if isinstance(layer, Combinator):
                inner = _Forward(self.seen, place.path, place.inside(False))
                y, saved = layer.walk_forward(inner, params, x, key)
                self.seen.joined(place, x, inner.answers, y)
            elif layer.couples_batch is True:
                raise NotImplementedError(f"{layer!r} couples the examples of a batch: one cannot be traced alone")
            else:
                walk = forward_whole if layer.couples_batch else forward_leaf
                y, saved = walk(layer, params, x, None)
                self.seen.forward(place, params, x, y)
        self.answers.append(y)
        return y, saved


class _Backward(_Visit):
    """The visit of `jbp.backward`, seen."""

    def __call__(self, step: Indices, layer: Layer, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        if isinstance(layer, Uses):  # shown at the `Tied`
            return None, saved
        place = _Place(self.path + step, next(self.repetitions), layer)
        if self.part:
            self.seen.comes(delta, self.part)
        with located(step, layer):
            if isinstance(layer, Combinator):
                part = "its part of δ" if isinstance(layer, Branch) and layer.join == "concat" else ""
                inner = _Backward(self.seen, place.path, place.inside(True), part)
                delta_x, found = layer.walk_backward(inner, params, saved, delta)
                self.seen.met(place, delta, inner.answers, delta_x)
                if isinstance(layer, Tied):
                    self.seen.shared(place, inner.found[0], found)
            else:
                delta_x, pairs = backward_leaf(layer, params, saved, delta)
                self.seen.backward(place, delta, delta_x)
                self.seen.gradient(place, pairs)
                found = total(pairs)
        self.answers.append(delta_x)
        self.found.append(found)
        return delta_x, found


@dataclass(frozen=True)
class _Place:
    path: Indices
    repetition: Indices
    layer: Layer

    def inside(self, back: bool) -> Iterator[Indices]:
        """The repetition of each visit to the layers inside."""
        if not isinstance(self.layer, Repeat):
            return itertools.repeat(self.repetition)
        times = range(self.layer.n)
        return ((*self.repetition, i) for i in (reversed(times) if back else times))


class _Seen:
    """The rows so far."""

    def __init__(self) -> None:
        self.rows: list[TraceRow] = []
        self.gradients: list[TraceRow] = []
        self._origins: dict[int, tuple[str, Any]] = {}  # with the array itself, so that its id stays its own
        self._names: dict[Any, str] = {}
        self._count = 0  # layers with parameters so far

    def comes(self, array: Any, origin: str) -> None:
        """Remember where an array comes from."""
        self._origins[id(array)] = origin, array

    def forward(self, place: _Place, params: Any, x: Any, y: Any) -> None:
        """A layer's input, parameters and output."""
        self._count += bool(jax.tree.leaves(params))
        name = self._named(place, bool(jax.tree.leaves(params)))
        self._row("forward", place, "x", self._origin(x), x)
        for path, leaf in jax.tree.leaves_with_path(params):
            typed = f"params{shown(place.path)}{shown(path)}{''.join(f'[{i}]' for i in place.repetition)}"
            self._row("forward", place, named(path), typed, jnp.asarray(leaf)[None])
        self._row("forward", place, "y", place.layer.formulas()[0], y)
        self.comes(y, f"y of {name}")

    def joined(self, place: _Place, x: Any, ys: list[Any], y: Any) -> None:
        """Where a combinator's paths meet, on the way forward."""
        if isinstance(place.layer, Residual | Branch):
            self._named(place, False)
        if isinstance(place.layer, Residual):
            self._row("forward", place, "x", self._origin(x), x)
            self._row("forward", place, "f(x)", self._origin(ys[0]), ys[0])
            self._row("forward", place, "y", "y = x + f(x)", y)
        elif isinstance(place.layer, Branch):
            names = self._members("forward", place, "y", ys)
            joined = " + ".join(names) if place.layer.join == "sum" else f"{', '.join(names)} side by side"
            self._row("forward", place, "y", f"y = {joined}", y)
        if isinstance(place.layer, Residual | Branch):
            self.comes(y, f"y of {self._called(place)}")

    def loss(self, loss: Loss, output: Any, target: Any, errors: Any, delta: Any) -> None:
        """Output, target, error and its δ."""
        place = _Place((), (), loss)  # type: ignore[arg-type]
        positions = int(np.prod(output.shape[1:-1]))
        value, slope = formulas.of_loss(loss, positions, target.ndim < output.ndim)
        for row in (("p", self._origin(output), output), ("t", "the target", target), ("e", value, errors)):
            self._row("loss", place, *row)
        self._row("loss", place, "δ", slope, delta)
        self.comes(delta, "δ of the loss")

    def backward(self, place: _Place, delta: Any, delta_x: Any) -> None:
        """δ of a layer's output and of its input."""
        self._row("backward", place, "δ", self._origin(delta), delta)
        if delta_x is not None:
            self._row("backward", place, "δ_x", place.layer.formulas()[1], delta_x)
            self.comes(delta_x, f"δ_x of {self._called(place)}")

    def met(self, place: _Place, delta: Any, deltas: list[Any], delta_x: Any) -> None:
        """Where a combinator's paths meet, on the way back: the δ of the copies add up."""
        known = [d for d in deltas if d is not None]
        if delta_x is None or not known or not isinstance(place.layer, Residual | Branch):
            return
        if isinstance(place.layer, Residual):
            self._row("backward", place, "δ", self._origin(delta), delta)
            self._row("backward", place, "δ_f", self._origin(known[0]), known[0])
            self._row("backward", place, "δ_x", "δ_x = δ + δ_f", delta_x)
        else:
            names = self._members("backward", place, "δ", known)
            self._row("backward", place, "δ_x", f"δ_x = {' + '.join(names)}", delta_x)
        self.comes(delta_x, f"δ_x of {self._called(place)}")

    def gradient(self, place: _Place, pairs: Any) -> None:
        """What each pair holds, and the gradient it makes."""
        for path, pair in jax.tree.leaves_with_path(pairs, is_leaf=is_pair):
            name = named(path)
            for part in () if pair.constant else dataclasses.fields(pair):
                held = getattr(pair, part.name)
                if isinstance(held, jax.Array):
                    uses = held[:, 0] if held.ndim > 1 and held.shape[1] == 1 else held
                    symbol = "δ" if part.name == "delta" else part.name
                    self._row("gradient", place, symbol, self._kept(place, symbol, uses, uses is held), uses)
            self._row("gradient", place, f"∂e/∂{name}", formulas.of_pair(pair, name), pair.total()[None])

    def shared(self, place: _Place, uses: Any, found: Any) -> None:
        """The gradients of parameters with several uses: the sum over them."""
        assert isinstance(place.layer, Tied)
        for owner in dict.fromkeys(owner for _, owner in place.layer.ties):
            paths = [owner, *(borrower for borrower, lender in place.layer.ties if lender == owner)]
            parts = [jax.tree.leaves_with_path(_at(uses, path)) for path in paths]
            for i, (below, leaf) in enumerate(jax.tree.leaves_with_path(_at(found, owner))):
                name = shown((*owner, *below))
                names = self._members("gradient", place, "use", [part[i][1][None] for part in parts])
                self._row("gradient", place, f"∂e/∂{name}", f"∂e/∂{name} = {' + '.join(names)}", leaf[None])

    def _members(self, step: Part, place: _Place, symbol: str, arrays: list[Any]) -> list[str]:
        """A row for each of the arrays that meet; answers with their symbols."""
        names = [f"{symbol}{_SUBSCRIPTS[i] if i < 9 else f'_{i + 1}'}" for i in range(len(arrays))]
        for name, array in zip(names, arrays, strict=True):
            self._row(step, place, name, self._origin(array), array)
        return names

    def _kept(self, place: _Place, symbol: str, value: Any, many: bool) -> str:
        """Where a pair's h or δ was seen before."""
        symbol, shape = "x" if symbol == "h" else symbol, np.shape(value)[1:]
        for row in self.rows:
            if (row.path, row.repetition, row.symbol) == (place.path, place.repetition, symbol):
                seen = row.value if row.value.shape == shape else row.value.reshape(-1, *row.value.shape[-1:])
                if np.array_equal(seen, value[0]):
                    return f"{symbol} of step {1 if row.step == 'forward' else 2}" + ", a row for each use" * many
        return ""

    def _origin(self, array: Any) -> str:
        return self._origins.get(id(array), ("", None))[0]

    def _named(self, place: _Place, has_params: bool) -> str:
        """A name of its own: the number, or that of the last one with parameters, and the kind."""
        name = first = str(self._count) if has_params else f"{self._count}.{_word(place.layer)}"
        taken, i = set(self._names.values()), 2
        while name in taken:
            name, i = f"{first}{i}", i + 1
        self._names[place] = name
        return name

    def _called(self, place: _Place) -> str:
        return self._names.get(place, "loss" if isinstance(place.layer, Loss) else _word(place.layer))

    def _row(self, step: Part, place: _Place, symbol: str, formula: str, value: Any) -> None:
        named, name = _short_name(place.layer), self._called(place)
        row = TraceRow(step, place.path, place.repetition, named, symbol, formula, np.asarray(value)[0], name)
        same = self.gradients[-8:] if step == "gradient" else []
        if any((r.where, r.symbol) == (row.where, symbol) and np.array_equal(r.value, row.value) for r in same):
            return  # weight and bias share their δ
        (self.gradients if step == "gradient" else self.rows).append(row)


def _at(tree: Any, path: Path) -> Any:
    for step in path:
        tree = tree[step]
    return tree


_SUBSCRIPTS = "₁₂₃₄₅₆₇₈₉"


def _short_name(layer: Any) -> str:
    """A combinator is named by its kind: its layers have rows of their own."""
    return type(layer).__name__.lower() if isinstance(layer, Combinator) else repr(layer)


def _word(layer: Any) -> str:
    """A layer's kind in one word: dropout for Dropout(0.5)."""
    return _short_name(layer).partition("(")[0].lower()
