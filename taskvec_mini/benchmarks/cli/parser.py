"""From the command line to a request, and back: options are made from the fields of dataclasses."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from taskvec_mini._options import changed_options, parser_of, request_of
from taskvec_mini.benchmarks.cli.requests import (
    DataRequest,
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
    "data": DataRequest,
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

Larger images? Add --suite bundle, large, torchvision or hub to finetune. Texts? Add --suite text. `data`
makes the files of bundle, large and text; `list` says where all data was found, or how to get it."""


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
    request: Request = request_of(kind, given)
    return request


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    does = "Finetune encoders on real tasks, merge what they learnt, and measure the result."
    return parser_of(COMMANDS, program=PROGRAM, does=does, overview=OVERVIEW)


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
