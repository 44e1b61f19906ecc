"""Statistics of the pairs of one backward pass: everything here reads pairs and nothing else.

Take the pairs from `jbp.value_and_pairs`, whose δ belong to one example's error each, never divided by N. Ask for any
number of statistics in one jitted function: what is not asked for is not computed.

Each file holds, beside what is public, a function with a rule for each class of pair (`functools.singledispatch`):
`each`, `normed`, `squares`, `squared`, `central`, `scatter`, `product`, `factors`, `held`, `told`. Its default reads
`pair.rows()`, so a class of pair that it has never seen is served too, and registers a rule only where it knows more.
A rule is given the pair of one layer: what goes through a `Stack` is `pair.over_stack`. It is of at least float32, and
so is every answer, whatever the parameters are of: 16 bits hold no squares, and no sums of many.
"""

from typing import Any

from jbp.arguments import renamed
from jbp.stats.clip import clip_weights as clip_weights
from jbp.stats.clip import clipped as clipped
from jbp.stats.clip import sensitivity as sensitivity
from jbp.stats.explain import Explanation as Explanation
from jbp.stats.explain import explain as explain
from jbp.stats.gram import gram as gram
from jbp.stats.kronecker import Factors as Factors
from jbp.stats.kronecker import kronecker as kronecker
from jbp.stats.moments import second_moment as second_moment
from jbp.stats.norms import norms as norms
from jbp.stats.norms import squared_norms as squared_norms
from jbp.stats.per_example import per_example as per_example
from jbp.stats.records import Record as Record
from jbp.stats.records import records as records
from jbp.stats.spread import noise_and_signal as noise_and_signal
from jbp.stats.spread import noise_scale as noise_scale
from jbp.stats.spread import snr as snr
from jbp.stats.spread import variance as variance


def __getattr__(name: str) -> Any:
    """`Rule` was the old name of `Explanation`; a rule is now only what `jbp.rules` holds."""
    if name == "Rule":
        renamed("jbp.stats.Rule", "jbp.stats.Explanation")
        return Explanation
    raise AttributeError(f"module 'jbp.stats' has no attribute {name!r}")
