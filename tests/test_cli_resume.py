"""`jbp train --resume`: a run that was stopped goes on, and says what it cannot go on with."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from test_cli_process import run as process
from test_cli_process import start

from jbp import cli, runs
from jbp.checkpoint import load
from jbp.cli import training
from jbp.durable.checkpoints import Checkpoints
from jbp.durable.lock import Lock
from jbp.durable.saver import CHECKPOINTS
from jbp.files import write_atomically

FEW = ("--net", "8 relu dropout:0.2", "--batch-size", "100", "--patience", "0")
CLOCKS = ("seconds", "examples_per_second")


def finished(folder: Path) -> list[int]:
    return Checkpoints.finished(folder / CHECKPOINTS)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


def summary_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / runs.SUMMARY).read_text())
    return {name: value for name, value in found.items() if name not in (*CLOCKS, "resumed_at", "sha256")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_process_that_is_ended_goes_on_to_the_same_bits(tmp_path: Path, number: signal.Signals):
    words = ("train", "--epochs", "400", *FEW)
    assert process(*words, "--quiet", "--out", "whole", cwd=tmp_path)[0] == 0
    going = start(*words, "--save-every", "0.05s", "--out", "run", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not finished(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.005)
    going.send_signal(number)
    _, err = going.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert going.returncode == 143
        assert "steps, saved in run at step " in err.splitlines()[-1]
        assert err.splitlines()[-1].endswith("; to go on: jbp train --resume run")
    status, _, err = process("train", "--resume", "run", cwd=tmp_path)
    assert status == 0 and "run: going on from step " in err
    (step,) = json.loads((tmp_path / "run" / "summary.json").read_text())["resumed_at"]
    assert 0 < step < 400 * 13
    both = [tmp_path / name for name in ("run", "whole")]
    assert (both[0] / "params.safetensors").read_bytes() == (both[1] / "params.safetensors").read_bytes()
    assert rows_of(both[0]) == rows_of(both[1]) and summary_of(both[0]) == summary_of(both[1])


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ended"
    assert cli.main(["train", "--quiet", "--epochs", "1", *FEW, "--out", str(folder)]) == 0
    return folder


def test_a_run_that_has_ended_says_so(ended: Path, capsys: pytest.CaptureFixture[str]):
    before = (ended / runs.SUMMARY).read_bytes()
    assert cli.main(["train", "--resume", str(ended)]) == 0
    assert "the run has ended (epochs), and nothing is left to do" in capsys.readouterr().err
    assert (ended / runs.SUMMARY).read_bytes() == before
    assert finished(ended)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "2"], "was begun with epochs 1, and cannot go on with 2: leave epochs out, or begin a new run"),
        (["--learning-rate", "0.5"], "was begun with learning_rate None, and cannot go on with 0.5"),
        (["--data", "mnist"], "was begun with data 'digits', and cannot go on with 'mnist'"),
        (["--seed", "1"], "was begun with seed 0, and cannot go on with 1"),
        (["--private"], "private training cannot use|was begun with private False"),
        (["--out", "other"], "a run that is resumed stays in its folder"),
        (["--config", "x.json"], "expected one of config, which repeats a run, and resume, which goes on with one"),
        (["--save-every", "soon"], "expected how often to save as 60s, 500steps or 1epoch, got 'soon'"),
        (["--keep", "0"], "keep must be"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_contradicts_the_run_is_one_line(
    words: list[str], said: str, ended: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["train", "--resume", str(ended), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert any(part in line for part in said.split("|"))


def test_what_is_no_run_or_in_use_is_one_line(ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", "--resume", str(tmp_path)]) == 2
    assert "expected the folder of a run, found another folder" in capsys.readouterr().err
    lock = Lock(ended)
    for words in (["--resume", str(ended)], ["--out", str(ended), "--overwrite"]):
        assert cli.main(["train", *words]) == 2
        assert "another run writes there (process " in capsys.readouterr().err
    lock.close()


def test_a_run_that_diverged_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = tmp_path / "t.csv"
    table.write_text("a,b\n" + "".join(f"{i}.5,{i * 7 % 11}.5\n" for i in range(40)))
    words = ["--data", str(table), "--target", "b", "--learning-rate", "1e9", "--optimizer", "sgd", "--quiet"]
    assert cli.main(["train", *words, "--out", str(tmp_path / "run")]) == 1
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "the run diverged at step " in capsys.readouterr().err


def test_a_run_without_a_checkpoint_begins_at_its_start(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    config = json.loads((ended / "config.json").read_text())
    runs.create(folder, False, "", config).close()
    (folder / runs.METRICS).write_text('{"epoch": 1, "step": 13}\n')  # of an epoch after which nothing was saved
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert "going on from the start, for no checkpoint was finished" in capsys.readouterr().err
    assert rows_of(folder) == rows_of(ended)
    assert load(folder / "params.safetensors")[1] == load(ended / "params.safetensors")[1]


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path):
    folder = runs.create(tmp_path / "run", False, "", {"jbp": "0"})
    lines = [
        '{"epoch": 1, "step": 4, "loss": 2}',
        '{"kind": "watch", "step": 5}',
        '{"kind": "watch", "step": 9}',
        '{"epoch": 2, "st',
    ]
    (folder.path / runs.METRICS).write_text("\n".join(lines))
    folder.cut_back([{"epoch": 1, "step": 4, "loss": 2.5}], 6)
    found = [json.loads(line) for line in (folder.path / runs.METRICS).read_text().splitlines()]
    assert found == [{"epoch": 1, "step": 4, "loss": 2.5}, {"kind": "watch", "step": 5}]
    folder.close()


def test_a_kill_before_the_config_leaves_nothing_that_looks_like_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []

    def killed(path: Path, data: bytes) -> None:
        seen.append([p.name for p in tmp_path.iterdir() if not p.name.startswith(".")])
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.create(tmp_path / "run", False, "", {"jbp": "0"})
    assert seen == [[]] and not list(tmp_path.iterdir())
    monkeypatch.setattr(runs, "write_atomically", write_atomically)
    runs.create(tmp_path / "run", False, "", {"jbp": "0"}).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"] and runs.is_run(tmp_path / "run")


def test_a_run_that_replaces_one_takes_its_checkpoints_away_with_the_rest(ended: Path, tmp_path: Path):
    folder = tmp_path / "run"
    words = ["train", "--quiet", *FEW, "--out", str(folder)]
    assert cli.main([*words, "--epochs", "3"]) == 0
    before = finished(folder)
    assert cli.main([*words, "--epochs", "1", "--overwrite"]) == 0
    assert finished(folder) == finished(ended) and finished(folder) != before


@pytest.mark.filterwarnings("ignore:.*summary.json. is not there, though")
def test_without_orbax_the_run_says_that_it_is_not_saved_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(training, "has_orbax", lambda: False)
    words = ["train", "--epochs", "1", *FEW, "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    assert (
        "note: the run is not saved on the way, and cannot go on after a kill: saving on the way needs orbax"
        in capsys.readouterr().err
    )
    (tmp_path / "run" / runs.SUMMARY).unlink()
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 1
    assert "pip install 'jbp[durable]'" in capsys.readouterr().err
