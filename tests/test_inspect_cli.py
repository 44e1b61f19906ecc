"""`jbp inspect`: which example, what is written and opened, and what is refused in a line."""

import json
import re
import webbrowser
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jbp import checkpoint, cli, data
from jbp.cli import inspect as command
from jbp.inspect.scene import errors_of, leaf_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("inspect") / "run"
    return cli.Train(net="8 relu", epochs=1, seed=0, quiet=True, out=out)().folder


@pytest.fixture
def no_window(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(asked.append(url)) or True)
    return asked


def scenes_in(path: Path) -> list[Any]:
    held = re.search(
        r'<script id="scenes" type="application/json">(.*?)</script>', path.read_text(encoding="utf-8"), re.S
    )
    assert held
    return json.loads(held[1])


def test_a_run_opens_with_the_example_it_gets_most_wrong(run, tmp_path, no_window, capsys):
    out = tmp_path / "page.html"
    assert cli.Inspect(run=run, out=out)() == out
    assert capsys.readouterr().out == f"{out}\n" and not no_window
    (found,) = scenes_in(out)
    x, y = data.load("digits", "test")
    trained = checkpoint.load_run(run)
    x = x.astype(checkpoint.params_dtype(trained.params))
    assert trained.loss is not None
    errors = errors_of(trained.net, trained.loss, trained.params, x, y)
    assert found["rows"][0] == f"test {np.argmax(errors)}" and "most wrong" in found["title"]
    assert leaf_of(found["errors"])[0] == pytest.approx(errors.max(), rel=1e-5)
    assert found["x"]["shape"] == [16, 8, 8] and found["labels"] == [str(i) for i in range(10)]
    assert found["update"]["kind"] == "momentum" and found["update"]["rate"] == 0.05


def test_an_example_by_its_number_and_a_batch_of_a_size(run, tmp_path, no_window):
    out = tmp_path / "page.html"
    assert cli.main(["inspect", str(run), "--example", "3", "--batch", "5", "--clip", "0.25", "--out", str(out)]) == 0
    (found,) = scenes_in(out)
    assert found["rows"] == ["test 3", "test 0", "test 1", "test 2", "test 4"] and found["max_norm"] == 0.25
    np.testing.assert_array_equal(leaf_of(found["x"])[0], data.load("digits", "test")[0][3])


def test_a_net_in_a_line_with_a_textbooks_numbers(tmp_path, no_window):
    weights = tmp_path / "weights.json"
    weights.write_text(json.dumps({"1.weight": [[0.15, 0.25], [0.2, 0.3]], "1.bias": [0.35, 0.35],
                                   "2.weight": [[0.4, 0.5], [0.45, 0.55]], "2.bias": [0.6, 0.6]}))  # fmt: skip
    out = tmp_path / "page.html"
    words = ["inspect", "--net", "2 sigmoid", "--outputs", "2", "--output-activation", "sigmoid", "--loss", "l2_loss"]
    words += ["--x", "0.05,0.1", "--y", "0.01,0.99", "--params", str(weights), "--learning-rate", "0.5"]
    assert cli.main([*words, "--out", str(out)]) == 0
    (found,) = scenes_in(out)
    assert leaf_of(found["errors"])[0] == pytest.approx(0.298371109, abs=1e-9)
    assert found["update"]["rate"] == 0.5 and found["x"]["shape"] == [1, 2]
    assert cli.main([*words, "--batch", "4", "--out", str(out), "--overwrite"]) == 0
    assert scenes_in(out)[0]["x"]["shape"] == [4, 2]


def test_numbers_that_were_written_keep_their_digits(tmp_path, no_window):
    (tmp_path / "weights.json").write_text(json.dumps({"1.weight": [[0.15], [0.2]], "1.bias": [0.35]}))
    out = tmp_path / "page.html"
    words = ["inspect", "--net", "", "--x", "0.05,0.1", "--y", "0.01", "--params", str(tmp_path / "weights.json")]
    with jax.enable_x64(False):  # as a user has it
        assert cli.main([*words, "--out", str(out)]) == 0
    (found,) = scenes_in(out)
    assert {p["name"]: leaf_of(p).tolist() for p in found["params"]} == {"1.weight": [[0.15], [0.2]], "1.bias": [0.35]}
    assert leaf_of(found["x"]).tolist() == [[0.05, 0.1]] and leaf_of(found["y"]).tolist() == [[0.01]]


def test_without_out_a_browser_opens_where_there_is_one(tmp_path, no_window, monkeypatch, capsys):
    monkeypatch.setattr(command.sys, "platform", "linux")
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))
    path = cli.Inspect(net="2 tanh")()
    told = capsys.readouterr()
    assert told.out == f"{path}\n" and "no browser was found here" in told.err and not no_window
    monkeypatch.setenv("DISPLAY", ":0")
    path = cli.Inspect(net="2 tanh")()
    assert no_window == [path.as_uri()] and capsys.readouterr().err == ""
    monkeypatch.setattr(webbrowser, "open", lambda url: (_ for _ in ()).throw(webbrowser.Error("none")))
    cli.Inspect(net="2 tanh")()
    assert "open the file in one" in capsys.readouterr().err


def test_a_file_that_is_there_is_kept(tmp_path, no_window, capsys):
    out = tmp_path / "page.html"
    out.write_text("mine")
    assert cli.main(["inspect", "--net", "2 tanh", "--out", str(out)]) == 2
    assert out.read_text() == "mine" and "overwrite" in capsys.readouterr().err
    assert cli.main(["inspect", "--net", "2 tanh", "--out", str(tmp_path)]) == 2
    assert "found a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected the folder of a run or --net with hidden layers, got neither"),
        (["RUN", "--net", "2"], "got both"),
        (["RUN", "--example", "360"], "example must be from 0 to 359"),
        (["RUN", "--example", "-1"], "example"),
        (["RUN", "--x", "1,2"], "x is for a net without a run"),
        (["nowhere"], "nowhere"),
        (["--net", "2 tan"], "tan"),
        (["--net", "2 tanh", "--example", "1"], "example is for a run"),
        (["--net", "2 tanh", "--x", "a"], "x must be finite numbers"),
        (["--net", "2 tanh", "--batch", "0"], "batch must be a whole number of at least 1"),
        (["--net", "2 tanh", "--clip", "0"], "clip must be a finite number above 0"),
        (["--net", "2 tanh", "--learning-rate", "nan"], "learning_rate must be a finite number"),
        (["--net", "2 tanh", "--momentum", "1"], "momentum must be a number in [0, 1)"),
        (["--net", "2 tanh", "--params", "nowhere.json"], "nowhere.json"),
        (["--net", "5000 relu 5000 relu", "--out", "x.html"], "25,025,001 parameters, and a page holds 20,000,000"),
    ],
)
def test_bad_input_is_one_line(words, told, run, capsys, no_window, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", *(str(run) if word == "RUN" else word for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line, line
    assert not no_window


def test_the_optimiser_of_a_run_is_the_pages(tmp_path, no_window):
    folder = cli.Train(net="4 tanh", epochs=1, optimizer="adam", quiet=True, out=tmp_path / "run")().folder
    out = tmp_path / "page.html"
    cli.Inspect(run=folder, example=0, batch=3, out=out)()
    (found,) = scenes_in(out)
    assert found["update"]["kind"] == "other" and "adam" in found["update"]["words"]
