"""`jbp train`: the command; its options are in `jbp.cli.options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jbp.cli.options import TrainOptions
from jbp.cli.seeds import train_seeds
from jbp.cli.training import train


@dataclass(frozen=True)
class Train(TrainOptions):
    """Train a network and leave a run folder; calling it gives a `Result`.

    Raises: ValueError for options that are wrong by themselves; calling, also for data that are, `jbp.Diverged`,
        `jbp.Interrupted` and OSError.
    """

    summary: ClassVar[str] = "train a network and leave a run folder"
    epilog: ClassVar[str] = """examples:
  jbp train
  jbp train --data fashion-mnist --net "512 relu dropout:0.2 512 relu"
  jbp train --data houses.csv --target price --task regression --out runs/houses
  jbp train --config runs/houses/config.json --seed 1   (again, another seed)
  jbp train --seeds 0:10                                (how much does the seed matter?)
  jbp train --private --batch-size 256 --noise 2        (what did it learn of any one example?)
  jbp show runs/houses                                  (what came out of it)
"""

    def __call__(self) -> Any:
        """Train; answers with a `Result`, or with `seeds` with a `Spread`."""
        return train(self) if self.seeds is None else train_seeds(self)
