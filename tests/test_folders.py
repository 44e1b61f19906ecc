"""Data larger than memory: standardised in one pass, read from folders of .npy files, by `jbp train` too."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_streams import SIZE, N, X, Y, mapped, run, same_bits, with_nan

import jbp
from jbp import cli
from jbp.data import Rows, Standardizer, from_folder, load_dataset
from jbp.train import streams


@pytest.fixture(autouse=True)
def blocks_of_two_steps(monkeypatch: pytest.MonkeyPatch):
    """So that an epoch has several blocks, the last of them not full."""
    monkeypatch.setattr(streams, "BLOCK_BYTES", 2 * SIZE * (X[:1].nbytes + Y[:1].nbytes))


# ── Standardising in one pass ───────────────────────────────────────────────────────────────────────────────────────

COLUMNS = np.random.default_rng(2).normal(size=(101, 6)) * [1, 1e-3, 1e200, 1e-200, 1, 0] + [0, 1e9, 0, 0, -7, 0.1]


@pytest.mark.parametrize("cuts", [[], [1], [50, 51, 100]], ids=["one block", "a first row", "four blocks"])
@pytest.mark.parametrize("per_feature", [True, False])
def test_moments_by_blocks_are_those_of_all_rows_together(cuts: list[int], per_feature: bool):
    x = COLUMNS if per_feature else COLUMNS[:, [0, 4]]
    found, whole = Standardizer.of_blocks(np.split(x, cuts), per_feature), Standardizer.fit(x, per_feature)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.scale, whole.scale, rtol=1e-7 if per_feature else 1e-13)
    if per_feature:
        assert found.scale[5] == 1 and found.mean[5] == 0.1
        assert found.scale[1] == pytest.approx((COLUMNS[:, 1] - 1e9).std(), rel=1e-12)  # an offset costs no digits


def test_rows_are_standardised_in_one_pass_and_a_row_that_is_not_finite_is_named(tmp_path: Path):
    asked: list[int] = []
    x = mapped(tmp_path, "x", X[:7], X[7:])
    found = Standardizer.fit(x.mapped(lambda rows: (asked.append(len(rows)), rows)[1]))
    np.testing.assert_allclose(found.mean, X.mean(0), rtol=1e-13)
    assert sum(asked) == N + 2  # one row for the shape, one for the size
    for blocks, words in (
        ([X[:4], with_nan(4)], "in row 5"),
        ([], "got none"),
        ([X, X[:, :2]], r"rows of one shape to fit to, got \(5,\), and then \(2,\)"),
        ([np.asarray(["a"])], "blocks of numbers"),
        ([np.asarray([[1e308], [-1e308]])], "hold the differences of"),
    ):
        with pytest.raises(ValueError, match=words):
            Standardizer.of_blocks(blocks)


# ── Folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def a_folder(folder: Path, **arrays: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name.replace('__', '-')}.npy", array)
    return folder


def test_a_folder_of_files_or_shards_is_rows(tmp_path: Path):
    folder = a_folder(tmp_path / "data", x_train__000=X[:5], x_train__001=X[5:], y_train=Y, x_held=X[:3], y_held=Y[:3])
    (folder / "README.txt").write_text("what this is")
    x, y = from_folder(folder)
    np.testing.assert_array_equal(np.asarray(x), X)
    np.testing.assert_array_equal(np.asarray(y), Y)
    assert [len(a) for a in from_folder(folder, "held")] == [3, 3]
    same_bits(run((x, y), batch_size=SIZE), run((X, Y), batch_size=SIZE))


OBJECTS = np.asarray([{"a": 1}], object)
FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "no target": ({"x_train": X}, r"expected y_train.npy, or shards such as y_train-000.npy, found x_train"),
    "a slip": ({"x_train": X, "y_train": Y, "x_tets": X}, r"found x_tets, x_train, y_train; did you mean 'x_test'\?"),
    "a stranger": ({"x_train": X, "y_train": Y, "notes": X}, "found notes.npy; rename it, or put it elsewhere"),
    "both": ({"x_train": X, "x_train__000": X, "y_train": Y}, "expected one file or shards of x_train"),
    "a shard missing": ({"x_train__000": X, "x_train__002": X, "y_train": Y}, "found none of number 1"),
    "lengths": ({"x_train": X, "y_train": Y[:4]}, "to have equally many rows, found shapes"),
    "shards of two shapes": ({"x_train__000": X, "x_train__001": X[:, :2], "y_train": Y}, "one shape and dtype"),
    "half a test part": ({"x_train": X, "y_train": Y, "x_test": X}, r"expected y_test.npy"),
    "empty": ({}, "expected x_train.npy and y_train.npy, or shards .* found none of them"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_no_data_is_refused_in_one_line(tmp_path: Path, name: str):
    arrays, words = FOLDERS[name]
    with pytest.raises(ValueError, match=words) as caught:
        load_dataset(a_folder(tmp_path / "data", **arrays))
    assert str(caught.value).startswith(str(tmp_path / "data")) and "\n" not in str(caught.value)


def test_a_damaged_file_and_one_that_would_have_to_be_unpickled_are_refused(tmp_path: Path):
    folder = a_folder(tmp_path / "data", x_train=X, y_train=Y)
    whole = (folder / "x_train.npy").read_bytes()
    for content in (whole[:-9], whole[:20], b"", b"nonsense"):
        (folder / "x_train.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"x_train.npy: expected a whole .npy file of plain numbers"):
            from_folder(folder)
    np.save(folder / "x_train.npy", OBJECTS)
    with pytest.raises(ValueError, match=r"expected a whole .npy file of plain numbers"):
        from_folder(folder)


def test_jbp_train_reads_a_folder_standardises_in_one_pass_and_keeps_the_scale(tmp_path: Path):
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(60, 4)) * [1, 10, 0.1, 2] + [0, 100, 0, -3]).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    folder = a_folder(tmp_path / "data", x_train__000=x[:20], x_train__001=x[20:40], y_train=y[:40], x_test=x[40:],
                      y_test=y[40:])  # fmt: skip
    np.savez(tmp_path / "data.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    options = {"net": "6 tanh", "epochs": 3, "batch_size": 8, "quiet": True}
    ours = cli.Train(data=folder, out=tmp_path / "a", **options)()
    theirs = cli.Train(data=tmp_path / "data.npz", out=tmp_path / "b", **options)()
    for name in ("test_loss", "validation_loss", "test_accuracy"):
        assert ours.summary[name] == pytest.approx(theirs.summary[name], rel=1e-5)
    assert ours.summary["examples"] == theirs.summary["examples"] and ours.summary["standardized"]
    scales = [jbp.load(tmp_path / which).preprocessing for which in "ab"]
    np.testing.assert_allclose(scales[0].mean, scales[1].mean, rtol=1e-12)  # type: ignore[union-attr]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["data"] == str(folder)
    with pytest.raises(ValueError, match=r"train_data is read while it is trained on"):
        cli.Train(data=folder, seeds="0:2", out=tmp_path / "c", **options)()


def test_jbp_train_on_a_folder_of_values_has_no_test_part_to_begin_with(tmp_path: Path):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 3))
    folder = a_folder(tmp_path / "data", x_train=x, y_train=x @ [1.0, 2.0, -1.0] + 5)
    found = cli.Train(data=folder, out=tmp_path / "a", net="", epochs=2, quiet=True)()
    assert found.summary["examples"] == {"train": 36, "validation": 4, "test": 10} and "test_rmse" in found.summary


def test_a_bad_row_of_a_folder_is_told_before_the_first_step_by_its_place(tmp_path: Path, capsys: Any):
    x = X.copy()
    x[13, 2] = np.nan
    folder = a_folder(tmp_path / "data", x_train__000=x[:9], x_train__001=x[9:], y_train=Y)
    assert cli.main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "expected finite numbers, found nan at x_train, row 13, column 2 (counted from 0)" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_labels_of_a_folder_may_be_text(tmp_path: Path):
    folder = a_folder(tmp_path / "data", x_train=X, y_train__000=np.asarray(["yes", "no"] * 5),
                      y_train__001=np.asarray(["maybe"] * 13))  # fmt: skip
    assert load_dataset(folder).classes == ("maybe", "no", "yes")


def test_a_disk_that_fails_ends_jbp_train_with_what_was_reached_and_resume_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    folder, read, failing = a_folder(tmp_path / "data", x_train=X, y_train=Y), Rows._read, [6]

    def flaky(self: Rows, numbers: np.ndarray) -> np.ndarray:
        if threading.current_thread().name == "jbp-read" and len(numbers) > 2:  # no block of the two held out
            failing[0] -= 1
            if failing[0] == 0:
                failing[0] = 1
                raise OSError("input/output error")
        return read(self, numbers)

    words = ["train", "--data", str(folder), "--net", "4", "--epochs", "3", "--batch-size", "4", "--patience", "0"]
    words += ["--out", str(tmp_path / "run"), "--quiet"]
    monkeypatch.setattr(Rows, "_read", flaky)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "of train_data: could not be read: OSError: input/output error, saved in" in error
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stop_reason"] == "bad batch"
    monkeypatch.setattr(Rows, "_read", read)
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert cli.main([*words[:-3], "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    resumed, whole = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "whole"))
    assert resumed["resumed_at"] and resumed["test_loss"] == whole["test_loss"]
