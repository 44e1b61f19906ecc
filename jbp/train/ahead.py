"""What is read two ahead of where it is needed, by a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import jax

T = TypeVar("T")

AHEAD = 2
"""Items that are read before they are asked for."""

_SETTINGS: dict[str, Any] = {
    "enable_x64": jax.enable_x64, "default_device": jax.default_device,
    "numpy_dtype_promotion": jax.numpy_dtype_promotion, "numpy_rank_promotion": jax.numpy_rank_promotion,
}  # fmt: skip


class Ahead(Generic[T]):
    """The items of an iterator, which a thread of its own goes through; what it raises is raised at its place.

    The thread works under the settings of JAX that hold where this is made: those that a `with` sets hold for one
    thread. It is no hindrance to the end of the process, wherever the iterator may hang.
    """

    def __init__(self, items: Iterable[T], count: int = AHEAD):
        self._found: SimpleQueue[tuple[bool, T | BaseException]] = SimpleQueue()
        self._room, self._ended = threading.Semaphore(count), False
        held = [(setting, getattr(jax.config, f"jax_{name}")) for name, setting in _SETTINGS.items()]
        self._thread = threading.Thread(target=self._work, args=(iter(items), held), name="jbp-read", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        sound, found = self._found.get()
        if not sound:
            self._found.put((False, found))  # there is nothing after it
            raise found  # type: ignore[misc]
        self._room.release()
        return found  # type: ignore[return-value]

    def close(self, wait: bool = False) -> None:
        """Let the thread end, when it has read what it is at; `wait` until then."""
        self._ended = True
        self._room.release()
        if wait:
            self._thread.join()

    def _work(self, items: Iterator[T], held: list[tuple[Any, Any]]) -> None:
        try:
            with ExitStack() as settings:
                for setting, value in held:
                    settings.enter_context(setting(value))
                while True:
                    self._room.acquire()
                    if self._ended:
                        return
                    self._found.put((True, next(items)))
        except BaseException as error:
            self._found.put((False, error))
