"""docs/reference.md lists every public name of jbp, and none that is gone."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import jbp

PAGE = (Path(__file__).parents[1] / "docs" / "reference.md").read_text()


def exported(module: ModuleType) -> set[str]:
    """What a module offers."""
    return set(module.__all__)


def public() -> set[str]:
    """Every public name: jbp's own, and those of its public modules that are not jbp's own too."""
    found = set()
    for name in dir(jbp):
        value = getattr(jbp, name)
        if isinstance(value, ModuleType):
            inner = {n for n in exported(value) if getattr(jbp, n, None) is not getattr(value, n)}
            found |= {f"jbp.{name}.{n}" for n in inner}
        else:
            found.add(f"jbp.{name}")
    return found


def listed(page: str) -> set[str]:
    """The names on the page: `::: path`, the members that are chosen below it, or a package's with its submodules."""
    found = set()
    for path, options in re.findall(r"^::: (\S+)\n((?: .*\n)*)", page, re.MULTILINE):
        members = re.findall(r"\w+", options.partition("members:")[2])
        if "show_submodules" in options:  # all that the package offers
            package = importlib.import_module(path)
            named = {name: getattr(package, name) for name in exported(package)}
            found |= {f"jbp.{n}" if getattr(jbp, n, None) is v else f"{path}.{n}" for n, v in named.items()}
        else:
            found |= {f"{path}.{name}" for name in members} if members else {path}
    return found


def gone(page: str) -> set[str]:
    """The names on the page that their module does not offer, or whose module is none."""

    def is_offered(name: str) -> bool:
        place, _, last = name.rpartition(".")
        if place == "jbp":
            return last in dir(jbp)
        module = sys.modules.get(place) or getattr(jbp, place.removeprefix("jbp."), None)
        return isinstance(module, ModuleType) and last in exported(module)

    return {name for name in listed(page) if not is_offered(name)}


def test_the_reference_lists_every_public_name_and_none_that_is_gone():
    assert not public() - listed(PAGE), "add them to docs/reference.md"
    assert not gone(PAGE), "take them from docs/reference.md"


def test_the_comparison_finds_what_is_missing_and_what_is_gone():
    assert {"jbp.fit", "jbp.load", "jbp.Run", "jbp.rules.Step", "jbp.check.vjp", "jbp.losses.Loss"} <= public()
    assert public() - listed(PAGE.replace("::: jbp.fit\n", "")) == {"jbp.fit"}
    assert public() - listed(PAGE.replace("SgdState, ", "")) == {"jbp.optim.SgdState"}
    wrong = "\n::: jbp.fitting\n::: jbp.sinks\n    options:\n      members: [total, sum_up]\n"
    wrong += "::: jbp.rules.Method\n::: jbp.gone.One\n"
    assert gone(PAGE + wrong) == {"jbp.fitting", "jbp.sinks.sum_up", "jbp.rules.Method", "jbp.gone.One"}
