"""A run's figures in the files of other programs, read back by those programs' own readers."""

import json
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from jbp import cli
from jbp.cli.parser import Failed
from jbp.train.watch import scalars

OPTIONS: Any = {"net": "8 relu", "epochs": 2, "quiet": True, "watch": 20, "batch_size": 64}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore")  # its packages' own
def test_tensorboard_reads_every_figure():
    folder = cli.Train(**OPTIONS, log="tensorboard", out="run")().folder
    assert events(folder / "tensorboard") == expected(folder)
    folder = cli.Train(**(OPTIONS | {"epochs": 1}), log="tensorboard", out="run", overwrite=True)().folder
    assert events(folder / "tensorboard") == expected(folder)  # and none of the run before


def expected(folder: Path) -> dict[tuple[str, int], Any]:
    return {
        (name.replace(" #", "/"), row["step"]): pytest.approx(value, rel=1e-6)  # it keeps float32
        for row in rows_of(folder)
        for name, value in scalars(row).items()
    }


def events(folder: Path) -> dict[tuple[str, int], float]:
    reader = import_module("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {(tag, event.step): event.value for tag in found.Tags()["scalars"] for event in found.Scalars(tag)}


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_keeps_every_figure_offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = cli.Train(**OPTIONS, log="wandb", out="run")().folder
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    messages, found = import_module("wandb.proto.wandb_internal_pb2"), {}
    for data in records(path.read_bytes()):
        record = messages.Record.FromString(data)
        items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        found |= {(name, record.history.step.num): value for name, value in items.items() if not name.startswith("_")}
    wanted = {
        (name, row["step"]): pytest.approx(value, rel=1e-12)
        for row in rows_of(folder)
        for name, value in scalars(row).items()
    }
    assert found == wanted


def records(content: bytes) -> list[bytes]:
    """Those of a file of Weights & Biases: a log of LevelDB's, in blocks of 32 kB, after seven bytes of its own.

    Source: leveldb/doc/log_format.md.
    """
    found, at, begun = [], 7, b""
    while at + 7 <= len(content):
        if (left := -at % 32768) < 7 and left:
            at += left  # too little for a head: zeros
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        begun = (begun if kind in (3, 4) else b"") + content[
            at + 7 : at + 7 + size
        ]  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            found.append(begun)
        at += 7 + size
    return found


@pytest.mark.parametrize(("log", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_package_that_is_missing_shows_at_once(log: str, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(Failed, match=rf"log {log} needs {package}: pip install 'jbp\[{log}\]'"):
        cli.Train(**OPTIONS, log=log, out="run")()
    assert not Path("run").exists()
