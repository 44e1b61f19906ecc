"""What `tests/test_hosts.py` runs in several processes: `on_hosts.py FOLDER COORDINATOR N I CASE`.

A case makes named trees of numbers on a mesh, which process 0 writes; the test makes them on one device and compares.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jbp
from jbp import hosts

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(44, 6)), RNG.integers(0, 4, 44)
LOSS, OPTIMIZER = jbp.losses.softmax_cross_entropy, jbp.optim.sgd(0.1, momentum=0.9)
NET = jbp.serial(jbp.Dense(8), jbp.tanh, jbp.Dropout(0.2), jbp.Dense(4))
COUPLED = jbp.serial(jbp.Dense(8), jbp.BatchNorm(), jbp.tanh, jbp.Dense(4))
PARTS = {2: (1, 2), 4: (2, 2), 8: (4, 2)}
"""Of so many devices, a mesh over data and model; over all of them, or a process would have no part in it."""


def train(net, sharding=None, train_data=(X, Y), **more):
    """Parameters and figures of a short run."""
    more = {"validation_data": (X[:20], Y[:20]), "metrics": {"accuracy": jbp.accuracy}} | more
    fit = jbp.fit(net, LOSS, OPTIMIZER, train_data, epochs=2, batch_size=8, sharding=sharding, **more)
    clocks = ("seconds", "examples_per_second")
    rows = [[v for k, v in row.items() if k not in clocks] for row in fit.history]
    return {"params": fit.params, "opt_state": fit.state.opt_state, "rows": np.asarray(rows), "losses": fit.step_losses}


class Counted:
    """Rows that tell which of them were read."""

    def __init__(self, stored):
        self.stored, self.shape, self.dtype, self.read = stored, stored.shape, stored.dtype, []

    def __len__(self):
        return len(self.stored)

    def __getitem__(self, rows):
        found = self.stored[rows]
        self.read.append(found.shape[0])
        return found


def from_rows(sharding=None):
    """Rows that are read while they are trained on: each process its own."""
    counted = Counted(X)
    found = train(NET, sharding, train_data=(jbp.data.Rows(counted), Y), validation_data=None)
    one, marks, *epochs = counted.read  # for the shape, and to know the data again
    share = 1 if sharding is None else jax.process_count()
    assert (one, marks) == (1, 44) and all(44 // share - 8 <= n <= 48 // share for n in epochs), counted.read
    return found


def from_stream(sharding=None):
    """Batches as they come, of which each process keeps its rows."""
    stream = jbp.data.Stream([(X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)])
    fit = jbp.fit(NET, LOSS, OPTIMIZER, stream, epochs=2, sharding=sharding)
    return {"params": fit.params, "losses": fit.step_losses}


def meshes():
    """Of all devices: over data alone, and over data and model."""
    n = jax.device_count()
    data = jax.make_mesh((n,), ("data",))
    both = jax.make_mesh(PARTS[n], ("data", "model"))
    return data, both


def runs(sharded):
    """What is trained, by name; `sharded` makes of "data", "params" or "model" a sharding, or None."""
    return {
        "data": train(NET, sharded("data")),
        "sharded parameters": train(NET, sharded("params")),
        "rows": from_rows(sharded("data")),
    }


def more_runs(sharded):
    """And more."""
    secret = {"private": jbp.Private(1.0, 1.0, 1e-3), "seed": 1, "validation_data": None}
    return {
        "model": train(NET, sharded("model")),
        "batch normalisation": train(COUPLED, sharded("data")),
        "private": train(NET, sharded("data"), **secret),
        "weights": train(NET, sharded("data"), weights=np.arange(44.0) + 1, accumulate=2),
        "stream": from_stream(sharded("data")),
        "in place": train(NET, sharded("data"), in_place=True),
        "rule": train(NET, sharded("params"), rule="feedback_alignment"),
    }


def sharding_of(kind):
    data, both = meshes()
    return {"data": data, "params": jbp.Sharding(data, shard_params=True), "model": jbp.Sharding(both)}[kind]


def written(folder, found):
    """By process 0, as numbers in the order of their leaves."""
    whole = {name: jax.tree.map(hosts.on_every_host, tree) for name, tree in found.items()}
    if hosts.is_first():
        for name, tree in whole.items():
            leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
            np.savez(folder / f"{name}.npz", **leaves)


def training(folder):
    written(folder, runs(sharding_of))


def training_more(folder):
    written(folder, more_runs(sharding_of))
    # The secret of a private run is that of process 0.
    fit = jbp.fit(
        NET, LOSS, OPTIMIZER, (X, Y), epochs=1, batch_size=8, private=jbp.Private(1.0, 1.0, 1e-3),
        sharding=sharding_of("data"),
    )  # fmt: skip
    mine = [float(np.abs(hosts.on_every_host(leaf)).sum()) for leaf in jax.tree.leaves(fit.params)]
    assert len(set(hosts.texts(repr(mine)))) == 1


def resuming(folder, epochs):
    """One epoch more, on however many devices and processes there are."""
    sharding = sharding_of("params") if jax.device_count() > 1 else None
    fit = jbp.fit(
        NET, LOSS, OPTIMIZER, (X, Y), epochs=epochs, batch_size=8, sharding=sharding, save_to=folder / "saved",
        resume=True,
    )  # fmt: skip
    assert epochs == 1 or fit.resumed_at
    written(folder, {f"after {epochs}": {"params": fit.params}})


def refused(call, *args, **named):
    try:
        call(*args, **named)
    except ValueError as error:
        print(" ".join(str(error).split()), flush=True)
        return
    raise AssertionError(f"not refused: {call} {named}")


def disagreeing(folder):
    """Whatever differs is found before a step, by all, in one line."""
    mine, sharding = hosts.is_first(), sharding_of("data")
    fit = partial(jbp.fit, NET, LOSS, OPTIMIZER, epochs=1, batch_size=8, sharding=sharding)
    other = np.where(np.arange(44)[:, None] == 7, X + 1e-9, X)
    refused(fit, (X if mine else other, Y))
    wider = jbp.serial(jbp.Dense(8 if mine else 12), jbp.tanh, jbp.Dropout(0.2), jbp.Dense(4))
    refused(jbp.fit, wider, LOSS, OPTIMIZER, (X, Y), batch_size=8, sharding=sharding)
    refused(fit, (X, Y), seed=0 if mine else 1)
    refused(jbp.fit, NET, LOSS, jbp.optim.sgd(0.1 if mine else 0.2), (X, Y), batch_size=8, sharding=sharding)
    refused(hosts.check_same, {"the version of jax": "0.10.2" if mine else "0.12.0"})
    refused(jbp.fit, NET, LOSS, OPTIMIZER, (X, Y), batch_size=8)  # without a mesh
    refused(fit, (X, Y), watch=jbp.Watch(2))
    one = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    refused(jbp.fit, NET, LOSS, OPTIMIZER, (X, Y), batch_size=8, sharding=one)


def telling(folder):
    """What the processes tell each other arrives to the bit."""
    i = jax.process_index()
    tree = {"a": np.asarray([-0.0, np.nan, 1e-310 + i]), "b": jnp.asarray([i + 3], jnp.int32), "key": jax.random.key(i)}
    told = hosts.from_first(tree)
    first = {"a": np.asarray([-0.0, np.nan, 1e-310]), "b": np.asarray([3], np.int32), "key": jax.random.key(0)}
    for name, want in first.items():
        have = told[name]
        if name == "key":
            have, want = jax.random.key_data(have), jax.random.key_data(want)
        assert np.asarray(have).tobytes() == np.asarray(want).tobytes(), name
    assert hosts.agreed([i, 5 - i]) == (jax.process_count() - 1, 5)
    assert hosts.texts(f"δ{i}") == [f"δ{k}" for k in range(jax.process_count())]
    assert hosts.text_from_first("from δ0" if i == 0 else None) == "from δ0"
    assert hosts.text_from_first("") == ""
    assert str(hosts.blank_as(jax.random.key(3)).dtype) == str(jax.random.key(0).dtype)


CASES = {"training": training, "training more": training_more, "disagreeing": disagreeing, "telling": telling}

if __name__ == "__main__":
    path, coordinator, count, index, *cases = sys.argv[1:]
    hosts.INITIALISE = 120  # machines on which tests run may be slow to begin
    with hosts.as_one(coordinator, int(count), int(index)):
        for case in cases:
            if case.isdecimal():
                resuming(Path(path), int(case))
            else:
                CASES[case](Path(path))
        print("done", jax.device_count(), "devices", flush=True)
