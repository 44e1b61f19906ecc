"""Windows over a stream of tokens are the slices that they say, and train to the same bits wherever they lie; runs that
are counted in steps draw the same however often they are evaluated."""

from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

import jbp
from jbp.data import Rows, Stream, windows
from jbp.train.batches import Resident, ResidentSource, draw_round, order_of
from jbp.train.clocks import Length
from jbp.train.windowed import Gathered, at_once, put

K, M, T, SIZE = 5, 59, 7, 6
TOKENS = np.random.default_rng(0).integers(0, K, M).astype(np.int32)
HELD = windows(np.random.default_rng(1).integers(0, K, 37).astype(np.int32), T, T)
NET = jbp.gpt(K, T, layers=2, heads=1, width=4, dropout=0.2)
LOSS, SGD = jbp.losses.softmax_cross_entropy, jbp.optim.sgd(0.5, momentum=0.9)
X, Y = windows(TOKENS, T)
N = len(X)


def fit(data: Any = (X, Y), **options: Any) -> jbp.Fit:
    options = {"batch_size": SIZE, "validation_data": HELD, "metrics": {"bits": jbp.bits_per_token}} | options
    return jbp.fit(NET, LOSS, SGD, data, **options)


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("stride", (1, 2, T, T + 3))
def test_windows_are_the_slices_of_the_stream_and_targets_those_one_later(stride, tmp_path):
    x, y = windows(TOKENS, T, stride)
    n = len(range(0, M - T, stride))
    assert x.shape == y.shape == (n, T) and x.overlaps == (stride < T)
    for i in range(n):
        np.testing.assert_array_equal(x[i], TOKENS[i * stride :][:T])
        np.testing.assert_array_equal(y[i], TOKENS[i * stride + 1 :][:T])
    assert M - (n - 1) * stride - T - 1 < stride  # one more would not fit
    rows = np.asarray([n - 1, 0, 1])
    np.save(tmp_path / "tokens.npy", TOKENS)
    stored = windows(np.load(tmp_path / "tokens.npy", mmap_mode="r"), T, stride)
    for here, there, on in zip((x, y), stored, put("data", x, y), strict=True):
        np.testing.assert_array_equal(here[rows], np.asarray(here)[rows])
        np.testing.assert_array_equal(Rows(there)[rows], here[rows])
        np.testing.assert_array_equal(on[rows], here[rows])
    assert isinstance(stored[0].tokens, np.memmap)
    assert set(x.seen) | set(y.seen) <= set(TOKENS) and len(y.seen) == (n - 1) * stride + T


@pytest.fixture(scope="module")
def whole() -> dict[str, jbp.Fit]:
    return {how: fit(steps=36, sampling=how) for how in ("shuffle", "replacement")}


@pytest.mark.parametrize("sampling", ("shuffle", "replacement"))
@pytest.mark.parametrize(
    "data", ((X, Y), (np.asarray(X), np.asarray(Y)), (Rows(X), Rows(Y))), ids=("windows", "arrays", "read")
)
def test_where_the_windows_lie_and_how_often_a_run_is_evaluated_changes_no_bit(data, sampling, whole):
    """Also where an evaluation falls into a pass through the data, whose last batch is short."""
    assert N % SIZE and -(-N // SIZE) % 12 and 12 % -(-N // SIZE)
    found = fit(data, steps=36, evaluate_every=12, sampling=sampling)
    same(found.params, whole[sampling].params)
    same(found.step_losses, whole[sampling].step_losses)
    assert [row["step"] for row in found.history] == [12, 24, 36]
    assert found.history[-1]["validation_loss"] == whole[sampling].history[-1]["validation_loss"]
    sizes = np.full(36, SIZE) if sampling == "replacement" else np.resize([SIZE] * (N // SIZE) + [N % SIZE], 36)
    for i, row in enumerate(found.history):
        part = slice(12 * i, 12 * i + 12)
        mean = np.average(found.step_losses[part], weights=sizes[part])
        assert row["train_loss"] == pytest.approx(mean) == row["train_bits"] * np.log(2)


def test_a_round_goes_on_with_the_pass_where_the_last_one_stopped():
    """Every window once in each pass, wherever rounds end; the program draws the same order."""
    reader, key = Resident("shuffle", SIZE, N, every=5), jax.random.key(3)
    data: Any = X, Y
    source = ResidentSource(data, None, reader, 7)
    rows = np.concatenate([source.rows(key, epoch, t) for epoch in range(1, 8) for t in range(5)])
    passes = rows[: len(rows) // (reader.passes * SIZE) * reader.passes * SIZE].reshape(-1, reader.passes * SIZE)
    assert len(passes) > 1
    for order in passes[:, :N]:
        assert Counter(order.tolist()) == Counter(range(N))
    assert len({tuple(order) for order in passes.tolist()}) == len(passes)
    drawn = jax.jit(lambda epoch: draw_round(key, epoch, reader))
    for epoch in range(1, 8):
        same(drawn(epoch), order_of(key, epoch, reader)())


def test_runs_side_by_side_in_parts_and_from_a_stream_are_that_run(whole):
    base = whole["shuffle"]
    many = jbp.fit_many(NET, LOSS, SGD, (X, Y), seeds=[0, 1], steps=36, evaluate_every=12, batch_size=SIZE,
                        validation_data=HELD)  # fmt: skip

    def close(a: Any, b: Any) -> None:  # to each array's largest, for a small entry is a sum of larger ones
        np.testing.assert_allclose(a[0], b, rtol=0, atol=1e-12 * np.abs(b).max())

    jax.tree.map(close, many.params, base.params)
    np.testing.assert_allclose(many.step_losses[0], base.step_losses, rtol=1e-12)
    parts = fit(steps=36, accumulate=2)
    np.testing.assert_allclose(parts.step_losses, base.step_losses, rtol=1e-12)
    batches = [(X[np.arange(i, i + SIZE)], Y[np.arange(i, i + SIZE)]) for i in range(0, 24, SIZE)]
    apart = [fit(Stream(batches), steps=12, evaluate_every=e, batch_size=None) for e in (12, 6, 3)]
    assert [row["step"] for row in apart[2].history] == [3, 6, 9, 12]
    for other in apart[1:]:
        same(other.params, apart[0].params)


@pytest.mark.parametrize("data", ((X, Y), (Rows(X), Rows(Y))), ids=("windows", "read"))
def test_a_run_that_is_counted_in_steps_goes_on_to_the_same_bits(data, whole, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    options: dict[str, Any] = {"steps": 36, "evaluate_every": 12, "save_to": tmp_path, "chunk_steps": 5}
    begun = fit(data, callbacks=[lambda event: event.step == 17], **options)
    assert begun.state.step == 5 and len(begun.history) == 1
    found = fit(data, resume=True, **options)
    same(found.params, whole["shuffle"].params)
    same(found.step_losses, whole["shuffle"].step_losses)
    with pytest.raises(ValueError, match="begun with evaluate_every 12, and this one has 6"):
        fit(data, resume=True, **options | {"evaluate_every": 6})
    with pytest.raises(ValueError, match="another data"):
        fit(windows(TOKENS, T - 1), resume=True, **options)


def test_private_steps_are_accounted_for_and_disjoint_windows_do():
    pytest.importorskip("dp_accounting")
    private = jbp.Private(1.1, 1.0, 1e-3)
    apart = windows(TOKENS, T, T)
    found = fit(apart, steps=8, evaluate_every=4, private=private, batch_size=3, seed=0, validation_data=None)
    assert found.epsilon == pytest.approx(private.epsilon(8, 3, len(apart[0])))
    with pytest.raises(ValueError, match="windows that do not overlap"):
        fit(steps=8, private=private)


def test_windows_of_many_positions_are_evaluated_fewer_at_a_time():
    long = Gathered(jax.numpy.zeros(9000, int), 4096, 1, 0, 4000)
    assert (at_once(long, 1000), at_once(np.zeros((5, 3)), 1000), at_once(Rows(X), 1000)) == (16, 1000, 1000)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: windows("text", 3), "make numbers of it with jbp.data.Vocabulary"),
        (lambda: windows(np.ones(9), 3), "whole numbers in an array"),
        (lambda: windows(TOKENS.reshape(-1, 1), 3), "whole numbers in an array"),
        (lambda: windows(TOKENS, M), f"need {M + 1}, but there are {M}"),
        (lambda: windows(TOKENS, 0), "the length of windows"),
        (lambda: windows(TOKENS, 3, 0), "the stride of windows"),
        (lambda: X[[N]], f"numbers 0…{N - 1}"),
        (lambda: fit((X, np.asarray(Y))), "the pair that jbp.data.windows makes"),
        (lambda: fit((X, HELD[1])), "the pair that jbp.data.windows makes"),
        (lambda: fit((X, Y), steps=3, epochs=2), "one of epochs and steps, got epochs 2 and steps 3"),
        (lambda: fit((X, Y), steps=10, evaluate_every=4), "whole number of times evaluate_every, 4, but are 10"),
        (lambda: fit((X, Y), evaluate_every=4), "give steps too"),
        (lambda: fit((X, Y), steps=0), "steps"),
        (
            lambda: jbp.fit(jbp.serial(jbp.Embedding(K, 3), jbp.Dense(K - 1)), LOSS, SGD, (X, Y)),
            r"the tokens of train_data must hold classes 0…3, for the net has 4 outputs, but one is 4, at place \[",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_clear_line(call, said):
    with pytest.raises((ValueError, IndexError), match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_length_of_a_run_is_epochs_or_rounds():
    assert Length.of(None, None, None) == Length(10) and Length.of(3, None, None) == Length(3)
    assert Length.of(None, 12, None) == Length(1, 12) and Length.of(None, 12, 4) == Length(3, 4)


class Source:
    """Rows by number, one at a time, as a torch data set has them."""

    def __init__(self):
        self.asked = 0

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, i: int) -> np.ndarray:
        self.asked += 1
        assert self.asked < 1000, "it is gone through row by row"
        return np.zeros(3)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: jbp.fit(jbp.Dense(2), jbp.losses.l2_loss, SGD, (s, np.ones((9, 2)))),
        lambda s: jbp.fit(jbp.Dense(2), jbp.losses.l2_loss, SGD, s),
        lambda s: jbp.data.split(s, np.ones(9)),
        lambda s: jbp.data.split(np.ones((9, 3)), s),
        lambda s: jbp.data.Standardizer.fit(s),
        lambda s: jbp.data.Bounds(np.array(-1.0), np.array(1.0))(s),
        lambda s: Rows(s),
        lambda s: jbp.data.windows(s, 3),
    ],
)
def test_a_source_of_rows_is_not_gone_through_row_by_row(call):
    """A million rows would take minutes, and then memory; it is refused, and says what takes such a source."""
    with pytest.raises(ValueError, match=r"Source"):
        call(Source())
