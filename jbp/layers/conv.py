"""The convolutional layer, in one, two and three dimensions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from jbp.annotations import Array, Float, PRNGKeyArray
from jbp.arguments import as_bool, as_count, as_shape, leaf_shapes, needs_floats, promoted, same_shape
from jbp.inputs import check_key
from jbp.layer import Layer, Shape, made
from jbp.layers.activations import Activation
from jbp.layers.images import warn_of_axes
from jbp.layers.initializers import Initializer, lecun_normal, zeros
from jbp.layers.sliding import (
    Padding,
    Sizes,
    as_padding,
    as_sizes,
    check_dims,
    dims_of,
    fields_in,
    geometry_of,
    parts_of,
    per_axis,
    worded,
)
from jbp.pairs import Geometry, Shift, Window


@dataclass(frozen=True, repr=False)
class Conv(Layer):
    """y = h ∗ W + b: a kernel that slides over space, channels last: [*s, i] becomes [*u, o].

    forward   y[u,o] = Σₖᵢ h[u·stride + k·dilation − low, i] W[k,i,o] + b[o]
    backward  δ_h: δ, spread by the stride, under the kernel turned round, with i and o exchanged
    gradient  ∂e/∂W[k,i,o] = Σᵤ h[u·stride + k·dilation − low, i] δ[u,o],  ∂e/∂b[o] = Σᵤ δ[u,o]

    `kernel` (3, 3) slides in two dimensions, (3,) in one; 3 in as many as its input has axes before the channels.
    `stride` and `dilation` likewise. Where one of them is a tuple, axes before space are images of their own.
    `padding` is "valid" (none), "same" (⌈s / stride⌉ sites, the odd pixel at the end) or ((low, high), …). With
    `groups` g each of g equal parts of the channels is convolved with its own part of the kernels; g = i is depthwise.

    Parameters: {"weight": [*k, i/g, o], "bias": [o]}; initialised as `Dense`, with fan_in k·i/g.
    """

    width: int
    kernel: Sizes
    stride: Sizes = 1
    padding: Padding = "same"
    dilation: Sizes = 1
    groups: int = 1
    use_bias: bool = True
    weight_init: Initializer | None = None
    bias_init: Initializer = zeros

    uses_key = False
    mixes_positions = True
    piecewise_linear = True
    word = "conv"

    def __post_init__(self) -> None:
        for name in ("width", "groups"):
            object.__setattr__(self, name, as_count(getattr(self, name), f"the {name} of Conv"))
        object.__setattr__(self, "use_bias", as_bool(self.use_bias, "use_bias of Conv"))
        for name in ("kernel", "stride", "dilation"):
            object.__setattr__(self, name, as_sizes(getattr(self, name), f"the {name} of Conv"))
        object.__setattr__(self, "padding", as_padding(self.padding, "the padding of Conv"))
        if self.width % self.groups:
            raise ValueError(f"the groups of Conv must divide its width {self.width}, but are {self.groups}")
        for name, value in (("weight_init", self.weight_init), ("bias_init", self.bias_init)):
            if not isinstance(value, Initializer) and not (name == "weight_init" and value is None):
                raise ValueError(f"{name} of Conv must come from jbp.initializers, but is {value!r}")
        check_dims(self, *self._sizes)

    @property
    def _sizes(self) -> tuple[Any, ...]:
        padding = None if isinstance(self.padding, str) else self.padding
        return self.kernel, self.stride, self.dilation, padding

    @property
    def dims(self) -> int | None:
        """Of how many dimensions its sizes are; None if each is one number for all."""
        return dims_of(*self._sizes)

    def geometry(self, space: Shape) -> Geometry:
        """How its kernel slides over a space *s.

        Raises:
            ValueError: if the kernel is larger than the padded space.
        """
        return geometry_of(self, space, self.kernel, self.stride, self.padding, self.dilation, self.groups)

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[dict[str, Array], Shape]:
        """A weight [*k, i/groups, o] and, if asked, a bias [o]."""
        check_key(key, needed=True)
        shape = as_shape(shape)
        images, space, i = parts_of(self, shape, *self._sizes)
        warn_of_axes(self, shape, self.dims)
        geometry = self.geometry(space)
        if i % self.groups:
            raise ValueError(f"the groups of {self!r} must divide its input's {i} channels")
        weight_key, bias_key = jax.random.split(key)
        weight_init = self.weight_init or lecun_normal
        params = {"weight": weight_init(weight_key, (*geometry.kernel, i // self.groups, self.width))}
        if self.use_bias:
            params["bias"] = self.bias_init(bias_key, (self.width,))
        return params, (*images, *geometry.sites(space), self.width)

    def before(self, following: Layer | None) -> Layer:
        """With the initialiser that suits the next activation, where the user named none."""
        if self.weight_init is not None or not isinstance(following, Activation):
            return self
        return dataclasses.replace(self, weight_init=following.suits)

    def forward(
        self, params: dict[str, Array], x: Float[Array, "*t *s i"], key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "*t *u o"], Array]:
        """h ∗ W + b; saves h."""
        names = {"weight", "bias"} if self.use_bias else {"weight"}
        if not isinstance(params, dict) or params.keys() != names:
            found = list(params) if isinstance(params, dict) else type(params).__name__
            raise ValueError(f"{self!r} takes parameters {sorted(names)} in a dict, but got {found}")
        needs_floats(self, x)
        weight = params["weight"]
        images, space, i = parts_of(self, x.shape, *self._sizes)
        kernel = per_axis(self.kernel, len(space))
        wanted = {"weight": (*kernel, i // self.groups, self.width), "bias": (self.width,)}
        if i % self.groups or any(params[name].shape != wanted[name] for name in names):
            raise ValueError(f"{self!r} on an input of shape {x.shape} got parameters of shapes {leaf_shapes(params)}")
        geometry = self.geometry(space)
        y = geometry.forward(*promoted(x.reshape(-1, *space, i), weight)).reshape(
            *images, *geometry.sites(space), self.width
        )
        return (y + params["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if self.use_bias else y), x

    def backward(
        self, params: dict[str, Array], saved: Float[Array, "*t *s i"], delta: Float[Array, "*t *u o"]
    ) -> tuple[Float[Array, "*t *s i"], Any]:
        """δ_h; the pairs (h, δ) and (δ)."""
        weight = params["weight"]
        images, space, _ = parts_of(self, saved.shape, *self._sizes)
        geometry = self.geometry(space)
        same_shape(self, delta, (*images, *geometry.sites(space), self.width))
        pairs: dict[str, Any] = {"weight": Window.of(saved, delta, weight.shape, geometry)}
        if self.use_bias:
            pairs["bias"] = Shift.of(delta, (self.width,))
        flat = delta.reshape(-1, *delta.shape[len(images) :])
        flat, weight = promoted(flat, weight)
        return geometry.back(flat, weight, space).reshape(saved.shape), pairs

    def formulas(self) -> tuple[str, str]:
        """With or without bias."""
        return "y = x∗weight + bias" if self.use_bias else "y = x∗weight", "δ_x = δ∗weight turned round"

    @classmethod
    def from_word(cls, word: str) -> Layer | None:
        """ "conv:WIDTH:KERNEL", then as wanted :s2 (stride), :d2 (dilation), :g4 (groups), :valid."""
        if word.partition(":")[0] != cls.word:
            return None
        letters = {"s": "stride", "d": "dilation", "g": "groups"}
        return made(word, cls, **fields_in(word, ("width", "kernel"), letters, ("same", "valid")))

    def as_word(self) -> str:
        """Width and kernel, and what is not usual."""
        named = isinstance(self.padding, str)
        self.refuse_unworded("width", "kernel", "stride", "dilation", "groups", *(("padding",) if named else ()))
        options = [
            f"{letter}{worded(value)}"
            for letter, value in (("s", self.stride), ("d", self.dilation), ("g", self.groups))
            if value != 1
        ]
        valid = ["valid"] if self.padding == "valid" else []
        return ":".join([self.word, str(self.width), worded(self.kernel), *options, *valid])
