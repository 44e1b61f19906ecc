"""Own data: what .npz and .csv files become, and the error that each kind of bad file gets."""

import zipfile
from typing import Any

import numpy as np
import pytest

from jbp.data import load_dataset

X = np.arange(60.0).reshape(20, 3)
Y = np.array([0, 1, 1, 0] * 5)
WORDS = np.array(["cat", "ant"] * 10)


def spoiled(array, index, value):
    array = np.array(array, float)
    array[index] = value
    return array


def check_parts(data, n, n_test, x_shape, dtype: Any = np.float64):
    assert data.x_train.shape == (n, *x_shape) and data.x_test.shape == (n_test, *x_shape)
    assert data.x_train.dtype == data.x_test.dtype == dtype
    kind = np.int32 if data.task == "classification" else np.float64
    assert data.y_train.dtype == data.y_test.dtype == kind


# arrays, task given → task, classes, y_train of the first rows where the file has a test part
GOOD_NPZ = {
    "whole numbers": ({"y": Y}, None, "classification", ("0", "1"), [0, 1, 1, 0]),
    "whole numbers with gaps": ({"y": Y * 5 + 2}, None, "classification", ("2", "7"), [0, 1, 1, 0]),
    "numbers sort as numbers": ({"y": 11 - Y * 2}, None, "classification", ("9", "11"), [1, 0, 0, 1]),
    "unsigned": ({"y": Y.astype(np.uint8)}, None, "classification", ("0", "1"), [0, 1, 1, 0]),
    "text": ({"y": WORDS}, None, "classification", ("ant", "cat"), [1, 0, 1, 0]),
    "bytes": ({"y": WORDS.astype("S")}, None, "classification", ("ant", "cat"), [1, 0, 1, 0]),
    "bools": ({"y": Y > 0}, None, "classification", ("False", "True"), [0, 1, 1, 0]),
    "labels as 1.0": ({"y": Y * 1.0}, "classification", "classification", ("0", "1"), [0, 1, 1, 0]),
    "values": ({"y": Y + 0.5}, None, "regression", (), [[0.5], [1.5], [1.5], [0.5]]),
    "values in columns": ({"y": X[:, :2]}, None, "regression", (), [[0, 1], [3, 4], [6, 7], [9, 10]]),
    "whole values": ({"y": -Y}, "regression", "regression", (), [[0], [-1], [-1], [0]]),
    "images": ({"y": Y, "x": np.ones((20, 2, 3, 1), np.uint8)}, None, "classification", ("0", "1"), [0, 1, 1, 0]),
}


@pytest.mark.parametrize("case", GOOD_NPZ)
@pytest.mark.parametrize("own_test", [True, False])
def test_npz(tmp_path, case, own_test):
    arrays, task, expected_task, classes, y = GOOD_NPZ[case]
    x = arrays.get("x", X)
    extra = {"x_test": x[:7], "y_test": arrays["y"][:7]} if own_test else {}
    np.savez(tmp_path / "own.npz", allow_pickle=False, x_train=x, y_train=arrays["y"], **extra)
    data = load_dataset(tmp_path / "own.npz", task=task)
    assert (data.name, data.task, data.classes, data.features) == ("own", expected_task, classes, ())
    assert data.y_test is not None
    check_parts(
        data,
        *((20, 7) if own_test else (16, 4)),
        x.shape[1:],
        np.dtype("float32" if x.dtype == np.uint8 else "float64"),
    )
    if own_test:
        np.testing.assert_array_equal(data.x_train, x)
        np.testing.assert_array_equal(data.y_train[:4], y)
        np.testing.assert_array_equal(data.y_test[:4], y)


def test_test_labels_keep_their_meaning_when_some_classes_are_missing(tmp_path):
    arrays = {"x_train": X[:6], "y_train": [3, 5, 8, 3, 5, 8], "x_test": X[:3], "y_test": [8.0, 5.0, 8.0]}
    np.savez(tmp_path / "own.npz", allow_pickle=False, **arrays)
    data = load_dataset(tmp_path / "own.npz")
    assert data.y_test is not None and data.y_test.tolist() == [2, 1, 2]


OBJECTS = np.array([0, "one"] * 10, object)
# task, arrays, what the message says
BAD_NPZ = {
    "object labels": (None, {"x_train": X, "y_train": OBJECTS}, "expected y_train to be an array of numbers or text"),
    "object x": (None, {"x_train": X.astype(object), "y_train": Y}, "read without unpickling"),
    "no y": (None, {"x_train": X}, "found x_train, so without y_train"),
    "nothing": (None, {}, "found none, so without x_train, y_train"),
    "other names": (None, {"X": X, "y": Y}, "expected arrays x_train and y_train"),
    "a slip": (None, {"x_train": X, "y_train": Y, "x_tset": X, "y_tset": Y}, "did you mean 'x_test'"),
    "x_test alone": (None, {"x_train": X, "y_train": Y, "x_test": X}, "so without y_test"),
    "y_test alone": (None, {"x_train": X, "y_train": Y, "y_test": Y}, "so without x_test"),
    "lengths": (None, {"x_train": X, "y_train": Y[:19]}, "equally many rows, found shapes (20, 3) and (19,)"),
    "lengths of test": (None, {"x_train": X, "y_train": Y, "x_test": X[:4], "y_test": Y[:5]}, "x_test and y_test"),
    "single x": (None, {"x_train": np.array(1.0), "y_train": Y}, "expected x_train to be numbers [rows, columns…]"),
    "single y": (None, {"x_train": X, "y_train": np.array(1)}, "found shapes (20, 3) and ()"),
    "one column": (None, {"x_train": X[:, 0], "y_train": Y}, "a single column as [rows, 1]"),
    "text x": (None, {"x_train": X.astype(str), "y_train": Y}, "expected x_train to be numbers"),
    "complex x": (None, {"x_train": X * 1j, "y_train": Y}, "found complex128"),
    "NaN": (
        None,
        {"x_train": spoiled(X, (4, 2), np.nan), "y_train": Y},
        "found nan at x_train, row 4, column 2 (counted",
    ),
    "Inf": (None, {"x_train": spoiled(X, (0, 1), -np.inf), "y_train": Y}, "found -inf at x_train, row 0, column 1"),
    "NaN of a pixel": (
        None,
        {"x_train": spoiled(np.ones((20, 2, 3)), (4, 1, 2), np.nan), "y_train": Y},
        "x_train, row 4, column 1, 2",
    ),
    "NaN in test": (
        None,
        {"x_train": X, "y_train": Y, "x_test": spoiled(X, (3, 1), np.nan), "y_test": Y},
        "found nan at x_test, row 3, column 1",
    ),
    "no rows": (
        None,
        {"x_train": X[:0], "y_train": Y[:0]},
        "expected x_train to have rows and columns, found shape (0, 3)",
    ),
    "no columns": (None, {"x_train": X[:, :0], "y_train": Y}, "found shape (20, 0)"),
    "no rows of test": (
        None,
        {"x_train": X, "y_train": Y, "x_test": X[:0], "y_test": Y[:0]},
        "expected x_test to have rows",
    ),
    "one class": (None, {"x_train": X, "y_train": Y * 0 + 3}, "two classes or more, found only 3"),
    "shape of test": (
        None,
        {"x_train": X, "y_train": Y, "x_test": X[:, :2], "y_test": Y},
        "x_train's, (3,), found (2,)",
    ),
    "outputs of test": (
        None,
        {"x_train": X, "y_train": X, "x_test": X, "y_test": X[:, :2]},
        "expected y_test's rows to have the shape of y_train's, (3,), found (2,)",
    ),
    "new labels": (None, {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 4}, "found also 4, 5; add"),
    "new words": (None, {"x_train": X, "y_train": WORDS, "x_test": X[:2], "y_test": ["cat", "dog"]}, "found also dog"),
    "text in test": (
        None,
        {"x_train": X, "y_train": Y, "x_test": X, "y_test": WORDS},
        "found text where they are int64",
    ),
    "negative": (
        None,
        {"x_train": X, "y_train": np.where(np.arange(20) == 1, -2, Y)},
        "or two such as -1 and 1, found -2 at y_train, row 1 (counted from 0) among 3 different ones; say which it is",
    ),
    "many whole numbers": (
        None,
        {"x_train": np.ones((210, 1)), "y_train": np.arange(210) % 21},
        "found 21 different ones in 210 rows of y_train; say which it is by task=",
    ),
    "large float label": ("classification", {"x_train": X, "y_train": Y + 2.0**53}, "found 9007199254740992.0 at y_tr"),
    "not whole": ("classification", {"x_train": X, "y_train": Y + 0.5}, "found 0.5 at y_train, row 0"),
    "Inf label": (
        "classification",
        {"x_train": X, "y_train": spoiled(Y, 2, np.inf)},
        "found inf at y_train, row 2",
    ),
    "NaN label": ("classification", {"x_train": X, "y_train": spoiled(Y, 2, np.nan)}, "found nan at y_train, row 2"),
    "empty label": (None, {"x_train": X, "y_train": [*WORDS[:-1], ""]}, "found an empty one at y_train, row 19"),
    "one-hot": (None, {"x_train": X, "y_train": np.eye(20, dtype=int)}, "take argmax(axis=1) of one-hot rows"),
    "dates": (None, {"x_train": X, "y_train": Y.astype("M8[D]")}, "found datetime64[D]"),
    "all different": (None, {"x_train": X, "y_train": np.arange(20)}, "found 20 different ones in 20 rows"),
    "text, regression": ("regression", {"x_train": X, "y_train": WORDS}, "to be numbers [rows] or [rows, outputs]"),
    "values in 3-D": (None, {"x_train": X, "y_train": np.ones((20, 2, 2))}, "for regression, found float64"),
    "Inf to predict": (None, {"x_train": X, "y_train": spoiled(Y, 2, np.inf)}, "found inf at y_train, row 2"),
    "unknown task": ("regresion", {"x_train": X, "y_train": Y}, "did you mean 'regression'"),
    "few rows a class": (None, {"x_train": X[:7], "y_train": list("abcdefg")}, "found only 7 of 7 classes"),
    "few values": (None, {"x_train": X[:1], "y_train": [0.5]}, "found only 1; give more"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz(tmp_path, case):
    task, arrays, message = BAD_NPZ[case]
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError) as error:
        load_dataset(tmp_path / "own.npz", task=task)
    text = str(error.value)
    assert message in text and "\n" not in text
    assert case == "unknown task" or text.startswith(str(tmp_path / "own.npz"))


def damaged(tmp_path, how):
    """A file called own.npz that is not one."""
    path = tmp_path / "own.npz"
    np.savez(path, x_train=X, y_train=Y)
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "pickle":
        path.write_bytes(b"\x80\x04}\x94.")  # an empty dict, pickled
    elif how == "npy":
        with path.open("wb") as file:
            np.save(file, X)
    elif how == "not arrays":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x_train", "text")
            archive.writestr("y_train", "text")
    else:
        content = {"empty": b"", "truncated": whole[:400], "flipped": whole[:300] + b"\xff" + whole[301:]}
        path.write_bytes(content[how])
    return path


DAMAGED = {
    "missing": "expected a file, found nothing there",
    "folder": "expected a file, found a folder",
    "empty": "found an empty file",
    "truncated": "expected an .npz file, found a damaged one",
    "flipped": "expected whole arrays, found a damaged one",
    "pickle": "expected an .npz file",
    "npy": "expected an .npz file",
    "not arrays": "expected x_train to be numbers",
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_npz(tmp_path, how):
    path = damaged(tmp_path, how)
    with pytest.raises(ValueError) as error:
        load_dataset(path)
    assert str(error.value).startswith(f"{path}: ") and DAMAGED[how] in str(error.value)


ROWS = "".join(f"{i},{i / 4},{['ant', 'cat'][i % 2]}\n" for i in range(10))
TABLE = "width,height,kind\n" + ROWS


def column(cells):
    return "a,y\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))


# text, target, task given → task, classes, features
GOOD_CSV = {
    "words": (TABLE, "kind", None, "classification", ("ant", "cat"), ("width", "height")),
    "target in the middle": (
        TABLE.replace("ant", "1").replace("cat", "2"),
        "height",
        None,
        "regression",
        (),
        ("width", "kind"),
    ),
    "BOM": ("\ufeff" + TABLE, "kind", None, "classification", ("ant", "cat"), ("width", "height")),
    "CR LF": (TABLE.replace("\n", "\r\n"), "kind", None, "classification", ("ant", "cat"), ("width", "height")),
    "empty lines": ("\n" + TABLE + "\n\n", "kind", None, "classification", ("ant", "cat"), ("width", "height")),
    "spaces": (TABLE.replace(",", " , "), "kind", None, "classification", ("ant", "cat"), ("width", "height")),
    "quotes": (
        TABLE.replace("cat", '"cat, or dog"'),
        "kind",
        None,
        "classification",
        ("ant", "cat, or dog"),
        ("width", "height"),
    ),
    "whole numbers": (column([3, 7] * 5), "y", None, "classification", ("3", "7"), ("a",)),
    "labels as 1.0": (column(["1.0", "2.0"] * 5), "y", "classification", "classification", ("1.0", "2.0"), ("a",)),
    "leading zeros": (column(["02134", "00501"] * 5), "y", None, "classification", ("00501", "02134"), ("a",)),
    "one leading zero": (column(["10", "9", "08"] * 5), "y", None, "classification", ("08", "10", "9"), ("a",)),
    "signs": (column(["+1", "-1"] * 5), "y", None, "classification", ("+1", "-1"), ("a",)),
    "-1 and 1": (column(["1", "-1"] * 5), "y", None, "classification", ("-1", "1"), ("a",)),
    "beyond 64 bits": (column(["9" * 30, "1"] * 5), "y", None, "classification", ("1", "9" * 30), ("a",)),
    "two of 64 bits": (
        column([2**63, 2**63 + 1] * 5),
        "y",
        None,
        "classification",
        (str(2**63), str(2**63 + 1)),
        ("a",),
    ),
    "semicolons": (
        TABLE.replace(",", ";"),
        "kind",
        None,
        "classification",
        ("ant", "cat"),
        ("width", "height"),
    ),
    "tabs": (TABLE.replace(",", "\t"), "kind", None, "classification", ("ant", "cat"), ("width", "height")),
    "decimal commas": (
        TABLE.replace(",", ";").replace(".", ","),
        "height",
        None,
        "regression",
        (),
        ("width", "kind=ant", "kind=cat"),
    ),
    "words and numbers": (
        column(["1", "2", "other"] * 4),
        "y",
        "classification",
        "classification",
        ("1", "2", "other"),
        ("a",),
    ),
    "values": (column([0.5, -1e3] * 5), "y", None, "regression", (), ("a",)),
    "whole values": (column(range(-5, 5)), "y", "regression", "regression", (), ("a",)),
}


@pytest.mark.parametrize("case", GOOD_CSV)
def test_csv(tmp_path, case):
    text, target, task, expected_task, classes, features = GOOD_CSV[case]
    path = tmp_path / "own.csv"
    path.write_bytes(text.encode())
    data = load_dataset(str(path), target=target, task=task)
    assert (data.name, data.task, data.classes, data.features) == ("own", expected_task, classes, features)
    assert data.x_test is not None
    n = len(data.x_train) + len(data.x_test)
    check_parts(data, n - round(n / 5), round(n / 5), (len(features),))
    assert sorted(np.concatenate([data.x_train, data.x_test])[:, 0].tolist()) == list(range(n))


def test_csv_values_stay_with_their_rows(tmp_path):
    (tmp_path / "own.csv").write_text("y,a,b\n" + "".join(f"{i + 0.5},{i},{-i}\n" for i in range(50)))
    data = load_dataset(tmp_path / "own.csv", target="y")
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert x is not None and y is not None
        np.testing.assert_array_equal(y, x[:, :1] + 0.5)
        np.testing.assert_array_equal(x[:, 1], -x[:, 0])
        assert (np.diff(x[:, 0]) > 0).all()


def test_the_held_out_part_is_the_same_each_time_and_stratified(tmp_path):
    np.savez(tmp_path / "own.npz", x_train=np.arange(1000.0)[:, None], y_train=np.repeat([0, 1, 2], [700, 200, 100]))
    one, two = (load_dataset(tmp_path / "own.npz") for _ in range(2))
    assert one.x_test is not None and one.y_test is not None and two.x_test is not None
    np.testing.assert_array_equal(one.x_test, two.x_test)
    assert np.bincount(one.y_test).tolist() == [140, 40, 20]


# text or bytes, target, task, what the message says
BAD_CSV = {
    "no target": (TABLE, None, None, "name one of the columns width, height, kind"),
    "unknown target": (TABLE, "kimd", None, "found no 'kimd' among width, height, kind; did you mean 'kind'?"),
    "many columns": (",".join(f"c{i}" for i in range(99)) + "\n", None, None, "c18, c19, … (99 in all)"),
    "no names": (ROWS.replace("ant", "1"), "kind", None, "found no 'kind' among 0, 0.0, 1; the first line must name"),
    "no delimiter": (TABLE.replace(",", "~"), "kind", None, "among width~height~kind; separate columns by commas"),
    "a word": (TABLE.replace("\n3,", "\nthree,"), "kind", None, "found 'three' at row 4 (line 5), column 'width'"),
    "a gap": (
        TABLE.replace("\n3,0.75", "\n3,"),
        "kind",
        None,
        "found missing ones: height 1 (the first, an empty cell, at row 4 (line 5), column 'height'); fill",
    ),
    "NaN": (
        TABLE.replace("\n3,", "\nNaN,"),
        "kind",
        None,
        "missing ones: width 1 (the first, 'NaN', at row 4 (line 5), column 'width')",
    ),
    "Inf": (TABLE.replace("0.75", "inf"), "kind", None, "found inf at row 4 (line 5), column 'height'"),
    "underscores": (TABLE.replace("\n3,", "\n3_000,"), "kind", None, "found '3_000' at row 4"),
    "NUL": (TABLE.replace("\n3,", "\n3\0,"), "kind", None, "expected"),
    "short row": (
        TABLE.replace("0.75,", ""),
        "kind",
        None,
        "expected 3 cells, as in the header, found 2 in row 4 (line 5)",
    ),
    "long row": (TABLE.replace("0.75,", "0.75,1,"), "kind", None, "found 4 in row 4 (line 5)"),
    "empty": ("", "kind", None, "found an empty file"),
    "empty lines": ("\n\n", "kind", None, "expected a line of column names first"),
    "names only": (
        "width,height,kind\n",
        "kind",
        None,
        "expected rows of examples below the column names, at least a row, f",
    ),
    "a name twice": (TABLE.replace("width", "height"), "kind", None, "found height more than once"),
    "a column without a name": (
        TABLE.replace("width", ""),
        "kind",
        None,
        "found none for column 1; name it, or leave it out",
    ),
    "target only": ("y\n1\n2\n", "y", None, "expected columns beside the target 'y', found no other"),
    "open quote": (TABLE + '"3,4,ant\n', "kind", None, "unexpected end of data"),
    "Latin-1": (TABLE.replace("cat", "chât").encode("latin-1"), "kind", None, "expected UTF-8 text"),
    "UTF-16": (TABLE.encode("utf-16"), "kind", None, "expected UTF-8 text"),
    "one class": (TABLE.replace("cat", "ant"), "kind", None, "two classes or more, found only ant"),
    "empty label": (
        TABLE.replace("cat\n4", "\n4"),
        "kind",
        None,
        "found an empty one at row 4 (line 5), column 'kind'",
    ),
    "negative labels": (column([0, -1, 4] * 5), "y", None, "found -1 at row 2 (line 3), column 'y' among 3 different"),
    "label not whole": (column([0.5, 1] * 5), "y", "classification", "found 0.5 at row 1 (line 2), column 'y'"),
    "all different": (column(range(10)), "y", None, "say which it is by task='classification' or task='regression'"),
    "a word among values": (
        column([0.5] * 9 + ["n/a"]),
        "y",
        None,
        "found 'n/a' at row 10 (line 11), column 'y'; correct it, or pass",
    ),
    "a word, regression": (column([0.5, "x"] * 5), "y", "regression", "found 'x' at row 2 (line 3), column 'y'"),
    "words, regression": (TABLE, "kind", "regression", "expected column 'kind' to be numbers"),
    "gap to predict": (column([0.5] * 9 + [""]), "y", "regression", "found an empty cell at row 10 (line 11)"),
    "NaN to predict": (column([0.5] * 9 + ["nan"]), "y", None, "found nan at row 10 (line 11), column 'y'"),
    "few rows": (
        "a,y\n" + "".join(f"{i},{c}\n" for i, c in enumerate("pqrstuvw")),
        "y",
        None,
        "to hold out a fifth as the test part, found only 8 of 8 classes",
    ),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(tmp_path, case):
    text, target, task, message = BAD_CSV[case]
    path = tmp_path / "own.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        load_dataset(path, target=target, task=task)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


BAD_SOURCES = {
    "unknown name": ("fashion_mnist", {}, "did you mean 'fashion-mnist'?"),
    "unknown ending": (
        "table.parquet",
        {},
        "expected one of digits, mnist, fashion-mnist, or a path ending .npz, .csv or .tsv",
    ),
    "missing": ("nowhere.csv", {"target": "y"}, "nowhere.csv: expected a file, found nothing there"),
    "target of a set": (
        "digits",
        {"target": "y"},
        "expected a target only with a .csv or .tsv file, got 'y' with 'digits'",
    ),
    "target of an npz": ("own.npz", {"target": "y"}, "expected a target only with a .csv or .tsv file"),
    "task of a set": ("digits", {"task": "regression"}, "expected task='classification' for 'digits'"),
    "unknown task": ("digits", {"task": "classify"}, "unknown task 'classify'"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_source(case):
    source, options, message = BAD_SOURCES[case]
    with pytest.raises(ValueError) as error:
        load_dataset(source, **options)
    assert message in str(error.value)
