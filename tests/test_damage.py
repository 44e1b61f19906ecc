"""The folder of a finished run, damaged: no command takes what has changed for what the run wrote, and all say so."""

import json
import shutil
import struct
import warnings

import numpy as np
import pytest
import safetensors.numpy

import jbp
from jbp import checkpoint, cli, runs, texts
from jbp.cli.options import TrainOptions

KINDS = ("flip", "truncate", "zero", "delete")
DAMAGES = 200


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a table of two classes, another of it, and the table."""
    folder = tmp_path_factory.mktemp("damage")
    rng = np.random.default_rng(0)
    rows = [f"{a:.4f},{b:.4f},{'right' if a > 0 else 'left'}" for a, b in rng.normal(size=(60, 2))]
    (folder / "table.csv").write_text("\n".join(["a,b,side", *rows]) + "\n")
    told = {"data": folder / "table.csv", "target": "side", "net": "3 tanh", "epochs": 2, "quiet": True}
    cli.Train(out=folder / "run", **told)()
    shutil.copytree(folder / "run", folder / "other")
    return folder / "run"


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def harm(path, kind, rng):
    """Damage a file, in a place and by an amount drawn at random."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data)))
    match kind:
        case "flip":
            data[at] ^= 1 << int(rng.integers(8))
        case "truncate":
            data = data[:at]
        case "zero":
            end = min(len(data), at + int(rng.integers(1, 65)))
            data[at:end] = bytes(end - at)
    if kind == "delete":
        path.unlink()
    else:
        path.write_bytes(data)


def damages(folder, every=1):
    """The folder, damaged in one file after another, each mended before the next: (what was done, the file)."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name in runs.FILES)
    for i in range(0, DAMAGES, every):
        path, kind = files[i % len(files)], KINDS[i // len(files) % len(KINDS)]
        before = path.read_bytes()
        harm(path, kind, np.random.default_rng(i))
        try:
            if not path.exists() or path.read_bytes() != before:
                yield f"{kind} {path.name}, number {i}", path
        finally:
            path.write_bytes(before)


def test_no_damage_gives_other_predictions_or_options_without_a_word(copy):
    x = np.random.default_rng(1).normal(size=(7, 2))
    whole = jbp.load(copy)
    predicted, seen = whole.predict(x), []
    for what, path in damages(copy):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                loaded = jbp.load(copy)
            except ValueError as error:
                assert str(path) in str(error) and "\n" not in str(error), what
                assert path.name == texts.PARAMS and "whole: config.json (the options" in str(error), what
                seen.append("refused")
                continue
        np.testing.assert_array_equal(loaded.predict(x), predicted, what, strict=True)
        assert path.name != texts.PARAMS, what
        if said:
            assert all(str(path) in str(warning.message) for warning in said), what
            seen.append("warned of")
        else:
            assert loaded.config == whole.config, what
    assert seen.count("refused") >= 30
    assert seen.count("warned of") >= 60


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("command", ["show", "predict", "compare", "trace"])
def test_no_command_ends_in_a_traceback_or_prints_other_figures_without_a_word(run, command, capsys):
    words = {
        "show": ["show", run], "compare": ["compare", run, run.parent / "other"], "trace": ["trace", run],
        "predict": ["predict", run, run.parent / "table.csv"],
    }[command]  # fmt: skip

    def result():
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    *fine, quiet = result()
    assert fine[0] == 0 and not quiet
    refused = 0
    for what, path in damages(run, every=11 if command == "trace" else 3):
        status, out, err = result()
        for line in err.splitlines():
            assert line.startswith(("jbp: error: ", "jbp: warning: ")), (what, err)
        assert not err or str(path) in err, (what, err)
        assert err.count("jbp: error: ") == (status != 0) and status in (0, 2), (what, err)
        if not err or (command == "predict" and not status):
            assert [status, out] == fine, what
        refused += status
    assert refused >= 4


def test_show_prints_what_is_whole_and_says_what_is_not(copy, capsys):
    summary = copy / texts.SUMMARY
    summary.write_text(summary.read_text().replace('"epochs": 2', '"epochs": 3'))
    assert cli.main(["show", str(copy)]) == 2
    out, err = capsys.readouterr()
    assert "multiply-adds" in out and "accuracy" not in out
    assert err == (
        f"jbp: error: {summary}: expected what the run wrote, found something else; if you changed it, remove its "
        "sha256; whole: config.json (the options, for jbp train --config), metrics.jsonl (the figures of every "
        "epoch), params.safetensors (the net, for jbp predict and jbp.load)\n"
    )
    (copy / texts.PARAMS).unlink()
    assert cli.main(["show", str(copy)]) == 2
    assert "summary.json: expected what the run wrote" in capsys.readouterr().err
    assert cli.main(["predict", str(copy), "digits"]) == 2
    assert f"jbp: error: {summary}: expected what the run wrote" in capsys.readouterr().err


def test_each_lost_file_is_named(copy, capsys):
    for name in (texts.METRICS, texts.PARAMS, texts.CONFIG):
        data = (copy / name).read_bytes()
        (copy / name).unlink()
        assert cli.main(["show", str(copy)]) == 2
        out, err = capsys.readouterr()
        assert f"{copy / name}: is gone, though summary.json names it; whole: " in err
        assert "accuracy" in out
        (copy / name).write_bytes(data)
    (copy / texts.PARAMS).unlink()
    with pytest.raises(ValueError, match=r"params\.safetensors: is gone, though summary\.json names it; whole: config"):
        jbp.load(copy)
    (copy / texts.SUMMARY).unlink()
    with pytest.raises(ValueError, match="cut short before it was written"):
        jbp.load(copy)


def test_parameters_of_another_run_are_not_shown_as_this_ones(copy, capsys):
    tree, about = checkpoint.load(copy / texts.PARAMS)
    tree["params"][0]["bias"] = tree["params"][0]["bias"] + 1
    checkpoint.save(copy / texts.PARAMS, tree, about)
    assert cli.main(["show", str(copy)]) == 2
    assert f"{copy / texts.PARAMS}: holds something else than the run wrote" in capsys.readouterr().err


def test_options_may_be_edited_and_whoever_shows_them_says_so(copy, run):
    path = copy / texts.CONFIG
    path.write_text(path.read_text().replace('"epochs": 2', '"epochs": 1'))
    assert TrainOptions.from_config(path).epochs == 1
    words = r"config\.json: holds something else than the run wrote, .*: it was edited, or is damaged"
    with pytest.warns(UserWarning, match=words):
        settings, _ = cli.Compare((str(copy), str(run)))()
    assert settings["epochs"] == [1, 2]
    with pytest.warns(UserWarning, match=words):
        cli.Show(copy)()
    with pytest.warns(UserWarning, match=words):
        assert jbp.load(copy).config["epochs"] == 1


def test_a_summary_without_digests_is_read_with_a_word(copy):
    path = copy / texts.SUMMARY
    summary = json.loads(path.read_text())
    assert summary.pop("sha256").keys() == {texts.CONFIG, texts.METRICS, texts.PARAMS, texts.SUMMARY}
    path.write_text(json.dumps(summary))
    with pytest.warns(UserWarning, match=r"summary\.json: has no sha256, as of an older jbp"):
        assert cli.Show(copy)() == summary


SPREAD = {
    "spread": {"test_accuracy": {"mean": 0.5, "std": None, "runs": 1}}, "seeds": "0:2",
    "runs": [{"epochs": 3, "stop_reason": "epochs"}], "diverged": 1,
    "net": "8 relu", "parameters": 7, "loss": "softmax_cross_entropy", "seconds": 3.5,
}  # fmt: skip
PRIVATE = {"epsilon": 3.0, "delta": 1e-5, "figures": ["mine"], "mine": 3}


@pytest.mark.filterwarnings("ignore:.*has no sha256")
@pytest.mark.parametrize("more", [PRIVATE, SPREAD], ids=["one run", "seeds"])
def test_every_field_of_a_summary_is_checked_for_its_type(copy, more, capsys):
    path = copy / texts.SUMMARY
    summary = SPREAD if more is SPREAD else json.loads(path.read_text()) | PRIVATE
    summary.pop("sha256", None)
    (copy / texts.PARAMS).unlink()
    refused = set()
    for name in summary:
        for value in (None, "[/x]", [3], {"a": [3]}, -1, []):
            path.write_text(json.dumps(summary | {name: value}))
            for words in (["show", copy], ["compare", copy, copy]):
                status = cli.main([str(word) for word in words])
                err = capsys.readouterr().err
                assert status == 0 or (err.count("\n") == 1 and f"{path}: expected " in err), (name, value, err)
                refused |= {name} if status else set()
    unread = {"seed", "task", "data", "standardized", "bounds", "device", "mesh", "mine"}
    unread |= {"seconds", "examples_per_second"}
    assert refused == summary.keys() - unread


def test_every_option_of_a_config_is_checked_for_its_type(copy):
    path = copy / texts.CONFIG
    options = json.loads(path.read_text())
    for name in options:
        for value in ([3], {"a": 3})[: 2 if name == "jbp" else 1]:
            path.write_text(json.dumps(options | {name: value}))
            if name == "jbp":
                with pytest.raises(ValueError, match=r"config\.json: expected text as jbp, found "):
                    texts.read_config(copy, {})
            else:
                with pytest.raises(ValueError, match=rf"config\.json: {name} must be "):
                    TrainOptions.from_config(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"epoch": 1}\n[1]\n', "expected a row as JSON in line 2, found list"),
        (b'{"epoch": 1}\n\xff\n', "expected a row as JSON in line 2, found something else"),
        (b'{"epoch": "1"}\n', "expected a number as epoch, found '1' in line 1"),
        (b'{"epoch": 1, "train_loss": []}\n', r"expected a number or null as train_loss, found \[\] in line 1"),
        (b'{"epoch": ' + b"[" * 10**5 + b"\n", "expected a row as JSON in line 1, found something else"),
        (b'{"kind": "watch", "step": 3, "layers": {"0 #1": {"h": "x"}}}\n', "as layers.0 #1.h, found 'x' in line 1"),
        (b'{"kind": "watch", "step": 3, "noise_scale": "x"}\n', "as noise_scale, found 'x' in line 1"),
    ],
)
def test_a_line_of_figures_that_is_damaged_is_named(tmp_path, data, words):
    (tmp_path / texts.METRICS).write_bytes(b'{"epoch": 1, "train_loss": null, "more": [3]}\n{"epo')
    assert texts.read_rows(tmp_path, {}) == [{"epoch": 1, "train_loss": None, "more": [3]}]
    (tmp_path / texts.METRICS).write_bytes(data)
    with pytest.raises(ValueError, match=words):
        texts.read_rows(tmp_path, {})


# ── The file of parameters ──────────────────────────────────────────────────────────────────────────────────────────

TREE = {"a": (np.arange(3.0, dtype=np.float32), np.array([7], np.int32)), "b": [np.float32(2.5), None]}


def test_a_bit_that_is_flipped_anywhere_is_seen(tmp_path):
    """At every byte of the file; where it is still read, it is the tree that was saved."""
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TREE, {"why": "a test"})
    whole, read = path.read_bytes(), []
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        try:
            tree, about = checkpoint.load(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        read.append(at)
        assert about == {"why": "a test"}
        for ours, theirs in zip((*tree["a"], *tree["b"][:1]), (*TREE["a"], TREE["b"][0]), strict=True):
            np.testing.assert_array_equal(ours, theirs, strict=True)
    assert len(read) < 8  # the spaces that fill up the header


def rewritten(path, change):
    """The same arrays, with a header that says other things."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"why\\": \\"a test', '"why\\": \\"a tess'),
        ('"dtype": "F32", "shape": [3]', '"dtype": "I32", "shape": [3]'),
        ('"shape": [3]', '"shape": [3, 1]'),
        ('"list\\": [', '"tuple\\": ['),
        ('"jbp-2"', '"jbp-1"'),
    ],
)
def test_names_shapes_dtypes_tree_and_words_are_in_the_digest(tmp_path, old, new):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TREE, {"why": "a test"})

    def change(header):
        text = json.dumps(header)
        assert old in text
        return json.loads(text.replace(old, new))

    rewritten(path, lambda header: header)
    checkpoint.load(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match="expected the numbers that were saved, found others"):
        checkpoint.load(path)


def test_a_file_of_before_digests_is_read_and_one_that_has_lost_its_digest_is_not(tmp_path):
    path = tmp_path / "a.safetensors"
    about = {"tree": {"dict": {"w": "w"}}, "metadata": {"why": "old"}}
    safetensors.numpy.save_file({"w": np.arange(3.0)}, path, {"jbp-1": json.dumps(about)})
    tree, metadata = checkpoint.load(path)
    np.testing.assert_array_equal(tree["w"], np.arange(3.0))
    assert metadata == {"why": "old"}
    safetensors.numpy.save_file({"w": np.arange(3.0)}, path, {checkpoint.FORMAT: json.dumps(about)})
    with pytest.raises(ValueError, match="expected a tree of arrays, found a damaged one"):
        checkpoint.load(path)
    safetensors.numpy.save_file({"w": np.arange(3.0)}, path, {"jbp-3": json.dumps(about)})
    with pytest.raises(ValueError, match="of another program or version"):
        checkpoint.load(path)


def test_equal_trees_make_equal_files_in_any_order_of_bytes(tmp_path):
    for name, kind in (("a", "<f8"), ("b", ">f8")):
        checkpoint.save(tmp_path / name, {"w": np.arange(6.0).reshape(2, 3).astype(kind).T})
        np.testing.assert_array_equal(checkpoint.load(tmp_path / name)[0]["w"], np.arange(6.0).reshape(2, 3).T)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_trace_takes_no_damaged_parameters(tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    checkpoint.save(path, [{"weight": np.ones((2, 1)), "bias": np.zeros(1)}])
    words = ["trace", "--net", "", "--x", "1,2", "--y", "1", "--params", str(path)]
    assert cli.main(words) == 0
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)
    capsys.readouterr()
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith(f"jbp: error: {path}: expected the numbers that were saved, found others")


def test_a_run_of_facts_that_are_none_is_refused(copy):
    tree, about = checkpoint.load(copy / texts.PARAMS)
    for name, value in (("activation", "softmaw"), ("input_shape", ["a"]), ("classes", 3), ("task", "x"), ("net", [])):
        checkpoint.save(copy / texts.PARAMS, tree, about | {name: value})
        with pytest.raises(ValueError, match=rf"params\.safetensors: expected .* as {name}"):
            jbp.load(copy)


def test_a_killed_run_is_none_that_is_damaged(copy, capsys):
    for name in (texts.PARAMS, texts.SUMMARY, runs.CURVES):
        (copy / name).unlink(missing_ok=True)
    assert cli.main(["show", str(copy)]) == 0
    assert "the run was cut short" in capsys.readouterr().out
