"""Layers of one's own: nets in a file that the user names, and run folders that hold their names and fields."""

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbp
from jbp import checkpoint, cli, data, own, runs
from jbp.data import Standardizer

LAYERS = '''
from dataclasses import dataclass
import jax.numpy as jnp
import jbp

print("printed while it is imported")

@dataclass(frozen=True)
class Gain(jbp.Layer):
    """y = g∘x."""
    start: float = 1.0
    inner: tuple = (2, "text")

    def init(self, key, shape):
        return {"gain": jnp.full(shape, self.start)}, shape

    def forward(self, params, x, key):
        return params["gain"] * x, x

    def backward(self, params, saved, delta):
        gain = params["gain"]
        return gain * delta, {"gain": jbp.Scale.of(saved, delta, gain.shape)}

@dataclass(frozen=True)
class Small(jbp.layers.initializers.Initializer):
    by: float

    def __call__(self, key, shape):
        return self.by * jbp.layers.initializers.he_normal(key, shape)

first = jbp.Dense(8, weight_init=Small(0.5))
net = jbp.serial(jbp.Flatten(), first, Gain(0.5, inner=(3, "other")), jbp.relu, jbp.Dense(10))

def make():
    return net
'''
LOSS = jbp.losses.softmax_cross_entropy


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(LAYERS)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a net from a file, and the file."""
    folder = tmp_path_factory.mktemp("own")
    path = folder / "mine.py"
    path.write_text(LAYERS)
    cli.Train(net=f"{path}:net", epochs=1, quiet=True, out=folder / "run")()
    return folder / "run", path


def one_line(capsys, words, status=2):
    assert cli.main([str(word) for word in words]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jbp: error: ")
    return line


# ── A net in a file ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["net", "make"])
def test_a_net_or_a_function_that_makes_one_trains(file, name, capsys):
    words = ["train", "--net", f"{file}:{name}", "--epochs", "1", "--out", "run", "--json", "--quiet"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["parameters"] == 64 * 8 + 8 + 8 + 8 * 10 + 10  # and what the file prints is not among it
    assert err in ("printed while it is imported\n", "")


def test_the_summary_and_the_config_name_the_file(trained):
    folder, path = trained
    config = json.loads((folder / "config.json").read_text())
    assert config["net"] == f"{path}:net"
    assert json.loads((folder / "summary.json").read_text())["net"] == f"{path}:net"


def test_a_file_with_an_odd_name_and_a_relative_path(file, monkeypatch):
    folder = file.parent / "meine Schichten ü"
    folder.mkdir()
    (folder / "näh er.py").write_text(
        "import beside\nnet = beside.made()\ndef later():\n    from beside import made\n    return made()"
    )
    (folder / "beside.py").write_text("import jbp\ndef made(): return jbp.serial(jbp.Flatten(), jbp.Dense(10))")
    found = own.net("meine Schichten ü/näh er.py:net")
    assert found == own.net("meine Schichten ü/näh er.py:later") == jbp.serial(jbp.Flatten(), jbp.Dense(10))
    assert str(folder) not in sys.path
    sys.modules.pop("beside")


@pytest.mark.parametrize(
    ("text", "is_named"),
    [
        ("mine.py:net", True),
        (r"C:\nets\mine.py:net", True),
        ("my nets/mine.py:net", True),
        ("mine.py", True),
        ("mine.py:", True),
        ("128 relu dropout:0.2", False),
        ("step:triangle:0.5", False),
        ("", False),
    ],
)
def test_what_is_a_file_and_what_is_a_line_of_layers(text, is_named):
    assert own.is_named(text) == is_named
    if text.endswith("net"):
        assert own.parts(text) == (text.removesuffix(":net"), "net")


WRONG = {
    "no name": ("{file}", "", "expected path/to/file.py:NAME, got"),
    "empty name": ("{file}:", "", "expected path/to/file.py:NAME, got"),
    "no file": ("nowhere.py:net", "", "nowhere.py: expected a file, found nothing there"),
    "folder": ("{folder}/x.py:net", "", "expected a file, found nothing there"),
    "no such name": ("{file}:nett", "", "there is no 'nett' in it; did you mean 'net'?"),
    "nothing near": ("{file}:zzz", "", "there is no 'zzz' in it; its nets are first, net"),
    "no layer": ("{file}:wrong", "wrong = 3", "expected a net (a layer, such as jbp.serial(...) makes) or a function"),
    "makes none": ("{file}:wrong", "def wrong(): return 3", "that makes one, found a int"),
    "needs arguments": ("{file}:Small", "", "but Small needs by: name a function that calls it"),
    "fails when called": ("{file}:wrong", "def wrong():\n 1 / 0",
                          "failed: ZeroDivisionError: division by zero (line {last})"),
    "syntax": ("{file}:net", "def (:", "could not be imported: SyntaxError: invalid syntax (line {last})"),
    "import": ("{file}:net", "import nothing_there", "imported: ModuleNotFoundError: No module named 'nothing_there' "
               "(line {last})"),
    "fails": ("{file}:net", "jbp.Dense(0)", "but is 0 (line {last})"),
    "exits": ("{file}:net", "raise SystemExit(3)", "imported: SystemExit: 3 (line {last})"),
    "outputs": ("{file}:wrong", "wrong = jbp.serial(jbp.Flatten(), jbp.Dense(3))", "outputs of shape (10,) for these "
                "data, got (3,) for examples of shape (8, 8): put jbp.Dense(10) last"),
    "not flat": ("{file}:wrong", "wrong = jbp.Dense(10)", "got (8, 10) for examples of shape (8, 8): put jbp.Flatten() "
                 "first, and jbp.Dense(10) last"),
    "forward fails": ("{file}:wrong", "class Bad(Gain):\n def forward(self, params, x, key):\n  return x.nothing, ()\n"
                      "wrong = Bad()", "wrong fails on examples of shape (8, 8): AttributeError: "),
    "cannot be kept": ("{file}:wrong", "@dataclass(frozen=True)\nclass Odd(jbp.Dense):\n  f: object = len\nwrong = "
                       "jbp.serial(jbp.Flatten(), Odd(10))", "expected the fields of layers to be numbers"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_the_file_is_one_line(file, capsys, kind):
    text, more, message = WRONG[kind]
    file.write_text(LAYERS.replace("print(", "str(") + more)
    lines = len(file.read_text().splitlines())
    line = one_line(capsys, ["train", "--net", text.format(file=file, folder=file.parent), "--out", "run"])
    assert message.format(last=lines) in line
    assert kind != "forward fails" or line.endswith(f"(line {lines - 1})")
    assert not Path("run").exists()


def test_options_of_a_line_of_layers_are_refused_beside_a_whole_net(file, capsys):
    for option, value in (("--init", "he_normal"), ("--bias-init", "standard_normal"), ("--output-activation", "tanh")):
        line = one_line(capsys, ["train", "--net", f"{file}:net", option, value])
        assert f"{option[2:].replace('-', '_')} is for a line of layers: leave it out" in line


# ── A file is run only when it is named ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:.*it was edited, or is damaged")
def test_a_run_folder_never_runs_a_file_and_says_what_to_give(trained, tmp_path, capsys):
    folder, path = tmp_path / "run", tmp_path / "mine.py"
    shutil.copytree(trained[0], folder)
    config = json.loads((folder / "config.json").read_text()) | {"net": f"{path}:net"}
    (folder / "config.json").write_text(json.dumps(config))
    path.write_text(LAYERS + "\nfrom pathlib import Path\nPath('was_run').touch()\n")
    np.savez("x.npz", x=np.zeros((1, 8, 8)))
    for words in (["predict", folder, "x.npz"], ["trace", folder]):
        line = one_line(capsys, words)
        assert "the net has layers that are not jbp's, " in line and "Gain" in line and "Small" in line
        assert "layers='mine.py' or --layers mine.py" in line
    line = one_line(capsys, ["train", "--config", folder / "config.json"])
    assert f"the net is in a file, {path}:net, which is only run when you name it yourself" in line
    with pytest.raises(checkpoint.MissingLayers, match="Gain"):
        jbp.load(folder)
    assert cli.main(["show", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "test accuracy" in out and "the layers are not shown" in err and "--layers mine.py" in err
    assert cli.main(["compare", str(folder), str(folder)]) == 0
    assert not Path("was_run").exists()
    jbp.load(folder, layers=path)
    assert Path("was_run").exists()


def test_every_command_reads_the_run_once_the_file_is_named(trained, capsys, monkeypatch):
    folder, path = trained
    monkeypatch.setenv("COLUMNS", "120")
    x, y = data.load("digits", "test")
    np.savez("x.npz", x=x[:3])
    assert cli.main(["show", str(folder), "--layers", str(path)]) == 0
    assert "Gain(start=0.5, inner=(3, 'other'))" in capsys.readouterr().out
    assert cli.main(["predict", str(folder), "x.npz", "--layers", str(path)]) == 0
    assert capsys.readouterr().out.count("\n") == 4
    found = cli.Trace(run=folder, example=2, layers=path)()
    assert next(row for row in found.rows if row.symbol == "t").value == y[2]
    again = cli.Train.from_config(folder / "config.json", net=f"{path}:net", quiet=True, out="again")()
    assert (again.folder / "params.safetensors").read_bytes() == (folder / "params.safetensors").read_bytes()


def test_layers_are_a_file_a_module_or_the_classes(trained):
    folder, path = trained
    spec = importlib.util.spec_from_file_location("mine_of_a_test", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["mine_of_a_test"] = module
    try:
        spec.loader.exec_module(module)
        by_file = jbp.load(folder, layers=path)
        assert type(by_file.net.layers[2]) is module.Gain  # it is imported already: the same classes  # type: ignore
    finally:
        del sys.modules["mine_of_a_test"]
    x, _ = data.load("digits", "test")
    for layers in (module, [module.Gain, module.Small], [path], str(path)):
        run = jbp.load(folder, layers=layers)
        np.testing.assert_array_equal(run.predict(x[:5]), by_file.predict(x[:5]))
        assert repr(run.loss) == "softmax_cross_entropy"
    assert jbp.load(folder, layers=module).net == module.net
    assert jbp.load(folder, layers=str(path)).net == jbp.load(folder, layers=path).net  # unchanged, so not run again
    for wrong in (3, [3], jbp.Dense(3), object):
        with pytest.raises(ValueError, match="layers must be a Python file, a module or classes of layers"):
            jbp.load(folder, layers=wrong)


CHANGED = {
    "a field more": ('inner: tuple = (2, "text")', "inner: tuple = ()\n    more: int = 0",
                     "Gain has changed: expected a class with the fields start, inner, .* found start, inner, more"),
    "a field less": ("    by: float\n", "    by = 1.0\n", "Small has changed: .* the fields by, .* found none"),
    "another name": ("Gain", "Gains", "Gain .*; what was named has only Gains, Small"),
    "other parameters": ("jnp.full(shape, ", "jnp.full((3,), ", r"expected a parameter of shape \(3,\) at "
                         r"params\[2\]\['gain'\], found shape \(8,\)"),
    "parameters of other names": ('"gain": jnp', '"g": jnp', r"expected a parameter of shape \(8,\) at "
                                  r"params\[2\]\['g'\], found none"),
    "two of one name": ("@dataclass(frozen=True)\nclass Small", "Old = Gain\nclass Gain(jbp.Dense): ...\n"
                        "@dataclass(frozen=True)\nclass Small", "expected one class Gain .* found 2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGED)
def test_a_class_that_has_changed_is_refused(trained, file, kind):
    old, new, message = CHANGED[kind]
    assert old in LAYERS
    file.write_text(LAYERS.partition("\nfirst =")[0].replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        jbp.load(trained[0], layers=file)
    assert "\n" not in str(caught.value) and str(trained[0]) in str(caught.value)


# ── jbp.save ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Twice(jbp.Layer):
    """Twice the input, and a loss of the same file's."""

    by: float = 2.0

    def init(self, key: Any, shape: Any) -> Any:
        return (), shape

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        return self.by * x, ()

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        return self.by * delta, ()


@dataclass(frozen=True, repr=False)
class Fourth(jbp.losses.Loss):
    """Σ (p − y)⁴."""

    def value(self, output: Any, target: Any) -> Any:
        return ((output - target) ** 4).sum()

    def delta(self, output: Any, target: Any) -> Any:
        return 4 * (output - target) ** 3


NET = jbp.serial(jbp.Dense(4), Twice(0.5), jbp.tanh, jbp.Dense(2))


@pytest.fixture(scope="module")
def fitted():
    x = np.random.default_rng(0).normal(size=(20, 3))
    return x, jbp.fit(NET, Fourth(), jbp.optim.sgd(0.01), (x, x[:, :2]), epochs=3, batch_size=10)


def test_a_saved_net_is_read_by_every_command(fitted, capsys):
    x, fit = fitted
    x_scale, y_scale = Standardizer.fit(x + 5), Standardizer.fit(100 * x[:, :2])
    folder = jbp.save(
        "run", NET, fit.params, loss=Fourth(), input_shape=(3,), fit=fit, features=("a", "b", "c"), targets=("u", "v"),
        x_scale=x_scale, y_scale=y_scale, figures={"test_rmse": 0.25, "hours": 3}, settings={"rate": 0.01},
    )  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "metrics.jsonl", "params.safetensors", "summary.json",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert tuple(rows) == fit.history

    run = jbp.load("run", layers=__file__)
    assert run.net == NET and run.loss == Fourth() and run.targets == ("u", "v")
    wanted = np.asarray(jbp.apply(NET, fit.params, jnp.asarray(x_scale(x), float))) * y_scale.scale + y_scale.mean
    np.testing.assert_allclose(run.predict(x), wanted, rtol=1e-5, atol=1e-5)

    assert cli.main(["show", "run", "--layers", __file__]) == 0
    out = capsys.readouterr().out
    assert (
        "Twice(by=0.5)" in out and "test root mean squared error" in out and "hours" in out and "all epochs done" in out
    )
    Path("new.csv").write_text("c,a,b\n0.3,0.1,0.2\n")
    assert cli.main(["predict", "run", "new.csv", "--layers", __file__]) == 0
    names, values = capsys.readouterr().out.splitlines()
    assert names == "u,v"
    np.testing.assert_allclose([float(v) for v in values.split(",")], run.predict([[0.1, 0.2, 0.3]])[0], rtol=1e-6)

    found = cli.Trace(run="run", layers=__file__, x="0.1,0.2,0.3", y="1,2")()
    shown = {row.symbol: row.value for row in reversed(found.rows)}
    np.testing.assert_allclose(shown["x"], x_scale(np.array([[0.1, 0.2, 0.3]]))[0], rtol=1e-6)
    np.testing.assert_allclose(shown["t"], (np.array([1.0, 2.0]) - y_scale.mean) / y_scale.scale, rtol=1e-6)
    capsys.readouterr()

    jbp.save("other", NET, fit.params, loss=Fourth(), input_shape=(3,), settings={"rate": 0.1}, figures={"hours": 4})
    settings, results = cli.Compare(runs=("run", "other"))()
    assert settings == {"rate": [0.01, 0.1]}
    assert results["hours"] == [3, 4] and results["test_rmse"] == [0.25, None] and results["epochs"] == [3, None]
    line = one_line(capsys, ["train", "--config", "run/config.json"]).replace("\n", " ")
    assert "found one of jbp.save, which does not say how it was trained" in line


def test_a_saved_net_of_classes_gives_probabilities():
    net = jbp.serial(Twice(), jbp.Dense(3))
    params, _ = net.init(jax.random.key(0), (2,))
    jbp.save("run", net, params, loss=LOSS, input_shape=(2,), classes=("a", "b", "c"))
    run = jbp.load("run", layers=[Twice])
    assert (run.task, run.classes, run.output_kind) == ("classification", ("a", "b", "c"), "probability")
    np.testing.assert_allclose(run.predict(np.ones((4, 2))).sum(1), 1, rtol=1e-6)
    jbp.save("run", net, params, loss=LOSS, input_shape=(2,), overwrite=True)
    assert jbp.load("run", layers=[Twice]).classes == ("0", "1", "2")
    assert cli.Trace(run="run", layers=__file__, y="2")().rows


@dataclass(frozen=True)
class Unfit(Twice):
    """Keeps something else than it was given."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", 2 * self.by)


class Bare(jbp.Layer):
    """No dataclass."""

    def __init__(self, by: float):
        self.by = by

    init, forward, backward = Twice.init, Twice.forward, Twice.backward


@dataclass(frozen=True)
class Named(Twice):
    """Twice, by a function."""

    by: Any = 2.0

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        return x, ()


def same_name() -> type:
    @dataclass(frozen=True)
    class Twice(jbp.Dense): ...

    return Twice


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "changes when made": (
        jbp.serial(Unfit(), jbp.Dense(3)),
        {},
        "expected layers that their fields make again, got Unfit",
    ),
    "no dataclass": (jbp.serial(Bare(2.0), jbp.Dense(3)), {}, "expected Bare to be a frozen dataclass"),
    "one name twice": (jbp.serial(Twice(), same_name()(3)), {}, "each with a class Twice: rename one"),
    "a field that is a function": (jbp.serial(Named(len), jbp.Dense(3)), {}, "got <built-in function len>"),
    "classes": (jbp.Dense(3), {"classes": ("a", "b")}, "classes must be 3 names, one for each output, but are a, b"),
    "targets": (jbp.Dense(3), {"targets": ("a",), "loss": Fourth()}, "targets must be 3 names"),
    "settings": (jbp.Dense(3), {"settings": {"f": len}}, "figures and settings must be numbers, text"),
    "sequence": (jbp.Dense(3), {"input_shape": (5, 2)}, r"outputs of shape \[k\] for one example, got \(5, 3\)"),
    "no net": (3, {}, "the net must be a layer"),
    "no loss": (jbp.Dense(3), {"loss": "mse"}, "loss must"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_saved_is_refused_and_nothing_is_written(kind):
    net, options, message = REFUSED[kind]
    shape = options.get("input_shape", (2,))
    params = net.init(jax.random.key(0), shape)[0] if isinstance(net, jbp.Layer) else ()
    with pytest.raises(ValueError, match=message):
        jbp.save("run", net, params, **({"loss": LOSS, "input_shape": shape} | options))
    assert not Path("run").exists()


def test_a_folder_in_use_is_not_overwritten_unasked():
    net = jbp.Dense(2)
    params, _ = net.init(jax.random.key(0), (2,))
    keep: dict[str, Any] = {"loss": LOSS, "input_shape": (2,)}
    jbp.save("run", net, params, **keep)
    with pytest.raises(ValueError, match="exists already"):
        jbp.save("run", net, params, **keep)
    Path("thesis").mkdir()
    Path("thesis/years.txt").write_text("of work")
    with pytest.raises(ValueError, match="replaces only the folder of a jbp run"):
        jbp.save("thesis", net, params, overwrite=True, **keep)


# ── Folders that are not whole ──────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_was_killed_says_so_at_every_command(trained, tmp_path, capsys):
    folder = tmp_path / "killed"
    shutil.copytree(trained[0], folder)
    for name in runs.FILES[1:]:
        (folder / name).unlink(missing_ok=True)
    assert cli.main(["show", str(folder)]) == 0
    assert "the run was cut short" in capsys.readouterr().out
    for words in (["predict", folder, "digits"], ["trace", folder]):
        assert "found one that was cut short before it was written; train again" in one_line(capsys, words)


@pytest.mark.parametrize("text", ['{"epochs": 3}', '{"confusion": 3, "classes": 2}', '{"spread": 1}', "{"])
def test_a_summary_that_is_not_whole_is_one_line(trained, tmp_path, capsys, text):
    folder = tmp_path / "half"
    shutil.copytree(trained[0], folder)
    (folder / "summary.json").write_text(text)
    assert "summary.json: expected" in one_line(capsys, ["show", folder])


@pytest.mark.filterwarnings("ignore:.*has no sha256")
def test_runs_on_other_data_are_compared_with_a_word_about_it(trained, tmp_path, capsys):
    folder = trained[0]
    assert cli.main(["compare", str(folder), str(folder)]) == 0
    assert "different data" not in capsys.readouterr().out
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    summary = json.loads((other / "summary.json").read_text())
    del summary["sha256"]
    summary["examples"]["test"] = 7
    (other / "summary.json").write_text(json.dumps(summary))
    assert cli.main(["compare", str(folder), str(other)]) == 0
    assert "the runs have different data: their figures are not of the same examples" in capsys.readouterr().out
    del summary["examples"], summary["test_accuracy"]  # as a run of many seeds, whose means are compared
    spread = {"test_accuracy": {"mean": 0.25, "std": None, "runs": 1}}
    many = {"spread": spread, "runs": [{"epochs": 1, "stop_reason": "epochs"}], "seeds": "0:2", "diverged": 1}
    (other / "summary.json").write_text(json.dumps(summary | many))
    _, results = cli.Compare(runs=(str(folder), str(other)))()
    assert results["test_accuracy"][1] == 0.25 and "different data" not in capsys.readouterr().out


def test_a_run_of_before_losses_were_kept_is_read(trained):
    tree, about = checkpoint.load(trained[0] / "params.safetensors")
    del about["loss"]
    shutil.copytree(trained[0], "old")
    checkpoint.save("old/params.safetensors", tree, about)
    assert jbp.load("old", layers=trained[1]).loss is None
