"""IDX files, the format of MNIST: two zero bytes, a type, a rank, the big-endian sizes, then the values.

Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from jbp.arguments import cannot_read, existing_file

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes, uncompressed if they begin as gzip does, whatever its name ends in.

    Raises: ValueError if the file is missing, empty, unreadable, or gzip that is cut short or damaged.
    """
    path = existing_file(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    if not raw.startswith(b"\x1f\x8b"):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: expected whole gzip data, found it cut short or damaged ({error}); fetch the file again"
        ) from error


def parse(data: bytes, source: object) -> np.ndarray:
    """The array in the bytes of an uncompressed IDX file, as a read-only view; `source` names it in errors.

    Raises: ValueError if the bytes are not IDX, or fewer or more than their header says.
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES:
        raise ValueError(
            f"{source}: expected an IDX file (bytes 00 00, a type from 08 to 0e, a rank), "
            f"found it beginning with '{data[:4].hex(' ')}'; fetch the file again"
        )
    dtype, rank = np.dtype(_TYPES[data[2]]), data[3]
    start = 4 + 4 * rank
    # A header cut short reads as too few sizes; whatever they multiply to, the file is then shorter than
    # `start`.
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) < start or len(data) != expected:
        raise ValueError(
            f"{source}: expected {max(expected, start):,} bytes by its IDX header (shape {shape}), "
            f"found {len(data):,}; fetch the file again"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def read(path: str | Path) -> np.ndarray:
    """The array in an IDX file, gzipped or not.

    Raises: ValueError if the file is missing, empty, damaged, cut short or not IDX.
    """
    return parse(read_bytes(path), path)
