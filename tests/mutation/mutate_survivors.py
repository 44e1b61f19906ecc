"""What mutate.py changes and no check of derivatives can see: those that compute the same, with the
reason, and those that compute something else, rightly differentiated, with a test that fails on it."""

from typing import Any

_ONE = "a division by 1"
_MARK = "says which pairs refuse to be read row by row (`Coupled`), and changes no total"
_LINEAR = "another sink than `total` is handed the uses of a shared parameter one by one"
_LONE = "the only entry of a list is its first and its last"
_MASK = "forward and backward share this line: another layer"
_LOSS_OF = "value and δ share this line: another loss"
_OUTSIDE = "a class that there is not is read as the nearest one"
_INSIDE = "any(_overlap(owner, other) and len(other) < len(owner) for other in owners)"
_INSIDE_SHOWN = "any((_overlap(owner, other) and len(other) < len(owner) for other in owners))"
_MASKED_MEAN = "error * (2 / output.size) if mask is None else _per_position(error * (2 / output.shape[-1]), mask)"
_RANGE = '"a schedule\'s rate", rate, lambda rate: 0 <= rate < np.inf'
_TOLD = "test_bad_input_is_told_in_one_sentence_what_was_expected_and_what_came"
_MEMORY = "stacks more than is needed: memory alone"
_TEXT = "return lax.select(kept, values * (1 / (1 - self.drop_rate)), lax.full_like(values, 0))"
_SCALE_PAIR = 'return jnp.einsum("nto,nto->o", h, weigh(weights, delta)).reshape(self.shape).astype(self.dtype)'
_ANSWERED = "delta_x, pairs = backward_answer(layer, params, layer.backward(params, saved, delta), 1)"
_SIXTEEN = "tests/test_sixteen_bits.py::"
_OUTER_TOTAL = "lax.dot_general(left, right, (((0,), (0,)), ((), ()))).reshape(self.shape).astype(self.dtype)"
_SHIFT_TOTAL = "weighed_rows(weights, widened(self.delta)).sum(0).reshape(self.shape).astype(self.dtype)"
_CONTRACTED = "(wide.total() / pair.batch if weights is None else wide.total(weights)).astype(pair.dtype)"
_SCALE = "1 / (1 - self.drop_rate)"
_CLASSES = "shape == output.shape[:-1] and jnp.issubdtype(dtype, jnp.integer)"
_LAST = "return jnp.minimum(steps, jnp.iinfo(steps.dtype).max - 1) + 1"
_COUPLED = "return Coupled(_merged(inside, stacks), coupled[0].path)"
_USES = "uses = delta.reshape(-1, o)  # one array for both pairs, which `repeat` then stacks once"
_JOINED = "return found[0] if len(found) == 1 else Sum(tuple(found))"
_PLACES = "return (target.astype(jnp.int32) if jnp.iinfo(target.dtype).bits < 32 else target).reshape(-1, 1)"
_DENSE, _NORM, _POOL = "layers/dense.py", "layers/norm.py", "layers/pool.py"
_BATCH = "layers/batchnorm.py"
_NARROW = "the same but for numbers of 16 bits"
_SQUARED = "tests/test_conv_edges.py::test_a_norm_squares_nothing_in_16_bits[GroupNorm(2)]"
_MEANS = "tests/test_conv_edges.py::test_a_mean_of_many_is_no_sum_in_16_bits"
_KEPT = "kept = {id(leaf) for leaf in others} | ({id(y)} if any(leaf is x for leaf in others) else set())"
_TAKES = "{id(y)} if any((leaf is x for leaf in others)) else set()"
_SMALLER = "return Sign(node.positive) if is_sign(node) and id(node.array) not in kept else node"
_ROOT = "return _diagonal_columns(jnp.where(t == 0, jnp.zeros_like(t), jnp.sqrt(t) / output), mask)"
_DELTA = "return _per_position(-jnp.where(t == 0, jnp.zeros_like(t), t / output), mask)"
_ACT, _DROP, _LOSS, _REPEAT = "layers/activations.py", "layers/dropout.py", "losses.py", "combine/repeat.py"
_SPINE = "backprop.py"
_MARKS = "coupled_places(net, training) if net.couples_batch else {}"
_MARKED = f"return ({_MARKS}), saved"

_GEOMETRY = "pairs/geometry.py"
_EACH = "for at, part in zip(np.ndindex(*self.kernel), parts, strict=True):"
_AXES = "at, self.dilation, part.shape[1:-1], space, self.stride, self.padding, strict=True"
_ZEROS = "*((low, high, stride - 1) for (low, high), stride in zip(padding, self.stride, strict=True)),"
_HERE = "here = np.tile(places, [-(-s // k) for s, k in zip(space, geometry.kernel, strict=True)])"
_SPREAD = "return jnp.broadcast_to(delta, shape) * jnp.expand_dims(share, -1), ()"
_ROWS = "added_to_rows(pair.index.reshape(-1), rows, self.shape[0]).astype(self.dtype)"
_PLACED = "jnp.broadcast_to(delta, shape) * jnp.expand_dims(share, -1)"
_FOUND = "return Found(value, trainable(scaled(grads, scale)), output, trainable.only(seen))"
_ADDED = "return (dq, *(a.at[:, : piece.keys].add(b) for a, b in zip(sums[1:], more, strict=True))), None"
_TURNS = "return lax.map(one, self.pair) if self.in_turn else jax.vmap(one)(self.pair)"
_TURNED = "turned = jnp.moveaxis(turned, (d + 2, d + 1, d), (d, d + 1, d + 2)).reshape(*k, o // g, g * i)"
_AHEAD = "left = jnp.moveaxis(parts, (d + 2, d + 1, 0), (0, d + 1, d + 2)).reshape(i // g, *space, g * n)"
_SHARED = "p = p / t if t > 1 else p"
_ASIDE = "`jnp.moveaxis` puts axes in by the order of their places, which comes to the same"
_CONTRACT = "return self.geometry.contract(self._flat(h), self._flat(delta)).astype(self.dtype)"

EQUIVALENT: dict[tuple[str, str, str, str], str] = {
    **{(file, text, "True", "→ False"): "what is gone through together is as long"
       for file, text in (
        (_GEOMETRY, _EACH), (_GEOMETRY, _AXES), (_GEOMETRY, _ZEROS), ("layers/attention.py", _ADDED), (_POOL, _HERE))},
    (_POOL, _HERE, "-s // k", "right operand dropped"): "what is too much is cut off in the next line",
    ("layers/attention.py", "sums = jnp.zeros((t, width), x.dtype), jnp.zeros_like(k), jnp.zeros_like(v)",
     "jnp.zeros((t, width), x.dtype)", "zeros → ones"): "every row of δ_q is written over by its block",
    (_POOL, _SPREAD, "-1", "sign or not dropped"): "a mask has one axis",
    (_GEOMETRY, _AHEAD, "2", "2 → 1"): _ASIDE,
    (_GEOMETRY, "before = k * d - low", "k * d", "right operand dropped"):
        "a pool has no dilation, and the one place of a kernel of 1 is at 0",
    **{("pairs/stack.py", _TURNS, _TURNS.removeprefix("return "), change):
       "layers one after another or side by side: the same sums"
       for change in ("branches swapped", "always the first", "always the second")},
    ("layers/embedding.py", "if len(delta) < self.length:", "len(delta) < self.length", "comparison → LtE"):
        "no zeros are put behind",
    (_GEOMETRY, _TURNED, "jnp.moveaxis(turned, (d + 2, d + 1, d), (d, d + 1, d + 2))", "last arguments swapped"):
        "three axes in the order turned round, which is its own inverse",
    (_GEOMETRY, _AHEAD, "jnp.moveaxis(parts, (d + 2, d + 1, 0), (0, d + 1, d + 2))", "last arguments swapped"):
        "two axes exchanged, which is its own inverse",
    **{(_GEOMETRY, _TURNED, what, change): _ASIDE for what, change in (
        ("d + 1", "right operand dropped"), ("d + 2", "right operand dropped"), ("1", "1 → 0"), ("2", "2 → 1"))},
    **{(_LOSS, _SHARED, what, change): _ONE for what, change in (
        ("p / t if t > 1 else p", "always the first"), ("1", "1 → 0"), ("t > 1", "comparison → GtE"))},
    (_REPEAT, "return alike(carry, carried), answers[0].distinct(found)", "0",
     "0 → -1"): _LONE,
    (_REPEAT, "found = answers[0].whole(found, None)", "0", "0 → -1"): _LONE,
    (_REPEAT, "carried = alike((delta, last), params, stacks)", "alike((delta, last), params, stacks)",
     "last arguments swapped"): "of the sources only the axes over which they vary count, as one set",
    ("combine/residual.py", "return None if delta_x is None else delta + delta_x, found",
     "None if delta_x is None else delta + delta_x", "always the second"):
        "delta_x is None for integer input only, to which no float can be added and kept: the branch is never taken",
    **{(_LOSS, text, "jnp.zeros_like(t)", "zeros_like left out"): "where t == 0, t is that zero"
       for text in (_ROOT, _DELTA)},
    ("pairs/scale.py", _SCALE_PAIR, "jnp.einsum('nto,nto->o', h, weigh(weights, delta))",
     "last arguments swapped"): "a product element by element: h∘δ = δ∘h",
    **{(_LOSS, "return delta / _positions(delta) if _positions(delta) > 1 else delta", what, change): _ONE
       for what, change in (("_positions(delta) > 1", "comparison → GtE"), ("1", "1 → 0"),
                            ("delta / _positions(delta) if _positions(delta) > 1 else delta", "always the first"))},
    (_LOSS, "return _block_columns(jnp.expand_dims(weight, -1) * (eye - jnp.expand_dims(p, -2)), mask)",
     "eye - jnp.expand_dims(p, -2)", "operands swapped"): "the sign of a column s is free: ssᵀ is the same",
    **{(_LOSS, _PLACES, what, change): "an index of 32 bits or more is left as it is, one of 16 or fewer widened"
       for what, change in (("32", "32 → 33"), ("32", "32 → 31"), ("jnp.iinfo(target.dtype).bits < 32",
                                                                  "comparison → LtE"))},
    (_LOSS, _PLACES, _PLACES.removeprefix("return (").removesuffix(").reshape(-1, 1)"), "always the first"):
        "gather and scatter narrow 64 bits to 32 themselves",
    (_REPEAT, _SMALLER, "Sign(node.positive)", "at_zero added"): "of bools, which are signs already, it says nothing",
    (_SPINE, "n = batch_size(x, y)", "batch_size(x, y)", "last arguments swapped"):
        "symmetric, but for the order of the shapes in an error",
    (_SPINE, _MARKED,
     _MARKS, "always the first"): "a walk that finds nothing to mark",
    ("optim/_scalars.py", _LAST, "jnp.minimum(steps, jnp.iinfo(steps.dtype).max - 1)", "last arguments swapped"):
        "a minimum is symmetric",
    (_SPINE, "training = True", "True", "→ False"):
        "read of nets that couple in training alone, and of those the mode was saved",
    ("combine/tied.py", f"if not {_INSIDE}:", "_overlap(owner, other)", "last arguments swapped"):
        "an overlap is symmetric",
    (_LOSS, f"return {_MASKED_MEAN}", _MASKED_MEAN, "always the second"): "the same but for rounding",
    (_REPEAT, "return tuple(leaves[self.source.index(j)] for j in range(max(self.source, default=-1) + 1))", "1",
     "1 → 2"):
        "nothing is kept: range(−1) is as empty as range(0)",
    ("pairs/contract.py", _JOINED, "0", "0 → -1"): _LONE,
    ("pairs/pair.py", "kept = weights.astype(bool).reshape((-1,) + (1,) * (a.ndim - 1))", "weights.astype(bool)",
     "astype left out"): "`jnp.where` takes every number but 0 for True",
    **{("combine/tied.py", "return merge(*parts) if is_pair(parts[0]) else reduce(jnp.add, parts)", "0", change):
       "the uses are all pairs or all arrays" for change in ("0 → 1", "0 → -1")},
    **{(_REPEAT, "return _Sharing(tuple(source), ids.index(id(x)) if takes_input else -1, structure)", what, change):
       "`input` is read only where an output is shared, and then the input was found"
       for what, change in (("1", "1 → 0"), ("1", "1 → 2"), ("-1", "sign or not dropped"))},
}  # fmt: skip
"""(file, text of the line, from, change) -> why it computes the same."""
HELD: dict[tuple[str, str, str, str], tuple[str, str]] = {
    **{(_POOL, _SPREAD, what, change): ("with a mask alone", "tests/test_masks.py::"
       "test_nan_in_the_padding_of_numbers_changes_nothing[pooled]") for what, change in (
        (f"return ({_PLACED}, ())", "returned parts swapped"), (_PLACED, "right operand dropped"),
        (_PLACED, "left operand dropped"), (_PLACED, "operator → Div"), ("1", "1 → 0"), ("1", "1 → 2"),
        ("jnp.broadcast_to(delta, shape)", "last arguments swapped"),
        ("jnp.expand_dims(share, -1)", "last arguments swapped"))},
    ("layers/attention.py", "delta = _only(mask, delta)", "_only(mask, delta)", "last arguments swapped"):
        ("with a mask alone", "tests/test_masks.py::test_nan_in_the_padding_of_numbers_changes_nothing[at positions]"),
    (_SPINE, _FOUND, _FOUND.removeprefix("return "), "last arguments swapped"):
        ("outputs and what was observed exchanged",
         "tests/test_batchnorm.py::test_observe_writes_what_was_observed_and_nothing_else"),
    ("pairs/stack.py", _TURNS, "lax.map(one, self.pair)", "last arguments swapped"):
        ("of stacks of kernels", "tests/test_pairs.py::test_every_statistic_of_every_class_of_pair[Stack of Window]"),
    ("pairs/pair.py", "w = as_floats(weights).astype(delta.dtype)", "as_floats(weights).astype(delta.dtype)",
     "astype left out"):
        ("weights of another type than δ", "tests/test_pairs.py::test_weights_take_the_type_of_a_pair"),
    ("pairs/lookup.py", f"return {_ROWS}", _ROWS, "astype left out"):
        ("a total in float32 of a pair of 16 bits", f"{_SIXTEEN}test_a_total_has_the_type_of_its_pair[Lookup-float16]"),
    ("pairs/window.py", _CONTRACT, _CONTRACT.removeprefix("return "), "astype left out"):
        ("a total in float32 of a pair of 16 bits", f"{_SIXTEEN}test_a_total_has_the_type_of_its_pair[Window-float16]"),
    **{(_DROP, _TEXT, what, change): (_MASK, "tests/test_layers.py::test_dropout_keeps_the_mean") for what, change in (
        (_SCALE, "left operand dropped"), (_SCALE, "right operand dropped"), (_SCALE, "operator → Mult"),
        (_SCALE, "operands swapped"), (f"values * ({_SCALE})", "operator → Div"),
        (f"values * ({_SCALE})", "right operand dropped"),
        ("1 - self.drop_rate", "operator → Add"), ("1 - self.drop_rate", "left operand dropped"),
        ("1 - self.drop_rate", "right operand dropped"), ("1 - self.drop_rate", "operands swapped"),
        ("1", "1 → 2"), ("1", "1 → 0"), *((_TEXT.removeprefix("return "), change) for change in (
            "last arguments swapped", "always the first", "always the second")))},
    **{(_LOSS, "return output - _like(loss, output, target)", "output - _like(loss, output, target)", change):
       (_LOSS_OF, "tests/test_losses.py::test_value_and_delta_equal_autodiff[l2_loss-float64]")
       for change in ("right operand dropped", "operator → Add")},
    (_LOSS, f"if {_CLASSES}:", _CLASSES, "and ↔ or"):
        ("takes targets that fit in shape or in type alone",
         "tests/test_errors.py::test_targets_that_do_not_fit_are_refused"),
    **{(_LOSS, text, "lax.GatherScatterMode.FILL_OR_DROP", "out of range: → CLIP"):
       (_OUTSIDE, "tests/test_losses.py::test_a_class_that_there_is_not_reads_nan_and_adds_to_nothing") for text in (
        "picked = lax.gather(rows, _places(target), how, (1, 1), mode=lax.GatherScatterMode.FILL_OR_DROP)",
        "rows = lax.scatter_add(rows, _places(target), values.reshape(-1), how, "
        "mode=lax.GatherScatterMode.FILL_OR_DROP)")},
    (_NORM, "d, hat = (a.reshape(shape).astype(inverse.dtype) for a in (d, seen))",
     "a.reshape(shape).astype(inverse.dtype)", "astype left out"): (_NARROW, _SQUARED),
    **{(_BATCH, text, what, "astype left out"): (_NARROW, _SQUARED.replace("GroupNorm(2)", "BatchNorm()"))
       for text, what in (
        ('n, c, along = len(h), h.shape[-1], inverse * params["scale"].astype(inverse.dtype)',
         "params['scale'].astype(inverse.dtype)"),
        ("rows, deltas = ((h * _along(inverse, h)).astype(delta.dtype).reshape(n, -1, c), delta.reshape(n, -1, c))",
         "(h * _along(inverse, h)).astype(delta.dtype)"),
        ("back = delta.astype(h.dtype) * _along(along, h)", "delta.astype(h.dtype)"),
        ("pairs |= {name: Constant.of_batch(value.astype(params[name].dtype), n) for name, value in moments.items()}",
         "value.astype(params[name].dtype)"),
        ("return back.astype(delta.dtype), pairs", "back.astype(delta.dtype)"))},
    (_NORM, "return lax.optimization_barrier((back * inverse).reshape(seen.shape).astype(delta.dtype)), pairs or ()",
     "(back * inverse).reshape(seen.shape).astype(delta.dtype)", "astype left out"): (_NARROW, _SQUARED),
    (_POOL, "back = geometry.unsummed(flat.astype(wide) * self._share(geometry, space, wide), space)",
     "flat.astype(wide)", "astype left out"): (_NARROW, _MEANS),
    (_POOL, "return back.reshape(saved.value).astype(delta.dtype), ()",
     "back.reshape(saved.value).astype(delta.dtype)", "astype left out"): (_NARROW, _MEANS),
    (_SPINE, "with located(place, layer):", "located(place, layer)", "last arguments swapped"):
        ("an error that does not name the layer", "tests/test_errors.py::test_a_mistake_is_a_value_error_that_says_what"
         "_and_where[delta for an activation]"),
    **{("optim/_scalars.py", _LAST, what, change):
       ("differs after 2³¹ − 1 steps alone", "tests/test_optim.py::test_the_step_count_stays_at_the_largest_integer")
       for what, change in (("jnp.iinfo(steps.dtype).max - 1", "right operand dropped"), ("1", "1 → 0"),
                            ("1", "1 → 2"))},
    **{("combine/tied.py", f"if not {_INSIDE}:", what, change): (
        "an owner inside another is completed twice or never",
        "tests/test_combine.py::test_a_sink_sees_each_pair_once_and_a_shared_one_when_it_is_complete")
       for what, change in ((f"not {_INSIDE_SHOWN}", "sign or not dropped"),
                            ("_overlap(owner, other) and len(other) < len(owner)", "and ↔ or"),
                            ("len(other) < len(owner)", "comparison → LtE"),
                            ("len(other) < len(owner)", "comparison → Gt"))},
    **{(_SPINE, f"return {start}{what}", what, "always the first"): (
        "a sink that is not linear sees the uses of a shared parameter one by one, or never",
        "tests/test_combine.py::test_only_shared_pairs_wait_for_their_other_uses")
       for start, what in (("None, ", "saved if linear else unless_shared(sink, params, saved)"),
                           ("delta_x, ", "sink(pairs) if linear else unless_shared(sink, params, pairs)"))},
    **{(f"pairs/{name.lower()}.py", f"return {what}", what, "astype left out"):
       ("a total in float32 of a pair of 16 bits", f"{_SIXTEEN}test_a_total_has_the_type_of_its_pair[{name}-float16]")
       for name, what in (("Outer", _OUTER_TOTAL), ("Shift", _SHIFT_TOTAL))},
    ("pairs/scale.py", _SCALE_PAIR, _SCALE_PAIR.removeprefix("return ").replace('"', "'"), "astype left out"):
        ("a total in float32 of a pair of 16 bits", f"{_SIXTEEN}test_a_total_has_the_type_of_its_pair[Scale-float16]"),
    ("pairs/contract.py", f"return {_CONTRACTED}", _CONTRACTED, "astype left out"):
        ("a gradient in float32 of a pair of 16 bits", f"{_SIXTEEN}test_every_statistic_of_every_class_of_pair"
         "[Outer-float16-300.0]"),
    (_SPINE, "saved = kept.saved if known else kept", "kept.saved if known else kept", "always the first"):
        ("refuses what was saved by hand", "tests/test_answers.py::test_what_was_saved_by_hand_goes_back_too"),
    **{(_SPINE, _ANSWERED, "1", change): ("refuses the right pairs of a layer that couples, and takes wrong ones",
        "tests/test_answers.py::test_a_layer_that_takes_the_whole_batch_is_looked_at_too")
       for change in ("1 → 2", "1 → 0")},
    **{("optim/_scalars.py", f"check_scalar({_RANGE}, wanted, \"correct the schedule\")", what, change): (
        "refuses other rates, or in other words", f"tests/test_optim.py::{test}")
       for what, change, test in (
        (f"check_scalar({_RANGE}, wanted, 'correct the schedule')", "last arguments swapped", _TOLD),
        ("0", "0 → -1", _TOLD), ("0", "0 → 1", "test_the_ends_of_the_ranges_are_allowed"))},
    ("optim/sgd.py", 'nesterov = as_bool(nesterov, "nesterov", "β itself is given as momentum")',
     "as_bool(nesterov, 'nesterov', 'β itself is given as momentum')", "last arguments swapped"):
        ("refuses in other words", f"tests/test_optim.py::{_TOLD}"),
    **{("optim/sgd.py", "if isinstance(momentum, jax.Array) or (momentum is not None and momentum != 0):", "0", change):
       ("the same steps, by a velocity that at β = 0 nobody needs",
        "tests/test_optim.py::test_a_known_momentum_of_zero_keeps_no_velocity") for change in ("0 → 1", "0 → -1")},
    (_REPEAT, "if leaf is y and takes_input and y is not x:", "y is not x", "comparison → Is"):
        (_MEMORY, "tests/test_combine.py::test_repeat_stacks_a_shared_array_only_once"),
    **{(_REPEAT, text, what, change): (
        _MEMORY, "tests/test_combine.py::test_repeat_keeps_one_byte_of_what_only_the_sign_is_needed_of")
       for text, what, change in (
        ("others = [leaf for leaf in jax.tree.leaves(saved, is_leaf=is_sign) if not is_sign(leaf)]",
         "not is_sign(leaf)", "sign or not dropped"),
        (_KEPT, f"{{id(leaf) for leaf in others}} | ({_TAKES})", "right operand dropped"),
        (_KEPT, f"{{id(leaf) for leaf in others}} | ({_TAKES})", "left operand dropped"),
        *((_KEPT, _TAKES, change) for change in ("branches swapped", "always the first", "always the second")),
        (_KEPT, "leaf is x", "comparison → IsNot"),
        (_SMALLER, _SMALLER.removeprefix("return "), "always the second"),
        (_SMALLER, "id(node.array) not in kept", "comparison → In"))},
    ("pairs/contract.py", _COUPLED, "0", "0 → -1"):
        ("another layer named where a statistic is refused",
         "tests/test_pairs.py::test_coupled_uses_stay_coupled_when_they_are_merged"),
    (_DENSE, _USES, "delta.reshape(-1, o)", "reshape left out"):
        (_MEMORY, "tests/test_pairs.py::test_a_weight_and_its_bias_hold_one_delta"),
    **{("pairs/contract.py", _JOINED, what, change): (
        "a `Sum` of one pair, which has no statistic of its own where the pair has",
        "tests/test_combine.py::test_pairs_have_the_tree_of_params_and_the_announced_classes_and_shapes[tied layers]")
       for what, change in (("found[0] if len(found) == 1 else Sum(tuple(found))", "always the second"),
                            ("1", "1 → 0"))},
    **{(_SPINE, text, what, change): (_MARK, "tests/test_statistics_laws.py::"
                                      "test_below_a_coupling_layer_there_is_a_total_and_nothing_else")
       for text, what, change in (
        *((_MARKED,
           _MARKS, c) for c in ("branches swapped", "always the second")),
        *((text, "above + place", f"{side} operand dropped") for side in ("left", "right") for text in (
            "return layer.walk_backward(at(above + place), params, saved, delta)",
            "if above + place in coupled:")))},
    (_SPINE, 'linear = getattr(sink, "linear", False)', "False", "→ True"):
        (_LINEAR, "tests/test_statistics_laws.py::test_a_sink_that_does_not_say_it_is_linear_sees_the_completed_pair"),
}  # fmt: skip
"""(file, text of the line, from, change) -> (what else it computes, the test that fails on it)."""


def key(mutant: dict[str, Any]) -> tuple[str, str, str, str]:
    """What a reason is found by."""
    return mutant["file"], mutant["text"], mutant["from"], mutant["change"]


def reason(mutant: dict[str, Any]) -> str | None:
    """Why no check of derivatives can catch it, or None."""
    return EQUIVALENT.get(key(mutant)) or HELD.get(key(mutant), (None, ""))[0]


def holder(mutant: dict[str, Any]) -> str | None:
    """The test that holds the right code where derivatives cannot tell, or None."""
    return HELD.get(key(mutant), (None, None))[1]


def unexplained(result: dict[str, Any]) -> bool:
    """Whether it survived without a reason."""
    return result["verdict"] == "survived" and key(result) not in EQUIVALENT


def idle(results: list[dict[str, Any]]) -> list[Any]:
    """The entries of the two tables that no mutant needs."""
    survivors = {key(m) for m in results if m["verdict"] == "survived"}
    held = {key(m) for m in results if m["verdict"] == "held"}
    return sorted((EQUIVALENT.keys() - survivors) | (HELD.keys() - held))
