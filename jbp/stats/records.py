"""What to watch in training: how large h and δ are, layer by layer, and which units are dead or saturated."""

from __future__ import annotations

from functools import reduce, singledispatch
from typing import Any, NamedTuple

import jax.numpy as jnp

from jbp.annotations import Array, Float
from jbp.meshes import placed, whole
from jbp.pairs import Lookup, Outer, Pair, Pairs, Scale, Shift, Sum, Weights, Window, silence, weigh
from jbp.stats._real import Real, check_real, real_uses
from jbp.stats._rows import in_rows
from jbp.stats.moments import proportions
from jbp.stats.trees import leaves


class Record(NamedTuple):
    """Of one parameter; [l] instead of [] under a `repeat`. NaN where the parameter has no h (a bias, a table)."""

    h: Float[Array, "*l"]
    """Root mean square over examples, uses and units of what came in."""
    delta: Float[Array, "*l"]
    """Root mean square of δ, of one example's error."""
    dead: Float[Array, "*l"]
    """The share of units of h that are 0 for every example of the batch."""
    saturated: Float[Array, "*l"]
    """The share of entries of h with |h| ≥ 0.99, where tanh and (at its upper end) sigmoid hardly respond."""


@placed(whole)
def records(pairs: Pairs | Pair, weights: Weights = None, mask: Real = None) -> dict[str, Record]:
    """A `Record` for each parameter, by dotted path. A weight's h is the output of the layer below, where units live.

    Of a kernel each pixel of its images counts once, however often it is seen, and padding does not; its units are the
    channels.

    Of a parameter whose uses differ in kind, what came in and δ are those of all uses together. Of `weights` [n], of
    any sum, the proportions wₙ/Σw take the place of 1/N. A row of weight 0 takes no part whatever it holds. Of pairs
    that were made with a `mask` [n, t] hand the same mask in: an example's figures are then those over its real
    positions. Without it padding counts.

    Raises:
        ValueError: if these are not the pairs of one backward pass, the batch is empty, or weights or mask do not fit.
        NotImplementedError: below a layer that couples examples; with a mask, of a parameter whose uses may be
            positions or not.
    """
    p, _ = proportions(pairs, weights)
    mask = check_real(pairs, mask, weights)
    return {path: pair.over_stack(lambda pair: _record(pair, p, mask)) for path, pair in leaves(pairs).items()}


def _record(pair: Pair, p: Float[Array, " n"], mask: Any) -> Record:
    (hs, deltas), shares = held(pair), _shares(pair, mask)
    if shares is not None:
        return _masked_record(hs, deltas, p, shares)
    dead = [(silence(p, h) == 0).all((0, 1), keepdims=True).astype(h.dtype) for h in hs]
    saturated = [(jnp.abs(h) >= 0.99).astype(h.dtype) for h in hs]
    one = jnp.ones(1, p.dtype)
    return Record(_rms(hs, p), _rms(deltas, p), _mean(dead, one), _mean(saturated, p))


def _shares(pair: Pair, mask: Any) -> Float[Array, "n t"] | None:
    """As `real_uses`, of a `Sum` those of its members, which must be alike."""
    if not isinstance(pair, Sum):
        return real_uses(pair, mask)
    found = [_shares(member, mask) for member in pair.pairs]
    if mask is not None and any((one is None) != (found[0] is None) for one in found):
        raise NotImplementedError(
            "a parameter is used at positions, and elsewhere too: its records with a mask are not defined; cut each "
            "example to its length"
        )
    return found[0]


def _masked_record(hs: list[Array], deltas: list[Array], p: Float[Array, " n"], shares: Float[Array, "n t"]) -> Record:
    """Over the real uses: each an example of its own, that counts as its share of its example."""
    counted = weigh(p, shares).reshape(-1)
    hs, deltas = ([silence(counted, a.reshape(-1, 1, a.shape[-1])) for a in arrays] for arrays in (hs, deltas))
    dead = [(h == 0).all((0, 1), keepdims=True).astype(h.dtype) for h in hs]
    saturated = [(jnp.abs(h) >= 0.99).astype(h.dtype) for h in hs]
    one = jnp.ones(1, p.dtype)
    return Record(_rms(hs, counted), _rms(deltas, counted), _mean(dead, one), _mean(saturated, counted))


@singledispatch
def held(pair: Pair) -> tuple[list[Array], list[Array]]:
    """Every h [n,t,i] and every δ [n,t,o] of a pair that is no stack."""
    return held(in_rows(pair))


@held.register(Outer)
@held.register(Scale)
def _(pair: Any) -> tuple[list[Array], list[Array]]:
    return [pair.h], [pair.delta]


@held.register
def _(pair: Window) -> tuple[list[Array], list[Array]]:
    h, delta = (a.reshape(pair.batch, -1, a.shape[-1]) for a in (pair.h, pair.delta))
    return [h], [delta]


@held.register(Lookup)
@held.register(Shift)
def _(pair: Any) -> tuple[list[Array], list[Array]]:
    return [], [pair.delta]


@held.register
def _(pair: Sum) -> tuple[list[Array], list[Array]]:
    parts = [held(member) for member in pair.pairs]
    return [h for hs, _ in parts for h in hs], [delta for _, deltas in parts for delta in deltas]


def _rms(arrays: list[Array], p: Float[Array, " n"]) -> Float[Array, ""]:
    return jnp.sqrt(_mean([jnp.square(a) for a in arrays], p))


def _mean(arrays: list[Array], p: Float[Array, " n"]) -> Float[Array, ""]:
    """Σₙ pₙ of example n's mean over all entries [t,i] of all arrays; NaN if there are none."""
    if not arrays:
        return jnp.full((), jnp.nan, p.dtype)
    sums = [weigh(p, a.sum((1, 2))).sum() for a in arrays]
    return reduce(jnp.add, sums) / sum(a[0].size for a in arrays)
