"""The table of layers of `jbp show`: shapes, parameters and multiply-adds, against what plain JAX takes."""

import math

import counting
import jax
import jax.numpy as jnp
import pytest
from counting import product_flops, xla_cost
from oracles import plain

import jbp
from jbp import branch, cli, layers, repeat, residual, serial, tied
from jbp.cli.show import layer_rows
from jbp.layers import AvgPool, Conv, Dense, Dropout, Flatten, GlobalPool, GroupNorm, MaxPool, relu, tanh


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows_of(net, shape):
    """The table of a saved net, and its parameters."""
    params, out = net.init(jax.random.key(0), shape)
    loss = jbp.losses.squared_error
    jbp.save("run", net, params, loss=loss, input_shape=shape, targets=[f"y{i}" for i in range(out[0])])
    return layer_rows(jbp.load("run")), params


CONV = serial(
    Conv(6, 3), relu, MaxPool(2), Conv(4, (3, 2), stride=(1, 2), padding="valid", groups=2),
    residual(serial(Conv(4, 3, dilation=2), tanh, Dense(4))), repeat(residual(serial(Dense(4), relu)), 3),
    branch(Conv(2, 1), serial(Conv(3, 3, groups=1), relu), join="concat"), GroupNorm(5), AvgPool(2, 1), Dropout(0.1),
    Flatten(), Dense(7), relu, Dense(2),
)  # fmt: skip
NETS = {
    "everything": (CONV, (9, 8, 3)),
    "one dimension": (serial(Conv(6, 5, stride=2), relu, Conv(6, 3, groups=6), GlobalPool(), Dense(2)), (11, 3)),
    "three dimensions": (serial(Conv(2, (2, 1, 3)), Flatten(), Dense(2)), (3, 4, 5, 2)),
    "images of their own": (serial(Conv(3, (2,), padding="valid"), Flatten(), Dense(2)), (2, 5, 3)),
    "tied": (
        tied(serial(Conv(3, 3), tanh, Conv(3, 3), Flatten(), Dense(2)), {(2, "weight"): (0, "weight")}),
        (4, 4, 3),
    ),
    "dense at positions": (serial(Dense(5), Flatten(), Dense(3)), (4, 2)),
    "one layer": (Dense(3), (5,)),
}


def at_every_site(eqn):
    """Multiply-adds of a convolution in a jaxpr, those with padding too, which XLA leaves out."""
    kernel = eqn.invars[1].aval.shape
    return eqn.outvars[0].aval.size * math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]


@pytest.mark.parametrize("name", NETS)
def test_the_columns_add_up_to_what_plain_jax_multiplies_and_the_net_holds(name, monkeypatch):
    monkeypatch.setattr(counting, "_convolved", at_every_site)
    net, shape = NETS[name]
    rows, params = rows_of(net, shape)
    x = jnp.zeros((1, *shape))
    assert 2 * sum(row.multiply_adds or 0 for row in rows) == product_flops(lambda p, x: plain(net, p, x), params, x)
    assert sum(row.parameters or 0 for row in rows) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert rows[-1].shape == net.init(jax.random.key(0), shape)[1]


def test_a_dense_net_takes_what_xla_counts():
    net = serial(Dense(50), Dense(30))
    rows, params = rows_of(net, (40,))
    assert [row.multiply_adds for row in rows] == [2000, 1500]
    flops, *_ = xla_cost(lambda p, x: plain(net, p, x), params, jnp.zeros((1, 40)))
    assert flops == pytest.approx(2 * 3500 + 80)  # and the biases


def test_a_convolution_takes_sites_times_kernel_times_channels_of_a_group():
    rows, _ = rows_of(CONV, (9, 8, 3))
    found = {row.path: row for row in rows if row.multiply_adds}
    assert found[0,].multiply_adds == 9 * 8 * 3 * 3 * 3 * 6 and found[0,].shape == (9, 8, 6)
    assert found[3,].multiply_adds == 2 * 2 * 3 * 2 * 3 * 4 and found[3,].shape == (2, 2, 4)
    assert found[4, 0].multiply_adds == 2 * 2 * 9 * 4 * 4
    assert found[5, 0].multiply_adds == 3 * 4 * 4 * 4 and found[5, 0].parameters == 3 * 20  # of all repetitions


def test_nets_of_layers_are_shown_with_what_is_in_them():
    rows, _ = rows_of(CONV, (9, 8, 3))
    shown = {(".".join(map(str, row.path)), row.depth, row.name) for row in rows}
    assert {
        ("4", 0, "residual"), ("4.0", 1, "Conv(4, 3, dilation=2)"), ("5", 0, "repeat, 3 times"), ("5", 1, "residual"),
        ("5.0", 2, "Dense(4)"), ("6", 0, "branch"), ("6.0", 1, "Conv(2, 1)"), ("6.1", 1, "serial"),
        ("6.1.0", 2, "Conv(3, 3)"),
    } <= shown  # fmt: skip
    assert all((row.parameters is None) == (row.name.islower() and row.name not in ("relu", "tanh")) for row in rows)


def test_the_table_is_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    rows_of(CONV, (9, 8, 3))
    cli.Show("run")()
    lines = capsys.readouterr().out.splitlines()
    (conv,) = (line.split() for line in lines if line.startswith("  0 "))
    assert conv == ["0", "Conv(6,", "3)", "9", "×", "8", "×", "6", "168", "11,664"]
    assert any(line.startswith("  5.0         Dense(4)") for line in lines)
    assert any(line.split()[:1] == ["all"] for line in lines)
    assert lines[-1] == "multiply-adds of weights, padding included, for one example on the way forward"


def test_a_layer_of_ones_own_is_counted_by_its_pairs():
    """Whatever carries δ back as a matrix does multiplies as often as its pair says; a scale and a shift do not."""
    net = serial(layers.LayerNorm(), Dense(3))
    rows, _ = rows_of(net, (5,))
    assert [(row.parameters, row.multiply_adds) for row in rows] == [(10, 0), (18, 15)]
