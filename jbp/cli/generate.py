# ruff: noqa: RUF009 (option and argument declare fields)
"""`jbp generate`: text that a trained net writes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jbp.arguments import as_count
from jbp.checkpoint import load_run
from jbp.cli.parser import Command, argument, layers_option, option


@dataclass(frozen=True)
class Generate(Command):
    """Write text with a net that was trained on one; calling it gives the text, the prompt in front."""

    run: str | Path = argument("folder of a run of a text, as jbp train left it", "RUN")
    layers: str | Path | None = layers_option()
    prompt: str = option("\n", "what the text begins with, in characters that the training text has", "text",
                         metavar="TEXT", shown="a line's end")  # fmt: skip
    length: int = option(500, "characters to write", "text", metavar="N")
    temperature: float = option(
        1.0, "below 1 what is likely is drawn more often; 0 takes what is likeliest", "text", metavar="T",
    )  # fmt: skip
    top_k: int | None = option(None, "draw among the K likeliest characters only", "text", metavar="K",
                               shown="all")  # fmt: skip
    seed: int = option(0, "of the draws; same seed, same machine, same text", "text", metavar="N")

    summary: ClassVar[str] = "go on with a text, with a net that was trained on one"
    epilog: ClassVar[str] = """Every character is drawn by what the net says of those before it, as many as
it was trained to see at once. Each costs a pass forward over all of them.

examples:
  jbp train --data shakespeare.txt --out runs/shakespeare
  jbp generate runs/shakespeare --prompt "ROMEO:" --length 300 --temperature 0.8
"""

    def __call__(self) -> str:
        """Print the text.

        Raises: ValueError if the run is of no text, or the prompt empty or of characters that it has not.
        """
        as_count(self.length, "length")
        run = load_run(self.run, self.layers)
        text = run.generate(self.prompt, self.length, temperature=self.temperature, top_k=self.top_k, seed=self.seed)
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        return text
