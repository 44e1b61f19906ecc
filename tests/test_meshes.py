"""Data over several devices: inside `jax.shard_map`, and under meshes with explicit axes, JAX's default.

The cases are `tests/on_devices.py`, in processes of their own (some seconds each), since the number of devices is fixed
when JAX starts.
"""

import os
import subprocess
import sys
from pathlib import Path

import haste
import jax
import jax.numpy as jnp
import pytest

from jbp import meshes

ROOT = Path(__file__).parents[1]
HOLDS = {
    "shard_map": {"second_moment", "gram", "diagonal", "hessian_diagonal", "kronecker", "norms", "clipped_sum"},
    "explicit": {"value_and_grad", "clipped_sum", "second_moment", "gram", "diagonal", "hessian_product"},
    "model": {"value_and_grad", "clipped_sum", "second_moment", "gram", "diagonal", "hessian_product"},
    "kernels": {"second_moment", "gram", "project", "kronecker", "norms"},
    "eager": {"value_and_grad", "clipped_sum", "apply", "backward", "together"},
    "training": {"fit", "make_step", "in_place", "private", "rule", "fit_many", "alignment"},
    "training without set_mesh": {"fit", "make_step", "in_place", "private", "rule", "fit_many", "alignment"},
}


MORE = ("training without set_mesh",)


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.soak) if c in MORE else c for c in HOLDS])
def test_on_four_devices_everything_is_as_on_one(case):
    environment = {**os.environ, "XLA_FLAGS": haste.flags(4), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "on_devices.py"), case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *names, devices = done.stdout.splitlines()
    assert devices == "4 devices"
    assert HOLDS[case] <= set(names)


def test_without_a_mesh_nothing_is_touched():
    x = jnp.ones(3)
    assert meshes.alike(x, x) is x
    assert meshes.placed(meshes.whole)(lambda a: a)(x) is x
    program = jax.make_jaxpr(meshes.placed(meshes.whole)(lambda a: meshes.added_up(lambda row: 2 * row, a)))(x)
    assert [str(e.primitive) for e in program.eqns if str(e.primitive) != "broadcast_in_dim"] == ["scan"]
