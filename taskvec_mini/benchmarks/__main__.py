"""The command line: `python -m taskvec_mini.benchmarks --help` shows what it can do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from taskvec_mini._options import run
from taskvec_mini.benchmarks.cli import requests
from taskvec_mini.benchmarks.cli.data import data
from taskvec_mini.benchmarks.cli.list import show
from taskvec_mini.benchmarks.cli.parser import parse
from taskvec_mini.benchmarks.cli.record import record
from taskvec_mini.benchmarks.cli.runs import evaluate, finetune, merge
from taskvec_mini.benchmarks.cli.throughput import throughput

FUNCTIONS: dict[type, Callable[[Any], object]] = {
    requests.ListRequest: show,
    requests.DataRequest: data,
    requests.FinetuneRequest: finetune,
    requests.MergeRequest: merge,
    requests.EvaluateRequest: evaluate,
    requests.RecordRequest: record,
    requests.ThroughputRequest: throughput,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit status is 0, or 2 after an error that a user can put right: one line.

    Any other error is a bug, and comes through with its traceback.

    Args:
        arguments: what follows the program's name; by default what this process was called with.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    stopped = "stopped; what is finished is kept, and the same command goes on from there"
    return run(arguments, parse=parse, functions=FUNCTIONS, stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
