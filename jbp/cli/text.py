"""What a run of a text is told: its usual options, and the net that a line of words means for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jbp import layers
from jbp.arguments import about
from jbp.cli import netspec
from jbp.combine import serial
from jbp.language import gpt
from jbp.layer import Layer

SUFFIX = ".txt"
TASK = "language"
NET = "gpt:4:4:128"
STEPS, EVERY, CONTEXT = 2000, 200, 64
"""Of a run that is told nothing else."""


def is_text(data: Any) -> bool:
    """Whether data are named that are a text."""
    return Path(str(data)).suffix.lower() == SUFFIX


def build(text: str, vocabulary: int, context: int) -> Layer:
    """The net of a line for a text: "gpt:LAYERS:HEADS:WIDTH" (`jbp.gpt`), or layers that begin with "embed:WIDTH",
    behind which scores of every character are put; "positions" is a table of `context` places.

    Raises: ValueError naming the word that is wrong.
    """
    words = text.split()
    if words and re.match(r"gpt\b", words[0]):
        sizes = re.fullmatch(r"gpt:(\d+):(\d+):(\d+)", text.strip())
        if sizes is None:
            raise ValueError(f"net: expected gpt:LAYERS:HEADS:WIDTH and nothing else, as in {NET}, got {text!r}")
        with about(f"net: cannot read {text!r}"):
            return gpt(vocabulary, context, *map(int, sizes.groups()))

    def read(word: str) -> Layer | None:
        if word == "positions":
            return layers.Positions(context)
        width = re.fullmatch(r"embed:(\d+)", word)
        if width is None and word.partition(":")[0] == "embed" and word.count(":") < 2:
            raise ValueError(f"net: embed needs a width, as in embed:128, got {word!r}")
        if width is not None and int(width[1]) < 1:
            raise ValueError(f"net: expected the width of embed to be at least 1, got {word!r}")
        return None if width is None else layers.Embedding(vocabulary, int(width[1]))

    found = netspec.parse(text, read)
    if not found or not isinstance(found[0], layers.Embedding):
        raise ValueError(
            f"net: expected a net for a text, which begins with embed:WIDTH or is gpt:LAYERS:HEADS:WIDTH, got {text!r}"
        )
    return serial(*(layer for layer in found), layers.Unembedding(vocabulary))


def check_net_line(text: str) -> None:
    """Refuse a line that no text could have, before the text is read."""
    build(text, 2, CONTEXT)
