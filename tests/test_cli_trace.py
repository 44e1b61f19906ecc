"""`jbp trace`: a net of the options, or an example of a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from jbp import checkpoint, cli, data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    return cli.Train(net="8 relu", epochs=1, quiet=True, out=folder)().folder


def test_a_small_net_is_a_table_markdown_and_json(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    options: dict[str, Any] = {"net": "2 tanh", "x": "0.5,-1", "y": "1"}
    found = cli.Trace(**options)()
    assert "1.tanh" in (table := capsys.readouterr().out)
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


def test_an_example_of_a_run_has_the_numbers_of_its_net(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    found = cli.Trace(run=run, example=7)()
    x, y = data.load("digits", "test")
    trained = checkpoint.load_run(run)
    output = next(row for row in found.rows if row.symbol == "p").value
    np.testing.assert_allclose(output, checkpoint.outputs(trained.net, trained.params, x[7:8])[0], rtol=1e-6, atol=1e-6)
    assert next(row for row in found.rows if row.symbol == "t").value == y[7]
    out = capsys.readouterr().out
    assert "64 × 8, from" in out and "--full prints every number" in out and len(out.splitlines()) < 110


def test_a_run_of_many_seeds_says_that_it_keeps_no_parameters(tmp_path, capsys):
    folder = cli.Train(net="4 relu", seeds="0:2", epochs=1, quiet=True, out=tmp_path / "run")().folder
    assert cli.main(["trace", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "found one of the seeds 0:2: a run of many seeds keeps no parameters; train one with --seed" in line


EXAMPLE: dict[str, Any] = {"net": "2 sigmoid", "outputs": 2, "output_activation": "sigmoid", "loss": "l2_loss",
                           "x": "0.05,0.10", "y": "0.01,0.99", "learning_rate": 0.5}  # fmt: skip
"""M. Mazur, "A step by step backpropagation example", 2015."""
NESTED = {
    "1": {"weight": [[0.15, 0.25], [0.20, 0.30]], "bias": [0.35, 0.35]},
    "2": {"weight": [[0.40, 0.50], [0.45, 0.55]], "bias": [0.60, 0.60]},
}
FLAT = {f"{layer}.{name}": value for layer, own in NESTED.items() for name, value in own.items()}
TEXT = """\
# Mazur
1.weight, 0.15, 0.25
1.weight, 0.20, 0.30
1.bias; 0.35; 0.35

2.weight,0.40,0.50
2.weight,0.45,0.55
2.bias,0.60,0.60
"""


def in_form(folder: Path, form: str) -> Path:
    path = folder / f"weights.{form.partition(' ')[0]}"
    arrays = {name: np.array(value, np.float32) for name, value in FLAT.items()}
    if form.startswith("json"):
        given = {"json": NESTED, "json flat": FLAT, "json list": list(NESTED.values())}[form]
        path.write_text(json.dumps(given))
    elif form == "safetensors":
        safetensors.numpy.save_file(arrays, path)
    elif form == "safetensors saved":
        path = path.with_suffix(".safetensors")
        params = tuple({name: arrays[f"{i}.{name}"] for name in ("weight", "bias")} if i else () for i in (1, 0, 2, 0))
        checkpoint.save(path, params)
    else:
        path.write_text(TEXT)
    return path


@pytest.mark.parametrize("form", ["json", "json flat", "json list", "csv", "txt", "safetensors", "safetensors saved"])
def test_parameters_that_somebody_wrote_down(form, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    found = cli.Trace(params=in_form(tmp_path, form), **EXAMPLE)()
    np.testing.assert_allclose(found["loss.e"], 0.298371109, rtol=1e-6)
    wanted = [[0.35891648, 0.511301270], [0.408666186, 0.561370121]]
    np.testing.assert_allclose(found["2.weight_new"], wanted, rtol=1e-6)
    assert "weight ← weight − 0.5·∂e/∂weight" in " ".join(capsys.readouterr().out.split())


WRITTEN: dict[str, tuple[str, str, str]] = {
    "missing": ("json", json.dumps({k: v for k, v in FLAT.items() if k != "2.bias"}), "found no 2.bias; add what is"),
    "unknown": ("json", json.dumps(FLAT | {"2.wieght": 1}), "found '2.wieght'; did you mean '2.weight'?"),
    "transposed": ("json", json.dumps({"1.weight": [[1, 2, 3], [4, 5, 6]], "1.bias": [0, 0]}),
                   "expected 1.weight of shape [3, 2], found [2, 3]; transpose it: a row for each input"),
    "shape": ("json", json.dumps({"1.weight": [[1, 2]], "1.bias": [0, 0]}), "of shape [3, 2], found [1, 2]"),
    "ragged": ("json", '{"1.weight": [[1, 2], [3]]}', "expected numbers in rows of one length in 1.weight"),
    "word": ("json", '{"1.weight": "a"}', "expected numbers in 1.weight, found 'a'"),
    "no JSON": ("json", "{", "expected JSON, found something else in line 1"),
    "infinite": ("json", '{"1.weight": [[1, 2], [3, 4], [5, Infinity]], "1.bias": [0, 0]}', "found inf; correct it"),
    "text": ("csv", "1.weight,1,2\n1.weight,x,2\n", "expected a number, found 'x' in line 2; write one"),
    "rows": ("csv", "1.weight,1,2\n1.weight,2\n", "expected rows of one length in 1.weight, found [2, 1] numbers"),
    "no safetensors": ("safetensors", "1.weight,1,2", "expected a whole safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize(("form", "text", "message"), WRITTEN.values(), ids=WRITTEN)
def test_what_is_wrong_with_a_file_of_parameters_is_said_after_its_path(form, text, message, tmp_path, capsys):
    path = tmp_path / f"weights.{form}"
    path.write_text(text)
    net = ["--net", "2 relu", "--outputs", "2"] if "2.b" in message or "2.w" in message else ["--net", "", "--outputs"]
    words = [*net, *([] if len(net) == 4 else ["2"]), "--shape", "2" if len(net) == 4 else "3"]
    assert cli.main(["trace", *words, "--params", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jbp: error: {path}: ") and message in line


def test_large_arrays_of_a_run_in_full(run, capsys):
    cli.Trace(run=run, full=True)()
    assert "from" not in (out := capsys.readouterr().out) and "mean" not in out and len(out.splitlines()) > 200


def test_a_step_of_a_run(run, capsys):
    found = cli.Trace(run=run, learning_rate=0.25, momentum=0.5)()
    capsys.readouterr()
    np.testing.assert_allclose(found["2.bias_new"], found["2.bias"] - 0.25 * found["2.de/dbias"], rtol=1e-6)
    assert set(found["2.v_bias"]) == {0.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "expected the folder of a run or --net with hidden layers, got neither"),
        ("RUN --net 2", "got both"),
        ("RUN --example 999", "example must be from 0 to 359"),
        ("RUN --example -1", "example must be from 0 to 359"),
        ("RUN --x 1", "x is for a net without a run"),
        ("RUN --params w.json", "params is for a net without a run"),
        ("--net 2 --params nowhere.json", "nowhere.json: expected a file, found nothing there"),
        ("--net 2 --momentum 0.9", "momentum and velocity are of a step: give its learning_rate too"),
        ("--net 2 --learning-rate 0.1 --momentum 1", "momentum must be a number in [0, 1)"),
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
