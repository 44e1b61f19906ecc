"""What `fit` and `fit_many` refuse before the first step, and the data as the device has them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp import hosts, rules
from jbp.annotations import Array
from jbp.arguments import as_target_values, came, check_narrowing, check_one_of, dtype_of, is_narrow, listed
from jbp.backprop import check_input, example_output, forward, refuse_swapped
from jbp.inputs import as_pair, one_array
from jbp.layers.images import made_for
from jbp.losses import Loss
from jbp.masks import counted, real_alone
from jbp.meshes import placed, whole
from jbp.paths import paths
from jbp.private import Private
from jbp.rows import is_streamed
from jbp.sharding import Sharding
from jbp.step import Method, Problem, Transform
from jbp.train.in_place import InPlace
from jbp.train.loop import BLOCK
from jbp.train.streams import RowCheck
from jbp.train.windowed import Gathered, put
from jbp.windows import Windows


def method_of(rule: Any, private: Private | None, in_place: bool, batch_size: int) -> Method:
    """The one method that `fit`'s keywords name.

    Raises:
        ValueError: if they name two, or no rule there is.
    """
    said = {"rule": rule is not None, "private": private is not None, "in_place": in_place}
    given = [name for name, on in said.items() if on]
    if len(given) > 1:
        raise ValueError(
            f"expected one of {' and '.join(given)}: a learning rule, private training and the update in place are "
            "each a way of its own to make a step"
        )
    if private is not None:
        return private.bind(batch_size)
    method = InPlace() if in_place else rules.method_of(rule)
    if method.accounted:
        raise ValueError(f"{method!r} rests on how the batches are drawn and counted: give it as private, not as rule")
    return method


def check_on_bad(on_bad: Any, private: bool, in_place: bool) -> None:
    """Refuse what cannot be done with a step that ends in a number that is not finite."""
    check_one_of(on_bad, "on_bad", ("stop", "skip"))
    if on_bad == "skip" and private:
        raise ValueError(
            "expected on_bad='stop' in private training: whether a step is skipped would tell of an example in it"
        )
    if on_bad == "skip" and in_place:
        raise ValueError(
            "expected on_bad='stop' with in_place, which has no copy of the parameters to go back to: leave one of the "
            "two out"
        )


def check_processes(sharding: Sharding | None, watch: Any) -> None:
    """Refuse what one of several processes cannot do."""
    if not hosts.several():
        return
    if sharding is None:
        raise ValueError(
            f"this is one of {jax.process_count()} processes, which train one net together: give sharding, such as "
            "jax.make_mesh((jax.device_count(),), ('data',))"
        )
    idle = set(range(jax.process_count())) - {device.process_index for device in sharding.mesh.devices.flat}
    if idle:
        raise ValueError(
            f"the mesh has no device of process {listed(sorted(map(str, idle)))}: take one over the devices of all, "
            f"which are {jax.device_count()}"
        )
    if watch is not None:
        raise ValueError("watch is for one process, but there are several: leave it out")


def on_device(name: str, data: Any, host: bool = False) -> tuple[Any, Any]:
    """(x, y) as arrays on the device, with equally many rows, at least one, and no number lost on the way; with `host`
    as NumPy's, of the types that the device would have."""
    refuse_streamed(name, data)
    pair = as_pair(name, data)
    if any(isinstance(a, Windows) for a in pair):
        return _windows(name, *pair, host)
    values = dict(zip("xy", pair, strict=True))
    for what, given in values.items():
        values[what] = one_array(f"{what} of {name}", given)
        check_narrowing(f"{what} of {name}", values[what], spread=True)
    as_target_values(f"y of {name}", values["y"])
    x, y = map(_on_host if host else jnp.asarray, values.values())
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"{name} must hold as many targets as inputs, at least one, but has shapes {x.shape} and {y.shape}"
        )
    return x, y


def _on_host(a: Any) -> np.ndarray:
    a = np.asarray(a)
    return a.astype(jax.dtypes.canonicalize_dtype(a.dtype), copy=False)


def _windows(name: str, x: Any, y: Any, host: bool) -> tuple[Any, Any]:
    if not all(isinstance(a, Windows) for a in (x, y)) or len(x) != len(y):
        raise ValueError(
            f"{name} must be the pair that jbp.data.windows makes, but is {came(x)} and {came(y)}: hand it in as it is"
        )
    return (x, y) if host else put(name, x, y)


def refuse_streamed(name: str, data: Any) -> None:
    """Refuse data that are read while they are trained on, where they are wanted whole."""
    if is_streamed(data):
        raise ValueError(
            f"{name} is read while it is trained on, which jbp.fit alone can, and not with private: give arrays, as "
            "numpy.asarray(rows) reads them"
        )


def refuse_overlap(data: Any) -> None:
    """Refuse windows that share tokens where each example is to be private: an account of one says nothing of them."""
    if isinstance(data, tuple | list) and any(isinstance(a, Windows) and a.overlaps for a in data):
        raise ValueError(
            "private training needs windows that do not overlap, for a token in several of them is in as many "
            "examples: cut them with stride=length, and mind that the account is of one window"
        )


def check_coupling(problem: Problem, params: Any, x: Array, sizes: np.ndarray) -> None:
    """Refuse batches that a net which couples the examples cannot train on, as one of one: in the layer's own words,
    before the first step. Rows that fill up the last batch of an epoch would hide there how few examples it has."""
    if problem.net.couples_batch:
        seen = problem.seen(jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
        least = jax.ShapeDtypeStruct((int(sizes.min()), *seen.shape), seen.dtype)
        jax.eval_shape(lambda p, x, k: forward(problem.net, p, x, k)[0], params, least, jax.random.key(0))


def warn_of_16_bits(problem: Problem, params: Any) -> None:
    """Warn, once, if parameters that are trained have so few digits that the small steps of training are lost."""
    leaves = zip(paths(params, "params"), jax.tree.leaves(params), problem.trainable.flags(params), strict=True)
    narrow = [(path, dtype_of(leaf)) for path, leaf, trained in leaves if trained and is_narrow(dtype_of(leaf))]
    if narrow:
        path, dtype = narrow[0]
        share = float(jnp.finfo(dtype).eps) / 2
        others = f" and {len(narrow) - 1} more" if len(narrow) > 1 else ""
        warnings.warn(
            f"{path}{others} {'are' if others else 'is'} {dtype}: a step below {share:.1g} of a number is rounded "
            "away, and training stands still early without a sign of it; train in float32, "
            "jax.tree.map(lambda p: p.astype('float32'), params), and narrow what comes out",
            stacklevel=3,
        )


@contextmanager
def unless_swapped(problem: Problem, params: Any, data: tuple[Array, Array]) -> Iterator[None]:
    """If data turn out not to fit, inside: say so where x and y fit the other way round. Without `params` those that
    the net would make."""

    def fits(x: Any, y: Any) -> Any:
        seen = problem.seen(jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
        made = params
        if params is None:
            with made_for(seen.shape, again=True):
                made = jax.eval_shape(lambda key: problem.net.init(key, seen.shape)[0], jax.random.key(0))
        one = jax.ShapeDtypeStruct((1, *seen.shape), seen.dtype), jax.ShapeDtypeStruct((1, *y.shape[1:]), y.dtype)
        example_output(problem.net, problem.loss, made, *one)

    try:
        yield
    except ValueError as error:
        refuse_swapped(fits, *data, error)
        raise


@jax.jit
@placed(whole)
def _is_finite(values: Array) -> Array:
    return jnp.isfinite(values).all()


@partial(jax.jit, static_argnums=0)
@placed(whole)
def _finite_once_transformed(transform: Transform, x: Array) -> Array:
    """Of each example [n], a block of them at a time."""
    return lax.map(lambda one: jnp.isfinite(transform(one, None)).all(), x, batch_size=BLOCK)


def check_data(
    name: str,
    problem: Problem,
    params: Any,
    data: tuple[Array, Array] | None,
    own: Any,
    weights: Any = None,
    mask: Any = None,
) -> None:
    """Refuse what would only show as a NaN or a wrong label: inputs that are not finite, targets outside the loss's
    domain, as they are in `own`, the data as their owner gave them; targets of weight 0 are not looked at, nor is
    padding."""
    if data is None:
        return
    x, y = data
    _check_inputs(name, problem, real_alone(mask, x))
    output = _output(problem, params, x, y)
    if isinstance(own[1], Windows):
        check_stream(name, problem.loss, own[1], output)
        return
    # Weights of another form are refused where they are divided.
    weights = weights if np.shape(weights) == (len(x),) else None
    problem.loss.check_targets(own[1], output, f"y of {name}", counted(output, weights, mask))


def check_stream(name: str, loss: Loss, y: Windows, output: tuple[int, ...]) -> None:
    """Refuse a token outside the loss's domain, naming its place in the stream."""
    tokens = y.seen
    try:
        loss.check_targets(tokens[None], (len(tokens), output[-1]), f"the tokens of {name}")
    except ValueError as error:
        raise ValueError(str(error).replace("row 0 has", "one is").replace(", at [", ", at place [")) from None


def batch_checker(problem: Problem, params: Any, data: tuple[Any, Any], usual: int = 0) -> RowCheck:
    """What refuses of rows [m, ...] what `on_device`, `check_data` and, of a batch of fewer rows than are `usual`,
    `check_coupling` refuse of data like these. It is called in another thread."""
    output, coupled = _output(problem, params, *data), problem.net.couples_batch
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)

    def check(x: np.ndarray, y: np.ndarray, weights: Any) -> None:
        for what, a in (("x", x), ("y", y)):
            check_narrowing(what, a, spread=True)
        _check_inputs(None, problem, x)
        problem.loss.check_targets(y, output, "y", None if weights is None else np.asarray(weights) != 0)
        if coupled and len(x) < usual:
            check_coupling(problem, shapes, data[0], np.asarray([len(x)]))

    return check


def _check_inputs(name: str | None, problem: Problem, x: Any) -> None:
    """Refuse inputs that are not finite, if need be once they are transformed."""
    said = "x" if name is None else f"x of {name}"
    if problem.transform is None:
        check_input(problem.net, x.tokens if isinstance(x, Gathered) else x)
    if problem.transform is not None:
        rows = np.flatnonzero(~np.asarray(_finite_once_transformed(problem.transform, x)))
        if len(rows):
            raise ValueError(f"{said} must be finite once it is transformed, but is not in row {rows[0]}")
    elif jnp.issubdtype(x.dtype, jnp.floating) and not (
        np.isfinite(x).all() if isinstance(x, np.ndarray) else bool(_is_finite(x))
    ):
        row, *at = np.argwhere(~np.isfinite(np.asarray(x)))[0].tolist()
        raise ValueError(f"{said} must be finite, but is not in row {row}, at {at}")


def _output(problem: Problem, params: Any, x: Any, y: Any) -> tuple[int, ...]:
    """The shape of the output of one example of such data."""
    seen = problem.seen(jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    one = (
        jax.ShapeDtypeStruct((1, *shape), dtype) for shape, dtype in ((seen.shape, seen.dtype), (y.shape[1:], y.dtype))
    )
    return example_output(problem.net, problem.loss, params, *one).shape
