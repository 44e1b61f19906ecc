"""The changes that tests/mutate.py makes and no check can see, with the reason why each computes the same."""

from typing import Any

_SHARED = "value and δ share this line: another loss, rightly differentiated; tests/test_losses.py has its values"
_MASK = "forward and backward share this line: another layer, rightly differentiated; tests/test_layers.py has its mean"
_KINK = "differs where y is exactly 0, which no random input hits; tests/test_layers.py has the exact derivative there"
_RESHAPED = "Outer.total and Shift.total flatten all axes but the last themselves"
_TEXT = "return jnp.where(kept, values * (1 / (1 - self.drop_rate)), jnp.zeros((), values.dtype))"
_NONE = "matters for a gradient None alone, which check.optimizer never gives; tests/test_optim.py does"
_SCALE_PAIR = 'return jnp.einsum("nto,nto->o", self.h, weigh(weights, self.delta)).reshape(self.shape)'
_SCALE = "1 / (1 - self.drop_rate)"
_ACT, _DROP, _LOSS, _NET = "layers/activations.py", "layers/dropout.py", "losses.py", "combine.py"

EQUIVALENT: dict[tuple[str, str, str, str], str] = {
    **{(_DROP, _TEXT, what, change): _MASK for what, change in (
        (_SCALE, "left operand dropped"), (_SCALE, "right operand dropped"), (_SCALE, "operator → Mult"),
        (_SCALE, "operands swapped"), (f"values * ({_SCALE})", "operator → Div"),
        (f"values * ({_SCALE})", "right operand dropped"), (f"values * ({_SCALE})", "left operand dropped"),
        ("1 - self.drop_rate", "operator → Add"), ("1 - self.drop_rate", "left operand dropped"),
        ("1 - self.drop_rate", "right operand dropped"), ("1 - self.drop_rate", "operands swapped"),
        ("1", "1 → 2"), ("1", "1 → 0"))},
    (_LOSS, "return output - _like(loss, output, target)", "output - _like(loss, output, target)",
     "right operand dropped"): _SHARED,
    (_LOSS, "return output - _like(loss, output, target)", "output - _like(loss, output, target)",
     "operator → Add"): _SHARED,
    (_ACT, "return jnp.where(saved > 0, delta, delta * (saved + self.alpha))", "saved > 0",
     "comparison → GtE"): _KINK,
    (_ACT, "return jnp.where(saved > 0, delta, jnp.zeros((), delta.dtype))", "saved > 0",
     "comparison → GtE"): _KINK,
    ("layers/dense.py", 'pairs: dict[str, Any] = {"weight": Outer(saved.reshape(-1, i), uses, weight.shape)}',
     "saved.reshape(-1, i)", "reshape left out"): _RESHAPED,
    (_NET, "return delta if delta_x is None else delta + delta_x, found",
     "delta if delta_x is None else delta + delta_x", "always the second"):
        "delta_x is None for integer input only, to which no float can be added and kept: the branch is never taken",
    (_LOSS, "return _diagonal_columns(jnp.where(t == 0, jnp.zeros_like(t), jnp.sqrt(t) / output))",
     "jnp.zeros_like(t)", "zeros_like left out"): "where t == 0, t is that zero",
    (_LOSS, "return t, t.sum(-1)", "t.sum(-1)", "sum → mean"): _SHARED,
    ("optim/momentum.py",
     "return None if g is None else -like(rate, v) * direction(like(momentum, v), like(g, v), v)",
     "None if g is None else -like(rate, v) * direction(like(momentum, v), like(g, v), v)", "always the second"): _NONE,
    ("optim/momentum.py", "return v if g is None else like(momentum, v) * v + like(g, v)",
     "v if g is None else like(momentum, v) * v + like(g, v)", "always the second"): _NONE,
    ("pairs.py", _SCALE_PAIR, "jnp.einsum('nto,nto->o', self.h, weigh(weights, self.delta))",
     "last arguments swapped"): "a product element by element: h∘δ = δ∘h",
    ("pairs.py", _SCALE_PAIR, "jnp.einsum('nto,nto->o', self.h, weigh(weights, self.delta)).reshape(self.shape)",
     "reshape left out"): "a gain with one axis has this shape already",
    (_LOSS, "return delta / _positions(delta) if _positions(delta) > 1 else delta", "_positions(delta) > 1",
     "comparison → GtE"): "a division by 1",
    **{(_NET, "return _Sharing(tuple(source), ids.index(id(x)) if takes_input else -1, structure)", what, change):
       "`input` is read only where an output is shared, and then the input was found"
       for what, change in (("1", "1 → 0"), ("1", "1 → 2"), ("-1", "sign or not dropped"))},
}  # fmt: skip
"""(file, text of the line, from, change) -> reason."""


def reason(mutant: dict[str, Any]) -> str | None:
    """Why a survivor is equivalent, or None."""
    return EQUIVALENT.get((mutant["file"], mutant["text"], mutant["from"], mutant["change"]))
