"""Sub-commands as frozen dataclasses, and the argument parser made from their fields.

A field declared by `option` is a flag, one declared by `argument` a positional. The same checks, with the same words,
serve the shell and Python: `jbp train --epochs 5` is `jbp.cli.Train(epochs=5)()`.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from jbp.arguments import check_choice, did_you_mean

_KINDS = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}


def option(
    default: Any, text: str, group: str, *, choices: Iterable[str] = (), metavar: str = "", shown: str | None = None
) -> Any:
    """A field that is a flag. `shown` is the default as help tells it, where that is not the value itself."""
    facts = {"text": text, "group": group, "choices": tuple(choices), "metavar": metavar, "shown": shown}
    return field(default=default, metadata=facts)


def argument(text: str, metavar: str = "", *, default: Any = MISSING) -> Any:
    """A field that is a positional argument; of type tuple, one or more of them; with a default, none too."""
    facts = {"text": text, "group": None, "choices": (), "metavar": metavar, "shown": None}
    return field(default=default, metadata=facts)


def layers_option(group: str = "run") -> Any:
    """The flag by which a command is told where the layers of a run are that are not jbp's."""
    return option(None, "Python file with the layers of the run that are not jbp's; it is run", group, metavar="FILE")


class Failed(Exception):
    """The command was asked for rightly and did its work, and the answer is no: exit status 1."""


@dataclass(frozen=True)
class Command:
    """One sub-command: its fields are its arguments, calling it runs it.

    Raises: ValueError where a field has the wrong type, or is none of its choices (naming the nearest).
    """

    summary: ClassVar[str] = ""
    epilog: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, kinds = getattr(self, f.name), _kinds(type(self))[f.name]
            if value is None and types.NoneType in kinds:
                continue
            if tuple in kinds:
                continue
            allowed = (*kinds, int) if float in kinds else kinds
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
                wanted = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
                raise ValueError(f"{f.name} must be {wanted}, but is {value!r}")
            check_choice(f.name, value, f.metadata["choices"])

    def __call__(self) -> Any:
        """Do it."""
        raise NotImplementedError


def flag(name: str) -> str:
    """batch_size → --batch-size."""
    return "--" + name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says what is wrong in one line."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=_Format, **kwargs)
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage; `main` reports every error alike."""
        raise ValueError(message)


def build(commands: dict[str, type[Command]], description: str, version: str) -> Parser:
    """The parser of all sub-commands. It leaves out what was not given, so that defaults stay the dataclass's."""
    listing = "\n".join(f"  {name:<10}{command.summary}" for name, command in commands.items())
    epilog = f"commands:\n{listing}\n\n`jbp COMMAND --help` tells the options of each."
    parser = Parser(prog="jbp", usage="jbp COMMAND [options]", description=description, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"jbp {version}", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def command_parser(name: str, command: type[Command]) -> Parser:
    """The parser of one sub-command."""
    positionals = [f for f in dataclasses.fields(command) if f.metadata["group"] is None]
    shown = "".join(f" {_positional(f)}" for f in positionals)
    parser = Parser(
        prog=f"jbp {name}",
        usage=f"jbp {name}{shown} [options]",
        description=command.summary[0].upper() + command.summary[1:] + ".",
        epilog=command.epilog,
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, Any] = {}
    if hasattr(command, "from_config"):
        parser.add_argument_group("repeat").add_argument(
            "--config", metavar="FILE", help="repeat the run of RUN/config.json; other options given override it"
        )
    for f in dataclasses.fields(command):
        kinds, facts = _kinds(command)[f.name], f.metadata
        if facts["group"] is None:
            groups.setdefault("arguments", parser.add_argument_group("arguments")).add_argument(
                f.name, metavar=facts["metavar"], help=facts["text"], **_count(f, kinds)
            )
            continue
        if facts["group"] not in groups:
            groups[facts["group"]] = parser.add_argument_group(facts["group"])
        if bool in kinds:
            three = types.NoneType in kinds
            how: dict[str, Any] = {"action": argparse.BooleanOptionalAction if three else "store_true"}
        else:
            kind = next(k for k in (int, float, str) if k in kinds)
            how = {"type": _converter(f.name, kind), "metavar": facts["metavar"] or f.name.upper()}
        groups[facts["group"]].add_argument(flag(f.name), help=_help(f), **how)
    return parser


def parse(parser: Parser, words: list[str]) -> dict[str, Any]:
    """What was given, by field name.

    Raises: ValueError in one line, with the nearest known flag for an unknown one.
    """
    given, unknown = parser.parse_known_args(words)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        word = unknown[0].partition("=")[0]
        hint = did_you_mean(word, flags) if word.startswith("-") else ""
        raise ValueError(f"unknown argument {unknown[0]!r}{hint or f'; see {parser.prog} --help'}")
    return vars(given)


def _kinds(command: type[Command]) -> dict[str, tuple[type, ...]]:
    """The types each field may have."""
    hints = typing.get_type_hints(command)
    result = {}
    for f in dataclasses.fields(command):
        hint = hints[f.name]
        members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        result[f.name] = tuple(typing.get_origin(member) or member for member in members)
    return result


def _converter(name: str, kind: type) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {_KINDS[kind]}, got {text!r}") from None

    return convert


def _count(f: dataclasses.Field[Any], kinds: tuple[type, ...]) -> dict[str, Any]:
    """How many words a positional takes."""
    if tuple in kinds:
        return {"nargs": "+" if f.default is MISSING else "*"}
    return {} if f.default is MISSING else {"nargs": "?"}


def _positional(f: dataclasses.Field[Any]) -> str:
    metavar = f.metadata["metavar"] or f.name.upper()
    several = "tuple" in str(f.type)
    if f.default is not MISSING:
        return f"[{metavar} …]" if several else f"[{metavar}]"
    return f"{metavar} {metavar} …" if several else metavar


def _help(f: dataclasses.Field[Any]) -> str:
    shown = f.metadata["shown"]
    if shown is None and not (f.default is None or f.default is False or f.default is MISSING):
        shown = f'"{f.default}"' if " " in str(f.default) else f"{f.default}"
    return (f.metadata["text"] + (f" (default: {shown})" if shown else "")).replace("%", "%%")


class _Format(argparse.RawDescriptionHelpFormatter):
    """Wider than argparse's own, up to 100 columns, with help texts in one column."""

    def __init__(self, prog: str):
        width = min(100, shutil.get_terminal_size().columns) - 2
        super().__init__(prog, max_help_position=30, width=width)
