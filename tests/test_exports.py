"""What `import jbp` loads and offers: every public name and no stray, each from its module when it is asked for."""

import ast
import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import pytest

import jbp

ROOT = Path(__file__).parents[1]
MODULES = {"jbp": jbp} | {
    f"jbp.{name}": getattr(jbp, name) for name in dir(jbp) if isinstance(getattr(jbp, name), ModuleType)
}
SLOW = {
    "scipy",
    "matplotlib",
    "pandas",
    "jaxtyping",
    "safetensors",
    "rich",
    "pooch",
    "dp_accounting",
    "unittest",
    "numpy.f2py",
}
"""What is slow to load, or optional, and needed for a part of jbp at most."""
PARTS = {"jbp.check", "jbp.cli", "jbp.runs", "jbp.checkpoint", "jbp.curvature", "jbp.data", "jbp.tracing"}
"""What of jbp training does not need."""
TRAINS = """
import jax.numpy as jnp, optax
net = jbp.serial(jbp.Dense(3), jbp.relu, jbp.Dense(2))
data = jnp.ones((4, 5)), jnp.ones((4, 2))
params = jbp.fit(net, jbp.losses.l2_loss, optax.sgd(0.1), data, epochs=1, metrics={}).params
jbp.value_and_grad(net, jbp.losses.l2_loss)(params, *data)
"""


def loaded(program: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after a program."""
    code = f"import sys\n{program}\nprint('loaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.partition("loaded ")[2].split())


@pytest.mark.parametrize("name", MODULES)
def test_dir_is_what_is_offered_and_all_of_it_is_there(name):
    module = MODULES[name]
    assert dir(module) == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    for member in module.__all__:
        value = getattr(module, member)
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "jbp")
        # a type, such as `Weights`, is of the module that its parts are from
        assert home.split(".")[0] in ("jbp", "typing", "collections", "types", "builtins"), (member, home)
        assert not member.startswith("_")


@pytest.mark.parametrize("name", MODULES)
def test_everything_that_a_public_module_defines_for_users_is_offered(name):
    """A class that a module defines without an underscore, and that users could meet, is in its list."""
    module = MODULES[name]
    defined = {
        key for key, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not key.startswith("_")
    }  # fmt: skip
    assert defined <= set(module.__all__)


def test_type_checkers_read_the_names_that_are_there():
    """The imports under `TYPE_CHECKING` in jbp/__init__.py are the table by which names are found."""
    tree = ast.parse((ROOT / "jbp" / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    imports = [n for n in block.body if isinstance(n, ast.ImportFrom)]
    read = {f"{alias.asname}": f"{n.module}.{alias.name}" for n in imports for alias in n.names}
    assert all(full.rpartition(".")[2] == name for name, full in read.items())  # `as` the same name: handed on
    assigned = {ast.unparse(n.targets[0]) for n in block.body if isinstance(n, ast.Assign)}
    assert assigned == {"load"}
    assert {*read, *assigned} == set(dir(jbp))
    for name, full in read.items():
        home, _, last = full.rpartition(".")
        value = getattr(jbp, name)
        assert value is (sys.modules[full] if home == "jbp" else getattr(importlib.import_module(home), last))


def test_other_modules_are_reached_as_ever_and_what_is_not_there_is_said():
    assert jbp.private.clipped_sum is jbp.clipped_sum  # type: ignore[attr-defined]
    assert jbp.step.Problem is jbp.Problem  # type: ignore[attr-defined]
    for missing in ("nonsense", "_nonsense"):
        with pytest.raises(AttributeError, match=f"module 'jbp' has no attribute '{missing}'"):
            getattr(jbp, missing)
    with pytest.raises(ImportError, match="cannot import name 'nonsense' from 'jbp'"):
        exec("from jbp import nonsense")


def test_a_module_that_cannot_be_loaded_says_why(monkeypatch):
    monkeypatch.delattr(jbp, "tracing", raising=False)
    for name in [name for name in sys.modules if name.startswith("jbp.tracing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jbp.tracing.result", None)
    with pytest.raises(ModuleNotFoundError, match=r"jbp\.tracing\.result"):
        _ = jbp.tracing  # type: ignore[attr-defined]


def test_the_version_is_the_one_in_the_source_and_the_package():
    source = (ROOT / "jbp" / "_version.py").read_text()
    assert re.search(r'^__version__ = "(.*)"$', source, re.MULTILINE)[1] == jbp.__version__  # type: ignore[index]
    project = (ROOT / "pyproject.toml").read_text()
    assert 'path = "jbp/_version.py"' in project and not re.search(r'^version = "', project, re.MULTILINE)
    assert jbp.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_program_that_type_checkers_read_runs():
    """`make types` checks it in pyright's strict mode."""
    source = ROOT / "tests" / "typed" / "user_program.py"
    assert source.read_text().startswith("# pyright: strict")
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        runpy.run_path(str(source))["main"]()


def test_the_types_go_with_the_package():
    assert (ROOT / "jbp" / "py.typed").exists()
    assert 'packages = ["jbp"]' in (ROOT / "pyproject.toml").read_text()  # so with it goes what lies there


def test_the_import_loads_nothing():
    """Two modules of jbp's own, and of others only the standard library's."""
    after, bare = loaded("import jbp; jbp.__version__; dir(jbp)"), loaded("import typing, importlib")
    ours = {name for name in after if name.split(".")[0] == "jbp"}
    assert ours == {"jbp", "jbp._starting", "jbp._version"}
    assert {name.split(".")[0] for name in after - bare - ours} <= set(sys.stdlib_module_names)


def test_training_loads_no_more_than_it_needs():
    after, bare = loaded(f"import jbp{TRAINS}"), loaded("import jax, optax, jax.numpy")
    new = after - bare
    assert "jbp.train.fit" in new
    assert not {name for name in new if any(f"{name}.".startswith(f"{part}.") for part in SLOW | PARTS)}


def test_what_is_measured_can_fail():
    """The tests above see a slow module where there is one."""
    assert "scipy" in loaded("import scipy.stats") and "jbp.check" in loaded("import jbp; jbp.check")
    assert "scipy.sparse" in loaded("import jbp, jax.numpy as jnp; jbp.curvature.operator(lambda v: v, jnp.ones(2))")
