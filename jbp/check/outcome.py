"""What the program of a layer's laws was run on, and what came out of it: for the verdicts, and for the clues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jbp.backprop import forward
from jbp.check.trees import Leaves, split
from jbp.layer import Layer


@dataclass(eq=False)
class Outcome:
    """A layer at one point, and its results there."""

    layer: Layer
    params: Any
    x: Any
    key: Any
    delta: Any
    r: dict[str, Any]
    """By name: y, delta_x, and the gradients by hand, by autodiff and of each example."""
    others: dict[str, Any] | None = None
    """The gradients of every leaf for the δ of the usual mistakes, once a clue has asked for them."""

    @property
    def n(self) -> int:
        """How many examples."""
        return self.x.shape[0]


def output_of(layer: Layer, params: Any, x: Any, key: Any, weights: Any = None) -> Any:
    """The function of the differentiable leaves of (params, x) that autodiff and differences look at."""
    leaves, rebuild = split((params, x))

    def output(floats: Leaves) -> Any:
        p, x = rebuild(floats)
        return forward(layer, p, x, key, weights)[0]

    return leaves, output
