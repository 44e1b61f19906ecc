"""A run that diverges goes on from its last sound checkpoint at half the learning rate."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbp
from jbp import losses
from jbp.durable.saver import Saving
from jbp.train.restore import restored, restoring

X = np.random.default_rng(0).normal(size=(24, 4))
Y = np.random.default_rng(1).normal(size=(24, 2))
NET = jbp.serial(jbp.Dense(4), jbp.tanh, jbp.Dense(2))
SAFE, WILD = jbp.optim.sgd(0.1), jbp.optim.sgd(lambda step: 1e200 * jnp.asarray(step, float))


def training(enough: float, asked: list[float]) -> Any:
    """What `restoring` calls: it diverges unless the learning rate is small enough."""

    def train(share: float, saving: Saving) -> jbp.Fit:
        asked.append(share)
        return jbp.fit(NET, losses.l2_loss, SAFE if share <= enough else WILD, (X, Y), epochs=3, batch_size=4, seed=1,
                       chunk_steps=1, save_to=saving)  # fmt: skip

    return train


def test_it_goes_back_halves_the_rate_and_keeps_that_with_the_run(tmp_path):
    asked: list[float] = []
    with pytest.warns(UserWarning, match="going on from step") as said:
        fitted = restoring(Saving(tmp_path, "1steps"), training(0.25, asked))
    assert asked == [1.0, 0.5, 0.25]
    assert len(said) == 2 and "at 0.25 of the learning rate" in str(said[1].message)
    assert len(fitted.step_losses) == 18 and np.isfinite(fitted.step_losses).all()
    kept = restored(tmp_path)
    assert [one["learning_rate_share"] for one in kept] == [0.5, 0.25]
    assert [one["diverged_at"] for one in kept] == [3, 3]
    assert [one["from"] for one in kept] == [2, 1]  # the parameters after step 2 are finite, and of 1e200
    assert fitted.resumed_at == (1,)
    # Taken up again it is at its share at once, and ends with the same bits.
    again = restoring(Saving(tmp_path, "1steps", resume=True), training(0.25, asked))
    assert asked[3:] == [0.25]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again.params, fitted.params))
    # Without it another learning rate is refused.
    with pytest.raises(ValueError, match="begun with another optimizer"):
        training(0.0, asked)(1.0, Saving(tmp_path, resume=True))


def test_it_gives_up_after_so_many_times(tmp_path):
    asked: list[float] = []
    with pytest.warns(UserWarning, match="going on"), pytest.raises(jbp.Diverged) as caught:
        restoring(Saving(tmp_path, "1steps"), training(0.0, asked), times=2)
    assert asked == [1.0, 0.5, 0.25]
    assert "it had gone back 2 times, to 0.25 of the learning rate" in caught.value.__notes__


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"restored": 3}), json.dumps({"restored": [1]})])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "restored.json").write_text(text)
    with pytest.raises(ValueError, match=r"restored.json: damaged"):
        restoring(Saving(tmp_path, resume=True), training(1.0, []))
