"""What Opacus and BackPACK take for per-example quantities of a GPT, in multiples of PyTorch's plain step; prints JSON.

The GPT of sequences.py in PyTorch's modules, with biases and a table of its own for the scores: Opacus's layer
normalisation needs a bias, and it takes no tied weights. A library that cannot do it says why, in its own words.

    python sequences_torch.py BATCH ROUNDS
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch  # type: ignore[import-not-found]
from per_example_torch import of_backpack, of_opacus, of_opacus_hooks, ratios
from torch.nn import functional  # type: ignore[import-not-found]

CONTEXT, LAYERS, HEADS, WIDTH, WORDS = 64, 4, 4, 128, 65


class Attention(torch.nn.Module):
    """Causal, without parameters."""

    def forward(self, x: Any) -> Any:
        """[n, t, 3d] to [n, t, d]."""
        n, t, width = x.shape
        q, k, v = (part.reshape(n, t, HEADS, -1).transpose(1, 2) for part in x.split(width // 3, -1))
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return found.transpose(1, 2).reshape(n, t, width // 3)


class Residual(torch.nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: Any):
        super().__init__()
        self.inner = torch.nn.Sequential(*layers)

    def forward(self, x: Any) -> Any:
        """The sum."""
        return x + self.inner(x)


class Positions(torch.nn.Module):
    """Adds a row of a table to each position."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(CONTEXT, WIDTH)

    def forward(self, x: Any) -> Any:
        """The sum, each example with rows of its own, as per-example gradients need it."""
        return x + self.table(torch.arange(x.shape[1]).repeat(len(x), 1))


class Swapped(torch.nn.Module):
    """[n, t, c] to [n, c, t], where PyTorch's cross entropy looks for the classes."""

    def forward(self, x: Any) -> Any:
        """The same numbers."""
        return x.transpose(1, 2)


def norm() -> Any:
    """Layer normalisation."""
    return torch.nn.LayerNorm(WIDTH)


def gpt() -> Any:
    """The net."""
    dense = torch.nn.Linear
    layers: list[Any] = [torch.nn.Embedding(WORDS, WIDTH), Positions()]
    for _ in range(LAYERS):
        layers.append(Residual(norm(), dense(WIDTH, 3 * WIDTH), Attention(), dense(WIDTH, WIDTH)))
        gelu = torch.nn.GELU(approximate="tanh")
        layers.append(Residual(norm(), dense(WIDTH, 4 * WIDTH), gelu, dense(4 * WIDTH, WIDTH)))
    return torch.nn.Sequential(*layers, norm(), dense(WIDTH, WORDS), Swapped())


def main(batch: int, rounds: int) -> dict[str, Any]:
    """The ratios; Opacus has its second moments from its hooks only."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, WORDS, (batch, CONTEXT + 1), generator=generator)

    def net() -> Any:
        torch.manual_seed(0)
        return gpt()

    libraries = {"Opacus": of_opacus, "Opacus hooks": of_opacus_hooks, "BackPACK": of_backpack}
    quantities = ("norms", "clipped", "moments", "kronecker")
    return ratios(net, tokens[:, :-1].contiguous(), tokens[:, 1:], libraries, quantities, rounds)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(*map(int, sys.argv[1:3]))))
