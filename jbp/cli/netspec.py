"""Networks as one line of text: "128 relu dropout:0.2 64 relu" ↔ layers.

A word is read and written by the layer that it names (`Layer.from_word`, `Layer.as_word`); which layers there are
follows from the case table. A number is a dense layer of that width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jbp import layers, own
from jbp.arguments import about, did_you_mean
from jbp.backprop import backward, forward
from jbp.check.cases import LAYERS
from jbp.checkpoint import check_kept
from jbp.combine import Serial, serial
from jbp.layer import EXAMPLE, Layer, Shape
from jbp.layers import Activation, initializers
from jbp.layers.initializers import Initializer
from jbp.sinks import total

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


def fitting(net: Layer, name: str, shape: Shape, outputs: int) -> Layer:
    """A net of the user's own, FILE.py:NAME, if it fits examples of `shape`, has so many outputs, and can be kept.

    Raises: ValueError if not; before training, and not after it.
    """
    path, _ = own.parts(name)

    def passes(key: Any, x: Any) -> Any:
        """Forward and back, as a step of training does it."""
        params, _ = net.init(key, shape)
        output, saved = forward(net, params, x, None if net.uses_key is False else key)
        return params, output, backward(net, params, saved, jnp.zeros_like(output), total)

    x = jax.ShapeDtypeStruct((2, *shape), jax.dtypes.canonicalize_dtype(float))
    with own.blamed(path, f"{name.rpartition(':')[2]} fails on examples of shape {shape}"):
        params, output, _ = jax.eval_shape(passes, jax.random.key(0), x)
    if output.shape[1:] != (outputs,):
        first = "jbp.Flatten() first, and " if len(shape) > 1 and len(output.shape) > 2 else ""
        raise ValueError(
            f"{name}: expected a whole net, with outputs of shape {(outputs,)} for these data, got {output.shape[1:]} "
            f"for examples of shape {shape}: put {first}jbp.Dense({outputs}) last"
        )
    with about(name):
        check_kept(net, params)
    return net


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


def spec(net: Layer) -> str:
    """The line that describes the layers of `net`, the output layer included."""
    return " ".join(layer.as_word() for layer in (net.layers if isinstance(net, Serial) else (net,)))


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
