"""A scene: everything the page reads of a net and a batch, in float64, as JSON takes it."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbp import optim, stats
from jbp.answers import error_of
from jbp.arguments import as_seed, check_max_norm
from jbp.backprop import apply, example_output, value_and_pairs
from jbp.inputs import as_arrays, check_loss, check_net, check_optimizer, check_params
from jbp.inspect.graph import Graph
from jbp.inspect.seen import Arrays, Backward, Forward, attention_maps, feedback_of
from jbp.layer import Layer
from jbp.losses import (
    CrossEntropy,
    L2Loss,
    Loss,
    MeanSquaredError,
    SigmoidBinaryCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
)
from jbp.pairs import contract
from jbp.rules import NAMES, DirectFeedbackAlignment, KolenPollack, Rule, Transport
from jbp.stats.clip import clip_factor
from jbp.tracing import formulas
from jbp.trainable import Trainable

FORMAT = "jbp-scene-1"
_LOSSES = (SquaredError, L2Loss, MeanSquaredError, SoftmaxCrossEntropy, SigmoidBinaryCrossEntropy, CrossEntropy)
SHOWN = {
    "feedback_alignment": "feedback alignment",
    "direct_feedback_alignment": "direct feedback alignment",
    "sign_symmetry": "sign symmetry",
    "kolen_pollack": "Kolen–Pollack",
}
"""The rules of the page, by the names that jbp gives them."""
MOST_PARAMETERS, MOST_NODES, MOST_VALUES = 20_000_000, 300, 2_000_000
LARGE = 65_536
"""Entries of an array above which the page holds means of blocks."""
BATCH_SAVED = 40_000
"""Numbers of all values of a batch up to which those of every example are saved."""
_SIDE = 64


@dataclass(frozen=True)
class Update:
    """The step that a gradient makes, as a run's optimiser has it."""

    rate: float | None = None
    momentum: float = 0.0
    nesterov: bool = False
    velocity: Any = None
    """In the tree of the parameters, before the step; None: 0."""
    optimizer: Any = None
    """Another optimiser, of which the page shows what it makes of the mean gradient in its first step."""
    words: str = ""

    def __post_init__(self) -> None:
        optim.sgd(0.0 if self.rate is None else self.rate, self.momentum)  # refuses what is no rate or momentum
        if self.optimizer is not None:
            check_optimizer(self.optimizer)

    def apply(self, params: Any, grads: Any) -> tuple[Any, Any]:
        """The parameters after the step, and the velocity before it; None without."""
        if self.optimizer is not None:
            updates, _ = self.optimizer.update(grads, self.optimizer.init(params), params)
            return jax.tree.map(lambda p, u: p + u, params, updates), None
        rate, beta = float(self.rate or 0.0), float(self.momentum)
        moving = beta != 0 or self.velocity is not None
        make = optim.nesterov(rate, beta) if self.nesterov else optim.heavy_ball(rate, beta)
        optimizer = make if moving else optim.sgd(rate)
        state: Any = optimizer.init(params)
        before = None
        if moving:
            before = state.velocity if self.velocity is None else _wide(self.velocity)
            state = state._replace(velocity=before)
        updates, _ = optimizer.update(grads, state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), before


def scene(
    net: Layer,
    loss: Loss,
    params: Any,
    x: Any,
    y: Any,
    *,
    example: int = 0,
    update: Update | None = None,
    max_norm: float | None = None,
    seed: int = 0,
    title: str = "",
    labels: Any = None,
    rows: Any = None,
) -> dict[str, Any]:
    """The numbers of a batch x [n, ...], y [n, ...] in evaluation, in float64: what the page shows.

    `example` is the place in the batch of the one that is shown. `max_norm` is the C of clipping at first, by default
    the median of the norms. `seed` draws the weights of the learning rules. `labels` are words for the classes, and
    `rows` what each example is called. Every number is made by jbp's own spine, statistics, rules and optimisers.

    Raises:
        ValueError: what does not fit together, naming the layer; a net too large for a page, saying how large.
        NotImplementedError: a layer that couples the examples of a batch.
    """
    check_net(net, Layer)
    check_loss(loss, Loss)
    check_params(params)
    refuse_large(sum(np.size(leaf) for leaf in jax.tree.leaves(params)))
    update, seed = update or Update(rate=0.1), as_seed(seed)
    if max_norm is not None:
        check_max_norm(max_norm)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params, x, y = _wide(params), _wide(as_arrays("x", x)), _wide(as_arrays("y", y))
        if not 0 <= example < len(x):
            raise ValueError(f"example must be from 0 to {len(x) - 1}, its place in the batch, but is {example}")
        if net.couples_batch is not True:
            example_output(net, loss, params, x, y)
        graph = Graph(net, params)
        if len(graph.nodes) > MOST_NODES:
            raise ValueError(
                f"the net has {len(graph.nodes)} layers, and a page shows {MOST_NODES}: show fewer of them"
            )
        found = _Found.of(net, loss, graph, params, x, y, example, max_norm)
        shapes = [value.shape[1:] for value in found.forward.values[1:]]
        return found.as_json(update, seed) | _about(net, loss, graph, shapes, title, labels, rows, (x, y))


@dataclass(frozen=True)
class _Found:
    """What was computed of one batch."""

    net: Layer
    loss: Loss
    graph: Graph
    params: Any
    y: Any
    example: int
    forward: Forward
    backward: Backward
    errors: np.ndarray
    norms: np.ndarray
    max_norm: float
    factors: np.ndarray
    mean: Any
    clipped: Any

    @staticmethod
    def of(net: Layer, loss: Loss, graph: Graph, params: Any, x: Any, y: Any, example: int, max_norm: Any) -> _Found:
        """Forward, back, and the statistics of the pairs."""
        forward = Forward(net, graph, params, x)
        if sum(value.size for value in forward.values) > MOST_VALUES:
            raise ValueError(
                f"the values of {len(x)} examples are more than {MOST_VALUES:,} numbers: give fewer examples"
            )
        backward = Backward(forward, loss, y)

        @jax.jit
        def read(params: Any, x: Any, y: Any) -> Any:
            errors, pairs = value_and_pairs(net, loss, params, x, y)
            norms = stats.norms(pairs)
            bound = jnp.median(norms) if max_norm is None else jnp.asarray(max_norm, norms.dtype)
            bound = jnp.where((bound > 0) & jnp.isfinite(bound), bound, 1.0)
            factors = clip_factor(norms, bound)
            return errors, norms, bound, factors, contract(pairs), stats.clipped(pairs, bound)

        errors, norms, bound, factors, mean, clipped = read(params, x, y)
        return _Found(
            net, loss, graph, params, y, example, forward, backward, np.asarray(errors), np.asarray(norms),
            float(bound), np.asarray(factors), mean, clipped,
        )  # fmt: skip

    @property
    def lost(self) -> bool:
        """Whether some number is not finite: then weights of 0 leave no example alone, for 0·NaN is NaN."""
        return not all(np.isfinite(value).all() for value in self.forward.values)

    def _alone(self, bound: Any = None, state: Any = None) -> Backward:
        """The way back of the example: that of the batch, or of a batch of it alone."""
        if not self.lost:
            return self.backward
        row = slice(self.example, self.example + 1)
        forward = Forward(self.net, self.graph, self.params, jnp.asarray(self.forward.values[0][row]))
        return Backward(forward, self.loss, self.y[row], bound, state)

    def _one(self, way: Backward) -> np.ndarray:
        """Weights that leave the example alone."""
        n = len(way.output_delta)
        return (np.arange(n) == (self.example if n > 1 else 0)).astype(float)

    def by_param(self, tree: Any) -> list[Any]:
        """The arrays of a tree like that of the parameters, by number."""
        return [p.of(tree) for p in self.graph.params]

    def as_json(self, update: Update, seed: int) -> dict[str, Any]:
        """The numbers."""
        values, deltas = self.forward.values, self.backward.deltas
        whole = sum(value.size for value in values) <= BATCH_SAVED
        rows = slice(None) if whole else slice(self.example, self.example + 1)
        alone = self._alone()
        uses = alone.uses(self._one(alone))
        after, velocity = update.apply(self.params, self.mean)
        moved = [] if velocity is None else list(map(array, self.by_param(velocity)))
        return {
            "params": [
                {"id": p.id, "name": p.name, "path": [*map(str, p.path)], "repetition": [*p.repetition]} | array(value)
                for p, value in zip(self.graph.params, self.by_param(self.params), strict=True)
            ],
            "saved": "batch" if whole else "example",
            "example": self.example,
            "values": [array(value[rows]) for value in values],
            "deltas": [None if delta is None else array(delta[rows]) for delta in deltas],
            "grads": list(map(array, alone.grads(self._one(alone)))),
            "uses": [{"node": node, "name": name} | array(value) for (node, name), value in uses.items()],
            "errors": array(self.errors),
            "norms": array(self.norms),
            "max_norm": self.max_norm,
            "factors": array(self.factors),
            "mean": list(map(array, self.by_param(self.mean))),
            "clipped": list(map(array, self.by_param(self.clipped))),
            "update": {
                "rate": update.rate, "momentum": update.momentum, "nesterov": update.nesterov,
                "kind": "other" if update.optimizer is not None else "momentum" if moved else "sgd",
                "words": update.words, "new": list(map(array, self.by_param(after))), "velocity": moved,
            },
            "rules": self._rules(seed),
        } | ({"maps": maps} if (maps := self._maps(alone)) else {})  # fmt: skip

    def _maps(self, way: Backward) -> dict[str, Any]:
        """By the number of a node of attention: P and δ_P [t, s] of each head of the example, with their words."""
        found: dict[str, Any] = {}
        at = self.example if len(way.output_delta) > 1 else 0
        for node in self.graph.nodes:
            if node.id not in way.kept:
                continue
            (layer, saved), delta = way.kept[node.id], way.deltas[node.id]
            assert delta is not None
            p, d = attention_maps(layer, jax.tree.map(lambda a: a[at], saved), jnp.asarray(delta[at]))
            words = ["P, who looks at whom", "δ of P"]
            found[str(node.id)] = [
                {"label": word if len(p) == 1 else f"{word}, head {head + 1}"} | array(value[head])
                for head in range(len(p)) for word, value in zip(words, (p, d), strict=True)
            ]  # fmt: skip
        return found

    def _rules(self, seed: int) -> dict[str, Any]:
        """Of each rule δ, the weights that it goes back through, and the angle of its update to the gradient."""
        found: dict[str, Any] = {}
        states: dict[str, Any] = {}
        x = self.forward.values[0]
        even = np.full(len(self.errors), 1 / len(self.errors))
        true = self.backward.grads(even)
        for name, label in SHOWN.items():
            rule: Rule = NAMES[name]
            try:
                bound: Any = rule.bind(self.net, self.params, x, Trainable.of(None))
            except ValueError:  # no weight that multiplies
                continue
            # Kolen and Pollack's B begins as that of feedback alignment.
            states[name] = state = states.get("feedback_alignment") if isinstance(rule, KolenPollack) else None
            if state is None:
                states[name] = state = jax.jit(bound.init)(jax.random.key(seed), self.params)
            went = Backward(self.forward, self.loss, self.y, bound, state)
            grads, single = went.grads(even), self._alone(bound, state) if self.lost else went
            row = slice(self.example, self.example + 1)
            found[name] = {
                "label": label,
                "deltas": [None if delta is None else array(delta[row]) for delta in went.deltas],
                "grads": list(map(array, single.grads(self._one(single)))),
                "angles": [angle(g, r) for g, r in zip(true, grads, strict=True)],
                "decay": rule.decay if isinstance(rule, KolenPollack) else None,
            } | self._backs(rule, bound, state)
        return found

    def _backs(self, rule: Rule, bound: Any, state: Any) -> dict[str, Any]:
        """The weights for the way back: by parameter, or of direct feedback by node."""
        if isinstance(rule, DirectFeedbackAlignment):
            feedback = {node.id: feedback_of(node, state) for node in self.graph.nodes}
            return {"feedback": {str(i): array(b) for i, b in feedback.items() if b is not None}}
        assert isinstance(rule, Transport)
        back = rule.transport(bound.weights(self.params), state)
        return {"back": {str(p.id): array(b) for p in self.graph.params if (b := p.of(back)) is not None}}


def _about(
    net: Layer, loss: Loss, graph: Graph, shapes: Any, title: str, labels: Any, rows: Any, data: tuple[Any, Any]
) -> dict[str, Any]:
    """The words."""
    x, y = data
    nodes = [node.as_json(shape) for node, shape in zip(graph.nodes, shapes, strict=True)]
    classes = np.ndim(y) < 1 + len(nodes[graph.output - 1]["shape"]) if nodes else False
    positions = math.prod(nodes[graph.output - 1]["shape"][:-1]) if nodes else 1
    value, delta = formulas.of_loss(loss, positions, classes)
    others = sorted({node.layer for node in graph.nodes if node.op == "other"})
    others += [] if type(loss) in _LOSSES else [repr(loss)]
    return {
        "format": FORMAT,
        "title": title or repr(net),
        "net": repr(net),
        "loss": {"name": repr(loss), "formulas": [value, delta], "known": type(loss) in _LOSSES},
        "classes": classes,
        "nodes": nodes,
        "output": graph.output,
        "x": array(x, fold=False),
        "y": array(y, fold=False),
        "integer_x": bool(np.asarray(x).dtype.kind in "iu"),
        "labels": None if labels is None else [str(label) for label in labels],
        "rows": None if rows is None else [str(row) for row in rows],
        "others": others,
        "reports": reports(),
    }


def array(value: Any, fold: bool = True) -> dict[str, Any]:
    """An array as base64 of its float64 numbers, little-endian: exact, NaN and infinities too. Of a large one, where
    `fold`, its shape and means of blocks."""
    value = np.asarray(value)
    found: dict[str, Any] = {"shape": list(value.shape)}
    wide = value.astype("<f8")
    if fold and value.size > LARGE:
        matrix = wide.reshape(-1, value.shape[-1])
        for axis in (0, 1):
            parts = np.array_split(matrix, min(_SIDE, matrix.shape[axis]), axis)
            matrix = np.stack([part.mean(axis) for part in parts], axis)
        wide, found["folded"] = matrix, list(matrix.shape)
    return found | {"f64": base64.b64encode(np.ascontiguousarray(wide).tobytes()).decode("ascii")}


def leaf_of(found: dict[str, Any]) -> np.ndarray:
    """The array that `array` wrote."""
    flat = np.frombuffer(base64.b64decode(found["f64"]), "<f8")
    return flat.reshape(found.get("folded", found["shape"]))


def angle(g: np.ndarray, r: np.ndarray) -> float | None:
    """Between two arrays, in degrees; None where one is 0."""
    u, v = (np.linalg.norm(a) for a in (g, r))
    if not (u > 0 and v > 0 and np.isfinite(u) and np.isfinite(v)):
        return None
    g, r = g / u, r / v
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(g - r), np.linalg.norm(g + r))))


def refuse_large(parameters: int) -> None:
    """Refuse a net that has more parameters than a page can hold.

    Raises: ValueError.
    """
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"the net has {parameters:,} parameters, and a page holds {MOST_PARAMETERS:,} at most: look at a smaller "
            "net of the same form, or at single numbers with jbp.trace"
        )


def reports() -> dict[str, Any]:
    """What `jbp.check` says of the mistakes that the page plants, as it was saved with this version."""
    return json.loads((files("jbp.inspect") / "broken.json").read_text(encoding="utf-8"))


def errors_of(net: Layer, loss: Loss, params: Any, x: Any, y: Any) -> np.ndarray:
    """eₙ of every example, in blocks."""

    @jax.jit
    def block(params: Any, x: Any, y: Any) -> Any:
        return jax.vmap(error_of(loss))(apply(net, params, x), y)

    size = 1000
    return np.concatenate([np.asarray(block(params, x[i : i + size], y[i : i + size])) for i in range(0, len(x), size)])


def _wide(tree: Any) -> Any:
    """Every number of fractions in float64."""

    def one(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        return jnp.asarray(leaf if leaf.dtype.kind in "iub" else leaf.astype(np.float64))

    return jax.tree.map(one, tree)


__all__ = ["FORMAT", "Arrays", "Update", "array", "errors_of", "leaf_of", "reports", "scene"]
