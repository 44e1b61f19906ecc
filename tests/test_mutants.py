"""Every mutant of tests/mutants.py is caught by the public checks, by the law it names; the right code passes them."""

from functools import cache

import pytest
from mutant_tools import planted
from mutants import CHECKS, MUTANTS


@cache
def right(check, subject):
    return CHECKS[check](subject)


def name(mutant):
    return f"{mutant.where}: {mutant.name}"


def test_there_are_enough_and_no_two_of_one_name():
    assert len(MUTANTS) >= 40 and len({name(m) for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_the_mutant_is_caught_and_the_right_code_is_not(mutant):
    right(mutant.check, mutant.right).raise_if_failed()
    with planted(mutant):
        report = CHECKS[mutant.check](mutant.wrong)
    assert report.failures and report.failures[0].law == mutant.law, f"{name(mutant)}: {report}"
