"""Deprecated, for this version: `tied` is in `jbp.combine`."""

from typing import Any

from jbp import combine
from jbp.arguments import renamed


def __getattr__(name: str) -> Any:
    found = getattr(combine, name)
    renamed(f"jbp.ties.{name}", f"jbp.combine.{name}")
    return found
