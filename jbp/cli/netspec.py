"""Networks as one line of text: "conv:8:3 relu pool:2 dropout:0.2 64 relu" ↔ layers.

A word is read and written by the layer that it names (`Layer.from_word`, `Layer.as_word`), and nets made of layers are
words with brackets, "residual( 64 relu 64 )", read by the class that they name (`Combinator.around`); which there are
follows from the case table. A number is a dense layer of that width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp

from jbp import layers, own
from jbp.arguments import about, did_you_mean
from jbp.backprop import backward, forward
from jbp.check.cases import COMBINATORS, LAYERS
from jbp.checkpoint import check_kept
from jbp.combine import Combinator, Serial, located, serial
from jbp.layer import EXAMPLE, Layer, Shape
from jbp.layers import Activation, initializers
from jbp.layers.images import made_for
from jbp.layers.initializers import Initializer
from jbp.sinks import total

Reads = Callable[[str], Layer | None]
"""Makes a layer of a word, or None of one that it does not know."""
_KINDS = tuple(row.kind for row in LAYERS)
_ACTIVATIONS = tuple(kind for kind in _KINDS if issubclass(kind, Activation))
_COMBINATORS = tuple(kind for row in COMBINATORS if issubclass(kind := row.kind, Combinator) and kind.word)
_SPATIAL = (layers.Conv, layers.MaxPool, layers.AvgPool, layers.GlobalPool)
_SEQUENTIAL = (layers.Embedding, layers.Positions, layers.Attention, layers.Unembedding)
_ARRANGING = (layers.Channel, layers.Flatten, layers.Reshape)
_WITH_WEIGHTS = (layers.Dense, layers.Conv)


def known() -> str:
    """The words of all layers, with arguments where a case with some can be written, and of all nets of layers."""
    words: dict[type[Layer], str] = {}
    for row in LAYERS:
        for case in row.cases if row.kind.word else ():
            with suppress(ValueError):
                words[row.kind] = max(words.get(row.kind, ""), case.net.as_word(), key=len)
    return ", ".join([*words.values(), *(f"{kind.word}( … )" for kind in _COMBINATORS)])


def parse(text: str, own: Reads = lambda word: None) -> tuple[Layer, ...]:
    """The layers of a line, in order; of each word `own` is asked first.

    Raises: ValueError naming the word that is wrong, with the nearest known one.
    """
    return _read_to_end(iter(text.replace("(", "( ").replace(")", " ) ").split()), "", own)


def build(
    text: str,
    shape: Shape,
    outputs: int,
    output_activation: Layer | None = None,
    weight_init: Initializer | None = None,
    bias_init: Initializer = initializers.zeros,
) -> Serial:
    """The net for examples of `shape`: the line's layers, those that its form needs between them, and a dense layer of
    `outputs`.

    Without a layer that takes space or a sequence, examples of several axes are flattened first. With one of space,
    images [h, w] get an axis of one channel, and what is still spread over space is flattened before the first dense
    layer behind it.

    Raises: ValueError as `parse`; for a layer that its input does not suit, naming it.
    """
    hidden, last = parse(text), (layers.Dense(outputs),)
    if any(isinstance(leaf, _SPATIAL) for leaf in _leaves(hidden)):
        net = _arranged((*hidden, *last), shape)
    else:
        flat = len(shape) == 1 or any(isinstance(leaf, (layers.Flatten, *_SEQUENTIAL)) for leaf in _leaves(hidden))
        net = (*(() if flat else (layers.Flatten(),)), *hidden, *last)
    net = (*net, *(() if output_activation is None else (output_activation,)))
    return serial(*(_initialized(layer, weight_init, bias_init) for layer in net))


def added(text: str, net: Layer) -> list[str]:
    """What `build` put between the layers of a line with spatial ones, in words."""
    hidden = parse(text)
    if not any(isinstance(leaf, _SPATIAL) for leaf in _leaves(hidden)):
        return []
    assert isinstance(net, Serial)
    found = []
    if layers.Channel() in net.layers and layers.Channel() not in hidden:
        found.append("channel in front: an image [h, w] becomes [h, w, 1]")
    if layers.Flatten() in net.layers and layers.Flatten() not in hidden:
        behind = net.layers[net.layers.index(layers.Flatten()) + 1]
        found.append(f"flatten before the dense layer {behind.as_word()}")
    return found


def fitting(net: Layer, name: str, shape: Shape, outputs: int, tokens: bool = False) -> Layer:
    """A net of the user's own, FILE.py:NAME, if it fits examples of `shape`, has so many outputs, and can be kept;
    of `tokens` [t] so many for each of them.

    Raises: ValueError if not; before training, and not after it.
    """
    path, _ = own.parts(name)
    wanted = (*shape, outputs) if tokens else (outputs,)

    def passes(key: Any, x: Any) -> Any:
        """Forward and back, as a step of training does it."""
        with made_for(shape, again=True):
            params, _ = net.init(key, shape)
        output, saved = forward(net, params, x, None if net.uses_key is False else key)
        return params, output, backward(net, params, saved, jnp.zeros_like(output), total)

    x = jax.ShapeDtypeStruct((2, *shape), jax.dtypes.canonicalize_dtype(int if tokens else float))
    with own.blamed(path, f"{name.rpartition(':')[2]} fails on examples of shape {shape}"):
        params, output, _ = jax.eval_shape(passes, jax.random.key(0), x)
    if output.shape[1:] != wanted:
        first = "jbp.Flatten() first, and " if len(shape) > 1 and len(output.shape) > 2 else ""
        last = "Unembedding" if tokens else "Dense"
        raise ValueError(
            f"{name}: expected a whole net, with outputs of shape {wanted} for these data, got {output.shape[1:]} "
            f"for examples of shape {shape}: put {first}jbp.{last}({outputs}) last"
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
    """The line that describes the layers of `net`, the output layer included; initial values are options of their own.

    Raises: ValueError for a layer that no word says, naming it.
    """
    net = _initialized(net, None, initializers.zeros)
    return " ".join(layer.as_word() for layer in (net.layers if isinstance(net, Serial) else (net,)))


def _read_to_end(words: Iterator[str], opened: str, own: Reads) -> tuple[Layer, ...]:
    """The layers up to the bracket that closes `opened`, or to the end of the line."""
    found = []
    for word in words:
        if word == ")" and not opened:
            raise ValueError("net: a ) closes nothing, for there is no bracket open in front of it")
        if word == ")":
            return tuple(found)
        if word.endswith("("):
            found.append(_around(word[:-1], _read_to_end(words, word, own)))
        else:
            found.append(own(word) or _layer(word))
    if opened:
        raise ValueError(f"net: {opened!r} is not closed: put ) behind the last of its layers")
    return tuple(found)


def _around(head: str, inside: tuple[Layer, ...]) -> Layer:
    """The net of layers in brackets."""
    word, _, argument = head.partition(":")
    kind = next((kind for kind in _COMBINATORS if kind.word == word), None)
    if kind is None:
        names = [kind.word for kind in _COMBINATORS]
        if word in (kind.word for kind in _KINDS if kind.word):
            raise ValueError(f"net: {word} takes no layers in brackets, but {', '.join(names)} do")
        raise ValueError(
            f"unknown net of layers {f'{head}('!r}: expected one of {', '.join(names)} in front of a bracket"
            f"{did_you_mean(word, names)}"
        )
    if not inside:
        raise ValueError(f"net: there is no layer in the brackets of {head}( ), where at least one is needed")
    try:
        return kind.around(argument, inside)
    except ValueError as error:
        raise ValueError(f"net: cannot read {f'{head}('!r}: {error}") from None


def _layer(word: str) -> Layer:
    found = _read(word, (*_KINDS, *_COMBINATORS))
    if found is None:
        names = [kind.word for kind in (*_KINDS, *_COMBINATORS) if kind.word]
        expected = f": expected widths of dense layers and any of {', '.join(names)}, {EXAMPLE}"
        raise ValueError(f"unknown layer {word!r}{did_you_mean(word.partition(':')[0], names) or expected}")
    return found


def _read(word: str, kinds: Iterable[type[Layer]]) -> Layer | None:
    return next((layer for kind in kinds if (layer := kind.from_word(word)) is not None), None)


def _leaves(net: Iterable[Layer]) -> Iterator[Layer]:
    """The layers in order, those inside nets of layers too."""
    for layer in net:
        yield from _leaves(layer.children) if isinstance(layer, Combinator) else (layer,)


def _arranged(net: tuple[Layer, ...], shape: Shape) -> tuple[Layer, ...]:
    """A line with spatial layers, with Channel in front of it where images have no channels, and Flatten before the
    first dense layer that space reaches."""
    spatial = next(leaf for leaf in _leaves(net) if isinstance(leaf, _SPATIAL))
    before = list(_leaves(net))
    before = before[: before.index(spatial)]
    has_channels = getattr(spatial, "dims", None) == 1 or any(
        isinstance(leaf, (*_ARRANGING, *_SEQUENTIAL)) for leaf in before
    )
    found: list[Layer] = []

    def put(layer: Layer) -> None:
        nonlocal shape
        with located((len(found),), layer):
            shape = _shape_behind(layer, shape)
        found.append(layer)

    if len(shape) == 2 and not has_channels:
        put(layers.Channel())
    space = False
    for layer in net:
        if space and isinstance(layer, layers.Dense) and len(shape) > 1:
            put(layers.Flatten())
        put(layer)
        space = space or any(isinstance(leaf, _SPATIAL) for leaf in _leaves((layer,)))
    return tuple(found)


def _shape_behind(layer: Layer, shape: Shape) -> Shape:
    """The shape of a layer's output; nothing is drawn."""
    shapes = []
    with made_for(shape, again=True):  # training says what looks wrong
        jax.eval_shape(lambda key: shapes.append(layer.init(key, shape)[1]), jax.random.key(0))
    return shapes[0]


def _initialized(layer: Layer, weight_init: Initializer | None, bias_init: Initializer) -> Layer:
    """With these initial values in every layer that has weights."""

    def inside(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(inside, value))
        return _initialized(value, weight_init, bias_init) if isinstance(value, Layer) else value

    if isinstance(layer, _WITH_WEIGHTS):
        return dataclasses.replace(layer, weight_init=weight_init, bias_init=bias_init)
    if isinstance(layer, Combinator):
        fields: Any = dataclasses.fields(layer)  # type: ignore[arg-type]
        return dataclasses.replace(layer, **{f.name: inside(getattr(layer, f.name)) for f in fields})  # type: ignore[type-var]
    return layer
