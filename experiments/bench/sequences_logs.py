"""Per-example quantities of a GPT in twenty lines of user code on JAX's own `with_logs`, beside jbp; prints JSON.

As in per_example_logs.py, whose `logged` layers hand out their h and δ; here the blocks stand one after the other,
since logs do not come out of a `lax.scan`, and the tied table is used by two layers, whose gradients of an example are
added before they are squared. Per-example gradients are formed one parameter at a time, for norms too, which is the
shortest way to write it.

A process of its own, since the rest of the benchmark runs on older JAX too:

    python sequences_logs.py BATCH ROUNDS
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(path) for path in Path(__file__).resolve().parents[:3]]

import gpt_peers  # noqa: E402
import harness  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import sequences  # noqa: E402
from counting import product_flops  # noqa: E402
from per_example_logs import logged  # noqa: E402

HEADS = 4
LAYERS: dict[str, Callable[..., Any]] = {
    "look up": lambda h, p: p[h],
    "place": lambda h, p: h + p,
    "norm": gpt_peers.normed,
    "dense": lambda h, p: h @ p,
    "score": lambda h, p: h @ p.T,
}


# The twenty lines.
def loss_of(heads: int) -> Callable[..., Any]:
    """(table, places, blocks, gain), x, y -> the summed loss, each use of a parameter under (its name, its layer)."""

    def loss(table: Any, places: Any, blocks: Any, gain: Any, x: Any, y: Any) -> Any:
        def by(kind: str, name: str, h: Any, p: Any) -> Any:
            return logged((name, kind), LAYERS[kind])(h, p)

        h = by("place", "places", by("look up", "table", x, table), places)
        for i in range(len(blocks.qkv)):
            w = gpt_peers.Block(*(part[i] for part in blocks))
            asked = by("dense", f"qkv {i}", by("norm", f"norm1 {i}", h, w.norm1), w.qkv)
            h = h + by("dense", f"out {i}", gpt_peers.attention(asked, heads), w.out)
            wide = by("dense", f"up {i}", by("norm", f"norm2 {i}", h, w.norm2), w.up)
            h = h + by("dense", f"down {i}", jax.nn.gelu(wide), w.down)
        scores = by("score", "table", by("norm", "gain", h, gain), table)
        picked = jnp.take_along_axis(jax.nn.log_softmax(scores), y[..., None], -1)
        return -picked.sum() / y.shape[1]

    return loss


def with_logs(params: Any, x: Any, y: Any, heads: int = HEADS) -> Any:
    """Norms, the clipped sum, second moments and factors; under `jit` what is not used is not computed."""
    table, places, blocks, gain = gpt_peers.unpacked(params)
    back: Any
    _, back = jax.vjp(lambda *p: loss_of(heads)(*p, x, y), table, places, blocks, gain)
    logs = back.with_logs(1.0)[1]
    of = {"table": table, "places": places, "gain": gain}
    of |= {f"{name} {i}": part[i] for name, part in blocks._asdict().items() for i in range(len(part))}

    def each(name: str) -> Any:
        found = [(LAYERS[kind], *log) for (owner, kind), log in logs.items() if owner == name]
        return sum(
            jax.vmap(lambda h, d, f=f: jax.vjp(lambda p: f(h[None], p), of[name])[1](d[None])[0])(h, d)
            for f, h, d in found
        )

    norms = jnp.sqrt(sum(jnp.square(each(name)).reshape(len(x), -1).sum(1) for name in of))
    c = jnp.minimum(1, sequences.CLIP / norms)
    clipped = {name: jnp.tensordot(c, each(name), 1) for name in of}
    moments = {name: jnp.square(each(name)).mean(0) for name in of}
    dense = [logs[name, "dense"] for name in of if (name, "dense") in logs]
    factors = [(sequences.moment(h) / h[..., 0].size, sequences.moment(d) / len(x)) for h, d in dense]
    return {"norms": norms, "clipped": clipped, "moments": moments, "kronecker": factors}


# Their answers in the order of jbp's.
def stacked(found: Any) -> Any:
    """jbp's tree of what the twenty lines have by name."""

    def stack(name: str) -> Any:
        return jnp.stack([found[key] for key in found if key.split()[0] == name])

    return [found["table"], found["places"], gpt_peers.Block(*map(stack, gpt_peers.Block._fields)), found["gain"]]


def main(batch: int, rounds: int, **sizes: int) -> dict[str, Any]:
    """FLOPs and bytes over a plain gradient's, and times; jbp's and the twenty lines'."""
    if not hasattr(jax.custom_vjp, "defvjp_with_logs"):
        return {"why": f"needs JAX 0.12, here is {jax.__version__}"}
    case = sequences.gpt(batch, **sizes)
    args, ours = case.arguments, sequences.of_jbp(case)
    plain = ours["gradient"]
    base = harness.compiled(plain, *args)
    work, bare = product_flops(plain, *args), harness.temporaries(base)
    out: dict[str, Any] = {"jax": jax.__version__}
    for what in ("norms", "clipped", "moments", "kronecker"):
        reads: dict[str, Any] = {
            "jbp": ours[what],
            "with_logs": lambda *a, w=what: with_logs(*a, heads=sizes.get("heads", HEADS))[w],
        }
        built = {way: harness.compiled(read, *args) for way, read in reads.items()}
        check(what, *(program(*args) for program in built.values()))
        times = harness.in_turn(
            {"plain": lambda: base(*args)} | {way: (lambda p=p: p(*args)) for way, p in built.items()}, rounds
        )
        out[what] = {
            way: {"flops": product_flops(read, *args) / work, "bytes": harness.temporaries(built[way]) / bare,
                  "time": list(times[way] / times["plain"])}
            for way, read in reads.items()
        }  # fmt: skip
    return out


def check(what: str, ours: Any, theirs: Any) -> None:
    """Both compute the same. jbp clips an example as if its norm were larger by what rounding may hide, so its clipped
    sum may be shorter by as much, and never longer; it points the same way."""
    if what in ("clipped", "moments"):
        ours, theirs = gpt_peers.unpacked(ours), stacked(theirs)
    if what == "kronecker":  # theirs block by block: qkv, out, up, down of each, as names are sorted in the blocks
        layers = len(theirs) // 4
        theirs = [
            [jnp.stack([theirs[k * layers + i][side] for i in range(layers)]) for side in (0, 1)] for k in range(4)
        ]
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape, (what, a.shape, b.shape)
        length = float((a * b).sum() / (b * b).sum()) if what == "clipped" else 1.0
        assert 0.998 <= length <= 1.00001, (what, length)
        assert np.linalg.norm(a - length * b) <= (1e-4 if what == "clipped" else 1e-3) * np.linalg.norm(b), what


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:3]))))
