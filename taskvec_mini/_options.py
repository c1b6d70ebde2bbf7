"""Command lines from dataclasses: a field is an option, its default the default, its metadata the help.

The metadata hold the `help`, and may hold `metavar`, `choices`, `nargs`, `action`, and `recorded: False` for
what is about one machine. A field without a default is a word without `--`. A field that holds another
dataclass is a group of options, with the fields of that class. The docstring is what `--help` says.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from taskvec_mini import _checks
from taskvec_mini.errors import UserError

_METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}


def parser_of(
    commands: Mapping[str, type[Any]], *, program: str, does: str, overview: str
) -> argparse.ArgumentParser:
    """The parser of a whole command line, with a command for each dataclass."""
    look: dict[str, Any] = {
        "allow_abbrev": False,  # so that a recorded command means the same when options are added
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "argument_default": argparse.SUPPRESS,  # what is not given keeps the default of its dataclass
    }
    main = argparse.ArgumentParser(prog=program, description=does, epilog=overview, **look)
    subparsers = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, kind in commands.items():
        does, _, more = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
        command = subparsers.add_parser(name, help=does, description=does, epilog=more, **look)
        _add_options(command, kind, defaults=defaults_of(kind), names=set())
        command.add_argument("--debug", action="store_true", help="show where in the code an error came from")
    return main


def request_of(kind: type[Any], given: Mapping[str, Any]) -> Any:
    """An object of a dataclass with what a parser was given, and else its defaults."""
    return _made(kind, defaults_of(kind), given=given)


def named_values(words: Iterable[str], known: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """Words NAME=VALUE as values of the kinds that the known ones have by default.

    Raises:
        UserError: if a word has no "=", a name is unknown, or a value is of another kind.

    Example:
        >>> named_values(["density=0.3"], {"density": 0.2}, what="ties")
        {'density': 0.3}
    """
    chosen: dict[str, Any] = {}
    for text in words:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--option {text!r} must be NAME=VALUE, for instance density=0.3")
        if not known:
            raise UserError(f"{what} has no options, got {text!r}; leave --option out")
        default = _checks.named_choice(f"option of {what}", name, known)
        if isinstance(default, str):
            chosen[name] = value
            continue
        try:
            number = ast.literal_eval(value.capitalize() if isinstance(default, bool) else value)
        except (ValueError, SyntaxError):
            number = None
        if isinstance(number, bool) != isinstance(default, bool) or not isinstance(number, int | float):
            wanted = "true or false" if isinstance(default, bool) else "a number"
            raise UserError(f"--option {text}: the value must be {wanted}, such as {str(default).lower()}")
        chosen[name] = number
    return chosen


def run(
    arguments: Sequence[str],
    *,
    parse: Callable[[Sequence[str]], Any],
    functions: Mapping[type, Callable[[Any], object]],
    stopped: str,
) -> int:
    """Run one command line; the exit status, after a line about an error that a user can put right.

    Args:
        arguments: what follows the program's name.
        parse: makes a request of them.
        functions: what is done with a request, by its class.
        stopped: what is said when the user interrupts.
    """
    try:
        request = parse(arguments)
        functions[type(request)](request)
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        if "--debug" in arguments:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def changed_options(request: Any, *, recorded: bool = False) -> dict[str, Any]:
    """The options in a request that are not as by default, with their values.

    Args:
        request: an object of one of the classes that options are made from.
        recorded: leave out those whose metadata say `recorded: False`: they are about one machine.

    Example:
        >>> from dataclasses import dataclass, field
        >>> @dataclass
        ... class Paint:
        ...     layers: int = field(default=1, metadata={"help": "how many"})
        >>> changed_options(Paint(layers=2))
        {'--layers': 2}
    """
    found, waiting = {}, [(request, defaults_of(type(request)))]
    while waiting:
        part, defaults = waiting.pop(0)
        for each in fields(part):
            value, default = getattr(part, each.name), defaults[each.name]
            if is_dataclass(default):
                waiting.append((value, defaults_of(default)))
            elif value != default and (each.metadata.get("recorded", True) or not recorded):
                found[each.name if default is MISSING else option_of(each.name)] = value
    return found


def defaults_of(source: Any) -> dict[str, Any]:
    """What each field holds by default: of a class, or of an object that is itself a default."""
    found = {}
    for each in fields(source):
        if not isinstance(source, type):
            found[each.name] = getattr(source, each.name)
        elif each.default_factory is not MISSING:
            found[each.name] = each.default_factory()
        else:
            found[each.name] = each.default
    return found


def _made(kind: type[Any], defaults: Mapping[str, Any], *, given: Mapping[str, Any]) -> Any:
    """An object of a class with what was given, and else its defaults."""
    values = {}
    for name, default in defaults.items():
        value = given.get(name, default)
        if is_dataclass(default):
            value = _made(type(default), defaults_of(default), given=given)
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _add_options(
    container: argparse._ActionsContainer,
    kind: type[Any],
    *,
    defaults: Mapping[str, Any],
    names: set[str],
) -> None:
    """Add an option for each field; `names` are those that are there, which are not added again."""
    hints = typing.get_type_hints(kind)
    for each in fields(kind):
        default = defaults[each.name]
        if is_dataclass(default):
            group = container
            if isinstance(container, argparse.ArgumentParser):  # there are no groups in groups
                group = container.add_argument_group(each.metadata["help"])
            _add_options(group, type(default), defaults=defaults_of(default), names=names)
            continue
        if each.name in names:
            continue
        names.add(each.name)
        hint = hints[each.name]
        if typing.get_origin(hint) in (types.UnionType, typing.Union):  # X | None
            hint = typing.get_args(hint)[0]
        option: dict[str, Any] = {"help": each.metadata["help"]}
        says_nothing = default is MISSING or default is None or default is False or default == ()
        if not says_nothing and "(default:" not in option["help"]:
            option["help"] += f" (default: {default})"
        if hint is bool:
            option["action"] = "store_true"
        else:
            if typing.get_origin(hint) is tuple:
                hint = typing.get_args(hint)[0]
                option["nargs"] = each.metadata.get("nargs", "+")
                option["action"] = each.metadata.get("action", "store")
            if typing.get_origin(hint) is typing.Literal:
                option["choices"] = typing.get_args(hint)
                hint = str
            option["type"] = hint
            if "choices" in each.metadata:
                option["choices"] = each.metadata["choices"]
            if "choices" not in option:
                option["metavar"] = each.metadata.get("metavar", _METAVARS[hint])
        container.add_argument(each.name if default is MISSING else option_of(each.name), **option)


def option_of(name: str) -> str:
    """The option of a field: its name with -- in front.

    Example:
        >>> option_of("scaling_coef")
        '--scaling-coef'
    """
    return f"--{name.replace('_', '-')}"
