"""`jbp predict`, `show`, `compare`: what they print and return, and what they say about bad runs and data."""

import csv
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import jbp
from jbp import cli, data
from jbp.cli import training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with runs on digits, on a table of labels, and on a table of values; and the tables."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    kinds = np.where(x[:, 0] > 0, "[right]", "left, far")
    labels = [f'{a:.4f},{b:.4f},"{kind}"' for (a, b), kind in zip(x, kinds, strict=True)]
    (folder / "labels.csv").write_text("\n".join(["a,b,kind", *labels]) + "\n")
    values = [f"{a:.4f},{b:.4f},{3 * a - b + 0.5:.4f}" for a, b in x]
    (folder / "values.csv").write_text("\n".join(["a,b,y", *values]) + "\n")
    small = {"quiet": True, "epochs": 3}
    cli.Train(net="8 relu", out=folder / "digits", **small)()
    cli.Train(data=folder / "labels.csv", target="kind", net="8 tanh", out=folder / "labels", **small)()
    cli.Train(data=folder / "values.csv", target="y", net="", out=folder / "values", **small)()
    return folder


def table(text):
    return list(csv.reader(io.StringIO(text)))


def test_predict_writes_class_and_probabilities(folder, capsys):
    predicted = cli.Predict(folder / "digits", "digits")()
    rows = table(capsys.readouterr().out)
    assert rows[0] == ["class", *(f"probability_{i}" for i in range(10))]
    assert len(rows) == 1 + 360 == 1 + len(predicted)
    numbers = np.array([row[1:] for row in rows[1:]], float)
    np.testing.assert_allclose(numbers.sum(1), 1, atol=1e-4)
    assert [row[0] for row in rows[1:]] == [str(i) for i in predicted.argmax(1)]
    accuracy = np.mean(predicted.argmax(1) == data.load("digits", "test")[1])
    assert accuracy == json.loads((folder / "digits" / "summary.json").read_text())["test_accuracy"]


def test_predict_finds_columns_by_name_and_ignores_others(folder, tmp_path, capsys):
    assert cli.main(["predict", str(folder / "labels"), str(folder / "labels.csv")]) == 0
    rows = table(capsys.readouterr().out)
    assert rows[0] == ["class", "probability_[right]", "probability_left, far"]
    (tmp_path / "turned.csv").write_text("note,b,a\nthis is text,0,-2\n")
    cli.Predict(folder / "labels", tmp_path / "turned.csv")()
    assert table(capsys.readouterr().out)[1][0] == "left, far"


def test_predict_writes_values_to_a_file_it_does_not_clobber(folder, tmp_path, capsys):
    out = tmp_path / "predictions.csv"
    predicted = cli.Predict(folder / "values", folder / "values.csv", out=out)()
    rows = table(out.read_text())
    assert rows[0] == ["y"]
    np.testing.assert_allclose(np.array(rows[1:], float), predicted, rtol=1e-8)
    assert "60 predictions in" in capsys.readouterr().err
    with pytest.raises(ValueError, match="exists already"):
        cli.Predict(folder / "values", folder / "values.csv", out=out)()
    cli.Predict(folder / "values", folder / "values.csv", out=out, overwrite=True, quiet=True)()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("names", [["x"], ["x_test", "x_train", "y_train"], ["x_train"]])
def test_predict_takes_arrays(folder, tmp_path, capsys, names):
    arrays: dict[str, Any] = {name: np.full((i + 1, 8, 8), 0.5) for i, name in enumerate(names)}
    np.savez(tmp_path / "new.npz", **arrays)
    assert len(cli.Predict(folder / "digits", tmp_path / "new.npz")()) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("run", "name", "content", "words"),
    [
        ("labels", "t.csv", "a,x\n1,2\n", "found none named b"),
        ("labels", "t.csv", "a,a,b\n1,2,3\n", "found a more than once"),
        ("labels", "t.csv", "a,b\n1,x\n", "found 'x' at row 1 (line 2), column 'b'"),
        ("labels", "t.csv", "a,b\n1,\n", "b 1 (the first, an empty cell, at row 1 (line 2), column 'b')"),
        ("labels", "t.csv", "a,b\n1,inf\n", "found inf at row 1, column 2"),
        ("labels", "t.csv", "a,b\n1\n", "expected 2 cells, as in the header, found 1"),
        ("labels", "t.csv", "a,b\n", "at least a row"),
        ("labels", "t.csv", "", "found an empty file"),
        ("labels", "missing.csv", None, "found nothing there"),
        ("labels", "t.npz", "text", "expected an .npz file"),
        ("labels", "t.npz", {"z": np.zeros((2, 2))}, "expected an array named x, x_test or x_train, found z"),
        ("labels", "t.npz", {"x": np.zeros((2, 3))}, "expected examples of shape (2,), as the run was trained on"),
        ("labels", "t.npz", {"x": np.array([[None, 1]])}, "Object arrays cannot be loaded"),
        ("labels", "digits", None, "expected examples of shape (2,)"),
        ("labels", "t.txt", "1", "unknown data"),
        ("digits", "t.csv", "a,b\n1,2\n", "without column names"),
    ],
)
def test_predict_says_what_is_wrong_with_the_data(folder, tmp_path, capsys, run, name, content, words):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        np.savez(path, **content)
    assert cli.main(["predict", str(folder / run), name if name == "digits" else str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


@pytest.mark.parametrize("width", ["80", "120"])
def test_show_prints_result_confusion_and_layers(folder, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    summary = cli.Show(folder / "digits")()
    out = capsys.readouterr().out
    assert f"{summary['test_accuracy']:.4f}" in out
    assert "true classes down" in out
    assert "Dense(8)" in out and "520" in out and "610" in out  # 64·8 + 8, and with 8·10 + 10
    assert max(map(len, out.splitlines())) <= int(width)


def test_show_of_a_regression_has_r2_and_no_confusion(folder, capsys):
    summary = cli.Show(folder / "values")()
    out = capsys.readouterr().out
    assert "R²" in out and f"{summary['test_r2']:.4f}" in out
    assert "true classes" not in out


def test_class_names_with_brackets_are_printed_as_they_are(folder, capsys):
    cli.Show(folder / "labels")()
    assert "[right]" in capsys.readouterr().out


def test_many_classes_are_listed_where_the_matrix_is_too_wide(folder, tmp_path, capsys):
    from jbp.cli import console

    counts = np.eye(40, dtype=int) * 3
    counts[1, 2] = 5
    console.print_confusion(counts.tolist(), [f"class {i}" for i in range(40)])
    out = capsys.readouterr().out
    assert "2 class 2 (5)" in out
    assert "37.5%" in out


def test_compare_shows_what_differs_and_what_came_out(folder, capsys):
    settings, results = cli.Compare((str(folder / "digits"), str(folder / "labels"), str(folder / "values")))()
    out = capsys.readouterr().out
    assert settings["net"] == ["8 relu", "8 tanh", ""]
    assert "seed" not in settings
    assert results["test_accuracy"][2] is None
    assert results["test_r2"][0] is None
    assert "test_rmse" in out and "net" in out


def test_a_damaged_run_says_which_file(folder, tmp_path, capsys):
    for name in ("config.json", "summary.json", "params.safetensors"):
        copy = tmp_path / name.partition(".")[0]
        copy.mkdir()
        for other in ("config.json", "metrics.jsonl", "summary.json", "params.safetensors"):
            (copy / other).write_bytes((folder / "digits" / other).read_bytes()[: 50 if other == name else None])
        assert cli.main(["show", str(copy)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"{copy / name}: expected" in err and "; whole: " in err


def halved(x, key):
    return x / 2


def test_a_run_behind_a_transform_says_so_and_predicts_nothing_by_itself(tmp_path, monkeypatch):
    plain = training.make_plan
    monkeypatch.setattr(training, "make_plan", lambda options: replace(plain(options), transform=halved))
    result = cli.Train(net="8 relu", out=tmp_path / "run", quiet=True, epochs=2)()
    run = jbp.load(tmp_path / "run")
    assert run.transform == f"{__name__}.halved"
    with pytest.raises(ValueError, match=r"trained behind the transform .*halved, which a run folder does not hold"):
        run.predict(np.zeros((1, 8, 8)))
    x, y = data.load("digits", "test")
    said = jbp.checkpoint.outputs(run.net, run.params, run.preprocessing(x) / 2).argmax(1)
    assert result.summary["test_accuracy"] == pytest.approx(np.mean(said == y))
