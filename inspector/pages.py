"""Write the pages that the browser's tests open, into a folder: those of the documentation, and awkward ones."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jbp
from jbp.inspect import page, scene

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cube(jbp.Layer):
    """y = x³: a layer that the page does not know."""

    def init(self, key: Any, shape: Any) -> Any:
        """No parameters."""
        return (), shape

    def forward(self, params: Any, x: Any, key: Any) -> Any:
        """x³."""
        return x**3, x

    def backward(self, params: Any, saved: Any, delta: Any) -> Any:
        """3x² δ."""
        return 3 * saved**2 * delta, ()

    def formulas(self) -> tuple[str, str]:
        """Both."""
        return "y = x³", "δ_x = 3x²∘δ"


def awkward() -> dict[str, str]:
    """By name: a net with a layer of one's own, a large one, files that are damaged, foreign, empty."""
    random, loss = np.random.default_rng(0), jbp.losses.l2_loss
    own = jbp.serial(jbp.Dense(3), Cube(), jbp.Dense(2))
    large = jbp.serial(jbp.Dense(300), jbp.relu, jbp.Dense(10))
    found = {}
    for name, net, shape, outputs in (("own", own, (2,), 2), ("large", large, (784,), 10)):
        params, _ = net.init(jax.random.key(0), shape)
        n = 3 if name == "own" else 37  # of so many only one is saved whole
        x, y = random.normal(size=(n, *shape)), random.normal(size=(n, outputs))
        found[name] = page([scene(net, loss, params, x, y, title=name)])
    good = found["own"]
    found["damaged"] = good.replace('"f64":"', '"f64":"AAAA', 1)
    found["foreign"] = good.replace('"format":"jbp-scene-1"', '"format":"jbp-scene-0"')
    found["empty"] = (ROOT / "jbp" / "inspect" / "page.html").read_text(encoding="utf-8")
    return found


def main(folder: Path) -> None:
    """Write them all."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = awkward()
    for path in [*(ROOT / "docs" / "scenes").glob("*.json.gz"), ROOT / "inspector/tests/scenes/not_finite.json.gz"]:
        pages[path.name.removesuffix(".json.gz")] = page(json.loads(gzip.decompress(path.read_bytes())))
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
