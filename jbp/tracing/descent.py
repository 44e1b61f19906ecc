"""The step that one example makes: each parameter after it, by `jbp.optim`, with the formula."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbp import optim
from jbp.arguments import check_scalar
from jbp.optim import MomentumState
from jbp.paths import dotted
from jbp.tracing.result import TraceRow


def named(path: Any) -> str:
    """A parameter's name in its layer: `weight`; in deeper trees `a.weight`."""
    return dotted(path) if path else "parameter"


@dataclass(frozen=True)
class Descent:
    """The parameters, velocities and gradients around a step."""

    rate: float
    momentum: float
    before: Any
    velocity_before: Any
    grads: Any
    params: Any
    """The parameters after the step."""
    velocity: Any
    """The velocity after it; None without momentum."""

    @staticmethod
    def of(rate: Any, momentum: Any, params: Any, velocity: Any, grads: Any) -> Descent:
        """The step with these numbers.

        Raises:
            ValueError: a rate that is no number, a momentum outside [0, 1), a velocity that is not like params.
        """
        wanted = "a finite number ≥ 0"
        check_scalar("learning_rate", rate, lambda rate: 0 <= rate < np.inf, wanted, "give the one of this step")
        moving = momentum != 0 or velocity is not None
        optimizer = optim.heavy_ball(rate, momentum) if moving else optim.sgd(rate)
        state: Any = optimizer.init(params)
        if velocity is not None:
            shapes = [jax.tree.map(jnp.shape, tree) for tree in (velocity, params)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"velocity must have the shapes of params, {shapes[1]}, but has {shapes[0]}")
            state = MomentumState(state.steps, jax.tree.map(jnp.asarray, velocity))
        before = state.velocity if moving else None
        updates, state = optimizer.update(grads, state, params)
        after = jax.tree.map(lambda p, u: jnp.asarray(p) + u, params, updates)
        return Descent(float(rate), float(momentum), params, before, grads, after, state.velocity if moving else None)

    def rows(self, seen: Iterable[TraceRow]) -> list[TraceRow]:
        """A row for each parameter, at the places where the trace met it first; with momentum one for its velocity."""
        places: dict[Any, TraceRow] = {}
        for row in seen:
            if row.step == "forward":
                places.setdefault((row.path, row.repetition, row.symbol), row)
        trees = [self.before, self.grads, self.params]
        trees += [] if self.velocity is None else [self.velocity_before, self.velocity]
        found = []
        where = [path for path, _ in jax.tree.leaves_with_path(self.before)]
        for path, *leaves in zip(where, *map(jax.tree.leaves, trees), strict=True):
            for (at, repetition, symbol), place in places.items():
                lead, own = path[: len(at)], path[len(at) :]
                if tuple(getattr(key, "idx", None) for key in lead) == at and named(own) == symbol:
                    found += self._of(place, symbol, [np.asarray(leaf)[repetition] for leaf in leaves])
        return found

    def _of(self, place: TraceRow, name: str, values: list[Any]) -> list[TraceRow]:
        """The rows of one parameter: (before, gradient, after), and the velocity before and after."""

        def row(symbol: str, formula: str, value: Any) -> TraceRow:
            return TraceRow("update", place.path, place.repetition, place.layer, symbol, formula, value, place.name)

        rate, slope = f"{self.rate:g}", f"∂e/∂{name}"
        if self.velocity is None:
            return [row(f"{name}_new", f"{name} ← {name} − {rate}·{slope}", values[2])]
        return [
            row(f"v_{name}", "the velocity before", values[3]),
            row(f"v_{name}_new", f"v_{name} ← {self.momentum:g}·v_{name} + {slope}", values[4]),
            row(f"{name}_new", f"{name} ← {name} − {rate}·v_{name}_new", values[2]),
        ]
