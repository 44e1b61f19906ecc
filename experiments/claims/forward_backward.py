"""The forward-backward algorithm is backpropagation: an HMM's log-likelihood as two layers written by hand.

Claim. With αₜ = (αₜ₋₁A)∘bₜ and likelihood L = Σ α_T, the δ of the forward recursion, ∂L/∂αₜ, is the textbook's β,
βₜ₋₁ = A(bₜ∘βₜ); the δ that the chain hands down to the evidence log bₜ is the posterior P(sₜ|o), and the gradients are
expected counts. Every number agrees with a sum over all paths and with the textbook's recursions to rounding, and the
layers pass `jbp.check.layer`. The likelihood is not convex: on the chord between the best optimum and the same model
with its states renamed it is worse than at both ends, and restarts end in several optima.

Source: lecture E, P(sₜ|sₜ₋₁) and P(oₜ|sₜ), "non-convex too"; L. Rabiner, "A tutorial on hidden Markov models", 1989,
equations 19-27 and 37; J. Eisner, "Inside-outside and forward-backward algorithms are just backprop", 2016.

    python experiments/claims/forward_backward.py [--quick]

Expect a worst difference of 5 to 150 units of eps × magnitude (1,024 allowed), mostly the rounding of the sum over
paths, and 5 to 15 optima of 24 restarts, the best and the worst of which are 0.01 to 0.1 nats a symbol apart. Control:
β left at 1, which filters and does not smooth. Wall time: full 17 s, quick 10 s.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import claim
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import jbp


@dataclass(frozen=True)
class Config:
    states: int = 4
    symbols: int = 6
    paths_length: int = 7  # states ** paths_length paths are summed one by one
    sequences: int = 20
    length: int = 40
    restarts: int = 24
    layer_check: str = "whole"
    """"laws": of the chain alone, without finite differences; "none"."""
    recursion: bool = True
    seed: int = 0


FULL = Config()
QUICK = Config(paths_length=6, length=6, restarts=5, layer_check="laws")
CONTROL = Config(paths_length=6, length=6, restarts=1, layer_check="none", recursion=False)
ALLOWED = 1024  # units of eps × magnitude, as `jbp.check` allows a deep net
GAP, SLOPE = 1e-3, 1e-6  # nats a symbol: optima this far apart are different, where the gradient is this small


@dataclass(frozen=True)
class Emission(jbp.Layer):
    """log bₜ(k) = log P(oₜ|k), P(·|k) = softmax of row k of W: symbols o[t] to evidence [t, k].

    gradient  ∂e/∂W[k,m] = Σₜ δ[t,k] (1[oₜ=m] − P(m|k))
    """

    states: int
    symbols: int
    uses_key = False

    def init(self, key: Any, shape: Any) -> tuple[Any, Any]:
        return {"emission": jax.random.normal(key, (self.states, self.symbols))}, (*shape, self.states)

    def forward(self, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        return jnp.take(jax.nn.log_softmax(params["emission"]), x, axis=1).T, x

    def backward(self, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        p = jax.nn.softmax(params["emission"])
        seen = jax.nn.one_hot(saved, self.symbols, dtype=delta.dtype)
        uses = delta[:, :, None] * (seen[:, None, :] - p[None])
        return None, {"emission": jbp.Shift(uses.reshape(len(saved), -1), p.shape)}


@dataclass(frozen=True)
class Chain(jbp.Layer):
    """log L = log Σ over paths, from evidence x[t,k] = log bₜ(k): π and the rows of A are softmaxes of the parameters.

    forward   α₁ = π∘b₁, αₜ = (αₜ₋₁A)∘bₜ, each divided by its sum cₜ; log L = Σ log cₜ
    backward  δ on αₜ: β_T = 1, βₜ₋₁ = A(bₜ∘βₜ)/cₜ;  δ_x[t] = δ γₜ with γₜ = αₜ∘βₜ
    gradient  ∂e/∂start = δ(γ₁ − π),  ∂e/∂transition[i,j] = δ Σₜ (ξₜ[i,j] − γₜ₋₁[i] A[i,j]),  ξₜ = αₜ₋₁ ⊗ (bₜ∘βₜ) ∘ A/cₜ
    """

    recursion: bool = True
    uses_key = False

    def init(self, key: Any, shape: Any) -> tuple[Any, Any]:
        first, second = jax.random.split(key)
        k = shape[-1]
        return {"start": jax.random.normal(first, (k,)), "transition": jax.random.normal(second, (k, k))}, ()

    def forward(self, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        a, b = jax.nn.softmax(params["transition"]), jnp.exp(x)

        def step(alpha: Any, b_t: Any) -> tuple[Any, Any]:
            alpha = (alpha @ a) * b_t
            c = alpha.sum()
            return alpha / c, (alpha / c, c)

        first = jax.nn.softmax(params["start"]) * b[0]
        _, (alphas, cs) = lax.scan(step, first / first.sum(), b[1:])
        alphas, cs = jnp.concatenate([first[None] / first.sum(), alphas]), jnp.concatenate([first.sum()[None], cs])
        return jnp.log(cs).sum(), (b, alphas, cs)

    def backward(self, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        b, alphas, cs = saved
        a = jax.nn.softmax(params["transition"])

        def step(beta: Any, b_c: Any) -> tuple[Any, Any]:
            into = b_c[0] * beta / b_c[1]
            return a @ into if self.recursion else jnp.ones_like(beta), (beta, into)

        beta, (betas, into) = lax.scan(step, jnp.ones_like(b[0]), (b[1:], cs[1:]), reverse=True)
        gammas = alphas * jnp.concatenate([beta[None], betas])
        xis = alphas[:-1, :, None] * a[None] * into[:, None, :]
        transition = delta * (xis - gammas[:-1, :, None] * a[None])
        pairs = {
            "start": jbp.Shift(delta * (gammas[:1] - jax.nn.softmax(params["start"])[None]), a.shape[:1]),
            "transition": jbp.Shift(transition.reshape(len(xis), a.size), a.shape),
        }
        return delta * gammas, pairs


@dataclass(frozen=True)
class NegativeLogLikelihood(jbp.losses.Loss):
    """e = −log L; there is no target, and what is passed for it is not read."""

    def value(self, output: Any, target: Any) -> Any:
        return -output

    def delta(self, output: Any, target: Any) -> Any:
        return -jnp.ones_like(output)


def probabilities(params: Any) -> tuple[np.ndarray, ...]:
    """π, A, B."""
    leaves = params[1]["start"], params[1]["transition"], params[0]["emission"]
    return tuple(np.asarray(jax.nn.softmax(leaf)) for leaf in leaves)


def all_paths(params: Any, o: np.ndarray) -> dict[str, np.ndarray]:
    """log L, posterior and gradient as sums over all paths, each with its own probability and counts."""
    start, a, b = probabilities(params)
    states, length = len(start), len(o)
    total, first, moves = 0.0, np.zeros(states), np.zeros_like(a)
    gamma, seen = np.zeros((length, states)), np.zeros_like(b)
    for path in itertools.product(range(states), repeat=length):
        p = start[path[0]] * b[path[0], o[0]]
        for t in range(1, length):
            p *= a[path[t - 1], path[t]] * b[path[t], o[t]]
        total += p
        first[path[0]] += p
        for t in range(length):
            gamma[t, path[t]] += p
            seen[path[t], o[t]] += p
        for t in range(1, length):
            moves[path[t - 1], path[t]] += p
    return from_counts(params, total, first / total, moves / total, gamma / total, seen / total)


def textbook(params: Any, o: np.ndarray) -> dict[str, np.ndarray]:
    """The same from Rabiner's α and β, without scaling."""
    start, a, b = probabilities(params)
    alpha, beta = [start * b[:, o[0]]], [np.ones(len(start))]
    for symbol in o[1:]:
        alpha.append(alpha[-1] @ a * b[:, symbol])
    for symbol in o[:0:-1]:
        beta.insert(0, a @ (b[:, symbol] * beta[0]))
    likelihood, pairs = alpha[-1].sum(), list(zip(alpha, beta, strict=True))
    gamma = np.array([x * y / likelihood for x, y in pairs])
    moves = sum(np.outer(alpha[t - 1], b[:, o[t]] * beta[t]) * a / likelihood for t in range(1, len(o)))
    seen = np.array([gamma[o == symbol].sum(0) for symbol in range(b.shape[1])]).T
    return from_counts(params, likelihood, gamma[0], moves, gamma, seen) | {"beta": np.array(beta)}


def from_counts(params: Any, likelihood: Any, first: Any, moves: Any, gamma: Any, seen: Any) -> dict[str, Any]:
    """Expected counts less what the row's own total predicts: the gradient with respect to the logits."""
    start, a, b = probabilities(params)
    return {
        "value": np.log(likelihood),
        "posterior": gamma,
        "start": first - start,
        "transition": moves - moves.sum(1, keepdims=True) * a,
        "emission": seen - seen.sum(1, keepdims=True) * b,
    }


def by_layers(net: jbp.Layer, params: Any, o: np.ndarray) -> dict[str, np.ndarray]:
    """The same from one forward and one backward pass; the posterior is the δ between the layers."""
    value, posterior, grads = _by_layers(net, params, jnp.asarray(o)[None])
    return {"value": np.asarray(value[0]), "posterior": np.asarray(posterior[0])} | {
        name: np.asarray(leaf) for layer in grads for name, leaf in layer.items()
    }


@partial(jax.jit, static_argnums=0)
def _by_layers(net: jbp.Layer, params: Any, x: Any) -> Any:
    value, saved = jbp.forward(net, params, x)
    ones = jnp.ones_like(value)
    posterior, _ = jbp.backward(net.children[1], params[1], saved[1], ones)  # type: ignore[attr-defined]
    return value, posterior, jbp.contract(jbp.backward(net, params, saved, ones)[1])


def delta_of_alpha(params: Any, o: np.ndarray) -> np.ndarray:
    """∂L/∂αₜ[k] of the unscaled forward recursion, which is linear: what it makes of αₜ = the k-th unit vector."""
    _, a, b = probabilities(params)
    found = []
    for t in range(len(o)):
        alphas = np.eye(len(a))
        for symbol in o[t + 1 :]:
            alphas = alphas @ a * b[:, symbol]
        found.append(alphas.sum(1))
    return np.array(found)


def worst(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference, in units of eps × the magnitude of the array."""
    eps = float(np.finfo(np.float64).eps)
    return max(
        float(np.abs(found[name] - expected[name]).max() / (eps * max(np.abs(expected[name]).max(), 1e-30)))
        for name in found
    )


def run(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        return _run(config)


def _run(config: Config) -> dict[str, Any]:
    random = np.random.default_rng(config.seed)
    net = jbp.serial(Emission(config.states, config.symbols), Chain(config.recursion))
    keys = jax.random.split(jax.random.key(config.seed), config.restarts + 2)
    models = jax.jit(jax.vmap(lambda key: net.init(key, (config.length,))[0]))(keys)
    params, truth, *starts = (jax.tree.map(lambda leaf, i=i: leaf[i], models) for i in range(len(keys)))
    o = random.integers(config.symbols, size=config.paths_length).astype(np.int32)
    ours, book = by_layers(net, params, o), textbook(params, o)
    reports = []
    if config.layer_check != "none":
        whole = config.layer_check == "whole"
        reports += [jbp.check.layer(Chain(config.recursion), (4, 3), key=config.seed, batch=2, differences=whole)]
    if config.layer_check == "whole":
        small = jbp.serial(Emission(3, config.symbols), Chain(config.recursion))
        words = random.integers(config.symbols, size=(2, 4))
        reports += [jbp.check.layer(small, key=config.seed, x=words, differences=False)]
    result: dict[str, Any] = {
        "difference_from_paths": worst(ours, all_paths(params, o)),
        "difference_from_textbook": worst(ours, {name: book[name] for name in ours}),
        "difference_from_delta_beta": worst({"beta": delta_of_alpha(params, o)}, book),
        "check_layer_passed": all(report.passed for report in reports),
    }

    truth = jax.tree.map(lambda leaf: 2 * leaf, truth)  # more distinct states
    data = sample(truth, config.sequences, config.length, random)
    shown = by_layers(net, truth, data[0]), textbook(truth, data[0])
    result["posterior"] = {
        name: part["posterior"].tolist() for name, part in zip(("layer", "book"), shown, strict=True)
    }
    return result | restarts(net, truth, starts, data, config)


def sample(params: Any, sequences: int, length: int, random: np.random.Generator) -> np.ndarray:
    """Sequences drawn from the model."""
    start, a, b = probabilities(params)
    data = np.zeros((sequences, length), np.int32)
    for row in data:
        state = random.choice(len(start), p=start)
        for t in range(length):
            row[t] = random.choice(b.shape[1], p=b[state])
            state = random.choice(len(start), p=a[state])
    return data


def restarts(net: jbp.Layer, truth: Any, starts: list[Any], data: np.ndarray, config: Config) -> dict[str, Any]:
    """Minima of −log L a symbol from random starts, by L-BFGS on jbp's gradient, and a chord between two equal ones."""
    step = jbp.value_and_grad(net, NegativeLogLikelihood())
    flat, unflat = ravel_pytree(truth)

    @jax.jit
    def compiled(w: Any) -> Any:
        value, grads = step(unflat(w), jnp.asarray(data), jnp.zeros(len(data)))
        return value / config.length, ravel_pytree(grads)[0] / config.length

    def objective(w: Any) -> tuple[float, np.ndarray]:
        value, gradient = compiled(np.asarray(w))
        return float(value), np.asarray(gradient)

    ends = []
    for start in claim.progress(starts, "restarts"):
        options = {"maxiter": 2000, "gtol": SLOPE, "ftol": 0}
        ends.append(
            minimize(objective, np.asarray(ravel_pytree(start)[0]), jac=True, method="L-BFGS-B", options=options)
        )
    order = np.argsort([end.fun for end in ends])
    best = unflat(jnp.asarray(ends[order[0]].x))
    turn = np.roll(np.arange(config.states), 1)  # the same model with its states renamed
    renamed = (
        {"emission": best[0]["emission"][turn]},
        {"start": best[1]["start"][turn], "transition": best[1]["transition"][turn][:, turn]},
    )
    here, there = ravel_pytree(best)[0], ravel_pytree(renamed)[0]
    return {
        "minima": [float(ends[i].fun) for i in order],
        "slopes": [float(np.abs(ends[i].jac).max()) for i in order],
        "truth": objective(flat)[0],
        "chord": [objective(here + u * (there - here))[0] for u in np.linspace(0, 1, 21)],
    }


def different(result: dict[str, Any]) -> list[float]:
    """Of the restarts that arrived (slope small), the optima that lie at least GAP apart."""
    found: list[float] = []
    for value, slope in zip(result["minima"], result["slopes"], strict=True):
        if slope <= 2 * SLOPE and (not found or value - found[-1] >= GAP):
            found.append(value)
    return found


def check(result: dict[str, Any]) -> None:
    """The number that decides: the largest difference from the sums over paths, from the textbook, and of δ from β, at
    most 1,024 units of eps × magnitude. And the layer passes `jbp.check.layer`, the chord rises, and optima differ."""
    for what in ("paths", "textbook", "delta_beta"):
        units = result[f"difference_from_{what}"]
        claim.require(units <= ALLOWED, f"difference from {what}: {units:.3g} units of eps × magnitude, over {ALLOWED}")
    claim.require(result["check_layer_passed"], "jbp.check.layer found the layer wrong")
    chord = result["chord"]
    claim.require(max(chord[1:-1]) > max(chord[0], chord[-1]) + GAP, "the chord between two equal optima does not rise")
    claim.require(len(different(result)) >= 2, "all restarts end in one optimum")


def summary(result: dict[str, Any]) -> tuple[str, str]:
    units = max(result["difference_from_paths"], result["difference_from_textbook"])
    optima = different(result)
    return (
        f"β, posterior and gradient equal the textbook's to rounding ({ALLOWED} eps × magnitude); several optima",
        f"worst difference {units:.2g} units; {len(optima)} optima of {len(result['minima'])} restarts, "
        f"{optima[0]:.4f} to {optima[-1]:.4f} nats a symbol",
    )


def plot(result: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for k, (book, ours) in enumerate(
        zip(*(np.array(result["posterior"][n]).T for n in ("book", "layer")), strict=True)
    ):
        left.plot(book, color=f"C{k}", lw=1)
        left.plot(ours, "o", color=f"C{k}", ms=3.5, label=f"state {k + 1}")
    left.set(xlabel="position t in the sequence", ylabel="posterior P(sₜ | o)", ylim=(-0.03, 1.45))
    left.legend(
        ncols=2, fontsize=10, title="lines: textbook, points: δ of the layer", title_fontsize=10, loc="upper center"
    )
    right.plot(np.arange(1, len(result["minima"]) + 1), result["minima"], "o", ms=4, label="optima reached")
    right.axhline(result["truth"], color="k", lw=1, label="the model that made the data")
    right.set(xlabel="restart, sorted by where it ends", ylabel="−log L / nats a symbol")
    right.legend(fontsize=10)
    return figure


if __name__ == "__main__":
    claim.main()
