"""Data larger than memory: rows by their numbers and streams of batches train as data in memory do, and resume."""

import dataclasses
import json
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbp
from jbp.data import Bounds, Rows, Standardizer, Stream, split
from jbp.durable.manifest import MANIFEST
from jbp.rows import Batches, Unreadable
from jbp.train import BadBatch, streams
from jbp.train.ahead import AHEAD, Ahead
from jbp.train.batches import _sorted_by
from jbp.train.clocks import Length
from jbp.train.streams import Blocks, opened

N, WIDTH, K, SIZE = 23, 5, 3, 4
X = np.random.default_rng(0).normal(size=(N, WIDTH))
Y = np.random.default_rng(1).integers(0, K, N)
STEPS = -(-N // SIZE)
NET = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dropout(0.2), jbp.Dense(K))
BURSTS = jbp.serial(jbp.Dense(7), jbp.relu, jbp.Dense(K))
LOSS = jbp.losses.softmax_cross_entropy
SGD = jbp.optim.sgd(0.1, momentum=0.9)
ACCURACY = {"accuracy": jbp.accuracy}


@pytest.fixture(autouse=True)
def blocks_of_two_steps(monkeypatch: pytest.MonkeyPatch):
    """So that an epoch has several blocks, the last of them not full."""
    monkeypatch.setattr(streams, "BLOCK_BYTES", 2 * SIZE * (X[:1].nbytes + Y[:1].nbytes))


def run(data: Any, **options: Any) -> jbp.Fit:
    usual = {"epochs": 3, "seed": 5, "metrics": ACCURACY}
    return jbp.fit(NET, LOSS, SGD, data, **(usual | options))


def same_bits(a: jbp.Fit, b: jbp.Fit) -> None:
    for one, other in zip(jax.tree.leaves(a.state.params), jax.tree.leaves(b.state.params), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert a.step_losses.tobytes() == b.step_losses.tobytes()
    rows = [[{k: v for k, v in row.items() if "second" not in k} for row in fit.history] for fit in (a, b)]
    assert rows[0] == rows[1] and (a.start, a.best_epoch, a.stop_reason) == (b.start, b.best_epoch, b.stop_reason)


def mapped(folder: Path, name: str, *parts: np.ndarray) -> Rows:
    """Rows of .npy files, one for each part."""
    for i, part in enumerate(parts):
        np.save(folder / f"{name}-{i:03}.npy", part)
    return Rows([np.load(folder / f"{name}-{i:03}.npy", mmap_mode="r") for i in range(len(parts))])


def batches(size: int = SIZE, x: np.ndarray = X, y: np.ndarray = Y) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_read_by_number_slice_and_mask_across_shards(tmp_path: Path):
    rows = mapped(tmp_path, "x", X[:7], X[7:8], X[8:])
    numbers = np.asarray([22, 7, 0, 7, 8])
    assert (len(rows), rows.shape, rows.dtype, rows.ndim) == (N, (N, WIDTH), X.dtype, 2)
    for index in (numbers, slice(5, 12), slice(None, None, 4), X[:, 0] > 0, -1, 3):
        np.testing.assert_array_equal(rows[index], X[index])
    np.testing.assert_array_equal(np.asarray(rows), X)
    np.testing.assert_array_equal(np.concatenate(list(rows.blocks(6))), X)
    view = rows.take(numbers).mapped(lambda a: 2 * a[:, :2]).take(np.asarray([0, 3]))
    assert view.shape == (2, 2)
    np.testing.assert_array_equal(view[:], 2 * X[[22, 7], :2])
    for index, words in ((np.asarray([23]), "0…22"), (np.asarray([0.5]), "by numbers"), (np.ones(3, bool), "mask")):
        with pytest.raises(IndexError, match=words):
            rows[index]


def test_rows_ask_what_is_stored_for_each_row_once_and_in_order():
    """As h5py wants to be asked."""

    class Stored:
        shape, dtype, asked = X.shape, X.dtype, []

        def __len__(self) -> int:
            return N

        def __getitem__(self, numbers: Any) -> np.ndarray:
            self.asked.append(np.asarray(numbers).tolist())
            return X[numbers]

    np.testing.assert_array_equal(Rows(Stored())[np.asarray([9, 2, 9, 4])], X[[9, 2, 9, 4]])
    assert Stored.asked == [[2, 4, 9]]


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ([], "but have rows of no part"),
        ([X, X[:, :2]], r"must have one shape and dtype, but have rows of float64\[2\], float64\[5\]"),
        (np.zeros((0, 3)), "at least one"),
        (np.asarray(["a", "b"]), "must be numbers, but are <U1"),
        (3, r"must be an array \[n, ...\] or a list of some"),
    ],
    ids=["no part", "two shapes", "none", "text", "no array"],
)
def test_what_are_no_rows_is_refused(stored: Any, words: str):
    with pytest.raises(ValueError, match=words):
        Rows(stored)


OPTIONS: dict[str, dict[str, Any]] = {
    "shuffle, a short last batch": {},
    "shuffle, batches that divide": {"batch_size": 1},
    "replacement": {"sampling": "replacement"},
    "weights": {"weights": np.arange(N) % 3},
    "weights, replacement": {"weights": np.arange(N) % 3, "sampling": "replacement"},
    "chunks of one step": {"chunk_steps": 1},
    "the usual batch size": {"batch_size": None},
    "a transform": {"transform": lambda x, key: x * (1.0 if key is None else jax.random.uniform(key))},
    "in place": {"in_place": True},
    "accumulated": {"accumulate": 2},
    "patience": {"patience": 1, "epochs": 8},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_rows_train_to_the_bits_of_data_in_memory(tmp_path: Path, options: dict[str, Any]):
    x, y = mapped(tmp_path, "x", X[:9], X[9:]), mapped(tmp_path, "y", Y)
    options = {"batch_size": SIZE, "validation_data": (X[:9], Y[:9])} | options
    same_bits(run((x, y), **options), run((X, Y), **options))


def test_targets_may_be_in_memory_and_inputs_standardised_as_they_are_read(tmp_path: Path):
    scale, x = Standardizer.fit(X), mapped(tmp_path, "x", X)
    assert isinstance(scale(x), Rows) and scale(x).dtype == np.float32
    wide = scale(x).mapped(lambda rows: rows.astype(np.float64))
    same_bits(run((wide, Y), batch_size=SIZE), run((scale(X).astype(np.float64), Y), batch_size=SIZE))
    bounds = Bounds(np.full(WIDTH, -1.0), np.full(WIDTH, 2.0))
    np.testing.assert_array_equal(np.asarray(bounds(x)), bounds(X))
    assert bounds.outside(x) == bounds.outside(X) > 0


def test_validation_by_rows_has_the_bits_of_data_in_memory_and_by_a_stream_its_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.modules["jbp.train.fit"], "BLOCK", 5)  # several blocks, the last of which begins early
    monkeypatch.setattr("jbp.train.loop.BLOCK", 5)
    x, y = mapped(tmp_path, "x", X), mapped(tmp_path, "y", Y)
    whole = run((X, Y), batch_size=SIZE, validation_data=(X, Y))
    same_bits(run((X, Y), batch_size=SIZE, validation_data=(x, y)), whole)
    streamed = run((X, Y), batch_size=SIZE, validation_data=Stream(batches()))
    assert (streamed.step_losses == whole.step_losses).all() and streamed.start.keys() == whole.start.keys()
    for ours, theirs in zip((streamed.start, *streamed.history), (whole.start, *whole.history), strict=True):
        for name in ("validation_loss", "validation_accuracy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-13)


def test_rows_are_held_out_as_those_of_arrays_are(tmp_path: Path):
    x, y = mapped(tmp_path, "x", X[:4], X[4:]), mapped(tmp_path, "y", Y)
    parts, arrays = split(x, y, 0.3, seed=2), split(X, Y, 0.3, seed=2)
    assert all(isinstance(part, Rows) for part in parts)
    for part, array in zip(parts, arrays, strict=True):
        np.testing.assert_array_equal(np.asarray(part), array)
    held = {"validation_data": parts[2:], "batch_size": SIZE}
    same_bits(run(parts[:2], **held), run(arrays[:2], **held | {"validation_data": arrays[2:]}))


def test_nothing_is_compiled_after_the_first_chunk(tmp_path: Path):
    compiled, chunks = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    net = jbp.serial(jbp.Dense(9), jbp.tanh, jbp.Dense(K))  # its own, so that the first chunk does compile
    seen = (lambda event: chunks.append(len(compiled)),)
    jbp.fit(net, LOSS, SGD, (mapped(tmp_path, "x", X), Y), epochs=3, batch_size=SIZE, chunk_steps=2, callbacks=seen)
    assert len(chunks) == 3 * 3 and chunks[0] > 0
    assert set(chunks) == {chunks[0]}


def test_the_order_of_an_epoch_takes_the_bytes_that_are_documented():
    n = 200_000
    rounds = jax.random.bits(jax.random.key(0), (2, n), jnp.uint32)
    tracemalloc.start()
    order = _sorted_by(rounds, 7)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / n < 8.1 and peak / n < 24.5  # beside 4 for each of the rounds
    assert (np.sort(order[:n]) == np.arange(n)).all() and not order[n:].any()


# ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_trains_on_its_batches_as_a_step_does_one_by_one():
    """The last of an epoch may be short: it counts by its rows."""
    epochs = 2
    fitted = run(Stream(batches()), epochs=epochs)
    problem = jbp.Problem(NET, LOSS, SGD, metrics=ACCURACY)
    state, step, losses = jbp.init_state(problem, (WIDTH,), seed=5), jbp.make_step(problem), []
    for epoch in range(epochs):
        state = dataclasses.replace(state, epoch=jnp.int32(epoch + 1), step=jnp.int32(0))
        for x, y in batches():
            x_filled, y_filled = (np.concatenate([a, a[:1].repeat(SIZE - len(a), 0)]) for a in (x, y))
            state, figures = step(state, jbp.Batch(x_filled, y_filled, (np.arange(SIZE) < len(x)).astype(float)))
            losses.append(float(figures.loss))
    np.testing.assert_allclose(fitted.step_losses, losses, rtol=1e-13)
    for one, other in zip(jax.tree.leaves(fitted.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)
    mean = np.average(losses[:STEPS], weights=[SIZE] * (STEPS - 1) + [N % SIZE])
    assert fitted.history[0]["train_loss"] == pytest.approx(mean, rel=1e-12)


def test_a_stream_goes_on_from_epoch_to_epoch_and_begins_anew_where_it_ends():
    endless = run(Stream(iter(batches(2)[:10]), steps=5), epochs=2)
    again = run(Stream(batches(2)[:5] + batches(2)[5:10], steps=5), epochs=4)
    assert (endless.step_losses == again.step_losses[:10]).all()
    assert len(again.step_losses) == 20


class Shuffled:
    """Batches in an order of their own, whose iterator says where it is: in one dict, which it goes on changing."""

    def __init__(self, seed: int = 3):
        self.seed = seed

    def __iter__(self) -> Any:
        return _Shuffled(self.seed)


class _Shuffled:
    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.state: dict[str, Any] = {"count": 0, "half": (b"\x00\xff", np.float64(0.5))}

    def __next__(self) -> Any:
        self.state["count"] += 1
        rows = np.random.default_rng(self.state["count"]).integers(0, N, SIZE)
        return X[rows].tolist(), Y[rows]

    def get_state(self) -> dict[str, Any]:
        return self.state

    def set_state(self, state: dict[str, Any]) -> None:
        assert state["half"] == (b"\x00\xff", 0.5) and isinstance(state["half"][1], np.float64)
        self.state = state


def grain_data() -> Any:
    grain = pytest.importorskip("grain")
    source = grain.MapDataset.source(np.arange(N)).shuffle(seed=4).map(lambda i: (X[i], Y[i])).repeat()
    return source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)).batch(SIZE)


def grain_loader() -> Any:
    grain = pytest.importorskip("grain")
    pairs = list(zip(X, Y, strict=True))
    sampler = grain.samplers.IndexSampler(N, grain.sharding.NoSharding(), shuffle=True, seed=4)
    batch = [grain.transforms.Batch(SIZE)]
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return grain.DataLoader(data_source=pairs, sampler=sampler, operations=batch, read_options=options)


class Counted:
    """An iterable that counts the batches that are asked of it."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in batches():
            self.count += 1
            yield batch


SOURCES: dict[str, Callable[[Path], Any]] = {
    "rows": lambda folder: (mapped(folder, "x", X[:9], X[9:]), Y),
    "an iterable": lambda folder: Stream(batches()),
    "an iterator with a state": lambda folder: Stream(Shuffled(), steps=STEPS),
    "a data set of grain": lambda folder: Stream(grain_data(), steps=STEPS),
    "a loader of grain": lambda folder: Stream(grain_loader(), steps=STEPS),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("stop", [1, 3, STEPS, STEPS + 3])
def test_a_run_is_taken_up_at_the_step_where_it_stopped(tmp_path: Path, name: str, stop: int):
    """The thread is ahead of the step: what is saved is where the step is."""
    make, size = SOURCES[name], {"batch_size": SIZE if name == "rows" else None}
    whole = run(make(tmp_path), **size)
    saving = {"save_to": tmp_path / "run", "chunk_steps": 1, **size}
    stopped = run(make(tmp_path), callbacks=(lambda event: event.step >= stop,), **saving)
    assert len(stopped.step_losses) == stop
    position = json.loads((tmp_path / "run" / "checkpoints" / str(stop) / MANIFEST).read_text())["about"]["source"]
    if name == "rows":
        assert position is None
    else:
        assert position["taken"] == stop and (position["own"] is None) == (name == "an iterable")
    resumed = run(make(tmp_path), resume=True, **saving)
    assert resumed.resumed_at == (stop,)
    same_bits(resumed, whole)


def test_an_iterable_is_gone_through_once_more_up_to_where_the_run_was(tmp_path: Path):
    saving = {"save_to": tmp_path, "chunk_steps": 1}
    run(Stream(Counted(), steps=STEPS), callbacks=(lambda event: event.step >= STEPS + 2,), **saving)
    counted = Counted()
    run(Stream(counted, steps=STEPS), resume=True, **saving)
    assert counted.count == 3 * STEPS


def test_other_data_than_the_runs_are_refused(tmp_path: Path):
    saving = {"save_to": tmp_path / "run", "batch_size": SIZE}
    run((mapped(tmp_path, "x", X), Y), callbacks=(lambda event: True,), **saving)
    with pytest.raises(ValueError, match=r"the run there was begun with another data: resume with the same"):
        run((mapped(tmp_path, "other", X + 1), Y), resume=True, **saving)


class Whole:
    """Blocks of a source as NumPy has them; a data set as grain's own test wants it."""

    def __init__(self, make: Callable[[], Any]):
        self.make = make

    def __iter__(self) -> Any:
        data = opened("train_data", self.make())
        assert data is not None
        data.check = lambda x, y, weights: None
        source = data.source(data.batch_size(None if data.usual else SIZE), "shuffle", None, Length(2))

        class Numbers(Blocks):
            def __next__(self) -> Any:
                found = super().__next__()
                return jax.tree.map(np.asarray, tuple(found.block[:3])), found.first, found.last

        return Numbers(source, jax.random.key(7))


@pytest.mark.parametrize("name", SOURCES)
def test_grains_own_test_of_checkpoints_passes(tmp_path: Path, name: str):
    """It is not public in grain 0.2.18: grain._src.python.testing.experimental."""
    testing = pytest.importorskip("grain._src.python.testing.experimental")
    testing.assert_equal_output_after_checkpoint(Whole(lambda: SOURCES[name](tmp_path)))
    if name != "rows":
        testing.assert_equal_output_after_checkpoint(SOURCES[name](tmp_path))


# ── What goes wrong ─────────────────────────────────────────────────────────────────────────────────────────────────

Batch = tuple[Any, Any]


def spoilt(at: int, batch: Any) -> Iterator[Any]:
    for i, good in enumerate(batches(2)[:8]):
        if i == at and isinstance(batch, Exception):
            raise batch
        yield batch if i == at else good


def with_nan(rows: int = 2) -> np.ndarray:
    x = X[:rows].copy()
    x[1, 3] = np.nan
    return x


BAD: dict[str, tuple[Callable[[], Any], int, str]] = {
    "ends early": (lambda: batches(2)[:6], 7, "there is none: the stream has ended, but an epoch has 8: give steps="),
    "another shape": (
        lambda: spoilt(5, (X[:2, :4], Y[:2])), 6,
        r"it is x float64\[2, 4\], y int64\[2\], where the first was x float64\[2, 5\], y int64\[2\]$",
    ),
    "another dtype": (
        lambda: spoilt(5, (X[:2].astype(np.float32), Y[:2])), 6, r"it is x float32\[2, 5\].*the first was x float64",
    ),
    "fewer rows": (lambda: spoilt(5, (X[:1], Y[:1])), 6, "only the last batch of an epoch may have fewer rows"),
    "more rows": (lambda: spoilt(7, (X[:3], Y[:3])), 8, r"it is x float64\[3, 5\]"),
    "raises": (lambda: spoilt(5, OSError("the disk\nis gone")), 6, "could not be read: OSError: the disk is gone"),
    "no pair": (lambda: spoilt(5, X[:2]), 6, r"it must be a pair \(x, y\) of arrays, but is a ndarray"),
    "text": (lambda: spoilt(5, (X[:2], ["a", "b"])), 6, "y must be an array .* of numbers, but is an array <U1"),
    "no row": (lambda: spoilt(5, (X[:0], Y[:0])), 6, "as many targets as inputs, at least one"),
    "not finite": (lambda: spoilt(5, (with_nan(), Y[:2])), 6, r"x must be finite, but is not in row 1, at \[3\]"),
    "no class": (lambda: spoilt(5, (X[:2], np.asarray([0, K]))), 6, "y must hold classes 0…2.*but row 1 has 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_ends_the_run_in_one_line_with_its_number(name: str):
    make, number, words = BAD[name]
    with pytest.raises(BadBatch, match=f"^batch {number} of train_data: .*{words}") as caught:
        run(Stream(make(), steps=8), chunk_steps=1, epochs=1)
    error = caught.value
    assert error.batch == number and "\n" not in str(error)
    fitted = error.result
    # Up to the block of the bad batch, of four steps of two rows.
    assert fitted.stop_reason == "bad batch" and len(fitted.step_losses) == 4
    assert (fitted.step_losses == run(Stream(batches(2)[:4]), epochs=1).step_losses).all()


def test_a_stream_that_can_be_gone_through_once_says_so_where_it_is_wanted_again():
    with pytest.raises(BadBatch, match=r"batch 6 of train_data: .*it is empty, or can be gone through only once"):
        run(Stream(iter(batches(2)[:5]), steps=5), epochs=2)
    with pytest.raises(BadBatch, match=r"batch 1 of validation_data: .*can be gone through only once"):
        run((X, Y), batch_size=SIZE, validation_data=Stream(iter(batches()), steps=STEPS))
    with pytest.raises(Unreadable, match=r"^batch 1 of train_data: there is none"):
        run(Stream([], steps=3))


def test_bad_rows_are_named_by_batch_and_by_their_number_in_the_data(tmp_path: Path):
    spoilt_x, spoilt_y = X.copy(), Y.copy()
    spoilt_x[17, 3], spoilt_y[9] = np.inf, -1
    with pytest.raises(
        BadBatch, match=r"^batch \d of train_data: x must be finite.*at \[3\]; that is row 17 of the"
    ) as e:
        run((mapped(tmp_path, "x", spoilt_x), Y), batch_size=SIZE)
    data = opened("train_data", (Rows(X), Y))
    source: Any = data and data.source(SIZE, "shuffle", None, Length(1))
    key = jbp.init_state(jbp.Problem(NET, LOSS, SGD), (WIDTH,), seed=5).key
    numbers = source._numbers(key, 1, 0, STEPS)
    assert e.value.batch == np.flatnonzero(numbers == 17)[0] // SIZE + 1
    with pytest.raises(BadBatch, match=r"y must hold classes 0…2.*that is row 9 of the data"):
        run((Rows(X), mapped(tmp_path, "y", spoilt_y)), batch_size=SIZE)
    with pytest.raises(BadBatch, match=r"^batch 1 of validation_data: x must be finite"):
        run((X, Y), batch_size=SIZE, validation_data=(Rows(spoilt_x), Y))


def test_rows_that_cannot_be_read_are_a_bad_batch():
    def gone(rows: np.ndarray) -> np.ndarray:
        if len(rows) > 1:
            raise OSError("the disk is gone")
        return rows

    with pytest.raises(BadBatch, match=r"^batch 1 of train_data: could not be read: OSError: the disk is gone$"):
        run((Rows(X).mapped(gone), Y), batch_size=SIZE)


def test_a_bad_batch_loses_nothing_that_was_saved_and_the_run_goes_on_from_before_it(tmp_path: Path):
    failing = [True]

    class Flaky:
        def __iter__(self) -> Iterator[Any]:
            for i, batch in enumerate(batches(2)[:8]):
                if i == 5 and failing[0]:
                    raise OSError("the network is gone")
                yield batch

    saving = {"save_to": tmp_path, "save_every": "1epoch"}
    with pytest.raises(BadBatch, match=r"network is gone, saved in .* at step 4: resume goes on from there$"):
        run(Stream(Flaky(), steps=8), **saving)
    failing[0] = False
    resumed = run(Stream(Flaky(), steps=8), resume=True, **saving)
    assert resumed.resumed_at == (4,)
    same_bits(resumed, run(Stream(batches(2)[:8])))


ROWS = Rows(X), Y
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "private": (
        lambda: run(ROWS, private=jbp.Private(1.0, 1.0, 1e-5), metrics={}, batch_size=SIZE),
        "train_data is read while it is trained on, which jbp.fit alone can, and not with private: give arrays",
    ),
    "fit_many": (
        lambda: jbp.fit_many(NET, LOSS, SGD, ROWS, seeds=[0], epochs=1), "train_data is read while it is trained on",
    ),
    "fit_many, a stream to validate": (
        lambda: jbp.fit_many(NET, LOSS, SGD, (X, Y), seeds=[0], validation_data=Stream(batches())),  # type: ignore[arg-type]
        "validation_data is read while it is trained on",
    ),
    "weights of a stream": (lambda: run(Stream(batches()), weights=np.ones(N)), "leave weights out"),
    "sampling of a stream": (lambda: run(Stream(batches()), sampling="replacement"), "leave sampling out"),
    "batch size of a stream": (lambda: run(Stream(batches()), batch_size=3), "come with 4 rows, but batch_size is 3"),
    "no length": (lambda: Stream(iter(batches())), "of a list_iterator, which has no length, needs steps="),
    "a function": (lambda: Stream(batches, steps=3), "but got the function batches: call it"),
    "steps of 0": (lambda: Stream(batches(), steps=0), "steps must be a whole number of at least 1"),
    "a bare iterator": (lambda: run(iter(batches())), r"batches are given as jbp.data.Stream\(batches, steps=\)"),
    "other lengths": (lambda: run((Rows(X), Y[:7])), "must hold as many targets as inputs"),
    "a larger batch": (lambda: run(ROWS, batch_size=N + 1), "batch_size must be at most the number"),
    "swapped": (lambda: run((Rows(Y[:, None].astype(float)), X)), "."),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_streams_cannot_do_is_refused_by_name_in_one_line(name: str):
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_stream_whose_state_is_no_json_is_told():
    class Odd(_Shuffled):
        def __iter__(self) -> Any:
            return self

        def get_state(self) -> Any:
            return {"rng": self.rng}

    with pytest.raises(ValueError, match=r"the state of a stream must be numbers, text, bytes and arrays, but holds"):
        run(Stream(Odd(3), steps=3))
    found = Batches(Stream(Shuffled(), steps=3))
    next(found)
    assert json.loads(json.dumps(found.get_state())) == found.get_state()


# ── The thread ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_so_many_items_are_read_ahead_and_no_more_and_an_error_comes_at_its_place():
    read: list[int] = []
    enough = threading.Event()

    def items() -> Iterator[int]:
        for i in range(5):
            read.append(i)
            if len(read) == AHEAD:
                enough.set()
            yield i
        raise OSError("gone")

    ahead = Ahead(items())
    assert enough.wait(10)
    time.sleep(0.05)
    assert read == list(range(AHEAD))
    assert [next(ahead) for _ in range(5)] == list(range(5))
    for _ in range(2):
        with pytest.raises(OSError, match=r"gone"):
            next(ahead)


def test_the_thread_ends_with_the_run_and_works_under_its_settings(tmp_path: Path):
    with jax.enable_x64(False):
        data = mapped(tmp_path, "x", X.astype(np.float32)), Y
        same_bits(run(data, batch_size=SIZE), run((X.astype(np.float32), Y), batch_size=SIZE))
    run(Stream(batches()[:5] * 50), epochs=1, callbacks=(lambda event: True,))
    deadline = time.monotonic() + 10
    while any(t.name == "jbp-read" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name == "jbp-read"]


def test_a_run_that_diverges_is_gone_through_once_more_to_the_row_where_it_broke():
    """As far as the data can be read again: of a stream that cannot be, the step is told all the same."""

    def bursting(rows: np.ndarray) -> Any:
        return rows * np.where(rows[:, :1] > X[:, 0].max() - 1e-9, 1e300, 1.0)

    def diverged(data: Any, **options: Any) -> jbp.Diverged:
        with np.errstate(over="ignore"), pytest.raises(jbp.Diverged) as caught:
            jbp.fit(BURSTS, jbp.losses.l2_loss, SGD, data, epochs=3, seed=5, **options)
        return caught.value

    targets = X[:, :K]
    whole = diverged((bursting(X), targets), batch_size=SIZE)
    rows = diverged((Rows(X).mapped(bursting), targets), batch_size=SIZE)
    assert str(rows) == str(whole) and f"row {X[:, 0].argmax()}" in str(rows)
    parts = [(bursting(x), targets[i * SIZE : i * SIZE + SIZE]) for i, (x, _) in enumerate(batches())]
    assert "example" in str(diverged(Stream(parts)))
    assert diverged(Stream(iter(parts), steps=STEPS)).step >= 1
