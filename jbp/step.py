"""One step of training as a pure function, which users can drive themselves: `fit` and `fit_many` are loops over it.

    problem = Problem(net, loss, optimizer)
    state   = init_state(problem, (784,), seed=0)
    step    = make_step(problem)
    state, figures = step(state, Batch(x, y))

What is trained and how is a `Problem`: hashable, the one key under which programs are compiled. All that training
carries is a `State`, one pytree. How a step finds its gradient is a `Method`, in three parts: `sums` over the examples,
which add up over the parts of a batch; `finish`, once; `update`. Backpropagation, a learning rule, private training and
the update in place are four values of it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jax.tree_util import register_dataclass

from jbp.accumulation import check_draws, check_parts, in_parts, no_value_fn, numbered
from jbp.annotations import Array, Int
from jbp.answers import init_answer, one_number
from jbp.arguments import as_seed, as_shape, batch_size, came, check_weights
from jbp.backprop import Batch as Batch
from jbp.backprop import Trainable, as_batch, batch_check, forward, value_grad_output, value_output_delta
from jbp.inputs import as_metrics, check_loss, check_net, check_optimizer, check_params
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.masks import mask_at
from jbp.meshes import as_is, placed, whole
from jbp.metrics import OfLoss
from jbp.pairs import Weights, as_floats, as_shares, of_size_one
from jbp.sharding import Sharding
from jbp.sinks import observe

Metric = Callable[..., Array]
"""(output, target) of one example -> a scalar; its mean is reported, and higher is better. With a third argument `mask`
it is told which positions are real."""
Transform = Callable[[Any, Any], Any]
"""(x, key) of one example -> what the net sees; `key` None in evaluation."""

_OWN = "one that wants parameters of a kind of its own, such as optax.lookahead, cannot be used here"
_TRANSFORM = 2**32 - 1
"""What the transform's keys are folded with: no net has a layer of that number, so they are drawn apart from its."""


@dataclass(frozen=True)
class Problem:
    """What is trained, and how: a net, a loss, an optimiser, a method.

    `trainable` as in `jbp.value_and_grad`. `method` is a `Method` (None: `Backpropagation()`) or a rule of
    `jbp.rules`. `metrics` {name: function} are means over a step's examples. `transform(x, key)` is what is done to ONE
    example before the net sees it, inside the compiled step: conversion in evaluation too, where its key is None,
    augmentation only with a key.

    Raises:
        ValueError: for what is no net, loss, optimiser, method or function, or cannot be hashed.
    """

    net: Layer
    loss: Loss
    optimizer: optax.GradientTransformation
    trainable: Any = field(default=None, kw_only=True)
    method: Any = field(default=None, kw_only=True)
    metrics: Any = field(default=None, kw_only=True)
    """Kept as (name, function) pairs."""
    transform: Transform | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_net(self.net, Layer)
        check_loss(self.loss, Loss)
        check_optimizer(self.optimizer)
        for name, value in (
            ("trainable", self.trainable if isinstance(self.trainable, Trainable) else Trainable.of(self.trainable)),
            ("method", _method(self.method)),
            ("metrics", _metrics(self.metrics, self.loss)),
        ):
            object.__setattr__(self, name, value)
        if self.transform is not None and not callable(self.transform):
            raise ValueError(f"transform must be a function (x, key) of one example, but is {came(self.transform)}")
        try:
            hash(self)
        except TypeError as error:
            raise ValueError(
                f"a problem is the key of compiled programs, so all in it must be hashable: {error}"
            ) from error

    @property
    def additive(self) -> bool:
        """Whether a batch may be cut and its parts' sums added up, which whoever cuts one asks: the method's sums do,
        and no layer couples in training examples that would then lie in different parts, or observes them."""
        return self.method.additive and not (self.net.couples_batch or self.net.observes)

    def seen(self, example: Any) -> Any:
        """What the net sees of an example of this shape and dtype, once it is transformed for evaluation."""
        how = self.transform
        if how is None:
            return example
        try:
            seen = jax.eval_shape(lambda x: how(x, None), example)
        except Exception as error:
            raise ValueError(
                f"transform failed on one example of shape {example.shape} with key None, which is evaluation: it is "
                f"called as transform(x, key), and may draw only where there is a key ({error})"
            ) from error
        if not hasattr(seen, "shape"):
            raise ValueError(f"transform must make one array of one example, but made {seen}")
        return seen


@register_dataclass
@dataclass(frozen=True, eq=False)
class State:
    """All that training carries from step to step: one pytree."""

    params: Any
    opt_state: Any
    method_state: Any
    """What the method carries, such as a rule's random weights; () if nothing."""
    key: Array
    """Of the run; everything drawn in it follows from this key, the epoch, the step and the place in the batch."""
    epoch: Int[Array, ""]
    """From 1."""
    step: Int[Array, ""]
    """Steps taken in this epoch: from 0."""

    def __repr__(self) -> str:
        """Sizes, not numbers."""
        parts = {name: getattr(self, name) for name in ("params", "opt_state", "method_state")}
        sizes = [f"{name}={sum(jnp.size(a) for a in jax.tree.leaves(part)):,} numbers" for name, part in parts.items()]
        return f"State({', '.join(sizes)}, epoch={self.epoch}, step={self.step})"


class Figures(NamedTuple):
    """What a step says of itself."""

    loss: Array
    """Σ wₙeₙ/Σ wₙ over its batch, at the parameters before the step."""
    metrics: dict[str, Array]


class Sums(NamedTuple):
    """What the examples of a batch, or of a part of it, add up to."""

    value: Array
    """Σₙ wₙ eₙ."""
    grads: Any
    """What stands for the gradient: Σₙ wₙ gₙ, in the tree of the parameters."""
    metrics: tuple[Array, ...]
    """Σₙ wₙ mₙ of each metric."""
    extra: Any = ()
    """Whatever else the method adds up."""
    observed: Any = ()
    """Of a net that observes: what `jbp.observe` writes into the parameters after the optimiser's step. It adds up to
    nothing: the parts of a batch each observe others."""


class Method:
    """How a step finds its gradient, and what it does with it. A frozen dataclass: programs are cached under it.

    A subclass gives `sums`, and may give the rest. In `sums` the weights of the batch are the final ones, wₙ/Σw over
    the whole batch (None: 1/N), so that nothing but private training divides by anything.
    """

    accounted: ClassVar[bool] = False
    """Whether it rests on how batches are drawn and counted, which `fit` then sees to: private training."""
    additive: ClassVar[bool] = True
    """Whether the sums of the parts of a batch add up to those of the whole, on a net that couples no examples
    (`Problem.additive`)."""

    def init(self, key: Array, problem: Problem, params: Any, example: Any) -> Any:
        """What the method carries from step to step, a pytree; `example` is the shape and dtype of one x.

        Raises:
            ValueError: if the method cannot serve the problem.
        """
        return ()

    def sums(self, problem: Problem, state: State, batch: Batch, key: Array) -> Sums:
        """What the examples add up to. `key` is the step's, the same for every part of its batch."""
        raise NotImplementedError(f"{type(self).__name__} has no sums")

    def finish(self, problem: Problem, sums: Sums, key: Array) -> Sums:
        """The sums of the whole batch, made into what `update` takes: noise, once."""
        return sums

    def update(self, problem: Problem, state: State, found: Sums, value_fn: Callable[[Any], Array]) -> State:
        """The state after the step. `value_fn(params)` is the step's loss on its batch at other parameters."""
        updates, opt_state = optimised(problem, state, found, value_fn)
        return moved(problem, state, updates, opt_state, found.observed)

    def way(self, problem: Problem, state: State, x: Any) -> tuple[Layer, Any] | None:
        """The net whose one pass forward and back the sums are made of, with its parameters, for whoever goes through
        it layer by layer; None if they are made in another way. Of `x` only shape and dtype are looked at."""
        return None

    def root_key(self, seed: int | None) -> Array:
        """What everything random follows from; a seed of None is 0."""
        return jax.random.key(seed or 0)


@dataclass(frozen=True)
class Backpropagation(Method):
    """The gradient."""

    def way(self, problem: Problem, state: State, x: Any) -> tuple[Layer, Any] | None:
        """The net itself."""
        return problem.net, state.params

    def sums(self, problem: Problem, state: State, batch: Batch, key: Array) -> Sums:
        """Σₙ wₙ gₙ: forward, the loss's δ, backward, contract."""
        found = value_grad_output(problem.net, problem.loss, state.params, batch, key, problem.trainable)
        return Sums(found.value, found.grads, measured(problem, found.output, batch), observed=found.observed)


def measured(problem: Problem, output: Array, batch: Batch) -> tuple[Array, ...]:
    """Σₙ wₙ mₙ of each metric; without weights the mean."""

    def one(name: str, metric: Metric) -> Array:
        mask, what = mask_at(problem.net, output, batch.mask), f"the metric {name!r}"
        values = jax.vmap(one_number(told_of(metric, what, mask), what))(output, batch.y, *mask)
        values = values.astype(jnp.zeros(()).dtype)
        if batch.weights is None:
            return values.mean()
        return jnp.where(batch.weights == 0, 0.0, values * batch.weights).sum()

    return tuple(one(*pair) for pair in problem.metrics)


def told_of(metric: Metric, what: str, mask: tuple[Any, ...]) -> Metric:
    """The metric as a function of (output, target), and of the mask if there is one.

    Raises:
        ValueError: if there is one and the metric takes none.
    """
    if not mask:
        return metric
    if "mask" not in inspect.signature(metric).parameters:
        raise ValueError(f"the batch has a mask, but {what} takes none: give it an argument mask")
    return lambda o, t, m: metric(o, t, mask=m)


def optimised(problem: Problem, state: State, found: Sums, value_fn: Callable[[Any], Array] | None) -> tuple[Any, Any]:
    """The optimiser's updates and its next state; one that asks for `value`, `grad` or `value_fn` is told them.

    Here alone a gradient becomes what the parameters are, of 16 bits perhaps; the sums are of at least 32.

    Raises:
        ValueError: if it asks and `value_fn` is None, when they are not to be known.
    """
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), found.grads, state.params)
    given, told = (grads, state.opt_state, state.params), {}
    if value_fn is not None:
        told = {"value": found.value, "grad": grads, "value_fn": value_fn}
    try:
        return optax.with_extra_args_support(problem.optimizer).update(*given, **told)
    except AttributeError as error:
        raise ValueError(f"the optimiser does not take these parameters: {error} ({_OWN})") from error
    except (KeyError, TypeError) as error:
        asked = error.args[:1] in (("value",), ("grad",), ("value_fn",)) or "required keyword-only" in str(error)
        if value_fn is not None or not asked:
            raise
        raise ValueError(
            f"the optimiser asks for the value of the loss ({error}), which is not noised and would tell of "
            "private data: take one that looks at gradients only"
        ) from error


def moved(problem: Problem, state: State, updates: Any, opt_state: Any, observed: Any = (), **others: Any) -> State:
    """The state with the updates of what is trained added to the parameters, and then what was observed written.

    Raises:
        ValueError: if the net has running moments, which an optimiser would move, and nothing is said of them.
    """
    params = optax.apply_updates(state.params, problem.trainable(updates))
    if problem.net.observes:
        if isinstance(observed, tuple) and not observed:
            raise ValueError(
                f"{problem.net!r} has running moments, but {problem.method!r} does not say what its pass observed: "
                "give it to Sums(observed=), as jbp.value_and_grad(..., has_observed=True) answers"
            )
        params = observe(params, observed)
    return dataclasses.replace(state, params=params, opt_state=opt_state, **others)


def init_state(problem: Problem, example: Any, *, seed: int | None = None, params: Any = None) -> State:
    """The state before the first step.

    `example` is the shape of one x, or a `jax.ShapeDtypeStruct`. Everything random follows from `seed`; None is 0, and
    for private training a secret of the operating system's. `params` are copied; without, the net makes them.

    Raises:
        ValueError: if the shape, the parameters, the method or the optimiser do not fit the net.
    """
    _check_problem(problem)
    seed = None if seed is None else as_seed(seed)
    seen = problem.seen(as_example(example))
    init_key, run_key = jax.random.split(problem.method.root_key(seed))
    if params is None:
        params, _ = init_answer(problem.net, problem.net.init(init_key, seen.shape))
    else:  # whether they fit shows here, by the layer's name
        check_params(params)
        one = jax.ShapeDtypeStruct((1, *seen.shape), seen.dtype)
        jax.eval_shape(lambda p, x: forward(problem.net, p, x)[0], params, one)
    method_state = problem.method.init(jax.random.fold_in(run_key, 0), problem, params, seen)
    return _start(problem.optimizer)(params, method_state, run_key)


def started(optimizer: optax.GradientTransformation, params: Any, method_state: Any, key: Array) -> State:
    """The state before the first step, in buffers of its own, because steps take over what they are given.

    Raises:
        ValueError: if the optimiser cannot start from the parameters.
    """
    params, method_state, key = jax.tree.map(jnp.copy, (params, method_state, key))
    try:
        opt_state = optimizer.init(params)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"the optimiser cannot start from these parameters: {error} ({_OWN})") from error
    return State(params, jax.tree.map(jnp.copy, opt_state), method_state, key, jnp.int32(1), jnp.int32(0))


@lru_cache(maxsize=64)
def _start(optimizer: optax.GradientTransformation) -> Callable[[Any, Any, Array], State]:
    return jax.jit(lambda params, method_state, key: started(optimizer, params, method_state, key))


def make_step(
    problem: Problem, *, accumulate: int = 1, sharding: Any = None
) -> Callable[[State, Batch], tuple[State, Figures]]:
    """The function (state, batch) -> (state, figures), compiled once for a problem. It takes over the state's memory.

    The weights of the batch are divided here, and only here, by their sum (or by `Batch.divisor`): a batch of 0 and 1
    has the mean over the rows of 1; one without any keeps 0. Without weights it is the mean over all rows. Weights and
    targets are looked at before the step, which waits for them.

    With `accumulate` the batch is gone through in so many parts (or as many as it has examples), one after another: the
    same step, to rounding, with the activations of one part in memory.

    With `sharding`, a `jbp.Sharding` or a mesh, each device has its part of the batch (and, along a model axis, of the
    layers), and the state comes out spread over the mesh: the same step, to rounding. State and batch may be handed in
    as they are. The axis of the examples must divide the batch.

    A step counts `step` up and leaves `epoch` alone: a loop over epochs sets both, with `dataclasses.replace`.

    Raises:
        ValueError: if state, batch and problem do not fit together, weights are negative, targets are outside the
            loss's domain, the parts of a batch would not add up, or the mesh divides neither batch nor layers.
    """
    _check_problem(problem)
    return _make_step(problem, check_parts(problem, accumulate), Sharding.of(sharding))


@lru_cache(maxsize=64)
def _make_step(
    problem: Problem, accumulate: int, sharding: Sharding | None
) -> Callable[[State, Batch], tuple[State, Figures]]:
    step = step_function(problem, accumulate, sharding)
    names = [name for name, _ in problem.metrics]

    @placed(lambda answer, state, batch: (as_is(state), whole(answer[1])))
    def run(state: State, batch: Batch) -> tuple[State, Figures]:
        after, (loss, metrics) = step(state, batch, step_key(epoch_keys(state.key, state.epoch)[1], state.step))
        after = dataclasses.replace(after, step=after.step + 1)
        return after, Figures(loss, dict(zip(names, metrics, strict=True)))

    def seen(x: Any) -> Any:
        one = problem.seen(jax.ShapeDtypeStruct(x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype)))
        return jax.ShapeDtypeStruct((len(x), *one.shape), one.dtype)

    compiled = jax.jit(run, donate_argnums=0)
    check = batch_check(problem.net, problem.loss, None if problem.transform is None else seen)

    def checked(state: State, batch: Batch) -> tuple[State, Figures]:
        _check_state(state)
        if not isinstance(batch, tuple) or not 2 <= len(batch) <= len(Batch._fields):
            raise ValueError(f"a step takes a jbp.Batch(x, y, …), but got a {type(batch).__name__}")
        batch = as_batch(Batch(*batch))
        check_weights(batch.weights, batch_size(batch.x, batch.y), least=0.0)
        check(state.params, batch)
        own = batch.weights if batch.divisor is not None else of_size_one(batch.weights)
        weights = None if own is None else as_floats(own)
        batch = batch._replace(weights=weights)
        if sharding is None:
            return compiled(state, batch)
        sharding.check_rows(len(jax.tree.leaves(batch.y)[0]), "the batch")
        with sharding.set():
            return compiled(laid_out(state, problem, sharding), batch_laid_out(batch, sharding))

    return checked


def laid_out(state: State, problem: Problem, sharding: Sharding) -> State:
    """The state, spread over the mesh."""
    return sharding.put(state, sharding.specs(state, problem.net, state.params))


def batch_laid_out(batch: Batch, sharding: Sharding) -> Batch:
    """The batch, of which this process has all rows, each device with its own."""
    own = sharding.own_rows(len(jax.tree.leaves(batch.y)[0]))
    rows = jax.tree.map(lambda a: a[own], batch._replace(divisor=None))
    return sharding.rows(rows)._replace(divisor=batch.divisor)


Step = Callable[[State, Batch, Array], tuple[State, tuple[Array, tuple[Array, ...]]]]


def step_function(problem: Problem, accumulate: int = 1, sharding: Sharding | None = None) -> Step:
    """The function (state, batch, key) -> (state, (loss, metrics)), to be compiled; it leaves epoch and step alone.

    Loss and metrics are means, also where the batch has another divisor than the sum of its weights.
    """
    if sharding is not None:
        return _sharded_step_function(problem, accumulate, sharding)
    method = problem.method
    check_parts(problem, accumulate)

    def step(state: State, batch: Batch, key: Array) -> tuple[State, tuple[Array, tuple[Array, ...]]]:
        weights, divisor, batch = batch.weights, batch.divisor, weighed_batch(batch)

        def sums_of(part: Batch) -> Sums:
            return method.sums(problem, state, transformed_batch(problem, part, key), key)

        if accumulate > 1:
            check_draws(problem, key)
            sums, value_fn = in_parts(sums_of, batch, accumulate), no_value_fn
        else:
            batch = transformed_batch(problem, batch, key)
            sums = method.sums(problem, state, batch, key)

            def value_fn(params: Any) -> Array:
                return value_output_delta(problem.net, problem.loss, params, batch, key)[0]

        found = method.finish(problem, sums, key)
        figures = as_means((sums.value, sums.metrics), weights, divisor)
        return method.update(problem, state, found, value_fn), figures

    return step


def _sharded_step_function(problem: Problem, accumulate: int, sharding: Sharding) -> Step:
    """`step_function` over a mesh. Where the sums of parts of a batch add up, each device makes those of its rows, and
    one sum over the devices the whole batch's; elsewhere the compiler sees to it that the step is the whole batch's."""
    apart = problem.additive and sharding.d > 1

    def sums_of(batch: Batch, state: State, key: Array) -> Sums:
        def sums(part: Batch) -> Sums:
            return problem.method.sums(problem, state, transformed_batch(problem, part, key), key)

        return in_parts(sums, batch, accumulate) if accumulate > 1 else sums(batch)

    def value_of(batch: Batch, params: Any, key: Array) -> Array:
        batch = transformed_batch(problem, batch, key)
        return value_output_delta(problem.net, problem.loss, params, batch, key)[0]

    def step(state: State, batch: Batch, key: Array) -> tuple[State, tuple[Array, tuple[Array, ...]]]:
        specs = sharding.specs(state, problem.net, state.params)

        def spread(sums: Sums) -> Any:
            found = jax.tree.map(lambda a: PartitionSpec(), sums)
            alike = jax.tree.structure(sums.grads) == jax.tree.structure(state.params)
            return found._replace(grads=specs.params) if alike else found

        weights, divisor, batch = batch.weights, batch.divisor, weighed_batch(batch)
        if apart:
            batch = numbered(batch)
            check_draws(problem, key, "the mesh")
            sums = sharding.added_up(sums_of, sharding.cut(batch), state, key, spread=spread)
        else:
            if accumulate > 1:
                check_draws(problem, key)
            sums = sums_of(sharding.cut(batch), state, key)

        def value_fn(params: Any) -> Array:
            if apart:
                return sharding.added_up(value_of, sharding.cut(batch), params, key)
            return value_of(batch, params, key)

        found = problem.method.finish(problem, sums, key)
        figures = as_means((sums.value, sums.metrics), weights, divisor)
        value_fn = value_fn if accumulate == 1 else no_value_fn
        return sharding.constrain(problem.method.update(problem, state, found, value_fn), specs), figures

    return step


def as_means(figures: Any, weights: Weights, divisor: Any) -> Any:
    """Sums over a batch whose weights were divided by `divisor`, as means over its weights."""
    if divisor is None or weights is None:
        return figures
    shared = as_floats(weights) / jnp.asarray(divisor, jnp.zeros(()).dtype)
    whole = jnp.where((total := shared.sum()) == 0, jnp.ones_like(total), total)
    return jax.tree.map(lambda a: a / whole.astype(a.dtype), figures)


def weighed_batch(batch: Batch) -> Batch:
    """The batch with its weights divided."""
    return batch._replace(weights=shares(batch.weights, batch.divisor), divisor=None)


def shares(weights: Any, divisor: Any = None) -> Weights:
    """wₙ/Σw, or over another divisor; 0 where all are 0, None where there are none."""
    if weights is None:
        return None
    weights = as_floats(weights).astype(jnp.zeros(()).dtype)
    if divisor is not None:
        return weights / jnp.asarray(divisor, weights.dtype)
    return jnp.where((weights == 0).all(), jnp.zeros_like(weights), as_shares(weights))


def epoch_keys(key: Array, epoch: Any) -> tuple[Array, Array]:
    """Of a run's epoch: the key of its order, and that of what its steps draw."""
    order_key, noise_key = jax.random.split(jax.random.fold_in(key, epoch))
    return order_key, noise_key


def step_key(noise_key: Array, step: Any) -> Array:
    """Of what a step of the epoch draws."""
    return jax.random.fold_in(noise_key, step)


def transformed(transform: Transform | None, x: Any, keys: Array | None) -> Any:
    """The transform of every example [n, ...], with a key each or in evaluation."""
    if transform is None:
        return x
    return jax.vmap(transform, (0, None if keys is None else 0))(x, keys)


def name_of_transform(transform: Transform | None) -> str | None:
    """Its name, for records of a run; None if there is none."""
    name = getattr(transform, "__qualname__", None)
    return f"{transform.__module__}.{name}" if name else None if transform is None else repr(transform)


def transformed_batch(problem: Problem, batch: Batch, key: Array) -> Batch:
    """The batch as the net sees it in a step of this key: each example draws by its place in the whole batch."""
    if problem.transform is None:
        return batch
    rows = jnp.arange(len(jax.tree.leaves(batch.x)[0])) if batch.rows is None else batch.rows
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, _TRANSFORM), rows)
    return batch._replace(x=transformed(problem.transform, batch.x, keys))


def as_example(example: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one x; of a bare shape the dtype is the default float."""
    if hasattr(example, "shape") and hasattr(example, "dtype"):
        return jax.ShapeDtypeStruct(tuple(example.shape), example.dtype)
    return jax.ShapeDtypeStruct(as_shape(example), jnp.zeros(()).dtype)


def _method(method: Any) -> Method:
    if method is None:
        return Backpropagation()
    method = method.as_method() if hasattr(method, "as_method") and not isinstance(method, type) else method
    if not isinstance(method, Method):
        hint = ": jbp.Private becomes one with .bind(batch_size)" if hasattr(method, "bind") else ""
        raise ValueError(f"method must be a jbp.Method or a rule of jbp.rules, but is {came(method)}{hint}")
    return method


def _metrics(metrics: Any, loss: Loss) -> tuple[tuple[str, Metric], ...]:
    return tuple((name, m.of(loss) if isinstance(m, OfLoss) else m) for name, m in as_metrics(metrics))


def _check_problem(problem: Any) -> None:
    if not isinstance(problem, Problem):
        raise ValueError(f"expected a jbp.Problem(net, loss, optimizer), but got {came(problem)}")


def _check_state(state: Any) -> None:
    if not isinstance(state, State):
        raise ValueError(f"a step takes a jbp.State, as jbp.init_state makes it, but got a {type(state).__name__}")
    if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(state.params)):
        raise ValueError(
            "this state was handed to a step before, which took over its memory: go on with what it answered"
        )
