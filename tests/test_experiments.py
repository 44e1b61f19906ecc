"""The claims' scripts, quick: each holds, its negative control fails, and bad use ends in one line."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from cases import BATCH
from oracles import assert_close

import jbp

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import all as every  # noqa: E402
import claim  # noqa: E402

SCRIPTS = [name for name in every.CLAIMS if name != "from_scratch"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_claim_holds_and_its_control_does_not(name, tmp_path):
    script = claim.load(name)
    result = claim.run(script, script.QUICK)
    script.check(result)
    claim.draw(script, result, tmp_path, name)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png", f"{name}.svg"}
    assert all(isinstance(text, str) and 0 < len(text) < 300 for text in script.summary(result))
    control = claim.run(script, script.CONTROL)
    with pytest.raises(claim.ClaimFailed):
        script.check(control)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_saved_result_is_whole(name):
    saved = claim.RESULTS / f"{name}.json"
    result = json.loads(saved.read_text())
    script = claim.load(name)
    assert {"config", "versions", "date", "seconds"} <= set(result)
    assert result["config"].keys() == script.FULL.__dataclass_fields__.keys()
    script.check(result)
    assert (claim.RESULTS / f"{name}.png").exists()
    assert (claim.RESULTS / f"{name}.svg").exists()


def test_the_table_is_made_from_the_saved_results():
    assert (EXPERIMENTS / "README.md").read_text() == every.table()


def test_backpropagation_in_one_file_has_the_librarys_gradients():
    script = claim.load("from_scratch")
    assert not {"jbp", "claim"} & {line.split()[1].split(".")[0] for line in _imports(EXPERIMENTS / "from_scratch.py")}
    script.check(script.run(quick=True))
    params = script.init(jax.random.key(1), (64, 7, 5, 10))
    x, y = jax.random.normal(jax.random.key(2), (BATCH, 64)), jnp.arange(BATCH) % 10
    output, saved = script.forward(params, x)
    found = script.gradients(saved, script.backward(params, saved, script.output_delta(output, y)))
    net = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(5), jbp.tanh, jbp.Dense(10))
    first, second, last = params
    _, expected = jbp.value_and_grad(net, jbp.losses.softmax_cross_entropy)((first, (), second, (), last), x, y)
    assert_close(tuple(found), expected[::2], "net")


QUANTITIES = {
    "norms", "gradient and norms", "clipped sum", "second moment", "gradient and second moment", "variance",
    "noise scale", "Gram matrix", "per-example gradients", "gradient and Kronecker factors", "Gauss-Newton diagonal",
    "Gauss-Newton product", "Hessian product",
}  # fmt: skip


def test_every_quantity_of_one_backward_pass_is_compared_with_autodiff():
    """What it finds both ways is compared in `run`, which fails if it differs."""
    script = claim.load("one_backward_pass")
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


def test_bad_use_ends_with_one_line(tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXPERIMENTS / "sum_over_paths.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    unknown = run("--fast")
    assert unknown.returncode == 2
    assert "unrecognized arguments: --fast" in unknown.stderr
    (tmp_path / "file").write_text("")
    blocked = run("--quick", "--out", str(tmp_path / "file" / "results"))
    assert blocked.returncode == 2
    assert len(blocked.stderr.strip().splitlines()) == 1
    assert "Not a directory" in blocked.stderr
    control = run("--control")
    assert control.returncode == 1
    assert "does not hold" in control.stderr


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    claim.save(path, "old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        claim.save(path, "new")
    assert path.read_text() == "old"
