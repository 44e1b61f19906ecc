"""Networks as one line of text: "128 relu dropout:0.2 64 relu" ↔ layers.

A word is read and written by the layer that it names (`Layer.from_word`, `Layer.as_word`); which layers there are
follows from the case table. A number is a dense layer of that width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jbp import layers
from jbp.arguments import did_you_mean
from jbp.check.cases import LAYERS
from jbp.combine import Serial, serial
from jbp.layer import EXAMPLE, Layer, Shape
from jbp.layers import Activation, initializers
from jbp.layers.initializers import Initializer

_KINDS = tuple(row.kind for row in LAYERS)
_ACTIVATIONS = tuple(kind for kind in _KINDS if issubclass(kind, Activation))


def known() -> str:
    """The words of all layers, with arguments where there is a case with some."""
    words: dict[type[Layer], str] = {}
    for row in LAYERS:
        for case in row.cases if row.kind.word else ():
            words[row.kind] = max(words.get(row.kind, ""), case.net.as_word(), key=len)
    return ", ".join(words.values())


def parse(text: str) -> tuple[Layer, ...]:
    """The layers of a line, in order.

    Raises: ValueError naming the word that is wrong, with the nearest known one.
    """
    return tuple(_layer(word) for word in text.split())


def build(
    text: str,
    shape: Shape,
    outputs: int,
    output_activation: Layer | None = None,
    weight_init: Initializer | None = None,
    bias_init: Initializer = initializers.zeros,
) -> Serial:
    """The net for examples of `shape`: flattened if need be, the line's layers, and a dense layer of `outputs`.

    Raises: ValueError as `parse`.
    """
    hidden = parse(text)
    if len(shape) > 1 and layers.Flatten() not in hidden:
        hidden = (layers.Flatten(), *hidden)
    last = () if output_activation is None else (output_activation,)
    net = (*hidden, layers.Dense(outputs), *last)
    return serial(*(_initialized(layer, weight_init, bias_init) for layer in net))


def activation(word: str, what: str = "activation") -> Layer:
    """The activation of that name.

    Raises: ValueError if there is none, with the nearest.
    """
    found = _read(word, _ACTIVATIONS)
    if found is None:
        names = [kind.word for kind in _ACTIVATIONS]
        name = word.partition(":")[0]
        raise ValueError(f"unknown {what} {word!r}: expected one of {', '.join(names)}{did_you_mean(name, names)}")
    return found


def spec(net: Serial) -> str:
    """The line that describes the layers of `net`, the output layer included."""
    return " ".join(layer.as_word() for layer in net.layers)


def _layer(word: str) -> Layer:
    found = _read(word, _KINDS)
    if found is None:
        names = [kind.word for kind in _KINDS if kind.word]
        raise ValueError(
            f"unknown layer {word!r}: expected widths of dense layers and any of {', '.join(names)}, "
            f"{EXAMPLE}{did_you_mean(word.partition(':')[0], names)}"
        )
    return found


def _read(word: str, kinds: Iterable[type[Layer]]) -> Layer | None:
    return next((layer for kind in kinds if (layer := kind.from_word(word)) is not None), None)


def _initialized(layer: Layer, weight_init: Initializer | None, bias_init: Initializer) -> Layer:
    if not isinstance(layer, layers.Dense):
        return layer
    return dataclasses.replace(layer, weight_init=weight_init, bias_init=bias_init)
