"""Training over meshes of devices: the work is really divided, the numbers are those of one device.

The cases are `tests/on_meshes.py`, in processes of their own, since the number of devices is fixed when JAX starts.
What is divided, and what devices say to one another, is counted in the compiled programs: numbers alone cannot see it.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import haste
import jax
import pytest

import jbp
from jbp.sharding.costs import Devices, step_costs

ROOT = Path(__file__).parents[1]
SHAPES = ("2x1", "1x2", "4x1", "2x2", "1x4", "8x1", "4x2", "2x4", "1x8")
STEPS = 256
"""In eps × the largest entry of a leaf: eight steps, each from the parameters of the one before."""


@cache
def found(case: str) -> Any:
    """What a case found."""
    counts = case in ("divided", "collectives")
    flags = haste.flags(8 if counts else 4, counted=counts)
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "on_meshes.py"), case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def devices(mesh: str) -> int:
    d, m = map(int, mesh.split("x"))
    return d * m


# ── Really divided ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mesh", SHAPES)
@pytest.mark.parametrize("part", ["fit", "evaluation"])
def test_each_device_does_its_part_of_the_work(part, mesh):
    """The loop of `fit` over its steps counts once. The last layer, of width 10, is whole where 4 or 8 split layers."""
    one, each = found("divided")["1x1"][part]["flops"], found("divided")[mesh][part]["flops"]
    assert one / devices(mesh) <= each <= 1.0671 * one / devices(mesh)


@pytest.mark.parametrize("mesh", SHAPES)
def test_devices_wait_for_one_another_no_more_often_than_under_autodiff(mesh):
    one = found("divided")[mesh]
    assert one["fit"]["total"] <= one["autodiff"]["total"]
    assert set(one["fit"]["collectives"]) == {"all-reduce"}  # nothing is gathered
    assert one["fit"]["bytes"] <= 1.003 * one["autodiff"]["bytes"]  # the logit of the label goes over once more
    if mesh.endswith("x1"):
        assert one["fit"]["total"] == one["evaluation"]["total"] == 1


@pytest.mark.parametrize("mesh", ["1x1", *SHAPES])
@pytest.mark.parametrize("program", ["fit", "four"])
def test_formula_and_program_agree(program, mesh):
    """FLOPs, bytes and collectives, to the last one."""
    formula = found("divided")[mesh]["formula" if program == "fit" else "four, formula"]
    counted = found("divided")[mesh][program]
    assert formula["exact"]
    assert {name: counted[name] for name in ("flops", "bytes", "total")} == {
        name: formula[name] for name in ("flops", "bytes", "total")
    }


def test_a_repeated_layer_is_added_up_once_and_not_once_a_repetition():
    case = found("collectives")["repeat 4x1"]
    assert case["jbp"]["collectives"] == {"all-reduce": 1}
    assert case["autodiff"]["collectives"] == {"all-reduce": 1 + 4}
    assert case["jbp"]["bytes"] == case["autodiff"]["bytes"]
    assert found("collectives")["accumulated repeat"]["total"] == 1


@pytest.mark.parametrize("net", ["repeat", "convolution"])
@pytest.mark.parametrize("mesh", ["2x2", "1x4"])
def test_layers_are_divided_over_the_model_axis_as_under_autodiff(net, mesh):
    one, case = found("collectives")[f"{net} 1x1"], found("collectives")[f"{net} {mesh}"]
    assert case["jbp"]["total"] <= case["autodiff"]["total"]
    # Of convolutions one device takes products of rows, on a CPU, and several the convolutions themselves.
    ideal = one["jbp" if net == "repeat" else "autodiff"]["flops"] / devices(mesh)
    assert case["jbp"]["flops"] <= 1.05 * ideal


@pytest.mark.parametrize("mesh", ["2x2", "1x4"])
def test_attention_is_divided_by_heads_and_tables_by_vocabulary(mesh):
    """What q, k and v are made of lies by columns that are not those of the heads, so it is handed round; jbp takes
    q, k and v apart anew on the way back, where autodiff keeps them."""
    one, case = found("collectives")["gpt 1x1"], found("collectives")[f"gpt {mesh}"]
    assert case["jbp"]["flops"] == one["jbp"]["flops"] / devices(mesh) == case["autodiff"]["flops"]
    assert case["jbp"]["bytes"] <= 1.35 * case["autodiff"]["bytes"]
    reduced = (case[way]["collectives"]["all-reduce"] for way in ("jbp", "autodiff"))
    assert next(reduced) <= next(reduced)


def test_what_methods_and_statistics_add_up():
    case = found("collectives")
    assert case["private"][0]["collectives"] == {"all-reduce": 1}
    assert case["accumulated"][0]["collectives"] == {"all-reduce": 1}
    assert case["clipped by global norm"]["collectives"] == {"all-reduce": 1}
    assert case["in place"]["collectives"] == {"all-reduce": 1}
    reads = {name: one["total"] for name, one in case["statistics"].items()}
    assert reads == {"norms": 0, "clipped": 1, "second moment": 1}
    assert set(case["private"][1]["collectives"]) == {"all-reduce"}  # the noise is not sent


def test_spread_parameters_are_gathered_once_and_their_gradients_reduced_in_parts():
    for ours, theirs, formula in zip(
        *(found("collectives")[f"shard_params{end}"] for end in ("", ", autodiff", ", formula")), strict=True
    ):
        assert ours["bytes"] <= theirs["bytes"]
        assert ours["flops"] == theirs["flops"] == formula["flops"]
    # What stays whole, the loss too, is little here and goes along in the one reduce-scatter.
    assert found("collectives")["shard_params"][0]["collectives"] == {"all-gather": 8, "reduce-scatter": 1}
    data_only = found("collectives")["shard_params, formula"][0]
    assert found("collectives")["shard_params"][0]["bytes"] == data_only["bytes"]


# ── The numbers of one device ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", ["fits", pytest.param("more fits", marks=pytest.mark.soak)])
def test_every_kind_of_training_is_that_of_one_device(case):
    assert {name: error for name, error in found(case).items() if not error <= STEPS} == {}
    assert len(found(case)) >= (10 if case == "fits" else 22)


def test_streams_seeds_steps_and_runs_that_go_on_are_those_of_one_device():
    case = dict(found("others"))
    assert case.pop("params are on the mesh as it was given")
    assert all(error <= STEPS for error in case.pop("resumed on another mesh"))
    assert {name: error for name, error in case.items() if not error <= STEPS} == {}


def test_statistics_clipping_and_curvature_are_those_of_one_device():
    assert {name: error for name, error in found("readings").items() if not error <= STEPS} == {}
    assert len(found("readings")) > 80


# ── What is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


def mesh(*names: str) -> Any:
    return jax.make_mesh((1,) * len(names), names)


NET = jbp.serial(jbp.Dense(6), jbp.relu, jbp.Dense(3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mesh": 4}, "a Sharding needs a jax.sharding.Mesh, as jax.make_mesh makes it, but got 4"),
        ({"mesh": mesh("data"), "model": "modle"}, "model='modle' is no axis of the mesh, which has data"),
        ({"mesh": mesh("data"), "data": "rows"}, "data='rows' is no axis of the mesh, which has data"),
        ({"mesh": mesh("a"), "data": "a", "model": "a"}, "data and model must be two axes of the mesh"),
        ({"mesh": mesh("data"), "shard_params": 1}, "shard_params must be True or False, but is 1"),
        ({"mesh": mesh("data"), "layouts": {"0": "diagonal"}}, "layouts must say column, row or whole"),
        ({"mesh": mesh("data"), "layouts": "column"}, "layouts must be a mapping of dotted paths"),
    ],
)
def test_a_wrong_sharding_is_refused(given, words):
    with pytest.raises(ValueError, match=words.replace("(", "\\(")):
        jbp.Sharding(given.pop("mesh"), **given)


def test_a_layout_of_no_layer_is_refused():
    sharding = jbp.Sharding(mesh("data", "model"), layouts={"7": "row"})
    params = NET.init(jax.random.key(0), (5,))[0]
    with pytest.raises(ValueError, match="the layout of '7' is of no layer that multiplies: there are 0, 2"):
        sharding.params(NET, params)


def test_a_batch_that_the_devices_do_not_divide_has_no_costs():
    params = jax.eval_shape(lambda key: NET.init(key, (5,))[0], jax.random.key(0))
    with pytest.raises(ValueError, match="batch_size is 9, which 2 devices do not divide"):
        step_costs(NET, params, jax.ShapeDtypeStruct((5,), "float32"), 9, Devices(2))


def test_one_device_is_a_mesh_too():
    """And what lies on it comes out as it went in."""
    data = [[0.0] * 5] * 6, [0, 1, 2] * 2
    fit = jbp.fit(NET, jbp.losses.softmax_cross_entropy, jbp.optim.sgd(0.1), data, epochs=1, sharding=mesh("any"))
    assert fit.history[-1]["epoch"] == 1


REFUSED = {
    "the batch": "batch_size is 30, which the 4 devices of the axis 'data' do not divide: take 28 or 32",
    "no layer": "the axis 'model' has 4 devices, which divide the width of no layer of the net that multiplies",
    "an axis": "the mesh has the axes data, modle, and nothing would be spread over 'modle'",
    "a layout": "0 cannot lie by column: its weight is (5, 7), which 2 devices of the axis 'model' do not divide there",
    "a batch by hand": "the batch is 7, which the 4 devices of the axis 'data' do not divide: take 4 or 8",
    "runs": "the number of runs is 3, which the 4 devices of the axis 'data' do not divide",
    "runs over layers": "fit_many spreads its runs over the data axis, each whole on a device",
    "random numbers": "the mesh cuts the batch into parts, which by the random numbers of rbg",
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_mesh_that_does_not_fit_is_refused(what):
    assert REFUSED[what] in found("refused")[what]


CLI = {
    "mesh data=4,modle=2": "mesh must be of data=N and model=N, with a comma between, but is 'data=4,modle=2'; did you",
    "mesh data=2,data=2": "mesh must be of data=N and model=N, with a comma between, but is 'data=2,data=2': data",
    "mesh data": "mesh must be of data=N and model=N, with a comma between, but is 'data': N is a whole number",
    "mesh data=0": "mesh must be of data=N and model=N, with a comma between, but is 'data=0': N is a whole number",
    "mesh data=4096": "mesh data=4096 takes 4096 devices, but there",
    "shard-params": "shard_params is for several devices, but there is no mesh",
}


@pytest.mark.parametrize("words", CLI)
def test_jbp_train_refuses_in_one_line(words, capsys, tmp_path):
    from jbp import cli

    first, *rest = words.split()
    status = cli.main(["train", f"--{first}", *rest, "--out", str(tmp_path / "run"), "--quiet"])
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    assert line.startswith("jbp: error: ")
    assert CLI[words] in line
    assert not (tmp_path / "run").exists()


def test_jbp_train_over_a_mesh():
    """Data over two devices, layers over two; the figures are those of one, and it goes on on another mesh."""
    case = found("commands")
    assert case["loss"][0] == pytest.approx(case["loss"][1], rel=1e-4)
    assert case["mesh"] == [None, "data=2,model=2"]
    assert case["seeds"] == 2
    assert "batch_size is 30, which the 4 devices of the axis 'data' do not divide: take 28 or 32" in case["batch"]
    assert "the axis 'model' has 4 devices, which divide the width of no layer" in case["width"]
    assert case["resumed"] == [0, "data=4"]
