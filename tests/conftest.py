"""The suite's conditions: float64, no silent promotion of types or ranks, and the data folder where there is one."""

import gc
import os
from pathlib import Path

import haste

os.environ.setdefault("XLA_FLAGS", haste.FLAGS + haste.OLDER)  # read when JAX starts, so it comes first
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

gc.set_threshold(20_000, 20, 20)  # traced programs are many objects and few cycles: a twentieth of the time
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def data_dir() -> Path | None:
    """Where MNIST and Fashion-MNIST are, if this machine has them: $JBP_DATA_DIR, else a folder beside the checkout."""
    places = [os.environ.get("JBP_DATA_DIR"), Path(__file__).parents[2] / "shared" / "data"]
    return next((Path(p) for p in places if p and (Path(p) / "mnist").is_dir()), None)


MANY = 2000
"""Compiled programs that are kept, more or less: they take a gigabyte."""
_compiled_since = [0]


def _count(event: str, *_: object, **__: object) -> None:
    _compiled_since[0] += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.fixture(scope="module", autouse=True)
def programs_are_forgotten():
    """Compiled programs serve the next file's tests too, until there are many of them."""
    yield
    if _compiled_since[0] > MANY:
        jax.clear_caches()
        _compiled_since[0] = 0


@pytest.fixture
def optax_promotion():
    """Optax's Adam and schedules mix dtypes; strict promotion is relaxed around those calls and nowhere else."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
