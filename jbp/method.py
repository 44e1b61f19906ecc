"""How a training step finds its gradient: by backpropagation, or by another method that takes its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optax
from jaxtyping import Array

from jbp.backprop import Mask, value_grad_output
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.pairs import Weights


@dataclass(frozen=True)
class Method:
    """Backpropagation, and what another method may change of it. Hashable: compiled programs are cached under it.

    A step of `jbp.fit` is `step`: it calls `gradient`, hands what that finds to the optimiser, and lets `after` see the
    updates.
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

    def step(
        self,
        state: Any,
        net: Layer,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        params: Any,
        opt_state: Any,
        x: Any,
        y: Any,
        key: Array | None,
        weights: Weights,
        mask: Mask,
    ) -> tuple[Array, Any, Any, Any, Any]:
        """Σₙ wₙ eₙ, the outputs, and the new parameters, optimiser's state and method's state."""
        value, grads, output = self.gradient(state, net, loss, params, x, y, key, weights, mask)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        updates, state = self.after(state, params, updates)
        return value, output, optax.apply_updates(params, mask(updates)), opt_state, state
