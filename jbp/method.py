"""How a training step finds its gradient: by backpropagation, or by another method that takes its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array

from jbp.backprop import Mask, value_grad_output
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.pairs import Weights


@dataclass(frozen=True)
class Method:
    """Backpropagation, and what another method may change of it. Hashable: compiled programs are cached under it.

    A step of `jbp.fit` calls `gradient`, hands what it finds to the optimiser, and lets `after` see the updates.
    """

    def init(self, key: Array, net: Layer, params: Any) -> Any:
        """What the method carries from step to step, a pytree; `()` if nothing."""
        return ()

    def gradient(
        self,
        state: Any,
        net: Layer,
        loss: Loss,
        params: Any,
        x: Any,
        y: Any,
        key: Array | None,
        weights: Weights,
        mask: Mask,
    ) -> tuple[Array, Any, Any]:
        """Σₙ wₙ eₙ, what stands for the gradient (the tree of `params`), and the outputs [n, ...]."""
        return value_grad_output(net, loss, params, x, y, key, weights, mask)

    def after(self, state: Any, params: Any, updates: Any) -> tuple[Any, Any]:
        """The updates to apply to `params`, and the state for the next step."""
        return updates, state
