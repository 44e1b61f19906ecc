"""Wrong use and bad luck: one line on standard error, the right exit status, nothing half-written."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from jbp import checkpoint, cli, files, runs


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def failing(capsys, words, status=2):
    """The one line of a command that must fail with this status."""
    assert cli.main(words) == status
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("epoch ")]
    assert len(lines) == 1
    assert lines[0].startswith("jbp: error: ")
    return lines[0]


WRONG_USE = [
    ("trian", "unknown command 'trian'", "did you mean 'train'?"),
    ("--nope", "unknown argument '--nope'", ""),
    ("train --dataa digits", "unknown argument '--dataa'", "did you mean '--data'?"),
    ("train digits", "unknown argument 'digits'", "jbp train --help"),
    ("train --data digit", "unknown data 'digit'", "did you mean 'digits'?"),
    ("train --data digits.npz", "digits.npz: expected a file", "check the path"),
    ("train --target y", "expected a target only with a .csv or .tsv file", "leave it out"),
    ("train --task regresion", "unknown task 'regresion'", "did you mean 'regression'?"),
    ("train --task regression", "expected task='classification' for 'digits'", ""),
    ("train --net 128,rleu", "unknown layer 'rleu'", "did you mean 'relu'?"),
    ("train --net 0", "expected the width of a dense layer to be at least 1", ""),
    ("train --net -5", "expected the width of a dense layer to be at least 1", ""),
    ("train --net 1.5", "unknown layer '1.5'", "expected widths"),
    ("train --net relu:3", "cannot read 'relu:3'", "takes no number"),
    ("train --net elu:x", "expected a number after the colon, got 'elu:x'", ""),
    ("train --net leaky_relu:-1", "negative_slope of LeakyRelu must be", "-1"),
    ("train --net step:relu", "cannot read 'step:relu'", "the surrogate of Step must be one of straight_through"),
    ("train --net step:sigmoid:0", "cannot read 'step:sigmoid:0'", "the sharpness of Step must be above 0"),
    ("train --net step:sigmoid:x", "expected a number after the colon, got 'step:sigmoid:x'", ""),
    ("train --net dropout", "dropout needs the rate", "[0, 1)"),
    ("train --net dropout:1", "drop_rate of Dropout must be", "[0, 1)"),
    ("train --net dropout:-0.1", "drop_rate of Dropout must be", "[0, 1)"),
    ("train --net dropout:nan", "drop_rate of Dropout must be", "[0, 1)"),
    ("train --loss softmax_crossentropy", "unknown loss", "did you mean 'softmax_cross_entropy'?"),
    ("train --optimizer adm", "unknown optimizer 'adm'", "did you mean 'adam'?"),
    ("train --schedule cosin", "unknown schedule 'cosin'", "did you mean 'cosine'?"),
    ("train --init he", "unknown init 'he'", "he_normal"),
    ("train --bias-init one", "unknown bias_init 'one'", "zeros"),
    ("train --sampling shufle", "unknown sampling 'shufle'", "did you mean 'shuffle'?"),
    ("train --output-activation sigmod", "unknown output_activation 'sigmod'", "did you mean 'sigmoid'?"),
    ("train --output-activation softmax", "softmax_cross_entropy has its softmax inside", "leave"),
    ("train --loss cross_entropy --output-activation relu", "cross_entropy needs probabilities", "softmax"),
    ("train --learning-rate -1", "learning_rate must be a finite number ≥ 0, but is -1.0", "try 0.05"),
    ("train --learning-rate nan", "learning_rate must be a finite number ≥ 0, but is nan", "try"),
    ("train --learning-rate fast", "--learning-rate: expected a number, got 'fast'", ""),
    ("train --momentum 1", "momentum must be a number in [0, 1), but is 1.0", "0.9 is usual"),
    ("train --momentum -0.1", "momentum must be a number in [0, 1)", "0.9 is usual"),
    ("train --momentum nan", "momentum must be a number in [0, 1)", "0.9 is usual"),
    ("train --optimizer adam --momentum 0.9", "adam has no momentum to set", "leave it out"),
    ("train --nesterov --momentum 0", "nesterov needs momentum in (0, 1)", ""),
    ("train --weight-decay -1", "weight_decay must be a finite number ≥ 0", ""),
    ("train --batch-size 0", "batch_size must be a whole number of at least 1, but is 0", ""),
    ("train --batch-size 1294", "batch_size must be at most the number of training examples, 1293", "1294"),
    ("train --epochs 0", "epochs must be a whole number of at least 1, but is 0", ""),
    ("train --epochs 1.5", "--epochs: expected a whole number, got '1.5'", ""),
    ("train --patience -1", "patience must be a whole number of at least 0", ""),
    ("train --seed -1", "seed must be a whole number from 0 to 2**32 - 1, but is -1", ""),
    ("train --seed 4294967296", "seed must be a whole number from 0 to 2**32 - 1, but is 4294967296", ""),
    ("train --seeds 0:4294967298", "seeds must be A:B", "2**32"),
    ("check --layer tanh --seed 4294967299", "seed must be a whole number from 0 to 2**32 - 1", "low 32 bits"),
    ("trace --net 2 --seed 4294967299", "seed must be a whole number from 0 to 2**32 - 1", "low 32 bits"),
    ("train --overwrite", "expected overwrite only together with out", ""),
    ("train --config nope.json", "nope.json: expected a file, found nothing there", ""),
    ("show", "the following arguments are required: RUN", ""),
    ("show nope", "nope: expected the folder of a run, found nothing there", "jbp train"),
    ("compare nope", "expected two runs or more", ""),
    ("predict nope digits", "nope: expected the folder of a run", "jbp train"),
]


@pytest.mark.parametrize(("line", "what", "hint"), WRONG_USE, ids=[line for line, *_ in WRONG_USE])
def test_wrong_use_is_one_line_and_exit_2(capsys, tmp_path, line, what, hint):
    message = failing(capsys, [word.replace(",", " ") for word in line.split()])
    assert what in message
    assert hint in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be a finite number ≥ 0, but is -1.0: try 0.05"),
        ({"epochs": "5"}, "epochs must be a whole number, but is '5'"),
        ({"epochs": True}, "epochs must be a whole number, but is True"),
        ({"loss": "mse"}, "unknown loss 'mse'"),
        ({"momentum": 1}, "momentum must be a number in \\[0, 1\\), but is 1"),
    ],
)
def test_python_gets_a_value_error_with_the_same_words(options, words):
    with pytest.raises(ValueError, match=words):
        cli.Train(**options)


TABLES = {
    "empty.csv": (b"", "found an empty file"),
    "header.csv": (b"a,y\n", "found none"),
    "text.csv": (b"a,y\n1,u\nx,v\n", "found 'x' at row 2 (line 3), column 'a'"),
    "nan.csv": (b"a,y\n1,u\nnan,v\n", "row 2 (line 3), column 'a'"),
    "one.csv": (b"a,y\n1,u\n2,u\n", "found only u"),
    "ragged.csv": (b"a,y\n1,u\n2\n", "found 1 in row 2"),
    "few.csv": (b"a,y\n" + b"".join(b"1,%c\n" % c for c in b"stuvwxyz"), "found only 8 of 8 classes"),
    "bytes.csv": (b"a,y\n\xff,u\n", "UTF-8"),
    "empty.npz": (b"", "found an empty file"),
    "text.npz": (b"not an archive", "expected an .npz file"),
}
ARRAYS = {
    "objects": ({"x_train": np.array([[None], [1]]), "y_train": np.arange(2)}, "without unpickling"),
    "names": ({"x": np.zeros((9, 2)), "y": np.zeros(9)}, "expected arrays x_train and y_train"),
    "lengths": ({"x_train": np.zeros((9, 2)), "y_train": np.zeros(8, int)}, "equally many rows"),
    "inf": ({"x_train": np.array([[0, 1], [2, np.inf]]), "y_train": np.arange(2)}, "x_train, row 1, column 1"),
    "no rows": ({"x_train": np.zeros((0, 2)), "y_train": np.zeros(0, int)}, "found shape (0, 2)"),
    "one class": ({"x_train": np.zeros((9, 2)), "y_train": np.zeros(9, int)}, "two classes or more"),
    "negative": ({"x_train": np.zeros((9, 2)), "y_train": np.arange(9) % 3 - 1}, "found -1"),
    "strange test label": (
        {"x_train": np.zeros((9, 2)), "y_train": np.arange(9) % 3, "x_test": np.zeros((1, 2)), "y_test": np.array([7])},
        "found also 7",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_bad_file_is_one_line_and_exit_2(capsys, name):
    content, words = TABLES[name]
    Path(name).write_bytes(content)
    target = ["--target", "y"] if name.endswith(".csv") else []
    assert words in failing(capsys, ["train", "--data", name, *target])
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ARRAYS)
def test_bad_arrays_are_one_line_and_exit_2(capsys, name):
    arrays, words = ARRAYS[name]
    np.savez("data.npz", **arrays)
    assert words in failing(capsys, ["train", "--data", "data.npz"])


def test_damaged_image_files_are_one_line_and_exit_2(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JBP_DATA_DIR", str(tmp_path))
    for content, words in ((b"", "empty file"), (b"\0\0\x08", "expected an IDX file"), (b"\x1f\x8b\x08", "gzip")):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
        assert words in failing(capsys, ["train", "--data", "mnist"])
    images = b"\0\0\x08\x03" + b"\0\0\0\x01" * 3 + b"\x05"
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    assert "SHA-256" in failing(capsys, ["train", "--data", "mnist"])


def test_a_loss_for_labels_is_refused_for_values(capsys):
    rows = "\n".join(f"{i},{i / 7}" for i in range(20))
    Path("t.csv").write_text(f"a,y\n{rows}\n")
    message = failing(capsys, ["train", "--data", "t.csv", "--target", "y", "--loss", "cross_entropy"])
    assert "expected a loss for values" in message


CONFIGS = [
    ("{", "expected a JSON file"),
    ("[]", "expected a JSON object, found list"),
    ('{"epoch": 3}', "unknown option 'epoch'; did you mean 'epochs'?"),
    ('{"epochs": "3"}', "epochs must be a whole number, but is '3'"),
    ('{"out": "x"}', "unknown option 'out'"),
]


@pytest.mark.parametrize(("content", "words"), CONFIGS)
def test_a_bad_config_is_one_line_and_exit_2(capsys, content, words):
    Path("c.json").write_text(content)
    message = failing(capsys, ["train", "--config", "c.json"])
    assert "c.json" in message
    assert words in message


def test_an_output_folder_in_use_is_refused_and_left_alone(capsys):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    assert "exists already" in failing(capsys, ["train", "--out", "mine"])
    assert "overwrite replaces only the folder of a jbp run" in failing(
        capsys, ["train", "--out", "mine", "--overwrite"]
    )
    assert "found a file in the way" in failing(capsys, ["train", "--out", "mine/thesis.txt"])
    assert "is a file" in failing(capsys, ["train", "--out", "mine/thesis.txt/run"])
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.txt"]


def test_an_output_folder_that_cannot_be_made(capsys, monkeypatch):
    def read_only(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert "but Read-only file system" in failing(capsys, ["train", "--out", "run", "--epochs", "1"])
    assert "but Read-only file system" in failing(capsys, ["train", "--epochs", "1"])


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_from_the_start(capsys, monkeypatch):
    monkeypatch.setattr("os.fsync", full)
    message = failing(capsys, ["train", "--out", "run"], status=1)
    assert "config.json: could not be written: No space left on device" in message
    assert not Path("run").exists()


def test_a_disk_that_fills_up_in_training_keeps_whole_lines(capsys, monkeypatch):
    to_json, rows = runs.to_json, []

    def write(content, **kwargs):
        if "train_loss" in content:
            rows.append(content)
            if len(rows) == 2:
                full()
        return to_json(content, **kwargs)

    monkeypatch.setattr(runs, "to_json", write)
    message = failing(capsys, ["train", "--out", "run", "--net", "8 relu", "--epochs", "3", "--quiet"], status=1)
    assert "metrics.jsonl: could not be written: No space left on device" in message
    assert "kept in run" in message
    assert [json.loads(line)["epoch"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [1]


def test_a_disk_that_is_full_at_the_end_keeps_the_metrics(capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "save", lambda path, *args: full_at(path))

    def full_at(path):
        raise files.cannot_write(path, OSError(errno.ENOSPC, "No space left on device"))

    message = failing(capsys, ["train", "--out", "run", "--net", "8 relu", "--epochs", "2", "--quiet"], status=1)
    assert "params.safetensors: could not be written: No space left on device" in message
    assert sorted(p.name for p in Path("run").iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]


DIVERGING = ["--net", "64 relu", "--loss", "mean_squared_error", "--optimizer", "sgd", "--learning-rate", "1e20"]


def test_a_run_that_diverges_says_at_which_step_and_exits_1(capsys):
    message = failing(capsys, ["train", *DIVERGING, "--out", "run", "--quiet"], status=1)
    assert "the loss became non-finite at step " in message
    assert message.endswith(
        "kept in run: config.json (the options), params.safetensors (the parameters), summary.json (what came out)"
    )
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["stop_reason"] == "diverged"
    assert f"step {summary['diverged_at_step']}:" in message
    assert "test_loss" not in summary
    assert cli.main(["show", "run"]) == 0


def test_what_fails_before_the_first_step_leaves_no_folder(monkeypatch, capsys):
    def out_of_memory(*args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 100 bytes.")

    monkeypatch.setattr("jbp.cli.training.fit", out_of_memory)
    assert "not enough memory" in failing(capsys, ["train", "--out", "run"], status=1)
    assert not Path("run").exists()
