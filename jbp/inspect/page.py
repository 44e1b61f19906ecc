"""A page: one self-contained HTML file with its scenes in it; no network and no server."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jbp.inspect.scene import Update, scene

_PLACE = '<script id="scenes" type="application/json">null</script>'


class Page(str):
    """The text of an HTML file; a notebook shows it in a frame."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """The page in a frame of its own."""
        style = "width:100%;height:820px;border:1px solid #8884;border-radius:8px"
        return f'<iframe title="jbp inspect" style="{style}" srcdoc="{html.escape(self)}"></iframe>'


def page(scenes: Sequence[dict[str, Any]]) -> Page:
    """The page that shows these scenes, as `scene` makes them; the first one at first.

    Raises: ValueError if there is none.
    """
    if not scenes:
        raise ValueError("a page needs at least one scene, as jbp.inspect.scene makes them")
    template = (files("jbp.inspect") / "page.html").read_text(encoding="utf-8")
    head, found, tail = template.partition(_PLACE)
    assert found, "page.html has lost its place for scenes"
    return Page(head + _PLACE.replace("null", embedded(list(scenes))) + tail)


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element, whatever texts are in it.

    Raises: ValueError for NaN or infinities outside arrays, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def of_trace(subject: tuple[Any, ...], learning_rate: Any, momentum: Any, velocity: Any) -> Page:
    """The page of a trace: its one example (net, loss, params, x [...], y [...]) as a batch of one."""
    net, loss, params, x, y = subject
    rate = None if learning_rate is None else float(learning_rate)
    update = Update(rate=0.1 if rate is None else rate, momentum=float(momentum), velocity=velocity)
    return page([scene(net, loss, params, x[None], y[None], update=update)])


__all__ = ["Page", "embedded", "of_trace", "page"]
