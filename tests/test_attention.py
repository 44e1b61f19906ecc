"""Attention against scores written out, whole, in float64; what it costs beside autodiff; and what it refuses.

`jax.nn.dot_product_attention` is no oracle in float64, where it is off by 1.5e-7; it is what costs are compared with.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import product_flops, xla_cost
from oracles import compiled, plain

import jbp
from jbp.layers import Attention
from jbp.layers.attention import STORED

KEY = jax.random.key(3)
CASES = {
    "stored": (Attention(2), STORED, 3),
    "one more than is stored": (Attention(2), STORED + 1, 3),
    "loops of blocks": (Attention(1), 300, 2),
    "groups, rotary, in blocks": (Attention(4, 2, rotary=True), STORED + 3, 4),
    "one group, not causal": (Attention(3, 1, causal=False), 151, 2),
    "one position": (Attention(2, rotary=True), 1, 4),
}


def drawn(layer: Attention, t: int, e: int, n: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng([t, e, layer.heads])
    shapes = (n, t, (layer.heads + 2 * layer.shared) * e), (n, t, layer.heads * e)
    x, delta = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    return x, delta


def back(layer: Attention, x: Any, delta: Any, mask: Any = None) -> Any:
    y, saved = jbp.forward(layer, (), x, mask=mask)
    return y, jbp.backward(layer, (), saved, delta)[0]


@pytest.mark.parametrize("name", CASES)
def test_forward_and_delta_are_those_of_whole_scores(name: str):
    layer, t, e = CASES[name]
    x, delta = drawn(layer, t, e)

    def both(x: Any, delta: Any) -> Any:
        y, pull = jax.vjp(lambda x: plain(layer, (), x), x)
        return back(layer, x, delta), (y, pull(delta)[0])

    for found, expected in zip(*compiled(both)(x, delta), strict=True):
        units = float(jnp.abs(found - expected).max() / (jnp.finfo(found.dtype).eps * jnp.abs(expected).max()))
        assert units <= 32


def test_blocks_and_whole_rows_are_one_function_of_a_mask_too():
    """A sequence that is kept whole, and the same with padding behind it, which is taken in blocks."""
    layer, t = Attention(2), 41
    x, delta = drawn(layer, STORED + 20, 3)
    mask = np.broadcast_to(np.arange(x.shape[1]) < t, x.shape[:2])
    long = compiled(lambda x, d: back(layer, x, d, mask))(x.at[:, t:].set(jnp.nan), delta)
    short = compiled(lambda x, d: back(layer, x, d))(x[:, :t], delta[:, :t])
    for a, b in zip(long, short, strict=True):
        np.testing.assert_allclose(a[:, :t], b, rtol=1e-12, atol=1e-14)
        assert not np.asarray(a[:, t:]).any()


def test_rotation_leaves_scores_to_the_distance_alone():
    """⟨q turned by t, k turned by s⟩ hangs on t − s alone: of one token, repeated."""
    layer = Attention(1, rotary=True)
    token = np.random.default_rng(0).normal(size=(1, 1, 12))
    x = jnp.asarray(np.repeat(token, 9, 1))
    y, (_, _, p) = layer.forward((), x[0], None)
    np.testing.assert_allclose(y, np.repeat(token[0, :, 8:], 9, 0), rtol=1e-12)
    with np.errstate(divide="ignore"):  # of what is not seen
        scores = np.log(np.asarray(p[0, 0]))
    for k in (1, 2, 5):
        apart = [scores[t, t - k] - scores[t, t] for t in range(k, 9)]
        np.testing.assert_allclose(apart, apart[0], rtol=1e-9)


def test_a_row_that_sees_nothing_is_zero_and_no_number_is_lost():
    layer = Attention(2)
    x, delta = drawn(layer, 5, 3)
    mask = np.array([[False, True, True, False, True]] * 3)
    y, dx = compiled(lambda x, d: back(layer, x, d, mask))(x, delta)
    assert np.isfinite(y).all() and np.isfinite(dx).all()
    assert not np.asarray(y[:, [0, 3]]).any() and not np.asarray(dx[:, [0, 3]]).any()


def test_huge_scores_lose_nothing():
    """Scores of 10⁶ in float32: P is made from the same row twice, and adds up to 1."""
    layer = Attention(1, causal=False)
    x, delta = (a.astype(jnp.float32) for a in drawn(layer, STORED + 30, 4))
    y, dx = compiled(lambda x, d: back(layer, x, d))(1000 * x, delta)
    assert np.isfinite(y).all() and np.isfinite(dx).all()
    values = np.asarray(1000 * x[..., 8:])
    assert (y >= values.min(1, keepdims=True) - 1e-3).all() and (y <= values.max(1, keepdims=True) + 1e-3).all()


# -- what it costs ----------------------------------------------------------------------------------------------------

COSTS = {64: (1.0, 0.55), 512: (0.66, 0.14), 2048: (0.66, 0.036)}
"""Products and bytes of temporaries, beside autodiff of `jax.nn.dot_product_attention`, 4 heads of 32, at most."""


def theirs(x: Any, delta: Any) -> Any:
    def attention(x: Any) -> Any:
        q, k, v = (part.reshape(*part.shape[:2], 4, 32) for part in jnp.split(x, 3, -1))
        return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(delta.shape)

    y, pull = jax.vjp(attention, x)
    return y, pull(delta)[0]


@pytest.mark.parametrize("t", COSTS)
def test_products_and_temporaries_beside_autodiff(t: int):
    x, delta = (jax.ShapeDtypeStruct((4, t, width), jnp.float32) for width in (384, 128))
    products, temporaries = COSTS[t]

    def ours(x: Any, delta: Any) -> Any:
        return back(Attention(4), x, delta)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert product_flops(ours, x, delta) <= products * product_flops(theirs, x, delta)
        assert xla_cost(ours, x, delta)[1] <= temporaries * xla_cost(theirs, x, delta)[1]


# -- what it refuses --------------------------------------------------------------------------------------------------

REFUSED = {
    "heads that do not divide": (Attention(4), (5, 100), r"Attention\(4\) takes a sequence \[t, 12·e\]"),
    "no sequence": (Attention(4), (24,), r"takes a sequence \[t, 12·e\] of q for 4 heads beside k and v for 4"),
    "an odd half": (Attention(2, rotary=True), (5, 18), "its width must be even, but is 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_width_that_is_no_q_k_v_is_refused(name: str):
    layer, shape, said = REFUSED[name]
    for function in (lambda: layer.init(KEY, shape), lambda: jbp.forward(layer, (), jnp.zeros((2, *shape)))):
        with pytest.raises(ValueError, match=said):
            function()


def test_groups_that_do_not_divide_the_heads_are_refused():
    with pytest.raises(ValueError, match="groups of Attention must divide its heads, but 4 heads in 3 groups do not"):
        Attention(4, 3)
    assert Attention(4, 4) == Attention(4)
    for word in ("attention", "attention:4:2:1", "attention:x", "attention:4:half", "attention:4:3"):
        with pytest.raises(ValueError, match="net: "):
            Attention.from_word(word)
    for layer in (Attention(4), Attention(4, 2, causal=False), Attention(6, 3, rotary=True)):
        assert Attention.from_word(layer.as_word()) == layer
