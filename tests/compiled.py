"""What one device of a mesh does, counted in the compiled program, with the loops' trip counts: matrix products,
convolutions, collectives and the bytes they hand over.

Loops whose bound is known only when they run, as that of `fit` over its steps, count once.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
_OP = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclass
class Counted:
    """What there is in a program."""

    flops: float = 0.0
    """Of products and convolutions, multiply and add apart."""
    collectives: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    """Of what the collectives answer with, on one device."""

    @property
    def total(self) -> int:
        """All collectives."""
        return sum(self.collectives.values())

    def add(self, other: "Counted", times: int) -> None:
        """The other, so many times over."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for name, n in other.collectives.items():
            self.collectives[name] += times * n


def counted(compiled: Any) -> Counted:
    """Of what `jax.jit(f).lower(...).compile()` made."""
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in compiled.as_text().splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            name = head[2]
            entry = name if head[1] else entry
            bodies[name] = []
        elif name and line.startswith("}"):
            name = ""
        elif name:
            bodies[name].append(line)
    memo: dict[str, Counted] = {}

    def of(name: str) -> Counted:
        if name not in memo:
            memo[name] = _body(bodies[name], of)
        return memo[name]

    return of(entry)


def _body(lines: list[str], of: Any) -> Counted:
    found, shapes = Counted(), {}
    for line in lines:
        match = _OP.match(line)
        if not match:
            continue
        name, kind, op, rest = match.groups()
        shapes[name] = kind
        base = op.removesuffix("-start")
        if base in COLLECTIVES:
            found.collectives[base] += 1
            found.bytes += sum(_BYTES[t] * _size(dims) for t, dims in _SHAPE.findall(kind))
        elif op == "dot":
            lhs = _dims(shapes[re.findall(r"%([\w.\-]+)", rest)[0]])
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
            axes = [int(i) for i in contracted[1].split(",") if i] if contracted else []
            found.flops += 2 * _size(_SHAPE.findall(kind)[0][1]) * math.prod(lhs[i] for i in axes)
        elif op == "convolution":
            found.flops += _convolution(kind, shapes, rest)
        elif op == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
            body = re.search(r"body=%?([\w.\-]+)", rest)
            assert body is not None
            found.add(of(body[1]), int(trips[1]) if trips else 1)
        elif op in ("fusion", "call", "conditional", "async-start"):
            for inner in re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", rest):
                found.add(of(inner), 1)
    return found


def _convolution(kind: str, shapes: dict[str, str], rest: str) -> float:
    """Multiply-adds times 2, where the kernel meets padding, or a hole between numbers that are spread, too."""
    kernel = _dims(shapes[re.findall(r"%([\w.\-]+)", rest)[1]])
    labels = re.search(r"dim_labels=\w+_(\w+)->", rest)
    assert labels is not None
    taps = math.prod(size for size, letter in zip(kernel, labels[1], strict=True) if letter != "o")
    return 2.0 * _size(_SHAPE.findall(kind)[0][1]) * taps


def _dims(kind: str) -> list[int]:
    return [int(v) for v in _SHAPE.findall(kind)[0][1].split(",") if v]


def _size(dims: str) -> int:
    return math.prod(int(v) for v in dims.split(",") if v)
