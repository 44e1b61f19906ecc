"""Change one operator, sign, index or term at a time in everything that computes a derivative or a step.

    python tests/mutation/mutate.py [--list] [--only TEXT] [--rest] [--workers N]

Each mutant is one change in the syntax tree of one function. It is compiled in place of the right one, in a worker
process with its own import of jbp, and the public checks that reach that function run until one fails; an exception
or a time-out counts as caught. Finite differences are off: autodiff alone must do it. What no check of derivatives can
catch is of two kinds. Either it computes the same: then `mutate_survivors.EQUIVALENT` says why. Or it is another
function, rightly differentiated: then `mutate_survivors.HELD` names a test that holds the right one, and the mutant is
"held" if that test, which passes on the right code, fails on it. Anything else makes this program exit 1. When all
have run (about half an hour of one core), the results go to experiments/results/mutants.json and docs/mutants.md.
"""

import argparse
import ast
import concurrent.futures
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Compiling is nearly all of the time. Programs that are equal to the letter are compiled once for all mutants.
_HASTE = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"
_HASTE += " --xla_cpu_use_fusion_emitters=false" if version("jax").startswith("0.10.") else ""
_KEEP = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT), str(ROOT / "experiments")]
RESULT = ROOT / "experiments" / "results" / "mutants.json"
LIMIT = 90
"""Seconds for one mutant."""
BEFORE_A_FRESH_ONE = 150
"""Mutants in one process: thousands of compiled programs fill gigabytes."""
SOUND: set[str] = set()
"""The checks that the right code is known to pass, or that are being tried on it."""
ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "softmax", "softplus", "elu", "silu", "gelu")
LOSSES = "squared_error l2_loss mean_squared_error softmax_cross_entropy sigmoid_binary_cross_entropy cross_entropy"
# File -> function -> the checks that reach it, the most telling first.
TARGETS: dict[str, dict[str, str]] = {
    "layers/activations.py": {
        **{f"{n.title().replace('_', '')}.pull": n for n in ACTIVATIONS},
        "LeakyRelu.pull": "leaky_relu slope zero", "Softmax.pull": "softmax vector", "Elu.pull": "elu alpha zero",
        "Relu.keep": "relu zero", "LeakyRelu.keep": "leaky_relu zero", "Silu.keep": "silu", "Gelu.keep": "gelu erf",
        "Softmax.value": "softmax vector softmax_cross_entropy class2",  # the loss's δ is made of it
        "Activation.keep": "tanh", "Activation.backward": "tanh", "Identity.backward": "identity",
    },
    "layer.py": {"Sign.positive": "relu zero repeat@signs repeat@leaky", "Sign.shape": "relu"},
    "layers/dense.py": {"Dense.backward": "dense dense3 unbiased", "_product": "dense dense3 unbiased"},
    "layers/dropout.py": {"Dropout.backward": "dropout", "Dropout._masked": "dropout rows"},
    "layers/flatten.py": {"Flatten.backward": "flatten"},
    "losses.py": {
        **{f"{n.title().replace('_', '')}.{part}": f"{n} {n}@positions {n}@masked"
           for n in LOSSES.split() for part in ("delta", "sqrt_hessian")},
        "SoftmaxCrossEntropy.delta":
            "softmax_cross_entropy softmax_cross_entropy@positions sums class2 classes@two classes@masked",
        "SoftmaxCrossEntropy.sqrt_hessian": "softmax_cross_entropy softmax_cross_entropy@positions sums class2",
        "_error": "squared_error l2_loss",
        **{f"CrossEntropy.{part}": "cross_entropy cross_entropy@class cross_entropy@classes cross_entropy@positions "
                                   "certain" for part in ("delta", "sqrt_hessian")},
        "_is_index": "softmax_cross_entropy class cross_entropy@class classes class2 distribution sums",
        **dict.fromkeys(("_picked", "_added", "_places"), "class cross_entropy@class classes class2 narrow"),
        "_positions": "l2_loss@positions l2_loss",
        "_per_position": "l2_loss@positions l2_loss l2_loss@two l2_loss@masked",
        "_classes": "mean_squared_error mean_squared_error@positions scalar",
        "_diagonal_columns": "l2_loss l2_loss@positions l2_loss@masked",
        "_block_columns": "softmax_cross_entropy softmax_cross_entropy@positions softmax_cross_entropy@masked onemask",
    },
    "combine/base.py": {"sum_of": "branch"},
    "combine/serial.py": {"Serial.walk_backward": "serial"},
    "combine/residual.py": {"Residual.walk_backward": "residual"},
    "combine/branch.py": {"Branch.walk_backward": "branch concat concat@positions indices"},
    "combine/repeat.py": {
        "Repeat.walk_backward": "repeat repeat2 repeated",
        **{f"_Sharing.{n}": "repeat repeat2 repeat@output repeat@nothing" for n in ("whole", "distinct", "among")},
        "_compact": "repeat@signs repeat@leaky repeat2",
    },
    "combine/tied.py": {"Tied.walk_backward": "tied shared", "_join": "tied shared"},
    "pairs/pair.py": {
        "weigh": "weights evaluation dense blank", "weighed_rows": "weights evaluation dense dense3",
        "silence": "blank weights blankrows",
    },
    "pairs/outer.py": {"Outer.total": "dense dense3 evaluation folded row:Unembedding"},
    "pairs/lookup.py": {"Lookup.total": "row:Embedding"},
    "pairs/shift.py": {"Shift.total": "dense dense3 evaluation folded"},
    "pairs/scale.py": {"Scale.total": "gain folded"},
    "pairs/window.py": {"Window.total": "row:Conv"},
    "pairs/constant.py": {"Constant.total": "row:BatchNorm"},
    "pairs/geometry.py": {
        "Geometry.back": "row:Conv solid", "Geometry.contract": "row:Conv solid",
        "Geometry.spread": "row:MaxPool pools",
        "Geometry.unsummed": "row:AvgPool averages",
    },
    "pairs/stack.py": {"Stack.total": "repeat"},
    "pairs/sum.py": {"Sum.total": "tied@kinds"},
    "pairs/coupled.py": {"Coupled.total": "tied@coupled"},
    "pairs/contract.py": {
        "_merged": "tied tied@kinds tied@coupled tied@stacks tied@stacks_of_kinds tied@stacks_in_stacks",
        "contract": "evaluation evaluation1",
    },
    "sinks.py": {"total": "gradient"},
    "backprop.py": {
        "backward": "gradient repeat shared tied coupled", "backward_leaf": "dense coupled", "coupling_of": "coupled",
        "_backward_examples": "dense",
        "value_grad_output": "gradient weights observed", "value_output_delta": "gradient weights blank rows training",
    },
    "optim/sgd.py": {"sgd": "sgd schedule sgdmomentum sgdnesterov sgd@none"},
    "optim/momentum.py": {
        "heavy_ball": "heavy_ball", "nesterov": "nesterov", "_descend": "heavy_ball nesterov heavyschedule",
    },
    "optim/_scalars.py": {
        "rate_at": "schedule sgd", "following": "schedule heavyschedule", "like": "sgd heavy_ball",
    },
}  # fmt: skip


MORE = {"Attention": ["long"], "MaxPool": ["pools"], "Unembedding": ["words", "texts"]}
"""Checks of what the rows of a layer do not reach."""


def _of_new_layers() -> dict[str, dict[str, str]]:
    """Of a layer's file without a line above: its ways back, by what `jbp check` runs of its row."""
    found = {}
    for path in sorted((ROOT / "jbp" / "layers").glob("*.py")):
        file = f"layers/{path.name}"
        kinds = [] if file in {*TARGETS, "layers/step.py"} else ast.parse(path.read_text()).body
        ways = {
            f"{kind.name}.{way.name}": " ".join(
                [*(f"row:{name}" for name in _rows_of(kind, kinds)), *MORE.get(kind.name, ())])
            for kind in kinds if isinstance(kind, ast.ClassDef)
            for way in kind.body if isinstance(way, ast.FunctionDef) and way.name in ("backward", "pull", "keep")
        }  # fmt: skip
        found |= {file: ways} if ways else {}
    return found


def _rows_of(kind: ast.ClassDef, kinds: list[ast.stmt]) -> list[str]:
    """The class, or of one that others share, which has no row, those that are made of it."""
    made = [k for k in kinds if isinstance(k, ast.ClassDef)]
    return [k.name for k in made if any(getattr(base, "id", "") == kind.name for base in k.bases)] or [kind.name]


TARGETS |= _of_new_layers()
SWAPS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE), ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
INSTEAD = {
    "maximum": "minimum", "minimum": "maximum", "sum": "mean", "mean": "sum", "exp": "expm1", "expm1": "exp",
    "log": "log1p", "sqrt": "square", "zeros_like": "ones_like", "ones_like": "zeros_like", "zeros": "ones",
    "max": "min", "min": "max", "tanh": "sin", "logistic": "tanh", "reduce_max": "reduce_min",
    "reduce_min": "reduce_max", "reduce_sum": "reduce_max", "scatter_add": "scatter_mul",
}  # fmt: skip
REFUSALS = ("same_shape", "no_params", "expect_tuple", "_expect_stack", "_like", "check_weights",
            "check_learning_rate", "check_momentum", "_check")  # fmt: skip


def alternatives(node: ast.AST) -> list[tuple[str, ast.AST]]:
    """What may stand in place of one node, each with its description."""
    out: list[tuple[str, ast.AST]] = []
    match node:
        case ast.BinOp(left=a, op=op, right=b):
            out += [(f"operator → {new.__name__}", ast.BinOp(a, new(), b)) for new in SWAPS.get(type(op), ())]
            out += [("right operand dropped", a), ("left operand dropped", b)]
            if isinstance(op, (ast.Sub, ast.Div, ast.MatMult)):
                out.append(("operands swapped", ast.BinOp(b, op, a)))
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=a):
            out.append(("sign or not dropped", a))
        case ast.Compare(left=a, ops=[op], comparators=[b]):
            out += [(f"comparison → {new.__name__}", ast.Compare(a, [new()], [b])) for new in SWAPS.get(type(op), ())]
        case ast.BoolOp(op=op, values=values):
            out.append(("and ↔ or", ast.BoolOp(SWAPS[type(op)][0](), values)))
        case ast.IfExp(test=t, body=a, orelse=b):
            out += [("branches swapped", ast.IfExp(t, b, a)), ("always the first", a), ("always the second", b)]
        case ast.Constant(value=bool(v)):
            out.append((f"→ {not v}", ast.Constant(not v)))
        case ast.Constant(value=int(v)):
            out += [(f"{v} → {v + 1}", ast.Constant(v + 1)), (f"{v} → {v - 1}", ast.Constant(v - 1))]
        case ast.Constant(value=float(v)):
            out += [(f"{v} → {2 * v}", ast.Constant(2 * v)), (f"{v} → {v + 1}", ast.Constant(v + 1))]
        case ast.Attribute(value=a, attr="T"):
            out.append(("not transposed", a))
        case ast.Attribute(value=a, attr="FILL_OR_DROP"):
            out.append(("out of range: → CLIP", ast.Attribute(a, "CLIP")))
        case ast.Call(func=f, args=args, keywords=kw):
            name = f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "")
            if len(args) >= 2 and name != "visit" and not any(isinstance(a, ast.Starred) for a in args):
                i = len(args) - 2
                out.append(("last arguments swapped", ast.Call(f, [*args[:i], args[-1], args[i]], kw)))
            if name in ("select", "where") and len(args) == 3:
                out += [("always the first", args[1]), ("always the second", args[2])]
            if name == "Sign" and not kw:
                out.append(("at_zero added", ast.Call(f, args, [ast.keyword("at_zero", ast.Constant(True))])))
            if name in ("reversed", "sqrt", "square", "exp", "expm1", "log", "log1p", "tanh", "logistic", "erfc", "abs",
                        "weigh", "like", "range", "zeros_like") and args:  # fmt: skip
                out.append((f"{name} left out", args[-1]))
            if name in INSTEAD and isinstance(f, ast.Attribute):
                out.append((f"{name} → {INSTEAD[name]}", ast.Call(ast.Attribute(f.value, INSTEAD[name]), args, kw)))
            if name in ("sum", "mean", "max", "reshape", "add", "squeeze", "astype") and isinstance(f, ast.Attribute):
                out.append((f"{name} left out", f.value))
        case ast.List(elts=[_]):
            out.append(("emptied", ast.List([], ast.Load())))
        case ast.AugAssign(target=t, op=ast.Add(), value=v):
            out += [("+= → −=", ast.AugAssign(t, ast.Sub(), v)), ("+= → =", ast.Assign([t], v))]
        case ast.Return(value=ast.Tuple(elts=[a, b])):
            out.append(("returned parts swapped", ast.Return(ast.Tuple([b, a], ast.Load()))))
        case _:
            pass
    return out


def _refuses(node: ast.AST) -> bool:
    """Whether a node only refuses wrong input, documents, or annotates."""
    if isinstance(node, ast.If) and all(isinstance(n, ast.Raise) for n in node.body) and not node.orelse:
        return True
    if isinstance(node, ast.For) and all(isinstance(n, ast.Expr) for n in node.body):
        return True
    if isinstance(node, (ast.Raise, ast.JoinedStr)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ):
        return True
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", "")) in REFUSALS


def nodes_of(function: ast.AST) -> list[ast.AST]:
    """The nodes that may be changed, in a fixed order."""
    found: list[ast.AST] = []

    def walk(node: ast.AST, field: str = "") -> None:
        if field in ("annotation", "returns", "decorator_list") or _refuses(node):
            return
        found.append(node)
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    walk(child, name)

    walk(function)
    return found


class _Put(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def find(tree: ast.Module, qualname: str) -> Any:
    """The function of this name in a module."""
    node: Any = tree
    for part in qualname.split("."):
        node = [n for n in node.body if getattr(n, "name", None) == part][-1]  # behind its overloads
    return node


def mutants() -> list[dict[str, Any]]:
    """All mutants, as places: file, function, line, its text, the number of the node and of the alternative."""
    found = []
    for file, functions in TARGETS.items():
        source = (ROOT / "jbp" / file).read_text()
        tree, lines = ast.parse(source), source.splitlines()
        for qualname, checks in functions.items():
            for i, node in enumerate(nodes_of(find(tree, qualname))):
                for j, (change, new) in enumerate(alternatives(node)):
                    line, piece = getattr(node, "lineno", 0), ast.unparse(node)
                    place = {"file": file, "function": qualname, "line": line, "text": lines[line - 1].strip()}
                    made = ast.unparse(ast.fix_missing_locations(new))
                    if made == piece:
                        continue
                    found.append(place | {"from": piece, "to": made, "change": change, "node": i, "alternative": j,
                                          "checks": checks.split()})  # fmt: skip
    return found


def unreached() -> list[str]:
    """The methods that go backward and are not in TARGETS; `check`, `tracing` and `train/blame` only call them, and
    what `rules` and the slopes of a step send back is no derivative: tests/test_rules.py holds each to its own
    formula."""
    names = ("backward", "walk_backward", "pull", "delta", "sqrt_hessian", "total")
    found = []
    for path in sorted((ROOT / "jbp").rglob("*.py")):
        file = path.relative_to(ROOT / "jbp").as_posix()
        for kind in (n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)):
            for method in (n for n in kind.body if isinstance(n, ast.FunctionDef) and n.name in names):
                abstract = isinstance(method.body[-1], ast.Raise | ast.Expr)
                if not abstract and f"{kind.name}.{method.name}" not in TARGETS.get(file, ()):
                    found.append(f"{file}: {kind.name}.{method.name}")
    return [
        place
        for place in found
        if not place.startswith(("check/", "tracing/", "rules/", "layers/step.py", "train/blame.py"))
    ]


def identity(mutant: dict[str, Any]) -> str:
    """A name that stays when other lines move."""
    return " | ".join(str(mutant[k]) for k in ("file", "function", "text", "from", "change", "node"))


def named() -> dict[str, dict[str, Any]]:
    """All mutants by their names; two changes of one node may come to the same."""
    return {identity(m): m for m in mutants()}


def record(mutant: dict[str, Any]) -> tuple[str, ...]:
    """What the saved run holds a mutant by."""
    return tuple(mutant[k] for k in ("file", "function", "from", "to", "change"))


def _caught_before(wanted: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the saved run caught of these mutants."""
    saved: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for old in json.loads(RESULT.read_text())["mutants"]:
        saved.setdefault(record(old), []).append(old)
    found = {}
    for name, m in wanted.items():
        if (alike := saved.get(record(m))) and (old := alike.pop(0))["verdict"] == "caught":
            found[name] = m | old
    return found


def sound(check: str) -> None:
    """In a worker: a check that the right code fails would catch everything."""
    import mutate_checks

    if failures := mutate_checks.failures(check):
        raise RuntimeError(f"the check {check!r} fails on the right code: {failures[0]}")


def run(mutant: dict[str, Any]) -> dict[str, Any]:
    """In a worker: plant the mutant, check until something fails, take it out again."""
    import mutate_checks
    from mutate_survivors import holder

    if (test := holder(mutant)) and not mutate_checks.passes_right_code(test):
        raise RuntimeError(f"{test} does not pass on the right code")
    source = (ROOT / "jbp" / mutant["file"]).read_text()
    function = find(ast.parse(source), mutant["function"])
    old = nodes_of(function)[mutant["node"]]
    new = ast.fix_missing_locations(_Put(old, alternatives(old)[mutant["alternative"]][1]).visit(function))
    began, outcome = time.perf_counter(), {"verdict": "survived"}

    def late(*_: Any) -> None:
        raise TimeoutError(f"no answer in {LIMIT} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        with mutate_checks.planted(mutant["file"], mutant["function"], ast.unparse(new)):
            for check in mutant["checks"]:
                failures = mutate_checks.failures(check)
                if failures:
                    outcome = {"verdict": "caught", "check": check, "law": failures[0].law}
                    break
            else:
                if test and not mutate_checks.passes(test):
                    outcome = {"verdict": "held", "test": test}
    except Exception as error:
        outcome = {"verdict": "caught", "law": f"raises {type(error).__name__}"}
    finally:
        signal.alarm(0)
    return mutant | outcome | {"seconds": round(time.perf_counter() - began, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--only", default="", help="mutants with this in their name; nothing is saved")
    parser.add_argument("--rest", action="store_true", help="keep what the saved run caught; run all others again")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    options = parser.parse_args()
    wanted = {name: m for name, m in named().items() if options.only in name}
    if options.list:
        print(*wanted, sep="\n")
        return print(len(wanted)) or 0
    done = _caught_before(wanted) if options.rest else {}
    todo, began = [m for name, m in wanted.items() if name not in done], time.perf_counter()

    def see(result: dict[str, Any]) -> None:
        done[identity(result)] = result
        if result["verdict"] == "survived":
            print("survived:", identity(result), "→", result["to"], flush=True)
        seconds = time.perf_counter() - began
        print(f"\r{len(done)}/{len(wanted)}, {seconds:.0f} s ", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as cache, concurrent.futures.ThreadPoolExecutor(options.workers) as threads:
        os.environ |= {"XLA_FLAGS": _HASTE, "JAX_COMPILATION_CACHE_DIR": cache} | _KEEP
        shares = [todo[k :: options.workers] for k in range(options.workers)]
        for share in [threads.submit(_in_one_process, share, see) for share in shares]:
            share.result()
    results = [done[name] for name in wanted]
    if not options.only:
        _save(results)
    return _verdict(results, whole=not options.only)


def _in_one_process(mutants: list[dict[str, Any]], see: Callable[[dict[str, Any]], None]) -> None:
    """One after another, so that of a process that ends (XLA aborts on a few) it is known which mutant ended it."""
    while now := mutants[:BEFORE_A_FRESH_ONE]:
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            for check in {check: None for m in now for check in m["checks"]}:
                if check not in SOUND:
                    SOUND.add(check)
                    pool.submit(sound, check).result()
            for m, answer in [(m, pool.submit(run, m)) for m in now]:
                mutants = mutants[1:]
                try:
                    see(answer.result())
                except BrokenProcessPool:
                    see(m | {"verdict": "caught", "law": "raises: the process ends", "seconds": 0})
                    break


def _save(results: list[dict[str, Any]]) -> None:
    import mutate_page
    from common import write
    from mutate_survivors import reason, unexplained

    verdicts = [m["verdict"] for m in results]
    laws: dict[str, int] = {}
    for law in (m["law"] for m in results if "law" in m):
        laws[law] = laws.get(law, 0) + 1
    summary = {
        "command": "python tests/mutation/mutate.py", "made": len(results), "caught": verdicts.count("caught"),
        "caught_as": mutate_page.counted(laws), "held": verdicts.count("held"), "survived": verdicts.count("survived"),
        "unexplained": sum(unexplained(m) for m in results),
        "seconds": round(sum(m["seconds"] for m in results)),
        "caught_by": dict(sorted(laws.items(), key=lambda kv: -kv[1])), "versions": {"jax": version("jax")},
    }  # fmt: skip
    keys = ("file", "function", "line", "from", "to", "change", "verdict", "check", "law", "test", "seconds")
    rows = [{k: m[k] for k in keys if k in m} for m in results]
    rows = [
        row | ({"reason": reason(m)} if m["verdict"] != "caught" else {}) for row, m in zip(rows, results, strict=True)
    ]
    write(RESULT, {"summary": summary, "mutants": rows})
    mutate_page.write()


def _verdict(results: list[dict[str, Any]], whole: bool) -> int:
    from mutate_survivors import idle, unexplained

    verdicts = [m["verdict"] for m in results]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("caught", "held", "survived"))
    print(f"\n{len(results)} mutants, {counts}")
    for m in (strange := [m for m in results if unexplained(m)]):
        print("UNEXPLAINED:", identity(m), "→", m["to"])
    if whole and (unused := idle(results)):
        print("reasons that no survivor needs:", *unused, sep="\n  ")
    for place in (missing := unreached()):
        print("NOT IN TARGETS:", place)
    return 1 if strange or missing else 0


if __name__ == "__main__":
    sys.exit(main())
