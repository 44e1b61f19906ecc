"""`jbp.Watch`: a run looked at from inside every K-th step, against plain JAX; and what is made of the rows."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jbp
from jbp import cli, layers, runs
from jbp.data import Rows
from jbp.step import epoch_keys, step_key, transformed_batch
from jbp.train import streams, to_tensorboard, to_wandb
from jbp.train.batches import Resident, order_of
from jbp.train.program import steps_program
from jbp.train.watch import FLAT, saturation, scalars

N, WIDTH, K = 23, 5, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, WIDTH)), RNG.integers(0, K, N)
LOSS = jbp.losses.softmax_cross_entropy
SGD = jbp.optim.sgd(0.1, momentum=0.9)
NET = jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(4), jbp.relu, jbp.Dense(K))
OPTIONS: Any = {"seed": 3, "epochs": 2, "batch_size": 4}
EVERY = 5
"""Of 6 steps an epoch: steps 0, 5 (whose batch has 3 examples) and 10."""


def fit(net: Any = NET, watch: int | None = EVERY, **options: Any) -> jbp.Fit:
    every = None if watch is None else jbp.Watch(watch)
    return jbp.fit(net, LOSS, SGD, (X, Y), watch=every, **(OPTIONS | options))


@pytest.fixture(scope="module")
def seen() -> tuple[jbp.Fit, list[Any]]:
    """A watched run, and its parameters before each step and after the last."""
    params = []

    def keep(event: jbp.Event) -> None:
        params.append(jax.tree.map(np.asarray, event.params))

    start = jbp.init_state(jbp.Problem(NET, LOSS, SGD), jax.ShapeDtypeStruct((WIDTH,), X.dtype), seed=3)
    found = fit(chunk_steps=1, callbacks=(keep,))
    return found, [jax.tree.map(np.asarray, start.params), *params]


def rms(a: Any) -> float:
    return float(np.sqrt(np.square(a).mean()))


def plain(params: Any, x: Any, extra: Any = ()) -> tuple[Any, Any]:
    """Outputs and activations of `NET`; `extra` is added to what each dense layer answers."""
    h, kept, weights = x, [], [p for p in params if p]
    for i, p in enumerate(weights):
        kept.append(h)
        s = h @ p["weight"] + p["bias"] + (extra[i] if extra else 0)
        h = [jnp.tanh, jax.nn.relu, lambda s: s][i](s)
    return h, kept


def error(params: Any, x: Any, y: Any, extra: Any = ()) -> Any:
    logits, _ = plain(params, x, extra)
    return jax.nn.logsumexp(logits) - logits[y]


# The figures


def test_each_figure_is_that_of_the_step_by_plain_jax(seen: tuple[jbp.Fit, list[Any]]):
    found, params = seen
    assert [(row["kind"], row["epoch"], row["step"]) for row in found.watched] == [
        ("watch", 1, 0), ("watch", 1, 5), ("watch", 2, 10)
    ]  # fmt: skip
    for row in found.watched:
        t, epoch = row["step"], row["epoch"]
        order = np.asarray(order_of(found.state.key, epoch, Resident("shuffle", 4, N))())[:N]
        rows = np.split(order, range(4, N, 4))[t % 6]
        before, after, x, y = params[t], params[t + 1], X[rows], Y[rows]
        assert len(rows) == (3 if t == 5 else 4)
        zeros = tuple(jnp.zeros(p["bias"].shape) for p in before if p)
        deltas = jax.vmap(jax.grad(error, 3), (None, 0, 0, None))(before, x, y, zeros)
        grads = jax.vmap(jax.grad(error), (None, 0, 0))(before, x, y)
        _, hs = jax.vmap(plain, (None, 0))(before, x)
        for i, place in enumerate(("0", "2", "4")):
            layer, own = row["layers"][place], int(place)
            moved, size = (
                math.sqrt(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(tree)))
                for tree in (jax.tree.map(np.subtract, after[own], before[own]), before[own])
            )
            expected = {"h": rms(hs[i]), "delta": rms(deltas[i]), "update": moved / size}
            assert layer == pytest.approx(expected, rel=1e-9), (t, place)
        assert row["layers"]["1"] == pytest.approx({"saturated": np.mean(1 - np.square(hs[1]) < FLAT)})
        assert row["layers"]["3"] == pytest.approx({"saturated": np.mean(np.asarray(hs[2]) == 0)})
        assert list(row["layers"]) == ["0", "1", "2", "3", "4"]
        flat = np.concatenate([np.reshape(g, (len(rows), -1)) for g in jax.tree.leaves(grads)], 1)
        trace = flat.var(0, ddof=1).sum()
        square = np.square(flat.mean(0)).sum() - trace / len(rows)
        assert (row["gradient_noise"], row["gradient_square"]) == pytest.approx((trace, square), rel=1e-8)
        assert row["noise_scale"] == pytest.approx(trace / square if square > 0 else math.inf, rel=1e-6)


SLOPES: dict[Any, Any] = {
    jbp.identity: lambda s: s, jbp.relu: jax.nn.relu, jbp.leaky_relu: jax.nn.leaky_relu, jbp.tanh: jnp.tanh,
    jbp.sigmoid: jax.nn.sigmoid, jbp.softplus: jax.nn.softplus, jbp.elu: jax.nn.elu, jbp.silu: jax.nn.silu,
    jbp.gelu: jax.nn.gelu,
}  # fmt: skip


@pytest.mark.parametrize("activation", SLOPES, ids=repr)
def test_a_unit_is_saturated_where_its_slope_is_below_a_twentieth_of_the_largest(activation: Any):
    s = np.linspace(-8, 8, 161).reshape(7, 23) + 0.01
    slope = np.abs(jax.vmap(jax.vmap(jax.grad(SLOPES[activation])))(s))
    largest = 0.25 if activation == jbp.sigmoid else 1.0
    assert largest == pytest.approx(min(1.0, slope.max()), abs=1e-3)
    found = saturation(jbp.serial(activation), ((),), jnp.asarray(s), jax.random.key(0))
    assert found.keys() == {"0"} and float(found["0"]) == pytest.approx(np.mean(slope < 0.05 * largest))
    assert bool(found["0"] > 0) == (activation != jbp.identity)


def test_softmax_has_no_saturation_and_every_other_activation_has():
    kinds = [a for a in vars(layers).values() if isinstance(a, layers.Activation)]
    assert {a for a in kinds if a.steepest is None} == {jbp.softmax} and set(SLOPES) == {*kinds} - {jbp.softmax}
    assert saturation(jbp.softmax, (), jnp.ones((2, 3)), None) == {}


def test_rows_of_weight_0_are_not_looked_at():
    x, weights = jnp.asarray(np.where(np.arange(6)[:, None] < 4, -1.0, np.nan)), jnp.asarray([1.0, 1, 1, 1, 0, 0])
    assert float(saturation(jbp.relu, (), x, None, weights)["."]) == 1
    mixed = jnp.asarray([[-1.0], [1.0], [5.0]])
    assert float(saturation(jbp.relu, (), mixed, None, jnp.asarray([3.0, 1.0, 0.0]))["."]) == 0.75


# The run stays as it is


def test_a_run_that_is_watched_has_the_bits_and_the_program_of_one_that_is_not(seen: tuple[jbp.Fit, list[Any]]):
    plain = fit(watch=None)
    misses = steps_program.cache_info().misses
    for found in (seen[0], fit(), fit(watch=1)):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found.params, plain.params))
        assert jax.tree.all(
            jax.tree.map(lambda a, b: bool((a == b).all()), found.state.opt_state, plain.state.opt_state)
        )
        assert (found.step_losses == plain.step_losses).all()
    assert steps_program.cache_info().misses == misses  # the same program: steps that are not watched pay nothing
    assert plain.watched == () and len(fit(watch=1).watched) == 12


def test_where_chunks_end_changes_nothing_that_is_seen(seen: tuple[jbp.Fit, list[Any]]):
    assert fit().watched == fit(chunk_steps=4).watched == seen[0].watched


def test_callbacks_get_each_row_when_its_chunk_is_taken():
    told = []
    found = fit(chunk_steps=3, callbacks=(lambda event: told.append((event.step, event.watched)),))
    assert [row for _, row in told if row] == list(found.watched)
    assert [step for step, row in told if row] == [3, 6, 12] and [step for step, _ in told] == [3, 5, 6, 9, 10, 12]


# Every net


BLOCK = jbp.serial(jbp.Dense(WIDTH), jbp.tanh)


def test_the_layers_of_a_repeat_are_those_that_it_repeats():
    stack = jbp.serial(jbp.repeat(jbp.residual(BLOCK), 3), jbp.Dense(K))
    params, _ = stack.init(jax.random.key(1), (WIDTH,))
    flat = jbp.serial(*[jbp.residual(BLOCK)] * 3, jbp.Dense(K))
    apart = (*(jax.tree.map(lambda a, i=i: a[i], params[0]) for i in range(3)), params[1])
    one, other = fit(stack, params=params), fit(flat, params=apart)
    names = {f"{i}.{j}": f"0.{j} #{i + 1}" for i in range(3) for j in range(2)} | {"3": "1"}
    for row, wanted in zip(one.watched, other.watched, strict=True):
        assert list(row["layers"]) == [f"0.{j} #{i + 1}" for j in range(2) for i in range(3)] + ["1"]
        for name, figures in wanted["layers"].items():
            assert row["layers"][names[name]] == pytest.approx(figures, rel=1e-9)
        assert row["noise_scale"] == pytest.approx(wanted["noise_scale"], rel=1e-6)


NETS = {
    "one layer": (jbp.Dense(K), {"."}),
    "branches": (
        jbp.serial(jbp.branch(BLOCK, jbp.serial(jbp.residual(BLOCK), jbp.Dropout(0.2)), join="concat"), jbp.Dense(K)),
        {"0.0.0", "0.0.1", "0.1.0.0", "0.1.0.1", "1"},
    ),
    "a stack of stacks": (
        jbp.serial(jbp.repeat(jbp.serial(BLOCK, jbp.repeat(BLOCK, 2)), 2), jbp.Dense(K)),
        {"0.0.0 #1", "0.0.0 #2", "0.0.1 #1", "0.0.1 #2", "1"}
        | {f"0.1.{j} #{a} #{b}" for j in (0, 1) for a in (1, 2) for b in (1, 2)},
    ),
    "tied": (
        jbp.tied(jbp.serial(BLOCK, jbp.repeat(BLOCK, 2), BLOCK, jbp.Dense(K)), {2: 0}),
        {"0.0", "0.1", "1.0 #1", "1.0 #2", "1.1 #1", "1.1 #2", "2.1", "3"},
    ),
    "normalised": (
        jbp.serial(jbp.Dense(6), jbp.LayerNorm(), jbp.relu, jbp.Dense(K)), {"0", "1", "2", "3"},
    ),
    "images": (
        jbp.serial(jbp.Reshape((5, 1)), jbp.Conv(2, 3), jbp.relu, jbp.MaxPool(2), jbp.Flatten(), jbp.Dense(K)),
        {"1", "2", "5"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_every_combinator_is_looked_into(name: str):
    net, places = NETS[name]
    for row in fit(net, epochs=1).watched:
        assert set(row["layers"]) == places
        assert all(math.isfinite(value) for layer in row["layers"].values() for value in layer.values())
        assert all(
            {"h", "delta", "update"} == set(layer) or {"saturated"} == set(layer) for layer in row["layers"].values()
        )
        assert row["gradient_noise"] > 0 and "noise_scale" in row


def test_below_batch_normalisation_δ_is_the_batchs_and_there_is_no_noise_scale():
    net = jbp.serial(jbp.Dense(6), jbp.BatchNorm(momentum=0.0), jbp.relu, jbp.Dense(K))
    options: Any = {"batch_size": N, "epochs": 1, "params": net.init(jax.random.key(0), (WIDTH,))[0]}
    (row,) = fit(net, **options).watched
    params = options["params"]

    def total(s: Any) -> Any:
        mean, var = s.mean(0), s.var(0)
        h = jax.nn.relu(
            (s - mean[None]) / jnp.sqrt(var + 1e-5)[None] * params[1]["scale"][None] + params[1]["bias"][None]
        )
        logits = h @ params[3]["weight"] + params[3]["bias"][None]
        return (jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, Y[:, None], 1)[:, 0]).sum()

    delta = jax.grad(total)(X @ params[0]["weight"] + params[0]["bias"][None])
    assert row["layers"]["0"]["delta"] == pytest.approx(rms(delta), rel=1e-9)
    assert row["layers"]["0"]["h"] == pytest.approx(rms(X), rel=1e-12)
    assert not {"noise_scale", "gradient_noise", "gradient_square"} & set(row)
    still = fit(net, trainable=False, **options).watched[0]["layers"]
    assert {place: still[place]["update"] for place in ("0", "1", "3")} == {"0": 0.0, "1": 0.0, "3": 0.0}
    # The running moments have moved as far as they can, and nobody calls it an update.
    moved = jax.tree.map(np.subtract, fit(net, **options).params[1], params[1])
    size = math.sqrt(sum(float(np.square(params[1][name]).sum()) for name in ("scale", "bias")))
    own = math.sqrt(sum(float(np.square(moved[name]).sum()) for name in ("scale", "bias")))
    assert row["layers"]["1"]["update"] == pytest.approx(own / size, rel=1e-9)


def test_the_noise_is_of_what_is_trained():
    only = (True, True, False, True, False)
    found, whole = fit(trainable=only), fit()
    assert found.watched[0]["gradient_noise"] < whole.watched[0]["gradient_noise"]
    assert found.watched[0]["layers"]["2"]["update"] == 0 < found.watched[0]["layers"]["0"]["update"]
    assert "noise_scale" not in fit(trainable=False, epochs=1).watched[0]


def test_under_a_rule_δ_is_the_rules():
    plain, rule = (fit(rule=rule, epochs=1).watched[0]["layers"] for rule in (None, "sign_symmetry"))
    assert rule["4"]["delta"] == pytest.approx(plain["4"]["delta"], rel=1e-12)
    assert rule["0"]["delta"] != pytest.approx(plain["0"]["delta"], rel=1e-3)


def test_a_method_that_does_not_say_its_way_is_refused():
    class Own(jbp.Method):
        def sums(self, problem: Any, state: Any, batch: Any, key: Any) -> jbp.Sums:
            return jbp.Backpropagation().sums(problem, state, batch, key)

    fit(rule=Own(), watch=None, epochs=1)
    with pytest.raises(ValueError, match=r"cannot be watched: give it way\(problem, state, x\), or leave watch out"):
        fit(rule=Own(), epochs=1)


def test_rows_that_are_read_on_the_way_are_watched_as_those_in_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 2 * 4 * (X[:1].nbytes + Y[:1].nbytes))  # blocks of two steps
    streamed = jbp.fit(NET, LOSS, SGD, (Rows(X), Rows(Y)), watch=jbp.Watch(EVERY), **OPTIONS)
    assert streamed.watched == fit().watched


def test_the_update_in_place_is_watched_as_the_usual_step():
    for one, other in zip(fit(in_place=True).watched, fit().watched, strict=True):
        assert scalars(one) == pytest.approx(scalars(other), rel=1e-9)


def test_in_parts_the_update_is_the_whole_steps_and_all_else_of_the_first_part():
    parts, whole = fit(batch_size=N, accumulate=3).watched[0], fit(batch_size=N).watched[0]
    order = np.asarray(order_of(fit(batch_size=N).state.key, 1, Resident("shuffle", N, N))())
    for place in ("0", "2", "4"):
        assert parts["layers"][place]["update"] == pytest.approx(whole["layers"][place]["update"], rel=1e-9)
    assert parts["layers"]["0"]["h"] == pytest.approx(rms(X[order[:8]]), rel=1e-12)


def test_a_transform_and_dropout_are_those_of_the_step():
    """h of the second layer holds what the first drew, and what was drawn before it."""
    net = jbp.serial(jbp.Dropout(0.5), jbp.Dense(K))

    def noisy(x: Any, key: Any) -> Any:
        return x if key is None else x + jax.random.normal(key, x.shape)

    found = fit(net, transform=noisy, batch_size=N)
    key = step_key(epoch_keys(found.state.key, 1)[1], 0)
    order = np.asarray(order_of(found.state.key, 1, Resident("shuffle", N, N))())
    batch = transformed_batch(jbp.Problem(net, LOSS, SGD, transform=noisy), jbp.Batch(X[order], Y[order]), key)
    h, _ = jbp.forward(jbp.serial(jbp.Dropout(0.5), jbp.identity), ((), ()), batch.x, key)
    assert found.watched[0]["layers"]["1"]["h"] == pytest.approx(rms(h), rel=1e-9)


# Taken up again


def test_a_run_that_is_taken_up_again_goes_on_being_watched(tmp_path: Path):
    whole = fit(watch=3)
    first = fit(
        watch=3, save_to=tmp_path / "run", save_every="1steps", chunk_steps=2, callbacks=(lambda e: e.step >= 7,)
    )
    on = fit(watch=3, save_to=tmp_path / "run", resume=True)
    assert [row["step"] for row in on.watched] == [9] and [row["step"] for row in first.watched] == [0, 3, 6]
    assert (*first.watched, *on.watched) == whole.watched


# Refused


@pytest.mark.parametrize("every", [0, -3, 1.5, True, "10", None])
def test_what_is_no_number_of_steps_is_refused(every: Any):
    with pytest.raises(ValueError, match="every of Watch must be a whole number of at least 1, but is"):
        jbp.Watch(every)


def test_what_is_no_watch_and_a_private_run_are_refused():
    for given in (100, "100", True, jbp.Watch):
        with pytest.raises(ValueError, match=r"watch must be a jbp.Watch\(every=100\), but is"):
            jbp.fit(NET, LOSS, SGD, (X, Y), watch=given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="private training cannot use watch: its figures are of private examples"):
        fit(private=jbp.Private(1.0, 1.0, 1e-4))
    assert hash(jbp.Watch(7)) == hash(jbp.Watch(np.int64(7))) and jbp.Watch() == jbp.Watch(100)  # type: ignore[arg-type]


# Lines, pictures, other programs


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_jbp_train_writes_lines_of_their_own_kind_and_jbp_show_draws_them(capsys: pytest.CaptureFixture[str]):
    options: Any = {"net": "8 relu 8 tanh", "epochs": 2, "quiet": True, "watch": 20, "batch_size": 64}
    result = cli.Train(**options, accumulate=2, out="run")()
    found = lines(result.folder)
    watched = [row for row in found if "kind" in row]
    steps = 2 * -(-result.summary["examples"]["train"] // 64)
    assert [row["step"] for row in watched] == list(range(0, steps, 20))
    assert watched == json.loads(runs.to_json(list(result.fit.watched)))
    assert [row["epoch"] for row in found if "kind" not in row] == [1, 2]
    assert runs.metrics(result.folder) == ([row for row in found if "kind" not in row], watched)
    assert not (result.folder / "watched.png").exists()
    cli.Show("run")()
    assert f"watched: {Path('run/watched.png')}" in capsys.readouterr().out
    with Image.open("run/watched.png") as picture:
        assert picture.size == (1584, 792)  # five panels, three in a row
    config = json.loads((result.folder / "config.json").read_text())
    assert (config["watch"], config["accumulate"]) == (20, 2)
    cli.Train(**(options | {"watch": None}), out="run", overwrite=True)()  # what belonged to the run before is gone
    assert not Path("run/watched.png").exists() and all("kind" not in row for row in lines(Path("run")))
    cli.Show("run")()
    assert "watched" not in capsys.readouterr().out


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.filterwarnings("ignore:.*summary.json. is not there, though")
def test_jbp_save_keeps_what_was_watched_and_show_says_why_it_is_not_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    found = fit()
    jbp.save("run", NET, found.params, loss=LOSS, input_shape=(WIDTH,), fit=found)
    assert [("kind" in row, row["step"]) for row in lines(Path("run"))] == [
        (True, 0), (True, 5), (False, 6), (True, 10), (False, 12)
    ]  # fmt: skip
    (Path("run") / "summary.json").unlink()  # which would tell that it is not as it was
    with (Path("run") / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "watch", "st')  # a kill has cut the last line short
    assert len(runs.metrics(Path("run"))[1]) == 3
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match="summary.json: is not there"):
        cli.Show("run")()
    assert "watched.png left out, for matplotlib is not installed" in capsys.readouterr().out
    (Path("run") / "metrics.jsonl").write_text("{}\nno row\n")
    missing = pytest.warns(UserWarning, match="summary.json: is not there")
    with missing, pytest.raises(ValueError, match=r"metrics.jsonl: expected a row as JSON in line 2, found something"):
        cli.Show("run")()


SOUND = '{"kind": "watch", "epoch": 1, "step": 6, "noise_scale": null, "layers": {"0": {"h": 1.0, "update": null}}}'


@pytest.mark.parametrize(
    "line", ["no row", "3", SOUND.replace("6", '"6"'), SOUND.replace("1.0", "[]"), SOUND.partition('{"0"')[0] + "3}"]
)
def test_a_line_that_is_none_is_named(line: str, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(f"{SOUND}\n{line}\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl: expected .* in line 2"):
        runs.metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(f"{SOUND}\n")
    assert runs.metrics(tmp_path) == ([], [json.loads(SOUND)])


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_what_was_seen_right_before_a_run_diverged_is_kept():
    told: Any = {"net": "8 relu 8 relu", "epochs": 3, "quiet": True, "watch": 1, "optimizer": "sgd", "out": "run"}
    with pytest.raises(jbp.Diverged) as error:
        cli.Train(**told, learning_rate=1e160)()
    watched = [row["step"] for row in lines(Path("run")) if "kind" in row]
    assert watched == list(range(error.value.step)) and error.value.step > 1


def test_an_interrupted_run_counts_its_epochs_and_not_what_was_watched(tmp_path: Path):
    folder = runs.create(tmp_path / "run", False, "", {"jbp": "0"})
    folder.row({"kind": "watch", "epoch": 1, "step": 0, "layers": {}})
    assert "metrics.jsonl (the figures of 0 finished epochs)" in folder.kept()
    folder.row({"epoch": 1, "step": 6})
    folder.row({"kind": "watch", "epoch": 2, "step": 6, "layers": {}})
    assert "metrics.jsonl (the figures of 1 finished epoch)" in folder.kept()
    folder.cut_back([{"epoch": 1, "step": 6}], 6)  # the step that is watched at 6 is looked at again
    assert [("kind" in row, row["step"]) for row in lines(tmp_path / "run")] == [(True, 0), (False, 6)]
    folder.close()


def test_scalars_have_one_name_each_and_are_finite():
    row = {
        "kind": "watch", "epoch": 2, "step": 7, "noise_scale": math.inf, "gradient_noise": 2.0, "gradient_square": None,
        "layers": {"0": {"h": 1.0, "delta": math.nan, "update": 0.5}, "1.0 #2": {"saturated": 0.25}},
    }  # fmt: skip
    assert scalars(row) == {"gradient_noise": 2.0, "h/0": 1.0, "update/0": 0.5, "saturated/1.0 #2": 0.25}
    assert scalars({"epoch": 1, "step": 3, "train_loss": 0.5, "epsilon": math.inf}) == {"train_loss": 0.5}


class Noted:
    """Stands where a writer, or a run, of another program does."""

    def __init__(self) -> None:
        self.found: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.found.append((tag, value, step))

    def log(self, figures: dict[str, float], *, step: int) -> None:
        self.found += [(name, value, step) for name, value in figures.items()]


@pytest.mark.parametrize("to", [to_tensorboard, to_wandb])
def test_writers_are_handed_every_row_in_the_order_of_the_steps(to: Any):
    noted = Noted()
    stack = jbp.serial(jbp.repeat(BLOCK, 2), jbp.Dense(K))
    found = fit(stack, callbacks=(to(noted),))
    rows = sorted((*found.watched, *found.history), key=lambda row: row["step"])
    assert noted.found == [
        (name.replace(" #", "/") if to is to_tensorboard else name, value, row["step"])
        for row in rows
        for name, value in scalars(row).items()
    ]
    steps = [step for _, _, step in noted.found]
    assert steps == sorted(steps) and set(steps) == {0, 5, 6, 10, 12}
    for wrong in (None, "runs", 3):
        with pytest.raises(ValueError, match=rf"{to.__name__} takes a .*, but got"):
            to(wrong)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "seeds": ({"watch": 10, "seeds": "0:3"}, "watch is of one run, but seeds '0:3' are several: leave one out"),
    "log of seeds": ({"log": "wandb", "seeds": "0:3"}, "log is of one run, but seeds '0:3' are several"),
    "private": ({"watch": 10, "private": True}, "private training cannot use watch: its figures are of private"),
    "log of private": ({"log": "wandb", "private": True}, "private training cannot use log: figures of private"),
    "no steps": ({"watch": 0}, "watch must be a whole number of at least 1"),
    "parts": ({"accumulate": 0}, "accumulate must be a whole number of at least 1"),
    "too many parts": ({"accumulate": 9, "batch_size": 8}, "accumulate must be at most batch_size, 8, but is 9"),
    "another program": ({"log": "excel"}, "log"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused_in_a_line(name: str):
    options, words = CONTRADICTIONS[name]
    with pytest.raises(ValueError, match=words) as error:
        cli.Train(**options)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_parts_that_do_not_add_up_leave_no_folder():
    with pytest.raises(ValueError, match=r"but the layer \[2\] \(BatchNorm\(\)\) couples the examples") as error:
        cli.Train(net="8 batchnorm relu", accumulate=2, quiet=True, epochs=1, out="run")()
    assert "\n" not in str(error.value) and not Path("run").exists()
