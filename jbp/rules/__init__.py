"""Other ways back: learning rules for `jbp.fit(..., rule=...)`, and step units with surrogate slopes.

What is here need not be the gradient, and says what it is instead; `alignment` measures how far from it it is.
"""

from jbp.layers.step import Step as Step
from jbp.rules.alignment import Alignment as Alignment
from jbp.rules.alignment import alignment as alignment
from jbp.rules.direct import DirectFeedbackAlignment as DirectFeedbackAlignment
from jbp.rules.names import NAMES as NAMES
from jbp.rules.names import method_of as method_of
from jbp.rules.names import rule_of as rule_of
from jbp.rules.rule import Rule as Rule
from jbp.rules.transport import FeedbackAlignment as FeedbackAlignment
from jbp.rules.transport import KolenPollack as KolenPollack
from jbp.rules.transport import SignSymmetry as SignSymmetry
from jbp.rules.transport import Transport as Transport
