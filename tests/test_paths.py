"""Places as text: one form for messages, as one types it, and one for the keys of dicts."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

import jbp
from jbp.paths import dotted, layer_of, paths, shown


class Gates(NamedTuple):
    keep: jax.Array
    forget: jax.Array


TREE = ({"weight": jnp.ones(2)}, [jnp.ones(3), (jnp.ones(5),)], Gates(jnp.ones(7), jnp.ones(11)))


def test_in_a_message_a_place_is_what_one_types():
    for path, leaf in tree_leaves_with_path(TREE):
        assert shown(path) == keystr(path)
        assert eval(f"TREE{shown(path)}", {"TREE": TREE}) is leaf
    assert shown((0, "weight")) == "[0]['weight']"
    assert shown((0, 1), (1,)) == "[0][1] #2"
    assert shown((), (2, 0)) == "#3#1"
    assert shown(()) == ""


def test_as_a_key_it_is_dotted():
    found = [dotted(path) for path, _ in tree_leaves_with_path(TREE)]
    assert found == ["0.weight", "1.0", "1.1.0", "2.keep", "2.forget"]
    assert [layer_of(path) for path, _ in tree_leaves_with_path(TREE)] == ["0", "1.0", "1.1.0", "2", "2"]
    assert dotted(()) == layer_of(()) == "."
    assert dotted((2, "weight")) == "2.weight"


def test_the_paths_of_a_tree_come_in_the_order_of_its_leaves():
    assert paths(TREE[:2], "params") == ["params[0]['weight']", "params[1][0]", "params[1][1][0]"]
    assert paths(jnp.ones(2)) == ["()"]
    assert paths(({"a": 1},), "x", lambda node: isinstance(node, dict)) == ["x[0]"]


def test_errors_of_nets_ties_and_statistics_name_places_alike():
    x, net = jnp.ones((2, 3)), jbp.serial(jbp.relu, jbp.serial(jbp.tanh, jbp.Dense(5)))
    params, _ = net.init(jax.random.key(0), (3,))
    with pytest.raises(ValueError, match=re.escape("layer [1][1]: Dense(5)")):
        jbp.forward(net, params, x[:, :2])
    missing = re.escape("there are no parameters at [0]['weight']: [0]['weight'] is missing")
    with pytest.raises(ValueError, match=missing):
        jbp.tied(net, {(1, 1, "weight"): (0, "weight")}).init(jax.random.key(0), (3,))
    with pytest.raises(ValueError, match=re.escape("found 3 at pairs[1]['weight']")):
        jbp.stats.norms(((), {"weight": 3}))
