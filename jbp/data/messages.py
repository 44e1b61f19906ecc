"""Words that several errors share: near matches, shortened lists, and files that are not there."""

import difflib
from collections.abc import Iterable
from pathlib import Path


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of the known names, or nothing if none is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def listed(names: Iterable[object], limit: int = 20) -> str:
    """The names with commas between; of a long list the first ones and how many there are."""
    names = [str(name) for name in names]
    return ", ".join(names) if len(names) <= limit else f"{', '.join(names[:limit])}, … ({len(names)} in all)"


def existing_file(path: str | Path) -> Path:
    """The path, if there is a file with something in it.

    Raises: ValueError if there is none, or it is a folder, empty, or cannot be looked at.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(f"{path}: expected a file, found a folder; give the path of the file in it")
        if not path.exists():
            raise ValueError(f"{path}: expected a file, found nothing there; check the path")
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: expected data, found an empty file; make or fetch it again")
    except OSError as error:
        raise cannot_read(path, error) from error
    return path


def cannot_read(path: Path, error: OSError) -> ValueError:
    """The ValueError for a file the operating system does not let us read."""
    return ValueError(f"{path}: expected a readable file, but {error.strerror or error}; check its permissions")
