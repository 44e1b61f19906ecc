"""The claims' scripts, quick: each holds, its negative control fails, and bad use ends in one line."""

import argparse
import copy
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import BATCH
from oracles import assert_close

import jbp

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CLAIMS = EXPERIMENTS / "claims"
sys.path[:0] = [str(EXPERIMENTS), str(CLAIMS), str(EXPERIMENTS / "measurements")]

import all as every  # noqa: E402
import claim  # noqa: E402
import common  # noqa: E402

SCRIPTS = every.CLAIMS
QUICK = {"from_scratch", "lecture_algorithm", "sum_over_paths", "vanishing_gradients"}
"""The claims that need no more than a few seconds; the others are run by `make soak`."""


def _marked(name: str) -> Any:
    return pytest.param(name, marks=[] if name in QUICK else [pytest.mark.soak])


@pytest.mark.parametrize("name", list(map(_marked, SCRIPTS)))
def test_the_claim_holds_and_its_control_does_not(name, tmp_path):
    script = claim.load(name)
    result = claim.run(script, script.QUICK)
    script.check(result)
    claim.draw(script, result, tmp_path, name)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png"}
    assert all(isinstance(text, str) and 0 < len(text) < 300 for text in script.summary(result))
    control = claim.run(script, script.CONTROL)
    assert claim.verdict(script, control)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_saved_result_is_whole(name):
    saved = common.RESULTS / f"{name}.json"
    result = json.loads(saved.read_text())
    script = claim.load(name)
    assert {"config", "versions", "date", "seconds"} <= set(result)
    assert result["config"].keys() == script.FULL.__dataclass_fields__.keys()
    script.check(result)
    assert (common.RESULTS / f"{name}.png").exists()


@pytest.mark.parametrize("path", sorted(common.RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_a_saved_result_has_the_one_form(path):
    assert path.read_text() == common.text_of(json.loads(path.read_text())), "write it with experiments/common.py"


def test_a_result_is_written_one_row_a_line():
    result = {"command": "a.py", "config": {"widths": (3, 2), "rate": 1e-06}, "rows": [{"θ": [1.0, None]}, {"θ": []}]}
    result |= {"by net": {"a": {"curve": [[1, 2], [3, 4]]}}, "flat": [1, 2.5], "none": []}
    assert (
        common.text_of(result)
        == """{
 "command": "a.py",
 "config": {"widths": [3, 2], "rate": 1e-06},
 "rows": [
  {"θ": [1.0, null]},
  {"θ": []}
 ],
 "by net": {
  "a": {
   "curve": [
    [1, 2],
    [3, 4]
   ]
  }
 },
 "flat": [1, 2.5],
 "none": []
}
"""
    )
    assert json.loads(common.text_of(result)) == json.loads(json.dumps(result))


def test_one_writer_makes_every_saved_result():
    """No script writes text or lays JSON out by itself; `claim.draw` puts what common.py made beside its picture."""
    scripts = {*EXPERIMENTS.rglob("*.py"), *(EXPERIMENTS.parent / "tests" / "mutation").glob("mutat*.py")}
    scripts |= {EXPERIMENTS.parent / "tests" / "fuzz.py"}
    own = re.compile(r"write_text|json\.dump\(|\bindent=")
    assert {path.name for path in scripts if own.search(path.read_text())} == {"common.py", "claim.py"}


def test_every_script_is_in_one_list():
    """The claims are those of all.py; the measurements those of the Makefile, and the one that writes docs/check.md."""
    claims = {path.stem for path in CLAIMS.glob("*.py")} - {"all", "claim"}
    assert claims == set(every.CLAIMS)
    (loop,) = re.findall(r"for script in ([\w\s\\]+);", (EXPERIMENTS.parent / "Makefile").read_text())
    measurements = {path.stem for path in (EXPERIMENTS / "measurements").glob("*.py")}
    assert measurements == {*loop.replace("\\", " ").split(), "check_table"}


def test_the_table_is_made_from_the_saved_results():
    assert every.PAGE.read_text() == every.table()


def test_a_contradicted_claim_is_marked_in_the_table(monkeypatch):
    script = claim.load("sum_over_paths")
    monkeypatch.setattr(script, "check", lambda result: claim.require(False, "3 paths are missing"))
    assert "| **does not hold**: 3 paths are missing; " in every.table()


def test_what_further_seeds_gave_is_in_the_table():
    """Three further seeds of a claim are run in full, each once; one that fails is on the page."""
    found, page = every.further(), every.PAGE.read_text()
    assert found and set(found) <= set(every.CLAIMS)
    for name, rows in found.items():
        (line,) = (line for line in page.splitlines() if f"](claims/{name}.py)" in line and line.startswith("|"))
        assert set(rows) <= {"1", "2", "3"}
        for seed, row in rows.items():
            assert {"failure", "measured", "date", "seconds", "versions"} == set(row)
            assert not row["failure"] or f"**{seed} does not hold**: {row['failure']}" in line
        held = [seed for seed, row in rows.items() if not row["failure"]]
        assert not held or f"{', '.join(held)} hold" in line


def test_the_published_figures_decide():
    """The negative control of a comparison that the quick configuration, digits, has no figures for."""
    script = claim.load("mnist_networks")
    result = json.loads((common.RESULTS / "mnist_networks.json").read_text())
    assert len(script.of_nielsen(result)) == 3
    for row in [*script.of_nielsen(result), *(row for row in result["rows"] if "ReLU" in row["name"])]:
        other = copy.deepcopy(result)
        changed = next(r for r in other["rows"] if r["name"] == row["name"])
        changed["published"] += 0.02
        assert row["name"] in claim.verdict(script, other)


def test_checks_read_the_rows_that_are_saved():
    """Whatever a result says of itself, a row that is off is found."""
    for name, change in CHANGES.items():
        script, result = claim.load(name), json.loads((common.RESULTS / f"{name}.json").read_text())
        change(result)
        assert claim.verdict(script, result), name


def _shift(row: dict[str, float]) -> None:
    row["measured"] = row["predicted"] + 10 * row["standard error"]


CHANGES = {
    "gd_and_sgd": lambda result: _shift(result["sgd"][3]["rows"][2][1]),
    "momentum": lambda result: _shift(result["variance"][4]),
    "sgd_samples": lambda result: _shift(result["cases"][2]["rows"][5]),
    "lecture_algorithm": lambda result: result["runs"][1]["errors in eps"].update({"δ": 1000.0}),
    "backward_of_convolution": lambda result: result["errors in eps"]["dilation 2"].update({"δ_x, jax.grad": 1000.0}),
}


def test_backpropagation_in_one_file_has_the_librarys_gradients():
    script = claim.load("from_scratch")
    assert not {"jbp", "claim", "common"} & {
        line.split()[1].split(".")[0] for line in _imports(CLAIMS / "from_scratch.py")
    }
    params = script.init(jax.random.key(1), (64, 7, 5, 10))
    x, y = jax.random.normal(jax.random.key(2), (BATCH, 64)), jnp.arange(BATCH) % 10
    output, saved = script.forward(params, x)
    found = script.gradients(saved, script.backward(params, saved, script.output_delta(output, y)))
    net = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(5), jbp.tanh, jbp.Dense(10))
    first, second, last = params
    _, expected = jbp.value_and_grad(net, jbp.losses.softmax_cross_entropy)((first, (), second, (), last), x, y)
    assert_close(tuple(found), expected[::2], "net")


def test_the_accuracy_of_convolutional_nets_is_a_mean_over_every_seed():
    """What was reached by all seeds of all tasks passes; a mean that is too low and a seed that is missing do not."""
    script = importlib.import_module("conv_accuracy")
    config, need = script.Config(), {"mnist": 0.994, "fashion": 0.925, "rules": 0.97}
    told = {"kind": "result", "learning_rate": 0.01, "epochs": 3, "validation_accuracy": 0.9}
    rows = [
        told | {"section": task.section, "data": task.data, "rule": task.rule, "seed": seed}
        | {"test_accuracy": need[task.section] + 0.001 * (seed - 1)}
        for task in script.tasks(config, script.SECTIONS)
        for seed in config.seeds
    ]  # fmt: skip
    result = {"config": {"seeds": list(config.seeds)}, "rows": rows}
    script.check(result)
    assert script.worded(rows, "mnist", "mnist") == "99.40 % (99.30 to 99.50)"
    with pytest.raises(common.ClaimFailed, match=r"fashion, fashion-mnist, .* 91\.\d+% is below 92"):
        script.check(
            result
            | {
                "rows": [
                    r | {"test_accuracy": r["test_accuracy"] - 0.01} if r["section"] == "fashion" else r for r in rows
                ]
            }
        )
    with pytest.raises(common.ClaimFailed, match=r"rules, .*: 2 of 3 seeds were run"):
        script.check(result | {"rows": rows[:-1]})


QUANTITIES = {
    "norms", "gradient and norms", "clipped sum", "second moment", "gradient and second moment", "variance",
    "noise scale", "Gram matrix", "per-example gradients", "gradient and Kronecker factors", "Gauss-Newton diagonal",
    "Gauss-Newton product", "Hessian product",
}  # fmt: skip


def test_every_quantity_of_one_backward_pass_is_compared_with_autodiff():
    """What it finds both ways is compared in `run`, which fails if it differs."""
    script = importlib.import_module("one_backward_pass")
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        result = script.run((13, 7, 5), BATCH, 2)
    assert {(r["quantity"], r["by"]) for r in result["rows"]} == {
        ("plain gradient", "jbp"), *((name, way) for name in QUANTITIES for way in ("jbp", "autodiff")),
    }  # fmt: skip
    parameters = 4 * (13 * 7 + 7 + 7 * 5 + 5)
    for way in ("jbp", "autodiff"):
        row = script.find(result, "per-example gradients", way)
        assert BATCH * parameters <= row["output_bytes"] <= BATCH * parameters + 256  # and the pointers to the arrays
    script.show(result)
    assert len(script.plot(result).axes) == 2


def _imports(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]


def _script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CLAIMS / "sum_over_paths.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_bad_use_ends_with_one_line(tmp_path, monkeypatch, capsys):
    script = claim.load("sum_over_paths")
    monkeypatch.setitem(sys.modules, "__main__", script)

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["sum_over_paths.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            claim.main()
        return ended.value.code, capsys.readouterr().err

    code, unknown = run("--fast")
    assert code == 2 and "unrecognized arguments: --fast" in unknown
    (tmp_path / "file").write_text("")
    (tmp_path / "sum_over_paths.json").write_text('{"rows": 1}')
    for arguments, message in (
        (("--quick", "--out", str(tmp_path / "file" / "results")), "(Not a directory): give another folder as --out"),
        (("--seed", "-1"), "--seed must be from 0 to 65535, but is -1"),
        (("--plot", "--out", str(tmp_path)), "as it is now, found another shape"),
        (("--plot", "--out", str(tmp_path / "none")), "run without --plot first"),
    ):
        code, said = run(*arguments)
        assert code == 2
        (line,) = said.strip().splitlines()
        assert message in line
    control = _script("--control")  # as it is run from a shell
    assert control.returncode == 1
    assert "does not hold" in control.stderr


def test_ctrl_c_while_jax_is_imported_is_one_line():
    lines = f"import sys; sys.path.insert(0, {str(CLAIMS)!r}); sys.argv[0] = {str(CLAIMS / 'momentum.py')!r}"
    lines += "; import claim; assert 'jax' not in sys.modules; raise KeyboardInterrupt"
    run = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert run.stderr == "interrupted, nothing was written\n"


@pytest.mark.parametrize("at", ["run", "plot"])
def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, at):
    script = claim.load("sum_over_paths")

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "run", lambda config: {})
    monkeypatch.setattr(script, at, stop)
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.setattr(sys, "argv", ["sum_over_paths.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="130"):
        claim.main()
    assert capsys.readouterr().err == "sum_over_paths: interrupted, nothing was written\n"
    assert not list(tmp_path.iterdir())


def test_an_interrupted_picture_leaves_the_old_files(tmp_path, monkeypatch):
    """Result and picture belong together: both files change, or neither does."""
    script = claim.load("sum_over_paths")
    result = json.loads((common.RESULTS / "sum_over_paths.json").read_text())
    claim.draw(script, result, tmp_path, "name", "old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"name.json", "name.png"}

    def stop(result: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "plot", stop)
    with pytest.raises(KeyboardInterrupt):
        claim.draw(script, result, tmp_path, "name", "new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    common.save(path, "old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        common.save(path, "new")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_further_seeds_are_named_as_a_range():
    assert every.seeds_of("1:4") == range(1, 4)
    for wrong in ("1", "4:1", "a:b", "2:2"):
        with pytest.raises(argparse.ArgumentTypeError, match="two whole numbers A:B"):
            every.seeds_of(wrong)
