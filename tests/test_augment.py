"""Images moved and mirrored at random: what comes out, where it draws, where it does not."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbp
from jbp import cli
from jbp.cli import training
from jbp.data import Augment
from jbp.losses import softmax_cross_entropy
from jbp.step import transformed_batch

IMAGE = np.random.default_rng(0).normal(size=(5, 4, 3)) + 10
N = 6
X, Y = np.random.default_rng(1).normal(size=(N, 5, 4)), np.arange(N) % 3
NET = jbp.serial(jbp.Flatten(), jbp.Dense(3))
loose: Any = Augment
BOTH = Augment(shift=2, flip=True)
PROBLEM = jbp.Problem(NET, softmax_cross_entropy, jbp.optim.sgd(0.1), transform=BOTH)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def moved(image, down, right, mirrored):
    """The image, with zeros where nothing was, in plain NumPy."""
    if mirrored:
        image = image[:, ::-1]
    out = np.zeros_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            if 0 <= i - down < image.shape[0] and 0 <= j - right < image.shape[1]:
                out[i, j] = image[i - down, j - right]
    return out


@pytest.mark.parametrize("image", [IMAGE, IMAGE[..., 0], (255 * IMAGE).astype(np.uint8)], ids=["rgb", "grey", "bytes"])
@pytest.mark.parametrize(("shift", "flip"), [(2, True), (1, False), (0, True)])
def test_every_move_comes_out_and_nothing_else_about_equally_often(image, shift, flip):
    augment, most = Augment(shift, flip), 2 * shift + 1
    found = np.asarray(jax.vmap(augment, (None, 0))(image, jax.random.split(jax.random.key(0), 4000)))
    assert found.dtype == image.dtype
    counts = {}
    for down in range(-shift, shift + 1):
        for right in range(-shift, shift + 1):
            for mirrored in (False, True) if flip else (False,):
                same = (found == moved(image, down, right, mirrored)).all(tuple(range(1, found.ndim)))
                counts[down, right, mirrored] = int(same.sum())
    assert sum(counts.values()) == 4000
    expected = 4000 / (most**2 * (1 + flip))
    assert all(abs(n - expected) < 5 * np.sqrt(expected) for n in counts.values())


def test_without_a_key_an_image_is_as_it_is():
    np.testing.assert_array_equal(BOTH(IMAGE, None), IMAGE)
    jaxpr = jax.make_jaxpr(lambda x: BOTH(x, None))(IMAGE)
    assert not jaxpr.eqns


def test_evaluation_is_untouched_and_training_is_not():
    data = (X, Y)
    plain, other = (
        jbp.fit(
            NET, softmax_cross_entropy, jbp.optim.sgd(0.0), data, epochs=2, batch_size=N, validation_data=data,
            transform=transform,
        )
        for transform in (None, BOTH)
    )  # fmt: skip
    (first, second), (_, changed) = plain.history, other.history
    assert (
        first["validation_loss"]
        == second["validation_loss"]
        == changed["validation_loss"]
        == other.start["validation_loss"]
    )
    assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-12)
    assert other.history[0]["train_loss"] != pytest.approx(other.history[1]["train_loss"], rel=1e-6)  # drawn anew
    assert other.history[0]["train_loss"] != pytest.approx(first["train_loss"], rel=1e-6)


def test_a_step_draws_by_place_and_a_run_that_goes_on_from_its_state_as_one_that_never_stopped():
    step, batch = jbp.make_step(PROBLEM), jbp.Batch(X, Y)

    def run(state, steps):
        losses = []
        for _ in range(steps):
            state, figures = step(state, batch)
            losses.append(float(figures.loss))
        return state, losses

    whole, losses = run(jbp.init_state(PROBLEM, (5, 4), seed=3), 4)
    half, before = run(jbp.init_state(PROBLEM, (5, 4), seed=3), 2)
    data = jax.tree.map(np.asarray, dataclasses.replace(half, key=jax.random.key_data(half.key)))
    kept = jax.tree.map(jnp.asarray, data)
    again, after = run(dataclasses.replace(kept, key=jax.random.wrap_key_data(kept.key)), 2)
    assert before + after == losses and len(set(losses)) == 4
    for ours, theirs in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    # The same image in two places is moved differently; a part of the batch, told its places, as in the whole.
    key, transform = jax.random.key(5), transformed_batch
    alike = np.broadcast_to(X[:1], X.shape)
    whole = transform(PROBLEM, jbp.Batch(alike, Y), key).x
    part = transform(PROBLEM, jbp.Batch(alike[3:], Y[3:], rows=np.arange(3, N)), key).x
    np.testing.assert_array_equal(whole[3:], part)
    assert len({np.asarray(one).tobytes() for one in whole}) > 3


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Augment(), "Augment must do something"),
        (lambda: Augment(shift=-1), "the shift of Augment must be a whole number of at least 0, but is -1"),
        (lambda: loose(shift=1.5), "the shift of Augment must be a whole number"),
        (lambda: loose(flip=1), "the flip of Augment"),
        (
            lambda: BOTH(np.zeros(5), None),
            r"needs images \[h, w\] or \[h, w, channels\], but one example has shape \(5,",
        ),
        (lambda: BOTH(np.zeros((2, 3, 4, 5)), None), r"but one example has shape \(2, 3, 4, 5\)"),
        (
            lambda: BOTH(np.zeros((9, 2)), None),
            r"needs images larger than its shift, but one example has shape \(9, 2\)",
        ),
        (
            lambda: jbp.fit(NET, softmax_cross_entropy, jbp.optim.sgd(0.1), (X[:, 0], Y), transform=BOTH, batch_size=2),
            r"transform failed on one example of shape \(4,\).*Augment\(shift=2, flip=True\) needs images",
        ),
    ],
)
def test_what_cannot_be_augmented_is_refused(made, words):
    with pytest.raises(ValueError, match=words):
        made()


@pytest.mark.parametrize(
    ("text", "augment"),
    [("shift:2,flip", BOTH), ("flip", Augment(flip=True)), ("flip, shift:1", Augment(1, True)), (None, None)],
)
def test_the_command_line_says_it_in_words(text, augment):
    assert cli.Train(augment=text).augmentation == augment
    assert training.make_plan(cli.Train(augment=text, net="", quiet=True)).transform == augment


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shft:2", "augment must be of shift:PIXELS and flip, with a comma between, but is 'shft:2'; did you mean"
         " 'shift'?"),
        ("", "augment must be of shift:PIXELS and flip"),
        ("shift", "shift takes a number of pixels, as in shift:2"),
        ("shift:x", "shift takes a number of pixels"),
        ("flip:2", "flip takes no number"),
        ("flip,flip", "flip stands in it twice"),
        ("shift:0", "augment: Augment must do something"),
        ("shift:8", "augment on digits: Augment(shift=8, flip=False) needs images larger than its shift"),
    ],
)  # fmt: skip
def test_a_mistyped_augmentation_is_one_line(capsys, text, words):
    assert cli.main(["train", "--augment", text]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_table_has_nothing_to_augment(capsys, tmp_path):
    rows = "\n".join(f"{i},{i % 7},{'ab'[i % 2]}" for i in range(40))
    (tmp_path / "t.csv").write_text(f"a,b,kind\n{rows}\n")
    assert cli.main(["train", "--data", "t.csv", "--target", "kind", "--augment", "flip"]) == 2
    assert "augment on t: Augment(shift=0, flip=True) needs images" in capsys.readouterr().err.replace("t.csv", "t")


def test_an_augmented_run_is_kept_repeated_and_predicts_by_itself():
    options = cli.Train(net="8 relu", augment="shift:1", epochs=2, quiet=True)
    result = options()
    assert json.loads((result.folder / "config.json").read_text())["augment"] == "shift:1"
    again = cli.Train.from_config(result.folder, quiet=True)()
    assert (again.folder / "params.safetensors").read_bytes() == (result.folder / "params.safetensors").read_bytes()
    run = jbp.load(result.folder)
    assert run.transform is None
    x, y = jbp.data.load("digits", "test")
    assert np.mean(run.predict(x).argmax(1) == y) == result.summary["test_accuracy"]
