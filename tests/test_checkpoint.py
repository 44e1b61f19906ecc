"""Trees in safetensors files and nets in JSON: what is saved comes back, and what is wrong says so."""

import errno
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from cases import TIES, drawn

import jbp
from jbp import checkpoint

TREE = {
    "net": ({"weight": np.arange(6.0).reshape(2, 3), "bias": np.array([1, 2], "float32")}, (), [np.int32(7), None]),
    "scale": np.array(2.5),
    "empty": np.zeros((0, 4), np.float32),
}
NETS = [
    jbp.serial(jbp.Flatten(), jbp.Dense(5), jbp.leaky_relu, jbp.Dropout(0.2), jbp.Dense(3, use_bias=False)),
    jbp.serial(jbp.Dense(4, weight_init=jbp.initializers.he_normal), jbp.gelu, jbp.residual(jbp.Dense(4))),
    jbp.branch(jbp.repeat(jbp.serial(jbp.Dense(4), jbp.tanh), 3), jbp.identity, join="concat"),
]


def test_a_tree_comes_back_with_its_structure_shapes_and_dtypes(tmp_path):
    checkpoint.save(tmp_path / "tree.safetensors", TREE, {"why": "a test"})
    tree, metadata = checkpoint.load(tmp_path / "tree.safetensors")
    assert metadata == {"why": "a test"}
    chex.assert_trees_all_equal_structs(tree, TREE)
    for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(TREE), strict=True):
        assert ours.dtype == np.asarray(theirs).dtype
        np.testing.assert_array_equal(ours, theirs, strict=True)


def test_keys_are_tree_paths_and_other_programs_can_read_them(tmp_path):
    checkpoint.save(tmp_path / "tree.safetensors", TREE)
    arrays = safetensors.numpy.load_file(tmp_path / "tree.safetensors")
    assert set(arrays) == {"net.0.weight", "net.0.bias", "net.2.0", "scale", "empty"}


@pytest.mark.parametrize("array", [np.arange(12.0).reshape(3, 4).T, np.arange(12)[::2], jnp.ones((2, 3), jnp.bfloat16)])
def test_strided_arrays_and_bfloat16_come_back(tmp_path, array):
    checkpoint.save(tmp_path / "a.safetensors", (array,))
    (back,), _ = checkpoint.load(tmp_path / "a.safetensors")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, np.asarray(array), strict=True)


def test_like_gives_the_same_kind_of_tree_or_says_where_not(tmp_path):
    path = tmp_path / "tree.safetensors"
    checkpoint.save(path, {"w": np.zeros((2, 3)), "b": np.zeros(3)})
    like = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
    tree, _ = checkpoint.load(path, like)
    chex.assert_trees_all_equal_structs(tree, like)
    with pytest.raises(ValueError, match=r"expected float64 of shape \(3, 2\) at \['w'\], found float64 \(2, 3\)"):
        checkpoint.load(path, {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"expected an array at \['c'\], found none"):
        checkpoint.load(path, like | {"c": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"found also \['b'\]"):
        checkpoint.load(path, {"w": like["w"]})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": object()}, "got object at 'a'"),
        ({"a": "text"}, "got str at 'a'"),
        ({"a.b": np.zeros(1)}, "without dots"),
        ({1: np.zeros(1)}, "without dots"),
        ((np.array([object()]),), "got ndarray at '0'"),
        ((jbp.optim.sgd(0.1).init(()),), "got SgdState at '0'"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_its_path(tmp_path, tree, words):
    with pytest.raises(ValueError, match=words):
        checkpoint.save(tmp_path / "a.safetensors", tree)
    assert not list(tmp_path.iterdir())


def damaged(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TREE)
    whole = path.read_bytes()
    match kind:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(whole[:-8])
        case "cut in its header":
            path.write_bytes(whole[:40])
        case "text":
            path.write_text("not a safetensors file at all")
        case "foreign":
            safetensors.numpy.save_file({"w": np.zeros(3)}, path)
        case "without its tree":
            safetensors.numpy.save_file({"w": np.zeros(3)}, path, {checkpoint.FORMAT: "{}"})
        case "with another tree":
            words = {checkpoint.FORMAT: json.dumps({"tree": {"tuple": ["v"]}, "metadata": None})}
            safetensors.numpy.save_file({"w": np.zeros(3)}, path, words)
        case "a folder":
            path.unlink()
            path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "found nothing there"),
        ("empty", "empty file"),
        ("truncated", "expected a whole safetensors file"),
        ("cut in its header", "expected a whole safetensors file"),
        ("text", "expected a whole safetensors file"),
        ("foreign", "of another program"),
        ("without its tree", "expected a tree of arrays"),
        ("with another tree", "expected a tree of arrays"),
        ("a folder", "found a folder"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path, kind, words):
    path = damaged(tmp_path, kind)
    with pytest.raises(ValueError, match=words) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"w": np.zeros(3)})
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="could not be written: No space left on device") as caught:
        checkpoint.save(path, {"w": np.ones(3)})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("net", NETS, ids=repr)
def test_a_net_comes_back_from_json(net):
    assert checkpoint.net_from(json.loads(json.dumps(checkpoint.describe(net)))) == net


@pytest.mark.parametrize("case", [case for case in TIES if "Gain" not in repr(case.net)], ids=lambda case: case.name)
def test_a_net_with_ties_and_its_parameters_come_back_from_one_file(tmp_path, case):
    """Bit for bit, with () at every borrower."""
    params, x, delta, _ = drawn(case)
    path = tmp_path / "tied.safetensors"
    checkpoint.save(path, params, checkpoint.describe(case.net))
    tree, description = checkpoint.load(path)
    net = checkpoint.net_from(description)
    assert net == case.net
    assert hash(net) == hash(case.net)
    assert jax.tree.structure(tree) == jax.tree.structure(params)

    def passes(net, params):
        output, saved = jbp.forward(net, params, x)
        return output, jbp.backward(net, params, saved, delta, jbp.sinks.total)

    for ours, theirs in zip(jax.tree.leaves(passes(net, tree)), jax.tree.leaves(passes(case.net, params)), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize(
    ("ties", "words"),
    [
        (None, "tied needs a path of an owner for each borrower, at least one, but got None"),
        ([], "at least one"),
        ("2", "at least one"),
        ([[[2, "weight"]]], "a path of an owner for each borrower"),
        ([[[2, "weight"], [0, 0.5]]], r"a path is a tuple of indices and names.* but got \(0, 0.5\)"),
        ([[[2, "weight"], [0, None]]], "a path is a tuple of indices and names"),
        ([[[2, "weight"], [0, [1]]]], "a path is a tuple of indices and names"),
        ([[[2, "weight"], [False, "weight"]]], "a path is a tuple of indices and names"),
        ([[[-1, "weight"], [0, "weight"]]], "a path is a tuple of indices and names"),
        ([[[2, "weight"], []]], "a path is a tuple of indices and names"),
        ([[[2, "weight"], {"class": "system"}]], "found 'system'"),
        ([[[2, "weight"], {"class": "Relu"}]], "a path is a tuple of indices and names"),
        ([[[0], [0, "weight"]]], r"the borrower \[0\] of \[0\]\['weight'\] overlaps"),
    ],
)
def test_damaged_ties_are_refused_in_a_line(ties, words):
    whole = checkpoint.describe(jbp.tied(jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(3)), {2: 0}))
    with pytest.raises(ValueError, match=words) as caught:
        checkpoint.net_from(whole | {"ties": ties})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"what tied takes must be a layer.* but is 3"):
        checkpoint.net_from(whole | {"layer": 3})
    with pytest.raises(ValueError, match=r"expected the fields of Tied, found \['layer'\]"):
        checkpoint.net_from({key: value for key, value in whole.items() if key != "ties"})


def test_a_class_that_is_not_jbps_is_made_only_of_what_is_handed_in():
    class Mine(jbp.Dense):
        pass

    described = checkpoint.describe(jbp.serial(Mine(3)))
    with pytest.raises(checkpoint.MissingLayers, match="Mine"):
        checkpoint.net_from(described)
    assert checkpoint.net_from(described, {"Mine": [Mine]}) == jbp.serial(Mine(3))
    with pytest.raises(ValueError, match="found 'system'"):
        checkpoint.net_from({"class": "system", "command": "true"})
    with pytest.raises(ValueError, match=r"found \['breadth'\]"):
        checkpoint.net_from({"class": "Dense", "breadth": 3})


def test_outputs_do_not_hang_on_the_block(monkeypatch):
    net = jbp.serial(jbp.Dense(3), jbp.tanh)
    params, _ = net.init(jax.random.key(0), (5,))
    x = np.random.default_rng(0).normal(size=(23, 5))
    whole = checkpoint.outputs(net, params, x)
    monkeypatch.setattr(checkpoint, "_BLOCK", 7)
    np.testing.assert_allclose(checkpoint.outputs(net, params, x), whole, rtol=1e-13)
    np.testing.assert_allclose(whole, jbp.apply(net, params, jnp.asarray(x)), rtol=1e-14)
