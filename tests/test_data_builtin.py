"""Built-in sets: what is in them, where they are looked for, and what a wrong file or a dead mirror leads to."""

import ast
import gzip
import hashlib
import http.server
import sys
import threading
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from conftest import data_dir

import jbp.data
from jbp.data import builtin, idx, preparing


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def small_set(seed):
    """The four files of a set of 5 + 3 images, by name."""
    rng = np.random.default_rng(seed)
    return {
        "train-images-idx3-ubyte": idx_bytes(rng.integers(0, 256, (5, 28, 28))),
        "train-labels-idx1-ubyte": idx_bytes(rng.integers(0, 10, 5)),
        "t10k-images-idx3-ubyte": idx_bytes(rng.integers(0, 256, (3, 28, 28))),
        "t10k-labels-idx1-ubyte": idx_bytes(rng.integers(0, 10, 3)),
    }


SMALL = {"mnist": small_set(1), "fashion-mnist": small_set(2)}
TRAIN = "train-images-idx3-ubyte"


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Sets of a few images under the real names, an empty machine to find them on, and no network."""
    for name, files in SMALL.items():
        sha256 = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
        mirrors = ("https://one.invalid/", "https://two.invalid/")
        monkeypatch.setitem(builtin.IMAGE_SETS, name, builtin.ImageSet(sha256, mirrors, tuple("0123456789")))
    monkeypatch.setattr(builtin, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(builtin, "_retrieve", no_network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JBP_DATA_DIR", raising=False)
    return tmp_path


def no_network(url, path):
    raise OSError(f"no network in tests, asked for {url}")


def put(folder, name, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in SMALL[name].items():
        (folder / (f"{file}.gz" if zipped else file)).write_bytes(gzip.compress(data) if zipped else data)


def test_digits_are_the_uci_digits():
    with resources.files("jbp.data").joinpath("digits.npz").open("rb") as file:
        stored = dict(np.load(file, allow_pickle=False))
    assert stored["images"].shape == (1797, 8, 8)
    assert np.bincount(stored["labels"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    digest = hashlib.sha256(stored["images"].tobytes()).hexdigest()
    assert digest == "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
    digest = hashlib.sha256(stored["labels"].tobytes()).hexdigest()
    assert digest == "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"
    np.testing.assert_array_equal(stored["test"], preparing.held_out(stored["labels"], 360, seed=0))


def test_digits_parts():
    (x, y), (x_test, y_test) = jbp.data.load("digits"), jbp.data.load("digits", "test")
    assert (x.shape, x_test.shape) == ((1437, 8, 8), (360, 8, 8))
    assert (x.dtype, y.dtype, x.min(), x.max()) == (np.float32, np.int32, 0, 1)
    assert np.bincount(y_test).tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    assert not {row.tobytes() for row in x} & {row.tobytes() for row in x_test}


def test_digits_as_dataset():
    data = jbp.data.load_dataset("digits")
    assert (data.name, data.task, data.classes, data.features) == ("digits", "classification", tuple("0123456789"), ())
    assert data.x_test is not None and len(data.x_train) == 1437 and len(data.x_test) == 360


@pytest.mark.parametrize(("name", "mean", "deviation"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)])
def test_real_image_sets(monkeypatch, name, mean, deviation):
    folder = data_dir()
    if folder is None:
        pytest.skip("MNIST and Fashion-MNIST are not on this machine: set JBP_DATA_DIR")
    monkeypatch.setenv("JBP_DATA_DIR", str(folder))
    data = jbp.data.load_dataset(name)
    assert data.x_test is not None and data.y_test is not None
    assert (data.x_train.shape, data.x_test.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert (data.x_train.dtype, data.y_train.dtype) == (np.float32, np.int32)
    assert abs(data.x_train.mean(dtype=np.float64) - mean) < 1e-4
    assert abs(data.x_train.std(dtype=np.float64) - deviation) < 1e-4
    assert np.bincount(data.y_test).tolist() == (
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009] if name == "mnist" else [1000] * 10
    )
    assert len(set(data.classes)) == 10


PLACES = {
    "folder of sets": ("given/mnist", "given"),
    "the set's folder": ("given/mnist", "given/mnist"),
    "a folder of another name": ("given", "given"),
    "Debian's": ("system/mnist", ""),
    "the cache": ("cache/jbp/mnist", ""),
    "the cache, though a folder is given": ("cache/jbp/mnist", "."),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_found(small, monkeypatch, place, zipped):
    folder, given = PLACES[place]
    put(small / folder, "mnist", zipped)
    monkeypatch.setenv("JBP_DATA_DIR", str(small / given) if given else "")
    x, y = jbp.data.load("mnist", "test")
    images, labels = (idx.parse(SMALL["mnist"][f"t10k-{f}-ubyte"], "test") for f in ("images-idx3", "labels-idx1"))
    np.testing.assert_array_equal(x, images.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(y, labels)


def test_a_folder_of_the_other_set_is_passed_over(small, monkeypatch):
    put(small / "images", "fashion-mnist")
    put(small / "cache/jbp/mnist", "mnist")
    monkeypatch.setenv("JBP_DATA_DIR", str(small / "images"))
    x, _ = jbp.data.load("mnist")
    assert (x[0] * 255).astype(np.uint8).tobytes() == SMALL["mnist"][TRAIN][16 : 16 + 784]


def test_a_damaged_file_is_not_passed_over(small, monkeypatch):
    put(small / "images", "mnist")
    put(small / "cache/jbp/mnist", "mnist")
    (small / "images" / f"{TRAIN}.gz").write_bytes(gzip.compress(CHANGED))
    monkeypatch.setenv("JBP_DATA_DIR", str(small / "images"))
    with pytest.raises(ValueError, match="with SHA-256"):
        jbp.data.load("mnist")


GOOD = SMALL["mnist"][TRAIN]
CHANGED = GOOD[:-1] + bytes([GOOD[-1] ^ 1])
BAD_FILES = {
    "empty": (b"", "found an empty file"),
    "not IDX": (b"<html>not here</html>", "expected an IDX file"),
    "truncated": (GOOD[:-9], "expected 3,936 bytes by its IDX header (shape [5, 28, 28]), found 3,927"),
    "truncated in the header": (GOOD[:7], "found 7"),
    "too long": (GOOD + b"x", "found 3,937"),
    "truncated gzip": (gzip.compress(GOOD)[:-20], "expected whole gzip data"),
    "damaged gzip": (gzip.compress(GOOD)[:100] + b"\0\0\0\0" + gzip.compress(GOOD)[104:], "expected whole gzip data"),
    "another hash": (gzip.compress(CHANGED), f"found {hashlib.sha256(CHANGED).hexdigest()}"),
    "the other set": (gzip.compress(SMALL["fashion-mnist"][TRAIN]), "found that of fashion-mnist"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_bad_file(small, monkeypatch, bad):
    content, message = BAD_FILES[bad]
    put(small / "given/mnist", "mnist")
    path = small / "given/mnist" / f"{TRAIN}.gz"
    path.write_bytes(content)
    monkeypatch.setenv("JBP_DATA_DIR", str(small / "given"))
    with pytest.raises(ValueError) as error:
        jbp.data.load("mnist")
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value) and "; " in str(error.value)


def test_a_wrong_hash_is_told_with_the_right_one(small):
    put(small / "system/mnist", "mnist")
    (small / "system/mnist" / f"{TRAIN}.gz").write_bytes(gzip.compress(CHANGED))
    with pytest.raises(ValueError, match=f"SHA-256 {hashlib.sha256(GOOD).hexdigest()}"):
        jbp.data.load("mnist")


IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}


@pytest.mark.parametrize("code", IDX_TYPES)
def test_idx_types(tmp_path, code):
    values = np.arange(-6, 0).reshape(2, 3).astype(IDX_TYPES[code])
    header = bytes([0, 0, code, 2, 0, 0, 0, 2, 0, 0, 0, 3])
    (tmp_path / "file").write_bytes(header + values.astype(values.dtype.newbyteorder(">")).tobytes())
    np.testing.assert_array_equal(idx.read(tmp_path / "file"), values)


NAMES = {
    "unknown set": (("minst",), "did you mean 'mnist'"),
    "unknown set, no near one": (("cifar",), "expected one of digits, mnist, fashion-mnist"),
    "other capitals": (("MNIST",), "did you mean 'mnist'"),
    "unknown part": (("digits", "validation"), "unknown part 'validation' of digits: expected 'train' or 'test'"),
}


@pytest.mark.parametrize("case", NAMES)
def test_bad_name(case):
    args, message = NAMES[case]
    with pytest.raises(ValueError) as error:
        jbp.data.load(*args)
    assert message in str(error.value)


def test_data_dir_that_is_no_folder(small, monkeypatch):
    monkeypatch.setenv("JBP_DATA_DIR", str(small / "nowhere"))
    with pytest.raises(ValueError, match=r"JBP_DATA_DIR: expected a folder, found none at .*nowhere"):
        jbp.data.load("mnist")


def served(url, path, wrong=b""):
    """A network on which the first mirror has `wrong` for every file, or is down, and the second one works."""
    if url.startswith("https://one") and not wrong:
        raise OSError("connection refused")
    file = url.rsplit("/", 1)[1].removesuffix(".gz")
    path.write_bytes(wrong if url.startswith("https://one") else gzip.compress(SMALL["mnist"][file]))


WRONG_ANSWERS = {"down": b"", "a page": b"<html>", "changed": gzip.compress(CHANGED), "cut": gzip.compress(GOOD)[:50]}


@pytest.mark.parametrize("wrong", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)  # gzip holds the time: no names of bytes
def test_the_second_mirror_serves_when_the_first_does_not(small, monkeypatch, capsys, wrong):
    monkeypatch.setattr(builtin, "_retrieve", partial(served, wrong=wrong))
    x, _ = jbp.data.load("mnist")
    assert len(x) == 5
    told = capsys.readouterr()
    assert told.out == "" and f"downloading mnist: {TRAIN}.gz, about 9.9 MB, from https://one.invalid/" in told.err
    assert "from https://two.invalid/" in told.err
    kept = sorted(path.name for path in (small / "cache/jbp/mnist").iterdir())
    assert kept == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    monkeypatch.setattr(builtin, "_retrieve", no_network)
    np.testing.assert_array_equal(jbp.data.load("mnist")[0], x)


def test_no_mirror_serves(small, capsys):
    with pytest.raises(ValueError) as error:
        jbp.data.load("mnist")
    for part in ("one.invalid", "two.invalid", "no network in tests", "set JBP_DATA_DIR to the folder"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert list((small / "cache/jbp/mnist").iterdir()) == []


def test_an_interrupted_download_leaves_nothing(small, monkeypatch, capsys):
    def interrupted(url, path):
        path.write_bytes(b"\x1f\x8b half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "_retrieve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jbp.data.load("mnist")
    assert list((small / "cache/jbp/mnist").iterdir()) == []


def test_a_cache_that_cannot_be_made(small):
    (small / "cache").write_text("a file, where the folder should go")
    with pytest.raises(ValueError, match="expected a cache folder to download mnist to, but"):
        jbp.data.load("mnist")


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def test_pooch_downloads_from_a_server(small, monkeypatch, capsys):
    """The one call that the other tests replace, against a server on this machine that lacks the first mirror."""
    monkeypatch.undo()
    put(small / "site/two", "mnist")
    handler = partial(Silent, directory=str(small / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        base = f"http://127.0.0.1:{server.server_port}"
        sha256 = {file: hashlib.sha256(data).hexdigest() for file, data in SMALL["mnist"].items()}
        served = builtin.ImageSet(sha256, (f"{base}/one/", f"{base}/two/"), ())
        monkeypatch.setitem(builtin.IMAGE_SETS, "mnist", served)
        monkeypatch.setattr(builtin, "SYSTEM_FOLDER", small)
        monkeypatch.setenv("XDG_CACHE_HOME", str(small / "cache"))
        monkeypatch.delenv("JBP_DATA_DIR", raising=False)
        assert jbp.data.load("mnist", "test")[0].shape == (3, 28, 28)
        server.shutdown()


def test_only_numpy_and_pooch_are_imported():
    """But by augmentation, which runs inside the compiled step."""
    allowed = {"jbp", "numpy", "pooch", *sys.stdlib_module_names} - {"pickle"}
    for path in Path(builtin.__file__).parent.glob("*.py"):
        augments = path.name == "augment.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed | ({"jax"} if augments else set()), f"{path.name} imports {name}"
                within = (
                    name.startswith("jbp.data")
                    or name in ("jbp.arguments", "jbp.inputs", "jbp.rows", "jbp.windows")
                    or (augments and name == "jbp.annotations")
                )
                assert name.split(".")[0] != "jbp" or within, f"{path.name} imports {name}"
