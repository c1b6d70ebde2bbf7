"""From the command line to a request, and back: options are made from the fields of dataclasses."""

from __future__ import annotations

import argparse
import inspect
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from taskvec_mini.benchmarks.cli.requests import (
    EvaluateRequest,
    FinetuneRequest,
    ListRequest,
    MergeRequest,
    RecordRequest,
    Request,
    ThroughputRequest,
)

PROGRAM = "python -m taskvec_mini.benchmarks"
COMMANDS: dict[str, type[Request]] = {
    "list": ListRequest,
    "finetune": FinetuneRequest,
    "merge": MergeRequest,
    "evaluate": EvaluateRequest,
    "record": RecordRequest,
    "throughput": ThroughputRequest,
}
OVERVIEW = f"""examples:
  {PROGRAM} list
  {PROGRAM} finetune --epochs 3
  {PROGRAM} merge --epoch 1
  {PROGRAM} evaluate --tune

These four lines are a whole experiment, which needs no data and takes a minute: what there is; one encoder
finetuned on each of seven tasks of small real digits; their task vectors after one epoch, added up; the
merged model beside the pretrained and the finetuned ones.

Larger images? Add --suite bundle, torchvision or hub to finetune. Texts? Add --suite text. `list` says where
their data was found, or how to get it."""
_METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}


def parse(arguments: Sequence[str] | None = None) -> Request:
    """The request of a command line, by default of the one this process was called with.

    Raises:
        UserError: if a value is out of range, or options do not go together.
        SystemExit: for `--help`, and where a command or option is unknown or a value of the wrong kind.

    Example:
        >>> parse(["finetune", "--tasks", "digits", "--epochs", "3"]).settings.epochs
        3
    """
    given = vars(parser().parse_args(arguments))
    kind = COMMANDS[given["command"]]
    request: Request = _made(kind, _defaults(kind), given=given)
    return request


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    look: dict[str, Any] = {
        "allow_abbrev": False,  # so that a recorded command means the same when options are added
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "argument_default": argparse.SUPPRESS,  # what is not given keeps the default of its dataclass
    }
    does = "Finetune encoders on real tasks, merge what they learnt, and measure the result."
    main = argparse.ArgumentParser(prog=PROGRAM, description=does, epilog=OVERVIEW, **look)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, kind in COMMANDS.items():
        does, _, more = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
        command = commands.add_parser(name, help=does, description=does, epilog=more, **look)
        _add_options(command, kind, defaults=_defaults(kind), names=set())
        command.add_argument("--debug", action="store_true", help="show where in the code an error came from")
    return main


def command_of(request: Request) -> str:
    """The command line of a request, without what is as by default or is about one machine alone.

    Example:
        >>> command_of(parse(["throughput", "--passes", "5", "--images", "256", "--out", "record.json"]))
        'python -m taskvec_mini.benchmarks throughput --passes 5'
    """
    name = next(name for name, kind in COMMANDS.items() if type(request) is kind)
    arguments = [name]
    for option, value in changed_options(request, recorded=True).items():
        if option.startswith("--"):
            arguments.append(option)
        if value is not True:
            values = value if isinstance(value, tuple) else (value,)
            arguments += [str(each).removesuffix(".0") for each in values]
    return f"{PROGRAM} {shlex.join(arguments)}"


def changed_options(request: Any, *, recorded: bool = False) -> dict[str, Any]:
    """The options in a request that are not as by default, with their values.

    Args:
        request: an object of one of the classes that options are made from.
        recorded: leave out those whose metadata say `recorded: False`: they are about one machine.

    Example:
        >>> changed_options(parse(["throughput", "--passes", "5", "--compile"]))
        {'--passes': 5, '--compile': True}
    """
    found, waiting = {}, [(request, _defaults(type(request)))]
    while waiting:
        part, defaults = waiting.pop(0)
        for each in fields(part):
            value, default = getattr(part, each.name), defaults[each.name]
            if is_dataclass(default):
                waiting.append((value, _defaults(default)))
            elif value != default and (each.metadata.get("recorded", True) or not recorded):
                found[each.name if default is MISSING else _option(each.name)] = value
    return found


# --- from fields to options and back ---------------------------------------------------------------------


def _defaults(source: Any) -> dict[str, Any]:
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
            value = _made(type(default), _defaults(default), given=given)
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
            _add_options(group, type(default), defaults=_defaults(default), names=names)
            continue
        if each.name in names:
            continue
        names.add(each.name)
        hint = hints[each.name]
        if isinstance(hint, types.UnionType):  # X | None
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
        container.add_argument(each.name if default is MISSING else _option(each.name), **option)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
