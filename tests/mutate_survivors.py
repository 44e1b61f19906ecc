"""The changes that tests/mutate.py makes and no check can see, with the reason why each computes the same."""

from typing import Any

_SHARED = "value and δ share this line: another loss, rightly differentiated; tests/test_losses.py has its values"
_MASK = "forward and backward share this line: another layer, rightly differentiated; tests/test_layers.py has its mean"
_KINK = "differs where y is exactly 0, which no random input hits; tests/test_layers.py has the exact derivative there"
_ONE = "a division by 1"
_LIMIT = "differs after 2³¹ − 1 steps alone; tests/test_optim.py goes there"
_NO_MOMENTUM = "heavy_ball at β = 0 takes the same steps; tests/test_optim.py holds that no velocity is kept"
_MARK = "says which pairs refuse to be read row by row (`Coupled`), and changes no total"
_LINEAR = (
    "`total` may add before or after the uses are joined, and `keep` joins the same pairs; only other sinks differ"
)
_LONE = "the only entry of a list is its first and its last"
_RESHAPED = "Outer.total and Shift.total flatten all axes but the last themselves"
_TEXT = "return jnp.where(kept, values * (1 / (1 - self.drop_rate)), jnp.zeros((), values.dtype))"
_SCALE_PAIR = 'return jnp.einsum("nto,nto->o", self.h, weigh(weights, self.delta)).reshape(self.shape)'
_SCALE = "1 / (1 - self.drop_rate)"
_ONE_HOT = (
    "return (jnp.expand_dims(target, -1) == classes.reshape((1,) * target.ndim + (-1,))).astype(output.dtype), None"
)
_CLASSES = "target.shape == output.shape[:-1] and jnp.issubdtype(target.dtype, jnp.integer)"
_ACT, _DROP, _LOSS, _NET = "layers/activations.py", "layers/dropout.py", "losses.py", "combine.py"
_SPINE = "backprop.py"

EQUIVALENT: dict[tuple[str, str, str, str], str] = {
    (_NET, "return (delta_x, distinct[plan.input] if plan.shares_output else None), answers[0].distinct(found)", "0",
     "0 → -1"): _LONE,
    (_NET, "found = answers[0].whole(found, None)", "0", "0 → -1"): _LONE,
    **{(_DROP, _TEXT, what, change): _MASK for what, change in (
        (_SCALE, "left operand dropped"), (_SCALE, "right operand dropped"), (_SCALE, "operator → Mult"),
        (_SCALE, "operands swapped"), (f"values * ({_SCALE})", "operator → Div"),
        (f"values * ({_SCALE})", "right operand dropped"),
        ("1 - self.drop_rate", "operator → Add"), ("1 - self.drop_rate", "left operand dropped"),
        ("1 - self.drop_rate", "right operand dropped"), ("1 - self.drop_rate", "operands swapped"),
        ("1", "1 → 2"), ("1", "1 → 0"))},
    (_DROP, _TEXT, _TEXT.removeprefix("return "), "last arguments swapped"): _MASK,
    (_LOSS, "return output - _like(loss, output, target)", "output - _like(loss, output, target)",
     "right operand dropped"): _SHARED,
    (_LOSS, "return output - _like(loss, output, target)", "output - _like(loss, output, target)",
     "operator → Add"): _SHARED,
    (_ACT, "return jnp.where(saved > 0, delta, delta * (saved + self.alpha))", "saved > 0",
     "comparison → GtE"): _KINK,
    ("layers/dense.py", 'pairs: dict[str, Any] = {"weight": Outer(saved.reshape(-1, i), uses, weight.shape)}',
     "saved.reshape(-1, i)", "reshape left out"): _RESHAPED,
    (_NET, "return delta if delta_x is None else delta + delta_x, found",
     "delta if delta_x is None else delta + delta_x", "always the second"):
        "delta_x is None for integer input only, to which no float can be added and kept: the branch is never taken",
    (_LOSS, "return _diagonal_columns(jnp.where(t == 0, jnp.zeros_like(t), jnp.sqrt(t) / output))",
     "jnp.zeros_like(t)", "zeros_like left out"): "where t == 0, t is that zero",
    (_LOSS, "return t, t.sum(-1)", "t.sum(-1)", "sum → mean"): _SHARED,
    ("pairs.py", _SCALE_PAIR, "jnp.einsum('nto,nto->o', self.h, weigh(weights, self.delta))",
     "last arguments swapped"): "a product element by element: h∘δ = δ∘h",
    (_LOSS, "return delta / _positions(delta) if _positions(delta) > 1 else delta", "_positions(delta) > 1",
     "comparison → GtE"): _ONE,
    (_LOSS, "return delta / _positions(delta) if _positions(delta) > 1 else delta",
     "delta / _positions(delta) if _positions(delta) > 1 else delta", "always the first"): _ONE,
    (_LOSS, "return delta / _positions(delta) if _positions(delta) > 1 else delta", "1", "1 → 0"): _ONE,
    (_ACT, "return jnp.where(saved >= 0, delta, self.negative_slope * delta)", "saved >= 0", "comparison → Gt"): _KINK,
    (_LOSS, "return _per_position(-jnp.where(t == 0, jnp.zeros_like(t), t / output))", "jnp.zeros_like(t)",
     "zeros_like left out"): "where t == 0, t is that zero",
    (_LOSS, _ONE_HOT, "jnp.expand_dims(target, -1) == classes.reshape((1,) * target.ndim + (-1,))",
     "comparison → NotEq"): _SHARED,
    (_LOSS, f"if {_CLASSES}:", _CLASSES, "and ↔ or"):
        "only refuses other targets, of which there are none here; tests/test_errors.py has them",
    (_LOSS, "return _block_columns(jnp.expand_dims(weight, -1) * (eye - jnp.expand_dims(p, -2)))",
     "eye - jnp.expand_dims(p, -2)", "operands swapped"): "the sign of a column s is free: ssᵀ is the same",
    (_SPINE, "return jnp.where(weights.reshape((-1,) + (1,) * (a.ndim - 1)) == 0, jnp.zeros_like(a), a)",
     "jnp.zeros_like(a)", "zeros_like → ones_like"): "any finite input will do in a row of weight 0",
    (_SPINE, "n = _batch_size(x, y)", "_batch_size(x, y)", "last arguments swapped"):
        "symmetric, but for the order of the shapes in an error",
    (_SPINE, "with located(place, layer):", "located(place, layer)", "last arguments swapped"):
        "names the layer in an error; tests/test_errors.py reads it",
    **{("optim/_scalars.py", "return jnp.minimum(steps, jnp.iinfo(steps.dtype).max - 1) + 1", what, change): _LIMIT
       for what, change in (("jnp.iinfo(steps.dtype).max - 1", "right operand dropped"), ("1", "1 → 0"),
                            ("1", "1 → 2"))},
    ("optim/_scalars.py", "return jnp.minimum(steps, jnp.iinfo(steps.dtype).max - 1) + 1",
     "jnp.minimum(steps, jnp.iinfo(steps.dtype).max - 1)", "last arguments swapped"): "a minimum is symmetric",
    **{("optim/sgd.py", "if isinstance(momentum, jax.Array) or (momentum is not None and momentum != 0):", "0", change):
       _NO_MOMENTUM for change in ("0 → 1", "0 → -1")},
    (_NET, "if leaf is y and takes_input and y is not x:", "y is not x", "comparison → Is"):
        "an output is stacked though the next repetition keeps it: memory alone, which tests/test_cost.py bounds",
    (_NET, "return tuple(leaves[self.source.index(j)] for j in range(max(self.source, default=-1) + 1))", "1", "1 → 2"):
        "nothing is kept: range(−1) is as empty as range(0)",
    **{("pairs.py", "return joined[0] if len(joined) == 1 else Sum(tuple(joined))", what, change):
       "one pair is its own first and last, and a Sum of it adds up to the same" for what, change in (
        ("joined[0] if len(joined) == 1 else Sum(tuple(joined))", "always the second"), ("1", "1 → 0"),
        ("0", "0 → -1"))},
    **{("ties.py", "return merge(*parts) if is_pair(parts[0]) else reduce(jnp.add, parts)", "0", change):
       "the uses are all pairs or all arrays" for change in ("0 → 1", "0 → -1")},
    **{(_SPINE, "coupled = _coupled_places(net) if net.couples_batch else {}",
        "_coupled_places(net) if net.couples_batch else {}", change): _MARK
       for change in ("branches swapped", "always the first", "always the second")},
    **{(_SPINE, text, "above + place", f"{side} operand dropped"): _MARK for side in ("left", "right") for text in (
        "delta_x, pairs = layer.walk_backward(at(above + place, keep), params, saved, delta)",
        "return layer.walk_backward(at(above + place, sink), params, saved, delta)",
        "if above + place in coupled:")},
    **{(_SPINE, 'if isinstance(layer, Tied) and not getattr(sink, "linear", False):', what, change): _LINEAR
       for what, change in (("not getattr(sink, 'linear', False)", "sign or not dropped"), ("False", "→ True"))},
    **{(_NET, "return _Sharing(tuple(source), ids.index(id(x)) if takes_input else -1, structure)", what, change):
       "`input` is read only where an output is shared, and then the input was found"
       for what, change in (("1", "1 → 0"), ("1", "1 → 2"), ("-1", "sign or not dropped"))},
}  # fmt: skip
"""(file, text of the line, from, change) -> reason."""


def key(mutant: dict[str, Any]) -> tuple[str, str, str, str]:
    """What a reason is found by."""
    return mutant["file"], mutant["text"], mutant["from"], mutant["change"]


def reason(mutant: dict[str, Any]) -> str | None:
    """Why a survivor is equivalent, or None."""
    return EQUIVALENT.get(key(mutant))
