"""Tables as people have them: words, gaps, dates, other ways to write them, a few rows; what is declared of them."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from written import RNG, SMALL, predicted, says, trained, write

import jbp
from jbp import cli
from jbp.cli.training import make_plan
from jbp.data import Columns, Standardizer, load_dataset
from jbp.data.cells import Dialect
from jbp.data.dates import days
from jbp.data.tables import load_rows

HALF = np.arange(200) % 2


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own_and_in_float32(tmp_path, monkeypatch):
    """As users run it: of float64 nothing would be lost."""
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False):
        yield


# ── words, gaps, dates ──────────────────────────────────────────────────────────────────────────────────────────────

COLOURS = np.array(["red", "green", "blue"])[RNG.integers(0, 3, 120)]
AGES = np.round(RNG.normal(40, 10, 120), 1)
DAYS = [f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in range(120)]
ZIPS = RNG.choice(["00501", "02134", "90210"], 120)
ANSWER = np.where(COLOURS == "red", "yes", "no")
HEAD = ["colour", "age", "day", "zip", "y"]


def table(name="t.csv", delimiter=",", **changed):
    columns = {"colour": COLOURS, "age": AGES, "day": DAYS, "zip": ZIPS, "y": ANSWER} | changed
    return write(name, list(columns), *columns.values(), delimiter=delimiter)


def at(values, row, value):
    """The cells with another in one row, counted from 0."""
    return [value if i == row else old for i, old in enumerate(values)]


def test_words_become_columns_of_0_and_1_and_dates_days(capsys):
    data = load_dataset(table(), target="y")
    assert data.features == (
        "colour=blue", "colour=green", "colour=red", "age", "day", "zip=00501", "zip=02134", "zip=90210",
    )  # fmt: skip
    x = data.x_train
    np.testing.assert_array_equal(x[:, :3].sum(1), 1)
    np.testing.assert_array_equal(x[:, 5:].sum(1), 1)
    np.testing.assert_array_equal(x[:, 2] == 1, np.array(data.classes)[data.y_train] == "yes")
    assert x[:, 4].min() >= days("2024-01-01") == 19723
    result = trained("t.csv", "y", quiet=False)
    err = capsys.readouterr().err
    assert "t.csv: dates are taken as days since 1970-01-01: day" in err
    assert "t.csv: categories become a column of 0 and 1 each: colour (3), zip (3)" in err
    assert result.summary["test_accuracy"] == 1
    assert [row[0] for row in predicted(capsys, "run", "t.csv")[1:]] == ANSWER.tolist()


def test_a_run_keeps_its_columns_as_json_and_encodes_rows_in_python():
    trained(table(age=at(AGES, 7, "")), "y", missing="mean", epochs=2)
    run = jbp.load("run")
    assert run.columns is not None
    assert Columns.from_json(json.loads(json.dumps(run.columns.as_json()))) == run.columns
    rows = {"colour": ["red", None], "age": [30, float("nan")], "day": ["2024-01-01", "?"], "zip": ["00501", "90210"]}
    x = run.columns.encode(rows)
    assert x[0, :5].tolist() == [0, 0, 1, 30, 19723]
    assert x[1, :3].sum() == pytest.approx(1) and x[1, 3] == pytest.approx(AGES.mean(), abs=2)
    assert run.predict(x).shape == (2, 2)


UNKNOWN = "colour,age,day,zip\nviolet,30,2024-01-01,00501\n"


def test_a_category_that_training_has_not_seen_is_refused_or_ignored(capsys):
    trained(table(), "y")
    Path("new.csv").write_text(UNKNOWN)
    line = says(capsys, "predict", "run", "new.csv")
    assert "one of blue, green, red, found 'violet' at row 1 (line 2), column 'colour'" in line
    assert "--unknown ignore" in line
    assert predicted(capsys, "run", "new.csv", "--unknown", "ignore")[1][0] == "no"
    Path("new.csv").write_text(UNKNOWN.replace("violet", "blu"))
    assert "did you mean 'blue'?" in says(capsys, "predict", "run", "new.csv")


GAPS = ["", "?", "NA", "n/a", "nan", "NaN", "null", "#N/A", "  "]


@pytest.mark.parametrize("gap", GAPS)
def test_missing_values_are_refused_with_the_count_of_each_column(gap):
    table(age=at(at(AGES, 4, gap), 9, gap), colour=at(COLOURS, 8, gap))
    with pytest.raises(ValueError) as error:
        load_dataset("t.csv", target="y")
    found = repr(gap) if gap.strip() else "an empty cell"
    assert f"missing ones: colour 1, age 2 (the first, {found}, at row 9 (line 10), column 'colour')" in str(
        error.value
    )
    assert "missing='mean' or 'indicator' (--missing)" in str(error.value)


def test_missing_values_are_filled_with_the_mean_of_the_training_part():
    gone = np.arange(120) % 10 == 0
    table(age=np.where(gone, "", AGES), colour=np.where(gone, "NA", COLOURS))
    data = load_dataset("t.csv", target="y", missing="mean")
    assert data.features[:4] == ("colour=blue", "colour=green", "colour=red", "age")
    x = np.round(data.x_train, 12)
    values, counts = np.unique(x[:, 3], return_counts=True)
    filled = x[:, 3] == values[np.argmax(counts)]
    assert 5 < filled.sum() < 15
    np.testing.assert_allclose(data.x_train[filled, 3], data.x_train[~filled, 3].mean(), rtol=1e-12)
    np.testing.assert_allclose(data.x_train[filled, :3].sum(1), 1)
    marked = load_dataset("t.csv", target="y", missing="indicator")
    assert marked.features[3:6] == ("colour is missing", "age", "age is missing")
    np.testing.assert_array_equal(marked.x_train[:, 5], filled)
    np.testing.assert_array_equal(marked.x_train[:, 4], data.x_train[:, 3])


def test_predicting_with_a_gap_does_what_training_learned(capsys):
    Path("new.csv").write_text("colour,age,day,zip\nred,,2024-01-01,00501\n")
    trained(table(), "y", epochs=3)
    line = says(capsys, "predict", "run", "new.csv")
    assert (
        "age 1 (the first, an empty cell, at row 1 (line 2), column 'age'); fill them in, for training saw none" in line
    )
    trained("t.csv", "y", epochs=3, missing="mean")
    assert len(predicted(capsys, "run", "new.csv")) == 2
    trained("t.csv", "y", epochs=3, missing="indicator")  # which no column of the table needed
    assert "training saw none missing there" in says(capsys, "predict", "run", "new.csv")
    trained(table(age=at(AGES, 5, "NA")), "y", epochs=3, missing="indicator")
    assert len(predicted(capsys, "run", "new.csv")) == 2


WHEN = {
    "2024-03-01": 19783, "2024/3/1": 19783, "1.3.2024": 19783, "01.03.2024": 19783, "2024-03-01T12:00": 19783.5,
    "2024-03-01 06:00:00": 19783.25, "2024-03-01T06:00:00Z": 19783.25, "2024-03-01T01:00:00+01:00": 19783,
    "2024-03-01T00:00:00.5": 19783 + 0.5 / 86400, "1969-12-31": -1,
}  # fmt: skip


@pytest.mark.parametrize("word", WHEN)
def test_dates_are_days_since_1970(word):
    assert days(word) == WHEN[word]


DIALECTS = {
    "semicolons and decimal commas": (";", ","),
    "tabs": ("\t", "."),
    "tabs and decimal commas": ("\t", ","),
    "bars": ("|", "."),
    "semicolons": (";", "."),
}


@pytest.mark.parametrize("case", DIALECTS)
def test_how_a_table_is_written_is_found(case, capsys):
    delimiter, decimal = DIALECTS[case]
    plain = load_dataset(table(), target="y")
    table("other.csv", delimiter, age=[str(age).replace(".", decimal) for age in AGES])
    data = load_dataset("other.csv", target="y")
    np.testing.assert_array_equal(data.x_train, plain.x_train)
    assert data.features == plain.features
    said: dict[str, Any] = {"delimiter": {"\t": "tab", ";": "semicolon", "|": "bar"}[delimiter], "decimal": decimal}
    np.testing.assert_array_equal(load_dataset("other.csv", target="y", **said).x_train, plain.x_train)
    trained("t.csv", "y", epochs=2)
    assert predicted(capsys, "run", "other.csv") == predicted(capsys, "run", "t.csv")


def test_a_target_with_decimal_commas_is_a_number():
    write("t.csv", ["a", "y"], range(40), [f"{k},25" for k in range(40)], delimiter=";")
    data = load_dataset("t.csv", target="y")
    assert data.task == "regression" and data.y_test is not None
    assert sorted(np.concatenate([data.y_train, data.y_test])[:, 0]) == [k + 0.25 for k in range(40)]


def test_a_quoted_delimiter_and_a_mark_at_the_start_of_the_file_are_no_trouble():
    text = Path(table(delimiter=";", colour=np.where(COLOURS == "red", '"red; dark"', COLOURS))).read_text()
    Path("t.csv").write_text("\ufeff" + text)
    assert load_dataset("t.csv", target="y").features[:3] == ("colour=blue", "colour=green", "colour=red; dark")


ODD = {
    "a date that no calendar has": (
        {"day": at(DAYS, 50, "2024-02-31")},
        "a date such as 2024-03-01, as in other rows, found '2024-02-31' at row 51",
    ),
    "a word among dates": (
        {"day": at(DAYS, 50, "soon")},
        "expected a date, as in other rows, found 'soon' at row 51 (line 52)",
    ),
    "a number among dates": (
        {"day": at(DAYS, 50, "20240301")},
        "expected a date, as in other rows, found '20240301' at row 51",
    ),
    "a word among numbers": ({"age": at(AGES, 50, "4o")}, "expected a number, as in other rows, found '4o' at row 51"),
    "all missing": ({"age": [""] * 120}, "found missing ones: age 120"),
    "thousands or decimals": (
        {"age": [f'"1,{k:03d}"' for k in range(120)]},
        "which may have a decimal comma or mark thousands",
    ),
    "thousands": (
        {"age": [f'"1,{k:03d}.5"' for k in range(120)]},
        "found a number with marks in it, '1,000.5', at row 1",
    ),
    "percent": ({"age": [f"{k}%" for k in range(120)]}, "found a number with marks in it, '0%', at row 1"),
    "two decimal signs": (
        {"age": [f'"{k},5"' if k % 2 else f"{k}.5" for k in range(120)]},
        "found '1,5' at row 2 (line 3), column 'age' and '0.5' at row 1",
    ),
    "day or month": (
        {"day": [f"{k % 12 + 1}/{k % 12 + 1}/2024" for k in range(120)]},
        "day and month cannot be told apart",
    ),
    "names": (
        {"colour": [f"user{k}" for k in range(120)]},
        "found 120 different words in column 'colour', the first 'user0'",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_what_cannot_be_understood_is_refused_with_its_place(case):
    changed, words = ODD[case]
    table(**changed)
    with pytest.raises(ValueError) as error:
        load_dataset("t.csv", target="y")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_column_without_any_value_has_no_mean():
    table(age=[""] * 120)
    with pytest.raises(ValueError, match="a value somewhere in column 'age', found all missing in the training part"):
        load_dataset("t.csv", target="y", missing="mean")


@pytest.mark.parametrize("column", [{"age": at(AGES, 3, "4o")}, {"age": np.arange(120) % 5}, {"age": DAYS[:12] * 10}])
def test_categories_can_be_declared(column):
    table(**column)
    data = load_dataset("t.csv", target="y", categorical=["age"])
    words = sorted({str(cell) for cell in column["age"]})
    assert [name for name in data.features if name.startswith("age")] == [f"age={word}" for word in words]


def test_a_file_of_leading_zeros_and_fractions_is_refused():
    table(zip=at(ZIPS, 3, "12.5"))
    assert "zip=12.5" in load_dataset("t.csv", target="y", categorical=["zip"]).features


BAD_OPTIONS = {
    "a long delimiter": ("--data t.csv --target y --delimiter ;;", "delimiter must be one character, or one of comma"),
    "another decimal": ("--data t.csv --target y --decimal ;", "unknown decimal ';': expected one of"),
    "another way": (
        "--data t.csv --target y --missing median",
        "unknown missing 'median': expected one of mean, indicator",
    ),
    "no such column": ("--data t.csv --target y --categorical zap", "found none under 'zap'; did you mean 'zip'?"),
    "the target": ("--data t.csv --target y --categorical y", "found the target under 'y'"),
    "of images": ("--missing mean", "expected a missing only with a .csv or .tsv file"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_wrong_options_of_tables_are_one_line(case, capsys):
    line, words = BAD_OPTIONS[case]
    table()
    assert words in says(capsys, "train", *line.split())


# ── tables of a few rows ────────────────────────────────────────────────────────────────────────────────────────────

XOR = ["0,0", "0,1", "1,0", "1,1"]


@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), ("-1", "+1"), ("no", "yes")], ids=repr)
def test_four_rows_train_and_it_is_said_that_none_are_held_out(labels, capsys):
    write("xor.csv", ["a,b", "y"], XOR, [labels[i] for i in (0, 1, 1, 0)])
    words = ["train", "--data", "xor.csv", "--target", "y", "--out", "xor", "--net", "64 relu"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "xor.csv: 4 rows are too few to hold any out: all of them train, and the figures are theirs" in err
    assert "training accuracy" in out and "test accuracy" not in out
    summary = json.loads(Path("xor/summary.json").read_text())
    assert summary["train_accuracy"] == 1 and summary["examples"] == {"train": 4}
    assert [row[0] for row in predicted(capsys, "xor", "xor.csv")[1:]] == [str(labels[i]) for i in (0, 1, 1, 0)]
    assert cli.main(["show", "xor"]) == 0
    assert "confusion matrix of the training part" in " ".join(capsys.readouterr().out.split())


def test_four_rows_do_not_diverge_with_every_default():
    write("xor.csv", ["a,b", "y"], XOR, [0, 1, 1, 0])
    result = cli.Train(data="xor.csv", target="y", out="xor", quiet=True)()
    assert result.summary["train_accuracy"] == 1 and result.summary["train_loss"] < 0.1


def test_fewer_rows_than_a_batch_are_a_batch():
    write("t.csv", ["x", "y"], range(20), RNG.normal(size=20))
    assert len(trained("t.csv", "y", batch_size=None, epochs=2).fit.step_losses) == 2
    with pytest.raises(ValueError, match="batch_size must be at most the number of training examples, 14, but is 15"):
        trained("t.csv", "y", batch_size=15)


def test_four_rows_train_with_many_seeds(capsys):
    write("xor.csv", ["a,b", "y"], XOR, [0, 1, 1, 0])
    spread = cli.Train(data="xor.csv", target="y", seeds="0:2", out="many", net="64 relu", epochs=30)()
    assert spread.summary["spread"]["train_accuracy"]["runs"] == 2
    assert "training accuracy" in capsys.readouterr().out


# ── with what is declared of the data ───────────────────────────────────────────────────────────────────────────────


def test_private_data_are_not_filled_by_means_of_theirs(capsys):
    table(age=at(AGES, 3, ""))
    for way in ("mean", "indicator"):
        line = says(capsys, "train", "--data", "t.csv", "--target", "y", "--private", "--missing", way)
        assert "private training cannot use missing: the means would be computed from private data" in line


def test_bounds_are_asked_of_numbers_and_not_of_categories():
    Path("b.json").write_text(json.dumps({"age": [0, 120], "day": [19_000, 21_000]}))
    plan = make_plan(cli.Train(data=table(), target="y", bounds="b.json", **SMALL))
    x = plan.data.train[0]
    assert set(np.unique(x[:, :3])) == {-1, 1} and abs(x[:, 3:5]).max() < 1


def test_what_lies_outside_bounds_is_not_taken_for_lost():
    Path("b.json").write_text(json.dumps({"x": [0, 2]}))
    write("t.csv", ["x", "y"], np.arange(40) % 5, HALF[:40])
    assert len(make_plan(cli.Train(data="t.csv", target="y", bounds="b.json", **SMALL)).data.train[0]) == 29


def test_weights_leave_the_columns_and_may_not_be_missing():
    table(w=np.arange(120) % 3)
    result = trained("t.csv", "y", weights="w", epochs=2)
    run = jbp.load(result.folder)
    assert run.columns is not None and run.columns.names == ("colour", "age", "day", "zip")
    table(w=at(np.arange(120) % 3, 5, ""))
    with pytest.raises(ValueError, match="expected a weight in every row, found column 'w' without some"):
        trained("t.csv", "y", weights="w", missing="mean")


def test_a_run_that_is_saved_by_hand_reads_rows_as_its_data_were_read(capsys):
    data = load_dataset(table(), target="y")
    assert data.columns is not None
    scale = Standardizer.fit(data.x_train)
    net, loss = jbp.serial(jbp.Dense(8), jbp.tanh, jbp.Dense(2)), jbp.losses.softmax_cross_entropy
    done = jbp.fit(net, loss, jbp.optim.sgd(0.1, 0.9), (scale(data.x_train), data.y_train), epochs=30)
    jbp.save("mine", net, done.params, loss=loss, input_shape=(8,), classes=data.classes, features=data.columns,
             x_scale=scale)  # fmt: skip
    assert [row[0] for row in predicted(capsys, "mine", "t.csv")[1:]] == ANSWER.tolist()


def test_rows_to_predict_are_read_with_the_decimal_sign_of_training(tmp_path, monkeypatch):
    """20.000 in a file like that of training, which had decimal commas, is not 20."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a;y\n" + "".join(f"{i},5;{'no' if i < 20 else 'yes'}\n" for i in range(40)))
    cli.Train(data="t.csv", target="y", net="", epochs=1, out="run", quiet=True)()
    columns: Any = jbp.load("run").columns
    (tmp_path / "new.csv").write_text("a;b\n20.000;1\n30.000;2\n")
    with pytest.raises(ValueError, match=r"20\.000"):
        load_rows("new.csv", columns, Dialect())
    assert load_rows("new.csv", columns, Dialect(decimal=".")).tolist() == [[20.0], [30.0]]


@pytest.mark.parametrize("rows", [{"a": 1.0, "b": 2.0}, {"a": [1.0], "b": [1.0, 2.0]}, {"a": "1", "b": "2"}])
def test_rows_by_hand_are_lists_of_one_length(rows):
    with pytest.raises(ValueError, match="expected a list of cells for each column, all of one length"):
        Columns.plain(["a", "b"]).encode(rows)
