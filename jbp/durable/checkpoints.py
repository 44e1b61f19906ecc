"""The checkpoints of a run: orbax writes them in a thread while training goes on, a manifest seals them, K are kept.

A checkpoint is a folder `<steps>` with orbax's files and a `MANIFEST.json`, the last to be written. Its leaves lie
under numbers, in the order of their paths, which the manifest names with shape and dtype: orbax itself casts a wrong
dtype in silence and names no leaf of another shape. Arrays without numbers, which orbax refuses, are only named.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbp import hosts
from jbp.durable.manifest import MANIFEST, Damaged, seal, verified
from jbp.paths import shown

NEEDS = "saving on the way needs orbax-checkpoint: pip install 'jbp[durable]'"
_TEMPORARY = ".orbax-checkpoint-tmp"


def check_orbax() -> None:
    """Refuse to begin without orbax.

    Raises: ModuleNotFoundError saying what to install.
    """
    if not has_orbax():
        raise ModuleNotFoundError(NEEDS)


def has_orbax() -> bool:
    """Whether it is installed; it is not imported, which takes seconds."""
    try:
        return find_spec("orbax.checkpoint") is not None
    except ModuleNotFoundError:
        return False


def orbax() -> Any:
    """orbax.checkpoint, which takes long to import and is an extra.

    Raises: ModuleNotFoundError saying what to install.
    """
    try:
        return import_module("orbax.checkpoint")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{NEEDS} ({error})") from error


class Checkpoints:
    """Those in one folder. `save` returns once the numbers are copied; an error shows at the next `save` or `close`."""

    def __init__(self, folder: Path, keep: int = 2, secret: bool = False):
        self.folder, self.keep, self.secret = folder.absolute(), keep, secret
        self._worker = ThreadPoolExecutor(1, "jbp-save")
        self._worker.submit(orbax)  # imported while the program is compiled
        self.pending: Future[None] | None = None

    def steps(self) -> list[int]:
        """Of the checkpoints that were finished, the newest first; whether they are whole is not looked at."""
        return self.finished(self.folder)

    @staticmethod
    def finished(folder: Path) -> list[int]:
        """The same, of a folder that nobody writes to."""
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted((int(p.name) for p in found if p.name.isdecimal() and (p / MANIFEST).exists()), reverse=True)

    @staticmethod
    def drop(folder: Path, since: int) -> None:
        """Remove, of a folder that nobody writes to, the checkpoints after so many steps or more."""
        for step in Checkpoints.finished(folder):
            if step >= since:
                shutil.rmtree(folder / str(step))

    def save(self, step: int, tree: Any, about: dict[str, Any], alone: bool = False) -> None:
        """Begin to write a checkpoint of a tree of arrays, after the one before is written. If it stays `alone`, all
        others go. Of several processes all call this, and the first one writes.

        Raises: OSError if that one, or this, could not be written.
        """
        self.wait()
        leaves = [(shown(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
        # Copies: on a CPU an array of NumPy's may be the very memory that the next step takes over.
        copies = [_copied(leaf) for _, leaf in leaves]
        if not hosts.is_first():
            return
        arrays = [copy for copy in copies if copy is not None]
        kinds = [_kind(path, leaf) for path, leaf in leaves]
        self.pending = self._worker.submit(self._write, step, arrays, about | {"step": step, "leaves": kinds}, alone)

    def check(self) -> None:
        """Raise now what writing has ended with, if it has ended.

        Raises: OSError if the checkpoint could not be written.
        """
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Until what was begun is written.

        Raises: OSError if it could not be.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self, wait: bool = True) -> None:
        """Let the thread go, once what was begun is written, or without waiting."""
        try:
            if wait:
                self.wait()
        finally:
            self._worker.shutdown(wait=wait, cancel_futures=True)

    def read(self, step: int, like: Callable[[dict[str, Any]], Any]) -> tuple[Any, dict[str, Any]]:
        """A checkpoint's tree, and what was said of it; `like` makes of that a tree of the same structure.

        Raises:
            Damaged: naming the file, before orbax opens any.
            ValueError: naming the leaf that is another than in `like`, and what to do.
        """
        folder = self.folder / str(step)
        about = verified(folder)
        leaves, structure = jax.tree_util.tree_flatten_with_path(like(about))
        _check_leaves(folder, about["leaves"], [_kind(shown(path), leaf) for path, leaf in leaves])
        template = {str(i): np.zeros(_plain(leaf).shape, _plain(leaf).dtype) for i, (_, leaf) in enumerate(leaves)}
        held = {name: a for name, a in template.items() if a.size}
        ocp = orbax()
        with _quiet(), _checkpointer(ocp) as reader:
            found = template | reader.restore(folder / "state", held)
        return jax.tree.unflatten(structure, [_as(leaf, found[str(i)]) for i, (_, leaf) in enumerate(leaves)]), about

    def newest(self, like: Callable[[dict[str, Any]], Any]) -> tuple[Any, dict[str, Any], list[Damaged]]:
        """The newest checkpoint that is whole, and what is wrong with those after it.

        Raises:
            Damaged: the first of them, if none is whole.
        """
        wrong: list[Damaged] = []
        for step in self.steps():
            try:
                return *self.read(step, like), wrong
            except Damaged as error:
                wrong.append(error)
        raise wrong[0] if wrong else Damaged(self.folder, "holds no checkpoint that was finished")

    def _write(self, step: int, arrays: list[np.ndarray], about: dict[str, Any], alone: bool) -> None:
        folder = self.folder / str(step)
        ocp = orbax()
        try:
            self._tidy()
            shutil.rmtree(folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.secret:
                self.folder.chmod(0o700)  # which nobody else gets through, whatever the files say
            folder.mkdir()
            with _quiet(), _checkpointer(ocp) as writer:
                writer.save(folder / "state", {str(i): a for i, a in enumerate(arrays) if a.size})
                writer.wait_until_finished()
            seal(folder, about)
            if self.secret:
                for path in folder.rglob("*"):
                    path.chmod(0o700 if path.is_dir() else 0o600)
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)  # what is half written keeps a full disk full
            raise OSError(
                f"{folder}: the checkpoint could not be written ({error}); the ones before are as they were"
            ) from error
        for old in self.steps()[1 if alone else self.keep :]:
            shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def _tidy(self) -> None:
        """Remove what a kill in the midst of writing has left."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir() and (_TEMPORARY in path.name or not (path / MANIFEST).exists()):
                shutil.rmtree(path, ignore_errors=True)


def _plain(leaf: Any) -> Any:
    """A leaf as numbers: a key by its bits."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _checkpointer(ocp: Any) -> Any:
    """orbax's, which of several processes waits for this one only: the others have given it what they hold."""
    if not hosts.several():
        return ocp.StandardCheckpointer()
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="jbp")
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _copied(leaf: Any) -> np.ndarray | None:
    """The whole of a leaf, in process 0."""
    whole = hosts.on_every_host(_plain(leaf))
    return np.array(whole) if hosts.is_first() else None


def _as(like: Any, a: Any) -> Any:
    """Numbers as a leaf such as `like`."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        found = jax.random.wrap_key_data(jnp.asarray(a), impl=jax.random.key_impl(like))
    else:
        found = jnp.asarray(a)
    where = getattr(like, "sharding", None)
    return found if where is None or len(where.device_set) == 1 else jax.device_put(found, where)


def _kind(path: str, leaf: Any) -> list[Any]:
    return [path, list(leaf.shape), str(leaf.dtype)]


def _check_leaves(folder: Path, found: list[Any], wanted: list[Any]) -> None:
    """Refuse a checkpoint of another tree, by its first leaf that differs."""
    if found == wanted:
        return
    have, want = ({path: (tuple(shape), dtype) for path, shape, dtype in kinds} for kinds in (found, wanted))
    place = next(p for p in dict.fromkeys([*want, *have]) if have.get(p) != want.get(p))
    said = [f"{at[place][1]}{list(at[place][0])}" if place in at else "none" for at in (want, have)]
    raise ValueError(
        f"{folder}: of another run: expected {said[0]} at {place}, found {said[1]}; resume with the net, optimiser and "
        "dtype that it was begun with, or begin anew in another folder"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """orbax tells the log of every step it takes."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
