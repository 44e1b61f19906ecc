"""Compiling what runs once: for jbp's own layers and losses, the compiler can be told to hurry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

HASTE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""On a CPU the second takes three quarters off the time of compiling, which is most of a check's.

Not for a function of somebody else's: what it computes in float32 inside a float64 program (noise, drawn twice from
one key) then comes out a rounding of float32 apart, and a right layer would be rejected. jbp computes in one dtype.
"""

CARE = {"xla_cpu_use_fusion_emitters": True}
"""For functions of somebody else's, whatever $XLA_FLAGS says, where there is a choice."""

_hurry: ContextVar[bool] = ContextVar("hurry", default=False)


@contextmanager
def hurried() -> Iterator[None]:
    """Where `compiled` compiles in haste: around checks of what jbp itself holds."""
    token = _hurry.set(True)
    try:
        yield
    finally:
        _hurry.reset(token)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`, in haste where that was asked for and with care otherwise.

    A leaf's law `jit = eager` compiles it as a user does, always.
    """
    return jax.jit(function, compiler_options=accepted(jax.default_backend(), _hurry.get()))


@cache
def accepted(platform: str, hurried: bool = True) -> dict[str, Any] | None:
    """Those of HASTE or CARE that this XLA knows; none of them is promised to stay."""
    if platform != "cpu":
        return None
    found = {}
    for name, value in (HASTE if hurried else CARE).items():
        try:
            jax.jit(lambda x: x + x, compiler_options={name: value})(jnp.zeros(()))
        except Exception:
            continue
        found[name] = value
    return found
