"""`jbp.trace`: each formula is true of the numbers beside it, for every net and loss of the case table."""

import base64
import json
import math
import re
import struct
import zlib
from functools import partial
from html.parser import HTMLParser
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import COMBINED, LOSSES, NETS, SINGLE, Gain, LossCase, NetCase, Table, drawn, every_layer
from oracles import plain

import jbp
from jbp import layers
from jbp.combine import Tied
from jbp.tracing import pictures

ERF = np.vectorize(math.erf)


def sigma(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu_u(x: Any) -> Any:
    return np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def gelu_slope(x: Any) -> Any:
    return 1 + gelu_u(x) + x * (1 - gelu_u(x) ** 2) * math.sqrt(2 / math.pi) * (1 + 0.134145 * x**2)


SIGMA, U = "σ(x) = 1/(1 + e^−x)", "u = √(2/π)·(x + 0.044715·x³)"
FORMULAS: dict[str, Any] = {
    "y = x·weight + bias": lambda r: r["x"] @ r["weight"] + r["bias"],
    "y = x·weight": lambda r: r["x"] @ r["weight"],
    "δ_x = δ·weightᵀ": lambda r: r["δ"] @ r["weight"].T,
    "y = x as a vector": lambda r: r["x"].reshape(-1),
    "δ_x = δ in the shape of x": lambda r: r["δ"].reshape(r["x"].shape),
    "y = x": lambda r: r["x"],
    "δ_x = δ": lambda r: r["δ"],
    "y = max(0, x)": lambda r: np.maximum(0, r["x"]),
    "δ_x = δ where y > 0, else 0": lambda r: np.where(r["y"] > 0, r["δ"], 0),
    "y = tanh(x)": lambda r: np.tanh(r["x"]),
    "δ_x = (1 − y²)∘δ": lambda r: (1 - r["y"] ** 2) * r["δ"],
    "y = 1/(1 + e^−x)": lambda r: sigma(r["x"]),
    "δ_x = y∘(1 − y)∘δ": lambda r: r["y"] * (1 - r["y"]) * r["δ"],
    "y = e^x / Σ e^x": lambda r: np.exp(r["x"]) / np.exp(r["x"]).sum(-1, keepdims=True),
    "δ_x = y∘(δ − Σ y∘δ)": lambda r: r["y"] * (r["δ"] - (r["y"] * r["δ"]).sum(-1, keepdims=True)),
    "y = log(1 + e^x)": lambda r: np.log(1 + np.exp(r["x"])),
    "δ_x = (1 − e^−y)∘δ": lambda r: (1 - np.exp(-r["y"])) * r["δ"],
    f"y = x∘σ(x), {SIGMA}": lambda r: r["x"] * sigma(r["x"]),
    f"δ_x = σ(x)∘(1 + x∘(1 − σ(x)))∘δ, {SIGMA}": lambda r: sigma(r["x"]) * (1 + r["x"] * (1 - sigma(r["x"]))) * r["δ"],
    f"y = ½·x∘(1 + tanh u), {U}": lambda r: r["x"] * (1 + gelu_u(r["x"])) / 2,
    f"δ_x = ½·(1 + tanh u + x∘(1 − tanh² u)∘u′)∘δ, {U}, u′ = √(2/π)·(1 + 0.134145·x²)": lambda r: (
        gelu_slope(r["x"]) / 2 * r["δ"]
    ),
    "y = x∘Φ(x), Φ normal distribution": lambda r: r["x"] * (1 + ERF(r["x"] / math.sqrt(2))) / 2,
    "δ_x = (Φ(x) + x∘φ(x))∘δ, φ normal density": lambda r: (
        ((1 + ERF(r["x"] / math.sqrt(2))) / 2 + r["x"] * np.exp(-(r["x"] ** 2) / 2) / math.sqrt(2 * math.pi)) * r["δ"]
    ),
    "y = x + f(x)": lambda r: r["x"] + r["f(x)"],
    "δ_x = δ + δ_f": lambda r: r["δ"] + r["δ_f"],
    "Σ (p − t)²": lambda r: ((r["p"] - r["t"]) ** 2).sum(-1),
    "2·(p − t)": lambda r: 2 * (r["p"] - r["t"]),
    "½·Σ (p − t)²": lambda r: ((r["p"] - r["t"]) ** 2).sum(-1) / 2,
    "p − t": lambda r: r["p"] - r["t"],
    "mean of (p − t)²": lambda r: ((r["p"] - r["t"]) ** 2).mean(),
    "2·(p − t) / number of outputs": lambda r: 2 * (r["p"] - r["t"]) / r["p"].size,
    "−Σ t∘log softmax(p)": lambda r: -(r["t"] * np.log(softmax(r["p"]))).sum(-1),
    "softmax(p)·Σ t − t": lambda r: softmax(r["p"]) * r["t"].sum(-1, keepdims=True) - r["t"],
    "−log softmax(p)[t]": lambda r: -np.log((softmax(r["p"]) * one_hot(r)).sum(-1)),
    "softmax(p), less 1 at t": lambda r: softmax(r["p"]) - one_hot(r),
    "Σ −t∘log σ(p) − (1 − t)∘log(1 − σ(p))": lambda r: (
        -r["t"] * np.log(sigma(r["p"])) - (1 - r["t"]) * np.log(1 - sigma(r["p"]))
    ).sum(-1),
    "σ(p) − t": lambda r: sigma(r["p"]) - r["t"],
    "−Σ t∘log p": lambda r: -(r["t"] * np.log(r["p"])).sum(-1),
    "−t / p": lambda r: -r["t"] / r["p"],
    "−log p[t]": lambda r: -np.log((r["p"] * one_hot(r)).sum(-1)),
    "−1/p at t, else 0": lambda r: -one_hot(r) / r["p"],
    "h ⊗ δ": lambda r: np.outer(r["h"], r["δ"]),
    "Σₜ h ⊗ δ": lambda r: np.einsum("ti,to->io", r["h"], r["δ"]),
    "δ ⊗ h": lambda r: np.outer(r["δ"], r["h"]),
    "Σₜ δ ⊗ h": lambda r: np.einsum("ti,to->oi", r["h"], r["δ"]),
    "Σₜ δ": lambda r: r["δ"].sum(0),
    "δ": lambda r: r["δ"],
    "Σₜ h∘δ": lambda r: (r["h"] * r["δ"]).sum(0),
    "h∘δ": lambda r: r["h"] * r["δ"],
    "0": lambda r: np.zeros_like(r["mean"]),
}


def one_hot(r: Any) -> Any:
    return np.eye(r["p"].shape[-1])[r["t"].astype(int)]


READ = (
    layers.Dense, layers.Flatten, layers.Dropout, layers.Identity, layers.Relu, layers.LeakyRelu, layers.Tanh,
    layers.Sigmoid, layers.Softmax, layers.Softplus, layers.Elu, layers.Silu, layers.Gelu,
)  # fmt: skip
"""The layers whose words are read: a change of their formulas changes what is expected."""


def by_plain(symbol: str, r: dict[str, Any], layer: Any) -> Any:
    """y, or δ_x, of a layer whose words nobody reads here: by its plain form, at the numbers r."""
    params = {name: value for name, value in r.items() if name not in ("x", "y", "δ")}
    whole = any(case.inputs is not None for case in SINGLE if type(case.net) is type(layer))
    x = jnp.asarray(r["x"], int if whole else float)[None]
    y, pull = jax.vjp(lambda x: plain(layer, params, x), x)
    return y[0] if symbol == "y" else pull(jnp.asarray(r["δ"])[None])[0][0]


def by_formula(formula: str, r: dict[str, Any], layer: str = "") -> Any:
    """What the words of a formula say of the numbers r."""
    if formula in FORMULAS:
        return FORMULAS[formula](r)
    if part := re.fullmatch(r"∂e/∂\[.*\] = (use.( \+ use.)+)", formula):
        return sum(r[name] for name in part[1].split(" + "))
    if part := re.fullmatch(r"(y|δ_x) = (.*) side by side", formula):
        return np.concatenate([r[name] for name in part[2].split(", ")], -1)
    if re.fullmatch(r"(y = y|δ_x = δ)[₁-₉]( \+ .[₁-₉])*", formula):
        return sum(r[name] for name in formula.split(" = ")[1].split(" + "))
    if part := re.fullmatch(r"y = x where x (≥|>) 0, else ([\d.]+)·(x|\(e\^x − 1\))", formula):
        return np.where(r["x"] > 0, r["x"], float(part[2]) * (r["x"] if part[3] == "x" else np.expm1(r["x"])))
    if part := re.fullmatch(r"δ_x = δ where x (≥|>) 0, else (\(y \+ )?([\d.]+)(·δ|\)∘δ)", formula):
        return np.where(r["x"] > 0, r["δ"], (float(part[3]) + (r["y"] if part[2] else 0)) * r["δ"])
    if part := re.fullmatch(r"e = mean over (\d+) positions of (.*)", formula):
        values = by_formula(part[2], r)
        assert values.size == int(part[1])
        return values.mean()
    if part := re.fullmatch(r"δ = 1/(\d+)·\((.*)\)", formula):
        return by_formula(part[2], r) / int(part[1])
    if formula == "∂e/∂weight = h∗δ":
        conv = eval(layer, {**vars(layers)})
        _, pull = jax.vjp(lambda w: plain(conv, r | {"weight": w}, jnp.asarray(r["x"])[None]), jnp.asarray(r["weight"]))
        return pull(jnp.asarray(r["δ"]).reshape(1, *r["y"].shape))[0]
    if part := re.fullmatch(r"(e|δ|∂e/∂\w+) = (.*)", formula):
        return by_formula(part[2], r)
    maker = eval(layer or "None", {**vars(jbp), **vars(layers), "Gain": Gain, "Table": Table})
    if (part := re.fullmatch(r"(y|δ_x) = .*", formula)) and isinstance(maker, jbp.Layer) and type(maker) not in READ:
        return by_plain(part[1], r, maker)
    raise AssertionError(f"no numbers for {formula!r}")


def assert_every_formula_is_true(found: jbp.Trace) -> None:
    """From the numbers as JSON gives them, in plain numpy."""
    rows = json.loads(json.dumps(found.to_dict()))["rows"]
    seen: dict[str, Any] = {}
    blocks: dict[Any, dict[str, Any]] = {}
    for row in rows:
        layer, value = row["layer"], np.asarray(row["value"], float)
        where = (*row["path"], "#", *row["repetition"], layer)
        numbers = blocks.setdefault(where, {})
        formula, name = row["formula"], f"{row['symbol']} of "
        if " = " in formula:
            expected = by_formula(formula, numbers, layer)
            np.testing.assert_allclose(
                value, np.reshape(expected, value.shape), rtol=1e-9, atol=1e-12, err_msg=f"{where} {formula}"
            )
        elif re.match(r"(y|δ|δ_x) of (the loss|\w)", formula) and "step" not in formula:
            np.testing.assert_array_equal(value, seen[formula], err_msg=f"{where} {formula}")
        numbers[row["symbol"]] = value
        seen[f"{name}{row['name']}"] = value
        if row["step"] == "loss":
            seen["δ of the loss"] = value


def traced(case: NetCase) -> tuple[Any, Any, Any, jbp.Trace]:
    params, x, delta, _ = drawn(case)
    return params, x, delta, jbp.trace(case.net, jbp.losses.l2_loss, params, x[0], delta[0])


LEAN = [*SINGLE, *COMBINED[::6], *(case for case in COMBINED if "tied" in case.name)]
"""The nets that are not left to `make soak`: every layer, every combinator."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in LEAN else [pytest.mark.soak], id=case.name) for case in NETS]
)
def test_every_formula_is_true_of_its_numbers(case: NetCase):
    params, x, y, found = traced(case)
    assert_every_formula_is_true(found)
    output = next(row for row in found.rows if row.symbol == "p").value
    np.testing.assert_allclose(output, jbp.apply(case.net, params, x[:1])[0], rtol=1e-10)
    if not case.net.uses_key:  # with dropout there is no gradient in evaluation to compare with
        value, grads = jbp.value_and_grad(case.net, jbp.losses.l2_loss)(params, x[:1], y[:1])
        np.testing.assert_allclose([row.value for row in found.rows if row.symbol == "e"], [value], rtol=1e-10)
        if not any(isinstance(layer, Tied) for layer in every_layer(case.net)):
            assert_gradients_are_there(found, grads)


def test_every_combinator_is_among_the_nets_that_are_always_traced():
    assert {type(case.net) for case in LEAN} == {type(case.net) for case in NETS}


def test_the_gradient_of_a_shared_parameter_is_the_sum_over_its_uses():
    case = next(case for case in NETS if case.name == "tied weight, at positions")
    params, x, y, found = traced(case)
    grads = jbp.value_and_grad(case.net, jbp.losses.l2_loss)(params, x[:1], y[:1])[1]
    *uses, total = (row for row in found.rows if row.layer == "tied")
    assert [row.symbol for row in (*uses, total)] == ["use₁", "use₂", "∂e/∂[0]['weight']"]
    np.testing.assert_allclose(total.value, grads[0]["weight"], rtol=1e-10)


def assert_gradients_are_there(found: jbp.Trace, grads: Any) -> None:
    """Every entry of the gradient, by path, in a row; of a repetition l, at [l]."""
    rows = [row for row in found.rows if row.symbol.startswith("∂e/∂")]
    entries = 0
    for row in rows:
        leaf = grads
        for i in row.path:
            leaf = leaf[i]
        leaf = leaf[row.symbol.removeprefix("∂e/∂")][row.repetition]
        np.testing.assert_allclose(row.value, leaf, rtol=1e-9, atol=1e-12, err_msg=row.where)
        entries += leaf.size
    assert entries == sum(leaf.size for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("case", LOSSES, ids=lambda c: c.name)
def test_the_formulas_of_every_loss_are_true(case: LossCase):
    found = jbp.trace(jbp.identity, case.loss, (), case.output[1], case.target[1])
    assert [row.symbol for row in found.rows if row.step == "loss"] == ["p", "t", "e", "δ"]
    assert_every_formula_is_true(found)


def test_a_wrong_number_makes_a_formula_false():
    case = next(case for case in COMBINED if case.name == "classifier")
    found = traced(case)[-1]
    checked = [row for row in found.rows if " = " in row.formula]
    assert len(checked) > 10
    for wrong in checked:
        rows = [
            jbp.TraceRow(**{**vars(row), "value": row.value * 1.001}) if row is wrong else row for row in found.rows
        ]
        with pytest.raises(AssertionError):
            assert_every_formula_is_true(jbp.Trace(tuple(rows)))


def test_every_known_layer_has_formulas_of_its_own():
    for case in SINGLE:
        if type(case.net).__module__.startswith("jbp."):
            assert not set(case.net.formulas()) & set(jbp.Layer.formulas(case.net)), case.name


NET = jbp.serial(jbp.Dense(2), jbp.tanh, jbp.Dense(1))
PARAMS = (
    {"weight": jnp.array([[0.5, -1.0], [0.25, 2.0]]), "bias": jnp.array([0.1, 0.0])},
    (),
    {"weight": jnp.array([[1.0], [-0.5]]), "bias": jnp.array([0.2])},
)
TEXT = """\
step 1  forward
  1 Dense(2)     x           the input            [1, -2]
                 bias        params[0]['bias']    [0.1, 0]
                 weight      params[0]['weight']  [[0.5, -1],
                                                   [0.25, 2]]
                 y           y = x·weight + bias  [0.1, -5]
  1.tanh         x           y of 1               [0.1, -5]
                 y           y = tanh(x)          [0.099668, -0.999909]
  2 Dense(1)     x           y of 1.tanh          [0.099668, -0.999909]
                 bias        params[2]['bias']    [0.2]
                 weight      params[2]['weight']  [[1],
                                                   [-0.5]]
                 y           y = x·weight + bias  [0.799623]

the loss
  squared_error  p           y of 2               [0.799623]
                 t           the target           [1]
                 e           e = Σ (p − t)²       0.0401511
                 δ           δ = 2·(p − t)        [-0.400755]
"""
X, Y = jnp.array([1.0, -2.0]), jnp.array([1.0])


def test_a_small_net_prints_as_a_table_to_check_by_hand():
    found = jbp.trace(NET, jbp.losses.squared_error, PARAMS, X, Y)
    text = str(found)
    assert text.startswith(TEXT)
    assert max(map(len, text.splitlines())) <= 80
    lines = found.markdown().splitlines()
    assert "| 1.tanh | x | y of 1 | [0.1, -5] |" in lines
    assert len([line for line in lines if line.startswith("| ") and "---" not in line]) == len(found.rows) + 4


def test_a_number_is_had_by_the_layers_name_in_greek_or_not():
    found = jbp.trace(NET, jbp.losses.squared_error, PARAMS, X, Y, learning_rate=0.1)
    delta = 2 * (found["2.y"] - 1)
    for name in ("2.delta", "2.δ", "loss.delta"):
        np.testing.assert_allclose(found[name], delta, rtol=1e-12)
    np.testing.assert_allclose(found["1.tanh.delta_x"], (1 - np.tanh(found["1.y"]) ** 2) * found["1.tanh.δ"])
    np.testing.assert_array_equal(found["2.de/dweight"], found["2.∂e/∂weight"])
    np.testing.assert_array_equal(found["1.weight"], PARAMS[0]["weight"])
    assert found["loss.e"].shape == () and found["2.h"].shape == (2,)
    assert [row.symbol for row in found][:4] == ["x", "bias", "weight", "y"] and len(found) == len(found.rows)
    with pytest.raises(KeyError, match=r"nothing in this trace is called '2.dleta'; did you mean '2.delta'"):
        found["2.dleta"]
    with pytest.raises(KeyError, match=r"by names such as .2.delta., not by 3; its rows are t.rows"):
        found[3]  # type: ignore[index]


def test_layers_are_numbered_by_those_that_have_parameters():
    net = jbp.serial(
        jbp.Flatten(), jbp.Dense(3), jbp.relu, jbp.relu, jbp.residual(jbp.serial(jbp.tanh, jbp.Dense(3))), jbp.tanh,
        jbp.repeat(jbp.Dense(3), 2),
    )  # fmt: skip
    params, _ = net.init(jax.random.key(0), (2, 2))
    found = jbp.trace(net, jbp.losses.l2_loss, params, jnp.ones((2, 2)), jnp.ones(3), learning_rate=0.5)
    names = list(dict.fromkeys(row.name for row in found if row.step == "forward"))
    assert names == ["0.flatten", "1", "1.relu", "1.relu2", "1.tanh", "2", "2.residual", "2.tanh", "3", "4"]
    back = list(dict.fromkeys(row.name for row in found if row.step == "backward"))
    assert set(back) == set(names) and back[:2] == ["4", "3"]
    grads = jbp.value_and_grad(net, jbp.losses.l2_loss)(params, jnp.ones((1, 2, 2)), jnp.ones((1, 3)))[1]
    np.testing.assert_allclose(found["4.de/dweight"], grads[6]["weight"][1], rtol=1e-10)
    np.testing.assert_allclose(found["4.weight_new"], params[6]["weight"][1] - 0.5 * grads[6]["weight"][1], rtol=1e-10)
    assert next(row for row in found if row.name == "4" and row.symbol == "weight").formula == "params[6]['weight'][1]"
    typed = next(row.formula for row in found if row.name == "2" and row.symbol == "weight")
    np.testing.assert_array_equal(eval(typed, {"params": params}), found["2.weight"])


def test_the_step_is_the_optimisers_own_and_can_be_gone_on_from():
    optimizer = jbp.optim.heavy_ball(0.1, 0.9)
    params, state, velocity, found = PARAMS, optimizer.init(PARAMS), None, jbp.Trace(())
    for _ in range(3):
        found = jbp.trace(
            NET, jbp.losses.squared_error, params, X, Y, learning_rate=0.1, momentum=0.9, velocity=velocity
        )
        grads = jbp.value_and_grad(NET, jbp.losses.squared_error)(params, X[None], Y[None])[1]
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), found.params, params)
        np.testing.assert_allclose(found["2.v_weight_new"], 0.9 * found["2.v_weight"] + found["2.de/dweight"])
        np.testing.assert_allclose(found["2.weight_new"], found["2.weight"] - 0.1 * found["2.v_weight_new"])
        velocity = found.velocity
    assert "weight ← weight − 0.1·v_weight_new" in str(found) and "v_bias ← 0.9·v_bias + ∂e/∂bias" in str(found)
    plain = jbp.trace(NET, jbp.losses.squared_error, PARAMS, X, Y, learning_rate=0.1)
    np.testing.assert_allclose(plain["1.bias_new"], plain["1.bias"] - 0.1 * plain["1.∂e/∂bias"], rtol=1e-12)
    assert "weight ← weight − 0.1·∂e/∂weight" in str(plain) and plain.velocity is None


def test_every_parameter_of_every_net_is_in_the_step():
    for case in LEAN:
        params, x, delta, _ = drawn(case)
        found = jbp.trace(case.net, jbp.losses.l2_loss, params, x[0], delta[0], learning_rate=1.0)
        sizes = sum(row.value.size for row in found if row.step == "update")
        assert sizes == sum(leaf.size for leaf in jax.tree.leaves(params)), case.name


# The numbers of M. Mazur, "A step by step backpropagation example", 2015; there rounded in the ninth place.
MAZUR_NET = jbp.serial(jbp.Dense(2), jbp.sigmoid, jbp.Dense(2), jbp.sigmoid)
MAZUR_PARAMS = (
    {"weight": jnp.array([[0.15, 0.25], [0.20, 0.30]]), "bias": jnp.array([0.35, 0.35])},
    (),
    {"weight": jnp.array([[0.40, 0.50], [0.45, 0.55]]), "bias": jnp.array([0.60, 0.60])},
    (),
)


def test_a_textbooks_example():
    x, y = jnp.array([0.05, 0.10]), jnp.array([0.01, 0.99])
    found = jbp.trace(MAZUR_NET, jbp.losses.l2_loss, MAZUR_PARAMS, x, y, learning_rate=0.5)
    np.testing.assert_allclose(found["loss.e"], 0.298371109, atol=1e-9)
    np.testing.assert_allclose(found["2.sigmoid.y"], [0.75136507, 0.772928465], atol=1e-8)
    np.testing.assert_allclose(found["2.delta"], [0.138498562, -0.0380982366], atol=1e-9)
    wanted = [[0.35891648, 0.511301270], [0.408666186, 0.561370121]]
    np.testing.assert_allclose(found["2.weight_new"], wanted, atol=1e-9)
    wanted = [[0.149780716, 0.24975114], [0.19956143, 0.29950229]]
    np.testing.assert_allclose(found["1.weight_new"], wanted, atol=1e-8)


OLD: Any = jbp.trace  # called as it was before


def test_the_order_before_still_works_and_says_the_new_one():
    new = jbp.trace(NET, jbp.losses.squared_error, PARAMS, X, Y)
    old = "is now jbp.trace.net, loss, params, x, y."
    with pytest.warns(DeprecationWarning, match=old) as seen:
        found = OLD(NET, PARAMS, X, Y, jbp.losses.squared_error)
    assert str(found) == str(new) and seen[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=old):
        assert str(OLD(NET, PARAMS, X, Y, loss=jbp.losses.squared_error)) == str(new)
    assert str(jbp.trace(NET, params=PARAMS, x=X, y=Y, loss=jbp.losses.squared_error)) == str(new)


class Tags(HTMLParser):
    """The tags that are open, and the pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[dict[str, Any]] = []
        self.cells = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.pictures += [dict(attrs)] if tag == "img" else []
        self.cells += tag == "td"
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_notebooks_get_tables_with_pictures():
    net = jbp.serial(jbp.Dense(3), jbp.relu)
    params, _ = net.init(jax.random.key(0), (8,))
    value = np.linspace(-1, 1, 24).reshape(8, 3)
    params = ({"weight": jnp.asarray(value), "bias": params[0]["bias"]}, ())
    found = jbp.trace(net, jbp.losses.l2_loss, params, jnp.ones(8), jnp.ones(3))
    tags = Tags()
    tags.feed(found._repr_html_())
    assert not tags.open and tags.cells == 4 * len(found)
    assert "y of 1" in found._repr_html_() and "&lt;" not in found._repr_html_()
    first, _ = tags.pictures  # the weight and its gradient
    assert first["alt"].startswith("8 × 3, from -1 to 1")
    colours = pixels(first["src"], 8, 3)
    assert colours[0, 0].tolist() == [0, 0, 255] and colours[-1, -1].tolist() == [255, 0, 0]
    assert (np.diff(colours[..., 0].ravel().astype(int)) >= 0).all()


def pixels(source: str, height: int, width: int) -> np.ndarray:
    """The colours of a PNG in a data URI."""
    data = base64.b64decode(source.partition("base64,")[2])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[16:24] == struct.pack(">II", width, height)
    length = int.from_bytes(data[33:37])
    lines = np.frombuffer(zlib.decompress(data[41 : 41 + length]), np.uint8).reshape(height, 1 + 3 * width)
    return lines[:, 1:].reshape(height, width, 3)


def test_what_is_large_is_told_by_its_range_and_a_picture_and_kept_whole():
    net = jbp.serial(jbp.Dense(30), jbp.tanh)
    params, _ = net.init(jax.random.key(0), (64,))
    found = jbp.trace(net, jbp.losses.squared_error, params, jnp.arange(64.0), jnp.zeros(30))
    text = str(found)
    low, high = (f"{f(params[0]['weight']).item():.3g}" for f in (jnp.min, jnp.max))
    assert f"64 × 30, from {low} to {high}, mean" in text
    assert "64 numbers, from 0 to 63, mean 31.5, 1 zero" in text and "▁▁▁" in text and "30 numbers, shown there" in text
    assert len(text.splitlines()) < 60 and "a field of a large one is a mean" in text
    assert found["1.weight"].shape == (64, 30)
    whole = found.text(full=True)
    assert f"{params[0]['weight'][31, 15]:.6g}" in whole and "mean" not in whole
    assert "64 × 30, from" in found.markdown() and "▁" not in found.markdown()


@pytest.mark.parametrize(
    ("value", "words", "lines"),
    [
        (
            np.arange(0.0, 24, 1) // 3,
            "24 numbers, from 0 to 7, mean 3.5, 3 zeros",
            ["".join(c * 3 for c in "▁▂▃▄▅▆▇█")],
        ),
        (np.eye(6), "6 × 6, from 0 to 1, mean 0.167, 30 zeros", ["  " * i + "██" for i in range(6)]),
        (
            np.stack([np.eye(3), 1 - np.eye(3), np.zeros((3, 3))], -1),
            "3 × 3 × 3, from 0 to 1, mean 0.333, 18 zeros",
            ["██    │  ████│", "  ██  │██  ██│", "    ██│████  │"],
        ),
        (
            np.moveaxis(np.arange(20.0)[:, None, None] * np.ones((9, 9)), 0, -1),  # as many as there is room for
            "9 × 9 × 20, from 0 to 19, mean 9.5, 81 zeros",
            [f"{' ' * 16}│{'█' * 16}"] * 8,
        ),
        (np.full((1, 40), np.nan), "1 × 40, 40 are NaN or inf", []),
        (np.zeros(40), "40 numbers, from 0 to 0, mean 0, 40 zeros", ["▁" * 40]),
        (np.eye(64), "64 × 64, from 0 to 1, mean 0.0156, 4032 zeros", None),
    ],
)
def test_pictures(value: np.ndarray, words: str, lines: list[str] | None):
    assert pictures.summary(value) == words
    drawn = pictures.picture(value)
    assert all(len(line) <= 40 for line in drawn) and len(drawn) <= 8
    if lines is not None:
        assert drawn == lines


def test_repetitions_are_told_apart():
    net = jbp.serial(jbp.repeat(jbp.serial(jbp.repeat(jbp.Dense(2), 2), jbp.tanh), 3))
    params, _ = net.init(jax.random.key(0), (2,))
    rows = jbp.trace(net, jbp.losses.squared_error, params, jnp.ones(2), jnp.ones(2)).rows
    dense = [row for row in rows if row.symbol == "weight"]
    assert [row.repetition for row in dense] == [(i, j) for i in range(3) for j in range(2)]
    assert dense[1].where == "[0][0] #1#2 Dense(2)"
    for row in dense:
        np.testing.assert_array_equal(row.value, params[0][0]["weight"][row.repetition])
    back = [row.repetition for row in rows if row.symbol == "∂e/∂weight"]
    assert back == [(i, j) for i in (2, 1, 0) for j in (1, 0)]


class Coupling(layers.Identity):
    couples_batch = True


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"net": 3}, ValueError, "the net must be a layer"),
        ({"loss": "mse"}, ValueError, "the loss must come from jbp.losses"),
        ({"x": jnp.ones(3)}, ValueError, r"layer \[0\]: Dense\(2\) .* input of shape \(3,\)"),
        ({"y": jnp.ones(2)}, ValueError, "needs a target of the output's shape"),
        ({"momentum": 0.9}, ValueError, "momentum and velocity are of a step: give its learning_rate too"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be a finite number ≥ 0, but is -1.0"),
        ({"learning_rate": 0.1, "velocity": PARAMS[0]}, ValueError, "velocity must have the shapes of params"),
        ({"params": PARAMS[:2]}, ValueError, "serial of 3 layers expects a tuple of 3"),
        ({"net": Coupling(), "params": ()}, NotImplementedError, "couples the examples of a batch"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(arguments: Any, error: Any, words: str):
    given = {"net": NET, "params": PARAMS, "x": jnp.ones(2), "y": jnp.ones(1), "loss": jbp.losses.l2_loss} | arguments
    with pytest.raises(error, match=words):
        jbp.trace(**given)


def test_a_convolution_is_traced_in_planes_and_by_its_formulas():
    net = jbp.serial(jbp.Conv(2, 3), jbp.relu, jbp.MaxPool(2), jbp.Flatten(), jbp.Dense(1))
    kernel = np.stack([np.eye(3), np.zeros((3, 3))], -1).reshape(3, 3, 1, 2)
    params, _ = net.init(jax.random.key(0), (6, 6, 1))
    params = ({"weight": jnp.asarray(kernel), "bias": params[0]["bias"]}, *params[1:])
    found = jbp.trace(net, jbp.losses.l2_loss, params, jnp.eye(6)[..., None], jnp.ones(1))
    text = str(found)
    assert "∂e/∂weight = h∗δ" in text and "y = x∗weight + bias" in text and "δ_x = δ∗weight turned round" in text
    assert len(text.splitlines()) < 200  # of 1,100 numbers
    np.testing.assert_allclose(found["1.y"][..., 0].diagonal(), [2, 3, 3, 3, 3, 2])
    tags = Tags()
    tags.feed(found._repr_html_())
    assert not tags.open
    image = next(p for p in tags.pictures if p["alt"].startswith("6 × 6 × 2"))  # y: two planes, a grey column between
    assert (pixels(image["src"], 6, 13)[:, 6] == 128).all()


def test_as_many_planes_are_drawn_as_fit():
    drawn = pictures.picture(np.random.default_rng(0).normal(size=(4, 4, 30)))
    assert len(drawn) == 4 and {line.count("│") for line in drawn} == {3}
