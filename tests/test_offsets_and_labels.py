"""Numbers keep their digits until their offset is taken away, and labels stay as they are written."""

import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from written import RNG, predicted, trained, write

import jbp
from jbp import cli
from jbp.cli import examples
from jbp.data import Standardizer, load_dataset


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own_and_in_float32(tmp_path, monkeypatch):
    """As users run it: of float64 nothing would be lost."""
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False):
        yield


# ── float64 until the offset is taken away ──────────────────────────────────────────────────────────────────────────

N = 200
HALF = np.arange(N) % 2
OFFSETS = {
    "milliseconds": 1_700_000_000_000 + RNG.permutation(36_000)[:N],
    "whole numbers near 2**40": 2**40 + RNG.permutation(N),
    "whole numbers below 2**53": 2**53 - 1 - RNG.permutation(N),
    "nearly constant": np.where(HALF, "1000000.01", "1000000.0"),
    "far from 0 and tiny": [f"{1 + 1e-12 * k:.17g}" for k in RNG.permutation(N)],
    "very small": [f"{k}e-200" for k in RNG.permutation(N)],
    "very large": [f"{k}e200" for k in RNG.permutation(N)],
}


@pytest.mark.parametrize("case", OFFSETS)
def test_an_offset_is_taken_away_before_anything_is_rounded(case, capsys):
    cells = OFFSETS[case]
    numbers = np.array(cells, float)
    labels = np.where(numbers > np.median(numbers), "late", "early")
    write("t.csv", ["t", "label"], cells, labels)
    assert trained("t.csv", "label").summary["test_accuracy"] >= 0.95
    rows = predicted(capsys, "run", "t.csv")
    assert np.mean([row[0] for row in rows[1:]] == labels) >= 0.95
    tree, _ = jbp.checkpoint.load("run/params.safetensors")
    assert tree["x"]["mean"].dtype == tree["x"]["scale"].dtype == np.float64


def test_what_a_regression_reports_is_measured_against_the_files_own_values(capsys):
    x = RNG.normal(size=N)
    y = 1.7e9 + 9.5 * x + 0.01 * RNG.normal(size=N)
    write("t.csv", ["x", "y"], x, [f"{value:.3f}" for value in y])
    summary = trained("t.csv", "y", epochs=60).summary
    rows = predicted(capsys, "run", "t.csv")
    values = np.array(rows[1:], float)[:, 0]
    data = load_dataset("t.csv", target="y")
    assert data.y_test is not None and data.x_test is not None
    np.testing.assert_array_equal(np.sort(np.concatenate([data.y_train, data.y_test])[:, 0]), np.sort(np.round(y, 3)))
    said = jbp.load("run").predict(data.x_test)
    assert summary["test_rmse"] == pytest.approx(float(np.sqrt(np.mean((said - data.y_test) ** 2))), rel=1e-6)
    assert (
        0.001 < summary["test_rmse"] < 1 and summary["test_r2"] > 0.99
    )  # 0.0 and none where the truth was rounded too
    assert len(np.unique(values)) > N / 2 and np.abs(values - y).max() < 3
    np.testing.assert_array_equal(values, jbp.load("run").predict(x[:, None])[:, 0])  # with all their digits


def test_images_are_neither_widened_nor_copied():
    np.savez("t.npz", x_train=np.zeros((20, 3, 3), np.float32), y_train=HALF[:20])
    x, y = jbp.data.load("digits")
    assert x.dtype == np.float32
    data = jbp.data.Dataset("d", "classification", x, y, x[:9], y[:9], tuple("0123456789"))
    assert np.shares_memory(data.x_train, examples.prepare(data, False, False, False).train[0])
    loaded = load_dataset("t.npz")
    assert loaded.x_train.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.float64])
def test_arrays_keep_what_their_type_holds(dtype):
    x = (RNG.permutation(N)[:, None] + (2**30 if dtype == np.int32 else 2**45)).astype(dtype)
    np.savez("t.npz", x_train=x, y_train=HALF, x_test=x, y_test=HALF)
    data = load_dataset("t.npz")
    assert data.x_train.dtype == np.float64
    np.testing.assert_array_equal(data.x_train.astype(dtype), x)
    assert len(np.unique(examples.prepare(data, False, True).train[0])) == 180


COLLAPSING = {
    "beyond float64": (
        [2**63 + k for k in HALF.tolist()],
        HALF,
        {},
        "column 'a': expected different numbers to stay different, but 2",
    ),
    "long decimals": ([f"1.7000000000000000{k}" for k in HALF], HALF, {}, "column 'a': expected different numbers"),
    "a raw offset": (
        1e6 + 0.01 * HALF,
        HALF,
        {"standardize": False},
        "column 'a': expected different values to stay different, but 2",
    ),
    "far values": (
        np.where(np.arange(N) % 3, HALF, 1e14),
        HALF,
        {},
        "column 'a': expected different values to stay different, but 3",
    ),
    "raw and too large": (1e39 * HALF, HALF, {"standardize": False}, "expected finite float32 numbers, found 1e+39"),
    "a raw target": (
        HALF,
        1.7e9 + 0.5 + np.arange(N) / 10,
        {"standardize": False},
        "the target: expected different values to stay",
    ),
    "a target beyond float64": (HALF, [2**63 + k for k in range(N)], {"task": "regression"}, "column 'y': expected"),
}


@pytest.mark.parametrize("case", COLLAPSING)
def test_a_column_whose_values_become_one_is_refused_by_name(case):
    a, y, options, words = COLLAPSING[case]
    write("t.csv", ["a", "y"], a, y)
    with pytest.raises(ValueError) as error:
        trained("t.csv", "y", **options)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not Path("run").exists()


def test_whole_numbers_of_64_bits_are_refused_where_float64_makes_them_one():
    x = np.array([[2**63, k] for k in (2**63, 2**63 + 1) * 10], np.uint64)
    np.savez("t.npz", x_train=x, y_train=HALF[:20])
    with pytest.raises(ValueError, match="column 2 of x_train: expected different values to stay different"):
        load_dataset("t.npz")
    with pytest.raises(ValueError, match=r"got one for all in feature \[1\]"):
        Standardizer.fit(x)


def test_many_close_numbers_are_not_taken_for_one():
    x = np.random.default_rng(1).normal(size=(20_000, 2))
    np.savez("t.npz", x_train=x, y_train=np.arange(len(x)) % 2)
    assert len(examples.prepare(load_dataset("t.npz"), False, False).train[0]) == 14_400


def test_a_mean_beside_all_values_is_mended():
    """A sum of so many rows near 2**44 has steps of 256, which swallow every 1 that is added."""
    x = 2.0**44 + np.tile([0.0, 1.0], 60_000)[:, None] * np.ones(2)
    fitted = Standardizer.fit(x)
    np.testing.assert_allclose(fitted.mean - 2.0**44, 0.5, atol=0.01)
    np.testing.assert_allclose(fitted.scale, 0.5, rtol=0.01)


# ── labels as they are written ──────────────────────────────────────────────────────────────────────────────────────

WRITTEN = [
    ("00501", "02134"),
    ("01", "1"),
    ("007", "12"),
    ("+1", "-1"),
    ("-1", "1"),
    ("9223372036854775808", "9223372036854775809"),
    ("yes", "Yes"),
    ("é", "e\u0301"),
    ("a b", "a  b"),
]


@pytest.mark.parametrize("pair", WRITTEN, ids=repr)
def test_the_label_reported_is_the_label_in_the_file(pair, capsys):
    write("t.csv", ["x", "y"], RNG.normal(size=40) + 4 * HALF[:40], [pair[i] for i in HALF[:40]])
    summary = trained("t.csv", "y").summary
    assert sorted(summary["classes"]) == sorted(pair)
    rows = predicted(capsys, "run", "t.csv")
    assert {row[0] for row in rows[1:]} == set(pair)
    assert sorted(rows[0][1:]) == sorted(f"probability_{label}" for label in pair)
    assert sorted(jbp.load("run").classes) == sorted(pair)


NEAR_EQUAL = {
    "case": ("cat", "Cat"), "spaces": ("a b", "a  b"), "hard space": ("a b", "a\u00a0b"), "Unicode": ("é", "e\u0301"),
    "width": ("A1", "Ａ1"), "zeros": ("01", "1"), "a point": ("1.0", "1"), "nothing seen": ("ab", "a\u200bb"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR_EQUAL)
def test_labels_that_look_alike_are_told_of(case, capsys):
    one, two = NEAR_EQUAL[case]
    write("t.csv", ["x", "y"], range(30), [one, two, "other"] * 10)
    with pytest.warns(UserWarning, match="column 'y': .* are taken as different") as told:
        data = load_dataset("t.csv", target="y", task="classification")
    assert set(data.classes) == {one, two, "other"} and len(told) == 1
    np.savez("t.npz", x_train=np.arange(30.0)[:, None], y_train=[one, two, "other"] * 10)
    with pytest.warns(UserWarning, match="y_train: .* are taken as different"):
        load_dataset("t.npz")
    words = ["train", "--data", "t.csv", "--target", "y", "--task", "classification", "--epochs", "1", "--net", ""]
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(words) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("jbp: warning: column 'y': ")] == lines[:1]


def test_labels_that_differ_in_outer_spaces_are_one_and_that_is_said():
    write("t.csv", ["x", "y"], range(30), ["a", "a ", "b"] * 10)
    with pytest.warns(UserWarning, match="in the spaces around them are taken as one: a"):
        assert load_dataset("t.csv", target="y").classes == ("a", "b")


def test_a_class_that_is_written_as_missing_is_told_of():
    write("t.csv", ["x", "y"], range(30), ["EU", "NA", "AS"] * 10)
    with pytest.warns(UserWarning, match="'NA' is taken as a class"):
        load_dataset("t.csv", target="y")


def test_many_whole_numbers_with_few_rows_each_ask_for_the_task():
    write("t.csv", ["x", "age"], range(1000), np.arange(1000) % 70)
    with pytest.raises(
        ValueError, match="found 70 different ones in 1000 rows of column 'age'; say which it is by task="
    ):
        load_dataset("t.csv", target="age")
    assert load_dataset("t.csv", target="age", task="regression").task == "regression"
    assert len(load_dataset("t.csv", target="age", task="classification").classes) == 70
    write("t.csv", ["x", "k"], range(1000), [f"{k % 70:03d}" for k in range(1000)])
    with pytest.raises(ValueError, match="70 different ones"):
        load_dataset("t.csv", target="k")


def test_unsigned_labels_are_never_wrapped():
    y = np.array([2**63, 2**63 + 1, 2**64 - 1] * 8, np.uint64)
    np.savez("t.npz", x_train=np.ones((24, 1)), y_train=y, x_test=np.ones((3, 1)), y_test=y[:3])
    data = load_dataset("t.npz")
    assert data.classes == tuple(map(str, y[:3].tolist()))
    assert data.y_test is not None and data.y_test.tolist() == [0, 1, 2]
    np.savez("t.npz", x_train=np.ones((24, 1)), y_train=y, x_test=np.ones((1, 1)), y_test=np.array([-(2**63)]))
    with pytest.raises(ValueError, match="found also -9223372036854775808"):
        load_dataset("t.npz")
    shifted = np.array([3, 3 + 2**32] * 12)
    np.savez("t.npz", x_train=np.ones((24, 1)), y_train=shifted)
    assert load_dataset("t.npz").classes == ("3", "4294967299")


@pytest.mark.parametrize("columns", [1, 9])
def test_a_regression_trains_with_the_default_net_and_rate(columns: int, tmp_path, monkeypatch):
    """By momentum, at the rate of a classification, such a table diverges in ten steps."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(columns)
    x = rng.normal(size=(160, columns))
    rows = [",".join([*(f"x{i}" for i in range(columns)), "y"]), *(",".join(map(str, [*r, 3 * r[0]])) for r in x)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    result = cli.Train(data="t.csv", target="y", out="run", epochs=20, quiet=True)()
    assert result.summary["test_r2"] > 0.3


def test_whole_numbers_written_with_a_point_are_said_to_be_taken_for_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{i / 7},{1 + i % 2}.0\n" for i in range(20)))
    read = load_dataset("t.csv", target="y")
    assert read.task == "regression" and "column 'y' is taken for values to predict" in read.notes[0]
    assert not load_dataset("t.csv", target="y", task="regression").notes
