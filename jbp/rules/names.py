"""Rules by name, and what a rule is to training."""

from __future__ import annotations

from typing import Any

from jbp.backprop import Mask
from jbp.layer import Layer
from jbp.method import Method
from jbp.rules.direct import DirectFeedbackAlignment
from jbp.rules.rule import Rule
from jbp.rules.transport import FeedbackAlignment, KolenPollack, SignSymmetry

NAMES: dict[str, Rule] = {
    "feedback_alignment": FeedbackAlignment(),
    "direct_feedback_alignment": DirectFeedbackAlignment(),
    "sign_symmetry": SignSymmetry(),
    "sign_symmetry_batchwise": SignSymmetry("batchwise"),
    "sign_symmetry_fixed": SignSymmetry("fixed"),
    "kolen_pollack": KolenPollack(),
}


def method_of(rule: Rule | Method | str | None, net: Layer, params: Any, x: Any, mask: Mask | None = None) -> Method:
    """How a step finds its gradient under `rule`: a rule, its name, or None for backpropagation.

    A `jbp.method.Method` of your own is taken as it is. Of `x` [n, ...] only shape and dtype matter.

    Raises:
        ValueError: for an unknown name or something else, or if the net has no weight.
    """
    if rule is None:
        return Method()
    if isinstance(rule, Method):
        return rule
    if isinstance(rule, str) and rule in NAMES:
        rule = NAMES[rule]
    if not isinstance(rule, Rule):
        raise ValueError(f"rule must be one of {', '.join(NAMES)}, or come from jbp.rules, but is {rule!r}")
    return rule.bind(net, params, x, Mask.of(None) if mask is None else mask)
