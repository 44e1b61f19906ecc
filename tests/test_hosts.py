"""Several processes that train one net, on this machine: as one, whatever is lost, and told in one line.

What they train is in `tests/on_hosts.py`; the parent of each, and what is read from the environment, are tried without
any others.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import haste
import jax
import numpy as np
import on_hosts
import pytest

import jbp
from jbp import cli, hosts
from jbp.cli import guard

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT / "experiments" / "measurements")]

import common  # noqa: E402
import lost_hosts  # noqa: E402

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SLURM_", "OMPI_"))}
ENVIRONMENT |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def together(folder, processes, devices, *cases):
    """Run cases of `on_hosts.py` in so many processes of so many devices; what each says."""
    folder.mkdir(exist_ok=True)
    place = [str(folder), f"127.0.0.1:{lost_hosts.free_port()}", str(processes)]
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "on_hosts.py"), *place]
    environment = {**ENVIRONMENT, "XLA_FLAGS": haste.flags(devices)}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    running = [subprocess.Popen([*command, str(i), *cases], **pipe) for i in range(processes)]
    said = [process.communicate(timeout=600) for process in running]
    for process, (_, err) in zip(running, said, strict=True):
        assert process.returncode == 0, err
    lines = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in said]
    assert all(found.pop() == f"done {processes * devices} devices" for found in lines)
    return lines


def compared(folder, name, wanted):
    """The numbers that process 0 has written, with those of one device."""
    found, leaves = np.load(folder / f"{name}.npz"), jax.tree.leaves(wanted)
    assert len(found) == len(leaves)
    for i, leaf in enumerate(leaves):
        np.testing.assert_allclose(found[str(i)], np.asarray(leaf), rtol=1e-9, atol=1e-11, err_msg=f"{name} {i}")


def test_two_processes_train_as_one_and_refuse_to_differ(tmp_path):
    """Over four devices: examples, and parameters too, over all of them; each process reads its own rows; what is saved
    goes on here, on one device."""
    first, second = together(tmp_path, 2, 2, "telling", "disagreeing", "training", "1")
    assert first == second and len(first) == 8
    starts = [
        *(f"the processes disagree on {name}: process 0 has " for name in ("data", "net", "seed", "optimizer")),
        "the processes disagree on the version of jax: process 0 has 0.10.2, process 1 has 0.12.0; start all with the",
        "this is one of 2 processes, which train one net together: give sharding",
        "watch is for one process",
        "the mesh has no device of process 1: take one over the devices of all, which are 4",
    ]
    assert all(line.startswith(start) for line, start in zip(first, starts, strict=True)), first
    for name, wanted in on_hosts.runs(lambda kind: None).items():
        compared(tmp_path, name, wanted)
    fit = partial(jbp.fit, on_hosts.NET, on_hosts.LOSS, on_hosts.OPTIMIZER, (on_hosts.X, on_hosts.Y), batch_size=8)
    compared(tmp_path, "after 1", fit(epochs=1).params)
    with pytest.warns(UserWarning, match="the run was begun on another machine .*devices 4, now 1"):
        gone_on = fit(epochs=2, save_to=tmp_path / "saved", resume=True)
    assert gone_on.resumed_at == (6,)
    for a, b in zip(jax.tree.leaves(gone_on.params), jax.tree.leaves(fit(epochs=2).params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.soak
@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (4, 1)])
def test_everything_that_is_trained(tmp_path, processes, devices):
    together(tmp_path, processes, devices, "training", "training more")
    for name, wanted in (on_hosts.runs(lambda kind: None) | on_hosts.more_runs(lambda kind: None)).items():
        compared(tmp_path, name, wanted)


@pytest.mark.soak
def test_a_run_goes_on_with_other_numbers_of_devices_and_processes(tmp_path):
    fit = partial(jbp.fit, on_hosts.NET, on_hosts.LOSS, on_hosts.OPTIMIZER, (on_hosts.X, on_hosts.Y), batch_size=8)
    for epochs, (processes, devices) in enumerate([(2, 2), (4, 1), (1, 8), (1, 1)], 1):
        if processes == 1:
            alone(tmp_path, devices, epochs)
        else:
            together(tmp_path, processes, devices, str(epochs))
        compared(tmp_path, f"after {epochs}", fit(epochs=epochs).params)


def alone(folder, devices, epochs):
    """The same in one process."""
    code = f"import on_hosts, pathlib; on_hosts.resuming(pathlib.Path({str(folder)!r}), {epochs})"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**ENVIRONMENT, "XLA_FLAGS": haste.flags(devices), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ── jbp train ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def paths(monkeypatch):
    """The processes that are started find this jbp, in JAX's default float32."""
    for name in [name for name in os.environ if name.startswith("JAX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_jbp_train_told_to_stop_goes_on_with_fewer_processes(tmp_path, paths):
    """SIGTERM to one of two, to its parent and its child at once, as a cluster may: both stop at one step."""
    words = "--net", "8 tanh", "--epochs", "60", "--patience", "0", "--save-every", "20steps"
    runs = lost_hosts.started(lambda i: lost_hosts.train(*words, "--out", str(tmp_path / "run")))
    try:
        lost_hosts.wait_for_checkpoint(tmp_path / "run", runs)
        child = runs[1].child
        runs[1].process.send_signal(signal.SIGTERM)
        os.kill(child, signal.SIGTERM)
        assert lost_hosts.wait_for_all(runs, time.monotonic()) < 60
    finally:
        lost_hosts.end(runs)
    assert [run.process.returncode for run in runs] == [143, 143]
    steps = [run.said.split()[8] for run in runs]
    assert steps[0] == steps[1], [run.said for run in runs]
    for i, run in enumerate(runs):
        assert run.said.startswith(f"jbp: error: process {i} of 2: interrupted after {steps[0]} steps, saved in ")
        assert run.said.endswith(f"; to go on: jbp train --resume {tmp_path / 'run'}") and len(run.lines) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stop_reason"] == "interrupted" and summary["epochs"] == int(steps[0]) // 41
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert not {"coordinator", "processes", "process"} & set(config)
    with pytest.warns(UserWarning, match="another machine"):
        jax.config.update("jax_enable_x64", False)
        try:
            result = cli.Train.of_run(tmp_path / "run", quiet=True, processes=1)()
        finally:
            jax.config.update("jax_enable_x64", True)
    assert result.summary["resumed_at"] == [int(steps[0])] and result.summary["epochs"] == 60
    assert result.summary["test_accuracy"] > 0.9


@pytest.mark.soak
@pytest.mark.parametrize("name", lost_hosts.FAULTS)
def test_nobody_hangs(name, tmp_path, paths):
    whole = lost_hosts.run_of(tmp_path)
    assert lost_hosts.fault(name, tmp_path, whole)["lost"] == "nothing"


@pytest.mark.soak
def test_data_that_end_early_in_one_process_end_all(tmp_path, paths):
    assert lost_hosts.early(tmp_path)["lost"] == "nothing"


def test_the_saved_result_is_of_every_kind_of_fault_and_stands_in_the_page():
    rows = json.loads(lost_hosts.RESULT.read_text())["rows"]
    assert [row["what"] for row in rows] == [*lost_hosts.FAULTS, lost_hosts.EARLY]
    assert all(row["lost"] == "nothing" and (row["seconds"] or 0) < lost_hosts.LIMIT for row in rows)
    page = lost_hosts.PAGE.read_text()
    assert lost_hosts.with_table(page, rows) == page
    with pytest.raises(common.ClaimFailed, match="has no <!-- what became of them -->"):
        lost_hosts.with_table("a page without comments", [])


def test_options_that_say_which_process_this_is(tmp_path, capsys, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "JAX_", "TPU_"))]:
        monkeypatch.delenv(name)
    for words, said in {
        "--process 1": "need coordinator, processes and process, but coordinator, processes are missing: give all",
        "--coordinator here:1 --processes 2": "but process is missing: give all",
        "--coordinator here --processes 2 --process 0": "coordinator must be HOST:PORT of process 0, such as",
        "--coordinator :12 --processes 2 --process 0": "coordinator must be HOST:PORT",
        "--coordinator here:99999 --processes 2 --process 0": "coordinator must be HOST:PORT",
        "--coordinator here:1 --processes 2 --process 2": "process must be 0 to 1, for they count from 0, but is 2",
        "--coordinator here:1 --processes 0 --process 0": "processes must be a whole number of at least 1",
        "--processes 1 --process 1": "process must be 0 where there is 1 process, but is 1",
        "--coordinator here:1 --processes 2 --process 0 --seeds 0:2": "seeds is for one process, but there are 2",
        "--coordinator here:1 --processes 2 --process 0 --on-bad restore": "on_bad restore is for one process",
        "--coordinator here:1 --processes 2 --process 0 --watch 5": "watch is for one process",
    }.items():
        assert cli.main(["train", "--out", str(tmp_path / "run"), *words.split()]) == 2, words
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err, (words, err)
    assert not (tmp_path / "run").exists()


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-4]", "SLURM_NTASKS": "4", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
}  # fmt: skip


def test_what_the_environment_says():
    said = partial(hosts.place_of, environ=SLURM)
    assert said() == hosts.Place(None, 4, 3)
    assert said(processes=1) is None
    assert said(coordinator="here:1") == ("here:1", 4, 3)
    assert hosts.place_of(environ=SLURM | {"SLURM_NTASKS": "1"}) is None
    assert hosts.place_of(environ={k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}) is None  # no srun
    assert hosts.place_of(environ={"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}) == (None, 2, 1)
    tpu = {"TPU_WORKER_HOSTNAMES": "a,b,c", "TPU_WORKER_ID": "2"}
    assert hosts.place_of(environ=tpu) == (None, 3, 2)
    assert hosts.place_of(environ={"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None
    own = {"JAX_COORDINATOR_ADDRESS": "here:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    assert hosts.place_of(environ=own) == ("here:1", 2, 0)
    assert hosts.place_of(environ={"JAX_COORDINATOR_ADDRESS": "here:1"}) is None
    assert hosts.place_of(hosts.AUTO, environ={}) == (None, None, None)
    assert hosts.place_of(environ={}) is None
    with pytest.raises(ValueError, match="SLURM_PROCID must be a whole number, but is 'x'"):
        hosts.place_of(environ=SLURM | {"SLURM_PROCID": "x"})


def test_a_coordinator_that_nobody_is_at(monkeypatch):
    monkeypatch.setattr(hosts, "INITIALISE", 1)
    began = time.monotonic()
    with pytest.raises(hosts.Unreachable, match=r"127\.0\.0\.1:\d+ did not answer within 1 s \(.*is process 0 running"):
        hosts.join(hosts.Place(f"127.0.0.1:{lost_hosts.free_port()}", 2, 1))
    with pytest.raises(hosts.Unreachable, match="did not answer within 1 s"):
        hosts.join(hosts.Place("no-such-host.invalid:1", 2, 1))
    assert time.monotonic() - began < 20
    assert not hosts.is_joined() and hosts.who() == "" and not hosts.several()


def test_one_process_agrees_with_itself():
    assert hosts.agreed([2, False]) == (2, False)
    assert hosts.texts("a") == ["a"] and hosts.text_from_first("b") == "b" and hosts.text_from_first(None) == ""
    x = np.ones(3)
    assert hosts.from_first(x) is x and (hosts.on_every_host(jax.numpy.ones(3)) == x).all()
    hosts.check_same({"a": 1})
    hosts.everyone("nobody else")
    with hosts.as_one(processes=1), hosts.lost_in_words():
        pass


# ── The parent ──────────────────────────────────────────────────────────────────────────────────────────────────────

PLACE = hosts.Place("here:1", 3, 1)
START = "import os, sys, signal, time\nfrom jbp.cli import guard\n"


def under_guard(code, capfd):
    """The status of a child that runs `code` under guard, and what comes out."""
    status = guard.guarded([sys.executable, "-c", code], PLACE)
    return status, *capfd.readouterr()


def test_the_parent_passes_on_what_is_said_and_words_what_is_not(capfd):
    code = "import sys; print('[Gloo] Rank 0 is connected'); print('{}'); print('note', file=sys.stderr)"
    assert under_guard(code, capfd) == (0, "{}\n", "note\n")
    code = "import sys; print('jbp: error: mine', file=sys.stderr); sys.exit(2)"
    assert under_guard(code, capfd) == (2, "", "jbp: error: mine\n")
    code = "import sys; sys.exit(3)"
    said = "jbp: error: process 1 of 3 ended with status 3: training ends here, what was saved stays\n"
    assert under_guard(code, capfd) == (3, "", said)
    for name, more in (("SIGKILL", " (out of memory?)"), ("SIGBUS", "")):
        code = f"import os, signal; os.write(int(os.environ[{guard.TOLD!r}]), b'runs/a')\n"
        code += f"os.kill(os.getpid(), signal.{name})"
        said = f"jbp: error: process 1 of 3 was ended by {name}{more}: training ends here, what was saved stays"
        assert under_guard(code, capfd) == (1, "", f"{said}; to go on: jbp train --resume runs/a\n")


HEAD = "E1129 08:36:19.083916    7888 coordination_service.cc:1549] [94678] Use error polling to propagate the error\n"
FATAL = "F1129 08:36:19.084627    7899 client.h:80] Terminating process because the JAX distributed service detected "
TAIL = "*** Check failure stack trace: ***\n    @     0x7efed0140634  absl::lts::LogMessage::SendToLog()\n"
UNHEALTHY = "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n2\nThe tasks have crashed.\n"
CRASHES = {
    HEAD + FATAL + UNHEALTHY + "\nRPC: /xla.coordination.CoordinationService/PollForError\n" + TAIL:
        "process 1 of 3: process 2 has not been heard of for 20 s (killed, frozen, or cut off): training ends here",
    FATAL + "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/Heartbeat\n" + TAIL:
        "process 1 of 3: process 0, the coordinator, does not answer any more (killed, frozen, or cut off): ",
    FATAL + "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/RegisterTask\n" + TAIL:
        "process 1 of 3 did not meet all the others within 30 s: start every process, with the same coordinator here:1 "
        "and the same number of processes",
    FATAL + "something new about the coordination service\n" + TAIL: "process 1 of 3: another process is gone: ",
    "": "process 1 of 3 was ended by SIGABRT: training ends here",
}  # fmt: skip


@pytest.mark.parametrize("crash", CRASHES, ids=range(len(CRASHES)))
def test_a_page_of_c_plus_plus_becomes_one_line(crash, capfd):
    code = f"import os, sys; sys.stderr.write({'epoch 1/3' + chr(10) + crash!r}); sys.stderr.flush(); os.abort()"
    status, out, err = under_guard(code, capfd)
    assert (status, out) == (1, "") and err.startswith(f"epoch 1/3\njbp: error: {CRASHES[crash]}")
    assert err.count("\n") == 2


def test_what_the_child_says_itself_is_enough(capfd):
    crash = next(iter(CRASHES))
    code = f"import sys; sys.stderr.write({crash + 'jbp: error: another process is gone' + chr(10)!r}); sys.exit(1)"
    assert under_guard(code, capfd) == (1, "", "jbp: error: another process is gone\n")


def test_signals_go_through_and_the_child_ends_with_its_parent(tmp_path):
    child = (
        f"{START}guard.under_guard()\n"
        "signal.signal(signal.SIGTERM, lambda *a: (print('told', flush=True), os._exit(143)))\n"
        "print(os.getpid(), flush=True)\ntime.sleep(60)"
    )
    command = f"[sys.executable, '-c', {child!r}]"
    parent = f"{START}from jbp import hosts\nsys.exit(guard.guarded({command}, hosts.Place('a:1', 2, 0)))"
    for number, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process = subprocess.Popen([sys.executable, "-c", parent], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(60) == status
        assert process.stdout.read() == ("told\n" if status == 143 else "")
        process.stdout.close()
        until = time.monotonic() + 20
        while time.monotonic() < until and Path(f"/proc/{pid}").exists():
            time.sleep(0.05)
        assert not Path(f"/proc/{pid}").exists()


def test_a_child_that_stays_frozen_is_given_up(capfd, monkeypatch):
    monkeypatch.setattr(hosts, "HEARTBEAT", 0.2)
    monkeypatch.setattr(hosts, "SHUTDOWN", 0.1)
    status, _, err = under_guard("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", capfd)
    assert status == 1 and "was stopped for" in err and "the others have given it up" in err
