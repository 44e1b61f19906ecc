"""`Coupled`: the pair of a parameter below a layer that couples examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jax.tree_util import register_dataclass

from jbp.annotations import Array
from jbp.pairs.pair import Pair, Weights


@register_dataclass
@dataclass(frozen=True, eq=False)
class Coupled(Pair):
    """The pair of a parameter below a layer that couples examples, at `path`: it has a total and nothing else.

    There δₙ is not the derivative of example n's error alone, so that anything read from single rows would be wrong.
    """

    pair: Pair
    path: str = field(metadata={"static": True})

    @classmethod
    def of(cls, pair: Pair, path: str) -> Coupled:
        """Of the pair that would be there without the layer at `path`."""
        return cls(pair, path)

    def check(self, shape: tuple[int, ...] | None, axes: int) -> None:
        """As the pair that it would be."""
        self.pair.check(shape, axes)

    def total(self, weights: Weights = None) -> Array:
        """Σₙ gₙ; the weights went into the δ at the output, where alone they are right."""
        if weights is not None:
            raise NotImplementedError(
                f"below the batch-coupled layer {self.path} examples can be weighted at the loss only: "
                "pass the weights to value_and_grad, or multiply the δ at the output by them"
            )
        return self.pair.total()

    @property
    def batch(self) -> int:
        """N, the number of examples."""
        return self.pair.batch

    @property
    def uses(self) -> int:
        """Refused, as everything of one example is."""
        self._refuse()

    def reach(self) -> NoReturn:
        """Refused, as everything of one example is."""
        self._refuse()

    def rows(self) -> NoReturn:
        """Refused, as everything of one example is."""
        self._refuse()

    def join(self, other: Pair) -> Pair | None:
        """Two uses that join, of which one or both are coupled: coupled."""
        both = self.pair.join(other.pair if isinstance(other, Coupled) else other)
        return None if both is None else Coupled(both, self.path)

    @property
    def transports(self) -> bool:
        """As it would be without the layer that couples."""
        return self.pair.transports

    @property
    def in_turn(self) -> bool:
        """As it would be without the layer that couples."""
        return self.pair.in_turn

    def over_stack(self, function: Callable[..., Any], *others: Any, axis: int | None = 0) -> Any:
        """`function` of this pair, or of the coupled pair of each layer if it is of a stack."""
        return self.pair.over_stack(lambda pair, *rest: function(Coupled(pair, self.path), *rest), *others, axis=axis)

    @property
    def observed(self) -> Array | None:
        """As it would be without the layer that couples."""
        return self.pair.observed

    @property
    def coupled(self) -> str | None:
        """The path of the layer that couples."""
        return self.path

    @property
    def constant(self) -> bool:
        """As it would be without the layer that couples."""
        return self.pair.constant

    def _refuse(self) -> NoReturn:
        raise NotImplementedError(
            f"below the batch-coupled layer {self.path} the gradient of one example is not defined, only the total is"
        )
