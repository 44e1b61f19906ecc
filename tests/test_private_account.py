"""The account of private training: what is told by arithmetic alone, and the least noise for an ε."""

import sys
from math import exp, inf

import dp_accounting
import pytest
from dp_accounting import pld
from scipy.stats import norm

import jbp
from jbp.private import MOST, SHARE, beyond_most

RUNS = [(360, 256, 1437), (14_000, 256, 60_000), (1, 50, 50)]


@pytest.fixture
def no_account(monkeypatch):
    """An account that is asked for is an error."""

    def refuse(*_):
        raise AssertionError("the account was made")

    monkeypatch.setattr(pld, "PLDAccountant", refuse)


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_little_noise_is_told_by_arithmetic_alone(no_account, noise):
    for run in RUNS:
        assert jbp.Private(noise, 1.0, 1.23e-5).epsilon(*run) == inf


def test_examples_that_are_hardly_ever_drawn_cost_nothing(no_account):
    how = jbp.Private(0.02, 1.0, 1e-5)
    assert how.epsilon(99, 1, 10**7) == 0
    with pytest.raises(AssertionError, match="the account was made"):
        jbp.Private(1.0, 1.0, 1e-5).epsilon(100, 1, 10**7)


@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_what_arithmetic_shows_is_true_of_one_step_of_all_examples(delta):
    """δ(ε) of the Gaussian mechanism in closed form, Balle and Wang 2018, arXiv:1805.06530, theorem 8."""
    said = []
    for noise in (0.1, 0.3, 0.36, 0.4, 0.45, 0.5, 0.6, 1.0):
        shift = 1 / noise
        exact = norm.cdf(shift / 2 - MOST / shift) - exp(MOST) * norm.cdf(-shift / 2 - MOST / shift)
        said.append((beyond_most(noise, delta, 1, 1.0), exact > delta))
    assert all(true for told, true in said if told)
    assert sum(told for told, _ in said) >= sum(true for _, true in said) - 1, "and hardly any is missed"


@pytest.mark.parametrize("run", RUNS)
def test_where_an_account_is_worth_making_it_is_made(run):
    steps, batch_size, n = run
    at_most = jbp.Private.for_epsilon(MOST, 1e-5, 1.0, steps=steps, batch_size=batch_size, n=n).noise_multiplier
    assert not beyond_most(at_most, 1e-5, steps, batch_size / n)
    assert beyond_most(0.7 * at_most, 1e-5, steps, batch_size / n)


@pytest.mark.parametrize("epsilon", [0.5, 3])
@pytest.mark.parametrize("run", RUNS)
def test_the_least_noise_for_an_epsilon(run, epsilon):
    steps, batch_size, n = run
    how = jbp.Private.for_epsilon(epsilon, 1e-5, 0.7, steps=steps, batch_size=batch_size, n=n)
    assert (how.max_norm, how.delta) == (0.7, 1e-5)
    assert how.epsilon(*run) <= epsilon < jbp.Private(how.noise_multiplier / 1.002, 0.7, 1e-5).epsilon(*run)
    account = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 5e-5)
    event = dp_accounting.PoissonSampledDpEvent(batch_size / n, dp_accounting.GaussianDpEvent(how.noise_multiplier))
    account.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    assert account.get_epsilon(1e-5 * SHARE) == pytest.approx(epsilon, rel=5e-3)


@pytest.mark.parametrize(
    ("epsilon", "changed", "words"),
    [
        (0.0, {}, "epsilon must be above 0 and at most 13, but is 0"),
        (14, {}, "epsilon must be above 0 and at most 13, but is 14"),
        ("3", {}, "epsilon must be a finite number"),
        (3, {"steps": 0}, "steps must be a whole number of at least 1"),
        (3, {"batch_size": 60}, "batch_size ≤ n, but got batch_size 60, n 50"),
        (3, {"n": 2.5}, "n must be a whole number"),
        (1e-9, {}, "found no noise up to 1e"),
    ],
)
def test_an_epsilon_that_cannot_be_is_refused(epsilon, changed, words):
    with pytest.raises(ValueError, match=words):
        jbp.Private.for_epsilon(epsilon, 1e-9, 1.0, **({"steps": 10, "batch_size": 10, "n": 50} | changed))


def test_without_the_library_the_extra_is_named_here_too(monkeypatch):

    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ModuleNotFoundError, match=r"jbp\[private\]"):
        jbp.Private.for_epsilon(3.0, 1.7e-5, 1.0, steps=3, batch_size=1, n=100)
