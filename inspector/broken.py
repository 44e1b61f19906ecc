"""Write what `jbp.check` says of the mistakes that the page plants, into jbp/inspect/broken.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jbp
from jbp.combine.base import Combinator
from jbp.layers.activations import Tanh

HERE = Path(__file__).resolve().parents[1] / "jbp" / "inspect" / "broken.json"


@dataclass(frozen=True)
class Untransposed(jbp.Layer):
    """A dense layer that sends δ back through W as it lies in memory, and not through Wᵀ."""

    width: int

    def init(self, key: Any, shape: Any) -> Any:
        """As Dense."""
        return jbp.Dense(self.width).init(key, shape)

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        """As Dense."""
        return jbp.Dense(self.width).forward(params, x, key)

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        """δ_x = δ W."""
        _, pairs = jbp.Dense(self.width).backward(params, saved, delta)
        return delta @ params["weight"].reshape(self.width, -1), pairs


@dataclass(frozen=True, repr=False)
class Slopeless(Tanh):
    """tanh without θ′."""

    word = None

    def pull(self, saved: Any, delta: Any) -> Any:
        """δ."""
        return delta

    def __repr__(self) -> str:
        """Its name."""
        return "Slopeless()"


@dataclass(frozen=True)
class OnePath(jbp.Layer):
    """y = x + tanh(x), of which δ comes back past the tanh only."""

    def init(self, key: Any, shape: Any) -> Any:
        """No parameters."""
        return (), shape

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        """x + tanh x."""
        return x + jnp.tanh(x), x

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        """δ alone."""
        return delta, ()


@dataclass(frozen=True)
class Summed(Combinator):
    """A net whose gradients are the sum over the batch."""

    layer: Any

    @property
    def children(self) -> tuple[Any, ...]:
        """The net."""
        return (self.layer,)

    def init(self, key: Any, shape: Any) -> Any:
        """The net's."""
        return self.layer.init(key, shape)

    def walk_forward(self, visit: Any, params: Any, x: Any, key: Any) -> Any:
        """The net's."""
        y, saved = visit((), self.layer, params, x, key)
        return y, saved

    def walk_backward(self, visit: Any, params: Any, saved: Any, delta: Any) -> Any:
        """δ times the number of examples."""
        return visit((), self.layer, params, saved, delta * len(delta))


def reports() -> dict[str, dict[str, str]]:
    """By the page's name of the mistake: a title, the call, and the report."""
    random = np.random.default_rng(0)
    net = jbp.serial(jbp.Dense(3), jbp.tanh, jbp.Dense(2))
    params, _ = net.init(jax.random.key(0), (5,))
    dtype = params[0]["weight"].dtype
    x, y = random.normal(size=(7, 5)).astype(dtype), random.normal(size=(7, 2)).astype(dtype)
    check = jbp.check
    found = {
        "transpose": ("jbp.check.layer", check.layer(Untransposed(3), (5,))),
        "slope": ("jbp.check.layer", check.layer(Slopeless(), (5,))),
        "path": ("jbp.check.layer", check.layer(OnePath(), (5,))),
        "sum": ("jbp.check.gradient", check.gradient(Summed(net), jbp.losses.squared_error, params, x, y)),
    }
    for name, (_, report) in found.items():
        assert not report.passed, name
    return {name: {"code": code, "text": _short(str(report))} for name, (code, report) in found.items()}


def _short(text: str) -> str:
    """The lines that say what failed, at most a dozen."""
    lines = text.splitlines()
    failed = [line for line in lines if "FAIL" in line or "fail" in line or "looks like" in line or "?" in line]
    return "\n".join((lines[:1] + [line for line in failed if line != lines[0]] if failed else lines)[:5])


if __name__ == "__main__":
    HERE.write_text(json.dumps(reports(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(HERE.read_text(encoding="utf-8"))
