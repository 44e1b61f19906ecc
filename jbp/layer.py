"""What a layer is: three pure functions for ONE example, and the laws they keep."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from jax.tree_util import register_dataclass, register_static

from jbp.annotations import Array, Bool, Float, PRNGKeyArray

Shape = tuple[int, ...]
ArrayLike = Array | np.ndarray
EXAMPLE = 'as in "128 relu dropout:0.2 64 relu"'
"""How an error about a line of text ends."""


class Layer:
    """A frozen dataclass of static hyper-parameters with `init`, `forward` and `backward`, all for one example.

    Write J for the derivative of `forward` at (params, x). For every δ of the output's shape:

        adjoint        ⟨J v, δ⟩ = ⟨v, backward(δ)⟩ for every direction v in (params, x)
        linear         backward(a δ₁ + b δ₂) = a backward(δ₁) + b backward(δ₂)
        shapes         forward's output has the shape that init announced; delta_x has x's
        tree           `pairs` has the tree of `params`, and each pair contracts to its parameter's shape and dtype
        h              what a pair holds besides its `delta` is the same for every δ
        sum            the gradients of the examples add up to the gradient of the batch
        pure           same arguments, same result: under `jit`, under `vmap`, twice

    A subclass's fields must be hashable and comparable (no arrays, no functions), because the compiled program of a
    layer is cached under the layer itself. `saved` is a pytree of arrays; a static fact that backward needs, such
    as a shape, rides in it as `Static`; an array of which only the sign is needed, as `Sign`.
    """

    uses_key: ClassVar[bool | None] = None
    """True: draws at random in training, so training needs a key. False: never looks at its key.
    None (not said): gets a key whenever there is one."""
    couples_batch: ClassVar[bool | Literal["training"]] = False
    """True: couples the examples. Its functions then take the whole batch [n, ...], and forward the example weights
    too, `forward(params, x, key, weights)`, where None means that all count alike. "training": couples them in training
    only, as batch normalisation does, and is told the mode: `forward(params, x, key, weights, training)`; what backward
    must know of it is saved."""
    uses_mask: ClassVar[bool] = False
    """True: `forward(params, x, key, mask)` is told which positions are real: `mask` [t], or None for all of them.
    Of a net: whether a layer inside is."""
    mixes_positions: ClassVar[bool] = False
    """True: a position of its output follows from others of its input, and it is not told which are real: with a mask
    it is refused, for padding would reach what is real."""
    observes: ClassVar[bool] = False
    """True: has parameters that nothing trains and that a pass in training may change, such as running moments; their
    pairs are `Constant`. Of a net: whether a layer inside has."""
    piecewise_linear: ClassVar[bool] = False
    """True: linear in its parameters, and linear in its input but for kinks. What a Hessian diagonal rests on."""
    word: ClassVar[str] = ""
    """What a line of text, such as `jbp train --net` takes, calls this layer; "": it cannot stand in one."""

    def __init_subclass__(cls, **options: Any) -> None:
        """A subclass is another layer: its word is its own."""
        super().__init_subclass__(**options)
        cls.word = vars(cls).get("word", "")

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[Any, Shape]:
        """Fresh parameters (a pytree, `()` if none) and the shape of one example's output."""
        raise NotImplementedError(f"{type(self).__name__} has no init")

    def forward(self, params: Any, x: Any, key: PRNGKeyArray | None) -> tuple[Any, Any]:
        """Step 1 for one example: the output, and what backward will need. `key` None means evaluation."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, params: Any, saved: Any, delta: Any) -> tuple[Any, Any]:
        """Step 2 for one example: `delta_x` (None for integer input) and one pair for each parameter.

        `params` serve only to carry δ; whoever passes other ones gets another learning rule.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def before(self, following: Layer | None) -> Layer:
        """This layer as it is initialised when `following` is the next activation; by default, itself."""
        return self

    def opening(self, following: Layer | None) -> Layer | None:
        """The activation that a layer in front of this one meets first: `following` if this one lets it show."""
        return None

    def check_input(self, x: Any, counts: Any = None) -> None:
        """Refuse values of a batch x [n, ...] that compiled code could not, such as tokens that a table has no row for.

        Asked of what a net is given, where its values are known; of a net, by its first layers. Rows n where `counts`
        is False are not looked at. Raises ValueError.
        """

    def formulas(self) -> tuple[str, str]:
        """How `jbp.trace` writes this layer in evaluation: y = …, and δ_x = ….

        Multiplication element by element is ∘, of matrices ·, and the outer product ⊗; Σ is over the last axis.
        """
        return f"y = {self!r} of x", "δ_x = (∂y/∂x)ᵀ δ"

    @classmethod
    def from_word(cls, word: str) -> Layer | None:
        """The layer that a word means: `cls.word`, or with its first fields after colons, "dropout:0.2"; else None.

        Raises: ValueError if the word is of this class, but what follows cannot be read.
        """
        name, colon, rest = word.partition(":")
        if not cls.word or name != cls.word:
            return None
        fields = cls._worded()
        if rest and not fields:
            raise ValueError(f"net: cannot read {word!r}; {name} takes no number")
        needed = [f.name for f in fields if f.default is dataclasses.MISSING]
        texts = rest.split(":", max(len(fields) - 1, 0)) if rest or (colon and needed) else []
        if len(texts) < len(needed):
            raise ValueError(f"net: {name} needs {':'.join((name, *map(str.upper, needed)))}, got {word!r}, {EXAMPLE}")
        return made(word, cls, *(_argument(word, f.type, text) for f, text in zip(fields, texts, strict=False)))

    def as_word(self) -> str:
        """The word that `from_word` reads.

        Raises: ValueError if the layer has none, or a field that no word can say.
        """
        if not self.word:
            raise ValueError(f"{self!r} has no word: it cannot stand in a line of layers")
        fields = self._worded()
        self.refuse_unworded(*(f.name for f in fields))
        values = [getattr(self, f.name) for f in fields]
        while values and values[-1] == fields[len(values) - 1].default:
            values.pop()
        return ":".join([self.word, *map(_written, values)])

    def refuse_unworded(self, *said: str) -> None:
        """Refuse to write this layer as a word that says only these fields, if another is not at its default.

        Raises: ValueError, naming the layer.
        """
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            if f.name not in said and getattr(self, f.name) != f.default:
                raise ValueError(f"{self!r} cannot stand in a line of layers, where nothing says its {f.name}")

    @classmethod
    def _worded(cls) -> tuple[dataclasses.Field[Any], ...]:
        """The fields that a word says: the first ones, as long as they are numbers and text."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        return tuple(itertools.takewhile(lambda f: getattr(f.type, "__name__", f.type) != "bool", fields))

    def __repr__(self) -> str:
        """The call that makes this layer, without the arguments left at their defaults."""
        arguments = []
        for f in dataclasses.fields(self) if dataclasses.is_dataclass(self) else ():
            value = getattr(self, f.name)
            if f.default is dataclasses.MISSING:
                arguments.append(repr(value))
            elif value != f.default:
                arguments.append(f"{f.name}={value!r}")
        return f"{type(self).__name__}({', '.join(arguments)})"


def made(word: str, kind: Callable[..., Layer], *values: Any, **named: Any) -> Layer:
    """The layer of a word.

    Raises: ValueError as the class raises it, after the word.
    """
    try:
        return kind(*values, **named)
    except ValueError as error:
        raise ValueError(f"net: cannot read {word!r}: {error}") from None


def _written(value: Any) -> str:
    """A field's value in a word: a float in as few digits as tell it."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _argument(word: str, kind: Any, text: str) -> Any:
    """A field's value, from its annotation and its part of a word."""
    kind = getattr(kind, "__name__", kind)  # text where annotations are not evaluated
    convert, what = {"float": (float, "number"), "int": (int, "whole number")}.get(kind, (str, "text"))
    try:
        return convert(text)
    except ValueError:
        raise ValueError(f"net: expected a {what} after the colon, got {word!r}, {EXAMPLE}") from None


@register_static
@dataclass(frozen=True)
class Static:
    """A static fact inside `saved`: it rides in the tree's structure, where `vmap` and `scan` leave it alone."""

    value: Any


@register_dataclass
@dataclass(frozen=True, eq=False)
class Sign:
    """An array inside `saved` of which only `positive` is needed: [a > 0], or [a ≥ 0] if `at_zero`.

    Where nobody else keeps the array itself, `repeat` stacks that in its place: one byte instead of four.
    """

    array: Float[Array, "..."] | Bool[Array, "..."]
    at_zero: bool = field(default=False, metadata={"static": True})

    @property
    def positive(self) -> Bool[Array, "..."]:
        """[a > 0], or [a ≥ 0]."""
        if self.array.dtype == bool:
            return self.array
        return self.array >= 0 if self.at_zero else self.array > 0

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        return self.array.shape
