"""`jbp trace`: a net of the options, or an example of a run."""

import json
from typing import Any

import numpy as np
import pytest

from jbp import checkpoint, cli, data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    return cli.Train(net="8 relu", epochs=1, quiet=True, out=folder)().folder


def test_a_small_net_is_a_table_markdown_and_json(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    options: dict[str, Any] = {"net": "2 tanh", "x": "0.5,-1", "y": "1"}
    found = cli.Trace(**options)()
    assert "[1] tanh" in (table := capsys.readouterr().out)
    assert "δ_x = (1 − y²)∘δ" in table and "step 3  gradients" in table
    cli.Trace(markdown=True, **options)()
    assert capsys.readouterr().out.strip() == found.markdown()
    cli.Trace(json=True, **options)()
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_dict()))
    assert next(row for row in found.rows if row.symbol == "x").value.tolist() == [0.5, -1]


def test_a_step_unit_shows_the_slope_that_stands_for_its_own(capsys):
    shown = cli.Trace(net="2 step 3 step:triangle:0.5", x="0.5,-1", y="1")().markdown()
    capsys.readouterr()
    assert "y = 1 where x > 0, else 0" in shown
    assert "straight through" in shown and "triangle of sharpness 0.5" in shown


def test_an_example_of_a_run_has_the_numbers_of_its_net(run, capsys):
    found = cli.Trace(run=run, example=7)()
    x, y = data.load("digits", "test")
    trained = checkpoint.load_run(run)
    output = next(row for row in found.rows if row.symbol == "p").value
    np.testing.assert_allclose(output, checkpoint.outputs(trained.net, trained.params, x[7:8])[0], rtol=1e-6, atol=1e-6)
    assert next(row for row in found.rows if row.symbol == "t").value == y[7]
    assert "64 × 8:" in capsys.readouterr().out


def test_a_run_of_many_seeds_says_that_it_keeps_no_parameters(tmp_path, capsys):
    folder = cli.Train(net="4 relu", seeds="0:2", epochs=1, quiet=True, out=tmp_path / "run")().folder
    assert cli.main(["trace", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "found one of the seeds 0:2: a run of many seeds keeps no parameters; train one with --seed" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "expected the folder of a run or --net with hidden layers, got neither"),
        ("RUN --net 2", "got both"),
        ("RUN --example 999", "example must be from 0 to 359"),
        ("RUN --example -1", "example must be from 0 to 359"),
        ("RUN --x 1", "x is for a net without a run"),
        ("--net 2 --example 3", "example is for a run"),
        ("--net 2 --x a", "x must be finite numbers with commas between them"),
        ("--net 2 --x nan,1", "x must be finite numbers"),
        ("--net 2 --x 1,2,3 --shape 2", "x must be 2 numbers for an example of shape (2,)"),
        ("--net 2 --shape 0", "shape must be whole numbers of at least 1"),
        ("--net 2 --outputs 0", "outputs must be a whole number of at least 1"),
        ("--net 2 --y 1,2", "y must be 1 numbers, one for each output"),
        ("--net 2 --outputs 3 --loss cross_entropy --y 7", "y must be a class from 0 to 2"),
        ("--net 2 --outputs 3 --loss cross_entropy --y 0.5", "y must be a class from 0 to 2"),
        ("--net 2 --json --markdown", "expected one of --json and --markdown"),
        ("nowhere", "expected the folder of a run, found nothing there"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(run, words, message, capsys):
    assert cli.main(["trace", *words.replace("RUN", str(run)).split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
