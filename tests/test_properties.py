"""Random networks against autodiff of a plain forward pass (`fuzz.py` says what is compared, and in which units).

JBP_PROPERTY_CASES networks (300 unless told), half of them in float32, drawn by hypothesis in shards of 15; the first
30 in `make test`, the others in `make soak`. Derandomised: the same networks every time; hypothesis draws some small
ones again, so the 300 have 258 structures. A failure shrinks to a small network, printed as code.
"""

import os
import sys
from collections.abc import Iterator
from itertools import count, islice
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NETS, NO_GRADIENT
from fuzz import DTYPES, LEVEL, assert_agrees, worst_error
from hypothesis import HealthCheck, Phase, given, seed, settings
from nets import NAMES, Problem, numbers, problems, seeded

import jbp
from jbp import backprop, combine, pairs
from jbp.combine import Tied

CASES, SHARD = int(os.environ.get("JBP_PROPERTY_CASES", "300")), 15
SHARDS = range(-(-CASES // (2 * SHARD)))
LEAN = 1
"""The shards of each dtype that are not left to `make soak`."""
SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard", [s if s < LEAN else pytest.param(s, marks=pytest.mark.soak) for s in SHARDS])
def test_random_networks_agree_with_autodiff(shard, dtype):
    seen = []

    @settings(SETTINGS, max_examples=min(SHARD, CASES // 2 - shard * SHARD) or 1)
    @seed(1000 * shard + DTYPES.index(dtype))  # else every shard would draw the same networks
    @given(problems(dtype))
    def agree(p: Problem) -> None:
        seen.append(p.structure)
        assert_agrees(p)

    agree()
    assert len(set(seen)) >= 0.8 * len(seen), "hypothesis drew the same structure again and again"


def test_networks_are_printed_as_code():
    for i in range(200):
        p = seeded(7, i, dtype="float64")
        assert eval(repr(p), NAMES | {"Problem": Problem}) == p


def every(net: Any) -> Iterator[Any]:
    yield net
    for child in getattr(net, "children", ()):
        yield from every(child)


def shared(net: Any) -> Iterator[Any]:
    return (layer for layer in every(net) if isinstance(layer, Tied))


def depth(net: Any) -> int:
    return max((1 + depth(child) for child in getattr(net, "children", ())), default=0)


def test_random_networks_reach_everything():
    """Every public layer with a gradient of floats, combinator, loss; depth 4, width 1, positions, batches 1 and 17."""
    public = {c for c in (*vars(jbp).values(), *vars(jbp.layers).values()) if isinstance(c, type)}
    kept_out = {jbp.Layer, jbp.layers.Activation, *NO_GRADIENT, *(type(case.net) for case in NETS if case.inputs)}
    kept_out |= {type(case.net) for case in NETS if not hasattr(case.net, "children") and case.net.couples_batch}
    drawn = [seeded(3, i, dtype="float64") for i in range(600)]
    missing = (
        {c for c in public if issubclass(c, jbp.Layer)} - kept_out - {type(n) for p in drawn for n in every(p.net)}
    )
    while missing and len(drawn) < 6000:  # the rarest is in one of some 400
        drawn.append(seeded(3, len(drawn), dtype="float64"))
        missing -= {type(layer) for layer in every(drawn[-1].net)}
    assert not missing
    kinds = {type(layer) for p in drawn for layer in every(p.net)}
    assert {combine.Serial, combine.Residual, combine.Branch, combine.Repeat, Tied} <= kinds
    assert {type(p.loss) for p in drawn} == {
        type(v) for v in vars(jbp.losses).values() if isinstance(v, jbp.losses.Loss)
    }
    assert {p.batch for p in drawn} == set(range(1, 18))
    assert max(depth(p.net) for p in drawn) >= 4
    assert {"serial", "branch"} <= {type(t.layer).__name__.lower() for p in drawn for t in shared(p.net)}
    assert {"weight", "gain", "bias", 0, 1, 2} <= {path[-1] for p in drawn for t in shared(p.net) for path, _ in t.ties}
    assert {"sum", "concat"} == {b.join for p in drawn for b in every(p.net) if isinstance(b, combine.Branch)}


def test_no_parameter_is_left_at_a_special_value():
    for i in range(40):
        n = numbers(seeded(5, i, dtype="float64"))
        for path, leaf in jax.tree_util.tree_leaves_with_path(n.params):
            assert np.all(np.asarray(leaf) != float(path[-1].key == "gain")), path


# Planted bugs: each replaces one method, and the same check as above must reject a network before long.


def no_skip(self, visit, params, saved, delta):
    return visit((), self.layer, params, saved, delta)


def overwriting(self, *args):
    with mock.patch.object(sys.modules["jbp.combine.branch"], "sum_of", lambda deltas: deltas[-1]):
        return true_branch(self, *args)


def mask_forgotten(self, params, saved, delta):
    return delta, ()


def doubled(self, weights=None):
    return 2 * true_shift(self, weights)


def forward_order(self, visit, params, saved, delta):
    def upside_down(tree: Any) -> Any:
        return jax.tree.map(lambda a: a[::-1], tree)

    stacks, *rest = saved
    delta_x, found = true_repeat(self, visit, upside_down(params), (upside_down(stacks), *rest), delta)
    return delta_x, upside_down(found)


def owner_alone(owner, parts):
    return parts[0]


def unweighted(weights, delta):
    return delta if weights is None else jnp.where((weights == 0).reshape(-1, *(1,) * (delta.ndim - 1)), 0, delta)


def no_silence(weights, a):
    return a


true_shift = pairs.Shift.total
true_branch, true_repeat = combine.Branch.walk_backward, combine.Repeat.walk_backward

PLANTED = {
    "residual without the δ of the skip": (combine.Residual, "walk_backward", no_skip),
    "fan-out δ overwritten, not added": (combine.Branch, "walk_backward", overwriting),
    "dropout mask not applied to δ": (jbp.Dropout, "backward", mask_forgotten),
    "bias gradient doubled": (pairs.Shift, "total", doubled),
    "repeat's layers in forward order": (combine.Repeat, "walk_backward", forward_order),
    "the uses of a borrowed parameter dropped": (sys.modules["jbp.combine.tied"], "_join", owner_alone),
    "weights only where they are zero": (sys.modules["jbp.pairs.pair"], "weigh", unweighted),
    "rows of weight 0 not silenced": (backprop, "silence", no_silence),
}


@pytest.fixture
def plant(monkeypatch):
    """Replaces a method, or puts it back; no program traced before that is used afterwards."""

    def forget():
        backprop._compiled.cache_clear()
        for leaf in (backprop.forward_leaf, backprop._backward_examples):
            leaf.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]

    with monkeypatch.context() as patch:

        def replace(*bug):
            patch.setattr(*bug) if bug else patch.undo()
            forget()

        yield replace
    forget()


@pytest.mark.soak
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_rejected_within_five_networks_that_contain_it(bug, plant):
    plant(*PLANTED[bug])
    drawn = (seeded(11, i, dtype=DTYPES[i % 2]) for i in count())
    for p in islice((p for p in drawn if concerns(bug, p)), 5):
        if worst_error(p).units > LEVEL:
            plant()  # nothing planted: the same network passes
            assert_agrees(p)
            return
    pytest.fail(f"five networks did not notice: {bug}")


def concerns(bug: str, p: Problem) -> bool:
    """Whether the net runs what the bug changes."""
    kinds = {type(layer) for layer in every(p.net)}
    return {
        "residual without the δ of the skip": combine.Residual in kinds,
        "fan-out δ overwritten, not added": combine.Branch in kinds,
        "dropout mask not applied to δ": p.net.uses_key is True and p.training,
        "bias gradient doubled": jbp.Dense in kinds,
        "repeat's layers in forward order": combine.Repeat in kinds,
        "the uses of a borrowed parameter dropped": any(jbp.Dense in map(type, every(t)) for t in shared(p.net)),
        "weights only where they are zero": p.weights != "none" and jbp.Dense in kinds,
        "rows of weight 0 not silenced": p.weights == "some zero" and jbp.Dense in kinds,
    }[bug]
