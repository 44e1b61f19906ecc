"""What users write themselves: Python files with layers, losses and nets in them, and the classes found there.

A file is run only when its user names it, in a call or on the command line; what a run folder says never runs one.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from jbp.arguments import did_you_mean, existing_file, listed
from jbp.layer import Layer

Classes = dict[str, list[type]]
"""The classes of a user, by name; more than one where several have it."""
_PREFIX = "jbp_own_"


def is_named(text: str) -> bool:
    """Whether a text is meant as FILE.py:NAME."""
    return re.search(r"\.py(:\S*)?$", text.strip()) is not None


def parts(text: str) -> tuple[str, str]:
    """File and name in FILE.py:NAME.

    Raises: ValueError if it is not of that form.
    """
    path, colon, name = text.strip().rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise ValueError(f"expected path/to/file.py:NAME, got {text!r}")
    return path, name


def net(text: str) -> Layer:
    """The net that FILE.py:NAME names: a layer, or what a function (or class) without arguments makes.

    Raises: ValueError saying which part is wrong, and the line of the file where it fails.
    """
    path, name = parts(text)
    module = imported(path)
    if not hasattr(module, name):
        known = [n for n, value in vars(module).items() if isinstance(value, Layer) and not _is_jbps(value, n)]
        hint = did_you_mean(name, vars(module)) or f"; its nets are {listed(known) or 'none'}"
        raise ValueError(f"{path}: there is no {name!r} in it{hint}")
    found = getattr(module, name)
    if not isinstance(found, Layer) and callable(found):
        words = needed(found)
        if words:
            raise ValueError(
                f"{text}: expected a net or a function without arguments, but {name} needs {listed(words)}: "
                f"name a function that calls it"
            )
        with running(path, f"{name}() failed"):
            found = found()
    if not isinstance(found, Layer):
        raise ValueError(
            f"{text}: expected a net (a layer, such as jbp.serial(...) makes) or a function that makes one, "
            f"found a {type(found).__name__}"
        )
    return found


def classes_in(given: Any, kinds: tuple[type, ...]) -> Classes:
    """The user's classes of these kinds: `given` is a Python file, a module, a class, or several of them.

    Raises: ValueError for anything else, or a file that cannot be imported.
    """
    if given is None:
        return {}
    found: Classes = {}
    for one in [given] if isinstance(given, str | Path | ModuleType | type) else _several(given):
        if isinstance(one, type) and issubclass(one, kinds):
            held: Iterable[Any] = [one]
        elif isinstance(one, str | Path | ModuleType):
            held = vars(one if isinstance(one, ModuleType) else imported(one)).values()
        else:
            raise ValueError(f"layers must be a Python file, a module or classes of layers, but is {one!r}")
        for value in held:
            if isinstance(value, type) and issubclass(value, kinds) and not value.__module__.startswith("jbp."):
                known = found.setdefault(value.__name__, [])
                known += [value] if value not in known else []
    return found


def imported(path: str | Path) -> ModuleType:
    """The module of a Python file: the one that is loaded already, else run anew if the file has changed.

    What it prints goes to standard error, for standard output belongs to the results.

    Raises: ValueError if there is none, or it fails, with the line where.
    """
    source = existing_file(path).resolve()
    if source.suffix != ".py":
        raise ValueError(f"{path}: expected a Python file, a name that ends in .py")
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        same = isinstance(file, str) and Path(file).name == source.name and Path(file).resolve() == source
        if same and not name.startswith(_PREFIX):
            return module
    facts = source.stat()
    return _run(str(path), source, facts.st_mtime_ns, facts.st_size)


@lru_cache
def _run(path: str, source: Path, *stamp: int) -> ModuleType:
    # Under a name of its own: the file may be called as a module that others need.
    name = f"{_PREFIX}{source.stem}_{zlib.crc32(str(source).encode('utf-8', 'surrogateescape')):08x}"
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with running(path, "could not be imported"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise
    return module


@contextmanager
def running(path: str, what: str) -> Iterator[None]:
    """Run what the user wrote, with the modules beside it in reach, as `python FILE` does."""
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)
    try:
        with blamed(path, what), redirect_stdout(sys.stderr):
            yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def blamed(path: str, what: str) -> Iterator[None]:
    """Say whatever goes wrong inside after the file's path, with its line there."""
    try:
        yield
    except (Exception, SystemExit) as error:
        line, words = _line(error, path), error.msg if isinstance(error, SyntaxError) else str(error)
        found = f"{type(error).__name__}{': ' if words else ''}{words}{'' if line is None else f' (line {line})'}"
        raise ValueError(f"{path}: {what}: {found}") from error


def _line(error: BaseException, path: str) -> int | None:
    """The last line of the file that an error came through."""
    source = str(Path(path).resolve())
    if isinstance(error, SyntaxError):
        return error.lineno if error.filename == source else None
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    return lines[-1] if lines else None


def needed(function: Any) -> list[str]:
    """The arguments that a function cannot be called without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def _several(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Iterable) else [given]


def _is_jbps(value: Any, name: str) -> bool:
    """Whether a name in a file is one that it imported from jbp, such as relu."""
    return getattr(sys.modules.get("jbp"), name, None) is value
