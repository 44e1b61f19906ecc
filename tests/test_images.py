"""Images that do not suit a net, and look otherwise than they are taken for: one clear line, with the layer's place."""

import warnings
from typing import Any

import jax
import numpy as np
import pytest

import jbp
from jbp import branch, cli, repeat, residual, serial
from jbp.layers import AvgPool, Channel, Conv, Dense, Flatten, GlobalPool, GroupNorm, LayerNorm, MaxPool, relu

KEY, LOSS, SGD = jax.random.key(0), jbp.losses.softmax_cross_entropy, jbp.optim.sgd(0.1)
END = (GlobalPool(), Dense(3))


def fit(net, shape, dtype: Any = float):
    return jbp.fit(net, LOSS, SGD, (np.zeros((6, *shape), dtype), np.arange(6) % 3), epochs=1)


REFUSED = {
    "a kernel larger than the image": (
        lambda: fit(serial(Channel(), Conv(4, 9, padding="valid"), *END), (8, 8)),
        r"layer \[1\]: Conv\(4, 9, padding='valid'\) needs a space of at least \(9, 9\), but has \(8, 8\) with",
    ),
    "a dilated kernel larger than the padded image": (
        lambda: fit(serial(Conv(4, (3, 3), padding=((1, 1), (0, 1)), dilation=4), *END), (6, 7, 1)),
        r"layer \[0\]: Conv\(.*dilation=4\) needs a space of at least \(9, 9\), but has \(8, 8\) with its padding",
    ),
    "a window larger than what is left of the image": (
        lambda: fit(serial(Conv(4, 3, stride=2), residual(serial(relu, MaxPool(5))), *END), (8, 8, 1)),
        r"layer \[1\]\[1\]: MaxPool\(5\) needs a space of at least \(5, 5\), but has \(4, 4\) with its padding",
    ),
    "groups that do not divide the channels": (
        lambda: fit(serial(Conv(4, 3), repeat(serial(relu, Conv(6, 3, groups=3)), 2), *END), (8, 8, 1)),
        r"layer \[1\]\[1\]: the groups of Conv\(6, 3, groups=3.*\) must divide its input's 4 channels",
    ),
    "groups that do not divide the width": (
        lambda: Conv(4, 3, groups=3),
        "the groups of Conv must divide its width 4, but are 3",
    ),
    "groups of a norm": (
        lambda: serial(Conv(4, 3), branch(relu, GroupNorm(3))).init(KEY, (8, 8, 1)),
        r"layer \[1\]\[1\]: the groups of GroupNorm\(3\) must divide its input's 4 channels",
    ),
    "stride 0": (lambda: Conv(4, 3, stride=0), "the stride of Conv must be a whole number of at least 1, but is 0"),
    "stride 0 along one axis": (lambda: Conv(4, 3, stride=(2, 0)), "the stride of Conv must be .* but is 0"),
    "stride 0 of a pool": (lambda: AvgPool(2, 0), "the stride of AvgPool must be .* at least 1, but is 0"),
    "an image without channels": (
        lambda: fit(serial(relu, Conv(4, (3, 3)), *END), (8, 8)),
        r"layer \[1\]: Conv\(4, \(3, 3\)\) needs an input with 2 axes of space and one of channels, but one example "
        r"has shape \(8, 8\): put jbp.Channel\(\) in front \(channel, in a line of layers\), which .* \(8, 8, 1\)",
    ),
    "an image without channels in a pool": (
        lambda: fit(serial(MaxPool((2, 2)), *END), (8, 8)),
        r"layer \[0\]: MaxPool\(\(2, 2\)\) needs .* put jbp.Channel\(\) in front",
    ),
    "a series without channels": (
        lambda: fit(serial(Conv(4, 3), *END), (9,)),
        r"layer \[0\]: Conv\(4, 3\) needs .* has shape \(9,\): put jbp.Channel\(\) .* makes it \(9, 1\)",
    ),
    "an image of bytes": (
        lambda: fit(serial(Channel(), Conv(4, 3), *END), (9, 8), np.uint8),
        r"layer \[1\]: Conv\(4, 3\) needs floating-point input, but got uint8: convert it first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_suit_is_one_line_naming_the_layer(what):
    made, words = REFUSED[what]
    with pytest.raises(ValueError, match=words) as caught:
        made()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("conv:8:9:valid", "layer [1]: Conv(8, 9, padding='valid') needs a space of at least (9, 9), but has (8, 8)"),
        ("conv:8:3 groupnorm:3", "layer [2]: the groups of GroupNorm(3) must divide its input's 8 channels"),
        ("conv:8:3 pool:2 conv:6:3:g3", "layer [3]: the groups of Conv(6, 3, groups=3) must divide its input's 8"),
        ("flatten conv:8:3", "layer [1]: Conv(8, 3) needs an input with 1 to 3 axes of space and one of channels"),
        ("residual( conv:3:3 )", "layer [1]: residual needs a layer whose output has its input's shape"),
        ("conv:8:3:s0", "the stride of Conv must be a whole number of at least 1, but is 0"),
    ],
)
def test_the_command_line_says_the_same(capsys, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--net", line]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


CHANNELS_FIRST = r"an example of shape \(3, 12, 12\) looks like \[channels, h, w\].* numpy.moveaxis\(x, 1, -1\)"
NO_CHANNELS = r"an example of shape \(9, 9\) looks like an image \[h, w\].* 9 places .* 9 channels .* jbp.Channel\(\)"
WARNED = {
    "fit": (lambda: fit(serial(Conv(4, 3), *END), (3, 12, 12)), CHANNELS_FIRST),
    "init": (lambda: serial(Conv(4, 3), *END).init(KEY, (3, 12, 12)), CHANNELS_FIRST),
    "init of one layer": (lambda: Conv(4, (3, 3)).init(KEY, (3, 12, 12)), CHANNELS_FIRST),
    "a shape that comes again": (lambda: fit(serial(Conv(12, 3), Conv(12, 3), *END), (3, 12, 12)), CHANNELS_FIRST),
    "behind a norm": (lambda: fit(serial(LayerNorm(), Conv(4, 3), *END), (3, 12, 12)), CHANNELS_FIRST),
    "two arms": (lambda: fit(serial(branch(Conv(4, 3), Conv(4, 5)), *END), (3, 12, 12)), CHANNELS_FIRST),
    "no channels": (lambda: fit(serial(Conv(9, 5), Conv(9, 5), *END), (9, 9)), NO_CHANNELS),
    "no channels, repeated": (lambda: fit(serial(repeat(Conv(9, 5), 2), *END), (9, 9)), NO_CHANNELS),
    "no channels in a pool": (lambda: fit(serial(MaxPool(2), Flatten(), Dense(3)), (9, 9)), NO_CHANNELS),
    "many runs": (
        lambda: jbp.fit_many(
            serial(Conv(4, 3), *END), LOSS, SGD, (np.zeros((6, 9, 9)), np.arange(6) % 3), seeds=range(2), epochs=1
        ),
        NO_CHANNELS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WARNED)
def test_what_looks_otherwise_is_warned_of_once_at_the_users_own_line(what):
    made, words = WARNED[what]
    with pytest.warns(UserWarning, match=words) as caught:
        made()
    (warning,) = caught
    assert warning.filename == __file__
    assert str(warning.message).startswith(("Conv(", "MaxPool("))


MEANT = {
    "one dimension in a tuple": (serial(Conv(4, (3,)), *END), (9, 9)),
    "a stride in a tuple": (serial(Conv(4, 3, stride=(2,)), *END), (9, 9)),
    "a series as long as it has channels behind a layer": (serial(Conv(9, 3), Conv(4, 3), *END), (9, 2)),
    "what layers made": (serial(Conv(12, 3, stride=(4, 1)), Conv(4, 3), *END), (12, 12, 2)),
    "channels last": (serial(Conv(4, 3), *END), (12, 12, 3)),
    "a channel in front": (serial(Channel(), Conv(4, 3), *END), (9, 9)),
    "small": (serial(Conv(4, 3), *END), (3, 5, 7)),
    "long and narrow": (serial(Conv(4, 3), *END), (1, 40, 9)),
    "images of their own": (serial(Conv(4, (3,)), Flatten(), Dense(3)), (3, 12, 12)),
    "dense": (serial(Flatten(), Dense(3)), (3, 12, 12)),
}


@pytest.mark.parametrize("what", MEANT)
def test_what_may_be_meant_is_not_warned_of(what):
    net, shape = MEANT[what]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.init(KEY, shape)


def test_a_refusal_warns_once_too_and_the_next_net_anew():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="uint8"):
            fit(serial(Conv(4, 3), *END), (9, 9), np.uint8)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match=NO_CHANNELS):
        Conv(4, 3).init(KEY, (9, 9))


def test_the_command_line_warns_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(60, 3, 12, 12))
    np.savez("d.npz", x_train=x, y_train=np.arange(60) % 3)
    words = ["train", "--data", "d.npz", "--net", "conv:4:3 globalpool", "--epochs", "1", "--quiet"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(words) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jbp: warning: Conv(4, 3): an example of shape (3, 12, 12) looks like [channels, h, w]")
