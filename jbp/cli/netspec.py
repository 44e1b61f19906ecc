"""Networks as one line of text: "128 relu dropout:0.2 64 relu" ↔ layers.

A number is a dense layer of that width; a name is an activation, some with a number after a colon
(leaky_relu:0.2, elu:0.7, gelu:erf); step, a unit [s > 0] with a surrogate slope that may be named, and its sharpness
(step:triangle, step:triangle:0.5); dropout:RATE; flatten, put in front where an example has more than one axis.
"""

from __future__ import annotations

import dataclasses
import re

from jbp import layers
from jbp.arguments import did_you_mean
from jbp.combine import Serial, serial
from jbp.layer import Layer, Shape
from jbp.layers import initializers
from jbp.layers.initializers import Initializer
from jbp.layers.step import Step

_PLAIN = ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "softmax", "softplus", "elu", "silu", "gelu")
ACTIVATIONS: dict[str, Layer] = {**{name: getattr(layers, name) for name in _PLAIN}, "step": Step()}
_WHOLE = re.compile(r"[+-]?[0-9]+")
_EXAMPLE = 'as in "128 relu dropout:0.2 64 relu"'


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
    name, _, number = word.partition(":")
    if name not in ACTIVATIONS:
        raise ValueError(
            f"unknown {what} {word!r}: expected one of {', '.join(ACTIVATIONS)}{did_you_mean(name, ACTIVATIONS)}"
        )
    if not number:
        return ACTIVATIONS[name]
    if name == "leaky_relu":
        return layers.LeakyRelu(_number(word, number))
    if name == "elu":
        return layers.Elu(_number(word, number))
    if name == "gelu" and number in ("tanh", "erf"):
        return layers.Gelu(approximate=number == "tanh")
    if name == "step":
        return _step(word, number)
    allowed = "; gelu takes :tanh or :erf" if name == "gelu" else f"; {name} takes no number"
    raise ValueError(f"net: cannot read {word!r}{allowed}")


def spec(net: Serial) -> str:
    """The line that describes the layers of `net`, the output layer included."""
    return " ".join(map(_word, net.layers))


def _layer(word: str) -> Layer:
    name, colon, number = word.partition(":")
    if _WHOLE.fullmatch(word):
        if int(word) < 1:
            raise ValueError(f"net: expected the width of a dense layer to be at least 1, got {word!r}, {_EXAMPLE}")
        return layers.Dense(int(word))
    if name == "dropout":
        if not colon:
            raise ValueError(f"net: dropout needs the rate to drop at, in [0, 1), {_EXAMPLE}")
        return layers.Dropout(_number(word, number))
    if word == "flatten":
        return layers.Flatten()
    if name not in ACTIVATIONS:
        known = (*ACTIVATIONS, "dropout", "flatten")
        raise ValueError(
            f"unknown layer {word!r}: expected widths of dense layers and any of {', '.join(known)}, "
            f"{_EXAMPLE}{did_you_mean(name, known)}"
        )
    return activation(word)


def _number(word: str, number: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise ValueError(f"net: expected a number after the colon, got {word!r}, {_EXAMPLE}") from None


def _step(word: str, rest: str) -> Step:
    """The unit of "step:SURROGATE" or "step:SURROGATE:SHARPNESS"."""
    surrogate, colon, number = rest.partition(":")
    sharpness = _number(word, number) if colon else 1.0
    try:
        return Step(surrogate, sharpness)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"net: cannot read {word!r}: {error}") from None


def _initialized(layer: Layer, weight_init: Initializer | None, bias_init: Initializer) -> Layer:
    if not isinstance(layer, layers.Dense):
        return layer
    return dataclasses.replace(layer, weight_init=weight_init, bias_init=bias_init)


def _word(layer: Layer) -> str:
    match layer:
        case layers.Dense(width=width):
            return str(width)
        case layers.Dropout(drop_rate=rate):
            return f"dropout:{rate:g}"
        case layers.LeakyRelu(negative_slope=slope) if layer != layers.leaky_relu:
            return f"leaky_relu:{slope:g}"
        case layers.Elu(alpha=alpha) if layer != layers.elu:
            return f"elu:{alpha:g}"
        case layers.Gelu(approximate=False):
            return "gelu:erf"
        case Step(surrogate=surrogate, sharpness=sharpness) if layer != Step():
            return f"step:{surrogate}" if sharpness == 1 else f"step:{surrogate}:{sharpness:g}"
        case Step():
            return "step"
        case layers.Flatten():
            return "flatten"
    return repr(layer)
