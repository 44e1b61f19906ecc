"""A text on the command line: trained on, gone on with, shown; what is refused, in one line each."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jbp
from jbp import cli
from jbp.cli.text import build
from jbp.cli.textdata import load_text
from jbp.data import Vocabulary

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
WORDS = ["train", "--data", "fox.txt", "--net", "gpt:1:2:8", "--context", "8", "--batch-size", "4", "--steps", "6"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fox.txt").write_text(TEXT)


def summary_of(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / "summary.json").read_text())


def test_a_text_is_trained_on_and_gone_on_with(capsys):
    assert cli.main([*WORDS, "--evaluate-every", "3", "--warmup", "2", "--schedule", "cosine", "--clip-gradient", "1",
                     "--out", "run", "--watch", "3"]) == 0  # fmt: skip
    said = capsys.readouterr()
    assert (
        "880 characters, 28 of them different: the first 704 train, the next 88 validate, the last 88 test" in said.err
    )
    assert "test bits per character" in said.out and "6 (all steps done)" in said.out
    found = summary_of("run")
    assert (found["steps"], found["task"], found["net"]) == (6, "language", "gpt:1:2:8")
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "kind" not in row] == [3, 6]

    run = jbp.load("run")
    assert run.vocabulary is not None
    assert run.vocabulary == Vocabulary.of(TEXT) and run.input_shape == (8,) and run.task == "language"
    # The figures of the test part, from the net and the text itself.
    tokens = run.vocabulary.encode(TEXT)[792:]
    x, y = jbp.data.windows(tokens, 8, 8)
    p = run.predict(x[:])
    loss = -np.log(np.take_along_axis(p, y[:][..., None], -1)).mean()
    for name, wanted in (("loss", loss), ("bits_per_character", loss / np.log(2)), ("perplexity", np.exp(loss))):
        assert found[f"test_{name}"] == pytest.approx(wanted, rel=1e-5)
    assert p.shape == (len(x), 8, 28) and run.predict(x[:1][:, :3]).shape == (1, 3, 28)
    np.testing.assert_allclose(run.predict(x[:1][:, :3])[0], p[0, :3], rtol=1e-5)  # the net is causal

    assert cli.main(["generate", "run", "--prompt", "the ", "--length", "12", "--seed", "3", "--top-k", "5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("the ") and len(text.rstrip("\n")) <= 16 and set(text) <= {*TEXT}
    assert text.removesuffix("\n") in run.generate("the ", 12, seed=3, top_k=5)
    assert cli.main(["show", "run"]) == 0
    assert "Unembedding(28)" in capsys.readouterr().out
    assert cli.main(["compare", "run", "run"]) == 0
    assert "test_bits_per_character" in capsys.readouterr().out


def test_epochs_go_through_disjoint_windows_and_seeds_side_by_side(capsys):
    words = [*WORDS[:-2], "--quiet", "--epochs", "1"]
    assert cli.main([*words, "--out", "run"]) == 0
    assert summary_of("run")["examples"] == {"train": 87, "validation": 10, "test": 10} and "steps" not in summary_of(
        "run"
    )
    assert cli.main([*words, "--seeds", "0:2", "--out", "many"]) == 0
    spread = summary_of("many")["spread"]["test_bits_per_character"]
    assert spread["runs"] == 2
    assert summary_of("run")["test_bits_per_character"] == pytest.approx(
        summary_of("many")["runs"][0]["test_bits_per_character"], rel=1e-4
    )


def test_a_run_of_a_text_goes_on_to_the_same_bits():
    pytest.importorskip("orbax.checkpoint")
    words = [*WORDS, "--evaluate-every", "2", "--quiet", "--save-every", "2steps", "--optimizer", "sgd"]
    assert cli.main([*words, "--out", "whole"]) == 0
    assert cli.main([*words, "--out", "cut"]) == 0
    folder = Path("cut")
    newest = max((p for p in (folder / "checkpoints").iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    for path in sorted(newest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    newest.rmdir()
    for name in ("summary.json", "params.safetensors"):
        (folder / name).unlink()
    assert cli.main(["train", "--resume", "cut", "--quiet"]) == 0
    a, b = (jbp.load(name).params for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_line_of_layers_for_a_text():
    net = build("embed:8 positions residual( layernorm 24 attention:2 8 ) layernorm", 5, 4)
    params, shape = net.init(jax.random.key(0), (4,))
    assert shape == (4, 5)
    assert params[0]["weight"].shape == (5, 8) and params[1]["weight"].shape == (4, 8)
    assert build("gpt:2:1:4", 5, 4) == jbp.gpt(5, 4, 2, 1, 4)
    parts = load_text("fox.txt", 8, True)
    assert parts.validation is not None
    assert [len(part[0]) for part in (parts.train, parts.validation, parts.test())] == [696, 10, 10]


def test_a_net_in_a_file_reads_a_text_and_an_example_of_it_is_traced(capsys):
    Path("my.py").write_text("import jbp\nnet = jbp.gpt(28, 8, 1, 2, 8)\nnarrow = jbp.gpt(27, 8, 1, 2, 8)\n")
    given = [*WORDS, "--quiet", "--net"]
    assert cli.main([*given, "my.py:narrow", "--out", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a whole net, with outputs of shape (8, 28)" in line and "jbp.Unembedding(28) last" in line
    assert cli.main([*given, "my.py:net", "--out", "run"]) == 0
    assert cli.main(["generate", "run", "--length", "3"]) == 0
    run = jbp.load("run")
    assert run.net == jbp.gpt(28, 8, 1, 2, 8) and run.vocabulary is not None
    capsys.readouterr()
    found = cli.Trace(run="run", example=3)()
    x, y = (a[3] for a in jbp.data.windows(run.vocabulary.encode(TEXT)[792:], 8, 8))
    np.testing.assert_array_equal(next(row for row in found.rows if row.symbol == "x").value, x)
    np.testing.assert_array_equal(next(row for row in found.rows if row.symbol == "t").value, y)
    output = next(row for row in found.rows if row.symbol == "p").value
    np.testing.assert_allclose(output, jbp.apply(run.net, run.params, x[None])[0], rtol=1e-4, atol=1e-5)
    gradient = jbp.value_and_grad(run.net, run.loss)(run.params, x[None], y[None])[1]  # type: ignore[arg-type]
    table = [row.value for row in found.rows if np.shape(row.value) == (28, 8)]
    assert any(np.allclose(value, gradient[0]["weight"], rtol=1e-3, atol=1e-5) for value in table)
    assert cli.main(["trace", "run", "--example", "10"]) == 2
    assert "example must be from 0 to 9, for the test part has 10 examples" in capsys.readouterr().err


def test_a_run_saved_by_hand_writes_too(tmp_path):
    words = Vocabulary.of(TEXT)
    net = jbp.gpt(len(words), 8, 1, 2, 8)
    params = net.init(jax.random.key(0), (8,))[0]
    loss = jbp.losses.softmax_cross_entropy
    jbp.save(tmp_path / "run", net, params, loss=loss, input_shape=(8,), vocabulary=words)
    assert len(jbp.load(tmp_path / "run").generate("fox", 5)) == 8
    with pytest.raises(ValueError, match=r"scores \[t, 3\] of tokens \[t\]"):
        jbp.save(tmp_path / "a", net, params, loss=loss, input_shape=(8,), vocabulary=Vocabulary.of("abc"))
    classes = jbp.serial(jbp.Embedding(3, 4), jbp.Flatten(), jbp.Dense(2))
    params = classes.init(jax.random.key(0), (5,))[0]
    jbp.save(tmp_path / "b", classes, params, loss=loss, input_shape=(5,))
    whole = jbp.load(tmp_path / "b")
    x = np.asarray([[0, 1, 2, 1, 0]])
    np.testing.assert_allclose(whole.predict(x), jax.nn.softmax(jbp.apply(classes, params, x)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"whole numbers \[n, 5\]"):
        whole.predict(x.astype(float))
    with pytest.raises(ValueError, match="the run is of no text"):
        whole.generate("a", 3)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--task", "classification"], "task language is of a text"),
        (["--context", "88"], "the validation part, of 88 characters: windows of 88"),
        (["--context", "2000"], "the training part, of 704 characters: windows of 2000"),
        (["--context", "0"], "context"),
        (["--net", "64 relu"], "begins with embed:WIDTH or is gpt:LAYERS:HEADS:WIDTH"),
        (["--net", "gpt:1:2"], "expected gpt:LAYERS:HEADS:WIDTH"),
        (["--net", "gpt:1:3:8"], "the heads of gpt must divide its width"),
        (["--net", "embed:x 8"], "embed needs a width"),
        (["--net", "embed:8 postions"], "did you mean 'positions'"),
        (["--evaluate-every", "4"], "whole number of times evaluate_every, 4"),
        (["--warmup", "6"], "warmup must be fewer than the 6 steps"),
        (["--epochs", "3"], "expected one of epochs and steps"),
        (["--loss", "l2_loss"], "the loss of a text is softmax_cross_entropy"),
        (["--target", "a"], "target does not go with a text"),
        (["--private"], "windows that do not overlap: give epochs"),
        (["--clip-gradient", "0"], "clip_gradient must be a finite number above 0"),
        (["--data", "none.txt"], "none.txt"),
    ],
)
def test_what_does_not_go_with_a_text_is_one_line(words, said, capsys):
    assert cli.main([*WORDS, *words, "--quiet", "--out", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("run").exists()


def test_other_data_have_no_context_and_what_is_not_in_the_text_is_not_gone_on_with(capsys):
    assert cli.main(["train", "--context", "5"]) == 2
    assert "context is of a text" in capsys.readouterr().err
    assert cli.main(["train", "--task", "language"]) == 2
    assert "task language is of a text" in capsys.readouterr().err
    assert cli.main([*WORDS[:-1], "1", "--quiet", "--out", "run"]) == 0
    for words, said in (
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "THE"], "prompt: the text has characters that the vocabulary of 28 has not: 'E', 'H', 'T'"),
        (["--length", "0"], "length"),
        (["--temperature", "-1"], "temperature"),
        (["--top-k", "29"], "top_k must be at most the 28 tokens"),
    ):
        assert cli.main(["generate", "run", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    np.savez("x.npz", x=np.zeros((1, 8)))
    assert cli.main(["predict", "run", "x.npz"]) == 2
    assert "jbp generate goes on with" in capsys.readouterr().err
