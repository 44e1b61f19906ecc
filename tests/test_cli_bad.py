"""`jbp train --on-bad`: the place of the first bad number, steps that are skipped, a run that goes back."""

import json
from pathlib import Path

import numpy as np
import pytest

from jbp import cli
from jbp.train.restore import restored

TABLE = ["--loss", "l2_loss", "--task", "regression", "--net", "4 tanh", "--optimizer", "sgd", "--seed", "1"]
RUN = ["--patience", "0", "--epochs", "3", "--save-every", "1epoch", "--quiet", "--out", "run"]


@pytest.fixture
def table(tmp_path, monkeypatch) -> list[str]:
    """A regression in a file, one of whose targets is so large that its square is infinite."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    y = rng.normal(size=(60, 1))
    y[::9] = 1e200
    np.savez("rows.npz", x_train=rng.normal(size=(60, 4)), y_train=y, x_test=rng.normal(size=(9, 4)), y_test=y[1:10])
    return ["train", "--data", "rows.npz", "--no-standardize", *TABLE, *RUN, "--batch-size", "4"]


@pytest.mark.filterwarnings("default")
def test_on_the_command_line_bad_steps_stop_with_their_place_or_are_skipped(table, capsys):
    assert cli.main(table) == 1
    said = capsys.readouterr().err
    assert "the first number that is not finite: step " in said and ", loss of l2_loss, example " in said
    assert "its batch is kept in run/bad_batch.npz" in said
    summary = json.loads(Path("run/summary.json").read_text())
    assert "loss of l2_loss" in summary["first_bad_number"]
    assert cli.main([*table, "--on-bad", "skip", "--overwrite"]) == 0
    assert "steps were skipped" in capsys.readouterr().err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["skipped_steps"] > 0
    assert not Path("run/bad_batch.npz").exists()  # of the run that was replaced
    assert cli.main(["show", "run"]) == 0
    assert "steps skipped" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_on_the_command_line_a_run_goes_back_and_keeps_its_learning_rate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 4))
    np.savez("rows.npz", x_train=x, y_train=x[:, :1], x_test=x[:9], y_test=x[:9, :1])
    # At first it diverges soon, and the checkpoints before are of no use either: in the end it begins anew.
    words = ["train", "--data", "rows.npz", "--no-standardize", *TABLE, *RUN, "--net", "4", "--batch-size", "54"]
    words += ["--epochs", "24", "--save-every", "3steps", "--learning-rate", "1.5", "--on-bad", "restore"]
    assert cli.main(words) == 0
    assert "of the learning rate" in capsys.readouterr().err
    summary = json.loads(Path("run/summary.json").read_text())
    shares = [one["learning_rate_share"] for one in summary["restored"]]
    assert shares == [0.5**i for i in range(1, len(shares) + 1)]
    assert summary["restored"] == restored(Path("run"))
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 25))
    assert cli.main(["train", "--resume", "run"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--private", "--on-bad", "skip"], "private training cannot use on_bad"),
        (["--private", "--on-bad", "restore"], "private training cannot use on_bad"),
        (["--seeds", "0:3", "--on-bad", "skip"], "on_bad is for one run"),
        (["--on-bad", "go"], "unknown on_bad 'go'"),
    ],
)
def test_what_cannot_be_is_refused(words, message, capsys):
    assert cli.main(["train", *words]) == 2
    assert message in capsys.readouterr().err
