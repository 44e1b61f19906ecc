"""Own data from .npz files. Nothing is unpickled."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jbp.arguments import about, cannot_read, did_you_mean, existing_file, listed, no_npz
from jbp.data.dataset import Dataset, Part, Task, from_parts

_REQUIRED, _OPTIONAL = ("x_train", "y_train"), ("x_test", "y_test")


def load_npz(path: str | Path, task: Task | None = None) -> Dataset:
    """The arrays x_train, y_train and, optionally, x_test, y_test of an .npz file; see `load_dataset`.

    Raises: ValueError if the file, its names or its values are not as expected.
    """
    path = existing_file(path)
    arrays = _arrays(path)

    def part(suffix: str) -> Part:
        return Part(arrays[f"x_{suffix}"], arrays[f"y_{suffix}"], places(suffix))

    with about(path):
        return from_parts(path.stem, part("train"), part("test") if "x_test" in arrays else None, task)


def places(suffix: str) -> Callable[..., str]:
    """How the arrays of a part name places."""

    def place(which: str, *index: int) -> str:
        if not index:
            return f"{which}_{suffix}"
        where = f"{which}_{suffix}, row {index[0]}"
        column = f", column {', '.join(map(str, index[1:]))}" if index[1:] else ""
        return f"{where}{column} (counted from 0)"

    return place


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that has the right names."""
    again = "write it again with numpy.savez"
    # numpy.load would take an .npy file or a pickle by this name, and fail later or with words about pickles.
    if not zipfile.is_zipfile(path):
        raise no_npz(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            _check_names(path, stored.files)
            arrays = {}
            for name in stored.files:
                try:
                    arrays[name] = np.asarray(stored[name])
                except ValueError as error:
                    raise ValueError(
                        f"{path}: expected {name} to be an array of numbers or text, found one that "
                        f"cannot be read without unpickling ({error}); give it a plain dtype and {again}"
                    ) from error
            return arrays
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: expected whole arrays, found a damaged one ({error}); {again}") from error
    except OSError as error:
        raise cannot_read(path, error) from error


def _check_names(path: Path, names: list[str]) -> None:
    known = (*_REQUIRED, *_OPTIONAL)
    missing = [name for name in _REQUIRED if name not in names]
    if len({name for name in _OPTIONAL if name in names}) == 1:
        missing += [name for name in _OPTIONAL if name not in names]
    unknown = [name for name in names if name not in known]
    if missing or unknown:
        # An unknown array is not passed over: it may be x_test under a slip of the finger.
        hint = did_you_mean(unknown[0], known) if unknown else ""
        found = f"found {listed(names) or 'none'}{f', so without {listed(missing)}' if missing else ''}"
        raise ValueError(
            f"{path}: expected arrays x_train and y_train and, if there is a test part, x_test and y_test, "
            f"{found}{hint}; rename, add or remove arrays"
        )
