"""A run that goes on after a bad number: from its last sound checkpoint, at half the learning rate."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jbp.durable.checkpoints import Checkpoints
from jbp.durable.saver import CHECKPOINTS, Saving
from jbp.files import write_atomically
from jbp.train.result import Diverged, Fit

RESTORED = "restored.json"
"""Where a run keeps from where it went back, and to where."""
TIMES = 5
"""How often a run may go back."""


def restoring(saving: Saving, train: Callable[[float, Saving], Fit], *, times: int = TIMES) -> Fit:
    """Train, and where the run diverges go on from its last sound checkpoint at half the learning rate.

    `train(share, saving)` is a `jbp.fit(..., save_to=saving)` with an optimiser of the same kind at this share of the
    learning rate: 1, ½, ¼, …. That it went back, at most `times` in all, is kept in the folder, and a run that is taken
    up again goes on at the share it had come to. Where it soon diverges once more (not twice as far from where it went
    on as before), it goes further back than before; without a checkpoint it begins anew.

    Raises:
        Diverged: when it has gone back so often, with a note.
        ValueError: if what the folder holds of this cannot be read.
    """
    folder = Path(saving.folder)
    gone_back = restored(folder) if saving.resume else []
    if gone_back:
        saving = dataclasses.replace(saving, other=(*saving.other, "optimizer"))
    while True:
        try:
            return train(0.5 ** len(gone_back), saving)
        except Diverged as error:
            if len(gone_back) >= times:
                error.add_note(f"it had gone back {times} times, to {0.5**times:g} of the learning rate")
                raise
            if saving.before_first is not None:  # what a run before has left there goes
                saving.before_first()
            at = error.step if error.place is None or error.place.step is None else error.place.step
            last = gone_back[-1] if gone_back else None
            if last is not None and error.step <= 2 * last["diverged_at"] - last["from"]:
                at = min(at, last["from"])  # what it went on from was finite, and yet led nowhere
            Checkpoints.drop(folder / CHECKPOINTS, at)  # the state after that step is of no use
            start = next(iter(Checkpoints.finished(folder / CHECKPOINTS)), 0)
            share = 0.5 ** (len(gone_back) + 1)
            gone_back.append({"diverged_at": error.step, "from": start, "learning_rate_share": share})
            write_atomically(folder / RESTORED, (json.dumps({"restored": gone_back}, indent=2) + "\n").encode())
            warnings.warn(f"{error}; going on from step {start} at {share:g} of the learning rate", stacklevel=2)
            saving = dataclasses.replace(
                saving, resume=True, before_first=None, other=tuple({*saving.other, "optimizer"})
            )


def restored(folder: Path) -> list[dict[str, Any]]:
    """Each time that a run went back: the step at which it diverged, that from which it went on, and at which share of
    its learning rate.

    Raises: ValueError if the file is damaged.
    """
    path = folder / RESTORED
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())["restored"]
        sound = isinstance(found, list) and all(_whole(one) for one in found)
    except (ValueError, KeyError, TypeError):
        found, sound = [], False
    if not sound:
        raise ValueError(f"{path}: damaged: expected JSON with a list 'restored'; begin anew in another folder")
    return found


def _whole(one: Any) -> bool:
    return isinstance(one, dict) and all(type(one.get(name)) is int for name in ("diverged_at", "from"))
