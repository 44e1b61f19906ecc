"""Rules by name, and what a rule is to training."""

from __future__ import annotations

from jbp.rules.direct import DirectFeedbackAlignment
from jbp.rules.rule import Rule
from jbp.rules.transport import FeedbackAlignment, KolenPollack, SignSymmetry
from jbp.step import Backpropagation, Method

NAMES: dict[str, Rule] = {
    "feedback_alignment": FeedbackAlignment(),
    "direct_feedback_alignment": DirectFeedbackAlignment(),
    "sign_symmetry": SignSymmetry(),
    "sign_symmetry_batchwise": SignSymmetry("batchwise"),
    "sign_symmetry_fixed": SignSymmetry("fixed"),
    "kolen_pollack": KolenPollack(),
}


def rule_of(rule: Rule | str) -> Rule:
    """A rule, or the one of that name with its defaults.

    Raises:
        ValueError: for an unknown name or something else.
    """
    if isinstance(rule, str) and rule in NAMES:
        return NAMES[rule]
    if not isinstance(rule, Rule):
        raise ValueError(f"rule must be one of {', '.join(NAMES)}, or come from jbp.rules, but is {rule!r}")
    return rule


def method_of(rule: Rule | Method | str | None) -> Method:
    """How a step finds its gradient under `rule`: a rule, its name, a method of your own, or None for backpropagation.

    Raises:
        ValueError: for an unknown name or something else.
    """
    if rule is None:
        return Backpropagation()
    return rule if isinstance(rule, Method) else rule_of(rule).as_method()
