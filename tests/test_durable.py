"""Runs that survive: what is saved on the way, what a run goes on from, and what it refuses to go on from."""

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_step import LOSS, NET, SGD, K, X, Y, same
from test_survive import corrupt

import jbp
from jbp.durable import checkpoints as checkpoints_module
from jbp.durable import saver as saver_module
from jbp.durable.checkpoints import Checkpoints
from jbp.durable.lock import LOCK, Lock
from jbp.durable.manifest import MANIFEST, Damaged, verified
from jbp.durable.saver import CHECKPOINTS, Every
from jbp.train.facts import said

METRICS = {"accuracy": jbp.accuracy}


def tree() -> dict[str, Any]:
    """One leaf of every kind that a state may hold."""
    return {
        "w": jnp.arange(6.0).reshape(2, 3), "b": jnp.asarray([1.5, jnp.nan], jnp.bfloat16), "none": jnp.zeros((0, 3)),
        "key": jax.random.key(3), "keys": jax.random.split(jax.random.key(4), 2), "step": jnp.int32(7), "no": (),
    }  # fmt: skip


def like(_: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree() | {"key": 0.0, "keys": 0.0}) | {
        "key": jax.random.key(0),
        "keys": jax.random.split(jax.random.key(0), 2),
    }


def saved(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    made = Checkpoints(folder, keep)
    for step in steps:
        made.save(step, tree() | {"step": jnp.int32(step)}, {"said": step})
    made.close()
    return made


def test_a_checkpoint_gives_back_every_bit_and_the_last_ones_stay(tmp_path: Path):
    made = saved(tmp_path, 5, 7, 11)
    assert made.steps() == [11, 7]
    (found, about, wrong), wanted = made.newest(like), tree() | {"step": jnp.int32(11)}
    assert (about["said"], about["step"], wrong) == (11, 11, [])
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        bits = [
            np.asarray(jax.random.key_data(c) if jnp.issubdtype(c.dtype, jax.dtypes.prng_key) else c) for c in (a, b)
        ]
        assert bits[0].tobytes() == bits[1].tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w": jnp.zeros((2, 3), jnp.float32)}, r"expected float32\[2, 3\] at \['w'\], found float64\[2, 3\]"),
        ({"w": jnp.zeros((3, 2))}, r"expected float64\[3, 2\] at \['w'\], found float64\[2, 3\]"),
        ({"more": jnp.zeros(2)}, r"expected float64\[2\] at \['more'\], found none"),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"expected uint32\[2\] at \['key'\], found key<fry>\[\]"),
    ],
    ids=["dtype", "shape", "another leaf", "no key"],
)
def test_a_checkpoint_of_another_tree_is_refused_by_the_leaf(tmp_path: Path, change: dict[str, Any], words: str):
    made = saved(tmp_path, 5)
    with pytest.raises(ValueError, match=f"of another run: {words}; resume with the net, optimiser and dtype"):
        made.newest(lambda about: like(about) | change)


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jbp.durable.manifest.FORMAT", 2)
    made = saved(tmp_path, 5)
    monkeypatch.setattr("jbp.durable.manifest.FORMAT", 1)
    with pytest.raises(ValueError, match=r"written by a newer jbp \(format 2, known up to 1\)"):
        made.newest(like)


def test_of_200_damages_none_goes_unseen_and_the_checkpoint_before_serves(tmp_path: Path):
    """The file is named before orbax opens any of them."""
    made, rng = saved(tmp_path, 5, 7), np.random.default_rng(0)
    files = sorted(p for p in (tmp_path / "7").rglob("*") if p.is_file())
    whole = {path: path.read_bytes() for path in files}
    assert len(files) > 4
    done: dict[str, int] = {}
    for _ in range(200):
        path = files[rng.integers(len(files))]
        kind = corrupt(path, rng)
        done[kind] = done.get(kind, 0) + 1
        if path.name == MANIFEST and kind == "deleted":
            assert made.steps() == [5]
        else:
            with pytest.raises(Damaged) as caught:
                verified(tmp_path / "7")
            assert caught.value.file == path and str(caught.value).startswith(f"{path}: ")
        path.write_bytes(whole[path])
    assert min(done[kind] for kind in ("flipped", "cut off", "zeroed", "deleted")) > 30
    corrupt(files[-1], rng)
    found, about, wrong = made.newest(like)
    assert int(found["step"]) == about["step"] == 5 and [error.file for error in wrong] == [files[-1]]


def test_what_is_too_much_and_what_was_never_finished_is_no_checkpoint(tmp_path: Path):
    made = saved(tmp_path, 5)
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "state.orbax-checkpoint-tmp").mkdir()
    assert made.steps() == [5]
    (tmp_path / "5" / "state" / "more").write_text("")
    with pytest.raises(Damaged, match="more: is not named in the checkpoint's manifest"):
        made.newest(like)
    with pytest.raises(Damaged, match="holds no checkpoint that was finished"):
        Checkpoints(tmp_path / "empty").newest(like)
    saved(tmp_path, 11)  # what a kill has left goes with the next save
    assert sorted(p.name for p in tmp_path.iterdir()) == ["11", "5"]


# Going on


def noisy(x: Any, key: Any) -> Any:
    return x if key is None else x + 0.1 * jax.random.normal(key, x.shape, x.dtype)


WEIGHTS = np.random.default_rng(5).uniform(0.1, 2.0, len(X))
CASES: dict[str, dict[str, Any]] = {
    "dropout, patience, validation": {
        "validation_data": (X[:7], Y[:7]), "patience": 1, "metrics": METRICS, "optimizer": jbp.optim.sgd(1.0),
    },
    "weights, rmsprop": {"weights": WEIGHTS, "metrics": METRICS, "optimizer": optax.rmsprop(0.01)},
    "with replacement": {"sampling": "replacement"},
    "a rule": {"rule": "feedback_alignment", "net": jbp.serial(jbp.Dense(7), jbp.tanh, jbp.Dense(K))},
    "private": {"private": jbp.Private(noise_multiplier=1.0, max_norm=1.0, delta=1e-2)},
    "in place": {"in_place": True},
    "batch normalisation": {"net": jbp.serial(jbp.Dense(7), jbp.BatchNorm(), jbp.tanh, jbp.Dense(K))},
    "accumulated": {"accumulate": 2},
    "a transform": {"transform": noisy},
}  # fmt: skip


def run(case: dict[str, Any], **more: Any) -> jbp.Fit:
    options = {"net": NET, "optimizer": SGD, "seed": 3, "epochs": 4, "batch_size": 5, "chunk_steps": 3} | case | more
    return jbp.fit(options.pop("net"), LOSS, options.pop("optimizer"), (X, Y), **options)


def without_clocks(fitted: Any) -> list[dict[str, float]]:
    clocks = {"seconds", "examples_per_second"}
    return [{name: value for name, value in row.items() if name not in clocks} for row in fitted.history]


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_goes_on_has_the_bits_of_one_that_never_stopped(name: str, tmp_path: Path):
    """Stopped in the midst of an epoch and at the end of one; resumed twice."""
    case, folder = CASES[name], tmp_path / "run"
    whole = run(case)
    for at in (4, 10):
        ended = run(
            case,
            save_to=folder,
            resume=at > 4,
            save_every="2steps",
            chunk_steps=2,
            callbacks=(lambda e, at=at: e.step >= at,),
        )
        assert ended.stop_reason == "callback"
    fitted = run(case, save_to=folder, resume=True, save_every="1epoch")
    assert fitted.resumed_at == (4, 10)
    assert same(fitted.params, whole.params) and same(fitted.state.params, whole.state.params)
    assert same(fitted.state.opt_state, whole.state.opt_state)
    np.testing.assert_array_equal(fitted.step_losses, whole.step_losses)
    assert without_clocks(fitted) == without_clocks(whole) and fitted.start == whole.start
    facts = [(f.best_epoch, f.stop_reason, f.epsilon) for f in (fitted, whole)]
    assert facts[0] == facts[1]
    seconds = [row["seconds"] for row in fitted.history]
    assert seconds == sorted(seconds)
    again = run(case, save_to=folder, resume=True)  # it has ended: nothing is left to do
    assert same(again.params, whole.params) and again.resumed_at == (4, 10, len(whole.step_losses))


def with_momentum(rate: Any) -> Any:
    return jbp.optim.sgd(rate, momentum=0.9)


def side_by_side(**more: Any) -> jbp.Many:
    return jbp.fit_many(
        NET, LOSS, with_momentum, (X, Y), seeds=(3, 4),
        **{
            "learning_rates": (0.1, 3.0), "epochs": 4, "batch_size": 5, "validation_data": (X[:7], Y[:7]),
            "patience": 1, "chunk_steps": 3,
        } | more,
    )  # fmt: skip


def test_runs_side_by_side_go_on_to_the_same_bits(tmp_path: Path):
    whole = side_by_side()
    assert len({len(run.history) for run in whole.runs}) > 1  # some end before the others
    for at in (4, 10):
        side_by_side(save_to=tmp_path, resume=at > 4, chunk_steps=2, callbacks=(lambda e, at=at: e.step >= at,))
    found = side_by_side(save_to=tmp_path, resume=True)
    assert found.resumed_at == (4, 10) and same(found.params, whole.params)
    np.testing.assert_array_equal(found.step_losses, whole.step_losses)
    for a, b in zip(found.runs, whole.runs, strict=True):
        assert (a.best_epoch, a.stop_reason, a.start) == (b.best_epoch, b.stop_reason, b.start)
        assert without_clocks(a) == without_clocks(b)
    again = side_by_side(save_to=tmp_path, resume=True)
    assert same(again.params, whole.params)
    with pytest.raises(ValueError, match=r"was begun with learning rates \[0.1, 3.0\], and this one has"):
        side_by_side(save_to=tmp_path, resume=True, learning_rates=(0.1, 2.0))


def test_more_epochs_go_on_from_the_end(tmp_path: Path):
    run({}, save_to=tmp_path, epochs=2)
    assert same(run({}, save_to=tmp_path, resume=True, epochs=4).params, run({}, epochs=4).params)


def test_resume_begins_where_there_is_nothing(tmp_path: Path):
    fitted = run({}, save_to=tmp_path / "new" / "run", resume=True)
    assert fitted.resumed_at == () and same(fitted.params, run({}).params)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"net": jbp.serial(jbp.Dense(11), jbp.tanh, jbp.Dense(K))}, "was begun with net 'serial"),
        ({"optimizer": jbp.optim.sgd(0.2, momentum=0.9)}, "was begun with another optimizer: resume with the same"),
        ({"seed": 4}, "was begun with seed 3, and this one has 4"),
        ({"batch_size": 6}, "was begun with batch size 5, and this one has 6"),
        ({"sampling": "replacement"}, "was begun with sampling 'shuffle'"),
        ({"patience": 3}, "was begun with aim "),
        ({"weights": WEIGHTS}, "was begun with another weights"),
        ({"validation_data": (X, Y)}, "was begun with aim "),
        ({"rule": "sign_symmetry"}, "was begun with method 'Backpropagation"),
        ({"metrics": METRICS}, r"was begun with metrics \[\]"),
        ({"accumulate": 2}, "was begun with accumulate 1"),
        ({"transform": lambda x, key: x}, "was begun with another transform"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_is_not_gone_on_with(change: dict[str, Any], words: str, begun: Path):
    with pytest.raises(ValueError, match=words):
        run({}, save_to=begun, resume=True, **change)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped."""
    folder = tmp_path_factory.mktemp("run")
    run({}, save_to=folder, callbacks=(lambda e: e.step >= 6,))
    return folder


def test_an_object_that_says_its_address_is_known_again_in_another_process():
    class Plain:
        pass

    one, other = Plain(), Plain()
    assert repr(one) != repr(other) and said(one) == said(other)
    assert said(one).endswith("Plain object>")


def test_other_data_are_refused_by_their_hash(begun: Path):
    with pytest.raises(ValueError, match="was begun with another data: resume with the same"):
        jbp.fit(NET, LOSS, SGD, (X + 1e-9, Y), seed=3, epochs=4, batch_size=5, save_to=begun, resume=True)


def test_a_folder_that_holds_a_run_is_not_written_over(begun: Path):
    with pytest.raises(
        ValueError, match="a run was saved there: go on with it by resume=True, or choose another folder"
    ):
        run({}, save_to=begun)


def test_one_run_at_a_time_writes_in_a_folder(tmp_path: Path):
    lock = Lock(tmp_path)
    with pytest.raises(
        ValueError, match=rf"another run writes there \(process {os.getpid()}\): wait until it has ended"
    ):
        run({}, save_to=tmp_path)
    lock.close()
    code = f"from jbp.durable.lock import Lock\nfrom pathlib import Path\nLock(Path({str(tmp_path)!r}))"
    lock = Lock(tmp_path)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"(process {os.getpid()})" in found.stderr
    lock.close()


def test_another_machine_is_said(begun: Path, monkeypatch: pytest.MonkeyPatch):
    here = saver_module.machine()
    monkeypatch.setattr(saver_module, "machine", lambda: here | {"cores": 96})
    with pytest.warns(UserWarning, match=rf"cores {here['cores']}, now 96\): it goes on, but not bit for bit"):
        run({}, save_to=begun, resume=True, callbacks=(lambda e: True,))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_saves_and_says_where(tmp_path: Path, number: signal.Signals):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    def press(event: jbp.Event) -> None:
        if event.step == 8:
            signal.raise_signal(number)

    with pytest.raises(
        jbp.Interrupted, match=f"interrupted after 8 steps, saved in {tmp_path} at step 8: resume"
    ) as caught:
        run({}, save_to=tmp_path, callbacks=(press,))
    assert caught.value.signal == number and [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert same(run({}, save_to=tmp_path, resume=True).params, run({}).params)


def test_a_second_signal_stops_at_once_and_the_last_checkpoint_serves(tmp_path: Path):
    def press(event: jbp.Event) -> None:
        if event.step == 8:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt) as caught:
        run({}, save_to=tmp_path, save_every="3steps", callbacks=(press,))
    assert not isinstance(caught.value, jbp.Interrupted) and caught.value.signal == signal.SIGTERM  # type: ignore[attr-defined]
    while (tmp_path / LOCK).exists():  # the thread ends what it had begun to write, and only then frees the folder
        time.sleep(0.01)
    assert same(run({}, save_to=tmp_path, resume=True).params, run({}).params)


def test_what_cannot_be_written_is_said_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As orbax says that the disk is full, which it does in another way than a file does."""
    real, times = checkpoints_module.orbax(), iter(range(100))

    class Full(real.StandardCheckpointer):
        def save(self, *args: Any, **options: Any) -> None:
            super().save(*args, **options)
            if next(times) == 2:
                raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    class Orbax:
        StandardCheckpointer = Full

    monkeypatch.setattr(checkpoints_module, "orbax", lambda: Orbax)
    with pytest.raises(OSError, match=r"the checkpoint could not be written \(RESOURCE_EXHAUSTED.*; the ones before"):
        run({}, save_to=tmp_path, save_every="3steps")
    assert Checkpoints.finished(tmp_path / CHECKPOINTS) == [8, 3]
    assert sorted(p.name for p in (tmp_path / CHECKPOINTS).iterdir()) == ["3", "8"]
    assert same(run({}, save_to=tmp_path, resume=True).params, run({}).params)


def test_a_secret_key_is_for_its_owner_alone_and_goes_at_the_end(tmp_path: Path):
    case = CASES["private"] | {"seed": None}
    ended = run(case, save_to=tmp_path, save_every="3steps", callbacks=(lambda e: e.step >= 6,))
    folder = tmp_path / CHECKPOINTS
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*") if p.is_file()}
    assert modes == {0o600}
    key = np.asarray(jax.random.key_data(ended.state.key)).tolist()
    fitted = run(case, save_to=tmp_path, resume=True)
    assert np.asarray(jax.random.key_data(fitted.state.key)).tolist() == key  # the same noise goes on
    (step,) = Checkpoints.finished(folder)
    assert step == len(fitted.step_losses)
    left = dataclasses.replace(fitted.state, key=jax.random.key(0))
    (state, _), _, _ = Checkpoints(folder).newest(lambda _: (left, ()))
    assert np.asarray(jax.random.key_data(state.key)).tolist() == [0, 0]
    assert same(run(case, save_to=tmp_path, resume=True).params, fitted.params)


@pytest.mark.parametrize("text", ["60", "0s", "-1s", "1.5steps", "1 fortnight", "", "nans", None, 60])
def test_how_often_is_refused_in_words(text: Any):
    with pytest.raises(ValueError, match="expected how often to save as 60s, 500steps or 1epoch, got"):
        Every.of(text)


def test_how_often(tmp_path: Path):
    assert [Every.of(text) for text in ("60s", "2.5s", "1step", "500 steps", "1epoch", "3epochs")] == [
        Every(60, "s"), Every(2.5, "s"), Every(1, "steps"), Every(500, "steps"), Every(1, "epochs"), Every(3, "epochs"),
    ]  # fmt: skip
    kept = {}
    for every in ("4steps", "1epoch"):
        run({}, save_to=tmp_path / every, save_every=every, chunk_steps=1, keep=100)
        kept[every] = sorted(Checkpoints.finished(tmp_path / every / CHECKPOINTS))
    assert kept == {"4steps": [4, 8, 12, 16, 20], "1epoch": [5, 10, 15, 20]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resume": True}, "resume needs save_to"),
        ({"save_to": 3}, "save_to must be a folder, but is 3"),
        ({"save_to": "x", "keep": 0}, "keep must be"),
        ({"save_to": "x", "resume": "yes"}, "resume must be True or False"),
    ],
)
def test_bad_arguments_are_refused(
    options: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        run({}, **options)


def test_without_orbax_saving_is_refused_and_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoints_module, "has_orbax", lambda: False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jbp\[durable\]'"):
        run({}, save_to=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_saved_is_read_by_more_than_json_and_arrays(begun: Path):
    """No pickle: what lies in a checkpoint is orbax's arrays and JSON."""
    assert all(p.suffix != ".pkl" for p in begun.rglob("*"))
    about = json.loads((next((begun / CHECKPOINTS).iterdir()) / MANIFEST).read_text())
    assert about["format"] == 1 and about["about"]["facts"]["seed"] == 3
