"""A layer is three files: its own, an export and a row. Toy layers are added so, and are then enrolled everywhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from jbp.check.cases import COMBINATORS, LAYERS

ROOT = Path(__file__).parents[1]

FILE = '''
"""Toy layers: a product under other names, and a table that is looked up."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jbp.layer import Layer
from jbp.pairs import Outer


@dataclass(frozen=True, repr=False)
class Toy(Layer):
    """y[t,o] = f Σᵢ x[t,i] M[i,o]."""

    width: int
    factor: float = 2.0
    uses_key = False
    piecewise_linear = True
    word = "toy"

    def init(self, key: Any, shape: Any) -> Any:
        """M."""
        return {"matrix": jax.random.normal(key, (shape[-1], self.width))}, (*shape[:-1], self.width)

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        """f x M; saves x."""
        return self.factor * (x @ params["matrix"]), x

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        """f δ Mᵀ, and the pair (x, f δ)."""
        matrix, delta = params["matrix"], self.factor * delta
        pair = Outer(saved.reshape(-1, saved.shape[-1]), delta.reshape(-1, self.width), matrix.shape)
        return delta @ matrix.T, {"matrix": pair}

    def formulas(self) -> tuple[str, str]:
        """With its factor."""
        return f"y = {self.factor:g}·x·matrix", f"δ_x = {self.factor:g}·δ·matrixᵀ"


@dataclass(frozen=True, repr=False)
class ToyTable(Layer):
    """y[t,o] = M[x[t],o] of whole numbers x."""

    vocabulary: int
    width: int
    uses_key = False
    word = "toy_table"

    def init(self, key: Any, shape: Any) -> Any:
        """M."""
        return {"rows": jax.random.normal(key, (self.vocabulary, self.width))}, (*shape, self.width)

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        """M[x]; saves x."""
        return params["rows"][x], x

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        """No δ_x; the pair (onehot(x), δ)."""
        h = jax.nn.one_hot(saved.reshape(-1), self.vocabulary, dtype=delta.dtype)
        return None, {"rows": Outer(h, delta.reshape(-1, self.width), (self.vocabulary, self.width))}

    def formulas(self) -> tuple[str, str]:
        """A look at the table."""
        return "y = rows[x]", "none"
'''
EXPORT = """
from jbp.layers.toy import Toy, ToyTable
__all__ += ["Toy", "ToyTable"]
"""
ROW = """
    CaseRow(
        lambda layer, params, x, key: layer.factor * jnp.einsum("...i,io->...o", x, params["matrix"]),
        (NetCase("toy", layers.Toy(5), (2, 3)),),
    ),
    CaseRow(
        lambda layer, params, x, key: jnp.take(params["rows"], x, axis=0),
        (NetCase("toy table", layers.ToyTable(7, 5), (3,), inputs=7),),
    ),
"""
ENROLLED = """
import json, sys
from pathlib import Path

import jax, jbp, pytest
from jbp import checkpoint, cli, layers
from jbp.check.catalogue import catalogue
from jbp.cli import netspec

TOY = layers.Toy(5, 0.5)

def test_toy_words():
    assert netspec.parse("toy:5:0.5 toy:3 toy_table:7:2") == (TOY, layers.Toy(3), layers.ToyTable(7, 2))
    assert netspec.spec(netspec.build("toy:5:0.5 relu toy:3", (3,), 2)) == "toy:5:0.5 relu toy:3 2"
    for word, message in [("toy", "toy needs toy:WIDTH"), ("toy:x", "whole number after"), ("toyy:3", "mean 'toy'?")]:
        with pytest.raises(ValueError) as caught:
            netspec.parse(word)
        assert message in str(caught.value)

def test_toy_help(capsys):
    with pytest.raises(SystemExit):
        raise SystemExit(cli.main(["train", "--help"]))
    assert "toy:5, toy_table:7:5" in " ".join(capsys.readouterr().out.split())

def test_toy_check(capsys):
    assert {"Toy(5)", "ToyTable(7, 5)"} <= {item.name for item in catalogue() if item.kind == "layer"}
    assert cli.main(["check", "--layer", "Toy", "--dtype", "float32", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["passed"]) for row in rows] == [("Toy(5)", True), ("ToyTable(7, 5)", True)]
    assert all(row["compared"] > 30 for row in rows)
    assert cli.main(["check", "--layer", "Toi(5)"]) == 2
    assert "did you mean 'Toy(5)'?" in capsys.readouterr().err

def test_toy_trace(capsys):
    assert cli.main(["trace", "--net", "toy:3:0.5", "--x", "1,2", "--y", "1"]) == 0
    shown = capsys.readouterr().out
    assert "y = 0.5·x·matrix " in shown and "δ_x = 0.5·δ·matrixᵀ " in shown

def test_toy_checkpoint(tmp_path):
    net = jbp.serial(TOY, jbp.Dense(2))
    params, _ = net.init(jax.random.key(0), (3,))
    checkpoint.save(tmp_path / "net.safetensors", params, checkpoint.describe(net))
    loaded, about = checkpoint.load(tmp_path / "net.safetensors", params)
    assert checkpoint.net_from(about) == net and (loaded[0]["matrix"] == params[0]["matrix"]).all()

def test_toy_reference():
    from test_reference import PAGE, listed, public
    assert {"jbp.layers.Toy", "jbp.layers.ToyTable"} <= public() & listed(PAGE)

def test_toy_mutants(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "mutation")
    import mutate
    assert mutate.TARGETS["layers/toy.py"] == {"Toy.backward": "row:Toy", "ToyTable.backward": "row:ToyTable"}
    assert not [place for place in mutate.unreached() if "toy" in place]
"""


def documented(page: str, kind: type) -> bool:
    """Whether the reference shows a class: by itself, with its module, or with the package around its module."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    for block in re.findall(r"^::: (\S+(?:\n .*)*)", page, re.M):
        path = block.split()[0]
        if path in (name, kind.__module__) or (name.startswith(f"{path}.") and "show_submodules: true" in block):
            return True
    return False


def test_the_reference_has_every_layer_and_combinator():
    page = (ROOT / "docs" / "reference.md").read_text()
    kinds = [row.kind for row in (*LAYERS, *COMBINATORS) if not row.kind.__module__.startswith("jbp.check.")]
    assert len(kinds) > 17
    for kind in kinds:
        assert documented(page, kind), kind
        assert not documented(page.replace("show_submodules: true", ""), kind)


def added(folder: Path) -> None:
    """The package, the tests and what they read, with the three pieces of text in their places."""
    for name in ("jbp", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", Path(__file__).name))
    for name in (
        "pyproject.toml", "README.md", "docs/reference.md", "docs/check.md", "experiments/common.py",
        "experiments/results/check.json",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "jbp" / "layers" / "toy.py").write_text(FILE)
    with (folder / "jbp" / "layers" / "__init__.py").open("a") as file:
        file.write(EXPORT)
    table = folder / "jbp" / "check" / "cases.py"
    begin = "LAYERS: tuple[CaseRow, ...] = (\n"
    before, after = table.read_text().split(begin)
    first, rest = after.split("\n)\n", 1)
    table.write_text(f"{before}{begin}{first}{ROW})\n{rest}")
    (folder / "tests" / "test_enrolled.py").write_text(ENROLLED)


HELD_BY = (
    "test_enrolled", "test_gradients", "test_layers", "test_combine", "test_trace", "test_statistics",
    "test_cli_check", "test_check_catalogue", "test_architecture", "test_properties",
)  # fmt: skip
SEEN = "toy or every_layer or every_public_name or names_of_the_catalogue or table_of_the_page or reach_everything"
"""The toys' own rows, and the tests that look over all layers."""


def test_a_layer_of_three_files_is_enrolled_everywhere(tmp_path: Path):
    added(tmp_path)
    files = [f"tests/{name}.py" for name in HELD_BY]
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-m", "", "-k", SEEN]
    found = subprocess.run(
        [*command, *files], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
    for name in HELD_BY[1:6]:
        for toy in ("toy", "toy table"):
            assert re.search(rf"tests/{name}\.py::\w+\[{toy}\] PASSED", found.stdout), f"{toy} is not in {name}"
    assert re.search("test_every_layer_and_combinator_wherever_it_stands.* PASSED", found.stdout)
