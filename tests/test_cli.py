"""`jbp train` and what it leaves, mostly through the dataclasses, in this process."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jbp
from jbp import checkpoint, cli, data, runs
from jbp.cli import examples, netspec, training
from jbp.cli.options import LOSSES, OPTIMIZERS, SCHEDULES
from jbp.durable.saver import CHECKPOINTS

SMALL = {"net": "8 relu", "epochs": 2, "quiet": True}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run on digits, looked at by many tests."""
    return cli.Train(net="16 relu dropout:0.1", epochs=3, quiet=True, out=tmp_path_factory.mktemp("cli") / "run")()


def write_csv(path, columns, rows):
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def flowers(tmp_path):
    """A table with text labels, separable, its columns on very different scales."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(90):
        centre = i % 3
        rows.append([f"{rng.normal(centre, 0.2):.4f}", f"{rng.normal(-1000 * centre, 100):.2f}", "abc"[centre] * 3])
    return write_csv(tmp_path / "flowers.csv", ["petal", "sepal", "kind"], rows)


@pytest.fixture
def houses(tmp_path):
    """A linear regression in thousands."""
    x = np.random.default_rng(1).uniform(20, 200, size=(120, 2))
    y = 1000.5 + 3000 * x[:, 0] - 500 * x[:, 1]
    return write_csv(tmp_path / "houses.csv", ["area", "age", "price"], np.column_stack([x, y]).tolist())


def test_a_run_leaves_five_files_and_says_what_it_reached(run):
    names = set(runs.FILES) - {runs.WATCHED} | {CHECKPOINTS}
    assert {p.name for p in run.folder.iterdir()} == names
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary.pop("sha256").keys() == {"config.json", "metrics.jsonl", "params.safetensors", "summary.json"}
    assert summary == json.loads(runs.to_json(run.summary))
    assert {"test_accuracy", "test_loss", "seconds", "examples_per_second", "seed", "versions"} <= set(summary)
    assert set(summary["versions"]) == {"jbp", "jax", "jaxlib", "numpy", "optax", "python"}
    assert summary["test_accuracy"] > 0.8
    assert summary["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert summary["examples"] == {"train": 1293, "validation": 144, "test": 360}
    assert (summary["epochs"], summary["stop_reason"]) == (3, "epochs")


def test_the_test_figures_are_those_of_the_kept_parameters(run):
    x, y = data.load("digits", "test")
    predicted = checkpoint.load_run(run.folder).predict(x)
    confusion = np.array(run.summary["confusion"])
    assert run.summary["test_accuracy"] == pytest.approx(np.mean(predicted.argmax(1) == y), abs=1e-12)
    assert confusion.sum() == len(y)
    assert confusion.trace() / len(y) == pytest.approx(run.summary["test_accuracy"])
    np.testing.assert_array_equal(confusion.sum(1), np.bincount(y))  # true classes down
    assert run.summary["test_loss"] == pytest.approx(-np.log(predicted[np.arange(len(y)), y]).mean(), rel=1e-5)


def test_metrics_have_a_line_an_epoch_with_all_figures(run):
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert tuple(rows) == run.fit.history
    assert {"train_loss", "train_accuracy", "validation_loss", "validation_accuracy"} <= set(rows[0])


def test_curves_are_a_small_picture(run):
    picture = (run.folder / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) < 100_000


def test_without_matplotlib_the_run_goes_on_and_says_so(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = cli.Train(net="4 relu", epochs=1)()
    assert not (result.folder / "curves.png").exists()
    assert "curves.png left out, for matplotlib is not installed" in capsys.readouterr().err
    assert (result.folder / "params.safetensors").exists()


def test_a_source_tree_without_installed_metadata_trains(monkeypatch, capsys):
    def none(name):
        if name == "jbp":
            raise importlib.metadata.PackageNotFoundError(name)
        return distribution(name)

    distribution = importlib.metadata.distribution
    monkeypatch.setattr(importlib.metadata, "distribution", none)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"jbp {jbp.__version__}\n"
    assert cli.main(["train", "--net", "", "--epochs", "1", "--quiet", "--out", "run"]) == 0
    assert json.loads(Path("run/config.json").read_text())["jbp"] == jbp.__version__
    assert json.loads(Path("run/summary.json").read_text())["versions"]["jbp"] == jbp.__version__
    assert cli.main(["train", "--net", "", "--epochs", "1", "--quiet", "--seeds", "0:2"]) == 0


def test_config_repeats_a_run_to_the_bit(run):
    again = cli.Train.from_config(run.folder / "config.json", quiet=True)()
    assert (again.folder / "params.safetensors").read_bytes() == (run.folder / "params.safetensors").read_bytes()
    assert [r["train_loss"] for r in again.fit.history] == [r["train_loss"] for r in run.fit.history]
    assert again.folder != run.folder


def test_options_override_the_config(run):
    options = cli.Train.from_config(run.folder, seed=5, epochs=1)
    assert (options.seed, options.epochs, options.net) == (5, 1, "16 relu dropout:0.1")


def test_the_config_holds_every_option_that_makes_a_run(run):
    config = json.loads((run.folder / "config.json").read_text())
    names = {f.name for f in dataclasses.fields(cli.Train)}
    assert set(config) - {"jbp"} == names - set(cli.Train.not_in_config)


def test_a_relative_path_to_data_can_be_repeated_from_elsewhere(flowers, tmp_path, monkeypatch):
    result = cli.Train(data="flowers.csv", target="kind", **SMALL)()
    config = (result.folder / "config.json").absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    cli.Train.from_config(config, quiet=True)()


def test_fresh_folders_never_clobber():
    first, second = (cli.Train(net="", epochs=1, quiet=True)().folder for _ in range(2))
    assert first.parent.name == "runs"
    assert first.name.startswith("digits-") and first.name.endswith("-1")
    assert second.name.endswith("-2")


def test_overwrite_replaces_a_run_and_keeps_files_that_are_not_of_jbp(tmp_path):
    options = cli.Train(out=tmp_path / "run", **SMALL)
    options()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        options()
    result = dataclasses.replace(options, overwrite=True, epochs=1)()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert len((result.folder / "metrics.jsonl").read_text().splitlines()) == 1


def test_the_test_part_is_read_once_and_last(monkeypatch):
    log = []

    class Guarded(np.ndarray):
        """An array that notes when its values are read."""

        name = ""

        def astype(self, *args, **kwargs):
            log.append(self.name)
            return np.asarray(self).astype(*args, **kwargs)

        def __array_ufunc__(self, *args, **kwargs):
            raise AssertionError(f"{self.name} is computed with")

        __array_function__ = __getitem__ = __array_ufunc__  # type: ignore[assignment]

    def guarded(name, array):
        array = array.view(Guarded)
        array.name = name
        return array

    def load(*args, **kwargs):
        original = data.load_dataset(*args, **kwargs)
        parts = {name: guarded(name, getattr(original, name)) for name in ("x_test", "y_test")}
        return dataclasses.replace(original, **parts)

    fit = jbp.fit

    def fitted(*args, **kwargs):
        assert not log
        result = fit(*args, **kwargs)
        assert not log
        log.append("trained")
        return result

    monkeypatch.setattr(training, "load_dataset", load)
    monkeypatch.setattr(training, "fit", fitted)
    cli.Train(**SMALL)()
    assert log == ["trained", "x_test", "y_test"]


def test_standardisation_is_fitted_on_the_training_part_only(flowers):
    dataset = data.load_dataset(flowers, target="kind")
    made = examples.prepare(dataset, one_hot=False, standardize=True)
    kept = data.split(dataset.x_train, dataset.y_train, 0.1, examples.VALIDATION_SEED)[0]
    assert made.x_scale is not None
    np.testing.assert_array_equal(made.x_scale.mean, kept.mean(0, np.float64))
    np.testing.assert_allclose(made.train[0].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(made.train[0].std(0), 1, rtol=1e-6)
    assert made.validation is not None
    assert abs(made.validation[0].mean(0)).max() > 1e-4

    result = cli.Train(data=flowers, target="kind", **SMALL)()
    tree, _ = checkpoint.load(result.folder / "params.safetensors")
    np.testing.assert_array_equal(tree["x"]["mean"], made.x_scale.mean)
    np.testing.assert_array_equal(tree["x"]["scale"], made.x_scale.scale)


@pytest.mark.parametrize(
    ("given", "stored"), [({}, None), ({"standardize": True}, ()), ({"standardize": False}, None)], ids=str
)
def test_images_get_one_scale_and_only_on_request(given, stored):
    result = cli.Train(net="", epochs=1, quiet=True, **given)()
    tree, _ = checkpoint.load(result.folder / "params.safetensors")
    assert (tree["x"] if stored is None else tree["x"]["mean"].shape) == stored


def test_text_labels_from_a_table(flowers):
    result = cli.Train(data=flowers, target="kind", net="16 tanh", epochs=30, patience=0, quiet=True)()
    assert result.summary["test_accuracy"] == 1.0
    run = checkpoint.load_run(result.folder)
    assert (run.classes, run.features) == (("aaa", "bbb", "ccc"), ("petal", "sepal"))
    assert run.predict([[0.0, 0.0], [2.0, -2000.0]]).argmax(1).tolist() == [0, 2]


def test_regression_is_reported_and_predicted_in_the_datas_units(houses):
    result = cli.Train(data=houses, target="price", net="", optimizer="momentum", epochs=60, quiet=True)()
    assert result.summary["test_r2"] > 0.999
    assert result.summary["test_rmse"] < 5000
    assert "test_accuracy" not in result.summary
    predicted = checkpoint.load_run(result.folder).predict(np.array([[100.0, 100.0]]))
    assert predicted[0, 0] == pytest.approx(251000, rel=0.02)
    assert (result.folder / "curves.png").exists()


def test_load_gives_net_params_preprocessing_and_facts(run):
    loaded = checkpoint.load_run(run.folder)
    assert loaded.net == jbp.serial(jbp.Flatten(), jbp.Dense(16), jbp.relu, jbp.Dropout(0.1), jbp.Dense(10))
    assert (loaded.task, loaded.input_shape, loaded.classes) == ("classification", (8, 8), tuple("0123456789"))
    assert loaded.config["net"] == "16 relu dropout:0.1"
    for ours, theirs in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(run.fit.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    x, _ = data.load("digits", "test")
    np.testing.assert_array_equal(loaded.preprocessing(x), x)
    with pytest.raises(ValueError, match=r"expected examples of shape \(8, 8\)"):
        loaded.predict(x[:, :7])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_a_classification(loss):
    rate = {"squared_error": 0.01, "mean_squared_error": 0.3}.get(loss)
    result = cli.Train(loss=loss, net="16 relu", epochs=2, quiet=True, learning_rate=rate)()
    assert result.summary["test_accuracy"] > 0.5
    predicted = checkpoint.load_run(result.folder).predict(data.load("digits", "test")[0])
    if "softmax" in loss or loss == "cross_entropy":
        np.testing.assert_allclose(predicted.sum(1), 1, rtol=1e-6)
    assert np.mean(predicted.argmax(1) == data.load("digits", "test")[1]) == result.summary["test_accuracy"]


def test_cross_entropy_behind_a_softmax_layer_takes_the_same_steps_as_the_fused_loss():
    fused, apart = (
        cli.Train(loss=loss, net="8 tanh", epochs=2, init="glorot_normal", quiet=True)()
        for loss in ("softmax_cross_entropy", "cross_entropy")
    )
    assert apart.summary["net"].endswith("10 softmax")
    for ours, theirs in zip(jax.tree.leaves(fused.fit.params), jax.tree.leaves(apart.fit.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_nielsens_network_has_sigmoid_outputs_and_normal_parameters():
    options = cli.Train(
        net="30 sigmoid", output_activation="sigmoid", loss="l2_loss", init="standard_normal",
        bias_init="standard_normal", optimizer="sgd", learning_rate=3.0, batch_size=10, epochs=1, patience=0,
    )  # fmt: skip
    plan = training.make_plan(options)
    assert netspec.spec(plan.net) == "flatten 30 sigmoid 10 sigmoid"
    params, _ = plan.net.init(jax.random.key(0), plan.data.shape)
    assert np.std(params[1]["weight"]) == pytest.approx(1, abs=0.1)
    assert np.std(params[1]["bias"]) > 0.5


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_every_optimiser_takes_a_step(optimizer, schedule):
    options = cli.Train(optimizer=optimizer, schedule=schedule, weight_decay=0.5)
    params = {"weight": jax.numpy.ones((2, 2)), "bias": jax.numpy.ones(2)}
    made = training.make_optimizer(options, steps=10)
    updates: Any = made.update(jax.tree.map(jax.numpy.zeros_like, params), made.init(params), params)[0]
    assert (updates["weight"] < 0).all()  # with a gradient of zero, decay alone
    assert (updates["bias"] == 0).all()


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1]),
        ("cosine", [1, 0.5, 0]),
        ("linear", [1, 0.5, 0]),
        ("exponential", [1, 0.1, 0.01]),
        ("step", [1, 0.1, 0.01]),
    ],
)
def test_schedules_span_the_run(schedule, rates):
    assert schedule in SCHEDULES
    options = cli.Train(optimizer="sgd", schedule=schedule, learning_rate=1.0)
    made: Any = training.make_optimizer(options, steps=8)
    params = {"w": jax.numpy.zeros(())}
    state, found = made.init(params), []
    for _ in range(9):
        updates, state = made.update({"w": jax.numpy.ones(())}, state, params)
        found.append(-float(updates["w"]))
    assert found[::4] == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "shape", "net"),
    [
        ("", (3,), "2"),
        ("128 relu dropout:0.2 64 relu", (8, 8), "flatten 128 relu dropout:0.2 64 relu 2"),
        ("5 leaky_relu:0.2 4 elu:0.7 gelu:erf", (3,), "5 leaky_relu:0.2 4 elu:0.7 gelu:erf 2"),
        ("flatten 5 leaky_relu elu gelu silu softplus identity", (3, 3), None),
        ("7 tanh flatten", (4, 3), "7 tanh flatten 2"),
        ("8 step 7 step:triangle 5 step:fast_sigmoid:2.5", (3,), "8 step 7 step:triangle 5 step:fast_sigmoid:2.5 2"),
    ],
)
def test_a_line_of_text_is_a_net_and_back(text, shape, net):
    made = netspec.build(text, shape, 2)
    assert netspec.spec(made) == (net or f"{text} 2")
    assert netspec.parse(netspec.spec(made)) == made.layers
    _, out = made.init(jax.random.key(0), shape)
    assert out == (2,)


def test_training_stops_early_and_keeps_the_best():
    result = cli.Train(net="16 relu", optimizer="sgd", learning_rate=1.0, epochs=30, patience=2, quiet=True)()
    rows = result.fit.history
    best = min(rows, key=lambda row: row["validation_loss"])
    assert result.summary["stop_reason"] == "patience"
    assert result.summary["best_epoch"] == best["epoch"] == len(rows) - 2
    assert result.summary["validation_loss"] == best["validation_loss"]
