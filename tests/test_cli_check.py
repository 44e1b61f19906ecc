"""`jbp check`: that it covers everything public, passes what is right, and fails what is wrong, with exit status 1."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import jbp
from jbp import cli, combine, layers, losses, optim
from jbp.check.catalogue import catalogue
from jbp.layers import Activation

LAYER = '''
from dataclasses import dataclass
from typing import Any
import jbp

@dataclass(frozen=True)
class Gain(jbp.Layer):
    """y = 3x, and back with a factor of its own."""
    factor: float = {factor}

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return 3 * x, ()

    def backward(self, params, saved, delta):
        return self.factor * delta, ()

other = 5

class Needy(Gain):
    def __init__(self, needed): ...
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(LAYER.format(factor="3.0"))
    return path


def names(kind: str) -> str:
    return " ".join(item.name for item in catalogue() if item.kind == kind)


def test_every_public_name_is_in_the_catalogue():
    activations = [value for value in vars(layers).values() if isinstance(value, Activation)]
    classes = [
        v for v in vars(layers).values() if inspect.isclass(v) and issubclass(v, jbp.Layer) and v is not Activation
    ]
    assert len(activations) == 10
    for subject in (*activations, *(c.__name__ for c in classes if not issubclass(c, Activation))):
        assert repr(subject).strip("'") in names("layer"), subject
    combinators = [c for c in vars(combine).values() if inspect.isclass(c) and issubclass(c, combine.Combinator)]
    for subject in combinators:
        assert subject is combine.Combinator or subject.__name__.lower() in names("combinator"), subject
    for subject in (value for value in vars(losses).values() if isinstance(value, losses.Loss)):
        assert repr(subject) in names("loss"), subject
    for subject in (n for n, v in vars(optim).items() if inspect.isfunction(v)):
        assert subject in names("optimiser"), subject
    assert names("net") == "value_and_grad"


def test_the_names_of_the_catalogue_are_distinct():
    assert len({item.name for item in catalogue()}) == len(catalogue())


def test_a_right_layer_of_yours_passes(file: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check", f"{file}:Gain", "--shape", "7,5"]) == 0
    out = capsys.readouterr().out
    assert "Gain" in out
    assert "2 checks" in out
    assert "0 failed" in out


def test_a_wrong_layer_of_yours_fails_with_a_diagnosis(file: Path, capsys: pytest.CaptureFixture[str]):
    file.write_text(LAYER.format(factor="6.0"))
    assert cli.main(["check", f"{file}:Gain", "--shape", "7,5", "--dtype", "float64"]) == 1
    out, err = capsys.readouterr()
    assert "FAIL" in out
    assert "looks like" in out
    assert "factor" in out
    assert err.startswith("jbp: error: 1 of 1 checks failed: Gain(")
    assert len(err.splitlines()) == 1


def test_json_and_markdown_say_the_same(capsys: pytest.CaptureFixture[str]):
    words = ["check", "--layer", "heavy_ball", "--dtype", "float64"]
    assert cli.main([*words, "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["name"] == "heavy_ball(0.1)"
    assert report["compared"] > 100
    assert cli.main([*words, "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| what | against | worst error in float64 |")
    assert lines[2].startswith("| heavy_ball(0.1) | reference, laws |")
    assert lines[2].endswith("| pass |")


WRONG: dict[str, tuple[list[str], str]] = {
    "unknown": (["--layer", "relo"], "nothing to check is called 'relo'"),
    "dtype": (["--dtype", "float16"], "unknown dtype 'float16'"),
    "two forms": (["--json", "--markdown"], "one of --json and --markdown"),
    "shape alone": (["--shape", "3"], "--shape is for a layer of yours"),
    "no name": (["{file}"], "expected path/to/file.py:NAME"),
    "no file": (["{file}x:Gain", "--shape", "3"], "found nothing there"),
    "no such layer": (["{file}:Gone", "--shape", "3"], "there is no 'Gone' in it; its layers are Gain, Needy"),
    "no layer": (["{file}:other", "--shape", "3"], "expected a layer .* found a int"),
    "arguments": (["{file}:Needy", "--shape", "3"], "the class needs arguments"),
    "no shape": (["{file}:Gain"], "needs --shape"),
    "bad shape": (["{file}:Gain", "--shape", "a,b"], "whole numbers with commas between"),
    "both": (["{file}:Gain", "--shape", "3", "--layer", "relu"], "leave it out"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_use_is_one_line_and_status_2(words: list[str], message: str, file: Path, capsys: Any):
    import re

    assert cli.main(["check", *(word.format(file=file) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"jbp: error: .*{message}.*\n", err), err


def test_a_file_that_does_not_import_says_so(tmp_path: Path, capsys: Any):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_that_name\n")
    assert cli.main(["check", f"{path}:Gain", "--shape", "3"]) == 2
    assert "could not be imported: ModuleNotFoundError" in capsys.readouterr().err
