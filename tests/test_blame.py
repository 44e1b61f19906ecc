"""The first bad number: planted in data, layers, losses and updates, and found by layer, direction, example and row."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jbp
from jbp import losses, runs
from jbp.combine import Combinator
from jbp.data import Rows, Stream
from jbp.layer import Layer
from jbp.step import epoch_keys, step_function, step_key, transformed_batch, weighed_batch
from jbp.train import blame, replay, streams
from jbp.train.batches import Resident, ResidentSource, draw_order
from jbp.train.blame import first_bad
from jbp.train.program import ledger, noted, steps_program
from jbp.train.progress import Aim, Progress, Steps, see

N, BATCH, WIDTH, ROW = 24, 4, 4, 17
X = np.random.default_rng(0).normal(size=(N, WIDTH))
Y = np.random.default_rng(1).normal(size=(N, 2))
SGD = jbp.optim.sgd(1e-3)
LOSS = losses.mean_squared_error


class Plain(Layer):
    """A layer without parameters that keeps the shape."""

    uses_key = False

    def init(self, key: Any, shape: Any) -> Any:
        return (), shape


@dataclass(frozen=True, repr=False)
class Square(Plain):
    """y = x², which overflows where x is large."""

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        return x * x, x

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        return 2 * saved * delta, ()


@dataclass(frozen=True, repr=False)
class Trap(Plain):
    """y = x, with a way back that breaks where x is large."""

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        return x, x

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        return jnp.where(jnp.abs(saved) > 1e4, jnp.nan, delta), ()


@dataclass(frozen=True, repr=False)
class Unit(Plain):
    """y = x/|x|, not a number where x is 0."""

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        y = x / jnp.linalg.norm(x)
        return y, (y, x)

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        y, x = saved
        return (delta - y * (y * delta).sum()) / jnp.linalg.norm(x), ()


@dataclass(frozen=True, repr=False)
class Steep(Plain):
    """y = 1e-200 x, with a way back of 1e200."""

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        return 1e-200 * x, ()

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        return 1e200 * delta, ()


def planted(value: float, row: int = ROW, x: np.ndarray = X) -> np.ndarray:
    """The data with one row that is so large."""
    x = x.copy()
    x[row] = value
    return x


def diverged(net: Any, x: Any, loss: Any = LOSS, optimizer: Any = SGD, y: Any = Y, **options: Any) -> jbp.Diverged:
    given: dict[str, Any] = {"epochs": 2, "batch_size": BATCH, "seed": 3} | options
    with pytest.raises(jbp.Diverged) as caught:
        jbp.fit(net, loss, optimizer, (x, y), **given)
    return caught.value


def rows_of(step: int, n: int = N, sampling: Any = "shuffle", seed: int = 3) -> list[int]:
    """The rows of the data in the batch of a step, from 1, drawn once more."""
    epochs, t = divmod(step - 1, -(-n // BATCH))
    order_key, _ = epoch_keys(jax.random.split(jax.random.key(seed))[1], epochs + 1)
    reader = Resident(sampling, BATCH, n)
    if sampling == "replacement":
        return jax.random.randint(jax.random.fold_in(order_key, t), (BATCH,), 0, n).tolist()
    order: Any = draw_order(order_key, reader)
    return order[t * BATCH : (t + 1) * BATCH].tolist()


def check(error: jbp.Diverged, direction: str, layer: str, sampling: Any = "shuffle", row: int = ROW) -> None:
    """That the place is this, and its example the planted row's."""
    place: Any = error.place
    assert (place.direction, place.layer, place.row, place.others) == (direction, layer, row, 0)
    assert rows_of(place.step, sampling=sampling)[place.example] == row
    assert place.epoch == (place.step - 1) // 6 + 1
    said = f"step {place.step} (epoch {place.epoch}), {direction} of {layer}, example {place.example} of the batch, row"
    assert f"{said} {row} of the training data" in str(error)


FORWARD = {
    "serial": (jbp.serial(jbp.Dense(4), Square(), jbp.Dense(2)), 1e160, "net[1] Square()"),
    "residual": (
        jbp.serial(jbp.residual(jbp.serial(jbp.Dense(4), Square())), jbp.Dense(2)), 1e160, "net[0][1] Square()",
    ),
    "a residual's sum": (jbp.serial(jbp.residual(Trap()), jbp.Dense(2)), 1.5e308, "net[0] residual"),
    "repeat": (
        jbp.serial(jbp.repeat(jbp.serial(jbp.Dense(4), Square()), 3), jbp.Dense(2)), 1e90, "net[0][1] #2 Square()",
    ),
    "branch": (
        jbp.serial(jbp.branch(jbp.Dense(2), jbp.serial(jbp.Dense(4), Square(), jbp.Dense(2))), jbp.Dense(2)),
        1e160,
        "net[0][1][1] Square()",
    ),
    "tied": (
        jbp.tied(jbp.serial(jbp.Dense(4), Square(), jbp.Dense(4), jbp.Dense(2)), {(2, "weight"): (0, "weight")}),
        1e160,
        "net[1] Square()",
    ),
    "batch normalisation": (
        jbp.serial(jbp.Dense(4), Square(), jbp.BatchNorm(), jbp.Dense(2)), 1e160, "net[1] Square()",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARD)
def test_an_overflow_on_the_way_forward_is_named(name):
    net, value, layer = FORWARD[name]
    error = diverged(net, planted(value))
    check(error, "forward h", layer)
    assert error.step == error.place.step  # type: ignore[union-attr]


def test_an_overflow_in_a_convolutional_net_is_named_with_replacement():
    x = planted(1e160, x=np.random.default_rng(2).normal(size=(N, 4, 4, 1)))
    net = jbp.serial(jbp.Conv(2, 3), Square(), jbp.Flatten(), jbp.Dense(2))
    check(diverged(net, x, sampling="replacement", epochs=6), "forward h", "net[1] Square()", "replacement")


TRAPPED = jbp.serial(jbp.Dense(4), Trap(), jbp.Dense(2))
DEEP = jbp.serial(jbp.repeat(jbp.serial(jbp.Dense(4), Trap()), 3), jbp.Dense(2))
BACKWARD: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "backpropagation": (TRAPPED, "net[1] Trap()", {}),
    "in place": (DEEP, "net[0][1] #3 Trap()", {"in_place": True}),
    "in parts": (TRAPPED, "net[1] Trap()", {"accumulate": 2}),
    "weights": (TRAPPED, "net[1] Trap()", {"weights": np.linspace(1, 2, N)}),
    "batch normalisation": (
        jbp.serial(jbp.Dense(4), Trap(), jbp.BatchNorm(), jbp.Dense(2)), "net[1] Trap()", {},
    ),
    "feedback alignment": (DEEP, "net[0][1] #3 Trap()", {"rule": "feedback_alignment"}),
    "direct feedback alignment": (DEEP, "net[0][1] #3 Trap()", {"rule": "direct_feedback_alignment"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKWARD)
def test_a_way_back_that_breaks_is_named_though_the_loss_shows_it_a_step_later(name):
    net, layer, options = BACKWARD[name]
    error = diverged(net, planted(1e6), **options)
    check(error, "backward δ", layer)
    assert error.step == error.place.step + 1  # type: ignore[union-attr]


def test_a_loss_that_is_infinite_is_named():
    net = jbp.serial(jbp.Dense(3), jbp.softmax)
    x = planted(1e6)
    params = jbp.init_state(jbp.Problem(net, losses.cross_entropy, SGD), (WIDTH,), seed=3).params
    y = np.random.default_rng(4).integers(0, 3, N)
    y[ROW] = int(jbp.apply(net, params, x[ROW : ROW + 1])[0].argmin())
    check(diverged(net, x, losses.cross_entropy, y=y), "loss", "cross_entropy")


def test_an_update_that_overflows_is_named_by_the_parameter():
    huge = jbp.optim.sgd(lambda step: jnp.where(jnp.asarray(step) < 8, 1e-3, 1e308))
    error = diverged(TRAPPED, X, optimizer=huge, y=100 * Y)
    place: Any = error.place
    assert (place.direction, place.step, place.example, place.row) == ("update", 9, None, None)
    assert error.step == 10
    # What the update is, by hand: which parameters overflow follows from the gradients of that step.
    state = jbp.fit(TRAPPED, LOSS, huge, (X, 100 * Y), epochs=2, batch_size=BATCH, seed=3, chunk_steps=2,
                    callbacks=(lambda event: event.step == 8,)).state  # fmt: skip
    rows = np.asarray(rows_of(9))
    _, grads = jbp.value_and_grad(TRAPPED, LOSS)(state.params, X[rows], 100 * Y[rows])
    with np.errstate(over="ignore"):
        lost = [bool((~np.isfinite(1e308 * np.asarray(g))).any()) for g in jax.tree.leaves(grads)]
    names = ["params[0]['bias']", "params[0]['weight']", "params[2]['bias']", "params[2]['weight']"]
    assert place.parameter == names[lost.index(True)]
    assert place.others == sum(lost) - 1
    assert place.layer == f"net{place.parameter[6:9]} Dense({4 if place.parameter[7] == '0' else 2})"
    assert f"step 9 (epoch 2), the update of {place.parameter}, {place.layer}" in str(error)


def one(net: Any, x: Any, y: Any = None, params: Any = None, **options: Any) -> Any:
    """What is found in one step with all of the data as its batch."""
    weights, rows = options.pop("weights", None), options.pop("rows", None)
    problem = jbp.Problem(net, LOSS, options.pop("optimizer", SGD), **options)
    state = jbp.init_state(problem, x.shape[1:], seed=0, params=params)
    batch = jbp.Batch(jnp.asarray(x), jnp.asarray(Y[: len(x)] if y is None else y), weights)
    return first_bad(problem, state, batch, jax.random.key(1), rows=rows)


def test_a_gradient_that_overflows_is_named_by_parameter_and_example_unless_it_is_frozen():
    net = jbp.serial(jbp.Dense(4), Steep(), jbp.Dense(2))
    found = one(net, planted(1e200), rows=np.arange(100, 100 + N))
    assert (found.direction, found.layer, found.parameter) == ("gradient", "net[0] Dense(4)", "params[0]['weight']")
    assert (found.example, found.row) == (ROW, 100 + ROW)
    assert "gradient of params[0]['weight'], net[0] Dense(4), example 17 of the batch, row 117" in str(found)
    frozen = one(net, planted(1e200), trainable=(False, (), True))
    assert frozen.direction is None


def test_a_delta_that_nobody_needs_is_no_bad_number():
    """That of the net's input is not computed in training."""
    params = {"weight": jnp.full((WIDTH, 2), 1e300), "bias": jnp.zeros(2)}
    found = one(jbp.Dense(2), 0 * X, y=np.full((N, 2), 1e12), params=params)
    assert found.direction is None
    assert "every number of the step is finite" in str(found)


def test_a_row_of_weight_0_does_not_count():
    weights = np.ones(N)
    weights[ROW] = 0
    net = jbp.serial(jbp.Dense(4), Square(), jbp.Dense(2))
    assert one(net, planted(1e160), weights=weights).direction is None
    found = one(net, planted(1e160, 3, planted(1e160)), weights=weights)
    assert (found.example, found.others) == (3, 0)
    every = one(net, planted(1e160, 3, planted(1e160)))
    assert (every.example, every.others) == (3, 1)
    assert str(every).endswith("example 3 of the batch (and 1 more)")


def test_rows_that_only_fill_the_batch_up_are_named_where_they_spoil_it():
    """A short last batch has zeros there, which this layer makes no numbers of."""
    net = jbp.serial(jbp.Dense(4, use_bias=False), Unit(), jbp.Dense(2))
    error = diverged(net, X[:10], y=Y[:10])
    place: Any = error.place
    assert (place.direction, place.layer, place.step, place.example) == ("forward h", "net[1] Unit()", 3, 2)
    assert "only fills the batch up" in str(error)


def test_a_layer_that_couples_the_examples_is_named_for_all_of_them_with_the_largest():
    x = planted(1.4e308, 5, planted(1.2e308))
    found = one(jbp.serial(jbp.BatchNorm(), jbp.Dense(2)), x, rows=np.arange(N) + 100)
    assert (found.direction, found.layer, found.example) == ("forward h", "net[0] BatchNorm()", None)
    assert str(found).endswith(
        "couples the examples; the largest number came from example 5, row 105 of the training data"
    )


def test_what_a_transform_makes_of_an_example_is_named():
    def transform(x: Any, key: Any) -> Any:
        return x if key is None else jnp.where(jnp.abs(x) > 1e4, jnp.inf, x)

    found = one(TRAPPED, planted(1e6), transform=transform)
    assert (found.direction, found.example) == ("input", ROW)
    assert "input of the net, example 17 of the batch" in str(found)


def test_parameters_that_were_not_finite_before_are_named():
    params, _ = TRAPPED.init(jax.random.key(0), (WIDTH,))
    params[2]["weight"] = params[2]["weight"].at[0, 0].set(jnp.inf)
    error = diverged(TRAPPED, X, params=params)
    place: Any = error.place
    assert (place.direction, place.layer, place.parameter) == ("parameters", "net[2] Dense(2)", "params[2]['weight']")
    assert (error.step, place.step) == (1, 1)


def test_a_shared_parameter_whose_uses_overflow_only_together_is_named():
    """Each use has the gradient 1.2e308."""
    net = jbp.tied(
        jbp.serial(jbp.Dense(1, use_bias=False), jbp.Dense(1, use_bias=False)), {(1, "weight"): (0, "weight")}
    )
    params = ({"weight": jnp.ones((1, 1))}, {"weight": ()})
    found = one(net, np.full((1, 1), 1e154), y=np.full((1, 1), 0.4e154), params=params)
    assert (found.direction, found.parameter, found.example) == ("gradient", "params[0]['weight']", None)
    assert str(found).endswith("the sum over its uses")


LAW: dict[str, tuple[Any, Any]] = {name: (net, None) for name, (net, *_) in FORWARD.items()} | {
    "dropout in a stack": (
        jbp.serial(jbp.repeat(jbp.serial(jbp.Dense(4), jbp.tanh, jbp.Dropout(0.5)), 2), jbp.Dense(2)), None,
    ),
    "a stack in a stack": (jbp.serial(jbp.repeat(jbp.repeat(jbp.Dense(4), 2), 2), jbp.Dense(2)), None),
    "feedback alignment": (DEEP, jbp.rules.FeedbackAlignment()),
    "direct feedback alignment": (DEEP, jbp.rules.DirectFeedbackAlignment()),
}  # fmt: skip


@pytest.mark.parametrize("name", LAW)
def test_layer_by_layer_the_step_is_the_compiled_one(name):
    net, method = LAW[name]
    problem = jbp.Problem(net, LOSS, SGD, method=method)
    state = jbp.init_state(problem, (WIDTH,), seed=2)
    key, counts = jax.random.key(5), np.ones(N, bool)
    batch = transformed_batch(problem, weighed_batch(jbp.Batch(jnp.asarray(X), jnp.asarray(Y))), key)
    seen = blame._Seen(problem, state.params, None)
    seen.begin(0, counts, False)
    grads = blame._part(seen, state, batch, key)
    assert seen.first is None
    wanted = jax.jit(lambda: problem.method.sums(problem, state, batch, key).grads)()
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert not any("#" in name for name in seen.names.values())
    made = [place for place, layer, back in seen.visits if not back and not isinstance(layer, Combinator)]
    assert len(made) == len(seen.names)


class Run(NamedTuple):
    """A run whose way back breaks late, and what it is told."""

    x: np.ndarray
    options: dict[str, Any]


@pytest.fixture
def late() -> Run:
    """Its planted row comes in one of the last steps of the first epoch."""
    row = rows_of(5)[1]
    return Run(planted(1e6, row), {"epochs": 2, "batch_size": BATCH, "seed": 3, "chunk_steps": 3})


@pytest.mark.parametrize(
    ("chunk", "every", "first"), [(3, "1steps", 3), (3, "100steps", 0), (1, "2steps", 4), (5, "1steps", 0)]
)
def test_the_steps_are_taken_again_from_the_last_sound_checkpoint_else_from_the_start(
    late, tmp_path, monkeypatch, chunk, every, first
):
    """In the last case the one checkpoint, after step 5, has parameters that are not finite."""
    taken: list[int] = []
    real = replay.Replay._take

    def counting(self: Any, state: Any, first: int, last: int) -> Any:
        taken.extend(range(first, last))
        return real(self, state, first, last)

    monkeypatch.setattr(replay.Replay, "_take", counting)
    events: list[int] = []
    error = diverged(TRAPPED, late.x, save_to=tmp_path, save_every=every, keep=3,
                     callbacks=(lambda event: events.append(event.step),),
                     **late.options | {"chunk_steps": chunk})  # fmt: skip
    place: Any = error.place
    assert (place.direction, place.layer, place.step, place.example) == ("backward δ", "net[1] Trap()", 5, 1)
    assert min(taken) == first
    assert events == list(range(chunk, 6, chunk))
    with np.load(tmp_path / "bad_batch.npz", allow_pickle=False) as file:
        kept = dict(file)
    assert error.batch == tmp_path / "bad_batch.npz"
    assert str(error).endswith(f"its batch is kept in {tmp_path / 'bad_batch.npz'}")
    assert kept["rows"].tolist() == rows_of(5)
    assert (kept["x"] == late.x[rows_of(5)]).all() and (kept["y"] == Y[rows_of(5)]).all()
    assert (kept["step"], kept["epoch"], "weights" in kept) == (5, 1, False)


class Pairs:
    """Batches that can be begun again."""

    def __init__(self, x: np.ndarray):
        self.x = x

    def __iter__(self) -> Any:
        return iter((self.x[i : i + BATCH], Y[i : i + BATCH]) for i in range(0, N, BATCH))


@pytest.mark.parametrize("every", ["1steps", "100steps"])
@pytest.mark.parametrize("kind", ["rows", "stream", "generator"])
def test_in_data_that_are_streamed_the_example_is_named_and_the_row_where_there_are_numbers(
    kind, every, tmp_path, monkeypatch
):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1)  # each step in a block of its own, which is read anew
    x = planted(1e6)
    data: Any = {
        "rows": lambda: (Rows(x), Y), "stream": lambda: Stream(Pairs(x), steps=6),
        "generator": lambda: Stream(iter(Pairs(x)), steps=6),
    }[kind]()  # fmt: skip
    given: dict[str, Any] = {"batch_size": BATCH} if kind == "rows" else {}
    with pytest.raises(jbp.Diverged) as caught:
        jbp.fit(TRAPPED, LOSS, SGD, data, epochs=1 if kind == "generator" else 2, seed=3, chunk_steps=2,
                save_to=tmp_path, save_every=every, **given)  # fmt: skip
    place: Any = caught.value.place
    if kind == "generator":  # what it gave is gone
        assert place.direction is None
        assert "could not be taken again to see where" in str(caught.value)
        return
    if kind == "rows":
        check(caught.value, "backward δ", "net[1] Trap()")
    else:  # row 17 is the second of the fifth batch
        assert (place.direction, place.layer, place.step) == ("backward δ", "net[1] Trap()", 5)
        assert (place.example, place.row) == (1, None)
    with np.load(tmp_path / "bad_batch.npz", allow_pickle=False) as kept:
        assert (kept["x"][place.example] == x[ROW]).all()
        assert ("rows" in kept) == (kind == "rows")


def test_a_run_that_is_taken_up_again_finds_the_same(late, tmp_path):
    whole = diverged(TRAPPED, late.x, **late.options)
    saved: dict[str, Any] = {"save_to": tmp_path, "save_every": "1steps"}
    jbp.fit(TRAPPED, LOSS, SGD, (late.x, Y), **late.options, **saved, callbacks=(lambda event: event.step == 3,))
    error = diverged(TRAPPED, late.x, resume=True, **saved, **late.options)
    assert error.place == whole.place
    assert error.step == whole.step == 6


def test_a_long_search_says_so(late, monkeypatch, capsys):
    monkeypatch.setattr(replay, "_PATIENCE", -1.0)
    diverged(TRAPPED, late.x, progress=True, **late.options)
    assert "taking 5 steps again, to find the first number that is not finite" in capsys.readouterr().err
    diverged(TRAPPED, late.x, **late.options)
    assert capsys.readouterr().err == ""


def test_a_loss_that_is_finite_when_the_step_is_taken_again_is_a_machines_fault(monkeypatch):
    from jbp.train.program import Ledger

    real = Ledger.first

    def faulty(self: Any, steps: int) -> Any:
        losses, *others = real(self, steps)
        losses = losses.copy()
        losses[4:5] = np.nan
        return losses, *others

    monkeypatch.setattr(Ledger, "first", faulty)
    error = diverged(TRAPPED, X, chunk_steps=3)
    assert error.step == 5
    assert error.place is not None and error.place.direction is None
    assert "taken again, every step is finite: a fault of the machine, or of another device" in str(error)


def test_a_search_ends_when_it_is_told_to(late, monkeypatch):
    real = replay.Replay.find
    monkeypatch.setattr(replay.Replay, "find", lambda self, step, like, stops: real(self, step, like, lambda: True))
    error = diverged(TRAPPED, late.x, **late.options)
    assert str(error).endswith("the search for the first number that is not finite was interrupted")


def test_what_hinders_the_search_does_not_hide_that_the_run_has_diverged(late, monkeypatch):
    def broken(*args: Any, **others: Any) -> Any:
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(replay, "first_bad", broken)
    assert "could not be taken again to see where (RESOURCE_EXHAUSTED)" in str(
        diverged(TRAPPED, late.x, **late.options)
    )


PRIVATE = jbp.Private(100.0, 1.0, 1e-3)


def test_a_private_run_ends_with_its_parameters_and_names_nothing(tmp_path, monkeypatch):
    def asked(*args: Any, **others: Any) -> Any:
        raise AssertionError("a private run is not taken again")

    monkeypatch.setattr(replay.Replay, "find", asked)
    monkeypatch.setattr(jbp.Private, "epsilon", lambda *_: 1.0)  # the account is not what this is about
    huge = jbp.optim.sgd(lambda step: jnp.where(jnp.asarray(step) < 8, 1e-3, 1e308))
    options = {"private": PRIVATE, "save_to": tmp_path, "save_every": "1steps", "chunk_steps": 2, "epochs": 4}
    error = diverged(TRAPPED, X, optimizer=huge, **options)
    assert (error.place, error.batch) == (None, None)
    assert str(error).startswith(f"the parameters are no longer finite after step {error.step}: ")
    assert not any(word in str(error) for word in ("example", "row", "batch"))
    assert not (tmp_path / "bad_batch.npz").exists()
    # A loss alone ends nothing, nor says anything.
    fitted = jbp.fit(TRAPPED, LOSS, SGD, (planted(1e200), Y), epochs=2, batch_size=BATCH, seed=3, private=PRIVATE)
    assert np.isinf(fitted.step_losses).any() and len(fitted.step_losses) == 12


@pytest.mark.parametrize("options", [{"private": PRIVATE}, {"in_place": True}])
def test_what_cannot_skip_is_refused(options):
    with pytest.raises(ValueError, match="expected on_bad='stop'"):
        jbp.fit(TRAPPED, LOSS, SGD, (X, Y), on_bad="skip", **options)
    with pytest.raises(ValueError, match="on_bad must be 'stop' or 'skip', but is 'restore'"):
        jbp.fit(TRAPPED, LOSS, SGD, (X, Y), on_bad="restore")  # type: ignore[arg-type]


@pytest.mark.parametrize("planting", ["loss", "parameters"])
def test_a_step_that_is_skipped_leaves_everything_as_it_was(planting):
    """Whether the loss shows it or only the parameters after it."""
    net, value = (FORWARD["serial"][0], 1e160) if planting == "loss" else (TRAPPED, 1e6)
    momentum, states = jbp.optim.sgd(1e-3, momentum=0.9), []
    with pytest.warns(UserWarning, match="2 of 12 steps were skipped, the first of them step") as said:
        fitted = jbp.fit(
            net, LOSS, momentum, (planted(value), Y), epochs=2, batch_size=BATCH, seed=3, chunk_steps=1,
            rule="kolen_pollack", on_bad="skip", metrics={"one": lambda output, target: output.sum()},
            callbacks=(lambda event: states.append(jax.device_get(
                (event.state.params, event.state.opt_state, event.state.method_state))),),
        )  # fmt: skip
    skipped = [step for step in range(1, 13) if ROW in rows_of(step)]
    assert fitted.skipped_steps == len(skipped) == 2
    assert f"step {skipped[0]}" in str(said[0].message)
    assert np.flatnonzero(np.isnan(fitted.step_losses)).tolist() == [step - 1 for step in skipped]
    for step in range(2, 13):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), states[step - 1], states[step - 2])
        assert jax.tree.all(same) == (step in skipped)
    sound = [s - 1 for s in range(1, 7) if s not in skipped]
    assert fitted.history[0]["train_loss"] == pytest.approx(fitted.step_losses[sound].mean(), rel=1e-12)
    assert np.isfinite(fitted.history[0]["train_one"])


def test_a_run_that_skips_nothing_is_the_run_that_stops(late):
    stops = jbp.fit(TRAPPED, LOSS, SGD, (X, Y), **late.options)
    skips = jbp.fit(TRAPPED, LOSS, SGD, (X, Y), on_bad="skip", **late.options)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), stops.params, skips.params))
    assert (stops.step_losses == skips.step_losses).all()
    assert (stops.skipped_steps, skips.skipped_steps) == (None, 0)


def test_skipped_steps_go_through_json_and_are_in_the_figures_of_a_run(late, tmp_path):
    states: list[jbp.Event] = []
    with pytest.warns(UserWarning, match="1 of 5 steps"):
        jbp.fit(TRAPPED, LOSS, SGD, (late.x, Y), on_bad="skip", save_to=tmp_path, save_every="1steps",
                **late.options | {"chunk_steps": 5}, callbacks=(lambda event: event.step == 5,))  # fmt: skip
    with pytest.warns(UserWarning, match="2 of 12 steps"):
        whole = jbp.fit(TRAPPED, LOSS, SGD, (late.x, Y), on_bad="skip", **late.options)
    with pytest.warns(UserWarning, match="2 of 12 steps"):
        resumed = jbp.fit(TRAPPED, LOSS, SGD, (late.x, Y), on_bad="skip", save_to=tmp_path, save_every="1steps",
                          resume=True, **late.options, callbacks=(states.append,))  # fmt: skip
    assert states[0].step == 6
    assert (resumed.skipped_steps, whole.skipped_steps) == (2, 2)
    np.testing.assert_array_equal(resumed.step_losses, whole.step_losses)
    assert runs.fit_figures(resumed)["skipped_steps"] == 2
    assert "skipped_steps" not in runs.fit_figures(jbp.fit(TRAPPED, LOSS, SGD, (X, Y), **late.options))


def test_good_steps_pay_nothing_under_stop():
    """The program's FLOPs and bytes are those of the bare loop over steps, written out here."""
    problem, reader = jbp.Problem(TRAPPED, LOSS, SGD), Resident("shuffle", BATCH, N)
    take = step_function(problem)

    def bare(state: Any, book: Any, chunk: Any, epoch: Any, first: Any, last: Any) -> Any:
        order_key, noise_key = epoch_keys(state.key, epoch)
        chunk = reader.prepared(chunk, state.key, epoch)

        def step(t: Any, carried: Any) -> Any:
            params, opt_state, book, method_state = carried
            before = jbp.State(params, opt_state, method_state, state.key, epoch, t)
            batch = reader.batch(chunk, order_key, t)
            after, (loss, values) = take(before, batch, step_key(noise_key, t))
            return after.params, after.opt_state, noted(book, t, loss, values, batch), after.method_state

        carried = state.params, state.opt_state, book, state.method_state
        params, opt_state, book, method_state = lax.fori_loop(first, last, step, carried)
        now = jnp.asarray(epoch, jnp.int32), jnp.asarray(last, jnp.int32)
        return jbp.State(params, opt_state, method_state, state.key, *now), book

    state = jbp.init_state(problem, (WIDTH,), seed=0)
    source = ResidentSource((jnp.asarray(X), jnp.asarray(Y)), None, reader, 1)
    arguments = state, ledger(6, 0), source.chunk(state.key, 1, 0, 6), 1, 0, 6

    def cost(program: Any) -> tuple[float, float, int]:
        compiled = program.lower(*arguments).compile()
        found = compiled.cost_analysis()
        return found["flops"], found["bytes accessed"], compiled.memory_analysis().temp_size_in_bytes

    stop, skip = (cost(steps_program(problem, reader, 1, skips)) for skips in (False, True))
    assert stop == cost(jax.jit(bare, donate_argnums=(0, 1)))
    assert skip[1] > stop[1]


def test_a_progress_with_skipped_steps_goes_through_json():
    aim = Aim("train_loss", None, 0.0, None, False)
    before = Progress(aim, (), (4, 4))
    seen = see(before, Steps(1, np.array([1.0, np.nan]), np.zeros((2, 0)), skips=True))
    assert (seen.skipped, seen.loss, seen.stop_reason) == ((2,), 1.0, None)
    again = Progress.from_json(seen.to_json())
    assert again.skipped == seen.skipped and again.loss == seen.loss
