"""What XLA is told in the suite's processes: compiling dominates there, and speed is not measured.

XLA reads it when JAX starts, so this imports neither. What costs are counted of, `counting.xla_cost` compiles with the
newer of XLA's code generators, as users do; the older one, where there is a choice, is twice as fast.
"""

from importlib.metadata import version

FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
OLDER = " --xla_cpu_use_fusion_emitters=false" if version("jax").startswith("0.10.") else ""


def flags(devices: int, counted: bool = False) -> str:
    """For a process with so many virtual devices; `counted` if costs are read from what it compiles.

    Devices take their turns: where XLA runs at once what can be, several on few cores wait for one another for ever.
    """
    turns = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    return f"--xla_force_host_platform_device_count={devices} {turns} {FLAGS}" + ("" if counted else OLDER)
