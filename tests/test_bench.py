"""The benchmark: what counts as met and as a loss, that every section runs, and that it says so without a checkout."""

import importlib
import json
import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jbp import cli
from jbp.cli import bench

SUITE = Path(__file__).parents[1] / "experiments" / "bench" / "suite.py"


@pytest.fixture(scope="module")
def suite():
    before = list(sys.path)
    found = runpy.run_path(str(SUITE))
    importlib.import_module("step")
    yield found
    sys.path[:] = before


@pytest.fixture(scope="module")
def harness(suite):
    return suite["harness"]


@pytest.fixture
def as_users_run_it():
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def test_a_target_is_met_by_the_median_or_where_it_says_so_by_the_range(harness):
    values = np.array([0.9] * 2 + [1.1] * 17 + [1.2] * 2)
    assert harness.timed("time", values, 1.0).met
    assert not harness.timed("time", values, 1.0, reaches=False).met
    assert not harness.timed("time", values, 1.5, "higher").met
    assert harness.timed("time", values).met is None
    assert harness.counted("FLOPs", 1.0051, 1.005).met is False
    assert harness.missing("PyTorch").met is None, "a peer that is missing is no win"
    assert str(harness.missing("PyTorch")) == "missing"
    assert str(harness.counted("FLOPs", 1.01, 1.005)) == "1.01 !"


def test_contenders_run_in_turn_and_every_other_round_in_the_opposite_order(harness):
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name) or time.sleep(3e-3)) for name in "abc"}
    times = harness.in_turn(runs, rounds=4, warm=1)
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 4)
    changes = [name for name, before in zip(order[3:], order[2:], strict=False) if name != before]
    assert "".join(changes) == "babcbabc", "what ends a round begins the next"


def rows(harness: Any, **figures: float) -> list[Any]:
    made = [harness.counted("FLOPs", figures.get("flops", 1.0)),
            harness.counted("bytes", figures.get("bytes", 100.0), better="higher"),
            harness.counted("theirs", figures.get("theirs", 1.0), better=None),
            harness.timed("time", figures.get("time", 1.0) * np.linspace(0.9, 1.1, 30))]  # fmt: skip
    return [harness.Row("a", tuple(made))]


def test_only_a_counted_loss_of_over_ten_percent_counts(harness):
    def changed(**figures: float) -> list[str]:
        return harness.changes(rows(harness), rows(harness, **figures))

    assert changed() == []
    assert changed(flops=1.05) == ["a, FLOPs: 1 -> 1.05"]
    assert changed(flops=1.2) == ["LOSS a, FLOPs: 1 -> 1.2"]
    assert changed(flops=0.5) == ["a, FLOPs: 1 -> 0.5"]
    assert changed(bytes=50) == ["LOSS a, bytes: 100 -> 50"]  # of which more is better
    assert changed(bytes=150) == ["a, bytes: 100 -> 150"]
    assert changed(theirs=2.0) == ["a, theirs: 1 -> 2"]
    assert changed(time=1.1) == []  # within noise
    assert changed(time=3.0) == ["a, time: 1 -> 3"]


def test_rows_survive_json_and_show_what_is_missed(harness):
    row = harness.Row("a", (harness.counted("FLOPs", 2, 1.005), harness.missing("PyTorch")), {"rounds": 3})
    again = harness.from_json(json.loads(json.dumps(harness.to_json([row]))))
    assert again == [row]
    assert harness.markdown(again).splitlines()[-1] == "| a | 2 ! | missing |"
    assert harness.targets(again) == ["- FLOPs, ≤ 1.005: 0 of 1; missed: a: 2"]


def test_what_is_no_longer_measured_is_said(harness):
    (row,) = rows(harness)
    assert harness.changes([row], []) == ["a: not measured now"]
    assert harness.changes([row], [harness.Row("a", row.figures[1:])]) == ["LOSS a, FLOPs: not measured now"]


def test_targets_say_how_they_are_judged_and_what_was_not_measured(harness):
    fast, slow = (harness.timed("time", scale * np.linspace(0.9, 1.1, 30), 1.0) for scale in (1.05, 1.5))
    made = [harness.Row("a", (fast,)), harness.Row("b", (slow,)), harness.Row("c", (harness.missing("time"),))]
    (line,) = harness.targets(made)
    assert line == f"- time, the range reaches ≤ 1: 1 of 2; missed: b: {slow}".removesuffix(" !") + "; 1 not measured"


def test_the_saved_results_are_what_the_page_shows(suite, harness):
    for path in suite["kept"]():
        result = json.loads(path.read_text())
        assert result["section"] in path.stem and result["size"] in ("bench", "full")
        assert harness.from_json(result["rows"])
    assert all(suite["saved"](section).exists() for section in suite["SECTIONS"])
    assert all(suite["saved"](section, True).exists() for section in suite["MORE_IN_FULL"])
    assert not re.search(r"\{\w+ \d\}", suite["missed"]()), "a figure that is not filled in"
    assert suite["SECTIONS"] == bench.SECTIONS
    assert suite["page"]() == suite["PAGE"].read_text(), "make bench ARGS=--page"
    assert suite["summary"]() in suite["README"].read_text(), "make bench ARGS=--page"
    assert suite["talked"]() in suite["LANGUAGE"].read_text(), "make bench ARGS=--page"


def test_every_net_of_the_step_is_there(suite):
    names = [make().name for make in sys.modules["models"].STEPS]
    assert len(set(names)) == len(names) == 11
    assert any("repeat of 64" in name for name in names)


def test_contenders_that_do_not_compute_the_same_are_refused(harness):
    with pytest.raises(AssertionError, match="not the same loss"):
        harness.same(1.0, 1.01, "a net")


def test_the_script_for_an_accelerator_keeps_every_row_and_says_what_failed(
    tmp_path, monkeypatch, capsys, suite, harness
):
    accelerator = importlib.import_module("accelerator")
    parts = [name for name, _ in accelerator.parts(False, accelerator.Torch())]
    assert len(set(parts)) == len(parts) > 20
    out = tmp_path / "found.json"

    def measured(value: float, target: float | None = None) -> Any:
        return lambda: harness.Row("right: a", (harness.counted("gradient", value, target),))

    def breaks() -> Any:
        assert [row["name"] for row in json.loads(out.read_text())["rows"]] == ["right: a"]
        raise RuntimeError("of the device")

    monkeypatch.setattr(accelerator, "parts", lambda quick, torch: [("right: a", measured(0.0)), ("step: b", breaks)])
    assert accelerator.main(["--quick", "--out", str(out)]) == 1
    found = json.loads(out.read_text())
    assert found["failed"] == ["step: b"]
    assert harness.from_json(found["rows"])[1]["jbp, ms"].note == "failed: RuntimeError"
    assert "failed: step: b" in capsys.readouterr().out
    monkeypatch.setattr(accelerator, "parts", lambda quick, torch: [("right: a", measured(1.0, 0.5))])
    assert accelerator.main(["--quick"]) == 1, "a wrong gradient"
    assert accelerator.main(["--quick", "--minutes", "-1", "--out", str(out)]) == 0
    (row,) = harness.from_json(json.loads(out.read_text())["rows"])
    assert row["jbp, ms"].note == "no time was left"


def test_twenty_lines_on_with_logs_cost_what_jbp_costs(suite, as_users_run_it):
    found = importlib.import_module("per_example_logs").main("64-48-10", 16, 1)
    if jax.__version_info__ < (0, 12):
        assert found == {"why": f"needs JAX 0.12, here is {jax.__version__}"}
        return
    of = {what: [found[what][way]["flops"] for way in ("jbp", "with_logs")] for what in ("norms", "both", "clipped")}
    forward, back = 64 * 48 + 48 * 10, 48 * 10  # multiply-adds of an example; gradients take as many as forward
    assert of["norms"] == pytest.approx([(forward + back) / (2 * forward + back)] * 2)
    assert of["both"] == of["clipped"] == [1, 1]


def test_twenty_lines_on_with_logs_say_of_a_gpt_what_jbp_says(suite, as_users_run_it):
    logs = importlib.import_module("sequences_logs")
    found = logs.main(3, 1, context=5, layers=2, heads=2, width=6, words=7)  # which compares them
    if jax.__version_info__ < (0, 12):
        assert found == {"why": f"needs JAX 0.12, here is {jax.__version__}"}
        return
    assert set(found) == {"jax", "norms", "clipped", "moments", "kronecker"}
    with pytest.raises(AssertionError, match="norms"):
        logs.check("norms", np.ones(3), np.ones(3) + 0.01)


def test_the_command(tmp_path, monkeypatch, capsys, suite, harness, as_users_run_it):
    step = sys.modules["step"]
    row = step.measure(step.STEPS[0](), 1)
    old = {"section": "step", "rows": harness.to_json([harness.Row(row.name, (harness.counted("FLOPs", 0.1),))])}
    (tmp_path / "old.json").write_text(json.dumps(old))
    monkeypatch.setattr(step, "STEPS", step.STEPS[:1])
    assert cli.main(["bench", "step", "--quick", "--compare", str(tmp_path / "old.json")]) == 1
    out, err = capsys.readouterr()
    assert "64-32-10 relu" in out
    assert "LOSS 64-32-10 relu, batch 32, FLOPs: 0.1 -> " in out
    assert err.endswith("jbp: error: a counted figure became worse by more than 10 %\n")
    assert cli.main(["bench", "steps"]) == 2
    assert "did you mean" in capsys.readouterr().err.lower()
    assert cli.main(["bench", "--compare", "nothing.json"]) == 2
    assert cli.main(["bench", "--quick", "--full"]) == 2
    capsys.readouterr()
    for text in ("[]", "{}", "no json", json.dumps(old | {"section": "memory"})):
        (tmp_path / "wrong.json").write_text(text)
        assert cli.main(["bench", "step", "--quick", "--compare", str(tmp_path / "wrong.json")]) == 2
        assert "wrong.json is " in capsys.readouterr().err
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert cli.main(["bench"]) == 2
    assert "from a checkout" in capsys.readouterr().err
