# pyright: reportCallIssue=false
"""What is read from h alone, and second order, of a padded batch: as of its examples cut to their lengths."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpts import drawn
from oracles import assert_close, compiled
from test_masks import LENGTHS, LOSS, MASK, NETS, N, T, V, spoilt

import jbp
from jbp import curvature, stats
from jbp.layer import Layer

RELU = jbp.serial(
    jbp.Dense(5), jbp.relu, jbp.Dense(9), jbp.Attention(3), jbp.LayerNorm(), jbp.GlobalPool(), jbp.Dense(5)
)
GPT = "a tied GPT that sees all, rotary, in groups"
KINDS = {GPT: NETS[GPT], "pooled": RELU}


def problem(name: str) -> tuple[Any, ...]:
    """(net, params, x, y) and the same x and y with what is no number, or no token, in the padding."""
    net = KINDS[name]
    if name == GPT:
        params, x, y = drawn(net, N, T, V)
        return net, params, x, y, *(jnp.asarray(spoilt(a)) for a in (x, y))
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(N, T, 4)), rng.integers(5, size=(N, T))
    params, _ = net.init(jax.random.key(0), (T, 4))
    params = jax.tree.map(lambda a: jnp.asarray(a + 0.1 * rng.normal(size=a.shape)), params)
    bad = np.where(MASK[..., None], x, np.nan)
    return net, params, x, y[:, 0], bad, y[:, 0]


def second_order(net: Layer, params: Any, x: Any, y: Any, **told: Any) -> Any:
    """What is a mean over examples, and linear in it."""
    at: Any = (net, LOSS, params, x, y)
    return {
        "diagonal": curvature.gauss_newton_diagonal(*at, **told),
        "empirical": curvature.gauss_newton_diagonal(*at, "true", **told),
        "product": curvature.gauss_newton_product(*at, **told)(params),
        "fisher": curvature.fisher_product(*at, **told)(params),
        "hessian": curvature.hessian_product(*at, **told)(params),
        "expand": whole(curvature.kronecker_factors(*at, **told)),
        "reduce": whole(curvature.kronecker_factors(*at, "true", sharing="reduce", **told)),
    }


def whole(factors: Any) -> Any:
    """The matrices, A too."""
    return jax.tree.map(lambda f: (f.whole.a, f.g), factors, is_leaf=lambda f: isinstance(f, stats.Factors))


def of(net: Layer, params: Any, x: Any, y: Any, mask: Any = None) -> Any:
    """Squares of the records, which are means over examples; and the pairs."""
    _, pairs = jbp.value_and_pairs(net, LOSS, params, x, y, mask=mask)
    found = {path: (r.h**2, r.delta**2, r.saturated) for path, r in stats.records(pairs, mask=mask).items()}
    return found, pairs


@pytest.mark.parametrize("name", KINDS)
def test_curvature_factors_and_records_of_a_padded_batch_are_those_of_its_examples_cut(name: str):
    net, params, x, y, bad_x, bad_y = problem(name)
    w = np.asarray([0.7, 0.0, 1.9])

    def both(params: Any, x: Any, y: Any, bad_x: Any, bad_y: Any) -> Any:
        def cut(a: Any, i: int) -> Any:
            return a[i : i + 1] if a.ndim == 1 else a[i : i + 1, : LENGTHS[i]]

        each = [second_order(net, params, cut(x, i), cut(y, i)) for i in range(N)]
        seen = [of(net, params, cut(x, i), cut(y, i))[0] for i in range(N)]
        mean = jax.tree.map(lambda *a: sum(a) / N, *each)
        found = second_order(net, params, bad_x, bad_y, mask=MASK)
        weighed = curvature.kronecker_factors(net, LOSS, params, bad_x, bad_y, weights=w, mask=MASK)
        parts = [one["expand"] for one in each]
        pairs = partial(zip, strict=True)
        is_pair = lambda node: isinstance(node, tuple) and len(node) == 2 and hasattr(node[0], "ndim")  # noqa: E731
        wanted = jax.tree.map(
            lambda *f: (sum(v / w.sum() * a[0] for v, a in pairs(w, f)), sum(v * a[1] for v, a in pairs(w, f))),
            *parts,
            is_leaf=is_pair,
        )
        records = of(net, params, bad_x, bad_y, MASK)[0]
        return (found, records, whole(weighed)), (mean, jax.tree.map(lambda *a: sum(a) / N, *seen), wanted)

    found, wanted = compiled(both)(params, x, y, bad_x, bad_y)
    for path, values in wanted[1].items():  # a bias and a table have no h
        for a, b in zip(found[1][path], values, strict=True):
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b), path)
    clean = lambda tree: jax.tree.map(jnp.nan_to_num, tree)  # noqa: E731
    assert_close((found[0], clean(found[1]), found[2]), (wanted[0], clean(wanted[1]), wanted[2]), "net")
