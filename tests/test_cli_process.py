"""The program as a shell sees it, in JAX's default float32: exit status, streams, signals, pipes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jbp import cli

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("JAX")}


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """A process hears no Ctrl-C if what starts it does not, as tests that run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(*words, cwd, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "jbp", *words],
        cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs,
    )  # fmt: skip


def run(*words, cwd):
    process = start(*words, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_train_show_and_repeat(tmp_path):
    status, out, err = run("train", "--epochs", "2", "--net", "16 relu", "--json", "--out", "run", cwd=tmp_path)
    assert status == 0
    summary = json.loads(out)  # and nothing else on standard output
    assert summary["seed"] == 0
    line = err.splitlines()[-1]
    assert line.startswith("epoch 2/2  training loss ") and "  validation loss " in line and ", accuracy 0." in line
    status, out, err = run("train", "--config", "run/config.json", "--quiet", "--out", "again", cwd=tmp_path)
    assert (status, out, err) == (0, "", "")
    params = [(tmp_path / name / "params.safetensors").read_bytes() for name in ("run", "again")]
    assert params[0] == params[1]

    with start("show", "run", cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `| head` does, before anything is written
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("words", "status", "start_of_out", "start_of_err"),
    [
        (["--version"], 0, "jbp 0", ""),
        (["train", "--help"], 0, "usage: jbp train [options]", ""),
        (
            ["train", "--optimiser", "sgd"],
            2,
            "",
            "jbp: error: unknown argument '--optimiser'; did you mean '--optimizer'?",
        ),
    ],
)
def test_exit_status_and_streams(tmp_path, words, status, start_of_out, start_of_err):
    found, out, err = run(*words, cwd=tmp_path)
    assert found == status
    assert out.startswith(start_of_out) and bool(out) == bool(start_of_out)
    assert err.startswith(start_of_err) and bool(err) == bool(start_of_err)


def interrupted(process, reached, times=1, number=signal.SIGINT):
    """What a process says on Ctrl-C, or another signal, once a file is there, and its exit status."""
    deadline = time.monotonic() + 120
    while not reached.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.2 if times > 1 else 0)  # two at once are one
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err and out == ""
    return err.splitlines(), process.returncode


def test_ctrl_c_in_training_names_every_file_that_is_kept(tmp_path):
    process = start("train", "--epochs", "1000000", "--patience", "0", "--net", "8 relu", "--out", "run", cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    (*_, last), status = interrupted(process, metrics)
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert status == 130
    assert last.startswith("jbp: error: interrupted after ")
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == ["checkpoints", "config.json", "curves.png", "metrics.jsonl", "params.safetensors", "summary.json"]
    assert last.endswith(
        f"kept in run: config.json (the options), metrics.jsonl (the figures of {len(rows)} finished "
        f"epoch{'s' * (len(rows) != 1)}), params.safetensors (the parameters), summary.json (what came out), "
        "curves.png (a picture); to go on: jbp train --resume run"
    )
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stop_reason"] == "interrupted"


SLOW = """
import time
from pathlib import Path

def wait(seconds=100):
    Path("reached").touch()
    time.sleep(seconds)
"""
SCRIPT = "import sys\nfrom jbp.cli import program\nif __name__ == '__main__':\n    sys.exit(program())\n"


STOPS = pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@STOPS
@pytest.mark.parametrize("how", ["python -m jbp", "jbp"])
def test_a_signal_while_jax_is_imported_is_one_line(tmp_path, how, number, status):
    """JAX is a file here that waits; the program `jbp` is the script that installing makes."""
    (tmp_path / "jax.py").write_text(SLOW + "wait()")
    (tmp_path / "jbp").write_text(SCRIPT)
    words = [sys.executable, "-m", "jbp"] if how == "python -m jbp" else [sys.executable, "jbp"]
    path = os.pathsep.join([str(ROOT), ENVIRONMENT.get("PYTHONPATH", "")])
    process = subprocess.Popen([*words, "train"], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=ENVIRONMENT | {"PYTHONPATH": path})  # fmt: skip
    lines, found = interrupted(process, tmp_path / "reached", number=number)
    assert lines == ["jbp: error: interrupted while it was starting; nothing was written"]
    assert found == status


NET = """
from dataclasses import dataclass
import jbp

traced = []

@dataclass(frozen=True)
class Slow(jbp.Dense):
    '''Takes its time where training compiles it, which is when the folder is there.'''
    uses_key = True

    def forward(self, params, x, key):
        if {when}:
            wait({seconds})
        return super().forward(params, x, key)

net = jbp.serial(jbp.Flatten(), Slow(10))
"""
TRAIN = ("train", "--net", "slow.py:net", "--quiet", "--out", "run")


@STOPS
def test_a_signal_while_a_file_of_the_users_is_imported_is_one_line(tmp_path, number, status):
    (tmp_path / "slow.py").write_text(SLOW + "wait()")
    found = interrupted(start(*TRAIN, cwd=tmp_path), tmp_path / "reached", number=number)
    assert found == (["jbp: error: interrupted; nothing is kept"], status)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("traced", ["for the validation part", "for the steps"])
def test_ctrl_c_while_training_compiles_is_one_line_and_leaves_no_folder(tmp_path, traced):
    """The first one lets JAX finish what it compiles, for else it crashes in the end."""
    when = "Path('run').exists()" + (" and key is not None" if traced == "for the steps" else "")
    (tmp_path / "slow.py").write_text(SLOW + NET.format(when=when, seconds=0.5))
    lines, status = interrupted(start(*TRAIN, cwd=tmp_path), tmp_path / "reached")
    assert (lines, status) == (["jbp: error: interrupted; nothing is kept"], 130)
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_does_not_wait_and_leaves_the_run_that_was_to_be_replaced(tmp_path):
    old = tmp_path / "run"
    old.mkdir()
    (old / "config.json").write_text('{"jbp": "0.1.0", "net": "old"}')
    (old / "params.safetensors").write_bytes(b"days of work")
    (tmp_path / "slow.py").write_text(SLOW + NET.format(when="traced.append(1) or len(traced) > 1", seconds=100))
    process = start(*TRAIN, "--overwrite", cwd=tmp_path)
    lines, status = interrupted(process, tmp_path / "reached", times=2)
    assert lines == ["jbp: error: interrupted; nothing is kept; the run that was in run is as it was"]
    assert status == 130
    assert (old / "params.safetensors").read_bytes() == b"days of work" and "old" in (old / "config.json").read_text()


IN_A_CALLBACK = """
import gc
def callback(phase, info):
    gc.callbacks.remove(callback)
    wait()
gc.callbacks.append(callback)
gc.collect()
"""


@STOPS
@pytest.mark.parametrize("before", ["", IN_A_CALLBACK], ids=["anywhere", "where Python cannot raise"])
def test_a_signal_while_a_run_is_saved_names_what_is_there(tmp_path, number, status, before):
    """Training is over then, and has given the signals back: SIGTERM's own answer would end the process in silence.
    What a callback of the garbage collector raises Python shows and forgets, and JAX has such a callback."""
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text(SLOW + before + "wait()")
    words = ("train", "--net", "", "--epochs", "1", "--quiet", "--out", "run")
    lines, found = interrupted(start(*words, cwd=tmp_path), tmp_path / "reached", number=number)
    assert lines == [
        "jbp: error: interrupted; kept in run: config.json (the options), metrics.jsonl (the figures of 1 finished "
        "epoch), params.safetensors (the parameters), summary.json (what came out); to go on: jbp train --resume run"
    ]
    assert found == status


def test_after_ctrl_c_the_process_ends_at_once_for_jax_crashes_in_pythons_way_out(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for status in (130, 0, 1):
        monkeypatch.setattr(cli, "main", lambda status=status: status)
        with pytest.raises(SystemExit) as left:
            cli.program()
        assert left.value.code == status
    assert ended == [130]
