"""The rules the source keeps, read from its syntax trees. Each rule is also shown to catch a planted breach."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "jbp").rglob("*.py"))

# A module imports only what stands on an earlier line, or in its own package. The rooms and their order:
#     pairs → layer → layers → combine → losses → backprop → step → rules, private → train → checkpoint → check → cli
ORDER = [
    ("annotations", "arguments", "files", "paths", "meshes", "_version", "_starting"),
    ("inputs",), ("windows",), ("rows", "texts", "hosts"),  # the ground
    ("pairs",), ("stats", "sinks", "answers"), ("layer",), ("layers",), ("combine",),
    ("losses", "masks", "ties", "trainable", "optim"), ("backprop", "metrics"), ("accumulation", "sharding"),
    ("tracing", "curvature", "step", "language"), ("rules", "private"), ("data", "durable", "own", "planning"),
    ("train", "description", "inspect"), ("checkpoint", "many"), ("runs",), ("check", "bridge"), ("cli",),
    ("__main__",),
]  # fmt: skip
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
GROUND = {"annotations", "arguments", "files", "inputs", "meshes", "paths", "rows", "windows"}
NOTHING: set[str] = set()
ONLY = {
    "annotations": NOTHING, "arguments": NOTHING, "files": NOTHING, "inputs": {"arguments"},
    "windows": {"arguments", "inputs"}, "rows": {"arguments", "inputs", "windows"}, "meshes": NOTHING, "paths": NOTHING,
    "pairs": GROUND, "optim": GROUND, "data": GROUND,
    "stats": {"pairs", *GROUND}, "sinks": {"pairs", *GROUND}, "answers": {"pairs", *GROUND},
}  # fmt: skip
"""Rooms that are narrower still: of jbp they import themselves, and these."""

MOST_ARGUMENTS = 8
"""Of an internal function in all; of a public one, those that may be given by position."""
MORE_ARGUMENTS = {
    "jbp.check.compare.compare": "what a verdict hangs on is named at the call, which gives two or three of its eight "
    "keywords",
}
"""Internal functions that take more, each with its reason."""

NAMESAKES = {
    "Trace": "`jbp trace`, a command, prints the other; each command is the class of its word",
    "explain": "an exception in words for a report; which formula serves which parameter",
    "moved": "leaves a little beside a kink; parameters after an update",
    "split": "the leaves of a tree that can be differentiated; rows held out",
    "load": "arrays that were saved; a data set",
    "save": "arrays in a file; a net as the folder of a run",
    "parse": "a net in one line; words of a command; an IDX file",
    "build": "a net from its line; the parser of all commands",
    "read": "a run's folder; an IDX file",
    "Plan": "`jbp plan`, a command; what the options of a run and its data decide",
    "page": "one HTML file in which to step through a net; the tables of a trace as HTML",
    "method_of": "the method of a rule, by name; of what `fit` was told",
}
"""Functions and classes of one name in several modules, each with what the name means in them."""

LATER = {
    "__init__.py": ["f'jbp.{name}'"],
    "tracing/result.py": ["'jbp.inspect.page'"],  # a trace's own method makes a page, which is of a later room
}
"""What is imported in functions, by file."""

REVERSE_MODE = {
    "grad", "value_and_grad", "vjp", "vjp3", "linearize", "linear_transpose", "custom_vjp", "custom_gradient",
    "jacrev", "jacobian", "hessian", "checkpoint", "remat", "closure_convert", "backward_pass", "saved_input_vjp",
    "fwd_and_bwd", "custom_transpose",
}  # fmt: skip
AUTODIFF_MODULES = {"jax.ad_checkpoint", "jax.interpreters.ad", "jax.custom_derivatives", "jax.custom_transpose"}
MAY_DIFFERENTIATE = {"check", "bridge"}


@cache
def parsed(source: str) -> ast.Module:
    """The tree of a source, read once for all rules."""
    return ast.parse(source)


def module_of(path: Path) -> str:
    """`layers` for jbp/layers/dense.py, `pairs` for jbp/pairs.py."""
    return path.relative_to(ROOT / "jbp").parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[tuple[str, bool]]:
    """(full dotted name, not at import time) of everything a source imports; relative imports count as jbp's."""
    tree = parsed(source)
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
    tree, aliases, found = parsed(source), {}, []
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
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append("allow_pickle")
        if isinstance(node, ast.Attribute) and node.attr in {"read_pickle", "unpickle"}:
            found.append(node.attr)
    return found


def name_of(path: Path) -> str:
    """`jbp.layers.dense` for jbp/layers/dense.py, `jbp.layers` for its __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which modules each module imports, by name, wherever in it that stands."""
    found: dict[str, set[str]] = {}
    for module, source in sources.items():
        # `from jbp.data import tables` is an import of jbp.data.tables, and of jbp.data only for what is defined there.
        wanted = {full if full in sources else full.rpartition(".")[0] for full, _ in imported(source)}
        found[module] = (wanted & sources.keys()) - {module}
    return found


def circle(imports: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, the first again at its end; nothing if there is none."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for other in sorted(imports[module]):
            found = walk(other, [*way, module])
            if found:
                return found
        done.add(module)
        return []

    return next((found for module in sorted(imports) if (found := walk(module, []))), [])


def imports_inside_functions(source: str) -> list[str]:
    """What of jbp is imported in a function, by a statement or through importlib."""
    found = []
    for function in ast.walk(parsed(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        found += [name for name, _ in imported(ast.unparse(function)) if name.split(".")[0] == "jbp"]
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                found += [ast.unparse(a) for a in node.args if "jbp" in ast.unparse(a)]
    return found


def exported(source: str) -> dict[str, str]:
    """The names that a source hands on (in its `__all__`, or `from a import b as b`), each with its module."""
    tree = parsed(source)
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    offered = {e.value for value in lists for e in getattr(value, "elts", ()) if isinstance(e, ast.Constant)}
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    return {a.name: f"{n.module}" for n in nodes for a in n.names if a.asname == a.name or a.name in offered}


def public_functions(sources: dict[str, str]) -> set[str]:
    """The functions that users find: what jbp hands on, and what the modules that it hands on do."""

    def home(module: str, name: str) -> str:
        onward = exported(sources[module]) if module in sources else {}
        return f"{module}.{name}" if onward.get(name, module) == module else home(onward[name], name)

    found = {home("jbp", name) for name in exported(sources["jbp"])}
    for module in found & sources.keys():
        found |= {home(module, name) for name in exported(sources[module])}
        found |= {f"{module}.{n.name}" for n in parsed(sources[module]).body if isinstance(n, ast.FunctionDef)}
    return {name for name in found if not name.rpartition(".")[2].startswith("_")}


def crowded(module: str, source: str, public: set[str]) -> dict[str, int]:
    """The functions, methods and lambdas of too many arguments, each with how many."""
    found = {}

    def look(node: ast.AST, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = where
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{where}.{child.name}"
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                a = child.args
                names = [arg.arg for arg in (*a.posonlyargs, *a.args) if arg.arg not in ("self", "cls")]
                count = len(names) if name in public else len(names) + len(a.kwonlyargs)
                if count > MOST_ARGUMENTS:
                    found[name] = count
            look(child, name)

    look(parsed(source), module)
    return found


def namesakes(sources: dict[str, str]) -> dict[str, list[str]]:
    """The names without underscore under which several modules define a class or a function."""
    found: dict[str, list[str]] = {}
    for module, source in sources.items():
        nodes = [node for node in parsed(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        for name in {node.name for node in nodes if not node.name.startswith("_")}:  # once for all its overloads
            found.setdefault(name, []).append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


EVERY_SOURCE = {name_of(path): path.read_text() for path in SOURCES}


def test_no_module_imports_another_in_a_circle():
    assert not circle(graph(EVERY_SOURCE))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_of_jbp_is_imported_in_a_function(path):
    assert imports_inside_functions(path.read_text()) == LATER.get(str(path.relative_to(ROOT / "jbp")), [])


def test_no_function_takes_too_many_arguments():
    public = public_functions(EVERY_SOURCE)
    found = {name: n for module, source in EVERY_SOURCE.items() for name, n in crowded(module, source, public).items()}
    assert found.keys() == MORE_ARGUMENTS.keys(), found  # an exception that is none any more goes


def test_no_two_things_have_one_name():
    found = namesakes(EVERY_SOURCE)
    assert found.keys() == NAMESAKES.keys(), found


def test_the_rule_of_circles_catches():
    of = {
        "jbp.a": "from jbp.b import f",
        "jbp.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from jbp.c import Z",
        "jbp.c": "def f():\n    from jbp import a",
    }
    assert circle(graph(of)) == ["jbp.a", "jbp.b", "jbp.c", "jbp.a"]
    assert not circle(graph(of | {"jbp.c": "import jax"}))
    package = {"jbp.p": "from jbp.p.x import f as f", "jbp.p.x": "from jbp.p import y", "jbp.p.y": "import jax"}
    assert not circle(graph(package))  # the package is only passed through
    assert circle(graph(package | {"jbp.p.y": "from jbp.p import f"}))


def test_the_rule_of_imports_in_functions_catches():
    assert imports_inside_functions("class A:\n    def f(self):\n        from jbp.check import layer")
    assert imports_inside_functions("def f():\n    import jbp.train")
    assert imports_inside_functions("import importlib\ndef f():\n    return importlib.import_module('jbp.check')")
    assert not imports_inside_functions("import jbp.train\ndef f():\n    import matplotlib")


def test_the_rule_of_arguments_catches():
    nine = ", ".join("abcdefghi")
    assert crowded("jbp.m", f"def f({nine}): ...", set()) == {"jbp.m.f": 9}
    assert crowded("jbp.m", f"class A:\n    def f(self, {nine}): ...", set()) == {"jbp.m.A.f": 9}
    assert crowded("jbp.m", f"def f():\n    return lambda {nine}: 0", set()) == {"jbp.m.f": 9}
    assert crowded("jbp.m", "def f(a, *, b, c, d, e, f, g, h, i): ...", set())
    assert not crowded("jbp.m", "def f(a, *, b, c, d, e, f, g, h, i): ...", {"jbp.m.f"})
    assert crowded("jbp.m", f"def f({nine}): ...", {"jbp.m.f"})
    assert not crowded("jbp.m", f"class A:\n    def f(self, {nine[3:]}): ...", set())


def test_public_functions_are_those_that_users_find():
    public = public_functions(EVERY_SOURCE)
    assert {"jbp.train.fit.fit", "jbp.train.many.fit_many", "jbp.curvature.fisher_product"} < public
    assert {"jbp.stats.norms.norms", "jbp.check.layer.layer", "jbp.rules.alignment.alignment"} < public
    assert not {"jbp.check.compare.compare", "jbp.train.program.noted", "jbp.train.fit.method_of"} & public


def test_the_rule_of_names_catches():
    assert namesakes({"jbp.a": "class Rule: ...", "jbp.b": "def Rule(): ..."}) == {"Rule": ["jbp.a", "jbp.b"]}
    assert not namesakes({"jbp.a": "def _f(): ...", "jbp.b": "def _f(): ...\nclass A:\n    def f(self): ..."})


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
        ("arguments", "from jbp.paths import shown"),
        ("paths", "from jbp.pairs import is_pair"),
        ("sinks", "from jbp.layer import Layer"),
        ("backprop", "from jbp.step import State"),
        ("step", "from jbp.rules import NAMES"),
        ("rules", "from jbp.train import fit"),
        ("tracing", "from jbp.step import State"),
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
