"""Other ways back: learning rules for `jbp.fit(..., rule=...)`, and step units with surrogate slopes.

What is here need not be the gradient, and says what it is instead; `alignment` measures how far from it it is.
"""

from jbp.layers.step import Step
from jbp.rules.alignment import Alignment, alignment
from jbp.rules.direct import DirectFeedbackAlignment
from jbp.rules.names import NAMES, method_of, rule_of
from jbp.rules.rule import Rule
from jbp.rules.transport import FeedbackAlignment, KolenPollack, SignSymmetry, Transport

__all__ = [
    "NAMES",
    "Alignment",
    "DirectFeedbackAlignment",
    "FeedbackAlignment",
    "KolenPollack",
    "Rule",
    "SignSymmetry",
    "Step",
    "Transport",
    "alignment",
    "method_of",
    "rule_of",
]


def __dir__() -> list[str]:
    return __all__
