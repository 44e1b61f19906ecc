"""What the README and the pages show runs as it stands, and prints what they say it prints.

A fence of `python` or `sh` is run, all of a page in one folder, its Python in one namespace; the fence of `text` after
it is what it prints. A first line `# name.py` puts the block into that file too. A comment «not run: why» before a
fence leaves it out. In the output `…` stands for anything on a line, and alone on a line for any lines; a number may be
off by one in its last printed digit.
"""

import contextlib
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jbp import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (
    "README.md", "docs/install.md", "docs/first_net.md", "docs/pairs.md", "docs/see_delta.md", "docs/inspect.md",
    "docs/your_table.md", "docs/your_layer.md", "docs/your_loss.md", "docs/private.md", "docs/seeds.md",
    "docs/inside.md", "docs/surviving.md", "docs/larger_than_memory.md", "docs/several_devices.md",
    "docs/several_hosts.md", "docs/convolution.md", "docs/net_line.md", "docs/language.md", "docs/plan.md",
)  # fmt: skip

FENCE = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
NUMBER = r"[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


@dataclass(frozen=True)
class Block:
    """A fence: its kind, where it stands, why it is not run if it is not, and what it is said to print."""

    kind: str
    text: str
    line: int
    why: str | None
    output: str | None


def blocks(page: str) -> list[Block]:
    """The fences that are code, each with the fence of text after it."""
    found = [*FENCE.finditer(page), None]
    out = []
    for fence, after in pairwise(found):
        assert fence is not None
        if fence["kind"] != "text":
            output = after["text"] if after and after["kind"] == "text" else None
            out.append(
                Block(fence["kind"], fence["text"], page[: fence.start("text")].count("\n"), fence["why"], output)
            )
    return out


def same(shown: str, printed: str) -> bool:
    """Whether a text is what was printed: word for word, spaces aside, and number by number."""
    lines = [line.split() for line in shown.splitlines() if line.strip()]
    pattern = "".join(r"(?:.*\n)*?" if line == ["…"] else r"\s+".join(map(_words, line)) + "\n" for line in lines)
    found = re.fullmatch(pattern, "".join(f"{line.strip()}\n" for line in printed.splitlines() if line.strip()))
    numbers = [number for line in lines if line != ["…"] for word in line for number in re.findall(NUMBER, word)]
    return found is not None and all(map(_close, numbers, found.groups()))


def _words(word: str) -> str:
    parts = re.split(f"({NUMBER})", word)
    return "".join(f"({NUMBER})" if i % 2 else re.escape(part).replace("…", r"[^\n]*?") for i, part in enumerate(parts))


def _close(shown: str, printed: str) -> bool:
    shown, printed = (text.replace("−", "-") for text in (shown, printed))
    digits, _, power = shown.partition("e")
    unit = 10.0 ** (int(power or 0) - len(digits.partition(".")[2])) if "." in digits or power else 0.0
    return abs(float(shown) - float(printed)) <= 1.0001 * unit


@pytest.mark.parametrize(
    "shown, printed, right",
    [
        ("accuracy 0.95", "accuracy  0.954", True),
        ("accuracy 0.95", "accuracy 0.9601\n", False),  # off by more than one in the last digit shown
        ("accuracy 0.95", "loss 0.95", False),
        ("10 epochs", "11 epochs", False),  # whole numbers are exact
        ("10 epochs", "10 epochs\nand more", False),
        ("1.2e-05 off", "1.23e-05 off", True),
        ("1.2e-05 off", "1.4e-05 off", False),
        ("a … 3\n…\nend", "a b 1 3\nx\ny\nend", True),
        ("a … 3\n…\nend", "a b 1 4\nx\ny\nend", False),
        ("3 of 128", "3 of 1280", False),
    ],
)
def test_the_comparison_sees_a_wrong_word_and_a_wrong_number(shown, printed, right):
    assert same(shown, printed) is right


def test_a_page_that_has_rotted_is_seen(tmp_path, monkeypatch, capsys):
    page = "```python\nprint(1 + 1)\n```\n\n```text\n{}\n```\n"
    run_page(page.format(2), tmp_path, monkeypatch, capsys)
    with pytest.raises(AssertionError, match="printed"):
        run_page(page.format(3), tmp_path, monkeypatch, capsys)
    with pytest.raises(AssertionError, match="prints nothing"):
        run_page("```python\nx = 1\n```\n", tmp_path, monkeypatch, capsys)
    with pytest.raises(AssertionError, match="knows python and sh"):
        run_page("```ruby\nputs 1\n```\n", tmp_path, monkeypatch, capsys)


def run_page(page: str, folder: Path, monkeypatch: Any, capsys: Any, overview: bool = False) -> None:
    """Run every block of a page in a folder, as a reader with JAX's defaults does; an overview need not show what its
    commands print."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("COLUMNS", "100")
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.ExitStack() as defaults:
        defaults.enter_context(jax.enable_x64(False))
        defaults.enter_context(jax.numpy_dtype_promotion("standard"))
        defaults.enter_context(jax.numpy_rank_promotion("allow"))
        defaults.enter_context(np.printoptions())
        for block in blocks(page):
            where = f"the block at line {block.line + 1}:\n{block.text}"
            assert block.kind in ("python", "sh"), f"this test knows python and sh, not {block.kind!r}: {where}"
            if block.why:
                continue
            capsys.readouterr()
            if block.kind == "python":
                named = re.match(r"# (\w+\.py)\n", block.text)
                if named:
                    Path(named[1]).write_text(block.text)
                exec(compile("\n" * block.line + block.text, "page", "exec"), names)
            else:
                for line in block.text.replace("\\\n", " ").splitlines():
                    run_line(shlex.split(line, comments=True))
            printed = capsys.readouterr().out
            assert printed.strip(), f"it prints nothing, {where}"
            if block.output is None and overview and block.kind == "sh":
                continue
            assert block.output is not None, f"the page does not show what is printed:\n{printed}\nby {where}"
            assert same(block.output, printed), f"printed\n{printed}\nand not\n{block.output}\nby {where}"


def run_line(words: list[str]) -> None:
    """One line of a shell: jbp and python on a file; nothing else is written on the pages."""
    match words:
        case []:
            pass
        case ["jbp", *options] | ["python", "-m", "jbp", *options]:
            try:
                status = cli.main(options)
            except SystemExit as end:  # --version
                status = end.code
            assert status == 0, words
        case ["python", file, *options] if file.endswith(".py"):
            before, sys.argv = sys.argv, [file, *options]
            try:
                runpy.run_path(file, run_name="__main__")
            finally:
                sys.argv = before
        case _:
            raise AssertionError(f"this test runs jbp and python FILE.py alone, not {shlex.join(words)}")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_and_prints_what_it_shows(name, tmp_path, monkeypatch, capsys):
    page = (ROOT / name).read_text()
    assert [block for block in blocks(page) if not block.why]
    run_page(page, tmp_path, monkeypatch, capsys, overview=name == "README.md")


def test_the_pages_are_those_of_the_site():
    """Every page is in the navigation; the pages that are run are its first part, in this order."""
    navigation = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(navigation) == sorted(path.name for path in DOCS.glob("*.md"))
    assert [f"docs/{name}" for name in navigation if f"docs/{name}" in PAGES] == [*PAGES[1:]]


def test_files_and_targets_that_pages_name_exist():
    for name in {*PAGES, *(f"docs/{path.name}" for path in DOCS.glob("*.md"))}:
        page = (ROOT / name).read_text()
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page):
            made = re.sub(r"^scenes/(\w+)\.html$", r"scenes/\1.json.gz", target)  # a page that docs/pictures.py makes
            assert ((ROOT / name).parent / made).exists(), f"{name}: {target}"
        for target in re.findall(r"\bmake (?:PYTHON=\S+ )?([a-z]+)\b", "\n".join(re.findall(r"`+[^`]*`+", page))):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(), f"{name}: make {target}"


def test_a_warning_of_the_site_fails_its_build():
    """With --quiet, --strict counts no warning: dead links and pages that are missing went unseen."""
    (line,) = re.findall(r"^\t.*mkdocs build.*$", (ROOT / "Makefile").read_text(), re.M)
    assert "--strict" in line and "--quiet" not in line and "-q" not in line.split()


def test_every_claim_is_in_the_gallery_with_its_picture():
    sys.path[:0] = [str(ROOT / "experiments"), str(ROOT / "experiments" / "claims")]
    import all as every

    gallery = (DOCS / "gallery.md").read_text()
    shown = re.findall(r"^!\[[^]]+\]\(\.\./experiments/results/(\w+)\.png\)$", gallery, re.M)
    assert tuple(name for name in shown if name in every.CLAIMS) == every.CLAIMS
    sections = re.split(r"^##+ ", gallery, flags=re.M)[1:]
    for folder in ("claims", "measurements"):
        for path in sorted((ROOT / "experiments" / folder).glob("*.py")):
            if path.stem not in ("all", "claim"):
                (section,) = (text for text in sections if f"`experiments/{folder}/{path.name}`" in text)
                assert len(section.split()) > 30, f"{path.stem} has no paragraph"
