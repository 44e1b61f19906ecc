"""A batch that is padded says what each of its examples says that is cut to its length: gradients and statistics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpts import drawn, gpt
from oracles import assert_close, compiled

import jbp
from jbp import stats
from jbp.layer import Layer
from jbp.losses import softmax_cross_entropy as LOSS

N, T, V = 3, 7, 11
LENGTHS = np.array([7, 1, 3])
MASK = np.arange(T) < LENGTHS[:, None]
NETS = {
    "a GPT": gpt(V, T, 6, 3, 2),
    "a tied GPT that sees all, rotary, in groups": gpt(V, T, 8, 2, 1, True, groups=1, causal=False, rotary=True),
}


def read(net: Layer, params: Any, x: Any, y: Any, mask: Any = None) -> Any:
    """What is made of each example [n, ...], so that parts can be put together; and of sums, N times the mean."""
    errors, pairs = jbp.value_and_pairs(net, LOSS, params, x, y, mask=mask)
    total = jax.tree.map(lambda g: g * len(x), jbp.contract(pairs))
    second = jax.tree.map(lambda g: g * len(x), stats.second_moment(pairs))
    each = {
        "errors": errors, "per_example": stats.per_example(pairs), "norms": stats.norms(pairs),
        "along": stats.project(pairs, params), "clip": stats.clip_weights(pairs, 0.1),
    }  # fmt: skip
    return each, {"total": total, "second": second, "clipped": stats.clipped(pairs, 0.1)}


def spoilt(x: Any) -> Any:
    """Tokens with numbers in the padding that are none."""
    return np.where(MASK, np.asarray(x), np.where(np.arange(T) % 2, -1, 1000))


@pytest.mark.parametrize("name", NETS)
def test_a_padded_batch_is_its_examples_cut_to_their_lengths(name: str):
    net = NETS[name]
    params, x, y = drawn(net, N, T, V)
    bad_x, bad_y = (jnp.asarray(spoilt(a)) for a in (x, y))

    def both(params: Any, x: Any, y: Any, bad_x: Any, bad_y: Any) -> Any:
        cut = [read(net, params, x[i : i + 1, :t], y[i : i + 1, :t]) for i, t in enumerate(LENGTHS)]
        each = jax.tree.map(lambda *a: jnp.concatenate(a), *(one for one, _ in cut))
        sums = jax.tree.map(lambda *a: sum(a), *(one for _, one in cut))
        return (
            read(net, params, bad_x, bad_y, MASK),
            (each, sums),
            stats.gram(jbp.value_and_pairs(net, LOSS, params, bad_x, bad_y, mask=MASK)[1]),
        )

    padded, cut, gram = compiled(both)(params, x, y, bad_x, bad_y)
    assert_close(padded, cut, "net")
    np.testing.assert_allclose(jnp.sqrt(jnp.diag(gram)), cut[0]["norms"], rtol=1e-12)
    value, grads = jbp.value_and_grad(net, LOSS)(params, bad_x, bad_y, mask=MASK)
    assert_close((value, grads), (cut[0]["errors"].mean(), jax.tree.map(lambda g: g / N, cut[1]["total"])), "net")


def test_the_mean_over_the_tokens_of_a_batch_is_one_by_the_lengths():
    net = NETS["a GPT"]
    params, x, y = drawn(net, N, T, V)
    weights = MASK.sum(1) / MASK.sum()
    value, _ = jbp.value_and_grad(net, LOSS)(params, x, y, weights=weights, mask=MASK)
    output = compiled(lambda p, x: jbp.forward(net, p, x, mask=MASK)[0])(params, x)
    each = np.asarray(jax.nn.logsumexp(output, axis=-1) - jnp.take_along_axis(output, y[..., None], -1)[..., 0])
    np.testing.assert_allclose(value, each[MASK].mean(), rtol=1e-13)


POOLED = jbp.serial(jbp.Dense(9), jbp.Attention(3), jbp.GlobalPool(), jbp.Dense(5))


AT_POSITIONS = jbp.serial(jbp.Dense(9), jbp.Attention(3), jbp.Dense(5))


@pytest.mark.parametrize("net", [AT_POSITIONS, POOLED], ids=["at positions", "pooled"])
def test_nan_in_the_padding_of_numbers_changes_nothing(net: Layer):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(N, T, 4)), rng.integers(5, size=(N, T))
    y = y[:, 0] if net is POOLED else y
    params, _ = net.init(jax.random.key(0), (T, 4))
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    run = compiled(lambda p, x, y: read(net, p, x, y, MASK))
    found, clean = run(params, np.where(MASK[..., None], x, np.nan), y), run(params, x, y)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True))
    alone = compiled(lambda p, x, y: read(net, p, x, y)[0])
    cut = [
        alone(params, x[i : i + 1, :t], y[i : i + 1] if net is POOLED else y[i : i + 1, :t])
        for i, t in enumerate(LENGTHS)
    ]
    assert_close(found[0], jax.tree.map(lambda *a: jnp.concatenate(a), *cut), "net")


REFUSED = {
    "a mask of another length": (AT_POSITIONS, MASK[:, :4], r"Attention\(3\) has \(7,\)"),
    "a mask of numbers": (AT_POSITIONS, MASK.astype(float), r"mask must be bools \[3, t\]"),
    "a mask of other examples": (AT_POSITIONS, MASK[:2], r"mask must be bools \[3, t\]"),
    "nothing real": (AT_POSITIONS, MASK & (np.arange(N) != 1)[:, None], "mask has no real position in row 1"),
    "a kernel": (jbp.serial(jbp.Conv(3, (3,)), jbp.Dense(5)), MASK, r"Conv\(3, \(3,\)\) is not told which positions"),
    "a window": (jbp.serial(jbp.MaxPool((3,), 1, "same"), jbp.Dense(5)), MASK, "MaxPool.* is not told which positions"),
    "groups": (jbp.serial(jbp.GroupNorm(2), jbp.Dense(5)), MASK, "GroupNorm.* is not told which positions"),
    "flat": (jbp.serial(jbp.Attention(1), jbp.Flatten(), jbp.Dense(5)), MASK, "Flatten.* is not told which positions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_that_would_be_misread_is_refused(name: str):
    net, mask, said = REFUSED[name]
    x = np.zeros((N, T, 6))
    params, out = net.init(jax.random.key(0), x.shape[1:])
    y = np.zeros((N, *out[:-1]), int)
    with pytest.raises(ValueError, match=said):
        jbp.value_and_grad(net, LOSS)(params, x, y, mask=mask)
