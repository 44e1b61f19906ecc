"""The benchmark: what it compares, what it calls a loss, and that it says so where there is no checkout."""

import copy
import json
import runpy
from pathlib import Path

import jax
import pytest

from jbp import cli
from jbp.cli import bench

STEP = Path(__file__).parents[1] / "experiments" / "bench" / "step.py"


@pytest.fixture(scope="module")
def step():
    return runpy.run_path(str(STEP))


@pytest.fixture
def as_users_run_it():
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def test_a_net_is_measured(step, as_users_run_it):
    row = step["measure"](step["mlp"]((7, 5, 3), 11), rounds=3, compiles=1)
    assert row["flops"] <= 1.01
    low, high = row["time_range"]
    assert 0 < low <= row["time"] <= high


def test_every_case_of_the_issue_is_there(step):
    names = [case().name for case in step["CASES"]]
    assert len(set(names)) == len(names) == 11
    assert any("repeat of 64" in name for name in names)


def test_only_a_deterministic_loss_of_over_ten_percent_counts(step):
    row = {
        "net": "a", "flops": 1.0, "temporary_bytes": 1.0, "temporary_bytes_jbp": 1000, "time": 1.0,
        "time_range": [0.9, 1.1],
    }  # fmt: skip
    old = {"rows": [row]}

    def changed(**figures):
        new = copy.deepcopy(old)
        new["rows"][0] |= figures
        return step["compare"](old, new)

    assert changed() == []
    assert changed(flops=1.05) == ["a: flops 1 -> 1.05"]
    assert changed(flops=1.2) == ["LOSS a: flops 1 -> 1.2"]
    assert changed(temporary_bytes_jbp=1200) == ["LOSS a: temporary_bytes_jbp 1000 -> 1200"]
    assert changed(time=1.3, time_range=[1.0, 1.5]) == []  # within noise
    assert changed(time=3.0, time_range=[2.9, 3.1]) == ["a: time 1.00 -> 3.00"]


def test_the_command(step, tmp_path, monkeypatch, capsys, as_users_run_it):
    worse = {"rows": [{"net": "64-32-10 relu, batch 32", "flops": 0.1, "temporary_bytes": 9.0,
                       "temporary_bytes_jbp": 10**9, "time": 1.0, "time_range": [0.0, 99.0]}]}  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(worse))
    assert cli.main(["bench", "--quick", "--compare", str(tmp_path / "old.json")]) == 1
    out, err = capsys.readouterr()
    assert "784-512-512-10 relu, batch 128" in out
    assert "LOSS 64-32-10 relu, batch 32: flops" in out
    assert err == "jbp: error: a deterministic figure became worse by more than 10 %\n"
    assert cli.main(["bench", "--compare", "nothing.json"]) == 2
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert cli.main(["bench"]) == 2
    assert "from a checkout" in capsys.readouterr().err
