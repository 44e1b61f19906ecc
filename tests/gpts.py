"""Small language models of the kind that GPT-2 is, for whatever is said of sequences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jbp

NORM = jbp.LayerNorm()


def block(width: int, heads: int, norm: jbp.Layer = NORM, **options: Any) -> jbp.Layer:
    """A layer of a GPT: attention and a dense part, each beside a path that leaves x as it is."""
    attention = jbp.Attention(heads, **options)
    asked = (attention.heads + 2 * attention.shared) * (width // heads)
    return jbp.serial(
        jbp.residual(jbp.serial(norm, jbp.Dense(asked), attention, jbp.Dense(width))),
        jbp.residual(jbp.serial(norm, jbp.Dense(4 * width), jbp.gelu, jbp.Dense(width))),
    )


def gpt(
    vocabulary: int, length: int, width: int, heads: int, layers: int, tied: bool = False, **options: Any
) -> jbp.Layer:
    """Tokens [t] to a score for each token of the vocabulary; `tied`: the embedding is the unembedding too."""
    net = jbp.serial(
        jbp.Embedding(vocabulary, width),
        jbp.Positions(length),
        jbp.repeat(block(width, heads, **options), layers),
        jbp.LayerNorm(),
        jbp.Unembedding(vocabulary),
    )
    return jbp.tied(net, {(4, "weight"): (0, "weight")}) if tied else net


def drawn(net: jbp.Layer, n: int, length: int, vocabulary: int, dtype: Any = jnp.float64) -> tuple[Any, Any, Any]:
    """Parameters away from their initial values, tokens, and the tokens to be said."""
    rng = np.random.default_rng([n, length, vocabulary])
    shapes = jax.eval_shape(lambda key: net.init(key, (length,))[0], jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), dtype), shapes)
    x, y = (jnp.asarray(rng.integers(vocabulary, size=(n, length))) for _ in range(2))
    return params, x, y
