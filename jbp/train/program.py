"""The compiled programs of training: many steps in one loop, and evaluation in blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Float
from jbp.answers import error_of, one_number
from jbp.backprop import forward
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.masks import mask_at, tokens
from jbp.meshes import as_is, placed, whole
from jbp.sharding import Sharding
from jbp.step import Batch, Metric, Problem, State, Transform, step_function, step_key, told_of, transformed
from jbp.train.batches import Reader, place
from jbp.train.blame import lost_any
from jbp.train.progress import Progress
from jbp.train.windowed import at_once
from jbp.train.windowed import block as rows_of


class Ledger(NamedTuple):
    """What the steps of an epoch say of themselves; donated, like the state, so that it is updated in place."""

    losses: Float[Array, " steps"]
    """The loss of each step of the current epoch."""
    metrics: Float[Array, "steps m"]
    """Each metric's mean over each step's examples, as they were during training."""
    mass: Float[Array, " steps"] | None = None
    """The sum of each batch's weights, by which its figures count, where the number of its examples does not say it."""

    def first(self, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Of so many steps, as NumPy has them."""
        mass = None if self.mass is None else np.asarray(self.mass)[:steps]
        return np.asarray(self.losses)[:steps], np.asarray(self.metrics)[:steps], mass


def ledger(steps: int, metrics: int, weighs: bool = False) -> Ledger:
    """A blank one, in which batches are weighed or not."""
    return Ledger(jnp.zeros(steps), jnp.zeros((steps, metrics)), jnp.zeros(steps) if weighs else None)


def filled(book: Ledger, progress: Progress) -> Ledger:
    """A blank one with what the steps of the current epoch have said so far."""
    if not progress.step:
        return book
    said = Ledger(*jax.tree.map(jnp.asarray, (progress.losses, progress.metrics, progress.mass)))
    return jax.tree.map(lambda blank, values: blank.at[: progress.step].set(values.astype(blank.dtype)), book, said)


def copy(tree: Any) -> Any:
    """The same tree in buffers of its own."""
    return jax.tree.map(jnp.copy, tree)


@lru_cache(maxsize=64)
def steps_program(
    problem: Problem, reader: Reader, accumulate: int = 1, skips: bool = False, sharding: Sharding | None = None
) -> Callable[..., tuple[State, Ledger]]:
    """`steps_function` of these arguments, compiled, with state and ledger updated in place."""
    return jax.jit(on_meshes(steps_function(problem, reader, accumulate, skips, sharding)), donate_argnums=(0, 1))


def on_meshes(steps: Callable[..., tuple[State, Ledger]]) -> Callable[..., tuple[State, Ledger]]:
    """The steps of one run or of many, on a mesh with explicit axes: the state stays spread as it is.

    A batch is drawn from all the examples, wherever they are.
    """
    return placed(lambda answer, state, *_: (as_is(state), whole(answer[1])))(steps)


def steps_function(
    problem: Problem, reader: Reader, accumulate: int = 1, skips: bool = False, sharding: Sharding | None = None
) -> Callable[..., tuple[State, Ledger]]:
    """The function (state, ledger, chunk, epoch, first, last) that takes the steps first…last−1 of an epoch.

    The bounds are arguments, so one compilation serves every chunk; hence a loop with a bound known only when it
    runs, where `lax.scan` would need its length when compiled. The order of an epoch follows from (key, epoch) and
    the draw of a step from (key, epoch, step): where a chunk begins changes nothing.

    With `skips` a step that ends in a number that is not finite is as if it had not been taken, and its loss NaN: the
    state before it is kept until that is known, and read once more.
    """
    take = step_function(problem, accumulate, sharding)

    def run(state: State, ledger: Ledger, chunk: Any, epoch: Array, first: Array, last: Array) -> tuple[State, Ledger]:
        order_key, noise_key, counted = place(reader, state.key, epoch)
        chunk = reader.prepared(chunk, state.key, epoch)

        def step(t: Array, carried: tuple[Any, ...]) -> tuple[Any, ...]:
            params, opt_state, book, method_state = carried
            before = State(params, opt_state, method_state, state.key, epoch, t)
            batch = reader.batch(chunk, order_key, counted + t)
            after, (loss, values) = take(before, batch, step_key(noise_key, counted + t))
            if skips:
                after, loss = unless_broken(before, after, loss)
            return after.params, after.opt_state, noted(book, t, loss, values, batch), after.method_state

        carried = (state.params, state.opt_state, ledger, state.method_state)
        params, opt_state, book, method_state = lax.fori_loop(first, last, step, carried)
        now = {"epoch": jnp.asarray(epoch, jnp.int32), "step": jnp.asarray(last, jnp.int32)}
        after = dataclasses.replace(state, params=params, opt_state=opt_state, method_state=method_state, **now)
        return after, book

    return run


def unless_broken(before: State, after: State, loss: Array) -> tuple[State, Array]:
    """The state after a step and its loss; if that is not finite, or a parameter no longer is, the state before it, and
    NaN."""
    pairs = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    broken = jnp.stack([~jnp.isfinite(loss), *(lost_any(a, b) for a, b in pairs)]).any()
    parts = {name: (getattr(before, name), getattr(after, name)) for name in ("params", "opt_state", "method_state")}
    kept = {name: jax.tree.map(lambda a, b: jnp.where(broken, a, b), *both) for name, both in parts.items()}
    return dataclasses.replace(after, **kept), jnp.where(broken, jnp.full_like(loss, jnp.nan), loss)


def noted(book: Ledger, t: Array, loss: Array, values: tuple[Array, ...], batch: Batch) -> Ledger:
    """The ledger with what step t says of itself."""
    losses, metrics, mass = book
    if mass is not None:
        mass = mass.at[t].set(batch.weights.sum(dtype=mass.dtype))
    losses = losses.at[t].set(loss.astype(losses.dtype))
    return Ledger(losses, metrics.at[t].set(jnp.stack(values)) if values else metrics, mass)


def figures_of(
    net: Layer, loss: Loss, metrics: tuple[Metric, ...], transform: Transform | None
) -> Callable[..., Array]:
    """The function (params, x, y, mask=None) -> loss and metrics [1 + m, n] of each example, in evaluation."""

    def figures(params: Any, x: Array, y: Array, mask: Any = None) -> Array:
        output, _ = forward(net, params, transformed(transform, x, None), mask=mask)
        told = mask_at(net, output, mask)
        names = [f"the metric {getattr(f, '__name__', f)}" for f in metrics]
        each = [one_number(told_of(f, name, told), name) for f, name in zip(metrics, names, strict=True)]
        return jnp.stack([jax.vmap(f)(output, y, *told).astype(jnp.zeros(()).dtype) for f in (error_of(loss), *each)])

    return figures


@lru_cache(maxsize=64)
def evaluation_program(
    net: Layer,
    loss: Loss,
    metrics: tuple[Metric, ...],
    transform: Transform | None,
    block: int,
    per_token: bool = False,
) -> Callable[..., Float[Array, " m"]]:
    """The program (params, x, y, mask=None) -> means of the loss and of each metric, in evaluation, `block` examples at
    a time; with a mask, if they are `per_token`, means in which an example counts as often as it has real positions."""
    figures = figures_of(net, loss, metrics, transform)

    def weighed(params: Any, x: Array, y: Array, mask: Array) -> Array:
        found = figures(params, x, y, mask)
        return found * tokens(mask)[None] if per_token else found

    @jax.jit
    @placed(whole)
    def evaluate(params: Any, x: Array, y: Array, mask: Any = None) -> Array:
        if mask is None:
            return _in_blocks(figures, params, (x, y), block, 1 + len(metrics)) / len(x)
        total = _in_blocks(weighed, params, (x, y), block, 1 + len(metrics), (mask,))
        return total / (tokens(mask).sum() if per_token else len(x))

    return evaluate


def _in_blocks(
    figures: Callable[..., Array],
    params: Any,
    rows: tuple[Array, ...],
    block: int,
    m: int,
    told: tuple[Array, ...] = (),
) -> Array:
    """Σ over the rows (x, y) of the figures [m, n], a block at a time; with a third array over those where it holds.
    What the figures are `told` besides has a row for each too."""
    x, y, *real = rows
    n, size = len(x), min(at_once(x, block), len(x))

    def step(i: Array, total: Array) -> Array:
        # The last block starts early enough to be whole; what it shares with the one before is left out.
        begin = jnp.minimum(i * size, n - size)
        xs, ys, *counts = (rows_of(a, begin, size) for a in (x, y, *real))
        fresh = begin + jnp.arange(size) >= i * size
        fresh = fresh & counts[0] if counts else fresh
        rest = [rows_of(a, begin, size) for a in told]
        return total + jnp.where(fresh, figures(params, xs, ys, *rest), 0.0).sum(1)

    return lax.fori_loop(0, -(-n // size), step, jnp.zeros(m))


@lru_cache(maxsize=64)
def rows_program(
    net: Layer, loss: Loss, metrics: tuple[Metric, ...], transform: Transform | None, block: int, sharding: Sharding
) -> Callable[..., Float[Array, " m"]]:
    """The program (params, x, y, real) -> the sums of loss and metrics over the real rows, each device's own."""
    figures = figures_of(net, loss, metrics, transform)

    def own(rows: tuple[Array, ...], params: Any) -> Array:
        return _in_blocks(figures, params, rows, block, 1 + len(metrics))

    return jax.jit(lambda params, *rows: sharding.added_up(own, rows, params))


def evaluation_on_mesh(
    problem: Problem, data: tuple[Any, Any], block: int, sharding: Sharding
) -> Callable[[Any], Float[Array, " m"]]:
    """Parameters -> means of the loss and of each metric over the data, which are laid out here, once.

    A net that couples the examples of an evaluation is evaluated whole on every device, in the blocks of one device.
    """
    x, y = map(np.asarray, data)
    n, metrics = len(x), tuple(f for _, f in problem.metrics)
    if problem.net.couples_batch is True:
        whole_data = sharding.everywhere((x, y))
        evaluate = evaluation_program(problem.net, problem.loss, metrics, problem.transform, block)
        return lambda params: evaluate(sharding.everywhere(params), *whole_data)
    padded = n + -n % sharding.d
    own = sharding.own_rows(padded)
    chosen = np.arange(padded)[own]
    rows = sharding.rows((x[chosen % n], y[chosen % n], chosen < n))
    add = rows_program(problem.net, problem.loss, metrics, problem.transform, block, sharding)

    def evaluate_rows(params: Any) -> Array:
        with sharding.set():
            return mean_of(add(params, *rows), n)

    return evaluate_rows


@lru_cache(maxsize=64)
def block_program(
    net: Layer,
    loss: Loss,
    metrics: tuple[Metric, ...],
    transform: Transform | None,
    sharding: Sharding | None = None,
) -> Callable[[Any, Array, Array, Array, Array], Float[Array, " m"]]:
    """The program (params, total, x, y, fresh) -> the total with the loss and the metrics of a block, where fresh."""
    figures = figures_of(net, loss, metrics, transform)

    def added(rows: tuple[Array, ...], params: Any) -> Array:
        x, y, fresh = rows
        return jnp.where(fresh, figures(params, x, y), 0.0).sum(1)

    @jax.jit
    @placed(whole)
    def add(params: Any, total: Array, x: Array, y: Array, fresh: Array) -> Array:
        rows = x, y, fresh
        return total + (added(rows, params) if sharding is None else sharding.added_up(added, rows, params))

    return add


@partial(jax.jit, static_argnums=1)
def mean_of(total: Array, n: int) -> Array:
    """Over n, compiled as in `evaluation_program`, where n is known too: the same bits."""
    return total / n
