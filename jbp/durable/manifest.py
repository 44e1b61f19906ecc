"""The manifest of a checkpoint: what belongs to it, byte by byte, so that what is damaged is known before it is opened.

It is the last file that is written, whole or not at all: a folder without one is no checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jbp.files import Damaged, content_digest, file_digest, write_atomically

MANIFEST = "MANIFEST.json"
FORMAT = 1


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Write the manifest of all files in `folder`, and what the checkpoint says of itself.

    Raises: OSError if it cannot be written.
    """
    files = {str(path.relative_to(folder)): _measured(path) for path in _files(folder)}
    content = {"format": FORMAT, "files": files, "about": about}
    write_atomically(folder / MANIFEST, (json.dumps({"digest": content_digest(content), **content}) + "\n").encode())


def verified(folder: Path) -> dict[str, Any]:
    """What the checkpoint says of itself, once every file is as it was written.

    Raises:
        Damaged: naming the first file that is missing, too many, or of other bytes.
        ValueError: if a newer jbp wrote it.
    """
    path = folder / MANIFEST
    content = _read(path)
    if content["format"] > FORMAT:
        raise ValueError(
            f"{path}: written by a newer jbp (format {content['format']}, known up to {FORMAT}): go on with that one"
        )
    files = content["files"]
    for name, (size, digest) in files.items():
        file = folder / name
        try:
            found = _measured(file)
        except FileNotFoundError:
            raise Damaged(file, "missing, though the checkpoint's manifest names it") from None
        except OSError as error:
            raise Damaged(file, f"cannot be read ({error.strerror or error})") from error
        if found[0] != size:
            raise Damaged(file, f"has {found[0]:,} bytes where {size:,} were written")
        if found[1] != digest:
            raise Damaged(file, "holds other bytes than were written")
    more = [path for path in _files(folder) if str(path.relative_to(folder)) not in files]
    if more:
        raise Damaged(more[0], "is not named in the checkpoint's manifest")
    return content["about"]


def _read(path: Path) -> dict[str, Any]:
    """The content of a manifest, whose digest is right."""
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop("digest")
        sound = digest == content_digest(content) and isinstance(content["files"], dict)
    except FileNotFoundError:
        raise Damaged(path, "missing: the checkpoint was cut short while it was written") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(path, f"is no manifest ({error})") from error
    if not sound:
        raise Damaged(path, "holds other bytes than were written")
    return content


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def _measured(path: Path) -> list[Any]:
    """Size and SHA-256."""
    return [path.stat().st_size, file_digest(path)]
