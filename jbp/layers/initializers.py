"""Initial weights, as named, comparable classes; the drawing itself is `jax.nn.initializers`.

A layer that is told none follows the activation that comes next (`following`): He for the rectifier family (half of
a rectifier's input is lost, so the variance is doubled), Glorot for tanh, sigmoid and softmax, LeCun before a linear
output.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jbp.annotations import Array, Float, PRNGKeyArray
from jbp.arguments import as_number
from jbp.inputs import check_key
from jbp.layer import Shape

__all__ = [
    "Initializer",
    "Normal",
    "VarianceScaling",
    "Zeros",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "standard_normal",
    "zeros",
]


def __dir__() -> list[str]:
    return __all__


class Initializer:
    """Draws the initial value of one parameter."""

    def __call__(self, key: PRNGKeyArray, shape: Shape) -> Array:
        """An array of `shape`, in JAX's default float type."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """The name it has here, such as he_normal, or else the call that makes it."""
        named = (name for name, value in globals().items() if isinstance(value, Initializer) and value == self)
        fields = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        values = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields)
        return next(named, f"{type(self).__name__}({values})")


@dataclass(frozen=True, repr=False)
class VarianceScaling(Initializer):
    """Mean 0 and variance scale / fan of a weight [i, o]; fan is i, or (i+o)/2. Of a kernel [*k, i, o] i and o count k
    times, as often as there are places in it; with groups i is of one of them.

    "normal" is cut off at two standard deviations and rescaled to keep the variance, as in `jax.nn.initializers`.
    Source: LeCun et al. 1998 (scale 1, fan i); Glorot, Bengio 2010, eq. 12 (1, mean of both); He et al. 2015,
    eq. 10 (2, i).
    """

    scale: float
    fan: Literal["fan_in", "fan_avg"]
    distribution: Literal["normal", "uniform"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", as_number(self.scale, "the scale of VarianceScaling", 0.0))
        if self.fan not in ("fan_in", "fan_avg") or self.distribution not in ("normal", "uniform"):
            raise ValueError(f"expected fan 'fan_in' or 'fan_avg' and distribution 'normal' or 'uniform': {self}")

    def __call__(self, key: PRNGKeyArray, shape: Shape) -> Float[Array, "*k i o"]:
        """A weight of `shape` [i, o], or a kernel [*k, i, o]."""
        check_key(key, needed=True)
        distribution = "truncated_normal" if self.distribution == "normal" else "uniform"
        return jax.nn.initializers.variance_scaling(self.scale, self.fan, distribution)(key, shape)


@dataclass(frozen=True, repr=False)
class Normal(Initializer):
    """Independent normals of mean 0 and the given standard deviation, whatever the fan."""

    stddev: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stddev", as_number(self.stddev, "the stddev of Normal", 0.0))

    def __call__(self, key: PRNGKeyArray, shape: Shape) -> Array:
        """An array of `shape`."""
        check_key(key, needed=True)
        return self.stddev * jax.random.normal(key, shape)


@dataclass(frozen=True, repr=False)
class Zeros(Initializer):
    """All zeros: the default for biases."""

    def __call__(self, key: PRNGKeyArray, shape: Shape) -> Array:
        """Zeros of `shape`."""
        check_key(key)
        return jnp.zeros(shape)


lecun_normal = VarianceScaling(1.0, "fan_in", "normal")
lecun_uniform = VarianceScaling(1.0, "fan_in", "uniform")
glorot_normal = VarianceScaling(1.0, "fan_avg", "normal")
glorot_uniform = VarianceScaling(1.0, "fan_avg", "uniform")
he_normal = VarianceScaling(2.0, "fan_in", "normal")
he_uniform = VarianceScaling(2.0, "fan_in", "uniform")
standard_normal = Normal(1.0)
zeros = Zeros()
