"""The files of docs/cluster: their form, and what they start, with stand-ins for the cluster's own programs."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "docs" / "cluster"
SCRIPTS, MANIFESTS = ("slurm.sbatch", "tpu.sh"), ("jobset.yaml", "tpu-jobset.yaml")

CONTAINER = {
    "name": str, "image": str, "command": [str], "ports": [{"containerPort": int}],
    "resources": {"limits": {"*": int}}, "volumeMounts": [{"name": str, "mountPath": str}],
}  # fmt: skip
POD = {
    "restartPolicy": {"Never"}, "terminationGracePeriodSeconds": int, "containers": [CONTAINER],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}], "nodeSelector?": {"*": str},
}  # fmt: skip
JOB = {
    "parallelism": int, "completions": int, "completionMode?": {"Indexed"}, "backoffLimit": int,
    "template": {"spec": POD},
}  # fmt: skip
JOBSET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": {"name": str, "annotations?": {"*": str}},
    "spec": {
        "network?": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool},
        "failurePolicy": {"maxRestarts": int},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}
"""Of https://jobset.sigs.k8s.io (v1alpha2), batch/v1 Job and core/v1 Pod the fields that are used, with their types: a
set holds the values that are allowed, "name?" may be missing, "*" is any name."""


def wrong(value, schema, place=""):
    """Where a value is not of the form that the schema says."""
    if isinstance(schema, set):
        return [] if value in schema else [f"{place}: {value!r} is none of {schema}"]
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{place}: {value!r} is no {schema.__name__}"]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{place}: {value!r} is no list of some"]
        return [line for i, one in enumerate(value) for line in wrong(one, schema[0], f"{place}[{i}]")]
    if not isinstance(value, dict):
        return [f"{place}: {value!r} has no fields"]
    if "*" in schema:
        return [line for name, one in value.items() for line in wrong(one, schema["*"], f"{place}.{name}")]
    known = {name.rstrip("?"): inner for name, inner in schema.items()}
    found = [f"{place}: there is no field {name!r}" for name in value if name not in known]
    found += [f"{place}: {name} is missing" for name in schema if not name.endswith("?") and name not in value]
    both = [name for name in value if name in known]
    return found + [line for name in both for line in wrong(value[name], known[name], f"{place}.{name}")]


def manifest(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def job(found):
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_of_the_form_that_kubernetes_reads(name):
    found = manifest(name)
    assert wrong(found, JOBSET) == []
    work = job(found)
    pod = work["template"]["spec"]
    assert work["completions"] == work["parallelism"]
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_breaches_of_that_form_are_seen():
    for spoil, said in (
        (lambda m: m["spec"].update(netwrk={}), "there is no field 'netwrk'"),
        (lambda m: job(m).update(parallelism="4"), "'4' is no int"),
        (lambda m: job(m)["template"]["spec"].pop("volumes"), "volumes is missing"),
        (lambda m: job(m)["template"]["spec"].update(restartPolicy="Always"), "'Always' is none of"),
        (lambda m: job(m)["template"]["spec"].update(containers=[]), "is no list of some"),
        (lambda m: m.update(spec=3), "has no fields"),
    ):
        found = copy.deepcopy(manifest("jobset.yaml"))
        spoil(found)
        assert any(said in line for line in wrong(found, JOBSET)), said


def test_the_pods_agree_on_who_is_first():
    """The coordinator is the name that JobSet gives to the first pod: SET-JOB-0-0.SET."""
    found = manifest("jobset.yaml")
    command = job(found)["template"]["spec"]["containers"][0]["command"][2]
    name, one = found["metadata"]["name"], found["spec"]["replicatedJobs"][0]
    port = job(found)["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]
    assert f"--coordinator {name}-{one['name']}-0-0.{name}:{port} " in command
    assert f"--processes {job(found)['parallelism']} " in command and job(found)["completionMode"] == "Indexed"
    page = (ROOT / "docs" / "several_hosts.md").read_text()
    assert f"{name}-{one['name']}-0-0.{name}" in page
    assert all(f"](cluster/{name})" in page for name in (*SCRIPTS, *MANIFESTS))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one_that_bash_reads(name):
    done = subprocess.run(["bash", "-n", str(CLUSTER / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pods_command_is_one_that_bash_reads(name, tmp_path):
    command = job(manifest(name))["template"]["spec"]["containers"][0]["command"]
    assert command[:2] == ["bash", "-c"]
    stand_in(tmp_path, "jbp", 'printf "%s " "$@"')
    text = command[2].replace("/runs/mnist", str(tmp_path / "run"))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "3"}
    for begun, words in ((False, f"--data mnist .*--out {tmp_path / 'run'} "), (True, f"--resume {tmp_path / 'run'} ")):
        if begun:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "config.json").write_text("{}")
        done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True)
        place = "--coordinator jbp-workers-0-0.jbp:8476 --processes 4 --process 3 " if name == "jobset.yaml" else ""
        assert re.fullmatch(f"train {words}{place}", done.stdout), done


def stand_in(folder, name, text):
    """A program of that name."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


SRUN = """
shift   # --kill-on-bad-exit=1
printf "%s\\n" "$*" >> srun.log
pids=()
for i in 0 1; do
  SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NUM_NODES=1 "$@" &
  pids+=($!)
done
worst=0
for pid in "${pids[@]}"; do wait "$pid"; status=$?; [ "$status" -gt "$worst" ] && worst=$status; done
exit "$worst"
"""
"""Two tasks on this machine, with what srun sets."""


@pytest.fixture
def node(tmp_path):
    """A folder to run in, with stand-ins, and the environment of a job; what the job trains is small."""
    programs = tmp_path / "programs"
    programs.mkdir()
    stand_in(programs, "srun", SRUN)
    stand_in(programs, "scontrol", 'echo "$@" > scontrol.log')
    stand_in(programs, "jbp", f'exec {sys.executable} -m jbp "${{@/mnist/digits}}" --quiet')
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SLURM_"))}
    number = str(os.getpid())  # from which JAX takes the port
    more = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return tmp_path, environment | more | {"SLURM_JOB_ID": number, "RUN": "run"}


def test_the_script_of_slurm_trains_and_goes_on(node):
    folder, environment = node
    words = ["bash", str(CLUSTER / "slurm.sbatch"), "--epochs", "2", "--net", "8 relu"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "run" / "summary.json").read_text())["epochs"] == 2
    assert json.loads((folder / "run" / "config.json").read_text())["batch_size"] == 256
    assert not (folder / "scontrol.log").exists()
    said = "jbp train --data mnist --batch-size 256 --out run --epochs 2 --net 8 relu\n"
    assert (folder / "srun.log").read_text() == said


def test_the_script_of_slurm_asks_for_another_turn(node):
    folder, environment = node
    stand_in(folder / "programs", "jbp", 'echo "$@" >> jbp.log; exit 143')
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text("{}")
    words = ["bash", str(CLUSTER / "slurm.sbatch")]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 143
    assert (folder / "jbp.log").read_text() == 2 * "train --resume run\n"
    assert (folder / "scontrol.log").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"


def test_the_script_of_tpus_runs_one_command_on_all_hosts(tmp_path):
    stand_in(tmp_path, "gcloud", 'while [ "$1" != --command ]; do printf "%s " "$1"; shift; done; echo; bash -c "$2"')
    stand_in(tmp_path, "jbp", 'echo "$@"')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU": "slice", "ZONE": "here"}
    environment["RUN"] = str(tmp_path / "run")
    call = ["bash", str(CLUSTER / "tpu.sh")]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    asked, said = done.stdout.splitlines()
    assert asked == "compute tpus tpu-vm ssh slice --zone here --worker all "
    assert said == f"train --coordinator auto --data mnist --batch-size 256 --out {tmp_path / 'run'}"
    del environment["ZONE"]
    assert "ZONE: its zone" in subprocess.run(call, env=environment, capture_output=True, text=True).stderr
