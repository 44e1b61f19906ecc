"""docs/notation.md has every symbol of the lectures, and every jbp name that it gives exists."""

import re
from pathlib import Path

import pytest

import jbp

PAGE = (Path(__file__).parents[1] / "docs" / "notation.md").read_text()
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
SYMBOLS = (
    "x", "x₀ = 1", "w", "W", "b", "s", "z", "net", "θ(s)", "σ", "Sig", "a", "h⁽ˡ⁾", "h(x)", "ŷ", "y_p", "f(x)", "y",
    "t", "e", "C", "Rᵢ", "R", "L", "MSE", "N", "K", "δ", "p̂", "p", "∂C/∂z", "∂C/∂a₃", "∂L/∂yᵢ", "ȳ", "θ′", "η", "ε",
    "α", "β", "θₖ", "l", "θ⁽ⁱ⁾",
)  # fmt: skip


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_every_symbol_of_the_lectures_has_a_row(symbol: str):
    rows = [row for row in ROWS if symbol in row[0].strip().split(", ") or row[0].strip() == symbol]
    assert rows
    for row in rows:
        assert len(row) == 4
        assert re.fullmatch(r"all|[A-E](, [A-E])*", row[1].strip()), row


def test_every_name_exists():
    names = set(re.findall(r"`jbp\.([\w.]+)`", PAGE))
    assert len(names) > 10
    for name in names:
        found = jbp
        for part in name.split("."):
            found = getattr(found, part)
    for loss in ("squared_error", "cross_entropy", "l2_loss", "mean_squared_error", "softmax_cross_entropy"):
        assert f"`{loss}`" in PAGE and hasattr(jbp.losses, loss)
    for pair in ("Outer", "Shift", "Scale", "Stack"):
        assert f"`{pair}`" in PAGE and hasattr(jbp, pair)


def test_it_is_in_the_site():
    assert "notation.md" in (Path(__file__).parents[1] / "mkdocs.yml").read_text()
