"""What `tests/test_sharding.py` runs on several devices, which a process must be started with: `on_meshes.py CASE`.

A case prints what it found as one line of JSON: counts of compiled programs, or how far numbers are from those of one
device, in eps(float64) × the largest entry of the leaf.
"""

import dataclasses
import json
import signal
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).parents[1] / "experiments"))

import gpt_peers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from compiled import counted
from jax import lax
from jax.sharding import AxisType

import jbp
from jbp import stats
from jbp.sharding.costs import Devices, step_costs
from jbp.step import laid_out, step_function
from jbp.train.batches import Resident
from jbp.train.program import ledger, rows_program, steps_program
from jbp.train.streams import Block, Stacked
from jbp.train.watch import scalars

LOSS: Any = jbp.losses.softmax_cross_entropy
SHAPES = ((2, 1), (1, 2), (4, 1), (2, 2), (1, 4), (8, 1), (4, 2), (2, 4), (1, 8))
"""Every mesh of 2, 4 and 8 devices: data × model."""


def mesh_of(d: int, m: int, **how: Any) -> jbp.Sharding:
    """On the first d × m devices, with explicit axes, JAX's default."""
    return jbp.Sharding(jax.make_mesh((d, m), ("data", "model"), devices=jax.devices()[: d * m]), **how)


# ── What a device does, counted ─────────────────────────────────────────────────────────────────────────────────────


class Counts:
    """Of one net and a batch: the programs of training, and autodiff's, on any mesh."""

    def __init__(self, net: Any, shape: tuple[int, ...], batch: int, plain: Any = None, words: int = 0):
        self.net, self.shape, self.batch, self.plain, self.words = net, shape, batch, plain, words
        self.x, self.y = self.drawn(np.random.default_rng(0))

    def drawn(self, rng: Any) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and labels; tokens and tokens, of a net that reads words."""
        if self.words:
            return tuple(rng.integers(0, self.words, (2, self.batch, *self.shape)).astype(np.int32))
        x = rng.normal(size=(self.batch, *self.shape)).astype(np.float32)
        return x, rng.integers(0, 8, self.batch).astype(np.int32)

    def problem(self, method: Any = None, optimizer: Any = None) -> jbp.Problem:
        return jbp.Problem(self.net, LOSS, optimizer or jbp.optim.sgd(0.1), method=method)

    def step(self, on: jbp.Sharding, accumulate: int = 1, method: Any = None, optimizer: Any = None) -> Any:
        """A step."""
        problem = self.problem(method, optimizer)
        state = laid_out(jbp.init_state(problem, self.shape), problem, on)
        with on.set():
            batch = on.rows(jbp.Batch(self.x, self.y))
            return jax.jit(step_function(problem, accumulate, on)).lower(state, batch, state.key).compile()

    def fit(self, on: jbp.Sharding) -> Any:
        """The program of `fit`, of which the loop over steps counts once."""
        problem, n = self.problem(), 4 * self.batch
        state = laid_out(jbp.init_state(problem, self.shape), problem, on)
        take: Any = steps_program(problem, Stacked(Resident("shuffle", self.batch, n)), sharding=on)
        rows = (np.stack([a] * 4) for a in (self.x, self.y))
        with on.set():
            x, y = (on.rows(a, 1) for a in rows)
            block = Block(x, y, None, jnp.int32(0))
            return take.lower(state, on.everywhere(ledger(4, 0)), block, 1, 0, 4).compile()

    def evaluation(self, on: jbp.Sharding) -> Any:
        """The program of an evaluation of a batch, in one block."""
        problem = self.problem()
        params = laid_out(jbp.init_state(problem, self.shape), problem, on).params
        with on.set():
            rows = on.rows((self.x, self.y, np.ones(self.batch, bool)))
            program: Any = rows_program(self.net, LOSS, (), None, self.batch // on.d, on)
            return program.lower(params, *rows).compile()

    def autodiff(self, on: jbp.Sharding) -> Any:
        """The same step by `jax.value_and_grad` of the plain net, arrays laid out alike, all else the compiler's."""
        params = self.net.init(jax.random.key(0), self.shape)[0]
        specs = on.params(self.net, params)

        def error(params: Any, x: Any, y: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(self.plain(params, x), y).mean()

        def step(params: Any, x: Any, y: Any) -> Any:
            value, grads = jax.value_and_grad(error)(params, x, y)
            return value, on.constrain(jax.tree.map(lambda a, g: a - 0.1 * g, params, grads), specs)

        with on.set():
            return jax.jit(step).lower(on.put(params, specs), *on.rows((self.x, self.y))).compile()

    def costs(self, d: int, m: int, **how: Any) -> Any:
        """By formula."""
        params = jax.eval_shape(lambda key: self.net.init(key, self.shape)[0], jax.random.key(0))
        example = jax.ShapeDtypeStruct(self.shape, jnp.float32)
        return step_costs(self.net, params, example, self.batch, Devices(d, m, **how), loss=LOSS)


def dense(p: Any, x: Any) -> Any:
    return x @ p["weight"] + p["bias"]


def plain_stack(activation: Any) -> Any:
    """The plain form of dense layers with an activation between."""

    def forward(params: Any, x: Any) -> Any:
        layers = [p for p in params if p]
        for p in layers[:-1]:
            x = activation(dense(p, x))
        return dense(layers[-1], x)

    return forward


def plain_repeat(params: Any, x: Any) -> Any:
    x = jax.nn.relu(dense(params[0], x))
    x, _ = lax.scan(lambda x, p: (jax.nn.relu(dense(p[0], x)), None), x, params[2])
    return dense(params[3], x)


def plain_conv(params: Any, x: Any) -> Any:
    how = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    for p in (params[0], params[2]):
        x = jax.nn.relu(lax.conv_general_dilated(x, p["weight"], **how) + p["bias"])
    return dense(params[5], x.reshape(len(x), -1))


WIDE = Counts(
    jbp.serial(jbp.Dense(512), jbp.relu, jbp.Dense(512), jbp.relu, jbp.Dense(10)), (784,), 512,
    plain_stack(jax.nn.relu),
)  # fmt: skip
FOUR = Counts(
    jbp.serial(jbp.Dense(64), jbp.tanh, jbp.Dense(32), jbp.tanh, jbp.Dense(48), jbp.tanh, jbp.Dense(16)), (24,), 64,
    plain_stack(jnp.tanh),
)  # fmt: skip
DEEP = Counts(
    jbp.serial(jbp.Dense(64), jbp.relu, jbp.repeat(jbp.serial(jbp.Dense(64), jbp.relu), 4), jbp.Dense(8)), (24,), 64,
    plain_repeat,
)  # fmt: skip
IMAGES = Counts(
    jbp.serial(jbp.Conv(8, 3), jbp.relu, jbp.Conv(16, 3), jbp.relu, jbp.Flatten(), jbp.Dense(8)), (8, 8, 3), 32,
    plain_conv,
)  # fmt: skip

TALKS = Counts(jbp.gpt(64, 32, layers=2, heads=4, width=64), (32,), 16, gpt_peers.scores_of(4), words=64)
"""Attention by heads, tables by vocabulary."""


def said(compiled: Any) -> dict[str, Any]:
    """What was counted, for JSON."""
    found = counted(compiled)
    return {"flops": found.flops, "collectives": dict(found.collectives), "total": found.total, "bytes": found.bytes}


def formula(costs: Any) -> dict[str, Any]:
    return {"flops": costs.flops, "bytes": costs.bytes, "total": costs.collectives, "exact": costs.exact}


def divided() -> dict[str, Any]:
    """784-512-512-10, batch 512, on one device and every mesh; and a stack whose last layer is by row."""
    found: dict[str, Any] = {}
    for d, m in ((1, 1), *SHAPES):
        on = mesh_of(d, m)
        found[f"{d}x{m}"] = {
            "fit": said(WIDE.fit(on)), "evaluation": said(WIDE.evaluation(on)), "autodiff": said(WIDE.autodiff(on)),
            "formula": formula(WIDE.costs(d, m)),
            "four": said(FOUR.step(on)), "four, formula": formula(FOUR.costs(d, m)),
        }  # fmt: skip
    return found


def collectives() -> dict[str, Any]:
    """Beside autodiff's, of nets and methods."""
    found: dict[str, Any] = {}
    for name, one in (("repeat", DEEP), ("convolution", IMAGES), ("gpt", TALKS)):
        for d, m in ((1, 1), (4, 1), (2, 2), (1, 4)):
            on = mesh_of(d, m)
            found[f"{name} {d}x{m}"] = {"jbp": said(one.step(on)), "autodiff": said(one.autodiff(on))}
    secret = jbp.Private(1.0, 1.0, 1e-3).bind(64)
    data, both = mesh_of(4, 1), mesh_of(2, 2)
    found["private"] = [said(FOUR.step(on, method=secret)) for on in (data, both)]
    found["accumulated"] = [said(FOUR.step(on, accumulate=4)) for on in (data, both)]
    found["accumulated repeat"] = said(DEEP.step(data, accumulate=4))
    found["clipped by global norm"] = said(
        FOUR.step(data, optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)))
    )
    whole, cut = (mesh_of(4, 1, shard_params=True), mesh_of(2, 2, shard_params=True))
    found["shard_params"] = [said(FOUR.step(on)) for on in (whole, cut)]
    found["shard_params, autodiff"] = [said(FOUR.autodiff(on)) for on in (whole, cut)]
    found["shard_params, formula"] = [formula(FOUR.costs(*at, shard_params=True)) for at in ((4, 1), (2, 2))]
    found["in place"] = said(FOUR.step(data, method=jbp.train.InPlace()))
    found["statistics"] = {name: said(_statistic(f, data)) for name, f in READS.items()}
    return found


READS = {
    "norms": lambda pairs: stats.norms(pairs),
    "clipped": lambda pairs: stats.clipped(pairs, 1.0),
    "second moment": lambda pairs: stats.second_moment(pairs),
}


def _statistic(read: Any, on: jbp.Sharding) -> Any:
    params = on.everywhere(FOUR.net.init(jax.random.key(0), FOUR.shape)[0])

    def run(params: Any, x: Any, y: Any) -> Any:
        return read(jbp.value_and_pairs(FOUR.net, LOSS, params, x, y)[1])

    with on.set():
        return jax.jit(run).lower(params, *on.rows((FOUR.x, FOUR.y))).compile()


# ── Numbers, beside those of one device ─────────────────────────────────────────────────────────────────────────────

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(29, 5)), (np.arange(29) % 4).astype(np.int32)
PICTURES = RNG.normal(size=(29, 4, 4, 3))
NET = jbp.serial(jbp.Dense(12), jbp.relu, jbp.Dropout(0.2), jbp.Dense(8), jbp.tanh, jbp.Dense(4))
STACK = jbp.serial(
    jbp.Dense(8), jbp.tanh, jbp.repeat(jbp.residual(jbp.serial(jbp.Dense(8), jbp.tanh)), 3), jbp.Dense(4)
)
NORMED = jbp.serial(jbp.Dense(8, use_bias=False), jbp.BatchNorm(), jbp.relu, jbp.Dense(4))
CONV = jbp.serial(
    jbp.Conv(4, 3), jbp.GroupNorm(2), jbp.relu, jbp.Conv(6, 3, groups=2), jbp.MaxPool(2), jbp.Flatten(), jbp.Dense(4)
)
TIED = jbp.tied(jbp.serial(jbp.Dense(5), jbp.tanh, jbp.Dense(5), jbp.branch(jbp.Dense(8), jbp.Dense(8)), jbp.Dense(4)),
                {2: 0})  # fmt: skip
TOKENS = RNG.integers(4, size=(29, 6)).astype(np.int32)
GPT = jbp.gpt(4, 6, layers=2, heads=2, width=8)
MOMENTUM = jbp.optim.sgd(0.1, momentum=0.9)


def noisy(x: Any, key: Any) -> Any:
    """A transform that draws."""
    return x if key is None else x + 0.1 * jax.random.normal(key, x.shape, x.dtype)


def falling(step: Any) -> Any:
    """A learning rate."""
    return 0.1 / (1.0 + step.astype(float))


LINE = optax.chain(optax.sgd(0.5), optax.scale_by_backtracking_linesearch(4))
SCHEDULED = optax.chain(optax.clip_by_global_norm(0.1), jbp.optim.sgd(falling, momentum=0.9))

FITS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "plain": (NET, MOMENTUM, {"validation_data": (X[:19], Y[:19]), "metrics": {"accuracy": jbp.accuracy}}),
    "weights": (NET, MOMENTUM, {"weights": np.arange(29.0)}),
    "replacement": (NET, MOMENTUM, {"sampling": "replacement"}),
    "transform": (NET, MOMENTUM, {"transform": noisy}),
    "trainable": (NET, MOMENTUM, {"trainable": (False, (), (), True, (), True)}),
    "accumulated": (NET, MOMENTUM, {"accumulate": 2}),
    "clipped by global norm": (NET, SCHEDULED, {}),
    "line search": (NET, LINE, {}),
    "in place": (STACK, MOMENTUM, {"in_place": True}),
    "stack": (STACK, MOMENTUM, {}),
    "batch normalisation": (NORMED, MOMENTUM, {"validation_data": (X[:19], Y[:19])}),
    "convolution": (CONV, MOMENTUM, {"validation_data": (PICTURES, Y)}),
    "tied": (TIED, MOMENTUM, {}),
    "gpt": (GPT, MOMENTUM, {"validation_data": (TOKENS[:19], TOKENS[::-1][:19])}),
    "private": (NET, MOMENTUM, {"private": jbp.Private(1.0, 1.0, 1e-3)}),
    "watched": (STACK, MOMENTUM, {"watch": jbp.Watch(2)}),
    "skipping": (NET, MOMENTUM, {"on_bad": "skip"}),
} | {
    rule: (STACK, MOMENTUM, {"rule": rule})
    for rule in ("feedback_alignment", "direct_feedback_alignment", "sign_symmetry", "kolen_pollack")
}  # fmt: skip
"""What is trained, by name: net, optimiser and what `fit` is told."""
FIRST = (
    "plain", "accumulated", "in place", "batch normalisation", "private", "watched", "convolution", "kolen_pollack",
    "gpt",
)  # fmt: skip
"""What the suite trains whenever it runs."""


def trained(name: str, sharding: Any = None, data: Any = None, **more: Any) -> Any:
    """What a fit leaves."""
    net, optimizer, how = FITS[name]
    if data is None:
        data = (TOKENS, TOKENS[::-1]) if net is GPT else (PICTURES if net is CONV else X, Y)
    return jbp.fit(net, LOSS, optimizer, data, epochs=2, batch_size=8, seed=3, sharding=sharding, **how, **more)


def left(fit: Any) -> Any:
    """Parameters, and the figures of its rows without the times."""
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in fit.history]
    return fit.params, rows, fit.step_losses


@cache
def alone(name: str) -> Any:
    """On one device."""
    return jax.tree.map(np.asarray, left(trained(name)))


def apart(found: Any, wanted: Any) -> float:
    """The largest error of a leaf."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if b.size and not np.array_equal(np.isnan(a), np.isnan(b)):
            return float("inf")
        scale = np.abs(np.nan_to_num(b)).max(initial=0.0) or 1.0
        worst = max(worst, float(np.abs(np.nan_to_num(a - b)).max(initial=0.0) / scale / np.finfo(np.float64).eps))
    return worst


def fits() -> dict[str, float]:
    """Kinds of training, on four devices."""
    found = {}
    for name in FIRST:
        for d, m in {"plain": ((4, 1), (2, 2)), "gpt": ((4, 1), (2, 2))}.get(name, ((2, 2),)):
            found[f"{name} {d}x{m}"] = apart(left(trained(name, mesh_of(d, m))), alone(name))
    found["shard_params 4x1"] = apart(left(trained("plain", mesh_of(4, 1, shard_params=True))), alone("plain"))
    return found


def more_fits() -> dict[str, float]:
    """The others, and other meshes."""
    found = {}
    for name in FITS:
        for d, m in ((2, 2),) if name not in FIRST else ((1, 4),):
            found[f"{name} {d}x{m}"] = apart(left(trained(name, mesh_of(d, m))), alone(name))
    for how in ({"shard_params": True}, {"layouts": {"0": "whole", "3": "row", "5": "column"}}):
        found[f"plain {how}"] = apart(left(trained("plain", mesh_of(2, 2, **how))), alone("plain"))
    by_channel = mesh_of(2, 2, layouts={"0": "column"})  # the table, tied, and positions by channel
    found["gpt by channel 2x2"] = apart(left(trained("gpt", by_channel)), alone("gpt"))
    rows = ([scalars(row) for row in trained("watched", on).watched] for on in (mesh_of(2, 2), None))
    found["watched, rows"] = apart(*rows)
    return found


def others() -> dict[str, Any]:
    """Streams, many seeds, steps by hand, meshes that are set, runs that go on on another mesh, statistics."""
    found: dict[str, Any] = {}
    rows = jbp.data.Rows(X)
    found["rows"] = apart(left(trained("plain", mesh_of(2, 2), (rows, Y))), alone("plain"))
    held = dict(FITS["plain"][2], validation_data=(jbp.data.Rows(X[:19]), Y[:19]))
    FITS["held out in rows"] = (NET, MOMENTUM, held)
    found["held out in rows"] = apart(left(trained("held out in rows", mesh_of(4, 1))), alone("plain"))

    batches = [(X[at : at + 8], Y[at : at + 8]) for at in range(0, 29, 8)]

    def streamed(sharding: Any) -> Any:
        stream = jbp.data.Stream(batches, steps=4)
        return left(jbp.fit(NET, LOSS, MOMENTUM, stream, epochs=2, validation_data=jbp.data.Stream(batches, steps=4),
                            seed=3, sharding=sharding))  # fmt: skip

    found["stream"] = apart(streamed(mesh_of(2, 2)), streamed(None))
    many = partial(jbp.fit_many, NET, LOSS, MOMENTUM, (X, Y), seeds=range(4), epochs=2, batch_size=8,
                   validation_data=(X[:19], Y[:19]))  # fmt: skip
    runs = [(one.params, one.step_losses) for one in (many(), many(sharding=mesh_of(4, 1)))]
    found["many"] = apart(*runs[::-1])

    problem = jbp.Problem(NET, LOSS, MOMENTUM, metrics={"accuracy": jbp.accuracy})
    batch = jbp.Batch(X[:8], Y[:8], np.arange(8.0))

    def stepped(sharding: Any, accumulate: int = 1) -> Any:
        step = jbp.make_step(problem, sharding=sharding, accumulate=accumulate)
        state, _ = step(jbp.init_state(problem, (5,)), batch)
        state, figures = step(state, batch)
        return state.params, figures

    plain = stepped(None)
    bare = jax.make_mesh((4,), ("devices",))
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
        found[f"make_step, {kind.name}"] = apart(stepped(mesh), plain)
        with jax.set_mesh(mesh):
            found[f"make_step, {kind.name}, set"] = apart(stepped(mesh), plain)
            found[f"fit, {kind.name}, set"] = apart(left(trained("plain", mesh)), alone("plain"))
    found["make_step, one axis of any name"] = apart(stepped(bare), plain)
    found["make_step, in parts"] = apart(stepped(mesh_of(2, 2), 2), plain)
    params = trained("plain", mesh := jax.make_mesh((2, 2), ("data", "model"))).params
    found["params are on the mesh as it was given"] = all(a.sharding.mesh == mesh for a in jax.tree.leaves(params))

    with tempfile.TemporaryDirectory() as folder:
        half = {"epochs": 1, "batch_size": 8, "seed": 3, "save_to": Path(folder) / "run"} | FITS["plain"][2]
        jbp.fit(NET, LOSS, MOMENTUM, (X, Y), sharding=mesh_of(4, 1), **half)
        found["resumed on another mesh"] = [
            apart(left(jbp.fit(NET, LOSS, MOMENTUM, (X, Y), sharding=on, resume=True, **{**half, "epochs": epochs}))[0],
                  left(jbp.fit(NET, LOSS, MOMENTUM, (X, Y), **{**half, "epochs": epochs, "save_to": None}))[0])
            for on, epochs in ((mesh_of(2, 2, shard_params=True), 2), (None, 3), (mesh_of(1, 4), 4))
        ]  # fmt: skip
    return found


def readings() -> dict[str, float]:
    """Every statistic, clipping and curvature, on examples and layers that are spread by a `Sharding`."""
    from on_devices import KEY, ONCE, SPATIAL, passes, second_order, statistics

    found = {}
    for label, given, functions in (
        ("dense", ONCE, (statistics, passes, second_order)),
        ("kernels", SPATIAL, (statistics,)),
    ):
        net, params, x, y = given
        for function in functions:
            run = partial(function, net)
            wanted = jax.jit(run)(params, x, y)
            for d, m in ((4, 1), (2, 2)):
                on = mesh_of(d, m)
                with on.set():
                    found_here = jax.jit(run)(on.put(params, on.params(net, params)), *on.rows((x, y)))
                for name, want in wanted.items():
                    found[f"{label}, {name} {d}x{m}"] = apart(found_here[name], want)
    assert KEY is not None
    return found


def refused() -> dict[str, str]:
    """What is said of a mesh that does not fit."""
    small = jbp.serial(jbp.Dense(7), jbp.relu, jbp.Dense(3))
    data, model = (jax.make_mesh((4,), (name,)) for name in ("data", "model"))
    fit = partial(jbp.fit, small, LOSS, MOMENTUM, (X[:29, :5], Y[:29] % 3), epochs=1)
    step = jbp.make_step(jbp.Problem(small, LOSS, MOMENTUM), sharding=data)
    state, batch = jbp.init_state(step_problem := jbp.Problem(NET, LOSS, MOMENTUM), (5,)), jbp.Batch(X[:8], Y[:8])
    many = partial(jbp.fit_many, small, LOSS, MOMENTUM, (X, Y % 3), epochs=1, batch_size=8)
    grouped = jax.make_mesh((2,), ("model",), devices=jax.devices()[:2])
    told = {
        "the batch": lambda: jbp.fit(NET, LOSS, MOMENTUM, (np.ones((40, 5)), np.zeros(40, int)), batch_size=30,
                                     sharding=data),
        "no layer": lambda: fit(batch_size=8, sharding=model),
        "an axis": lambda: fit(sharding=jax.make_mesh((2, 2), ("data", "modle"))),
        "a layout": lambda: fit(batch_size=8, sharding=jbp.Sharding(grouped, layouts={"0": "column"})),
        "a batch by hand": lambda: step(
            jbp.init_state(jbp.Problem(small, LOSS, MOMENTUM), (5,)), jbp.Batch(X[:7], Y[:7] % 3)
        ),
        "runs": lambda: many(seeds=range(3), sharding=data),
        "runs over layers": lambda: many(seeds=range(2), sharding=jax.make_mesh((2, 2), ("data", "model"))),
        "random numbers": lambda: jbp.make_step(step_problem, sharding=data)(
            dataclasses.replace(state, key=jax.random.key(0, impl="rbg")), batch
        ),
    }  # fmt: skip
    found = {}
    for name, call in told.items():
        try:
            call()
        except ValueError as error:
            found[name] = str(error)
    return found


def commands() -> dict[str, Any]:
    """`jbp train --mesh`."""
    from contextlib import redirect_stderr
    from io import StringIO

    from jbp import cli, runs

    def line(*words: str) -> str:
        with redirect_stderr(said := StringIO()):
            assert cli.main(["train", *words, "--out", str(folder / "none"), "--quiet"]) == 2
        return said.getvalue()

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        usual = ("--net", "16 relu", "--epochs", "2", "--batch-size", "32", "--quiet", "--out")
        assert cli.main(["train", *usual, str(folder / "one")]) == 0
        assert cli.main(["train", "--mesh", "data=2,model=2", *usual, str(folder / "four")]) == 0
        assert cli.main(["train", "--mesh", "data=2", "--seeds", "0:2", *usual, str(folder / "seeds")]) == 0
        summaries = [json.loads((folder / run / "summary.json").read_text()) for run in ("one", "four", "seeds")]
        found["loss"] = [one["test_loss"] for one in summaries[:2]]
        found["mesh"] = [one["mesh"] for one in summaries[:2]]
        found["seeds"] = len(summaries[2]["runs"])
        found["batch"] = line("--mesh", "data=4", "--batch-size", "30")
        found["width"] = line("--mesh", "model=4", "--net", "7 relu")

        run, after_chunk = folder / "stopped", runs.RunFolder.after_chunk

        def stopped(self: Any, event: Any) -> Any:
            signal.raise_signal(signal.SIGINT)
            return after_chunk(self, event)

        words = ("--net", "16 relu", "--epochs", "3", "--batch-size", "32", "--quiet", "--mesh", "data=2,model=2")
        with mock.patch.object(runs.RunFolder, "after_chunk", stopped), redirect_stderr(StringIO()):
            assert cli.main(["train", *words, "--out", str(run)]) == 130
        status = cli.main(["train", "--resume", str(run), "--mesh", "data=4", "--quiet"])
        found["resumed"] = [status, json.loads((run / "summary.json").read_text())["mesh"]]
    return found


CASES = {
    "divided": divided, "collectives": collectives, "fits": fits, "more fits": more_fits, "others": others,
    "readings": readings, "refused": refused, "commands": commands,
}  # fmt: skip

if __name__ == "__main__":
    if sys.argv[1] in ("fits", "more fits", "others", "refused"):
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jax.config.update("jax_numpy_rank_promotion", "raise")
    print(json.dumps(CASES[sys.argv[1]]()))
