"""Holding out and standardising: the laws of both, on shapes with distinct sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jbp.data import Standardizer, split
from jbp.data.preparing import held_out

RNG = np.random.default_rng(0)
X = np.arange(20.0)[:, None] * np.ones(3)
Y = np.array([0, 1, 1, 0] * 5)
FIXED = [2, 3, 11, 13, 15]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0.0, 1.0), st.integers(0, 9))
def test_held_out_is_proportional_and_leaves_every_group_a_row(sizes, share, seed):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = round(share * (len(groups) - len(sizes)))
    mask = held_out(groups, count, seed)
    out = np.bincount(groups[mask], minlength=len(sizes))
    assert out.sum() == count and (out < sizes).all()
    exact = np.array(sizes) * count / len(groups)
    # Only a group that gives all but its last row passes its share on to others.
    if (np.ceil(exact) < sizes).all():
        assert (abs(out - exact) < 1).all()


def test_held_out_gives_each_class_a_row_while_there_are_enough():
    groups = np.repeat([0, 1, 2, 3], [100, 2, 3, 1])
    assert np.bincount(groups[held_out(groups, 20)], minlength=4).tolist() == [18, 1, 1, 0]


def test_the_rows_held_out_are_fixed():
    """By the bits of PCG64, so by no version of anything: this may never need another list."""
    assert np.flatnonzero(held_out(np.zeros(20, int), 5, seed=0)).tolist() == FIXED
    assert np.flatnonzero(held_out(np.zeros(20, int), 5, seed=1)).tolist() != FIXED


@pytest.mark.parametrize("stratify", [True, False, None])
def test_split_keeps_every_row_once_and_in_order(stratify):
    x_a, y_a, x_b, y_b = split(X, Y, 0.3, seed=2, stratify=stratify)
    assert (x_a.shape, y_a.shape, x_b.shape, y_b.shape) == ((14, 3), (14,), (6, 3), (6,))
    assert sorted([*x_a[:, 0], *x_b[:, 0]]) == list(range(20))
    for x, y in ((x_a, y_a), (x_b, y_b)):
        np.testing.assert_array_equal(y, Y[x[:, 0].astype(int)])
        assert (np.diff(x[:, 0]) > 0).all()
    again = split(X, Y, 0.3, seed=2, stratify=stratify)
    np.testing.assert_array_equal(again[2], x_b)
    assert not np.array_equal(split(X, Y, 0.3, seed=3, stratify=stratify)[2], x_b)


@pytest.mark.parametrize("y", [np.repeat([4, 9], [150, 50]), np.repeat(["a", "b"], [150, 50])], ids=["int", "text"])
def test_split_is_stratified_by_labels(y):
    x = np.zeros((200, 1))
    np.testing.assert_array_equal(np.unique(split(x, y)[3], return_counts=True)[1], [15, 5])
    np.testing.assert_array_equal(split(x, y)[3], split(x, y, stratify=True)[3])


@pytest.mark.parametrize("y", [Y / 2, X[:, :2]], ids=["one value", "several"])
def test_split_of_values_is_not_stratified(y):
    np.testing.assert_array_equal(split(X, y)[2], split(X, Y, stratify=False)[2])


BAD_SPLITS = {
    "fraction 0": ((X, Y, 0.0), "expected a fraction between 0 and 1 to hold out, got 0.0"),
    "fraction 1": ((X, Y, 1.0), "got 1.0"),
    "fraction above 1": ((X, Y, 10), "got 10"),
    "fraction NaN": ((X, Y, float("nan")), "got nan"),
    "b empty": ((X, Y, 0.01), "a fraction of 0.01 of 20 rows is 0"),
    "a empty": ((X, Y, 0.99), "a fraction of 0.99 of 20 rows is 20"),
    "no rows": ((X[:0], Y[:0]), "a fraction of 0.1 of 0 rows is 0"),
    "lengths": ((X, Y[:7]), "got shapes (20, 3) and (7,)"),
    "a number": ((X, 3), "got shapes (20, 3) and ()"),
    "negative seed": ((X, Y, 0.1, -1), "expected a seed of 0 or above, got -1"),
    "stratified values": ((X, Y / 2, 0.1, 0, True), "got float64 of shape (20,); pass stratify=False"),
    "stratified columns": ((X, X.astype(int), 0.1, 0, True), "of shape (20, 3); pass stratify=False"),
    "rows all different": ((X, np.arange(20)), "with 20 classes that each keep a row at most 0 can go"),
}


@pytest.mark.parametrize("case", BAD_SPLITS)
def test_bad_split(case):
    args, message = BAD_SPLITS[case]
    with pytest.raises(ValueError) as error:
        split(*args)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 5), (1,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standardizer(shape, dtype):
    x = (RNG.normal(size=(5003, *shape)) * np.arange(1, shape[-1] + 1) + 7).astype(dtype)
    each, whole = Standardizer.fit(x), Standardizer.fit(x, per_feature=False)
    assert (each.mean.shape, each.scale.shape, whole.mean.shape, whole.scale.shape) == (shape, shape, (), ())
    np.testing.assert_allclose(each.mean, x.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(each.scale, x.std(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(whole.mean, x.mean(dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(whole.scale, x.std(dtype=np.float64), rtol=1e-12)
    for standardize in (each, whole):
        out = standardize(x[:11])
        assert (out.dtype, out.shape) == (np.float32, (11, *shape))
        np.testing.assert_allclose(out, (x[:11] - standardize.mean) / standardize.scale, rtol=1e-6)


def test_a_constant_feature_becomes_zero():
    x = np.stack([np.full(1001, 0.1), np.full(1001, -3e7), RNG.normal(size=1001)], axis=1).astype(np.float32)
    standardize = Standardizer.fit(x)
    assert standardize.scale[:2].tolist() == [1, 1]
    assert abs(standardize(x)[:, :2]).max() < 1e-7


def test_standardizing_keeps_what_float32_would_round_away():
    seconds = 1.7e9 + np.arange(101.0)[:, None]
    out = Standardizer.fit(seconds)(seconds)
    np.testing.assert_allclose(np.diff(out[:, 0]), 1 / seconds.std(), rtol=1e-5)


def test_bytes_are_standardised_as_numbers():
    x = RNG.integers(0, 256, (50, 4, 3)).astype(np.uint8)
    out = Standardizer.fit(x, per_feature=False)(x)
    assert abs(out.mean()) < 1e-6 and abs(out.std() - 1) < 1e-6


BAD_STANDARDIZING = {
    "no rows": (
        lambda: Standardizer.fit(X[:0]),
        "expected numbers [n, ...] with n ≥ 1 to fit to, got float64 of shape (0, 3)",
    ),
    "text": (lambda: Standardizer.fit(X.astype(str)), "got <U32"),
    "a number": (lambda: Standardizer.fit(np.array(3.0)), "of shape ()"),
    "NaN": (lambda: Standardizer.fit(X * np.nan), "expected finite values to standardise"),
    "Inf": (
        lambda: Standardizer.fit(X / np.array([1, np.inf, 1]) * np.array([1, np.inf, 1])),
        "expected finite values",
    ),
    "both Inf": (lambda: Standardizer.fit(np.array([[np.inf], [-np.inf]])), "expected finite values"),
    "another shape": (
        lambda: Standardizer.fit(X)(X[:, :2]),
        "examples of shape (3,) to standardise, got x of shape (20, 2)",
    ),
    "one example": (lambda: Standardizer.fit(X)(X[0]), "got x of shape (3,)"),
}


@pytest.mark.parametrize("case", BAD_STANDARDIZING)
def test_bad_standardizing(case):
    call, message = BAD_STANDARDIZING[case]
    with np.errstate(invalid="ignore"), pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
