"""Deprecated, for this version: `fit_many` and its results are in `jbp.train`."""

from typing import Any

from jbp import train
from jbp.arguments import renamed


def __getattr__(name: str) -> Any:
    found = getattr(train, name)
    renamed(f"jbp.many.{name}", f"jbp.train.{name}")
    return found
