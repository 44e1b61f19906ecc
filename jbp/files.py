"""Files that are written whole or not at all, and digests by which one that has changed since is known."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any


class Damaged(ValueError):
    """A file that is not as it was written. `file` is which."""

    def __init__(self, file: Path, what: str):
        self.file = file
        super().__init__(f"{file}: {what}")


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(content: Any) -> str:
    """The SHA-256 of what JSON can hold, however it is laid out in a file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: under another name in the same folder, then renamed.

    Raises: OSError in words, with its errno.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~umask())
        Path(temporary).replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error of writing, saying which file and what to do."""
    worded = OSError(f"{path}: could not be written: {error.strerror or error}; free space, or write elsewhere")
    worded.errno = error.errno
    return worded


@lru_cache
def umask() -> int:
    """What the process takes from the permissions of the files it makes."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
