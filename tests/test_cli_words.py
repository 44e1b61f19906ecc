"""Nets in a line of text: words with options, brackets, what is put between, and what is refused, each by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbp
from jbp import branch, cli, layers, repeat, residual, serial, tied
from jbp.check.cases import COMBINATORS, LAYERS
from jbp.cli import netspec, training
from jbp.layers import AvgPool, Channel, Conv, Dense, Flatten, GlobalPool, GroupNorm, LayerNorm, MaxPool, Reshape, relu


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


WORDS = {
    "conv:32:5": Conv(32, 5),
    "conv:32:3x5": Conv(32, (3, 5)),
    "conv:32:5x": Conv(32, (5,)),
    "conv:8:3x3x2": Conv(8, (3, 3, 2)),
    "conv:8:3:s2:valid": Conv(8, 3, stride=2, padding="valid"),
    "conv:32:3:s2x1:d1x2:g32": Conv(32, 3, stride=(2, 1), dilation=(1, 2), groups=32),
    "pool:2": MaxPool(2),
    "pool:3x2:s2:same": MaxPool((3, 2), 2, "same"),
    "avgpool:3:s2": AvgPool(3, 2),
    "globalpool": GlobalPool(),
    "layernorm": LayerNorm(),
    "layernorm:0.1": LayerNorm(0.1),
    "rmsnorm": layers.RMSNorm(),
    "batchnorm": layers.BatchNorm(),
    "batchnorm:0.99": layers.BatchNorm(0.99),
    "groupnorm:8": GroupNorm(8),
    "groupnorm:2:1e-07": GroupNorm(2, 1e-7),
    "dropout:0.123456789": layers.Dropout(0.123456789),
    "channel": Channel(),
    "reshape:28x28x1": Reshape((28, 28, 1)),
    "residual( conv:8:3 relu )": residual(serial(Conv(8, 3), relu)),
    "residual( 8 )": residual(Dense(8)),
    "residual( serial( 8 ) )": residual(serial(Dense(8))),
    "repeat:3( residual( 8 relu 8 ) )": repeat(residual(serial(Dense(8), relu, Dense(8))), 3),
    "branch( 8 serial( 4 relu 8 ) )": branch(Dense(8), serial(Dense(4), relu, Dense(8))),
    "branch:concat( 8 4 )": branch(Dense(8), Dense(4), join="concat"),
    "serial( 8 relu )": serial(Dense(8), relu),
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_a_layer_and_back(word):
    (found,) = netspec.parse(word)
    assert found == WORDS[word]
    assert found.as_word() == word


def test_order_of_options_and_spaces_around_brackets_are_free():
    assert netspec.parse("conv:8:3:g2:s2:valid") == netspec.parse("conv:8:3:valid:s2:g2:d1")
    assert netspec.parse("repeat:2(residual(8 relu 8))") == netspec.parse("repeat:2( residual( 8 relu 8 ) )")
    assert netspec.parse("pool:2:valid") == (MaxPool(2),)


NETS = [case.net for row in (*LAYERS, *COMBINATORS) for case in row.in_check]


@pytest.mark.parametrize("net", NETS, ids=repr)
def test_whatever_the_catalogue_holds_is_written_so_that_it_is_read_again_or_refused_by_name(net):
    try:
        word = net.as_word()
    except ValueError as error:
        unsaid = [f.name for f in dataclasses.fields(net) if f"says its {f.name}" in str(error)]
        assert unsaid or "has no word" in str(error)
        return
    assert netspec.parse(word) == (net,)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Conv(3, 3, padding=((1, 2),)), r"Conv\(3, 3, padding=\(\(1, 2\),\)\) cannot stand in .* says its padding"),
        (Conv(3, 3, use_bias=False), "says its use_bias"),
        (Conv(3, 3, weight_init=jbp.initializers.he_normal), "says its weight_init"),
        (residual(Conv(3, 3, bias_init=jbp.initializers.standard_normal)), "says its bias_init"),
        (MaxPool(3, padding=((1, 1),)), r"MaxPool\(.*\) cannot stand in .* says its padding"),
        (AvgPool(3, padding="same", count_padding=True), "says its count_padding"),
        (Dense(3, use_bias=False), r"Dense\(3, use_bias=False\) cannot .* says its use_bias"),
        (Dense(3, weight_init=jbp.initializers.he_normal), "says its weight_init"),
        (LayerNorm(use_scale=False), r"LayerNorm\(use_scale=False\) cannot .* says its use_scale"),
        (tied(serial(Dense(3), relu, Dense(3)), {2: 0}), r"tied\(.*\) has no word"),
    ],
    ids=repr,
)
def test_what_no_word_says_is_refused_by_name(net, words):
    with pytest.raises(ValueError, match=words):
        net.as_word()


MISTAKES = [
    ("cnov:32:5", "unknown layer 'cnov:32:5'; did you mean 'conv'?"),
    ("maxpool:2", "unknown layer 'maxpool:2'; did you mean 'pool'?"),
    ("globalpol", "did you mean 'globalpool'?"),
    ("resdual( 8 )", "unknown net of layers 'resdual('", "did you mean 'residual'?"),
    ("conv", "conv needs conv:WIDTH:KERNEL, a size being 3 or 3x5, got 'conv', as in conv:32:5"),
    ("conv:32", "conv needs conv:WIDTH:KERNEL", "got 'conv:32'"),
    ("conv:a:5", "conv needs conv:WIDTH:KERNEL", "got 'conv:a:5'"),
    ("conv:8:3x3x3x3", "got 'conv:8:3x3x3x3'"),
    ("conv:8:3:t2", "'t2' in 'conv:8:3:t2' cannot be read", "s2 (stride), d2 (dilation), g2 (groups), same, valid"),
    ("conv:8:3:s2:s3", "'s3' in 'conv:8:3:s2:s3' is one too many"),
    ("conv:8:3:valid:same", "'same' in 'conv:8:3:valid:same' is one too many"),
    ("conv:8:3:s0", "cannot read 'conv:8:3:s0': the stride of Conv must be a whole number of at least 1, but is 0"),
    ("conv:8:0", "cannot read 'conv:8:0': the kernel of Conv must be a whole number of at least 1, but is 0"),
    ("conv:9:3:g2", "cannot read 'conv:9:3:g2': the groups of Conv must divide its width 9, but are 2"),
    ("conv:8:3x3:s2x2x2", "cannot read 'conv:8:3x3:s2x2x2'", "[2, 3] dimensions"),
    ("pool", "pool needs pool:WINDOW", "as in pool:5"),
    ("pool:0", "cannot read 'pool:0': the window of MaxPool must be"),
    ("groupnorm", "groupnorm needs groupnorm:GROUPS"),
    ("groupnorm:x", "expected a whole number after the colon, got 'groupnorm:x'"),
    ("reshape", "reshape needs a shape, as in reshape:28x28x1, got 'reshape'"),
    ("reshape:0x3", "cannot read 'reshape:0x3'"),
    ("residual", "'residual' needs layers in brackets right behind it"),
    ("residual ( 8 )", "'residual' needs layers in brackets right behind it"),
    ("residual( 8", "'residual(' is not closed"),
    ("residual( )", "there is no layer in the brackets of residual( )"),
    ("residual:2( 8 )", "cannot read 'residual:2(': residual takes no argument"),
    ("8 )", "a ) closes nothing"),
    ("( 8 )", "unknown net of layers '('"),
    ("relu( 8 )", "relu takes no layers in brackets, but serial, residual, branch, repeat do"),
    ("repeat( 8 )", "cannot read 'repeat(': repeat takes a number of times, as in repeat:3( 8 relu )"),
    ("repeat:0( 8 )", "cannot read 'repeat:0('", "at least 1, but is 0"),
    ("branch:product( 8 )", "cannot read 'branch:product(': branch takes sum or concat"),
    ("serial:2( 8 )", "serial takes no argument"),
]


@pytest.mark.parametrize(("line", "words"), [(line, words) for line, *words in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistyped_word_is_one_line_with_the_nearest(capsys, line, words):
    assert cli.main(["train", "--net", line]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("jbp: error: ")
    assert all(word in err for word in words)


@pytest.mark.parametrize(
    ("text", "shape", "net", "said"),
    [
        ("conv:4:3 relu pool:2 globalpool", (8, 6), "channel conv:4:3 relu pool:2 globalpool 2", 1),
        ("conv:4:3 relu 16 relu", (8, 6), "channel conv:4:3 relu flatten 16 relu 2", 2),
        ("conv:4:3 relu 16 relu", (8, 6, 3), "conv:4:3 relu flatten 16 relu 2", 1),
        ("layernorm residual( conv:3:3 )", (8, 6, 3), "layernorm residual( conv:3:3 ) flatten 2", 1),
        ("avgpool:2", (8, 6), "channel avgpool:2 flatten 2", 2),
        ("channel conv:4:3 flatten 16", (8, 6), "channel conv:4:3 flatten 16 2", 0),
        ("reshape:8x6x1 conv:4:3 globalpool", (48,), "reshape:8x6x1 conv:4:3 globalpool 2", 0),
        ("conv:4:3x globalpool", (8, 6), "conv:4:3x globalpool 2", 0),  # six channels along eight steps
        ("conv:4:3x3 globalpool", (8, 6), "channel conv:4:3x3 globalpool 2", 1),
        ("channel conv:4:3 globalpool", (9,), "channel conv:4:3 globalpool 2", 0),
        ("5 relu conv:4:3 16", (8, 6, 3), "5 relu conv:4:3 flatten 16 2", 1),  # a dense layer in front is at each pixel
        ("16 relu", (8, 6), "flatten 16 relu 2", 0),
    ],
)
def test_what_convolution_needs_is_put_between_and_said(text, shape, net, said):
    made = netspec.build(text, shape, 2)
    assert netspec.spec(made) == net
    assert made.init(jax.random.key(0), shape)[1] == (2,)
    assert len(netspec.added(text, made)) == said


def test_initial_values_reach_every_kernel():
    text = "conv:6:3:g2 relu residual( conv:6:3 relu ) repeat:2( conv:6:1 ) branch( conv:6:1 conv:6:3 )"
    init = jbp.initializers.glorot_uniform
    made = netspec.build(text, (8, 8, 4), 2, None, init, jbp.initializers.standard_normal)
    found = [leaf for leaf in netspec._leaves((made,)) if isinstance(leaf, Conv | Dense)]
    assert len(found) == 6
    assert all((leaf.weight_init, leaf.bias_init) == (init, jbp.initializers.standard_normal) for leaf in found)
    assert netspec.spec(made).startswith("conv:6:3:g2 relu residual( conv:6:3 relu )")


@pytest.mark.parametrize(
    ("init", "variance"),
    [("lecun_normal", 1 / 36), ("he_uniform", 2 / 36), ("glorot_normal", 2 / (36 + 9 * 256)), (None, 2 / 36)],
)
def test_the_fan_of_a_kernel_counts_its_places_and_the_channels_of_its_group(init, variance):
    """A kernel [3, 3, 8/2, 256]: fan_in 3·3·4, fan_out 3·3·256."""
    given = None if init is None else getattr(jbp.initializers, init)
    net = netspec.build("conv:256:3:g2 relu globalpool", (4, 4, 8), 2, None, given)
    weight = net.init(jax.random.key(0), (4, 4, 8))[0][0]["weight"]
    assert weight.shape == (3, 3, 4, 256)
    assert float(jnp.var(weight)) == pytest.approx(variance, rel=0.05)


def test_the_activation_behind_a_pool_is_the_one_that_a_kernel_is_initialised_for():
    key, shape = jax.random.key(0), (8, 8, 1)
    usual, behind, plain = (
        serial(*netspec.parse(line)).init(key, shape)[0][0]["weight"]
        for line in ("conv:4:3 relu", "conv:4:3 layernorm pool:2 relu", "conv:4:3 pool:2")
    )
    np.testing.assert_array_equal(jnp.std(usual) / jnp.std(plain), jnp.std(behind) / jnp.std(plain))
    assert float(jnp.std(usual) / jnp.std(plain)) == pytest.approx(2**0.5)


def test_help_explains_every_word(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    explained = capsys.readouterr().out.partition("layers of --net")[2]
    activations = {kind.word for kind in netspec._ACTIVATIONS}
    for kind in (*netspec._KINDS, *netspec._COMBINATORS):
        assert not kind.word or kind.word in activations or kind.word in explained, kind


def test_a_convolutional_net_trains_on_digits_says_what_is_put_in_and_predicts(capsys):
    line = "conv:8:3 relu pool:2 residual( conv:8:3 relu ) 16 relu"
    words = ["train", "--net", line, "--epochs", "2", "--learning-rate", "0.1", "--out", "run"]
    assert cli.main(words) == 0
    err = capsys.readouterr().err
    assert "net: channel in front" in err and "net: flatten before the dense layer 16" in err
    net: Any = jbp.load("run").net
    assert net.layers[0] == Channel() and net.layers[5] == Flatten()
    assert cli.main(["predict", "run", "digits", "--quiet"]) == 0
    assert capsys.readouterr().out.count("\n") == 361


@pytest.mark.usefixtures("optax_promotion")
def test_weight_decay_leaves_biases_and_norms_alone_under_repeat_too():
    net = netspec.build("conv:3:3 repeat:2( conv:3:3 batchnorm layernorm relu ) globalpool", (6, 6), 2)
    params, _ = net.init(jax.random.key(0), (6, 6))
    params = jax.tree.map(jnp.ones_like, params)
    made = training.make_optimizer(cli.Train(optimizer="sgd", weight_decay=0.5), steps=10)
    updates = made.update(jax.tree.map(jnp.zeros_like, params), made.init(params), params)[0]
    for path, leaf in jax.tree.leaves_with_path(updates):
        assert bool((leaf != 0).all()) == (path[-1].key == "weight"), path


def test_what_couples_examples_is_refused_in_one_line_where_it_cannot_be(capsys):
    assert cli.main(["train", "--net", "conv:4:3 batchnorm relu globalpool", "--private", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "layer [2] (BatchNorm()) couples the examples" in err and err.count("\n") == 1


def test_a_run_with_batch_normalisation_is_kept_whole_and_seen_by_every_command(capsys):
    line = "conv:4:3:valid batchnorm relu pool:2 repeat:2( conv:4:3 ) globalpool"
    words = ["train", "--net", line, "--epochs", "2", "--augment", "shift:1", "--quiet"]
    assert cli.main([*words, "--out", "one"]) == 0
    one = jbp.load("one")
    assert np.abs(one.params[2]["mean"]).max() > 0  # the running moments are parameters, and kept
    x, y = jbp.data.load("digits", "test")
    summary = json.loads(Path("one/summary.json").read_text())
    assert np.mean(one.predict(x).argmax(1) == y) == summary["test_accuracy"]
    assert summary["net"] == f"channel {line} 10"
    for command in ("show one", "predict one digits", "trace one"):
        capsys.readouterr()
        assert cli.main(command.split()) == 0, command
    assert len(capsys.readouterr().out.splitlines()) < 700  # of twenty thousand numbers


def test_a_net_of_ones_own_file_is_kept_whole_though_no_word_says_it(capsys):
    own = """import jbp
net = jbp.serial(
    jbp.Channel(), jbp.Conv(4, (3, 2), padding=((2, 0), (1, 1)), use_bias=False), jbp.relu,
    jbp.branch(jbp.Conv(4, 1, weight_init=jbp.initializers.he_uniform), jbp.AvgPool(3, 1, "same", True), join="concat"),
    jbp.GlobalPool(), jbp.Dense(10),
)
"""
    Path("mine.py").write_text(own)
    assert cli.main(["train", "--net", "mine.py:net", "--epochs", "1", "--quiet", "--out", "one"]) == 0
    net: Any = jbp.load("one").net
    assert net.layers[1] == Conv(4, (3, 2), padding=((2, 0), (1, 1)), use_bias=False)
    for command in ("show one", "predict one digits"):
        assert cli.main(command.split()) == 0, command
    capsys.readouterr()
