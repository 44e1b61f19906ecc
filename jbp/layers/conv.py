"""The convolutional layer, in one, two and three dimensions."""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass
from typing import Any

import jax

from jbp.annotations import Array, Float, PRNGKeyArray
from jbp.arguments import as_bool, as_count, as_shape, leaf_shapes, needs_floats, same_shape
from jbp.layer import Layer, Shape
from jbp.layers.activations import Activation
from jbp.layers.initializers import Initializer, lecun_normal, zeros
from jbp.pairs import Geometry, Shift, Window


@dataclass(frozen=True, repr=False)
class Conv(Layer):
    """y = h ∗ W + b: a kernel that slides over space, channels last; axes before space are images of their own.

    forward   y[u,o] = Σₖᵢ h[u·stride + k·dilation − low, i] W[k,i,o] + b[o]
    backward  δ_h: δ, spread by the stride, under the kernel turned round, with i and o exchanged
    gradient  ∂e/∂W[k,i,o] = Σᵤ h[u·stride + k·dilation − low, i] δ[u,o],  ∂e/∂b[o] = Σᵤ δ[u,o]

    `kernel` (3, 3) or 3 in one dimension; its length d says the dimension. `stride`, `dilation` are one number or d.
    `padding` is "valid" (none), "same" (⌈s / stride⌉ sites, the odd pixel at the end) or ((low, high), …). With
    `groups` g each of g equal parts of the channels is convolved with its own part of the kernels; g = i is depthwise.

    Parameters: {"weight": [*k, i/g, o], "bias": [o]}; initialised as `Dense`, with fan_in k·i/g.
    """

    width: int
    kernel: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: str | tuple[tuple[int, int], ...] = "same"
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    use_bias: bool = True
    weight_init: Initializer | None = None
    bias_init: Initializer = zeros

    uses_key = False
    piecewise_linear = True

    def __post_init__(self) -> None:
        for name in ("width", "groups"):
            object.__setattr__(self, name, as_count(getattr(self, name), f"the {name} of Conv"))
        object.__setattr__(self, "use_bias", as_bool(self.use_bias, "use_bias of Conv"))
        kernel = sizes_of(self.kernel, "the kernel of Conv")
        object.__setattr__(self, "kernel", kernel if len(kernel) > 1 else kernel[0])
        for name in ("stride", "dilation"):
            sizes = sizes_of(getattr(self, name), f"the {name} of Conv", len(kernel))
            object.__setattr__(self, name, sizes if len(set(sizes)) > 1 else sizes[0])
        object.__setattr__(self, "padding", as_padding(self.padding, "the padding of Conv", len(kernel)))
        if self.width % self.groups:
            raise ValueError(f"the groups of Conv must divide its width {self.width}, but are {self.groups}")
        for name, value in (("weight_init", self.weight_init), ("bias_init", self.bias_init)):
            if not isinstance(value, Initializer) and not (name == "weight_init" and value is None):
                raise ValueError(f"{name} of Conv must come from jbp.initializers, but is {value!r}")

    def geometry(self, space: Shape) -> Geometry:
        """How its kernel slides over a space *s.

        Raises:
            ValueError: if the kernel is larger than the padded space.
        """
        kernel = sizes_of(self.kernel, "")
        return geometry_of(self, kernel, space, self.stride, self.padding, self.dilation, self.groups)

    def init(self, key: PRNGKeyArray, shape: Shape) -> tuple[dict[str, Array], Shape]:
        """A weight [*k, i/groups, o] and, if asked, a bias [o]."""
        shape, d = as_shape(shape), len(sizes_of(self.kernel, ""))
        images, space, i = parts_of(self, shape, d)
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
        weight, kernel = params["weight"], sizes_of(self.kernel, "")
        images, space, i = parts_of(self, x.shape, len(kernel))
        wanted = {"weight": (*kernel, i // self.groups, self.width), "bias": (self.width,)}
        if i % self.groups or any(params[name].shape != wanted[name] for name in names):
            raise ValueError(f"{self!r} on an input of shape {x.shape} got parameters of shapes {leaf_shapes(params)}")
        geometry = self.geometry(space)
        y = geometry.forward(x.reshape(-1, *space, i), weight).reshape(*images, *geometry.sites(space), self.width)
        return (y + params["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if self.use_bias else y), x

    def backward(
        self, params: dict[str, Array], saved: Float[Array, "*t *s i"], delta: Float[Array, "*t *u o"]
    ) -> tuple[Float[Array, "*t *s i"], Any]:
        """δ_h; the pairs (h, δ) and (δ)."""
        weight = params["weight"]
        images, space, _ = parts_of(self, saved.shape, weight.ndim - 2)
        geometry = self.geometry(space)
        same_shape(self, delta, (*images, *geometry.sites(space), self.width))
        pairs: dict[str, Any] = {"weight": Window.of(saved, delta, weight.shape, geometry)}
        if self.use_bias:
            pairs["bias"] = Shift.of(delta, (self.width,))
        flat = delta.reshape(-1, *delta.shape[len(images) :])
        return geometry.back(flat, weight, space).reshape(saved.shape), pairs

    def formulas(self) -> tuple[str, str]:
        """With or without bias."""
        return "y = x∗weight + bias" if self.use_bias else "y = x∗weight", "δ_x = δ∗weight turned round"


def sizes_of(value: Any, what: str, dims: int | None = None) -> Shape:
    """One positive number for each of `dims` dimensions, from one for all or one for each; of a kernel, from its own.

    Raises:
        ValueError: if there are not 1 to 3, or not as many as dimensions.
    """
    if isinstance(value, tuple | list):
        found = tuple(as_count(part, what) for part in value)
    else:
        found = (as_count(value, what),) * (dims or 1)
    if not 1 <= len(found) <= 3 or (dims is not None and len(found) != dims):
        wanted = "1 to 3 numbers" if dims is None else f"one number, or {dims} as the kernel"
        raise ValueError(f"{what} must be {wanted}, but is {value!r}")
    return found


def as_padding(value: Any, what: str, dims: int) -> str | tuple[tuple[int, int], ...]:
    """ "same", "valid" or (low, high) for each of `dims` dimensions.

    Raises:
        ValueError: if it is none of these.
    """
    if value in ("same", "valid"):
        return value
    try:
        found = tuple((operator.index(low), operator.index(high)) for low, high in value)
    except (TypeError, ValueError):
        found = ()
    if len(found) != dims or any(side < 0 for pair in found for side in pair):
        raise ValueError(f"{what} must be 'same', 'valid' or ((low, high), …) for {dims} dimensions, but is {value!r}")
    return found


def geometry_of(
    layer: Layer, kernel: Shape, space: Shape, stride: Any, padding: Any, dilation: Any, groups: int
) -> Geometry:
    """How a kernel, or a window, slides over a space.

    Raises:
        ValueError: if it is larger than the padded space.
    """
    stride, dilation = sizes_of(stride, "", len(kernel)), sizes_of(dilation, "", len(kernel))
    if padding == "valid":
        padding = ((0, 0),) * len(kernel)
    elif padding == "same":
        sides = []
        for s, k, step, spread in zip(space, kernel, stride, dilation, strict=True):
            missing = max((-(-s // step) - 1) * step + (k - 1) * spread + 1 - s, 0)
            sides.append((missing // 2, missing - missing // 2))
        padding = tuple(sides)
    geometry = Geometry(kernel, stride, padding, dilation, groups)
    if min(geometry.sites(space)) < 1:
        padded = tuple(s + low + high for s, (low, high) in zip(space, padding, strict=True))
        raise ValueError(f"{layer!r} needs a space of at least {geometry.span}, but has {padded} with its padding")
    return geometry


def parts_of(layer: Layer, shape: Shape, dims: int) -> tuple[Shape, Shape, int]:
    """Images, space and channels of an input's shape."""
    if len(shape) <= dims:
        raise ValueError(
            f"{layer!r} needs an input with {dims} axes of space and one of channels, but one example has shape "
            f"{shape}: an image of one channel is [h, w, 1]"
        )
    return shape[: -dims - 1], shape[-dims - 1 : -1], shape[-1]
