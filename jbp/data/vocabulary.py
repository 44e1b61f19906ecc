"""The tokens of a text: its characters, numbered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jbp.arguments import came, cannot_read, existing_file

_SHOWN = 5
"""Characters that an error names."""


@dataclass(frozen=True)
class Vocabulary:
    """Characters, numbered in their order: token i is the i-th. `Vocabulary.of(text)` has those of a text, sorted.

    Raises: ValueError if they are not single characters, each once.
    """

    symbols: tuple[str, ...]
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbols", tuple(self.symbols))
        single = all(isinstance(symbol, str) and len(symbol) == 1 for symbol in self.symbols)
        if not self.symbols or not single or len(set(self.symbols)) < len(self.symbols):
            raise ValueError("a vocabulary must be single characters, each once, at least one")
        object.__setattr__(self, "_numbers", {symbol: i for i, symbol in enumerate(self.symbols)})

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """The characters of a text, sorted.

        Raises: ValueError if it is empty.
        """
        if not isinstance(text, str) or not text:
            raise ValueError("a vocabulary is of a text, but there is none" if text == "" else
                             f"a vocabulary is of a text, but got {came(text)}")  # fmt: skip
        return cls(tuple(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """The tokens [m] of a text, int32.

        Raises: ValueError if it has characters that are not in the vocabulary, naming them.
        """
        if not isinstance(text, str):
            raise ValueError(f"expected a text to encode, but got {came(text)}")
        unseen = sorted(set(text) - self._numbers.keys())
        if unseen:
            more = f" and {len(unseen) - _SHOWN} more" if len(unseen) > _SHOWN else ""
            raise ValueError(
                f"the text has characters that the vocabulary of {len(self)} has not: "
                f"{', '.join(map(repr, unseen[:_SHOWN]))}{more}: leave them out"
            )
        if max(map(ord, self.symbols)) >= 1 << 16:
            return np.fromiter((self._numbers[symbol] for symbol in text), np.int32, len(text))
        table = np.zeros(1 << 16, np.int32)
        table[list(map(ord, self.symbols))] = range(len(self))
        return table[np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2")]

    def decode(self, tokens: Iterable[Any]) -> str:
        """The text of tokens [m].

        Raises: ValueError if one is no token.
        """
        numbers = np.asarray(tokens)
        if numbers.ndim != 1 or (numbers.dtype.kind not in "iu" and numbers.size):
            raise ValueError(f"expected tokens [m] to decode, but got {came(tokens)}")
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise ValueError(f"tokens must be 0…{len(self) - 1}, but there are {numbers.min()}…{numbers.max()}")
        return "".join(self.symbols[i] for i in numbers.tolist())


def read_text(path: str | Path) -> str:
    """A text file, in UTF-8, with its line ends as they are.

    Raises: ValueError if it is missing, empty or no text, saying where; OSError if it cannot be read.
    """
    path = existing_file(path)
    try:
        found = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected a text in UTF-8, found a byte that is none, at {error.start}: save it as UTF-8"
        ) from error
    if not text:
        raise ValueError(f"{path}: expected a text, found an empty file")
    return text
