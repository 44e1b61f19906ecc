"""`jbp train`: the command; its options are in `jbp.cli.options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jbp.cli import several
from jbp.cli.options import TrainOptions
from jbp.cli.seeds import train_seeds
from jbp.cli.training import train, versions


@dataclass(frozen=True)
class Train(TrainOptions):
    """Train a network and leave a run folder; calling it gives a `Result`.

    Raises: ValueError for options that are wrong by themselves; calling, also for data that are, `jbp.Diverged`,
        `jbp.Interrupted` and OSError.
    """

    summary: ClassVar[str] = "train a network and leave a run folder"
    epilog: ClassVar[str] = """layers of --net, one after another:
  128                      a dense layer of width 128
  relu, tanh, …            activations
  conv:32:5                32 kernels of 5×5 pixels, or of 5 steps of a series; conv:32:3x5 of
                           3×5; behind it :s2 a stride, :valid no padding, :g4 groups,
                           :d2 a dilation; 5x is a kernel along one axis, with channels behind
  pool:2, avgpool:3:s2     the largest, the mean of each window; :s2 a stride, :same padding
  globalpool               the mean over all of space
  attention:4              attention of 4 heads on [q|k|v] side by side; behind it a number of
                           groups, :full not causal, :rotary turned by position
  embed:65:128, positions:64, unembed:65           tables of a sequence: a row for each of 65
                           tokens, for each of 64 positions, and a score for each token
  batchnorm, layernorm, rmsnorm, groupnorm:8       normalisation
  dropout:0.2              training without a fifth of the units
  residual( … )            x and what the layers in brackets make of it, added up
  repeat:3( … )            the layers in brackets three times, each with weights of its own
  branch( 8 serial( 8 relu 8 ) ), branch:concat( … )
                           each in brackets gets x; their outputs added up, or side by side
  attention:4              each place of a sequence looks at those before, in 4 heads, at
                           [q|k|v] side by side
  flatten, channel, reshape:28x28x1                another shape; flatten and channel are put in
                           where convolution or pooling needs them
  gpt:4:4:128              of a text: a whole net of 4 layers, 4 heads and width 128
  embed:128, positions     of a text: a row of 128 numbers for each character, and for each place

examples:
  jbp train
  jbp train --data fashion-mnist --net "512 relu dropout:0.2 512 relu"
  jbp train --data mnist --net "conv:32:5 relu pool:2 conv:64:5 relu pool:2 256 relu" --augment shift:2
  jbp train --data shakespeare.txt --net gpt:4:4:128 --steps 2000 --batch-size 12    (a text)
  jbp train --data houses.csv --target price --task regression --out runs/houses
  jbp train --config runs/houses/config.json --seed 1   (again, another seed)
  jbp train --seeds 0:10                                (how much does the seed matter?)
  jbp train --private --batch-size 256 --noise 2        (what did it learn of any one example?)
  jbp train --resume runs/houses                        (go on after a kill, Ctrl-C or a full disk)
  jbp train --coordinator node1:1234 --processes 2 --process 0   (and --process 1 elsewhere: one net)
  jbp show runs/houses                                  (what came out of it)
"""

    def __call__(self) -> Any:
        """Train; answers with a `Result`, or with `seeds` with a `Spread`."""
        if (place := self.place) is not None:
            return several.train_with_others(self, place, versions(), train)
        return train(self) if self.seeds is None else train_seeds(self)
