"""`jbp check`: that it covers everything public, passes what is right, and fails what is wrong, with exit status 1."""

import importlib
import inspect
import io
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import jax
import pytest

import jbp
from jbp import cli, combine, layers, losses, optim
from jbp.check.cases import Gain
from jbp.check.catalogue import catalogue
from jbp.cli.check import Check
from jbp.combine import Tied
from jbp.combine.tied import Uses
from jbp.layers import Activation
from jbp.rules.rule import Way
from jbp.train import live

ROOT = Path(__file__).parents[1]

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
right = Gain(3.0)

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
    assert len(activations) >= 10
    for subject in (*activations, *(c.__name__ for c in classes if not issubclass(c, Activation))):
        assert repr(subject).strip("'") in names("layer"), subject
    for subject in (value for value in vars(losses).values() if isinstance(value, losses.Loss)):
        assert repr(subject) in names("loss"), subject
    for subject in (n for n in dir(optim) if inspect.isfunction(getattr(optim, n)) and n != "decay_mask"):
        assert subject in names("optimiser"), subject
    assert names("net").startswith("value_and_grad value_and_grad: weights, NaN at weight 0")
    for case in ("softmax on [7]", "relu, leaky_relu and elu at 0", "(pair Scale)"):
        assert case in names("layer"), case
    for case in ("sgd(schedule)", "heavy_ball(schedule)", "nesterov(schedule)"):
        assert case in names("optimiser"), case
    for subject in (value for value in vars(losses).values() if isinstance(value, losses.Loss)):
        assert f"{subject!r} at positions" in names("loss"), subject


NO_GRADIENT: dict[type, str] = cases.NO_GRADIENT | {
    Uses: "what a tied net visits when all uses of a parameter are found: it has no forward of its own",
    Way: "a learning rule's way back, by intent another than the gradient's; tests/test_rules.py holds each rule",
}
"""The layers and combinators that no check of derivatives may confirm, and what holds them instead."""


def every_kind(kind: type) -> Iterator[type]:
    """The classes under jbp that are made from this one, wherever they stand."""
    for module in pkgutil.walk_packages(jbp.__path__, "jbp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    below = [inner for subclass in kind.__subclasses__() for inner in (subclass, *every_kind(subclass))]
    yield from (inner for inner in below if inner.__module__.split(".")[0] == "jbp")


def test_every_layer_and_combinator_wherever_it_stands_is_in_the_catalogue_or_exempt_for_a_stated_reason():
    kinds = {k for k in every_kind(jbp.Layer) if not k.__name__.startswith("_")} - {Activation, combine.Combinator}
    assert {combine.Serial, Tied, jbp.Dense, jbp.layers.Relu, Gain} <= kinds
    shown = f"{names('layer')} {names('combinator')}"
    missing = {k for k in kinds if not re.search(rf"\b{k.__name__}\b|\b{_snake(k)}\b", shown)}
    assert missing == NO_GRADIENT.keys()


def _snake(kind: type) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def test_the_names_of_the_catalogue_are_distinct():
    assert len({item.name for item in catalogue()}) == len(catalogue())


def test_a_right_layer_of_yours_passes(file: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check", f"{file}:Gain", "--shape", "7,5"]) == 0
    out = capsys.readouterr().out
    assert "Gain" in out
    assert "2 checks" in out
    assert "0 failed" in out


def test_several_layers_of_yours_with_arguments_of_their_own(file: Path, capsys: pytest.CaptureFixture[str]):
    targets = [f"{file}:Gain(factor=3)", f"{file}:right", f"{file}:Gain(6.0)"]
    assert cli.main(["check", *targets, "--shape", "5", "--dtype", "float64"]) == 1
    out, err = capsys.readouterr()
    assert err == "jbp: error: 1 of 3 checks failed: Gain(factor=6.0) on [5], float64 in float64\n" or (
        "1 of 3 checks failed: Gain(factor=6.0)" in err
    )
    # What failed comes first, with its report, in which what passed is folded.
    assert out.startswith(
        "Gain(factor=6.0) on [5], float64: FAILED (= vjp, adjoint, derivative)\nFAIL = vjp at delta_x"
    )
    assert out.index("FAIL = vjp") < out.index("vmap = loop") < out.index("Gain(factor=3)")
    assert "Gain(factor=3) on [5]" not in out and out.count("vmap = loop") == 1


def test_the_whole_by_a_flag(file: Path, capsys: pytest.CaptureFixture[str]):
    words = ["check", f"{file}:Gain", "--shape", "5", "--dtype", "float64"]
    assert cli.main(words) == 0
    short = capsys.readouterr().out
    assert cli.main([*words, "--full"]) == 0
    whole = capsys.readouterr().out
    assert "vmap = loop" not in short and whole.count("vmap = loop") == 4 and "cpu" in whole
    assert cli.main(["check", "--layer", "sgd", "--dtype", "float64"]) == 0
    assert "sgd(schedule)" in capsys.readouterr().out


def test_what_passed_is_a_line_for_each_kind(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["check", "--layer", "(", "--dtype", "float64"]
    optimisers = tuple(item for item in catalogue() if item.kind == "optimiser")
    monkeypatch.setattr("jbp.cli.check.catalogue", lambda: optimisers)
    assert cli.main(words) == 0
    short = capsys.readouterr().out
    assert "7 optimisers: sgd(0.1), sgd(0.1, momentum=0.9), heavy_ball(0.1), nesterov(0.1)" in short
    assert cli.main([*words, "--full"]) == 0
    whole = capsys.readouterr().out
    assert "optimisers" not in whole and whole.count("reference, laws") == 7


CONSTANT = """
from dataclasses import dataclass
import numpy as np
import jbp

S = np.array([0.1, 0.2, 0.3])

@dataclass(frozen=True)
class Scaled(jbp.Layer):
    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return S * x, ()

    def backward(self, params, saved, delta):
        return S * delta, ()
"""


def test_a_layer_with_a_constant_of_numpys_float64_passes_in_both_dtypes(tmp_path: Path, capsys: Any):
    path = tmp_path / "constant.py"
    path.write_text(CONSTANT)
    with jax.numpy_dtype_promotion("standard"):
        assert cli.main(["check", f"{path}:Scaled", f"{path}:Scaled", "--shape", "3"]) == 0, capsys.readouterr().out
    assert "4 checks" in capsys.readouterr().out


def test_a_wrong_layer_of_yours_fails_with_a_diagnosis(file: Path, capsys: pytest.CaptureFixture[str]):
    file.write_text(LAYER.format(factor="6.0"))
    assert cli.main(["check", f"{file}:Gain", "--shape", "7,5", "--dtype", "float64"]) == 1
    out, err = capsys.readouterr()
    assert "FAIL" in out
    assert "looks like" in out
    assert "factor" in out
    (line,) = [line for line in err.splitlines() if not line.startswith("checking ")]  # that comes after two seconds
    assert line.startswith("jbp: error: 1 of 1 checks failed: Gain(")


def test_json_and_markdown_say_the_same(capsys: pytest.CaptureFixture[str]):
    words = ["check", "--layer", "heavy_ball(0.1)", "--dtype", "float64"]
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


def test_the_table_of_the_page_is_the_saved_run_of_this_catalogue():
    """Every item passed, and there still is one of each name; what is newer than the run waits for the next."""
    page = (ROOT / "docs" / "check.md").read_text()
    (table,) = re.findall(r"<!-- jbp check -->\n(.*?)<!-- end of jbp check -->", page, re.S)
    rows = [line.strip("| \n").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    shown, today = [row[0] for row in rows if row[0] != "---"], {item.name for item in catalogue()}
    assert len(set(shown)) == len(shown) >= 50 and set(shown) <= today
    assert {row[-1] for row in rows if row[0] != "---"} == {"pass"}
    saved = json.loads((ROOT / "experiments" / "results" / "check.json").read_text())
    assert [row["name"] for row in saved["rows"] if row["dtype"] == "float64"] == shown
    assert {(row["name"], row["worst"]) for row in saved["rows"] if row["dtype"] == "float64"} == {
        (row[0], row[2]) for row in rows if row[0] != "---"
    }
    assert all(row["passed"] for row in saved["rows"])
    compared = sum(row["compared"] for row in saved["rows"])
    for text in (page, (ROOT / "README.md").read_text()):
        assert f"{len(shown)} items, {compared:,} numbers" in text


def test_differences_run_once_for_both_dtypes():
    assert ["finite differences" in row.oracles for row in Check(layer="identity")()] == [True, False]
    (row,) = Check(layer="identity", dtype="float32")()
    assert "finite differences" in row.oracles


def test_the_seed_makes_the_check(capsys: pytest.CaptureFixture[str]):
    def entries(seed: str) -> str:
        assert cli.main(["check", "--layer", "sgd(0.1)", "--dtype", "float32", "--json", "--seed", seed]) == 0
        return capsys.readouterr().out

    one = entries("1")
    assert one == entries("1") != entries("2")


def test_the_progress_line_is_alive_on_a_terminal(monkeypatch: Any):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(live, "_ANEW", 0.0)
    Check(layer="sgd(0.1)")()
    shown = [part.strip() for part in stream.getvalue().split("\r")]
    assert shown[:4] == ["", "checking 0/2", "checking 1/2  sgd(0.1), float64", "checking 2/2  sgd(0.1), float32"]
    assert not any(shown[4:])


WRONG: dict[str, tuple[list[str], str]] = {
    "unknown": (["--layer", "relo"], "nothing to check is called 'relo'"),
    "dtype": (["--dtype", "float16"], "unknown dtype 'float16'"),
    "two forms": (["--json", "--markdown"], "one of --json and --markdown"),
    "shape alone": (["--shape", "3"], "--shape is for a layer of yours"),
    "no name": (["{file}"], "expected path/to/file.py:NAME"),
    "no file": (["{file}x:Gain", "--shape", "3"], "found nothing there"),
    "no such layer": (["{file}:Gone", "--shape", "3"], "there is no 'Gone' in it; its layers are Gain, right, Needy"),
    "no layer": (["{file}:other", "--shape", "3"], "expected a layer .* found a int"),
    "arguments": (["{file}:Needy", "--shape", "3"], r"Needy needs needed: give them, as in .*mine.py:Needy\(5\)"),
    "too many": (["{file}:Gain(1, 2)", "--shape", "3"], r"Gain\(1, 2\) failed: TypeError: .*positional arguments"),
    "code": (["{file}:Gain(print(1))", "--shape", "3"], "expected a name, or a name with numbers, texts, lists"),
    "more code": (["{file}:Gain(**{{}})", "--shape", "3"], "expected a name, or a name with numbers"),
    "half": (["{file}:Gain(1", "--shape", "3"], "expected a name, or a name with numbers"),
    "called": (["{file}:right(1)", "--shape", "3"], "right is a Gain, which takes no arguments: leave them out"),
    "second": (["{file}:Gain", "{file}:Gone", "--shape", "3"], "there is no 'Gone' in it"),
    "no shape": (["{file}:Gain"], "needs --shape"),
    "bad shape": (["{file}:Gain", "--shape", "a,b"], "whole numbers with commas between"),
    "both": (["{file}:Gain", "--shape", "3", "--layer", "relu"], "leave it out"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_use_is_one_line_and_status_2(words: list[str], message: str, file: Path, capsys: Any):
    assert cli.main(["check", *(word.format(file=file) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"jbp: error: .*{message}.*\n", err), err


def test_a_layer_that_breaks_the_protocol_fails_and_does_not_crash(file: Path, capsys: Any):
    file.write_text(
        LAYER.format(factor="3.0").replace("return 3 * x, ()", "return (x, x), ()") + "\nGain.uses_key = False"
    )
    assert cli.main(["check", f"{file}:Gain", "--shape", "7", "--dtype", "float64"]) == 1
    assert "y must be one array" in capsys.readouterr().out


def test_a_file_may_import_what_lies_beside_it_and_have_any_name(tmp_path: Path):
    (tmp_path / "sibling_of_numpy.py").write_text("FACTOR = 3.0\n")
    path = tmp_path / "numpy.py"
    path.write_text(
        LAYER.format(factor="FACTOR").replace("import jbp", "import jbp\nfrom sibling_of_numpy import FACTOR")
    )
    before = sys.modules["numpy"], list(sys.path)
    assert cli.main(["check", f"{path}:Gain", "--shape", "7", "--dtype", "float32"]) == 0
    assert (sys.modules["numpy"], sys.path) == before


def test_a_file_that_exits_says_so(tmp_path: Path, capsys: Any):
    path = tmp_path / "leaves.py"
    path.write_text("raise SystemExit(3)\n")
    assert cli.main(["check", f"{path}:Gain", "--shape", "3"]) == 2
    assert "could not be imported: SystemExit: 3" in capsys.readouterr().err


def test_a_file_that_does_not_import_says_so(tmp_path: Path, capsys: Any):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_that_name\n")
    assert cli.main(["check", f"{path}:Gain", "--shape", "3"]) == 2
    assert "could not be imported: ModuleNotFoundError" in capsys.readouterr().err
