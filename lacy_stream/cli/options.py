"""Dataclass -> options of a command, and the parsed command line -> dataclass.

A field ``call_rate: float = 0.15`` becomes ``--call-rate F``. Its docstring is the help text, its annotation says which
values are accepted, and its default stands nowhere else. ``Annotated[str, "FILE"]`` gives the placeholder of the value.
A dataclass inside a dataclass becomes a group of options, titled by the docstring of the field.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")
NAMES = {"method": "delegate"}
"""Fields whose option has another name."""


class CommandParser(argparse.ArgumentParser):
    """A parser that is filled when it is used, so that the other commands cost no time.

    Args:
        fill: adds the arguments.
    """

    def __init__(self, fill: Callable[[CommandParser], None] | None = None, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self._fill = fill

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._fill is not None:
            self._fill(self)
            self._fill = None
        if self._subparsers is None:
            self._check_options(args)
        return super().parse_known_args(args, namespace)

    def _check_options(self, args: list[str]) -> None:
        """Refuse unknown options. argparse does so last: of a required option that is misspelt, it would only say that
        it is missing."""
        known = list(self._option_string_actions)
        for argument in itertools.takewhile(lambda argument: argument != "--", args):
            name = argument.partition("=")[0]
            if name.startswith("--") and " " not in name and not any(option.startswith(name) for option in known):
                near = difflib.get_close_matches(name, known, n=1)
                self.error(f"there is no option {name}" + (f"; did you mean {near[0]}?" if near else ""))

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}\nSee `{self.prog} --help`.\n")


Commands = argparse._SubParsersAction  # of CommandParser


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    fill: Callable[[CommandParser], None],
    *,
    help: str,
    description: str,
    epilog: str = "",
) -> None:
    """Add a command.

    Args:
        run: the command; returns its exit code.
        fill: adds the options.
        help: one line, for the list of commands.
    """
    parser = commands.add_parser(name, fill=fill, help=help, description=description, epilog=epilog)
    parser.set_defaults(run=run, prog=parser.prog)


# ---------------------------------------------------------------- dataclass -> options


def add_options(
    parser: argparse.ArgumentParser,
    kind: type,
    *,
    positional: Collection[str] = (),
    repeated: Collection[str] = (),
    without: Collection[str] = (),
    defaults: Mapping[str, str] | None = None,
) -> None:
    """Add the fields of a dataclass to a parser. A field of the type ``tuple[X, ...]`` takes several values.

    Args:
        positional: fields that are given by their place, without the name of an option.
        repeated: fields whose option is given again for each value.
        without: fields that are left out.
        defaults: field -> its default in words, where the help shall not show the field's.
    """
    groups: dict[str, Any] = {"": parser}
    for option in _options(kind):
        if option.name in without:
            continue
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        settings = _settings(option, (defaults or {}).get(option.name), option.name in positional)
        if option.name in repeated:
            del settings["nargs"]
            settings["action"] = "append"
        if option.name in positional:
            groups[option.group].add_argument(option.name, **settings)
        else:
            name = "--" + NAMES.get(option.name, option.name).replace("_", "-")
            required = option.default is MISSING
            groups[option.group].add_argument(name, dest=option.name, required=required, **settings)


class _Option(NamedTuple):
    """A field, with the default that it has where it stands."""

    name: str
    hint: Any
    default: Any
    doc: str
    group: str = ""


def _options(kind: type, base: Any = MISSING, group: str = "") -> Iterator[_Option]:
    """The fields of a dataclass, and in their places those of the dataclasses inside."""
    docs, hints = _docstrings(kind), get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        default = field.default if base is MISSING else getattr(base, field.name)
        if is_dataclass(hints[field.name]):
            yield from _options(hints[field.name], default, docs[field.name].rstrip("."))
        else:
            yield _Option(field.name, hints[field.name], default, docs[field.name], group)


def _docstrings(kind: type) -> dict[str, str]:
    """Field -> the string below it in the source."""
    # Python keeps no docstrings of fields, so they are read from the source. Base classes come first, as their fields
    # do.
    docs = {}
    for one in reversed(kind.__mro__[:-1]):
        (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(one))).body)  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                docs[ast.unparse(field.target)] = " ".join(ast.literal_eval(below.value).replace("``", "`").split())
    return docs


def _settings(option: _Option, default: str | None, positional: bool) -> dict[str, Any]:
    """The keywords for ``add_argument``. A default is left to the dataclass."""
    kind, placeholder, many = _value(option.hint)
    hidden = option.default in (MISSING, None, "", ()) or option.default is False
    shown = default or ("" if hidden else _text(option.default))
    doc = option.doc + (f" Default: {shown}." if shown else "")
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": doc.replace("%", "%%")}
    if kind is bool:
        return settings | {"action": "store_true"}
    if get_origin(kind) is Literal:
        settings |= {"choices": get_args(kind), "metavar": placeholder or None}
    else:
        convert = CONVERTERS.get(placeholder) or CONVERTERS.get(kind, str)
        settings |= {"type": convert, "metavar": placeholder or PLACEHOLDERS[kind]}
    if many:
        settings["nargs"] = "*" if positional and option.default is not MISSING else "+"
    return settings


def _value(hint: Any) -> tuple[Any, str, bool]:
    """The type of one value, its placeholder or "", and whether there are several."""
    # ``tuple[Annotated[str, "FILE"], ...] | None`` is peeled from the outside: (str, "FILE", True).
    placeholder, many = "", False
    while (origin := get_origin(hint)) in (Annotated, Union, UnionType, tuple):
        many |= origin is tuple
        if origin is Annotated:
            placeholder = hint.__metadata__[0]
        hint = next(argument for argument in get_args(hint) if argument is not type(None))
    return hint, placeholder, many


def _text(value: Any) -> str:
    """A value as one would write it on a command line."""
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; write one such as 8") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write one such as 0.5") from None


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*(|kb|mb|gb)", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes, 512kb, 64mb or 1gb")
    return int(match[1]) << {"": 0, "kb": 10, "mb": 20, "gb": 30}[match[2]]


CONVERTERS: dict[Any, Callable[[str], Any]] = {int: _whole_number, float: _number, "SIZE": _size}
"""By type, or by a placeholder that asks for more than its type."""
PLACEHOLDERS = {str: "NAME", int: "N", float: "F"}


# ---------------------------------------------------------------- command line -> dataclass


def parse_options(kind: type[Settings], args: argparse.Namespace, **values: Any) -> Settings:
    """The dataclass that a command line describes.

    Args:
        values: fields that are not taken from the command line.

    Raises:
        UsageError: the dataclass refuses a value.
    """
    return _build(kind, MISSING, vars(args) | values)


def _build(kind: Any, base: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass of the values, and of what ``base`` has in the other fields."""
    given, hints = {}, get_type_hints(kind)
    for field in fields(kind):
        if field.name in values:
            value = values[field.name]
            given[field.name] = tuple(value) if isinstance(value, list) else value
        elif is_dataclass(hints[field.name]):
            default = field.default if base is MISSING else getattr(base, field.name)
            given[field.name] = _build(hints[field.name], default, values)
    return kind(**given) if base is MISSING else replace(base, **given)
