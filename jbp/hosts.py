"""Several processes, on one machine or on many, that train one net: how they find each other, agree, and end.

JAX does the work (`jax.distributed`); here are the time-outs, without which a run whose machine is taken away waits for
five minutes, and the little that the processes of a run must tell each other. Every function below "What they tell each
other" is one that all processes call, in the same order; with one process each of them answers at once. Of jbp only
refusals are imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jbp.arguments import as_count, listed

INITIALISE, HEARTBEAT, SHUTDOWN = 30, 20, 15
"""Seconds: for all to come; until one that is not heard of counts as lost; for all to go. JAX's own are 300, 100 and
300."""
AUTO = "auto"
"""A coordinator that JAX finds by itself, as on hosts of TPUs."""
_WIDTH = 512
"""Bytes that a process says of itself, at first."""

__all__ = ["Lost", "Place", "Unreachable", "as_one", "is_first", "on_every_host", "place_of", "several"]


def __dir__() -> list[str]:
    return __all__


class Place(NamedTuple):
    """Which of several processes this is, and where the first one listens."""

    coordinator: str | None
    """HOST:PORT; None where JAX finds it in the environment."""
    processes: int | None
    process: int | None

    def __str__(self) -> str:
        return "this process" if self.process is None else f"process {self.process} of {self.processes}"


class Unreachable(ConnectionError):
    """The first process did not answer in time."""


class Lost(ConnectionError):
    """Another process is gone."""


_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_COUNTED = (
    ("SLURM_NTASKS", "SLURM_PROCID", _SLURM),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", ()),
    ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", ("JAX_COORDINATOR_ADDRESS",)),
)
"""Variables with the number of processes and which one it is, and those that must be there too."""


def place_of(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Place | None:
    """The place of this process: as it is told, else as SLURM, Open MPI or a cloud tell it; None for a single one.

    `processes` 1 is one process, whatever the environment says.

    Raises: ValueError for what is wrong, or missing and not to be found.
    """
    if processes is not None:
        as_count(processes, "processes")
    if process is not None:
        as_count(process, "process", 0)
    found = _surroundings(environ)
    if processes == 1:
        if process not in (None, 0):
            raise ValueError(f"process must be 0 where there is 1 process, but is {process}: they count from 0")
        return None
    if (coordinator, processes, process) == (None, None, None):
        return found
    if coordinator == AUTO:
        return Place(None, processes, process) if found is None else found
    if found is not None:
        coordinator = found.coordinator if coordinator is None else coordinator
        processes = found.processes if processes is None else processes
        process = found.process if process is None else process
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if found is None or coordinator is not None:
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise ValueError(
                f"several processes need coordinator, processes and process, but {listed(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing: give all, or none where SLURM or a cloud says it"
            )
    if coordinator is not None:
        _host_and_port(coordinator)
    if process is not None and processes is not None and process >= processes:
        raise ValueError(f"process must be 0 to {processes - 1}, for they count from 0, but is {process}")
    return Place(coordinator, processes, process)


def _surroundings(environ: Mapping[str, str]) -> Place | None:
    """The place that the environment says, if it says one of several."""
    for count, index, others in _COUNTED:
        if all(environ.get(name, "").strip() for name in (count, index, *others)):
            many, which = _number(environ, count), _number(environ, index)
            return Place(environ.get("JAX_COORDINATOR_ADDRESS"), many, which) if many > 1 else None
    hosts = [name for name in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name.strip()]
    if len(hosts) > 1 and environ.get("TPU_WORKER_ID", "").strip():
        return Place(None, len(hosts), _number(environ, "TPU_WORKER_ID"))
    return None


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name].strip()
    if not text.isdecimal():
        raise ValueError(
            f"the environment's {name} must be a whole number, but is {text!r}: mend it, or say processes 1"
        )
    return int(text)


def _host_and_port(coordinator: str) -> tuple[str, int]:
    host, colon, port = coordinator.rpartition(":")
    if not (colon and host.strip("[]") and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(
            f"coordinator must be HOST:PORT of process 0, such as node1:1234, or {AUTO}, but is {coordinator!r}"
        )
    return host.strip("[]"), int(port)


# ── Coming and going ────────────────────────────────────────────────────────────────────────────────────────────────


_place: Place | None = None
"""Of this process, once it has joined."""


def join(place: Place) -> None:
    """Meet the other processes: from now on all their devices are there.

    Raises: Unreachable if the first process does not listen within `INITIALISE` seconds; ValueError where JAX does not
        find in the environment what it was not told.
    """
    began = time.monotonic()
    if place.coordinator is not None and place.process:
        _wait_for(place.coordinator, began + INITIALISE)
    # JAX's own would take SIGTERM away, and answer it long after a cluster has lost its patience.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    global _place
    left = max(1, round(INITIALISE - (time.monotonic() - began)))
    try:
        jax.distributed.initialize(
            place.coordinator, place.processes, place.process, initialization_timeout=left,
            heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN,
            # Where all is said nothing is looked for: it would give a process of SLURM's one device only.
            cluster_detection_method=None if None in place else "deactivate",
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{error} Give coordinator, processes and process") from error
    except RuntimeError as error:
        where = "" if place.coordinator is None else f" at {place.coordinator}"
        raise Unreachable(f"{place} could not join the others{where}: {_first_line(error)}") from error
    _place = Place(place.coordinator, jax.process_count(), jax.process_index())


def _wait_for(coordinator: str, until: float) -> None:
    """Until somebody listens there: an address that does not answer would end the process without a word of ours."""
    address = _host_and_port(coordinator)
    while True:
        try:
            socket.create_connection(address, timeout=max(0.1, until - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() >= until - 0.2:
                raise Unreachable(
                    f"the coordinator {coordinator} did not answer within {INITIALISE} s ({error.strerror or error}): "
                    "is process 0 running there, and can its port be reached from here?"
                ) from error
        time.sleep(0.2)


def is_joined() -> bool:
    """Whether this process has joined others."""
    return bool(jax.distributed.is_initialized())


def leave() -> None:
    """Go, once all others go too: whoever is told to stop, or is done."""
    if is_joined():
        jax.distributed.shutdown()


@contextmanager
def as_one(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> Iterator[None]:
    """For a script that trains in several processes: join the others, and end with them.

    Arguments as `place_of`; without any, and outside SLURM and the like, there is one process and nothing is done. An
    exception is printed and ends the process at once, with status 1, so that nobody waits for it; a run that was told
    to stop (`jbp.Interrupted`) waits for the others.
    """
    place = place_of(coordinator, processes, process)
    if place is None:
        yield
        return
    join(place)
    try:
        yield
    except KeyboardInterrupt as error:
        if hasattr(error, "result"):  # all of them were stopped
            everyone("the end")
            leave()
        raise
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    everyone("the end")
    leave()


_SIGNS = (
    "gloo", "nccl", "connection closed by peer", "connection reset by peer", "socket closed", "coordination service",
    "coordinationservice", "heartbeat", "barrier timed out", "collective operation timed out",
)  # fmt: skip


def is_lost(words: object) -> bool:
    """Whether an error says that another process is gone."""
    return any(sign in str(words).lower() for sign in _SIGNS)


@contextmanager
def lost_in_words() -> Iterator[None]:
    """Say it in words where another process is gone.

    Raises: Lost.
    """
    try:
        yield
    except Exception as error:
        if not is_joined() or isinstance(error, Lost) or not is_lost(error):
            raise
        why = " ".join(str(error).split())
        raise Lost(f"another process is gone, and training ends here; what was saved stays ({why})") from None


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ── What they tell each other ───────────────────────────────────────────────────────────────────────────────────────


def several() -> bool:
    """Whether there are others."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which writes and speaks for all."""
    return jax.process_index() == 0


def who() -> str:
    """Which of the processes this is, once it has joined them; "" of one alone."""
    return "" if _place is None else str(_place)


def gathered(numbers: Sequence[int]) -> np.ndarray:
    """[processes, k]: what every process has said, k whole numbers below 2³¹."""
    said = np.asarray(numbers, np.int32)
    return np.asarray(multihost_utils.process_allgather(said)) if several() else said[None]


def agreed(numbers: Sequence[int]) -> tuple[int, ...]:
    """The largest that any process has said, number by number: whether one was told to stop, all of them know."""
    return tuple(gathered(numbers).max(0).tolist()) if several() else tuple(numbers)


def everyone(name: str) -> None:
    """Wait until all are here."""
    if several():
        multihost_utils.sync_global_devices(name)


def from_first(tree: Any) -> Any:
    """Arrays as process 0 has them, to the bit, where every process has some of the same shapes and dtypes."""
    return jax.tree.map(_from_first, tree) if several() else tree


def _from_first(leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        bits = _from_first(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    a = np.ascontiguousarray(leaf)
    if not a.size:
        return jnp.asarray(a)
    # As bytes: adding up with zeros, which is how they are told, would lose the sign of −0.
    said = multihost_utils.broadcast_one_to_all(a.reshape(-1).view(np.uint8))
    return jnp.asarray(np.asarray(said).view(a.dtype).reshape(leaf.shape))


def text_from_first(text: str | None) -> str:
    """What process 0 says; the others give None, or anything."""
    if not several():
        return text or ""
    said = np.frombuffer((text or "").encode(), np.uint8) if is_first() else np.zeros(0, np.uint8)
    length = int(gathered([len(said)])[0, 0])
    if not length:
        return ""
    room = np.zeros(length, np.uint8)
    return bytes(np.asarray(from_first(said if is_first() else room))).decode()


def texts(text: str) -> list[str]:
    """What each of the processes says."""
    said = np.frombuffer(text.encode(), np.uint8)
    lengths = gathered([len(said)])[:, 0]
    room = np.zeros(max(_WIDTH, int(lengths.max())), np.int32)
    room[: len(said)] = said
    return [bytes(row[:n].astype(np.uint8)).decode() for row, n in zip(gathered(room.tolist()), lengths, strict=True)]


def check_same(facts: Mapping[str, Any]) -> None:
    """Refuse to begin where the processes would not do the same.

    Raises: ValueError, in all of them, naming the first fact in which one differs from process 0, and both values.
    """
    if not several():
        return
    said = [json.loads(text) for text in texts(json.dumps({name: _short(value) for name, value in facts.items()}))]
    for name in dict.fromkeys(name for one in said for name in one):
        for i, one in enumerate(said):
            if one.get(name) != said[0].get(name):
                raise ValueError(
                    f"the processes disagree on {name}: process 0 has {said[0].get(name)}, process {i} has "
                    f"{one.get(name)}; start all with the same (processes 1 is one that trains alone)"
                )


def _short(value: Any) -> str:
    """A fact in some words; what is long by its digest."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return text if len(text) <= 100 else hashlib.sha256(text.encode()).hexdigest()[:16]


# ── Arrays over all their devices ───────────────────────────────────────────────────────────────────────────────────


def spread_out(a: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has, over the devices of all: each puts its own part there, and nothing travels."""
    if not several() or (isinstance(a, jax.Array) and not a.is_fully_addressable):
        return jax.device_put(a, sharding)
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.jit(lambda: a, out_shardings=sharding)()
    held = np.asarray(a)
    return jax.make_array_from_callback(held.shape, sharding, lambda part: held[part])


def blank_as(a: Any) -> jax.Array:
    """Zeros of the same shape and dtype, on this process alone."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        bits = jax.random.key_data(jax.random.key(0, impl=jax.random.key_impl(a)))
        return jax.random.wrap_key_data(jnp.zeros((*a.shape, *bits.shape), bits.dtype), impl=jax.random.key_impl(a))
    return jnp.zeros(a.shape, a.dtype)


def on_every_host(a: Any) -> np.ndarray:
    """The whole of an array, as NumPy has it, in every process."""
    if not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated:
        return np.asarray(a)
    return np.asarray(multihost_utils.process_allgather(a, tiled=True))
