"""How training tells of itself: which part each figure is of, a line anew in a terminal or notebook, few in a log."""

import io
import itertools
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from test_step import LOSS, NET, SGD, X, Y

import jbp
from jbp.train import live


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})


def watched(monkeypatch: pytest.MonkeyPatch, kind: type[io.StringIO]) -> io.StringIO:
    """Standard error of a kind, and a clock that goes on by 0.3 seconds each time it is looked at."""
    made, clock = kind(), itertools.count()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(live.time, "monotonic", lambda: 0.3 * next(clock))
    return made


@pytest.fixture
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is short, however slow the machine is that compiles it."""
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: 0.0))


def shown(text: str) -> list[str]:
    """What a terminal shows one after another in its line."""
    return [part.rstrip() for part in text.replace("\n", "\r").split("\r") if part.strip()]


@pytest.mark.parametrize("kind", [Terminal, Notebook])
def test_a_terminal_and_a_notebook_get_one_line_written_anew(kind, monkeypatch):
    stream = watched(monkeypatch, kind)
    with live.Line() as line:
        line.show("epoch 1/9", "loss 0.1234")
        line.show("epoch 2/9")
    assert shown(stream.getvalue()) == ["epoch 1/9  loss 0.1234", "epoch 2/9"]
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("\n")
    assert stream.getvalue().startswith("\repoch 1/9  loss 0.1234\repoch 2/9             ")  # the old one is wiped out


def test_a_narrow_terminal_loses_the_last_parts_and_no_line_wraps(monkeypatch):
    stream = watched(monkeypatch, Terminal)
    monkeypatch.setattr(live.Line, "_room", lambda self: 24)
    with live.Line() as line:
        line.show("epoch 1/9", "loss 0.1234", "12,345 examples/s")
        line.show("a very long first part of a line")
    assert shown(stream.getvalue()) == ["epoch 1/9  loss 0.1234", "a very long first part o"]


def test_a_log_gets_a_line_after_two_seconds_then_every_ten_and_the_last(monkeypatch):
    stream = watched(monkeypatch, io.StringIO)
    with live.Line() as line:
        for i in range(100):  # 30 seconds and more
            line.show(f"step {i}")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 6" and lines[-1] == "step 99"
    assert 3 <= len(lines) <= 5


def test_a_line_that_does_not_stay_leaves_nothing(monkeypatch):
    stream = watched(monkeypatch, Terminal)
    with live.Line(stays=False) as line:
        line.show("checking 1/2")
    assert stream.getvalue() == "\rchecking 1/2\r" + " " * 12 + "\r"


@pytest.mark.usefixtures("in_no_time")
def test_fit_labels_the_figures_of_each_part(capsys):
    keep: dict[str, Any] = {"epochs": 2, "batch_size": 4, "seed": 0, "validation_data": (X, Y)}
    fit = jbp.fit(NET, LOSS, SGD, (X, Y), metrics={"accuracy": jbp.accuracy}, progress=True, **keep)
    out, err = capsys.readouterr()
    row, (line,) = fit.history[-1], err.splitlines()  # a short run in a log: one line
    figures = f"training loss {row['train_loss']:.4g}  validation loss {row['validation_loss']:.4g}, accuracy "
    assert out == "" and line.startswith(f"epoch 2/2  {figures}{row['validation_accuracy']:.4f}  ")
    assert line.endswith(" examples/s")


@pytest.mark.usefixtures("in_no_time")
def test_fit_without_validation_data_shows_one_kind(capsys):
    fit = jbp.fit(NET, LOSS, SGD, (X, Y), epochs=1, batch_size=4, metrics={"accuracy": jbp.accuracy}, progress=True)
    row, (line,) = fit.history[-1], capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"epoch 1/1  training loss {row['train_loss']:.4g}  training accuracy {row['train_accuracy']:.4f}  "
    )


@pytest.mark.usefixtures("in_no_time")
def test_fit_many_says_that_its_figures_are_means(capsys):
    jbp.fit_many(NET, LOSS, SGD, (X, Y), seeds=(0, 1), epochs=1, batch_size=4, progress=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("epoch 1/1  means of 2 runs:  training loss ")


def test_nothing_is_shown_unasked_and_progress_is_a_bool(capsys):
    jbp.fit(NET, LOSS, SGD, (X, Y), epochs=1, batch_size=4)
    assert capsys.readouterr() == ("", "")
    for wrong in ("yes", 1, None):
        with pytest.raises(ValueError, match="progress must be True or False"):
            jbp.fit(NET, LOSS, SGD, (X, Y), epochs=1, batch_size=4, progress=wrong)  # type: ignore[arg-type]


def test_what_goes_wrong_is_said_below_the_line_and_no_step_leaves_none(monkeypatch):
    stream = watched(monkeypatch, Terminal)

    seen: list[Any] = []

    def stop(event: Any) -> None:
        seen.append(event)
        if len(seen) in (1, 3):
            raise OSError("stopped")

    keep: dict[str, Any] = {"epochs": 1, "batch_size": 4, "chunk_steps": 1, "progress": True, "callbacks": (stop,)}
    with pytest.raises(OSError, match="stopped"):
        jbp.fit(NET, LOSS, SGD, (X, Y), **keep)
    assert "compiling" in stream.getvalue() and stream.getvalue().endswith("\r")
    with pytest.raises(OSError, match="stopped"):
        jbp.fit(NET, LOSS, SGD, (X, Y), **keep)
    assert "training loss" in stream.getvalue() and stream.getvalue().endswith("\n")
