"""Compiling what runs once: for jbp's own layers and losses, the compiler can be told to hurry."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from jbp.check.report import Report

HASTE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""On a CPU the second takes three quarters off the time of compiling, which is most of a check's.

Not for a function of somebody else's: what it computes in float32 inside a float64 program (noise, drawn twice from
one key) then comes out a rounding of float32 apart, and a right layer would be rejected. jbp computes in one dtype.
"""

CARE = {"xla_cpu_use_fusion_emitters": True}
"""For functions of somebody else's, whatever $XLA_FLAGS says, where there is a choice."""

_hurry: ContextVar[bool] = ContextVar("hurry", default=False)
_apart: ContextVar[bool] = ContextVar("apart", default=False)
P = ParamSpec("P")


@contextmanager
def hurried() -> Iterator[None]:
    """Where `compiled` compiles in haste: around checks of what jbp itself holds."""
    token = _hurry.set(True)
    try:
        yield
    finally:
        _hurry.reset(token)


@contextmanager
def wide() -> Iterator[None]:
    """Where JAX has 64 bits: what runs here is float64."""
    edge = _apart.get() and not jax.config.read("jax_enable_x64")
    if edge:
        forget()
    try:
        with jax.enable_x64(True):
            yield
    finally:
        if edge:
            forget()


def forget() -> None:
    """Let go of all compiled programs, and of what is kept because of them."""
    jax.clear_caches()
    gc.collect()


def apart(check: Callable[P, Report]) -> Callable[P, Report]:
    """A check that is run again if something could not be run, with nothing compiled kept over from 32 bits to 64.

    JAX keeps an array of numpy's that a function closes over in the dtype in which it met it first, as long as a
    program that holds it lives; so with 64 bits disabled a layer with a constant of numpy's float64 cannot be run in
    both, unless the first program is forgotten. That is dear, and few need it.
    """

    @wraps(check)
    def run(*args: P.args, **options: P.kwargs) -> Report:
        report = check(*args, **options)
        stopped = any(e.law in ("runs", "derivative") and not e.compared for e in report.failures)
        if not stopped or _apart.get() or jax.config.read("jax_enable_x64"):
            return report
        token = _apart.set(True)
        try:
            forget()
            return check(*args, **options)
        finally:
            _apart.reset(token)

    return run


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
