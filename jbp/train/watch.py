"""What a run looks like from inside, now and then: how large h and δ are in each layer, how far a step moves it, how
many units are flat, and how noisy the gradient is.

A step that is watched is looked at before it is taken, by a program of its own, from the state and the batch that the
step will have. Chunks are cut so that it begins one: so the program of the steps is the same, and its numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass, tree_flatten_with_path

from jbp.annotations import Array, Float
from jbp.arguments import as_count, came
from jbp.backprop import backward_leaf, forward_leaf, forward_whole, value_and_pairs
from jbp.combine import Combinator, Place, Repeat
from jbp.layer import Layer
from jbp.layers.activations import Activation
from jbp.masks import real_alone
from jbp.meshes import placed, whole
from jbp.pairs import Coupled, Weights, as_shares, is_pair, silence, weigh, widened
from jbp.paths import dotted, layer_of
from jbp.stats import noise_and_signal, records
from jbp.stats.spread import noise_over_signal
from jbp.step import Batch, Problem, State, step_function, step_key, transformed_batch
from jbp.texts import WATCH
from jbp.train.batches import place

FLAT = 0.05
"""Of the largest θ′ of an activation: below it a unit is saturated."""
PARTS = ("h", "delta", "update", "saturated")
"""The figures of a layer, in the order in which they are shown."""


@dataclass(frozen=True)
class Watch:
    """Look at every `every`-th step of a run, from the first on: what `jbp.fit(watch=...)` takes.

    The figures are those of one step, before it is taken: of its batch, its draws, and the parameters as they are. A
    row has "epoch", "step" (steps taken before, so that the first row, step 0, is of the initial parameters) and

        noise_scale      tr Σ/‖G‖², the simple noise scale: the batch size at which the noise of the mean gradient is as
                         large as the gradient itself; infinite where the batch cannot tell them apart
        gradient_noise, gradient_square      tr Σ and ‖G‖², each unbiased, over what is trained: average them over rows
                         before dividing, for one batch tells little
        layers           of each layer by its path, under `repeat` of each repetition ("1.0 #2"):
            h            root mean square, over examples, uses and units, of what comes into its weight
            delta        root mean square of δ at its output, of one example's error, not divided by N
            update       ‖Δw‖/‖w‖ over its parameters: the whole step, with momentum and weight decay
            saturated    of an activation: the share of units, over examples, where |θ′| is below 0.05 of its largest.
                         Of relu that is those that are 0 (half is usual), of tanh |y| > 0.975, of sigmoid y < 0.013 or
                         y > 0.987. Softmax has none: there δ of a unit comes from others too.

    Below a layer that couples the examples δ belongs to the batch, and there is no noise scale. Under a learning rule δ
    and the noise are the rule's. With `accumulate` h, δ and noise are those of the first part, which is what fits into
    memory; the update is the whole step's.

    A step that is watched costs about two more, and memory for the pairs of its batch; of kernels, whose examples'
    gradients are formed one at a time, more. The others cost nothing but that a chunk of steps ends at each.

    Raises:
        ValueError: if `every` is no whole number of at least 1.

    Source of the noise scale: McCandlish, Kaplan, Amodei 2018, "An empirical model of large-batch training",
    arXiv:1812.06162, equation 2.9 and appendix A.1.
    """

    every: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", as_count(self.every, "every of Watch"))


def check_watch(watch: Any, private: bool) -> Watch | None:
    """What `fit` was handed.

    Raises:
        ValueError: if it is no `Watch`, or the run is private.
    """
    if watch is not None and not isinstance(watch, Watch):
        raise ValueError(f"watch must be a jbp.Watch(every=100), but is {came(watch)}")
    if watch is not None and private:
        raise ValueError(
            "private training cannot use watch: its figures are of private examples, layer by layer and without noise, "
            "and the account does not know of them; leave watch out"
        )
    return watch


class Watcher:
    """Looks at a run before each step that is watched, and keeps the rows."""

    def __init__(self, watch: Watch | None, problem: Problem, reader: Any, accumulate: int, steps: int):
        self.rows: list[dict[str, Any]] = []
        self._watch, self._steps = watch, steps
        self._look = None if watch is None else look_program(problem, reader, accumulate)

    def __call__(self, state: State, chunk: Any, epoch: int, step: int) -> dict[str, Any] | None:
        """The row of step `step` (from 0) of the epoch, before it is taken; None if it is not watched."""
        taken = (epoch - 1) * self._steps + step
        if self._look is None or self._watch is None or taken % self._watch.every:
            return None
        found = jax.tree.map(np.asarray, self._look(state, chunk, epoch, step))
        layers: dict[str, dict[str, float]] = {}
        for path in sorted(found.layers, key=_numbers):
            layers |= _repeated(path, found.layers[path])
        row = {"kind": WATCH, "epoch": epoch, "step": taken}
        row |= {name: float(value) for name, value in found.gradient.items()} | {"layers": layers}
        self.rows.append(row)
        return row


def _repeated(path: str, figures: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The figures of a layer, [] or of each repetition [*l], by name."""
    parts = [part for part in PARTS if part in figures]
    return {
        path + "".join(f" #{i + 1}" for i in at): {part: float(figures[part][at]) for part in parts}
        for at in np.ndindex(figures[parts[0]].shape)
    }


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The figures of a row, of a watched step or of an epoch, by one name each, as in "delta/1.0 #2"; without epoch and
    step, and without what is not finite."""
    flat = {name: value for name, value in row.items() if name not in ("kind", "epoch", "step", "layers")}
    for part in PARTS:
        flat |= {f"{part}/{path}": f[part] for path, f in row.get("layers", {}).items() if part in f}
    return {name: value for name, value in flat.items() if value is not None and np.isfinite(value)}


@register_dataclass
@dataclass(frozen=True, eq=False)
class Looked:
    """What the program finds."""

    gradient: dict[str, Float[Array, ""]]
    layers: dict[str, dict[str, Float[Array, "*l"]]]


@lru_cache(maxsize=64)
def look_program(problem: Problem, reader: Any, accumulate: int = 1) -> Callable[..., Looked]:
    """The program (state, chunk, epoch, step) -> what there is to see before that step; the state stays."""
    take = step_function(problem, accumulate)

    @jax.jit
    @placed(whole)
    def look(state: State, chunk: Any, epoch: Array, step: Array) -> Looked:
        order_key, noise_key, counted = place(reader, state.key, epoch)
        chunk, key = reader.prepared(chunk, state.key, epoch), step_key(noise_key, counted + step)
        batch = reader.batch(chunk, order_key, counted + step)
        before = dataclasses.replace(state, epoch=jnp.asarray(epoch, jnp.int32), step=jnp.asarray(step, jnp.int32))
        after, _ = take(before, batch, key)
        n = -(-len(jax.tree.leaves(batch.y)[0]) // accumulate)
        first = jax.tree.map(lambda a: a[:n], (batch.x, batch.y, batch.weights, batch.mask))
        seen = transformed_batch(problem, Batch(*first), key)
        return _looked(problem, before, after, seen, key)

    return look


def _looked(problem: Problem, before: State, after: State, batch: Batch, key: Array) -> Looked:
    x, y, weights, mask = batch[:4]
    way = problem.method.way(problem, before, x)
    if way is None:
        raise ValueError(
            f"{problem.method!r} does not say which net its pass goes through, and cannot be watched: give it "
            "way(problem, state, x), or leave watch out"
        )
    net, params = way
    _, pairs = value_and_pairs(net, problem.loss, params, x, y, key, weights, mask)
    nodes = tree_flatten_with_path(pairs, is_leaf=is_pair)[0]
    parts = zip(nodes, *map(jax.tree.leaves, (before.params, after.params)), strict=True)
    trained = problem.trainable.flags(before.params)
    coupled = any(pair.coupled is not None for _, pair in nodes)
    learns = {dotted(path): pair for (path, pair), on in zip(nodes, trained, strict=True) if on and not pair.constant}
    own = {dotted(path): _uncoupled(pair) for path, pair in nodes if not pair.constant}
    gradient = {}
    if learns and not coupled:
        noise, square = noise_and_signal(learns, weights)
        gradient = {"noise_scale": noise_over_signal(noise, square), "gradient_noise": noise, "gradient_square": square}
    kept = records(own, weights, mask) if own else {}
    moved: dict[str, list[Any]] = {}
    layers: dict[str, dict[str, Array]] = {}
    for (path, pair), w, new in parts:
        if not pair.constant:
            record = kept[dotted(path)]
            found = layers.setdefault(layer_of(path), {"h": record.h, "delta": record.delta})
            found["h"] = jnp.where(jnp.isnan(found["h"]), record.h, found["h"])  # a bias has none
            moved.setdefault(layer_of(path), []).append(_squares(w, new, record.delta.ndim))
    for path, squares in moved.items():
        change, size = (reduce(jnp.add, part) for part in zip(*squares, strict=True))
        layers[path]["update"] = jnp.sqrt(change / size)
    flat = saturation(problem.net, before.params, x, key, weights, mask)
    layers |= {path: layers.get(path, {}) | {"saturated": share} for path, share in flat.items()}
    return Looked(gradient, layers)


def _uncoupled(pair: Any) -> Any:
    """The pair as it would be without the layers that couple the examples: h and δ are the batch's."""
    return jax.tree.map(lambda p: p.pair if _is_coupled(p) else p, pair, is_leaf=_is_coupled)


def _is_coupled(node: Any) -> bool:
    return isinstance(node, Coupled)


def _numbers(path: str) -> tuple[int, ...]:
    return () if path == "." else tuple(map(int, path.split(".")))


def _squares(w: Array, new: Array, stacks: int) -> tuple[Float[Array, "*l"], Float[Array, "*l"]]:
    """‖Δw‖² and ‖w‖², of each layer of the stacks around it."""
    w, new = widened((w, new))
    axes = tuple(range(stacks, w.ndim))
    return jnp.square(new - w).sum(axes), jnp.square(w).sum(axes)


@register_dataclass
@dataclass(frozen=True, eq=False)
class _Share:
    """Of an activation at a place, the share of its units that are saturated; [*l] under `repeat`."""

    value: Float[Array, "*l"]
    place: Place = field(metadata={"static": True})


def saturation(
    net: Layer, params: Any, x: Any, key: Any, weights: Weights = None, mask: Any = None
) -> dict[str, Float[Array, "*l"]]:
    """Of each activation of the net, by its dotted path, the share of units, over the examples, whose θ′ is below
    `FLAT` of its largest, from one pass in training forward; with a `mask` of an example's real positions."""
    x = real_alone(mask, x if weights is None else jax.tree.map(lambda a: silence(weights, a), x))
    p = None if weights is None else as_shares(weights)

    def at(above: Place) -> Callable[..., tuple[Any, Any]]:
        def visit(place: Place, layer: Layer, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
            here = above + place
            if isinstance(layer, Repeat):
                y, (stacks, _, plan) = layer.walk_forward(at(here), params, x, key)
                return y, plan.whole(stacks, None)
            if isinstance(layer, Combinator):
                return layer.walk_forward(at(here), params, x, key)
            if layer.couples_batch:
                return forward_whole(layer, params, x, key, weights=weights, training=True, mask=mask)[0], ()
            keys = None if key is None or layer.uses_key is False else jax.random.split(key, len(x))
            y, saved = forward_leaf(layer, params, x, keys, mask if layer.uses_mask else None)
            if not isinstance(layer, Activation) or layer.steepest is None:
                return y, ()
            slope, _ = backward_leaf(layer, params, saved, jnp.ones_like(y))  # θ′, unit by unit
            flat = widened((jnp.abs(slope) < FLAT * layer.steepest).astype(slope.dtype))
            each = _share_of(flat, mask)
            return y, _Share(each.mean() if p is None else weigh(p, each).sum(), here)

        return visit

    found = at(())((), net, params, x, key)[1]
    shares = [node for node in jax.tree.leaves(found, is_leaf=_is_share) if _is_share(node)]
    return {dotted(share.place): share.value for share in shares}


def _share_of(flat: Float[Array, "n ..."], mask: Any) -> Float[Array, " n"]:
    """The mean of each example, over its real positions if it has positions."""
    if mask is None or flat.shape[: mask.ndim] != mask.shape:
        return flat.reshape(len(flat), -1).mean(1)
    by_position = flat.reshape(*mask.shape, -1).mean(-1)
    real = mask.astype(flat.dtype)
    axes = tuple(range(1, mask.ndim))
    return (by_position * real).sum(axes) / jnp.maximum(real.sum(axes), jnp.ones((), flat.dtype))


def _is_share(node: Any) -> bool:
    return isinstance(node, _Share)
