"""What is saved with a run, to know it again: its parts by their names, functions by what they do."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jbp.annotations import Array
from jbp.arguments import as_bool, came
from jbp.durable.saver import Saving, fingerprint
from jbp.step import Problem, State, Sums, optimised


def saving_of(save_to: Any, every: Any, keep: Any, resume: Any) -> Saving | None:
    """What the four arguments say of saving.

    Raises: ValueError for three of them without the folder.
    """
    if isinstance(save_to, Saving):
        return save_to
    if save_to is None:
        if as_bool(resume, "resume"):
            raise ValueError("resume needs save_to, the folder in which the run was saved")
        return None
    if not isinstance(save_to, str | PathLike):
        raise ValueError(f"save_to must be a folder, but is {came(save_to)}")
    return Saving(Path(save_to), every, keep, as_bool(resume, "resume"))


def said(value: Any) -> str:
    """Its representation, without the address in memory that a class without one of its own puts there: in the process
    that goes on it is another."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def facts_about(problem: Problem, state: State, x: Array) -> dict[str, Any]:
    """What of a problem decides how a run goes on: its parts by their names, functions by what they do."""
    grads, transform = state.params, None
    if problem.transform is not None:
        how, one = problem.transform, jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        transform = [fingerprint(lambda x: how(x, None), one), fingerprint(how, one, state.key)]

    def update(state: State, grads: Any) -> Any:
        return optimised(problem, state, Sums(jnp.zeros(()), grads, ()), lambda params: jnp.zeros(()))

    return {
        "net": said(problem.net), "loss": said(problem.loss), "method": said(problem.method),
        "trainable": said(problem.trainable), "metrics": [name for name, _ in problem.metrics],
        "optimizer": fingerprint(update, state, grads), "transform": transform,
    }  # fmt: skip
