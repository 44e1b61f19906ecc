"""The suite's conditions: float64, no silent promotion of types or ranks, and the data folder where there is one."""

import os
from pathlib import Path

# Speed is not measured here and compiling dominates; read by XLA when JAX starts, so it comes first.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def data_dir() -> Path | None:
    """Where MNIST and Fashion-MNIST are, if this machine has them: $JBP_DATA_DIR, else a folder beside the checkout."""
    places = [os.environ.get("JBP_DATA_DIR"), Path(__file__).parents[2] / "shared" / "data"]
    return next((Path(p) for p in places if p and (Path(p) / "mnist").is_dir()), None)


@pytest.fixture
def optax_promotion():
    """Optax's Adam and schedules mix dtypes; strict promotion is relaxed around those calls and nowhere else."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
