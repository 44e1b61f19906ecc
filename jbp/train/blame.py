"""Which number stopped being finite first: by layer, direction, example and row of the data.

A step is gone through once more, layer by layer, outside compiled code: the spine's own walk forward and back, on a net
that looks at what every layer hands on. The first that is not finite is the answer. A row of weight 0 does not count,
unless it alone spoils a gradient, nor does a δ that nobody needs, such as that of the net's input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.tree_util import SequenceKey, tree_flatten_with_path

from jbp.annotations import Array
from jbp.answers import error_of
from jbp.backprop import Batch, backward, backward_leaf, scaled, value_output_delta
from jbp.combine import Combinator, Place, Repeat
from jbp.combine.tied import Uses, unmarked
from jbp.layer import Layer
from jbp.masks import mask_at, real_alone
from jbp.pairs import Pair, is_pair, widened
from jbp.paths import paths, shown
from jbp.sinks import total
from jbp.step import Problem, State, step_function, transformed_batch, weighed_batch

Direction = Literal["input", "parameters", "forward h", "loss", "backward δ", "gradient", "update"]
_FILLS = "a row of weight 0, which only fills the batch up"


@dataclass(frozen=True)
class BadNumber:
    """The first number of a run that is not finite, by its place; its text says it in a sentence.

    `direction` is None if none could be found; then `note` says why.
    """

    direction: Direction | None
    """What it is: an input as the transform makes it, a parameter before the step, a layer's output h, the loss, the δ
    that a layer hands down, a gradient, or a parameter after the update."""
    layer: str = ""
    """By path and name, as in "net[3] relu"; of a repetition with its number from 1, "net[0] #2 Dense(8)"."""
    parameter: str = ""
    """As in `params[0]["weight"]`, where it is one's own or of its gradient."""
    example: int | None = None
    """The first row of the batch, from 0, that has it; None where it is of no single one."""
    row: int | None = None
    """That example's row in the training data, from 0; None where they have no numbers."""
    others: int = 0
    """Further examples, or parameters, that have it at the same place."""
    note: str = ""
    step: int | None = None
    """From 1, over the whole run."""
    epoch: int | None = None

    def __str__(self) -> str:
        """A sentence."""
        if self.direction is None:
            return self.note
        when = "" if self.step is None else f"step {self.step} (epoch {self.epoch}), "
        of = {"gradient": "gradient of ", "update": "the update of ", "parameters": "before the step, "}
        what = of.get(self.direction, f"{self.direction} of ") + (self.parameter or self.layer or "the net")
        if self.parameter and self.layer:
            what += f", {self.layer}"
        said = f"the first number that is not finite: {when}{what}"
        if self.example is not None:
            said += f", example {self.example} of the batch"
            said += "" if self.row is None else f", row {self.row} of the training data"
        said += f" (and {self.others} more)" if self.others else ""
        return f"{said}, {self.note}" if self.note else said


def first_bad(
    problem: Problem, state: State, batch: Batch, key: Array, *, rows: Any = None, accumulate: int = 1
) -> BadNumber:
    """The first number that is not finite in the step from `state` with `batch`, gone through layer by layer.

    `batch` as a source hands it in, `key` the step's own (`jbp.step.step_key`), `rows` [n] the examples' rows in the
    training data. In a step in parts (`accumulate`) so are the layers'. Nothing is changed; where the method is no one
    walk through the net, forward and loss are looked at, and what it made of the parameters.
    """
    state, batch, key = jax.device_put((state, batch, key), jax.local_devices()[0])
    batch = transformed_batch(problem, weighed_batch(batch), key)
    counts = np.ones(_size(batch), bool) if batch.weights is None else np.asarray(batch.weights) != 0
    seen = _Seen(problem, state.params, rows)
    _through(seen, state, batch, key, accumulate, counts)
    if seen.first is not None and seen.first.note == _FILLS:  # where did the rows that only fill up begin to spoil it?
        seen = _Seen(problem, state.params, rows)
        _through(seen, state, batch, key, accumulate, counts, every=True)
    if seen.first is None:
        _updated(seen, state, batch, key, accumulate)
    return seen.first or BadNumber(None, note="every number of the step is finite when it is taken layer by layer")


def lost(before: Any, after: Any) -> list[int]:
    """The leaves of a tree, by their numbers, with an element that was finite before and is not after."""
    flags = jax.device_get(_lost(before, after))
    return [i for i, flag in enumerate(flags) if flag]


@jax.jit
def _lost(before: Any, after: Any) -> list[Array]:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return [lost_any(a, b) for a, b in pairs]


def lost_any(before: Array, after: Array) -> Array:
    """Whether an element of an array was finite before and is not after."""
    if not jnp.issubdtype(before.dtype, jnp.inexact):
        return jnp.zeros((), bool)
    return (jnp.isfinite(before) & ~jnp.isfinite(after)).any()


def _through(
    seen: _Seen, state: State, batch: Batch, key: Array, accumulate: int, counts: np.ndarray, every: bool = False
) -> None:
    """Forward, loss, back and contraction, of one part of the batch after another; `every` row is looked at, or those
    that count."""
    n = len(counts)
    if accumulate > 1 and batch.weights is None:
        batch = batch._replace(weights=jnp.full(n, 1 / n, jnp.zeros(()).dtype))
    if accumulate > 1 and batch.rows is None:
        batch = batch._replace(rows=jnp.arange(n))
    size, sums = -(-n // min(accumulate, n)), None
    for start in range(0, n, size):
        part = Batch(*(jax.tree.map(lambda a: a[start : start + size], field) for field in batch[:5]))  # noqa: B023
        seen.begin(start, counts[start : start + size], every)
        grads = _part(seen, state, part, key)
        if seen.first is not None or grads is None:
            return
        sums = grads if sums is None else jax.tree.map(jnp.add, sums, grads)
    seen.gradients(jax.tree.map(lambda g, p: g.astype(p.dtype), sums, state.params))


def _part(seen: _Seen, state: State, batch: Batch, key: Array) -> Any:
    """The gradient of a part, if everything on the way to its loss is finite and the method walks back at all."""
    problem = seen.problem
    way = problem.method.way(problem, state, batch.x)
    net, params = way or (problem.net, state.params)
    watched = _Watched(net, seen)
    seen.of_examples("input", "", real_alone(batch.mask, batch.x))
    with jax.disable_jit():  # the scan of `repeat` becomes a loop, whose numbers are there to be read
        value, output, saved, delta, scale = value_output_delta(watched, problem.loss, params, batch, key)
        if seen.first is None:
            masks = mask_at(net, output, batch.mask)
            seen.of_examples("loss", repr(problem.loss), jax.vmap(error_of(problem.loss))(output, batch.y, *masks))
            if not np.isfinite(np.asarray(value)):
                seen.found(BadNumber("loss", repr(problem.loss), note="the mean over the examples"))
            seen.of_examples("backward δ", repr(problem.loss), delta)
        if seen.first is not None or way is None:
            return None
        _, grads = backward(watched, params, saved, delta, total)
    grads = problem.trainable(scaled(grads, scale))
    seen.walked_back(grads)
    return grads


def _updated(seen: _Seen, state: State, batch: Batch, key: Array, accumulate: int) -> None:
    """What the step makes of the parameters, and of what the method carries."""
    names = [*paths(state.params, "params"), *paths(state.method_state, "method_state")]
    after = _step(seen.problem, accumulate)(state, batch, key)
    bad = lost((state.params, state.method_state), after)
    if bad:
        place = _lead(tree_flatten_with_path((state.params, state.method_state))[0][bad[0]][0][1:])
        layer = seen.names.get(place, "") if names[bad[0]].startswith("params") else ""
        seen.found(BadNumber("update", layer, names[bad[0]], others=len(bad) - 1))


@lru_cache(maxsize=8)
def _step(problem: Problem, accumulate: int) -> Callable[[State, Batch, Array], Any]:
    """The parameters and the method's state after a step with a batch that is prepared."""
    step = step_function(dataclasses.replace(problem, metrics=None, transform=None), accumulate)

    def after(state: State, batch: Batch, key: Array) -> Any:
        # Weights are divided already: by 1 they stay.
        state = step(state, batch._replace(divisor=None if batch.weights is None else 1), key)[0]
        return state.params, state.method_state

    return jax.jit(after)


class _Seen:
    """What was seen on the way through a step."""

    def __init__(self, problem: Problem, params: Any, rows: Any):
        self.problem, self.rows = problem, None if rows is None else np.asarray(rows)
        flags = zip(paths(params, "params"), problem.trainable.flags(params), strict=True)
        self.frozen = {path for path, trained in flags if not trained}
        self.first: BadNumber | None = None
        self.names: dict[Place, str] = {}

    def begin(self, start: int, counts: np.ndarray, every: bool) -> None:
        """Another part of the batch: from this row on; which rows count; whether the others are looked at too."""
        self.start, self.counts, self.every = start, counts, every
        self.repeats: dict[tuple[Place, Layer], tuple[int, ...]] = {}
        self.visits: dict[tuple[Place, Layer, bool], int] = {}
        self.back: list[tuple[BadNumber, bool]] = []
        """What was found on the way back, and whether it is sure that it is needed."""

    def found(self, bad: BadNumber) -> None:
        """The first one counts."""
        self.first = self.first or bad

    def of_examples(self, direction: Direction, layer: str, values: Any) -> None:
        """Look at values [n, ...]."""
        bad = self.bad(values)
        if bad.any():
            self.found(BadNumber(direction, layer, **self.who(bad)))

    def forward(self, place: Place, layer: Layer, params: Any, x: Any, y: Any) -> None:
        """Look at a layer's output."""
        name = self.named(place, layer, False)
        if not isinstance(layer, Combinator):
            self.names.setdefault(place, f"net{shown(place)} {layer!r}")
        bad = self.bad(y)
        if self.first is None and bad.any():
            self.found(self.own(place, name, layer, params) or self.at("forward h", name, layer, x, bad))

    def comes(self, place: Place, layer: Layer, delta: Any) -> None:
        """Look at the δ that a layer gets: whatever handed it down is needed."""
        bad = self.bad(delta)
        if bad.any():
            name = self.named(place, layer, True, count=False)
            who: dict[str, Any] = {"note": "the δ that reaches it"} | self.who(bad)
            first = BadNumber("backward δ", name, **who)
            self.back = [(found, True) for found, _ in self.back] or [(first, True)]

    def went(self, place: Place, layer: Layer, params: Any, delta: Any, delta_x: Any) -> str:
        """Look at the δ that a layer hands down; answers with its name."""
        name = self.named(place, layer, True)
        bad = self.bad(delta_x)
        if not self.back and bad.any():
            own = self.own(place, name, layer, params)
            found = own and dataclasses.replace(own, note="on the way back")
            self.back.append((found or self.at("backward δ", name, layer, delta, bad), False))
        return name

    def contracted(self, place: Place, name: str, totals: Any, pairs: Callable[[], Any]) -> None:
        """Look at the gradients that a layer's pairs make."""
        for i, (path, leaf) in enumerate(tree_flatten_with_path(totals)[0]):
            parameter = f"params{shown(place)}{shown(path)}"
            if parameter in self.frozen or isinstance(leaf, Tracer) or np.isfinite(np.asarray(leaf)).all():
                continue
            if any(sure or found.direction == "gradient" for found, sure in self.back):
                return
            bad = _bad_examples(jax.tree.leaves(pairs(), is_leaf=is_pair)[i])
            counted = bad & self.counts
            who: dict[str, Any] = {"note": "the sum over the examples"}
            if bad.any():
                who = self.who(counted if counted.any() else bad)
            self.back.append((BadNumber("gradient", name, parameter, **who), True))

    def joined(self, layer: Uses, totals: Any) -> None:
        """Look at the gradients of a shared parameter, summed over its uses."""
        if not self.back and not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(totals)):
            found = BadNumber("gradient", "", f"params{shown(layer.owner)}", note="the sum over its uses")
            self.back.append((found, True))

    def walked_back(self, grads: Any) -> None:
        """What was found on the way back counts if it has spoilt a gradient that is used."""
        if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(grads)):
            for found in [found for found, sure in self.back if sure]:
                self.found(found)

    def gradients(self, grads: Any) -> None:
        """Look at the whole gradients, as the optimiser gets them."""
        for (path, leaf), name in zip(tree_flatten_with_path(grads)[0], paths(grads, "params"), strict=True):
            if not np.isfinite(np.asarray(leaf)).all():
                note = f"summed and rounded to {leaf.dtype}"
                self.found(BadNumber("gradient", self.names.get(_lead(path), ""), name, note=note))

    def bad(self, tree: Any) -> np.ndarray:
        """Which examples [n] that count have a number that is not finite; none where there is nothing to look at."""
        bad = np.zeros(len(self.counts), bool)
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, Tracer):
                return np.zeros(len(self.counts), bool)
            values = np.asarray(leaf)
            if jnp.issubdtype(values.dtype, jnp.inexact):
                bad |= ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        return bad if self.every else bad & self.counts

    def who(self, bad: np.ndarray) -> dict[str, Any]:
        """The first of these examples, and how many others there are."""
        i = int(np.argmax(bad))
        found = {"example": self.start + i, "row": self.row(i), "others": int(bad.sum()) - 1}
        return found if self.counts[i] else found | {"note": _FILLS}

    def row(self, i: int) -> int | None:
        """The row of the training data that an example of this part is."""
        return None if self.rows is None else int(self.rows[self.start + i])

    def at(self, direction: Direction, name: str, layer: Layer, came: Any, bad: np.ndarray) -> BadNumber:
        """A layer has made it of something finite. One that couples the examples makes it of all of them at once."""
        if isinstance(layer, Combinator) or not layer.couples_batch or bad.sum() == 1:
            return BadNumber(direction, name, **self.who(bad))
        size = [np.abs(np.asarray(leaf)).reshape(len(bad), -1).max(1) for leaf in jax.tree.leaves(came)]
        i = int(np.argmax(np.where(self.counts, np.max(size, 0), -1)))
        row = "" if self.row(i) is None else f", row {self.row(i)} of the training data"
        note = f"which couples the examples; the largest number came from example {self.start + i}{row}"
        return BadNumber(direction, name, note=note)

    def own(self, place: Place, name: str, layer: Layer, params: Any) -> BadNumber | None:
        """The layer's first parameter that is not finite itself."""
        if isinstance(layer, Combinator):
            return None
        for path, leaf in tree_flatten_with_path(unmarked(params))[0]:
            if not isinstance(leaf, Tracer) and not np.isfinite(np.asarray(leaf)).all():
                return BadNumber("parameters", name, f"params{shown(place)}{shown(path)}")
        return None

    def named(self, place: Place, layer: Layer, back: bool, count: bool = True) -> str:
        """By path, and of a repetition by its number."""
        at, times = (place, layer, back), self.repeats.get((place, layer), ())
        i = self.visits.get(at, 0)
        self.visits[at] = i + count
        n = int(np.prod(times, dtype=int))
        which = np.unravel_index((n - 1 - i if back else i) % n, times) if times else ()
        kind = type(layer).__name__.lower() if isinstance(layer, Combinator) else repr(layer)
        return f"net{shown(place, tuple(map(int, which)))} {kind}"


@dataclass(frozen=True, eq=False, repr=False)
class _Watched(Combinator):
    """A net of which every layer is looked at, while it does what it does."""

    net: Layer
    seen: _Seen

    @property
    def children(self) -> tuple[Layer, ...]:
        """The one net."""
        return (self.net,)

    def walk_forward(self, visit: Any, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """The net's, down to its leaves."""
        return self._forward(visit, (), ())((), self.net, params, x, key)

    def walk_backward(self, visit: Any, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """The net's, down to its leaves."""
        return self._backward(visit, ())((), self.net, params, saved, delta)

    def walk_coupling(self, visit: Any, coupled: bool) -> bool:
        """What the net couples."""
        return visit((), self.net, coupled)

    def __repr__(self) -> str:
        """The net's, for messages."""
        return repr(self.net)

    def _forward(self, outer: Any, above: Place, repeats: tuple[int, ...]) -> Any:
        def visit(place: Place, layer: Layer, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
            here = above + place
            self.seen.repeats[here, layer] = repeats
            if isinstance(layer, Combinator):
                inside = (*repeats, layer.n) if isinstance(layer, Repeat) else repeats
                y, saved = layer.walk_forward(self._forward(outer, here, inside), params, x, key)
            else:
                with jax.disable_jit(False):
                    y, saved = outer(here, layer, params, x, key)
            self.seen.forward(here, layer, params, x, y)
            return y, saved

        return visit

    def _backward(self, outer: Any, above: Place) -> Any:
        def visit(place: Place, layer: Layer, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
            here = above + place
            if isinstance(layer, Uses):
                answer = outer(here, layer, params, saved, delta)
                self.seen.joined(layer, answer[1])
                return answer
            self.seen.comes(here, layer, delta)
            if isinstance(layer, Combinator):
                answer = layer.walk_backward(self._backward(outer, here), params, saved, delta)
                self.seen.went(here, layer, params, delta, answer[0])
                return answer
            with jax.disable_jit(False):
                answer = outer(here, layer, params, saved, delta)
                name = self.seen.went(here, layer, params, delta, answer[0])
                self.seen.contracted(here, name, answer[1], lambda: backward_leaf(layer, params, saved, delta)[1])
            return answer

        return visit


def _bad_examples(pair: Pair) -> np.ndarray:
    """Of which examples [n] the gradient, by itself, is not finite."""

    def one(alone: Any) -> Array:
        return ~jnp.isfinite(widened(jax.tree.map(lambda a: a[None], alone)).total()).all()

    return np.asarray(lax.map(one, pair))


def _lead(path: tuple[Any, ...]) -> Place:
    """The leading indices of a path in a tree, which lead to a layer."""
    return tuple(key.idx for key in takewhile(lambda key: isinstance(key, SequenceKey), path))


def _size(batch: Batch) -> int:
    return len(jax.tree.leaves(batch.y)[0])
