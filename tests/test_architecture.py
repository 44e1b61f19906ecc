"""The rules the source keeps, read from its syntax trees. Each rule is also shown to catch a planted breach."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "jbp").rglob("*.py"))

# A module imports only what stands on an earlier line, or in its own package.
ORDER = [
    ("arguments", "paths"), ("pairs",), ("stats", "sinks"), ("layer",), ("layers",), ("combine",), ("losses",),
    ("backprop",), ("tracing", "curvature", "step"), ("rules", "private"), ("optim", "data", "sharding"),
    ("train",), ("checkpoint",), ("check", "bridge"), ("cli",), ("__main__",),
]  # fmt: skip
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
GROUND = {"arguments", "paths"}
ONLY = {"optim": GROUND, "data": GROUND, "stats": {"pairs", *GROUND}}
"""Packages that are narrower still: themselves, and these."""

REVERSE_MODE = {
    "grad", "value_and_grad", "vjp", "vjp3", "linearize", "linear_transpose", "custom_vjp", "custom_gradient",
    "jacrev", "jacobian", "hessian", "checkpoint", "remat", "closure_convert", "backward_pass", "saved_input_vjp",
    "fwd_and_bwd", "custom_transpose",
}  # fmt: skip
AUTODIFF_MODULES = {"jax.ad_checkpoint", "jax.interpreters.ad", "jax.custom_derivatives", "jax.custom_transpose"}
MAY_DIFFERENTIATE = {"check", "bridge"}


def module_of(path: Path) -> str:
    """`layers` for jbp/layers/dense.py, `pairs` for jbp/pairs.py."""
    return path.relative_to(ROOT / "jbp").parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[tuple[str, bool]]:
    """(full dotted name, not at import time) of everything a source imports; relative imports count as jbp's."""
    tree = ast.parse(source)
    later = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    later += [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    inner = {node for block in later for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"jbp.{node.module or ''}".rstrip(".") if node.level else node.module
            yield from ((f"{module}.{alias.name}", node in inner) for alias in node.names)


def wrong_imports(module: str, source: str) -> list[str]:
    """What of jbp a module imports though it stands later, or is out of bounds."""
    wrong = []
    for name, _ in imported(source):
        root, *rest = name.split(".")
        if root != "jbp" or not rest or rest[0] == module:
            continue
        other = rest[0]
        if other not in RANK:  # a name that jbp/__init__ re-exports: `from jbp import fit`
            wrong.append(f"{module} imports {name}: import it from its own module (and give a new module its rank)")
        elif other == "check":
            if module != "cli":
                wrong.append(f"{module} imports {name}: only the cli does, and __init__ lazily")
        elif RANK[other] >= RANK[module] or (module in ONLY and other not in ONLY[module]):
            wrong.append(f"{module} imports {name}")
    return wrong


def loads_check(source: str) -> bool:
    """Whether a source imports `jbp.check` when it is itself imported."""
    return any(name == "jbp.check" or name.startswith("jbp.check.") for name, later in imported(source) if not later)


def reverse_mode(source: str) -> list[str]:
    """Where a source reaches for reverse mode: `jax.grad`, `from jax import grad`, `import jax as j; j.vjp`."""
    tree, aliases, found = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                aliases |= {alias.asname: alias.name} if alias.asname else {root: root}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found += [full for full in {*aliases.values(), *(name for name, _ in imported(source))} if suspicious(full)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base = ast.unparse(node.value)
            first, *rest = base.split(".")
            full = ".".join([aliases.get(first, first), *rest, node.attr])
            if suspicious(full):
                found.append(full)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            found += [a.value for a in node.args if isinstance(a, ast.Constant) and a.value in REVERSE_MODE]
    return found


def suspicious(full: str) -> bool:
    """Whether a dotted name leads into JAX's (or a JAX library's) reverse mode."""
    root, last = full.split(".")[0], full.split(".")[-1]
    if root not in {"jax", "haiku", "flax", "equinox"}:
        return False
    return (
        full.startswith("jax._src")
        or last in REVERSE_MODE
        or any(full == m or full.startswith(f"{m}.") for m in AUTODIFF_MODULES)
    )


def unpickling(source: str) -> list[str]:
    """Where a source could run what it reads: pickle and its relatives, or NumPy told to unpickle."""
    names = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    found = [name for name, _ in imported(source) if name.split(".")[0] in names]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append("allow_pickle")
        if isinstance(node, ast.Attribute) and node.attr in {"read_pickle", "unpickle"}:
            found.append(node.attr)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    assert module_of(path) in {*RANK, "__init__"}, f"{path.name} has no place in ORDER: give it one"
    if path == ROOT / "jbp" / "__init__.py":  # it re-exports everything
        assert not loads_check(path.read_text()), "jbp/__init__ loads check lazily only"
    else:
        assert not wrong_imports(module_of(path), path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_reverse_mode_autodiff_outside_check_and_bridge(path):
    if module_of(path) not in MAY_DIFFERENTIATE:
        assert not reverse_mode(path.read_text())


EVERYTHING = sorted(p for folder in ("jbp", "tests", "experiments") for p in (ROOT / folder).rglob("*.py"))


def names_stack(source: str) -> bool:
    """Whether a source imports `Stack`."""
    return any(name.split(".")[-1] == "Stack" for name, _ in imported(source))


def test_stacks_are_gone_through_by_over_stack():
    """`repeat` makes them and `explain` has words for them; nobody else asks whether a pair is one."""
    found = {str(path.relative_to(ROOT / "jbp")) for path in SOURCES if names_stack(path.read_text())}
    found -= {path for path in found if path.startswith("pairs/")}
    assert found == {"__init__.py", "combine/repeat.py", "stats/explain.py"}
    assert names_stack("from jbp.pairs import Outer, Stack") and not names_stack("from jbp.pairs import Outer")


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles(path):
    assert not unpickling(path.read_text())


def test_no_file_is_longer_than_600_lines():
    files = [p for folder in ("jbp", "tests", "experiments") for p in (ROOT / folder).rglob("*.py")]
    assert len(files) > 30
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert not {name: n for name, n in lengths.items() if n > 600}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pairs", "from jbp.layer import Layer"),
        ("layers", "from jbp import combine"),
        ("combine", "import jbp.backprop"),
        ("backprop", "def f():\n    from jbp.train import fit"),
        ("train", "from jbp.cli import main"),
        ("stats", "from jbp.layer import Layer"),
        ("optim", "from jbp.pairs import Outer"),
        ("data", "from jbp.layer import Shape"),
        ("train", "from jbp.check import layer"),
        ("losses", "from .backprop import forward"),
        ("train", "from jbp import fit"),
        ("cli", "from jbp.mystery import x"),
    ],
)
def test_the_import_rule_catches(module, source):
    assert wrong_imports(module, source)


def test_the_rule_of_the_lazy_name_catches_an_eager_import():
    assert loads_check("from jbp import check as check")
    assert loads_check("import jbp.check.layer")
    assert not loads_check("from jbp import checkpoint\nif TYPE_CHECKING:\n    from jbp import check")
    assert not loads_check("if _typing.TYPE_CHECKING:\n    from jbp import check as check")
    assert not loads_check("def __getattr__(name):\n    from jbp import check")


def test_the_import_rule_lets_pass_what_it_should():
    assert not wrong_imports("backprop", "import jax\nfrom jbp.pairs import Outer\nfrom jbp.losses import Loss")
    assert not wrong_imports("layers", "from jbp.layers.dense import Dense\nfrom jbp.layer import Layer")
    assert not wrong_imports("cli", "from jbp.check import layer\nfrom jbp import optim")
    assert not wrong_imports("stats", "from jbp.pairs import Outer\nfrom jbp.stats.norms import norms")


@pytest.mark.parametrize(
    "source",
    [
        "import jax\njax.grad(f)",
        "import jax as j\nj.value_and_grad(f)",
        "from jax import grad",
        "from jax import vjp as back",
        "from jax import custom_vjp",
        "import jax\n@jax.custom_vjp\ndef f(x): ...",
        "import jax\njax.linear_transpose(f, x)",
        "from jax.experimental.jet import linearize",
        "from jax.ad_checkpoint import checkpoint",
        "import jax.ad_checkpoint",
        "from jax.interpreters import ad",
        "from jax.custom_derivatives import closure_convert",
        "from jax._src import ad_util",
        "import jax\njax._src.api.vjp(f)",
        "import jax\ngetattr(jax, 'hessian')(f)",
        "import jax\nx = jax.jacrev",
    ],
)
def test_the_autodiff_rule_catches(source):
    assert reverse_mode(source)


def test_the_autodiff_rule_lets_pass_what_it_should():
    own = "import jbp\nfrom jbp.backprop import value_and_grad\nvalue_and_grad(net, loss)\njbp.value_and_grad\nx.grad"
    assert not reverse_mode(own + "\nimport jax\njax.jvp(f, x, v)\njax.jit(f)\nimport optax\noptax.sgd(0.1)")


def test_the_pickle_rule_catches():
    planted = ["import pickle", "from pickle import loads", "import numpy\nnumpy.load(f, allow_pickle=True)"]
    planted += ["import numpy\nnumpy.load(f, allow_pickle=flag)", "import pandas\npandas.read_pickle(f)"]
    assert all(unpickling(source) for source in planted)
    assert not unpickling("import numpy\nnumpy.load(f, allow_pickle=False)")
