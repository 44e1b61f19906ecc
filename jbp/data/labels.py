"""Labels as they are written: which numbers are labels at all, and which labels look like one another."""

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable

import numpy as np

from jbp.arguments import is_numeric, listed

WHOLE = re.compile(r"[+-]?[0-9]+")
LEADING_ZERO = re.compile(r"[+-]?0[0-9]+")
_CANONICAL = re.compile(r"0|-?[1-9][0-9]*")


def from_cells(cells: np.ndarray, place: Callable[[int], str]) -> np.ndarray:
    """Labels of a column of text, of which numbers must be whole; text that int64 would write alike becomes int64.

    So that 00501, +1, 1.0 and 9223372036854775808 stay as they are written.

    Raises: ValueError for a number that is not whole.
    """
    words, codes = np.unique(cells, return_inverse=True)
    if all(_CANONICAL.fullmatch(word) and len(word) < 19 for word in words):
        return words.astype(np.int64)[codes]
    numbers = [is_numeric(word) for word in words]
    for i, word in enumerate(words):
        if all(numbers) and not WHOLE.fullmatch(word) and not float(word).is_integer():
            raise ValueError(
                f"expected labels to be text or whole numbers, found {word} at {place(int(np.argmax(codes == i)))}; "
                "renumber the labels, or pass task='regression' if they are values"
            )
    return cells


def check_task_is_plain(y: np.ndarray, place: Callable[..., str]) -> None:
    """Ask for the task where whole numbers may be labels and may be values: counts, prices and ages are whole too.

    Labels repeat. Raises: ValueError if most numbers are different, if there are over twenty with fewer than fifty
    rows each, or if some of more than two are negative.
    """
    if y.ndim != 1 or y.dtype.kind not in "iuU":
        return
    distinct, rows = np.unique(y), len(y)
    if y.dtype.kind == "U" and not all(map(WHOLE.fullmatch, distinct)):
        return
    many, advice = len(distinct), "say which it is by task='classification' or task='regression'"
    if many > max(2, rows / 2) or (many > 20 and rows < 50 * many):
        raise ValueError(
            f"expected whole-number labels that repeat, found {many} different ones in {rows} rows of {place('y')}; "
            f"{advice}"
        )
    negative = [int(label) < 0 for label in distinct]
    if any(negative) and many > 2:
        row = int(np.flatnonzero(y == distinct[np.argmax(negative)])[0])
        raise ValueError(
            f"expected whole-number labels from 0, or two such as -1 and 1, found {y[row]} at {place('y', row)} among "
            f"{many} different ones; {advice}"
        )


def might_be_labels(y: np.ndarray) -> bool:
    """Whether numbers with a point may be labels all the same, as data frames write them beside gaps: 1.0."""
    if y.dtype.kind != "f" or y.ndim != 1 or not (y == np.floor(y)).all():
        return False
    return 3 * len(np.unique(y)) <= len(y) and len(np.unique(y)) <= 20


def warn_of_near_equal(words: Iterable[str], what: str) -> None:
    """Warn of words that differ only in case, in spaces, in how Unicode or a number is written: each is its own."""
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(_plain(word), []).append(word)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if alike:
        warn(f"{what}: {listed(alike, 5)} are taken as different; write them alike if they are one")


def warn(text: str) -> None:
    """Warn the caller of `load_dataset`."""
    warnings.warn(text, stacklevel=2)


def _plain(word: str) -> str:
    text = unicodedata.normalize("NFKC", word).casefold()
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    text = " ".join(text.split())
    if not is_numeric(text):
        return text
    value = float(text)
    return str(int(text)) if WHOLE.fullmatch(text) else str(int(value)) if value.is_integer() else repr(value)
