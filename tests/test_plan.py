"""`jbp plan` and `jbp.planning`: formulas by hand, what is refused and in which words, nothing allocated, the command.

That predictions are what compiled programs do on meshes is held in `tests/test_plan_meshes.py`.
"""

import itertools
import json
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbp
from jbp import cli, losses, planning
from jbp.cli.axes import read_mesh
from jbp.combine import Combinator
from jbp.optim import sgd
from jbp.planning import ACCELERATORS, Layout, Machine, Work
from jbp.planning.accelerators import PRECISIONS
from jbp.planning.costs import Collective
from jbp.planning.counting import flops
from jbp.planning.walk import walked

CROSS = losses.softmax_cross_entropy
H100, TPU = Machine(ACCELERATORS["h100"]), Machine(ACCELERATORS["tpu-v5p"])


def shape(*sizes, dtype="float64"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def dense(*widths):
    layers = [layer for width in widths[:-1] for layer in (jbp.Dense(width), jbp.relu)]
    return jbp.serial(*layers, jbp.Dense(widths[-1]))


# ── Counting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_products_count_two_for_each_multiply_add_and_loops_as_often_as_they_run():
    a, b = shape(7, 5), shape(5, 11)
    product = 2 * 7 * 5 * 11
    assert flops(lambda a, b: a @ b, a, b) == product
    assert flops(lambda a, b: (a @ b, a.sum())[1], a, b) == 0, "what no answer needs is dropped"
    assert flops(lambda a, b: jax.lax.map(lambda _: a @ b, jnp.arange(3)), a, b) == 3 * product
    assert flops(lambda a, v: a @ v, a, shape(5)) == 0, "a matrix times a vector is no product of matrices"
    assert flops(lambda a, b: jnp.einsum("no,no->o", a, b), a, shape(7, 5)) == 0
    assert flops(lambda a, b: jnp.einsum("nti,nio->nto", a, b), shape(3, 7, 5), shape(3, 5, 11)) == 3 * product
    both = jax.jit(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: 2 * (a @ b)))
    assert flops(both, a, b) == product
    by_platform = lambda a, b: jax.lax.platform_dependent(a, b, cpu=lambda a, b: (a @ b) @ b.T @ b, default=jnp.matmul)  # noqa: E731
    assert flops(by_platform, a, b) == product, "as on an accelerator"


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (3, 2)])
def test_a_convolution_counts_every_place_of_its_kernel_at_every_site(stride, groups):
    layer = jbp.Conv(6, (3, 2), stride=stride, groups=groups, use_bias=False)
    x = shape(5, 13, 11, 4)
    params = jax.eval_shape(lambda key: layer.init(key, x.shape[1:])[0], jax.random.key(0))
    sites = math.ceil(13 / stride) * math.ceil(11 / stride)
    assert flops(lambda p, x: jbp.apply(layer, p, x), params, x) == 2 * 5 * sites * 3 * 2 * (4 // groups) * 6


def test_what_does_not_say_how_much_it_multiplies_is_refused_by_name():
    a = shape(5, 5)
    with pytest.raises(NotImplementedError, match="cholesky"):
        flops(jnp.linalg.cholesky, a)
    with pytest.raises(NotImplementedError, match="until something holds"):
        flops(lambda a: jax.lax.while_loop(lambda b: b[0, 0] < 1, lambda b: b @ b, a), a)
    with pytest.raises(NotImplementedError, match=r"lax\.cond"):
        flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a, lambda: a), a)


# ── One device ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dense_stack_by_hand():
    widths, n = (13, 17, 19, 7), 23
    work = Work(dense(*widths[1:]), CROSS, sgd(0.1, momentum=0.9), (13,))
    found = work.predict(n, Layout(), H100)
    weights = [i * o for i, o in itertools.pairwise(widths)]
    assert found.flops == 2 * n * (2 * weights[0] + 3 * sum(weights[1:])), "no δ at the input of the first"
    assert found.parameters == sum(weights) + sum(widths[1:])
    assert found.memory["parameters"] == found.memory["gradients"] == 8 * found.parameters
    assert found.memory["optimiser"] == 8 * found.parameters + 4, "velocity, and the steps that are counted"
    assert found.memory["batch"] == n * (8 * 13 + 4)
    assert found.memory["activations"] == 8 * n * (17 + 19), "what relu makes, which the next layer keeps too"
    assert found.memory["working"] == 8 * n * (19 + 19)
    assert not found.collectives and found.sending == 0 and "summed" not in found.memory
    assert found.seconds == max(found.flops / 494.7e12, found.moved / 3.35e12)
    assert found.efficiency(found) == 1


OPTIMIZERS = {"sgd": (sgd(0.1), 0), "momentum": (sgd(0.1, momentum=0.9), 1), "adam": (optax.adam(0.1), 2)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_the_optimiser_keeps_is_counted_leaf_by_leaf(name):
    optimizer, copies = OPTIMIZERS[name]
    net = jbp.serial(jbp.Conv(5, 3), jbp.BatchNorm(), jbp.Flatten(), jbp.Dense(7))
    work = Work(net, CROSS, optimizer, (5, 3, 2))
    params = net.init(jax.random.key(0), (5, 3, 2))[0]
    state = optimizer.init(params)
    found = work.predict(4, Layout(), H100)
    assert found.memory["parameters"] == sum(a.nbytes for a in jax.tree.leaves(params))
    assert found.memory["optimiser"] == sum(a.nbytes for a in jax.tree.leaves(state))
    assert 0 <= found.memory["optimiser"] - copies * found.memory["parameters"] <= 8, "and what it counts"


KEPT = {
    "flat": (dense(17, 19, 7), (13,)),
    "dropout and norms": (
        jbp.serial(jbp.Dense(11), jbp.LayerNorm(), jbp.Dropout(0.2), jbp.residual(jbp.Dense(11)), jbp.Dense(5)), (13,),
    ),
    "images": (jbp.serial(jbp.Conv(5, 3), jbp.relu, jbp.MaxPool(2), jbp.Flatten(), jbp.Dense(7)), (6, 4, 3)),
    "repeated": (jbp.serial(jbp.Dense(11), jbp.relu, jbp.repeat(jbp.serial(jbp.Dense(11), jbp.relu), 5)), (13,)),
    "repeated beside": (
        jbp.serial(jbp.Dense(11), jbp.repeat(jbp.residual(jbp.serial(jbp.Dense(11), jbp.relu)), 3), jbp.Dense(5)),
        (13,),
    ),
    "branched": (jbp.serial(jbp.Dense(11), jbp.branch(jbp.Dense(5), jbp.tanh, join="concat"), jbp.Dense(3)), (13,)),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_activations_are_the_arrays_that_the_forward_pass_keeps(name):
    """By the variables of the whole pass, traced at once; the input of the net is there anyway."""
    net, form = KEPT[name]
    work = Work(net, CROSS, sgd(0.1), form)
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.make_jaxpr(lambda p, x, k: jbp.forward(net, p, x, k)[1])(work.params, work.x(7), key).jaxpr
    kept = {var for var in traced.outvars if var not in traced.invars}
    found = work.predict(7, Layout(), H100)
    assert found.memory["activations"] == sum(var.aval.size * var.aval.dtype.itemsize for var in kept)


def test_nothing_of_the_size_of_the_net_is_allocated():
    before = {id(a) for a in jax.live_arrays()}
    with jax.enable_x64(False):
        work = Work(dense(*[16384] * 5, 1000), CROSS, optax.adam(0.001), (4096,))
        found = work.predict(2**15, Layout(8, 8), H100)
    assert work.parameters > 1e9 and found.flops > 1e12
    assert sum(a.nbytes for a in jax.live_arrays() if id(a) not in before) < 1e6


def test_figures_are_a_constant_and_a_multiple_of_the_batch():
    """Two batches are traced; that of any other size is what a trace of its own would find."""
    net = jbp.serial(jbp.Conv(5, 3), jbp.BatchNorm(), jbp.relu, jbp.Flatten(), jbp.Dense(7))
    work = Work(net, CROSS, sgd(0.1), (5, 3, 2))
    traced = walked(net, work.params, work.x(11))
    assert work.counted(11).rows == traced.rows and work.counted(11).kept == traced.kept


# ── Meshes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ring_by_hand():
    machine, layout = Machine(ACCELERATORS["h100"], latency=2e-6), Layout(4, 2)
    one = Collective("gradient", "all-reduce", "data", 4, 3, 10**9)
    assert one.seconds(layout, machine) == pytest.approx(2 * 3 / 4 * 1e9 / 450e9 + 3 * 2 * 2 * 2e-6, rel=1e-12)
    gathered = Collective("parameters", "all-gather", "data", 4, 1, 10**9)
    assert gathered.seconds(layout, machine) == pytest.approx(3 / 4 * 1e9 / 450e9 + 2 * 2e-6, rel=1e-12)
    parts = Collective("gradient, in parts", "reduce-scatter", "data", 4, 1, 10**9 // 4)
    assert parts.seconds(layout, machine) == pytest.approx(gathered.seconds(layout, machine), rel=1e-12)


@pytest.mark.parametrize(
    "size, stride, bandwidth",
    [(8, 1, 450e9), (4, 2, 450e9), (16, 1, 400e9), (16, 4, 100e9), (16, 8, 50e9), (8, 8, 50e9), (2, 16, 50e9)],
)
def test_a_ring_beyond_a_machine_uses_a_port_for_each_of_its_devices_there(size, stride, bandwidth):
    assert H100.reach(size, stride) == bandwidth
    assert TPU.reach(size, stride) == 200e9, "one torus"


def test_with_parameters_in_parts_each_device_holds_its_own():
    net, n = dense(24, 16, 7), 16
    work = Work(net, CROSS, optax.adam(0.1), (13,))
    whole, parts = work.predict(n, Layout(8), H100), work.predict(n, Layout(8, shard_params=True), H100)
    divided = [13 * 24, 24, 24 * 16, 16, 16 * 7]  # by 8; the last bias, 7, is not
    own = 8 * (sum(divided) // 8 + 7)
    assert parts.memory["parameters"] == own and whole.memory["parameters"] == 8 * (sum(divided) + 7)
    assert parts.memory["optimiser"] == 2 * own + 4
    assert parts.memory["gathered"] == whole.memory["parameters"]
    assert {one.kind: one.bytes for one in parts.collectives} == {
        "reduce-scatter": sum(divided) + 8 * (1 + 7), "all-gather": 8 * sum(divided),  # loss and last bias go along
    }  # fmt: skip


@dataclass(frozen=True)
class Inverse(jbp.Layer):
    """A layer that multiplies, and does not say how much."""

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return jnp.linalg.cholesky(x), ()

    def backward(self, params, saved, delta):
        return delta, ()


@dataclass(frozen=True)
class Twice(Combinator):
    """A net of layers that the plan has no formulas for."""

    layer: jbp.Layer

    @property
    def children(self):
        return (self.layer,)

    def init(self, key, shape):
        return self.layer.init(key, shape)

    def walk_forward(self, visit, params, x, key):
        return visit((), self.layer, params, x, key)

    def walk_backward(self, visit, params, saved, delta):
        return visit((), self.layer, params, saved, delta)


SPLIT = jbp.serial(jbp.Dense(16), jbp.LayerNorm(), jbp.Dense(16))
REFUSED = {
    "a layer": (jbp.serial(Inverse(), jbp.Flatten(), jbp.Dense(5)), (3, 3), Layout(), r"Inverse\(\) at 0: .* cholesky"),
    "a net of layers": (jbp.serial(jbp.Dense(5), Twice(jbp.Dense(5))), (3,), Layout(), "Twice at 1"),
    "a norm of what is split": (SPLIT, (3,), Layout(1, 4), r"LayerNorm\(\) at 1 .* split over the axis model"),
    "softmax of what is split": (jbp.serial(jbp.Dense(8), jbp.softmax), (3,), Layout(1, 4), "softmax at 1"),
    "a branch of what is split": (
        jbp.serial(jbp.Dense(16), jbp.branch(jbp.Dense(8), jbp.Dense(8))), (3,), Layout(1, 4), "at 1.0 .* split",
    ),
    "what leaves a branch split": (jbp.branch(jbp.Dense(8), jbp.Dense(8)), (3,), Layout(1, 4), "leaves .* split"),
    "parts over both axes": (dense(16, 8), (3,), Layout(2, 4, True), "shard_params over data=2,model=4"),
    "moments in a loop": (
        jbp.repeat(jbp.serial(jbp.Dense(3), jbp.BatchNorm()), 2), (3,), Layout(2), "BatchNorm.* inside repeat",
    ),
    "moments of parts": (
        jbp.serial(jbp.Dense(8), jbp.BatchNorm()), (3,), Layout(8, 1, True), "BatchNorm.* shard_params",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_formula_is_refused_by_name(name):
    net, form, layout, words = REFUSED[name]
    with pytest.raises(NotImplementedError, match=words):
        Work(net, CROSS, sgd(0.1), form).predict(16, layout, H100)


TALKS = {
    "a table by row": (jbp.serial(jbp.Embedding(8, 6), jbp.Dense(8)), r"Embedding\(8, 6\) at 0, .* split by row"),
    "a table by column": (jbp.serial(jbp.Embedding(7, 6), jbp.Unembedding(8)), "Unembedding.* split by column"),
    "heads": (jbp.gpt(7, 5, layers=1, heads=2, width=6), "Attention.* where its input is split"),
}


@pytest.mark.parametrize("name", TALKS)
def test_tables_and_heads_that_lie_apart_are_refused_by_name(name):
    """Along the model axis there are no formulas for them; over data alone there are."""
    net, words = TALKS[name]
    work = Work(net, CROSS, sgd(0.1), (5,), tokens=True)
    with pytest.raises(NotImplementedError, match=words):
        work.predict(16, Layout(2, 2), H100)
    assert work.predict(16, Layout(4), H100).flops


def test_a_loss_over_split_outputs_has_a_formula_for_softmax_alone():
    work = Work(dense(8, 16, 8), losses.mean_squared_error, sgd(0.1), (3,))
    with pytest.raises(NotImplementedError, match="mean_squared_error of outputs that are split"):
        work.predict(16, Layout(1, 4), H100)
    assert work.predict(16, Layout(8), H100).flops


@pytest.mark.parametrize(
    "layout, words", [(Layout(5), "16, which the 5 devices .* take 15 or 20"), (Layout(1, 5), "divide the width of no")]
)
def test_a_mesh_that_divides_nothing_is_refused(layout, words):
    with pytest.raises(ValueError, match=words):
        Work(dense(16, 8), CROSS, sgd(0.1), (3,)).predict(16, layout, H100)


def test_the_best_mesh_is_the_shortest_step_of_those_that_fit():
    work = Work(dense(8192, 8192, 8192, 1000), CROSS, sgd(0.1, momentum=0.9), (4096,))
    tried = planning.meshes(work, 24, 16, H100)
    assert {(one.layout.data, one.layout.model) for one in tried.found} == {(8, 2), (4, 4), (2, 8), (1, 16)}
    assert set(tried.refused) == {Layout(16, 1)}, "which does not divide a batch of 24"
    assert tried.best is not None and tried.best.seconds == min(one.seconds for one in tried.found)
    small = Machine(planning.Accelerator(**{**vars(ACCELERATORS["h100"]), "memory": 1e8}))
    least = planning.meshes(work, 24, 16, small).best
    assert least is not None and not least.fits
    assert least.bytes == min(one.bytes for one in tried.found)


# ── Published figures ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ACCELERATORS)
def test_every_accelerator_names_its_sources_and_its_choices(name):
    one = ACCELERATORS[name]
    assert one.sources and one.notes and one.default in one.peaks
    assert one.peaks["float32"] < one.peaks["bfloat16"] and set(one.peaks) <= set(PRECISIONS)
    assert Machine(one).peak == one.peaks[one.default]
    assert Machine(one, "float32").peak == one.peaks["float32"]


def test_a_precision_of_which_nothing_is_published_is_refused():
    with pytest.raises(ValueError, match="nothing is published of tf32 on TPU v5p: take one of default, float32"):
        Machine(ACCELERATORS["tpu-v5p"], "tf32")
    with pytest.raises(ValueError, match="latency"):
        Machine(ACCELERATORS["h100"], latency=math.nan)


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────

PLAN = ["plan", "--net", "16 relu 8 relu", "--shape", "13", "--batch-size", "64"]


def test_the_command_prints_one_mesh_and_says_that_it_is_a_prediction(capsys):
    assert cli.main([*PLAN, "--mesh", "data=4,model=2"]) == 0
    out = capsys.readouterr().out
    assert "prediction" in out and "nothing is measured" in out
    assert "8 × H100 SXM, mesh data=4,model=2" in out and "of 80 GB: fits" in out
    assert "sent: gradient and loss" in out and "efficiency" in out


def test_a_net_that_is_too_large_is_said_not_to_fit(capsys):
    assert cli.main(["plan", "--net", "65536 relu 65536 relu", "--shape", "65536"]) == 0
    assert "of 80 GB: does not fit" in capsys.readouterr().out
    assert cli.main(["plan", "--net", "65536 relu 65536 relu", "--shape", "65536", "--sweep", "data"]) == 0
    assert "! does not fit into 80 GB" in capsys.readouterr().out


def test_a_sweep_is_drawn_and_its_json_is_what_was_predicted(capsys, tmp_path):
    picture = tmp_path / "efficiency.png"
    assert cli.main([*PLAN, "--sweep", "data", "--json", "--out", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"].startswith("prediction") and found["accelerator"]["precision"] == "tf32"
    assert [one["devices"] for one in found["predictions"]] == [1, 2, 4, 8, 16, 32, 64]
    assert found["left_out"] == ["a batch of 64 is not divided by 128, 256, 512, 1,024 devices"]
    first, last = found["predictions"][0], found["predictions"][-1]
    assert first["efficiency"] == 1 and 0 < last["efficiency"] < 1
    assert last["flops_per_device"] * 64 == first["flops_per_device"]
    for one in found["predictions"]:
        parts = one["seconds"]
        assert parts["step"] == pytest.approx(max(parts["arithmetic"], parts["memory"]) + parts["collectives"])
        assert one["memory_per_device"].pop("all") == sum(one["memory_per_device"].values())
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_batch_of_each_device_grows_with_them(capsys):
    assert cli.main([*PLAN, "--sweep", "data", "--per-device", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["batch_size"] for one in found] == [64 * 2**k for k in range(11)]
    assert len({one["flops_per_device"] for one in found}) == 1


def test_the_best_meshes_say_what_was_left_out(capsys):
    net = "16 relu residual( 16 relu )"
    assert cli.main(["plan", "--net", net, "--shape", "13", "--batch-size", "64", "--sweep", "best"]) == 0
    out = capsys.readouterr().out
    assert "left out" in out and "no formulas for" in out
    assert "no mesh of 128, 256, 512, 1,024 devices divides batch and widths" in out


def test_a_net_of_ones_own_is_planned(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import jbp\n\nnet = jbp.serial(jbp.Flatten(), jbp.Dense(7))\n")
    assert cli.main(["plan", "--net", "mine.py:net", "--shape", "5x3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 15 * 7 + 7


WRONG = [
    ("", "expected net", "--shape"),
    ("--net 8", "expected shape", "--net"),
    ("--net 8 --shape 5,x", "shape must be whole numbers such as 784 or 224x224x3", "'5,x'"),
    ("--net 8 --shape 0", "shape must be whole numbers", "'0'"),
    ("--net rleu --shape 5", "unknown layer 'rleu'", "relu"),
    ("--net 8 --shape 5 --mesh data=2,modell=4", "is 'data=2,modell=4'", "did you mean 'model'?"),
    ("--net 8 --shape 5 --mesh data", "mesh must be of data=N and model=N", "is 'data': N is a whole"),
    ("--net 8 --shape 5 --mesh data=0", "mesh must be of data=N and model=N", "is 'data=0': N is a whole"),
    ("--net 8 --shape 5 --mesh data=2,data=4", "data stands in it twice", ""),
    ("--net 8 --shape 5 --mesh data=2 --sweep data", "one of mesh and sweep", ""),
    ("--net 8 --shape 5 --mesh data=3", "1024, which the 3 devices", "1023 or 1026"),
    ("--net 7 --shape 5 --outputs 3 --mesh model=2", "divide the width of no layer", ""),
    ("--net 8 --shape 5 --sweep bst", "unknown sweep 'bst'", "did you mean 'best'?"),
    ("--net 8 --shape 5 --sweep best --per-device", "per_device goes with", ""),
    ("--net 8 --shape 5 --accelerator h10", "unknown accelerator 'h10'", "did you mean 'h100'?"),
    ("--net 8 --shape 5 --accelerator tpu-v5p --precision tf32", "nothing is published of tf32", ""),
    ("--net 8 --shape 5 --latency -1", "latency must be a finite time", ""),
    ("--net 8 --shape 5 --batch-size 0", "batch_size must be a whole number of at least 1", ""),
    ("--net 8 --shape 5 --outputs 0", "outputs must be a whole number of at least 1", ""),
    ("--net 8 --shape 5 --out a.png", "out draws a sweep", ""),
    ("--net 8 --shape 5 --sweep data --out a.pdf", "ends in .png", ""),
    ("--net mine.py:net --shape 5 --outputs 3", "outputs is for a line of layers", ""),
    ("--net 8 --shape 5 --optimizer adm", "unknown optimizer 'adm'", "did you mean 'adam'?"),
    ("--net conv:8:3 --shape 5", "Conv", ""),
]


@pytest.mark.parametrize("words, expected, advice", WRONG)
def test_wrong_use_is_one_line(words, expected, advice, capsys):
    assert cli.main(["plan", *(words.replace("--", " --").split() if words else [])]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("jbp: error: ") and len(err.splitlines()) == 1
    assert expected in err and advice in err


def test_axes_are_read_in_their_order():
    assert read_mesh("data=64,model=8") == {"data": 64, "model": 8}
    assert str(Layout(64, 8)) == "data=64,model=8" and str(Layout(3)) == "data=3"
    assert np.prod(list(read_mesh("model=2").values())) == 2
