# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
"""Every class of pair in every statistic, against naive sums over the examples; and a class that jbp has never seen.

Both lists are found and not kept: the classes are the subclasses of `Pair`, the statistics the functions that
`jbp.stats` exports. Either fails here until it has its row: a sample, or a naive form.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import register_dataclass
from oracles import assert_close, assert_same, compiled
from samples import SAMPLES, I, N, O, Pick, Sample, T, added, draw, outer, pick, scale, shift

import jbp
import jbp.check
from jbp import curvature, losses, private, stats
from jbp.check.compiled import hurried
from jbp.layer import Layer
from jbp.pairs import (
    Coupled,
    Outer,
    Pair,
    Scale,
    Shift,
    Stack,
    Sum,
    merge,
    silence,
    widened,
)
from jbp.pairs.pair import PerUse
from jbp.stats.norms import most, normed
from jbp.tracing.formulas import of_pair


def classes(kind: type = Pair) -> set[type]:
    """All classes of pair that can be made, the one above included."""
    inner = {c for sub in kind.__subclasses__() for c in classes(sub)}
    mine = not inspect.isabstract(kind) and (kind.__module__.startswith("jbp.") or kind is Pick)
    return inner | ({kind} if mine else set())


WEIGHTS = np.array([0.5, 0.0, 2.0, 0.25, 1.0])
BOUND = 0.7
READ: dict[str, Callable[[Any, Any], Any]] = {
    "per_example": lambda pair, w: stats.per_example(pair),
    "norms": lambda pair, w: stats.norms(pair),
    "squared_norms": lambda pair, w: stats.squared_norms(pair),
    "gram": lambda pair, w: stats.gram(pair),
    "project": lambda pair, w: stats.project(pair, jbp.contract(widened(pair))),
    "second_moment": lambda pair, w: (stats.second_moment(pair), stats.second_moment(pair, w)),
    "variance": lambda pair, w: (stats.variance(pair), stats.variance(pair, w)),
    "snr": lambda pair, w: (stats.snr(pair), stats.snr(pair, w)),
    "noise_and_signal": lambda pair, w: (stats.noise_and_signal(pair), stats.noise_and_signal(pair, w)),
    "noise_scale": lambda pair, w: stats.noise_scale(pair, w),
    "clip_weights": lambda pair, w: stats.clip_weights(pair, BOUND),
    "clipped": lambda pair, w: stats.clipped(pair, BOUND, weights=w),
    "kronecker": lambda pair, w: [
        _whole(stats.kronecker(pair, how, v)) for how in ("expand", "reduce") for v in (None, w)
    ],
    "records": lambda pair, w: (stats.records(pair), stats.records(pair, w)),
}


def _whole(factors: Any) -> Any:
    """With every A as a matrix."""
    return jax.tree.map(lambda f: f.whole, factors, is_leaf=lambda f: isinstance(f, stats.Factors))


NOT_READ = {"sensitivity": "reads no pairs", "explain": "answers in words"}


def naive(sample: Sample) -> dict[str, Any]:
    """The same by definition, in numpy, from the gradients of the examples and from h and δ."""
    g, w, even = sample.each, WEIGHTS, np.full(N, 1 / N)
    flat, p = g.reshape(N, -1), w / w.sum()

    def mean(q: np.ndarray, a: np.ndarray = g) -> np.ndarray:
        return np.tensordot(q, a, 1)

    def variance(q: np.ndarray) -> np.ndarray:
        return mean(q, np.square(g - mean(q))) / (1 - np.square(q).sum())

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)

    def noise(q: np.ndarray) -> tuple[Any, Any]:
        trace = variance(q).sum()
        return trace, np.square(mean(q)).sum() - np.square(q).sum() * trace

    norms = np.linalg.norm(flat, axis=1)
    c = BOUND / np.maximum(norms, BOUND)
    by_layer = np.square(g).sum(tuple(range(1 + sample.stacked, g.ndim)))
    trace, signal = noise(p)
    return {
        "per_example": g,
        "norms": norms,
        "squared_norms": by_layer.T if sample.stacked else by_layer,
        "gram": flat @ flat.T,
        "project": flat @ mean(even).reshape(-1),
        "second_moment": (np.square(g).mean(0), mean(w, np.square(g))),
        "variance": (variance(even), variance(p)),
        "snr": tuple(ratio(np.square(mean(q)), variance(q)) for q in (even, p)),
        "noise_and_signal": (noise(even), noise(p)),
        "noise_scale": trace / signal if signal > 0 else np.inf,
        "clip_weights": c,
        "clipped": mean(w * c),
        "kronecker": [_factors(sample, how, v) for how in ("expand", "reduce") for v in (even, w)],
        "records": tuple(_records(sample, q) for q in (even, p)),
    }


def _factors(sample: Sample, how: str, w: np.ndarray) -> Any:
    """A and G of each block, over layers, summed up one example and one use at a time."""
    found = []
    for blocks in sample.layers:
        found.append([])
        for h, delta in blocks:
            if how == "reduce":
                h, delta = h.mean(1, keepdims=True), delta.sum(1, keepdims=True)
            t = h.shape[1]
            a = sum(w[n] * np.outer(h[n, u], h[n, u]) for n in range(N) for u in range(t)) / t
            found[-1].append((a, sum(w[n] * np.outer(delta[n, u], delta[n, u]) for n in range(N) for u in range(t))))
    return jax.tree.map(lambda *a: np.stack(a), *found) if sample.stacked else found[0]


def _records(sample: Sample, p: np.ndarray) -> Any:
    def mean(arrays: list[np.ndarray], q: np.ndarray = p) -> Any:
        if not arrays:
            return np.nan
        return q @ np.concatenate([a.reshape(len(a), -1) for a in arrays], 1).mean(1)

    found = []
    for hs, deltas in sample.held:
        dead = [(h[p != 0] == 0).all((0, 1))[None] for h in hs]
        large = [np.abs(h) >= 0.99 for h in hs]
        rms = [np.sqrt(mean([np.square(a) for a in arrays])) for arrays in (hs, deltas)]
        found.append((*rms, mean(dead, np.ones(1)), mean(large)))
    return tuple(np.stack(a) for a in zip(*found, strict=True)) if sample.stacked else found[0]


def test_every_class_and_every_statistic_has_its_row():
    """Found, so that one that is new cannot be forgotten."""
    assert {kind.__name__ for kind in classes()} == {name.split(",")[0] for name in SAMPLES if " of " not in name}
    own = [f for f in vars(stats).values() if inspect.isfunction(f) and f.__module__.startswith("jbp.stats.")]
    assert {f.__name__ for f in own} == READ.keys() | NOT_READ.keys()


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "Coupled"])
def test_every_statistic_of_every_class_of_pair(name):
    sample = SAMPLES[name]()
    found = compiled(lambda pair, w: {n: read(pair, w) for n, read in READ.items()})(sample.pair, jnp.asarray(WEIGHTS))
    for statistic, expected in naive(sample).items():
        ours, theirs = jax.tree.leaves(found[statistic]), jax.tree.leaves(expected)
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == np.shape(b), f"{statistic}: {a.shape} instead of {np.shape(b)}"
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12, err_msg=statistic)
    assert_close(sample.pair.total(), jnp.asarray(sample.each.sum(0)), "layer")
    assert sample.pair.batch == N and sample.pair.dtype == jnp.float64
    assert sample.pair.uses == sum(h.shape[1] for h, _ in sample.layers[0])
    reach = np.zeros((len(sample.layers), N))
    for layer, blocks in enumerate(sample.layers):
        for h, delta in blocks:
            reach[layer] += (np.linalg.norm(h, axis=2) * np.linalg.norm(delta, axis=2)).sum(1)
    np.testing.assert_allclose(sample.pair.reach(), reach if sample.stacked else reach[0], rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "Coupled" and "Stack" not in name])
def test_rows_are_the_blocks_whose_products_are_the_gradient(name):
    sample = SAMPLES[name]()
    for block, (h, delta) in zip(sample.pair.rows(), sample.layers[0], strict=True):
        np.testing.assert_array_equal(block.h, h)
        np.testing.assert_array_equal(block.delta, delta)
        assert block.shape == sample.shape


@pytest.mark.parametrize("statistic", READ)
def test_a_coupled_pair_has_a_total_and_every_statistic_refuses(statistic):
    sample = SAMPLES["Coupled"]()
    assert_close(sample.pair.total(), jnp.asarray(sample.each.sum(0)), "layer")
    for pair in (sample.pair, Stack(jax.tree.map(lambda a: a[None], sample.pair)), Sum((outer().pair, sample.pair))):
        with pytest.raises(NotImplementedError, match=r"lies below the batch-coupled layer \[1\]"):
            READ[statistic](pair, jnp.asarray(WEIGHTS))
    for answer in (sample.pair.reach, sample.pair.rows, lambda: sample.pair.uses):
        with pytest.raises(NotImplementedError, match="only the total is"):
            answer()


@pytest.mark.parametrize("name", SAMPLES)
def test_every_pair_is_explained(name):
    if name == "Coupled":
        with pytest.raises(NotImplementedError, match="lies below"):
            stats.explain(SAMPLES[name]().pair)
        return
    (rule,) = stats.explain(SAMPLES[name]().pair)
    assert name.split(",")[0].split(" of ")[0] in rule.pair
    assert rule.norms and rule.second_moment and "own" not in rule.norms
    if name == "Stack of Pick":
        assert rule.pair == "Stack[2](Pick(Outer t=3 i=2 o=7))"


# -- a class that jbp has never seen ----------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", sorted(Pair.__abstractmethods__))
def test_a_class_that_leaves_an_answer_open_is_refused_by_name(answer):
    lacking = type("Lacking", (Pick,), {answer: vars(Pair)[answer]})
    with pytest.raises(TypeError, match=rf"class Lacking.*\b{answer}\b"):
        lacking(jnp.zeros((N, 1, 1), int), jnp.zeros((N, 1, O)), (I, O))


def test_what_must_be_answered():
    assert Pair.__abstractmethods__ == {
        "of", "check", "total", "batch", "uses", "reach", "rows", "join", "transports", "over_stack",
    }  # fmt: skip
    assert not inspect.isabstract(Pick) and inspect.isabstract(PerUse)


def test_rows_that_are_no_blocks_are_refused_by_name():
    for rows in ((), (shift().pair,)):
        wrong = register_dataclass(type("Wrong", (Pick,), {"rows": lambda self, rows=rows: rows}))
        with pytest.raises(TypeError, match=r"Wrong.rows\(\) must give blocks jbp.Outer"):
            stats.norms(wrong(**vars(pick().pair)))


def test_clipping_keeps_its_bound_for_a_class_it_does_not_know():
    """The default's rounding is known: that of the blocks, here of Gram matrices."""
    index = jnp.asarray(np.random.default_rng(0).integers(37, size=(N, 4, 1)))
    pair = Pick(index, jnp.asarray(draw(N, 4, 31), jnp.float32), (37, 31))
    assert_same(most(pair), most(*pair.rows()))
    assert (most(pair) > stats.squared_norms(pair)).all()
    assert_same(most(Stack(jax.tree.map(lambda a: a[None], pair))), most(pair)[None])


def test_a_class_that_knows_better_registers_a_rule_of_its_own():
    own = register_dataclass(type("Own", (Pick,), {}))
    normed.register(own, lambda pair: (jnp.full(pair.batch, 49.0), 0.0))
    pair = own(**vars(pick().pair))
    np.testing.assert_array_equal(stats.norms(pair), np.full(N, 7.0))
    assert_same(stats.second_moment(pair), stats.second_moment(pick().pair))
    (rule,) = stats.explain(pair)
    assert (rule.norms, rule.second_moment) == ("a rule of its own", "one example at a time")


@dataclass(frozen=True, repr=False)
class Words(Layer):
    """y = the mean of rows x of a table: integer input, and the pair `Pick`."""

    uses_key = False

    def init(self, key, shape):
        return {"table": jax.random.normal(key, (I, O))}, (O,)

    def forward(self, params, x, key):
        return params["table"][x].mean(0), x

    def backward(self, params, saved, delta):
        each = jnp.broadcast_to(delta / len(saved), (len(saved), O))
        return None, {"table": Pick.of(saved, each, (I, O))}


@dataclass(frozen=True, repr=False)
class Plain(Words):
    """The same with the pair `Outer`, which jbp knows."""

    def backward(self, params, saved, delta):
        _, pairs = super().backward(params, saved, delta)
        pair = pairs["table"]
        return None, {"table": Outer(jax.nn.one_hot(pair.index[:, 0], I, dtype=delta.dtype), pair.delta, (I, O))}


@pytest.mark.parametrize("t", [1, T])
def test_curvature_and_private_training_take_a_class_they_do_not_know(t):
    x = jax.random.randint(jax.random.key(1), (N, t), 0, I)
    y, w = jax.random.normal(jax.random.key(2), (N, 2)), jnp.asarray(WEIGHTS)

    def asked(words: Layer) -> Callable[..., Any]:
        net = jbp.serial(words, jbp.tanh, jbp.Dense(2))

        def run(params: Any, x: Any, y: Any) -> Any:
            args = net, losses.l2_loss, params, x, y
            return (
                jbp.value_and_grad(*args[:2])(*args[2:]),
                curvature.gauss_newton_diagonal(*args, weights=w),
                curvature.gauss_newton_diagonal(*args, per_example=True),
                curvature.kronecker_factors(*args, weights=w),
                [private.clipped_sum(*args, 0.3, weights=w, lean=lean) for lean in (False, True)],
            )

        return run

    params = jbp.serial(Words(), jbp.tanh, jbp.Dense(2)).init(jax.random.key(0), (t,))[0]
    found, expected = (compiled(asked(words))(params, x, y) for words in (Words(), Plain()))
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    assert all(np.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in leaves)


def test_check_layer_takes_a_class_it_does_not_know():
    x = jax.random.randint(jax.random.key(1), (N, 1), 0, I)
    with hurried():
        report = jbp.check.layer(Words(), x=x, differences=False).raise_if_failed()
    laws = {"h free of δ", "per_example", "norms", "second_moment", "gauss_newton", "kronecker"}
    assert laws <= {entry.law for entry in report.entries if entry.verdict == "pass"}


def test_a_trace_says_of_a_class_it_does_not_know_that_the_gradient_is_from_its_pair():
    assert of_pair(pick().pair, "table") == "∂e/∂table from its Pick"


def test_uses_of_a_class_that_jbp_does_not_know_are_merged():
    one, two, bias = pick().pair, pick(1, seed=5).pair, shift(1).pair
    both = merge(one, two)
    assert isinstance(both, Pick) and both.uses == T + 1
    assert_close(both.total(), one.total() + two.total(), "layer")
    mixed = merge(one, bias, two)
    assert [type(pair) for pair in mixed.pairs] == [Pick, Shift]
    assert_close(stats.per_example(mixed), sum(map(stats.per_example, (one, two, bias))), "layer")


# -- what pairs answer ------------------------------------------------------------------------------------------------


def test_over_stack_goes_through_stacks_however_deep():
    deep = Stack(Stack(jax.tree.map(lambda a: jnp.stack([jnp.stack([a, 2 * a, 3 * a])] * 2), outer().pair)))
    one = outer().pair.total()
    scales = jnp.asarray([1.0, 4.0, 9.0])[None, :, None, None]  # h and δ are both scaled
    expected = jnp.broadcast_to(one, (2, 3, I, O)) * scales
    assert_close(deep.over_stack(lambda pair: pair.total()), expected, "layer")
    assert_close(deep.over_stack(lambda pair: pair.total(), axis=1), expected.transpose(2, 0, 1, 3), "layer")
    assert_close(deep.over_stack(lambda pair: pair.total(), axis=None), expected.sum((0, 1)), "layer")
    more = jnp.arange(6.0).reshape(2, 3)
    found = deep.over_stack(lambda pair, a, other: a * (pair.total() + other.total()), more, deep)
    assert_close(found, 2 * more[..., None, None] * expected, "layer")
    assert deep.uses == T and deep.transports and deep.batch == N
    for other in (deep.pair, outer().pair, Stack(jax.tree.map(lambda a: a[:1], deep.pair))):
        with pytest.raises(ValueError, match="their stacks differ"):
            deep.over_stack(lambda pair, other: pair.total(), other)
    with pytest.raises(NotImplementedError, match="read them through over_stack"):
        deep.rows()


def test_gradients_of_a_stack_and_of_none_are_of_different_networks():
    pair = shift(1).pair
    stack = Stack(Shift(jnp.stack([pair.delta[..., :O], pair.delta[..., O:]]), (O,)))
    with pytest.raises(ValueError, match="their stacks differ"):
        stats.gram(stack, pair)


@pytest.mark.parametrize("name", ["Outer", "Window", "Scale", "Shift"])
def test_weights_take_the_type_of_a_pair(name):
    """Of float64 beside a pair of float32, as those of numpy are."""
    pair = jax.tree.map(lambda a: a.astype(jnp.float32), SAMPLES[name]().pair)
    assert pair.total(jnp.asarray(WEIGHTS, jnp.float64)).dtype == jnp.float32


def test_coupled_uses_stay_coupled_when_they_are_merged():
    one, two = outer().pair, outer(1, seed=5).pair
    for pairs in ((Coupled(one, "[1]"), two), (one, Coupled(two, "[1]")), (Coupled(one, "[1]"), Coupled(two, "[2]"))):
        both = merge(*pairs)
        assert isinstance(both, Coupled) and isinstance(both.pair, Outer) and both.path == "[1]"
        assert_close(both.total(), one.total() + two.total(), "layer")
    assert isinstance(Coupled(one, "[1]").join(two), Coupled) and Coupled(one, "[1]").join(shift().pair) is None
    assert Coupled(Stack(jax.tree.map(lambda a: a[None], one)), "[1]").over_stack(lambda p: p.total()).shape == (
        1,
        I,
        O,
    )


def test_stacks_join_if_what_is_in_them_does_and_sums_take_everything_in():
    first, second = (Stack(jax.tree.map(lambda a: a[None], outer(seed=s).pair)) for s in (8, 9))
    both = first.join(second)
    assert isinstance(both, Stack) and both.uses == 2 * T
    assert first.join(Stack(jax.tree.map(lambda a: a[None], shift().pair))) is None and first.join(outer().pair) is None
    found = added(outer(), shift(1)).pair.join(added(scale(1), outer(seed=5)).pair)
    assert [type(pair) for pair in found.pairs] == [Outer, Shift, Scale] and found.uses == 2 * T + 2
    with pytest.raises(ValueError, match=r"one shape, but have \['\(1, 2, 7\) of a stack', '\(2, 7\)'\]"):
        merge(first, outer().pair)


def test_uses_join_along_t_where_widths_and_shapes_are_the_same():
    one, two = outer().pair, outer(1, seed=5).pair
    for first, second, axis in ((one, two, 1), (*(jax.tree.map(lambda a: a[None], p) for p in (one, two)), 2)):
        both = first.join(second)
        assert_same(both.h, jnp.concatenate((first.h, second.h), axis))
        assert_same(both.delta, jnp.concatenate((first.delta, second.delta), axis))
    flat = Outer(one.h, one.delta, (I * O,))
    assert flat.join(Outer(one.delta, one.h, (I * O,))) is None and flat.join(one) is None
    assert one.join(shift().pair) is None and shift().pair.join(scale().pair) is None
    several = merge(flat, Outer(one.delta, one.h, (I * O,)))
    assert isinstance(several, Sum) and several.uses == 2 * T


def test_a_weight_and_its_bias_hold_one_delta():
    """The same array and not an equal one, for only then `repeat` stacks it once."""
    dense = jbp.Dense(O)
    params, _ = dense.init(jax.random.key(0), (I,))
    made = jax.make_jaxpr(lambda x, delta: dense.backward(params, x, delta)[1])(jnp.ones(I), jnp.ones(O))
    bias, _, weight = made.jaxpr.outvars
    assert bias is weight


def test_of_puts_the_axis_of_the_uses_in():
    x, delta = jnp.asarray(draw(3, 4, I)), jnp.asarray(draw(3, 4, O))
    whole = Outer.of(x, delta, (I, O))
    assert whole.h.shape == (12, I) and whole.delta.shape == (12, O)
    once = Outer.of(x[0, 0], delta[0, 0], (I, O))
    assert once.h.shape == (1, I) and once.delta.shape == (1, O)
    table = Shift.of(delta, (4, O))
    assert table.delta.shape == (3, 4 * O) and Shift.of(delta, (O,)).delta.shape == (12, O)
    assert Shift.of(delta[0, 0, 0], ()).delta.shape == (1, 1)
    gain = Scale.of(delta, delta, (3, 4, O))
    assert gain.h.shape == (1, 12 * O)
    rows = delta[0]
    assert (
        Outer.of(x[0], rows, (I, O)).delta is rows and Shift.of(rows, (O,)).delta is rows
    )  # so `repeat` stacks it once
    assert isinstance(Stack.of(whole), Stack) and Sum.of(whole, table).pairs == (whole, table)
    assert Coupled.of(whole, "[1]").path == "[1]"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, d: Outer.of(x, d[:2], (I, O)), "as often used"),
        (lambda x, d: Outer.of(x, d, (O, O)), "i·o = 49"),
        (lambda x, d: Outer.of(x[0, 0, 0], d, (I, O)), "as often used"),
        (lambda x, d: Shift.of(d, (I, O)), r"δ must be \[\*t, \*shape\] of a parameter of shape \(2, 7\)"),
        (lambda x, d: Shift.of(d[0, 0], (4, O)), "but is"),
        (lambda x, d: Scale.of(x, d, (O,)), "h and δ of one shape"),
        (lambda x, d: Scale.of(x, x, (O,)), "h must be"),
    ],
)
def test_parts_that_do_not_fit_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(jnp.asarray(draw(3, 4, I)), jnp.asarray(draw(3, 4, O)))


def test_rows_are_silenced_by_selection():
    a = jnp.asarray([[1.0, -2.0], [jnp.nan, jnp.inf], [3.0, jnp.nan]])
    for weights in (jnp.asarray([0.5, 0.0, -1.0]), jnp.asarray([True, False, True])):
        np.testing.assert_array_equal(silence(weights, a), a.at[1].set(0))
        np.testing.assert_array_equal(silence(weights, jnp.arange(3)), [0, 0, 2])
    assert jnp.isnan(silence(jnp.asarray([1.0, 0.0, jnp.nan]), a)[2, 1])
