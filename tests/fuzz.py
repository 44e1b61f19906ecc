"""Random networks against autodiff of a plain forward pass: what one is checked for, and a command that checks many.

    python tests/fuzz.py --cases 2000 --seed 0    # saves experiments/results/fuzz.json; exit 1 if a network fails
    python tests/fuzz.py --again 'Problem(...)'   # one network, as a failure prints it: the error of every leaf

What is compared, for every network, with `jax.grad` of `oracles.plain`, which uses none of jbp's code:
the value; each gradient leaf and δ of the input, from `forward`, `backward` and `contract`, for the loss alone and
for the loss plus a random linear function of the outputs; the same gradient contracted inside `backward` and by
`value_and_grad`; and, where weights are zero, `value_and_grad` once more with NaN in those rows.

An error is max |found − expected| of a leaf in units of eps × magnitude. The magnitude is max |expected|, but random
nets cancel (a bias in front of softmax has a gradient of zero that is summed from terms that are not), so it is at
least the largest term that enters, measured and not estimated: in the plain forward pass in float64 the input and
every layer's output, and with it every δ, are multiplied by 1 + hu, u in [−½, ½] different for every entry, and the
largest change of the leaf over DRAWS such draws, divided by h, is a lower bound of the magnitude. It is what one
rounding at every layer does to the leaf, divided by eps. `floored` in the result says how often it decided.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # read when JAX starts, so it comes first

import argparse
import platform
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))

import common
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from nets import NAMES, Numbers, Problem, numbers, seeded

import jbp
from jbp.backprop import total
from jbp.combine import Combinator

RESULT = common.RESULTS / "fuzz.json"
LEVEL = oracles.UNITS["net"]
NUDGE, DRAWS = 2.0**-26, 2
DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class Error:
    """How far one leaf of one quantity is off, in units; `floor` is what the magnitude was raised by."""

    quantity: str
    leaf: str
    units: float
    floor: float

    @property
    def kind(self) -> str:
        """weight, bias, gain, or the quantity where it has no leaves."""
        return self.leaf.rsplit("'", 2)[-2] if "'" in self.leaf else self.quantity


def ours(p: Problem, n: Numbers) -> dict[str, Any]:
    """What jbp makes of a problem."""
    net, loss, w = p.net, p.loss, n.weights
    output, saved = jbp.forward(net, n.params, n.x, n.key)
    errors = jax.vmap(loss.value)(output, n.y)
    delta = n.delta + jax.vmap(loss.delta)(output, n.y)
    delta_x, pairs = jbp.backward(net, n.params, saved, delta)
    scale = jnp.full(p.batch, 1 / p.batch, output.dtype) if w is None else w
    weighted = jnp.einsum("n,n...->n...", scale, delta)
    found = {
        "value": scale @ errors,
        "delta_x": jnp.einsum("n,n...->n...", scale, delta_x),
        "contract": jbp.contract(pairs, w),
        "total": jbp.backward(net, n.params, saved, weighted, total)[1],
    }
    if p.training or net.uses_key is not True:  # value_and_grad refuses a net with dropout but without a key
        found["loss"], found["value_and_grad"] = jbp.value_and_grad(net, loss)(n.params, n.x, n.y, n.key, w)
    return found


def theirs(p: Problem, n: Numbers, size: Any, phase: Any) -> tuple[Any, Any, Any]:
    """Value, gradient and δ_x of Σ wₙ(eₙ + ⟨δₙ, outputₙ⟩), every h and δ changed by about `size` where it is not 0."""

    def nudged(h: Any) -> Any:
        mixed = jax.lax.stop_gradient(h) * (7919.0 + phase)
        return h * (1 + size * (mixed - jnp.floor(mixed) - 0.5))

    plain = oracles.plain

    def tapped(net: Any, *args: Any) -> Any:
        y = plain(net, *args)
        return y if isinstance(net, Combinator) or size is None else nudged(y)

    def objective(params: Any, x: Any) -> Any:
        with mock.patch.object(oracles, "plain", tapped):  # through which plain calls itself
            output = oracles.plain(p.net, params, x if size is None else nudged(x), n.key)
        errors = oracles.plain_errors(p.loss, output, n.y)
        scale = jnp.full(p.batch, 1 / p.batch, output.dtype) if n.weights is None else n.weights
        added = (n.delta * output).reshape(p.batch, -1).sum(1)
        return scale @ (errors + added), scale @ errors

    (_, value), (grad, delta_x) = jax.value_and_grad(objective, (0, 1), has_aux=True)(n.params, n.x)
    return value, grad, delta_x


class Checker:
    """The compiled programs of one structure; `check` compares as many draws of its numbers as one likes.

    Measuring the largest term takes a second program, in float64. Without (`measured=False`) the magnitude is
    max |expected| alone, and no error comes out smaller than it is.
    """

    def __init__(self, p: Problem, measured: bool = True):
        self.p, self.measured = p, measured

        def both(n: Numbers) -> Any:
            return ours(p, n), None if measured and p.dtype == "float64" else theirs(p, n, None, None)

        self.both = oracles.compiled(both)
        self.exact = oracles.compiled(lambda n, size, phase: theirs(p, n, size, phase))

    def check(self, seed: int | None = None) -> list[Error]:
        """The errors of every quantity and leaf, for the numbers that follow from a seed."""
        n = numbers(self.p if seed is None else replace(self.p, seed=seed))
        with jax.default_matmul_precision("highest"):
            alone = replace(n, delta=jnp.zeros_like(n.delta))
            errors = self._compare(replace(n, weights=n.factors), ("delta_x", "contract", "total"))
            errors += self._compare(alone, ("value", "delta_x", "contract", "total", "loss", "value_and_grad"))
        return errors

    def _compare(self, n: Numbers, quantities: tuple[str, ...]) -> list[Error]:
        found, expected = self.both(n)
        exact, floors = self._magnitudes(n) if self.measured else (expected, jax.tree.map(lambda e: 0.0, expected))
        if "loss" in quantities and self.p.weights == "some zero" and "loss" in found:
            padded = replace(n, x=jnp.where(n.weights.reshape(-1, *(1,) * len(self.p.shape)) == 0, jnp.nan, n.x))
            silent = self.both(padded)[0]
            found |= {"padded loss": silent["loss"], "padded value_and_grad": silent["value_and_grad"]}
            quantities += ("padded loss", "padded value_and_grad")
        sides = (exact if expected is None else expected), exact, floors
        (value, grad, delta_x) = zip(*sides, strict=True)
        errors = []
        for q in quantities:
            if q in found:
                side = delta_x if q == "delta_x" else value if q in ("value", "loss", "padded loss") else grad
                errors += _compare(q, found[q], *side)
        return errors

    def _magnitudes(self, n: Numbers) -> tuple[Any, Any]:
        """The expected values in float64, and the largest term that enters each."""
        wide = jax.tree.map(lambda a: a.astype("float64") if a.dtype == "float32" else a, n)
        exact = self.exact(wide, 0.0, 0.0)
        nudged = [self.exact(wide, NUDGE, 0.37 + i) for i in range(DRAWS)]
        floors = jax.tree.map(lambda e, *many: max(np.abs(m - e).max(initial=0) for m in many) / NUDGE, exact, *nudged)
        return exact, floors


def _compare(quantity: str, found: Any, expected: Any, exact: Any, floors: Any) -> list[Error]:
    ours, structure = jax.tree_util.tree_flatten_with_path(found)
    assert structure == jax.tree.structure(expected), f"{quantity}: tree {structure}"
    errors = []
    for (path, a), b, c, floor in zip(ours, *map(jax.tree.leaves, (expected, exact, floors)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{quantity}: {a.dtype}{a.shape} not {b.dtype}{b.shape}"
        info = np.finfo(a.dtype)
        a, b, size = np.asarray(a, np.float64), np.asarray(b, np.float64), np.abs(c).max(initial=0)
        wrong = float(np.abs(a - b).max(initial=0))  # NaN where either side is
        unit = float(info.eps) * max(size, floor) + float(info.tiny)  # numbers below tiny have no digits to lose
        units = wrong / unit if np.isfinite(a).all() and np.isfinite(b).all() else np.inf
        errors.append(Error(quantity, jax.tree_util.keystr(path), units, float(floor / size) if size else np.inf))
    return errors


def complaint(p: Problem, error: Error) -> str:
    """What a failure looks like: a line of code and what went wrong with it."""
    return f"{p!r}\n  {error.quantity}{error.leaf} is {error.units:.3g} units off, more than {LEVEL}"


def worst_error(p: Problem) -> Error:
    """The largest error of a problem. The largest terms are measured only if it could decide the verdict."""
    for measured in (False, True):
        worst = max(Checker(p, measured).check(), key=lambda e: e.units)
        if worst.units <= LEVEL:
            break
    return worst


def assert_agrees(p: Problem) -> None:
    """Every quantity and leaf of a problem within the level."""
    worst = worst_error(p)
    assert worst.units <= LEVEL, complaint(p, worst)


def fuzz(cases: int, seed: int, per_structure: int) -> dict[str, Any]:
    """Check `cases` networks, `per_structure` draws of the numbers for each structure; what is saved."""
    began, structures, failures = time.monotonic(), set(), []
    worst: Any = defaultdict(list)
    layers: Counter[str] = Counter()
    done = rejected = floored = compared = 0
    while done < cases:
        p = seeded(seed, rejected + len(structures), dtype=DTYPES[len(structures) % 2])
        if p.structure in structures:
            rejected += 1
            continue
        structures.add(p.structure)
        layers.update(_kinds(p.net))
        checker = Checker(p)
        for draw in range(min(per_structure, cases - done)):
            q = replace(p, seed=p.seed + 2**16 * draw)
            try:
                errors = checker.check(q.seed)
            except Exception as error:
                failures.append(f"{q!r}\n  {type(error).__name__}: {error}")
                print(f"\nFAILED {failures[-1]}", flush=True)
                break
            done += 1
            here: dict[str, float] = defaultdict(float)
            for e in errors:
                here[e.kind] = max(here[e.kind], e.units)
                floored, compared = floored + (e.floor > 1), compared + 1
            for kind, units in here.items():
                worst[p.dtype, kind].append(units)
            if not (bad := max(errors, key=lambda e: e.units)).units <= LEVEL:
                failures.append(complaint(q, bad))
                print(f"\nFAILED {failures[-1]}", flush=True)
        seconds = time.monotonic() - began
        print(f"\r{done}/{cases} networks, {len(structures)} structures, {len(failures)} failed, {seconds:.0f} s",
              end="", file=sys.stderr, flush=True)  # fmt: skip
        if len(structures) % 60 == 0:
            jax.clear_caches()  # or memory grows with every program
        if len(failures) > 20:
            break
    print(file=sys.stderr)
    return {
        "command": f"python tests/fuzz.py --cases {cases} --seed {seed}",
        "cases": done,
        "structures": len(structures),
        "nets": len({s[0] for s in structures}),
        "seed": seed,
        "level": LEVEL,
        "failures": failures,
        "errors": {d: {k: _quantiles(v) for (e, k), v in sorted(worst.items()) if e == d} for d in DTYPES},
        "floored": round(floored / max(compared, 1), 4),
        "layers": dict(layers.most_common()),
        "seconds": round(time.monotonic() - began),
        "versions": {"jbp": version("jbp"), "jax": jax.__version__, "numpy": np.__version__,
                     "python": platform.python_version(), "device": jax.devices()[0].platform},
    }  # fmt: skip


def again(p: Problem) -> int:
    """Every error of one problem, the largest last; 1 if it fails."""
    errors = sorted(Checker(p).check(), key=lambda e: e.units)
    for e in errors:
        print(f"{e.units:12.3f}  {e.quantity}{e.leaf}")
    return 0 if errors[-1].units <= LEVEL else 1


def _kinds(net: Any) -> list[str]:
    return [type(net).__name__, *(k for child in getattr(net, "children", ()) for k in _kinds(child))]


def _quantiles(units: list[float]) -> dict[str, float]:
    at = {"median": 0.5, "0.9": 0.9, "0.99": 0.99, "0.999": 0.999, "worst": 1.0}
    return {"networks": len(units)} | {name: round(float(np.quantile(units, q)), 3) for name, q in at.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000, help="networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-structure", type=int, default=4, help="draws of the numbers for each structure")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--again", metavar="PROBLEM", help="check this one alone, and save nothing")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if args.again:
        return again(eval(args.again, NAMES | {"Problem": Problem}))
    result = fuzz(args.cases, args.seed, args.per_structure)
    common.write(args.out, result)
    print(common.text_of({k: result[k] for k in ("cases", "structures", "errors", "seconds")}), end="")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
