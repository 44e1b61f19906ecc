"""Runs that are killed, told to stop, damaged, fed bad batches and left without disk, as survive.py tries them."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT / "experiments" / "measurements")]

import common  # noqa: E402
import survive  # noqa: E402
from survive import corrupt as corrupt  # noqa: E402


@pytest.fixture
def paths(monkeypatch):
    """The processes that it starts find this jbp."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))


def test_the_saved_result_is_of_everything_and_stands_in_the_page():
    rows = json.loads(survive.RESULT.read_text())["rows"]
    assert {row["section"] for row in rows} == set(survive.SECTIONS)
    kills = {row["what"]: row for row in rows if row["section"] == "kills"}
    assert kills.keys() == survive.KINDS.keys()
    assert kills["one long run"]["done"] == 25 and all(
        row["done"] == 5 or "long" in row["what"] for row in kills.values()
    )
    assert sum(row["saving"] for row in kills.values()) >= 5
    assert all(row["steps executed, of the run's"] <= 1.5 for row in kills.values())
    assert sum(row["done"] for row in rows if row["section"] == "corruptions") == 200
    assert all(row["lost"] == "nothing" for row in rows)
    page = survive.PAGE.read_text()
    assert survive.with_table(page, rows) == page


def test_a_bad_batch_is_named_and_a_mended_stream_gone_on_with(tmp_path):
    rows = survive.bad_batches(12, tmp_path)
    assert [row.done for row in rows] == [2] * 7


@pytest.mark.soak
def test_two_hundred_damaged_files_never_resume_wrongly(tmp_path):
    rows = survive.corruptions(200, tmp_path)
    assert {row.what for row in rows} == {"flipped", "cut off", "zeroed", "deleted", "both checkpoints"}


@pytest.mark.soak
def test_two_hundred_bad_batches_lose_nothing(tmp_path):
    assert all(row.done == 40 for row in survive.bad_batches(240, tmp_path))


@pytest.mark.soak
@pytest.mark.parametrize("kind", survive.KINDS)
def test_killed_five_times_it_ends_with_the_same_bits(kind, tmp_path, paths):
    row = survive.kills(kind, 5, survive.KINDS[kind][0] // 2, tmp_path, np.random.default_rng(0))
    assert row.done == 5 and row.more["the same bits"]


@pytest.mark.soak
def test_signals_are_answered_with_their_status(tmp_path, paths):
    assert [row.more["status"] for row in survive.signals(tmp_path)] == [143, 143, 130, 130]


@pytest.mark.soak
def test_a_full_disk_loses_nothing(tmp_path, paths):
    (row,) = survive.full_disks(2, tmp_path)
    assert re.fullmatch("nothing|not tried: .*", row.lost) and row.done == (0 if "not tried" in row.lost else 2)


def test_what_does_not_hold_is_an_error():
    with pytest.raises(common.ClaimFailed, match="no <!-- what was lost -->"):
        survive.with_table("a page without comments", [])
