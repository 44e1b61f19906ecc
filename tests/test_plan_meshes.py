"""What `jbp plan` predicts is what the compiled program of a step does, on meshes of eight virtual devices.

The programs are compiled in one process of its own, `tests/plan_on_devices.py`, which prints what is counted in them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import haste
import jax
import plan_on_devices
import pytest

from jbp.planning import ACCELERATORS, Layout, Machine, Work
from jbp.sharding.costs import Devices, step_costs

ROOT = Path(__file__).parents[1]
MACHINE = Machine(ACCELERATORS["h100"])
CASES = [(name, i, mesh) for name, (_, _, meshes) in plan_on_devices.CASES.items() for i, mesh in enumerate(meshes)]
COUNTERS, KEY = 8, 8
"""Bytes of the state's epoch and step, and of the key in it; a net that draws is handed another."""


@pytest.fixture(scope="module")
def compiled():
    """{case: [what the compiled program of each mesh does]}, in float32."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    # Nothing is run, so the devices need not take turns.
    flags = f"--xla_force_host_platform_device_count=8 {haste.FLAGS}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, str(ROOT / "tests" / "plan_on_devices.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def predicted(name, mesh):
    """In float32, as the programs are."""
    net, shape, _ = plan_on_devices.CASES[name]
    with jax.enable_x64(False):
        work = Work(net, plan_on_devices.LOSS, plan_on_devices.OPTIMIZER, shape)
        return work, work.predict(plan_on_devices.N, Layout(*mesh), MACHINE)


@pytest.mark.parametrize("name, i, mesh", CASES, ids=[f"{name}-{d}x{m}{'s' * s}" for name, _, (d, m, s) in CASES])
def test_the_prediction_is_what_the_compiled_program_does(compiled, name, i, mesh):
    program, (work, found) = compiled[name][i], predicted(name, mesh)
    assert found.flops == program["flops"]
    assert sum(one.bytes for one in found.collectives) == program["bytes"]
    for kind in ("all-reduce", "all-gather", "reduce-scatter"):
        assert sum(one.count for one in found.collectives if one.kind == kind) == program.get(kind, 0), kind
    held = sum(found.memory[what] for what in ("parameters", "optimiser", "batch"))
    assert held + COUNTERS + KEY * (1 + (work.net.uses_key is not False)) == program["arguments"]
    estimate = sum(found.memory.values()) - held
    print(f"{name} {mesh}: temporaries {program['temporaries'] / estimate:.2f} of what is estimated")
    assert 0.6 * estimate < program["temporaries"] < 1.2 * estimate  # 0.68 to 1.07
    assert work.parameters == sum(leaf.size for leaf in jax.tree.leaves(work.params))


@pytest.mark.parametrize("mesh", plan_on_devices.CASES["stack"][2][:5], ids=str)
def test_two_ways_to_the_same_formulas_agree(mesh):
    """`jbp.sharding.costs` has them by width, the plan by what is traced."""
    net, shape, _ = plan_on_devices.CASES["stack"]
    work, found = predicted("stack", mesh)
    d, m, _ = mesh
    with jax.enable_x64(False):
        one = jax.ShapeDtypeStruct(shape, "float32")
        costs = step_costs(net, work.params, one, plan_on_devices.N, Devices(d, m), loss=plan_on_devices.LOSS)
    assert costs.exact and costs.flops == found.flops
    assert costs.bytes == sum(sent.bytes for sent in found.collectives)
    assert costs.collectives == sum(sent.count for sent in found.collectives)
    assert 4 * costs.parameters == found.memory["parameters"]
