"""The program as a shell sees it, in JAX's default float32: exit status, streams, signals, pipes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("JAX")}


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
    assert err.startswith("epoch 1/2  loss ")
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


def test_ctrl_c_keeps_the_metrics_so_far_and_says_so(tmp_path):
    process = start("train", "--epochs", "1000000", "--patience", "0", "--net", "8 relu", "--out", "run", cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    last = err.splitlines()[-1]
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert process.returncode == 1
    assert last.startswith("jbp: error: interrupted after ")
    assert f"kept the metrics of {len(rows)} finished epoch" in last
    assert "Traceback" not in err
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stop_reason"] == "interrupted"
    assert (tmp_path / "run" / "params.safetensors").exists()
