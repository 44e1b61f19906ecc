"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCK = ".lock"


class Lock:
    """A folder's lock, held until it is closed, or until the process ends, however it ends.

    `folder` is to be set anew when the folder is renamed.

    Raises: ValueError if another process, or another run of this one, holds it; OSError if it cannot be made.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        while True:
            self._file = (folder / LOCK).open("a+")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.seek(0)
                by = self._file.read().strip()
                self._file.close()
                raise ValueError(
                    f"{folder}: another run writes there{f' (process {by})' if by else ''}: wait until it has ended, "
                    "or choose another folder"
                ) from None
            if self._is_there():
                break
            self._file.close()  # who held it removed it meanwhile
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def close(self) -> None:
        """Let others write there."""
        if not self._file.closed:
            if self._is_there():
                (self.folder / LOCK).unlink()
            self._file.close()

    def _is_there(self) -> bool:
        """Whether the file that is locked is the one that others find."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), (self.folder / LOCK).stat())
        except FileNotFoundError:
            return False
