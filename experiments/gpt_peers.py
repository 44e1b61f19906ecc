"""The GPT of `measurements/gpt.py` as others would write it: plain JAX for autodiff, with and without checkpoints, and
PyTorch. Parameters are those of `jbp.gpt(…, bias=False, tied=True)`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-5


class Block(NamedTuple):
    """The weights of one block, or of a stack [l, …]."""

    norm1: Any
    qkv: Any
    out: Any
    norm2: Any
    up: Any
    down: Any


def unpacked(params: Any) -> tuple[Any, Any, Block, Any]:
    """Embedding [V, d], positions [T, d], the stack of blocks and the last gain, of jbp's parameters."""
    embedding, positions, blocks, norm, _ = params
    attends, thinks = blocks
    block = Block(
        attends[0]["scale"], attends[1]["weight"], attends[3]["weight"],
        thinks[0]["scale"], thinks[1]["weight"], thinks[3]["weight"],
    )  # fmt: skip
    return embedding["weight"], positions["weight"], block, norm["scale"]


def normed(x: jax.Array, gain: jax.Array) -> jax.Array:
    """Layer normalisation without a bias."""
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * gain


def attention(x: jax.Array, heads: int) -> jax.Array:
    """[n, t, 3d] to [n, t, d], with the table of scores written out."""
    n, t, width = x.shape
    q, k, v = (a.reshape(n, t, heads, -1).transpose(0, 2, 1, 3) for a in jnp.split(x, 3, -1))
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
    scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -jnp.inf)
    return (jax.nn.softmax(scores, -1) @ v).transpose(0, 2, 1, 3).reshape(n, t, width // 3)


def attention_of_jax(x: jax.Array, heads: int) -> jax.Array:
    """The same by `jax.nn.dot_product_attention`."""
    n, t, width = x.shape
    q, k, v = (a.reshape(n, t, heads, -1) for a in jnp.split(x, 3, -1))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(n, t, width // 3)


def scores_of(heads: int, checkpoint: bool = False, attend: Callable[..., Any] = attention) -> Callable[..., jax.Array]:
    """(params, x) -> the scores of the next tokens, the blocks in a `lax.scan`; with `checkpoint` each made anew on the
    way back."""

    def block(h: jax.Array, w: Block) -> tuple[jax.Array, None]:
        return _block(h, w, heads, attend)[0], None

    step = jax.checkpoint(block) if checkpoint else block
    return lambda params, x: _through(step, params, unpacked(params)[2], x)[0]


def loss_of(heads: int, checkpoint: bool = False, attend: Callable[..., Any] = attention) -> Callable[..., jax.Array]:
    """(params, x, y) -> the mean cross-entropy of these scores."""
    scores = scores_of(heads, checkpoint, attend)
    return lambda params, x, y: _error(scores(params, x), y)


def seen_of(heads: int) -> Callable[..., tuple[jax.Array, Any]]:
    """(params, x, y, added) -> the loss and what comes into the four dense layers of the blocks, each [l, n, t, i]; to
    what they make `added` [l, n, t, o] is added, so that the gradient for it is their δ."""

    def block(h: jax.Array, given: tuple[Block, Any]) -> tuple[jax.Array, Any]:
        return _block(h, given[0], heads, attention, given[1])

    def loss(params: Any, x: jax.Array, y: jax.Array, added: Any) -> tuple[jax.Array, Any]:
        scores, seen = _through(block, params, (unpacked(params)[2], added), x)
        return _error(scores, y), seen

    return loss


def _through(block: Callable[..., Any], params: Any, given: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """The scores, and what the blocks hand out."""
    embedding, positions, _, gain = unpacked(params)
    h, seen = jax.lax.scan(block, embedding[x] + positions[: x.shape[1]], given)
    return normed(h, gain) @ embedding.T, seen


def _error(scores: jax.Array, y: jax.Array) -> jax.Array:
    """The mean cross-entropy."""
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), y[..., None], -1).mean()


def _block(h: jax.Array, w: Block, heads: int, attend: Callable[..., Any], added: Any = (0, 0, 0, 0)) -> Any:
    """One block, and what comes into its dense layers."""
    first = normed(h, w.norm1)
    mixed = attend(first @ w.qkv + added[0], heads)
    h = h + (mixed @ w.out + added[1])
    second = normed(h, w.norm2)
    wide = jax.nn.gelu(second @ w.up + added[2])
    return h + (wide @ w.down + added[3]), (first, mixed, second, wide)


def torch_step(params: Any, heads: int, x: Any, y: Any, fused: bool = True) -> Callable[[], float]:
    """A call that makes the gradient of the batch in PyTorch, from jbp's parameters, and answers with the loss.

    `fused` takes `scaled_dot_product_attention`, else the scores are written out as nanoGPT does without it.

    Raises: ModuleNotFoundError without torch.
    """
    import torch  # type: ignore[import-not-found]
    from torch.nn import functional  # type: ignore[import-not-found]

    torch.set_num_threads(max(1, len(_cores())))
    embedding, positions, blocks, gain = _torch_leaves(unpacked(params))
    tokens, targets = (torch.tensor(np.array(a), dtype=torch.long) for a in (x, y))
    leaves = [embedding, positions, *blocks, gain]

    def step() -> float:
        for leaf in leaves:
            leaf.grad = None
        h, size = embedding[tokens] + positions[: tokens.shape[1]], (embedding.shape[1],)
        for i in range(len(blocks.qkv)):
            w = Block(*(part[i] for part in blocks))
            asked = functional.layer_norm(h, size, w.norm1, eps=EPSILON) @ w.qkv
            h = h + torch_attention(asked, heads, fused) @ w.out
            mlp = functional.layer_norm(h, size, w.norm2, eps=EPSILON) @ w.up
            h = h + functional.gelu(mlp, approximate="tanh") @ w.down
        scores = functional.layer_norm(h, size, gain, eps=EPSILON) @ embedding.T
        loss = functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
        loss.backward()
        return float(loss.detach())

    return step


def torch_attention_step(params: Any, heads: int, x: Any, y: Any, fused: bool = True) -> Callable[[], float]:
    """The same of dense, attention, dense, and half the squared error's mean over positions.

    Raises: ModuleNotFoundError without torch.
    """
    import torch  # type: ignore[import-not-found]

    torch.set_num_threads(max(1, len(_cores())))
    first, _, last = _torch_leaves(params)
    x, y = (torch.tensor(np.array(a)) for a in (x, y))
    leaves = [*first.values(), *last.values()]

    def step() -> float:
        for leaf in leaves:
            leaf.grad = None
        h = torch_attention(x @ first["weight"] + first["bias"], heads, fused) @ last["weight"] + last["bias"]
        loss = 0.5 * (h - y).square().sum(-1).mean()
        loss.backward()
        return float(loss.detach())

    return step


def torch_attention(a: Any, heads: int, fused: bool) -> Any:
    """Causal, [n, t, 3d] to [n, t, d], in PyTorch."""
    import torch  # type: ignore[import-not-found]

    n, t, width = a.shape
    q, k, v = (part.view(n, t, heads, -1).transpose(1, 2) for part in a.split(width // 3, -1))
    if fused:
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        seen = torch.tril(torch.ones(t, t, dtype=torch.bool))
        found = scores.masked_fill(~seen, -math.inf).softmax(-1) @ v
    return found.transpose(1, 2).reshape(n, t, width // 3)


def _torch_leaves(tree: Any) -> Any:
    """The same tree of tensors that want a gradient."""
    import torch  # type: ignore[import-not-found]

    return jax.tree.map(lambda a: torch.tensor(np.array(a), requires_grad=True), tree)


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
