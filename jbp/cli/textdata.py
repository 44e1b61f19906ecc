"""A text as training sees it: three parts, in windows over its characters."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jbp.arguments import about
from jbp.cli.examples import Examples
from jbp.cli.text import TASK
from jbp.data import Dataset, Vocabulary, windows
from jbp.data.vocabulary import read_text
from jbp.windows import Windows

PARTS = (0.8, 0.9)
"""Where the validation part of a text begins, and the test part. Part of a run's meaning: not to change."""


@dataclass(frozen=True, eq=False)
class Text(Examples):
    """The parts of a text, one behind the other: windows of `context` characters to train on, disjoint ones to test."""

    vocabulary: Vocabulary | None = None
    last: Any = None
    """The test part, in windows."""

    @property
    def outputs(self) -> int:
        """A score for each character."""
        return len(self.vocabulary or ())

    @property
    def tested(self) -> str:
        """The last tenth of the text."""
        return "test"

    def test(self) -> Any:
        """That part: x and targets."""
        return self.last


def load_text(path: str | Path, context: int, crops: bool) -> Text:
    """A text file in three parts: the first 80 % train, the next tenth validates, the last tests.

    With `crops` every character begins a window of the training part; without, the windows are disjoint, and an epoch
    reads each character once.

    Raises: ValueError if it is no text, or too short for a window in each part.
    """
    text = read_text(path)
    vocabulary = Vocabulary.of(text)
    tokens = vocabulary.encode(text)
    bounds = [0, *(int(share * len(tokens)) for share in PARTS), len(tokens)]
    cut: list[tuple[Windows, Windows]] = []
    for i, name in enumerate(("training", "validation", "test")):
        with about(f"{path}: the {name} part, of {bounds[i + 1] - bounds[i]:,} characters"):
            cut.append(windows(tokens[bounds[i] : bounds[i + 1]], context, 1 if crops and not i else context))
    lengths = [f"{b - a:,}" for a, b in pairwise(bounds)]
    notes = (
        f"{len(tokens):,} characters, {len(vocabulary)} of them different: the first {lengths[0]} train, the next "
        f"{lengths[1]} validate, the last {lengths[2]} test, in windows of {context}",
    )
    dataset: Any = Dataset(Path(path).stem, TASK, *cut[0], *cut[2], notes=notes)  # type: ignore[arg-type]
    return Text(dataset, False, None, None, cut[0], cut[1], vocabulary=vocabulary, last=cut[2])
