"""Wrong versions of attention, tables and ties between them, and the checks that must catch them."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from mutant_tools import Mutant, with_pair, wrong

import jbp
import jbp.check
from jbp.layers.attention import _pulled, _turned
from jbp.pairs import Lookup, Outer, Shift

VJP, EACH, HELD = "= vjp", "= vjp, each example", "h free of δ"
TOKENS = np.random.default_rng(0).integers(5, size=(3, 4))
CHECKS: Any = {
    **{
        f"layer {shape}": lambda subject, shape=shape: jbp.check.layer(subject, shape, batch=3, differences=False)
        for shape in ((5, 18), (5, 16), (5, 3), (5, 5))
    },
    "tokens": lambda subject: jbp.check.layer(subject, x=TOKENS, differences=False),
}
PLAIN, TURNED = jbp.Attention(2), jbp.Attention(4, 2, rotary=True)
TABLE, PLACES, BACK = jbp.Embedding(5, 3), jbp.Positions(7), jbp.Unembedding(5)
NET = jbp.serial(jbp.Embedding(5, 3), jbp.tanh, jbp.Unembedding(5))
TIED = jbp.tied(NET, {(2, "weight"): (0, "weight")})


def _attended(attention: jbp.Attention, pull: Any, turn: Any = None) -> Any:
    """Attention with another way back: `pull(P, q, k, v, δ)` answers with δ of them, `turn(self, dq, dk, x)` turns them
    back, by default as it should."""

    def backward(self: Any, params: Any, saved: Any, delta: Any) -> Any:
        x, mask, p = saved
        k, v = self._seen(x)
        dq, dk, dv = pull(p, self._asked(x, 0), k, v, self._heads(delta))
        dq, dk = (self._unasked(dq, 0, x), dk) if turn is None else turn(self, dq, dk, x)
        return self._side_by_side(dq, dk, dv, x, mask), ()

    return wrong(attention, backward=backward)


def _scores(change: Any) -> Any:
    """A pull whose δ of the scores is `change(P, P∘D)`."""

    def pull(p: Any, q: Any, k: Any, v: Any, d: Any) -> Any:
        s = change(p, p * jnp.einsum("grbe,gse->grbs", d, v))
        return (
            jnp.einsum("grbs,gse->grbe", s, k),
            jnp.einsum("grbs,grbe->gse", s, q),
            jnp.einsum("grbs,grbe->gse", p, d),
        )

    return pull


def _right(p: Any, back: Any) -> Any:
    return back - p * back.sum(-1, keepdims=True)


def _before(p: Any) -> Any:
    """P of a mask that is off by one: no position sees itself."""
    t = p.shape[-1]
    return p * jnp.tril(jnp.ones((t, t), p.dtype), -1).reshape(1, 1, t, t)


def _then(change: Any) -> Any:
    """The right pull, and `change(δ_q, δ_k, δ_v)` after it."""
    return lambda *parts: change(*_pulled(*parts))


def _unturned(attention: Any, dq: Any, dk: Any, x: Any) -> Any:
    """δ_q turned on and not back."""
    return attention._joined(_turned(dq / dq.shape[-1] ** 0.5, 0, 1), x, None), dk


def _late(attention: Any, dq: Any, dk: Any, x: Any) -> Any:
    """δ_q turned back by the angle of the next position."""
    return attention._unasked(dq, 1, x), dk


def _keys_on(attention: Any, dq: Any, dk: Any, x: Any) -> Any:
    """δ_k turned on and not back, once its own turning back is undone."""
    return attention._unasked(dq, 0, x), _turned(_turned(dk, 0, 1), 0, 1)


def _once(pair: Lookup) -> Lookup:
    """Of a token that occurs twice its last use alone."""
    later = jnp.triu(jnp.ones((len(pair.index),) * 2, bool), 1) & (pair.index == pair.index.T)
    return replace(pair, delta=jnp.where(later.any(1)[:, None], jnp.zeros_like(pair.delta), pair.delta))


def _m(name: str, where: str, law: str, check: str, right: Any, wrong: Any) -> Mutant:
    return Mutant(name, where, law, check, right, wrong)


# fmt: off
MUTANTS = (
    _m("1/√e missing for δ_q", "Attention", VJP, "layer (5, 18)", PLAIN,
       _attended(PLAIN, _then(lambda q, k, v: (q * 3**0.5, k, v)))),
    _m("softmax's second term missing", "Attention", VJP, "layer (5, 18)", PLAIN,
       _attended(PLAIN, _scores(lambda p, back: back))),
    _m("softmax's second term over the queries", "Attention", VJP, "layer (5, 18)", PLAIN,
       _attended(PLAIN, _scores(lambda p, back: back - p * back.sum(-2, keepdims=True)))),
    _m("δ of the scores transposed", "Attention", VJP, "layer (5, 18)", PLAIN,
       _attended(PLAIN, _scores(lambda p, back: jnp.swapaxes(_right(p, back), -1, -2)))),
    _m("the mask off by one on the way back", "Attention", VJP, "layer (5, 18)", PLAIN,
       _attended(PLAIN, _scores(lambda p, back: _right(_before(p), jnp.where(_before(p) > 0, back, 0 * back))))),
    _m("P for Pᵀ in δ_v", "Attention", VJP, "layer (5, 18)", PLAIN,
       _attended(PLAIN, lambda p, q, k, v, d: (*_pulled(p, q, k, v, d)[:2], jnp.einsum("grbs,grse->gbe", p, d)))),
    _m("heads in another order", "Attention", VJP, "layer (5, 18)", PLAIN,
       _attended(PLAIN, _then(lambda q, k, v: (jnp.flip(q, 0), k, v)))),
    _m("δ_k and δ_v exchanged", "Attention", VJP, "layer (5, 18)", PLAIN,
       _attended(PLAIN, _then(lambda q, k, v: (q, v, k)))),
    _m("heads of a group in another order", "Attention", VJP, "layer (5, 16)", TURNED,
       _attended(TURNED, _then(lambda q, k, v: (jnp.flip(q, 1), k, v)))),
    _m("keys of a group by its first head alone", "Attention", VJP, "layer (5, 16)", TURNED,
       _attended(TURNED, lambda p, q, k, v, d: (
           _pulled(p, q, k, v, d)[0], *_pulled(p[:, :1], q[:, :1], k, v, d[:, :1])[1:]))),
    _m("δ_q turned the other way", "Attention", VJP, "layer (5, 16)", TURNED, _attended(TURNED, _pulled, _unturned)),
    _m("δ_q turned by the next position", "Attention", VJP, "layer (5, 16)", TURNED, _attended(TURNED, _pulled, _late)),
    _m("δ_k turned the other way", "Attention", VJP, "layer (5, 16)", TURNED, _attended(TURNED, _pulled, _keys_on)),
    _m("the index shifted by one", "Embedding", EACH, "tokens", TABLE,
       with_pair(TABLE, "weight", lambda p: Lookup((p.index + 1) % 5, p.delta, p.shape))),
    _m("a token that occurs twice counted once", "Embedding", EACH, "tokens", TABLE,
       with_pair(TABLE, "weight", _once)),
    _m("rows shifted by one", "Positions", EACH, "layer (5, 3)", PLACES,
       with_pair(PLACES, "weight", lambda p: Shift(jnp.roll(p.delta, p.shape[1], -1), p.shape))),
    _m("W for Wᵀ, square", "Unembedding", VJP, "layer (5, 5)", BACK,
       wrong(BACK, backward=lambda self, params, saved, delta: (
           delta @ params["weight"].T, jbp.Unembedding.backward(self, params, saved, delta)[1]))),
    _m("h and δ exchanged, with the right gradient", "Unembedding", HELD, "layer (5, 3)", BACK,
       with_pair(BACK, "weight", lambda p: Outer(p.delta, p.h, p.shape))),
    _m("the gradient transposed, square", "Unembedding", EACH, "layer (5, 5)", BACK,
       with_pair(BACK, "weight", lambda p: Outer(p.h, p.delta, p.shape))),
    _m("the unembedding's use dropped", "tied", EACH, "tokens", TIED,
       jbp.tied(jbp.serial(NET.layers[0], NET.layers[1], with_pair(BACK, "weight", lambda p: replace(
           p, delta=0 * p.delta))), {(2, "weight"): (0, "weight")})),
)
# fmt: on
