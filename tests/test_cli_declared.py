"""What is said of the data on the command line: bounds, weights of rows and classes, and the ε of a private run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jbp
from jbp import checkpoint, cli
from jbp.cli.training import make_plan
from jbp.data import Bounds, balanced_weights
from jbp.data.bounds import read_bounds

N = 300
LOW, HIGH = np.array([0.0, 1000.0, -1e-3]), np.array([100.0, 5000.0, 1e-3])
SMALL: dict[str, Any] = {"net": "4 tanh", "epochs": 1, "quiet": True}


def table(path: Path) -> Path:
    """Ages, incomes and rates on scales far apart, a column of weights, two classes (one rare) and a number."""
    rng = np.random.default_rng(0)
    u = rng.uniform(-1, 1, (N, 3))
    x = (LOW + HIGH) / 2 + u * (HIGH - LOW) / 2
    x[:4, 0] = -20.0, 130.0, 200.0, 100.0  # three outside
    rare = u.sum(1) > 1.0
    number = 50 + 40 * u[:, 0]
    rows = [f"{a!r},{b!r},{c!r},{i % 5},{'rare' if r else 'common'},{v!r}"
            for i, ((a, b, c), r, v) in enumerate(zip(x.tolist(), rare, number.tolist(), strict=True))]  # fmt: skip
    path.write_text("\n".join(["age,income,rate,w,kind,number", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("declared")
    lines = table(folder / "all.csv").read_text().splitlines()
    for name, columns in {"kinds": (0, 1, 2, 4), "numbers": (0, 1, 2, 5), "weighted": (0, 1, 2, 3, 4)}.items():
        kept = [",".join(line.split(",")[i] for i in columns) for line in lines]
        (folder / f"{name}.csv").write_text("\n".join(kept) + "\n")
    (folder / "bounds.csv").write_text("column,low,high\nage,0,100\nincome,1000,5000\nrate,-1e-3,1e-3\nnumber,0,100\n")
    pairs = {"rate": [-1e-3, 1e-3], "age": [0, 100], "income": [1e3, 5e3]}
    (folder / "bounds.json").write_text(json.dumps(pairs))
    return folder


# Bounds


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("name", ["bounds.csv", "bounds.json"])
def test_bounds_scale_the_data_and_nothing_is_computed_from_them(files, name, private):
    options = {"data": files / "kinds.csv", "target": "kind", "bounds": files / name, "private": private}
    plan = make_plan(cli.Train(**SMALL, **options))
    scale, x = plan.data.x_scale, plan.data.train[0]
    assert isinstance(scale, Bounds)
    np.testing.assert_array_equal((scale.low, scale.high), (LOW, HIGH))
    if private:  # all rows, in their order
        scaled = (plan.data.dataset.x_train - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2)
        assert abs(scaled).max() > 1.2
        np.testing.assert_allclose(x, np.clip(scaled, -1, 1), atol=1e-6)
    assert (plan.data.clipped is None) == private


def test_a_regressions_target_is_scaled_too_and_its_errors_are_in_the_units_of_the_data(files, tmp_path):
    options = {
        "data": files / "numbers.csv",
        "target": "number",
        "bounds": files / "bounds.csv",
        "out": tmp_path / "run",
    }
    result = cli.Train(**SMALL | {"epochs": 100, "net": "16 tanh"}, **options)()
    assert result.summary["test_rmse"] < 10
    tree, _ = checkpoint.load(result.folder / "params.safetensors")
    assert tree["y"] == {"low": 0.0, "high": 100.0} or (tree["y"]["low"], tree["y"]["high"]) == (0.0, 100.0)


def test_a_test_target_beyond_the_bounds_is_not_clipped_before_it_is_compared(files, tmp_path):
    narrow = tmp_path / "narrow.json"
    pairs = {"rate": [-1e-3, 1e-3], "age": [0, 100], "income": [1e3, 5e3], "number": [49.0, 51.0]}
    narrow.write_text(json.dumps(pairs))
    result = cli.Train(**SMALL, data=files / "numbers.csv", target="number", bounds=narrow, out=tmp_path / "run")()
    assert result.summary["test_rmse"] > 15, "the values go from 10 to 90, the predictions around 50"
    assert result.summary["test_loss"] > 15**2


def test_predict_clips_as_training_did_and_says_how_many(files, tmp_path, capsys):
    run, new = tmp_path / "run", tmp_path / "new.csv"
    cli.Train(**SMALL, data=files / "kinds.csv", target="kind", bounds=files / "bounds.csv", out=run)()
    new.write_text("age,income,rate\n100,2000,0\n140,2000,0\n1e9,2000,0\n-3,2000,0\n0,2000,0\n")
    capsys.readouterr()
    predicted = cli.Predict(run, new)()
    assert "3 of 15 values lie outside the bounds of training, and are clipped" in capsys.readouterr().err
    np.testing.assert_array_equal(predicted[1:3], predicted[[0, 0]])
    np.testing.assert_array_equal(predicted[3], predicted[4])
    assert not np.array_equal(predicted[0], predicted[4])
    np.testing.assert_array_equal(jbp.load(run).predict(np.array([[140.0, 2000.0, 0.0]])), predicted[1:2])


def test_how_many_values_were_clipped_is_told_unless_the_data_are_private(files, tmp_path, capsys):
    words = ["train", "--data", str(files / "kinds.csv"), "--target", "kind", "--net", "4 tanh", "--epochs", "1"]
    words += ["--bounds", str(files / "bounds.csv"), "--overwrite", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    plan = make_plan(cli.Train(**SMALL, data=files / "kinds.csv", target="kind", bounds=files / "bounds.csv"))
    assert plan.data.clipped is not None
    outside, of = plan.data.clipped
    assert 1 <= outside <= 3 and of == plan.data.train[0].size
    assert f"values outside are clipped, {outside} of {of} in the training part" in capsys.readouterr().err
    assert cli.main([*words, "--private", "--batch-size", "16"]) == 0
    err = capsys.readouterr().err
    assert "values outside are clipped; how many there are is a figure of private data, and not told" in err
    assert "clipped, " not in err and "the data are not scaled" not in err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bounds"] == str(files / "bounds.csv") and not summary["standardized"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["bounds"] == str(files / "bounds.csv")


def test_arrays_without_names_take_one_pair_for_all_values(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 10, (60, 2, 3)), rng.uniform(0, 1, (60, 2))
    np.savez(tmp_path / "arrays.npz", x_train=x, y_train=y)
    (tmp_path / "b.json").write_text('{"x": [0, 10], "y": [0, 2]}')
    options = {"data": tmp_path / "arrays.npz", "task": "regression", "bounds": tmp_path / "b.json"}
    plan = make_plan(cli.Train(**SMALL | {"net": "flatten 4 tanh"}, **options))
    scales: Any = plan.data.x_scale, plan.data.y_scale
    assert (scales[0].low.shape, scales[1].high.shape) == ((), ())
    assert -1 <= plan.data.train[0].min() < -0.9 < 0.9 < plan.data.train[0].max() <= 1
    assert -1 <= plan.data.train[1].min() < -0.9 and -0.1 < plan.data.train[1].max() <= 0


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("b.json", '{"age": [0, 100]}', "found none of income, rate"),
        ("b.json", '{"Age": [0, 1], "income": [0, 1], "rate": [0, 1]}', "did you mean 'Age'"),
        (
            "b.json",
            '{"age": [100, 0]}',
            "column 'age': low must be below high, both finite, but they are 100.0 and 0.0",
        ),
        ("b.json", '{"age": [0, 0]}', "low must be below high"),
        ("b.json", '{"age": [0]}', r"expected \[low, high\] for column 'age', found \[0\]"),
        ("b.json", '{"age": ["0", 1]}', "low of 'age' must be a finite number"),
        ("b.json", '{"age": [0, Infinity]}', "high of 'age' must be a finite number"),
        ("b.json", '{"age": [0, 1], "age": [0, 2]}', "found 'age' more than once"),
        ("b.json", "[1]", "found list"),
        ("b.json", "{}", "expected bounds of columns, found none"),
        ("b.json", "age", "expected JSON such as"),
        ("b.csv", "name,low,high\nage,0,1\n", "expected a first line column,low,high, found 'name,low,high'"),
        ("b.csv", "column,low,high\nage,0\n", "found 'age,0' in line 2"),
        ("b.csv", "column,low,high\nage,zero,1\n", "found 'age,zero,1' in line 2"),
        ("b.csv", "column,low,high\nage,0,inf\n", "column 'age': low must be below high, both finite"),
        ("b.csv", "column,low,high\nage,0,1\nage,0,2\n", "found 'age' more than once, in line 3"),
    ],
)
def test_bounds_that_are_none_are_refused_with_the_file(files, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words) as refused:
        make_plan(cli.Train(**SMALL, data=files / "kinds.csv", target="kind", bounds=tmp_path / name))
    assert str(refused.value).startswith(str(tmp_path / name))


def test_bounds_are_a_scaler_of_jbp_data_too(files):
    known = read_bounds(files / "bounds.csv")
    bounds = Bounds(*np.array([known[name] for name in ("age", "income", "rate")]).T)
    x = np.array([[50.0, 5000.0, -1e-3], [-1.0, 3000.0, 0.0]])
    np.testing.assert_array_equal(bounds(x), np.array([[0, 1, -1], [-1, 0, 0]]))
    assert bounds.outside(x) == 1
    with pytest.raises(ValueError, match=r"expected examples of shape \(3,\) to scale, got x of shape \(2, 2\)"):
        bounds(x[:, :2])
    with pytest.raises(ValueError, match="must have one shape"):
        Bounds(np.zeros(2), np.ones(3))


# Weights


def test_a_column_of_weights_is_no_input_and_counts_in_training_alone(files, tmp_path):
    options = {"data": files / "weighted.csv", "target": "kind", "weights": "w", "seed": 1}
    plan = make_plan(cli.Train(**SMALL, **options))
    plain = make_plan(cli.Train(**SMALL, data=files / "kinds.csv", target="kind", seed=1))
    assert plan.data.dataset.features == ("age", "income", "rate")
    np.testing.assert_array_equal(plan.data.train[0], plain.data.train[0])
    assert plan.data.validation is not None and plain.data.validation is not None and plan.data.weights is not None
    np.testing.assert_array_equal(plan.data.validation[0], plain.data.validation[0])
    rows = plan.data.dataset.x_train  # the column runs 0, 1, 2, 3, 4, 0, … down the file
    assert len(plan.data.weights) == len(plan.data.train[0]) < len(rows)
    source = jbp.data.load_dataset(files / "weighted.csv", target="kind").x_train
    held = jbp.data.split(source, plan.data.dataset.y_train, 0.1, 1)[0]
    np.testing.assert_array_equal(plan.data.weights, held[:, 3])

    result = cli.Train(**SMALL | {"batch_size": 16}, **options, out=tmp_path / "run")()
    own = jbp.fit(plan.net, plan.loss, plan.optimizer, plan.data.train, weights=plan.data.weights, epochs=1, seed=1,
                  batch_size=16, validation_data=plan.data.validation, patience=20)  # fmt: skip
    assert result.summary["validation_loss"] == own.history[-1]["validation_loss"]
    assert jbp.load(tmp_path / "run").features == ("age", "income", "rate")


def test_balanced_classes_count_alike_and_multiply_the_rows_own_weights(files):
    options = {"data": files / "weighted.csv", "target": "kind", "class_weights": "balanced"}
    plan = make_plan(cli.Train(**SMALL, **options))
    y, weights = plan.data.train[1], plan.data.weights
    assert weights is not None
    assert [weights[y == c].sum() for c in (0, 1)] == pytest.approx([len(y) / 2] * 2)
    assert weights.mean() == pytest.approx(1)
    both = make_plan(cli.Train(**SMALL, **options, weights="w")).data.weights
    own = make_plan(cli.Train(**SMALL, data=files / "weighted.csv", target="kind", weights="w")).data.weights
    assert both is not None and own is not None
    np.testing.assert_allclose(both, weights * own)
    np.testing.assert_array_equal(balanced_weights(np.array(["a", "b", "a", "a"])), [4 / 6, 2, 4 / 6, 4 / 6])
    with pytest.raises(ValueError, match="expected labels"):
        balanced_weights(np.array([0.5, 1.0]))


def test_balanced_classes_find_the_rare_one_in_small_batches(tmp_path):
    """Of a rare class, far likelier at one value of x than at the other: with weights, the odds of even priors."""
    rng = np.random.default_rng(1)
    y = np.arange(500) % 25 == 0
    x = (rng.uniform(size=500) < np.where(y, 0.8, 0.3)).astype(int)
    lines = ["a,kind", *(f"{a},{'rare' if b else 'common'}" for a, b in zip(x, y, strict=True))]
    (tmp_path / "rare.csv").write_text("\n".join(lines) + "\n")
    options = {"data": tmp_path / "rare.csv", "target": "kind", "batch_size": 8, "patience": 0, "learning_rate": 0.003}
    options |= SMALL | {"net": "", "epochs": 60, "class_weights": "balanced", "standardize": False}
    plan, run = make_plan(cli.Train(**options)), tmp_path / "run"
    (seen, kind), weights = plan.data.train, plan.data.weights
    assert weights is not None
    expected = [np.average(kind[seen[:, 0] == a], weights=weights[seen[:, 0] == a]) for a in (0, 1)]
    assert expected[0] < 0.3 and expected[1] > 0.65
    cli.Train(**options, out=run)()
    assert jbp.load(run).predict(np.array([[0.0], [1.0]]))[:, 1] == pytest.approx(expected, abs=0.1)


def test_many_seeds_take_weights(files, tmp_path):
    options = {"data": files / "weighted.csv", "target": "kind", "weights": "w", "class_weights": "balanced"}
    spread = cli.Train(**SMALL, **options, seeds="0:2", out=tmp_path / "many")()
    single = cli.Train(**SMALL, **options, seed=1, out=tmp_path / "one")()
    assert spread.summary["runs"][1]["validation_loss"] == pytest.approx(single.summary["validation_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "weighted.csv", "weights": "v"}, "expected weights to be a column beside the target, found no 'v'"),
        ({"data": "weighted.csv", "weights": "kind"}, "expected weights to be a column beside the target"),
        ({"data": "kinds.csv", "weights": "age"}, "at least 0 in column 'age', found -20 in the training part"),
        (
            {"data": "numbers.csv", "target": "number", "class_weights": "balanced"},
            "class_weights are for a classification",
        ),
        ({"data": "kinds.csv", "class_weights": "balance"}, "did you mean 'balanced'"),
        ({"data": "kinds.csv", "standardize": True, "bounds": "bounds.csv"}, "one of standardize and bounds"),
        ({"private": True, "weights": "w"}, "private training cannot use weights"),
        ({"private": True, "class_weights": "balanced"}, "private training cannot use class_weights"),
        ({"private": True, "standardize": True}, "see bounds"),
        ({"private": True, "epsilon": 3.0, "noise": 1.0}, "one of epsilon and noise"),
        ({"private": True, "epsilon": 14.0}, "epsilon must be a number above 0 and at most 13"),
        ({"epsilon": 3.0}, "epsilon is for private training"),
    ],
)
def test_what_does_not_fit_is_refused(files, options, words):
    for name in ("data", "bounds"):
        if name in options:
            options = options | {name: files / options[name]}
    with pytest.raises(ValueError, match=words):
        make_plan(cli.Train(**SMALL | {"target": "kind"} | options))


# ε


def test_epsilon_is_kept_with_the_least_noise_and_bounds_make_private_training_work(files, tmp_path, capsys):
    words = ["train", "--data", str(files / "kinds.csv"), "--target", "kind", "--net", "", "--epochs", "30"]
    words += ["--private", "--epsilon", "3", "--batch-size", "32", "--seed", "1", "--overwrite", "--out"]
    reached = {}
    for name in ("raw", "bounds"):
        more = ["--bounds", str(files / "bounds.json")] if name == "bounds" else []
        assert cli.main([*words, str(tmp_path / name), *more]) == 0
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        err = capsys.readouterr().err
        how = jbp.Private.for_epsilon(3, 1e-5, 1.0, steps=30 * 8, batch_size=32, n=240)
        assert summary["noise"] == how.noise_multiplier
        assert 2.99 < summary["epsilon"] <= 3
        assert f"noise: {how.noise_multiplier:.4g}, the least for ε = 3" in err
        assert ("the data are not scaled" in err) == (name == "raw")
        reached[name] = summary["test_accuracy"]
    assert reached["bounds"] >= 0.85 > reached["raw"]


def test_data_standardised_by_their_own_figures_are_refused_in_private_training():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(5, 9, (1000, 3)), rng.integers(0, 2, 1000)
    net, how = jbp.Dense(2), jbp.Private(1.0, 1.0, 1e-5)

    def fit(x: Any, y: Any = y, loss: Any = jbp.losses.softmax_cross_entropy) -> jbp.Fit:
        return jbp.fit(net, loss, jbp.optim.sgd(0.1), (x, y), private=how, epochs=1, batch_size=500, seed=0)

    own = jbp.data.Standardizer.fit(x)
    public = jbp.data.Standardizer.fit(rng.uniform(5, 9, (1000, 3)))
    signs = np.where(np.arange(1000) % 2, 1.0, -1.0)[:, None] * np.ones(3)
    for fine in (
        x,
        np.asarray(public(x), float),
        np.asarray(Bounds(np.full(3, 5.0), np.full(3, 9.0))(x), float),
        signs,
    ):
        fit(fine)
    whole = jbp.data.Standardizer.fit(x, per_feature=False)
    unbiased = (x - x.mean(0)) / x.std(0, ddof=1)
    one = np.column_stack([x[:, :2], unbiased[:, 2]])
    for wrong, words in ((own(x), "column 1 has 0 and 1"), (whole(x), "the whole has"), (unbiased, "column 1 has"),
                         (one, "column 3 has")):  # fmt: skip
        with pytest.raises(ValueError, match=f"x of train_data was standardised by its own mean.*{words}.*Bounds"):
            fit(np.asarray(wrong, float))
    with pytest.raises(ValueError, match="y of train_data was standardised"):
        fit(x, unbiased[:, :2], jbp.losses.squared_error)


@pytest.mark.parametrize(
    ("name", "text"),
    [("b.csv", "column,low,high\nborn,1970-01-01,1.2.1970\n"), ("b.json", '{"born": ["1970-01-01", "1970-02-01"]}')],
)
def test_bounds_of_a_column_of_dates_are_dates(name: str, text: str, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_bounds(tmp_path / name) == {"born": (0.0, 31.0)}
