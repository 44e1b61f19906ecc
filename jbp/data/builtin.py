"""The sets known by name: digits, which the package carries, MNIST and Fashion-MNIST, found or downloaded."""

import hashlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from jbp.arguments import check_choice
from jbp.data import idx

# Where Debian's package dataset-fashion-mnist puts its folder.
SYSTEM_FOLDER = Path("/usr/share/datasets")


@dataclass(frozen=True)
class ImageSet:
    """Four IDX files: the SHA-256 of their uncompressed bytes, and where they can be downloaded, gzipped."""

    sha256: dict[str, str]
    mirrors: tuple[str, ...]
    classes: tuple[str, ...]


_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_DIGITS = tuple("0123456789")

# Of the uncompressed bytes, because mirrors compress them differently.
IMAGE_SETS = {
    "mnist": ImageSet(
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        mirrors=(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        classes=_DIGITS,
    ),
    "fashion-mnist": ImageSet(
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        classes=(
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
    ),
}  # fmt: skip
NAMES = ("digits", *IMAGE_SETS)

# Roughly, in MB and compressed: enough to tell someone what they are about to wait for.
_MEGABYTES = {
    "mnist": {"train-images-idx3-ubyte": 9.9, "t10k-images-idx3-ubyte": 1.6},
    "fashion-mnist": {"train-images-idx3-ubyte": 26.4, "t10k-images-idx3-ubyte": 4.4},
}


def load(name: str, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """One part of a built-in set: images x, float32 in [0, 1], and labels y [n], int32 from 0 to 9.

    "digits": x [1437, 8, 8] or [360, 8, 8], counts /16, in the package. "mnist" and "fashion-mnist": x
    [60000, 28, 28] or [10000, 28, 28], bytes /255, looked for in $JBP_DATA_DIR, where Debian's
    dataset-fashion-mnist puts them, and the user's cache, and if not there downloaded into the cache; checked
    against their published SHA-256.

    Raises: ValueError for an unknown name or part, a file that is damaged or another one, or a failed
    download.
    Source: Alpaydin, Kaynak, 1998, UCI optical recognition of handwritten digits; LeCun, Cortes, Burges,
    MNIST; Xiao, Rasul, Vollgraf, 2017, "Fashion-MNIST".
    """
    check_choice("data set", name, NAMES)
    if split not in _FILES:
        raise ValueError(f"unknown part {split!r} of {name}: expected 'train' or 'test'")
    if name == "digits":
        with resources.files("jbp.data").joinpath("digits.npz").open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            # `test` is held_out(labels, 360, seed=0), stored so that no change of that rule moves an example.
            images, labels, test = stored["images"], stored["labels"], stored["test"]
        rows = test if split == "test" else ~test
        images, labels, white = images[rows], labels[rows], 16
    else:
        (images, labels), white = (_find(name, file) for file in _FILES[split]), 255
    return np.divide(images, white, dtype=np.float32), labels.astype(np.int32)


def classes(name: str) -> tuple[str, ...]:
    """What the labels of a built-in set mean, in their order."""
    return IMAGE_SETS[name].classes if name in IMAGE_SETS else _DIGITS


def _find(name: str, file: str) -> np.ndarray:
    """One file of a set, from the first place that has it, gzipped or not; else downloaded."""
    import pooch  # here, because digits and own data do not need the 0.1 s it takes

    cache = Path(pooch.os_cache("jbp")) / name
    places = [SYSTEM_FOLDER / name, cache]
    if given := os.environ.get("JBP_DATA_DIR"):
        if not Path(given).is_dir():
            raise ValueError(f"JBP_DATA_DIR: expected a folder, found none at {given!r}; correct or unset it")
        places[:0] = [Path(given) / name, Path(given)]
    for place in places:
        for path in (place / file, place / f"{file}.gz"):
            if path.exists():
                data = idx.read_bytes(path)
                # A folder that is not named after the set may hold the other one, with the same file names.
                if place == Path(given or "") and place.name != name and _set_of(file, data) not in (None, name):
                    continue
                return _verified(name, file, data, path)
    return _download(name, file, cache)


def _set_of(file: str, data: bytes) -> str | None:
    """The set whose file of this name has these bytes."""
    found = hashlib.sha256(data).hexdigest()
    return next((name for name, known in IMAGE_SETS.items() if known.sha256[file] == found), None)


def _verified(name: str, file: str, data: bytes, source: object) -> np.ndarray:
    array = idx.parse(data, source)
    expected, found = IMAGE_SETS[name].sha256[file], hashlib.sha256(data).hexdigest()
    if found != expected:
        other = _set_of(file, data)
        raise ValueError(
            f"{source}: expected {name}'s {file} with SHA-256 {expected} (uncompressed), found "
            f"{f'that of {other}' if other else found}; put the right one there, or delete it to download it"
        )
    return array


def _download(name: str, file: str, cache: Path) -> np.ndarray:
    """Fetch a file from the first mirror that gives the right bytes, and keep it in the cache."""
    megabytes = _MEGABYTES.get(name, {}).get(file, 0.03)
    failures = []
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{cache}: expected a cache folder to download {name} to, but {error.strerror}; "
            "put the files elsewhere and set JBP_DATA_DIR"
        ) from error
    for mirror in IMAGE_SETS[name].mirrors:
        url, path = f"{mirror}{file}.gz", cache / f"{file}.gz"
        # Under another name until it is verified: nobody finds half a file, or one from a server's error
        # page.
        part = cache / f"{file}.{os.getpid()}.part"
        print(
            f"downloading {name}: {file}.gz, about {megabytes:g} MB, from {mirror} to {cache}",
            file=sys.stderr,
        )
        try:
            _retrieve(url, part)
            array = _verified(name, file, idx.read_bytes(part), url)
            part.replace(path)
            return array
        except (OSError, ValueError) as error:  # requests' exceptions are OSErrors
            failures.append(f"{mirror} ({' '.join(str(error).split()).partition('; ')[0]})")
        finally:
            part.unlink(missing_ok=True)
    raise ValueError(
        f"{name}: expected to download {file}.gz, but no mirror gave it: {'; '.join(failures)}; "
        f"try again, or put the file into a folder {name} and set JBP_DATA_DIR to the folder that one is in"
    )


def _retrieve(url: str, path: Path) -> None:
    import pooch

    progress = importlib.util.find_spec("tqdm") is not None and sys.stderr.isatty()
    pooch.HTTPDownloader(progressbar=progress)(url, str(path), None)
