"""Pairs: the gradient, not contracted yet.

A backward pass that stops before its last step holds, for every parameter, what came in (`h`) and the δ of what
went out (`delta`). That is a *pair*. Contracted over the batch it is the gradient; contracted otherwise it is
per-example gradients, their norms, their second moments. A pair's class says how `h` and `delta` make the gradient
of one example, so each of those readings is written once per class and not once per layer.

Axis letters: n example, t use of the parameter inside one example, i in, o out, l layer of a stack.
Inside a layer there is no n; the spine's `vmap` puts it first. `Stack` puts l before it.
"""

from jbp.pairs.constant import Constant
from jbp.pairs.contract import check_tree as check_tree
from jbp.pairs.contract import contract, merge
from jbp.pairs.coupled import Coupled
from jbp.pairs.geometry import Geometry
from jbp.pairs.lookup import Lookup
from jbp.pairs.lookup import added_to_rows as added_to_rows
from jbp.pairs.lookup import at_least_32_bits as at_least_32_bits
from jbp.pairs.lookup import is_row as is_row
from jbp.pairs.outer import Outer
from jbp.pairs.pair import Pair, Pairs, Weights, is_pair, silence, weigh
from jbp.pairs.pair import as_floats as as_floats
from jbp.pairs.pair import as_shares as as_shares
from jbp.pairs.pair import check_arrays as check_arrays
from jbp.pairs.pair import of_size_one as of_size_one
from jbp.pairs.pair import power_of_2 as power_of_2
from jbp.pairs.pair import widened as widened
from jbp.pairs.scale import Scale
from jbp.pairs.shift import Shift
from jbp.pairs.stack import Stack
from jbp.pairs.sum import Sum
from jbp.pairs.window import Window

__all__ = [
    "Constant",
    "Coupled",
    "Geometry",
    "Lookup",
    "Outer",
    "Pair",
    "Pairs",
    "Scale",
    "Shift",
    "Stack",
    "Sum",
    "Weights",
    "Window",
    "contract",
    "is_pair",
    "merge",
    "silence",
    "weigh",
]


def __dir__() -> list[str]:
    return __all__
