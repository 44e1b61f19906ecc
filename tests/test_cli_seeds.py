"""`jbp train --seeds`: each run is the single run of its seed, and the spread is that of their figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jbp import cli

SMALL: dict[str, Any] = {"net": "8 relu dropout:0.1", "epochs": 3, "quiet": True}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_spread_is_that_of_the_single_runs(capsys):
    result = cli.Train(seeds="3:6", net=SMALL["net"], epochs=3, patience=1, json=True)()
    summary = json.loads((result.folder / "summary.json").read_text())
    del summary["sha256"]
    assert json.loads(capsys.readouterr().out) == summary
    singles = [cli.Train(seed=seed, patience=1, **SMALL)().summary for seed in (3, 4, 5)]
    for run, single in zip(summary["runs"], singles, strict=True):
        for name in ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss"):
            assert run[name] == pytest.approx(single[name], rel=1e-9), name
        assert [run[name] for name in ("seed", "epochs", "best_epoch", "stop_reason")] == [
            single[name] for name in ("seed", "epochs", "best_epoch", "stop_reason")
        ]
    for name, found in summary["spread"].items():
        values = [run[name] for run in summary["runs"]]
        assert found == {
            "mean": pytest.approx(np.mean(values)),
            "std": pytest.approx(np.std(values, ddof=1)),
            "runs": 3,
        }
    assert summary["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert sorted(p.name for p in result.folder.iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "summary.json",
    ]  # fmt: skip


def test_the_table_says_mean_and_deviation_and_show_says_it_again(capsys):
    assert cli.main(["train", "--seeds", "0:2", "--net", "4 relu", "--epochs", "1", "--out", "run"]) == 0
    first = capsys.readouterr()
    assert "test accuracy" in first.out and " ± " in first.out and "(2 runs)" in first.out
    assert "epoch 1/1" in first.err
    assert cli.main(["show", "run"]) == 0
    assert capsys.readouterr().out == first.out


def test_one_run_of_many_is_repeated_from_the_config():
    folder = cli.Train(seeds="0:2", **SMALL)().folder
    options = cli.Train.from_config(folder, seed=1)
    assert (options.seed, options.seeds) == (1, None)
    assert cli.Train.from_config(folder).seeds == "0:2"
    alone = cli.Train(seed=4, **SMALL)().folder
    assert cli.Train.from_config(alone, seeds="0:3").seed == 0


def test_runs_that_diverge_are_counted_and_all_of_them_fail(capsys):
    words = "train --seeds 0:2 --net 4 --optimizer sgd --learning-rate 1e30 --loss squared_error --epochs 2 --out run"
    assert cli.main(words.split()) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("jbp: error: all 2 runs diverged, the first at step ")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["diverged"] == 2
    assert summary["spread"] == {}
    assert all(run["diverged_at_step"] >= 1 for run in summary["runs"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seeds 10", "seeds must be two whole numbers A:B, such as 0:10, but is '10'"),
        ("--seeds a:b", "seeds must be two whole numbers A:B"),
        ("--seeds -1:4", "expected one argument"),
        ("--seeds=-1:4", "seeds must be two whole numbers A:B"),
        ("--seeds 5:5", "at least two seeds from A to B − 1"),
        ("--seeds 5:2", "at least two seeds"),
        ("--seeds 4:5", "at least two seeds"),
        ("--seeds 0:5000", "seeds must be at most 1000 runs at once, but '0:5000' are 5000"),
        ("--seeds 4294967290:4294967299", "all below 2**32"),
        ("--seeds 0:3 --seed 4", "expected one of seed and seeds, got seed 4 and seeds '0:3'"),
    ],
)
def test_bad_ranges_are_one_line_and_exit_2(words, message, capsys):
    assert cli.main(["train", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
