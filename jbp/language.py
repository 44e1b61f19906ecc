"""Language models: a GPT of jbp's layers, and the text that a net writes, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbp.annotations import Array, Int
from jbp.arguments import as_bool, as_count, as_number, came
from jbp.backprop import apply
from jbp.combine import Combinator, repeat, residual, serial
from jbp.combine import tied as tie
from jbp.inputs import check_key, check_net, check_params
from jbp.layer import Layer
from jbp.layers import Attention, Dense, Dropout, Embedding, LayerNorm, Positions, Unembedding, gelu
from jbp.layers.initializers import Normal

__all__ = ["generate", "gpt", "reach"]

_DEVIATION = 0.02
"""Of initial weights, as GPT-2 draws them."""


def gpt(
    vocabulary: int,
    context: int,
    layers: int = 4,
    heads: int = 4,
    width: int = 128,
    *,
    dropout: float = 0.0,
    bias: bool = False,
    tied: bool = True,
) -> Layer:
    """A GPT: of tokens [t], t up to `context`, the scores [t, vocabulary] of the token that comes next at each place.

    Embedding and positions; `layers` times x + attention of LayerNorm(x) and x + MLP of LayerNorm(x), the MLP four
    times as wide, with tanh GELU; a last LayerNorm and the unembedding, which is the embedding's own table if `tied`.
    Without `bias` neither dense layers nor norms have one. `dropout` is done to the embedding and to what each branch
    adds; not to the attention weights. Weights begin normal with deviation 0.02, those that end a branch with
    0.02/√(2·layers).

    Raises: ValueError for sizes that are no whole numbers, or heads that do not divide the width.

    Source: Radford et al. 2019, "Language models are unsupervised multitask learners"; sizes and initial values as in
    nanoGPT, whose net for a CPU this is by default: 804,096 parameters for 65 tokens and a context of 64.
    """
    layers, heads = as_count(layers, "the layers of gpt"), as_count(heads, "the heads of gpt")
    width, bias = as_count(width, "the width of gpt"), as_bool(bias, "bias of gpt")
    if width % heads:
        raise ValueError(f"the heads of gpt must divide its width, but {heads} do not divide {width}")
    drop = (Dropout(dropout),) if dropout else ()

    def dense(size: int, deviation: float = _DEVIATION) -> Dense:
        return Dense(size, bias, Normal(deviation))

    last = _DEVIATION / math.sqrt(2 * layers)
    norm = LayerNorm(use_bias=bias)
    attends = serial(norm, dense(3 * width), Attention(heads), dense(width, last), *drop)
    thinks = serial(norm, dense(4 * width), gelu, dense(width, last), *drop)
    block = serial(residual(attends), residual(thinks))
    net = (Embedding(vocabulary, width), Positions(context), *drop, repeat(block, layers), norm)
    net = serial(*net, Unembedding(vocabulary))
    return tie(net, {(len(net.layers) - 1, "weight"): (0, "weight")}) if as_bool(tied, "tied of gpt") else net


def reach(net: Layer) -> int | None:
    """How many tokens a net takes at the most: the shortest of its `Positions`; None if it has none."""
    return min((leaf.length for leaf in _leaves(net) if isinstance(leaf, Positions)), default=None)


def generate(
    net: Layer,
    params: Any,
    tokens: Any,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    key: Array | None = None,
) -> Int[Array, "*n m"]:
    """`tokens` [t] or [n, t] with `length` more behind them, each drawn by what the net says of those before it.

    The scores are divided by `temperature`, of which 0 takes the largest and needs no `key`; with `top_k` only so many
    of the largest can be drawn. A net with `Positions` sees the last of them that it has room for. All of it is one
    compiled program, for each length anew. Nothing is kept from token to token (there is no cache of keys and values):
    each costs a whole pass forward over the window, so a text of m tokens costs m of them.

    Raises: ValueError for tokens that are none, an empty prompt, or a net that looks ahead, so that what is not yet
    written would change what is; found by trying it.
    """
    check_net(net, Layer)
    check_params(params)
    given, length = _prompt(tokens), as_count(length, "length")
    temperature = as_number(temperature, "temperature", 0.0)
    if not math.isfinite(temperature):
        raise ValueError(f"temperature must be a finite number ≥ 0, but is {temperature}")
    greedy = temperature == 0
    check_key(key, needed=not greedy)
    rows = given.reshape(-1, given.shape[-1])
    whole = rows.shape[1] + length
    seen = min(whole, reach(net) or whole)
    vocabulary = _vocabulary(net, params, rows, seen)
    if rows.min() < 0 or rows.max() >= vocabulary:
        wrong = rows.max() if rows.max() >= vocabulary else rows.min()
        raise ValueError(f"tokens must be 0…{vocabulary - 1}, for the net has {vocabulary} outputs, but one is {wrong}")
    if top_k is not None:
        top_k = as_count(top_k, "top_k")
        if top_k > vocabulary:
            raise ValueError(f"top_k must be at most the {vocabulary} tokens there are, but is {top_k}")
    page = jnp.asarray(np.pad(rows, ((0, 0), (0, length))), jnp.int32)
    _refuse_looking_ahead(net, params, page, seen, vocabulary)
    draw = jax.random.key(0) if key is None else key
    page, sound = _writing(net, seen, top_k, greedy)(params, page, rows.shape[1], temperature, draw)
    if not bool(sound):
        raise ValueError("the net's outputs are not finite, and say nothing of what comes next: train it anew")
    return page.reshape(*given.shape[:-1], whole)


@lru_cache(maxsize=32)
def _writing(net: Layer, seen: int, top_k: int | None, greedy: bool) -> Callable[..., tuple[Array, Array]]:
    """The program (params, page [n, m], written, temperature, key) -> the page, and whether all it read was finite."""

    @jax.jit
    def write(params: Any, page: Array, written: Array, temperature: Array, key: Array) -> tuple[Array, Array]:
        n, whole = page.shape

        def step(at: Array, carried: tuple[Array, Array]) -> tuple[Array, Array]:
            page, sound = carried
            first = jnp.maximum(at - seen, 0)
            window = lax.dynamic_slice(page, (jnp.zeros_like(first), first), (n, seen))
            scores = apply(net, params, window)
            scores = lax.dynamic_index_in_dim(scores, at - 1 - first, axis=1, keepdims=False)
            sound = sound & jnp.isfinite(scores).all()
            if greedy:
                token = scores.argmax(-1)
            else:
                token = jax.random.categorical(jax.random.fold_in(key, at), _kept(scores, top_k) / temperature)
            return lax.dynamic_update_slice_in_dim(page, token.astype(page.dtype)[:, None], at, axis=1), sound

        temperature = temperature.astype(jax.tree.leaves(params)[0].dtype)
        return lax.fori_loop(written, whole, step, (page, jnp.asarray(True)))

    return lambda params, page, written, temperature, key: write(
        params, page, jnp.int32(written), jnp.asarray(temperature, float), key
    )


def _kept(scores: Array, top_k: int | None) -> Array:
    """The scores, −∞ but for the k largest of each row."""
    if top_k is None:
        return scores
    least = lax.top_k(scores, top_k)[0][..., -1:]
    return jnp.where(scores >= least, scores, jnp.full_like(scores, -jnp.inf))


def _prompt(tokens: Any) -> np.ndarray:
    """[*n, t], whole numbers, at least one in each row."""
    if isinstance(tokens, str):
        raise ValueError("tokens must be whole numbers [t], but are text: encode it, as jbp.data.Vocabulary does")
    given = np.asarray(tokens)
    if given.size == 0 and given.ndim in (1, 2):
        raise ValueError("the prompt is empty: give at least one token, such as that of a line's end")
    if given.ndim not in (1, 2) or given.dtype.kind not in "iu":
        raise ValueError(f"tokens must be whole numbers [t] or [n, t], but are {came(tokens)}")
    return given


def _vocabulary(net: Layer, params: Any, rows: np.ndarray, seen: int) -> int:
    """How many tokens the net tells apart, of its outputs' shape.

    Raises: ValueError if it has no output for each position.
    """
    window = jax.ShapeDtypeStruct((len(rows), seen), jnp.int32)
    output = jax.eval_shape(lambda p, x: apply(net, p, x), params, window)
    if len(output.shape) != 3 or output.shape[1] != seen:
        raise ValueError(
            f"generate needs a net that makes scores [t, k] of tokens [t], but of {seen} tokens this one makes "
            f"{list(output.shape[1:])}: jbp.gpt is one"
        )
    return output.shape[2]


def _refuse_looking_ahead(net: Layer, params: Any, page: Array, seen: int, vocabulary: int) -> None:
    """Refuse a net whose output at a place changes with the tokens behind it, as it does on the prompt."""
    if seen < 2 or vocabulary < 2:
        return
    scores = _scores(net)
    window, middle = page[:, :seen], seen // 2
    other = jnp.where(jnp.arange(seen) < middle, window, (window + 1) % vocabulary)
    now, then = (np.asarray(scores(params, w))[:, :middle] for w in (window, other))
    off = np.abs(now - then).max()
    if off > 1e-3 * max(1.0, float(np.abs(now).max())):
        raise ValueError(
            f"the net looks ahead: its scores at a place change by {off:.2g} with the tokens behind it, which are not "
            "written yet: make its Attention causal"
        )


@lru_cache(maxsize=32)
def _scores(net: Layer) -> Callable[[Any, Array], Array]:
    return jax.jit(lambda params, x: apply(net, params, x))


def _leaves(net: Layer) -> Iterator[Layer]:
    if isinstance(net, Combinator):
        for child in net.children:
            yield from _leaves(child)
    else:
        yield net
