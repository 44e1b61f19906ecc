"""Attention's way back: values by the transposed map, and scores by how much better than the mean each key would be.

Claim. With P = softmax of the scores S, row by row, and y[t] = Σₛ P[t,s] v[s]: the δ of the values is attention again,
by the transposed map, δ_v[s] = Σₜ P[t,s] δ[t]. Of the scores it is P[t,s](D[t,s] − Σₛ P[t,s] D[t,s]), where
D[t,s] = ⟨δ[t], v[s]⟩ is what the error would gain if t read s alone: so each row of the map adds up to 0, a key counts
by how much better than the row's mean it is, and one that is hardly read hardly learns. And q and k meet as in any
product, δ_q[t] = Σₛ δ_S[t,s] k[s]/√e and δ_k[s] = Σₜ δ_S[t,s] q[t]/√e. Written out with loops over positions in numpy,
with masks, groups and rotation, it is what `jbp.Attention` and `jax.grad` find, block by block too.

Beside it, a net that is to say which token stood three places before. At its start it reads everything alike; but the
map of −δ_S, averaged over sequences, has its largest entries already where it is to look. Trained, it looks there.

Source: Vaswani et al. 2017, arXiv:1706.03762, equation 1; the derivative of softmax: Bishop 2006, eq. 4.106.

    python experiments/claims/backward_of_attention.py [--quick]

Expect: all equal to 16 eps of the largest entry, rows of δ_S that add up to 0; a share of read weight of over 0.9 three
places before, after training. Control: softmax's second term is missing. Wall time: 20 s on two idle cores.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp

EPS = 2.0**-52
ALLOWED = 64  # eps × the largest entry
CASES: dict[str, tuple[jbp.Attention, int, int]] = {
    "causal, 2 heads": (jbp.Attention(2), 9, 4),
    "all see all": (jbp.Attention(3, causal=False), 7, 3),
    "groups, rotary": (jbp.Attention(4, 2, rotary=True), 8, 4),
    "in blocks": (jbp.Attention(2, 1), 137, 2),
}


@dataclass(frozen=True)
class Config:
    tokens: int = 8
    length: int = 12
    back: int = 3
    width: int = 16
    sequences: int = 4096
    epochs: int = 30
    second_term: bool = True
    """Whether the mean over the row is taken away, as it must be."""
    seed: int = 0


FULL = Config()
QUICK = Config(sequences=2048, epochs=20)
CONTROL = dataclasses.replace(QUICK, second_term=False, epochs=1)


def parts_of(attention: jbp.Attention, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """q of every head, k and v of every group, of one example, turned by position if it is so."""
    heads, groups = attention.heads, attention.shared
    e = x.shape[1] // (heads + 2 * groups)
    cut = [x[:, i * e : (i + 1) * e] for i in range(heads + 2 * groups)]
    if attention.rotary:
        cut[: heads + groups] = [turned(a, 1) for a in cut[: heads + groups]]
    return cut[:heads], cut[heads : heads + groups], cut[heads + groups :]


def turned(a: np.ndarray, sign: int) -> np.ndarray:
    """The two halves of each row as complex numbers, times e^(± i t 10000^(−2j/e))."""
    half = a.shape[1] // 2
    angle = np.arange(len(a))[:, None] * 10000.0 ** (-np.arange(half) / half)
    z = (a[:, :half] + 1j * a[:, half:]) * np.exp(sign * 1j * angle)
    return np.concatenate([z.real, z.imag], 1)


def maps(q: np.ndarray, k: np.ndarray, v: np.ndarray, delta: np.ndarray, causal: bool, second: bool) -> tuple[Any, Any]:
    """P and δ of the scores, one position after another."""
    t = len(q)
    p, back = np.zeros((t, t)), np.zeros((t, t))
    for i in range(t):
        seen = range(i + 1 if causal else t)
        scores = np.array([q[i] @ k[s] for s in seen]) / np.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        gain = np.array([delta[i] @ v[s] for s in seen])
        p[i, : len(seen)] = weights
        back[i, : len(seen)] = weights * (gain - (weights @ gain if second else 0))
    return p, back


def written_out(attention: jbp.Attention, x: np.ndarray, delta: np.ndarray, second: bool) -> dict[str, Any]:
    """δ_x of one example by loops; and the largest sum of a row of δ_S."""
    qs, ks, vs = parts_of(attention, x)
    e, each = qs[0].shape[1], attention.heads // attention.shared
    dq, dk, dv, sums = [], [np.zeros_like(k) for k in ks], [np.zeros_like(v) for v in vs], 0.0
    for head, q in enumerate(qs):
        group, d = head // each, delta[:, head * e : (head + 1) * e]
        p, back = maps(q, ks[group], vs[group], d, attention.causal, second)
        dv[group] += p.T @ d
        dq.append(back @ ks[group] / np.sqrt(e))
        dk[group] += back.T @ q / np.sqrt(e)
        sums = max(sums, float(np.abs(back.sum(1)).max() / np.abs(back).max()))
    if attention.rotary:
        dq, dk = [turned(a, -1) for a in dq], [turned(a, -1) for a in dk]
    return {"delta_x": np.concatenate([*dq, *dk, *dv], 1), "sums": sums}


def by_autodiff(attention: jbp.Attention, x: Any, delta: Any) -> Any:
    """δ_x by `jax.grad` of scores written whole."""
    heads, groups = attention.heads, attention.shared
    e, each = x.shape[-1] // (heads + 2 * groups), heads // groups
    half = e // 2
    places, pairs = jnp.arange(x.shape[1], dtype=x.dtype), jnp.arange(half, dtype=x.dtype)
    angle = jnp.outer(places, 10000.0 ** (-pairs / max(half, 1)))[None]

    def turn(a: Any) -> Any:
        real, imaginary = a[..., :half], a[..., half:]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)

    def error(x: Any) -> Any:
        parts = [x[..., i * e : (i + 1) * e] for i in range(heads + 2 * groups)]
        if attention.rotary:
            parts[: heads + groups] = map(turn, parts[: heads + groups])
        found = []
        for head in range(heads):
            q, k, v = parts[head], parts[heads + head // each], parts[heads + groups + head // each]
            s = jnp.einsum("nte,nse->nts", q, k) / e**0.5
            s = jnp.where(jnp.tril(jnp.ones(s.shape[1:], bool))[None], s, -jnp.inf) if attention.causal else s
            found.append(jnp.einsum("nts,nse->nte", jax.nn.softmax(s), v))
        return (jnp.concatenate(found, -1) * delta).sum()

    return jax.grad(error)(x)


def distance(a: Any, b: Any) -> float:
    """The largest difference in units of eps times the largest entry."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / (EPS * np.abs(b).max()))


def of_case(attention: jbp.Attention, t: int, e: int, seed: int, second: bool) -> dict[str, float]:
    """How far jbp's δ_x is from those of the others, and what rows of δ_S add up to."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(2, t, (attention.heads + 2 * attention.shared) * e))
    delta = draw.normal(size=(2, t, attention.heads * e))

    @jax.jit
    def found(x: Any, delta: Any) -> Any:
        _, saved = jbp.forward(attention, (), x)
        return jbp.backward(attention, (), saved, delta)[0], by_autodiff(attention, x, delta)

    ours, auto = found(x, delta)
    loops = [written_out(attention, one, d, second) for one, d in zip(x, delta, strict=True)]
    return {
        "written out": distance(np.stack([one["delta_x"] for one in loops]), ours),
        "jax.grad": distance(auto, ours),
        "a row of δ_S": max(one["sums"] for one in loops) / EPS,
    }


def told(config: Config, n: int, seed: int) -> tuple[Any, Any]:
    """Sequences, and which token stood `back` places before each place (at the first ones, the token itself)."""
    x = np.random.default_rng(seed).integers(config.tokens, size=(n, config.length)).astype(np.int32)
    y = np.concatenate([x[:, : config.back], x[:, : -config.back]], 1)
    return x, y


def read(config: Config, net: Any, params: Any, x: Any, y: Any) -> dict[str, Any]:
    """P and −δ_S, averaged over sequences; the share of weight, and −δ_S, by how far back a key lies."""
    qkv = np.asarray(jbp.apply(jbp.serial(*net.layers[:3]), params[:3], x), np.float64)
    output = jbp.apply(net, params, x)
    delta = jax.vmap(jbp.losses.softmax_cross_entropy.delta)(output, y)
    last = net.layers[4]
    y_of = jbp.apply(jbp.serial(*net.layers[:4]), params[:4], x)
    _, kept = jbp.forward(last, params[4], y_of)
    d = np.asarray(jbp.backward(last, params[4], kept, delta)[0], np.float64)
    w = config.width
    each = [maps(a[:, :w], a[:, w : 2 * w], a[:, 2 * w :], b, True, True) for a, b in zip(qkv, d, strict=True)]
    p, back = (np.mean([one[i] for one in each], 0) for i in (0, 1))
    rows = range(config.back, config.length)
    by = [np.mean([[m[t, t - i] for t in rows if t >= i] for m in (p, -back)], 1) for i in range(config.length - 1)]
    return {
        "P": p.round(5).tolist(),
        "delta": (-back).round(8).tolist(),
        "P by distance": [float(a) for a, _ in by],
        "delta by distance": [float(b) for _, b in by],
    }


def trained(config: Config) -> dict[str, Any]:
    """The maps at the start and after training."""
    v, w = config.tokens, config.width
    net = jbp.serial(
        jbp.Embedding(v, w), jbp.Positions(config.length), jbp.Dense(3 * w), jbp.Attention(1), jbp.Unembedding(v)
    )
    x, y = told(config, config.sequences, config.seed)
    start, _ = net.init(jax.random.key(config.seed), (config.length,))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax's Adam mixes types
        fitted = jbp.fit(
            net, jbp.losses.softmax_cross_entropy, optax.adam(0.01), (x, y), epochs=config.epochs, batch_size=64,
            params=start, seed=config.seed,
        )  # fmt: skip
    x, y = (jnp.asarray(a) for a in told(config, 256, config.seed + 1))
    right = np.asarray(jbp.apply(net, fitted.params, x).argmax(-1) == y)[:, config.back :]
    return {
        "before": read(config, net, start, x, y),
        "after": read(config, net, fitted.params, x, y),
        "accuracy": float(right.mean()),
    }


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        errors = {
            name: of_case(attention, t, e, 100 * config.seed + i, config.second_term)
            for i, (name, (attention, t, e)) in enumerate(claim.progress(CASES.items(), "cases"))
        }
    with jax.enable_x64(False):
        return {"errors in eps": errors, "maps": trained(config)}


def check(result: dict[str, Any]) -> None:
    """The number that decides: the largest difference from what is written out, in eps × the largest entry."""
    for name, case in result["errors in eps"].items():
        for what, error in case.items():
            claim.require(error <= ALLOWED, f"{name}: {what} is {error:.3g} eps off, allowed {ALLOWED}")
    back, before, after = result["config"]["back"], result["maps"]["before"], result["maps"]["after"]
    found = int(np.argmax(before["delta by distance"]))
    claim.require(found == back, f"at the start −δ is largest {found} places before, not {back}")
    share = after["P by distance"][back]
    claim.require(share > 0.9, f"after training {share:.3f} of the weight lies {back} places before")


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(11, 3.1), layout="constrained")
    pictures = [(when, what) for when in ("before", "after") for what in ("P", "delta")]
    for axis, (when, what) in zip(axes, pictures, strict=True):
        values = np.array(result["maps"][when][what])
        seen = np.where(np.tri(len(values), dtype=bool), values, np.nan)
        most = np.nanmax(np.abs(seen))
        if what == "P":
            axis.imshow(seen, cmap="Greys", vmin=0, vmax=1 if when == "after" else most)
        else:
            axis.imshow(seen, cmap="RdBu", vmin=-most, vmax=most)
        axis.set_title(f"{'P' if what == 'P' else '−δ of the scores'}, {when}", fontsize=11)
        axis.set_xlabel("s, the position read")
    axes[0].set_ylabel("t, the position that reads")
    return figure


def summary(result: dict[str, Any]) -> tuple[str, str]:
    worst = max(max(case.values()) for case in result["errors in eps"].values())
    back, maps = result["config"]["back"], result["maps"]
    return (
        "δ_v by the transposed map; δ of the scores is P times what a key is better than the mean of its row",
        f"equal to {worst:.2g} eps; −δ largest {int(np.argmax(maps['before']['delta by distance']))} places before, "
        f"where {maps['after']['P by distance'][back]:.3f} of the weight lies once trained "
        f"({100 * maps['accuracy']:.1f} % right)",
    )


if __name__ == "__main__":
    claim.main()
