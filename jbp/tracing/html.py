"""A trace as HTML: tables, and large arrays as heat maps; nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable
from html import escape

import numpy as np

from jbp.tracing.pictures import planes, summary

_CELL = "text-align:left;vertical-align:top;padding:2px 10px;border:none"
_MOST, _SIDE, _PLANE = 64, 8, 16


def page(heads: Iterable[str], tables: Iterable[tuple[str, list[tuple[str, ...]]]]) -> str:
    """A title and a table for each step; the last cell of a row is HTML already, the others are text."""
    parts = []
    top = "".join(f'<th style="{_CELL}">{escape(head)}</th>' for head in heads)
    for title, rows in tables:
        lines = []
        for *words, numbers in rows:
            cells = "".join(f'<td style="{_CELL}">{escape(word)}</td>' for word in words)
            rule = ' style="border-top:1px solid #ccc"' if words[0] else ""
            lines.append(f'<tr{rule}>{cells}<td style="{_CELL}">{numbers}</td></tr>')
        body = "".join(lines)
        parts.append(
            f'<h4 style="margin:12px 0 4px">{escape(title)}</h4>'
            f'<table style="border-collapse:collapse"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
        )
    return "".join(parts)


def numbers(text: str) -> str:
    """Numbers as they are printed."""
    return f'<pre style="margin:0;background:none">{escape(text)}</pre>'


def heat_map(value: np.ndarray) -> str:
    """A heat map: blue below 0, white at 0, red above, as dark as the number is large; its range below it. Of an image
    with channels the first planes, with grey between."""
    parts = planes(value, _MOST, _MOST, _PLANE)
    between = np.full((len(parts[0]), 1), np.nan)
    fields = np.concatenate([part for plane in parts for part in (between, plane)][1:], 1)
    largest = float(np.abs(fields[np.isfinite(fields)]).max(initial=0.0)) or 1.0
    part = np.clip(np.nan_to_num(fields / largest), -1, 1)
    pale = np.rint(255 * (1 - np.abs(part))).astype(np.uint8)
    full = np.full_like(pale, 255)
    colours = np.stack([np.where(part < 0, pale, full), pale, np.where(part > 0, pale, full)], -1)
    colours[~np.isfinite(fields)] = 128
    height, width = (n * _SIDE for n in fields.shape)
    source = base64.b64encode(_png(colours)).decode()
    words = escape(summary(value))
    style = f"width:{width}px;height:{height}px;max-width:none;image-rendering:pixelated;border:1px solid #ccc;margin:0"
    return f'<img alt="{words}" style="{style}" src="data:image/png;base64,{source}"><br><small>{words}</small>'


def _png(colours: np.ndarray) -> bytes:
    """A PNG file of an image [height, width, 3] of bytes. Source: the PNG specification, W3C, 2003."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = colours.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in colours)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines, 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
