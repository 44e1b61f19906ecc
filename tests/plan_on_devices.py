"""Small nets on meshes, for `tests/test_plan_meshes.py`; run by itself, on eight devices, it compiles a step of each
and prints what the compiled programs do, as JSON.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
from compiled import counted

import jbp
from jbp import losses
from jbp.optim import sgd
from jbp.pairs import routes
from jbp.step import Problem, batch_laid_out, laid_out, step_function

LOSS = losses.softmax_cross_entropy
OPTIMIZER = sgd(0.1, momentum=0.9)
N = 16


def block(width: int) -> jbp.Layer:
    return jbp.serial(jbp.LayerNorm(), jbp.Dense(24), jbp.relu, jbp.Dense(width))


STACK = jbp.serial(jbp.Dense(16), jbp.relu, jbp.Dense(24), jbp.tanh, jbp.Dense(40), jbp.relu, jbp.Dense(16))
OPEN = jbp.serial(jbp.Dense(24), jbp.relu, jbp.Dropout(0.3), jbp.Dense(16), jbp.tanh, jbp.Dense(32))
"""Ends with outputs that are split."""
MIXED = jbp.serial(
    jbp.Dense(11), jbp.residual(block(11)), jbp.branch(jbp.Dense(5), jbp.Dense(7), join="concat"), jbp.RMSNorm(),
    jbp.Dropout(0.3), jbp.tied(jbp.serial(jbp.Dense(12), jbp.tanh, jbp.Dense(12)), {2: 0}), jbp.Dense(5),
)  # fmt: skip
BLOCKS = jbp.serial(jbp.repeat(jbp.residual(block(16)), 3), jbp.LayerNorm(), jbp.Dense(24))
KERNELS = jbp.serial(jbp.Conv(8, 3), jbp.relu, jbp.Conv(16, 3), jbp.relu, jbp.GlobalPool(), jbp.Dense(16))
COUPLED = jbp.serial(
    jbp.Conv(7, 3), jbp.BatchNorm(), jbp.relu, jbp.residual(jbp.serial(jbp.Conv(7, 3), jbp.BatchNorm())),
    jbp.Flatten(), jbp.Dense(5),
)  # fmt: skip
Mesh = tuple[int, int, bool]
"""Data, model, shard_params."""
CASES: dict[str, tuple[jbp.Layer, tuple[int, ...], tuple[Mesh, ...]]] = {
    "stack": (STACK, (13,), ((1, 1, False), (8, 1, False), (4, 2, False), (2, 4, False), (1, 8, False), (8, 1, True))),
    "open": (OPEN, (16,), ((2, 4, False),)),
    "mixed": (MIXED, (13,), ((1, 1, False), (4, 1, False))),
    "blocks": (BLOCKS, (16,), ((8, 1, False), (2, 4, False))),
    "kernels": (KERNELS, (5, 7, 3), ((2, 4, False), (8, 1, True))),
    "coupled": (COUPLED, (5, 7, 3), ((8, 1, False),)),
}


def compiled(net: jbp.Layer, shape: tuple[int, ...], mesh: Mesh) -> Any:
    """The program of one step."""
    d, m, shard_params = mesh
    devices = jax.make_mesh((d, m), ("data", "model"), devices=jax.devices()[: d * m])
    sharding, problem = jbp.Sharding(devices, shard_params=shard_params), Problem(net, LOSS, OPTIMIZER)
    batch = jbp.Batch(jnp.zeros((N, *shape)), jnp.zeros(N, jnp.int32))
    with sharding.set():
        state = laid_out(jbp.init_state(problem, shape, seed=0), problem, sharding)
        step = jax.jit(step_function(problem, 1, sharding), donate_argnums=0)
        return step.lower(state, batch_laid_out(batch, sharding), jax.random.key(0)).compile()


def main() -> None:
    """Print {case: [figures of each mesh]}."""
    found: dict[str, list[dict[str, float]]] = {}
    with routes.plain():
        for name, (net, shape, meshes) in CASES.items():
            for mesh in meshes:
                program = compiled(net, shape, mesh)
                seen, memory = counted(program), program.memory_analysis()
                found.setdefault(name, []).append(
                    {
                        "flops": seen.flops,
                        "bytes": seen.bytes,
                        **seen.collectives,
                        "arguments": memory.argument_size_in_bytes,
                        "temporaries": memory.temp_size_in_bytes,
                    }
                )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
