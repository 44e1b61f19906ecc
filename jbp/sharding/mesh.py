"""`Sharding`: how training is spread over a mesh of devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jbp import hosts
from jbp.arguments import as_bool, came, listed
from jbp.layer import Layer
from jbp.sharding.derived import WAYS, alongside, over_data, over_model, over_specs
from jbp.sharding.scatter import summed_in_parts


@dataclass(frozen=True)
class Sharding:
    """How training is spread over a mesh: what `jbp.fit(..., sharding=)` and `jbp.make_step(..., sharding=)` take.

    The examples of a batch are spread over the axis `data`, by default the mesh's axis of that name, or its only one.
    Parameters are spread over the axis `model` ("model"), if the mesh has one: dense layers by column and by row in
    turn, convolutions by channels, attention by heads, tables by vocabulary; a layer whose width it does not divide is
    whole on every device. `layouts` says it otherwise for a layer, by its dotted path: {"2": "whole", "4.0": "column"},
    or "row".

    With `shard_params` parameters, and what the optimiser keeps of them, are spread over the data axis too: each device
    holds its part, and a step gathers them.

    Numbers are those of one device, to the order of summation; what is drawn does not depend on the mesh. Axes of any
    type will do, JAX's default (explicit) too: inside they are the compiler's.

    Raises:
        ValueError: for what is no mesh, an axis it does not have, or an axis that nothing is spread over.
    """

    mesh: Mesh
    data: str | None = field(default=None, kw_only=True)
    model: str | None = field(default=None, kw_only=True)
    shard_params: bool = field(default=False, kw_only=True)
    layouts: Any = field(default=(), kw_only=True)
    """Kept as (path, way) pairs."""

    def __post_init__(self) -> None:
        if not isinstance(self.mesh, Mesh):
            raise ValueError(
                f"a Sharding needs a jax.sharding.Mesh, as jax.make_mesh makes it, but got {came(self.mesh)}"
            )
        names = tuple(map(str, self.mesh.axis_names))
        object.__setattr__(self, "shard_params", as_bool(self.shard_params, "shard_params"))
        for role in ("data", "model"):
            chosen = getattr(self, role)
            if chosen is None and role in names:
                object.__setattr__(self, role, role)
            elif chosen is not None and chosen not in names:
                raise ValueError(f"{role}={chosen!r} is no axis of the mesh, which has {listed(names)}")
        if self.data is None and self.model is None and len(names) == 1:
            object.__setattr__(self, "data", names[0])
        if self.data == self.model:
            raise ValueError(f"data and model must be two axes of the mesh, but both are {self.data!r}")
        idle = [name for name in names if name not in (self.data, self.model) and self.mesh.shape[name] > 1]
        if idle:
            raise ValueError(
                f"the mesh has the axes {listed(names)}, and nothing would be spread over {idle[0]!r}: call them data "
                f"and model, or say which is which, as in Sharding(mesh, data={idle[0]!r})"
            )
        object.__setattr__(self, "layouts", _layouts(self.layouts))

    @classmethod
    def of(cls, sharding: Any) -> Sharding | None:
        """From a `Sharding`, a bare mesh, or None."""
        return sharding if sharding is None or isinstance(sharding, Sharding) else cls(sharding)

    @property
    def inner(self) -> Mesh:
        """The mesh with axes that are the compiler's: what everything lies on."""
        return _auto(self.mesh)

    @property
    def d(self) -> int:
        """How many parts a batch is cut into."""
        return 1 if self.data is None else self.mesh.shape[self.data]

    @property
    def m(self) -> int:
        """How many parts a layer is cut into."""
        return 1 if self.model is None else self.mesh.shape[self.model]

    def params(self, net: Layer, params: Any) -> Any:
        """A `PartitionSpec` for each parameter; of `params` only shapes are looked at.

        Raises:
            ValueError: if there is a model axis, and it divides the width of no layer.
        """
        specs, ways = over_model(net, params, self.m, str(self.model), dict(self.layouts))
        if self.m > 1 and set(ways.values()) <= {"whole"}:
            widths = ", ".join(f"{path} {way}" for path, way in ways.items()) or "there are none"
            raise ValueError(
                f"the axis {self.model!r} has {self.m} devices, which divide the width of no layer of the "
                f"net that multiplies ({widths}): take another mesh, or widths that {self.m} divides"
            )
        if self.m == 1:
            specs = jax.tree.map(lambda a: PartitionSpec(), params)
        if self.shard_params and self.d > 1:
            specs = over_specs(lambda spec, a: over_data(spec, np.shape(a), self.d, str(self.data)), specs, params)
        return specs

    def specs(self, tree: Any, net: Layer, params: Any) -> Any:
        """A spec for each array of a tree, such as a `State`: of what stands for a parameter, the parameter's."""
        return alongside(tree, params, self.params(net, params))

    def rows_spec(self, axis: int = 0) -> PartitionSpec:
        """Of data whose examples lie along this axis."""
        return PartitionSpec(*[None] * axis, self.data)

    def named(self, spec: PartitionSpec) -> NamedSharding:
        """The spec on the mesh."""
        return NamedSharding(self.inner, spec)

    def put(self, tree: Any, specs: Any) -> Any:
        """A tree of which every process has all of every array, laid out."""
        return over_specs(lambda spec, a: hosts.spread_out(a, self.named(spec)), specs, tree)

    def everywhere(self, tree: Any) -> Any:
        """A tree, whole on every device."""
        return jax.tree.map(lambda a: hosts.spread_out(a, self.named(PartitionSpec())), tree)

    def rows(self, tree: Any, axis: int = 0) -> Any:
        """Arrays of the rows that this process has (`own_rows`), along an axis, as global arrays over the data axis."""
        named = self.named(self.rows_spec(axis))
        if jax.process_count() == 1:
            return jax.tree.map(lambda a: jax.device_put(a, named), tree)
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(named, np.asarray(a)), tree)

    def own_rows(self, n: int) -> slice:
        """Which of the n rows of a batch this process has, and is to hand to `rows`."""
        found = self.named(self.rows_spec()).addressable_devices_indices_map((n,)).values()
        bounds = [index[0].indices(n) for index in found if index is not None]
        return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))

    def check_rows(self, n: int, what: str) -> int:
        """n, if the data axis divides it.

        Raises:
            ValueError: if not, naming the next that it does.
        """
        if n % self.d:
            low = n - n % self.d
            raise ValueError(
                f"{what} is {n}, which the {self.d} devices of the axis {self.data!r} do not divide: take "
                f"{f'{low} or ' if low else ''}{low + self.d}, or another mesh"
            )
        return n

    def constrain(self, tree: Any, specs: Any) -> Any:
        """Inside a compiled program: the tree, spread so."""
        return over_specs(lambda spec, a: lax.with_sharding_constraint(a, self.named(spec)), specs, tree)

    def cut(self, batch: Any) -> Any:
        """Inside a compiled program: a batch, its rows spread over the data axis."""
        return jax.tree.map(lambda a: lax.with_sharding_constraint(a, self.named(self.rows_spec())), batch)

    def added_up(self, function: Callable[..., Any], rows: Any, *others: Any, spread: Any = None) -> Any:
        """Σ over the devices of the data axis of `function(rows, *others)`, each with its own rows, by one collective.

        The model axis stays the compiler's. `spread(answer)`, if given, has a spec for each array of the answer; where
        one names the data axis, each device gets its part of the sum alone (with a model axis, which the parts would
        have to be brought together for, the compiler takes it from the whole sum).
        """
        if self.d == 1:
            return function(rows, *others)
        spread = spread if self.m == 1 else None
        axis = str(self.data)
        specs: Any = PartitionSpec()
        if spread is not None:
            shapes = jax.eval_shape(function, rows, *others)
            specs = over_specs(lambda spec: _only(spec, axis), spread(shapes))

        def local(rows: Any, *others: Any) -> Any:
            found = function(rows, *others)
            if spread is None:
                return lax.psum(found, axis)
            leaves, structure = jax.tree.flatten(found)
            flat = [tuple(spec) for spec in structure.flatten_up_to(specs)]
            over = [spec.index(axis) if axis in spec else None for spec in flat]
            return structure.unflatten(summed_in_parts(leaves, over, axis, self.d))

        in_specs = (PartitionSpec(axis), *[PartitionSpec()] * len(others))
        return jax.shard_map(
            local, mesh=self.inner, in_specs=in_specs, out_specs=specs, axis_names={axis}, check_vma=False
        )(rows, *others)

    def side_by_side(self, function: Callable[..., Any], spread: int) -> Callable[..., Any]:
        """A function of which the first so many arguments, and the answer, have an axis of what is done side by side,
        runs of training say: each device has its part of that, and nothing to say to the others."""
        axis = PartitionSpec(self.data)

        def run(*arguments: Any) -> Any:
            specs = (*[axis] * spread, *[PartitionSpec()] * (len(arguments) - spread))
            return jax.shard_map(function, mesh=self.inner, in_specs=specs, out_specs=axis, check_vma=False)(*arguments)

        return run

    def set(self) -> Any:
        """The context in which compiled programs are called, whatever mesh is set outside."""
        return jax.set_mesh(self.inner)

    def as_given(self, tree: Any) -> Any:
        """Arrays on the mesh as it was given."""
        if self.mesh == self.inner:
            return tree
        return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(self.mesh, a.sharding.spec)), tree)


def _only(spec: PartitionSpec, axis: str) -> PartitionSpec:
    return PartitionSpec(*(entry if entry == axis else None for entry in spec))


@lru_cache(maxsize=64)
def _auto(mesh: Mesh) -> Mesh:
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _layouts(layouts: Any) -> tuple[tuple[str, str], ...]:
    pairs = tuple(layouts.items()) if isinstance(layouts, Mapping) else layouts
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"layouts must be a mapping of dotted paths to {listed(WAYS)}, but is {came(layouts)}")
    for path, way in pairs:
        if not isinstance(path, str) or way not in WAYS:
            raise ValueError(
                f"layouts must say column, row or whole of the path of a layer, but say {way!r} of {path!r}"
            )
    return pairs
