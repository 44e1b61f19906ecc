"""What the δ page is told: that every number is jbp's, float64, whatever it is, and that it survives the way."""

import gzip
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbp
from jbp import stats
from jbp.inspect import Page, Update, page, scene
from jbp.inspect.page import embedded
from jbp.inspect.scene import FORMAT, LARGE, MOST_PARAMETERS, array, leaf_of, refuse_large, reports
from jbp.rules import NAMES, alignment
from jbp.step import Problem
from jbp.tracing import trace

ROOT = Path(__file__).parents[1]
SCENES = sorted((ROOT / "docs" / "scenes").glob("*.json.gz"))
N = 5


def a_net() -> Any:
    """One of everything that the page draws."""
    deep = jbp.repeat(jbp.residual(jbp.serial(jbp.Dense(3), jbp.gelu)), 2)
    arms = jbp.branch(jbp.Dense(2), jbp.serial(jbp.Dense(5), jbp.softmax), join="concat")
    tied = jbp.tied(jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(7)), {(2, "weight"): (0, "weight")})
    return jbp.serial(deep, arms, tied, jbp.Dense(2))


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    net, random = a_net(), np.random.default_rng(1)
    params, _ = net.init(jax.random.key(0), (3,))
    x, y = random.normal(size=(N, 3)), random.integers(2, size=N)
    loss = jbp.losses.softmax_cross_entropy
    found = scene(net, loss, params, x, y, example=2, update=Update(0.3, 0.9), max_norm=0.5, seed=4)
    return {"net": net, "loss": loss, "params": params, "x": x, "y": y, "scene": found}


def close(found: Any, wanted: Any) -> None:
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13 * max(1.0, float(np.abs(wanted).max(initial=0))))


def test_the_example_is_what_trace_shows(made):
    """By layer, repetition and symbol; every row of x, y, δ and δ_x that the trace has is in the scene."""
    found, t = made["scene"], trace(made["net"], made["loss"], made["params"], made["x"][2], made["y"][2])
    nodes = {(node["name"]): node for node in found["nodes"]}
    compared = 0
    for row in t.rows:
        if row.name not in nodes or row.step not in ("forward", "backward"):
            continue
        node = nodes[row.name]
        if row.symbol == "y" and node["layer"] not in ("residual", "branch"):
            assert node["formulas"][0] == row.formula
        if row.symbol in ("y", "δ"):
            whole = leaf_of(found["values" if row.symbol == "y" else "deltas"][node["id"]])
            close(whole[2], row.value)
            compared += 1
        if row.symbol == "δ_x" and len(node["inputs"]) == 1 and node["inputs"][0] == 0:
            compared += 1
    assert compared >= 2 * len(found["nodes"])
    assert float(t["loss.e"]) == pytest.approx(leaf_of(found["errors"])[2], abs=1e-13)


def test_the_statistics_are_jbps(made):
    found = made["scene"]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), made["params"])
        x, y = jnp.asarray(made["x"]), jnp.asarray(made["y"])
        errors, pairs = jbp.value_and_pairs(made["net"], made["loss"], params, x, y)
        mean, clipped = jbp.contract(pairs), stats.clipped(pairs, 0.5)
        close(leaf_of(found["errors"]), errors)
        close(leaf_of(found["norms"]), stats.norms(pairs))
        close(leaf_of(found["factors"]), stats.clip_weights(pairs, 0.5))
        own = jbp.contract(pairs, jnp.arange(N) == 2)
        optimizer = jbp.optim.heavy_ball(0.3, 0.9)
        updates, _ = optimizer.update(mean, optimizer.init(params), params)
        after = jax.tree.map(jnp.add, params, updates)
    for i, p in enumerate(found["params"]):
        path = [int(step) if step.isdecimal() else step for step in p["path"]]
        for name, tree in (("mean", mean), ("clipped", clipped), ("grads", own)):
            close(leaf_of(found[name][i]), _leaf(tree, path)[tuple(p["repetition"])])
        close(leaf_of(found["update"]["new"][i]), _leaf(after, path)[tuple(p["repetition"])])
        close(leaf_of(p), np.asarray(_leaf(params, path)[tuple(p["repetition"])]))


def _leaf(tree: Any, path: list[Any]) -> Any:
    for step in path:
        tree = tree[step]
    return np.asarray(tree)


def test_uses_of_a_shared_weight_add_up_to_its_gradient(made):
    found = made["scene"]
    (shared,) = [p for p in found["params"] if sum(p["id"] in node["params"].values() for node in found["nodes"]) > 1]
    uses = [use for use in found["uses"] if found["nodes"][use["node"] - 1]["params"][use["name"]] == shared["id"]]
    assert len(uses) == 2 and all(np.abs(leaf_of(use)).max() > 0 for use in uses)
    close(sum(map(leaf_of, uses)), leaf_of(found["grads"][shared["id"]]))


def test_angles_of_rules_are_those_of_alignment(made):
    found, checked = made["scene"], 0
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), made["params"])
        x, y = jnp.asarray(made["x"]), jnp.asarray(made["y"])
        problem = Problem(made["net"], made["loss"], jbp.optim.sgd(0.1))
        for name in ("feedback_alignment", "direct_feedback_alignment"):
            state = NAMES[name].as_method().init(jax.random.key(4), problem, params, x[0])
            theirs = alignment(name, state, made["net"], made["loss"], params, x, y)
            for p, ours in zip(found["params"], found["rules"][name]["angles"], strict=True):
                key = ".".join(p["path"])
                if key in theirs:
                    angle = np.asarray(theirs[key].angle)[tuple(p["repetition"])]
                    assert ours == pytest.approx(float(angle), abs=1e-6)
                    checked += 1
    assert checked >= 10
    assert set(found["rules"]) == {"feedback_alignment", "direct_feedback_alignment", "sign_symmetry", "kolen_pollack"}


def test_numbers_survive_to_the_bit():
    odd = np.array([0.1, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1e308, 1 / 3])
    back = leaf_of(json.loads(embedded(array(odd))))
    assert back.tobytes() == odd.tobytes()
    assert leaf_of(array(np.zeros((0, 3)))).shape == (0, 3)


def test_nan_and_infinity_are_in_the_page():
    net = jbp.Dense(2)
    params = {"weight": np.array([[np.inf, 1.0]]), "bias": np.zeros(2)}
    found = scene(net, jbp.losses.squared_error, params, np.array([[1.0], [np.nan]]), np.zeros((2, 2)))
    assert np.isinf(leaf_of(found["values"][1])[0, 0]) and np.isnan(leaf_of(found["values"][1])[1]).all()
    np.testing.assert_array_equal(leaf_of(found["grads"][found["nodes"][0]["params"]["weight"]]), [[np.inf, 2.0]])
    assert page([found])


def test_no_text_leaves_its_script():
    words = "</script><script>alert(1)</script><!-- & \u2028"
    found = page([_small() | {"title": words}])
    held = re.search(r'<script id="scenes" type="application/json">(.*?)</script>', found, re.S)
    assert held and json.loads(held[1])[0]["title"] == words
    assert words not in found and found.count("</script>") == _template().count("</script>")


def _small(**others: Any) -> dict[str, Any]:
    net = jbp.Dense(2)
    params = {"weight": np.ones((3, 2)), "bias": np.zeros(2)}
    return scene(net, jbp.losses.l2_loss, params, np.ones((2, 3)), np.ones((2, 2)), **others)


def _template() -> str:
    return (files("jbp.inspect") / "page.html").read_text(encoding="utf-8")


def test_the_page_is_one_file_that_loads_nothing():
    text = _template()
    assert len(text.encode()) < 1_500_000
    markup = re.sub(r"(<script[^>]*>).*?(</script>)", r"\1\2", text, flags=re.S)
    assert not re.findall(r"""\s(?:src|href)=["'](?!data:)([^"']+)""", markup) and "@import" not in text
    assert not re.findall(r"url\((?!['\"]?data:)[^)#]+\)", text)
    assert not re.search(r"\b(?:XMLHttpRequest|WebSocket|importScripts|sendBeacon)\b", text)


def test_a_page_needs_a_scene():
    with pytest.raises(ValueError, match="at least one scene"):
        page([])


def test_a_trace_makes_its_page():
    net, loss = jbp.serial(jbp.Dense(2), jbp.tanh, jbp.Dense(1)), jbp.losses.squared_error
    params, _ = net.init(jax.random.key(0), (3,))
    t = trace(net, loss, params, jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0]), learning_rate=0.25, momentum=0.5)
    text = t.to_html()
    assert isinstance(text, Page) and text.startswith("<!doctype html>")
    held = re.search(r'<script id="scenes" type="application/json">(.*?)</script>', text, re.S)
    assert held
    (found,) = json.loads(held[1])
    assert found["format"] == FORMAT and found["update"]["rate"] == 0.25 and found["update"]["momentum"] == 0.5
    close(leaf_of(found["update"]["new"][found["nodes"][0]["params"]["weight"]]), t["1.weight_new"])
    framed = text._repr_html_()
    assert framed.startswith("<iframe") and "srcdoc=" in framed and '"id="scenes"' not in framed
    with pytest.raises(ValueError, match=r"a trace that jbp\.trace made"):
        jbp.Trace(t.rows).to_html()


def test_another_optimiser_shows_its_own_step():
    import optax

    rng = np.random.default_rng(0)
    net = jbp.Dense(2)
    params = {"weight": rng.normal(size=(3, 2)), "bias": np.zeros(2)}
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    found = scene(net, jbp.losses.l2_loss, params, x, y, update=Update(optimizer=optax.adam(0.01), words="adam"))
    assert found["update"]["kind"] == "other"
    moved = leaf_of(found["update"]["new"][found["nodes"][0]["params"]["weight"]]) - params["weight"]
    np.testing.assert_allclose(np.abs(moved), 0.01, rtol=1e-5)


def test_a_layer_of_ones_own_is_shown_by_what_was_saved():
    class Mine(type(jbp.tanh)):  # a subclass may compute anything
        word = None

    net = jbp.serial(jbp.Dense(3), Mine(), jbp.Dense(2))
    params, _ = net.init(jax.random.key(0), (2,))
    found = scene(net, jbp.losses.l2_loss, params, np.ones((2, 2)), np.ones((2, 2)))
    assert [node["op"] for node in found["nodes"]] == ["dense", "other", "dense"] and len(found["others"]) == 1


def test_inputs_and_targets_are_whole_however_many_examples():
    net = jbp.serial(jbp.Dense(2))
    params, _ = net.init(jax.random.key(0), (137,))
    x, y = np.random.default_rng(0).normal(size=(479, 137)), np.ones((479, 2))
    assert x.size > LARGE
    found = scene(net, jbp.losses.l2_loss, params, x, y)
    np.testing.assert_array_equal(leaf_of(found["x"]), x)
    np.testing.assert_array_equal(leaf_of(found["y"]), y)
    np.testing.assert_array_equal(leaf_of(found["values"][0]), x[:1])


def test_large_arrays_are_folded_and_said_so():
    value = np.arange(300 * 400, dtype=float).reshape(300, 400)
    found = array(value)
    assert found["shape"] == [300, 400] and found["folded"] == [64, 64] and leaf_of(found).shape == (64, 64)
    assert leaf_of(found)[0, 0] == value[:5, :7].mean() and leaf_of(found)[-1, -1] == value[-4:, -6:].mean()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"example": 7}, r"example must be from 0 to 1"),
        ({"example": -1}, r"example must be from 0 to 1"),
    ],
)
def test_what_cannot_be_shown_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        _small(**wrong)


def test_nets_too_large_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"20,000,001 parameters, and a page holds 20,000,000 at most.*smaller net"):
        refuse_large(MOST_PARAMETERS + 1)
    many = jbp.serial(*[jbp.tanh] * 400, jbp.Dense(1))
    params, _ = many.init(jax.random.key(0), (2,))
    with pytest.raises(ValueError, match=r"401 layers, and a page shows 300"):
        scene(many, jbp.losses.l2_loss, params, np.ones((1, 2)), np.ones((1, 1)))


def test_a_layer_that_couples_the_batch_is_shown_in_evaluation():
    net = jbp.serial(jbp.Dense(3), jbp.BatchNorm(), jbp.Dense(2))
    params, _ = net.init(jax.random.key(0), (5,))
    found = scene(net, jbp.losses.l2_loss, params, np.ones((2, 5)), np.ones((2, 2)))
    assert found["others"]


def test_scenes_of_the_documentation_are_of_this_form():
    assert len(SCENES) >= 10
    total = sum(path.stat().st_size for path in SCENES) + len(_template().encode())
    total += sum(path.stat().st_size for path in (ROOT / "inspector" / "tests" / "scenes").glob("*"))
    assert total < 2_000_000
    for path in SCENES:
        for found in json.loads(gzip.decompress(path.read_bytes())):
            assert found["format"] == FORMAT and found["about"] and found["reports"] == reports(), path.name


def test_the_scene_by_hand_is_what_jbp_makes_today():
    import runpy

    made = runpy.run_path(str(ROOT / "inspector" / "scenes.py"))
    for name in ("by_hand", "textbook"):
        saved = json.loads(gzip.decompress((ROOT / "docs" / "scenes" / f"{name}.json.gz").read_bytes()))
        _alike(json.loads(embedded(made[name]())), saved, name)


def _alike(a: Any, b: Any, where: str) -> None:
    """The same tree, its arrays to rounding."""
    if isinstance(a, dict) and "f64" in a:
        wanted = leaf_of(b)
        np.testing.assert_allclose(leaf_of(a), wanted, rtol=1e-11, atol=1e-12, err_msg=where)
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _alike(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (u, v) in enumerate(zip(a, b, strict=True)):
            _alike(u, v, f"{where}[{i}]")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-9), where
    else:
        assert a == b, where


def test_the_textbooks_numbers_are_in_its_scene():
    (found,) = json.loads(gzip.decompress((ROOT / "docs" / "scenes" / "textbook.json.gz").read_bytes()))
    assert leaf_of(found["errors"])[0] == pytest.approx(0.298371109, abs=1e-9)
    new = {p["name"]: leaf_of(value) for p, value in zip(found["params"], found["update"]["new"], strict=True)}
    assert new["2.weight"][0, 0] == pytest.approx(0.35891648, abs=1e-8)
    assert new["1.weight"][0, 0] == pytest.approx(0.149780716, abs=1e-8)


@pytest.mark.soak  # a minute of checks
def test_what_check_says_of_the_mistakes_is_what_it_says_today():
    import runpy

    told = runpy.run_path(str(ROOT / "inspector" / "broken.py"))["reports"]()
    assert told.keys() == reports().keys() == {"transpose", "slope", "path", "sum"}
    for name, report in reports().items():
        laws = [re.search(r"FAILED \((.*)\)$", text.splitlines()[0]) for text in (told[name]["text"], report["text"])]
        assert laws[0] and laws[1] and laws[0][1] == laws[1][1], (name, told[name]["text"], report["text"])
    assert "θ′ is missing" in reports()["slope"]["text"] and "the batch size" in reports()["sum"]["text"]
