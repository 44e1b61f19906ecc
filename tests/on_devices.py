"""What `tests/test_meshes.py` runs on four devices, which a process must be started with: `on_devices.py CASE`.

Everything is compared with the same on one device; a case prints what it compared.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbp
from jbp import curvature, losses, private, stats
from jbp.sinks import together, total

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

KEY = jax.random.key(0)
LOSS = losses.softmax_cross_entropy
BLOCK = jbp.serial(jbp.Dense(4), jbp.tanh)
NET = jbp.serial(jbp.repeat(BLOCK, 2), jbp.tied(jbp.serial(jbp.Dense(4), jbp.relu, jbp.Dense(4)), {2: 0}), jbp.Dense(3))
X, Y = jax.random.normal(KEY, (8, 2, 4)), jnp.arange(16).reshape(8, 2) % 3
PARAMS = NET.init(KEY, (2, 4))[0]
"""Its weights are used twice in an example, or four times where they are tied."""
FLAT = jbp.serial(jbp.Dense(4), jbp.leaky_relu, jbp.repeat(jbp.serial(jbp.Dense(4), jbp.leaky_relu), 2), jbp.Dense(3))
FLAT_PARAMS = FLAT.init(KEY, (4,))[0]
"""Piecewise linear, and used once: its Hessian diagonal is Gauss-Newton's."""

KERNELS = jbp.serial(
    jbp.repeat(jbp.serial(jbp.Conv(2, 3, use_bias=False), jbp.tanh), 2),
    jbp.Conv(4, 2, groups=2),
    jbp.Flatten(),
    jbp.Dense(3),
)
IMAGES = jax.random.normal(KEY, (8, 4, 5, 2))
KERNELS_PARAMS = KERNELS.init(KEY, (4, 5, 2))[0]


def statistics(net, params, x, y):
    """Every reading of pairs, each with an axis n or a sum over it."""
    errors, pairs = jbp.value_and_pairs(net, LOSS, params, x, y)
    weights = jnp.linspace(0.5, 1.5, len(x))
    return {
        "errors": errors,
        "contract": jbp.contract(pairs),
        "contract, weighted": jbp.contract(pairs, weights),
        "second_moment": stats.second_moment(pairs),
        "second_moment, weighted": stats.second_moment(pairs, weights),
        "variance": stats.variance(pairs),
        "snr": stats.snr(pairs),
        "noise_scale": stats.noise_scale(pairs),
        "kronecker": stats.kronecker(pairs),
        "kronecker, reduce": stats.kronecker(pairs, "reduce", weights),
        "norms": stats.norms(pairs),
        "squared_norms": stats.squared_norms(pairs),
        "norms of layers": stats.norms(pairs, "layer"),
        "per_example": stats.per_example(pairs),
        "gram": stats.gram(pairs),
        "project": stats.project(pairs, params),
        "clip_weights": stats.clip_weights(pairs, 0.1),
        "clipped": stats.clipped(pairs, 0.1, "layer", weights=weights),
        "records": stats.records(pairs),
    }


def passes(net, params, x, y):
    """Every way forward and back."""
    output, saved = jbp.forward(net, params, x)
    delta_x, grads = jbp.backward(net, params, saved, output, total)
    _, both = jbp.backward(net, params, saved, output, sink := together(total, stats.squared_norms))
    return {
        "apply": jbp.apply(net, params, x),
        "backward": (delta_x, grads),
        "together": sink.split(both),
        "value_and_grad": jbp.value_and_grad(net, LOSS)(params, x, y),
        "weighted": jbp.value_and_grad(net, LOSS)(params, x, y, None, jnp.linspace(0.0, 1.0, len(x))),
        "clipped_sum": private.clipped_sum(net, LOSS, params, x, y, 0.1),
        "clipped_sum, lean": private.clipped_sum(net, LOSS, params, x, y, 0.1, lean=True),
    }


def second_order(net, params, x, y):
    """Everything of `jbp.curvature`."""
    given = net, LOSS, params, x, y
    return {
        "diagonal": curvature.gauss_newton_diagonal(*given),
        "diagonal, of each": curvature.gauss_newton_diagonal(*given, per_example=True),
        "diagonal, sampled": curvature.gauss_newton_diagonal(*given, "sampled", key=KEY, samples=2),
        "kronecker": curvature.kronecker_factors(*given),
        "gauss_newton_product": curvature.gauss_newton_product(*given)(params),
        "fisher_product": curvature.fisher_product(*given)(params),
        "hessian_product": curvature.hessian_product(*given)(params),
        "hessian_diagonal": curvature.hessian_diagonal(*given, key=KEY, samples=2)[:2],
    }


def compared(found, wanted):
    """Each name's numbers against those of one device."""
    for name, want in wanted.items():
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(want), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            scale = np.abs(b[np.isfinite(b)]).max(initial=0.0)
            # Ratios of differences keep fewer digits.
            rtol, atol = (1e-7, 0.0) if name in ("snr", "noise_scale") else (1e-11, 1e-12 * float(scale))
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)
        print(name)


def mesh_of(kind, **axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))


def put(tree, mesh, spec):
    return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, spec(a))), tree)


def over_model(a):
    """The last axis of a weight on the mesh axis "model", where it can be."""
    return P(*[None] * (a.ndim - 1), "model") if a.ndim and a.shape[-1] % 2 == 0 else P()


def in_shard_map(function, net, params, x, y):
    """Each device reads its own examples: as if they were alone."""
    mesh = mesh_of(AxisType.Auto, data=4)

    def one(params, x, y):
        return jax.tree.map(lambda a: a[None], function(net, params, x, y))

    specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": P("data")}
    found = jax.jit(jax.shard_map(one, mesh=mesh, **specs))(params, x, y)
    quarters = [a.reshape(4, -1, *a.shape[1:]) for a in (x, y)]
    compared(found, jax.jit(partial(jax.lax.map, lambda xy: function(net, params, *xy)))(quarters))


def explicit(function, net, params, x, y, model=False, compiled=True):
    """Examples over the mesh axis "data", parameters everywhere or over "model"; gradients stay as parameters are."""
    axes = {"data": 2, "model": 2} if model else {"data": 4}
    wanted = jax.jit(partial(function, net))(params, x, y)
    with jax.set_mesh(mesh := mesh_of(AxisType.Explicit, **axes)):
        params = put(params, mesh, over_model if model else lambda a: P())
        x, y = put((x, y), mesh, lambda a: P("data"))
        run = partial(function, net)
        found = (jax.jit(run) if compiled else run)(params, x, y)
    compared(found, wanted)
    spread = {name: [jax.typeof(a).sharding.spec for a in jax.tree.leaves(found[name])] for name in found}
    wanted_spread = [jax.typeof(a).sharding.spec for a in jax.tree.leaves(params)]
    for name in {"value_and_grad", "hessian_product", "diagonal"} & set(found):
        assert spread[name][-len(wanted_spread) :] == wanted_spread, name
    for name in {"apply", "norms", "per_example", "gram", "project", "clip_weights", "errors"} & set(found):
        assert all(spec[0] == "data" for spec in spread[name]), name


def training(mesh_is_set):
    """`fit` on examples over a mesh: the same numbers as on one device."""
    net = jbp.serial(jbp.Dense(4), jbp.relu, jbp.Dropout(0.2), jbp.repeat(jbp.Dense(4), 2), jbp.Dense(2))
    optimizer, x, y = jbp.optim.sgd(0.1, momentum=0.9), jax.random.normal(KEY, (24, 4)), jnp.arange(24) % 2
    weights, params = jnp.arange(24.0) + 1, net.init(KEY, (4,))[0]
    fit = partial(jbp.fit, net, LOSS, optimizer, epochs=2, batch_size=7)
    problem = jbp.Problem(net, LOSS, optimizer)

    def everything(x, y, weights, params):
        state = jbp.init_state(problem, (4,), params=params)
        state, _ = jbp.make_step(problem)(state, jbp.Batch(x, y, weights))
        state, figures = jbp.make_step(problem)(state, jbp.Batch(x, y, weights))
        measured = {"validation_data": (x, y), "metrics": {"accuracy": jbp.accuracy}}
        return {
            "make_step": (state.params, figures),
            "fit": (fit((x, y), weights=weights, params=params, **measured).params),
            "in_place": fit((x, y), in_place=True).params,
            "rule": fit((x, y), rule="direct_feedback_alignment").params,
            "private": fit((x, y), private=jbp.Private(1.0, 1.0, 1e-3), seed=1).params,
            "fit_many": jbp.fit_many(
                net, LOSS, optimizer, (x, y), seeds=(0, 1), epochs=1, batch_size=8, validation_data=(x, y)
            ).params,
            "alignment": jbp.rules.alignment("feedback_alignment", backward, net, LOSS, params, x, y, KEY),
        }

    backward = tuple({"weight": jnp.cos(9 * p["weight"]), "bias": None} if p else p for p in params)

    wanted = everything(x, y, weights, params)
    mesh = mesh_of(AxisType.Explicit, data=2, model=2)
    data = put((x, y, weights), mesh, lambda a: P("data"))
    params = put(params, mesh, over_model)
    if mesh_is_set:
        with jax.set_mesh(mesh):
            found = everything(data[0], data[1], data[2], params)
    else:
        found = everything(data[0], data[1], data[2], params)
    compared(found, wanted)
    if mesh_is_set:
        for a, b in zip(jax.tree.leaves(found["fit"]), jax.tree.leaves(params), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


SPATIAL = KERNELS, KERNELS_PARAMS, IMAGES, Y[:, 0]
SEQUENCE, ONCE = (NET, PARAMS, X, Y), (FLAT, FLAT_PARAMS, X[:, 0], Y[:, 0])
CASES = {
    "shard_map": lambda: (
        [in_shard_map(f, *SEQUENCE) for f in (statistics, passes, second_order)] + [in_shard_map(second_order, *ONCE)]
    ),
    "explicit": lambda: [explicit(f, *SEQUENCE) for f in (statistics, passes, second_order)],
    "model": lambda: [explicit(f, *ONCE, model=True) for f in (statistics, passes, second_order)],
    "kernels": lambda: [how(statistics, *SPATIAL) for how in (in_shard_map, explicit)],
    "eager": lambda: explicit(passes, *ONCE, compiled=False),
    "training": lambda: training(True),
    "training without set_mesh": lambda: training(False),
}

if __name__ == "__main__":
    CASES[sys.argv[1]]()
    print(len(jax.devices()), "devices")
