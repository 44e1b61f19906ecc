"""Folders of .npy files, which are mapped and not read: examples larger than memory. Nothing is unpickled."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from jbp.arguments import about, cannot_read, did_you_mean, listed
from jbp.data.dataset import Dataset, Part, Task, from_parts
from jbp.data.npz import places
from jbp.rows import Rows

LAYOUT = "x_train.npy and y_train.npy, or shards x_train-000.npy, x_train-001.npy, …, and the same of x_test, y_test"
_FILE = re.compile(r"(?P<name>[xy]_[A-Za-z0-9]+)(?:-(?P<shard>\d+))?\.npy")
_PARTS = ("train", "test")


def from_folder(path: str | Path, part: str = "train") -> tuple[Rows, Rows]:
    """(x, y) of a part of a folder, as Rows: its files x_PART.npy and y_PART.npy, or shards of either.

    Shards are x_PART-000.npy, x_PART-001.npy and so on, rows one behind the other; x and y need not be cut alike. They
    are mapped into memory when rows are asked for, whatever their size. The part may have any name of letters and
    digits.

    Raises: ValueError if a file is missing, damaged or no plain array, or x and y have not equally many rows.
    """
    maps = _maps(Path(path), part)
    with about(path):
        x, y = map(Rows, maps)
    if len(x) != len(y):
        raise ValueError(
            f"{path}: expected x_{part} and y_{part} to have equally many rows, found {len(x)} and {len(y)}; give each "
            "row of x its y"
        )
    return x, y


def load_folder(path: str | Path, task: Task | None = None) -> Dataset:
    """The parts train and, if there is one, test of a folder as a Dataset whose x are Rows; see `load_dataset`.

    The targets are read, for they say what the classes are; x is gone through once, to see that its values are finite.

    Raises: ValueError if a file, its name or its values are not as expected.
    """
    path = Path(path)
    known = [f"{which}_{part}" for part in _PARTS for which in "xy"]
    files = _files(path)
    unknown = [name for name in files if name not in known]
    if unknown or "x_train" not in files:
        # An unknown array is not passed over: it may be x_test under a slip of the finger.
        hint = did_you_mean(unknown[0], known) if unknown else ""
        raise ValueError(f"{path}: expected {LAYOUT}; found {listed(files) or 'none of them'}{hint}")

    names = _PARTS[: 1 + ("x_test" in files or "y_test" in files)]
    maps = [_maps(path, name) for name in names]
    with about(path):
        parts = [Part(Rows(x), np.concatenate(y), places(name)) for name, (x, y) in zip(names, maps, strict=True)]
        return from_parts(path.name, parts[0], parts[1] if parts[1:] else None, task)


def _maps(path: Path, part: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The files of x and those of y of a part."""
    files = _files(path)
    missing = [name for name in (f"x_{part}", f"y_{part}") if name not in files]
    if missing:
        raise ValueError(
            f"{path}: expected {listed(f'{name}.npy' for name in missing)}, or shards such as {missing[0]}-000.npy, "
            f"found {listed(files) or 'no .npy file of such a name'}"
        )
    x, y = ([_mapped(file) for file in files[f"{which}_{part}"]] for which in "xy")
    return x, y


def _files(folder: Path) -> dict[str, list[Path]]:
    """The files of each array of a folder, shards in their order."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with {LAYOUT}, found {'a file' if folder.exists() else 'none'}")
    found: dict[str, dict[int | None, Path]] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise cannot_read(folder, error) from error
    for path in paths:
        match = _FILE.fullmatch(path.name)
        if path.suffix == ".npy" and match is None:
            raise ValueError(f"{folder}: expected {LAYOUT}; found {path.name}; rename it, or put it elsewhere")
        if match is not None:
            shard = None if match["shard"] is None else int(match["shard"])
            shards = found.setdefault(match["name"], {})
            if shard in shards or (shards and (shard is None) != (None in shards)):
                twice = " and ".join(p.name for p in (*list(shards.values())[:1], path))
                raise ValueError(f"{folder}: expected one file or shards of {match['name']}, found {twice}; keep one")
            shards[shard] = path
    for name, shards in found.items():
        numbers = sorted(number for number in shards if number is not None)
        lacking = next((k for k, number in enumerate(numbers) if k != number), None)
        if lacking is not None:
            raise ValueError(
                f"{folder}: expected the shards of {name} to count from 0, found none of number {lacking}: put it "
                "there, or rename them"
            )
    return {name: [shards[number] for number in sorted(shards, key=lambda n: n or 0)] for name, shards in found.items()}


def _mapped(path: Path) -> np.ndarray:
    """An .npy file as a memory map."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise cannot_read(path, error) from error
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: expected a whole .npy file of plain numbers, found another ({error}); write it again with "
            "numpy.save"
        ) from error
    if not isinstance(found, np.ndarray) or found.ndim == 0:
        raise ValueError(f"{path}: expected an .npy file of an array [rows, ...], found something else")
    return found
