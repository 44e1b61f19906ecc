"""When a run saves on the way, and how it is taken up again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jbp import hosts
from jbp.arguments import as_count
from jbp.durable.checkpoints import Checkpoints, check_orbax
from jbp.durable.lock import Lock
from jbp.durable.manifest import Damaged

CHECKPOINTS = "checkpoints"
"""Their folder, in that of the run."""
EVERY = "60s"


@dataclass(frozen=True)
class Every:
    """How often: after so many seconds, steps or epochs."""

    count: float
    unit: Literal["s", "steps", "epochs"]

    @staticmethod
    def of(text: Any) -> Every:
        """Of "60s", "500steps" or "1epoch".

        Raises: ValueError for anything else.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|steps?|epochs?)", str(text).strip())
        if not found or float(found[1]) <= 0 or (found[2] != "s" and not float(found[1]).is_integer()):
            raise ValueError(f"expected how often to save as 60s, 500steps or 1epoch, got {text!r}")
        unit = {"s": "s", "step": "steps", "epoch": "epochs"}[found[2].rstrip("s") or "s"]
        return Every(float(found[1]), unit)  # type: ignore[arg-type]

    def due(self, seconds: float, steps: int, epochs: int) -> bool:
        """Whether so much since the last time is enough."""
        return {"s": seconds, "steps": steps, "epochs": epochs}[self.unit] >= self.count


class Taken(NamedTuple):
    """Where a run goes on."""

    state: Any
    progress: dict[str, Any]
    best: Any
    seconds: float
    steps: int
    resumed_at: list[int]
    source: Any = None
    """The position of the source, as it said."""


@dataclass(frozen=True)
class Saving:
    """Where a run is saved on the way, how often, and how many checkpoints stay.

    `before_first` is called before the first checkpoint is written, `taken_up` with what a run that is resumed goes on
    from, None for its start. With `held` the folder is locked by who made this.
    """

    folder: str | Path
    every: Any = EVERY
    keep: int = 2
    resume: bool = False
    before_first: Callable[[], None] | None = None
    taken_up: Callable[[Taken | None], None] | None = None
    held: bool = False
    other: tuple[str, ...] = ()
    """Facts in which a run that goes on may differ from what it was."""


class Saver:
    """Saves a run's state, progress and best parameters in a folder, and finds them again.

    `facts` is what must be the same when the run is taken up: text, numbers and lists of them. With `secret` nobody
    else can read what is saved, and the last checkpoint has no key: what follows from it, as a private run's noise,
    could be drawn again.

    Of several processes the first one writes, reads and refuses; what it reads it tells the others, who need not see
    its disk.

    Raises: ValueError for a folder in use, or one that holds another run; ModuleNotFoundError without orbax.
    """

    def __init__(self, saving: Saving, facts: dict[str, Any], secret: bool = False):
        self.saving, self.facts, self.secret = saving, json.loads(json.dumps(facts)), secret
        self.every, keep = Every.of(saving.every), as_count(saving.keep, "keep")
        check_orbax()
        self.folder = Path(saving.folder)
        self._lock = None if saving.held or not hosts.is_first() else Lock(self.folder)
        self.checkpoints = Checkpoints(self.folder / CHECKPOINTS, keep, secret)
        if hosts.is_first() and not saving.resume and saving.before_first is None and self.checkpoints.steps():
            self._free()
            raise ValueError(
                f"{self.folder}: a run was saved there: go on with it by resume=True, or choose another folder"
            )
        self._last: tuple[float, int, int] | None = None
        self.saved: int | None = None
        """The step of the last checkpoint."""
        self.resumed_at: list[int] = []

    def taken_up(self, state: Any) -> Taken | None:
        """The newest checkpoint that is whole, for a run that begins as `state`; None if none was finished yet.

        Raises: ValueError if it is of another run, saying in what, or if none of them is whole.
        """
        if not self.saving.resume:
            return None
        taken = self._told(state) if hosts.several() else self._newest(state) if self.checkpoints.steps() else None
        if self.saving.taken_up is not None:
            self.saving.taken_up(taken)
        return taken

    def _told(self, state: Any) -> Taken | None:
        """As process 0 reads it, in every process."""
        taken, words = None, ""
        here = jax.tree.map(hosts.blank_as, state)  # not spread over devices of others, who do not read
        if hosts.is_first() and self.checkpoints.steps():
            taken = self._newest(here)
            words = json.dumps([taken.progress, taken.best is not None, *taken[3:]])
        words = hosts.text_from_first(words)
        if not words:
            return None
        progress, has_best, seconds, steps, self.resumed_at, source = json.loads(words)
        self.saved = steps
        held = (here, here.params if has_best else None) if taken is None else (taken.state, taken.best)
        like = state, state.params if has_best else None
        found, best = jax.tree.map(lambda a, b: hosts.spread_out(a, b.sharding), hosts.from_first(held), like)
        return Taken(found, progress, best, seconds, steps, self.resumed_at, source)

    def _newest(self, state: Any) -> Taken:
        def like(about: dict[str, Any]) -> Any:
            then = {name: fact for name, fact in about["facts"].items() if name not in self.saving.other}
            now = {name: fact for name, fact in self.facts.items() if name not in self.saving.other}
            check_facts(self.folder, about | {"facts": then}, now, machine())
            return (state, state.params if about["best"] else ())

        (state, best), about, wrong = self.checkpoints.newest(like)
        for error in wrong:
            warnings.warn(f"{error}; going on from the checkpoint before, step {about['step']}", stacklevel=3)
        _warn_of_machine(about["machine"], machine())
        self.resumed_at, self.saved = [*about["resumed_at"], about["step"]], about["step"]
        kept = best if about["best"] else None
        return Taken(
            state, about["progress"], kept, about["seconds"], about["step"], self.resumed_at, about.get("source")
        )

    def states(self, state: Any) -> Iterator[tuple[int, Any, Any]]:
        """Of every checkpoint that is whole, the newest first, the steps taken, the state, for a run with one such as
        `state`, and the position of the source; none before this run has saved any."""
        if self.saved is None:
            return
        try:
            self.checkpoints.wait()
        except OSError as error:
            warnings.warn(str(error), stacklevel=2)

        def like(about: dict[str, Any]) -> Any:
            return (state, state.params if about["best"] else ())

        for step in self.checkpoints.steps():
            with suppress(Damaged):
                (found, _), about = self.checkpoints.read(step, like)
                yield step, found, about.get("source")

    def after(
        self, state: Any, progress: Any, best: Any, seconds: float, *, now: bool = False, over: bool = False,
        source: Any = None,
    ) -> None:  # fmt: skip
        """Save, if it is time, or `now`; what is in `progress` as it stands, of the rest copies. `over`: the run is.
        Of several processes all call this, at the same step, and it is time when they say `now`.
        `source` is where the source of the batches stands after these steps, as JSON.

        Raises: OSError if the checkpoint before, or this one, could not be written.
        """
        self.checkpoints.check()
        if not (now and progress.taken != self.saved) and (hosts.several() or not self.is_due(progress)):
            return
        self.begin()
        if over and self.secret:
            state = dataclasses.replace(state, key=without_bits(state.key))
        about = {
            "facts": self.facts, "machine": machine(), "best": best is not None, "seconds": seconds,
            "progress": progress.to_json(), "resumed_at": self.resumed_at, "source": source,
        }  # fmt: skip
        self.checkpoints.save(progress.taken, (state, () if best is None else best), about, alone=over and self.secret)
        self._last, self.saved = self._at(progress), progress.taken

    def is_due(self, progress: Any) -> bool:
        """Whether it is time."""
        at = self._at(progress)
        if self._last is None:
            self._last = (at[0], 0, 0) if not self.resumed_at else at
        seconds, steps, epochs = (a - b for a, b in zip(at, self._last, strict=True))
        return self.every.due(seconds, int(steps), int(epochs))

    def _at(self, progress: Any) -> tuple[float, int, int]:
        return time.perf_counter(), progress.taken, len(progress.rows)

    def begin(self) -> None:
        """The folder is this run's from now on, whatever it held."""
        if hosts.is_first() and self.saved is None and self.saving.before_first is not None:
            self.saving.before_first()

    def words(self) -> str:
        """Where the run was saved, for an error's message."""
        return "" if self.saved is None else f", saved in {self.folder} at step {self.saved}: resume goes on from there"

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: Any, error: Any, *_: Any) -> None:
        """Wait until what was begun is written, but not when told to stop at once, which leaves no result; then the
        folder is free once the thread has written it."""
        at_once = isinstance(error, KeyboardInterrupt) and not hasattr(error, "result")
        writing = self.checkpoints.pending if at_once else None
        try:
            self.checkpoints.close(wait=not at_once)
        finally:
            if writing is None:
                self._free()
            else:
                writing.add_done_callback(lambda _: self._free())

    def _free(self) -> None:
        if self._lock is not None:
            self._lock.close()


def without_bits(key: Any) -> Any:
    """A key of zeros in the place of one."""
    return jax.random.wrap_key_data(jnp.zeros_like(jax.random.key_data(key)), impl=jax.random.key_impl(key))


def fingerprint(function: Callable[..., Any], *like: Any) -> str:
    """A function of arrays by the program that it is traced to and the constants in it, which tells two functions
    apart that differ in a number; of another version of JAX it is another."""
    traced = jax.make_jaxpr(function)(*like)
    words = re.sub(r"0x[0-9a-f]+", "", str(traced))
    return hashlib.sha256(f"{words}{digest(traced.consts)}".encode()).hexdigest()[:16]


def machine() -> dict[str, Any]:
    """What the bits of a run hang on, beside its arguments."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: version(name) for name in ("jax", "jaxlib", "optax")}
    return {"cores": cores, "device": jax.devices()[0].device_kind, "devices": jax.device_count()} | versions


def _warn_of_machine(then: dict[str, Any], now: dict[str, Any]) -> None:
    other = [f"{name} {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name]]
    if other:
        warnings.warn(
            f"the run was begun on another machine ({'; '.join(other)}): it goes on, but not bit for bit as it would "
            "have there",
            stacklevel=4,
        )


_BY_CONTENT = ("data", "weights", "validation data", "optimizer", "transform", "params")
"""Facts that are digests: two of them say nothing but that they differ."""
_TRACED = ("optimizer", "transform")
"""Those of programs, which can be compared under one version of JAX only."""


def check_facts(folder: Path, about: dict[str, Any], now: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to go on with a run that was begun otherwise.

    Raises: ValueError, naming what is another.
    """
    then = about["facts"]
    same_jax = about["machine"].get("jax") == here["jax"]
    for name in dict.fromkeys([*now, *then]):
        if then.get(name) == now.get(name) or (name in _TRACED and not same_jax):
            continue
        if name in _BY_CONTENT:
            raise ValueError(
                f"{folder}: the run there was begun with another {name}: resume with the same, or begin anew in "
                "another folder"
            )
        raise ValueError(
            f"{folder}: the run there was begun with {name} {then.get(name)!r}, and this one has "
            f"{now.get(name)!r}: resume with the same, or begin anew in another folder"
        )


def digest(data: Any) -> str | None:
    """A tree of arrays by its SHA-256, shapes and dtypes; None for None."""
    if data is None:
        return None
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(data):
        a = np.ascontiguousarray(leaf)
        found.update(f"{a.shape} {a.dtype}".encode())
        found.update(a.reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]
