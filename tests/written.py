"""Small tables that a test writes, trains on and predicts from, in the folder that it is in."""

import csv
import io
from pathlib import Path

import numpy as np

from jbp import cli

RNG = np.random.default_rng(0)
SMALL = {"net": "16 relu", "epochs": 20, "batch_size": 8, "quiet": True}


def write(name, head, *columns, delimiter=","):
    rows = [delimiter.join(map(str, row)) for row in zip(*columns, strict=True)]
    Path(name).write_text("\n".join([delimiter.join(head), *rows]) + "\n")
    return name


def trained(name, target, **options):
    return cli.Train(data=name, target=target, out="run", overwrite=True, **SMALL | options)()


def predicted(capsys, run, name, *words):
    capsys.readouterr()
    assert cli.main(["predict", str(run), name, *words]) == 0
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))


def says(capsys, *words):
    """The one line of a command that fails."""
    capsys.readouterr()
    assert cli.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err
