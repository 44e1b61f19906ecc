"""Every mutant of mutants.py is caught by the public checks, by the law it names; the right code passes them."""

import ast
import json
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import jax
import mutate
import mutate_page
import mutate_survivors
import pytest
from jax.experimental.compilation_cache import compilation_cache
from mutant_tools import planted
from mutants import CHECKS, MUTANTS

from jbp.check.layer import derivative_alone

KEEP = {"jax_persistent_cache_min_compile_time_secs": 0, "jax_persistent_cache_min_entry_size_bytes": -1}


@pytest.fixture(scope="module", autouse=True)
def each_program_is_compiled_once(tmp_path_factory):
    """A mutant leaves most programs of a check as they were, to the letter: those are compiled for the first only."""
    options = KEEP | {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs"))}
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


OF_STATISTICS = {"h free of δ", "per_example", "norms", "second_moment", "gauss_newton", "kronecker"}
"""The laws that `derivative_alone` leaves out and that a mutant may name."""


@cache
def right(check, subject):
    return CHECKS[check](subject)


def name(mutant):
    return f"{mutant.where}: {mutant.name}"


def test_there_are_enough_and_no_two_of_one_name():
    assert len(MUTANTS) >= 40 and len({name(m) for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.soak
@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_the_mutant_is_caught_and_the_right_code_is_not(mutant):
    with nullcontext() if mutant.law in OF_STATISTICS else derivative_alone():
        right(mutant.check, mutant.right).raise_if_failed()
        with planted(mutant):
            report = CHECKS[mutant.check](mutant.wrong)
    assert report.failures and report.failures[0].law == mutant.law, f"{name(mutant)}: {report}"


SAVED = json.loads((mutate_page.RESULTS / "mutants.json").read_text())


def test_the_saved_run_of_one_change_at_a_time_is_whole_and_explained():
    verdicts = [m["verdict"] for m in SAVED["mutants"]]
    counted = {v: verdicts.count(v) for v in ("caught", "held", "survived")}
    assert {k: SAVED["summary"][k] for k in counted} == counted
    assert SAVED["summary"]["made"] == sum(counted.values()) == len(verdicts) >= 300
    assert all(m["verdict"] == "caught" or m["reason"] for m in SAVED["mutants"])
    assert all(("test" in m) == (m["verdict"] == "held") for m in SAVED["mutants"])


@pytest.mark.soak
def test_the_saved_run_is_of_the_mutants_that_the_code_makes_today():
    """Nothing is run: each changed place, what stood there, and what was put in its place."""
    saved, today = [mutate.record(m) for m in SAVED["mutants"]], [mutate.record(m) for m in mutate.named().values()]
    assert saved == today, f"make mutants: {sorted(set(saved) ^ set(today))[:10]}"
    assert not mutate.unreached()


def test_each_reason_belongs_to_a_mutant_and_each_test_that_holds_one_exists():
    keys = {mutate_survivors.key(m) for m in mutate.named().values()}
    assert keys >= mutate_survivors.EQUIVALENT.keys() | mutate_survivors.HELD.keys()
    assert not mutate_survivors.EQUIVALENT.keys() & mutate_survivors.HELD.keys()
    for _, test in mutate_survivors.HELD.values():
        file, name = test.split("[")[0].split("::")
        functions = ast.parse((Path(mutate.__file__).parents[2] / file).read_text()).body
        assert name in {f.name for f in functions if isinstance(f, ast.FunctionDef)}, test


def test_the_page_is_made_of_the_saved_results():
    assert mutate_page.PAGE.read_text() == mutate_page.page(), "python tests/mutation/mutate_page.py writes it"
